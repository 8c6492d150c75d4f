"""What `dicom_read.py` and `dicom_write.py` share: a large CT series, and programs that are timed in turns.

Each program runs in a process of its own, with further packages on its path if they are its own, so that none changes what
another imports. The first round is not counted: it fills caches. In each further round everyone has one turn.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from claims import judged
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared" / "data"
REAL_CT = "dicom_series/ct_philips_gantry_tilt/S21610/S2010"
SIZE = 512
SPACING_MM, GAP_MM = 0.5, 0.8
TYPE_2 = "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber"


@dataclass(frozen=True)
class Side:
    """A program to be timed.

    Attributes:
        name: What is printed.
        prepare: Makes of the source what the program has at hand already; not timed, called once.
        work: Does the work, given that and the target.
        tell: Says in a line what came out; not timed.
        modules: What must be importable.
    """

    name: str
    prepare: Callable[[Path], Any]
    work: Callable[[Any, Path], Any]
    tell: Callable[[Any], str]
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """What a turn took, and what came out.

    Attributes:
        wall_s: Seconds by the clock.
        cpu_s: Seconds of the processor, in the program and in the system; other work on the machine changes them less.
        system_s: Of these, in the system: reading, and giving memory to the process.
        told: What came out.
    """

    wall_s: float
    cpu_s: float
    system_s: float
    told: str


def race(
    sides: Sequence[Side], source: Path, target: Path, rounds: int, peers: Path | None, cores: int | None = None
) -> dict[str, list[Turn]]:
    """The turns of every side that is installed, in the order of `sides`; says which are absent.

    Args:
        sides: Who takes part.
        source: Given to `prepare`.
        target: Given to `work`.
        rounds: How many are counted.
        peers: Folder of packages for those sides that name modules.
        cores: How many cores each side may use; None for all.
    """
    with ExitStack() as stack:
        pools = {}
        for side in sides:
            pool = stack.enter_context(own_process(peers if side.modules else None, cores))
            if pool.submit(_installed, side.modules).result():
                pools[side] = pool
            else:
                print(f"{side.name}: absent ({', '.join(side.modules)} cannot be imported)")
        turns: dict[str, list[Turn]] = {side.name: [] for side in pools}
        for _ in range(rounds + 1):
            for side, pool in pools.items():
                turns[side.name].append(pool.submit(_turn, side, source, target).result())
    return {name: found[1:] for name, found in turns.items()}


def own_process(peers: Path | None = None, cores: int | None = None) -> ProcessPoolExecutor:
    """A new process on so many cores (None: all), with a folder of packages before all others on its path."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin, initargs=(peers, cores))


def _begin(peers: Path | None, cores: int | None) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    warnings.simplefilter("ignore")  # of the peers, about the names of patients and the like
    sys.path[:0] = [*([str(peers.resolve())] if peers else []), str(REPOSITORY)]


def _installed(modules: Sequence[str]) -> bool:
    return all(find_spec(module) for module in modules)


def _turn(side: Side, source: Path, target: Path) -> Turn:
    ready = _ready(side.prepare, source)
    gc.collect()
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    result = side.work(ready, target)
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    user_s, system_s = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Turn(wall, user_s + system_s, system_s, side.tell(result))


@cache
def _ready(prepare: Callable[[Path], Any], source: Path) -> Any:
    return prepare(source)


def show(turns: dict[str, list[Turn]], ours: str) -> None:
    """Prints a line for each side: best and median seconds, and how many times as long as ours."""
    for name, found in turns.items():
        best = min(found, key=lambda turn: turn.wall_s)
        middle = statistics.median(turn.wall_s for turn in found)
        times = "" if name == ours else "  {:6.2f}x best {:6.2f}x median".format(*ratios(turns, name, ours))
        cpu = f"(CPU {best.cpu_s:6.2f} s, system {best.system_s:5.2f} s)"
        print(f"  {name:38} best {best.wall_s:6.2f} s {cpu}  median {middle:6.2f} s{times}")


def ratios(turns: dict[str, list[Turn]], theirs: str, ours: str) -> tuple[float, float]:
    """How many times as long as ours: best by best, and the median over the rounds."""
    pairs = list(zip(turns[theirs], turns[ours], strict=True))
    best = min(them.wall_s for them, _ in pairs) / min(us.wall_s for _, us in pairs)
    return best, statistics.median(them.wall_s / us.wall_s for them, us in pairs)


def times_as_long(turns: dict[str, list[Turn]], theirs: str, ours: str, least: float) -> bool:
    """Whether a side takes at least so many times as long as ours, best by best; True where that side is absent."""
    return theirs not in turns or judged(f"{theirs} / {ours}", ratios(turns, theirs, ours)[0], least)


def times_the_cpu(turns: dict[str, list[Turn]], theirs: str, ours: str, least: float) -> bool:
    """Whether a side takes at least so many times our seconds of the processor, least by least."""
    least_s = {name: min(turn.cpu_s for turn in turns[name]) for name in (theirs, ours)}
    return judged(f"CPU seconds, {theirs} / {ours}", least_s[theirs] / least_s[ours], least)


def make_ct(folder: Path, count: int, syntax: UID | None, data: Path) -> None:
    """A CT series of 512 x 512 pixels, its slices evenly spaced, each an instance of its own.

    Args:
        folder: Is made, and filled with one file a slice.
        count: How many slices.
        syntax: A lossless transfer syntax; None for uncompressed.
        data: Folder that holds a real series, whose slices are taken up and down again; else they are made up.
    """
    folder.mkdir(parents=True)
    slices = _real_slices(data / REAL_CT) if (data / REAL_CT).is_dir() else list(_made_up_slices(24))
    if syntax is not None:
        for one in slices:
            _compress(one, syntax)
    there_and_back = [*slices, *slices[-2:0:-1]]
    for k in range(count):
        one = there_and_back[k % len(there_and_back)]
        _place(one, k)
        one.save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)


def _compress(one: Dataset, syntax: UID) -> None:
    if syntax != JPEG2000Lossless:
        one.compress(syntax, generate_instance_uid=False)
        return
    stream = imagecodecs.jpeg2k_encode(  # pydicom's own encoder is a package that reading does without
        one.pixel_array, codecformat="j2k", reversible=True, bitspersample=one.BitsStored
    )
    one.PixelData = encapsulate([stream])
    one["PixelData"].VR = "OB"
    one.file_meta.TransferSyntaxUID = syntax


def describe(data: Path) -> str:
    """What the series is made of."""
    if (data / REAL_CT).is_dir():
        return f"slices of {REAL_CT}"
    return f"made-up slices, because {data / REAL_CT} is absent: compressed sizes and times are not those of real ones"


def _real_slices(folder: Path) -> list[Dataset]:
    found = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    slices = [one for one in found if one.get("Rows") == SIZE and "PixelData" in one]
    for one in slices:
        one.GantryDetectorTilt = 0
    return sorted(slices, key=lambda one: float(one.ImagePositionPatient[2]))


def _made_up_slices(count: int) -> Iterator[Dataset]:
    """A head of bone and brain with noise, in Hounsfield units + 1024."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[0:SIZE, 0:SIZE] / (SIZE / 2) - 1
    for k in range(count):
        radius = np.hypot(row / 0.8, column / (0.6 + 0.1 * k / count))
        values = np.select([radius < 0.85, radius < 1.0], [1064.0, 1900.0], 24.0)
        pixels = (values + rng.normal(0, 8, values.shape)).clip(0, 4095).astype(np.uint16)
        yield _slice_of(pixels)


def _slice_of(pixels: np.ndarray) -> Dataset:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = CTImageStorage
    one.Modality, one.SeriesNumber = "CT", 1
    one.Rows, one.Columns = pixels.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
    one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, -1024, "HU"
    one.ImageType, one.KVP, one.AcquisitionNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 120, 1
    one.PixelData = pixels.tobytes()
    return one


def _place(one: Dataset, k: int) -> None:
    """Makes a slice the k-th of a new series."""
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = (
        generate_uid(entropy_srcs=["benchmark", what]) for what in ("study", "series", "frame of reference")
    )
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["benchmark", str(k)])
    one.InstanceNumber, one.SliceLocation, one.SliceThickness = k + 1, k * GAP_MM, GAP_MM
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.ImagePositionPatient = [-SIZE * SPACING_MM / 2, -SIZE * SPACING_MM / 2, round(k * GAP_MM, 3)]
    one.PixelSpacing = [SPACING_MM, SPACING_MM]
    for keyword in TYPE_2.split():
        if one.get(keyword) is None:
            setattr(one, keyword, "")

"""Series as archives hold them, each a little off what the standard or its readers expect, and all of them usable.

Where hazards must be read right or refused, these must be read: right, or by a repair that has a name. Three or more of each
clause, built from `phantoms`; what is true of them is what they were written with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from hazard_truth import Truth, stack_truth
from hostile_inputs import codestream, with_codestreams
from numpy.typing import NDArray
from phantoms import CT_IMAGE, lopsided_array, oblique_affine, tilted_affine, write_enhanced_mr, write_mr_series
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import JPEGBaseline8Bit, JPEGLossless, JPEGLosslessSV1, generate_uid

SLICES, STACKS = 7, 4
ARRAY = lopsided_array((13, 11, SLICES)).astype(np.uint16)
OBLIQUE, AXIAL = oblique_affine(), oblique_affine((0.8, 0.75, 5.0), degrees=(0.0, 0.0, 0.0))
PLACE_MM = 0.1
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Usable:
    """One series.

    Attributes:
        clause: What it has in common with others.
        name: Its own.
        build: Fills a folder.
        truth: The volume that must be read.
        options: Of `read_series`, without which it may be refused.
        repaired: Whether it comes back resampled, by an option that says so.
    """

    clause: str
    name: str
    build: Callable[[Path], object]
    truth: Truth = field(default_factory=lambda: stack_truth(ARRAY, OBLIQUE))
    options: Mapping[str, Any] = field(default_factory=dict)
    repaired: bool = False


def _stack(n: int) -> NDArray:
    return ARRAY + np.uint16(1000 * n)


def _write_stacks(folder: Path, values: Callable[[int, int], Values], left: int, **header: object) -> None:
    """STACKS stacks at the same positions, of which the last has `left` slices."""
    shared = {keyword: generate_uid() for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for n in range(STACKS):

        def edit(dataset: Dataset, k: int, n: int = n) -> None:
            for keyword, value in values(n, k).items():
                setattr(dataset, keyword, value)

        drop = tuple(range(left, SLICES)) if n == STACKS - 1 else ()
        write_mr_series(folder, _stack(n), OBLIQUE, header={**shared, **header}, prefix=f"s{n}", edit=edit, drop=drop)


def _time_points(
    clause: str, name: str, values: Callable[[int, int], Values], wanted: int, left: int = SLICES, **header: object
) -> Usable:
    build = partial(_write_stacks, values=values, left=left, **header)
    return Usable(clause, name, build, stack_truth(_stack(wanted - 1), OBLIQUE), {"time_point": wanted})


def _one_after_another(n: int, k: int) -> Values:
    return {"InstanceNumber": n * SLICES + k + 1}


def _without_marks() -> Iterator[Usable]:
    unmarked = partial(_time_points, "time series without a mark")
    yield unmarked("one stack after another", _one_after_another, 2)
    yield unmarked("from the last slice on", lambda n, k: {"InstanceNumber": (n + 1) * SLICES - k}, 3)
    yield unmarked("position by position", lambda n, k: {"InstanceNumber": k * STACKS + n + 1}, 4)
    odd = [*range(0, SLICES, 2), *range(1, SLICES, 2)]
    yield unmarked("interleaved", lambda n, k: {"InstanceNumber": n * SLICES + odd.index(k) + 1}, 1)
    yield unmarked("numbers from 5001", lambda n, k: {"InstanceNumber": 5001 + n * SLICES + k}, 2)
    weighted = lambda n, k: {**_one_after_another(n, k), "DiffusionBValue": 1000.0 * (n > 0)}  # noqa: E731
    yield unmarked("directions named nowhere", weighted, 3)
    yield unmarked("perfusion CT", lambda n, k: {"InstanceNumber": k * STACKS + n + 1}, 2, **CT_IMAGE)


def _broken_off() -> Iterator[Usable]:
    broken = partial(_time_points, "a series that was broken off")
    yield broken("numbers alone", _one_after_another, 2, left=3)
    yield broken("temporal positions", lambda n, k: {"TemporalPositionIdentifier": n + 1}, 3, left=1)
    counted = lambda n, k: {"AcquisitionNumber": n + 1, "AcquisitionTime": f"12{n:02d}{k:02d}"}  # noqa: E731
    yield broken("acquisitions", counted, 1, left=SLICES - 1)
    yield broken("echoes", lambda n, k: {"EchoTime": 4.6 * (n + 1)}, 2, left=2)
    yield broken("triggers", lambda n, k: {"TriggerTime": 40.0 * n}, 3, left=4)
    yield broken("PET frames", lambda n, k: {"FrameReferenceTime": 60000.0 * n, "Modality": "PT"}, 2, left=1)


def _in_colour() -> Iterator[Usable]:
    def build(folder: Path, places: tuple[int, ...], header: Values, stay: bool) -> None:
        paths = write_mr_series(folder, ARRAY, OBLIQUE, header=header)
        for number, k in enumerate(places):
            picture = dcmread(paths[k])
            picture.SamplesPerPixel, picture.PhotometricInterpretation, picture.PlanarConfiguration = 3, "RGB", 0
            picture.BitsAllocated, picture.BitsStored, picture.HighBit, picture.SOPInstanceUID = 8, 8, 7, generate_uid()
            picture.PixelData = bytes(3 * picture.Rows * picture.Columns + 1)
            if not stay:
                picture.ImagePositionPatient = [500.0 + number, 500.0, 500.0]
            picture.save_as(folder / f"extra{number}.dcm")

    for name, places, header in (("in MR", (2,), {}), ("in CT", (0,), CT_IMAGE), ("three of them", (1, 3, 6), {})):
        yield Usable("a picture in colour", name, partial(build, places=places, header=header, stay=False))
    yield Usable("a picture in colour", "of a slice again", partial(build, places=(3,), header={}, stay=True))


def _jittered(clause: str, name: str, affine_lps: NDArray, most_mm: float, decimals: int = 9) -> Usable:
    noise = np.random.default_rng(7).uniform(-most_mm, most_mm, (SLICES, 3))
    shift_mm = {k: noise[k] for k in range(SLICES)}
    build = partial(write_mr_series, array=ARRAY, affine_lps=affine_lps, shift_mm=shift_mm, decimals=decimals)
    return Usable(clause, name, build, replace(stack_truth(ARRAY, affine_lps), place_mm=PLACE_MM + most_mm))


def _off_their_places() -> Iterator[Usable]:
    along = AXIAL[:3, 2] / 5.0
    lifts = {k: along * (0.02, -0.02)[k % 2] for k in range(SLICES)}
    build = partial(write_mr_series, array=ARRAY, affine_lps=AXIAL, shift_mm=lifts)
    yield Usable("jitter", "0.02 mm up and down", build, replace(stack_truth(ARRAY, AXIAL), place_mm=PLACE_MM))
    yield _jittered("jitter", "0.02 mm, oblique", oblique_affine((0.8, 0.75, 5.0)), 0.02)
    yield _jittered("jitter", "0.04 mm", oblique_affine((1.2, 0.9, 3.0)), 0.04)
    yield _jittered("jitter", "0.05 mm, tilted", tilted_affine(15.0, 3.0), 0.05)
    yield _jittered("jitter", "0.015 mm on 1 mm", oblique_affine((1.0, 1.0, 1.0)), 0.015)
    for name, spacing_mm, degrees in (
        ("axial, 5 mm", (0.8, 0.75, 4.987), (0.0, 0.0, 0.0)),
        ("oblique, 3 mm", (0.8, 0.75, 2.987), (30.0, 20.0, 0.0)),
        ("oblique, 2 mm", (0.8, 0.75, 2.013), (-25.0, 40.0, 10.0)),
        ("axial, 1 mm", (0.8, 0.75, 0.987), (0.0, 0.0, 0.0)),
    ):
        yield _jittered("rounded to 0.1 mm", name, oblique_affine(spacing_mm, degrees=degrees), 0.0, decimals=1)
    thin = oblique_affine((0.8, 0.75, 0.513), degrees=(-25.0, 40.0, 10.0))
    repair = {"resample_gaps": True, "resample_tilt": True}
    build = partial(write_mr_series, array=ARRAY, affine_lps=thin, decimals=1)
    yield Usable("rounded to 0.1 mm", "oblique, 0.5 mm", build, stack_truth(ARRAY, thin), repair, repaired=True)


def _beside() -> Iterator[Usable]:
    def build(folder: Path, name: str, content: bytes) -> None:
        write_mr_series(folder, ARRAY, OBLIQUE)
        (folder / name).write_bytes(content)

    for name, content in (
        ("VERSION", b""),
        ("LOCKFILE", b""),
        ("README", b"CD of a hospital"),
        ("INDEX.HTM", b"<html>"),
    ):
        yield Usable("files of media", name, partial(build, name=name, content=content))


def _copies() -> Iterator[Usable]:
    def build(folder: Path, keyword: str, value: object) -> None:
        copy = dcmread(write_mr_series(folder, ARRAY, OBLIQUE)[4])
        setattr(copy, keyword, value)
        copy.save_as(folder / "copy.dcm")

    changed = {"InstanceCreationTime": "101112", "InstitutionName": "Elsewhere", "SeriesDescription": "T1 again"}
    for keyword, value in {**changed, "RetrieveAETitle": "PACS2"}.items():
        yield Usable("an instance twice", keyword, partial(build, keyword=keyword, value=value))


def _lossy() -> Iterator[Usable]:
    smooth = (np.indices(ARRAY.shape).sum(axis=0) * 6 + ARRAY // 16).astype(np.uint8)
    streams = [codestream(JPEGBaseline8Bit, np.ascontiguousarray(smooth[:, :, k].T)) for k in range(SLICES)]
    truth = stack_truth(np.stack([imagecodecs.jpeg8_decode(one).T for one in streams], axis=2), OBLIQUE)

    def build(folder: Path, syntax: str, header: Values, only: range) -> None:
        for k, path in enumerate(write_mr_series(folder, smooth, OBLIQUE, header=header)):
            plain = codestream(JPEGLosslessSV1, imagecodecs.jpeg8_decode(streams[k]))
            with_codestreams(path, syntax, [streams[k] if k in only else plain], path)  # type: ignore[arg-type]

    everywhere = range(SLICES)
    for name, syntax, header, only in (
        ("process 14", JPEGLossless, {}, everywhere),
        ("selection value 1", JPEGLosslessSV1, {}, everywhere),
        ("CT", JPEGLosslessSV1, CT_IMAGE, everywhere),
        ("half of the slices", JPEGLosslessSV1, {}, range(3)),
    ):
        yield Usable("JPEG with losses", name, partial(build, syntax=syntax, header=header, only=only), truth)


def _one_of_an_enhanced() -> Iterator[Usable]:
    """An enhanced object of two stacks, frames of both in turn; a map is made of one of them in another test."""

    def build(folder: Path, mark: Callable[[Dataset, int], None]) -> None:
        def edit(dataset: Dataset, _: int) -> None:
            frames = []
            for frame in dataset.PerFrameFunctionalGroupsSequence:
                for n in (0, 1):
                    one = Dataset()
                    one.update(frame)
                    mark(one, n)
                    frames.append(one)
            size = 2 * dataset.Rows * dataset.Columns
            pixels = [np.frombuffer(dataset.PixelData[at : at + size], "<u2") for at in range(0, SLICES * size, size)]
            dataset.PixelData = b"".join((one + np.uint16(1000 * n)).tobytes() for one in pixels for n in (0, 1))
            dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = DicomSequence(frames), 2 * SLICES

        folder.mkdir(parents=True, exist_ok=True)
        write_enhanced_mr(folder / "enhanced.dcm", ARRAY, OBLIQUE, edit=edit)

    for name, sequence, keyword, values in (
        ("temporal positions", "FrameContentSequence", "TemporalPositionIndex", (1, 2)),
        ("echoes", "MREchoSequence", "EffectiveEchoTime", (4.6, 9.2)),
        ("b-values", "MRDiffusionSequence", "DiffusionBValue", (0.0, 800.0)),
    ):

        def mark(frame: Dataset, n: int, at: tuple[str, str, tuple] = (sequence, keyword, values)) -> None:
            item = Dataset()
            setattr(item, at[1], at[2][n])
            setattr(frame, at[0], DicomSequence([item]))

        build_one = partial(build, mark=mark)
        truth = stack_truth(_stack(1), OBLIQUE)
        yield Usable("one of several in an enhanced object", name, build_one, truth, {"time_point": 2})


USABLE = tuple(
    one
    for clause in (
        _without_marks,
        _broken_off,
        _in_colour,
        _off_their_places,
        _beside,
        _copies,
        _lossy,
        _one_of_an_enhanced,
    )
    for one in clause()
)

"""How long do readers take for a CT series of 300 slices, uncompressed, in JPEG-LS and in JPEG 2000?

    python benchmarks/dicom_read.py [--data DIR] [--rounds 5]
    pip install --target PEERS --no-deps dicom2nifti python-gdcm
    python benchmarks/dicom_read.py --peers PEERS

The series is made in a temporary folder from the slices of a real one below DIR (`../shared/data`), 512 x 512 x 300 with even
gaps; where that is absent from slices that are made up, and then it says so. All readers must give the same voxels at the
same place. They read in turns, each in a process of its own, out of the cache of the file system; ours is
`dicom_io.read.read_series`, which checks the geometry of the whole series and rescales to float32. dicom2nifti has no call
that only reads: it takes part with the call that its manual gives, `dicom_series_to_nifti`, to a file without compression,
and, not judged, with what is inside of that: no copy of the folder, no file, no turning of axes. For JPEG 2000 the codec alone
decodes the same pictures out of memory on all cores: no reader that uses it (OpenJPEG, as all of these do) can be faster, so
ours is held to a part of its speed. How far it is ahead of SimpleITK, which decodes on several cores too, is printed as the
most that can be reached.
PEERS is a folder of packages for dicom2nifti only (the extra `peers` installs the same into the environment, and with it a
decoder that pydicom would then use in ours too).

Prints best and median of the rounds, the time of the processor beside the best and how much of it the system took, and how many
times as long as ours; of the uncompressed series also the seconds of the processor, and both once more with one core; then the
peak of memory while ours reads, without what the interpreter and its modules take. Exit code 1 if a target is missed: ours no
slower than SimpleITK uncompressed (by the clock and in seconds of the processor, on all cores and on one) and in JPEG 2000,
there with 0.8 of the codec's own speed, 1.5 times as fast in JPEG-LS, uncompressed 4 times as fast as dicom2nifti, and at most
1.2 times the memory of the volume as float32.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from claims import judged
from dicom_sides import DATA, Side, describe, make_ct, own_process, race, ratios, show, times_as_long, times_the_cpu
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless

ENCODINGS: dict[str, UID | None] = {"raw": None, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}
OURS, SIMPLEITK = "dicom_io.read.read_series", "SimpleITK ImageSeriesReader"
DICOM2NIFTI, DICOM2NIFTI_INSIDE = "dicom2nifti, dicom_series_to_nifti", "dicom2nifti, what is inside of that"
CODEC = "no reader: OpenJPEG alone"
TIMES_SIMPLEITK = {"raw": 1.0, "JPEG-LS": 1.5, "JPEG 2000": 1.0}
PART_OF_CODEC = 0.8
TIMES_DICOM2NIFTI = {"raw": 4.0}
MOST_MEMORY = 1.2

LPS_OF_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Placed = tuple[NDArray, NDArray]
"""Voxels of shape (I, J, K) and their affine in LPS mm."""


def main() -> int:
    """Makes the series, times the readers, prints; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peers", type=Path, help="folder of packages for the other readers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--encoding", choices=list(ENCODINGS), action="append", help="only this one")
    options = parser.parse_args()
    print(f"512 x 512 x {options.slices}, {describe(options.data)}; {options.rounds} rounds")
    reached = []
    with tempfile.TemporaryDirectory() as scratch:
        for encoding in options.encoding or ENCODINGS:
            folder = Path(scratch, encoding)
            make_ct(folder, options.slices, ENCODINGS[encoding], options.data)
            reached += compare(encoding, folder, options)
            reached.append(remember(folder, options.slices))
    return int(not all(reached))


def compare(encoding: str, folder: Path, options: argparse.Namespace) -> list[bool]:
    """Times the readers on one folder; whether each target is reached."""
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"\n{encoding}, {megabytes:.0f} MB")
    sides = (*READERS, ALONE) if encoding == "JPEG 2000" else READERS
    turns = race(sides, folder, folder, options.rounds, options.peers)
    show(turns, OURS)
    results = {(name, turn.told) for name, found in turns.items() for turn in found if name != CODEC}
    if len({told for _, told in results}) > 1:
        raise SystemExit(f"the readers differ: {sorted(results)}")
    print(f"  the same voxels at the same place by all: {results.pop()[1]}")
    reached = [times_as_long(turns, SIMPLEITK, OURS, TIMES_SIMPLEITK[encoding])]
    if encoding == "raw":
        reached.append(times_the_cpu(turns, SIMPLEITK, OURS, TIMES_SIMPLEITK[encoding]))
        print("  one core alone:")
        alone = race(READERS[:2], folder, folder, options.rounds, options.peers, cores=1)
        show(alone, OURS)
        reached += [test(alone, SIMPLEITK, OURS, TIMES_SIMPLEITK[encoding]) for test in (times_as_long, times_the_cpu)]
    if CODEC in turns:
        print(f"  {SIMPLEITK} / {CODEC}: {ratios(turns, SIMPLEITK, CODEC)[0]:.2f}, the most that can be reached")
        reached.append(times_as_long(turns, CODEC, OURS, PART_OF_CODEC))
    return reached + [
        times_as_long(turns, DICOM2NIFTI, OURS, least) for least in [TIMES_DICOM2NIFTI.get(encoding)] if least
    ]


def remember(folder: Path, slices: int) -> bool:
    """Prints the peak of memory of our read, in multiples of the volume as float32; whether it is small enough."""
    with own_process() as pool:
        found = pool.submit(peak_bytes, folder).result() / (512 * 512 * slices * 4)
    return judged("peak of memory in volumes as float32", found, MOST_MEMORY, at_most=True)


def peak_bytes(folder: Path) -> int:
    """How far the memory of this process rises while ours reads."""
    from dicom_io.read import read_series

    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is in use now; see proc(5)
    before = _status("VmHWM")
    volume = read_series(folder)
    assert volume.array.dtype == np.float32
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    if not found:
        raise SystemExit(f"this system does not tell {name}; Linux is needed")
    return int(found[1]) * 1024


def as_it_is(folder: Path) -> Path:
    """Readers have nothing but the folder."""
    return folder


def read_ours(folder: Path, _: Path) -> Placed:
    from dicom_io.read import read_series

    volume = read_series(folder)
    return volume.array, volume.affine_lps


def read_simpleitk(folder: Path, _: Path) -> Placed:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine_lps[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, affine_lps


def read_dicom2nifti(folder: Path, _: Path) -> Placed:
    """As its manual says, but for the file's compression, which would take longer than all else."""
    from dicom2nifti import dicom_series_to_nifti

    with tempfile.TemporaryDirectory() as scratch:
        image = dicom_series_to_nifti(str(folder), str(Path(scratch, "volume.nii")))["NII"]
        return np.asarray(image.dataobj), LPS_OF_RAS @ image.affine


def read_inside_dicom2nifti(folder: Path, _: Path) -> Placed:
    from dicom2nifti.common import read_dicom_directory
    from dicom2nifti.convert_dicom import dicom_array_to_nifti

    image = dicom_array_to_nifti(read_dicom_directory(str(folder)), None, reorient_nifti=False)["NII"]
    return np.asarray(image.dataobj), LPS_OF_RAS @ image.affine


def codestreams_of(folder: Path) -> list[bytes]:
    """The compressed pictures of a folder."""
    return [next(generate_frames(dcmread(path).PixelData)) for path in folder.iterdir()]


def decode_all(codestreams: list[bytes], _: Path) -> int:
    """Pixels of pictures that are decoded on all cores, and not kept."""
    from imagecodecs import jpeg2k_decode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda one: int(jpeg2k_decode(one).size), codestreams))


def fingerprint(placed: Placed) -> str:
    """Digest of the voxels with axes turned to +L, +P, +S, and place of the first one."""
    array, affine_lps = placed
    affine_lps = affine_lps.copy()
    for axis in range(3):
        if affine_lps[axis, axis] < 0:
            array = np.flip(array, axis)
            affine_lps[:3, 3] += affine_lps[:3, axis] * (array.shape[axis] - 1)
            affine_lps[:3, axis] *= -1
    whole = np.rint(array).astype(np.int32)
    assert (whole == array).all()
    digest = hashlib.sha256(np.ascontiguousarray(whole.T).data).hexdigest()[:16]
    place = ", ".join(f"{value + 0.0:.3f}" for value in affine_lps[:3].round(3).ravel())
    return f"{array.shape} {digest} ({place})"


READERS = (
    Side(OURS, as_it_is, read_ours, fingerprint),
    Side(SIMPLEITK, as_it_is, read_simpleitk, fingerprint),
    Side(DICOM2NIFTI, as_it_is, read_dicom2nifti, fingerprint, ("dicom2nifti",)),
    Side(DICOM2NIFTI_INSIDE, as_it_is, read_inside_dicom2nifti, fingerprint, ("dicom2nifti",)),
)
ALONE = Side(CODEC, codestreams_of, decode_all, str)


if __name__ == "__main__":
    raise SystemExit(main())

"""How long do writers take for 20 labels on a CT of 200 slices, as a SEG and as an RTSTRUCT, and how large is the file?

    python benchmarks/dicom_write.py [--data DIR] [--rounds 5]
    pip install --target PEERS --no-deps rt-utils opencv-python-headless
    python benchmarks/dicom_write.py --peers PEERS

The series is made in a temporary folder from the slices of a real one below DIR (`../shared/data`), 512 x 512 x 200; where that
is absent from slices that are made up. The labels are 20 ellipsoids that fill about 16 % of it. Ours are `write_seg` and
`write_rtstruct` as they are called, given the volume that was read: with the headers read anew, and with their proof, which
reads the written file back and compares every voxel.

- highdicom: `Segmentation(...)` and `save_as`, BINARY, with headers and slices of labels in its own order at hand.
- rt-utils: `RTStructBuilder.create_new`, which reads the series as ours reads its headers, `add_roi` and `save`, with
  masks in C order, as our labels are. And, not fair to ours, with the series at hand and each slice of the masks in one
  piece of memory.

They work in turns, each in a process of its own. Prints best and median of the rounds, the time of the processor beside the
best, and how many times as long as ours; sizes of files; and what dciodvfy finds. Exit code 1 if a target is missed: every
encoding of ours no slower than highdicom's plain BINARY, at most 1 MB where it compresses; our RTSTRUCT 5 times as fast as
rt-utils, and without an error by dciodvfy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from claims import judged
from dicom_sides import DATA, Side, describe, make_ct, race, show, times_as_long
from numpy.typing import NDArray

LABELS = 20
ENCODINGS = ("binary", "binary-deflated", "labelmap-jpegls")
COMPRESSED = ("binary-deflated", "labelmap-jpegls")
HIGHDICOM = "highdicom Segmentation, BINARY"
WRITE_RTSTRUCT, RT_UTILS, RT_UTILS_AT_HAND = "write_rtstruct", "rt-utils", "rt-utils, all at hand in its order"
TIMES_HIGHDICOM, TIMES_RT_UTILS = 1.0, 5.0
MOST_MB = 1.0


def main() -> int:
    """Makes series and labels, times the writers, prints; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--peers", type=Path, help="folder of packages for the other writers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=200)
    options = parser.parse_args()
    filled = np.count_nonzero(ellipsoids(options.slices)) / (512 * 512 * options.slices)
    print(
        f"512 x 512 x {options.slices}, {describe(options.data)}; {LABELS} labels fill {filled:.1%}; {options.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as scratch:
        series = Path(scratch, "series")
        make_ct(series, options.slices, None, options.data)
        reached = [*segmentations(series, Path(scratch), options), *structure_sets(series, Path(scratch), options)]
    return int(not all(reached))


def segmentations(series: Path, scratch: Path, options: argparse.Namespace) -> list[bool]:
    """Times the writers of SEG; whether each target is reached."""
    print("\nSEG")
    turns = race(SEG_SIDES, series, scratch / "seg.dcm", options.rounds, options.peers)
    names = [f"write_seg, {encoding}" for encoding in ENCODINGS]
    show(turns, names[0])
    for name, found in turns.items():
        print(f"  {name}: {found[0].told}")
    reached = [times_as_long(turns, HIGHDICOM, name, TIMES_HIGHDICOM) for name in names]
    for encoding in COMPRESSED:
        size = int(turns[f"write_seg, {encoding}"][0].told.split()[0])
        reached.append(judged(f"{encoding}, MB", size / 1e6, MOST_MB, at_most=True))
    return reached


def structure_sets(series: Path, scratch: Path, options: argparse.Namespace) -> list[bool]:
    """Times the writers of RTSTRUCT; whether each target is reached."""
    print("\nRTSTRUCT")
    turns = race(RT_SIDES, series, scratch / "rtstruct.dcm", options.rounds, options.peers)
    show(turns, WRITE_RTSTRUCT)
    for name, found in turns.items():
        print(f"  {name}: {found[0].told}")
    reached = turns[WRITE_RTSTRUCT][0].told.endswith(" 0 errors by dciodvfy")
    print(f"  {WRITE_RTSTRUCT}: no error by dciodvfy is wanted: {'reached' if reached else 'MISSED'}")
    return [times_as_long(turns, RT_UTILS, WRITE_RTSTRUCT, TIMES_RT_UTILS), reached]


def ellipsoids(slices: int) -> NDArray[np.uint8]:
    """Labels 1 to 20, shape (512, 512, slices), C order: four rows of five ellipsoids at different depths."""
    labels = np.zeros((512, 512, slices), dtype=np.uint8)
    i, j, k = np.ogrid[:512, :512, :slices]
    for n in range(LABELS):
        column, row = n % 5, n // 5
        centre = (55 + 100 * column, 67 + 126 * row, slices * (0.25 + 0.5 * ((7 * n) % 20) / 20))
        radius = (46, 46 + 2 * row, slices * (0.21 + 0.01 * (n % 4)))
        distance = sum(((at - c) / r) ** 2 for at, c, r in zip((i, j, k), centre, radius, strict=True))
        labels[distance <= 1] = n + 1
    return labels


def our_volumes(series: Path) -> tuple[Any, Any, Any]:
    """The labels and the source as volumes, and what computed them."""
    from pydicom.sr.codedict import codes

    from dicom_io.coding import Segment
    from dicom_io.objects.identity import ResultInfo
    from dicom_io.read import read_series

    source = read_series(series)
    segments = tuple(
        Segment(n, f"Part {n}", codes.SCT.AnatomicalStructure, codes.SCT.Liver, display_rgb=(10 * n, 60, 255 - 10 * n))
        for n in range(1, LABELS + 1)
    )
    return source.with_array(ellipsoids(source.shape[2])), source, ResultInfo(segments, "ellipsoids", "1", "0" * 64)


def our_seg(ready: tuple[Any, Any, Any], target: Path, encoding: Any) -> Path:
    from dicom_io.seg import write_seg

    labels, source, result = ready
    return write_seg(labels, source, target, result, encoding=encoding)


def our_rtstruct(ready: tuple[Any, Any, Any], target: Path) -> Path:
    from dicom_io.rtstruct import write_rtstruct

    labels, source, result = ready
    return write_rtstruct(labels, source, target, result)


def headers_and_labels(series: Path) -> tuple[Any, Any, Any]:
    """What highdicom takes: headers, labels of shape (slices, rows, columns) in their order, descriptions."""
    import highdicom
    import pydicom
    from pydicom.sr.codedict import codes

    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in series.iterdir()]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    algorithm = highdicom.AlgorithmIdentificationSequence("ellipsoids", codes.DCM.ArtificialIntelligence, "1")
    described = [
        highdicom.seg.SegmentDescription(
            n,
            f"Part {n}",
            codes.SCT.AnatomicalStructure,
            codes.SCT.Liver,
            highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for n in range(1, LABELS + 1)
    ]
    return headers, np.ascontiguousarray(ellipsoids(len(headers)).T), described


def their_seg(ready: tuple[Any, Any, Any], target: Path) -> Path:
    import highdicom

    headers, labels, described = ready
    binary = highdicom.seg.SegmentationTypeValues.BINARY
    uids = highdicom.UID(), highdicom.UID()
    segmentation = highdicom.seg.Segmentation(
        headers, labels, binary, described, uids[0], 1, uids[1], 1, "maker", "model", "1", "1"
    )
    segmentation.save_as(target)
    return target


def masks_and_folder(series: Path) -> tuple[list[NDArray[np.bool_]], Path]:
    """Masks of shape (rows, columns, slices) in C order, and where the series is."""
    labels = np.ascontiguousarray(ellipsoids(len(list(series.iterdir()))).transpose(1, 0, 2))
    return [labels == n for n in range(1, LABELS + 1)], series


def their_rtstruct(ready: tuple[list[NDArray[np.bool_]], Path], target: Path) -> Path:
    from rt_utils import RTStructBuilder

    masks, series = ready
    return _filled(RTStructBuilder.create_new(str(series)), masks, target)


def masks_and_series(series: Path) -> tuple[list[NDArray[np.bool_]], Any]:
    """Masks of the same shape with each slice in one piece of memory, and the sorted series."""
    from rt_utils.image_helper import load_sorted_image_series

    found = load_sorted_image_series(str(series))
    slices = np.ascontiguousarray(ellipsoids(len(found)).T)
    return [(slices == n).transpose(1, 2, 0) for n in range(1, LABELS + 1)], found


def their_rtstruct_at_hand(ready: tuple[list[NDArray[np.bool_]], Any], target: Path) -> Path:
    """What `RTStructBuilder.create_new` does, but for its reading of the series."""
    from rt_utils.ds_helper import create_rtstruct_dataset
    from rt_utils.rtstruct import RTStruct

    masks, found = ready
    return _filled(RTStruct(found, create_rtstruct_dataset(found)), masks, target)


def _filled(builder: Any, masks: list[NDArray[np.bool_]], target: Path) -> Path:
    for number, mask in enumerate(masks, start=1):
        builder.add_roi(mask, name=f"Part {number}")
    builder.ds.save_as(target)  # its own `save` does that, and prints
    return target


def size_of(path: Path) -> str:
    return f"{path.stat().st_size} bytes"


def size_and_errors(path: Path) -> str:
    """Size, and the number of errors by dciodvfy, where that is installed beside this Python."""
    program = Path(sys.executable).with_name("dciodvfy")
    if not program.is_file():
        return f"{size_of(path)}, dciodvfy is absent"
    report = subprocess.run(
        [str(program), "-new", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    errors = sum(line.startswith("Error") for line in report.stderr.splitlines())
    return f"{size_of(path)}, {errors} errors by dciodvfy"


SEG_SIDES = (
    *(
        Side(f"write_seg, {encoding}", our_volumes, partial(our_seg, encoding=encoding), size_of)
        for encoding in ENCODINGS
    ),
    Side(HIGHDICOM, headers_and_labels, their_seg, size_of),
)
RT_SIDES = (
    Side(WRITE_RTSTRUCT, our_volumes, our_rtstruct, size_and_errors),
    Side(RT_UTILS, masks_and_folder, their_rtstruct, size_and_errors, ("rt_utils", "cv2")),
    Side(RT_UTILS_AT_HAND, masks_and_series, their_rtstruct_at_hand, size_and_errors, ("rt_utils", "cv2")),
)


if __name__ == "__main__":
    raise SystemExit(main())

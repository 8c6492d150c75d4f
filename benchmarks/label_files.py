"""Label files of TotalSegmentator as SEG, SR and RTSTRUCT: in which time and memory, at the right place, without an error?

    python benchmarks/label_files.py [--data ../shared/data] [--rounds 1]

- example: its own label map of 41 classes, on a series that `dicomize` makes of its example (left out without --data);
- full size: 104 labels on 512 x 512 x 300 voxels, as one label map and as a folder with a mask each; the CT is that of
  `full_size.py`, the labels are ellipsoids.

Each is `monai-unet dicomize --labels` in a process of its own. The voxels of the SEG are held against the label file, and SEG,
SR and RTSTRUCT go through dciodvfy where it is installed. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from claims import judged
from full_size import Scale, ct_series
from measuring import REPOSITORY, measured
from numpy.typing import NDArray

from dicom_io.dicomize import ConversionOptions, dicomize
from dicom_io.read import read_series
from dicom_io.seg import read_seg
from dicom_io.validators import program
from dicom_io.volume import Provenance, Volume
from monai_unet_app.data.coding import totalsegmentator_structures
from monai_unet_app.data.read import read_volume

sys.path += [str(REPOSITORY / "tests"), str(REPOSITORY / "tests/dicom_io")]

LABELS, SCALE = 104, Scale()
MOST_S, MOST_GB, MOST_EXAMPLE_S = 60.0, 2.0, 10.0
BY = ("--algorithm", "TotalSegmentator 2.18", "--format", "seg,sr,rtstruct", "--looked-at", "--json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    options.under, options.most_gb = "watch", 16.0
    print("                                                    peak   VmHWM  VmPeak  seconds bound")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        reached = example(options, place) if options.data else []
        reached += full_size(options, place)
    return int(not all(reached))


def example(options: argparse.Namespace, place: Path) -> list[bool]:
    """TotalSegmentator's own files."""
    data = options.data / "totalsegmentator_ct"
    series = dicomize(
        read_volume(data / "example_ct_sm.nii.gz"), place / "example", case_id="one", options=ConversionOptions("CT")
    ).series_folder
    stored = nibabel.load(data / "example_seg.nii.gz")  # its label table has the names
    values = np.asarray(stored.dataobj).astype(np.uint8)
    return written(
        "example", series, data / "example_seg.nii.gz", [], values, stored.affine, MOST_EXAMPLE_S, options, place
    )


def full_size(options: argparse.Namespace, place: Path) -> list[bool]:
    """104 labels on a CT of full size."""
    series = ct_series(place / "series", SCALE)
    image, values = read_series(series), ellipsoids()
    names = list(totalsegmentator_structures())[:LABELS]
    labels = place / "map.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, image.affine_ras), labels)
    words = [word for number, name in enumerate(names, 1) for word in ("--structure", f"{number}={name}")]
    reached = written("one label map", series, labels, words, values, image.affine_ras, MOST_S, options, place)
    masks = place / "masks"
    masks.mkdir()
    for number, name in enumerate(names, 1):
        nibabel.save(
            nibabel.Nifti1Image((values == number).astype(np.uint8), image.affine_ras), masks / f"{name}.nii.gz"
        )
    order = np.array([0, *(1 + sorted(names).index(name) for name in names)], np.uint8)
    return reached + written(
        "a folder of masks", series, masks, [], order[values], image.affine_ras, None, options, place
    )


def ellipsoids() -> NDArray[np.uint8]:
    """Shape of the CT: an ellipsoid for each label, in cells of 51 x 51 x 50 voxels."""
    values, cell = np.zeros(SCALE.shape, np.uint8), np.array((51, 51, 50))
    random = np.random.default_rng(0)
    cells = random.permutation(list(np.ndindex(10, 10, 6)))[:LABELS]
    inside = np.indices(cell).transpose(1, 2, 3, 0) - cell / 2
    for number, where in enumerate(cells, 1):
        low = where * cell
        box = tuple(slice(first, first + size) for first, size in zip(low, cell, strict=True))
        radii = random.uniform(0.25, 0.48, 3) * cell
        values[box][((inside / radii) ** 2).sum(-1) < 1] = number
    return values


def written(
    what: str, series: Path, labels: Path, words: Sequence[str], values: NDArray[Any], affine_ras: NDArray[Any],
    most_s: float | None, options: argparse.Namespace, place: Path,
) -> list[bool]:  # fmt: skip
    """Runs the command, and judges its time, its memory, the place of every voxel and what a validator says."""
    from result_phantoms import dciodvfy_errors

    output = place / f"out {what}"
    command = [sys.executable, "-m", "monai_unet_app", "dicomize", "--labels", str(labels), "--source", str(series)]
    found = measured(what, [*command, *BY, *words, "--output", str(output)], options, None, {})
    found.show(MOST_GB)
    if not found.done:
        return [False]
    image = read_series(series)
    right = Volume.from_ras(values, affine_ras, Provenance("nifti")).on_grid_of(image).array
    result = json.loads(next(output.glob("*_result.json")).read_text())
    there = sorted(set(np.unique(right).tolist()) - {0})
    table = np.zeros(int(right.max()) + 1, np.int64)
    table[there] = [row["number"] for row in result["structures"]]
    wrong = int((read_seg(next(output.glob("*_seg.dcm")), image).array != table[right]).sum())
    reached = [judged(f"{what}, voxels at another place", wrong, 1e-9, at_most=True)]
    if program("dciodvfy"):
        errors = sum(len(dciodvfy_errors(file)) for file in output.glob("*.dcm"))
        reached.append(judged(f"{what}, errors by dciodvfy", errors, 1e-9, at_most=True))
    reached.append(judged(f"{what}, GB", found.peak / 1e9, MOST_GB, at_most=True))
    if most_s:
        reached.append(judged(f"{what}, s", found.seconds, most_s, at_most=True))
    return reached


if __name__ == "__main__":
    raise SystemExit(main())

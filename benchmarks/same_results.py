"""Runs the same commands with another revision of this repository and with the working tree, and compares every file.

    python benchmarks/same_results.py REVISION [--output build/same_results] [--only PART ...]

Both sides read the same images with the bundles of their own tree. Equal to the bit must be: voxels and where they lie,
probabilities, pictures, and every number in JSON, CSV and DICOM. Left out are what VOLATILE names (times, digests, UIDs,
versions) and texts; fields that have another name now stand in RENAMED, new ones in ADDED. Exit code 1 if anything else
differs, or if a side lacks a file. Some minutes; REVISION is what `git rev-parse` understands.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples/msd_hippocampus"
PREDICT = "predict --device cpu --bundle {bundle} --input {images} --output {out}/results"
EVERYTHING = (
    "--dicomize --format nifti,nrrd,mha,png,seg,sr,rtstruct,gsps,sc,pm --probabilities --uncertainty --cautious"
)
MEASURE = "evaluate --device cpu --bundle {bundle} --data {labelled} --splits {splits} --partition test --output {out}"
PARTS = {
    **{f"{name}": f"{PREDICT} {EVERYTHING}" for name in ("hippocampus_mri_unet3d", "hippocampus_mri_unet2d")},
    "retina_vessel_unet2d": f"{PREDICT} --format nifti,png --probabilities --uncertainty --deliver-rejected",
    "mirrored": f"{PREDICT} --dicomize --format nifti,seg,sr --tta",
    "occlusion": f"{PREDICT} --explain occlusion",
    **{
        encoding: f"{PREDICT} --dicomize --format seg --seg-encoding {encoding}"
        for encoding in ("binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls", "fractional")
    },
    "evaluated_3d": MEASURE,
    "evaluated_2d": MEASURE,
    "inspected": "inspect --json {labelled}",
    "for_nnunet": "convert {labelled} --to nnunet --output {out}/Dataset001_Hippocampus",
    "calibrated": "calibrate --device cpu --bundle {copy} --data {labelled} --splits {splits} --partition test",
}
"""Name of a part -> the words after `monai-unet`."""

BUNDLES = {"hippocampus_mri_unet2d": "hippocampus_mri_unet2d", "evaluated_2d": "hippocampus_mri_unet2d"}
BUNDLES["retina_vessel_unet2d"] = "retina_vessel_unet2d"
CASES = {"hippocampus_mri_unet3d": 4, "hippocampus_mri_unet2d": 2}
RENAMED = {
    r"result\.json": {"settings.device": None, "settings.tta": "settings.tta"},
    r"metrics\.json": {"settings.tta": "settings.tta"},
}
"""Pattern of a file's name -> field of the earlier side -> field now; None: it says something else now."""

ADDED = re.compile(r"settings\.(elsewhere|engine|precision)$|\[Algorithm Parameters \d+\]")
"""Fields that files state now and did not: all settings of a result."""

VOLATILE = re.compile(
    r"sha256|digest|uid|second|version|created|software|measured_at|date|time|why|note|reason|command|git_commit|schema",
    re.IGNORECASE,
)
"""Fields that say when, where or by what something was made, or for what reason."""

TEXTS = {".html", ".pdf", ".css", ".md", ".yaml", ".log", ".svg"}
Fields = dict[str, Any]


def main() -> None:
    """Runs both sides, and prints what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build/same_results")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    earlier = options.output / "tree"
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(earlier)], check=True)
    subprocess.run(["git", "-C", str(earlier), "checkout", "--quiet", options.revision], check=True)
    files = different = 0
    for part in options.only:
        images = made_images(part, options.output / "images" / part)
        sides = [options.output / side / part for side in ("earlier", "now")]
        for tree, folder in zip((earlier, REPOSITORY), sides, strict=True):
            run(part, tree, images, folder)
        names = [{path.relative_to(side).as_posix() for path in side.rglob("*") if path.is_file()} for side in sides]
        found = [f"only {'now' if name in names[1] else 'earlier'}: {name}" for name in sorted(names[0] ^ names[1])]
        both = sorted(names[0] & names[1])
        for name in both:
            found += [f"{name}: {line}" for line in differences(sides[0] / name, sides[1] / name)]
        files, different = files + len(both), different + len(found)
        print(f"{part}: {len(both)} files, {len(found)} differences", *found[:20], sep="\n  ", flush=True)
    print(f"{files} files of {options.revision} and now: {different} differences")
    sys.exit(bool(different or not files))


def made_images(part: str, folder: Path) -> Path:
    """The images of a part: example cases, or a made-up photograph with bright vessels, lopsided."""
    folder.mkdir(parents=True)
    if part == "retina_vessel_unet2d":
        rows, columns = np.mgrid[:800, :840]
        tree = np.exp(-(((rows - 0.4 * columns - 40 * np.sin(columns / 60)) / 4) ** 2))
        noise = np.random.default_rng(7).normal(0, 6, (800, 840, 3))
        colours = np.array([150, 90, 50]) - tree[..., None] * (60, 50, 20) + noise
        Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(folder / "eye.png")
    else:
        for path in sorted((EXAMPLES / "images").glob("*.nii.gz"))[: CASES.get(part, 1)]:
            shutil.copy2(path, folder)
    return folder


def run(part: str, tree: Path, images: Path, folder: Path) -> None:
    """One side of a part: what it writes, and what it prints as JSON."""
    folder.mkdir(parents=True)
    name = BUNDLES.get(part, "hippocampus_mri_unet3d")
    if "{copy}" in PARTS[part]:
        shutil.copytree(tree / "bundles" / name, folder / name)
    places = {
        "bundle": tree / "bundles" / name,
        "copy": folder / name,
        "labelled": EXAMPLES,
        "images": images,
        "out": folder,
    }
    words = shlex.split(PARTS[part].format(**places, splits=REPOSITORY / "examples/splits.json"))
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "monai_unet_app", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{part} with {tree} ended with {done.returncode}: {done.stderr[-2000:]}")
    if "--json" in words:
        (folder / "printed.json").write_text(done.stdout)


def differences(earlier: Path, now: Path) -> Iterator[str]:
    """What two files of the same name have not in common, a line for each."""
    if earlier.suffix in TEXTS:
        return
    first, second = fields_of(earlier), fields_of(now)
    for pattern, names in RENAMED.items():
        if re.search(pattern, earlier.name):
            for old, new in names.items():
                value = first.pop(old, None)
                if new is not None:
                    first[new] = value
                elif old in second:
                    second.pop(old)
    for field in sorted(first.keys() | second.keys()):
        if VOLATILE.search(field):
            continue
        if field not in first and not ADDED.search(field):
            yield f"{field} is new"
        elif field in first and field not in second:
            yield f"{field} is gone"
        elif field in first and not equal(first[field], second[field]):
            yield f"{field} was {str(first[field])[:60]!r}, is {str(second[field])[:60]!r}"


def equal(first: Any, second: Any) -> bool:
    """Whether two values are equal to the bit; texts of any words are."""
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return (
            bool(np.array_equal(first, second, equal_nan=np.asarray(first).dtype.kind == "f"))
            and first.dtype == second.dtype
        )
    return (isinstance(first, str) and isinstance(second, str)) or first == second


def fields_of(path: Path) -> Fields:
    """What a file holds, by name: arrays, numbers, texts."""
    if path.name.endswith((".nii.gz", ".nii")):
        image = nibabel.load(path)
        return {"voxels": np.asanyarray(image.dataobj), "affine": image.affine}
    if path.suffix in {".nrrd", ".mha"}:
        read = SimpleITK.ReadImage(str(path))
        place = (*read.GetOrigin(), *read.GetSpacing(), *read.GetDirection())
        return {"voxels": SimpleITK.GetArrayFromImage(read), "place": place}
    if path.suffix == ".png":
        return {"pixels": np.asarray(Image.open(path))}
    if path.suffix == ".dcm":
        return dict(elements(pydicom.dcmread(path), ""))
    if path.suffix == ".json":
        return dict(leaves(json.loads(path.read_text()), ""))
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            return {
                f"{row}.{name}": number(cell)
                for row, line in enumerate(csv.DictReader(stream))
                for name, cell in line.items()
            }
    return {"bytes": path.read_bytes()}


def number(text: str | None) -> Any:
    """A cell of a table as a number, if it is one."""
    with suppress(TypeError, ValueError):
        return float(text)  # type: ignore[arg-type]
    return text


def leaves(content: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every number, truth value and text of a JSON document with the path to it."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from leaves(value, f"{place}.{name}" if place else name)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from leaves(value, f"{place}[{index}]")
    else:
        yield place, content


def elements(dataset: pydicom.Dataset, place: str) -> Iterator[tuple[str, Any]]:
    """Every element of a DICOM object but UIDs, dates and times, with the path to it; pixels as they are stored."""
    for element in dataset:
        name = f"{place}.{element.keyword or element.tag}"
        if element.VR == "SQ":
            seen: Counter[str] = Counter()
            for item in element.value:
                kind = item_name(item)
                yield from elements(item, f"{name}[{kind} {seen[kind]}]")
                seen[kind] += 1
        elif element.VR not in {"UI", "DA", "TM", "DT"}:
            is_text = element.VR in {"LO", "LT", "PN", "SH", "ST", "UC", "UT", "CS", "AS", "AE"}
            yield name, str(element.value) if is_text else element.value


def item_name(item: pydicom.Dataset) -> str:
    """What an item of a report says something about, so that one item more does not change the names of those after it."""
    concept = item.get("ConceptNameCodeSequence")
    return str(concept[0].CodeMeaning) if concept else ""


if __name__ == "__main__":
    main()

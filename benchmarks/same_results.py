"""Runs the same commands with another revision of this repository and with the working tree, and compares every file.

    python benchmarks/same_results.py REVISION [--output build/same_results] [--only PART ...] [--was NOW=EARLIER ...]

Both sides read the same inputs with the bundles of their own tree. Equal to the bit must be: voxels and where they lie,
probabilities, pictures, weights, and every number, code and text in JSON, CSV, YAML and DICOM. UIDs and digests may differ, if
one of a side always stands for the same one of the other. Left out are the fields that VOLATILE names and the files that TEXTS
names; fields that have another name now stand in RENAMED, new ones in ADDED. `--was "bundle package=package"` says which words
of a command the revision has for those of now. Exit code 1 if anything else differs, or if a side lacks a file. Some minutes;
REVISION is what `git rev-parse` understands.
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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples/msd_hippocampus"
PREDICT = "predict --device cpu --bundle {bundle} --input {inputs} --output {out}/results"
EVERYTHING = (
    "--dicomize --format nifti,nrrd,mha,png,seg,sr,rtstruct,gsps,sc,pm --probabilities --uncertainty --cautious"
)
OBJECTS = "--format nifti,seg,sr,rtstruct,gsps,sc,pm --probabilities"
MEASURE = "evaluate --device cpu --bundle {bundle} --data {labelled} --splits {splits} --partition test --output {out}"


@dataclass(frozen=True)
class Part:
    """What both sides do.

    Attributes:
        commands: The words after `monai-unet`, one command after the other.
        inputs: What the commands read, a function of INPUTS.
        cases: Number of example cases among it.
        bundle: Whose tree the side takes it from.
    """

    commands: tuple[str, ...]
    inputs: str = "volumes"
    cases: int = 1
    bundle: str = "hippocampus_mri_unet3d"


FLAT, EYES = "hippocampus_mri_unet2d", "retina_vessel_unet2d"
PARTS = {
    "hippocampus_mri_unet3d": Part((f"{PREDICT} {EVERYTHING}",), cases=4),
    FLAT: Part((f"{PREDICT} {EVERYTHING}",), cases=2, bundle=FLAT),
    EYES: Part(
        (f"{PREDICT} --format nifti,png --probabilities --uncertainty --deliver-rejected",), "photograph", bundle=EYES
    ),
    "mirrored": Part((f"{PREDICT} --dicomize --format nifti,seg,sr --tta",)),
    "occlusion": Part((f"{PREDICT} --explain occlusion",)),
    **{
        encoding: Part((f"{PREDICT} --dicomize --format seg --seg-encoding {encoding}",))
        for encoding in ("binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls", "fractional")
    },
    "classic": Part((f"{PREDICT} {OBJECTS}", "inspect --json {inputs}"), "classic"),
    "enhanced": Part((f"{PREDICT} {OBJECTS}", "inspect --json {inputs}"), "enhanced"),
    "regions": Part(
        tuple(
            f"regions {{inputs}}/objects/{name}.dcm --image {{inputs}}/mr --output {{out}}/{name}.nii.gz --json"
            for name in ("seg", "rtstruct")
        ),
        "objects",
    ),
    "dicomized": Part(
        ("dicomize --bundle {bundle} --images {inputs}/images --labels {inputs}/labels --output {out}/dicom",),
        "labelled",
        cases=2,
    ),
    "pictures": Part(("inspect --json {inputs}", "plan {inputs} --output {out}/planned --objects disc"), "pictures"),
    "palettes": Part(("inspect --json {inputs}",), "palettes"),
    "trained": Part(
        (
            "plan {inputs}/list.csv --output {out}/planned --structure 1=anterior --structure 2=posterior --modality MR"
            " --time 1min",
            "train --device cpu --bundle {out}/planned --data {inputs}/list.csv --output {out}/trained --epochs 1"
            " --tracking none",
        ),
        "listed",
        cases=12,
    ),
    "evaluated_3d": Part((MEASURE,)),
    "evaluated_2d": Part((MEASURE,), bundle=FLAT),
    "inspected": Part(("inspect --json {labelled}",)),
    "for_nnunet": Part(("convert {labelled} --to nnunet --output {out}/Dataset001_Hippocampus",)),
    "calibrated": Part(
        ("calibrate --device cpu --bundle {copy} --data {labelled} --splits {splits} --partition test",)
    ),
}

PROGRAM = """
import sys
from monai_unet_app.planning import speed
speed.seconds_of_a_window = lambda *of, **named: 0.02
from monai_unet_app.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command line, where a plan does not depend on how busy the machine is."""

REFUSED = 3
"""Exit code of `inspect --json` where something is wrong with the cases, which it prints."""

RENAMED: dict[str, dict[str, str | None]] = {
    r"result\.json": {"settings.device": None},
}
"""Pattern of a file's name -> field of the earlier side -> field now; None: it says something else now."""

ADDED = re.compile(r"settings\.(elsewhere|engine|precision)$|\[Algorithm Parameters \d+\]|weights_sha256$")
"""Fields that files state now and did not: all settings of a result, and which weights a training wrote."""

VOLATILE = {
    "ContentDate", "ContentTime", "DateTime", "InstanceCreationDate", "InstanceCreationTime", "ObservationDateTime",
    "PresentationCreationDate", "PresentationCreationTime", "SeriesDate", "SeriesTime", "SoftwareVersions", "StructureSetDate",
    "StructureSetTime", "created", "date", "git_commit", "processor", "seconds", "seconds_per_image",
    "seconds_per_litre", "software", "started", "step_seconds", "waiting_seconds",
}  # fmt: skip
"""Fields that say when, how fast or by what something was made, by their whole names."""

TEXTS = {".html", ".pdf", ".css", ".log", ".svg"}
"""Endings of files whose words may change."""

_NAME = re.compile(r"(?<![\d.])(?:2\.25\.\d{9,}|[0-2](?:\.\d+){5,})(?![\d.])|\b[0-9a-f]{64}\b")
_REGISTERED = "1.2.840.10008."
Fields = dict[str, Any]


@dataclass
class Names:
    """Which UIDs and digests of the earlier side stand for which of now: one for one."""

    now: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)

    def equal(self, first: Any, second: Any) -> bool:
        """Whether two values are equal to the bit but for such names."""
        if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
            is_float = first.dtype.kind == "f"
            return first.dtype == second.dtype and bool(np.array_equal(first, second, equal_nan=is_float))
        if isinstance(first, str) and isinstance(second, str):
            pairs = zip(_NAME.findall(first), _NAME.findall(second), strict=False)
            return _NAME.split(first) == _NAME.split(second) and all(self._stands_for(*pair) for pair in pairs)
        return type(first) is type(second) and bool(first == second)

    def _stands_for(self, first: str, second: str) -> bool:
        if _REGISTERED in (first[: len(_REGISTERED)], second[: len(_REGISTERED)]):
            return first == second
        return self.now.setdefault(first, second) == second and self.earlier.setdefault(second, first) == first


def main() -> None:
    """Runs both sides, and prints what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    parser.add_argument("--output", type=lambda text: Path(text).resolve(), default=REPOSITORY / "build/same_results")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--was", nargs="+", default=[], metavar="NOW=EARLIER")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    earlier, was = options.output / "tree", dict(words.split("=", 1) for words in options.was)
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(REPOSITORY), str(earlier)], check=True)
    subprocess.run(["git", "-C", str(earlier), "checkout", "--quiet", options.revision], check=True)
    files = different = 0
    for name in options.only:
        part, inputs = PARTS[name], options.output / "inputs" / name
        inputs.mkdir(parents=True)
        INPUTS[part.inputs](inputs, part)
        sides = [options.output / side / name for side in ("earlier", "now")]
        for tree, folder, words in zip((earlier, REPOSITORY), sides, (was, {}), strict=True):
            run(part, tree, inputs, folder, words)
        count, found = compared(*sides)
        files, different = files + count, different + len(found)
        print(f"{name}: {count} files, {len(found)} differences", *found[:20], sep="\n  ", flush=True)
    print(f"{files} files of {options.revision} and now: {different} differences")
    sys.exit(bool(different or not files))


def run(part: Part, tree: Path, inputs: Path, folder: Path, was: Mapping[str, str]) -> None:
    """One side of a part: what it writes, and what it prints as JSON."""
    folder.mkdir(parents=True)
    if "{copy}" in " ".join(part.commands):
        shutil.copytree(tree / "bundles" / part.bundle, folder / part.bundle)
    places = {
        "bundle": tree / "bundles" / part.bundle, "copy": folder / part.bundle, "labelled": EXAMPLES, "inputs": inputs,
        "out": folder, "splits": REPOSITORY / "examples/splits.json",
    }  # fmt: skip
    for number, command in enumerate(part.commands):
        for now, earlier in was.items():
            command = re.sub(rf"^{re.escape(now)}\b", earlier, command)
        printed = called(tree, shlex.split(command.format(**places)), folder)
        if "--json" in command:
            for place in (inputs, folder, tree):
                printed = printed.replace(str(place), place.name)
            (folder / f"printed_{number}.json").write_text(printed)


def called(tree: Path, words: list[str], folder: Path) -> str:
    """What the command line of a tree prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, REFUSED) or (done.returncode and "--json" not in words):
        sys.exit(f"{shlex.join(words)} with {tree} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def compared(earlier: Path, now: Path) -> tuple[int, list[str]]:
    """The number of files that both sides have, and what they have not in common, a line for each."""
    names, known = (
        [{path.relative_to(side).as_posix() for path in side.rglob("*") if path.is_file()} for side in (earlier, now)],
        Names(),
    )
    found = [f"only {'now' if name in names[1] else 'earlier'}: {name}" for name in sorted(names[0] ^ names[1])]
    both = sorted(names[0] & names[1])
    for name in both:
        found += [f"{name}: {line}" for line in differences(earlier / name, now / name, known)]
    return len(both), found


def volumes(folder: Path, part: Part) -> None:
    """Example cases."""
    for path in sorted((EXAMPLES / "images").glob("*.nii.gz"))[: part.cases]:
        shutil.copy2(path, folder)


def labelled(folder: Path, part: Part) -> None:
    """Example cases with their labels."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
        for path in sorted((EXAMPLES / kind).glob("*.nii.gz"))[: part.cases]:
            shutil.copy2(path, folder / kind)


def listed(folder: Path, part: Part) -> None:
    """Example cases with their labels, and a list that names them with a partition."""
    labelled(folder, part)
    names = [path.name for path in sorted((folder / "images").iterdir())]
    places = {0: "test", 1: "calibration", 2: "selection"}
    lines = [
        f"images/{name},labels/{name},s{number},{places.get(number % 6, 'train')}" for number, name in enumerate(names)
    ]
    (folder / "list.csv").write_text("\n".join(["image,label,subject,partition", *lines]) + "\n")


def photograph(folder: Path, part: Part) -> None:
    """A made-up photograph with bright vessels, lopsided."""
    rows, columns = np.mgrid[:800, :840]
    tree = np.exp(-(((rows - 0.4 * columns - 40 * np.sin(columns / 60)) / 4) ** 2))
    noise = np.random.default_rng(7).normal(0, 6, (800, 840, 3))
    colours = np.array([150, 90, 50]) - tree[..., None] * (60, 50, 20) + noise
    Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(folder / "eye.png")


def pictures(folder: Path, part: Part) -> None:
    """Pictures of 16 bits with discs of one kind, lopsided, and their masks."""
    chance = np.random.default_rng(3)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(12):
        rows, columns = np.mgrid[:96, :112]
        discs = [
            np.hypot(rows - 20 - 3 * number, columns - 30) < 9,
            np.hypot(rows - 60, columns - 50 - 4 * number) < 14,
        ]
        values = np.select(discs, [20_000, 30_000], 5_000) + chance.normal(0, 800, rows.shape)
        Image.fromarray(np.clip(values, 0, 65_535).astype(np.uint16)).save(folder / f"images/{number:02}.png")
        Image.fromarray(np.select(discs, [1, 2], 0).astype(np.uint8)).save(folder / f"labels/{number:02}.png")


def palettes(folder: Path, part: Part) -> None:
    """As `pictures`, with a palette in each mask."""
    pictures(folder, part)
    for path in (folder / "labels").iterdir():
        mask = Image.open(path).convert("P")
        mask.putpalette([0, 0, 0, 255, 40, 0, 0, 90, 255])
        mask.save(path)


def classic(folder: Path, part: Part) -> None:
    """An example case as a series of one instance for each slice."""
    (made := folder.with_name(f"{folder.name}_nifti")).mkdir()
    volumes(made, part)
    called(REPOSITORY, ["dicomize", "--images", str(made), "--output", str(folder)], folder)


def enhanced(folder: Path, part: Part) -> None:
    """An example case as one enhanced object, on an oblique grid."""
    sys.path += [str(REPOSITORY), str(REPOSITORY / "tests/dicom_io"), str(REPOSITORY / "tests")]
    from phantoms import write_enhanced_mr

    from monai_unet_app.data.read import read_volume

    volume = read_volume(sorted((EXAMPLES / "images").glob("*.nii.gz"))[0])
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    write_enhanced_mr(folder / "enhanced.dcm", np.round(volume.array).astype(np.uint16), turn @ volume.affine_lps)


def objects(folder: Path, part: Part) -> None:
    """A series `mr`, and in `objects` a SEG and an RTSTRUCT on it."""
    (made := folder / "made").mkdir()
    classic(made, part)
    (series,) = {path.parent for path in made.rglob("*.dcm")}
    series.rename(folder / "mr")
    words = [
        "predict",
        "--device",
        "cpu",
        "--bundle",
        str(REPOSITORY / "bundles" / part.bundle),
        "--format",
        "seg,rtstruct",
    ]
    called(REPOSITORY, [*words, "--input", str(folder / "mr"), "--output", str(folder / "objects")], folder)
    for path in (folder / "objects").glob("*.dcm"):
        path.rename(path.with_name(f"{path.stem.rpartition('_')[2]}.dcm"))


INPUTS = {
    make.__name__: make
    for make in (volumes, labelled, listed, photograph, pictures, palettes, classic, enhanced, objects)
}


def differences(earlier: Path, now: Path, names: Names) -> Iterator[str]:
    """What two files of the same name have not in common, a line for each."""
    if earlier.suffix in TEXTS:
        return
    first, second = fields_of(earlier), fields_of(now)
    for pattern, renamed in RENAMED.items():
        if re.search(pattern, earlier.name):
            for old, new in renamed.items():
                value = first.pop(old, None)
                if new is not None:
                    first[new] = value
                elif old in second:
                    second.pop(old)
    for place in sorted(first.keys() | second.keys()):
        if VOLATILE & set(re.sub(r"\[[^]]*\]", "", place).split(".")):
            continue
        if place not in first and not ADDED.search(place):
            yield f"{place} is new"
        elif place in first and place not in second:
            yield f"{place} is gone"
        elif place in first and not names.equal(first[place], second[place]):
            yield f"{place} was {str(first[place])[:60]!r}, is {str(second[place])[:60]!r}"


def fields_of(path: Path) -> Fields:
    """What a file holds, by name: arrays, numbers, texts."""
    if path.name.endswith((".nii.gz", ".nii")):
        image: Any = nibabel.load(path)
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
    if path.suffix == ".pt":
        return dict(leaves(torch.load(path, weights_only=False), ""))
    if path.suffix in {".md", ".yaml"}:
        return {f"line {number}": line for number, line in enumerate(path.read_text().splitlines(), 1)}
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
    """Every number, truth value, text and tensor of a document with the path to it."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from leaves(value, f"{place}.{name}" if place else str(name))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from leaves(value, f"{place}[{index}]")
    else:
        yield place, content.numpy() if isinstance(content, torch.Tensor) else content


def elements(dataset: pydicom.Dataset, place: str) -> Iterator[tuple[str, Any]]:
    """Every element of a DICOM object with the path to it; pixels as they are stored."""
    for element in dataset:
        name = f"{place}.{element.keyword or element.tag}"
        if element.VR == "SQ":
            seen: Counter[str] = Counter()
            for item in element.value:
                kind = item_name(item)
                yield from elements(item, f"{name}[{kind} {seen[kind]}]")
                seen[kind] += 1
        else:
            is_number = element.VR in {"DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"}
            yield name, element.value if is_number or isinstance(element.value, bytes) else str(element.value)


def item_name(item: pydicom.Dataset) -> str:
    """What an item of a report says something about, so that one item more does not change the names of those after it."""
    concept = item.get("ConceptNameCodeSequence")
    return str(concept[0].CodeMeaning) if concept else ""


if __name__ == "__main__":
    main()

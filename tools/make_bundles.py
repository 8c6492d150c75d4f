"""Makes the reference bundles by the very commands that stand on their cards: `make bundles`.

    python tools/make_bundles.py --data DIR [--only NAME ...] [--made DIR]
    python tools/make_bundles.py --quick [--only NAME ...]

DIR holds `msd_hippocampus/` (images/ and labels/) and `chase_db1_2d/`. The commands under "How it was made" on the card of each
bundle run one after the other in the folder `--made`, where the names that they use are links. What has run is noted in
`done.txt` there and does not run again; a training that was stopped goes on. When the last command of a bundle has run, its
weights, table out of fold and figures replace those in bundles/, and the table of the README follows.

`--quick` runs the same commands with tiny networks, for one epoch, on some example cases (pictures: slices of them), and
replaces nothing: it shows that the commands on the cards work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE, FITTED, WEIGHTS
from monai_unet_app.calibration.fitted import begin_fitted
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.splits import SplitCase, read_splits
from monai_unet_app.metrics.bootstrap import Bootstrap, bootstrap_mean
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.report.card import put_figures, write_figures
from monai_unet_app.report.words import between
from monai_unet_app.training.checkpoints import OUT_OF_FOLD

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = REPOSITORY / "examples" / "splits.json"
EXAMPLES = REPOSITORY / "examples" / "msd_hippocampus"
TABLE = {
    "hippocampus_mri_unet3d": ("T1 MR crop, 3D windows", "anterior, posterior hippocampus"),
    "hippocampus_mri_unet2d": ("the same, slice by slice", "anterior, posterior hippocampus"),
    "retina_vessel_unet2d": ("colour photograph", "vessel"),
}
PICTURES, SECOND_GRADER = "chase_db1_2d", "_2ndHO"
MADE = REPOSITORY / "build" / "made"
TRAINED = "build/bundles"  # in MADE, by the commands on the cards
DELIVERED = (WEIGHTS, "models/run.json", "models/calibration.json", FITTED, CONFIDENCE)
QUICK = {
    r"filters: \[([\d, ]+)\]": lambda found: f"filters: [{', '.join('4' for _ in found[1].split(','))}]",
    r"(?m)^epochs: \d+": "epochs: 1",
    r"windows_per_case: \d+": "windows_per_case: 1",
}
"""What makes a quick copy of a bundle's YAML."""


def main() -> None:
    """Makes the bundles that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(TABLE), default=tuple(TABLE))
    parser.add_argument("--made", type=Path, default=MADE)
    parser.add_argument("--quick", action="store_true", help="try the commands with tiny networks; replace nothing")
    options = parser.parse_args()
    if options.quick:
        make_quickly(options.only, options.made.with_name(f"{options.made.name}_quickly"))
    elif options.data is None:
        parser.error("--data DIR is needed to make bundles")
    else:
        make(options.only, options.data.resolve(), options.made)


def make(names: Sequence[str], data: Path, made: Path) -> None:
    """Runs what remains to be run for these bundles, and delivers each into bundles/."""
    made.mkdir(parents=True, exist_ok=True)
    for link, target in {"examples": SPLITS.parent, **{folder.name: folder for folder in data.iterdir()}}.items():
        if not (made / link).exists():
            (made / link).symlink_to(target, target_is_directory=True)
    print_remaining(names, made)
    for name in names:
        run_card(name, made)
        deliver(
            made / TRAINED / name,
            REPOSITORY / "bundles" / name,
            second_grader(data / PICTURES) if "retina" in name else {},
        )
    write_table()


def make_quickly(names: Sequence[str], made: Path) -> None:
    """Runs the commands of these bundles' cards on small data and tiny copies of the bundles, from the beginning."""
    shutil.rmtree(made, ignore_errors=True)
    for name in names:
        copy = made / "bundles" / name
        shutil.copytree(REPOSITORY / "bundles" / name, copy)
        shutil.rmtree(copy / "models")
        for file in (copy / "configs").glob("*.yaml"):
            text = file.read_text(encoding="utf-8")
            for pattern, small in QUICK.items():
                text = re.sub(pattern, small, text)
            file.write_text(text, encoding="utf-8")
        begin_fitted(copy)
    (made / "examples").symlink_to(SPLITS.parent, target_is_directory=True)
    copy_crops(made / EXAMPLES.name)
    draw_pictures(made / PICTURES)
    print_remaining(names, made)
    for name in names:
        run_card(name, made, {"MONAI_UNET_BUNDLES": str(made / "bundles")})
        figures = load_bundle(made / TRAINED / name).eval_metrics
        if not figures:
            raise SystemExit(f"{name}: the commands of its card have left no figures in its metadata")
    print(f"{len(names)} bundle(s) made by the commands on their cards, in {made}")


def commands_of(name: str) -> list[str]:
    """The commands under "How it was made" on the card of a bundle."""
    card = (REPOSITORY / "bundles" / name / "docs/README.md").read_text(encoding="utf-8")
    block = card.split("## How it was made\n", 1)[1].split("```")[1]
    return [line for line in block.splitlines() if line.startswith("monai-unet ")]


def done_in(made: Path) -> list[str]:
    """The commands that have run to their end."""
    return (made / "done.txt").read_text(encoding="utf-8").splitlines() if (made / "done.txt").is_file() else []


def print_remaining(names: Sequence[str], made: Path) -> None:
    """Prints the commands that have not run yet."""
    done = done_in(made)
    remaining = [command for name in names for command in commands_of(name) if command not in done]
    print(f"{len(remaining)} command(s) remain, in {made}:", *remaining, sep="\n  ", flush=True)


def run_card(name: str, made: Path, environment: Mapping[str, str] | None = None) -> None:
    """Runs the commands of a bundle's card that have not run yet. A command that fails ends everything with its exit code."""
    program = str(Path(sys.executable).with_name("monai-unet"))
    commands = commands_of(name)
    for number, command in enumerate(commands, start=1):
        if command in done_in(made):
            continue
        print(f"== {name} {number}/{len(commands)}: {command}", flush=True)
        ended = subprocess.run(
            [program, *shlex.split(command)[1:]], cwd=made, env=os.environ | dict(environment or {}), check=False
        )
        if ended.returncode:
            raise SystemExit(ended.returncode)
        with (made / "done.txt").open("a", encoding="utf-8") as notes:
            notes.write(f"{command}\n")


def deliver(made: Path, home: Path, more: Mapping[str, Any]) -> None:
    """Copies what was made into the bundle, and puts its figures into metadata and card."""
    for file in DELIVERED:
        (home / file).parent.mkdir(exist_ok=True)
        shutil.copy2(made / file, home / file)
    shutil.copy2(made.with_name(f"{made.name}_folds") / "cases.csv", home / OUT_OF_FOLD)
    figures = dict(load_bundle(made).eval_metrics)
    (figures if "cases" in figures else figures["out_of_fold"]).update(more)
    write_figures(figures, load_bundle(home))


def copy_crops(folder: Path) -> None:
    """Copies the first example case of each partition in each fold."""
    partitions = ("train", "selection", "calibration", "test")
    chosen = {
        case.id
        for fold in range(5)
        for partition in partitions
        for case in in_plan("hippocampus_", partition, fold)[:1]
    }
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
        for case in sorted(chosen):
            shutil.copy2(EXAMPLES / part / f"{case}.nii.gz", folder / part)


def draw_pictures(folder: Path) -> None:
    """For the first photograph of each fold a slice of an example case in colour, its structures in black and white."""
    folder.mkdir(parents=True)
    crops = sorted((EXAMPLES / "images").glob("*.nii.gz"))
    first_of_fold = {case.fold: case for case in reversed(in_plan("Image_"))}
    for number, case in enumerate(first_of_fold.values()):
        image, label = (
            np.asarray(nibabel.load(EXAMPLES / part / crops[number].name).dataobj) for part in ("images", "labels")
        )
        middle = int(np.argmax((label > 0).sum(axis=(1, 2))))
        grey = image[middle] / np.percentile(image[middle], 99.5)
        pixels = Image.fromarray((grey.clip(0, 1) * 255).astype(np.uint8)).resize((720, 720)).convert("RGB")
        pixels.save(folder / f"{case.id}.jpg")
        for suffix in ("_1stHO", SECOND_GRADER):
            drawn = Image.fromarray((label[middle] > 0).astype(np.uint8) * 255)
            drawn.resize((720, 720), Image.Resampling.NEAREST).save(folder / f"{case.id}{suffix}.png")


def in_plan(prefix: str, partition: str | None = None, fold: int | None = None) -> list[SplitCase]:
    """Cases of the plan whose files are at hand for a quick run: example cases, and all photographs."""
    return [
        case
        for case in read_splits(SPLITS).values()
        if case.id.startswith(prefix)
        and partition in (None, case.partition)
        and fold in (None, case.fold)
        and (prefix == "Image_" or (EXAMPLES / "images" / f"{case.id}.nii.gz").is_file())
    ]


def second_grader(folder: Path) -> dict[str, Any]:
    """Dice of the second human grader against the first, on all photographs."""
    scores, subjects, plan = [], [], read_splits(SPLITS)
    for case in find_data(folder, label_suffix="_1stHO"):
        image = read_volume(case.image)
        first = read_labels(Path(str(case.label)), image).array > 0
        second = read_labels(folder / f"{case.id}{SECOND_GRADER}.png", image).array > 0
        scores.append(dice(first, second))
        subjects.append(plan[case.id].subject)
    estimate = bootstrap_mean(np.array(scores), subjects, Bootstrap())
    interval = [round(end, 4) for end in (estimate.low, estimate.high)]
    return {"dice_of_second_human_grader": {"mean": round(estimate.value, 4), "interval_95": interval}}


def write_table() -> None:
    """Replaces the table of the README by the figures that stand in the bundles' metadata."""
    rows = [
        "| bundle | goes in | comes out | Dice out of fold | Dice, test cases | ECE, whole image | ECE, band |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (image, structures) in TABLE.items():
        figures = json.loads((REPOSITORY / "bundles" / name / "configs/metadata.json").read_text())["eval_metrics"]
        tested = "cases" in figures
        measured = figures if tested else figures["out_of_fold"]
        dice = (
            f"{figures['dice']['mean']:.3f} ({between(figures['dice']['interval_95'], 3)})" if tested else "all train"
        )
        of_folds = figures["out_of_fold"]["dice"]
        out_of_fold = f"**{of_folds['mean']:.3f}** ({between(of_folds['interval_95'], 3)})"
        band = next(key for key in measured if key.startswith("ece_band"))
        ece = " | ".join(f"{measured[key]['calibrated']:.4f}" for key in ("ece_whole", band))
        rows.append(f"| `{name}` | {image} | {structures} | {out_of_fold} | {dice} | {ece} |")
    put_figures(rows, REPOSITORY / "README.md")


if __name__ == "__main__":
    main()

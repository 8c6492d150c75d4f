"""Trains, calibrates and measures the reference bundles, and writes weights, figures and cards: `make bundles`.

    python tools/make_bundles.py --data DIR [--only NAME ...] [--build build/bundles]

DIR holds `msd_hippocampus/` (images/ and labels/) and `chase_db1_2d/`. A training that was interrupted goes on; a finished
one is not repeated. Only when a bundle has been trained, calibrated and measured do its files replace those in bundles/.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibrate import calibrate_bundle
from monai_unet_app.config import resolve_device
from monai_unet_app.data.cases import find_data
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.evaluate import choose_cases, evaluate_cases
from monai_unet_app.metrics import Bootstrap
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.metrics.statistics import bootstrap_mean
from monai_unet_app.training.checkpoints import FIGURES
from monai_unet_app.training.run import TrainConfig, train_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = REPOSITORY / "examples" / "splits.json"
DATA = {
    "hippocampus_mri_unet3d": ("msd_hippocampus", ""),
    "hippocampus_mri_unet2d": ("msd_hippocampus", ""),
    "retina_vessel_unet2d": ("chase_db1_2d", "_1stHO"),
}
TABLE = {
    "hippocampus_mri_unet3d": ("T1 MR crop, 3D windows", "anterior, posterior hippocampus"),
    "hippocampus_mri_unet2d": ("the same, slice by slice", "anterior, posterior hippocampus"),
    "retina_vessel_unet2d": ("colour photograph", "vessel"),
}
SECOND_GRADER = "_2ndHO"
DELIVERED = ("models/model.pt", "models/run.json", "models/calibration.json", "configs/inference.yaml")


def main() -> None:
    """Makes the bundles that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=tuple(DATA), default=tuple(DATA))
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build" / "bundles")
    options = parser.parse_args()
    for name in options.only:
        make(name, options.data, options.build / name)


def make(name: str, data: Path, build: Path) -> None:
    """Trains in `build`, then delivers into bundles/`name`."""
    folder, suffix = DATA[name]
    home = REPOSITORY / "bundles" / name
    print(f"== {name}")
    run = TrainConfig(data=data / folder, output=build, splits=SPLITS, label_suffix=suffix)
    train_bundle(load_bundle(home), run, print)
    bundle = load_bundle(build, resolve_device("auto"))
    cases = find_data(data / folder, label_suffix=suffix)
    fitted = calibrate_bundle(bundle, choose_cases(bundle, cases, "calibration", SPLITS).rows)
    print("calibration", fitted)
    bundle = load_bundle(build, resolve_device("auto"))
    test = choose_cases(bundle, cases, "test", SPLITS).rows
    metrics = evaluate_cases(
        bundle,
        test,
        build / "evaluation",
        data_name=folder,
        partition="test: subjects that neither trained, selected nor calibrated",
        each=lambda case_id, score: print(case_id, score),
    ).metrics
    human = second_grader(data / folder, test) if suffix else None
    figures = summary(bundle, metrics, len(test), len({row["subject"] for row in test}), human)
    for file in DELIVERED:
        (home / file).parent.mkdir(exist_ok=True)
        shutil.copy2(build / file, home / file)
    metadata = json.loads((home / "configs/metadata.json").read_text())
    write_json({**metadata, "eval_metrics": figures}, home / "configs/metadata.json")
    write_card(home / "docs" / "README.md", figures, bundle)
    write_table()


def second_grader(folder: Path, rows: list[Any]) -> dict[str, Any]:
    """Dice of the second human grader against the first on the same photographs."""
    scores = []
    for row in rows:
        image = read_volume(row["image"])
        first = read_labels(Path(row["label"]), image).array > 0
        second = read_labels(folder / f"{row['id']}{SECOND_GRADER}.png", image).array > 0
        scores.append(dice(first, second))
    estimate = bootstrap_mean(np.array(scores), [row["subject"] for row in rows], Bootstrap())
    return {"mean": round(estimate.value, 4), "interval_95": [round(estimate.low, 4), round(estimate.high, 4)]}


def summary(bundle: Bundle, metrics: Any, cases: int, subjects: int, human: dict[str, Any] | None) -> dict[str, Any]:
    """What goes into `eval_metrics` of the metadata."""
    band = next(name for name in metrics["calibration"] if name.startswith("band"))
    before = metrics["calibration_before"]
    figures: dict[str, Any] = {
        "partition": "test: subjects that neither trained, selected nor calibrated",
        "cases": cases,
        "subjects": subjects,
    }
    for key in ("dice", "iou", "boundary_iou"):
        block = metrics[key]
        figures[key] = {
            "mean": round(block["mean"], 4),
            "interval_95": [round(end, 4) for end in block["mean_interval"]],
            "per_class": {label: round(value, 4) for label, value in block["per_class"].items()},
        }
    for key, population in (("ece_whole", "whole"), (f"ece_{band}", band)):
        figures[key] = {
            "uncalibrated": round(before[population]["top_label"]["ece"], 4),
            "calibrated": round(metrics["calibration"][population]["top_label"]["ece"], 4),
        }
    if human:
        figures["dice_of_second_human_grader"] = human
    record = bundle.run_record
    figures["training"] = {
        "epochs": record["epochs_done"],
        "best_epoch": record["best"]["epoch"],
        "minutes": round(sum(session["seconds"] for session in record["sessions"]) / 60, 1),
        "precision": record["sessions"][-1]["precision"],
        "device": record["sessions"][-1]["device"],
    }
    return figures


def write_card(card: Path, figures: dict[str, Any], bundle: Bundle) -> None:
    """Replaces the figures between the card's two marks."""
    rows = ["| score | mean | 95 % interval by subject | per class |", "|---|---|---|---|"]
    names = {"dice": "Dice", "iou": "IoU", "boundary_iou": "boundary IoU (d = 1)"}
    for key, name in names.items():
        block = figures[key]
        each = ", ".join(f"{label} {value:.3f}" for label, value in block["per_class"].items())
        low, high = block["interval_95"]
        rows.append(f"| {name} | {block['mean']:.3f} | {low:.3f} to {high:.3f} | {each} |")
    if "dice_of_second_human_grader" in figures:
        human = figures["dice_of_second_human_grader"]
        low, high = human["interval_95"]
        rows.append(
            f"| Dice of the second human grader against the first | {human['mean']:.3f} | {low:.3f} to {high:.3f} | |"
        )
    rows += ["", "| ECE (top label, 15 equal bins, pooled) | uncalibrated | calibrated |", "|---|---|---|"]
    for key in (key for key in figures if key.startswith("ece_")):
        width = re.sub(r"^ece_band_([0-9.]+)(.*)", r"\1 \2", key)
        where = "whole image" if key == "ece_whole" else f"band of {width} around the predicted surface"
        rows.append(f"| {where} | {figures[key]['uncalibrated']:.4f} | {figures[key]['calibrated']:.4f} |")
    training = figures["training"]
    rows += [
        "",
        f"Measured on {figures['cases']} cases of {figures['subjects']} subjects that neither trained, selected nor "
        f"calibrated. Trained for {training['epochs']} epochs (best: {training['best_epoch']}) in {training['minutes']:.0f} "
        f"minutes, {training['precision']} on {training['device']}. Data set sha256 "
        f"`{bundle.run_record['data_sha256'][:16]}…`, calibration {dict(bundle.part('calibration'))}.",
    ]
    put_figures(rows, card)


def write_table() -> None:
    """Replaces the table of the README by the figures that stand in the bundles' metadata."""
    rows = ["| bundle | goes in | comes out | Dice | ECE, whole image | ECE, band |", "|---|---|---|---|---|---|"]
    for name, (image, structures) in TABLE.items():
        figures = json.loads((REPOSITORY / "bundles" / name / "configs/metadata.json").read_text())["eval_metrics"]
        cells = ["not measured yet"] * 3
        if figures:
            low, high = figures["dice"]["interval_95"]
            band = next(key for key in figures if key.startswith("ece_band"))
            cells = [f"{figures['dice']['mean']:.3f} ({low:.3f} to {high:.3f})"]
            cells += [f"{figures[key]['calibrated']:.4f}" for key in ("ece_whole", band)]
        rows.append(f"| `{name}` | {image} | {structures} | " + " | ".join(cells) + " |")
    put_figures(rows, REPOSITORY / "README.md")


def put_figures(rows: list[str], page: Path) -> None:
    """Replaces what stands between the page's two marks."""
    text, count = FIGURES.subn(lambda match: match[1] + "\n".join(rows) + "\n" + match[2], page.read_text())
    if count != 1:
        raise SystemExit(
            f"{page} has {count} figure block(s); one between <!-- figures --> and <!-- end of figures --> is needed"
        )
    page.write_text(text)


if __name__ == "__main__":
    main()

"""Trains, calibrates and measures the reference bundles, and writes weights, figures and cards: `make bundles`.

    python tools/make_bundles.py --data DIR [--only NAME ...] [--build build/bundles] [--measure | --calibrate]
    python tools/make_bundles.py --fitted-to [--only NAME ...]

DIR holds `msd_hippocampus/` (images/ and labels/) and `chase_db1_2d/`. A training that was interrupted goes on; a finished
one is not repeated. Only when a bundle has been trained, calibrated and measured do its files replace those in bundles/.

Intervals for sizes of `hippocampus_mri_unet3d` are fitted on its committed table `docs/out_of_fold.csv`, which five folds of a
cross-validation made; everything else is fitted on the calibration cases.

`--calibrate` trains nothing: it calibrates the bundles of the repository as they are, fits their statements and measures them.

`--measure` trains and fits nothing: it measures the bundles of the repository as they are, and writes figures, cards and table.

`--fitted-to` writes into each `confidence.json` that its statements are of the bundle as it is, and does nothing else: for a
change of what is written there, never after a change of the bundle.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE, BundleFiles, bundle_files
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.calibration.statement_fit import COVERAGE, StatementConfig, known_rows, state_confidence
from monai_unet_app.calibration.statement_fit import summary as summary_of_statements
from monai_unet_app.confidence.fitted_to import SCHEMA_VERSION, InferenceSetting, fitted_to
from monai_unet_app.confidence.statements import SizeStatement, StructureMeasurement, measure_wholes
from monai_unet_app.config import resolve_device
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.splits import read_splits
from monai_unet_app.evaluate import LabelledCases, choose_cases, evaluate_cases
from monai_unet_app.metrics.bootstrap import Bootstrap, bootstrap_mean
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.report.card import put_figures, read_measured, summary, write_figures
from monai_unet_app.report.words import between
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
ONE_SUBJECT = ("retina_vessel_unet2d",)  # one child calibrates it, so nothing can be checked on others
SECOND_GRADER = "_2ndHO"
CROSS_VALIDATED = "hippocampus_mri_unet3d"
TABLE_OF_FOLDS = REPOSITORY / "bundles" / CROSS_VALIDATED / "docs/out_of_fold.csv"
EXPECTED: dict[InferenceSetting, str] = {"plain": "expected_ml", "tta": "expected_tta_ml"}
DELIVERED = ("models/model.pt", "models/run.json", "models/calibration.json", "configs/inference.yaml")


def main() -> None:
    """Makes the bundles that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(DATA), default=tuple(DATA))
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build" / "bundles")
    parser.add_argument("--measure", action="store_true", help="measure the bundles as they are, and change no weights")
    parser.add_argument("--calibrate", action="store_true", help="calibrate and measure the bundles; train nothing")
    parser.add_argument("--fitted-to", action="store_true", help="write what the statements are fitted to; fit nothing")
    options = parser.parse_args()
    if options.fitted_to:
        for name in options.only:
            write_fitted_to(bundle_files(REPOSITORY / "bundles" / name))
        return
    if options.data is None:
        parser.error("--data DIR is needed to make or to measure bundles")
    for name in options.only:
        if options.calibrate:
            calibrate(load_bundle(REPOSITORY / "bundles" / name, resolve_device("auto")), options.data)
        elif not options.measure:
            make(name, options.data, options.build / name)
        measure(name, options.data, options.build / name)


def write_fitted_to(bundle: BundleFiles) -> None:
    """Writes into `confidence.json` that its statements were fitted to the bundle as it is now; fits nothing.

    For statements that are known to be this bundle's, and were written before they said what they were fitted to.
    """
    document = json.loads((bundle.root / CONFIDENCE).read_text())
    document["schema_version"] = SCHEMA_VERSION
    for setting, statements in document["settings"].items():
        statements["fitted_to"] = fitted_to(bundle, setting)
    write_json(document, bundle.root / CONFIDENCE, "confidence", indent=None)


def make(name: str, data: Path, build: Path) -> None:
    """Trains, calibrates and states in `build`, then delivers into bundles/`name`."""
    folder, suffix = DATA[name]
    home = REPOSITORY / "bundles" / name
    print(f"== {name}")
    run = TrainConfig(data=data / folder, output=build, splits=SPLITS, label_suffix=suffix)
    train_bundle(load_bundle(home), run, print)
    calibrate(load_bundle(build, resolve_device("auto")), data)
    deliver(build, REPOSITORY / "bundles" / name)


def calibrate(bundle: Bundle, data: Path) -> None:
    """Calibrates the bundle and fits its statements, for every setting."""
    folder, suffix = DATA[bundle.name]
    cases = find_data(data / folder, label_suffix=suffix)
    rows = choose_cases(bundle, cases, "calibration", SPLITS).rows
    settings: tuple[InferenceSetting, ...] = ("plain", "tta") if bundle.mirror_axes else ("plain",)
    for setting in settings:
        fitted = calibrate_bundle(bundle, rows, setting=setting, unchecked=bundle.name in ONE_SUBJECT)
        print("calibration", setting, fitted)
    found = state_confidence(bundle, rows, known_rows(bundle, cases), StatementConfig(settings))
    print("statements", summary_of_statements(found, bundle))
    if bundle.name == CROSS_VALIDATED:
        state(read_table(TABLE_OF_FOLDS), bundle.root / CONFIDENCE)


def measure(name: str, data: Path, build: Path) -> None:
    """Evaluates bundles/`name` on its test cases, and writes the figures into its metadata and card and into the README."""
    folder, suffix = DATA[name]
    bundle = load_bundle(REPOSITORY / "bundles" / name, resolve_device("auto"))
    chosen = choose_cases(bundle, find_data(data / folder, label_suffix=suffix), "test", SPLITS)
    evaluation = build / "evaluation"
    evaluate_cases(
        bundle,
        LabelledCases(chosen.rows, folder, chosen.note, chosen.seen),
        evaluation,
        each=lambda case_id, score: print(case_id, score),
    )
    human = {"dice_of_second_human_grader": second_grader(data / folder, chosen.rows)} if suffix else None
    write_figures(summary(read_measured(evaluation, bundle), bundle, human), bundle)
    write_table()


def deliver(build: Path, home: Path) -> None:
    """Copies what was made into the bundle; statements about its results only where they were made."""
    for file in DELIVERED:
        (home / file).parent.mkdir(exist_ok=True)
        shutil.copy2(build / file, home / file)
    if (build / CONFIDENCE).is_file():
        shutil.copy2(build / CONFIDENCE, home / CONFIDENCE)
    else:
        (home / CONFIDENCE).unlink(missing_ok=True)


def state(table: list[dict[str, str]], file: Path) -> None:
    """Replaces the sizes of each setting in a bundle's `confidence.json` by those that the table tells of."""
    reserved = {case for case, place in read_splits(SPLITS).items() if place.partition == "test"}
    document, wholes = json.loads(file.read_text()), load_bundle(CROSS_VALIDATED).wholes
    for setting, found in document["settings"].items():
        known = [row for row in table if row["case"] not in reserved and row.get(EXPECTED[setting])]
        if not known:
            print(f"{setting}: the table says nothing of it; its sizes stay as they are")
            continue
        measured = [
            StructureMeasurement(
                subject=row["subject"],
                structure=int(row["structure"]),
                expected=float(row[EXPECTED[setting]]),
                true=float(row["true_ml"]),
                voxel=float(row["voxel_ml"]),
                losses=np.empty(0),
            )
            for row in known
        ]
        found["sizes"] = SizeStatement.fit(measured, COVERAGE).document()
        found["wholes"] = SizeStatement.fit(measure_wholes(measured, wholes), COVERAGE).document()
        ends = [*found["sizes"]["log_ratios"].values(), *found["wholes"]["log_ratios"].values()]
        halves = ", ".join(f"{np.tanh((high - low) / 2):.1%}" for low, high in ends)
        print(f"{setting}: {found['sizes']['subjects']} subjects, half widths {halves}")
    write_json(document, file, "confidence", indent=None)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def second_grader(folder: Path, rows: list[Any]) -> dict[str, Any]:
    """Dice of the second human grader against the first on the same photographs."""
    scores = []
    for row in rows:
        image = read_volume(row["image"])
        first = read_labels(Path(row["label"]), image).array > 0
        second = read_labels(folder / f"{row['id']}{SECOND_GRADER}.png", image).array > 0
        scores.append(dice(first, second))
    estimate = bootstrap_mean(np.array(scores), [row["subject"] for row in rows], Bootstrap())
    interval = [round(end, 4) for end in (estimate.low, estimate.high)] if np.isfinite(estimate.low) else None
    return {"mean": round(estimate.value, 4), "interval_95": interval}


def write_table() -> None:
    """Replaces the table of the README by the figures that stand in the bundles' metadata."""
    rows = [
        "| bundle | goes in | comes out | Dice out of fold | Dice, test cases | ECE, whole image | ECE, band |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (image, structures) in TABLE.items():
        figures = json.loads((REPOSITORY / "bundles" / name / "configs/metadata.json").read_text())["eval_metrics"]
        cells = ["not measured yet"] * 4
        if figures:
            ends = between(figures["dice"]["interval_95"], 3) or f"{figures['subjects']} subjects"
            band = next(key for key in figures if key.startswith("ece_band"))
            cells = [_dice_out_of_fold(figures), f"{figures['dice']['mean']:.3f} ({ends})"]
            cells += [f"{figures[key]['calibrated']:.4f}" for key in ("ece_whole", band)]
        rows.append(f"| `{name}` | {image} | {structures} | " + " | ".join(cells) + " |")
    put_figures(rows, REPOSITORY / "README.md")


def _dice_out_of_fold(figures: dict[str, Any]) -> str:
    found = figures.get("out_of_fold")
    if not found:
        return "not measured"
    dice = found.get("dice", found)
    return f"**{dice['mean']:.3f}** ({between(dice['interval_95'], 3)})"


if __name__ == "__main__":
    main()

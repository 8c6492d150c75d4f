"""Five-fold cross-validation of a bundle: what its folds say of cases that they never saw, and what the bundle states for it.

    python tools/make_folds.py --data DIR [--epochs 24] [--build build/folds] [--folds 0 1 2 3 4] [--workers 0] [--table FILE]
    python tools/make_folds.py --state [--table FILE]

Trains, calibrates and applies one bundle a fold, without and with mirror images; what is done is not done again, and a training
that was stopped goes on. Writes a row for each case and structure into FILE: true and expected volumes, Dice, and for how many
epochs its network was trained. It is `bundles/hippocampus_mri_unet3d/docs/out_of_fold.csv` where nothing else is said.
A fold that stands there counts as done; one of another number of epochs is replaced. Tests measure on it how often intervals
hold, on all subjects.

`--state` fits the bundle's intervals for sizes on the table, without the subjects that the bundle is tested on, and writes them
into its `configs/confidence.json`; the same as `monai-unet calibrate --folds`, for folds that were made one by one.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.calibration.statement_fit import COVERAGE
from monai_unet_app.confidence.fitted_to import InferenceSetting
from monai_unet_app.confidence.statements import SizeStatement, StructureMeasurement, measure_wholes
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.cases import find_data
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.splits import read_splits
from monai_unet_app.evaluate import choose_cases
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.run import TrainConfig, train_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = REPOSITORY / "examples" / "splits.json"
NAME = "hippocampus_mri_unet3d"
TABLE = REPOSITORY / "bundles" / NAME / "docs" / "out_of_fold.csv"
COLUMNS = (
    "fold", "epochs", "case", "subject", "structure",
    "true_ml", "expected_ml", "expected_tta_ml", "mask_ml", "voxel_ml", "dice",
)  # fmt: skip
EXPECTED: dict[InferenceSetting, str] = {"plain": "expected_ml", "tta": "expected_tta_ml"}


def main() -> None:
    """Makes the folds that are asked for, and the table of all that are there; or the statements of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path)
    what.add_argument("--state", action="store_true")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build" / "folds")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--workers", type=int, default=0, help="processes that read and vary images while one trains")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(5)))
    options = parser.parse_args()
    known = read_table(options.table)
    if options.state:
        state(known, REPOSITORY / "bundles" / NAME / CONFIDENCE)
        return
    for fold in options.folds:
        if any((row["fold"], row["epochs"]) == (str(fold), str(options.epochs)) for row in known):
            continue
        made = rows_of(fold, options.epochs, make(fold, options), options.data)
        known = [row for row in known if row["fold"] != str(fold)] + made
        write_table(known, options.table)
        print(f"fold {fold}: {sum(row['fold'] == str(fold) for row in known)} rows")


def make(fold: int, options: argparse.Namespace) -> Bundle:
    """The trained bundle of a fold, calibrated for both settings."""
    root = options.build / str(fold)
    run = TrainConfig(
        data=options.data,
        output=root,
        splits=SPLITS,
        fold=fold,
        overrides={"epochs": options.epochs, "tracker": "none", "workers": options.workers},
    )
    if not (root / "models/model.pt").is_file():
        train_bundle(load_bundle(NAME), run, print)
    bundle = load_bundle(root)
    rows = choose_cases(bundle, find_data(options.data), "calibration").rows
    for setting, name in (("plain", "calibration"), ("tta", "calibration_tta")):
        if bundle.part(name) == bundle.no_calibration:
            calibrate_bundle(bundle, rows, setting=setting)
    return load_bundle(root)


def rows_of(fold: int, epochs: int, bundle: Bundle, data: Path) -> list[dict[str, str]]:
    """A row for each case that the fold tests, and each structure."""
    rows = []
    for row in choose_cases(bundle, find_data(data), "test").rows:
        volume = read_volume(row["image"])
        structures = segment_case(volume, bundle).segmentation.structures
        averaged = segment_case(volume, bundle, PredictConfig(tta=True)).segmentation.structures
        truths = read_reference(row, volume, bundle).structures
        parts = zip(structures, averaged, truths, strict=True)
        for structure, mirrored, true in parts:
            numbers = (
                true.size,
                structure.expected_size,
                mirrored.expected_size,
                structure.size,
                volume.voxel_size,
                dice(true.mask_on_grid, structure.mask_on_grid),
            )
            told = (
                str(fold),
                str(epochs),
                row["id"],
                row["subject"],
                str(true.number),
                *(f"{value:.6g}" for value in numbers),
            )
            rows.append(dict(zip(COLUMNS, told, strict=True)))
    return rows


def state(table: list[dict[str, str]], file: Path) -> None:
    """Replaces the sizes of each setting in a bundle's `confidence.json` by those that the table tells of."""
    reserved = {case for case, place in read_splits(SPLITS).items() if place.partition == "test"}
    document, wholes = json.loads(file.read_text()), load_bundle(NAME).wholes
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


def write_table(rows: list[dict[str, str]], path: Path) -> None:
    """Rewrites the table, sorted, with the columns of COLUMNS and no others."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: (row["case"], row["structure"])))
    partial.replace(path)


if __name__ == "__main__":
    main()

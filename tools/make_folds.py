"""Five-fold cross-validation of a bundle, and what its folds say of cases that they never saw.

    python tools/make_folds.py --data DIR [--epochs 10] [--build build/folds] [--folds 0 1 2 3 4] [--table FILE]

Trains, calibrates and applies one bundle a fold; what is done is not done again, and a training that was stopped goes on.
Writes a row for each case and structure into FILE: true and expected volume, Dice, features. It is
`bundles/hippocampus_mri_unet3d/docs/out_of_fold.csv` where nothing else is said; another recipe needs another table, since what
is there counts as done. Tests measure on it how often intervals hold, on all subjects; `monai-unet calibrate --folds` takes the
folds themselves.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibrate import calibrate_bundle
from monai_unet_app.calibration.confidence import expected_size, spacing_of, voxel_size
from monai_unet_app.calibration.features import FEATURES, describe
from monai_unet_app.data.cases import find_data
from monai_unet_app.data.read import read_volume
from monai_unet_app.evaluate import choose_cases, masks_of, truth_of
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.run import TrainConfig, train_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
SPLITS = REPOSITORY / "examples" / "splits.json"
NAME = "hippocampus_mri_unet3d"
TABLE = REPOSITORY / "bundles" / NAME / "docs" / "out_of_fold.csv"
COLUMNS = ("fold", "case", "subject", "structure", "true_ml", "expected_ml", "mask_ml", "voxel_ml", "dice", *FEATURES)


def main() -> None:
    """Makes the folds that are asked for, and the table of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build" / "folds")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(5)))
    options = parser.parse_args()
    known = read_table(options.table)
    for fold in options.folds:
        if any(row["fold"] == str(fold) for row in known):
            continue
        bundle = make(fold, options)
        known += rows_of(fold, bundle, options.data)
        write_table(known, options.table)
        print(f"fold {fold}: {sum(row['fold'] == str(fold) for row in known)} rows")


def make(fold: int, options: argparse.Namespace) -> Bundle:
    """The trained and calibrated bundle of a fold."""
    root = options.build / str(fold)
    run = TrainConfig(
        data=options.data,
        output=root,
        splits=SPLITS,
        fold=fold,
        overrides={"epochs": options.epochs, "tracker": "none"},
    )
    if not (root / "models/model.pt").is_file():
        train_bundle(load_bundle(NAME), run, print)
    bundle = load_bundle(root)
    if bundle.part("calibration") == bundle.no_calibration:
        calibrate_bundle(bundle, choose_cases(bundle, find_data(options.data), "calibration").rows)
    return load_bundle(root)


def rows_of(fold: int, bundle: Bundle, data: Path) -> list[dict[str, str]]:
    """A row for each case that the fold tests, and each structure."""
    rows = []
    for row in choose_cases(bundle, find_data(data), "test").rows:
        volume = read_volume(row["image"])
        case = segment_case(volume, bundle)
        structures = case.structures
        described = describe(structures, spacing_of(volume), voxel_size(volume), exclusive=True)
        truths = masks_of(truth_of(row, volume, bundle), volume, bundle)
        for n, (one, features, true) in enumerate(zip(structures, described, truths, strict=True), start=1):
            size = voxel_size(volume)
            numbers = (
                np.count_nonzero(true) * size,
                expected_size(one, size),
                np.count_nonzero(one.mask) * size,
                size,
                dice(true, one.mask),
                *(features.values() if features else [float("nan")] * len(FEATURES)),
            )
            told = (str(fold), row["id"], row["subject"], str(n), *(f"{value:.6g}" for value in numbers))
            rows.append(dict(zip(COLUMNS, told, strict=True)))
    return rows


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_table(rows: list[dict[str, str]], path: Path) -> None:
    """Rewrites the table, sorted."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as stream:
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: (row["case"], row["structure"])))
    partial.replace(path)


if __name__ == "__main__":
    main()

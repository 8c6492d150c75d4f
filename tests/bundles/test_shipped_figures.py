"""What cards and README say of the shipped weights is what the metadata say, and what these weights measure."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BUNDLES, EXAMPLES, REPOSITORY, shared_folder

from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.splits import read_splits
from monai_unet_app.evaluate import LabelledCases, choose_cases, evaluate_cases

SPLITS = REPOSITORY / "examples/splits.json"
DATA = {"hippocampus_mri_unet3d": "msd_hippocampus", "hippocampus_mri_unet2d": "msd_hippocampus"}
DATA |= {"retina_vessel_unet2d": "chase_db1_2d"}
TESTED = [root for root in BUNDLES if root.name != "retina_vessel_unet2d"]  # all children train that one
each_bundle = pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
each_tested = pytest.mark.parametrize("root", TESTED, ids=lambda path: path.name)


def figures_of(root: Path) -> dict[str, Any]:
    """Of the test cases; of the folds where all cases train."""
    figures = load_bundle(root).metadata["eval_metrics"]
    return figures if root in TESTED else figures["out_of_fold"]


@each_bundle
def test_card_and_readme_say_what_the_metadata_say(root: Path) -> None:
    figures = figures_of(root)
    card = (root / "docs/README.md").read_text()
    (row,) = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if f"| `{root.name}` |" in line]
    ends = "{:.3f} to {:.3f}".format(*figures["dice"]["interval_95"])
    assert f"{figures['dice']['mean']:.3f} | {ends} |" in card
    assert f"{figures['dice']['mean']:.3f}{'' if root in TESTED else '**'} ({ends})" in row
    assert (" all train " in row) == (root not in TESTED)
    for key in (key for key in figures if key.startswith("ece_")):
        assert f"{figures[key]['uncalibrated']:.4f} | {figures[key]['calibrated']:.4f} |" in card
        assert f" {figures[key]['calibrated']:.4f} |" in row


@each_bundle
def test_the_figures_are_of_the_bundle_as_it_ships(root: Path) -> None:
    bundle, figures = load_bundle(root), figures_of(root)
    assert figures["bundle_sha256"] == bundle.sha256
    assert figures["data"]["name"] == DATA[root.name]
    assert len(figures["data"]["sha256"]) == 64
    stated = (bundle.confidence_document or {})["settings"]["plain"]
    for name in ("sizes", "gate", "shift"):
        assert root not in TESTED or (name in stated) == (name in figures["statements"])
    assert root not in TESTED or figures["statements"].get("not_stated", {}).keys() >= stated["why_not"].keys()


@each_bundle
def test_card_and_readme_lead_with_the_dice_of_the_table_of_folds(root: Path) -> None:
    with (root / "docs/out_of_fold.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["class"] == "mean"]
    found = load_bundle(root).metadata["eval_metrics"]["out_of_fold"]
    mean = np.mean([float(row["dice"]) for row in rows])
    assert found["dice"]["mean"] == pytest.approx(mean, abs=1e-4)
    assert (found["cases"], found["subjects"]) == (len(rows), len({row["subject"] for row in rows}))
    figures = (root / "docs/README.md").read_text().split("<!-- figures -->\n")[1]
    assert figures.startswith(f"**Dice out of fold: {mean:.3f}**")
    (row,) = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if f"| `{root.name}` |" in line]
    assert row.split("|")[4].strip().startswith(f"**{mean:.3f}**")


@each_tested
def test_the_measured_cases_made_nothing_of_the_bundle(root: Path) -> None:
    bundle = load_bundle(root)
    by_partition: dict[str, set[str]] = {}
    for case in bundle.seen:
        by_partition.setdefault(case.partition, set()).add(case.subject)
    assert by_partition.keys() >= {"train", "test"}
    test = by_partition.pop("test")
    assert len(test) == bundle.metadata["eval_metrics"]["subjects"]
    assert not any(test & subjects for subjects in by_partition.values())


def test_all_children_train_the_bundle_of_the_retina_and_each_is_in_one_fold() -> None:
    (root,) = set(BUNDLES) - set(TESTED)
    bundle = load_bundle(root)
    assert {case.partition for case in bundle.seen} == {"train", "calibration"}
    folds: dict[str, set[int]] = {}
    for case in read_splits(root / "configs/splits.json").values():
        folds.setdefault(case.subject, set()).add(case.fold)
    assert len(folds) == bundle.metadata["eval_metrics"]["out_of_fold"]["subjects"] == 10
    assert {len(own) for own in folds.values()} == {1}


Measured = Callable[[Path, Path], Path]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The folder with the figures of a bundle for the test cases of a folder, measured once."""

    @cache
    def measure(root: Path, data: Path) -> Path:
        bundle, folder = load_bundle(root), tmp_path_factory.mktemp("measured")
        rows = choose_cases(bundle, find_data(data), "test", SPLITS).rows
        evaluate_cases(bundle, LabelledCases(rows), folder)
        return folder

    return measure


@pytest.mark.slow
@each_tested
def test_the_figures_are_measured_again(root: Path, shared_data: Path, measured: Measured) -> None:
    found = json.loads((measured(root, shared_data / DATA[root.name]) / "metrics.json").read_text())
    said = load_bundle(root).metadata["eval_metrics"]
    assert found["data"]["cases"] == said["cases"]
    assert found["dice"]["mean"] == pytest.approx(said["dice"]["mean"], abs=1e-3)
    assert found["boundary_iou"]["mean"] == pytest.approx(said["boundary_iou"]["mean"], abs=2e-3)
    assert found["ece"]["top_label"] == pytest.approx(said["ece_whole"]["calibrated"], abs=2e-4)
    assert all(target["reached"] for target in found["targets"])


@pytest.mark.slow
@each_tested
def test_the_example_cases_alone_show_the_same_quality(root: Path, measured: Measured) -> None:
    """They are among all cases, which are measured where these are at hand."""
    bundle, all_cases = load_bundle(root), shared_folder() / DATA[root.name]
    rows = choose_cases(bundle, find_data(EXAMPLES), "test", SPLITS).rows
    folder = measured(root, all_cases if all_cases.is_dir() else EXAMPLES)
    with (folder / "cases.csv").open(newline="") as stream:
        dice = {row["case"]: float(row["dice"]) for row in csv.DictReader(stream) if row["class"] == "mean"}
    assert len(rows) == 19
    mean = np.mean([dice[row["id"]] for row in rows])
    assert mean == pytest.approx(bundle.metadata["eval_metrics"]["dice"]["mean"], abs=0.02)
    assert json.loads((folder / "metrics.json").read_text())["ece_band"]["top_label"] < 0.03

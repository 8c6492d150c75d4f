"""Intervals for volumes hold as often as they say, on subjects that the models never saw: the folds of a cross-validation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from coverage_band import coverage_band

from monai_unet_app.bundle import load_bundle
from monai_unet_app.confidence.conformal import observed_coverage
from monai_unet_app.confidence.statements import THRESHOLDS, SizeStatement, StructureMeasurement, measure_wholes
from monai_unet_app.data.splits import read_splits

TABLE = Path(__file__).resolve().parents[2] / "bundles/hippocampus_mri_unet3d/docs/out_of_fold.csv"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SPLITS, WANTED = 200, 0.9
VOXEL_ML = 0.001  # of 1 x 1 x 1 mm


@pytest.fixture(scope="module")
def measured() -> list[StructureMeasurement]:
    none = np.zeros(len(THRESHOLDS))
    numbers = {segment.label: segment.number for segment in load_bundle(TABLE.parents[1]).segments}
    return [
        StructureMeasurement(
            row["subject"],
            numbers[row["class"]],
            float(row["expected_size_ml"]),
            float(row["truth_size_ml"]),
            VOXEL_ML,
            none,
        )
        for row in rows_of_structures()
    ]


def rows_of_structures() -> list[dict[str, str]]:
    """The rows of `evaluate --folds` but for the means of cases."""
    with TABLE.open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["class"] != "mean"]


@pytest.fixture(scope="module")
def wholes(measured: list[StructureMeasurement]) -> list[StructureMeasurement]:
    return measure_wholes(measured, load_bundle(TABLE.parents[1]).wholes)


def coverage_of(measured: list[StructureMeasurement], fitted_on: set[str], structure: int) -> float:
    """By subject, on all that the statement was not fitted on."""
    stated = SizeStatement.fit([one for one in measured if one.subject in fitted_on], WANTED)
    tested = [one for one in measured if one.subject not in fitted_on and one.structure == structure]
    covered = []
    for one in tested:
        interval = stated.interval(structure, one.expected)
        covered.append(interval is not None and interval[0] <= one.true <= interval[1])
    observed = observed_coverage(covered, [one.subject for one in tested], WANTED).observed
    assert observed is not None
    return observed


def test_the_table_has_every_case_that_is_not_reserved_for_the_test() -> None:
    plan = read_splits(EXAMPLES / "splits.json")
    own = {case for case, place in plan.items() if case.startswith("hippocampus_") and place.partition != "test"}
    assert {row["case"] for row in rows_of_structures()} == own
    assert {row["subject"] for row in rows_of_structures()} == {plan[case].subject for case in own}


def test_what_the_bundle_states_of_sizes_is_what_the_table_tells(
    measured: list[StructureMeasurement], wholes: list[StructureMeasurement]
) -> None:
    stated = json.loads((TABLE.parents[1] / "configs/confidence.json").read_text())["settings"]["plain"]
    for name, rows in (("sizes", measured), ("wholes", wholes)):
        known = SizeStatement.fit(rows, WANTED)
        assert stated[name]["subjects"] == known.subjects == len({one.subject for one in measured})
        assert known.kept is not None
        for number, ends in stated[name]["log_ratios"].items():
            assert ends == pytest.approx(known.log_ratios[int(number)], abs=1e-5)
            assert stated[name]["kept"][number] == pytest.approx(known.kept[int(number)], abs=1e-9)


def test_the_interval_of_the_whole_is_narrower_than_those_of_its_parts(
    measured: list[StructureMeasurement], wholes: list[StructureMeasurement]
) -> None:
    parts, whole = (SizeStatement.fit(rows, WANTED).log_ratios for rows in (measured, wholes))
    (low, high), widths = whole[1] or (0, 0), [ends[1] - ends[0] for ends in parts.values() if ends]
    assert 0 < high - low < 0.8 * min(widths)


@pytest.mark.parametrize(("of", "structure"), [("measured", 1), ("measured", 2), ("wholes", 1)])
def test_half_of_the_subjects_tell_how_far_sizes_of_the_others_are_off(
    of: str, structure: int, request: pytest.FixtureRequest
) -> None:
    measured: list[StructureMeasurement] = request.getfixturevalue(of)
    subjects = sorted({one.subject for one in measured})
    half = len(subjects) // 2
    generator, found = np.random.default_rng(structure), []
    for _ in range(SPLITS):
        fitted_on = set(generator.permutation(subjects)[:half].tolist())
        found.append(coverage_of(measured, fitted_on, structure))
    low, high = coverage_band(WANTED, half, len(subjects) - half)
    assert np.mean(found) >= WANTED - 0.01  # what is promised is promised on average over whoever was fitted on
    assert (
        np.mean([low <= coverage <= high for coverage in found]) >= 0.9
    )  # each by itself within the beta-binomial band

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


@pytest.fixture(scope="module")
def measured() -> list[StructureMeasurement]:
    none = np.zeros(len(THRESHOLDS))
    with TABLE.open(newline="") as stream:
        return [
            StructureMeasurement(
                row["subject"],
                int(row["structure"]),
                float(row["expected_ml"]),
                float(row["true_ml"]),
                float(row["voxel_ml"]),
                none,
            )
            for row in csv.DictReader(stream)
        ]


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


def test_every_subject_was_predicted_by_a_network_that_never_saw_it_and_only_once(
    measured: list[StructureMeasurement],
) -> None:
    assert len({one.subject for one in measured}) == 116
    with TABLE.open(newline="") as stream:
        folds = {(row["subject"], row["fold"]) for row in csv.DictReader(stream)}
    assert len(folds) == 116  # the cases of a person are of one fold


def test_what_the_bundle_states_of_sizes_is_what_the_table_tells(
    measured: list[StructureMeasurement], wholes: list[StructureMeasurement]
) -> None:
    reserved = {case for case, place in read_splits(EXAMPLES / "splits.json").items() if place.partition == "test"}
    with TABLE.open(newline="") as stream:
        subjects = {row["subject"] for row in csv.DictReader(stream) if row["case"] not in reserved}
    told = SizeStatement.fit([one for one in measured if one.subject in subjects], WANTED)
    of_wholes = SizeStatement.fit([one for one in wholes if one.subject in subjects], WANTED)
    stated = json.loads((TABLE.parents[1] / "configs/confidence.json").read_text())["settings"]["plain"]
    assert stated["sizes"]["subjects"] == told.subjects == len(subjects)
    for name, known in (("sizes", told), ("wholes", of_wholes)):
        for number, ends in stated[name]["log_ratios"].items():
            assert ends == pytest.approx(known.log_ratios[int(number)], abs=1e-5)


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

"""Two evaluations pair by pair, subgroups and the gate: known differences are told, and nothing is said for want of people."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXAMPLES
from phantoms import lopsided_array, oblique_affine, write_mr_series
from scipy import stats
from small_data import few_examples, set_calibration

from monai_unet_app.bundle import load_bundle
from monai_unet_app.cli import main
from monai_unet_app.comparison.attributes import Attributes, dicom_attributes, read_attributes
from monai_unet_app.comparison.comparison_writer import write_comparison
from monai_unet_app.comparison.differences import compare
from monai_unet_app.comparison.rank_tests import holm, rank_groups, signed_rank, subject_means
from monai_unet_app.comparison.release_gate import gate
from monai_unet_app.comparison.subgroups import subgroups
from monai_unet_app.data.case_files import find_images
from monai_unet_app.data.digest import image_fingerprint
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.evaluate import LabelledCases, evaluate_cases
from monai_unet_app.metrics.bootstrap import Bootstrap, fewest_subjects, finite_mean

CLASSES = ("front", "back")
COLUMNS = (
    *("dice", "iou", "boundary_iou", "surface_dice", "hd95_mm", "assd_mm", "truth_size_ml", "a_later_score"),
    *("ece_whole", "ece_band"),
)
USUAL = {
    "dice": 0.8,
    "iou": 0.7,
    "boundary_iou": 0.6,
    "surface_dice": 0.9,
    "hd95_mm": 3.0,
    "assd_mm": 1.0,
    "truth_size_ml": 2.5,
    "a_later_score": 1.0,
    "ece_whole": 0.01,
    "ece_band": 0.1,
}
SETTINGS: dict[str, Any] = {
    "classes": list(CLASSES),
    "exclusive": True,
    "planar": False,
    "unit": "mm",
    "bins": 15,
    "boundary_width": 1.0,
    "band_width": 2.0,
    "surface_tolerance": 1.0,
    "definitions": {"dice": "overlap", "ece": "top label"},
}
Scores = Mapping[str, float]


def write_evaluation(
    folder: Path,
    cases: Sequence[tuple[str, str, Scores]],
    *,
    shuffled: bool = False,
    sha256: str = "a" * 64,
    **settings: Any,
) -> Path:
    """An evaluation of these cases (id, subject, scores that are not `USUAL`); every class has the scores of the mean."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        [case, subject, name, *(text({**USUAL, **scores}[column]) for column in COLUMNS)]
        for case, subject, scores in cases
        for name in (*CLASSES, "mean")
    ]
    if shuffled:
        random.Random(3).shuffle(rows)
    with (folder / "cases.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["case", "subject", "class", *COLUMNS], *rows])
    dice = [{**USUAL, **scores}["dice"] for _, _, scores in cases]
    document = {
        "schema_version": "1.0",
        "dice": {"mean": finite_mean(dice)} if any(map(math.isfinite, dice)) else {},
        "bundle": {"name": folder.name, "version": "1", "sha256": ""},
        "data": {"name": "made up", "sha256": sha256, "partition": "test", "cases": len(cases), "subjects": 1},
        "a_later_key": {},
        **SETTINGS,
        **settings,
    }
    (folder / "metrics.json").write_text(json.dumps(document))
    return folder


def text(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def people(count: int, cases_each: int = 1, scores: Callable[[int], Scores] = lambda number: {}) -> list[Any]:
    """`count` subjects with their cases; `scores` is asked for each case's, by its number."""
    return [
        (f"case_{number:02}", f"person_{number // cases_each:02}", scores(number))
        for number in range(count * cases_each)
    ]


def dices(values: Sequence[float]) -> list[Any]:
    return people(len(values), scores=lambda number: {"dice": values[number]})


def two(folder: Path, first: Sequence[Any], second: Sequence[Any], **more: Any) -> tuple[Path, Path]:
    return write_evaluation(folder / "first", first), write_evaluation(folder / "second", second, **more)


# --- what the second is -----------------------------------------------------------------------------------------------


def test_a_gain_that_everybody_has_is_exactly_that_gain(tmp_path: Path) -> None:
    found = compare(*two(tmp_path, dices([0.7] * 8), dices([0.75] * 8)))
    dice = found.of("dice", "mean")
    assert (dice.first, dice.second) == (pytest.approx(0.7), pytest.approx(0.75))
    assert dice.estimate.value == pytest.approx(0.05)
    assert (dice.estimate.low, dice.estimate.high) == (pytest.approx(0.05), pytest.approx(0.05))
    assert dice.word == "better"
    assert dice.test.p == pytest.approx(2 / 2**8)
    assert dice.test.method == "exact"
    assert (found.subjects, dice.estimate.cases) == (8, 8)


@pytest.mark.parametrize(("score", "worse_by"), [("dice", -0.1), ("hd95_mm", 0.5), ("ece_band", 0.05)])
def test_lower_is_better_for_distances_and_calibration_errors_only(score: str, worse_by: float, tmp_path: Path) -> None:
    good = people(8, scores=lambda number: {score: USUAL[score] + number / 100})
    bad = people(8, scores=lambda number: {score: USUAL[score] + number / 100 + worse_by})
    row = "top label" if score == "ece_band" else "mean"
    assert compare(*two(tmp_path / "a", good, bad)).of(score, row).word == "worse"
    back = compare(*two(tmp_path / "b", bad, good))
    assert back.of(score, row).word == "better"
    assert back.of(score, "front").word == "better"
    assert back.of("iou", "mean").word == "same"


def test_an_evaluation_is_the_same_as_itself_and_has_no_p(tmp_path: Path) -> None:
    cases = people(9, 2, lambda number: {"dice": 0.5 + number / 50, "hd95_mm": 1.0 + number})
    found = compare(*two(tmp_path, cases, cases))
    for entry in found.differences:
        assert (entry.estimate.value, entry.estimate.low, entry.estimate.high) == (0, 0, 0)
        assert entry.word == "same"
        assert entry.test.reason == "all differences are 0"
        assert math.isnan(entry.test.p)
        assert math.isnan(entry.test.p_holm)


def test_gains_and_losses_that_cancel_are_the_same(tmp_path: Path) -> None:
    second = [0.7 + sign * size / 100 for size in range(1, 6) for sign in (1, -1)]
    dice = compare(*two(tmp_path, dices([0.7] * 10), dices(second))).of("dice", "mean")
    assert dice.estimate.low < 0 < dice.estimate.high
    assert dice.word == "same"
    assert dice.test.p == pytest.approx(1)


def test_the_interval_of_a_gain_that_some_have_is_binomial(tmp_path: Path) -> None:
    # Drawing 40 people again of whom 10 gained 0.2 is drawing from a binomial distribution.
    second = [0.9] * 10 + [0.7] * 30
    dice = compare(*two(tmp_path, dices([0.7] * 40), dices(second)), how=Bootstrap(resamples=20_000)).of("dice", "mean")
    low, high = stats.binom.ppf([0.025, 0.975], 40, 0.25) / 40 * 0.2
    assert dice.estimate.value == pytest.approx(0.05)
    assert (dice.estimate.low, dice.estimate.high) == (pytest.approx(low), pytest.approx(high))
    assert dice.word == "better"


def test_interval_and_p_are_scipy_s(tmp_path: Path) -> None:
    random_numbers = np.random.default_rng(5)
    first = np.round(random_numbers.uniform(0.6, 0.9, 15), 4)
    second = np.round(first + random_numbers.normal(0.01, 0.03, 15), 4)
    how = Bootstrap(resamples=20_000)
    dice = compare(*two(tmp_path, dices(first.tolist()), dices(second.tolist())), how=how).of("dice", "mean")
    theirs = stats.bootstrap(
        (second - first,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert dice.estimate.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert dice.estimate.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert dice.test.p == pytest.approx(stats.wilcoxon(np.round(second - first, 10), method="exact").pvalue)


def test_the_test_is_on_people_not_on_cases(tmp_path: Path) -> None:
    gains = np.random.default_rng(2).permutation(np.arange(1, 25)) * np.tile([1, 1, -1], 8) / 1000
    first, second = people(8, 3), people(8, 3, lambda number: {"dice": 0.8 + gains[number]})
    dice = compare(*two(tmp_path, first, second)).of("dice", "mean")
    by_person = np.round(gains.reshape(8, 3).mean(axis=1), 10)
    assert dice.test.p == pytest.approx(stats.wilcoxon(by_person, method="exact").pvalue)
    assert (dice.estimate.subjects, dice.estimate.cases) == (8, 24)


def test_five_people_are_too_few_however_many_cases_they_have(tmp_path: Path) -> None:
    found = compare(*two(tmp_path, people(5, 6), people(5, 6, lambda number: {"dice": 0.95})))
    dice = found.of("dice", "mean")
    assert dice.word == "too few"
    assert dice.test.reason == "5 subject(s), at least 6 are needed"
    assert math.isnan(dice.test.p)
    assert dice.estimate.value == pytest.approx(0.15)
    assert found.fewest == 6


@pytest.mark.parametrize(("level", "needed"), [(0.95, 6), (0.9, 5), (0.99, 8)])
def test_so_few_people_are_needed_that_the_range_of_their_values_holds_the_level(level: float, needed: int) -> None:
    assert fewest_subjects(level) == needed
    assert 2 * 0.5**needed <= 1 - level < 2 * 0.5 ** (needed - 1)


@pytest.mark.parametrize("undefined", [math.nan, math.inf])
def test_a_distance_that_one_does_not_have_is_left_out_counted_and_told(undefined: float, tmp_path: Path) -> None:
    first = people(8, scores=lambda number: {"hd95_mm": undefined if number == 0 else 4.0})
    second = people(8, scores=lambda number: {"hd95_mm": undefined if number in (0, 5) else 3.0})
    distance = compare(*two(tmp_path, first, second)).of("hd95_mm", "mean")
    assert (distance.first, distance.second, distance.estimate.value) == (4.0, 3.0, -1.0)
    assert (distance.estimate.cases, distance.undefined) == (6, (1, 2))
    assert distance.word == "better"
    assert distance.note == "hd95_mm, mean: without a value in 1 case(s) of the first, 2 of the second"


def test_a_score_that_nobody_has_is_undefined(tmp_path: Path) -> None:
    nothing = people(8, scores=lambda number: {"ece_band": math.nan})
    found = compare(*two(tmp_path, people(8), nothing))
    band = found.of("ece_band", "top label")
    assert math.isnan(band.first)
    assert math.isnan(band.estimate.value)
    assert band.word == "too few"
    assert gate(found).state == "undecided"


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0.5, 0.9, (2, 24)).round(4).tolist()
    first, second = (people(8, 3, lambda number, row=row: {"dice": row[number]}) for row in values)
    found = compare(*two(tmp_path, first, second))
    again = compare(tmp_path / "first", write_evaluation(tmp_path / "mixed/second", second, shuffled=True))
    assert again.as_dict() == found.as_dict()


# --- which may be compared --------------------------------------------------------------------------------------------


def test_cases_that_one_lacks_are_named_and_left_out_on_request(tmp_path: Path) -> None:
    first, second = two(tmp_path, people(9)[1:], [*people(9)[:7], *people(9, scores=lambda n: {"dice": 0.9})[8:]])
    with pytest.raises(
        InputRefusedError, match=r"the first lacks case_00; the second lacks case_07; .* --common compares the 7"
    ):
        compare(first, second)
    found = compare(first, second, common=True)
    assert found.pairs.left_out == ("case_00", "case_07")
    assert len(found.pairs.subjects) == 7
    assert found.of("dice", "mean").estimate.value == pytest.approx(0.1 / 7)


def test_without_a_common_case_nothing_is_compared(tmp_path: Path) -> None:
    first, second = two(tmp_path, people(4)[:2], people(4)[2:])
    with pytest.raises(InputRefusedError, match="the first lacks case_02, case_03"):
        compare(first, second, common=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "b" * 64}, "same names but different content"),
        ({"classes": ["front", "side"]}, r"classes is \['front', 'back'\] in the first .* \['front', 'side'\]"),
        ({"band_width": 3.0}, "band_width is 2.0 in the first evaluation and 3.0 in the second"),
        ({"bins": 10}, "bins is 15"),
        ({"unit": "px"}, "unit is 'mm'"),
        ({"definitions": {"ece": "another"}}, "the definition of ece is 'top label'"),
    ],
)
def test_what_was_measured_otherwise_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=message):
        compare(*two(tmp_path, people(3), people(3), **change))


def test_other_labels_under_the_same_names_are_refused_even_where_no_digest_tells(tmp_path: Path) -> None:
    other = people(3, scores=lambda number: {"truth_size_ml": 2.6 if number == 1 else 2.5})
    with pytest.raises(InputRefusedError, match=r"the true front of case_01 has another size .* 2\.5 and 2\.6"):
        compare(*two(tmp_path, people(3), other, sha256=""))


def test_definitions_of_later_scores_may_differ(tmp_path: Path) -> None:
    later = {**SETTINGS["definitions"], "a_later_score": "something", "dice": "reworded"}
    assert compare(*two(tmp_path, people(6), people(6), definitions=later)).subjects == 6


def test_people_whom_either_evaluation_takes_for_one_are_one(tmp_path: Path) -> None:
    first = [("a1", "anna", {}), ("a2", "anna", {}), ("b1", "bert", {}), ("b2", "b2", {}), ("c", "carl", {})]
    second = [("a1", "1", {}), ("a2", "2", {}), ("b1", "3", {}), ("b2", "3", {}), ("c", "4", {})]
    subjects = compare(*two(tmp_path, first, second)).pairs.subjects
    assert subjects["a1"] == subjects["a2"]
    assert subjects["b1"] == subjects["b2"]
    assert len(set(subjects.values())) == 3


def damaged(folder: Path, kind: str) -> Path:
    write_evaluation(folder, people(3))
    table = folder / "cases.csv"
    lines = table.read_text().splitlines()
    if kind == "no metrics":
        (folder / "metrics.json").unlink()
    elif kind == "truncated metrics":
        (folder / "metrics.json").write_text('{"bundle"')
    elif kind == "not a setting":
        (folder / "metrics.json").write_text('{"bundle": {}, "data": {}}')
    elif kind == "a case less":
        table.write_text("\n".join(lines[:-3]))
    elif kind == "a row twice":
        table.write_text("\n".join([*lines, lines[-1]]))
    elif kind == "no class column":
        table.write_text("\n".join(line.replace("class", "klass") for line in lines))
    elif kind == "a short row":
        table.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0]]))
    elif kind == "a word":
        table.write_text("\n".join([*lines[:-1], lines[-1].replace("0.8", "good")]))
    elif kind == "no column":
        table.write_text("\n".join(line.replace("dice", "dies") for line in lines))
    elif kind == "a changed field":
        table.write_text("\n".join([*lines[:-1], lines[-1].replace("0.8", "8.8", 1)]))
    elif kind == "not a number":
        table.write_text("\n".join([*lines[:-1], lines[-1].replace("0.8", "nan", 1)]))
    elif kind == "a later version":
        (folder / "metrics.json").write_text((folder / "metrics.json").read_text().replace('"1.0"', '"9.0"', 1))
    elif kind == "no row of a class":
        table.write_text("\n".join(line for line in lines if line != lines[1]))
    return folder


DAMAGES = {
    "no metrics": r"metrics\.json cannot be read .*; a folder that monai-unet evaluate wrote is needed",
    "truncated metrics": r"metrics\.json cannot be read",
    "not a setting": r"metrics\.json lacks definitions, classes",
    "a case less": r"metrics\.json has 3 case\(s\), cases\.csv has 2",
    "a row twice": "row case_02 / mean occurs twice",
    "no class column": r"each once, case, subject, class among them",
    "a short row": "row 10 does not have the 13 fields",
    "a word": "dice of case_02 is 'good'; a number or nothing is needed",
    "no column": r"no column dice",
    "a changed field": r"the mean dice is 0\.8 in metrics\.json and 3\.46667 in cases\.csv",
    "not a number": "dice of case_02 is 'nan'; a number or nothing is needed",
    "a later version": r"schema_version '9\.0'; 1\.x is needed",
    "no row of a class": "no row 'front' for case_00",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_evaluation_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    whole = write_evaluation(tmp_path / "first", people(3))
    with pytest.raises(InputRefusedError, match=DAMAGES[kind]):
        compare(whole, damaged(tmp_path / "second", kind))


# --- tests on ranks ---------------------------------------------------------------------------------------------------


def test_signed_rank_with_ties_counts_every_set_of_signs() -> None:
    # Six equal sizes share rank 3.5; five of six or all six positive: (6 + 1) of 64, on either side.
    found = signed_rank([1, 1, 1, 1, 1, -1])
    assert (found.p, found.method) == (pytest.approx(2 * 7 / 64), "exact")


def test_signed_rank_drops_zeros_and_needs_six_people_before_that() -> None:
    assert signed_rank([0, 0, 0, 1, 2, 3]).p == pytest.approx(2 / 2**3)
    assert signed_rank([1, 2, 3, 4, 5]).reason.startswith("5 subject(s)")


def test_signed_rank_takes_ties_for_ties_whatever_floats_make_of_them() -> None:
    noisy = [0.3 - 0.2, 0.2 - 0.1, 0.9 - 0.8, 0.5 - 0.4, 0.7 - 0.6, 0.1 - 0.2]
    assert len({abs(value) for value in noisy}) > 1
    assert signed_rank(noisy).p == pytest.approx(2 * 7 / 64)


def test_signed_rank_of_many_people_with_ties_is_scipy_s_approximation() -> None:
    values = np.random.default_rng(4).integers(-4, 8, 40).astype(float)
    found = signed_rank(values)
    kept = values[values != 0]
    ranks = stats.rankdata(np.abs(kept))
    sigma = math.sqrt((ranks**2).sum() / 4)  # the variance of a sum of ranks with fair signs
    z = (ranks[kept > 0].sum() - ranks.sum() / 2) / sigma
    assert found.method == "normal approximation"
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": math.nan})
    assert {name: found[name] for name in "abcd"} == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert math.isnan(found["e"])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_every_p_of_a_comparison_is_adjusted_for_all_of_them(tmp_path: Path) -> None:
    worse = people(8, scores=lambda number: {"dice": 0.8 + (number + 1) / 100, "iou": 0.7 - (number + 1) / 100})
    found = compare(*two(tmp_path, people(8), worse))
    tested = [entry.test for entry in found.differences if not math.isnan(entry.test.p)]
    assert [test.p for test in tested] == pytest.approx([2 / 2**8] * 6)
    assert [test.p_holm for test in tested] == pytest.approx([6 * 2 / 2**8] * 6)


def test_rank_groups_of_three_apart_is_the_closed_form() -> None:
    # Rank sums 15, 40, 65 of 15 values: H = 12 / (15 * 16) * (15^2 + 40^2 + 65^2) / 5 - 3 * 16 = 12.5; chi2(2) is e^(-H/2).
    found = rank_groups([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]])
    assert found.p == pytest.approx(math.exp(-12.5 / 2))
    assert rank_groups([[1, 1, 1], [1, 1]]).reason == "all values are the same"


def test_subject_means_leave_out_what_is_not_finite() -> None:
    assert subject_means([1, 3, math.nan, math.inf, 5], ["b", "b", "b", "c", "a"]) == {"a": 5.0, "b": 2.0}


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_files_of_a_comparison_say_what_it_says(tmp_path: Path) -> None:
    undefined = people(8, scores=lambda number: {"hd95_mm": math.nan})
    found = compare(*two(tmp_path, people(8), undefined))
    document, table = write_comparison(found, tmp_path / "out")
    scores = json.loads(document.read_text())["scores"]
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(scores) == 8 * 3
    assert [(row["score"], row["class"], row["word"]) for row in rows] == [
        (entry["score"], entry["class"], entry["word"]) for entry in scores
    ]
    distance = next(entry for entry in scores if entry["score"] == "hd95_mm")
    assert (distance["first"], distance["interval"], distance["undefined"]) == (None, None, {"first": 0, "second": 8})
    row = next(row for row in rows if row["score"] == "hd95_mm")
    assert (row["first"], row["low"], row["p"], row["word"]) == ("", "", "", "too few")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.csv", "comparison.json"]


# --- the gate ---------------------------------------------------------------------------------------------------------


def noisy(mean_gain: float, count: int = 12, score: str = "dice") -> list[Any]:
    """People whose gain is that on average, between 0.02 below and 0.02 above it."""
    offsets = np.linspace(-0.02, 0.02, count)
    return people(count, scores=lambda number: {score: USUAL[score] + mean_gain + float(offsets[number])})


def run_gate(tmp_path: Path, old: Sequence[Any], new: Sequence[Any], *words: str) -> int:
    write_evaluation(tmp_path / "old", old)
    write_evaluation(tmp_path / "new", new)
    sides = ["--first", str(tmp_path / "old"), "--second", str(tmp_path / "new")]
    return main(["compare", "--fail-if-worse", *sides, *words])


@pytest.mark.parametrize(
    ("score", "gain", "code"),
    [
        ("dice", 0.05, 0),
        ("dice", 0.0, 0),
        ("dice", -0.05, 1),
        ("boundary_iou", -0.05, 1),
        ("ece_whole", 0.05, 1),
        ("ece_band", 0.05, 1),
        ("ece_band", -0.05, 0),
        ("hd95_mm", 5.0, 0),
    ],
)
def test_the_gate_closes_where_a_figure_that_counts_got_worse(
    score: str, gain: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_gate(tmp_path, people(12), noisy(gain, score=score)) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("failed: " if code else "passed: ")
    assert (score in lines[0]) == (code == 1 or score in ("dice", "ece_band"))
    assert [line.split()[0] for line in lines[-4:]] == ["dice", "boundary_iou", "ece_whole", "ece_band"]


def test_the_gate_never_passes_for_want_of_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_gate(tmp_path, people(5, 8), people(5, 8, lambda number: {"dice": 0.9})) == 3
    assert capsys.readouterr().out.startswith(
        "undecided: dice, boundary_iou, ece_whole, ece_band has 5 subject(s), at least 6 are needed"
    )


def test_one_figure_that_cannot_be_told_keeps_the_gate_from_passing(tmp_path: Path) -> None:
    bandless = people(12, scores=lambda number: {"ece_band": math.nan} if number > 3 else {})
    assert run_gate(tmp_path / "a", people(12), bandless) == 3
    worse = people(12, scores=lambda number: {"ece_band": math.nan if number > 3 else 0.1, "dice": 0.5})
    assert run_gate(tmp_path / "b", people(12), worse) == 1


@pytest.mark.parametrize(
    ("gain", "margin", "code"),
    [
        (-0.03, None, 1),
        (-0.03, "0.1", 0),  # shown to be worse, and not by more than that
        (-0.03, "dice=0.1", 0),
        (-0.03, "boundary_iou=0.1", 1),
        (0.0, None, 0),
        (0.0, "0.001", 1),  # not shown to be no worse than that
        (0.0, "0.02", 0),
        (0.05, "0", 0),
    ],
)
def test_with_a_margin_it_must_be_shown_not_to_be_worse_by_more(
    gain: float, margin: str | None, code: int, tmp_path: Path
) -> None:
    words = [] if margin is None else ["--margin", margin]
    assert run_gate(tmp_path, people(12), noisy(gain), *words) == code


@pytest.mark.parametrize("margin", ["-0.1", "much", "hd95_mm=1", "dice=nan", "dice="])
def test_a_margin_that_is_none_is_wrong_usage(margin: str, tmp_path: Path) -> None:
    assert run_gate(tmp_path, people(12), people(12), f"--margin={margin}") == 2
    with pytest.raises(UsageError, match="dice=-1"):
        gate(compare(tmp_path / "old", tmp_path / "new"), {"dice": -1})


def test_a_case_that_could_not_be_measured_keeps_the_gate_from_passing(tmp_path: Path) -> None:
    found = compare(*two(tmp_path, people(12), people(12)))
    assert gate(found).state == "passed"
    outcome = gate(found, unmeasured=2)
    assert (outcome.state, outcome.reason) == ("undecided", "2 case(s) could not be measured")


def test_the_gate_answers_as_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_gate(tmp_path, people(12), noisy(-0.05), "--json", "--output", str(tmp_path / "out")) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["outcome"] == "failed"
    assert {figure["score"]: figure["outcome"] for figure in answer["figures"]} == {
        "dice": "failed",
        "boundary_iou": "passed",
        "ece_whole": "passed",
        "ece_band": "passed",
    }
    assert [Path(file).name for file in answer["files"]] == ["comparison.json", "comparison.csv"]


@pytest.mark.parametrize(
    "words",
    [
        ["--second", "a"],
        ["--second", "none"],
        ["--second", "OLD", "--data", "somewhere"],
        ["--second", "OLD", "--partition", "all", "--fail-if-worse"],
        ["--second", "OLD", "--margin", "0.1"],
    ],
)
def test_sides_that_cannot_be_compared_are_wrong_usage(words: list[str], tmp_path: Path) -> None:
    old = str(write_evaluation(tmp_path / "old", people(6)))
    assert main(["compare", "--first", old, *(old if word == "OLD" else word for word in words)]) == 2


# --- bundles ----------------------------------------------------------------------------------------------------------

NAMES = ("hippocampus_003", "hippocampus_007", "hippocampus_035", "hippocampus_037")


def saw(root: Path, case: str) -> None:
    entry = {
        "partition": "train",
        "subject": case,
        "image": image_fingerprint(read_volume(EXAMPLES / f"images/{case}.nii.gz")),
    }
    (root / "models/run.json").write_text(json.dumps({"cases": {case: entry}}))


def two_bundles(tiny_bundle: Callable[..., Path]) -> tuple[Path, Path]:
    """Two that differ in their calibration; each has trained with one case."""
    old = tiny_bundle()
    new = old.with_name("new")
    shutil.copytree(old, new)
    set_calibration(new, 0.3, -0.8)
    saw(old, NAMES[0])
    saw(new, NAMES[1])
    return old, new


def cases_in(folder: Path) -> set[str]:
    with (folder / "cases.csv").open(newline="") as stream:
        return {row["case"] for row in csv.DictReader(stream)}


@pytest.mark.usefixtures("without_pages")
def test_bundles_are_measured_on_the_cases_that_neither_has_seen(
    tiny_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old, new), data = two_bundles(tiny_bundle), few_examples(tmp_path / "data", NAMES)
    sides = ["--first", str(old), "--second", str(new), "--data", str(data), "--device", "cpu"]
    assert main(["compare", "--fail-if-worse", *sides, "--output", str(tmp_path / "out")]) == 3
    assert "has 2 subject(s), at least 6 are needed" in capsys.readouterr().out
    assert cases_in(tmp_path / "out/old") == cases_in(tmp_path / "out/new") == set(NAMES[2:])
    found = compare(tmp_path / "out/old", tmp_path / "out/new")
    assert found.of("dice", "mean").estimate.value == 0  # a calibration does not change which class wins
    assert found.of("ece_whole", "top label").estimate.value != 0


@pytest.mark.usefixtures("without_pages")
def test_a_bundle_is_compared_with_an_evaluation_on_the_cases_of_that(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    (old, new), data = two_bundles(tiny_bundle), few_examples(tmp_path / "data", NAMES)
    rows = [
        {"id": name, "subject": name, **{k: str(data / f"{k}s" / f"{name}.nii.gz") for k in ("image", "label")}}
        for name in NAMES[2:3]
    ]
    evaluate_cases(load_bundle(old), LabelledCases(rows), tmp_path / "before")
    words = ["--first", str(tmp_path / "before"), "--second", str(new), "--data", str(data), "--device", "cpu"]
    assert main(["compare", *words, "--output", str(tmp_path / "out")]) == 0
    assert cases_in(tmp_path / "out/second") == {NAMES[2]}
    assert not (tmp_path / "out/first").exists()


def test_bundles_without_a_case_that_neither_has_seen_are_refused(
    tiny_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (old, new), data = two_bundles(tiny_bundle), few_examples(tmp_path / "data", NAMES[:2])
    words = ["--first", str(old), "--second", str(new), "--data", str(data), "--device", "cpu"]
    assert main(["compare", *words]) == 3
    assert "cases that neither bundle has seen are needed" in " ".join(capsys.readouterr().err.split())


# --- on the screen ----------------------------------------------------------------------------------------------------


def test_the_table_fits_eighty_columns_and_folds_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = people(8, scores=lambda number: {"dice": 0.8 - number / 1000, "ece_whole": 0.01 - 4e-6 * (number + 1)})
    first, second_folder = two(tmp_path, people(8), second)
    assert main(["compare", "--first", str(first), "--second", str(second_folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = [line for line in shown if line.startswith(("dice", "boundary_iou", "ece_whole", " front"))]
    assert len(rows) == 3 + 8
    assert max(map(len, rows)) <= 80
    assert "…" not in "".join(shown)
    assert next(line for line in rows if line.startswith("dice")).split()[-1] == "worse"
    assert next(line for line in rows if line.startswith("ece_whole")).split()[-1] == "better"
    assert "no p: all differences are 0" in shown


# --- subgroups --------------------------------------------------------------------------------------------------------


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def sexes(path: Path, women: int, men: int) -> Attributes:
    rows = [f"person_{number:02},{'F' if number < women else 'M'}" for number in range(women + men)]
    return read_attributes(table(path, "subject,sex", *rows))


def test_groups_with_too_few_people_are_named_and_get_no_figure(tmp_path: Path) -> None:
    cases = write_evaluation(tmp_path / "e", people(11, 2, lambda number: {"dice": 0.6 if number < 14 else 0.9}))
    (found,) = subgroups(cases / "cases.csv", sexes(tmp_path / "a.csv", 7, 4)).attributes
    women, men = found.groups
    assert (women.name, women.subjects, women.cases) == ("F", 7, 14)
    assert women.scores["dice"].value == pytest.approx(0.6)  # type: ignore[union-attr]
    assert (men.name, men.subjects, men.cases) == ("M", 4, 8)
    assert set(men.scores.values()) == {None}
    assert found.tests["dice"].reason == "1 group(s) with enough subjects, at least 2 are needed"
    (found,) = subgroups(cases / "cases.csv", sexes(tmp_path / "a.csv", 7, 4), fewest=4).attributes
    assert found.groups[1].scores["dice"].value == pytest.approx(0.9)  # type: ignore[union-attr]


def test_ids_that_a_spreadsheet_made_numbers_of_are_told_from_people_who_are_not_in_the_table(tmp_path: Path) -> None:
    rows = [(f"case_{number}", f"0{number}", {}) for number in range(1, 8)]
    cases = write_evaluation(tmp_path / "e", rows)
    known = read_attributes(
        table(tmp_path / "a.csv", "subject,sex", "01,F", *(f"{number},M" for number in range(2, 8)))
    )
    with pytest.raises(InputRefusedError, match=r"subject 02 of the evaluation is 2 in the table \(6 like it\)"):
        subgroups(cases / "cases.csv", known)


def test_the_guard_counts_people_who_have_the_score(tmp_path: Path) -> None:
    cases = write_evaluation(tmp_path / "e", people(6, scores=lambda n: {"hd95_mm": math.nan if n < 2 else 1.0}))
    (found,) = subgroups(cases / "cases.csv", sexes(tmp_path / "a.csv", 6, 0)).attributes
    assert found.groups[0].scores["hd95_mm"] is None
    assert found.groups[0].scores["dice"] is not None


def test_the_test_between_groups_is_on_the_means_of_people(tmp_path: Path) -> None:
    values = np.random.default_rng(8).uniform(0.6, 0.9, 36).round(4)
    cases = write_evaluation(tmp_path / "e", people(12, 3, lambda number: {"dice": float(values[number])}))
    found = subgroups(cases / "cases.csv", sexes(tmp_path / "a.csv", 6, 6))
    means = values.reshape(12, 3).mean(axis=1)
    theirs = stats.kruskal(means[:6], means[6:]).pvalue
    assert found.attributes[0].tests["dice"].p == pytest.approx(theirs)
    assert found.attributes[0].tests["iou"].reason == "all values are the same"
    women = found.attributes[0].groups[0].scores["dice"]
    assert women is not None
    assert women.value == pytest.approx(values[:18].mean())
    assert women.low < women.value < women.high
    assert (women.subjects, women.cases) == (6, 18)


def test_a_person_in_two_groups_leaves_no_test(tmp_path: Path) -> None:
    cases = write_evaluation(tmp_path / "e", people(6, 2, lambda number: {"dice": 0.6 + number / 100}))
    rows = [f"case_{number:02},{'old' if number % 2 else 'new'}" for number in range(12)]
    (found,) = subgroups(
        cases / "cases.csv", read_attributes(table(tmp_path / "a.csv", "case,scanner", *rows))
    ).attributes
    assert [group.subjects for group in found.groups] == [6, 6]
    assert found.tests["dice"].reason.startswith("a subject is in several groups")


def groups_of(tmp_path: Path, name: str, values: Sequence[object], **more: Any) -> dict[str, int]:
    cases = write_evaluation(tmp_path / "e", people(len(values)))
    rows = [f"person_{number:02},{value}" for number, value in enumerate(values)]
    known = read_attributes(table(tmp_path / "a.csv", f"subject,{name}", *rows))
    (found,) = subgroups(cases / "cases.csv", known, **more).attributes
    return {"": found.attribute} | {group.name: group.subjects for group in found.groups}  # type: ignore[return-value]


def test_ages_are_cut_at_forty_sixty_and_eighty(tmp_path: Path) -> None:
    ages = [3, 39.9, 40, 59, 60, 79, 80, 93]
    assert groups_of(tmp_path, "age", ages) == {"": "age_band", "0-40": 2, "40-60": 2, "60-80": 2, "80+": 2}


def test_numbers_are_cut_into_thirds_or_at_given_edges(tmp_path: Path) -> None:
    widths = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    found = groups_of(tmp_path, "width", widths)
    assert list(found.values()) == ["width", 3, 3, 3]
    given = groups_of(tmp_path, "width", widths, edges={"width": (2, 5)})
    assert given == {"": "width", "<2": 1, "2-5": 3, "5+": 5}


def test_few_numbers_and_texts_are_groups_as_they_are_and_nothing_is_not_given(tmp_path: Path) -> None:
    assert groups_of(tmp_path, "site", [1, 2, 2, 10, 10]) == {"": "site", "1": 1, "2": 2, "10": 2}
    assert groups_of(tmp_path, "maker", ["B", "A", "", "A"]) == {"": "maker", "A": 2, "B": 1, "(not given)": 1}


@pytest.mark.parametrize(
    ("name", "edges", "message"),
    [
        ("age", {"age": (40, 40)}, "edges 40, 40; rising numbers are needed"),
        ("age", {"size": (1,)}, "size: no such attribute; there are age"),
        ("maker", {"maker": (1,)}, "'A' is not a number"),
    ],
)
def test_bands_that_cannot_be_are_wrong_usage(
    name: str, edges: dict[str, Sequence[float]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        groups_of(tmp_path, name, ["A"] * 3 if name == "maker" else [30, 50, 70], edges=edges)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["subject;sex", "p;F"], "subject;sex; case or subject, and one for each attribute, with commas"),
        (["person,sex", "p,F"], "person, sex; case or subject"),
        (["subject", "p"], "subject; case or subject, and one for each attribute"),
        (["subject,sex", "p,F", "p,M"], "subject p has two values of sex"),
        (
            ["subject,PatientName", "p,X"],
            r"the column\(s\) PatientName; names, numbers and birth dates of persons are not allowed",
        ),
        (
            ["subject,sex", "nobody,F"],
            r"no subject of the evaluation \(person_00, .*\) has attributes \(there are nobody\)",
        ),
    ],
)
def test_attributes_that_cannot_be_used_are_refused(lines: list[str], message: str, tmp_path: Path) -> None:
    cases = write_evaluation(tmp_path / "e", people(3))
    with pytest.raises(InputRefusedError, match=message):
        subgroups(cases / "cases.csv", read_attributes(table(tmp_path / "a.csv", *lines)))


def test_the_verb_subgroups_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_evaluation(tmp_path / "e", people(11, 2, lambda number: {"dice": 0.6 if number < 14 else 0.9}))
    sexes(tmp_path / "a.csv", 7, 4)
    words = ["--evaluation", str(cases), "--attributes", str(tmp_path / "a.csv"), "--output", str(tmp_path / "out")]
    assert main(["subgroups", *words]) == 0
    shown = capsys.readouterr().out
    assert "too few (below 5): M (4)" in shown
    assert max(map(len, shown.splitlines()[:8])) <= 80
    document = json.loads((tmp_path / "out/subgroups.json").read_text())
    assert [group["group"] for group in document["attributes"][0]["groups"]] == ["F", "M"]
    with (tmp_path / "out/subgroups.csv").open(newline="") as stream:
        rows = {(row["group"], row["score"]): row for row in csv.DictReader(stream)}
    assert (rows["F", "dice"]["mean"], rows["F", "dice"]["too_few"]) == ("0.6", "")
    assert (rows["M", "dice"]["mean"], rows["M", "dice"]["too_few"], rows["M", "dice"]["subjects"]) == (
        "",
        "too few",
        "4",
    )


def test_the_verb_subgroups_takes_edges_a_class_and_a_guard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_evaluation(tmp_path / "e", people(9))
    table(tmp_path / "a.csv", "subject,age", *(f"person_{number:02},{10 * number}" for number in range(9)))
    words = ["subgroups", "--evaluation", str(cases), "--attributes", str(tmp_path / "a.csv"), "--json"]
    assert main([*words, "--bands", "age=0,50", "--fewest", "4", "--class", "front"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["class"], answer["fewest_subjects"]) == ("front", 4)
    assert [group["group"] for group in answer["attributes"][0]["groups"]] == ["0-50", "50+"]
    assert all(group["scores"]["dice"] for group in answer["attributes"][0]["groups"])
    assert main([*words, "--bands", "age=young"]) == 2
    assert main([*words, "--class", "left"]) == 3


def test_attributes_of_dicom_series_name_nobody(tmp_path: Path) -> None:
    headers: dict[str, dict[str, object]] = {
        "a": {"PatientAge": "041Y", "PatientSex": "F", "Manufacturer": "Maker One "},
        "b": {"PatientAge": "018M", "PatientSex": "", "Manufacturer": "MAKER ONE", "InstitutionName": "St. Elsewhere"},
        "c": {"PatientAge": "", "PatientSex": "X", "MagneticFieldStrength": "3", "InstitutionName": "General"},
    }
    for name, header in headers.items():
        personal = {"PatientName": "Zyxwvut^Qponmlk", "PatientBirthDate": "19380507", "PatientID": name}
        write_mr_series(tmp_path / name, lopsided_array(), oblique_affine(), header={**personal, **header})
    cases = find_images(tmp_path)
    found = dicom_attributes(cases)
    assert found.by == "case"
    assert found.values["age_band"] == {"a": "40-60", "b": "0-40", "c": ""}
    assert found.values["sex"] == {"a": "F", "b": "", "c": ""}
    assert found.values["manufacturer"]["a"] == found.values["manufacturer"]["b"] == "MAKER ONE"
    assert found.values["slice_thickness_mm"]["a"] == f"{np.linalg.norm(oblique_affine()[:3, 2]):g}"
    assert found.values["field_strength_t"]["c"] == "3"
    assert "institution" not in found.values
    told = dicom_attributes(cases, "numbered")
    assert told.values["institution"] == {"a": "", "b": "site 1", "c": "site 2"}
    assert dicom_attributes(cases, "named").values["institution"]["b"] == "St. Elsewhere"
    for secret in ("Zyxwvut", "1938", "Elsewhere"):
        assert secret not in repr(told)


def test_the_verb_subgroups_reads_dicom_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        header = {"PatientID": str(number), "PatientSex": "FM"[number], "PatientAge": "050Y"}
        write_mr_series(tmp_path / f"dicom/case_{number:02}", lopsided_array(), oblique_affine(), header=header)
    cases = write_evaluation(tmp_path / "e", people(3))
    assert main(["subgroups", "--evaluation", str(cases), "--dicom", str(tmp_path / "dicom"), "--json"]) == 0
    found = {part["attribute"]: part["groups"] for part in json.loads(capsys.readouterr().out)["attributes"]}
    assert [group["group"] for group in found["age_band"]] == ["40-60", "(not given)"]
    assert [(group["group"], group["subjects"]) for group in found["sex"]] == [("F", 1), ("M", 1), ("(not given)", 1)]


def test_images_without_a_header_have_no_attributes_to_read() -> None:
    with pytest.raises(
        InputRefusedError, match="no series of DICOM files with a header; give a table with --attributes"
    ):
        dicom_attributes(find_images(EXAMPLES / "images")[:2])

"""Two bundles on the same cases: the paired difference of every score, and whether it may be chance."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from monai_unet_app.metrics import bootstrap
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, fewest_subjects, finite_or_none
from monai_unet_app.metrics.plan import Units, units_of
from monai_unet_app.metrics.score_registry import SCORES
from monai_unet_app.report.stored_evaluation import MEAN, StoredEvaluation, read_evaluation

from .pairing import Pairs, pair
from .rank_tests import RankTest, holm, rank_test_entry, signed_rank, subject_means

TOP_LABEL = "top label"  # in cases.csv, the calibration error of the row "mean" is that of the top label
CALIBRATION_ERRORS = ("ece_whole", "ece_band")
"""Columns of cases.csv with the calibration error of each case, lower is better."""

Word = Literal["better", "worse", "same", "too few"]


@dataclass(frozen=True)
class Difference:
    """One score of one class, in both evaluations.

    Attributes:
        score: Column of cases.csv; lengths carry their unit in the name.
        class_name: A class, "mean" over classes, or for calibration errors "top label".
        lower_is_better: True for distances and calibration errors.
        first: Mean of the first evaluation over the cases in which both evaluations have a value; NaN without such a case.
        second: The same for the second evaluation.
        estimate: `second - first`, a mean over these cases, with its interval by subject.
        undefined: Number of cases without a value in the first and in the second evaluation.
        test: Wilcoxon signed-rank test on the subjects' mean differences.
        word: The second evaluation compared with the first, by the interval: "same" where the interval holds 0, "too few"
            below the number of subjects that an interval needs.
    """

    score: str
    class_name: str
    lower_is_better: bool
    first: float
    second: float
    estimate: Estimate
    undefined: tuple[int, int]
    test: RankTest
    word: Word

    @property
    def key(self) -> str:
        """The name of this row within its comparison."""
        return f"{self.score}, {self.class_name}"

    @property
    def gain(self) -> tuple[float, float]:
        """The interval, with the sign at which values above 0 mean that the second evaluation is better."""
        low, high = self.estimate.low, self.estimate.high
        return (-high, -low) if self.lower_is_better else (low, high)

    @property
    def note(self) -> str:
        """Says how many cases were left out of this row; empty if none was."""
        if not any(self.undefined):
            return ""
        return f"{self.key}: without a value in {self.undefined[0]} case(s) of the first, {self.undefined[1]} of the second"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, compared.

    Attributes:
        pairs: The two evaluations, their cases and subjects.
        differences: One entry for each score and class.
        how: Seed, resamples and level of the intervals.
    """

    pairs: Pairs
    differences: tuple[Difference, ...]
    how: Bootstrap

    @property
    def subjects(self) -> int:
        """The number of subjects."""
        return len(set(self.pairs.subjects.values()))

    @property
    def fewest(self) -> int:
        """The least number of subjects for an interval and a test."""
        return fewest_subjects(self.how.level)

    def of(self, score: str, class_name: str) -> Difference:
        """The entry of a score and class. Raises KeyError if there is no such entry."""
        return {entry.key: entry for entry in self.differences}[f"{score}, {class_name}"]

    def as_dict(self) -> dict[str, Any]:
        """The content of comparison.json; `comparison.schema.json` explains each entry."""
        return {
            "schema_version": "1.0",
            "first": _measured(self.pairs.first),
            "second": _measured(self.pairs.second),
            "cases": len(self.pairs.subjects),
            "subjects": self.subjects,
            "left_out": list(self.pairs.left_out),
            "fewest_subjects": self.fewest,
            "interval": self.how.document(),
            "scores": [_entry(difference) for difference in self.differences],
            "definitions": comparison_definitions(self),
        }


def compare(
    first: Path,
    second: Path,
    *,
    common: bool = False,
    how: Bootstrap | None = None,
    names: tuple[str, str] = ("first", "second"),
) -> Comparison:
    """Two evaluation folders, paired by case.

    Args:
        first: Folder with metrics.json and cases.csv.
        second: The other folder. Differences are second minus first; the words describe the second evaluation.
        common: Compare the cases that both have, and leave the others out.
        how: Seed, resamples and level of the intervals.
        names: What a refusal calls the two evaluations.

    Returns:
        Dice, IoU, boundary IoU, surface Dice, HD95 and ASSD for each class and as mean, and the cases' own calibration
        errors, whole and band, for each class and the top label. The same whatever the order of the rows.

    Raises:
        InputRefusedError: The two cannot be paired: other cases, data, classes, lengths, bins or definitions.
    """
    pairs, how = pair(read_evaluation(first), read_evaluation(second), common=common, names=names), how or Bootstrap()
    rows = [*pairs.first.document["classes"], MEAN]
    differences = [
        _difference(pairs, column, row, lower_is_better, how)
        for column, lower_is_better in compared_columns(units_of(pairs.first.document["planar"])).items()
        for row in rows
    ]
    # Adjusted over the whole table: each score of each class is another chance of a low p.
    adjusted = holm({entry.key: entry.test.p for entry in differences})
    tested = [replace(entry, test=replace(entry.test, p_holm=adjusted[entry.key])) for entry in differences]
    return Comparison(pairs, tuple(tested), how)


def compared_columns(units: Units) -> dict[str, bool]:
    """The columns of cases.csv that are compared -> whether lower is better."""
    compared = {score.key(units): score.better == "lower" for score in SCORES if score.better}
    return compared | dict.fromkeys(CALIBRATION_ERRORS, True)


def comparison_definitions(comparison: Comparison) -> dict[str, str]:
    """One sentence for each column of the table."""
    level = f"{100 * comparison.how.level:g} %"
    return {
        "difference": "Second minus first, case by case, then a mean over the cases in which both have a value.",
        "interval": f"{level} percentile bootstrap of that mean; subjects are drawn again, each with all of their cases.",
        "word": f"Of the second, by the interval: same where it holds 0; too few below {comparison.fewest} subjects.",
        "p": "Wilcoxon signed-rank, two-sided, on each subject's mean difference, differences of 0 left out; p_method says "
        "whether it is exact.",
        "p_holm": "p adjusted by Holm for all p of this table.",
        "ece_whole": "Calibration error of each single case, then the mean over cases; it is not the pooled figure of "
        "metrics.json.",
        "ece_band": "The same in the band around each bundle's own predicted surface.",
        "undefined": "A distance where one mask is empty, a band where nothing was found; such pairs are left out.",
    }


def _difference(pairs: Pairs, score: str, row: str, lower_is_better: bool, how: Bootstrap) -> Difference:
    columns = [evaluation.table.values(score, row) for evaluation in (pairs.first, pairs.second)]
    first, second = (np.array([column[case] for case in pairs.subjects]) for column in columns)
    subjects = list(pairs.subjects.values())
    with np.errstate(invalid="ignore"):  # two infinite distances give NaN
        change = second - first
    # Both means are over the same cases, so that they differ by the printed difference.
    used = np.isfinite(change)
    estimate = bootstrap.bootstrap_paired_difference(second, first, subjects, how)
    test = signed_rank(list(subject_means(change, subjects).values()), fewest_subjects(how.level))
    return Difference(
        score,
        TOP_LABEL if row == MEAN and score in CALIBRATION_ERRORS else row,
        lower_is_better,
        bootstrap.finite_mean(first[used]),
        bootstrap.finite_mean(second[used]),
        estimate,
        (int((~np.isfinite(first)).sum()), int((~np.isfinite(second)).sum())),
        test,
        _word(estimate, lower_is_better, how),
    )


def _word(estimate: Estimate, lower_is_better: bool, how: Bootstrap) -> Word:
    if estimate.subjects < fewest_subjects(how.level):
        return "too few"
    if estimate.low <= 0 <= estimate.high:
        return "same"
    # The interval lies wholly on one side of 0; the side below is good for distances and errors.
    return "better" if (estimate.high < 0) == lower_is_better else "worse"


def _measured(evaluation: StoredEvaluation) -> dict[str, Any]:
    bundle, data = evaluation.document["bundle"], evaluation.document["data"]
    return {
        "bundle": {key: bundle[key] for key in ("name", "version", "sha256")},
        "data": {key: data.get(key, "") for key in ("name", "sha256", "partition")},
    }


def _entry(difference: Difference) -> dict[str, Any]:
    estimate, test = difference.estimate, difference.test
    return {
        "score": difference.score,
        "class": difference.class_name,
        "lower_is_better": difference.lower_is_better,
        "first": finite_or_none(difference.first),
        "second": finite_or_none(difference.second),
        "difference": finite_or_none(estimate.value),
        "interval": estimate.interval,
        "cases": estimate.cases,
        "subjects": estimate.subjects,
        "undefined": {"first": difference.undefined[0], "second": difference.undefined[1]},
        **rank_test_entry(test),
        "word": difference.word,
    }

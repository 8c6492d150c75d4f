"""One bundle against another on the same cases: every score's paired difference, and whether it can be chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from monai_unet_app.metrics import Bootstrap, Estimate, bootstrap_paired_difference, fewest_subjects

from .paired_evaluations import MEAN, EvaluationFiles, Pairs, pair, read_evaluation
from .rank_tests import RankTest, finite, holm, rank_test_entry, signed_rank, subject_means

TOP_LABEL = "top label"  # what the row "mean" of cases.csv holds of a calibration error
HIGHER = ("dice", "iou", "boundary_iou", "surface_dice")
LOWER = ("hd95", "assd", "ece_whole", "ece_band")
Word = Literal["better", "worse", "same", "too few"]


@dataclass(frozen=True)
class Difference:
    """One score of one class, in both evaluations.

    Attributes:
        score: Column of cases.csv; lengths carry their unit in the name.
        class_name: A class, "mean" over classes, or for calibration errors "top label".
        lower_is_better: True for distances and calibration errors.
        first: Mean over the cases in which both have a value; NaN where there is none.
        second: Same for the second.
        estimate: `second - first`, a mean over these cases, with its interval by subject.
        undefined: Cases without a value in the first and in the second.
        test: Wilcoxon signed-rank test on the subjects' mean differences.
        word: What the second is, by the interval: "same" where it holds 0, "too few" where subjects are too few for an
            interval to keep its promise.
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
        """Names the figure within its comparison."""
        return f"{self.score}, {self.class_name}"

    @property
    def gain(self) -> tuple[float, float]:
        """The interval with its sign turned so that above 0 the second is better."""
        low, high = self.estimate.low, self.estimate.high
        return (-high, -low) if self.lower_is_better else (low, high)

    @property
    def note(self) -> str:
        """Where cases had to be left out of this figure; else ""."""
        if not any(self.undefined):
            return ""
        return f"{self.key}: without a value in {self.undefined[0]} case(s) of the first, {self.undefined[1]} of the second"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, compared.

    Attributes:
        pairs: The two, their cases and subjects.
        differences: One entry for each score and class.
        how: How the intervals were drawn.
    """

    pairs: Pairs
    differences: tuple[Difference, ...]
    how: Bootstrap

    @property
    def subjects(self) -> int:
        """How many people stand behind the cases."""
        return len(set(self.pairs.subjects.values()))

    @property
    def fewest(self) -> int:
        """With fewer subjects nothing is said."""
        return fewest_subjects(self.how.level)

    def of(self, score: str, class_name: str) -> Difference:
        """One entry. Raises KeyError if there is none."""
        return {entry.key: entry for entry in self.differences}[f"{score}, {class_name}"]

    def as_dict(self) -> dict[str, Any]:
        """What comparison.json holds; `comparison.schema.json` says what each entry means."""
        how = self.how
        return {
            "schema_version": "1.0",
            "first": _measured(self.pairs.first),
            "second": _measured(self.pairs.second),
            "cases": len(self.pairs.subjects),
            "subjects": self.subjects,
            "left_out": list(self.pairs.left_out),
            "fewest_subjects": self.fewest,
            "interval": {
                "method": "bootstrap by subject",
                "level": how.level,
                "resamples": how.resamples,
                "seed": how.seed,
            },
            "scores": [_entry(difference) for difference in self.differences],
            "definitions": definitions(self),
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
        second: The other. Differences are second minus first, words are said of the second.
        common: Compare the cases that both have, and leave the others out.
        how: Seed, resamples and level of the intervals.
        names: What a refusal calls the two.

    Returns:
        Dice, IoU, boundary IoU, surface Dice, HD95 and ASSD for each class and as mean, and the cases' own calibration
        errors, whole and band, for each class and the top label. The same whatever the order of the rows.

    Raises:
        InputRefusedError: The two cannot be paired: other cases, data, classes, lengths, bins or definitions.
    """
    pairs = pair(read_evaluation(first), read_evaluation(second), common=common, names=names)
    return compare_pairs(pairs, how or Bootstrap())


def compare_pairs(pairs: Pairs, how: Bootstrap) -> Comparison:
    """Every score and class of two paired evaluations."""
    rows = [*pairs.first.document["classes"], MEAN]
    found = [
        _difference(pairs, score, row, lower_is_better, how)
        for score, lower_is_better in scores_of(pairs.first.document["unit"]).items()
        for row in rows
    ]
    adjusted = holm({entry.key: entry.test.p for entry in found})
    told = [replace(entry, test=replace(entry.test, p_holm=adjusted[entry.key])) for entry in found]
    return Comparison(pairs, tuple(told), how)


def scores_of(unit: str) -> dict[str, bool]:
    """The scores that are compared, as columns of cases.csv, and whether lower is better."""
    lower = [f"{name}_{unit}" if name in ("hd95", "assd") else name for name in LOWER]
    return dict.fromkeys(HIGHER, False) | dict.fromkeys(lower, True)


def definitions(comparison: Comparison) -> dict[str, str]:
    """One sentence for each thing that the table says."""
    level = f"{100 * comparison.how.level:g} %"
    return {
        "difference": "Second minus first, case by case, then a mean over the cases in which both have a value.",
        "interval": f"{level} percentile bootstrap of that mean; subjects are drawn again, each with all of their cases.",
        "word": f"Of the second, by the interval: same where it holds 0; too few below {comparison.fewest} subjects.",
        "p": "Wilcoxon signed-rank, two-sided, on each subject's mean difference, differences of 0 dropped; p_method says "
        "whether it is exact.",
        "p_holm": "p adjusted by Holm for all p of this table.",
        "ece_whole": "Calibration error of each case alone, then a mean over cases; no pooled figure as in metrics.json.",
        "ece_band": "The same in the band around each bundle's own predicted surface.",
        "undefined": "A distance where one mask is empty, a band where nothing was found; such pairs are left out.",
    }


def _difference(pairs: Pairs, score: str, row: str, lower_is_better: bool, how: Bootstrap) -> Difference:
    columns = [found.table.values(score, row) for found in (pairs.first, pairs.second)]
    first, second = (np.array([column[case] for case in pairs.subjects]) for column in columns)
    subjects = list(pairs.subjects.values())
    with np.errstate(invalid="ignore"):
        change = second - first
    used = np.isfinite(change)
    estimate = bootstrap_paired_difference(second, first, subjects, how)
    test = signed_rank(list(subject_means(change, subjects).values()), fewest_subjects(how.level))
    return Difference(
        score,
        TOP_LABEL if row == MEAN and score.startswith("ece") else row,
        lower_is_better,
        float(first[used].mean()) if used.any() else math.nan,
        float(second[used].mean()) if used.any() else math.nan,
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
    return "better" if (estimate.high < 0) == lower_is_better else "worse"


def _measured(evaluation: EvaluationFiles) -> dict[str, Any]:
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
        "first": finite(difference.first),
        "second": finite(difference.second),
        "difference": finite(estimate.value),
        "interval": [estimate.low, estimate.high] if math.isfinite(estimate.low) else None,
        "cases": estimate.cases,
        "subjects": estimate.subjects,
        "undefined": {"first": difference.undefined[0], "second": difference.undefined[1]},
        **rank_test_entry(test),
        "word": difference.word,
    }

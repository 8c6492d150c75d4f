"""Tests that tell change from chance, with one value for each subject, since people were drawn and not cases.

Sources: Wilcoxon, Biometrics Bulletin 1 (1945) 80-83; Kruskal & Wallis, JASA 47 (1952) 583-621; Holm, Scandinavian
Journal of Statistics 6 (1979) 65-70.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from monai_unet_app.metrics.bootstrap import finite_or_none

Floats = NDArray[np.float64]
DIGITS = 12  # decimals of means and differences; rounding keeps ties, which rank tests depend on
# 13 subjects have 2**13 = 8192 sets of signs.
MOST_EXACT, MOST_FLIPS = 50, 13  # largest number of subjects for an exact test, without and with ties
EXACT, APPROXIMATE, CHI_SQUARE = "exact", "normal approximation", "chi-square approximation"


@dataclass(frozen=True)
class RankTest:
    """A p value, or the reason why there is none.

    Attributes:
        p: Two-sided, 0 to 1; NaN where the test is not defined.
        method: The method of the test; empty without a p value.
        reason: The reason why there is no p value; empty with a p value.
        p_holm: Adjusted for all tests of the same table.
    """

    p: float = float("nan")
    method: str = ""
    reason: str = ""
    p_holm: float = float("nan")


def subject_means(values: ArrayLike, subjects: Sequence[str]) -> dict[str, float]:
    """Mean of the finite values, shape (N,), of each subject's cases, by name; subjects without a value are left out."""
    values = np.asarray(values, dtype=np.float64)
    used = np.isfinite(values)
    names, member = np.unique(np.asarray(subjects, dtype=str)[used], return_inverse=True)
    sums, counts = np.bincount(member, values[used], len(names)), np.bincount(member, minlength=len(names))
    return dict(zip(map(str, names), np.round(sums / counts, DIGITS).tolist(), strict=True))


def signed_rank(differences: ArrayLike, fewest: int = 6) -> RankTest:
    """Two-sided Wilcoxon signed-rank test of differences, one difference for each subject.

    Differences of 0 are dropped, as Wilcoxon does. The test is exact for up to 50 differences without ties, and, by all sign
    flips, for up to 13 with ties; otherwise it is the normal approximation with its correction for ties.

    Args:
        differences: Shape (S,), finite.
        fewest: With fewer subjects there is no test.
    """
    values = np.round(np.asarray(differences, dtype=np.float64), DIGITS)
    if len(values) < fewest:
        return RankTest(reason=f"{len(values)} subject(s), at least {fewest} are needed")
    values = values[values != 0]
    if not len(values):
        return RankTest(reason="all differences are 0")
    has_ties = len(np.unique(np.abs(values))) < len(values)
    if not has_ties and len(values) <= MOST_EXACT:
        return RankTest(float(stats.wilcoxon(values, method="exact").pvalue), EXACT)
    if len(values) <= MOST_FLIPS:
        return RankTest(_by_sign_flips(values), EXACT)
    return RankTest(float(stats.wilcoxon(values, method="approx").pvalue), APPROXIMATE)


def _by_sign_flips(values: Floats) -> float:
    """The exact test with mean ranks for ties: under the null hypothesis all sets of signs are equally likely."""
    # The statistic is Wilcoxon's sum of the positive ranks. With as many resamples as there are sets of signs, scipy
    # tries each set once.
    ranks = stats.rankdata(np.abs(values))
    flips = stats.permutation_test(
        (ranks * np.sign(values),),
        lambda signed, axis: signed.clip(0).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2 ** len(values),
    )
    return float(flips.pvalue)


def rank_groups(groups: Sequence[Sequence[float]]) -> RankTest:
    """Kruskal-Wallis test of groups with one value for each subject, no subject in two groups; p by chi-square."""
    if len(groups) < 2:
        return RankTest(reason=f"{len(groups)} group(s) with enough subjects, at least 2 are needed")
    rounded = [np.round(np.asarray(group, dtype=np.float64), DIGITS) for group in groups]
    # With all ranks tied the statistic is 0 / 0.
    if len(np.unique(np.concatenate(rounded))) == 1:
        return RankTest(reason="all values are the same")
    return RankTest(float(stats.kruskal(*rounded).pvalue), CHI_SQUARE)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment over the p values that are defined; the others stay NaN."""
    ordered = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = dict.fromkeys(p_values, float("nan"))
    least = 0.0
    # The smallest p counts for all tests, the next for one fewer, and so on; adjusted p values keep their order.
    for rank, (p, name) in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - rank) * p))
        adjusted[name] = least
    return adjusted


def rank_test_entry(test: RankTest) -> Mapping[str, Any]:
    """A test as an entry of a document; undefined values are None."""
    return {
        "p": finite_or_none(test.p),
        "p_holm": finite_or_none(test.p_holm),
        "p_method": test.method,
        "p_undefined": test.reason,
    }

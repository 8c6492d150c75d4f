"""Counts how often decisions of each confidence come true in a case. The counts can be added up over cases.

Probabilities are calibrated if decisions with a confidence of 0.8 come true eight times in ten.

A single pass over a case counts, for each bin of confidence, the voxels in it, the right voxels among them and the sum of their
confidences. Every calibration figure (ECE, MCE, ACE, diagram, histogram) is computed from these counts: per case, or pooled
after the counts of the cases are added up. Counts are int64 and sums float64, since float32 cannot count beyond 2**24 voxels,
which is less than one large volume.

The counts are kept in bins that are narrower than those of the diagram (`NarrowBins`), some hundred for each class whatever
the size of the data. The equal-width bins are sums of narrow bins. Bins of equal mass are cut from the narrow bins at the end,
since their edges are not known before all cases are counted.

Three things define a calibration figure: the binning (equal width unless stated otherwise), the population, and the level (per
case or pooled). The population may be chosen by the prediction, never by the truth of the same voxel: labels that are drawn
from a model's own probabilities are calibrated in "whole" and in a band around the *predicted* surface, but far from
calibrated in "truth or prediction".

Sources: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (ECE, MCE); Barfoot et al.,
arXiv:2506.03942 and MONAI (ACE as the plain mean over equal-width bins); Nixon et al., Measuring Calibration
in Deep Learning, CVPR workshops 2019, arXiv:1904.01685 (ACE over equal-mass bins, here `ace_equal_mass`).
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .outputs import Outputs

BINS = 15
# Row of the counts for the top label, the channel with the largest probability; channel c has row c + 1.
TOP_LABEL = 0
# Voxels, and probabilities of all channels, that a thread counts at once, and threads: limits for the memory of the copies.
_CHUNK, _VALUES, _THREADS = 1 << 18, 1 << 21, 8
# Smallest probability whose logarithm is taken (the float32 step below 1), so that a single 0 stays finite.
NLL_FLOOR = 2.0**-24

# Even parts of each bin. A power of two, so that the multiplication is exact and no part crosses the edge of its bin.
PARTS = 16
# The parts at 0 and at 1 are cut into rungs, four for each halving of the distance to the end, down to 2**-24.
# A rung is the upper bits of the float32 of the distance: its exponent (bias 127) and the first 2 bits of its mantissa.
_SHIFT, _LEAST = 21, (127 - 24 << 2) - 1

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class NarrowBins:
    """The narrow bins: B equal bins with 16 even parts each; the first and the last part are cut into narrower rungs.

    Nearly all confidences of a segmentation are near 0 or 1, so the parts there are cut further. A rung is a quarter of a
    halving of the distance to 0 (or to 1): 0.0039, 0.0034, ... 2**-24. All narrow bins are in the order of confidence.

    Attributes:
        bins: Number B of equal bins over 0 to 1; bin b is [b/B, (b+1)/B), the last bin holds 1.0 as well.
    """

    bins: int

    @property
    def even(self) -> int:
        """Number of even parts of 0 to 1."""
        return PARTS * self.bins

    @property
    def rungs(self) -> int:
        """Number of rungs in the first part; the last part has the same number."""
        return int(np.float32(1 / self.even).view(np.int32) >> _SHIFT) - _LEAST + 1

    @property
    def number(self) -> int:
        """Number of narrow bins."""
        return self.even + 2 * (self.rungs - 1)

    def index(self, confidence: NDArray[Any]) -> NDArray[np.int32]:
        """Narrow bin of each confidence, 0 to 1, same shape: a sum of three counts, which only grow with confidence."""
        index: NDArray[np.int32] = (confidence * confidence.dtype.type(self.even)).astype(np.int32)
        # A confidence of exactly 1 lies in the last part, which is closed at both ends.
        np.minimum(index, self.even - 1, out=index)
        # Near 0 the first rung grows with the confidence; near 1 the second rung shrinks with the distance to 1.
        # Elsewhere both have their largest value and cancel out. The last line makes the least index 0.
        index += self._rung(confidence)
        index -= self._rung(1 - confidence)
        index += self.rungs - 1
        return index

    def _rung(self, distance: NDArray[Any]) -> NDArray[np.int32]:
        """The rung of each distance from 0 or 1, same shape, from `_LEAST` on; distances beyond the part have the last rung."""
        # The bits of positive floats, read as whole numbers, have the order of the floats. 0 and all distances below
        # 2**-24 share the rung `_LEAST`.
        rung = np.asarray(distance, dtype=np.float32).view(np.int32) >> _SHIFT
        return np.clip(rung, _LEAST, _LEAST + self.rungs - 1, out=rung)

    def summed(self, narrow: NDArray[Any]) -> NDArray[Any]:
        """Shape (..., B): the counts of the equal bins, from counts of the narrow bins, shape (..., F)."""
        # Where each equal bin begins: the rungs of the first part move all bins but the first. The last bin takes the
        # rest.
        first = self.rungs - 1 + PARTS * np.arange(self.bins)
        first[0] = 0
        return np.add.reduceat(narrow, first, axis=-1)


@dataclass(frozen=True)
class ReliabilityCounts:
    """Counts of one population; `+` merges the counts of two cases.

    Row 0 is the top label, row c + 1 is channel c against the rest.

    A *decision* is a voxel for exclusive classes, and a voxel of a label for overlapping labels.

    Attributes:
        bins: Number B of equal-width bins over 0 to 1.
        narrow_count: Shape (C + 1, F), int64. Decisions in each of the F narrow bins of `NarrowBins(bins)`.
        narrow_correct: Shape (C + 1, F), int64. Number of decisions that came true.
        narrow_confidence: Shape (C + 1, F), float64. Sum of the confidences.
        brier_sum: Sum of the squared errors of all decisions; for exclusive classes also over the channels.
        nll_sum: Sum over all decisions of -log of the probability of the true answer, floored at `NLL_FLOOR`.
    """

    bins: int
    narrow_count: Counts
    narrow_correct: Counts
    narrow_confidence: Floats
    brier_sum: float = 0.0
    nll_sum: float = 0.0

    @classmethod
    def empty(cls, channels: int, bins: int = BINS) -> "ReliabilityCounts":
        """Counts of nothing, the neutral element of `+`."""
        shape = (channels + 1, NarrowBins(bins).number)
        return cls(bins, np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float64))

    def __add__(self, other: "ReliabilityCounts") -> "ReliabilityCounts":
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"counts of shape {self.count.shape} and {other.count.shape} (channels + 1, bins) cannot be "
                "merged; the same channels and bins are needed"
            )
        return ReliabilityCounts(
            self.bins,
            self.narrow_count + other.narrow_count,
            self.narrow_correct + other.narrow_correct,
            self.narrow_confidence + other.narrow_confidence,
            self.brier_sum + other.brier_sum,
            self.nll_sum + other.nll_sum,
        )

    @property
    def count(self) -> Counts:
        """Shape (C + 1, B), int64: counts of the decisions in each bin of confidence."""
        return NarrowBins(self.bins).summed(self.narrow_count)

    @property
    def correct(self) -> Counts:
        """Shape (C + 1, B), int64: counts of the decisions that came true, in each bin of confidence."""
        return NarrowBins(self.bins).summed(self.narrow_correct)

    @property
    def confidence(self) -> Floats:
        """Shape (C + 1, B), float64: sum of the confidences in each bin, 0 to 1 each."""
        return NarrowBins(self.bins).summed(self.narrow_confidence)

    @property
    def in_bins(self) -> "BinCounts":
        """The counts of the equal bins alone."""
        return BinCounts(self.count, self.correct, self.confidence)

    @property
    def decisions(self) -> int:
        """Number of decisions."""
        return int(self.narrow_count[TOP_LABEL].sum())

    def accuracy(self, row: int = TOP_LABEL) -> Floats:
        """Shape (B,), 0 to 1: the part of the decisions of each bin that came true; NaN for an empty bin."""
        return _divide(self.correct[row], self.count[row])

    def mean_confidence(self, row: int = TOP_LABEL) -> Floats:
        """Shape (B,), 0 to 1: mean confidence of each bin; NaN for an empty bin."""
        return _divide(self.confidence[row], self.count[row])


@dataclass(frozen=True)
class BinCounts:
    """Counts in the equal bins: what is kept of each case, a twentieth of its `ReliabilityCounts`, whose rows these are.

    Attributes:
        count: Shape (C + 1, B), int64. Decisions in each bin of confidence.
        correct: Shape (C + 1, B), int64. Number of decisions that came true.
        confidence: Shape (C + 1, B), float64. Sum of the confidences.
    """

    count: Counts
    correct: Counts
    confidence: Floats


def count_reliability(
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    *,
    outputs: Outputs,
    within: NDArray[np.bool_] | None = None,
    bins: int = BINS,
) -> ReliabilityCounts:
    """Reliability counts of one case in one population.

    Args:
        truth: Shape (C, ...) boolean, a channel for each channel of `probabilities`, background included for exclusive
            classes. Exclusive classes also as shape (...) of whole numbers: the channel that is true at each voxel.
        probabilities: Shape (C, ...), 0 to 1. Exclusive classes (softmax) sum to 1 at each voxel.
        outputs: What the channels are. Exclusive classes: the top label is the channel with the largest probability.
            Overlapping labels: each is a decision of its own with confidence max(p, 1 - p), and row 0 counts all of them.
        within: Shape (...) boolean population, or None for the whole image. Must not be chosen by the truth.
        bins: Number of equal bins; bin b is [b/B, (b+1)/B), the last bin holds 1.0 as well.

    Raises:
        ValueError: Shapes differ, a probability is not within 0 to 1, or exclusive classes have probabilities that do not sum
            to 1, or a truth that is not exactly one channel at each voxel.
    """
    _check_shapes(truth, probabilities, within, outputs)
    total = ReliabilityCounts.empty(len(probabilities), bins)
    with ThreadPoolExecutor(max_workers=min(_THREADS, os.cpu_count() or 1)) as pool:
        # The pieces are added in their order, whichever thread is done first, so that float sums are the same in every
        # run.
        pieces = _pieces(truth, probabilities, within)
        for counts in pool.map(lambda piece: _count_piece(*piece, outputs=outputs, bins=NarrowBins(bins)), pieces):
            total = total + counts
    return total


def count_populations(
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    within: Mapping[str, NDArray[np.bool_] | None],
    *,
    outputs: Outputs,
    bins: int = BINS,
) -> dict[str, ReliabilityCounts]:
    """Reliability counts of one case in several populations, by their names.

    Args:
        truth: As in `count_reliability`.
        probabilities: As in `count_reliability`; 0 to 1.
        within: Shape (...) boolean for each population, or None for the whole image.
        outputs: As in `count_reliability`.
        bins: As in `count_reliability`.

    Raises:
        ValueError: As `count_reliability`.
    """
    return {
        name: count_reliability(truth, probabilities, outputs=outputs, within=mask, bins=bins)
        for name, mask in within.items()
    }


def expected_calibration_error(counts: ReliabilityCounts | BinCounts, row: int = TOP_LABEL) -> float:
    """ECE, 0 to 1: mean gap between confidence and accuracy, bins weighted by their decisions. NaN without decisions."""
    return float(expected_gap(counts.count[row], counts.correct[row], counts.confidence[row]))


def maximum_calibration_error(counts: ReliabilityCounts, row: int = TOP_LABEL) -> float:
    """MCE, 0 to 1: the largest gap of a bin that is not empty. NaN without decisions."""
    gaps = _gaps(counts, row)
    return float(gaps.max()) if gaps.size else float("nan")


def average_calibration_error(counts: ReliabilityCounts, row: int = TOP_LABEL) -> float:
    """ACE as in MONAI and Barfoot, 0 to 1: plain mean of the gaps of the bins that are not empty. NaN without decisions."""
    gaps = _gaps(counts, row)
    return float(gaps.mean()) if gaps.size else float("nan")


def equal_mass_calibration_error(counts: ReliabilityCounts, row: int = TOP_LABEL, *, bins: int | None = None) -> float:
    """ACE over bins of equal mass, 0 to 1: mean gap of bins with the same share of the decisions. NaN without decisions.

    The decisions, in the order of their confidence, are cut into equal shares. A cut within a narrow bin divides its right
    decisions and its confidence in proportion. So if a narrow bin holds more than a share, all shares within it have its gap,
    and two errors of opposite sign in a narrow bin cancel out. A narrow bin is 1 / (16 B) wide, and near 0 and 1 a quarter
    of the distance to the end.

    Args:
        counts: Counts of one case, or pooled.
        row: Row of the top label or of a channel; Nixon's ACE is the mean over the rows of all channels.
        bins: Number of shares; None for the number of equal-width bins.

    Source: Nixon et al., Measuring Calibration in Deep Learning, arXiv:1904.01685.
    """
    filled = np.flatnonzero(counts.narrow_count[row])
    if not filled.size:
        return float("nan")
    # The summed gap as a function of the summed mass, straight within a narrow bin: its rise over a share is the share's
    # gap.
    mass = np.cumsum(counts.narrow_count[row, filled])
    gap = np.cumsum(counts.narrow_correct[row, filled] - counts.narrow_confidence[row, filled])
    cuts = np.linspace(0, mass[-1], (bins or counts.bins) + 1)
    shares = np.diff(np.interp(cuts, [0, *mass], [0, *gap]))
    return float(np.abs(shares).sum() / mass[-1])


CALIBRATION_ERRORS: Mapping[str, Callable[[ReliabilityCounts, int], float]] = {
    "ece": expected_calibration_error,
    "mce": maximum_calibration_error,
    "ace": average_calibration_error,
    "ace_equal_mass": equal_mass_calibration_error,
}
"""The errors of a row of counts, by their keys in metrics.json."""


def brier_score(counts: ReliabilityCounts) -> float:
    """Mean squared error of the probabilities: 0 to 2 for exclusive classes (summed over channels), else 0 to 1."""
    return counts.brier_sum / counts.decisions if counts.decisions else float("nan")


def negative_log_likelihood(counts: ReliabilityCounts) -> float:
    """Mean of -log of the probability of the true answer, in nats; NaN without decisions."""
    return counts.nll_sum / counts.decisions if counts.decisions else float("nan")


def expected_gap(count: NDArray[Any], correct: NDArray[Any], confidence: NDArray[Any]) -> Floats:
    """ECE, 0 to 1, shape (...), from sums of shape (..., B): |correct - confidence| over the bins / all counted."""
    # n/N x |correct/n - confidence/n|: n cancels out, so an empty bin is no special case.
    return _divide(np.abs(correct - confidence).sum(axis=-1), count.sum(axis=-1))


def _gaps(counts: ReliabilityCounts, row: int) -> Floats:
    """|accuracy - confidence| of the bins that are not empty."""
    gaps: Floats = np.abs(counts.accuracy(row) - counts.mean_confidence(row))[counts.count[row] > 0]
    return gaps


def _count_piece(
    truth: NDArray[Any], p: NDArray[Any], inside: slice | NDArray[Any], *, outputs: Outputs, bins: NarrowBins
) -> ReliabilityCounts:
    """Counts of the voxels `inside` a piece; p has shape (C, N), truth (C, N) boolean or (N,) numbers."""
    p = np.ascontiguousarray(p[:, inside], dtype=np.promote_types(p.dtype, np.float32))  # float16 falls into other bins
    truth = truth[..., inside]
    _check_range(p)
    hits = [truth == c for c in range(len(p))] if truth.ndim == 1 else list(truth)
    rows = outputs.rows(p, hits, partial(_histogram, bins=bins))
    # The sum of (p - hit)^2 is the sum of p^2, minus 2 p and plus 1 where the channel is true.
    squares = sum(float(np.square(channel, dtype=np.float64).sum()) for channel in p)
    brier = squares + float(rows.hit.size - 2 * rows.hit.sum(dtype=np.float64))
    # Labels that may overlap are decisions of their own: an untrue label gives 1 - p (binary cross-entropy).
    likelihood = np.maximum(np.concatenate([rows.hit, *rows.spared]), NLL_FLOOR)
    nll = -float(np.log(likelihood, dtype=np.float64).sum())
    return ReliabilityCounts(
        bins.bins, rows.held.sum(axis=2), rows.held[..., 1], rows.confidence.sum(axis=2), brier, nll
    )


def _histogram(confidence: NDArray[Any], kind: NDArray[Any], kinds: int, bins: NarrowBins) -> tuple[Counts, Floats]:
    """Number and sum of confidence, each of shape (narrow bins, kinds); `kind` is the kind of each decision, from 0 on."""
    index = bins.index(confidence)
    # Bin and kind become one index, so that a single pass counts both.
    index *= kinds
    index += kind
    # The index type of bincount: converted here, not again in each of its two calls.
    index = index.astype(np.intp)
    size = bins.number * kinds
    held, total = np.bincount(index, minlength=size), np.bincount(index, weights=confidence, minlength=size)
    return held.astype(np.int64, copy=False).reshape(-1, kinds), np.asarray(total, np.float64).reshape(-1, kinds)


def _pieces(
    truth: NDArray[Any], probabilities: NDArray[Any], within: NDArray[np.bool_] | None
) -> Iterator[tuple[NDArray[Any], NDArray[Any], slice | NDArray[Any]]]:
    """Pieces of truth and probabilities in the order of memory, as views, each with the voxels of the population in it."""
    order = np.argsort(probabilities.strides[1:], kind="stable")[::-1]  # so that flattening copies nothing
    p, hit = _flat(probabilities, order), _flat(truth, order)
    inside = None if within is None else _flat(within, order)
    step = min(_CHUNK, max(1, _VALUES // len(p)))
    for start in range(0, p.shape[1], step):
        piece = slice(start, start + step)
        yield hit[..., piece], p[:, piece], slice(None) if inside is None else np.flatnonzero(inside[piece])


def _flat(array: NDArray[Any], order: NDArray[np.intp]) -> NDArray[Any]:
    """The grid axes in this order and merged into a single axis: shape (...) to (N,), (C, ...) to (C, N)."""
    lead = array.ndim - len(order)
    turned = array.transpose(*range(lead), *(lead + order))
    return turned.reshape(*array.shape[:lead], -1)


def _divide(top: NDArray[Any], bottom: NDArray[Any]) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(top, dtype=np.float64) / np.asarray(bottom, dtype=np.float64)


def _check_shapes(
    truth: NDArray[Any], probabilities: NDArray[Any], within: NDArray[Any] | None, outputs: Outputs
) -> None:
    numbers = outputs.are_numbers(truth, probabilities.shape[1:])
    if not numbers and (truth.shape != probabilities.shape or truth.dtype != np.bool_):
        raise ValueError(
            f"truth is {truth.dtype} {truth.shape}, probabilities have shape {probabilities.shape}; "
            "a boolean channel for each channel of the probabilities is needed, or for exclusive classes their numbers"
        )
    if numbers and truth.size and not 0 <= truth.min() <= truth.max() < len(probabilities):
        raise ValueError(
            f"truth holds classes {truth.min()} to {truth.max()}; 0 to {len(probabilities) - 1} are needed; map them"
        )
    if within is not None and (within.shape != probabilities.shape[1:] or within.dtype != np.bool_):
        raise ValueError(
            f"population is {within.dtype} {within.shape}; a boolean mask of {probabilities.shape[1:]} is needed"
        )


def _check_range(p: NDArray[Any]) -> None:
    if not p.size:
        return
    # 1e-6 allows for rounding in single precision, whose step is 1.2e-7 at 1.
    low, high = float(p.min()), float(p.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(
            f"probabilities run from {low:g} to {high:g}; 0 to 1 is needed; apply softmax or sigmoid first"
        )

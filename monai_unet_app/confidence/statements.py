"""What a bundle says about its own results: numbers in `configs/confidence.json`, and what they make of one case.

They are fitted on calibration subjects by `calibration.statement_fit`, separately for plain inference and for averages over
mirror images (`tta`): the two give different probabilities, so statements about one do not hold for the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dicom_io.coding import Whole
from dicom_io.segmentation import Segmentation, Structure
from monai_unet_app.bundle_folder import CONFIDENCE, BundleFiles
from monai_unet_app.errors import BundleError

from .border import BorderStatement, Cut
from .conformal import conformal_quantile, least_threshold_of_risk, subjects_needed
from .features import Features, describe
from .fitted_to import Setting, changed_since
from .json_document import JsonDocument
from .quality import Grade, QualityGate, Verdict
from .shift import ShiftDetector

THRESHOLDS = tuple(np.concatenate([np.arange(1, 10) / 1000, np.arange(1, 51) / 100]).round(3).tolist())
"""At which a mask of bounded risk may be cut."""

_SMALL_VOXELS = 10
"""Added to both sizes before their ratio is taken, so that tiny structures do not make it infinite."""

FAR = 2.0
"""An image this many times as far from the training's as flagged ones is reviewed, whatever the result looks like."""

_WORSE: tuple[Verdict, ...] = ("accept", "review", "reject")


@dataclass(frozen=True)
class Measured:
    """One structure of one sound calibration case.

    Attributes:
        subject: Of whom.
        structure: Its number.
        expected: Sum of its calibrated probabilities times the voxel's size, mL or pixels.
        true: True size.
        voxel: Size of a voxel.
        losses: Shape (T,). Part of the truth that a mask cut at each of THRESHOLDS misses.
    """

    subject: str
    structure: int
    expected: float
    true: float
    voxel: float
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class SizeStatement(JsonDocument):
    """Intervals for the true size of structures.

    Attributes:
        coverage: Part of new subjects' structures whose true size the interval holds, at least.
        log_ratios: Structure number -> (low, high) of log((true + small) / (expected + small)) at this coverage; None where
            there were too few subjects.
        small: In the unit of sizes.
        subjects: How many it was fitted on.
    """

    coverage: float
    log_ratios: Mapping[int, tuple[float, float] | None]
    small: float
    subjects: int

    @classmethod
    def fit(cls, measured: Sequence[Measured], coverage: float) -> SizeStatement:
        """Conformal by subject: as far to either side of the mean ratio as cases of other subjects are off."""
        small = _SMALL_VOXELS * float(np.median([one.voxel for one in measured]))
        found = {}
        for number in sorted({one.structure for one in measured}):
            rows = [one for one in measured if one.structure == number]
            off = np.array([math.log((one.true + small) / (one.expected + small)) for one in rows])
            found[number] = _about_centre(off, [one.subject for one in rows], coverage)
        return cls(coverage, found, small, len({one.subject for one in measured}))

    def interval(self, structure: int, expected: float) -> tuple[float, float] | None:
        """(low, high) in the unit of `expected`; None where nothing can be said of this structure."""
        ratios = self.log_ratios.get(structure)
        if ratios is None:
            return None
        low, high = ((expected + self.small) * math.exp(ratio) - self.small for ratio in ratios)
        return max(0.0, low), max(0.0, high)


def _about_centre(off: NDArray[np.float64], subjects: Sequence[str], coverage: float) -> tuple[float, float] | None:
    """(low, high) around the mean over subjects, or None where there are too few of them.

    How far a case is off is taken from the mean of all other subjects, as a new one's will be (the jackknife), so that
    nobody draws the centre towards himself.
    """
    _, member, cases = np.unique(np.asarray(subjects, dtype=str), return_inverse=True, return_counts=True)
    own = np.bincount(member, weights=off) / cases
    centre, count = own.mean(), len(own)
    if count < subjects_needed(coverage):
        return None
    others = (count * centre - own) / (count - 1)
    half = conformal_quantile(np.abs(off - others[member]), subjects, coverage)
    return float(centre - half), float(centre + half)


@dataclass(frozen=True)
class RiskStatement(JsonDocument):
    """Where to cut the probabilities so that little of the truth is missed.

    Attributes:
        risk: Expected part of the truth that the mask of a new subject misses, at most.
        thresholds: Structure number -> probability from which on a voxel belongs to the mask; None where there is none.
        subjects: How many it was fitted on.
    """

    risk: float
    thresholds: Mapping[int, float | None]
    subjects: int

    @classmethod
    def fit(cls, measured: Sequence[Measured], risk: float) -> RiskStatement:
        """Conformal risk control of the false-negative rate; see `least_threshold_of_risk`."""
        found = {}
        for number in sorted({one.structure for one in measured}):
            rows = [one for one in measured if one.structure == number]
            losses, subjects = np.array([one.losses for one in rows]), [one.subject for one in rows]
            found[number] = least_threshold_of_risk(losses, THRESHOLDS, subjects, risk)
        return cls(risk, found, len({one.subject for one in measured}))


@dataclass(frozen=True)
class Confidence(JsonDocument):
    """All statements of a bundle about results of a setting: an entry under `settings` of `configs/confidence.json`.

    Attributes:
        why_not: Name of an absent statement -> the reason.
        sizes, risk, gate, shift, border: The statements; None for a statement that the bundle does not make.
        wholes: Intervals for the structures that have parts, by number from 1 in the order of the bundle's wholes.
    """

    why_not: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    sizes: SizeStatement | None = None
    wholes: SizeStatement | None = None
    risk: RiskStatement | None = None
    gate: QualityGate | None = None
    shift: ShiftDetector | None = None
    border: BorderStatement | None = None


STATEMENTS = ("sizes", "risk", "gate", "shift", "border")
"""Names of all statements."""


def read_confidence(bundle: BundleFiles, setting: Setting) -> Confidence:
    """What the bundle says about results of this setting; without any statement, and with the reason, where it was not fitted.

    Statements that were fitted to other weights, configs or structures than the bundle has now are not its own.

    Raises:
        BundleError: Its confidence.json is damaged, or of another version.
    """
    try:
        document = bundle.confidence_document
        if document is None:
            return _nothing_stated(f"{bundle.name} was not calibrated; run monai-unet calibrate")
        found = document["settings"].get(setting)
        if found is None:
            return _nothing_stated(_NOT_FITTED[setting].format(bundle.name))
        if "fitted_to" not in found:
            return _nothing_stated(_NOT_SAID.format(bundle.name))
        if changed := changed_since(bundle, setting, found["fitted_to"]):
            return _nothing_stated(_CHANGED.format(bundle.name, ", ".join(changed)))
        return Confidence.from_document(found)
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{bundle.name}: {CONFIDENCE} cannot be used ({error}); calibrate the bundle again, or remove the file"
        ) from error


_NOT_FITTED: Mapping[Setting, str] = {
    "plain": "{} was calibrated for averages over mirror images only; run monai-unet calibrate",
    "tta": "{} was calibrated without --tta and states nothing of averages over mirror images; run monai-unet calibrate --tta, "
    "or leave --tta out of this command",
}


_CHANGED = "{} was changed after its statements were fitted ({}); run monai-unet calibrate again"
_NOT_SAID = (
    "{}: its statements do not say which weights and configs they were fitted to (an older version wrote them); run monai-unet "
    "calibrate again"
)


def _nothing_stated(why: str) -> Confidence:
    return Confidence(why_not=dict.fromkeys(STATEMENTS, why))


@dataclass(frozen=True)
class StructureAssessment:
    """What is said of one structure.

    Attributes:
        number: Of the structure.
        name: What people call it.
        size_interval: (low, high) that holds the true size with the stated coverage, mL or pixels; None if unknown, and for a
            structure that is cut off, since intervals hold for whole ones.
        grade: What the gate says; None without one.
        size: Of its mask, in the unit of the interval.
        cut: Where it is cut off by the border of the image; None if it is not, or the bundle does not know what is usual.
    """

    number: int
    name: str
    size_interval: tuple[float, float] | None
    grade: Grade | None
    size: float
    cut: Cut | None = None

    @property
    def verdict(self) -> Verdict | None:
        """The gate's, and `review` at least for a structure that is cut off; None if there is neither."""
        found = [self.grade.verdict] if self.grade else []
        return max([*found, "review"], key=_WORSE.index) if self.cut else next(iter(found), None)

    @property
    def is_beside_its_interval(self) -> bool:
        """Whether the mask and the probabilities that it was cut from disagree about the size."""
        return _is_beside(self.size, self.size_interval)


@dataclass(frozen=True)
class WholeAssessment:
    """What is said of several structures that are parts of one.

    Attributes:
        whole: What they are parts of.
        size_interval: (low, high) that holds their true size together with the stated coverage, mL or pixels; None if unknown.
        size: Of their masks together, in the unit of the interval.
    """

    whole: Whole
    size_interval: tuple[float, float] | None
    size: float

    @property
    def is_beside_its_interval(self) -> bool:
        """As of a structure."""
        return _is_beside(self.size, self.size_interval)


def _is_beside(size: float, interval: tuple[float, float] | None) -> bool:
    return interval is not None and not interval[0] <= size <= interval[1]


@dataclass(frozen=True)
class Assessment:
    """What a bundle says of one of its results.

    Attributes:
        confidence: By which numbers.
        structures: One entry a structure, in the order of their numbers.
        wholes: One entry for each structure of which several of them are parts.
        shift: Distance to the training images, 1 is usual; None where the bundle knows none.
    """

    confidence: Confidence
    structures: tuple[StructureAssessment, ...]
    shift: float | None
    wholes: tuple[WholeAssessment, ...] = ()

    @property
    def is_shifted(self) -> bool:
        """Whether the image is unlike those that the network learned from."""
        return self.confidence.shift is not None and self.shift is not None and self.shift > self.confidence.shift.limit

    @property
    def is_far(self) -> bool:
        """Whether it is so unlike them that somebody should look at it."""
        return self.is_shifted and (self.shift or 0) > FAR * self._limit

    @property
    def verdict(self) -> Verdict | None:
        """The worst of the structures'; an image far from the training's, a structure that is cut off, and a size beside its
        own interval, are reviewed at least. None where there is no gate and none of the former."""
        grades = [one.verdict for one in self.structures if one.verdict]
        if self.is_far or (grades and any(one.is_beside_its_interval for one in self.structures)):
            grades.append("review")
        return max(grades, key=_WORSE.index) if grades else None

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against it, in words; that no quality gate has judged it is the first."""
        unlike = (
            f"the image is unlike those of the training: distance {self.shift or 0:.2g}, flagged above {self._limit:.2g}, "
            f"reviewed above {FAR * self._limit:.2g}"
        )
        why = self.confidence.why_not.get("gate", "none was fitted")
        unjudged = () if self.confidence.gate else (f"no quality gate has judged this result: {why}",)
        image = (unlike,) if self.is_shifted else ()
        return (*unjudged, *image, *(f"{one.name}: {said}" for one in self.structures for said in _said(one)))

    @property
    def _limit(self) -> float:
        return self.confidence.shift.limit if self.confidence.shift else math.inf


def _said(one: StructureAssessment) -> tuple[str, ...]:
    more = (one.cut.reason,) if one.cut else ()
    if one.is_beside_its_interval:
        more = (*more, "its size lies beside the interval that the probabilities give")
    if one.grade is None or one.grade.verdict == "accept":
        return more
    if not one.grade.at_least and not one.grade.dice:
        return (*one.grade.reasons, *more)
    return (f"predicted Dice {one.grade.dice:.2f}, at least {one.grade.at_least:.2f}", *one.grade.reasons, *more)


def assess(confidence: Confidence, segmentation: Segmentation, image: ArrayLike | None) -> Assessment:
    """What the statements make of one result.

    Args:
        confidence: The statements of the bundle for the setting of the run.
        segmentation: The result, with probabilities.
        image: Features of the image for the shift detector; None where they were not taken.

    Raises:
        BundleError: The statements were fitted on another network.
    """
    structures = segmentation.structures
    features = describe(segmentation) if confidence.gate else [None] * len(structures)
    assessed = tuple(
        _assess_structure(confidence, structure, described)
        for structure, described in zip(structures, features, strict=True)
    )
    try:
        shift = confidence.shift.score(image) if confidence.shift and image is not None else None
    except ValueError as error:
        raise BundleError(f"{CONFIDENCE} does not belong to this bundle: {error}") from error
    wholes = [_assess_whole(confidence, n, segmentation, assessed) for n in range(1, len(segmentation.wholes) + 1)]
    return Assessment(confidence, assessed, shift, tuple(wholes))


def _assess_structure(confidence: Confidence, structure: Structure, features: Features | None) -> StructureAssessment:
    cut = confidence.border.cut(structure) if confidence.border else None
    interval = None
    if confidence.sizes and not cut:  # intervals hold for whole structures
        interval = confidence.sizes.interval(structure.number, structure.expected_size)
    grade = confidence.gate.grade(structure.number, features) if confidence.gate else None
    return StructureAssessment(structure.number, structure.label, interval, grade, structure.size, cut)


def _assess_whole(
    confidence: Confidence, number: int, segmentation: Segmentation, assessed: Sequence[StructureAssessment]
) -> WholeAssessment:
    """`number`: of the whole, from 1 in the order of the bundle's wholes."""
    whole = segmentation.wholes[number - 1]
    parts = [n - 1 for n in whole.numbers]
    interval = None
    if confidence.wholes and not any(assessed[n].cut for n in parts):
        expected = sum(segmentation.structures[n].expected_size for n in parts)
        interval = confidence.wholes.interval(number, expected)
    return WholeAssessment(whole, interval, sum(assessed[n].size for n in parts))


def measure(subject: str, segmentation: Segmentation, truth: Segmentation) -> list[Measured]:
    """The sizes and losses of each structure of one sound case.

    Args:
        subject: The person that the case is of.
        segmentation: The result, with probabilities.
        truth: The reference, of the same image and segments.
    """
    pairs = zip(segmentation.structures, truth.structures, strict=True)
    return [
        Measured(
            subject,
            structure.number,
            structure.expected_size,
            true.size,
            structure.grid.voxel_size,
            _missed(structure.probability_on_grid[true.box][true.mask]),
        )
        for structure, true in pairs
    ]


def together(measured: Sequence[Measured], wholes: Sequence[Whole]) -> list[Measured]:
    """What the same cases say of each whole, which are numbered from 1.

    Args:
        measured: From `measure`, case after case.
        wholes: What the structures are parts of.
    """
    found, cases = [], list[list[Measured]]()
    for one in measured:
        if one.structure == 1:
            cases.append([])
        cases[-1].append(one)
    for case in cases:
        for n, whole in enumerate(wholes, start=1):
            parts = [part for part in case if part.structure in whole.numbers]
            expected, true = sum(part.expected for part in parts), sum(part.true for part in parts)
            found.append(Measured(case[0].subject, n, expected, true, case[0].voxel, np.empty(0)))
    return found


def _missed(given: NDArray) -> NDArray[np.float64]:
    """Shape (T,): part of the true voxels, whose probabilities are given, below each of THRESHOLDS; 0 where there are none."""
    if not given.size:
        return np.zeros(len(THRESHOLDS))
    return np.searchsorted(np.sort(given.astype(np.float64)), THRESHOLDS, side="left") / given.size


def needed(coverage: float) -> str:
    """Why a statement of this coverage is not made, in words."""
    return f"{subjects_needed(coverage)} or more are needed for a statement that holds {coverage:.0%} of the time"

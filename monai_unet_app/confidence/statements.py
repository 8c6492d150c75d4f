"""The statements of a bundle about its own results: the numbers in `configs/confidence.json`.

They are fitted on calibration subjects by `calibration.statement_fit`, separately for plain inference and for averages over
mirror images (`tta`): the two give different probabilities, so statements about plain results do not hold for averages.
`assessment` applies the statements to a single result.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dicom_io.boxes import Box
from dicom_io.coding import Segment, Whole
from dicom_io.segmentation import Segmentation
from monai_unet_app.bundle_folder import CONFIDENCE, BundleFiles
from monai_unet_app.config import InferenceSetting, ResultSettings
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.metrics.missed import MissedVoxels

from .border import BorderStatement
from .conformal import by_structure, conformal_quantile, least_threshold_of_risk, observed_coverage, subjects_needed
from .fitted_to import changed_since
from .json_document import JsonDocument
from .quality import QualityGate
from .shift import ShiftDetector

THRESHOLDS = tuple(np.concatenate([np.arange(1, 10) / 1000, np.arange(1, 51) / 100]).round(3).tolist())
"""Probabilities from which the threshold of a mask of bounded risk is chosen."""

_PARTS = 5
"""Of the subjects, each of which is left out in turn to see how often intervals hold for others."""

_SMALL_VOXELS = 10
"""Added to both sizes before their ratio is taken, so that tiny structures do not make it infinite."""


@dataclass(frozen=True)
class StructureMeasurement:
    """The sizes of one structure, or of one whole, in one sound calibration case.

    Attributes:
        subject: The person that the case is of.
        structure: Number of the structure, or of the whole.
        expected: Sum of its calibrated probabilities times the size of a voxel, mL or pixels.
        true: True size, mL or pixels.
        voxel: Size of a voxel, mL or pixels.
        losses: Shape (T,), 0 to 1. The part of the truth that a mask with each of THRESHOLDS misses; NaN without true voxels.
        objects: (in the result, in truth), how many objects there are; None where none are numbered.
    """

    subject: str
    structure: int
    expected: float
    true: float
    voxel: float
    losses: NDArray[np.float64]
    objects: tuple[int, int] | None = None


@dataclass(frozen=True)
class SizeStatement(JsonDocument):
    """Intervals for the true size of structures.

    Attributes:
        coverage: The part of new subjects whose true size the interval holds, at least.
        log_ratios: Structure number -> (low, high) of log((true + small) / (expected + small)) at this coverage; None where
            there were too few subjects.
        small: In the unit of sizes.
        subjects: Number of subjects that it was fitted on.
        kept: Structure number -> part of these subjects, 0 to 1, whose size lay in an interval that was fitted without them
            (and without a fifth of all); None where there were too few subjects.
    """

    coverage: float
    log_ratios: Mapping[int, tuple[float, float] | None]
    small: float
    subjects: int
    kept: Mapping[int, float] | None = None

    @classmethod
    def fit(cls, measured: Sequence[StructureMeasurement], coverage: float) -> "SizeStatement":
        """Intervals around the mean ratio; their width is a conformal quantile of the errors of subjects left out."""
        return replace(cls._fitted(measured, coverage), kept=cls._kept_by_others(measured, coverage))

    @classmethod
    def _kept_by_others(cls, measured: Sequence[StructureMeasurement], coverage: float) -> dict[int, float] | None:
        subjects = sorted({row.subject for row in measured})
        if len(subjects) * (_PARTS - 1) // _PARTS < subjects_needed(coverage):
            return None
        held: dict[int, list[tuple[bool, str]]] = {}
        for n in range(_PARTS):
            left_out = set(subjects[n::_PARTS])
            others = cls._fitted([row for row in measured if row.subject not in left_out], coverage)
            for row in (row for row in measured if row.subject in left_out):
                interval = others.interval(row.structure, row.expected)
                is_held = interval is not None and interval[0] <= row.true <= interval[1]
                held.setdefault(row.structure, []).append((is_held, row.subject))
        return {
            number: observed_coverage([flag for flag, _ in own], [name for _, name in own], coverage).observed or 0.0
            for number, own in sorted(held.items())
        }

    @classmethod
    def _fitted(cls, measured: Sequence[StructureMeasurement], coverage: float) -> "SizeStatement":
        small = _SMALL_VOXELS * float(np.median([row.voxel for row in measured]))
        intervals = {}
        for number, rows in by_structure(measured).items():
            # A ratio, since errors of size grow with the size (decision 17).
            log_ratios = np.array([math.log((row.true + small) / (row.expected + small)) for row in rows])
            intervals[number] = _interval_about_mean(log_ratios, [row.subject for row in rows], coverage)
        return cls(coverage, intervals, small, len({row.subject for row in measured}))

    def not_narrower_than(self, other: "SizeStatement") -> "SizeStatement":
        """These intervals; the other's for a structure of which they are narrower, or absent."""
        ratios = {
            number: own if own and usual and own[1] - own[0] >= usual[1] - usual[0] else usual
            for number, usual in other.log_ratios.items()
            for own in (self.log_ratios.get(number),)
        }
        return replace(self, log_ratios=ratios)

    def half_width(self, structure: int) -> float | None:
        """Half an interval's width over its centre, 0 to 1, for a size much larger than `small`; None as of `interval`."""
        ratios = self.log_ratios.get(structure)
        return None if ratios is None else math.tanh((ratios[1] - ratios[0]) / 2)

    def interval(self, structure: int, expected: float) -> tuple[float, float] | None:
        """(low, high) in the unit of `expected`; None where there is no statement about this structure."""
        ratios = self.log_ratios.get(structure)
        if ratios is None:
            return None
        # Without `small` again an end can be below 0, which no size is.
        low, high = ((expected + self.small) * math.exp(ratio) - self.small for ratio in ratios)
        return max(0.0, low), max(0.0, high)


def _interval_about_mean(
    log_ratios: NDArray[np.float64], subjects: Sequence[str], coverage: float
) -> tuple[float, float] | None:
    """(low, high) around the mean over subjects; None if there are too few subjects.

    The distance of a case is taken from the mean over all other subjects (the jackknife), as the distance of a new case will
    be, so that no subject draws the centre towards itself.
    """
    _, member, cases = np.unique(np.asarray(subjects, dtype=str), return_inverse=True, return_counts=True)
    own = np.bincount(member, weights=log_ratios) / cases
    centre, count = own.mean(), len(own)
    if count < subjects_needed(coverage):
        return None
    # The mean without each subject, for all subjects at once.
    others = (count * centre - own) / (count - 1)
    # One bound for both sides: two tails, each by itself, need twice the subjects (decision 17).
    half = conformal_quantile(np.abs(log_ratios - others[member]), subjects, coverage)
    return float(centre - half), float(centre + half)


@dataclass(frozen=True)
class RiskStatement(JsonDocument):
    """Thresholds for masks that miss little of a structure.

    Attributes:
        risk: Expected part of the truth that the mask of a new subject misses, at most.
        thresholds: Structure number -> probability from which a voxel belongs to the mask; None where no threshold will do.
        subjects: Number of subjects that it was fitted on.
    """

    risk: float
    thresholds: Mapping[int, float | None]
    subjects: int

    @classmethod
    def fit(cls, measured: Sequence[StructureMeasurement], risk: float) -> "RiskStatement":
        """Conformal risk control of the false-negative rate; see `least_threshold_of_risk`.

        A case without true voxels of a structure does not count for it: there is nothing that a mask could miss.
        """
        thresholds = {}
        for number, rows in by_structure(measured).items():
            rows = [row for row in rows if not np.isnan(row.losses).any()]
            losses = np.reshape([row.losses for row in rows], (-1, len(THRESHOLDS)))
            thresholds[number] = least_threshold_of_risk(losses, THRESHOLDS, [row.subject for row in rows], risk)
        return cls(risk, thresholds, len({row.subject for row in measured}))


@dataclass(frozen=True)
class Confidence(JsonDocument):
    """All statements of a bundle about results of a setting: an entry under `settings` of `configs/confidence.json`.

    Attributes:
        why_not: Name of an absent statement -> the reason.
        sizes, risk, gate, shift, border: The statements; None for a statement that the bundle does not make.
        wholes: Intervals for the structures that have parts, by number from 1 in the order of the bundle's wholes.
        counts: Intervals for the number of objects; `small` is an object.
        sizes_elsewhere, wholes_elsewhere: The same for images from elsewhere: of other scanners and hospitals than
            the calibration's.
    """

    why_not: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    sizes: SizeStatement | None = None
    wholes: SizeStatement | None = None
    counts: SizeStatement | None = None
    risk: RiskStatement | None = None
    gate: QualityGate | None = None
    shift: ShiftDetector | None = None
    border: BorderStatement | None = None
    sizes_elsewhere: SizeStatement | None = None
    wholes_elsewhere: SizeStatement | None = None

    @property
    def elsewhere(self) -> "Confidence | None":
        """The statements about an image from elsewhere; None where the bundle has no intervals for such images."""
        if self.sizes_elsewhere is None:
            return None
        why_not = {"counts": "numbers of objects of images from elsewhere were not measured"} if self.counts else {}
        return replace(
            self,
            sizes=self.sizes_elsewhere,
            wholes=self.wholes_elsewhere,
            counts=None,
            why_not={**self.why_not, **why_not},
        )

    @property
    def is_elsewhere(self) -> bool:
        """Whether its intervals are those for images from elsewhere."""
        return self.sizes is not None and self.sizes is self.sizes_elsewhere

    def cautious_cuts(self, segments: Sequence[Segment]) -> list[float]:
        """For each segment the probability threshold from which on little of it is missed.

        Raises:
            UsageError: There is no such threshold for every segment.
        """
        thresholds = self.risk.thresholds if self.risk else {}
        cuts = [cut for segment in segments if (cut := thresholds.get(segment.number)) is not None]
        if len(cuts) < len(segments):
            raise UsageError(
                "the bundle does not state at which probability little is missed; "
                f"{self.why_not.get('risk') or 'calibrate it on more subjects'}, or leave --cautious out"
            )
        return cuts


STATEMENTS = ("sizes", "risk", "gate", "shift", "border")
"""Names of all statements."""


def read_confidence(bundle: BundleFiles, settings: ResultSettings) -> Confidence:
    """The statements of a bundle about results with these settings; only marked fields of the settings count.

    The result has no statement, and the reason in `why_not`, if averages over mirror images were not fitted, if the
    statements were fitted to other weights, configs or structures than the bundle has now, if values of the bundle were
    replaced, or if it was computed in fewer bits than float32, `calibrate --precision` has fitted none for that, and `bundle
    certify` has not found that they hold.

    Raises:
        InputRefusedError: The settings ask for the intervals for images from elsewhere, and the bundle has none.
        BundleError: Its confidence.json is damaged, or of another version.
    """
    settings = settings.of_statements
    key, why = stated_key(bundle, settings), None
    if settings.precision != ResultSettings.precision and key == settings.key:
        why = _why_uncertified(bundle, settings)
    if settings.overrides:
        why = f"its statements were fitted without {', '.join(settings.overrides)}; leave --overlap and --fast out"
    stated = _nothing_stated(why) if why else _stated(bundle, key)
    if not settings.elsewhere:
        return stated
    if (wider := stated.elsewhere) is not None:
        return wider
    absent = ("sizes_elsewhere", "sizes", "gate")  # the wider intervals need the two others
    reasons = [stated.why_not[name] for name in absent if name in stated.why_not]
    reason = reasons[0] if reasons else "its statements were made without"
    raise InputRefusedError(
        f"{bundle.name} states no wider intervals for images from elsewhere ({reason}); --elsewhere, or elsewhere = true in a "
        "rule or a package, needs them; calibrate the bundle on enough subjects, or leave that setting out"
    )


def stated_key(bundle: BundleFiles, settings: ResultSettings) -> InferenceSetting:
    """The key of what is fitted for results with these settings: their own, where `calibrate --precision` has fitted it."""
    own = settings.own_key
    return own if own and own in (bundle.confidence_document or {}).get("settings", {}) else settings.key


def _why_uncertified(bundle: BundleFiles, settings: ResultSettings) -> str | None:
    """Why the statements are not known to hold for an engine and a precision; None if they are."""
    from monai_unet_app.inference.engines.certificate import certified  # brings torch, which few processes need

    found, how = certified(bundle, settings), f"{settings.engine} in {settings.precision}"
    again = f"run monai-unet bundle certify, or calibrate --precision, or take --precision {ResultSettings.precision}"
    if not found:
        return f"{bundle.name} has no certificate for {how}; {again}"
    if found["outcome"] != "passed":
        return f"{bundle.name} has {found['outcome']} its certificate for {how} ({found['reason']}); take --precision float32"
    if changed := changed_since(bundle, settings.key, found["fitted_to"]):
        return f"{bundle.name} was changed after it was certified for {how} ({', '.join(changed)}); {again}"
    return None


def _stated(bundle: BundleFiles, setting: InferenceSetting) -> Confidence:
    try:
        document = bundle.confidence_document
        if document is None:
            return _nothing_stated(f"{bundle.name} was not calibrated; run monai-unet calibrate")
        entry = document["settings"].get(setting)
        if entry is None:
            return _nothing_stated(_NOT_FITTED[setting].format(bundle.name))
        if changed := changed_since(bundle, setting, entry["fitted_to"]):
            return _nothing_stated(
                f"{bundle.name} was changed after its statements were fitted ({', '.join(changed)}); run monai-unet calibrate "
                "again"
            )
        return Confidence.from_document(entry)
    except BundleError:
        raise
    except (InputRefusedError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{bundle.name}: {CONFIDENCE} cannot be used ({error}); calibrate the bundle again, or remove the file"
        ) from error


_NOT_FITTED: Mapping[InferenceSetting, str] = {
    "plain": "{} was calibrated for averages over mirror images only; run monai-unet calibrate",
    "tta": "{} was calibrated without --tta and states nothing about averages over mirror images; run monai-unet calibrate "
    "--tta, "
    "or leave --tta out of this command",
}


def _nothing_stated(reason: str) -> Confidence:
    return Confidence(why_not=dict.fromkeys(STATEMENTS, reason))


def measure_structures(
    subject: str, segmentation: Segmentation, truth: Segmentation, slabs: Iterable[tuple[Box, NDArray[np.float32]]]
) -> list[StructureMeasurement]:
    """The sizes and losses of each structure of one sound case.

    Args:
        subject: The person that the case is of.
        segmentation: The result, with what is known of its probabilities.
        truth: The reference, of the same image and segments.
        slabs: Boxes that fill the image, and the probabilities (C, *box) there.
    """
    missed = MissedVoxels(truth.classes, len(truth.segments), THRESHOLDS)
    for box, probabilities in slabs:
        missed.add(box, probabilities)
    triples = zip(segmentation.structures, truth.structures, missed.parts, strict=True)
    return [
        StructureMeasurement(
            subject, structure.number, structure.expected_size, true.size, structure.grid.voxel_size, losses,
            None if structure.objects is None or true.objects is None else (structure.objects, true.objects),
        )
        for structure, true, losses in triples
    ]  # fmt: skip


def measure_counts(measured: Sequence[StructureMeasurement]) -> list[StructureMeasurement]:
    """The numbers of objects in place of the sizes; of structures whose objects are numbered."""
    one = 1 / _SMALL_VOXELS  # so that an object is what is added to both numbers
    return [
        StructureMeasurement(row.subject, row.structure, row.objects[0], row.objects[1], one, np.empty(0))
        for row in measured
        if row.objects
    ]


def measure_wholes(measured: Sequence[StructureMeasurement], wholes: Sequence[Whole]) -> list[StructureMeasurement]:
    """The sizes of each whole in the same cases; wholes are numbered from 1 and have no losses.

    Args:
        measured: From `measure_structures`, case after case.
        wholes: The wholes of the bundle.
    """
    # The rows come case by case, and the rows of each case begin with structure 1.
    starts = [n for n, row in enumerate(measured) if row.structure == 1]
    rows = []
    for start, stop in pairwise([*starts, len(measured)]):
        case = measured[start:stop]
        for number, whole in enumerate(wholes, start=1):
            parts = [row for row in case if row.structure in whole.numbers]
            expected, true = sum(part.expected for part in parts), sum(part.true for part in parts)
            rows.append(StructureMeasurement(case[0].subject, number, expected, true, case[0].voxel, np.empty(0)))
    return rows


def too_few_subjects(coverage: float) -> str:
    """The reason for an absent statement of this coverage, in words."""
    return f"{subjects_needed(coverage)} or more are needed for a statement that holds {coverage:.0%} of the time"

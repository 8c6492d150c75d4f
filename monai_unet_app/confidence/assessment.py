"""The statements of a bundle applied to a result, with the verdict of the quality gate.

The gate of `quality` grades each structure from its features. The final verdict is made here, in `Assessment.verdict`: it also
counts an image unlike the training, a structure that is cut off, and a size outside its own interval.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from numpy.typing import ArrayLike

from dicom_io.coding import Whole
from dicom_io.segmentation import Segmentation, Structure
from monai_unet_app.bundle_folder import CONFIDENCE
from monai_unet_app.errors import BundleError

from .border import BorderCut
from .features import FEATURES, Described, describe_structures
from .label_features import EDGE_FEATURES, describe_labels
from .quality import GateVerdict, Grade
from .size_words import in_unit, interval_text
from .statements import Confidence

FAR_SHIFT = 2.0
"""An image this many times as far from the training's as flagged images are is reviewed, whatever the result looks like."""

_BY_SEVERITY: tuple[GateVerdict, ...] = ("accept", "review", "reject")


def _worst(verdicts: Iterable[GateVerdict]) -> GateVerdict | None:
    return max(verdicts, key=_BY_SEVERITY.index, default=None)


@dataclass(frozen=True)
class SizeAssessment:
    """A size with its interval.

    Attributes:
        size: Of the mask, mL or pixels.
        size_interval: (low, high) that holds the true size with the stated coverage, in the unit of `size`; None if unknown,
            and for a structure that is cut off, since intervals hold for whole structures.
        of_probabilities: The interval follows from the probabilities that the mask was cut from; else from the mask itself.
        unit: Of `size`: "mL" or "px".
    """

    size: float
    size_interval: tuple[float, float] | None
    of_probabilities: bool
    unit: str = field(default="mL", kw_only=True)

    @property
    def is_beside_its_interval(self) -> bool:
        """True if the mask and the probabilities that it was cut from disagree about the size."""
        return self.of_probabilities and self.size_interval is not None and self.reportable_interval is None

    @property
    def reportable_interval(self) -> tuple[float, float] | None:
        """The interval if the size lies in it: a DICOM report says how far a volume may be off to either side."""
        ends = self.size_interval
        return ends if ends and ends[0] <= self.size <= ends[1] else None


@dataclass(frozen=True)
class StructureAssessment(SizeAssessment):
    """The statements about one structure of a result.

    Attributes:
        number: Number of the structure.
        name: Its label.
        grade: The grade of the quality gate; None without a gate.
        cut: Where the border of the image cuts it off; None if it does not, or if the bundle has no statement about borders.
        count_interval: (low, high) that holds the true number of objects with the stated coverage; None where that is unknown.
    """

    number: int
    name: str
    grade: Grade | None
    cut: BorderCut | None = None
    count_interval: tuple[int, int] | None = None

    @property
    def verdict(self) -> GateVerdict | None:
        """The verdict of the gate, and `review` at least for a structure that is cut off; None without either."""
        verdicts: list[GateVerdict] = [self.grade.verdict] if self.grade else []
        return _worst([*verdicts, "review"] if self.cut else verdicts)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons against the structure, in words."""
        grade = self.grade
        reasons = [] if grade is None else list(grade.reasons)
        # A structure that was not found is graded 0 and 0, which is no prediction.
        if grade is not None and grade.verdict != "accept" and (grade.at_least or grade.dice):
            reasons.insert(0, f"predicted Dice {grade.dice:.2f}, at least {grade.at_least:.2f}")
        if self.cut:
            reasons.append(self.cut.reason)
        ends, unit = self.size_interval, self.unit
        if ends and not self.reportable_interval and (self.size or self.of_probabilities):
            by = "its probabilities" if self.of_probabilities else "earlier results of the program"
            text = interval_text(self.size, ends, unit)
            reasons.append(f"its size of {in_unit(self.size, unit)} is {text} {unit} by {by}")
        return tuple(reasons)


@dataclass(frozen=True)
class WholeAssessment(SizeAssessment):
    """The statement about a whole of several structures: the size of its parts together.

    Attributes:
        whole: The whole.
    """

    whole: Whole


@dataclass(frozen=True)
class Assessment:
    """The statements of a bundle about one of its results.

    Attributes:
        confidence: The statements.
        structures: An entry for each structure, in the order of their numbers.
        shift: Distance to the training images, 1 is usual; None if the bundle has no detector, or the image has no features.
        wholes: An entry for each whole, in the order of the bundle's wholes.
        overridden: Values of the bundle were replaced, so that nothing that was fitted holds.
    """

    confidence: Confidence
    structures: tuple[StructureAssessment, ...]
    shift: float | None
    wholes: tuple[WholeAssessment, ...] = ()
    overridden: bool = False

    @property
    def reportable_intervals(self) -> dict[int, tuple[float, float]]:
        """Structure number -> (low, high) of its volume in mL, where an interval is stated that a report can hold."""
        return {one.number: ends for one in self.structures if (ends := one.reportable_interval)}

    @property
    def is_shifted(self) -> bool:
        """True if the image is unlike those that the network learned from."""
        return (self.shift or 0.0) > self._shift_limit

    @property
    def is_far(self) -> bool:
        """True if the image is so unlike the training that somebody should look at the result."""
        return (self.shift or 0.0) > FAR_SHIFT * self._shift_limit

    @property
    def verdict(self) -> GateVerdict | None:
        """The final verdict: the worst verdict on a structure.

        It is `review` at least for an image far from the training, for a size outside its own interval, and where values of
        the bundle were replaced. None without a gate, unless the image is far from the training or a structure is cut off.
        """
        verdicts = [structure.verdict for structure in self.structures if structure.verdict]
        if (
            self.is_far
            or self.overridden
            or (verdicts and any(structure.is_beside_its_interval for structure in self.structures))
        ):
            verdicts.append("review")
        return _worst(verdicts)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons against the result, in words, those of the structures with the worst verdict first.

        If no quality gate has judged the result, this is the first reason.
        """
        worst_first = sorted(self.structures, key=lambda one: -_BY_SEVERITY.index(one.verdict or "accept"))
        reasons = [f"{structure.name}: {reason}" for structure in worst_first for reason in structure.reasons]
        if self.is_shifted:
            usual_only = self.confidence.sizes is not None and not self.confidence.is_elsewhere
            reasons.insert(
                0,
                f"the image is unlike those of the training: distance {self.shift or 0:.2g}, flagged above "
                f"{self._shift_limit:.2g}, reviewed above {FAR_SHIFT * self._shift_limit:.2g}"
                + (", and the stated intervals were not fitted for such images" if usual_only else ""),
            )
        if self.confidence.gate is None:
            reason = self.confidence.why_not.get("gate", "none was fitted")
            reasons.insert(0, f"no quality gate has judged this result: {reason}")
        return tuple(reasons)

    @property
    def sentence(self) -> str:
        """In one line: the verdict, the bound of the Dice, and the reasons."""
        bounds = [structure.grade.at_least for structure in self.structures if structure.grade]
        gate = self.confidence.gate
        bound = f", Dice at least {min(bounds):.2f} ({gate.coverage:.0%})" if gate and bounds else ""
        return "; ".join([(self.verdict or "not judged") + bound, *self.reasons])

    @property
    def _shift_limit(self) -> float:
        return self.confidence.shift.limit if self.confidence.shift else math.inf


def assess(confidence: Confidence, segmentation: Segmentation, image_features: ArrayLike | None) -> Assessment:
    """The statements about one result.

    Args:
        confidence: The statements of the bundle for the setting of the run.
        segmentation: The result, with probabilities.
        image_features: Shape (F,). Features of the image for the shift detector; None if they were not taken.

    Raises:
        BundleError: The statements were fitted on another network.
    """
    try:
        shift = confidence.shift.score(image_features) if confidence.shift and image_features is not None else None
    except ValueError as error:
        raise BundleError(f"{CONFIDENCE} does not belong to this bundle: {error}") from error
    if confidence.shift and shift is not None and shift > confidence.shift.limit:
        confidence = confidence.elsewhere or confidence
    structures = segmentation.structures
    features = _described(segmentation, confidence)
    assessed = tuple(_assess_structure(confidence, *pair) for pair in zip(structures, features, strict=True))
    wholes = [
        _assess_whole(confidence, number, segmentation, assessed) for number in range(1, len(segmentation.wholes) + 1)
    ]
    return Assessment(confidence, assessed, shift, tuple(wholes))


def _described(segmentation: Segmentation, confidence: Confidence) -> Sequence[Described | None]:
    """The features of each structure that the gate looks at; None where it looks at none."""
    gate = confidence.gate
    if gate is None:
        return [None] * len(segmentation.structures)
    if gate.features == FEATURES:
        return describe_structures(segmentation)
    return describe_labels(segmentation, edges=gate.features == EDGE_FEATURES)


def _expected_size(structure: Structure) -> float:
    """What intervals of its size are about: the sum of its probabilities, or the size of a mask without any."""
    return structure.size if structure.evidence is None and structure.probabilities is None else structure.expected_size


def _assess_structure(confidence: Confidence, structure: Structure, features: Described | None) -> StructureAssessment:
    number = structure.number
    cut = confidence.border.cut(structure) if confidence.border else None
    sizes = None if cut else confidence.sizes  # intervals hold for whole structures
    interval = sizes.interval(number, _expected_size(structure)) if sizes else None
    grade = confidence.gate.grade(number, features) if confidence.gate else None
    count = structure.objects
    ends = None if count is None or not confidence.counts else confidence.counts.interval(number, count)
    # A whole number lies between the ends exactly if it lies between the whole numbers inside them
    whole_ends = None if ends is None else (math.ceil(ends[0]), math.floor(ends[1]))
    of_probabilities = structure.evidence is not None or structure.probabilities is not None
    return StructureAssessment(
        structure.size,
        interval,
        of_probabilities,
        number,
        structure.label,
        grade,
        cut,
        whole_ends,
        unit=structure.grid.size_unit,
    )


def _assess_whole(
    confidence: Confidence, number: int, segmentation: Segmentation, assessed: tuple[StructureAssessment, ...]
) -> WholeAssessment:
    """The assessment of a whole, by its number from 1 in the order of the bundle's wholes."""
    whole = segmentation.wholes[number - 1]
    parts = [n - 1 for n in whole.numbers]
    interval = None
    # A whole is cut off where any of its parts is.
    if confidence.wholes and not any(assessed[n].cut for n in parts):
        expected = sum(_expected_size(segmentation.structures[n]) for n in parts)
        interval = confidence.wholes.interval(number, expected)
    of_probabilities = all(assessed[n].of_probabilities for n in parts)
    size, unit = sum(assessed[n].size for n in parts), segmentation.image.size_unit
    return WholeAssessment(size, interval, of_probabilities, whole, unit=unit)

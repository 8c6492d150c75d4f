"""The data of a report, independent of its form.

Names of cases and subjects are printed as they are: they must be pseudonyms, never a patient's identity.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from dicom_io.volume import Volume
from monai_unet_app.config import ResultSettings
from monai_unet_app.metrics.bootstrap import Bootstrap
from monai_unet_app.metrics.case_scores import CaseScores
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation

Role = Literal["worst", "median", "best"]
Outcome = Literal["reached", "missed", "undefined"]
RIGHT_ANGLED = 0.01
"""Largest cosine between two axes of a grid that is drawn as right-angled: 0.6 degrees."""


@dataclass(frozen=True)
class MeasuredOn:
    """The bundle that was measured, and the data.

    Attributes:
        bundle_name: Name of the bundle.
        bundle_version: Its version.
        bundle_sha256: Hash over its weights, inference.yaml and segments.json.
        data_name: Name of the data set, no path.
        data_sha256: Hash of the data set.
        partition: The cases of the data set, such as "test, no subject of which trained, selected or calibrated".
        not_measured: Cases that could not be measured.
        seen: Partition -> number of cases with which the bundle was made.
        folds: Case -> the fold of a cross-validation whose network segmented it; empty for the bundle's own network.
        settings: What its results were computed with.
    """

    bundle_name: str
    bundle_version: str
    bundle_sha256: str
    data_name: str
    data_sha256: str
    partition: str = ""
    not_measured: tuple[str, ...] = ()
    seen: Mapping[str, int] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)
    settings: ResultSettings = field(default_factory=ResultSettings)


@dataclass(frozen=True)
class Target:
    """A figure with the bounds that it should keep.

    Attributes:
        name: The figure in words, such as "Dice, mean of both parts".
        path: Its place in the summary, such as ("dice", "mean").
        at_least: Smallest value that reaches it, or None.
        at_most: Largest value that reaches it, or None.
    """

    name: str
    path: tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None

    def value(self, summary: Mapping[str, Any]) -> float | None:
        """The figure; None if it is undefined, or was not measured and is therefore not in the summary."""
        entry: Any = summary
        for key in self.path:
            if key not in entry:
                return None
            entry = entry[key]
        return None if entry is None else float(entry)

    def outcome(self, summary: Mapping[str, Any]) -> Outcome:
        """Whether the target was reached; an undefined figure neither reaches nor misses it."""
        value = self.value(summary)
        if value is None:
            return "undefined"
        above = self.at_least is None or value >= self.at_least
        return "reached" if above and (self.at_most is None or value <= self.at_most) else "missed"


@dataclass(frozen=True)
class CasePicture:
    """The arrays of a case for its picture.

    Attributes:
        case_id: Name of the case.
        role: The reason why this case is shown.
        image: Shape (I, J, K), or (I, J, K, 3) for colour (0 to 1, or uint8); of a picture also (I, J) or (I, J, 3).
        truth: Shape (I, J, K) whole label values, or (C, I, J, K) boolean, a mask for each named class; (I, J) for a picture.
        predicted: As `truth`.
        spacing: Distance of neighbouring voxels along I, J, K, or I, J for a picture: drawings keep its proportions.
        axes: Patient direction in which I, J, K increase, letters of L R A P S I (oblique grids: the
            nearest), such as ("L", "P", "S"). The planes are then axial, coronal and sagittal, as radiologists look at them;
            with None they are named after the array's axes.
        slices_along: For a sheared grid the axis whose slices are right-angled; only these slices are drawn, since other planes
            would be slanted. None for a right-angled grid.
        unit: Unit of the spacing.
    """

    case_id: str
    role: Role
    image: NDArray[Any]
    truth: NDArray[Any]
    predicted: NDArray[Any]
    spacing: Sequence[float]
    axes: tuple[str, str, str] | None = None
    slices_along: int | None = None
    unit: str = "mm"

    @classmethod
    def of(
        cls, case_id: str, role: Role, volume: Volume, truth: NDArray[Any], predicted: NDArray[Any]
    ) -> "CasePicture":
        """The picture of an image, colours 0 to 255 as in files, with labels (I, J, K) or (C, I, J, K) on its grid."""
        image = volume.array / 255.0 if volume.in_colour else volume.array
        axes = aff2axcodes(volume.affine_ras) if volume.has_patient_space else None
        labels = volume.without_flat_axis(truth), volume.without_flat_axis(predicted)
        slices = _slices_along(volume)
        return cls(case_id, role, image, *labels, volume.axis_spacing, axes, slices, volume.length_unit)

    @property
    def is_flat(self) -> bool:
        """Whether it is a picture, which has two axes."""
        return len(self.spacing) == 2


def _slices_along(volume: Volume) -> int | None:
    """For a grid with slanted axes the axis across two axes at right angles, K if possible; None for a right-angled grid."""
    steps = volume.affine_lps[:3, :3] / np.linalg.norm(volume.affine_lps[:3, :3], axis=0)
    # The cosine of the angle between the two axes that span the slices across axis n.
    slants = [abs(float(steps[:, (n + 1) % 3] @ steps[:, (n + 2) % 3])) for n in range(3)]
    if max(slants) <= RIGHT_ANGLED:
        return None
    return 2 if slants[2] <= RIGHT_ANGLED else int(np.argmin(slants))  # with a tilted gantry two pairs are right-angled


@dataclass(frozen=True)
class EvaluationReport:
    """The content of a report.

    Attributes:
        evaluation: The scores of at least one case.
        measured_on: Bundle and data set.
        pictures: Worst, median and best case, any of them.
        targets: Bounds for scores; they make the conclusion.
        targets_from: Origin of the targets in words; empty where it is not known.
        how: Seed, resamples and level of the intervals.
        statements: Which of the bundle's statements about its results came true, as `summarise_statements` counts them; None
            without statements.
        inference: Size, time and seams of the network, as `InferenceCost.document` gives them; None if not measured.
        created: Time of the report, UTC.

    Raises:
        ValueError: The evaluation holds no case.
    """

    evaluation: Evaluation
    measured_on: MeasuredOn
    _: KW_ONLY
    pictures: Sequence[CasePicture] = ()
    targets: Sequence[Target] = ()
    targets_from: str = ""
    how: Bootstrap = field(default_factory=Bootstrap)
    statements: Mapping[str, Any] | None = None
    inference: Mapping[str, Any] | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        if not self.evaluation.cases:
            raise ValueError("the evaluation holds 0 cases; 1 or more are needed; add cases first")

    @property
    def plan(self) -> EvaluationPlan:
        """The plan of the evaluation, with its lengths."""
        return self.evaluation.plan

    @property
    def cases(self) -> Sequence[CaseScores]:
        """The scores of each case."""
        return self.evaluation.cases

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """The summary of the scores, as `Evaluation.summary` gives it."""
        return self.evaluation.summary(self.how)

    @property
    def subjects(self) -> int:
        """The number of subjects."""
        return len({case.subject for case in self.cases})


def exemplary_cases(cases: Iterable[CaseScores]) -> dict[Role, str]:
    """The cases to show: role -> case_id, by mean Dice. Fewer than three cases have fewer roles.

    Of an even number of cases the median is the lower of the two in the middle. Ties are broken by name, so the choice does not
    depend on the order.
    """
    ranked = [case.case_id for case in sorted(cases, key=lambda case: (case.mean("dice"), case.case_id))]
    if not ranked:
        return {}
    roles: dict[Role, str] = {"worst": ranked[0]}
    if len(ranked) > 2:
        roles["median"] = ranked[(len(ranked) - 1) // 2]
    if len(ranked) > 1:
        roles["best"] = ranked[-1]
    return roles

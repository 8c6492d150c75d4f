"""Fits statements to label files of another program: sizes, the quality gate, the border rule, and images like those seen."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from dicom_io.segmentation import Segmentation
from monai_unet_app.calibration.statement_fit import COVERAGE, RISK, contacts_of, fit_each, samples_of, share_of
from monai_unet_app.confidence import statements
from monai_unet_app.confidence.border import BorderContact, BorderStatement
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.confidence.label_features import EDGE_FEATURES, LABEL_FEATURES, describe_labels, features_of_image
from monai_unet_app.confidence.quality import SOUND, QualityGate, Sample
from monai_unet_app.confidence.shift import LEAST_SUBJECTS, ShiftDetector
from monai_unet_app.confidence.statements import Confidence, SizeStatement, StructureMeasurement
from monai_unet_app.data.probability_files import tempered
from monai_unet_app.evaluate.label_folders import LabelCase

SPOILT = ("halved", "moved", "mirrored")
"""What is done to sound labels, so that the gate knows labels that are wrong."""

_Row = TypeVar("_Row", Sample, BorderContact)
_MOVES = (3, 9)  # voxels along each axis, at least and below
_MOST_DRAWN, _LOG_TEMPERATURES = 100_000, (-2.0, 2.5)


@dataclass
class LabelObservations:
    """What is measured of the cases, to which the statements are fitted.

    Attributes:
        edges: The images are there; edges and brightness count.
    """

    edges: bool
    measured: list[StructureMeasurement] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    touching: list[BorderContact] = field(default_factory=list)
    images: list[NDArray[np.float64]] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    def collect(self, cases: Iterable[LabelCase], count: int) -> None:
        """Measures all cases, `count` of them."""
        faults = SPOILT if self.edges else tuple(kind for kind in SPOILT if kind != "moved")  # which only edges tell
        for number, case in enumerate(cases):
            self._add_sound(case)
            for kind in share_of(faults, number, count):
                self.samples += self._samples(case, kind, spoilt(case.result, kind, seed=number))

    def _add_sound(self, case: LabelCase) -> None:
        image, subject = case.result.image, case.subject
        pairs = zip(case.result.structures, case.truth.structures, strict=True)
        if (probabilities := case.result.probabilities) is not None:
            whole = (slice(None), slice(None), slice(None)), np.asarray(probabilities)
            self.measured += statements.measure_structures(subject, case.result, case.truth, [whole])
        else:
            self.measured += [
                StructureMeasurement(subject, own.number, own.size, true.size, image.voxel_size, np.empty(0))
                for own, true in pairs
                if own.voxels or true.voxels  # where both have none there is no size to be wrong about
            ]
        self.samples += self._samples(case, SOUND, case.result)
        self.touching += contacts_of(subject, case.result)
        if self.edges:
            self.images.append(features_of_image(image))
            self.subjects.append(subject)

    def _samples(self, case: LabelCase, kind: str, result: Segmentation) -> list[Sample]:
        return samples_of(case.subject, kind, result, case.truth, describe_labels(result, edges=self.edges))

    def fitted(self, coverage: float = COVERAGE) -> Confidence:
        """The statements. One that cannot be made is left out with its reason."""
        has_losses = any(row.losses.size for row in self.measured)
        why_not = {} if has_losses else {"risk": "masks of bounded risk need probabilities; label files have none"}
        risk = statements.RiskStatement.fit(self.measured, RISK) if has_losses else None
        subjects, sizes = {row.subject for row in self.measured}, None
        if len(subjects) < subjects_needed(coverage):
            why_not["sizes"] = f"{len(subjects)} calibration subject(s); {statements.too_few_subjects(coverage)}"
        else:
            sizes = SizeStatement.fit(self.measured, coverage)
        features = EDGE_FEATURES if self.edges else LABEL_FEATURES
        fits: dict[str, Callable[[], Any]] = {
            "gate": lambda: QualityGate.fit(self._often(self.samples), coverage, features, fine_features=()),
            "border": lambda: BorderStatement.fit(self._often(self.touching)),
        }
        if self.edges:
            fits["shift"] = lambda: ShiftDetector.fit(self.images, self.subjects)
        else:
            why_not["shift"] = "it was fitted without images"
        fitted = fit_each(fits, why_not)
        return Confidence(sizes, risk=risk, why_not=why_not, **fitted)

    def _often(self, rows: Sequence[_Row]) -> list[_Row]:
        """Without the structures that sound results of too few people have: nothing is known of what is usual there."""
        people: dict[int, set[str]] = {}
        for contact in self.touching:
            people.setdefault(contact.structure, set()).add(contact.subject)
        return [row for row in rows if len(people.get(row.structure, ())) >= LEAST_SUBJECTS]


def fitted_temperature(cases: Iterable[LabelCase]) -> float:
    """The temperature with the least negative log likelihood a voxel, a mean over cases.

    Args:
        cases: With the probabilities of the program as they came. Of a large case some voxels are drawn, evenly.
    """
    drawn = []
    for number, case in enumerate(cases):
        probabilities = np.asarray(case.result.probabilities).reshape(len(case.truth.segments) + 1, -1)
        random = np.random.default_rng(number)
        places = random.choice(probabilities.shape[1], min(_MOST_DRAWN, probabilities.shape[1]), replace=False)
        drawn.append((probabilities[:, places], case.truth.labels.reshape(-1)[places].astype(np.intp)))

    def loss(log_temperature: float) -> float:
        parts = []
        for values, true in drawn:
            found = np.take_along_axis(tempered(values, float(np.exp(log_temperature))), true[None], 0)
            parts.append(-float(np.log(found, dtype=np.float64).mean()))
        return float(np.mean(parts))

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))


def spoilt(result: Segmentation, kind: str, seed: int) -> Segmentation:
    """The labels with a fault of SPOILT.

    Args:
        result: The program's labels, shape (I, J, K).
        kind: halved: of each structure, half its voxels are missing, on one side
            of its longest axis. moved: all labels lie some voxels away.
            mirrored: along an axis of the array.
        seed: Draws the axis, side and distance.
    """
    random, labels = np.random.default_rng([seed, SPOILT.index(kind)]), result.labels
    axes = [axis for axis, length in enumerate(result.image.shape) if length > 1]
    axis = int(random.choice(axes))
    if kind == "mirrored":
        changed = np.flip(labels, axis - 3)
    elif kind == "moved":
        steps = [int(random.integers(*_MOVES) * random.choice((-1, 1))) if n in axes else 0 for n in range(3)]
        changed = moved(labels, steps)
    else:
        changed = labels.copy()
        for structure in result.structures:
            if structure.voxels:
                places = np.nonzero(structure.mask)
                longest = int(np.argmax([np.ptp(place) for place in places]))
                half = np.argsort(places[longest] * random.choice((-1, 1)), kind="stable")[: structure.voxels // 2]
                inside = tuple(place[half] + side.start for place, side in zip(places, structure.box, strict=True))
                changed[inside] = 0
    return Segmentation(result.image, changed, result.segments)


def moved(labels: NDArray[Any], steps: Iterable[int]) -> NDArray[Any]:
    """Labels, shape (..., I, J, K), some voxels away along I, J, K; what leaves the grid is lost, what comes in is 0."""
    sides = [(max(0, step), max(0, -step)) for step in steps]
    wide = np.pad(labels, [*[(0, 0)] * (labels.ndim - 3), *sides])
    i, j, k = (slice(after, after + length) for (_, after), length in zip(sides, labels.shape[-3:], strict=True))
    return wide[..., i, j, k]

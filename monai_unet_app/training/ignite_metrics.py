"""The scores of `monai_unet_app.metrics` as ignite metrics, for the evaluators of `train.yaml` and `evaluate.yaml`.

    validate:
      evaluator:
        additional_metrics:
          val_boundary_iou:
            _target_: monai_unet_app.training.ignite_metrics.BoundaryIoU
            labels: "@labels"
            outputs: "@outputs"

Each metric takes the bundle's own `labels` and `outputs`, and reads two items of every case by their names, from the
evaluator's output or from its batch. Only sums are kept, and they are added over processes if several evaluate. The key
metric of a training must rise as the prediction gets better, as boundary IoU and surface Dice do. MONAI reads
`additional_metrics` only beside a key metric (`key_val_metric`), which may hold several metrics.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.data.utils import affine_to_spacing
from numpy.typing import NDArray
from torch import Tensor

from monai_unet_app.metrics import reliability
from monai_unet_app.metrics.boundary import SurfacePair, hausdorff_distance, normalised_surface_dice, surface_band
from monai_unet_app.metrics.outputs import OUTPUTS
from monai_unet_app.metrics.plan import WHOLE, EvaluationPlan
from monai_unet_app.metrics.reliability import BINS, TOP_LABEL, ReliabilityCounts, count_reliability

BAND = "band"
FIGURES: Mapping[str, Callable[[ReliabilityCounts, int], float]] = {
    "ece": reliability.expected_calibration_error,
    "mce": reliability.maximum_calibration_error,
    "ace": reliability.average_calibration_error,
    "brier": lambda counts, row: reliability.brier_score(counts),
    "nll": lambda counts, row: reliability.negative_log_likelihood(counts),
}
Items = tuple[Tensor, Tensor]


class _CaseMetric(Metric):
    """The base of all scores: the items of a case that are read, the meaning of its labels, the size of its voxels."""

    def __init__(
        self,
        labels: Sequence[str],
        outputs: str = "exclusive",
        keys: Sequence[str] = ("pred", "label"),
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        if outputs not in OUTPUTS:
            raise ValueError(f"outputs is {outputs!r}; one of {', '.join(OUTPUTS)} is needed")
        if len(keys) != 2:
            raise ValueError(f"keys are {list(keys)}; two are needed: prediction and truth")
        kind = OUTPUTS[outputs]
        self.plan = EvaluationPlan(tuple(labels[kind.background :]), kind)
        self.keys = tuple(keys)
        self.spacing_mm = spacing_mm
        super().__init__()

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Adds the cases that the evaluator has just finished."""
        outputs: Any = engine.state.output
        batch: Any = engine.state.batch
        # MONAI's evaluator decollates its output and its batch into lists of cases before the metrics are called
        if not isinstance(outputs, list):
            raise ValueError(
                f"the evaluator gives a {type(outputs).__name__} of whole batches; a list of cases is needed; "
                "leave its `decollate` at true"
            )
        for output, inputs in zip(outputs, batch, strict=True):
            self.update(tuple(_item(key, output, inputs) for key in self.keys))

    def masks(self, tensor: Tensor, name: str, grid: tuple[int, ...]) -> NDArray[np.bool_]:
        """A mask for each class that has a name, shape (classes, *grid).

        Args:
            tensor: Shape (1, *grid) with label values (exclusive classes), or 0 and 1 in a channel for each of the labels.
            name: Of the item, for messages.
            grid: Needed spatial shape.

        Raises:
            ValueError: The tensor has another shape, or values that are no labels.
        """
        return self.plan.outputs.masks(_array(tensor), self.plan.class_names, grid, name)

    def spacing_of(self, case: Items) -> tuple[float, ...]:
        """Voxel size along each axis in mm: `spacing_mm` if it is given, else from the affine of the truth or the prediction.

        Raises:
            ValueError: No spacing is given, and neither tensor has an affine.
        """
        axes = case[0].ndim - 1
        if self.spacing_mm is not None:
            return tuple(float(step) for step in self.spacing_mm)
        for tensor in reversed(case):
            if hasattr(tensor, "affine"):
                affine = tensor.affine
                return tuple(float(step) for step in affine_to_spacing(affine, r=len(affine) - 1)[:axes])
        raise ValueError(
            f"{' and '.join(self.keys)} are plain tensors without an affine; their spacing is needed; pass `spacing_mm`, "
            "one length for each axis (1 for the pixels of a picture)"
        )


class _SurfaceScore(_CaseMetric):
    """Mean over cases of the mean over classes of a score between two masks.

    A class that is in neither mask counts with the score that two empty masks have.
    """

    @abstractmethod
    def score(self, pair: SurfacePair) -> float:
        """The score of one class in one case; infinite or NaN where it is not defined."""

    def reset(self) -> None:
        """Forgets all cases."""
        self._sums = np.zeros(3)  # the cases' means; cases with a mean; undefined classes of all cases

    def update(self, output: Items) -> None:
        """Adds one case.

        Args:
            output: Prediction and truth, each (1, *grid) with label values or (C, *grid) with 0 and 1.

        Raises:
            ValueError: The two do not match each other or the labels, or the spacing is not known.
        """
        grid = tuple(output[0].shape[1:])
        predicted, truth = (
            self.masks(tensor, f"item {key!r}", grid) for tensor, key in zip(output, self.keys, strict=True)
        )
        spacing = self.spacing_of(output)
        values = [self.score(SurfacePair(*pair, spacing)) for pair in zip(truth, predicted, strict=True)]
        defined = [value for value in values if np.isfinite(value)]
        # A mean of means: each case has the same weight, whatever the number of its classes with a defined score
        mean = float(np.mean(defined)) if defined else 0.0
        self._sums += np.array([mean, bool(defined), len(values) - len(defined)])

    def compute(self) -> float:
        """The mean over all cases of all processes; NaN if no case defines it."""
        total, cases, _ = _over_processes(self._sums)
        return float(total / cases) if cases else float("nan")


class BoundaryIoU(_SurfaceScore):
    """IoU of the voxels within a width of each mask's own surface; mean over classes, then over cases, 0 to 1.

    Definition and empties: `monai_unet_app.metrics.boundary.boundary_iou`.

    Args:
        labels: The bundle's `labels`, with the background first where exclusive.
        outputs: The bundle's `outputs`: "exclusive" or "overlapping".
        width_mm: Depth of the band, greater than 0, in the unit of the spacing.
        case: `keys`, the names of the items of a case that hold prediction and truth, on one grid (default: pred, label); and
            `spacing_mm`, the voxel size along each axis (default: from the affine). Pictures have pixels of 1.
    """

    def __init__(self, labels: Sequence[str], outputs: str = "exclusive", width_mm: float = 1.0, **case: Any) -> None:
        self.width_mm = width_mm
        super().__init__(labels, outputs, **case)

    def score(self, pair: SurfacePair) -> float:
        return pair.boundary_iou(self.width_mm)


class SurfaceDice(_SurfaceScore):
    """Part of both surfaces within a tolerance of each other; mean over classes, then over cases, 0 to 1.

    Definition and empties: `monai_unet_app.metrics.boundary.normalised_surface_dice`.

    Args:
        labels: As in `BoundaryIoU`.
        outputs: As in `BoundaryIoU`.
        tolerance_mm: Distance between the surfaces that still counts as equal, in the unit of the spacing.
        case: As in `BoundaryIoU`.
    """

    def __init__(
        self, labels: Sequence[str], outputs: str = "exclusive", tolerance_mm: float = 1.0, **case: Any
    ) -> None:
        self.tolerance_mm = tolerance_mm
        super().__init__(labels, outputs, **case)

    def score(self, pair: SurfacePair) -> float:
        return normalised_surface_dice(pair.distances(), tolerance_mm=self.tolerance_mm)


class HD95(_SurfaceScore):
    """95th percentile of the surface distances, in the unit of the spacing; mean over classes, then over cases.

    There is no distance if exactly one of the two masks is empty. Such classes of a case are left out of the mean and counted
    in a second metric, whose name ends in `_undefined`. Definition: `monai_unet_app.metrics.boundary.hausdorff_distance`.
    Arguments as in `BoundaryIoU`, without `width_mm`. The distance falls as a prediction gets better, so it cannot be the key
    metric of a training.
    """

    def score(self, pair: SurfacePair) -> float:
        return hausdorff_distance(pair.distances())

    def completed(self, engine: Engine, name: str) -> None:
        """Adds the mean and the number of undefined classes to the evaluator's metrics."""
        super().completed(engine, name)
        engine.state.metrics[f"{name}_undefined"] = self.undefined()

    def undefined(self) -> int:
        """Number of classes, over all cases and processes, with exactly one empty mask."""
        return int(_over_processes(self._sums)[2])


@dataclass(frozen=True)
class CalibrationFigure:
    """The figure that `Calibration` computes.

    Attributes:
        figure: "ece", "mce", "ace" (plain mean over equal-width bins), "brier" or "nll".
        population: "whole", or "band": the voxels within `band_width_mm` of the surface of the predicted foreground (the
            winning class is not the background; any label at 0.5 or more). The truth does not choose voxels.
        of: "top_label", or "classes": the mean over the classes that have a name, each against the rest (ece, mce, ace).
        band_width_mm: Largest distance from the predicted surface, in the unit of the spacing.
        bins: Number of equal-width bins.

    Raises:
        ValueError: A figure, a population or an `of` that is unknown, or a figure that has no mean over classes.
    """

    figure: str = "ece"
    population: str = WHOLE
    of: str = "top_label"
    band_width_mm: float = 2.0
    bins: int = BINS

    def __post_init__(self) -> None:
        known = {"figure": tuple(FIGURES), "population": (WHOLE, BAND), "of": ("top_label", "classes")}
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                raise ValueError(f"{name} is {value!r}; one of {', '.join(values)} is needed")
        if self.of == "classes" and self.figure in ("brier", "nll"):
            raise ValueError(
                f"{self.figure} of classes is not defined, because it is a figure of all classes; use of: top_label"
            )


class Calibration(_CaseMetric):
    """A figure of the reliability counts of all cases, pooled. Definitions: `monai_unet_app.metrics.reliability`.

    Args:
        labels: The bundle's `labels`, with the background first where exclusive.
        outputs: The bundle's `outputs`: "exclusive" or "overlapping".
        keys: Names of the items of a case that hold probabilities (C, *grid) and truth, on one grid.
        spacing_mm: Voxel size along each axis; None takes it from the affine. Only the band needs it.
        figure: The attributes of `CalibrationFigure`, by name.

    Raises:
        ValueError: As `CalibrationFigure`.
    """

    def __init__(
        self,
        labels: Sequence[str],
        outputs: str = "exclusive",
        keys: Sequence[str] = ("prob", "label"),
        spacing_mm: Sequence[float] | None = None,
        **figure: Any,
    ) -> None:
        self.figure = CalibrationFigure(**figure)
        super().__init__(labels, outputs, keys, spacing_mm)

    def reset(self) -> None:
        """Forgets all cases."""
        self.counts = ReliabilityCounts.empty(self.plan.channels, self.figure.bins)

    def update(self, output: Items) -> None:
        """Adds one case.

        Args:
            output: Probabilities (C, *grid), and the truth: (1, *grid) with label values or (C, *grid) with 0 and 1.

        Raises:
            ValueError: The two do not match each other or the labels, values are outside 0 to 1, or the spacing is needed and
                not known.
        """
        p = _array(output[0])
        truth = self.masks(output[1], f"item {self.keys[1]!r}", p.shape[1:])
        outputs = self.plan.outputs
        within = self._band(p, output) if self.figure.population == BAND else None
        self.counts += count_reliability(
            outputs.truth_of_channels(truth), p, outputs=outputs, within=within, bins=self.figure.bins
        )

    def compute(self) -> float:
        """The figure over all cases of all processes; NaN if no voxel was counted."""
        counts = self.merged()
        classes = [self.plan.row_of(n) for n in range(len(self.plan.class_names))]
        rows = [TOP_LABEL] if self.figure.of == "top_label" else classes
        return float(np.mean([FIGURES[self.figure.figure](counts, row) for row in rows]))

    def merged(self) -> ReliabilityCounts:
        """The counts of all processes."""
        # Counts of bins add up over processes, so the pooled figure does not depend on how the cases were shared out
        own = {f.name: np.asarray(getattr(self.counts, f.name)) for f in fields(self.counts) if f.name != "bins"}
        sums: dict[str, Any] = {name: _over_processes(counts).astype(counts.dtype) for name, counts in own.items()}
        return replace(self.counts, **{name: total if total.ndim else total.item() for name, total in sums.items()})

    def _band(self, p: NDArray[Any], case: Items) -> NDArray[np.bool_]:
        # The band follows the prediction, because at inference the true surface is not known
        foreground = np.asarray(self.plan.outputs.decided(p).any(axis=0))
        return surface_band(foreground, self.spacing_of(case), self.figure.band_width_mm)


def _item(key: str, output: Mapping[str, Any], inputs: Mapping[str, Any]) -> Tensor:
    """An item of a case: from the output of the evaluator if it is there, else from its batch."""
    for items in (output, inputs):
        item = items.get(key)
        if isinstance(item, Tensor):
            return item
    raise ValueError(
        f"a case of the evaluator has no tensor {key!r}; it has {', '.join(sorted({*output, *inputs}))}; "
        "choose by `keys`, or add it in the post-processing"
    )


def _array(tensor: Tensor) -> NDArray[Any]:
    """The bare array. bfloat16, which numpy does not have, becomes float32."""
    tensor = tensor.as_subclass(Tensor).detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _over_processes(sums: NDArray[Any]) -> NDArray[np.float64]:
    """The sums over all processes, in the same shape; float64 keeps whole numbers exact up to 2**53."""
    merged = idist.all_reduce(torch.from_numpy(np.array(sums, dtype=np.float64)))
    return torch.as_tensor(merged).cpu().numpy()

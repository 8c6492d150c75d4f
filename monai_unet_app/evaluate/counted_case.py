"""One labelled case that is measured while its probabilities, if it has any, come slab by slab."""

import numpy as np
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from monai_unet_app.confidence import statement_audit
from monai_unet_app.confidence.assessment import Assessment
from monai_unet_app.data.case_files import Row
from monai_unet_app.metrics.boxes import Box
from monai_unet_app.metrics.case_scores import CaseArrays, CaseCounter
from monai_unet_app.metrics.plan import EvaluationPlan

WHOLE_GRID: Box = (slice(None), slice(None), slice(None))


class CountedCase:
    """A labelled case whose probabilities come slab by slab, each voxel in one slab; `CaseLog.add` takes it when all have come.

    By a plan without probabilities it is complete from the start.

    Args:
        row: The case, {"id", "subject", "image", "label"}.
        truth: The reference.
        predicted: The labels on the same image; its probabilities are not read.
        plan: What is measured.
        assessment: What was stated about the result; None if nothing is held against the truth.
        counted: Shape (I, J, K): the voxels that count; None for all.
    """

    def __init__(
        self,
        row: Row,
        truth: Segmentation,
        predicted: Segmentation,
        plan: EvaluationPlan,
        assessment: Assessment | None = None,
        counted: NDArray[np.bool_] | None = None,
    ) -> None:
        self.row, self.truth, self.predicted, self.assessment = row, truth, predicted, assessment
        image, flat = truth.image, truth.image.without_flat_axis
        numbers = truth.objects, predicted.objects
        self.complete = counted is None or bool(counted.all())
        case = CaseArrays(
            row["id"],
            row["subject"],
            flat(truth.classes),
            flat(predicted.classes),
            None,
            image.axis_spacing,
            image.voxel_size,
            valid=None if counted is None else flat(counted),
            objects=None if numbers[0] is None or numbers[1] is None else (flat(numbers[0]), flat(numbers[1])),
        )
        self.counter = CaseCounter(case, plan)
        self.missed = statement_audit.missed_voxels(assessment, case.truth) if assessment else None

    def add(
        self, slab: Box, probabilities: NDArray[np.float32], uncalibrated: NDArray[np.float32] | None = None
    ) -> None:
        """Counts one slab.

        Args:
            slab: Where it lies, a slice for each of I, J, K.
            probabilities: Shape (C, ...) with the grid of the slab, calibrated.
            uncalibrated: Same shape: without calibration, to compare; None in all slabs where that is not compared.
        """
        flat = self.truth.image.without_flat_axis
        place = slab[: len(self.counter.grid)]
        self.counter.add(place, flat(probabilities), None if uncalibrated is None else flat(uncalibrated))
        if self.missed:
            self.missed.add(place, flat(probabilities))

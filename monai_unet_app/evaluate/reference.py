"""How a bundle is measured, and the reference segmentation of a labelled case."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.data.case_files import Row, case_of_row
from monai_unet_app.data.labels import check_values, read_labels
from monai_unet_app.metrics.plan import EvaluationPlan


def evaluation_plan(bundle: Bundle) -> EvaluationPlan:
    """The plan by which results of a bundle are measured."""
    return EvaluationPlan(bundle.structure_names, bundle.outputs, bundle.rules.planar, centreline=bundle.centreline)


def read_reference(row: Row, volume: Volume, bundle: Bundle) -> Segmentation:
    """The reference of a case on its image, without probabilities.

    Raises:
        InputRefusedError: The label does not lie on the image, or holds values that the bundle does not know.
    """
    # The ignored value is no class of the bundle, but a reference may hold it.
    ignored = () if bundle.ignore_label is None else (bundle.ignore_label,)
    labels = read_labels(row["label"], volume, bundle.file_values.of_row(row))
    known = bundle.file_values.known(bundle.label_values)
    check_values(labels, (*known, *ignored), case_of_row(row).label_files[0].name)
    return reference_segmentation(labels.array, volume, bundle)


def counted_voxels(row: Row, volume: Volume, bundle: Bundle) -> NDArray[np.bool_] | None:
    """Shape (I, J, K): False where the label is the bundle's `ignore_label`; None if the bundle has no such value."""
    if bundle.ignore_label is None:
        return None
    labels = read_labels(row["label"], volume, bundle.file_values.of_row(row))
    counted = np.asarray(labels.array != bundle.ignore_label)
    return counted if counted.ndim == 3 else np.asarray(counted.all(axis=3))


def reference_segmentation(numbers: NDArray[Any], image: Volume, bundle: Bundle) -> Segmentation:
    """Labels as `read_labels` gives them, as a segmentation by the bundle's segments; the ignored value becomes background."""
    numbers = numbers if bundle.ignore_label is None else np.where(numbers == bundle.ignore_label, 0, numbers)
    if numbers.ndim == 4:
        return Segmentation(image, np.moveaxis(numbers, 3, 0).astype(np.uint8), bundle.segments)
    return Segmentation(image, bundle.outputs.from_numbers(numbers, len(bundle.segments)), bundle.segments)

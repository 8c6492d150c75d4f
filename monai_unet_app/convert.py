"""Conversions between DICOM and other formats.

NIfTI cases become an MR or CT series, with a SEG of their labels, so that DICOM work can be tried on any images. Regions of a
structure set become a label file to train with.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.coding import Segment, not_labelled, uncoded
from dicom_io.dicomize import ConversionOptions, ConvertedModality, dicomize
from dicom_io.errors import DicomIoError
from dicom_io.itk_files import write_itk
from dicom_io.read import ReadOptions
from dicom_io.rtstruct import read_regions
from dicom_io.segmentation import OBJECT_NUMBERS, Segmentation
from dicom_io.volume import Volume, number_type
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.labels import AS_NUMBERED, FileValues, read_labels
from monai_unet_app.data.read import has_ending, read_volume
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError, refusing_as

LABEL_ENDINGS = (".nrrd", ".mha")
"""File name endings that `label_file` writes."""


def dicomize_cases(
    cases: Sequence[CaseFiles],
    output: Path,
    segments: tuple[Segment, ...] | None = None,
    step: Callable[[str], None] = lambda case_id: None,
    modality: ConvertedModality = "MR",
    values: FileValues = AS_NUMBERED,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes `output`/<case>/mr/*.dcm (or ct) and, for labelled cases, `output`/<case>/seg.dcm.

    An earlier conversion is replaced.

    Args:
        cases: NIfTI images, with or without labels.
        output: Gets one folder for each case.
        segments: The meaning of the label values; needed with labels.
        step: Called with the id of each case when it is done.
        modality: Modality of the series: MR, or CT with values in HU.
        values: What the values of label files stand for.

    Returns:
        One row for each converted case with the largest rounding error of an intensity (in the image's own units), and one
        sentence for each case that failed.

    Raises:
        BundleError: A structure has no code.
    """
    if problem := uncoded(segments or ()):
        raise BundleError(problem)
    rows, problems = [], []
    for case in cases:
        try:
            image = read_volume(case.files)
            labels = read_labels(case.label_files, image, values) if case.label else None
            written, own = _as_segments(labels, segments, values)
            converted = dicomize(
                image,
                output / case.id,
                labels=written,
                segments=own,
                case_id=case.id,
                options=ConversionOptions(modality, overwrite=True),
            )
        except (InputRefusedError, DicomIoError) as error:
            problems.append(f"{case.id}: {error}")
        except OSError as error:
            problems.append(
                f"{case.id}: its series could not be written ({error.strerror}); free space or choose another output"
            )
        else:
            row = {
                "id": case.id,
                "series": str(converted.series_folder),
                "seg": str(converted.seg) if converted.seg else None,
                "max_rounding_error": converted.max_rounding_error,
            }
            rows.append(row)
        step(case.id)
    return rows, problems


def _as_segments(
    labels: Volume | None, segments: tuple[Segment, ...] | None, values: FileValues
) -> tuple[Volume | None, tuple[Segment, ...] | None]:
    """Labels, and the segments that they need: one for each object; voxels without a class are those of one more, the last."""
    if labels is not None and segments is not None and values.instances:
        objects = Segmentation(labels, labels.array[None].astype(OBJECT_NUMBERS), segments).by_object()
        return objects.label_volume, objects.segments
    ignored = values.ignored
    if labels is None or segments is None or ignored is None or not (without := labels.array == ignored).any():
        return labels, segments
    number = len(segments) + 1
    if labels.array.ndim == 3:
        array = np.where(without, number, labels.array)
    else:
        array = np.concatenate([np.where(without, 0, labels.array), without[..., :1]], axis=3)
    return labels.with_array(array), (*segments, not_labelled(number))


def label_file(
    structure_set: Path, image: Path, names: Sequence[str], output: Path, options: ReadOptions | None = None
) -> list[dict[str, Any]]:
    """Writes regions of a structure set as one label map on the grid of their image: the first name is label 1, and so on.

    Args:
        structure_set: An RTSTRUCT by any software.
        image: The series on which the regions were drawn: a folder or a file.
        names: ROINames. Where regions overlap, the voxel gets the label of the later name.
        output: Ends in .nrrd or .mha.
        options: How to read the series.

    Returns:
        One row for each region: label, name, number of voxels in the file, and number of voxels that a later region took.

    Raises:
        UsageError: The output has another ending.
        InputRefusedError: The series, the structure set or a name is refused; the grid is sheared; the file cannot be
            written.
    """
    if not has_ending(output, LABEL_ENDINGS):
        raise UsageError(
            f"--output {output.name} is not a label file; give a name that ends in {' or '.join(LABEL_ENDINGS)}"
        )
    volume = read_volume(image, options)
    with refusing_as(structure_set.name):
        regions = read_regions(structure_set, volume, names).array
    labels = np.zeros(regions.shape[:3], number_type(len(names)))
    for number, region in enumerate(np.moveaxis(regions, -1, 0), 1):
        labels[region > 0] = number
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with refusing_as(output.name):
            write_itk(labels, volume, output)
    except OSError as error:
        raise InputRefusedError(
            f"{output.name} could not be written ({error.strerror}); free space or choose another --output"
        ) from error
    # Counted in the written labels, so that an overlap shows as the difference to what was drawn
    voxels = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:].tolist()
    drawn = regions.reshape(-1, len(names)).sum(axis=0).tolist()
    return [
        {"label": number, "name": name, "voxels": count, "overlapped": drawn[number - 1] - count}
        for number, (name, count) in enumerate(zip(names, voxels, strict=True), start=1)
    ]

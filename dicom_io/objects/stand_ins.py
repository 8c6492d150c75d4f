"""The slices of a source as highdicom takes them, and the references to them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage
from pydicom.valuerep import DSfloat

from dicom_io.coding import code_item
from dicom_io.objects import identity
from dicom_io.objects.functional_groups import macro, reference
from dicom_io.objects.patient_and_study import copied
from dicom_io.objects.slice_positions import Slice
from dicom_io.volume import Volume

NOT_OF_A_SLICE = (
    "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SpacingBetweenSlices",
)  # fmt: skip
"""Attributes that a stand-in for one slice must not have, and the optional SpacingBetweenSlices, which may be no number."""


def stand_in(bare: Dataset, source_slice: Slice, thickness_mm: float) -> Dataset:
    """A single-frame image where a slice lies, as highdicom takes it.

    It has a class without frames, because highdicom refuses several XA, NM and US images. It has a thickness, which a source
    may lack, and for a picture no frame of reference. Its references are written later, by `refer`.

    Args:
        bare: Header of an image of the source, from `identity.neutral`.
        source_slice: The slice.
        thickness_mm: Of the slice.
    """
    image = copied(bare)
    for keyword in NOT_OF_A_SLICE:
        image.pop(keyword, None)
    image.Rows, image.Columns = source_slice.shape
    image.SOPClassUID = SecondaryCaptureImageStorage if source_slice.plane is None else MRImageStorage
    if source_slice.plane is not None:
        image.ImagePositionPatient = decimal_strings(source_slice.plane.origin_mm)
        steps = (source_slice.plane.column_step_mm, source_slice.plane.row_step_mm)
        image.ImageOrientationPatient = decimal_strings(np.concatenate([step / np.linalg.norm(step) for step in steps]))
        image.PixelSpacing, image.SliceThickness = pixel_spacing(source_slice), thickness_mm
    return image


def pixel_spacing(source_slice: Slice) -> list[DSfloat]:
    """Between rows, between columns (PS3.3 10.7.1.3)."""
    assert source_slice.plane is not None
    across, down = source_slice.plane.pixel_mm
    return decimal_strings(np.array([down, across]))


def decimal_strings(values: NDArray[np.float64]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters, a string for each of the numbers, shape (n,)."""
    # Adding 0.0 turns -0.0 into 0.0: equal places have equal bytes.
    return [DSfloat(float(value) + 0.0, auto_format=True) for value in values]


def thickness_mm(header: Dataset, frame: int | None, source: Volume) -> float:
    """The source's own SliceThickness (a slice may be thinner than the gap between centres), else the spacing.

    Args:
        header: Of an image of the source.
        frame: Its frame, from 1, in a multi-frame object.
        source: The volume.
    """
    thickness = macro(header, frame, "PixelMeasuresSequence").get("SliceThickness")
    return float(thickness) if thickness else source.spacing_mm[2]


def refer(dataset: Dataset, source: Volume, headers: Sequence[Dataset], slices: Sequence[Slice]) -> None:
    """Names every instance of the source, whether or not a frame lies on it: viewers look for them all.

    Those of further channels are named, too; they may have grids of their own.
    """
    classes = {part.sop_instance_uid: part.sop_class_uid for part in slices}
    series = Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ReferencedInstanceSequence = [reference(sop_class, uid) for uid, sop_class in classes.items()]
    dataset.ReferencedSeriesSequence = [series]
    dataset.SourceImageSequence = [source_item(sop_class, uid) for uid, sop_class in classes.items()]
    by_series: dict[str, Dataset] = {}
    for header in identity.headers_of_others(source):
        series = by_series.setdefault(str(header.SeriesInstanceUID), Dataset())
        series.SeriesInstanceUID = header.SeriesInstanceUID
        here = reference(str(header.SOPClassUID), str(header.SOPInstanceUID))
        series.ReferencedInstanceSequence = [*(series.get("ReferencedInstanceSequence") or []), here]
        item = source_item(str(header.SOPClassUID), str(header.SOPInstanceUID))
        del item.SpatialLocationsPreserved
        dataset.SourceImageSequence.append(item)
    dataset.ReferencedSeriesSequence.extend(by_series.values())


def source_item(sop_class_uid: str, sop_instance_uid: str, frame: int | None = None) -> Dataset:
    """A reference to a source image whose pixels have the same places (PS3.3 table 10-3, C.7.6.16.2.6)."""
    image = reference(sop_class_uid, sop_instance_uid, frame)
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.SourceImageForImageProcessingOperation)]
    return image

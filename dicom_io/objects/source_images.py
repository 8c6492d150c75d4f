"""The source images of a result, slice by slice: their headers, their pixels' size and how to refer to them.

What `identity` and `proof` do for series in patient space is done here for single pictures too (CR, DX, colour).
"""

from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.coding import code_item
from dicom_io.errors import LabelError
from dicom_io.kinds import KIND
from dicom_io.objects import identity
from dicom_io.objects.functional_groups import macro, reference
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.labels import check_labels, in_slices
from dicom_io.objects.slice_positions import Slice, slices_of, values_on
from dicom_io.objects.source_grid import check_grid
from dicom_io.segmentation import Segmentation, SliceLabels
from dicom_io.volume import Volume

# PS3.16 table L-1: unpaired terms of BodyPartExamined and their codes.
_NAMED_AS_CODED = (
    "Abdomen Bladder Brain Chest Head Heart Liver Neck Pancreas Pelvis Prostate Spine Spleen Stomach Uterus"
)
REGIONS = {name.upper(): getattr(codes.SCT, name) for name in _NAMED_AS_CODED.split()} | {
    "CSPINE": codes.SCT.CervicalSpine,
    "HEADNECK": codes.SCT.HeadAndNeck,
    "LSPINE": codes.SCT.LumbarSpine,
    "TSPINE": codes.SCT.ThoracicSpine,
}

# Unpaired among the defined terms of BodyPartExamined, PS3.16 table L-1.
UNPAIRED_PARTS = (
    "ABDOMEN ABDOMENPELVIS AORTA BLADDER BRAIN CEREBELLUM CERVIX CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS "
    "COCCYX COLON CORONARYARTERY CSPINE CTSPINE DUODENUM ESOPHAGUS GALLBLADDER HEAD HEADNECK HEART ILEUM JAW JEJUNUM "
    "LARYNX LIVER LSPINE LSSPINE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE "
    "PANCREAS PELVIS PENIS PHARYNX PROSTATE RECTUM SKULL SPINE SPLEEN SSPINE STERNUM STOMACH THYMUS THYROID TLSPINE "
    "TONGUE TRACHEA TSPINE URETHRA UTERUS VAGINA VULVA WHOLEBODY"
)


@dataclass(frozen=True)
class SourceImages:
    """The images behind a source volume.

    Attributes:
        source: DICOM volume, or a picture.
        headers: Its data sets without pixels, one data set for each instance.
        slices: Its slices, in order of K where it was not resampled.
    """

    source: Volume
    headers: tuple[Dataset, ...]
    slices: tuple[Slice, ...]

    def header(self, k: int) -> Dataset:
        """The header of the object that holds slice k."""
        uid = self.slices[k].sop_instance_uid
        return next(header for header in self.headers if str(header.SOPInstanceUID) == uid)

    def reference(self, k: int) -> Dataset:
        """A reference to slice k: class, instance and, in a multi-frame object, the frame."""
        return reference(self.slices[k].sop_class_uid, self.slices[k].sop_instance_uid, self.slices[k].frame)

    def values(self, k: int, volume: Volume) -> NDArray[Any]:
        """The voxels of slice k of a volume on the source's grid: shape (rows, columns), with channels (rows, columns, C)."""
        return values_on(self.slices[k], k, volume, self.source)

    def labels(self, k: int, segmentation: Segmentation) -> SliceLabels:
        """The labels on slice k."""
        return SliceLabels(self.values(k, segmentation.label_volume))

    def has_pixel_spacing(self, k: int) -> bool:
        """True where a pixel's size in the patient is known (for a picture: calibrated, PS3.3 10.7)."""
        return self.slices[k].plane is not None or bool(self.header(k).get("PixelSpacing"))

    def pixel_size(self, k: int) -> tuple[float, float]:
        """Distance of two neighbouring pixels in a row and in a column, in mm; only their proportion where no size is known.

        A picture may state it as PixelSpacing, as spacing on the detector or film, or as an aspect ratio.
        """
        plane = self.slices[k].plane
        if plane is not None:
            return plane.pixel_mm
        # In the body first, then on the detector or film, where the body is magnified; an aspect ratio has no unit.
        for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
            value = self.header(k).get(keyword)
            if value and len(value) == 2 and all(float(part) > 0 for part in value):
                return float(value[1]), float(value[0])  # PS3.3 10.7.1.3: first between rows
        return 1.0, 1.0


def images_of(source: Volume, *, of_each: bool = True) -> SourceImages:
    """The images behind `source`.

    Args:
        source: DICOM volume, or a picture.
        of_each: Read the whole header of each image, not only of the first; see `identity.source_headers`.

    Raises:
        LabelError: See `identity.source_headers` and `slice_positions.slices_of`.
        UnreadableFileError: A source file cannot be read.
    """
    headers = identity.source_headers(source, of_each=of_each)
    return SourceImages(source, headers, slices_of(source, headers))


def check_place(labels: Volume, images: SourceImages) -> None:
    """Pass if `labels` lie on the grid of the source; a picture has no patient space, so its pixels decide.

    Raises:
        LabelError: Another shape or place.
    """
    source = images.source
    if not source.planar:
        check_grid(labels, source, images.slices)
    elif labels.shape != source.shape or not np.allclose(labels.affine_lps, source.affine_lps, atol=1e-3):
        raise LabelError(
            f"the labels have the shape {labels.shape}, the picture {source.shape}, or they lie elsewhere; one grid is "
            "needed; bring the labels back to the pixels of the picture first"
        )


def labelled(
    labels: Volume, source: Volume, result: ResultInfo, *, of_each: bool = True
) -> tuple[Segmentation, SourceImages]:
    """The labels of a result as every writer holds them (`labels.in_slices`), and the images that they lie on.

    Args:
        labels: On the grid of `source`. Shape (I, J, K) with whole values, or (I, J, K, C); see `write_seg`.
        source: DICOM volume, or a picture.
        result: What computed the labels.
        of_each: See `images_of`.

    Raises:
        LabelError: The labels do not fit the source or the segments; see `check_labels`, `check_place` and `images_of`.
        UnreadableFileError: A source file cannot be read.
    """
    # Before the headers are read: this check needs no file.
    check_labels(labels, result)
    images = images_of(source, of_each=of_each)
    check_place(labels, images)
    return Segmentation.of_volume(in_slices(labels), result.segments), images


def new_object(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """An empty data set of a class; pydicom completes its file meta information when it writes the file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, sop_instance_uid
    return dataset


def result_object(
    kind: str, uids: tuple[str, str], headers: tuple[Dataset, ...], result: ResultInfo, sop_class_uid: str = ""
) -> Dataset:
    """The attributes that all result objects have: patient, study, series, equipment and InstanceNumber, which is 1.

    Args:
        kind: Its name in `KINDS`, which gives the modality and the number of the series.
        uids: Of the object and of its series, from `identity.object_uids`.
        headers: Of the source, from `identity.source_headers`.
        result: What computed the content.
        sop_class_uid: The first class of the kind where it is empty.
    """
    dataset = new_object(sop_class_uid or KIND[kind].sop_classes[0], uids[0])
    dataset.Modality, dataset.SeriesInstanceUID, dataset.InstanceNumber = KIND[kind].modality, uids[1], 1
    dataset.SeriesNumber = identity.series_number(headers[0], kind, result)
    identity.stamp(dataset, headers, result, kind)
    dataset.ContributingEquipmentSequence = [identity.contribution(result)]
    return dataset


def add_body_part(dataset: Dataset, header: Dataset) -> None:
    """Repeat the body part and the side that the source names, in a series with the General Series module.

    Laterality is Type 2C (PS3.3 C.7.3.1): it must be there, perhaps empty, unless the part is known to be unpaired; then it
    must be absent.
    """
    part = str(header.get("BodyPartExamined") or "")
    if part:
        dataset.BodyPartExamined = part
    if part not in UNPAIRED_PARTS.split():
        dataset.Laterality = side_of(header)


def add_side(dataset: Dataset, header: Dataset) -> None:
    """The same for structure sets and reports, but only if the source names a side, which must not get lost.

    Their own series modules do not list these attributes, so the object is of a Standard Extended SOP Class (PS3.4 3.1).
    """
    if side_of(header):
        add_body_part(dataset, header)


def add_image_side(dataset: Dataset, header: Dataset) -> None:
    """The same for segmentations: Image Laterality of the General Image module, beside which Laterality is not needed.

    U is unpaired (PS3.3 C.7.6.1). An unknown side is empty: without Image Laterality, Laterality is needed for a paired part.
    """
    part = header.get("BodyPartExamined")
    if part:
        dataset.BodyPartExamined = part
    dataset.ImageLaterality = "U" if part in UNPAIRED_PARTS.split() else side_of(header)


def side_of(header: Dataset) -> str:
    """R or L as the source states it for its series, its image or its frames; empty if it states no side, or if the part is
    unpaired.
    """
    if header.get("BodyPartExamined") in UNPAIRED_PARTS.split():
        return ""
    named = (header.get("Laterality"), header.get("ImageLaterality"), frame_anatomy(header).get("FrameLaterality"))
    return next((str(side) for side in named if side in ("R", "L")), "")


def frame_anatomy(header: Dataset) -> Dataset:
    """The Frame Anatomy item, mandatory in a map (PS3.3 table A.75-2) and left out by highdicom.

    By the source's own code, else by its BodyPartExamined, else the entire body, which is always right.
    """
    shared, own = (header.get(f"{kind}FunctionalGroupsSequence") or [] for kind in ("Shared", "PerFrame"))
    for group in (*shared, *own[:1]):
        if group.get("FrameAnatomySequence"):
            return cast(Dataset, deepcopy(group.FrameAnatomySequence[0]))
    item = Dataset()
    side = str(header.get("ImageLaterality") or header.get("Laterality") or "")
    # FrameLaterality is Type 1 (PS3.3 C.7.6.16.2.8), so a region is repeated only with its side.
    if header.get("AnatomicRegionSequence") and side in ("R", "L", "U", "B"):
        item.AnatomicRegionSequence, item.FrameLaterality = deepcopy(header.AnatomicRegionSequence), side
        return item
    region = REGIONS.get(str(header.get("BodyPartExamined")), codes.SCT.EntireBody)
    item.AnatomicRegionSequence, item.FrameLaterality = [code_item(region)], "U"
    return item


def aspect_ratio(across: float, down: float) -> list[int]:
    """PixelAspectRatio: vertical and horizontal size of a pixel as two whole numbers."""
    ratio = Fraction(down / across).limit_denominator(1000)
    return [ratio.numerator, ratio.denominator]


def rescale_type(header: Dataset) -> str:
    """RescaleType of the source, the unit of its rescaled values; empty if it is absent."""
    number = 1 if header.get("PerFrameFunctionalGroupsSequence") else None
    return str((macro(header, number, "PixelValueTransformationSequence") or header).get("RescaleType") or "")

"""What a reader changed: the corrected mask, paired with the original, how large the change is, and a case to train on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError
from dicom_io.reading.instances import load_dataset, refusing
from dicom_io.seg import read_segments, segment_numbers
from dicom_io.segmentation import Segmentation
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics import dice
from monai_unet_app.metrics.boundary import (
    Spacing,
    average_surface_distance,
    normalised_surface_dice,
    surface_distances,
)
from monai_unet_app.results import write_nifti

from .embedded import slice_border
from .key_images import slice_axis
from .reviewed_case import Mask, ReviewedCase, is_exclusive, named_file, read_segmentation

SCHEMA_VERSION = "1.0"
TOLERANCE = 1.0
"""Of surface Dice: a surface moved by less was not moved. mm; pixels of a picture."""

Pairing = Literal["tracking UID", "image grid"]


@dataclass(frozen=True)
class Correction:
    """A corrected result on the grid of the image.

    Attributes:
        segmentation: The corrected labels; the segments are those of the result.
        paired_by: How its structures were matched with the original's.
        ending: Of the file that it came as, such as ".nii.gz".
    """

    segmentation: Segmentation
    paired_by: Pairing
    ending: str


@dataclass(frozen=True)
class CorrectionSize:
    """How far a corrected structure is from the original; None where a figure is not defined, as one of the two is empty.

    Attributes:
        number, label: Of the structure.
        dice: 0 to 1, 1 where nothing changed.
        surface_dice: 0 to 1, part of both surfaces that is within the tolerance of the other.
        mean_surface_distance: mm, or pixels of a picture; 0 or more.
        size_difference: Corrected minus original, mL or pixels.
        added_path_length: mm, or pixels of a picture; 0 or more. See `added_path_length`.
    """

    number: int
    label: str
    dice: float
    surface_dice: float
    mean_surface_distance: float | None
    size_difference: float
    added_path_length: float

    def document(self) -> dict[str, Any]:
        """For a record, rounded to what means something."""
        away = self.mean_surface_distance
        return {
            "number": self.number,
            "label": self.label,
            "dice": round(self.dice, 5),
            "surface_dice": round(self.surface_dice, 5),
            "mean_surface_distance": None if away is None else round(away, 4),
            "size_difference": round(self.size_difference, 5),
            "added_path_length": round(self.added_path_length, 3),
        }


def read_correction(path: Path, case: ReviewedCase) -> Correction:
    """A corrected mask: NIfTI, NRRD, MetaImage, grey picture, SEG or RTSTRUCT, on the grid of the image.

    Segments of a SEG are paired with the original's by their Tracking UID, since editors number anew; what carries none, or
    none of these, is paired by the image grid: the same place, and the same number for the same structure.

    Args:
        path: The file.
        case: What was corrected.

    Raises:
        InputRefusedError: Another grid, a structure too many or too few, or an unreadable file.
    """
    if not path.is_file():
        raise InputRefusedError(
            f"the correction {path.name} is no file; a NIfTI, SEG or RTSTRUCT with the corrected mask is needed"
        )
    ending = ".nii.gz" if has_ending(path, (".nii.gz",)) else path.suffix.lower()
    header = None if has_ending(path, VOLUME_ENDINGS + PICTURE_ENDINGS) else _dicom_header(path)
    if header is not None and header.get("SegmentSequence"):
        pairs, paired_by = _pairs(path, header, case)
        return Correction(_paired(path, pairs, case), paired_by, ending or ".dcm")
    if header is not None:
        _check_regions(path, header, case)
    segmentation = read_segmentation(path, case.image, case.document, case.segmentation.segments)
    return Correction(segmentation, "image grid", ending or ".dcm")


def _dicom_header(path: Path) -> Dataset:
    try:
        return load_dataset(path, with_pixels=False)
    except DicomIoError as error:
        raise InputRefusedError(f"the correction {path.name}: {error}") from error


def _pairs(path: Path, header: Dataset, case: ReviewedCase) -> tuple[dict[int, int], Pairing]:
    """Number in the original -> number in the correction.

    Raises:
        InputRefusedError: A structure has no segment, or a segment no structure.
    """
    ours = _tracking_uids(_original_seg(case))
    with refusing(path):
        theirs = {uid: number for number, uid in _tracking_uids(header).items()}
        found = segment_numbers(path)
    tracked = {number: theirs[uid] for number, uid in ours.items() if uid in theirs}
    left = set(found) - set(tracked.values())
    pairs = tracked | {n: n for n in (one.number for one in case.structures) if n not in tracked and n in left}
    missing = [one.label for one in case.structures if one.number not in pairs]
    strangers = sorted(left - set(pairs.values()))
    if missing or strangers:
        raise InputRefusedError(
            f"the correction {path.name} lacks {', '.join(missing) or 'nothing'} and has the segments "
            f"{strangers or 'none'} beyond the result; one segment for each structure is needed, empty where it was deleted; "
            "export all of them, and nothing else"
        )
    return pairs, "tracking UID" if tracked else "image grid"


def _original_seg(case: ReviewedCase) -> Dataset:
    if "seg" not in case.document["files"]:
        return Dataset()
    return _dicom_header(named_file(case.folder / "result.json", case.document, "seg"))


def _tracking_uids(header: Dataset) -> dict[int, str]:
    """SegmentNumber -> Tracking UID of the segments that have one."""
    items = header.get("SegmentSequence") or []
    return {int(item.SegmentNumber): str(item.TrackingUID) for item in items if item.get("TrackingUID")}


def _paired(path: Path, pairs: Mapping[int, int], case: ReviewedCase) -> Segmentation:
    """The segments of a SEG, in the order of the structures that they are paired with."""
    try:
        channels = read_segments(path, case.image).array
        order = segment_numbers(path)
    except DicomIoError as error:
        raise InputRefusedError(f"the correction {path.name}: {error}") from error
    if channels.dtype.kind == "f":
        raise InputRefusedError(
            f"the correction {path.name} is FRACTIONAL and holds probabilities; a BINARY or LABELMAP SEG is needed; export it "
            "so"
        )
    masks = [channels[..., order.index(pairs[structure.number])] > 0 for structure in case.structures]
    return Segmentation.of_masks(case.image, masks, case.segmentation.segments, exclusive=is_exclusive(case.document))


def _check_regions(path: Path, header: Dataset, case: ReviewedCase) -> None:
    """A structure set describes each structure, by its number; one that it does not describe was not looked at."""
    with refusing(path):
        described = {int(item.ROINumber) for item in header.get("StructureSetROISequence") or []}
    missing = [one.label for one in case.structures if one.number not in described]
    if missing:
        raise InputRefusedError(
            f"the correction {path.name} has no region for {', '.join(missing)}; one for each structure, with its number as "
            "ROINumber, is needed; export all of them"
        )


def sizes_of(correction: Correction, case: ReviewedCase, tolerance: float = TOLERANCE) -> list[CorrectionSize]:
    """How large the correction of each structure is.

    Args:
        correction: On the grid of the image.
        case: With masks.
        tolerance: Of surface Dice, greater than 0; mm, or pixels of a picture.
    """
    volume, across = case.image, slice_axis(case.image)
    spacing = (*volume.axis_spacing, 1.0)[:3]
    found = []
    for structure, changed in zip(case.structures, correction.segmentation.structures, strict=True):
        corrected = changed.mask_on_grid
        original = structure.mask_on_grid
        flat = (volume.without_flat_axis(corrected), volume.without_flat_axis(original))
        distances = surface_distances(*flat, volume.axis_spacing)
        away = average_surface_distance(distances)
        found.append(
            CorrectionSize(
                number=structure.number,
                label=structure.label,
                dice=dice(*flat),
                surface_dice=normalised_surface_dice(distances, tolerance_mm=tolerance),
                mean_surface_distance=away if np.isfinite(away) else None,
                size_difference=(changed.voxels - structure.voxels) * volume.voxel_size,
                added_path_length=added_path_length(corrected, original, spacing, across),
            )
        )
    return found


def added_path_length(corrected: Mask, original: Mask, spacing: Spacing, across: int = 2) -> float:
    """How much outline a reader had to draw: what of the corrected outlines, slice by slice, was not there before.

    An outline is the voxels of a mask that share a side with one outside of it in their slice. Those of the corrected outlines
    that are not on the original's are counted, and each is as long as a pixel of the slice is wide (where its sides differ, the
    root of their product). What was only taken away is drawn anew where the new outline runs, so it counts too.

    Args:
        corrected: Shape (I, J, K).
        original: Same shape.
        spacing: Voxel size along I, J, K: mm, or 1 to count pixels.
        across: The axis across which the slices lie.

    Returns:
        In the unit of `spacing`, 0 where no outline was added.

    Raises:
        ValueError: The masks differ in shape.

    Source: Vaassen et al., Physics and Imaging in Radiation Oncology 13 (2020) 1-6, doi:10.1016/j.phro.2019.12.001.
    """
    if corrected.shape != original.shape:
        raise ValueError(f"the masks have the shapes {corrected.shape} and {original.shape}; the same one is needed")
    added = slice_border(corrected, across) & ~slice_border(original, across)
    sides = np.delete(np.asarray(spacing, dtype=np.float64), across)
    return float(np.count_nonzero(added) * np.sqrt(sides.prod()))


def store_training_case(
    correction: Correction,
    case: ReviewedCase,
    sizes: list[CorrectionSize],
    folder: Path,
    subject: str | None = None,
) -> str:
    """Adds image, corrected label and where they come from to a folder that `monai-unet train --data` takes; gives its id.

    The folder holds images/, labels/ and provenance/ with files of one name. Neither name nor provenance holds a patient's
    identity, nor a comment, which may. The picture of a head is identity all the same: treat the folder so.

    Args:
        correction: On the grid of the image.
        case: What was corrected.
        sizes: Of the correction.
        folder: Of the training cases; made where it is absent.
        subject: Pseudonym of the patient; letters, digits, - and _. By default one of the study, so that the two sides of a
            head are of one subject, but two studies of a patient are not.

    Raises:
        InputRefusedError: Structures overlap, which one label a voxel cannot say, or a picture is not of 8 bits.
    """
    subject = _checked(
        subject or f"study{_digest(case.document['source']['study_instance_uid'] or case.result_sha256)}"
    )
    name = f"{subject}_{case.result_sha256[:8]}"
    labels = _one_label_a_voxel(correction, case)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if case.image.planar:
        _save_picture(case.image.array, folder / "images" / f"{name}.png")
        _save_picture(labels, folder / "labels" / f"{name}.png")
    else:
        write_nifti(case.image.array, case.image, folder / "images" / f"{name}.nii.gz")
        write_nifti(labels, case.image, folder / "labels" / f"{name}.nii.gz")
    write_json(
        _provenance(correction, case, sizes, name, subject), folder / "provenance" / f"{name}.json", "review_case"
    )
    return name


def _provenance(
    correction: Correction, case: ReviewedCase, sizes: list[CorrectionSize], name: str, subject: str
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "id": name,
        "subject": subject,
        "origin": "corrected by a reader",
        "bundle": dict(case.document["bundle"]),
        "result_sha256": case.result_sha256,
        "modality": case.document["source"]["modality"],
        "labels": {str(one.number): one.label for one in case.structures},
        "correction": size_document(correction, sizes),
    }


def size_document(
    correction: Correction, sizes: Sequence[CorrectionSize], tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """The part of a record that describes a correction."""
    volume = correction.segmentation.image
    return {
        "file_kind": correction.ending,
        "paired_by": correction.paired_by,
        "unit": volume.length_unit,
        "size_unit": volume.size_unit,
        "tolerance": tolerance,
        "structures": [one.document() for one in sizes],
    }


def _one_label_a_voxel(correction: Correction, case: ReviewedCase) -> NDArray[np.uint8]:
    labels = np.zeros(case.image.shape, np.uint8)
    for structure in correction.segmentation.structures:
        mask = structure.mask_on_grid
        if (labels[mask] > 0).any() or structure.number > np.iinfo(np.uint8).max:
            raise InputRefusedError(
                f"structure {structure.number} of the correction overlaps another; a training label has one class a voxel, "
                "from 1 to 255; store it by hand, a file for each structure"
            )
        labels[mask] = structure.number
    return labels


def _save_picture(array: NDArray[Any], path: Path) -> None:
    plane = np.moveaxis(array[:, :, 0], 0, 1)
    pixels = plane.astype(np.uint8)
    if (pixels != plane).any():
        raise InputRefusedError(
            f"the picture has values from {array.min():g} to {array.max():g}; whole ones of 8 bits are needed for a PNG; store "
            "it by hand"
        )
    Image.fromarray(pixels).save(path)


def _checked(subject: str) -> str:
    if not subject.replace("-", "").replace("_", "").isalnum() or not subject.isascii():
        raise InputRefusedError(
            f"the subject's pseudonym has {len(subject)} characters, not all of them letters, digits, - or _; such ones are "
            "needed because files are called by it; choose another"
        )
    return subject


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]

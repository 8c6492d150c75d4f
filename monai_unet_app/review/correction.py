"""A reader's correction: the corrected mask paired with the original, the size of the change, and a case to train on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from dicom_io.errors import LabelError
from dicom_io.objects.slice_positions import check_belongs
from dicom_io.reading.instances import load_dataset, refusing
from dicom_io.seg import read_seg, read_segments, segment_numbers
from dicom_io.segmentation import Segmentation, Structure
from dicom_io.volume import Volume, number_type
from monai_unet_app.data.label_names import LabelTable, names_in_file
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import InputRefusedError, refusing_as
from monai_unet_app.metrics import boundary
from monai_unet_app.metrics.components import match_components
from monai_unet_app.metrics.overlap import dice

from .display_window import slice_axis
from .embedded import slice_border
from .reviewed_case import ReviewedCase, counts_objects, is_exclusive, named_file, read_segmentation

SCHEMA_VERSION = "1.0"
TOLERANCE = 1.0
"""Tolerance of surface Dice: a surface that moved by less counts as not moved. In mm, or in pixels of a picture."""

Pairing = Literal["tracking UID", "image grid"]


@dataclass(frozen=True)
class Correction:
    """A corrected result on the grid of the image.

    Attributes:
        segmentation: The corrected labels; the segments are those of the result.
        paired_by: How its structures were paired with those of the original.
        ending: The ending of the corrected file's name, such as ".nii.gz".
    """

    segmentation: Segmentation
    paired_by: Pairing
    ending: str


def read_correction(path: Path, case: ReviewedCase) -> Correction:
    """A corrected mask: NIfTI, NRRD, MetaImage, grey picture, SEG or RTSTRUCT, on the grid of the image.

    The segments of a SEG are paired with those of the original by their Tracking UIDs, because editors give them new numbers. A
    segment whose Tracking UID is absent or unknown is paired with the structure of the same number.

    Args:
        path: The file.
        case: The case that was corrected.

    Raises:
        InputRefusedError: The mask has another grid, a structure is missing or unknown, or the file cannot be read.
    """
    if not path.is_file():
        raise InputRefusedError(
            f"the correction {path.name} is not a file; a NIfTI, SEG or RTSTRUCT with the corrected mask is needed"
        )
    ending = ".nii.gz" if has_ending(path, (".nii.gz",)) else path.suffix.lower() or ".dcm"
    header = None if has_ending(path, VOLUME_ENDINGS + PICTURE_ENDINGS) else _dicom_header(path, case.image)
    # Of counted objects some may have been deleted, joined or added
    if header is not None and header.get("SegmentSequence") and not counts_objects(case.document):
        numbers, paired_by = _paired_numbers(path, header, case)
        _check_names(path, case, numbers)
        return Correction(_read_seg(path, numbers, case), paired_by, ending)
    if not counts_objects(case.document):
        if header is not None:
            _check_regions(path, header, case)
        _check_names(path, case, {structure.number: structure.number for structure in case.structures})
    segmentation = read_segmentation(path, case.image, case.document, case.segmentation.segments)
    return Correction(segmentation, "image grid", ending)


def _check_names(path: Path, case: ReviewedCase, numbers: Mapping[int, int]) -> None:
    """Raises InputRefusedError if names in a correction say that its numbers mean other structures than in the result.

    `numbers`: of each structure of the result its number in the correction.
    """
    described = {segment.number: segment for segment in case.segmentation.segments}
    result = LabelTable({number: segment.label for number, segment in described.items()}, "the result")
    own = names_in_file(path)
    names = LabelTable({number: own[other] for number, other in numbers.items() if other in own}, path.name)
    if moved := [value for value, other in names.held_against(result, described).items() if value != other]:
        raise InputRefusedError(
            f"{names}; {result}; number {moved[0]} has another meaning; the numbers of the result are needed; give them back"
        )


def _dicom_header(path: Path, image: Volume | None = None) -> Dataset:
    with refusing_as(f"the correction {path.name}"):
        header = load_dataset(path)
        if image is not None:
            check_belongs(header, image)
        return header


def _paired_numbers(path: Path, header: Dataset, case: ReviewedCase) -> tuple[dict[int, int], Pairing]:
    """Number of each structure of the result -> number of its segment in the correction.

    Raises:
        InputRefusedError: A structure has no segment, or a segment belongs to no structure.
    """
    original_uids = _tracking_uids(_original_seg(case))
    with refusing(path):
        number_of = {uid: number for number, uid in _tracking_uids(header).items()}
        numbers = segment_numbers(path)
    tracked = {number: number_of[uid] for number, uid in original_uids.items() if uid in number_of}
    untracked = set(numbers) - set(tracked.values())
    same = [structure.number for structure in case.structures if structure.number not in tracked]
    pairs = tracked | {number: number for number in same if number in untracked}
    missing = [structure.label for structure in case.structures if structure.number not in pairs]
    unknown = sorted(untracked - set(pairs.values()))
    if missing or unknown:
        raise InputRefusedError(
            f"the correction {path.name} lacks {', '.join(missing) or 'nothing'} and has the segments "
            f"{unknown or 'none'} beyond the result; one segment for each structure is needed, empty where it was deleted; "
            "export all of them, and nothing else"
        )
    return pairs, "tracking UID" if tracked else "image grid"


def _original_seg(case: ReviewedCase) -> Dataset:
    """The header of the result's SEG; empty if the result has no SEG."""
    if "seg" not in case.document["files"]:
        return Dataset()
    return _dicom_header(named_file(case.folder / "result.json", case.document, "seg"))


def _tracking_uids(header: Dataset) -> dict[int, str]:
    """SegmentNumber -> Tracking UID of the segments that have one."""
    items = header.get("SegmentSequence") or []
    return {int(item.SegmentNumber): str(item.TrackingUID) for item in items if item.get("TrackingUID")}


def _read_seg(path: Path, numbers: Mapping[int, int], case: ReviewedCase) -> Segmentation:
    """The segments of a corrected SEG, in the order of the structures that `numbers` pairs them with."""
    with refusing_as(f"the correction {path.name}"):
        if _dicom_header(path).get("SegmentationType") == "FRACTIONAL":
            raise InputRefusedError(
                f"the correction {path.name} is FRACTIONAL and holds probabilities; a BINARY or LABELMAP SEG is needed; "
                "export it so"
            )
        labels = _label_map(path, case.image)
        if labels is None:
            order, channels = segment_numbers(path), read_segments(path, case.image).channels
            chosen = [order.index(numbers[structure.number]) for structure in case.structures]
            labels = channels if chosen == list(range(len(channels))) else channels[chosen]
            return Segmentation(case.image, labels, case.segmentation.segments)
    own = np.zeros(max(numbers.values()) + 1, number_type(len(case.structures)))
    for position, structure in enumerate(case.structures, start=1):
        own[numbers[structure.number]] = position
    for plane in labels:
        plane[...] = own[plane]
    exclusive = is_exclusive(case.document)
    return Segmentation.of_numbers(case.image, labels, case.segmentation.segments, exclusive=exclusive)


def _label_map(path: Path, image: Volume) -> NDArray[Any] | None:
    """The segments of a SEG as one label map of their numbers, shape (I, J, K); None if they overlap."""
    try:
        return read_seg(path, image).array
    except LabelError:
        # Whatever else is wrong, reading them as channels tells it again
        return None


def _check_regions(path: Path, header: Dataset, case: ReviewedCase) -> None:
    """Raises InputRefusedError if a structure set does not describe every structure, by its number.

    A region that is described and has no contour was deleted; a structure that is not described was not looked at.
    """
    with refusing(path):
        described = {int(item.ROINumber) for item in header.get("StructureSetROISequence") or []}
    missing = [
        f"{structure.label} ({structure.number})" for structure in case.structures if structure.number not in described
    ]
    if missing:
        raise InputRefusedError(
            f"the correction {path.name} has no region for {', '.join(missing)}; one for each structure, with its number as "
            "ROINumber, is needed; export all of them"
        )


def correction_document(correction: Correction, case: ReviewedCase) -> dict[str, Any]:
    """The part of a record that describes a correction, with a row for each structure.

    A row has these figures, rounded to the digits that mean something: "dice" and "surface_dice", 0 to 1, where 1 means that
    nothing changed; "mean_surface_distance" in mm, or None if the structure is empty before or after; "size_difference",
    corrected minus original, in mL; "added_path_length" in mm. For a picture, lengths and sizes are in pixels. Where objects
    are numbered: "objects", how many there were and are, and "panoptic_quality", 0 to 1, where 1 means that all are as before.

    Args:
        correction: On the grid of the image.
        case: The case that was corrected.
    """
    pairs = zip(case.structures, correction.segmentation.structures, strict=True)
    return {
        "file_kind": correction.ending,
        "paired_by": correction.paired_by,
        "unit": case.image.length_unit,
        "size_unit": case.image.size_unit,
        "tolerance": TOLERANCE,
        "structures": [_change(original, corrected, case.image) for original, corrected in pairs],
    }


def _change(original: Structure, corrected: Structure, volume: Volume) -> dict[str, Any]:
    """The row of `correction_document` for one structure."""
    # Beyond the box of both there is nothing; where it ends, a mask has its border
    box = original.box_with(corrected)
    masks = (corrected.mask_in(box), original.mask_in(box))
    # A picture is measured in its plane: along a third axis of one voxel every pixel would lie on the surface
    flat = [volume.without_flat_axis(mask) for mask in masks]
    distances = boundary.surface_distances(flat[0], flat[1], volume.axis_spacing)
    mean_distance = boundary.average_surface_distance(distances)
    spacing = (*volume.axis_spacing, 1.0)[:3]  # a picture has two axes; its masks have a third axis of length 1
    parts = (corrected.parts_in(box), original.parts_in(box))
    objects = dict[str, Any]()
    if original.numbers_objects:
        quality = match_components(parts[1], parts[0]).panoptic_quality
        objects = {"objects": [original.objects, corrected.objects], "panoptic_quality": round(quality, 5)}
    return {
        "number": original.number,
        "label": original.label,
        "dice": round(dice(flat[0], flat[1]), 5),
        "surface_dice": round(boundary.normalised_surface_dice(distances, tolerance_mm=TOLERANCE), 5),
        "mean_surface_distance": round(mean_distance, 4) if np.isfinite(mean_distance) else None,
        "size_difference": round((corrected.voxels - original.voxels) * volume.voxel_size, 5),
        "added_path_length": round(added_path_length(*parts, spacing, slice_axis(volume)), 3),
        **objects,
    }


def added_path_length(
    corrected: NDArray[Any], original: NDArray[Any], spacing: boundary.Spacing, across: int = 2
) -> float:
    """The length of outline that a reader had to draw: the corrected outlines, slice by slice, without the original outlines.

    An outline is the voxels of a mask that share a side with a voxel outside of the mask in the same slice. The voxels of the
    corrected outlines that are not on an original outline are counted. Each is as long as a pixel of the slice is wide; if the
    sides of a pixel differ, as the root of their product. Where a part was only removed, the new outline is counted too.

    Args:
        corrected: Shape (I, J, K): a mask, or the number of each voxel's object, 0 outside; objects have an outline each.
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
    added = (slice_border(corrected, across) > 0) & (slice_border(original, across) == 0)
    sides = np.delete(np.asarray(spacing, dtype=np.float64), across)
    return float(np.count_nonzero(added) * np.sqrt(sides.prod()))


def store_training_case(
    correction: Correction, case: ReviewedCase, measured: Mapping[str, Any], folder: Path, subject: str | None = None
) -> str:
    """Adds a corrected case to a folder that `monai-unet train --data` takes, and gives the id of the case.

    The folder holds images/, labels/ and provenance/, with files of the same name. Neither name nor provenance holds the
    patient's identity; the comment is left out because it may hold an identity. The image of a head identifies a
    person all the same, so the folder must be protected like patient data.

    Args:
        correction: On the grid of the image.
        case: The case that was corrected.
        measured: The `correction_document`.
        folder: The folder of the training cases; created where it is absent.
        subject: Pseudonym of the patient; letters, digits, - and _. By default a pseudonym of the study: two results of a study
            then have one subject, and two studies of a patient have two.

    Raises:
        InputRefusedError: Structures overlap, so that a voxel would need two labels, or a PNG cannot hold a picture.
    """
    # Hashed, because a Study Instance UID leads to the patient in the archive
    study = case.document["source"]["study_instance_uid"] or case.result_sha256
    subject = _checked(subject or f"study{hashlib.sha256(study.encode()).hexdigest()[:12]}")
    name = f"{subject}_{case.result_sha256[:8]}"
    labels = _training_labels(correction, case)
    parts = {folder / "images": case.image.array, folder / "labels": labels}
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
    for part, array in parts.items():
        if case.image.planar:
            _save_picture(array, part / f"{name}.png")
        else:
            write_nifti(array, case.image, part / f"{name}.nii.gz")
    provenance = {
        "schema_version": SCHEMA_VERSION,
        "id": name,
        "subject": subject,
        "origin": "corrected by a reader",
        "bundle": case.document["bundle"],
        "result_sha256": case.result_sha256,
        "modality": case.document["source"]["modality"],
        **_meanings(case),
        "correction": dict(measured),
    }
    write_json(provenance, folder / "provenance" / f"{name}.json", "review_case")
    return name


def _meanings(case: ReviewedCase) -> dict[str, Any]:
    """What the label values of a training case mean."""
    if counts_objects(case.document):
        return {"labels": {}, "objects": case.structures[0].label}
    return {"labels": {str(structure.number): structure.label for structure in case.structures}}


def _training_labels(correction: Correction, case: ReviewedCase) -> NDArray[np.uint8 | np.uint16]:
    """Shape (I, J, K): the number of the structure, or of the counted object, at each voxel, 0 for background.

    Raises:
        InputRefusedError: Structures overlap, or a number is above 255.
    """
    if correction.segmentation.objects is not None:
        return np.asarray(correction.segmentation.objects[0])
    labels = np.zeros(case.image.shape, np.uint8)
    for structure in correction.segmentation.structures:
        mask, here = structure.mask, labels[structure.box]
        if here[mask].any() or structure.number > np.iinfo(np.uint8).max:
            raise InputRefusedError(
                f"structure {structure.number} of the correction overlaps another; a training label has one class a voxel, "
                "from 1 to 255; store it by hand, a file for each structure"
            )
        here[mask] = structure.number
    return labels


def _save_picture(array: NDArray[Any], path: Path) -> None:
    """Writes a picture, grey (I, J, 1) or in colour (I, J, 1, 3), as PNG of 8 bits, or of 16 where grey values need them."""
    plane = np.moveaxis(array[:, :, 0], 0, 1)
    pixels = plane.astype(np.uint8 if plane.ndim == 3 or plane.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16)
    if (pixels != plane).any():
        raise InputRefusedError(
            f"the picture has values from {array.min():g} to {array.max():g}; whole numbers that a PNG holds are needed, "
            "8 bits in colour and 16 in grey; store it by hand"
        )
    Image.fromarray(pixels).save(path)


def _checked(subject: str) -> str:
    if not subject.replace("-", "").replace("_", "").isalnum() or not subject.isascii():
        raise InputRefusedError(
            f"the subject's pseudonym has {len(subject)} characters, not all of them letters, digits, - or _; only these are "
            "allowed because file names contain it; choose another"
        )
    return subject

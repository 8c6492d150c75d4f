"""Labels to a DICOM RT Structure Set and back.

Contours are CLOSED_PLANAR, one set a slice, in LPS mm with three decimals. They run half-way between the
centre of a voxel inside and the centre of its neighbour outside (level 0.5), so every voxel centre stays at
least 0.35 voxels away from a contour and rounding cannot move it to the other side. Holes are joined to their
outer contour by a keyhole: a bridge walked forth and back, the technique that PS3.3 C.8.8.6.3 names for
CLOSED_PLANAR; it fills right under the even-odd and the winding rule. Parts that touch by a corner only are
contours of their own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage

from dicom_io import proof
from dicom_io.errors import LabelError
from dicom_io.objects import identity
from dicom_io.objects.contours import contours
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.places import (
    TOLERANCE_VOXELS,
    check_frame_of_reference,
    check_grid,
    check_patient_space,
    slice_key,
    slices_of,
)
from dicom_io.objects.raster import even_odd
from dicom_io.objects.rt_contours import walk_rtstruct, without_area
from dicom_io.objects.rt_object import build_rtstruct
from dicom_io.reading.instances import load_object, refusing
from dicom_io.seg import check_labels, in_slices
from dicom_io.volume import Volume

__all__ = ["contours", "read_rtstruct", "write_rtstruct"]

MIN_SPACING_MM = 0.01  # below, three decimals of a millimetre could move a contour over a voxel centre

Floats = NDArray[np.float64]


def write_rtstruct(labels: Volume, source: Volume, path: Path, result: ResultInfo, *, prove: bool = True) -> Path:
    """Write labels as contours on the slices they were made from; approval status UNAPPROVED.

    Args and errors are those of `write_seg`; labels that overlap (4D) are welcome. A segment without voxels
    becomes a region without contours.
    """
    check_labels(labels, result)
    _check_space(source)
    if min(source.spacing_mm[:2]) < MIN_SPACING_MM:
        raise LabelError(
            f"the pixels are {min(source.spacing_mm[:2]):.5f} mm apart; at least {MIN_SPACING_MM} mm is "
            "needed because contours are written with three decimals; write a SEG instead"
        )
    headers = identity.source_headers(source, of_each=False)
    slices = slices_of(source, headers)
    check_grid(labels, source, slices)
    labels = in_slices(labels)
    built = build_rtstruct(labels, source, headers, slices, result)
    return proof.save_proved(
        built.save, path, (lambda file: proof.prove_rtstruct(file, labels, source, slices)) if prove else None
    )


def read_rtstruct(path: Path, reference: Volume) -> Volume:
    """The regions of an RTSTRUCT as labels on the grid of `reference`.

    A voxel belongs to a region if its centre is inside by the even-odd rule over all contours of the region
    in its slice. Slices are found by patient position; a contour's named instance must agree with it. Points and open
    lines enclose no voxel: they are left out, and the provenance's notes say so.

    Returns:
        `reference` with label values = ROINumber, shape (I, J, K), uint8 (uint16 above 255).

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: Not an RTSTRUCT, another frame of reference, contours between slices or of no known type,
            overlapping regions, or a ROINumber that cannot be a label value.
    """
    dataset = load_object(path, "an RT Structure Set", (RTStructureSetStorage,))
    check_patient_space(reference)
    with refusing(path):
        return _regions(dataset, reference)


def _regions(dataset: Dataset, reference: Volume) -> Volume:
    for keyword in ("StructureSetROISequence", "ROIContourSequence"):
        if keyword not in dataset:
            raise LabelError(
                f"the structure set has no {keyword}, so nothing says which regions it has; a whole one is needed"
            )
    for item in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        check_frame_of_reference(item.get("FrameOfReferenceUID"), reference)
    numbers = [int(item.ROINumber) for item in dataset.get("StructureSetROISequence") or []]
    if not all(0 < number < 65536 for number in numbers):
        raise LabelError(
            f"the regions are numbered {sorted(numbers)}; numbers from 1 to 65535 are needed because they "
            "become label values; renumber the regions"
        )
    array = np.zeros(reference.shape, dtype=np.uint8 if max(numbers, default=0) < 256 else np.uint16)
    for (roi, k), loops in sorted(_loops(dataset, reference).items()):
        inside = even_odd(loops, (reference.shape[1], reference.shape[0])).T
        taken = array[:, :, k][inside]
        if taken.any():
            raise LabelError(
                f"region {roi} overlaps region {int(taken.max())}; regions that exclude each other are "
                "needed; split the structure set into one file for each"
            )
        array[:, :, k][inside] = roi
    return _with_note(reference.with_array(array), without_area(dataset))


def _with_note(labels: Volume, passed_by: dict[int, int]) -> Volume:
    """The same labels; where regions have points or open lines, their provenance says that they are not in."""
    if not passed_by:
        return labels
    told = ", ".join(f"{count} in region {roi}" for roi, count in sorted(passed_by.items()))
    note = f"points and open lines enclose no voxel and were left out: {told}"
    return replace(labels, provenance=replace(labels.provenance, notes=(*labels.provenance.notes, note)))


def _check_space(source: Volume) -> None:
    if source.planar:
        raise LabelError(
            "the source is a picture without patient space; contours are in millimetres of the patient; write a SEG"
        )


def _loops(dataset: Dataset, reference: Volume) -> dict[tuple[int, int], list[Floats]]:
    """Contours by (ROINumber, slice k) in pixel coordinates (column, row) of the reference."""
    to_index = np.linalg.inv(reference.affine_lps)
    slices = {slice_key(reference, k): k for k in range(len(reference.provenance.sop_instance_uids))}
    loops: dict[tuple[int, int], list[Floats]] = {}
    for contour in walk_rtstruct(dataset):
        index = contour.points_mm @ to_index[:3, :3].T + to_index[:3, 3]
        k = _slice_of(contour.roi, index, reference.shape[2])
        named = slices.get(contour.source_uid or "", k)
        if named != k:
            raise LabelError(
                f"a contour of region {contour.roi} names slice {named} of the image but lies in slice {k}; "
                "name and position must agree; use the structure set that was made for this image"
            )
        loops.setdefault((contour.roi, k), []).append(index[:, :2])
    return loops


def _slice_of(roi: int, index: Floats, count: int) -> int:
    k = int(np.rint(index[:, 2].mean()))
    if not 0 <= k < count:
        raise LabelError(
            f"a contour of region {roi} lies in slice {k}; slices 0 to {count - 1} of the image are needed; "
            "use the structure set that was made for this image"
        )
    away = float(np.abs(index[:, 2] - k).max())
    if away > TOLERANCE_VOXELS:
        raise LabelError(
            f"a contour of region {roi} lies {away:.2f} slices away from slice {k} of {count}; contours on "
            "the slices of the image are needed; use the structure set that was made for this image"
        )
    return k

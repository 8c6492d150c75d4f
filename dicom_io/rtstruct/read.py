"""An RT Structure Set of any software to labels or channels on the grid of an image."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage

from dicom_io.errors import LabelError
from dicom_io.objects.grid import check_some_left, named_slices, told_slices, with_made_slices
from dicom_io.objects.raster import entangled, filled
from dicom_io.objects.slice_positions import TOLERANCE_VOXELS, check_patient_space
from dicom_io.reading.headers import shown_uid
from dicom_io.reading.instances import load_object, refusing
from dicom_io.reading.titles import numbers_called, without_patient
from dicom_io.rtstruct.parse import closed_contours, without_area, without_repeats
from dicom_io.volume import Volume, number_type

LEFT_OUT = "points and open lines enclose no voxel and were left out"
EMPTY = "contours without points were left out"
TWICE = "contours that occur a second time were left out"
CANCELLED = "CLOSEDPLANAR_XOR contours that occur a second time cancel out the first"
NOTHING = "contours enclose no voxel's centre"
VANISHED = "holes enclose the same voxels as the contour around them and leave no voxel"
OTHER_TIMES = "contours that name images of other time points of this series were left out"
SPARSE = "contours lie on every second slice or fewer, and the slices between are empty"
BEYOND = "contours reach beyond the image and were cut at its edge"
_WAY_OUT = (
    "use the structure set that was made for this image, or read the wanted regions by name (monai-unet regions --roi, "
    "read_regions)"
)
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def read_rtstruct(path: Path, reference: Volume) -> Volume:
    """The regions of an RTSTRUCT as labels on the grid of `reference`.

    Slices are found by patient position; a contour must lie on one of the instances that it names. A voxel belongs to a region
    if its centre is inside by the even-odd rule over all contours of the region in its slice. This is the rule of
    CLOSEDPLANAR_XOR contours. For CLOSED_PLANAR contours the standard has only the keyhole to leave a part out, and does not
    define two contours that share an area (PS3.3 C.8.8.6.3). A contour within another is read as a hole, as many programs write
    it, and a repeated contour is left out. Two contours that overlap in part are refused, because their sum or their difference
    could be meant.

    The notes of the provenance list what the labels do not show: points and open lines, which enclose no voxel, contours that
    have no points, are repeated, enclose no voxel's centre or reach beyond the image, and holes that leave nothing.

    Returns:
        `reference` with label values = ROINumber, shape (I, J, K), uint8 (uint16 above 255).

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: Not an RTSTRUCT, regions in another frame of reference, contours between slices, of no known type, of no
            described region or overlapping in part, overlapping regions, or a ROINumber that cannot be a label value.
    """
    dataset = load_object(path, "an RT Structure Set", (RTStructureSetStorage,))
    check_patient_space(reference)
    with refusing(path):
        numbers = _numbers(dataset)
        if not all(0 < number < 65536 for number in numbers):
            raise LabelError(
                f"the regions are numbered {_some(numbers)}; numbers from 1 to 65535 are needed because they become label "
                "values; renumber the regions, or write them by monai-unet regions, which numbers anew"
            )
        array = np.zeros(reference.shape, dtype=number_type(max(numbers, default=0)))
        note_counts: dict[str, Counter[int]] = {}
        for roi, k, inside in _regions(dataset, reference, note_counts):
            taken = array[:, :, k][inside.T]
            if taken.any():
                raise LabelError(
                    f"region {roi} overlaps region {int(taken.max())}; regions that exclude each other are needed for one "
                    "label map; read some of them by name, or each as a channel of its own (read_regions)"
                )
            # Contours have rows first, volumes have columns (axis I) first.
            array[:, :, k][inside.T] = roi
        return with_made_slices(_with_notes(reference.with_array(array), note_counts))


def read_regions(path: Path, reference: Volume, names: Sequence[str] | None = None) -> Volume:
    """Regions of a structure set on the grid of `reference`, a channel each, which may overlap.

    Args:
        path: A structure set by whatever software, as for `read_rtstruct`.
        reference: As there.
        names: ROINames of the regions to read, in the order of the channels; None for all, by their ROINumbers.

    Returns:
        `reference` with shape (I, J, K, C), uint8, 1 where a region is; notes as `read_rtstruct`.

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: As `read_rtstruct`, but for overlapping regions; or a name is of no region, or of several.
    """
    dataset = load_object(path, "an RT Structure Set", (RTStructureSetStorage,))
    check_patient_space(reference)
    with refusing(path):
        numbers = _numbers(dataset)
        chosen = numbers if names is None else numbers_called(dataset, _named(dataset), names, "region")
        # A region lies in one piece, so that the system gives memory only where some voxel is set.
        array = np.zeros((len(chosen), *reference.shape[::-1]), dtype=np.uint8).T
        note_counts: dict[str, Counter[int]] = {}
        for roi, k, inside in _regions(dataset, reference, note_counts, frozenset(chosen)):
            array[:, :, k, chosen.index(roi)][inside.T] = 1
        return with_made_slices(_with_notes(reference.with_array(array), note_counts))


def region_names(path: Path) -> dict[int, str]:
    """The ROIName of each region by its ROINumber, which is its label value.

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: Not an RTSTRUCT, or one that does not describe its regions.
    """
    dataset = load_object(path, "an RT Structure Set", (RTStructureSetStorage,))
    with refusing(path):
        named = dict(_named(dataset))
        return {number: named[number] for number in _numbers(dataset)}


def _named(dataset: Dataset) -> list[tuple[int, str]]:
    """ROINumber and ROIName of each region, in the order of the file."""
    return [
        (int(item.ROINumber), str(item.get("ROIName") or "")) for item in dataset.get("StructureSetROISequence") or []
    ]


def _regions(
    dataset: Dataset, reference: Volume, note_counts: dict[str, Counter[int]], chosen: frozenset[int] | None = None
) -> Iterator[tuple[int, int, Mask]]:
    """ROINumber, slice and voxels, shape (rows, columns), of all regions or the chosen ones; fills `note_counts`."""
    wanted = frozenset(_numbers(dataset)) if chosen is None else chosen  # others cannot hinder these
    _check_frames_of_reference(dataset, reference, wanted)
    note_counts[LEFT_OUT] = Counter(without_area(dataset, wanted))
    # Sorted, so that the same overlap is named whatever the order of the file.
    for (roi, k), drawn in sorted(_drawn(dataset, reference, wanted, note_counts).items()):
        inside, notes = _inside(roi, k, drawn, (reference.shape[1], reference.shape[0]))
        for note, count in notes.items():
            note_counts.setdefault(note, Counter())[roi] += count
        yield roi, k, inside


def _numbers(dataset: Dataset) -> list[int]:
    """The ROINumbers that a structure set describes."""
    for keyword in ("StructureSetROISequence", "ROIContourSequence"):
        if keyword not in dataset:
            raise LabelError(
                f"the structure set has no {keyword}, so its regions are unknown; a complete structure set is needed; "
                "export it again"
            )
    numbers = sorted(int(item.ROINumber) for item in dataset.get("StructureSetROISequence") or [])
    if len(set(numbers)) < len(numbers):
        raise LabelError(
            f"the regions are numbered {_some(numbers)}; different numbers are needed; renumber the regions"
        )
    drawn = [item for item in dataset.get("ROIContourSequence") or [] if item.get("ContourSequence")]
    unknown = sorted({int(item.ReferencedROINumber) for item in drawn} - set(numbers))
    if unknown:
        raise LabelError(
            f"there are contours of the regions {_some(unknown)}, described are {_some(numbers)}; each needs its "
            "description; export the structure set again"
        )
    return numbers


def _check_frames_of_reference(dataset: Dataset, reference: Volume, wanted: frozenset[int]) -> None:
    """Pass if each wanted region names the frame of reference of the image (Type 1, PS3.3 C.8.8.5).

    For a region that names none, all frames count that the structure set lists. Raises LabelError for another frame.
    """
    of_image = reference.provenance.frame_of_reference_uid
    listed = [item.get("FrameOfReferenceUID") for item in dataset.get("ReferencedFrameOfReferenceSequence") or []]
    elsewhere: dict[str, list[int]] = {}
    for item in dataset.get("StructureSetROISequence") or []:
        if int(item.ROINumber) not in wanted:
            continue
        own = item.get("ReferencedFrameOfReferenceUID")
        for uid in [own] if own else listed:
            if uid and of_image and uid != of_image:
                elsewhere.setdefault(str(uid), []).append(int(item.ROINumber))
    if elsewhere:
        regions = "; ".join(f"regions {_some(rois)} in {shown_uid(uid)}" for uid, rois in list(elsewhere.items())[:4])
        raise LabelError(
            f"there are regions in another frame of reference than the image, which has {shown_uid(of_image)}: {regions}; "
            "the same one is needed; use the structure set that was made for this image, or register them first"
        )


@dataclass
class _Drawn:
    """The contours of a region in a slice, (n, 2) points (column, row) in pixels each; `exclusive`: any is CLOSEDPLANAR_XOR."""

    loops: list[Floats] = field(default_factory=list)
    exclusive: bool = False


def _inside(roi: int, k: int, drawn: _Drawn, shape: tuple[int, int]) -> tuple[Mask, Counter[str]]:
    """Shape (rows, columns): the voxels of a region in a slice; and the notes, each with its number of contours."""
    notes: Counter[str] = Counter()
    once = without_repeats(drawn.loops)
    loops = drawn.loops if drawn.exclusive else once
    notes[CANCELLED if drawn.exclusive else TWICE] = len(drawn.loops) - len(once)
    pixels = filled(loops, shape)
    depth = np.bincount(np.concatenate(pixels), minlength=shape[0] * shape[1])
    if not drawn.exclusive and depth.max() > 1:
        _check_not_entangled(roi, k, loops, shape)
    # Even-odd rule: inside are the voxels that an odd number of contours enclose.
    inside = (depth & 1).astype(bool).reshape(shape)
    notes[NOTHING] = sum(not len(voxels) for voxels in pixels)
    if depth.max() > 1:
        # Contours around the same voxels cancel out under the even-odd rule.
        areas = [voxels.tobytes() for voxels in filled(once, shape) if len(voxels)]
        notes[VANISHED] = len(areas) - len(set(areas))
    # The image ends half a voxel beyond the last centre.
    last = np.array(shape[::-1]) - 0.5 + TOLERANCE_VOXELS
    notes[BEYOND] = sum(bool((loop < -0.5 - TOLERANCE_VOXELS).any() or (loop > last).any()) for loop in loops)
    return inside, notes


def _check_not_entangled(roi: int, k: int, loops: list[Floats], shape: tuple[int, int]) -> None:
    pair = entangled(loops, shape)
    if pair:
        first, second = (set(voxels.tolist()) for voxels in filled([loops[number] for number in pair], shape))
        raise LabelError(
            f"two CLOSED_PLANAR contours of region {roi} in slice {k}, of {len(first)} and {len(second)} voxels, share "
            f"{len(first & second)} and neither lies within the other, so that their sum or their difference could be meant; "
            "contours that are separate or one within the other are needed; unite them, or export them as CLOSEDPLANAR_XOR"
        )


def _with_notes(labels: Volume, note_counts: dict[str, Counter[int]]) -> Volume:
    """The same labels with notes in their provenance; a note that counts no contour is left out."""
    counts = {note: {roi: count for roi, count in sorted(of.items()) if count} for note, of in note_counts.items()}
    notes = tuple(
        f"{note}: {', '.join(f'{count} in region {roi}' for roi, count in of.items())}"
        for note, of in counts.items()
        if of
    )
    return replace(labels, provenance=replace(labels.provenance, notes=(*labels.provenance.notes, *notes)))


def _some(numbers: list[int]) -> str:
    """The first twenty numbers, for a message."""
    return f"{numbers[:20]}{' ...' * (len(numbers) > 20)}"


def _drawn(
    dataset: Dataset, reference: Volume, wanted: frozenset[int], note_counts: dict[str, Counter[int]]
) -> dict[tuple[int, int], _Drawn]:
    """Contours of the wanted regions by (ROINumber, slice k) in pixel coordinates of the reference; fills `note_counts`."""
    other_times, taken = note_counts.setdefault(OTHER_TIMES, Counter()), 0
    called = {roi: f"{roi} ({without_patient(dataset, name)})".removesuffix(" ()") for roi, name in _named(dataset)}
    to_index = np.linalg.inv(reference.affine_lps)
    slices = named_slices(reference)
    by_slice: dict[tuple[int, int], _Drawn] = {}
    for contour in closed_contours(dataset, wanted):
        if not len(contour.points_mm):
            note_counts.setdefault(EMPTY, Counter())[contour.roi] += 1
            continue
        if contour.named and reference.provenance.other_times.issuperset(contour.named):
            other_times[contour.roi] += 1
            continue
        taken += 1
        index = contour.points_mm @ to_index[:3, :3].T + to_index[:3, 3]
        # The place decides; the names of images can only contradict it.
        k = _slice_of(called[contour.roi], index, reference.shape[2])
        named = sorted({slices[key] for key in contour.named if key in slices})
        if named and k not in named:
            raise LabelError(
                f"a contour of region {contour.roi} names {told_slices(named)} of the image but lies in slice {k}; "
                "name and position must agree; use the structure set that was made for this image"
            )
        drawn = by_slice.setdefault((contour.roi, k), _Drawn())
        drawn.loops.append(index[:, :2])
        drawn.exclusive |= contour.exclusive
    check_some_left(other_times.total(), taken, "contour(s)")
    for roi in {roi for roi, _ in by_slice}:
        gaps = np.diff(sorted(k for other, k in by_slice if other == roi))
        if len(gaps) and np.gcd.reduce(gaps) > 1:
            note_counts.setdefault(SPARSE, Counter())[roi] += len(gaps) + 1
    return by_slice


def _slice_of(roi: str, index: Floats, count: int) -> int:
    # By the mean, because rounding scatters the points of a contour about its plane.
    k = int(np.rint(index[:, 2].mean()))
    if not 0 <= k < count:
        raise LabelError(
            f"a contour of region {roi} lies in slice {k}; slices 0 to {count - 1} of the image are needed; {_WAY_OUT}"
        )
    away = float(np.abs(index[:, 2] - k).max())
    if away > TOLERANCE_VOXELS:
        raise LabelError(
            f"a contour of region {roi} lies {away:.2f} slices away from slice {k} of {count}; contours on "
            f"the slices of the image are needed; {_WAY_OUT}"
        )
    return k

"""Frames of other objects on the voxels of an image: nothing is interpolated, so a pixel must be a voxel.

It is not enough that pixel centres fall on voxel centres: the centres of pixels twice as wide do so too, and would fill only
every second voxel. So the steps are compared, from pixel to pixel and from slice to slice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import LabelError
from dicom_io.objects.slice_positions import TOLERANCE_VOXELS, Floats, Plane, check_patient_space
from dicom_io.volume import Affine, Volume

STEP_TOLERANCE = 0.02
"""The largest difference of two steps, as a share of the step: sizes are rounded, and grids are fitted to rounded positions."""

NO_GAP_MM = 1.0
"""The gap that highdicom writes for a single slice, whatever its source states."""

Integers = NDArray[np.int64]


class FrameGrid:
    """Finds the voxels of an image on which the pixels of an object's frames lie.

    Each object has a `FrameGrid` of its own. It notes where the frames lie, and `finish` compares their gaps with those of the
    image.

    Attributes:
        reference: The image.
        slices: K by what names a slice (`Provenance.slice_keys`); empty where K does not count the instances.
    """

    def __init__(self, reference: Volume) -> None:
        self.reference = reference
        self.slices = named_slices(reference)
        self._to_index: Affine = np.linalg.inv(reference.affine_lps).astype(np.float64)
        self._depths: dict[int, set[float]] = {}
        self._normals: dict[int, Floats] = {}
        self._stated_mm: set[float] = set()
        self._confirmed = True

    def voxels(
        self, name: str, plane: Plane, columns: NDArray[Any], rows: NDArray[Any], gap_mm: float | None = None
    ) -> Integers:
        """Shape (n, 3): the voxels (i, j, k) under pixels of a frame.

        Args:
            name: Names the frame in a message.
            plane: Where it lies.
            columns, rows: Shape (n,): its pixels.
            gap_mm: SpacingBetweenSlices; None where the frame does not state it.

        Raises:
            LabelError: The image has no patient space, or pixels are larger or smaller than voxels, turned against them,
                between them or outside.
        """
        check_patient_space(self.reference)
        self._note(self._axis_across(name, plane), plane, gap_mm)
        index = plane.points_mm(columns, rows) @ self._to_index[:3, :3].T + self._to_index[:3, 3]
        voxels = np.rint(index).astype(np.int64)
        away = float(np.abs(index - voxels).max(initial=0.0))
        # `not <=` instead of `>`, so that NaN is refused too.
        if not away <= TOLERANCE_VOXELS:
            raise LabelError(
                f"{name} has pixels {away:.2f} voxels away from the image's grid; at most {TOLERANCE_VOXELS} is needed; "
                "resample it to the image first"
            )
        if (voxels < 0).any() or (voxels >= self.reference.shape).any():
            raise LabelError(
                f"{name} has pixels outside the image, whose grid is {self.reference.shape}; pixels on voxels are needed; "
                "use the file that was made for this image"
            )
        return voxels

    def check_named(self, name: str, keys: Sequence[str], ks: NDArray[Any]) -> None:
        """Pass if a frame lies in a slice that it names, or names no slice of the image.

        Args:
            name: The frame in words, for the message.
            keys: The slices that the frame names, as `Slice.key`.
            ks: Shape (n,): the indices of the slices that its pixels lie in.

        Raises:
            LabelError: The frame lies in another slice.
        """
        named = sorted({self.slices[key] for key in keys if key in self.slices})
        self._confirmed &= bool(named)
        wrong = ks[~np.isin(ks, named)] if named else ks[:0]
        if len(wrong):
            raise LabelError(
                f"{name} names {told_slices(named)} of the image but lies in slice {int(wrong[0])}; name and position must "
                "agree; the file was written with its slices out of order, or for another image"
            )

    def is_of_other_time(self, keys: Sequence[str]) -> bool:
        """Whether a frame or contour names slices of other time points of this series, and nothing else."""
        return bool(keys) and self.reference.provenance.other_times.issuperset(keys)

    def finish(self, name: str) -> None:
        """Pass if the frames are as far apart as the slices of the image.

        Frames may be missing where a slice is empty, so the gap that the frames state must fit (PS3.3 C.7.6.16.2.1; along the
        normal, or between centres as some writers have it). A stated gap does not count if frames lie closer together or at no
        multiple of it: some writers copy a wrong gap from the image. Without a stated gap, three slices or more at multiples
        of a larger step are taken for slices of that step.

        Frames that lie in the slices which they name need to state none.

        Args:
            name: Names the object in a message.

        Raises:
            LabelError: The gaps differ.
        """
        if self._confirmed and not self._stated_mm:
            return
        for axis, depths in self._depths.items():
            gap_mm = self.reference.spacing_mm[axis]
            other_mm = self._other_gap(axis, np.array(sorted(depths), dtype=np.float64))
            if other_mm is not None:
                raise LabelError(
                    f"the slices of {name} are {other_mm:.2f} mm apart, those of the image {gap_mm:.2f} mm; one gap is "
                    "needed because nothing is interpolated; resample it to the image first, or read it on the image that it "
                    "was made on"
                )

    def _other_gap(self, axis: int, depths: Floats) -> float | None:
        """The gap of frames at these indices along an axis, in mm; None where it is the gap of the image."""
        gap_mm, gaps = self.reference.spacing_mm[axis], np.diff(depths)
        along_normal_mm = abs(float(self.reference.affine_lps[:3, axis] @ self._normals[axis]))
        if self.reference.shape[axis] == 1 or not len(depths):
            return None
        if len(gaps) and gaps.min() < 1:  # two frames would fall into one slice of the image
            return float(gaps.min()) * gap_mm
        least = float(gaps.min(initial=np.inf))
        stated = [mm for mm in self._stated_mm if self._is_possible(mm, [least * gap_mm, least * along_normal_mm])]
        if stated:
            other = [mm for mm in stated if not _fits(mm, gap_mm) and not _fits(mm, along_normal_mm)]
            return max(other, default=None)
        # slices that all lie at multiples of two steps or more: a coarser object, not an object that leaves out empty slices
        steps = int(np.gcd.reduce(np.rint(gaps).astype(np.int64))) if len(gaps) > 1 else 1
        return steps * gap_mm if steps > 1 and not self.reference.provenance.resampled else None

    def _is_possible(self, stated_mm: float, least_mm: Sequence[float]) -> bool:
        """Whether frames may have a stated gap, given their smallest distances (infinite if all lie at one place)."""
        # A single place does not show the gap; highdicom's own 1 mm does not count as a statement.
        if np.isinf(least_mm).all():
            return stated_mm != NO_GAP_MM
        # The smallest distance must be a multiple of the gap; up to half a gap would round to no gap at all.
        return any(mm > stated_mm / 2 and _fits(stated_mm * round(mm / stated_mm), mm) for mm in least_mm)

    def _axis_across(self, name: str, plane: Plane) -> int:
        """The axis of the image across a plane. Raises LabelError if pixels differ from voxels in size or direction."""
        # The steps from pixel to pixel in voxels: on the same grid, 1 along one axis and 0 along the others.
        steps = [self._to_index[:3, :3] @ step for step in (plane.column_step_mm, plane.row_step_mm)]
        axes = [int(np.argmax(np.abs(step))) for step in steps]
        for step, axis in zip(steps, axes, strict=True):
            unit = np.zeros(3)
            unit[axis] = np.sign(step[axis])
            if not np.abs(step - unit).max() <= STEP_TOLERANCE or axes[0] == axes[1]:
                pixels = _sizes(plane.pixel_mm)
                voxels = _sizes(self.reference.spacing_mm[axis] for axis in axes)
                raise LabelError(
                    f"{name} has pixels of {pixels} mm, the voxels of the image are {voxels} mm along them; the same size and "
                    "direction are needed because nothing is interpolated; resample it to the image first"
                )
        # The axes are 0, 1 and 2, so their sum gives the third.
        return 3 - sum(axes)

    def _note(self, axis: int, plane: Plane, gap_mm: float | None) -> None:
        normal = np.cross(plane.column_step_mm, plane.row_step_mm)
        self._normals[axis] = normal / np.linalg.norm(normal)
        depth = float((self._to_index[:3, :3] @ plane.origin_mm + self._to_index[:3, 3])[axis])
        # A frame without labels may lie outside the image, where it says nothing about the gaps.
        if 0 <= depth + TOLERANCE_VOXELS < self.reference.shape[axis]:
            whole = abs(depth - round(depth)) <= TOLERANCE_VOXELS
            # rounded, so that the frames of several segments on one slice count as one place
            self._depths.setdefault(axis, set()).add(round(depth) if whole else round(depth, 1))
        if gap_mm is not None:
            self._stated_mm.add(gap_mm)


def with_made_slices(labels: Volume) -> Volume:
    """Labels, on every empty slice that a repair of their image made those of the nearest slice of the series, with a note."""
    made = labels.provenance.made_slices
    filled = [(k, near) for k, near in made if labels.array[:, :, near].any() and not labels.array[:, :, k].any()]
    if not filled:
        return labels
    for k, nearest in filled:
        labels.array[:, :, k] = labels.array[:, :, nearest]
    return with_notes(
        labels, f"{len(filled)} slice(s) that the repair made have the labels of the nearest slice of the series"
    )


def with_notes(volume: Volume, *notes: str) -> Volume:
    """The same volume with further notes in its provenance."""
    return replace(volume, provenance=replace(volume.provenance, notes=(*volume.provenance.notes, *notes)))


def check_some_left(left_out: int, taken: int, what: str) -> tuple[str, ...]:
    """A note on what belongs to other time points of the series. Raises LabelError if all of it does."""
    if left_out and not taken:
        raise LabelError(
            f"all {left_out} {what} name images of other time points of this series; those of the chosen one are needed; "
            "choose their time point with --time-point, or take them by their place with --by-place"
        )
    return (f"{left_out} {what} of other time points were left out",) if left_out else ()


def named_slices(reference: Volume) -> dict[str, int]:
    """Key of a slice -> its K; empty for a resampled image, whose K axis does not count its instances."""
    if reference.provenance.resampled:
        return {}
    return {key: k for k, key in enumerate(reference.provenance.slice_keys)}


def told_slices(ks: Sequence[int]) -> str:
    """Slices for a message: "slice 3", "slices 1, 2"; at most three."""
    return f"slice{'s' * (len(ks) > 1)} {', '.join(map(str, ks[:3]))}{' ...' * (len(ks) > 3)}"


def _fits(one_mm: float, other_mm: float) -> bool:
    return abs(one_mm - other_mm) <= STEP_TOLERANCE * other_mm


def _sizes(sizes_mm: Iterable[float]) -> str:
    return " x ".join(f"{size:.2f}" for size in sizes_mm)

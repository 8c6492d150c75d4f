"""An array that knows its place.

World space is LPS millimetres, as in DICOM: +x to the patient's Left, +y to Posterior, +z to Superior (head).
NIfTI and the tensors given to MONAI speak RAS; `Volume.from_ras` and `Volume.affine_ras` are the only bridge.
"""

from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

Affine = NDArray[np.float64]
Kind = Literal["dicom", "nifti", "itk", "image", "array"]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


STATE = 'state them, if you know them: --directions LPS, or "directions": "LPS" in a dataset.json beside it'
"""The end of a message about a file that does not state where its axes run."""

UNKNOWN_UNITS = frozenset(("", "US"))
"""Of `Provenance.unit`: not stated, or "unspecified" (PS3.3 C.11.1.1.2)."""

STATED = "its axes run towards {}, as was stated beside the file"
_TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


def lps_from(directions: str) -> Affine:
    """Shape (4, 4): mm along axes that run towards three directions of the patient, such as "RAS", to LPS mm.

    Raises ValueError for other letters than one of each of L and R, P and A, S and I.
    """
    ends = [_TOWARDS.get(letter, (3, 1)) for letter in directions.upper()]
    if sorted(axis for axis, _ in ends) != [0, 1, 2]:
        raise ValueError(
            f"{directions[:16]!r} are not three directions of the patient; such as LPS, RAS or LAS is needed"
        )
    found = np.zeros((4, 4))
    found[3, 3] = 1
    for place, (axis, sign) in enumerate(ends):
        found[axis, place] = sign
    return found


def corner_indices(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Shape (4, 8): the homogeneous indices of a grid's corner voxels.

    Two grids of one shape are the same place only if all eight agree: two opposite corners stay where they are when axes
    are swapped or the grid turns about its diagonal.
    """
    ends = [(0, size - 1) for size in shape]
    return np.array([(*corner, 1) for corner in product(*ends)], dtype=np.float64).T


@dataclass(frozen=True)
class Provenance:
    """Where the voxels came from. Holds UIDs and paths, never a patient's identity.

    Attributes:
        kind: "dicom", "nifti", "itk" (NRRD, MetaImage), "image" (2D picture without patient space) or "array".
        modality: DICOM Modality such as "MR"; None if the source does not say it.
        sop_instance_uids: One UID for each slice along array axis K, in array order; empty unless `kind` is "dicom".
            A multi-frame object repeats its one UID.
        frame_numbers: 1-based frame of `sop_instance_uids[k]` that holds slice k; empty for single-frame objects.
        files: Source files, in array order if each slice has its own file.
        notes: What the reader accepted or repaired, one sentence each.
        resampled: True if the voxels are no longer those of the slices, because a repair was asked for. The
            instances are then the slices in their order along the normal, and there may be more or fewer than K.
        headers: The data sets without pixels, one for each instance, if they came from memory and not from files.
        pixel_mm: Of a picture without patient space whose header has PixelSpacing: distance of neighbouring pixels along
            I and J, in mm. In a projection it holds in one plane only; `notes` says which.
        incomplete: True if the source's own headers count more images than there were, and it was read on request.
        patient_digest: sha256 of PatientID and IssuerOfPatientID, see `headers.patient_digest`; empty if the source names
            no patient.
        patient_id_digest: The same of PatientID alone, since objects of one patient may leave the issuer out.
        others: Of an image whose channels come from several files or series: where the further channels come from.
        other_times: Keys, as `slice_keys`, of the slices of the series that belong to time points that were not chosen.
        unit: Of the values of a DICOM series, as it states it, such as "HU" or "BQML"; "stored values" for CT without a
            rescale; empty where nothing says it.
        made_slices: K of each slice that a repair made between slices of the series, and K of the nearest of these.
    """

    kind: Kind
    modality: str | None = None
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    frame_of_reference_uid: str | None = None
    sop_instance_uids: tuple[str, ...] = ()
    frame_numbers: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    resampled: bool = False
    headers: tuple[Dataset, ...] = field(default=(), repr=False, compare=False)
    pixel_mm: tuple[float, float] | None = None
    incomplete: bool = False
    patient_digest: str = ""
    patient_id_digest: str = ""
    others: tuple["Provenance", ...] = ()
    other_times: frozenset[str] = field(default=frozenset(), repr=False)
    made_slices: tuple[tuple[int, int], ...] = ()
    unit: str = ""

    @property
    def slice_keys(self) -> tuple[str, ...]:
        """The key of each slice: its SOP Instance UID, with "#frame" behind it if the object has several frames."""
        if not self.frame_numbers:
            return self.sop_instance_uids
        return tuple(f"{uid}#{frame}" for uid, frame in zip(self.sop_instance_uids, self.frame_numbers, strict=True))


@dataclass(frozen=True)
class Volume:
    """Voxels on a grid in patient space.

    Attributes:
        array: Shape (I, J, K), or (I, J, K, C) with C channels last. A planar image has K = 1.
        affine_lps: Shape (4, 4), float64: array index (i, j, k, 1) of a voxel's centre to LPS millimetres.
            Column n is the step for array axis n; nothing says that axis 2 is the patient's z.
            A planar image without patient space has pixels, not millimetres, here.
        provenance: Where the voxels came from.
        planar: True for a 2D picture: K is 1 and there is no third dimension.
    """

    array: NDArray[Any]
    affine_lps: Affine
    provenance: Provenance = field(default_factory=lambda: Provenance("array"))
    planar: bool = False

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4):
            raise ValueError(f"array has shape {self.array.shape}; (I, J, K) or (I, J, K, C) is needed")
        affine = np.array(self.affine_lps, dtype=np.float64)
        is_usual = affine.shape == (4, 4) and np.isfinite(affine).all() and np.allclose(affine[3], (0, 0, 0, 1))
        if not is_usual or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(
                f"affine_lps must be an invertible, finite 4x4 matrix whose last row is 0, 0, 0, 1; found {affine.tolist()}"
            )
        # A copy that nobody can write to: a volume is frozen, and the caller's array may change.
        affine.setflags(write=False)
        object.__setattr__(self, "affine_lps", affine)

    @classmethod
    def from_ras(
        cls, array: NDArray[Any], affine_ras: Affine, provenance: Provenance | None = None, *, planar: bool = False
    ) -> "Volume":
        """A volume whose grid is given in RAS millimetres, as in NIfTI and MONAI.

        Args:
            array: Shape (I, J, K) or (I, J, K, C).
            affine_ras: Shape (4, 4): array index to RAS mm.
            provenance: None for `Provenance("array")`.
            planar: See `Volume`.
        """
        affine_lps = LPS_FROM_RAS @ np.asarray(affine_ras, dtype=np.float64)
        return cls(array, affine_lps, provenance or Provenance("array"), planar)

    @property
    def affine_ras(self) -> Affine:
        """Shape (4, 4): array index to RAS millimetres."""
        return LPS_FROM_RAS @ self.affine_lps

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K), without the channels."""
        i, j, k = self.array.shape[:3]
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along I, J, K, in mm (pixels where there is no patient space)."""
        i, j, k = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres, also in a sheared grid."""
        return float(abs(np.linalg.det(self.affine_lps[:3, :3]))) / 1000.0

    @property
    def voxel_size(self) -> float:
        """Size of one voxel: millilitres, or 1 for a picture, which is measured in pixels."""
        return 1.0 if self.planar else self.voxel_ml

    @property
    def length_unit(self) -> str:
        """The unit of lengths: "mm", or "px" in a picture."""
        return "px" if self.planar else "mm"

    @property
    def size_unit(self) -> str:
        """The unit of sizes: "mL", or "px" in a picture."""
        return "px" if self.planar else "mL"

    @property
    def axis_spacing(self) -> tuple[float, ...]:
        """Distance of neighbouring voxels along each axis of `without_flat_axis`: three in mm, or two of 1 pixel."""
        return (1.0, 1.0) if self.planar else self.spacing_mm

    @property
    def in_colour(self) -> bool:
        """Whether it is a picture whose channels are colours."""
        return self.planar and self.array.ndim == 4

    @property
    def channels(self) -> NDArray[Any]:
        """The array with the channels first, shape (C, I, J, K); C is 1 if it has none."""
        return np.moveaxis(self.array, 3, 0) if self.array.ndim == 4 else self.array[None]

    def channel(self, number: int) -> "Volume":
        """One channel, counted from 0; the volume itself if it has no channels."""
        return self.with_array(self.array[..., number]) if self.array.ndim == 4 else self

    def without_flat_axis(self, array: NDArray[Any]) -> NDArray[Any]:
        """Shape (I, J, K) or (C, I, J, K) on this grid to (I, J) or (C, I, J) for a picture; unchanged for a volume."""
        return array[..., 0] if self.planar else array

    def with_flat_axis(self, array: NDArray[Any]) -> NDArray[Any]:
        """The way back from `without_flat_axis`: shape (C, I, J) to (C, I, J, 1) for a picture; unchanged for a volume."""
        return array[..., None] if self.planar else array

    @property
    def has_patient_space(self) -> bool:
        """False if the source states no millimetres and directions."""
        return self.provenance.kind in ("dicom", "nifti", "itk", "array") and not self.planar

    def with_array(self, array: NDArray[Any]) -> "Volume":
        """The same grid with other values, shape (I, J, K) or (I, J, K, C). Raises ValueError for another shape."""
        if array.shape[:3] != self.shape:
            raise ValueError(f"the new array has the grid {array.shape[:3]}, the volume {self.shape}")
        return replace(self, array=array)

    def cropped(self, box: tuple[slice, slice, slice]) -> "Volume":
        """A part of the volume in its place in the patient; slices with both ends along I, J, K, inside the grid."""
        affine = self.affine_lps.copy()
        # The origin is the centre of voxel (0, 0, 0)
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
        return replace(self, array=np.ascontiguousarray(self.array[box]), affine_lps=affine)

    def distance_mm(self, other: "Volume") -> float:
        """How far voxels with the same index lie apart at most, along x, y or z; in pixels where there is no patient space.

        Both grids are affine, so the largest distance is that of a corner. Entries of the two matrices say less: a step that is
        0.009 mm longer moves the last of 512 voxels by 4.6 mm.
        """
        return float(np.abs((self.affine_lps - other.affine_lps) @ corner_indices(self.shape)).max())

    def voxels_apart(self, other: "Volume") -> float:
        """As `distance_mm`, in steps of this grid along one of its axes."""
        away = (other.affine_lps - self.affine_lps) @ corner_indices(self.shape)
        return float(np.abs(np.linalg.solve(self.affine_lps[:3, :3], away[:3])).max())

    def on_grid_of(self, reference: "Volume", tolerance_mm: float = 0.01) -> "Volume":
        """The same voxels in the axis order and direction of `reference`; nothing is interpolated.

        Args:
            reference: Covers the same voxels with its axes swapped or reversed.
            tolerance_mm: How far voxel centres may lie apart.

        Raises:
            ValueError: The two grids are not the same voxels.
        """
        step = np.linalg.solve(self.affine_lps, reference.affine_lps)  # reference index -> own index
        rounded = np.rint(step)
        # For each axis of the reference: which own axis it is, and whether it runs the other way.
        order = [int(np.argmax(np.abs(rounded[:3, axis]))) for axis in range(3)]
        signs = [int(rounded[own, axis]) for axis, own in enumerate(order)]
        if sorted(order) != [0, 1, 2] or not set(signs) <= {-1, 1}:
            raise ValueError("the two grids have different axes; one must be the other with axes swapped or reversed")
        rest = list(range(3, self.array.ndim))
        turned = self.array.transpose([*order, *rest])[tuple(slice(None, None, sign) for sign in signs)]
        # Rounding to whole steps may hide a shift or another spacing; the distance of the corners does not.
        corners = corner_indices(reference.shape)
        own = np.ones_like(corners)
        for axis, (own_axis, sign) in enumerate(zip(order, signs, strict=True)):
            own[own_axis] = corners[axis] if sign > 0 else self.shape[own_axis] - 1 - corners[axis]
        distance_mm = float(np.abs(self.affine_lps @ own - reference.affine_lps @ corners)[:3].max())
        if turned.shape[:3] != reference.shape or distance_mm > tolerance_mm:
            raise ValueError(
                f"the grids are {turned.shape[:3]} and {reference.shape} voxels, {distance_mm:.2f} mm apart; the same voxels "
                f"within {tolerance_mm} mm are needed; take the series that the image was made from"
            )
        # A copy in the order of its memory; one in another order takes ten times as long
        return replace(reference, array=turned.copy(order="K"))


def number_type(largest: float) -> type[np.unsignedinteger[Any]]:
    """The smallest type of label values up to the largest: uint8 or uint16."""
    return np.uint8 if largest < 256 else np.uint16


def slice_by_slice(array: NDArray[Any]) -> NDArray[Any]:
    """The same voxels with each slice [:, :, k] contiguous in memory, columns fastest, as DICOM stores them.

    Args:
        array: Shape (I, J, K) or (I, J, K, C), in any order in memory.
    """
    turned = np.swapaxes(array, 0, 2)
    if turned.flags.c_contiguous:
        return array
    out = np.empty(turned.shape, array.dtype)
    for j in range(array.shape[1]):  # row by row: the source is read in pieces that fit the cache
        out[:, j] = np.swapaxes(np.ascontiguousarray(array[:, j]), 0, 1)
    return np.swapaxes(out, 0, 2)

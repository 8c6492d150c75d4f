"""What a new bundle is set to, each value with its reason, from the fingerprint of its data.

Every decision is a function of the fingerprint and gives a `Reasoned`; `plan` puts them together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from nibabel.orientations import axcodes2ornt

from monai_unet_app.data.fingerprint import CaseFingerprint
from monai_unet_app.planning.family import NetworkChoice
from monai_unet_app.planning.network import NetworkPlan

Value = TypeVar("Value")
Configuration = Literal["2d", "3d", "3d_low"]

ANISOTROPIC = 3.0  # slices so many times as thick as pixels are wide
ROTATION = 0.4
"""Radians, at most: 23 degrees."""

LOW_VOXELS = 2**19
"""Of a usual image on a coarse grid. Of abdomens a window then sees two fifths, and with 2**20 a fifth."""

_SPACING_MARGIN = 1.25  # of the spacings that were seen; other scanners have others
_EXTENT_MARGIN = 1.5


@dataclass(frozen=True)
class Reasoned(Generic[Value]):
    """A value, and why it is this one."""

    value: Value
    reason: str = ""


Decisions = dict[str, Reasoned[Any]]
"""By the name of a value in the templates."""

Speed = Callable[[NetworkPlan, int, int], float]
"""Seconds that a training step takes for each window of a network: its plan, its channels in and out."""


@dataclass(frozen=True)
class PlanConfig:
    """What a user says of a plan.

    Attributes:
        data: As in `find_data`.
        labels: Folder of labels, if `data` holds images only.
        label_suffix: End of a label's name that its image's name lacks.
        structures: Names of the label values; None takes those of `dataset.json`.
        splits: A plan of the cases, as in `plan_of`; None takes what a list or nnU-Net tells, or deals the subjects.
        objects: Name of the objects that label values number; None where these are classes.
        modality: DICOM's term; None takes that of the files.
        configuration: 2d, 3d, or 3d on a coarser grid; None takes 2d for pictures and 3d for volumes.
        memory_limit: Bytes that a training may take.
        time_s: Seconds that a training may take on this machine.
        networks: Trained together; their answer is the mean.
        network: Of the family.
        channels: Names of the channels that are a file or a series each; None takes those of the data.
        masks: Number of structures that share voxels and have a mask each; found out.
        one_hot: Labels are classes one-hot, the background first; found out.
        regions: Name of a structure -> its label values, of structures that may share voxels; empty takes those of the data.
        ignore: Label value of voxels without a class; None takes that of the data.
        white: Labels are pictures in black and white; found out.
    """

    data: Path
    labels: Path | None = None
    label_suffix: str = ""
    splits: Path | None = None
    structures: Mapping[int, str] = field(default_factory=dict)
    objects: str | None = None
    modality: str | None = None
    configuration: Configuration | None = None
    memory_limit: float = 8e9
    time_s: float = 3600.0
    networks: int = 1
    network: NetworkChoice = field(default_factory=NetworkChoice)
    channels: tuple[str, ...] | None = None
    masks: int = 0
    one_hot: bool = False
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore: int | None = None
    white: bool = False


def spacings_ras(cases: Sequence[CaseFingerprint]) -> np.ndarray:
    """Voxel size of each case along R, A and S in mm, shape (cases, 3)."""
    return np.array([_ras(case, case.spacing_mm or (1.0, 1.0, 1.0)) for case in cases])


def shapes_ras(cases: Sequence[CaseFingerprint]) -> np.ndarray:
    """Voxels of each case along R, A and S, shape (cases, 3); pictures keep width, height, 1."""
    return np.array([_ras(case, case.shape) for case in cases])


def flat_axis(cases: Sequence[CaseFingerprint]) -> int | None:
    """The axis of R, A and S along which every volume has one voxel; None for pictures and where there is none."""
    flat = np.flatnonzero((shapes_ras(cases) == 1).all(axis=0))
    return None if cases[0].axes == "px" or not flat.size else int(flat[0])


def _ras(case: CaseFingerprint, values: Sequence[float]) -> list[float]:
    """Values of the axes I, J, K in the order R, A, S."""
    if case.axes == "px":
        return list(values)
    axes = axcodes2ornt(tuple(case.axes))[:, 0].astype(int)
    return [values[list(axes).index(axis)] for axis in range(3)]


def target_spacing(cases: Sequence[CaseFingerprint], *, coarse: bool = False) -> Reasoned[tuple[float, ...]]:
    """Spacing of the grid of the network along R, A and S in mm.

    Args:
        cases: Volumes.
        coarse: Make voxels longer, the shortest first, until a usual image has LOW_VOXELS.
    """
    found = spacings_ras(cases)
    middle = np.median(found, axis=0)
    thick = int(middle.argmax())
    reason = f"the median of {len(cases)} images; they have {_span(found)} mm"
    if middle[thick] >= ANISOTROPIC * middle.min() and found[:, thick].max() > found[:, thick].min():
        # Thick slices: a tenth of the images is finer than that, and coarser ones gain nothing from a coarser grid
        middle[thick] = np.percentile(found[:, thick], 10)
        reason += f"; along {'RAS'[thick]}, the slices, the value that a tenth of them lie below"
    if coarse:
        size = np.median(shapes_ras(cases) * found, axis=0)
        while np.prod(size / middle) > LOW_VOXELS:
            finest = middle < 1.01 * middle.min()
            middle[finest] *= 1.01
        reason += f"; then coarser, the shortest first, until a usual image has {LOW_VOXELS / 1e6:.1f} million voxels"
    return Reasoned(tuple(float(f"{step:.3g}") for step in middle), reason)


def intensities(cases: Sequence[CaseFingerprint], modalities: Sequence[str | None]) -> Reasoned[Mapping[str, Any]]:
    """How intensities are normalised, each channel by itself.

    The values of a "range" are in the units of the image. "apart" lists how each of several channels is normalised.

    Args:
        cases: Of one kind.
        modalities: Of each channel; None where nothing states it.
    """
    if cases[0].axes == "px":
        return Reasoned({"kind": "each"}, "pictures: each channel of each picture by its own mean and deviation")
    told = [case.foreground for case in cases if case.foreground]
    if not told or "CT" not in modalities:
        named = " and ".join(dict.fromkeys(filter(None, modalities))) or "these"
        return Reasoned({"kind": "percentiles"}, _by_percentiles(named, several=len(modalities) > 1))
    # (channels, 4): percentile, mean, deviation, percentile
    of_channels = np.median(np.array(told), axis=0)
    kinds = [_range(*of) if modality == "CT" else {} for of, modality in zip(of_channels, modalities, strict=True)]
    cuts = " and ".join(f"{own['low']:.4g} to {own['high']:.4g}" for own in kinds if own)
    reason = (
        f"CT numbers mean the same in every scanner: cut to {cuts} HU, where 99 % of the voxels of the structures lie, and "
        "scaled by their mean and deviation"
    )
    if len(kinds) == 1:
        return Reasoned(kinds[0], reason)
    if others := dict.fromkeys(modality or "other" for modality in modalities if modality != "CT"):
        reason += f"; {_by_percentiles(' and '.join(others), several=True)}"
    return Reasoned({"kind": "apart", "channels": [own or {"kind": "percentiles"} for own in kinds]}, reason)


def _range(low: float, mean: float, deviation: float, high: float) -> dict[str, Any]:
    values = {"low": low, "high": high, "mean": mean, "deviation": deviation}
    return {"kind": "range"} | {name: float(f"{value:.5g}") for name, value in values.items()}


def _by_percentiles(named: str, *, several: bool) -> str:
    each = "each channel of each image" if several else "each image"
    return (
        f"{named} intensities have no unit: {each} is cut to its own 0.5th and 99.5th percentile, and then scaled by its own "
        "mean and deviation"
    )


def mirror_axes(
    sided: Sequence[str], unnamed: Sequence[str], *, planar: bool, slice_axis: int | None
) -> Reasoned[tuple[int, ...]]:
    """Axes of the network's input along which training mirrors, and `--tta`.

    Args:
        sided: Names of the structures that are left or right.
        unnamed: Those of the structures that nobody has named.
        planar: Whether images are pictures.
        slice_axis: The axis of the slices, for a 2D network on volumes.
    """
    if unnamed:
        return Reasoned(
            (),
            f"nothing is mirrored while structures have no name: {_names(unnamed)} may have a side; name them by --structure "
            "VALUE=NAME",
        )
    if planar:
        axes = (1,) if sided else (0, 1)
        why = f"width is left out: {_names(sided)} have a side" if sided else "a picture may have any orientation"
        return Reasoned(axes, f"{why}; training sees mirror images along these, and `--tta` averages over them")
    if sided:
        return Reasoned((), f"right and left are not exchanged: {_names(sided)} have a side")
    if slice_axis == 0:
        return Reasoned((), "right-left is the axis of the slices: a mirror image gives the network no new image")
    return Reasoned(
        (0,), "right-left, since no structure has a side; training sees mirror images, and `--tta` averages over them"
    )


def input_rules(
    cases: Sequence[CaseFingerprint], modalities: Sequence[str | None], names: Sequence[str]
) -> Reasoned[Mapping[str, Any]]:
    """What later images must be like: what was seen, with a margin, and the names of channels that are a file each."""
    channels = list(names) or cases[0].channels
    if cases[0].axes == "px":
        sizes = shapes_ras(cases)[:, :2]
        rules: dict[str, Any] = {"planar": True, "channels": channels, "extent_mm": _bounds(sizes)}
        return Reasoned(
            rules,
            f"{len(cases)} pictures of {_span(sizes, 0)} pixels were seen; sizes up to a half larger or smaller are accepted",
        )
    spacing, sizes = spacings_ras(cases), spacings_ras(cases) * shapes_ras(cases)
    steps = {
        "least": float(f"{spacing.min() / _SPACING_MARGIN:.2g}"),
        "most": float(f"{spacing.max() * _SPACING_MARGIN:.2g}"),
    }
    rules = {"modality": [modalities[0]]} if modalities[0] else {}
    rules |= {"channel_modality": list(modalities)} if len(set(modalities)) > 1 else {}
    rules |= {"channels": channels, "spacing_mm": steps, "extent_mm": _bounds(sizes)}
    return Reasoned(
        rules,
        f"{len(cases)} images with voxels of {spacing.min():.3g} to {spacing.max():.3g} mm and fields of view of "
        f"{_span(sizes, 0)} mm were seen; voxels may be a quarter, fields of view a half larger or smaller",
    )


def _bounds(sizes: np.ndarray) -> dict[str, list[int]]:
    least, most = sizes.min(axis=0) / _EXTENT_MARGIN, sizes.max(axis=0) * _EXTENT_MARGIN
    return {"least": list(map(math.floor, least)), "most": list(map(math.ceil, most))}


def ratios(shares: Mapping[str, float]) -> Reasoned[list[int]]:
    """How often a window is drawn about a voxel of each class, the background first.

    Args:
        shares: Of all voxels, by the name of a structure.
    """
    smallest = min(shares, key=shares.__getitem__)
    return Reasoned(
        [len(shares)] + [1] * len(shares),
        "half of the windows around a voxel of the background, half around a voxel of a structure, each structure as often "
        "as the "
        f"others: {smallest} fills {shares[smallest]:.2%} of the images",
    )


def rotations(spacing_mm: Sequence[float]) -> Reasoned[list[float]]:
    """Largest rotation about each axis in radians: none that would turn long voxels into short ones.

    A rotation about an axis mixes the two others. A voxel of length L that is turned by ROTATION reaches over L sin(ROTATION)
    along the shorter voxels, of length S. Beyond S, which is at L / S = 2.6, a turned image is blurred over several voxels in a
    direction in which no image of the scanner is, and the network would learn what it never sees.
    """
    degrees = math.degrees(ROTATION)
    if len(spacing_mm) == 2:
        return Reasoned([ROTATION], f"in the plane, by {degrees:.0f} degrees")
    ranges = []
    for axis in range(3):
        others = [step for other, step in enumerate(spacing_mm) if other != axis]
        ranges.append(ROTATION if max(others) * math.sin(ROTATION) <= min(others) else 0.0)
    longest, shortest = max(spacing_mm), min(spacing_mm)
    reach = f"a voxel side of {longest:.3g} mm that is turned by {degrees:.0f} degrees reaches over "
    reach += f"{longest * math.sin(ROTATION):.2g} mm"
    if 0.0 in ranges:
        kept = [name for name, largest in zip("RAS", ranges, strict=True) if largest]
        about = f"only about {' and '.join(kept)}" if kept else "about no axis"
        return Reasoned(ranges, f"{about}: {reach}, more than the voxels of {shortest:.3g} mm")
    return Reasoned(ranges, f"about every axis: {reach}, no more than the shortest side of {shortest:.3g} mm")


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _span(rows: np.ndarray, digits: int = 2) -> str:
    """Least to most of each column: "1.25-1.89 x 1.25-1.89 x 7.7"."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    ends = ((f"{a:.{digits}f}", f"{b:.{digits}f}") for a, b in zip(low, high, strict=True))
    return " x ".join(a if a == b else f"{a} to {b}" for a, b in ends)

"""The plan: the position of every window on one image, listed where it is asked for. No tensor is touched here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any

from monai.data.utils import dense_patch_slices

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class WindowSettings:
    """The sliding window of a bundle, as its `inferer` states it, and how a run uses it.

    Attributes:
        window: Size along each spatial axis of the image, in voxels; a 2D network on a volume has 1 along its slice axis.
        overlap: Share of a window that its neighbour covers too, 0 to less than 1.
        batch: Number of windows in one call of the engine.
        mode: "gaussian" or "constant".
        sigma_scale: Width of the Gaussian as a share of the window.
        padding_mode: As in `torch.nn.functional.pad`.
        padding_value: For padding_mode "constant".
        mirror_axes: Spatial axes, counted from 0. Logits are the mean over the windows of the image and of its mirror images
            along every combination of these axes.
        most_bytes: Of the sums of windows in memory; the others wait on disk. No value depends on it.
        of_nnunet: Windows are spread, weighted and summed up as nnU-Net does it, of each network by itself.
    """

    window: tuple[int, ...]
    overlap: float
    batch: int
    mode: str
    sigma_scale: float
    padding_mode: str
    padding_value: float
    mirror_axes: tuple[int, ...] = ()
    most_bytes: float = math.inf
    of_nnunet: bool = False

    @classmethod
    def of(cls, inferer: Any, slice_axis: int | None) -> "WindowSettings":
        """Those of a `SlidingWindowInferer` of MONAI. Raises TypeError or ValueError for what is no number."""
        from monai_unet_app.inference.nnunet import WindowInferer

        values = vars(inferer)  # MONAI types them for every possible use; a bundle gives plain numbers
        # SliceInferer writes a 3D size into roi_size when it runs; orig_roi_size keeps the 2D size
        window = [int(size) for size in values.get("orig_roi_size", values["roi_size"])]
        if min(window) < 1:
            raise ValueError(f"the window is {window}")
        if slice_axis is not None:
            window.insert(slice_axis, 1)
        return cls(
            window=tuple(window),
            overlap=float(values["overlap"]),
            batch=int(values["sw_batch_size"]),
            mode=str(values["mode"]),
            sigma_scale=float(values["sigma_scale"]),
            padding_mode=str(values["padding_mode"]),
            padding_value=float(values["cval"]),
            of_nnunet=isinstance(inferer, WindowInferer),
        )

    def plan(self, shape: tuple[int, ...]) -> "WindowPlan":
        """The windows of an image of this spatial shape. Raises ValueError as `plan_windows`."""
        return plan_windows(shape, self.window, self.overlap, self.mirror_axes, spread=self.of_nnunet)


@dataclass(frozen=True)
class Window:
    """One window of an image, or of one of its mirror images.

    Attributes:
        place: Position in the padded image.
        mirrored: Spatial axes, counted from 0, along which the network sees the window reversed.
    """

    place: Slices
    mirrored: tuple[int, ...] = ()


@dataclass(frozen=True)
class WindowPlan:
    """Windows over an image that was padded where it is smaller than one window.

    Attributes:
        window: Size of every window, in voxels for each spatial axis.
        padded_shape: The image's shape after padding.
        starts: Where windows begin along each axis of the padded image.
        inside: Position of the original image in the padded image.
        mirror_axes: Spatial axes, counted from 0; every combination of them is a mirror image with windows of its own.
    """

    window: tuple[int, ...]
    padded_shape: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    inside: Slices
    mirror_axes: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of windows. It takes no memory, however large the image is."""
        return (1 << len(self.mirror_axes)) * math.prod(map(len, self.starts))

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Position of each window in the padded image, in the order of their computation."""
        places = [
            tuple(slice(start, start + size) for start, size in zip(corner, self.window, strict=True))
            for corner in product(*self.starts)
        ]
        windows = [
            Window(_mirrored(place, self.padded_shape, axes), axes)
            for axes in _combinations(self.mirror_axes)
            for place in places
        ]
        # By the first axis, then the second, and so on, for all mirror images together: rows are finished early. Sorting
        # is stable.
        windows.sort(key=lambda window: [side.start for side in window.place])
        return tuple(windows)


def plan_windows(
    shape: tuple[int, ...],
    window: tuple[int, ...],
    overlap: float,
    mirror_axes: Sequence[int] = (),
    *,
    spread: bool = False,
) -> WindowPlan:
    """The same windows as those of MONAI's SlidingWindowInferer, so that both give the same voxels.

    With `mirror_axes`, each mirror image has the windows that it would have by itself.

    Args:
        shape: Spatial shape of the image.
        window: Window size; 0 or less takes the whole image along that axis.
        overlap: Share of a window that its neighbour covers too, 0 to less than 1.
        mirror_axes: Spatial axes, counted from 0; every combination of them is a mirror image.
        spread: Windows stand at even distances, as nnU-Net's, rather than the last one back from its place.

    Raises:
        ValueError: Shape and window differ in their number of axes, or the overlap is out of range.
    """
    if len(shape) != len(window) or not 0 <= overlap < 1:
        raise ValueError(
            f"shape {shape}, window {window}, overlap {overlap}: equal axes and 0 <= overlap < 1 are needed"
        )
    size = tuple(w if w > 0 else s for s, w in zip(shape, window, strict=True))
    padded = tuple(max(s, w) for s, w in zip(shape, size, strict=True))
    # As MONAI pads: half on each side, and of an odd number the larger half behind
    before = tuple((p - s) // 2 for s, p in zip(shape, padded, strict=True))
    # As in MONAI's _get_scan_interval; an overlap near 1 still moves on by one voxel
    steps = (w if w == p else max(1, int(w * (1 - overlap))) for w, p in zip(size, padded, strict=True))
    sides = zip(padded, size, steps, strict=True)
    starts = tuple(
        _evenly(n, w, max(1.0, w * (1 - overlap))) if spread else _by_steps(n, w, step) for n, w, step in sides
    )
    inside = tuple(slice(b, b + s) for b, s in zip(before, shape, strict=True))
    return WindowPlan(size, padded, starts, inside, tuple(mirror_axes))


def _by_steps(length: int, window: int, step: int) -> tuple[int, ...]:
    """Where windows begin along an axis; MONAI moves the last one back, so that it ends at the border and stays inside."""
    return tuple(place[0].start for place in dense_patch_slices((length,), (window,), (step,)))


def _evenly(length: int, window: int, step: float) -> tuple[int, ...]:
    """Where windows begin along an axis that they divide evenly, at most a step apart, as nnU-Net places them."""
    last = length - window
    count = math.ceil(last / step)
    return tuple(round(last / count * n) for n in range(count + 1)) if count else (0,)


def shape_of(box: Slices) -> tuple[int, ...]:
    """Voxels of a box along each axis."""
    return tuple(side.stop - side.start for side in box)


def whole_box(shape: Sequence[int]) -> Slices:
    """The box that is the whole grid."""
    return tuple(slice(0, n) for n in shape)


def within(box: Slices, outer: Slices) -> Slices:
    """The part of a box that lies in another one, relative to that one; without voxels if they share none."""
    return tuple(
        slice(max(0, side.start - own.start), max(0, min(side.stop, own.stop) - own.start))
        for side, own in zip(box, outer, strict=True)
    )


def _combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


def _mirrored(place: Slices, shape: tuple[int, ...], axes: tuple[int, ...]) -> Slices:
    """The position in the image of a window that stands at `place` in the mirror image."""
    return tuple(
        slice(shape[axis] - side.stop, shape[axis] - side.start) if axis in axes else side
        for axis, side in enumerate(place)
    )

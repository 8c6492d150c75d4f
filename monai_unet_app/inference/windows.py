"""The plan: the position of every window on one image. No tensor is touched here."""

from dataclasses import dataclass

from monai.data.utils import dense_patch_slices

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class WindowPlan:
    """Windows over an image that was padded where it is smaller than one window.

    Attributes:
        window: Size of every window, in voxels for each spatial axis.
        before: Voxels of padding before each axis.
        padded_shape: The image's shape after padding.
        windows: Position of each window in the padded image, in the order of their computation.
        inside: Position of the original image in the padded image.
    """

    window: tuple[int, ...]
    before: tuple[int, ...]
    padded_shape: tuple[int, ...]
    windows: tuple[Slices, ...]
    inside: Slices


def plan_windows(shape: tuple[int, ...], window: tuple[int, ...], overlap: float) -> WindowPlan:
    """The same windows as those of MONAI's SlidingWindowInferer, so that both give the same voxels.

    Args:
        shape: Spatial shape of the image.
        window: Window size; 0 or less takes the whole image along that axis.
        overlap: Share of a window that its neighbour covers too, 0 to less than 1.

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
    step = tuple(w if w == p else max(1, int(w * (1 - overlap))) for w, p in zip(size, padded, strict=True))
    inside = tuple(slice(b, b + s) for b, s in zip(before, shape, strict=True))
    # dense_patch_slices moves the last window of an axis back, so that it ends at the border and stays inside
    return WindowPlan(size, before, padded, tuple(map(tuple, dense_patch_slices(padded, size, step))), inside)

"""nnU-Net's preprocessing as a MONAI transform, and the way back to the source grid as another.

An image comes as (C, I, J, K), a picture as (C, I, J), on the grid of its file. nnU-Net counts the axes of a file from the last
to the first and may exchange them (`transpose_forward`); it crops to what is not 0, normalises, and resamples. The working grid
here is nnU-Net's, with its order of axes; of a picture without the axis of one slice that nnU-Net puts before it.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, find_objects
from torch import Tensor

from monai_unet_app.inference.nnunet.resampling import Kernel, new_shape, resized, resizing_bytes

_EPSILON = 1e-8
_PICTURE_MM = 999.0  # nnU-Net's distance of the slices of a picture


class Preprocessed(MapTransform):
    """nnU-Net's preprocessing of "image", and of "label" by the nearest voxel.

    Args:
        keys: The image, and perhaps a label map, shape (1 or L, *spatial).
        transpose: `transpose_forward` of the plan.
        spacing: Of the working grid in mm, by its axes; of a 2D configuration without its first axis, which keeps its own.
        normalisation: For each channel "scheme" (`ZScoreNormalization`, `CTNormalization`, `NoNormalization`,
            `RescaleTo01Normalization`, `RGBTo01Normalization`), "masked" (only what is not outside counts) and "intensities"
            (nnU-Net's properties of the foreground).
        image_kernel, logits_kernel: Arguments of `Kernel`.
    """

    def __init__(
        self,
        keys: Sequence[str],
        transpose: Sequence[int],
        spacing: Sequence[float],
        normalisation: Sequence[Mapping[str, Any]],
        image_kernel: Mapping[str, Any],
        logits_kernel: Mapping[str, Any],
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.transpose, self.spacing, self.normalisation = tuple(transpose), tuple(spacing), normalisation
        self.image_kernel, self.logits_kernel = Kernel(**image_kernel), Kernel(**logits_kernel)

    def working_shape(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
        """The shape of an image (I, J, K), spacing in mm, on the grid of the network; a smaller one where it is cropped."""
        order = _order(3, self.transpose)
        old = [float(spacing[axis]) for axis in order]
        return new_shape([shape[axis] for axis in order], old, self._new_spacing(old))

    def _new_spacing(self, old: Sequence[float]) -> Sequence[float]:
        """Of the working grid; a 2D configuration keeps the distance of slices."""
        return (old[0], *self.spacing)[-3:] if len(self.spacing) < 3 else self.spacing

    def extra_bytes(self, source: Sequence[int], working: Sequence[int], channels: int) -> float:
        """About what it takes in memory beside an image, a copy of it and its answer; for the memory planner."""
        # By length, since the image may have been turned
        old, new = sorted(source[: len(working)]), sorted(working)
        copies = math.prod(source) * (4.0 * channels + 2)  # in nnU-Net's order of axes, and what is not 0
        return copies + (resizing_bytes(old, new, self.image_kernel) if old != new else 0.0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its image as (C, *working), float32, normalised, and its label map on the same grid."""
        item = dict(data)
        image = item["image"]
        order = _order(image.ndim - 1, self.transpose)
        array = _turned(image, order)
        inside = binary_fill_holes((array != 0).any(0))
        (box,) = find_objects(inside.astype(np.uint8)) or (tuple(slice(0, n) for n in inside.shape),)
        cropped = array[(slice(None), *box)]
        for channel, rules in zip(cropped, self.normalisation, strict=True):
            _normalise(channel, inside[box], rules)
        old = _spacing(image, order)
        new = self._new_spacing(old)
        shape = new_shape(cropped.shape[1:], old, new)
        values = resized(cropped, shape, self.image_kernel, self.image_kernel.axis(old, new))
        thick = self.logits_kernel.axis(new, old)
        linear = tuple(axis != thick or self.logits_kernel.order_z == 1 for axis in range(3))
        lead = 3 - len(order)  # the axis of one slice of a picture
        record = {
            "order": order,
            "box": [(side.start, side.stop) for side in box[lead:]],
            "source": list(image.shape[1:]),
            "cropped": list(cropped.shape[1 + lead :]),
            "size": list(shape[lead:]),
            "linear": list(linear[lead:]),
            "affine": image.affine.tolist() if isinstance(image, MetaTensor) else None,
        }
        item["image"] = _tensor(values, image, record)
        if "label" in item:
            label = _turned(item["label"], order)[(slice(None), *box)]
            item["label"] = _tensor(resized(label, shape, Kernel(0), None), item["label"], record)
        return item


class ToSource(MapTransform):
    """Logits on the working grid -> logits on the source grid; NaN where the image was cropped, since nothing is known there.

    Args:
        keys: The logits, shape (C, *working).
        orig_keys: The preprocessed image, which remembers what was done to it.
    """

    def __init__(self, keys: Sequence[str], orig_keys: str) -> None:
        super().__init__(keys)
        self.orig_keys = orig_keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with logits (C, *source), float32."""
        from monai_unet_app.inference.way_back import way_back
        from monai_unet_app.inference.windows import whole_box

        item = dict(data)
        image = item[self.orig_keys]
        way = way_back(image)
        if way is None:
            raise ValueError("a transform of the preprocessing cannot be undone")
        affine = torch.tensor(image.applied_operations[0]["affine"], dtype=torch.float64)
        for key in self.key_iterator(item):
            logits = way(torch.as_tensor(item[key]).as_subclass(Tensor).float(), whole_box(way.source_shape))
            item[key] = MetaTensor(logits, affine=affine, meta=_without_place(image))
        return item


def _order(rank: int, transpose: tuple[int, ...]) -> list[int]:
    """For each axis of the working grid the axis of the source."""
    return [2 - axis for axis in transpose] if rank == 3 else [1, 0]


def _turned(image: Tensor, order: Sequence[int]) -> NDArray[np.float32]:
    """(C, *working axes) of an image (C, *source), a view of nnU-Net's array: the order in memory is part of its sums."""
    array = torch.as_tensor(image).as_subclass(Tensor).cpu().numpy()
    rank = array.ndim - 1
    own = np.array(
        array.transpose(0, *range(rank, 0, -1)), np.float32, order="C"
    )  # a copy, which is normalised in place
    if rank == 2:
        return own[:, None]
    return own.transpose(0, *(rank - axis for axis in order))


def _spacing(image: Tensor, order: Sequence[int]) -> tuple[float, ...]:
    """Of the source in mm along the working axes, as a NIfTI file states it: in single precision."""
    if len(order) == 2 or not isinstance(image, MetaTensor):
        return (_PICTURE_MM, 1.0, 1.0)
    lengths = np.linalg.norm(image.affine.cpu().numpy()[:3, :3].astype(np.float64), axis=0)
    return tuple(float(np.float32(f"{lengths[axis]:.6g}")) for axis in order)


def _normalise(image: NDArray[np.float32], inside: NDArray[np.bool_], rules: Mapping[str, Any]) -> None:
    """One channel in place, in nnU-Net's order of arithmetic."""
    scheme = rules["scheme"]
    if scheme == "ZScoreNormalization" and rules["masked"]:
        image[inside] = (image[inside] - image[inside].mean()) / max(image[inside].std(), _EPSILON)
    elif scheme == "ZScoreNormalization":
        mean, deviation = image.mean(), image.std()
        image -= mean
        image /= max(deviation, _EPSILON)
    elif scheme == "CTNormalization":
        known = rules["intensities"]
        np.clip(image, known["percentile_00_5"], known["percentile_99_5"], out=image)
        image -= known["mean"]
        image /= max(known["std"], _EPSILON)
    elif scheme == "RescaleTo01Normalization":
        image -= image.min()
        image /= max(image.max(), _EPSILON)
    elif scheme == "RGBTo01Normalization":
        image /= 255.0


def _without_place(image: Tensor) -> dict[str, Any]:
    """The metadata of an image, but for its affine."""
    return {key: value for key, value in getattr(image, "meta", {}).items() if key != "affine"}


def _tensor(values: NDArray[np.float32], source: Tensor, record: Mapping[str, Any]) -> MetaTensor:
    """Values (C, [1,] *working) with their place, and with what was done to the source."""
    order, rank = record["order"], len(record["order"])
    values = values.reshape(len(values), *record["size"])
    affine = np.eye(rank + 1)
    for axis, (to, (start, _), old, new) in enumerate(
        zip(order, record["box"], record["cropped"], record["size"], strict=True)
    ):
        affine[:, axis] = 0
        affine[to, axis], affine[to, rank] = old / new, start + (old / new - 1) / 2
    # A picture has no position in the patient, and MONAI gives it the affine of a volume
    before = source.affine.cpu().numpy() if isinstance(source, MetaTensor) and rank == 3 else np.eye(rank + 1)
    place = torch.from_numpy(before @ affine)
    out = MetaTensor(torch.from_numpy(np.ascontiguousarray(values)), affine=place, meta=_without_place(source))
    done = list(getattr(source, "applied_operations", []))
    out.applied_operations = [*done, {"class": "nnUNetCrop", **record}, {"class": "nnUNetResampling", **record}]
    return out

"""A conditional random field after the network: voxels that are near and look alike get alike labels.

A mean-field approximation of the fully connected model of Krähenbühl & Koltun, Efficient inference in fully connected CRFs with
Gaussian edge potentials, NIPS 2011, arXiv:1210.5644, with the pairs of each voxel cut off at a box around it, so that the sums
are exact and need no lattice. A bundle names `MeanFieldCRFd` in `tidy`; MONAI's own `CRF` needs compiled extensions.
"""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, ResampleToMatch
from torch import Tensor

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.outputs import Outputs, outputs_that_decide

MOST_BYTES = 1 << 32
_LEAST = 1e-6  # of a probability whose logarithm is taken

Offset = tuple[int, ...]


@dataclass(frozen=True)
class Kernels:
    """The pairwise terms. A pair at the offset d costs less with one label, by the sum of two kernels:

        appearance[0] g(d / appearance[1]) exp(-|difference of intensities|^2 / (2 appearance[2]^2))
        smoothness[0] g(d / smoothness[1])

    g is a Gaussian whose values over the box sum to 1.

    Attributes:
        appearance: Weight, standard deviation in mm, and in standard deviations of the image's intensities.
        smoothness: Weight, and standard deviation in mm.
        reach_mm: Half the side of the box.
        spacing_mm: Voxel size along each spatial axis.
    """

    appearance: Sequence[float]
    smoothness: Sequence[float]
    reach_mm: float
    spacing_mm: Sequence[float]

    @cached_property
    def pairs(self) -> list[tuple[Offset, float, float]]:
        """One of each two opposite offsets in voxels, with both kernels there, but for the intensities."""
        reach = [math.floor(self.reach_mm / step + 1e-6) for step in self.spacing_mm]
        box = itertools.product(*(range(-n, n + 1) for n in reach))
        offsets = [offset for offset in box if offset > (0,) * len(reach)]
        squares = [sum((n * step) ** 2 for n, step in zip(offset, self.spacing_mm, strict=True)) for offset in offsets]
        kernels = []
        for weight, width in (self.appearance[:2], self.smoothness):
            values = [math.exp(-square / (2 * width**2)) for square in squares]
            kernels.append([weight * value / (2 * math.fsum(values)) for value in values])
        return list(zip(offsets, *kernels, strict=True))


def mean_field(probabilities: Tensor, image: Tensor, kernels: Kernels, iterations: int, outputs: Outputs) -> Tensor:
    """Probabilities after the mean-field iterations, of the same shape.

    Args:
        probabilities: Shape (C, *spatial), 0 to 1.
        image: Shape (D, *spatial), in standard deviations.
        kernels: The pairwise terms.
        iterations: Their number.
        outputs: What the channels are.
    """
    unary = outputs.unary(probabilities.clamp(_LEAST, 1 - _LEAST))
    field = probabilities
    for _ in range(iterations):
        # Potts: a pair with two labels costs its kernel. Up to a constant that is a gain for each pair with one label
        field = outputs.probabilities(_message(outputs.vote(field), image, kernels).add_(unary))
    return field


def _message(field: Tensor, image: Tensor, kernels: Kernels) -> Tensor:
    """Shape of the field: at each voxel the sum of the field over its box, each voxel with its kernel."""
    message = torch.zeros_like(field)
    for offset, appearance, smoothness in kernels.pairs:
        here, there = _overlap(offset, field.shape[1:])
        difference = (image[here] - image[there]).square_().sum(0, keepdim=True)
        weight = difference.div_(-2 * kernels.appearance[2] ** 2).exp_().mul_(appearance).add_(smoothness)
        message[here].addcmul_(weight, field[there])
        message[there].addcmul_(weight, field[here])
    return message


def _overlap(offset: Offset, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices of all voxels whose partner at the offset lies in the image, and of the partners."""
    here, there = [slice(None)], [slice(None)]
    for n, size in zip(offset, shape, strict=True):
        here.append(slice(max(0, -n), max(0, size - max(0, n))))
        there.append(slice(max(0, n), max(0, size - max(0, -n))))
    return tuple(here), tuple(there)


class MeanFieldCRFd(MapTransform):
    """For `tidy` of a bundle: decides anew, by the probabilities and the image, with a conditional random field.

    Args:
        keys: "pred", the decision on the source grid: (1, *spatial) of label values, or (S, *spatial) of 0 and 1.
        appearance, smoothness, reach_mm: As in `Kernels`; in pixels for pictures.
        iterations: Of the mean field.
        beside: Names of the item's probabilities (C, *spatial) on the grid of `keys`, and of its preprocessed image, which is
            resampled to this grid and scaled to a standard deviation of 1.
    """

    def __init__(
        self,
        keys: Any,
        appearance: Sequence[float] = (1.0, 2.0, 0.5),
        smoothness: Sequence[float] = (1.0, 1.0),
        reach_mm: float = 3.0,
        iterations: int = 5,
        beside: Sequence[str] = ("prob", "image"),
    ) -> None:
        super().__init__(keys)
        self.appearance, self.smoothness, self.reach_mm = tuple(appearance), tuple(smoothness), float(reach_mm)
        self.iterations, self.needs = iterations, tuple(beside)

    def check_size(self, channels: int, shape: Sequence[int]) -> None:
        """Raises InputRefusedError if probabilities (channels, *shape) take more than `MOST_BYTES`."""
        needed = bytes_for(channels, shape)
        if needed > MOST_BYTES:
            raise InputRefusedError(
                f"{channels} classes of {' x '.join(map(str, shape))} voxels need {needed / 1e9:.1f} GB in the random field of "
                f"`tidy`, which may take {MOST_BYTES / 1e9:.1f} GB; crop the image, or take the random field out of "
                "`tidy`"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the new decision."""
        item = dict(data)
        probabilities, image = (item[name] for name in self.needs)
        self.check_size(len(probabilities), probabilities.shape[1:])
        probabilities = _bare(probabilities)
        for key in self.keys:
            decision = item[key]
            rank = decision.ndim - 1
            spacing = [1.0] * rank if rank == 2 else affine_to_spacing(decision.affine, rank).tolist()
            kernels = Kernels(self.appearance, self.smoothness, self.reach_mm, spacing)
            outputs = outputs_that_decide(len(decision), len(probabilities))
            scaled = _scaled(_on_grid_of(decision, image)).to(probabilities.device)
            field = mean_field(probabilities, scaled, kernels, self.iterations, outputs)
            item[key] = MetaTensor(outputs.decided(field).to(decision.dtype), meta=decision.meta)
        return item


def bytes_for(channels: int, shape: Sequence[int]) -> int:
    """The memory that a field of these classes takes at most, beside the image: float32, five arrays a class and six others."""
    return 4 * math.prod(shape) * (5 * channels + 6)


def _on_grid_of(decision: MetaTensor, image: MetaTensor) -> Tensor:
    same = image.shape[1:] == decision.shape[1:]
    if not (same and (decision.ndim == 3 or torch.allclose(image.affine, decision.affine.to(image.affine), atol=1e-4))):
        return _bare(ResampleToMatch(mode="bilinear", padding_mode="border")(image, decision))
    return _bare(image)


def _bare(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor).float()


def _scaled(image: Tensor) -> Tensor:
    deviation = image.flatten(1).std(1).clamp(min=1e-6)
    return image / deviation.reshape(-1, *[1] * (image.ndim - 1))

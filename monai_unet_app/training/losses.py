"""Losses for calibrated probabilities, called like those of MONAI: `loss(logits, truth)`. A bundle's `train.yaml` names them.

Logits have shape (B, C, *spatial); the truth has shape (B, 1, *spatial) with class indices 0 to C - 1 (softmax only), or
(B, C, *spatial) with 0 and 1 in each channel. They are added to a segmentation loss:

    loss:
      _target_: monai_unet_app.training.losses.Sum
      losses:
      - {_target_: DiceCELoss, to_onehot_y: true, softmax: true, batch: true}
      - {_target_: monai_unet_app.training.losses.HardL1ACELoss, softmax: true}
      weights: [1.0, 1.0]

Losses that MONAI has are not repeated here:
- Label smoothing is `DiceCELoss` with `label_smoothing: 0.1`. It smooths the cross entropy of two or more channels; MONAI
  silently ignores it for one channel.
- NACL (Murugesan et al., arXiv:2303.06268, 2401.14487) is `NACLLoss`: cross entropy + alpha * mean |share - logit|, where share
  is the part of the neighbourhood that a class fills. It needs indices without a channel, which `OnClassIndices` provides:
  `{_target_: monai_unet_app.training.losses.OnClassIndices, loss: {_target_: NACLLoss, classes: "$len(@labels)", dim: 3}}`.
  There is no class outside the image, so at its edge the shares of MONAI's mean add up to less than 1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.utils import one_hot
from torch import Tensor, nn


class Sum(nn.Module):
    """Weighted sum of losses that share a call.

    Args:
        losses: At least one; each takes (logits, truth).
        weights: A finite number of 0 or more for each loss; None takes 1 for all.

    Raises:
        ValueError: No losses, or weights that do not fit them.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else [float(weight) for weight in weights]
        if not losses or len(losses) != len(weights) or not all(0 <= w < math.inf for w in weights):
            raise ValueError(
                f"{len(losses)} loss(es) came with the weights {weights}; at least one loss and a finite weight of 0 or more "
                "for each are needed"
            )
        self.losses = nn.ModuleList(losses)
        self.weights = weights

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The weighted sum, 0 or more; a scalar where the losses are scalars."""
        terms = [weight * loss(logits, truth) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(terms).sum(dim=0)


class OfLabelled(nn.Module):
    """A loss of the voxels that have a class; the others, with the ignored value, count nowhere.

    Args:
        loss: Takes logits and truth; voxels come to it in a row, so it must not ask where they lie, as losses of surfaces do.
        ignored: Value of the truth at voxels without a class, in all its channels.
        batch: The voxels of all windows of a step together, as `batch` of MONAI's losses; else the mean over windows.
    """

    def __init__(self, loss: nn.Module, ignored: int, batch: bool = True) -> None:
        super().__init__()
        self.loss, self.ignored, self.batch = loss, ignored, batch

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The loss of logits (B, C, *spatial) and a truth (B, 1 or C, *spatial); 0 where no voxel counts."""
        counts = (truth != self.ignored).all(dim=1)
        parts = [slice(None)] if self.batch else [slice(n, n + 1) for n in range(len(truth))]
        losses = [self._of(logits[part], truth[part], counts[part]) for part in parts if counts[part].any()]
        return torch.stack(losses).mean() if losses else 0 * logits.sum()

    def _of(self, logits: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
        row, row_of_truth = (tensor.movedim(1, 0)[:, counts][None] for tensor in (logits, truth))
        loss: Tensor = self.loss(row, row_of_truth).mean()
        return loss


class OnClassIndices(nn.Module):
    """Calls a loss that needs class indices (B, *spatial), such as MONAI's `NACLLoss`, with the truth of the other losses.

    Args:
        loss: Takes logits (B, C, *spatial) and int64 indices (B, *spatial).
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """The loss for the class indices of the truth.

        Raises:
            ValueError: The logits have one channel, or the truth has another shape.
        """
        _check_shapes(logits, truth, softmax=True)
        # Of a truth with a channel for each class, the channel that holds the 1 is the index
        indices = truth[:, 0] if truth.shape[1] == 1 else truth.argmax(dim=1)
        result: Tensor = self.loss(logits, indices.long())
        return result


class MarginLoss(nn.Module):
    """Mean over voxels and classes of max(0, largest logit - logit - margin): a penalty on unbounded confidence.

    It is added to a segmentation loss and does not use the truth. For overlapping labels (sigmoid) the two answers of each
    label, yes and no, have the logits z and 0: max(0, |z| - margin).

    Args:
        margin: Distance of logits without a penalty, 0 or more. 0 with softmax is the penalty that label smoothing implies.
        softmax: Exclusive classes.
        sigmoid: Overlapping labels. Exactly one of the two must be true.

    Raises:
        ValueError: A margin below 0, or not exactly one of `softmax` and `sigmoid`.

    Source: Liu et al., The Devil is in the Margin, CVPR 2022, arXiv:2111.15430; for segmentation Murugesan et al.,
    arXiv:2209.09641. The papers write a sum over classes; their code takes the mean, and a margin of 10 and a weight of 0.1
    are meant for it.
    """

    def __init__(self, margin: float = 10.0, softmax: bool = False, sigmoid: bool = False) -> None:
        super().__init__()
        _check_activation(softmax, sigmoid)
        if not 0 <= margin < math.inf:
            raise ValueError(
                f"margin is {margin}; a finite distance of logits of 0 or more is needed; the papers use 10"
            )
        self.margin = float(margin)
        self.softmax = softmax

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Scalar, 0 or more.

        Raises:
            ValueError: The shapes of logits and truth do not match.
        """
        _check_shapes(logits, truth, self.softmax)
        logits = _at_least_float32(logits)
        distance = logits.amax(dim=1, keepdim=True) - logits if self.softmax else logits.abs()
        return torch.relu(distance - self.margin).mean()


class _L1ACELoss(nn.Module, ABC):
    """The base of hard and soft bins: the gaps of the filled bins are averaged for each image and class."""

    least_bins = 1

    def __init__(
        self,
        num_bins: int = 20,
        include_background: bool = True,
        softmax: bool = False,
        sigmoid: bool = False,
        ignore_empty_classes: bool = True,
    ) -> None:
        super().__init__()
        _check_activation(softmax, sigmoid)
        if num_bins < self.least_bins:
            raise ValueError(f"num_bins is {num_bins}; at least {self.least_bins} is needed; the paper uses 20")
        self.num_bins = num_bins
        self.include_background = include_background
        self.softmax = softmax
        self.ignore_empty_classes = ignore_empty_classes

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Scalar, 0 to 1, float32 (float64 for float64 logits). NaN if a logit is NaN.

        Raises:
            ValueError: The shapes of logits and truth do not match, or no class is left without the background.
        """
        p, hits = self._outcomes(logits, truth)
        weight, gap, filled = self._bins(p, hits)
        # |sum of (confidence - truth)| / weight is the gap of a bin. Empty bins are divided by 1: torch.where alone
        # would pass the NaN of 0 / 0 into the gradient, although it does not select it.
        gaps = torch.where(filled, gap.abs() / weight.where(filled, torch.ones_like(weight)), torch.zeros_like(gap))
        # The plain mean over the filled bins (ACE), not weighted by their voxels as in ECE
        errors = gaps.sum(dim=-1) / filled.sum(dim=-1)
        if self.ignore_empty_classes:
            errors = errors * (hits > 0).any(dim=-1)
        return errors.mean().to(_at_least_float32(logits).dtype)

    def _outcomes(self, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and truth (0 or 1), both of shape (B, C, voxels)."""
        _check_shapes(logits, truth, self.softmax)
        if logits.shape[1] == 1 and not self.include_background:
            raise ValueError("logits have 1 channel and the background is left out; no class is left; leave it in")
        hits = one_hot(truth, logits.shape[1]) if truth.shape[1] != logits.shape[1] else truth
        logits = _at_least_float32(logits)
        p = torch.softmax(logits, dim=1) if self.softmax else torch.sigmoid(logits)
        first = 0 if self.include_background else 1
        return p[:, first:].flatten(2), hits[:, first:].flatten(2).to(p.dtype)

    @abstractmethod
    def _bins(self, p: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each bin, shape (B, C, bins): its weight, its sum of confidence - truth, and whether it counts as filled."""


class HardL1ACELoss(_L1ACELoss):
    """Marginal L1 average calibration error: the plain mean over filled bins of |mean confidence - part that came true|.

    One error for each image and class (one against the rest), then their mean. Bins are as in `metrics.reliability`, whose
    `average_calibration_error` of a class gives the same number: equal in width, bin b is [b/B, (b+1)/B), and the last bin
    holds 1.0 as well. The choice of a bin has no gradient; the mean confidence of a bin has.

    Args:
        num_bins: Number of bins.
        include_background: False leaves channel 0 out.
        softmax: Exclusive classes.
        sigmoid: Overlapping labels. Exactly one of the two must be true.
        ignore_empty_classes: True: a class that an image does not contain adds 0; the mean is still taken over all images and
            classes. False: such a class adds its error, the mean confidence in an absent class.

    Raises:
        ValueError: No bins, or not exactly one of `softmax` and `sigmoid`.

    Source: Barfoot et al., Average Calibration Losses for Reliable Uncertainty in Medical Image Segmentation,
    arXiv:2506.03942 (hL1-ACE).
    """

    def _bins(self, p: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # A confidence of exactly 1 would fall into bin B; the last bin is closed. Choosing a bin has no gradient.
        bin_index = (p.detach() * self.num_bins).long().clamp(0, self.num_bins - 1)
        gap = _wide(p) - hits
        empty = gap.new_zeros(*p.shape[:2], self.num_bins)
        count = empty.scatter_add(-1, bin_index, torch.ones_like(gap))
        return count, empty.scatter_add(-1, bin_index, gap), count > 0


class SoftL1ACELoss(_L1ACELoss):
    """As `HardL1ACELoss`, but each voxel is shared by the two bins whose centres are nearest to its confidence.

    The shares are linear in the distance and add up to 1; below the first and above the last centre a voxel belongs to one
    bin. So the gradient passes through the shares as well as through the confidence. The paper finds the best calibration
    with soft bins, and often a lower Dice than with hard bins.

    Args:
        least_weight: Bins whose shares add up to fewer voxels than this count as empty, because the gradient of their mean
            has no bound. Above 0.
        bins: The arguments of `HardL1ACELoss`, by name; `num_bins` is 2 or more.

    Raises:
        ValueError: Fewer than 2 bins, a `least_weight` of 0 or less, or not exactly one of `softmax` and `sigmoid`.

    Source: As `HardL1ACELoss` (sL1-ACE).
    """

    least_bins = 2

    def __init__(self, *, least_weight: float = 0.01, **bins: Any) -> None:
        super().__init__(**bins)
        if not least_weight > 0:
            raise ValueError(f"least_weight is {least_weight}; a number of voxels above 0 is needed; take 0.01")
        self.least_weight = least_weight

    def _bins(self, p: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position = (p * self.num_bins - 0.5).clamp(0, self.num_bins - 1)  # in bins, from the first centre
        # At most the last bin but one, so that the neighbour at lower + 1 exists
        lower = position.detach().long().clamp(0, self.num_bins - 2)
        # Share of the upper bin: 0 at the lower centre, 1 at the upper. It keeps its gradient, the index has none.
        part = _wide(position) - lower
        empty = part.new_zeros(*p.shape[:2], self.num_bins)

        def distributed(values: Tensor) -> Tensor:
            return empty.scatter_add(-1, lower, (1 - part) * values).scatter_add(-1, lower + 1, part * values)

        weight = distributed(torch.ones_like(part))
        return weight, distributed(_wide(p) - hits), ~(weight < self.least_weight)  # so that a NaN counts


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _wide(tensor: Tensor) -> Tensor:
    """float64 if the device has it: in float32 a sum over the voxels of a volume loses its small terms."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _check_activation(softmax: bool, sigmoid: bool) -> None:
    if softmax == sigmoid:
        raise ValueError(
            f"softmax is {softmax} and sigmoid is {sigmoid}; exactly one is needed; take softmax for classes that exclude "
            "each other, sigmoid for labels that may overlap"
        )


def _check_shapes(logits: Tensor, truth: Tensor, softmax: bool) -> None:
    channels = logits.shape[1] if logits.ndim > 2 else 0
    if not channels or (softmax and channels == 1):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; (B, C, *spatial) is needed, for softmax with 2 channels or more; "
            "take sigmoid for a single channel"
        )
    allowed = {channels, 1} if softmax else {channels}
    if truth.ndim != logits.ndim or truth.shape[1] not in allowed or _but_channels(truth) != _but_channels(logits):
        needed = " or ".join(str((logits.shape[0], c, *logits.shape[2:])) for c in sorted(allowed))
        raise ValueError(
            f"truth has shape {tuple(truth.shape)}; {needed} is needed for logits of {tuple(logits.shape)}"
        )


def _but_channels(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[0], *tensor.shape[2:])

"""What the channels of a network mean: labels that may overlap (sigmoid), or classes that exclude each other (softmax).

`outputs` of a bundle's `inference.yaml` names the kind. Everything up to the decision on labels asks an `Outputs`, what
comes after it a `dicom_io.segmentation.Segmentation`. A further kind is a subclass here and an entry of `OUTPUTS`.

Labels have the shape (*lead, *grid): one label map (*grid) of class numbers, 0 for the background, or (S, *grid), a map for
each structure. Methods of tensors call torch's own methods, so that scores of stored files do not wait for its import.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Masks = NDArray[np.bool_]
Values = NDArray[Any]
Array = TypeVar("Array", Values, "Tensor")
Histogram = Callable[[Values, Values, int], tuple[Values, Values]]
"""From confidences, the kind of each, and the number of kinds: number and sum of confidences, shape (bins, kinds) each."""

_SUM_TOLERANCE = 1e-2


class Rows(NamedTuple):
    """The contribution of N voxels to the rows of `ReliabilityCounts`.

    Attributes:
        held: Shape (C + 1, bins, 2: untrue and true): int64, number of decisions; row 0 is the top label.
        confidence: Same shape, float64: sum of their confidences.
        hit: Shape (M,), 0 to 1: the probability of each channel that is true at a voxel.
        spared: Shape (M,) each: if each channel is a decision, 1 - the probability of each that is untrue at a voxel.
    """

    held: Values
    confidence: Values
    hit: Values
    spared: Sequence[Values] = ()


def class_masks(
    labels: Values, class_names: Sequence[str], grid: tuple[int, ...], name: str, valid: Masks | None = None
) -> Masks:
    """One boolean mask for each named class.

    Args:
        labels: Whole label values (I, J, K) of any dtype, or a boolean stack (C, I, J, K); one axis fewer for pictures.
        class_names: The classes, in the order of their numbers, which are 1 to C.
        grid: Shape that a mask must have: (I, J, K), or (I, J) for pictures.
        name: What the message calls the labels.
        valid: Shape (*grid): voxels that count, or None for all. No mask holds the others, whatever value they have.

    Returns:
        Shape (C, *grid), without background.

    Raises:
        ValueError: Another grid, or a value of no class.
    """
    if labels.dtype == np.bool_ and labels.shape == (len(class_names), *grid):
        return labels if valid is None else labels & valid
    labels = label_map(labels, class_names, grid, name, valid)
    return np.stack([labels == number for number in range(1, len(class_names) + 1)])


def label_map(
    labels: Values, class_names: Sequence[str], grid: tuple[int, ...], name: str, valid: Masks | None = None
) -> Values:
    """Label values as whole numbers of shape (*grid), 0 where they do not count; arguments and errors as of `class_masks`."""
    if labels.shape != grid:
        raise ValueError(f"{name} has shape {labels.shape}; {grid} is needed, the grid of the image; resample it")
    # Before the values are checked, since voxels that do not count may hold any value, such as 255.
    if valid is not None:
        labels = np.where(valid, labels, labels.dtype.type(0))
    largest = len(class_names)
    with np.errstate(invalid="ignore"):
        # NaN and numbers beyond int32 become arbitrary integers here; the comparison below refuses them.
        whole = labels if np.issubdtype(labels.dtype, np.integer) else labels.astype(np.int32)
    within = not labels.size or (whole.min() >= 0 and whole.max() <= largest)
    if not within or not (whole is labels or (whole == labels).all()):
        unknown = [f"{value:g}" for value in np.unique(labels).astype(np.float64) if value not in range(largest + 1)]
        raise ValueError(
            f"{name} holds the label values {', '.join(unknown[:5])}; whole numbers from 0 to {largest} "
            f"are known ({', '.join(class_names)}); map them first"
        )
    return whole


class Outputs:
    """Labels that may share voxels: a sigmoid for each channel, a label map for each structure. Other kinds override it.

    A probability of 0.5 or more is a yes, as in `AsDiscreted`.

    Attributes:
        name: The kind, as bundles name it.
        background: Number of channels before that of the first structure.
        one_map: One label map holds all structures; its numbers are those of the channels.
        read: Labels as scores take them, (*lead, *grid), whole numbers or boolean; arguments and errors as of `class_masks`.
    """

    name, background, one_map = "overlapping", 0, False
    read = staticmethod(class_masks)

    def lead(self, structures: int) -> tuple[int, ...]:
        """Axes of labels before those of the grid."""
        return () if self.one_map else (structures,)

    def are_numbers(self, truth: Values, grid: tuple[int, ...]) -> bool:
        """Whether a truth is the number of the channel that is true at each voxel, shape (*grid), and not a mask for each."""
        return self.one_map and np.issubdtype(truth.dtype, np.integer) and truth.shape == grid

    def thresholds(self, channels: int) -> Sequence[float]:
        """The usual probability from which on a voxel has the label of each channel; empty where the largest decides."""
        return [0.5] * channels

    def of_structures(self, labels: Sequence[str]) -> Sequence[str]:
        """The names of the structures among those of the network's channels."""
        return labels[self.background :]

    def label_type(self, structures: int) -> type[np.unsignedinteger[Any]]:
        """The smallest type of whole numbers that holds the labels."""
        return np.uint8

    def from_numbers(self, numbers: Values, structures: int) -> Values:
        """Labels, from what label files hold at each voxel, shape (*grid): the number of a structure, 0 outside."""
        return np.stack([numbers == number for number in range(1, structures + 1)]).astype(np.uint8)

    def result_bytes(self, channels: int) -> int:
        """Bytes of a voxel that a result keeps beside its evidence: of each structure the label and the probability."""
        return 5 * channels

    def masks(self, channels: Values, class_names: Sequence[str], grid: tuple[int, ...], name: str) -> Masks:
        """A mask for each named class, shape (S, *grid).

        Args:
            channels: 0 and 1, in a channel for each channel of the probabilities; or a label map alone.
            class_names: The classes.
            grid: Needed spatial shape.
            name: Of the channels, for messages.

        Raises:
            ValueError: Another shape, or values that are no labels.
        """
        if self.one_map and len(channels) == 1:
            return class_masks(channels[0], class_names, grid, name)
        # Values equal to their own comparison with 0 are 0 and 1 only
        stack, needed = channels != 0, self.background + len(class_names)
        if len(channels) != needed or not np.array_equal(stack, channels):
            one_channel = "label values in one channel, or " if self.one_map else ""
            raise ValueError(
                f"{name} has shape {channels.shape} and values from {channels.min():g} to {channels.max():g}; "
                f"{one_channel}0 and 1 in {needed} channel(s) are needed; apply AsDiscreted first"
            )
        masks = class_masks(stack[self.background :], class_names, grid, name)
        # One map counts each voxel once; a voxel of two classes is a wrong file
        shared = int(np.count_nonzero(masks.sum(axis=0) > 1))
        if self.one_map and shared:
            raise ValueError(f"{name} gives {shared} voxels to two classes; exclusive classes may not overlap")
        return masks

    def truth_of_channels(self, masks: Masks) -> Masks:
        """Shape (C, *grid): where each channel is true, from the masks (S, *grid) of the structures."""
        return masks

    def likely(self, probabilities: Values, above: float) -> Masks:
        """Shape (*grid): voxels where the probability of foreground, from those of the channels, is greater than `above`."""
        return np.asarray(probabilities.max(axis=0) > above)

    def rows(self, p: Values, hits: Sequence[Masks], histogram: Histogram) -> Rows:
        """The counts of probabilities (C, N) and of their truth, C boolean arrays of shape (N,).

        The top label is the likelier answer (yes or no) of each label at each voxel. Raises ValueError for what cannot be of
        this kind.
        """
        pairs = list(zip(p, hits, strict=True))
        rows = [histogram(channel, hit, 2) for channel, hit in pairs]
        tops = [
            histogram(np.where(channel >= 0.5, channel, 1 - channel), (channel >= 0.5) == hit, 2)
            for channel, hit in pairs
        ]
        held, total = (np.stack([np.sum([top[n] for top in tops], axis=0), *(row[n] for row in rows)]) for n in (0, 1))
        probability = np.concatenate([channel[hit] for channel, hit in pairs])
        return Rows(held, total, probability, [1 - channel[~hit] for channel, hit in pairs])

    def probabilities(self, logits: "Tensor") -> "Tensor":
        """Shape (C, *spatial), 0 to 1: the probability of each channel."""
        return logits.sigmoid()

    def decided(self, probabilities: Array, /) -> Array:
        """Shape (maps, *spatial): the label maps, from probabilities (C, *spatial)."""
        return probabilities >= 0.5

    def labels(self, logits: Array, /) -> Array:
        """Shape (maps, *spatial): the label maps, from logits (C, *spatial)."""
        # sigmoid(0) is 0.5, the threshold
        return logits >= 0

    def foreground(self, probabilities: "Tensor") -> "Tensor":
        """Shape (*spatial), 0 to 1: the probability of foreground, from those of the channels (C, *spatial)."""
        return probabilities.amax(0)

    def truth(self, label: "Tensor", channels: int) -> "Tensor":
        """A label as the likelihood needs it: (C, *spatial) of 0 and 1, also from class numbers (1, *spatial)."""
        if len(label) == 1 and channels > 1:
            from torch import cat

            return cat([label == number for number in range(1, channels + 1)])
        return label

    def negative_log_likelihood(self, logits: "Tensor", truth: "Tensor") -> "Tensor":
        """Mean over all decisions, in nats, of the truth of `truth` under the logits (C, *spatial)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        # From the logits: the logarithm of a rounded sigmoid would be infinite for a sure answer
        return binary_cross_entropy_with_logits(logits, truth.expand_as(logits))

    def confidence(self, logits: "Tensor", truth: "Tensor") -> "tuple[Tensor, Tensor]":
        """Shape (C, *spatial) each: the probability of the more probable answer, and whether it is the true one."""
        p = logits.sigmoid()
        return p.maximum(1 - p), (p >= 0.5) == (truth.expand_as(p) > 0.5)

    def log_odds(self, logits: "Tensor", structure: int) -> "Tensor":
        """Shape (B, V): of a structure, counted from 0, against all that it may not be, from logits (B, C, V)."""
        return logits[:, structure]

    def unary(self, probabilities: "Tensor") -> "Tensor":
        """Same shape: logits of probabilities between 0 and 1, exclusive."""
        return probabilities.logit()

    def vote(self, field: "Tensor") -> "Tensor":
        """Same shape: what a neighbour with these probabilities adds to the logits of a voxel."""
        # Each channel has two classes, of which the difference of their gains counts
        return 2 * field - 1


class ExclusiveOutputs(Outputs):
    """Classes that share the voxels out: a softmax over the channels, of which the first is the background."""

    name, background, one_map = "exclusive", 1, True
    read = staticmethod(label_map)

    def label_type(self, structures: int) -> type[np.unsignedinteger[Any]]:
        """The smallest type that holds the numbers of the structures."""
        return np.uint8 if structures < 256 else np.uint16

    def from_numbers(self, numbers: Values, structures: int) -> Values:
        """The same numbers."""
        return numbers.astype(self.label_type(structures), copy=False)

    def thresholds(self, channels: int) -> Sequence[float]:
        """None: the largest probability decides."""
        return []

    def result_bytes(self, channels: int) -> int:
        """Bytes of a voxel of the label map."""
        return 1 if channels <= 256 else 2

    def truth_of_channels(self, masks: Masks) -> Masks:
        """Shape (C, *grid): the background is where no structure is; masks have the shape (S, *grid)."""
        return np.concatenate([~masks.any(axis=0, keepdims=True), masks])

    def likely(self, probabilities: Values, above: float) -> Masks:
        """Shape (*grid): voxels of which the background leaves more than a probability of `above`."""
        return np.asarray(probabilities[0] < 1 - above)

    def rows(self, p: Values, hits: Sequence[Masks], histogram: Histogram) -> Rows:
        """The counts of probabilities (C, N). The top label sums, over channels, the voxels where the channel is largest."""
        off = np.abs(p.sum(axis=0) - 1)
        if off.max(initial=0) > _SUM_TOLERANCE:
            raise ValueError(
                f"probabilities of exclusive classes miss a sum of 1 by up to {off.max():.3f} "
                f"({np.count_nonzero(off > _SUM_TOLERANCE)} of {off.size} voxels); 0.01 is allowed; "
                "an inverted crop or pad fills with 0: add the missing probability to the background"
            )
        true = sum(int(np.count_nonzero(hit)) for hit in hits)
        if true != p.shape[1]:
            raise ValueError(
                f"truth gives {true} classes to {p.shape[1]} voxels; one each is needed; add the background"
            )
        # One histogram by four kinds for each channel serves both the row of the channel and the row of the top label.
        kinds = (hit + 2 * win.view(np.uint8) for hit, win in zip(hits, _winners(p), strict=True))
        channels = [histogram(channel, kind, 4) for channel, kind in zip(p, kinds, strict=True)]
        # Exactly one channel is true at each voxel, so the sum is the probability of this channel.
        probability: Values = np.zeros_like(p[0])
        for channel, hit in zip(p, hits, strict=True):
            probability += channel * hit
        return Rows(_with_top([held for held, _ in channels]), _with_top([total for _, total in channels]), probability)

    def probabilities(self, logits: "Tensor") -> "Tensor":
        """Shape (C, *spatial), 0 to 1: softmax of logits of the same shape."""
        return logits.softmax(0)

    def decided(self, probabilities: Array, /) -> Array:
        """Shape (1, *spatial): the number of the most probable class."""
        decided: Array = probabilities.argmax(0)[None]
        return decided

    labels = decided  # the largest logit has the largest probability

    def foreground(self, probabilities: "Tensor") -> "Tensor":
        """Shape (*spatial), 0 to 1: what the background leaves."""
        return 1 - probabilities[0]

    def truth(self, label: "Tensor", channels: int) -> "Tensor":
        """Class numbers, shape (1, *spatial), as they are."""
        return label

    def negative_log_likelihood(self, logits: "Tensor", truth: "Tensor") -> "Tensor":
        """Mean over voxels, in nats, of class numbers (1, *spatial) under the logits (C, *spatial)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits[None], truth.long())

    def confidence(self, logits: "Tensor", truth: "Tensor") -> "tuple[Tensor, Tensor]":
        """Shape (*spatial) each: the probability of the most probable class, and whether it is the true one."""
        confidence, label = logits.softmax(0).max(0)
        return confidence, label == truth[0]

    def log_odds(self, logits: "Tensor", structure: int) -> "Tensor":
        """Shape (B, V): of a structure against all other classes together, from logits (B, C, V)."""
        # log(p / (1 - p)) with p = exp(z_c) / sum exp(z): the sum over all classes cancels. From rounded probabilities
        # it would be infinite where p is 1. A number that is added to all logits changes nothing.
        channel = structure + 1
        others = [n for n in range(logits.shape[1]) if n != channel]
        return logits[:, channel] - logits[:, others].logsumexp(1)

    def unary(self, probabilities: "Tensor") -> "Tensor":
        """Same shape: logits, but for a constant at each voxel."""
        return probabilities.log()

    def vote(self, field: "Tensor") -> "Tensor":
        """Same shape: the probabilities themselves."""
        return field


class CountedOutputs(Outputs):
    """Objects of one kind, which may touch: the network answers where they are and, in a second channel, where middles are.

    The middle tells objects apart that touch; the result holds the probability of the objects alone. In the label map every
    object has a number of its own.
    """

    name = "counted"

    def of_structures(self, labels: Sequence[str]) -> Sequence[str]:
        """The objects; their middles are no structure."""
        return labels[:-1]

    def label_type(self, structures: int) -> type[np.unsignedinteger[Any]]:
        """Holds the numbers of the objects."""
        return np.uint16

    def from_numbers(self, numbers: Values, structures: int) -> Values:
        """The numbers of the objects, shape (1, *grid)."""
        return numbers[None].astype(np.uint16)


EXCLUSIVE, OVERLAPPING, COUNTED = ExclusiveOutputs(), Outputs(), CountedOutputs()
OUTPUTS: Mapping[str, Outputs] = {kind.name: kind for kind in (EXCLUSIVE, OVERLAPPING, COUNTED)}
"""By the name that `outputs` of a bundle gives."""


def outputs_that_decide(maps: int, channels: int) -> Outputs:
    """The kind whose decision on so many channels has so many label maps."""
    return EXCLUSIVE if maps == 1 < channels else OVERLAPPING


def outputs_of(kind: bool | str) -> Outputs:
    """The kind of this name, or of a bundle's `calibrate.yaml`, which says whether its classes are exclusive."""
    return OUTPUTS[kind] if isinstance(kind, str) else EXCLUSIVE if kind else OVERLAPPING


def _with_top(channels: Sequence[Values]) -> Values:
    """Shape (narrow bins, 4) of each of C channels, to (C + 1, narrow bins, 2: untrue and true).

    The 4 are: another channel is larger and this channel is untrue, or true; this channel is the largest and untrue, or true.
    """
    parted = np.stack(channels).reshape(len(channels), -1, 2, 2)
    return np.concatenate([parted[:, :, 1].sum(axis=0, keepdims=True), parted.sum(axis=2)])


def _winners(p: Values) -> Iterator[Masks]:
    """For each channel, shape (N,): where it has the largest probability; of equal channels the first wins."""
    largest = p.max(axis=0)
    free = np.ones(largest.shape, dtype=bool)
    for channel in p:
        wins = free & (channel == largest)
        free ^= wins
        yield wins

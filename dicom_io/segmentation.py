"""The result for an image: which voxels belong to which segment, exclusive or overlapping, and their probabilities.

Everything that comes after the decision on labels asks a `Segmentation` and its `Structure`s. The two questions "exclusive or
overlapping?" and "picture or volume?" are answered here and in `Volume`, so that writers, statements and pages do not ask them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from dicom_io.coding import Segment, Whole
from dicom_io.volume import Volume

Box = tuple[slice, slice, slice]
EMPTY_BOX: Box = (slice(0, 0), slice(0, 0), slice(0, 0))


@dataclass(frozen=True)
class Structure:
    """A segment of a segmentation.

    Attributes:
        segment: Its number, label, codes and colour.
        grid: The image that it lies on.
        box: The smallest index box that holds its voxels, along I, J, K; empty without voxels.
        mask: Shape of the box, boolean.
        probability: Shape (I, J, K) of the whole grid, 0 to 1; None where the result holds labels only.
    """

    segment: Segment
    grid: Volume
    box: Box
    mask: NDArray[np.bool_]
    probability: NDArray[np.float32] | None = None

    @property
    def number(self) -> int:
        """Label value and SegmentNumber, from 1."""
        return self.segment.number

    @property
    def label(self) -> str:
        """SegmentLabel."""
        return self.segment.label

    @cached_property
    def voxels(self) -> int:
        """How many voxels the mask has."""
        return int(np.count_nonzero(self.mask))

    @property
    def size(self) -> float:
        """Size of the mask in the unit of the image: millilitres, or pixels of a picture."""
        return self.voxels * self.grid.voxel_size

    @cached_property
    def expected_size(self) -> float:
        """Sum of the probabilities times the size of a voxel, in the unit of `size`.

        Raises:
            ValueError: The result holds labels only.
        """
        # A sum of millions of voxels would round in float32.
        return float(self.probability_on_grid.sum(dtype=np.float64) * self.grid.voxel_size)

    @cached_property
    def confidence(self) -> float | None:
        """Mean probability inside the mask, 0 to 1; None without voxels. Raises ValueError as `expected_size`."""
        inside = self.probability_on_grid[self.box][self.mask]
        return float(inside.mean()) if inside.size else None

    @property
    def mask_on_grid(self) -> NDArray[np.bool_]:
        """The mask on the whole grid, shape (I, J, K), boolean; made anew each time, as many of them would fill the memory."""
        on_grid = np.zeros(self.grid.shape, dtype=bool)
        on_grid[self.box] = self.mask
        return on_grid

    @property
    def probability_on_grid(self) -> NDArray[np.float32]:
        """Shape (I, J, K), 0 to 1. Raises ValueError where the result holds labels only."""
        if self.probability is None:
            raise ValueError(
                f"segment {self.number} has no probabilities; they are needed; read the file of probabilities"
            )
        return self.probability


@dataclass(frozen=True)
class Segmentation:
    """Labels of the voxels of one image.

    Attributes:
        image: The image, whose grid the labels lie on.
        labels: Exclusive segments: shape (I, J, K), whole numbers, 0 is background. Overlapping ones: shape (S, I, J, K), a
            channel for each segment in their order, 0 or 1.
        segments: What the labels mean, in the order of their numbers, which are 1 to S.
        probabilities: Exclusive segments: shape (S + 1, I, J, K), the background first. Overlapping ones: (S, I, J, K). 0 to 1;
            None where only labels are known.
        wholes: Structures whose parts are several segments.
    """

    image: Volume
    labels: NDArray[Any]
    segments: tuple[Segment, ...]
    probabilities: NDArray[np.float32] | None = None
    wholes: tuple[Whole, ...] = ()

    def __post_init__(self) -> None:
        channels = () if self.labels.ndim == 3 else (len(self.segments),)
        if self.labels.shape != (*channels, *self.image.shape):
            raise ValueError(
                f"labels have the shape {self.labels.shape}; {self.image.shape} is needed, or with a channel for each of the "
                f"segments first {(len(self.segments), *self.image.shape)}"
            )

    @classmethod
    def of_volume(cls, labels: Volume, segments: Sequence[Segment]) -> "Segmentation":
        """The segmentation in a volume of labels.

        Args:
            labels: Shape (I, J, K) with label values, or (I, J, K, S) with the channel of each segment last, 0 outside it.
            segments: What the labels mean.
        """
        array = labels.array if labels.array.ndim == 3 else np.moveaxis(labels.array, -1, 0)
        return cls(labels, array, tuple(segments))

    @classmethod
    def of_masks(
        cls, image: Volume, masks: Sequence[NDArray[Any]], segments: Sequence[Segment], *, exclusive: bool = False
    ) -> "Segmentation":
        """The segmentation of one mask for each segment.

        Args:
            image: The image.
            masks: Shape (I, J, K) each, in the order of the segments.
            segments: What the masks mean.
            exclusive: Hold label values; channels all the same where masks share a voxel.
        """
        channels = np.stack(masks).astype(np.uint8)
        if exclusive and not (channels.sum(axis=0) > 1).any():
            numbers = np.arange(1, len(channels) + 1, dtype=np.uint16)
            return cls(image, np.tensordot(numbers, channels, axes=1).astype(np.uint16), tuple(segments))
        return cls(image, channels, tuple(segments))

    @property
    def exclusive(self) -> bool:
        """True where a voxel belongs to one segment at most."""
        return self.labels.ndim == 3

    @cached_property
    def structures(self) -> tuple[Structure, ...]:
        """Every segment with its voxels and probabilities, in the order of the numbers."""
        boxes = self._boxes()
        return tuple(
            Structure(segment, self.image, box, self._is(segment.number, box), self._probability(segment.number))
            for segment, box in zip(self.segments, boxes, strict=True)
        )

    @property
    def disjoint_groups(self) -> tuple[tuple[Structure, ...], ...]:
        """Groups of structures that share no voxel: all structures if they are exclusive, else each structure alone."""
        return (self.structures,) if self.exclusive else tuple((structure,) for structure in self.structures)

    @cached_property
    def foreground(self) -> NDArray[np.bool_]:
        """Shape (I, J, K): voxels of any segment."""
        return self.labels > 0 if self.exclusive else np.asarray((self.labels > 0).any(axis=0))

    @property
    def classes(self) -> NDArray[Any]:
        """The labels as metrics take them: shape (I, J, K) of numbers, or (S, I, J, K) boolean."""
        return self.labels if self.exclusive else self.labels > 0

    @property
    def segment_probabilities(self) -> NDArray[np.float32]:
        """Shape (S, I, J, K): the probabilities of the segments, without the background. Raises ValueError without any."""
        if self.probabilities is None:
            raise ValueError("the result holds labels only; probabilities are needed; read the file of probabilities")
        return self.probabilities[1:] if self.exclusive else self.probabilities

    def channel_of(self, number: int) -> int:
        """Channel of the probabilities that belongs to a segment, from 0."""
        return number if self.exclusive else number - 1

    @property
    def label_volume(self) -> Volume:
        """The labels as a volume, as files hold them: shape (I, J, K), or (I, J, K, S) with the channels last."""
        return self.image.with_array(self.labels if self.exclusive else np.moveaxis(self.labels, 0, -1))

    def _is(self, number: int, box: Box) -> NDArray[np.bool_]:
        """Voxels of a segment in a box."""
        return np.asarray(self.labels[box] == number if self.exclusive else self.labels[number - 1][box] > 0)

    def _boxes(self) -> list[Box]:
        if self.exclusive:
            boxes = find_objects(self.labels, max_label=len(self.segments))
        else:
            boxes = [find_objects((channel > 0).view(np.uint8), max_label=1)[0] for channel in self.labels]
        return [box or EMPTY_BOX for box in boxes]

    def _probability(self, number: int) -> NDArray[np.float32] | None:
        return None if self.probabilities is None else self.probabilities[self.channel_of(number)]

"""The result for an image: which voxels belong to which segment, exclusive or overlapping, and their probabilities.

A structure is a label value of a map that it shares with structures of other voxels, or a map of its own. Everything that
comes after the decision on labels asks a `Segmentation`, its `Structure`s, `LabelMap`s and `SliceLabels`. The two questions
"exclusive or overlapping?" and "picture or volume?" are answered here and in `Volume`, so that writers, statements and pages do
not ask them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from dicom_io.boxes import EMPTY_BOX, Box, Channels, values_in
from dicom_io.coding import Segment, Whole
from dicom_io.volume import Volume, number_type

OBJECT_NUMBERS = np.uint16
"""The type of maps that number the objects of a structure."""

_LONGEST_NAME = 58  # of a structure whose objects have their number behind it: 64 characters in all
_LEAST = np.float32(1e-12)  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Evidence:
    """What a result keeps of its probabilities: maps and sums that do not grow with the number of classes.

    Attributes:
        certainty: float32, 0 to 1, perhaps in a file. Exclusive segments: shape (I, J, K), the probability of the class that
            was decided on. Overlapping ones: (S, I, J, K), the probability of each segment.
        uncertainty: Shape (I, J, K), float32, 0 sure to 1 undecided, see `normalised_entropy`; perhaps in a file.
        expected: Shape (S,), float64: sum of each segment's probability over all voxels.
        doubt: Shape (S,), float64: sum of p (1 - p).
    """

    certainty: Channels
    uncertainty: Channels
    expected: NDArray[np.float64]
    doubt: NDArray[np.float64]

    @classmethod
    def of(cls, probabilities: NDArray[np.float32], labels: NDArray[Any]) -> "Evidence":
        """The evidence of an image, or of a box of it.

        Args:
            probabilities: As in `Segmentation`.
            labels: As in `Segmentation`: exclusive if they have an axis less than the probabilities.
        """
        exclusive = labels.ndim < probabilities.ndim
        uncertainty = normalised_entropy(probabilities, exclusive=exclusive)
        expected, doubt = np.zeros((2, len(probabilities)))
        # Channel by channel: a channel of a box stays in the processor's cache
        for channel, p in _present(probabilities):
            expected[channel] = p.sum(dtype=np.float64)
            doubt[channel] = (p * (1 - p)).sum(dtype=np.float64)
        if not exclusive:
            return cls(probabilities, uncertainty, expected, doubt)
        decided = np.take_along_axis(probabilities, labels[None].astype(np.intp), axis=0)[0]
        return cls(decided, uncertainty, expected[1:], doubt[1:])


def normalised_entropy(probabilities: NDArray[np.float32], *, exclusive: bool) -> NDArray[np.float32]:
    """How undecided a network is at each voxel: 0 is sure, 1 means that all answers are equally likely.

    Args:
        probabilities: Shape (C, ...), 0 to 1.
        exclusive: Channels sum to 1: the entropy over the channels, over its largest possible value, log C. Otherwise the
            largest entropy of any channel against its absence, over log 2.

    Returns:
        Shape (...), 0 to 1.
    """
    entropy = np.zeros(probabilities.shape[1:], np.float32)
    for _, p in _present(probabilities):
        if exclusive:
            entropy += entropy_of(p)
        else:
            np.maximum(entropy, entropy_of(p) + entropy_of(1 - p), out=entropy)
    entropy /= np.float32(np.log(len(probabilities) if exclusive else 2))
    # Rounding can carry the quotient a little beyond 1
    return np.clip(entropy, 0, 1, out=entropy)


def _present(probabilities: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The channels that are not 0 everywhere, with their numbers: of a hundred classes most are absent from a box."""
    return ((channel, p) for channel, p in enumerate(probabilities) if p.max(initial=0) != 0)


def entropy_of(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """-p log p, in nats; 0 where p is 0."""
    part: NDArray[np.float32] = np.log(np.maximum(p, _LEAST))
    part *= -p
    return part


@dataclass(frozen=True)
class Structure:
    """A segment of a segmentation.

    Attributes:
        segment: Its number, label, codes and colour.
        grid: The image that it lies on.
        box: The smallest index box that holds its voxels, along I, J, K; empty without voxels.
        labels: Shape (I, J, K) of the whole grid: the label values of exclusive segments, or the channel of this segment.
        exclusive: True for label values; False for a channel, which is above 0 where the segment is.
        evidence: What the result keeps of its probabilities; None where it holds labels only.
        probabilities: As in `Segmentation`.
    """

    segment: Segment
    grid: Volume
    box: Box
    labels: NDArray[Any]
    exclusive: bool
    evidence: Evidence | None = None
    probabilities: Channels | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Its voxels, shape of the box, boolean; made anew each time: the boxes of many structures are several volumes."""
        return self.mask_in(self.box)

    def mask_in(self, box: Box) -> NDArray[np.bool_]:
        """Its voxels in another box of the grid, shape of this box, boolean."""
        return self.within(self.labels[box])

    def within(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Its voxels in a part of `labels`, any shape, boolean."""
        return np.asarray(labels == self.number if self.exclusive else labels > 0)

    def drawn_within(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """As `within`, for pictures: where objects touch, the voxels of one are left out, so that each has its own outline."""
        return _parted(labels) if self.numbers_objects else self.within(labels)

    def parts_in(self, box: Box) -> NDArray[Any]:
        """Shape of a box of the grid: the number of each voxel's object where its map numbers them, else the mask."""
        return self.labels[box] if self.numbers_objects else self.mask_in(box)

    @property
    def numbers_objects(self) -> bool:
        """Whether its map numbers objects, see `Segmentation.objects`."""
        return not self.exclusive and self.labels.dtype == OBJECT_NUMBERS

    @property
    def channel(self) -> int:
        """Channel of the probabilities that belongs to it, from 0."""
        return self.number if self.exclusive else self.number - 1

    def box_with(self, other: "Structure") -> Box:
        """The smallest box that holds this structure and another on the same grid; one voxel of neither if both are empty."""
        boxes = [structure.box for structure in (self, other) if structure.box != EMPTY_BOX] or [(slice(0, 1),) * 3]
        i, j, k = (slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))
        return i, j, k

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
    def objects(self) -> int | None:
        """How many objects its map numbers; None where it numbers none, see `Segmentation.objects`."""
        if not self.numbers_objects:
            return None
        return int(np.count_nonzero(np.bincount(self.labels[self.box].ravel(), minlength=1)[1:]))

    @property
    def size(self) -> float:
        """Size of the mask in the unit of the image: millilitres, or pixels of a picture."""
        return self.voxels * self.grid.voxel_size

    @property
    def expected_size(self) -> float:
        """Sum of the probabilities times the size of a voxel, in the unit of `size`.

        Raises:
            ValueError: The result holds labels only.
        """
        return float(self.known.expected[self.number - 1] * self.grid.voxel_size)

    @property
    def doubtful_part(self) -> float:
        """Sum of p (1 - p) over the sum of p, 0 to 1: the part of the size that is in doubt. Raises as `expected_size`."""
        n = self.number - 1
        return float(self.known.doubt[n] / max(self.known.expected[n], _LEAST))

    @cached_property
    def confidence(self) -> float | None:
        """Mean probability inside the mask, 0 to 1; None without voxels. Raises as `expected_size`."""
        known = self.known.certainty
        inside = values_in(known if self.exclusive else known[self.channel], self.mask, self.box)
        return float(inside.mean(dtype=np.float64)) if inside.size else None

    @property
    def known(self) -> Evidence:
        """What the result keeps of its probabilities. Raises ValueError if it holds labels only."""
        if self.evidence is None:
            raise ValueError(
                f"segment {self.number} has no probabilities; they are needed; read the file of probabilities"
            )
        return self.evidence

    @property
    def mask_on_grid(self) -> NDArray[np.bool_]:
        """The mask on the whole grid, shape (I, J, K), boolean; made anew each time."""
        on_grid = np.zeros(self.grid.shape, dtype=bool)
        on_grid[self.box] = self.mask
        return on_grid

    @property
    def probability_on_grid(self) -> NDArray[np.float32]:
        """Shape (I, J, K), 0 to 1; read anew each time where it is in a file.

        Raises:
            ValueError: The result does not hold all probabilities.
        """
        if self.probabilities is None:
            raise ValueError(f"segment {self.number} has no probabilities; they are needed; keep them with the result")
        return np.asarray(self.probabilities[self.channel])


@dataclass(frozen=True)
class LabelMap:
    """Structures that share no voxel.

    Attributes:
        labels: Shape (I, J, K): the label values of its structures, or above 0 inside the only one.
        structures: In the order of their numbers.
    """

    labels: NDArray[Any]
    structures: tuple[Structure, ...]

    def numbers_in(self, box: tuple[slice, ...]) -> NDArray[np.uint8 | np.uint16]:
        """Shape of a box of (I, J, K), for pictures: the number of the structure at each voxel, 0 outside of them."""
        kind, part = number_type(self.structures[-1].number), self.labels[box]
        first = self.structures[0]
        return part.astype(kind, copy=False) if first.exclusive else first.drawn_within(part) * kind(first.number)

    @property
    def answers(self) -> tuple[NDArray[np.bool_], Channels, NDArray[np.float32]]:
        """The voxels of its structures, shape (I, J, K); everywhere the probability of what was decided, 0 to 1, perhaps in a
        file; in those voxels the entropy of the probabilities, in nats. Raises ValueError for labels only.
        """
        first = self.structures[0]
        mask, known = self.labels > 0, first.known
        if first.exclusive:
            return (
                mask,
                known.certainty,
                values_in(known.uncertainty, mask) * np.float32(np.log(len(self.structures) + 1)),
            )
        yes = known.certainty[first.channel]
        inside = yes[mask]
        return mask, np.maximum(yes, 1 - yes), entropy_of(inside) + entropy_of(1 - inside)


@dataclass(frozen=True)
class SliceLabels:
    """The labels on one slice of a source.

    Attributes:
        values: Exclusive segments: shape (rows, columns) with their numbers. Overlapping ones: shape (rows, columns, S), not 0
            in channel n - 1 where segment n is.
    """

    values: NDArray[Any]

    @property
    def numbers(self) -> list[int]:
        """The segments that have pixels here, in increasing order."""
        if self._is_map:
            # counted, where np.unique would sort all pixels
            return [int(number) for number in np.flatnonzero(np.bincount(self.values.ravel())) if number]
        return [channel + 1 for channel in range(self.values.shape[2]) if self.values[..., channel].any()]

    def in_rows(self) -> "SliceLabels":
        """The same, row by row in memory."""
        return SliceLabels(np.ascontiguousarray(self.values))

    def mask(self, number: int) -> NDArray[np.bool_]:
        """Shape (rows, columns), boolean: the pixels of a segment."""
        return np.asarray(self.values == number if self._is_map else self.values[..., number - 1] != 0)

    def frame(self, number: int) -> NDArray[Any] | None:
        """Shape (rows, columns): what a frame of a segment shows, or of all segments (0), their numbers; None if it cannot."""
        if self._is_map:
            return self.mask(number) if number else self.values
        return self.mask(number) if 1 <= number <= self.values.shape[2] else None

    @staticmethod
    def maps(planes: "Sequence[SliceLabels]") -> Iterator[tuple[int, NDArray[Any]]]:
        """Label maps of some slices, shape (planes, rows, columns), each with what its values lack of the segments' numbers."""
        values = np.stack([plane.values for plane in planes])
        if planes[0]._is_map:
            yield 0, values
            return
        yield from ((channel, values[..., channel] != 0) for channel in range(values.shape[3]))

    @property
    def _is_map(self) -> bool:
        return self.values.ndim == 2


@dataclass(frozen=True)
class Segmentation:
    """Labels of the voxels of one image.

    Attributes:
        image: The image, whose grid the labels lie on.
        labels: Exclusive segments: shape (I, J, K), whole numbers, 0 is background. Overlapping ones: shape (S, I, J, K), a
            channel for each segment in their order, 0 or 1.
        segments: What the labels mean, in the order of their numbers, which are 1 to S.
        probabilities: Exclusive segments: shape (S + 1, I, J, K), the background first. Overlapping ones: (S, I, J, K). 0 to 1;
            an array, or a file where they would fill the memory; None where they were not kept.
        wholes: Structures whose parts are several segments.
        evidence: What was kept of the probabilities; None where only labels, or all probabilities, are known.
    """

    image: Volume
    labels: NDArray[Any]
    segments: tuple[Segment, ...]
    probabilities: Channels | None = None
    wholes: tuple[Whole, ...] = ()
    evidence: Evidence | None = None

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
    def of_numbers(
        cls, image: Volume, numbers: NDArray[Any], segments: Sequence[Segment], *, exclusive: bool
    ) -> "Segmentation":
        """The segmentation in numbers of segments, shape (I, J, K), 0 outside of them; as label values, or as channels."""
        if exclusive:
            labels = numbers.astype(number_type(len(segments)), copy=False)
        else:
            labels = np.stack([numbers == segment.number for segment in segments]).astype(np.uint8)
        return cls(image, labels, tuple(segments))

    @property
    def exclusive(self) -> bool:
        """True where a voxel belongs to one segment at most."""
        return self.labels.ndim == 3

    @cached_property
    def structures(self) -> tuple[Structure, ...]:
        """Every segment with its voxels and probabilities, in the order of the numbers."""
        known = self.known
        channels = [self.labels] * len(self.segments) if self.exclusive else list(self.labels)
        return tuple(
            Structure(segment, self.image, box, labels, self.exclusive, known, self.probabilities)
            for segment, box, labels in zip(self.segments, self._boxes(), channels, strict=True)
        )

    @cached_property
    def known(self) -> Evidence | None:
        """What is known of the probabilities; None where the result holds labels only."""
        if self.evidence is not None or self.probabilities is None:
            return self.evidence
        return Evidence.of(np.asarray(self.probabilities), self.labels)

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Shape (I, J, K), 0 sure to 1 undecided, see `normalised_entropy`. Raises ValueError for labels only."""
        if self.known is None:
            raise ValueError("the result holds labels only; probabilities are needed; read the file of probabilities")
        return np.asarray(self.known.uncertainty)

    @property
    def maps(self) -> tuple[LabelMap, ...]:
        """The structures by the label map that holds them."""
        groups = (self.structures,) if self.exclusive else tuple((structure,) for structure in self.structures)
        return tuple(LabelMap(group[0].labels, group) for group in groups)

    @property
    def objects(self) -> NDArray[np.uint16] | None:
        """Shape (S, I, J, K): the number of each voxel's object in the map of its structure; None where maps number none."""
        return self.labels if not self.exclusive and self.labels.dtype == OBJECT_NUMBERS else None

    @property
    def overlaps(self) -> bool:
        """Whether a voxel is of two segments."""
        return not self.exclusive and bool(((self.labels != 0).sum(axis=0) > 1).any())

    @property
    def foreground(self) -> NDArray[np.bool_]:
        """Shape (I, J, K): voxels of any segment; made anew each time."""
        return self.labels > 0 if self.exclusive else np.asarray((self.labels > 0).any(axis=0))

    @property
    def covered(self) -> NDArray[Any]:
        """Shape (I, J, K): not 0 where there is a segment."""
        # Labels say it themselves; a mask of a large image would be another array of its size
        return self.labels if self.exclusive else self.foreground

    @property
    def classes(self) -> NDArray[Any]:
        """The labels as metrics take them: shape (I, J, K) of numbers, or (S, I, J, K) boolean."""
        return self.labels if self.exclusive else self.labels > 0

    @property
    def drawn(self) -> NDArray[Any]:
        """As `classes`, for pictures, see `Structure.drawn_within`."""
        return self.classes if self.objects is None else np.stack([_parted(numbers) for numbers in self.objects])

    @property
    def segment_probabilities(self) -> Iterator[NDArray[np.float32]]:
        """Shape (I, J, K) each: the probabilities of the segments, without the background. Raises ValueError without any."""
        if self.probabilities is None:
            raise ValueError("the result holds labels only; probabilities are needed; read the file of probabilities")
        return (structure.probability_on_grid for structure in self.structures)

    @property
    def label_volume(self) -> Volume:
        """The labels as a volume, as files hold them: (I, J, K), also of objects, or (I, J, K, S) with the channels last."""
        if self.objects is not None:
            return self.image.with_array(self.objects[0])
        return self.image.with_array(self.labels if self.exclusive else np.moveaxis(self.labels, 0, -1))

    @property
    def without_objects(self) -> "Segmentation":
        """The same with masks in place of maps that number objects."""
        return self if self.objects is None else replace(self, labels=(self.labels > 0).astype(np.uint8))

    def by_object(self) -> "Segmentation":
        """Each object as a segment of its own, without probabilities; the structure is a whole of them.

        The same segmentation where no objects are numbered, or where there are none.
        """
        if self.objects is None or not self.objects.any():
            return self
        (numbers,), (kind,) = self.objects, self.segments
        present = np.bincount(numbers.ravel(), minlength=1) > 0
        present[0] = False
        labels, count = np.where(present, np.cumsum(present), 0)[numbers], int(present.sum())
        segments = [
            replace(kind, number=n, label=f"{kind.label[:_LONGEST_NAME]} {n}", display_rgb=None)
            for n in range(1, count + 1)
        ]
        regions = kind.anatomic_region, kind.anatomic_region_modifier
        whole = Whole(kind.label, tuple(range(1, count + 1)), kind.category, kind.type, *regions)
        wholes = (whole,) if count > 1 else ()
        return Segmentation(self.image, labels.astype(number_type(count)), tuple(segments), wholes=wholes)

    def _boxes(self) -> list[Box]:
        if self.exclusive:
            return _boxes_of(self.labels, len(self.segments))
        return [_boxes_of((channel > 0).view(np.uint8), 1)[0] for channel in self.labels]


def _parted(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """The voxels of objects, but for one side of where two touch; any shape, the number of each voxel's object, 0 outside."""
    between = np.zeros(numbers.shape, np.bool_)
    for axis in range(numbers.ndim):
        first, second = (np.moveaxis(numbers, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        np.moveaxis(between, axis, 0)[:-1] |= (first != second) & (first > 0) & (second > 0)
    return (numbers > 0) & ~between


def _boxes_of(labels: NDArray[Any], count: int) -> list[Box]:
    """The box of each value from 1 to `count` in labels of shape (I, J, K)."""
    # Along the memory: across it, as slices of DICOM lie in their array, scipy takes six times as long
    if abs(labels.strides[0]) >= abs(labels.strides[-1]):
        return [box or EMPTY_BOX for box in find_objects(labels, max_label=count)]
    return [(box[2], box[1], box[0]) if box else EMPTY_BOX for box in find_objects(labels.T, max_label=count)]

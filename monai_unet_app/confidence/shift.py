"""Detects images unlike those that the network learned from, by a distance that one in fifty sound images exceeds.

An image is described by its intensities, its sharpness along each axis, its evenness and its extent, and by features of the
network: mean and deviation of each channel of one of its layers. The largest of three distances counts: along the principal
components of the reference images, beside these components (the part of an image that they do not explain), and the
deviation of the farthest single feature. One wrong feature, such as the balance of colours, hardly moves the other two
distances, which are means over a hundred features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .conformal import conformal_quantile
from .json_document import JsonDocument

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

_ENDS = (0.005, 0.995)
_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_MOST_COMPONENTS = 20
_LEAST_DEVIATION = 0.05  # along a component, where everything is standardised
_LEAST_SPREAD, _LEAST_MEAN = (
    1e-2,
    0.5,
)  # a feature that never varies may differ by this part of its mean, at least of 0.5
_TINY = 1e-6
_FAR = 3.0  # usual deviations of a feature, as a root mean square
_SLAB_VOXELS = 1 << 18  # 2 MiB in float64, which fit the cache
USUAL = 0.98
"""Part of sound images that are not flagged, as far as the number of subjects allows."""

LEAST_SUBJECTS = 5


def image_features(array: NDArray[Any], spacing_mm: Sequence[float]) -> Floats:
    """The features of an image, which do not depend on its scale of intensities.

    Args:
        array: Shape (I, J, K), (I, J, 1) for a picture, or with channels last (I, J, K, C); each channel is described.
        spacing_mm: Voxel size along I, J, K; 1 for pictures.

    Returns:
        Shape (F,): for each channel seven quantiles and the deviation after scaling to the 0.5 and 99.5 percentile, the
        logarithms of mean first and second differences along each axis of more than one voxel and the centre of brightness
        along it; for each channel after the first its span against the first; then the logarithm of the extent
        along each axis, in mm.
    """
    channels = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    # A second difference needs three voxels.
    axes = [axis for axis in range(3) if channels.shape[axis + 1] > 2]
    extents = [np.log(channels.shape[axis + 1] * spacing_mm[axis]) for axis in axes]
    own, spans = zip(*(_channel_features(channel, axes) for channel in channels), strict=True)
    # The colours of a camera, as logarithm.
    balance = np.log(np.divide(spans[1:], spans[0]))
    return np.concatenate([*own, balance, extents])


def _channel_features(channel: NDArray[Any], axes: Sequence[int]) -> tuple[list[float], float]:
    """The features of one channel, and its span."""
    below, above, part = _neighbours(channel, (*_ENDS, *_QUANTILES))
    # Percentiles instead of the extremes, so that a few bright voxels do not set the scale.
    low, high = (below + (above - below) * part)[:2]
    span = max(high - low, _TINY)

    def scaled(values: NDArray[Any]) -> Floats:
        within: Floats = np.subtract(values, low, dtype=np.float64)
        within /= span
        np.clip(within, 0, 1, out=within)
        return within

    # Scaling keeps the order of the voxels, so the neighbours of a quantile stay its neighbours.
    first, second = scaled(below[2:]), scaled(above[2:])
    quantiles = first + (second - first) * part[2:]
    sums = _sums(channel, scaled, quantiles[_QUANTILES.index(0.5)])
    deviation = np.sqrt(max(sums.squares / channel.size - (sums.planes[0].sum() / channel.size) ** 2, 0.0))
    features = [*quantiles, deviation]
    for axis in axes:
        length = channel.shape[axis]
        # Sharpness: how large the steps between neighbouring voxels are, compared with the contrast of the image.
        for order, steps in enumerate(sums.steps[axis], start=1):
            mean = steps / (channel.size // length * (length - order))
            features.append(np.log(mean / (deviation + _TINY) + _TINY))
        # Evenness: above 0 if the image is brighter towards the end of the axis.
        features.append(np.linspace(-1, 1, length) @ sums.planes[axis] / channel.size / (deviation + _TINY))
    return features, span


def _neighbours(channel: NDArray[Any], levels: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """Shape (levels,) each: the voxels below and above each quantile, and the part of the way between them where it lies."""
    ordered = channel.flatten("K")  # the only copy of the image, in its own type
    rank = np.array(levels) * (ordered.size - 1)
    below = rank.astype(np.intp)
    above = np.minimum(below + 1, ordered.size - 1)
    ordered.partition(np.unique([below, above]))
    return ordered[below].astype(np.float64), ordered[above].astype(np.float64), rank - below


class _Sums(NamedTuple):
    """What a scaled image adds up to.

    Attributes:
        planes: For each axis, shape (its length,): the sums of the planes across it. A centre was subtracted from all values.
        squares: The sum of the squares of these values.
        steps: Shape (3, 2): the sums of the absolute first and second differences along each axis.
    """

    planes: list[Floats]
    squares: float
    steps: Floats


def _sums(channel: NDArray[Any], scaled: Callable[[NDArray[Any]], Floats], centre: float) -> _Sums:
    """The sums over a channel, shape (I, J, K), of scaled values, which are made slab by slab.

    Args:
        channel: Shape (I, J, K).
        scaled: Scales values to 0 to 1.
        centre: A usual scaled value: squares of deviations from it keep more digits.
    """
    planes, squares, steps = [np.zeros(length) for length in channel.shape], 0.0, np.zeros((3, 2))
    # A slab is read in one go if its axis is the slowest in memory.
    order = sorted(range(3), key=lambda axis: (channel.shape[axis] > 1, abs(channel.strides[axis])), reverse=True)
    turned = channel.transpose(order)
    height = max(1, _SLAB_VOXELS * len(turned) // turned.size)
    for start in range(0, len(turned), height):
        # Differences that begin in this slab may end in the next two planes.
        slab = scaled(turned[start : start + height + 2])
        own = slab[:height]
        for n, axis in enumerate(order):
            difference = own if n else slab
            for power in (0, 1):
                difference = np.diff(difference, axis=n)
                steps[axis, power] += np.abs(difference[:height]).sum()
        own -= centre
        for n, axis in enumerate(order):
            own_planes = slice(start, start + height) if n == 0 else slice(None)
            planes[axis][own_planes] += own.sum(axis=tuple(other for other in range(3) if other != n))
        # No product of vectors: OpenBLAS's threads spin for a while after it, beside those of the next case's network
        squares += float(np.square(own, out=own).sum())
    return _Sums(planes, squares, steps)


class LayerMeans:
    """Mean over all windows of what a layer of the network made of each, from `inference.engines.Answer.layer`."""

    def __init__(self) -> None:
        self._sums: list[Floats] = []
        self._windows = 0

    def add(self, layer: "torch.Tensor") -> None:
        """Adds a batch of windows, shape (B, 2 C): the numbers of each window."""
        # Sums, and the number of windows: the last batch may hold fewer windows than the others.
        self._sums.append(layer.sum(0).cpu().numpy().astype(float))
        self._windows += len(layer)

    def features(self) -> Floats:
        """Shape (2 C,): mean over windows of each channel's mean and deviation. Raises ValueError before the first window."""
        if not self._windows:
            raise ValueError("the layer has given no output; run the network first")
        means: Floats = np.sum(self._sums, axis=0) / self._windows
        return means

    def behind(self, image: Floats) -> Floats:
        """The features of an image, shape (F,), and those of the layer behind them."""
        return np.concatenate([image, self.features()])


@dataclass(frozen=True)
class ShiftDetector(JsonDocument):
    """A fitted detector.

    Attributes:
        centre: Shape (F,). Mean of the reference images' features.
        spread: Shape (F,). Their standard deviation.
        components: Shape (P, F). Principal directions of the standardised features.
        deviations: Shape (P,). Standard deviation along each.
        scale: Usual distances of images left out: along the components, beside them, and of the farthest feature.
        limit: An image with a higher score is unlike the reference.
        subjects: Number of subjects of the reference images.
    """

    centre: Floats
    spread: Floats
    components: Floats
    deviations: Floats
    scale: tuple[float, float, float]
    limit: float
    subjects: int

    def __post_init__(self) -> None:
        shape, features = self.components.shape, len(self.centre)
        if shape != (len(self.deviations), features) or len(self.spread) != features:
            raise ValueError(f"components have shape {shape}, of {len(self.deviations)} and {features}")

    @classmethod
    def fit(cls, features: ArrayLike, subjects: Sequence[str]) -> "ShiftDetector":
        """The detector whose reference are these images; its limit comes from subjects left out in turn.

        Args:
            features: Shape (N, F), of each image.
            subjects: N names: the subject of each image.

        Raises:
            ValueError: Fewer than LEAST_SUBJECTS subjects.
        """
        table, names = np.asarray(features, dtype=np.float64), np.asarray(subjects, dtype=str)
        everyone = sorted(set(subjects))
        if len(everyone) < LEAST_SUBJECTS:
            raise ValueError(f"{len(everyone)} subject(s); {LEAST_SUBJECTS} are needed to say what is usual")
        away = np.empty((len(table), 3))
        for subject in everyone:
            # A new subject is not among the reference images, so each subject is measured against the others.
            others = cls._of(table[names != subject])
            away[names == subject] = [others._distances(row) for row in table[names == subject]]
        # Each of the three distances in units of its usual size, so that their maximum compares like with like.
        usual = np.maximum(np.median(away, axis=0), _TINY)
        scores = (away / usual).max(axis=1)
        limit = conformal_quantile(scores, list(subjects), min(USUAL, len(everyone) / (len(everyone) + 1)))
        along, beside, farthest = usual.tolist()
        return replace(cls._of(table), scale=(along, beside, farthest), limit=limit, subjects=len(everyone))

    @classmethod
    def _of(cls, table: Floats) -> "ShiftDetector":
        centre = table.mean(axis=0)
        spread = np.maximum(table.std(axis=0), _LEAST_SPREAD * np.maximum(np.abs(centre), _LEAST_MEAN))
        # Principal components by a singular value decomposition, which may have fewer images than features. A singular
        # value over sqrt(N) is the standard deviation along its component.
        _, sizes, directions = np.linalg.svd((table - centre) / spread, full_matrices=False)
        count = max(1, min(_MOST_COMPONENTS, len(table) // 4))  # fewer images determine fewer components
        deviations = np.maximum(sizes[:count] / np.sqrt(len(table)), _LEAST_DEVIATION)
        return cls(centre, spread, directions[:count], deviations, (1.0, 1.0, 1.0), np.inf, 0)

    def order_of(self, features: ArrayLike, channels: int) -> tuple[int, ...]:
        """The order of an image's channels, from 0, in which each is most like the same channel of the reference images.

        It is another than that of the image only where the image as it is lies far away, and at least twice as far.

        Args:
            features: Of `image_features`, and none of a network.
            channels: Their number, C.
        """
        values = np.asarray(features, dtype=np.float64)
        axes = (len(values) + 1 - 9 * channels) // (3 * channels + 1)
        size = channels * (8 + 3 * axes)
        own, centre, spread = (row[:size].reshape(channels, -1) for row in (values, self.centre, self.spread))

        def away(order: tuple[int, ...]) -> float:
            return float(np.sqrt(np.mean(((own[list(order)] - centre) / spread) ** 2)))

        given = tuple(range(channels))
        best = min(permutations(given), key=away)
        return best if away(given) > max(_FAR, 2 * away(best)) else given

    def _distances(self, features: Floats) -> Floats:
        """Shape (3,), in the order of `scale`."""
        away = (features - self.centre) / self.spread
        # Along the components: a Mahalanobis distance. Beside them: what the components do not explain. Both are root
        # mean squares.
        along = away @ self.components.T
        beside = away - along @ self.components
        squared = np.mean((along / self.deviations) ** 2), np.mean(beside**2)
        return np.array([*np.sqrt(squared), np.abs(away).max()])

    def score(self, features: ArrayLike) -> float:
        """How far an image with these features, shape (F,), is from the reference images: 0 or more, 1 is usual.

        Raises:
            ValueError: The image has another number of features: other channels, or another network.
        """
        values = np.asarray(features, dtype=np.float64)
        if values.shape != self.centre.shape:
            raise ValueError(
                f"the image has {values.shape} features, the reference {self.centre.shape}; calibrate again"
            )
        return float((self._distances(values) / self.scale).max())

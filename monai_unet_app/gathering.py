"""The result of an image, gathered from pieces: labels, and what is kept of the probabilities."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dicom_io.boxes import Box, Channels
from dicom_io.segmentation import Evidence, Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.errors import InputRefusedError

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

    from monai_unet_app.inference.pieces import Piece

Keep = Literal["evidence", "cautious", "probabilities", "logits"]


class Gathered:
    """The result of an image, gathered from pieces. Raises InputRefusedError where the disk is too full for what is kept.

    Args:
        image: The image.
        bundle: The bundle that decides.
        keep: As in `pipeline.segment_case`.
        cuts: For "cautious": the threshold of each structure's probability from which on a voxel is in its mask.
    """

    def __init__(self, image: Volume, bundle: Bundle, keep: Keep = "evidence", cuts: Sequence[float] = ()) -> None:
        from monai_unet_app.inference.stored_channels import channels_of, map_of

        self.image, self.bundle, self.keep, self.cuts = image, bundle, keep, cuts
        shape, segments = image.shape, len(bundle.segments)
        lead = bundle.outputs.lead(segments)
        self.labels: NDArray[Any] = np.empty((*lead, *shape), bundle.outputs.label_type(segments))
        # Post-processing of the whole label map may give a voxel to another structure. Where each structure has a map, all
        # probabilities are the certainty.
        kept = keep == "probabilities" or bool(bundle.result.tidy) or bool(lead)
        self.probabilities = channels_of((bundle.outputs.background + segments, *shape), np.float32) if kept else None
        self.cautious = channels_of((segments, *shape), np.bool_) if keep == "cautious" else None
        self.certainty = None if lead else map_of(shape, np.float32)
        self.uncertainty = map_of(shape, np.float32)
        self.expected, self.doubt = np.zeros((2, segments))

    @classmethod
    def of(
        cls,
        image: Volume,
        bundle: Bundle,
        pieces: "Iterable[Piece]",
        keep: Keep = "evidence",
        cuts: Sequence[float] = (),
    ) -> "Gathered":
        """The result in these pieces, which fill the image."""
        gathered = cls(image, bundle, keep, cuts)
        for piece in pieces:
            gathered.add(piece)
            del piece  # the next windows run before the next piece
        return gathered

    def add(self, piece: "Piece") -> None:
        """Adds a piece; together they fill the image."""
        probabilities, decision = (on_volume(part, self.image) for part in (piece.probabilities, piece.decision))
        labels = _labels(decision, self.bundle)
        evidence = Evidence.of(probabilities, labels)
        box = (..., *on_grid(piece.box))
        self.labels[box], self.uncertainty[box] = labels, np.asarray(evidence.uncertainty)
        if self.certainty is not None:
            self.certainty[box] = np.asarray(evidence.certainty)
        self.expected += evidence.expected
        self.doubt += evidence.doubt
        if self.probabilities is not None:
            self.probabilities[box] = probabilities
        if self.cautious is not None:
            of_segments = probabilities[self.bundle.outputs.background :]
            self.cautious[box] = np.stack([p >= cut for p, cut in zip(of_segments, self.cuts, strict=True)])

    def segmentation(self, tidy: Sequence[Any] = (), preprocessed: "MetaTensor | None" = None) -> Segmentation:
        """The segmentation, after these transforms of the whole label map; some need the preprocessed image."""
        labels = self._tidied(tidy, preprocessed) if tidy else self.labels
        certainty = self.probabilities if self.certainty is None else self.certainty
        assert certainty is not None
        evidence = Evidence(certainty, self.uncertainty, self.expected, self.doubt)
        bundle, kept = self.bundle, self.probabilities if self.keep == "probabilities" else None
        return Segmentation(self.image, labels, bundle.segments, kept, bundle.wholes, evidence)

    def _tidied(self, tidy: Sequence[Any], preprocessed: "MetaTensor | None") -> NDArray[Any]:
        beside = {}
        if preprocessed is not None:
            assert self.probabilities is not None
            beside = {"prob": on_tensor(np.asarray(self.probabilities), self.image), "image": preprocessed}
        labels = tidied(self.image, self.labels, tidy, beside)
        if self.certainty is None:
            return labels
        assert self.probabilities is not None
        moved = labels != self.labels
        for number in np.flatnonzero(np.bincount(labels[moved])):
            here = moved & (labels == number)
            self.certainty[here] = self.probabilities[int(number)][here]
        return labels


def around(values: Channels, box: Box, shape: Sequence[int], outside: Sequence[float]) -> Channels:
    """The values of a box on the whole grid.

    Args:
        values: Shape (*box), or (C, *box).
        box: Its place on the grid.
        shape: (I, J, K) of the grid.
        outside: The value elsewhere, of all channels or of each.
    """
    from monai_unet_app.inference.stored_channels import channels_of, map_of
    from monai_unet_app.inference.windows import shape_of

    lead, value = values.shape[:-3], np.asarray(outside)
    value = value.astype(np.bool_ if value.dtype == np.bool_ else np.float32)
    whole = (channels_of if lead else map_of)((*lead, *shape), value.dtype)
    for axis, side in enumerate(box):
        for part in (slice(0, side.start), slice(side.stop, shape[axis])):
            beside = (*box[:axis], part, *(slice(0, n) for n in shape[axis + 1 :]))
            column = value.reshape(-1, 1, 1, 1) if lead else value
            whole[(..., *beside)] = np.broadcast_to(column, (*lead, *shape_of(beside)))
    whole[(..., *box)] = np.stack(list(values))
    return whole


def tidied(
    image: Volume, labels: NDArray[Any], tidy: Sequence[Any], beside: "Mapping[str, MetaTensor] | None" = None
) -> NDArray[Any]:
    """Labels on the grid of an image after these transforms of the whole label map; same shape and type.

    Args:
        image: Whose spacing in mm sizes of pieces are measured by.
        labels: Shape (I, J, K) of numbers, or (S, I, J, K) of 0 and 1.
        tidy: Transforms of the item "pred".
        beside: Further items that they look at.
    """
    from monai.transforms import Compose

    item = {**(beside or {}), "pred": on_tensor(labels.reshape(-1, *image.shape).astype(np.float32), image)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's transforms call numpy and scikit-image in ways that those deprecate
        output = Compose(list(tidy))(item)["pred"]
    numbers = np.rint(on_volume(output, image))
    if numbers.max(initial=0) > (most := np.iinfo(labels.dtype).max):
        raise InputRefusedError(
            f"there are {numbers.max():.0f} objects; at most {most} are needed; segment a part of the image, see --box"
        )
    return numbers.astype(labels.dtype).reshape(labels.shape)


def _labels(decision: NDArray[np.float32], bundle: Bundle) -> NDArray[Any]:
    """ "pred" of a bundle, shape (1, ...) or (S, ...), as labels: (...) of numbers, or (S, ...) of 0 and 1."""
    outputs, segments = bundle.outputs, len(bundle.segments)
    return np.rint(decision).astype(outputs.label_type(segments)).reshape(*outputs.lead(segments), *decision.shape[1:])


def decided(
    image: Volume, probabilities: NDArray[np.float32], decision: NDArray[np.float32], bundle: Bundle
) -> Segmentation:
    """The segmentation from the output of a bundle's whole `result`.

    Args:
        image: The image.
        probabilities: Shape (C, I, J, K), the channels of the bundle's `labels`.
        decision: "pred" of the bundle: shape (1, I, J, K) with label values, or of overlapping labels (S, I, J, K), 0 or 1.
        bundle: The bundle that decided.
    """
    return Segmentation(image, _labels(decision, bundle), bundle.segments, probabilities, bundle.wholes)


def on_grid(box: tuple[slice, ...]) -> Box:
    """A box of a tensor's spatial axes as a box of the volume; a picture gets its third axis back."""
    i, j, k = (*box, slice(0, 1))[:3]
    return i, j, k


def on_tensor(array: NDArray[Any], volume: Volume) -> "MetaTensor":
    """Channels (C, I, J, K) on a volume as a tensor (C, *spatial) with its place in RAS mm; a picture has two axes."""
    import torch
    from monai.data import MetaTensor

    channels = torch.from_numpy(volume.without_flat_axis(array))
    return MetaTensor(channels, affine=torch.from_numpy(volume.affine_ras.copy()))


def on_volume(tensor: "torch.Tensor", volume: Volume) -> NDArray[np.float32]:
    """The values of a tensor (C, *spatial) as (C, I, J, K); a picture gets its third axis back."""
    import torch

    return volume.with_flat_axis(torch.as_tensor(tensor).cpu().numpy().astype(np.float32, copy=False))

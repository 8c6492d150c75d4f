"""The steps of post-processing that are tried, as they stand in `tidy` of an inference.yaml, and the thresholds of `decide`.

All but the random field name only MONAI and torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser

Step = Mapping[str, Any]
"""A transform as it stands in `tidy`."""

THRESHOLDS = (0.3, 102.5 / 255, 152.5 / 255, 0.7)
"""Tried beside 0.5. All lie halfway between two steps of 1/255, so that a FRACTIONAL SEG, which is rounded to such steps, says
which voxels were taken."""

RANDOM_FIELDS = ((1.0, 0.5, 1.0), (3.0, 0.25, 0.0))
"""Weight of the appearance, its width in standard deviations of the image, weight of the smoothness."""

_ERODED, _DILATED = "monai.transforms.erode({}, 3)", "monai.transforms.dilate({}, 3)"
_OPENED, _CLOSED = _DILATED.format(_ERODED), _ERODED.format(_DILATED)


@dataclass(frozen=True)
class Steps:
    """Makes the steps for a bundle.

    Attributes:
        exclusive: Whether a voxel has one label. "pred" is then one channel of label values, else a channel for each label.
        channels: Number of structures.
    """

    exclusive: bool
    channels: int

    def opened(self, numbers: Sequence[int]) -> Step:
        """Thin bridges, spikes and specks of less than 3 voxels go: an opening by a cube (square) of 3 voxels."""
        if self.exclusive:
            # In place, a structure after the other: one mask is in memory at a time
            mask = _OPENED.format("(p == n)[None].float()")
            return _function(f"[p.masked_fill_((p == n) & ({mask}[0] == 0), 0) for n in {list(numbers)}][-1]")
        return self._by_channel(_OPENED, numbers)

    def closed(self, numbers: Sequence[int]) -> Step:
        """Gaps and notches of less than 3 voxels are filled, where no other structure is."""
        if self.exclusive:
            mask = _CLOSED.format("(p == n)[None].float()")
            return _function(f"[p.masked_fill_((p == 0) & ({mask}[0] > 0), n) for n in {list(numbers)}][-1]")
        return self._by_channel(_CLOSED, numbers)

    def largest(self, numbers: Sequence[int]) -> Step:
        """The largest piece of each structure alone."""
        labels = [number if self.exclusive else number - 1 for number in numbers]
        step = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}
        return step | {"applied_labels": labels, "is_onehot": not self.exclusive}

    def filled(self, numbers: Sequence[int]) -> Step:
        """What a structure encloses belongs to it."""
        return {"_target_": "FillHolesd", "keys": "pred"} | (
            {"applied_labels": list(numbers)} if self.exclusive else {}
        )

    def without_islands(self, size: float) -> Step:
        """Pieces below a size go, in mm3, or in pixels of a picture."""
        # In a label map MONAI would take each structure for one object; so the islands are those of all structures
        step = {"_target_": "RemoveSmallObjectsd", "keys": "pred", "min_size": size, "by_measure": True}
        return step | {"independent_channels": not self.exclusive}

    def _by_channel(self, opened: str, numbers: Sequence[int]) -> Step:
        channels = [number - 1 for number in numbers]
        changed = opened.format("p[n : n + 1][None]")
        return _function(
            f"torch.cat([{changed}[0] if n in {channels} else p[n : n + 1] for n in range({self.channels})])"
        )


def random_field(setting: tuple[float, float, float], voxel: float) -> Step:
    """A conditional random field, see `inference.mean_field_crf`.

    Args:
        setting: As in `RANDOM_FIELDS`.
        voxel: Typical distance of voxels in mm; 1 for pictures.
    """
    weight, alike, smoothness = setting
    return {
        "_target_": "monai_unet_app.inference.mean_field_crf.MeanFieldCRFd",
        "keys": "pred",
        "appearance": [weight, round(2 * voxel, 3), alike],
        "smoothness": [smoothness, round(voxel, 3)],
        "reach_mm": round(3 * voxel, 3),
    }


def built(steps: Sequence[Step]) -> list[Any]:
    """The transforms, as a bundle builds them."""
    transforms: list[Any] = ConfigParser({"steps": [dict(step) for step in steps]}).get_parsed_content("steps")
    return transforms


def _function(expression: str) -> Step:
    return {"_target_": "Lambdad", "keys": "pred", "func": f"$lambda p: {expression}"}

"""The demands of a bundle on its images, and the refusal of images that do not meet them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from dicom_io.volume import UNKNOWN_UNITS, Volume
from monai_unet_app.errors import BundleError, InputRefusedError


@dataclass(frozen=True)
class InputRules:
    """`input_rules` of an `inference.yaml`.

    Attributes:
        modality: Accepted DICOM modalities; a source without a modality (NIfTI, picture) passes.
        channels: 1 for grey, 3 for RGB.
        channel_names: Of all channels in their order, if each is a file or a series of its own.
        channel_modality: Of all channels, where they are of unlike modalities; None accepts any.
        constant_channels: Names of channels that may have the same value everywhere, since training cases had them so.
        planar: True for 2D pictures, False for volumes.
        spacing_mm: Least and most distance of neighbouring voxel centres, along every axis; None for pictures.
        extent_mm: Least and most size along the patient's R-L, A-P and S-I axes (pictures: width and height in pixels).
    """

    channels: int
    modality: tuple[str, ...] = ()
    planar: bool = False
    spacing_mm: tuple[float, float] | None = None
    extent_mm: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    channel_names: tuple[str, ...] = ()
    channel_modality: tuple[str | None, ...] = ()
    constant_channels: tuple[str, ...] = ()

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return 2 if self.planar else 3

    @classmethod
    def parse(cls, rules: Mapping[str, Any]) -> "InputRules":
        """The rules in the mapping of the YAML file. Raises BundleError for an unknown or malformed rule."""
        try:
            spacing, extent = rules.get("spacing_mm"), rules.get("extent_mm")
            unknown = set(rules) - {
                "modality", "channels", "channel_modality", "constant_channels", "planar", "spacing_mm", "extent_mm"
            }  # fmt: skip
            if unknown:
                raise KeyError(f"unknown rule {sorted(unknown)}")
            axes = 2 if rules.get("planar", False) else 3
            if extent and any(len(extent[end]) != axes for end in ("least", "most")):
                raise ValueError(f"extent_mm needs {axes} numbers for least and for most")
            channels = rules["channels"]
            names = tuple(map(str, channels)) if isinstance(channels, list) else ()
            if len(set(names)) < len(names) or (isinstance(channels, list) and len(names) < 2):
                raise ValueError("channels needs a number, or two or more different names")
            count, of_channels = len(names) or int(channels), tuple(rules.get("channel_modality", ()))
            if len(of_channels) not in (0, count):
                raise ValueError(f"channel_modality needs {count} entries, one for each channel")
            if odd := set(constant := tuple(rules.get("constant_channels", ()))) - set(names):
                raise ValueError(
                    f"constant_channels names {', '.join(sorted(odd))}; {', '.join(names) or 'none'} is a channel"
                )
            return cls(
                channels=count,
                channel_names=names,
                modality=tuple(rules.get("modality", ())),
                channel_modality=of_channels,
                constant_channels=constant,
                planar=bool(rules.get("planar", False)),
                spacing_mm=(float(spacing["least"]), float(spacing["most"])) if spacing else None,
                extent_mm=(tuple(extent["least"]), tuple(extent["most"])) if extent else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"input_rules {dict(rules)} cannot be used: {error}; see docs/bundles.md") from error


def check_channel_names(cases: Iterable[tuple[str, Sequence[str]]], rules: InputRules) -> None:
    """Raises InputRefusedError for channels that data name otherwise, or in another order, than the bundle.

    Args:
        cases: The id of each case, with the names of its channels; no names where the data have none.
        rules: Of the bundle.
    """
    needed = rules.channel_names
    if odd := [(case, names) for case, names in cases if names and needed and tuple(names) != needed]:
        case, names = odd[0]
        raise InputRefusedError(
            f"{len(odd)} case(s) have the channels {', '.join(names)} ({case}); {', '.join(needed)}, in this order, are what "
            "the bundle was trained with; bring the files into this order, or name them so if only the names differ"
        )


def check_rules(volume: Volume, rules: InputRules, name: str = "the image") -> None:
    """Raises InputRefusedError with all reasons if the image breaks a rule of the bundle, or is constant."""
    if reasons := "; ".join(_reasons(volume, rules)):
        raise InputRefusedError(f"{name} is not what this bundle was made for: {reasons}")


def _reasons(volume: Volume, rules: InputRules) -> Iterator[str]:
    """Each rule that the image breaks, with what it has and what is needed."""
    if volume.planar != rules.planar:
        actual, needed = ("a 2D picture", "a 3D volume") if volume.planar else ("a 3D volume", "a 2D picture")
        yield f"it is {actual}, {needed} is needed"
    if (channels := len(volume.channels)) != rules.channels:
        names = f" ({', '.join(rules.channel_names)})" if rules.channel_names else ""
        lacking = volume.provenance.kind == "dicom" and channels < rules.channels
        how = "; name the series of each by --channels" if lacking else ""
        yield f"it has {channels} channel(s), {rules.channels} needed{names}{how}"
    modality = volume.provenance.modality
    if rules.modality and modality not in (None, *rules.modality):
        yield f"its modality is {modality}, {' or '.join(rules.modality)} is needed"
    takes_ct = "CT" in (*rules.modality, *rules.channel_modality)
    for source in (volume.provenance, *volume.provenance.others):
        if takes_ct and source.modality == "CT" and source.unit not in {*UNKNOWN_UNITS, "HU"}:
            yield f"its CT values are {source.unit}, Hounsfield units (HU) are needed"
    for number, other in enumerate(volume.provenance.others[: rules.channels - 1], 1):
        accepted = rules.channel_modality[number : number + 1] if rules.channel_modality else rules.modality
        if other.modality and any(accepted) and other.modality not in accepted:
            name = rules.channel_names[number] if rules.channel_names else number + 1
            yield f"the modality of channel {name} is {other.modality}, {' or '.join(map(str, accepted))} is needed"
    if rules.spacing_mm and not volume.planar:
        least, most = rules.spacing_mm
        if not all(least <= step <= most for step in volume.spacing_mm):
            yield f"its voxels are {_by(volume.spacing_mm, 2)} mm apart, {least:g} to {most:g} mm is needed"
    if rules.extent_mm and volume.planar == rules.planar:
        smallest, largest = rules.extent_mm
        extent = extent_of(volume)
        if not all(low <= size <= high for low, size, high in zip(smallest, extent, largest, strict=True)):
            axes = "width x height" if volume.planar else "right-left x front-back x foot-head"
            unit = "pixels" if volume.planar else "mm"
            yield (
                f"its field of view is {_by(extent)} {unit} ({axes}), {_by(smallest)} to {_by(largest)} {unit} is needed"
                + (_other_size(extent, smallest, largest) if volume.planar else "")
            )
    yield from constant_reasons(volume, rules.channel_names, rules.constant_channels)


def constant_reasons(volume: Volume, names: Sequence[str] = (), allowed: Sequence[str] = ()) -> Iterator[str]:
    """That the image, or a channel of a volume, has one value everywhere; `names` of its channels, of which some may."""
    values = {n: channel.flat[0] for n, channel in enumerate(volume.channels) if (channel == channel.flat[0]).all()}
    if len(values) == len(volume.channels):
        yield f"every voxel is {values[0]:g}, an image is needed"
    elif not volume.planar or names:
        named = {n: names[n] if names else str(n + 1) for n in values}
        for name in sorted(set(named.values()) - set(allowed)):
            yield f"every voxel of channel {name} is the same, an image is needed (or `constant_channels` in input_rules)"


def _other_size(size: tuple[float, ...], least: Sequence[float], most: Sequence[float]) -> str:
    """What to do with a picture of another size: the nearest size that is accepted, if there is one of its proportions."""
    low, high = (max(np.divide(least, size)), min(np.divide(most, size)))
    plan = "plan and train a bundle on pictures of this size too"
    if low > high:
        return f"; {plan}"
    scaled = np.ceil(np.multiply(size, low)) if low > 1 else np.floor(np.multiply(size, high))
    return f"; scale it to {_by(scaled)} pixels, if its structures are then as large as in training, or {plan}"


def least_shape(volume: Volume, rules: InputRules) -> tuple[int, ...]:
    """The fewest voxels along I, J, K that an image with the grid of this volume may have."""
    if rules.extent_mm is None:
        return (1, 1, 1)
    least = np.asarray(rules.extent_mm[0])
    if volume.planar:
        return (*(int(np.ceil(n)) for n in least), 1)
    patient_axes = io_orientation(volume.affine_lps)[:, 0].astype(int)
    needed = least[patient_axes] / volume.spacing_mm
    return tuple(int(np.ceil(n - 1e-6)) for n in needed)  # less the rounding of the quotient


def extent_of(volume: Volume) -> tuple[float, ...]:
    """Size in mm along right-left, front-back and foot-head; of a picture its width and height in pixels."""
    if volume.planar:
        return tuple(map(float, volume.shape[:2]))
    return along_patient(volume, np.array(volume.shape) * volume.spacing_mm)


def along_patient(volume: Volume, lengths: NDArray[np.float64]) -> tuple[float, ...]:
    """Lengths along I, J, K in mm as lengths along the axes nearest to right-left, front-back and foot-head, shape (3,)."""
    # io_orientation gives the patient axis of each array axis; argsort turns this permutation round. Only axes count,
    # not their directions, so LPS serves as well as RAS.
    return tuple(lengths[np.argsort(io_orientation(volume.affine_lps)[:, 0])].tolist())


def _by(numbers: tuple[float, ...], digits: int = 0) -> str:
    return " x ".join(f"{number:.{digits}f}" for number in numbers)

"""How a source is meant to be shown on a screen: its windows, tables and polarity, slice by slice; sRGB for colours."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_voi

from dicom_io.objects.functional_groups import macro
from dicom_io.objects.source_images import SourceImages
from dicom_io.reading.pixels import PHYSICAL_MODALITIES

PERCENTILES = (1.0, 99.0)
NOT_FITTING = "1st to 99th percentile: the header's window does not fit"
"""Explanation of a window from percentiles, where the header's window shows nothing or is no window."""

# In steps of a screen with 256 greys: the outermost of them count as black and white.
_BLACK, _WHITE = 1 / 255, 254 / 255
_LEAST_INSIDE = 0.005
"""Part of the voxels that a window must show as grey: of a head with much air, a brain window shows one in a hundred."""

_LEAST_CONTRAST = 0.05  # between the 1st and the 99th percentile; radiographs are shown with 0.1
_MOST_WHITE, _LEAST_BRIGHT = 0.15, 0.3
"""Limits for MR volumes, whose values have no unit and whose windows follow no convention: the largest part of the voxels that
may be white, and the least brightness of the 99th percentile.
"""
_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})

_JUDGED = 2**21  # values that are enough to judge a window by
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class VoiWindow:
    """A linear or sigmoid VOI window (PS3.3 C.11.2.1.2), in units of the Modality LUT's output."""

    center: float
    width: float
    function: str = "LINEAR"
    explanation: str = ""

    def grey(self, values: NDArray[Any]) -> Floats:
        """`values` as brightness, 0 (black) to 1 (white) for MONOCHROME2; any shape."""
        x = np.asarray(values, dtype=np.float64)
        if self.function == "SIGMOID":
            # PS3.3 C.11.2.1.3.1; the limits keep exp within the range of a double, which ends near exp(709).
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - self.center) / self.width, -700, 700)))
        # PS3.3 C.11.2.1.2.1: LINEAR spreads `width` whole numbers, center - width / 2 to center + width / 2 - 1, over the greys
        center, width = (self.center, self.width) if self.function == "LINEAR_EXACT" else self._exact()
        if width <= 0:
            # A LINEAR window of width 1 has no slope: it is a threshold (PS3.3 C.11.2.1.2.1).
            return (x > center).astype(np.float64)
        return np.clip((x - center) / width + 0.5, 0.0, 1.0)

    def before(self, slope: float, intercept: float) -> "VoiWindow":
        """The window that does the same on values before `slope * value + intercept`; `slope` is positive."""
        if self.function != "LINEAR":
            return replace(self, center=(self.center - intercept) / slope, width=self.width / slope)
        # LINEAR is off by half a value and by one in width; only its exact form may be rescaled.
        center, width = self._exact()
        return replace(self, center=(center - intercept) / slope + 0.5, width=width / slope + 1.0)

    def _exact(self) -> tuple[float, float]:
        return self.center - 0.5, self.width - 1.0


@dataclass(frozen=True)
class Display:
    """How one slice is meant to be shown, by its file.

    Attributes:
        slope: Rescale slope of the Modality LUT, 1 where there is none.
        intercept: Rescale intercept, 0 where there is none.
        window: First window of the slice that fits its values; from the percentiles of the whole image where no window fits,
            with NOT_FITTING as explanation if the header names a window.
        table: The item of the VOI LUT Sequence where there is a table and no window.
        inverted: True for MONOCHROME1: low values are bright.
        mirror: The reader gives `mirror - value` for values of the Modality LUT, so that high values are bright; None
            where it leaves them as they are.
        windows: All windows of the header that can be used, in their order.
        names_window: Whether the header names a window, usable or not.
    """

    slope: float
    intercept: float
    window: VoiWindow | None
    table: Dataset | None
    inverted: bool
    mirror: float | None
    windows: tuple[VoiWindow, ...] = ()
    names_window: bool = False

    def file_values(self, values: NDArray[Any]) -> Floats:
        """The reader's values as the Modality LUT of the file gives them: same shape, in the unit of the file."""
        exact = np.asarray(values, dtype=np.float64)
        return exact if self.mirror is None else self.mirror - exact

    def grey(self, values: NDArray[Any]) -> Floats:
        """The reader's values as brightness on the screen: same shape, 0 to 1."""
        values = self.file_values(values)
        if self.table is not None:
            # A lookup table is indexed by whole numbers; the reader's values are floats.
            holder = Dataset()
            holder.VOILUTSequence = [self.table]
            bits = int(self.table.LUTDescriptor[2])
            grey = apply_voi(np.rint(values).astype(np.int64), holder).astype(np.float64) / (2**bits - 1)
        else:
            grey = self.window.grey(values) if self.window else values
        # MONOCHROME1 shows the lowest value white; the inversion comes after the VOI transformation.
        return np.asarray(1.0 - grey if self.inverted else grey)


def displays(images: SourceImages) -> list[Display]:
    """How each slice of a grey source is meant to be shown, in their order."""
    slices = [_display(images.header(k), source_slice.frame) for k, source_slice in enumerate(images.slices)]
    slices = _with_fitting_windows(slices, images)
    if all(display.window or display.table for display in slices):
        return slices
    # One window for all these slices: else the same intensity would differ in grey from slice to slice.
    values, start = np.empty(sum(int(np.prod(part.shape)) for part in images.slices)), 0
    for k, display in enumerate(slices):
        part = display.file_values(images.values(k, images.source)).ravel()
        values[start : start + part.size] = part
        start += part.size
    common = percentile_window(values[:start], used_up=True)
    marked = replace(common, explanation=NOT_FITTING)
    return [
        display
        if display.window or display.table
        else replace(display, window=marked if display.names_window else common)
        for display in slices
    ]


def fits(window: VoiWindow, values: NDArray[Any], *, strict: bool) -> bool:
    """Whether a window shows something of the values that it is meant for.

    Args:
        window: From a header.
        values: Any shape, not empty: the intensities of all slices that it is meant for, as the Modality LUT gives them.
        strict: The values have no unit and the window is a scanner's guess (MR): few of them may be white, and not
            all may be dark. Else it may be a narrow window on purpose, such as that of the brain in a CT.
    """
    if values.min() == values.max():
        return True  # nothing can be shown
    grey = window.grey(values)
    low, high = np.percentile(grey, PERCENTILES)
    white = np.mean(grey > _WHITE)
    if high - low < _LEAST_CONTRAST:
        return False
    if 1.0 - white - np.mean(grey < _BLACK) < _LEAST_INSIDE and len(np.unique(values)) > 2:  # a mask is black and white
        return False
    return not strict or bool(white <= _MOST_WHITE and high >= _LEAST_BRIGHT)


def _with_fitting_windows(slices: Sequence[Display], images: SourceImages) -> list[Display]:
    """Each slice with the first of its windows that fits all slices of the same windows; without a window where none fits."""
    # Slices with the same windows are judged together: a single slice may hold nothing but air.
    groups: dict[tuple[VoiWindow, ...], list[int]] = {}
    for k, display in enumerate(slices):
        groups.setdefault(display.windows, []).append(k)
    fitted = list(slices)
    strict = images.source.provenance.modality == "MR" and not images.source.planar
    for windows, members in groups.items():
        if windows:
            # Every n-th row and column leaves about _JUDGED pixels, over which percentiles hardly change.
            step = max(1, round((sum(np.prod(images.slices[k].shape) for k in members) / _JUDGED) ** 0.5))
            parts = [fitted[k].file_values(images.values(k, images.source)[::step, ::step]).ravel() for k in members]
            values = np.concatenate(parts)
            chosen = next((window for window in windows if fits(window, values, strict=strict)), None)
            for k in members:
                fitted[k] = replace(fitted[k], window=chosen)
    return fitted


def percentile_window(values: NDArray[Any], *, used_up: bool = False) -> VoiWindow:
    """The window from the 1st to the 99th percentile of intensities of any shape; LINEAR where its width is 1 or more.

    Args:
        values: The intensities.
        used_up: They are not needed any more, so that no copy of them is sorted.
    """
    low, high = (float(value) for value in np.percentile(values, PERCENTILES, overwrite_input=used_up))
    if high - low >= 1.0:
        # The inverse of `Window._exact`: black at `low`, white at `high`.
        return VoiWindow((low + high) / 2 + 0.5, high - low + 1.0)
    return VoiWindow((low + high) / 2, (high - low) or 1.0, "LINEAR_EXACT")


def state_table(table: Dataset) -> Dataset:
    """The lookup table with 8 or 16 bits an entry, as a presentation state wants it (PS3.3 C.11.2.1.1)."""
    entries, first, bits = (int(value) for value in table.LUTDescriptor)
    if bits in (8, 16):
        return table
    # LUT Data is OW (bytes) or US (numbers).
    stored = table.LUTData
    data = np.frombuffer(stored, dtype="<u2") if isinstance(stored, bytes) else np.array(stored)
    wider = deepcopy(table)
    wider.add_new("LUTDescriptor", table["LUTDescriptor"].VR, [entries, first, 16])
    # Entries are stretched to 16 bits, so that the highest entry stays white.
    wider.add_new("LUTData", "OW", np.rint(data * (65535 / (2**bits - 1))).astype("<u2").tobytes())
    return wider


@cache
def srgb_profile() -> bytes:
    """An sRGB profile of the input class, as PS3.3 C.11.15.1.1 wants it, for pictures that name none."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # ICC.1 7.2.5: the class of the profile; scnr is an input device.
    profile[12:16] = b"scnr"
    profile[24:36] = bytes.fromhex("07b2 0001 0001 0000 0000 0000")  # ICC.1 7.2.8: created 1970-01-01, no clock
    profile[84:100] = bytes(16)  # ICC.1 7.2.18: no profile ID
    return bytes(profile)


def _display(header: Dataset, number: int | None) -> Display:
    """The display of a slice by its header; its window is not chosen yet."""
    rescale = macro(header, number, "PixelValueTransformationSequence") or header
    voi = macro(header, number, "FrameVOILUTSequence") or header
    slope, intercept = _number(rescale, "RescaleSlope", 1.0), _number(rescale, "RescaleIntercept", 0.0)
    windows = _windows(voi)
    tables = [table for table in voi.get("VOILUTSequence") or [] if "LUTDescriptor" in table and "LUTData" in table]
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    turned = inverted and header.get("Modality") not in PHYSICAL_MODALITIES
    if turned and header.get("ModalityLUTSequence"):  # inverted before the table: the file's windows mean other values
        return Display(1.0, 0.0, None, None, False, None)
    return Display(
        slope,
        intercept,
        None,
        deepcopy(tables[0]) if not windows and len(tables) else None,
        inverted,
        # The reader gives slope * (low + high - stored) + intercept, which is this number less the value of the file.
        _low_plus_high(header) * slope + 2 * intercept if turned else None,
        windows,
        any(_parts(voi, keyword) for keyword in ("WindowCenter", "WindowWidth")),
    )


def _low_plus_high(header: Dataset) -> float:
    """Lowest plus highest stored value that the bits allow; the reader turns float pixels about 0."""
    if "PixelRepresentation" not in header:
        return 0.0
    # Two's complement: -2^(bits - 1) and 2^(bits - 1) - 1 add up to -1.
    return -1.0 if int(header.PixelRepresentation) else 2.0 ** int(header.BitsStored) - 1.0


def _number(holder: Dataset, keyword: str, default: float) -> float:
    value = holder.get(keyword)
    return default if value in (None, "") else float(value)


def _parts(holder: Dataset, keyword: str) -> list[str]:
    """The values of an attribute as text; "?" for an attribute that cannot be read, such as a number with a comma."""
    try:
        value = holder.get(keyword)
        return [str(part) for part in ([value] if isinstance(value, str | int | float) else value or [])]
    except (ValueError, TypeError, ArithmeticError):
        return ["?"]


def _windows(holder: Dataset) -> tuple[VoiWindow, ...]:
    """The usable windows of a header: two finite numbers, and a width that the function allows."""
    pairs = zip(_parts(holder, "WindowCenter"), _parts(holder, "WindowWidth"), strict=False)
    explanations = _parts(holder, "WindowCenterWidthExplanation")
    # LINEAR is the default of an absent attribute; a word that the standard does not have counts as absent.
    named = (_parts(holder, "VOILUTFunction") or ["LINEAR"])[0]
    function = named if named in _FUNCTIONS else "LINEAR"
    windows = []
    for n, pair in enumerate(pairs):
        try:
            center, width = map(float, pair)
        except ValueError:
            continue
        if math.isfinite(center) and math.isfinite(width) and width >= (1.0 if function == "LINEAR" else 1e-9):
            windows.append(VoiWindow(center, width, function, explanations[n] if n < len(explanations) else ""))
    return tuple(windows)

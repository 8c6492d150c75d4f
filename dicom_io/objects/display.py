"""How a source is meant to be shown on a screen: its windows, tables and polarity, slice by slice; sRGB for colours."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi

from dicom_io.objects.places import macro
from dicom_io.objects.source_images import SourceImages
from dicom_io.reading.pixels import PHYSICAL_MODALITIES

PERCENTILES = (1.0, 99.0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """A linear or sigmoid VOI window (PS3.3 C.11.2.1.2), in units of the Modality LUT's output."""

    center: float
    width: float
    function: str = "LINEAR"
    explanation: str = ""

    def grey(self, values: NDArray) -> Floats:
        """`values` as brightness, 0 (black) to 1 (white) for MONOCHROME2; any shape."""
        x = np.asarray(values, dtype=np.float64)
        if self.function == "SIGMOID":
            return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - self.center) / self.width, -700, 700)))
        center, width = (self.center, self.width) if self.function == "LINEAR_EXACT" else self._exact()
        if width <= 0:
            return (x > center).astype(np.float64)
        return np.clip((x - center) / width + 0.5, 0.0, 1.0)

    def before(self, slope: float, intercept: float) -> Window:
        """The window that does the same on values before `slope * value + intercept`; `slope` is positive."""
        if self.function != "LINEAR":
            return replace(self, center=(self.center - intercept) / slope, width=self.width / slope)
        center, width = self._exact()
        return replace(self, center=(center - intercept) / slope + 0.5, width=width / slope + 1.0)

    def _exact(self) -> tuple[float, float]:
        return self.center - 0.5, self.width - 1.0


@dataclass(frozen=True)
class Display:
    """How one slice is meant to be shown, as its file says.

    Attributes:
        slope: Rescale slope of the Modality LUT, 1 where there is none.
        intercept: Rescale intercept, 0 where there is none.
        window: First window of the slice; from the percentiles of the whole image where it has none.
        table: The item of the VOI LUT Sequence where there is a table and no window.
        inverted: True for MONOCHROME1: low values are bright.
        mirror: The reader gives `mirror - value` for values of the Modality LUT, so that high values are bright; None
            where it leaves them as they are.
    """

    slope: float
    intercept: float
    window: Window | None
    table: Dataset | None
    inverted: bool
    mirror: float | None

    def file_values(self, values: NDArray) -> Floats:
        """The reader's values as the Modality LUT of the file gives them."""
        exact = np.asarray(values, dtype=np.float64)
        return exact if self.mirror is None else self.mirror - exact

    def grey(self, values: NDArray) -> Floats:
        """The reader's values as brightness on the screen, 0 to 1."""
        values = self.file_values(values)
        if self.table is not None:
            holder = Dataset()
            holder.VOILUTSequence = [self.table]
            bits = int(self.table.LUTDescriptor[2])
            grey = apply_voi(np.rint(values).astype(np.int64), holder).astype(np.float64) / (2**bits - 1)
        else:
            grey = self.window.grey(values) if self.window else values
        return 1.0 - grey if self.inverted else grey


def displays(images: SourceImages) -> list[Display]:
    """How each slice of a grey source is meant to be shown, in their order."""
    found = [_display(images.header(k), one.frame) for k, one in enumerate(images.slices)]
    if all(one.window or one.table for one in found):
        return found
    values = [one.file_values(images.values(k, images.source)).ravel() for k, one in enumerate(found)]
    common = percentile_window(np.concatenate(values))
    return [one if one.window or one.table else replace(one, window=common) for one in found]


def percentile_window(values: NDArray) -> Window:
    """From the 1st to the 99th percentile, LINEAR where the range allows it (its width is 1 or more)."""
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    if high - low >= 1.0:
        return Window((low + high) / 2 + 0.5, high - low + 1.0)
    return Window((low + high) / 2, (high - low) or 1.0, "LINEAR_EXACT")


def state_table(table: Dataset) -> Dataset:
    """The lookup table with 8 or 16 bits an entry, as a presentation state wants it (PS3.3 C.11.2.1.1)."""
    entries, first, bits = (int(value) for value in table.LUTDescriptor)
    if bits in (8, 16):
        return table
    stored = table.LUTData
    data = np.frombuffer(stored, dtype="<u2") if isinstance(stored, bytes) else np.array(stored)
    wider = deepcopy(table)
    wider.add_new("LUTDescriptor", table["LUTDescriptor"].VR, [entries, first, 16])
    wider.add_new("LUTData", "OW", np.rint(data * (65535 / (2**bits - 1))).astype("<u2").tobytes())
    return wider


@cache
def srgb_profile() -> bytes:
    """An sRGB profile of the input class, as PS3.3 C.11.15.1.1 wants it, for pictures that name none."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[12:16] = b"scnr"
    profile[24:36] = bytes.fromhex("07b2 0001 0001 0000 0000 0000")  # ICC.1 7.2.8: created 1970-01-01, no clock
    profile[84:100] = bytes(16)  # ICC.1 7.2.18: no profile ID
    return bytes(profile)


def _display(header: Dataset, number: int | None) -> Display:
    rescale = macro(header, number, "PixelValueTransformationSequence") or header
    voi = macro(header, number, "FrameVOILUTSequence") or header
    slope, intercept = _number(rescale, "RescaleSlope", 1.0), _number(rescale, "RescaleIntercept", 0.0)
    window, tables = _window(voi), voi.get("VOILUTSequence") or []
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    turned = inverted and header.get("Modality") not in PHYSICAL_MODALITIES
    if turned and header.get("ModalityLUTSequence"):  # inverted before the table: the file's windows mean other values
        return Display(1.0, 0.0, None, None, False, None)
    return Display(
        slope,
        intercept,
        window,
        deepcopy(tables[0]) if window is None and len(tables) else None,
        inverted,
        _low_plus_high(header) * slope + 2 * intercept if turned else None,
    )


def _low_plus_high(header: Dataset) -> float:
    """Lowest plus highest stored value that the bits allow; the reader turns float pixels about 0."""
    if "PixelRepresentation" not in header:
        return 0.0
    return -1.0 if int(header.PixelRepresentation) else 2.0 ** int(header.BitsStored) - 1.0


def _number(holder: Dataset, keyword: str, default: float) -> float:
    value = holder.get(keyword)
    return default if value in (None, "") else float(value)


def _first(holder: Dataset, keyword: str) -> str:
    value = holder.get(keyword)
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value)
    return str(value[0]) if len(value) else ""


def _window(holder: Dataset) -> Window | None:
    center, width = _first(holder, "WindowCenter"), _first(holder, "WindowWidth")
    function = _first(holder, "VOILUTFunction") or "LINEAR"
    if not center or not width or float(width) < (1.0 if function == "LINEAR" else 1e-9):
        return None
    return Window(float(center), float(width), function, _first(holder, "WindowCenterWidthExplanation"))

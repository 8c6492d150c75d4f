"""How an image is shown in a review: the window of its header, or one from its values, and the axis of its slices."""

from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from dicom_io.errors import DicomIoError
from dicom_io.objects.display import NOT_FITTING, VoiWindow, displays, percentile_window
from dicom_io.objects.source_images import images_of
from dicom_io.volume import Volume

Shown = tuple[tuple[float, float], str]
"""(black, white), and a note that may be empty."""

COARSER = 1.1
"""Ratio of spacings. An axis that is coarser than the others by more is the axis across which the scanner made its slices."""


def shown_channel(volume: Volume) -> Volume:
    """The first of several channels; a picture with three channels stays as it is, because they are its colours."""
    return volume if volume.planar and volume.array.shape[3:] == (3,) else volume.channel(0)


def shown_window(volume: Volume) -> Shown:
    """(black, white) of a grey image, and a note if the window of its header does not fit.

    The window is that of the middle slice's DICOM header if it fits the values, else it is made from percentiles.
    """
    window = _header_window(volume)
    if window is None:
        window = percentile_window(_sample(volume))
    # PS3.3 C.11.2.1.2.1: LINEAR is centred half a value lower and spans one value less than its width
    less = 1.0 if window.function == "LINEAR" else 0.0
    width, centre = window.width - less, window.center - less / 2
    # A LINEAR window of width 1 is a threshold and spans 0 here; the ends must differ, since grey values are divided
    # by their distance
    ends = centre - width / 2, centre + width / 2 if width > 0 else centre + 0.5
    return ends, window.explanation if window.explanation == NOT_FITTING else ""


def _sample(volume: Volume) -> NDArray[Any]:
    """The values of an image, or every eighth if there are many: percentiles stay nearly the same."""
    return volume.array[::2, ::2, ::2] if volume.array.size > 2**22 else volume.array


# name, centre, width in HU; as https://radiopaedia.org/articles/windowing-ct lists them
_CT_WINDOWS = (
    ("Brain", 40.0, 80.0),
    ("Lung", -600.0, 1500.0),
    ("Soft tissue", 50.0, 400.0),
    ("Liver", 30.0, 150.0),
    ("Bone", 400.0, 1800.0),
)


def window_presets(volume: Volume, modality: str | None, shown: Shown | None = None) -> list[dict[str, Any]]:
    """Windows that a reader may choose from, the default window first; none for a picture in colour.

    Each is {"name", "low", "high"}: values up to `low` are black, values from `high` on are white.

    Args:
        volume: The image.
        modality: DICOM Modality. A CT gets the usual windows in HU, any other image windows by percentiles.
        shown: Its `shown_window`; computed if it is not given.
    """
    if volume.array.ndim == 4:
        return []
    ends, note = shown or shown_window(volume)
    rows, values = [(note or "Default", *ends)], _sample(volume)
    if modality == "CT":
        rows += [(name, centre - width / 2, centre + width / 2) for name, centre, width in _CT_WINDOWS]
    else:
        for outside in (2, 10):
            low, high = (float(value) for value in np.percentile(values, (outside, 100 - outside)))
            rows.append((f"{outside} to {100 - outside} %", low, high))
    rows.append(("Whole range", float(values.min()), float(values.max())))
    return [{"name": name, "low": low, "high": high} for name, low, high in rows if high > low]


def _header_window(volume: Volume) -> VoiWindow | None:
    if volume.provenance.kind != "dicom" or volume.provenance.resampled:
        return None
    try:
        slices = displays(images_of(volume))
    except (DicomIoError, ValueError, AttributeError):  # a header that lacks attributes of a display
        return None
    # Low values are bright in a MONOCHROME1 image; its window is not for a picture with bright high values
    middle = slices[len(slices) // 2]
    return None if middle.inverted or middle.mirror is not None else middle.window


def slice_axis(volume: Volume) -> int:
    """The axis of the array across which the slices lie: the coarsest axis, or that nearest to feet-head if none is coarser."""
    if volume.planar:
        return 2
    spacing = np.array(volume.spacing_mm)
    coarsest = int(spacing.argmax())
    if spacing[coarsest] > COARSER * np.delete(spacing, coarsest).max():
        return coarsest
    return int(np.argmax(io_orientation(volume.affine_ras)[:, 0] == 2))

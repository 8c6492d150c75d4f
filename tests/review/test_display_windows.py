"""The window in which the review page shows an image: the header's where it fits, else percentiles, and that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import write_mr_series

from dicom_io.objects.display import NOT_FITTING
from dicom_io.read import read_series
from monai_unet_app.review.display_window import shown_window, window_presets

ARRAY = np.rint(np.linspace(100, 1000, 40 * 30 * 6)).astype(np.int16).reshape((40, 30, 6), order="F")


@pytest.mark.parametrize(
    ("center", "width", "name", "ends"),
    [
        ("550", "901", "Default", (99.5, 999.5)),
        ("5000", "9000", NOT_FITTING, (109, 991)),
        ("400", "700", NOT_FITTING, (109, 991)),
        ("550", "-900", NOT_FITTING, (109, 991)),
        (None, None, "Default", (109, 991)),
    ],
)
def test_the_first_window_of_the_page_shows_the_image_and_says_where_it_comes_from(
    center: str | None, width: str | None, name: str, ends: tuple[float, float], tmp_path: Path
) -> None:
    header = {"WindowCenter": center, "WindowWidth": width}
    write_mr_series(tmp_path, ARRAY, np.diag([1.0, 1.0, 2.0, 1.0]), header=header)
    volume = read_series(tmp_path)
    shown, note = shown_window(volume)
    assert shown == pytest.approx(ends, abs=0.6)
    assert (note or "Default") == name
    assert window_presets(volume, "MR")[0] == {"name": name, "low": shown[0], "high": shown[1]}

"""The header's window is judged against the voxels: one that shows nothing gives way to percentiles, and that is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import CT_IMAGE, write_mr_series, write_picture
from result_phantoms import RESULT, dciodvfy_errors

from dicom_io.capture import write_captures
from dicom_io.objects.display import NOT_FITTING, Display, displays
from dicom_io.objects.source_images import images_of
from dicom_io.presentation import write_gsps
from dicom_io.read import read_series
from dicom_io.volume import Volume

SHAPE = (40, 30, 6)


def ramp() -> np.ndarray:
    """Stored values 100 to 1000, evenly spread and without a symmetry."""
    return np.linspace(100, 1000, int(np.prod(SHAPE))).astype(np.int16).reshape(SHAPE, order="F")


def head() -> np.ndarray:
    """A head in HU: air in and around it (-1000), a bone shell (900), brain of 20 to 45 in one voxel of fifty."""
    i, j, k = np.indices(SHAPE)
    radius = np.hypot((i - 17) / 17, (j - 14) / 13)
    array = np.full(SHAPE, -1000, np.int16)
    array[(radius < 1) & (radius > 0.85)] = 900
    brain = radius < 0.16
    array[brain] = (20 + (3 * i + 5 * j + 7 * k) % 26)[brain]
    assert 0.01 < brain.mean() < 0.03
    return array


def series(folder: Path, array: np.ndarray, center: object, width: object, **header: object) -> Volume:
    told = {"WindowCenter": center, "WindowWidth": width} | header
    write_mr_series(folder, array, np.diag([1.0, 1.0, 2.0, 1.0]), header=told)
    return read_series(folder)


def shown(volume: Volume) -> tuple[list[Display], np.ndarray]:
    """How each slice is shown, and all of it as grey, shape (slices, rows, columns)."""
    images = images_of(volume)
    found = displays(images)
    return found, np.stack([one.grey(images.values(k, volume)) for k, one in enumerate(found)])


def is_by_percentiles(found: list[Display], grey: np.ndarray) -> bool:
    """Whether one in a hundred voxels is black and one in a hundred white, and that is said of every slice."""
    assert {one.window.explanation for one in found if one.window} <= {NOT_FITTING, ""}
    said = all(one.window and one.window.explanation == NOT_FITTING for one in found)
    ends = [np.mean(grey <= 0), np.mean(grey >= 1)]
    assert said == bool(np.allclose(ends, 0.01, atol=0.004) and abs(np.median(grey) - 0.5) < 0.01)
    return said


@pytest.mark.parametrize(
    ("center", "width"),
    [
        ("50000", "400"),  # all black
        ("-9000", "400"),  # all white
        ("5000", "9000"),  # almost black: the brightest voxel has a grey of a tenth
        ("400", "700"),  # a quarter white
        ("550", "-900"),  # inverted
        ("550", "0"),
        ("1e30", "1e30"),
        ("0", "1000000"),  # all of one grey
        ("550", None),
        (["50000", "-9000"], ["400", "400"]),
    ],
)
def test_a_window_that_shows_nothing_of_an_mr_gives_way_to_percentiles(
    center: object, width: object, tmp_path: Path
) -> None:
    assert is_by_percentiles(*shown(series(tmp_path, ramp(), center, width)))


@pytest.mark.parametrize(("center", "width"), [("550", "900"), ("600", "1500"), ("500", "870")])
def test_a_window_that_fits_is_kept(center: str, width: str, tmp_path: Path) -> None:
    found, _ = shown(series(tmp_path, ramp(), center, width))
    assert {(one.window.center, one.window.width) for one in found if one.window} == {(float(center), float(width))}


def test_of_several_windows_the_first_that_fits_is_taken(tmp_path: Path) -> None:
    windows = {"center": ["50000", "560", "550"], "width": ["400", "950", "900"]}
    found, _ = shown(series(tmp_path, ramp(), **windows, WindowCenterWidthExplanation=["FAR", "NEAR", "OTHER"]))
    assert {(one.window.center, one.window.explanation) for one in found if one.window} == {(560.0, "NEAR")}


def test_a_header_without_a_window_is_no_fault(tmp_path: Path) -> None:
    found, _ = shown(series(tmp_path, ramp(), None, None))
    assert {one.window.explanation for one in found if one.window} == {""}


@pytest.mark.parametrize(("center", "width"), [("40", "80"), ("30", "40"), ("-600", "1500"), ("400", "1800")])
def test_narrow_and_wide_standard_windows_of_a_ct_are_kept(center: str, width: str, tmp_path: Path) -> None:
    found, _ = shown(series(tmp_path, head(), center, width, **CT_IMAGE))
    assert {(one.window.center, one.window.width) for one in found if one.window} == {(float(center), float(width))}


@pytest.mark.parametrize(("center", "width"), [("3000", "400"), ("-5000", "400"), ("32768", "10")])
def test_a_window_beside_all_values_of_a_ct_is_not(center: str, width: str, tmp_path: Path) -> None:
    found, _ = shown(series(tmp_path, head(), center, width, **CT_IMAGE))
    assert {one.window.explanation for one in found if one.window} == {NOT_FITTING}


def test_a_mask_is_black_and_white(tmp_path: Path) -> None:
    array = (ramp() > 800).astype(np.int16)
    found, _ = shown(series(tmp_path, array, "1", "2", **CT_IMAGE))
    assert {(one.window.center, one.window.width) for one in found if one.window} == {(1.0, 2.0)}


def test_slices_with_windows_of_their_own_are_judged_by_themselves(tmp_path: Path) -> None:
    def edit(dataset: pydicom.Dataset, k: int) -> None:
        values = np.frombuffer(dataset.PixelData, np.int16)
        low, high = int(values.min()), int(values.max())
        dataset.WindowCenter, dataset.WindowWidth = (low + high) / 2, high - low + 1
        if k == 2:
            dataset.WindowCenter = 30000

    write_mr_series(tmp_path, ramp(), np.diag([1.0, 1.0, 2.0, 1.0]), edit=edit)
    found, _ = shown(read_series(tmp_path))
    assert [one.window.explanation == NOT_FITTING for one in found if one.window] == [k == 2 for k in range(SHAPE[2])]


def test_a_radiograph_of_little_contrast_keeps_its_window(tmp_path: Path) -> None:
    array = np.linspace(1300, 1700, 1200).astype(np.uint16).reshape(40, 30)
    header = {"Modality": "CR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "WindowCenter": 1600, "WindowWidth": 2800}
    found, _ = shown(read_series(write_picture(tmp_path / "a.dcm", array, header)))
    assert found[0].window is not None
    assert found[0].window.width == 2800


def with_comma(folder: Path) -> Volume:
    """A series whose WindowCenter has a comma for a point."""
    series(folder, ramp(), "5555", "900")
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content.count(b"DS\x04\x005555") == 1
        path.write_bytes(content.replace(b"DS\x04\x005555", b"DS\x04\x0040,5"))
    return read_series(folder)


def test_a_window_that_is_no_number_ends_nothing_and_every_object_says_what_was_done(tmp_path: Path) -> None:
    source = with_comma(tmp_path / "source")
    assert is_by_percentiles(*shown(source))
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:9, 6:12, 2:4], labels[20:24, 6:9, 3] = 1, 2
    state = pydicom.dcmread(write_gsps(source.with_array(labels), source, tmp_path / "state.dcm", RESULT))
    assert [item.WindowCenterWidthExplanation for item in state.SoftcopyVOILUTSequence] == [NOT_FITTING]
    assert dciodvfy_errors(tmp_path / "state.dcm") == []
    for path in write_captures(source.with_array(labels), source, tmp_path / "sc", RESULT):
        assert dciodvfy_errors(path) == []

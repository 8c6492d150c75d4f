from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, oblique_affine, write_mr_series
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing
from result_phantoms import RESULT, SEGMENTS, dciodvfy_errors
from source_phantoms import (
    ALL,
    NAMES,
    PLACED,
    drawn_capture,
    frame_of,
    kept_source,
    lopsided,
    oblique_mr,
    radiograph,
    raw_name,
    resampled_mr,
    source_file,
    stored_radiograph,
)

from dicom_io import capture
from dicom_io.capture import CaptureStyle, chosen_slices, write_captures
from dicom_io.errors import LabelError
from dicom_io.objects import drawing
from dicom_io.objects.display import VoiWindow
from dicom_io.read import read_series
from dicom_io.volume import Volume

SQUARE = np.diag([1.0, 1.0, 4.0, 1.0])
FILL = CaptureStyle(outline=False, opacity=0.3, least_side=11 * 21)


def plain_mr(folder, header=None, affine=SQUARE) -> Volume:
    """An axial MR with square pixels of 1 mm and the window 100 to 400, as LINEAR says it."""
    window = {"WindowCenter": 250.5, "WindowWidth": 301}
    write_mr_series(folder, lopsided_array(), affine, header=window | dict(header or {}))
    return read_series(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Volume:
    """`plain_mr`, which no test changes."""
    return plain_mr(tmp_path_factory.mktemp("plain") / "mr")


def picture_in(path, source: Volume, labels: Volume, k: int, style: CaptureStyle) -> np.ndarray:
    """Shape (rows, columns, 3): the picture of a written capture without its frame."""
    drawn = drawn_capture(labels, source, k, RESULT, style)
    width, height = drawn.size
    pixels = pydicom.dcmread(path).pixel_array
    return pixels[drawn.top : drawn.top + height, drawn.left : drawn.left + width]


@pytest.mark.parametrize("kind", ALL)
def test_captures_of_every_kind_of_source_are_valid(kind, tmp_path_factory, tmp_path):
    source = kept_source(tmp_path_factory, kind)
    paths = write_captures(lopsided(source), source, tmp_path / "sc", RESULT)
    assert len(paths) == (7 if kind in PLACED else 1)
    for path in paths:
        assert dciodvfy_errors(path) == []
    dataset = pydicom.dcmread(paths[0])
    assert dataset.SOPClassUID.name == "Secondary Capture Image Storage"
    assert (dataset.BurnedInAnnotation, dataset.ConversionType, dataset.SeriesNumber) == ("YES", "WSD", 9003)
    assert dataset.ImageType == ["DERIVED", "SECONDARY"]


def test_inside_a_label_the_colour_is_blended_and_outside_the_grey_is_windowed(plain, tmp_path):
    """Each voxel is 21 pixels wide, so the middle one of them shows its very value."""
    paths = write_captures(lopsided(plain), plain, tmp_path / "sc", RESULT, style=FILL)
    for k, path in enumerate(paths):
        centres = picture_in(path, plain, lopsided(plain), k, FILL)[10::21, 10::21].transpose(1, 0, 2).astype(float)
        grey = np.clip((lopsided_array()[:, :, k] - 100.0) / 300, 0, 1)[..., None] * 255
        wanted = np.repeat(np.rint(grey), 3, axis=2)
        for segment in SEGMENTS:
            inside = lopsided(plain).array[:, :, k] == segment.number
            wanted[inside] = np.rint(0.7 * wanted[inside] + 0.3 * np.array(segment.rgb))
        np.testing.assert_allclose(centres, wanted, atol=1)
        assert np.ptp(centres[~lopsided(plain).array[:, :, k].astype(bool)]) > 100


def test_the_outline_is_the_full_colour_along_the_inner_edge(plain, tmp_path):
    style = replace(FILL, outline=True)
    path = write_captures(lopsided(plain), plain, tmp_path / "sc", RESULT, slices=[1], style=style)[0]
    picture = picture_in(path, plain, lopsided(plain), 1, style)
    red = (picture == SEGMENTS[0].rgb).all(axis=2)
    block = np.zeros_like(red)
    block[3 * 21 : 8 * 21, 2 * 21 : 6 * 21] = True  # rows 3 to 7, columns 2 to 5
    block[4 * 21 : 5 * 21, 3 * 21 : 4 * 21] = False
    assert red.any()
    assert not (red & ~block).any()
    assert red[3 * 21, 2 * 21 : 6 * 21].all()
    assert red[3 * 21 : 8 * 21, 6 * 21 - 1].all()
    assert not red[3 * 21 + 10, 4 * 21 : 5 * 21].any()


@pytest.mark.parametrize("kind", PLACED)
def test_the_capture_of_a_slice_names_its_instance(kind, tmp_path_factory, tmp_path):
    source = kept_source(tmp_path_factory, kind)
    paths = write_captures(lopsided(source), source, tmp_path / "sc", RESULT)
    for k, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        (item,) = dataset.SourceImageSequence
        assert item.ReferencedSOPInstanceUID == source_file(source, k).SOPInstanceUID
        assert item.get("ReferencedFrameNumber") == frame_of(kind, k)
        assert dataset.InstanceNumber == k + 1
        assert path.name == f"capture_{k + 1:03d}.dcm"
    assert len({str(pydicom.dcmread(path).SeriesInstanceUID) for path in paths}) == 1
    assert len({str(pydicom.dcmread(path).SOPInstanceUID) for path in paths}) == 7


def test_pixels_of_the_picture_are_square_whatever_those_of_the_slice_are(tmp_path):
    """11 columns of 1.25 mm and 9 rows of 0.75 mm: 13.75 by 6.75 mm."""
    source = oblique_mr(tmp_path / "mr")
    path = write_captures(lopsided(source), source, tmp_path / "sc", RESULT, slices=[2])[0]
    width, height = drawn_capture(lopsided(source), source, 2, RESULT, CaptureStyle()).size
    assert width >= 512
    assert width / height == pytest.approx(13.75 / 6.75, rel=0.005)
    rows_mm, columns_mm = (float(value) for value in pydicom.dcmread(path).PixelSpacing)
    assert (columns_mm * width, rows_mm * height) == (pytest.approx(13.75), pytest.approx(6.75))
    assert rows_mm == pytest.approx(columns_mm, rel=0.005)


@pytest.mark.parametrize(
    ("shape", "pixel", "size"),
    [
        ((64, 64), (1.0, 1.0), (512, 512)),
        ((512, 512), (0.4, 0.4), (512, 512)),
        ((300, 200), (1.0, 1.0), (600, 400)),
        ((2000, 2500), (0.1, 0.1), (2000, 2500)),
        ((100, 100), (1.0, 2.0), (300, 600)),
    ],
)
def test_pictures_are_enlarged_by_whole_numbers_until_they_are_readable(shape, pixel, size):
    assert drawing.picture_size(shape, pixel, 512) == size


def test_low_values_are_bright_in_a_monochrome1_source(tmp_path):
    source = radiograph(tmp_path / "dx", {"PixelSpacing": [0.2, 0.2]})
    empty, style = source.with_array(np.zeros(source.shape, np.uint8)), CaptureStyle(least_side=20 * 21)
    path = write_captures(empty, source, tmp_path / "sc", RESULT, style=style)[0]
    shown = picture_in(path, source, empty, 0, style)[10::21, 10::21, 0].T
    wanted = 1 - np.clip((stored_radiograph() - (799.5 - 599.5)) / 1199, 0, 1)  # PS3.3 C.11.2.1.2.1, then inverted
    np.testing.assert_allclose(shown, wanted * 255, atol=1)
    assert shown[0, 0] > shown[-1, -1]


def test_a_lookup_table_of_the_source_is_applied(tmp_path):
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 12])
    table.add_new("LUTData", "US", [min(4095, 2 * n) for n in range(4096)])
    header = {"WindowCenter": None, "WindowWidth": None, "VOILUTSequence": [table], "PixelSpacing": None}
    source = radiograph(tmp_path / "dx", header)
    empty, style = source.with_array(np.zeros(source.shape, np.uint8)), CaptureStyle(least_side=20 * 21)
    path = write_captures(empty, source, tmp_path / "sc", RESULT, style=style)[0]
    shown = picture_in(path, source, empty, 0, style)[10::21, 10::21, 0].T
    np.testing.assert_allclose(shown, 255 - np.minimum(4095, 2.0 * stored_radiograph()) / 4095 * 255, atol=1)


def test_a_colour_picture_keeps_its_colours(tmp_path):
    source = ALL["RGB"](tmp_path)
    empty, style = source.with_array(np.zeros(source.shape, np.uint8)), CaptureStyle(least_side=20 * 21)
    path = write_captures(empty, source, tmp_path / "sc", RESULT, style=style)[0]
    shown = picture_in(path, source, empty, 0, style)[10::21, 10::21].transpose(1, 0, 2)
    np.testing.assert_array_equal(shown, source.array[:, :, 0])
    assert "PixelSpacing" not in pydicom.dcmread(path)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_as_pydicom_applies_them(function):
    holder = Dataset()
    holder.WindowCenter, holder.WindowWidth, holder.VOILUTFunction = 40, 80, function
    holder.BitsStored, holder.PixelRepresentation, holder.PhotometricInterpretation = 16, 1, "MONOCHROME2"
    values = np.arange(-100, 200, dtype=np.int16)
    wanted = apply_windowing(values, holder)
    lowest, highest = -(2.0**15), 2.0**15 - 1
    np.testing.assert_allclose(
        VoiWindow(40, 80, function).grey(values), (wanted - lowest) / (highest - lowest), atol=1e-4
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_before_the_rescale_shows_the_same(function):
    window, stored = VoiWindow(140.0, 90.0, function), np.arange(0, 300.0)
    np.testing.assert_allclose(window.before(0.7, -12.0).grey(stored), window.grey(0.7 * stored - 12.0), atol=1e-12)


@pytest.mark.parametrize(
    ("counts", "limit", "chosen"),
    [
        ([0, 1, 3, 0, 2, 0], 24, [1, 2, 4]),
        ([0, 0, 0, 0, 0], 24, [2]),
        ([1] * 9, 3, [0, 4, 8]),
        ([1, 1, 1, 5, 1, 1, 1, 1, 1], 3, [0, 3, 8]),
        ([1, 1, 1, 5, 1, 1], 1, [3]),
        ([0, 2, 2, 2, 2, 2, 2, 9, 0], 2, [1, 7]),
    ],
)
def test_slices_are_chosen_evenly_with_the_fullest_among_them(counts, limit, chosen):
    assert chosen_slices(counts, limit) == chosen


def test_overlapping_segments_are_counted_and_painted_one_over_the_other(plain, tmp_path):
    channels = np.zeros((*plain.shape, 2), dtype=np.uint8)
    channels[1:6, 1:6, 2, 0] = 1
    channels[3:9, 4:8, 2, 1] = 1
    labels = plain.with_array(channels)
    (path,) = write_captures(labels, plain, tmp_path / "sc", RESULT, style=FILL)
    centre = picture_in(path, plain, labels, 2, FILL)[5 * 21 + 10, 4 * 21 + 10].astype(float)
    grey = np.clip((lopsided_array()[4, 5, 2] - 100.0) / 300, 0, 1) * 255
    once = 0.7 * np.rint(grey) + 0.3 * np.array(SEGMENTS[0].rgb)
    np.testing.assert_allclose(centre, 0.7 * once + 0.3 * np.array(SEGMENTS[1].rgb), atol=1)


@pytest.mark.parametrize(
    ("affine", "orientation"),
    [
        (SQUARE, ["L", "P"]),
        (np.array([[0, 0, 4.0, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]), ["P", "F"]),  # sagittal
        (np.array([[1, 0, 0, 0], [0, 0, 4.0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]), ["L", "F"]),  # coronal
        (oblique_affine(), ["LPH", "PR"]),  # cosines (0.74, 0.55, 0.39) and (-0.65, 0.73, 0.19)
    ],
    ids=["axial", "sagittal", "coronal", "oblique"],
)
def test_the_capture_says_which_way_the_patient_lies(affine, orientation, tmp_path):
    source = plain_mr(tmp_path / "mr", affine=affine)
    dataset = pydicom.dcmread(write_captures(lopsided(source), source, tmp_path / "sc", RESULT, slices=[3])[0])
    assert list(dataset.PatientOrientation) == orientation
    assert dciodvfy_errors(tmp_path / "sc" / "capture_004.dcm") == []


def test_the_research_mark_stands_above_the_picture_and_nothing_covers_it(plain, tmp_path):
    drawn = drawn_capture(lopsided(plain), plain, 3, RESULT, CaptureStyle())
    above = drawn.pixels[: drawn.top].astype(int)
    assert (above == (255, 220, 0)).all(axis=2).sum() > 200
    frame = drawn.pixels.copy()
    frame[drawn.top : drawn.top + drawn.size[1], drawn.left : drawn.left + drawn.size[0]] = 0
    assert (frame.sum(axis=2) > 300).sum() > 500  # text below and letters around
    left, right, upper, lower = (
        frame[drawn.top : -1, : drawn.left],
        frame[drawn.top : -1, drawn.left + drawn.size[0] :],
        frame[:, drawn.left :][: drawn.top],
        frame[drawn.top + drawn.size[1] :],
    )
    assert all(part.any() for part in (left, right, upper, lower))


def test_text_fits_on_the_narrowest_picture(tmp_path):
    segments = tuple(
        replace(SEGMENTS[0], number=n, label=f"{n} a very long label of a segment that fills a line")
        for n in range(1, 31)
    )
    result = replace(RESULT, segments=segments, algorithm_name="a_name_without_any_blank_" * 4)
    write_mr_series(tmp_path / "mr", np.full((2, 40, 1), 100, np.int16), SQUARE)
    source = read_series(tmp_path / "mr")
    labels = source.with_array(np.zeros(source.shape, np.uint8))
    labels.array[:, :15, 0] = np.arange(1, 31).reshape(2, 15)
    drawn = drawn_capture(labels, source, 0, result, CaptureStyle())
    rows, columns = np.nonzero(drawn.pixels.sum(axis=2) > 100)
    assert columns.min() > 0
    assert columns.max() < drawn.pixels.shape[1] - 1
    assert rows.max() < drawn.pixels.shape[0] - 1


def test_no_name_of_the_patient_is_burned_in(tmp_path):
    """Two patients, one picture: what differs in the file cannot be in the pixels."""
    pixels = []
    for number, name in enumerate(("Phantom^One", "Quite^Another")):
        identity = {
            "PatientName": name,
            "PatientID": name,
            "PatientBirthDate": f"19{number}00101",
            "AccessionNumber": "A",
        }
        source = plain_mr(tmp_path / str(number), identity | {"AccessionNumber": str(number)})
        (path,) = write_captures(lopsided(source), source, tmp_path / f"sc{number}", RESULT, slices=[3])
        pixels.append(pydicom.dcmread(path).PixelData)
        assert pydicom.dcmread(path).PatientName == name
    assert pixels[0] == pixels[1]


def test_a_slice_has_the_same_capture_whichever_others_are_written(plain, tmp_path):
    every = write_captures(lopsided(plain), plain, tmp_path / "all", RESULT)
    (one,) = write_captures(lopsided(plain), plain, tmp_path / "one", RESULT, slices=[4, 4])
    assert one.name == "capture_005.dcm"
    assert one.read_bytes() == every[4].read_bytes()


def test_captures_of_a_resampled_series_show_the_slices_that_exist(tmp_path):
    source = resampled_mr(tmp_path / "mr")
    style = replace(FILL, opacity=0.0)
    paths = write_captures(lopsided(source), source, tmp_path / "sc", RESULT, style=style)
    low, high = np.percentile(lopsided_array()[:, :, [0, 1, 2, 4, 5, 6]], (1, 99))
    for path, uid, k in zip(paths, source.provenance.sop_instance_uids, [0, 1, 2, 4, 5, 6], strict=True):
        assert pydicom.dcmread(path).SourceImageSequence[0].ReferencedSOPInstanceUID == uid
        drawn = drawn_capture(lopsided(source), source, pydicom.dcmread(path).InstanceNumber - 1, RESULT, style)
        width, height = drawn.size
        picture = pydicom.dcmread(path).pixel_array[drawn.top : drawn.top + height, drawn.left : drawn.left + width, 0]
        grey = np.clip((lopsided_array()[:, :, k].T - low) / (high - low), 0, 1) * 255
        at = [np.rint((np.arange(n) + 0.5) * size / n - 0.5).astype(int) for n, size in ((9, height), (11, width))]
        np.testing.assert_allclose(picture[np.ix_(*at)], grey, atol=6)  # centres lie up to half a pixel off


def test_a_capture_changes_its_uid_with_the_labels_that_it_shows_and_no_others(plain, tmp_path):
    other = lopsided(plain).array.copy()
    other[10, 8, 5] = 2
    uids = [
        [pydicom.dcmread(path).SOPInstanceUID for path in write_captures(labels, plain, tmp_path / "sc", RESULT)]
        for labels in (lopsided(plain), plain.with_array(other))
    ]
    assert [a == b for a, b in zip(*uids, strict=True)] == [True] * 5 + [False, True]


def test_another_style_is_another_instance_of_the_same_series(plain, tmp_path):
    found = [
        pydicom.dcmread(write_captures(lopsided(plain), plain, tmp_path / "sc", RESULT, slices=[3], style=style)[0])
        for style in (
            CaptureStyle(),
            CaptureStyle(outline=False),
            CaptureStyle(opacity=0.0),
            CaptureStyle(least_side=99),
        )
    ]
    assert len({str(one.SOPInstanceUID) for one in found}) == 4
    assert len({str(one.SeriesInstanceUID) for one in found}) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["MR", "DX"])
def test_the_patient_is_carried_over_byte_for_byte(name, kind, tmp_path):
    characters, text = NAMES[name]
    source = ALL[kind](tmp_path / "source", {"SpecificCharacterSet": characters, "PatientName": text})
    path = write_captures(lopsided(source), source, tmp_path / "sc", RESULT)[0]
    assert raw_name(path) == raw_name(source.provenance.files[0])
    assert pydicom.dcmread(path).PatientName == text
    assert dciodvfy_errors(path) == []


def test_what_was_compressed_with_loss_stays_marked(tmp_path):
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 9.5,
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    source = plain_mr(tmp_path / "mr", lossy)
    path = write_captures(lopsided(source), source, tmp_path / "sc", RESULT, slices=[0])[0]
    dataset = pydicom.dcmread(path)
    assert [dataset[keyword].value for keyword in lossy] == list(lossy.values())
    assert dciodvfy_errors(path) == []


def test_all_captures_are_written_or_none(plain, tmp_path, monkeypatch):
    right = capture._draw

    def failing(scene: object, k: int) -> drawing.FramedPicture:
        if k == 4:
            raise LabelError("no more")
        return right(scene, k)

    monkeypatch.setattr(capture, "_draw", failing)
    with pytest.raises(LabelError, match="no more"):
        write_captures(lopsided(plain), plain, tmp_path / "sc", RESULT)
    assert list((tmp_path / "sc").iterdir()) == []


def test_slices_styles_and_labels_that_do_not_fit_are_refused(plain, tmp_path):
    unknown = np.full(plain.shape, 3, dtype=np.uint8)
    for labels, wanted, style, says in (
        (lopsided(plain), [7], None, "numbers from 0 to 6"),
        (lopsided(plain), [-1], None, "numbers from 0 to 6"),
        (lopsided(plain), [], None, "at least one"),
        (lopsided(plain), None, CaptureStyle(opacity=1.5), "opacity 1.5"),
        (lopsided(plain), None, CaptureStyle(limit=0), "limit 0"),
        (plain.with_array(unknown), None, None, "value 3"),
    ):
        with pytest.raises(LabelError, match=says):
            write_captures(labels, plain, tmp_path / "sc", RESULT, slices=wanted, style=style)
    assert not (tmp_path / "sc").exists()


# --- with the larger data beside the repository ---


def test_captures_of_real_radiographs_and_of_a_real_series_are_valid(shared_data, tmp_path):
    objects = shared_data / "dicom_objects"
    for number, file in enumerate(
        (
            objects / "highdicom" / "dx_image.dcm",
            objects / "highdicom_sources" / "77654033" / "CR1" / "6154",
            shared_data / "dicom_series" / "mr_ge_oblique_t1post" / "Study1" / "12-T1post-05670",
        )
    ):
        source = read_series(file)
        paths = write_captures(lopsided(source), source, tmp_path / str(number), RESULT, style=CaptureStyle(limit=2))
        assert [dciodvfy_errors(path) for path in paths] == [[]] * len(paths)

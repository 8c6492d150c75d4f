from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from phantoms import lopsided_array, oblique_affine, write_enhanced_mr, write_mr_series, write_picture
from PIL import Image, ImageCms
from pydicom.dataset import Dataset
from result_phantoms import RESULT, dciodvfy_errors
from source_phantoms import (
    AFFINES,
    ALL,
    DX_IMAGE,
    NAMES,
    PLACED,
    colour_picture,
    kept_source,
    lopsided,
    oblique_mr,
    radiograph,
    raw_name,
    resampled_mr,
    run_program,
    source_file,
    stored_radiograph,
    tilted_ct,
)

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.presentation import write as presentation
from dicom_io.presentation import write_gsps
from dicom_io.presentation.write import outlines
from dicom_io.read import read_series


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return oblique_mr(tmp_path_factory.mktemp("mr"))


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    return write_gsps(lopsided(source), source, tmp_path_factory.mktemp("pr") / "p.dcm", RESULT)


def drawn(dataset: Dataset) -> dict[tuple[str, str, int], list[np.ndarray]]:
    """Closed or open lines of shape (n, 2) as they stand in the file, by layer, named instance and frame (0: none)."""
    lines: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for item in dataset.GraphicAnnotationSequence:
        for graphic in item.get("GraphicObjectSequence") or []:
            (image,) = item.ReferencedImageSequence
            assert (graphic.GraphicType, graphic.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
            key = (item.GraphicLayer, str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 0))
            lines.setdefault(key, []).append(np.array(graphic.GraphicData).reshape(-1, 2))
    return lines


def inside_by_matplotlib(lines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels (columns, rows) whose centre, at +0.5 as PS3.3 figure C.10.5-1 draws it, is inside of an odd number."""
    column, row = np.indices(shape)
    centres = np.c_[column.ravel() + 0.5, row.ravel() + 0.5]
    counts = sum(Polygon(line, closed=True).contains_points(centres).astype(int) for line in lines)
    return (np.broadcast_to(counts, len(centres)) % 2 == 1).reshape(shape)


def area(line: np.ndarray) -> float:
    """Shoelace formula."""
    x, y = line.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


@pytest.mark.parametrize("kind", ALL)
def test_a_presentation_state_on_every_kind_of_source_is_valid(kind, tmp_path_factory, tmp_path):
    source = kept_source(tmp_path_factory, kind)
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    dataset = pydicom.dcmread(path)
    names = {"RGB": "Color"}
    assert dataset.SOPClassUID.name == f"{names.get(kind, 'Grayscale')} Softcopy Presentation State Storage"
    assert (dataset.Modality, dataset.SeriesNumber) == ("PR", 8003)


@pytest.mark.parametrize("kind", ALL)
def test_dcmtk_finds_no_fault_in_it(kind, tmp_path_factory, tmp_path):
    source = kept_source(tmp_path_factory, kind)
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    report = run_program("dcmpschk", str(path))
    assert "Test passed" in report.stdout + report.stderr


@pytest.mark.parametrize("kind", PLACED)
def test_outlines_enclose_the_pixels_of_the_slice_that_they_name(kind, tmp_path_factory, tmp_path):
    """Which slice an instance is follows from its own position, not from our reader."""
    source = kept_source(tmp_path_factory, kind)
    lines = drawn(pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)))
    found = np.zeros(source.shape, dtype=int)
    headers = {str(one.SOPInstanceUID): one for one in (source_file(source, k) for k in range(7))}
    for (layer, uid, frame), loops in lines.items():
        header = headers[uid]
        place = header.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0] if frame else header
        k = np.linalg.solve(AFFINES[kind], [*(float(x) for x in place.ImagePositionPatient), 1.0])[2]
        assert k == pytest.approx(round(k), abs=1e-4)
        found[:, :, round(k)] += int(layer.split()[1]) * inside_by_matplotlib(loops, source.shape[:2])
    np.testing.assert_array_equal(found, lopsided(source).array)


@pytest.mark.parametrize("kind", ["DX", "RGB"])
def test_outlines_on_a_picture_enclose_its_labelled_pixels(kind, tmp_path_factory, tmp_path):
    source = kept_source(tmp_path_factory, kind)
    lines = drawn(pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)))
    found = sum(
        int(layer.split()[1]) * inside_by_matplotlib(one, source.shape[:2]) for (layer, *_), one in lines.items()
    )
    np.testing.assert_array_equal(found, lopsided(source).array[:, :, 0])


def test_the_outline_of_a_block_has_its_area_but_for_the_cut_corners(source, written):
    """Columns 2 to 5, rows 3 to 7: in a file where a pixel is 1 wide, from (2, 3) to (6, 8)."""
    uid = source.provenance.sop_instance_uids[0]
    block, hole = sorted(drawn(pydicom.dcmread(written))[("SEGMENT 1", uid, 0)], key=area, reverse=True)
    assert area(block) == pytest.approx(4 * 5 - 4 * 0.125)  # each corner is cut by a triangle of 0.5 and 0.5
    assert area(hole) == pytest.approx(0.5)  # the diamond about one pixel
    np.testing.assert_allclose((block.min(axis=0), block.max(axis=0)), ((2, 3), (6, 8)))
    np.testing.assert_allclose(hole[:-1].mean(axis=0), (3.5, 4.5))


def test_every_outline_is_closed_and_not_filled(written):
    for item in pydicom.dcmread(written).GraphicAnnotationSequence:
        for graphic in item.get("GraphicObjectSequence") or []:
            assert graphic.GraphicData[:2] == graphic.GraphicData[-2:]
            assert graphic.GraphicFilled == "N"
            assert len(graphic.GraphicData) == 2 * graphic.NumberOfGraphicPoints


def test_a_block_at_the_edge_of_the_image_stays_within_the_image(source):
    (loop,) = outlines(np.ones((9, 11), dtype=bool))
    assert (loop.min(axis=0).tolist(), loop.max(axis=0).tolist()) == ([-0.5, -0.5], [10.5, 8.5])


def test_each_segment_has_a_layer_in_its_colour_and_a_line_in_the_legend(written):
    dataset = pydicom.dcmread(written)
    layers = {layer.GraphicLayer: layer for layer in dataset.GraphicLayerSequence}
    assert [layer.GraphicLayerDescription for layer in layers.values()][:2] == ["Front part", "Back part"]
    assert [layer.GraphicLayerOrder for layer in layers.values()] == [1, 2, 3]
    texts = {
        item.GraphicLayer: item.TextObjectSequence[0].UnformattedTextValue
        for item in dataset.GraphicAnnotationSequence
        if "TextObjectSequence" in item
    }
    assert texts == {
        "RESEARCH": "RESEARCH USE ONLY - NOT FOR DIAGNOSIS",
        "SEGMENT 1": "Front part",
        "SEGMENT 2": "Back part",
    }
    stored = np.array(layers["SEGMENT 1"].GraphicLayerRecommendedDisplayCIELabValue) / 65535 * 255
    lab = Image.fromarray(np.uint8([[[stored[0], stored[1] - 128, stored[2] - 128]]]).astype(np.uint8), "LAB")
    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    assert ImageCms.applyTransform(lab, to_rgb).getpixel((0, 0)) == pytest.approx((200, 10, 30), abs=6)


def test_all_images_are_referred_to_and_shown_whole_in_their_shape(source, written):
    dataset = pydicom.dcmread(written)
    (series,) = dataset.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.provenance.series_instance_uid
    named = [str(item.ReferencedSOPInstanceUID) for item in series.ReferencedImageSequence]
    assert sorted(named) == sorted(source.provenance.sop_instance_uids)
    (displayed,) = dataset.DisplayedAreaSelectionSequence
    assert (displayed.DisplayedAreaTopLeftHandCorner, displayed.DisplayedAreaBottomRightHandCorner) == ([1, 1], [11, 9])
    assert displayed.PresentationPixelSpacing == pytest.approx([0.75, 1.25])


def test_a_multi_frame_source_is_named_once_with_all_its_frames(tmp_path):
    source = PLACED["enhanced MR"](tmp_path)
    dataset = pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT))
    (image,) = dataset.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert sorted(image.ReferencedFrameNumber) == [1, 2, 3, 4, 5, 6, 7]
    last = {frame for layer, _, frame in drawn(dataset) if layer == "SEGMENT 2"}
    assert last == {1}  # slice 6 of 0 to 6, and frames run against the positions


def test_the_pixel_shape_of_a_picture_is_said_even_without_millimetres(tmp_path):
    def ratio(number: int, **header: object) -> list[int]:
        source = radiograph(tmp_path / str(number), {"PixelSpacing": None} | header)
        dataset = pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT))
        return list(dataset.DisplayedAreaSelectionSequence[0].PresentationPixelAspectRatio)

    assert ratio(1) == [1, 1]
    assert ratio(2, ImagerPixelSpacing=[0.2, 0.3]) == [2, 3]  # vertical, horizontal
    assert ratio(3, PixelAspectRatio=["4", "5"]) == [4, 5]


@pytest.mark.parametrize(("kind", "k"), [("MR", 2), ("CT", 2), ("enhanced MR", 5), ("DX", 0)])
def test_dcmtk_shows_the_source_through_it_as_the_source_says(kind, k, tmp_path_factory, tmp_path):
    """dcmp2pgm applies Modality LUT, VOI LUT and Presentation LUT of the presentation state to the stored values."""
    source = kept_source(tmp_path_factory, kind)
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    files, frames = source.provenance.files, source.provenance.frame_numbers
    frame = ["-f", str(frames[k])] if frames else []
    run_program("dcmp2pgm", "-p", str(path), *frame, str(files[0] if frames else files[k]), str(tmp_path / "o.pgm"))
    shown = np.asarray(Image.open(tmp_path / "o.pgm"), dtype=float).T
    values = stored_radiograph() if kind == "DX" else lopsided_array()[:, :, k] - (1000.0 if kind == "CT" else 0.0)
    low, high = {
        "DX": (800 - 0.5 - 1199 / 2, 800 - 0.5 + 1199 / 2),  # PS3.3 C.11.2.1.2.1: c - 0.5 -+ (w - 1) / 2
        "CT": (-850 - 0.5 - 299 / 2, -850 - 0.5 + 299 / 2),
    }.get(kind, tuple(np.percentile(lopsided_array(), (1, 99))))
    wanted = np.clip((values - low) / (high - low), 0, 1) * 255
    wanted = 255 - wanted if kind == "DX" else wanted
    np.testing.assert_allclose(shown, wanted, atol=1.01)
    assert len(np.unique(shown)) > 20


def test_windows_and_rescale_are_those_of_the_source(tmp_path):
    source = tilted_ct(tmp_path / "ct", {"WindowCenter": [-850, 40], "WindowWidth": [300, 400]})
    dataset = pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT))
    (window,) = dataset.SoftcopyVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth, window.VOILUTFunction) == (-850, 300, "LINEAR")
    assert "ReferencedImageSequence" not in window  # it is for all
    assert (dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType) == (1, -1000, "US")
    assert dataset.PresentationLUTShape == "IDENTITY"


def test_slices_with_windows_of_their_own_keep_them(tmp_path):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.WindowCenter, dataset.WindowWidth = 300 + k // 3, 600

    write_mr_series(tmp_path / "mr", lopsided_array(), oblique_affine(), edit=edit)
    source = read_series(tmp_path / "mr")
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    found = {
        str(image.ReferencedSOPInstanceUID): float(item.WindowCenter)
        for item in pydicom.dcmread(path).SoftcopyVOILUTSequence
        for image in item.ReferencedImageSequence
    }
    assert found == {uid: 300 + k // 3 for k, uid in enumerate(source.provenance.sop_instance_uids)}
    assert dciodvfy_errors(path) == []


def test_frames_with_windows_of_their_own_keep_them(tmp_path):
    """Frame n shows slice 7 - n."""

    def edit(dataset: Dataset, _: int) -> None:
        for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
            window = Dataset()
            window.WindowCenter, window.WindowWidth = 300 + number // 4, 600
            group.FrameVOILUTSequence = [window]

    source = read_series(write_enhanced_mr(tmp_path / "e.dcm", lopsided_array(), oblique_affine(), edit=edit))
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    found = {}
    for item in pydicom.dcmread(path).SoftcopyVOILUTSequence:
        (image,) = item.ReferencedImageSequence
        found |= dict.fromkeys(image.ReferencedFrameNumber, float(item.WindowCenter))
    assert found == {number: 300 + number // 4 for number in range(1, 8)}
    assert dciodvfy_errors(path) == []


def test_a_rescale_that_differs_from_slice_to_slice_moves_into_the_windows(tmp_path):
    """Values 40.5 to 1239.5 get the whole range of grey; on slice k these are the stored values of value / slope."""
    slopes = [1.0 + k / 4 for k in range(7)]
    write_mr_series(
        tmp_path / "mr", lopsided_array(), oblique_affine(), slopes=slopes, intercepts=[2.0] * 7,
        header={"WindowCenter": 640.5, "WindowWidth": 1200},
    )  # fmt: skip
    source = read_series(tmp_path / "mr")
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    assert "RescaleSlope" not in dataset
    for item in dataset.SoftcopyVOILUTSequence:
        (image,) = item.ReferencedImageSequence
        k = source.provenance.sop_instance_uids.index(str(image.ReferencedSOPInstanceUID))
        low = float(item.WindowCenter) - 0.5 - (float(item.WindowWidth) - 1) / 2
        high = float(item.WindowCenter) - 0.5 + (float(item.WindowWidth) - 1) / 2
        assert (low * slopes[k] + 2, high * slopes[k] + 2) == pytest.approx((40.5, 1239.5))
    assert dciodvfy_errors(path) == []


def test_low_values_stay_bright_in_a_monochrome1_source(tmp_path):
    source = radiograph(tmp_path)
    dataset = pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT))
    assert dataset.PresentationLUTShape == "INVERSE"
    assert (dataset.SoftcopyVOILUTSequence[0].WindowCenter, dataset.SoftcopyVOILUTSequence[0].WindowWidth) == (
        800,
        1200,
    )


def test_without_windows_the_percentiles_of_the_files_own_values_are_shown(tmp_path):
    """The reader turns MONOCHROME1 around; a presentation state works on the values as they are stored."""
    source = radiograph(tmp_path, {"WindowCenter": None, "WindowWidth": None})
    item = pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)).SoftcopyVOILUTSequence[0]
    low, high = np.percentile(stored_radiograph(), (1, 99))
    assert float(item.WindowCenter) - 0.5 - (float(item.WindowWidth) - 1) / 2 == pytest.approx(low)
    assert float(item.WindowCenter) - 0.5 + (float(item.WindowWidth) - 1) / 2 == pytest.approx(high)


def lookup_table(bits: int, data: list[int]) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(data), 0, bits])
    item.LUTExplanation = "a curve"
    item.add_new("LUTData", "US", data)
    return item


def test_a_lookup_table_is_repeated_with_16_bits_an_entry_and_a_shutter_as_it_is(tmp_path):
    """PS3.3 C.11.2.1.1: 8 or 16 bits in a presentation state, any of 8 to 16 in an image."""
    table = lookup_table(12, [min(4095, 2 * n) for n in range(4096)])
    shutter = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [8, 9], "RadiusOfCircularShutter": 6}
    header = {"WindowCenter": None, "WindowWidth": None, "VOILUTSequence": [table], **shutter}
    source = radiograph(tmp_path, header)
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    (item,) = dataset.SoftcopyVOILUTSequence[0].VOILUTSequence
    assert item.LUTDescriptor == [4096, 0, 16]
    np.testing.assert_allclose(np.frombuffer(item.LUTData, "<u2") / 65535, np.array(table.LUTData) / 4095, atol=1e-5)
    assert [dataset[keyword].value for keyword in shutter] == list(shutter.values())
    assert dataset.ShutterPresentationValue == 0
    assert dciodvfy_errors(path) == []


def test_a_colour_state_has_an_input_profile_of_srgb(tmp_path):
    source = colour_picture(tmp_path)
    dataset = pydicom.dcmread(write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT))
    assert (dataset.ICCProfile[12:16], dataset.ICCProfile[16:20]) == (b"scnr", b"RGB ")  # PS3.3 C.11.15.1.1
    assert "SoftcopyVOILUTSequence" not in dataset
    profile = ImageCms.ImageCmsProfile(io.BytesIO(dataset.ICCProfile))
    same = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    assert ImageCms.applyTransform(Image.new("RGB", (1, 1), (200, 10, 30)), same).getpixel((0, 0)) == pytest.approx(
        (200, 10, 30), abs=1
    )


def test_an_outline_too_long_for_its_attribute_is_drawn_in_pieces(tmp_path):
    """A ladder of 1200 columns whose every other column is full of steps: one line of far more than 8000 corners."""
    source = read_series(write_picture(tmp_path / "ladder.dcm", np.full((1200, 40), 5, dtype=np.uint16), DX_IMAGE))
    i, j = np.indices((1200, 40))
    ladder = ((i % 2 == 0) & ((i // 2 + j) % 2 == 0)) | (i % 4 == 1) | (j % 20 == 0)
    path = write_gsps(source.with_array(ladder[:, :, None].astype(np.uint8)), source, tmp_path / "p.dcm", RESULT)
    (lines,) = drawn(pydicom.dcmread(path)).values()
    assert max(len(line) for line in lines) == 8000
    assert dciodvfy_errors(path) == []
    pieces = [line for line in lines if (line[0] != line[-1]).any()]
    assert len(pieces) >= 2
    assert {tuple(line[-1]) for line in pieces} == {tuple(line[0]) for line in pieces}  # end to end, all round


def test_overlapping_segments_have_outlines_of_their_own(source, tmp_path):
    channels = np.zeros((*source.shape, 2), dtype=np.uint8)
    channels[1:6, 1:6, 2, 0] = 1
    channels[3:9, 4:8, 2, 1] = 1
    lines = drawn(pydicom.dcmread(write_gsps(source.with_array(channels), source, tmp_path / "p.dcm", RESULT)))
    for (layer, uid, _), loops in lines.items():
        assert uid == source.provenance.sop_instance_uids[2]
        np.testing.assert_array_equal(
            inside_by_matplotlib(loops, (11, 9)), channels[:, :, 2, int(layer.split()[1]) - 1] == 1
        )
    assert len(lines) == 2


def test_a_result_without_labels_keeps_its_layers_and_its_research_mark(source, tmp_path):
    path = write_gsps(source.with_array(np.zeros(source.shape, np.uint8)), source, tmp_path / "p.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    dataset = pydicom.dcmread(path)
    assert drawn(dataset) == {}
    assert len(dataset.GraphicLayerSequence) == 3


def test_on_a_resampled_series_the_slices_that_exist_are_drawn_on(tmp_path):
    source = resampled_mr(tmp_path / "mr")
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    lines = drawn(pydicom.dcmread(path))
    existing = [0, 1, 2, 4, 5, 6]
    found = np.zeros(source.shape, dtype=int)
    for (layer, uid, _), loops in lines.items():
        k = existing[source.provenance.sop_instance_uids.index(uid)]
        found[:, :, k] += int(layer.split()[1]) * inside_by_matplotlib(loops, (11, 9))
    np.testing.assert_array_equal(found[:, :, existing], lopsided(source).array[:, :, existing])
    assert not found[:, :, 3].any()


def test_other_labels_are_another_instance_of_the_same_series(source, written, tmp_path):
    other = lopsided(source).array.copy()
    other[10, 8, 0] = 2
    dataset = pydicom.dcmread(write_gsps(source.with_array(other), source, tmp_path / "p.dcm", RESULT))
    assert dataset.SOPInstanceUID != pydicom.dcmread(written).SOPInstanceUID
    assert dataset.SeriesInstanceUID == pydicom.dcmread(written).SeriesInstanceUID


def test_the_same_input_gives_the_same_bytes(source, written, tmp_path):
    assert write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT).read_bytes() == written.read_bytes()
    other = write_gsps(lopsided(source), source, tmp_path / "p.dcm", replace(RESULT, settings=(("tta", "on"),)))
    assert pydicom.dcmread(other).SOPInstanceUID != pydicom.dcmread(written).SOPInstanceUID


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["MR", "DX"])
def test_the_patient_is_carried_over_byte_for_byte(name, kind, tmp_path):
    characters, text = NAMES[name]
    source = ALL[kind](tmp_path / "source", {"SpecificCharacterSet": characters, "PatientName": text})
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    assert raw_name(path) == raw_name(source.provenance.files[0])
    assert pydicom.dcmread(path).PatientName == text
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize(
    "header",
    [{"BodyPartExamined": "KNEE"}, {"BodyPartExamined": "EYE", "Laterality": "L"}, {"BodyPartExamined": ""}, {}],
    ids=["paired", "paired with its side", "unknown", "unpaired"],
)
def test_laterality_stands_where_the_body_part_may_be_paired(header, tmp_path):
    source = oblique_mr(tmp_path / "mr", header)
    path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    assert pydicom.dcmread(path).get("Laterality") == (header.get("Laterality", "") if header else None)


@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, -1.0)])
def test_outlines_that_lie_elsewhere_are_never_there(source, tmp_path, monkeypatch, shift):
    right = presentation.outlines
    monkeypatch.setattr(presentation, "outlines", lambda mask: [loop + shift for loop in right(mask)])
    (tmp_path / "p.dcm").write_bytes(b"earlier")
    with pytest.raises(GeometryProofError, match=r"segment 1 miss \d+ pixels of slice 0"):
        write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    assert [file.name for file in tmp_path.iterdir()] == ["p.dcm"]
    assert (tmp_path / "p.dcm").read_bytes() == b"earlier"


def test_outlines_on_the_wrong_slice_are_never_there(source, tmp_path, monkeypatch):
    right = presentation.SourceImages.reference
    monkeypatch.setattr(presentation.SourceImages, "reference", lambda images, k: right(images, 6 - k))
    with pytest.raises(GeometryProofError, match="was deleted"):
        write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
    assert list(tmp_path.iterdir()) == []


def test_labels_and_sources_that_do_not_fit_are_refused(source, tmp_path):
    picture = radiograph(tmp_path / "dx")
    wide = picture.with_array(np.zeros(picture.shape, np.uint8))
    moved = replace(wide, affine_lps=np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3))
    unknown = lopsided(source).array.copy()
    unknown[0, 0, 0] = 3
    turned = ALL["DX"](tmp_path / "lut", {"ModalityLUTSequence": [lookup_table(16, list(range(256)))]})
    for labels, image, says in (
        (moved, picture, "lie elsewhere"),
        (lopsided(source), picture, r"shape \(11, 9, 7\)"),
        (source.with_array(unknown), source, "value 3"),
        (lopsided(turned), turned, "Modality LUT table"),
    ):
        with pytest.raises(LabelError, match=says):
            write_gsps(labels, image, tmp_path / "p.dcm", RESULT)


# --- with the larger data beside the repository ---


def test_a_presentation_state_on_real_radiographs_is_valid(shared_data, tmp_path):
    folder = shared_data / "dicom_objects"
    for file in (folder / "highdicom" / "dx_image.dcm", folder / "highdicom_sources" / "77654033" / "CR1" / "6154"):
        source = read_series(file)
        path = write_gsps(lopsided(source), source, tmp_path / "p.dcm", RESULT)
        assert dciodvfy_errors(path) == []
        assert pydicom.dcmread(path).PatientName == pydicom.dcmread(file).PatientName

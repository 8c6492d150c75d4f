"""One series -> one Volume: voxels, place and values against the headers and against SimpleITK."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from phantoms import (
    CT_IMAGE,
    lopsided_array,
    oblique_affine,
    save,
    tilted_affine,
    write_enhanced_mr,
    write_mr_series,
    write_picture,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid

from dicom_io.errors import DicomIoError, SeriesGeometryError, SeriesSelectionError, UnreadableFileError
from dicom_io.read import read_series
from dicom_io.reading.checks import PLACE_KEYWORDS
from dicom_io.reading.series import find_series
from dicom_io.volume import Volume

SAGITTAL = oblique_affine(degrees=(90, 0, 90))


def stacked_by_simpleitk(*files: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (I, J, K) and affine of files given in order, as SimpleITK stacks them."""
    image = SimpleITK.ReadImage([str(path) for path in files])
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine_lps[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), affine_lps


def place_of(header: Dataset, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position, orientation (2, 3) and spacing of one slice straight from its header; `frame` from 1 or 0."""
    if not frame:
        holders = [header] * 3
    else:
        own, shared = (
            header.PerFrameFunctionalGroupsSequence[frame - 1],
            header.SharedFunctionalGroupsSequence[0],
        )
        names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        holders = [(own if name in own else shared)[name][0] for name in names]
    keywords = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    values = [np.array(holder[key].value, float) for holder, key in zip(holders, keywords, strict=True)]
    return values[0], values[1].reshape(2, 3), values[2]


def worst_of_five_points_mm(volume: Volume) -> float:
    """Largest distance between affine and per-slice headers over corners and middle (PS3.3 C.7.6.2.1.1)."""
    columns, rows, _ = volume.shape
    numbers = volume.provenance.frame_numbers or (0,) * volume.shape[2]
    files = volume.provenance.files * (volume.shape[2] // len(volume.provenance.files))
    worst = 0.0
    for k, (path, number) in enumerate(zip(files, numbers, strict=True)):
        header = dcmread(path, stop_before_pixels=True)
        position, (row, column), (between_rows, between_columns) = place_of(header, number)
        for i, j in [
            (0, 0),
            (columns - 1, 0),
            (0, rows - 1),
            (columns - 1, rows - 1),
            (columns / 2, rows / 2),
        ]:
            truth = position + row * between_columns * i + column * between_rows * j
            worst = max(worst, float(np.linalg.norm((volume.affine_lps @ (i, j, k, 1))[:3] - truth)))
    return worst


# --- right series


def test_an_oblique_lopsided_series_comes_back_voxel_for_voxel_in_its_place(tmp_path: Path) -> None:
    paths = write_mr_series(tmp_path, lopsided_array(), oblique_affine())
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, lopsided_array())
    np.testing.assert_allclose(volume.affine_lps, oblique_affine(), atol=1e-8)
    assert volume.array.dtype == np.float32
    assert volume.provenance.files == tuple(paths)
    assert volume.provenance.sop_instance_uids == tuple(dcmread(path).SOPInstanceUID for path in paths)
    assert volume.provenance.notes == ()
    assert (volume.planar, volume.provenance.kind, volume.provenance.modality) == (False, "dicom", "MR")


def test_simpleitk_sees_the_same_voxels_in_the_same_place(tmp_path: Path) -> None:
    volume = read_series(write_mr_series(tmp_path, lopsided_array(), oblique_affine()))
    array, affine_lps = stacked_by_simpleitk(*volume.provenance.files)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine_lps, affine_lps, atol=1e-6)


def test_slices_run_along_the_normal_even_where_they_were_written_against_it(tmp_path: Path) -> None:
    against = oblique_affine() @ np.diag([1, 1, -1, 1])
    write_mr_series(tmp_path, lopsided_array(), against)
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, lopsided_array()[:, :, ::-1])
    assert np.linalg.det(volume.affine_lps[:3, :3]) > 0
    np.testing.assert_allclose((volume.affine_lps @ (0, 0, 0, 1))[:3], (against @ (0, 0, 6, 1))[:3], atol=1e-8)


def test_an_enhanced_object_reads_like_the_classic_series_with_its_frame_numbers(tmp_path: Path) -> None:
    slopes = [0.5, 1.25, 2.0, 0.1, 3.0, 1.0, 7.5]
    volume = read_series(write_enhanced_mr(tmp_path / "e.dcm", lopsided_array(), oblique_affine(), slopes=slopes))
    np.testing.assert_allclose(volume.array, lopsided_array() * np.array(slopes), rtol=1e-6)
    np.testing.assert_allclose(volume.affine_lps, oblique_affine(), atol=1e-8)
    assert volume.provenance.frame_numbers == (7, 6, 5, 4, 3, 2, 1)
    assert len(set(volume.provenance.sop_instance_uids)) == 1


def test_a_slope_and_intercept_of_each_slice_apply_to_that_slice_in_float(tmp_path: Path) -> None:
    slopes, intercepts = [0.37, 1.1, 0.002, 5.5, 1.0, 0.25, 2.2], [-3.5, 0, 7, 100, -1024, 0.5, 1]
    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), slopes=slopes, intercepts=intercepts)
    expected = (lopsided_array().astype(np.float64) * slopes + intercepts).astype(np.float32)
    np.testing.assert_array_equal(read_series(tmp_path).array, expected)


def test_signed_pixels_keep_their_sign_and_unsigned_ones_their_upper_half(tmp_path: Path) -> None:
    signed = (lopsided_array() - 300).astype(np.int16)
    unsigned = (lopsided_array().astype(np.int32) + 60000).astype(np.uint16)
    write_mr_series(tmp_path / "signed", signed, oblique_affine())
    write_mr_series(tmp_path / "unsigned", unsigned, oblique_affine())
    np.testing.assert_array_equal(read_series(tmp_path / "signed").array, signed)
    np.testing.assert_array_equal(read_series(tmp_path / "unsigned").array, unsigned)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_losslessly_compressed_pixels_come_back_exactly(tmp_path: Path, syntax: str) -> None:
    for path in write_mr_series(tmp_path, lopsided_array().astype(np.uint16), oblique_affine()):
        dataset = dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_array_equal(read_series(tmp_path).array, lopsided_array())


def test_a_slice_of_12_bits_in_16_is_decoded_in_one_array_beside_the_result(tmp_path: Path) -> None:
    def of_12_bits(dataset: Dataset, _: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11

    stored = np.arange(1024 * 1024, dtype=np.uint16).reshape(1024, 1024, 1)  # the upper four bits hold something, too
    (path,) = write_mr_series(tmp_path / "one", stored, oblique_affine(), edit=of_12_bits)
    series = find_series(path.parent)
    tracemalloc.start()
    try:
        volume = read_series(series)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(volume.array, stored & 0xFFF)
    assert peak < volume.array.nbytes + 1.5 * stored.nbytes


def test_monochrome1_is_inverted_and_noted_but_hounsfield_units_are_not(tmp_path: Path) -> None:
    stored, white_is_low = lopsided_array().astype(np.uint16), {"PhotometricInterpretation": "MONOCHROME1"}

    def edit(dataset: Dataset, k: int) -> None:
        dataset.PhotometricInterpretation, dataset.BitsStored, dataset.HighBit = "MONOCHROME1", 12, 11

    write_mr_series(tmp_path / "mr", stored, oblique_affine(), edit=edit)
    write_mr_series(tmp_path / "ct", stored, oblique_affine(), header=CT_IMAGE | white_is_low, edit=edit)
    write_mr_series(tmp_path / "signed", stored.astype(np.int16), oblique_affine(), edit=edit)
    mr, ct = read_series(tmp_path / "mr"), read_series(tmp_path / "ct")
    np.testing.assert_array_equal(mr.array, 4095 - stored.astype(int))
    # of 12 signed bits the lowest value is -2048, the highest 2047
    np.testing.assert_array_equal(read_series(tmp_path / "signed").array, -1 - stored.astype(int))
    np.testing.assert_array_equal(ct.array, stored)
    assert "MONOCHROME1 was inverted" in mr.provenance.notes[0]
    assert "MONOCHROME1 was not inverted" in ct.provenance.notes[0]


def test_an_even_gantry_tilt_is_read_as_an_exact_sheared_affine_and_noted(tmp_path: Path) -> None:
    write_mr_series(tmp_path, lopsided_array(), tilted_affine(18.5), header=CT_IMAGE)
    volume = read_series(tmp_path)
    np.testing.assert_allclose(volume.affine_lps, tilted_affine(18.5), atol=1e-7)
    np.testing.assert_array_equal(volume.array, lopsided_array())
    assert worst_of_five_points_mm(volume) < 1e-6
    assert "sheared by 18.50 degrees" in volume.provenance.notes[0]


def test_a_single_slice_in_patient_space_has_one_slice_and_its_thickness(tmp_path: Path) -> None:
    path = write_mr_series(tmp_path, lopsided_array((11, 9, 1)), oblique_affine())[0]
    volume = read_series(path)
    np.testing.assert_allclose(volume.affine_lps, oblique_affine(), atol=1e-5)
    assert (volume.shape, volume.planar, volume.has_patient_space) == ((11, 9, 1), False, True)


def test_pictures_without_patient_space_are_planar_with_a_pixel_affine(tmp_path: Path) -> None:
    grey = lopsided_array((11, 9, 1))[:, :, 0]
    colour = np.stack([grey // 4, grey // 8, grey // 16], axis=2).astype(np.uint8)
    flat = read_series(write_picture(tmp_path / "grey.dcm", grey))
    np.testing.assert_array_equal(flat.array, grey[:, :, None])
    assert (flat.planar, flat.has_patient_space) == (True, False)
    np.testing.assert_array_equal(flat.affine_lps, np.eye(4))
    rgb = read_series(write_picture(tmp_path / "rgb.dcm", colour))
    np.testing.assert_array_equal(rgb.array, colour[:, :, None, :])


@pytest.mark.parametrize(
    ("header", "pixel_mm", "note"),
    [
        ({}, None, None),
        ({"PixelSpacing": [0.2, 0.15]}, (0.15, 0.2), "its pixels are 0.15 x 0.2 mm"),
        (
            {"PixelSpacing": [0.2, 0.15], "ImagerPixelSpacing": [0.2, 0.15]},
            (0.15, 0.2),
            "its pixels are 0.15 x 0.2 mm at the detector, smaller in the patient",
        ),
        ({"ImagerPixelSpacing": [0.2, 0.15]}, None, None),
        ({"PixelSpacing": [0, 0]}, None, None),
    ],
)
def test_a_picture_says_how_large_its_pixels_are_where_its_header_does(
    tmp_path: Path, header: dict[str, object], pixel_mm: tuple[float, float] | None, note: str | None
) -> None:
    picture = read_series(write_picture(tmp_path / "grey.dcm", lopsided_array((11, 9, 1))[:, :, 0], header))
    assert picture.provenance.pixel_mm == pixel_mm
    assert [told for told in picture.provenance.notes if "mm" in told and "millimetres" not in told] == (
        [note] if note else []
    )
    np.testing.assert_array_equal(picture.affine_lps, np.eye(4))


# --- choosing


def test_two_series_in_a_folder_are_listed_and_the_named_one_is_read(tmp_path: Path) -> None:
    uids = [generate_uid(), generate_uid()]
    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), header={"SeriesInstanceUID": uids[0]})
    write_mr_series(
        tmp_path, lopsided_array((5, 6, 4)), SAGITTAL, header={"SeriesInstanceUID": uids[1]}, prefix="other"
    )
    with pytest.raises(SeriesSelectionError, match="--series UID") as refusal:
        read_series(tmp_path)
    assert all(part in str(refusal.value) for part in (*uids, "MR", "7 files", "4 files"))
    assert read_series(tmp_path, series_instance_uid=uids[1]).shape == (5, 6, 4)
    with pytest.raises(SeriesSelectionError, match=r"found no series 1\.2\.3 among"):
        read_series(tmp_path, series_instance_uid="1.2.3")


@pytest.mark.parametrize("image_type", ["LOCALIZER", "OTHER"])
def test_a_localizer_inside_the_series_is_left_out_with_a_note(tmp_path: Path, image_type: str) -> None:
    header = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": "1.2",
    }
    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), header=header)
    scout = header | {"ImageType": ["ORIGINAL", "PRIMARY", image_type]}
    write_mr_series(tmp_path, lopsided_array((11, 9, 1)), SAGITTAL, header=scout, prefix="aaa")
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, lopsided_array())
    assert "ignored, not part of the volume" in volume.provenance.notes[0]
    assert "localizer" in volume.provenance.notes[0]


def test_a_capture_is_read_only_when_it_is_asked_for(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "capture.dcm", lopsided_array((11, 9, 1))[:, :, 0])
    with pytest.raises(SeriesSelectionError, match="secondary capture, 1 file"):
        read_series(tmp_path)
    assert read_series(path).planar
    assert read_series(tmp_path, series_instance_uid=str(dcmread(path).SeriesInstanceUID)).planar


def test_a_result_object_is_no_image(tmp_path: Path) -> None:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = (
        "1.2.840.10008.5.1.4.1.1.66.4",
        "1.2",
        "SEG",
    )
    dataset.SeriesInstanceUID = "1.2.3"
    with pytest.raises(SeriesSelectionError, match=r"1\.2\.3 \(SEG, seg, 1 file\)"):
        read_series(save(dataset, tmp_path / "seg.dcm"))


# --- refusals


def test_two_time_points_are_refused_and_named(tmp_path: Path) -> None:
    header = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": "1.2",
    }
    for time in (1, 2):
        point = header | {"TemporalPositionIdentifier": time}
        write_mr_series(tmp_path, lopsided_array(), oblique_affine(), header=point, prefix=f"time{time}")
    with pytest.raises(SeriesGeometryError, match="2 slices at the same position, at 7 positions") as refusal:
        read_series(tmp_path)
    assert "differ in TemporalPositionIdentifier (1 / 2)" in str(refusal.value)
    assert "choose with --time-point 1 to 2" in str(refusal.value)


def test_two_echoes_in_an_enhanced_object_are_refused(tmp_path: Path) -> None:
    def double(dataset: Dataset, _: int) -> None:
        frames = dataset.PerFrameFunctionalGroupsSequence
        frames.extend(list(frames))
        dataset.NumberOfFrames, dataset.PixelData = 2 * dataset.NumberOfFrames, dataset.PixelData * 2

    path = write_enhanced_mr(tmp_path / "e.dcm", lopsided_array(), oblique_affine(), edit=double)
    with pytest.raises(SeriesGeometryError, match="up to 2 slices at the same position, at 7 of 7 positions"):
        read_series(path)


def test_one_instance_with_two_contents_is_refused_with_both_files(tmp_path: Path) -> None:
    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine())[2]
    other = dcmread(path)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(tmp_path / "copy.dcm")
    with pytest.raises(SeriesGeometryError, match=rf"twice with different content, in .*copy\.dcm and .*{path.name}"):
        read_series(tmp_path)


@pytest.mark.parametrize("keyword", ["WindowCenter", "SeriesDescription", "ProtocolName"])
def test_a_copy_with_another_word_that_no_volume_needs_is_left_out_and_told(tmp_path: Path, keyword: str) -> None:
    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine())[2]
    other = dcmread(path)
    setattr(other, keyword, "120000")
    other.save_as(tmp_path / "copy.dcm")
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, lopsided_array())
    assert f"left out as copies of another except for {keyword}: 1 file" in volume.provenance.notes


@pytest.mark.parametrize(
    "keyword", ["AccessionNumber", "PatientSex", "RescaleSlope", "ImagePositionPatient", "SliceThickness"]
)
def test_a_copy_with_another_word_that_matters_is_refused(tmp_path: Path, keyword: str) -> None:
    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine())[2]
    other = dcmread(path)
    setattr(other, keyword, {"ImagePositionPatient": [1, 2, 3], "PatientSex": "M"}.get(keyword, "7"))
    other.save_as(tmp_path / "copy.dcm")
    with pytest.raises(SeriesGeometryError, match="twice with different content"):
        read_series(tmp_path)


def coloured(path: Path, **header: object) -> None:
    """Makes the picture of a file an RGB one."""
    dataset = dcmread(path)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = bytes(3 * dataset.Rows * dataset.Columns)
    dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


@pytest.mark.parametrize("placed", [True, False])
def test_a_colour_picture_in_a_grey_series_is_set_aside_and_told(tmp_path: Path, placed: bool) -> None:
    paths = write_mr_series(tmp_path, lopsided_array(), oblique_affine())
    extra = tmp_path / "extra.dcm"
    shutil.copy(paths[0], extra)
    elsewhere = {"ImagePositionPatient": [500, 500, 500]} if placed else dict.fromkeys(PLACE_KEYWORDS, None)
    coloured(extra, SOPInstanceUID=generate_uid(), **elsewhere)
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, lopsided_array())
    assert any("(MR, colour slices beside grey slices, 1 file)" in note for note in volume.provenance.notes)


def test_a_colour_picture_stands_for_no_slice_that_is_missing(tmp_path: Path) -> None:
    counted = {"ImagesInAcquisition": 7, "AcquisitionNumber": 1}
    paths = write_mr_series(tmp_path, lopsided_array(), oblique_affine(), header=counted)
    along = sorted(paths, key=lambda path: float(np.dot(dcmread(path).ImagePositionPatient, oblique_affine()[:3, 2])))
    coloured(along[-1], SOPInstanceUID=generate_uid(), **dict.fromkeys(PLACE_KEYWORDS, None))
    with pytest.raises(SeriesGeometryError, match="it holds 6 images, and its headers count 7"):
        read_series(tmp_path)


@pytest.mark.parametrize(("k", "says"), [(3, "missing"), (6, "goes on in")])
def test_a_slice_of_the_stack_itself_in_colour_is_no_stray(tmp_path: Path, k: int, says: str) -> None:
    paths = write_mr_series(tmp_path, lopsided_array(), oblique_affine())
    by_place = {tuple(dcmread(path).ImagePositionPatient): path for path in paths}
    place = oblique_affine() @ [0, 0, k, 1]
    coloured(next(path for at, path in by_place.items() if np.allclose(at, place[:3], atol=0.01)))
    with pytest.raises(SeriesGeometryError, match=says):
        read_series(tmp_path)


@pytest.mark.parametrize("name", ["VERSION", "LOCKFILE", "Version"])
def test_empty_files_of_media_are_no_lost_slices(tmp_path: Path, name: str) -> None:
    write_mr_series(tmp_path, lopsided_array(), oblique_affine())
    (tmp_path / name).touch()
    np.testing.assert_array_equal(read_series(tmp_path).array, lopsided_array())


def test_a_copy_of_a_file_is_left_out_with_a_note(tmp_path: Path) -> None:
    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine())[2]
    shutil.copy(path, tmp_path / "copy.dcm")
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, lopsided_array())
    assert any("left out as byte-identical copies of another: 1 file" in note for note in volume.provenance.notes)


def test_a_missing_slice_and_an_uneven_gap_are_refused_with_their_numbers(tmp_path: Path) -> None:
    write_mr_series(tmp_path / "missing", lopsided_array(), oblique_affine(), drop=(3,))
    with pytest.raises(
        SeriesGeometryError,
        match=r"lacks 1 of 7 slices.* between slices \d and \d \(5\.00 mm, .* usual gap is 2\.50 mm",
    ):
        read_series(tmp_path / "missing")
    up = oblique_affine()[:3, 2] / 2.5
    write_mr_series(tmp_path / "uneven", lopsided_array(), oblique_affine(), shift_mm={6: 1.3 * up})
    with pytest.raises(SeriesGeometryError, match=r"gaps from 2\.50 to 3\.80 mm"):
        read_series(tmp_path / "uneven")


def test_two_orientations_of_one_series_are_refused(tmp_path: Path) -> None:
    header = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), header=header)
    write_mr_series(tmp_path, lopsided_array(), SAGITTAL, header=header, prefix="other")
    with pytest.raises(SeriesGeometryError, match=r"mixes 2 orientations or kinds: 7 files \(MR\) of orientation"):
        read_series(tmp_path)


def test_two_frames_of_reference_are_refused(tmp_path: Path) -> None:
    def other_space(dataset: Dataset, k: int) -> None:
        dataset.FrameOfReferenceUID = "1.2.3" if k else "1.2.4"

    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), edit=other_space)
    with pytest.raises(SeriesGeometryError, match=r"2 frames of reference \(1\.2\.3, 1\.2\.4\)"):
        read_series(tmp_path)


def test_a_slice_without_position_is_refused_by_name(tmp_path: Path) -> None:
    def lose(dataset: Dataset, k: int) -> None:
        if k == 4:
            del dataset.ImagePositionPatient

    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine(), edit=lose)[4]
    with pytest.raises(SeriesGeometryError, match=rf"1 of 7 slices name no position.*{path.name}"):
        read_series(tmp_path)


def test_a_mosaic_a_cine_and_colour_slices_are_no_volume(tmp_path: Path) -> None:
    mosaic = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}
    path = write_mr_series(tmp_path, lopsided_array((8, 8, 1)), oblique_affine(), header=mosaic)[0]
    with pytest.raises(SeriesSelectionError, match="is a mosaic"):
        read_series(path)
    stack = lopsided_array()
    cine = write_picture(
        tmp_path / "cine.dcm", stack[:, :, 0], {"NumberOfFrames": 3, "PixelData": stack[:, :, :3].tobytes()}
    )
    with pytest.raises(SeriesSelectionError, match="3 frames or pictures without a position"):
        read_series(cine)
    place = {
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
    }
    colour = write_picture(tmp_path / "colour.dcm", np.zeros((4, 5, 3), np.uint8), place)
    with pytest.raises(SeriesSelectionError, match=r"1 colour pictures \(RGB, 3 samples a pixel\)"):
        read_series(colour)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_refused_by_file(tmp_path: Path, bad: float) -> None:
    def as_float(dataset: Dataset, k: int) -> None:
        values = lopsided_array()[:, :, k].T.astype(np.float32)
        if k == 2:
            values[1, 3] = bad
        del dataset.PixelData
        dataset.FloatPixelData, dataset.BitsAllocated = values.tobytes(), 32
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, keyword)

    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine(), edit=as_float)[2]
    with pytest.raises(UnreadableFileError, match=rf"{path.name} holds 1 NaN or infinite voxels of 99"):
        read_series(tmp_path)
    path.unlink()
    np.testing.assert_array_equal(read_series(sorted(tmp_path.iterdir())[:4]).array, lopsided_array()[:, :, 3:])


@pytest.mark.parametrize(
    ("keyword", "value", "told"),
    [
        ("PixelSpacing", [1, 1, 1], "3 values"),
        ("ImagePositionPatient", [1, 2], "2 values"),
        ("ImageOrientationPatient", 1, "one value"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 1], "5 values"),
    ],
)
def test_an_attribute_with_the_wrong_number_of_values_is_refused(
    tmp_path: Path, keyword: str, value: object, told: str
) -> None:
    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), edit=lambda ds, _: setattr(ds, keyword, value))
    says = rf"slice_0001\.dcm holds {told} in its {keyword}; [236] are needed; export it again from its source"
    with pytest.raises(UnreadableFileError, match=says):
        read_series(tmp_path)


def test_no_refusal_names_the_patient(tmp_path: Path) -> None:
    faults = {
        "missing": {"drop": (3,)},
        "mosaic": {"header": {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}},
        "slope": {"slopes": [float("1e300")] * 7},
    }
    for name, fault in faults.items():
        write_mr_series(tmp_path / name, lopsided_array(), oblique_affine(), **fault)
        with pytest.raises(DicomIoError) as refusal:
            read_series(tmp_path / name)
        assert not any(word in str(refusal.value) for word in ("Lopsided", "PHANTOM-1", "19700101"))


def test_an_absent_file_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"absent\.dcm is not a file"):
        read_series(tmp_path / "absent.dcm")
    with pytest.raises(SeriesSelectionError, match="list of files is empty"):
        read_series([])


# --- real series

SMALL = "dicom_series/dicom2nifti_small"
REAL = {
    "dicom_series/ct_philips_gantry_tilt": (512, 512, 54),
    "dicom_series/ct_philips_head_mixed": (512, 512, 28),
    "dicom_series/ct_small_torchio": (88, 128, 17),
    "dicom_series/mr_ge_coronal_dcm4che": (256, 256, 16),
    "dicom_series/mr_ge_oblique_t1post/Study1/12-T1post-05670": (512, 512, 22),
    "dicom_series/mr_ge_oblique_t1post/Study1/13_HCropVolume": (35, 51, 32),
    f"{SMALL}/generic/compressed_j2k": (256, 256, 4),
    f"{SMALL}/generic/compressed_jpeg": (256, 256, 4),
    f"{SMALL}/generic/compressed_jpegls": (256, 256, 4),
    f"{SMALL}/generic/compressed_rle": (256, 256, 4),
    f"{SMALL}/philips": (240, 240, 4),
    f"{SMALL}/philips_enhanced/anatomical/001": (256, 256, 8),
    f"{SMALL}/philips_enhanced/anatomical/001_implicit": (256, 256, 8),
    "totalsegmentator_ct/example_ct_dicom": (512, 512, 20),
}


@pytest.mark.parametrize("folder", [folder for folder in REAL if "enhanced" not in folder])
def test_a_real_series_lies_where_its_headers_put_it_and_holds_what_simpleitk_decodes(
    shared_data: Path, folder: str
) -> None:
    volume = read_series(shared_data / folder)
    last = volume.shape[2] - 1
    assert volume.shape == REAL[folder]
    assert worst_of_five_points_mm(volume) < 0.01
    origins = []
    for k in (0, last // 2, last):
        array, affine_lps = stacked_by_simpleitk(volume.provenance.files[k])
        np.testing.assert_array_equal(volume.array[:, :, k], array[:, :, 0])
        np.testing.assert_allclose(volume.affine_lps[:3, :2], affine_lps[:3, :2], atol=1e-5)
        origins.append(affine_lps[:3, 3])
    np.testing.assert_allclose(volume.affine_lps[:3, 3], origins[0], atol=1e-5)
    np.testing.assert_allclose(volume.affine_lps[:3, 2], (origins[-1] - origins[0]) / last, atol=1e-5)


@pytest.mark.parametrize("folder", [folder for folder in REAL if "enhanced" in folder])
def test_a_real_enhanced_object_lies_where_its_functional_groups_put_it(shared_data: Path, folder: str) -> None:
    volume = read_series(shared_data / folder)
    header = dcmread(volume.provenance.files[0])
    assert volume.shape == REAL[folder]
    assert worst_of_five_points_mm(volume) < 0.01
    for k, number in enumerate(volume.provenance.frame_numbers):
        rescale = header.PerFrameFunctionalGroupsSequence[number - 1].PixelValueTransformationSequence[0]
        expected = header.pixel_array[number - 1].T * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
        np.testing.assert_allclose(volume.array[:, :, k], expected, rtol=1e-6)


def test_one_picture_in_four_compressions_has_the_same_voxels(shared_data: Path) -> None:
    generic = shared_data / SMALL / "generic"
    first, *others = (read_series(generic / f"compressed_{name}") for name in ("j2k", "jpeg", "jpegls", "rle"))
    assert first.array.max() == 254
    assert all(np.array_equal(first.array, other.array) for other in others)


def test_the_real_tilt_is_read_sheared_by_its_header_angle(shared_data: Path) -> None:
    volume = read_series(shared_data / "dicom_series/ct_philips_gantry_tilt")
    header = dcmread(volume.provenance.files[0], stop_before_pixels=True)
    assert float(header.GantryDetectorTilt) == -18.5
    assert any("sheared by 18.50 degrees" in note for note in volume.provenance.notes)
    assert volume.voxel_ml == pytest.approx(0.482421875**2 * 2.5 * np.cos(np.radians(18.5)) / 1000, rel=1e-4)


def test_the_real_head_ct_names_what_it_left_out(shared_data: Path) -> None:
    notes = read_series(shared_data / "dicom_series/ct_philips_head_mixed").provenance.notes
    left_out = [note for note in notes if note.startswith("ignored, not part of the volume")]
    assert [note.split("(")[1] for note in left_out] == [
        "CT, localizer, 1 file)",
        "CT, localizer, 3 files)",
        "CT, secondary capture, 3 files)",
    ]


def test_real_colour_slices_and_a_gapped_ct_are_refused(shared_data: Path) -> None:
    with pytest.raises(SeriesSelectionError, match=r"4 colour pictures \(RGB"):
        read_series(sorted((shared_data / SMALL / "generic/rgb/001").iterdir()))
    with pytest.raises(SeriesGeometryError, match="lacks 161 of 165 slices"):
        read_series(shared_data / "dicom_objects/highdicom_sources/77654033/CT2")


def test_every_hostile_file_is_read_whole_or_refused_in_one_line(shared_data: Path) -> None:
    readable, refusals = set(), []
    for path in sorted((shared_data / "hostile").rglob("*.dcm")):
        try:
            volume = read_series(path)
        except DicomIoError as refusal:
            refusals.append(str(refusal))
        else:
            assert np.isfinite(volume.array).all()
            readable.add(path.name)
    assert {
        "CT_small.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_padded.dcm",
    } <= readable
    assert not {"MR_truncated.dcm", "csa_slice_norm.dcm", "rtdose.dcm", "TC0327_mono2_spp3.dcm"} & readable
    assert all("\n" not in text and text.count(";") >= 2 for text in refusals)


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName"])
def test_a_series_of_two_patients_is_refused_without_naming_them(keyword: str, tmp_path: Path) -> None:
    def other(dataset: Dataset, k: int) -> None:
        if k > 2:
            setattr(dataset, keyword, "Qponmlk")

    write_mr_series(tmp_path / "s", lopsided_array(), oblique_affine(), header={keyword: "Zyxwvut"}, edit=other)
    with pytest.raises(SeriesSelectionError, match=f"2 different {keyword}; one patient is needed") as refused:
        read_series(tmp_path / "s")
    assert "Zyxwvut" not in str(refused.value)
    assert "Qponmlk" not in str(refused.value)

"""A SEG in each of its encodings, on each kind of source: the same voxels at the same places, by other readers too."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, lopsided_labels, oblique_affine, tilted_affine, write_mr_series, write_picture
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid
from result_phantoms import RESULT, dciodvfy_errors, labels_by_dcmqi

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.labels import Fractions
from dicom_io.objects.source_images import labelled
from dicom_io.read import read_series
from dicom_io.rtstruct import read_rtstruct, write_rtstruct
from dicom_io.seg import prove_seg, read_seg, read_segments, segment_numbers, write_seg
from dicom_io.seg.dataset import build_seg, check_length
from dicom_io.volume import Volume

LABEL_ENCODINGS = ("binary", "binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Volume:
    folder = tmp_path_factory.mktemp("source")
    write_mr_series(folder, lopsided_array((13, 9, 7)), oblique_affine())
    return read_series(folder)


@pytest.fixture(scope="module")
def labels(source: Volume) -> Volume:
    return source.with_array(lopsided_labels((13, 9, 7)))


def by_highdicom(path: Path, reference: Volume) -> np.ndarray:
    """Labels (I, J, K) as highdicom reads them, slice by slice through the source's SOP Instance UIDs."""
    seg = hd.seg.segread(path)
    planes = seg.get_pixels_by_source_instance(
        list(reference.provenance.sop_instance_uids),
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    return planes.transpose(2, 1, 0)


def inflated(path: Path, plain: Path) -> Path:
    """A deflated file as an explicit one, for dciodvfy, which inflates none."""
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(plain)
    return plain


@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
def test_every_encoding_holds_the_labels_for_highdicom_for_dcmqi_and_for_us(source, labels, tmp_path, encoding):
    path = write_seg(labels, source, tmp_path / "seg.dcm", RESULT, encoding=encoding)
    assert dciodvfy_errors(inflated(path, tmp_path / "plain.dcm") if encoding == "binary-deflated" else path) == []
    np.testing.assert_array_equal(read_seg(path, source).array, labels.array)
    np.testing.assert_array_equal(by_highdicom(path, source), labels.array)
    if encoding.startswith("binary"):
        np.testing.assert_array_equal(labels_by_dcmqi(path, source, tmp_path / "dcmqi"), labels.array)


@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
def test_the_same_labels_give_the_same_bytes_and_other_labels_another_uid(source, labels, tmp_path, encoding):
    first = write_seg(labels, source, tmp_path / "1.dcm", RESULT, encoding=encoding)
    second = write_seg(labels, source, tmp_path / "2.dcm", RESULT, encoding=encoding)
    assert first.read_bytes() == second.read_bytes()
    changed = labels.array.copy()
    changed[0, 0, 0] = 2
    third = write_seg(source.with_array(changed), source, tmp_path / "3.dcm", RESULT, encoding=encoding)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (first, third)]
    assert uids[0] != uids[1]


def test_each_encoding_is_an_instance_of_its_own_in_one_series(source, labels, tmp_path):
    found = [
        pydicom.dcmread(write_seg(labels, source, tmp_path / f"{encoding}.dcm", RESULT, encoding=encoding))
        for encoding in LABEL_ENCODINGS
    ]
    assert len({dataset.SOPInstanceUID for dataset in found}) == len(LABEL_ENCODINGS)
    assert len({dataset.SeriesInstanceUID for dataset in found}) == 1


def test_probabilities_come_back_within_half_a_step(source, tmp_path):
    i, j, k = np.indices(source.shape)
    first = ((i + 2 * j + 3 * k) % 11 / 10).astype(np.float32)
    second = np.where((i > 4) & (k < 5), 0.0737 * j, 0).astype(np.float32)
    probabilities = source.with_array(np.stack([first, second], axis=-1))
    path = write_seg(probabilities, source, tmp_path / "seg.dcm", RESULT, encoding="fractional")
    assert dciodvfy_errors(path) == []
    assert pydicom.dcmread(path).SegmentsOverlap == "YES"
    seg = hd.seg.segread(path)
    uids = list(source.provenance.sop_instance_uids)
    found = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, rescale_fractional=True)
    assert np.abs(found.transpose(2, 1, 0, 3) - probabilities.array).max() <= 0.5 / 255 + 1e-6


def parts(count: int) -> ResultInfo:
    """A result of so many structures."""
    segments = [replace(RESULT.segments[0], number=n, label=f"Part {n}") for n in range(1, count + 1)]
    return replace(RESULT, segments=tuple(segments))


def test_probabilities_are_taken_one_segment_at_a_time(tmp_path) -> None:
    write_mr_series(tmp_path / "source", lopsided_array((160, 120, 12)), oblique_affine())
    source, result = read_series(tmp_path / "source"), parts(12)

    def channel(n: int) -> Volume:
        values = np.random.default_rng(n).random(source.shape, np.float32)
        values[..., n % 7 :] = 0  # frames that are left out
        return source.with_array(values)

    write_seg(Fractions(12, channel), source, tmp_path / "first.dcm", result, encoding="fractional")  # imports are over
    tracemalloc.start()
    written = write_seg(Fractions(12, channel), source, tmp_path / "seg.dcm", result, encoding="fractional")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 4 * source.array.size / 2  # half of all probabilities; the file that is read back is a quarter
    whole = source.with_array(np.stack([channel(n).array for n in range(12)], axis=-1))
    together = write_seg(whole, source, tmp_path / "whole.dcm", result, encoding="fractional")
    first, second = (pydicom.dcmread(path) for path in (written, together))
    assert first.SOPInstanceUID == second.SOPInstanceUID
    assert first.PixelData == second.PixelData
    assert first.NumberOfFrames == sum(n % 7 for n in range(12))
    beyond = Fractions(12, lambda n: source.with_array(channel(n).array * (1 + n / 9)))
    with pytest.raises(LabelError, match="probabilities of 0 to 1 are needed"):
        write_seg(beyond, source, tmp_path / "beyond.dcm", result, encoding="fractional")
    with pytest.raises(GeometryProofError, match="differ"):
        prove_seg(written, Fractions(12, lambda n: channel(n ^ 1)), source)


def test_more_frames_than_an_object_holds_are_refused_with_the_figure() -> None:
    check_length(0xFFFFFFFE, compressed=False)
    check_length(8_200_000_000, compressed=True)
    with pytest.raises(LabelError, match=r"8\.2 GB; less than 4\.3 GB"):
        check_length(8_200_000_000, compressed=False)


@pytest.mark.parametrize("encoding", ["binary", "binary-deflated"])
def test_the_frames_of_many_segments_are_not_held_while_they_are_written(tmp_path, encoding) -> None:
    noise = np.random.default_rng(4).integers(0, 41, (200, 160, 10)).astype(np.uint8)
    write_mr_series(tmp_path / "series", noise.astype(np.float32), oblique_affine())
    source = read_series(tmp_path / "series")
    segmentation, images = labelled(source.with_array(noise), source, parts(40), of_each=False)
    built = build_seg(segmentation, images, parts(40), encoding)
    tracemalloc.start()
    try:
        built.save(tmp_path / "seg.dcm")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    frames = 40 * 10 * 200 * 160 // 8  # every structure is on every slice
    assert (tmp_path / "seg.dcm").stat().st_size > (frames if encoding == "binary" else 0.1 * frames)
    assert peak < 0.5 * frames


@pytest.mark.parametrize("encoding", [*LABEL_ENCODINGS, "fractional"])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_seg_of_any_number_of_structures_is_valid_for_dciodvfy_and_the_same_for_dcmqi(
    source, tmp_path, encoding, count
):
    array = np.zeros(source.shape, np.uint8)
    for n in range(1, count + 1):
        array[n % 13, (2 * n) % 7 : (2 * n) % 7 + 2, n % 5 : n % 5 + 3] = n
    labels, result = source.with_array(array), parts(count)
    if encoding == "fractional":
        chances = [np.where(array == n, 0.6, 0.0) for n in range(1, count + 1)]
        values = source.with_array(np.stack(chances, axis=-1).astype(np.float32))
    else:
        values = labels
    path = write_seg(values, source, tmp_path / "seg.dcm", result, encoding=encoding)
    plain = inflated(path, tmp_path / "plain.dcm") if encoding == "binary-deflated" else path
    assert dciodvfy_errors(plain) == []
    if encoding == "fractional":
        uids = list(source.provenance.sop_instance_uids)
        found = hd.seg.segread(path).get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
        np.testing.assert_allclose(found.transpose(2, 1, 0, 3), values.array, atol=0.5 / 255 + 1e-6)
        return
    np.testing.assert_array_equal(by_highdicom(path, source), array)
    np.testing.assert_array_equal(read_seg(path, source).array, array)
    if encoding.startswith("binary"):  # dcmqi knows no label maps
        np.testing.assert_array_equal(labels_by_dcmqi(path, source, tmp_path / "dcmqi"), array)


@pytest.mark.parametrize("encoding", [*LABEL_ENCODINGS, "fractional"])
def test_a_seg_of_one_structure_on_one_slice_or_a_picture_is_valid(source, tmp_path, encoding):
    one = read_series(source.provenance.files[2])
    picture = read_series(write_picture(tmp_path / "picture.dcm", np.arange(63, dtype=np.uint8).reshape(9, 7)))
    for image in (one, picture):
        array = np.zeros(image.shape, np.uint8)
        array[2:4, 3, 0] = 1
        values = array[..., None].astype(np.float32) if encoding == "fractional" else array
        path = write_seg(image.with_array(values), image, tmp_path / "seg.dcm", parts(1), encoding=encoding)
        plain = inflated(path, tmp_path / "plain.dcm") if encoding == "binary-deflated" else path
        assert dciodvfy_errors(plain) == []


def test_a_one_structure_seg_by_highdicom_which_shares_the_segment_is_read(source, labels, tmp_path):
    ours = hd.seg.segread(write_seg(labels, source, tmp_path / "ours.dcm", RESULT))
    seg = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(path) for path in source.provenance.files],
        pixel_array=(labels.array == 1).astype(np.uint8).transpose(2, 1, 0),
        segmentation_type="BINARY",
        segment_descriptions=[ours.get_segment_description(1)],
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
    )
    assert "SegmentIdentificationSequence" in seg.SharedFunctionalGroupsSequence[0]
    seg.save_as(tmp_path / "theirs.dcm")
    np.testing.assert_array_equal(read_seg(tmp_path / "theirs.dcm", source).array, labels.array == 1)


def test_what_an_encoding_cannot_hold_is_refused(source, labels, tmp_path):
    with pytest.raises(LabelError, match=r"probabilities of 0 to 1 are needed, one channel a segment"):
        write_seg(labels, source, tmp_path / "seg.dcm", RESULT, encoding="fractional")
    too_much = source.with_array(np.full((*source.shape, 2), 1.5, np.float32))
    with pytest.raises(LabelError, match=r"range 0 to 1\.5"):
        write_seg(too_much, source, tmp_path / "seg.dcm", RESULT, encoding="fractional")
    overlapping = source.with_array(np.ones((*source.shape, 2), np.uint8))
    with pytest.raises(LabelError, match="a label map holds one segment a voxel"):
        write_seg(overlapping, source, tmp_path / "seg.dcm", RESULT, encoding="labelmap")
    assert list(tmp_path.iterdir()) == []


def test_frames_whose_pixels_are_no_whole_bytes_keep_every_voxel(tmp_path):
    write_mr_series(tmp_path / "mr", lopsided_array((7, 5, 6)), oblique_affine())
    source = read_series(tmp_path / "mr")
    array = (np.indices(source.shape).sum(axis=0) % 3).astype(np.uint8)
    path = write_seg(source.with_array(array), source, tmp_path / "seg.dcm", RESULT)
    np.testing.assert_array_equal(read_seg(path, source).array, array)
    np.testing.assert_array_equal(by_highdicom(path, source), array)


# --- sources of other kinds


def test_a_tilted_stack_carries_its_seg_on_its_own_slices(tmp_path):
    write_mr_series(tmp_path / "ct", lopsided_array((13, 9, 7)), tilted_affine())
    source = read_series(tmp_path / "ct")
    array = lopsided_labels((13, 9, 7))
    path = write_seg(source.with_array(array), source, tmp_path / "seg.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(by_highdicom(path, source), array)


def uneven_series(folder: Path) -> None:
    """Seven slices of 12 x 9 pixels, the last three further apart."""
    gaps = [0.0, 2.5, 5.0, 7.5, 10.0, 14.0, 18.0]
    affine_lps = oblique_affine()
    normal = affine_lps[:3, 2] / 2.5
    shift = {k: (depth - 2.5 * k) * normal for k, depth in enumerate(gaps)}
    write_mr_series(folder, lopsided_array((12, 9, 7)), affine_lps, shift_mm=shift)


@pytest.mark.parametrize("encoding", ["binary", "labelmap"])
def test_a_result_on_a_resampled_volume_goes_back_onto_the_slices(tmp_path, encoding):
    uneven_series(tmp_path / "mr")
    source = read_series(tmp_path / "mr", resample_gaps=True)
    assert source.shape == (12, 9, 8)
    index = np.stack([*np.indices(source.shape), np.ones(source.shape)], axis=-1)
    points = (index @ source.affine_lps.T)[..., :3]
    plane_point, direction = points[6, 4, 4], np.array([0.48, -0.6, 0.64])
    inside = (points - plane_point) @ direction > 0
    labels = source.with_array(inside.astype(np.uint8))
    path = write_seg(labels, source, tmp_path / "seg.dcm", RESULT, encoding=encoding)
    assert dciodvfy_errors(path) == []
    seg = hd.seg.segread(path)
    for k, uid in enumerate(source.provenance.sop_instance_uids):
        header = pydicom.dcmread(source.provenance.files[k], stop_before_pixels=True)
        row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, header.PixelSpacing)
        rows, columns = np.indices((9, 12))
        position = np.array(header.ImagePositionPatient, float)
        place = (
            position
            + np.multiply.outer(columns * between_columns, row)
            + np.multiply.outer(rows * between_rows, column)
        )
        distance_mm = (place - plane_point) @ direction
        found = seg.get_pixels_by_source_instance([uid], combine_segments=True, assert_missing_frames_are_empty=True)[0]
        sure = (
            np.abs(distance_mm) > 2.0
        )  # half a slice gap and half a voxel: elsewhere the nearest voxel may lie across
        np.testing.assert_array_equal(found[sure] != 0, distance_mm[sure] > 0)


def test_contours_of_a_resampled_volume_lie_on_the_slices_and_agree_with_the_seg(tmp_path):
    uneven_series(tmp_path / "mr")
    source = read_series(tmp_path / "mr", resample_gaps=True)
    array = np.zeros(source.shape, np.uint8)
    array[3:9, 2:7, 1:7] = 1
    labels = source.with_array(array)
    seg, rtstruct = tmp_path / "seg.dcm", tmp_path / "rt.dcm"
    write_seg(labels, source, seg, RESULT)
    write_rtstruct(labels, source, rtstruct, RESULT)
    assert dciodvfy_errors(rtstruct) == []
    single = read_series(source.provenance.files[5:6])
    one_slice = read_one_slice(rtstruct, single)
    expected = hd.seg.segread(seg).get_pixels_by_source_instance(
        list(single.provenance.sop_instance_uids), combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert expected.any()
    np.testing.assert_array_equal(one_slice, expected[0].T)


def read_one_slice(rtstruct: Path, single: Volume) -> np.ndarray:
    """The contours that name the one slice of a volume, rasterised by the reader."""
    dataset = pydicom.dcmread(rtstruct)
    uid = single.provenance.sop_instance_uids[0]
    for roi in dataset.ROIContourSequence:
        kept = [
            c for c in roi.get("ContourSequence") or [] if c.ContourImageSequence[0].ReferencedSOPInstanceUID == uid
        ]
        roi.ContourSequence = kept
    dataset.save_as(rtstruct)
    return read_rtstruct(rtstruct, single).array[:, :, 0]


def test_a_picture_without_patient_space_carries_a_seg_in_pixels(tmp_path):
    header = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"}
    path = write_picture(tmp_path / "cr.dcm", lopsided_array((13, 9, 1))[:, :, 0], header)
    dataset = pydicom.dcmread(path)
    del dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator
    dataset.save_as(path)
    source = read_series(path)
    array = lopsided_labels((13, 9, 7))[:, :, 1:2]
    seg = write_seg(source.with_array(array), source, tmp_path / "seg.dcm", RESULT)
    written = pydicom.dcmread(seg)
    assert "FrameOfReferenceUID" not in written
    np.testing.assert_array_equal(written.pixel_array.reshape(9, 13).T, array[:, :, 0])
    assert dciodvfy_errors(seg) == []
    shifted = written.pixel_array.reshape(9, 13)
    written.PixelData = np.packbits(np.roll(shifted, 1), bitorder="little").tobytes() + b"\0"
    written.save_as(seg)
    with pytest.raises(GeometryProofError, match="differ"):
        prove_seg(seg, source.with_array(array), source)


def test_a_seg_on_data_sets_in_memory_is_the_one_on_their_files(tmp_path):
    paths = write_mr_series(tmp_path / "mr", lopsided_array((13, 9, 7)), oblique_affine())
    from_files, from_memory = read_series(tmp_path / "mr"), read_series([pydicom.dcmread(path) for path in paths])
    array = lopsided_labels((13, 9, 7))
    first = write_seg(from_files.with_array(array), from_files, tmp_path / "1.dcm", RESULT)
    second = write_seg(from_memory.with_array(array), from_memory, tmp_path / "2.dcm", RESULT)
    assert first.read_bytes() == second.read_bytes()


def test_a_mosaic_is_refused_as_the_source_of_a_dicom_result(source, labels, tmp_path):
    from dataclasses import replace

    one_uid = source.provenance.sop_instance_uids[:1] * source.shape[2]
    mosaic = replace(source, provenance=replace(source.provenance, sop_instance_uids=one_uid))
    with pytest.raises(LabelError, match=r"the source is a mosaic.* write NIfTI"):
        write_seg(labels, mosaic, tmp_path / "seg.dcm", RESULT)


def test_moved_voxels_are_found_in_every_encoding(source, labels, tmp_path):
    for encoding in LABEL_ENCODINGS:
        path = write_seg(labels, source, tmp_path / f"{encoding}.dcm", RESULT, encoding=encoding)
        wrong = source.with_array(np.roll(labels.array, 1, axis=0))
        with pytest.raises(GeometryProofError):
            prove_seg(path, wrong, source)
        assert not path.exists()


def test_a_frame_that_names_no_slice_is_found(source, labels, tmp_path):
    path = write_seg(labels, source, tmp_path / "seg.dcm", RESULT)
    dataset: Dataset = pydicom.dcmread(path)
    image = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    image.ReferencedSOPInstanceUID = "1.2.3.4"
    dataset.save_as(path)
    with pytest.raises(GeometryProofError, match=r"names the instance 1\.2\.3\.4, which is not a slice"):
        prove_seg(path, labels, source)


# --- segments as channels


def test_overlapping_segments_come_back_as_channels(source, tmp_path):
    array = np.zeros((*source.shape, 2), np.uint8)
    array[2:8, 2:7, 1:5, 0] = 1
    array[6:11, 4:9, 3:6, 1] = 1
    path = write_seg(source.with_array(array), source, tmp_path / "seg.dcm", RESULT)
    found = read_segments(path, source)
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(found.array, array)
    assert segment_numbers(path) == (1, 2)


@pytest.mark.parametrize("encoding", LABEL_ENCODINGS)
def test_channels_and_labels_of_one_file_agree(source, labels, tmp_path, encoding):
    path = write_seg(labels, source, tmp_path / "seg.dcm", RESULT, encoding=encoding)
    found = read_segments(path, source).array
    np.testing.assert_array_equal(found, np.stack([labels.array == 1, labels.array == 2], axis=-1))


def test_fractions_come_back_as_floats_and_are_refused_as_labels(source, tmp_path):
    i, j, k = np.indices(source.shape)
    array = np.stack([(i + j + k) % 5 / 4, (i * j) % 7 / 6], axis=-1).astype(np.float32)
    path = write_seg(source.with_array(array), source, tmp_path / "seg.dcm", RESULT, encoding="fractional")
    found = read_segments(path, source).array
    assert found.dtype == np.float32
    assert np.abs(found - array).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(LabelError, match="FRACTIONAL segmentation, which holds a probability"):
        read_seg(path, source)


def test_a_seg_of_a_picture_is_laid_on_that_picture_only(tmp_path):
    header = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"}
    pictures = [write_picture(tmp_path / f"{n}.dcm", lopsided_array((13, 9, 1))[:, :, 0], header) for n in (1, 2)]
    first, second = map(read_series, pictures)
    array = lopsided_labels((13, 9, 7))[:, :, 1:2]
    seg = write_seg(first.with_array(array), first, tmp_path / "seg.dcm", RESULT)
    if "FrameOfReferenceUID" in pydicom.dcmread(seg):
        dataset = pydicom.dcmread(seg)
        del dataset.FrameOfReferenceUID
        dataset.save_as(seg)
    np.testing.assert_array_equal(read_seg(seg, first).array, array)
    with pytest.raises(LabelError, match="names the image"):
        read_seg(seg, second)


def test_empty_frames_are_written_where_a_viewer_wants_them(source, labels, tmp_path):
    path = write_seg(labels, source, tmp_path / "seg.dcm", RESULT, empty_frames=True)
    dataset = pydicom.dcmread(path)
    assert dataset.NumberOfFrames == 2 * source.shape[2]
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_seg(path, source).array, labels.array)
    plain = pydicom.dcmread(write_seg(labels, source, tmp_path / "plain.dcm", RESULT))
    assert plain.SOPInstanceUID != dataset.SOPInstanceUID

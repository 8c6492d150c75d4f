from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, tilted_affine, write_mr_series
from result_phantoms import (
    RESULT,
    dciodvfy_errors,
    labels_by_dcmqi,
    lopsided_labels,
    oblique_affine,
    oblique_case,
    tool,
)
from source_phantoms import AFFINES, PLACED, frame_of, kept_source, lopsided, source_file

from dicom_io import validators
from dicom_io.dicomize import dicomize
from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.objects import source_images
from dicom_io.read import read_series
from dicom_io.rtstruct import read_rtstruct, write_rtstruct
from dicom_io.seg import read_seg, write_seg
from dicom_io.sr import write_sr
from dicom_io.volume import Provenance, Volume


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return oblique_case(tmp_path_factory.mktemp("case") / "phantom")


@pytest.fixture(scope="module")
def written(case, tmp_path_factory):
    return write_seg(case.labels, case.volume, tmp_path_factory.mktemp("seg") / "result.dcm", RESULT)


def own_case(folder: Path, **header: object):
    """A case whose slices got other header values; None deletes an attribute."""
    case = oblique_case(folder)
    for file in case.volume.provenance.files:
        dataset = pydicom.dcmread(file)
        for keyword, value in header.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(file)
    return case


def voxels_in_mm(volume: Volume, number: int) -> np.ndarray:
    index = np.argwhere(volume.array == number)
    points = index @ volume.affine_lps[:3, :3].T + volume.affine_lps[:3, 3]
    return points[np.lexsort(points.round(3).T)]


def test_seg_has_no_dciodvfy_error(written):
    assert dciodvfy_errors(written) == []


def test_seg_of_an_oblique_series_keeps_every_voxel_in_place(case, written):
    np.testing.assert_array_equal(read_seg(written, case.volume).array, case.labels.array)


def test_dcmqi_reads_the_same_voxels_at_the_same_millimetres(case, written, tmp_path):
    np.testing.assert_array_equal(labels_by_dcmqi(written, case.volume, tmp_path / "out"), case.labels.array)


@pytest.mark.parametrize("encoding", ["binary", "labelmap"])
@pytest.mark.parametrize("tilt_degrees", [-20, 20])
def test_a_tilted_seg_is_read_by_instance_everywhere_and_by_dcmqi_where_slices_shift_upwards(
    tmp_path, encoding, tilt_degrees
):
    """dcmqi knows no shear: docs/how-to/dicom-from-python.md says what it does. Whole slices decide, not their places."""
    write_mr_series(tmp_path / "series", lopsided_array(), tilted_affine(tilt_degrees, gap_mm=1.0))
    source = read_series(tmp_path / "series")
    array = np.zeros(source.shape, np.uint8)
    array[2:5, 1:4, 1:-1], array[6:8, 3:6, 2:] = 1, 2
    path = write_seg(source.with_array(array), source, tmp_path / "seg.dcm", RESULT, encoding=encoding)
    np.testing.assert_array_equal(read_seg(path, source).array, array)
    frames = hd.seg.segread(path).get_pixels_by_source_instance(
        list(source.provenance.sop_instance_uids), combine_segments=True
    )
    np.testing.assert_array_equal(frames.transpose(2, 1, 0), array)
    tool("segimage2itkimage")
    if tilt_degrees > 0:  # the table moves along z, which is against the columns of a slice
        with pytest.raises(ValueError, match="dcmqi read no segment"):
            validators.labels_by_dcmqi(path)
    else:
        found, affine_lps = validators.labels_by_dcmqi(path)
        np.testing.assert_array_equal(found[:, :, found.any((0, 1))], array[:, :, array.any((0, 1))])
        assert abs(affine_lps[:3, 1] @ affine_lps[:3, 2]) < 1e-6


def test_seg_read_on_the_grid_of_the_nifti_lands_where_the_nifti_labels_are(written):
    """The original grid has other axis directions than the converted series; millimetres decide."""
    nifti = Volume(lopsided_labels(), oblique_affine(), Provenance("nifti"))
    found = read_seg(written, nifti.with_array(np.zeros(nifti.shape)))
    np.testing.assert_array_equal(found.array, nifti.array)


def test_order_of_the_source_files_does_not_matter(case, written, tmp_path):
    files = list(case.volume.provenance.files)
    random.Random(3).shuffle(files)
    shuffled = replace(case.volume, provenance=replace(case.volume.provenance, files=tuple(files)))
    again = write_seg(case.labels, shuffled, tmp_path / "again.dcm", RESULT)
    assert again.read_bytes() == written.read_bytes()


def test_a_volume_walked_from_the_other_end_gives_the_same_voxels_in_millimetres(case, tmp_path):
    turn = np.diag([1.0, 1.0, -1.0, 1.0])
    turn[2, 3] = case.volume.shape[2] - 1
    provenance = replace(case.volume.provenance, sop_instance_uids=case.volume.provenance.sop_instance_uids[::-1])
    source = Volume(case.volume.array[:, :, ::-1], case.volume.affine_lps @ turn, provenance)
    path = write_seg(source.with_array(case.labels.array[:, :, ::-1]), source, tmp_path / "s.dcm", RESULT)
    found = read_seg(path, case.volume)
    for number in (1, 2):
        np.testing.assert_allclose(voxels_in_mm(found, number), voxels_in_mm(case.labels, number), atol=1e-6)


def test_the_same_input_gives_the_same_bytes_at_another_time(case, written, tmp_path):
    time.sleep(1.1)
    assert write_seg(case.labels, case.volume, tmp_path / "x.dcm", RESULT).read_bytes() == written.read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"settings": (("tta", "on"), ("overlap", "0.5"))}, {"bundle_sha256": "f" * 64}],
    ids=["settings", "bundle"],
)
def test_other_settings_or_weights_give_another_object(case, written, tmp_path, change):
    other = pydicom.dcmread(write_seg(case.labels, case.volume, tmp_path / "x.dcm", replace(RESULT, **change)))
    first = pydicom.dcmread(written)
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID != first.SeriesInstanceUID
    assert other.SegmentSequence[0].TrackingUID != first.SegmentSequence[0].TrackingUID
    assert other.StudyInstanceUID == first.StudyInstanceUID


def test_settings_in_another_order_are_the_same_settings(case, written, tmp_path):
    result = replace(RESULT, settings=RESULT.settings[::-1])
    assert write_seg(case.labels, case.volume, tmp_path / "x.dcm", result).read_bytes() == written.read_bytes()


def test_every_source_instance_is_referenced_and_uids_are_short_enough(case, written):
    dataset = pydicom.dcmread(written)
    (series,) = dataset.ReferencedSeriesSequence
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referenced == set(case.volume.provenance.sop_instance_uids)
    assert series.SeriesInstanceUID == case.volume.provenance.series_instance_uid
    assert dataset.FrameOfReferenceUID == case.volume.provenance.frame_of_reference_uid
    assert all(len(str(e.value)) <= 64 for e in dataset.iterall() if e.VR == "UI" and e.VM == 1)


def test_the_object_says_that_it_is_research_and_what_made_it(written):
    dataset = pydicom.dcmread(written)
    assert dataset.ContentQualification == "RESEARCH"
    assert "RESEARCH" in dataset.SeriesDescription
    assert dataset.SegmentationType == "BINARY"
    front, back = dataset.SegmentSequence
    assert front.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = front.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("a_network", "1.2.3")
    assert front.TrackingUID != back.TrackingUID
    modifier = front.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeValue == "255549009"
    assert back.AnatomicRegionSequence[0].CodeValue == "5665001"
    equipment = [item.get("ContributionDescription", "") for item in dataset.ContributingEquipmentSequence]
    assert any(RESULT.bundle_sha256 in text and "quality: accepted" in text for text in equipment)


def test_a_long_description_is_cut_before_the_word_research(case, tmp_path):
    result = replace(RESULT, series_description="a very long description of a series, " * 4)
    dataset = pydicom.dcmread(write_seg(case.labels, case.volume, tmp_path / "x.dcm", result))
    assert len(dataset.SeriesDescription) <= 64
    assert dataset.SeriesDescription.endswith("SEG RESEARCH")


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Müller^Жанна"),
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_the_patient_is_carried_over_in_the_character_set_of_the_source(tmp_path, charset, name):
    case = own_case(tmp_path / "c", SpecificCharacterSet=charset, PatientName=name, PatientWeight="71.5")
    dataset = pydicom.dcmread(write_seg(case.labels, case.volume, tmp_path / "s.dcm", RESULT))
    assert str(dataset.PatientName) == name
    assert dataset.SpecificCharacterSet == charset
    assert dataset.PatientWeight == 71.5


def test_absent_type_2_attributes_are_supplied_and_odd_ones_carried_over_verbatim(tmp_path):
    case = own_case(
        tmp_path / "c",
        PatientBirthDate=None,
        AccessionNumber=None,
        StudyID=None,
        ReferringPhysicianName=None,
        DeidentificationMethod="",
        PatientSex="U",
    )
    path = write_seg(case.labels, case.volume, tmp_path / "s.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    assert dataset.PatientBirthDate == dataset.AccessionNumber == dataset.StudyID == ""
    assert dataset.PatientSex == "U"
    assert dataset.DeidentificationMethod == "Not named by the source"  # the source says YES in PatientIdentityRemoved


def test_instances_whose_uid_only_the_file_header_still_has_are_found(tmp_path):
    case = own_case(tmp_path / "c", SOPInstanceUID="")
    path = write_seg(case.labels, case.volume, tmp_path / "s.dcm", RESULT)
    np.testing.assert_array_equal(read_seg(path, case.volume).array, case.labels.array)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_source_without_what_a_result_must_refer_to_is_refused(tmp_path, keyword):
    case = own_case(tmp_path / "c", **{keyword: ""})
    with pytest.raises(LabelError, match=f"no {keyword}"):
        write_seg(case.labels, case.volume, tmp_path / "s.dcm", RESULT)


def test_the_latest_date_of_the_source_is_the_date_of_the_result(tmp_path):
    case = own_case(tmp_path / "c", ContentDate="20240229", ContentTime="101112.5")
    last = pydicom.dcmread(case.volume.provenance.files[2])
    last.ContentTime = "235959"
    last.save_as(case.volume.provenance.files[2])
    dataset = pydicom.dcmread(write_seg(case.labels, case.volume, tmp_path / "s.dcm", RESULT))
    assert (dataset.ContentDate, dataset.ContentTime) == ("20240229", "235959")
    assert "InstanceCreationDate" not in dataset


@pytest.mark.parametrize("kept", [1, 2, 0])
def test_a_segment_without_voxels_stays_described_and_reads_back_empty(case, tmp_path, kept):
    labels = case.labels.with_array(np.where(case.labels.array == kept, kept, 0).astype(np.uint8))
    path = write_seg(labels, case.volume, tmp_path / "s.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    assert [item.SegmentNumber for item in pydicom.dcmread(path).SegmentSequence] == [1, 2]
    np.testing.assert_array_equal(read_seg(path, case.volume).array, labels.array)
    np.testing.assert_array_equal(labels_by_dcmqi(path, case.volume, tmp_path / "out"), labels.array)


def test_manual_labels_name_no_algorithm(case):
    (first, _) = pydicom.dcmread(case.seg).SegmentSequence
    assert first.SegmentAlgorithmType == "MANUAL"
    assert "SegmentAlgorithmName" not in first
    assert dciodvfy_errors(case.seg) == []


def test_a_multi_frame_source_with_frames_in_reverse_is_right(case, tmp_path):
    slices = [pydicom.dcmread(file) for file in case.volume.provenance.files]
    enhanced = hd.legacy.LegacyConvertedEnhancedMRImage(
        slices[::-1], hd.UID(), series_number=2, sop_instance_uid=hd.UID(), instance_number=1
    )
    (tmp_path / "series").mkdir()
    enhanced.save_as(tmp_path / "series" / "e.dcm")
    source = read_series(tmp_path / "series")
    np.testing.assert_array_equal(source.array, case.volume.array)
    path = write_seg(source.with_array(case.labels.array), source, tmp_path / "s.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_seg(path, source).array, case.labels.array)


@pytest.mark.parametrize("kind", PLACED)
def test_seg_contours_and_report_of_every_kind_of_series_name_the_images_that_they_lie_on(
    kind, tmp_path_factory, tmp_path
):
    source = kept_source(tmp_path_factory, kind)
    labels = lopsided(source)
    seg = write_seg(labels, source, tmp_path / "seg.dcm", RESULT)
    contours = write_rtstruct(labels, source, tmp_path / "rt.dcm", RESULT)
    report = write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=seg)
    uids = [str(source_file(source, k).SOPInstanceUID) for k in range(7)]
    for path in (seg, contours, report):
        assert dciodvfy_errors(path) == []
        found = {str(item.value) for item in pydicom.dcmread(path).iterall() if item.tag == (0x0008, 0x1155)}
        assert found >= set(uids)
    np.testing.assert_array_equal(read_seg(seg, source).array, labels.array)
    np.testing.assert_array_equal(read_rtstruct(contours, source).array, labels.array)
    for group in pydicom.dcmread(seg).PerFrameFunctionalGroupsSequence:
        position = [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
        k = round(np.linalg.solve(AFFINES[kind], [*position, 1.0])[2])
        named = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert (named.ReferencedSOPInstanceUID, named.get("ReferencedFrameNumber")) == (uids[k], frame_of(kind, k))


def test_frames_in_another_order_are_read_right(case, written, tmp_path):
    dataset = pydicom.dcmread(written)
    frames = dataset.pixel_array
    order = list(range(len(frames)))
    random.Random(1).shuffle(order)
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[n] for n in order]
    dataset.PixelData = pydicom.pixels.utils.pack_bits(frames[order])
    dataset.save_as(tmp_path / "shuffled.dcm")
    np.testing.assert_array_equal(read_seg(tmp_path / "shuffled.dcm", case.volume).array, case.labels.array)


def test_channels_may_overlap_in_the_file_but_not_when_read_as_one_label_map(case, tmp_path):
    overlapping = np.stack([case.labels.array > 0, case.labels.array == 2], axis=3).astype(np.uint8)
    path = write_seg(case.volume.with_array(overlapping), case.volume, tmp_path / "s.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    dataset = pydicom.dcmread(path)
    assert dataset.SegmentsOverlap == "YES"
    assert int(dataset.pixel_array.sum()) == overlapping.sum()
    with pytest.raises(LabelError, match="segment 2 overlaps segment 1"):
        read_seg(path, case.volume)


def test_nothing_is_left_and_the_old_file_stays_when_the_proof_fails(case, tmp_path, monkeypatch):
    path = tmp_path / "s.dcm"
    path.write_bytes(b"earlier")
    right, count = source_images.values_on, case.volume.shape[2]
    monkeypatch.setattr(source_images, "values_on", lambda one, k, *rest: right(one, (k + 1) % count, *rest))
    with pytest.raises(GeometryProofError, match="differ"):
        write_seg(case.labels, case.volume, path, RESULT)
    assert [file.name for file in tmp_path.iterdir()] == ["s.dcm"]
    assert path.read_bytes() == b"earlier"


def test_labels_that_do_not_fit_are_refused(case, tmp_path):
    path = tmp_path / "s.dcm"
    moved = case.labels.affine_lps.copy()
    moved[:3, 3] += 0.3
    other = case.labels.array.copy()
    other[0, 0, 0] = 3
    for labels, source, says in (
        (Volume(case.labels.array, moved, case.labels.provenance), case.volume, r"0\.52 mm away"),
        (case.labels.with_array(other), case.volume, "value 3"),
        (case.labels.with_array(case.labels.array * 0.5), case.volume, r"value 0\.5"),
        (Volume(case.labels.array[:, :, 1:], moved), case.volume, r"shape \(13, 10, 6\)"),
        (case.labels, replace(case.volume, provenance=Provenance("nifti")), "DICOM series is needed"),
        (case.labels.with_array(np.zeros((*case.labels.shape, 3))), case.volume, "3 channels"),
    ):
        with pytest.raises(LabelError, match=says):
            write_seg(labels, source, path, RESULT)
    assert list(tmp_path.iterdir()) == []


def test_a_series_that_was_resampled_after_reading_is_refused(case, tmp_path):
    affine = case.volume.affine_lps.copy()
    affine[:3, 2] *= 1.02
    source = Volume(case.volume.array, affine, case.volume.provenance)
    with pytest.raises(LabelError, match=r"slice 2 lies 0\.10 mm from where its file has it"):
        write_seg(source.with_array(case.labels.array), source, tmp_path / "s.dcm", RESULT)


def test_source_files_that_hold_other_instances_are_refused(case, tmp_path):
    files = case.volume.provenance.files
    source = replace(case.volume, provenance=replace(case.volume.provenance, files=files[:-1]))
    with pytest.raises(LabelError, match="1 of 7 source instances"):
        write_seg(case.labels, source, tmp_path / "s.dcm", RESULT)


def test_label_files_that_do_not_belong_to_the_image_are_refused(case, written, tmp_path):
    elsewhere = replace(case.volume, provenance=replace(case.volume.provenance, frame_of_reference_uid="1.2.3"))
    stretched = Volume(np.zeros((13, 10, 7)), case.volume.affine_lps @ np.diag([1.1, 1, 1, 1]))
    aside = np.eye(4)
    aside[0, 3] = 0.3
    moved = Volume(np.zeros((13, 10, 7)), case.volume.affine_lps @ aside)
    smaller = Volume(np.zeros((13, 10, 4)), case.volume.affine_lps)
    renamed = replace(
        case.volume,
        provenance=replace(case.volume.provenance, sop_instance_uids=case.volume.provenance.sop_instance_uids[::-1]),
    )
    for reference, says in (
        (elsewhere, "frame of reference"),
        (stretched, r"pixels of 0\.90 x 1\.30 mm, the voxels of the image are 0\.99 x 1\.30 mm"),
        (moved, "0.30 voxels away"),
        (smaller, "outside the image"),
        (renamed, "names slice"),
    ):
        with pytest.raises(LabelError, match=says):
            read_seg(written, reference)
    with pytest.raises(LabelError, match=r"SOP class 1\.2\.840\.10008\.5\.1\.4\.1\.1\.4;"):
        read_seg(case.volume.provenance.files[0], case.volume)
    (tmp_path / "text.dcm").write_text("no")
    with pytest.raises(UnreadableFileError, match=r"text\.dcm"):
        read_seg(tmp_path / "text.dcm", case.volume)


def test_a_truncated_seg_is_refused(case, written, tmp_path):
    (tmp_path / "cut.dcm").write_bytes(written.read_bytes()[:-40])
    with pytest.raises((UnreadableFileError, LabelError)):
        read_seg(tmp_path / "cut.dcm", case.volume)


def test_fractional_segmentations_are_refused(case, tmp_path):
    slices = [pydicom.dcmread(file) for file in case.volume.provenance.files]
    probabilities = np.moveaxis(case.labels.array == 1, (2, 1, 0), (0, 1, 2)) * 0.4
    seg_module_description = hd.seg.SegmentDescription(
        1, "p", RESULT.segments[0].category, RESULT.segments[0].type, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    hd.seg.Segmentation(
        slices, probabilities, hd.seg.SegmentationTypeValues.FRACTIONAL, [seg_module_description],
        hd.UID(), 1, hd.UID(), 1, "m", "n", "1", "2",
    ).save_as(tmp_path / "f.dcm")  # fmt: skip
    with pytest.raises(LabelError, match="FRACTIONAL"):
        read_seg(tmp_path / "f.dcm", case.volume)


def test_a_label_map_by_highdicom_is_read(case, tmp_path):
    slices = [pydicom.dcmread(file) for file in case.volume.provenance.files]
    descriptions = [
        hd.seg.SegmentDescription(s.number, s.label, s.category, s.type, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for s in RESULT.segments
    ]
    hd.seg.Segmentation(
        slices, np.moveaxis(case.labels.array, (2, 1, 0), (0, 1, 2)), hd.seg.SegmentationTypeValues.LABELMAP,
        descriptions, hd.UID(), 1, hd.UID(), 1, "m", "n", "1", "2",
    ).save_as(tmp_path / "l.dcm")  # fmt: skip
    np.testing.assert_array_equal(read_seg(tmp_path / "l.dcm", case.volume).array, case.labels.array)


def test_messages_never_name_the_patient(case, tmp_path):
    with pytest.raises(LabelError) as refusal:
        write_seg(case.labels, replace(case.volume, provenance=Provenance("nifti")), tmp_path / "s", RESULT)
    assert "DEMO" not in str(refusal.value)


# --- with the larger data beside the repository ---


@pytest.mark.parametrize("series", ["12-T1post-05670", "13_HCropVolume"])
def test_seg_on_a_real_scanner_series_is_valid_and_exact(shared_data, tmp_path, series):
    source = read_series(shared_data / "dicom_series" / "mr_ge_oblique_t1post" / "Study1" / series)
    i, j, k = np.indices(source.shape) / np.array(source.shape)[:, None, None, None]
    labels = np.zeros(source.shape, dtype=np.uint8)
    labels[((i - 0.4) / 0.2) ** 2 + ((j - 0.55) / 0.1) ** 2 + ((k - 0.4) / 0.3) ** 2 < 1] = 1
    labels[(i > 0.7) & (j < 0.3) & (i + j + 0.1 * k < 1.05)] = 2
    path = write_seg(source.with_array(labels), source, tmp_path / "s.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_seg(path, source).array, labels)
    np.testing.assert_array_equal(labels_by_dcmqi(path, source, tmp_path / "out"), labels)


def test_hippocampus_labels_survive_the_way_through_dicom(shared_data, tmp_path):
    import nibabel

    folder = shared_data / "msd_hippocampus"
    image, labels = (nibabel.load(folder / part / "hippocampus_003.nii.gz") for part in ("images", "labels"))
    volume = Volume.from_ras(np.asanyarray(image.dataobj), image.affine, Provenance("nifti"))
    truth = Volume.from_ras(np.asanyarray(labels.dataobj), labels.affine, Provenance("nifti"))
    case = dicomize(volume, tmp_path / "c", labels=truth, segments=RESULT.segments, case_id="hippocampus_003")
    found = read_seg(case.seg, volume)
    np.testing.assert_array_equal(found.array, truth.array)
    assert dciodvfy_errors(case.seg) == []
    assert [int((found.array == n).sum()) for n in (1, 2)] == [1550, 1803]  # cases.tsv of the data set


@pytest.mark.parametrize(
    ("seg", "image", "truth"),
    [
        ("23x38x3/seg/label.seg", "23x38x3/image", "23x38x3/nrrd/label.nrrd"),
        ("24x38x3/seg/label.seg", "24x38x3/multiframe", "24x38x3/nrrd/label.nrrd"),
        ("liver.dcm", "ct-3slice", "liver_seg.nrrd"),
        ("sparse-labelmap-noppv.dcm", "24x38x3/image", "sparse_labelmap_noppv_seg.nrrd"),
    ],
)
def test_segs_written_by_dcmqi_are_read_as_dcmqi_meant_them(shared_data, seg, image, truth):
    import SimpleITK

    folder = shared_data / "dicom_objects" / "dcmqi" / "segmentations"
    found = read_seg(folder / seg, read_series(folder / image))
    wanted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / truth)))
    np.testing.assert_array_equal(found.array, np.moveaxis(wanted, (0, 1, 2), (2, 1, 0)))


def test_a_series_without_preambles_is_written_onto(tmp_path: Path) -> None:
    case = oblique_case(tmp_path / "case")
    for file in case.volume.provenance.files:
        file.write_bytes(file.read_bytes()[132:])  # the preamble and its mark
    source = read_series(case.series_folder)
    path = write_seg(source.with_array(case.labels.array), source, tmp_path / "seg.dcm", RESULT)
    np.testing.assert_array_equal(read_seg(path, source).array, case.labels.array)

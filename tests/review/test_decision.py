from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import lopsided_labels
from PIL import Image
from result_phantoms import RESULT, dciodvfy_errors
from review_cases import VOXELS, Delivered, decision_on, deliver, deliver_counted
from segmentations import segments

from dicom_io import read_sr
from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.rtstruct import write_rtstruct
from dicom_io.seg import read_seg, write_seg
from dicom_io.segmentation import Segmentation
from dicom_io.sr import Verification, write_verified_sr
from dicom_io.sr.proof import prove_verified
from dicom_io.volume import Volume
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.metrics import boundary
from monai_unet_app.review import correction
from monai_unet_app.review.correction import (
    Correction,
    added_path_length,
    correction_document,
    read_correction,
    store_training_case,
)
from monai_unet_app.review.decision import DecisionContext, ReviewDecision, Reviewer, apply_decision, read_decision
from monai_unet_app.review.display_window import slice_axis
from monai_unet_app.review.reviewed_case import ReviewedCase, read_reviewed

HEADER = {"PatientName": "Berger^Anna", "PatientID": "PID-4711", "AccessionNumber": "ACC-99", "StudyDate": "20260301"}
READER = Reviewer("Lang^Eva^^Dr", "Clinic")
WHEN = datetime(2026, 11, 21, 3, 15, tzinfo=timezone(timedelta(hours=1)))
VERIFICATION = Verification("Lang^Eva^^Dr", "Clinic", WHEN)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    return deliver(tmp_path_factory.mktemp("delivered"), HEADER)


@pytest.fixture(scope="module")
def case(delivered: Delivered) -> ReviewedCase:
    return read_reviewed(delivered.result, delivered.volume)


def report_of(delivered: Delivered) -> Path:
    return delivered.result.parent / "case_sr.dcm"


# --- the verified report ---


def test_a_verified_report_says_by_whom_and_names_its_predecessor(delivered: Delivered, tmp_path: Path) -> None:
    before = pydicom.dcmread(report_of(delivered))
    path = write_verified_sr(report_of(delivered), tmp_path / "sr.dcm", VERIFICATION)
    assert dciodvfy_errors(path) == []
    found = pydicom.dcmread(path)
    assert (found.CompletionFlag, found.VerificationFlag, found.PreliminaryFlag) == ("COMPLETE", "VERIFIED", "FINAL")
    (observer,) = found.VerifyingObserverSequence
    assert (observer.VerifyingObserverName, observer.VerifyingOrganization) == ("Lang^Eva^^Dr", "Clinic")
    assert observer.VerificationDateTime == "20261121031500+0100"
    (study,) = found.PredecessorDocumentsSequence
    (reference,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert study.StudyInstanceUID == before.StudyInstanceUID
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == before.SeriesInstanceUID
    assert reference.ReferencedSOPInstanceUID == before.SOPInstanceUID != found.SOPInstanceUID
    assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID


def test_a_verified_report_measures_what_the_first_one_measured(delivered: Delivered, tmp_path: Path) -> None:
    before = pydicom.dcmread(report_of(delivered))
    found = pydicom.dcmread(write_verified_sr(report_of(delivered), tmp_path / "sr.dcm", VERIFICATION))
    for kept in ("ContentSequence", "CurrentRequestedProcedureEvidenceSequence", "PatientName", "StudyInstanceUID"):
        assert found[kept] == before[kept]
    assert before.VerificationFlag == "UNVERIFIED"


def test_a_verified_report_is_told_from_the_unverified_one_by_its_series(delivered: Delivered, tmp_path: Path) -> None:
    before = pydicom.dcmread(report_of(delivered))
    found = pydicom.dcmread(write_verified_sr(report_of(delivered), tmp_path / "sr.dcm", VERIFICATION))
    assert found.SeriesInstanceUID != before.SeriesInstanceUID
    assert found.SeriesNumber != before.SeriesNumber
    assert found.SeriesDescription == f"VERIFIED {before.SeriesDescription}"
    assert len(found.SeriesDescription) <= 64


def test_a_verified_report_has_the_reviewers_comment(delivered: Delivered, tmp_path: Path) -> None:
    before = pydicom.dcmread(report_of(delivered))
    said = replace(VERIFICATION, comment="the tip is cut, 3 mm")
    path = write_verified_sr(report_of(delivered), tmp_path / "sr.dcm", said)
    assert dciodvfy_errors(path) == []
    found = pydicom.dcmread(path)
    *kept, comment = found.ContentSequence
    assert kept == list(before.ContentSequence)
    assert (comment.ConceptNameCodeSequence[0].CodeValue, comment.TextValue) == ("121106", "the tip is cut, 3 mm")
    assert [item.PersonName for item in comment.ContentSequence if item.ValueType == "PNAME"] == ["Lang^Eva^^Dr"]
    silent = pydicom.dcmread(write_verified_sr(report_of(delivered), tmp_path / "silent.dcm", VERIFICATION))
    assert silent.SOPInstanceUID != found.SOPInstanceUID


def test_the_same_verification_gives_the_same_bytes_and_another_another_uid(
    delivered: Delivered, tmp_path: Path
) -> None:
    one, two = (write_verified_sr(report_of(delivered), tmp_path / name, VERIFICATION) for name in ("1.dcm", "2.dcm"))
    assert one.read_bytes() == two.read_bytes()
    other = write_verified_sr(report_of(delivered), tmp_path / "3.dcm", replace(VERIFICATION, observer="Kern^Max"))
    assert pydicom.dcmread(one).SOPInstanceUID != pydicom.dcmread(other).SOPInstanceUID


def test_a_verified_report_that_measures_something_else_does_not_leave(delivered: Delivered, tmp_path: Path) -> None:
    path = write_verified_sr(report_of(delivered), tmp_path / "sr.dcm", VERIFICATION)
    dataset = pydicom.dcmread(path)
    figures = dataset.ContentSequence[-1].ContentSequence[0].ContentSequence
    next(item for item in figures if item.ValueType == "NUM").MeasuredValueSequence[0].NumericValue = 1
    dataset.save_as(path)
    with pytest.raises(GeometryProofError, match=r"differs from its predecessor in 1 attributes .*\(0040,a730\)"):
        prove_verified(path, report_of(delivered))
    assert not path.exists()


def test_a_report_is_verified_once(delivered: Delivered, tmp_path: Path) -> None:
    path = write_verified_sr(report_of(delivered), tmp_path / "sr.dcm", VERIFICATION)
    with pytest.raises(LabelError, match="COMPLETE and VERIFIED"):
        write_verified_sr(path, tmp_path / "again.dcm", VERIFICATION)
    with pytest.raises(LabelError, match="Comprehensive 3D SR is needed"):
        write_verified_sr(delivered.result.parent / "case_seg.dcm", tmp_path / "again.dcm", VERIFICATION)


def test_a_name_that_the_character_set_cannot_hold_is_refused(tmp_path: Path) -> None:
    umlaut = replace(VERIFICATION, observer="Müller^Jörg", organization="Klinik Süd")
    latin = deliver(tmp_path / "latin", {**HEADER, "SpecificCharacterSet": "ISO_IR 100"})
    found = pydicom.dcmread(write_verified_sr(report_of(latin), tmp_path / "sr.dcm", umlaut))
    assert found.VerifyingObserverSequence[0].VerifyingObserverName == "Müller^Jörg"
    assert dciodvfy_errors(tmp_path / "sr.dcm") == []
    with pytest.raises(LabelError, match="ISO_IR 100"):
        write_verified_sr(report_of(latin), tmp_path / "x.dcm", replace(VERIFICATION, observer="山田^太郎"))
    plain = deliver(tmp_path / "plain", HEADER)
    with pytest.raises(LabelError, match="ASCII"):
        write_verified_sr(report_of(plain), tmp_path / "x.dcm", umlaut)
    assert not (tmp_path / "x.dcm").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("observer", " "), ("organization", "x" * 65), ("observer", "a\nb"), ("observer", "root")]
)
def test_a_verification_without_a_proper_name_is_refused(name: str, value: str) -> None:
    with pytest.raises(LabelError, match=f"the {name} of a verification"):
        replace(VERIFICATION, **{name: value})


def test_a_moment_without_a_time_zone_is_refused() -> None:
    with pytest.raises(LabelError, match="no time zone"):
        Verification("Lang^Eva", "Clinic", datetime(2026, 11, 21))


# --- what becomes of a decision ---


def test_an_accepted_result_of_a_named_reader_is_verified(delivered: Delivered, tmp_path: Path) -> None:
    decision = ReviewDecision.from_document(decision_on(delivered, "accepted", comment="fits well"))
    record = apply_decision(decision, delivered.result, tmp_path, DecisionContext(reviewer=READER, applied_at=WHEN))
    found = pydicom.dcmread(tmp_path / record["report"]["file"])
    assert found.VerifyingObserverSequence[0].VerificationDateTime == "20261121031500+0100"
    assert record["page_time"] == "2026-11-21T02:15:30.250000+00:00"
    assert record["report"]["sop_instance_uid"] == found.SOPInstanceUID
    assert record["report"]["predecessor_sop_instance_uid"] == pydicom.dcmread(report_of(delivered)).SOPInstanceUID
    assert json.loads((tmp_path / "case_decision_20261121T021500Z.json").read_text()) == record
    validate(record, "review_record")
    for decision in ("accepted", "rejected"):
        again = ReviewDecision.from_document(decision_on(delivered, decision))
        with pytest.raises(InputRefusedError, match="decided on once"):
            apply_decision(again, delivered.result, tmp_path, DecisionContext(reviewer=READER))


def test_nothing_is_verified_where_nobody_answers_for_it(delivered: Delivered, tmp_path: Path) -> None:
    record = apply_decision(
        ReviewDecision.from_document(decision_on(delivered, "accepted")), delivered.result, tmp_path
    )
    assert record["report"] is None
    assert record["not_verified"] == "no person is responsible for the decision"
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]


def test_a_draft_is_verified_at_the_moment_when_somebody_applies_it(delivered: Delivered, tmp_path: Path) -> None:
    decision = ReviewDecision.from_document(decision_on(delivered, "accepted", draft=True))
    record = apply_decision(decision, delivered.result, tmp_path, DecisionContext(reviewer=READER, applied_at=WHEN))
    found = pydicom.dcmread(tmp_path / record["report"]["file"])
    assert found.VerifyingObserverSequence[0].VerificationDateTime == "20261121031500+0100"


def test_a_rejected_result_is_recorded_and_no_more(delivered: Delivered, tmp_path: Path) -> None:
    decision = ReviewDecision.from_document(decision_on(delivered, "rejected", comment="wrong side"))
    record = apply_decision(decision, delivered.result, tmp_path, DecisionContext(reviewer=READER))
    assert (record["decision"], record["comment"], record["report"]) == ("rejected", "wrong side", None)
    assert len(list(tmp_path.iterdir())) == 1


def test_no_record_replaces_another_of_the_same_moment(delivered: Delivered, tmp_path: Path) -> None:
    for comment in ("wrong side", "too small"):
        decision = ReviewDecision.from_document(decision_on(delivered, "rejected", comment=comment))
        apply_decision(decision, delivered.result, tmp_path, DecisionContext(reviewer=READER, applied_at=WHEN))
    comments = {path.name: json.loads(path.read_text())["comment"] for path in tmp_path.iterdir()}
    assert comments == {
        "case_decision_20261121T021500Z.json": "wrong side", "case_decision_20261121T021500Z-2.json": "too small",
    }  # fmt: skip


def test_a_decision_about_other_files_is_refused(tmp_path: Path) -> None:
    fresh = deliver(tmp_path / "fresh")
    decision = ReviewDecision.from_document(decision_on(fresh, "accepted"))
    write_nifti(np.zeros(fresh.volume.shape, np.uint8), fresh.volume, fresh.result.parent / "case_seg.nii.gz")
    with pytest.raises(InputRefusedError, match="its labels have changed"):
        apply_decision(decision, fresh.result, tmp_path / "out")
    other = replace(decision, result_sha256="0" * 64)
    with pytest.raises(InputRefusedError, match="about the result 000000000000"):
        apply_decision(other, fresh.result, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_correction_needs_a_mask_and_nothing_else_does(delivered: Delivered, tmp_path: Path) -> None:
    corrected = ReviewDecision.from_document(decision_on(delivered, "corrected"))
    with pytest.raises(UsageError, match="corrected mask and the image are needed"):
        apply_decision(corrected, delivered.result, tmp_path)
    accepted = replace(corrected, decision="accepted")
    with pytest.raises(UsageError, match="one of the two is wrong"):
        apply_decision(accepted, delivered.result, tmp_path, DecisionContext(correction=tmp_path / "mask.nii.gz"))


@pytest.mark.parametrize(
    "change",
    [
        {"decision": "perhaps"},
        {"result_sha256": "abc"},
        {"decided_at": "today"},
        {"decided_at": "2026-13-41T99:00:00Z"},
        {"extra": 1},
        {"comment": "x" * 4001},
        {"schema_version": "2.0"},
    ],
)
def test_what_is_no_decision_is_refused(change: dict[str, object], delivered: Delivered, tmp_path: Path) -> None:
    (tmp_path / "decision.json").write_text(json.dumps(decision_on(delivered, "accepted") | change))
    with pytest.raises(InputRefusedError):
        read_decision(tmp_path / "decision.json")


def test_a_decision_is_read_as_it_was_written(delivered: Delivered, tmp_path: Path) -> None:
    decision = ReviewDecision.from_document(decision_on(delivered, "rejected", comment="gehört nicht dazu", draft=True))
    (tmp_path / "decision.json").write_text(json.dumps(decision.document()))
    assert read_decision(tmp_path / "decision.json") == decision
    assert decision.decided_at == datetime(2026, 11, 21, 2, 15, 30, 250000, tzinfo=UTC)


# --- how large a correction is ---


def corrected_to(volume: Volume, *masks: np.ndarray) -> Correction:
    names = segments(*"abc"[: len(masks)])
    return Correction(Segmentation(volume, np.stack(masks).astype(np.uint8), names), "image grid", ".nii.gz")


def boxes(shift: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A box of 4 x 3 x 2 voxels, and the same moved along the first axis: all voxels are of its surface."""
    original = np.zeros((10, 8, 6), bool)
    original[2:6, 2:5, 2:4] = True
    return original, np.roll(original, shift, axis=0)


def test_a_box_moved_by_one_voxel_is_measured_as_geometry_says(case: ReviewedCase) -> None:
    original, moved = boxes()
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    volume = replace(case.image, array=np.zeros(original.shape, np.float32), affine_lps=affine)
    boxed = replace(case, segmentation=Segmentation(volume, np.stack([original]).astype(np.uint8), segments("box")))
    (change,) = correction_document(corrected_to(volume, moved), boxed)["structures"]
    assert change["dice"] == 3 / 4
    assert change["size_difference"] == 0.0
    assert change["mean_surface_distance"] == 6 / 24 * 2.0  # one of four layers is 2 mm off, the others shared
    assert change["surface_dice"] == 18 / 24
    assert change["added_path_length"] == 2 * (3 + 1) * 2.0  # a slice: the new edge of 3, and 1 that was inside


def test_a_box_made_longer_has_a_larger_volume_by_its_new_layer(case: ReviewedCase) -> None:
    original, moved = boxes()
    volume = replace(case.image, array=np.zeros(original.shape, np.float32), affine_lps=np.diag([2.0, 2.0, 3.0, 1.0]))
    boxed = replace(case, segmentation=Segmentation(volume, np.stack([original]).astype(np.uint8), segments("box")))
    (change,) = correction_document(corrected_to(volume, original | moved), boxed)["structures"]
    assert change["size_difference"] == 6 * 12.0 / 1000
    assert change["dice"] == round(2 * 24 / (24 + 30), 5)
    assert change["added_path_length"] == 2 * 3 * 2.0


def test_added_path_length_counts_outlines_in_the_slices_that_are_drawn_on() -> None:
    original, moved = boxes()
    assert added_path_length(original, original, (1, 1, 1)) == 0.0
    assert added_path_length(moved, np.zeros_like(moved), (1, 1, 1)) == 2 * (2 * 4 + 2 * 3 - 4)
    assert added_path_length(moved, original, (1, 4, 1), across=2) == pytest.approx(2 * 4 * 2.0)  # root of 1 x 4
    assert added_path_length(moved, original, (1, 1, 1), across=0) == 3 * 2  # a slice that was empty, all of its voxels
    with pytest.raises(ValueError, match="the same one is needed"):
        added_path_length(moved, original[1:], (1, 1, 1))


def test_a_structure_that_was_deleted_has_no_surface_distance(case: ReviewedCase) -> None:
    nothing = [np.zeros(case.image.shape, bool) for _ in case.structures]
    for change in correction_document(corrected_to(case.image, *nothing), case)["structures"]:
        assert change["mean_surface_distance"] is None
        assert (change["dice"], change["surface_dice"], change["added_path_length"]) == (0.0, 0.0, 0.0)
        assert change["size_difference"] < 0


def test_a_change_is_the_same_in_the_whole_image(case: ReviewedCase) -> None:
    rng, spacing = np.random.default_rng(3), (1.0, 2.0, 3.0)
    volume = replace(case.image, array=np.zeros((9, 8, 7), np.float32), affine_lps=np.diag([*spacing, 1.0]))
    before, after = (rng.integers(0, 3, volume.shape).astype(np.uint8) for _ in range(2))
    before[:4], after[3:], after[:, :2] = 0, 0, 0  # they end at different sides of the image
    names, across = segments(*"ab"), slice_axis(volume)
    original = replace(case, segmentation=Segmentation(volume, before, names))
    corrected = Correction(Segmentation(volume, after, names), "image grid", ".nii.gz")
    for change in correction_document(corrected, original)["structures"]:
        masks = [labels == change["number"] for labels in (after, before)]
        distances = boundary.surface_distances(*masks, spacing)
        assert change["mean_surface_distance"] == round(boundary.average_surface_distance(distances), 4) > 0
        assert change["surface_dice"] == round(boundary.normalised_surface_dice(distances, tolerance_mm=1.0), 5)
        assert change["added_path_length"] == round(added_path_length(*masks, spacing, across), 3) > 0


# --- where a correction comes from ---


def corrected_labels() -> np.ndarray:
    """Block 2 as it was, block 1 one voxel longer along I: 18 + 6 voxels."""
    labels = lopsided_labels()
    labels[4, 1:4, 1:3] = 1
    return labels


def test_a_segmentation_that_was_numbered_anew_is_paired_by_tracking_uid(
    delivered: Delivered, case: ReviewedCase, tmp_path: Path
) -> None:
    swapped = np.array([0, 2, 1], np.uint8)[corrected_labels()]
    path = write_seg(delivered.volume.with_array(swapped), delivered.volume, tmp_path / "new.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    first, second = dataset.SegmentSequence
    first.TrackingUID, second.TrackingUID = second.TrackingUID, first.TrackingUID
    dataset.save_as(path)
    with pytest.raises(InputRefusedError, match="names that contradict each other"):  # the reader saw names
        read_correction(path, case)
    first.SegmentLabel, second.SegmentLabel = second.SegmentLabel, first.SegmentLabel
    dataset.save_as(path)
    found = read_correction(path, case)
    assert found.paired_by == "tracking UID"
    for number, mask in enumerate((one.mask_on_grid for one in found.segmentation.structures), start=1):
        assert np.array_equal(mask, corrected_labels() == number)


def test_segments_that_exclude_each_other_are_read_as_one_label_map(
    delivered: Delivered, case: ReviewedCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_seg(delivered.volume.with_array(corrected_labels()), delivered.volume, tmp_path / "new.dcm", RESULT)
    monkeypatch.delattr(correction, "read_segments")  # a whole grid for each of 105 structures is 8 GB
    found = read_correction(path, case).segmentation
    assert np.array_equal(found.labels, corrected_labels())
    assert found.labels.dtype == np.uint8


def test_segments_that_overlap_are_read_as_they_are(delivered: Delivered, case: ReviewedCase, tmp_path: Path) -> None:
    channels = np.stack([corrected_labels() == 1, corrected_labels() == 2], axis=-1).astype(np.uint8)
    channels[4, 1:4, 1:3, 1] = 1
    path = write_seg(delivered.volume.with_array(channels), delivered.volume, tmp_path / "new.dcm", RESULT)
    found = read_correction(path, case)
    for structure, mask in zip(found.segmentation.structures, np.moveaxis(channels, -1, 0), strict=True):
        assert np.array_equal(structure.mask_on_grid, mask)
    with pytest.raises(InputRefusedError, match="structure 2 of the correction overlaps another"):
        store_training_case(found, case, correction_document(found, case), tmp_path / "cases")


def test_a_segmentation_with_tracking_uids_of_its_own_is_paired_by_the_grid(
    delivered: Delivered, case: ReviewedCase, tmp_path: Path
) -> None:
    path = write_seg(delivered.volume.with_array(corrected_labels()), delivered.volume, tmp_path / "new.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    for item in dataset.SegmentSequence:
        del item.TrackingUID, item.TrackingID
    dataset.save_as(path)
    found = read_correction(path, case)
    assert found.paired_by == "image grid"
    assert np.array_equal(found.segmentation.structures[0].mask_on_grid, corrected_labels() == 1)


def test_a_segmentation_without_a_structure_is_refused(
    delivered: Delivered, case: ReviewedCase, tmp_path: Path
) -> None:
    path = write_seg(delivered.volume.with_array(corrected_labels()), delivered.volume, tmp_path / "new.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    dataset.SegmentSequence[1].SegmentNumber = 5
    dataset.SegmentSequence[1].TrackingUID = "1.2.3"
    dataset.save_as(path)
    with pytest.raises(InputRefusedError, match=r"lacks Back part and has the segments \[5\]"):
        read_correction(path, case)


def test_a_structure_set_is_paired_by_the_grid(delivered: Delivered, case: ReviewedCase, tmp_path: Path) -> None:
    labels = delivered.volume.with_array(corrected_labels())
    found = read_correction(write_rtstruct(labels, delivered.volume, tmp_path / "rt.dcm", RESULT), case)
    assert found.paired_by == "image grid"
    for number, mask in enumerate((one.mask_on_grid for one in found.segmentation.structures), start=1):
        assert np.array_equal(mask, corrected_labels() == number)
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    for name in ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence"):
        dataset[name].value = dataset[name].value[:1]
    dataset.save_as(tmp_path / "rt.dcm")
    with pytest.raises(InputRefusedError, match="no region for Back part"):
        read_correction(tmp_path / "rt.dcm", case)


def test_a_correction_elsewhere_is_refused(delivered: Delivered, case: ReviewedCase, tmp_path: Path) -> None:
    affine = delivered.volume.affine_lps.copy()
    affine[0, 3] += 3.0
    moved = replace(delivered.volume, affine_lps=affine)
    write_nifti(corrected_labels(), moved, tmp_path / "mask.nii.gz")
    with pytest.raises(InputRefusedError, match=r"3\.00 mm away"):
        read_correction(tmp_path / "mask.nii.gz", case)
    write_nifti(np.where(corrected_labels() == 2, 7, 0).astype(np.uint8), delivered.volume, tmp_path / "mask.nii.gz")
    with pytest.raises(InputRefusedError, match=r"value\(s\) \[7\]"):
        read_correction(tmp_path / "mask.nii.gz", case)
    with pytest.raises(InputRefusedError, match="is not a file"):
        read_correction(tmp_path / "absent.nii.gz", case)


# --- what is learned from it ---


def test_a_corrected_result_becomes_a_case_to_train_on(delivered: Delivered, tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    write_nifti(corrected_labels(), delivered.volume, mask)
    decision = ReviewDecision.from_document(decision_on(delivered, "corrected"))
    what = DecisionContext(
        READER, image=delivered.series, correction=mask, training=tmp_path / "train", applied_at=WHEN
    )
    record = apply_decision(decision, delivered.result, tmp_path / "out", what)
    validate(record, "review_record")
    (found,) = find_data(tmp_path / "train")
    assert found.id == record["correction"]["training_case"]
    image = read_volume(found.image)
    assert np.array_equal(image.array, delivered.volume.array)
    assert np.allclose(image.affine_lps, delivered.volume.affine_lps, atol=1e-4)
    assert found.label is not None
    assert np.array_equal(read_labels(found.label, image).array, corrected_labels())
    front, back = record["correction"]["structures"]
    assert front["size_difference"] == pytest.approx(6 * delivered.volume.voxel_ml, abs=1e-5)
    assert (back["dice"], back["mean_surface_distance"], back["added_path_length"]) == (1.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def corrected(delivered: Delivered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What follows from a correction of a delivered result, by kind."""
    folder = tmp_path_factory.mktemp("corrected")
    write_nifti(corrected_labels(), delivered.volume, folder / "mask.nii.gz")
    decision = ReviewDecision.from_document(decision_on(delivered, "corrected", comment="one voxel longer"))
    what = DecisionContext(
        READER, image=delivered.series, correction=folder / "mask.nii.gz", delivered=True, applied_at=WHEN
    )
    record = apply_decision(decision, delivered.result, folder / "out", what)
    validate(record, "review_record")
    return {one["kind"]: folder / "out" / one["file"] for one in record["objects"]}


def test_a_correction_makes_a_segmentation_of_the_corrected_mask(
    delivered: Delivered, corrected: dict[str, Path]
) -> None:
    path, before = corrected["corrected seg"], pydicom.dcmread(delivered.result.parent / "case_seg.dcm")
    assert dciodvfy_errors(path) == []
    assert np.array_equal(read_seg(path, delivered.volume).array, corrected_labels())
    found = pydicom.dcmread(path)
    assert {item.SegmentAlgorithmType for item in found.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert found.ContentCreatorName == "Lang^Eva^^Dr"
    for new, old in zip(found.SegmentSequence, before.SegmentSequence, strict=True):
        assert new.SegmentLabel == old.SegmentLabel
        assert new.SegmentedPropertyTypeCodeSequence == old.SegmentedPropertyTypeCodeSequence
        assert new.RecommendedDisplayCIELabValue == old.RecommendedDisplayCIELabValue
    assert found.SeriesInstanceUID != before.SeriesInstanceUID
    assert found.SeriesNumber != before.SeriesNumber
    assert "CORRECTED" in found.SeriesDescription


def test_the_report_on_a_correction_is_measured_anew_and_verified(
    delivered: Delivered, corrected: dict[str, Path]
) -> None:
    path, before = corrected["corrected sr"], pydicom.dcmread(report_of(delivered))
    assert dciodvfy_errors(path) == []
    found = pydicom.dcmread(path)
    assert (found.VerificationFlag, found.VerifyingObserverSequence[0].VerifyingObserverName) == (
        "VERIFIED", "Lang^Eva^^Dr",
    )  # fmt: skip
    (study,) = found.PredecessorDocumentsSequence
    (reference,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == before.SOPInstanceUID
    volumes = [
        one.value for group in read_sr(path).groups for one in group.measurements if one.name.meaning == "Volume"
    ]
    assert volumes[:2] == pytest.approx(
        [(VOXELS[0] + 6) * delivered.volume.voxel_ml, VOXELS[1] * delivered.volume.voxel_ml]
    )
    assert found.ContentSequence[-1].TextValue == "one voxel longer"
    seg = pydicom.dcmread(corrected["corrected seg"])
    evidence = {
        one.ReferencedSOPInstanceUID
        for study in found.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert seg.SOPInstanceUID in evidence


def test_what_was_delivered_before_a_correction_is_rejected(delivered: Delivered, corrected: dict[str, Path]) -> None:
    note = pydicom.dcmread(corrected["rejection"])
    named = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in note.ContentSequence
        if item.ValueType in ("IMAGE", "COMPOSITE")
    }
    old = [delivered.result.parent / f"case_{kind}.dcm" for kind in ("seg", "sr")]
    assert named == {pydicom.dcmread(path).SOPInstanceUID for path in old}


def test_only_a_person_rejects_what_is_delivered(delivered: Delivered, tmp_path: Path) -> None:
    decision = ReviewDecision.from_document(decision_on(delivered, "rejected", comment="wrong side"))
    with pytest.raises(InputRefusedError, match="no person's name"):
        apply_decision(
            decision, delivered.result, tmp_path, DecisionContext(Reviewer("root", "Clinic"), delivered=True)
        )
    record = apply_decision(decision, delivered.result, tmp_path, DecisionContext(READER, delivered=True))
    assert [one["kind"] for one in record["objects"]] == ["rejection"]
    assert dciodvfy_errors(tmp_path / "case_rejection.dcm") == []


def test_neither_names_nor_files_of_training_cases_hold_identity(
    delivered: Delivered, case: ReviewedCase, tmp_path: Path
) -> None:
    correction = corrected_to(case.image, *(corrected_labels() == n for n in (1, 2)))
    name = store_training_case(correction, case, correction_document(correction, case), tmp_path)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert [file.parent.name for file in files] == ["images", "labels", "provenance"]
    told = (tmp_path / "provenance" / f"{name}.json").read_text() + " ".join(map(str, files))
    header = bytes(read_header(files[0])) + bytes(read_header(files[1]))
    source = delivered.volume.provenance
    for word in (*HEADER.values(), "Berger", "Anna", source.study_instance_uid, source.series_instance_uid):
        assert str(word) not in told
        assert str(word).encode() not in header


def read_header(path: Path) -> bytes:
    import nibabel

    return nibabel.load(path).header.binaryblock


def test_two_results_of_a_study_are_of_one_subject_and_a_pseudonym_can_be_given(tmp_path: Path) -> None:
    names = []
    study = "1.2.826.0.1.3680043.8.498.1"
    for number, folder in enumerate(("left", "right")):
        one = deliver(tmp_path / folder, {**HEADER, "StudyInstanceUID": study, "SeriesNumber": 3 + number})
        case = read_reviewed(one.result, one.volume)
        correction = corrected_to(case.image, *(corrected_labels() == n for n in (1, 2)))
        measured = correction_document(correction, case)
        names.append(store_training_case(correction, case, measured, tmp_path / "train"))
    assert len(set(names)) == 2
    assert len({name.split("_")[0] for name in names}) == 1
    assert store_training_case(correction, case, measured, tmp_path / "train", subject="p-17").startswith("p-17_")
    with pytest.raises(InputRefusedError, match="pseudonym"):
        store_training_case(correction, case, measured, tmp_path / "train", subject="../x")


def test_an_object_that_was_split_is_a_change_and_objects_keep_their_numbers_in_training(tmp_path: Path) -> None:
    one, numbers = deliver_counted(tmp_path / "delivered"), lopsided_labels().astype(np.uint16)
    case = read_reviewed(one.result, one.volume)
    numbers[3, 1:4, 1:3] = 300
    write_nifti(numbers, case.image, tmp_path / "new.nii.gz")
    changed = read_correction(tmp_path / "new.nii.gz", case)
    measured = correction_document(changed, case)
    (row,) = measured["structures"]
    assert (row["dice"], row["surface_dice"], row["size_difference"], row["objects"]) == (1, 1, 0, [2, 3])
    # IoU 12/18 and 1 of two that are found among three
    assert row["panoptic_quality"] == pytest.approx((12 / 18 + 1) / 2 * 2 * 2 / (2 + 3), abs=1e-5)
    assert slice_axis(case.image) == 2
    # The middle of the block, in each of its two slices, is on the outline of an object now
    assert row["added_path_length"] == pytest.approx(2 * np.sqrt(np.prod(case.image.axis_spacing[:2])), abs=1e-3)
    name = store_training_case(changed, case, measured, tmp_path / "cases")
    stored = read_volume(tmp_path / "cases/labels" / f"{name}.nii.gz")
    assert np.array_equal(stored.array, numbers)
    told = json.loads((tmp_path / "cases/provenance" / f"{name}.json").read_text())
    assert (told["labels"], told["objects"]) == ({}, "Nucleus")
    record = apply_decision(
        ReviewDecision.from_document(decision_on(one, "corrected")),
        one.result,
        tmp_path / "out",
        DecisionContext(READER, case.image, tmp_path / "new.nii.gz"),
    )
    assert record["correction"]["structures"] == [row]
    objects = pydicom.dcmread(tmp_path / "out/case_corrected_seg.dcm").SegmentSequence
    assert [item.SegmentLabel for item in objects] == ["Nucleus 1", "Nucleus 2", "Nucleus 3"]


def test_a_picture_of_many_objects_keeps_their_numbers(tmp_path: Path) -> None:
    plane = np.arange(12, dtype=np.uint16).reshape(4, 3, 1) * 100
    correction._save_picture(plane, tmp_path / "p.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p.png")), plane[:, :, 0].T)


def test_structures_that_overlap_make_no_training_label(case: ReviewedCase, tmp_path: Path) -> None:
    both = corrected_labels() == 1
    with pytest.raises(InputRefusedError, match="overlaps another"):
        store_training_case(corrected_to(case.image, both, both), case, {}, tmp_path)
    assert list(tmp_path.iterdir()) == []

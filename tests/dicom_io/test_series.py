"""Finding series: what belongs together, what is set aside, what is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import (
    CT_IMAGE,
    lopsided_array,
    oblique_affine,
    save,
    write_enhanced_mr,
    write_mr_series,
    write_picture,
)
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import RLELossless, generate_uid

from dicom_io.errors import DicomIoError, SeriesSelectionError, UnreadableFileError
from dicom_io.read import read_series
from dicom_io.reading.series import SeriesRef, find_series, scan_files

SAGITTAL = oblique_affine(degrees=(90, 0, 90))


def by_kind(series: list[SeriesRef]) -> dict[str, int]:
    return {one.set_aside or one.kind: one.instance_count for one in series}


def write_object(path: Path, sop_class_uid: str, modality: str) -> Path:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.Modality, dataset.PatientName = modality, "Phantom^Lopsided"
    return save(dataset, path)


def test_series_in_nested_folders_are_found_and_foreign_files_are_counted(tmp_path: Path) -> None:
    uid = generate_uid()
    write_mr_series(tmp_path / "a" / "b", lopsided_array(), oblique_affine(), header={"SeriesInstanceUID": uid})
    write_enhanced_mr(tmp_path / "c" / "multi.dcm", lopsided_array((5, 6, 4)), oblique_affine())
    (tmp_path / "a" / "notes.txt").write_text("not DICOM")
    (tmp_path / ".lock").touch()
    classic, enhanced = find_series(tmp_path)
    assert (classic.series_instance_uid, classic.modality, classic.kind) == (uid, "MR", "image")
    assert (classic.instance_count, classic.frame_count) == (7, 7)
    assert (enhanced.instance_count, enhanced.frame_count, enhanced.orientation) == (1, 4, None)
    assert classic.notes == ("2 files beside it are not DICOM objects and were ignored",)
    row = oblique_affine()[:3, 0] / 1.25
    np.testing.assert_allclose(classic.orientation[:3], row, atol=1e-9)


@pytest.mark.parametrize(
    ("sop_class_uid", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.66.4", "seg"),
        ("1.2.840.10008.5.1.4.1.1.66.7", "seg"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "rtstruct"),
        ("1.2.840.10008.5.1.4.1.1.88.34", "sr"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "other"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "other"),
    ],
)
def test_results_and_plans_are_told_from_images_by_their_sop_class(
    tmp_path: Path, sop_class_uid: str, kind: str
) -> None:
    write_object(tmp_path / "object.dcm", sop_class_uid, "XX")
    assert [one.kind for one in find_series(tmp_path)] == [kind]


def test_a_localizer_and_captures_are_set_aside_by_name(tmp_path: Path) -> None:
    write_mr_series(tmp_path / "volume", lopsided_array(), oblique_affine())
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_mr_series(tmp_path / "scout", lopsided_array((8, 9, 2)), SAGITTAL, header=scout)
    mip = {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}
    write_mr_series(tmp_path / "mip", lopsided_array((8, 9, 3)), SAGITTAL, header=mip)
    write_picture(tmp_path / "capture.dcm", np.zeros((4, 5, 3), np.uint8))
    found = find_series(tmp_path)
    assert by_kind(found) == {"image": 7, "localizer": 2, "projection": 3, "secondary capture": 1}
    aside = [one for one in found if one.set_aside]
    assert all(one.kind == "other" and one.notes[0].startswith(f"set aside as {one.set_aside}") for one in aside)


def test_few_slices_across_a_large_stack_of_the_same_series_are_a_localizer(tmp_path: Path) -> None:
    header = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    write_mr_series(tmp_path, lopsided_array((6, 7, 8)), oblique_affine(), header=header)
    write_mr_series(tmp_path, lopsided_array((6, 7, 2)), SAGITTAL, header=header, prefix="across")
    assert by_kind(find_series(tmp_path)) == {"image": 8, "localizer, recognized by its orientation": 2}


def test_few_slices_turned_a_little_are_no_localizer_but_a_second_orientation(tmp_path: Path) -> None:
    header = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    write_mr_series(tmp_path, lopsided_array((6, 7, 8)), oblique_affine(), header=header)
    turned = oblique_affine(degrees=(12.0, -23.0, 47.0))
    write_mr_series(tmp_path, lopsided_array((6, 7, 2)), turned, header=header, prefix="turned")
    assert [(one.kind, one.instance_count) for one in find_series(tmp_path)] == [("image", 8), ("image", 2)]


def test_orientations_that_differ_by_rounding_stay_one_series(tmp_path: Path) -> None:
    def jitter(dataset: Dataset, k: int) -> None:
        cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
        dataset.ImageOrientationPatient = [f"{cosine + 4e-5 * (-1) ** k:.6f}" for cosine in cosines]

    write_mr_series(tmp_path, lopsided_array(), oblique_affine(), edit=jitter)
    assert [one.instance_count for one in find_series(tmp_path)] == [7]


def test_files_without_series_uid_are_grouped_by_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_mr_series(tmp_path / name, lopsided_array(), oblique_affine(), header={"SeriesInstanceUID": ""})
    found = find_series(tmp_path)
    assert [one.files[0].parent.name for one in found] == ["first", "second"]
    assert "grouped by folder" in found[0].notes[0]


def test_a_data_set_without_preamble_is_found(tmp_path: Path) -> None:
    path = write_mr_series(tmp_path, lopsided_array((4, 5, 1)), oblique_affine())[0]
    dataset = dcmread(path)
    path.write_bytes(path.read_bytes()[path.read_bytes().index(b"\x08\x00\x08\x00") :])
    assert [one.series_instance_uid for one in find_series(tmp_path)] == [dataset.SeriesInstanceUID]


def test_a_dicomdir_is_an_index_and_no_series(tmp_path: Path) -> None:
    write_mr_series(tmp_path, lopsided_array(), oblique_affine())
    write_object(tmp_path / "DICOMDIR", "1.2.840.10008.1.3.10", "")
    assert scan_files(sorted(tmp_path.iterdir())).foreign == (tmp_path / "DICOMDIR",)


def test_an_empty_folder_a_missing_one_and_one_without_dicom_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SeriesSelectionError, match="holds no file"):
        find_series(tmp_path)
    with pytest.raises(SeriesSelectionError, match="is not a folder"):
        find_series(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(SeriesSelectionError, match=r"no DICOM object among 1 file .*notes\.txt"):
        find_series(tmp_path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_anywhere_is_refused_by_name_from_its_header_alone(tmp_path: Path, kept: float) -> None:
    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine(), header=CT_IMAGE)[3]
    whole = path.read_bytes()
    path.write_bytes(whole[: max(140, int(len(whole) * kept))])
    with pytest.raises(UnreadableFileError, match=path.name) as refusal:
        find_series(tmp_path)
    assert "Lopsided" not in str(refusal.value)


def test_a_cut_file_of_compressed_pixels_is_refused_by_name(tmp_path: Path) -> None:
    path = write_mr_series(tmp_path, lopsided_array(), oblique_affine())[3]
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert len(find_series(tmp_path)) == 1
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnreadableFileError, match=f"{path.name} is broken .its compressed pixel data run past"):
        find_series(tmp_path)


def test_a_cut_file_without_pixels_is_refused_by_name(tmp_path: Path) -> None:
    path = write_object(tmp_path / "report.dcm", "1.2.840.10008.5.1.4.1.1.88.34", "SR")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UnreadableFileError, match=r"report\.dcm is broken"):
        find_series(tmp_path)


def test_of_the_shared_head_ct_only_the_axial_series_is_an_image(shared_data: Path) -> None:
    found = find_series(shared_data / "dicom_series" / "ct_philips_head_mixed")
    assert [(one.set_aside or one.kind, one.instance_count) for one in found] == [
        ("localizer", 1),
        ("image", 28),
        ("localizer", 3),
        ("secondary capture", 3),
    ]


def test_no_hostile_file_raises_anything_but_a_refusal(shared_data: Path) -> None:
    refused = {}
    for path in sorted(path for path in (shared_data / "hostile").rglob("*") if path.is_file()):
        try:
            scan_files([path])
        except DicomIoError as refusal:
            refused[path.name] = str(refusal)
    assert {"MR_truncated.dcm", "rtplan_truncated.dcm", "badVR.dcm", "zipMR.gz"} <= set(refused)
    assert not {"CT_small.dcm", "MR_small_RLE.dcm", "test-SR.dcm", "liver_1frame.dcm"} & set(refused)
    assert all(name in text for name, text in refused.items())


def test_a_saved_page_without_a_place_is_set_aside_and_a_slice_that_lost_its_place_is_named(tmp_path: Path) -> None:
    array = lopsided_array()
    write_mr_series(
        tmp_path, array, oblique_affine(), header={"SeriesInstanceUID": "1.2.3.8", "StudyInstanceUID": "1.2.3.7"}
    )
    page = dcmread(sorted(tmp_path.iterdir())[0])
    page.SOPInstanceUID = page.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    del page.ImagePositionPatient, page.ImageOrientationPatient
    page.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    page.save_as(tmp_path / "page.dcm")
    with pytest.raises(DicomIoError, match=r"orientation none \(the first .*page\.dcm\)"):
        read_series(tmp_path)
    page.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    page.save_as(tmp_path / "page.dcm")
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, array)
    assert any("page without a place, the first" in note and "page.dcm" in note for note in volume.provenance.notes)


def test_a_medium_may_call_its_files_in_lower_case_and_with_an_ending(tmp_path: Path) -> None:
    """PS3.10 8.2: a File ID is mapped to names of the medium."""
    files = FileSet()
    for file in write_mr_series(tmp_path / "series", lopsided_array(), oblique_affine(), header={"PatientID": "1"}):
        files.add(file)
    files.write(tmp_path / "cd")
    for path in sorted((tmp_path / "cd").rglob("*"), key=lambda path: -len(path.parts)):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower() + ("" if path.is_dir() else ".dcm")))
    np.testing.assert_array_equal(read_series(tmp_path / "cd/DICOMDIR").array, lopsided_array())
    first = next((tmp_path / "cd").rglob("*.dcm"))
    first.with_suffix(".ima").write_bytes(first.read_bytes())  # which of the two is meant is unknown
    with pytest.raises(UnreadableFileError, match="of which 1 are absent"):
        read_series(tmp_path / "cd/DICOMDIR")

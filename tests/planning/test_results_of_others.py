"""Label files of another program: what is stated of them is true of new ones, wrong ones are held back, others are refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from once import made_once
from other_program import AFFINE_RAS, BY, NAMED, SUBJECTS, VALUES, case, write_cases
from phantoms import write_mr_series
from PIL import Image
from result_phantoms import dciodvfy_errors
from scipy import ndimage
from shell import Run, shell

from dicom_io.coding import Segment
from dicom_io.segmentation import Segmentation
from dicom_io.volume import LPS_FROM_RAS, Provenance, Volume
from monai_unet_app.calibration.label_statements import SPOILT, LabelObservations, moved, spoilt
from monai_unet_app.confidence.assessment import assess
from monai_unet_app.confidence.label_features import describe_labels, features_of_image
from monai_unet_app.confidence.results_bundle import Program, results_bundle
from monai_unet_app.data.schemas import validate
from monai_unet_app.evaluate import LabelFolders, choose_results, evaluate_results
from monai_unet_app.evaluate.label_folders import LabelCase

run = pytest.fixture(shell)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images, labels and results of SUBJECTS people; not to be changed."""

    def make(folder: Path) -> None:
        write_cases(folder, range(SUBJECTS))

    return made_once(tmp_path_factory, "results_of_a_program", make)


def stated(run: Run, folders: Path, output: Path, *words: object) -> Path:
    files = ("--results", folders / "results", "--labels", folders / "labels", "--output", output)
    answer = run("calibrate", *files, *BY, *NAMED, "--unseen", *words, "--json")
    assert answer.code == 0, answer.err
    return output


@pytest.fixture(scope="module")
def model(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that is fitted to them; not to be changed."""
    from monai_unet_app.cli import main

    def make(folder: Path) -> None:
        files = ["--results", "results", "--labels", "labels", "--images", "images"]
        words = [str(folders / word) if word in ("results", "labels", "images") else word for word in files]
        assert main(["calibrate", *words, *BY, *NAMED, "--unseen", "--output", str(folder / "segmenter")]) == 0

    return made_once(tmp_path_factory, "model_of_a_program", make) / "segmenter"


def on_image(image: NDArray, labels: NDArray, segments: tuple[Segment, ...]) -> Segmentation:
    numbers = np.select([labels == value for value in VALUES], [1, 2]).astype(np.uint8)
    return Segmentation(Volume.from_ras(image.astype(np.float32), AFFINE_RAS, Provenance("nifti")), numbers, segments)


def test_intervals_hold_the_true_sizes_of_new_people_although_all_masks_are_too_small(model: Path) -> None:
    bundle = results_bundle(model)
    assert bundle is not None
    confidence, held, raw = bundle.confidence_about(bundle.program), [], []
    for seed in range(100, 140):
        image, truth, made = case(seed)
        result, true = (on_image(image, labels, bundle.segments) for labels in (made, truth))
        assessment = assess(confidence, result, features_of_image(result.image))
        for own, wanted in zip(assessment.structures, true.structures, strict=True):
            assert own.size_interval is not None
            held.append(own.size_interval[0] <= wanted.size <= own.size_interval[1])
            raw.append(own.size < wanted.size)
    assert np.mean(raw) > 0.9
    assert np.mean(held) > 0.8


def wrong(kind: str, made: NDArray, other: NDArray) -> NDArray:
    """Labels with a fault that no gate was shown."""
    if kind == "another person's":
        return moved(other, (2, -1, 1))
    if kind == "exchanged":
        return np.select([made == 3, made == 7], [7, 3]).astype(np.uint8)
    if kind == "dilated":
        far, nearest = ndimage.distance_transform_edt(made == 0, return_indices=True)
        return np.where(far <= 2, made[tuple(nearest)], 0).astype(np.uint8)
    depth = ndimage.distance_transform_edt(made)
    return np.where(depth >= np.quantile(depth[made > 0], 6 / 7), made, 0).astype(np.uint8)


def test_the_gate_knows_faults_that_it_was_not_shown_and_keeps_sound_results(model: Path) -> None:
    bundle = results_bundle(model)
    assert bundle is not None
    confidence = bundle.confidence_about(bundle.program)

    def predicted(image: NDArray, labels: NDArray) -> tuple[float, str | None]:
        result = on_image(image, labels, bundle.segments)
        assessment = assess(confidence, result, features_of_image(result.image))
        return min(one.grade.dice for one in assessment.structures if one.grade), assessment.verdict

    cases = [case(seed) for seed in range(200, 220)]
    sound = [predicted(image, made) for image, _, made in cases]
    assert sum(verdict != "accept" for _, verdict in sound) <= 2
    for kind in ("a seventh", "another person's", "dilated", "exchanged"):
        spoiled = [predicted(image, wrong(kind, made, cases[n - 1][2]))[0] for n, (image, _, made) in enumerate(cases)]
        below = np.mean([[good > bad for good, _ in sound] for bad in spoiled])
        assert below >= 0.9, kind


def test_without_images_only_form_and_place_count(run: Run, folders: Path, tmp_path: Path) -> None:
    bundle = results_bundle(stated(run, folders, tmp_path / "model"))
    assert bundle is not None
    confidence = bundle.confidence_about(bundle.program)
    assert confidence.gate is not None
    assert "agreement" not in confidence.gate.features
    assert "without images" in confidence.why_not["shift"]
    assert "No image was given" in (bundle.root / "docs/README.md").read_text()
    image, _, made = case(300)
    sound = assess(confidence, on_image(image, made, bundle.segments), None)
    exchanged = assess(confidence, on_image(image, wrong("exchanged", made, made), bundle.segments), None)
    assert (sound.verdict, exchanged.verdict) == ("accept", "reject")


def test_new_labels_become_dicom_with_what_is_stated_of_them(run: Run, model: Path, tmp_path: Path) -> None:
    image, _, made = case(400)
    write_mr_series(tmp_path / "series", image + 1000, LPS_FROM_RAS @ AFFINE_RAS)
    files = ("--source", tmp_path / "series", "--bundle", model, "--format", "seg,sr", "--json")

    def written(labels: NDArray, name: str, *by: str) -> tuple[int, dict]:
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE_RAS), tmp_path / f"{name}.nii.gz")
        answer = run("dicomize", "--labels", tmp_path / f"{name}.nii.gz", *by, *files, "--output", tmp_path / name)
        document = json.loads((tmp_path / name / f"{name}_result.json").read_text())
        validate(document, "result")
        return answer.code, document

    code, sound = written(made, "sound", *BY)
    assert (code, sound["assessment"]["verdict"]) == (0, "accept")
    # The statements were fitted to NIfTI files, whose axes run otherwise
    assert sound["assessment"]["shift"] < sound["assessment"]["shift_limit"]
    assert "dice_rank_correlation" not in sound["assessment"]
    for row in sound["structures"]:
        assert row["volume_interval_ml"][0] < row["volume_interval_ml"][1]
    report = tmp_path / "sound/sound_sr.dcm"
    assert not dciodvfy_errors(report)
    assert "accept, Dice at least" in str(pydicom.dcmread(report))

    code, other = written(made, "other", "--algorithm", "Segmenter 1.1")
    assert (code, other["assessment"]["verdict"]) == (0, "review")
    assert "was fitted to results of Segmenter 1.0, these are of Segmenter 1.1" in other["assessment"]["reasons"][0]
    assert "volume_interval_ml" not in other["structures"][0]

    code, bad = written(wrong("exchanged", made, made), "bad", *BY)
    assert (code, bad["assessment"]["verdict"], bad["files"]) == (3, "reject", {})
    code, bad = written(wrong("exchanged", made, made), "bad", *BY, "--deliver-rejected")
    assert (code, sorted(bad["files"])) == (0, ["seg", "sr"])

    code, half = written(np.where(made == 3, made, 0).astype(np.uint8), "half", *BY)
    assert [row["voxels"] > 0 for row in half["structures"]] == [True, False]
    assert any("nothing was found" in reason for reason in half["assessment"]["reasons"])

    masks = run("dicomize", "--labels", model / "configs", *BY, *files, "--output", tmp_path / "masks")
    assert (masks.code, "holds no mask" in masks.err) == (3, True)

    # What is stated is part of what a result is: other statements, another report
    plain = ("--source", tmp_path / "series", "--format", "seg,sr", "--output", tmp_path / "plain")
    assert run("dicomize", "--labels", tmp_path / "sound.nii.gz", *BY, *NAMED, *plain).code == 0
    with_and_without = [pydicom.dcmread(path).SOPInstanceUID for path in (report, tmp_path / "plain/sound_sr.dcm")]
    assert len(set(with_and_without)) == 2


def test_a_bundle_without_a_network_is_refused_by_what_needs_one(run: Run, model: Path, tmp_path: Path) -> None:
    for words in (
        ("predict", "--bundle", model, "--input", tmp_path, "--output", tmp_path / "out"),
        ("bundle", "export", "--bundle", model, "--to", "openvino"),
        ("train", "--bundle", model, "--data", tmp_path, "--output", tmp_path / "out"),
    ):
        answer = run(*words)
        assert answer.code != 0
        assert "has no network" in answer.err


def test_doctor_lists_it_and_sees_what_is_broken(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "bundles/segmenter")
    monkeypatch.setenv("MONAI_UNET_BUNDLES", str(tmp_path / "bundles"))
    listed = {row["name"]: row for row in json.loads(run("doctor", "--json").out)["bundles"]}
    assert (listed["segmenter"]["task"], listed["segmenter"]["trained"]) == (
        "what results of Segmenter 1.0 are worth",
        None,
    )
    metadata = tmp_path / "bundles/segmenter/configs/metadata.json"
    metadata.write_text(metadata.read_text().replace('"version": "1.0"', '"version": "1.1"'))
    (row,) = [row for row in json.loads(run("doctor", "--json").out)["checks"] if row["what"] == "segmenter"]
    assert (row["state"], "fitted to other structures or another program" in row["found"]) == ("broken", True)


def test_what_cannot_be_judged_is_refused_before_work_starts(run: Run, folders: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for folder in ("labels", "results"):
        (few / folder).mkdir(parents=True)
        for seed in range(5):
            (few / folder / f"case{seed:02}.nii.gz").symlink_to(folders / folder / f"case{seed:02}.nii.gz")

    def refused(root: Path, *words: object) -> tuple[int, str]:
        files = ("--results", root / "results", "--labels", root / "labels", "--output", tmp_path / "model")
        answer = run("calibrate", *files, *words)
        assert not (tmp_path / "model").exists()
        return answer.code, answer.err

    for words, code, text in (
        ((*BY, *NAMED, "--unseen"), 3, "5 case(s) of 5 subject(s) are too few"),
        ((*BY, *NAMED), 2, "say so by --unseen"),
        ((*NAMED, "--unseen"), 2, "--results needs --algorithm"),
        ((*BY, "--unseen", "--tta"), 2, "--tta is about a bundle with a network"),
    ):
        found, err = refused(few, *words)
        assert (found, text in err) == (code, True)
    code, err = refused(folders, *BY, "--unseen")
    assert (code, "nothing says what the values in results mean" in err) == (3, True)
    code, err = refused(folders, *BY, *NAMED, "--structure", "9=liver", "--unseen")
    assert (code, "several values of results have the name liver" in err) == (3, True)
    (few / "results/case03.nii.gz").unlink()
    code, err = refused(few, *BY, *NAMED, "--unseen")
    assert (code, "lacks results of 1 of 5 labelled case(s) (case03)" in err) == (3, True)


def test_features_of_an_image_do_not_depend_on_the_order_of_its_axes() -> None:
    image, _, _ = case(800)
    stored = nibabel.Nifti1Image(image, AFFINE_RAS)
    wanted = None
    for axes in ("RAS", "LPS", "PIL", "SAR"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(stored.affine), nibabel.orientations.axcodes2ornt(axes)
        )
        turned = stored.as_reoriented(turn)
        values = np.asarray(turned.dataobj).astype(np.float32)
        found = features_of_image(Volume.from_ras(values, turned.affine, Provenance("nifti")))
        wanted = found if wanted is None else wanted
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_a_rare_structure_takes_nothing_from_the_others(run: Run, folders: Path, tmp_path: Path) -> None:
    for folder in ("labels", "results"):
        shutil.copytree(folders / folder, tmp_path / folder)
        for seed in range(1, SUBJECTS):  # only one person has a spleen
            stored = nibabel.load(file := tmp_path / f"{folder}/case{seed:02}.nii.gz")
            array = np.asarray(stored.dataobj)
            nibabel.save(nibabel.Nifti1Image(np.where(array == 7, 0, array).astype(np.uint8), stored.affine), file)
    bundle = results_bundle(stated(run, tmp_path, tmp_path / "model"))
    assert bundle is not None
    confidence = bundle.confidence_about(bundle.program)
    assert confidence.gate is not None
    assert confidence.border is not None
    assert confidence.sizes is not None
    assert confidence.sizes.interval(2, 1.0) is None
    assert confidence.sizes.interval(1, 1.0) is not None
    image, _, made = case(900)
    liver, spleen = assess(confidence, on_image(image, made, bundle.segments), None).structures
    assert (liver.verdict, spleen.verdict) == ("accept", "review")


def test_only_named_values_are_judged_and_only_where_there_is_truth(
    run: Run, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--results", folders / "results", "--labels", folders / "labels", *BY, "--unseen")
    liver = run("calibrate", *files, "--structure", "3=liver", "--output", tmp_path / "liver", "--json")
    assert liver.code == 0, liver.err
    assert list(json.loads(liver.out)["statements"]["Segmenter 1.0"]["sizes_off"]["relative"]) == ["Liver"]
    never = run("calibrate", *files, *NAMED, "--structure", "9=pancreas", "--output", tmp_path / "never")
    assert (never.code, "holds no voxel of Pancreas in any case" in never.err) == (3, True)
    image, _, made = case(1000)
    write_mr_series(tmp_path / "series", image + 1000, LPS_FROM_RAS @ AFFINE_RAS)
    nibabel.save(nibabel.Nifti1Image(made, AFFINE_RAS), tmp_path / "new.nii.gz")
    place = ("--source", tmp_path / "series", "--bundle", tmp_path / "liver", "--output", tmp_path / "out")
    answer = run("dicomize", "--labels", tmp_path / "new.nii.gz", *BY, *place)
    assert answer.code == 0, answer.err
    assert "1 value(s) are left out, of which --bundle says nothing: 7" in answer.out
    found = json.loads((tmp_path / "out/new_result.json").read_text())["structures"]
    assert [(row["label"], row["voxels"]) for row in found] == [("Liver", int((made == 3).sum()))]


def test_images_may_be_named_as_nnunet_names_them_and_ignored_voxels_are_refused(
    run: Run, folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "imagesTs").mkdir()
    for file in (folders / "images").iterdir():
        (tmp_path / "imagesTs" / file.name.replace(".nii.gz", "_0000.nii.gz")).symlink_to(file)
    shutil.copytree(folders / "results", tmp_path / "results")
    files = ("--results", tmp_path / "results", "--labels", folders / "labels", "--images", tmp_path / "imagesTs")
    made = run("calibrate", *files, *BY, *NAMED, "--unseen", "--output", tmp_path / "model")
    assert made.code == 0, made.err
    labels = {"background": 0, "liver": 3, "spleen": 1, "ignore": 7}
    (tmp_path / "results/dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels}))
    refused = run("calibrate", *files, *BY, *NAMED, "--unseen", "--output", tmp_path / "other")
    assert (refused.code, "holds the value that dataset.json calls ignored" in refused.err) == (3, True)
    next((tmp_path / "imagesTs").iterdir()).unlink()
    refused = run("calibrate", *files, *BY, *NAMED, "--unseen", "--output", tmp_path / "other")
    assert (refused.code, "lacks the image of 1 of 24 label file(s)" in refused.err) == (3, True)


def test_a_structure_that_no_result_had_is_to_be_reviewed() -> None:
    segments, observed = results_segments(), LabelObservations(edges=False)
    cases = [
        (on_image(image, np.where(made == 3, made, 0), segments), on_image(image, truth, segments))
        for image, truth, made in map(case, range(20))
    ]
    observed.collect((LabelCase({"subject": str(n)}, *pair) for n, pair in enumerate(cases)), 20)
    confidence = observed.fitted()
    image, truth, _ = case(700)
    structures = assess(confidence, on_image(image, truth, segments), None).structures
    assert structures[1].grade is not None
    assert structures[1].grade.verdict == "review"
    assert "too few results that the gate was fitted to have it" in structures[1].reasons


def test_faults_are_what_they_are_called() -> None:
    image, _, made = case(500)
    segments = results_segments()
    result = on_image(image, made, segments)
    halved = spoilt(result, "halved", 1)
    for own, before in zip(halved.structures, result.structures, strict=True):
        assert own.voxels == before.voxels - before.voxels // 2
    mirrored = spoilt(result, "mirrored", 2).labels
    assert any(np.array_equal(mirrored, np.flip(result.labels, axis)) for axis in range(3))
    away = np.array(
        [[np.mean(np.nonzero(labels == 1), axis=1)] for labels in (spoilt(result, "moved", 3).labels, made // 3)]
    )
    assert (np.abs(away[0] - away[1]) > 1).all()
    np.testing.assert_array_equal(moved(np.arange(4.0).reshape(1, 1, 4), (0, 0, -1)).ravel(), [1, 2, 3, 0])


def test_features_tell_place_edges_and_brightness() -> None:
    image, truth, _ = case(600)
    liver, spleen = describe_labels(on_image(image, truth, results_segments()), edges=True)
    assert liver is not None
    assert spleen is not None
    steps = LPS_FROM_RAS[:3, :3] @ AFFINE_RAS[:3, :3]
    towards = steps @ (np.mean(np.nonzero(truth == 7), axis=1) - np.mean(np.nonzero(truth == 3), axis=1))
    between = np.array([spleen.left - liver.left, spleen.back - liver.back, spleen.up - liver.up])
    np.testing.assert_allclose(between / np.linalg.norm(between), towards / np.linalg.norm(towards), atol=1e-6)
    assert np.exp(liver.log_share) + np.exp(spleen.log_share) == pytest.approx(1)
    assert liver.agreement > 1.5
    assert liver.contrast > 1
    apart = describe_labels(on_image(image, moved(truth, (4, 4, 4)), results_segments()), edges=True)[0]
    assert apart is not None
    assert apart.agreement < liver.agreement / 1.3


def results_segments() -> tuple[Segment, ...]:
    from monai_unet_app.data.coding import named_segment
    from monai_unet_app.data.structures import StatedStructure

    return tuple(named_segment(n, StatedStructure(name)) for n, name in enumerate(VALUES.values(), 1))


@pytest.mark.parametrize(("edges", "faults"), [(True, {*SPOILT}), (False, {*SPOILT} - {"moved"})])
def test_every_case_is_shown_with_every_fault_that_can_be_seen(edges: bool, faults: set[str]) -> None:
    observed, segments = LabelObservations(edges), results_segments()
    people = [f"person {seed}" for seed in range(3)]
    cases = [
        [on_image(image, labels, segments) for labels in (made, truth)] for image, truth, made in map(case, range(3))
    ]
    rows = [{"subject": person} for person in people]
    observed.collect((LabelCase(row, *pair) for row, pair in zip(rows, cases, strict=True)), 3)
    for person in people:
        own = [sample for sample in observed.samples if sample.subject == person]
        assert {sample.kind for sample in own} == {"sound", *faults}
    assert [row.subject for row in observed.measured] == [person for person in people for _ in segments]


@pytest.fixture(scope="module")
def others(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images, labels and results of 16 other people, and of two that the model was fitted to, under other names."""

    def make(root: Path) -> None:
        write_cases(root, range(400, 416))
        for known in ("case03", "case07"):
            for folder in ("images", "labels", "results"):
                shutil.copy(folders / folder / f"{known}.nii.gz", root / folder / f"again_{known}.nii.gz")

    return made_once(tmp_path_factory, "results_of_other_people", make)


@pytest.fixture
def measured(run: Run, model: Path, others: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out`: the report on the other people's results, by the model; `err`: what was said meanwhile. Not to be changed."""

    def make(folder: Path) -> None:
        answer = run("evaluate", *files_of(others), "--bundle", model, "--output", folder / "out")
        assert answer.code == 0, answer.err
        (folder / "err").write_text(answer.err)

    return made_once(tmp_path_factory, "measured_results_of_other_people", make)


@pytest.fixture
def bare(run: Run, others: Path, tmp_path_factory: pytest.TempPathFactory, without_pages: None) -> Path:
    """The figures of the other people's results without a model, and no pages; not to be changed."""

    def make(folder: Path) -> None:
        answer = run("evaluate", *files_of(others), *BY, *NAMED, "--output", folder / "out")
        assert answer.code == 0, answer.err

    return made_once(tmp_path_factory, "bare_results_of_other_people", make) / "out"


def overlap(first: NDArray, second: NDArray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def files_of(root: Path, *, images: bool = True) -> tuple[object, ...]:
    given = ("--images", root / "images") if images else ()
    return ("--results", root / "results", "--labels", root / "labels", *given)


def test_results_of_others_are_measured_as_those_of_a_network_and_what_is_stated_is_held_against_the_truth(
    measured: Path,
) -> None:
    said = (measured / "err").read_text()
    assert "16 of 18 result(s) of Segmenter 1.0; segmenter was fitted to 2 of them, which are left out" in said
    metrics = json.loads((measured / "out/metrics.json").read_text())
    validate(metrics, "metrics")
    wanted = {
        name: np.mean([overlap(made == value, truth == value) for _, truth, made in map(case, range(400, 416))])
        for value, name in ((3, "Liver"), (7, "Spleen"))
    }
    assert metrics["dice"]["per_class"] == pytest.approx(wanted)
    assert metrics["bundle"]["name"] == "Segmenter"
    assert metrics["data"]["cases"] == 16
    assert not {"ece", "ece_band", "calibration"} & metrics.keys()
    assert "ece" not in metrics["definitions"]
    assert all("ECE" not in target["name"] for target in metrics["targets"])
    stated = metrics["statements"]
    assert stated["sizes"]["Liver"]["observed"] >= 0.8
    assert stated["gate"]
    assert stated["shift"]["cases"] == 16
    report = (measured / "out/report.html").read_text()
    assert "Can the probabilities be trusted?" not in report
    assert "Worst, median and best case" in report
    assert "ECE" not in re.sub(r"base64,[^\"]*", "", report)
    table = (measured / "out/cases.csv").read_text().splitlines()
    column = table[0].split(",").index("ece_whole")
    assert {line.split(",")[column] for line in table[1:]} == {""}


@pytest.mark.usefixtures("without_pages")
def test_cases_that_the_model_was_fitted_to_are_measured_on_request_and_said_to_be(
    run: Run, model: Path, others: Path, tmp_path: Path
) -> None:
    words = ("--bundle", model, "--partition", "all", "--output", tmp_path / "out")
    answer = run("evaluate", *files_of(others), *words)
    assert answer.code == 0, answer.err
    assert json.loads((tmp_path / "out/metrics.json").read_text())["data"]["seen"] == {"calibration": 2}


@pytest.mark.usefixtures("without_pages")
def test_results_are_compared_with_others_also_without_anything_fitted(
    run: Run, others: Path, bare: Path, tmp_path: Path
) -> None:
    worse = tmp_path / "worse"
    shutil.copytree(others, worse)
    for file in (worse / "results").iterdir():
        stored = nibabel.load(file)
        labels = np.asarray(stored.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.where(ndimage.binary_erosion(labels > 0), labels, 0), stored.affine), file)
    answer = run("evaluate", *files_of(worse), *BY, *NAMED, "--output", tmp_path / "second")
    assert answer.code == 0, answer.err
    answer = run("compare", "--first", bare, "--second", tmp_path / "second", "--json")
    assert answer.code == 0, answer.err
    scores = {(row["score"], row["class"]): row for row in json.loads(answer.out)["scores"]}
    assert scores["dice", "mean"]["word"] == "worse"
    assert scores["ece_whole", "top label"]["difference"] is None
    same = ("--first", bare, "--second", bare)
    gated = run("compare", *same, "--fail-if-worse", "--json")
    assert json.loads(gated.out)["outcome"] == "undecided"


@pytest.mark.usefixtures("without_pages")
def test_a_result_that_cannot_be_placed_is_listed_and_the_others_are_measured(
    run: Run, others: Path, tmp_path: Path
) -> None:
    root = tmp_path / "others"
    shutil.copytree(others, root)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), AFFINE_RAS), root / "results/case402.nii.gz")
    answer = run("evaluate", *files_of(root, images=False), *BY, *NAMED, "--output", tmp_path / "out", "--json")
    assert answer.code == 3
    about = json.loads((tmp_path / "out/metrics.json").read_text())["data"]
    assert (about["not_measured"], about["cases"]) == (["case402"], 17)
    assert "before the image does" in json.loads(answer.out)["problems"][0]


@pytest.mark.usefixtures("without_pages")
def test_another_version_of_the_program_is_measured_and_nothing_is_stated_of_it(
    model: Path, others: Path, tmp_path: Path
) -> None:
    bundle = results_bundle(model)
    program = Program("Segmenter", "2.0")
    folders = LabelFolders(others / "results", others / "labels", others / "images", program, VALUES)
    chosen = choose_results(folders, bundle, seen=False)
    found = evaluate_results(folders, chosen, bundle, tmp_path / "out")
    assert found.metrics["dice"]["mean"] > 0.5
    assert {one.assessment.verdict for one in found.outcomes.values()} == {"review"}


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--folds",), 2, "--folds is about a bundle with a network"),
        (("--partition", "test"), 2, "--partition test is about a bundle with a network"),
        (("--bundle", "hippocampus_mri_unet3d"), 2, "is a bundle with a network"),
        ((), 3, "nothing says what the values in results mean"),
    ],
)
def test_evaluate_refuses_what_label_files_have_not(
    run: Run, others: Path, tmp_path: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    answer = run("evaluate", *files_of(others), *BY, *words, "--output", tmp_path / "out")
    assert (answer.code, text in answer.err) == (code, True), answer.err
    assert not (tmp_path / "out").exists()


def as_masks(labels: Path, folder: Path, names: dict[int, str] = VALUES) -> None:
    """A label map as a folder with a mask for each structure."""
    stored = nibabel.load(labels)
    folder.mkdir(parents=True)
    for value, name in names.items():
        mask = (np.asarray(stored.dataobj) == value).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, stored.affine), folder / f"{name}.nii.gz")


def test_folders_of_masks_say_the_same_as_label_maps(run: Run, folders: Path, model: Path, tmp_path: Path) -> None:
    for file in sorted((folders / "results").iterdir()):
        as_masks(file, tmp_path / "results" / file.name.removesuffix(".nii.gz"))
    files = ("--results", tmp_path / "results", "--labels", folders / "labels", "--images", folders / "images")
    made = run("calibrate", *files, *BY, *NAMED, "--unseen", "--output", tmp_path / "model")
    assert made.code == 0, made.err
    both = [results_bundle(root) for root in (model, tmp_path / "model")]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].sha256 == both[1].sha256

    image, _, labels = case(450)
    write_mr_series(tmp_path / "series", image + 1000, LPS_FROM_RAS @ AFFINE_RAS)
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE_RAS), tmp_path / "new.nii.gz")
    as_masks(tmp_path / "new.nii.gz", tmp_path / "masks/new", VALUES | {1: "kidney_left"})
    words = ("--source", tmp_path / "series", *BY, "--bundle", model, "--json")
    rows = []
    for name, place in (("map", tmp_path / "new.nii.gz"), ("masks", tmp_path / "masks/new")):
        answer = run("dicomize", "--labels", place, *words, "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        told = json.loads(answer.out)
        rows.append((told["result"]["structures"], told["result"]["assessment"]["verdict"], told["unknown"]))
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("without_pages")
def test_true_labels_may_be_folders_of_masks_too_and_other_masks_are_said(
    run: Run, others: Path, bare: Path, tmp_path: Path
) -> None:
    for kind in ("results", "labels"):
        for file in sorted((others / kind).iterdir()):
            as_masks(file, tmp_path / kind / file.name.removesuffix(".nii.gz") / "segmentations")
    files = ("--results", tmp_path / "results", "--labels", tmp_path / "labels")
    answer = run("evaluate", *files, "--images", others / "images", *BY, "--output", tmp_path / "out")
    assert answer.code == 0, answer.err
    found, wanted = (json.loads((root / "metrics.json").read_text())["dice"] for root in (tmp_path / "out", bare))
    assert found == wanted
    alone = run("evaluate", *files, *BY, "--output", tmp_path / "alone")
    assert alone.code == 0, alone.err


def test_a_true_mask_that_is_missing_is_not_an_empty_one(run: Run, others: Path, tmp_path: Path) -> None:
    for file in sorted((others / "labels").iterdir()):
        as_masks(file, tmp_path / "true" / file.name.removesuffix(".nii.gz"))
    files = ("--results", others / "results", "--labels", tmp_path / "true", "--output", tmp_path / "out")
    first = sorted((tmp_path / "true").iterdir())[0]
    sorted(first.iterdir())[0].unlink()
    answer = run("evaluate", *files, *BY, *NAMED)
    assert answer.code == 3
    assert f"1 case(s) of true lack masks that others have ({first.name}: " in " ".join(answer.err.split())


def test_results_are_not_their_own_truth(run: Run, others: Path, tmp_path: Path) -> None:
    files = (
        "--results",
        others / "labels",
        "--labels",
        others / "results" / ".." / "labels",
        "--output",
        tmp_path / "out",
    )
    answer = run("evaluate", *files, *BY, *NAMED)
    assert (answer.code, "--results and --labels are both labels" in answer.err) == (3, True), answer.err


@pytest.mark.usefixtures("without_pages")
def test_results_on_another_grid_are_told(run: Run, others: Path, tmp_path: Path) -> None:
    shutil.copytree(others / "results", tmp_path / "results")
    first = sorted((tmp_path / "results").glob("*.nii.gz"))[0]
    stored = nibabel.load(first)
    labels, affine = np.asarray(stored.dataobj).repeat(2, axis=0), stored.affine @ np.diag([0.5, 1, 1, 1])
    affine[:3, 3] -= stored.affine[:3, 0] / 4
    nibabel.save(nibabel.Nifti1Image(labels, affine), first)
    files = ("--labels", others / "labels", "--images", others / "images", *BY, *NAMED)
    for results, told in ((others / "results", 0), (tmp_path / "results", 1)):
        answer = run("evaluate", "--results", results, *files, "--output", tmp_path / f"out{told}")
        assert answer.code == 0, answer.err
        assert answer.err.count("1 label file(s) lie on another grid than their image") == told
    one, other = (json.loads((tmp_path / f"out{n}/metrics.json").read_text())["dice"] for n in (0, 1))
    assert one == other


@pytest.mark.parametrize("place", ["results", "labels"])
def test_pictures_of_another_size_are_refused(run: Run, place: str, tmp_path: Path) -> None:
    for folder in ("results", "labels", "images"):
        (tmp_path / folder).mkdir()
        size = (32, 24) if folder == place else (16, 12)
        Image.fromarray(np.eye(*size, dtype=np.uint8)).save(tmp_path / folder / "a.png")
    files = [word for name in ("results", "labels", "images") for word in (f"--{name}", tmp_path / name)]
    answer = run("evaluate", *files, *BY, "--structure", "1=nucleus", "--output", tmp_path / "out")
    assert answer.code == 3
    assert "a.png has 24 x 32 pixels, its image 12 x 16; the same size is needed" in " ".join(answer.err.split())


def test_masks_that_share_voxels_have_no_statement(run: Run, model: Path, tmp_path: Path) -> None:
    image, _, labels = case(451)
    write_mr_series(tmp_path / "series", image + 1000, LPS_FROM_RAS @ AFFINE_RAS)
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE_RAS), tmp_path / "new.nii.gz")
    as_masks(tmp_path / "new.nii.gz", tmp_path / "masks", {3: "liver", 7: "spleen"})
    shutil.copy(tmp_path / "masks/liver.nii.gz", tmp_path / "masks/spleen.nii.gz")
    words = ("--source", tmp_path / "series", *BY, "--bundle", model, "--output", tmp_path / "out")
    answer = run("dicomize", "--labels", tmp_path / "masks", *words)
    assert (answer.code, "share voxels" in answer.err) == (3, True), answer.err


def test_values_that_the_model_does_not_know_are_left_out_where_it_is_measured(
    run: Run, model: Path, others: Path, measured: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("without_pages")  # which `measured` has
    root = tmp_path / "others"
    shutil.copytree(others, root)
    for file in (root / "results").iterdir():
        stored = nibabel.load(file)
        labels = np.asarray(stored.dataobj).copy()
        labels[0, 0, 0] = 99
        nibabel.save(nibabel.Nifti1Image(labels, stored.affine), file)
    answer = run("evaluate", *files_of(root), "--bundle", model, "--output", tmp_path / "more")
    assert answer.code == 0, answer.err
    plain, more = (
        json.loads((place / "metrics.json").read_text())["dice"] for place in (measured / "out", tmp_path / "more")
    )
    assert plain == more


def test_masks_beside_true_label_maps_take_no_numbers_of_their_own(run: Run, others: Path, tmp_path: Path) -> None:
    for file in sorted((others / "results").iterdir()):
        as_masks(file, tmp_path / "results" / file.name.removesuffix(".nii.gz"))
    files = ("--results", tmp_path / "results", "--labels", others / "labels")
    answer = run("evaluate", *files, *BY, "--output", tmp_path / "out")
    assert (answer.code, "nothing says what the values in results mean" in answer.err) == (3, True), answer.err

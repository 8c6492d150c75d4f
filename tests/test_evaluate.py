"""Figures do not depend on the door they come through, and no case is measured that trained the bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import EXAMPLES
from shell import Run, shell
from small_data import FEW, drawn_eyes, few_examples, set_calibration, trained_on

from dicom_io.segmentation import Segmentation
from monai_unet_app.bundle import load_bundle
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.confidence.assessment import assess
from monai_unet_app.confidence.statements import Confidence, RiskStatement
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError, NoRoomError
from monai_unet_app.evaluate import EvaluationHandler, LabelledCases, choose_cases, evaluate_cases, evaluation
from monai_unet_app.evaluate.counted_case import WHOLE_GRID, CountedCase
from monai_unet_app.evaluate.evaluation import CaseLog, ResultsOf, StoredLabels, targets_of
from monai_unet_app.evaluate.reference import counted_voxels, read_reference
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import segment_case
from monai_unet_app.report import evaluation_writer
from monai_unet_app.training.run import run_overlay

run = pytest.fixture(shell)
TESTS = ("hippocampus_035", "hippocampus_037")
CPU = torch.device("cpu")


def by_monai(root: Path, data: Path, output: Path, **changed: Any) -> dict[str, Any]:
    overrides = {"dataset_dir": str(data), "output_dir": str(output), "device": CPU, **changed}
    run_overlay(root, "evaluate", overrides)
    return json.loads((output / "metrics.json").read_text())


def figures(metrics: Any) -> dict[str, Any]:
    """What both doors measure: MONAI's evaluator has neither uncalibrated probabilities nor statements or times."""
    left_out = ("calibration_before", "created", "targets", "statements", "inference")
    return {key: value for key, value in metrics.items() if key not in left_out}


def same(first: Any, second: Any, place: str = "metrics") -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys(), place
        for key in first:
            same(first[key], second[key], f"{place}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), place
        for number, pair in enumerate(zip(first, second, strict=True)):
            same(*pair, f"{place}/{number}")
    elif isinstance(first, float):
        assert first == pytest.approx(second, rel=1e-6, abs=1e-9), place
    else:
        assert first == second, place


@pytest.mark.parametrize("name", ["hippocampus_mri_unet3d", "hippocampus_mri_unet2d"])
def test_evaluate_yaml_and_the_verb_give_the_same_figures(
    name: str, tiny_bundle: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Pages are drawn by the verb for the 2D network; `test_size_time_and_seams_...` draws those of the other."""
    root = set_calibration(tiny_bundle(name), 0.3, -0.8)
    data = few_examples(tmp_path / "msd", TESTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_writer, "pages", lambda _: {})
        theirs = by_monai(root, data, tmp_path / "monai", partition="test")
    if name == "hippocampus_mri_unet3d":
        request.getfixturevalue("without_pages")
    ours = evaluate_cases(
        load_bundle(root), LabelledCases(by_partition(data)["test"], "msd", "test"), tmp_path / "ours"
    )
    written = json.loads((tmp_path / "ours/metrics.json").read_text())
    same(figures(theirs), figures(written))
    told = figures(json.loads(json.dumps(dict(ours.metrics))))
    assert told.keys() >= {"dice", "boundary_iou", "ece", "ece_band"}
    same(told, {key: written[key] for key in told})
    assert ours.problems == ()
    assert {path.name for path in ours.files} == {"metrics.json", "cases.csv", "report.html", "report.pdf"}
    assert 0 <= written["dice"]["mean"] <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("without_pages")
def test_evaluate_yaml_and_the_verb_give_the_same_figures_for_overlapping_labels(
    tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    root, data = set_calibration(tiny_bundle("retina_vessel_unet2d"), 0.3, -0.8), drawn_eyes(tmp_path / "eyes", 2)
    rows = choose_cases(load_bundle(root), find_data(data, label_suffix="_1stHO"), "test").rows
    theirs = by_monai(root, data, tmp_path / "monai", partition="test")
    evaluate_cases(load_bundle(root), LabelledCases(rows, "eyes", "test"), tmp_path / "ours")
    same(figures(theirs), figures(json.loads((tmp_path / "ours/metrics.json").read_text())))


@pytest.mark.usefixtures("without_pages")
def test_dice_in_the_metrics_is_dice_by_hand(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle(), 0.3, -0.8))
    rows = by_partition(few_examples(tmp_path / "msd", TESTS[:1]))["test"]
    evaluate_cases(bundle, LabelledCases(rows), tmp_path / "out")
    found = json.loads((tmp_path / "out/metrics.json").read_text())["dice"]["per_class"]
    truth = np.asarray(nibabel.load(rows[0]["label"]).dataobj)
    predicted = segment_case(rows[0]["image"], bundle).segmentation.labels
    assert len(found) == 2
    for number, value in enumerate(found.values(), start=1):
        both = ((truth == number) & (predicted == number)).sum()
        by_hand = 2 * both / ((truth == number).sum() + (predicted == number).sum())
        assert value == pytest.approx(by_hand, abs=1e-6)


def test_size_time_and_seams_of_the_network_stand_in_the_figures(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root = tiny_bundle("hippocampus_mri_unet3d")
    bundle, rows = load_bundle(root), by_partition(few_examples(tmp_path / "msd", TESTS))["test"]
    done = evaluate_cases(bundle, LabelledCases(rows, "msd", "test"), tmp_path / "out")
    found = json.loads((tmp_path / "out/metrics.json").read_text())["inference"]
    # The network names some of its layers twice
    weights = {values.data_ptr(): values.numel() for values in bundle.network.state_dict().values()}
    assert found["parameters"] == sum(weights.values())
    assert found["weights_mb"] == pytest.approx((root / "models/model.pt").stat().st_size / 1e6, abs=0.005)
    volumes = [read_volume(row["image"]) for row in rows]
    litres = {row["id"]: np.prod(v.shape) * np.prod(v.spacing_mm) * 1e-6 for row, v in zip(rows, volumes, strict=True)}
    assert found["seconds_per_image"] == pytest.approx(np.median(list(done.seconds.values())), abs=0.001)
    assert found["seconds_per_litre"] == pytest.approx(
        np.median([seconds / litres[case] for case, seconds in done.seconds.items()]), rel=0.01
    )
    assert found["seam_difference"].keys() == {"mean", "voxels", "places"}
    assert "million parameters" in (tmp_path / "out/report.html").read_text()


@pytest.mark.usefixtures("without_pages")
def test_a_bad_case_is_listed_and_the_good_ones_are_measured(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    data = few_examples(tmp_path / "msd", TESTS)
    broken = data / "images" / f"{TESTS[1]}.nii.gz"
    broken.write_bytes(broken.read_bytes()[:3000])
    told: dict[str, float | None] = {}
    found = evaluate_cases(
        load_bundle(tiny_bundle()),
        LabelledCases(by_partition(data)["test"]),
        tmp_path / "out",
        each=lambda case, dice: told.update({case: dice}),
    )
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{TESTS[1]}: ")
    assert told[TESTS[1]] is None
    assert told[TESTS[0]] is not None


def test_when_no_case_can_be_measured_nothing_is_written(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    data = few_examples(tmp_path / "msd", TESTS[:1])
    label = data / "labels" / f"{TESTS[0]}.nii.gz"
    image: Any = nibabel.load(label)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 0] = 7
    nibabel.save(nibabel.Nifti1Image(array, image.affine), label)
    with pytest.raises(InputRefusedError, match=r"\[7\]"):
        evaluate_cases(load_bundle(tiny_bundle()), LabelledCases(by_partition(data)["test"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_case_that_finds_no_room_ends_the_evaluation(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise NoRoomError("more space is needed")

    data = few_examples(tmp_path / "msd", TESTS)
    monkeypatch.setattr(evaluation, "segment_case", full)
    with pytest.raises(NoRoomError):
        evaluate_cases(load_bundle(tiny_bundle()), LabelledCases(by_partition(data)["test"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truth_of_overlapping_labels_has_one_channel_a_label(
    tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    data = drawn_eyes(tmp_path / "eyes", 4)
    row = by_partition(data, None, "_1stHO")["test"][0]
    truth = read_reference(row, read_volume(row["image"]), load_bundle(tiny_bundle("retina_vessel_unet2d"))).labels
    assert truth.shape == (1, 371, 346, 1)
    assert np.unique(truth).tolist() == [0, 1]
    assert 0.005 < truth.mean() < 0.2


SEEN = {
    "hippocampus_003": "train",
    "hippocampus_132": "selection",
    "hippocampus_053": "calibration",
    "hippocampus_035": "test",
}


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        (None, {"hippocampus_035", "hippocampus_037"}),
        ("test", {"hippocampus_035"}),
        ("calibration", {"hippocampus_053"}),
        ("all", {*SEEN, "hippocampus_037"}),
    ],
)
def test_cases_that_trained_the_bundle_are_never_taken_silently(
    tiny_bundle: Callable[..., Path], tmp_path: Path, partition: str | None, expected: set[str]
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", (*SEEN, "hippocampus_037"))
    trained_on(root, SEEN)
    chosen = choose_cases(load_bundle(root), find_data(data), partition)
    assert {row["id"] for row in chosen.rows} == expected
    assert f"{len(expected)} of 5 case(s)" in chosen.note
    if partition != "all":
        assert "1 of train" in chosen.note


def test_another_scan_of_a_person_who_trained_the_bundle_counts_as_seen(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """The list says whose scans they are. The bundle knows one of P's, and the names of both are new."""
    root, data = tiny_bundle(), few_examples(tmp_path / "data", (*SEEN, "hippocampus_037"))
    trained_on(root, SEEN)
    persons = {"hippocampus_003": "P", "hippocampus_037": "P", "hippocampus_035": "Q"}
    rows = [f"images/{name}.nii.gz,labels/{name}.nii.gz,new{n},{who}" for n, (name, who) in enumerate(persons.items())]
    (data / "list.csv").write_text("\n".join(["image,label,id,subject", *rows]))
    chosen = choose_cases(load_bundle(root), find_data(data / "list.csv"))
    assert chosen.ids == ["new2"]
    assert "2 of train (new0, new1)" in chosen.note


def test_a_partition_is_that_of_the_list(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    data = few_examples(tmp_path / "data", FEW[:2])
    rows = [
        f"images/{name}.nii.gz,labels/{name}.nii.gz,{part}" for name, part in zip(FEW, ("train", "test"), strict=False)
    ]
    (data / "list.csv").write_text("\n".join(["image,label,partition", *rows]))
    cases = find_data(data / "list.csv")
    bundle = load_bundle(tiny_bundle())
    assert choose_cases(bundle, cases, "test").ids == [FEW[1]]
    assert len(choose_cases(bundle, cases).ids) == 2  # the bundle has seen none of them


@pytest.mark.usefixtures("without_pages")
def test_one_command_measures_and_writes_the_figures_into_the_bundle(
    tiny_bundle: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", ("hippocampus_035",))
    words = ["--bundle", root, "--data", data, "--output", tmp_path / "out", "--device", "cpu"]
    answer = run("evaluate", *words, "--into-bundle")
    assert answer.code == 0, answer.err
    measured = json.loads((tmp_path / "out/metrics.json").read_text())["dice"]["mean"]
    figures = json.loads((root / "configs/metadata.json").read_text())["eval_metrics"]
    assert (figures["cases"], figures["dice"]["mean"]) == (1, round(measured, 4))
    assert f"| Dice | {measured:.3f} |" in (root / "docs/README.md").read_text()
    assert f"wrote {root}/configs/metadata.json\nwrote {root}/docs/README.md\nnext: monai-unet predict " in answer.out


def test_figures_that_may_not_stand_in_the_bundle_are_refused_before_anything_is_measured(
    tiny_bundle: Callable[..., Path], tmp_path: Path, run: Run
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", ("hippocampus_003",))
    trained_on(root, SEEN)
    words = ["evaluate", "--data", data, "--partition", "all", "--output", tmp_path / "out", "--into-bundle"]
    seen = run(*words, "--bundle", root, "--device", "cpu")
    assert (seen.code, "1 subject of 1 trained, selected or calibrated" in seen.err) == (3, True)
    name = run(*words, "--bundle", "hippocampus_mri_unet3d")
    assert (name.code, "a folder is needed, its metadata and card are rewritten" in name.err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give --into-bundle"),
        ("--into-bundle --tta --data data", "leave --data, --tta out"),
        ("--into-bundle --output out", "not allowed with argument"),
    ],
)
def test_an_evaluation_that_is_done_takes_no_flag_that_measures(words: str, message: str, run: Run) -> None:
    answer = run("evaluate", "--bundle", "bundle", "--evaluation", "out", *words.split())
    assert (answer.code, message in answer.err) == (2, True), answer.err


def test_a_case_that_trained_the_bundle_is_known_again_under_another_name(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", ("hippocampus_003", "hippocampus_037"))
    trained_on(root, SEEN)
    for kind in ("images", "labels"):
        (data / kind / "hippocampus_003.nii.gz").rename(data / kind / "brand_new.nii.gz")
    chosen = choose_cases(load_bundle(root), find_data(data))
    assert [row["id"] for row in chosen.rows] == ["hippocampus_037"]


def test_a_case_that_calibrated_the_bundle_is_left_out_too_and_a_plan_does_not_change_that(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", TESTS)
    cases = find_data(data)
    rows = choose_cases(load_bundle(root), cases[:1], "calibration").rows
    calibrate_bundle(load_bundle(root), rows, unchecked=True)
    assert [row["id"] for row in choose_cases(load_bundle(root), cases).rows] == [cases[1].id]
    plan = tmp_path / "splits.json"
    entries = [{"id": case.id, "subject": case.id, "partition": "test", "fold": 0} for case in cases]
    plan.write_text(json.dumps({"schema_version": "1.0", "datasets": {"mine": {"cases": entries}}}))
    chosen = choose_cases(load_bundle(root), cases, "test", plan)
    assert [row["id"] for row in chosen.rows] == [cases[1].id]
    assert "1 of calibration" in chosen.note


@pytest.mark.usefixtures("without_pages")
def test_the_bundle_s_own_overlay_leaves_out_cases_that_it_has_seen(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", TESTS)
    trained_on(root, {TESTS[0]: "train"})
    by_monai(root, data, tmp_path / "out")
    cases = (tmp_path / "out/cases.csv").read_text()
    assert TESTS[1] in cases
    assert TESTS[0] not in cases


def test_the_handler_refuses_cases_that_the_bundle_has_seen(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", TESTS)
    trained_on(root, {TESTS[0]: "train"})
    rows = choose_cases(load_bundle(root), find_data(data), "all").rows
    with pytest.raises(InputRefusedError, match=rf"has seen 1 of 2 case\(s\): {TESTS[0]} \(train\)"):
        EvaluationHandler(str(root), rows, tmp_path / "out")


def test_the_other_case_of_a_subject_who_trained_is_left_out_too(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root, data = (
        tiny_bundle(),
        few_examples(tmp_path / "data", ("hippocampus_003", "hippocampus_004", "hippocampus_037")),
    )
    trained_on(root, {"hippocampus_003": "train"}, subject="002")
    chosen = choose_cases(load_bundle(root), find_data(data))
    assert [row["id"] for row in chosen.rows] == ["hippocampus_037"]
    assert "2 of train" in chosen.note


def test_a_case_that_trained_and_calibrated_counts_as_trained(tiny_bundle: Callable[..., Path]) -> None:
    root = tiny_bundle()
    trained_on(root, {TESTS[0]: "calibration"})
    record = json.loads((root / "models/run.json").read_text())
    entry = {key: record["cases"][TESTS[0]][key] for key in ("subject", "image")}
    (root / "models/calibration.json").write_text(json.dumps({"cases": {"again": entry}}))
    trained_on(root, {TESTS[0]: "train"})
    seen = load_bundle(root).seen_as(read_volume(EXAMPLES / "images" / f"{TESTS[0]}.nii.gz"))
    assert seen is not None
    assert seen.partition == "train"


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": {"a": {"image": "x"}}}', '{"cases": 3}'])
def test_a_damaged_record_is_no_licence_to_measure(text: str, tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", TESTS)
    (root / "models/run.json").write_text(text)
    with pytest.raises(BundleError, match=r"does not say what the bundle has seen|run\.json is damaged"):
        choose_cases(load_bundle(root), find_data(data))


def test_calibration_refuses_cases_that_trained(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", TESTS)
    trained_on(root, {TESTS[0]: "train"})
    before = (root / "configs/inference.yaml").read_bytes()
    with pytest.raises(InputRefusedError, match=rf"{TESTS[0]} \(train\)"):
        calibrate_bundle(load_bundle(root), choose_cases(load_bundle(root), find_data(data), "all").rows)
    assert (root / "configs/inference.yaml").read_bytes() == before


def test_when_the_bundle_has_seen_every_case_it_says_so(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", ("hippocampus_003",))
    trained_on(root, SEEN)
    with pytest.raises(InputRefusedError, match=r"1 of train.*--partition all"):
        choose_cases(load_bundle(root), find_data(data))


def test_a_plan_of_the_user_s_own_decides_when_it_is_given(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    data = few_examples(tmp_path / "data", TESTS)
    rows = [
        {"id": TESTS[0], "subject": "a", "partition": "train", "fold": 0},
        {"id": TESTS[1], "subject": "b", "partition": "test", "fold": 0},
    ]
    plan = tmp_path / "splits.json"
    plan.write_text(json.dumps({"schema_version": "1.0", "datasets": {"mine": {"cases": rows}}}))
    chosen = choose_cases(load_bundle(tiny_bundle()), find_data(data), None, plan)
    assert [(row["id"], row["subject"]) for row in chosen.rows] == [(TESTS[1], "b")]


def test_a_bundles_targets_are_those_of_its_metadata(tiny_bundle: Callable[..., Path]) -> None:
    root = tiny_bundle()
    path = root / "configs/metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "targets": {"dice": {"at_least": 0.5}, "ece": {"at_most": 0.1}}}))
    dice, ece = targets_of(load_bundle(root))
    assert (dice.path, dice.at_least, dice.at_most) == (("dice", "mean"), 0.5, None)
    assert (ece.path, ece.at_least, ece.at_most) == (("ece", "top_label"), None, 0.1)
    for wrong in ({"dies": {"at_least": 0.5}}, {"dice": {"about": 0.5}}):
        path.write_text(json.dumps({**metadata, "targets": wrong}))
        with pytest.raises(BundleError, match="at_least or at_most of some of dice"):
            targets_of(load_bundle(root))
    path.write_text(json.dumps({key: value for key, value in metadata.items() if key != "targets"}))
    assert targets_of(load_bundle(root)) == ()


@pytest.mark.usefixtures("without_pages")
def test_voxels_of_the_ignore_label_change_no_figure(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    data = few_examples(tmp_path / "data", TESTS[:1])
    root = tiny_bundle()
    whole = find_data(data)
    row = {"id": whole[0].id, "subject": "s", "image": str(whole[0].image), "label": str(whole[0].label)}
    yaml = root / "configs/inference.yaml"
    yaml.write_text(yaml.read_text() + "\nignore_label: 255\n")
    label = nibabel.load(row["label"])
    marked = np.asarray(label.dataobj).astype(np.uint8)
    marked[:9] = 255
    nibabel.save(nibabel.Nifti1Image(marked, label.affine), row["label"])
    bundle = load_bundle(root)
    volume = read_volume(row["image"])
    assert np.array_equal(counted_voxels(row, volume, bundle), marked != 255)
    assert set(np.unique(read_reference(row, volume, bundle).labels)) <= {0, 1, 2}
    metrics = evaluate_cases(bundle, LabelledCases([row]), tmp_path / "out").metrics
    assert metrics["calibration"]["whole"]["decisions"] == np.count_nonzero(marked != 255)


@pytest.mark.usefixtures("without_pages")
def test_statements_are_held_against_the_voxels_that_count(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    row = dict(by_partition(few_examples(tmp_path / "data", TESTS[:1]))["test"][0])
    root = tiny_bundle()
    yaml = root / "configs/inference.yaml"
    yaml.write_text(yaml.read_text() + "\nignore_label: 255\n")
    bundle, volume, label = load_bundle(root), read_volume(row["image"]), nibabel.load(row["label"])
    predicted = read_reference(row, volume, bundle).labels
    marked = np.roll(np.asarray(label.dataobj), 1, axis=1).astype(np.uint8)
    marked[: volume.shape[0] // 2] = 255
    nibabel.save(nibabel.Nifti1Image(marked, label.affine), row["label"])
    p = np.stack([np.where(predicted == n, 0.8, 0.1) for n in range(3)]).astype(np.float32)
    result = Segmentation(volume, predicted, bundle.segments, p)
    stated = Confidence(risk=RiskStatement(0.1, {1: 0.5, 2: None}, 20))
    log = CaseLog(ResultsOf.of(bundle))
    truth, assessment = read_reference(row, volume, bundle), assess(stated, result, None)
    counted = CountedCase(row, truth, result, log.results_of.plan, assessment, counted_voxels(row, volume, bundle))
    counted.add(WHOLE_GRID, p)
    log.add(counted)
    truth = marked == 1
    first, second = next(iter(log.outcomes.values())).true
    assert first.dice == dice(truth, (predicted == 1) & (marked != 255)) < 1
    assert first.missed == (predicted[truth] != 1).mean() > 0
    assert second.missed is first.size is None


def test_labels_come_back_from_a_file_that_has_no_name() -> None:
    stored, generator = StoredLabels(), np.random.default_rng(0)
    numbers = [np.asfortranarray(generator.integers(0, 5, (7, 6, 5)).astype(np.uint8)) for _ in range(2)]
    masks = [generator.random((3, 9, 8, 1)) > 0.5 for _ in range(2)]
    for case_id, labels in (("a", numbers), ("b", masks), ("c", numbers[::-1])):
        stored.add(case_id, *labels)
    for case_id, labels in (("b", masks), ("a", numbers), ("c", numbers[::-1])):
        for found, expected in zip(stored.read(case_id), labels, strict=True):
            assert found.dtype == expected.dtype
            assert np.array_equal(found, expected)
    assert os.fstat(stored._file.fileno()).st_nlink == 0


@pytest.mark.usefixtures("without_pages")
def test_figures_in_fewer_bits_do_not_go_into_a_card(
    run: Run, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root = tiny_bundle()
    words = ["--bundle", root, "--data", few_examples(tmp_path / "data", FEW[-1:]), "--device", "cpu"]
    answer = run("evaluate", *words, "--output", tmp_path / "out", "--precision", "bfloat16", "--into-bundle")
    assert (answer.code, "what a bundle does as it is, in float32" in answer.err) == (2, True)
    assert run("evaluate", *words, "--output", tmp_path / "out", "--precision", "bfloat16").code == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["precision"] == "bfloat16"
    answer = run("evaluate", *words, "--output", tmp_path / "out", "--folds", "--engine", "openvino")
    assert (answer.code, "the export for openvino is of the bundle's own" in answer.err) == (2, True)
    answer = run("evaluate", "--bundle", root, "--evaluation", tmp_path / "out", "--into-bundle")
    assert (answer.code, "measured results with bfloat16" in answer.err) == (3, True)


@pytest.mark.usefixtures("without_pages")
def test_what_costs_less_work_is_told_and_goes_into_no_card(
    run: Run, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root = tiny_bundle()
    words = ["--bundle", root, "--data", few_examples(tmp_path / "data", FEW[-1:]), "--device", "cpu"]
    answer = run("evaluate", *words, "--output", tmp_path / "out", "--fast")
    assert (answer.code, "names no coarser grid; coarse_spacing_mm beside spacing_mm" in answer.err) == (2, True)
    config = root / "configs/inference.yaml"
    config.write_text(config.read_text() + "\ncoarse_spacing_mm: [1.5, 1.5, 1.5]\n")
    answer = run("evaluate", *words, "--output", tmp_path / "out", "--fast", "--overlap", "0.25")
    assert answer.code == 0, answer.err
    settings = json.loads((tmp_path / "out/metrics.json").read_text())["settings"]
    assert settings["overrides"] == ["inferer::overlap=0.25", "spacing_mm=[1.5, 1.5, 1.5]"]
    assert "--into-bundle" not in answer.out
    answer = run("evaluate", "--bundle", root, "--evaluation", tmp_path / "out", "--into-bundle")
    assert (answer.code, "measured results with float32, inferer::overlap=0.25" in answer.err) == (3, True)
    answer = run("evaluate", *words, "--output", tmp_path / "more", "--overlap", "1")
    assert (answer.code, "a number from 0 to below 1 is needed" in answer.err) == (2, True)
    own = load_bundle(root).windows.overlap
    assert run("evaluate", *words, "--output", tmp_path / "own", "--overlap", own).code == 0
    assert "overrides" not in json.loads((tmp_path / "own/metrics.json").read_text())["settings"]

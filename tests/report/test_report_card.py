"""The figures of an evaluation in the metadata and the card of the bundle that was measured, and of no other."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BUNDLES, REPOSITORY
from made_up import INFERENCE, STATEMENTS, boxes, case_of, report_of

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import CARD_FIGURES, CONFIDENCE, bundle_files
from monai_unet_app.cli import main
from monai_unet_app.confidence.fine import FineDice
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.confidence.quality import QualityGate
from monai_unet_app.confidence.statements import Confidence, SizeStatement
from monai_unet_app.config import InferenceSetting, ResultSettings
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.report.card import card_rows, put_figures
from monai_unet_app.report.evaluation_report import EvaluationReport, MeasuredOn
from monai_unet_app.report.evaluation_writer import cases_csv, metrics_document

SHIPPED = REPOSITORY / "bundles" / "hippocampus_mri_unet3d"
INTO_BUNDLE = ("evaluate", "--into-bundle")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    with warnings.catch_warnings():
        yield command
    logging.disable(logging.NOTSET)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of a shipped bundle, with its record of who trained it, without its figures out of fold."""
    copy = shutil.copytree(SHIPPED, tmp_path / "copies" / SHIPPED.name)
    metadata = copy / "configs/metadata.json"
    document = json.loads(metadata.read_text())
    document["eval_metrics"].pop("out_of_fold", None)
    metadata.write_text(json.dumps(document))
    return copy


def evaluation_of(
    bundle: Path, folder: Path, subjects: tuple[str, str] = ("new_1", "new_2"), tta: bool = False, **more: Any
) -> Path:
    """An evaluation of two cases, boxes of 4 voxels moved by 1 and not at all: Dice 0.75 and 1, IoU 0.6 and 1."""
    truth, moved = boxes((5, 1), (9, 2)), boxes((6, 1), (10, 2))
    cases = [case_of("a", subjects[0], truth, moved, 2), case_of("b", subjects[1], truth, truth, 2)]
    report: EvaluationReport = report_of(cases, EvaluationPlan(("anterior", "posterior")), **more)
    files = bundle_files(bundle)
    on = MeasuredOn(
        files.name, files.version, files.sha256, "Boxes", "cd" * 32, "2 of 2 case(s)", settings=ResultSettings(tta=tta)
    )
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics_document(replace(report, measured_on=on))))
    (folder / "cases.csv").write_text(cases_csv(report.cases, report.plan))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def out_of_fold(bundle: Path, folder: Path, folds: dict[str, int], **more: Any) -> Path:
    """As `evaluation_of`, of cases that networks of a cross-validation segmented."""
    evaluation_of(bundle, folder, **more)
    document = json.loads((folder / "metrics.json").read_text())
    document["data"]["folds"] = folds
    (folder / "metrics.json").write_text(json.dumps(document))
    return folder


def with_folds(bundle: Path, subjects: dict[int, str]) -> None:
    """Gives a bundle folds, each of which tests one subject and has trained on the others."""
    record = json.loads((bundle / "models/run.json").read_text())
    entry = next(iter(record["cases"].values()))
    for fold in subjects:
        cases = {
            subject: {**entry, "subject": subject, "partition": "test" if n == fold else "train"}
            for n, subject in subjects.items()
        }
        home = bundle / f"folds/{fold}/models"
        home.mkdir(parents=True)
        (home / "model.pt").touch()
        (home / "run.json").write_text(json.dumps({**record, "cases": cases}))


def test_figures_out_of_fold_lead_the_card_and_those_of_test_cases_follow(bundle: Path, tmp_path: Path, run) -> None:
    with_folds(bundle, {0: "new_1", 1: "new_2"})
    folds = out_of_fold(bundle, tmp_path / "oof", {"a": 0, "b": 1})
    before = load_bundle(bundle).eval_metrics
    code, said, told = run(*INTO_BUNDLE, "--evaluation", folds, "--bundle", bundle)
    assert code == 0, told
    assert [cell.strip() for cell in said.split("dice, out of fold")[1].split("│")[1:3]] == ["-", "0.8750"]
    now = json.loads((bundle / "configs/metadata.json").read_text())["eval_metrics"]
    assert {**now, "out_of_fold": 0} == {**before, "out_of_fold": 0}
    found = now["out_of_fold"]
    assert (found["dice"]["mean"], found["cases"], found["subjects"], found["folds"]) == (0.875, 2, 2, 2)
    assert (found["percentile_5"], found["least"]) == (0.7625, 0.75)  # between 0.75 and 1, a twentieth of the way
    card = (bundle / "docs/README.md").read_text().split("<!-- figures -->\n")[1]
    assert card.startswith("**Dice out of fold: 0.875**, on 2 cases of 2 subjects: ")
    assert "One case in twenty is below 0.762, the worst is 0.750." in card
    assert "are easier than these" in card  # 0.896
    assert card.index("| Dice | 0.875 |") < card.index(f"| Dice | {before['dice']['mean']:.3f} |")
    test = evaluation_of(bundle, tmp_path / "test", ("other_1", "other_2"))
    assert run(*INTO_BUNDLE, "--evaluation", test, "--bundle", bundle)[0] == 0
    after = json.loads((bundle / "configs/metadata.json").read_text())["eval_metrics"]
    assert after["out_of_fold"] == found
    assert after["dice"]["mean"] == 0.875
    assert "are not easier than these" in (bundle / "docs/README.md").read_text()


def test_a_bundle_without_test_cases_speaks_of_its_folds(bundle: Path, tmp_path: Path, run) -> None:
    with_folds(bundle, {0: "new_1", 1: "new_2"})
    metadata = bundle / "configs/metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "eval_metrics": {}}))
    assert (
        run(*INTO_BUNDLE, "--evaluation", out_of_fold(bundle, tmp_path / "oof", {"a": 0, "b": 1}), "--bundle", bundle)[
            0
        ]
        == 0
    )
    assert bundle_files(bundle).measured["dice"]["mean"] == 0.875
    card = (bundle / "docs/README.md").read_text().split("<!-- figures -->\n")[1]
    assert card.count("| Dice |") == 1
    assert "test case" not in card.split("<!-- end")[0]


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize(("correlation", "words"), [(0.41, "the true Dice.\n"), (0.1, "; below 0.25 it is not shown.")])
def test_the_card_says_how_often_statements_came_true_for_subjects_left_out_of_their_fit(
    bundle: Path, tmp_path: Path, run, correlation: float, words: str, tta: bool
) -> None:
    with_folds(bundle, {0: "new_1", 1: "new_2"})
    fine = FineDice(("uncertainty",), {}, {}, {}, (0.0,), correlation, 20)
    stated = Confidence(
        sizes=SizeStatement(0.9, {1: (-0.1, 0.1), 2: None}, 0.01, 20, kept={1: 0.875, 2: 0.0}),
        wholes=SizeStatement(0.9, {1: (-0.02, 0.04)}, 0.01, 20, kept={1: 0.95}),
        gate=QualityGate({}, {}, (), (0.1, 0.2), 0.9, 20, 40, fine),
    )
    store(stated, bundle, "tta" if tta else "plain")
    folds = out_of_fold(bundle, tmp_path / "oof", {"a": 0, "b": 1}, tta=tta)
    assert run(*INTO_BUNDLE, "--evaluation", folds, "--bundle", bundle)[0] == 0
    card = (bundle / "docs/README.md").read_text().split("The 34 test cases")[0]
    # of an interval from e^-0.1 to e^0.1 of the expected size half the width over the centre is tanh 0.1
    assert "| interval of the size, Anterior hippocampus, ± 10.0 % | 90 % | 87.5 % | 20 |" in card
    assert "| interval of the size, Hippocampus, whole, ± 3.0 % | 90 % | 95.0 % | 20 |" in card
    assert "| interval of the size, Posterior hippocampus" not in card  # too few subjects
    assert "lower bound of Dice" not in card
    assert f"rank correlation of {correlation:.2f} with the true Dice" in card
    assert words in card
    assert card.count("averages over mirror images (`--tta`)") == tta


def test_statements_of_another_setting_are_not_on_the_card(bundle: Path, tmp_path: Path, run) -> None:
    with_folds(bundle, {0: "new_1", 1: "new_2"})
    store(Confidence(sizes=SizeStatement(0.9, {1: (-0.1, 0.1)}, 0.01, 20, kept={1: 0.875})), bundle, "plain")
    folds = out_of_fold(bundle, tmp_path / "oof", {"a": 0, "b": 1}, tta=True)
    assert run(*INTO_BUNDLE, "--evaluation", folds, "--bundle", bundle)[0] == 0
    assert "87.5 %" not in (bundle / "docs/README.md").read_text()


def store(stated: Confidence, bundle: Path, setting: InferenceSetting) -> None:
    """Makes these the only statements of a bundle."""
    document = json.loads((bundle / CONFIDENCE).read_text())
    entry = {**stated.document(), "fitted_to": fitted_to(bundle_files(bundle), setting)}
    (bundle / CONFIDENCE).write_text(json.dumps({**document, "settings": {setting: entry}}))


@pytest.mark.parametrize("folds", [{"a": 1, "b": 0}, {"a": 0, "b": 3}])
def test_a_case_that_its_fold_has_seen_is_refused(bundle: Path, tmp_path: Path, run, folds: dict[str, int]) -> None:
    with_folds(bundle, {0: "new_1", 1: "new_2"})
    before = contents(bundle)
    code, _, told = run(*INTO_BUNDLE, "--evaluation", out_of_fold(bundle, tmp_path / "oof", folds), "--bundle", bundle)
    assert (code, "trained, selected or calibrated" in told) == (3, True)
    assert contents(bundle) == before


def test_one_command_puts_the_figures_into_metadata_and_card_and_changes_nothing_else(bundle, tmp_path, run):
    before, sha256 = contents(bundle), bundle_files(bundle).sha256
    evaluation = evaluation_of(bundle, tmp_path / "out", statements=STATEMENTS, inference=INFERENCE)
    code, said, _ = run(*INTO_BUNDLE, "--evaluation", evaluation, "--bundle", bundle)
    assert code == 0
    assert max(map(len, said.splitlines()[:-2])) <= 80
    after = contents(bundle)
    assert {name for name in before if before[name] != after[name]} == {"configs/metadata.json", "docs/README.md"}
    assert before.keys() == after.keys()
    assert bundle_files(bundle).sha256 == sha256  # figures are no part of what can change results
    old, new = (json.loads(files["configs/metadata.json"]) for files in (before, after))
    figures = new["eval_metrics"]
    assert list(old) == list(new)
    assert {**new, "eval_metrics": 0} == {**old, "eval_metrics": 0}
    assert (figures["cases"], figures["subjects"], figures["partition"]) == (2, 2, "2 of 2 case(s)")
    assert figures["dice"]["per_class"] == {"anterior": 0.875, "posterior": 0.875}
    assert figures["iou"]["mean"] == 0.8
    assert figures["inference"] == INFERENCE
    assert figures["bundle_sha256"] == sha256
    assert figures["training"] == old["eval_metrics"]["training"]
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert figures["ece_whole"]["calibrated"] == round(metrics["ece"]["top_label"], 4)
    of_classes = metrics["calibration"]["whole"]["per_class"]
    for label, error in figures["ece_whole"]["per_class"].items():
        assert error == {name: round(of_classes[label][name], 4) for name in ("ece", "ace")}
    assert list(figures["ece_whole"]["per_class"]) == ["anterior", "posterior"]
    card, there = (files["docs/README.md"].decode() for files in (after, before))
    assert CARD_FIGURES.sub("", card) == CARD_FIGURES.sub("", there)
    assert "| Dice | 0.875 | none | anterior 0.875, posterior 0.875 |" in card
    assert (
        "Network: 1.23 million parameters, 2.51 MB. Time: 0.84 s for an image, 31.4 s for a litre (medians, on cpu). "
        in card
    )
    assert "Difference at the seams of windows: 0.012 of probability, at 7 places." in card
    assert f"| whole image | – | {figures['ece_whole']['calibrated']:.4f} |" in card
    ends = "{ece:.4f} | {ace:.4f} |".format(**figures["ece_whole"]["per_class"]["posterior"])
    assert f"| posterior, whole image | {ends}" in card
    assert "| interval of the size, Front, ± 12.3 % | 90 % | 95.0 % | 20 |" in card
    assert "Measured on 2 cases of 2 subjects that did not train, select or calibrate." in card


def test_figures_that_the_evaluation_does_not_hold_go_and_are_named(tmp_path, run):
    bundle = shutil.copytree(SHIPPED, tmp_path / "copy" / SHIPPED.name)
    metadata = bundle / "configs/metadata.json"
    document = json.loads(metadata.read_text())
    document["eval_metrics"]["dice_of_second_human_grader"] = {"mean": 0.8, "interval_95": [0.7, 0.9]}
    for name in ("statements", "inference"):
        document["eval_metrics"].pop(name, None)
    metadata.write_text(json.dumps(document))
    evaluation = evaluation_of(bundle, tmp_path / "out")
    code, said, _ = run(*INTO_BUNDLE, "--evaluation", evaluation, "--bundle", bundle, "--json")
    answer = json.loads(said)
    assert code == 0
    assert answer["gone"] == ["dice_of_second_human_grader", *(k for k in ("ece_band_2mm",) if k in answer["gone"])]
    assert answer["eval_metrics"] == json.loads(metadata.read_text())["eval_metrics"]


@pytest.mark.parametrize("spoil", ["other weights", "no evaluation", "damaged", "no marks", "trained on", "zip"])
def test_what_does_not_belong_together_is_refused_and_nothing_is_written(spoil, bundle, tmp_path, run):
    seen = next(case for case in load_bundle(bundle).seen if case.partition == "train")
    evaluation = evaluation_of(bundle, tmp_path / "out", ("new", seen.subject if spoil == "trained on" else "other"))
    if spoil == "other weights":
        (bundle / "configs/segments.json").write_text((bundle / "configs/segments.json").read_text() + "\n")
    elif spoil == "no evaluation":
        shutil.rmtree(evaluation)
    elif spoil == "damaged":
        (evaluation / "metrics.json").write_text('{"schema_version": "1.0"}')
    elif spoil == "no marks":
        (bundle / "docs/README.md").write_text("# A card without figures\n")
    before = contents(bundle)
    target = "hippocampus_mri_unet3d" if spoil == "zip" else bundle
    code, _, error = run(*INTO_BUNDLE, "--evaluation", evaluation, "--bundle", target)
    message, expected = {
        "other weights": ("its own evaluation is needed", 3),
        "no evaluation": ("metrics.json cannot be read", 3),
        "damaged": ("metrics.json lacks bundle", 3),
        "no marks": ("docs/README.md has 0 figure block", 3),
        "trained on": (f"1 subject of 2 trained, selected or calibrated .*{re.escape(seen.subject)}", 3),
        "zip": ("a folder is needed", 2),
    }[spoil]
    assert code == expected
    assert re.search(message, error)
    assert contents(bundle) == before


def test_a_write_that_fails_leaves_both_files_as_they_were(bundle, tmp_path, run, monkeypatch):
    evaluation = evaluation_of(bundle, tmp_path / "out")
    before = contents(bundle)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, error = run(*INTO_BUNDLE, "--evaluation", evaluation, "--bundle", bundle)
    assert code == 1
    assert "the disk is full" in error
    assert contents(bundle) == before


@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_the_shipped_cards_are_what_their_metadata_give(root, tmp_path):
    bundle = load_bundle(root)
    card = Path(shutil.copy2(root / "docs/README.md", tmp_path))
    put_figures(card_rows(bundle.metadata["eval_metrics"], bundle), card)
    assert card.read_text() == (root / "docs/README.md").read_text()

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
from made_up import STATEMENTS, boxes, case_of, report_of

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import CARD_FIGURES, bundle_files
from monai_unet_app.cli import main
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.report.card import card_rows, put_figures
from monai_unet_app.report.evaluation_report import EvaluationReport, MeasuredOn
from monai_unet_app.report.evaluation_writer import cases_csv, metrics_document

SHIPPED = REPOSITORY / "bundles" / "hippocampus_mri_unet3d"


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
    """A copy of a shipped bundle, with its record of who trained it."""
    return shutil.copytree(SHIPPED, tmp_path / "copies" / SHIPPED.name)


def evaluation_of(bundle: Path, folder: Path, subjects: tuple[str, str] = ("new_1", "new_2"), **more: Any) -> Path:
    """An evaluation of two cases, boxes of 4 voxels moved by 1 and not at all: Dice 0.75 and 1, IoU 0.6 and 1."""
    truth, moved = boxes((5, 1), (9, 2)), boxes((6, 1), (10, 2))
    cases = [case_of("a", subjects[0], truth, moved, 2), case_of("b", subjects[1], truth, truth, 2)]
    report: EvaluationReport = report_of(cases, EvaluationPlan(("anterior", "posterior")), **more)
    files = bundle_files(bundle)
    on = MeasuredOn(files.name, files.version, files.sha256, "Boxes", "cd" * 32, "2 of 2 case(s)")
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics_document(replace(report, measured_on=on))))
    (folder / "cases.csv").write_text(cases_csv(report.cases, report.plan))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_table_of_folds_leads_the_card_and_its_mean_is_that_of_its_cases(bundle: Path, tmp_path: Path, run) -> None:
    seen = [case.id for case in load_bundle(bundle).seen if case.partition == "test"][:2]
    table = ["fold,epochs,case,subject,structure,dice"]
    for n, (case, dice) in enumerate([(seen[0], 0.9), (seen[1], 0.8), ("other_1", 0.7), ("other_2", 0.6)]):
        table += [f"{n % 2},{24 - n % 2 * 19},{case},s{n},{number},{dice + 0.02 * number}" for number in (1, 2)]
    (bundle / "docs/out_of_fold.csv").write_text("\n".join(table) + "\n")
    assert run("report", "--evaluation", evaluation_of(bundle, tmp_path / "out"), "--bundle", bundle)[0] == 0
    found = json.loads((bundle / "configs/metadata.json").read_text())["eval_metrics"]["out_of_fold"]
    assert (found["mean"], found["cases"], found["subjects"]) == (0.78, 4, 4)
    assert (found["mean_of_test_cases"], found["mean_of_other_cases"]) == (0.88, 0.68)
    assert list(found["per_class"].values()) == [0.77, 0.79]
    assert found["interval_95"] is None  # of four subjects
    card = (bundle / "docs/README.md").read_text().split("<!-- figures -->\n")[1]
    assert card.startswith("**Dice out of fold: 0.780**, on 4 cases of 4 subjects")
    assert "trained for 24 epochs, but fold 1 for 5" in card
    assert "are easier than the others" in card
    (bundle / "docs/out_of_fold.csv").write_text("case\nx\n")
    code, _, said = run("report", "--evaluation", tmp_path / "out", "--bundle", bundle)
    assert (code, "docs/out_of_fold.csv cannot be used" in said) == (3, True)


def test_one_command_puts_the_figures_into_metadata_and_card_and_changes_nothing_else(bundle, tmp_path, run):
    before, sha256 = contents(bundle), bundle_files(bundle).sha256
    evaluation = evaluation_of(bundle, tmp_path / "out", statements=STATEMENTS)
    code, said, _ = run("report", "--evaluation", evaluation, "--bundle", bundle)
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
    assert figures["bundle_sha256"] == sha256
    assert figures["training"] == old["eval_metrics"]["training"]
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert figures["ece_whole"] == {"calibrated": round(metrics["ece"]["top_label"], 4)}
    card, there = (files["docs/README.md"].decode() for files in (after, before))
    assert CARD_FIGURES.sub("", card) == CARD_FIGURES.sub("", there)
    assert "| Dice | 0.875 | none | anterior 0.875, posterior 0.875 |" in card
    assert f"| whole image | – | {figures['ece_whole']['calibrated']:.4f} |" in card
    assert "| interval of the size, Front, ± 12.3 % | 90 % | 95.0 % | 20 |" in card
    assert "Measured on 2 cases of 2 subjects that neither trained, selected nor calibrated." in card


def test_figures_that_the_evaluation_does_not_hold_go_and_are_named(tmp_path, run):
    bundle = shutil.copytree(SHIPPED, tmp_path / "copy" / SHIPPED.name)
    metadata = bundle / "configs/metadata.json"
    document = json.loads(metadata.read_text())
    document["eval_metrics"]["dice_of_second_human_grader"] = {"mean": 0.8, "interval_95": [0.7, 0.9]}
    document["eval_metrics"].pop("statements", None)
    metadata.write_text(json.dumps(document))
    evaluation = evaluation_of(bundle, tmp_path / "out")
    code, said, _ = run("report", "--evaluation", evaluation, "--bundle", bundle, "--json")
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
    code, _, error = run("report", "--evaluation", evaluation, "--bundle", target)
    message, expected = {
        "other weights": ("its own evaluation is needed", 3),
        "no evaluation": ("metrics.json cannot be read", 3),
        "damaged": ("metrics: at the document", 3),
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
    code, _, error = run("report", "--evaluation", evaluation, "--bundle", bundle)
    assert code == 1
    assert "No space left" in error
    assert contents(bundle) == before


@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_the_shipped_cards_are_what_their_metadata_give(root, tmp_path):
    bundle = load_bundle(root)
    card = Path(shutil.copy2(root / "docs/README.md", tmp_path))
    put_figures(card_rows(bundle.metadata["eval_metrics"], bundle), card)
    assert card.read_text() == (root / "docs/README.md").read_text()

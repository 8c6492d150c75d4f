"""Targets from a file: TOML, a table for each figure, every mistake named."""

from __future__ import annotations

import json
import logging
import warnings

import pytest
from conftest import EXAMPLES
from made_up import plain_report
from small_data import few_examples

from monai_unet_app.bundle import load_bundle
from monai_unet_app.cli import main
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.evaluate.evaluation import CaseLog, ResultsOf
from monai_unet_app.report.evaluation_report import Target
from monai_unet_app.report.targets import OF_ALL_CLASSES, OF_EACH_CLASS, USUAL, as_targets, read_targets

GOOD = """
# what we agreed on
dice.at_least = 0.875
ece = {at_most = 0.005}

[iou_per_class]
at_least = 0.6
"""


def test_a_file_names_figures_with_their_bounds(tmp_path):
    path = tmp_path / "targets.toml"
    path.write_text(GOOD)
    assert as_targets(read_targets(path), ("Front", "Back")) == (
        Target("Dice, mean", ("dice", "mean"), at_least=0.875),
        Target("ECE, whole image", ("ece", "top_label"), at_most=0.005),
        Target("IoU, Front", ("iou", "per_class", "Front"), at_least=0.6),
        Target("IoU, Back", ("iou", "per_class", "Back"), at_least=0.6),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no figure is named"),
        ("dise.at_least = 0.8", "dise = .*of some of dice, iou"),
        ("dice.about = 0.8", "dice = .*at_least or at_most"),
        ("dice = 0.8", "dice = 0.8; at_least or at_most"),
        ("[dice]", "dice = {}; at_least or at_most"),
        ("dice.at_least = '0.8'", "numbers from 0 to 1"),
        ("dice.at_least = true", "numbers from 0 to 1"),
        ("dice.at_least = 87.5", "numbers from 0 to 1"),
        ("dice.at_least = nan", "numbers from 0 to 1"),
        ("ece = {at_least = 0.2, at_most = 0.1}", "no number is within both bounds"),
        ("dice.at_least = ", "targets mine.toml: Invalid value"),
    ],
)
def test_a_file_that_means_nothing_is_refused_with_what_is_wrong(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputRefusedError, match=message):
        read_targets(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputRefusedError, match=r"absent\.toml cannot be read .*No such file"):
        read_targets(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputRefusedError, match=r"binary\.toml"):
        read_targets(tmp_path / "binary.toml")


def test_every_figure_that_can_be_a_target_stands_in_a_summary():
    summary = plain_report().summary
    known = {name: {"at_least": 0.0} for name in (*OF_ALL_CLASSES, *OF_EACH_CLASS) if name != "pixel_accuracy"}
    targets = as_targets(known, ("Front", "Back"))
    assert len(targets) == len(OF_ALL_CLASSES) - 1 + 2 * len(OF_EACH_CLASS)
    assert [target.name for target in targets if target.value(summary) is None] == []


def test_the_usual_targets_ask_for_overlap_of_every_class_and_for_calibration():
    found = {target.path: (target.at_least, target.at_most) for target in as_targets(USUAL, ("Front",))}
    assert found == {
        ("iou", "mean"): (0.70, None),
        ("iou", "per_class", "Front"): (0.60, None),
        ("pixel_accuracy", "mean"): (0.90, None),
        ("precision", "mean"): (0.80, None),
        ("boundary_iou", "mean"): (0.65, None),
        ("ece", "top_label"): (None, 0.05),
    }


def evaluate(*words: object) -> int:
    with warnings.catch_warnings():
        code = main(["evaluate", *map(str, words)])
    logging.disable(logging.NOTSET)
    return code


def test_the_verb_holds_the_figures_against_the_file(tiny_bundle, tmp_path):
    (tmp_path / "mine.toml").write_text("dice.at_least = 1\niou_per_class.at_least = 0\n")
    data = few_examples(tmp_path / "data", ("hippocampus_035",))
    words = ("--bundle", tiny_bundle(), "--data", data, "--output", tmp_path / "out", "--device", "cpu")
    assert evaluate(*words, "--targets", tmp_path / "mine.toml") == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())["targets"]
    assert [(target["name"], target["reached"]) for target in found] == [
        ("Dice, mean", False),
        ("IoU, Anterior hippocampus", True),
        ("IoU, Posterior hippocampus", True),
    ]
    assert "1 of 3 targets missed" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/report.pdf").read_bytes().startswith(b"%PDF")


def test_the_verb_refuses_a_bad_file_before_it_measures_anything(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("dise.at_least = 1\n")
    words = ("--bundle", "hippocampus_mri_unet3d", "--data", EXAMPLES, "--output", tmp_path / "out")
    assert evaluate(*words, "--targets", tmp_path / "mine.toml") == 3
    assert "targets mine.toml: dise" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_goes_before_the_bundles_own_targets_and_these_before_the_usual_ones(tiny_bundle):
    root = tiny_bundle()
    given = CaseLog(ResultsOf.of(load_bundle(root)), {"recall": {"at_least": 0.5}})
    assert [target.path for target in given.targets] == [("recall", "mean")]
    own = CaseLog(ResultsOf.of(load_bundle(root)))
    assert [target.path for target in own.targets] == [
        ("dice", "mean"),
        ("ece", "top_label"),
        ("ece_band", "top_label"),
    ]
    path = root / "configs/metadata.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "targets"}))
    usual = CaseLog(ResultsOf.of(load_bundle(root)))
    assert usual.targets == as_targets(USUAL, ("Anterior hippocampus", "Posterior hippocampus"))
    assert "the bundle has no targets" in usual.targets_from
    assert own.targets_from == "the bundle's own"

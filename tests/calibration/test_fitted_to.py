"""Statements of a bundle speak of the bundle that they were fitted to, and of no other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from conftest import EXAMPLES, REPOSITORY
from small_data import few_examples

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE, FITTED, bundle_files
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.calibration.fitted import change_fitted
from monai_unet_app.calibration.statement_fit import StatementConfig, state_confidence
from monai_unet_app.cli import main
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.confidence.statements import STATEMENTS, Confidence, read_confidence
from monai_unet_app.config import InferenceSetting, ResultSettings
from monai_unet_app.data.cases import by_partition
from monai_unet_app.errors import AppError
from monai_unet_app.service.rule_checks import check_stated
from monai_unet_app.service.site import Rule

SHIPPED = REPOSITORY / "bundles/hippocampus_mri_unet3d"
INFERENCE, SEGMENTS = "configs/inference.yaml", "configs/segments.json"
CHANGED = "was changed after its statements were fitted"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of a shipped bundle, with its statements."""
    return Path(shutil.copytree(SHIPPED, tmp_path / SHIPPED.name))


def edit(root: Path, file: str, old: str, new: str) -> None:
    text = (root / file).read_text()
    assert re.search(old, text)
    (root / file).write_text(re.sub(old, new, text))


def other_weights(root: Path) -> None:
    weights = torch.load(root / "models/model.pt", weights_only=True)
    torch.save({name: value * 1.01 for name, value in weights.items()}, root / "models/model.pt")


def other_labels(root: Path) -> None:
    edit(root, INFERENCE, "background, anterior, posterior", "background, kidney_left, kidney_right")
    edit(root, SEGMENTS, '"SegmentLabel": "Anterior hippocampus"', '"SegmentLabel": "Left kidney"')
    edit(root, SEGMENTS, '"SegmentLabel": "Posterior hippocampus"', '"SegmentLabel": "Right kidney"')


def in_inference(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: edit(root, INFERENCE, old, new)


def finding(**parts: dict[str, Any]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for part, values in parts.items():
            change_fitted(root, part, **values)

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], set[InferenceSetting], str]] = {
    "weights": (other_weights, {"plain", "tta"}, "models/model.pt"),
    "structures": (other_labels, {"plain", "tta"}, "configs/inference.yaml, configs/segments.json"),
    "a whole's label": (
        lambda root: edit(root, SEGMENTS, '"label": "Hippocampus"', '"label": "Temporal lobe"'),
        {"plain", "tta"},
        SEGMENTS,
    ),
    "window": (in_inference(r"window: \[32, 48, 32\]", "window: [24, 48, 32]"), {"plain", "tta"}, INFERENCE),
    "overlap": (in_inference("overlap: 0.5", "overlap: 0.25"), {"plain", "tta"}, INFERENCE),
    "spacing": (in_inference(r"spacing_mm: \[1.0", "spacing_mm: [1.2"), {"plain", "tta"}, INFERENCE),
    "intensities": (in_inference("upper: 99.5", "upper: 99.0"), {"plain", "tta"}, INFERENCE),
    "calibration": (finding(calibration={"plain": {"reach": 2, "far": 0.0113, "near": 1.2}}), {"plain", "tta"}, FITTED),
    "a helper of calibrate": (in_inference("2 \\* n \\+ 1, 1, n", "4 * n + 1, 1, 2 * n"), {"plain", "tta"}, INFERENCE),
    "post-processing": (
        finding(tidy={"steps": [{"step": "holes", "structures": [1], "why": ""}]}),
        {"plain", "tta"},
        FITTED,
    ),
    "what may be chosen": (in_inference("  holes: .*\n", ""), {"plain", "tta"}, INFERENCE),
    "mirror axes": (in_inference(r"mirror_axes: \[0\]", "mirror_axes: [0, 1]"), {"tta"}, INFERENCE),
    "calibration of averages": (finding(calibration={"tta": None}), {"tta"}, FITTED),
    "no calibration of averages": (in_inference("calibration_tta: .*\n", ""), {"tta"}, INFERENCE),
}


@pytest.mark.parametrize("name", CHANGES)
def test_statements_do_not_speak_of_a_bundle_that_was_changed_since(name: str, bundle: Path) -> None:
    change, silent, files = CHANGES[name]
    change(bundle)
    settings: tuple[InferenceSetting, ...] = ("plain", "tta")
    for setting in settings:
        found = read_confidence(load_bundle(bundle), ResultSettings(tta=setting == "tta"))
        if setting not in silent:
            assert found.gate is not None
            continue
        assert found == Confidence(why_not=found.why_not)
        assert set(found.why_not) == set(STATEMENTS)
        (why,) = set(found.why_not.values())
        assert why == f"{bundle.name} {CHANGED} ({files}); run monai-unet calibrate again"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (INFERENCE, "# From a T1-weighted MR crop", "# Other words"),
        (INFERENCE, "device: .*", "device: cpu"),
        (INFERENCE, "dataset_dir: .*", "dataset_dir: /data"),
        (INFERENCE, "output_postfix: seg", "output_postfix: mask"),
        (INFERENCE, "sw_batch_size: 4", "sw_batch_size: 1"),
        (INFERENCE, "datalist: ", "centreline: true\ndatalist: "),
        (INFERENCE, "outputs: exclusive  #", "outputs:    'exclusive'   #"),
        (SEGMENTS, r"\[230, 159, 0\]", "[1, 2, 3]"),
        (SEGMENTS, '"SegmentAlgorithmName": ".*"', '"SegmentAlgorithmName": "another"'),
        ("configs/train.yaml", "epochs: .*", "epochs: 7"),
    ],
)
def test_what_changes_no_mask_and_no_name_leaves_the_statements_as_they_are(
    file: str, old: str, new: str, bundle: Path
) -> None:
    edit(bundle, file, old, new)
    assert read_confidence(load_bundle(bundle), ResultSettings()).gate is not None
    assert read_confidence(load_bundle(bundle), ResultSettings(tta=True)).gate is not None


def test_an_override_that_changes_results_silences_the_statements() -> None:
    assert read_confidence(load_bundle(SHIPPED), ResultSettings()).gate is not None
    overrides: list[dict[str, Any]] = [{"window": [24, 48, 32]}, {"inferer::overlap": 0.1}]
    for override in overrides:
        assert CHANGED in read_confidence(load_bundle(SHIPPED, **override), ResultSettings()).why_not["gate"]


def test_predict_says_that_the_bundle_was_changed_in_result_report_and_words(
    tiny_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(SHIPPED.name)  # which answers in a blink
    shutil.copy(SHIPPED / CONFIDENCE, bundle / CONFIDENCE)
    other_labels(bundle)
    edit(bundle, INFERENCE, r"mirror_axes: \[0\]", "mirror_axes: [1]")  # left and right are not mirrored
    image = EXAMPLES / "images/hippocampus_003.nii.gz"
    words = ["--input", str(image), "--output", str(tmp_path / "out"), "--format", "nifti,sr", "--dicomize"]
    assert main(["predict", "--bundle", str(bundle), *words, "--cautious"]) != 0
    assert f"{CHANGED} (" in " ".join(capsys.readouterr().err.split())
    assert main(["predict", "--bundle", str(bundle), *words]) == 0
    (record,) = (tmp_path / "out").glob("*_result.json")
    document = json.loads(record.read_text())
    assert document["assessment"]["verdict"] is None
    assert CHANGED in document["assessment"]["reasons"][0]
    assert not any("volume_interval_ml" in row for row in (*document["structures"], *document["wholes"]))
    said = " ".join(capsys.readouterr().out.split())
    assert f"no quality gate has judged this result: {bundle.name} {CHANGED}" in said
    (report,) = (tmp_path / "out").glob("*_sr.dcm")
    assert f"not judged; no quality gate has judged this result: {bundle.name} {CHANGED}" in str(
        pydicom.dcmread(report)
    )


def test_a_node_does_not_start_with_a_gate_of_another_bundle(bundle: Path) -> None:
    rule = Rule("hippocampus", str(bundle), {}, 1, (), ())
    check_stated(rule, bundle_files(bundle))
    edit(bundle, INFERENCE, "overlap: 0.5", "overlap: 0.25")
    with pytest.raises(AppError, match=rf"rule hippocampus: .* has no quality gate \(.*{CHANGED}"):
        check_stated(rule, bundle_files(bundle))


def test_calibrate_writes_what_it_fitted_to(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root, rows = tiny_bundle(), by_partition(few_examples(tmp_path / "data"))["calibration"]
    state_confidence(load_bundle(root), rows, config=StatementConfig(("plain", "tta")))
    document = json.loads((root / CONFIDENCE).read_text())
    settings: tuple[InferenceSetting, ...] = ("plain", "tta")
    for setting in settings:
        assert document["settings"][setting]["fitted_to"] == fitted_to(bundle_files(root), setting)
        assert CHANGED not in str(read_confidence(load_bundle(root), ResultSettings(tta=setting == "tta")).why_not)
    calibrate_bundle(load_bundle(root), rows, setting="tta", unchecked=True)  # and no statements after it
    assert CHANGED not in str(read_confidence(load_bundle(root), ResultSettings()).why_not)
    assert CHANGED in str(read_confidence(load_bundle(root), ResultSettings(tta=True)).why_not)

"""A bundle of an earlier version predicts as ever, and its upgrade changes no voxel, no probability and no statement."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import smaller
from small_data import drawn_eyes, few_examples

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.calibration.fitted import begin_fitted, check_upgraded
from monai_unet_app.confidence.fitted_to import changed_since, fitted_to
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.errors import BundleError
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.checkpoints import half_weights, save_atomically
from monai_unet_app.training.record import recipe_sha256
from monai_unet_app.training.run import TrainConfig, train_bundle
from monai_unet_app.upgrade import upgrade_bundle

EARLIER = Path(__file__).parent / "earlier"
VOLUMES, EYES = "hippocampus_mri_unet3d", "retina_vessel_unet2d"
FIRST_ON = "calibration: {reach: 2, far: 0.0113, near: 1.06206}\n"
CALIBRATE = re.compile(r"^calibrate: .*\n", re.MULTILINE)
EACH = 'each: "$lambda c, k, z: torch.stack([torch.as_tensor(c[k + str(n)]) for n in range(len(z))]).to(z)"\n'


def form(numbers: str, expression: str) -> Callable[[str], str]:
    """The text with another form, as `calibrate --form choose` wrote it."""

    def change(text: str) -> str:
        text = text.replace(FIRST_ON, f"calibration: {numbers}\n")
        text = re.sub(r"(?m)^(mean_nearby|mixture|calibration_tta): .*\n", "", text)
        return CALIBRATE.sub(lambda old: f'{EACH}calibrate: "$lambda logits, c=@calibration: {expression}"\n', text)

    return change


def tidied(*steps: str) -> Callable[[str], str]:
    chosen = "tidy:  # chosen by monai-unet calibrate; with [] in its place it begins anew\n" + "".join(steps)
    return lambda text: re.sub(r"(?m)^tidy: \[\]\n(?:# .*\n)*", lambda old: chosen, text)


def with_threshold(text: str) -> str:
    begin = "decide:\n- _target_: CopyItemsd\n  keys: pred\n  names: prob\n"
    chosen = (
        "# | threshold: Vessel 0.6\nthresholds: [0.6]  # chosen by monai-unet calibrate: from this probability on\n"
    )
    cut = (
        "- _target_: Lambdad  # chosen by monai-unet calibrate, with `thresholds`\n  keys: pred\n"
        '  func: "$lambda p: (p >= torch.tensor(@thresholds, device=p.device).reshape(-1, *[1] * (p.ndim - 1))).float()"\n'
    )
    assert text.count(begin) == 1
    return text.replace(begin, chosen + begin + cut)


def ensemble(text: str) -> str:
    block = (EARLIER / "ensemble.txt").read_text()
    text = re.sub(r"(?m)^feature_layer: (\S+)", lambda old: f"{block}feature_layer: 0.{old[1]}", text)
    text = text.replace("network_def:\n  _target_", "network_1:\n  _target_")
    text = text.replace("SupervisedEvaluator", "EnsembleEvaluator").replace(
        '"$@result + @save"', '"$@mean + @result + @save"'
    )
    return text.replace('\n  network: "@network"\n', '\n  networks: "$list(@network)"\n  pred_keys: "@answers"\n')


LARGEST = """\
# | the largest piece alone; Dice +0.01
- _target_: "KeepLargestConnectedComponentd"
  keys: "pred"
  applied_labels: [1]
  is_onehot: false
"""
ISLANDS = """\
# | islands; Dice +0.01
- _target_: "RemoveSmallObjectsd"
  keys: "pred"
  min_size: 30.0
  by_measure: true
  independent_channels: false
"""
CASES: dict[str, tuple[str, Callable[[str], str], dict[str, Any]]] = {
    "3D": (VOLUMES, lambda text: text, {"form": "region", "plain": {"reach": 2, "far": 0.0113, "near": 1.06206}}),
    "2D": ("hippocampus_mri_unet2d", lambda text: text, {"form": "region", "tta": None}),
    "pictures": (EYES, lambda text: text, {"form": "region", "tta": {"reach": 2, "far": 0.07141, "near": 1.80859}}),
    "none": (VOLUMES, form("{}", "logits"), {"form": "none", "plain": {}}),
    "temperature": (
        VOLUMES,
        form("{log_temperature: 0.3}", "logits * torch.exp(torch.as_tensor(-c['log_temperature'])).to(logits)"),
        {"form": "temperature", "plain": {"log_temperature": 0.3}},
    ),
    "classwise": (
        VOLUMES,
        form(
            "{class_0: 0.3, class_1: -0.2, class_2: 0.1}",
            "logits * torch.exp(-@each(c, 'class_', logits)[logits.argmax(0)])",
        ),
        {"form": "classwise", "plain": {"class_0": 0.3, "class_1": -0.2, "class_2": 0.1}},
    ),
    "of its owner": (
        VOLUMES,
        form("{scale: 0.3, bias: 0.1}", "logits * (1 + c['scale']) + c['bias'] * logits.sign()"),
        {"form": None, "plain": {"scale": 0.3, "bias": 0.1}},
    ),
    "thresholds": (EYES, with_threshold, {"form": "region"}),
    "post-processing": (VOLUMES, tidied(LARGEST, ISLANDS), {"form": "region"}),
    "ensemble": (VOLUMES, ensemble, {"form": "region"}),
}


@pytest.fixture
def earlier(tiny_bundle: Callable[..., Path]) -> Callable[[str], Path]:
    """A tiny bundle as an earlier version left it."""

    def make(case: str) -> Path:
        name, change, _ = CASES[case]
        root = tiny_bundle(name)
        text = change((EARLIER / f"{name}.yaml").read_text())
        (root / "configs/inference.yaml").write_text(smaller(text))
        for config, new, old in (
            ("evaluate", '"$@mean + @result"', '"@result"'),
            ("calibrate", 'postprocessing: {_target_: Compose, transforms: "@mean"}', "postprocessing: null"),
        ):
            path = root / f"configs/{config}.yaml"
            path.write_text(path.read_text().replace(new, old))
        (root / "models/fitted.json").unlink()
        torch.manual_seed(3)
        save_atomically(half_weights(load_bundle(root).part("network_def")), root / "models/model.pt")
        return root

    return make


def image_of(root: Path, folder: Path) -> Path:
    """An image of a few windows: of two along one axis alone."""
    if root.name == EYES:
        return drawn_eyes(folder, 1, (306, 312)) / "eye_1.png"
    file = few_examples(folder, ("hippocampus_003",)) / "images/hippocampus_003.nii.gz"
    image: Any = nibabel.load(file)
    nibabel.save(image.slicer[2:33, 3:45], file)
    return file


def results(root: Path, image: Path) -> list[np.ndarray]:
    """Labels and probabilities, plain and averaged over mirror images."""
    bundle = load_bundle(root)
    cases = [
        segment_case(image, bundle, PredictConfig(ResultSettings(tta=tta)), keep="probabilities")
        for tta in (False, True)
    ]
    return [np.asarray(part) for case in cases for part in (case.segmentation.labels, case.segmentation.probabilities)]


@pytest.mark.parametrize("case", CASES)
def test_an_upgraded_bundle_gives_the_same_voxels_and_probabilities(
    case: str, earlier: Callable[[str], Path], tmp_path: Path
) -> None:
    root = earlier(case)
    image = image_of(root, tmp_path / "image")
    before = results(root, image)
    assert "models/fitted.json" in upgrade_bundle(root)
    for old, new in zip(before, results(root, image), strict=True):
        np.testing.assert_array_equal(old, new)
    fitted = BundleFiles(root).fitted
    assert fitted is not None
    assert fitted["calibration"].items() >= CASES[case][2].items()
    begin_fitted(root)  # `calibrate` takes it
    config = BundleFiles(root).inference_document
    assert all("@fitted" in str(config[name]) for name in ("calibration", "tidy"))
    assert fitted["folds"]["number"] == (2 if case == "ensemble" else 1)
    assert fitted["thresholds"]["values"] == ([0.6] if case == "thresholds" else None)
    names = ["largest", "islands"] if case == "post-processing" else []
    assert [step["step"] for step in fitted["tidy"]["steps"]] == names


def test_statements_figures_and_a_run_stay_valid(earlier: Callable[[str], Path]) -> None:
    root = earlier("3D")
    old = load_bundle(root)
    statements = {"why_not": {}, "fitted_to": fitted_to(old, "plain")}
    document = {"schema_version": "1.2", "structures": list(old.structure_names), "settings": {"plain": statements}}
    (root / "configs/confidence.json").write_text(json.dumps(document))
    metadata = root / "configs/metadata.json"
    figures = json.loads(metadata.read_text()) | {"eval_metrics": {"bundle_sha256": load_bundle(root).sha256}}
    metadata.write_text(json.dumps(figures))
    configs = [root / f"configs/{name}.yaml" for name in ("inference", "train")]
    text = "".join(path.read_text() for path in configs)
    recipe = hashlib.sha256(re.sub(r"(?m)^calibration(_tta)?: .*$", "", text).encode()).hexdigest()
    for folder, digest in (("run", recipe), ("folds/1/run", recipe), ("folds/0/run", "of another recipe")):
        (root / folder).mkdir(parents=True)
        (root / folder / "run.json").write_text(json.dumps({"recipe_sha256": digest}))
    before = load_bundle(root).sha256
    upgrade_bundle(root)
    new = load_bundle(root)
    assert new.confidence_document is not None
    assert not changed_since(new, "plain", new.confidence_document["settings"]["plain"]["fitted_to"])
    assert new.metadata["eval_metrics"]["bundle_sha256"] == new.sha256 != before
    found = [
        json.loads((root / path / "run.json").read_text())["recipe_sha256"]
        for path in ("run", "folds/1/run", "folds/0/run")
    ]
    assert found == [recipe_sha256(configs), recipe_sha256(configs), "of another recipe"]
    assert new.fitted is not None
    assert new.fitted["calibration"]["fitted_to"]["models/model.pt"] == new.weights_sha256


def test_line_ends_of_windows_stay(earlier: Callable[[str], Path]) -> None:
    root = earlier("temperature")
    config = root / "configs/inference.yaml"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    text = config.read_text() + (root / "configs/train.yaml").read_text()
    recipe = hashlib.sha256(re.sub(r"(?m)^calibration(_tta)?: .*$", "", text).encode()).hexdigest()
    (root / "run").mkdir()
    (root / "run/run.json").write_text(json.dumps({"recipe_sha256": recipe}))
    assert "run/run.json" in upgrade_bundle(root)
    content = config.read_bytes()
    assert content.count(b"\n") == content.count(b"\r\n")
    assert b"@fitted['calibration']['form']" in content


def test_a_run_that_is_not_finished_is_upgraded_without_weights(earlier: Callable[[str], Path]) -> None:
    root = earlier("3D")
    (root / "models/model.pt").unlink()
    assert "configs/inference.yaml" in upgrade_bundle(root)
    assert not (root / "models/model.pt").exists()


def test_an_earlier_bundle_is_not_calibrated_or_trained_but_told_of_the_upgrade(
    earlier: Callable[[str], Path], tmp_path: Path
) -> None:
    root = earlier("3D")
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for act in (
        lambda: begin_fitted(root),
        lambda: check_upgraded(BundleFiles(root)),
        lambda: train_bundle(load_bundle(root), TrainConfig(tmp_path, tmp_path / "out")),
    ):
        with pytest.raises(BundleError, match=r"as in earlier versions; .* run monai-unet bundle upgrade --bundle"):
            act()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == files
    upgrade_bundle(root)
    with pytest.raises(BundleError, match="there is nothing to upgrade"):
        upgrade_bundle(root)


def test_an_upgrade_that_would_change_results_changes_no_file(
    earlier: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = earlier("3D")
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr("monai_unet_app.upgrade._of_averages", lambda document: {"reach": 2, "far": 9.0, "near": 0.0})
    with pytest.raises(BundleError, match="gives other results than before, so nothing was changed"):
        upgrade_bundle(root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == files

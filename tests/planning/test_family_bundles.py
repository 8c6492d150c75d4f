"""Each network of the family from a plan to a card: it trains, calibrates, predicts and is measured; three by MONAI, too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from shell import Run, shell
from small_data import calibration_of, plan_bundle, tilted_volumes
from test_family import NAMES

from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.family import NetworkChoice
from monai_unet_app.planning.write import write_plan

pytestmark = pytest.mark.slow
run = pytest.fixture(shell)
BY_MONAI = ("attention_unet", "unet_plus_plus", "unetr")
"""A gate, an adapter, a transformer: these run in MONAI's own command, too."""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So noisy that no network is right everywhere: a fit to a case without errors has no end."""
    folder = tilted_volumes(tmp_path_factory.mktemp("family") / "volumes", 5)
    for number, file in enumerate(sorted(folder.glob("imagesTr/*"))):
        image = nibabel.load(file)
        noise = np.random.default_rng(number).normal(0, 60, image.shape)
        nibabel.save(nibabel.Nifti1Image(np.float32(image.dataobj + noise), image.affine), file)
    return folder


@pytest.fixture(scope="module")
def places(volumes: Path) -> Path:
    parts = ("train", "train", "selection", "calibration", "test")
    cases = [
        {"id": f"case{n}", "subject": f"case{n}", "partition": part, "fold": n} for n, part in enumerate(parts)
    ]  # fmt: skip
    path = volumes.with_name("places.json")
    path.write_text(json.dumps({"schema_version": "1.0", "datasets": {"volumes": {"cases": cases}}}))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_network_from_its_plan_to_its_card(volumes: Path, places: Path, tmp_path: Path, run: Run, name: str) -> None:
    values = {"deep_supervision": "yes"} if name in ("dynunet", "unet_plus_plus", "mednext") else {}
    said = PlanConfig(
        volumes, structures={2: "liver", 5: "spleen"}, splits=places, time_s=1e-3, network=NetworkChoice(name, values)
    )
    plan = plan_bundle(said, lambda network, channels, outputs: 1e-6 * network.voxels)
    assert name == "dynunet" or name in plan.values["network_def"]
    planned, trained = tmp_path / "planned", tmp_path / "trained"
    write_plan(plan, planned)
    packages = json.loads((planned / "configs/metadata.json").read_text())["required_packages_version"]
    assert ("einops" in packages) == (name in ("swin_unetr", "unetr"))

    recipe = planned / "configs/train.yaml"
    text = re.sub(r"windows_per_case: .*", "windows_per_case: 6", recipe.read_text())
    recipe.write_text(text.replace("decay: 0.999", "decay: 0.5"))
    rate, epochs = (0.003, 6) if name == "swin_unetr" else (0.01, 3)
    told = ["--epochs", epochs, "--learning-rate", rate, "--precision", "f32", "--tracking", "none"]
    assert run("train", "--bundle", planned, "--data", volumes, "--output", trained, *told).code == 0
    assert run("calibrate", "--bundle", trained, "--data", volumes, "--unchecked").code == 0
    assert any(value for value in calibration_of(trained).values() if isinstance(value, float))
    answer = run("evaluate", "--bundle", trained, "--data", volumes, "--output", tmp_path / "report", "--into-bundle")
    assert answer.code == 0, answer.err
    assert "Dice" in (trained / "docs/README.md").read_text()

    image = volumes / "imagesTr/case4_0000.nii.gz"
    flags = ["--input", image, "--output", tmp_path / "ours", "--deliver-rejected", "--device", "cpu"]
    assert run("predict", "--bundle", trained, *flags).code == 0
    ours = next((tmp_path / "ours").rglob("*_seg.nii.gz"))
    state = torch.load(trained / "models/model.pt", weights_only=True)
    assert {part.dtype for part in state.values() if part.is_floating_point()} == {torch.float16}
    if name in BY_MONAI:
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
        more = ["--dataset_dir", image.parent, "--output_dir", tmp_path / "theirs", "--device", "cpu"]
        done = subprocess.run([*command, *more], cwd=trained, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        theirs = next((tmp_path / "theirs").rglob("case4*_seg.nii.gz"))
        assert np.mean(labels(theirs) != labels(ours)) < 1e-3


def labels(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj).squeeze()

"""Each network of the family trains and predicts; four go the whole way from a plan to a card, three of them by MONAI, too."""

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
IMAGE = "imagesTr/case4_0000.nii.gz"
BY_MONAI = ("attention_unet", "unet_plus_plus", "unetr")
"""A gate, an adapter, a transformer: these run in MONAI's own command, too."""

WHOLE_WAY = (*BY_MONAI, "dynunet")


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


def trained_bundle(name: str, epochs: int, volumes: Path, places: Path, folder: Path, run: Run) -> Path:
    """A planned bundle of a network after so many epochs."""
    values = {"deep_supervision": "yes"} if name in ("dynunet", "unet_plus_plus", "mednext") else {}
    said = PlanConfig(
        volumes, structures={2: "liver", 5: "spleen"}, splits=places, time_s=1e-3, network=NetworkChoice(name, values)
    )
    plan = plan_bundle(said, lambda network, channels, outputs: 1e-6 * network.voxels)
    assert name == "dynunet" or name in plan.values["network_def"]
    planned, trained = folder / "planned", folder / "trained"
    write_plan(plan, planned)
    packages = json.loads((planned / "configs/metadata.json").read_text())["required_packages_version"]
    assert ("einops" in packages) == (name in ("swin_unetr", "unetr"))

    recipe = planned / "configs/train.yaml"
    text = re.sub(r"windows_per_case: .*", "windows_per_case: 4", recipe.read_text())
    recipe.write_text(text.replace("decay: 0.999", "decay: 0.5"))
    told = ["--epochs", epochs, "--learning-rate", 0.01, "--precision", "f32", "--tracking", "none"]
    assert run("train", "--bundle", planned, "--data", volumes, "--output", trained, *told).code == 0
    state = torch.load(trained / "models/model.pt", weights_only=True)
    assert {part.dtype for part in state.values() if part.is_floating_point()} == {torch.float16}
    return trained


def labelled(bundle: Path, volumes: Path, folder: Path, run: Run) -> np.ndarray:
    """What `predict` writes of a case."""
    flags = ["--input", volumes / IMAGE, "--output", folder / "ours", "--deliver-rejected", "--device", "cpu"]
    assert run("predict", "--bundle", bundle, *flags).code == 0
    return labels(next((folder / "ours").rglob("*_seg.nii.gz")))


@pytest.mark.parametrize("name", sorted({*NAMES} - {*WHOLE_WAY}))
def test_a_network_trains_and_predicts(volumes: Path, places: Path, tmp_path: Path, run: Run, name: str) -> None:
    trained = trained_bundle(name, 1, volumes, places, tmp_path, run)
    assert labelled(trained, volumes, tmp_path, run).shape == nibabel.load(volumes / IMAGE).shape


@pytest.mark.usefixtures("without_pages")
@pytest.mark.parametrize("name", WHOLE_WAY)
def test_a_network_from_its_plan_to_its_card(volumes: Path, places: Path, tmp_path: Path, run: Run, name: str) -> None:
    trained = trained_bundle(name, 3, volumes, places, tmp_path, run)
    assert run("calibrate", "--bundle", trained, "--data", volumes, "--unchecked").code == 0
    assert any(value for value in calibration_of(trained).values() if isinstance(value, float))
    answer = run("evaluate", "--bundle", trained, "--data", volumes, "--output", tmp_path / "report", "--into-bundle")
    assert answer.code == 0, answer.err
    assert "Dice" in (trained / "docs/README.md").read_text()
    ours = labelled(trained, volumes, tmp_path, run)
    if name in BY_MONAI:
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
        more = ["--dataset_dir", (volumes / IMAGE).parent, "--output_dir", tmp_path / "theirs", "--device", "cpu"]
        done = subprocess.run([*command, *more], cwd=trained, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        theirs = next((tmp_path / "theirs").rglob("case4*_seg.nii.gz"))
        assert np.mean(labels(theirs) != ours) < 1e-3


def labels(file: Path) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj).squeeze()

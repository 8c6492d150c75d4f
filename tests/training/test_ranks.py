"""A training of several processes is the training of one: the same windows in each step, the same losses, one set of files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_data import plan_bundle, tilted_volumes
from torch import nn

from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.write import write_plan
from monai_unet_app.training import ranks
from monai_unet_app.training.replay import ReplayDataset, ReplayLoader, ReplaySampler
from monai_unet_app.training.update import TrainingStep

EPOCHS = 3


def test_processes_share_the_windows_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(islice(ReplaySampler(5, seed=3, step=6), 24))
    parts = []
    for count in (2, 3):
        monkeypatch.setattr(ranks, "count", lambda count=count: count)
        for own in range(count):
            monkeypatch.setattr(ranks, "own", lambda own=own: own)
            parts.append(list(islice(ReplaySampler(5, seed=3, step=6), 24 // count)))
    for shares in (parts[:2], parts[2:]):
        size = 6 // len(shares)
        for step in range(4):
            together = [draw for share in shares for draw in share[step * size : (step + 1) * size]]
            assert together == alone[step * 6 : (step + 1) * 6]


def test_a_step_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    dataset = ReplayDataset([{"image": torch.zeros(1)}] * 4, [], [])
    with pytest.raises(
        Exception, match=r"2 processes train on steps of 3 window\(s\); a number that they share evenly"
    ):
        ReplayLoader(dataset, batch_size=3)


def accumulated(accumulate: int, batches: list[torch.Tensor], length: int) -> tuple[list[torch.Tensor], int]:
    """The weights after these batches, and how often the schedule was advanced."""
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    steps = []
    scheduler = SimpleNamespace(step=lambda: steps.append(1))
    state = SimpleNamespace(iteration=0, epoch_length=length, device=torch.device("cpu"), output=None)
    trainer: Any = SimpleNamespace(
        network=network, optimizer=optimizer, state=state, data_loader=None, non_blocking=False,
        prepare_batch=lambda batch, device, blocking: (batch["image"], batch["label"]),
        inferer=lambda image, network: network(image), fire_event=lambda event: None,
        loss_function=lambda pred, label: ((pred - label) ** 2).mean(),
    )  # fmt: skip
    step = TrainingStep("f32", scheduler, max_gradient_norm=1e9, accumulate=accumulate)
    for image in batches:
        state.iteration += 1
        step(trainer, {"image": image, "label": image.repeat(1, 2, 1, 1) * 2})
    return list(network.parameters()), len(steps)


def test_gradients_of_several_batches_make_one_step_and_the_schedule_counts_steps() -> None:
    images = [torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(10)]
    large = [torch.cat(images[:3]), torch.cat(images[3:5]), torch.cat(images[5:8]), torch.cat(images[8:])]
    # Epochs of 5 batches: three make a step, and the two that are left make another
    own, steps = accumulated(3, images, length=5)
    whole, large_steps = accumulated(1, large, length=2)
    assert steps == large_steps == 4
    for one, other in zip(own, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tilted_volumes(tmp_path_factory.mktemp("ranks") / "volumes", 5)


def planned(volumes: Path, root: Path) -> Path:
    """A tiny bundle whose loss is the mean over windows: only such a loss is the same for parts of a step."""
    said = PlanConfig(volumes, structures={2: "liver", 5: "spleen"}, modality="MR", time_s=1.0)
    write_plan(plan_bundle(said, lambda network, channels, outputs: 1e-6 * network.voxels), root)
    config, train = root / "configs/inference.yaml", root / "configs/train.yaml"
    config.write_text(re.sub(r"^  filters: .*", "  filters: [4, 8, 8, 8]", config.read_text(), flags=re.MULTILINE))
    text = train.read_text().replace("  batch: true", "  batch: false")
    train.write_text(re.sub(r"windows_per_case: .*", "windows_per_case: 2", text))
    return root


def command(root: Path, volumes: Path, *more: object, processes: int) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    configs = ["inference", "train", *["multi_gpu_train"] * (processes > 1)]
    run = [
        *(start if processes > 1 else [sys.executable]), "-m", "monai.bundle", "run", "--config_file",
        str([f"configs/{name}.yaml" for name in configs]), "--dataset_dir", volumes, "--fold", 0, "--epochs", EPOCHS,
        "--precision", "f32", "--device", "cpu", "--tracker", "none", "--weights_dir", root / "weights", *more,
    ]  # fmt: skip
    words = [str(word) for word in run]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, check=False, timeout=500)


def losses(root: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((root / "run/run.json").read_text())["history"]]


@pytest.mark.slow
def test_two_processes_reach_the_losses_of_one_and_one_goes_on_where_two_were_stopped(
    volumes: Path, tmp_path: Path
) -> None:
    alone, pair = planned(volumes, tmp_path / "alone"), planned(volumes, tmp_path / "pair")
    done = command(alone, volumes, processes=1)
    assert done.returncode == 0, done.stderr[-2000:]
    # Stopped after two epochs; then a single process goes on
    done = command(pair, volumes, "--train::trainer::max_epochs", EPOCHS - 1, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("epoch   2/2") == 1  # the first process alone tells
    assert losses(pair) == pytest.approx(losses(alone)[:-1], rel=1e-4)
    session = json.loads((pair / "run/run.json").read_text())["sessions"][0]
    assert session["processes"] == 2
    done = command(pair, volumes, processes=1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(pair) == pytest.approx(losses(alone), rel=1e-3)
    one, other = (torch.load(root / "weights/model.pt", weights_only=True) for root in (alone, pair))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=2e-2) for name in one)


@pytest.mark.slow
def test_processes_with_other_data_are_refused(volumes: Path, tmp_path: Path) -> None:
    root = planned(volumes, tmp_path / "plan")
    text = (root / "configs/multi_gpu_train.yaml").read_text()
    seed = "seed: \"$int(os.environ['RANK'])\"\n"
    (root / "configs/multi_gpu_train.yaml").write_text(seed + text)
    done = command(root, volumes, processes=2)
    assert done.returncode != 0
    sentences = [
        line for line in done.stderr.splitlines() if line.startswith("error: the processes of this training have")
    ]
    assert "other data, settings or configs" in sentences[0]
    assert "exitcode  : 3" in done.stderr  # torchrun itself ends with 1
    assert "monai_unet_app" not in done.stderr  # no traceback
    assert not (root / "weights").exists()

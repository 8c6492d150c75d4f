"""Whole trainings with a tiny network: resumed, killed, refused, recorded, and from DICOM as from NIfTI."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from ignite.engine import Engine
from monai.bundle import ConfigParser
from once import made_once
from small_data import FEW, calibration_of, drawn_eyes, few_examples, set_calibration

from dicom_io.dicomize import dicomize
from dicom_io.read import read_series
from dicom_io.seg import read_seg
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import UsageError
from monai_unet_app.training import Tracking
from monai_unet_app.training.record import RunRecord, command_line, git_commit
from monai_unet_app.training.run import TrainConfig, run_overlay, train_bundle

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {
    "epochs": 4,
    "train::loader::windows_per_case": 1,
    "train::loader::batch_size": 2,
    "val_interval": 1,
    "window": [24, 32, 24],
    "inferer::overlap": 0.0,
    "precision": "f32",
    "tracker": "none",
}


def train(root: Path, data: Path, **changed: Any) -> None:
    overrides = {"dataset_dir": str(data), "device": CPU, **QUICK, **changed}
    run_overlay(root, "train", overrides)


def record(root: Path) -> dict[str, Any]:
    return json.loads(
        (root / "run/run.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )


def weights(root: Path) -> dict[str, torch.Tensor]:
    return torch.load(root / "models/model.pt", weights_only=True)


def equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def untrained(tiny_bundle: Callable[..., Path], folder: Path, name: str = "hippocampus_mri_unet3d") -> Path:
    """A tiny bundle without weights in a folder of its own."""
    root = folder / name
    if not (folder.parent / "bundles" / name).is_dir():
        tiny_bundle(name)
    shutil.copytree(
        folder.parent / "bundles" / name, root, ignore=shutil.ignore_patterns("*.pt", "run.json", "calibration.json")
    )
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return few_examples(tmp_path / "data", FEW[:3])


def with_dropout(root: Path) -> Path:
    config = root / "configs/inference.yaml"
    text = config.read_text()
    config.write_text(text.replace("filters: [4, 4, 4, 4]", "filters: [4, 4, 4, 4]\n  dropout: 0.2"))
    assert config.read_text() != text
    return root


@pytest.fixture
def begun(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two epochs that was stopped after the first one, drawn in TensorBoard; the test may change it."""

    def make(folder: Path) -> None:
        root = untrained(tiny_bundle, tmp_path / "begun")
        train(root, data, epochs=2, tracker="tensorboard", **{"train::trainer::max_epochs": 1})
        shutil.copytree(root, folder / "run")

    return Path(shutil.copytree(made_once(tmp_path_factory, "begun_run", make) / "run", tmp_path / "run" / "begun"))


HARD = {"train::loader::hard_cases": 0.9, "train::loader::windows_per_case": 3}


@pytest.fixture
def hard(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A whole run of a network with dropout that draws hard cases more often; not to be changed."""

    def make(folder: Path) -> None:
        root = with_dropout(untrained(tiny_bundle, tmp_path / "hard"))
        train(root, data, **HARD)
        shutil.copytree(root, folder / "run")

    return made_once(tmp_path_factory, "hard_run", make) / "run"


@pytest.mark.parametrize("kind", ["plain", "with dropout and hard cases"])
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Weights are compared bit by bit, so one network with both finds what a run forgets of either."""
    more: dict[str, Any] = {}
    parts = untrained(tiny_bundle, tmp_path / "parts")
    if kind == "plain":
        whole = untrained(tiny_bundle, tmp_path / "whole")
        train(whole, data)
    else:
        whole, parts, more = request.getfixturevalue("hard"), with_dropout(parts), HARD
    train(parts, data, **more, **{"train::trainer::max_epochs": 1})
    torch.rand(7)
    train(parts, data, **more, **{"train::trainer::max_epochs": 3})
    train(parts, data, **more)
    assert record(parts)["history"] == record(whole)["history"]
    assert [session["from_epoch"] for session in record(parts)["sessions"]] == [0, 1, 3]
    assert equal_weights(weights(parts), weights(whole))
    last = [torch.load(root / "run/last.pt", weights_only=False)["state"] for root in (whole, parts)]
    assert equal_weights(last[0]["network"], last[1]["network"])
    assert equal_weights(last[0]["averaged"], last[1]["averaged"])
    assert last[0]["scheduler"]["_last_lr"] == last[1]["scheduler"]["_last_lr"]

    history = record(parts)["history"]
    train(parts, data, **more)  # once more, though nothing is left to do
    assert record(parts)["history"] == history
    assert equal_weights(weights(parts), weights(whole))


def test_hard_cases_change_the_windows_from_the_third_epoch_on(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path, hard: Path
) -> None:
    alike = with_dropout(untrained(tiny_bundle, tmp_path / "alike"))
    train(alike, data, **{**HARD, "train::loader::hard_cases": 0.0})
    losses = [[epoch["loss"] for epoch in record(root)["history"]] for root in (hard, alike)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2:] != losses[1][2:]
    known = torch.load(hard / "run/last.pt", weights_only=False)["state"]["case_losses"]["known"]
    # of the third and of the fourth epoch, by the mean of earlier ones
    np.testing.assert_allclose(np.mean(known[0]), np.mean(losses[0][:3]), rtol=0.3)


KILLED = """
import os, signal, sys, time, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from monai_unet_app.training.run import run_overlay
import monai_unet_app.training, monai_unet_app.data.monai_bridge, monai_unet_app.data.cases

whole, killed, overrides = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])

def child(root):
    process = os.fork()
    if process == 0:
        code = 1
        try:
            run_overlay(root, "train", {**overrides, "device": torch.device("cpu")})
            code = 0
        finally:
            os._exit(code)
    return process

def exit_of(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

assert exit_of(child(whole)) == 0
process = child(killed)
while not (killed / "run/run.json").exists():
    assert os.waitpid(process, os.WNOHANG)[0] == 0, "the training ended before it could be killed"
    time.sleep(0.002)
os.kill(process, signal.SIGKILL)
assert exit_of(process) == -signal.SIGKILL
assert not (killed / "models/model.pt").exists(), "the training was done before it was killed"
assert exit_of(child(killed)) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("dropout", [False, True])
def test_a_run_killed_by_the_system_and_started_again_equals_one_that_was_not(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path, dropout: bool
) -> None:
    whole, killed = (untrained(tiny_bundle, tmp_path / name) for name in ("whole", "killed"))
    if dropout:
        whole, killed = with_dropout(whole), with_dropout(killed)
    overrides = json.dumps({**QUICK, "dataset_dir": str(data), "train::loader::windows_per_case": 2})
    command = [sys.executable, "-c", KILLED, str(whole), str(killed), overrides]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    sessions = record(killed)["sessions"]
    assert len(sessions) == 2
    assert 1 <= sessions[1]["from_epoch"] < QUICK["epochs"]
    assert record(killed)["history"] == record(whole)["history"]
    assert record(killed)["best"] == record(whole)["best"]
    assert equal_weights(weights(killed), weights(whole))


def test_a_restart_does_not_let_a_worse_model_win(begun: Path, data: Path) -> None:
    last = begun / "run/last.pt"
    state = torch.load(last, weights_only=False)
    torch.save({**state, "best_metric": 0.987}, last)
    best = torch.load(begun / "run/best.pt", weights_only=True)
    marked = {key: value + 1 if value.is_floating_point() else value for key, value in best.items()}
    torch.save(marked, begun / "run/best.pt")

    train(begun, data, epochs=2)
    assert record(begun)["epochs_done"] == 2
    assert record(begun)["best"] == {"epoch": 1, "metric": 0.987}
    assert equal_weights(weights(begun), marked)


def test_the_best_epoch_is_the_one_that_is_delivered(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    root = untrained(tiny_bundle, tmp_path / "run")
    train(root, data, learning_rate=0.02)
    history, best = record(root)["history"], record(root)["best"]
    metrics = [entry["metric"] for entry in history]
    assert best == {"epoch": history[int(np.argmax(metrics))]["epoch"], "metric": max(metrics)}
    assert equal_weights(weights(root), torch.load(root / "run/best.pt", weights_only=True))
    delivered = json.loads((root / "models/run.json").read_text())
    assert delivered.pop("weights_sha256") == hashlib.sha256((root / "models/model.pt").read_bytes()).hexdigest()
    assert delivered == json.loads((root / "run/run.json").read_text())
    load_bundle(root).network.eval()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epochs": 5}, {"learning_rate": 0.01}, "data"], ids=str)
def test_another_run_does_not_go_on_where_this_one_stopped(begun: Path, data: Path, changed: Any) -> None:
    kept = {name: (begun / "run" / name).read_bytes() for name in ("last.pt", "best.pt", "run.json")}
    if changed == "data":
        label = data / "labels" / f"{FEW[0]}.nii.gz"
        image: Any = nibabel.load(label)
        array = np.asarray(image.dataobj).copy()
        array[0, 0, 0] = 1
        nibabel.save(nibabel.Nifti1Image(array, image.affine), label)
    with pytest.raises(UsageError, match="only the same run can be resumed"):
        train(begun, data, **{"epochs": 2, **({} if changed == "data" else changed)})
    assert {name: (begun / "run" / name).read_bytes() for name in kept} == kept


def test_a_run_is_not_resumed_after_its_recipe_was_edited(begun: Path, data: Path) -> None:
    config = begun / "configs/train.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.05", "weight_decay: 0.5"))
    with pytest.raises(UsageError, match="recipe"):
        train(begun, data, epochs=2)


def test_new_weights_make_old_figures_and_calibration_go(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    root = tiny_bundle()
    set_calibration(root, 0.5)
    (root / "models/calibration.json").write_text('{"cases": {}}')
    metadata = root / "configs/metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "eval_metrics": {"dice": 0.9}}))
    train(root, data, epochs=1)
    assert {value for value in calibration_of(root).values() if isinstance(value, float)} == {0.0}
    assert not (root / "models/calibration.json").exists()
    assert json.loads(metadata.read_text())["eval_metrics"] == {}
    assert "Not measured yet." in (root / "docs/README.md").read_text()
    set_calibration(root, 0.5)
    train(root, data, epochs=1)  # finished: nothing is new
    assert 0.5 in calibration_of(root).values()


def test_the_command_is_recorded_without_this_machines_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "/opt/x/bin/monai-unet",
        "train",
        "--data",
        "/srv/Jane Doe/data",
        "--output=/srv/my o/o",
        "../shared/data",
        "a/b",
    ]
    monkeypatch.setattr("sys.argv", [*words, "['/srv/b/configs/inference.yaml','configs/train.yaml']"])
    short = ["monai-unet", "train", "--data", "data", "--output=o", "../shared/data", "a/b"]
    assert command_line() == [*short, "['inference.yaml','configs/train.yaml']"]


def test_an_installation_inside_another_repository_has_no_commit_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "venv/monai_unet_app/training/record.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr("monai_unet_app.training.record.__file__", str(installed))
    assert git_commit() is None


def test_a_run_too_short_to_be_validated_still_delivers_its_last_weights(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    root = untrained(tiny_bundle, tmp_path / "run")
    train(root, data, epochs=1, val_interval=2)
    found = record(root)
    assert found["history"][0]["metric"] is None
    assert found["best"] == {"epoch": 0, "metric": None}
    state = torch.load(root / "run/last.pt", weights_only=False)["state"]["averaged"]
    for name, value in weights(root).items():
        torch.testing.assert_close(value.float(), state[f"module.{name}"].float(), atol=1e-3, rtol=1e-3)


def test_the_run_record_obeys_its_schema_and_tells_the_whole_story(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = untrained(tiny_bundle, tmp_path / "run")
    train(root, data, epochs=2, tracker="tensorboard")
    found = record(root)
    schema = json.loads((REPOSITORY / "monai_unet_app/schemas/run.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(found)
    assert {case: entry["partition"] for case, entry in found["cases"].items()} == {
        FEW[0]: "train",
        FEW[1]: "train",
        FEW[2]: "selection",
    }
    assert found["settings"]["seed"] == 0
    assert found["settings"]["epochs"] == 2
    assert found["sessions"][0]["versions"]["torch"] == torch.__version__
    assert found["sessions"][0]["precision"] == "f32"
    assert all(np.isfinite(entry["loss"]) for entry in found["history"])
    session = found["sessions"][0]
    assert 0 < session["waiting_seconds"] + session["step_seconds"] <= session["seconds"]

    curves = tensorboard_points(root / "run/tensorboard")
    assert [step for step, _ in curves["train/loss"]] == [1, 2]
    for key, curve in (("loss", "train/loss"), ("metric", "selection/mean_dice")):
        np.testing.assert_allclose([value for _, value in curves[curve]], [e[key] for e in found["history"]], rtol=1e-5)

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert re.match(r"epoch\s+1/2 · loss \d\.\d{4} · Dice on selection cases \d\.\d{4} \(best \d\.\d{4}\)", lines[0])


def tensorboard_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_record_tells_waiting_for_data_from_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]  # no sleep is exact on a busy machine

    def passes(seconds: float) -> None:
        clock[0] += seconds

    def slow_draws() -> Iterator[int]:
        for draw in range(4):
            passes(0.2)
            yield draw

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    engine = Engine(lambda engine, batch: passes(0.05))
    engine.state.device = "cpu"  # type: ignore[attr-defined]
    kept = SimpleNamespace(best_epoch=0, best_metric=float("-inf"), history=[])
    RunRecord(tmp_path / "run.json", {}, {}, [], "f32", kept).attach(engine)  # type: ignore[arg-type]
    engine.run(slow_draws(), max_epochs=1, epoch_length=4)
    (session,) = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert (session["waiting_seconds"], session["step_seconds"], session["seconds"]) == (0.8, 0.2, 1.0)


def test_a_resumed_run_draws_one_curve_in_tensorboard(begun: Path, data: Path) -> None:
    train(begun, data, epochs=2, tracker="tensorboard")
    points = tensorboard_points(begun / "run/tensorboard")["train/loss"]
    assert [step for step, _ in points] == [1, 2]
    np.testing.assert_allclose([value for _, value in points], [e["loss"] for e in record(begun)["history"]], rtol=1e-5)


class History:
    """Stands for `Checkpoints`: grows by an entry an epoch."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []

    def note(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        self.history.append({"epoch": epoch, "loss": 1.0 / epoch, "metric": None if epoch % 2 else 0.1 * epoch})


def test_two_trainings_that_begin_at_the_same_time_share_an_experiment_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow.tracking", reason="the extra `mlflow` is not installed")
    from ignite.engine import Events
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    find, made = MlflowClient.get_experiment_by_name, []

    def find_before_the_other(client: MlflowClient, name: str) -> Any:
        if made:
            return find(client, name)
        made.append(client.create_experiment(name))  # by the other training, just after this one has looked
        return None

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", find_before_the_other)
    history, engine = History(), Engine(lambda engine, batch: None)
    engine.add_event_handler(Events.EPOCH_COMPLETED, history.note)
    (tmp_path / "run").mkdir()
    Tracking("mlflow", tmp_path / "run", history).attach(engine)  # type: ignore[arg-type]
    engine.run([0], max_epochs=1)
    assert len(MlflowClient().search_runs(made)) == 1


def test_mlflow_writes_to_a_local_folder_and_a_resumed_run_goes_on_in_its_own(tmp_path: Path) -> None:
    pytest.importorskip("mlflow.tracking", reason="the extra `mlflow` is not installed")
    from ignite.engine import Events
    from mlflow.tracking import MlflowClient

    for epochs in (2, 2):
        history, engine = History(), Engine(lambda engine, batch: None)
        engine.add_event_handler(Events.EPOCH_COMPLETED, history.note)
        Tracking("mlflow", tmp_path, history).attach(engine)  # type: ignore[arg-type]
        engine.run([0], max_epochs=epochs)
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("training")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    points = client.get_metric_history(runs[0].info.run_id, "train/loss")
    assert {(point.step, point.value) for point in points} == {(1, 1.0), (2, 0.5)}
    dice = client.get_metric_history(runs[0].info.run_id, "selection/mean_dice")
    assert {(point.step, point.value) for point in dice} == {(2, 0.2)}
    assert not (REPOSITORY / "mlruns").exists()


def test_a_training_can_be_tracked_by_mlflow(tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow.tracking", reason="the extra `mlflow` is not installed")
    from mlflow.tracking import MlflowClient

    root = untrained(tiny_bundle, tmp_path / "run")
    train(root, data, epochs=1, tracker="mlflow")
    client = MlflowClient(tracking_uri=(root / "run/mlflow").as_uri())
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["train/loss"] == pytest.approx(record(root)["history"][0]["loss"])
    assert not (root / "run/tensorboard").exists()
    wanted = {"epochs": "1", "seed": "0", "cases.train": "2", "data_sha256": record(root)["data_sha256"]}
    assert run.data.params.items() >= wanted.items()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert not [value for value in run.data.params.values() if "hippocampus" in value]


def test_mlflow_writes_to_the_place_that_its_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow.tracking", reason="the extra `mlflow` is not installed")
    from ignite.engine import Events
    from mlflow.tracking import MlflowClient

    elsewhere = (tmp_path / "server").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "livers")
    for name in ("first", "second", "first"):
        history, engine, folder = History(), Engine(lambda engine, batch: None), tmp_path / name / "run"
        folder.mkdir(parents=True, exist_ok=True)
        engine.add_event_handler(Events.EPOCH_COMPLETED, history.note)
        Tracking("mlflow", folder, history).attach(engine)  # type: ignore[arg-type]
        engine.run([0], max_epochs=2)
        assert not (folder / "mlflow").exists()
    client = MlflowClient(tracking_uri=elsewhere)
    experiment = client.get_experiment_by_name("livers")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(str(run.info.run_name) for run in runs) == ["first", "second"]


def test_an_unknown_tracking_is_a_usage_error_that_names_the_known(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="tensorboard, mlflow, none"):
        train(untrained(tiny_bundle, tmp_path / "run"), data, tracker="wandb")


# --- from DICOM as from NIfTI -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three example cases as DICOM series with SEG labels, and as the NIfTI that is read back from these."""
    folder = made_once(tmp_path_factory, "twins_of_training_data", make_twins)
    return folder / "dicom", folder / "back"


def make_twins(folder: Path) -> None:
    nifti, dicom, back = few_examples(folder / "original", FEW[:3]), folder / "dicom", folder / "back"
    segments = load_bundle("hippocampus_mri_unet3d").segments
    for kind in ("images", "labels"):
        (back / kind).mkdir(parents=True)
    for case in FEW[:3]:
        image = read_volume(nifti / "images" / f"{case}.nii.gz")
        labels = read_labels(nifti / "labels" / f"{case}.nii.gz", image)
        made = dicomize(image, dicom / case, labels=labels, segments=segments, case_id=case)
        series = read_series(made.series_folder)
        assert made.seg is not None
        for kind, volume in (("images", series), ("labels", read_seg(made.seg, series))):
            array = np.asarray(volume.array, np.float32 if kind == "images" else np.uint8)
            nibabel.save(nibabel.Nifti1Image(array, volume.affine_ras), back / kind / f"{case}.nii.gz")


def windows_of(root: Path, data: Path, draws: list[tuple[int, int]]) -> list[dict[str, torch.Tensor]]:
    parser = ConfigParser()
    parser.read_config([str(root / f"configs/{name}.yaml") for name in ("inference", "train")])
    parser["bundle_root"], parser["dataset_dir"], parser["device"] = str(root), str(data), CPU
    dataset = parser.get_parsed_content("train::dataset")
    return [dataset[draw] for draw in draws]


@pytest.mark.parametrize("name", ["hippocampus_mri_unet3d", "hippocampus_mri_unet2d"])
def test_dicom_and_the_nifti_read_back_from_it_give_the_network_the_same_tensors(
    name: str, tiny_bundle: Callable[[str], Path], twins: tuple[Path, Path]
) -> None:
    root, draws = tiny_bundle(name), [(0, 0), (1, 1), (0, 2), (1, 3)]
    from_dicom, from_nifti = (windows_of(root, data, draws) for data in twins)
    for first, second in zip(from_dicom, from_nifti, strict=True):
        assert torch.equal(first["image"], second["image"])
        assert torch.equal(first["label"], second["label"])
    assert any(window["label"].max() > 0 for window in from_dicom)


def test_training_from_dicom_folders_gives_the_losses_of_training_from_nifti(
    tiny_bundle: Callable[..., Path], twins: tuple[Path, Path], tmp_path: Path
) -> None:
    histories = []
    for kind, data in zip(("dicom", "nifti"), twins, strict=True):
        root = untrained(tiny_bundle, tmp_path / f"run_{kind}")
        train(root, data, epochs=1)
        histories.append(record(root)["history"])
    assert histories[0] == histories[1]
    assert histories[0][0]["metric"] is not None


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_train_bundle_copies_the_template_trains_the_copy_and_leaves_the_template_alone(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    template = load_bundle(tiny_bundle())
    before, said = template.sha256, []
    run = TrainConfig(
        data, tmp_path / "new" / "my_bundle", device="cpu", overrides={**QUICK, "epochs": 1}, say=said.append
    )
    made = train_bundle(template, run)
    assert made.root == (tmp_path / "new" / "my_bundle").resolve()
    assert load_bundle(template.root).sha256 == before
    assert set(made.run_record["cases"]) == set(FEW[:3])
    assert not equal_weights(weights(made.root), weights(template.root))
    assert said.pop(1).startswith("0 subject(s) to calibrate: ")
    assert said == [
        "2 to train on, 1 to select the best model",
        "reading and checking 3 case(s)",
        "training",
    ]


def test_an_output_that_holds_something_else_is_left_alone(
    tiny_bundle: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a bundle"):
        train_bundle(load_bundle(tiny_bundle()), TrainConfig(data, tmp_path / "full", device="cpu", overrides=QUICK))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hippocampus_mri_unet2d", "retina_vessel_unet2d"])
def test_the_2d_bundles_train_validate_and_deliver(
    name: str, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    root = untrained(tiny_bundle, tmp_path / "run", name)
    folder = tmp_path / "few"
    data = drawn_eyes(folder) if name.startswith("retina") else few_examples(folder, FEW[:3])
    train(root, data, epochs=1, window=[64, 64] if name.startswith("retina") else [24, 16])
    assert record(root)["history"][0]["metric"] is not None
    assert load_bundle(root).network is not None

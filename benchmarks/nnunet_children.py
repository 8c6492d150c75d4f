"""What `trained_vs_nnunet.py` has nnU-Net do, each as a process of its own with nnU-Net's environment variables.

python benchmarks/nnunet_children.py NAME ARGUMENTS

The number of torch's threads is OMP_NUM_THREADS. Everything runs on the CPU.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATASET = "Dataset001_Peer"
NUMBER = "1"
WARM_UP, TIMED = 1, 3
VALIDATIONS = 1  # batches after each epoch; nothing is chosen by them
CHECKPOINTS = 10  # in a training, so that a killed one goes on


def prepare(configuration: str) -> int:
    """nnU-Net's own fingerprint, plan and preprocessing, in one process each."""
    from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry

    sys.argv = ["", "-d", NUMBER, "-c", configuration, "-np", "1", "-npfp", "1", "--clean", "--no_pbar"]
    plan_and_preprocess_entry()
    return 0


def measure(configuration: str, fold: str, told: str) -> int:
    """Writes seconds of a training iteration (by the clock, and of the processor) and of a validation batch, and its sizes."""
    import torch

    trainer = _trainer(configuration, fold)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            start, busy = time.monotonic(), time.process_time()
        trainer.train_step(next(trainer.dataloader_train))
    seconds, busy = time.monotonic() - start, time.process_time() - busy
    trainer.on_validation_epoch_start()
    start = time.monotonic()
    with torch.no_grad():
        trainer.validation_step(next(trainer.dataloader_val))
    found = {
        "iteration_s": seconds / TIMED,
        "iteration_cpu_s": busy / TIMED,
        "validation_s": time.monotonic() - start,
        "patch": list(trainer.configuration_manager.patch_size),
        "batch": trainer.batch_size,
        "spacing": list(trainer.configuration_manager.spacing),
        "parameters": sum(one.numel() for one in trainer.network.parameters()),
    }
    _write(found, Path(told))
    return 0


def train(configuration: str, fold: str, told: str) -> int:
    """nnU-Net's trainer, whose schedule ends when the time is over; goes on from its latest checkpoint.

    `told` holds `minutes`, `epochs` and `iteration_s`; `iterations` of each epoch are added to it, and in the end
    `trained_minutes`. As many iterations make an epoch as fit into its share of the time that is left, by how long those
    of the epoch before took. Only epochs count as time: starting, checkpoints and pictures of curves do not.
    """
    from nnunetv2.run.run_training import maybe_load_checkpoint

    file = Path(told)
    setting = json.loads(file.read_text())
    trainer = _trainer(configuration, fold)
    trainer.num_epochs, trainer.num_val_iterations_per_epoch = setting["epochs"], VALIDATIONS
    trainer.save_every = max(1, setting["epochs"] // CHECKPOINTS)
    if any(Path(trainer.output_folder).glob("checkpoint_*.pth")):
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    counts: dict[str, int] = setting.setdefault("iterations", {})
    begin_epoch = trainer.on_epoch_start

    def begin_timed_epoch() -> None:
        epoch, times = trainer.current_epoch, _epoch_seconds(trainer)
        iteration = times[-1] / counts[str(epoch - 1)] if times else setting["iteration_s"]
        share = (60 * setting["minutes"] - sum(times)) / (trainer.num_epochs - epoch)
        trainer.num_iterations_per_epoch = counts[str(epoch)] = max(1, round(share / iteration))
        _write(setting, file)
        begin_epoch()

    trainer.on_epoch_start = begin_timed_epoch
    trainer.run_training()
    setting["trained_minutes"] = sum(_epoch_seconds(trainer)) / 60
    _write(setting, file)
    return 0


def predict(configuration: str, fold: str, told: str, *cases: str) -> int:
    """Label maps of the cases by nnU-Net's predictor as it is: half-overlapping windows, mirrored; `told` is their folder."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.paths import nnUNet_raw, nnUNet_results

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    trained = Path(str(nnUNet_results), DATASET, f"nnUNetTrainer__nnUNetPlans__{configuration}")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), (int(fold),), "checkpoint_final.pth")
    raw, ending = Path(str(nnUNet_raw), DATASET), predictor.dataset_json["file_ending"]
    images = [[str(file) for file in sorted((raw / "imagesTr").glob(f"{case}_????{ending}"))] for case in cases]
    Path(told).mkdir(parents=True, exist_ok=True)
    predictor.predict_from_files_sequential(images, [str(Path(told, case)) for case in cases], overwrite=False)
    return 0


def _trainer(configuration: str, fold: str) -> Any:
    """nnU-Net's own trainer, before it has built its network."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return get_trainer_from_args(DATASET, configuration, int(fold), continue_training=True, device=torch.device("cpu"))


def _epoch_seconds(trainer: Any) -> list[float]:
    """Duration of each finished epoch, those before a resumption included."""
    begun, ended = (trainer.logger.get_value(f"epoch_{end}_timestamps", step=None) for end in ("start", "end"))
    return [end - start for start, end in zip(begun, ended, strict=False)]


def _write(document: dict[str, Any], file: Path) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1))
    part.replace(file)


CHILDREN: dict[str, Callable[..., int]] = {"prepare": prepare, "measure": measure, "train": train, "predict": predict}

if __name__ == "__main__":  # nnU-Net spawns processes that import this file
    raise SystemExit(CHILDREN[sys.argv[1]](*sys.argv[2:]))

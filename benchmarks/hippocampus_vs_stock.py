"""Does our recipe beat a plain MONAI script that has the same subjects and the same time?

    python benchmarks/hippocampus_vs_stock.py --data DIR [--epochs 8] [--output build/benchmark]

DIR is `msd_hippocampus/` with images/ and labels/. Our side trains first, for `--epochs`, and its run.json says how long; the
plain script then gets the same wall-clock time on the same device. Both train on the `train` subjects of examples/splits.json,
pick their weights on the `selection` subjects and are measured on the `test` subjects; a calibration of ours would not change a
mask. Prints mean Dice of each, the paired difference by subject with its bootstrap interval, and the ratio of the two error
rates (1 - Dice). Exit code 1 if ours is not the smaller one.

The plain script is what MONAI's own tutorials teach for such data: DynUNet 16-128, DiceCE, AdamW 1e-3, float32, windows of
48 x 64 x 48, batch 2, random crops around labels, flips, intensity scale and shift.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from claims import judged
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    SpatialPadd,
)
from monai.utils import set_determinism

from monai_unet_app.bundle import Bundle, check_unseen, load_bundle
from monai_unet_app.config import resolve_device
from monai_unet_app.data.cases import by_partition
from monai_unet_app.metrics.bootstrap import Bootstrap, bootstrap_mean, bootstrap_paired_difference
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.run import TrainConfig, train_bundle

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLE = "hippocampus_mri_unet3d"
SPLITS = REPOSITORY / "examples" / "splits.json"
WINDOW = (48, 64, 48)
VALIDATE_EVERY_S = 120.0
MOST_ERROR = 1.0  # ours / theirs, of 1 - mean Dice
Rows = Sequence[Mapping[str, str]]
Scores = dict[str, float]


def main() -> int:
    """Runs both sides and prints the comparison; 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "benchmark")
    options = parser.parse_args()
    cases = by_partition(options.data, SPLITS)
    bundle = load_bundle(train_ours(options.data, options.epochs, options.output), "auto")
    check_unseen(bundle, cases["test"], ("train", "selection"))
    seconds = sum(session["seconds"] for session in bundle.run_record["sessions"])
    print(f"ours: {bundle.run_record['epochs_done']} epochs in {seconds / 60:.1f} minutes", flush=True)
    ours = measure_ours(bundle, cases["test"])
    stock = stock_side(cases, seconds)
    return int(not report(ours, stock, cases["test"], seconds / 60))


def report(ours: Scores, stock: Scores, rows: Rows, minutes: float) -> bool:
    """Prints means, the paired difference and the ratio of errors; whether ours errs less."""
    subjects = [row["subject"] for row in rows]
    mine, theirs = (np.array([scores[row["id"]] for row in rows]) for scores in (ours, stock))
    for name, values in (("plain MONAI script", theirs), (BUNDLE, mine)):
        mean = bootstrap_mean(values, subjects, Bootstrap())
        print(f"{name:24} mean Dice {mean.value:.4f} ({mean.low:.4f} to {mean.high:.4f}), worst {values.min():.4f}")
    gain = bootstrap_paired_difference(mine, theirs, subjects, Bootstrap())
    print(
        f"paired difference {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), better on {(mine > theirs).sum()} of "
        f"{len(rows)} cases, {len(set(subjects))} subjects; {minutes:.1f} minutes each on {resolve_device('auto')}"
    )
    return judged("our 1 - Dice / theirs", float((1 - mine.mean()) / (1 - theirs.mean())), MOST_ERROR, at_most=True)


def mean_dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean Dice of anterior and posterior."""
    return float(np.mean([dice(truth == label, predicted == label) for label in (1, 2)]))


def train_ours(data: Path, epochs: int, output: Path) -> Path:
    """The bundle, trained anew by its own recipe."""
    if output.exists() and any(output.iterdir()):
        raise SystemExit(
            f"{output} is not empty; a new training is compared, so an empty folder is needed; choose another"
        )
    run = TrainConfig(data, output, splits=SPLITS, overrides={"epochs": epochs, "tracker": "none"})
    return train_bundle(load_bundle(BUNDLE), run).root


def measure_ours(bundle: Bundle, test: Rows) -> Scores:
    """Mean Dice of each test case on its source grid."""
    scores = {}
    for row in test:
        truth = LoadImaged("label")({"label": row["label"]})["label"].numpy()
        scores[row["id"]] = mean_dice(truth, segment_case(row["image"], bundle).segmentation.labels)
    return scores


def stock_side(cases: Mapping[str, Rows], budget_s: float) -> Scores:
    """The plain script, trained until the time is over."""
    set_determinism(0)
    device = resolve_device("auto")
    keys = ["image", "label"]
    read = [LoadImaged(keys), EnsureChannelFirstd(keys), NormalizeIntensityd("image"), SpatialPadd(keys, WINDOW)]
    draw = [
        RandCropByPosNegLabeld(keys, "label", WINDOW, pos=1, neg=1, num_samples=1),
        RandFlipd(keys, prob=0.5, spatial_axis=0),
        RandScaleIntensityd("image", factors=0.1, prob=0.5),
        RandShiftIntensityd("image", offsets=0.1, prob=0.5),
    ]
    loader = DataLoader(
        CacheDataset(list(cases["train"]), Compose(read + draw), progress=False), batch_size=2, shuffle=True
    )
    selection = CacheDataset(list(cases["selection"]), Compose(read[:3]), progress=False)
    network = DynUNet(
        3, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[16, 32, 64, 128], norm_name=("INSTANCE", {"affine": True})
    ).to(device)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    best, weights, checked, begin, steps = -1.0, {}, 0.0, time.monotonic(), 0
    while time.monotonic() - begin < budget_s:
        for batch in loader:
            network.train()
            optimizer.zero_grad()
            loss_of(network(batch["image"].to(device)), batch["label"].to(device)).backward()
            optimizer.step()
            steps += 1
            if time.monotonic() - begin > budget_s:
                break
        if time.monotonic() - begin - checked > VALIDATE_EVERY_S or time.monotonic() - begin > budget_s:
            checked = time.monotonic() - begin
            score = np.mean([mean_dice(*_predict(network, item, device)) for item in selection])
            if score > best:
                best, weights = float(score), {name: value.clone() for name, value in network.state_dict().items()}
    print(f"plain: {steps} steps in {(time.monotonic() - begin) / 60:.1f} minutes, selection Dice {best:.4f}")
    network.load_state_dict(weights)
    test = CacheDataset(list(cases["test"]), Compose(read[:3]), progress=False)
    return {
        row["id"]: mean_dice(*_predict(network, item, device)) for row, item in zip(cases["test"], test, strict=True)
    }


@torch.no_grad()
def _predict(
    network: torch.nn.Module, item: Mapping[str, torch.Tensor], device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    network.eval()
    logits = sliding_window_inference(item["image"][None].to(device), WINDOW, 4, network, overlap=0.5, mode="gaussian")
    return item["label"][0].numpy(), np.asarray(logits.argmax(1)[0].cpu())


if __name__ == "__main__":
    raise SystemExit(main())

"""A model's life from the first training to drift, with real parts: registry, node, Orthanc; a picture of each step.

    python benchmarks/life_cycle_demo.py [--output build/life_cycle] [--epochs 1 4] [--pictures docs/images]

1. train version 1 for one epoch and version 2 for four, calibrate and evaluate both on the example cases;
2. register both, promote version 1 to champion and version 2 to challenger, by the release gate;
3. a node with version 2 as a shadow, then for half of the patients;
4. version 2 becomes champion, by the release gate;
5. a planted fault: version 3 is version 2 with weights that are half noise, and the node is told to try it; it rolls it back;
6. the first results of version 2 are the reference of the drift test;
7. planted drift: the tags of another scanner, and images that are blurred; `monai-unet node drift` names it.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from challengers import Counting, deliver, numbers_of, quiet, running, wait
from matplotlib.figure import Figure
from node import archive, made_studies
from pydicom import dcmread
from scipy import ndimage

from monai_unet_app.data.digest import file_sha256
from monai_unet_app.service import slots
from monai_unet_app.service.approvals import freeze_reference
from monai_unet_app.service.evidence_against import ALARM, Limits, score, ways
from monai_unet_app.service.node import Node
from monai_unet_app.service.tokens import new_token
from monai_unet_app.shipped import shipped

BUNDLE, RULE, APPROVER = "hippocampus_mri_unet3d", "hippocampus", "Bianchi^Eva"
MARGINS = "dice=0.02,boundary_iou=0.02,ece_whole=0.02,ece_band=0.05"
FIRST, SECOND, INK = "#0072b2", "#d55e00", "#333333"


def verb(*words: object, fine: Sequence[int] = (0,)) -> str:
    """Runs a verb as a user does, and shows it."""
    print("$ monai-unet " + " ".join(map(str, words)), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "monai_unet_app", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode not in fine:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def trained(folder: Path, number: int, epochs: int) -> tuple[Path, Path]:
    """A version and its evaluation."""
    data, splits = shipped("examples") / "msd_hippocampus", folder / "splits.json"
    splits.write_text(json.dumps(more_to_calibrate(json.loads((shipped("examples") / "splits.json").read_text()))))
    bundle, evaluation = folder / f"v{number}" / BUNDLE, folder / f"evaluation_{number}"
    words = ("--data", data, "--device", "cpu")
    if not evaluation.exists():
        verb("train", "--bundle", BUNDLE, *words, "--splits", splits, "--output", bundle, "--epochs", epochs)
        verb("calibrate", "--bundle", bundle, *words)
        verb("evaluate", "--bundle", bundle, *words, "--output", evaluation)
    return bundle, evaluation


def more_to_calibrate(plan: dict[str, Any]) -> dict[str, Any]:
    """The split of the examples, with one fold of the cases that train moved to calibration: a gate needs nine subjects."""
    for case in plan["datasets"]["msd_hippocampus"]["cases"]:
        if case["partition"] == "train" and case["fold"] == 0:
            case["partition"] = "calibration"
    return plan


def spoiled(bundle: Path, target: Path) -> Path:
    """A copy whose weights are half noise and whose statements claim to be fitted to them: else no node would try it."""
    shutil.rmtree(target, ignore_errors=True)
    copy = Path(shutil.copytree(bundle, target))
    before, weights = file_sha256(copy / "models/model.pt"), torch.load(copy / "models/model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(9)
    noisy = {
        key: value + 0.5 * value.std() * torch.randn(value.shape, generator=generator) if value.numel() > 1 else value
        for key, value in weights.items()
    }
    torch.save(noisy, copy / "models/model.pt")
    for file in (copy / "models/fitted.json", copy / "configs/confidence.json"):
        file.write_text(file.read_text().replace(before, file_sha256(copy / "models/model.pt")))
    return copy


class Registered:
    """The registry of the demo, by its verbs."""

    def __init__(self, folder: Path) -> None:
        """With a token of an approver."""
        self.folder = folder
        token, line = new_token(APPROVER, ["approver"])
        (folder / "tokens").write_text(line + "\n")
        (folder / "token").write_text(token + "\n")

    def add(self, bundle: Path, *more: object) -> None:
        """Registers a version."""
        print(
            verb("registry", "add", "--registry", self.folder / "registry", "--bundle", bundle, "--name", RULE, *more)
        )

    def promote(self, version: int, to: str, *how: str) -> None:
        """By the gate, or for a reason."""
        where = ("--registry", self.folder / "registry", "--name", RULE, "--version", version, "--to", to)
        said = verb(
            "registry",
            "promote",
            *where,
            "--tokens",
            self.folder / "tokens",
            "--token-file",
            self.folder / "token",
            *how,
        )
        print(said, flush=True)


def send(node: Node, studies: Sequence[Path]) -> None:
    """Studies come one by one, and all is done with them."""
    for one in studies:
        deliver(node, [one])
        time.sleep(0.7)
        wait(lambda: quiet(node))


def compared(node: Node) -> list[dict[str, Any]]:
    """What was found of the challenger so far."""
    return slots.comparisons(node.queue, slots.slots(node.queue)[RULE])


def axes(label: str) -> tuple[Figure, Any]:
    """An empty plot."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(label, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def draw_pairs(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Predicted Dice of both versions, study by study."""
    figure, axis = axes("study")
    for side, (name, colour) in enumerate((("champion, version 1", FIRST), ("challenger, version 2", SECOND))):
        axis.plot(range(1, len(found) + 1), [one["dice"][side] for one in found], "o-", color=colour, label=name, ms=4)
    axis.plot(range(1, len(found) + 1), [one["agreement"] for one in found], ":", color=INK, label="agreement of both")
    axis.set_ylabel("predicted Dice", color=INK)
    axis.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=110)


def draw_sides(sides: Sequence[bool], path: Path) -> None:
    """Whose result was delivered of each study."""
    figure, axis = axes("study")
    colours = [SECOND if side else FIRST for side in sides]
    axis.bar(range(1, len(sides) + 1), [1] * len(sides), color=colours, width=0.85)
    axis.set_yticks([])
    axis.set_xticks(range(1, len(sides) + 1))
    axis.set_title("results that went out: champion blue, challenger orange", fontsize=10, color=INK)
    figure.set_size_inches(7.2, 1.5)
    figure.savefig(path, dpi=110)


def draw_score(values: Sequence[float], alarm: float, label: str, path: Path) -> None:
    """A score that rises to its alarm."""
    figure, axis = axes(label)
    axis.semilogy(range(1, len(values) + 1), [max(value, 0.1) for value in values], "o-", color=FIRST, ms=4)
    axis.axhline(alarm, color=SECOND, ls="--")
    axis.set_ylabel("score", color=INK)
    figure.savefig(path, dpi=110)


def drifted(studies: Sequence[Path]) -> Sequence[Path]:
    """The studies as of another scanner: other tags, and blurred."""
    for folder in studies:
        for path in folder.glob("*.dcm"):
            one = dcmread(path)
            one.ManufacturerModelName, one.SliceThickness = "Scanner B", "3"
            one.PixelData = ndimage.gaussian_filter(one.pixel_array, 1.2).tobytes()
            one.save_as(path)
    return studies


def live(folder: Path, port: int, registered: Registered, pictures: Path) -> None:
    """The node's part."""
    with running(folder, port) as node:
        studies = iter(made_studies(folder / "in", 96))

        def some(count: int) -> list[Path]:
            return [next(studies) for _ in range(count)]

        print("version 2 as a shadow of version 1", flush=True)
        send(node, some(8))
        draw_pairs(compared(node), pictures / "life_cycle_shadow.png")
        print("version 2 for half of the patients", flush=True)
        print(node.in_loop(lambda: node.challengers.set_share(RULE, 0.5, APPROVER, "demo")))
        send(node, some(10))
        challenger = slots.slots(node.queue)[RULE].challenger
        theirs = numbers_of(node, challenger)
        draw_sides(
            [one.id in theirs for one in node.queue.results((), 100, oldest_first=True)],
            pictures / "life_cycle_canary.png",
        )
        print("version 2 becomes champion", flush=True)
        registered.promote(2, "champion", "--margin", MARGINS)
        node.challengers.ask_registry(APPROVER)
        print("a planted fault: version 3", flush=True)
        registered.add(spoiled(folder / "v2" / BUNDLE, folder / "v3" / BUNDLE))
        registered.promote(3, "challenger", "--reason", "a planted fault")
        node.challengers.ask_registry(APPROVER)
        node.in_loop(lambda: node.challengers.set_share(RULE, 0.5, APPROVER, "a planted fault"))
        while not slots.slots(node.queue)[RULE].withdrawn:
            send(node, some(1))
        found = compared(node)
        scores = [score(ways(found[:n], Limits(most_slower=10))) for n in range(1, len(found) + 1)]
        print(f"rolled back after {len(found)} studies: {slots.slots(node.queue)[RULE].withdrawn}", flush=True)
        draw_score(scores, ALARM, "study of the challenger", pictures / "life_cycle_rollback.png")
        send(node, some(32))
        print(freeze_reference(node, RULE, 30, APPROVER))
        print("another scanner", flush=True)
        send(node, drifted(some(16)))
    said = json.loads(
        verb(
            "node", "drift", "--config", folder / "site.toml", "--output", folder / "drift.html", "--json", fine=(0, 1)
        )
    )
    (rule,) = said["rules"]
    print(rule["sentence"], flush=True)
    from monai_unet_app.lifecycle.watch import watch

    (watched,) = watch(folder / "node/audit.jsonl", [RULE])
    assert watched.drift is not None
    draw_score(watched.drift.scores.tolist(), 1000.0, "study after the reference", pictures / "life_cycle_drift.png")
    if rule["state"] != "drift":
        raise SystemExit("the planted drift was not found")


def main() -> None:
    """Runs all steps; ends with an error if one of them does not do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/life_cycle"))
    parser.add_argument("--epochs", type=int, nargs=2, default=(1, 4))
    parser.add_argument("--pictures", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    folder = options.output.resolve()
    for left in ("registry", "node", "in", "orthanc", "proxy"):
        shutil.rmtree(folder / left, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    options.pictures.mkdir(parents=True, exist_ok=True)
    made = [trained(folder, number, epochs) for number, epochs in enumerate(options.epochs, start=1)]
    registered = Registered(folder)
    for bundle, evaluation in made:
        registered.add(bundle, "--evaluation", evaluation)
    registered.promote(1, "champion", "--reason", "the first")
    registered.promote(2, "challenger", "--margin", MARGINS)
    with archive(folder) as (title, port):
        counting = Counting(folder / "proxy", f"{title}@127.0.0.1:{port}")
        with counting.provider:
            live(folder, counting.provider.port, registered, options.pictures)
            print(f"{counting.pass_on()} objects are in {title.title()}")


if __name__ == "__main__":
    main()

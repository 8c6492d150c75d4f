"""The YAML that the docs give for a planned bundle: losses (values, gradients, training), another network, other weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from monai.bundle import ComponentLocator, ConfigParser
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, GeneralizedDiceLoss
from once import made_once
from scipy import ndimage
from small_data import numbered_discs, plan_bundle, tilted_volumes
from torch import Tensor

from monai_unet_app.bundle import load_bundle
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.write import write_plan
from monai_unet_app.training.losses import HardL1ACELoss, MarginLoss, SoftL1ACELoss
from monai_unet_app.training.run import run_overlay
from monai_unet_app.training.update import TrainingStep

Array = np.ndarray[Any, np.dtype[np.float64]]
GRIDS = ((12, 10), (8, 7, 6))
CLASSES = ComponentLocator()
"""Of MONAI, by name: a parser of its own would look for them in all modules once more."""


@dataclass(frozen=True)
class Line:
    name: str
    yaml: str
    exclusive: bool

    def loss(self, channels: int, grid: tuple[int, ...]) -> Any:
        names = [f"structure {n}" for n in range(channels)]
        config = {"labels": names, "window": list(grid), "device": torch.device("cpu"), **yaml.safe_load(self.yaml)}
        parser = ConfigParser(config)
        parser.locator = CLASSES
        return parser.get_parsed_content("loss")


def lines_of_the_page() -> list[Line]:
    page = (REPOSITORY / "docs/how-to/train.md").read_text()
    section = page[page.index("## Another loss") : page.index("## Deep supervision")]
    exclusive, overlapping = section.split("`outputs: overlapping`")
    tables = {True: exclusive, False: overlapping}
    return [
        Line(name, text, kind)
        for kind, table in tables.items()
        for name, text in re.findall(r"^\| ([^|]+) \|(?:.*\|)? `(loss: .*)` \|$", table, re.MULTILINE)
    ]


LINES = lines_of_the_page()
each_line = pytest.mark.parametrize(
    "line", LINES, ids=[f"{line.name} {'' if line.exclusive else 'of each'}".strip() for line in LINES]
)


def test_the_page_has_all_lines() -> None:
    assert [sum(line.exclusive is kind for line in LINES) for kind in (True, False)] == [15, 12]
    assert len({(line.name, line.exclusive) for line in LINES}) == len(LINES)


# --- values, computed in another way


def dice(p: Array, y: Array) -> Array:
    """Dice loss of each class, over all windows; arrays have shape (B, C, *grid)."""
    axes = (0, *range(2, p.ndim))
    return 1 - (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)


def tversky(p: Array, y: Array) -> float:
    axes = (0, *range(2, p.ndim))
    hit, invented, missed = ((a * b).sum(axes) for a, b in ((p, y), (p, 1 - y), (1 - p, y)))
    return float(np.mean(1 - (hit + 1e-5) / (hit + 0.3 * invented + 0.7 * missed + 1e-5)))


def generalised(p: Array, y: Array) -> float:
    axes = (0, *range(2, p.ndim))
    weight = 1 / y.sum(axes) ** 2
    return float(1 - (2 * (weight * (p * y).sum(axes)).sum() + 1e-5) / ((weight * (p + y).sum(axes)).sum() + 1e-5))


def entropy(p: Array, y: Array, weights: Array, exclusive: bool) -> float:
    """With `weights` of the classes, or of what is true."""
    if exclusive:
        of_voxel = (weights.reshape(1, -1, *[1] * (p.ndim - 2)) * y).sum(1)
        return float((of_voxel * -np.log((p * y).sum(1))).sum() / of_voxel.sum())
    return float(np.mean(-weights[0] * y * np.log(p) - (1 - y) * np.log(1 - p)))


def focal(p: Array, y: Array, exclusive: bool) -> float:
    """Mean over voxels where classes exclude each other; else over voxels and classes."""
    right = (p * y).sum(1) if exclusive else np.where(y == 1, p, 1 - p)
    return float(np.mean(-((1 - right) ** 2) * np.log(right)))


def distances(mask: Any) -> Array:
    """To the nearest voxel of the other kind, in voxels; 0 where there is none."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    edt: Any = ndimage.distance_transform_edt
    return np.asarray(edt(mask) + edt(~mask))


def hausdorff(p: Array, y: Array) -> float:
    both = [[distances(a[b, c] > 0.5) ** 2 for c in range(p.shape[1])] for a in (p, y) for b in range(len(p))]
    field = np.array(both).reshape(2, *p.shape).sum(0)
    return float(np.log(np.mean((p - y) ** 2 * field) + 1))


def boundary(p: Array, y: Array) -> float:
    signed = [[distances(c == 1) * np.where(c == 1, -1, 1) + (c == 1) for c in image] for image in y]
    return float(np.mean(p * np.array(signed)))


def skeleton(image: Array, times: int) -> Array:
    """Soft skeleton of an image (*grid): Algorithm 1 of arXiv:2003.07311, with grey morphology of scipy."""
    cross = ndimage.generate_binary_structure(image.ndim, 1)

    def erode(a: Array) -> Array:
        return np.asarray(ndimage.grey_erosion(a, footprint=cross, mode="constant", cval=np.inf))

    def residue(a: Array) -> Array:
        opened = ndimage.grey_dilation(erode(a), size=(3,) * a.ndim, mode="constant", cval=-np.inf)
        return np.maximum(a - opened, 0)

    found = residue(image)
    for _ in range(times):
        image = erode(image)
        found = found + (1 - found) * residue(image)
    return found


def cldice(p: Array, y: Array) -> float:
    values = []
    for own, true in zip(p, y, strict=True):
        thin, true_thin = (np.array([skeleton(channel, 5) for channel in image]) for image in (own, true))
        precision = ((thin * true).sum() + 1) / (thin.sum() + 1)
        sensitivity = ((true_thin * own).sum() + 1) / (true_thin.sum() + 1)
        values.append(1 - 2 * precision * sensitivity / (precision + sensitivity + 1e-4))
    return float(np.mean(values))


def smooth_dice_of_each_window(p: Array, y: Array) -> float:
    axes = tuple(range(2, p.ndim))
    return float(np.mean(1 - (2 * (p * y).sum(axes) + 1) / (p.sum(axes) + y.sum(axes) + 1)))


def smoothed_entropy(p: Array, y: Array) -> float:
    return float(np.mean(-(np.log(p) * (0.9 * y + 0.1 / p.shape[1])).sum(1)))


def expected(line: Line, p: Array, y: Array, logits: Tensor, truth: Tensor) -> float | None:
    """The value of a line; None for one that tests/training/test_losses.py computes."""
    kind = line.exclusive
    none, first = np.ones(p.shape[1]), 1 if kind else 0  # the background is channel 0 of exclusive classes
    weights = np.array([0.5, 1.0, 3.0]) if kind else np.array([3.0])
    usual = float(dice(p, y).mean()) + entropy(p, y, none, kind)
    ours = {"softmax": kind, "sigmoid": not kind}
    values: dict[str, Callable[[], float | None]] = {
        "cross entropy": lambda: entropy(p, y, none, kind),
        "Dice": lambda: float(dice(p, y).mean()),
        "Dice + cross entropy": lambda: usual,
        "Dice + cross entropy, classes weighted": lambda: (
            float((weights * dice(p, y)).mean()) + entropy(p, y, weights, kind)
        ),
        "Dice + cross entropy, structures weighted": lambda: float(dice(p, y).mean()) + entropy(p, y, weights, kind),
        "Dice + focal": lambda: float(dice(p, y).mean()) + focal(p, y, kind),
        "Tversky": lambda: tversky(p, y),
        "generalised Dice": lambda: generalised(p, y),
        "Dice + cross entropy + Hausdorff": lambda: usual + 0.5 * hausdorff(p[:, first:], y[:, first:]),
        "Dice + cross entropy + boundary": lambda: usual + 0.01 * boundary(p[:, first:], y[:, first:]),
        "Dice + clDice": lambda: (
            0.5 * smooth_dice_of_each_window(p[:, first:], y[:, first:]) + 0.5 * cldice(p[:, first:], y[:, first:])
        ),
        "Dice + cross entropy + ACE": lambda: usual + float(HardL1ACELoss(**ours)(logits, truth)),
        "Dice + cross entropy + soft ACE": lambda: usual + float(SoftL1ACELoss(**ours)(logits, truth)),
        "Dice + cross entropy + margin": lambda: usual + 0.1 * float(MarginLoss(10, **ours)(logits, truth)),
        "Dice + smoothed cross entropy": lambda: float(dice(p, y).mean()) + smoothed_entropy(p, y),
        "NACL": lambda: None,
    }
    return values[line.name]()


def case(grid: tuple[int, ...], channels: int, exclusive: bool) -> tuple[Tensor, Tensor, Array]:
    """Logits, the label as a training gives it, and the truth in channels: lopsided blocks, some of which overlap."""
    generator = torch.Generator().manual_seed(3)
    inside = torch.zeros(2, 3, *grid)
    for n, (low, high) in enumerate([(0, 12), (1, 6), (3, 8)]):
        inside[:, n, low:high, 1 + n : 6] = 1
    inside[1, 2] = inside[1, 2].roll(-2, 0)
    label = inside.flip(1).argmax(1, keepdim=True)
    label = torch.where(label == 0, 2, torch.where(inside[:, 1:2] == 1, 1, 0)).float()
    truth = torch.cat([label == n for n in range(channels)], 1) if exclusive else inside.flip(1)[:, :channels]
    logits = 12 * torch.randn(2, channels, *grid, generator=generator).abs() ** 0.5 * (truth.float() - 0.4)
    logits = logits + 2 * torch.randn(logits.shape, generator=generator)
    return logits, label if exclusive else truth.float(), truth.double().numpy()


@each_line
def test_a_line_gives_the_value_of_its_formula(line: Line) -> None:
    for grid in GRIDS:
        for channels in (3,) if line.exclusive else (1, 2, 3):
            check_value(line, grid, channels)


def check_value(line: Line, grid: tuple[int, ...], channels: int) -> None:
    logits, label, truth = case(grid, channels, line.exclusive)
    wide = logits.double()
    p = (wide.softmax(1) if line.exclusive else wide.sigmoid()).numpy()
    value = expected(line, p, truth, logits, label)
    found = float(line.loss(channels, grid)(logits, label))
    assert np.isfinite(found)
    if value is not None:
        assert found == pytest.approx(value, rel=2e-4)


@each_line
def test_windows_without_a_structure_give_finite_gradients_that_lower_what_is_invented(line: Line) -> None:
    for empty in ("one window", "all windows"):
        for grid, size in zip(GRIDS, (1.0, 60.0) if empty == "one window" else (60.0, 1.0), strict=True):  # all pairs
            check_gradient(line, grid, empty, size)


def check_gradient(line: Line, grid: tuple[int, ...], empty: str, size: float) -> None:
    channels = 3 if line.exclusive else 1
    logits, label, _ = case(grid, channels, line.exclusive)
    label[0 if empty == "one window" else slice(None)] = 0
    logits = (size * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    line.loss(channels, grid)(logits, label).backward()
    gradient = logits.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    if size == 1 and line.name != "NACL":  # which wants logits near the shares, not far from them
        # More of structures that are not there makes the loss larger
        assert float(gradient[0, 1 if line.exclusive else 0 :].sum()) > 0


# --- what MONAI's classes do that their names do not say


def test_monai_s_dice_ce_takes_a_softmax_for_several_labels_that_may_overlap() -> None:
    logits, label, _ = case((12, 10), 2, exclusive=False)
    both, alone = (kind(sigmoid=True)(logits, label) for kind in (DiceCELoss, DiceLoss))
    softmax = torch.nn.functional.cross_entropy(logits, label)
    torch.testing.assert_close(both - alone, softmax)
    assert abs(float(softmax - torch.nn.functional.binary_cross_entropy_with_logits(logits, label))) > 0.1


def test_monai_s_dice_focal_takes_a_sigmoid_where_dice_takes_a_softmax() -> None:
    logits, label, _ = case((12, 10), 3, exclusive=True)
    both, alone = (kind(softmax=True, to_onehot_y=True)(logits, label) for kind in (DiceFocalLoss, DiceLoss))
    torch.testing.assert_close(both - alone, FocalLoss(to_onehot_y=True)(logits, label))


def test_monai_s_generalised_dice_of_one_channel_learns_nothing_where_there_is_no_structure() -> None:
    logits = torch.randn(2, 1, 6, 6, requires_grad=True)
    GeneralizedDiceLoss(sigmoid=True, batch=True)(logits, torch.zeros(2, 1, 6, 6)).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


# --- the lines in the train.yaml of a planned bundle


def planned(data: Path, root: Path, **said: Any) -> Path:
    """A bundle with a network that trains in a blink."""
    plan = plan_bundle(PlanConfig(data, time_s=1.0, **said), lambda network, channels, outputs: 1e-4)
    write_plan(plan, root)
    config = root / "configs/inference.yaml"
    config.write_text(
        re.sub(r"filters: \[.*\]", lambda old: f"filters: {[4] * (old[0].count(',') + 1)}", config.read_text())
    )
    return root


def with_loss(template: Path, root: Path, loss: str) -> Path:
    """A copy of the template whose train.yaml has another section `loss:`."""
    shutil.copytree(template, root)
    config = root / "configs/train.yaml"
    text, times = re.subn(r"^loss:\n( .*\n)+", lambda _: loss + "\n", config.read_text(), flags=re.MULTILINE)
    assert times == 1
    config.write_text(text)
    return root


def settings(data: Path) -> dict[str, Any]:
    """Of a training of three steps."""
    return {
        "dataset_dir": str(data), "device": torch.device("cpu"), "precision": "f32", "tracker": "none", "fold": 0,
        "epochs": 3, "val_interval": 4, "train::loader::batch_size": 2, "train::trainer::epoch_length": 1,
        "cache_dir": str(data.parent / "cache"),
    }  # fmt: skip


def train(root: Path, data: Path, **changed: Any) -> dict[str, Any]:
    """The record of a training of three steps."""
    run_overlay(root, "train", settings(data) | changed)
    record: dict[str, Any] = json.loads((root / "run/run.json").read_text())
    return record


@dataclass(frozen=True)
class Training:
    """The parser of a planned bundle's configs, their trainer, and a batch of windows."""

    parser: ConfigParser
    trainer: Any
    batch: dict[str, Any]


def make_data_and_plans(folder: Path) -> None:
    volumes, pictures = tilted_volumes(folder / "of_volumes/data"), numbered_discs(folder / "of_pictures/data")
    names = {2: "liver", 5: "left kidney"}
    planned(volumes, folder / "flat", structures=names, configuration="2d")
    planned(volumes, folder / "deep", structures=names)
    planned(pictures, folder / "picture", objects="disc")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases, what trainings have prepared of them, and planned bundles; not to be changed."""
    return made_once(tmp_path_factory, "plans_for_losses", make_data_and_plans)


@pytest.fixture(scope="module")
def data(made: Path) -> dict[str, Path]:
    return {"2D": made / "of_volumes/data", "3D": made / "of_volumes/data", "picture": made / "of_pictures/data"}


@pytest.fixture(scope="module")
def templates(made: Path) -> dict[str, Path]:
    return {"2D": made / "flat", "3D": made / "deep", "picture": made / "picture"}


@pytest.fixture(scope="module")
def trainings(templates: dict[str, Path], data: dict[str, Path]) -> Callable[[str], Training]:
    """The training of a planned bundle, ready to begin; each is made once."""

    @cache
    def ready(kind: str) -> Training:
        root = templates[kind]
        parser = ConfigParser()
        parser.read_config([root / f"configs/{name}.yaml" for name in ("inference", "train")])
        parser.update({"bundle_root": str(root), **settings(data[kind])})
        trainer = parser.get_parsed_content("train::trainer")
        return Training(parser, trainer, next(iter(trainer.data_loader)))

    return ready


@pytest.mark.parametrize(
    ("line", "kind"), [(line, kind) for line in LINES for kind in (("2D", "3D") if line.exclusive else ("picture",))],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_a_planned_bundle_steps_along_a_line(line: Line, kind: str, trainings: Callable[[str], Training]) -> None:
    """Its network, on windows of its cases, with what the line refers to in its configs."""
    training = trainings(kind)
    training.parser["loss"] = yaml.safe_load(line.yaml)["loss"]
    trainer = training.trainer
    trainer.loss_function = training.parser.get_parsed_content("loss", lazy=False)
    before = [weights.detach().clone() for weights in trainer.network.parameters()]
    assert torch.isfinite(TrainingStep("f32")(trainer, training.batch)["loss"])
    after = list(trainer.network.parameters())
    assert all(torch.isfinite(weights).all() for weights in after)
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "kind"), [("NACL", "2D"), ("Dice + clDice", "picture"), ("Dice + cross entropy, classes weighted", "3D")]
)
def test_a_planned_bundle_trains_with_a_line_in_its_train_yaml(
    name: str, kind: str, templates: dict[str, Path], data: dict[str, Path], tmp_path: Path
) -> None:
    (line,) = (line for line in LINES if line.name == name and line.exclusive is (kind != "picture"))
    root = with_loss(templates[kind], tmp_path / "bundle", line.yaml)
    record = train(root, data[kind])
    assert record["epochs_done"] == 3
    assert all(np.isfinite(entry["loss"]) for entry in record["history"])
    assert load_bundle(root).network is not None


# --- deep supervision in a planned bundle

STACKED = "  deep_supervision: true\n  deep_supr_num: 1\n"
LISTED = """new_network:
  _target_: SegResNetDS
  _mode_: callable
  spatial_dims: 2
  init_filters: 4
  in_channels: 1
  out_channels: "$len(@labels)"
  blocks_down: [1, 1]
  blocks_up: [1]
  dsdepth: 2
"""


@pytest.mark.parametrize("heads", ["stacked", "listed"])
def test_a_planned_bundle_trains_with_deep_supervision_and_answers_by_its_full_size_head(
    heads: str, templates: dict[str, Path], data: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(templates["2D"], root)
    config = root / "configs/inference.yaml"
    text = config.read_text()
    if heads == "stacked":
        text = re.sub(r"(^new_network:\n(?: .*\n)+)", lambda old: old[1] + STACKED, text, flags=re.MULTILINE)
    else:
        text = re.sub(r"^new_network:\n(?: .*\n)+", lambda _: LISTED, text, flags=re.MULTILINE)
        text = re.sub(r"^feature_layer: .*\n", "", text, flags=re.MULTILINE)
    config.write_text(text)
    before = load_bundle(root)
    before.check_network()
    untrained = {name: value.clone() for name, value in before.part("network_def").state_dict().items()}
    record = train(root, data["2D"], val_interval=3)
    assert np.isfinite(record["history"][-1]["metric"])
    bundle = load_bundle(root)
    weights = torch.load(root / "models/model.pt", weights_only=True)
    coarse = {"stacked": "deep_supervision_heads.0.conv.conv.weight", "listed": "up_layers.0.head.weight"}[heads]
    assert not torch.allclose(weights[coarse].float(), untrained[coarse], atol=1e-3)  # the coarser head has learnt too
    window = torch.randn(1, 1, *bundle.parser.get_parsed_content("window"))
    assert bundle.network.eval()(window).shape == (1, 3, *window.shape[2:])


# --- another network, other weights


def block_of_the_faq(first: str) -> str:
    """The fenced YAML of docs/faq.md that begins with these letters."""
    page = (REPOSITORY / "docs/faq.md").read_text()
    (block,) = re.findall(rf"^```yaml\n({re.escape(first)}.*?)^```", page, re.DOTALL | re.MULTILINE)
    return str(block)


def test_a_planned_bundle_trains_with_the_attention_network_of_the_faq(
    templates: dict[str, Path], data: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(templates["2D"], root)
    config = root / "configs/inference.yaml"
    text = re.sub(
        r"^new_network:\n(?: .*\n)+", lambda _: block_of_the_faq("new_network:"), config.read_text(), flags=re.MULTILINE
    )
    config.write_text(re.sub(r"^feature_layer: .*\n", "", text, flags=re.MULTILINE))
    load_bundle(root).check_network()
    assert np.isfinite(train(root, data["2D"])["history"][-1]["loss"])
    assert type(load_bundle(root).network).__name__ == "AttentionUnet"

"""Scores as ignite metrics: the figures of the metrics, whatever evaluator, form of labels or number of processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import REPOSITORY
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, CopyItemsd
from small_data import FEW, drawn_eyes, few_examples
from torch import Tensor, nn

from monai_unet_app.metrics.boundary import SurfacePair, hausdorff_distance, normalised_surface_dice, surface_distances
from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.outputs import OVERLAPPING
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.training.ignite_metrics import HD95, BoundaryIoU, Calibration, SurfaceDice

LABELS = ["background", "anterior", "posterior"]
SPACING = (0.9, 1.2, 2.0)
GRID = (16, 14, 10)


def affine() -> Tensor:
    """A rotated grid whose voxels measure SPACING."""
    turn = torch.tensor([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))


def labels_of(shift: int) -> Tensor:
    """Two boxes that touch, moved along I, shape (1, *GRID)."""
    labels = torch.zeros(1, *GRID)
    labels[0, 3 + shift : 7 + shift, 2:8, 3:8] = 1
    labels[0, 7 + shift : 12 + shift, 4:10, 3:8] = 2
    return labels


def probabilities_of(labels: Tensor, seed: int) -> Tensor:
    """Softmax probabilities that name these labels, some surely and some not, shape (3, *GRID)."""
    right = torch.nn.functional.one_hot(labels[0].long(), 3).movedim(-1, 0)
    doubt = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(seed))
    return (right * (0.5 + 3 * doubt)).softmax(0)


def cases() -> list[dict[str, Tensor]]:
    """Truth and probabilities of three cases, on a rotated grid."""
    return [
        {
            "label": MetaTensor(labels_of(0), affine=affine()),
            "prob": MetaTensor(probabilities_of(labels_of(shift), shift), affine=affine()),
        }
        for shift in (0, 1, 3)
    ]


def summary(items: list[dict[str, Tensor]]) -> dict[str, Any]:
    """What an evaluation of the metrics says of these cases."""
    evaluation = Evaluation(EvaluationPlan(tuple(LABELS[1:])))
    for number, item in enumerate(items):
        p, truth = item["prob"].numpy(), item["label"].numpy()[0].astype(np.uint8)
        evaluation.add(CaseArrays(str(number), str(number), truth, p.argmax(0), p, SPACING, 0.002))
    return evaluation.summary()


def one_hot(labels: Tensor) -> Tensor:
    return torch.cat([labels == c for c in range(3)]).float()


def fed(metric: Any, items: list[dict[str, Tensor]], as_masks: bool = False) -> Any:
    """The metric after these cases, given as an evaluator would."""
    for item in items:
        if isinstance(metric, Calibration):
            metric.update((item["prob"], item["label"]))
            continue
        predicted, truth = item["prob"].argmax(0, keepdim=True), item["label"]
        metric.update(
            (one_hot(predicted), MetaTensor(one_hot(truth.as_tensor()), affine=affine()))
            if as_masks
            else (predicted, truth)
        )
    return metric


# --- the same figures as the metrics


@pytest.mark.parametrize("as_masks", [False, True])
@pytest.mark.parametrize(
    ("metric", "name"), [(BoundaryIoU, "boundary_iou"), (SurfaceDice, "surface_dice"), (HD95, "hd95_mm")]
)
def test_a_score_is_the_mean_that_the_evaluation_reports(metric: Any, name: str, as_masks: bool) -> None:
    expected = summary(cases())[name]["mean"]
    assert expected not in (0, 1)
    assert fed(metric(LABELS), cases(), as_masks).compute() == pytest.approx(expected)


@pytest.mark.parametrize("population", ["whole", "band"])
@pytest.mark.parametrize("figure", ["ece", "mce", "ace", "brier", "nll"])
def test_calibration_is_the_pooled_figure_that_the_evaluation_reports(figure: str, population: str) -> None:
    name = {"whole": "whole", "band": "band_2mm"}[population]
    block = summary(cases())["calibration"][name]
    expected = block[figure] if figure in ("brier", "nll") else block["top_label"][figure]
    assert expected > 0
    assert fed(Calibration(LABELS, figure=figure, population=population), cases()).compute() == pytest.approx(expected)


@pytest.mark.parametrize("figure", ["ece", "mce", "ace"])
def test_calibration_of_classes_is_the_mean_over_the_named_ones(figure: str) -> None:
    per_class = summary(cases())["calibration"]["whole"]["per_class"]
    expected = np.mean([per_class[name][figure] for name in LABELS[1:]])
    assert fed(Calibration(LABELS, figure=figure, of="classes"), cases()).compute() == pytest.approx(expected)


def test_widths_and_tolerances_are_those_that_were_given() -> None:
    item = cases()[2:]
    truth, predicted = item[0]["label"].numpy()[0], item[0]["prob"].argmax(0).numpy()
    pairs = [(truth == c, predicted == c) for c in (1, 2)]
    expected = np.mean([SurfacePair(*pair, SPACING).boundary_iou(2.5) for pair in pairs])
    assert fed(BoundaryIoU(LABELS, width_mm=2.5), item).compute() == pytest.approx(expected)
    distances = [surface_distances(*pair, SPACING) for pair in pairs]
    expected = np.mean([normalised_surface_dice(d, tolerance_mm=2.0) for d in distances])
    assert fed(SurfaceDice(LABELS, tolerance_mm=2.0), item).compute() == pytest.approx(expected)
    assert fed(SurfaceDice(LABELS), item).compute() < expected


def test_a_box_moved_by_whole_voxels_is_as_far_away_as_they_are_long() -> None:
    item = {"prob": one_hot(labels_of(2)), "label": MetaTensor(labels_of(0), affine=affine())}
    assert fed(HD95(LABELS), [item]).compute() == pytest.approx(2 * SPACING[0])
    assert fed(HD95(LABELS, spacing_mm=(3, 1, 1)), [item]).compute() == pytest.approx(6)


def test_the_width_of_the_band_is_in_millimetres() -> None:
    thin, wide = (Calibration(LABELS, population="band", band_width_mm=width) for width in (0.5, 3.0))
    whole = Calibration(LABELS)
    voxels = [fed(metric, cases()).merged().decisions for metric in (thin, wide, whole)]
    # half a voxel along I is 0.45 mm: only the voxels beside faces across I are within 0.5 mm
    assert 0 < voxels[0] < voxels[1] < voxels[2] == 3 * np.prod(GRID)


def test_labels_drawn_from_the_probabilities_are_calibrated_in_both_populations() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = (40, 40, 40)
    ball = sum((x - 20.0) ** 2 for x in torch.meshgrid(*(torch.arange(40),) * 3, indexing="ij")).sqrt()
    noise = torch.randn(grid, generator=generator)
    p = torch.sigmoid((12 - ball) / 2 + noise)
    truth = (torch.rand(grid, generator=generator) < p).float()[None]
    for population in ("whole", "band"):
        metric = Calibration(["background", "ball"], population=population, spacing_mm=(1, 1, 1))
        metric.update((torch.stack([1 - p, p]), truth))
        assert metric.compute() < 0.02
        assert metric.merged().decisions > 5000


def picture() -> tuple[Tensor, Tensor]:
    """Probabilities and truth of two labels that overlap, shape (2, 20, 24)."""
    truth = torch.zeros(2, 20, 24)
    truth[0, 4:14, 3:12] = 1
    truth[1, 8:18, 9:20] = 1
    generator = torch.Generator().manual_seed(1)
    return (0.8 * truth.roll(1, 1) + 0.2 * torch.rand(2, 20, 24, generator=generator)).clamp(0, 1), truth


def test_labels_that_overlap_in_a_picture_are_scored_in_pixels() -> None:
    p, truth = picture()
    plan = EvaluationPlan(("disc", "cup"), outputs=OVERLAPPING, planar=True)
    evaluation = Evaluation(plan)
    masks = [tensor.numpy() > 0.5 for tensor in (truth, p)]
    evaluation.add(CaseArrays("a", "a", *masks, p.numpy(), (1.0, 1.0), 1.0))
    expected = evaluation.summary()
    flat = {"labels": ["disc", "cup"], "outputs": "overlapping", "spacing_mm": (1, 1)}
    for metric, name in ((BoundaryIoU, "boundary_iou"), (SurfaceDice, "surface_dice"), (HD95, "hd95_px")):
        score = metric(**flat)
        score.update(((p > 0.5).float(), truth))
        assert score.compute() == pytest.approx(expected[name]["mean"])
    for population, name in (("whole", "whole"), ("band", plan.band)):
        score = Calibration(**flat, figure="ace", population=population)
        score.update((p, truth))
        assert score.compute() == pytest.approx(expected["calibration"][name]["top_label"]["ace"])


def test_a_slice_of_a_volume_has_the_spacing_of_its_two_axes() -> None:
    tilted = torch.eye(4, dtype=torch.float64)
    tilted[:3, :2] = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 2.5]])
    tilted[0, 2] = 1
    truth, predicted = torch.zeros(2, 1, 20, 20)
    truth[0, 4:10, 5:12] = predicted[0, 4:10, 7:14] = 1
    metric = HD95(["background", "box"])
    metric.update((predicted, MetaTensor(truth, affine=tilted)))
    assert metric.compute() == pytest.approx(2 * 2.5)


# --- what is not defined


def test_a_class_that_was_missed_has_no_distance_and_is_counted_apart() -> None:
    missed = cases()[1]
    missed["prob"] = one_hot(labels_of(1) * (labels_of(1) == 1))  # the posterior part is background now
    truth, predicted = labels_of(0)[0].numpy() == 1, labels_of(1)[0].numpy() == 1
    alone = hausdorff_distance(surface_distances(truth, predicted, SPACING))
    metric = fed(HD95(LABELS), [missed])
    assert metric.compute() == pytest.approx(alone)
    engine = Engine(lambda engine, batch: None)
    metric.completed(engine, "val_hd95")
    assert engine.state.metrics == {"val_hd95": pytest.approx(alone), "val_hd95_undefined": 1}
    assert fed(BoundaryIoU(LABELS), [missed]).compute() < 0.5  # a missed class earns 0 there


def test_what_no_case_defines_is_no_number() -> None:
    assert np.isnan(HD95(LABELS).compute())
    nothing = {"prob": one_hot(torch.zeros(1, *GRID)), "label": MetaTensor(labels_of(0), affine=affine())}
    assert np.isnan(fed(HD95(LABELS), [nothing]).compute())
    assert fed(HD95(LABELS), [nothing]).undefined() == 2
    assert np.isnan(Calibration(LABELS, figure="nll").compute())
    assert np.isnan(fed(Calibration(LABELS, population="band"), [nothing]).compute())  # no surface, no band


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoundaryIoU(LABELS, "softmax"), "outputs is 'softmax'; one of exclusive, overlapping"),
        (lambda: HD95(LABELS, keys=("pred",)), "two are needed"),
        (lambda: Calibration(LABELS, figure="ECE"), "figure is 'ECE'; one of ece, mce, ace, brier, nll"),
        (lambda: Calibration(LABELS, population="truth"), "population is 'truth'; one of whole, band"),
        (lambda: Calibration(LABELS, of="all"), "of is 'all'; one of top_label, classes"),
        (lambda: Calibration(LABELS, figure="nll", of="classes"), "nll of classes is not defined"),
        (lambda: HD95(LABELS).update((labels_of(0), labels_of(1))), "plain tensors without an affine"),
        (lambda: HD95(LABELS).update((labels_of(0), labels_of(0)[:, 1:])), r"item 'label' has shape \(15, 14, 10\)"),
        (lambda: HD95(LABELS).update((labels_of(0) + 1, labels_of(0))), "item 'pred' holds the label values 3"),
        (lambda: HD95(LABELS).update((probabilities_of(labels_of(0), 0), labels_of(0))), "0 and 1 in 3 channel"),
        (lambda: HD95(LABELS).update((labels_of(0).repeat(2, 1, 1, 1), labels_of(0))), r"shape \(2, 16, 14, 10\)"),
        (
            lambda: HD95(LABELS).update((torch.ones(3, *GRID), one_hot(labels_of(0)))),
            "gives 2240 voxels to two classes",
        ),
        (lambda: Calibration(LABELS).update((labels_of(0).repeat(3, 1, 1, 1), labels_of(0))), "0 to 1 is needed"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- over processes


def test_counts_and_sums_of_two_halves_are_those_of_the_whole() -> None:
    first, second = fed(Calibration(LABELS, figure="ace"), cases()[:2]), fed(Calibration(LABELS), cases()[2:])
    whole = fed(Calibration(LABELS, figure="ace"), cases())
    first.counts = first.merged() + second.merged()
    np.testing.assert_array_equal(first.counts.count, whole.counts.count)
    np.testing.assert_array_equal(first.counts.correct, whole.counts.correct)
    assert first.counts.count.dtype == np.int64
    assert first.compute() == pytest.approx(whole.compute(), rel=1e-12)
    again = fed(whole, cases())
    assert again.compute() == pytest.approx(first.compute())
    again.reset()
    assert again.merged().decisions == 0


TWO_PROCESSES = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = sys.argv[2:]
from test_scores import HD95, LABELS, BoundaryIoU, Calibration, cases, fed

def figures(items):
    metrics = [BoundaryIoU(LABELS), HD95(LABELS), Calibration(LABELS, figure="nll"), Calibration(LABELS, population="band")]
    found = [fed(metric, items).compute() for metric in metrics]
    return [*found, metrics[1].undefined(), metrics[3].merged().decisions]

def child(folder, rank, shares):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet{len(shares[0])}", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(figures(shares[rank])))
    torch.distributed.destroy_process_group()

folder, results = Path(sys.argv[1]), []
for shares in ((cases()[:1], cases()[1:]), ([], cases())):  # the second time one process has nothing to do
    processes = []
    for rank in range(2):
        processes.append(os.fork())
        if processes[-1] == 0:
            code = 1
            try:
                child(folder, rank, shares)
                code = 0
            finally:
                os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0, 0]
    results += [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
print(json.dumps({"one": figures(cases()), "two": results}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_agree_on_what_one_finds_alone(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    paths = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests/training")]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *paths], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["two"]) == 4
    for figures in found["two"]:
        assert figures == pytest.approx(found["one"], rel=1e-9)


# --- in an evaluator, and in YAML


class Given(nn.Module):
    """A network whose image is what it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return image


def evaluator(metrics: dict[str, Any], data: list[dict[str, Tensor]], **changed: Any) -> SupervisedEvaluator:
    settings: dict[str, Any] = {
        "postprocessing": Compose(
            [
                CopyItemsd("pred", names="prob"),
                Activationsd("prob", softmax=True),
                AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3),
            ]
        )
    }
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=1),
        network=Given(),
        inferer=SimpleInferer(),
        key_val_metric=metrics,
        **settings | changed,
    )


def as_images(items: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{"image": item["prob"].log(), "label": item["label"]} for item in items]


def test_an_evaluator_puts_the_scores_among_its_metrics_anew_in_each_epoch() -> None:
    expected = summary(cases())
    metrics = {
        "biou": BoundaryIoU(LABELS),
        "hd95": HD95(LABELS),
        "ece": Calibration(LABELS),
        "ece_band": Calibration(LABELS, population="band"),
    }
    engine = evaluator(metrics, as_images(cases()))
    for epoch in (1, 2):
        engine.run(epoch)
        found = engine.state.metrics
        assert found["biou"] == pytest.approx(expected["boundary_iou"]["mean"])
        assert found["hd95"] == pytest.approx(expected["hd95_mm"]["mean"])
        assert found["hd95_undefined"] == 0
        assert found["ece"] == pytest.approx(expected["ece"]["top_label"], rel=1e-4)
        assert found["ece_band"] == pytest.approx(expected["ece_band"]["top_label"], rel=1e-4)


def test_an_item_that_only_the_batch_has_is_taken_from_it() -> None:
    data = [{"image": item["prob"].log(), "truth": item["label"]} for item in cases()]
    engine = evaluator(
        {"biou": BoundaryIoU(LABELS, keys=("pred", "truth"))}, data, postprocessing=AsDiscreted("pred", argmax=True)
    )
    engine.run()
    assert engine.state.metrics["biou"] == pytest.approx(summary(cases())["boundary_iou"]["mean"])


def test_an_evaluator_that_lacks_an_item_or_keeps_whole_batches_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"no tensor 'prob'; it has image, label, pred; choose by `keys`"):
        evaluator({"ece": Calibration(LABELS)}, as_images(cases()), postprocessing=None).run()
    with pytest.raises(ValueError, match="leave its `decollate` at true"):
        evaluator({"biou": BoundaryIoU(LABELS)}, as_images(cases()), postprocessing=None, decollate=False).run()


def shown_yaml() -> dict[str, Any]:
    """The YAML blocks of the how-to, by their first key."""
    page = (REPOSITORY / "docs/how-to/train.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    return {next(iter(block)): block for block in blocks}


def added_to(config: dict[str, Any], lines: dict[str, Any]) -> dict[str, Any]:
    both = {key: added_to(config[key], lines[key]) for key in lines if isinstance(config.get(key), dict)}
    return {**config, **lines, **both}


def test_the_lines_of_the_how_to_make_a_train_yaml_that_validates_with_the_scores(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", FEW[:3])
    shown, recipe = shown_yaml(), root / "configs/train.yaml"
    before = yaml.safe_load(recipe.read_text())
    config = dict(before)
    config["validate"] = added_to(before["validate"], shown["validate"]["validate"])
    recipe.write_text(yaml.safe_dump(config, sort_keys=False))
    parser = ConfigParser()
    parser.read_config([root / "configs/inference.yaml", recipe])
    parser.update(
        {"bundle_root": str(root), "dataset_dir": str(data), "device": torch.device("cpu"), "window": [16, 24, 16]}
    )
    engine = parser.get_parsed_content("validate::evaluator")
    engine.run(3)
    metrics = engine.state.metrics
    assert metrics.keys() == {"val_mean_dice", "val_boundary_iou", "val_ece_band"}
    assert 0 <= metrics["val_boundary_iou"] < 0.5  # of a network that has learnt nothing
    assert 0 < metrics["val_ece_band"] < 1
    assert list((root / "run/tensorboard/scores").glob("events*"))
    output = engine.state.output[0]
    again = Calibration(LABELS, population="band")
    again.update((output["prob"], output["label"]))  # the one selection case
    assert again.compute() == pytest.approx(metrics["val_ece_band"])


@pytest.mark.parametrize(
    "lines",
    [
        "{_target_: monai_unet_app.training.losses.SoftL1ACELoss, softmax: true, include_background: false}",
        "{_target_: monai_unet_app.training.losses.MarginLoss, softmax: true, margin: 5}",
        "{_target_: DiceCELoss, to_onehot_y: true, softmax: true, label_smoothing: 0.1}",
        "{_target_: monai_unet_app.training.losses.OnClassIndices, loss: {_target_: NACLLoss, classes: 3, dim: 3}}",
    ],
)
def test_every_loss_of_the_how_to_can_be_named_in_an_overlay_and_takes_what_training_gives(
    tmp_path: Path, lines: str
) -> None:
    overlay = tmp_path / "loss.yaml"
    overlay.write_text(
        f"loss:\n  _target_: monai_unet_app.training.losses.Sum\n  losses: [{lines}]\n  weights: [0.5]\n"
    )
    configs = REPOSITORY / "bundles/hippocampus_mri_unet3d/configs"
    parser = ConfigParser()
    parser.read_config([configs / "inference.yaml", configs / "train.yaml", overlay])
    logits = torch.randn(2, 3, 6, 6, 6, requires_grad=True)
    value = parser.get_parsed_content("loss")(logits, torch.randint(0, 3, (2, 1, 6, 6, 6)).float())
    value.mean().backward()
    assert torch.isfinite(value)


@pytest.mark.parametrize(
    "name", ["hippocampus_mri_unet3d", pytest.param("retina_vessel_unet2d", marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("without_pages")
def test_an_evaluate_yaml_scores_on_the_source_grid_what_the_evaluation_does(
    tiny_bundle: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    root, folder = tiny_bundle(name), tmp_path / "data"
    data = drawn_eyes(folder, 1) if name.startswith("retina") else few_examples(folder, FEW[:1])
    target, meant = "monai_unet_app.training.ignite_metrics", {"labels": "@labels", "outputs": "@outputs"}
    scores = {
        "biou": {"_target_": f"{target}.BoundaryIoU", **meant, "keys": ["pred", "truth"]},
        "ace_band": {
            "_target_": f"{target}.Calibration",
            **meant,
            "keys": ["prob", "truth"],
            "population": "band",
            "figure": "ace",
        },
    }
    parser = ConfigParser()
    parser.read_config([root / "configs" / f"{part}.yaml" for part in ("inference", "evaluate")])
    changed = {
        "bundle_root": str(root),
        "dataset_dir": str(data),
        "output_dir": str(tmp_path / "report"),
        "device": torch.device("cpu"),
        "partition": "all",
        "evaluator::key_val_metric": scores,
    }
    parser.update(changed)
    engine = parser.get_parsed_content("evaluator")
    engine.run()
    report = json.loads((tmp_path / "report/metrics.json").read_text())
    assert engine.state.metrics["biou"] == pytest.approx(report["boundary_iou"]["mean"], abs=1e-6)
    band = next(block for key, block in report["calibration"].items() if key.startswith("band"))
    assert engine.state.metrics["ace_band"] == pytest.approx(band["top_label"]["ace"], rel=1e-3)

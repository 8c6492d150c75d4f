"""Configurations trained in the same folds, ranked by paired differences out of fold; the best gets a network of its own."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shell import Run, shell
from small_data import tilted_volumes

from monai_unet_app.bundle import load_bundle
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.plan import plan_configurations
from monai_unet_app.planning.write import write_plans
from monai_unet_app.training.ranking import Ranked, Ranking, train_ranked
from monai_unet_app.training.run import TrainConfig

pytestmark = pytest.mark.slow

QUICK = ["--epochs", "2", "--tracking", "none", "--precision", "f32"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    yield from shell(capsys)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tilted_volumes(tmp_path_factory.mktemp("ranking") / "volumes", 6)


@pytest.fixture(scope="module")
def plans(volumes: Path) -> Path:
    root = volumes.parent / "plans"
    said = PlanConfig(volumes, structures={2: "liver", 5: "spleen"}, modality="MR", time_s=1.0)
    made = plan_configurations(said, ["2d", "3d"], lambda network, channels, outputs: 1e-6 * network.voxels)
    write_plans(dict(zip(("2d", "3d"), made, strict=True)), root)
    for name in ("2d", "3d"):
        config = root / name / "configs/inference.yaml"
        config.write_text(re.sub(r"^  filters: \[.*", short, config.read_text(), flags=re.MULTILINE))
        config = root / name / "configs/train.yaml"
        config.write_text(re.sub(r"windows_per_case: \d+", "windows_per_case: 3", config.read_text()))
    return root


def short(line: re.Match[str]) -> str:
    return f"  filters: {[4] + [8] * line[0].count(',')}"


def dice_of(evaluation: Path) -> dict[str, float]:
    with (evaluation / "cases.csv").open(newline="") as stream:
        return {row["case"]: float(row["dice"]) for row in csv.DictReader(stream) if row["class"] == "mean"}


def test_folds_are_trained_ranked_and_the_best_is_completed(
    volumes: Path, plans: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    command = ["train", "--bundle", plans, "--data", volumes, "--output", out, "--folds", "all", *QUICK]
    answer = run(*command)
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in out.iterdir()) == ["2d", "3d", "ranking.json", "ranking.md"]
    document = json.loads((out / "ranking.json").read_text())
    dice = {name: dice_of(out / name / "out_of_fold") for name in ("2d", "3d")}
    assert all(sorted(own) == [f"case{n}" for n in range(6)] for own in dice.values())
    means = {name: np.mean(list(own.values())) for name, own in dice.items()}
    first, second = document["configurations"]
    assert first["dice"] == pytest.approx(means[first["name"]], abs=1e-5)
    assert means[first["name"]] >= means[second["name"]]
    apart = [dice[second["name"]][case] - dice[first["name"]][case] for case in dice["2d"]]
    assert second["difference"] == pytest.approx(np.mean(apart), abs=1e-5)
    low, high = second["interval"]  # six subjects are enough for an interval
    assert min(apart) - 1e-5 <= low <= second["difference"] <= high <= max(apart) + 1e-5
    equal = [entry for entry in document["configurations"] if entry["interval"] is None or entry["interval"][1] >= 0]
    assert document["chosen"] == min(equal, key=lambda entry: entry["seconds"])["name"]
    assert document["chosen"] in answer.out
    # Only the best has a network of its own
    assert [name for name in ("2d", "3d") if (out / name / "models/model.pt").exists()] == [document["chosen"]]
    assert all(len(load_bundle(out / name).folds) == 5 for name in ("2d", "3d"))
    assert load_bundle(out / "2d").metadata["name"] == "out_2d"
    assert re.search(rf"\| {document['chosen']} \|.*\| chosen \|", (out / "ranking.md").read_text())
    # The same command does nothing again
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("model.pt", "metrics.json")}
    again = run(*command)
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((out / "ranking.json").read_text()) == document
    # Another network for the best, of the folds that are there
    answer = run(*command, "--deliver", "ensemble")
    assert answer.code == 0, answer.err
    assert load_bundle(out / document["chosen"]).run_record["settings"]["fold"] == [0, 1, 2, 3, 4]


def test_nothing_is_trained_where_one_template_is_refused(volumes: Path, plans: Path, tmp_path: Path) -> None:
    templates = {name: load_bundle(plans / name) for name in ("2d", "3d")}
    narrow = replace(templates["3d"], overrides=(("input_rules", {"modality": ["MR"], "channels": 2}),))
    with pytest.raises(InputRefusedError, match="channel"):
        train_ranked({"2d": templates["2d"], "3d": narrow}, TrainConfig(volumes, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_templates_of_other_structures_or_folds_are_not_ranked(volumes: Path, plans: Path, tmp_path: Path) -> None:
    said = PlanConfig(volumes, structures={2: "kidney", 5: "spleen"}, modality="MR", time_s=1.0)
    made = plan_configurations(said, ["2d", "3d"], lambda network, channels, outputs: 1e-6 * network.voxels)
    write_plans(dict(zip(("2d", "3d"), made, strict=True)), tmp_path / "other")
    first, other = load_bundle(plans / "2d"), load_bundle(tmp_path / "other/3d")
    with pytest.raises(BundleError, match=r"a is for Liver, Spleen, b for Kidney, Spleen"):
        train_ranked({"a": first, "b": other}, TrainConfig(volumes, tmp_path / "out"))
    path = tmp_path / "other/2d/configs/splits.json"
    document = json.loads(path.read_text())
    for case in document["datasets"]["volumes"]["cases"]:
        case["fold"] = (case["fold"] + 1) % 5
    path.write_text(json.dumps(document))
    templates = {"2d": load_bundle(tmp_path / "other/2d"), "3d": other}
    with pytest.raises(InputRefusedError, match="2d and 3d put these cases into different folds"):
        train_ranked(templates, TrainConfig(volumes, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "interval", "chosen", "reason"),
    [
        ("worse", (-0.04, -0.01), "3d", "each interval of a difference to it lies below 0"),
        ("same", (-0.04, 0.01), "2d", "holds 0"),
        ("too few", None, "2d", "too few for intervals"),
    ],
)
def test_of_equal_configurations_the_fastest_is_chosen(
    word: str, interval: tuple[float, float] | None, chosen: str, reason: str
) -> None:
    best = Ranked("3d", 0.9, None, None, None, 2.0, {})
    other = Ranked("2d", 0.88, -0.02, interval, word, 0.5, {})
    ranking = Ranking(6, 6, {}, (best, other))
    assert ranking.chosen.name == chosen
    assert reason in ranking.reason

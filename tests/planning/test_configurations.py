"""Several configurations of one data set: measured once, written as a folder of bundles with the same folds, or refused."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from shell import Run, shell
from small_data import numbered_discs, plan_bundle, tilted_volumes

from monai_unet_app import progress_bars
from monai_unet_app.bundle import load_bundle
from monai_unet_app.cli import show
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.network import NetworkPlan
from monai_unet_app.planning.plan import plan_configurations
from monai_unet_app.planning.write import write_plan, write_plans


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    # No step of a training is timed
    monkeypatch.setattr("monai_unet_app.planning.speed.seconds_of_a_window", lambda *of, **named: quick(*of))
    yield from shell(capsys)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tilted_volumes(tmp_path_factory.mktemp("configurations") / "volumes")


@pytest.fixture(scope="module")
def plans(volumes: Path) -> Path:
    said = PlanConfig(volumes, structures={2: "liver", 5: "spleen"}, modality="MR", time_s=1.0)
    made = plan_configurations(said, ["2d", "3d"], quick)
    root = volumes.parent / "my_plan"
    write_plans(dict(zip(("2d", "3d"), made, strict=True)), root)
    return root


def quick(network: NetworkPlan, channels: int, outputs: int) -> float:
    return 1e-6 * network.voxels


def test_each_case_is_read_once_whatever_the_number_of_configurations(volumes: Path) -> None:
    read: list[str] = []
    said = PlanConfig(volumes, time_s=1.0)
    made = plan_configurations(said, ["2d", "3d", "3d_low"], quick, lambda text, total: nullcontext(read.append))
    assert sorted(read) == [f"case{n}" for n in range(5)]
    # A network for slices has two axes, the others three
    assert [len(plan.values["window"]) for plan in made] == [2, 3, 3]


def test_each_is_the_bundle_that_a_plan_of_its_own_would_be(volumes: Path, plans: Path) -> None:
    said = PlanConfig(volumes, structures={2: "liver", 5: "spleen"}, modality="MR", time_s=1.0, configuration="2d")
    write_plan(plan_bundle(said, quick), plans.parent / "alone")
    names = [path.relative_to(plans / "2d") for path in sorted((plans / "2d").rglob("*")) if path.is_file()]
    assert Path("configs/train.yaml") in names
    assert sorted(p.relative_to(plans.parent / "alone") for p in (plans.parent / "alone").rglob("*.*")) == sorted(
        p.relative_to(plans / "2d") for p in (plans / "2d").rglob("*.*")
    )
    for name in names:
        own, alone = ((root / name).read_text() for root in (plans / "2d", plans.parent / "alone"))
        assert own.replace("my_plan_2d", "alone") == alone, name
    for name in ("2d", "3d"):
        load_bundle(plans / name).check_network()
    splits = [json.loads((plans / name / "configs/splits.json").read_text()) for name in ("2d", "3d")]
    assert splits[0] == splits[1]


def test_the_verb_writes_all_and_names_the_next_command(volumes: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "several"
    answer = run("plan", volumes, "--output", out, "--configuration", "3d", "2d", "--time", "1min")
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in out.iterdir()) == ["2d", "3d"]
    inferers = [yaml.safe_load((out / name / "configs/inference.yaml").read_text())["inferer"] for name in ("2d", "3d")]
    assert [inferer["_target_"] for inferer in inferers] == ["SliceInferer", "SlidingWindowInferer"]
    words = " ".join(answer.out.split())
    assert "next: monai-unet train --bundle" in words
    assert "several_trained --folds all" in words
    again = run("plan", volumes, "--output", out, "--configuration", "3d", "2d", "--time", "1min")
    assert (again.code, "a plan never replaces files" in again.err) == (2, True)


def test_one_configuration_is_a_bundle_and_not_a_folder_of_them(volumes: Path, tmp_path: Path, run: Run) -> None:
    answer = run("plan", volumes, "--output", tmp_path / "one", "--configuration", "2d", "2d", "--time", "1min")
    assert answer.code == 0, answer.err
    assert (tmp_path / "one/configs/inference.yaml").is_file()


def test_without_a_terminal_the_verb_says_how_long_it_goes_on_reading(
    volumes: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = show.Steps.__call__

    def slowly(steps: show.Steps, text: str = "") -> None:
        moved(steps, text)
        time.sleep(0.05)

    monkeypatch.setattr(show.Steps, "__call__", slowly)
    monkeypatch.setattr(progress_bars, "EVERY_S", 0.005)
    answer = run("plan", volumes, "--output", tmp_path / "one", "--configuration", "2d", "--time", "1min")
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d reading: 4 of 5, about \d s left$", answer.err, re.MULTILINE)
    assert answer.out.splitlines()[-2:] == [
        f"wrote {tmp_path / 'one'}",
        next(line for line in answer.out.splitlines() if line.startswith("next: monai-unet train ")),
    ]


def test_a_configuration_that_the_data_refuse_leaves_nothing(tmp_path: Path, run: Run) -> None:
    data = numbered_discs(tmp_path / "pictures")
    answer = run("plan", data, "--output", tmp_path / "made", "--configuration", "2d", "3d", "--time", "1min")
    assert answer.code == 3
    assert "--configuration 3d: the images are pictures; volumes are needed" in " ".join(answer.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "2d, 3d; to rank them two or more and --folds are needed; give --folds all, or one of them"),
        (
            ["--folds", "all", "--spoil"],
            "holds the bundle(s) 2d, 3d and, beside them, notes.txt; only bundles are allowed there",
        ),
        (["--folds", "all", "--occupy"], "holds notes.txt; a new or empty folder is needed"),
    ],
)
def test_train_refuses_folders_that_hold_something_else(
    volumes: Path, plans: Path, tmp_path: Path, run: Run, flags: list[str], words: str
) -> None:
    folder, out = tmp_path / "plans", tmp_path / "out"
    folder.mkdir()
    for name in ("2d", "3d"):
        (folder / name).symlink_to(plans / name)
    if "--spoil" in flags:
        (folder / "notes.txt").touch()
    if "--occupy" in flags:
        out.mkdir()
        (out / "notes.txt").touch()
    known = [flag for flag in flags if flag not in ("--spoil", "--occupy")]
    before = sorted(tmp_path.rglob("*"))
    answer = run("train", "--bundle", folder, "--data", volumes, "--output", out, *known)
    assert answer.code == 2, answer.err
    assert words in " ".join(answer.err.split())
    assert sorted(tmp_path.rglob("*")) == before

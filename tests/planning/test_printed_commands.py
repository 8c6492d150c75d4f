"""From a folder of labelled images to a result: every command that is printed runs as it stands, and no other is needed."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from conftest import REPOSITORY
from once import made_once
from PIL import Image
from shell import Answer, Run, shell
from small_data import numbered_discs, tilted_volumes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.digest import seen_entry

WAY = ["plan", "train", "calibrate", "evaluate", "predict"]
FOLDS, PARTITIONS = 8, 80
"""Cases from which `plan` deals folds, and partitions: of 80, 9 calibrate."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)  # some outputs have no folder in their name
    # A busy machine gets the same network and as many steps
    monkeypatch.setattr("monai_unet_app.planning.speed.seconds_of_a_window", lambda *of, **named: 0.02)
    monkeypatch.setattr("monai_unet_app.planning.sizing._FILTERS", (8,))
    yield from shell(capsys)


def follow(run: Run, *first: object, verbs: list[str] = WAY) -> dict[str, Answer]:
    """Runs a command and every command of these verbs that is printed next; the answer of each verb."""
    answers: dict[str, Answer] = {}
    commands = [[str(word) for word in first]]
    while commands:
        words = commands.pop(0)
        if words[0] not in verbs:
            continue
        answer = answers[words[0]] = run(*words)
        assert answer.code == 0, (words, answer.err)
        printed = [line for line in answer.out.splitlines() if line.startswith("next: ")]
        commands += [shlex.split(line)[2:] for line in printed]
        assert all(line.startswith("next: monai-unet ") for line in printed), printed
    return answers


def test_a_printed_step_that_is_pasted_into_a_shell_names_the_folders_and_runs_nothing_else(
    run: Run, tmp_path: Path
) -> None:
    odd = "-it's $(touch RAN); `touch RAN` \"&|>RAN #*"
    data, bundle = tilted_volumes(tmp_path / odd, 8), tmp_path / f"{odd} plan"
    answer = run("plan", data, "--output", bundle)
    assert answer.code == 0, answer.err
    (step,) = (line.removeprefix("next: ") for line in answer.out.splitlines() if line.startswith("next: "))
    shell_line = "monai-unet() { printf '%s\\n' \"$@\"; }\n" + step
    words = subprocess.run(["bash", "-c", shell_line], capture_output=True, text=True, check=True).stdout.splitlines()
    assert (words[0], words[words.index("--bundle") + 1], words[words.index("--data") + 1]) == (
        "train", str(bundle), str(data),
    )  # fmt: skip
    assert not list(tmp_path.rglob("RAN"))


def seg_of(output: Path) -> pydicom.Dataset:
    (file,) = output.glob("*_seg.dcm")
    return pydicom.dcmread(file)


@pytest.mark.slow
def test_volumes_end_at_a_seg(tmp_path: Path, run: Run) -> None:
    data = tilted_volumes(tmp_path / "Dataset001_Balls", FOLDS)
    names = {"background": 0, "liver": 2, "spleen": 5}
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": names}))
    answers = follow(run, "plan", data, "--output", tmp_path / "my_plan", "--time", "0.02min")
    assert list(answers) == WAY
    assert "--folds all" in answers["plan"].out
    curves = EventAccumulator(str(next((tmp_path / "my_plan_trained/run/tensorboard").rglob("events*")))).Reload()
    assert {"train/loss", "selection/mean_dice", "selection/dice/liver", "selection/dice/spleen"} <= set(
        curves.Tags()["scalars"]
    )
    measured = json.loads((tmp_path / "my_plan_trained_evaluation/metrics.json").read_text())["data"]
    assert measured["seen"] == {}
    assert len(measured["folds"]) == FOLDS
    words = ["evaluate", "--bundle", "my_plan_trained", "--data", data, "--output", "no"]
    assert "no case is left to work on; give other cases, or --folds" in run(*words).err
    results = tmp_path / "my_plan_trained_results"
    segments = seg_of(results).SegmentSequence
    assert [str(segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) for segment in segments] == [
        "Liver",
        "Spleen",
    ]
    assert list(results.glob("*_sr.dcm"))


@pytest.mark.slow
def test_pictures_end_at_png_and_say_so(tmp_path: Path, run: Run) -> None:
    data = numbered_discs(tmp_path / "pictures", PARTITIONS)
    flags = ("--objects", "disc", "--time", "0.1min")
    answers = follow(run, "plan", data, "--output", tmp_path / "my_plan", *flags)
    assert list(answers) == WAY
    assert "--folds all" not in answers["plan"].out
    assert "results of pictures are PNG files and result.json" in answers["plan"].err
    (mask,) = (tmp_path / "my_plan_trained_results").glob("*_seg.png")
    assert np.asarray(Image.open(mask)).shape == (70, 90)
    picture = next((data / "images").glob("*.png"))
    for flags in ([], ["--dicomize", "--uncoded"]):
        words = ["--input", picture, "--output", tmp_path / "no", "--format", "seg", *flags]
        refused = run("predict", "--bundle", tmp_path / "my_plan_trained", *words)
        assert refused.code == 2
        assert "DICOM results cannot be made of it" in refused.err
        assert "give --format png" in refused.err


Cell = Callable[[int], Mapping[str, Any]]
LISTS: dict[str, tuple[Cell, bool | None]] = {
    "no places": (lambda n: {}, None),
    "train and test": (lambda n: {"partition": "test" if n % 3 == 0 else "train"}, True),
    "train and selection": (lambda n: {"partition": "selection" if n % 3 == 0 else "train"}, True),
    "no calibration": (lambda n: {"partition": ("train", "selection", "test")[n % 3]}, False),
    "one calibrates": (
        lambda n: {"partition": ("calibration", "train", "selection", "test")[min(n, 1 + n % 3)]},
        False,
    ),
    "all partitions": (lambda n: {"partition": ("calibration", "train", "selection", "test")[n % 4]}, False),
    "folds": (lambda n: {"fold": n % 3}, True),
    "folds and test": (lambda n: {"partition": "test" if n == 1 else "train", "fold": n % 2}, True),
    "two persons": (lambda n: {"fold": n % 2, "subject": f"P{n % 2}"}, True),
}
"""The cells of case n in a list, and whether its cases are trained in folds; None where their number decides."""

OVERLAY = "monai_unet_app.training.run.run_overlay"
UNCALIBRATED = ("no calibration", "one calibrates")


def drawn(folder: Path, count: int, label: str = "labels") -> list[tuple[str, str]]:
    """Grey pictures of 32 x 24 pixels with a disc each, and their labels: the names of the files."""
    (folder / "images").mkdir(parents=True)
    (folder / label).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:24, :32]
    for number in range(count):
        random = np.random.default_rng(number)
        disc = (x - random.integers(9, 23)) ** 2 + (y - random.integers(8, 16)) ** 2 < 25
        grey = np.clip(random.normal(60, 9, disc.shape) + 80 * disc, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"images/p{number}.png")
        Image.fromarray((255 * disc).astype(np.uint8)).save(folder / f"{label}/p{number}.png")
    return [(f"images/p{number}.png", f"{label}/p{number}.png") for number in range(count)]


def listed(folder: Path, count: int, cells: Cell) -> Path:
    """A list of drawn cases."""
    rows = [{"image": image, "label": label, **cells(n)} for n, (image, label) in enumerate(drawn(folder, count))]
    with (folder / "list.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder / "list.csv"


def raw_folder(folder: Path, count: int) -> Path:
    """nnU-Net's raw folder of drawn cases, with two folds of nnU-Net beside it."""
    drawn(folder, count, "labelsTr")
    (folder / "images").rename(folder / "imagesTr")
    for file in (folder / "imagesTr").iterdir():
        file.rename(file.with_name(f"{file.stem}_0000.png"))
    names = {f"p{number}" for number in range(count)}
    vals = [{f"p{number}" for number in range(count) if number % 2 == fold} for fold in (0, 1)]
    folds = [{"train": sorted(names - val), "val": sorted(val)} for val in vals]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    return folder


def no_training(root: Path, overlay: str, overrides: Mapping[str, Any], weights: bytes = b"") -> None:
    """What a training leaves in a bundle, with these weights."""
    said = [overrides[name] for name in ("dataset_dir", "splits", "label_suffix", "labels_dir", "fold")]
    parts = by_partition(*said, own_splits=root / "configs/splits.json")
    cases = {row["id"]: {"partition": part, **seen_entry(row)} for part, rows in parts.items() for row in rows}
    folder = Path(overrides["weights_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"cases": cases, "sessions": [], "best": None}))
    (folder / "model.pt").write_bytes(weights)


def planned_and_followed(run: Run, folder: Path, places: str, count: int, verbs: list[str]) -> dict[str, Answer]:
    """From `plan` on as many drawn cases to the last of the verbs, each as it is printed."""
    cells, by_folds = LISTS.get(places, (None, True))
    data = listed(folder / "cases", count, cells) if cells else raw_folder(folder / "Dataset001_X", count)
    answers = follow(run, "plan", data, "--output", "my_plan", "--structure", "1=disc", verbs=verbs)
    assert list(answers) == [verb for verb in verbs if verb != "calibrate" or places not in UNCALIBRATED]
    assert ("--folds all" in answers["plan"].out) == (count < PARTITIONS if by_folds is None else by_folds)
    return answers


@pytest.fixture
def learnt(tmp_path: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights that know discs, trained once; the network is the same for every list."""

    def make(folder: Path) -> None:
        data = listed(tmp_path / "learnt", 12, LISTS["no calibration"][0])
        words = ("--output", tmp_path / "disc", "--structure", "1=disc", "--time", "0.1min")
        follow(run, "plan", data, *words, verbs=WAY[:2])
        shutil.copy2(tmp_path / "disc_trained/models/model.pt", folder)

    return (made_once(tmp_path_factory, "discs", make) / "model.pt").read_bytes()


GRID = [*LISTS, "splits_final.json"]


@pytest.mark.parametrize(
    ("places", "count"), [*zip(GRID, cycle([6, 8, 12, 25])), ("no places", PARTITIONS), ("all partitions", PARTITIONS)]
)
def test_train_takes_every_list_as_plan_prints_it_and_prints_what_comes_next(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, places: str, count: int
) -> None:
    monkeypatch.setattr(OVERLAY, no_training)
    answers = planned_and_followed(run, tmp_path, places, count, WAY[:2])
    verb = answers["train"].out.split("next: monai-unet ")[1].split()[0]
    assert verb == ("evaluate" if places in UNCALIBRATED else "calibrate")


@pytest.mark.slow
@pytest.mark.parametrize(("places", "count"), [*product(GRID, [6]), *zip(GRID, cycle([8, 12, 25, PARTITIONS]))])
def test_every_list_ends_at_a_result(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, learnt: bytes, places: str, count: int
) -> None:
    monkeypatch.setattr(OVERLAY, partial(no_training, weights=learnt))
    planned_and_followed(run, tmp_path, places, count, WAY)


def test_a_training_that_leaves_no_case_to_measure_ends_with_its_folds(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OVERLAY, no_training)
    data = listed(tmp_path / "cases", 6, LISTS["train and selection"][0])
    follow(run, "plan", data, "--output", "my_plan", "--structure", "1=disc", verbs=WAY[:1])
    words = ["--bundle", "my_plan", "--data", data, "--splits", "my_plan/configs/splits.json", "--output", "own"]
    answers = follow(run, "train", *words, verbs=["train"])
    assert "next: monai-unet calibrate --bundle " in answers["train"].out
    assert len(list((tmp_path / "own_folds/folds").iterdir())) == 5
    assert not (tmp_path / "own/folds").exists()


def test_what_no_training_can_take_is_refused_before_an_image_is_read(tmp_path: Path, run: Run) -> None:
    bundle = REPOSITORY / "bundles/retina_vessel_unet2d"
    for name, cells, said in (
        (
            "one fold",
            lambda n: {"fold": 0},
            "to train on in fold 0; two to 10 folds, from 0 on, are needed; state them in",
        ),
        ("one train", lambda n: {"partition": "test" if n else "train"}, "has no case to select the best model"),
        ("none train", lambda n: {"partition": "test"}, "has no case to train on"),
        (
            "three",
            lambda n: {"subject": str(n % 3)},
            "add cases, or state two folds or more in the column fold of a list",
        ),
    ):
        data = listed(tmp_path / name, 6, cells)
        for file in (tmp_path / name / "images").iterdir():
            file.write_bytes(b"no picture")
        for verb in (["plan", data], ["train", "--bundle", bundle, "--data", data]):
            answer = run(*verb, "--output", tmp_path / "out")
            assert (answer.code, said in " ".join(answer.err.split())) == (3, True), (verb, answer.err)


@pytest.mark.parametrize("places", ["train and test", "folds"])
def test_train_names_the_folds_where_it_refuses_a_list_without_them(tmp_path: Path, run: Run, places: str) -> None:
    data = listed(tmp_path / "cases", 6, LISTS[places][0])
    words = ["--bundle", REPOSITORY / "bundles/retina_vessel_unet2d", "--data", data, "--output", tmp_path / "out"]
    answer = run("train", *words)
    assert answer.code == 3
    assert "has no case to select the best model; at least one is needed; give --folds all" in answer.err
    answer = run("train", *words, "--folds", "7")
    assert f"has no case to test in fold 7; one of {'0, 1, 2' if places == 'folds' else ''}" in answer.err

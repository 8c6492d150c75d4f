"""Cross-validation with one command: a network for each fold, figures and calibration of cases that it has not seen."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from pydicom.sr.codedict import codes
from shell import Run, shell
from small_data import calibration_of, plan_bundle, tilted_volumes

from dicom_io.coding import Segment
from dicom_io.objects.identity import ResultInfo
from dicom_io.read import read_series
from dicom_io.rtstruct import write_rtstruct
from dicom_io.seg import write_seg
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.evaluate import choose_cases, choose_out_of_fold
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.write import write_plan
from monai_unet_app.training.ensemble import side_by_side
from monai_unet_app.training.record import command_line
from monai_unet_app.training.run import TrainConfig, run_overlay, train_bundle, train_folds

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {
    "epochs": 3,
    "train::loader::windows_per_case": 4,
    "averaged::decay": 0.8,
    "learning_rate": 0.01,
    "precision": "f32",
    "tracker": "none",
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    yield from shell(capsys)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tilted_volumes(tmp_path_factory.mktemp("folds") / "volumes", 6)


@pytest.fixture(scope="module")
def template(volumes: Path) -> Path:
    root = volumes.parent / "template"
    said = PlanConfig(volumes, structures={2: "liver", 5: "spleen"}, modality="MR", time_s=1.0)
    write_plan(plan_bundle(said, lambda network, channels, outputs: 1e-6 * network.voxels), root)
    config = root / "configs/inference.yaml"
    config.write_text(re.sub(r"^  filters: .*", "  filters: [4, 8, 8, 8]", config.read_text(), flags=re.MULTILINE))
    path = root / "configs/splits.json"  # one case is kept for the test of the whole bundle
    document = json.loads(path.read_text())
    document["datasets"]["volumes"]["cases"][5]["partition"] = "test"
    path.write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def trained(volumes: Path, template: Path) -> Path:
    said: list[str] = []
    root = volumes.parent / "trained"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_folds(load_bundle(template), TrainConfig(volumes, root, overrides=QUICK, say=said.append))
    torch.set_num_threads(threads)
    assert [line for line in said if line.startswith("fold ")] == [f"fold {n}" for n in range(5) if f"fold {n}" in said]
    return root


def test_each_fold_has_a_network_that_saw_neither_its_cases_nor_the_test_case(trained: Path) -> None:
    bundle = load_bundle(trained)
    tested: list[str] = []
    for fold in bundle.folds:
        parts = {case.id: case.partition for case in fold.seen}
        assert "case5" not in parts
        assert len(parts) == 5
        assert set(parts.values()) == {"train", "test"}
        tested += [name for name, part in parts.items() if part == "test"]
        assert fold.run_record["best"] == {"epoch": 0, "metric": None}  # nothing was selected on what it tests
        assert fold.run_record["history"][-1]["metric"] is not None  # but its curve is known
    assert sorted(tested) == [f"case{n}" for n in range(5)]
    own = {case.id: case.partition for case in bundle.seen}
    assert own == {**{f"case{n}": "train" for n in range(5)}, "case5": "test"}
    weights = [next(iter(one.network.parameters())) for one in (bundle, *bundle.folds)]
    assert all(not weights[0].equal(other) for other in weights[1:])
    assert not (trained / "cache").exists()


def test_what_is_trained_is_not_trained_again(volumes: Path, template: Path, trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("model.pt")}
    train_folds(load_bundle(template), TrainConfig(volumes, trained, overrides=QUICK))
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("model.pt")} == before
    assert len(before) == 1 + len(load_bundle(trained).folds)


@pytest.fixture(scope="module")
def in_parallel(volumes: Path, template: Path) -> Path:
    """The same as `trained`, three networks at the same time; `trained` has one thread, too."""
    root = volumes.parent / "in_parallel"
    said: list[str] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    run = TrainConfig(volumes, root, overrides=QUICK, parallel=3, say=said.append)
    train_folds(load_bundle(template), run, (0, 1))
    torch.set_num_threads(threads)
    assert "training 3 networks, 3 at the same time with 1 thread(s) each" in said
    return root


def test_folds_that_are_trained_at_the_same_time_have_the_same_weights(trained: Path, in_parallel: Path) -> None:
    networks = sorted(path.relative_to(in_parallel) for path in in_parallel.rglob("model.pt"))
    assert [str(path) for path in networks] == [
        "folds/0/models/model.pt", "folds/1/models/model.pt", "models/model.pt",
    ]  # fmt: skip
    for path in networks:
        first, second = (torch.load(root / path, weights_only=True) for root in (trained, in_parallel))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), path
        session = json.loads((in_parallel / path).with_name("run.json").read_text())["sessions"][0]
        assert session["threads"] == 1
        assert session["command"] == command_line()
    assert not (in_parallel / "cache").exists()


def test_a_fold_that_fails_at_the_same_time_as_others_is_named_and_the_same_call_goes_on(
    volumes: Path, template: Path, in_parallel: Path, tmp_path: Path, run: Run
) -> None:
    root = Path(shutil.copytree(in_parallel, tmp_path / "out"))
    first, second, *_ = [str(fold.fold) for fold in load_bundle(root).folds]
    record = root / "folds" / second / "run/run.json"
    whole = record.read_text()
    record.write_text(json.dumps({**json.loads(whole), "data_sha256": "0" * 64}))
    shutil.rmtree(root / "folds" / first)
    command = ["train", "--bundle", template, "--data", volumes, "--output", root, "--folds", first, second]
    overrides = ["--epochs", "3", "--learning-rate", "0.01", "--precision", "f32", "--tracking", "none"]
    answer = run(*command, *overrides, "--parallel", "2")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith(
        f"error: fold {second}: run/ holds a run with other data_sha256; only"
    )
    assert f"fold {first} · epoch   3/3 · loss" in answer.err  # it went on to its end
    assert (root / "folds" / first / "models/model.pt").exists()
    record.write_text(whole)
    again = run(*command, *overrides, "--parallel", "2")
    assert again.code == 0, again.err
    assert "epoch   1/3" not in again.err


def test_each_case_is_chosen_for_the_fold_that_tests_it(volumes: Path, trained: Path, template: Path) -> None:
    bundle = load_bundle(trained)
    chosen = choose_out_of_fold(bundle, find_data(volumes))
    assert sorted(chosen.folds) == [f"case{n}" for n in range(5)]
    plan = json.loads((template / "configs/splits.json").read_text())["datasets"]["volumes"]["cases"]
    assert chosen.folds == {case["id"]: case["fold"] for case in plan if case["partition"] == "train"}
    assert "5 of 6 case(s) out of fold" in chosen.note
    with pytest.raises(InputRefusedError, match="has no folds"):
        choose_out_of_fold(load_bundle(template), find_data(volumes))


def test_calibration_and_figures_out_of_fold(volumes: Path, trained: Path, tmp_path: Path, run: Run) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "trained"))  # the other tests read what was only trained
    answer = run("calibrate", "--bundle", root, "--data", volumes, "--unchecked")
    assert answer.code == 0, answer.err
    assert "out of fold" in answer.err  # the training left none to calibrate
    assert any(value for value in calibration_of(root).values() if isinstance(value, float))
    assert json.loads((root / "models/calibration.json").read_text())["cases"].keys() == {f"case{n}" for n in range(5)}
    answer = run("evaluate", "--bundle", root, "--data", volumes, "--folds", "--output", tmp_path / "oof")
    assert answer.code == 0, answer.err
    assert cases_of(tmp_path / "oof/cases.csv") == {f"case{n}" for n in range(5)}
    folds = choose_out_of_fold(load_bundle(root), find_data(volumes)).folds
    assert json.loads((tmp_path / "oof/metrics.json").read_text())["data"]["folds"] == folds
    assert run("evaluate", "--evaluation", tmp_path / "oof", "--bundle", root, "--into-bundle").code == 0
    assert load_bundle(root).measured["folds"] == len(set(folds.values()))
    own = run("evaluate", "--bundle", root, "--data", volumes, "--output", tmp_path / "test")
    assert own.code == 0, own.err
    assert cases_of(tmp_path / "test/cases.csv") == {"case5"}


def test_folds_are_evaluated_before_the_own_network_is_trained(
    volumes: Path, trained: Path, tmp_path: Path, run: Run
) -> None:
    only_folds = tmp_path / "only_folds"
    shutil.copytree(trained, only_folds)
    (only_folds / "models/model.pt").unlink()
    words = ["evaluate", "--bundle", only_folds, "--data", volumes, "--output"]
    answer = run(*words, tmp_path / "oof", "--folds")
    assert answer.code == 0, answer.err
    assert cases_of(tmp_path / "oof/cases.csv") == {f"case{n}" for n in range(5)}
    assert "has no weights (models/model.pt" in run(*words, tmp_path / "own").err


@pytest.mark.parametrize("verb", ["calibrate", "evaluate"])
@pytest.mark.parametrize("more", [("--partition", "test"), ("--splits", "plan.json")])
def test_folds_are_named_alone(volumes: Path, trained: Path, tmp_path: Path, run: Run, verb: str, more: Any) -> None:
    output = ["--output", tmp_path / "out"] if verb == "evaluate" else []
    answer = run(verb, "--bundle", trained, "--data", volumes, "--folds", *more, *output)
    assert (answer.code, f"leave {more[0]} out" in answer.err) == (2, True)


def cases_of(table: Path) -> set[str]:
    with table.open(newline="") as stream:
        return {row["case"] for row in csv.DictReader(stream)}


def test_a_plan_of_folds_has_no_single_training(volumes: Path, template: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(template, tmp_path / "folds_alone")) / "configs/splits.json"
    path.write_text(path.read_text().replace('"test"', '"train"'))
    said: list[str] = []
    run = TrainConfig(volumes, tmp_path / "out", overrides=QUICK, say=said.append)
    with pytest.raises(
        InputRefusedError, match="no case to select the best model; at least one is needed; give --folds all"
    ):
        train_bundle(load_bundle(path.parents[1]), run)
    assert said == []  # nothing of subjects to calibrate
    assert not (tmp_path / "out").exists()


def test_a_structure_that_no_case_of_a_fold_trains_is_refused(template: Path, tmp_path: Path) -> None:
    volumes = tilted_volumes(tmp_path / "volumes", 6)
    for number in range(1, 6):  # the spleen is in case0 alone, which is in one fold
        file = volumes / f"labelsTr/case{number}.nii.gz"
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) % 5, image.affine), file)
    with pytest.raises(InputRefusedError, match=r"fold \d: no case to train on has class 2, case0 has; "):
        train_folds(load_bundle(template), TrainConfig(volumes, tmp_path / "out", overrides=QUICK))
    assert not (tmp_path / "out").exists()


def test_a_structure_set_trains_as_a_seg_of_the_same_labels_does(tmp_path: Path) -> None:
    shape = (24, 20, 12)
    segments = tuple(Segment(n, name, codes.SCT.Organ, codes.SCT.Liver) for n, name in ((1, "Liver"), (2, "Tumour")))
    result = ResultInfo(segments, "drawn by hand", "1", "0" * 64)
    trained = {}
    for kind, write in (("seg", write_seg), ("rtstruct", write_rtstruct)):
        data = tmp_path / kind
        for number in range(5):
            case, header = data / f"case{number}", {"PatientID": f"P{number}"}
            image = lopsided_array(shape) + 3 * number * lopsided_labels(shape)
            write_mr_series(case / "mr", image, oblique_affine(), header=header)
            source = read_series(case / "mr")
            write(source.with_array(lopsided_labels(shape)), source, case / "labels.dcm", result)
        said = PlanConfig(data, structures={1: "liver", 2: "tumour"}, time_s=0.1)
        write_plan(
            plan_bundle(said, lambda network, channels, outputs: 1e-6 * network.voxels), tmp_path / f"{kind}_plan"
        )
        run = TrainConfig(data, tmp_path / f"{kind}_trained", overrides={**QUICK, "epochs": 1})
        bundle = train_folds(load_bundle(tmp_path / f"{kind}_plan"), run, [0], deliver=None)
        trained[kind] = torch.load(bundle.of_fold(0).weights, weights_only=True)
    assert all(torch.equal(values, trained["seg"][name]) for name, values in trained["rtstruct"].items())


def test_a_template_that_would_overwrite_the_folds_is_refused(volumes: Path, template: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(template, tmp_path / "old"))
    file = old / "configs/train.yaml"
    file.write_text(file.read_text().replace("$@weights_dir + '/model.pt'", "$@bundle_root + '/models/model.pt'"))
    with pytest.raises(BundleError, match="each fold would overwrite the others"):
        train_folds(load_bundle(old), TrainConfig(volumes, tmp_path / "out"))


def test_some_folds_only(volumes: Path, template: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "some"
    plan = json.loads((template / "configs/splits.json").read_text())["datasets"]["volumes"]["cases"]
    fold = next(case["fold"] for case in plan if case["partition"] == "train")
    flags = ["--folds", fold, "--epochs", "1", "--tracking", "none", "--precision", "f32"]
    answer = run("train", "--bundle", template, "--data", volumes, "--output", out, *flags)
    assert answer.code == 0, answer.err
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("model.pt")) == [
        f"folds/{fold}/models/model.pt"
    ]


@pytest.fixture(scope="module")
def ensemble(volumes: Path, template: Path, trained: Path) -> Path:
    """The same folds, which are not trained again, with their mean as the network of the bundle."""
    root = Path(shutil.copytree(trained, trained.with_name("ensemble")))
    said: list[str] = []
    run = TrainConfig(volumes, root, overrides=QUICK, say=said.append)
    train_folds(load_bundle(template), run, deliver="ensemble")
    assert f"the mean of {len(load_bundle(trained).folds)} networks" in said
    assert "all data" not in said
    return root


def logits_of(bundle: Bundle, window: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return bundle.network(window)


def test_an_ensemble_answers_with_the_mean_of_its_folds(trained: Path, ensemble: Path) -> None:
    bundle, single = load_bundle(ensemble), load_bundle(trained)
    window = torch.randn(1, 1, *bundle.windows.window, generator=torch.Generator().manual_seed(0))
    answers = [logits_of(fold, window) for fold in single.folds]
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)
    torch.testing.assert_close(logits_of(bundle, window), torch.stack(answers).mean(0), atol=1e-5, rtol=1e-5)
    # The folds are single networks still, with the layer of a single network
    for fold, answer in zip(bundle.folds, answers, strict=True):
        torch.testing.assert_close(logits_of(fold, window), answer)
        assert (bundle.feature_layer, fold.feature_layer) == ("0.bottleneck", "bottleneck")


def test_the_record_of_an_ensemble_lists_what_any_fold_trained_on(volumes: Path, ensemble: Path, run: Run) -> None:
    bundle = load_bundle(ensemble)
    trained_on = {case.id for fold in bundle.folds for case in fold.seen if case.partition == "train"}
    parts = {case.id: case.partition for case in bundle.seen}
    assert {name for name, part in parts.items() if part == "train"} == trained_on == {f"case{n}" for n in range(5)}
    assert parts["case5"] == "test"
    assert bundle.run_record["settings"]["fold"] == [fold.fold for fold in bundle.folds]
    assert choose_cases(bundle, find_data(volumes)).ids == ["case5"]  # as `evaluate` does without a partition


def test_an_ensemble_is_calibrated_measured_and_applied(
    volumes: Path, ensemble: Path, tmp_path: Path, run: Run
) -> None:
    root = Path(shutil.copytree(ensemble, tmp_path / "ensemble"))
    answer = run("calibrate", "--bundle", root, "--data", volumes, "--unchecked")
    assert answer.code == 0, answer.err
    assert "the bundle answers with their mean, whose probabilities differ" in answer.err
    assert any(value for value in calibration_of(root).values() if isinstance(value, float))
    for more, cases in (([], {"case5"}), (["--folds"], {f"case{n}" for n in range(5)})):
        out = tmp_path / "".join(["out", *more])
        answer = run("evaluate", "--bundle", root, "--data", volumes, *more, "--output", out)
        assert answer.code == 0, answer.err
        assert cases_of(out / "cases.csv") == cases
    image = volumes / "imagesTr/case5_0000.nii.gz"
    answer = run("predict", "--bundle", root, "--input", image, "--output", tmp_path / "labels", "--deliver-rejected")
    assert answer.code == 0, answer.err
    # What was calibrated stays, and what is trained is not trained again
    before = {path: path.stat().st_mtime_ns for path in (*root.rglob("model.pt"), root / "models/fitted.json")}
    train_folds(load_bundle(ensemble), TrainConfig(volumes, root, overrides=QUICK), deliver="ensemble")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_monai_runs_an_ensemble_as_the_bundle_does(volumes: Path, ensemble: Path, tmp_path: Path, run: Run) -> None:
    image = volumes / "imagesTr/case5_0000.nii.gz"
    assert run("predict", "--bundle", ensemble, "--input", image, "--output", tmp_path / "ours").code == 0
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
    flags = ["--dataset_dir", image.parent, "--output_dir", tmp_path / "theirs", "--device", "cpu"]
    done = subprocess.run([*command, *flags], cwd=ensemble, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (
        np.asarray(nibabel.load(next((tmp_path / side).rglob("case5*_seg.nii.gz"))).dataobj).squeeze()
        for side in ("ours", "theirs")
    )
    assert ours.any()
    assert (ours != theirs).mean() < 1e-3
    alone = Path(shutil.copytree(ensemble, tmp_path / "alone"))
    (alone / "models/run.json").unlink()  # nothing counts as seen
    told = {"dataset_dir": str(volumes), "partition": "all", "output_dir": str(tmp_path / "report"), "device": "cpu"}
    run_overlay(alone, "evaluate", told)
    assert cases_of(tmp_path / "report/cases.csv") == {f"case{n}" for n in range(6)}
    run_overlay(alone, "calibrate", told)
    assert any(value for value in calibration_of(alone).values() if isinstance(value, float))


def test_a_delivery_can_be_changed(
    volumes: Path, template: Path, trained: Path, ensemble: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(ensemble, tmp_path / "back"))
    train_folds(load_bundle(template), TrainConfig(volumes, root, overrides=QUICK))
    for name in ("configs/inference.yaml", "models/fitted.json"):
        assert (root / name).read_bytes() == (template / name).read_bytes(), name
    assert (root / "models/run.json").read_bytes() == (trained / "models/run.json").read_bytes()
    weights = [torch.load(one / "models/model.pt", weights_only=True) for one in (root, trained)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_copy_of_an_ensemble_begins_with_one_network(volumes: Path, ensemble: Path, tmp_path: Path) -> None:
    fold = load_bundle(ensemble).folds[0].fold
    assert fold is not None
    copy = train_folds(
        load_bundle(ensemble), TrainConfig(volumes, tmp_path / "copy", overrides=QUICK), [fold], deliver=None
    )
    assert not isinstance(copy.part("network_def"), torch.nn.ModuleList)
    assert not copy.is_ensemble
    copy.check_network()


def test_networks_that_were_trained_side_by_side_in_each_fold_stand_one_after_the_other() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    folds = [{"0.a": one, "0.b.c": one, "1.a": one, "1.b.c": one}, {"0.a": two, "0.b.c": two, "1.a": two, "1.b.c": two}]
    expected = {f"{n}.{name}": value for n, value in enumerate((one, one, two, two)) for name in ("a", "b.c")}
    assert dict(side_by_side(folds, several=True)) == expected


def test_a_bundle_that_does_not_read_the_number_of_its_networks_is_no_ensemble(
    volumes: Path, template: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(template, tmp_path / "own"))
    config = root / "configs/inference.yaml"
    config.write_text(re.sub(r"(?m)^folds: .*$", "folds: 1", config.read_text()))
    with pytest.raises(
        BundleError, match=r"does not read how many networks answer together; folds: .*--deliver all-data"
    ):
        train_folds(load_bundle(root), TrainConfig(volumes, tmp_path / "out"), deliver="ensemble")
    assert not (tmp_path / "out").exists()


def test_an_ensemble_needs_all_folds(volumes: Path, template: Path, tmp_path: Path, run: Run) -> None:
    flags = ["--bundle", template, "--data", volumes, "--output", tmp_path / "out", "--deliver", "ensemble"]
    for folds in ([], ["--folds", "0"]):
        answer = run("train", *flags, *folds)
        assert (answer.code, "give --folds all" in answer.err) == (2, True)

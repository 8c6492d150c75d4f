"""Trainings that begin with other weights: what fits is taken, what does not is said, and what the donor has seen is known."""

from __future__ import annotations

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet, FlexibleUNet
from PIL import Image
from shell import Run, shell
from small_data import plan_bundle, tilted_volumes
from torch import nn

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.data.case_files import CaseFiles, find_data
from monai_unet_app.data.cases import PlannedCases
from monai_unet_app.data.splits import SplitCase, read_splits
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.evaluate import choose_cases, choose_out_of_fold
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.write import write_plan
from monai_unet_app.report.stored_evaluation import read_evaluation
from monai_unet_app.training.run import TrainConfig, train_folds
from monai_unet_app.training.transfer import Donor, overrides_of, rates_by_depth, started

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import learning_curve
from learning_curve import taken_cases


def curve(*words: object) -> int:
    return learning_curve.main(list(map(str, words)))


def unet(outputs: int = 3, channels: int = 1, width: int = 4) -> BasicUNet:
    return BasicUNet(2, channels, outputs, features=(width, 8, 8, 8, 8, width))


def saved(network: nn.Module, path: Path, wrap: Any = lambda state: state) -> str:
    torch.save(wrap(network.state_dict()), path)
    return str(path)


def test_all_but_the_head_comes_from_the_donor(tmp_path: Path) -> None:
    donor, network = unet(5), unet(3)
    head = {name: value.clone() for name, value in network.state_dict().items() if name.startswith("final_conv")}
    begun = started(network, "cpu", saved(donor, tmp_path / "donor.pt")).state_dict()
    for name, value in begun.items():
        assert torch.equal(value, head[name] if name in head else donor.state_dict()[name]), name
    assert len(head) == 2


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"epoch": 3, "model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {name: value.half() for name, value in state.items()},
    ],
    ids=["inside", "parallel", "compiled", "halves"],
)
def test_checkpoints_as_they_are_written_elsewhere(tmp_path: Path, wrap: Any) -> None:
    donor, network = unet(), unet()
    begun = started(network, "cpu", saved(donor, tmp_path / "donor.pt", wrap)).state_dict()
    assert all(torch.allclose(value, donor.state_dict()[name], atol=1e-3) for name, value in begun.items())


def test_an_encoder_alone_fills_the_encoder_of_a_flexible_unet(tmp_path: Path) -> None:
    trained, network = (FlexibleUNet(3, 2, "resnet18", spatial_dims=2) for _ in range(2))
    decoder = {name: value.clone() for name, value in network.decoder.state_dict().items()}
    assert network.encoder is not None
    begun = started(network, "cpu", saved(trained.encoder, tmp_path / "resnet18.pth"))
    assert all(
        torch.equal(value, trained.encoder.state_dict()[name]) for name, value in begun.encoder.state_dict().items()
    )
    assert all(torch.equal(value, decoder[name]) for name, value in begun.decoder.state_dict().items())


def test_several_networks_begin_with_several_others(tmp_path: Path) -> None:
    donor = nn.ModuleList([unet(), unet(), unet()])
    path = saved(donor, tmp_path / "donor.pt")
    begun = started(nn.ModuleList([unet(), unet()]), "cpu", path, networks=3)
    assert all(torch.equal(value, donor.state_dict()[name]) for name, value in begun.state_dict().items())
    one = started(unet(), "cpu", path, networks=3).state_dict()
    assert all(torch.equal(value, donor[0].state_dict()[name]) for name, value in one.items())
    with pytest.raises(InputRefusedError, match=r"it has 1 network\(s\), and 2 are trained together"):
        started(nn.ModuleList([unet(), unet()]), "cpu", saved(unet(), tmp_path / "one.pt"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(unet(width=6), tmp_path / "wide.pt")
    torch.save({"a": {"b": 1}}, tmp_path / "none.pt")
    with pytest.raises(InputRefusedError, match=r"--from other.pt: \d+ of its \d+ tensors fit the network; weights"):
        started(unet(), "cpu", saved(nn.Sequential(nn.Conv2d(1, 4, 3)), tmp_path / "other.pt"))
    with pytest.raises(InputRefusedError, match="holds no weights"):
        started(unet(), "cpu", str(tmp_path / "none.pt"))
    started(unet(), "cpu", path)  # the inner levels are the same, so most of it fits


def test_layers_that_are_frozen_keep_weights_and_statistics(tmp_path: Path) -> None:
    donor = BasicUNet(2, 1, 3, features=(4, 8, 8, 8, 8, 4), norm="BATCH")
    network = started(
        BasicUNet(2, 1, 3, features=(4, 8, 8, 8, 8, 4), norm="BATCH"), "cpu", saved(donor, tmp_path / "donor.pt"),
        freeze=["conv_0", "down_1.convs"],
    )  # fmt: skip
    optimizer = torch.optim.SGD(rates_by_depth(network, 0.1, 1.0))
    network.train()(torch.randn(2, 1, 32, 32)).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, donor.state_dict()[name])}
    assert not any(name.startswith(("conv_0.", "down_1.convs.")) for name in changed)
    assert {name.partition(".")[0] for name in changed} == {
        "down_2", "down_3", "down_4", "upcat_1", "upcat_2", "upcat_3", "upcat_4", "final_conv",
    }  # fmt: skip
    with pytest.raises(
        InputRefusedError, match="--freeze encoder: the network has no such layer; it has conv_0, down_1"
    ):
        started(unet(), "cpu", saved(unet(), tmp_path / "own.pt"), freeze=["encoder"])


def test_rates_grow_by_one_factor_from_the_first_layer_to_the_last() -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    network[1].requires_grad_(False)
    groups = rates_by_depth(network, 0.08, 1 / 8)
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.04, 0.08])  # 0.02 is that of the frozen one
    assert [len(group["params"]) for group in groups] == [2, 2, 2]


run = pytest.fixture(shell)
QUICK = {"epochs": 1, "precision": "f32", "tracker": "none", "learning_rate": 1e-6}
FLAGS = ("--epochs", 1, "--precision", "f32", "--tracking", "none", "--learning-rate", 1e-6)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tilted_volumes(tmp_path_factory.mktemp("transfer") / "volumes", 5)


@pytest.fixture(scope="module")
def others(volumes: Path) -> Path:
    """Other patients: what is bright is dark, so that these are no images that the donor has seen."""
    folder = volumes.with_name("others")
    for file in sorted(volumes.rglob("*.nii.gz")):
        image = nibabel.load(file)
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        values = np.asarray(image.dataobj)
        values = values if file.parent.name == "labelsTr" else 400 - values
        name = file.name.replace("case", "other")
        nibabel.save(nibabel.Nifti1Image(values, image.affine), folder / file.parent.name / name)
    return folder


def planned(data: Path, root: Path) -> Bundle:
    said = PlanConfig(data, structures={2: "liver", 5: "spleen"}, modality="MR", time_s=1.0)
    write_plan(plan_bundle(said, lambda network, channels, outputs: 1e-6 * network.voxels), root)
    config = root / "configs/inference.yaml"
    config.write_text(re.sub(r"^  filters: .*", "  filters: [4, 8, 8, 8]", config.read_text(), flags=re.MULTILINE))
    return load_bundle(root)


@pytest.fixture(scope="module")
def donor(volumes: Path) -> Path:
    """A bundle whose own network saw all volumes."""
    root = volumes.with_name("donor")
    train_folds(planned(volumes, volumes.with_name("plan")), TrainConfig(volumes, root, overrides=dict(QUICK)))
    return root


@pytest.mark.slow
def test_a_training_that_begins_with_a_bundle(
    donor: Path, volumes: Path, others: Path, tmp_path: Path, run: Run
) -> None:
    template = planned(others, tmp_path / "plan")
    command = ["train", "--bundle", template.root, "--data", others, "--output", tmp_path / "out", "--folds", 0, *FLAGS]
    answer = run(*command, "--from", donor, "--freeze", "input_block", "--first-rate", 0.5)
    assert answer.code == 0, answer.err
    assert re.search(r"(\d+) of \1 tensors begin with those of donor", answer.err)
    before, after = (torch.load(root, weights_only=True) for root in (
        donor / "models/model.pt", tmp_path / "out/folds/0/models/model.pt"
    ))  # fmt: skip
    assert all(torch.allclose(before[name].float(), value.float(), atol=1e-2) for name, value in after.items())
    assert all(torch.equal(before[name], value) for name, value in after.items() if name.startswith("input_block."))
    record = json.loads((tmp_path / "out/models/donor.json").read_text())
    assert (record["name"], record["freeze"], record["first_rate"]) == ("donor", ["input_block"], 0.5)
    assert record["cases"].keys() == {f"case{n}" for n in range(5)}

    for more in ((), ("--from", donor), ("--from", donor / "models/model.pt", "--freeze", "input_block")):
        again = run(*command, *more)
        assert again.code == 2
        assert "holds a training that began with --from donor; only the same training can be resumed" in again.err
    same = run(*command, "--from", donor, "--freeze", "input_block", "--first-rate", 0.5)
    assert same.code == 0

    # What the donor saw is not tested by its heirs
    bundle = load_bundle(tmp_path / "out")
    assert {case.id for case in bundle.seen} >= {f"case{n}" for n in range(5)}
    assert choose_out_of_fold(bundle, find_data(others)).folds
    with pytest.raises(InputRefusedError, match="no case is left to work on"):
        choose_cases(bundle, find_data(volumes))


@pytest.mark.slow
def test_the_donor_is_measured_first_and_delivered_if_nothing_is_better(
    donor: Path, others: Path, tmp_path: Path, run: Run
) -> None:
    template, places = planned(others, tmp_path / "plan"), ("train", "train", "selection", "calibration", "test")
    cases = [{"id": f"other{n}", "subject": str(n), "partition": place, "fold": 0} for n, place in enumerate(places)]
    (tmp_path / "splits.json").write_text(
        json.dumps({"schema_version": "1.0", "datasets": {others.name: {"cases": cases}}})
    )
    command = ["train", "--bundle", template.root, "--data", others, "--splits", tmp_path / "splits.json", *FLAGS[:-2]]
    spoilt = run(*command, "--output", tmp_path / "out", "--from", donor, "--learning-rate", 30)
    assert spoilt.code == 0, spoilt.err
    assert re.search(r"donor before training: 0\.\d{4}, the metric", spoilt.err)
    assert "no epoch was better than donor, whose weights are delivered" in spoilt.err
    before, after = (torch.load(root / "models/model.pt", weights_only=True) for root in (donor, tmp_path / "out"))
    assert all(torch.equal(before[name], value) for name, value in after.items())
    best = json.loads((tmp_path / "out/models/run.json").read_text())["best"]
    assert (best["epoch"], best["metric"]) == (0, pytest.approx(float(spoilt.err.split("training: ")[1][:6]), abs=1e-4))


def test_other_weights_learn_at_a_tenth_of_the_rate() -> None:
    train = {"learning_rate": 0.003, "train": {"handlers": [{}, {"_target_": "monai_unet_app.training.Checkpoints"}]}}
    ids = overrides_of(Donor(Path("x.pt"), "x"), train)
    assert (ids["learning_rate"], ids["train::handlers::1::donor"]) == (pytest.approx(0.0003), "x")


@pytest.mark.slow
def test_cases_that_the_donor_has_seen_may_train_but_not_test(
    donor: Path, volumes: Path, tmp_path: Path, run: Run
) -> None:
    template = planned(volumes, tmp_path / "plan")
    command = ["train", "--bundle", template.root, "--data", volumes, "--output", tmp_path / "out", *FLAGS]
    answer = run(*command, "--folds", 0, "--from", donor)
    assert answer.code == 3
    assert re.search(r"--from donor: its weights have seen case\d \(test\)", answer.err)
    assert not (tmp_path / "out").exists()
    # A checkpoint tells nothing of its cases, and the user is told that
    answer = run(*command, "--folds", 0, "--from", donor / "models/model.pt")
    assert answer.code == 0
    assert "which cases have made them is not known: keep these out of tests" in answer.err


def test_flags_about_other_weights_need_them(tmp_path: Path, run: Run) -> None:
    command = ["train", "--bundle", "hippocampus_mri_unet3d", "--data", tmp_path, "--output", tmp_path / "out"]
    for more in (("--freeze", "input_block"), ("--first-rate", "0.1")):
        answer = run(*command, *more)
        assert (answer.code, "are about the weights of --from" in answer.err) == (2, True)
    answer = run(*command, "--from", tmp_path / "absent.pt")
    assert (answer.code, "there is no such file" in answer.err) == (2, True)


@pytest.mark.slow
def test_a_learning_curve_measures_all_trainings_on_the_same_cases(
    donor: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template, out = planned(others, tmp_path / "plan"), tmp_path / "out"
    command = ["--bundle", template.root, "--data", others, "--output", out, "--device", "cpu", "--epochs", 1]
    assert curve(*command, "--cases", 4, 2, "--from", donor, "--json") == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [(point["cases"], point["donor"]) for point in points] == [(2, None), (2, "donor"), (4, None), (4, "donor")]
    folders = ["2_random", "2_from", "4_random", "4_from"]
    tables = [read_evaluation(out / folder / "out_of_fold").table.values("dice", "mean") for folder in folders]
    tested = {case.id for case in read_splits(template.own_splits).values() if case.fold == 0}
    assert all(table.keys() == tested for table in tables)
    trained = [cases_that_trained(out / folder / "folds/0") for folder in folders]
    assert [len(cases) for cases in trained] == [2, 2, 4, 4]
    assert trained[0] == trained[1] < trained[2] == trained[3] == {f"other{n}" for n in range(5)} - tested
    assert [point["dice"] for point in points] == pytest.approx(
        [np.mean(list(table.values())) for table in tables], abs=1e-5
    )
    assert points[3]["gain"]["value"] == pytest.approx(points[3]["dice"] - points[2]["dice"], abs=1e-5)
    assert points[2]["gain"] is None
    # As many steps whatever the number of cases
    last = [torch.load(out / folder / "folds/0/run/last.pt", weights_only=False) for folder in folders]
    assert len({saved["iteration"] for saved in last}) == 1
    with Image.open(out / "learning_curve.png") as picture:
        assert picture.size == (768, 480)
    assert (out / "learning_curve.md").read_text().count("\n| ") == 6

    assert curve(*command, "--cases", 2, 4, "--from", donor) == 0
    assert "loss" not in capsys.readouterr().err
    assert curve(*command, "--cases", 5) == 1
    assert "fold 0 has 4 case(s) to train on; at most as many are possible" in capsys.readouterr().err


def subjects_of_three_sizes() -> PlannedCases:
    """Twelve subjects with one, two and three cases in turn, in three folds."""
    names = {f"{letter}{n}": letter for place, letter in enumerate("abcdefghijkl") for n in range(place % 3 + 1)}
    plan = {
        case: SplitCase(case, subject, "train", "abcdefghijkl".index(subject) // 3 % 3)
        for case, subject in names.items()
    }
    return PlannedCases([CaseFiles(case, Path(case), Path(case)) for case in names], plan)


def test_all_cases_of_a_subject_train_or_none() -> None:
    planned = subjects_of_three_sizes()
    subjects = {case: entry.subject for case, entry in planned.plan.items()}
    trains = {row["id"] for row in planned.rows(1)["train"]}
    numbers = [3, 4, 8, 15, len(trains)]
    taken = taken_cases(planned, 1, numbers)
    for smaller, larger in pairwise(numbers):
        assert taken[larger][: len(taken[smaller])] == taken[smaller]
    for number in numbers:
        assert number - 2 <= len(taken[number]) <= number
        chosen = {subjects[case] for case in taken[number]}
        assert set(taken[number]) == {case for case in trains if subjects[case] in chosen}
    assert set(taken[len(trains)]) == trains


def test_a_number_that_no_subject_is_small_enough_for_is_refused() -> None:
    pair = {case: SplitCase(case, case[0], "train", n) for n, case in enumerate(["a1", "b1"])}
    pair |= {"b2": SplitCase("b2", "b", "train", 1)}
    planned = PlannedCases([CaseFiles(case, Path(case), Path(case)) for case in pair], pair)
    with pytest.raises(InputRefusedError, match="--cases 1: every subject of fold 0 has more cases than that"):
        taken_cases(planned, 0, [1])


@pytest.mark.slow
def test_a_learning_curve_on_people_with_two_cases_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tilted_volumes(tmp_path / "volumes", 8)
    rows = [f"imagesTr/case{n}_0000.nii.gz,labelsTr/case{n}.nii.gz,case{n},{'aabbccde'[n]}" for n in range(8)]
    (folder / "list.csv").write_text("\n".join(["image,label,id,subject", *rows]))
    template, out = planned(folder / "list.csv", tmp_path / "plan"), tmp_path / "out"
    command = [
        "--bundle",
        template.root,
        "--data",
        folder / "list.csv",
        "--output",
        out,
        "--device",
        "cpu",
        "--epochs",
        1,
    ]
    assert curve(*command, "--cases", 2, 3, 5, "--json") == 0
    trained = [cases_that_trained(out / f"{number}_random/folds/0") for number in (2, 3, 5)]
    assert [point["cases"] for point in json.loads(capsys.readouterr().out)["points"]] == list(map(len, trained))
    assert all(asked - 1 <= len(cases) <= asked for asked, cases in zip((2, 3, 5), trained, strict=True))
    assert trained[0] < trained[1] < trained[2]
    for cases in trained:
        for pair in ({"case0", "case1"}, {"case2", "case3"}, {"case4", "case5"}):
            assert len(cases & pair) != 1


def cases_that_trained(root: Path) -> set[str]:
    cases = json.loads((root / "models/run.json").read_text())["cases"]
    return {case for case, entry in cases.items() if entry["partition"] == "train"}

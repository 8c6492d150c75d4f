"""From a folder of images to a bundle that trains: what is decided, what is written, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import yaml
from monai.bundle import ConfigWorkflow
from PIL import Image
from shell import Run, shell
from small_data import FEW, drawn_eyes, few_examples, numbered_discs, plan_bundle, tilted_volumes

from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.structures import stray_values
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.planning.decisions import LOW_VOXELS, PlanConfig, rotations
from monai_unet_app.planning.network import NetworkPlan
from monai_unet_app.planning.plan import BundlePlan, _pattern, dealt
from monai_unet_app.planning.write import write_plan

NAMES = {2: "liver", 5: "left kidney"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    yield from shell(capsys)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tilted_volumes(tmp_path_factory.mktemp("plan") / "volumes")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_discs(tmp_path_factory.mktemp("plan") / "pictures")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a verb that plans, no network is timed, which takes longer than all else that it does."""
    monkeypatch.setattr("monai_unet_app.planning.speed.seconds_of_a_window", lambda *of, **named: 0.02)


def quick(network: NetworkPlan, channels: int, outputs: int) -> float:
    """A machine that trains a million voxels of 16 filters a second."""
    return network.voxels * network.filters[0] / 16e6


def planned(data: Path, **said: Any) -> BundlePlan:
    return plan_bundle(PlanConfig(data, **{"time_s": 20.0, **said}), quick)


def test_values_follow_from_what_was_measured(volumes: Path) -> None:
    made = planned(volumes, structures=NAMES, modality="MR")
    values = made.values
    assert values["labels"] == ["background", "liver", "left kidney"]
    assert values["label_values"] == [2, 5]  # 1 and 2 of the bundle
    assert values["spacing_mm"] == (1.1, 0.9, 3.6)
    assert values["window"] == [32, 28, 14]  # the whole of a usual image, 32 x 26 x 14, as far as it can be halved
    assert values["mirror_axes"] == ()
    assert "left kidney" in made.reasons["mirror_axes"]
    assert values["rotation"] == [0.0, 0.0, 0.4]  # 3.6 mm is four times 0.9 mm
    assert values["ratios"] == [2, 1, 1]
    rules = values["input_rules"]
    assert rules["modality"] == ["MR"]
    # 0.9 and 3.6 mm, a quarter more
    assert rules["spacing_mm"] == {"least": 0.72, "most": 4.5}
    # 30 to 34 voxels of 1.1 mm, 26 of 0.9 mm, 14 of 3.6 mm; half as much again
    assert rules["extent_mm"] == {"least": [22, 15, 33], "most": [57, 36, 76]}
    cases = made.splits["datasets"]["volumes"]["cases"]
    # Four partitions of 5 subjects would leave one to calibrate on
    assert {case["partition"] for case in cases} == {"train"}
    assert sorted(case["fold"] for case in cases) == [0, 1, 2, 3, 4]


def test_time_and_memory_decide_how_large_and_how_long(volumes: Path) -> None:
    plans = [planned(volumes, time_s=seconds) for seconds in (200.0, 1.0)]
    much, little = (plan.values for plan in plans)
    assert much["filters"][0] == 32
    assert little["filters"][0] == 16
    assert much["epochs"] % 4 == 0  # so that every fourth is validated, not each
    for plan, seconds in zip(plans, (200.0, 1.0), strict=True):
        values = plan.values
        steps = values["epochs"] * values["windows_per_case"] * 4 / values["batch_size"]  # of 5 cases 4 train
        voxels = np.prod(values["window"])
        assert plan.reasons["epochs"].startswith(f"{steps:.0f} steps of 2 windows")
        assert steps * voxels * values["batch_size"] * values["filters"][0] / 16e6 <= 0.8 * seconds
    tight = planned(volumes, memory_limit=0.75e9).values
    assert np.prod(tight["window"]) < np.prod(much["window"])


def test_the_size_of_a_network_has_a_reason_that_is_true(volumes: Path) -> None:
    # 2000 steps of two windows of 32 x 28 x 14 voxels with 32, 24 and 16 filters take 100, 75 and 50 s; the rest is a quarter
    told = {seconds: planned(volumes, time_s=seconds).reasons["network_def"] for seconds in (200.0, 70.0, 3600.0)}
    assert (
        "32 filters at the first level are the most that a plan uses; 2000 steps or more fit into the time"
        in told[200.0]
    )
    assert told[200.0] == told[3600.0]
    assert "The number of filters and the window are the largest with which 2000 steps fit" in told[70.0]
    little = planned(volumes, time_s=1.0).reasons
    # 0.75 s of 25,088 voxels a step at a million a second
    assert "only 29 steps fit into 1 s; 2000 are recommended" in little["network_def"]
    tight = planned(volumes, memory_limit=0.75e9, time_s=200.0).reasons["network_def"]
    # 50 MB for two windows at 4200 bytes a voxel
    assert "The memory limit of a training allows a window of 5952 voxels" in tight


@pytest.mark.parametrize(
    ("spacing", "largest"),
    [
        ((2.64, 2.64, 7.7), [0, 0, 1]),  # 7.7 sin 0.4 is 3.0
        ((1.0, 1.0, 2.5), [1, 1, 1]),  # 2.5 sin 0.4 is 0.97
        ((1.0, 1.0, 2.6), [0, 0, 1]),  # 2.6 sin 0.4 is 1.01
        ((4.0, 0.9, 1.0), [1, 0, 0]),
        ((1.0, 3.0, 9.0), [0, 0, 0]),
    ],
)
def test_a_rotation_turns_no_voxel_beyond_the_shortest_of_its_plane(
    spacing: tuple[float, ...], largest: list[int]
) -> None:
    made = rotations(spacing)
    assert made.value == [0.4 * one for one in largest]
    assert ("about every axis" in made.reason) == all(largest)


@pytest.mark.parametrize(("subjects", "by_folds"), [(64, True), (77, True), (78, False)])
def test_partitions_are_dealt_only_where_enough_subjects_calibrate(
    tmp_path: Path, subjects: int, by_folds: bool
) -> None:
    plan, why = dealt([CaseFiles(f"c{n}", tmp_path / f"c{n}.nii.gz") for n in range(subjects)], None)
    assert all(entry.partition == "train" for entry in plan) == by_folds
    # 9 subjects are needed to state anything of 90 % of new ones: n / (n + 1) >= 0.9
    assert ("9 are enough" if not by_folds else "of the time need 9") in why
    assert by_folds or sum(entry.partition == "calibration" for entry in plan) >= 9


def test_a_class_that_one_fold_alone_has_is_refused(volumes: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(volumes, tmp_path / "data"))
    for file in sorted(data.glob("labelsTr/*"))[1:]:
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) % 5, image.affine), file)
    fold = next(case["fold"] for case in planned(volumes).cases if case["id"] == "case0")
    with pytest.raises(InputRefusedError, match=rf"fold {fold}: no case to train on has class 5, case0 has"):
        planned(data, structures=NAMES)


def test_volumes_too_small_for_a_network_are_refused(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(5):
        image = np.random.default_rng(number).normal(size=(12, 11, 10)).astype(np.float32)
        for kind, array in (("images", image), ("labels", (image > 1).astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1.1, 1.2, 1])), tmp_path / kind / f"{number}.nii.gz")
    with pytest.raises(
        InputRefusedError, match="12 x 11 x 10 voxels on the grid of the network; 16 along an axis are needed"
    ):
        planned(tmp_path)


def test_files_of_several_or_no_endings_are_all_found_by_the_pattern(tmp_path: Path) -> None:
    def found(*names: str) -> str:
        return _pattern([CaseFiles(name, tmp_path / name) for name in names])

    assert found("p.01.nii.gz", "p.02.nii.gz") == "*.nii.gz"
    assert found("a.nii.gz", "b.nii") == "*"
    assert found("IM0001", "IM0002") == "*"  # DICOM without an ending


def test_ct_numbers_are_cut_where_the_structures_are(volumes: Path) -> None:
    said = planned(volumes, modality="CT").values["intensities"]
    assert said["kind"] == "range"
    # Balls of 160 and 210, with noise of 8, on 100
    assert 135 < said["low"] < 150 < said["mean"] < 200 < said["high"] < 235


def test_a_coarse_grid_makes_the_shortest_voxels_longer(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(4):
        image = np.random.default_rng(number).normal(size=(200, 150, 50)).astype(np.float32)
        for kind, array in (("images", image), ("labels", (image > 3).astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([0.8, 0.8, 4, 1])), tmp_path / kind / f"{number}.nii")
    spacing = planned(tmp_path, configuration="3d_low").values["spacing_mm"]
    assert spacing[2] == 4
    assert spacing[0] == spacing[1]
    assert 160 / spacing[0] * 120 / spacing[1] * 50 == pytest.approx(LOW_VOXELS, rel=0.03)


@pytest.mark.parametrize("said", [{}, {"configuration": "2d"}, {"modality": "CT"}, {"networks": 2}], ids=str)
def test_the_bundle_is_whole(volumes: Path, tmp_path: Path, said: dict[str, Any]) -> None:
    write_plan(planned(volumes, structures=NAMES, **said), tmp_path / "made")
    check_bundle(tmp_path / "made", volumes)


def test_a_bundle_for_pictures_is_whole(pictures: Path, tmp_path: Path) -> None:
    made = planned(pictures, objects="nucleus")
    assert made.values["label_values"] == "instances"
    assert made.values["labels"] == ["nucleus", "middle of nucleus"]
    assert made.values["outputs"] == "counted"
    assert made.values["mirror_axes"] == (0, 1)
    write_plan(made, tmp_path / "made")
    check_bundle(tmp_path / "made", pictures)


def check_bundle(root: Path, data: Path) -> None:
    bundle = load_bundle(root)
    bundle.check_network()
    assert bundle.segments[0].number == 1
    assert sorted(path.name for path in (root / "configs").glob("*.json")) == [
        "fingerprint.json", "metadata.json", "segments.json", "splits.json",
    ]  # fmt: skip
    assert not list(root.parent.glob(".part-*"))
    for name in ("inference", "train", "evaluate", "calibrate"):
        text = (root / f"configs/{name}.yaml").read_text()
        assert max(map(len, text.splitlines())) <= 200, name
        assert "{{" not in text
        assert yaml.safe_load(text)
    inference = (root / "configs/inference.yaml").read_text()
    for name in ("window", "input_rules", "mirror_axes", "new_network"):
        assert re.search(rf"^# .*\n{name}:", inference, re.MULTILINE), f"{name} has no reason"
    # MONAI's own loader takes every config
    configs = [str(root / f"configs/{name}.yaml") for name in ("inference", "train")]
    workflow = ConfigWorkflow(
        config_file=configs, meta_file=str(root / "configs/metadata.json"), workflow_type="train", logging_file=False,
        bundle_root=str(root), dataset_dir=str(data),
    )  # fmt: skip
    workflow.initialize()
    first = workflow.parser.get_parsed_content("train::dataset")[(0, 0)]
    network = workflow.parser.get_parsed_content("network")
    answers = network.train()(first["image"][None])
    assert isinstance(answers, list) == ("networks: 2 " in inference)
    assert network.eval()(first["image"][None]).shape[1] == len(bundle.labels)
    size = yaml.safe_load(inference)["window"]
    assert first["image"].shape[1:] == tuple(size)
    assert set(first["label"].unique().tolist()) <= set(range(len(bundle.label_values) + 1))


def test_train_takes_the_plan_that_the_bundle_brings(volumes: Path, tmp_path: Path) -> None:
    made = planned(volumes)
    write_plan(made, tmp_path / "made")
    own = tmp_path / "made/configs/splits.json"
    document = json.loads(own.read_text())
    for case, part in zip(
        document["datasets"]["volumes"]["cases"], ("test", "train", "test", "train", "selection"), strict=True
    ):
        case["partition"] = part
    own.write_text(json.dumps(document))
    rows = by_partition(volumes, own_splits=own)
    assert {part: sorted(row["id"] for row in cases) for part, cases in rows.items()} == {
        "train": ["case1", "case3"], "selection": ["case4"], "calibration": [], "test": ["case0", "case2"],
    }  # fmt: skip
    del document["datasets"]["volumes"]["cases"][0]
    own.write_text(json.dumps(document))
    with pytest.raises(InputRefusedError, match=r"splits.json does not know 1 of 5 case\(s\): case0"):
        by_partition(volumes, own_splits=own)
    document["datasets"]["volumes"]["cases"] = [{"id": "other", "subject": "other", "partition": "train", "fold": 0}]
    own.write_text(json.dumps(document))
    assert sum(map(len, by_partition(volumes, own_splits=own).values())) == 5  # another data set: a new plan


def test_the_verb_shows_reasons_and_the_next_command(
    volumes: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_unet_app.planning.speed._VOXELS", 2**12)  # of the window that is timed
    out = tmp_path / "made"
    said = ["--structure", "2=liver", "--structure", "5=left kidney", "--modality", "MR", "--time", "1min"]
    answer = run("plan", volumes, "--output", out, *said)
    assert answer.code == 0, answer.err
    assert "the median of 5 images" in " ".join(answer.out.split())
    assert re.search(r"monai-unet train --bundle \S*made --data \S*volumes", answer.out.replace("\n", ""))
    words = " ".join(answer.out.replace("│", " ").split())
    assert re.search(r"cases +5 +of 5 subject\(s\) +channels +1 +of every image +folds +5 of 1 to 1 cases", words)
    assert "6 trainings of" in words
    again = run("plan", tmp_path / "nowhere", "--output", out, *said)  # the output comes first, before anything is read
    assert again.code == 2
    assert "a plan never replaces files" in again.err


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize("configuration", ["3d", "2d", "pictures"])
def test_windows_are_shown_as_training_sees_them(
    configuration: str, volumes: Path, pictures: Path, tmp_path: Path, run: Run
) -> None:
    planar = configuration == "pictures"
    words = ["--objects", "disc"] if planar else ["--structure", "2=liver", "--structure", "5=spleen"]
    words += [] if planar else ["--configuration", configuration]
    answer = run("plan", pictures if planar else volumes, "--output", tmp_path / "made", "--show", 3, *words)
    assert answer.code == 0, answer.err
    shown = sorted((tmp_path / "made/windows").iterdir())
    assert [file.name for file in shown] == ["window_1.png", "window_2.png", "window_3.png"]
    drawn = [np.asarray(Image.open(file).convert("RGB")) for file in shown]
    assert not np.array_equal(drawn[0], drawn[1])
    saturated = [(picture.max(-1).astype(int) - picture.min(-1) > 100).sum() for picture in drawn]
    assert max(saturated) > 50  # outlines in the colours of the structures
    assert not list((tmp_path / "made").rglob("*.pt"))


@pytest.mark.usefixtures("timed")
def test_unknown_structures_are_told_and_written_with_a_private_code(volumes: Path, tmp_path: Path, run: Run) -> None:
    answer = run("plan", volumes, "--output", tmp_path / "made", "--time", "1min")
    assert answer.code == 0, answer.err
    assert "Structure 2, Structure 5" in " ".join(answer.err.split())
    segments = json.loads((tmp_path / "made/configs/segments.json").read_text())["segmentAttributes"][0]
    assert [item["SegmentedPropertyTypeCodeSequence"]["CodingSchemeDesignator"] for item in segments] == [
        "99MUA_UNCODED", "99MUA_UNCODED",
    ]  # fmt: skip
    inspected = run("inspect", volumes, "--bundle", tmp_path / "made")
    assert "Structure 2, Structure 5" in " ".join(inspected.err.split())


def test_many_numbers_of_objects_are_no_strays() -> None:
    """16,000 objects a case; a loop over the neighbours of each value would take minutes."""
    began = process_time()
    assert stray_values({f"case{n}": dict.fromkeys(range(1, 16_000 + n), 9) for n in range(3)}) == []
    assert process_time() - began < 5


def one_case(data: Path) -> list[str]:
    for file in [*data.glob("imagesTr/*"), *data.glob("labelsTr/*")]:
        if "case0" not in file.name:
            file.unlink()
    return []


def name_an_absent_structure(data: Path) -> list[str]:
    return ["--structure", "2=liver", "--structure", "5=spleen", "--structure", "7=kidney"]


def name_too_few(data: Path) -> list[str]:
    return ["--structure", "2=liver"]


def relabelled(data: Path, case: str, change: Any) -> list[str]:
    file = data / f"labelsTr/{case}.nii.gz"
    image = nibabel.load(file)
    label = np.asarray(image.dataobj).astype(np.int16)
    change(label)
    nibabel.save(nibabel.Nifti1Image(label, image.affine), file)
    return []


def mark_a_voxel(data: Path) -> list[str]:
    return relabelled(data, "case1", lambda label: label.__setitem__((0, 0, 0), 255))


def mark_a_region(data: Path) -> list[str]:
    return relabelled(data, "case2", lambda label: label.__setitem__(np.s_[:4, :3, :2], 1000))


def go_on_counting(data: Path) -> list[str]:
    return relabelled(data, "case3", lambda label: label.__setitem__((1, 2, 3), 6))


def mark_below_zero(data: Path) -> list[str]:
    return relabelled(data, "case1", lambda label: label.__setitem__(np.s_[:2, 0, 0], -1))


def label_by_the_image(data: Path) -> list[str]:
    image = nibabel.load(data / "imagesTr/case4_0000.nii.gz")
    for file in ("imagesTr/case4_0000.nii.gz", "labelsTr/case4.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype(np.int16), image.affine), data / file)
    return []


def number_objects(data: Path) -> list[str]:
    return relabelled(
        data, "case1", lambda label: label.__setitem__(np.s_[0, 0:20, 0:2], np.arange(1, 41).reshape(20, 2))
    )


def name_one_of_many(data: Path) -> list[str]:
    return [*number_objects(data), "--structure", "1=nucleus"]


def empty_all_labels(data: Path) -> list[str]:
    for file in data.glob("labelsTr/*"):
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), file)
    return []


def give_one_two_channels(data: Path) -> list[str]:
    file = data / "imagesTr/case1_0000.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.stack([image.get_fdata()] * 2, -1).astype(np.float32), image.affine), file)
    return []


def flatten_a_voxel(data: Path) -> list[str]:
    file = data / "imagesTr/case1_0000.nii.gz"
    image = nibabel.load(file)
    affine = image.affine.copy()
    affine[:3, 2] = 0
    header = image.header.copy()
    header["pixdim"][3] = 0
    header.set_sform(affine, 1)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype(np.float32), None, header), file)
    return []


def want_too_little_memory(data: Path) -> list[str]:
    return ["--memory-limit", "500MB"]


def want_more_memory_than_there_is(data: Path) -> list[str]:
    return ["--memory-limit", "900000GB"]


def drop_a_label(data: Path) -> list[str]:
    (data / "labelsTr/case3.nii.gz").unlink()
    return []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (one_case, "1 subject"),
        (name_an_absent_structure, "no label holds 7 (kidney)"),
        (name_too_few, "the labels hold the value 5 (5 in case0, case1, "),
        (mark_a_voxel, "case1: its label holds the value 255, in 1 voxel(s), as no other of 5 labels does; correct it"),
        (mark_a_region, "case2: its label holds the value 1000, in 24 voxel(s), as no other of 5 labels does"),
        (go_on_counting, "case3: its label holds the value 6, in 1 voxel(s)"),
        (
            mark_below_zero,
            "case1: label case1.nii.gz holds the value -1, and 2 voxel(s) below 0; values from 0 are needed",
        ),
        (label_by_the_image, "case4: label case4.nii.gz is its image, voxel for voxel"),
        (
            number_objects,
            "the labels hold 40 different values above 0, up to 40, and no names: 40 in case1, 2 in a usual",
        ),
        (name_one_of_many, "the values 2, 3, 4, 5, 6 and 34 more (3 in case1), which have no name"),
        (empty_all_labels, "no label holds a structure"),
        (give_one_two_channels, "the images have channels 1, 2"),
        (flatten_a_voxel, "case1"),
        (want_more_memory_than_there_is, "of memory"),
        (want_too_little_memory, "give --memory-limit 800MB or more"),
        (drop_a_label, "case3"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    volumes: Path, tmp_path: Path, run: Run, spoil: Any, words: str
) -> None:
    data = Path(shutil.copytree(volumes, tmp_path / "data"))
    answer = run("plan", data, "--output", tmp_path / "made", "--time", "1min", *spoil(data))
    assert answer.code == 3, answer.err + answer.out
    assert words in " ".join(answer.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_list_with_absent_files_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "list.csv").write_text("image,label\nnowhere.nii.gz,label.nii.gz\n")
    answer = run("plan", tmp_path / "list.csv", "--output", tmp_path / "made")
    assert answer.code == 3
    assert "nowhere.nii.gz" in answer.err
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("timed")
def test_dicom_labels_say_what_they_mean(tmp_path: Path, run: Run) -> None:
    data = few_examples(tmp_path / "nifti")
    flags = ["--images", data / "images", "--labels", data / "labels", "--bundle", "hippocampus_mri_unet3d"]
    assert run("dicomize", *flags, "--output", tmp_path / "dicom").code == 0
    answer = run("plan", tmp_path / "dicom", "--output", tmp_path / "made", "--time", "1min")
    assert answer.code == 0, answer.err
    made = load_bundle(tmp_path / "made")
    shipped = load_bundle("hippocampus_mri_unet3d")
    assert [(s.type.value, s.type_modifier and s.type_modifier.value) for s in made.segments] == [
        (s.type.value, s.type_modifier and s.type_modifier.value) for s in shipped.segments
    ]
    assert made.rules.modality == ("MR",)
    (seg,) = list((tmp_path / "dicom").glob(f"{FEW[0]}/**/*seg*"))[:1]
    file = seg if seg.is_file() else next(seg.glob("*.dcm"))
    other = pydicom.dcmread(file)
    other.SegmentSequence[0].SegmentLabel = "Target"
    other.save_as(file)
    answer = run("plan", tmp_path / "dicom", "--output", tmp_path / "other")
    assert answer.code == 3  # matched by names, it is a structure of its own, which one case has
    assert "no case to train on has class" in " ".join(answer.err.split())


def test_labels_with_gaps_become_dicom_by_the_values_of_the_bundle(volumes: Path, tmp_path: Path, run: Run) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    shutil.copy2(volumes / "imagesTr/case0_0000.nii.gz", images / "case0.nii.gz")
    shutil.copytree(volumes / "labelsTr", labels)
    for name, said in (("coded", NAMES), ("uncoded", {})):
        write_plan(planned(volumes, structures=said), tmp_path / name)
    flags = ["--images", images, "--labels", labels, "--output", tmp_path / "dicom"]
    answer = run("dicomize", *flags, "--bundle", tmp_path / "coded")
    assert answer.code == 0, answer.err
    (seg,) = (tmp_path / "dicom").rglob("seg.dcm")
    label = np.asarray(nibabel.load(labels / "case0.nii.gz").dataobj)
    read = read_labels(seg, read_volume(next((tmp_path / "dicom").rglob("mr")))).array
    assert [np.count_nonzero(read == n) for n in (1, 2)] == [np.count_nonzero(label == value) for value in NAMES]
    refused = run("dicomize", *flags, "--bundle", tmp_path / "uncoded")
    assert refused.code != 0
    assert "no SNOMED CT code for Structure 2" in " ".join(refused.err.split())


def test_nothing_is_mirrored_before_every_structure_has_a_name(volumes: Path) -> None:
    for said, axes in (({}, ()), ({2: "structure_2", 5: "liver"}, ()), ({2: "spleen", 5: "liver"}, (0,))):
        assert planned(volumes, structures=said).values["mirror_axes"] == axes


def test_names_that_results_would_write_alike_are_refused(volumes: Path) -> None:
    with pytest.raises(InputRefusedError, match="'left_lesion' and 'Left lesion' would both be called 'Left lesion'"):
        planned(volumes, structures={2: "left_lesion", 5: "Left lesion"})


@pytest.mark.usefixtures("timed")
def test_numbered_objects_are_one_structure_only_if_a_flag_names_them(pictures: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "made"
    refused = run("plan", pictures, "--output", out, "--time", "1min")
    assert refused.code == 3
    assert "the labels hold 40 different values above 0" in " ".join(refused.err.split())
    assert "--objects NAME" in refused.err
    assert "--structure VALUE=NAME" in " ".join(refused.err.split())
    assert not out.exists()
    both = run("plan", pictures, "--output", out, "--objects", "liver", "--structure", "1=liver")
    assert both.code == 2
    assert run("plan", pictures, "--output", out, "--time", "1min", "--objects", "liver").code == 0
    (liver,) = load_bundle(out).segments
    assert (liver.label, liver.type.value) == ("Liver", "10200004")  # SNOMED CT
    assert "objects" in (out / "configs/inference.yaml").read_text()


def test_few_numbered_objects_are_told_from_classes_by_their_count(tmp_path: Path) -> None:
    data = numbered_discs(tmp_path / "data", discs=9)
    for number in range(5):  # 5 to 9 objects
        file = data / f"labels/p{number}.png"
        label = np.asarray(Image.open(file)).copy()
        label[label > 5 + number] = 0
        values = np.unique(label)
        Image.fromarray(np.searchsorted(values, label).astype(np.uint16)).save(file)
    with pytest.raises(InputRefusedError, match="number objects, name these by --objects NAME"):
        planned(data)


def test_pictures_have_no_3d(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="the images are pictures"):
        planned(pictures, configuration="3d")


def test_labels_beside_the_images(tmp_path: Path) -> None:
    made = planned(drawn_eyes(tmp_path / "eyes"), label_suffix="_1stHO")
    assert made.values["mirror_axes"] == ()
    assert "structure_1 may have a side" in made.reasons["mirror_axes"]
    assert made.values["channels"] == 3
    assert made.values["labels"] == ["structure_1"]
    assert made.values["label_suffix"] == "_1stHO"

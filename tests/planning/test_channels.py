"""Images of several channels, in one file or in several: each is measured, normalised and varied by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.transforms import Compose
from shell import Run, shell
from small_data import plan_bundle, tilted_volumes

from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.data.case_files import CaseFiles, find_data
from monai_unet_app.data.monai_bridge import to_metatensor
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import InputRules, check_rules
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.network import NetworkPlan
from monai_unet_app.planning.plan import BundlePlan, _pattern
from monai_unet_app.planning.write import write_plan

NAMES = {2: "liver", 5: "spleen"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    yield from shell(capsys)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_channels(tmp_path_factory.mktemp("channels") / "volumes")


def two_channels(folder: Path) -> Path:
    """`tilted_volumes` whose files hold a T1-weighted image of about 800 without the balls, and ADC of 1 to 2 with them."""
    for file in sorted((tilted_volumes(folder) / "imagesTr").iterdir()):
        image = nibabel.load(file)
        t1 = np.random.default_rng(len(file.name)).normal(800, 64, image.shape)
        both = np.stack([t1, image.get_fdata() / 100], axis=-1).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(both, image.affine), file)
    return folder


def one_file_each(data: Path) -> Path:
    """The same data with a file for each channel, and their names as nnU-Net states them."""
    for file in sorted((data / "imagesTr").iterdir()):
        image = nibabel.load(file)
        channels = np.moveaxis(image.get_fdata().astype(np.float32), 3, 0)
        file.unlink()
        for number, channel in enumerate(channels):
            name = file.name.replace("_0000.", f"_{number:04}.")
            nibabel.save(nibabel.Nifti1Image(channel, image.affine), file.with_name(name))
    document = {"channel_names": {"0": "T1", "1": "ADC"}, "labels": {"background": 0, "liver": 2, "spleen": 5}}
    (data / "dataset.json").write_text(json.dumps(document))
    return data


def planned(data: Path, **said: Any) -> BundlePlan:
    def quick(network: NetworkPlan, channels: int, outputs: int) -> float:
        return network.voxels * network.filters[0] / 16e6

    return plan_bundle(PlanConfig(data, **{"structures": NAMES, "time_s": 20.0, "modality": "MR", **said}), quick)


def config_of(root: Path, name: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(root / f"configs/{name}.yaml"))
    return parser


@pytest.mark.parametrize("configuration", ["3d", "2d"])
def test_each_channel_leaves_preprocessing_with_mean_0_and_deviation_1(
    volumes: Path, tmp_path: Path, configuration: Any
) -> None:
    write_plan(planned(volumes, configuration=configuration), tmp_path / "made")
    preprocessing = config_of(tmp_path / "made", "inference").get_parsed_content("preprocessing")
    image = preprocessing({"image": str(volumes / "imagesTr/case0_0000.nii.gz")})["image"]
    assert image.shape[0] == 2
    for channel in image:
        assert float(channel.mean()) == pytest.approx(0, abs=1e-4)
        assert float(channel.std(unbiased=False)) == pytest.approx(1, abs=1e-4)


def test_ct_channels_are_cut_and_scaled_each_by_its_own_range(volumes: Path, tmp_path: Path) -> None:
    made = planned(volumes, modality="CT")
    # Over the structures, by numpy: the median over the cases of each percentile, mean and deviation
    inside = []
    for number in range(5):
        image = nibabel.load(volumes / f"imagesTr/case{number}_0000.nii.gz").get_fdata()
        values = image[nibabel.load(volumes / f"labelsTr/case{number}.nii.gz").get_fdata() > 0]
        inside.append([*np.percentile(values, (0.5, 99.5), axis=0), values.mean(axis=0), values.std(axis=0)])
    low, high, mean, deviation = np.median(inside, axis=0)
    write_plan(made, tmp_path / "made")
    preprocessing = config_of(tmp_path / "made", "inference").get_parsed_content("preprocessing")
    # On the grid of the network already, and one block of memory, so that no transform makes a copy first
    array = np.ascontiguousarray(image, dtype=np.float32)
    volume = Volume.from_ras(
        array.copy(), np.diag([*made.values["spacing_mm"], 1.0]), read_volume(file_of(volumes)).provenance
    )
    found = preprocessing({"image": to_metatensor(volume)}, start=1)["image"].numpy()
    expected = (np.clip(array, low, high) - mean) / deviation
    np.testing.assert_allclose(found, np.moveaxis(expected, 3, 0), atol=2e-3)
    assert np.array_equal(volume.array, Volume.from_ras(array, volume.affine_ras, volume.provenance).array)


def test_a_ct_is_cut_by_its_range_and_the_pet_beside_it_by_its_own_percentiles(volumes: Path, tmp_path: Path) -> None:
    data = one_file_each(shutil.copytree(volumes, tmp_path / "data"))
    (data / "dataset.json").write_text(
        json.dumps({"channel_names": {"1": "PET", "0": "CT"}, "labels": {"background": 0, "liver": 2, "spleen": 5}})
    )
    made = planned(data, structures={}, modality=None)
    assert made.values["input_rules"]["modality"] == ["CT"]
    assert made.values["input_rules"]["channel_modality"] == ["CT", "PT"]
    assert made.values["bias_field"] is False
    ct, pet = made.values["intensities"]["channels"]
    assert ct == planned(volumes, modality="CT").values["intensities"]["channels"][0]
    assert pet == {"kind": "percentiles"}
    write_plan(made, tmp_path / "made")
    preprocessing = config_of(tmp_path / "made", "inference").get_parsed_content("preprocessing")
    array = np.random.default_rng(2).normal([800, 12], [400, 5], (20, 21, 22, 2)).astype(np.float32)
    array[3, 4, 5, 1] = 1e5
    volume = Volume.from_ras(
        array, np.diag([*made.values["spacing_mm"], 1.0]), read_volume(file_of(volumes)).provenance
    )
    item = preprocessing({"image": to_metatensor(volume)}, start=1)
    assert set(item) == {"image"}
    cut = np.clip(array[..., 0], ct["low"], ct["high"])
    np.testing.assert_allclose(item["image"][0], (cut - ct["mean"]) / ct["deviation"], atol=1e-4)
    kept = np.clip(array[..., 1], *np.percentile(array[..., 1], (0.5, 99.5)))
    np.testing.assert_allclose(item["image"][1], (kept - kept.mean()) / kept.std(), atol=2e-3)
    back = preprocessing.inverse({"image": item["image"]})["image"]
    assert back.shape[1:] == volume.shape


def test_one_file_of_a_ct_and_a_pet_keeps_what_its_channels_are(volumes: Path, tmp_path: Path, run: Run) -> None:
    data = shutil.copytree(volumes, tmp_path / "data")
    labels = {"0": "background", "2": "liver", "5": "spleen"}
    (data / "dataset.json").write_text(json.dumps({"modality": {"0": "CT", "1": "PT"}, "labels": labels}))
    write_plan(planned(data, structures={}, modality=None), tmp_path / "made")
    inputs = json.loads((tmp_path / "made/configs/metadata.json").read_text())["network_data_format"]["inputs"]
    assert inputs["image"]["channel_def"] == {"0": "CT", "1": "PT"}
    (data / "dataset.json").unlink()
    answer = run(
        "convert", data, "--to", "nnunet", "--bundle", tmp_path / "made", "--output", tmp_path / "Dataset003_Both"
    )
    assert answer.code == 0, answer.err
    written = json.loads((tmp_path / "Dataset003_Both/dataset.json").read_text())
    assert written["channel_names"] == {"0": "CT", "1": "PT"}


def test_a_second_ct_is_not_taken_for_the_pet(volumes: Path) -> None:
    array = np.random.default_rng(2).normal(100, 9, (20, 21, 22, 2)).astype(np.float32)

    def study(*modalities: str) -> Volume:
        first, second = (Provenance("dicom", modality=modality) for modality in modalities)
        return Volume(array, np.eye(4), replace(first, others=(second,)))

    of_both = InputRules.parse({"modality": ["CT"], "channels": ["CT", "PET"], "channel_modality": ["CT", "PT"]})
    check_rules(study("CT", "PT"), of_both)
    with pytest.raises(InputRefusedError, match="the modality of channel PET is CT, PT is needed"):
        check_rules(study("CT", "CT"), of_both)
    of_ct = InputRules.parse({"modality": ["CT"], "channels": 1})
    image = Volume(array[..., 0], np.eye(4), Provenance("dicom", modality="CT", unit="MGML"))
    with pytest.raises(InputRefusedError, match=r"its CT values are MGML, Hounsfield units \(HU\) are needed"):
        check_rules(image, of_ct)
    check_rules(replace(image, provenance=replace(image.provenance, unit="HU")), of_ct)
    check_rules(study("MR", "MR"), InputRules.parse({"modality": ["MR"], "channels": ["T1", "FLAIR"]}))
    with pytest.raises(InputRefusedError, match="the modality of channel FLAIR is PT, MR is needed"):
        check_rules(study("MR", "PT"), InputRules.parse({"modality": ["MR"], "channels": ["T1", "FLAIR"]}))
    check_rules(study("CT", "PT"), InputRules.parse({"channels": ["a", "b"], "channel_modality": ["CT", None]}))


def test_strict_inspection_finds_what_a_plan_would_refuse(volumes: Path, tmp_path: Path, run: Run) -> None:
    data = one_file_each(two_channels(tmp_path / "volumes"))
    assert run("inspect", data, "--strict").code == 0
    (data / "imagesTr/case1_0001.nii.gz").unlink()
    rows = []
    for case in range(5):
        files = sorted((data / "imagesTr").glob(f"case{case}_*"))
        image = (
            {name: str(file) for name, file in zip(("T1", "ADC"), files, strict=False)}
            if len(files) > 1
            else str(files[0])
        )
        rows.append({"image": image, "label": f"labelsTr/case{case}.nii.gz"})
    (data / "list.json").write_text(json.dumps(rows))
    answer = run("inspect", data / "list.json", "--strict")
    assert (answer.code, "channels 1, 2" in answer.out + answer.err) == (3, True)


def test_a_bundle_of_dicom_channels_runs_on_what_convert_writes(tmp_path: Path) -> None:
    series = [tmp_path / name for name in ("a", "b")]
    for folder in series:
        folder.mkdir()
    assert _pattern([CaseFiles("case", series[0], channels=(series[1],))]) == "*_0000.nii.gz"


def file_of(volumes: Path) -> Path:
    return volumes / "imagesTr/case0_0000.nii.gz"


def test_contrast_and_brightness_vary_in_each_channel_by_itself(volumes: Path, tmp_path: Path) -> None:
    write_plan(planned(volumes), tmp_path / "made")
    train = yaml.safe_load((tmp_path / "made/configs/train.yaml").read_text())
    names = [step["_target_"] for step in train["random"]]
    first, last = names.index("SplitDimd"), names.index("RandScaleIntensityd")
    steps = train["random"][first:last]
    for step in steps:
        step.update({"prob": 1.0} if "prob" in step else {})
    contrast = Compose(ConfigParser({"steps": steps}).get_parsed_content("steps")).set_random_state(3)
    window = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 12, 13, 14)).astype(np.float32))
    window[1] = window[0]
    varied = contrast({"image": window.clone(), "label": window[:1]})
    assert set(varied) == {"image", "label"}
    assert varied["image"].shape == window.shape
    for before, after in zip(window, varied["image"], strict=True):
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=1e-4)
        assert float(after.std()) == pytest.approx(float(before.std()), abs=1e-4)
    assert not torch.allclose(varied["image"][0], varied["image"][1], atol=0.01)  # gammas of their own
    for name in ("RandScaleIntensityd", "RandShiftIntensityd"):
        assert train["random"][names.index(name)]["channel_wise"] is True


def test_a_bundle_for_one_channel_is_written_as_before_there_were_several(tmp_path: Path) -> None:
    for modality in ("MR", "CT"):
        made = planned(tilted_volumes(tmp_path / modality / "volumes"), modality=modality)
        write_plan(made, tmp_path / modality / "made")
        for name in ("inference", "train"):
            text = (tmp_path / modality / f"made/configs/{name}.yaml").read_text()
            assert not any(word in text for word in ("channel_wise", "SplitDimd", "ConcatItemsd"))
        if modality == "CT":
            assert all(isinstance(made.values["intensities"][name], float) for name in ("low", "high", "mean"))


def test_the_fingerprint_measures_each_channel(volumes: Path, tmp_path: Path, run: Run) -> None:
    write_plan(planned(volumes), tmp_path / "made")
    document = json.loads((tmp_path / "made/configs/fingerprint.json").read_text())
    t1, adc = document["cases"][0]["intensity"]
    assert t1[1] == pytest.approx(800, abs=5)
    assert adc[1] == pytest.approx(1.0, abs=0.02)
    assert len(document["cases"][0]["foreground"]) == 2
    answer = run("inspect", volumes)
    assert "intensity p50, channel 2" in answer.out


def test_a_case_whose_channels_are_exchanged_is_pointed_at(tmp_path: Path, run: Run) -> None:
    data = two_channels(tmp_path / "volumes")
    file = data / "imagesTr/case3_0000.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata()[..., ::-1].astype(np.float32), image.affine), file)
    odd = planned(data).fingerprint.odd
    (exchanged,) = [sentence for sentence in odd if "exchanged" in sentence]
    assert exchanged.startswith("look at case3: its channels 1 and 2")


def test_files_of_channels_give_the_plan_of_one_file_and_the_bundle_knows_their_names(
    volumes: Path, tmp_path: Path
) -> None:
    whole = planned(volumes)
    parts = planned(one_file_each(two_channels(tmp_path / "volumes")))
    assert parts.values["input_rules"] == {**whole.values["input_rules"], "channels": ["T1", "ADC"]}
    for name in ("intensities", "window", "spacing_mm", "channels"):
        assert parts.values[name] == whole.values[name]
    roots = [tmp_path / name for name in ("whole", "parts", "exchanged")]
    for root, plan in zip(roots, (whole, parts, parts), strict=True):
        write_plan(plan, root)
    text = (roots[2] / "configs/inference.yaml").read_text()
    (roots[2] / "configs/inference.yaml").write_text(text.replace('["T1", "ADC"]', '["ADC", "T1"]'))
    digests = [fitted_to(bundle_files(str(root)), "plain")["configs/inference.yaml"] for root in roots]
    assert len(set(digests)) == 3
    image = load_bundle(roots[1]).metadata["network_data_format"]["inputs"]["image"]
    assert image["channel_def"] == {"0": "T1", "1": "ADC"}


def test_the_same_names_in_the_same_order_are_needed_for_all_cases(tmp_path: Path) -> None:
    data = one_file_each(two_channels(tmp_path / "volumes"))
    rows = []
    for case in range(5):
        names = ("T1", "ADC") if case < 4 else ("ADC", "T1")
        images = {name: f"imagesTr/case{case}_000{number}.nii.gz" for number, name in enumerate(names)}
        rows.append({"image": images, "label": f"labelsTr/case{case}.nii.gz"})
    (data / "list.json").write_text(json.dumps(rows))
    with pytest.raises(InputRefusedError, match=r"T1, ADC \(case3_0000\) and ADC, T1 \(case4_0000\)"):
        planned(data / "list.json")


@pytest.mark.slow
def test_what_only_the_second_channel_shows_is_learnt(tmp_path: Path, run: Run) -> None:
    volumes = one_file_each(two_channels(tmp_path / "volumes"))
    said = ["--modality", "MR", "--time", "0.2min"]
    answer = run("plan", volumes, "--output", tmp_path / "plan", *said)
    assert answer.code == 0, answer.err
    splits = tmp_path / "plan/configs/splits.json"
    document = json.loads(splits.read_text())
    document["datasets"]["volumes"]["cases"][-1]["partition"] = "selection"
    splits.write_text(json.dumps(document))
    made = tmp_path / "made"
    quick = ["--epochs", "8", "--learning-rate", "0.01"]
    answer = run("train", "--bundle", tmp_path / "plan", "--data", volumes, "--output", made, *quick)
    assert answer.code == 0, answer.err
    words = ["--bundle", made, "--input", file_of(volumes), "--output", tmp_path / "out", "--device", "cpu"]
    answer = run("predict", *words, "--format", "nifti,seg", "--dicomize", "--deliver-rejected")
    assert answer.code == 0, answer.err
    (found,) = (tmp_path / "out").glob("case0_seg.nii.gz")
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        "configs/inference.yaml",
        "--device",
        "cpu",
    ]
    more = ["--dataset_dir", volumes / "imagesTr", "--output_dir", tmp_path / "theirs"]
    done = subprocess.run([*command, *more], cwd=made, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = nibabel.load(tmp_path / "theirs/case0_0000_seg.nii.gz")
    assert np.array_equal(np.asarray(theirs.dataobj).squeeze(), np.asarray(nibabel.load(found).dataobj))
    truth = np.asarray(nibabel.load(volumes / "labelsTr/case0.nii.gz").dataobj)
    # The balls are nowhere in the first channel
    assert dice(truth > 0, np.asarray(nibabel.load(found).dataobj) > 0) > 0.5


def test_channels_keep_their_names_in_nnunets_folder_and_equal_names_are_told_apart(tmp_path: Path, run: Run) -> None:
    data = one_file_each(two_channels(tmp_path / "volumes"))
    names = json.loads((data / "dataset.json").read_text())["channel_names"]
    rows = [
        {"id": case.id, "image": dict(zip(names.values(), map(str, case.files), strict=True)), "label": str(case.label)}
        for case in find_data(data)
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    for number, (modality, written, read) in enumerate(
        (([], list(names.values()), tuple(names.values())), (["--modality", "CT"], ["CT", "CT"], ("CT_0", "CT_1")))
    ):
        output = tmp_path / f"Dataset10{number}_Two"
        words = ["--structure", "2=liver", "--structure", "5=spleen", *modality]
        answer = run("convert", tmp_path / "list.json", "--to", "nnunet", "--output", output, *words)
        assert answer.code == 0, answer.err
        told = json.loads((output / "dataset.json").read_text())["channel_names"]
        assert list(told.values()) == written
        assert {case.channel_names for case in find_data(output)} == {read}

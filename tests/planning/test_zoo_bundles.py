"""Bundles in the form of MONAI's model zoo: their own labels, nothing of them run, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle import run as run_bundle
from monai.networks import nets
from numpy.typing import NDArray
from phantoms import oblique_affine
from scipy import ndimage

from dicom_io.dicomize import ConversionOptions, dicomize
from dicom_io.volume import LPS_FROM_RAS
from monai_unet_app.bundle import load_bundle
from monai_unet_app.cli import main
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.pipeline import segment_case
from monai_unet_app.planning.zoo_bundles import Config, ZooBundle, bundle_of_zoo

NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": "$@classes + 1", "channels": [4, 8, 8],
    "strides": [2, 2], "num_res_units": 1, "norm": "batch",
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "imports": ["$import glob", "$import numpy"],
    "bundle_root": ".",
    "image_key": "image",
    "classes": 2,
    "highres": True,
    "pixdim": "$[1.5, 1.5, 2.0] if @highres else [3.0, 3.0, 3.0]",
    "dataset_dir": "/data",
    "output_dir": "$@bundle_root + '/eval'",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": "@pixdim", "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged", "keys": "@image_key", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "@image_key"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 2, "overlap": 0.5},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key",
                "nearest_interp": False, "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {
                "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg",
                "output_dtype": "$numpy.uint8", "separate_folder": False,
            },
        ],
    },
    "evaluator": {
        "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader", "network": "@network",
        "inferer": "@inferer", "postprocessing": "@postprocessing",
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'", "load_dict": {"model": "@network"},
    },
    "initialize": ["$@checkpointloader(@evaluator)"],
    "run": ["$@evaluator.run()"],
}  # fmt: skip
METADATA: dict[str, Any] = {
    "version": "0.5.9",
    "authors": "somebody",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT", "num_channels": 1}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver", "2": "spleen"}}},
    },
}
Changed = Callable[..., Path]


def trained() -> torch.nn.Module:
    """A network with random weights, each of whose classes wins somewhere in an image of blobs."""
    torch.manual_seed(2)
    plain = {key: value for key, value in NETWORK.items() if key != "_target_"} | {"out_channels": 3}
    network = nets.UNet(**plain).eval()
    image = torch.as_tensor(((blobs() + 57.0) / 221.0).clip(0, 1), dtype=torch.float32)[None, None, :24, :28, :20]
    last = next(weight for name, weight in reversed(list(network.named_parameters())) if weight.shape == (3,))
    with torch.no_grad():
        last -= network(image).mean(dim=(0, 2, 3, 4))
    return network


def blobs() -> NDArray[np.int16]:
    """Shape (25, 31, 22), from -200 to 300."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(25, 31, 22)), 2)
    return (smooth / np.ptp(smooth) * 500 + 50).astype(np.int16)


@pytest.fixture
def zoo(tmp_path: Path) -> Changed:
    """Writes a bundle in the form of the zoo, with some entries of its config changed."""

    def write(name: str = "abdomen_ct", metadata: dict[str, Any] = METADATA, **changes: Any) -> Path:
        root, config = tmp_path / name, json.loads(json.dumps(CONFIG)) | changes
        for folder in ("configs", "models"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "configs/inference.json").write_text(json.dumps(config))
        (root / "configs/metadata.json").write_text(json.dumps(metadata))
        torch.save(trained().state_dict(), root / "models/model.pt")
        return root

    return write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with an image that lies obliquely."""
    folder = tmp_path / "images"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(blobs(), LPS_FROM_RAS @ oblique_affine((1.1, 0.9, 2.3))), folder / "case.nii.gz")
    return folder


def labels_of_monai(root: Path, data: Path, output: Path) -> Any:
    """What MONAI itself makes of the one image, by the bundle's own config."""
    workflow: Any = ConfigWorkflow(
        str(root / "configs/inference.json"), str(root / "configs/metadata.json"), logging_file=False, workflow_type="infer",
        bundle_root=str(root), dataset_dir=str(data), output_dir=str(output),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of the defaults that bundles of the zoo were written for
        workflow.initialize()
        workflow.run()
    (file,) = output.rglob("*_seg.nii.gz")
    return np.asarray(nibabel.load(file).dataobj)


@pytest.mark.parametrize("overlap", [{}, {"overlap": 0.25, "mode": "gaussian", "padding_mode": "replicate"}])
def test_labels_are_those_that_monai_gives(zoo: Changed, images: Path, overlap: dict[str, Any], tmp_path: Path) -> None:
    root = zoo(inferer=CONFIG["inferer"] | overlap)
    wanted = labels_of_monai(root, images, tmp_path / "monai")
    assert set(np.unique(wanted)) == {0, 1, 2}
    bundle = bundle_of_zoo(ZooBundle(root), tmp_path / "ours")
    found = segment_case(images / "case.nii.gz", load_bundle(bundle.root)).segmentation.labels
    np.testing.assert_array_equal(found, wanted)


def test_a_dicom_series_gets_the_labels_of_its_nifti_file(zoo: Changed, images: Path, tmp_path: Path) -> None:
    bundle = load_bundle(bundle_of_zoo(ZooBundle(zoo()), tmp_path / "ours").root)
    volume = read_volume(images / "case.nii.gz")
    series = dicomize(volume, tmp_path / "dicom", case_id="case", options=ConversionOptions("CT")).series_folder
    found = segment_case(series, bundle).segmentation
    wanted = segment_case(images / "case.nii.gz", bundle).segmentation
    assert set(np.unique(wanted.labels)) == {0, 1, 2}
    on_file = found.label_volume.on_grid_of(wanted.label_volume).array
    assert (on_file != wanted.labels).mean() < 1e-3  # places in DICOM have decimals
    assert [segment.label for segment in found.segments] == ["Liver", "Spleen"]
    assert all(segment.is_coded for segment in found.segments)


def test_monai_runs_the_new_bundle_with_the_same_labels(
    zoo: Changed, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of_zoo(ZooBundle(zoo()), tmp_path / "ours")
    monkeypatch.chdir(bundle.root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns of its own defaults
        run_bundle(  # what `python -m monai.bundle run` calls with its words
            config_file="configs/inference.yaml",
            dataset_dir=str(images),
            output_dir=str(tmp_path / "run"),
            device="cpu",
        )
    own = segment_case(images / "case.nii.gz", load_bundle(bundle.root)).segmentation.labels
    np.testing.assert_array_equal(nibabel.load(tmp_path / "run/case_seg.nii.gz").get_fdata(), own)


def compose(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def named(*channels: str) -> dict[str, Any]:
    """METADATA with other names of the channels of the answer."""
    answer = {"channel_def": {str(number): name for number, name in enumerate(channels)}}
    return METADATA | {"network_data_format": {"outputs": {"pred": answer}}}


def changed_step(name: str, place: str = "preprocessing", **values: Any) -> dict[str, Any]:
    """A Compose of CONFIG in which one transform has other values; without values it is left out."""
    entries = json.loads(json.dumps(CONFIG[place]["transforms"]))
    kept = [entry | values if entry["_target_"] == name else entry for entry in entries]
    return {**CONFIG[place], "transforms": kept if values else [e for e in kept if e["_target_"] != name]}


def test_overlapping_structures_a_largest_part_and_the_place_of_the_decision(zoo: Changed, tmp_path: Path) -> None:
    activation, inversion, decision, save = CONFIG["postprocessing"]["transforms"]
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [2]}
    root = zoo(postprocessing=compose(activation, decision, largest, inversion, save))
    made = bundle_of_zoo(ZooBundle(root), tmp_path / "one")
    assert "nearest voxel" in ZooBundle(root).differs
    fitted = json.loads((made.root / "models/fitted.json").read_text())
    assert [(step["step"], step["structures"]) for step in fitted["tidy"]["steps"]] == [("largest", [2])]
    single = (
        activation | {"softmax": False, "sigmoid": True}, inversion, decision | {"argmax": False, "threshold": 0.5},
    )  # fmt: skip
    every = {"_target_": "KeepLargestConnectedComponentd", "keys": ["pred"]}
    root = zoo(postprocessing=compose(*single, every), metadata=named("left lung", "right lung", "lesion"))
    # Of several masks MONAI leaves out the first where none are named
    assert (ZooBundle(root).largest, ZooBundle(root).differs) == ([2, 3], "")
    made = load_bundle(bundle_of_zoo(ZooBundle(root), tmp_path / "other").root)
    assert [segment.label for segment in made.segments] == ["Left lung", "Right lung", "Lesion"]


def test_the_command_takes_a_zip_and_says_what_it_found(
    zoo: Changed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = zoo(metadata={"version": "1.2"})
    shutil.make_archive(str(tmp_path / "packed"), "zip", root.parent, root.name)
    words = ["bundle", "import-monai", str(tmp_path / "packed.zip"), "--output", str(tmp_path / "ours")]
    assert main(words) == 3
    assert "does not name each channel of the answer" in capsys.readouterr().err
    names = [word for name in ("0=background", "1=liver", "2=spleen") for word in ("--structure", name)]
    assert main([*words, *names]) == 0
    said = capsys.readouterr().out
    assert "imported abdomen_ct 1.2: UNet, background, liver, spleen" in said
    assert said.splitlines()[0] == f"wrote {tmp_path / 'ours'}"
    assert "\nnext: monai-unet calibrate --bundle " in said


PRE, POST = "preprocessing", "postprocessing"
LOADS = CONFIG["checkpointloader"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_def": NETWORK | {"_target_": "scripts.net.Own"}}, r"_target_: 'scripts\.net\.Own' is not one of"),
        ({"network_def": NETWORK | {"_target_": "HoVerNet"}}, "'HoVerNet' is not one of"),
        ({"network_def": "$torch.load('model.pt')"}, "where names with values are needed"),
        ({"network_def": NETWORK | {"channels": [4, 8, 16]}}, r"models/model\.pt cannot be used \(it is of another network"),
        ({"network_def": NETWORK | {"dimensions": 3}}, r"MONAI .* cannot build its UNet \(.*dimensions"),
        ({"network_def": NETWORK | {"num_res_units": 10**7}}, "network_def/num_res_units"),
        ({"network": "$torch.nn.Sequential(@network_def)"}, "which could change what its parts say"),
        ({"pixdim": "$__import__('os').getcwd()"}, r"no plain value; code of a bundle is not run here"),
        ({"pixdim": [1.5, 1.5]}, "preprocessing/3/pixdim"),
        ({"inferer": {"_target_": "SimpleInferer"}}, "'SimpleInferer' is not one of .* bundle external"),
        ({"inferer": CONFIG["inferer"] | {"_target_": "scripts.SlidingWindowInferer"}}, "SlidingWindowInferer' is not"),
        ({"inferer": CONFIG["inferer"] | {"roi_size": [4096, 4096, 4096]}}, "windows of .* for a network of 3 axes"),
        ({"inferer": CONFIG["inferer"] | {"roi_size": [13, 16, 16]}}, "takes no window of 13 x 16 x 16"),
        ({"inferer": CONFIG["inferer"] | {"overlap": [0.25, 0.5, 0.5]}}, "inferer/overlap"),
        ({"inferer": None}, "where names with values are needed"),
        ({PRE: changed_step("Orientationd")}, "DICOM lies otherwise than NIfTI"),
        ({PRE: changed_step("Orientationd", labels=[["R", "L"], ["A", "P"], ["S", "I"]])}, "'labels' was unexpected"),
        ({PRE: changed_step("Orientationd", _disabled_=True)}, "DICOM lies otherwise than NIfTI"),
        ({PRE: changed_step("Spacingd", mode="nearest")}, "preprocessing/3/mode"),
        ({PRE: changed_step("Spacingd", padding_mode="zeros")}, "preprocessing/3/padding_mode"),
        ({PRE: changed_step("ScaleIntensityRanged", _target_="scripts.Own")}, r"'scripts\.Own' is not one of"),
        ({PRE: changed_step("ScaleIntensityRanged", keys="other")}, "for 'other' at preprocessing; image alone is taken"),
        ({PRE: changed_step("LoadImaged", dtype="uint8")}, "'dtype' was unexpected"),
        ({PRE: changed_step("EnsureTyped", dtype="$torch.int16")}, "no plain value"),
        ({PRE: {"_target_": "Compose", "transforms": None}}, "no list at preprocessing"),
        ({PRE: {"_target_": "Compose", "transforms": [{}]}}, "an entry without _target_"),
        ({POST: changed_step("AsDiscreted", POST, argmax=False, threshold=0.3)}, "postprocessing/2/threshold"),
        ({POST: changed_step("AsDiscreted", POST, _disabled_=True)}, "is not softmax and argmax, or sigmoid"),
        ({POST: changed_step("Activationsd", POST, softmax=False, sigmoid=True)}, "is not softmax and argmax, or sigmoid"),
        ({POST: compose(*[CONFIG[POST]["transforms"][n] for n in (0, 0, 1, 2)])}, "each once"),
        ({POST: compose(*[CONFIG[POST]["transforms"][n] for n in (1, 0, 2)])}, "each once"),
        ({"image_key": "@other", "other": "@image_key", "inferer": "@image_key"}, "refers to itself"),
        ({"handlers": [LOADS | {"load_path": "models/best.pt"}]}, "and so on where it loads weights; one file"),
        ({"checkpointloader": LOADS | {"load_path": "models/best.pt"}}, r"models/best\.pt cannot be used"),
        ({"metadata": named("background", "liver")}, "answers with 3 channels, and 2 have a name"),
        ({"metadata": named("background", "liver", "liver")}, "names"),
        ({"metadata": named("background", "liver", "lobe #1")}, "names/2"),
        ({"metadata": {"network_data_format": None}}, "does not name each channel"),
        ({"metadata": {"network_data_format": []}}, "does not name each channel"),
        ({"checkpointloader": LOADS | {"load_path": "models/fold1/model.pt"}}, "where it loads weights; one file in models/"),
        ({"preprocessing::transforms::4::a_min": -200}, "which changes another entry"),
        ({"+postprocessing": {"transforms": []}}, "which changes another entry"),
        ({"inferer": CONFIG["inferer"] | {"_disabled_": True}}, "'_disabled_' was unexpected"),
        ({"evaluator": "@other", "other": CONFIG["evaluator"] | {"inferer": "@inferer2"}}, "at evaluator::inferer"),
        ({"evaluator": {key: one for key, one in CONFIG["evaluator"].items() if key != "inferer"}}, "at evaluator::inferer"),
        ({"dataloader": CONFIG["dataloader"] | {"dataset": "@dataset2"}}, "at dataloader::dataset"),
        ({"evaluator": CONFIG["evaluator"] | {"mode": "train"}}, "'mode', which could change"),
        ({"run": ["$[p.data.mul_(0.8) for p in @network_def.parameters()]"]}, "which could change what its parts say"),
        ({PRE: CONFIG[PRE] | {"lazy": True}}, "more than a Compose"),
        ({POST: CONFIG[POST] | {"_target_": "RandomOrder"}}, "more than a Compose"),
        ({PRE: changed_step("Spacingd", lazy=True)}, "'lazy' was unexpected"),
        ({PRE: changed_step("LoadImaged", reader="scripts.Own")}, "preprocessing/0/reader"),
        ({PRE: changed_step("EnsureChannelFirstd", channel_dim=0)}, "preprocessing/1/channel_dim"),
        ({PRE: changed_step("ScaleIntensityRanged", _disabled_="True"), POST: changed_step("Invertd", POST, transform="@p2")},
         "does not say p2"),
        ({POST: changed_step("Activationsd", POST, softmax=[False])}, "is not softmax and argmax, or sigmoid"),
        ({"network_def": NETWORK | {"in_channels": 1e300}}, "no plain value"),
        ({"network_def": NETWORK | {"channels": [4, 1024, 1024], "num_res_units": 12}}, "it is smaller than its weights"),
        ({"metadata": named("background", "liver", "\U0001d400liver")}, "characters that YAML files"),
        ({"metadata": named("liver", "spleen", "background")}, "called liver, spleen, background, and the first"),
        ({"metadata": named("liver", "spleen", "kidney")}, "and the first is the background; name each by --structure"),
    ],
)  # fmt: skip
def test_what_needs_code_or_is_not_known_is_refused_in_words(
    zoo: Changed, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputRefusedError, match=message):
        bundle_of_zoo(ZooBundle(zoo(**changes)), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_channels_are_named_anew_as_the_refusal_says(
    zoo: Changed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = zoo(metadata=named("liver", "spleen", "background"))
    words = ["bundle", "import-monai", str(root), "--output", str(tmp_path / "ours")]
    assert main(words) == 3
    assert "--structure CHANNEL=NAME" in " ".join(capsys.readouterr().err.split())
    assert main([*words, *(f"--structure={name}" for name in ("0=background", "1=liver", "2=spleen"))]) == 0, (
        capsys.readouterr().err
    )
    assert load_bundle(tmp_path / "ours").structure_names == ("Liver", "Spleen")


def test_one_config_counts(zoo: Changed, tmp_path: Path) -> None:
    root = zoo()
    (root / "configs/inference.yaml").write_text("spacing: 3")
    with pytest.raises(InputRefusedError, match=r"has 2 of configs/inference\.json and \.yaml; the one that is meant"):
        bundle_of_zoo(ZooBundle(root), tmp_path / "ours")


def test_what_is_said_otherwise_and_means_the_same_is_taken(zoo: Changed, tmp_path: Path) -> None:
    first, second = CONFIG[PRE]["transforms"][:2], CONFIG[PRE]["transforms"][2:]
    root = zoo(
        preprocessing={"_target_": "Compose", "transforms": "$@load + @rest"}, load=first, rest=["@turn", *second[1:]],
        turn=second[0] | {"_target_": "monai.transforms.Orientationd"},
        network_def=NETWORK | {"_target_": "monai.networks.nets.unet.UNet"},
        inferer=CONFIG["inferer"] | {"_target_": "monai.inferers.SlidingWindowInferer", "roi_size": 16, "progress": True},
        checkpointloader=LOADS | {"load_path": "$@bundle_root + '/models/best.pt'"},
    )  # fmt: skip
    (root / "models/model.pt").rename(root / "models/best.pt")
    usual = ZooBundle(zoo("usual"))
    assert bundle_of_zoo(ZooBundle(root), tmp_path / "ours")
    assert (ZooBundle(root).steps, ZooBundle(root).sliding) == (usual.steps, usual.sliding)


@pytest.mark.parametrize("place", [PRE, POST])
def test_pictures_are_taken_as_they_are(zoo: Changed, tmp_path: Path, place: str) -> None:
    network = NETWORK | {"spatial_dims": 2, "in_channels": 3}
    root = zoo(network_def=network, inferer=CONFIG["inferer"] | {"roi_size": [16, 16]})
    with pytest.raises(InputRefusedError, match="turns or resamples pictures"):
        bundle_of_zoo(ZooBundle(root), tmp_path / "ours")


HOSTILE = (
    "channel name", "description", "authors", "version", "macro in metadata", "input channel", "argument", "requires", "mode",
    "text in an expression", "macro", "behind a reference", "behind an expression", "mode of windows", "padding", "spacing",
    "axis", "folder",
)  # fmt: skip


def hostile(canary: Path) -> dict[str, dict[str, Any]]:
    """Changes of a bundle in each of which something would touch a file, if anything of it were evaluated."""
    code = f"$__import__('pathlib').Path({str(canary)!r}).touch()"
    call = {"_target_": "pathlib.Path.touch", "self": f"$__import__('pathlib').Path({str(canary)!r})"}
    other = canary.with_name("other.yaml")
    other.write_text(json.dumps({"a": code}))
    intensity = "ScaleIntensityRanged"
    return {
        "channel name": {"metadata": named("background", "liver", code)},
        "description": {"metadata": METADATA | {"description": code}},
        "authors": {"metadata": METADATA | {"authors": f" {code}"}},
        "version": {"metadata": METADATA | {"version": code}},
        "macro in metadata": {"metadata": METADATA | {"task": f"%{other}::a"}},
        "input channel": {
            "metadata": METADATA
            | {
                "network_data_format": METADATA["network_data_format"]
                | {"inputs": {"image": {"channel_def": {"0": code}}}}
            },
        },
        "argument": {PRE: changed_step(intensity, a_min=call)},
        "requires": {PRE: changed_step(intensity, _requires_=call)},
        "mode": {PRE: changed_step(intensity, _mode_="debug")},
        "text in an expression": {PRE: changed_step(intensity, a_min=f"${code!r}")},
        "macro": {PRE: changed_step(intensity, a_min=f"%{other}::a")},
        "behind a reference": {"network_def": NETWORK | {"bias": "@evil"}, "evil": call},
        "behind an expression": {"network_def": NETWORK | {"bias": "$@evil"}, "evil": call},
        "mode of windows": {"inferer": CONFIG["inferer"] | {"mode": f'constant\n  sw_device: "{code}"'}},
        "padding": {"inferer": CONFIG["inferer"] | {"padding_mode": f'constant\nignore_label: "{code}"'}},
        "spacing": {"pixdim": f'1.5\nignore_label: "{code}"'},
        "axis": {"inferer": CONFIG["inferer"] | {"spatial_dim": f'0\nignore_label: "{code}"'}},
        "folder": {"name": f'x\nignore_label: "{code.replace("/", chr(92) + "x2f")}"\n#'[:200]},
    }


@pytest.mark.parametrize("change", HOSTILE)
def test_nothing_of_a_bundle_is_run_at_import_or_later(zoo: Changed, tmp_path: Path, change: str) -> None:
    canary = tmp_path / "ran"
    root = zoo(**hostile(canary)[change])
    try:
        made = load_bundle(bundle_of_zoo(ZooBundle(root), tmp_path / "ours").root)
    except (InputRefusedError, BundleError):
        assert not (tmp_path / "ours").exists()
    else:
        _ = made.network, made.preprocessing, made.result, made.windows, made.rules, made.ignore_label, made.file_values
    assert not canary.exists()


@pytest.mark.parametrize(
    "levels",
    [
        {f"d{n}": f"$@d{n + 1} + @d{n + 1}" for n in range(40)} | {"d40": "abcdefgh"},
        {f"d{n}": [f"@d{n + 1}", f"@d{n + 1}"] for n in range(40)} | {"d40": 1},
        {f"d{n}": f"$[@d{n + 1}, @d{n + 1}]" for n in range(40)} | {"d40": 1},
        {"d0": "$" + "-" * 20_000 + "1"},
    ],
)
def test_a_config_that_grows_when_it_is_read_is_refused(levels: dict[str, Any]) -> None:
    with pytest.raises(InputRefusedError, match=r"no plain value|more than 20000 values|a plain text"):
        Config(levels, "inference.json").value("d0")


def test_compressed_weights_are_refused_before_they_fill_the_memory(zoo: Changed, tmp_path: Path) -> None:
    root = zoo()
    with (
        zipfile.ZipFile(root / "models/model.pt") as stored,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for member in stored.namelist():
            small.writestr(member, stored.read(member))
    (tmp_path / "small.pt").replace(root / "models/model.pt")
    with pytest.raises(InputRefusedError, match="it is smaller than its weights"):
        bundle_of_zoo(ZooBundle(root), tmp_path / "ours")


def test_a_single_mask_and_whole_numbers_with_a_point(zoo: Changed, tmp_path: Path) -> None:
    activation, inversion, decision, _ = CONFIG[POST]["transforms"]
    single = activation | {"softmax": False, "sigmoid": True}, inversion, decision | {"argmax": False, "threshold": 0.5}
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]}
    network, inferer = (
        NETWORK | {"in_channels": 1.0, "out_channels": 1},
        CONFIG["inferer"] | {"roi_size": [16.0, 16, 16]},
    )
    root = zoo(postprocessing=compose(*single, largest), metadata=named("lesion"), network_def=network, inferer=inferer)
    torch.manual_seed(0)
    plain = {key: value for key, value in NETWORK.items() if key != "_target_"} | {"out_channels": 1}
    torch.save({"ema": nets.UNet(**plain).state_dict(), "model": {}}, root / "models/model.pt")
    config = json.loads((root / "configs/inference.json").read_text())
    config["checkpointloader"]["load_dict"] = {"ema": "@network"}
    (root / "configs/inference.json").write_text(json.dumps(config))
    (root / "LICENSE").write_bytes("© Müller".encode("latin-1"))
    made = load_bundle(bundle_of_zoo(ZooBundle(root), tmp_path / "ours").root)
    assert ZooBundle(root).largest == [1]
    assert set(made.network.state_dict()) == set(nets.UNet(**plain).state_dict())


@pytest.mark.parametrize("name", ["configs/metadata.json", "configs/inference.json", "models/model.pt", "LICENSE"])
def test_links_of_a_bundle_are_not_followed(zoo: Changed, tmp_path: Path, name: str) -> None:
    root = zoo()
    secret = (root / name).rename(tmp_path / "elsewhere") if (root / name).exists() else Path("/etc/hostname")
    (root / name).symlink_to(secret)
    with pytest.raises(InputRefusedError, match="a link, or too large"):
        bundle_of_zoo(ZooBundle(root), tmp_path / "ours")


@pytest.mark.parametrize("name", ["configs/metadata.json", "configs/inference.json"])
@pytest.mark.parametrize("how", ["deep", "wide", "aliases", "large number"])
def test_a_file_that_says_too_much_is_refused(zoo: Changed, tmp_path: Path, name: str, how: str) -> None:
    root, path = zoo(), Path(name)
    text = {
        "deep": '{"a": ' + "[" * 600 + "]" * 600 + "}",
        "wide": json.dumps({"a": [0] * 30_000}),
        "aliases": "b0: &b0 [x]\n" + "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 9)),
        "large number": '{"a": ' + "9" * 400 + "}",
    }[how]
    (root / name).unlink()
    (root / path.with_suffix(".yaml" if how == "aliases" and path.stem == "inference" else ".json")).write_text(text)
    with pytest.raises(InputRefusedError, match="cannot be read"):
        bundle_of_zoo(ZooBundle(root), tmp_path / "ours")


def test_weights_that_hold_code_are_not_read(zoo: Changed, tmp_path: Path) -> None:
    root = zoo()
    torch.save({"model": Path("a"), "run": print}, root / "models/model.pt")
    with pytest.raises(InputRefusedError, match="without code, are needed"):
        bundle_of_zoo(ZooBundle(root), tmp_path / "ours")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$[1.5, 2] if @fine else [3.0]", [1.5, 2]),
        ("$@sizes#1 + len(@sizes)", 6),
        ("$@nested::deep[0] / 2 - 1", 1.5),
        ("$not @fine or 'a' == 'b'", False),
        ("$monai.utils.CommonKeys.IMAGE", "image"),
        ("@sizes", [2, 3, 4]),
    ],
)
def test_expressions_that_say_a_plain_value_count(text: str, value: Any) -> None:
    config = Config({"fine": True, "sizes": [2, 3, 4], "nested": {"deep": [5, 6]}, "asked": text}, "inference.json")
    assert config.value("asked") == value


@pytest.mark.parametrize(
    "text",
    [
        "$__import__('os').system('true')", "$(1).__class__", "$[n for n in [1]]", "$lambda: 1", "$9 ** 9 ** 9",
        "$[0] * 999999999", "$open('/etc/passwd')", "$f'{1}'", "$print(1)", "$eval('1')", "$1 +", "$len(__builtins__)",
        "$@absent + 1", "$1 / 0",
    ],
)  # fmt: skip
def test_expressions_that_do_more_are_refused(text: str) -> None:
    with pytest.raises(InputRefusedError, match=r"no plain value|does not say absent"):
        Config({"asked": text}, "inference.json").value("asked")

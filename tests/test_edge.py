"""The folder for the edge gives the labels of `monai-unet predict`, without torch, MONAI or this package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from exports import networks_written_once, shallow_template
from PIL import Image
from scipy import ndimage
from shell import Run, shell
from small_data import FEW, drawn_eyes, few_examples, trained_on

from dicom_io.volume import Volume
from monai_unet_app import edge, export
from monai_unet_app.bundle import load_bundle
from monai_unet_app.calibration.fitted import change_fitted
from monai_unet_app.config import ResultSettings
from monai_unet_app.edge import export_edge, segment, settings_for
from monai_unet_app.errors import BundleError, UsageError
from monai_unet_app.gathering import tidied
from monai_unet_app.inference.engines.runtimes import onnxruntime_run
from monai_unet_app.pipeline import Predictor

run = pytest.fixture(shell)
written_once = pytest.fixture(scope="module", autouse=True)(networks_written_once)
tiny_template = pytest.fixture(scope="module")(shallow_template)
VOLUMES, SLICES, EYES = "hippocampus_mri_unet3d", "hippocampus_mri_unet2d", "retina_vessel_unet2d"
ALONE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "monai", "monai_unet_app", "dicom_io", "skimage", "onnx", "SimpleITK"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def alone(folder: Path, *words: object) -> str:
    """What segment.py prints, in a process that has none of our packages."""
    command = [sys.executable, "-c", ALONE, folder / "segment.py", *words]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def volumes(
    tiny_template: Callable[[str], tuple[Path, object]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A tiny bundle and its folder for the edge, made once."""
    root = shutil.copytree(tiny_template(VOLUMES)[0], tmp_path_factory.mktemp("edge") / VOLUMES)
    export_edge(load_bundle(root), folder := root.parent / "edge")
    return root, folder


def changed_near_surfaces(ours: np.ndarray, theirs: np.ndarray, spacing: tuple[float, ...]) -> float:
    """The part of the voxels within 2 mm of a surface of our labels, or of any that differ, whose labels differ."""
    edges = ndimage.maximum_filter(ours, 3) != ndimage.minimum_filter(ours, 3)
    assert edges.any()
    near = ndimage.distance_transform_edt(~edges, sampling=spacing) <= 2
    return float((ours != theirs).sum() / near.sum())


def lopsided(shape: tuple[int, int, int] = (33, 41, 27)) -> tuple[np.ndarray, np.ndarray]:
    """Two unlike ellipsoids with noise, and an oblique affine (RAS mm) whose axes run feet, right and back."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(float)
    array = np.random.default_rng(3).normal(400, 30, shape)
    for centre, radii, value in (((12, 25, 11), (6, 11, 5), -150), ((22, 12, 17), (4, 6, 7), 120)):
        at = (grid - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
        array[(at**2).sum(0) < 1] += value
    a, b = np.deg2rad([13.0, -9.0])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn[:, [2, 0, 1]] * [-1, 1, -1] * [0.97, 1.05, 1.15]
    affine[:3, 3] = [-11, 40, 25]
    return array.astype(np.float32), affine


@pytest.mark.parametrize("name", [VOLUMES, SLICES])
def test_labels_of_an_oblique_lopsided_volume_are_those_of_predict(
    run: Run, tiny_bundle: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    root, (array, affine) = tiny_bundle(name), lopsided()
    answer = run("bundle", "export", "--bundle", root, "--to", "edge", "--output", tmp_path / "edge")
    assert answer.code == 0, answer.err
    folder = tmp_path / "edge"
    assert {file.name for file in folder.iterdir()} == {
        "LICENSE", "README.md", "network.onnx", "segment.py", "settings.json",
    }  # fmt: skip
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "image.nii.gz")
    assert run(
        "predict", "--bundle", root, "--input", tmp_path / "image.nii.gz", "--output", tmp_path / "ours",
        "--engine", "torch", "--device", "cpu", "--deliver-rejected",
    ).code == 0  # fmt: skip
    told = alone(folder, tmp_path / "image.nii.gz", tmp_path / "theirs.nii.gz", "--repeat", 2)
    assert len(re.findall(r"(?m)^\d+\.\d\d s$", told)) == 2
    ours, theirs = (
        nibabel.load(file) for file in (next((tmp_path / "ours").glob("*.nii.gz")), tmp_path / "theirs.nii.gz")
    )
    np.testing.assert_allclose(theirs.affine, affine, atol=1e-5)
    assert changed_near_surfaces(np.asarray(ours.dataobj), np.asarray(theirs.dataobj), (0.97, 1.05, 1.15)) <= 1e-4


def test_labels_of_a_picture_are_those_of_predict(tiny_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    root = tiny_bundle(EYES)
    export_edge(load_bundle(root), tmp_path / "edge")
    picture = drawn_eyes(tmp_path / "eyes", 1) / "eye_1.png"
    alone(tmp_path / "edge", picture, tmp_path / "theirs.png")
    array = np.asarray(Image.open(picture)).swapaxes(0, 1)
    ours = np.asarray(Predictor(root, "cpu", "torch")(array).segmentation.labels)[0, :, :, 0]
    theirs = np.asarray(Image.open(tmp_path / "theirs.png")).swapaxes(0, 1) // 255
    assert changed_near_surfaces(ours, theirs, (1, 1)) <= 1e-4


def test_an_int8_network_lies_beside_the_other_and_gives_its_labels(
    run: Run, tiny_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_WINDOWS", 8)
    root, (array, affine) = tiny_bundle(VOLUMES), lopsided()
    trained_on(root, dict.fromkeys(FEW[:-1], "train"))
    data = few_examples(tmp_path / "data", FEW[:-1])
    words = ("--to", "edge", "--output", tmp_path / "edge", "--precision", "int8", "--data", data)
    answer = run("bundle", "export", "--bundle", root, *words)
    assert answer.code == 0, answer.err
    networks = json.loads((tmp_path / "edge/settings.json").read_text())["networks"]
    assert {key: one["file"] for key, one in networks.items()} == {
        "float32": "network.onnx", "int8": "network_int8.onnx",
    }  # fmt: skip
    settings = ResultSettings(engine="onnxruntime", precision="int8")
    ours = np.asarray(Predictor(root, "cpu", "onnxruntime", settings)(array, affine_ras=affine).segmentation.labels)
    theirs, usual = (
        segment.segment(array, affine, folder=tmp_path / "edge", precision=one) for one in ("int8", "float32")
    )
    # Where an input differs in its last bit int8 may round the other way, and random weights make much of it
    assert (ours != theirs).mean() < 0.05 < (theirs != usual).mean()
    window = torch.randn(1, 1, *load_bundle(root).windows.window, generator=torch.Generator().manual_seed(0))
    _, network = segment._loaded(tmp_path / "edge", "int8")
    assert np.array_equal(network(window[0].numpy()), load_bundle(root).engine(settings)(window).logits[0].numpy())


def test_weights_in_half_of_the_bits_answer_alike(volumes: tuple[Path, Path]) -> None:
    root, folder = volumes
    files = root / "models/network.onnx", folder / "network.onnx"
    windows = torch.randn(1, 1, *load_bundle(root).windows.window, generator=torch.Generator().manual_seed(0))
    one, other = (onnxruntime_run(file)(windows)[0] for file in files)
    assert torch.equal(one, other)
    assert files[1].stat().st_size < files[0].stat().st_size


@pytest.mark.parametrize(("name", "form", "numbers"), [
    (VOLUMES, "region", {"reach": 2, "far": -0.1, "near": 1.1}),
    (VOLUMES, "classwise", {"class_0": 0.3, "class_1": -0.2, "class_2": 0.6}),
    (VOLUMES, "temperature", {"log_temperature": 0.7}),
    (VOLUMES, "none", {}),
    (EYES, "region", {"reach": 2, "far": -0.1, "near": 1.1}),
    (EYES, "classwise", {"class_0": 0.3}),
])  # fmt: skip
def test_each_calibration_is_that_of_the_bundle(
    tiny_bundle: Callable[[str], Path], name: str, form: str, numbers: dict[str, float]
) -> None:
    root = tiny_bundle(name)
    change_fitted(root, "calibration", form=form, plain=numbers)
    bundle = load_bundle(root)
    shape = (len(bundle.labels), *(9, 11, 13)[: bundle.rules.axes])
    logits = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = segment.calibrated(logits.numpy(), settings_for(bundle))
    np.testing.assert_allclose(found, bundle.result.probabilities(logits.clone()).numpy(), atol=1e-6)
    if numbers:
        plain = bundle.outputs.probabilities(logits)
        assert np.abs(found - plain.numpy()).max() > 0.05


def test_tidy_steps_are_those_of_the_bundle(tiny_bundle: Callable[[str], Path]) -> None:
    root = tiny_bundle(VOLUMES)
    steps = [{"step": "largest", "structures": [2], "why": ""}, {"step": "islands", "min_size": 9.0, "why": ""}]
    change_fitted(root, "tidy", steps=steps)
    bundle = load_bundle(root)
    noise = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(30, 28, 26)), 1.2)
    labels = np.digitize(noise, [0.12, 0.16]).astype(np.uint8)
    image = Volume(noise.astype(np.float32), np.diag([1.0, 1.1, 1.3, 1.0]))
    ours = tidied(image, labels, bundle.result.tidy)
    assert (ours != labels).any()
    assert np.array_equal(segment._tidied(labels.copy(), settings_for(bundle), 1.43), ours)


@pytest.mark.parametrize(("there", "instead", "said"), [
    ("- _target_: NormalizeIntensityd\n  keys: image\n", "- _target_: ScaleIntensityd\n  keys: image\n",
     "has ScaleIntensityd in its preprocessing; for the edge Orientationd, Spacingd"),
    ("- _target_: NormalizeIntensityd\n", "- _target_: NormalizeIntensityd\n  nonzero: true\n", "with {'nonzero': True}"),
    ("axcodes: RAS", "axcodes: LPS", "has Orientationd with {'axcodes': 'LPS'}"),
    ("mode: [bilinear, nearest]", "mode: [nearest, nearest]", "has Spacingd with {'mode': 'nearest'}"),
    ("padding_mode: constant", "padding_mode: reflect", "has the padding of windows reflect"),
])  # fmt: skip
def test_what_the_folder_cannot_do_is_refused_by_name(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, there: str, instead: str, said: str
) -> None:
    config = tiny_bundle(VOLUMES) / "configs/inference.yaml"
    assert there in config.read_text()
    config.write_text(config.read_text().replace(there, instead))
    with pytest.raises(BundleError, match=re.escape(said)):
        export_edge(load_bundle(config.parents[1]), tmp_path / "edge")
    assert not (tmp_path / "edge").exists()


def test_steps_that_the_folder_does_not_have_are_refused(tiny_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    root = tiny_bundle(VOLUMES)
    change_fitted(root, "tidy", steps=[{"step": "holes", "structures": [1], "why": ""}])
    with pytest.raises(BundleError, match=r"has `result` with .*holes"):
        export_edge(load_bundle(root), tmp_path / "edge")


def test_a_folder_that_gives_other_labels_is_not_written(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, right = tiny_bundle(VOLUMES), segment._to_ras

    def mirrored(image: np.ndarray, affine: np.ndarray, step: dict[str, object]) -> object:
        moved, place, back = right(image, affine, step)
        return moved[:, ::-1], place, lambda values: back(values[:, ::-1])

    with monkeypatch.context() as patch:
        patch.setitem(segment._MOVES, "Orientationd", mirrored)
        with pytest.raises(BundleError, match=r"of a made image the folder gives .* other labels"):
            export_edge(load_bundle(root), tmp_path / "edge")
        assert not (tmp_path / "edge").exists()
    monkeypatch.setattr(edge, "MOST_MB", 0.01)
    with pytest.raises(BundleError, match=r"the folder would have 0\.\d MB; 0.01 MB at most"):
        export_edge(load_bundle(root), tmp_path / "edge")
    (tmp_path / "edge").mkdir()
    with pytest.raises(UsageError, match="exists; a new folder is needed"):
        export_edge(load_bundle(root), tmp_path / "edge")


def test_an_image_that_the_bundle_was_not_made_for_is_refused(volumes: tuple[Path, Path]) -> None:
    array, affine = lopsided()

    def said(array: np.ndarray, affine: np.ndarray | None) -> str:
        with pytest.raises(ValueError) as refusal:
            segment.segment(array, affine, folder=volumes[1])
        return str(refusal.value)

    assert "voxels of [2.91 3.15 3.45] mm" in said(array, affine @ np.diag([3, 3, 3, 1]))
    assert "a field of view of" in said(array[:10], affine)
    assert "is constant" in said(np.zeros_like(array), affine)
    assert "an affine for 3 axes" in said(array, None)
    assert "not at right angles" in said(
        array, affine @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    with pytest.raises(ValueError, match="there is no network in int8"):
        segment.segment(array, affine, folder=volumes[1], precision="int8")
    rules = {**json.loads((volumes[1] / "settings.json").read_text())["input"], "channel_names": ["T1", "FLAIR"]}
    two = np.stack([array, np.full_like(array, 3)])
    with pytest.raises(ValueError, match="every voxel of channel FLAIR is the same"):
        segment._check(two, affine, rules)
    segment._check(two, affine, {**rules, "constant_channels": ["FLAIR"]})


def test_a_file_without_directions_is_refused(
    volumes: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = nibabel.Nifti1Image(lopsided()[0], None)  # both codes are 0
    nibabel.save(image, tmp_path / "bare.nii.gz")
    monkeypatch.setattr(segment, "HERE", volumes[1])
    monkeypatch.setattr("sys.argv", ["segment.py", str(tmp_path / "bare.nii.gz"), str(tmp_path / "out.nii.gz")])
    with pytest.raises(SystemExit, match=r"bare\.nii\.gz has neither sform nor qform"):
        segment.main()
    image.set_sform(np.eye(4), 1)
    image.set_qform(np.diag([-1, 1, 1, 1]), 1)
    nibabel.save(image, tmp_path / "bare.nii.gz")
    with pytest.raises(SystemExit, match="a sform and a qform that are mirror images"):
        segment.main()
    image.set_qform(np.eye(4), 1)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "bare.nii.gz")
    with pytest.raises(SystemExit, match="is in meters; save it in mm"):
        segment.main()
    assert not (tmp_path / "out.nii.gz").exists()


def test_output_is_for_the_edge_alone(run: Run, tiny_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    root = tiny_bundle(VOLUMES)
    for words in (("--to", "edge"), ("--to", "openvino", "--output", tmp_path / "edge")):
        answer = run("bundle", "export", "--bundle", root, *words)
        assert (answer.code, "--output names the new folder of --to edge" in answer.err) == (2, True)

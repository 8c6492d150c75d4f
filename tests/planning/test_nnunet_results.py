"""Trained folders of nnU-Net as bundles: nnU-Net's own labels, what it is known to have seen, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt
from numpy.typing import NDArray
from once import made_once
from phantoms import write_mr_series
from skimage.transform import resize
from trained_by_nnunet import RESULTS, painted

from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.cli import main
from monai_unet_app.config import ResultSettings
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.inference.nnunet.resampling import Kernel, Resized, resized, resizing_bytes
from monai_unet_app.inference.pieces import pieces
from monai_unet_app.inference.predict import predict_rows
from monai_unet_app.memory_planner import prepared_shape
from monai_unet_app.pipeline import preprocess, segment_case
from monai_unet_app.planning.nnunet_results import Import, bundle_of

PLANS = sorted(folder.name for folder in RESULTS.iterdir() if (folder / "plans.json").is_file())
OTHER_PROCESSOR = 5e-4
"""Part of the voxels that another processor, with another order of arithmetic in its convolutions, may decide otherwise."""


def imported(name: str, output: Path, *, mirroring: bool = False, **more: Any) -> Bundle:
    return load_bundle(bundle_of(Import(RESULTS / name, output, mirroring=mirroring, **more)).root)


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """The bundle of a folder without mirroring, also with the cases it was trained on; not to be changed."""

    def bundle(name: str, *, raw: bool = False) -> Bundle:
        def make(folder: Path) -> None:
            imported(name, folder / "bundle", data=RESULTS / name / "raw" if raw else None)

        return load_bundle(made_once(tmp_path_factory, f"nnunet_{name}{'_raw' * raw}", make) / "bundle")

    return bundle


def images(name: str, case: str) -> Path | tuple[Path, ...]:
    files = tuple(sorted((RESULTS / name / "images").glob(f"{case}_*")))
    return files if len(files) > 1 else files[0]


@pytest.mark.parametrize("name", PLANS)
def test_labels_are_those_of_nnunet(name: str, shared: Callable[..., Bundle]) -> None:
    bundle, variant = shared(name), "plain_folds" if name == "plain3d" else "plain"
    with np.load(RESULTS / name / "expected.npz") as expected:
        for case in ("test0", "test1"):
            labels = painted(segment_case(images(name, case), bundle).segmentation.labels, name)
            wanted = expected[f"{variant}/{case}"]
            assert (labels != wanted).mean() <= OTHER_PROCESSOR
            assert set(np.unique(wanted)) == set(range(wanted.max() + 1))


@pytest.mark.parametrize(("name", "case"), [("plain2d", "test1"), ("regions3d", "test1")])
def test_with_mirror_images_too(name: str, case: str, tmp_path: Path) -> None:
    bundle = imported(name, tmp_path / "bundle", mirroring=True)
    with np.load(RESULTS / name / "expected.npz") as expected:
        mirrored, plain = (expected[f"{variant}/{case}"] for variant in ("mirrored", "plain"))
    labels = painted(segment_case(images(name, case), bundle).segmentation.labels, name)
    assert (mirrored != plain).mean() > 10 * OTHER_PROCESSOR
    assert (labels != mirrored).mean() <= OTHER_PROCESSOR


@pytest.mark.parametrize("name", ["aniso3d", "channels3d", "plain2d"])
def test_a_result_in_pieces_is_the_whole_result(name: str, shared: Callable[..., Bundle]) -> None:
    bundle = shared(name)
    item = preprocess(read_volume(images(name, "test0")), bundle)
    rows = list(predict_rows(item["image"], bundle.engine(ResultSettings()), bundle.windows))
    back = bundle.result.way_back(item["image"])
    assert back is not None
    (whole,) = pieces(iter(rows), back, bundle.result)
    parts = list(pieces(iter(rows), back, bundle.result, size=1 << 14))
    assert len(parts) > 3
    for part in parts:
        box = (slice(None), *part.box)
        assert torch.equal(part.decision, whole.decision[box])
        torch.testing.assert_close(part.probabilities, whole.probabilities[box], atol=1e-6, rtol=0)


def test_outside_of_the_body_is_background_for_certain(shared: Callable[..., Bundle]) -> None:
    bundle = shared("channels3d")
    case = segment_case(images("channels3d", "test0"), bundle, keep="probabilities")
    probabilities = np.asarray(case.segmentation.probabilities)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    assert (probabilities[0, :3] == 1).all()  # columns of air
    assert (case.segmentation.labels[:3] == 0).all()


def resized_by_others(values: NDArray[np.float64], shape: tuple[int, ...], axis: int | None) -> NDArray[np.float64]:
    """Linear interpolation; along `axis`, if there is one, the nearest slice."""
    if axis is None:
        return resize(values, shape, 1, mode="edge", anti_aliasing=False)
    plane = tuple(n for at, n in enumerate(shape) if at != axis)
    slices = [resize(one, plane, 1, mode="edge", anti_aliasing=False) for one in np.moveaxis(values, axis, 0)]
    places = np.floor((np.arange(shape[axis]) + 0.5) * len(slices) / shape[axis]).astype(int)
    return np.stack([slices[place] for place in places], axis)


@pytest.mark.parametrize(
    ("old", "new"), [((9, 23, 31), (7, 29, 40)), ((12, 12, 5), (12, 12, 5)), ((20, 6, 11), (9, 13, 11))]
)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_logits_are_resampled_as_scikit_image_resizes_them(
    old: tuple[int, ...], new: tuple[int, ...], axis: int | None
) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0, 4, (2, *old)).astype(np.float16).astype(np.float32)
    wanted = np.stack([resized_by_others(channel, new, axis) for channel in values.astype(np.float64)])
    step = Resized(new, old, tuple(at != axis for at in range(3)))
    box = (slice(1, new[0]), slice(0, new[1] - 2), slice(2, new[2]))
    held = step.needed(box)
    found = step(torch.from_numpy(values[(slice(None), *held)]), held, box).numpy()
    np.testing.assert_array_equal(found.astype(np.float16), wanted[(slice(None), *box)].astype(np.float16))


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [((1, 1, 1), (1, 1, 1), None), ((3.6, 0.8, 0.8), (1, 1, 1), 0), ((1, 1, 1), (0.8, 0.8, 3), 2), ((3, 1, 1), (1, 1, 1), None),
     ((0.2, 1.2, 1.2), (1, 1, 1), None)],
)  # fmt: skip
def test_thick_slices_are_resampled_by_themselves(old: Any, new: Any, axis: int | None) -> None:
    assert Kernel(3).axis(old, new) == axis
    assert Kernel(3, separate_z=False).axis(old, new) is None


def test_a_bundle_knows_what_each_fold_has_seen(shared: Callable[..., Bundle]) -> None:
    bundle = shared("plain3d", raw=True)
    listed = json.loads((RESULTS / "plain3d/raw/splits_final.json").read_text())
    assert len(bundle.folds) == len(listed) == 5
    assert bundle.is_ensemble
    for fold, known in zip(bundle.folds, listed, strict=True):
        by_partition: dict[str, set[str]] = {"train": set(), "test": set()}
        for case in fold.seen:
            by_partition[case.partition].add(case.id)
        assert by_partition == {"train": set(known["train"]), "test": set(known["val"])}
    assert {case.partition for case in bundle.seen} == {"train"}


def test_the_names_in_validation_say_the_folds_too(tmp_path: Path, shared: Callable[..., Bundle]) -> None:
    data = shutil.copytree(RESULTS / "plain3d/raw", tmp_path / "raw")
    (data / "splits_final.json").rename(tmp_path / "splits_final.json")
    bundle = imported("plain3d", tmp_path / "one", data=data)
    other = imported("plain3d", tmp_path / "two", data=data, splits=tmp_path / "splits_final.json")
    assert [fold.seen for fold in bundle.folds] == [fold.seen for fold in other.folds]
    assert [fold.seen for fold in bundle.folds] == [fold.seen for fold in shared("plain3d", raw=True).folds]


def as_stored_in(axes: str, file: Path, output: Path) -> nibabel.Nifti1Image:
    """The same image with its axes in another order, written; `axes` such as "RAS"."""
    image = nibabel.load(file)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), axcodes2ornt(axes))
    nibabel.save(image.as_reoriented(turn), output)
    return nibabel.load(output)


def test_an_image_is_turned_as_all_training_images_lay(tmp_path: Path) -> None:
    data = shutil.copytree(RESULTS / "plain3d/raw", tmp_path / "raw")
    mixed = imported("plain3d", tmp_path / "mixed", data=data, folds=("0",))
    for file in data.glob("*Tr/*"):
        as_stored_in("RAS", file, file)
    bundle = imported("plain3d", tmp_path / "bundle", data=data, folds=("0",))
    image = images("plain3d", "test1")
    assert isinstance(image, Path)
    as_stored_in("RAS", image, file := tmp_path / "ras.nii.gz")
    rows = as_stored_in("LPS", file, tmp_path / "lps.nii.gz")
    write_mr_series(tmp_path / "series", np.asarray(rows.dataobj), np.diag([-1, -1, 1, 1]) @ rows.affine)
    as_trained, series = (segment_case(path, bundle).segmentation.labels for path in (file, tmp_path / "series"))
    np.testing.assert_array_equal(series[::-1, ::-1], as_trained)
    np.testing.assert_array_equal(segment_case(file, mixed).segmentation.labels, as_trained)  # where none was turned
    unturned = segment_case(tmp_path / "series", mixed).segmentation.labels[::-1, ::-1]
    assert (unturned != as_trained).mean() > 1e-3


def test_a_single_network_is_calibrated_on_what_it_has_not_seen(tmp_path: Path) -> None:
    bundle = imported("plain3d", tmp_path / "bundle", data=RESULTS / "plain3d/raw", folds=("2",))
    validated = json.loads((RESULTS / "plain3d/raw/splits_final.json").read_text())[2]["val"]
    assert {case.id for case in bundle.seen if case.partition == "calibration"} == set(validated)
    assert bundle.folds == ()


@pytest.mark.parametrize("name", ["plain3d", "aniso3d", "plain2d"])
def test_memory_of_the_preprocessing_is_planned_for(name: str, shared: Callable[..., Bundle]) -> None:
    bundle, shape, affine = shared(name), (100, 94, 115), np.diag([1.0, 1.2, 1.1, 1.0])
    values = np.random.default_rng(0).random(shape, np.float32) + 1
    volume = Volume(values, affine, Provenance("nifti"))
    (step,) = [step for step in bundle.preprocessing.transforms if hasattr(step, "extra_bytes")]
    working, made = prepared_shape(shape, affine, bundle), dict[str, Any]()
    taken = traced_by(lambda: made.update(preprocess(volume, bundle)))
    assert made["image"].shape[1:] == working
    planned = step.extra_bytes(shape, working, 1) + volume.array.nbytes + made["image"].nbytes
    assert 0.7 < taken / planned < 1.05


@pytest.mark.parametrize(
    ("old", "new", "kernel", "axis"),
    [
        ((40, 75, 70), (22, 105, 117), Kernel(3), 0),
        ((40, 75, 70), (22, 105, 117), Kernel(3, order_z=3), 0),
        ((75, 70, 40), (105, 117, 60), Kernel(3, order_z=1), 2),
        ((60, 70, 65), (80, 75, 95), Kernel(3, separate_z=False), None),
        ((80, 75, 95), (60, 70, 65), Kernel(3, separate_z=False), None),
    ],
)
def test_memory_of_each_way_to_resample_is_planned_for(
    old: tuple[int, ...], new: tuple[int, ...], kernel: Kernel, axis: int | None
) -> None:
    images = [np.random.default_rng(0).random((channels, *old), np.float32) for channels in (1, 3)]
    taken = [traced_by(lambda image=image: resized(image, new, kernel, axis)) for image in images]
    assert 0.75 < taken[0] / (resizing_bytes(old, new, kernel) + 4 * np.prod(new)) < 1.05
    assert taken[1] - taken[0] == pytest.approx(2 * 4 * np.prod(new), rel=0.02)  # the answer's other channels


def traced_by(work: Callable[[], object]) -> int:
    """The most bytes of Python and numpy during some work; unlike those of the process, not by what the heap keeps."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("never"),)


def with_plan(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["3d_fullres"] |= changes
        (folder / "plans.json").write_text(json.dumps(plans))

    return write


def with_checkpoint(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "fold_all/checkpoint_final.pth"
        torch.save({**torch.load(file, weights_only=False), **changes}, file)

    return write


def with_dataset(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        dataset = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps(dataset | changes))

    return write


def of_fold_3(folder: Path) -> None:
    (folder / "fold_all").rename(folder / "fold_3")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            with_dataset(labels={"background": 0, "other": 1}),
            r"was trained with labels .*, and the folder says .*other",
        ),
        (with_dataset(channel_names={"0": "CT"}), "was trained with channel_names"),
        (with_plan(spacing=[9.0, 1.0, 1.0]), "was trained with spacing"),
        (of_fold_3, 'the checkpoint of fold 3 was trained with fold "all"'),
        (lambda folder: (folder / "plans.json").unlink(), "has no plans.json"),
        (lambda folder: (folder / "plans.json").write_text("{"), "cannot be used .JSONDecodeError"),
        (lambda folder: (folder / "plans.json").write_text('{"configurations": {}}'), "cannot be used .KeyError"),
        (with_checkpoint(trainer_name="nnUNetTrainerMine"), "its trainer is nnUNetTrainerMine"),
        (with_checkpoint(logging=Code()), "holds tensors and numbers only"),
        (lambda folder: (folder / "fold_all/checkpoint_final.pth").write_bytes(pickle.dumps(Code())), "cannot be used"),
        (with_checkpoint(trainer_name="nnUNetTrainerBN"), "its trainer is nnUNetTrainerBN"),
        (with_checkpoint(trainer_name="OtherTrainer"), "its trainer is OtherTrainer"),
        (with_checkpoint(network_weights={}), "do not fit the network of plans.json"),
        (with_plan(previous_stage="3d_lowres"), "is a cascade"),
        (with_plan(resampling_fn_data="other"), "its resampling of data"),
        (with_plan(normalization_schemes=["Mine"]), "normalisation is Mine"),
        (with_plan(architecture={"network_class_name": "x.Y"}), "network is x.Y"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    spoil: Callable[[Path], None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(RESULTS / "aniso3d", tmp_path / "results")
    spoil(folder)
    with pytest.raises(InputRefusedError, match=words):
        bundle_of(Import(folder, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "never").exists()


def test_data_that_number_their_structures_otherwise_did_not_train_the_network(tmp_path: Path) -> None:
    document = json.loads((RESULTS / "aniso3d/dataset.json").read_text())
    labels = document["labels"]
    last = max(labels, key=labels.get)
    swapped = labels | {last: 1, next(name for name, value in labels.items() if value == 1): labels[last]}
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "imagesTr/a_0000.nii.gz").touch()
    (tmp_path / "labelsTr/a.nii.gz").touch()
    other = swapped if labels[last] > 1 else {"background": 0, "other": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(document | {"labels": other}))
    with pytest.raises(InputRefusedError, match=r"--data names its label values .*, and the network was trained with"):
        bundle_of(Import(RESULTS / "aniso3d", tmp_path / "bundle", data=tmp_path))


def test_an_absent_fold_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"of fold 3; there is 0, 1"):
        bundle_of(Import(RESULTS / "resenc3d", tmp_path / "bundle", ("3",)))


def test_a_subject_in_two_folds_is_refused(tmp_path: Path) -> None:
    data = shutil.copytree(RESULTS / "plain3d/raw", tmp_path / "raw")
    splits = (data / "splits_final.json").read_text()
    # Two hippocampi of one person, as the shipped plan knows; nnU-Net has dealt out cases
    for old, new in (("case00", "hippocampus_003"), ("case01", "hippocampus_004")):
        splits = splits.replace(old, new)
        for file in [*data.glob(f"*/{old}*")]:
            file.rename(file.with_name(file.name.replace(old, new)))
    (data / "splits_final.json").write_text(splits)
    with pytest.raises(InputRefusedError, match="one subject belongs to one fold"):
        bundle_of(Import(RESULTS / "plain3d", tmp_path / "bundle", data=data))


def test_no_checkpoint_is_loaded_with_its_code() -> None:
    product = Path(__file__).resolve().parents[2] / "monai_unet_app"
    text = (product / "planning/nnunet_results.py").read_text()
    assert "weights_only=True" in text
    assert "weights_only=False" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resenc3d", "channels3d"])
def test_monai_alone_gives_the_same_labels(name: str, tmp_path: Path) -> None:
    bundle, folder = imported(name, tmp_path / "bundle"), tmp_path / "images"
    folder.mkdir()
    for file in (RESULTS / name / "images").glob("test1_*"):
        shutil.copyfile(file, folder / file.name)
    command = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
    folders = ["--dataset_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    subprocess.run([sys.executable, *command, *folders], cwd=bundle.root, check=True, capture_output=True)
    (made,) = (tmp_path / "out").iterdir()
    ours = segment_case(images(name, "test1"), bundle).segmentation.labels
    np.testing.assert_array_equal(read_volume(made).array, ours)


@pytest.mark.slow
def test_one_command_gives_intervals_out_of_fold_and_changes_no_label(tmp_path: Path, capsys: Any) -> None:
    output, data = tmp_path / "bundle", shutil.copytree(RESULTS / "plain3d/raw", tmp_path / "raw")
    for file in data.glob("*Tr/case0[!03]*"):  # one case of fold 0, and one of fold 1
        file.unlink()
    words = ["bundle", "import-nnunet", str(RESULTS / "plain3d"), "--data", str(data), "--output", str(output)]
    assert main([*words, "--no-mirroring", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["folds"] == 5
    assert answer["calibration"]["nll_after"] < answer["calibration"]["nll_before"]
    measured = ["evaluate", "--bundle", str(output), "--data", str(data), "--folds", "--output", str(tmp_path / "out")]
    assert main([*measured, "--into-bundle"]) == 0
    assert "Dice" in (output / "docs/README.md").read_text().partition("<!-- figures -->")[2]
    case = segment_case(images("plain3d", "test1"), load_bundle(output))
    assert case.assessment is not None
    assert case.assessment.confidence is not None
    with np.load(RESULTS / "plain3d/expected.npz") as expected:
        wanted = expected["plain_folds/test1"]
    assert (case.segmentation.labels != wanted).mean() <= OTHER_PROCESSOR


def test_a_bundle_of_nnunet_is_not_trained_or_exported(
    tmp_path: Path, capsys: Any, shared: Callable[..., Bundle]
) -> None:
    root = shared("aniso3d").root
    data = RESULTS / "plain3d/raw"
    assert main(["train", "--bundle", str(root), "--data", str(data), "--output", str(tmp_path / "out")]) == 2
    assert "has no configs/train.yaml" in capsys.readouterr().err
    assert main(["bundle", "export", "--bundle", str(root), "--to", "onnxruntime"]) == 2
    assert "torch alone" in capsys.readouterr().err

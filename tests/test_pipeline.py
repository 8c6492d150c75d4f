"""`segment_case` and `python -m monai.bundle run` are one computation; what comes out is calibrated and on the source grid."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import BUNDLES, EXAMPLES
from monai.bundle import ConfigWorkflow
from phantoms import oblique_affine
from PIL import Image
from small_data import drawn_eyes, eye_picture, predict_logits, set_calibration

from dicom_io.volume import Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.pipeline import Predictor, preprocess, segment_case

NAMES = [folder.name for folder in BUNDLES]
CPU = torch.device("cpu")


def test_a_predictor_stays_loaded_and_answers_arrays_as_files(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    image = nibabel.load(EXAMPLES / "images/hippocampus_003.nii.gz")
    predictor = Predictor(tiny_bundle(), "cpu")
    array = np.asarray(image.dataobj, np.float32)
    case, again = (
        predictor(array, affine_ras=image.affine),
        predictor(read_volume(EXAMPLES / "images/hippocampus_003.nii.gz")),
    )
    with pytest.raises(TypeError, match="positional"):  # RAS or LPS: the keyword says it, or the volume
        predictor(array, image.affine)  # type: ignore[misc]
    expected = segment_case(EXAMPLES / "images/hippocampus_003.nii.gz", predictor.bundle)
    for one in (case, again):
        np.testing.assert_array_equal(one.segmentation.labels, expected.segmentation.labels)
        np.testing.assert_allclose(one.image.affine_ras, image.affine, atol=1e-6)
    eyes = Predictor(tiny_bundle("retina_vessel_unet2d"), "cpu")
    picture = np.asarray(Image.open(drawn_eyes(tmp_path, 1) / "eye_1.png"), np.float32).transpose(1, 0, 2)
    expected = segment_case(tmp_path / "eye_1.png", eyes.bundle)
    np.testing.assert_array_equal(eyes(picture).segmentation.maps[0].labels, expected.segmentation.maps[0].labels)


def test_arrays_are_checked_as_files_are(tiny_bundle: Callable[..., Path]) -> None:
    predictor, affine = Predictor(tiny_bundle(), "cpu"), np.eye(4)
    array = np.random.default_rng(1).normal(size=(20, 22, 24))
    moved = np.eye(4)
    moved[:3, 3] = -40, 30, 20
    for wrong, place, words in (
        (array + 1j, affine, "holds complex128 values; one real number"),
        (np.where(array > 2, np.inf, array), affine, r"\d+ NaN or infinite voxel\(s\)"),
        (array * 1e-3 + 1e12, affine, "float32"),
        (array, moved.T, "whose last row is 0, 0, 0, 1"),
        (array, np.eye(3), "cannot be placed"),
    ):
        with pytest.raises(InputRefusedError, match=words):
            predictor(wrong, affine_ras=place)
    with pytest.raises(InputRefusedError, match="cannot be placed"):
        predictor(array[0, 0])


def in_a_corner(crop: Volume, box: tuple[slice, slice, slice], shape: tuple[int, int, int]) -> Volume:
    """An oblique image that holds the crop in a box, and large values elsewhere."""
    array = np.full(shape, 3000.0, np.float32)
    array[box] = crop.array
    affine = oblique_affine(crop.spacing_mm)
    return Volume(array, affine, crop.provenance)


def test_a_box_is_segmented_as_if_the_image_ended_there_and_is_background_elsewhere(
    tiny_bundle: Callable[..., Path], crop: Volume
) -> None:
    bundle, (i, j, k) = load_bundle(tiny_bundle()), crop.shape
    box = slice(3, 3 + i), slice(1, 1 + j), slice(5, 5 + k)
    whole = in_a_corner(crop, box, (i + 7, j + 2, k + 5))
    alone = Volume(crop.array, whole.affine_lps @ np.array([[1, 0, 0, 3], [0, 1, 0, 1], [0, 0, 1, 5], [0, 0, 0, 1]]))
    alone = replace(alone, provenance=crop.provenance)
    run = PredictConfig(ResultSettings(box=tuple((side.start, side.stop) for side in box)))
    expected, case = (segment_case(*args, keep="probabilities") for args in ((alone, bundle), (whole, bundle, run)))
    assert expected.assessment == case.assessment
    inside = np.zeros(whole.shape, bool)
    inside[box] = True
    for name in ("labels", "uncertainty"):
        own, other = (np.asarray(getattr(one.segmentation, name)) for one in (case, expected))
        np.testing.assert_array_equal(own[box], other)
        assert not own[~inside].any()
    assert expected.segmentation.labels.any()
    probabilities = np.asarray(case.segmentation.probabilities)
    np.testing.assert_array_equal(probabilities[(..., *box)], np.asarray(expected.segmentation.probabilities))
    assert {tuple(voxel) for voxel in probabilities[:, ~inside].T} == {(1.0, 0.0, 0.0)}
    assert np.asarray(case.segmentation.known.certainty)[~inside].min() == 1
    np.testing.assert_array_equal(case.segmentation.known.expected, expected.segmentation.known.expected)
    assert case.image is whole
    assert case.settings.box == run.settings.box


def test_a_box_of_a_picture_has_two_sides_and_its_overlapping_labels_are_absent_elsewhere(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle, picture = load_bundle(tiny_bundle("retina_vessel_unet2d")), drawn_eyes(tmp_path, 1) / "eye_1.png"
    run = PredictConfig(ResultSettings(box=((2, 371), (5, 346))))
    case = segment_case(picture, bundle, run, keep="probabilities", fitting=True)
    inside = (..., slice(2, 371), slice(5, 346), 0)
    kept = np.asarray(case.segmentation.known.certainty).copy()
    assert kept[inside].any()
    kept[inside] = 1.0 if bundle.outputs.background else 0.0
    assert np.unique(kept).tolist() == [float(bundle.outputs.background)]


@pytest.mark.parametrize("box", [((0, 9), (0, 9)), ((0, 9), (4, 4), (0, 9)), ((0, 9), (0, 9), (0, 900))])
def test_a_box_that_is_not_in_the_image_is_refused(
    box: tuple[tuple[int, int], ...], tiny_bundle: Callable[..., Path], crop: Volume
) -> None:
    sizes = " x ".join(map(str, crop.shape))
    with pytest.raises(InputRefusedError, match=rf"--box 0:9,.*: the image has {sizes} voxels; .* are needed"):
        segment_case(crop, load_bundle(tiny_bundle()), PredictConfig(ResultSettings(box=box)))


def test_what_replaces_values_of_a_bundle_takes_its_statements_and_asks_for_review(
    tiny_bundle: Callable[..., Path], crop: Volume
) -> None:
    root, windows = tiny_bundle(), list[int]()
    for overlap in (0.5, 0.98):
        bundle = load_bundle(root, **{"inferer::overlap": overlap})
        case = segment_case(crop, bundle, progress=lambda done, total: windows.append(total))
    assert windows[0] < windows[-1]
    assert case.settings.overrides == ("inferer::overlap=0.98",)
    assert case.assessment is not None
    assert case.assessment.verdict == "review"
    assert "fitted without inferer::overlap=0.98" in case.assessment.reasons[0]
    assert all(structure.size_interval is None for structure in case.assessment.structures)


def write_case(name: str, crop: Volume, folder: Path) -> Path:
    """One image that the bundle accepts, alone in a folder."""
    folder.mkdir(parents=True)
    if name.startswith("retina"):
        Image.fromarray(eye_picture(1)[0]).save(folder / "case.png")
        return folder / "case.png"
    nibabel.save(nibabel.Nifti1Image(crop.array, crop.affine_ras), folder / "case.nii.gz")
    return folder / "case.nii.gz"


def monai_bundle_run(root: Path, data: Path, output: Path) -> dict[str, torch.Tensor]:
    """What `inference.yaml` alone makes of the one image in `data`: its "pred" and "prob"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            config_file=str(root / "configs/inference.yaml"),
            meta_file=str(root / "configs/metadata.json"),
            logging_file=False,
            workflow_type="inference",
            bundle_root=str(root),
            dataset_dir=str(data),
            output_dir=str(output),
            device=CPU,
        )
        workflow.initialize()
        workflow.run()
        evaluator: Any = workflow.parser.get_parsed_content("evaluator")
        workflow.finalize()
    return evaluator.state.output[0]


def channel_first(array: np.ndarray, planar: bool) -> np.ndarray:
    return array[..., 0] if planar else array


@pytest.mark.parametrize("name", NAMES)
def test_monai_bundle_run_and_segment_case_give_the_same_voxels(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = set_calibration(tiny_bundle(name), 0.35, -1.1)
    image = write_case(name, crop, tmp_path / "data")
    theirs = monai_bundle_run(root, image.parent, tmp_path / "out")
    bundle = load_bundle(root)
    case = segment_case(image, bundle, keep="logits")

    ((_, probabilities, uncalibrated),) = case.second_look()
    planar = bundle.rules.planar
    labels = case.segmentation.labels[None] if bundle.outputs.one_map else case.segmentation.labels
    np.testing.assert_array_equal(channel_first(probabilities, planar), np.asarray(theirs["prob"]))
    np.testing.assert_array_equal(channel_first(labels, planar), np.asarray(theirs["pred"]))
    assert np.abs(uncalibrated - probabilities).max() > 1e-4, "the calibration changed nothing"
    assert probabilities.std() > 0
    again = segment_case(image, bundle, keep="probabilities")
    np.testing.assert_array_equal(again.segmentation.probabilities, probabilities)


def as_ensemble(root: Path) -> Path:
    """The bundle with three networks of unlike weights, written as docs/bundles.md says."""
    path = root / "configs/inference.yaml"
    text = path.read_text()
    assert text.count("\nnetworks: 1 ") == 1
    path.write_text(text.replace("\nnetworks: 1 ", "\nnetworks: 3 "))
    torch.manual_seed(5)
    torch.save(load_bundle(root).part("network_def").state_dict(), root / "models/model.pt")
    return root


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hippocampus")])
def test_an_ensemble_is_the_mean_of_its_networks_as_in_monai(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = as_ensemble(set_calibration(tiny_bundle(name), 0.35, -1.1))
    image = write_case(name, crop, tmp_path / "data")
    theirs = monai_bundle_run(root, image.parent, tmp_path / "out")
    bundle = load_bundle(root)
    case = segment_case(image, bundle, keep="probabilities", fitting=True)
    np.testing.assert_allclose(case.segmentation.probabilities, np.asarray(theirs["prob"]), atol=1e-6)
    assert (case.segmentation.labels != np.asarray(theirs["pred"])[0]).mean() < 1e-4
    one = replace(load_bundle(root))
    vars(one).update(network=bundle.network[0], feature_layer=None)  # a single member answers otherwise
    alone = segment_case(image, one, keep="probabilities", fitting=True).segmentation.probabilities
    assert np.abs(alone - case.segmentation.probabilities).max() > 1e-2
    assert case.image_features is not None
    assert np.isfinite(case.image_features).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hippocampus")])
def test_the_files_of_monai_bundle_run_lie_on_the_source_grid_and_hold_these_voxels(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = set_calibration(tiny_bundle(name), 0.35, -1.1)
    image = write_case(name, crop, tmp_path / "data")
    monai_bundle_run(root, image.parent, tmp_path / "out")
    case = segment_case(image, load_bundle(root), keep="probabilities")
    seg = nibabel.load(tmp_path / "out" / "case_seg.nii.gz")
    prob = nibabel.load(tmp_path / "out" / "case_prob.nii.gz")
    np.testing.assert_array_equal(np.asarray(seg.dataobj), case.segmentation.labels)
    np.testing.assert_array_equal(
        np.asarray(prob.dataobj, dtype=np.float32), np.moveaxis(case.segmentation.probabilities, 0, -1)
    )
    np.testing.assert_allclose(seg.affine, crop.affine_ras, atol=1e-5)
    np.testing.assert_allclose(prob.affine, crop.affine_ras, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_monai_itself_gives_the_labels_of_segment_case(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = set_calibration(tiny_bundle(name), 0.35, -1.1)
    image = write_case(name, crop, tmp_path / "data")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml"]
    command += ["--meta_file", "configs/metadata.json", "--bundle_root", ".", "--dataset_dir", str(image.parent)]
    command += ["--output_dir", str(tmp_path / "out"), "--device", "$torch.device('cpu')"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    case = segment_case(image, load_bundle(root), keep="probabilities")
    if name.startswith("retina"):
        written = np.asarray(Image.open(tmp_path / "out" / "case_seg.png")).T
        found, expected = written > 0, case.segmentation.labels[0, :, :, 0] > 0
    else:
        found, expected = (
            np.asarray(nibabel.load(tmp_path / "out" / "case_seg.nii.gz").dataobj),
            case.segmentation.labels,
        )
    # another process may take another number of threads, whose sums differ in the last bit
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hippocampus")])
def test_probabilities_sum_to_one_after_the_way_back_through_resampling(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    case = segment_case(crop, load_bundle(set_calibration(tiny_bundle(name), 0.3, -0.7)), keep="logits")
    ((_, *both),) = case.second_look()
    for probabilities in both:
        assert probabilities.shape == (3, *crop.shape)
        np.testing.assert_allclose(probabilities.sum(0), 1.0, atol=1e-5)
        assert probabilities.min() >= -1e-6
    np.testing.assert_array_equal(case.segmentation.labels, both[0].argmax(0))


def test_probabilities_sum_to_one_after_the_way_back_through_a_crop(
    tiny_bundle: Callable[..., Path], crop: Volume
) -> None:
    root = tiny_bundle()
    config = root / "configs/inference.yaml"
    cropping = (
        "- _target_: CenterSpatialCropd\n  keys: [image, label]\n  roi_size: [28, 40, 27]\n  allow_missing_keys: true\n"
    )
    marker = "preprocessing:\n  _target_: Compose\n"
    text = config.read_text()
    assert text.count(marker) == 1
    config.write_text(text.replace(marker, cropping + marker))
    case = segment_case(crop, load_bundle(set_calibration(root, 0.3, -0.7)), keep="probabilities")
    np.testing.assert_allclose(case.segmentation.probabilities.sum(0), 1.0, atol=1e-5)
    assert (case.segmentation.probabilities[:, 0, 0, 0] == [1, 0, 0]).all(), "what was cropped away is background"
    assert 0 < case.segmentation.probabilities[0, 17, 24, 16] < 1


def test_overlapping_labels_are_probabilities_of_their_own_and_their_files_hold_them_last(
    tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    image = write_case("retina", crop, tmp_path / "data")
    case = segment_case(
        image, load_bundle(set_calibration(tiny_bundle("retina_vessel_unet2d"), 0.2, -0.5)), keep="probabilities"
    )
    assert case.segmentation.probabilities.shape == (1, 371, 346, 1)
    assert case.segmentation.labels.shape == (1, 371, 346, 1)
    assert case.segmentation.label_volume.array.shape == (371, 346, 1, 1)
    np.testing.assert_array_equal(case.segmentation.labels[0], case.segmentation.probabilities[0] >= 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_uncalibrated_probabilities_differ_by_the_calibration_only(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    image = write_case(name, crop, tmp_path / "data")
    root = set_calibration(tiny_bundle(name), 0.35, -1.1)
    ((_, calibrated, uncalibrated),) = segment_case(image, load_bundle(root), keep="logits").second_look()
    set_calibration(root, 0.0)
    ((_, *plain),) = segment_case(image, load_bundle(root), keep="logits").second_look()
    assert np.abs(calibrated - uncalibrated).max() > 1e-4
    for probabilities in plain:
        np.testing.assert_array_equal(uncalibrated, probabilities)
    with pytest.raises(ValueError, match="keep='logits'"):
        next(segment_case(image, load_bundle(root)).second_look())


@pytest.mark.parametrize("name", NAMES)
def test_calibration_changes_confidence_and_not_labels(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    """On the working grid itself, where no interpolation stands between logits and labels."""
    straight = Volume(crop.array, np.diag([-1.0, -1.0, 1.0, 1.0]))
    image = write_case(name, straight, tmp_path / "data")
    root = set_calibration(tiny_bundle(name), 0.8, -2.5)
    calibrated = segment_case(image, load_bundle(root), keep="probabilities")
    set_calibration(root, 0.0)
    plain = segment_case(image, load_bundle(root), keep="probabilities")
    np.testing.assert_array_equal(calibrated.segmentation.labels, plain.segmentation.labels)
    assert np.abs(calibrated.segmentation.probabilities - plain.segmentation.probabilities).max() > 1e-4


def test_labels_follow_the_image_when_its_axes_are_turned(tiny_bundle: Callable[..., Path], crop: Volume) -> None:
    straight = Volume(crop.array, np.diag([1.0, -1.0, 1.0, 1.0]))
    turned_affine = straight.affine_lps @ np.array([[0, -1, 0, 33], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    turned = Volume(np.ascontiguousarray(crop.array.transpose(2, 0, 1)[:, ::-1, :]), turned_affine)
    bundle = load_bundle(set_calibration(tiny_bundle(), 0.2, -0.4))
    first, second = (
        segment_case(straight, bundle, keep="probabilities"),
        segment_case(turned, bundle, keep="probabilities"),
    )
    assert len(np.unique(first.segmentation.labels)) > 1
    np.testing.assert_array_equal(
        second.segmentation.label_volume.on_grid_of(straight).array, first.segmentation.labels
    )


def test_tta_averages_logits_over_the_mirror_images_that_the_bundle_names(
    tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    bundle = load_bundle(tiny_bundle("hippocampus_mri_unet3d"))
    assert bundle.mirror_axes == (0,)
    image = preprocess(crop, bundle)["image"]
    flipped = image.clone()
    flipped.set_array(image.as_tensor().flip(1))
    plain, mirrored = (replace(bundle.windows, mirror_axes=axes) for axes in ((), bundle.mirror_axes))
    engine = bundle.engine(ResultSettings())
    by_hand = (predict_logits(image, engine, plain) + predict_logits(flipped, engine, plain).flip(1)) / 2
    torch.testing.assert_close(predict_logits(image, engine, mirrored), by_hand, atol=1e-6, rtol=0)


def test_tta_of_a_bundle_without_mirror_axes_is_the_plain_prediction(
    tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    bundle = load_bundle(tiny_bundle("hippocampus_mri_unet2d"), mirror_axes=[])
    plain, averaged = (
        segment_case(crop, bundle, keep="probabilities"),
        segment_case(crop, bundle, PredictConfig(ResultSettings(tta=True)), keep="probabilities"),
    )
    np.testing.assert_array_equal(averaged.segmentation.probabilities, plain.segmentation.probabilities)
    assert averaged.settings == plain.settings  # and so are record, UIDs and statements


def test_a_bundle_gives_the_same_voxels_twice(tiny_bundle: Callable[..., Path], crop: Volume) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle(), 0.3, -0.7))
    first, second = segment_case(crop, bundle, keep="probabilities"), segment_case(crop, bundle, keep="probabilities")
    np.testing.assert_array_equal(first.segmentation.probabilities, second.segmentation.probabilities)


def test_time_is_noted_for_every_stage(tiny_bundle: Callable[..., Path], crop: Volume) -> None:
    case = segment_case(crop, load_bundle(tiny_bundle()), keep="probabilities")
    assert list(case.seconds) == ["read", "preprocess", "predict", "postprocess", "assess"]
    assert all(seconds >= 0 for seconds in case.seconds.values())


def test_an_image_that_breaks_the_rules_is_refused_before_any_work(
    tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    picture = write_case("retina", crop, tmp_path / "data")
    with pytest.raises(InputRefusedError, match="2D picture"):
        segment_case(picture, load_bundle(tiny_bundle("hippocampus_mri_unet3d")), keep="probabilities")
    with pytest.raises(InputRefusedError, match="3D volume"):
        segment_case(crop, load_bundle(tiny_bundle("retina_vessel_unet2d")), keep="probabilities")
    constant = crop.with_array(np.full(crop.shape, 3.0, np.float32))
    with pytest.raises(InputRefusedError, match="every voxel"):
        segment_case(constant, load_bundle(tiny_bundle("hippocampus_mri_unet2d")), keep="probabilities")

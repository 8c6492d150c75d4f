"""Steps of post-processing and thresholds do what they say, box by box and in `monai.bundle run` alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import scipy.ndimage
from conftest import REPOSITORY
from monai.bundle import ConfigWorkflow
from numpy.typing import NDArray
from PIL import Image
from small_data import documented, drawn_eyes, few_examples, set_calibration, with_more_steps, with_thresholds

from dicom_io.volume import Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.calibration.fitted import begin_fitted, change_fitted
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.gathering import tidied
from monai_unet_app.inference import mean_field_crf, pieces
from monai_unet_app.pipeline import segment_case
from monai_unet_app.result_files import structure_rows

SQUARE = np.ones((3, 3, 3), bool)


def blobs(count: int, shape: tuple[int, ...] = (22, 19, 14), part: float = 0.35) -> NDArray[np.uint8]:
    """Lopsided labels up to `count`, with bridges, specks and holes."""
    noise = scipy.ndimage.gaussian_filter(np.random.default_rng(5).normal(size=shape), 1.0)
    labels = np.digitize(noise, np.quantile(noise, np.linspace(1 - part, 1, count + 1)[:-1]))
    return labels.astype(np.uint8)


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    eroded = scipy.ndimage.binary_erosion(mask, SQUARE, border_value=1)
    return np.asarray(scipy.ndimage.binary_dilation(eroded, SQUARE))


def closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(scipy.ndimage.binary_erosion(scipy.ndimage.binary_dilation(mask, SQUARE), SQUARE, border_value=1))


def test_opening_and_closing_of_label_maps_are_those_of_scipy(tiny_bundle: Callable[..., Path]) -> None:
    volume, labels = Volume(np.zeros((22, 19, 14), np.float32), np.eye(4)), blobs(3)
    steps = load_bundle(with_more_steps(tiny_bundle(), exclusive=True)).part("steps")
    expected = labels.copy()
    for n in (1, 3):
        expected[(labels == n) & ~opened(labels == n)] = 0
    got = tidied(volume, labels, [steps["opening"]({"structures": [1, 3]})])
    np.testing.assert_array_equal(got, expected)
    assert 0 < (got != labels).sum() < (labels > 0).sum()
    expected = labels.copy()
    for n in (1, 2):
        expected[(expected == 0) & closed(expected == n)] = n
    got = tidied(volume, labels, [steps["closing"]({"structures": [1, 2]})])
    np.testing.assert_array_equal(got, expected)
    assert (got != labels).any()


def test_opening_and_closing_of_channels_leave_the_other_channels_alone(tiny_bundle: Callable[..., Path]) -> None:
    volume = Volume(np.zeros((22, 19, 14), np.float32), np.eye(4))
    labels = np.stack([blobs(2) == 1, blobs(2) == 2, blobs(1) == 1]).astype(np.uint8)
    steps = load_bundle(with_more_steps(tiny_bundle("retina_vessel_unet2d"), exclusive=False)).part("steps")
    for name, other in (("opening", opened), ("closing", closed)):
        got = tidied(volume, labels, [steps[name]({"structures": [1, 3]})])
        expected = np.stack([other(labels[0] > 0), labels[1], other(labels[2] > 0)])
        np.testing.assert_array_equal(got, expected)
        assert (got != labels).any()


def choose(root: Path, *steps: str, structures: Sequence[int] = (1,)) -> Path:
    change_fitted(
        root, "tidy", steps=[{"step": step, "structures": list(structures), "why": "for a test"} for step in steps]
    )
    return root


def by_monai(root: Path, data: Path, output: Path) -> Path:
    """The folder with what `python -m monai.bundle run` writes."""
    workflow = ConfigWorkflow(
        config_file=str(root / "configs/inference.yaml"),
        meta_file=str(root / "configs/metadata.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(root),
        dataset_dir=str(data),
        output_dir=str(output),
        device="$torch.device('cpu')",
    )
    workflow.initialize()
    workflow.run()
    return output


def with_field(root: Path) -> Path:
    """A planned bundle with a random field in its `tidy`, as docs/bundles.md says."""
    config = root / "configs/inference.yaml"
    config.write_text(re.sub(r"(?m)^tidy: .*\n", lambda old: documented("field:"), config.read_text()))
    return root


def test_a_threshold_cuts_alike_box_by_box_and_in_monai_bundle_run(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = set_calibration(tiny_bundle("retina_vessel_unet2d"), 0.3, -0.7)
    eye = drawn_eyes(tmp_path / "eyes", 1) / "eye_1.png"
    (tmp_path / "eyes/eye_1_1stHO.png").unlink()
    first, stated = segment_case(eye, load_bundle(root), keep="probabilities"), fitted_to(load_bundle(root), "plain")
    cut = round(float(np.median(np.asarray(first.segmentation.probabilities))), 4)
    with_more_steps(with_thresholds(root).root, exclusive=False)
    change_fitted(choose(root, "opening"), "thresholds", values=[cut])
    bundle = load_bundle(root)
    assert bundle.thresholds == (cut,)
    assert fitted_to(bundle, "plain") != stated
    case = segment_case(eye, bundle, keep="probabilities")
    probability = np.asarray(case.segmentation.probabilities)[0, ..., 0]
    expected = scipy.ndimage.binary_dilation(
        scipy.ndimage.binary_erosion(probability >= np.float32(cut), SQUARE[0], border_value=1), SQUARE[0]
    )
    np.testing.assert_array_equal(case.segmentation.labels[0, ..., 0], expected)
    assert not np.array_equal(case.segmentation.labels, first.segmentation.labels)
    assert [row["threshold"] for row in structure_rows(case.segmentation, case.assessment, case.bundle.thresholds)] == [
        cut
    ]
    out = by_monai(root, tmp_path / "eyes", tmp_path / "out")
    written = np.asarray(Image.open(out / "eye_1_seg.png")).T > 0
    np.testing.assert_array_equal(written, expected)
    monkeypatch.setattr(pieces.pieces, "__defaults__", (None, 200_000))
    np.testing.assert_array_equal(segment_case(eye, bundle).segmentation.labels, case.segmentation.labels)


def test_post_processing_of_volumes_is_alike_in_monai_bundle_run(
    tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    root = set_calibration(tiny_bundle("hippocampus_mri_unet3d"), 0.3, -0.9)
    data = few_examples(tmp_path / "data", ("hippocampus_003",)) / "images"
    image = data / "hippocampus_003.nii.gz"
    plain = segment_case(image, load_bundle(root)).segmentation.labels
    with_field(with_more_steps(root, exclusive=True))
    choose(root, "opening", "closing", structures=[1, 2])
    expected = segment_case(image, load_bundle(root)).segmentation
    assert (expected.labels != plain).any()
    assert len(np.unique(expected.labels)) > 1
    (path,) = by_monai(root, data, tmp_path / "out").glob("*_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), expected.labels)


def test_steps_that_the_owner_writes_into_tidy_are_done_and_outlast_a_calibration(
    tiny_bundle: Callable[..., Path],
) -> None:
    """As docs/how-to/calibrate.md says."""
    root = tiny_bundle()
    page = (REPOSITORY / "docs/how-to/calibrate.md").read_text()
    (lines,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "tidy:" in block]
    config = root / "configs/inference.yaml"
    config.write_text(re.sub(r"(?m)^tidy: .*\n", lambda old: lines, config.read_text()))
    begin_fitted(root)
    bundle, labels = load_bundle(root), np.zeros((22, 19, 14), np.uint8)
    labels[2:8, 2:8, 2:8] = 1  # 216 mm3
    labels[12:17, 2:7, 2:7] = 1  # a smaller piece of structure 1
    labels[2:7, 12:17, 2:7] = labels[12:15, 12:15, 10:13] = 2  # two pieces of structure 2, the second of 27 mm3
    expected = labels.copy()
    expected[12:17, 2:7, 2:7] = expected[12:15, 12:15, 10:13] = 0
    volume = Volume(np.zeros(labels.shape, np.float32), np.eye(4))
    np.testing.assert_array_equal(tidied(volume, labels, bundle.result.tidy), expected)


def test_a_field_that_does_not_fit_is_refused_before_the_network_runs(
    tiny_bundle: Callable[[str], Path], crop: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = with_field(tiny_bundle("hippocampus_mri_unet3d"))
    monkeypatch.setattr(mean_field_crf, "MOST_BYTES", 1_000_000)
    windows: list[int] = []
    with pytest.raises(InputRefusedError, match="34 x 48 x 33 voxels need"):
        segment_case(crop, load_bundle(root), None, lambda n, _: windows.append(n))
    assert not windows


def test_thresholds_that_are_none_are_refused(tiny_bundle: Callable[[str], Path]) -> None:
    root = with_thresholds(tiny_bundle("retina_vessel_unet2d")).root
    change_fitted(root, "thresholds", values=[0.4, 0.6])
    with pytest.raises(BundleError, match=r"a number between 0 and 1 for each of 1 label"):
        load_bundle(root).check_configs()
    assert load_bundle(tiny_bundle("hippocampus_mri_unet3d")).thresholds == ()

"""MONAI's Invertd fills what a crop cut away with 0 in every channel; a bundle gives it to the background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUNDLES
from monai.transforms import Invertd, Lambdad
from small_data import set_calibration

from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.gathering import Gathered
from monai_unet_app.inference.pieces import ResultSteps
from monai_unet_app.metrics.outputs import outputs_of
from monai_unet_app.metrics.reliability import count_reliability
from monai_unet_app.pipeline import finished, preprocess

EXCLUSIVE = [
    folder.name for folder in BUNDLES if "\noutputs: exclusive" in (folder / "configs/inference.yaml").read_text()
]
CROP = "SpatialCropd\n  keys: [image, label]\n  roi_start: [3, 5, 2]\n  roi_end: [30, 41, 31]"
CROP_AND_PAD = "ResizeWithPadOrCropd\n  keys: [image, label]\n  spatial_size: [28, 60, 27]"
each_change = pytest.mark.parametrize("change", [CROP, CROP_AND_PAD], ids=["crop", "crop and pad"])
each_exclusive = pytest.mark.parametrize("name", EXCLUSIVE)


def cropping_bundle(root: Path, change: str) -> Bundle:
    """The bundle with one more transform at the end of its preprocessing."""
    config, marker = root / "configs/inference.yaml", "preprocessing:\n  _target_: Compose\n"
    text = config.read_text()
    assert text.count(marker) == 1
    config.write_text(text.replace(marker, f"- _target_: {change}\n  allow_missing_keys: true\n{marker}"))
    return load_bundle(set_calibration(root, 0.3, -0.7))


def made_up(bundle: Bundle, volume: Volume, result: ResultSteps) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (C, I, J, K) and labels (I, J, K) on the source grid, of logits that came from no network."""
    item = preprocess(volume, bundle)
    shape = (len(bundle.labels), *item["image"].shape[1:])
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    gathered = Gathered(volume, bundle, "probabilities")
    for piece in finished([(0, logits)], item, result):
        gathered.add(piece)
    assert gathered.probabilities is not None
    return gathered.probabilities, gathered.labels


def without_the_repair(bundle: Bundle) -> ResultSteps:
    """`result` less the step that follows the inversion."""
    invert, repair = bundle.result.back
    assert isinstance(invert, Invertd)
    assert isinstance(repair, Lambdad)
    return replace(bundle.result, back=[invert])


@each_exclusive
@each_change
def test_the_trap_is_there_and_the_metrics_refuse_to_count_in_it(
    name: str, change: str, tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    bundle = cropping_bundle(tiny_bundle(name), change)
    probabilities, labels = made_up(bundle, crop, without_the_repair(bundle))
    lost = (probabilities == 0).all(axis=0)
    assert 0.1 < lost.mean() < 0.9
    assert (labels[lost] == 0).all(), "the labels do not show it"
    with pytest.raises(ValueError, match=r"miss a sum of 1 by up to 1\.000 .*an inverted crop or pad fills with 0"):
        count_reliability(labels.astype(np.uint8), probabilities, outputs=outputs_of(True))


@each_exclusive
@each_change
@pytest.mark.parametrize("calibrated", [True, False], ids=["calibrated", "uncalibrated"])
def test_what_was_cut_away_is_background_and_nothing_else_changes(
    name: str, change: str, calibrated: bool, tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    bundle = cropping_bundle(tiny_bundle(name), change)
    raw, _ = made_up(bundle, crop, without_the_repair(bundle))
    missing = 1 - raw.sum(
        axis=0
    )  # between 0 and 1 where the way back through the spacing mixes what is known with nothing
    probabilities, labels = made_up(bundle, crop, bundle.result if calibrated else bundle.uncalibrated_result)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1.0, atol=1e-5)
    assert set(probabilities[0, missing == 1]) == {1.0}
    if calibrated:
        np.testing.assert_array_equal(probabilities[1:], raw[1:])
        np.testing.assert_allclose(probabilities[0], raw[0] + missing, atol=1e-6)
    counts = count_reliability(labels.astype(np.uint8), probabilities, outputs=outputs_of(True))
    assert counts.decisions == missing.size
    assert counts.count[1, -1] >= np.count_nonzero(missing == 1), "background, and certain of it"

"""A third kind of output, of counted pieces, goes through the whole way without a change outside of two modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import label
from small_data import eye_picture

from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.calibration.fit import CalibrationFit
from monai_unet_app.config import OutputConfig
from monai_unet_app.evaluate.reference import evaluation_plan
from monai_unet_app.metrics.boxes import regions_of
from monai_unet_app.metrics.case_scores import CaseArrays, CaseCounter
from monai_unet_app.metrics.outputs import OUTPUTS, Outputs
from monai_unet_app.pipeline import segment_case
from monai_unet_app.results import write_results


def numbered(masks: np.ndarray) -> np.ndarray:
    """The pieces of each mask, (S, *spatial), numbered from 1."""
    return np.stack([label(mask)[0] for mask in masks])


class CountedOutputs(Outputs):
    """Each channel is the probability of a structure, in whose label map every piece has a number of its own."""

    name = "counted"

    def label_type(self, structures: int) -> type[np.uint16]:
        return np.uint16

    def decided(self, probabilities: Any, /) -> Any:
        return type(probabilities)(numbered(np.asarray(probabilities) >= 0.5))

    def labels(self, logits: Any, /) -> Any:
        return torch.from_numpy(numbered(logits.numpy() >= 0))


class Numberd:
    """For `tidy` of a bundle with counted outputs."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        pieces = numbered(np.asarray(data["pred"]) > 0).astype(np.float32)
        return {**data, "pred": MetaTensor(torch.from_numpy(pieces), meta=data["pred"].meta)}


def test_counted_pieces_are_decided_scored_calibrated_and_written(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OUTPUTS, "counted", CountedOutputs())  # type: ignore[arg-type]  # a dict
    bundle = load_bundle(tiny_bundle("retina_vessel_unet2d"), outputs="counted", probable=[two_blobs], tidy=[Numberd()])
    picture = Volume(np.moveaxis(eye_picture(1)[0], 0, 1)[:, :, None], np.eye(4), Provenance("image"), planar=True)
    case = segment_case(picture, bundle, keep="probabilities")

    assert np.unique(case.segmentation.labels).tolist() == [0, 1, 2]
    (structure,) = case.segmentation.structures
    assert structure.voxels == 20 * 30 + 10 * 40
    assert structure.confidence == pytest.approx(0.9)

    (region,) = regions_of(picture.without_flat_axis(case.segmentation.labels), 2, 1)
    assert region.box == (slice(30, 110), slice(40, 80))

    write_results(case, "eye", OutputConfig(("png", "nifti")), tmp_path / "out")
    (row,) = json.loads((tmp_path / "out/eye_result.json").read_text())["structures"]
    assert (row["pixels"], row["channel"]) == (1000, 0)

    plan, classes = evaluation_plan(bundle), picture.without_flat_axis(case.segmentation.classes)
    counter = CaseCounter(CaseArrays("eye", "eye", classes, classes, None, (1.0, 1.0), 1.0), plan)
    counter.add((slice(None), slice(None)), picture.without_flat_axis(np.asarray(case.segmentation.probabilities)))
    (scores,) = counter.scores().classes
    assert (scores.dice, scores.truth_size, scores.components.truth) == (1.0, 1000, 2)

    fit = CalibrationFit(lambda logits, parameters: logits * parameters["a"].exp(), {"a": 0.0}, bundle.outputs.name)
    fit.add(torch.full((1, 8, 8), 2.0), torch.ones(1, 8, 8))
    assert fit.fit().nll_before == pytest.approx(np.log1p(np.exp(-2)))


def two_blobs(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """In place of the probabilities of the network: 0.9 in two rectangles, 0.1 elsewhere."""
    probabilities = torch.full_like(data["pred"], 0.1)
    probabilities[0, 30:50, 40:70] = probabilities[0, 100:110, 40:80] = 0.9
    return {**data, "pred": probabilities}

"""MONAI Label's bundle app reads a bundle by fixed rules, followed here step by step; the app itself is not installed.

It takes `configs/inference.yaml` alone, sets `bundle_root` and `device`, builds `network_def`, loads `models/model.pt` into
it, names its labels after `channel_def` of the first output, applies the transforms of `preprocessing` one by one, runs
`inferer`, and applies those of `postprocessing` without `SaveImaged`. (MONAI Label 0.8.5, monailabel/tasks/infer/bundle.py; it
needs torchvision and sam2, which cannot be installed beside a CPU torch here.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BUNDLES, EXAMPLES
from monai.bundle import ConfigItem, ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose, SaveImaged

from monai_unet_app.bundle import load_bundle
from monai_unet_app.pipeline import segment_case


class AsMonaiLabelDoes:
    """A bundle, read by these rules."""

    def __init__(self, root: Path) -> None:
        self.config = ConfigParser()
        self.config.read_config(root / "configs/inference.yaml")
        self.config.config.update({"bundle_root": str(root)})
        self.network = self.config.get_parsed_content("network_def", instantiate=True)
        stored = torch.load(root / "models/model.pt", map_location="cpu", weights_only=True)
        self.network.load_state_dict(stored.get("model", stored), strict=True)
        self.config.config.update({"device": "cpu"})
        if self.config.ref_resolver.items.get("device"):
            self.config.ref_resolver.items["device"] = ConfigItem(config="cpu", id="device")
        formats = json.loads((root / "configs/metadata.json").read_text())["network_data_format"]
        self.key_image = next(iter(formats["inputs"]))
        self.key_pred, pred = next(iter(formats["outputs"].items()))
        self.labels = {name.lower(): int(n) for n, name in pred["channel_def"].items() if name.lower() != "background"}

    def transforms(self, name: str) -> Sequence[Any]:
        found = self.config.get_parsed_content(name, instantiate=True)
        return list(found.transforms) if isinstance(found, Compose) else found

    def segment(self, image: Path) -> np.ndarray:
        data: Any = {self.key_image: str(image)}
        for transform in self.transforms("preprocessing"):
            data = transform(data)
        inferer = self.config.get_parsed_content("inferer", instantiate=True)
        with torch.no_grad():
            data[self.key_pred] = inferer(data[self.key_image][None], self.network.eval())[0]
        for transform in self.transforms("postprocessing"):
            if not isinstance(transform, SaveImaged):
                data = transform(data)
        return np.asarray(data[self.key_pred])


@pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_has_what_is_asked_for_by_name(root: Path) -> None:
    bundle = AsMonaiLabelDoes(root)
    assert isinstance(bundle.config.get_parsed_content("inferer", instantiate=True), Inferer)
    assert bundle.transforms("preprocessing")
    assert bundle.transforms("postprocessing")
    segments = load_bundle(root).segments
    offset = 0 if load_bundle(root).outputs.one_map else 1
    assert sorted(bundle.labels.values()) == [segment.number - offset for segment in segments]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # of numpy and scikit-image, by MONAI
def test_what_it_segments_is_what_we_segment() -> None:
    root = next(
        path for path in BUNDLES if path.name == "hippocampus_mri_unet2d"
    )  # it has no rule for several networks
    image = sorted((EXAMPLES / "images").iterdir())[5]
    found = AsMonaiLabelDoes(root).segment(image)
    expected = segment_case(image, load_bundle(root))
    from_ras = np.rint(found[0]).astype(np.uint8)
    assert from_ras.shape == expected.segmentation.labels.shape
    different = np.count_nonzero(from_ras != expected.segmentation.labels)
    assert different <= 2e-4 * np.count_nonzero(expected.segmentation.labels)  # sums of windows in another order
    assert np.count_nonzero(expected.segmentation.labels) > 1000

"""A result in pieces is the result as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUNDLES
from small_data import set_calibration

from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.errors import BundleError
from monai_unet_app.gathering import Gathered
from monai_unet_app.inference import pieces as module
from monai_unet_app.pipeline import finished, preprocess, segment_case

each_name = pytest.mark.parametrize("name", [folder.name for folder in BUNDLES])


def image_for(name: str, crop: Volume) -> Volume:
    if name.startswith("retina"):
        pixels = np.random.default_rng(4).integers(0, 255, (731, 702, 1, 3)).astype(np.float32)
        return Volume(pixels, np.eye(4), planar=True)
    # Oblique and anisotropic, with its axes in another order
    turn, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.9, 1.3, 0.7])
    return Volume(crop.array.transpose(2, 0, 1), affine)


def gathered(bundle: Bundle, volume: Volume, logits: torch.Tensor, cuts: list[int]) -> Gathered:
    item = preprocess(volume, bundle)
    starts = [0, *cuts]
    stops = [*cuts, logits.shape[1]]
    rows = [(a, logits[:, a:b].clone()) for a, b in zip(starts, stops, strict=True)]
    return Gathered.of(volume, bundle, finished(rows, item, bundle.result), "probabilities")


@each_name
def test_pieces_give_the_same_result_whatever_their_size(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle(name), 0.3, -0.7))
    volume = image_for(name, crop)
    shape = preprocess(volume, bundle)["image"].shape[1:]
    logits = 3 * torch.randn((len(bundle.labels), *shape), generator=torch.Generator().manual_seed(5))
    logits[-1, : shape[0] // 2] -= 70  # a class that is absent from some pieces
    whole = gathered(bundle, volume, logits, [])
    for count, cuts in ((25, [1, 2, 5, 9]), (4, [3, 17])):
        monkeypatch.setattr(module.pieces, "__defaults__", (None, 4 * logits.numel() // count))
        parts = gathered(bundle, volume, logits, cuts)
        np.testing.assert_array_equal(parts.labels, whole.labels)
        np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=3e-7)
        assert (parts.probabilities == 0).sum() > (whole.probabilities == 0).sum()
        np.testing.assert_allclose(*(own.segmentation().known.certainty for own in (parts, whole)), atol=3e-7)
        np.testing.assert_allclose(parts.uncertainty, whole.uncertainty, atol=2e-6)
        np.testing.assert_allclose(parts.expected, whole.expected, rtol=1e-7)
        np.testing.assert_allclose(parts.doubt, whole.doubt, rtol=1e-6)


def test_a_plain_list_gives_the_same_voxels_as_named_parts(tiny_bundle: Callable[[str], Path], crop: Volume) -> None:
    root = set_calibration(tiny_bundle("hippocampus_mri_unet3d"), 0.3, -0.7)
    volume = image_for("hippocampus_mri_unet3d", crop)
    named = segment_case(volume, load_bundle(root), keep="probabilities")
    config = root / "configs/inference.yaml"
    text = config.read_text().replace('result: "$@probable + @back + @decide + @tidy"\n', "")
    first, second = text.index("\nprobable:\n"), text.index("\n# Post-processing that `calibrate`")
    steps = "".join(
        line for line in text[first:second].splitlines(keepends=True) if line not in ("back:\n", "decide:\n")
    )
    config.write_text(text[:first] + steps.replace("\nprobable:\n", "\nresult:\n") + text[second:])
    bundle = load_bundle(root)
    assert not bundle.result.named
    plain = segment_case(volume, bundle, keep="probabilities")
    np.testing.assert_array_equal(plain.segmentation.labels, named.segmentation.labels)
    np.testing.assert_array_equal(plain.segmentation.probabilities, named.segmentation.probabilities)


def test_a_step_that_looks_everywhere_sees_the_whole_image(
    tiny_bundle: Callable[[str], Path], crop: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle("hippocampus_mri_unet3d"), 0.3, -0.7))
    seen: list[int] = []

    def shifted(item: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(item["pred"][0].numel())
        return {**item, "pred": item["pred"] - item["pred"].mean()}

    result = replace(bundle.result, probable=[shifted, *bundle.result.probable])
    item = preprocess(crop, bundle)
    logits = torch.randn((3, *item["image"].shape[1:]), generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(module.pieces, "__defaults__", (None, 4000))
    (piece,) = finished([(0, logits)], item, result)
    assert seen[-1] == logits[0].numel()
    assert tuple(piece.probabilities.shape[1:]) == crop.shape


def test_a_bundle_without_a_result_is_refused_by_name(tiny_bundle: Callable[[str], Path]) -> None:
    root = tiny_bundle("hippocampus_mri_unet3d")
    config = root / "configs/inference.yaml"
    config.write_text(config.read_text().replace("\nresult:", "\nanswer:").replace("@result", "@answer"))
    with pytest.raises(BundleError, match="does not give `result`"):
        _ = load_bundle(root).result


def test_pieces_narrower_than_what_the_calibration_looks_at_are_widened(
    tiny_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle("hippocampus_mri_unet3d"), 0.3, -0.7))
    volume = Volume(
        np.random.default_rng(3).normal(100, 30, (23, 26, 17)).astype(np.float32), np.diag([-1.0, -1, 1, 1])
    )
    logits = 3 * torch.randn((3, 23, 26, 17), generator=torch.Generator().manual_seed(5))
    whole = gathered(bundle, volume, logits, [])
    monkeypatch.setattr(
        module.pieces, "__defaults__", (None, 4 * 3 * 17 * 16)
    )  # 4 x 4 columns, the last ones of 3 and 2
    parts = gathered(bundle, volume, logits, [5, 21])
    np.testing.assert_array_equal(parts.labels, whole.labels)
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=3e-7)

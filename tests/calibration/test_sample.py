"""A calibration that is fitted on boxes of a large image is that of the whole image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_data import few_examples, form_of, set_calibration

from monai_unet_app.bundle import load_bundle
from monai_unet_app.calibration import sample
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.calibration.fit import CalibrationFit, Fitted
from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.schemas import validate
from monai_unet_app.metrics.outputs import outputs_of

REGION = {exclusive: form_of("region", exclusive=exclusive) for exclusive in (True, False)}


def smooth(seed: int, shape: tuple[int, ...] = (32, 24, 24)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with regions, and labels drawn from probabilities that are half as sure."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 1, 1, 1))).float() * 20
    chances = torch.softmax(logits / 2, 0).flatten(1).T
    label = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(seed)).T.reshape(1, *shape)
    return logits, label.float()


def in_rows(logits: torch.Tensor, thick: int = 5) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, logits.shape[1], thick):
        yield start, logits[:, start : start + thick].clone()


def fitted(cases: list[tuple[torch.Tensor, torch.Tensor]], *, exclusive: bool = True) -> Fitted:
    form = REGION[exclusive]
    fit = CalibrationFit(form.function, form.start, exclusive, unchecked=True)
    for logits, label in cases:
        fit.add(in_rows(logits), label)
    return fit.fit()


def drawn_of(logits: torch.Tensor, label: torch.Tensor, *, reach: int = 2) -> tuple[list[sample.Part], sample.Drawn]:
    parts, drawn = sample.parts_of(in_rows(logits), label, outputs_of(True), lambda channels, dims: (reach,) * dims)
    assert drawn is not None
    return parts, drawn


def test_a_small_case_is_taken_whole() -> None:
    logits, label = smooth(0)
    parts, drawn = sample.parts_of(in_rows(logits), label, outputs_of(True), lambda channels, dims: 1 / 0)
    (part,) = parts
    assert drawn is None
    assert torch.equal(part.logits, logits)
    assert (part.times, part.share) == (1.0, 1.0)


@pytest.mark.parametrize(("together", "count"), [(0, 100), (1 << 22, 40 + 9)])
def test_all_boxes_together_are_the_image_to_the_last_voxel(
    monkeypatch: pytest.MonkeyPatch, together: int, count: int
) -> None:
    """Five layers of 4 x 5 boxes: in three the first axis has its whole margin, and the borders of the others make 9 kinds."""
    shape = (37, 30, 34)
    logits = 3 * torch.randn((3, *shape), generator=torch.Generator().manual_seed(1))  # labels meet everywhere
    label = smooth(1, shape)[1]
    numbers = {"reach": 2, "far": 0.2, "near": 0.9}

    def likelihood(part: sample.Part) -> float:
        calibrated = part.of_boxes(REGION[True].function(part.logits, numbers))
        return part.share * float(outputs_of(True).negative_log_likelihood(calibrated, part.truth))

    monkeypatch.setattr(sample, "SAMPLE_BYTES", 4 * logits.numel() - 1)
    monkeypatch.setattr(sample, "_AT_BOUNDARIES", 1000.0)  # room for all of them
    monkeypatch.setattr(sample, "_TOGETHER_BYTES", together)
    parts, drawn = drawn_of(logits, label)
    assert drawn == sample.Drawn(1, 100, 100, 0, 0)
    assert len(parts) == count
    whole = sample.Part(logits, label, (slice(None),) * 3)
    assert sum(map(likelihood, parts)) == pytest.approx(likelihood(whole), rel=1e-5)


def test_a_box_stands_for_those_of_its_kind_that_were_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.zeros(2, 80, 16, 16)
    logits[0] = 1.0
    logits[1, 64:] = 2.0  # from here on the other label: rows 62 to 65 have a boundary within 2 voxels
    label = torch.zeros(1, 80, 16, 16)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 8 * 4 * 2 * 12**3)
    monkeypatch.setattr(sample, "_TOGETHER_BYTES", 0)
    parts, drawn = drawn_of(logits, label)
    assert drawn == sample.Drawn(1, 6, 8, 2, 32)  # two layers of 2 x 2 boxes beside the boundary, of ten
    shares = [part.share for part in parts]
    assert sum(shares[:6]) == pytest.approx(8 / 40)
    assert sum(shares[6:]) == pytest.approx(32 / 40)
    assert {part.times for part in parts} == {8 / 6, 32 / 2}
    again, _ = drawn_of(logits, label)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("exclusive", [True, False], ids=["exclusive classes", "overlapping labels"])
def test_the_fit_on_a_sample_finds_what_the_fit_on_whole_images_finds(
    exclusive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [smooth(seed, (32, 24, 16)) for seed in (1, 2)]
    if not exclusive:
        generator = torch.Generator().manual_seed(9)
        cases = [(z, torch.bernoulli(torch.sigmoid(z / 2), generator=generator)) for z, _ in cases]
    whole = fitted(cases, exclusive=exclusive)
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 4 * cases[0][0].numel() * 3 // 4)
    part = fitted(cases, exclusive=exclusive)
    assert whole.drawn is None
    assert part.drawn is not None
    assert part.drawn.cases == 2
    assert part.nll_before == pytest.approx(whole.nll_before, rel=0.1)
    assert part.nll_after == pytest.approx(whole.nll_after, rel=0.1)
    far, near = (part.parameters[name] - whole.parameters[name] for name in ("far", "near"))
    # The temperature where the mixture is about 0.5, as in most of this image
    assert abs(far + 0.5 * near) < 0.15


def test_a_calibration_that_looks_everywhere_needs_the_whole_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_deviation(logits: torch.Tensor, numbers: Mapping[str, Any]) -> torch.Tensor:
        return logits * torch.exp(-torch.as_tensor(numbers["a"])) / logits.std() ** numbers["a"]

    logits, label = smooth(1, (24, 20, 18))
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 1000)
    fit = CalibrationFit(by_deviation, {"a": 0.0}, exclusive=True)
    fit.add(in_rows(logits), label)
    assert fit.fit().drawn is None


def test_a_sample_of_one_voxel_thin_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, label = smooth(1, (60, 50, 1))
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 4 * logits.numel() // 2)
    parts, drawn = drawn_of(logits, label)
    assert drawn.of_boundaries + drawn.of_elsewhere == 8 * 7
    assert {part.logits.shape[3] for part in parts} == {1}


def test_the_record_of_a_calibration_says_what_was_drawn(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = by_partition(few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143")))["calibration"]
    root = set_calibration(tiny_bundle(), 0.0)
    calibrate_bundle(load_bundle(root), rows, unchecked=True)
    assert "sample" not in json.loads((root / "models/calibration.json").read_text())
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 1 << 18)
    found = calibrate_bundle(load_bundle(root), rows, unchecked=True)
    record = json.loads((root / "models/calibration.json").read_text())
    assert found.drawn is not None
    assert record["sample"] == found.drawn.document()
    assert record["sample"]["cases"] == 2
    assert "2 large case(s)" in found.drawn.sentence
    validate(record, "calibration")


def test_boxes_stand_for_the_voxels_that_have_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, label = smooth(4)
    marked = label.clone()
    marked[:, :13] = 255
    marked[:, :, ::3] = 255
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 4 * logits.numel() // 4)
    parts, drawn = sample.parts_of(in_rows(logits), marked, outputs_of(True), lambda channels, dims: (2.0,) * dims, 255)
    assert drawn is not None
    assert drawn.at_boundaries + drawn.elsewhere < drawn.of_boundaries + drawn.of_elsewhere
    assert sum(part.share for part in parts) == pytest.approx(1)
    voxels = sum(part.times * int(part.counts.sum()) for part in parts)
    assert voxels == pytest.approx(int((marked != 255).sum()))
    # A voxel of a box counts as often in the mean as there are voxels that it stands for
    for part in parts:
        assert part.share == pytest.approx(part.times * int(part.counts.sum()) / voxels)
        own, truth = part.pairs(part.logits)
        assert own.shape[1] == truth.shape[1] == int(part.counts.sum())
        assert 255 not in truth

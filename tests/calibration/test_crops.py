"""Of a large image a crop near its structures is corrupted, in the place where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from segmentations import segments
from small_data import few_examples, set_calibration

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibration import corruptions, statement_fit
from monai_unet_app.calibration.corruptions import CORRUPTIONS, TRUNCATED, crop_around
from monai_unet_app.calibration.statement_fit import StatementConfig, near_structures, state_confidence
from monai_unet_app.confidence.quality import SOUND, Sample
from monai_unet_app.confidence.statements import THRESHOLDS, StructureMeasurement
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.rules import InputRules, least_shape
from monai_unet_app.errors import InputRefusedError, NoRoomError
from monai_unet_app.evaluate.case_selection import Networks
from monai_unet_app.inference.windows import WindowSettings

AFFINE = np.array([[0.0, 0.8, 0.0, 10.0], [-0.8, 0.0, 0.0, 20.0], [0.0, 0.0, 2.0, -30.0], [0.0, 0.0, 0.0, 1.0]])
RULES = InputRules(channels=1)


def bundle_of(rules: InputRules = RULES, window: int = 1) -> Bundle:
    """With windows of so many voxels along each axis, and as little overlap, on the grid of the image."""
    windows = WindowSettings((window,) * (2 if rules.planar else 3), 0.0, 1, "gaussian", 0.125, "constant", 0.0)
    return cast(Bundle, SimpleNamespace(windows=windows, rules=rules, grid_spacing=None, preprocessing=None))


def large(monkeypatch: pytest.MonkeyPatch, voxels: int = 1000) -> Segmentation:
    monkeypatch.setattr(statement_fit, "LARGE_VOXELS", voxels)
    monkeypatch.setattr(statement_fit, "CROP_VOXELS", voxels)
    numbers = np.arange(60 * 50 * 20, dtype=np.float32).reshape(60, 50, 20)
    labels = np.zeros((60, 50, 20), np.uint8)
    labels[52:58, 3:9, 8:12] = 1
    labels[4:7, 40:44, 3:5] = 2
    return Segmentation(Volume(numbers, AFFINE), labels, segments("a", "b"))


def test_a_crop_lies_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    image = large(monkeypatch).image
    assert crop_around(image, (30, 25, 10), (14, 14, 5)) == np.s_[23:37, 18:32, 8:13]
    assert crop_around(image, (0, 49, 19), (14, 14, 5)) == np.s_[0:14, 36:50, 15:20]
    assert crop_around(image, (30, 25, 10), (20, 14, 20)) == np.s_[20:40, 18:32, 0:20]


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        (1, (14, 14, 5)),  # voxels of 0.8 x 0.8 x 2 mm; 980 of 1000
        (10, (10, 10, 4)),  # one window of 1000 voxels; the crop is narrower along K than the window
        (12, (12, 12, 5)),  # one window of 1728 voxels, since there is no smaller one
    ],
)
def test_a_crop_is_as_long_in_mm_along_every_axis_and_its_windows_are_counted(
    monkeypatch: pytest.MonkeyPatch, window: int, shape: tuple[int, int, int]
) -> None:
    part = near_structures(large(monkeypatch), bundle_of(window=window), 0)
    assert part.image.shape == shape


def test_the_crop_of_a_large_image_holds_a_structure_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = large(monkeypatch), set()
    for seed in range(12):
        part = near_structures(truth, bundle_of(), seed)
        assert part.image.shape == (14, 14, 5)
        first = int(part.image.array[0, 0, 0])
        i, j, k = (int(n) for n in np.unravel_index(first, truth.image.shape))
        assert np.array_equal(part.image.array, truth.image.array[i : i + 14, j : j + 14, k : k + 5])
        assert np.array_equal(part.labels, truth.labels[i : i + 14, j : j + 14, k : k + 5])
        np.testing.assert_allclose(part.image.affine_lps[:3, 3], (AFFINE @ [i, j, k, 1])[:3])
        assert part.foreground.any()
        found |= set(np.unique(part.labels)) - {0}
        assert near_structures(truth, bundle_of(), seed).image.array[0, 0, 0] == first
    assert found == {1, 2}


def test_a_small_image_and_an_image_without_structures_have_their_own_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = large(monkeypatch)
    empty = Segmentation(truth.image, np.zeros_like(truth.labels), truth.segments)
    assert near_structures(empty, bundle_of(), 0).image.array[7, 7, 2] == truth.image.array[30, 25, 10]
    monkeypatch.setattr(statement_fit, "LARGE_VOXELS", 60 * 50 * 20)
    assert near_structures(truth, bundle_of(), 0) is truth


def test_overlapping_structures_are_cropped_with_their_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = large(monkeypatch)
    masks = Segmentation(truth.image, np.stack([truth.labels > 0, truth.labels == 2]).astype(np.uint8), truth.segments)
    part = near_structures(masks, bundle_of(), 3)
    assert part.labels.shape == (2, 14, 14, 5)
    assert part.foreground.any()


def test_a_crop_is_as_large_as_the_bundle_demands(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = large(monkeypatch)
    # Right-left is the second array axis here: 30 mm of 0.8 mm are 37.5 voxels
    rules = InputRules(channels=1, extent_mm=((30.0, 8.0, 26.0), (999.0,) * 3))
    assert least_shape(truth.image, rules) == (10, 38, 13)
    assert near_structures(truth, bundle_of(rules), 0).image.shape == (10, 38, 13)
    picture = Volume(np.zeros((9, 7, 1)), np.eye(4), planar=True)
    assert least_shape(picture, InputRules(channels=1, planar=True, extent_mm=((5.0, 6.0), (9.0, 9.0)))) == (5, 6, 1)


@pytest.mark.parametrize("name", sorted([*CORRUPTIONS, TRUNCATED]))
def test_every_corruption_works_on_a_crop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = near_structures(large(monkeypatch), bundle_of(), 0)
    image, labels = corruptions.corrupted(part.image, part.label_volume.array, name, 0)
    assert image.shape == labels.shape


def test_the_gate_sees_sound_crops_beside_corrupted_ones_and_the_file_says_so(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = by_partition(few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143")))["calibration"]
    root = set_calibration(tiny_bundle(), 0.0)
    seen: list[Sample] = []
    monkeypatch.setattr(statement_fit, "MOST_CORRUPTED", 2)
    monkeypatch.setattr(statement_fit.QualityGate, "fit", lambda samples, coverage: seen.extend(samples))
    config = StatementConfig(coverage=0.6)
    state_confidence(load_bundle(root), rows, config=config)
    assert "crops" not in json.loads((root / "configs/confidence.json").read_text())["settings"]["plain"]
    assert [sample.kind for sample in seen].count(SOUND) == 4
    seen.clear()
    monkeypatch.setattr(statement_fit, "LARGE_VOXELS", 60_000)  # a window of the tiny bundle has 49,152
    monkeypatch.setattr(statement_fit, "CROP_VOXELS", 50_000)
    state_confidence(load_bundle(root), rows, config=config)
    crops = json.loads((root / "configs/confidence.json").read_text())["settings"]["plain"]["crops"]
    assert crops == {"cases": 2, "voxels": 50_000}
    assert [sample.kind for sample in seen].count(SOUND) > 4


def test_an_image_that_is_refused_needs_no_gate_and_one_that_finds_no_room_ends_the_fit(
    tiny_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Volume(np.zeros((30, 40, 30), np.float32), np.eye(4))
    truth = Segmentation(image, np.zeros(image.shape, np.uint8), segments("a", "b"))
    networks = Networks(load_bundle(tiny_bundle("hippocampus_mri_unet3d")), {})
    observations = statement_fit._Observations(networks, PredictConfig())

    def refused_by(kind: type[InputRefusedError]) -> None:
        def refusing(*_: object, **__: object) -> None:
            raise kind("it needs more")

        monkeypatch.setattr(statement_fit, "segment_case", refusing)
        observations._add_changed({"id": "case", "subject": "s"}, SOUND, truth, truth)

    refused_by(InputRefusedError)
    assert observations.samples == []
    with pytest.raises(NoRoomError):
        refused_by(NoRoomError)


@pytest.mark.parametrize(("subjects", "stated"), [(8, False), (9, True)])
def test_wider_intervals_need_corrupted_images_of_nine_subjects_or_the_reason_is_written(
    subjects: int, stated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = SimpleNamespace(looks_fine=lambda *_: True)
    monkeypatch.setattr(statement_fit.QualityGate, "fit", lambda *_: gate)
    networks = cast(Networks, SimpleNamespace(bundle=SimpleNamespace(wholes=())))
    observations = statement_fit._Observations(networks, PredictConfig())
    rows = [StructureMeasurement(f"s{n}", 1, 5.0, 5.0 + n / 10, 0.001, np.zeros(len(THRESHOLDS))) for n in range(12)]
    sample = cast(Sample, SimpleNamespace(structure=1, features=None))
    observations.measured, observations.changed = rows, [([row], [sample]) for row in rows[:subjects]]
    found = observations.fitted(StatementConfig())
    assert found.sizes is not None  # of twelve sound images
    assert (found.elsewhere is not None) == stated
    assert found.why_not.get("sizes_elsewhere", "").startswith("of 8 calibration subject(s)") != stated

"""Post-processing is taken where it helps for sure, and stands in fitted.json; inference.yaml stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_data import numbered_discs, plan_bundle, tilted_volumes, with_thresholds

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibration import tidying
from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError
from monai_unet_app.evaluate.case_selection import Networks, Row
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.gathering import tidied
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.write import write_plan
from monai_unet_app.training.checkpoints import forget_figures

Spoil = Callable[[NDArray[np.uint8], int], None]


def discs(folder: Path) -> Path:
    """Pictures whose labels are one structure."""
    for file in (numbered_discs(folder, 8) / "labels").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8)).save(file)
    return folder


def planned(data: Path, root: Path, **said: object) -> tuple[Bundle, list[Row]]:
    write_plan(plan_bundle(PlanConfig(data, **said), lambda network, i, o: 1e-6 * network.voxels), root)
    return load_bundle(root), list(by_partition(data, own_splits=root / "configs/splits.json")["train"])


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[Bundle, list[Row]]:
    data = tilted_volumes(tmp_path / "volumes", 8)
    return planned(data, tmp_path / "bundle", structures={2: "liver", 5: "spleen"})


def findings(bundle: Bundle) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((bundle.root / "models/fitted.json").read_text())
    return document


def tries(bundle: Bundle, rows: list[Row], spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> dict[str, tidying.Trial]:
    """What is tried on results that are the truth, spoilt."""
    turn = iter(range(len(rows)))

    def answer(volume: Volume, network: Bundle, **settings: object) -> SimpleNamespace:
        number = next(turn)
        labels = read_reference(rows[number], volume, network).labels.astype(np.uint8)
        spoil(labels, number)
        probabilities = None if network.outputs.one_map else labels.astype(np.float32)
        return SimpleNamespace(segmentation=Segmentation(volume, labels, network.segments, probabilities))

    monkeypatch.setattr(tidying, "segment_case", answer)
    trials = tidying.choose_tidy(Networks(bundle, {}), rows)
    return {trial.step["step"]: trial for trial in trials}


def test_stray_pieces_of_one_structure(volumes: tuple[Bundle, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, rows = volumes

    def spoil(labels: NDArray[np.uint8], number: int) -> None:
        labels[25:28, 2:5, 1:3] = 1  # 18 voxels of liver, far from it

    found = tries(bundle, rows, spoil, monkeypatch)
    largest = found["largest"]
    assert largest.taken
    assert largest.step["structures"] == [1]
    assert largest.what == "only the largest piece: Liver"
    voxels = np.count_nonzero(read_reference(rows[0], image_of(rows[0]), bundle).labels == 1)
    assert largest.gain.value == pytest.approx(1 - 2 * voxels / (2 * voxels + 18))
    assert not found["holes"].taken
    assert not found["islands"].taken  # nothing is left to remove


def image_of(row: Row) -> Volume:
    return read_volume(row["image"])


def test_holes_and_islands(volumes: tuple[Bundle, list[Row]], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, rows = volumes

    def spoil(labels: NDArray[np.uint8], number: int) -> None:
        labels[11, 12, 6] = 0  # the middle of the liver
        labels[20, 16, 9:] = 2  # the spleen is whole
        labels[3 : 5 + number % 2, 20, 2] = 2

    found = tries(bundle, rows, spoil, monkeypatch)
    assert found["holes"].taken
    assert 1 in found["holes"].step["structures"]
    assert found["largest"].step["structures"] == [2]


def test_what_does_not_surely_help_is_not_taken(
    volumes: tuple[Bundle, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, rows = volumes

    def spoil(labels: NDArray[np.uint8], number: int) -> None:
        if number == 0:  # it would help one of eight
            labels[25:28, 2:5, 1:3] = 1

    found = tries(bundle, rows, spoil, monkeypatch)
    assert not any(trial.taken for trial in found.values())
    tidying.write_tidy(bundle, list(found.values()))
    assert findings(bundle)["tidy"]["steps"] == []
    assert findings(bundle)["tidy"]["why"] == "0 of 3 tried"


def test_islands_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, rows = planned(discs(tmp_path / "pictures"), tmp_path / "bundle", structures={1: "disc"})

    def spoil(labels: NDArray[np.uint8], number: int) -> None:
        free = np.argwhere(labels[0, 1:-1, 1:-1, 0] == 0)
        for i, j in free[:: max(1, len(free) // 40)]:
            labels[0, i + 1, j + 1, 0] = 1  # single pixels

    found = tries(bundle, rows, spoil, monkeypatch)
    assert not found["largest"].taken  # many discs
    assert found["islands"].taken
    assert "px" in found["islands"].what


def test_what_is_written_does_the_same_and_is_taken_back_with_other_weights(
    volumes: tuple[Bundle, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, rows = volumes

    def spoil(labels: NDArray[np.uint8], number: int) -> None:
        labels[25:28, 2:5, 1:3] = 1

    before, config = findings(bundle), (bundle.root / "configs/inference.yaml").read_bytes()
    tidying.write_tidy(bundle, list(tries(bundle, rows, spoil, monkeypatch).values()))
    (step,) = findings(bundle)["tidy"]["steps"]
    assert step["why"].startswith("only the largest piece: Liver; Dice +0.")
    image = image_of(rows[0])
    labels = read_reference(rows[0], image, bundle).labels.astype(np.uint8)
    spoilt = labels.copy()
    spoil(spoilt, 0)
    written = load_bundle(bundle.root)
    assert np.array_equal(tidied(image, spoilt, written.result.tidy), labels)
    assert (bundle.root / "configs/inference.yaml").read_bytes() == config
    forget_figures(bundle.root)
    assert findings(bundle) == before


def test_a_structure_that_no_case_has_does_not_stop_the_choice(
    volumes: tuple[Bundle, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, rows = volumes
    truth = tidying.read_reference

    def without_spleen(row: Row, volume: Volume, of: Bundle) -> Segmentation:
        labels = truth(row, volume, of).labels
        return Segmentation(volume, np.where(labels == 2, 0, labels), of.segments)

    monkeypatch.setattr(tidying, "read_reference", without_spleen)

    def spoil(labels: NDArray[np.uint8], number: int) -> None:
        labels[labels == 2] = 0
        labels[25:28, 2:5, 1:3] = 1

    assert tries(bundle, rows, spoil, monkeypatch)["largest"].step["structures"] == [1]


def test_post_processing_of_the_owner_stays(volumes: tuple[Bundle, list[Row]]) -> None:
    bundle, _ = volumes
    assert tidying.chooses_tidy(bundle)
    config = bundle.root / "configs/inference.yaml"
    own = re.sub(r"(?m)^tidy: .*$", "tidy: [{_target_: FillHolesd, keys: pred}]", config.read_text())
    config.write_text(own)
    assert not tidying.chooses_tidy(load_bundle(bundle.root))


def test_a_step_of_the_owner_is_tried_and_one_that_needs_the_image_is_refused(
    volumes: tuple[Bundle, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, rows = volumes
    config = bundle.root / "configs/inference.yaml"
    text = config.read_text()

    def spoil(labels: NDArray[np.uint8], number: int) -> None:
        labels[labels == 2] = 1

    def offering(step: str) -> Bundle:
        imported = "- $from monai_unet_app.inference.mean_field_crf import MeanFieldCRFd\n"
        config.write_text(
            text.replace("imports:\n", f"imports:\n{imported}").replace("steps:\n", f"steps:\n  {step}\n")
        )
        return load_bundle(bundle.root)

    swap = offering("swap: \"$lambda s: monai.transforms.Lambdad('pred', lambda p: p)\"")
    found = tries(swap, rows, spoil, monkeypatch)
    assert (found["swap"].what, found["swap"].taken) == ("swap", False)
    field = offering("field: \"$lambda s: MeanFieldCRFd('pred')\"")
    with pytest.raises(BundleError, match="step `field` needs prob and image"):
        tries(field, rows, spoil, monkeypatch)


def answering(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[Row],
    probabilities: Callable[[NDArray[np.uint8], int], NDArray[np.float64]],
) -> None:
    """Results with probabilities that are made of the truth and the number of the case."""
    turn = iter(range(len(rows)))

    def answer(volume: Volume, network: Bundle, **settings: object) -> SimpleNamespace:
        number = next(turn)
        p = probabilities(read_reference(rows[number], volume, network).labels, number).astype(np.float32)
        labels = p.argmax(0) if network.outputs.one_map else p >= 0.5
        return SimpleNamespace(segmentation=Segmentation(volume, labels.astype(np.uint8), network.segments, p))

    monkeypatch.setattr(tidying, "segment_case", answer)


@pytest.mark.parametrize("surely", [True, False])
def test_a_threshold_is_taken_where_it_surely_helps(
    surely: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_bundle, rows = planned(discs(tmp_path / "pictures"), tmp_path / "bundle", structures={1: "disc"})
    before = findings(planned_bundle)
    bundle = with_thresholds(planned_bundle.root)

    def probabilities(truth: NDArray[np.uint8], number: int) -> NDArray[np.float64]:
        # Of each picture, or of one in eight, the network is 0.45 sure of the left half; it is 0.35 sure where nothing is
        found = np.where(truth > 0, 0.9, 0.35)
        if surely or number == 0:
            found[:, : truth.shape[1] // 2][truth[:, : truth.shape[1] // 2] > 0] = 0.45
        return found

    answering(monkeypatch, rows, probabilities)
    trials = tidying.choose_tidy(Networks(bundle, {}), rows)
    (threshold,) = [trial for trial in trials if trial.step["step"] == "thresholds"]
    assert threshold.taken == surely
    tidying.write_tidy(bundle, trials)
    if not surely:
        assert findings(bundle)["thresholds"] == before["thresholds"]
        return
    assert load_bundle(bundle.root).thresholds == pytest.approx((0.402,), abs=1e-4)
    found = []
    for row in rows:
        truth = read_reference(row, image_of(row), bundle).labels > 0
        right = np.count_nonzero(truth[:, truth.shape[1] // 2 :])
        found.append(2 * right / (right + truth.sum()))
    assert threshold.gain.value == pytest.approx(1 - np.mean(found))
    assert not any(trial.taken for trial in trials if trial is not threshold)  # nothing is left to do

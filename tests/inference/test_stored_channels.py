"""Probabilities that are too large for the memory are on disk, and everything made of them is the same."""

from __future__ import annotations

import errno
import gzip
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms import KeepLargestConnectedComponentd
from small_data import set_calibration

from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.confidence.statements import Confidence, RiskStatement
from monai_unet_app.config import OutputConfig
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.inference import pieces, stored_channels
from monai_unet_app.inference.stored_channels import StoredChannels, StoredMap, channels_of, map_of
from monai_unet_app.machine_memory import taken_by
from monai_unet_app.pipeline import segment_case
from monai_unet_app.results import write_channels, write_results

each_name = pytest.mark.parametrize("name", ["hippocampus_mri_unet3d", "retina_vessel_unet2d"])


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Makes every result come in pieces, and from the call on all probabilities wait on disk."""
    monkeypatch.setattr(pieces.pieces, "__defaults__", (None, 200_000))
    return lambda: monkeypatch.setattr(stored_channels, "IN_MEMORY_BYTES", 0)


def image_for(name: str, crop: Volume) -> Volume:
    if name.startswith("retina"):
        pixels = np.random.default_rng(4).integers(0, 255, (731, 702, 1, 3)).astype(np.float32)
        return Volume(pixels, np.eye(4), planar=True)
    return crop


def test_channels_come_back_from_boxes_that_came_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = np.random.default_rng(3).normal(size=(3, 5, 6, 4)).astype(np.float32)
    stored = StoredChannels(values.shape, np.float32)
    boxes = [(i, j) for i in (slice(3, 5), slice(0, 3)) for j in (slice(0, 1), slice(1, 6))]
    for i, j in boxes:
        stored[..., i, j, slice(0, 4)] = values[:, i, j]
    assert stored.shape == values.shape
    np.testing.assert_array_equal(stored[1], values[1])
    np.testing.assert_array_equal(list(stored), values)
    with pytest.raises(IndexError, match="3 channels, and channel 3"):
        stored[3]
    assert not list(tmp_path.iterdir()), "a file without a name"


def test_a_map_on_disk_is_what_was_written_and_takes_no_memory_but_where_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = np.random.default_rng(3).normal(size=(300, 400, 100)).astype(np.float32)  # 48 MB

    def written() -> StoredMap:
        stored = StoredMap(values.shape, np.float32)
        for start in range(0, 300, 20):
            stored[..., start : start + 20, 0:150, 0:100] = values[start : start + 20, :150]
            stored[..., start : start + 20, 150:400, 0:100] = values[start : start + 20, 150:]
        return stored

    assert taken_by(written) < 1.5e7
    stored, mask = written(), values > 1
    assert taken_by(lambda: stored[10:20, 5:300, 7]) < 1e7
    np.testing.assert_array_equal(stored[10:20, 5:300, 7], values[10:20, 5:300, 7])
    np.testing.assert_array_equal(stored[mask], values[mask])
    np.testing.assert_array_equal(np.asarray(stored), values)
    stored[mask] = np.float32(7)
    assert (stored[mask] == 7).all()
    assert (stored.shape, len(stored), stored.dtype) == (values.shape, 300, np.float32)
    assert not list(tmp_path.iterdir()), "a file without a name"


def test_a_small_map_stays_in_memory() -> None:
    assert isinstance(map_of((20, 30, 40), np.float32), np.ndarray)
    assert isinstance(map_of((400, 300, 300), np.float32), StoredMap)


def test_a_disk_without_room_is_refused_before_the_work_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputRefusedError, match=r"No space left on device\); 33030 MB more"):
        channels_of((105, 512, 512, 300), np.float32)


def test_probabilities_on_disk_are_those_in_memory(
    tiny_bundle: Callable[[str], Path], crop: Volume, on_disk: Callable[[], None]
) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle("hippocampus_mri_unet3d"), 0.3, -0.7))
    held = segment_case(crop, bundle, keep="probabilities").segmentation
    on_disk()
    stored = segment_case(crop, bundle, keep="probabilities").segmentation
    assert isinstance(stored.probabilities, StoredChannels)
    np.testing.assert_array_equal(stored.labels, held.labels)
    np.testing.assert_array_equal(np.asarray(stored.probabilities), held.probabilities)
    for own, before in zip(stored.structures, held.structures, strict=True):
        assert own.confidence == before.confidence
        np.testing.assert_array_equal(own.probability_on_grid, before.probability_on_grid)


def test_probabilities_of_overlapping_labels_are_held_once(
    tiny_bundle: Callable[[str], Path], crop: Volume, on_disk: Callable[[], None]
) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle("retina_vessel_unet2d"), 0.3, -0.7))
    on_disk()
    found = segment_case(image_for("retina", crop), bundle, keep="probabilities").segmentation
    assert found.known is not None
    assert found.known.certainty is found.probabilities
    (vessels,) = found.structures
    np.testing.assert_array_equal(found.labels[0], vessels.probability_on_grid >= 0.5)
    assert vessels.confidence == pytest.approx(vessels.probability_on_grid[found.labels[0] > 0].mean(dtype=np.float64))


def test_a_voxel_that_tidying_moves_has_the_probability_of_its_new_class(
    tiny_bundle: Callable[[str], Path], crop: Volume, on_disk: Callable[[], None]
) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle("hippocampus_mri_unet3d"), 0.3, -0.9))
    on_disk()
    before = segment_case(crop, bundle, keep="probabilities").segmentation
    bundle.__dict__["result"] = replace(
        bundle.result, tidy=[KeepLargestConnectedComponentd("pred", applied_labels=[1, 2])]
    )
    after = segment_case(crop, bundle).segmentation
    assert after.probabilities is None
    assert after.known is not None
    assert before.known is not None
    moved = after.labels != before.labels
    assert moved.any()
    expected = np.take_along_axis(np.asarray(before.probabilities), after.labels[None].astype(int), axis=0)[0]
    np.testing.assert_array_equal(after.known.certainty, expected)
    assert (np.asarray(after.known.certainty)[moved] != np.asarray(before.known.certainty)[moved]).any()


def cautious_bundle(root: Path, cut: float, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    bundle = load_bundle(root)
    risk = RiskStatement(0.1, {segment.number: cut for segment in bundle.segments}, 12)
    monkeypatch.setattr("monai_unet_app.pipeline.read_confidence", lambda *_: Confidence(risk=risk))
    return bundle


@each_name
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_cautious_masks_are_cut_while_probabilities_pass(
    name: str,
    where: str,
    tiny_bundle: Callable[[str], Path],
    crop: Volume,
    on_disk: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = cautious_bundle(set_calibration(tiny_bundle(name), 0.3, -0.7), 0.3, monkeypatch)
    image = image_for(name, crop)
    if where == "disk":
        on_disk()
    segment_case(image, bundle)  # the first run of a network may differ from the second in the last bits
    whole = segment_case(image, bundle, keep="probabilities")
    case = segment_case(image, bundle, keep="cautious")
    assert case.segmentation.probabilities is None
    expected = np.stack([p >= 0.3 for p in whole.segmentation.segment_probabilities])
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(np.asarray(case.cautious), expected)
    for one, folder in ((case, tmp_path / "a"), (whole, tmp_path / "b")):
        write_results(one, "case", OutputConfig(cautious=True), folder)
        written = nibabel.load(folder / "case_cautious.nii.gz")
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.moveaxis(np.asarray(written.dataobj), -1, 0), expected)


def test_cautious_masks_that_nothing_states_are_refused_before_the_network_runs(
    tiny_bundle: Callable[[str], Path], crop: Volume
) -> None:
    windows: list[int] = []
    with pytest.raises(UsageError, match="does not state at which probability"):
        segment_case(
            crop,
            load_bundle(tiny_bundle("hippocampus_mri_unet3d")),
            None,
            lambda n, _: windows.append(n),
            keep="cautious",
        )
    assert not windows


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_file_of_channels_one_by_one_is_that_of_the_whole_array(
    ending: str, dtype: type, crop: Volume, tmp_path: Path
) -> None:
    channels = (100 * np.random.default_rng(3).random((3, *crop.shape))).astype(dtype)
    one_by_one = write_channels(iter(channels), 3, crop, tmp_path / f"a.{ending}")
    whole = write_nifti(np.moveaxis(channels, 0, -1), crop, tmp_path / f"b.{ending}")
    opened = gzip.open if ending.endswith("gz") else open
    with opened(one_by_one, "rb") as first, opened(whole, "rb") as second:
        assert first.read() == second.read()

"""The sliding window gives the very voxels that MONAI's inferers give."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from small_data import predict_logits

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.inference import blend as blend_module
from monai_unet_app.inference.blend import Blend
from monai_unet_app.inference.engines.torch_engine import TorchEngine
from monai_unet_app.inference.predict import predict_rows
from monai_unet_app.inference.spool import Spool
from monai_unet_app.inference.windows import WindowSettings, plan_windows

CPU = torch.device("cpu")


def network(axes: int, channels: int = 1) -> torch.nn.Module:
    torch.manual_seed(axes)
    convolution = torch.nn.Conv2d if axes == 2 else torch.nn.Conv3d
    return torch.nn.Sequential(convolution(channels, 3, 3, padding=1), torch.nn.Tanh())


def picture(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).normal(0.3, 1, shape).astype(np.float32))


def settings(window: tuple[int, ...], **changed: object) -> WindowSettings:
    values = {
        "overlap": 0.5,
        "batch": 4,
        "mode": "gaussian",
        "sigma_scale": 0.125,
        "padding_mode": "constant",
        "padding_value": 0.0,
    }
    return WindowSettings(window=window, **{**values, **changed})  # type: ignore[arg-type]


def inferer_arguments(chosen: WindowSettings) -> dict[str, object]:
    return {
        "sw_batch_size": chosen.batch,
        "overlap": chosen.overlap,
        "mode": chosen.mode,
        "sigma_scale": chosen.sigma_scale,
        "padding_mode": chosen.padding_mode,
        "cval": chosen.padding_value,
    }


VOLUMES = {
    "a volume larger than the window": ((1, 13, 21, 10), settings((8, 10, 8))),
    "odd sizes and a third overlapping": ((1, 17, 11, 9), settings((7, 5, 3), overlap=0.33)),
    "no overlap": ((1, 9, 14, 12), settings((4, 6, 4), overlap=0.0)),
    "weights all one": ((1, 13, 21, 10), settings((8, 10, 8), mode="constant")),
    "a volume smaller than the window along one axis": ((1, 5, 21, 10), settings((8, 10, 8))),
    "a volume smaller than the window along all axes": ((2, 5, 7, 6), settings((8, 12, 9), padding_value=-1.5)),
    "a volume as large as the window": ((1, 8, 10, 8), settings((8, 10, 8))),
    "reflected padding": ((1, 7, 21, 10), settings((8, 10, 8), padding_mode="reflect")),
    "a window that takes a whole axis": ((1, 9, 21, 10), settings((8, -1, 8))),
    "one window at a time": ((1, 13, 21, 10), settings((8, 10, 8), batch=1, sigma_scale=0.3)),
    "a picture with colours": ((3, 31, 45), settings((16, 16), overlap=0.25, batch=3)),
    "a picture smaller than the window": ((3, 11, 45), settings((16, 16), mode="constant")),
}


@pytest.mark.parametrize(("shape", "chosen"), VOLUMES.values(), ids=VOLUMES.keys())
def test_sliding_windows_equal_monai_s_bit_for_bit(shape: tuple[int, ...], chosen: WindowSettings) -> None:
    image, net = picture(*shape), network(len(shape) - 1, shape[0])
    with torch.inference_mode():
        expected = SlidingWindowInferer(chosen.window, **inferer_arguments(chosen))(image[None], net)[0]
    found = predict_logits(image, TorchEngine(net, CPU), chosen)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(1, 7, 21, 18), (1, 19, 9, 16)], ids=["larger", "smaller than the window"])
def test_a_2d_network_on_a_volume_equals_monai_s_slice_inferer_bit_for_bit(axis: int, shape: tuple[int, ...]) -> None:
    window = [12, 10]
    image, net = picture(*shape), network(2)
    slices = settings((*window[:axis], 1, *window[axis:]), batch=5)
    with torch.inference_mode():
        expected = SliceInferer(spatial_dim=axis, roi_size=window, **inferer_arguments(slices))(image[None], net)[0]
    assert torch.equal(predict_logits(image, TorchEngine(net, CPU, slice_axis=axis), slices), expected)


@pytest.mark.parametrize("mirror_axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_mirrored_prediction_is_the_mean_over_every_combination_of_flips(mirror_axes: tuple[int, ...]) -> None:
    # Of this size the windows of a mirror image stand where those of the image stand, so every flip has the same weights
    image, net, chosen = picture(1, 12, 16, 9), network(3), settings((6, 8, 6))
    subsets = chain.from_iterable(combinations(mirror_axes, n) for n in range(len(mirror_axes) + 1))
    with torch.inference_mode():
        inferer = SlidingWindowInferer(chosen.window, **inferer_arguments(chosen))
        by_hand = []
        for subset in subsets:
            dims = [axis + 1 for axis in subset]
            by_hand.append(torch.flip(inferer(torch.flip(image, dims)[None], net)[0], dims))
    found = predict_logits(image, TorchEngine(net, CPU), replace(chosen, mirror_axes=mirror_axes))
    assert len(by_hand) == 2 ** len(mirror_axes)
    torch.testing.assert_close(found, torch.stack(by_hand).mean(0), atol=2e-6, rtol=0)


def test_mirrored_prediction_of_a_mirror_image_is_the_mirror_image_of_the_prediction() -> None:
    image, net, chosen = picture(1, 11, 14, 9), network(3), settings((6, 8, 6))
    engine = TorchEngine(net, CPU)
    both = replace(chosen, mirror_axes=(0, 2))
    plain = predict_logits(image, engine, both)
    turned = predict_logits(image.flip(1), engine, both).flip(1)
    torch.testing.assert_close(turned, plain, atol=1e-6, rtol=0)
    assert not torch.allclose(
        predict_logits(image.flip(1), engine, chosen).flip(1), predict_logits(image, engine, chosen)
    )


def test_windows_cover_every_voxel_and_lie_inside_the_padded_image() -> None:
    plan = plan_windows((5, 21, 10), (8, 10, 3), 0.4)
    covered = np.zeros(plan.padded_shape, int)
    for window in plan.windows:
        place = window.place
        assert tuple(s.stop - s.start for s in place) == (8, 10, 3)
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(place, plan.padded_shape, strict=True))
        covered[place] += 1
    assert covered.min() >= 1
    assert plan.padded_shape == (8, 21, 10)
    assert plan.inside == (slice(1, 6), slice(0, 21), slice(0, 10))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
@pytest.mark.parametrize("shape", [(5, 21, 10), (8, 10, 3), (9, 11, 4), (16, 20, 6), (40, 1, 7)])
def test_windows_are_counted_without_a_list_of_them(
    shape: tuple[int, ...], mirror_axes: tuple[int, ...], overlap: float
) -> None:
    plan = plan_windows(shape, (8, 10, 3), overlap, mirror_axes)
    assert plan.count == len(plan.windows)


@pytest.mark.parametrize(("window", "overlap"), [((4, 4), 0.5), ((4, 4, 4), 1.0), ((4, 4, 4), -0.1)])
def test_a_plan_that_makes_no_sense_is_refused_with_its_values(window: tuple[int, ...], overlap: float) -> None:
    with pytest.raises(ValueError, match=str(overlap)):
        plan_windows((9, 9, 9), window, overlap)


def test_windows_that_agree_blend_to_what_they_agree_on() -> None:
    plan = plan_windows((9, 14), (6, 6), 0.5)
    blend = Blend(plan, settings((6, 6)), CPU, 2)
    truth, rows = picture(2, 9, 14), []
    for window in plan.windows:
        blend.add((window,), truth[(slice(None), *window.place)][None].clone())
        rows += [values for _, values in blend.finished()]
    torch.testing.assert_close(torch.cat(rows, 1), truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("most_rows", [1, 2, 5, 100])
@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
@pytest.mark.parametrize("shape", [(1, 23, 14, 9), (1, 5, 14, 9)], ids=["larger", "smaller than the window"])
def test_rows_come_in_order_as_soon_as_no_window_can_change_them(
    shape: tuple[int, ...], mirror_axes: tuple[int, ...], most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blend_module, "MOST_ROWS", most_rows)
    image, engine, chosen = (
        picture(*shape),
        TorchEngine(network(3), CPU),
        settings((7, 8, 6), batch=1, mirror_axes=mirror_axes),
    )
    begun: list[int] = []
    plan = plan_windows(shape[1:], chosen.window, chosen.overlap, mirror_axes)
    found = []
    given = predict_rows(image, engine, chosen, lambda done, _: begun.append(done))
    for start, rows in given:
        assert start == sum(part.shape[1] for part in found)
        assert rows.shape[1] <= most_rows
        # The windows still to come begin behind these rows, and some window before touched them
        coming = [window.place[0].start - plan.inside[0].start for window in plan.windows[begun[-1] :]]
        assert all(begin >= start + rows.shape[1] for begin in coming)
        found.append(rows)
    assert torch.equal(torch.cat(found, 1), predict_logits(image, engine, chosen))


@pytest.mark.parametrize("batch", [1, 3])
def test_sums_that_wait_on_disk_change_no_bit(batch: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blend_module, "MOST_ROWS", 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written: list[int] = []
    put = Spool.put
    monkeypatch.setattr(Spool, "put", lambda self, tensor: written.append(tensor.numel()) or put(self, tensor))
    image, engine = picture(1, 22, 23, 9), TorchEngine(network(3), CPU)
    chosen = settings((8, 9, 6), batch=batch, mirror_axes=(1,))
    expected = predict_logits(image, engine, chosen)
    assert not written
    assert torch.equal(predict_logits(image, engine, replace(chosen, most_bytes=0)), expected)
    assert sum(written) > image.numel()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputRefusedError, match=r"No space left on device.*TMPDIR.*--memory-limit"):
        predict_logits(picture(1, 29, 40, 11), TorchEngine(network(3), CPU), settings((8, 9, 6), most_bytes=0))


def test_windows_of_mirror_images_are_those_that_each_mirror_image_has_by_itself() -> None:
    shape, window, axes = (23, 14, 9), (7, 8, 6), (0, 2)
    own = plan_windows(shape, window, 0.5)
    both = plan_windows(shape, window, 0.5, axes)
    assert len(both.windows) == 4 * len(own.windows)
    for mirrored in ((), (0,), (2,), (0, 2)):
        covered = [np.zeros(shape, int), np.zeros(shape, int)]
        for entry in both.windows:
            if entry.mirrored == mirrored:
                covered[0][entry.place] += 1
        for entry in own.windows:
            covered[1][entry.place] += 1
        np.testing.assert_array_equal(covered[0], np.flip(covered[1], mirrored))


def test_progress_counts_every_window_up_to_all_of_them() -> None:
    calls: list[tuple[int, int]] = []
    chosen = settings((6, 6), batch=4)
    predict_logits(
        picture(1, 13, 14), TorchEngine(network(2), CPU), chosen, lambda done, total: calls.append((done, total))
    )
    windows = len(plan_windows((13, 14), (6, 6), 0.5).windows)
    assert [done for done, _ in calls] == [*range(4, windows, 4), windows]
    assert {total for _, total in calls} == {windows}


def test_the_engine_predicts_in_eval_mode_and_keeps_no_gradient() -> None:
    net = torch.nn.Sequential(network(2), torch.nn.Dropout(0.9)).train()
    result = TorchEngine(net, CPU)(picture(2, 1, 8, 8)).logits
    assert not net.training
    assert not result.requires_grad
    assert torch.equal(result, TorchEngine(net, CPU)(picture(2, 1, 8, 8)).logits)

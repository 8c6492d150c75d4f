"""Images like those of the reference pass, others are flagged; a layer is watched whatever the windows."""

from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_unet_app.confidence import shift
from monai_unet_app.confidence.shift import LEAST_SUBJECTS, LayerMeans, ShiftDetector, image_features
from monai_unet_app.inference.engines.torch_engine import TorchEngine

SPACING = (1.0, 0.9, 2.5)


def image(seed: int) -> np.ndarray:
    """A smooth blob, off the centre, with a little noise: each a bit different."""
    generator = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 30, 12)), indexing="ij")
    centre, width = generator.normal([0.2, -0.1, 0.1], 0.08), generator.normal(0.5, 0.03)
    away = sum((axis - at) ** 2 for axis, at in zip(grid, centre, strict=True))
    return (900 * np.exp(-away / width) + generator.normal(0, 12, (24, 30, 12))).astype(np.float32)


@pytest.fixture(scope="module")
def detector() -> ShiftDetector:
    features = [image_features(image(n), SPACING) for n in range(60)]
    return ShiftDetector.fit(features, [f"s{n // 2}" for n in range(60)])


def flagged(detector: ShiftDetector, array: np.ndarray, spacing: tuple[float, ...] = SPACING) -> bool:
    return detector.score(image_features(array, spacing)) > detector.limit


def test_most_new_images_of_the_kind_pass(detector: ShiftDetector) -> None:
    assert np.mean([flagged(detector, image(1000 + n)) for n in range(60)]) < 0.15


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.max() - a,
        lambda a: a[::-1],
        lambda a: a + np.random.default_rng(0).normal(0, 300, a.shape).astype(np.float32),
        lambda a: ndimage.gaussian_filter(a, 3),
        lambda a: np.where(np.arange(24)[:, None, None] < 12, a, 0),
        lambda a: a[:12],
    ],
    ids=["inverted", "flipped", "noisy", "blurred", "half empty", "cropped"],
)
def test_what_is_unlike_them_is_flagged(detector: ShiftDetector, change) -> None:
    assert all(flagged(detector, np.ascontiguousarray(change(image(2000 + n)))) for n in range(10))


def test_another_spacing_is_another_extent(detector: ShiftDetector) -> None:
    assert flagged(detector, image(3000), (1.0, 0.9, 7.5))


def test_intensities_may_have_any_scale(detector: ShiftDetector) -> None:
    array = image(4000)
    assert np.allclose(image_features(array * 7 + 1000, SPACING), image_features(array, SPACING), atol=1e-5)


def test_the_extent_stands_last_in_millimetres() -> None:
    assert image_features(image(0), SPACING)[-3:] == pytest.approx(np.log([24, 27, 30]))


def test_a_colour_picture_has_features_of_each_channel_along_two_axes() -> None:
    picture = np.random.default_rng(0).random((20, 16, 1, 3)).astype(np.float32)
    found = image_features(picture, (1.0, 1.0, 1.0))
    assert found.shape == (3 * (7 + 1 + 2 * 3) + 2 + 2,)
    tinted = image_features(
        picture * np.array([1, 0.5, 1], np.float32) + np.array([0, 0, 0.25], np.float32), (1.0, 1.0, 1.0)
    )
    changed = np.flatnonzero(~np.isclose(found, tinted, atol=0.02))
    assert changed.tolist() == [42]  # the second's span against the first's
    assert tinted[42] - found[42] == pytest.approx(np.log(0.5), abs=1e-4)
    assert np.isfinite(found).all()


def test_an_even_image_has_finite_features() -> None:
    assert np.isfinite(image_features(np.zeros((5, 6, 7), np.float32), SPACING)).all()


def of_whole_arrays(channels: list[np.ndarray], spacing: tuple[float, ...]) -> np.ndarray:
    """The features by their definition, on whole arrays in float64."""
    axes = [axis for axis in range(3) if channels[0].shape[axis] > 2]
    features, spans = [], []
    for channel in channels:
        values = channel.astype(np.float64)
        low, high = np.percentile(values, [0.5, 99.5])
        spans.append(max(high - low, 1e-6))
        scaled = np.clip((values - low) / spans[-1], 0, 1)
        deviation = scaled.std()
        features += [*np.quantile(scaled, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)), deviation]
        for axis in axes:
            for order in (1, 2):
                steps = np.abs(np.diff(scaled, order, axis=axis)).mean()
                features.append(np.log(steps / (deviation + 1e-6) + 1e-6))
            along = np.moveaxis(scaled - scaled.mean(), axis, -1) * np.linspace(-1, 1, scaled.shape[axis])
            features.append(along.mean() / (deviation + 1e-6))
    balance = [np.log(span / spans[0]) for span in spans[1:]]
    return np.array([*features, *balance, *(np.log(channels[0].shape[axis] * spacing[axis]) for axis in axes)])


LOPSIDED = (
    np.random.default_rng(9).gamma(2.0, 100.0, (19, 11, 14)) * np.linspace(0.5, 2, 14) + np.arange(19)[:, None, None]
)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "array",
    [
        LOPSIDED.astype(np.float32),
        (LOPSIDED * 30 - 1024).clip(-1024, 30000).astype(np.int16),
        LOPSIDED.astype(np.float32)[::-1, :, ::2],
        np.maximum(LOPSIDED, np.percentile(LOPSIDED, 60)).astype(np.float32),
        np.full((5, 6, 7), 3.5, np.float32),
        (LOPSIDED // LOPSIDED.max()).astype(np.float32),
        LOPSIDED[:, :, :1].astype(np.float32),
        LOPSIDED[:2].astype(np.float32),
        LOPSIDED[:, :, :2].astype(np.float32),
        LOPSIDED[:1, 3:5, :3].astype(np.float32),
    ],
    ids=["ct", "int16", "view", "60% air", "even", "one bright voxel", "plane", "2 thick", "2 slices", "six voxels"],
)
def test_slab_by_slab_the_features_are_those_of_the_whole_array(array, order, monkeypatch) -> None:
    array = np.asarray(array, order=order)
    expected = of_whole_arrays([array], SPACING)
    for voxels in (1, 600, 1 << 18):  # slabs of one plane, of some planes with a rest, and of the whole image
        monkeypatch.setattr(shift, "_SLAB_VOXELS", voxels)
        assert np.allclose(image_features(array, SPACING), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("depth", [1, 9])
def test_slab_by_slab_each_channel_is_described_as_if_it_were_alone(depth, monkeypatch) -> None:
    monkeypatch.setattr(shift, "_SLAB_VOXELS", 100)
    channels = [LOPSIDED[:, :, :depth], np.sqrt(LOPSIDED[:, :, -depth:]), np.full((19, 11, depth), 2.0)]
    found = image_features(np.stack(channels, axis=-1), SPACING)
    assert np.allclose(found, of_whole_arrays(channels, SPACING), rtol=1e-6, atol=1e-9)


def test_describing_an_image_takes_little_more_than_its_own_memory() -> None:
    array = np.asfortranarray(np.random.default_rng(1).normal(0, 1, (128, 128, 150)).astype(np.float32))
    tracemalloc.start()
    try:
        image_features(array, SPACING)
        assert tracemalloc.get_traced_memory()[1] < 5 * array.size + 12 * 2**20  # some slabs of 2 MiB
    finally:
        tracemalloc.stop()


def test_a_detector_is_the_same_after_it_was_written_and_read(detector: ShiftDetector) -> None:
    again = ShiftDetector.from_document(detector.document())
    features = image_features(image(5000), SPACING)
    assert again.score(features) == pytest.approx(detector.score(features), rel=1e-3)


def test_too_few_subjects_and_other_features_are_refused(detector: ShiftDetector) -> None:
    with pytest.raises(ValueError, match=rf"1 subject\(s\); {LEAST_SUBJECTS} are needed"):
        ShiftDetector.fit([image_features(image(n), SPACING) for n in range(9)], ["one"] * 9)
    with pytest.raises(ValueError, match="calibrate again"):
        detector.score(np.zeros(3))


def test_a_watched_layer_gives_the_mean_over_windows_however_they_are_batched() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU())
    windows = torch.randn(6, 1, 8, 8, 8)
    found = []
    for batch in (6, 2):
        means, engine = LayerMeans(), TorchEngine(network, torch.device("cpu"), feature_layer="0")
        for first in range(0, 6, batch):
            layer = engine(windows[first : first + batch]).layer
            assert layer is not None
            means.add(layer)
        found.append(means.features())
    assert not network[0]._forward_hooks
    assert TorchEngine(network, torch.device("cpu"))(windows).layer is None
    given = network[0](windows).detach().flatten(2)
    assert np.allclose(found[0], found[1], atol=1e-6)
    assert np.allclose(
        found[0], np.concatenate([given.mean(2).mean(0).numpy(), given.std(2).mean(0).numpy()]), atol=1e-6
    )
    with pytest.raises(ValueError, match="run the network"):
        LayerMeans().features()


def test_one_feature_far_off_is_not_diluted_by_all_that_are_right() -> None:
    generator = np.random.default_rng(5)
    known = generator.normal(0, 1, (80, 120))
    detector = ShiftDetector.fit(known, [f"s{n}" for n in range(80)])
    odd = generator.normal(0, 1, 120)
    assert detector.score(odd) <= detector.limit
    odd[17] = 6.0
    *together, _ = detector._distances(odd) / detector.scale
    assert max(together) <= detector.limit  # neither root mean square of 120 features tells
    assert detector.score(odd) > detector.limit


@pytest.mark.parametrize("shape", [(14, 12, 10), (14, 12, 1)])
def test_channels_in_another_order_are_told_from_a_strange_image(shape: tuple[int, ...]) -> None:
    """Three channels: a smooth ramp, noise, and few bright spots."""

    def three(number: int) -> np.ndarray:
        rng = np.random.default_rng(number)
        ramp = np.indices(shape).sum(axis=0) + rng.normal(0, 0.3, shape)
        spots = (rng.random(shape) > 0.97) * 50 + rng.normal(0, 1, shape)
        return np.stack([ramp, rng.normal(100, 20, shape), spots], axis=-1)

    rows = [image_features(three(number), SPACING) for number in range(10)]
    detector = ShiftDetector.fit([[*row, 1.0 + n, 2.0] for n, row in enumerate(rows)], [str(n) for n in range(10)])
    fresh = three(99)
    for order in permutations(range(3)):
        given = fresh[..., list(order)]  # channel n holds what channel order[n] should
        found = detector.order_of(image_features(given, SPACING), 3)
        assert [order[n] for n in found] == [0, 1, 2]
    strange = np.random.default_rng(5).normal(0, 1, fresh.shape)
    assert detector.order_of(image_features(strange, SPACING), 3) == (0, 1, 2)

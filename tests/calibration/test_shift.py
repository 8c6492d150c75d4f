"""Images like those of the reference pass, others are flagged; a layer is watched whatever the windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_unet_app.confidence.shift import LEAST_SUBJECTS, LayerWatch, ShiftDetector, image_features

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
        with LayerWatch(network, "0") as watch:
            for first in range(0, 6, batch):
                network(windows[first : first + batch])
        found.append(watch.features())
    network(windows)  # no longer watched
    given = network[0](windows).detach().flatten(2)
    assert np.allclose(found[0], found[1], atol=1e-6)
    assert np.allclose(
        found[0], np.concatenate([given.mean(2).mean(0).numpy(), given.std(2).mean(0).numpy()]), atol=1e-6
    )
    with pytest.raises(ValueError, match="run the network"), LayerWatch(network, "0") as watch:
        watch.features()


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

"""Volumes that are thinner than the neighbourhood over which a calibration averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage
from small_data import form_of, set_calibration

from dicom_io.volume import Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.calibration.fit import CalibrationFit
from monai_unet_app.inference.kernels import OurKernels
from monai_unet_app.pipeline import segment_case

each_axis = pytest.mark.parametrize("axis", [0, 1, 2])
each_size = pytest.mark.parametrize("size", [1, 2, 4])


def thin_shape(axis: int, size: int, shape: tuple[int, ...] = (9, 8, 7)) -> tuple[int, ...]:
    return tuple(size if a == axis else n for a, n in enumerate(shape))


@each_axis
@each_size
def test_the_average_is_that_of_the_voxels_that_there_are(axis: int, size: int) -> None:
    image = torch.rand(1, 3, *thin_shape(axis, size), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="smaller than kernel size"):
        F.avg_pool3d(image, 5, 1, 2, count_include_pad=False)
    with OurKernels():
        averages = F.avg_pool3d(image, 5, 1, 2, count_include_pad=False)
    near = ndimage.uniform_filter(np.ones(image.shape[2:]), 5, mode="constant")
    expected = [ndimage.uniform_filter(channel.numpy(), 5, mode="constant") / near for channel in image[0]]
    np.testing.assert_allclose(averages[0], expected, rtol=1e-12)


def test_what_torch_accepts_gets_its_values_to_the_bit() -> None:
    image = torch.rand(1, 2, 5, 9, 6, generator=torch.Generator().manual_seed(2))
    for arguments in ({"count_include_pad": False}, {}, {"ceil_mode": True}):
        with OurKernels():
            averages = F.avg_pool3d(image, (5, 3, 3), (1, 2, 1), (2, 1, 1), **arguments)
        assert torch.equal(averages, F.avg_pool3d(image, (5, 3, 3), (1, 2, 1), (2, 1, 1), **arguments))
    with OurKernels(), pytest.raises(RuntimeError, match="smaller than kernel size"):
        F.avg_pool3d(image, 7, 1, 3)  # zeros count: another average, and not one of ours


@each_axis
@each_size
def test_a_thin_volume_is_segmented_as_by_averages_over_what_there_is(
    axis: int, size: int, tiny_bundle: Callable[..., Path]
) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle(), 0.3, -0.7), input_rules={"channels": 1})
    array = np.random.default_rng(3).normal(100, 30, thin_shape(axis, size, (22, 18, 20))).astype(np.float32)
    volume = Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]))
    case = segment_case(volume, bundle, keep="logits")
    assert case.logits is not None
    logits = torch.cat([rows for _, rows in case.logits.rows], 1).double()
    near = ndimage.uniform_filter(np.ones(array.shape), 5, mode="constant")
    means = [ndimage.uniform_filter(p, 5, mode="constant") / near for p in torch.softmax(logits, 0).numpy()]
    mixture = 1 - np.square(means).sum(axis=0)
    expected = torch.softmax(logits / torch.from_numpy(np.exp(0.3 - 0.7 * mixture)), 0).numpy()
    ((_, probabilities, _),) = case.second_look()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(case.segmentation.labels, expected.argmax(axis=0))


@each_axis
def test_a_calibration_is_fitted_on_thin_volumes(axis: int) -> None:
    shape = thin_shape(axis, 2, (30, 28, 26))
    logits = 3 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    chances = torch.softmax(logits / 1.8, 0).flatten(1).T
    label = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(2)).T.reshape(1, *shape).float()
    region = form_of("region")
    fit = CalibrationFit(region.function, region.start, exclusive=True, unchecked=True)
    fit.add(logits, label)
    fitted = fit.fit()
    assert fitted.nll_after < fitted.nll_before


@pytest.mark.parametrize("shape", [(9, 30, 4), (3, 1, 12)])
def test_quick_averages_are_the_same_to_rounding(shape: tuple[int, ...]) -> None:
    image = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(2))
    wide = F.pad(image, [2] * 6)
    counts = F.pad(torch.ones_like(image), [2] * 6)
    sums = [F.avg_pool3d(values, 5, 1, 0, divisor_override=1) for values in (wide, counts)]
    with OurKernels(quick=True):
        averages = F.avg_pool3d(image, 5, 1, 2, count_include_pad=False)
    torch.testing.assert_close(averages, sums[0] / sums[1], atol=1e-6, rtol=0)

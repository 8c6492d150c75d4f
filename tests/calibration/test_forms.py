"""Each form of calibration that planned bundles offer undoes what it is made for and keeps the labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUNDLES, REPOSITORY, SHIPPED
from monai.data import MetaTensor
from scipy import ndimage
from small_data import Form, calibration_of, form_of, offered

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibration.fit import StoredLogits, fit_parameters
from monai_unet_app.calibration.fitted import Parameters, yaml_block
from monai_unet_app.inference.halo import halo_voxels
from monai_unet_app.metrics.outputs import outputs_of

NAMES = ("region", "classwise", "temperature", "none")
KINDS = [(exclusive, dims) for exclusive in (True, False) for dims in (2, 3)]
each_kind = pytest.mark.parametrize(
    ("exclusive", "dims"), KINDS, ids=[f"{'exclusive' if e else 'overlapping'} {d}D" for e, d in KINDS]
)
each_name = pytest.mark.parametrize("name", NAMES)
each_shipped = pytest.mark.parametrize("folder", SHIPPED, ids=[folder.name for folder in SHIPPED])
HIPPOCAMPUS = REPOSITORY / "bundles" / "hippocampus_mri_unet3d"


def noise(*shape: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_numbers(form: Form) -> dict[str, float | int]:
    """Every float another one, none of them 0."""
    values = iter((0.4, -0.3, 0.7, 0.2, -0.6, 0.5))
    return {name: next(values) if isinstance(value, float) else value for name, value in form.start.items()}


def drawn(probabilities: torch.Tensor, seed: int) -> torch.Tensor:
    """One class for each voxel, shape (1, *spatial), drawn from probabilities (C, *spatial)."""
    generator = torch.Generator().manual_seed(seed)
    chances = probabilities.flatten(1).T
    return torch.multinomial(chances, 1, generator=generator).T.reshape(1, *probabilities.shape[1:])


def fitted(form: Form, *cases: tuple[torch.Tensor, torch.Tensor], exclusive: bool = True) -> dict[str, float | int]:
    stored = StoredLogits(outputs_of(exclusive), [])
    for logits, label in cases:
        stored.add(logits, label)
    return fit_parameters(form.function, form.start, stored).parameters


def probabilities_of(form: Form, numbers: Parameters) -> Callable[[torch.Tensor], torch.Tensor]:
    """From logits of exclusive classes to calibrated probabilities."""
    return lambda logits: torch.softmax(form.function(logits, numbers), 0)


def bundle_halo(bundle: Bundle) -> tuple[float, ...]:
    """The halo of a bundle's own `calibrate` with its own numbers, in voxels of the working grid."""
    calibrate = bundle.part("calibrate")
    dims = 2 if bundle.rules.planar else 3
    return halo_voxels(lambda z: bundle.outputs.probabilities(calibrate(z)), len(bundle.labels), dims)


@each_kind
def test_the_forms_start_as_no_calibration(exclusive: bool, dims: int) -> None:
    forms = offered(3, exclusive=exclusive, dims=dims)
    assert {name: form.count for name, form in forms.items()} == dict(zip(NAMES, (2, 3, 1, 0), strict=True))
    logits = noise(3, *[9] * dims)
    for form in forms.values():
        assert torch.equal(form.function(logits, form.start), logits)


@each_kind
@each_name
def test_no_form_changes_labels(name: str, exclusive: bool, dims: int) -> None:
    form = form_of(name, exclusive=exclusive, dims=dims)
    logits = noise(3, *[11] * dims)
    calibrated = form.function(logits, some_numbers(form))
    assert calibrated.shape == logits.shape
    outputs = outputs_of(exclusive)
    assert torch.equal(outputs.labels(logits), outputs.labels(calibrated))
    assert torch.equal(calibrated, logits) == (name == "none")


@each_name
def test_a_tensor_that_knows_its_place_still_does(name: str) -> None:
    form, affine = form_of(name), torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    logits = MetaTensor(noise(3, 8, 9, 10), affine=affine)
    found = form.function(logits, some_numbers(form))
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, affine.to(found.affine))
    plain = form.function(logits.as_tensor(), some_numbers(form))
    assert torch.equal(found.as_tensor(), plain)


@pytest.mark.parametrize("temperature", [0.6, 1.8])
def test_the_temperature_that_labels_were_drawn_with_comes_back(temperature: float) -> None:
    logits = noise(3, 30, 30, 20, seed=1)
    label = drawn(torch.softmax(logits / temperature, 0), 2)
    found = fitted(form_of("temperature"), (logits, label))["log_temperature"]
    assert math.exp(found) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_of_each_class_comes_back() -> None:
    logits = noise(3, 40, 40, 20, seed=3)
    temperatures = torch.tensor([0.7, 1.4, 2.2])
    label = drawn(torch.softmax(logits / temperatures[logits.argmax(0)], 0), 4)
    found = fitted(form_of("classwise"), (logits, label))
    assert np.exp(list(found.values())) == pytest.approx(temperatures.numpy(), rel=0.05)


def test_the_temperature_of_each_overlapping_label_comes_back() -> None:
    logits, temperatures = noise(2, 40, 40, seed=5), torch.tensor([0.7, 1.9]).reshape(2, 1, 1)
    label = torch.bernoulli(torch.sigmoid(logits / temperatures), generator=torch.Generator().manual_seed(6))
    found = fitted(form_of("classwise", 2, exclusive=False, dims=2), (logits, label), exclusive=False)
    assert np.exp(list(found.values())) == pytest.approx(temperatures.flatten().numpy(), rel=0.12)


def test_border_and_background_get_the_temperatures_that_they_were_drawn_with() -> None:
    """One half is all class 0, in the other both classes lie side by side; each half has a temperature of its own."""
    generator = torch.Generator().manual_seed(9)
    margin = 4 + torch.randn(40, 40, 40, generator=generator)
    margin[20:] *= torch.where(torch.rand(20, 40, 40, generator=generator) < 0.5, -1.0, 1.0)
    logits = torch.stack([margin, torch.zeros_like(margin)])
    wanted = torch.full_like(margin, 1.3)
    wanted[20:] = 2.6
    label = drawn(torch.softmax(logits / wanted, 0), 10)
    halves = (
        (logits[:, :17], label[:, :17]),
        (logits[:, 23:], label[:, 23:]),
    )  # whole neighbourhoods of one half or the other
    found = fitted(form_of("region", 2), *halves)
    chance = torch.sigmoid(margin).numpy()
    mean = ndimage.uniform_filter(chance, 5)
    mixture = 1 - mean**2 - (1 - mean) ** 2
    temperature = np.exp(found["far"] + found["near"] * mixture)
    assert temperature[2:15].mean() == pytest.approx(1.3, rel=0.04)
    assert temperature[25:38].mean() == pytest.approx(2.6, rel=0.04)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("reach", [1, 2, 5])
def test_the_halo_of_a_region_is_its_reach(dims: int, reach: int) -> None:
    for exclusive in (True, False):
        form = form_of("region", exclusive=exclusive, dims=dims)

        def probabilities(logits: torch.Tensor, form: Form = form, exclusive: bool = exclusive) -> torch.Tensor:
            calibrated = form.function(logits, {"reach": reach, "far": 0.1, "near": 1.0})
            return outputs_of(exclusive).probabilities(calibrated)

        assert halo_voxels(probabilities, 3, dims) == (reach,) * dims


@each_name
def test_only_a_region_has_a_halo(name: str) -> None:
    form = form_of(name)
    found = halo_voxels(probabilities_of(form, some_numbers(form)), 3, 3)
    assert found == ((2, 2, 2) if name == "region" else (0, 0, 0))


def test_a_halo_is_measured_along_each_axis_and_may_have_no_end() -> None:
    def flat(logits: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(logits * torch.nn.functional.avg_pool3d(logits[None].abs(), (1, 3, 13), 1, (0, 1, 6))[0])

    assert halo_voxels(flat, 2, 3) == (0, 1, 6)
    assert halo_voxels(lambda z: torch.softmax(z / z.std(), 0), 2, 2) == (math.inf, math.inf)
    assert halo_voxels(lambda z: torch.sigmoid(z + z.mean()), 2, 2) == (math.inf, math.inf)
    assert halo_voxels(lambda z: torch.softmax(z + z.mean(), 0), 2, 2) == (0, 0)  # softmax does not see it


def test_the_halo_of_a_bundle_is_its_reach() -> None:
    bundle = load_bundle(HIPPOCAMPUS)
    reach = calibration_of(HIPPOCAMPUS)["reach"]
    assert bundle_halo(bundle) == (reach, reach, reach)
    assert bundle_halo(load_bundle(HIPPOCAMPUS, calibration=bundle.no_calibration)) == (0, 0, 0)
    eye = REPOSITORY / "bundles" / "retina_vessel_unet2d"
    assert bundle_halo(load_bundle(eye)) == (calibration_of(eye)["reach"],) * 2


@pytest.mark.parametrize("folder", BUNDLES, ids=[folder.name for folder in BUNDLES])
def test_slab_by_slab_with_its_halo_is_as_the_whole_and_with_one_voxel_less_is_not(folder: Path) -> None:
    bundle = load_bundle(folder)
    calibrate, channels = bundle.part("calibrate"), len(bundle.labels)
    logits = noise(channels, *((42, 23, 19) if folder.name.startswith("hippo") else (42, 35)))
    whole, halo = calibrate(logits), round(bundle_halo(bundle)[0])

    def by_slabs(halo: int, thick: int = 7) -> torch.Tensor:
        parts = []
        for first in range(0, logits.shape[1], thick):
            begin = max(0, first - halo)
            slab = calibrate(logits[:, begin : first + thick + halo])
            parts.append(slab[:, first - begin : first - begin + thick])
        return torch.cat(parts, 1)

    assert torch.allclose(by_slabs(halo), whole, rtol=0, atol=1e-6)
    assert not torch.allclose(by_slabs(halo - 1), whole, rtol=0, atol=1e-3)


@each_shipped
def test_shipped_bundles_offer_the_forms_of_planned_ones(folder: Path) -> None:
    text = (folder / "configs/inference.yaml").read_text()
    assert yaml_block("calibration", load_bundle(folder)) in text
    assert yaml_block("steps", load_bundle(folder)) in text

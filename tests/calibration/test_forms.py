"""Each form of calibration that planned bundles offer undoes what it is made for and keeps the labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUNDLES, REPOSITORY, SHIPPED
from monai.data import MetaTensor
from scipy import ndimage
from small_data import calibration_of, few_examples, form_of, offered, set_calibration, trained_on

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibration import form_comparison
from monai_unet_app.calibration.fit import StoredLogits, fit_parameters
from monai_unet_app.calibration.fitted import Form, Parameters, forms_of, yaml_block
from monai_unet_app.calibration.form_comparison import (
    FormScore,
    FormTrial,
    compare_forms,
    labels_changed,
    with_choice,
)
from monai_unet_app.data.cases import by_partition
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.inference.halo import halo_voxels
from monai_unet_app.metrics.boundary import surface_band
from monai_unet_app.metrics.case_scores import CaseArrays, merged
from monai_unet_app.metrics.outputs import EXCLUSIVE, outputs_of
from monai_unet_app.metrics.plan import WHOLE, EvaluationPlan
from monai_unet_app.metrics.reliability import count_populations
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.pipeline import segment_case

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
    assert labels_changed(logits, calibrated, outputs_of(exclusive)) == 0
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
    assert halo_voxels(FormTrial(form, outputs_of(True), None).probabilities, 3, 3) == (0, 0, 0)
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


def scored(form: str, numbers: int, ece: float, ece_band: float, changed: int = 0) -> FormScore:
    why_not = f"it changes {changed} label(s)" if changed else None
    return FormScore(form, {}, numbers, (), 0.1, ece, ece_band, changed, why_not=why_not)


def chosen(*scores: FormScore) -> str:
    names = [score.form for score in with_choice(scores) if score.chosen]
    assert len(names) == 1
    return names[0]


def test_chosen_is_the_least_error_in_the_band() -> None:
    none = scored("none", 0, 0.01, 0.05)
    assert chosen(none) == "none"
    assert chosen(none, scored("a", 3, 0.008, 0.02), scored("b", 2, 0.001, 0.03)) == "a"


def test_of_equals_the_one_with_fewer_numbers_is_chosen() -> None:
    none = scored("none", 0, 0.01, 0.05)
    assert chosen(none, scored("a", 6, 0.008, 0.020004), scored("b", 2, 0.001, 0.020041)) == "b"
    assert chosen(none, scored("a", 6, 0.008, 0.0200), scored("b", 2, 0.001, 0.0202)) == "a"


def test_a_form_that_changes_labels_spoils_the_whole_or_could_not_be_fitted_is_not_chosen_and_says_why() -> None:
    ran_away = FormScore("d", {}, 2, (), why_not="the fit diverged")
    scores = (
        scored("none", 0, 0.01, 0.05),
        scored("a", 6, 0.001, 0.01, changed=12),
        scored("b", 2, 0.011, 0.02),
        ran_away,
        scored("c", 2, 0.01, 0.04),
    )
    assert chosen(*scores) == "c"
    why = {score.form: score.why_not for score in with_choice(scores)}
    assert why["none"] is why["c"] is None
    assert "12 label" in (why["a"] or "")
    assert "0.01100, without it 0.01000" in (why["b"] or "")
    assert why["d"] == "the fit diverged"


def test_without_a_predicted_surface_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(InputRefusedError, match="no selection case has a predicted surface"):
        with_choice([scored("none", 0, 0.01, math.nan), scored("a", 1, 0.01, math.nan)])


def test_a_fit_that_fails_is_a_reason_and_no_figure() -> None:
    stored = StoredLogits(outputs_of(True), [])
    logits = torch.zeros(2, 6, 6, 6)
    logits[0] = -1e4
    stored.add(logits, torch.zeros(1, 6, 6, 6))  # sure and always wrong: the best temperature is infinite
    trial = FormTrial.fit(form_of("temperature", 2), stored)
    assert trial.fitted is None
    score = trial.score(EvaluationPlan(("A",)), ())
    assert "diverged" in (score.why_not or "")
    assert math.isnan(score.ece_band)
    assert torch.equal(trial.calibrated(logits), logits)


@pytest.mark.parametrize("planar", [False, True], ids=["volume", "picture"])
def test_the_figures_are_those_of_an_evaluation(planar: bool) -> None:
    rng = np.random.default_rng(11)
    shape, spacing = ((24, 20), (1.0, 1.0)) if planar else ((24, 20, 12), (1.0, 0.8, 2.5))
    smooth = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, *(3 for _ in shape))) * 40
    p = np.exp(smooth) / np.exp(smooth).sum(axis=0)
    predicted, truth = p.argmax(0), np.roll(p.argmax(0), 1, axis=0)
    plan = EvaluationPlan(("A", "B"), planar=planar)
    band = surface_band(predicted > 0, spacing, plan.band_width)
    trial = FormTrial(form_of("none"), outputs_of(True), None)
    for slab in (np.s_[:10], np.s_[10:]):
        within = {WHOLE: None, plan.band: band[slab]}
        counts = count_populations(truth[slab], p[:, slab], within, outputs=EXCLUSIVE, bins=plan.bins)
        trial.counts = merged(trial.counts, counts)
    evaluation = Evaluation(plan)
    evaluation.add(CaseArrays("a", "a", truth, predicted, p, spacing, 0.002))
    for name in plan.populations:
        found = evaluation.counts[name]
        assert found.decisions > 0
        assert np.array_equal(found.narrow_count, trial.counts[name].narrow_count)
        assert np.array_equal(found.narrow_correct, trial.counts[name].narrow_correct)
        assert found.nll_sum == pytest.approx(trial.counts[name].nll_sum)


@each_shipped
def test_shipped_bundles_offer_the_forms_of_planned_ones(folder: Path) -> None:
    text = (folder / "configs/inference.yaml").read_text()
    assert yaml_block("calibration", load_bundle(folder)) in text
    assert yaml_block("steps", load_bundle(folder)) in text


def test_a_bundle_without_forms_or_without_none_says_what_to_add(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    rows, root = by_partition(few_examples(tmp_path / "data")), tiny_bundle()
    config = root / "configs/inference.yaml"
    text = config.read_text()
    config.write_text(text.replace("  none: {numbers", "  nothing: {numbers"))
    with pytest.raises(BundleError, match=r"no `none`.*none: \{numbers: \{\}, function"):
        compare_forms(load_bundle(root), rows["calibration"], rows["selection"])
    config.write_text(text.replace("\nforms:\n", "\nkinds:\n"))
    with pytest.raises(BundleError, match=r"(?s)no `forms` to choose from; add .*\nforms:\n"):
        compare_forms(load_bundle(root), rows["calibration"], rows["selection"])


def test_forms_are_compared_and_the_chosen_one_is_what_the_bundle_does(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = ("region", "classwise", "none")
    monkeypatch.setattr(
        form_comparison, "forms_of", lambda bundle: [form for form in forms_of(bundle) if form.name in some]
    )
    rows = by_partition(few_examples(tmp_path / "data"))
    root = set_calibration(tiny_bundle(), 0.7, 0.3)
    bundle, done = load_bundle(root), []
    scores = compare_forms(bundle, rows["calibration"], rows["selection"], choose_form=True, step=done.append)
    assert done == [row["id"] for part in ("calibration", "selection") for row in rows[part]]
    assert tuple(score.form for score in scores) == some
    (taken,) = (score for score in scores if score.chosen)
    none = scores[-1]
    assert taken.ece_band < none.ece_band
    assert taken.ece <= none.ece
    fitted = load_bundle(root).fitted
    assert fitted is not None
    assert (fitted["calibration"]["form"], fitted["calibration"]["plain"]) == (taken.form, taken.parameters)
    assert "chosen of region, classwise, none" in fitted["calibration"]["why"]
    record = json.loads((root / "models/calibration.json").read_text())
    assert set(record["cases"]) == {row["id"] for part in ("calibration", "selection") for row in rows[part]}

    found = load_bundle(root)
    assert bundle_halo(found) == taken.halo_mm  # the working grid has 1 mm
    plan = EvaluationPlan(tuple(segment.label for segment in found.segments))
    evaluation = Evaluation(plan)
    for row in rows["selection"]:
        volume = read_volume(row["image"])
        case = segment_case(volume, found, keep="probabilities")
        truth = read_reference(row, volume, found)
        arrays = CaseArrays(
            row["id"],
            row["subject"],
            truth.labels,
            case.segmentation.labels,
            case.segmentation.probabilities,
            volume.spacing_mm,
            volume.voxel_ml,
        )
        evaluation.add(arrays)
    summary = evaluation.summary()
    assert summary["ece"]["top_label"] == pytest.approx(taken.ece, abs=1e-6)
    assert summary["ece_band"]["top_label"] == pytest.approx(taken.ece_band, abs=1e-6)
    assert summary["calibration"]["whole"]["nll"] == pytest.approx(taken.nll, abs=1e-6)


def test_a_comparison_without_a_choice_writes_nothing_and_gives_halos_in_mm(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_comparison, "forms_of", lambda bundle: [forms_of(bundle)[n] for n in (3, 0)])
    rows = by_partition(few_examples(tmp_path / "data", ("hippocampus_132", "hippocampus_053")))
    root = tiny_bundle()
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    bundle = load_bundle(root, spacing_mm=[1.0, 0.8, 1.25])
    none, region = compare_forms(bundle, rows["calibration"], rows["selection"])
    assert (none.halo_mm, region.halo_mm) == ((0, 0, 0), pytest.approx((2.0, 1.6, 2.5)))  # 2 voxels of the working grid
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_cases_that_may_not_judge_are_refused(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    rows, root = by_partition(few_examples(tmp_path / "data")), tiny_bundle()
    trained_on(root, {row["id"]: part for part, of_part in rows.items() for row in of_part})
    bundle = load_bundle(root)
    with pytest.raises(InputRefusedError, match=r"1 subject.* in both"):
        compare_forms(bundle, rows["calibration"], rows["calibration"])
    with pytest.raises(InputRefusedError, match="0 selection case"):
        compare_forms(bundle, rows["calibration"], [])
    with pytest.raises(InputRefusedError, match=r"has seen 1 of 1 case.*\(test\)"):
        compare_forms(bundle, rows["calibration"], rows["test"])
    with pytest.raises(InputRefusedError, match=r"has seen 2 of 2 case.*\(train\)"):
        compare_forms(bundle, rows["train"], rows["selection"])
    renamed = [{**row, "id": "another", "subject": "another"} for row in rows["calibration"]]
    with pytest.raises(InputRefusedError, match=r"another \(calibration\)"):
        compare_forms(bundle, rows["calibration"], renamed)

"""The fit finds the temperature that logits were spoilt by, and writes nothing but its one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import AsDiscrete
from small_data import calibration_of, few_examples, set_calibration

from monai_unet_app import progress_bars
from monai_unet_app.bundle import load_bundle
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.calibration.fit import CalibrationFit, Fitted, StoredLogits, fit_parameters
from monai_unet_app.calibration.statement_fit import state_confidence
from monai_unet_app.cli import main
from monai_unet_app.data.cases import by_partition
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.inference import kernels
from monai_unet_app.metrics.outputs import outputs_of
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.run import run_overlay

TRUE_TEMPERATURE = 1.8


def by_temperature(logits: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    return logits * torch.exp(-torch.as_tensor(parameters["log_temperature"]))


def drawn(exclusive: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits z and labels drawn from softmax(z / T) or sigmoid(z / T): calibrated by T, overconfident without it."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, 30, 30, 20, generator=generator)
    if exclusive:
        chances = torch.softmax(logits / TRUE_TEMPERATURE, 0).flatten(1).T
        return logits, torch.multinomial(chances, 1, generator=generator).T.reshape(1, *logits.shape[1:])
    return logits, torch.bernoulli(torch.sigmoid(logits / TRUE_TEMPERATURE), generator=generator)


def fitted(exclusive: bool) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    cases = [drawn(exclusive, seed) for seed in (1, 2)]
    fit = CalibrationFit(by_temperature, {"log_temperature": 0.0}, exclusive)
    for logits, label in cases:
        fit.add(logits, label)
    return fit.fit(), cases


def calibration_error(logits: torch.Tensor, label: torch.Tensor, exclusive: bool) -> float:
    """Top-label ECE in 15 equal bins, straight from its definition."""
    if exclusive:
        confidence, choice = torch.softmax(logits, 0).max(0)
        right = (choice == label[0]).float()
    else:
        chance = torch.sigmoid(logits)
        confidence, right = torch.maximum(chance, 1 - chance), ((chance > 0.5).float() == label).float()
    bins = (confidence * 15).clamp(max=14.999).long()
    error = 0.0
    for number in range(15):
        inside = bins == number
        if inside.any():
            error += float(inside.float().mean() * (right[inside].mean() - confidence[inside].mean()).abs())
    return error


@pytest.mark.parametrize("exclusive", [True, False], ids=["exclusive classes", "overlapping labels"])
def test_the_fit_recovers_the_temperature_and_the_calibration_error_falls(exclusive: bool) -> None:
    found, cases = fitted(exclusive)
    parameters = found.parameters
    temperature = float(torch.exp(torch.tensor(parameters["log_temperature"])))
    assert temperature == pytest.approx(TRUE_TEMPERATURE, rel=0.03)
    assert found.nll_after < found.nll_before
    assert found.cases == 2
    for logits, label in cases:
        calibrated = by_temperature(logits, parameters)
        before, after = (calibration_error(z, label, exclusive) for z in (logits, calibrated))
        assert before > 0.05
        assert after < 0.012
        assert torch.equal(calibrated.argmax(0), logits.argmax(0))
        assert torch.equal(calibrated > 0, logits > 0)


def test_the_nll_it_reports_is_the_mean_over_voxels() -> None:
    logits = torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]])
    fit = CalibrationFit(by_temperature, {"log_temperature": 0.0}, exclusive=True)
    fit.add(logits, torch.tensor([[[1.0, 0.0]]]))
    by_hand = (torch.log(torch.tensor(2.0)) + torch.log1p(torch.exp(torch.tensor(-2.0)))) / 2
    assert fit.fit().nll_before == pytest.approx(float(by_hand), rel=1e-5)


def test_the_fit_does_not_depend_on_where_the_parameters_stood() -> None:
    logits, label = drawn(True, 1)
    values = []
    for start in (0.0, 1.5):
        fit = CalibrationFit(by_temperature, {"log_temperature": start}, exclusive=True)
        fit.add(logits, label)
        values.append(fit.fit().parameters)
    assert values[0] == values[1]


def test_whole_numbers_are_settings_and_stay() -> None:
    logits, label = drawn(True, 1)
    fit = CalibrationFit(by_temperature, {"reach": 2, "log_temperature": 0.0}, exclusive=True)
    fit.add(logits, label)
    assert fit.fit().parameters["reach"] == 2


def test_a_fit_without_cases_or_without_numbers_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="no calibration case"):
        CalibrationFit(by_temperature, {"log_temperature": 0.0}, exclusive=True).fit()
    fit = CalibrationFit(lambda logits, parameters: logits, {"reach": 2}, exclusive=True)
    fit.add(*drawn(True, 1))
    with pytest.raises(BundleError, match="at least one float"):
        fit.fit()


def test_an_empty_calibration_is_a_fit_of_nothing() -> None:
    logits, label = drawn(True, 1)
    fit = CalibrationFit(lambda logits, parameters: logits, {}, exclusive=True)
    fit.add(logits, label)
    found = fit.fit()
    by_hand = -torch.log_softmax(logits, 0).gather(0, label).mean()
    assert found.parameters == {}
    assert found.nll_before == found.nll_after == pytest.approx(float(by_hand), rel=1e-5)


def test_several_functions_are_fitted_on_logits_that_are_kept_once() -> None:
    cases, stored = [drawn(True, seed) for seed in (1, 2)], StoredLogits(outputs_of(True), [])
    for logits, label in cases:
        stored.add(logits, label)
    assert len(stored) == 2
    for (logits, label), part in zip(cases, stored, strict=True):
        assert torch.equal(part.logits, logits)
        assert torch.equal(part.truth.long(), label)
    one = fit_parameters(by_temperature, {"log_temperature": 0.0}, stored).parameters["log_temperature"]
    other = fit_parameters(lambda z, c: z * (1 + c["by"]), {"by": 0.0}, stored).parameters["by"]
    assert 1 + other == pytest.approx(math.exp(-one), abs=1e-3)


def test_a_function_that_writes_into_its_logits_changes_none_that_are_kept() -> None:
    logits, label = drawn(True, 1)
    stored = StoredLogits(outputs_of(True), [])
    stored.add(logits, label)
    wanted = fit_parameters(by_temperature, {"log_temperature": 0.0}, stored).parameters

    def in_place(z: torch.Tensor, numbers: Mapping[str, Any]) -> torch.Tensor:
        return z.add_(1.0) * torch.exp(-torch.as_tensor(numbers["log_temperature"]))  # softmax does not see the 1

    found = fit_parameters(in_place, {"log_temperature": 0.0}, stored).parameters
    assert found["log_temperature"] == pytest.approx(wanted["log_temperature"], abs=1e-4)
    assert all(torch.equal(part.logits, logits) for part in stored)


def test_averages_of_what_stays_the_same_are_taken_once_and_those_of_what_is_fitted_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def around(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(z[None], 3, 1, 1, count_include_pad=False)[0]

    def smooth(z: torch.Tensor, numbers: Mapping[str, Any]) -> torch.Tensor:
        sharp = z * torch.exp(torch.as_tensor(numbers["sharp"]))
        return sharp + torch.as_tensor(numbers["near"]) * around(sharp) + numbers["far"] * around(torch.softmax(z, 0))

    stored, start = StoredLogits(outputs_of(True), []), {"sharp": 0.0, "near": 0.0, "far": 0.0}
    for seed in (1, 2, 3):
        stored.add(*drawn(True, seed))
    taken, own = [], kernels._averages
    monkeypatch.setattr(
        kernels, "_averages", lambda image, *more, **named: taken.append(image) or own(image, *more, **named)
    )
    found = fit_parameters(smooth, start, stored).parameters
    searched = sum(image.requires_grad for image in taken) // len(stored)
    assert searched > 10
    # Three cases in the search, and both averages of each for the likelihood before and after it
    assert sum(not image.requires_grad for image in taken) == 3 + 2 * 2 * 3
    monkeypatch.setattr(StoredLogits, "average", lambda self, image, arguments, take: take())
    assert fit_parameters(smooth, start, stored).parameters == found


def test_a_fit_that_finds_no_number_is_refused_and_leaves_the_bundle_as_it_is(tiny_bundle: Callable[..., Path]) -> None:
    root = tiny_bundle()
    before = (root / "models/fitted.json").read_bytes()
    fit = CalibrationFit(by_temperature, {"log_temperature": 0.25}, exclusive=True, bundle_root=root)
    logits, label = drawn(True, 1)
    fit.add(logits * float("nan"), label)
    with pytest.raises((InputRefusedError, BundleError), match="nan"):
        fit.finish()
    assert (root / "models/fitted.json").read_bytes() == before
    assert not (root / "models/calibration.json").exists()


def test_calibrate_yaml_and_the_verb_fit_the_same_numbers_into_the_bundle(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    data = few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143"))
    root = tiny_bundle()
    before = (root / "configs/inference.yaml").read_bytes()
    run_overlay(root, "calibrate", {"dataset_dir": str(data), "device": torch.device("cpu")})
    by_overlay = calibration_of(root)
    assert any(isinstance(value, float) and value != 0 for value in by_overlay.values())
    assert (root / "configs/inference.yaml").read_bytes() == before
    fitted = load_bundle(root).fitted
    assert fitted is not None
    assert fitted["calibration"]["fitted_to"]["models/model.pt"] == load_bundle(root).weights_sha256
    assert fitted["calibration"]["why"].startswith("fitted on 2 case(s): negative log likelihood a voxel ")
    record = json.loads((root / "models/calibration.json").read_text())
    assert set(record["cases"]) == {"hippocampus_053", "hippocampus_143"}
    assert record["parameters"] == by_overlay

    set_calibration(root, 0.0)
    result = calibrate_bundle(load_bundle(root), by_partition(data)["calibration"])
    assert result.cases == 2
    assert result.nll_after <= result.nll_before
    assert calibration_of(root) == result.parameters
    for name, value in by_overlay.items():
        assert result.parameters[name] == pytest.approx(value, abs=1e-3)


def test_calibrate_yaml_that_cannot_state_anything_leaves_the_bundle_as_it_was(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = set_calibration(tiny_bundle(), 0.0)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    data = few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143"))
    monkeypatch.setattr("monai_unet_app.calibration.statement_fit.state_confidence", lambda *_, **__: 1 / 0)
    with pytest.raises(RuntimeError, match="evaluator"):  # MONAI's, from the division by zero
        run_overlay(root, "calibrate", {"dataset_dir": str(data), "device": torch.device("cpu")})
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_class_numbers_of_overlapping_labels_are_one_mask_each() -> None:
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randint(0, 3, (1, 12, 12, 10), generator=generator)
    masks = torch.cat([numbers == 1, numbers == 2]).float()
    logits = 2 * (2 * masks - 1) + torch.randn(masks.shape, generator=generator)
    found = []
    for label in (numbers.float(), masks):
        fit = CalibrationFit(by_temperature, {"log_temperature": 0.0}, exclusive=False)
        fit.add(logits, label)
        found.append(fit.fit().parameters)
    assert found[0] == found[1]


def test_a_bundle_states_anew_whatever_it_stated_before(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data")
    rows = by_partition(data)["calibration"]
    found = state_confidence(load_bundle(root), rows)["plain"]
    assert found.sizes is None
    assert "9 or more are needed" in found.why_not["sizes"]
    document = json.loads((root / "configs/confidence.json").read_text())
    arrays = {"centre": [0.0], "spread": [1.0], "components": [[1.0]], "deviations": [1.0]}
    document["settings"]["plain"]["shift"] = {**arrays, "scale": [1.0, 1.0, 1.0], "limit": 1.0, "subjects": 9}
    (root / "configs/confidence.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="does not belong to this bundle"):
        segment_case(rows[0]["image"], load_bundle(root))
    assert "shift" not in state_confidence(load_bundle(root), rows)["plain"].document()
    assert segment_case(rows[0]["image"], load_bundle(root)).assessment is not None


def few_subjects(scales: tuple[float, ...]) -> CalibrationFit:
    """A subject for each scale, whose true logits are its network's times the scale: over- or underconfident."""
    generator = torch.Generator().manual_seed(5)
    rows = [{"id": str(n), "subject": f"s{n}", "image": ""} for n in range(len(scales))]
    fit = CalibrationFit(by_temperature, {"log_temperature": 0.0}, exclusive=True, cases=rows)
    for scale in scales:
        true = 2 * torch.randn((3, 16, 16, 16), generator=generator)
        drawn = torch.distributions.Categorical(logits=true.flatten(1).T).sample()
        fit.add(true / scale, drawn.reshape(1, 16, 16, 16).float())
    return fit


def test_a_fit_on_few_subjects_is_kept_where_it_helps_those_left_out() -> None:
    torch.manual_seed(0)
    fitted = few_subjects((0.5, 0.5, 0.5)).fit()
    assert fitted.parameters["log_temperature"] == pytest.approx(math.log(2), abs=0.05)
    assert fitted.check is not None
    assert (fitted.check.subjects, fitted.check.part) == (3, 1.0)
    assert fitted.check.ece[1] < fitted.check.ece[0]


def test_a_fit_on_two_subjects_who_disagree_is_shrunk_to_none_and_says_so() -> None:
    torch.manual_seed(0)
    fitted = few_subjects((0.5, 2.0)).fit()  # what helps the one harms the other
    assert fitted.check is not None
    assert fitted.check.part == 0
    assert fitted.parameters == {"log_temperature": 0.0}
    assert fitted.nll_after == pytest.approx(fitted.nll_before)
    assert fitted.check.ece[1] > fitted.check.ece[0]
    assert "nothing is calibrated" in fitted.check.sentence


def test_one_subject_cannot_calibrate_unless_it_is_asked_for() -> None:
    rows = [{"id": name, "subject": "s", "image": ""} for name in ("left", "right")]
    with pytest.raises(
        InputRefusedError, match=r"2 calibration case\(s\) are of one subject; 2 or more subjects are needed"
    ):
        CalibrationFit(by_temperature, {"log_temperature": 0.0}, exclusive=True, cases=rows)
    CalibrationFit(by_temperature, {"log_temperature": 0.0}, exclusive=True, cases=rows, unchecked=True)
    CalibrationFit(by_temperature, {}, exclusive=True, cases=rows)


def test_a_label_without_any_class_is_refused(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143"))
    config = root / "configs/inference.yaml"
    config.write_text(config.read_text() + "\nignore_label: 255\n")
    rows = by_partition(data)["calibration"]
    label = nibabel.load(rows[0]["label"])
    nibabel.save(nibabel.Nifti1Image(np.full(label.shape, 255, np.uint8), label.affine), rows[0]["label"])
    with pytest.raises(InputRefusedError, match="all its voxels are ignored") as refusal:
        calibrate_bundle(load_bundle(root), rows)
    assert f"1 of 2 case(s) cannot be used:\n  {rows[0]['id']}: all" in str(refusal.value)
    with pytest.raises(InputRefusedError, match="all its voxels are ignored"):
        run_overlay(root, "calibrate", {"dataset_dir": str(data), "device": torch.device("cpu")})


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_fit_on_voxels_that_have_a_class_is_that_of_these_voxels_alone(exclusive: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn((2, 12, 10, 8), generator=generator)
    label = (torch.rand((1 if exclusive else 2, 12, 10, 8), generator=generator) > 0.6).float()
    marked = label.clone()
    marked[:, 7:] = 255

    def fit(ignored: int | None, *case: torch.Tensor) -> Fitted:
        stored = StoredLogits(outputs_of(exclusive), [], ignored)
        stored.add(*case)
        return fit_parameters(by_temperature, {"log_temperature": 0.0}, stored)

    whole, part = fit(255, logits, marked), fit(None, logits[:, :7], label[:, :7])
    assert whole.nll_before == pytest.approx(part.nll_before, rel=1e-6)
    assert whole.parameters["log_temperature"] == pytest.approx(part.parameters["log_temperature"], abs=1e-4)
    assert fit(255, logits, label).nll_before == pytest.approx(fit(None, logits, label).nll_before, rel=1e-6)


def test_a_logit_of_exactly_zero_is_a_yes_as_in_the_result() -> None:
    logits, yes = torch.tensor([[[0.0, -1e-3, 1e-3]]]), torch.tensor([[[1.0, 0.0, 1.0]]])
    outputs = outputs_of(False)
    assert torch.equal(AsDiscrete(threshold=0.5)(torch.sigmoid(logits)), yes)
    assert torch.equal(outputs.labels(logits).float(), yes)
    assert torch.equal(outputs.labels(logits).float(), yes)
    assert outputs.confidence(logits, yes)[1].all()
    assert int((outputs.labels(logits) != outputs.labels(logits + 2e-3)).sum()) == 1  # the 0 was a yes already


def test_the_record_of_a_calibration_on_two_subjects_says_how_it_was_checked(
    tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", ("hippocampus_053", "hippocampus_143"))
    set_calibration(root, 0.0)
    rows = by_partition(data)["calibration"]
    assert len({row["subject"] for row in rows}) == 2
    fitted = calibrate_bundle(load_bundle(root), rows)
    assert fitted.check is not None
    record = json.loads((root / "models/calibration.json").read_text())
    assert record["check"] == fitted.check.document()
    assert record["check"]["subjects"] == 2


def test_without_a_terminal_the_verb_says_how_far_it_is_and_what_it_wrote(
    tiny_bundle: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, data = tiny_bundle(), few_examples(tmp_path / "data", ("hippocampus_053",))
    monkeypatch.setattr(progress_bars, "EVERY_S", 0.005)
    assert main(["calibrate", "--bundle", str(root), "--data", str(data), "--device", "cpu", "--unchecked"]) == 0
    shown = capsys.readouterr()
    for text in ("calibrating", "stating"):
        assert re.search(rf"^\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d {text}: 0 of 1$", shown.err, re.MULTILINE)
    last = shown.out.splitlines()[-3:]
    assert last[:2] == [f"wrote {root}/models/fitted.json", f"wrote {root}/configs/confidence.json"]
    assert last[2].startswith("next: evaluate it on labelled cases that it has not seen")

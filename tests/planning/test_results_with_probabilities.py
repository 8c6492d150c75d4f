"""Probabilities of another program: read in every form, calibrated to what is true, and refused where they cannot be any."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from other_program import AFFINE_RAS, BY
from phantoms import write_mr_series
from shell import Run, shell

from dicom_io.volume import LPS_FROM_RAS
from monai_unet_app.confidence.results_bundle import results_bundle
from monai_unet_app.data.probability_files import probability_files, read_probabilities, tempered
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import InputRefusedError

run = pytest.fixture(shell)
SHAPE, OVERCONFIDENT, SUBJECTS = (20, 18, 16), 2.5, 14
NAMED = ("--structure", "1=liver", "--structure", "2=spleen")
Case = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]


def case(seed: int) -> Case:
    """Probabilities (3, I, J, K) of a program that is too sure, its labels, and true labels, drawn from what would be right."""
    random = np.random.default_rng(seed)
    places = np.indices(SHAPE).transpose(1, 2, 3, 0)
    logits = [np.zeros(SHAPE)]
    for middle, radius in (((6, 9, 8), 5.0), ((14, 8, 8), 4.0)):
        away = np.sqrt(((places - middle - random.uniform(-1, 1, 3)) ** 2).sum(-1))
        logits.append(1.2 * (radius - away))
    right = np.exp(logits) / np.exp(logits).sum(axis=0)
    drawn = (random.random(SHAPE) > np.cumsum(right, axis=0)).sum(axis=0)
    stated = np.exp(OVERCONFIDENT * np.array(logits))
    stated = (stated / stated.sum(axis=0)).astype(np.float32)
    return stated, stated.argmax(axis=0).astype(np.uint8), drawn.astype(np.uint8)


def save(path: Path, array: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE_RAS), path)


def as_npz(folder: Path, name: str, probabilities: NDArray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", probabilities=probabilities.transpose(0, 3, 2, 1).astype(np.float16))


def as_channels(folder: Path, name: str, probabilities: NDArray) -> None:
    save(folder / f"{name}.nii.gz", np.moveaxis(probabilities, 0, 3))


def as_structures(folder: Path, name: str, probabilities: NDArray) -> None:
    save(folder / f"{name}.nii.gz", np.moveaxis(probabilities[1:], 0, 3))


def as_files(folder: Path, name: str, probabilities: NDArray) -> None:
    for value, channel in enumerate(probabilities):
        save(folder / f"{name}_{value}.nii.gz", channel)


def as_two_files(folder: Path, name: str, probabilities: NDArray) -> None:
    for value in (1, 2):
        save(folder / f"{name}_{value}.nii.gz", probabilities[value])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("program")
    for seed in range(SUBJECTS + 6):
        probabilities, labels, truth = case(seed)
        part = root / ("fitted" if seed < SUBJECTS else "new")
        as_npz(part / "probabilities", f"case{seed:02}", probabilities)
        for folder, array in (("results", labels), ("labels", truth)):
            save(part / f"{folder}/case{seed:02}.nii.gz", array)
    return root


def given(root: Path) -> tuple[object, ...]:
    parts = (word for name in ("results", "labels", "probabilities") for word in (f"--{name}", root / name))
    return tuple(parts)


@pytest.fixture(scope="module")
def model(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from monai_unet_app.cli import main

    output = tmp_path_factory.mktemp("model") / "segmenter"
    words = ["calibrate", *map(str, given(folders / "fitted")), *BY, *NAMED, "--unseen", "--output", str(output)]
    assert main(words) == 0
    return output


def test_the_temperature_is_that_by_which_the_program_is_too_sure(model: Path) -> None:
    bundle = results_bundle(model)
    assert bundle is not None
    assert bundle.temperature == pytest.approx(OVERCONFIDENT, rel=0.05)
    confidence = bundle.confidence_about(bundle.program)
    assert confidence.risk is not None
    assert f"divided by {bundle.temperature:.3g}" in (model / "docs/README.md").read_text()


def test_calibration_error_is_measured_before_and_after(
    run: Run, folders: Path, model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    answer = run("evaluate", *given(folders / "new"), "--bundle", model, "--output", tmp_path / "out", "--json")
    assert answer.code == 0, answer.err
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    validate(metrics, "metrics")
    before, after = (metrics[name]["whole"]["top_label"]["ece"] for name in ("calibration_before", "calibration"))
    assert after < before / 4
    assert metrics["statements"]["cautious"]["Liver"]["mean_missed"] < 0.2
    sizes = [metrics["statements"]["sizes"][name]["observed"] for name in ("Liver", "Spleen")]
    assert min(sizes) >= 0.5
    request.getfixturevalue("without_pages")  # those of the first report are drawn
    raw = run("evaluate", *given(folders / "new"), *BY, *NAMED, "--output", tmp_path / "raw", "--json")
    assert json.loads(raw.out)["metrics"]["ece"]["top_label"] == pytest.approx(before)


def test_a_series_gets_an_interval_around_the_calibrated_size(run: Run, model: Path, tmp_path: Path) -> None:
    probabilities, labels, _ = case(90)
    save(tmp_path / "new.nii.gz", labels)
    as_npz(tmp_path / "more", "new", probabilities)
    write_mr_series(tmp_path / "series", labels.astype(np.int16) * 100 + 1000, LPS_FROM_RAS @ AFFINE_RAS)
    words = ("dicomize", "--labels", tmp_path / "new.nii.gz", "--source", tmp_path / "series", *BY, "--bundle", model)
    more = ("--output", tmp_path / "out", "--looked-at", "--deliver-rejected")
    answer = run(*words, "--probabilities", tmp_path / "more/new.npz", *more)
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "out/new_result.json").read_text())
    right = tempered(probabilities, OVERCONFIDENT)
    voxel = abs(np.linalg.det(AFFINE_RAS[:3, :3])) / 1000
    for row, channel in zip(result["structures"], right[1:], strict=True):
        low, high = row["volume_interval_ml"]
        assert low < channel.sum() * voxel < high
        assert row["mean_probability"] == pytest.approx(channel[labels == row["number"]].mean(), abs=0.02)
    answer = run(*words, *more)
    assert (answer.code, "was fitted with probabilities, and the result has none" in answer.err) == (3, True)


@pytest.mark.parametrize("write", [as_npz, as_channels, as_structures, as_files, as_two_files])
def test_every_form_is_read_to_the_same_values(write: object, tmp_path: Path) -> None:
    probabilities, labels, _ = case(3)
    save(tmp_path / "labels.nii.gz", labels)
    write(tmp_path / "more", "one_case", probabilities)  # type: ignore[operator]
    image = read_volume(tmp_path / "labels.nii.gz")
    on_image = labels if image.array.shape == labels.shape else None
    files = probability_files(tmp_path / "more")["one_case"]
    assert on_image is not None
    found = read_probabilities(files, tmp_path / "labels.nii.gz", image.array.astype(np.uint8), image, [1, 2])
    np.testing.assert_allclose(found, probabilities, atol=2e-3)


def test_only_named_values_and_what_is_left_is_background(tmp_path: Path) -> None:
    probabilities, labels, _ = case(4)
    save(tmp_path / "labels.nii.gz", labels)
    as_npz(tmp_path, "one", probabilities)
    image = read_volume(tmp_path / "labels.nii.gz")
    own = np.where(image.array == 2, 1, 0).astype(np.uint8)
    found = read_probabilities([tmp_path / "one.npz"], tmp_path / "labels.nii.gz", own, image, [2])
    np.testing.assert_allclose(found, [1 - probabilities[2], probabilities[2]], atol=2e-3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p * 0.98, "sum to"),
        (lambda p: p - 0.01, "holds values from -0.01"),
        (lambda p: p[[0, 2, 1]], "is not the likeliest class"),
        (lambda p: p[:, :-1], "is needed"),
        (lambda p: p[:1], "1 channel(s); 3 or more"),
    ],
)
def test_what_cannot_be_probabilities_of_these_labels_is_refused(change: object, text: str, tmp_path: Path) -> None:
    probabilities, labels, _ = case(5)
    save(tmp_path / "labels.nii.gz", labels)
    as_npz(tmp_path, "one", change(probabilities))  # type: ignore[operator]
    image = read_volume(tmp_path / "labels.nii.gz")
    with pytest.raises(InputRefusedError) as refused:
        read_probabilities(
            [tmp_path / "one.npz"],
            tmp_path / "labels.nii.gz",
            image.array.astype(np.uint8),
            image,
            [1, 3] if text.startswith("channel") else [1, 2],
        )
    assert text in str(refused.value)


def test_an_npz_with_code_or_another_thing_is_refused(tmp_path: Path) -> None:
    labels = case(6)[1]
    save(tmp_path / "labels.nii.gz", labels)
    image = read_volume(tmp_path / "labels.nii.gz")
    np.savez(tmp_path / "code.npz", probabilities=np.array([{"a": 1}], dtype=object))
    (tmp_path / "text.npz").write_text("no zip")
    np.savez(tmp_path / "other.npz", softmax=np.zeros((3, *SHAPE[::-1])))
    for name in ("code", "text", "other"):
        with pytest.raises(InputRefusedError, match="is needed"):
            read_probabilities([tmp_path / f"{name}.npz"], tmp_path / "labels.nii.gz", labels, image, [1, 2])


def test_a_case_whose_name_ends_in_a_number_is_no_class_of_another(tmp_path: Path) -> None:
    for name in ("scan", "scan_2"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert {name: len(files) for name, files in probability_files(tmp_path).items()} == {"scan": 1, "scan_2": 1}


def test_cases_without_probabilities_are_named(run: Run, folders: Path, tmp_path: Path) -> None:
    words = list(given(folders / "new"))
    words[words.index("--probabilities") + 1] = folders / "fitted/probabilities"
    answer = run("evaluate", *words, *BY, *NAMED, "--output", tmp_path / "out")
    assert (answer.code, "lacks probabilities of 6 of 6 labelled case(s)" in answer.err) == (3, True), answer.err

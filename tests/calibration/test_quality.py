"""The gate tells good results from bad ones; features come from geometry; a corrupted image stays on its grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from segmentations import exclusive

from dicom_io.volume import Provenance, Volume
from monai_unet_app.calibration.corruptions import CORRUPTIONS, TRUNCATED, corrupted, corruptions_of
from monai_unet_app.confidence.features import Features, describe_structures
from monai_unet_app.confidence.fine import FineDice, skill
from monai_unet_app.confidence.quality import SOUND, QualityGate, Sample

SPACING = (0.8, 1.0, 3.0)


def ball(radius: float, at: tuple[float, float, float] = (16, 14, 9)) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(n) for n in (34, 30, 20)), indexing="ij")
    away = sum(((axis - centre) * step) ** 2 for axis, centre, step in zip(grid, at, SPACING, strict=True))
    return np.sqrt(away) - radius


VOLUME = Volume(np.zeros((34, 30, 20), np.float32), np.diag([*SPACING, 1.0]))


def described(mask: np.ndarray, probability: np.ndarray) -> Features | None:
    (features,) = describe_structures(exclusive(VOLUME, [mask], [probability]))
    return features


def soft_ball(radius: float, softness: float) -> tuple[np.ndarray, np.ndarray]:
    """Its mask, and its probability, which falls from 1 to 0 within some `softness` of the surface, in mm."""
    away = ball(radius)
    return away <= 0, 1 / (1 + np.exp(away / softness))


def test_a_soft_result_is_less_sure_than_a_crisp_one() -> None:
    crisp, soft = (described(*soft_ball(9, softness)) for softness in (0.05, 2.0))
    assert crisp is not None
    assert soft is not None
    assert crisp.confidence > 0.99 > soft.confidence
    assert crisp.band_confidence > soft.band_confidence
    assert crisp.uncertainty < 0.02 < soft.uncertainty
    assert crisp.entropy < soft.entropy
    assert crisp.log_size == soft.log_size == pytest.approx(np.log(np.count_nonzero(ball(9) <= 0) * 0.0024))


def test_shreds_are_rough_and_in_pieces() -> None:
    whole = soft_ball(9, 0.3)
    shreds = np.zeros_like(whole[0])
    shreds[::3, ::3, ::3] = True
    found = described(shreds, shreds * 0.9)
    ball_like = described(*whole)
    assert found is not None
    assert ball_like is not None
    assert found.largest_part == pytest.approx(1 / np.count_nonzero(shreds))
    assert ball_like.largest_part == 1.0
    assert found.roughness == pytest.approx(np.count_nonzero(shreds) ** (1 / 3))  # every voxel is at the border
    assert found.roughness > ball_like.roughness


def test_what_was_not_found_has_no_features_and_is_to_be_looked_at() -> None:
    assert described(np.zeros(VOLUME.shape, bool), np.zeros(VOLUME.shape)) is None
    grade = made_gate().grade(1, None)
    assert (grade.verdict, grade.reasons) == ("review", ("nothing was found",))


def sample(subject: str, kind: str, badness: float, generator: np.random.Generator) -> Sample:
    """A result whose features speak of its badness, 0 to 1, and whose Dice is 0.92 less most of it."""
    noise = generator.normal(0, 0.01, 8)
    features = Features(
        confidence=0.93 - 0.4 * badness + noise[0],
        band_confidence=0.85 - 0.3 * badness + noise[1],
        uncertainty=0.12 + 0.5 * badness + noise[2],
        entropy=0.15 + 0.6 * badness + noise[3],
        log_size=0.5 + badness * 20 * noise[4] + noise[4],
        roughness=4 + 3 * badness + noise[5],
        largest_part=1 - 0.3 * badness + noise[6],
        border=0.1 * badness + abs(noise[7]),
    )
    return Sample(subject, kind, 1, features, float(np.clip(0.92 - 0.9 * badness + generator.normal(0, 0.02), 0, 1)))


def samples(subjects: int, seed: int) -> list[Sample]:
    generator = np.random.default_rng(seed)
    found = []
    for n in range(subjects):
        found += [sample(f"{seed}-{n}", SOUND, 0.02, generator)]
        found += [sample(f"{seed}-{n}", "corrupt", badness, generator) for badness in generator.random(6)]
    return found


def made_gate() -> QualityGate:
    return QualityGate.fit(samples(15, 0))


def test_the_gate_ranks_new_results_and_its_bound_holds() -> None:
    gate, fresh = made_gate(), samples(60, 1)
    predicted = np.array([gate.predicted_dice(one.structure, one.features) for one in fresh])
    true = np.array([one.dice for one in fresh])
    assert np.corrcoef(predicted.argsort().argsort(), true.argsort().argsort())[0, 1] > 0.95
    grades = [gate.grade(one.structure, one.features) for one in fresh]
    assert np.mean([one.dice >= grade.at_least for one, grade in zip(fresh, grades, strict=True)]) > 0.85
    flagged = np.array([grade.verdict != "accept" for grade in grades])
    assert flagged[true < 0.6].mean() > 0.95
    assert flagged[true > 0.8].mean() < 0.1


def test_a_bad_result_is_rejected_with_its_reasons() -> None:
    gate, generator = made_gate(), np.random.default_rng(2)
    grade = gate.grade(1, sample("x", "corrupt", 0.9, generator).features)
    assert grade.verdict == "reject"
    assert grade.dice < 0.4
    assert grade.reasons
    assert all("usually" in reason for reason in grade.reasons)
    assert gate.grade(1, sample("x", SOUND, 0.02, generator).features).verdict == "accept"


def sound_sample(subject: str, uncertainty: float, dice: float) -> Sample:
    return Sample(subject, SOUND, 1, Features(0.9, 0.85, uncertainty, 0.15, 0.5, 4.0, 1.0, 0.0), dice)


def test_among_sound_results_the_worse_are_told_from_the_better() -> None:
    generator, made = np.random.default_rng(3), []
    for n in range(40):
        doubt = generator.normal(0.12, 0.02)
        made.append(sound_sample(str(n), doubt, 1 - doubt + generator.normal(0, 0.003)))
    fine = FineDice.fit(made)
    assert fine.rank_correlation > 0.9
    assert fine.is_worth_showing
    found = [fine.predicted(1, sound_sample("x", doubt, 0).features) for doubt in (0.14, 0.12, 5.0)]
    assert found[:2] == pytest.approx([0.86, 0.88], abs=0.01)
    assert found[2] == pytest.approx(0.88 - 3 * 0.02, abs=0.015)  # beyond 3 standard deviations nothing is known
    assert FineDice.from_document(fine.document()) == fine


def test_a_number_that_tells_nothing_is_not_shown_and_its_bound_holds() -> None:
    generator = np.random.default_rng(4)
    made = samples(30, 0)  # the Dice of sound ones is chance
    gate = QualityGate.fit(made)
    assert gate.fine is not None
    assert gate.fine.rank_correlation < 0.25
    fresh = [sample(f"new-{n}", SOUND, 0.02, generator) for n in range(100)]
    grades = [gate.grade(1, one.features) for one in fresh]
    assert not any(grade.is_shown for grade in grades)
    assert {grade.verdict for grade in grades} == {"accept"}
    assert np.mean([one.dice >= grade.at_least for one, grade in zip(fresh, grades, strict=True)]) > 0.85
    assert gate.grade(1, sample("x", "corrupt", 0.9, generator).features).is_shown  # broken from sound it does tell


def test_a_gate_needs_subjects_for_its_bound() -> None:
    with pytest.raises(ValueError, match=r"3 subject\(s\); a bound that holds 90% of the time needs 9"):
        QualityGate.fit(samples(3, 0))


def test_predictions_without_skill_are_no_gate_and_its_own_verdicts_are_counted() -> None:
    gate = made_gate()
    assert gate.skill is not None
    assert 0.9 < gate.skill[1] <= gate.skill[0] <= 1  # badness decides features and Dice
    assert gate.left_out == (15, 0, 0)
    generator = np.random.default_rng(6)
    by_chance = [replace(one, dice=float(generator.uniform(0.82, 0.87))) for one in samples(12, 0)]
    with pytest.raises(ValueError, match=r"rank correlation of .* from -?0\.\d+, more than 0\.1 is needed"):
        QualityGate.fit(by_chance)


def test_a_gate_that_would_reject_good_results_is_not_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(12, 0)  # sound ones have a Dice of about 0.9
    halved = np.array([one.dice / 2 for one in made])  # in the right order, and far too low
    monkeypatch.setattr("monai_unet_app.confidence.quality.left_out", lambda *of: halved)
    with pytest.raises(ValueError, match=r"it would reject 12 of 12 results with a true Dice of 0\.65 or more"):
        QualityGate.fit(made)


def test_the_rank_correlation_is_that_of_scipy_and_people_are_drawn_whole() -> None:
    generator = np.random.default_rng(8)
    true, people, structures = generator.random(120), np.repeat(np.arange(30).astype(str), 4), np.tile([1, 2], 60)
    predicted = true + generator.normal(0, 0.3, 120)
    order, least = skill(predicted, true, structures.tolist(), people.tolist())
    expected = np.mean([stats.spearmanr(predicted[structures == n], true[structures == n])[0] for n in (1, 2)])
    assert order == pytest.approx(expected, abs=1e-12)
    # The normal interval of Fisher's z, of 60 pairs a structure and a mean of two
    assert least == pytest.approx(np.tanh(np.arctanh(expected) - 1.645 / np.sqrt(2 * 57)), abs=0.03)
    assert skill(np.full(120, 0.8), true, structures.tolist(), people.tolist()) == (0.0, 0.0)


def test_a_gate_is_the_same_after_it_was_written_and_read() -> None:
    gate = made_gate()
    again = QualityGate.from_document(gate.document())
    features = samples(1, 5)[3].features
    assert again.grade(1, features) == gate.grade(1, features)
    with pytest.raises(ValueError, match="calibrate again"):
        QualityGate.from_document({**gate.document(), "features": ["confidence"]})


def volume(shape: tuple[int, ...], *, planar: bool = False) -> Volume:
    array = np.random.default_rng(0).gamma(2, 50, shape).astype(np.float32)
    return Volume(array, np.diag([0.8, 1.0, 3.0, 1.0]), Provenance(kind="image" if planar else "nifti"), planar=planar)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_a_corruption_keeps_grid_and_labels_and_is_the_same_again(name: str) -> None:
    image, labels = volume((14, 12, 9)), (ball(6)[:14, :12, :9] <= 0).astype(np.uint8)
    labels[5:9, 4:9, 3:6] = 2
    corrupt, moved = corrupted(image, labels, name, seed=3)
    again, _ = corrupted(image, labels, name, seed=3)
    assert corrupt.shape == image.shape
    assert moved.shape == labels.shape
    assert set(np.unique(moved)) <= {0, 1, 2}
    assert np.isfinite(corrupt.array).all()
    assert not np.array_equal(corrupt.array, image.array)
    assert np.array_equal(corrupt.array, again.array)
    assert np.array_equal(corrupt.affine_lps, image.affine_lps)


def test_a_flip_takes_the_labels_along_and_noise_does_not() -> None:
    image, labels = volume((14, 12, 9)), np.arange(14 * 12 * 9).reshape(14, 12, 9)
    assert np.array_equal(corrupted(image, labels, "flipped along J", 0)[1], labels[:, ::-1])
    assert np.array_equal(corrupted(image, labels, "strong noise", 0)[1], labels)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_channels_of_other_intensities_are_corrupted_alike(name: str) -> None:
    strong = np.random.default_rng(1).gamma(2.0, 400.0, (18, 16, 12))
    image = Volume(np.stack([strong, strong / 1000], axis=-1).astype(np.float32), np.eye(4))
    changed = corrupted(image, np.zeros(image.shape[:3], np.uint8), name, seed=5)[0].array
    if "noise" in name:  # each channel has its own
        added = (changed - image.array).std(axis=(0, 1, 2))
        assert added[0] == pytest.approx(1000 * added[1], rel=0.05)
    else:
        assert changed[..., 0] == pytest.approx(1000 * changed[..., 1], rel=1e-3, abs=1e-2)


def test_a_picture_is_not_corrupted_along_an_axis_that_it_has_not() -> None:
    picture = volume((20, 16, 1, 3), planar=True)
    assert not {"flipped along K", "slices shuffled"} & set(corruptions_of(picture))
    for name in corruptions_of(picture):
        corrupt, moved = corrupted(picture, np.zeros((20, 16, 1), np.uint8), name, 0)
        assert corrupt.array.shape[2:] == (1, 3)
        assert moved.shape == corrupt.array.shape[:3]
        assert (name == TRUNCATED) == (moved.shape != (20, 16, 1))

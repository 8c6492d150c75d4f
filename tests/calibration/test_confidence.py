"""Statements of a bundle: fitted, written, read again, and held against what is true."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BUNDLES
from pydicom.sr.codedict import codes
from segmentations import exclusive, segments

from dicom_io.coding import Whole
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE, BundleFiles
from monai_unet_app.confidence.assessment import Assessment, assess
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.confidence.quality import Grade
from monai_unet_app.confidence.shift import ShiftDetector
from monai_unet_app.confidence.statement_audit import (
    Outcome,
    StructureTruth,
    missed_parts,
    missed_voxels,
    risk_coverage,
    summarise_statements,
)
from monai_unet_app.confidence.statements import (
    THRESHOLDS,
    Confidence,
    RiskStatement,
    SizeStatement,
    StructureMeasurement,
    measure_structures,
    measure_wholes,
    read_confidence,
)
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.errors import AppError, BundleError
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import settings_of

VOLUME = Volume(np.zeros((10, 9, 8), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]), Provenance(kind="nifti"))


def measured(subject: int, ratio: float, structure: int = 1) -> StructureMeasurement:
    """A case whose true size is `ratio` times what was expected, 5 mL."""
    return StructureMeasurement(f"s{subject}", structure, 5.0, 5.0 * ratio, 0.006, np.linspace(0, 0.4, len(THRESHOLDS)))


def off_by(subject: int, log_ratio: float, structure: int = 1) -> StructureMeasurement:
    """A case whose true size is off by this much, as a logarithm, with ten voxels added to both sizes."""
    small = 10 * 0.006
    return measured(subject, ((5.0 + small) * math.exp(log_ratio) - small) / 5.0, structure)


def test_of_nine_subjects_the_interval_reaches_as_far_as_the_one_farthest_from_all_others() -> None:
    stated = SizeStatement.fit([off_by(n, 0.01 * n) for n in range(9)], 0.9)
    half = 0.08 - sum(0.01 * n for n in range(8)) / 8
    assert stated.log_ratios[1] == pytest.approx((0.04 - half, 0.04 + half))
    interval = stated.interval(1, 5.0)
    assert interval is not None
    assert interval[1] == pytest.approx(5.06 * math.exp(0.04 + half) - 0.06)
    assert stated.interval(2, 5.0) is None  # nothing is known of that structure


def test_of_twenty_nine_subjects_the_two_farthest_may_lie_outside() -> None:
    off = np.linspace(-0.3, 0.0, 29)  # truths are smaller than expected, and so is the interval
    stated = SizeStatement.fit([off_by(n, value) for n, value in enumerate(off)], 0.9)
    third_farthest = 13 * (0.3 / 28) * 29 / 28  # from the mean of the other 28
    assert stated.log_ratios[1] == pytest.approx((-0.15 - third_farthest, -0.15 + third_farthest))


def test_cases_of_one_subject_count_as_one() -> None:
    alone = [off_by(n, 0.01 * n) for n in range(9)]
    repeated = [*alone, *[off_by(0, 0.0)] * 5]
    assert SizeStatement.fit(repeated, 0.9).log_ratios[1] == pytest.approx(SizeStatement.fit(alone, 0.9).log_ratios[1])


def test_of_eight_subjects_nothing_is_stated() -> None:
    assert SizeStatement.fit([measured(n, 1.0) for n in range(8)], 0.9).interval(1, 5.0) is None


def test_a_tiny_structure_has_a_finite_interval_that_does_not_go_below_nothing() -> None:
    rows = [StructureMeasurement(f"s{n}", 1, 0.0, 0.012 * (n == 3), 0.006, np.zeros(len(THRESHOLDS))) for n in range(9)]
    interval = SizeStatement.fit(rows, 0.9).interval(1, 0.0)
    off = math.log((0.012 + 0.06) / 0.06)
    assert interval == (0.0, pytest.approx(0.06 * math.exp(off * 10 / 9) - 0.06))


def test_what_a_case_says_of_a_structure_is_counted_in_millilitres() -> None:
    p = np.zeros(VOLUME.shape)
    p[2:4, 2:4, 2:4] = [[[0.9, 0.4], [0.9, 0.005]]] * 2
    truth = p > 0
    predicted = exclusive(VOLUME, [p > 0.5], [p])
    assert predicted.probabilities is not None
    boxes = [np.s_[:3, :, :], np.s_[3:, :, :]]
    slabs = [(box, predicted.probabilities[(slice(None), *box)]) for box in boxes]
    (found,) = measure_structures("s", predicted, exclusive(VOLUME, [truth]), slabs)
    (absent,) = measure_structures("s", predicted, exclusive(VOLUME, [truth & False]), slabs)
    assert np.isnan(absent.losses).all()
    assert found.expected == pytest.approx(p.sum() * 0.006)
    assert found.true == pytest.approx(8 * 0.006)
    at = dict(zip(THRESHOLDS, found.losses, strict=True))
    assert (at[0.001], at[0.01], at[0.3], at[0.5]) == (0.0, 0.25, 0.25, 0.5)
    assert np.all(np.diff(found.losses) >= 0)


def test_a_cautious_mask_is_cut_where_the_bound_allows_it() -> None:
    rows = [measured(n, 1.0) for n in range(19)]
    stated = RiskStatement.fit(rows, 0.1)
    (cut,) = stated.thresholds.values()
    losses = rows[0].losses
    allowed = [t for t, loss in zip(THRESHOLDS, losses, strict=True) if (19 * loss + 1) / 20 <= 0.1]
    assert cut == allowed[-1]
    assert RiskStatement.fit(rows[:5], 0.1).thresholds == {1: None}


@pytest.fixture
def stated() -> Confidence:
    rows = [measured(n, 1 + 0.01 * n, structure) for n in range(12) for structure in (1, 2)]
    return Confidence(SizeStatement.fit(rows, 0.9), risk=RiskStatement.fit(rows, 0.2), why_not={"gate": "nobody asked"})


def bundle_with(folder: Path, document: object) -> BundleFiles:
    """A bundle of these statements, which were fitted to it."""
    (folder / "configs").mkdir()
    for name in ("inference.yaml", "segments.json"):
        shutil.copy2(BUNDLES[0] / "configs" / name, folder / "configs")
    if isinstance(document, dict) and document["schema_version"] == "1.2":
        for setting, found in document["settings"].items():
            found["fitted_to"] = fitted_to(BundleFiles(folder), setting)
    (folder / CONFIDENCE).write_text(json.dumps(document))
    return BundleFiles(folder)


def test_what_was_written_is_read_again_by_setting(tmp_path: Path, stated: Confidence) -> None:
    document = {"schema_version": "1.2", "structures": ["a", "b"], "settings": {"plain": stated.document()}}
    files = bundle_with(tmp_path, document)
    assert read_confidence(files, ResultSettings()).document() == stated.document()


def test_a_setting_that_was_never_fitted_says_why_nothing_is_stated_of_it(tmp_path: Path, stated: Confidence) -> None:
    document = {"schema_version": "1.2", "structures": ["a", "b"], "settings": {"plain": stated.document()}}
    averaged = read_confidence(bundle_with(tmp_path, document), ResultSettings(tta=True))
    uncalibrated = read_confidence(BundleFiles(tmp_path / "configs"), ResultSettings())
    for found, why in ((averaged, "was calibrated without --tta"), (uncalibrated, "was not calibrated")):
        assert (found.sizes, found.risk, found.gate, found.shift, found.border) == (None,) * 5
        assert set(found.why_not) == {"sizes", "risk", "gate", "shift", "border"}
        assert all(why in reason for reason in found.why_not.values())


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"schema_version": "9", "structures": [], "settings": {}},
        {"schema_version": "1.2", "structures": [], "settings": {"plain": {"why_not": {}, "gate": {}}}},
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, document: object) -> None:
    with pytest.raises(AppError, match="confidence"):
        read_confidence(bundle_with(tmp_path, document), ResultSettings())


def test_a_gate_of_other_features_is_refused(tmp_path: Path) -> None:
    gate = {
        "features": ["x"],
        "centre": {},
        "spread": {},
        "weights": [],
        "margins": [0, 0],
        "coverage": 0.9,
        "subjects": 9,
        "samples": 9,
    }
    document = {"schema_version": "1.2", "structures": [], "settings": {"plain": {"why_not": {}, "gate": gate}}}
    with pytest.raises(BundleError, match="calibrate the bundle again"):
        read_confidence(bundle_with(tmp_path, document), ResultSettings())


def audited(found: Assessment, result: Segmentation, truth: Segmentation, complete: bool = True) -> Outcome:
    """The statements held against the truth, with the probabilities in two slabs."""
    missed = missed_voxels(found, truth.classes)
    for slab in ((slice(3, None), slice(None), slice(None)), (slice(0, 3), slice(None), slice(None))):
        assert result.probabilities is not None
        missed.add(slab, result.probabilities[(slice(None), *slab)])
    true = [
        StructureTruth(dice(one.mask_on_grid, other.mask_on_grid), one.size if complete else None, part)
        for one, other, part in zip(truth.structures, result.structures, missed_parts(found, missed), strict=True)
    ]
    return Outcome("s", found, true)


def test_statements_are_held_against_the_truth(stated: Confidence) -> None:
    p = np.zeros((3, *VOLUME.shape), np.float32)
    p[0] = 1.0
    p[:, 2:6, 2:6, 2:6] = np.array([0.1, 0.85, 0.05])[:, None, None, None]
    labels = p.argmax(0)
    result = exclusive(VOLUME, [labels == 1, labels == 2], p[1:])
    found = assess(stated, result, None)
    assert found.verdict is None  # without a gate there is none
    truth = exclusive(VOLUME, [labels == 1, np.zeros_like(labels, dtype=bool)])
    outcome = audited(found, result, truth)
    first, second = outcome.true
    assert first.dice == 1.0
    assert first.size == pytest.approx(64 * 0.006)
    assert first.missed == 0.0
    assert second.missed is None  # of nothing, nothing can be missed
    summary = summarise_statements([outcome], found.confidence, {1: "a", 2: "b"})
    assert summary["not_stated"] == {"gate": "nobody asked"}
    assert summary["sizes"]["a"]["observed"] in (0.0, 1.0)
    assert summary["cautious"]["b"] == {"risk": 0.2, "mean_missed": None, "cases": 0}
    json.dumps(summary, allow_nan=False)


WHOLE = Whole("a and b", (1, 2), codes.SCT.AnatomicalStructure, codes.SCT.Brain)


def test_what_two_parts_shift_between_them_does_not_count_for_the_whole() -> None:
    generator = np.random.default_rng(4)
    rows = []
    for n in range(40):
        moved = generator.normal(0, 0.5)  # mL that one part has too much and the other too little
        rows += [
            StructureMeasurement(f"s{n}", part, 5.0 + sign * moved, 5.0, 0.006, np.empty(0))
            for part, sign in ((1, 1), (2, -1))
        ]
    of_parts, of_whole = SizeStatement.fit(rows, 0.9), SizeStatement.fit(measure_wholes(rows, [WHOLE]), 0.9)
    assert of_whole.subjects == 40
    assert of_whole.interval(1, 10.0) == pytest.approx((10.0, 10.0))
    assert all(ends is not None and ends[1] - ends[0] > 0.2 for ends in of_parts.log_ratios.values())
    read = Confidence.from_document(json.loads(json.dumps(Confidence(of_parts, wholes=of_whole).document())))
    assert read.wholes == of_whole


def test_two_cases_of_a_person_are_two_wholes() -> None:
    rows = [measured(1, 1.0, 1), measured(1, 1.2, 2), measured(1, 0.9, 1), measured(1, 0.7, 2)]
    found = measure_wholes(rows, [WHOLE])
    assert [(one.subject, one.structure, one.expected) for one in found] == [("s1", 1, 10.0), ("s1", 1, 10.0)]
    assert [one.true for one in found] == pytest.approx([11.0, 8.0])


def test_the_statement_about_a_whole_is_held_against_the_truth() -> None:
    stated = Confidence(
        sizes=SizeStatement(0.9, {1: (-0.1, 0.1), 2: (-0.1, 0.1)}, 0.06, 20),
        wholes=SizeStatement(0.9, {1: (-0.05, 0.1)}, 0.06, 20),
    )
    p = np.zeros((3, *VOLUME.shape), np.float32)
    p[0] = 1.0
    p[:, 2:6, 2:6, 2:6] = np.array([0.1, 0.85, 0.05])[:, None, None, None]
    p[:, 6:8, 2:6, 2:6] = np.array([0.1, 0.05, 0.85])[:, None, None, None]
    labels = p.argmax(0)
    result = exclusive(VOLUME, [labels == 1, labels == 2], p[1:], WHOLE)
    found = assess(stated, result, None)
    (said,) = found.wholes
    assert said.size == pytest.approx(96 * 0.006)
    expected = 0.9 * 96 * 0.006  # of every voxel of both 0.1 is background
    assert said.size_interval == pytest.approx([(expected + 0.06) * math.exp(end) - 0.06 for end in (-0.05, 0.1)])
    assert said.is_beside_its_interval == (said.size > (said.size_interval or (0, 0))[1])
    outcome = audited(found, result, result)
    sizes = [(one.whole.name, outcome.size_of(one.whole)) for one in found.wholes]
    assert sizes == [("a and b, whole", pytest.approx(96 * 0.006))]
    summary = summarise_statements([outcome], found.confidence, {1: "a", 2: "b"})
    assert list(summary["sizes"]) == ["a", "b", "a and b, whole"]
    assert summary["sizes"]["a and b, whole"]["observed"] == float(not said.is_beside_its_interval)


def test_statements_about_wholes_alone_are_held_against_the_truth() -> None:
    stated = Confidence(wholes=SizeStatement(0.9, {1: (-0.05, 0.1)}, 0.06, 20))
    mask = np.zeros(VOLUME.shape, bool)
    mask[2:6, 2:6, 2:6] = True
    result = exclusive(VOLUME, [mask, np.roll(mask, 4, axis=0)], None, WHOLE)
    found = assess(stated, result, None)
    outcome = audited(found, result, result)
    assert list(summarise_statements([outcome], stated, {1: "a", 2: "b"})["sizes"]) == ["a and b, whole"]


def test_without_a_true_size_no_interval_is_held_against_it(stated: Confidence) -> None:
    with_wholes = replace(stated, wholes=SizeStatement(0.9, {1: (-0.05, 0.1)}, 0.06, 20))
    mask = np.zeros(VOLUME.shape, bool)
    mask[2:6, 2:6, 2:6] = True
    result = exclusive(VOLUME, [mask, np.zeros(VOLUME.shape, bool)], None, WHOLE)
    found = assess(with_wholes, result, None)
    outcome = audited(found, result, result, complete=False)
    assert outcome.true[0].size is outcome.true[1].size is outcome.size_of(WHOLE) is None
    summary = summarise_statements([outcome], found.confidence, {1: "a", 2: "b"})
    assert [summary["sizes"][name]["cases"] for name in ("a", "b", "a and b, whole")] == [0, 0, 0]


def test_a_picture_is_measured_in_pixels() -> None:
    picture = Volume(np.zeros((6, 5, 1), np.float32), np.diag([0.5, 0.5, 1, 1]), Provenance(kind="image"), planar=True)
    p = np.full((1, 6, 5, 1), 0.5, np.float32)
    result = Segmentation(picture, np.ones((1, 6, 5, 1), np.uint8), segments("vessel"), p)
    (found,) = measure_structures("s", result, result, [(np.s_[:, :, :], p)])
    assert (found.expected, found.true, found.voxel) == (15.0, 30.0, 1.0)
    # exp(-0.1) to exp(0.1) times 15 + 1 pixels, less 1
    stated = Confidence(sizes=SizeStatement(0.9, {1: (-0.1, 0.1)}, 1.0, 20))
    words = "its size of 30 px is probably too large: 13 to 17 px by its probabilities"
    assert assess(stated, result, None).reasons[1:] == (f"vessel: {words}",)


def test_risk_falls_as_less_is_kept_and_its_area_is_the_mean() -> None:
    coverage, risk = risk_coverage([0.9, 0.2, 0.6], [0.1, 0.9, 0.2])
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk == pytest.approx([0.1, 0.15, 0.4])
    assert risk.mean() == pytest.approx((0.1 + 0.15 + 0.4) / 3)
    assert [values.shape for values in risk_coverage([], [])] == [(0,), (0,)]


def test_an_image_from_elsewhere_has_the_wider_interval(tmp_path: Path, stated: Confidence) -> None:
    usual = replace(stated, sizes=SizeStatement(0.9, {1: (-0.1, 0.1)}, 0.06, 20))
    assert usual.elsewhere is None
    wide = replace(usual, sizes_elsewhere=SizeStatement(0.9, {1: (-0.2, 0.3)}, 0.06, 18))
    of_objects = replace(wide, counts=SizeStatement(0.9, {1: (-0.1, 0.1)}, 1.0, 20)).elsewhere
    assert of_objects is not None
    assert (of_objects.counts, "were not measured" in of_objects.why_not["counts"]) == (None, True)
    document = {"schema_version": "1.2", "structures": ["a", "b"], "settings": {"plain": wide.document()}}
    files = bundle_with(tmp_path, document)
    assert read_confidence(files, ResultSettings()).document() == wide.document()
    mask = np.zeros(VOLUME.shape, bool)
    mask[2:6, 2:6, 2:6] = True
    result, size = exclusive(VOLUME, [mask], [mask.astype(np.float32)]), 64 * 0.006
    detector = ShiftDetector.fit(list(np.random.default_rng(0).normal(size=(30, 4))), [str(n) for n in range(30)])
    found = {
        "as it came": assess(wide, result, None),
        "named": assess(read_confidence(files, ResultSettings(elsewhere=True)), result, None),
        "like the training": assess(replace(wide, shift=detector), result, np.zeros(4)),
        "unlike it": assess(replace(wide, shift=detector), result, np.full(4, 50.0)),
    }
    for name, one in found.items():
        ends = (-0.2, 0.3) if name in ("named", "unlike it") else (-0.1, 0.1)
        assert one.structures[0].size_interval == pytest.approx([(size + 0.06) * math.exp(end) - 0.06 for end in ends])
        assert one.confidence.is_elsewhere == (name in ("named", "unlike it"))


def test_statements_hold_on_every_device_and_change_with_mirror_images_kind_of_interval_and_precision(
    tmp_path: Path, stated: Confidence
) -> None:
    wide = replace(stated, sizes_elsewhere=SizeStatement(0.9, {1: (-0.2, 0.3)}, 0.06, 18))
    entries = {"plain": wide.document(), "tta": Confidence(why_not={"sizes": "too few"}).document()}
    files = bundle_with(tmp_path, {"schema_version": "1.2", "structures": ["a", "b"], "settings": entries})
    others: dict[str, Any] = {
        "device": "cuda", "tta": True, "elsewhere": True, "repairs": ("resample_gaps",), "engine": "toy", "precision": "half",
        "overrides": ("inferer::overlap=0.25",), "box": ((0, 9), (0, 9), (0, 9)),
    }  # fmt: skip
    assert set(others) == {row.name for row in fields(ResultSettings)}
    usual = read_confidence(files, ResultSettings())
    same = {
        name for name, value in others.items()
        if read_confidence(files, replace(ResultSettings(), **{name: value})).document() == usual.document()
    }  # fmt: skip
    assert same == {"device", "repairs", "engine", "box"}


def test_a_bundle_that_was_calibrated_on_a_cpu_states_its_intervals_on_another_device() -> None:
    bundle = replace(load_bundle("hippocampus_mri_unet3d"), device=torch.device("cuda"))
    settings = settings_of(PredictConfig(), bundle)
    assert settings.device == "cuda"
    assert read_confidence(bundle, settings).sizes is not None


def test_no_structure_has_a_narrower_interval_elsewhere() -> None:
    usual = SizeStatement(0.9, {1: (-0.1, 0.1), 2: (-0.1, 0.1), 3: None}, 0.06, 20)
    wide = SizeStatement(0.9, {1: (-0.3, 0.1), 2: (-0.05, 0.05), 3: (-0.1, 0.1)}, 0.06, 20)
    assert wide.not_narrower_than(usual).log_ratios == {1: (-0.3, 0.1), 2: (-0.1, 0.1), 3: None}


def test_how_often_intervals_hold_is_counted_on_subjects_that_they_were_not_fitted_on() -> None:
    rows = [off_by(n, 0.0) for n in range(20)]
    assert SizeStatement.fit(rows, 0.9).kept == {1: 1.0}
    # One subject far off: an interval fitted with 16 others does not reach it, and that of the others holds them
    assert SizeStatement.fit([*rows, off_by(20, 2.0)], 0.9).kept == {1: pytest.approx(20 / 21)}
    assert SizeStatement.fit(rows[:11], 0.9).kept is None  # 8 of 11 state nothing


def test_the_reasons_of_the_structure_with_the_worst_verdict_come_first() -> None:
    mask = np.zeros(VOLUME.shape, bool)
    mask[2:6, 2:6, 2:6] = True
    found = assess(Confidence(), exclusive(VOLUME, [mask], [mask.astype(np.float32)]), None)
    verdicts = {1: "accept", 2: "review", 3: "reject"}
    structures = tuple(
        replace(found.structures[0], number=n, name=f"part {n}", grade=Grade(0.0, 0.0, verdict, ("odd",)))
        for n, verdict in verdicts.items()
    )
    assert replace(found, structures=structures).reasons[1:] == ("part 3: odd", "part 2: odd", "part 1: odd")


def test_a_size_beside_its_own_interval_is_looked_at_by_somebody() -> None:
    confidence = Confidence(sizes=SizeStatement(0.9, {1: (-0.1, 0.1)}, 0.06, 20))
    mask = np.zeros(VOLUME.shape, bool)
    mask[2:6, 2:6, 2:6] = True
    sure, doubtful = mask.astype(np.float32), np.where(mask, 0.5, 0.0).astype(np.float32)
    usual, beside = (assess(confidence, exclusive(VOLUME, [mask], [p]), None) for p in (sure, doubtful))
    assert usual.reasons == ("no quality gate has judged this result: none was fitted",)
    # 64 voxels of 0.006 mL, of which the probabilities expect half: exp(-0.1) to exp(0.1) times 0.192 + 0.06 mL, less 0.06 mL
    words = "its size of 0.384 mL is probably too large: 0.168 to 0.219 mL by its probabilities"
    assert beside.reasons[1:] == (f"a: {words}",)
    # Labels alone: exp(0.2) to exp(0.3) times 0.384 + 0.06 mL, less 0.06 mL
    known = Confidence(sizes=SizeStatement(0.9, {1: (0.2, 0.3)}, 0.06, 20))
    words = "its size of 0.384 mL is probably too small: 0.482 to 0.539 mL by earlier results of the program"
    assert assess(known, replace(exclusive(VOLUME, [mask]), probabilities=None), None).reasons[1:] == (f"a: {words}",)
    accepted = Grade(dice=0.9, at_least=0.8, verdict="accept", reasons=())
    for found, verdict in ((usual, "accept"), (beside, "review")):
        graded = replace(found, structures=tuple(replace(one, grade=accepted) for one in found.structures))
        assert graded.verdict == verdict

"""The hazard matrix through our reader: right where a series can be read, never wrong, refusals that name the fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hazard_truth import Placed, Truth, fault, header_truths, judge, stack_truth
from hazards import ARRAY, HAZARDS, OBLIQUE, Hazard, real_series

from dicom_io.errors import DicomIoError
from dicom_io.read import read_series

WHOLE = [hazard for hazard in HAZARDS if not hazard.refusal]
FAULTY = [hazard for hazard in HAZARDS if hazard.refusal]
BRIGHTEST = ARRAY.max() == ARRAY
IDENTITIES = ("Phantom", "Lopsided", "PHANTOM", "19700101")


def build(hazard: Hazard, folder: Path) -> Path:
    """The folder, filled; skips where a file is lacking that the hazard is made from."""
    if hazard.needs is not None and not hazard.needs.is_file():
        pytest.skip(f"{hazard.needs.name} is not part of this installation of nibabel")
    hazard.build(folder)
    return folder


def read(folder: Path) -> list[Placed]:
    volume = read_series(folder)
    return [(volume.array, volume.affine_lps)]


def stacked_by_simpleitk(folder: Path) -> list[Placed]:
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(names)
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine_lps[:3, 3] = image.GetOrigin()
    return [(SimpleITK.GetArrayFromImage(image).T, affine_lps)]


def named(name: str) -> Hazard:
    return next(hazard for hazard in HAZARDS if hazard.name == name)


# --- our reader


@pytest.mark.parametrize("hazard", WHOLE, ids=lambda hazard: hazard.name)
def test_a_series_that_can_be_read_is_read_right(tmp_path: Path, hazard: Hazard) -> None:
    verdict = judge(read(build(hazard, tmp_path)), hazard.truths())
    assert verdict.kind == "right", verdict.text


@pytest.mark.parametrize("hazard", FAULTY, ids=lambda hazard: hazard.name)
def test_a_faulty_series_is_read_right_or_refused_by_the_name_of_its_fault(tmp_path: Path, hazard: Hazard) -> None:
    refusal, verdict = "", None
    try:
        verdict = judge(read(build(hazard, tmp_path)), hazard.truths())
    except DicomIoError as error:
        refusal = str(error)
    if verdict is not None:
        assert verdict.kind == "right", verdict.text
    else:
        assert hazard.unsaid(refusal) == [], refusal
        assert not [word for word in IDENTITIES if word in refusal]


@pytest.mark.slow
def test_no_real_series_is_read_wrong(tmp_path: Path, shared_data: Path) -> None:
    wrong = {}
    for number, hazard in enumerate(real_series(shared_data / "dicom_series")):
        hazard.build(tmp_path / str(number))
        try:
            verdict = judge(read(tmp_path / str(number)), hazard.truths())
        except DicomIoError:
            continue
        if verdict.kind != "right":
            wrong[hazard.name] = verdict.text
    assert wrong == {}


# --- the judge: it must be able to say no, and agree with another reader where that one is known to be right


@pytest.mark.parametrize("name", ["plain MR without rescale", "sagittal", "signed pixels", "big endian", "JPEG 2000"])
def test_simpleitk_is_right_where_it_is_known_to_be(tmp_path: Path, name: str) -> None:
    hazard = named(name)
    assert judge(stacked_by_simpleitk(build(hazard, tmp_path)), hazard.truths()).kind == "right"


@pytest.mark.parametrize("name", ["gantry tilt 20 degrees, even", "PET, a slope for each slice", "uneven spacing"])
def test_simpleitk_is_wrong_where_it_is_known_to_be(tmp_path: Path, name: str) -> None:
    hazard = named(name)
    assert judge(stacked_by_simpleitk(build(hazard, tmp_path)), hazard.truths()).kind == "WRONG"


def _moved(affine_lps: np.ndarray, millimetres: float) -> np.ndarray:
    moved = affine_lps.copy()
    moved[0, 3] += millimetres
    return moved


@pytest.mark.parametrize(
    ("volume", "text"),
    [
        ((ARRAY[::-1], OBLIQUE), "values differ"),
        ((ARRAY[:, ::-1], OBLIQUE), "values differ"),
        ((ARRAY[:, :, ::-1], OBLIQUE), "values differ"),
        ((np.roll(ARRAY, 1, axis=2), OBLIQUE), "values differ"),
        ((np.where(BRIGHTEST, 0, ARRAY), OBLIQUE), "1 of 1287 values differ"),
        ((np.where(BRIGHTEST, np.nan, ARRAY), OBLIQUE), "1 of 1287 values differ"),
        ((ARRAY, _moved(OBLIQUE, 0.06)), "others up to 0.06 mm off"),
        ((ARRAY, OBLIQUE @ np.diag([1, 1, 1.003, 1])), "no voxel centre"),
        ((ARRAY, OBLIQUE @ np.diag([-1, 1, 1, 1])), "lie outside"),
        ((ARRAY[:, :, :-1], OBLIQUE), "the truth has 1287 voxels"),
        ((ARRAY[..., None], OBLIQUE), "the truth has 1287 voxels"),
        ((ARRAY, np.zeros((4, 4))), "singular"),
    ],
)
def test_the_judge_sees_a_flip_a_shift_a_lost_slice_and_a_changed_voxel(volume: Placed, text: str) -> None:
    assert text in fault(volume, stack_truth(ARRAY, OBLIQUE))


@pytest.mark.parametrize("turn", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_judge_takes_any_order_of_axes_that_the_affine_tells(turn: tuple[int, int, int]) -> None:
    turned = OBLIQUE[:, [*turn, 3]]
    assert fault((ARRAY.transpose(turn), _moved(turned, 0.04)), stack_truth(ARRAY, OBLIQUE)) == ""


def test_every_required_volume_must_come_back_once_and_nothing_else() -> None:
    first, second = (ARRAY, OBLIQUE), (ARRAY + np.uint16(333), OBLIQUE)
    both = [stack_truth(*first), stack_truth(*second)]
    either = [stack_truth(*first, required=False), stack_truth(*second, required=False)]
    assert judge([second, first], both).kind == "right"
    assert judge([first], both).kind == "WRONG"
    assert judge([first, first], both).kind == "WRONG"
    assert judge([second], either).kind == "right"
    assert judge([first], []).kind == "WRONG"
    assert judge([], both).kind == "refused"


def test_headers_tell_the_same_truth_as_the_numbers_a_phantom_was_written_with(tmp_path: Path) -> None:
    hazard = named("slope and intercept by slice")
    hazard.build(tmp_path)
    (known,), (told,) = hazard.truths(), header_truths(tmp_path.iterdir())
    assert told.voxel_count == known.voxel_count
    assert len(told.values) == 5 * ARRAY.shape[2]
    for position, value in zip(told.positions_lps, told.values, strict=True):
        apart = np.linalg.norm(known.positions_lps - position, axis=1)
        assert apart.min() < 1e-6
        assert value == pytest.approx(known.values[apart.argmin()])


def test_frames_of_an_enhanced_object_are_told_by_its_groups(tmp_path: Path) -> None:
    hazard = named("enhanced, frames shuffled")
    hazard.build(tmp_path)
    (known,), (told,) = hazard.truths(), header_truths(tmp_path.iterdir())
    assert told.voxel_count == known.voxel_count
    assert fault((ARRAY, OBLIQUE), told) == ""
    assert fault((ARRAY[:, :, ::-1], OBLIQUE), told) != ""


def test_the_words_of_a_refusal_are_not_found_in_its_uids_and_paths() -> None:
    hazard = Hazard("a name", lambda folder: None, lambda: list[Truth](), (r"\b2\b", "missing"))
    assert hazard.unsaid("series 1.2.826.0.1 in /tmp/missing/2") == [r"\b2\b", "missing"]
    assert hazard.unsaid("2 slices are Missing") == []


def test_names_are_unique_and_fit_the_table() -> None:
    names = [hazard.name for hazard in HAZARDS]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 29

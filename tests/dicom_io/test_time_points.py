"""Several slices at one position: how they are separated into stacks, which of these can be chosen, and what is refused.

The slices of stack n are those of the phantom plus STEP * n, so that a single slice of another stack shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import CT_IMAGE, lopsided_array, oblique_affine, write_enhanced_mr, write_mr_series
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.read import read_series
from dicom_io.reading import frame_attributes
from dicom_io.reading.kept_attributes import DISTINGUISHING
from dicom_io.reading.series import scan_source

STEP, SLICES = 1000, 8
UIDS = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.5"}
Values = dict[str, Any]


def truth(stack: int) -> np.ndarray:
    return lopsided_array((11, 9, SLICES)) + np.int16(STEP * stack)


def write_stacks(folder: Path, values: Callable[[int, int], Values], count: int = 2, **header: object) -> Path:
    """Files of `count` stacks at the same positions; `values(n, k)`: what slice k of stack n says beside its place."""

    def edit(dataset: Dataset, k: int, n: int) -> None:
        for keyword, value in values(n, k).items():
            setattr(dataset, keyword, value)

    for n in range(count):
        edit_n = lambda dataset, k, n=n: edit(dataset, k, n)  # noqa: E731
        write_mr_series(folder, truth(n), oblique_affine(), header=UIDS | header, prefix=f"s{n}", edit=edit_n)
    return folder


def lose(folder: Path, n: int, k: int) -> None:
    (folder / f"s{n}_{SLICES - k:04d}.dcm").unlink()


def check_numbering(folder: Path, stacks: list[int], told: str) -> None:
    """Passes if time point n is the stack of that number whole, and the refusal without a choice tells `told`."""
    with pytest.raises(SeriesGeometryError) as refusal:
        read_series(folder)
    assert f"{len(stacks)} time points or similar stacks of {SLICES} slices each, which differ in {told}" in str(
        refusal.value
    )
    assert str(refusal.value).endswith(f"choose with --time-point 1 to {len(stacks)}")
    check_stacks(folder, stacks)


def check_stacks(folder: Path, stacks: list[int]) -> None:
    """Passes if time point n is the stack of that number whole; headers are read once for all of them."""
    scanned = scan_source(folder).series
    for number, stack in enumerate(stacks, start=1):
        np.testing.assert_array_equal(read_series(scanned, time_point=number).array, truth(stack))


# --- numbers are numbers, and what wanders is one


def test_an_echo_time_that_wanders_in_the_third_decimal_is_one_echo(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"EchoTime": f"{(9.2, 4.6)[n] + 0.001 * k:.3f}"})
    check_numbering(folder, [1, 0], "EchoTime (4.600 to 4.607 / 9.200 to 9.207)")


def test_numbers_that_are_written_differently_are_the_same(tmp_path: Path) -> None:
    texts = (("9.2", "9.20", "9.200000", "0.92e1"), ("4.6", "4.60", "04.6", "46e-1"))
    folder = write_stacks(tmp_path, lambda n, k: {"EchoTime": texts[n][k % 4]})
    np.testing.assert_array_equal(read_series(folder, time_point=1).array, truth(1))
    with pytest.raises(SeriesGeometryError, match="2 time points or similar stacks of 8 slices each"):
        read_series(folder)


def test_neighbouring_echoes_late_in_a_train_are_kept_apart(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"EchoTime": 38.5 + 1.1 * n}, count=3)
    check_numbering(folder, [0, 1, 2], "EchoTime (38.5 / 39.6 / 40.7)")


@pytest.mark.parametrize(
    ("values", "clusters"),
    [
        ([4.6, 4.604, 4.608, 9.2], [0, 0, 0, 1]),
        ([0.0, 5.0, 1000.0, 1005.0], [0, 1, 2, 2]),
        ([100.0, 101.0, 102.0, 103.0], [0, 0, 0, 0]),
        ([100.0, 101.1], [0, 1]),
        ([0.03, 0.05], [0, 1]),
    ],
)
def test_a_setting_is_another_where_it_steps_by_more_than_one_percent(values: list[float], clusters: list[int]) -> None:
    found = frame_attributes._attribute("EchoTime", [str(value) for value in values])
    assert list(found.labels) == clusters


# --- what the slices show goes before the counts of a scanner


@pytest.mark.parametrize(
    "acquisition",
    [lambda n, k: 2 * n + k % 2 + 1, lambda n, k: 2 * n + k // 4 + 1, lambda n, k: (n + k) % 2 + 1],
    ids=["odd and even", "slab halves", "alternating"],
)
def test_echoes_are_read_whole_however_acquisitions_are_counted(tmp_path: Path, acquisition) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"AcquisitionNumber": acquisition(n, k), "EchoTime": 10.0 * (n + 1)})
    check_numbering(folder, [0, 1], "EchoTime (10.0 / 20.0)")


def test_a_count_that_leaves_out_positions_separates_nothing(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"AcquisitionNumber": 2 * n + k % 2 + 1})
    for number in (None, 1):
        with pytest.raises(
            SeriesGeometryError, match=r"up to 2 slices at the same position.* AcquisitionNumber \(1 / 3\)"
        ):
            read_series(folder, time_point=number)


def test_a_count_that_times_contradict_is_not_believed(tmp_path: Path) -> None:
    folder = write_stacks(
        tmp_path, lambda n, k: {"AcquisitionNumber": (n + k) % 2 + 1, "TriggerTime": 40 * n + 1.3 * k}
    )
    with pytest.raises(SeriesGeometryError, match=r"they differ in TriggerTime .* AcquisitionNumber"):
        read_series(folder, time_point=1)


def test_an_echo_that_lacks_a_slice_blocks_only_itself(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"EchoTime": 5.0 * (n + 1)})
    (folder / "s1_0008.dcm").unlink()
    with pytest.raises(SeriesGeometryError, match=r"of 7 to 8 slices, which differ in EchoTime .* --time-point 1$"):
        read_series(folder)
    with pytest.raises(SeriesGeometryError, match=r"time point 2, at 7 of 8 positions; .* --time-point 1$"):
        read_series(folder, time_point=2)
    whole = read_series(folder, time_point=1)
    np.testing.assert_array_equal(whole.array, truth(0))
    assert "1 of the others lack slices" in whole.provenance.notes[0]


def test_times_echoes_and_phases_together_are_separated(tmp_path: Path) -> None:
    def values(n: int, k: int) -> Values:
        time, echo, word = n // 4, n // 2 % 2, "MP"[n % 2]
        return {"AcquisitionNumber": time + 1, "EchoTime": 5.0 * (echo + 1), "ImageType": ["ORIGINAL", "PRIMARY", word]}

    folder = write_stacks(tmp_path, values, count=8)
    told = (
        "AcquisitionNumber (1 / 2) and EchoTime (5.0 / 10.0) and "
        "ImageType (ORIGINAL\\PRIMARY\\M / ORIGINAL\\PRIMARY\\P), numbered by AcquisitionNumber, then EchoTime, then ImageType"
    )
    check_numbering(folder, list(range(8)), told)


def test_one_picture_without_diffusion_and_several_with_it_are_told_apart(tmp_path: Path) -> None:
    """b = 0 once and b = 1000 three times, counted by AcquisitionNumber; b = 0 names no b-value."""

    def values(n: int, k: int) -> Values:
        return {"AcquisitionNumber": n + 1} | ({"DiffusionBValue": 1000.0} if n else {})

    folder = write_stacks(tmp_path, values, count=4)
    check_stacks(folder, [0, 1, 2, 3])


# --- times that no stack shares


def test_a_cine_whose_trigger_time_differs_from_slice_to_slice_is_counted_in_its_order(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"TriggerTime": f"{40 * (2 - n) + 1.3 * k:.1f}"}, count=3)
    check_numbering(folder, [2, 1, 0], "TriggerTime (0.0 to 9.1 / 40.0 to 49.1 / 80.0 to 89.1)")
    assert read_series(folder, time_point=1).provenance.notes == (
        "time point 1 of 3 was asked for: TriggerTime 0.0 to 9.1; the slices at each position were counted in order of "
        "TriggerTime",
    )


def test_a_time_that_overlaps_between_stacks_orders_nothing(tmp_path: Path) -> None:
    """Position 3 lacks the first phase and has one more at the end: its n-th slice is not the n-th phase."""
    folder = write_stacks(tmp_path, lambda n, k: {"TriggerTime": 40 * (n + (k == 3)) + 1.3 * k}, count=3)
    with pytest.raises(SeriesGeometryError, match="they differ in TriggerTime"):
        read_series(folder, time_point=1)


def test_positions_that_are_imaged_one_after_another_are_counted_by_the_clock(tmp_path: Path) -> None:
    folder = write_stacks(
        tmp_path, lambda n, k: {"AcquisitionTime": f"1200{10 + 4 * k + n:02d}.{k}5", "TriggerTime": 0}, count=3
    )
    check_numbering(folder, [0, 1, 2], "AcquisitionTime (")


def test_a_clock_that_passes_midnight_goes_on(tmp_path: Path) -> None:
    """Slices 2 s apart from 23:59:50, stacks 20 s apart: midnight is within the first."""

    def values(n: int, k: int) -> Values:
        second = (86390 + 2 * k + 20 * n) % 86400
        return {"AcquisitionTime": f"{second // 3600:02d}{second // 60 % 60:02d}{second % 60:02d}"}

    check_numbering(write_stacks(tmp_path, values), [0, 1], "AcquisitionTime (+0 s to +14 s / +20 s to +34 s)")


def test_a_date_and_time_is_never_shown(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"AcquisitionDateTime": f"20261130{9 + n:02d}0000.5+0100"})
    check_numbering(folder, [0, 1], "AcquisitionDateTime (+0 s / +3600 s)")
    with pytest.raises(SeriesGeometryError) as refusal:
        read_series(folder)
    assert "2026" not in str(refusal.value)


# --- nothing but InstanceNumber, and series that were broken off


def one_after_another(n: int, k: int) -> Values:
    return {"InstanceNumber": n * SLICES + k + 1}


def position_by_position(n: int, k: int) -> Values:
    return {"InstanceNumber": k * 4 + n + 1}


def interleaved(n: int, k: int) -> Values:
    return {"InstanceNumber": n * SLICES + (k // 2 if k % 2 == 0 else SLICES // 2 + k // 2) + 1}


def check_read(folder: Path, stacks: list[int]) -> None:
    check_stacks(folder, stacks)
    with pytest.raises(SeriesSelectionError, match=rf"has {len(stacks)} time points"):
        read_series(folder, time_point=len(stacks) + 1)


@pytest.mark.parametrize("numbers", [one_after_another, position_by_position, interleaved])
def test_stacks_without_any_mark_are_counted_by_instance_number(tmp_path: Path, numbers) -> None:
    folder = write_stacks(tmp_path, numbers, count=4)
    check_numbering(folder, [0, 1, 2, 3], "InstanceNumber (1 to ")
    notes = read_series(folder, time_point=2).provenance.notes
    assert "the slices at each position were counted in order of InstanceNumber" in notes[0]


def test_the_order_in_which_pictures_were_made_says_nothing_against_their_numbers(tmp_path: Path) -> None:
    made = lambda n, k: {"ContentTime": f"1200{(7 * n * k + 3 * n) % 60:02d}"}  # noqa: E731
    folder = write_stacks(tmp_path, lambda n, k: one_after_another(n, k) | made(n, k), count=4)
    check_read(folder, [0, 1, 2, 3])


@pytest.mark.parametrize("numbers", [one_after_another, position_by_position])
def test_directions_that_are_named_nowhere_are_counted_by_instance_number(tmp_path: Path, numbers) -> None:
    folder = write_stacks(tmp_path, lambda n, k: numbers(n, k) | {"DiffusionBValue": 1000.0 * (n > 0)}, count=4)
    check_read(folder, [0, 1, 2, 3])


@pytest.mark.parametrize(
    "values",
    [
        lambda n, k: {"InstanceNumber": 1 + k},
        lambda n, k: {"InstanceNumber": 20 * k + n * (1 + (k == 3))},
        lambda n, k: one_after_another(n, k) | {"AcquisitionTime": f"1200{(7 * n * k + 3 * n) % 60:02d}"},
        lambda n, k: position_by_position(n, k) | {"TriggerTime": 40 * (n + (k == 3)) + 1.3 * k},
        lambda n, k: one_after_another(n, k) | {"EchoTime": 5.0 * (1 + (n == 1 and k < 4) + (n == 2 and k >= 4))},
    ],
    ids=["the same", "no regular steps", "against a clock", "a time says otherwise", "several echoes in each"],
)
def test_numbers_that_could_mislead_separate_nothing(tmp_path: Path, values) -> None:
    folder = write_stacks(tmp_path, values, count=4)
    for number in (None, 1):
        with pytest.raises(
            SeriesGeometryError, match="which does not separate them into stacks that hold each position once"
        ):
            read_series(folder, time_point=number)


BROKEN_OFF = {
    "numbers": lambda n, k: one_after_another(n, k),
    "temporal positions": lambda n, k: {"TemporalPositionIdentifier": n + 1},
    "acquisitions": lambda n, k: {"AcquisitionNumber": n + 1, "ContentTime": f"12{n:02d}{k:02d}"},
    "directions": lambda n, k: one_after_another(n, k) | {"DiffusionBValue": 1000.0 * (n > 0)},
}


@pytest.mark.parametrize("marked", BROKEN_OFF)
@pytest.mark.parametrize("left", [1, 5])
def test_a_series_that_was_broken_off_keeps_its_whole_stacks(tmp_path: Path, marked: str, left: int) -> None:
    folder = write_stacks(tmp_path, BROKEN_OFF[marked], count=4)
    for k in range(left, SLICES):
        lose(folder, 3, k)
    check_stacks(folder, [0, 1, 2])
    with pytest.raises(SeriesGeometryError, match=rf"time point 4, at {left} of 8 positions; .* --time-point 1 to 3$"):
        read_series(folder, time_point=4)


@pytest.mark.parametrize("lost", [(0, 0), (1, 0), (2, 4)])
def test_a_lost_slice_is_no_end_where_only_numbers_count(tmp_path: Path, lost: tuple[int, int]) -> None:
    """Without the first slice of a stack the numbers of the next could fill its place."""
    folder = write_stacks(tmp_path, one_after_another, count=3)
    lose(folder, *lost)
    with pytest.raises(SeriesGeometryError, match="which does not separate them"):
        read_series(folder, time_point=1)


# --- each attribute that may tell stacks apart

CLASSIC = {
    "PET frames": {"FrameReferenceTime": [5.0, 1005.0], "Modality": "PT"},
    "CT heart": {"NominalPercentageOfCardiacPhase": [30.0, 70.0]} | CT_IMAGE,
    "CT breath": {"NominalPercentageOfRespiratoryPhase": [0.0, 50.0]} | CT_IMAGE,
    "CT kernels": {"ConvolutionKernel": ["B30f", "B70f"]} | CT_IMAGE,
    "directions": {"DiffusionGradientOrientation": [[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]]},
    "b-values": {"DiffusionBValue": [50.0, 800.0]},
    "inversions": {"InversionTime": [100.0, 900.0]},
    "phase": {"ImageType": [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]},
    "clock": {"ContentTime": ["101500", "101730"]},
}


@pytest.mark.parametrize("name", CLASSIC)
def test_each_attribute_of_a_classic_series_separates_its_stacks(tmp_path: Path, name: str) -> None:
    keyword, values = next((key, value) for key, value in CLASSIC[name].items() if key in DISTINGUISHING)
    header = {key: value for key, value in CLASSIC[name].items() if key != keyword}
    folder = write_stacks(tmp_path, lambda n, k: {keyword: values[n]}, **header)
    check_numbering(folder, [0, 1], keyword)


def item(**values: object) -> DicomSequence:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return DicomSequence([dataset])


ENHANCED: dict[str, Callable[[int], DicomSequence]] = {
    "MRImageFrameTypeSequence": lambda n: item(FrameType=["ORIGINAL", "PRIMARY", "MP"[n], "NONE"]),
    "CTImageFrameTypeSequence": lambda n: item(FrameType=["ORIGINAL", "PRIMARY", ("AXIAL", "VOLUME")[n], "NONE"]),
    "CardiacSynchronizationSequence": lambda n: item(NominalCardiacTriggerDelayTime=30.0 * n),
    "RespiratorySynchronizationSequence": lambda n: item(NominalPercentageOfRespiratoryPhase=30.0 * n),
    "FrameContentSequence": lambda n: item(FrameAcquisitionNumber=n + 1),
    "TemporalPositionSequence": lambda n: item(TemporalPositionTimeOffset=2.5 * n),
    "MREchoSequence": lambda n: item(EffectiveEchoTime=5.0 * (n + 1)),
    "MRModifierSequence": lambda n: item(InversionTimes=[100.0 + 50 * n, 2000.0]),
    "MRDiffusionSequence": lambda n: item(
        DiffusionBValue=1000.0,
        DiffusionGradientDirectionSequence=item(DiffusionGradientOrientation=[[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]][n]),
    ),
    "CTReconstructionSequence": lambda n: item(ConvolutionKernel=("SOFT", "BONE")[1 - n]),
}


def write_enhanced(folder: Path, edit: Callable[[Dataset, int, int], None], count: int = 2) -> Path:
    """One object with `count` stacks; `edit(frame's groups, n, slice)`."""

    def repeat(dataset: Dataset, _: int) -> None:
        frames, pixels = list(dataset.PerFrameFunctionalGroupsSequence), np.frombuffer(dataset.PixelData, dtype="<i2")
        found = [copy.deepcopy(frame) for _ in range(count) for frame in frames]
        for number, frame in enumerate(found):
            edit(frame, number // SLICES, SLICES - 1 - number % SLICES)  # the writer puts frames against the positions
        dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = DicomSequence(found), len(found)
        dataset.PixelData = np.concatenate([pixels + np.int16(STEP * n) for n in range(count)]).astype("<i2").tobytes()

    write_enhanced_mr(folder / "enhanced.dcm", truth(0), oblique_affine(), edit=repeat)
    return folder


@pytest.mark.parametrize("macro", ENHANCED)
def test_each_functional_group_of_an_enhanced_object_separates_its_stacks(tmp_path: Path, macro: str) -> None:
    folder = write_enhanced(tmp_path, lambda frame, n, k: setattr(frame, macro, ENHANCED[macro](n)))
    check_numbering(folder, [0, 1], "")


# --- several stacks in one enhanced object


def turned_about_z(frame: Dataset, degrees: float) -> None:
    """Turns position and orientation of a frame about the patient's long axis."""
    turn = np.eye(3)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    affine_lps = oblique_affine()
    steps = affine_lps[:3, :2] / np.linalg.norm(affine_lps[:3, :2], axis=0)
    place = frame.PlanePositionSequence[0]
    place.ImagePositionPatient = [f"{x:.6f}" for x in turn @ np.array(place.ImagePositionPatient, dtype=float)]
    cosines = [f"{x:.9f}" for x in (turn @ steps).T.ravel()]
    frame.PlaneOrientationSequence = item(ImageOrientationPatient=cosines)


def test_stacks_of_several_orientations_are_chosen_by_their_stack_id(tmp_path: Path) -> None:
    def edit(frame: Dataset, n: int, k: int) -> None:
        frame.FrameContentSequence = item(StackID=("2", "10", "3")[n], InStackPositionNumber=k + 1)
        turned_about_z(frame, 30.0 * n)

    folder = write_enhanced(tmp_path, edit, count=3)
    with pytest.raises(
        SeriesGeometryError, match=r"3 stacks of 8 slices each, which differ in StackID \(2 / 3 / 10\).*1 to 3"
    ):
        read_series(folder)
    for number, n in ((1, 0), (2, 2), (3, 1)):
        volume = read_series(folder, time_point=number)
        np.testing.assert_array_equal(volume.array, truth(n))
        turn = np.radians(30.0 * n)
        corner = oblique_affine()[:3, 3]
        x = corner[0] * np.cos(turn) - corner[1] * np.sin(turn)
        assert volume.affine_lps[0, 3] == pytest.approx(x, abs=1e-5)


def test_parallel_stacks_apart_from_each_other_are_chosen_by_their_stack_id(tmp_path: Path) -> None:
    """Two slabs of one orientation with a hole between them, two echoes in each."""

    def edit(frame: Dataset, n: int, k: int) -> None:
        frame.FrameContentSequence = item(StackID=str(n // 2 + 1))
        frame.MREchoSequence = item(EffectiveEchoTime=5.0 * (n % 2 + 1))
        place = frame.PlanePositionSequence[0]
        shift = oblique_affine()[:3, 2] * (n // 2) * (SLICES + 3.4)
        place.ImagePositionPatient = [f"{x:.6f}" for x in np.array(place.ImagePositionPatient, dtype=float) + shift]

    folder = write_enhanced(tmp_path, edit, count=4)
    with pytest.raises(SeriesGeometryError, match=r"StackID \(1 / 2\) and EffectiveEchoTime \(5.0 / 10.0\)"):
        read_series(folder)
    check_stacks(folder, [0, 1, 2, 3])


def test_parts_that_are_one_even_volume_are_read_together_whatever_their_stack_ids(tmp_path: Path) -> None:
    folder = write_enhanced(
        tmp_path, lambda frame, n, k: setattr(frame, "FrameContentSequence", item(StackID=str(k // 4))), count=1
    )
    np.testing.assert_array_equal(read_series(folder).array, truth(0))


# --- one slice a position, but not of one thing

MIXED = {
    "EchoTime": lambda k: (10.0, 100.0)[k % 2],
    "DiffusionBValue": lambda k: (0.0, 1000.0)[k > 3],
    "InversionTime": lambda k: (100.0, 900.0, 1500.0)[k % 3],
    "ImageType": lambda k: ["ORIGINAL", "PRIMARY", "MP"[k > 3]],
}


@pytest.mark.parametrize("keyword", MIXED)
def test_an_mr_stack_whose_slices_show_different_things_is_refused(tmp_path: Path, keyword: str) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {keyword: MIXED[keyword](k)}, count=1)
    with pytest.raises(SeriesSelectionError, match=rf"slices of different {keyword} \(.* / .*\) in one stack"):
        read_series(folder)


CT_MIXED = {
    "ConvolutionKernel": (lambda k: ("B30f", "B70f")[k % 2], "different ConvolutionKernel"),
    "KVP": (lambda k: (80, 140)[k % 2], "different KVP"),
    "RescaleType": (lambda k: ("HU", "MGML")[k > 3], "mixes slices of HU and MGML"),
}


@pytest.mark.parametrize("keyword", CT_MIXED)
def test_a_ct_stack_of_two_reconstructions_is_refused(tmp_path: Path, keyword: str) -> None:
    value, said = CT_MIXED[keyword]
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": 0}
    folder = write_stacks(tmp_path, lambda n, k: {keyword: value(k)} | rescaled, count=1, Modality="CT")
    with pytest.raises(SeriesSelectionError, match=said):
        read_series(folder)


def test_slices_of_two_acquisitions_that_alternate_are_said(tmp_path: Path) -> None:
    """Two phases of the contrast may be woven into one stack; stations one after the other are usual."""
    woven = write_stacks(tmp_path / "woven", lambda n, k: {"AcquisitionNumber": k % 2 + 1}, count=1, Modality="CT")
    assert "alternate; check that they show the same phase" in " ".join(read_series(woven).provenance.notes)
    stations = write_stacks(tmp_path / "one", lambda n, k: {"AcquisitionNumber": k // 4 + 1}, count=1, Modality="CT")
    assert read_series(stations).provenance.notes == ()


def test_values_that_only_a_mapping_slice_by_slice_makes_comparable_are_refused(tmp_path: Path) -> None:
    def mapped(n: int, k: int) -> Values:
        return {"RealWorldValueMappingSequence": item(RealWorldValueSlope=1.0 + k, RealWorldValueIntercept=0.0)}

    with pytest.raises(SeriesSelectionError, match="stored values with a RealWorldValueSlope of 1 and stored values"):
        read_series(write_stacks(tmp_path, mapped, count=1))


def test_slices_with_and_without_diffusion_weighting_are_not_one_stack(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"DiffusionBValue": 1000.0} if k > 3 else {}, count=1)
    with pytest.raises(SeriesSelectionError, match=r"different DiffusionBValue \(none / 1000.0\)"):
        read_series(folder)


@pytest.mark.parametrize(
    "values",
    [
        lambda n, k: {"EchoTime": f"{4.6 + 0.02 * k:.3f}", "InversionTime": f"{900 + 8.0 * k:.1f}"},
        lambda n, k: {"ImageType": ["ORIGINAL", "PRIMARY", "M", ("NORM", "DIS2D")[k % 2]]},
        lambda n, k: {"EchoTime": 10.0} if k else {"EchoTime": None},
        lambda n, k: {"DiffusionBValue": 0.0} if k else {},
        lambda n, k: {"EchoTime": (10.0, 100.0)[k % 2], "Modality": "OT"},
    ],
    ids=["slow wander", "filter words", "a value lost", "b = 0 unsaid", "no MR"],
)
def test_a_stack_that_differs_in_nothing_that_matters_is_read(tmp_path: Path, values) -> None:
    folder = write_stacks(tmp_path, values, count=1)
    np.testing.assert_array_equal(read_series(folder).array, truth(0))


def test_a_difference_that_is_tolerated_is_noted(tmp_path: Path) -> None:
    folder = write_stacks(tmp_path, lambda n, k: {"EchoTime": (10.0, 10.3)[k % 2]}, count=1)
    assert read_series(folder).provenance.notes == ("the slices differ a little in EchoTime (10.0 / 10.3)",)


# --- the tables


def test_every_mark_is_an_attribute_of_one_kind() -> None:
    assert len(set(DISTINGUISHING)) == len(DISTINGUISHING)
    assert all(tag_for_keyword(keyword) is not None for keyword in DISTINGUISHING)


@pytest.mark.parametrize(
    ("image_type", "found"),
    [
        ("ORIGINAL\\PRIMARY\\M\\ND\\NORM", "M"),
        ("ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE", "M"),
        ("ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE", "P"),
        ("DERIVED\\SECONDARY\\MPR", ""),
        ("ORIGINAL\\PRIMARY", ""),
    ],
)
def test_the_component_is_read_from_image_type_as_siemens_and_philips_write_it(image_type: str, found: str) -> None:
    assert frame_attributes.component(image_type) == found

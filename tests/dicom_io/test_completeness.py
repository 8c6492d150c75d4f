"""A series that has fewer images than its own headers count is refused, unless the study shows that the count is another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, oblique_affine, write_mr_series, write_picture
from pydicom.uid import generate_uid

from dicom_io.channels import read_channels
from dicom_io.errors import SeriesGeometryError
from dicom_io.read import ReadOptions, examine, read_series
from dicom_io.reading.completeness import missing_images
from dicom_io.reading.series import find_series

SLICES = 12
ARRAY, AFFINE = lopsided_array((11, 9, SLICES)), oblique_affine()
STUDY = {"StudyInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), "AcquisitionNumber": 2}


def series(folder: Path, wanted: object = SLICES, *, slices: int = SLICES, gap: float = 1.0, **header: object) -> str:
    """Writes the first slices, `gap` times as far apart as usual, and gives their SeriesInstanceUID."""
    uid = generate_uid()
    steps = AFFINE @ np.diag([1, 1, gap, 1])
    steps[:3, 3] += (gap - 1) / 2 * AFFINE[:3, 2]  # thick slices begin where thin ones do
    told = STUDY | {"ImagesInAcquisition": wanted, "SeriesInstanceUID": uid} | header
    write_mr_series(folder, ARRAY[:, :, :slices], steps, header=told, names_backwards=False)
    return uid


def lack(folder: Path, uid: str) -> str | None:
    """What the module says of a series among all that lie in a folder."""
    found = find_series(folder)
    (own,) = [one for one in found if one.series_instance_uid == uid]
    missing = missing_images(own, found)
    return missing.words if missing else None


def test_a_series_that_was_cut_off_is_refused_with_both_numbers_and_the_flag(tmp_path: Path) -> None:
    uid = series(tmp_path, slices=7)
    wanted = (
        rf"series {uid} is incomplete by its own headers: it holds 7 images, and its headers count 12 "
        r"\(ImagesInAcquisition\): 5 missing; all are needed.*; fetch the missing images, or pass --accept-incomplete"
    )
    with pytest.raises(SeriesGeometryError, match=wanted):
        read_series(tmp_path)
    (verdict,) = examine(tmp_path)
    assert verdict.outcome == "refused"
    assert "5 missing" in verdict.reason


def test_what_is_here_is_read_on_request_and_the_volume_says_so(tmp_path: Path) -> None:
    series(tmp_path, slices=7)
    volume = read_series(tmp_path, accept_incomplete=True)
    np.testing.assert_array_equal(volume.array, ARRAY[:, :, :7])
    assert volume.provenance.incomplete
    assert volume.provenance.notes == (
        "read on request although it is incomplete by its own headers: it holds 7 images, and its headers count 12 "
        "(ImagesInAcquisition): 5 missing",
    )
    (verdict,) = examine(tmp_path, ReadOptions(accept_incomplete=True))
    assert verdict.outcome == "readable"


@pytest.mark.parametrize("wanted", [SLICES, 5, 0, "", None])
def test_a_whole_series_is_read_and_a_count_that_says_nothing_refuses_nothing(wanted: object, tmp_path: Path) -> None:
    series(tmp_path, wanted)
    volume = read_series(tmp_path, accept_incomplete=True)
    assert (volume.shape[2], volume.provenance.incomplete) == (SLICES, False)
    assert read_series(tmp_path).provenance.notes == ()


@pytest.mark.parametrize("text", [b"ab", b"1.", b"-9", b"9\\"])
def test_a_count_that_is_no_whole_number_refuses_nothing(text: bytes, tmp_path: Path) -> None:
    series(tmp_path, 77)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content.count(b"IS\x02\x0077") == 1
        path.write_bytes(content.replace(b"IS\x02\x0077", b"IS\x02\x00" + text))
    assert read_series(tmp_path).shape[2] == SLICES


def test_a_copy_of_an_image_stands_in_for_no_other(tmp_path: Path) -> None:
    uid = series(tmp_path, slices=SLICES - 1)
    first = sorted(tmp_path.iterdir())[0]
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    assert lack(tmp_path, uid) == "it holds 11 images, and its headers count 12 (ImagesInAcquisition)"


def test_slices_that_were_filled_in_on_request_are_no_longer_missing(tmp_path: Path) -> None:
    series(tmp_path)
    (tmp_path / "slice_0006.dcm").unlink()
    with pytest.raises(SeriesGeometryError, match="--resample-gaps"):
        read_series(tmp_path)
    assert read_series(tmp_path, resample_gaps=True).shape[2] == SLICES
    (tmp_path / "slice_0012.dcm").unlink()  # an end that is missing cannot be filled in
    with pytest.raises(SeriesGeometryError, match="holds 10 images, and its headers count 12"):
        read_series(tmp_path, resample_gaps=True)
    assert read_series(tmp_path, resample_gaps=True, accept_incomplete=True).shape[2] == SLICES - 1


@pytest.mark.parametrize(
    ("keyword", "more", "words"),
    [
        ("ImagesInAcquisition", {}, "it holds 12 images, and its headers count 15 (ImagesInAcquisition)"),
        (
            "NumberOfSlices",
            {"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"},
            "it holds 12 images, and its headers count 15 (NumberOfSlices)",
        ),
    ],
    ids=["MR", "PET"],
)
@pytest.mark.parametrize("which", [0, SLICES - 1], ids=["the first header", "the last header"])
def test_of_headers_that_count_differently_the_larger_count_holds(
    which: int, keyword: str, more: dict[str, object], words: str, tmp_path: Path
) -> None:
    uid = series(tmp_path, None, **{keyword: SLICES}, **more)
    path = sorted(tmp_path.iterdir())[which]
    header = pydicom.dcmread(path)
    setattr(header, keyword, 15)
    header.save_as(path)
    assert lack(tmp_path, uid) == words


def numbered(folder: Path, numbers: list[int], wanted: int) -> str:
    """A series whose slice k is of acquisition `numbers[k]`."""
    uid = generate_uid()

    def edit(dataset: pydicom.Dataset, k: int) -> None:
        dataset.AcquisitionNumber, dataset.ImagesInAcquisition = numbers[k], wanted

    write_mr_series(folder, ARRAY[:, :, : len(numbers)], AFFINE, header=STUDY | {"SeriesInstanceUID": uid}, edit=edit)
    return uid


@pytest.mark.parametrize(
    ("numbers", "wanted", "words"),
    [
        ([1] * 4 + [2] * 4, 4, None),
        ([1] * 4 + [2] * 3, 4, "it holds 3 images of acquisition 2, and its headers count 4 (ImagesInAcquisition)"),
        ([1, 2, 3, 4, 5, 6], 6, None),  # a rotation of the tube each, the whole series counted
        ([1, 2, 3, 4, 5], 6, "it holds 5 images, and its headers count 6 (ImagesInAcquisition)"),
        ([1] * 4 + [2] * 4, 5, None),  # neither meaning fits: nothing can be said
    ],
)
def test_acquisitions_are_counted_one_by_one_or_all_together_as_the_numbers_show(
    numbers: list[int], wanted: int, words: str | None, tmp_path: Path
) -> None:
    assert lack(tmp_path, numbered(tmp_path, numbers, wanted)) == words


def test_an_acquisition_that_is_counted_over_two_series_is_whole_beside_the_other_and_not_without_it(
    tmp_path: Path,
) -> None:
    first, second = (series(tmp_path / name, 2 * SLICES, EchoTime=time) for name, time in (("a", 4), ("b", 9)))
    for uid in (first, second):
        assert read_series(tmp_path, series_instance_uid=uid).shape[2] == SLICES
    assert lack(tmp_path / "a", first) == "it holds 12 images, and its headers count 24 (ImagesInAcquisition)"
    both = read_channels(tmp_path, [first, second])
    assert not both.provenance.incomplete
    (tmp_path / "b/slice_0012.dcm").unlink()
    for uid in (first, second):
        assert lack(tmp_path, uid) is not None


def test_a_thicker_reconstruction_of_the_same_reach_is_whole_and_one_that_was_cut_off_is_not(tmp_path: Path) -> None:
    series(tmp_path / "thin")
    thick = series(tmp_path / "thick", slices=4, gap=3.0)
    assert lack(tmp_path, thick) is None
    assert read_series(tmp_path, series_instance_uid=thick).shape[2] == 4
    (tmp_path / "thick/slice_0004.dcm").unlink()
    assert lack(tmp_path, thick) == "it holds 3 images, and its headers count 12 (ImagesInAcquisition)"


def test_the_same_slices_cut_off_beside_a_whole_series_are_still_cut_off(tmp_path: Path) -> None:
    series(tmp_path / "whole")
    short = series(tmp_path / "short", slices=11)
    assert lack(tmp_path, short) == "it holds 11 images, and its headers count 12 (ImagesInAcquisition)"


@pytest.mark.parametrize(("kind", "is_whole"), [("DERIVED", True), ("ORIGINAL", False)])
def test_a_reformatted_series_carries_the_count_of_its_source(kind: str, is_whole: bool, tmp_path: Path) -> None:
    series(tmp_path / "source")
    turned = AFFINE.copy()
    turned[:3, :3] = AFFINE[:3, [2, 0, 1]]
    uid = generate_uid()
    told = STUDY | {"ImagesInAcquisition": SLICES, "SeriesInstanceUID": uid, "ImageType": [kind, "SECONDARY", "MPR"]}
    write_mr_series(tmp_path / "reformatted", ARRAY[:, :, :7], turned, header=told)
    assert (lack(tmp_path, uid) is None) == is_whole
    assert lack(tmp_path / "reformatted", uid) is not None  # nothing tells it from a series that was cut off


def test_a_count_of_another_study_explains_nothing(tmp_path: Path) -> None:
    series(tmp_path / "other", StudyInstanceUID=generate_uid())
    short = series(tmp_path / "short", slices=4, gap=3.0)
    assert lack(tmp_path, short) is not None


PET = {"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "ImagesInAcquisition": None}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"NumberOfSlices": 12, "SeriesType": ["STATIC", "IMAGE"]}, None),
        ({"NumberOfSlices": 15, "SeriesType": ["WHOLE BODY", "IMAGE"]}, "count 15 (NumberOfSlices)"),
        ({"NumberOfSlices": 6, "SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfTimeSlices": 2}, None),
        (
            {"NumberOfSlices": 6, "SeriesType": ["DYNAMIC", "IMAGE"], "NumberOfTimeSlices": 3},
            "count 18 (NumberOfSlices x NumberOfTimeSlices)",
        ),
        (
            {"NumberOfSlices": 12, "SeriesType": ["GATED", "IMAGE"], "NumberOfRRIntervals": 1, "NumberOfTimeSlots": 8},
            "count 96 (NumberOfSlices x NumberOfRRIntervals x NumberOfTimeSlots)",
        ),
        ({"NumberOfSlices": 15, "Modality": "MR"}, None),
    ],
)
def test_a_pet_series_counts_slices_for_each_of_its_times(header: dict, words: str | None, tmp_path: Path) -> None:
    uid = series(tmp_path, **(PET | header))
    assert lack(tmp_path, uid) == (words and f"it holds 12 images, and its headers {words}")


def test_a_picture_is_no_part_of_a_volume(tmp_path: Path) -> None:
    header = {"ImagesInAcquisition": 2, "NumberOfFrames": 1}
    picture = write_picture(tmp_path / "a.dcm", np.zeros((8, 9), np.uint8), header)
    assert read_series(picture).planar

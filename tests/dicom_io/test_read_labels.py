"""Anybody's label objects: laid on the voxels of an image, or refused where their pixels are none.

Grids are known in closed form: those of two series share their first voxel and their directions, and one has steps that are
twice as long. So the pixel centres of the one fall on voxel centres of the other, and only their steps tell them apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, oblique_affine, write_enhanced_mr, write_mr_series
from pydicom.dataset import Dataset
from result_phantoms import RESULT

from dicom_io.coding import NOT_STATED
from dicom_io.errors import LabelError
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, read_parametric_map, write_parametric_map
from dicom_io.read import ReadOptions, read_scanned, read_series
from dicom_io.reading.series import scan_source
from dicom_io.rtstruct import read_regions, read_rtstruct, region_names, write_rtstruct
from dicom_io.seg import described_segments, read_seg, read_segments, segment_numbers, write_seg
from dicom_io.volume import Volume

SHAPE = (12, 10, 8)
SPACE = {"FrameOfReferenceUID": "1.2.3.5"}


def series(folder: Path, steps: tuple[int, int, int] = (1, 1, 1), **header: object) -> Volume:
    """Voxels of 1.25 x 0.75 x 2.5 mm times `steps`, from one first voxel on, as many as fit into one box."""
    shape = tuple(size // step for size, step in zip(SHAPE, steps, strict=True))
    affine_lps = oblique_affine() @ np.diag([*steps, 1.0])
    write_mr_series(folder, lopsided_array(shape), affine_lps, header=SPACE | header)
    return read_series(folder)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Volume:
    return series(tmp_path_factory.mktemp("image"))


def block(on: Volume, slices: slice | list[int] = slice(None)) -> Volume:
    """Label 1 in 3 x 4 voxels of some slices."""
    labels = np.zeros(on.shape, dtype=np.uint8)
    labels[1:4, 1:5, slices] = 1
    return on.with_array(labels)


def write(kind: str, labels: Volume, path: Path) -> Path:
    """The labels as a SEG of an encoding, or as a map of floats."""
    if kind == "map":
        values = labels.with_array(labels.array.astype(np.float32))
        return write_parametric_map(values, labels, path, RESULT, MapMeaning(PROBABILITY, NO_UNIT, "P(Front part)"))
    return write_seg(labels, labels, path, RESULT, encoding="binary" if kind == "channels" else kind)


READERS: dict[str, Callable[[Path, Volume], Volume]] = {
    "binary": read_seg,
    "labelmap": read_seg,
    "channels": read_segments,
    "map": read_parametric_map,
}


def edited(path: Path, edit: Callable[[Dataset], None]) -> Path:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


def measures_of(dataset: Dataset) -> Dataset:
    return dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


# --- larger and smaller pixels


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((2, 1, 1), r"pixels of 2\.50 x 0\.75 mm, the voxels of the image are 1\.25 x 0\.75 mm"),
        ((2, 2, 1), r"pixels of 2\.50 x 1\.50 mm, the voxels of the image are 1\.25 x 0\.75 mm"),
        ((1, 1, 2), r"5\.00 mm apart, those of the image 2\.50 mm"),
    ],
    ids=["wide", "wide and high", "far apart"],
)
def test_what_lies_on_larger_voxels_is_refused_with_both_sizes(image, tmp_path, kind, steps, says):
    path = write(kind, block(series(tmp_path / "other", steps)), tmp_path / "o.dcm")
    with pytest.raises(LabelError, match=says):
        READERS[kind](path, image)


@pytest.mark.parametrize("kind", ["binary", "labelmap", "channels"])
@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((2, 2, 1), r"pixels of 1\.25 x 0\.75 mm, the voxels of the image are 2\.50 x 1\.50 mm"),
        ((1, 1, 2), r"2\.50 mm apart, those of the image 5\.00 mm"),
    ],
    ids=["wide and high", "far apart"],
)
def test_what_lies_on_smaller_voxels_is_refused_also_where_only_every_second_is_set(image, tmp_path, kind, steps, says):
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[:: steps[0], :: steps[1], :: steps[2]] = 1
    path = write(kind, image.with_array(labels), tmp_path / "o.dcm")
    with pytest.raises(LabelError, match=says):
        READERS[kind](path, series(tmp_path / "other", steps))


def test_pixels_of_the_right_size_that_are_turned_by_an_eighth_are_refused(image, tmp_path):
    """Of a grid turned by 45 degrees about the first voxel that voxel's centre alone falls on a centre: it is labelled."""
    about_k = np.eye(4)
    about_k[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    square = Volume(image.array, oblique_affine((1.0, 1.0, 2.5)), image.provenance)
    write_mr_series(tmp_path / "s", lopsided_array(SHAPE), square.affine_lps @ about_k, header=SPACE)
    source = read_series(tmp_path / "s")
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[0, 0] = 1
    path = write("binary", source.with_array(labels), tmp_path / "o.dcm")
    with pytest.raises(LabelError, match=r"pixels of 1\.00 x 1\.00 mm.*same size and direction"):
        read_seg(path, Volume(image.array, square.affine_lps))


# --- slices that are not there


@pytest.mark.parametrize("kind", ["binary", "channels"])
@pytest.mark.parametrize("slices", [[1, 3, 5], [0, 2, 4, 6], [6], [1, 2, 6]], ids=str)
def test_slices_without_a_label_may_lack_their_frames(image, tmp_path, kind, slices):
    labels = block(image, slices)
    path = write(kind, labels, tmp_path / "o.dcm")
    assert pydicom.dcmread(path).NumberOfFrames == len(slices)
    found = READERS[kind](path, image).array
    np.testing.assert_array_equal(found[..., 0] if kind == "channels" else found, labels.array)


def test_a_map_may_lack_frames_and_a_thickness_may_differ_from_the_gap(image, tmp_path):
    def thin(dataset: Dataset) -> None:
        kept = [1, 3, 5]
        frames = dataset.PerFrameFunctionalGroupsSequence
        pixels = np.frombuffer(dataset.FloatPixelData, "<f4").reshape(8, -1)
        dataset.PerFrameFunctionalGroupsSequence = [frames[k] for k in kept]
        dataset.FloatPixelData, dataset.NumberOfFrames = pixels[kept].tobytes(), len(kept)
        measures_of(dataset).SliceThickness = 5

    found = read_parametric_map(edited(write("map", block(image), tmp_path / "m.dcm"), thin), image).array
    assert [k for k in range(8) if not np.isnan(found[:, :, k]).any()] == [1, 3, 5]
    np.testing.assert_array_equal(found[:, :, 3], block(image).array[:, :, 3])


def silent(dataset: Dataset) -> None:
    del measures_of(dataset).SpacingBetweenSlices


@pytest.mark.parametrize("kind", ["binary", "labelmap", "map"])
def test_where_no_gap_is_stated_three_slices_at_even_steps_show_it(image, tmp_path, kind):
    path = edited(write(kind, block(series(tmp_path / "other", (1, 1, 2))), tmp_path / "o.dcm"), silent)
    with pytest.raises(LabelError, match=r"5\.00 mm apart, those of the image 2\.50 mm"):
        READERS[kind](path, image)


@pytest.mark.parametrize("slices", [[1, 4], [0, 2, 3], [5]], ids=str)
def test_where_no_gap_is_stated_neighbours_or_two_slices_are_no_other_grid(image, tmp_path, slices):
    labels = block(image, slices)
    path = edited(write("binary", labels, tmp_path / "o.dcm"), silent)
    np.testing.assert_array_equal(read_seg(path, image).array, labels.array)


def test_a_stated_gap_that_the_positions_disprove_is_passed_over(image, tmp_path):
    """highdicom copies the one of the source, which some scanners write wrong; frames of neighbouring slices say better."""
    for wrong_mm in (5.0, 3.3):
        path = write("binary", block(image, [2, 3, 4]), tmp_path / "o.dcm")
        edited(path, lambda dataset, gap=wrong_mm: setattr(measures_of(dataset), "SpacingBetweenSlices", gap))
        np.testing.assert_array_equal(read_seg(path, image).array, block(image, [2, 3, 4]).array)


def test_a_single_slice_by_highdicom_whose_gap_is_its_one_millimetre_is_read(image, tmp_path):
    slices = [pydicom.dcmread(file) for file in image.provenance.files]
    ours = next(one for one in slices if one.SOPInstanceUID == image.provenance.sop_instance_uids[5])
    kind = hd.seg.SegmentDescription(
        1, "p", RESULT.segments[0].category, RESULT.segments[0].type, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    mask = block(image).array[:, :, 5].T.astype(bool)
    hd.seg.Segmentation(
        [ours], mask[None], hd.seg.SegmentationTypeValues.BINARY, [kind], hd.UID(), 1, hd.UID(), 1, "m", "n", "1", "2",
    ).save_as(tmp_path / "s.dcm")  # fmt: skip
    assert measures_of(pydicom.dcmread(tmp_path / "s.dcm")).SpacingBetweenSlices == 1.0
    np.testing.assert_array_equal(read_seg(tmp_path / "s.dcm", image).array, block(image, [5]).array)


def test_a_single_slice_of_a_coarser_series_is_refused_by_the_gap_that_it_states(image, tmp_path):
    path = write("binary", block(series(tmp_path / "other", (1, 1, 2)), [2]), tmp_path / "o.dcm")
    with pytest.raises(LabelError, match=r"5\.00 mm apart, those of the image 2\.50 mm"):
        read_seg(path, image)


# --- segments that nothing describes


@pytest.mark.parametrize("reader", [read_seg, read_segments])
@pytest.mark.parametrize("number", [257, 300, 3])
def test_a_label_map_with_segments_that_are_not_described_is_refused(image, tmp_path, reader, number):
    """257 is 1 in the lowest 8 bits, as which labels are kept."""

    def renumber(dataset: Dataset) -> None:
        pixels = np.where(dataset.pixel_array == 1, number, 0).astype("<u2")
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelData = 15, pixels.tobytes()
        dataset["PixelData"].VR = "OW"

    path = edited(write("labelmap", block(image), tmp_path / "o.dcm"), renumber)
    with pytest.raises(LabelError, match=rf"hold segment {number}, described are \[1, 2\]"):
        reader(path, image)


@pytest.mark.parametrize("reader", [read_seg, read_segments])
@pytest.mark.parametrize(
    ("number", "says"), [(7, r"segment 7, described are \[1, 2\]"), (0, "number from 1 is needed")]
)
def test_frames_of_segments_that_are_not_described_are_refused(image, tmp_path, reader, number, says):
    def renumber(dataset: Dataset) -> None:
        item = dataset.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = number

    path = edited(write("binary", block(image), tmp_path / "o.dcm"), renumber)
    with pytest.raises(LabelError, match=says):
        reader(path, image)


# --- several source images for one frame or contour


def references(dataset: Dataset) -> list[Dataset]:
    """The items below which frames or contours name their images."""
    if "ROIContourSequence" in dataset:
        return [contour for roi in dataset.ROIContourSequence for contour in roi.get("ContourSequence") or []]
    return [group.DerivationImageSequence[0] for group in dataset.PerFrameFunctionalGroupsSequence]


def images_keyword(dataset: Dataset) -> str:
    return "ContourImageSequence" if "ROIContourSequence" in dataset else "SourceImageSequence"


def write_any(kind: str, labels: Volume, path: Path) -> Path:
    return write_rtstruct(labels, labels, path, RESULT) if kind == "contours" else write(kind, labels, path)


ALL_READERS = READERS | {"contours": read_rtstruct}


def check_same(kind: str, found: Volume, labels: Volume) -> None:
    np.testing.assert_array_equal(found.array[..., 0] if kind == "channels" else found.array, labels.array)


@pytest.mark.parametrize("kind", ALL_READERS)
def test_one_of_several_named_images_must_be_the_slice_where_it_lies(image, tmp_path, kind):
    uids = list(image.provenance.sop_instance_uids)

    def name(dataset: Dataset, shifts: tuple[int, ...]) -> None:
        for holder in references(dataset):
            (own,) = holder[images_keyword(dataset)].value
            items = []
            for shift in shifts:
                item = copy.deepcopy(own)
                item.ReferencedSOPInstanceUID = uids[(uids.index(own.ReferencedSOPInstanceUID) + shift) % len(uids)]
                items.append(item)
            setattr(holder, images_keyword(dataset), items)

    path = edited(write_any(kind, block(image), tmp_path / "o.dcm"), lambda dataset: name(dataset, (1, -1, 0)))
    check_same(kind, ALL_READERS[kind](path, image), block(image))
    edited(write_any(kind, block(image), path), lambda dataset: name(dataset, (1, -1)))
    with pytest.raises(LabelError, match=r"names slices \d, \d of the image but lies in slice \d"):
        ALL_READERS[kind](path, image)


@pytest.mark.parametrize("kind", ALL_READERS)
def test_several_frames_of_one_image_may_be_named(tmp_path, kind):
    """ReferencedFrameNumber has 1 to n values (PS3.3 table 10-3)."""
    source = read_series(write_enhanced_mr(tmp_path / "e.dcm", lopsided_array(SHAPE), oblique_affine()))

    def name(dataset: Dataset, shifts: tuple[int, ...]) -> None:
        for holder in references(dataset):
            (own,) = holder[images_keyword(dataset)].value
            own.ReferencedFrameNumber = [(own.ReferencedFrameNumber - 1 + shift) % SHAPE[2] + 1 for shift in shifts]

    path = edited(write_any(kind, block(source), tmp_path / "o.dcm"), lambda dataset: name(dataset, (1, 0)))
    check_same(kind, ALL_READERS[kind](path, source), block(source))
    edited(write_any(kind, block(source), path), lambda dataset: name(dataset, (1, 2)))
    with pytest.raises(LabelError, match=r"names slices \d, \d of the image but lies in slice \d"):
        ALL_READERS[kind](path, source)


@pytest.mark.parametrize("kind", ALL_READERS)
def test_a_slice_that_a_repair_made_has_the_labels_of_the_nearest_of_the_series(tmp_path, kind):
    """Its K axis does not count instances, so that names cannot be compared with K. A map has no value there."""
    write_mr_series(tmp_path / "mr", lopsided_array(SHAPE), oblique_affine(), drop=[3])
    source = read_series(tmp_path / "mr", resample_gaps=True)
    assert source.shape == SHAPE
    wide = block(source)
    wide.array[5:7, 1:5, 4:] = 1  # the nearest slices, 2 and 4, are equally near: the lower one counts
    found = ALL_READERS[kind](write_any(kind, wide, tmp_path / "o.dcm"), source)
    there = [k for k in range(8) if k != 3]
    check_same(kind, Volume(found.array[:, :, there], np.eye(4)), Volume(wide.array[:, :, there], np.eye(4)))
    expected = wide.array[:, :, 2] if kind != "map" else np.full(SHAPE[:2], np.nan)
    np.testing.assert_array_equal(found.array[:, :, 3, 0] if kind == "channels" else found.array[:, :, 3], expected)
    said = "1 slice(s) that the repair made have the labels of the nearest slice of the series"
    assert (said in found.provenance.notes) == (kind != "map")


@pytest.mark.parametrize("kind", [kind for kind in ALL_READERS if kind != "map"])
def test_what_was_drawn_on_a_slice_that_is_missing_now_stays(tmp_path, kind):
    """The object was made when slice 3 was there."""
    write_mr_series(tmp_path / "mr", lopsided_array(SHAPE), oblique_affine())
    whole = read_series(tmp_path / "mr")
    drawn = block(whole)
    drawn.array[5:7, 1:5, 3] = 1
    path = write_any(kind, drawn, tmp_path / "o.dcm")
    whole.provenance.files[3].unlink()
    source = read_series(tmp_path / "mr", resample_gaps=True)
    assert source.shape == SHAPE
    check_same(kind, ALL_READERS[kind](path, source), drawn)


# --- other time points


@pytest.fixture(scope="module", params=["classic", "enhanced"])
def times(request, tmp_path_factory) -> list[Volume]:
    """Two time points of one series, at the same positions; and the first read by place."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "classic":
        for time in (1, 2):
            header = {**SPACE, "SeriesInstanceUID": "1.2.3.8", "StudyInstanceUID": "1.2.3.7"}
            write_mr_series(
                folder, lopsided_array(SHAPE) + time, oblique_affine(), prefix=f"t{time}",
                header=header | {"TemporalPositionIdentifier": time, "NumberOfTemporalPositions": 2},
            )  # fmt: skip
    else:
        both = np.concatenate([lopsided_array(SHAPE), lopsided_array(SHAPE) + 2], axis=2)
        edited(write_enhanced_mr(folder / "e.dcm", both, oblique_affine()), two_times)
    by_place = read_scanned(scan_source(folder), ReadOptions(time_point=1, by_place=True))
    return [read_series(folder, time_point=1), read_series(folder, time_point=2), by_place]


def two_times(dataset: Dataset) -> None:
    """The second half of the frames of an enhanced object becomes a second time point."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    for number, group in enumerate(groups):
        time, k = divmod(number, SHAPE[2])
        group.PlanePositionSequence = groups[k].PlanePositionSequence
        content = Dataset()
        content.StackID, content.TemporalPositionIndex, content.InStackPositionNumber = "1", time + 1, k + 1
        group.FrameContentSequence = [content]


@pytest.mark.parametrize("kind", ALL_READERS)
def test_what_names_images_of_another_time_point_alone_is_left_out_or_taken_on_request(times, tmp_path, kind):
    first, second, by_place = times
    assert first.provenance.other_times == frozenset(second.provenance.slice_keys)
    path = write_any(kind, block(second), tmp_path / "o.dcm")
    check_same(kind, ALL_READERS[kind](path, second), block(second))
    with pytest.raises(
        LabelError, match=r"name images of other time points of this series; .*--time-point.*--by-place"
    ):
        ALL_READERS[kind](path, first)
    check_same(kind, ALL_READERS[kind](path, by_place), block(second))


@pytest.mark.parametrize("kind", ALL_READERS)
def test_what_names_the_chosen_time_point_too_or_a_whole_object_lies_where_its_place_is(times, tmp_path, kind):
    first, second, _ = times
    keys = second.provenance.slice_keys

    def name(dataset: Dataset, ks: set[int], *, beside: bool) -> None:
        """References to the slices `ks` become those to the first time point, or get these beside them."""
        for holder in references(dataset):
            (own,) = holder[images_keyword(dataset)].value
            frame = own.get("ReferencedFrameNumber")
            k = keys.index(own.ReferencedSOPInstanceUID + (f"#{frame}" if frame else ""))
            if k in ks:
                other = copy.deepcopy(own)
                uid, _, number = first.provenance.slice_keys[k].partition("#")
                other.ReferencedSOPInstanceUID = uid
                if number:
                    other.ReferencedFrameNumber = int(number)
                setattr(holder, images_keyword(dataset), [own, other] if beside else [other])

    labels = block(second, [2, 3, 4])
    path = edited(
        write_any(kind, labels, tmp_path / "o.dcm"), lambda dataset: name(dataset, {2, 3, 4, *range(8)}, beside=True)
    )
    check_same(kind, ALL_READERS[kind](path, first), labels)
    path = edited(write_any(kind, labels, tmp_path / "o.dcm"), lambda dataset: name(dataset, {2, 3}, beside=False))
    found = ALL_READERS[kind](path, first)
    if kind == "map":
        np.testing.assert_array_equal(np.isfinite(found.array).any(axis=(0, 1)).nonzero()[0], [2, 3])
    else:
        check_same(kind, found, block(second, [2, 3]))
        assert any("other time points" in note for note in found.provenance.notes)


@pytest.mark.parametrize("stated", [True, False], ids=["index", "no index"])
def test_frames_of_two_times_at_one_place_that_name_no_image_are_not_one_structure(times, tmp_path, stated):
    """PS3.3 C.8.20.3: a SEG may name no images; then its TemporalPositionIndex alone tells the time of a frame."""
    first, second, _ = times
    alone = first.with_array(block(second).array)

    def two(dataset: Dataset) -> None:
        groups = dataset.PerFrameFunctionalGroupsSequence
        for number, group in enumerate(groups):
            if "DerivationImageSequence" in group:
                del group.DerivationImageSequence
            if stated:
                group.FrameContentSequence[0].TemporalPositionIndex = 1 + number % 2
        for group in groups[1::2]:  # every other frame lies where the one before lies
            group.PlanePositionSequence = groups[list(groups).index(group) - 1].PlanePositionSequence

    path = edited(write_seg(alone, alone, tmp_path / "o.dcm", RESULT), two)
    with pytest.raises(LabelError, match="two frames of segment 1 lie at one place, and may be of two time points"):
        read_seg(path, first)


def more_frames(dataset: Dataset) -> None:
    dataset.NumberOfFrames = len(dataset.PerFrameFunctionalGroupsSequence) - 1


def twice(dataset: Dataset) -> None:
    dataset.SegmentSequence[1].SegmentNumber = 1


def eight_bits(dataset: Dataset) -> None:
    pixels = dataset.pixel_array
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = (2 * pixels).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (more_frames, r"has \d+ frame\(s\) \(NumberOfFrames\) and describes \d+; as many are needed"),
        (twice, "describes segment 1 twice; one meaning of each number is needed"),
        (eight_bits, "a frame of segment 1 holds 2; values up to 1 are needed"),
    ],
)
def test_a_seg_that_counts_otherwise_than_it_holds_is_refused(image, tmp_path, edit, says):
    with pytest.raises(LabelError, match=says):
        read_segments(edited(write_any("binary", block(image), tmp_path / "o.dcm"), edit), image)


@pytest.mark.parametrize("most", [None, 100])
def test_fractions_above_their_stated_maximum_are_refused(image, tmp_path, most):
    def fractions(dataset: Dataset) -> None:
        eight_bits(dataset)
        dataset.SegmentationType, dataset.MaximumFractionalValue = "FRACTIONAL", most
        dataset.PixelData = bytes(100 * value for value in dataset.PixelData)

    path = edited(write_any("binary", block(image), tmp_path / "o.dcm"), fractions)
    with pytest.raises(LabelError, match=f"holds 200; values up to {most or 0} are needed"):
        read_segments(path, image)


# --- what the object says of its background, and what was not asked for


def test_a_structure_that_is_also_the_padding_is_named(image, tmp_path):
    full = image.with_array(np.ones(SHAPE, np.uint8))
    path = write_seg(full, full, tmp_path / "o.dcm", RESULT, encoding="labelmap")
    edited(path, lambda dataset: setattr(dataset, "PixelPaddingValue", 2))
    (note,) = (one for one in read_seg(path, image).provenance.notes if "PixelPaddingValue" in one)
    assert note == "segment 2 (Back part) is the PixelPaddingValue of the file, and so no structure"


def test_a_label_map_says_which_number_is_its_background(image, tmp_path):
    """Value 9 is padding, 0 a structure, 1 another: PS3.3 C.8.20.2."""
    stored = np.full(SHAPE, 9, np.uint8)
    stored[1:4, 1:5], stored[5:9, 2:4, 2:6] = 0, 1

    def renumber(dataset: Dataset) -> None:
        dataset.PixelData = np.ascontiguousarray(stored.T).tobytes()
        dataset.PixelPaddingValue = 9
        one = dataset.SegmentSequence[0] if dataset.SegmentSequence[0].SegmentNumber else dataset.SegmentSequence[1]
        zero, background = copy.deepcopy(one), copy.deepcopy(one)
        zero.SegmentNumber, zero.SegmentLabel = 0, "Zero"
        background.SegmentNumber, background.SegmentLabel = 9, "Background"
        dataset.SegmentSequence = [zero, one, background]

    full = image.with_array(np.ones(SHAPE, np.uint8))
    path = edited(write_seg(full, full, tmp_path / "o.dcm", RESULT, encoding="labelmap"), renumber)
    assert [(segment.number, segment.label) for segment in described_segments(path)] == [
        (1, "Front part"),
        (10, "Zero"),
    ]
    labels = read_seg(path, image)
    np.testing.assert_array_equal(labels.array == 10, stored == 0)
    np.testing.assert_array_equal(labels.array == 1, stored == 1)
    assert "segment 0 of the file has the number 10 here, since 0 is the background" in labels.provenance.notes
    np.testing.assert_array_equal(read_segments(path, image, ["Zero"]).array[..., 0] == 1, stored == 0)


def test_a_number_that_is_coded_as_background_is_no_segment(image, tmp_path):
    def background(dataset: Dataset) -> None:
        one = next(item for item in dataset.SegmentSequence if item.SegmentNumber)
        other = copy.deepcopy(one)
        other.SegmentNumber, kind = 5, copy.deepcopy(one.SegmentedPropertyTypeCodeSequence[0])
        kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = "125040", "DCM", "Background"
        other.SegmentedPropertyTypeCodeSequence = [kind]
        dataset.SegmentSequence.append(other)
        dataset.PixelData = np.ascontiguousarray(np.where(block(image).array, 1, 5).astype(np.uint8).T).tobytes()

    full = image.with_array(np.ones(SHAPE, np.uint8))
    path = edited(write_seg(full, full, tmp_path / "o.dcm", RESULT, encoding="labelmap"), background)
    np.testing.assert_array_equal(read_seg(path, image).array, block(image).array)
    assert segment_numbers(path) == (1, 2)


def test_frames_that_lie_in_the_images_they_name_need_no_stated_gap(image, tmp_path):
    labels = block(image, [1, 4, 7])

    def without_gap(dataset: Dataset) -> None:
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices

    path = edited(write("binary", labels, tmp_path / "o.dcm"), without_gap)
    np.testing.assert_array_equal(read_seg(path, image).array, labels.array)


def test_a_structure_that_was_not_asked_for_hinders_no_other(image, tmp_path):
    two = block(image)
    two.array[6:9, 2:7] = 2
    path = write_rtstruct(two, two, tmp_path / "r.dcm", RESULT)

    def spoil(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3.99"
        for item in dataset.ROIContourSequence[1].ContourSequence:
            item.ContourGeometricType = "STRANGE"

    name, other = region_names(path).values()
    edited(path, spoil)
    np.testing.assert_array_equal(read_regions(path, image, [name]).array[..., 0], two.array == 1)
    with pytest.raises(LabelError, match="another frame of reference"):
        read_regions(path, image, [other])
    with pytest.raises(LabelError, match="another frame of reference"):
        read_rtstruct(path, image)


def test_a_segment_beyond_the_image_hinders_no_other(image, tmp_path):
    two = block(image)
    two.array[6:9, 2:7, 3:5] = 2
    path = write("binary", two, tmp_path / "o.dcm")

    def away(dataset: Dataset) -> None:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
                group.PlanePositionSequence[0].ImagePositionPatient = [900, 900, 900]

    edited(path, away)
    names = [segment.label for segment in described_segments(path)]
    np.testing.assert_array_equal(read_segments(path, image, names[:1]).array[..., 0], two.array == 1)
    with pytest.raises(LabelError):
        read_segments(path, image)


@pytest.mark.parametrize(
    "keyword",
    ["SegmentLabel", "SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence", "CodeMeaning"],
)
def test_a_segment_without_a_label_or_codes_is_read_and_says_nothing_of_itself(image, tmp_path, keyword):
    path = write("binary", block(image), tmp_path / "o.dcm")
    whole = described_segments(path)[0]

    def strip(dataset: Dataset) -> None:
        item = dataset.SegmentSequence[0]
        del (item.SegmentedPropertyTypeCodeSequence[0] if keyword == "CodeMeaning" else item)[keyword]

    edited(path, strip)
    stripped = described_segments(path)[0]
    absent = {
        "SegmentLabel": {"label": "Segment 1"},
        "SegmentedPropertyTypeCodeSequence": {"type": NOT_STATED, "type_modifier": None},
        "SegmentedPropertyCategoryCodeSequence": {"category": NOT_STATED},
        "CodeMeaning": {"type": whole.type._replace(meaning="not stated")},
    }
    assert stripped == replace(whole, **absent[keyword])
    np.testing.assert_array_equal(read_segments(path, image).array[..., 0], block(image).array)


def test_region_numbers_are_names_where_no_label_value_is_made_of_them(image, tmp_path):
    path = write_rtstruct(block(image), image, tmp_path / "r.dcm", RESULT)

    def renumber(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[0].ROINumber = dataset.ROIContourSequence[0].ReferencedROINumber = 70001
        for item in dataset.get("RTROIObservationsSequence") or []:
            item.ReferencedROINumber = 70001

    edited(path, renumber)
    np.testing.assert_array_equal(read_regions(path, image).array[..., -1], block(image).array)
    with pytest.raises(LabelError, match=r"numbered \[2, 70001\]; numbers from 1 to 65535"):
        read_rtstruct(path, image)


# --- other axes, other frames of reference


def test_a_grid_with_other_axes_takes_labels_in_place(image, tmp_path):
    """Axes swapped and turned round: the slices of the file lie across the first axis of the grid."""
    turn = np.array(
        [[0, 0, 1, 0], [-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 0, 1.0]]
    )  # (i, j, k) to (k, 11 - i, j)
    labels, other = block(image, [1, 2, 5]), Volume(np.zeros((8, 12, 10)), image.affine_lps @ np.linalg.inv(turn))
    wanted = labels.array.transpose(2, 0, 1)[:, ::-1]
    for kind in ("binary", "labelmap"):
        path = write(kind, labels, tmp_path / f"{kind}.dcm")
        np.testing.assert_array_equal(read_seg(path, other).array, wanted)


def test_messages_name_no_identifier_that_is_none(image, tmp_path):
    """What stands where a UID should may be anything, a name too."""
    strange = replace(image, provenance=replace(image.provenance, frame_of_reference_uid="1.2.3.6"))
    path = write_rtstruct(block(image), image, tmp_path / "r.dcm", RESULT)

    def rename(dataset: Dataset) -> None:
        for roi in dataset.StructureSetROISequence:
            roi.ReferencedFrameOfReferenceUID = "Doe/Jane"

    with pytest.raises(LabelError) as refusal:
        read_rtstruct(edited(path, rename), strange)
    assert "Doe" not in str(refusal.value)
    assert "(no UID)" in str(refusal.value)

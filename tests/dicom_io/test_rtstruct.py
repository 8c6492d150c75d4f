from __future__ import annotations

import copy
import time
from dataclasses import replace
from functools import partial

import highdicom as hd
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from result_phantoms import RESULT, SEGMENTS, dciodvfy_errors, lopsided_labels, oblique_affine, oblique_case
from scipy import ndimage

from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.objects.raster import even_odd
from dicom_io.read import read_series
from dicom_io.rtstruct import prove_rtstruct, read_regions, read_rtstruct, write_rtstruct
from dicom_io.rtstruct.contours import contours_of
from dicom_io.volume import Provenance, Volume


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return oblique_case(tmp_path_factory.mktemp("case") / "phantom")


@pytest.fixture(scope="module")
def written(case, tmp_path_factory):
    return write_rtstruct(case.labels, case.volume, tmp_path_factory.mktemp("rt") / "result.dcm", RESULT)


def blobs(seed: int, shape: tuple[int, int] = (17, 23)) -> np.ndarray:
    """Random regions with holes, islands in holes and parts that touch by a corner."""
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.2, 1.5)) > 0


def contours(mask: np.ndarray) -> list[np.ndarray]:
    """Closed contours of a mask of shape (rows, columns): (n, 2) points (column, row) each."""
    drawn = contours_of(mask[None])
    return np.split(drawn.points, np.cumsum(drawn.counts)[:-1])


def inside_by_matplotlib(loops: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    row, column = np.indices(shape)
    centres = np.c_[column.ravel(), row.ravel()]
    counts = sum(Polygon(np.r_[loop, loop[:1]]).contains_points(centres).astype(int) for loop in loops)
    return (np.broadcast_to(counts, centres.shape[0]) % 2 == 1).reshape(shape)


def turns_around_centres(loops: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """How often loops wind around each pixel centre: the angles under which it sees their edges, added up."""
    row, column = np.indices(shape)
    angle = np.zeros(shape)
    for loop in loops:
        for (x0, y0), (x1, y1) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
            ax, ay, bx, by = x0 - column, y0 - row, x1 - column, y1 - row
            angle += np.arctan2(ax * by - ay * bx, ax * bx + ay * by)
    return angle / (2 * np.pi)


def test_rtstruct_has_no_dciodvfy_error(written):
    assert dciodvfy_errors(written) == []


def test_contours_of_an_oblique_series_give_back_every_voxel(case, written):
    np.testing.assert_array_equal(read_rtstruct(written, case.volume).array, case.labels.array)


def test_contours_read_on_the_grid_of_the_nifti_land_where_its_labels_are(written):
    nifti = Volume(np.zeros((13, 10, 7)), oblique_affine(), Provenance("nifti"))
    np.testing.assert_array_equal(read_rtstruct(written, nifti).array, lopsided_labels())


def test_the_contour_of_one_voxel_runs_through_the_four_points_half_way_to_its_neighbours():
    mask = np.zeros((5, 6), dtype=bool)
    mask[2, 3] = True
    (loop,) = contours(mask)
    assert {tuple(point) for point in loop} == {(2.5, 2.0), (3.5, 2.0), (3.0, 1.5), (3.0, 2.5)}


def test_a_block_that_touches_the_edge_of_the_image_has_a_closed_contour():
    mask = np.zeros((4, 5), dtype=bool)
    mask[:2, :3] = True
    (loop,) = contours(mask)
    assert loop.min() == -0.5
    x, y = loop.T
    area = 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))
    assert area == pytest.approx(3 * 2 - 4 * 0.125)  # four corners are cut by half of a quarter pixel


@pytest.mark.parametrize("seed", range(12))
def test_contours_enclose_exactly_the_mask_by_our_rule_and_by_matplotlib(seed):
    mask = blobs(seed)
    loops = contours(mask)
    np.testing.assert_array_equal(even_odd([loop.round(3) for loop in loops], mask.shape), mask)
    np.testing.assert_array_equal(inside_by_matplotlib(loops, mask.shape), mask)


@pytest.mark.parametrize("seed", range(6))
def test_contours_of_labels_are_one_for_each_part_and_wind_once_around_each_of_its_pixels(seed):
    """So they fill right under the winding rule, too; parts by scipy: what hangs together by sides of pixels."""
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 4, (3, 19, 14)) * (rng.random((3, 19, 14)) < 0.8)
    found = contours_of(planes)
    loops = np.split(found.points, np.cumsum(found.counts)[:-1])
    for number, plane in enumerate(planes):
        for label in (1, 2, 3):
            mine = [
                loop for loop, k, v in zip(loops, found.planes, found.labels, strict=True) if (k, v) == (number, label)
            ]
            assert len(mine) == ndimage.label(plane == label)[1]
            np.testing.assert_allclose(turns_around_centres(mine, plane.shape), plane == label, atol=1e-9)


def test_contours_and_bridges_stay_a_third_of_a_pixel_away_from_every_pixel_centre():
    mask = blobs(3)
    loops = contours(mask)
    assert any(len({tuple(point) for point in loop}) < len(loop) for loop in loops), "no hole, no bridge"
    row, column = np.indices(mask.shape)
    centres = np.c_[column.ravel(), row.ravel()].astype(float)
    for start in loops:
        along = np.roll(start, -1, axis=0) - start
        offset = centres[:, None] - start[None]
        share = np.clip((offset * along).sum(2) / (along**2).sum(1), 0, 1)
        away = np.linalg.norm(offset - share[..., None] * along, axis=2)
        assert away.min() >= np.sqrt(0.125) - 1e-9


def test_a_ring_within_the_hole_of_a_ring_is_a_contour_of_its_own_with_its_own_bridge():
    mask = np.zeros((15, 17), dtype=bool)
    mask[1:14, 1:16], mask[3:12, 3:14], mask[5:10, 5:12], mask[7, 8] = True, False, True, False
    outer, inner = contours(mask)
    x, y = outer.T
    assert {(x.min(), x.max(), y.min(), y.max())} == {(0.5, 15.5, 0.5, 13.5)}
    x, y = inner.T
    assert {(x.min(), x.max(), y.min(), y.max())} == {(4.5, 11.5, 4.5, 9.5)}
    np.testing.assert_array_equal(inside_by_matplotlib([outer, inner], mask.shape), mask)


def test_a_hole_is_one_keyhole_contour_that_closes_over_its_bridge():
    mask = np.ones((9, 9), dtype=bool)
    mask[3:6, 4:7] = False
    (loop,) = contours(mask)
    edges = [(tuple(a), tuple(b)) for a, b in zip(loop, np.roll(loop, -1, axis=0), strict=True)]
    back = [edge for edge in edges if edge[::-1] in edges]
    assert len(back) == 2
    np.testing.assert_array_equal(even_odd([loop], mask.shape), mask)


def test_a_hole_drawn_as_a_second_contour_reads_the_same(case, written, tmp_path):
    """The XOR convention of other writers: outer and inner contour side by side."""
    dataset = pydicom.dcmread(written)
    template = dataset.ROIContourSequence[0].ContourSequence[0]
    k = next(n for n in range(7) if case.labels.array[:, :, n].any())
    plane = case.volume.affine_lps
    loops = []
    for low, high in ((1.5, 8.5), (3.5, 5.5)):
        square = np.array([(low, low), (high, low), (high, high), (low, high)])
        points = np.c_[square, np.full(4, k), np.ones(4)] @ plane.T
        loops.append([f"{v:.3f}" for v in points[:, :3].ravel()])
    items = []
    for loop in loops:
        item = pydicom.Dataset()
        item.ContourGeometricType, item.NumberOfContourPoints, item.ContourData = "CLOSED_PLANAR", 4, loop
        items.append(item)
    assert template.ContourGeometricType == "CLOSED_PLANAR"
    dataset.ROIContourSequence[0].ContourSequence = items
    dataset.ROIContourSequence[1].ContourSequence = []
    dataset.save_as(tmp_path / "xor.dcm")
    wanted = np.zeros((13, 10, 7), dtype=int)
    wanted[2:9, 2:9, k] = 1
    wanted[4:6, 4:6, k] = 0
    np.testing.assert_array_equal(read_rtstruct(tmp_path / "xor.dcm", case.volume).array, wanted)


def test_numbers_fit_the_decimal_string_and_contours_lie_on_their_slices(case, written):
    raw = pydicom.dcmread(written)
    uids = case.volume.provenance.sop_instance_uids
    to_index = np.linalg.inv(case.volume.affine_lps)
    for roi in raw.ROIContourSequence:
        for contour in roi.ContourSequence:
            assert all(len(str(value)) <= 16 for value in contour.ContourData)
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            assert contour.NumberOfContourPoints == len(points)
            slices = (np.c_[points, np.ones(len(points))] @ to_index.T)[:, 2]
            (image,) = contour.ContourImageSequence
            np.testing.assert_allclose(slices, uids.index(image.ReferencedSOPInstanceUID), atol=0.001)


def test_the_full_reference_hierarchy_is_there_and_nothing_is_approved(case, written):
    dataset = pydicom.dcmread(written)
    provenance = case.volume.provenance
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == provenance.frame_of_reference_uid
    assert study.ReferencedSOPInstanceUID == provenance.study_instance_uid
    assert series.SeriesInstanceUID == provenance.series_instance_uid
    listed = {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence}
    assert listed == set(provenance.sop_instance_uids)
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert "RESEARCH" in dataset.SeriesDescription
    assert [roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence] == ["AUTOMATIC"] * 2
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["Front part", "Back part"]
    assert str(dataset.PatientName) == "DEMO^phantom"


def test_the_same_input_gives_the_same_bytes(case, written, tmp_path):
    again = write_rtstruct(case.labels, case.volume, tmp_path / "again.dcm", RESULT)
    assert again.read_bytes() == written.read_bytes()


@pytest.mark.parametrize("kept", [2, 0])
def test_a_segment_without_voxels_is_a_region_without_contours(case, tmp_path, kept):
    labels = case.labels.with_array(np.where(case.labels.array == kept, kept, 0).astype(np.uint8))
    path = write_rtstruct(labels, case.volume, tmp_path / "r.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    assert len(pydicom.dcmread(path).StructureSetROISequence) == 2
    np.testing.assert_array_equal(read_rtstruct(path, case.volume).array, labels.array)


def test_a_multi_frame_source_is_right(case, tmp_path):
    slices = [pydicom.dcmread(file) for file in case.volume.provenance.files]
    enhanced = hd.legacy.LegacyConvertedEnhancedMRImage(
        slices[::-1], hd.UID(), series_number=2, sop_instance_uid=hd.UID(), instance_number=1
    )
    (tmp_path / "series").mkdir()
    enhanced.save_as(tmp_path / "series" / "e.dcm")
    source = read_series(tmp_path / "series")
    path = write_rtstruct(source.with_array(case.labels.array), source, tmp_path / "r.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_rtstruct(path, source).array, case.labels.array)


def test_a_contour_that_is_too_long_for_a_decimal_string_is_valid_and_read_back(tmp_path):
    """More than 65535 bytes of numbers: with explicit VR they become UN (PS3.5 6.2.2)."""
    labels = np.zeros((131, 97, 2), dtype=np.uint8)
    labels[3:125, 2:93, 1] = np.random.default_rng(5).random((122, 91)) < 0.8
    case = oblique_case(tmp_path / "phantom", labels=labels)
    path = write_rtstruct(case.labels, case.volume, tmp_path / "r.dcm", RESULT)
    contours_of_1 = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    assert "UN" in {item.get_item("ContourData").VR for item in contours_of_1}
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_rtstruct(path, case.volume).array, labels)


def test_names_keep_their_letters_before_and_behind_the_contours(case, tmp_path):
    """The character set is the source's, ISO 8859-1."""
    segments = (replace(SEGMENTS[0], label="Höhle"), SEGMENTS[1])
    path = write_rtstruct(case.labels, case.volume, tmp_path / "r.dcm", replace(RESULT, segments=segments))
    dataset = pydicom.dcmread(path)
    assert dataset.SpecificCharacterSet == "ISO_IR 100"
    assert dataset.StructureSetROISequence[0].ROIName == "Höhle"
    assert dataset.RTROIObservationsSequence[0].ROIObservationLabel == "Höhle"


def test_coordinates_are_written_as_python_writes_them_with_three_decimals(case, written):
    """Far from the origin, close to it, and negative; a zero has no sign."""
    affine = oblique_affine()
    affine[:3, 3] = (-12345.678, 0.0004, 7.5)
    moved = oblique_case(written.parent / "moved", affine)
    path = write_rtstruct(moved.labels, moved.volume, written.parent / "moved.dcm", RESULT)
    for item in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence:
        for text in item.get_item("ContourData").value.decode().strip().split("\\"):
            assert text in (f"{float(text):.3f}", "0.000")
            assert text != "-0.000"
    np.testing.assert_array_equal(read_rtstruct(path, moved.volume).array, moved.labels.array)


def test_overlapping_channels_are_written_and_refused_as_one_label_map(case, tmp_path):
    overlapping = np.stack([case.labels.array > 0, case.labels.array == 2], axis=3)
    path = write_rtstruct(case.volume.with_array(overlapping), case.volume, tmp_path / "r.dcm", RESULT)
    np.testing.assert_array_equal(read_regions(path, case.volume).array, overlapping)
    named = read_regions(path, case.volume, ["Back part"]).array
    np.testing.assert_array_equal(named, overlapping[..., 1:])
    both = read_regions(path, case.volume, ["Back part", "Front part"]).array
    np.testing.assert_array_equal(both, overlapping[..., ::-1])
    for names, says in (
        (["Doe"], "0 region.s. are called 'Doe'.*has Back part, Front part"),
        (["Back part"] * 2, "2 time"),
    ):
        with pytest.raises(LabelError, match=says):
            read_regions(path, case.volume, names)
    with pytest.raises(LabelError, match="region 2 overlaps region 1"):
        read_rtstruct(path, case.volume)


def edited(written, path, edit):
    dataset = pydicom.dcmread(written)
    edit(dataset)
    dataset.save_as(path)
    return path


def _lift(dataset: pydicom.Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    normal = np.cross(oblique_affine()[:3, 0], oblique_affine()[:3, 1])
    contour.ContourData = [f"{v:.3f}" for v in (points + normal / np.linalg.norm(normal)).ravel()]


def _beyond(dataset: pydicom.Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) + 9 * oblique_affine()[:3, 2]
    contour.ContourData = [f"{v:.3f}" for v in points.ravel()]


def _point(dataset: pydicom.Dataset) -> None:
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"


def _circle(dataset: pydicom.Dataset) -> None:
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "CIRCLE"


def _zero(dataset: pydicom.Dataset) -> None:
    dataset.StructureSetROISequence[0].ROINumber = 0


def _number_less(dataset: pydicom.Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = list(contour.ContourData)[:-1]


def _no_number(dataset: pydicom.Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = ["nan", *list(contour.ContourData)[1:]]


def _overlap(dataset: pydicom.Dataset) -> None:
    first, second = dataset.ROIContourSequence
    second.ContourSequence = [*second.ContourSequence, first.ContourSequence[0]]


def _one_point_less(dataset: pydicom.Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = list(contour.ContourData)[:-3]


def _words(dataset: pydicom.Dataset) -> None:
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    data = [str(value) for value in contour.ContourData]
    contour["ContourData"] = pydicom.DataElement("ContourData", "LO", ["here", *data[1:]])


def _region_257(dataset: pydicom.Dataset) -> None:
    """1 in the lowest 8 bits, as which labels are kept."""
    dataset.ROIContourSequence[0].ReferencedROINumber = 257


def _twins(dataset: pydicom.Dataset) -> None:
    dataset.StructureSetROISequence[1].ROINumber = 1


def _another_slice(dataset: pydicom.Dataset) -> None:
    contours = dataset.ROIContourSequence[0].ContourSequence
    contours[0].ContourImageSequence = contours[-1].ContourImageSequence


def _stranger(dataset: pydicom.Dataset) -> None:
    dataset.ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _less(dataset: pydicom.Dataset) -> None:
    del dataset.ROIContourSequence[0].ContourSequence[0]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_overlap, "in several regions"),
        (_one_point_less, "holds [0-9]+ numbers"),
        (_words, "not numbers"),
        (_region_257, "not all labels"),
        (_another_slice, "off its plane"),
        (_stranger, "not a slice of the source"),
        (_less, "labelled voxels in the result"),
        (_point, "type 'POINT'"),
    ],
)
def test_the_proof_refuses_what_is_not_the_result(case, written, tmp_path, edit, says):
    path = edited(written, tmp_path / "e.dcm", edit)
    with pytest.raises(GeometryProofError, match=says):
        prove_rtstruct(path, case.labels, case.volume)
    assert not path.exists()


def test_the_proof_reads_numbers_of_any_form(case, written, tmp_path):
    def rewrite(dataset):
        for roi in dataset.ROIContourSequence:
            for contour in roi.ContourSequence:
                contour.ContourData = [f"{float(value):.9e}" for value in contour.ContourData]

    prove_rtstruct(edited(written, tmp_path / "e.dcm", rewrite), case.labels, case.volume)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_lift, r"0\.40 slices away"),
        (_beyond, "lies in slice"),
        (_circle, "type CIRCLE"),
        (_zero, r"\[0, 2\]"),
        (_number_less, "three for each point"),
        (_no_number, "finite numbers"),
        (_region_257, r"contours of the regions \[257\], described are \[1, 2\]"),
        (_twins, r"\[1, 1\]; different numbers"),
    ],
)
def test_contours_that_are_no_labels_of_this_image_are_refused(case, written, tmp_path, edit, says):
    with pytest.raises(LabelError, match=says):
        read_rtstruct(edited(written, tmp_path / "e.dcm", edit), case.volume)


def test_points_and_open_lines_are_left_out_and_told(case, written, tmp_path):
    def mark(dataset):
        contours = dataset.ROIContourSequence[1].ContourSequence
        for kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"):
            item = pydicom.Dataset()
            item.ContourGeometricType, item.ContourData, item.NumberOfContourPoints = kind, [1, 2, 3], 1
            contours.append(item)

    labels = read_rtstruct(edited(written, tmp_path / "e.dcm", mark), case.volume)
    np.testing.assert_array_equal(labels.array, case.labels.array)
    assert "left out: 3 in region 2" in labels.provenance.notes[-1]


def _erased(contour: pydicom.Dataset) -> None:
    contour.NumberOfContourPoints, contour.ContourData = 0, None


def test_contours_without_points_are_left_out_and_told(case, written, tmp_path):
    def erase_two(dataset):
        contours = dataset.ROIContourSequence[1].ContourSequence
        contours += [copy.deepcopy(contours[0]), copy.deepcopy(contours[0])]
        _erased(contours[-1])
        _erased(contours[-2])
        del contours[-2].ContourData

    def erase_region(dataset):
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            _erased(contour)

    labels = read_rtstruct(edited(written, tmp_path / "e.dcm", erase_two), case.volume)
    np.testing.assert_array_equal(labels.array, case.labels.array)
    assert labels.provenance.notes[-1] == "contours without points were left out: 2 in region 2"
    # A region of which nothing remains is empty, as one without contours is
    labels = read_rtstruct(edited(written, tmp_path / "e.dcm", erase_region), case.volume)
    np.testing.assert_array_equal(labels.array, np.where(case.labels.array == 2, 2, 0))
    assert "without points were left out" in labels.provenance.notes[-1]


def test_contours_whose_points_are_lost_are_refused(case, written, tmp_path):
    def lose(dataset, count=0):
        contour = dataset.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData = contour.ContourData[: 3 * count] or None

    for count in (0, 5):
        with pytest.raises(LabelError, match=rf"region 1 has a contour with {count} of its \d+ points"):
            read_rtstruct(edited(written, tmp_path / "e.dcm", partial(lose, count=count)), case.volume)


def test_contours_on_every_second_slice_are_said_to_leave_the_others_empty(case, written, tmp_path):
    def thin(dataset):
        roi = dataset.ROIContourSequence[0]
        named = {one.ContourImageSequence[0].ReferencedSOPInstanceUID: one for one in roi.ContourSequence}
        roi.ContourSequence = [named[uid] for uid in case.volume.provenance.sop_instance_uids if uid in named][::2]

    notes = read_rtstruct(edited(written, tmp_path / "e.dcm", thin), case.volume).provenance.notes
    assert any(note.startswith("contours lie on every second slice or fewer, and the slices between") for note in notes)


@pytest.mark.parametrize("edit", [_beyond, _lift])
def test_a_region_off_the_image_is_named_with_the_way_out(case, written, tmp_path, edit):
    def couch(dataset):
        edit(dataset)
        dataset.PatientName = "Rossi^Anna"
        dataset.StructureSetROISequence[0].ROIName = "Couch Rossi"
        dataset.StructureSetROISequence[1].ROIName = "Liver"

    path = edited(written, tmp_path / "e.dcm", couch)
    with pytest.raises(LabelError, match=r"a contour of region 1 \(Couch \.\.\.\) lies .* by name .*regions --roi"):
        read_regions(path, case.volume)
    np.testing.assert_array_equal(read_regions(path, case.volume, ["Liver"]).array[..., 0], case.labels.array == 2)


# --- several contours of one region in one slice

SQUARE, INNER, THIN = (1.5, 8.5), (3.5, 5.5), (1.3, 8.7)


def square(low: float, high: float, aside: float = 0.0) -> np.ndarray:
    """Shape (4, 2): columns and rows of a closed contour."""
    return np.array([(low + aside, low), (high + aside, low), (high + aside, high), (low + aside, high)])


def with_contours(case, written, path, loops, kind="CLOSED_PLANAR"):
    """The structure set with these contours of region 1 in slice 2, and none else."""

    def draw(dataset):
        items = []
        for loop in loops:
            points = np.c_[loop, np.full(len(loop), 2), np.ones(len(loop))] @ case.volume.affine_lps.T
            item = pydicom.Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(loop)
            item.ContourData = [f"{value:.3f}" for value in points[:, :3].ravel()]
            items.append(item)
        dataset.ROIContourSequence[0].ContourSequence = items
        dataset.ROIContourSequence[1].ContourSequence = []

    return edited(written, path, draw)


def boxes(case, *parts) -> np.ndarray:
    """Label 1 in slice 2 between columns and rows, or none there where the last of a part is 0."""
    labels = np.zeros(case.volume.shape, dtype=int)
    for columns, rows, value in parts:
        labels[slice(*columns), slice(*rows), 2] = value
    return labels


@pytest.mark.parametrize(
    "again", [lambda loop: loop, lambda loop: np.roll(loop, 2, axis=0), lambda loop: np.roll(loop[::-1], 1, axis=0),
              lambda loop: np.r_[loop, loop[:1]]],
    ids=["the same", "begun elsewhere", "the other way round", "closed by its first point"],
)  # fmt: skip
def test_a_contour_that_stands_there_twice_is_taken_once_and_told(case, written, tmp_path, again):
    loops = [square(*SQUARE), square(*INNER), again(square(*SQUARE)), again(square(*INNER)), again(square(*SQUARE))]
    labels = read_rtstruct(with_contours(case, written, tmp_path / "r.dcm", loops), case.volume)
    np.testing.assert_array_equal(labels.array, boxes(case, ((2, 9), (2, 9), 1), ((4, 6), (4, 6), 0)))
    assert "a second time were left out: 3 in region 1" in labels.provenance.notes[-1]


@pytest.mark.parametrize("aside", [2.0, 1.0])
def test_closed_planar_contours_that_overlap_in_part_are_refused(case, written, tmp_path, aside):
    """Each has 7 x 7 voxels, of which they share all columns but as many as one lies aside."""
    path = with_contours(case, written, tmp_path / "r.dcm", [square(*SQUARE), square(*SQUARE, aside)])
    with pytest.raises(
        LabelError, match=rf"region 1 in slice 2, of 49 and 49 voxels, share {49 - 7 * int(aside)} and neither"
    ):
        read_rtstruct(path, case.volume)


def test_xor_contours_that_overlap_in_part_are_their_difference(case, written, tmp_path):
    loops = [square(*SQUARE), square(*SQUARE, 2.0)]
    labels = read_rtstruct(with_contours(case, written, tmp_path / "r.dcm", loops, "CLOSEDPLANAR_XOR"), case.volume)
    np.testing.assert_array_equal(labels.array, boxes(case, ((2, 4), (2, 9), 1), ((9, 11), (2, 9), 1)))
    assert labels.provenance.notes == case.volume.provenance.notes


def test_xor_contours_that_stand_there_twice_cancel_out_and_are_told(case, written, tmp_path):
    loops = [square(*SQUARE), square(*INNER), square(*SQUARE)]
    labels = read_rtstruct(with_contours(case, written, tmp_path / "r.dcm", loops, "CLOSEDPLANAR_XOR"), case.volume)
    np.testing.assert_array_equal(labels.array, boxes(case, ((4, 6), (4, 6), 1)))
    assert "cancel out the first: 1 in region 1" in labels.provenance.notes[-1]


def test_contours_apart_within_one_another_and_in_holes_are_read_as_drawn(case, written, tmp_path):
    loops = [square(*INNER), square(*SQUARE), square(4.5, 5.5), square(9.5, 10.5) - [0, 8]]
    labels = read_rtstruct(with_contours(case, written, tmp_path / "r.dcm", loops), case.volume)
    wanted = boxes(case, ((2, 9), (2, 9), 1), ((4, 6), (4, 6), 0), ((5, 6), (5, 6), 1), ((10, 11), (2, 3), 1))
    np.testing.assert_array_equal(labels.array, wanted)


def test_contours_that_meet_on_voxel_centres_are_not_taken_for_overlapping(case, written, tmp_path):
    """Drawn through centres, as some programs do, and rounded: a centre on a contour may be inside of both or of none."""
    jitter = np.random.default_rng(3).uniform(-0.02, 0.02, (2, 4, 2))
    loops = [square(2.0, 5.0) + jitter[0], square(2.0, 5.0, 3.0) + jitter[1]]
    labels = read_rtstruct(with_contours(case, written, tmp_path / "r.dcm", loops), case.volume)
    assert (labels.array[3:5, 3:5, 2] == 1).all()
    assert (labels.array[6:8, 3:5, 2] == 1).all()


def test_nearly_the_same_contour_a_second_time_is_refused_and_a_thin_ring_is_told(case, written, tmp_path):
    """Both enclose the same 49 voxels: the one as a copy that was moved by a tenth, the other 0.2 further out all around."""
    copied = with_contours(case, written, tmp_path / "c.dcm", [square(*SQUARE), square(*SQUARE, 0.1)])
    with pytest.raises(LabelError, match="of 49 and 49 voxels, share 49 and neither lies within the other"):
        read_rtstruct(copied, case.volume)
    ring = with_contours(case, written, tmp_path / "r.dcm", [square(*SQUARE), square(*THIN)])
    labels = read_rtstruct(ring, case.volume)
    assert not labels.array.any()
    assert "leave no voxel: 1 in region 1" in labels.provenance.notes[-1]


def test_contours_without_a_centre_and_beyond_the_image_are_told(case, written, tmp_path):
    loops = [square(3.1, 3.4), square(9.5, 14.5) - [0, 4]]
    labels = read_rtstruct(with_contours(case, written, tmp_path / "r.dcm", loops), case.volume)
    np.testing.assert_array_equal(labels.array, boxes(case, ((10, 13), (6, 10), 1)))
    assert any("no voxel's centre: 1 in region 1" in note for note in labels.provenance.notes)
    assert any("cut at its edge: 1 in region 1" in note for note in labels.provenance.notes)


def test_regions_name_their_frame_of_reference_themselves(case, written, tmp_path):
    """StructureSetROISequence: Type 1 (PS3.3 C.8.8.5); the list beside it may have more entries than are used."""

    def listed(dataset):
        other = pydicom.Dataset()
        other.FrameOfReferenceUID = "1.2.3.99"
        dataset.ReferencedFrameOfReferenceSequence.append(other)

    def second_elsewhere(dataset):
        listed(dataset)
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3.99"

    def all_elsewhere(dataset):
        del dataset.ReferencedFrameOfReferenceSequence
        for roi in dataset.StructureSetROISequence:
            roi.ReferencedFrameOfReferenceUID = "1.2.3.99"

    def silent(dataset):
        listed(dataset)
        del dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID

    found = read_rtstruct(edited(written, tmp_path / "r.dcm", listed), case.volume)
    np.testing.assert_array_equal(found.array, case.labels.array)
    for edit, regions in ((second_elsewhere, "[2]"), (all_elsewhere, "[1, 2]"), (silent, "[1]")):
        with pytest.raises(LabelError) as refusal:
            read_rtstruct(edited(written, tmp_path / "r.dcm", edit), case.volume)
        assert f"regions {regions} in 1.2.3.99" in str(refusal.value)


@pytest.mark.slow
def test_many_regions_with_holes_on_many_slices_are_read_in_some_seconds(tmp_path):
    """20 regions on 200 slices, each a square of 40 x 40 voxels with a hole of 20 x 20 as a second contour."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.RTStructureSetStorage, "1.2.3.4"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    wanted = np.zeros((250, 200), dtype=np.uint8)
    for number in range(1, 21):
        start = np.array([50 * ((number - 1) % 5) + 5, 50 * ((number - 1) // 5) + 5])
        wanted[start[0] : start[0] + 40, start[1] : start[1] + 40] = number
        wanted[start[0] + 10 : start[0] + 30, start[1] + 10 : start[1] + 30] = 0
        roi, drawn = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber = drawn.ReferencedROINumber = number
        drawn.ContourSequence = []
        for k, (low, high) in ((k, ends) for k in range(200) for ends in ((-0.5, 39.5), (9.5, 29.5))):
            item, points = pydicom.Dataset(), np.c_[square(low, high) + start, np.full(4, k)]
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", 4
            item.ContourData = points.ravel().tolist()
            drawn.ContourSequence.append(item)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(tmp_path / "r.dcm", enforce_file_format=True)
    begin = time.monotonic()
    found = read_rtstruct(tmp_path / "r.dcm", Volume(np.zeros((250, 200, 200), dtype=np.uint8), np.eye(4)))
    assert time.monotonic() - begin < 30
    assert (found.array == wanted[:, :, None]).all()


def test_other_files_and_other_images_are_refused(case, written, tmp_path):
    provenance = replace(case.volume.provenance, frame_of_reference_uid="1.2.3")
    with pytest.raises(LabelError, match="frame of reference"):
        read_rtstruct(written, replace(case.volume, provenance=provenance))
    with pytest.raises(LabelError, match="RT Structure Set is needed"):
        read_rtstruct(case.seg, case.volume)
    (tmp_path / "empty.dcm").touch()
    with pytest.raises(UnreadableFileError, match=r"empty\.dcm"):
        read_rtstruct(tmp_path / "empty.dcm", case.volume)


# --- with the larger data beside the repository ---


def test_rtstruct_on_a_real_scanner_series_is_valid_and_exact(shared_data, tmp_path):
    source = read_series(shared_data / "dicom_series/mr_ge_oblique_t1post/Study1/12-T1post-05670")
    i, j, k = np.indices(source.shape) / np.array(source.shape)[:, None, None, None]
    labels = np.zeros(source.shape, dtype=np.uint8)
    labels[((i - 0.4) / 0.2) ** 2 + ((j - 0.55) / 0.1) ** 2 + ((k - 0.4) / 0.3) ** 2 < 1] = 1
    labels[((i - 0.4) / 0.1) ** 2 + ((j - 0.55) / 0.04) ** 2 < 1] = 0
    labels[(i > 0.7) & (j < 0.3) & (i + j + 0.1 * k < 1.05)] = 2
    path = write_rtstruct(source.with_array(labels), source, tmp_path / "r.dcm", RESULT)
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_rtstruct(path, source).array, labels)

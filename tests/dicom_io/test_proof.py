from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.errors import BytesLengthException
from pydicom.pixels.utils import pack_bits
from result_phantoms import RESULT, dciodvfy_errors, oblique_case

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.objects import source_grid
from dicom_io.objects.proof_headers import deleting
from dicom_io.objects.raster import even_odd
from dicom_io.objects.slice_positions import Plane, slices_of
from dicom_io.rtstruct import prove_rtstruct, write_rtstruct
from dicom_io.seg import prove_seg, write_seg


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return oblique_case(tmp_path_factory.mktemp("case") / "phantom")


@pytest.fixture
def seg(case, tmp_path):
    return write_seg(case.labels, case.volume, tmp_path / "s.dcm", RESULT)


@pytest.fixture
def rtstruct(case, tmp_path):
    return write_rtstruct(case.labels, case.volume, tmp_path / "r.dcm", RESULT)


def test_a_right_file_passes_and_stays(case, seg, rtstruct):
    prove_seg(seg, case.labels, case.volume)
    prove_rtstruct(rtstruct, case.labels, case.volume)
    assert seg.is_file()
    assert rtstruct.is_file()


def test_one_voxel_too_many_or_too_few_is_found_and_the_file_deleted(case, seg, tmp_path):
    for pixel in (0, 1):
        file = shutil.copy(seg, tmp_path / "one.dcm")
        dataset = pydicom.dcmread(file)
        frames = dataset.pixel_array.copy()
        row, column = np.argwhere(frames[3] == pixel)[0]
        frames[3, row, column] = 1 - pixel
        dataset.PixelData = pack_bits(frames)
        dataset.save_as(file)
        with pytest.raises(GeometryProofError, match=r"and 1 differ|another frame holds already"):
            prove_seg(file, case.labels, case.volume)
        assert not file.exists()


@pytest.mark.parametrize("fault", [BytesLengthException("an odd length"), EOFError("the end"), zlib.error("broken")])
def test_what_a_broken_file_makes_pydicom_raise_is_a_failed_proof(fault, tmp_path):
    file = tmp_path / "s.dcm"
    file.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(GeometryProofError, match=f"cannot be read back .{type(fault).__name__}"), deleting(file, "SEG"):
        raise fault
    assert not file.exists()


def test_an_error_of_the_disk_is_no_failed_proof_and_leaves_the_file(tmp_path):
    file = tmp_path / "s.dcm"
    file.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(PermissionError), deleting(file, "SEG"):
        raise PermissionError("read only")
    assert file.exists()


def test_pixels_shuffled_between_frames_pass_the_validator_and_fail_the_proof(case, seg):
    dataset = pydicom.dcmread(seg)
    dataset.PixelData = pack_bits(np.roll(dataset.pixel_array, 1, axis=0))
    dataset.save_as(seg)
    assert dciodvfy_errors(seg) == []
    with pytest.raises(GeometryProofError):
        prove_seg(seg, case.labels, case.volume)
    assert not seg.exists()


def test_a_frame_that_names_another_slice_than_it_lies_in_fails(case, seg):
    dataset = pydicom.dcmread(seg)
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )
    dataset.save_as(seg)
    with pytest.raises(GeometryProofError, match=r"lies 2\.50 mm off its plane"):
        prove_seg(seg, case.labels, case.volume)


def test_frames_moved_half_a_millimetre_in_their_plane_fail(case, seg):
    dataset = pydicom.dcmread(seg)
    step = slices_of(case.volume)[0].plane.column_step_mm
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        moved = position + 0.5 * step / np.linalg.norm(step)
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{v:.6f}" for v in moved]
    dataset.save_as(seg)
    with pytest.raises(GeometryProofError, match=r"lies 0\.50 mm off its plane"):
        prove_seg(seg, case.labels, case.volume)


def test_swapped_segment_numbers_fail(case, seg):
    dataset = pydicom.dcmread(seg)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        item = group.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = 3 - item.ReferencedSegmentNumber
    dataset.save_as(seg)
    with pytest.raises(GeometryProofError, match="differ"):
        prove_seg(seg, case.labels, case.volume)


def test_a_contour_moved_by_one_pixel_fails_and_the_file_is_deleted(case, rtstruct):
    dataset = pydicom.dcmread(rtstruct)
    contour = dataset.ROIContourSequence[1].ContourSequence[0]
    step = case.volume.affine_lps[:3, 0]
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) + step
    contour.ContourData = [f"{v:.3f}" for v in points.ravel()]
    dataset.save_as(rtstruct)
    with pytest.raises(GeometryProofError, match="differ"):
        prove_rtstruct(rtstruct, case.labels, case.volume)
    assert not rtstruct.exists()


def test_a_contour_lifted_off_its_slice_fails(case, rtstruct):
    dataset = pydicom.dcmread(rtstruct)
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    normal = np.cross(case.volume.affine_lps[:3, 0], case.volume.affine_lps[:3, 1])
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) + 0.4 * normal / np.linalg.norm(normal)
    contour.ContourData = [f"{v:.3f}" for v in points.ravel()]
    dataset.save_as(rtstruct)
    with pytest.raises(GeometryProofError, match=r"lies 0\.40 mm off its plane"):
        prove_rtstruct(rtstruct, case.labels, case.volume)


def test_even_odd_fills_a_triangle_as_its_half_planes_say():
    triangle = np.array([(1.2, 0.7), (9.4, 3.1), (4.9, 8.8)])
    row, column = np.mgrid[0:10, 0:12]
    inside = np.ones(row.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
        inside &= (x1 - x0) * (row - y0) - (y1 - y0) * (column - x0) > 0
    np.testing.assert_array_equal(even_odd([triangle], (10, 12)), inside)


def test_even_odd_of_an_inner_loop_is_a_hole_and_of_a_doubled_loop_nothing():
    outer = np.array([(0.5, 0.5), (8.5, 0.5), (8.5, 6.5), (0.5, 6.5)])
    inner = np.array([(2.5, 2.5), (4.5, 2.5), (4.5, 4.5), (2.5, 4.5)])
    wanted = np.zeros((8, 10), dtype=bool)
    wanted[1:7, 1:9] = True
    wanted[3:5, 3:5] = False
    np.testing.assert_array_equal(even_odd([outer, inner], (8, 10)), wanted)
    assert not even_odd([outer, outer[::-1]], (8, 10)).any()


def test_even_odd_clips_what_reaches_beyond_the_image():
    beyond = np.array([(-3.5, -2.5), (20.5, -2.5), (20.5, 3.5), (-3.5, 3.5)])
    np.testing.assert_array_equal(even_odd([beyond], (6, 5)).sum(axis=1), [5, 5, 5, 5, 0, 0])


def test_a_plane_turns_pixels_into_millimetres_and_back():
    plane = Plane(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.5, 0.0]), np.array([0.0, 0.0, -2.0]))
    np.testing.assert_allclose(plane.points_mm(np.array([4]), np.array([1])), [[1.0, 4.0, 1.0]])
    np.testing.assert_allclose(plane.pixels(np.array([[0.75, 4.0, 1.0]])), [[4.0, 1.0, 0.25]])


def test_a_place_that_itk_sees_elsewhere_stops_the_result(case, tmp_path, monkeypatch):
    def moved(file):
        view = by_itk(file)
        return replace(view, plane=replace(view.plane, origin_mm=view.plane.origin_mm + np.array([0.0, 0.2, 0.0])))

    by_itk = source_grid._seen_by_itk
    monkeypatch.setattr(source_grid, "_seen_by_itk", moved)
    with pytest.raises(LabelError, match=r"ITK sees instance [0-9.]+ of the source 0\.20 mm from its position"):
        write_seg(case.labels, case.volume, tmp_path / "s.dcm", RESULT)
    assert list(tmp_path.iterdir()) == []


def test_itk_places_slices_whose_files_have_bytes_behind_their_pixels(tmp_path):
    made = oblique_case(tmp_path / "phantom")
    file = made.volume.provenance.files[0]
    file.write_bytes(file.read_bytes() + bytes.fromhex("11111111000000f0" + "11" * 16))  # of 4 GB, they say
    program = (
        "import re, sys\nfrom pathlib import Path\nfrom dicom_io.objects.source_grid import _seen_by_itk\n"
        "plane = _seen_by_itk(Path(sys.argv[1])).plane\n"
        "print(*plane.origin_mm, re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    *origin_mm, peak_kib = map(float, done.stdout.split())
    np.testing.assert_allclose(origin_mm, [float(value) for value in pydicom.dcmread(file).ImagePositionPatient])
    assert peak_kib < 2**20
    assert source_grid.second_opinion_note(made.volume) is None


def test_itk_is_asked_about_a_file_once_and_again_when_the_file_has_changed(tmp_path):
    made = oblique_case(tmp_path / "phantom")
    source_grid._itk_view.cache_clear()
    write_seg(made.labels, made.volume, tmp_path / "s.dcm", RESULT)
    write_rtstruct(made.labels, made.volume, tmp_path / "r.dcm", RESULT)
    assert source_grid.second_opinion_note(made.volume) is None
    assert source_grid._itk_view.cache_info().misses == 3
    file = Path(made.volume.provenance.files[0])
    dataset = pydicom.dcmread(file)
    dataset.ImagePositionPatient = [float(value) + 1 for value in dataset.ImagePositionPatient]
    dataset.save_as(file)
    np.testing.assert_allclose(
        source_grid._seen_by_itk(file).plane.origin_mm, [float(value) for value in dataset.ImagePositionPatient]
    )

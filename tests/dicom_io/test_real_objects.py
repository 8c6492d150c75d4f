"""Objects that others wrote, and series of real scanners: read as their writers meant them, or refused in plain words.

What is true of an object is told by another reader (dcmqi, highdicom, matplotlib) or by the image that it was made from,
never by ours; both are laid on one grid by their millimetres. The files are the larger data beside the repository.
"""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from other_readers import (
    Key,
    Plane,
    Points,
    all_points_of,
    as_labels,
    frame_plane,
    images_by_dcmqi,
    key_of,
    named_sources,
    nrrd,
    on_grid,
    planes_of,
    points_of,
    rtstruct_by_matplotlib,
    seg_by_headers,
    seg_by_highdicom_sources,
    source_key,
)
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_enhanced_mr, write_mr_series, write_picture
from pydicom.misc import is_dicom
from result_phantoms import RESULT, SEGMENTS, dciodvfy_errors, tool
from source_phantoms import run_program

from dicom_io.capture import write_captures
from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, read_parametric_map, write_parametric_map
from dicom_io.pdf import write_pdf
from dicom_io.presentation import write_gsps
from dicom_io.read import examine, read_series
from dicom_io.rtstruct import read_rtstruct, write_rtstruct
from dicom_io.seg import read_seg, read_segments, write_seg
from dicom_io.sr import write_sr
from dicom_io.volume import Provenance, Volume

REAL_TOLERANCE_MM = 0.05
"""Scanners round positions and cosines; an even grid fitted to them is off by as much."""


@pytest.fixture(scope="module")
def objects(shared_data) -> Path:
    return _present(shared_data / "dicom_objects")


@pytest.fixture(scope="module")
def series(shared_data) -> Path:
    return _present(shared_data / "dicom_series")


def _present(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"extended data are absent (looked for {folder.name}/ among them)")
    return folder


def laid(reference: Volume, found: Points) -> NDArray:
    """Points on the grid of a reference."""
    return on_grid(reference.affine_lps, reference.shape, found)


def turned(reference: Volume) -> Volume:
    """The grid of a reference without its names, rows and columns swapped, slices backwards."""
    turn = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, reference.shape[2] - 1], [0, 0, 0, 1.0]])
    i, j, k = reference.shape
    return Volume(np.zeros((j, i, k)), reference.affine_lps @ turn, Provenance("nifti"))


# --- segmentations by dcmqi

DCMQI_SEGS = [
    ("23x38x3/seg/label.seg", "23x38x3/image", "23x38x3/nrrd/label.nrrd"),
    ("23x38x3/seg/label.seg", "23x38x3/multiframe", "23x38x3/nrrd/label.nrrd"),
    ("24x38x3/seg/label.seg", "24x38x3/image", "24x38x3/nrrd/label.nrrd"),
    ("24x38x3/seg/label.seg", "24x38x3/multiframe", "24x38x3/nrrd/label.nrrd"),
    ("liver.dcm", "ct-3slice", "liver_seg.nrrd"),
    ("sparse-labelmap-noppv.dcm", "24x38x3/image", "sparse_labelmap_noppv_seg.nrrd"),
    ("sparse-labelmap-noppv.dcm", "24x38x3/multiframe", "sparse_labelmap_noppv_seg.nrrd"),
    ("sparse-labelmap-ppv5.dcm", "24x38x3/image", "sparse_labelmap_ppv5_seg.nrrd"),
]


def true_labels(path: Path, truth: Path) -> Points:
    """Labels of an image file, without the padding of the SEG that it belongs to.

    dcmqi fills a slice without a frame with PixelPaddingValue; it stands for no segment (PS3.3 C.8.20.2).
    """
    array, affine_lps = nrrd(truth)
    padding = pydicom.dcmread(path, stop_before_pixels=True).get("PixelPaddingValue", 0)
    return points_of(np.where(array == padding, 0, array), affine_lps)


@pytest.mark.parametrize(("seg", "image", "truth"), DCMQI_SEGS)
def test_labels_by_dcmqi_lie_where_its_own_image_has_them(objects, seg, image, truth):
    folder = objects / "dcmqi/segmentations"
    source, wanted = read_series(folder / image), true_labels(folder / seg, folder / truth)
    assert len(wanted[1]) > 100
    for reference in (source, turned(source)):
        np.testing.assert_array_equal(read_seg(folder / seg, reference).array, laid(reference, wanted))
        np.testing.assert_array_equal(
            read_segments(folder / seg, reference).array[..., 0], laid(reference, wanted) == 1
        )
    np.testing.assert_array_equal(laid(source, as_labels(seg_by_headers(folder / seg))), laid(source, wanted))


def test_a_seg_whose_series_is_lost_lies_on_the_grid_that_dcmqi_gives_it(objects, tmp_path):
    path = objects / "dcmqi/sr-example/seg.dcm"
    ((array, affine_lps),) = images_by_dcmqi("segimage2itkimage", path, tmp_path / "out", "--mergeSegments")
    assert np.count_nonzero(array) == 795
    np.testing.assert_array_equal(read_seg(path, Volume(np.zeros(array.shape), affine_lps)).array, array)


# From the metadata file and images that dcmqi documents: label of the image and its file, by segment.
LIVER, SPINE, HEART = ("liver_seg", 1), ("spine_seg", 2), ("heart_seg", 3)
OVERLAPPING = {
    "GREEN": ("partial_overlaps-1", 1),
    "LIGHT_BLUE": ("partial_overlaps-1", 4),
    "DARK_BLUE": ("partial_overlaps-1", 5),
    "ORANGE": ("partial_overlaps-2", 2),
    "PURPLE": ("partial_overlaps-3", 3),
}
WRITTEN_BY_DCMQI = {
    "one": ("seg-example", ("liver_seg",), {"Liver": LIVER}),
    "two": ("seg-example_liver_spine", ("liver_seg", "spine_seg"), {"Liver": LIVER, "Thoracic spine": SPINE}),
    "numbers with a gap": (
        "seg-example_liver_spine_gapped_merged",
        ("liver_spine_gapped_seg",),
        {"Liver": ("liver_spine_gapped_seg", 1), "Thoracic spine": ("liver_spine_gapped_seg", 5)},
    ),
    "three that overlap": (
        "seg-example_multiple_segments_reordered",
        ("heart_seg", "liver_seg", "spine_seg"),
        {"Liver": LIVER, "Thoracic spine": SPINE, "Heart": HEART},
    ),
    "five that overlap": (
        "seg-example_partial_overlaps",
        ("partial_overlaps-1", "partial_overlaps-2", "partial_overlaps-3"),
        OVERLAPPING,
    ),
}
PLAIN, LABEL_MAP, DEFLATED = (), ("--segmentationType", "labelmap"), ("--compress", "deflate")
FAST_WRITTEN = [("numbers with a gap", LABEL_MAP), ("five that overlap", DEFLATED)]


def segments_by_name(path: Path, folder: Path, names: dict[str, tuple[str, int]]) -> list[Points]:
    """The true voxels of each segment of a SEG in order of its numbers; a background is none."""
    items = sorted(pydicom.dcmread(path).SegmentSequence, key=lambda item: item.SegmentNumber)
    truths = []
    for item in (item for item in items if item.SegmentNumber):
        image, label = names[item.SegmentLabel]
        array, affine_lps = nrrd(folder / f"{image}.nrrd")
        truths.append(points_of(array == label, affine_lps))
    return truths


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            pytest.param(name, options, marks=() if (name, options) in FAST_WRITTEN else pytest.mark.slow)
            for name in WRITTEN_BY_DCMQI
            for options in (PLAIN, DEFLATED, LABEL_MAP)
            if options != LABEL_MAP or "overlap" not in name  # dcmqi makes no label map of overlapping segments
        ),
    ],
)
def test_segments_that_dcmqi_writes_are_read_as_it_meant_them(objects, tmp_path, name, options):
    metadata, images, names = WRITTEN_BY_DCMQI[name]
    folder, path = objects / "dcmqi/segmentations", tmp_path / "seg.dcm"
    command = [
        tool("itkimage2segimage"),
        "--inputDICOMDirectory",
        str(folder / "ct-3slice"),
        "--outputDICOM",
        str(path),
    ]
    command += ["--inputImageList", ",".join(str(folder / f"{image}.nrrd") for image in images)]
    command += ["--inputMetadata", str(objects / f"dcmqi/json/examples/{metadata}.json"), *options]
    subprocess.run(command, capture_output=True, check=False)  # its exit code cannot be trusted
    check_segments(path, read_series(folder / "ct-3slice"), segments_by_name(path, folder, names))


def test_the_overlapping_segments_of_a_file_by_dcmqi_are_its_images(objects):
    folder = objects / "dcmqi/segmentations"
    path = folder / "partial_overlaps.dcm"
    check_segments(path, read_series(folder / "ct-3slice"), segments_by_name(path, folder, OVERLAPPING))


def check_segments(path: Path, reference: Volume, truths: list[Points]) -> None:
    """Channels are the truths; so is the label map, or it is refused where two of them meet."""
    wanted = np.stack([laid(reference, truth) for truth in truths], axis=-1)
    assert wanted.any(axis=(0, 1, 2)).all()
    np.testing.assert_array_equal(read_segments(path, reference).array, wanted)
    if (wanted.sum(axis=-1) > 1).any():
        with pytest.raises(LabelError, match=r"segment \d overlaps segment \d.*needed"):
            read_seg(path, reference)
    else:
        np.testing.assert_array_equal(read_seg(path, reference).array, wanted @ np.arange(1, len(truths) + 1))


# --- segmentations by highdicom


@pytest.fixture(scope="module")
def three_slices(objects) -> Volume:
    """The part of an uneven series that is even."""
    folder = objects / "highdicom_sources/77654033/CT2"
    return read_series([folder / name for name in ("17136", "17166", "17196")])


@pytest.fixture(scope="module")
def tall(three_slices) -> Volume:
    """An even grid through all slices of that series: the one below lies 202.5 mm, or 162 steps, under the three."""
    affine_lps = three_slices.affine_lps @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -162.0], [0, 0, 0, 1]])
    assert affine_lps[2, 3] == pytest.approx(-99.480003, abs=1e-4)
    return Volume(np.zeros((16, 16, 165)), affine_lps, Provenance("nifti"))


def keys_of(volume: Volume) -> list[Key]:
    """What names the slices, as the reader says."""
    return [source_key(volume.provenance.sop_instance_uids, volume.provenance.frame_numbers, k)
            for k in range(len(volume.provenance.sop_instance_uids))]  # fmt: skip


def test_labels_by_highdicom_are_read_as_highdicom_reads_them(objects, three_slices, tall):
    path = objects / "highdicom/seg_image_ct_binary.dcm"
    wanted = seg_by_highdicom_sources(path, keys_of(three_slices))
    assert wanted.sum() == 638
    np.testing.assert_array_equal(read_seg(path, three_slices).array, wanted)
    np.testing.assert_array_equal(read_segments(path, three_slices).array[..., 0], wanted)
    np.testing.assert_array_equal(read_seg(path, tall).array[:, :, -3:], wanted)
    assert read_seg(path, tall).array.sum() == 638


def test_a_single_frame_is_read_as_highdicom_reads_it(objects):
    path, source = objects / "highdicom/seg_image_ct_binary_single_frame.dcm", objects / "highdicom/ct_image.dcm"
    wanted = seg_by_highdicom_sources(path, keys_of(read_series(source)))
    assert wanted.sum() == 1832
    np.testing.assert_array_equal(read_seg(path, read_series(source)).array, wanted)


@pytest.mark.parametrize("name", ["seg_image_ct_true_fractional", "seg_image_ct_binary_fractional"])
def test_fractions_by_highdicom_are_channels_and_no_labels(objects, three_slices, name):
    path = objects / f"highdicom/{name}.dcm"
    wanted = seg_by_highdicom_sources(path, keys_of(three_slices), fractions=True)
    found = read_segments(path, three_slices)
    assert (found.array.dtype, found.array.shape) == (np.float32, (16, 16, 3, 1))
    np.testing.assert_allclose(found.array, wanted, atol=1e-6)
    np.testing.assert_allclose(found.array[..., 0], laid(three_slices, seg_by_headers(path)[1]), atol=1e-6)
    if "true" in name:
        assert {0, 64, 128} == set(np.rint(found.array * 255).astype(int).ravel())  # 0.25 and 0.5 in steps of 1/255
    with pytest.raises(LabelError, match=r"FRACTIONAL segmentation.*needed"):
        read_seg(path, three_slices)


def test_overlapping_segments_by_highdicom_are_channels_and_no_labels(objects, three_slices, tall):
    path, folder = objects / "highdicom/seg_image_ct_binary_overlap.dcm", objects / "highdicom_sources/77654033/CT2"
    names = [pydicom.dcmread(folder / name).SOPInstanceUID for name in ("17106", "17136", "17166", "17196")]
    planes = hd.seg.segread(path).get_pixels_by_source_instance(names)
    wanted = np.zeros((*tall.shape, 2))
    wanted[:, :, [0, 162, 163, 164]] = np.moveaxis(planes, (0, 1, 2), (2, 1, 0))
    assert wanted.sum(axis=(0, 1, 2)).tolist() == [64, 16]
    np.testing.assert_array_equal(read_segments(path, tall).array, wanted)
    with pytest.raises(LabelError, match="segment 2 overlaps segment 1"):
        read_seg(path, tall)
    for reader in (read_seg, read_segments):
        with pytest.raises(LabelError, match=r"outside the image, whose grid is \(16, 16, 3\)"):
            reader(path, three_slices)


def test_labels_on_a_radiograph_lie_in_its_pixels(objects):
    """Neither SEG nor picture has a place in patient space; the name of the picture decides."""
    path, folder = objects / "highdicom/seg_image_cr_binary.dcm", objects / "highdicom_sources/77654033"
    picture = read_series(folder / "CR1/6154")
    wanted = pydicom.dcmread(path).pixel_array.reshape(picture.shape[1], picture.shape[0]).T
    assert wanted.sum() == 151
    np.testing.assert_array_equal(read_seg(path, picture).array[:, :, 0], wanted)
    for other in (folder / "CR2/6247", objects / "highdicom/ct_image.dcm"):
        with pytest.raises(LabelError, match="names"):
            read_seg(path, read_series(other))


# --- structure sets


def thorax(objects: Path, slices: int) -> Volume:
    """The grid of a CT of which two slices are there, at 60 and 65 mm; more slices as far apart."""
    source = read_series([objects / f"rt-utils/mock_data/ct_{number}.dcm" for number in (1, 2)])
    affine_lps = np.array(
        [[0.488281, 0, 0, -125.0], [0, 0.488281, 0, -125.0], [0, 0, 5.0, 60.0], [0, 0, 0, 1]]
    )  # fmt: skip
    np.testing.assert_allclose(source.affine_lps, affine_lps, atol=1e-9)
    return source if slices == 2 else Volume(np.zeros((512, 512, slices)), affine_lps, Provenance("nifti"))


@pytest.mark.parametrize(
    "name", ["empty/dummy_rt", "mock_data/invalid_reference_rt", "mock_data/non_existent_reference_rt"]
)
def test_regions_of_a_treatment_planning_system_are_filled_as_matplotlib_fills_them(objects, name):
    """Four regions on three slices, of which the contours name one that is lost: its plane is told here by its contours."""
    path, reference = objects / f"rt-utils/{name}.dcm", thorax(objects, 3)
    planes = {}
    for region in pydicom.dcmread(path).ROIContourSequence:
        for contour in region.ContourSequence:
            depth_mm = float(contour.ContourData[2])
            origin, steps = np.array([-125.0, -125.0, depth_mm]), 0.488281 * np.eye(3)
            planes[key_of(contour.ContourImageSequence[0])] = Plane(origin, steps[0], steps[1], (512, 512))
    wanted = np.zeros(reference.shape, dtype=int)
    for (region, key), mask in rtstruct_by_matplotlib(path, planes).items():
        wanted[:, :, round((planes[key].origin[2] - 60) / 5)] += region * mask.T
    assert set(np.unique(wanted)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(read_rtstruct(path, reference).array, wanted)
    with pytest.raises(LabelError, match="lies in slice 2; slices 0 to 1 of the image are needed"):
        read_rtstruct(path, thorax(objects, 2))


def test_a_region_with_a_hole_by_rt_utils_is_read_once_its_frame_of_reference_is_granted(objects):
    """Two contours of one region, the smaller within the larger; another Frame of Reference UID than the CT has."""
    path, source = objects / "rt-utils/mock_data/rt.dcm", thorax(objects, 2)
    with pytest.raises(LabelError, match=r"frame of reference .* the same one is needed"):
        read_rtstruct(path, source)
    granted = replace(source, provenance=replace(source.provenance, frame_of_reference_uid=None))
    planes = planes_of(source.provenance.files)
    (((region, key), mask),) = rtstruct_by_matplotlib(path, planes).items()
    assert (region, planes[key].origin[2]) == (1, 60.0)
    found = read_rtstruct(path, granted).array
    np.testing.assert_array_equal(found[:, :, 0], mask.T)
    assert not found[:, :, 1].any()
    centre = np.rint((np.array([-39.0, -39.0]) + 125) / 0.488281).astype(int)  # of a square of 24 mm with a hole in it
    assert not found[centre[0], centre[1], 0]
    assert found[centre[0], centre[1] - 20, 0]


# --- parametric maps


@pytest.fixture(scope="module")
def diffusion(objects, tmp_path_factory) -> Path:
    """Twenty oblique slices of a prostate."""
    folder = tmp_path_factory.mktemp("diffusion")
    with zipfile.ZipFile(objects / "dcmqi/paramaps/pm-example-dcm.zip") as archive:
        archive.extractall(folder)
    return folder / "701-ADCb500"


@pytest.mark.parametrize(
    ("image", "metadata"),
    [
        ("pm-example-float", "pm-example-float"),
        pytest.param("pm-example", "pm-example", marks=pytest.mark.slow),
        pytest.param("pm-example", "pm-example_no_modifier", marks=pytest.mark.slow),
        pytest.param("pm-example-3slices-256x256", "pm-example", marks=pytest.mark.slow),
        ("pm-example-3slices-252x255", "pm-example"),
    ],
)
def test_maps_that_dcmqi_writes_are_read_as_it_meant_them(objects, diffusion, tmp_path, image, metadata):
    """Some cover three of the twenty slices, or a part of each: what they do not cover is NaN."""
    file, path = objects / f"dcmqi/paramaps/{image}.nrrd", tmp_path / "map.dcm"
    command = [tool("itkimage2paramap"), "--inputImage", str(file), "--inputDICOMDirectory", str(diffusion)]
    command += ["--inputMetadata", str(objects / f"dcmqi/json/examples/{metadata}.json"), "--outputDICOM", str(path)]
    subprocess.run(command, capture_output=True, check=False)
    source = read_series(diffusion)
    wanted = all_points_of(*nrrd(file))
    for reference in (source, turned(source)):
        truth = on_grid(reference.affine_lps, reference.shape, wanted, tolerance_mm=REAL_TOLERANCE_MM, empty=np.nan)
        np.testing.assert_array_equal(read_parametric_map(path, reference).array, truth.astype(np.float32))
    assert np.ptp(wanted[1]) > 0


# --- refusals


def test_each_reader_refuses_what_is_none_of_its_kind_and_says_what_it_found(objects, three_slices):
    readers = {read_seg: {"SEG"}, read_segments: {"SEG"}, read_rtstruct: {"RTSTRUCT"}, read_parametric_map: set()}
    files = [path for path in sorted(objects.rglob("*")) if path.is_file() and is_dicom(path)]
    assert len(files) > 40
    for path in files:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        for reader, kinds in readers.items():
            if header.get("Modality") not in kinds:
                with pytest.raises(LabelError, match=rf"SOP class {header.SOPClassUID}.* needed") as refusal:
                    reader(path, three_slices)
                assert not str(header.PatientName) or str(header.PatientName) not in str(refusal.value)


def test_files_that_are_no_dicom_are_refused(objects, three_slices):
    for path in (objects / "README.md", objects / "dcmqi/segmentations/liver_seg.nrrd"):
        for reader in (read_seg, read_segments, read_rtstruct, read_parametric_map):
            with pytest.raises(UnreadableFileError, match=path.name):
                reader(path, three_slices)


# --- what the real files taught, in small


@pytest.mark.parametrize("reader", [read_seg, read_segments, read_rtstruct, read_parametric_map])
def test_an_object_in_patient_space_is_refused_on_a_picture_without_one(tmp_path, reader):
    """Slice and picture have as many pixels; the slice begins at 0 and its pixels are 1 mm wide, so that the two agree."""
    source = small_series(tmp_path / "mr", np.eye(4), slices=1)
    header = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR", "FrameOfReferenceUID": None}
    picture = read_series(write_picture(tmp_path / "cr.dcm", lopsided_array((11, 9, 1))[:, :, 0], header))
    path, labels = tmp_path / "object.dcm", source.with_array(lopsided_labels()[:, :, 1:2])
    if reader is read_rtstruct:
        write_rtstruct(labels, source, path, RESULT)
    elif reader is read_parametric_map:
        write_small_map(source, path)
    else:
        write_seg(labels, source, path, RESULT)
    with pytest.raises(LabelError):
        reader(path, picture)


@pytest.mark.parametrize("keyword", ["ReferencedStudySequence", "ReferencedPatientSequence"])
def test_a_source_that_refers_to_its_study_or_patient_gets_a_report(tmp_path, keyword):
    """Both sequences belong to the modules of study and patient, which a result repeats (PS3.3 C.7.2.1, C.7.1.1)."""
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", "1.2.3.4"
    source = small_series(tmp_path / "mr", oblique_affine(), header={keyword: [item]})
    labels = source.with_array(lopsided_labels())
    seg = write_seg(labels, source, tmp_path / "seg.dcm", RESULT)
    write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=seg)
    assert dciodvfy_errors(tmp_path / "sr.dcm") == []


def test_an_empty_character_set_of_the_source_is_left_out(tmp_path):
    """Type 1C: it must not be there without a value (PS3.3 C.12.1.1.2)."""
    source = small_series(tmp_path / "mr", oblique_affine(), header={"SpecificCharacterSet": ""})
    path = write_seg(source.with_array(lopsided_labels()), source, tmp_path / "seg.dcm", RESULT)
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("thickness", ["", None], ids=["empty", "absent"])
def test_slices_without_a_thickness_get_a_map(tmp_path, thickness):
    """SliceThickness is of Type 2 (PS3.3 C.7.6.2), and some files lack it altogether; a SEG takes the gap then."""

    def edit(dataset: pydicom.Dataset, _: int) -> None:
        dataset.SliceThickness = thickness
        if thickness is None:
            del dataset.SliceThickness

    source = small_series(tmp_path / "mr", oblique_affine(), edit=edit)
    path = write_small_map(source, tmp_path / "map.dcm")
    assert dciodvfy_errors(path) == []


def test_frames_that_say_their_pixel_size_one_by_one_get_a_map(tmp_path):
    """Pixel Measures may stand in the shared groups or in those of each frame (PS3.3 C.7.6.16.2.1)."""

    def edit(dataset: pydicom.Dataset, _: int) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        del shared.PixelMeasuresSequence

    source = read_series(write_enhanced_mr(tmp_path / "e.dcm", lopsided_array(), oblique_affine(), edit=edit))
    path = write_small_map(source, tmp_path / "map.dcm")
    assert dciodvfy_errors(path) == []


def small_series(folder: Path, affine_lps: NDArray[np.float64], *, slices: int = 7, **written) -> Volume:
    """A lopsided MR series of 11 x 9 pixels; further arguments as of `write_mr_series`."""
    write_mr_series(folder, lopsided_array((11, 9, slices)), affine_lps, **written)
    return read_series(folder)


def write_small_map(source: Volume, path: Path) -> Path:
    """A map of what the source holds, from 0 to about 1."""
    values = source.with_array(source.array / np.float32(500))
    return write_parametric_map(values, source, path, RESULT, MapMeaning(PROBABILITY, NO_UNIT, "P"))


# --- real series

REAL_SERIES = {
    "ct_philips_gantry_tilt/S21610/S2010": (512, 512, 54),
    "ct_philips_head_mixed/S21570/S2010": (512, 512, 28),
    "ct_small_torchio": (88, 128, 17),
    "dicom2nifti_small/generic/compressed/001": (256, 256, 4),
    "dicom2nifti_small/generic/compressed_j2k/001": (256, 256, 4),
    "dicom2nifti_small/generic/compressed_jpeg/001": (256, 256, 4),
    "dicom2nifti_small/generic/compressed_jpegls/001": (256, 256, 4),
    "dicom2nifti_small/generic/compressed_rle/001": (256, 256, 4),
    "dicom2nifti_small/philips/anatomical/001": (240, 240, 4),
    "dicom2nifti_small/philips_enhanced/anatomical/001": (256, 256, 8),
    "dicom2nifti_small/philips_enhanced/anatomical/001_implicit": (256, 256, 8),
    "mr_ge_coronal_dcm4che": (256, 256, 16),
    "mr_ge_oblique_t1post/Study1/12-T1post-05670": (512, 512, 22),
    "mr_ge_oblique_t1post/Study1/13_HCropVolume": (35, 51, 32),
}
REAL_OBJECTS = {
    "dcmqi/segmentations/ct-3slice": (512, 512, 3),
    "dcmqi/segmentations/23x38x3/image": (23, 38, 3),
    "dcmqi/segmentations/23x38x3/multiframe": (23, 38, 3),
    "highdicom/ct_image.dcm": (128, 128, 1),
    "rt-utils/mock_data": (512, 512, 2),
}
FAST = {"ct_small_torchio", "dicom2nifti_small/philips_enhanced/anatomical/001", "dcmqi/segmentations/23x38x3/image"}
NO_FRAME_OF_REFERENCE = [name for name in REAL_SERIES if name.startswith("dicom2nifti_small")]
SOURCES = {name: ("dicom_series", shape) for name, shape in REAL_SERIES.items()} | {
    name: ("dicom_objects", shape) for name, shape in REAL_OBJECTS.items()
}
CORONAL = "mr_ge_coronal_dcm4che"
KINDS = ("seg", "rtstruct", "sr", "gsps", "map", "pdf", "capture")


def sources(*kinds: str) -> pytest.MarkDecorator:
    """All sources, the larger ones marked slow, with each of some kinds if any are named."""
    names = ("name", "kind") if len(kinds) > 1 else ("name",)
    params = []
    for name in SOURCES:
        for kind in kinds or ("",):
            marks = [] if name in FAST and kind in ("", "seg", "rtstruct", "sr", "report") else [pytest.mark.slow]
            params.append(pytest.param(*(name, kind)[: len(names)], marks=marks))
    return pytest.mark.parametrize(names, params)


@dataclass(frozen=True)
class RealCase:
    """A real series, lopsided labels on it, and a result of each kind, written when it is first asked for.

    Attributes:
        source: As read.
        truth: Labels of each slice, (rows, columns), made from the headers.
        folder: For the results.
    """

    source: Volume
    truth: dict[Key, NDArray[np.uint8]]
    folder: Path

    @cached_property
    def planes(self) -> dict[Key, Plane]:
        """The plane of each slice by its own header."""
        return planes_of(self.source.provenance.files)

    @property
    def labels(self) -> Volume:
        """The truth on the grid of the source, each slice by its name."""
        return self.source.with_array(np.stack([self.truth[key].T for key in keys_of(self.source)], axis=-1))

    def file(self, kind: str) -> Path:
        """The result of a kind."""
        path = self.folder / f"{kind}.dcm"
        if not path.exists():
            _WRITERS[kind](self, path)
        return path


def _write_map(case: RealCase, path: Path) -> None:
    values = case.source.with_array(case.labels.array / np.float32(3))
    write_parametric_map(values, case.source, path, RESULT, MapMeaning(PROBABILITY, NO_UNIT, "P(Front part)"))


def _write_capture(case: RealCase, path: Path) -> None:
    middle = case.source.shape[2] // 2
    write_captures(case.labels, case.source, case.folder, RESULT, slices=[middle])[0].rename(path)


_WRITERS: dict[str, Callable[[RealCase, Path], object]] = {
    "seg": lambda case, path: write_seg(case.labels, case.source, path, RESULT),
    "rtstruct": lambda case, path: write_rtstruct(case.labels, case.source, path, RESULT),
    "sr": lambda case, path: write_sr(case.labels, case.source, path, RESULT, seg=case.file("seg")),
    "gsps": lambda case, path: write_gsps(case.labels, case.source, path, RESULT),
    "map": _write_map,
    "pdf": lambda case, path: write_pdf(b"%PDF-1.4\n%%EOF\n", case.source, path, RESULT, title="A page"),
    "capture": _write_capture,
}


def lopsided_truth(planes: dict[Key, Plane]) -> dict[Key, NDArray[np.uint8]]:
    """Segment 1 an ellipsoid off the centre with a hole along the slices; segment 2 a wedge at a corner of the volume."""
    first = next(iter(planes.values()))
    normal = np.cross(first.column_step, first.row_step)
    upwards = sorted(planes, key=lambda key: float(planes[key].origin @ normal))
    truth = {}
    for k, key in enumerate(upwards):
        rows, columns = planes[key].shape
        z = k / len(upwards)
        y, x = np.indices((rows, columns)) / np.array([rows, columns])[:, None, None]
        labels = np.zeros((rows, columns), dtype=np.uint8)
        labels[((x - 0.4) / 0.2) ** 2 + ((y - 0.55) / 0.12) ** 2 + ((z - 0.4) / 0.5) ** 2 < 1] = 1
        labels[((x - 0.4) / 0.1) ** 2 + ((y - 0.55) / 0.04) ** 2 < 1] = 0
        labels[(x > 0.7) & (y < 0.3) & (x + y + 0.1 * z < 1.05)] = 2
        truth[key] = labels
    return truth


@pytest.fixture(scope="module")
def real_case(shared_data, tmp_path_factory):
    """Gives the case of a name; each is written once."""
    cases: dict[str, RealCase] = {}

    def find(name: str) -> RealCase:
        if name not in cases:
            room, shape = SOURCES[name]
            folder = tmp_path_factory.mktemp("real")
            source = read_series(_present(shared_data / room) / name)
            assert source.shape == shape
            if name in NO_FRAME_OF_REFERENCE:
                source = read_series(with_frame_of_reference(source, folder / "source"))
            truth = lopsided_truth(planes_of(source.provenance.files))
            cases[name] = RealCase(source, truth, folder)
        return cases[name]

    return find


def with_frame_of_reference(source: Volume, folder: Path) -> Path:
    """Copies of the files with a Frame of Reference UID, which an anonymiser took away."""
    folder.mkdir()
    for number, file in enumerate(sorted(set(source.provenance.files))):
        dataset = pydicom.dcmread(file)
        assert not dataset.get("FrameOfReferenceUID")
        dataset.FrameOfReferenceUID = "2.25.123456789"
        dataset.save_as(folder / f"{number}.dcm")
    return folder


@pytest.mark.parametrize("name", NO_FRAME_OF_REFERENCE)
def test_results_on_a_series_without_a_frame_of_reference_are_refused(series, tmp_path, name):
    """A result must name one where its source is placed (PS3.3 A.51.3, A.19.3); two sources without are not one space."""
    source = read_series(series / name)
    labels = source.with_array(np.zeros(source.shape, np.uint8))
    for writer in (write_seg, write_rtstruct):
        with pytest.raises(
            LabelError,
            match=r"no FrameOfReferenceUID; an object with positions in patient space must refer to it; repair",
        ):
            writer(labels, source, tmp_path / "result.dcm", RESULT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_readable_series_is_on_the_list(series):
    leaves = sorted({path.parent for path in series.rglob("*") if is_file_of_dicom(path)})
    readable = {str(leaf.relative_to(series)) for leaf in leaves if any(v.outcome == "readable" for v in examine(leaf))}
    assert {name for name in readable if not any(other.startswith(name + "/") for other in readable)} == set(
        REAL_SERIES
    )


def is_file_of_dicom(path: Path) -> bool:
    return path.is_file() and is_dicom(path)


@sources()
def test_a_seg_on_a_real_series_holds_each_label_on_the_slice_that_it_names(real_case, name):
    """By the frames' own headers, by highdicom, and read back by us."""
    case = real_case(name)
    path, keys, wanted = case.file("seg"), keys_of(case.source), case.labels.array
    np.testing.assert_array_equal(seg_by_highdicom_sources(path, keys), wanted)
    np.testing.assert_array_equal(read_seg(path, case.source).array, wanted)
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for number, (key, pixels) in enumerate(zip(named_sources(dataset), frames, strict=True), start=1):
        group = dataset.PerFrameFunctionalGroupsSequence[number - 1]
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(pixels == 1, case.truth[key] == segment)
        rows, columns = (np.array(ends) for ends in ((0, 0, dataset.Rows - 1), (0, dataset.Columns - 1, 0)))
        away = frame_plane(dataset, number).points(rows, columns) - case.planes[key].points(rows, columns)
        assert np.abs(away).max() < 1e-5
    assert frames.sum() == np.count_nonzero(wanted)


@sources()
def test_dcmqi_finds_each_label_of_a_real_series_at_its_millimetres(real_case, name, tmp_path):
    case = real_case(name)
    if "gantry_tilt" in name:
        pytest.skip("an image of ITK has right angles, and dcmqi straightens a tilted stack")
    (image,) = images_by_dcmqi("segimage2itkimage", case.file("seg"), tmp_path / "out", "--mergeSegments")
    truth = {key: np.nonzero(labels) for key, labels in case.truth.items()}
    positions = np.concatenate([case.planes[key].points(*where) for key, where in truth.items()])
    values = np.concatenate([case.truth[key][where] for key, where in truth.items()])
    array, affine_lps = image
    wanted = on_grid(affine_lps, array.shape, (positions, values), tolerance_mm=REAL_TOLERANCE_MM)
    np.testing.assert_array_equal(array, wanted)


@sources()
def test_contours_on_a_real_series_enclose_the_labels_of_the_slice_that_they_name(real_case, name):
    """By matplotlib, and read back by us."""
    case = real_case(name)
    path, found = case.file("rtstruct"), {key: np.zeros_like(labels) for key, labels in case.truth.items()}
    for (region, key), mask in rtstruct_by_matplotlib(path, case.planes).items():
        found[key] += (region * mask).astype(np.uint8)
    for key, labels in case.truth.items():
        np.testing.assert_array_equal(found[key], labels)
    np.testing.assert_array_equal(read_rtstruct(path, case.source).array, case.labels.array)


@sources("report")
def test_a_report_on_a_real_series_gives_the_volume_that_the_headers_give(real_case, name):
    """Pixels, times their area, times the even gap along the normal; dsrdump reads it without a warning."""
    case = real_case(name)
    planes = list(case.planes.values())
    area = np.cross(planes[0].column_step, planes[0].row_step)
    depths = sorted(plane.origin @ area / np.linalg.norm(area) for plane in planes)
    groups = hd.sr.srread(case.file("sr")).content.get_volumetric_roi_measurement_groups()
    for segment, group in zip(SEGMENTS, groups, strict=True):
        values = {item.name.meaning: float(item.value) for item in group.get_measurements() if not item.derivation}
        pixels = sum(np.count_nonzero(labels == segment.number) for labels in case.truth.values())
        assert pixels > 0
        if len(planes) > 1:
            gap_mm = (depths[-1] - depths[0]) / (len(planes) - 1)
            assert values["Volume"] == pytest.approx(pixels * np.linalg.norm(area) * gap_mm / 1000, rel=1e-4)
    done = run_program("dsrdump", str(case.file("sr")))
    assert (done.returncode, done.stderr) == (0, "")


@sources(*KINDS)
def test_dciodvfy_finds_no_error_in_a_result_on_a_real_series(real_case, name, kind):
    """But for what is wrong in the source and must be repeated: a patient's age of "0Y", UIDs under a root that is none."""
    case = real_case(name)
    errors = dciodvfy_errors(case.file(kind))
    wrong = [line for line in dciodvfy_errors(case.source.provenance.files[0]) if "PatientAge" in line]
    assert len(wrong) == (1 if name in NO_FRAME_OF_REFERENCE else 0)
    if name == CORONAL:
        wrong = [line for line in errors if "Illegal root for UID uses non-existent ISO arc = <1.113654." in line]
    assert [line for line in errors if line not in wrong] == []

from __future__ import annotations

import json
import subprocess
import tracemalloc
from dataclasses import asdict, replace

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from result_phantoms import RESULT, dciodvfy_errors, oblique_affine, oblique_case, tool
from scipy.ndimage import find_objects
from scipy.spatial.distance import pdist

from dicom_io import read_sr
from dicom_io.boxes import EMPTY_BOX
from dicom_io.coding import Whole
from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.objects.result_content import ReportFacts
from dicom_io.read import read_series
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr
from dicom_io.sr.measure import _CORNERS, SegmentMeasures, _cell_area, _cell_loops, measure_segments


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return oblique_case(tmp_path_factory.mktemp("case") / "phantom")


@pytest.fixture(scope="module")
def written(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    seg = write_seg(case.labels, case.volume, folder / "seg.dcm", RESULT)
    return write_sr(case.labels, case.volume, folder / "sr.dcm", RESULT, seg=seg), seg


def groups(sr):
    report = hd.sr.srread(sr)
    return report.content.get_volumetric_roi_measurement_groups()


def values(group) -> dict[tuple[str, str], tuple[float, str]]:
    """(measurement, derivation) -> (value, unit)."""
    found = {}
    for item in group.get_measurements():
        derivation = item.derivation.meaning if item.derivation else ""
        found[item.name.meaning, derivation] = (float(item.value), item.unit.value)
    return found


def by_dcmqi(sr, folder) -> dict:
    command = [tool("tid1500reader"), "--inputDICOM", str(sr), "--outputMetadata", str(folder / "sr.json")]
    subprocess.run(command, capture_output=True, check=False)
    return json.loads((folder / "sr.json").read_text())


def test_sr_has_no_dciodvfy_error(written):
    assert dciodvfy_errors(written[0]) == []


def test_dcmqi_parses_the_report_and_finds_the_volumes_that_voxel_counts_give(case, written, tmp_path):
    report = by_dcmqi(written[0], tmp_path)
    for number, group in enumerate(report["Measurements"], start=1):
        items = {item["quantity"]["CodeMeaning"]: item for item in group["measurementItems"]}
        wanted_ml = np.count_nonzero(case.labels.array == number) * 0.9 * 1.3 * 2.5 / 1000
        assert float(items["Volume"]["value"]) == pytest.approx(wanted_ml, rel=1e-6)
        assert items["Volume"]["units"]["CodeValue"] == "cm3"
        assert group["ReferencedSegment"] == number
        assert group["segmentationSOPInstanceUID"] == pydicom.dcmread(written[1]).SOPInstanceUID
        assert group["SourceSeriesForImageSegmentation"] == case.volume.provenance.series_instance_uid
    assert report["CompletionFlag"] == "COMPLETE"
    assert report["VerificationFlag"] == "UNVERIFIED"


def test_seg_and_sr_share_tracking_ids_and_study(written):
    sr, seg = (pydicom.dcmread(path) for path in written)
    assert sr.StudyInstanceUID == seg.StudyInstanceUID
    for group, item in zip(groups(written[0]), seg.SegmentSequence, strict=True):
        assert group.tracking_identifier == item.TrackingID
        assert group.tracking_uid == item.TrackingUID


def test_the_evidence_lists_every_source_and_the_seg(case, written):
    sr, seg = (pydicom.dcmread(path) for path in written)
    listed = {
        item.ReferencedSOPInstanceUID
        for study in sr.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert listed == {*case.volume.provenance.sop_instance_uids, seg.SOPInstanceUID}
    assert "PertinentOtherEvidenceSequence" not in sr


def test_finding_site_algorithm_and_procedure_are_coded(written):
    front, back = groups(written[0])
    assert front.finding_type.value == "5366008"
    assert front.finding_sites[0].topographical_modifier.value == "255549009"
    assert back.finding_type.value == "59820001"
    assert back.finding_sites[0].value.value == "5665001"
    text = str(pydicom.dcmread(written[0]))
    for wanted in ("a_network", "1.2.3", "tta=off", RESULT.bundle_sha256, "25056-3"):
        assert wanted in text
    assert "RESEARCH" in pydicom.dcmread(written[0]).SeriesDescription


def test_intensities_have_the_units_of_the_modality(case, written):
    masked = case.volume.array[case.labels.array == 1].astype(float)
    found = values(groups(written[0])[0])
    assert found["MR signal intensity", "Mean"] == (pytest.approx(masked.mean(), rel=1e-6), "1")
    assert found["MR signal intensity", "Standard Deviation"] == (pytest.approx(masked.std(), rel=1e-6), "1")


def test_an_empty_segment_has_volume_zero_and_no_other_figure(case, tmp_path):
    labels = case.labels.with_array(np.where(case.labels.array == 2, 2, 0).astype(np.uint8))
    seg = write_seg(labels, case.volume, tmp_path / "seg.dcm", RESULT)
    sr = write_sr(labels, case.volume, tmp_path / "sr.dcm", RESULT, seg=seg)
    assert dciodvfy_errors(sr) == []
    assert values(groups(sr)[0]) == {("Volume", ""): (0.0, "cm3")}


def test_the_same_input_gives_the_same_bytes(case, written, tmp_path):
    again = write_sr(case.labels, case.volume, tmp_path / "again.dcm", RESULT, seg=written[1])
    assert again.read_bytes() == written[0].read_bytes()


def test_a_report_on_another_seg_is_refused(case, written, tmp_path):
    other = replace(RESULT, settings=(("tta", "on"),))
    with pytest.raises(LabelError, match="must refer to its own SEG"):
        write_sr(case.labels, case.volume, tmp_path / "x.dcm", other, seg=written[1])
    assert list(tmp_path.iterdir()) == []


def test_labels_that_lie_elsewhere_than_the_source_are_not_measured(case, written, tmp_path):
    """The same values make the same SEG, so that only their place tells them apart."""
    moved, stretched = case.labels.affine_lps.copy(), case.labels.affine_lps.copy()
    moved[2, 3] += 1.0
    stretched[:3, :3] *= 1.1
    for affine_lps in (moved, stretched):
        labels = replace(case.labels, affine_lps=affine_lps)
        with pytest.raises(LabelError, match="mm away from the source's grid"):
            write_sr(labels, case.volume, tmp_path / "x.dcm", RESULT, seg=written[1])
    assert list(tmp_path.iterdir()) == []


def test_a_multi_frame_source_is_reported_on(case, tmp_path):
    slices = [pydicom.dcmread(file) for file in case.volume.provenance.files]
    enhanced = hd.legacy.LegacyConvertedEnhancedMRImage(
        slices, hd.UID(), series_number=2, sop_instance_uid=hd.UID(), instance_number=1
    )
    (tmp_path / "series").mkdir()
    enhanced.save_as(tmp_path / "series" / "e.dcm")
    source = read_series(tmp_path / "series")
    labels = source.with_array(case.labels.array)
    seg = write_seg(labels, source, tmp_path / "seg.dcm", RESULT)
    sr = write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=seg)
    assert dciodvfy_errors(sr) == []
    assert len(groups(sr)) == 2


# --- the figures themselves ---


def measured(mask: np.ndarray, image: np.ndarray, affine: np.ndarray) -> SegmentMeasures:
    """The figures of one mask, shape (I, J, K)."""
    box = tuple(slice(0, length) for length in mask.shape)
    return measure_segments(mask.astype(np.uint8), [box], image, affine)[0]


def half_way_points(mask: np.ndarray) -> list[np.ndarray]:
    """Array indices of the points half-way between a voxel inside and its neighbour outside, along each axis."""
    padded = np.pad(mask, 1)
    return [np.argwhere(np.diff(padded, axis=axis)) + 0.5 * np.eye(3)[axis] for axis in range(3)]


def measured_whole(mask: np.ndarray, image: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """The figures, but for the axes, by their definitions: from every cell, and from every pair of points."""
    padded, steps = np.pad(mask, 1), affine[:3, :3]
    kinds = sum(
        padded[tuple(slice(c, n - 1 + c) for c, n in zip(corner, padded.shape, strict=True))].astype(int) << bit
        for bit, corner in enumerate(_CORNERS.astype(int).tolist())
    )
    return {
        "volume_ml": mask.sum() * abs(np.linalg.det(steps)) / 1000,
        "surface_mm2": sum(_cell_area(kind, steps) for kind in kinds.ravel().tolist()),
        "max_diameter_mm": pdist(np.concatenate(half_way_points(mask)) @ steps.T).max(),
        "mean": image[mask].mean(),
        "std": image[mask].std(),
    }


def longest_axes(mask: np.ndarray, steps: np.ndarray) -> list[tuple[float, float]]:
    """Long and short axis of the slice with the longest outline; of each such slice, if several are equally long."""
    points = np.concatenate(half_way_points(mask)[:2])
    axes = []
    for k in np.unique(points[:, 2]):
        outline = points[points[:, 2] == k] @ steps.T
        apart = outline[:, None] - outline
        lengths = np.linalg.norm(apart, axis=2)
        along = apart[np.unravel_index(lengths.argmax(), lengths.shape)]
        across = np.cross(np.cross(steps[:, 0], steps[:, 1]), along)
        axes.append((lengths.max(), np.ptp(outline @ across) / np.linalg.norm(across)))
    return [pair for pair in axes if pair[0] > max(axes)[0] - 1e-9]


@pytest.mark.parametrize("order", ["C", "F"])
def test_segments_that_touch_each_other_and_the_edges_are_measured_as_each_alone(order, monkeypatch):
    monkeypatch.setattr("dicom_io.sr.measure._BLOCK", 3)
    generator = np.random.default_rng(8)
    places = np.indices((11, 9, 7)).reshape(3, -1).T
    centres = generator.uniform(-1, 9, (6, 3))
    nearest = np.linalg.norm(places[:, None] - centres, axis=2).argmin(axis=1)
    labels = np.array([0, 1, 2, 3, 256, 258], np.uint16)[nearest].reshape(11, 9, 7)
    labels[generator.random(labels.shape) < 0.1] = 258  # in pieces
    labels[10, 8, 6] = 259  # a single voxel
    labels = np.asarray(labels, order=order)
    # A large mean beside a small deviation; axes that are not perpendicular, so that no two diagonals are equally long.
    image = (1e5 + generator.normal(0, 3, labels.shape)).astype(np.float32)
    affine = np.array([[0.7, 0.11, 0.05, 3], [-0.1, 0.83, 0.02, 4], [0.03, -0.04, 1.3, 5], [0, 0, 0, 1]])
    boxes = [found or EMPTY_BOX for found in find_objects(labels, max_label=300)]
    found = measure_segments(labels, boxes, image, affine)
    assert len(found) == 300
    for number, measures in enumerate(found, start=1):
        if number in labels:
            figures = asdict(measures)
            axes = figures.pop("long_axis_mm"), figures.pop("short_axis_mm")
            assert figures == pytest.approx(measured_whole(labels == number, image.astype(float), affine), rel=1e-9)
            assert any(axes == pytest.approx(pair) for pair in longest_axes(labels == number, affine[:3, :3]))
        else:
            assert measures == SegmentMeasures(0.0, 0.0, None, None, None, None, None)


def test_a_hundred_segments_are_measured_in_less_memory_than_their_labels():
    labels = np.zeros((256, 256, 40), np.uint8, order="F")
    blocks = [tuple(slice(n + 2, n + 11) for n in np.multiply((24, 24, 20), at)) for at in np.ndindex(10, 10, 1)]
    for number, block in enumerate(blocks, start=1):
        labels[block] = number
    labels[:, :, 20:] = labels[::-1, :, :20]  # the box of each is nearly as long as the grid
    boxes, image = find_objects(labels.T), np.zeros(labels.shape, np.float32, order="F")
    tracemalloc.start()
    try:
        found = measure_segments(labels, [box[::-1] for box in boxes], image, np.eye(4))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * labels.size
    finally:
        tracemalloc.stop()
    assert [measures.volume_ml for measures in found] == pytest.approx([2 * 9**3 / 1000] * 100)


def ibsi_phantom() -> tuple[np.ndarray, np.ndarray]:
    """Intensities and mask of the digital phantom of the Image Biomarker Standardisation Initiative, (z, y,
    x).
    """
    out = -1
    intensities = np.array(
        [
            [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
            [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [out, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
            [[1, 4, 4, out, out], [1, 1, 1, 1, 1], [1, 1, out, 1, 1], [1, 1, 6, 1, 1]],
            [[1, 4, 4, out, out], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
        ]
    )
    return intensities, intensities != out


def test_measures_agree_with_the_published_values_of_the_ibsi_phantom():
    """Reference values: IBSI reference manual, digital phantom (2 mm voxels): F. C0JK, L0JK, YEKZ, Q4LE,
    ECT3.
    """
    intensities, mask = ibsi_phantom()
    found = measured(mask, intensities, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert found.volume_ml == pytest.approx(0.592)
    assert found.surface_mm2 == pytest.approx(388, abs=0.5)
    assert found.max_diameter_mm == pytest.approx(13.1, abs=0.05)
    assert found.mean == pytest.approx(2.15, abs=0.005)
    assert found.std**2 == pytest.approx(3.05, abs=0.005)


def test_one_voxel_has_the_surface_and_diameter_of_an_octahedron():
    mask = np.zeros((3, 4, 5), dtype=bool)
    mask[0, 3, 2] = True
    found = measured(mask, np.full(mask.shape, 7.0), np.diag([1.0, 1.0, 1.0, 1.0]))
    assert found.surface_mm2 == pytest.approx(np.sqrt(3))  # edge sqrt(1/2), area 2 sqrt(3) edge^2
    assert found.max_diameter_mm == pytest.approx(1.0)
    assert (found.mean, found.std) == (7.0, 0.0)


def test_measures_do_not_depend_on_how_the_grid_is_turned():
    rng = np.random.default_rng(4)
    mask = rng.random((6, 7, 8)) > 0.6
    straight = measured(mask, mask * 1.0, np.diag([0.9, 1.3, 2.5, 1.0]))
    turned = measured(mask, mask * 1.0, oblique_affine())
    assert turned.surface_mm2 == pytest.approx(straight.surface_mm2)
    assert turned.max_diameter_mm == pytest.approx(straight.max_diameter_mm)
    assert turned.volume_ml == pytest.approx(straight.volume_ml)


def test_the_surface_is_watertight_for_every_kind_of_cell():
    """By the divergence theorem the area vectors of a closed surface add up to nothing."""
    mask = np.pad(np.random.default_rng(5).random((7, 7, 7)) > 0.5, 1)
    total = np.zeros(3)
    for cell in np.ndindex(*(n - 1 for n in mask.shape)):
        kind = sum(int(mask[tuple(np.add(cell, corner.astype(int)))]) << bit for bit, corner in enumerate(_CORNERS))
        for loop in _cell_loops(kind):
            points = np.array(loop)
            total += np.cross(points[1:-1] - points[0], points[2:] - points[0]).sum(axis=0) / 2
    np.testing.assert_allclose(total, 0, atol=1e-9)


def test_a_balls_diameter_is_right_to_a_voxel_and_its_binary_mesh_is_a_few_percent_too_large():
    grid = np.mgrid[-20:21, -20:21, -20:21]
    mask = (grid**2).sum(axis=0) <= 15.3**2
    found = measured(mask, mask * 1.0, np.eye(4))
    assert abs(found.max_diameter_mm - 30.6) < 1.0
    assert 1.0 < found.surface_mm2 / (4 * np.pi * 15.3**2) < 1.12


# --- with the larger data beside the repository ---


def test_sr_on_a_real_scanner_series_is_valid(shared_data, tmp_path):
    source = read_series(shared_data / "dicom_series/mr_ge_oblique_t1post/Study1/12-T1post-05670")
    labels = np.zeros(source.shape, dtype=np.uint8)
    labels[200:220, 180:230, 4:9] = 1
    labels[260:265, 180:230, 6] = 2
    volume = source.with_array(labels)
    seg = write_seg(volume, source, tmp_path / "seg.dcm", RESULT)
    sr = write_sr(volume, source, tmp_path / "sr.dcm", RESULT, seg=seg)
    assert dciodvfy_errors(sr) == []
    wanted_ml = 20 * 50 * 5 * 0.4297**2 * 6.5 / 1000
    assert values(groups(sr)[0])["Volume", ""][0] == pytest.approx(wanted_ml, rel=2e-4)


# --- versions, intervals, statements


def test_a_changed_result_names_the_report_that_it_takes_the_place_of(case, tmp_path):
    folder = {name: tmp_path / name for name in ("first", "second", "again", "third")}

    def report(name, labels, earlier):
        folder[name].mkdir()
        seg = write_seg(labels, case.volume, folder[name] / "seg.dcm", RESULT)
        return write_sr(
            labels, case.volume, folder[name] / "sr.dcm", RESULT, seg=seg, facts=ReportFacts(earlier=earlier)
        )

    changed, other = case.labels.array.copy(), case.labels.array.copy()
    changed[0, 0, 0], other[0, 0, 1] = 1, 2
    first = report("first", case.labels, None)
    second = report("second", case.volume.with_array(changed), first)
    assert dciodvfy_errors(second) == []
    named = pydicom.dcmread(second).PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == pydicom.dcmread(first).SOPInstanceUID
    again = report("again", case.volume.with_array(changed), second)
    assert again.read_bytes() == second.read_bytes(), (
        "the same once more is the same file, whatever it took the place of"
    )
    third = pydicom.dcmread(report("third", case.volume.with_array(other), second))
    named = third.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == pydicom.dcmread(second).SOPInstanceUID


def test_the_same_result_once_more_names_no_predecessor(case, written, tmp_path):
    again = write_sr(
        case.labels, case.volume, tmp_path / "sr.dcm", RESULT, seg=written[1], facts=ReportFacts(earlier=written[0])
    )
    assert again.read_bytes() == written[0].read_bytes()


def test_a_report_of_another_study_is_no_predecessor(case, written, tmp_path):
    other = pydicom.dcmread(written[0])
    other.StudyInstanceUID = "1.2.3"
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(LabelError, match="of another patient or study"):
        write_sr(
            case.labels,
            case.volume,
            tmp_path / "sr.dcm",
            RESULT,
            seg=written[1],
            facts=ReportFacts(earlier=tmp_path / "other.dcm"),
        )


def test_the_interval_of_a_volume_stands_beside_it(case, written, tmp_path):
    volume_ml = np.count_nonzero(case.labels.array == 1) * 0.9 * 1.3 * 2.5 / 1000
    interval = {1: (volume_ml - 0.02, volume_ml + 0.05)}
    sr = write_sr(
        case.labels, case.volume, tmp_path / "sr.dcm", RESULT, seg=written[1], facts=ReportFacts(volumes_ml=interval)
    )
    assert dciodvfy_errors(sr) == []
    volume = read_sr(sr).groups[0].measurements[0]
    assert (volume.name, volume.value) == (codes.SCT.Volume, pytest.approx(volume_ml, rel=1e-6))
    above, below = volume.properties
    assert (above.name.meaning[0], above.value) == ("+", pytest.approx(0.05, abs=1e-6))
    assert (below.name.meaning[0], below.value) == ("-", pytest.approx(0.02, abs=1e-6))
    assert above.unit == below.unit == volume.unit == codes.UCUM.CubicCentimeter
    with pytest.raises(LabelError, match="it must lie inside"):
        write_sr(
            case.labels,
            case.volume,
            tmp_path / "sr.dcm",
            RESULT,
            seg=written[1],
            facts=ReportFacts(volumes_ml={1: (0.0, 1e-6)}),
        )


def test_a_whole_has_a_group_with_the_volume_of_its_parts_and_no_region_of_its_own(case, written, tmp_path):
    whole = Whole("Two parts", (1, 2), RESULT.segments[0].category, RESULT.segments[0].type)
    volume_ml = np.count_nonzero(np.isin(case.labels.array, (1, 2))) * 0.9 * 1.3 * 2.5 / 1000
    ends = {whole: (volume_ml - 0.03, volume_ml + 0.07)}
    sr = write_sr(
        case.labels, case.volume, tmp_path / "sr.dcm", RESULT, seg=written[1], facts=ReportFacts(wholes_ml=ends)
    )
    assert dciodvfy_errors(sr) == []
    report = by_dcmqi(sr, tmp_path)
    assert [group.get("ReferencedSegment") for group in report["Measurements"]] == [1, 2, None]
    content = hd.sr.srread(sr).content
    assert len(content.get_volumetric_roi_measurement_groups()) == 2
    (group,) = content.get_image_measurement_groups()
    assert group.finding_type == whole.type
    (measurement,) = group.get_measurements()
    assert float(measurement.value) == pytest.approx(volume_ml, rel=1e-6)
    spread = read_sr(sr).groups[-1].measurements[0].properties
    assert [one.value for one in spread] == [pytest.approx(0.07, abs=1e-5), pytest.approx(0.03, abs=1e-5)]
    assert hd.sr.srread(sr).SOPInstanceUID != hd.sr.srread(written[0]).SOPInstanceUID
    again = write_sr(
        case.labels,
        case.volume,
        tmp_path / "again.dcm",
        RESULT,
        seg=written[1],
        facts=ReportFacts(wholes_ml={whole: None}),
    )
    assert dciodvfy_errors(again) == []


def test_quality_and_calibration_stand_in_the_report_as_text(case, written, tmp_path):
    stated = replace(RESULT, calibration="ECE 0.003 in the 2 mm band, 34 cases")
    seg = write_seg(case.labels, case.volume, tmp_path / "seg.dcm", stated)
    sr = write_sr(case.labels, case.volume, tmp_path / "sr.dcm", stated, seg=seg)
    assert dciodvfy_errors(sr) == []
    for group in read_sr(sr).groups:
        assert "quality: accepted" in group.algorithm_parameters
        assert "calibration: ECE 0.003 in the 2 mm band, 34 cases" in group.algorithm_parameters


def test_a_report_that_refers_to_a_stranger_does_not_leave(case, written, tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_io.sr.proof.referenced_uids", lambda written: iter(["1.2.3"]))
    with pytest.raises(GeometryProofError, match="the SR was deleted"):
        write_sr(case.labels, case.volume, tmp_path / "sr.dcm", RESULT, seg=written[1])
    assert list(tmp_path.iterdir()) == []


def test_long_and_short_axis_of_an_ellipse_are_its_axes():
    i, j = np.indices((121, 121)) - 60.0
    angle = np.radians(30)
    along, across = (i * np.cos(angle) + j * np.sin(angle)) * 0.5, (j * np.cos(angle) - i * np.sin(angle)) * 0.5
    mask = np.zeros((121, 121, 3), bool)
    mask[:, :, 1] = (along / 25.0) ** 2 + (across / 10.0) ** 2 <= 1
    mask[58:63, 58:63, :] = True
    found = measured(mask, np.zeros(mask.shape), np.diag([0.5, 0.5, 3.0, 1.0]))
    assert found.long_axis_mm == pytest.approx(50.0, abs=0.5)
    assert found.short_axis_mm == pytest.approx(20.0, abs=0.5)

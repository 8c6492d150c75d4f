"""Measurement reports read again: ours, highdicom's and dcmqi's, and broken ones."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from result_phantoms import RESULT, oblique_case, tool

from dicom_io import read_sr
from dicom_io.coding import Whole
from dicom_io.dicomize import DicomizedCase
from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.objects.result_content import ReportFacts
from dicom_io.seg import write_seg
from dicom_io.sr import MeasurementGroup, write_sr
from dicom_io.sr.read import FindingSite, Reference, Region

VOXEL_ML = 0.9 * 1.3 * 2.5 / 1000
BOTH = Whole("Two parts", (1, 2), RESULT.segments[0].category, RESULT.segments[0].type)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> DicomizedCase:
    return oblique_case(tmp_path_factory.mktemp("case") / "phantom")


@pytest.fixture(scope="module")
def ours(case: DicomizedCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    seg = write_seg(case.labels, case.volume, folder / "seg.dcm", RESULT)
    return write_sr(
        case.labels, case.volume, folder / "sr.dcm", RESULT, seg=seg, facts=ReportFacts(wholes_ml={BOTH: None})
    )


def values(group: MeasurementGroup) -> dict[tuple[str, str], tuple[float | None, str]]:
    """(measurement, derivation) -> (value, unit)."""
    return {
        (one.name.meaning, one.derivation.meaning if one.derivation else ""): (
            one.value,
            one.unit.value if one.unit else "",
        )
        for one in group.measurements
    }


# --- ours


def test_a_report_of_ours_says_what_the_writer_was_given(case: DicomizedCase, ours: Path) -> None:
    seg, report = pydicom.dcmread(ours.with_name("seg.dcm")), read_sr(ours)
    front, back, both = report.groups
    for number, (group, item) in enumerate(zip((front, back), seg.SegmentSequence, strict=True), start=1):
        found = values(group)
        masked = case.volume.array[case.labels.array == number].astype(float)
        assert found["Volume", ""] == (pytest.approx(masked.size * VOXEL_ML, rel=1e-6), "cm3")
        assert found["MR signal intensity", "Mean"] == (pytest.approx(masked.mean(), rel=1e-6), "1")
        assert (group.tracking_id, group.tracking_uid) == (item.TrackingID, item.TrackingUID)
        assert group.segments == (Reference(seg.SOPClassUID, seg.SOPInstanceUID, (), (number,)),)
        assert group.source_series == (case.volume.provenance.series_instance_uid,)
        assert (group.category, group.finding) == (
            RESULT.segments[number - 1].category,
            RESULT.segments[number - 1].type,
        )
        assert (group.algorithm_name, group.algorithm_version) == ("a_network", "1.2.3")
        assert f"bundle sha256 {RESULT.bundle_sha256}" in group.algorithm_parameters
    assert front.sites == (FindingSite(codes.SCT.Hippocampus, modifier=codes.SCT.Anterior),)
    assert back.sites == (FindingSite(codes.SCT.Retina),)
    assert (both.tracking_id, both.segments) == ("1+2 Two parts", ())
    assert values(both)["Volume", ""][0] == pytest.approx(np.count_nonzero(case.labels.array) * VOXEL_ML, rel=1e-6)


def test_the_document_is_told_without_its_patient(case: DicomizedCase, ours: Path) -> None:
    report, dataset = read_sr(ours), pydicom.dcmread(ours)
    assert report.sop_instance_uid == dataset.SOPInstanceUID
    assert (report.series_instance_uid, report.study_instance_uid) == (
        dataset.SeriesInstanceUID, case.volume.provenance.study_instance_uid
    )  # fmt: skip
    assert (report.completion, report.preliminary, report.verification) == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    assert (report.content_date, report.content_time) == (dataset.ContentDate, dataset.ContentTime)
    assert (report.title, report.predecessors) == (codes.DCM.ImagingMeasurementReport, ())
    assert report.procedures == (codes.LN.MRIUnspecifiedBodyRegion,)
    (observer,) = report.observers
    assert (observer.kind, observer.name, observer.serial_number) == ("device", "a_network", RESULT.bundle_sha256)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Canary^Hidden", "CANARY-1", "17770203"
    assert read_sr(dataset) == report


def test_a_data_set_is_read_as_its_file(ours: Path) -> None:
    assert read_sr(pydicom.dcmread(ours)) == read_sr(ours)


# --- highdicom's


@pytest.fixture(scope="module")
def highdicoms(case: DicomizedCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two observers, a polyline in pixels, a circle in mm, a side, qualifiers, evaluations; the second replaces the first."""
    folder = tmp_path_factory.mktemp("highdicom")
    highdicom_report(case).save_as(folder / "first.dcm")
    highdicom_report(case, pydicom.dcmread(folder / "first.dcm")).save_as(folder / "sr.dcm")
    return folder / "sr.dcm"


def highdicom_report(case: DicomizedCase, earlier: Dataset | None = None) -> hd.sr.Comprehensive3DSR:
    images = [pydicom.dcmread(file) for file in case.volume.provenance.files]
    person = hd.sr.PersonObserverIdentifyingAttributes(name="Lang^Eva")
    device = hd.sr.DeviceObserverIdentifyingAttributes(uid="1.2.3.4", name="Caliper", model_name="C1")
    flat = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid="1.2.3.5", identifier="Nodule"),
        referenced_region=hd.sr.ImageRegion(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=np.array([[1.5, 2.0], [7.0, 3.0], [4.0, 6.5], [1.5, 2.0]]),
            source_image=hd.sr.SourceImageForRegion.from_source_image(images[2]),
        ),
        finding_type=codes.SCT.Nodule,
        finding_sites=[hd.sr.FindingSite(codes.SCT.Kidney, laterality=codes.SCT.Left)],
        method=Code("2", "99TEST", "on the screen"),
        measurements=[
            hd.sr.Measurement(
                name=codes.SCT.Diameter,
                value=12.25,
                unit=codes.UCUM.Millimeter,
                method=Code("1", "99TEST", "by hand"),
                properties=hd.sr.MeasurementProperties(normality=codes.SCT.Normal),
            )
        ],
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(codes.DCM.LevelOfSignificance, codes.SCT.NotSignificant)],
    )
    solid = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid="1.2.3.6", identifier="Plane"),
        referenced_region=hd.sr.ImageRegion3D(
            graphic_type=hd.sr.GraphicTypeValues3D.POLYGON,
            graphic_data=np.array([[1.0, 2.0, 3.0], [4.0, 2.0, 3.0], [4.0, 7.0, 3.0], [1.0, 2.0, 3.0]]),
            frame_of_reference_uid=images[0].FrameOfReferenceUID,
        ),
        measurements=[
            hd.sr.Measurement(codes.SCT.Area, 7.5, codes.UCUM.SquareMillimeter, derivation=codes.SCT.Maximum)
        ],
    )
    return hd.sr.Comprehensive3DSR(
        evidence=images,
        content=hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(
                observer_person_context=hd.sr.ObserverContext(codes.DCM.Person, person),
                observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device),
            ),
            procedure_reported=codes.LN.MRIUnspecifiedBodyRegion,
            imaging_measurements=[flat, solid],
        ),
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="M",
        previous_versions=[earlier] if earlier else None,
    )


def test_a_report_by_highdicom_with_other_content_than_ours_is_read(case: DicomizedCase, highdicoms: Path) -> None:
    report = read_sr(highdicoms)
    assert report.predecessors == (pydicom.dcmread(highdicoms.with_name("first.dcm")).SOPInstanceUID,)
    assert (report.completion, report.language) == ("PARTIAL", Code("en-US", "RFC5646", ""))
    assert [(one.kind, one.name, one.uid, one.model) for one in report.observers] == [
        ("person", "Lang^Eva", "", ""),
        ("device", "Caliper", "1.2.3.4", "C1"),
    ]
    flat, solid = report.groups
    image = pydicom.dcmread(case.volume.provenance.files[2])
    drawn = Reference(image.SOPClassUID, image.SOPInstanceUID)
    assert flat.regions == (Region("POLYLINE", ((1.5, 2.0), (7.0, 3.0), (4.0, 6.5), (1.5, 2.0)), drawn),)
    assert flat.sites == (FindingSite(codes.SCT.Kidney, laterality=codes.SCT.Left),)
    assert (flat.finding, flat.method) == (codes.SCT.Nodule, Code("2", "99TEST", ""))
    assert flat.evaluations == ((codes.DCM.LevelOfSignificance, codes.SCT.NotSignificant),)
    (diameter,) = flat.measurements
    assert (diameter.name, diameter.value, diameter.unit) == (codes.SCT.Diameter, 12.25, codes.UCUM.Millimeter)
    assert (diameter.method, diameter.derivation) == (Code("1", "99TEST", ""), None)
    assert diameter.qualifiers == ((Code("121402", "DCM", ""), codes.SCT.Normal),)
    points = ((1.0, 2.0, 3.0), (4.0, 2.0, 3.0), (4.0, 7.0, 3.0), (1.0, 2.0, 3.0))
    assert solid.regions == (Region("POLYGON", points, None, image.FrameOfReferenceUID),)
    assert solid.measurements[0].derivation == codes.SCT.Maximum
    assert (solid.finding, solid.sites, solid.segments, solid.source_images) == (None, (), (), ())


# --- dcmqi's


def by_dcmqi(case: DicomizedCase, seg: Path, folder: Path, **items: Any) -> Path:
    """A report on segment 2 by tid1500writer, with the given things in its group."""
    found = pydicom.dcmread(seg)
    group = {
        "TrackingIdentifier": "Back", "ReferencedSegment": 2, "segmentationSOPInstanceUID": found.SOPInstanceUID,
        "SourceSeriesForImageSegmentation": case.volume.provenance.series_instance_uid,
        "Finding": coded("86049000", "SCT", "Neoplasm, Primary"), "FindingSite": coded("10200004", "SCT", "Liver"), **items,
    }  # fmt: skip
    images = [Path(file) for file in case.volume.provenance.files]
    document = {
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/sr-tid1500-schema.json#",
        "SeriesDescription": "M", "SeriesNumber": "1", "InstanceNumber": "1", "compositeContext": [seg.name],
        "imageLibrary": [file.name for file in images], "VerificationFlag": "UNVERIFIED", "CompletionFlag": "COMPLETE",
        "observerContext": {"ObserverType": "DEVICE", "DeviceObserverName": "Generator", "DeviceObserverUID": "1.2.3.4"},
        "activitySession": "1", "timePoint": "1", "Measurements": [group],
    }  # fmt: skip
    (folder / "sr.json").write_text(json.dumps(document))
    command = [tool("tid1500writer"), "--inputMetadata", folder / "sr.json", "--outputDICOM", folder / "sr.dcm"]
    command += ["--inputImageLibraryDirectory", images[0].parent, "--inputCompositeContextDirectory", seg.parent]
    subprocess.run(command, capture_output=True, check=True)
    return folder / "sr.dcm"


def coded(value: str, scheme: str, meaning: str) -> dict[str, str]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}


def test_a_report_by_dcmqi_is_read(case: DicomizedCase, ours: Path, tmp_path: Path) -> None:
    volume, mean = coded("118565006", "SCT", "Volume"), coded("373098007", "SCT", "Mean")
    modifier = {"modifier": coded("A1", "99TEST", "Filter"), "modifierValue": coded("A2", "99TEST", "None")}
    items = [
        {"value": "1.25", "quantity": volume, "units": coded("cm3", "UCUM", "cm3"), "derivationModifier": mean,
         "measurementModifiers": [modifier]},
    ]  # fmt: skip
    said = [{"conceptCode": coded("123", "99TEST", "Size"), "conceptValue": coded("124", "99TEST", "Large")}]
    seg = ours.with_name("seg.dcm")
    report = read_sr(by_dcmqi(case, seg, tmp_path, measurementItems=items, qualitativeEvaluations=said))
    (group,) = report.groups
    dataset = pydicom.dcmread(seg)
    assert group.segments == (Reference(dataset.SOPClassUID, dataset.SOPInstanceUID, (), (2,)),)
    assert group.source_series == (case.volume.provenance.series_instance_uid,)
    assert (group.tracking_id, group.finding) == ("Back", Code("86049000", "SCT", ""))
    assert group.sites == (FindingSite(codes.SCT.Liver),)
    assert group.evaluations == ((Code("123", "99TEST", ""), Code("124", "99TEST", "")),)
    (found,) = group.measurements
    assert (found.name, found.value, found.derivation) == (codes.SCT.Volume, 1.25, codes.SCT.Mean)
    assert found.qualifiers == ((Code("A1", "99TEST", ""), Code("A2", "99TEST", "")),)
    assert [(one.kind, one.name) for one in report.observers] == [("device", "Generator")]


def test_a_report_with_codes_of_older_snomed_is_read(shared_data: Path) -> None:
    report = read_sr(shared_data / "dicom_objects/dcmqi/sr-example/sr.dcm")
    (group,) = report.groups
    seg = pydicom.dcmread(shared_data / "dicom_objects/dcmqi/sr-example/seg.dcm")
    assert [one.sop_instance_uid for one in group.segments] == [seg.SOPInstanceUID]
    volume = next(one for one in group.measurements if one.name == codes.SCT.Volume)
    assert (volume.name.scheme_designator, volume.value) == ("SRT", 33.5824)
    assert volume.method == Code("126030", "DCM", "")


# --- broken ones


def broken(report: Path, change: Callable[[Dataset], Any]) -> Dataset:
    dataset = pydicom.dcmread(report)
    change(dataset)
    return dataset


def group_of(dataset: Dataset) -> Dataset:
    """The first measurement group."""
    found: Dataset = dataset.ContentSequence[-1].ContentSequence[0]
    return found


def first(dataset: Dataset, kind: str) -> Dataset:
    return next(item for item in group_of(dataset).ContentSequence if item.ValueType == kind)


def test_a_number_without_a_value_or_a_unit_is_told_so(ours: Path) -> None:
    def empty(dataset: Dataset) -> None:
        item = first(dataset, "NUM")
        item.MeasuredValueSequence = []
        item.NumericValueQualifierCodeSequence = [hd.sr.CodedConcept("114006", "DCM", "Measurement failure")]

    def unitless(dataset: Dataset) -> None:
        del first(dataset, "NUM").MeasuredValueSequence[0].MeasurementUnitsCodeSequence

    before = read_sr(ours).groups[0].measurements[0]
    found = read_sr(broken(ours, empty)).groups[0].measurements[0]
    assert (found.name, found.value, found.unit) == (before.name, None, None)
    assert found.missing == Code("114006", "DCM", "")
    found = read_sr(broken(ours, unitless)).groups[0].measurements[0]
    assert (found.value, found.unit) == (before.value, None)


def no_name(dataset: Dataset) -> None:
    del first(dataset, "NUM").ConceptNameCodeSequence


def no_number(dataset: Dataset) -> None:
    measured = first(dataset, "NUM").MeasuredValueSequence[0]
    measured["NumericValue"]._value = "Canary"


def no_instance(dataset: Dataset) -> None:
    first(dataset, "IMAGE").ReferencedSOPSequence = []


def half_a_point(dataset: Dataset) -> None:
    item = first(dataset, "SCOORD")
    item.GraphicData = list(item.GraphicData)[:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_name, "has no name"),
        (no_number, "is not a number"),
        (no_instance, "names 0 instances"),
        (half_a_point, "a multiple of 2"),
    ],
)
def test_what_would_mislead_is_refused(
    ours: Path, highdicoms: Path, change: Callable[[Dataset], None], message: str
) -> None:
    report = highdicoms if change is half_a_point else ours
    with pytest.raises(UnreadableFileError, match=message) as refusal:
        read_sr(broken(report, change))
    assert "Canary" not in str(refusal.value)


def test_items_without_codes_are_passed_over(ours: Path) -> None:
    def change(dataset: Dataset) -> None:
        for item in group_of(dataset).ContentSequence:
            if item.ValueType == "CODE":
                item.ConceptCodeSequence = []

    before, found = (read_sr(one).groups[0] for one in (ours, broken(ours, change)))
    assert (found.finding, found.sites, found.evaluations) == (None, (), ())
    assert found.measurements == before.measurements


@pytest.mark.parametrize("depth", [100, 20_000])
def test_deeply_nested_containers_are_read_or_refused(ours: Path, tmp_path: Path, depth: int) -> None:
    """In implicit bytes of undefined length, as no writer of pydicom would survive."""
    dataset = pydicom.dcmread(ours)
    content = dataset.ContentSequence
    del dataset.ContentSequence
    dataset.save_as(tmp_path / "head.dcm")
    plain = Dataset()
    plain.ContentSequence = content
    plain.save_as(tmp_path / "content.dcm", implicit_vr=False, little_endian=True)
    kind = b"\x40\x00\x40\xa0CS\x0a\x00CONTAINER "
    begin = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" + kind
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    inner = (tmp_path / "content.dcm").read_bytes()
    head = (tmp_path / "head.dcm").read_bytes()
    (tmp_path / "deep.dcm").write_bytes(head + begin * depth + inner + end * depth)
    if depth == 100:
        assert read_sr(tmp_path / "deep.dcm").groups == read_sr(ours).groups
    else:
        with pytest.raises(UnreadableFileError, match="is broken"):
            read_sr(tmp_path / "deep.dcm")


def test_a_report_whose_content_is_cut_is_refused(ours: Path, tmp_path: Path) -> None:
    content = ours.read_bytes()
    for share in (0.5, 0.8, 0.99):
        (tmp_path / "cut.dcm").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UnreadableFileError, match="is broken"):
            read_sr(tmp_path / "cut.dcm")


def test_what_is_no_measurement_report_is_refused(ours: Path, shared_data: Path) -> None:
    with pytest.raises(LabelError, match="SR without imaging measurements"):
        read_sr(shared_data / "hostile/pydicom/test-SR.dcm")
    with pytest.raises(LabelError, match="a measurement report"):
        read_sr(ours.with_name("seg.dcm"))
    with pytest.raises(LabelError, match="a measurement report"):
        read_sr(pydicom.dcmread(ours.with_name("seg.dcm")))

"""Measurements to a Comprehensive 3D SR (TID 1500), beside the SEG that they were taken from."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from dicom_io import proof
from dicom_io.coding import Segment, Whole
from dicom_io.errors import LabelError
from dicom_io.kinds.encodings import SYNTAXES
from dicom_io.objects import identity
from dicom_io.objects.encoding import data_set
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.result_content import NO_FACTS, ReportFacts, ResultContent
from dicom_io.objects.source_images import add_side, labelled, rescale_type
from dicom_io.reading.headers import shown_uid
from dicom_io.reading.instances import load_dataset
from dicom_io.seg.dataset import seg_uid
from dicom_io.segmentation import Segmentation
from dicom_io.sr.measure import SegmentMeasures, measure_segments
from dicom_io.sr.proof import prove_report
from dicom_io.volume import Volume

# CID 100: the imaging procedure that is reported on, where the source does not name it itself.
PROCEDURES = {
    "MR": codes.LN.MRIUnspecifiedBodyRegion,
    "CT": codes.LN.CTUnspecifiedBodyRegion,
    "PT": codes.LN.PETUnspecifiedBodyRegion,
}
# CID 7469 and its UCUM unit. Other modalities get no intensities, because no published code names their values. A CT whose
# values are not in Hounsfield units gets none either; without a RescaleType they are in these units (PS3.3 C.8.2.1).
INTENSITIES = {
    "MR": (codes.DCM.MRSignalIntensity, codes.UCUM.NoUnits),
    "CT": (codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit),
}
HOUNSFIELD = ("", "HU")
Group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations | hd.sr.MeasurementsAndQualitativeEvaluations


@refusing_odd_headers
def write_sr(
    labels: Volume, source: Volume, path: Path, result: ResultInfo, *, seg: Path, facts: ReportFacts = NO_FACTS
) -> Path:
    """Write a measurement group for each segment: volume, surface area, diameters, mean and SD of intensity.

    Segments that are parts of one structure have a further group (TID 1501), with their volume together.

    Args:
        labels: As for `write_seg`; the labels that are in `seg`.
        source: DICOM volume in patient space with one intensity a voxel; its files are read again for their headers.
        path: Target file, replaced if it exists.
        result: What computed the labels.
        seg: The SEG written from the same labels, source and result; each group refers to its segment. The labels cannot be
            computed from a fractional SEG, which holds probabilities. There the only check is that the SEG belongs to the
            series that this source, bundle and settings make.
        facts: Further statements: intervals of volumes, structures of several segments, an earlier report.

    Returns:
        `path`. The document is COMPLETE, PRELIMINARY and UNVERIFIED. A segment without voxels has volume 0 only.

    Raises:
        LabelError: Labels, source and SEG do not belong together, an interval has a number without a segment, or the source is
            a picture, which has no millimetres to measure in.
        UnreadableFileError: The SEG, the earlier report or a source file cannot be read.
    """
    _check_measurable(source)
    segmentation, images = labelled(labels, source, result)
    intervals, headers = _checked_intervals(facts.volumes_ml, result), images.headers
    digest = identity.digest_of(segmentation.label_volume.array)
    seg_header = _read_seg_header(seg, digest, source, result)
    measured = _measured(segmentation, source, result, _modality(source, headers), intervals)
    groups: list[Group] = [
        _group(segment, source, result, seg_header, measurements)
        for segment, measurements in zip(result.segments, measured, strict=True)
    ]
    wholes = {whole: [_volume(_volume_of(whole, segmentation, source), ml)] for whole, ml in facts.wholes_ml.items()}
    groups += [_group_of_whole(whole, source, result, measurements) for whole, measurements in wholes.items()]
    # Other labels or other measurements make another instance; the same input makes the same bytes.
    content = (str(seg_header.SOPInstanceUID), digest, _as_text([*measured, *wholes.values()]))
    predecessors, uid = _predecessors(facts.earlier, headers[0], source, result, content)
    report = hd.sr.MeasurementReport(
        observation_context=_observer(source, result),
        procedure_reported=_procedure(headers[0]),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    uids = uid, identity.result_uid(source, result, "SR", "series")
    ids = identity.for_highdicom("SR", uids, headers[0], result)
    document = _document(report, seg_header, predecessors, (*headers, *identity.headers_of_others(source)), ids)
    identity.stamp(document, headers, result, "SR", [text for whole in wholes for text in whole.texts])
    add_side(document, headers[0])
    return proof.save_proved(document, path, lambda file: prove_report(file, source, seg_header))


def _measured(
    segmentation: Segmentation,
    source: Volume,
    result: ResultInfo,
    modality: str,
    intervals: Mapping[int, tuple[float, float]],
) -> list[list[hd.sr.Measurement]]:
    """The measurements of each segment."""
    measures = chain.from_iterable(
        measure_segments(held.labels, [each.box for each in held.structures], source.array, source.affine_lps)
        for held in segmentation.maps
    )
    return [
        _measurements(figures, modality, intervals.get(segment.number))
        for segment, figures in zip(result.segments, measures, strict=True)
    ]


def _document(
    report: hd.sr.MeasurementReport,
    seg_header: Dataset,
    predecessors: list[Dataset],
    headers: tuple[Dataset, ...],
    ids: Mapping[str, Any],
) -> hd.sr.Comprehensive3DSR:
    return hd.sr.Comprehensive3DSR(
        # highdicom refuses a reference to an instance that is not listed here.
        evidence=[*identity.neutral(headers), seg_header],
        content=report,
        instance_number=1,
        # Nothing is left to be computed, and no person has verified it.
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=predecessors or None,
        **ids,
    )


def write_result(content: ResultContent, path: Path) -> None:
    """Write the report of a result, which refers to its SEG; see `write_sr`."""
    write_sr(content.labels, content.source, path, content.info, seg=content.paths["SEG"], facts=content.report)


def _check_measurable(source: Volume) -> None:
    if source.planar:
        raise LabelError(
            "the source is a picture without patient space; a report states volumes and lengths, so a series with "
            "millimetres is "
            "needed; write a SEG, a presentation state or captures"
        )
    if source.array.ndim != 3:
        raise LabelError(
            f"the source has {source.array.shape[3]} channels; a report says one intensity a voxel; give one channel"
        )


def _checked_intervals(
    volumes_ml: Mapping[int, tuple[float, float]], result: ResultInfo
) -> dict[int, tuple[float, float]]:
    """The intervals as plain numbers, whatever number type they came in. Raises LabelError for a number without a segment."""
    numbers = [segment.number for segment in result.segments]
    unknown = sorted(set(volumes_ml) - set(numbers))
    if unknown:
        raise LabelError(
            f"an interval is given for the volume of segment {unknown[0]}; the segments are {numbers}; use their numbers"
        )
    return {int(number): (float(low), float(high)) for number, (low, high) in volumes_ml.items()}


def _predecessors(
    earlier: Path | None, header: Dataset, source: Volume, result: ResultInfo, content: tuple[str, ...]
) -> tuple[list[Dataset], str]:
    """The reports that the new report replaces, and its own UID, which depends on them."""

    def uid_after(reports: list[Dataset]) -> str:
        before = [str(report.SOPInstanceUID) for report in reports]
        return identity.result_uid(source, result, "SR", "instance", *content, *before)

    if earlier is None:
        return [], uid_after([])
    report = load_report(earlier)
    if report.get("StudyInstanceUID") != header.StudyInstanceUID or report.get("PatientID") != header.get("PatientID"):
        raise LabelError(
            f"the earlier report {earlier.name} is of another patient or study; a report of this study is needed as "
            "predecessor; leave it out"
        )
    before = [_version_of(item) for item in report.get("PredecessorDocumentsSequence") or []]
    # The same content after the same predecessors: this is the earlier report itself, and it does not precede itself.
    if report.SOPInstanceUID == uid_after(before):
        return before, str(report.SOPInstanceUID)
    return [report], uid_after([report])


def load_report(path: Path) -> Dataset:
    report = load_dataset(path)
    if report.get("SOPClassUID") != Comprehensive3DSRStorage:
        raise LabelError(
            f"the earlier report {path.name} has SOP class {shown_uid(report.get('SOPClassUID'))}; a Comprehensive 3D SR is "
            "needed; leave it out"
        )
    return report


def _version_of(study: Dataset) -> Dataset:
    """An earlier version as highdicom takes it, from an item of PredecessorDocumentsSequence."""
    series = study.ReferencedSeriesSequence[0]
    return data_set(
        StudyInstanceUID=study.StudyInstanceUID,
        SeriesInstanceUID=series.SeriesInstanceUID,
        SOPClassUID=series.ReferencedSOPSequence[0].ReferencedSOPClassUID,
        SOPInstanceUID=series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID,
    )


def _read_seg_header(seg: Path, digest: str, source: Volume, result: ResultInfo) -> Dataset:
    header = load_dataset(Path(seg))
    # The UID of a SEG depends on its encoding, which is not known here.
    expected = [
        seg_uid(source, result, encoding, digest, empty_frames=empty_frames)
        for encoding in SYNTAXES
        for empty_frames in (False, True)
    ]
    same_series = header.get("SeriesInstanceUID") == identity.result_uid(source, result, "SEG", "series")
    fractional = header.get("SegmentationType") == "FRACTIONAL"  # holds probabilities, not these labels
    uid = header.get("SOPInstanceUID")
    if uid not in expected and not (fractional and same_series):
        raise LabelError(
            f"the SEG is the instance {shown_uid(uid)}, but these labels, source and result give {expected[0]}; the report "
            "must "
            "refer to its own SEG; write the SEG first, with the same labels and result information"
        )
    return header


def _procedure(header: Dataset) -> hd.sr.CodedConcept:
    """The imaging procedure: as the source codes it in a published scheme, else by modality (CID 100)."""
    # Codes of private schemes mean nothing to other readers.
    for item in header.get("ProcedureCodeSequence") or []:
        if item.get("CodingSchemeDesignator") in ("SCT", "LN", "RADLEX") and item.get("CodeValue"):
            return hd.sr.CodedConcept(item.CodeValue, item.CodingSchemeDesignator, item.get("CodeMeaning") or "?")
    return hd.sr.CodedConcept.from_code(PROCEDURES.get(header.get("Modality"), codes.SCT.ImagingProcedure))


def _observer(source: Volume, result: ResultInfo) -> hd.sr.ObservationContext:
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=identity.derived_uid(
            "device", result.manufacturer, result.algorithm_name, result.algorithm_version, result.bundle_sha256
        ),
        name=identity.plain(result.algorithm_name),
        manufacturer_name=identity.plain(result.manufacturer),
        model_name=identity.plain(result.algorithm_name),
        serial_number=identity.plain(result.bundle_sha256) or "0",
    )
    return hd.sr.ObservationContext(observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device))


def _modality(source: Volume, headers: tuple[Dataset, ...]) -> str:
    """The source's modality, which decides the name of intensities; empty for a CT that is not in Hounsfield units."""
    modality = str(source.provenance.modality)
    in_hounsfield = all(rescale_type(header) in HOUNSFIELD for header in headers)
    return "" if modality == "CT" and not in_hounsfield else modality


def _as_text(measured: list[list[hd.sr.Measurement]]) -> str:
    """All measurements as text; part of the report's UID."""
    return "\n".join(item.to_json() for group in measured for measurement in group for item in measurement)


def _group(
    segment: Segment, source: Volume, result: ResultInfo, seg_header: Dataset, measurements: list[hd.sr.Measurement]
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=identity.tracking_uid(source, result, segment.number), identifier=identity.tracking_id(segment)
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg_header.SOPClassUID,
            sop_instance_uid=seg_header.SOPInstanceUID,
            segment_number=segment.number,
            source_series=hd.sr.SourceSeriesForSegmentation(str(source.provenance.series_instance_uid)),
        ),
        finding_category=segment.category,
        finding_type=segment.type,
        finding_sites=[_site(segment)],
        algorithm_id=_algorithm(result),
        measurements=measurements,
    )


def _volume_of(whole: Whole, segmentation: Segmentation, source: Volume) -> float:
    """Volume of all voxels of its parts, in mL."""
    voxels = sum(part.voxels for part in segmentation.structures if part.number in whole.numbers)
    return float(voxels) * source.voxel_ml


def _group_of_whole(
    whole: Whole, source: Volume, result: ResultInfo, measurements: list[hd.sr.Measurement]
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """A group without a region of its own; the groups of the parts have the regions."""
    parts = "+".join(map(str, whole.numbers))
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=identity.result_uid(source, result, "TRACKING", parts), identifier=f"{parts} {whole.label}"[:64]
        ),
        finding_category=whole.category,
        finding_type=whole.type,
        finding_sites=[
            hd.sr.FindingSite(
                whole.anatomic_region or whole.type, topographical_modifier=whole.anatomic_region_modifier
            )
        ],
        algorithm_id=_algorithm(result),
        measurements=measurements,
    )


def _site(segment: Segment) -> hd.sr.FindingSite:
    """The coded region, else the type, which is then a place itself; with its modifier (anterior, posterior)."""
    if segment.anatomic_region:
        return hd.sr.FindingSite(segment.anatomic_region, topographical_modifier=segment.anatomic_region_modifier)
    return hd.sr.FindingSite(segment.type, topographical_modifier=segment.type_modifier)


def _algorithm(result: ResultInfo) -> hd.sr.AlgorithmIdentification | None:
    """Name, version and settings of the algorithm; None where a person drew the labels."""
    if result.algorithm_type == "MANUAL":
        return None
    settings = [f"{name}={value}" for name, value in sorted(result.settings)]
    settings += [f"quality: {result.quality}"] if result.quality else []
    settings += [f"calibration: {result.calibration}"] if result.calibration else []
    return hd.sr.AlgorithmIdentification(
        name=identity.plain(result.algorithm_name),
        version=identity.plain(result.algorithm_version),
        parameters=[identity.plain(text, 1024) for text in (f"bundle sha256 {result.bundle_sha256}", *settings)],
    )


def _measurements(
    measures: SegmentMeasures, modality: str, volume_ml: tuple[float, float] | None
) -> list[hd.sr.Measurement]:
    items = [_volume(measures.volume_ml, volume_ml)]
    if measures.long_axis_mm is not None and measures.short_axis_mm is not None:
        items.append(_measurement(codes.SCT.LongAxis, measures.long_axis_mm, codes.UCUM.Millimeter))
        items.append(_measurement(codes.SCT.ShortAxis, measures.short_axis_mm, codes.UCUM.Millimeter))
    if measures.max_diameter_mm is not None:
        items.append(_measurement(codes.IBSI.SurfaceAreaOfMesh, measures.surface_mm2, codes.UCUM.SquareMillimeter))
        items.append(_measurement(codes.IBSI.Maximum3DDiameterOfAMesh, measures.max_diameter_mm, codes.UCUM.Millimeter))
    if measures.mean is not None and measures.std is not None and modality in INTENSITIES:
        name, unit = INTENSITIES[modality]
        items.append(_measurement(name, measures.mean, unit, codes.SCT.Mean))
        items.append(_measurement(name, measures.std, unit, codes.SCT.StandardDeviation))
    return items


def _volume(value_ml: float, interval_ml: tuple[float, float] | None) -> hd.sr.Measurement:
    """The volume, with its uncertainty upwards and downwards where an interval is known (TID 310)."""
    name, unit = codes.SCT.Volume, codes.UCUM.CubicCentimeter
    if interval_ml is None:
        return _measurement(name, value_ml, unit)
    low, high = interval_ml
    if not (np.isfinite([low, high]).all() and low <= value_ml <= high):
        raise LabelError(
            f"the interval of a volume is {low} to {high} mL, the volume {value_ml:.4g} mL; it must lie inside; check the "
            "interval"
        )
    properties = hd.sr.MeasurementProperties(
        upper_measurement_uncertainty=float(f"{high - value_ml:.7g}"),
        lower_measurement_uncertainty=float(f"{value_ml - low:.7g}"),
    )
    for item in properties:  # highdicom writes "no units"; the uncertainty of a volume is a volume
        item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [hd.sr.CodedConcept.from_code(unit)]
    return _measurement(name, value_ml, unit, properties=properties)


def _measurement(
    name: Code,
    value: float,
    unit: Code,
    derivation: Code | None = None,
    properties: hd.sr.MeasurementProperties | None = None,
) -> hd.sr.Measurement:
    if not np.isfinite(value):
        raise LabelError(
            f"the measurement {name.meaning} is {value}; a finite number is needed; check the source for NaN voxels"
        )
    # Seven digits with sign and exponent fit the 16 characters of a DS (PS3.5 6.2).
    number = float(f"{value:.7g}")
    return hd.sr.Measurement(name=name, value=number, unit=unit, derivation=derivation, properties=properties)

"""A segmented case to DICOM objects, all on one source series, SEG first."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from dicom_io.coding import Segment, Whole, uncoded
from dicom_io.dicomize import ConversionOptions, ConvertedModality, dicomize, plain_case_id
from dicom_io.errors import DicomIoError
from dicom_io.kinds import RESULT_KINDS, write_objects
from dicom_io.objects.identity import INCOMPLETE, ResultInfo
from dicom_io.objects.labels import Fractions
from dicom_io.objects.result_content import ReportFacts, ResultContent
from dicom_io.read import read_series
from dicom_io.reading.instances import load_dataset
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import figure_of
from monai_unet_app.confidence.size_words import interval_text
from monai_unet_app.config import OutputConfig
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError, refusing_as
from monai_unet_app.pipeline import Case


@dataclass(frozen=True)
class CaseOutput:
    """A segmented case and the place of its files.

    Attributes:
        case: The case, with its bundle and the settings of its run.
        case_id: The beginning of its files' names.
        config: The files to write, and the DICOM series that they refer to.
        folder: Gets the files.
    """

    case: Case
    case_id: str
    config: OutputConfig
    folder: Path

    def file(self, ending: str) -> Path:
        """`<case id>_<ending>` in the folder."""
        return self.folder / f"{self.case_id}_{ending}"


def write_dicom(output: CaseOutput) -> dict[str, str]:
    """Writes the DICOM objects of a case and gives their names by format.

    Raises:
        UsageError: The input is no DICOM, and no DICOM series is named.
        BundleError: A structure is not coded, and `uncoded` is not set.
        InputRefusedError: The named series is at another place than the image, an object cannot be written, or the image is a
            picture and a format needs patient space.
    """
    case, config = output.case, output.config
    if not config.uncoded:
        check_coded(case.bundle.name, case.bundle.segments)
    source, files = _target(output)
    if source.planar:
        check_possible(output.case_id, config.formats)
    paths = {kind.name: output.file(f"{kind.format}{kind.ending}") for kind in RESULT_KINDS}
    # Probabilities are those of a structure, not of its objects
    fractional = config.seg_encoding == "fractional"
    segmentation = case.segmentation.without_objects if fractional else case.segmentation.by_object()
    content = ResultContent(
        _on(segmentation.label_volume, source),
        source,
        replace(_info(case), segments=segmentation.segments),
        paths,
        config.seg_encoding,
        config.empty_frames,
        probabilities=lambda: _fractions(case, source),
        uncertainty=lambda: _on(case.image.with_array(case.uncertainty), source),
        report=ReportFacts(*_intervals_of(segmentation, case), _report_of_this_study(config.earlier_sr, source)),
    )
    with refusing_as(output.case_id):
        return files | write_objects(content, config.formats)


def check_possible(name: str, formats: Sequence[str]) -> None:
    """Raises InputRefusedError, with `name` in its message, for formats that cannot be made of a picture."""
    impossible = [kind.format for kind in RESULT_KINDS if kind.needs_patient_space and kind.format in formats]
    if impossible:
        possible = ", ".join(kind.format for kind in RESULT_KINDS if not kind.needs_patient_space)
        raise InputRefusedError(
            f"{name}: {', '.join(impossible)} cannot be made of a picture, which has no millimetres and no place in the "
            f"patient; of {possible} some are possible; change --format"
        )


def check_coded(name: str, segments: Sequence[Segment]) -> None:
    """Raises BundleError, with `name` in its message, if a structure has no codes that mean something to other programs."""
    if problem := uncoded(segments):
        raise BundleError(
            f"{name}: {problem}, or use monai-unet predict --uncoded, which writes a private code that says so"
        )


def _report_of_this_study(path: Path | None, source: Volume) -> Path | None:
    """The path, if the file there is a report on the study of the source; else None."""
    try:
        header = load_dataset(path) if path is not None and path.is_file() else Dataset()
    except DicomIoError:
        return None
    expected = (Comprehensive3DSRStorage, source.provenance.study_instance_uid)
    return path if (header.get("SOPClassUID"), header.get("StudyInstanceUID")) == expected else None


def _info(case: Case) -> ResultInfo:
    bundle, source = case.bundle, case.image.provenance
    return ResultInfo(
        segments=bundle.segments,
        algorithm_name=bundle.name,
        algorithm_version=bundle.version,
        bundle_sha256=bundle.sha256,
        settings=(*case.settings.texts(), *_image_setting(case.image)),
        series_description=f"{INCOMPLETE}, {bundle.name}" if source.incomplete else "",
        quality=_quality(case),
        calibration=_calibration(bundle),
    )


def _intervals_of(
    segmentation: Segmentation, case: Case
) -> tuple[dict[int, tuple[float, float]], dict[Whole, tuple[float, float] | None]]:
    """The intervals of the volumes of segments, and of wholes; of a structure whose objects are segments, of their whole."""
    stated = case.assessment.reportable_intervals if case.assessment else {}
    if len(segmentation.segments) == len(case.segmentation.segments):
        return stated, _wholes(case)
    return {}, dict.fromkeys(segmentation.wholes, stated.get(1))


def _wholes(case: Case) -> dict[Whole, tuple[float, float] | None]:
    """Each whole with the interval of its volume in mL; None without an interval."""
    assessed = case.assessment.wholes if case.assessment else ()
    return dict.fromkeys(case.segmentation.wholes) | {part.whole: part.reportable_interval for part in assessed}


def _quality(case: Case) -> str:
    """In one line, which images are missing, then the quality gate's verdict with its reasons; may be empty."""
    source, assessment = case.image.provenance, case.assessment
    texts = [note for note in source.notes if source.incomplete and "incomplete" in note]
    if assessment is not None:
        texts.append(assessment.sentence)
    return "; ".join([*texts, *_counts(case)])


def _counts(case: Case) -> list[str]:
    """How many objects each structure has, with the interval where one is stated."""
    stated = case.assessment.structures if case.assessment else ()
    ends = {one.number: one.count_interval for one in stated if one.count_interval}
    return [
        f"{structure.label}: {structure.objects} object(s)"
        + (
            f" ({interval_text(structure.objects, ends[structure.number], 'objects')})"
            if structure.number in ends
            else ""
        )
        for structure in case.segmentation.structures
        if structure.objects is not None
    ]


def _calibration(bundle: Bundle) -> str:
    """The calibration errors in the bundle's metadata, in one line; empty where none was measured."""
    measured = bundle.measured
    entries = [(key, figure_of(measured[key])) for key in measured if key.startswith("ece_")]
    errors = [f"ECE {value:g} ({_where(key)})" for key, value in entries if value is not None]
    return f"{', '.join(errors)} on {measured.get('subjects', '?')} test subject(s)" if errors else ""


def _where(key: str) -> str:
    place = key.removeprefix("ece_").replace("_", " ")
    return "whole image" if place == "whole" else place


def _image_setting(volume: Volume) -> tuple[tuple[str, str], ...]:
    """The digest of the image, for a result whose image is not the DICOM series that it refers to."""
    if volume.provenance.kind == "dicom":
        return ()
    # UIDs are hashes of the input. Two images on the same series must not give the same UIDs;
    # their voxels and affines tell them apart.
    voxels = np.ascontiguousarray(volume.array)
    return (("image sha256", hashlib.sha256(voxels.tobytes() + volume.affine_lps.tobytes()).hexdigest()),)


def can_be_converted(bundle: Bundle) -> bool:
    """Whether --dicomize can write a series that this bundle accepts."""
    return bool(set(bundle.rules.modality or ("MR",)) & set(get_args(ConvertedModality)))


def converted_modality(bundle: Bundle) -> ConvertedModality:
    """The modality that --dicomize writes for this bundle: MR if the bundle accepts MR or any modality, else CT.

    Raises:
        UsageError: The bundle accepts neither MR nor CT.
    """
    accepted = bundle.rules.modality or ("MR",)
    known: tuple[ConvertedModality, ...] = get_args(ConvertedModality)
    for modality in known:
        if modality in accepted:
            return modality
    raise UsageError(
        f"{bundle.name} takes {' or '.join(accepted)}, but --dicomize writes MR or CT, which it would refuse; give the series "
        "that the image was made from with --dicom-source DIR"
    )


def _target(output: CaseOutput) -> tuple[Volume, dict[str, str]]:
    """The DICOM volume that results refer to (the first of several channels), and the files that were written for it."""
    case_id, image, config = output.case_id, output.case.image, output.config
    if image.provenance.kind == "dicom":
        # Objects refer to the instances of one series, and the first channel is that series
        return image if image.in_colour else image.channel(0), {}
    try:
        if config.dicom_source is not None:
            source = read_series(config.dicom_source)
            # Raises before anything is written if the image is not on this series
            _ = image.on_grid_of(source)
            return source, {}
        if config.dicomize:
            folder = output.file("dicom")
            options = ConversionOptions(converted_modality(output.case.bundle))
            first = image.channel(0)
            made = dicomize(first, folder, case_id=plain_case_id(case_id), options=options)
            return read_series(made.series_folder), {"series": f"{folder.name}/{made.series_folder.name}"}
    except (DicomIoError, ValueError) as error:
        raise InputRefusedError(f"{case_id}: {error}") from error
    raise UsageError(
        f"{case_id} is not DICOM; a DICOM result needs a series to refer to; name one or request a conversion"
    )


def _fractions(case: Case, source: Volume) -> Fractions:
    """Calibrated probabilities of the structures on the grid of the source, 0 to 1."""
    structures = case.segmentation.structures
    return Fractions(
        len(structures),
        lambda n: _on(case.image.with_array(np.clip(structures[n].probability_on_grid, 0.0, 1.0)), source),
    )


def _on(values: Volume, source: Volume) -> Volume:
    """Values on the grid of the source. If the image is no DICOM, its axes may have another order than those of the source."""
    return values if values.provenance.kind == "dicom" else values.on_grid_of(source)

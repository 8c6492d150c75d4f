"""Label files that another program or a person made, written as DICOM on the series that they belong to."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel

from dicom_io.coding import Segment
from dicom_io.kinds import RESULT_KINDS, write_objects
from dicom_io.kinds.encodings import SegEncoding
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.result_content import ReportFacts, ResultContent
from dicom_io.read import ReadOptions
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.confidence.results_bundle import Program, ResultsBundle
from monai_unet_app.config import applied_repairs
from monai_unet_app.data.case_files import CaseFiles, case_id, first_names
from monai_unet_app.data.coding import named_segment, structure_named
from monai_unet_app.data.label_files import is_black_and_white
from monai_unet_app.data.label_names import LabelTable, agreed_meanings, tables_of
from monai_unet_app.data.placed_labels import PlacedLabels, placed_labels
from monai_unet_app.data.probability_files import read_probabilities
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.sketch import lie_of
from monai_unet_app.errors import InputRefusedError, UsageError, refusing_as
from monai_unet_app.result_files import publish, result_document

_ALONG = (
    dict.fromkeys("LR", "left to right") | dict.fromkeys("AP", "front to back") | dict.fromkeys("SI", "feet to head")
)
NOT_JUDGED = "no quality gate has judged these labels"


@dataclass(frozen=True)
class Maker(Program):
    """Who made the labels.

    Attributes:
        is_manual: A person drew them.
    """

    is_manual: bool = False

    @classmethod
    def parse(cls, algorithm: str | None, *, manual: bool) -> "Maker":
        """From "TotalSegmentator 2.18", or for a person. Raises UsageError unless exactly one is told, with a version."""
        if manual == (algorithm is not None):
            raise UsageError(
                "who made the labels is needed: the program and its version, such as --algorithm 'TotalSegmentator 2.18', or "
                "--manual for a person; give one of them"
            )
        if algorithm is None:
            return cls("manual", "none", is_manual=True)
        name, _, version = algorithm.rpartition(" ")
        if not name.strip() or not any(character.isdigit() for character in version):
            raise UsageError(
                f"--algorithm {algorithm!r} has no version; DICOM objects name the program and its version; write both, such "
                "as 'TotalSegmentator 2.18'"
            )
        return cls(name.strip(), version)


@dataclass(frozen=True)
class LabelRequest:
    """Labels, their series, and what is made of them.

    Attributes:
        labels: A label map in NIfTI, NRRD or MetaImage, or a folder with a mask a structure, named as the structure.
        source: The DICOM series, or its volume.
        output: Gets `<labels>_seg.dcm` and so on.
        maker: Who made the labels.
        names: Label value -> name; empty where `segments`, the file's own label table, a `dataset.json` beside it or the names
            of masks say it.
        segments: The meaning of the label values 1, 2, ...; empty for codes that follow from the names.
        formats: Formats of `RESULT_KINDS` that labels alone can have.
        encoding: Of the SEG.
        uncoded: Structures without a SNOMED CT code are written with a private one.
        reading: How to read the series.
        looked_at: Somebody has seen that the labels lie right, whatever the edges of the image say.
        statements: What labels of this program are worth; it also names the label values. None where nothing is known.
        deliver_rejected: Objects are also written of labels that `statements` reject.
        stem: Beginning of the names of files; empty for that of `labels`.
        seconds: What took how long, for result.json.
        empty_frames: As in `ResultContent`.
        earlier_sr: The report that the new one replaces.
        probabilities: The program's, of a label map: nnU-Net's .npz, or a file with channels; None for labels alone.
    """

    labels: Path
    source: Path | Volume
    output: Path
    maker: Maker
    names: Mapping[int, str] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    formats: tuple[str, ...] = ("seg",)
    encoding: SegEncoding = "binary"
    uncoded: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    looked_at: bool = False
    statements: ResultsBundle | None = None
    deliver_rejected: bool = False
    stem: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    empty_frames: bool = False
    earlier_sr: Path | None = None
    probabilities: Path | None = None


def write_label_results(request: LabelRequest) -> dict[str, Any]:
    """Writes the DICOM objects of labels; all of them or none.

    Returns:
        "result": the content of `<labels>_result.json`; "empty": structures without voxels that were left out; "unknown":
        values that were left out since the statements say nothing of them; "placed": how the labels came onto the slices;
        "edges": whether edges of the image follow them, a `Lie`.

    Raises:
        UsageError: A format needs more than labels.
        InputRefusedError: The source is no DICOM series, the labels do not cover it, a value has no name or a structure no
            code, structures share voxels, edges of the image disagree with the labels, or an object cannot be written.
    """
    possible = [kind.format for kind in RESULT_KINDS if kind.from_labels]
    if unknown := [name for name in request.formats if name not in possible]:
        raise UsageError(
            f"--format {','.join(unknown)}: of labels alone {', '.join(possible)} are possible; change --format"
        )
    series = request.source.name if isinstance(request.source, Path) else "the series"
    source = read_volume(request.source, request.reading) if isinstance(request.source, Path) else request.source
    if source.provenance.kind != "dicom":
        raise InputRefusedError(
            f"{series} is no DICOM series; the series that the labels were made of is needed; name its folder"
        )
    found, names, unknown = _found(request, source)
    stated, values = request.statements, found.present
    if not values:
        raise InputRefusedError(f"{request.labels.name} holds no structure: all its values are 0; nothing was written")
    if not stated and (without := [str(value) for value in values if value not in names]):
        raise InputRefusedError(
            f"{request.labels.name} holds {len(without)} value(s) without a name ({first_names(without)}); name "
            "each by --structure VALUE=NAME, name a --bundle whose segments.json does, or put nnU-Net's dataset.json beside it"
        )
    values = values if stated is None else stated.values
    with refusing_as(request.labels.name):
        segments = tuple(_segment(number, value, names, request) for number, value in enumerate(values, 1))
    if not request.uncoded and (uncoded := [segment.label for segment in segments if not segment.is_coded]):
        raise InputRefusedError(
            f"{request.labels.name}: there is no SNOMED CT code for {', '.join(uncoded)}; other programs know a structure by "
            "its code; name it as DICOM does, or by a --bundle whose segments.json has codes, or give --uncoded"
        )
    edges, axis = lie_of(source.channel(0).array, found.numbers)
    if edges in ("mirrored", "moved") and not request.looked_at:
        how = "some voxels away" if axis < 0 else f"flipped {_ALONG[nibabel.aff2axcodes(source.affine_ras)[axis]]}"
        raise InputRefusedError(
            f"edges of {series} agree better with {request.labels.name} {how}; the labels may be mirrored, moved "
            "or of another image; look at them, and if they lie right, write them with --looked-at"
        )
    made = _with_probabilities(Segmentation(source, found.numbered(values), segments), request)
    document = _written(request, source, made)
    empty = [name for value, name in names.items() if value not in values]
    return {"result": document, "empty": empty, "unknown": unknown, "placed": found.placed, "edges": edges}


def _with_probabilities(segmentation: Segmentation, request: LabelRequest) -> Segmentation:
    """The result with its calibrated probabilities, where it has any. Raises InputRefusedError if the statements lack them."""
    stated, file = request.statements, request.probabilities
    if stated is None and file is not None:
        raise UsageError("--probabilities are calibrated by a --bundle that was fitted with probabilities; name it")
    if file is not None and stated is not None:
        found = read_probabilities([file], request.labels, segmentation.labels, segmentation.image, stated.values)
        segmentation = replace(segmentation, probabilities=found)
    return stated.calibrated(segmentation, request.maker) if stated else segmentation


def _found(request: LabelRequest, source: Volume) -> tuple[PlacedLabels, Mapping[int, str], list[str]]:
    """The labels; the name of each value, also of those without a voxel; and what has voxels and the statements do not name."""
    stated = request.statements
    if stated and (request.names or request.segments):
        raise UsageError(f"{stated.name} says what the label values mean; other names are not possible beside it")
    named = stated.values if stated else request.names or [segment.number for segment in request.segments]
    found = placed_labels(
        request.labels, source, white=is_black_and_white([request.labels], named), options=request.reading
    )
    tables = tables_of(CaseFiles("", request.labels, request.labels), request.labels.parent)
    if known := stated.segments if stated else () if found.names or request.names else request.segments:
        values = stated.values if stated else [segment.number for segment in known]
        described = dict(zip(values, known, strict=True))
        names = {value: segment.label for value, segment in described.items()}
        bundle = LabelTable(names, stated.name if stated else "segments.json")
        found = (
            found if found.names else found.renumbered(agreed_meanings(tables, bundle, described), request.labels.name)
        )
    if stated:
        found, unknown = found.known(stated.segments, stated.values, request.maker.name)
        return found, dict(zip(stated.values, stated.structure_names, strict=True)), unknown
    told: Mapping[int, str] = {**found.names, **request.names} or {
        segment.number: segment.label for segment in request.segments
    }
    if not told and tables:
        told, meant = tables[0].names, agreed_meanings(tables[1:], tables[0])
        if any(value != other for value, other in meant.items()):
            raise InputRefusedError(
                f"the label values have two meanings: {'; '.join(map(str, tables))}; correct one, or name them by --structure "
                "VALUE=NAME"
            )
    return found, told, []


def _segment(number: int, value: int, names: Mapping[int, str], request: LabelRequest) -> Segment:
    """The segment of a label value: that of `segments`, else one with the codes of its name."""
    known = {segment.label: segment for segment in (request.statements or request).segments}
    if (name := names[value]) in known:
        return replace(known[name], number=number)
    return named_segment(number, structure_named(name, request.maker.name))


def _written(request: LabelRequest, source: Volume, segmentation: Segmentation) -> dict[str, Any]:
    """Writes the objects and `result.json`, and gives the content of the latter. What an object refers to is written, too."""
    stem, maker, formats = request.stem or case_id(request.labels), request.maker, request.formats
    repairs, stated = applied_repairs(request.reading, source.provenance), request.statements
    assessment = stated.assessed(segmentation, maker) if stated else None
    if assessment is not None and assessment.verdict == "reject" and not request.deliver_rejected:
        formats = ()
    digest = (stated or maker).sha256  # of what, beside the labels, the result follows from
    request.output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=request.output, prefix=".partial-") as partial,
        refusing_as(request.labels.name),
    ):
        content = ResultContent(
            segmentation.label_volume,
            source,
            ResultInfo(
                segmentation.segments,
                maker.name,
                maker.version,
                digest,
                settings=(("repairs", ", ".join(repairs)),) if repairs else (),
                algorithm_type="MANUAL" if maker.is_manual else "AUTOMATIC",
                quality=assessment.sentence if assessment else NOT_JUDGED,
            ),
            {kind.name: Path(partial) / f"{stem}_{kind.format}{kind.ending}" for kind in RESULT_KINDS},
            request.encoding,
            request.empty_frames,
            report=ReportFacts(assessment.reportable_intervals if assessment else {}, earlier=request.earlier_sr),
        )
        files = write_objects(content, formats)
        made = {
            "bundle": {"name": maker.name, "version": maker.version, "sha256": digest},
            "settings": {"repairs": list(repairs)} if repairs else {},
            "seconds": dict(request.seconds),
        }
        document = result_document(stem, made, segmentation, assessment, files)
        write_json(document, Path(partial) / f"{stem}_result.json", "result")
        publish(Path(partial), request.output, stem)
    return document

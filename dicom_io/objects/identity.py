"""The owner and the names of a result: patient and study carry-over, UIDs, dates, series numbers.

A result object is a pure function of its input: the same source instances, bundle and settings give the same
bytes. Therefore UIDs are hashes, not random, and no clock is read. ContentDate and ContentTime (Type 1 in a
structured report) are the latest of the source slices: the moment when the last input of the
computation existed. Reading the clock instead would give two different files under one SOP Instance UID
whenever a job is run again, which an archive may refuse or, worse, mix. InstanceCreationDate and
ContributionDateTime (both Type 3) are left out for the same reason; the archive knows when
a file arrived.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from dicom_io.coding import Segment, is_code, printable
from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.files import state_of
from dicom_io.kinds import KIND
from dicom_io.objects import patient_and_study
from dicom_io.reading.headers import whole_number
from dicom_io.reading.instances import load_dataset
from dicom_io.volume import Provenance, Volume

AlgorithmType = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]

BY_A_PERSON = 20_000
"""Added to the series numbers of results that a person verified or corrected."""
INCOMPLETE = "INCOMPLETE SERIES"
"""The mark of a result on a series that lacks images by its own headers, in lists of series and on pictures."""
NO_DATE, NO_TIME = "19700101", "000000"

TYPE_2_KEYWORDS = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
    "AccessionNumber"
)

SLICE_KEYWORDS = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ImagePositionPatient "
    "ImageOrientationPatient PixelSpacing Rows Columns ContentDate ContentTime SeriesDate SeriesTime AcquisitionDate "
    "AcquisitionTime StudyDate StudyTime NumberOfFrames SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)
"""The attributes that an object needs of every slice; patient and study are those of the first slice."""

UNNAMED_METHOD = "Not named by the source"
"""DeidentificationMethod where the source says that it was de-identified and not how: Type 1C, PS3.3 C.7.1.1."""


@dataclass(frozen=True)
class ResultInfo:
    """The computation behind a result, as every writer states it.

    Attributes:
        segments: Meaning of the labels; label value n is `segments[n - 1]`.
        algorithm_name: For instance the bundle's name; 1 to 64 characters.
        algorithm_version: Version of the bundle; 1 to 64 characters.
        bundle_sha256: Hex digest of what computed the result; part of every UID.
        settings: (name, value) pairs that change the voxels (TTA, window, device class); part of every UID.
        algorithm_family: A code of CID 7162.
        algorithm_type: SegmentAlgorithmType; with MANUAL no algorithm is named.
        series_description: Start of SeriesDescription; the writers append the number of source images, the kind and
            "RESEARCH".
        quality: The quality gate's verdict in one line, empty without a quality gate; stands in
            ContributionDescription and in the report.
        calibration: How well the probabilities are calibrated, in one line; stands in the report.
        manufacturer: Of the software that computed the result; 1 to 64 characters.
        content_creator: Name of the person who corrected the result, as DICOM has it; empty where nobody did.

    Raises:
        LabelError: One of the three names is empty; they are Type 1 in the objects. The segments are not numbered from 1, or
            the code of the family is malformed. Or the creator's name does not fit a Person Name: at most three groups of 64
            characters (PS3.5 6.2).
    """

    segments: tuple[Segment, ...]
    algorithm_name: str
    algorithm_version: str
    bundle_sha256: str
    settings: tuple[tuple[str, str], ...] = ()
    algorithm_family: Code = codes.DCM.ArtificialIntelligence
    algorithm_type: AlgorithmType = "AUTOMATIC"
    series_description: str = ""
    quality: str = ""
    calibration: str = ""
    manufacturer: str = "monai-unet-app"
    content_creator: str = ""

    def __post_init__(self) -> None:
        for name in ("algorithm_name", "algorithm_version", "manufacturer"):
            if not plain(getattr(self, name)):
                raise LabelError(
                    f"the {name} of the result is {getattr(self, name)!r}; 1 to 64 printable characters are needed because "
                    "every object must name the software that made it; give it"
                )
        numbers = [segment.number for segment in self.segments]
        if numbers != list(range(1, len(numbers) + 1)):
            raise LabelError(
                f"the segments of the result have the numbers {numbers}; 1 to {len(numbers)} in this order are needed, because "
                "label value n is the nth segment; renumber them"
            )
        if not is_code(self.algorithm_family):
            raise LabelError(
                f"the algorithm_family of the result is {tuple(self.algorithm_family)}; a code that fits a DICOM object is "
                "needed; take one of CID 7162"
            )
        groups = self.content_creator.split("=")
        is_plain = self.content_creator.isprintable() and "\\" not in self.content_creator
        if not is_plain or len(groups) > 3 or max(map(len, groups)) > 64:
            # The name itself is not shown: it is a person's.
            raise LabelError(
                f"the content_creator of the result has {len(self.content_creator)} characters in {len(groups)} groups; a "
                "printable name without a backslash, of at most three groups of 64 characters, is needed; shorten it"
            )

    @cached_property
    def digest(self) -> str:
        """Hex digest of all attributes; settings in another order are the same settings."""
        attributes = asdict(replace(self, settings=tuple(sorted(self.settings))))
        return hashlib.sha256(json.dumps(attributes, sort_keys=True, default=_as_json).encode()).hexdigest()


def _as_json(value: object) -> int | str:
    # A number of NumPy must give the same digest as the plain number; json does not take it.
    return int(value) if isinstance(value, np.integer) else str(value)


def derived_uid(*parts: str) -> str:
    """A UID of at most 64 characters that depends on `parts` only (SHA-512 under pydicom's registered
    root).
    """
    # each part with its length: otherwise "a" + "bc" and "ab" + "c" would have one UID
    return str(generate_uid(entropy_srcs=["monai-unet-app", *(f"{len(part)}:{part}" for part in parts)]))


def result_uid(source: Volume, result: ResultInfo, kind: str, part: str, *content: str) -> str:
    """The UID of one part (`part`: "series", "instance", "tracking 1" ...) of the object `kind` made from
    `source`.

    Depends on the patient (PatientID and IssuerOfPatientID) and the study, since images that are moved to another patient may
    keep their UIDs; on the slices of the source and of its further channels (as a set: SOP Instance UIDs, with the frames that
    are used of a multi-frame object), on the bundle and its settings, and on `content`. An instance names in `content` what it
    holds, and depends on all of `result` too, so that two contents never have the same UID; a series depends on what its
    instances must have in common.
    """
    owner = source.provenance.patient_digest, source.provenance.study_instance_uid or ""
    keys = chain(source.provenance.slice_keys, *(other.slice_keys for other in source.provenance.others))
    return uid_from(keys, owner, result, kind, part, *content)


def object_uids(source: Volume, result: ResultInfo, kind: str, *content: str) -> tuple[str, str]:
    """The SOP Instance UID of an object with this content, and the UID of its series; see `result_uid`."""
    return result_uid(source, result, kind, "instance", *content), result_uid(source, result, kind, "series")


def uid_from(
    sources: Iterable[str], owner: tuple[str, str], result: ResultInfo, kind: str, part: str, *content: str
) -> str:
    """As `result_uid`, for an object that is made from `sources`, whatever their order: SOP Instance UIDs.

    Its `owner` is the digest of the patient, and StudyInstanceUID.
    """
    # The reasons are in docs/decisions/0015-content-is-part-of-an-instances-uid.md.
    # All instances of a series have description and equipment in common (PS3.3 C.7.3.1, C.7.5.1).
    facts = result.manufacturer, result.algorithm_name, result.algorithm_version, result.series_description
    own = {"instance": (result.digest,), "series": facts}.get(part, ())
    settings = (f"{name}={value}" for name, value in sorted(result.settings))
    parts = (kind, part, *content, "result", *own, result.bundle_sha256, "settings", *settings)
    return derived_uid(*parts, "owner", *owner, "sources", *sorted(set(sources)))


def digest_of(array: NDArray[Any]) -> str:
    """Hex digest of the type, shape and values of an array, whatever its order in memory."""
    # Without shape and type, different arrays with the same bytes would have the same digest.
    digest = hashlib.sha256(str((array.shape, array.dtype.str)).encode())
    # Slice by slice, as `slice_by_slice` lays labels out: then nothing is copied.
    digest.update(np.ascontiguousarray(np.swapaxes(array, 0, 2)).data)
    return digest.hexdigest()


def tracking_uid(source: Volume, result: ResultInfo, number: int) -> str:
    """Tracking UID of segment `number`; SEG and SR share it."""
    return result_uid(source, result, "TRACKING", str(number))


def tracking_id(segment: Segment) -> str:
    """Tracking ID of a segment; SEG and SR share it."""
    return f"{segment.number} {segment.label}"[:64]


def source_headers(source: Volume, *, of_each: bool = True) -> tuple[Dataset, ...]:
    """The source's data sets without pixels: one data set for each slice along K, or a single multi-frame data set.

    Data sets in memory are taken as they are. Files are matched by SOP Instance UID, whatever their order in
    `source.provenance.files`. Absent Type 2 attributes of the patient and study modules are supplied empty. An empty
    DeidentificationMethod or FrameOfReferenceUID is dropped: empty, both are errors wherever they are repeated. Where
    the source was de-identified and does not say how, the method says just that.

    Args:
        source: DICOM volume.
        of_each: Read the whole header of each file. Else only the first header is whole; the others
            have the attributes of SLICE_KEYWORDS: place, UIDs and dates.

    Raises:
        LabelError: The source is not DICOM, or its files do not hold its instances.
        UnreadableFileError: A source file cannot be read.
    """
    uids, resampled = source.provenance.sop_instance_uids, source.provenance.resampled
    if source.provenance.kind != "dicom" or (len(uids) != source.shape[2] and not resampled):
        raise LabelError(
            f"the source is of kind {source.provenance.kind!r} with {len(uids)} instances for {source.shape[2]} slices; a "
            "DICOM series is needed to write a DICOM result; name the series or convert the image first"
        )
    by_uid, places = _instances(source.provenance, whole=of_each)
    if not of_each and uids[0] in places:
        [(_, by_uid[uids[0]])] = _headers([places[uids[0]]], whole=True)
    headers = tuple(map(_supplied, by_uid.values()))
    headers[0].carried = patient_and_study.carried(headers[0])
    return headers


def headers_of_others(source: Volume) -> tuple[Dataset, ...]:
    """The headers of the instances behind the further channels of a source, as `source_headers` gives those of the first.

    Raises:
        LabelError, UnreadableFileError: As `source_headers`.
    """
    found = (_instances(other, whole=False)[0].values() for other in source.provenance.others)
    return tuple(map(_supplied, chain.from_iterable(found)))


def _instances(series: Provenance, *, whole: bool) -> tuple[dict[str, Dataset], dict[str, Path]]:
    """By SOP Instance UID, in the order of the slices, a copy of each header; and the files of those that are in files.

    The UID of a multi-frame object is repeated for each of its frames; its header is needed once.
    """
    in_memory = (_named(patient_and_study.copied(header)) for header in series.headers)
    by_uid, places = {str(header.SOPInstanceUID): header for header in in_memory}, {}
    for path, header in _headers(series.files, whole=whole):
        by_uid[str(header.SOPInstanceUID)] = header
        places[str(header.SOPInstanceUID)] = path
    uids = series.sop_instance_uids
    if missing := [uid for uid in uids if uid not in by_uid]:
        raise LabelError(
            f"{len(missing)} of {len(uids)} source instances are no longer in their files (first: "
            f"{missing[0]}); the files must stay in place until the result is written; read the series again"
        )
    return {uid: by_uid[uid] for uid in uids}, places


def header_of(file: Path) -> Dataset:
    """The header of one instance, as `source_headers` gives the first of a series.

    Raises:
        LabelError: It does not name its study, series or class.
        UnreadableFileError: The file cannot be read.
    """
    header = _supplied(_named(load_dataset(file)))
    header.carried = patient_and_study.carried(header)
    return header


def _headers(files: Iterable[Path], *, whole: bool) -> list[tuple[Path, Dataset]]:
    """Each file and a copy of its header; files that have not changed are parsed once for all the objects of a result."""
    try:
        # `load_dataset` refuses by its name a file that is gone, which has no state.
        parsed = _parsed_headers(tuple((file, state_of(file)) for file in sorted(set(files))), whole)
    except UnreadableFileError as error:
        raise UnreadableFileError(
            f"a source file can no longer be read ({error}); it must stay in place until the result is written; "
            "read the series again"
        ) from error
    # Copies, because callers change headers and the cache keeps the parsed ones.
    return [(file, _named(patient_and_study.copied(header))) for file, header in parsed]


@lru_cache(maxsize=3)  # the last source: places of all slices, the whole header of the first, whole headers of all
def _parsed_headers(
    files: tuple[tuple[Path, tuple[int, int, int] | None], ...], whole: bool
) -> list[tuple[Path, Dataset]]:
    keywords = None if whole else SLICE_KEYWORDS.split()
    return [(file, load_dataset(file, keywords=keywords)) for file, _ in files]


def _named(header: Dataset) -> Dataset:
    if not header.get("SOPInstanceUID"):  # emptied by an anonymiser; the file header still has it
        header.SOPInstanceUID = header.file_meta.get("MediaStorageSOPInstanceUID", "")
    return header


def _supplied(header: Dataset) -> Dataset:
    """The header with absent Type 2 attributes supplied; its text is not decoded. Raises LabelError if a Type 1 attribute is
    missing.
    """
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
        if not header.get(keyword):
            raise LabelError(f"the source has no {keyword}; a result must refer to it; repair the source series first")
    for keyword in TYPE_2_KEYWORDS.split():
        if keyword not in header:
            setattr(header, keyword, "")
    for keyword in ("FrameOfReferenceUID", "DeidentificationMethod"):
        if keyword in header and not _holds(header, keyword):
            delattr(header, keyword)
    names_method = "DeidentificationMethod" in header or header.get("DeidentificationMethodCodeSequence")
    if header.get("PatientIdentityRemoved") == "YES" and not names_method:
        header.DeidentificationMethod = UNNAMED_METHOD
    return header


def _holds(header: Dataset, keyword: str) -> bool:
    """Whether an attribute has a value; it is not decoded for that."""
    value = header.get_item(keyword).value
    return bool(value.strip(b"\0 ") if isinstance(value, bytes) else value)


def check_has_frame(headers: Iterable[Dataset]) -> None:
    """Pass if every header names a frame of reference; an object with places in patient space must repeat it.

    Raises:
        LabelError: A header names none.
    """
    if not all(header.get("FrameOfReferenceUID") for header in headers):
        raise LabelError(
            "the source has no FrameOfReferenceUID; an object with positions in patient space must refer to it; repair the "
            "source series first, or write captures or a presentation state"
        )


def neutral(headers: tuple[Dataset, ...]) -> list[Dataset]:
    """Copies of the headers without patient and study details, for libraries that refuse unusual ones (a
    PatientSex of "U", a partial birth date, a rare character set). `stamp` puts the details back,
    verbatim."""
    copies = []
    for header in headers:
        bare = patient_and_study.copied(header)
        for keyword in patient_and_study.CARRIED_KEYWORDS:
            if keyword != "StudyInstanceUID":
                bare.pop(keyword, None)
        for keyword in TYPE_2_KEYWORDS.split():
            # highdicom reads these from its source images and fails where they are absent.
            setattr(bare, keyword, "")
        copies.append(bare)
    return copies


def content_moment(headers: Iterable[Dataset]) -> tuple[str, str]:
    """The latest (ContentDate, ContentTime) of the source as DICOM text; from the series, the acquisition or
    the study where slices have none, and 1970-01-01 where the source has no date at all."""
    moments = []
    for header in headers:
        # From the image itself outwards; the first level that has a date counts.
        for part in ("Content", "Series", "Acquisition", "Study"):
            if header.get(f"{part}Date"):
                moments.append((str(header[f"{part}Date"].value), str(header.get(f"{part}Time") or NO_TIME)))
                break
    # Dates and times of DICOM sort as text: YYYYMMDD, HHMMSS.
    return max(moments, default=(NO_DATE, NO_TIME))


def series_number(header: Dataset, kind: str, result: ResultInfo | None = None) -> int:
    """A stable SeriesNumber: the `series_number` of the kind plus the source's SeriesNumber modulo 1000, if there is any.

    The number of a result that a person corrected is BY_A_PERSON higher.
    """
    by_a_person = BY_A_PERSON if result is not None and result.content_creator else 0
    # Kinds are 1000 apart, so a larger number of the source would run into the next kind.
    return KIND[kind].series_number + (whole_number(header, "SeriesNumber") or 0) % 1000 + by_a_person


def for_highdicom(kind: str, uids: tuple[str, str], header: Dataset, result: ResultInfo) -> dict[str, Any]:
    """The arguments of highdicom's constructors for instance, series and equipment.

    Args:
        kind: Its name in `KINDS`.
        uids: Of the object and of its series, from `object_uids`.
        header: Of the first image of the source.
        result: What computed the content.
    """
    return {
        "sop_instance_uid": uids[0],
        "series_instance_uid": uids[1],
        "series_number": series_number(header, kind, result),
        "manufacturer": plain(result.manufacturer),
        "manufacturer_model_name": plain(result.algorithm_name),
        "software_versions": plain(result.algorithm_version),
        "device_serial_number": plain(result.bundle_sha256) or "0",
        "contributing_equipment": [contribution(result)],
    }


def series_description(result: ResultInfo, kind: str, images: int | None = None) -> str:
    """At most 64 characters (DICOM LO) that end in the number of source images, by which the results of a study that grew are
    told apart, the kind and "RESEARCH"."""
    count = "" if images is None else f", {images} image{'s' if images != 1 else ''},"
    tail = f"{count} {kind} RESEARCH"
    text = result.series_description or result.algorithm_name
    return f"{plain(text, 64 - len(tail))}{tail}"


def plain(text: str, length: int = 64) -> str:
    """`text` in printable ASCII and at most `length` characters, so that it fits every SpecificCharacterSet of a
    source.
    """
    return printable(text.encode("ascii", "replace").decode("ascii"), length)


def contribution(result: ResultInfo) -> hd.ContributingEquipment:
    """The software as contributing equipment, with bundle digest, settings and quality verdict in its
    description.
    """
    facts = [f"bundle sha256 {result.bundle_sha256}"]
    facts += [f"{name}={value}" for name, value in sorted(result.settings)]
    facts += [f"quality: {result.quality}"] if result.quality else []
    return hd.ContributingEquipment(
        manufacturer=plain(result.manufacturer),
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=plain(result.algorithm_name),
        software_versions=plain(result.algorithm_version),
        contribution_description=plain("; ".join(facts), 1024),
    )


def stamp(
    target: Dataset, headers: tuple[Dataset, ...], result: ResultInfo, kind: str, texts: Iterable[str] = ()
) -> None:
    """Make `target` belong to the source's patient and study, and depend on nothing but its input.

    Its text is in the source's character set; in UTF-8 if the segments, the creator's name or `texts`, further text of the
    object, need other letters.

    Raises:
        LabelError: The text must be in UTF-8, and that of the source is not in the character set that it names.
    """
    header = headers[0]
    segments = result.segments
    words = (*(segment.description for segment in segments), *chain(*(segment.texts for segment in segments)), *texts)
    in_utf8 = not all(patient_and_study.fits_own(word, header) for word in words)
    in_utf8 = in_utf8 or not patient_and_study.can_hold(result.content_creator, header)
    patient_and_study.carry_over(target, header, in_utf8=in_utf8)
    date, time = content_moment(headers)
    target.SeriesDate, target.SeriesTime = date, time
    images = sum(int(header.get("NumberOfFrames") or 1) for header in headers)
    target.SeriesDescription = series_description(result, kind, images)
    if "ContentDate" in target:
        target.ContentDate, target.ContentTime = date, time
    # highdicom takes these from the clock, and the same input must give the same bytes.
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        target.pop(keyword, None)
    for item in target.get("ContributingEquipmentSequence") or []:
        purpose = item.PurposeOfReferenceCodeSequence[0].CodeValue
        if "ContributionDateTime" in item and purpose != codes.DCM.AcquisitionEquipment.value:
            del item.ContributionDateTime  # highdicom reads the clock for its own item
    target.Manufacturer = plain(result.manufacturer)
    target.ManufacturerModelName = plain(result.algorithm_name)
    target.SoftwareVersions = plain(result.algorithm_version)
    target.DeviceSerialNumber = plain(result.bundle_sha256) or "0"

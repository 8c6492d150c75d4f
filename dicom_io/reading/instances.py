"""One file or data set -> one `Instance`: its header, and where its pixels are in the file.

A header is parsed once, up to the pixels, and only for the attributes that reading needs. Files that end early are refused
here, by following the lengths that they state up to the end: the values of a header do not show it. `bounded` limits the cost
of a file, `headers` checks its values.
"""

import filecmp
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import BytesLengthException
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.reading.bounded import BoundedFile, NoRegularFileError, parse
from dicom_io.reading.headers import fault_of, is_uid, shown, shown_uid
from dicom_io.reading.kept_attributes import CSA_BLOCKS, DISTINGUISHING

READ_ERRORS: tuple[type[Exception], ...] = (
    BytesLengthException, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError,
    RecursionError, struct.error, zlib.error,
)  # fmt: skip
"""What pydicom and its decoders raise on broken bytes; there is no common base class."""


class OddHeaderError(ValueError):
    """An attribute of a whole file does not hold what it must; the text says what was found, and what is needed."""


HEADER_KEYWORDS = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality PatientID IssuerOfPatientID PatientName "
    "FrameOfReferenceUID InstanceNumber ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing "
    "ConcatenationUID InConcatenationNumber InConcatenationTotalNumber NumberOfSlices ImagesInAcquisition SeriesType "
    "NumberOfTimeSlices NumberOfRRIntervals NumberOfTimeSlots SliceThickness SpacingBetweenSlices NumberOfFrames "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation SamplesPerPixel PhotometricInterpretation PlanarConfiguration PixelPaddingValue RescaleSlope "
    "RescaleIntercept ModalityLUTSequence RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor "
    "BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData "
    "SegmentedBluePaletteColorLookupTableData IssuerOfPatientIDQualifiersSequence "
    "RescaleType Units RealWorldValueMappingSequence PatientBirthDate PatientSex"
)
"""The attributes of a header that reading uses, together with DISTINGUISHING; others are not kept."""

SIEMENS_BLOCKS = [Tag(0x0029, tag) for block in CSA_BLOCKS for tag in (block, block << 8 | 0x10)]
"""The tags of Siemens' CSA image header: the name of its creator, and the header in the block that this reserves."""

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

_HEADER_TAGS = [*(Tag(keyword) for keyword in (*HEADER_KEYWORDS.split(), *DISTINGUISHING)), *SIEMENS_BLOCKS]
# Every result repeats these attributes of its source, so two copies of an instance must agree in them.
_OF_THE_STUDY = ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription", "StudyID")
_NO_SLICES = frozenset({"VERSION", "LOCKFILE", "README", "INDEX"})
"""Names of files without an ending that programs put beside images, empty or not."""

COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "PALETTE COLOR"})
"""PhotometricInterpretation of pictures in colour."""

_PIXEL_TAGS = frozenset({(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)})
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ENDINGS = (".dcm", ".dicom", ".ima")
_FIRST_TAGS = (0x00, 0x05, 0x08, 0x12, 0x13, 0x14, 0x16, 0x18)  # of group 0008, with which a data set may begin
_FIRST_VRS = (b"UL", b"OB", b"UI", b"CS", b"DA", b"TM")
Fragments = tuple[tuple[int, int], ...]
"""(first byte, length) in the file of each piece of compressed pixels."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One SOP instance: its header and where its pixels are.

    Attributes:
        header: Its attributes of HEADER_KEYWORDS and DISTINGUISHING, and its file meta information; never the pixels.
        path: Its file; None for a data set in memory.
        dataset: The whole data set if it is in memory; None for a file.
        has_pixels: Whether pixels follow the header.
        pixels_at: Byte in the file where uncompressed pixel values begin; None if there are none.
        pixel_bytes: Number of bytes of pixels, compressed or not; those of the inflated data set if the file is deflated.
        fragments: The pieces of compressed pixels, without the offset table.
    """

    header: Dataset
    path: Path | None = None
    dataset: Dataset | None = None
    has_pixels: bool = False
    pixels_at: int | None = None
    pixel_bytes: int = 0
    fragments: Fragments = ()

    @property
    def name(self) -> str:
        """The instance as a message calls it: its file, or its UID."""
        return shown(self.path) if self.path else f"data set {self.sop_instance_uid or 'without SOP Instance UID'}"

    @property
    def sop_class_uid(self) -> str:
        """Empty if neither the data set nor the file meta information names it."""
        return str(self.header.get("SOPClassUID") or _meta(self.header).get("MediaStorageSOPClassUID", ""))

    @property
    def sop_instance_uid(self) -> str:
        """Empty if neither names it; the file meta information still does where an anonymiser emptied the data set."""
        return str(self.header.get("SOPInstanceUID") or _meta(self.header).get("MediaStorageSOPInstanceUID", ""))

    @property
    def transfer_syntax(self) -> UID:
        """The encoding of the pixels."""
        return UID(_meta(self.header).get("TransferSyntaxUID") or ExplicitVRLittleEndian)

    @property
    def frames(self) -> int:
        """NumberOfFrames; 1 if it is absent."""
        return int(self.header.get("NumberOfFrames") or 1)

    def load(self) -> Dataset:
        """The whole data set with its pixels. Raises UnreadableFileError."""
        if self.dataset is None:
            assert self.path is not None
            return load_dataset(self.path, with_pixels=True)
        if getattr(self.dataset, "file_meta", None):
            return self.dataset
        copy, meta = Dataset(), FileMetaDataset()
        copy.update({element.tag: element for element in self.dataset})
        meta.TransferSyntaxUID = self.transfer_syntax  # a decoder asks for it
        return _with_meta(copy, meta)


def instance_of(dataset: Dataset) -> Instance:
    """The instance of a data set in memory, for example from the network. Raises UnreadableFileError if it is no object or is
    broken.
    """
    header = Dataset()
    with refusing("a data set in memory"):
        header.update({tag: dataset[tag] for tag in _HEADER_TAGS if tag in dataset})
        fault = fault_of(_with_meta(header, _meta(dataset)))
        size = len(dataset.PixelData or b"") if "PixelData" in dataset else 0
    if fault:
        raise broken_file("a data set in memory", fault)
    instance = Instance(header, dataset=dataset, has_pixels="PixelData" in dataset, pixel_bytes=size)
    if not instance.sop_class_uid and "Rows" not in dataset:
        raise UnreadableFileError(
            f"a {instance.name} names no SOP Class UID and holds no image; a DICOM object is needed"
        )
    return instance


def read_instance(path: Path) -> Instance | None:
    """The instance in a file; None for a file that is no DICOM object (or an index such as a DICOMDIR), and for a pipe, a
    socket or a device.

    Raises:
        UnreadableFileError: A DICOM file is truncated or broken; the message names it.
    """
    is_certain = True  # by the prefix DICM, or by a first attribute as in no other format
    try:
        with BoundedFile(path) as file:
            # PS3.10 7.1: 128 bytes of preamble, then the prefix DICM. A bare data set shows in its first 8 bytes.
            start = file.read(136)
            if not looks_like_dicom(start):
                if _should_be_dicom(path, start):
                    raise broken_file(path, f"its {file.size} bytes do not begin as one")
                return None
            is_certain = start[128:132] == b"DICM" or _is_bare_data_set(start)
            header, stream = parse(path, file, tags=_HEADER_TAGS)
            return _checked_instance(path, header, stream, is_certain=is_certain)
    # This error is an OSError too, so it has to be caught first: a pipe in a folder is passed by, not refused.
    except NoRegularFileError:
        return None
    except READ_ERRORS as error:
        # Other formats may begin with the bytes of a first tag: then the parser fails, and no slice is lost.
        if not is_certain:
            return None
        raise broken_file(path, error) from error


def series_uid_in(path: Path) -> str:
    """SeriesInstanceUID of a file that is broken further on; empty if its header does not get that far."""
    tag = Tag("SeriesInstanceUID")
    with suppress(*READ_ERRORS), BoundedFile(path) as file:
        element = parse(path, file, tags=[tag], last=tag)[0].get_item(tag)
        # A UID that is cut short could be that of another series.
        uid = "" if element is None or ends_early(element) else str(element.value.decode("ascii")).strip("\0 ")
        return uid if is_uid(uid) else ""
    return ""


def load_dataset(path: Path, *, with_pixels: bool = False, keywords: Sequence[str] | None = None) -> FileDataset:
    """The data set of one DICOM file, also of one without preamble and file meta information.

    Args:
        path: The file.
        with_pixels: Read to the end, pixels included.
        keywords: Only these attributes; None for all.

    Raises:
        UnreadableFileError: The file does not exist, is no DICOM, is broken or ends early.
    """
    try:
        with BoundedFile(path) as file:
            if not looks_like_dicom(file.read(136)):
                raise UnreadableFileError(f"{shown(path)} is not a DICOM file; one is needed; check the path")
            tags = None if keywords is None else [Tag(keyword) for keyword in keywords]
            dataset, _ = parse(path, file, with_pixels=with_pixels, tags=tags)
            ends_inside = file.tell() > file.size  # pydicom skips other attributes without reading them
    except READ_ERRORS as error:
        raise broken_file(path, error) from error
    if ends_inside or any(map(ends_early, dataset.values())):
        raise broken_file(path, "it ends within an attribute")
    _complete_meta(dataset)
    return dataset


def load_object(path: Path, kind: str, sop_class_uids: Sequence[str]) -> FileDataset:
    """The whole data set of an object of one of some SOP classes.

    Args:
        path: The file.
        kind: Names the kind of object in the message.
        sop_class_uids: The classes.

    Raises:
        UnreadableFileError: As `load_dataset`.
        LabelError: The object has another class.
    """
    dataset = load_dataset(Path(path), with_pixels=True)
    with refusing(path):
        # First the check, then the class: pydicom converts a value when it is asked for, and may log a broken value.
        fault = fault_of(_header_in(dataset))
        sop_class = None if fault else dataset.get("SOPClassUID")
    if fault:
        raise broken_file(path, fault)
    if sop_class not in sop_class_uids:
        raise LabelError(
            f"{shown(path)} has SOP class {shown_uid(sop_class)}; {kind} is needed; check which file it is"
        )
    return dataset


@contextmanager
def refusing(path: Path | str) -> Iterator[None]:
    """Turns the errors of pydicom, its decoders and numpy at broken values into a refusal of their file."""
    try:
        yield
    except READ_ERRORS as error:
        raise broken_file(path, error) from error
    except MemoryError as error:
        raise broken_file(path, "it needs more memory than there is") from error


def broken_file(path: Path | str, error: BaseException | str) -> UnreadableFileError:
    """The refusal of a file that cannot be read, without the values that libraries quote: they may be anybody's name."""
    text = " ".join(str(error).split())
    if isinstance(error, OddHeaderError):
        return UnreadableFileError(f"{shown(path)} holds {text}; export it again from its source, or leave it out")
    if isinstance(error, PermissionError):
        return UnreadableFileError(f"{shown(path)} may not be read; permission is needed; change it or leave it out")
    if not isinstance(error, str):
        # Quoted parts of the text are values of the file. An apostrophe within a word begins no quotation.
        text = f"{type(error).__name__}: " + re.sub(r"""(?<!\w)(['"]).*?\1(?!\w)""", "...", text)
    return UnreadableFileError(
        f"{shown(path)} is broken ({shown(text[:180])}); a whole DICOM file is needed; fetch it again or leave it out"
    )


def listed(value: object) -> list[object]:
    """The values of an attribute, which may hold any number of values."""
    if value is None or value == "":
        return []
    # A number alone is no list in pydicom.
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _with_meta(dataset: Dataset, meta: FileMetaDataset) -> Dataset:
    dataset.file_meta = meta
    return dataset


def _header_in(dataset: FileDataset) -> Dataset:
    """The attributes of a whole data set that `read_instance` would keep, not yet converted by pydicom."""
    return _with_meta(
        Dataset({tag: dataset.get_item(tag) for tag in _HEADER_TAGS if tag in dataset}), dataset.file_meta
    )


def _meta(dataset: Dataset) -> FileMetaDataset:
    return getattr(dataset, "file_meta", None) or FileMetaDataset()


def _complete_meta(dataset: FileDataset) -> None:
    """Adds the transfer syntax that pydicom guessed to a file that names none: a decoder needs it."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def looks_like_dicom(start: bytes) -> bool:
    """True for the prefix DICM, or for a data set without preamble that begins with group 0002 or 0008."""
    if start[128:132] == b"DICM":
        return True
    return len(start) >= 8 and start[:2] in (b"\x02\x00", b"\x08\x00") and start[3] == 0


def _is_bare_data_set(start: bytes) -> bool:
    """Whether bytes without preamble begin as a data set does, in explicit VR or with a short value in implicit VR."""
    begins = start[:2] == b"\2\0" or (start[:2] == b"\x08\0" and start[2] in _FIRST_TAGS and start[3] == 0)
    return begins and (start[4:6] in _FIRST_VRS or (len(start) >= 8 and start[5:8] == b"\0\0\0"))


def _should_be_dicom(path: Path, start: bytes) -> bool:
    """Whether a file that does not begin as DICOM is a lost slice: by its ending, or if it has no ending and is empty or all
    zeros, as an interrupted copy is. Hidden files are no slices: other systems leave them beside the files that they copy.
    """
    if path.name.startswith(".") or path.name.upper() in _NO_SLICES:
        return False
    return path.suffix.lower() in _ENDINGS or (not path.suffix and not start.strip(b"\0"))


def _checked_instance(path: Path, header: FileDataset, file: BinaryIO, *, is_certain: bool) -> Instance | None:
    """The instance; None for an index, or if it is no object. Raises UnreadableFileError if the file ends early."""
    if not is_certain and not {Tag("SOPClassUID"), Tag("Rows")} & header.keys():
        return None
    fault = "it ends within an attribute of its header" if any(map(ends_early, header.values())) else fault_of(header)
    if fault:
        raise broken_file(path, fault)
    instance = Instance(header, path)
    if MEDIA_STORAGE_DIRECTORY in (str(header.file_meta.get("MediaStorageSOPClassUID", "")), instance.sop_class_uid):
        return None
    # Classes of that name hold pixels. A file cut between two attributes contradicts no length, but lacks Rows.
    if UID(instance.sop_class_uid).name.endswith("Image Storage") and "Rows" not in header:
        raise broken_file(path, "it names an image class but contains no image")
    if not header.get("SOPClassUID") and "Rows" not in header:
        if not is_certain:
            return None
        raise broken_file(path, "it names no SOP Class UID and holds no image")
    is_implicit = bool(header.original_encoding[0])
    at, size, fragments = _pixel_values(path, file, expects_pixels="Rows" in header, is_implicit=is_implicit)
    if header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        at = None  # its bytes are those of the inflated data set
    _complete_meta(header)
    if instance.frames < 0:
        raise ValueError(f"NumberOfFrames is {instance.frames}")
    orientation_of(header)  # raises an error now, and not while series are grouped
    return Instance(header, path, None, "Rows" in header and size > 0, at, size, fragments)


def ends_early(element: object) -> bool:
    """True for an attribute, not yet converted by pydicom, that has fewer bytes than its length says."""
    if not isinstance(element, RawDataElement) or element.value is None:
        return False
    return element.length != _UNDEFINED_LENGTH and len(element.value) < element.length


def _pixel_values(
    path: Path, file: BinaryIO, *, expects_pixels: bool, is_implicit: bool
) -> tuple[int | None, int, Fragments]:
    """The byte where uncompressed pixel values begin (None if compressed), the number of bytes of pixels (0 if there are
    none), and the fragments of compressed pixels.

    Raises:
        UnreadableFileError: The file ends early.
    """
    # The parser stopped before the pixels, so the position of the file is that of their tag.
    position, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(position)
    if position > size:  # pydicom skips other attributes without reading them
        raise broken_file(path, f"its header runs to byte {position}, the file ends at {size}")
    start = file.read(12)
    # Group 7FE0 shows the byte order: it is E0 7F in little endian.
    order = "<" if start[:2] == b"\xe0\x7f" else ">"
    if len(start) < 12 or struct.unpack(order + "HH", start[:4]) not in _PIXEL_TAGS:
        if expects_pixels:
            raise broken_file(path, f"it ends at byte {size} before its pixel data")
        return None, 0, ()
    # PS3.5 7.1.2: in explicit VR, two bytes of VR and two reserved bytes stand before the length. The bytes alone do
    # not tell which encoding it is: a length of 102 x 102 x 2 is "HQ" in ASCII.
    length = struct.unpack(order + "L", start[4:8] if is_implicit else start[8:12])[0]
    value_at = position + (8 if is_implicit else 12)
    if length == _UNDEFINED_LENGTH:
        return None, size - value_at, _fragments(path, file, value_at, size)
    if value_at + length > size:
        raise broken_file(path, f"its pixel data need {length} bytes, {size - value_at} are left")
    return value_at, length, ()


def _fragments(path: Path, file: BinaryIO, position: int, size: int) -> Fragments:
    """The fragments of compressed pixels (PS3.5 A.4) up to their end; a decoder may read half a picture without an error."""
    fragments: list[tuple[int, int]] = []
    while position + 8 <= size:
        file.seek(position)
        group, element, length = struct.unpack("<HHL", file.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            # PS3.5 A.4: the first item is the offset table, which may be empty.
            return tuple(fragments[1:])
        if (group, element) != (0xFFFE, 0xE000):
            raise broken_file(path, f"its compressed pixel data hold no fragment at byte {position}")
        fragments.append((position + 8, length))
        position += 8 + length
    raise broken_file(path, f"its compressed pixel data run past its end at byte {size}")


def orientation_of(header: Dataset) -> tuple[float, ...] | None:
    """ImageOrientationPatient at the top level, six direction cosines in LPS, or None."""
    cosines = tuple(float(str(cosine)) for cosine in listed(header.get("ImageOrientationPatient")))
    return cosines if len(cosines) == 6 else None


def is_colour(header: Dataset) -> bool:
    """Whether a pixel has several values, or a number that stands for a colour."""
    return str(header.get("PhotometricInterpretation")) in COLOUR or int(header.get("SamplesPerPixel") or 1) > 1


def image_type(header: Dataset) -> tuple[str, ...]:
    """The words of ImageType in upper case."""
    return tuple(str(word).upper() for word in listed(header.get("ImageType")))


def differences(first: Instance, second: Instance) -> list[str] | None:
    """The attributes in which two instances of one UID differ; None if a volume or its results depend on one of them.

    They depend on the pixels and their encoding, on all attributes that reading uses, on the patient and on the study.
    """
    # shallow=False compares the bytes: size and time of change may be equal where the contents differ.
    if first.path and second.path and filecmp.cmp(first.path, second.path, shallow=False):
        return []
    dataset, other = first.load(), second.load()
    if first.transfer_syntax != second.transfer_syntax:
        return None
    tags = [tag for tag in dataset.keys() | other.keys() if dataset.get(tag) != other.get(tag)]
    relevant = {*_HEADER_TAGS, *map(Tag, _OF_THE_STUDY)}
    if any(tag in relevant or tag.group in (0x0010, 0x7FE0) for tag in tags):
        return None
    return sorted(keyword_for_tag(tag) or str(tag) for tag in tags)

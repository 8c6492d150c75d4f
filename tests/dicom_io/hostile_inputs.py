"""Well-formed objects of every kind, all of one person whose name must never be told, and ways to break them."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import phantoms
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from result_phantoms import RESULT
from source_phantoms import lopsided

from dicom_io.kinds.encodings import SYNTAXES
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, write_parametric_map
from dicom_io.pdf import write_pdf
from dicom_io.read import read_series
from dicom_io.rtstruct import write_rtstruct
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr

_NORMAL = phantoms.oblique_affine()[:3, 2] / np.linalg.norm(phantoms.oblique_affine()[:3, 2])
FOUR_TILES = {"NumberOfImagesInMosaic": ["4"], "SliceNormalVector": [f"{value:.6f}" for value in _NORMAL]}

IDENTITY = {
    "PatientName": "Canary^Hidden",
    "PatientID": "CANARY-ID-777",
    "PatientBirthDate": "17770203",
    "AccessionNumber": "CANARYACC7",
}
UIDS = {"StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.2", "FrameOfReferenceUID": "1.2.3.3"}
HEADER = IDENTITY | UIDS

EIGHT_BITS = (JPEGBaseline8Bit, JPEGExtended12Bit)
CODECS = (JPEG2000Lossless, HTJ2KLossless, JPEGLSLossless, JPEGLosslessSV1, RLELossless, *EIGHT_BITS)

LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<HHL", 0xFFFE, element, 0) for element in (0xE000, 0xE00D, 0xE0DD))
OPEN_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
_START = 132  # bytes of preamble and mark


@dataclass(frozen=True)
class Example:
    """A well-formed object: the reader for it, its file, and the reader's further arguments."""

    reader: str
    path: Path
    more: Mapping[str, str] = field(default_factory=dict)


def write_examples(folder: Path) -> dict[str, Example]:
    """One object of every kind that the readers know."""
    images = {**_plain_images(folder), **_compressed_images(folder), **_pictures(folder)}
    return {name: Example("read_series", path) for name, path in images.items()} | _results(folder)


def image(folder: Path, edit: phantoms.Edit | None = None, **header: object) -> Path:
    """A classic MR object of 16 x 12 pixels of 16 bits."""
    values = phantoms.lopsided_array((16, 12, 1)).astype(np.uint16)
    return phantoms.write_mr_series(folder, values, phantoms.oblique_affine(), header=HEADER | header, edit=edit)[0]


def enhanced(folder: Path, edit: phantoms.Edit | None = None, frames: int = 5) -> Path:
    """An enhanced MR object of 5 frames, or another number, of 16 x 12 pixels of 16 bits."""

    def named(dataset: Dataset, k: int) -> None:
        for keyword, value in HEADER.items():
            setattr(dataset, keyword, value)
        if edit is not None:
            edit(dataset, k)

    values = phantoms.lopsided_array((16, 12, frames)).astype(np.uint16)
    return phantoms.write_enhanced_mr(folder / "enhanced.dcm", values, phantoms.oblique_affine(), edit=named)


def picture(folder: Path, **header: object) -> Path:
    """A picture without patient space, of 20 x 15 pixels of 8 bits."""
    i, j = np.indices((20, 15))
    return phantoms.write_picture(folder / "picture.dcm", (i + j).astype(np.uint8), IDENTITY | header)


def mosaic(folder: Path, csa: bytes | None = None) -> Path:
    """A Siemens mosaic of four tiles of 8 x 6 pixels, or with another image header."""

    def edit(dataset: Dataset, _: int) -> None:
        content = csa_header(FOUR_TILES) if csa is None else csa
        dataset.ImageType, dataset.SpacingBetweenSlices = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], 3
        dataset.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
        dataset.add_new(0x00291010, "OB", content + b"\0" * (len(content) % 2))

    return image(folder, edit)


def csa_header(tags: Mapping[str, Sequence[str]]) -> bytes:
    """A Siemens image header of the second kind. Source: NiBabel, "Siemens format DICOM with CSA header"."""
    out = b"SV10\4\3\2\1" + struct.pack("<II", len(tags), 77)
    for name, values in tags.items():
        kind = b"FD" if "." in values[0] else b"US"
        out += struct.pack("<64si4siii", name.encode(), len(values), kind, 0, len(values), 77)
        for text in (value.encode() + b"\0" for value in values):
            out += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return out


def modality_table(dataset: Dataset, _: int) -> None:
    """Gives a data set a table of 600 entries in the place of a rescale."""
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [600, 0, 16], "US"
    item.add_new("LUTData", "OW", (np.arange(600) * 3).astype("<u2").tobytes())
    dataset.ModalityLUTSequence = [item]


def palette() -> dict[str, object]:
    """The attributes of a palette of 200 colours of 16 bits."""
    found: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for step, name in enumerate(("Red", "Green", "Blue"), start=1):
        found[f"{name}PaletteColorLookupTableDescriptor"] = [200, 0, 16]
        found[f"{name}PaletteColorLookupTableData"] = (np.arange(200) * step * 100).astype("<u2").tobytes()
    return found


def dicomdir(folder: Path, names: Sequence[object]) -> Path:
    """An index that lists files, each by the value of its ReferencedFileID."""
    index = Dataset()
    index.SOPClassUID, index.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3.9"
    records = []
    for name in names:
        record = Dataset()
        record.DirectoryRecordType, record.PatientID = "IMAGE", IDENTITY["PatientID"]
        record.add(pydicom.DataElement("ReferencedFileID", "LO", name))  # as CS it would be warned of
        records.append(record)
    index.DirectoryRecordSequence = pydicom.Sequence(records)
    return phantoms.save(index, folder / "DICOMDIR")


def _plain_images(folder: Path) -> dict[str, Path]:
    return {
        "explicit": image(folder / "explicit"),
        "implicit": encoded(image(folder / "implicit"), ImplicitVRLittleEndian),
        "big endian": encoded(image(folder / "big"), ExplicitVRBigEndian),
        "deflated": encoded(image(folder / "deflated"), DeflatedExplicitVRLittleEndian),
        "enhanced": enhanced(folder / "enhanced", frames=3),
        "modality table": image(folder / "table", modality_table),
        "mosaic": mosaic(folder / "mosaic"),
    }


def _compressed_images(folder: Path) -> dict[str, Path]:
    found = {syntax.keyword: compressed(image(folder / syntax.keyword), syntax) for syntax in CODECS}
    return found | {"enhanced in JPEG 2000": compressed(enhanced(folder / "enhanced_j2k", frames=3), JPEG2000Lossless)}


def _pictures(folder: Path) -> dict[str, Path]:
    i, j = np.indices((20, 15))
    rgb = np.stack([10 * i, 12 * j, 200 - 5 * i], -1).astype(np.uint8)
    colour = phantoms.write_picture(folder / "rgb" / "picture.dcm", rgb, IDENTITY)
    return {"colour": colour, "palette": picture(folder / "palette", **palette())}


def _results(folder: Path) -> dict[str, Example]:
    to, medium = folder / "results", folder / "medium"
    to.mkdir()
    for place in (folder / "source", medium / "A"):
        phantoms.write_mr_series(place, phantoms.lopsided_array((11, 9, 3)), phantoms.oblique_affine(), header=HEADER)
    source, of = read_series(folder / "source"), {"of": str(folder / "source")}
    labels, map_ = lopsided(source), source.with_array(source.array / 500)
    found = {}
    for encoding in (encoding for encoding in SYNTAXES if encoding != "fractional"):
        path = write_seg(labels, source, to / f"{encoding}.dcm", RESULT, encoding=encoding)
        found[f"SEG {encoding}"] = Example("read_seg", path, of)
    meaning = {"quantity": PROBABILITY, "unit": NO_UNIT, "label": "P"}
    front = labels.with_array(labels.array * (labels.array == 1))  # the other segment is empty: a shorter report
    report = write_sr(
        front, source, to / "sr.dcm", RESULT, seg=write_seg(front, source, to / "seg of the report.dcm", RESULT)
    )
    pages = b"%PDF-1.4\n" + b"x" * 500 + b"\n%%EOF"
    return found | {
        "RTSTRUCT": Example("read_rtstruct", write_rtstruct(labels, source, to / "rt.dcm", RESULT), of),
        "SR": Example("scan_files", report),
        "report": Example("read_sr", report),
        "map": Example(
            "read_parametric_map", write_parametric_map(map_, source, to / "pm.dcm", RESULT, MapMeaning(**meaning)), of
        ),
        "PDF": Example("read_pdf", write_pdf(pages, source, to / "pdf.dcm", RESULT, title="t")),
        "DICOMDIR": Example(
            "read_series", dicomdir(medium, [["A", path.name] for path in sorted((medium / "A").iterdir())])
        ),
    }


def encoded(path: Path, syntax: UID) -> Path:
    """Writes an uncompressed image of 16 bits anew in another transfer syntax."""
    dataset = pydicom.dcmread(path)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.is_deflated:
        dataset.save_as(path)
    else:
        order = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
        pydicom.dcmwrite(path, dataset, force_encoding=True, **order)
    return path


# --- compressed pixels


def codestream(syntax: UID, values: NDArray[np.unsignedinteger]) -> bytes:
    """One picture of shape (rows, columns), compressed as a transfer syntax says."""
    if syntax == RLELossless:
        shape = {"rows": values.shape[0], "columns": values.shape[1], "bits_allocated": 8 * values.itemsize}
        grey = {"samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2", "pixel_representation": 0}
        kind = {"bits_stored": 8 * values.itemsize, "number_of_frames": 1}
        return bytes(RLELosslessEncoder.encode(values, encoding_plugin="pydicom", **shape, **grey, **kind))
    encode = {
        JPEG2000Lossless: lambda: imagecodecs.jpeg2k_encode(values, codecformat="j2k", reversible=True),
        HTJ2KLossless: lambda: imagecodecs.htj2k_encode(values, reversible=True),
        JPEGLSLossless: lambda: imagecodecs.jpegls_encode(values),
        JPEGLosslessSV1: lambda: imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=8 * values.itemsize),
        JPEGBaseline8Bit: lambda: imagecodecs.jpeg8_encode(values),
        JPEGExtended12Bit: lambda: imagecodecs.jpeg8_encode(values),
    }
    return bytes(encode[syntax]())


def compressed(path: Path, syntax: UID) -> Path:
    """Compresses the frames of an uncompressed image of 16 bits in place, to 8 bits where a codec has no more."""
    dataset = pydicom.dcmread(path)
    frames = np.frombuffer(dataset.PixelData, "<u2").reshape(-1, dataset.Rows, dataset.Columns)
    if syntax in EIGHT_BITS:
        frames = (frames // 4).astype(np.uint8)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.save_as(path)
    return with_codestreams(path, syntax, [codestream(syntax, np.ascontiguousarray(frame)) for frame in frames], path)


def with_codestreams(path: Path, syntax: UID, streams: Sequence[bytes], target: Path, **header: object) -> Path:
    """Writes an image with other, compressed pixels and other attributes."""
    dataset = pydicom.dcmread(path)
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2) for stream in streams])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(target)
    return target


# --- breaking


def scattered(content: bytes, seed: str, start: int, end: int) -> bytes:
    """The same bytes, some of those from `start` to `end` overwritten, at places that the seed gives."""
    rng, out = random.Random(seed), bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, width = rng.randrange(start, max(end, start + 1)), rng.choice((1, 1, 2, 4, 8))
        for place in range(at, min(at + width, len(out))):
            out[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(out)


def torn(stream: bytes, seed: str) -> bytes:
    """A codestream with bytes overwritten, cut out, doubled or cut off, or replaced by noise altogether."""
    rng = random.Random(seed)
    how, at, width = rng.random(), rng.randrange(len(stream)), rng.randrange(1, 64)
    if how < 0.1:
        return stream[:at]
    if how < 0.15:
        return rng.randbytes(rng.randrange(2, 2000))
    if how < 0.2:
        return stream[:at] + stream[at + width :]
    if how < 0.25:
        return stream[:at] + stream[at : at + width] + stream[at:]
    return scattered(stream, seed, 0, len(stream) if how < 0.6 else min(len(stream), 120))


def elements_of(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(place, bytes of tag, VR and length, bytes of the value, tag) of every attribute at the top of a file in explicit VR
    little endian, up to its pixels.
    """
    at = _START
    while at + 8 <= len(content):
        group, number, vr, length = struct.unpack_from("<HH2sH", content, at)
        head = 12 if vr in LONG else 8
        if vr in LONG:
            length = struct.unpack_from("<L", content, at + 8)[0]
        if group == 0x7FE0 or length == UNDEFINED:
            return
        yield at, head, length, group << 16 | number
        at += head + length


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An attribute in explicit VR little endian; `length` is what it says of itself where that is not true."""
    said, head = len(value) if length is None else length, struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HL", 0, said) if vr in LONG else struct.pack("<H", said)) + value


def inserted(content: bytes, new: bytes) -> bytes:
    """A file in explicit VR little endian with an attribute put into the place that its tag has."""
    group, number = struct.unpack_from("<HH", new)
    before = [(at, head + length) for at, head, length, tag in elements_of(content) if tag < group << 16 | number]
    place = sum(before[-1])
    return content[:place] + new + content[place:]


def deflated(content: bytes, zeros: int) -> bytes:
    """A file in explicit VR little endian, deflated with that many zeros after it."""
    body = content[next(at for at, _, _, tag in elements_of(content) if tag >> 16 > 2) :]
    machine, block = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS), 1 << 24
    out = machine.compress(body) + machine.flush(zlib.Z_FULL_FLUSH)
    out += (machine.compress(bytes(block)) + machine.flush(zlib.Z_FULL_FLUSH)) * (zeros // block)
    meta = element(0x00020010, b"UI", DeflatedExplicitVRLittleEndian.encode())
    return bytes(128) + b"DICM" + meta + out + machine.flush()

"""Whatever bytes come in: a reading or a refusal in one line, in bounds of time and memory, and nothing else.

Everything is read in a process of its own (`hostile_judge.py`), so that a crash of a decoder is a failed test and no end of
all tests. Random places come from seeds: a complaint names the case that shows it again.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import hostile_inputs as hostile
import numpy as np
import pydicom
import pytest
from hostile_inputs import ITEM, ITEM_END, OPEN_ITEM, SEQUENCE_END, UNDEFINED, Example, element, inserted
from hostile_judge import MEMORY_BYTES, PATIENCE_S, Answer, Judge
from kept_examples import copied_examples
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit

from dicom_io.errors import DicomIoError, UnreadableFileError
from dicom_io.read import read_series
from dicom_io.reading.bounded import MAX_INFLATED_BYTES, inflate
from dicom_io.reading.instances import read_instance

SCATTERED = int(os.environ.get("SCATTERED", "30"))
SEGMENTS_JSON = Path(__file__).parents[2] / "bundles/hippocampus_mri_unet3d/configs/segments.json"

IMAGES = (
    "explicit", "implicit", "big endian", "deflated", "enhanced", "modality table", "mosaic", "colour", "palette",
    "enhanced in JPEG 2000", *(syntax.keyword for syntax in hostile.CODECS),
)  # fmt: skip
RESULTS = (
    "SEG binary", "SEG binary-deflated", "SEG labelmap", "SEG labelmap-rle", "SEG labelmap-jpegls", "RTSTRUCT", "map",
    "report", "PDF",
)  # fmt: skip
NEEDED_PERCENT = {"DICOMDIR": 90, "PDF": 70}  # what follows is nothing that a reader needs
KINDS = (*IMAGES, "SR", "DICOMDIR", *RESULTS)
WITH_HEADERS_OF_OTHERS = ("enhanced in JPEG 2000", *(syntax.keyword for syntax in hostile.CODECS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def examples(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Example]:
    return copied_examples(tmp_path_factory, folder / "examples")


@pytest.fixture(scope="module")
def judge(folder: Path) -> Iterator[Judge]:
    judge = Judge(folder)
    yield judge
    judge.close()


def place_of(example: Example) -> Path:
    """Where a broken copy is written: a DICOMDIR beside the files that it lists, all others in a folder of their own."""
    if example.path.name == "DICOMDIR":
        return example.path.with_name("DICOMDIR2")
    return example.path.parent / "broken" / "broken.dcm"


def check(judge: Judge, example: Example, contents: Iterable[tuple[object, bytes]], *, examined: bool = False) -> None:
    """Passes broken copies of an example that are read or refused as they should, and images examined if asked for."""
    path, found = place_of(example), []
    path.parent.mkdir(exist_ok=True)
    for case, content in contents:
        path.write_bytes(content)
        answers = [judge(example.reader, path, **example.more)]
        answers += [judge("examine", path)] if examined and example.reader == "read_series" else []
        found += [f"{case}: {complaint}" for answer in answers for complaint in answer.complaints]
    assert not found, "\n".join(found[:20])


def refused_at_a_tenth(folder: Path, reader: str, content: bytes) -> None:
    """Refused with a tenth of the pieces and items that a file may have, in a tenth of memory and time."""
    tenth = Judge(folder, memory_bytes=MEMORY_BYTES // 10)
    answer = tenth(f"{reader} at a tenth", written(folder / "many.dcm", content))
    tenth.close()
    refused(answer)
    assert answer.processor_s < PATIENCE_S / 10  # other processes may take the rest of the wall time


def refused(answer: Answer) -> str:
    """The message of a refusal that is nothing but that."""
    assert answer.complaints == []
    assert answer.outcome == "refused", answer
    return answer.message


# --- the judge itself


def test_the_judge_sees_what_must_not_be(tmp_path: Path) -> None:
    seen = {
        "leak": "leak: KeyError",
        "hang": "hang",
        "crash": "crash",
        "memory": "takes too much memory",
        "connect": "connects to",
        "leave": "leaves tmp",
        "log": "identity is told",
        "name": "identity is told",
        "lines": "not one line",
        "short": "a message of 5 characters",
    }
    judge = Judge(tmp_path, patience_s=3, reads=False)
    for how, complaint in seen.items():
        assert any(complaint in text for text in judge("misbehave", tmp_path, how=how).complaints), how
    judge.close()


def test_every_well_formed_object_is_read_without_a_complaint(judge: Judge, examples: dict[str, Example]) -> None:
    assert set(examples) == {*IMAGES, *RESULTS, "SR", "DICOMDIR"}
    for name, example in examples.items():
        answer = judge(example.reader, example.path, **example.more)
        assert (answer.outcome, answer.complaints) == ("read", []), name


# --- bytes that are missing, or others


@pytest.mark.parametrize("name", KINDS)
def test_an_object_cut_short_at_any_percent_is_refused(judge: Judge, examples: dict[str, Example], name: str) -> None:
    """But for an SR that is listed and not read: cut between two elements of its header, nothing of it tells that more came."""
    example = examples[name]
    content, path, read = example.path.read_bytes(), place_of(example), []
    whole_elements = ends_of_elements(example.path) if name == "SR" else set()
    path.parent.mkdir(exist_ok=True)
    for percent in range(NEEDED_PERCENT.get(name, 100)):
        cut = len(content) * percent // 100
        if cut in whole_elements:
            continue
        path.write_bytes(content[:cut])
        answer = judge(example.reader, path, **example.more)
        assert answer.complaints == [], percent
        read += [percent] if answer.outcome == "read" else []
    assert read == []


def ends_of_elements(path: Path) -> set[int]:
    """Places in a file at which an element of its data set ends, and in the tag, VR and length of the next."""
    elements = pydicom.dcmread(path).values()
    ends = [one.value_tell + one.length for one in elements if isinstance(one, RawDataElement)]
    return {end + n for end in ends for n in range(8)}


def headers_scattered(content: bytes, name: str, count: int) -> Iterator[tuple[str, bytes]]:
    end = min(len(content), 4000)
    return ((f"{name} {n}", hostile.scattered(content, f"{name} {n}", 132, end)) for n in range(count))


def pixels_scattered(content: bytes, name: str, count: int) -> Iterator[tuple[str, bytes]]:
    seeds = (f"{name} pixels {n}" for n in range(count))
    return ((seed, hostile.scattered(content, seed, len(content) // 2, len(content))) for seed in seeds)


@pytest.mark.parametrize("name", KINDS)
def test_scattered_bytes_are_read_or_refused(judge: Judge, examples: dict[str, Example], name: str) -> None:
    """Compressed images have the headers of others, so `examine`, which decodes no pixels, is asked about those others."""
    example, content = examples[name], examples[name].path.read_bytes()
    check(judge, example, headers_scattered(content, name, 60), examined=name not in WITH_HEADERS_OF_OTHERS)
    check(judge, example, pixels_scattered(content, name, 30))


@pytest.mark.parametrize("name", ["explicit", "SR", "report", "SEG labelmap", "RTSTRUCT", "map"])
def test_a_uid_that_swallows_the_patients_name_is_refused(
    judge: Judge, examples: dict[str, Example], name: str
) -> None:
    example, content = examples[name], examples[name].path.read_bytes()
    at, end = content.index(b"\x08\x00\x16\x00UI") + 6, content.index(b"\x10\x00\x20\x00LO")
    path = place_of(example)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content[:at] + struct.pack("<H", end - at - 2) + content[at + 2 :])
    assert "SOPClassUID holds" in refused(judge(example.reader, path, **example.more))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_more_scattered_bytes_are_read_or_refused(judge: Judge, examples: dict[str, Example], name: str) -> None:
    example, content = examples[name], examples[name].path.read_bytes()
    check(judge, example, headers_scattered(content, f"slow {name}", 5 * SCATTERED), examined=True)
    check(judge, example, pixels_scattered(content, f"slow {name}", 2 * SCATTERED))


OTHER_VRS = (b"DS", b"US", b"SQ", b"UI", b"UN", b"OB", b"PN", b"CS")
NO_VRS = (b"ZZ", b"\0\1", b"un")
OF_PIXELS = {
    pydicom.datadict.tag_for_keyword(keyword)
    for keyword in (
        "ImageType", "SOPClassUID", "Modality", "FrameOfReferenceUID", "SliceThickness", "PixelSpacing",
        "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
        "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    )
}  # fmt: skip
IN_EXPLICIT_VR = ("explicit", "enhanced", "palette", "mosaic", "SEG binary", "report", "map")


def other_vrs(examples: dict[str, Example], name: str) -> Iterator[tuple[str, bytes]]:
    """Copies of an object in which one attribute has another VR: the cases of a covering design.

    Each attribute has each of the OTHER_VRS for each reader. Kinds of images have a reader in common, which takes places and
    pixels from each kind in another way, so another attribute that several kinds have takes the VRs in turns. The NO_VRS are
    refused alike by the parser but in the file meta information and in sequences: elsewhere each pair of one of them with an
    attribute or with a kind of object is in some case.
    """
    content, kind = examples[name].path.read_bytes(), IN_EXPLICIT_VR.index(name)
    tags = {one: tags_of(examples, one) for one in IN_EXPLICIT_VR if examples[one].reader == examples[name].reader}
    for at, _, _, tag in hostile.elements_of(content):
        turns = [one for one in tags if tag in tags[one] and tag not in OF_PIXELS] or [name]
        vrs = [vr for n, vr in enumerate(OTHER_VRS) if (tag // 2 + n) % len(turns) == turns.index(name)]
        is_read_otherwise = tag >> 16 == 2 or content[at + 4 : at + 6] == b"SQ"
        no_vrs = NO_VRS if is_read_otherwise else (NO_VRS[(tag + kind) % len(NO_VRS)],)
        for vr in (*vrs, *no_vrs):
            yield f"{tag:08X} {vr!r}", content[: at + 4] + vr + content[at + 6 :]


def tags_of(examples: dict[str, Example], name: str) -> set[int]:
    return {tag for *_, tag in hostile.elements_of(examples[name].path.read_bytes())}


def test_the_cases_of_other_vrs_hold_each_pair(examples: dict[str, Example]) -> None:
    cases = {name: {case for case, _ in other_vrs(examples, name)} for name in IN_EXPLICIT_VR}
    tags = {name: tags_of(examples, name) for name in IN_EXPLICIT_VR}

    def wanted(tags: Iterable[int], vrs: Iterable[bytes]) -> set[str]:
        return {f"{tag:08X} {vr!r}" for tag, vr in product(tags, vrs)}

    readers = {examples[name].reader for name in IN_EXPLICIT_VR}
    for reader in readers:
        names = [name for name in IN_EXPLICIT_VR if examples[name].reader == reader]
        assert set.union(*(cases[name] for name in names)) >= wanted(
            set.union(*(tags[name] for name in names)), OTHER_VRS
        )
    for name in IN_EXPLICIT_VR:
        assert cases[name] >= wanted(tags[name] & OF_PIXELS, OTHER_VRS)
        assert cases[name] >= wanted((tag for tag in tags[name] if tag >> 16 == 2), NO_VRS)
        assert all(any(case.endswith(repr(vr)) for case in cases[name]) for vr in (*OTHER_VRS, *NO_VRS))
    assert set.union(*cases.values()) >= wanted(set.intersection(*tags.values()), NO_VRS)


@pytest.mark.parametrize("name", IN_EXPLICIT_VR)
def test_an_attribute_of_another_vr_is_read_or_refused(judge: Judge, examples: dict[str, Example], name: str) -> None:
    check(judge, examples[name], other_vrs(examples, name))


@pytest.mark.parametrize("name", IN_EXPLICIT_VR)
def test_an_attribute_of_another_length_is_read_or_refused(
    judge: Judge, examples: dict[str, Example], name: str
) -> None:
    content = examples[name].path.read_bytes()

    def cases() -> Iterator[tuple[str, bytes]]:
        for at, head, length, tag in hostile.elements_of(content):
            form, where = ("<L", at + 8) if head == 12 else ("<H", at + 6)
            most = UNDEFINED if head == 12 else 0xFFFF
            for other in (0, max(length - 1, 0), length + 1, length + 2, 2 * length + 8, most - 1, most):
                changed = bytearray(content)
                struct.pack_into(form, changed, where, min(other, most))
                yield f"{tag:08X} {other}", bytes(changed)

    check(judge, examples[name], cases())


@pytest.mark.parametrize("name", IN_EXPLICIT_VR)
def test_an_object_without_one_of_its_attributes_is_read_or_refused(
    judge: Judge, examples: dict[str, Example], name: str
) -> None:
    content = examples[name].path.read_bytes()

    def cases() -> Iterator[tuple[str, bytes]]:
        for at, head, length, tag in hostile.elements_of(content):
            yield f"{tag:08X} lacks", content[:at] + content[at + head + length :]
            yield f"{tag:08X} twice", content[:at] + content[at : at + head + length] + content[at:]

    check(judge, examples[name], cases())


def test_the_collected_broken_files_are_read_or_refused(judge: Judge, shared_data: Path) -> None:
    found = []
    for path in sorted(path for path in (shared_data / "hostile").rglob("*") if path.is_file()):
        for reader in ("read_series", "examine", "scan_files", "read_pdf", "read_sr", "load_segments"):
            found += [f"{path.name} {reader}: {text}" for text in judge(reader, path).complaints]
    assert not found, "\n".join(found)


# --- values that cannot be


IMPOSSIBLE = {
    "PixelSpacing": (
        "1e300\\1e300", "1e-300\\1e-300", "0\\0", "-1\\-1", "NaN\\NaN", "inf\\inf", "abc\\abc", "1", "1\\1\\1"),
    "ImagePositionPatient": ("1e300\\0\\0", "NaN\\0\\0", "inf\\0\\0", "a\\b\\c", "1\\2", "1e999\\0\\0"),
    "ImageOrientationPatient": (
        "0\\0\\0\\0\\0\\0", "NaN\\NaN\\NaN\\NaN\\NaN\\NaN",
        "1\\0\\0\\1\\0\\0", "1\\0\\0", "1e200\\0\\0\\0\\1\\0", "x\\0\\0\\0\\1\\0",
    ),
    "NumberOfFrames": ("-1", "1000000000", "1.5", "1e9", "abc", "2\\2", "9" * 11, "2"),
    "RescaleSlope": ("1e308", "NaN", "inf", "abc", "1\\2"),
    "RescaleIntercept": ("1e308", "NaN", "-inf", "abc"),
    "PhotometricInterpretation": ("", "GREY", "RGB", "YBR_FULL_422", "PALETTE COLOR", "MONO\nCHROME"),
    "SOPClassUID": ("../../etc/passwd", "1.2\n3", "1" * 2000),
    "SeriesInstanceUID": ("../../../../tmp/x", "1.2\0.3", "..\\.."),
    "Modality": ("M\nR", "M" * 1000),
}  # fmt: skip


@pytest.mark.parametrize("keyword", IMPOSSIBLE)
def test_a_value_that_cannot_be_is_refused(
    judge: Judge, examples: dict[str, Example], tmp_path: Path, keyword: str
) -> None:
    content, tag = examples["explicit"].path.read_bytes(), pydicom.datadict.tag_for_keyword(keyword)
    vr = pydicom.datadict.dictionary_VR(tag).encode()
    for at, head, length, found in list(hostile.elements_of(content)):
        if found == tag:
            content = content[:at] + content[at + head + length :]
    for text in IMPOSSIBLE[keyword]:
        path = tmp_path / "broken.dcm"
        path.write_bytes(inserted(content, element(tag, vr, text.encode() + b" " * (len(text) % 2))))
        refused(judge("read_series", path))
        assert judge("examine", path).complaints == []


WHOLE = {
    "Rows": (0, 11, 13, 65535),
    "Columns": (0, 15, 17, 65535),
    "BitsAllocated": (0, 1, 7, 8, 12, 24, 32, 64, 128, 65535),
    "BitsStored": (0, 17, 64, 65535),
    "HighBit": (0, 3, 16, 65535),
    "PixelRepresentation": (2, 65535),
    "SamplesPerPixel": (0, 2, 3, 4, 65535),
}
HARMLESS = {  # fewer pixels, the default, what a codestream says itself, what no decoder here looks at
    *(("Rows", 11), ("Columns", 15), ("SamplesPerPixel", 0)),
    *(("BitsAllocated", bits) for bits in (8, 32, 64)),
    *(("HighBit", value) for value in WHOLE["HighBit"]),
}


@pytest.mark.parametrize("name", ["explicit", "deflated", "JPEGLSLossless", "RLELossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("keyword", WHOLE)
def test_a_number_of_pixels_or_bits_that_cannot_be_is_refused(
    judge: Judge, examples: dict[str, Example], tmp_path: Path, name: str, keyword: str
) -> None:
    for value in WHOLE[keyword]:
        dataset = pydicom.dcmread(examples[name].path)
        setattr(dataset, keyword, value)
        dataset.save_as(tmp_path / "broken.dcm")
        answer = judge("read_series", tmp_path / "broken.dcm")
        assert answer.complaints == [], value
        assert answer.outcome == "refused" or (keyword, value) in HARMLESS, value


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_sequence(content: bytes, items: bytes, *, undefined: bool, tag: int = 0x00400275) -> bytes:
    value = items + (SEQUENCE_END if undefined else b"")
    return inserted(content, element(tag, b"SQ", value, UNDEFINED if undefined else None))


def sized(begin: bytes, inside: int) -> bytes:
    """The heads of an item and of the sequence in it, which holds so many bytes."""
    item, tag_and_vr = begin[:4], begin[8:16]
    return item + struct.pack("<L", 12 + inside) + tag_and_vr + struct.pack("<L", inside)


PER_FRAME, SHARED = 0x52009230, 0x52009229


@pytest.mark.parametrize("tag", [0x00400275, PER_FRAME, SHARED], ids=["foreign", "per frame", "shared"])
@pytest.mark.parametrize("undefined", [True, False], ids=["to a delimiter", "of a length"])
def test_ten_thousand_nested_sequences_are_refused_or_passed_by(
    judge: Judge, examples: dict[str, Example], tmp_path: Path, undefined: bool, tag: int
) -> None:
    if undefined:
        begin, end = OPEN_ITEM + element(tag, b"SQ", b"", UNDEFINED), SEQUENCE_END + ITEM_END
    else:
        begin, end = ITEM + element(tag, b"SQ", b""), b""
    levels = range(10_000)
    heads = [begin] * len(levels) if undefined else [sized(begin, len(begin) * inside) for inside in reversed(levels)]
    content = with_sequence(
        examples["explicit"].path.read_bytes(), b"".join(heads) + end * len(levels), undefined=undefined, tag=tag
    )
    path = written(tmp_path / "deep.dcm", content)
    for reader, more in (("read_series", {}), ("examine", {}), ("deidentify", {"output": str(tmp_path / "out")})):
        assert judge(reader, path, **more).complaints == []


MANY = {
    "to a delimiter": (0x00400275, ITEM),
    "to a delimiter, per frame": (PER_FRAME, ITEM),
    "open": (0x00400275, OPEN_ITEM + ITEM_END),
}


@pytest.mark.parametrize(
    "tag", [0x00400275, pytest.param(PER_FRAME, marks=pytest.mark.slow)], ids=["foreign", "per frame"]
)
def test_a_million_empty_items_of_a_length_are_refused_or_passed_by(
    judge: Judge, examples: dict[str, Example], tmp_path: Path, tag: int
) -> None:
    content = with_sequence(examples["explicit"].path.read_bytes(), ITEM * 1_000_000, undefined=False, tag=tag)
    path = written(tmp_path / "many.dcm", content)
    assert judge("read_series", path).complaints == []
    assert judge("deidentify", path, output=str(tmp_path / "out")).complaints == []
    assert not list((tmp_path / "out").rglob("*.dcm"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("," in name or name == "open")) for name in MANY]
)
def test_a_million_empty_items_to_a_delimiter_are_refused(
    examples: dict[str, Example], tmp_path: Path, name: str
) -> None:
    """A tenth of a million items."""
    tag, item = MANY[name]
    content = with_sequence(examples["explicit"].path.read_bytes(), item * 100_000, undefined=True, tag=tag)
    refused_at_a_tenth(tmp_path, "read_series", content)


@pytest.mark.slow
def test_a_header_of_millions_of_attributes_is_refused(examples: dict[str, Example], tmp_path: Path) -> None:
    """A tenth of 3.7 million attributes."""
    many = b"".join(element(0x00090000 + n, b"LO", b"") for n in range(0x1000, 0x10000)) * 6
    refused_at_a_tenth(tmp_path, "scan_files", inserted(examples["explicit"].path.read_bytes(), many))


# --- claims of size


def test_a_length_of_four_gibibytes_takes_no_memory(judge: Judge, examples: dict[str, Example], tmp_path: Path) -> None:
    content = examples["explicit"].path.read_bytes()
    for tag in (0x00080005, 0x00100010, 0x00400275, 0x00280010, PER_FRAME):
        for vr in (b"UN", b"OB", b"SQ", b"UT"):
            path = written(tmp_path / "long.dcm", inserted(content, element(tag, vr, b"", 0xFFFFFFF0)))
            refused(judge("read_series", path))


CLAIMS = [(65535, 65535, 10000), (32767, 32767, 1), (30000, 30000, 1), (65535, 16383, 1), (1, 1, 2**30), (12, 16, 1000)]


@pytest.mark.parametrize(
    "name",
    ["explicit", "deflated", "enhanced", "enhanced in JPEG 2000", *(syntax.keyword for syntax in hostile.CODECS)],
)
@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_a_claim_of_pixels_that_are_not_there_takes_no_memory(
    judge: Judge, examples: dict[str, Example], tmp_path: Path, name: str, claim: tuple[int, int, int]
) -> None:
    dataset = pydicom.dcmread(examples[name].path)
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = claim
    dataset.save_as(tmp_path / "claim.dcm")
    refused(judge("read_series", tmp_path / "claim.dcm"))


def test_frames_that_only_a_shared_group_describes_are_refused_however_many(judge: Judge, tmp_path: Path) -> None:
    def shared_only(dataset: Dataset, _: int) -> None:
        del dataset.PerFrameFunctionalGroupsSequence
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1, 1, 960

    assert "their positions are unknown" in refused(judge("read_series", hostile.enhanced(tmp_path, shared_only)))


@pytest.mark.parametrize(
    "reader",
    ["read_series", "deidentify", *(pytest.param(r, marks=pytest.mark.slow) for r in ("examine", "scan_files"))],
)
def test_a_small_file_that_inflates_to_ten_gigabytes_is_refused(
    judge: Judge, examples: dict[str, Example], folder: Path, reader: str
) -> None:
    path = folder / "bomb.dcm"
    if not path.is_file():
        path.write_bytes(hostile.deflated(examples["explicit"].path.read_bytes(), 10 << 30))
    assert path.stat().st_size < MAX_INFLATED_BYTES / 90
    answer = judge(reader, path, **({"output": str(folder / "bombed")} if reader == "deidentify" else {}))
    assert answer.complaints == []
    if reader in ("read_series", "scan_files"):
        assert "deflated bytes become more than" in refused(answer)


@pytest.mark.parametrize("size", [0, 1000, 1 << 20, 3 << 20, 5_000_001])
def test_what_was_deflated_is_inflated_whole_whatever_stands_behind_it(size: int) -> None:
    for content in (bytes(size), np.random.default_rng(1).bytes(size)):
        machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        deflated = machine.compress(content) + machine.flush()
        for behind in (b"", b"\0", b"x" * 200_000):
            assert inflate(deflated + behind) == content


def test_bytes_behind_a_deflated_data_set_cost_nothing() -> None:
    """128 MB took 50 s of a core when each piece of them was added to those before it."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    content = machine.compress(b"a data set") + machine.flush() + bytes(128 << 20)
    began = time.process_time()
    assert inflate(content) == b"a data set"
    assert time.process_time() - began < 2


def test_a_picture_of_the_claimed_size_that_does_not_fit_into_memory_is_refused(
    judge: Judge, examples: dict[str, Example], tmp_path: Path
) -> None:
    """Header and codestream agree, so nothing but the memory speaks against it."""
    rows = columns = 30000
    stream = bytearray(hostile.codestream(JPEGBaseline8Bit, np.zeros((16, 16), np.uint8)))
    at = stream.find(b"\xff\xc0")
    struct.pack_into(">HH", stream, at + 5, rows, columns)
    example = examples["JPEGBaseline8Bit"].path
    size = {"Rows": rows, "Columns": columns}
    path = hostile.with_codestreams(example, JPEGBaseline8Bit, [bytes(stream)], tmp_path / "large.dcm", **size)
    answer = judge("read_series", path)
    assert answer.outcome == "refused"
    assert "memory" in answer.message


def test_a_jpeg_of_ten_thousand_scans_is_refused(judge: Judge, examples: dict[str, Example], tmp_path: Path) -> None:
    stream = hostile.codestream(JPEGBaseline8Bit, np.zeros((12, 16), np.uint8))
    start = stream.find(b"\xff\xda")
    scans = stream[:start] + stream[start:-2] * 10_000 + stream[-2:]
    example = examples["JPEGBaseline8Bit"].path
    path = hostile.with_codestreams(example, JPEGBaseline8Bit, [scans], tmp_path / "scans.dcm")
    assert "10000 scans" in refused(judge("read_series", path))


def test_a_palette_whose_segments_expand_to_gigabytes_is_refused(judge: Judge, tmp_path: Path) -> None:
    expanding = struct.pack("<HHH", 0, 1, 5) + struct.pack("<HHH", 1, 65535, 5) * 10_000
    repeating = struct.pack("<HHH", 0, 1, 5) + struct.pack("<HHHH", 2, 65535, 0, 0) * 3
    for segments in (expanding, repeating, b"\1", b"\1\0\1\0"):
        lut = {key: value for key, value in hostile.palette().items() if not key.endswith("Data")}
        lut |= {f"Segmented{name}PaletteColorLookupTableData": segments for name in ("Red", "Green", "Blue")}
        refused(judge("read_series", hostile.picture(tmp_path, **lut)))


@pytest.mark.parametrize(
    "descriptor",
    [[0, 0, 16], [65535, 0, 16], [200, 40000, 16], [200, 0, 8], [200, 0, 12], [200, 0], [1, 0, 16]],
    ids=str,
)
def test_a_table_whose_descriptor_lies_is_read_or_refused(judge: Judge, tmp_path: Path, descriptor: list[int]) -> None:
    keys = [key for key in hostile.palette() if key.endswith("Descriptor")]
    path = hostile.picture(tmp_path, **hostile.palette() | dict.fromkeys(keys, descriptor))
    assert judge("read_series", path).complaints == []

    def lying(dataset: Dataset, k: int) -> None:
        hostile.modality_table(dataset, k)
        dataset.ModalityLUTSequence[0].LUTDescriptor = descriptor

    assert judge("read_series", hostile.image(tmp_path, lying)).complaints == []


# --- frames and tiles


@pytest.mark.parametrize("count", [0, 1, 4, 6, 2000])
def test_functional_groups_that_are_not_one_a_frame_are_refused(judge: Judge, tmp_path: Path, count: int) -> None:
    def wrong(dataset: Dataset, _: int) -> None:
        own = list(dataset.PerFrameFunctionalGroupsSequence)
        dataset.PerFrameFunctionalGroupsSequence = [own[n % 5] for n in range(count)]

    refused(judge("read_series", hostile.enhanced(tmp_path, wrong)))


def test_functional_groups_without_content_are_refused(judge: Judge, tmp_path: Path) -> None:
    def empty_items(dataset: Dataset, _: int) -> None:
        dataset.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(5)]

    def empty_macros(dataset: Dataset, _: int) -> None:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PlanePositionSequence = []
        dataset.SharedFunctionalGroupsSequence = []

    def other_things(dataset: Dataset, _: int) -> None:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PlanePositionSequence[0].ImagePositionPatient = [1, 2]

    for number, edit in enumerate((empty_items, empty_macros, other_things)):
        refused(judge("read_series", hostile.enhanced(tmp_path / str(number), edit)))


def test_a_mosaic_with_an_image_header_of_noise_is_refused(judge: Judge, tmp_path: Path) -> None:
    right = hostile.csa_header(hostile.FOUR_TILES)
    for n in range(150):
        noise = hostile.torn(right, f"csa {n}") if n % 3 else np.random.default_rng(n).bytes(900)
        assert judge("read_series", hostile.mosaic(tmp_path / "mosaic", noise)).complaints == [], n


@pytest.mark.parametrize(
    ("count", "normal"),
    [("4096", "1 0 0"), ("193", "1 0 0"), ("0", "1 0 0"), ("-4", "1 0 0"), ("1e9", "1 0 0"), ("9" * 5000, "1 0 0"),
     ("4", "0 0 0"), ("4", "nan nan nan"), ("4", "1e300 0 0"), ("4", "1 0"), ("4", "a b c")],
)  # fmt: skip
def test_a_mosaic_of_impossible_tiles_is_refused(judge: Judge, tmp_path: Path, count: str, normal: str) -> None:
    csa = hostile.csa_header({"NumberOfImagesInMosaic": [count], "SliceNormalVector": normal.split()})
    refused(judge("read_series", hostile.mosaic(tmp_path, csa)))


# --- names, and files that are none


OUTSIDE = (
    ["..", "secret.dcm"], ["../secret.dcm"], ["/etc/passwd"], ["A", "..", "..", "secret.dcm"], ["A\\\\..\\\\secret.dcm"],
    [".", "secret.dcm"], ["A" * 256], ["A\nB"], ["A"] * 9, [""], ["C:/secret.dcm"],
)  # fmt: skip


@pytest.mark.parametrize("parts", OUTSIDE, ids=str)
def test_an_index_leads_to_no_file_outside_of_its_folder(tmp_path: Path, parts: list[str]) -> None:
    hostile.image(tmp_path).rename(tmp_path / "secret.dcm")
    (tmp_path / "medium").mkdir()
    index = hostile.dicomdir(tmp_path / "medium", [parts])
    with pytest.raises(DicomIoError) as refusal:
        read_series(index)
    assert str(refusal.value).isprintable()


def test_a_pipe_a_socket_and_a_device_are_passed_by_at_once(tmp_path: Path) -> None:
    hostile.image(tmp_path / "s")
    os.mkfifo(tmp_path / "s" / "pipe.dcm")
    (tmp_path / "s" / "zero.dcm").symlink_to("/dev/zero")
    (tmp_path / "s" / "round").symlink_to(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s" / "socket.dcm"))
        start = time.monotonic()
        assert read_series(tmp_path / "s").shape == (16, 12, 1)
        assert time.monotonic() - start < 5
    for name in ("pipe.dcm", "zero.dcm", "socket.dcm"):
        assert read_instance(tmp_path / "s" / name) is None


def test_names_that_no_terminal_shows_are_told_in_one_line(tmp_path: Path) -> None:
    path = hostile.image(tmp_path / "s")
    strange = path.with_name("a\n\x1b[31mb\udcff.dcm")
    strange.write_bytes(path.read_bytes()[:500])
    path.unlink()
    with pytest.raises(UnreadableFileError) as refusal:
        read_series(tmp_path / "s")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("seed", range(60))
def test_a_segments_file_of_other_values_is_read_or_refused(judge: Judge, folder: Path, seed: int) -> None:
    rng, document = random.Random(seed), json.loads(SEGMENTS_JSON.read_text())
    for _ in range(rng.choice((1, 1, 3))):
        holder, keys = document, [rng.choice(list(document))]
        while isinstance(holder[keys[-1]], dict | list) and holder[keys[-1]] and rng.random() < 0.85:
            holder = holder[keys[-1]]
            keys.append(rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder)))
        holder[keys[-1]] = rng.choice(
            [None, 1e999, -1, 2**70, "", "x" * 5000, "\0", [], {}, [[]] * 50, True, "Größe", "..\\.."]
        )
    path = written(folder / "segments.json", json.dumps(document).encode())
    assert judge("load_segments", path).complaints == []

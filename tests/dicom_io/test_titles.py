from __future__ import annotations

from pathlib import Path

import pytest
from hostile_inputs import element, inserted
from phantoms import lopsided_array, oblique_affine, write_mr_series
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_io import Volume, read_series
from dicom_io.errors import DicomIoError, LabelError
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.reading.instances import read_instance
from dicom_io.reading.titles import numbers_called, title_of


def line(folder: Path, **header: object) -> str:
    instance = read_instance(write_mr_series(folder, lopsided_array(), oblique_affine(), header=header)[0])
    assert instance is not None
    return title_of(instance).line


def test_a_series_is_called_as_the_scanner_called_it(tmp_path: Path) -> None:
    header = {"SeriesNumber": 3, "SeriesDescription": "T1 MPRAGE", "ProtocolName": "Head", "SeriesTime": "143205.12"}
    assert line(tmp_path, **header) == "no. 3, T1 MPRAGE, protocol Head, 14:32"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("Doe^Jane", "T1 of JANE DOE", "T1 of ... ..."),
        ("Müller^Jörg", "Schädel MÜLLER", "Schädel ..."),
        ("Li^Bo", "LI, Bo: T2 FLAIR of liver", "..., ...: T2 FLAIR of liver"),
        ("Doe^Jane", "DOESN'T", "DOESN'T"),
        ("Montgomery^Jane", "x" * 55 + " of Montgomery", "x" * 55 + " of ..."),
    ],
)
def test_what_is_the_patients_is_not_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    names = {
        "SpecificCharacterSet": "ISO_IR 192",
        "PatientName": name,
        "SeriesDescription": text,
        "PatientID": "4711",
        "SeriesNumber": 3,
    }
    assert line(tmp_path, **names, ProtocolName="no 4711") == f"no. 3, {told}, protocol no ..."


@pytest.mark.filterwarnings("ignore:Found unknown escape sequence")  # the third header holds such a sequence
@pytest.mark.parametrize(
    "header", [{}, {"SeriesTime": "25"}, {"SeriesDescription": "\x1b[31m"}, {"SeriesNumber": None}]
)
def test_what_cannot_be_told_is_left_out(tmp_path: Path, header: dict[str, object]) -> None:
    assert line(tmp_path, **header).isprintable()
    assert "25" not in line(tmp_path, **header)


def write_with_name(folder: Path, keyword: str, vr: bytes) -> Path:
    """A series with a name where another value belongs, and one of its files."""

    def edit(dataset: Dataset, _: int) -> None:
        if keyword in dataset:
            del dataset[keyword]

    paths = write_mr_series(folder, lopsided_array(), oblique_affine(), edit=edit)
    for path in paths:
        path.write_bytes(inserted(path.read_bytes(), element(Tag(keyword), vr, b"Huber^Klara ")))
    return paths[0]


KEYWORDS = {
    "SeriesNumber": b"IS",
    "InstanceNumber": b"IS",
    "ImageType": b"CS",
    "SeriesTime": b"TM",
    "EchoTime": b"DS",
}


@pytest.mark.parametrize(("keyword", "vr"), KEYWORDS.items())
def test_a_value_of_another_kind_is_neither_told_nor_logged(
    tmp_path: Path, keyword: str, vr: bytes, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    path = write_with_name(tmp_path, keyword, vr)

    @refusing_odd_headers
    def write(volume: Volume) -> None:
        raise AttributeError

    instance = read_instance(path)
    assert instance is not None
    told = title_of(instance).line
    with pytest.raises(LabelError, match=keyword if vr in (b"IS", b"DS") else "AttributeError") as refused:
        write(read_series(tmp_path))
    assert "HUBER" not in f"{told} {refused.value} {caplog.text} {[str(one.message) for one in recwarn]}".upper()


@pytest.mark.parametrize("keyword", ["ImageOrientationPatient", "PhotometricInterpretation", "RescaleSlope"])
def test_a_refusal_quotes_no_value_of_a_header(tmp_path: Path, keyword: str) -> None:
    write_with_name(tmp_path, keyword, dictionary_VR(keyword).encode())
    with pytest.raises(DicomIoError) as refused:
        read_series(tmp_path)
    assert "huber" not in str(refused.value).lower()


def test_a_name_is_found_as_tables_show_it_whatever_its_white_space() -> None:
    named = [(4, "Liver\nleft"), (7, " Spleen"), (9, "liver left")]
    assert numbers_called(Dataset(), named, ["Spleen", "Liver left"], "region") == [7, 4]
    assert numbers_called(Dataset(), named, ["Liver  left "], "region") == [4]
    with pytest.raises(LabelError, match=r"^2 region\(s\) are called 'Liver left'"):
        numbers_called(Dataset(), [*named, (8, "Liver left")], ["Liver left"], "region")
    with pytest.raises(LabelError, match=r"requested 2 time\(s\)"):
        numbers_called(Dataset(), named, ["Liver left", "Liver\tleft"], "region")

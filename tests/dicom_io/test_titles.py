from __future__ import annotations

from pathlib import Path

import pytest
from phantoms import lopsided_array, oblique_affine, write_mr_series

from dicom_io.reading.instances import read_instance
from dicom_io.reading.titles import title_of


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


@pytest.mark.parametrize(
    "header", [{}, {"SeriesTime": "25"}, {"SeriesDescription": "\x1b[31m"}, {"SeriesNumber": None}]
)
def test_what_cannot_be_told_is_left_out(tmp_path: Path, header: dict[str, object]) -> None:
    assert line(tmp_path, **header).isprintable()
    assert "25" not in line(tmp_path, **header)

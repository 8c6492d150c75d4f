"""The table of result objects: what every row must hold, and what nobody has to import for it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
from pydicom.uid import UID

from dicom_io.kinds import FORMATS, KIND, KINDS, NAMES, RESULT_KINDS, kind_of_class
from dicom_io.objects.result_content import ResultContent

SURFACE_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.5"  # its Modality is SEG too


def test_no_two_kinds_share_a_name_a_format_a_class_or_a_series_number() -> None:
    for values in (
        NAMES,
        FORMATS,
        [kind.series_number for kind in KINDS],
        [uid for kind in KINDS for uid in kind.sop_classes],
    ):
        assert len(set(values)) == len(values)
    assert all(kind.series_number % 1000 == 0 for kind in KINDS)  # the source's own number, modulo 1000, is added


def test_an_object_is_sent_and_written_after_the_objects_that_it_refers_to() -> None:
    for order in (KINDS, RESULT_KINDS):
        names = [kind.name for kind in order]
        for kind in order:
            assert all(names.index(other) < names.index(kind.name) for other in kind.refers_to)


@pytest.mark.parametrize("kind", RESULT_KINDS, ids=lambda kind: kind.name)
def test_every_kind_with_a_format_has_a_writer_that_takes_a_result(kind) -> None:
    written = import_module(kind.module).write_result
    assert list(written.__annotations__) == ["content", "path", "return"]
    assert written.__annotations__["content"] is ResultContent


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_told_by_its_sop_class(kind) -> None:
    for uid in kind.sop_classes:
        if not uid.endswith("."):
            assert kind_of_class(uid) is kind
            assert UID(uid).name != uid or uid == KIND["SEG"].sop_classes[1]  # the standard's, which pydicom knows


def test_reports_and_captures_of_every_class_are_known_and_a_note_is_no_report() -> None:
    assert kind_of_class("1.2.840.10008.5.1.4.1.1.88.34") is KIND["SR"]
    assert kind_of_class("1.2.840.10008.5.1.4.1.1.88.59") is KIND["KO"]
    assert kind_of_class("1.2.840.10008.5.1.4.1.1.7.4") is KIND["SC"]


@pytest.mark.parametrize(
    "uid", [SURFACE_SEGMENTATION, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.77.1.1", ""]
)
def test_every_other_class_counts_as_image(uid: str) -> None:
    assert kind_of_class(uid) is None


def test_a_receiver_knows_the_kinds_without_the_libraries_that_write_them() -> None:
    program = (
        "import sys, dicom_io.kinds, dicom_io.net.outgoing, dicom_io.net.destination_file\n"
        "print(sorted({'highdicom', 'SimpleITK', 'imagecodecs', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

from __future__ import annotations

import io
from dataclasses import replace

import pydicom
import pytest
from result_phantoms import RESULT, dciodvfy_errors
from source_phantoms import ALL, NAMES, kept_source, oblique_mr, raw_name, run_program

from dicom_io import pdf
from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.pdf import read_pdf, write_pdf
from dicom_io.read import read_series
from dicom_io.volume import Provenance


@pytest.fixture(scope="module")
def document() -> bytes:
    """A PDF by matplotlib, of an odd number of bytes."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    figure, target = Figure(figsize=(2, 2)), io.BytesIO()
    figure.add_subplot().plot([1, 3, 2])
    FigureCanvasPdf(figure).print_pdf(target, metadata={"CreationDate": None})
    pages = target.getvalue()
    return pages if len(pages) % 2 else pages + b"\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return oblique_mr(tmp_path_factory.mktemp("mr"))


@pytest.fixture(scope="module")
def written(document, source, tmp_path_factory):
    return write_pdf(document, source, tmp_path_factory.mktemp("pdf") / "p.dcm", RESULT, title="Report")


@pytest.mark.parametrize("kind", ALL)
def test_a_pdf_beside_every_kind_of_source_is_valid_and_comes_back_byte_for_byte(
    kind, document, tmp_path_factory, tmp_path
):
    source = kept_source(tmp_path_factory, kind)
    path = write_pdf(document, source, tmp_path / "p.dcm", RESULT, title="Report")
    assert dciodvfy_errors(path) == []
    assert read_pdf(path) == document


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r\n", b"\0"])
def test_documents_of_even_and_odd_length_come_back_with_their_very_last_byte(tail, document, source, tmp_path):
    path = write_pdf(document + tail, source, tmp_path / "p.dcm", RESULT, title="Report")
    dataset = pydicom.dcmread(path)
    assert len(dataset.EncapsulatedDocument) % 2 == 0
    assert dataset.EncapsulatedDocumentLength == len(document + tail)
    assert read_pdf(path) == document + tail


def test_dcmtk_takes_the_same_document_out(document, written, tmp_path):
    run_program("dcm2pdf", str(written), str(tmp_path / "out.pdf"))
    found = (tmp_path / "out.pdf").read_bytes()
    assert found.rstrip(b"\0") == document


def test_a_pdf_belongs_to_the_study_and_names_every_source_instance(source, written):
    dataset, first = pydicom.dcmread(written), pydicom.dcmread(source.provenance.files[0])
    assert dataset.StudyInstanceUID == first.StudyInstanceUID
    assert dataset.SeriesInstanceUID != first.SeriesInstanceUID
    named = {str(item.ReferencedSOPInstanceUID) for item in dataset.SourceInstanceSequence}
    assert named == {str(pydicom.dcmread(file).SOPInstanceUID) for file in source.provenance.files}
    assert (dataset.Modality, dataset.MIMETypeOfEncapsulatedDocument) == ("DOC", "application/pdf")
    assert (dataset.ConversionType, dataset.VerificationFlag) == ("WSD", "UNVERIFIED")
    code = dataset.ConceptNameCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("18748-4", "LN")
    assert dataset.SeriesNumber == 10003


def test_whether_the_pages_name_the_patient_is_said_and_assumed(document, source, written, tmp_path):
    known = write_pdf(
        document, source, tmp_path / "p.dcm", RESULT, title="Report", kind=pdf.PdfKind(names_patient=False)
    )
    assert pydicom.dcmread(written).BurnedInAnnotation == "YES"
    assert pydicom.dcmread(known).BurnedInAnnotation == "NO"


def test_the_document_may_be_a_file(document, source, written, tmp_path):
    (tmp_path / "report.pdf").write_bytes(document)
    path = write_pdf(tmp_path / "report.pdf", source, tmp_path / "p.dcm", RESULT, title="Report")
    assert path.read_bytes() == written.read_bytes()


def test_another_document_or_title_is_another_instance_of_the_same_series(document, source, written, tmp_path):
    uids, series = {str(pydicom.dcmread(written).SOPInstanceUID)}, {str(pydicom.dcmread(written).SeriesInstanceUID)}
    for pages, title in ((document + b"\n", "Report"), (document, "Report 2")):
        dataset = pydicom.dcmread(write_pdf(pages, source, tmp_path / "p.dcm", RESULT, title=title))
        uids.add(str(dataset.SOPInstanceUID))
        series.add(str(dataset.SeriesInstanceUID))
    assert (len(uids), len(series)) == (3, 1)


@pytest.mark.filterwarnings("ignore:Found unknown escape sequence")  # pydicom cannot decode one of the names
@pytest.mark.parametrize("name", NAMES)
def test_the_patient_is_carried_over_byte_for_byte(name, document, tmp_path):
    characters, text = NAMES[name]
    source = oblique_mr(tmp_path / "mr", {"SpecificCharacterSet": characters, "PatientName": text})
    path = write_pdf(document, source, tmp_path / "p.dcm", RESULT, title="Report")
    assert raw_name(path) == raw_name(source.provenance.files[0])
    assert pydicom.dcmread(path).PatientName == text
    assert dciodvfy_errors(path) == []


def test_what_is_no_whole_pdf_is_refused(document, source, tmp_path):
    for pages in (b"", b"<html></html>", document[: len(document) // 2], b" " + document):
        with pytest.raises(UnreadableFileError, match="a whole PDF begins with"):
            write_pdf(pages, source, tmp_path / "p.dcm", RESULT, title="Report")
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        write_pdf(tmp_path / "none.pdf", source, tmp_path / "p.dcm", RESULT, title="Report")
    assert list(tmp_path.iterdir()) == []


def test_titles_and_sources_that_do_not_fit_are_refused(document, source, tmp_path):
    for title in ("", "Größe", "a\\b", "x" * 65):
        with pytest.raises(LabelError, match="1 to 64 ASCII"):
            write_pdf(document, source, tmp_path / "p.dcm", RESULT, title=title)
    nifti = replace(source, provenance=Provenance("nifti"))
    with pytest.raises(LabelError, match="DICOM series is needed"):
        write_pdf(document, nifti, tmp_path / "p.dcm", RESULT, title="Report")


def test_a_picture_whose_file_was_exchanged_is_refused(document, tmp_path):
    source = ALL["DX"](tmp_path / "dx")
    ALL["DX"](tmp_path / "dx")  # another instance under the same name
    with pytest.raises(LabelError, match="must stay in place"):
        write_pdf(document, source, tmp_path / "p.dcm", RESULT, title="Report")


def test_a_picture_in_memory_needs_no_file(document, tmp_path):
    file = ALL["DX"](tmp_path / "dx").provenance.files[0]
    source = read_series([pydicom.dcmread(file)])
    file.unlink()
    path = write_pdf(document, source, tmp_path / "p.dcm", RESULT, title="Report")
    assert dciodvfy_errors(path) == []


def test_a_file_that_does_not_give_the_document_back_is_never_there(document, source, tmp_path, monkeypatch):
    monkeypatch.setattr(pdf, "read_pdf", lambda path: read_pdf(path)[:-1])
    with pytest.raises(GeometryProofError, match="byte for byte"):
        write_pdf(document, source, tmp_path / "p.dcm", RESULT, title="Report")
    assert list(tmp_path.iterdir()) == []


def test_broken_and_foreign_files_are_refused(source, written, tmp_path):
    with pytest.raises(LabelError, match="an Encapsulated PDF is needed"):
        read_pdf(source.provenance.files[0])
    dataset = pydicom.dcmread(written)
    dataset.EncapsulatedDocumentLength += 100
    dataset.save_as(tmp_path / "long.dcm")
    with pytest.raises(UnreadableFileError, match="bytes of document, but its header states"):
        read_pdf(tmp_path / "long.dcm")


def test_a_document_without_a_length_loses_its_padding_alone(document, written, tmp_path):
    dataset = pydicom.dcmread(written)
    del dataset.EncapsulatedDocumentLength  # Type 3
    dataset.save_as(tmp_path / "old.dcm")
    assert read_pdf(tmp_path / "old.dcm") == document
    assert dataset.EncapsulatedDocument == document + b"\0"

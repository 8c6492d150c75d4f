"""A PDF document to a DICOM Encapsulated PDF in the study it was made from, and back."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import EncapsulatedPDFStorage

from dicom_io import proof
from dicom_io.coding import code_item
from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.objects import identity
from dicom_io.objects.functional_groups import reference
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.source_images import result_object
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import load_object, refusing
from dicom_io.volume import Volume

DIAGNOSTIC_IMAGING_REPORT: Code = codes.LN.DiagnosticImagingReport  # LOINC 18748-4, of PS3.16 CID 7020
MIME_TYPE = "application/pdf"
PDF_START, PDF_END = b"%PDF-", b"%%EOF"
END_WITHIN = 1024  # bytes: where readers look for the end mark


@dataclass(frozen=True)
class PdfKind:
    """The sort of document that a PDF is.

    Attributes:
        concept: A published code.
        names_patient: Whether the pages may show who the patient is (BurnedInAnnotation). The writer does not read the pages,
            so False is for a caller who knows.
    """

    concept: Code = DIAGNOSTIC_IMAGING_REPORT
    names_patient: bool = True


@refusing_odd_headers
def write_pdf(
    document: bytes | Path, source: Volume, path: Path, result: ResultInfo, *, title: str, kind: PdfKind = PdfKind()
) -> Path:
    """Write a PDF as it is, byte for byte, into the study of its source.

    Args:
        document: The PDF, or the file that holds it.
        source: DICOM volume or picture that the document is about; its files are read again for their headers.
        path: Target file, replaced if it exists.
        result: What computed the document's content.
        title: DocumentTitle, 1 to 64 ASCII characters; the title of the page, nothing of the patient.
        kind: What sort of document it is.

    Returns:
        `path`. The document is UNVERIFIED. Another document or title gives another SOP Instance UID.

    Raises:
        UnreadableFileError: The document cannot be read, or is no whole PDF.
        LabelError: The title does not fit, or the source is not DICOM.
        GeometryProofError: The file written does not give the document back; no file is left.
    """
    pages = _checked(document)
    if not 0 < len(title) <= 64 or identity.plain(title) != title:
        raise LabelError(
            f"the title of the document is {title!r}; 1 to 64 ASCII characters without a backslash are needed; shorten it"
        )
    headers = identity.source_headers(source)
    # Decision 15: all that the bytes depend on is part of the UID.
    content = (hashlib.sha256(pages).hexdigest(), *map(str, kind.concept), title, str(kind.names_patient))
    # Modules of PS3.3 A.45.1 and C.24.
    dataset = result_object("PDF", identity.object_uids(source, result, "PDF", *content), headers, result)
    dataset.SeriesNumber = identity.series_number(headers[0], "PDF")  # the same after a correction
    dataset.ConversionType = "WSD"
    dataset.AcquisitionDateTime = ""
    dataset.ContentDate, dataset.ContentTime = identity.content_moment(headers)
    dataset.SourceInstanceSequence = [reference(header.SOPClassUID, header.SOPInstanceUID) for header in headers]
    dataset.DocumentTitle = title
    dataset.ConceptNameCodeSequence = [code_item(kind.concept)]
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.MIMETypeOfEncapsulatedDocument = MIME_TYPE
    dataset.BurnedInAnnotation = "YES" if kind.names_patient else "NO"
    dataset.EncapsulatedDocument = pages + b"\0" * (len(pages) % 2)  # PS3.5 6.2: OB has an even number of bytes
    dataset.EncapsulatedDocumentLength = len(pages)
    return proof.save_proved(dataset, path, lambda file: _prove(file, pages))


def read_pdf(path: Path) -> bytes:
    """The document of an Encapsulated PDF, without the byte that pads it to an even length.

    Raises:
        UnreadableFileError: Not a whole DICOM file, or it holds no document.
        LabelError: An object of another class.
    """
    dataset = load_object(path, "an Encapsulated PDF", (EncapsulatedPDFStorage,))
    with refusing(path):
        kind = str(dataset.get("MIMETypeOfEncapsulatedDocument"))
        pages = bytes(dataset.get("EncapsulatedDocument") or b"")
        length = int(dataset.get("EncapsulatedDocumentLength") or 0)
    if not pages or (length and not 0 <= len(pages) - length <= 1):
        raise UnreadableFileError(
            f"{shown(path)} holds {len(pages)} bytes of document, but its header states {length}; a whole file "
            "is needed; fetch it again"
        )
    if kind != MIME_TYPE:
        raise UnreadableFileError(
            f"{shown(path)} holds a document of the MIME type {shown(kind[:64])}; {MIME_TYPE} is needed; check which file it is"
        )
    if length:
        return pages[:length]
    # Without a length, a zero byte at the end is taken for padding: a PDF ends in %%EOF.
    return pages[:-1] if pages.endswith(b"\0") else pages


def _checked(document: bytes | Path) -> bytes:
    try:
        pages = document if isinstance(document, bytes) else Path(document).read_bytes()
    except OSError as error:
        raise UnreadableFileError(
            f"the document cannot be read ({type(error).__name__}); a PDF file is needed; check its path"
        ) from error
    if not pages.startswith(PDF_START) or PDF_END not in pages[-END_WITHIN:]:
        raise UnreadableFileError(
            f"the document has {len(pages)} bytes and begins with {pages[:5]!r}; a whole PDF begins with {PDF_START!r} and "
            f"has {PDF_END!r} in its last {END_WITHIN} bytes; write it again"
        )
    return pages


def _prove(path: Path, pages: bytes) -> None:
    if read_pdf(path) != pages:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError("the Encapsulated PDF was deleted: it does not contain the document byte for byte")

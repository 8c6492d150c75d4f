"""Whose case it is, as the headers of its source say: the one place of the project whose words reach a page with a name."""

from collections.abc import Mapping

from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from dicom_io.objects.identity import source_headers
from dicom_io.volume import Volume
from monai_unet_app.errors import refusing_as

IDENTITY_MARK = "HOLDS-PATIENT-IDENTITY.txt"
"""Name of the file that says so, in every folder whose pages name a patient."""

IDENTITY_TEXT = (
    "The files in this folder name a patient: name, ID, date of birth, date and accession number of the study.\n"
    "Keep the folder where such data may be, give it to nobody else, and delete it when the review is done.\n"
)
UNNAMED = "not in the source"


def patient_and_study(volume: Volume) -> dict[str, str]:
    """Name, ID, birth date, study date, accession number and series of a DICOM source; empty for any other source.

    What the source does not say is called so.

    Raises:
        InputRefusedError: The files of the source cannot be read any more.
    """
    if volume.provenance.kind != "dicom":
        return {}
    with refusing_as("the source does not say whose it is"):
        header = source_headers(volume, of_each=False)[0]
    said = {
        "Patient": person(header.get("PatientName")),
        "Patient ID": _text(header, "PatientID"),
        "Born": date(_text(header, "PatientBirthDate")),
        "Study date": date(_text(header, "StudyDate")),
        "Accession number": _text(header, "AccessionNumber"),
        "Series": _text(header, "SeriesDescription"),
    }
    return {name: text or UNNAMED for name, text in said.items()}


def person(name: PersonName | str | None) -> str:
    """A name as it is read aloud: family name, given and middle names; the same in other scripts in brackets."""
    if not name:
        return ""
    groups = PersonName(str(name)).components
    spoken = [", ".join(part for part in _parts(group) if part) for group in groups]
    first, *others = [text for text in spoken if text] or [""]
    return f"{first} ({'; '.join(others)})" if others else first


def _parts(group: str) -> tuple[str, str]:
    family, *given = (part.strip() for part in group.split("^"))
    return family, " ".join(part for part in given if part)


def date(text: str) -> str:
    """A DICOM date as 2026-11-21; anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def _text(header: Dataset, keyword: str) -> str:
    """A value in one line of printable characters."""
    return " ".join(str(header.get(keyword) or "").split())


def headline(said: Mapping[str, str], case_id: str) -> str:
    """Who it is about in a line; the name of the case where the source names nobody."""
    if not said:
        return case_id
    return f"{said['Patient']}, born {said['Born']}, ID {said['Patient ID']}"

"""The patient of a case, from the headers of its source. Only this module puts a patient's name on a page."""

from collections.abc import Mapping

from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from dicom_io.objects.identity import source_headers
from dicom_io.volume import Volume
from monai_unet_app.errors import refusing_as

IDENTITY_MARK = "HOLDS-PATIENT-IDENTITY.txt"
"""Name of a file that warns of identities, in every folder whose pages name a patient."""

IDENTITY_TEXT = (
    "The files in this folder name a patient: name, ID, date of birth, date and accession number of the study.\n"
    "Keep the folder where such data are allowed, do not pass it on, and delete it when the review is done.\n"
)
UNNAMED = "not in the source"


def patient_and_study(volume: Volume) -> dict[str, str]:
    """Name, ID, birth date, study date, accession number and series of a DICOM source; empty for any other source.

    A value that the source does not have is `UNNAMED`.

    Raises:
        InputRefusedError: The files of the source cannot be read any more.
    """
    if volume.provenance.kind != "dicom":
        return {}
    with refusing_as("the source does not name a patient"):
        header = source_headers(volume, of_each=False)[0]
    values = {
        "Patient": person(header.get("PatientName")),
        "Patient ID": _text(header, "PatientID"),
        "Born": date(_text(header, "PatientBirthDate")),
        "Study date": date(_text(header, "StudyDate")),
        "Accession number": _text(header, "AccessionNumber"),
        "Series": _text(header, "SeriesDescription"),
    }
    return {name: text or UNNAMED for name, text in values.items()}


def person(name: PersonName | str | None) -> str:
    """A name as "family name, given and middle names", with other scripts (PS3.5 6.2.1.2) in brackets after it."""
    if not name:
        return ""
    groups = PersonName(str(name)).components
    # The groups are alphabetic, ideographic and phonetic; each may be empty
    names = [", ".join(part for part in _family_and_given(group) if part) for group in groups]
    first, *others = [text for text in names if text] or [""]
    return f"{first} ({'; '.join(others)})" if others else first


def _family_and_given(group: str) -> tuple[str, str]:
    """Family name, and all other components joined by spaces, of a component group such as "Berger^Anna^Maria"."""
    # PS3.5 6.2.1: family name, given name, middle name, prefix, suffix
    family, *others = (part.strip() for part in group.split("^"))
    return family, " ".join(part for part in others if part)


def date(text: str) -> str:
    """A DICOM date as 2026-11-21; anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else text


def _text(header: Dataset, keyword: str) -> str:
    """A value in one line of printable characters."""
    return " ".join(str(header.get(keyword) or "").split())


def headline(patient: Mapping[str, str], case_id: str) -> str:
    """The patient in one line; the name of the case if the source names no patient."""
    if not patient:
        return case_id
    return f"{patient['Patient']}, born {patient['Born']}, ID {patient['Patient ID']}"

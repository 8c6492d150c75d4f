"""A DICOMDIR, the index of a medium (PS3.10 8): the files that it lists, none of them outside its own folder."""

from collections.abc import Sequence
from pathlib import Path

from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.reading import instances
from dicom_io.reading.bounded import BoundedFile, parse, transfer_syntax
from dicom_io.reading.headers import fault_of
from dicom_io.reading.instances import READ_ERRORS, broken_file, listed, load_dataset, looks_like_dicom, refusing

_FILE_ID_PARTS = 8  # PS3.10 8.2
_LONGEST_NAME = 255  # in most file systems


def files_of_dicomdir(path: Path) -> list[Path]:
    """The files that a DICOMDIR lists, in its order, also files that do not exist.

    Raises:
        UnreadableFileError: The index is broken, or names a file outside its own folder.
    """
    index = load_dataset(path)
    with refusing(path):
        file_ids = [listed(record.get("ReferencedFileID")) for record in index.get("DirectoryRecordSequence") or []]
    files = [[str(part) for part in file_id] for file_id in file_ids if file_id]
    # A medium comes from anywhere: a component such as `..` would lead out of its folder.
    for names in files:
        if len(names) > _FILE_ID_PARTS or not all(map(_is_component, names)):
            printable = [name if name.isprintable() else "?" for name in names[:_FILE_ID_PARTS]]
            raise broken_file(path, f"it names the file {'/'.join(printable)[:80]!r}, which is not a File ID")
    return [_on_disk(path.parent, names) for names in files]


def _on_disk(folder: Path, names: Sequence[str]) -> Path:
    """The file of a File ID, which a medium may call in lower case and with an ending (PS3.10 8.2); it may be absent."""
    place = folder.joinpath(*names)
    if place.is_file():
        return place
    found = folder
    for name in names:
        entries = list(found.iterdir()) if found.is_dir() else []
        alike = [entry for entry in entries if name.lower() in (entry.name.lower(), entry.stem.lower())]
        if len(alike) != 1:
            return place
        (found,) = alike
    return found


def _is_component(name: str) -> bool:
    """Whether a text can be a component of a File ID (PS3.10 8.2, but with any letters) and does not lead out of the folder."""
    is_short = 0 < len(name) <= _LONGEST_NAME
    return is_short and name.isprintable() and name not in (".", "..") and not set(name) & set("/\\")


def is_dicomdir(path: Path) -> bool:
    """Whether a file is a DICOM index (Media Storage Directory)."""
    sop_class = Tag("SOPClassUID")
    try:
        with BoundedFile(path) as file:
            if not looks_like_dicom(file.read(136)) or transfer_syntax(file) not in ("", ExplicitVRLittleEndian):
                return False  # PS3.10 8.6: a DICOMDIR is in explicit VR little endian
            # Only up to the SOP class: a large index need not be read to know its kind.
            index, _ = parse(path, file, tags=[sop_class], last=sop_class)
            if fault_of(index):
                return False
            classes = (index.file_meta.get("MediaStorageSOPClassUID", ""), index.get("SOPClassUID", ""))
    except READ_ERRORS:
        return False
    return instances.MEDIA_STORAGE_DIRECTORY in map(str, classes)

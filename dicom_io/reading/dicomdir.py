"""A DICOMDIR, the index of a medium (PS3.10 8): which files it lists. None is ever looked for outside of its folder."""

from __future__ import annotations

from pathlib import Path

from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.reading.bounded import BoundedFile, parse, transfer_syntax
from dicom_io.reading.headers import fault_of
from dicom_io.reading.instances import (
    MEDIA_STORAGE_DIRECTORY,
    READ_ERRORS,
    broken_file,
    listed,
    load_dataset,
    looks_like_dicom,
)

_FILE_ID_PARTS, _LONGEST_NAME = 8, 255  # PS3.10 8.2; of most file systems


def files_of_dicomdir(path: Path) -> list[Path]:
    """The files that a DICOMDIR lists, in its order; those that are absent too, so that they are missed.

    Raises:
        UnreadableFileError: The index is broken, or names a file outside its own folder.
    """
    index = load_dataset(path, with_pixels=False)
    try:
        found = [listed(record.get("ReferencedFileID")) for record in index.get("DirectoryRecordSequence") or []]
    except READ_ERRORS as error:
        raise broken_file(path, error) from error
    files = [[str(part) for part in parts] for parts in found if parts]
    for names in files:
        if len(names) > _FILE_ID_PARTS or not all(map(_is_file_id, names)):
            told = [name if name.isprintable() else "?" for name in names[:_FILE_ID_PARTS]]
            raise broken_file(path, f"it names the file {'/'.join(told)[:80]!r}, which is no File ID")
    return [path.parent.joinpath(*names) for names in files]


def _is_file_id(name: str) -> bool:
    """Whether a component of a File ID is a name (PS3.10 8.2, in any letters): anything else could lead out of the folder."""
    is_short = 0 < len(name) <= _LONGEST_NAME
    return is_short and name.isprintable() and name not in (".", "..") and not set(name) & set("/\\")


def is_dicomdir(path: Path) -> bool:
    """Whether a file is a DICOM index (Media Storage Directory)."""
    own = Tag("SOPClassUID")
    try:
        with BoundedFile(path) as file:
            if not looks_like_dicom(file.read(136)) or transfer_syntax(file) not in ("", ExplicitVRLittleEndian):
                return False  # PS3.10 8.6: a DICOMDIR is in explicit VR little endian
            index, _ = parse(path, file, with_pixels=False, tags=[own], last=own)
            if fault_of(index):
                return False
            found = (index.file_meta.get("MediaStorageSOPClassUID", ""), index.get("SOPClassUID", ""))
    except READ_ERRORS:
        return False
    return MEDIA_STORAGE_DIRECTORY in map(str, found)

"""What files and folders hold, where it is not what was expected."""

from pathlib import Path
from typing import Literal

from dicom_io.errors import DicomIoError, SeriesSelectionError, UnreadableFileError
from dicom_io.reading.dicomdir import files_of_dicomdir, is_dicomdir
from dicom_io.reading.series import counted, scan_files
from monai_unet_app.data.read import FILE_ENDINGS, has_ending


def note_on_files(folder: Path) -> str:
    """What a folder without images has instead, for a message: a folder of images, a DICOMDIR and what it lists, or nothing."""
    inner = next((file.parent.name for file in sorted(folder.glob("*/*")) if has_ending(file, FILE_ENDINGS)), None)
    index = next((file for file in folder.iterdir() if file.is_file() and is_dicomdir(file)), None)
    if inner or index is None:
        return f", but in its folder {inner}/" if inner else ""
    try:
        listed = files_of_dicomdir(index)
    except DicomIoError as error:
        return f" ({error})"
    return f": {index.name} lists {counted(len(listed), 'file')}" + (", but none of them exists" if listed else "")


def kind_of(file: Path) -> Literal["image", "other DICOM", "broken", "foreign"]:
    try:
        (series,) = scan_files([file]).series
    except UnreadableFileError:
        return "broken"
    except SeriesSelectionError:
        return "foreign"
    return "image" if series.kind == "image" else "other DICOM"


def modality_of(file: Path) -> str:
    try:
        return scan_files([file]).series[0].modality
    except DicomIoError:
        return "unreadable"

"""What comes through the HTTP door: a zip archive of DICOM objects, one object, or a NIfTI image, put where C-STORE puts it.

An archive is taken apart member by member, each bounded in size, so that a small one cannot become a large disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from dicom_io.net.store import InstanceRefusedError, InstanceStore, sync_folder
from monai_unet_app.errors import InputRefusedError

MOST_MEMBERS = 20_000
"""The most files in one archive."""

MOST_MEMBER_BYTES = 2**30
"""The largest file in an archive, and the largest object."""

IMAGE = "image.nii.gz"
_naming = threading.Lock()  # of images: whether a name is free and taking it is one step
_ZIP, _GZIP, _DICM = b"PK\x03\x04", b"\x1f\x8b", b"DICM"


@dataclass
class Upload:
    """What was taken.

    Attributes:
        instances: How many objects by study.
        refused: What was not taken, and why; files are called by their number in the archive, since names may tell of patients.
    """

    instances: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def add(self, study: str) -> None:
        self.instances[study] = self.instances.get(study, 0) + 1


def kind_of(path: Path) -> str:
    """ "zip", "dicom" or "nifti". Raises InputRefusedError for anything else."""
    with path.open("rb") as stream:
        start = stream.read(132)
    if start[:4] == _ZIP:
        return "zip"
    if start[128:] == _DICM:
        return "dicom"
    if start[:2] == _GZIP or start[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):
        return "nifti"
    raise InputRefusedError(
        "the upload is no zip archive, DICOM file or NIfTI image; one of these is needed; check what is sent"
    )


def take_dicom(path: Path, store: InstanceStore) -> Upload:
    """Puts one object into the store."""
    found = Upload()
    _put(path.read_bytes(), "the object", store, found)
    return found


def take_zip(path: Path, store: InstanceStore, most_bytes: float) -> Upload:
    """Puts every object of an archive into the store.

    Args:
        path: The archive.
        store: Gets the objects.
        most_bytes: That all of them may have together.

    Raises:
        InputRefusedError: It is broken, or too much is in it; what was taken before stays, and its sender sends it again.
    """
    found, left = Upload(), most_bytes
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_MEMBERS:
                raise InputRefusedError(
                    f"the archive has {len(members)} files; at most {MOST_MEMBERS} are taken; split it"
                )
            for number, member in enumerate(members, start=1):
                with archive.open(member) as stream:
                    content = stream.read(min(MOST_MEMBER_BYTES, int(left)) + 1)
                left -= len(content)
                if left < 0 or len(content) > MOST_MEMBER_BYTES:
                    raise InputRefusedError(f"the archive becomes more than {most_bytes / 1e9:g} GB; split it")
                _put(content, f"file {number}", store, found)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputRefusedError(
            f"the archive is broken ({type(error).__name__}); a whole one without a password is needed; pack it again"
        ) from error
    return found


def take_nifti(path: Path, received: Path, rule: str) -> tuple[str, bool]:
    """Puts an image where the worker finds it, for one rule. Several threads may take the same image at once.

    Returns:
        The UID that it is called by (one image, one UID), and whether it is new: False if the same image was there already.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    study = f"2.25.{int(hashlib.sha256(f'{rule} {digest}'.encode()).hexdigest()[:30], 16)}"
    target = received / study / rule / IMAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid4().hex}.part")  # a name of its own for each upload
    try:
        shutil.copyfile(path, part)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        with _naming:
            is_new = not target.exists()
            if is_new:
                part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    for folder in (target.parent, target.parent.parent, received):
        sync_folder(folder)
    return study, is_new


def _put(content: bytes, name: str, store: InstanceStore, found: Upload) -> None:
    try:
        found.add(store.put(content).study_instance_uid)
    except InstanceRefusedError as error:
        found.refused.append(f"{name}: {error}")

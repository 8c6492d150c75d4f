"""What comes through the HTTP API: a zip archive of DICOM objects, one object, or a NIfTI image, put where C-STORE puts it.

An archive is taken apart member by member, each bounded in size, so that a small one cannot become a large disk. What its
objects cost to look at is bounded for all of them together, since what is deflated twice shrinks to nearly nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from uuid import uuid4

from dicom_io.files import sync_folder
from dicom_io.net.instance_file import Allowance, InstanceRefusedError
from dicom_io.net.instance_store import InstanceStore
from dicom_io.reading.bounded import FEW_PIECES, PIECES_PER_BYTE
from monai_unet_app.data.archives import BROKEN, METHODS, Archive
from monai_unet_app.errors import InputRefusedError

MOST_MEMBERS = 20_000
"""The most files in one archive."""

MOST_RATIO = 100
"""How many times its size an archive may become; DICOM images become three times theirs, segmentations some ten times."""

SMALL_BYTES = 2**28
"""What any archive may become, however small it is; and the deflated objects in it, together."""

MOST_SECONDS = 1800
"""How long an archive may take; 20,000 objects that are refused take one and a half minutes."""

MOST_TOLD = 100
"""The most refused files that an answer names."""

_IMAGE, _PACKED_IMAGE = "image.nii", "image.nii.gz"  # readers go by the ending
IMAGES = (_IMAGE, _PACKED_IMAGE)
"""What the one image of a study is called that is no DICOM, as it is or packed by gzip."""

_naming = threading.Lock()  # of images: whether a name is free and taking it is one step
_ZIP, _GZIP, _DICM = b"PK\x03\x04", b"\x1f\x8b", b"DICM"
_HEAD_BYTES = 132  # preamble and mark (PS3.10 7.1)
_NIFTI_BYTES = 348
_NIFTI = re.compile(  # header and voxels in one file: NIfTI-1 and NIfTI-2, in either byte order
    rb"(?:\x5c\x01\0\0|\0\0\x01\x5c).{340}n\+1\0|(?:\x1c\x02\0\0|\0\0\x02\x1c)n\+2\0\r\n\x1a\n", re.DOTALL
)


@dataclass
class Upload:
    """What was taken.

    Attributes:
        instances: How many objects by study.
        refused: What was not taken, and why; files are called by their number in the archive, since names may tell of patients.
        not_taken: How many were not.
    """

    instances: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    not_taken: int = 0

    def add(self, study: str) -> None:
        self.instances[study] = self.instances.get(study, 0) + 1

    def refuse(self, reason: str) -> None:
        """Notes why something was not taken; of very many the last is a count."""
        self.not_taken += 1
        if self.not_taken > MOST_TOLD:
            del self.refused[MOST_TOLD:]
            reason = f"and {self.not_taken - MOST_TOLD} more"
        self.refused.append(reason)


class _TooLargeError(Exception):
    """More came out of an archive than may."""


class _TooMuchWorkError(Exception):
    """The objects of an archive take more work than those of an archive of its size."""


class _Bounded:
    """Bytes that come piece by piece; _TooLargeError once there are more than so many."""

    def __init__(self, stream: IO[bytes], most_bytes: float, head: bytes = b"") -> None:
        self._stream, self._most_bytes, self._head = stream, most_bytes, head
        self.count = len(head)

    def read(self, size: int) -> bytes:
        """The next piece; empty at the end."""
        if self._head:
            piece, self._head = self._head, b""
            return piece
        piece = self._stream.read(size)
        self.count += len(piece)
        if self.count > self._most_bytes:
            raise _TooLargeError
        return piece


def kind_of(path: Path) -> str:
    """ "zip", "dicom" or "nifti". Raises InputRefusedError for anything else."""
    with path.open("rb") as stream:
        start = stream.read(_NIFTI_BYTES)
    if start[:4] == _ZIP:
        return "zip"
    if start[128:_HEAD_BYTES] == _DICM:
        return "dicom"
    if start[:2] == _GZIP or _NIFTI.match(start):
        return "nifti"
    raise InputRefusedError(
        "the upload is no zip archive, DICOM file or NIfTI image; one of these is needed; check what is sent"
    )


def take_dicom(path: Path, store: InstanceStore, most_bytes: float) -> Upload:
    """Puts one object of at most so many bytes into the store."""
    found = Upload()
    with path.open("rb") as stream:
        try:
            _put(_Bounded(stream, most_bytes), "the object", store, found)
        except _TooLargeError:
            found.refuse(f"the object: it has more than {most_bytes / 1e9:g} GB (instance_gb)")
    return found


def take_zip(path: Path, store: InstanceStore, most_bytes: float, most_member_bytes: float) -> Upload:
    """Puts every object of an archive into the store, each read piece by piece; an archive in an archive is none.

    Args:
        path: The archive.
        store: Gets the objects.
        most_bytes: That all of them may have together; less for a small archive, see MOST_RATIO.
        most_member_bytes: That one of them may have; a larger one is refused by itself.

    Raises:
        InputRefusedError: It is broken, or too much is in it; what was taken before stays, and its sender sends it again.
    """
    size, until = path.stat().st_size, time.monotonic() + MOST_SECONDS
    found, most = Upload(), min(most_bytes, max(SMALL_BYTES, MOST_RATIO * size))
    left, allowance = most, Allowance(most, max(FEW_PIECES, PIECES_PER_BYTE * size))
    try:
        with Archive(path) as file, zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_MEMBERS:
                raise InputRefusedError(
                    f"the archive has {len(members)} files; at most {MOST_MEMBERS} are taken; split it"
                )
            for number, member in enumerate(members, start=1):
                if time.monotonic() > until:
                    raise InputRefusedError(
                        f"the archive takes more than {MOST_SECONDS} s, {number - 1} of its {len(members)} files are done; "
                        "split it"
                    )
                left -= _take_member(
                    archive, member, f"file {number}", left, most_member_bytes, store, found, allowance
                )
    except _TooLargeError as error:
        raise InputRefusedError(
            f"the archive of {size / 1e6:.3g} MB becomes more than {most / 1e6:.3g} MB; split it"
        ) from error
    except _TooMuchWorkError as error:
        raise InputRefusedError(
            f"the headers in the archive of {size / 1e6:.3g} MB have more items or pieces than those in an archive of its "
            "size may have; send its objects by themselves"
        ) from error
    except BROKEN as error:
        raise InputRefusedError(
            f"the archive is broken ({type(error).__name__}); a whole one without a password is needed; pack it again"
        ) from error
    return found


def _take_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, left: float, most: float, store: InstanceStore,
    found: Upload, allowance: Allowance,
) -> int:  # fmt: skip
    """How many bytes were read of a member. Raises _TooLargeError for more than are left, _TooMuchWorkError."""
    if member.compress_type not in METHODS:
        raise NotImplementedError("packed otherwise than by deflate")
    with archive.open(member) as stream:
        head = stream.read(_HEAD_BYTES)
        if head[_HEAD_BYTES - len(_DICM) :] != _DICM:
            found.refuse(f"{name}: it is no DICOM file")
            return len(head)
        content = _Bounded(stream, min(left, most), head)
        try:
            _put(content, name, store, found, allowance)
        except _TooLargeError:
            if content.count > left:
                raise
            found.refuse(f"{name}: it has more than {most / 1e9:g} GB (instance_gb)")
    if allowance.pieces <= 0:
        raise _TooMuchWorkError
    return content.count


def take_nifti(path: Path, received: Path, rule: str) -> tuple[str, bool]:
    """Puts an image where the worker finds it, for one rule. Several threads may take the same image at once.

    Returns:
        The UID that it is called by (the same bytes, one UID), and whether it is new: False if it was there already.
    """
    with path.open("rb") as stream:
        is_packed = stream.read(len(_GZIP)) == _GZIP
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    study = f"2.25.{int(hashlib.sha256(f'{rule} {digest}'.encode()).hexdigest()[:30], 16)}"
    target = received / study / rule / (_PACKED_IMAGE if is_packed else _IMAGE)
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


def images_of(study: Path) -> list[Path]:
    """The images in the folder of a study that are no DICOM: one for each rule that they came for."""
    return sorted(path for name in IMAGES for path in study.glob(f"*/{name}"))


def _put(stream: _Bounded, name: str, store: InstanceStore, found: Upload, allowance: Allowance | None = None) -> None:
    try:
        found.add(store.put(stream, allowance=allowance).study_instance_uid)
    except InstanceRefusedError as error:
        found.refuse(f"{name}: {error}")

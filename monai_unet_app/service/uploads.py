"""Uploads to the HTTP API: a zip archive of DICOM objects, one object, or a NIfTI image, stored where C-STORE stores instances.

An archive is unpacked member by member, and the size of each is bounded, so that a small archive cannot fill the disk. The work
on the headers is bounded for all members together, because an object that is deflated twice shrinks to nearly nothing.
"""

import hashlib
import re
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dicom_io.files import sync_folder
from dicom_io.net.instance_file import Allowance, InstanceRefusedError
from dicom_io.net.instance_store import InstanceStore
from dicom_io.reading.bounded import FEW_PIECES, PIECES_PER_BYTE
from monai_unet_app.data.archives import BROKEN, METHODS, Archive
from monai_unet_app.errors import InputRefusedError

MOST_MEMBERS = 20_000
"""The most files in one archive."""

MOST_RATIO = 100
"""The most by which an archive may grow when it is unpacked; DICOM images grow three times, segmentations some ten times."""

SMALL_BYTES = 2**28
"""The unpacked size that any archive may have, however small it is; also for all deflated objects in it together."""

MOST_SECONDS = 1800
"""Seconds that an archive may take; 20,000 refused objects take one and a half minutes."""

MOST_NAMED = 100
"""The most refused files that an answer names."""

_IMAGE, _PACKED_IMAGE = "image.nii", "image.nii.gz"  # readers recognise the format by the ending
IMAGES = (_IMAGE, _PACKED_IMAGE)
"""Names of the file of a study that is a NIfTI image, uncompressed or compressed by gzip."""

_ZIP, _GZIP, _DICM = b"PK\x03\x04", b"\x1f\x8b", b"DICM"
_HEAD_BYTES = 132  # preamble and prefix (PS3.10 7.1)
_NIFTI_BYTES = 348
_NIFTI = re.compile(  # header and voxels in one file: NIfTI-1 and NIfTI-2, in either byte order
    rb"(?:\x5c\x01\0\0|\0\0\x01\x5c).{340}n\+1\0|(?:\x1c\x02\0\0|\0\0\x02\x1c)n\+2\0\r\n\x1a\n", re.DOTALL
)


@dataclass
class Upload:
    """The outcome of an upload.

    Attributes:
        instances: Study -> number of stored objects.
        refused: The reason for each refused file. A file is named by its number in the archive, because file names may name
            patients.
        not_taken: Number of refused files.
    """

    instances: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    not_taken: int = 0

    def refuse(self, reason: str) -> None:
        """Adds the reason for a refused file; after many reasons, the last entry counts the others."""
        self.not_taken += 1
        if self.not_taken > MOST_NAMED:
            del self.refused[MOST_NAMED:]
            reason = f"and {self.not_taken - MOST_NAMED} more"
        self.refused.append(reason)


class _TooLargeError(Exception):
    """An archive, or an object, is larger than allowed."""


class _TooMuchWorkError(Exception):
    """The headers in an archive take more work than those of an archive of its size may take."""


class _Bounded:
    """Bytes that are read piece by piece; raises _TooLargeError after more than `most_bytes`."""

    def __init__(self, stream: IO[bytes], most_bytes: float, head: bytes = b"") -> None:
        self._stream, self._most_bytes, self._head = stream, most_bytes, head  # the bytes read already
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
        "the upload is not a zip archive, DICOM file or NIfTI image; one of these is needed; check what is sent"
    )


def take_dicom(path: Path, store: InstanceStore, most_bytes: float) -> Upload:
    """Puts an object of at most `most_bytes` into the store."""
    upload = Upload()
    with path.open("rb") as stream:
        try:
            _put(_Bounded(stream, most_bytes), "the object", store, upload)
        except _TooLargeError:
            upload.refuse(f"the object: it has more than {most_bytes / 1e9:g} GB (instance_gb)")
    return upload


def take_zip(path: Path, store: InstanceStore, most_bytes: float, most_member_bytes: float) -> Upload:
    """Puts every object of an archive into the store, read piece by piece; an archive within the archive is refused.

    Args:
        path: The archive.
        store: Gets the objects.
        most_bytes: The most bytes of all objects together; less for a small archive, see MOST_RATIO.
        most_member_bytes: The most bytes of an object; a larger object is refused, and the others are taken.

    Raises:
        InputRefusedError: The archive is broken or too large; objects stored before stay, and may be sent again.
    """
    size, until = path.stat().st_size, time.monotonic() + MOST_SECONDS
    most = min(most_bytes, max(SMALL_BYTES, MOST_RATIO * size))
    upload, budget = Upload(), _Budget(most, Allowance(most, max(FEW_PIECES, PIECES_PER_BYTE * size)))
    try:
        with Archive(path) as file, zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MOST_MEMBERS:
                raise InputRefusedError(
                    f"the archive has {len(members)} files; at most {MOST_MEMBERS} are accepted; split it"
                )
            for number, member in enumerate(members, start=1):
                if time.monotonic() > until:
                    raise InputRefusedError(
                        f"the archive takes more than {MOST_SECONDS} s, {number - 1} of its {len(members)} files are done; "
                        "split it"
                    )
                if member.compress_type not in METHODS:
                    raise NotImplementedError("compressed by a method other than deflate")
                with archive.open(member) as stream:
                    _take_member(stream, f"file {number}", budget, most_member_bytes, store, upload)
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
            f"the archive is broken ({type(error).__name__}); a complete archive without a password is needed; pack it again"
        ) from error
    return upload


@dataclass
class _Budget:
    """What the remaining members of an archive may cost: bytes, and pieces of headers."""

    bytes_left: float
    allowance: Allowance


def _take_member(
    stream: IO[bytes], name: str, budget: _Budget, most_bytes: float, store: InstanceStore, upload: Upload
) -> None:
    """Puts a member into the store. Raises _TooLargeError or _TooMuchWorkError if the budget does not suffice."""
    head = stream.read(_HEAD_BYTES)
    content = _Bounded(stream, min(budget.bytes_left, most_bytes), head)
    if head[_HEAD_BYTES - len(_DICM) :] != _DICM:
        upload.refuse(f"{name}: it is not a DICOM file")
    else:
        try:
            _put(content, name, store, upload, budget.allowance)
        except _TooLargeError:
            # The limit of the archive ends the upload; the limit of a member refuses that member only.
            if content.count > budget.bytes_left:
                raise
            upload.refuse(f"{name}: it has more than {most_bytes / 1e9:g} GB (instance_gb)")
        if budget.allowance.pieces <= 0:
            raise _TooMuchWorkError
    budget.bytes_left -= content.count


def take_nifti(path: Path, store: InstanceStore, rule: str) -> tuple[str, bool]:
    """Puts an image where the worker finds it, for one rule. Several threads may do so at once with the same image.

    Returns:
        The UID of its study, which is the same for the same bytes and rule; and False if the image was there already.

    Raises:
        InputRefusedError: It is no NIfTI image, or its header claims more voxels than fit, or than it can hold.
    """
    # nibabel comes with this import, which a node without such uploads does not need.
    from monai_unet_app.data.nifti import check_nifti

    check_nifti(path, "the image")
    with path.open("rb") as stream:
        is_packed = stream.read(len(_GZIP)) == _GZIP
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        # A UID under 2.25 is an integer of at most 128 bits (PS3.5 B.2); 30 hexadecimal digits are 120.
        study = f"2.25.{int(hashlib.sha256(f'{rule} {digest}'.encode()).hexdigest()[:30], 16)}"
        target = store.folder / study / rule / (_PACKED_IMAGE if is_packed else _IMAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        stream.seek(0)
        with store.unfinished(stream) as part:
            is_new = store.name(part, target)
    # Study and rule may be new folders, whose names must last as well before the sender gets its answer.
    for folder in (target.parent, target.parent.parent, store.folder):
        sync_folder(folder)
    return study, is_new


def images_of(study: Path) -> list[Path]:
    """The NIfTI images in the folder of a study, one for each rule for which they were sent."""
    return sorted(path for name in IMAGES for path in study.glob(f"*/{name}"))


def _put(stream: _Bounded, name: str, store: InstanceStore, upload: Upload, allowance: Allowance | None = None) -> None:
    try:
        upload.instances[store.put(stream, allowance=allowance).study_instance_uid] += 1
    except InstanceRefusedError as error:
        upload.refuse(f"{name}: {error}")

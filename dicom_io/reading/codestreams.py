"""What a compressed picture says of itself, read before it is decoded: it may claim any size, and a decoder believes it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pydicom.uid import (
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
)

MAX_SCANS = 100
"""The most scans of a JPEG: each costs a pass over the picture, and some dozens are many."""

JPEG_LOSSLESS = (JPEGLossless, JPEGLosslessSV1)
_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, *JPEG_LOSSLESS)
_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
_LOSSLESS_FRAME = 0xC3
_LOSSY_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # tables and an extension among the SOFn
_JPEG_LS_FRAME = 0xF7
_J2K_START, _JP2_BOX, _CODESTREAM_BOX = b"\xff\x4f\xff\x51", b"jP  ", b"jp2c"
_PADDING_BYTES = 4096


@dataclass(frozen=True)
class Claim:
    """Rows, columns and samples a pixel that a codestream states, and the SOFn marker of a JPEG (0 for JPEG 2000)."""

    rows: int
    columns: int
    samples: int
    marker: int = 0

    @property
    def is_lossy_jpeg(self) -> bool:
        """Whether it is a JPEG by cosines: whatever the transfer syntax says, values are not those of the scanner."""
        return self.marker in _LOSSY_FRAMES


def check_codestream(source: bytes, syntax: UID, rows: int, columns: int, samples: int) -> None:
    """Passes a codestream that is of the size that the header promises, and, as far as that shows, whole.

    Raises:
        ValueError: It is of another size or kind, says none, or lacks its end mark.
    """
    claim = claim_of(source)
    if claim is None:
        raise ValueError("the compressed picture does not say its size")
    if (claim.rows, claim.columns) != (rows, columns):
        raise ValueError(
            f"the compressed picture has {claim.rows} x {claim.columns} pixels, the header {rows} x {columns}"
        )
    if claim.samples != samples:
        raise ValueError(f"the compressed picture has {claim.samples} samples a pixel, the header {samples}")
    if syntax in _JPEG:
        _check_jpeg(source, claim, syntax)


def _check_jpeg(source: bytes, claim: Claim, syntax: UID) -> None:
    if not source[-_PADDING_BYTES:].rstrip(b"\0\xff").endswith(_END):  # libjpeg makes up what is missing
        raise ValueError("the compressed picture ends before its end mark")
    if source.count(_SCAN) > MAX_SCANS:
        raise ValueError(f"the compressed picture has {source.count(_SCAN)} scans; at most {MAX_SCANS} are decoded")
    grey_and_lossy = claim.is_lossy_jpeg and claim.samples == 1  # of colours nobody would know the space
    if syntax in JPEG_LOSSLESS and claim.marker != _LOSSLESS_FRAME and not grey_and_lossy:
        raise ValueError("the compressed picture is no lossless JPEG, as its transfer syntax says")


def claim_of(source: bytes) -> Claim | None:
    """What a JPEG, JPEG-LS or JPEG 2000 codestream, or its beginning, states; None where it states nothing.

    Source: ISO/IEC 15444-1 A.5.1 (SIZ) and I.5 (boxes), ISO/IEC 10918-1 B.2.2 (SOFn), ISO/IEC 14495-1 C.2.2 (SOF55).
    """
    if source[:2] == _START:
        return _claim_of_jpeg(source)
    start = _codestream_start(source)
    siz = source[start + 8 : start + 42]
    if source[start : start + 4] != _J2K_START or len(siz) < 34:
        return None
    width, height, left, top = struct.unpack(">4L", siz[:16])
    return Claim(height - top, width - left, struct.unpack(">H", siz[32:])[0])


def _claim_of_jpeg(source: bytes) -> Claim | None:
    at = 2
    while at + 10 <= len(source) and source[at] == 0xFF:
        marker = source[at + 1]
        if marker == 0xFF:  # B.1.1.2: fill bytes
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME) or marker == _JPEG_LS_FRAME:
            rows, columns, samples = struct.unpack(">HHB", source[at + 5 : at + 10])
            return Claim(rows, columns, samples, marker)
        at += 2 + int(struct.unpack(">H", source[at + 2 : at + 4])[0])
    return None


def _codestream_start(source: bytes) -> int:
    """Where a JPEG 2000 codestream begins: at once, or in a box of a JP2 file."""
    if source[4:8] != _JP2_BOX:
        return 0
    at = 0
    while at + 16 <= len(source):
        size, kind, long_size = struct.unpack(">L4sQ", source[at : at + 16])
        head = 16 if size == 1 else 8
        if kind == _CODESTREAM_BOX:
            return at + head
        size = long_size if size == 1 else size
        if size < head:
            break
        at += size
    return len(source)

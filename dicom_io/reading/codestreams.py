"""The header of a compressed picture, read before it is decoded: it may state any size, and a decoder believes it."""

import struct
from dataclasses import dataclass

from pydicom.uid import UID, JPEGLossless, JPEGLosslessSV1, JPEGTransferSyntaxes

MAX_SCANS = 100
"""The most scans of a JPEG. Each costs a pass over the picture; real pictures have some dozens at most."""

JPEG_LOSSLESS = (JPEGLossless, JPEGLosslessSV1)
JPEG_PROGRESSIVE = (UID("1.2.840.10008.1.2.4.53"), UID("1.2.840.10008.1.2.4.55"))
"""Spectral selection and full progression by Huffman codes, retired from the standard in 2001 and still in archives."""
_START, _END, _SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
_LOSSLESS_FRAME = 0xC3
_LOSSY_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # tables and an extension among the SOFn
_JPEG_LS_FRAME = 0xF7
_J2K_START, _JP2_BOX, _CODESTREAM_BOX = b"\xff\x4f\xff\x51", b"jP  ", b"jp2c"
_PADDING_BYTES = 4096


@dataclass(frozen=True)
class CodestreamHeader:
    """Rows, columns and samples a pixel that a codestream states, and the SOFn marker of a JPEG (0 for JPEG 2000)."""

    rows: int
    columns: int
    samples: int
    marker: int = 0

    @property
    def is_lossy_jpeg(self) -> bool:
        """Whether it is a JPEG with cosine transform: its values are not exactly those of the scanner."""
        return self.marker in _LOSSY_FRAMES


def check_codestream(source: bytes, syntax: UID, rows: int, columns: int, samples: int) -> None:
    """Checks that a codestream has the size of the DICOM header and, as far as that can be seen, is complete.

    Raises:
        ValueError: It has another size or kind, states no size, or lacks its end marker.
    """
    stated = codestream_header(source)
    if stated is None:
        raise ValueError("the compressed picture does not say its size")
    if (stated.rows, stated.columns) != (rows, columns):
        raise ValueError(
            f"the compressed picture has {stated.rows} x {stated.columns} pixels, the header {rows} x {columns}"
        )
    if stated.samples != samples:
        raise ValueError(f"the compressed picture has {stated.samples} samples a pixel, the header {samples}")
    if syntax in (*JPEGTransferSyntaxes, *JPEG_PROGRESSIVE):
        _check_jpeg(source, stated, syntax)


def _check_jpeg(source: bytes, stated: CodestreamHeader, syntax: UID) -> None:
    if not source[-_PADDING_BYTES:].rstrip(b"\0\xff").endswith(_END):  # libjpeg invents the missing pixels
        raise ValueError("the compressed picture ends before its end mark")
    # ISO/IEC 10918-1 B.1.1.5: in coded data FF is followed by 00, so there every FF DA begins a scan.
    if source.count(_SCAN) > MAX_SCANS:
        raise ValueError(f"the compressed picture has {source.count(_SCAN)} scans; at most {MAX_SCANS} are decoded")
    grey_and_lossy = stated.is_lossy_jpeg and stated.samples == 1  # in colour, the colour space would be unknown
    if syntax in JPEG_LOSSLESS and stated.marker != _LOSSLESS_FRAME and not grey_and_lossy:
        raise ValueError("the compressed picture is not lossless JPEG, although its transfer syntax says so")


def codestream_header(source: bytes) -> CodestreamHeader | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream, or of its first bytes; None if it states no size.

    Source: ISO/IEC 15444-1 A.5.1 (SIZ) and I.5 (boxes), ISO/IEC 10918-1 B.2.2 (SOFn), ISO/IEC 14495-1 C.2.2 (SOF55).
    """
    if source[:2] == _START:
        return _jpeg_header(source)
    start = _codestream_start(source)
    # SOC, SIZ, Lsiz and Rsiz are 8 bytes. Then come Xsiz, Ysiz, XOsiz, YOsiz, four sizes of tiles, and Csiz. The image
    # lies between the offset and the size on the reference grid.
    siz = source[start + 8 : start + 42]
    if source[start : start + 4] != _J2K_START or len(siz) < 34:
        return None
    width, height, left, top = struct.unpack(">4L", siz[:16])
    return CodestreamHeader(height - top, width - left, struct.unpack(">H", siz[32:])[0])


def _jpeg_header(source: bytes) -> CodestreamHeader | None:
    at = 2
    while at + 10 <= len(source) and source[at] == 0xFF:
        marker = source[at + 1]
        if marker == 0xFF:  # B.1.1.2: fill bytes
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME) or marker == _JPEG_LS_FRAME:
            rows, columns, samples = struct.unpack(">HHB", source[at + 5 : at + 10])
            return CodestreamHeader(rows, columns, samples, marker)
        at += 2 + int.from_bytes(source[at + 2 : at + 4], "big")
    return None


def _codestream_start(source: bytes) -> int:
    """Index of the first byte of a JPEG 2000 codestream: 0, or within a box of a JP2 file; the length of the source if it holds
    no codestream.
    """
    if source[4:8] != _JP2_BOX:
        return 0
    at = 0
    while at + 16 <= len(source):
        size, kind, long_size = struct.unpack(">L4sQ", source[at : at + 16])
        # ISO/IEC 15444-1 I.4: a length of 1 means that the true length follows, in 8 bytes.
        head = 16 if size == 1 else 8
        if kind == _CODESTREAM_BOX:
            return at + head
        size = long_size if size == 1 else size
        if size < head:
            break
        at += size
    return len(source)

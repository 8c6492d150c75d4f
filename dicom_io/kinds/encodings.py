"""How a SEG is encoded: the words of `write_seg`, and the transfer syntax of each."""

from __future__ import annotations

from typing import Literal

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

SegEncoding = Literal["binary", "binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls", "fractional"]
SYNTAXES: dict[SegEncoding, UID] = {
    "binary": ExplicitVRLittleEndian,
    "binary-deflated": DeflatedExplicitVRLittleEndian,
    "labelmap": ExplicitVRLittleEndian,
    "labelmap-rle": RLELossless,
    "labelmap-jpegls": JPEGLSLossless,
    "fractional": ExplicitVRLittleEndian,
}

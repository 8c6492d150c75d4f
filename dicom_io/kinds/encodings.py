"""How a SEG is encoded: the words of `write_seg` and of profiles, and the transfer syntax of each."""

from typing import Literal

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

SegEncoding = Literal["binary", "binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls", "fractional"]
SYNTAXES: dict[SegEncoding, UID] = {
    "binary": ExplicitVRLittleEndian,
    "binary-deflated": DeflatedExplicitVRLittleEndian,
    "labelmap": ExplicitVRLittleEndian,
    "labelmap-rle": RLELossless,
    "labelmap-jpegls": JPEGLSLossless,
    "fractional": ExplicitVRLittleEndian,
}
SEG_ENCODINGS = tuple(SYNTAXES)


def segmentation_type(encoding: str) -> str:
    """SegmentationType of a SEG (PS3.3 C.8.20.2): BINARY, LABELMAP or FRACTIONAL."""
    return encoding.partition("-")[0].upper()


def encoding_name(segmentation_type_found: str, syntax: UID) -> str:
    """The encoding of any SEG; its SegmentationType in small letters if no encoding of ours has its transfer syntax."""
    return _NAMES.get((segmentation_type_found, syntax), segmentation_type_found.lower())


_NAMES = {(segmentation_type(encoding), syntax): encoding for encoding, syntax in SYNTAXES.items()}

"""Compressed pixels -> stored values, by pydicom's decoders with imagecodecs as their engine.

pydicom reads the frames, checks sizes and applies signs and colour; imagecodecs runs the codec and, unlike pydicom's own
plug-ins, lets other threads work meanwhile. Nothing global is changed: the decoders are this module's own instances.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder, DecodeRunner
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

_JPEG_2000 = (JPEG2000Lossless, JPEG2000)
_HTJ2K = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
_JPEG_LOSSLESS = (JPEGLossless, JPEGLosslessSV1)
WITHOUT_SIGN = (*_JPEG_LS, *_JPEG_LOSSLESS)
"""Codecs that know no sign: the header says how to take their bits."""

_OURS = (*_JPEG_2000, *_HTJ2K, *_JPEG_LS, *_JPEG_LOSSLESS, JPEGExtended12Bit)

_BOXES = 4096  # bytes within which a JPEG 2000 codestream begins where a JP2 header is wrapped around it

DECODER_DEPENDENCIES = dict.fromkeys(_OURS, ("imagecodecs",))
"""Asked for by pydicom of every module of decoders."""


def is_available(uid: str) -> bool:
    """Asked by pydicom: whether this module decodes a transfer syntax here."""
    return uid in _OURS


@cache
def decoder_of(syntax: UID) -> Decoder:
    """The decoder of a transfer syntax. Raises NotImplementedError for a syntax that none knows."""
    if syntax not in _OURS:
        return get_decoder(syntax)
    decoder = Decoder(syntax)
    decoder.add_plugin("imagecodecs", ("dicom_io.codecs", "decode_frame"))
    return decoder


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame's codestream -> its values as bytes, colour by pixel; called by pydicom.

    Raises:
        ValueError: See `decode_picture`.
    """
    found, wanted = codestream_shape(source), (runner.rows, runner.columns)
    if found is not None and found != wanted:
        raise ValueError(
            f"the compressed picture has {found[0]} x {found[1]} pixels, the header {wanted[0]} x {wanted[1]}"
        )
    pixels = np.ascontiguousarray(_decode(source, UID(runner.transfer_syntax)))
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    if runner.transfer_syntax in (*_JPEG_2000, *_HTJ2K) and runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    return pixels.tobytes()


def decode_picture(source: bytes, syntax: UID, shape: tuple[int, int]) -> Any:
    """A codestream -> its values as an array, as the codec gives them.

    Args:
        source: The codestream.
        syntax: One that `is_available`.
        shape: (rows, columns) that the header promises.

    Raises:
        ValueError: The codestream has another size; refused before it is decoded, because it may claim any.
    """
    found = codestream_shape(source)
    if found is not None and found != shape:
        raise ValueError(
            f"the compressed picture has {found[0]} x {found[1]} pixels, the header {shape[0]} x {shape[1]}"
        )
    return _decode(source, syntax)


def codestream_shape(source: bytes) -> tuple[int, int] | None:
    """(rows, columns) as a JPEG, JPEG-LS or JPEG 2000 codestream states them; None where it states none.

    Source: ISO/IEC 15444-1 A.5.1 (SIZ), ISO/IEC 10918-1 B.2.2 (SOFn), ISO/IEC 14495-1 C.2.2 (SOF55).
    """
    start = source.find(b"\xff\x4f\xff\x51", 0, _BOXES)
    if start >= 0 and len(source) >= start + 24:
        width, height, left, top = struct.unpack(">4L", source[start + 8 : start + 24])
        return height - top, width - left
    at = 2
    while at + 9 <= len(source) and source[at] == 0xFF:
        marker, length = source[at + 1], struct.unpack(">H", source[at + 2 : at + 4])[0]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = struct.unpack(">HH", source[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    return None


def _decode(source: bytes, syntax: UID) -> Any:
    if syntax in _JPEG_2000:
        return imagecodecs.jpeg2k_decode(source)
    if syntax in _HTJ2K:
        return imagecodecs.htj2k_decode(source)
    if syntax in _JPEG_LS:
        return imagecodecs.jpegls_decode(source)
    if syntax in _JPEG_LOSSLESS:
        return imagecodecs.jpegsof3_decode(source)
    return imagecodecs.jpeg8_decode(source)

"""Compressed pixels -> stored values, by pydicom's decoders with imagecodecs as their engine.

pydicom reads the frames, checks sizes and applies signs and colour; imagecodecs runs the codec and, unlike pydicom's own
plug-ins, lets other threads work meanwhile. Nothing global is changed: the decoders are this module's own instances.

HTJ2K is decoded by OpenJPEG: OpenJPH, as imagecodecs binds it, runs for ever or dies of a broken codestream, or gives
half a picture in silence. Lossless JPEG is decoded by libjpeg-turbo, since imagecodecs' own decoder reads beyond a broken
one's end.
"""

from __future__ import annotations

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
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from dicom_io.reading import guarded_decoders
from dicom_io.reading.codestreams import JPEG_LOSSLESS, check_codestream

_JPEG_2000 = (JPEG2000Lossless, JPEG2000)
_HTJ2K = (HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
_JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
WITHOUT_SIGN = (*_JPEG_LS, *JPEG_LOSSLESS)
"""Codecs that know no sign: the header says how to take their bits."""

_OURS = (*_JPEG_2000, *_HTJ2K, *_JPEG_LS, *JPEG_LOSSLESS, JPEGExtended12Bit)

DECODER_DEPENDENCIES = dict.fromkeys(_OURS, ("imagecodecs",))
"""Asked for by pydicom of every module of decoders."""


def is_available(uid: str) -> bool:
    """Asked by pydicom: whether this module decodes a transfer syntax here."""
    return uid in _OURS


@cache
def decoder_of(syntax: UID) -> Decoder:
    """The decoder of a transfer syntax. Raises NotImplementedError for a syntax that none knows."""
    if syntax not in (*_OURS, *guarded_decoders.SYNTAXES):
        return get_decoder(syntax)
    decoder, module = Decoder(syntax), "codecs" if syntax in _OURS else "guarded_decoders"
    decoder.add_plugin(module, (f"dicom_io.reading.{module}", "decode_frame"))
    return decoder


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame's codestream -> its values as bytes, colour by pixel; called by pydicom.

    Raises:
        ValueError: See `decode_picture`.
    """
    syntax = UID(runner.transfer_syntax)
    check_codestream(source, syntax, runner.rows, runner.columns, runner.samples_per_pixel)
    pixels = np.ascontiguousarray(_decode(source, syntax))
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    if runner.transfer_syntax in (*_JPEG_2000, *_HTJ2K) and runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    return pixels.tobytes()


def decode_picture(source: bytes, syntax: UID, shape: tuple[int, int]) -> Any:
    """A codestream of one sample a pixel -> its values as an array, as the codec gives them.

    Args:
        source: The codestream.
        syntax: One that `is_available`.
        shape: (rows, columns) that the header promises.

    Raises:
        ValueError: The codestream has another size; refused before it is decoded, because it may claim any.
    """
    check_codestream(source, syntax, *shape, samples=1)
    return _decode(source, syntax)


def _decode(source: bytes, syntax: UID) -> Any:
    if syntax in (*_JPEG_2000, *_HTJ2K):
        return imagecodecs.jpeg2k_decode(source)
    if syntax in _JPEG_LS:
        return imagecodecs.jpegls_decode(source)
    return imagecodecs.jpeg8_decode(source)

"""Compressed pixels -> stored values, by pydicom's decoders with imagecodecs as their engine.

pydicom reads the frames, checks sizes and applies signs and colour; imagecodecs runs the codec and, unlike pydicom's own
plug-ins, lets other threads run meanwhile. No global state is changed: the decoders are this module's own instances.

HTJ2K is decoded by OpenJPEG: OpenJPH, as imagecodecs binds it, hangs or crashes at a broken codestream, or gives half a picture
without an error. Lossless JPEG is decoded by libjpeg-turbo, since imagecodecs' own decoder reads beyond the end of a broken
codestream.
"""

from functools import cache
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import uid as syntaxes
from pydicom.pixels.decoders import pillow
from pydicom.pixels.decoders.base import Decoder, DecodeRunner, get_decoder
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGLSTransferSyntaxes, RLELossless

from dicom_io.reading.codestreams import JPEG_LOSSLESS, JPEG_PROGRESSIVE, check_codestream
from dicom_io.reading.run_lengths import decode_run_lengths

_JPEG_2000 = (
    syntaxes.JPEG2000Lossless, syntaxes.JPEG2000, syntaxes.HTJ2KLossless, syntaxes.HTJ2KLosslessRPCL, syntaxes.HTJ2K,
)  # fmt: skip
_LOSSY_JPEG = (syntaxes.JPEGExtended12Bit, *JPEG_PROGRESSIVE)
WITHOUT_SIGN = (*JPEGLSTransferSyntaxes, *JPEG_LOSSLESS)
"""Codecs without signed values: the header says whether their bits have a sign."""

BY_IMAGECODECS = (*_JPEG_2000, *JPEGLSTransferSyntaxes, *JPEG_LOSSLESS, *_LOSSY_JPEG)
"""The transfer syntaxes that `decode_picture` decodes."""

DECODER_DEPENDENCIES = {
    **dict.fromkeys(BY_IMAGECODECS, ("imagecodecs",)),
    **dict.fromkeys((RLELossless, JPEGBaseline8Bit), ("imagecodecs", "pillow")),
}
"""pydicom reads it from every module of decoders."""


def is_available(uid: str) -> bool:
    """Whether this module decodes a transfer syntax; pydicom calls it."""
    return uid in DECODER_DEPENDENCIES


@cache
def decoder_of(syntax: UID) -> Decoder:
    """The decoder of a transfer syntax. Raises NotImplementedError for a syntax without decoder."""
    if not is_available(syntax):
        return get_decoder(syntax)
    decoder = Decoder(syntax)
    decoder.add_plugin("codecs", (__name__, "decode_frame"))
    return decoder


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame's codestream -> its values as bytes, colour by pixel; called by pydicom.

    Raises:
        ValueError: See `decode_picture`.
    """
    syntax = UID(runner.transfer_syntax)
    if syntax == RLELossless:
        return decode_run_lengths(source, runner)
    check_codestream(source, syntax, runner.rows, runner.columns, runner.samples_per_pixel)
    # Decision 12: JPEG of 8 bits stays with Pillow.
    if syntax == JPEGBaseline8Bit:
        return bytes(pillow._decode_frame(source, runner))
    if syntax in _LOSSY_JPEG and runner.samples_per_pixel == 3:
        is_rgb = runner.photometric_interpretation == "RGB"
        # libjpeg-turbo makes RGB of YCbCr, as dcmtk does; pydicom must not do it a second time.
        pixels = imagecodecs.jpeg8_decode(source, colorspace="RGB" if is_rgb else "YCBCR", outcolorspace="RGB")
        runner.set_option("photometric_interpretation", "RGB")
    else:
        pixels = np.ascontiguousarray(_decode(source, syntax))
    # pydicom goes on with these bytes, and has to know their width and order, which are those of the codec.
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    # OpenJPEG undoes the colour transform (ICT or RCT) by itself, so its values are RGB already.
    if syntax in _JPEG_2000 and runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    return pixels.tobytes()


def decode_picture(source: bytes, syntax: UID, shape: tuple[int, int]) -> NDArray[Any]:
    """The values of a codestream of one sample a pixel, shape (rows, columns), in the type that the codec gives them.

    Args:
        source: The codestream.
        syntax: One of BY_IMAGECODECS.
        shape: (rows, columns) by the header.

    Raises:
        ValueError: The codestream has another size. It is refused before it is decoded, since it may state any size.
    """
    check_codestream(source, syntax, *shape, samples=1)
    return _decode(source, syntax)


def _decode(source: bytes, syntax: UID) -> NDArray[Any]:
    if syntax in _JPEG_2000:
        return imagecodecs.jpeg2k_decode(source)
    return imagecodecs.jpegls_decode(source) if syntax in JPEGLSTransferSyntaxes else imagecodecs.jpeg8_decode(source)

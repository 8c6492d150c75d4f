"""Run lengths and 8-bit JPEG, decoded by pydicom's own rules behind a guard against what makes a decoder fail badly."""

from __future__ import annotations

import struct
from itertools import pairwise

import imagecodecs
import numpy as np
from pydicom.pixels.decoders import pillow, rle
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import UID, JPEGBaseline8Bit, RLELossless

from dicom_io.reading.codestreams import check_codestream

SYNTAXES = (RLELossless, JPEGBaseline8Bit)
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("imagecodecs", "pillow"))
"""Asked for by pydicom of every module of decoders."""

_RLE_HEADER_BYTES = 64


def is_available(uid: str) -> bool:
    """Asked by pydicom: whether this module decodes a transfer syntax here."""
    return uid in SYNTAXES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame's codestream -> its values as bytes; called by pydicom.

    Raises:
        ValueError: It is not of the size that the header promises.
    """
    if runner.transfer_syntax == RLELossless:
        return _run_lengths(source, runner)
    syntax = UID(runner.transfer_syntax)
    check_codestream(source, syntax, runner.rows, runner.columns, runner.samples_per_pixel)
    return bytes(pillow._decode_frame(source, runner))


def _run_lengths(source: bytes, runner: DecodeRunner) -> bytes:
    """By imagecodecs; by pydicom, slowly, where an encoder padded its segments."""
    word, remainder = divmod(runner.bits_allocated, 8)
    try:
        if remainder or not word:
            raise ValueError(f"{runner.bits_allocated} bits have no run lengths")
        content = _words(source, runner.rows * runner.columns, runner.samples_per_pixel, word)
    except (RuntimeError, ValueError):
        return bytes(rle._decode_frame(source, runner))
    runner.set_option("planar_configuration", 1)
    return content


def _words(source: bytes, pixels: int, samples: int, word: int) -> bytes:
    """Little-endian values, sample by sample: their bytes stand in a segment each, the highest first (PS3.5 G.2).

    Each segment is decoded by itself, into as many bytes as there are pixels: whole frames without a limit, as imagecodecs
    offers them, are read and written beyond their ends where the header lies.
    """
    ends = _segment_ends(source, samples * word)
    found = np.empty((samples, pixels, word), dtype=np.uint8)
    for number, (start, end) in enumerate(pairwise(ends)):
        segment = np.frombuffer(imagecodecs.packbits_decode(source[start:end], out=pixels), dtype=np.uint8)
        if len(segment) != pixels:
            raise ValueError(f"segment {number + 1} has {len(segment)} bytes, {pixels} are needed")
        found[number // word, :, word - 1 - number % word] = segment
    return found.tobytes()


def _segment_ends(source: bytes, count: int) -> list[int]:
    """Where `count` segments begin, and the end of the last (PS3.5 G.5)."""
    if len(source) < _RLE_HEADER_BYTES:
        raise ValueError(f"run lengths begin with {_RLE_HEADER_BYTES} bytes, {len(source)} are there")
    told, *offsets = struct.unpack("<16L", source[:_RLE_HEADER_BYTES])
    ends = [*offsets[:count], len(source)]
    if told != count or ends[0] != _RLE_HEADER_BYTES or sorted(ends) != ends:
        raise ValueError(f"run lengths have {told} segments, {count} are needed")
    return ends

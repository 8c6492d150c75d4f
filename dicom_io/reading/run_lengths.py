"""Run lengths (PS3.5 annex G), decoded segment by segment, so that a wrong header cannot make a decoder crash."""

import struct
from itertools import pairwise

import imagecodecs
import numpy as np
from pydicom.pixels.decoders import rle
from pydicom.pixels.decoders.base import DecodeRunner

_RLE_HEADER_BYTES = 64


def decode_run_lengths(source: bytes, runner: DecodeRunner) -> bytes:
    """One frame -> its values as bytes, by imagecodecs, or by pydicom, which is slow, if an encoder padded its segments."""
    word_bytes, remainder = divmod(runner.bits_allocated, 8)
    try:
        if remainder or not word_bytes:
            raise ValueError(f"{runner.bits_allocated} bits have no run lengths")
        content = _words(source, runner.rows * runner.columns, runner.samples_per_pixel, word_bytes)
    except (RuntimeError, ValueError):
        return bytes(rle._decode_frame(source, runner))
    # The values follow sample by sample, as the segments do (PS3.5 G.2). pydicom's own decoder sets this itself.
    runner.set_option("planar_configuration", 1)
    return content


def _words(source: bytes, pixels: int, samples: int, word_bytes: int) -> bytes:
    """Little-endian values, sample by sample. Each byte of a word has a segment of its own, the highest first (PS3.5 G.2).

    Each segment is decoded by itself, into as many bytes as there are pixels. imagecodecs could decode whole frames, but it has
    no limit there: with a wrong header it reads and writes beyond the ends of its buffers.
    """
    ends = _segment_ends(source, samples * word_bytes)
    values = np.empty((samples, pixels, word_bytes), dtype=np.uint8)
    for number, (start, end) in enumerate(pairwise(ends)):
        segment = np.frombuffer(imagecodecs.packbits_decode(source[start:end], out=pixels), dtype=np.uint8)
        if len(segment) != pixels:
            raise ValueError(f"segment {number + 1} has {len(segment)} bytes, {pixels} are needed")
        values[number // word_bytes, :, word_bytes - 1 - number % word_bytes] = segment
    return values.tobytes()


def _segment_ends(source: bytes, count: int) -> list[int]:
    """The first bytes of `count` segments, and the end of the last segment (PS3.5 G.5)."""
    if len(source) < _RLE_HEADER_BYTES:
        raise ValueError(f"run lengths begin with {_RLE_HEADER_BYTES} bytes, {len(source)} are there")
    stated_count, *offsets = struct.unpack("<16L", source[:_RLE_HEADER_BYTES])
    ends = [*offsets[:count], len(source)]
    if stated_count != count or ends[0] != _RLE_HEADER_BYTES or sorted(ends) != ends:
        raise ValueError(f"run lengths have {stated_count} segments, {count} are needed")
    return ends

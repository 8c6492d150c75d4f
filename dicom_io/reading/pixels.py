"""Frames -> values: decoded and rescaled slice by slice in floating point, several slices at a time."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from dicom_io.errors import SeriesSelectionError, UnreadableFileError
from dicom_io.reading.codecs import BY_IMAGECODECS, WITHOUT_SIGN, decode_picture, decoder_of
from dicom_io.reading.codestreams import JPEG_LOSSLESS, codestream_header
from dicom_io.reading.frames import Frame
from dicom_io.reading.instances import READ_ERRORS, Instance, broken_file, refusing

PHYSICAL_MODALITIES = frozenset({"CT", "PT", "NM"})
"""Modalities whose values are physical (HU, activity, counts) and never inverted."""

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit and explicit VR little endian
# float32 holds whole numbers up to 2**24: a value of 16 bits and an intercept below 2**23 stay within that.
_EXACT_IN_FLOAT32 = 2**23
_HEAD_BYTES = 1 << 16  # of a codestream, which states its size there
_MAX_BITS = 16  # of grey values in a table or on a screen
_MAX_LUT_ENTRIES = 2**16  # PS3.3 C.7.6.3.1.5
_SEGMENT_DISCRETE, _SEGMENT_INDIRECT = 0, 2  # PS3.3 C.7.9.2
Slices = NDArray[np.float32]
Stored = NDArray[Any]
"""Pixel values as a file holds them, (rows, columns) or (rows, columns, 3) for RGB, of any integer or float type."""

Notes = dict[str, None]
"""Each note once, in the order of their first mention."""


def decode_frames(frames: Sequence[Frame], modality: str, shape: tuple[int, ...]) -> tuple[Slices, tuple[str, ...]]:
    """Values of frames after their modality transformation, computed in float64 where float32 would round.

    Args:
        frames: In the order of the result.
        modality: Of their series; see PHYSICAL_MODALITIES.
        shape: Of the result: (frames, rows, columns), or (frames, rows, columns, 3) in colour.

    Returns:
        float32 of that shape, and notes.

    Raises:
        UnreadableFileError: Pixels that cannot be decoded, or values that are NaN or infinite.
        SeriesSelectionError: There is not enough memory.
    """
    # The frames of an instance are a single task, so an object that pydicom has to decode is loaded once.
    by_instance: dict[int, list[int]] = {}
    for k, frame in enumerate(frames):
        by_instance.setdefault(id(frame.instance), []).append(k)
    notes: Notes = {}
    for indices in by_instance.values():
        _check_codestream_size(frames[indices[0]].instance, notes)
    slices = _empty(shape)
    inversion_sum = _inversion_sum(frames, modality, notes)

    def decode(indices: list[int]) -> Notes:
        return _decode_instance([frames[k] for k in indices], [slices[k] for k in indices])

    # Decision 12: threads, because the codecs release Python's lock, and to fork is unsafe beside the threads of torch.
    with ThreadPoolExecutor(max_workers=min(len(by_instance), os.cpu_count() or 1)) as pool:
        for instance_notes in pool.map(decode, by_instance.values()):
            notes.update(instance_notes)
    if inversion_sum is not None:
        # In place: a second array would double the memory.
        np.subtract(np.float32(inversion_sum), slices, out=slices)
    return slices, tuple(notes)


def _empty(shape: tuple[int, ...]) -> Slices:
    try:
        return np.empty(shape, dtype=np.float32)
    except MemoryError as error:
        size = np.prod(shape, dtype=float) * 4 / 2**30
        raise SeriesSelectionError(
            f"{' x '.join(map(str, shape))} values need {size:.1f} GiB of memory, more than there is; read a part, or use a "
            "machine with more"
        ) from error


def _check_codestream_size(instance: Instance, notes: Notes) -> None:
    """Refuses a first compressed picture of another size than the header states, before memory for all is allocated."""
    if not instance.fragments:
        return
    at, size = instance.fragments[0]
    with refusing(instance.name):
        stated = codestream_header(_bytes_of(instance, [(at, min(size, _HEAD_BYTES))]))
    if stated is None:
        return
    rows, columns = int(instance.header.Rows), int(instance.header.Columns)
    if (stated.rows, stated.columns) != (rows, columns):
        fault = f"the compressed picture has {stated.rows} x {stated.columns} pixels, the header {rows} x {columns}"
        raise broken_file(instance.name, fault)
    if stated.is_lossy_jpeg and instance.transfer_syntax in JPEG_LOSSLESS:
        notes["pixels are lossy JPEG, although their transfer syntax is lossless"] = None


def _decode_instance(frames: Sequence[Frame], targets: Sequence[Slices]) -> Notes:
    """Notes; fills the targets, shape (rows, columns) or (rows, columns, 3) each, with the values of one instance's frames."""
    notes: Notes = {}
    instance = frames[0].instance
    try:
        read_frame = _frame_reader(instance)
        for frame, target in zip(frames, targets, strict=True):
            stored = _tile(read_frame(max(frame.number - 1, 0)), frame)
            if stored.shape != target.shape:
                raise ValueError(f"its pixels have the shape {stored.shape}, {target.shape} is needed")
            _fill(target, stored, frame, notes)
    except READ_ERRORS as error:
        raise broken_file(instance.name, error) from error
    except MemoryError as error:
        raise UnreadableFileError(
            f"{instance.name} needs more memory than there is to be decoded; a smaller picture is needed, or more memory"
        ) from error
    return notes


def _frame_reader(instance: Instance) -> Callable[[int], Stored]:
    """A function from a frame's index to its stored values."""
    # Decision 12: usual grey files take two short ways; all others are decoded by the rules of pydicom.
    if _is_grey(instance):
        if instance.pixels_at is not None and instance.transfer_syntax in _NATIVE:
            return lambda index: _uncompressed(instance, index)
        if instance.frames == 1 and instance.fragments and instance.transfer_syntax in BY_IMAGECODECS:
            stored = _compressed(instance)
            if stored is not None:
                return lambda index: stored
    dataset = instance.load()
    if str(dataset.get("PhotometricInterpretation")) == "PALETTE COLOR":
        return lambda index: _palette(_by_pydicom(dataset, index), dataset)
    if "PixelData" not in dataset:  # float pixels: pydicom's decoder of the native syntax reads them
        frames = np.asarray(dataset.pixel_array).reshape(-1, int(dataset.Rows), int(dataset.Columns))
        return lambda index: frames[index]
    return lambda index: _by_pydicom(dataset, index)


def _is_grey(instance: Instance) -> bool:
    """Whether a file holds grey values of 8, 16 or 32 bits, which can be read without pydicom."""
    header = instance.header
    allocated, stored = int(header.get("BitsAllocated") or 0), int(header.get("BitsStored") or 0)
    return (
        int(header.get("SamplesPerPixel") or 1) == 1
        and allocated in (8, 16, 32)
        and 0 < stored <= allocated
        and int(header.get("PixelRepresentation") or 0) in (0, 1)
        and str(header.get("PhotometricInterpretation")) in ("MONOCHROME1", "MONOCHROME2")
    )


def _stored_type(header: Dataset) -> np.dtype[Any]:
    """The integer type of the stored values, little endian."""
    signed, size = int(header.get("PixelRepresentation") or 0), int(header.BitsAllocated) // 8
    return np.dtype(f"<{'i' if signed else 'u'}{size}")


def _uncompressed(instance: Instance, index: int) -> Stored:
    """Values of one frame, which a file holds in the order of an array."""
    # A single array, read into and changed in place: two more beside it, and the allocator gives the memory of all three back
    # to the system after each slice, which then costs a page fault for every 4 kB, most of the time of a reader.
    stored = np.empty((int(instance.header.Rows), int(instance.header.Columns)), _stored_type(instance.header))
    at = (instance.pixels_at or 0) + index * stored.nbytes
    with open(str(instance.path), "rb") as file:
        file.seek(at)
        read = file.readinto(stored.reshape(-1).view(np.uint8).data)
    if read < stored.nbytes:
        raise EOFError(f"{stored.nbytes} bytes of pixels are needed at byte {at}, {read} are left")
    return _stored_bits(stored, instance.header)


def _compressed(instance: Instance) -> Stored | None:
    """Values of the only frame; None if the codec's type is not that of the header: then pydicom has to decode it."""
    header, kind = instance.header, _stored_type(instance.header)
    content = _bytes_of(instance, instance.fragments)
    if _bits_below(header):
        return None
    stored = decode_picture(content, instance.transfer_syntax, (int(header.Rows), int(header.Columns)))
    if stored.dtype.itemsize != kind.itemsize or (stored.dtype.kind == "i" and kind.kind == "u"):
        return None
    if stored.dtype.kind != kind.kind and instance.transfer_syntax not in WITHOUT_SIGN:
        return None
    # A view changes no bit: JPEG-LS and lossless JPEG know no sign, so that of the header holds.
    return _stored_bits(np.ascontiguousarray(stored).view(kind), header)


def _bytes_of(instance: Instance, pieces: Sequence[tuple[int, int]]) -> bytes:
    """The bytes of some pieces of the file, (first byte, length) each, joined."""
    contents = []
    with open(str(instance.path), "rb") as file:
        for at, size in pieces:
            file.seek(at)
            contents.append(file.read(size))
            if len(contents[-1]) < size:
                raise EOFError(f"{size} bytes of pixels are needed at byte {at}, {len(contents[-1])} are left")
    return b"".join(contents)


def _stored_bits(stored: Stored, header: Dataset) -> Stored:
    """Values of BitsStored bits up to HighBit, with their sign, in the array that was given. The other bits may hold anything,
    such as old overlays (PS3.5 8.1.1).
    """
    # Shifted up and down again, signed values get copies of their sign in the upper bits, unsigned values zeros.
    unused = stored.dtype.itemsize * 8 - int(header.BitsStored)
    above = unused - _bits_below(header)
    if unused:
        np.left_shift(stored, above, out=stored)
        np.right_shift(stored, unused, out=stored)
    return stored


def _bits_below(header: Dataset) -> int:
    """How many bits of a pixel stand below its value; 0 for an impossible HighBit, which some writers write."""
    below = int(header.get("HighBit") or 0) + 1 - int(header.BitsStored)
    return below if 0 < below <= int(header.BitsAllocated) - int(header.BitsStored) else 0


def _by_pydicom(dataset: Any, index: int) -> Stored:
    if "BitsStored" in dataset and "BitsAllocated" in dataset and _bits_below(dataset):
        raise ValueError(
            f"its values are shifted by {_bits_below(dataset)} bits (HighBit {dataset.HighBit}), which is read only "
            "from uncompressed files in little endian"
        )
    return decoder_of(dataset.file_meta.TransferSyntaxUID).as_array(dataset, index=index)[0]


def _palette(stored: Stored, dataset: Dataset) -> Stored:
    """Colour numbers (rows, columns) -> RGB (rows, columns, 3) of 8 bits (PS3.3 C.7.6.3.1.5)."""
    for name in ("Red", "Green", "Blue"):
        _check_segments(dataset, name)
    # A table may hold 16 bits for each colour; their upper byte is the colour in 8 bits.
    coloured = apply_color_lut(stored, dataset)
    return coloured if coloured.dtype == np.uint8 else (coloured >> 8).astype(np.uint8)


def _check_segments(dataset: Dataset, name: str) -> None:
    """Raises ValueError if a segmented table expands to more entries than a table can have (PS3.3 C.7.9).

    A segment of three words can expand to 65535 entries, or repeat a run of other segments.
    """
    content = dataset.get(f"Segmented{name}PaletteColorLookupTableData")
    if not content:
        return
    # PS3.3 C.7.6.3.1.5: the third value of a descriptor is the number of bits of an entry.
    is_wide = int(dataset[f"{name}PaletteColorLookupTableDescriptor"].value[2]) > 8
    words = np.frombuffer(content[: len(content) // 2 * 2], "<u2" if is_wide else "u1").tolist()
    entries, at = 0, 0
    while at + 1 < len(words) and entries <= _MAX_LUT_ENTRIES:
        kind, length = words[at], words[at + 1]
        if kind == _SEGMENT_INDIRECT:
            raise ValueError(f"its {name} palette has a segment that repeats others, which is not read here")
        # PS3.3 C.7.9.2: a discrete segment is followed by its entries, a linear segment by its last entry alone.
        entries, at = entries + length, at + 2 + (length if kind == _SEGMENT_DISCRETE else 1)
    if entries > _MAX_LUT_ENTRIES:
        raise ValueError(f"its {name} palette has more than the {_MAX_LUT_ENTRIES} entries that are possible")


def _tile(stored: Stored, frame: Frame) -> Stored:
    """The part of a picture that is this frame: a tile of a mosaic, else the whole picture."""
    if frame.tile is None:
        return stored
    number, across = frame.tile
    rows, columns = frame.shape
    row, column = divmod(number, across)
    return stored[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def _fill(target: Slices, stored: Stored, frame: Frame, notes: Notes) -> None:
    """Stored values -> output values of the modality (PS3.3 C.11.1)."""
    header = frame.instance.header
    if "ModalityLUTSequence" in header:
        _store(target, np.asarray(apply_modality_lut(stored, header), dtype=np.float64), frame)
        notes["values were converted by the file's Modality LUT"] = None
    # The usual case, a slope of 1: a single pass, without a copy in float64.
    elif _is_exact(stored, frame):
        np.add(stored, np.float32(frame.intercept), out=target, dtype=np.float32, casting="unsafe")
    else:
        values = stored.astype(np.float64)
        values *= frame.slope
        values += frame.intercept
        _store(target, values, frame)


def _is_exact(stored: Stored, frame: Frame) -> bool:
    """Whether float32 holds stored value + intercept without rounding."""
    is_small = stored.dtype.kind in "iu" and stored.itemsize <= 2
    is_whole = frame.intercept.is_integer() and abs(frame.intercept) < _EXACT_IN_FLOAT32
    return is_small and frame.slope == 1.0 and is_whole


def _store(target: Slices, values: NDArray[np.float64], frame: Frame) -> None:
    # Values that float32 cannot hold are counted below and refused, so numpy need not warn.
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = values
    bad = target.size - int(np.isfinite(target).sum())
    if bad:
        raise UnreadableFileError(
            f"{frame.instance.name} holds {bad} NaN or infinite voxels of {target.size} in frame "
            f"{max(frame.number, 1)} after rescale (slope {frame.slope}, "
            f"intercept {frame.intercept}); finite voxels are needed; export it again from its source"
        )


def _inversion_sum(frames: Sequence[Frame], modality: str, notes: Notes) -> float | None:
    """The number from which all values are subtracted so that high values are bright; None if they are bright already.

    It is the sum of the lowest and the highest possible value of the volume, one number so that slices stay comparable. Values
    in physical units (HU, activity, counts) are not inverted: their sign does not depend on how they are displayed.
    """
    if all(frame.instance.header.get("PhotometricInterpretation") != "MONOCHROME1" for frame in frames):
        return None
    if modality in PHYSICAL_MODALITIES:
        notes[f"MONOCHROME1 was not inverted: {modality} values are physical, not brightness"] = None
        return None
    notes["MONOCHROME1 was inverted, so that high values are bright"] = None
    ranges = []
    for frame in frames:
        with refusing(frame.instance.name):
            ranges.append(_possible_values(frame))
    return min(low for low, _ in ranges) + max(high for _, high in ranges)


def _possible_values(frame: Frame) -> tuple[float, float]:
    """The least and greatest value that a frame can hold after its modality transformation."""
    header = frame.instance.header
    bits, is_signed = int(header.get("BitsStored") or 0), int(header.get("PixelRepresentation") or 0)
    if not 0 < bits <= _MAX_BITS:  # float pixels have no range: they are inverted about 0
        return frame.intercept, frame.intercept
    lowest = -(1 << bits - 1) if is_signed else 0
    highest = lowest + (1 << bits) - 1
    if "ModalityLUTSequence" in header:
        values = apply_modality_lut(np.arange(lowest, highest + 1), header)
        return float(values.min()), float(values.max())
    ends = sorted(value * frame.slope + frame.intercept for value in (lowest, highest))
    return ends[0], ends[1]

"""The proof of a Parametric Map: its frames are read through `raw_parser` and compared with the values."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dicom_io.errors import GeometryProofError
from dicom_io.objects import identity, proof_headers
from dicom_io.objects.proof_groups import PER_FRAME, SHARED, check_dimensions, check_groups, parsed_plane, parsed_source
from dicom_io.objects.proof_headers import code_text
from dicom_io.objects.raw_parser import Attributes, first_item, integer, items, needed, text, whole
from dicom_io.objects.slice_positions import Slice, apart_mm, tolerance_mm, values_at
from dicom_io.objects.source_images import SourceImages
from dicom_io.parametric.meaning import MapMeaning
from dicom_io.parametric.read import MapFrame
from dicom_io.reading.headers import shown, shown_uid
from dicom_io.volume import Volume

_FLOAT_PIXELS = 0x7FE00008
_MAPPING, _SLOPE, _INTERCEPT, _EXPLANATION = 0x00409096, 0x00409225, 0x00409224, 0x00283003
_QUANTITY, _CONCEPT, _UNITS = 0x00409220, 0x0040A168, 0x004008EA
_REFERENCED_SERIES, _REFERENCED_INSTANCES = 0x00081115, 0x0008114A


def prove_map(path: Path, values: Volume, images: SourceImages, meaning: MapMeaning) -> None:
    """Pass if the map holds every value of `values`, bit for bit as float32, at its place in millimetres, states their meaning,
    and belongs to the source's patient, study and frame of reference.

    Args:
        path: The written map; deleted on failure.
        values: Shape (I, J, K), float32.
        images: The images that the map refers to.
        meaning: The quantity and unit of the values.

    Raises:
        GeometryProofError: A value is missing, different or elsewhere, a frame does not coincide with the slice that
            it names, or something else differs.
    """
    with proof_headers.deleting(path, "parametric map") as written:
        slices, frames = {source_slice.key: k for k, source_slice in enumerate(images.slices)}, []
        for number, frame in enumerate(parsed_map_frames(written), start=1):
            key = next(iter(frame.named), "")
            # A slice that has had its frame is gone, so a second frame for it is refused.
            k = slices.pop(key, None)
            if k is None:
                name = shown_uid(key.split("#")[0])
                raise GeometryProofError(f"frame {number} names the image {name}, which is no slice or had a frame")
            _check_on_named_slice(number, frame, images.slices[k], tolerance_mm(*images.source.spacing_mm))
            differing = int(np.count_nonzero(frame.values != values_at(frame.plane, images.slices[k].shape, values)))
            if differing:
                raise GeometryProofError(f"{differing} of {frame.values.size} values of frame {number} differ")
            _check_meaning(frame.meaning, meaning)
            frames.append((0, k))
        if slices:
            raise GeometryProofError(f"{len(slices)} of {len(images.slices)} slices have no frame")
        check_groups(written)
        check_dimensions(written, frames)
        proof_headers.check_owner(written, images.headers[0])
        behind = (*images.headers, *identity.headers_of_others(images.source))
        proof_headers.check_images(items(written, _REFERENCED_SERIES), _REFERENCED_INSTANCES, behind)


def parsed_map_frames(written: Attributes) -> Iterator[MapFrame]:
    """Every frame of a map of our own, by `raw_parser`; its meaning is label, quantity and unit.

    Raises:
        GeometryProofError: Something is missing in it.
    """
    shared, groups = (items(written, SHARED) or [{}])[0], items(written, PER_FRAME)
    rows, columns = whole(written, 0x00280010), whole(written, 0x00280011)
    if len(groups) != integer(written, 0x00280008):
        raise GeometryProofError(f"{len(groups)} functional groups describe {integer(written, 0x00280008)} frames")
    # Float Pixel Data are 32-bit floats, little endian (PS3.3 C.7.6.24).
    stored = np.frombuffer(needed(written, _FLOAT_PIXELS), "<f4").reshape(len(groups), rows, columns)
    for own, pixels in zip(groups, stored, strict=True):
        mapping = first_item(own if items(own, _MAPPING) else shared, _MAPPING)
        slope, intercept = (struct.unpack("<d", needed(mapping, tag))[0] for tag in (_SLOPE, _INTERCEPT))
        plane, key = parsed_plane(own, shared), parsed_source(own)
        quantity = proof_headers.coded(first_item(mapping, _QUANTITY), _CONCEPT)
        meaning = (text(mapping, _EXPLANATION), quantity, proof_headers.coded(mapping, _UNITS))
        yield MapFrame(plane, (key,) if key else (), pixels.astype(np.float64) * slope + intercept, meaning)


def _check_meaning(stated: tuple[str, ...], meaning: MapMeaning) -> None:
    """Pass if label, quantity and unit of a frame are those of the values."""
    needed = (meaning.label.strip(), code_text(meaning.quantity), code_text(meaning.unit))
    for text_stated, text_needed in zip(stated, needed, strict=True):
        if text_stated != text_needed:
            raise GeometryProofError(f"its values are {shown(text_stated[:80])}; {text_needed} is needed")


def _check_on_named_slice(number: int, frame: MapFrame, source_slice: Slice, tolerance: float) -> None:
    """Pass if the corners of a frame lie within `tolerance` mm of the corners of the slice that it names."""
    if frame.values.shape != source_slice.shape or source_slice.plane is None:
        raise GeometryProofError(f"frame {number} has {frame.values.shape} pixels, its slice {source_slice.shape}")
    away = apart_mm(frame.plane, source_slice.plane, source_slice.shape)
    if away > tolerance:
        name = shown_uid(source_slice.sop_instance_uid)
        raise GeometryProofError(f"frame {number} lies {away:.2f} mm away from the slice {name} it names")

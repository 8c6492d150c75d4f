"""Read the outlines of a presentation state again and compare them with the result, pixel by pixel.

The file is read through `raw_parser`, which shares nothing with the writer (pydicom). Outlines are drawn by contourpy and
filled here by `raster`. The labels on each image come from `SourceImages`, as for the writer. Every point of an outline must
lie half-way between the centres of two neighbouring pixels. This finds outlines that were moved by less than half a pixel and
still enclose the same centres.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicom_io.coding import Segment
from dicom_io.errors import GeometryProofError
from dicom_io.objects import proof_headers
from dicom_io.objects.proof_headers import cielab, cielab_of, compare, encoding_of
from dicom_io.objects.raster import Floats, even_odd, off_half_way
from dicom_io.objects.raw_parser import Attributes, instance_key, items, text, whole
from dicom_io.objects.source_images import SourceImages
from dicom_io.reading.headers import shown_uid
from dicom_io.segmentation import SliceLabels
from dicom_io.volume import Volume

PIXEL_CENTRE = 0.5  # PS3.3 table C.10-5 and figure C.10.5-1: the first pixel runs from 0.0\0.0 to 1.0\1.0
TOLERANCE_PIXELS = 0.001  # halves are exact in the 32 bits of Graphic Data
_ANNOTATIONS, _OBJECTS, _IMAGES = 0x00700001, 0x00700009, 0x00081140
_KIND, _UNITS, _COUNT, _DATA = 0x00700023, 0x00700005, 0x00700021, 0x00700022
_REFERENCED_SERIES, _SERIES, _INSTANCE, _FRAME = 0x00081115, 0x0020000E, 0x00081155, 0x00081160
LAYER_PREFIX = "SEGMENT "
_LAYERS, _LAYER, _LAYER_TEXT, _LAYER_COLOUR = 0x00700060, 0x00700002, 0x00700068, 0x00700401
_TEXTS, _TEXT = 0x00700008, 0x00700006


@dataclass(frozen=True)
class Outline:
    """One closed outline of a presentation state.

    Attributes:
        segment: The segment that it encloses, by its layer.
        source_key: The image that it is drawn on, as `Slice.key`; None: every image.
        points: Shape (n, 2): (column, row), pixel centres at whole numbers; the last point joins the first.
    """

    segment: int
    source_key: str | None
    points: Floats


def outlines_of(written: Attributes) -> Iterator[Outline]:
    """Every outline on a layer of a segment.

    Raises:
        GeometryProofError: Something else is drawn there, or a line is not closed.
    """
    for item in items(written, _ANNOTATIONS):
        segment = segment_of_layer(item)
        if segment:
            # Without ReferencedImageSequence an annotation is for all images (PS3.3 C.10.5).
            keys: list[str | None] = [instance_key(image) for image in items(item, _IMAGES)] or [None]
            for points in joined(map(_points, items(item, _OBJECTS))):
                yield from (Outline(segment, key, points) for key in keys)


def joined(lines: Iterable[Floats]) -> Iterator[Floats]:
    """Closed outlines, joined of lines. A long outline is cut into several lines; each ends where the next begins.

    Args:
        lines: Shape (n, 2) each.

    Returns:
        The outlines without the repeated points.

    Raises:
        GeometryProofError: An outline is not closed.
    """
    way: list[Floats] = []
    for line in lines:
        # Exact comparison: the writer puts the same 32-bit numbers at the end of a line and at the start of the next.
        if way and (way[-1][-1] != line[0]).any():
            break
        way.append(line)
        if (way[0][0] == line[-1]).all():
            yield np.concatenate([part[:-1] for part in way])
            way = []
    if way:
        raise GeometryProofError(f"an outline of {sum(map(len, way))} points is not closed")


def _points(graphic: Attributes) -> Floats:
    kind = (text(graphic, _KIND), text(graphic, _UNITS))
    values = np.frombuffer(graphic.get(_DATA, b""), "<f4").astype(np.float64)
    if kind != ("POLYLINE", "PIXEL") or len(values) != 2 * whole(graphic, _COUNT) or len(values) < 4:
        raise GeometryProofError(
            f"a segment's layer holds {kind} of {len(values)} numbers; a POLYLINE in PIXEL is needed"
        )
    return values.reshape(-1, 2) - PIXEL_CENTRE


def prove_outlines(path: Path, labels: Volume, images: SourceImages, segments: Sequence[Segment]) -> None:
    """Pass if the outlines, rasterised anew on the images that they name, enclose exactly the labelled pixels, run half-way
    between pixels, and lie on the layers of their segments in a presentation state of the source's patient and study.

    Args:
        path: The written presentation state; deleted on failure.
        labels: Shape (I, J, K) with label values, or (I, J, K, C) with channel c as segment c + 1.
        images: The images that it refers to.
        segments: What the labels mean.

    Raises:
        GeometryProofError: A pixel is missing or added, an outline names no image of the source, or something else differs.
    """
    with proof_headers.deleting(path, "presentation state") as written:
        slices = {source_slice.key: k for k, source_slice in enumerate(images.slices)}
        loops: dict[int, dict[int, list[Floats]]] = {k: {} for k in slices.values()}
        for line in outlines_of(written):
            if line.source_key not in slices:
                name = shown_uid((line.source_key or "none").split("#")[0])
                raise GeometryProofError(f"an outline names the image {name}, which is not of the source")
            _check_half_way(line)
            loops[slices[line.source_key]].setdefault(line.segment, []).append(line.points)
        for k, drawn in loops.items():
            _check_outlines(k, drawn, SliceLabels(images.values(k, labels)))
        proof_headers.check_owner(written, images.headers[0], has_frame=False)
        check_layers(written, segments)
        _check_series(written, images)


def _check_half_way(line: Outline) -> None:
    away = float(off_half_way(line.points).max())
    if not away <= TOLERANCE_PIXELS:
        raise GeometryProofError(
            f"an outline of segment {line.segment} has a point {away:.2f} pixels away from the middle between two pixels"
        )


def _check_outlines(k: int, drawn: dict[int, list[Floats]], plane: SliceLabels) -> None:
    """Compare the loops of each segment on slice k with the labels there."""
    shape, numbers = plane.values.shape[:2], set(plane.numbers)
    for segment in sorted(numbers | set(drawn)):
        expected = plane.mask(segment) if segment in numbers else np.zeros(shape, dtype=bool)
        differing = int(np.count_nonzero(even_odd(drawn.get(segment, []), shape) != expected))
        if differing:
            raise GeometryProofError(f"the outlines of segment {segment} miss {differing} pixels of slice {k}")


def _check_series(written: Attributes, images: SourceImages) -> None:
    """Pass if the presentation state refers to exactly the images of the source."""
    keys, name = [], str(images.headers[0].SeriesInstanceUID)
    for series in items(written, _REFERENCED_SERIES):
        if text(series, _SERIES) != name:
            raise GeometryProofError(f"it is for images of another series than {name}")
        keys += [key for image in items(series, _IMAGES) for key in _keys(image)]
    needed = {source_slice.key for source_slice in images.slices}
    if sorted(keys) != sorted(needed):
        raise GeometryProofError(f"it is for {len(keys)} images, not for the {len(needed)} of the source")


def _keys(image: Attributes) -> list[str]:
    """As `instance_key`, for each of several frames."""
    frames = [int(frame) for frame in text(image, _FRAME).split("\\") if frame]
    return [f"{text(image, _INSTANCE)}#{frame}" for frame in frames] or [text(image, _INSTANCE)]


def check_layers(written: Attributes, segments: Sequence[Segment]) -> None:
    """Pass if a presentation state has a layer for each segment, in its colour, whose only text is the segment's label."""
    layers = [item for item in items(written, _LAYERS) if text(item, _LAYER).startswith(LAYER_PREFIX)]
    encoding = encoding_of(written)
    stated = [
        (segment_of_layer(item), {"label": text(item, _LAYER_TEXT, encoding), "colour": cielab(item, _LAYER_COLOUR)})
        for item in layers
    ]
    meanings = {segment.number: {"label": segment.label.strip(), "colour": cielab_of(segment)} for segment in segments}
    compare("layer", stated, meanings)
    for item in items(written, _ANNOTATIONS):
        number = segment_of_layer(item)
        label = meanings.get(number, {}).get("label")
        if number and any(text(line, _TEXT, encoding) != label for line in items(item, _TEXTS)):
            raise GeometryProofError(f"the layer of segment {number} shows a text that is not the segment's label")


def segment_of_layer(item: Attributes) -> int:
    """The segment of the graphic layer that an item names; 0 for a layer without a segment."""
    name = text(item, _LAYER)
    return int(name[len(LAYER_PREFIX) :]) if name.startswith(LAYER_PREFIX) else 0

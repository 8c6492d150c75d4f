"""Labels to a Softcopy Presentation State: outlines on the source images, for systems that cannot show a SEG.

Grey sources get a Grayscale Softcopy Presentation State (PS3.3 A.33.1), colour pictures a Color Softcopy Presentation State
(A.33.2). A transformation that is absent from a presentation state counts as identity, even if the image has it (PS3.4 N.2).
So the source's own Modality LUT, windows, polarity, shutter and pixel shape are repeated here.

Outlines are POLYLINEs in PIXEL units: 0.0\\0.0 is the upper left corner of the first pixel, so its centre is 0.5\\0.5
(PS3.3 table C.10-5, figure C.10.5-1). They run half-way between the centre of a pixel inside and the centre of its
neighbour outside, as in `rtstruct`. A hole is a line of its own, because the bridge of a keyhole would be visible.
"""

from collections.abc import Iterable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import highdicom as hd
import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ColorSoftcopyPresentationStateStorage, GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import format_number_as_ds

from dicom_io import proof
from dicom_io.coding import Segment
from dicom_io.errors import LabelError
from dicom_io.objects import display, identity, source_images
from dicom_io.objects.drawing import RESEARCH_RGB, RESEARCH_TEXT
from dicom_io.objects.encoding import data_set
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.result_content import ResultContent
from dicom_io.objects.source_images import SourceImages
from dicom_io.presentation.proof import LAYER_PREFIX, PIXEL_CENTRE, prove_outlines
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume

RESEARCH_LAYER = "RESEARCH"
MAX_POINTS = 8000  # Graphic Data is FL, whose length in bytes must fit 16 bits (PS3.5 7.1.2)
LEGEND_LINES, LINE_HEIGHT = 24, 0.03  # of the displayed area, from its lower edge upwards
# L* of 0, and a* and b* of 0, which are stored as 0x8080 (PS3.3 C.10.7.1.1).
BLACK_CIELAB = [0, 0x8080, 0x8080]
SHUTTER_KEYWORDS = (
    "ShutterShape ShutterLeftVerticalEdge ShutterRightVerticalEdge ShutterUpperHorizontalEdge "
    "ShutterLowerHorizontalEdge CenterOfCircularShutter RadiusOfCircularShutter VerticesOfThePolygonalShutter"
)
Floats = NDArray[np.float64]


@refusing_odd_headers
def write_gsps(labels: Volume, source: Volume, path: Path, result: ResultInfo) -> Path:
    """Write the outlines of the labels as a presentation state on the source images.

    Args:
        labels: On the grid of `source`. Shape (I, J, K) with values 0 (background) to N, or (I, J, K, C) with
            channel c non-zero where segment c + 1 is (segments may overlap).
        source: DICOM series, or one picture without patient space, grey or in colour; its files are read again for
            their headers.
        path: Target file, replaced if it exists.
        result: What computed the labels.

    Returns:
        `path`. There is a graphic layer for each segment in its colour, and a layer with the research mark. A segment without
        voxels has a layer without outlines.

    Raises:
        LabelError: The labels do not fit the source or the segments, or one presentation state cannot describe the source's
            display.
        GeometryProofError: The written file does not hold the labels; no file is left.
    """
    segmentation, images = source_images.labelled(labels, source, result)
    labels = segmentation.label_volume
    header, colour = images.headers[0], source.in_colour
    dataset = _identified(labels, images, result, colour=colour)
    series = data_set(
        SeriesInstanceUID=header.SeriesInstanceUID,
        ReferencedImageSequence=_references(images, range(len(images.slices))),
    )
    dataset.ReferencedSeriesSequence = [series]
    dataset.DisplayedAreaSelectionSequence = [_displayed_area(images)]
    dataset.GraphicLayerSequence = _layers(result)
    dataset.GraphicAnnotationSequence = list(_annotations(segmentation, images))
    _add_shutter(dataset, header, colour=colour)
    if colour:
        dataset.ICCProfile = header.get("ICCProfile") or display.srgb_profile()
    else:
        _add_grey_transformations(dataset, images)
    return proof.save_proved(dataset, path, lambda file: prove_outlines(file, labels, images, result.segments))


def write_result(content: ResultContent, path: Path) -> None:
    """Write the presentation state of a result; see `write_gsps`."""
    write_gsps(content.labels, content.source, path, content.info)


def outlines(mask: NDArray[np.bool_]) -> list[Floats]:
    """Closed outlines of a mask of shape (rows, columns), holes too: (n, 2) points (column, row) with the first point
    again at the end; pixel centres are whole numbers.
    """
    # The margin closes outlines at the edge of the image. Between 0 and 1 the level 0.5 lies half-way between
    # two centres.
    generator = contour_generator(z=np.pad(mask.astype(np.float64), 1), name="serial", line_type=LineType.Separate)
    return [_corners(np.asarray(line, dtype=np.float64)[:-1] - 1.0) for line in generator.lines(0.5)]


def _corners(loop: Floats) -> Floats:
    """The closed loop without the points on a straight line between their neighbours."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    # The cross product of two steps in one direction is 0.
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    corners = loop[turns]
    return np.concatenate([corners, corners[:1]])


def _identified(labels: Volume, images: SourceImages, result: ResultInfo, *, colour: bool) -> Dataset:
    """Patient, study, series, equipment and name of the presentation state."""
    headers = images.headers
    sop_class = ColorSoftcopyPresentationStateStorage if colour else GrayscaleSoftcopyPresentationStateStorage
    uids = identity.object_uids(images.source, result, "GSPS", identity.digest_of(labels.array))
    dataset = source_images.result_object("GSPS", uids, headers, result, sop_class)
    source_images.add_body_part(dataset, headers[0])
    dataset.PresentationCreationDate, dataset.PresentationCreationTime = identity.content_moment(headers)
    dataset.ContentLabel = "SEGMENTATION"
    dataset.ContentDescription = "Outlines; research use only, not for diagnosis"
    dataset.ContentCreatorName = ""
    return dataset


def _references(images: SourceImages, slices: Iterable[int]) -> list[Dataset]:
    """References to slices: an item for each object, with all its frames if it is a multi-frame object."""
    items: dict[str, Dataset] = {}
    for k in slices:
        item = images.reference(k)
        first = items.setdefault(images.slices[k].sop_instance_uid, item)
        if first is not item:
            frames = first.ReferencedFrameNumber
            first.ReferencedFrameNumber = [
                *([frames] if isinstance(frames, int) else frames),
                item.ReferencedFrameNumber,
            ]
    return list(items.values())


def _displayed_area(images: SourceImages) -> Dataset:
    """The whole image, scaled to fit, with its true pixel shape (PS3.3 C.10.4); its first pixel is 1\\1 here."""
    area = data_set(
        DisplayedAreaTopLeftHandCorner=[1, 1],
        DisplayedAreaBottomRightHandCorner=list(images.slices[0].shape[::-1]),
        PresentationSizeMode="SCALE TO FIT",
    )
    across, down = images.pixel_size(0)
    if images.has_pixel_spacing(0):
        area.PresentationPixelSpacing = [format_number_as_ds(down), format_number_as_ds(across)]
    else:
        area.PresentationPixelAspectRatio = source_images.aspect_ratio(across, down)
    return area


def _layers(result: ResultInfo) -> list[Dataset]:
    layers = [_layer(_layer_name(segment), segment.label, segment.rgb) for segment in result.segments]
    # The last layer lies on top, so no outline hides the research mark.
    layers.append(_layer(RESEARCH_LAYER, RESEARCH_TEXT, RESEARCH_RGB))
    for order, layer in enumerate(layers, start=1):
        layer.GraphicLayerOrder = order
    return layers


def _layer(name: str, description: str, rgb: tuple[int, int, int]) -> Dataset:
    return data_set(
        GraphicLayer=name,
        # White, as a P-value (PS3.3 C.10.7).
        GraphicLayerRecommendedDisplayGrayscaleValue=0xFFFF,
        GraphicLayerRecommendedDisplayCIELabValue=list(hd.color.CIELabColor.from_rgb(*rgb).value),
        GraphicLayerDescription=description,
    )


def _layer_name(segment: Segment) -> str:
    return f"{LAYER_PREFIX}{segment.number}"


def _annotations(segmentation: Segmentation, images: SourceImages) -> Iterable[Dataset]:
    """The research mark, then for each segment a line of the legend and an item with its outlines for each slice."""
    yield _text_item(RESEARCH_LAYER, RESEARCH_TEXT, 0)
    planes, lines = [images.labels(k, segmentation) for k in range(len(images.slices))], 0
    for segment in segmentation.segments:
        masks = {k: plane.mask(segment.number) for k, plane in enumerate(planes)}
        drawn = {k: mask for k, mask in masks.items() if mask.any()}
        if drawn and lines < LEGEND_LINES:
            lines += 1
            yield _text_item(_layer_name(segment), segment.label, lines)
        for k, mask in drawn.items():
            yield data_set(
                ReferencedImageSequence=[images.reference(k)],
                GraphicLayer=_layer_name(segment),
                GraphicObjectSequence=[line for loop in outlines(mask) for line in _polylines(loop)],
            )


def _text_item(layer: str, text: str, line: int) -> Dataset:
    """Text at the lower left of the displayed area, on every image, `line` lines from the bottom."""
    lower = 0.99 - LINE_HEIGHT * line
    box = data_set(
        BoundingBoxAnnotationUnits="DISPLAY",
        UnformattedTextValue=text,
        BoundingBoxTopLeftHandCorner=[0.01, lower - LINE_HEIGHT],
        BoundingBoxBottomRightHandCorner=[0.99, lower],
        BoundingBoxTextHorizontalJustification="LEFT",
    )
    return data_set(GraphicLayer=layer, TextObjectSequence=[box])


def _polylines(loop: Floats) -> Iterable[Dataset]:
    """A POLYLINE, or several open lines end to end if a single line does not fit its data element."""
    # Neighbouring lines share a point, so that no gap is visible.
    cuts = [*range(0, len(loop) - 1, MAX_POINTS - 1), len(loop) - 1]
    for first, last in pairwise(cuts):
        points = loop[first : last + 1] + PIXEL_CENTRE
        line = data_set(
            GraphicAnnotationUnits="PIXEL",
            GraphicDimensions=2,
            NumberOfGraphicPoints=len(points),
            GraphicData=points.ravel().tolist(),
            GraphicType="POLYLINE",
        )
        if len(cuts) == 2:
            line.GraphicFilled = "N"  # Type 1C: only for a closed line
        yield line


def _add_shutter(dataset: Dataset, header: Dataset, *, colour: bool) -> None:
    """The shutter of the first image, if the image has a shutter; without it the margin of a radiograph is glaring."""
    if not header.get("ShutterShape"):
        return
    for keyword in SHUTTER_KEYWORDS.split():
        if keyword in header:
            dataset[keyword] = deepcopy(header[keyword])
    dataset.ShutterPresentationValue = int(header.get("ShutterPresentationValue") or 0)
    if colour:
        dataset.ShutterPresentationColorCIELabValue = BLACK_CIELAB


def _add_grey_transformations(dataset: Dataset, images: SourceImages) -> None:
    """Modality LUT, VOI LUT and polarity as the source has them.

    A presentation state has one Modality LUT for all its images (PS3.3 C.11.1). Where the rescale differs from slice
    to slice (PET, some MR) it is left out, and the windows are given for the stored values instead.
    """
    header = images.headers[0]
    if header.get("ModalityLUTSequence") and header.get("PhotometricInterpretation") == "MONOCHROME1":
        raise LabelError(
            "the source is MONOCHROME1 with a Modality LUT table; a linear rescale or MONOCHROME2 is needed, for the "
            "window to be known; write captures instead"
        )
    views = display.displays(images)
    rescales = {(view.slope, view.intercept) for view in views}
    if len(rescales) > 1:
        # A negative slope would need a window of negative width; the entries of a table belong to rescaled values.
        if any(view.slope <= 0 or view.table for view in views):
            raise LabelError(
                f"the source has {len(rescales)} different rescales from slice to slice, with negative slopes or lookup "
                "tables; one presentation state cannot show that; write a SEG or captures instead"
            )
    else:
        _add_modality_lut(dataset, header, views[0])
    # Slices that are shown alike share an item, which names its images only if there are several (PS3.3 C.11.8).
    groups: dict[str, tuple[Dataset, list[int]]] = {}
    for k, view in enumerate(views):
        item = _voi_item(view, rescaled=len(rescales) == 1)
        groups.setdefault(item.to_json(), (item, []))[1].append(k)
    for item, slices in groups.values():
        if len(groups) > 1:
            item.ReferencedImageSequence = _references(images, slices)
    dataset.SoftcopyVOILUTSequence = [item for item, _ in groups.values()]
    # PS3.4 N.2.1.4: the image's photometric interpretation is overridden; INVERSE makes MONOCHROME1 look right
    dataset.PresentationLUTShape = "INVERSE" if views[0].inverted else "IDENTITY"


def _add_modality_lut(dataset: Dataset, header: Dataset, view: display.Display) -> None:
    if header.get("ModalityLUTSequence"):
        dataset.ModalityLUTSequence = deepcopy(header.ModalityLUTSequence)
        return
    kind = source_images.rescale_type(header)
    dataset.RescaleIntercept = format_number_as_ds(view.intercept)
    dataset.RescaleSlope = format_number_as_ds(view.slope)
    # RescaleType must be there beside a slope; US means unspecified (PS3.3 C.11.1.1.2).
    dataset.RescaleType = kind or ("HU" if header.get("Modality") == "CT" else "US")


def _voi_item(view: display.Display, *, rescaled: bool) -> Dataset:
    if view.table is not None:
        return data_set(VOILUTSequence=[display.state_table(view.table)])
    assert view.window is not None
    window = view.window if rescaled else view.window.before(view.slope, view.intercept)
    item = data_set(
        WindowCenter=format_number_as_ds(window.center),
        WindowWidth=format_number_as_ds(window.width),
        VOILUTFunction=window.function,
    )
    if window.explanation:
        item.WindowCenterWidthExplanation = identity.plain(window.explanation)
    return item

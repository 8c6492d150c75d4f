"""Labels burned into pictures of the source: DICOM Secondary Captures, for systems that show nothing else.

One single-frame RGB object a slice, because every system shows those; a multi-frame true colour capture would be one
file, but not every viewer pages through it. Pixels are resampled to be square: PixelAspectRatio is ignored by many
viewers, and would stretch the burned-in text. The picture stands in a black frame that holds the text, so nothing of
the image is covered. A notice, which says that nothing was made of a series, is one picture of text.
"""

import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import format_number_as_ds

from dicom_io import proof
from dicom_io.coding import code_item
from dicom_io.errors import DicomIoError, LabelError, UnreadableFileError
from dicom_io.objects import display, drawing, identity
from dicom_io.objects.functional_groups import reference
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.result_content import ResultContent
from dicom_io.objects.source_images import SourceImages, add_body_part, labelled, result_object
from dicom_io.reading.checks import check_one_patient
from dicom_io.reading.headers import patient_digest, whole_number
from dicom_io.reading.instances import READ_ERRORS, load_dataset
from dicom_io.segmentation import Segmentation, SliceLabels
from dicom_io.volume import Volume

AXIS_LETTERS = ("LR", "PA", "HF")  # PS3.3 C.7.6.1.1.1: towards +x, -x; +y, -y; +z, -z
_OPPOSITE = str.maketrans("LRPAHF", "RLAPFH")
LEAST_COSINE = 0.2  # a direction letter is left out for less than 12 degrees
NOT_PROCESSED = "NOT PROCESSED"
NO_FINDING = "No result was made. This is not a finding."
MOST_REASON = 1000
"""Characters of a reason that a notice shows."""

_UNTOLD = re.compile(r"\d+(?:\.\d+){3,}|(?<![\w/])/\S*[^\s.,:;)]")  # a UID, a path


@dataclass(frozen=True)
class CaptureStyle:
    """How captures look.

    Attributes:
        outline: Draw the edge of each segment in its full colour, inside of it.
        opacity: How much of the segment's colour covers the picture, 0 (none) to 1.
        limit: At most so many captures where no slices are named, at least 1.
        least_side: Smaller pictures are enlarged by a whole number until their longer side has so many pixels.
    """

    outline: bool = True
    opacity: float = 0.3
    limit: int = 24
    least_side: int = 512


@dataclass(frozen=True)
class _Scene:
    """The input that all captures of one result share."""

    planes: list[SliceLabels]
    images: SourceImages
    displays: list[display.Display]
    result: ResultInfo
    style: CaptureStyle


@refusing_odd_headers
def write_captures(
    labels: Volume,
    source: Volume,
    folder: Path,
    result: ResultInfo,
    *,
    slices: Sequence[int] | None = None,
    style: CaptureStyle | None = None,
) -> tuple[Path, ...]:
    """Write pictures of the labelled slices, with segments, legend and research mark burned in.

    Args:
        labels: On the grid of `source`. Shape (I, J, K) with values 0 (background) to N, or (I, J, K, C) with
            channel c non-zero where segment c + 1 is (segments may overlap).
        source: DICOM series, or one picture without patient space, grey or in colour.
        folder: Where `capture_001.dcm` (the first slice) and so on are written; created where it is absent.
        result: What computed the labels.
        slices: Which slices (k from 0); by default `chosen_slices`.
        style: How they look.

    Returns:
        The paths in order of the slices; one series. InstanceNumber and file name are k + 1, so that the object of a
        slice is the same whichever others are written. All or none are written.

    Raises:
        LabelError: The labels do not fit the source or the segments, or a slice does not exist.
    """
    style = style or CaptureStyle()
    _check_style(style)
    scene = _scene(*labelled(labels, source, result), result, style)
    counts = [int(np.count_nonzero(plane.values)) for plane in scene.planes]
    chosen = chosen_slices(counts, style.limit) if slices is None else sorted(set(slices))
    _check_slices(chosen, len(counts))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        # All pictures are written before the first gets its name, so an error leaves none of them.
        names = [f"capture_{k + 1:03d}.dcm" for k in chosen]
        for k, name in zip(chosen, names, strict=True):
            _object(scene, k).save_as(Path(part) / name, enforce_file_format=True)
        return tuple(Path(part, name).replace(folder / name) for name in names)


def write_result(content: ResultContent, path: Path) -> None:
    """Write the captures of a result into a folder; see `write_captures`."""
    write_captures(content.labels, content.source, path, content.info)


@refusing_odd_headers
def write_notice(files: Sequence[Path], reason: str, path: Path, result: ResultInfo, *, about: str = "") -> Path:
    """Write a picture which says that nothing was made of a series, and why: silence could be taken for "nothing found".

    Args:
        files: Of the series, which need not be readable as an image. The first with a whole header says whose it is.
        reason: Why, in words that name no patient. UIDs and paths in it become "...": nobody reads them, and a picture
            keeps them when its study is de-identified.
        path: Target file, replaced if it exists.
        result: The program that would have computed a result.
        about: A further fact about the series, for instance the rule that chose it; in words that name no patient.

    Returns:
        `path`. The same series, result and words give the same bytes, others give another SOP Instance UID. The notice has a
        series of its own.

    Raises:
        UnreadableFileError: No file has a whole header, or the header has a value that cannot be read.
        LabelError: No file names its study, series and class.
        SeriesSelectionError: The files are of several patients; nobody could say whose record the notice belongs to.
    """
    try:
        dataset = _notice(_header_of_series(files), _legible(reason), about, result)
    except READ_ERRORS as error:  # whose text may hold a value
        raise UnreadableFileError(
            f"a header of the series has a value that cannot be read ({type(error).__name__}); whole headers are needed; "
            "export the series again"
        ) from error
    return proof.save_proved(dataset, path, None)


def chosen_slices(counts: Sequence[int], limit: int) -> list[int]:
    """The slices with labels in order, or `limit` of them, evenly from the first to the last.

    The slice with the most labelled voxels is always among them: if need be, it takes the place of the nearest of them.
    Without labels, the middle slice.

    Args:
        counts: Labelled voxels of each slice.
        limit: At least 1.
    """
    filled = np.flatnonzero(counts)
    if not len(filled):
        return [len(counts) // 2]
    largest = int(np.argmax(counts))
    if len(filled) <= limit:
        return [int(k) for k in filled]
    even = filled[np.rint(np.linspace(0, len(filled) - 1, limit)).astype(int)] if limit > 1 else filled[:1]
    if largest not in even:
        even[int(np.argmin(np.abs(even - largest)))] = largest
    return sorted({int(k) for k in even})


def _scene(segmentation: Segmentation, images: SourceImages, result: ResultInfo, style: CaptureStyle) -> _Scene:
    displays = [] if images.source.in_colour else display.displays(images)
    return _Scene([images.labels(k, segmentation) for k in range(len(images.slices))], images, displays, result, style)


def _check_style(style: CaptureStyle) -> None:
    if not 0 <= style.opacity <= 1 or style.limit < 1 or style.least_side < 1:
        raise LabelError(
            f"the style has opacity {style.opacity}, limit {style.limit} and least side {style.least_side}; 0 to 1, and "
            "twice 1 or more, are needed; change the style"
        )


def _check_slices(chosen: Sequence[int], count: int) -> None:
    if not chosen or not all(0 <= k < count for k in chosen):
        raise LabelError(
            f"captures of the slices {list(chosen)} are asked for; numbers from 0 to {count - 1}, at least one, are "
            "needed; name other slices"
        )


def _draw(scene: _Scene, k: int) -> drawing.FramedPicture:
    rows, columns = scene.images.slices[k].shape
    size = drawing.picture_size((columns, rows), scene.images.pixel_size(k), scene.style.least_side)
    picture = _background(scene, k, size).astype(np.float64)
    plane, style = scene.planes[k], scene.style
    masks = ((segment.drawn_label, segment.rgb, plane.mask(segment.number)) for segment in scene.result.segments)
    pixels, legend = drawing.with_masks(
        picture, masks, style.opacity, outline=drawing.OUTLINE if style.outline else 0.0
    )
    return drawing.framed(pixels, _edge_letters(scene.images, k), [*_captions(scene, k)], legend)


def _background(scene: _Scene, k: int, size: tuple[int, int]) -> drawing.Pixels:
    """The slice in RGB, interpolated before windowing as on a workstation."""
    values = scene.images.values(k, scene.images.source)
    if scene.images.source.in_colour:
        colours = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return drawing.smooth(np.ascontiguousarray(colours), size)
    grey = scene.displays[k].grey(drawing.smooth(np.ascontiguousarray(values, dtype=np.float32), size))
    return np.repeat(np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _edge_letters(images: SourceImages, k: int) -> drawing.Letters | None:
    """Directions of the patient at the left, right, upper and lower edge, None where they are not known."""
    plane = images.slices[k].plane
    if plane is not None:
        named = [_letters(plane.column_step_mm), _letters(plane.row_step_mm)]
    else:
        named = images.header(k).get("PatientOrientation") or []
    if len(named) != 2 or not all(named):
        return None
    right, lower = map(str, named)
    return right.translate(_OPPOSITE), right, lower.translate(_OPPOSITE), lower


def _letters(step: NDArray[np.float64]) -> str:
    """PatientOrientation of a direction: letters of its axes, the strongest first."""
    cosines = step / np.linalg.norm(step)
    axes = [axis for axis in np.argsort(-np.abs(cosines), kind="stable") if abs(cosines[axis]) >= LEAST_COSINE]
    return "".join(AXIS_LETTERS[axis][0 if cosines[axis] > 0 else 1] for axis in axes)


def _captions(scene: _Scene, k: int) -> Iterator[str]:
    """Algorithm and version, then which slice this is and where its centre lies."""
    result, source_slice = scene.result, scene.images.slices[k]
    yield identity.plain(f"{result.algorithm_name} {result.algorithm_version}", 128)
    window = scene.displays[k].window if scene.displays else None
    if scene.images.source.provenance.incomplete:
        yield identity.INCOMPLETE
    if window is not None and window.explanation == display.NOT_FITTING:
        yield display.NOT_FITTING
    number = whole_number(scene.images.header(k), "InstanceNumber")
    named = "image" if number is None else f"image {number}"
    named += f", frame {source_slice.frame}" if source_slice.frame else ""
    if source_slice.plane is None:
        yield named
        return
    rows, columns = source_slice.shape
    (centre,) = source_slice.plane.points_mm(np.array([(columns - 1) / 2]), np.array([(rows - 1) / 2]))
    place = " ".join(
        f"{letters[0 if value >= 0 else 1]} {abs(value):.1f}"
        for letters, value in zip(AXIS_LETTERS, centre, strict=True)
    )
    yield f"slice {k + 1} of {len(scene.planes)} ({named}), centre {place} mm"


def _object(scene: _Scene, k: int) -> Dataset:
    """The capture of slice k as a data set; PS3.3 A.8.1."""
    source, headers, result = scene.images.source, scene.images.headers, scene.result
    header, drawn = scene.images.header(k), _draw(scene, k)
    dataset = _capture(identity.object_uids(source, result, "SC", *_content(scene, k)), headers, result)
    dataset.InstanceNumber = k + 1
    add_body_part(dataset, header)
    dataset.DerivationDescription = "Labels of an algorithm drawn on the source image; research use only"
    _add_source(dataset, scene.images.reference(k))
    _add_lossiness(dataset, header)
    _add_pixels(dataset, drawn.pixels)
    _add_place(dataset, drawn, scene.images, k)
    return dataset


def _notice(header: Dataset, reason: str, about: str, result: ResultInfo) -> Dataset:
    """A notice as a data set, made from one instance as far as the standard can say so."""
    own = whole_number(header, "SeriesNumber")
    number = "" if own is None else f"series {own}"
    made_by = f"{result.algorithm_name} {result.algorithm_version}"
    line = identity.plain(", ".join(filter(None, (made_by, number, about))), MOST_REASON)
    result = replace(result, series_description=f"{NOT_PROCESSED} {result.algorithm_name}")
    source, paragraphs = [str(header.SOPInstanceUID)], (NO_FINDING, reason, line)
    owner = patient_digest(header), str(header.StudyInstanceUID)
    uid = identity.uid_from(source, owner, result, "NOTICE", "instance", *paragraphs)
    series_uid = identity.uid_from(source, owner, result, "NOTICE", "series")
    dataset = _capture((uid, series_uid), (header,), result)
    dataset.SeriesDescription = identity.series_description(result, "SC")
    add_body_part(dataset, header)
    dataset.DerivationDescription = "Notice that nothing was made of the source image; research use only"
    dataset.ImageComments = "\r\n".join((NOT_PROCESSED, *paragraphs))
    _add_source(dataset, reference(header.SOPClassUID, header.SOPInstanceUID))
    dataset.PatientOrientation = ""
    _add_pixels(dataset, drawing.page(NOT_PROCESSED, paragraphs))
    return dataset


def _capture(uids: tuple[str, str], headers: tuple[Dataset, ...], result: ResultInfo) -> Dataset:
    """The attributes of every capture: patient, study, series and equipment."""
    dataset = result_object("SC", uids, headers, result)
    # PS3.3 C.8.6.1: WSD, made by a workstation.
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.ContentDate, dataset.ContentTime = identity.content_moment(headers)
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BurnedInAnnotation = "YES"
    return dataset


def _header_of_series(files: Sequence[Path]) -> Dataset:
    """The first whole header of files that are all of one patient."""
    named = []
    whole: Dataset | None = None
    fault: DicomIoError = LabelError("a notice has no files; the files of a series are needed; name them")
    for file in files:
        try:
            # One header is enough, but every file is asked for its patient: a second patient has to be seen.
            named.append(load_dataset(file, keywords=["PatientID", "PatientName"]))
            whole = whole or identity.header_of(file)
        except (UnreadableFileError, LabelError) as error:
            fault = error
    if whole is None:
        raise fault
    check_one_patient(named, "the series")
    return whole


def _legible(reason: str) -> str:
    """A reason as a notice shows it."""
    return textwrap.shorten(_UNTOLD.sub("...", identity.plain(reason, len(reason))), MOST_REASON, placeholder=" ...")


def _content(scene: _Scene, k: int) -> tuple[str, ...]:
    """The texts that distinguish this capture from others of the result: slice, style and a digest of its labels."""
    style, plane = scene.style, scene.planes[k]
    looks = f"outline={style.outline} opacity={style.opacity} least_side={style.least_side}"
    return (scene.images.slices[k].key, looks, identity.digest_of(plane.values.reshape(*plane.values.shape[:2], -1)))


def _add_source(dataset: Dataset, image: Dataset) -> None:
    image.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.SourceImageForImageProcessingOperation)]
    dataset.SourceImageSequence = [image]


def _add_lossiness(dataset: Dataset, header: Dataset) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5)."""
    dataset.LossyImageCompression = header.get("LossyImageCompression") or "00"
    if dataset.LossyImageCompression == "01":
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if header.get(keyword):
                setattr(dataset, keyword, header[keyword].value)


def _add_place(dataset: Dataset, capture: drawing.FramedPicture, images: SourceImages, k: int) -> None:
    """Which way the patient lies in a capture, and how large its pixels are."""
    letters = _edge_letters(images, k)
    dataset.PatientOrientation = [letters[1], letters[3]] if letters else ""
    if images.has_pixel_spacing(k):
        (across, down), (rows, columns) = images.pixel_size(k), images.slices[k].shape
        between_rows, between_columns = down * rows / capture.size[1], across * columns / capture.size[0]
        dataset.PixelSpacing = [format_number_as_ds(between_rows), format_number_as_ds(between_columns)]


def _add_pixels(dataset: Dataset, pixels: drawing.Pixels) -> None:
    """A picture of shape (rows, columns, 3)."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    stored = pixels.tobytes()
    dataset.add_new("PixelData", "OB", stored + b"\0" * (len(stored) % 2))

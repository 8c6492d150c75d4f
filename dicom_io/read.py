"""One DICOM series -> one Volume: choose, pass the geometry gate, then decode and rescale slice by slice.

Nothing is decoded before every header has passed `geometry.even_grid`, and nothing is repaired in silence: a
fault is refused with its numbers, what is tolerated stands in `Volume.provenance.notes`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import UID, generate_uid

from .errors import DicomIoError, SeriesGeometryError, SeriesSelectionError, UnreadableFileError
from .geometry import Grid, Plane, even_grid, same_positions
from .series import READ_ERRORS, Scan, SeriesRef, broken_file, files_below, load_dataset, scan_files, summary
from .volume import Provenance, Volume

_PHYSICAL_MODALITIES = frozenset({"CT", "PT"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "PALETTE COLOR"})
_SC_MULTI_FRAME_WORD = UID("1.2.840.10008.5.1.4.1.1.7.3")
_MARKS = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "AcquisitionNumber",
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "TriggerTime",
    "DiffusionBValue",
    "ImageType",
    "ConvolutionKernel",
)
_PIXEL_MODULE = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)
_MARK_MACROS = ("FrameContentSequence", "MREchoSequence", "MRDiffusionSequence")


@dataclass(frozen=True)
class _Frame:
    """One slice as its header says; `number` counts from 1 in a multi-frame file, and is 0 elsewhere."""

    path: Path
    sop_instance_uid: str
    number: int
    plane: Plane | None
    slope: float
    intercept: float
    thickness_mm: float | None
    marks: tuple[tuple[str, str], ...]


def read_series(source: Path | Sequence[Path], *, series_instance_uid: str | None = None) -> Volume:
    """The voxels of one image series in patient space.

    Args:
        source: A folder (searched however deep), one file, or the files of one series.
        series_instance_uid: Which series to read where the source holds several.

    Returns:
        float32 array of shape (I, J, K): I counts columns, J rows, K slices in increasing position along the
        normal (row x column direction); values after each slice's own rescale, computed in float64. A picture
        without patient space has K = 1, `planar` True, pixels for millimetres; in colour (I, J, 1, 3).

    Raises:
        SeriesSelectionError: No image series, or several, fit; or it is no volume (colour, cine, mosaic).
        SeriesGeometryError: The slices do not lie on one even grid.
        UnreadableFileError: A file is broken or its pixels cannot be decoded; or a voxel is NaN or infinite.
    """
    scan, explicit = _scan(source)
    series, notes = _select(scan, series_instance_uid, explicit=explicit)
    headers = [load_dataset(path, with_pixels=False) for path in series.files]
    _check_readable(headers, series)
    frames = [frame for header, path in zip(headers, series.files, strict=True) for frame in _frames(header, path)]
    if all(frame.plane is None for frame in frames):
        return _picture(frames, headers[0], series, notes)
    return _stack(frames, headers, series, notes)


def _scan(source: Path | Sequence[Path]) -> tuple[Scan, bool]:
    """What the source holds, and whether the caller named files rather than a folder."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        return scan_files(files_below(Path(source))), False
    files = [Path(source)] if isinstance(source, str | Path) else list(source)
    if not files:
        raise SeriesSelectionError("the list of files is empty; the files of one series are needed; check the input")
    for path in files:
        if not path.is_file():
            raise UnreadableFileError(f"{path} is not a file; a DICOM file or a folder is needed; check the path")
    return scan_files(files), True


def _select(scan: Scan, wanted: str | None, *, explicit: bool) -> tuple[SeriesRef, tuple[str, ...]]:
    """The one series to read, and the notes about those passed by."""
    fitting = [one for one in scan.series if wanted in (None, one.series_instance_uid)]
    images = [one for one in fitting if one.kind == "image"]
    if not images and (explicit or wanted):
        images = [one for one in fitting if one.set_aside]
    if not images:
        raise _no_image(scan, wanted)
    if len(images) > 1:
        raise _several_images(images)
    passed_by = [one for one in scan.series if one.set_aside and one is not images[0]]
    return images[0], (
        *images[0].notes,
        *(f"passed by, not part of the volume: {one.line}" for one in passed_by),
    )


def _no_image(scan: Scan, wanted: str | None) -> SeriesSelectionError:
    looked_for = f"series {wanted}" if wanted else "image series that could be a volume"
    return SeriesSelectionError(
        f"found no {looked_for} among {summary(scan.series)}; one image series is needed; "
        "check the path, or name one of these with --series UID"
    )


def _several_images(images: Sequence[SeriesRef]) -> DicomIoError:
    if len({one.series_instance_uid for one in images}) > 1:
        return SeriesSelectionError(
            f"found {len(images)} image series: {summary(images)}; one is needed; name it with --series UID"
        )
    parts = "; ".join(f"{one.instance_count} files of orientation {_cosines(one)}" for one in images)
    if len({one.study_instance_uid for one in images}) > 1 or not images[0].series_instance_uid:
        return SeriesSelectionError(
            f"{_name(images[0])} falls into {len(images)} studies or folders: {parts}; one is needed; "
            "pass the files of one only, or give all the study UID of their study"
        )
    return SeriesGeometryError(
        f"{_name(images[0])} mixes {len(images)} orientations or kinds: {parts}; one orientation is needed; "
        "pass the files of one orientation only"
    )


def _cosines(series: SeriesRef) -> str:
    return "none" if series.orientation is None else "(" + ", ".join(f"{c:.4g}" for c in series.orientation) + ")"


def _name(series: SeriesRef) -> str:
    return f"series {series.series_instance_uid or 'without UID in ' + str(series.files[0].parent)}"


def _check_readable(headers: Sequence[Dataset], series: SeriesRef) -> None:
    """Refuses what belongs to several patients, and what can be no volume of single values: mosaic, cine, and colour
    unless it is one picture.
    """
    for keyword in ("PatientID", "PatientName"):
        count = len({str(header.get(keyword)) for header in headers if header.get(keyword)})
        if count > 1:
            raise SeriesSelectionError(
                f"{_name(series)} has files of {count} different {keyword}; one patient is needed; "
                "pass the files of one patient only"
            )
    if any("MOSAIC" in _words(header.get("ImageType")) for header in headers):
        raise SeriesSelectionError(
            f"{_name(series)} is a mosaic, a volume laid out as tiles of one picture; single slices are "
            "needed; convert it to an enhanced or classic MR series first"
        )
    if any(int(header.get("NumberOfFrames") or 1) > 1 and not _has_groups(header) for header in headers):
        raise _placeless(series)
    colours = {str(header.get("PhotometricInterpretation")) for header in headers} & _COLOUR
    samples = max(int(header.get("SamplesPerPixel") or 1) for header in headers)
    single = series.frame_count == 1 and series.orientation is None and "PALETTE COLOR" not in colours
    if (colours or samples > 1) and not single:
        raise SeriesSelectionError(
            f"{_name(series)} holds {series.frame_count} colour pictures ({', '.join(sorted(colours))}, "
            f"{samples} samples a pixel); one grey value a voxel is needed; "
            "pick a grey series with --series UID"
        )


def _placeless(series: SeriesRef) -> SeriesSelectionError:
    return SeriesSelectionError(
        f"{_name(series)} holds {series.frame_count} frames or pictures without a position in patient space "
        "(cine, time series or views); a volume or one picture is needed; pass one single-frame file"
    )


def _words(value: object) -> str:
    return str(value or "").upper()


def _frames(header: Dataset, path: Path) -> list[_Frame]:
    """The slices of one file, geometry and rescale taken from its header or its functional groups."""
    count, groups = int(header.get("NumberOfFrames") or 1), header.get("PerFrameFunctionalGroupsSequence")
    if groups is not None and len(groups) != count:
        raise broken_file(path, f"NumberOfFrames is {count}, the functional groups are {len(groups)}")
    try:
        return [_frame(header, path, index, count) for index in range(count)]
    except READ_ERRORS as error:
        raise broken_file(path, error) from error


def _frame(header: Dataset, path: Path, index: int, count: int) -> _Frame:
    measures = _macro(header, index, "PixelMeasuresSequence")
    rescale = _macro(header, index, "PixelValueTransformationSequence") or header
    thickness = _numbers(measures, "SliceThickness", 1)
    return _Frame(
        path,
        str(header.get("SOPInstanceUID") or header.file_meta.get("MediaStorageSOPInstanceUID") or ""),
        index + 1 if count > 1 or _has_groups(header) else 0,
        _plane(header, index, measures),
        (_numbers(rescale, "RescaleSlope", 1) or (1.0,))[0],
        (_numbers(rescale, "RescaleIntercept", 1) or (0.0,))[0],
        thickness[0] if thickness and thickness[0] > 0 else None,
        _marks(header, index),
    )


def _plane(header: Dataset, index: int, measures: Dataset) -> Plane | None:
    position = _numbers(_macro(header, index, "PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = _numbers(_macro(header, index, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    pixel_spacing = _numbers(measures, "PixelSpacing", 2)
    if position is None or orientation is None or pixel_spacing is None:
        return None
    return Plane(position, orientation, pixel_spacing, (int(header.Rows), int(header.Columns)))


def _has_groups(header: Dataset) -> bool:
    return "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header


def _macro(header: Dataset, index: int, keyword: str) -> Dataset:
    """Where a frame's attributes stand: its functional group, the shared one, or a single frame's header.

    Empty where there is none: the top level of a multi-frame object places no frame but perhaps its first.
    """
    if not _has_groups(header):
        return header if int(header.get("NumberOfFrames") or 1) == 1 else Dataset()
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[index : index + 1], *shared[:1]):
        if groups.get(keyword):
            return groups[keyword].value[0]
    return Dataset()


def _numbers(holder: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The numbers of an attribute, None where it is absent or empty; ValueError if they are not `count`."""
    value = holder.get(keyword)
    if value is None or value == "" or (not np.isscalar(value) and not len(value)):
        return None
    numbers = tuple(float(number) for number in np.atleast_1d(np.array(value, dtype=np.float64)))
    if len(numbers) != count:
        raise ValueError(f"{keyword} holds {len(numbers)} values, {count} are needed")
    return numbers


def _marks(header: Dataset, index: int) -> tuple[tuple[str, str], ...]:
    """What may tell apart two slices at one position: time, echo, kernel; never anything of the patient."""
    holders = [header, *(_macro(header, index, macro) for macro in _MARK_MACROS)]
    found = {key: str(holder.get(key)) for holder in holders for key in _MARKS if holder.get(key) is not None}
    return tuple(sorted(found.items()))


def _picture(frames: Sequence[_Frame], header: FileDataset, series: SeriesRef, notes: tuple[str, ...]) -> Volume:
    """A 2D picture: pixels for millimetres, columns along +x and rows along +y."""
    if len(frames) > 1:
        raise _placeless(series)
    colours = (3,) if int(header.get("SamplesPerPixel") or 1) == 3 else ()
    shape = (1, int(header.Rows), int(header.Columns), *colours)
    slices, decoding = _decode(frames, series.modality, shape)
    array = np.moveaxis(slices, (0, 1, 2), (2, 1, 0))
    notes = (*notes, *decoding, "without patient space: the affine counts pixels, not millimetres")
    return Volume(array, np.eye(4), _provenance(frames, header, series, notes), planar=True)


def _stack(
    frames: Sequence[_Frame], headers: Sequence[FileDataset], series: SeriesRef, notes: tuple[str, ...]
) -> Volume:
    """The slices in the order of their positions, on the grid that all of them lie on."""
    name = _name(series)
    planes = _planes(frames, name)
    _check_instances(frames, headers, name)
    _check_time_points(frames, planes, name)
    thickness = frames[0].thickness_mm
    grid = even_grid(planes, name, single_step_mm=thickness or 1.0)
    ordered = [frames[index] for index in grid.order]
    slices, decoding = _decode(ordered, series.modality, (len(ordered), *planes[0].shape))
    notes = (*notes, *_grid_notes(grid, thickness), *decoding)
    return Volume(slices.transpose(2, 1, 0), grid.affine_lps, _provenance(ordered, headers[0], series, notes))


def _planes(frames: Sequence[_Frame], name: str) -> list[Plane]:
    planes = [frame.plane for frame in frames if frame.plane is not None]
    if len(planes) < len(frames):
        lost = next(frame.path for frame in frames if frame.plane is None)
        raise SeriesGeometryError(
            f"{name}: {len(frames) - len(planes)} of {len(frames)} slices name no position, orientation or "
            f"pixel spacing (the first in {lost}); each slice needs all three; leave those files out"
        )
    return planes


def _check_instances(frames: Sequence[_Frame], headers: Sequence[FileDataset], name: str) -> None:
    seen: dict[tuple[str, int], Path] = {}
    for frame in frames:
        twin = seen.setdefault((frame.sop_instance_uid, frame.number), frame.path)
        if frame.sop_instance_uid and twin is not frame.path:
            raise SeriesGeometryError(
                f"{name} holds SOP instance {frame.sop_instance_uid} twice, in {twin} and {frame.path}; "
                "each slice is needed once; leave one of the files out"
            )
    spaces = {str(header.get("FrameOfReferenceUID") or "") for header in headers}
    if len(spaces) > 1:
        raise SeriesGeometryError(
            f"{name} mixes {len(spaces)} frames of reference ({', '.join(sorted(spaces))}); one is needed, "
            "for positions to compare; pass the files of one frame of reference"
        )


def _check_time_points(frames: Sequence[_Frame], planes: Sequence[Plane], name: str) -> None:
    """Refuses positions used twice, and says in what the slices there differ."""
    groups = same_positions(planes)
    if not groups:
        return
    marks = [dict(frames[index].marks) for index in groups[0]]
    differing = {
        key: sorted({mark.get(key, "none") for mark in marks})
        for key in _MARKS
        if len({mark.get(key) for mark in marks}) > 1
    }
    told = ", ".join(f"{key} ({' / '.join(values)})" for key, values in differing.items())
    places = len(planes) - sum(len(group) - 1 for group in groups)
    files = ", ".join(sorted({frames[index].path.name for index in groups[0]})[:4])
    raise SeriesGeometryError(
        f"{name} has up to {max(map(len, groups))} slices at the same position, at {len(groups)} of "
        f"{places} positions; they differ in {told or 'no attribute known here'} (first: {files}); "
        "one slice a position is needed; pass the files of one time point, echo or copy only"
    )


def _grid_notes(grid: Grid, thickness_mm: float | None) -> list[str]:
    notes = []
    if grid.shear_degrees:
        notes.append(
            f"the stack is sheared by {grid.shear_degrees:.2f} degrees in even steps (gantry tilt): "
            "kept as an exact sheared affine, not resampled"
        )
    if len(grid.order) == 1:
        source = "SliceThickness" if thickness_mm else "1 mm, no SliceThickness is given"
        notes.append(f"a single slice: its step along the normal is {source}")
    return notes


def _provenance(
    ordered: Sequence[_Frame], header: FileDataset, series: SeriesRef, notes: tuple[str, ...]
) -> Provenance:
    uids = tuple(frame.sop_instance_uid for frame in ordered)
    if not all(uids):
        notes = (
            *notes,
            f"{uids.count('')} slices carry no SOPInstanceUID: no DICOM result can refer to them",
        )
    numbers = tuple(frame.number for frame in ordered)
    files = tuple(dict.fromkeys(frame.path for frame in ordered)) if any(numbers) else None
    return Provenance(
        "dicom",
        series.modality or None,
        series.study_instance_uid or None,
        series.series_instance_uid or None,
        str(header.get("FrameOfReferenceUID") or "") or None,
        uids,
        numbers if any(numbers) else (),
        files or tuple(frame.path for frame in ordered),
        notes,
    )


def _decode(ordered: Sequence[_Frame], modality: str, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], list[str]]:
    """Rescaled values of the given shape (K, rows, columns), or with 3 colours last, and notes."""
    slices = np.empty(shape, dtype=np.float32)
    notes: dict[str, None] = {}
    wanted: dict[Path, dict[int, int]] = {}
    for k, frame in enumerate(ordered):
        wanted.setdefault(frame.path, {})[max(frame.number - 1, 0)] = k
    for path, slice_of_frame in wanted.items():
        dataset = load_dataset(path, with_pixels=True)
        frames = _stored(dataset, path, slice_of_frame, notes)
        for k, stored in zip(slice_of_frame.values(), frames, strict=True):
            slices[k] = _values(stored, dataset, ordered[k], modality, notes)
    return slices, list(notes)


def _values(
    stored: NDArray, dataset: FileDataset, frame: _Frame, modality: str, notes: dict[str, None]
) -> NDArray[np.float32]:
    """Stored values -> output values of the modality, float64 arithmetic, float32 at the end."""
    if str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1":
        stored = _monochrome1(stored, dataset, modality, notes)
    if "ModalityLUTSequence" in dataset:
        rescaled = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
        notes["values went through the file's Modality LUT"] = None
    else:
        rescaled = stored.astype(np.float64) * frame.slope + frame.intercept
    with np.errstate(over="ignore"):
        values = rescaled.astype(np.float32)
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise UnreadableFileError(
            f"{frame.path} holds {bad} NaN or infinite voxels of {values.size} in frame "
            f"{max(frame.number, 1)} after rescale (slope {frame.slope}, "
            f"intercept {frame.intercept}); finite voxels are needed; export it again from its source"
        )
    return values


def _monochrome1(stored: NDArray, dataset: Dataset, modality: str, notes: dict[str, None]) -> NDArray:
    """High values bright, as everywhere else; physical units (HU, activity) are no matter of display."""
    if modality in _PHYSICAL_MODALITIES:
        notes[f"MONOCHROME1 left as it is: {modality} values are physical, not brightness"] = None
        return stored
    notes["MONOCHROME1 was inverted, so that high values are bright"] = None
    if stored.dtype.kind == "f":
        return -stored
    low_plus_high = -1 if int(dataset.PixelRepresentation) else 2 ** int(dataset.BitsStored) - 1
    return low_plus_high - stored.astype(np.int64)


def _stored(dataset: FileDataset, path: Path, indices: Iterable[int], notes: dict[str, None]) -> Iterator[NDArray]:
    """The stored values of the frames asked for, each (rows, columns), or (rows, columns, 3) in RGB."""
    try:
        syntax = UID(dataset.file_meta.TransferSyntaxUID)
        if not syntax.is_compressed or get_decoder(syntax).is_available:
            # not `iter_pixels`: in pydicom 3.0.2 it fails on J2K whose sign differs from the header's
            yield from (pixel_array(dataset, index=index) for index in indices)
        else:
            notes[f"{syntax.name} was decoded by SimpleITK"] = None
            frames = _stored_by_itk(dataset)
            yield from (frames[index] for index in indices)
    except READ_ERRORS as error:
        raise broken_file(path, error) from error


def _stored_by_itk(dataset: FileDataset) -> NDArray:
    """All frames, shape (frames, rows, columns), by the GDCM inside SimpleITK.

    For JPEG Lossless, which pydicom decodes only with plug-ins that this package does not depend on. Only the
    pixel module is handed over, so that ITK has neither rescale nor geometry to apply.
    """
    if int(dataset.SamplesPerPixel) != 1:
        raise NotImplementedError("no decoder here for colour in this transfer syntax")
    bare = Dataset()
    for keyword in _PIXEL_MODULE:
        bare[keyword] = dataset[keyword]
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    bare.NumberOfFrames = int(dataset.get("NumberOfFrames") or 1)
    bare.SOPClassUID, bare.SOPInstanceUID = _SC_MULTI_FRAME_WORD, generate_uid()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "frame.dcm")
        bare.save_as(copy, enforce_file_format=True)
        stored = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(copy), imageIO="GDCMImageIO"))
    return stored.reshape(bare.NumberOfFrames, bare.Rows, bare.Columns)

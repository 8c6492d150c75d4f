"""A NIfTI case as a DICOM MR or CT series plus a SEG of its labels, clearly marked as converted.

Geometry is exact: every slice gets its position from the affine. Axes may be flipped so that a viewer shows
the slices the usual way (patient's right on the left, anterior or head up) and slices follow the normal;
the place of each voxel in the patient does not change. Left-handed affines need nothing special. Sheared affines
have no DICOM form and are refused.

Intensities: whole numbers from 0 to 65535 (or -32768 to 32767) are stored as they are. Anything else is
stored as `round(value / slope)` with RescaleSlope `slope`, the same in all slices: the largest magnitude over
65535 (over 32767 if there are negative values), rounded up to four significant digits. So the error is at
most slope / 2, which is less than 0.8e-5 (1.6e-5) of the largest magnitude, whether that is 100 or a million.
The classic MR IOD does not list the Modality LUT module; the pair is a standard extension that MR scanners
use and every reader applies. The classic CT IOD has it: values are Hounsfield units there.

Attributes that DICOM needs and a NIfTI file does not hold (patient, dates, scanner, sequence) are made up or left
empty: the patient is `DEMO^<case id>`, all dates are 2000-01-01.
"""

import contextlib
import hashlib
import math
import os
import re
import shutil
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, MRImageStorage

from dicom_io.coding import Segment
from dicom_io.errors import DicomIoError, LabelError, SeriesGeometryError
from dicom_io.objects.identity import ResultInfo, derived_uid
from dicom_io.objects.source_images import new_object
from dicom_io.objects.stand_ins import decimal_strings
from dicom_io.reading.headers import patient_digest
from dicom_io.reading.instances import load_dataset
from dicom_io.seg import write_seg
from dicom_io.volume import Provenance, Volume, number_type

MADE_UP_DATE, MADE_UP_TIME = "20000101", "000000"
SHEAR_TOLERANCE_MM = 0.01
_CASE_ID = re.compile(r"[A-Za-z0-9_.\- ]{1,48}")
MODEL, LABEL_VERSION = "dicomize", "converted from NIfTI"  # by which an earlier conversion is recognised
SEG_NAME = "seg.dcm"
ConvertedModality = Literal["MR", "CT"]
_CLASSES: dict[ConvertedModality, UID] = {"MR": MRImageStorage, "CT": CTImageStorage}
_FOLDERS = tuple(modality.lower() for modality in _CLASSES)


@dataclass(frozen=True)
class ConversionOptions:
    """How a case is converted.

    Attributes:
        modality: What the series is: MR, or CT with values in HU.
        overwrite: Replace an earlier conversion in the folder, of either modality.
    """

    modality: ConvertedModality = "MR"
    overwrite: bool = False


@dataclass(frozen=True)
class DicomizedCase:
    """The files that `dicomize` wrote, and their content.

    Attributes:
        series_folder: Holds one MR or CT file for each slice, `0001.dcm` ... in order along the normal.
        seg: The SEG of the labels, or None without labels.
        volume: The series as a reader should return it: float32 after rescale, provenance with UIDs and
            files.
        labels: The labels on the grid of `volume` (axes flipped as the series is), or None.
        max_rounding_error: Bound on |volume.array - original| in the image's own units; 0 if exact.
    """

    series_folder: Path
    seg: Path | None
    volume: Volume
    labels: Volume | None
    max_rounding_error: float


@dataclass(frozen=True)
class _Stored:
    """Pixels of a series.

    Attributes:
        pixels: Shape (I, J, K), stored values.
        slope: RescaleSlope; a value is pixel * slope, in the image's own units.
    """

    pixels: NDArray[np.integer[Any]]
    slope: Decimal

    @property
    def values(self) -> NDArray[np.float32]:
        return (self.pixels.astype(np.float64) * float(self.slope)).astype(np.float32)


def dicomize(
    image: Volume,
    folder: Path,
    *,
    labels: Volume | None = None,
    segments: tuple[Segment, ...] | None = None,
    case_id: str,
    options: ConversionOptions = ConversionOptions(),
) -> DicomizedCase:
    """Writes an image (and labels) that has no DICOM form yet as `folder`/mr/*.dcm (or ct) and `folder`/seg.dcm.

    Args:
        image: Shape (I, J, K), real numbers, patient space.
        folder: Made if needed. Files appear only when all files are written and proven.
        labels: Same grid as `image`, values 0 to N.
        segments: Meaning of the labels; needed with labels.
        case_id: Becomes part of the made-up PatientName and PatientID; printable, at most 48 characters.
        options: Modality of the series, and whether an earlier conversion is replaced.

    Raises:
        SeriesGeometryError: No patient space, channels, or a sheared affine.
        DicomIoError: A DICOM image, voxels that are not finite, a bad case id, or files in the way.
        LabelError: Labels that do not fit the image or the segments.
        GeometryProofError: The SEG does not hold the labels.
    """
    _check(image, case_id)
    folder = Path(folder)
    _check_free(folder, options.overwrite)
    flips, modality = _display_flips(image), options.modality
    oriented = _flipped(image, flips)
    stored, series_folder = _quantised(oriented.array), folder / modality.lower()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # A folder on the same file system: the files get their places by renaming, after the SEG has been proven.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
            volume = _write_series(oriented, stored, Path(part) / series_folder.name, case_id, modality)
            fitted, seg = _write_labels(labels, segments, image, volume, Path(part), flips)
            _publish(Path(part), folder, series_folder.name)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if nothing is in it
    files = tuple(series_folder / file.name for file in volume.provenance.files)
    volume = replace(volume, provenance=replace(volume.provenance, files=files))
    return DicomizedCase(
        series_folder=series_folder,
        seg=None if seg is None else folder / SEG_NAME,
        volume=volume,
        labels=None if fitted is None else volume.with_array(fitted.array),
        max_rounding_error=_rounding_bound(stored),
    )


def plain_case_id(name: str) -> str:
    """The name of a case as `dicomize` takes it: unchanged if it can be, else its letters of ASCII and a digest of all."""
    if _CASE_ID.fullmatch(name):
        return name
    bare = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_. -]', '_', bare)[:39]}-{digest[:8]}"


def _check(image: Volume, case_id: str) -> None:
    if image.array.ndim != 3 or not image.has_patient_space:
        raise SeriesGeometryError(
            f"the image has the shape {image.array.shape} and is {'planar' if image.planar else image.provenance.kind}; a 3D "
            "volume in patient space is needed for an MR or CT series; convert single volumes with one value a voxel only"
        )
    if image.provenance.kind == "dicom":
        raise DicomIoError(
            "the image came from DICOM already; a NIfTI image or an array is needed; use the series as it is"
        )
    unusable = int((~np.isfinite(image.array.astype(np.float32))).sum())
    if unusable:
        raise DicomIoError(
            f"the image has {unusable} voxels that are NaN, infinite or beyond float32; "
            "finite values are needed; repair the image first"
        )
    if not _CASE_ID.fullmatch(case_id):
        raise DicomIoError(
            f"the case id has {len(case_id)} characters or unusual ones; 1 to 48 letters, digits, '_', '-', "
            "'.' or spaces are needed; choose another"
        )
    _check_shear(image)


def _check_shear(image: Volume) -> None:
    """Refuses axes whose lean moves a voxel at the far end of the grid by more than SHEAR_TOLERANCE_MM."""
    steps, spacing = image.affine_lps[:3, :3], np.array(image.spacing_mm)
    cosines = steps / spacing
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # Measured in millimetres at the far end: an affine in float32 leans by a tiny angle that moves no voxel.
        lean = abs(float(cosines[:, a] @ cosines[:, b]))
        shift_mm = lean * max(spacing[a] * image.shape[a], spacing[b] * image.shape[b])
        if shift_mm > SHEAR_TOLERANCE_MM:
            angle = math.degrees(math.acos(min(lean, 1.0)))
            raise SeriesGeometryError(
                f"the array axes {a} and {b} meet at {angle:.3f} degrees (a sheared affine); right angles are needed, a DICOM "
                "series has no form for shear; resample the image to a grid with right angles first"
            )


def _check_free(folder: Path, overwrite: bool) -> None:
    taken = [name for name in (*_FOLDERS, SEG_NAME) if (folder / name).exists()]
    if taken and not overwrite:
        raise DicomIoError(
            f"the output folder already has {' and '.join(taken)}; an empty place is needed; "
            "choose another folder, or allow overwriting"
        )
    foreign = [file for name in taken for file in _files_at(folder / name) if not _is_a_conversion(file)]
    if foreign:
        raise DicomIoError(
            f"the output folder has {foreign[0].name}, which is not an earlier conversion; only an earlier conversion is "
            "replaced; choose another folder or move it away"
        )


def _files_at(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def _is_a_conversion(file: Path) -> bool:
    """Whether this module wrote the file."""
    try:
        header = load_dataset(file)
    except (DicomIoError, OSError):
        return False
    return bool(header.get("ManufacturerModelName") == MODEL or header.get("SoftwareVersions") == LABEL_VERSION)


def _display_flips(image: Volume) -> tuple[bool, bool, bool]:
    """The axes to flip: I and J so that they run to the left, to posterior or to the feet; K along the
    normal.
    """
    steps = np.array(image.affine_lps[:3, :3])
    flips = []
    for axis in (0, 1):
        main = int(np.abs(steps[:, axis]).argmax())
        flip = bool((steps[main, axis] < 0) != (main == 2))
        steps[:, axis] *= -1 if flip else 1
        flips.append(flip)
    # The normal is row x column direction: a negative determinant means that K runs against it.
    return flips[0], flips[1], bool(np.linalg.det(steps) < 0)


def _flipped(volume: Volume, flips: tuple[bool, bool, bool]) -> Volume:
    """The same voxels at the same places, with some array axes reversed."""
    turn = np.eye(4)
    for axis, flip in enumerate(flips):
        if flip:
            turn[axis, axis], turn[axis, 3] = -1.0, volume.shape[axis] - 1
    array = np.flip(volume.array, tuple(axis for axis, flip in enumerate(flips) if flip))
    return replace(volume, array=np.ascontiguousarray(array), affine_lps=volume.affine_lps @ turn)


def _quantised(values: NDArray[Any]) -> _Stored:
    """16-bit pixels and slope for `values`, shape (I, J, K); the module's docstring has the rule and the bound."""
    low, high = float(values.min()), float(values.max())
    kind, bottom, top = (np.int16, -32768, 32767) if low < 0 else (np.uint16, 0, 65535)
    if bottom <= low and high <= top and np.array_equal(values, np.rint(values)):
        return _Stored(values.astype(kind), Decimal(1))
    largest = Decimal(max(abs(low), abs(high)))
    # Rounded up: with a smaller slope the largest value would not fit 16 bits.
    slope = Context(prec=4, rounding=ROUND_CEILING).divide(largest, Decimal(top))
    pixels = np.rint(values.astype(np.float64) / float(slope))
    return _Stored(np.clip(pixels, bottom, top).astype(kind), slope)


def _rounding_bound(stored: _Stored) -> float:
    """Half a step, plus half a unit in the last place of the largest float32 value; 0 if nothing was
    rounded.
    """
    if stored.slope == 1:
        return 0.0
    return float(stored.slope) / 2 + float(np.abs(stored.values).max()) * 2.0**-24


def _write_series(image: Volume, stored: _Stored, folder: Path, case_id: str, modality: ConvertedModality) -> Volume:
    digest = hashlib.sha256(np.ascontiguousarray(image.array).tobytes())
    digest.update(str(image.array.dtype).encode() + image.affine_lps.tobytes())
    # MR adds no word, so its UIDs are those that were made before there was CT.
    entropy = ("dicomize", case_id, digest.hexdigest(), *(() if modality == "MR" else (modality,)))
    common = _series_attributes(image, stored, entropy, case_id, modality)
    uids, files = [], []
    folder.mkdir()
    for k in range(image.shape[2]):
        uids.append(derived_uid(*entropy, "instance", str(k)))
        files.append(folder / f"{k + 1:04d}.dcm")
        _slice(common, image, stored, k, uids[-1]).save_as(files[-1], enforce_file_format=True)
    provenance = Provenance(
        kind="dicom",
        modality=modality,
        study_instance_uid=common.StudyInstanceUID,
        series_instance_uid=common.SeriesInstanceUID,
        frame_of_reference_uid=common.FrameOfReferenceUID,
        sop_instance_uids=tuple(uids),
        files=tuple(files),
        notes=("converted from NIfTI",),
        patient_digest=patient_digest(common),
    )
    return Volume(stored.values, image.affine_lps, provenance)


def _series_attributes(
    image: Volume, stored: _Stored, entropy: tuple[str, ...], case_id: str, modality: ConvertedModality
) -> Dataset:
    """The attributes that all slices share."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER" if modality == "MR" else "AXIAL"]  # PS3.3 C.8.2.1.1.1, C.8.3.1.1.1
    ds.SOPClassUID = _CLASSES[modality]
    for part in ("Study", "Series", "Content"):
        setattr(ds, f"{part}Date", MADE_UP_DATE)
        setattr(ds, f"{part}Time", MADE_UP_TIME)
    ds.AccessionNumber, ds.ReferringPhysicianName, ds.StudyID = "", "", "1"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = modality, "monai-unet-app", MODEL
    ds.StudyDescription = "Converted from NIfTI"
    ds.SeriesDescription = f"{modality} converted from NIfTI"
    ds.DerivationDescription = _derivation(stored)
    ds.PatientName, ds.PatientID = f"DEMO^{case_id}", f"DEMO-{case_id}"
    ds.PatientBirthDate, ds.PatientSex = "", ""
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "Made-up patient; NIfTI contains no identity"
    ds.StudyInstanceUID = derived_uid(*entropy, "study")
    ds.SeriesInstanceUID = derived_uid(*entropy, "series")
    ds.FrameOfReferenceUID = derived_uid(*entropy, "frame of reference")
    ds.PositionReferenceIndicator, ds.PatientPosition = "", "HFS"
    ds.Laterality = ""  # Type 2C: unknown, as no BodyPartExamined is known either
    ds.SeriesNumber = 1
    if modality == "MR":
        # PS3.3 C.8.3.1: RM is "research mode", the only honest value for an unknown sequence.
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "RM", "NONE", "", "3D"
        ds.RepetitionTime = ds.EchoTime = ds.EchoTrainLength = None
    else:
        ds.KVP = None  # Type 2: unknown
    _add_pixel_attributes(ds, image, stored)
    if modality == "CT" or stored.slope != 1:  # Type 1 in CT (PS3.3 C.8.2.1)
        ds.RescaleIntercept, ds.RescaleSlope = "0", f"{stored.slope:g}"
        ds.RescaleType = "HU" if modality == "CT" else "US"
    return ds


def _derivation(stored: _Stored) -> str:
    if stored.slope == 1:
        return "Converted from NIfTI; stored values are the original ones"
    error = float(stored.slope) / 2
    return f"Converted from NIfTI; value = stored value * {stored.slope:g}, rounding error at most {error:.4g}"


def _add_pixel_attributes(ds: Dataset, image: Volume, stored: _Stored) -> None:
    steps, spacing = image.affine_lps[:3, :3], image.spacing_mm
    cosines = steps / np.array(spacing)
    # PS3.3 C.7.6.2.1.1: the direction of a row comes first, along which the column index I grows.
    ds.ImageOrientationPatient = decimal_strings(cosines[:, :2].ravel(order="F"))
    ds.PixelSpacing = decimal_strings(np.array([spacing[1], spacing[0]]))  # PS3.3 10.7.1.3: first between rows
    (ds.SliceThickness,) = (ds.SpacingBetweenSlices,) = decimal_strings(np.array(spacing[2:]))
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Columns, ds.Rows = image.shape[0], image.shape[1]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = int(stored.pixels.dtype == np.int16)
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    # Percentiles, so that a few bright voxels do not make the rest dark.
    low, high = np.percentile(stored.values, (1, 99))
    ds.WindowCenter, ds.WindowWidth = f"{(low + high) / 2:.6g}", f"{max(high - low, 1e-6):.6g}"


def _slice(common: Dataset, image: Volume, stored: _Stored, k: int, uid: str) -> Dataset:
    ds = new_object(common.SOPClassUID, uid)
    ds.update(common)
    ds.InstanceNumber, ds.AcquisitionNumber = k + 1, None
    ds.ImagePositionPatient = decimal_strings(image.affine_lps[:3, 3] + k * image.affine_lps[:3, 2])
    pixels = stored.pixels[:, :, k].T  # rows are J, columns are I
    ds.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    # PS3.5 A.2: pixels of more than 8 bits are OW.
    ds["PixelData"].VR = "OW"
    return ds


def _write_labels(
    labels: Volume | None,
    segments: tuple[Segment, ...] | None,
    image: Volume,
    volume: Volume,
    folder: Path,
    flips: tuple[bool, bool, bool],
) -> tuple[Volume | None, Path | None]:
    """The labels on the grid of the written series, and their SEG in `folder`."""
    if labels is None:
        return None, None
    if segments is None:
        raise LabelError("labels came without segments; their meaning is needed; give the bundle's segments.json")
    if labels.shape != image.shape or not np.allclose(labels.affine_lps, image.affine_lps, atol=1e-3):
        raise LabelError(
            f"the labels have the shape {labels.shape} and the image {image.shape}, or their affines differ; "
            "one grid is needed; resample the labels to the image first"
        )
    array = _flipped(labels, flips).array
    if not np.array_equal(array, np.rint(array)):
        raise LabelError("the labels are not whole numbers; whole label values are needed; threshold them first")
    fitted = volume.with_array(array.astype(number_type(array.max(initial=0))))
    result = ResultInfo(
        segments=segments,
        algorithm_name="manual labels",
        algorithm_version=LABEL_VERSION,
        bundle_sha256=hashlib.sha256(fitted.array.tobytes()).hexdigest(),
        algorithm_type="MANUAL",
        series_description="Labels converted from NIfTI",
    )
    return fitted, write_seg(fitted, volume, folder / SEG_NAME, result)


def _publish(part: Path, folder: Path, series_name: str) -> None:
    """Moves the finished files from `part` into the folder; an earlier series goes the other way."""
    seg = part / SEG_NAME
    # os.replace cannot put a folder in the place of a folder that holds files, so the earlier series goes away first.
    if (folder / series_name).exists():
        os.replace(folder / series_name, part / "earlier")
    if seg.exists():
        os.replace(seg, folder / SEG_NAME)
    else:
        # An earlier SEG refers to the series that was replaced.
        (folder / SEG_NAME).unlink(missing_ok=True)
    os.replace(part / series_name, folder / series_name)
    # An earlier series of the other modality would stand beside a SEG that does not refer to it.
    for name in _FOLDERS:
        if name != series_name:
            shutil.rmtree(folder / name, ignore_errors=True)

"""Whether labels lie on the grid of their source, and that grid on the slices as the files have them, for us and for ITK."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.files import state_of
from dicom_io.objects.slice_positions import Plane, Slice, apart_mm, slices_of, tolerance_mm
from dicom_io.reading.geometry import jitter_limit_mm
from dicom_io.reading.instances import READ_ERRORS, load_dataset
from dicom_io.volume import Volume, corner_indices

# Classes of which GDCM takes position, orientation and spacing from the Image Plane module or its functional groups, as we
# do: measured with SimpleITK 2.5.7 on an oblique image of every storage class, with pixels that are not square. Not of CR, DX,
# MG, IO, XA and RF, whose spacing it takes from ImagerPixelSpacing or as 1 mm, nor of RT images (1 mm) and NM (1 mm, or no
# position); classes that it does not know it does not read. Others, which are seldom slices, were left out.
_PLACED = "2 2.1 2.2 4 4.1 4.4 128 130 128.1 6.1 7"
PLACED_BY_GDCM = frozenset(f"1.2.840.10008.5.1.4.1.1.{number}" for number in _PLACED.split())
"""CT, MR and PET, each also enhanced and legacy converted; ultrasound; secondary capture."""

# What ITK gets of a header: attributes of these groups that are short and no sequences, and of the first items of the
# functional groups the macros that place a frame.
_COPIED_GROUPS, _LONGEST_COPIED = (0x0008, 0x0018, 0x0020, 0x0028), 1024
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_PLACING_MACROS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_UNREADABLE: tuple[type[Exception], ...] = (UnreadableFileError, RuntimeError, *READ_ERRORS)
_FILES_KEPT = 64  # three for each source; every writer of a result asks about the same three


@dataclass(frozen=True)
class ItkView:
    """How ITK (GDCM) sees the slice in one file.

    Attributes:
        sop_class_uid: As its header has it; empty where the header cannot be read.
        sop_instance_uid: As ITK reads it; empty where ITK cannot read the slice.
        plane: Where ITK puts the pixels; None where ITK cannot read the slice.
    """

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    plane: Plane | None = None


def check_grid(labels: Volume, source: Volume, slices: Sequence[Slice] | None = None) -> None:
    """Pass if `labels` lie on the grid of `source`, and that grid on the slices as their headers have them.

    ITK must place the first, middle and last slice where their headers put them for us.

    Args:
        labels: Any values, shape (I, J, K) or (I, J, K, C).
        source: DICOM volume with patient space.
        slices: Of the source, from `slice_positions.slices_of`; read from its files where they are not given.

    Raises:
        LabelError: Another shape, another place, or a source that was moved or resampled after reading.
    """
    if labels.shape != source.shape:
        raise LabelError(
            f"the labels have the shape {labels.shape}, the source {source.shape}; one grid is needed; "
            "resample the labels to the source first"
        )
    # The distance between two affine grids is largest at a corner.
    differences_mm = (labels.affine_lps - source.affine_lps) @ corner_indices(source.shape)
    away = np.linalg.norm(differences_mm[:3], axis=0).max()
    allowed_mm = tolerance_mm(source.spacing_mm[2])
    if away > allowed_mm:
        raise LabelError(
            f"the labels lie up to {away:.2f} mm away from the source's grid; at most {allowed_mm:g} mm is "
            "needed; resample the labels to the source first"
        )
    if source.provenance.resampled:
        return
    slices = slices_of(source) if slices is None else slices
    for k, source_slice in enumerate(slices):
        if source_slice.plane is not None:
            _check_slice(source, k, source_slice.plane)
    _check_by_itk(source, slices)


def second_opinion_note(source: Volume) -> str | None:
    """A sentence with the number of slices whose place ITK cannot read though it knows their class; None if it reads all."""
    files = [] if source.planar or source.provenance.resampled else _sampled_files(source)
    views = [_seen_by_itk(file) for file in files]
    known = [view for view in views if view.sop_class_uid in PLACED_BY_GDCM]
    missing = sum(view.plane is None for view in known)
    if not missing:
        return None
    return f"ITK cannot read the place of {missing} of {len(known)} slices; only our reader gives their positions"


def _check_slice(source: Volume, k: int, plane: Plane) -> None:
    across, down, through, origin = source.affine_lps[:3].T
    away = apart_mm(Plane(origin + k * through, across, down), plane, (source.shape[1], source.shape[0]))
    *pixel_mm, gap_mm = source.spacing_mm
    allowed_mm = max(tolerance_mm(gap_mm), jitter_limit_mm(gap_mm, min(pixel_mm)))
    if away > allowed_mm:
        raise LabelError(
            f"slice {k} lies {away:.2f} mm from where its file has it; at most {allowed_mm:g} mm is needed; results cannot be "
            "written on a resampled or rearranged series, bring the labels back to the original slices"
        )


def _check_by_itk(source: Volume, slices: Sequence[Slice]) -> None:
    """Pass if ITK places the slices of classes in PLACED_BY_GDCM where we do; slices that it cannot read pass, too."""
    by_uid = {part.sop_instance_uid: part for part in slices if part.sop_class_uid in PLACED_BY_GDCM}
    allowed_mm = tolerance_mm(source.spacing_mm[2])
    for view in map(_seen_by_itk, _sampled_files(source)):
        own = by_uid.get(view.sop_instance_uid)
        if own is None or own.plane is None or view.plane is None:
            continue
        away = apart_mm(own.plane, view.plane, own.shape)
        if away > allowed_mm:
            raise LabelError(
                f"ITK sees instance {own.sop_instance_uid} of the source {away:.2f} mm from its position by our reader; "
                f"both must agree within {allowed_mm:g} mm; check its position, orientation and pixel spacing"
            )


def _sampled_files(source: Volume) -> list[Path]:
    """The files of the first, middle and last slice; none for the frames of one file, or for data sets in memory."""
    files = source.provenance.files
    if not files or len(files) != len(source.provenance.sop_instance_uids):
        return []
    return [Path(files[number]) for number in sorted({0, len(files) // 2, len(files) - 1})]


def _seen_by_itk(file: Path) -> ItkView:
    """How ITK sees the slice in a file; ITK is asked once as long as the file does not change."""
    state = state_of(file)
    return _itk_view(file, state) if state else ItkView()


@lru_cache(maxsize=_FILES_KEPT)
def _itk_view(file: Path, _state: tuple[int, int, int]) -> ItkView:
    """How ITK sees the slice in a file in some state.

    ITK does not get the file: a few bytes behind the pixels make it allocate gigabytes. It gets a copy of the attributes that
    place a slice, with their values as they stand in the file.
    """
    sop_class_uid = ""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with TemporaryDirectory(prefix="monai-unet-place-") as folder:
        copy = Path(folder) / "header.dcm"
        try:
            header = load_dataset(file)
            sop_class_uid = str(header.get("SOPClassUID"))
            _placing_attributes(header).save_as(copy, enforce_file_format=True)
            reader.SetFileName(str(copy))
            reader.ReadImageInformation()
        except _UNREADABLE:
            return ItkView(sop_class_uid)
    if reader.GetDimension() != 3 or not reader.HasMetaDataKey("0008|0018"):
        return ItkView(sop_class_uid)
    # ITK has directions as columns of unit length, and the spacing of each apart from them.
    steps = np.array(reader.GetDirection()).reshape(3, 3) @ np.diag(reader.GetSpacing())
    uid = str(reader.GetMetaData("0008|0018")).strip("\0 ")
    return ItkView(sop_class_uid, uid, Plane(np.array(reader.GetOrigin()), steps[:, 0], steps[:, 1]))


def _placing_attributes(header: Dataset) -> Dataset:
    """The part of a header that ITK gets, with an empty PixelData, without which it reads nothing."""
    part = Dataset()
    for tag in header.keys():  # noqa: SIM118 - a Dataset's iterator decodes its values
        element = header.get_item(tag)
        # An attribute that the dictionary does not have may be a sequence, and is left out.
        known = dictionary_VR(tag) if dictionary_has_tag(tag) else "SQ"
        is_short = not isinstance(element.value, bytes) or len(element.value) <= _LONGEST_COPIED
        if tag.group in _COPIED_GROUPS and "SQ" not in (element.VR, known) and is_short:
            part[tag] = element
    for keyword in _FUNCTIONAL_GROUPS:
        if header.get(keyword):
            item, whole = Dataset(), header[keyword].value[0]
            for macro_keyword in _PLACING_MACROS:
                if macro_keyword in whole:
                    item[macro_keyword] = whole[macro_keyword]
            setattr(part, keyword, [item])
    part.add_new("PixelData", "OW", b"")
    # Compressed syntaxes encode the attributes as explicit VR little endian (PS3.5 A.4).
    part.file_meta, syntax = FileMetaDataset(), header.file_meta.TransferSyntaxUID
    part.file_meta.TransferSyntaxUID = syntax if syntax in _NATIVE else ExplicitVRLittleEndian
    return part

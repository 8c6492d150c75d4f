"""The hazard matrix: small series with one fault each, and what is true of them.

A hazard is a folder of DICOM files and the volumes that a reader may make of it. Either it must be read right, or it may be
refused in words that name the fault. Built from `phantoms` by composition; used by the tests of our reader and, beside
other readers, by `benchmarks/hazards.py`.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hazard_writers as make
import numpy as np
from hazard_truth import Truth, header_truths, stack_truth
from numpy.typing import NDArray
from phantoms import CT_IMAGE, lopsided_array, oblique_affine, tilted_affine, write_enhanced_mr, write_mr_series
from pydicom.dataset import Dataset
from pydicom.misc import is_dicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

Edit = Callable[[Dataset, int], None]
Words = tuple[str, ...]
Floats = NDArray[np.float64]

ARRAY = lopsided_array((13, 11, 9)).astype(np.uint16)
SIGNED = (ARRAY.astype(np.int32) - 300).astype(np.int16)
OBLIQUE = oblique_affine()  # columns 1.25, rows 0.75, slices 2.5 mm apart
ACROSS = oblique_affine((2.0, 2.0, 5.0), degrees=(90.0, 0.0, 90.0))
TILTED = tilted_affine(20.0, 3.0)
TILTED_CT = {**CT_IMAGE, "GantryDetectorTilt": 20.0}
PET_IMAGE = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128", "Modality": "PT", "Units": "BQML"}
ONES = [1.0] * 9
# whole numbers at both ends: a reader that takes the type of all slices from the first one cuts the others
SLOPES = [1.0, 0.37, 1.1, 0.002, 5.5, 0.25, 2.2, 0.7713, 3.0]
INTERCEPTS = [0.0, -3.5, 7.0, 100.0, -1024.0, 0.5, 1.0, -8.0, 12.0]
HOUNSFIELD = [-1024.0] * 9
UPPER = range(5, 9)


@dataclass(frozen=True)
class Hazard:
    """One series with one fault.

    Attributes:
        name: At most 29 characters.
        build: Fills a folder.
        truths: The volumes that a reader may give back; none where no volume can be true to all files.
        refusal: Regular expressions, each of which a refusal must hold, in either case of letters; empty where the
            series must be read right.
        needs: A file without which the hazard cannot be built.
    """

    name: str
    build: Callable[[Path], object]
    truths: Callable[[], Sequence[Truth]]
    refusal: Words = ()
    needs: Path | None = None

    def unsaid(self, message: str) -> list[str]:
        """Those of `refusal` that a message lacks; numbers within UIDs and paths do not count."""
        text = re.sub(r"/\S+|\d+(\.\d+){3,}", "_", message)
        return [words for words in self.refusal if not re.search(words, text, re.IGNORECASE)]


def _series(
    name: str,
    array: NDArray = ARRAY,
    affine_lps: Floats = OBLIQUE,
    *,
    refusal: Words = (),
    true_array: NDArray | None = None,
    readable: bool = True,
    after: Callable[[list[Path]], object] | None = None,
    **written: Any,
) -> Hazard:
    """A hazard of one series by `phantoms.write_mr_series`, to which all further arguments go.

    Args:
        name: Its name.
        array: Stored values as they are written.
        affine_lps: Index to LPS mm.
        refusal: As of `Hazard`.
        true_array: Stored values as they are meant, where that is something else.
        readable: False for a series that no volume can be true to.
        after: Called with the paths, in order of k, once all is written.
        **written: Faults of place and value that the truth shares, and header, edit, names.
    """

    def build(folder: Path) -> None:
        paths = write_mr_series(folder, array, affine_lps, **written)
        if after is not None:
            after(paths)

    def truths() -> list[Truth]:
        shared = {key: written[key] for key in ("drop", "shift_mm", "slopes", "intercepts") if key in written}
        stored = array if true_array is None else true_array
        return [stack_truth(stored, affine_lps, **shared)] if readable else []

    return Hazard(name, build, truths, refusal)


def _directed(row: Sequence[float], column: Sequence[float], spacing_mm: Sequence[float] = (1.25, 0.75, 2.5)) -> Floats:
    """Shape (4, 4): a grid whose rows and columns run along two unit vectors in LPS."""
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.stack([row, column, np.cross(row, column)], axis=1) @ np.diag(spacing_mm)
    affine_lps[:3, 3] = (-31.5, 12.25, -47.0)
    return affine_lps


def _setting(only: Sequence[int] = range(9), **values: object) -> Edit:
    """An edit that writes attributes into all or some slices."""

    def edit(dataset: Dataset, k: int) -> None:
        for keyword, value in values.items() if k in only else ():
            setattr(dataset, keyword, value)

    return edit


def _places() -> Iterator[Hazard]:
    """Wherever a series lies and however its files are called, it must be read right."""
    yield _series("plain MR without rescale", names_backwards=False)
    yield _series("reversed instance numbers", names_backwards=True)
    yield _series("shuffled file names", after=make.shuffle_names)
    yield _series("axial", affine_lps=_directed((1, 0, 0), (0, 1, 0)))
    yield _series("sagittal", affine_lps=_directed((0, 1, 0), (0, 0, -1)))
    yield _series("coronal", affine_lps=_directed((1, 0, 0), (0, 0, -1)))
    yield _series("oblique 30 degrees", affine_lps=_directed((1, 0, 0), (0, np.sqrt(0.75), 0.5)))
    yield _series("double oblique", affine_lps=oblique_affine(degrees=(30.0, 20.0, 0.0)))
    yield _series("negative direction cosines", affine_lps=_directed((-1, 0, 0), (0, -1, 0)))
    yield _series("rows from left to right", affine_lps=_directed((-1, 0, 0), (0, 1, 0)))
    yield _series("anisotropic pixels", affine_lps=oblique_affine((0.4, 1.7, 3.3)))
    yield _series("positions rounded to 0.01 mm", affine_lps=oblique_affine((0.6, 0.75, 0.8)), decimals=2)
    yield _series("wrong SpacingBetweenSlices", header={"SpacingBetweenSlices": 1.0})
    yield _series("wrong SliceThickness", edit=_setting(SliceThickness=5.0))
    yield _series("gantry tilt 20 degrees, even", affine_lps=TILTED, header=TILTED_CT)


def _values() -> Iterator[Hazard]:
    """However numbers are stored, the rescaled ones must come back."""
    in_hu: dict[str, Any] = {"header": CT_IMAGE, "slopes": ONES, "intercepts": HOUNSFIELD}
    twelve_bits = _setting(BitsStored=12, HighBit=11)
    yield _series("signed pixels", SIGNED)
    yield _series("unsigned pixels above 32767", ARRAY + np.uint16(60000))
    padded = SIGNED.copy()
    padded[:3, 7:], padded[10:, :2] = -2000, -2000
    yield _series("padded pixels", padded, edit=make.padding, **in_hu)
    yield _series("CT, one rescale", **in_hu)
    yield _series("PET, a slope for each slice", SIGNED, header=PET_IMAGE, slopes=SLOPES)
    yield _series("slope and intercept by slice", slopes=SLOPES, intercepts=INTERCEPTS)
    # HU are physical: how a picture is to be shown does not change them (PS3.3 C.7.6.3.1.2)
    yield _series("MONOCHROME1 CT", edit=_setting(PhotometricInterpretation="MONOCHROME1"), **in_hu)
    overlay = ((np.indices(ARRAY.shape).sum(axis=0) % 15 + 1) << 12).astype(np.uint16)
    yield _series("12 of 16 bits, overlay above", ARRAY | overlay, true_array=ARRAY, edit=twelve_bits)
    cut = (SIGNED.astype(np.int32) & 0x0FFF).astype(np.int16)
    yield _series("12 signed bits, not extended", cut, true_array=SIGNED, edit=twelve_bits)


def _encodings() -> Iterator[Hazard]:
    """Every lossless way to write a file, on a medium too."""
    yield _series("implicit VR", after=partial(make.recode, syntax=ImplicitVRLittleEndian))
    yield _series("big endian", after=partial(make.recode, syntax=ExplicitVRBigEndian))
    yield _series("deflated", after=partial(make.recode, syntax=DeflatedExplicitVRLittleEndian))
    yield _series("RLE", after=partial(make.compress, syntax=RLELossless))
    yield _series("JPEG-LS", after=partial(make.compress, syntax=JPEGLSLossless))
    lossless = partial(make.compress_by_itk, compressor="JPEG", syntax=JPEGLosslessSV1)
    yield _series("JPEG lossless", after=lossless)
    yield _series("JPEG 2000", after=partial(make.compress_by_itk, compressor="JPEG2000", syntax=JPEG2000Lossless))
    still = np.repeat(lopsided_array()[:, :, :1].astype(np.uint16), 9, axis=2)
    yield _series("HTJ2K", still, slopes=ONES, intercepts=[100.0 * k for k in range(9)], after=make.as_htj2k)
    yield _series("DICOMDIR beside the files", after=make.with_dicomdir)


def _enhanced() -> Iterator[Hazard]:
    yield _enhanced_mr("enhanced, frames in order", ONES, shuffle=False)
    yield _enhanced_mr("enhanced, frames shuffled", ONES)
    yield _enhanced_mr("enhanced, rescale by frame", SLOPES, shuffle=False)
    yield _enhanced_mr("enhanced, a frame missing", ONES, drop=(4,), refusal=("lack|miss", r"\b5(\.0+)?\b"))


def _enhanced_mr(
    name: str,
    slopes: Sequence[float],
    *,
    shuffle: bool = True,
    drop: tuple[int, ...] = (),
    refusal: Words = (),
) -> Hazard:
    edit = partial(make.arrange_frames, shuffle=shuffle, drop=drop)
    return Hazard(
        name,
        lambda folder: write_enhanced_mr(folder / "enhanced.dcm", ARRAY, OBLIQUE, slopes=slopes, edit=edit),
        lambda: [stack_truth(ARRAY, OBLIQUE, slopes=slopes, drop=drop)],
        refusal,
    )


def _guests() -> Iterator[Hazard]:
    """Files that are no part of the volume, and whole volumes side by side."""
    yield _localizer("localizer inside the series", (15, 14, 1), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    yield _localizer("localizer not marked as one", (13, 11, 1))
    yield _series("one file twice", after=make.copy_one)
    yield _two_stacks("two series in one folder", (r"\b2\b.*series",), lambda n: {"SeriesInstanceUID": generate_uid()})
    yield _two_stacks(
        "two time points",
        ("time|temporal", "position"),
        lambda n: {"TemporalPositionIdentifier": n + 1, "AcquisitionNumber": n + 1, "AcquisitionTime": f"1200{n}0"},
    )
    yield _two_stacks("mixed orientations", ("orientation", r"\b2\b"), lambda n: {}, ACROSS)


def _localizer(name: str, shape: tuple[int, int, int], **header: object) -> Hazard:
    """One slice across the stack, in the same series."""
    array = lopsided_array(shape).astype(np.uint16)

    def build(folder: Path) -> None:
        shared = _shared_header()
        write_mr_series(folder, ARRAY, OBLIQUE, header=shared)
        write_mr_series(folder, array, ACROSS, header={**shared, **header}, prefix="a_scout")

    return Hazard(name, build, lambda: [stack_truth(ARRAY, OBLIQUE), stack_truth(array, ACROSS, required=False)])


def _shared_header() -> dict[str, object]:
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    return {keyword: generate_uid() for keyword in keywords}


def _two_stacks(
    name: str, refusal: Words, header: Callable[[int], Mapping[str, object]], second_lps: Floats = OBLIQUE
) -> Hazard:
    """Two whole stacks with other values; `header(n)` is written over what they share.

    A reader may pick one of two series or times, but not one half of a series of two orientations.
    """
    stacks = ((ARRAY, OBLIQUE), (ARRAY + np.uint16(333), second_lps))

    def build(folder: Path) -> None:
        shared = _shared_header()
        for n, (array, affine_lps) in enumerate(stacks):
            edit = partial(_renumber, first=9 * n)
            write_mr_series(folder, array, affine_lps, header={**shared, **header(n)}, prefix=f"part{n}", edit=edit)

    required = second_lps is not OBLIQUE
    return Hazard(name, build, lambda: [stack_truth(*stack, required=required) for stack in stacks], refusal)


def _renumber(dataset: Dataset, _: int, first: int) -> None:
    dataset.InstanceNumber += first


def _gaps() -> Iterator[Hazard]:
    """Slices that lie on no even grid; a volume of their number of voxels cannot be true."""
    to_patient_left, along_normal = OBLIQUE[:3, 0] / 1.25, OBLIQUE[:3, 2] / 2.5
    yield _series("missing middle slice", drop=(4,), refusal=("lack|miss", r"\b1\b", r"\b5(\.0+)?\b"))
    yield _series("missing two slices", drop=(2, 5), refusal=("lack|miss", r"\b2\b", r"\b5(\.0+)?\b"))
    later = dict.fromkeys(UPPER, along_normal)
    yield _series("uneven spacing", shift_mm=later, refusal=("gap|spac", r"\b2\.50?\b", r"\b3\.50?\b"))
    yield _series(
        "gaps of 4 and 7 mm",
        affine_lps=_directed((1, 0, 0), (0, 1, 0), (0.5, 0.5, 4.0)),
        header=CT_IMAGE,
        shift_mm={k: (0.0, 0.0, 3.0 * (k - 4)) for k in UPPER},
        refusal=("gap|spac", r"\b4(\.0+)?\b", r"\b7(\.0+)?\b"),
    )
    yield _series(
        "gantry tilt, uneven gaps",
        affine_lps=TILTED,
        header=TILTED_CT,
        shift_mm=dict.fromkeys(UPPER, (0.0, 0.0, 2.0)),
        refusal=("gap|spac", r"\b4\.70?\b|\b5(\.0+)?\b"),  # 5 mm along the table, 4.70 along the normal
    )
    sideways = {4: 3.0 * to_patient_left}
    yield _series("a slice shifted sideways", shift_mm=sideways, refusal=("sideways|shift", r"\b3(\.0+)? mm"))


def _contradictions() -> Iterator[Hazard]:
    """Files that cannot be one volume, and broken ones."""
    broken = partial(_series, readable=False)
    yield broken("two slices at one position", after=make.add_twin, refusal=("position", r"\b2\b"))
    odd_rows = (r"\b10 ?[x×] ?13\b|\b13 ?[x×] ?10\b", r"\b11 ?[x×] ?13\b|\b13 ?[x×] ?11\b")
    yield broken("one slice of another size", after=make.cut_rows, refusal=odd_rows)
    spacing = _setting([4], PixelSpacing=[0.8, 1.25])
    yield broken("one slice of other spacing", edit=spacing, refusal=("spacing", r"\b0\.8"))
    other = {"PatientID": "PHANTOM-2", "PatientName": "Other^Phantom"}
    yield _halves("two patients in one series", ("patient", r"\b2\b"), **other)
    elsewhere = {"FrameOfReferenceUID": generate_uid()}
    yield _halves("two frames of reference", ("frames? of reference", r"\b2\b"), **elsewhere)
    yield broken("NaN in a position", after=make.nan_position, refusal=("nan|finite", "position"))
    yield broken("zero pixel spacing", edit=_setting(PixelSpacing=[0, 0]), refusal=("spacing", r"\b0\b"))
    yield broken("truncated pixel data", after=make.truncate, refusal=("pixel", r"\b\d+ (bytes|are left)"))
    yield broken("palette colour", edit=make.palette, refusal=("palette|colou?r",))
    yield Hazard("siemens mosaic", make.write_mosaic, _mosaic_truth, ("mosaic",), make.MOSAIC_FILE)


def _halves(name: str, refusal: Words, **upper: object) -> Hazard:
    """One even stack whose upper slices belong to somebody or somewhere else: two volumes, or none."""
    parts = (tuple(UPPER), tuple(range(UPPER.start)))
    build = _series(name, edit=_setting(UPPER, **upper)).build
    return Hazard(name, build, lambda: [stack_truth(ARRAY, OBLIQUE, drop=part) for part in parts], refusal)


def _mosaic_truth() -> list[Truth]:
    """Place and order of tiles by nibabel, another reader of Siemens' private header; it counts rows first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its own module experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data
    by_row_lps = wrapper_from_data(make.read_mosaic()).affine
    return [stack_truth(make.mosaic_array(), by_row_lps[:, [1, 0, 2, 3]])]


HAZARDS = tuple(
    hazard for group in (_places, _values, _encodings, _enhanced, _guests, _gaps, _contradictions) for hazard in group()
)


def real_series(folder: Path) -> list[Hazard]:
    """Each folder of files below `folder`, and each tree of several, as a hazard; the headers are the truth."""
    leaves = sorted({path.parent for path in folder.rglob("*") if path.is_file()} - {folder})
    leaves = [leaf for leaf in leaves if header_truths(_files(leaf, "*"))]
    parents = [leaf.parent for leaf in leaves]
    trees = {parent for parent in parents if parents.count(parent) > 1} - {folder}
    return [_real(folder, part) for part in sorted([*leaves, *trees])]


def _real(root: Path, part: Path) -> Hazard:
    name = str(part.relative_to(root))
    return Hazard(
        name if len(name) <= 29 else f"{name[:8]}..{name[-19:]}",
        partial(_copy_dicom, part),
        lambda: header_truths(_files(part, "**/*")),
        (".",),
    )


def _copy_dicom(source: Path, folder: Path) -> None:
    """What is no DICOM file, such as a README, stays behind: it is no hazard of the series."""
    for path in _files(source, "**/*"):
        if is_dicom(path):
            copy = folder / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _files(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.glob(pattern) if path.is_file()]

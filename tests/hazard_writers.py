"""What is done to the files of a phantom to make a hazard of it: other encodings, broken bytes, foreign forms.

Each function takes the paths that `phantoms.write_mr_series` gave back, in order of k, or edits one data set. Nothing under
test is used here.
"""

from __future__ import annotations

import base64
import gzip
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from phantoms import save
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.fileset import FileSet
from pydicom.uid import UID, ExplicitVRBigEndian, HTJ2KLossless, ImplicitVRLittleEndian, generate_uid

Paths = list[Path]

HTJ2K_CODESTREAM = base64.b64decode(
    "/0//UQApQAAAAAALAAAACQAAAAAAAAAAAAAACwAAAAkAAAAAAAAAAAABDwEB/1AACAACAAAAC/9SAAwAAgABAAEEBEAB/1wAByCQkJCY"
    "/2QAFgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAAiwAB/5PAABekAOv/T/9P/3f9X/9h/pf/I/87/xP/Lv8H/yf/A/8x/s/9Gf9k"
    "/nx/rP9bP9J/7L/z5/pf+v98w/yL/C3+A+/ufX6y6gZCADG9AMAAFdAABVwAAK1WApEPpC6Z+jh3b4XpAISQ3v57xLN7n7cAyMpSOf5A"
    "7T619HRYAP/Z"
)
"""`phantoms.lopsided_array()[:, :, 0]` in High-Throughput JPEG 2000, by OpenJPH 0.9: Python brings no encoder."""

MOSAIC_FILE = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / "siemens_dwi_0.dcm.gz"
MOSAIC_SHAPE = (128, 128, 48)  # of 7 x 7 tiles, one is left black
_MOSAIC_TILES = 7


def shuffle_names(paths: Paths) -> None:
    """Gives the files names whose order has nothing to do with place or number."""
    for path, name in zip(paths, np.random.default_rng(7).permutation(len(paths)), strict=True):
        path.rename(path.with_name(f"IM{name:03d}"))


def copy_one(paths: Paths) -> None:
    """The same file once more under another name."""
    shutil.copy(paths[2], paths[2].with_name("copy.dcm"))


def recode(paths: Paths, syntax: UID) -> None:
    """The same data sets in another transfer syntax; no compression of pixels by themselves."""
    big = syntax == ExplicitVRBigEndian
    for path in paths:
        dataset = dcmread(path)
        dataset.decode()
        if big:
            dataset.PixelData = np.frombuffer(dataset.PixelData, dtype="<u2").astype(">u2").tobytes()
        recoded = Dataset()
        recoded.update(dataset)
        recoded.file_meta = dataset.file_meta
        recoded.file_meta.TransferSyntaxUID = syntax
        implicit = syntax == ImplicitVRLittleEndian
        dcmwrite(path, recoded, implicit_vr=implicit, little_endian=not big, enforce_file_format=True)


def compress(paths: Paths, syntax: UID) -> None:
    """Pixels compressed by pydicom."""
    for path in paths:
        dataset = dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)


def compress_by_itk(paths: Paths, compressor: str, syntax: UID) -> None:
    """Pixels compressed by the GDCM inside SimpleITK, for what pydicom encodes with a plug-in or not at all."""
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            writer.SetFileName(str(Path(scratch, "pixels.dcm")))
            writer.Execute(SimpleITK.GetImageFromArray(dcmread(path).pixel_array))
            written = dcmread(Path(scratch, "pixels.dcm"))
        assert written.file_meta.TransferSyntaxUID == syntax, written.file_meta.TransferSyntaxUID
        _encapsulate(path, get_frame(written.PixelData, 0, number_of_frames=1), syntax)


def as_htj2k(paths: Paths) -> None:
    """The one ready-made codestream in every slice."""
    for path in paths:
        _encapsulate(path, HTJ2K_CODESTREAM, HTJ2KLossless)


def _encapsulate(path: Path, codestream: bytes, syntax: UID) -> None:
    dataset = dcmread(path)
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)


def with_dicomdir(paths: Paths) -> None:
    """Moves the files into the tree of a file-set with its index, as on a CD."""
    file_set = FileSet()
    for path in paths:
        file_set.add(path)
    with tempfile.TemporaryDirectory() as scratch:
        file_set.write(scratch)
        for path in paths:
            path.unlink()
        shutil.copytree(scratch, paths[0].parent, dirs_exist_ok=True)


def arrange_frames(dataset: Dataset, _: int, *, shuffle: bool, drop: Sequence[int]) -> None:
    """Frames of `phantoms.write_enhanced_mr` in order of k or shuffled, without those of slices in `drop`.

    Adds the frame content and the dimensions that a whole enhanced object has (PS3.3 C.7.6.16, C.7.6.17).
    """
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    frames = np.frombuffer(dataset.PixelData, dtype=np.uint16).reshape(len(groups), dataset.Rows, dataset.Columns)
    number_of = [len(groups) - n for n in range(len(groups))]  # the phantom counts frames against the positions
    every = np.random.default_rng(3).permutation(len(groups)) if shuffle else range(len(groups))[::-1]
    order = [n for n in every if number_of[n] - 1 not in drop]
    organization, index = Dataset(), Dataset()
    organization.DimensionOrganizationUID = index.DimensionOrganizationUID = generate_uid()
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00209057, 0x00209111  # in-stack position
    dataset.DimensionOrganizationSequence, dataset.DimensionIndexSequence = [organization], [index]
    for number, group in zip(number_of, groups, strict=True):
        content = Dataset()
        content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = "1", number, 1
        content.DimensionIndexValues = [number]
        group.FrameContentSequence = [content]
    dataset.PerFrameFunctionalGroupsSequence = [groups[n] for n in order]
    dataset.PixelData = np.ascontiguousarray(frames[order]).tobytes()
    dataset.NumberOfFrames = len(order)


def add_twin(paths: Paths) -> None:
    """Another instance at the place of slice 4, with other pixels: the two contradict each other."""
    dataset = dcmread(paths[4])
    dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), 77
    dataset.PixelData = (dataset.pixel_array + np.uint16(100)).tobytes()
    save(dataset, paths[4].with_name("twin.dcm"))


def cut_rows(paths: Paths) -> None:
    """Slice 4 has one row less than the others."""
    dataset = dcmread(paths[4])
    dataset.Rows, dataset.PixelData = dataset.Rows - 1, dataset.pixel_array[:-1].tobytes()
    dataset.save_as(paths[4])


def nan_position(paths: Paths) -> None:
    """Slice 4 has no number where its x should be; DS does not allow it (PS3.5 6.2), some writers do it."""
    first = str(dcmread(paths[4]).ImagePositionPatient[0]).encode()
    content = paths[4].read_bytes()
    assert content.count(first) == 1, first
    paths[4].write_bytes(content.replace(first, b"NaN".ljust(len(first))))


def truncate(paths: Paths) -> None:
    """Slice 4 ends within its pixels."""
    paths[4].write_bytes(paths[4].read_bytes()[:-57])


def palette(dataset: Dataset, _: int) -> None:
    """Colours by a table (PS3.3 C.7.6.3.1.5): the stored numbers measure nothing."""
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for n, colour in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [1024, 0, 16])
        table = (np.arange(1024) * (n + 1) * 20 % 65536).astype(np.uint16)
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())


def padding(dataset: Dataset, _: int) -> None:
    """Says that -2000 stands outside the field of view."""
    dataset.add_new("PixelPaddingValue", "SS", -2000)


def mosaic_array() -> NDArray[np.uint16]:
    """Shape (I, J, K) of `MOSAIC_SHAPE`: lopsided, within 12 bits."""
    i, j, k = np.indices(MOSAIC_SHAPE)
    return ((7 * i + 19 * j + 41 * k + (i * j) % 5) % 4000).astype(np.uint16)


def read_mosaic() -> Dataset:
    """A Siemens volume laid out as tiles of one picture: nibabel's header, whose pixels are all 0."""
    with gzip.open(MOSAIC_FILE) as file:
        dataset = dcmread(file)
        dataset.decode()
    return dataset


def write_mosaic(folder: Path) -> None:
    """That header with our pixels, tiles row by row as Siemens lays them."""
    dataset, array = read_mosaic(), mosaic_array()
    columns, rows, count = MOSAIC_SHAPE
    picture = np.zeros((rows * _MOSAIC_TILES, columns * _MOSAIC_TILES), dtype=np.uint16)
    for k in range(count):
        top, left = rows * (k // _MOSAIC_TILES), columns * (k % _MOSAIC_TILES)
        picture[top : top + rows, left : left + columns] = array[:, :, k].T
    dataset.PixelData = picture.tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    dataset.save_as(folder / "mosaic.dcm")

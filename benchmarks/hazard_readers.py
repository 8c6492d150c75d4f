"""The readers of `hazards.py`, each called as its own documentation does, and the process in which one of them runs.

    python benchmarks/hazard_readers.py READER CASES ANSWERS

CASES is a folder with `<number>/` (the files of a case) and `<number>.pickle` (its truths) for each case, and `plain/`, a
series without a fault: what a reader says of that one is no warning elsewhere. ANSWERS is a file to which one line of JSON
is added before and one after each case. Cases that ANSWERS knows are passed by, so that the caller may start anew after
a crash.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from hazard_truth import Placed, Verdict, judge  # noqa: E402

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NO_MATTER = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning, ImportWarning)
_REFUSALS = (ValueError, RuntimeError, OSError, NotImplementedError)


@dataclass(frozen=True)
class Reader:
    """A reader of folders.

    Attributes:
        code: Its column, at most 6 characters.
        name: What is called.
        distribution: The package whose version is told.
        modules: What must be importable.
        read: Folder to volumes; a 4D result as its single volumes.
        refusals: Names of exceptions by which it refuses, beside the built-in ones for bad input.
    """

    code: str
    name: str
    distribution: str
    modules: tuple[str, ...]
    read: Callable[[Path], list[Placed]]
    refusals: tuple[str, ...] = ()


def read_ours(folder: Path) -> list[Placed]:
    """What this reader tolerated or passed by counts as a warning."""
    from dicom_io.read import read_series

    volume = read_series(folder)
    for note in volume.provenance.notes:
        warnings.warn(note, stacklevel=1)
    return [(volume.array, volume.affine_lps)]


def read_simpleitk(folder: Path) -> list[Placed]:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    if not names:
        raise ValueError("no series")
    reader.SetFileNames(names)
    image = reader.Execute() if len(names) > 1 else SimpleITK.ReadImage(names[0])
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine_lps[:3, 3] = image.GetOrigin()
    return [(SimpleITK.GetArrayFromImage(image).T, affine_lps)]


def read_monai_itk(folder: Path) -> list[Placed]:
    from monai.data import ITKReader

    return _read_monai(ITKReader(), folder)


def read_monai_pydicom(folder: Path) -> list[Placed]:
    from monai.data import PydicomReader

    return _read_monai(PydicomReader(), folder)


def _read_monai(reader: object, folder: Path) -> list[Placed]:
    array, meta = reader.get_data(reader.read(folder))  # type: ignore[attr-defined]
    return _single(np.asarray(array), LPS_FROM_RAS @ np.asarray(meta["affine"], dtype=np.float64))


def read_dicom2nifti(folder: Path) -> list[Placed]:
    import dicom2nifti

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "out.nii.gz")
        dicom2nifti.dicom_series_to_nifti(str(folder), str(path), reorient_nifti=False)
        return _read_nifti(path)


def read_highdicom(folder: Path) -> list[Placed]:
    import highdicom
    from pydicom import dcmread

    datasets = [dcmread(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    datasets = [dataset for dataset in datasets if "PixelData" in dataset]
    if len(datasets) == 1 and "NumberOfFrames" in datasets[0]:
        volume = highdicom.imread(str(datasets[0].filename)).get_volume()
    else:
        volume = highdicom.get_volume_from_series(datasets)
    return [(volume.array, volume.affine)]


def read_dcm2niix(folder: Path) -> list[Placed]:
    """All files that it writes. Its default takes Philips' private scale, where there is one, for the rescale."""
    import dcm2niix

    with tempfile.TemporaryDirectory() as scratch:
        command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "%s_%d", "-o", scratch, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr, file=sys.stderr)
        files = sorted(Path(scratch).glob("*.nii"))
        if done.returncode < 0:
            raise ChildProcessError(f"dcm2niix ended by signal {-done.returncode}")
        if not files:
            raise ValueError(" ".join(done.stdout.split())[-160:])
        return [volume for path in files for volume in _read_nifti(path)]


def _read_nifti(path: Path) -> list[Placed]:
    import nibabel

    image = nibabel.load(path)
    return _single(np.asarray(image.dataobj), LPS_FROM_RAS @ image.affine)  # type: ignore[attr-defined]


def _single(array: NDArray, affine_lps: NDArray[np.float64]) -> list[Placed]:
    """A 4D array as its volumes, a 2D one as a volume of one slice, whose step is no matter."""
    if array.ndim == 2:
        affine_lps[:3, 2] = np.cross(affine_lps[:3, 0], affine_lps[:3, 1])
        return [(array[..., None], affine_lps)]
    if array.ndim == 3:
        return [(array, affine_lps)]
    return [(array[..., n], affine_lps) for n in range(array.shape[3])]


READERS = (
    Reader("ours", "dicom_io.read.read_series", "monai-unet-app", ("dicom_io",), read_ours, ("DicomIoError",)),
    Reader("SITK", "SimpleITK ImageSeriesReader", "SimpleITK", ("SimpleITK",), read_simpleitk),
    Reader("M-ITK", "MONAI ITKReader", "monai", ("monai", "itk"), read_monai_itk, ("TemplateTypeError",)),
    Reader("M-pyd", "MONAI PydicomReader", "monai", ("monai", "pydicom"), read_monai_pydicom),
    Reader(
        "d2n",
        "dicom2nifti.dicom_series_to_nifti",
        "dicom2nifti",
        ("dicom2nifti",),
        read_dicom2nifti,
        ("ConversionError", "ConversionValidationError"),
    ),
    Reader("hd", "highdicom.get_volume_from_series", "highdicom", ("highdicom",), read_highdicom),
    Reader("niix", "dcm2niix", "dcm2niix", ("dcm2niix",), read_dcm2niix),
)


def main(code: str, cases: Path, answers: Path) -> None:
    """Reads and judges every case that has no answer yet."""
    reader = next(reader for reader in READERS if reader.code == code)
    usual = frozenset(_read(reader, cases / "plain")[1]) if installed(reader) else frozenset()
    known = {json.loads(line)["case"] for line in answers.read_text().splitlines()} if answers.exists() else set()
    for path in sorted(cases.glob("*.pickle"), key=lambda path: int(path.stem)):
        if int(path.stem) not in known:
            _add(answers, {"case": int(path.stem)})
            _add(answers, {"case": int(path.stem), **asdict(_verdict(reader, path, usual))})


def _add(answers: Path, line: dict[str, object]) -> None:
    with answers.open("a") as file:
        file.write(json.dumps(line) + "\n")


def installed(reader: Reader) -> bool:
    """Whether all that it needs can be imported."""
    try:
        for module in reader.modules:
            import_module(module)
    except ImportError:
        return False
    return True


def _verdict(reader: Reader, path: Path, usual: frozenset[str]) -> Verdict:
    if not installed(reader):
        return Verdict("absent")
    answer, said = _read(reader, path.with_suffix(""))
    if isinstance(answer, Exception):
        meant = isinstance(answer, _REFUSALS) or {kind.__name__ for kind in type(answer).__mro__} & set(reader.refusals)
        text = f"{type(answer).__name__}: {' '.join(str(answer).split())}"[:300]
        verdict = Verdict("refused" if meant else "crashed", text)
    else:
        with path.open("rb") as file:
            verdict = judge(answer, pickle.load(file))
    warned = [line for line in said if line not in usual]
    return Verdict(verdict.kind, " | ".join([verdict.text, *warned])[:600], bool(warned))


def _read(reader: Reader, folder: Path) -> tuple[list[Placed] | Exception, list[str]]:
    """Volumes, or whatever the reader raised instead, and what it said beside them."""
    said: list[str] = []
    try:
        with _listening(said):
            return reader.read(folder), said
    except Exception as error:
        return error, said


@contextlib.contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Collects Python's warnings, log records of warning and above, and such lines that libraries print."""

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage()[:160])

    ear = Ear(logging.WARNING)
    logging.getLogger().addHandler(ear)
    with tempfile.TemporaryFile("w+") as printed, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _printing_to(printed.fileno()):
                yield
        finally:
            logging.getLogger().removeHandler(ear)
            printed.seek(0)
            text = printed.read()
            said += [str(one.message)[:160] for one in caught if not issubclass(one.category, _NO_MATTER)]
            said += [line.strip()[:160] for line in text.splitlines() if re.search("warn|error", line, re.IGNORECASE)]


@contextlib.contextmanager
def _printing_to(target: int) -> Iterator[None]:
    """Both outputs of this process, those of C++ libraries too, go to a file."""
    kept = [os.dup(1), os.dup(2)]
    try:
        for output in (1, 2):
            os.dup2(target, output)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for output, original in zip((1, 2), kept, strict=True):
            os.dup2(original, output)
            os.close(original)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

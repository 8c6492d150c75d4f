"""No verb talks to anybody but those whom it was told to, and none names the patient but in DICOM objects and review pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import EXAMPLES, REPOSITORY
from own_network import run_in_own_network
from pydicom import dcmread
from small_data import FEW

from dicom_io.dicomize import dicomize
from dicom_io.volume import Provenance
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume

pytestmark = pytest.mark.slow

IDENTITIES = (
    "Quintessenza^Ottavia",
    "Brodziak^Wawrzyniec",
    "Thorvaldsdottir^Eydis",
    "Nwachukwu^Ifeoma",
    "Zsigmondy^Vilmos",
)
TEMPLATE = REPOSITORY / "bundles" / "hippocampus_mri_unet3d"
FORMATS = ("nifti", "seg", "sr", "rtstruct", "gsps", "sc", "pm")


@pytest.fixture
def named_cases(tmp_path: Path) -> Path:
    """DICOM series with their SEGs, each of a patient with name, ID, birth date and accession number."""
    segments = bundle_files(str(TEMPLATE)).segments
    for number, (name, patient) in enumerate(zip(FEW, IDENTITIES, strict=True)):
        image = read_volume(EXAMPLES / "images" / f"{name}.nii.gz")
        labels = read_labels(EXAMPLES / "labels" / f"{name}.nii.gz", image)
        nifti = replace(image, provenance=Provenance("nifti"))
        folder = tmp_path / "in" / f"case{number}"
        dicomize(nifti, folder, labels=labels, segments=segments, case_id=f"case{number}")
        for path in folder.rglob("*.dcm"):
            one = dcmread(path)
            for keyword, value in _identity(patient).items():
                setattr(one, keyword, value)
            one.save_as(path)
    return tmp_path / "in"


def _identity(patient: str) -> dict[str, str]:
    number = 1000 + IDENTITIES.index(patient)
    return {
        "PatientName": patient,
        "PatientID": f"QX-{number}-KX",
        "PatientBirthDate": f"193107{17 + IDENTITIES.index(patient)}",
        "AccessionNumber": f"ACC-{number}-QX",
    }


def test_the_verbs_need_no_network_and_name_nobody(
    named_cases: Path, tmp_path: Path, tiny_bundle: Callable[[str], Path]
) -> None:
    (tmp_path / "tmp").mkdir()
    tiny = tiny_bundle(TEMPLATE.name)
    out, bundle = tmp_path / "out", tmp_path / "out" / "bundle"
    case = named_cases / "case4"
    steps = (
        ("inspect", named_cases, "--bundle", TEMPLATE),
        ("train", "--bundle", tiny, "--data", named_cases, "--output", bundle, "--epochs", 1),
        ("evaluate", "--bundle", bundle, "--data", named_cases, "--output", out / "evaluation"),
        ("predict", "--bundle", TEMPLATE, "--input", case, "--output", out / "predict", "--format", ",".join(FORMATS)),
        ("review", "--result", out / "predict", "--input", case, "--output", out / "review"),
        ("doctor",),
    )  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        assert _run(steps, tmp_path, log) == 0, (tmp_path / "log").read_text()[-2000:]
    egress = tmp_path / "egress"
    assert not egress.exists() or _connections(egress.read_text()) == []
    _names_nobody(tmp_path)


def _run(steps: Sequence[tuple[object, ...]], folder: Path, log: object) -> int:
    """One process runs all verbs, up to the first that fails; its exit status."""
    guard = Path(__file__).parent / "service" / "guard"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(guard), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "EGRESS_LOG": str(folder / "egress"),
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
    }
    verbs = [list(map(str, words)) for words in steps]
    program = f"from monai_unet_app.cli import main; raise SystemExit(next((c for c in map(main, {verbs}) if c), 0))"
    # what native code sends is seen by its network
    return run_in_own_network(
        [sys.executable, "-c", program], stdout=log, stderr=log, env=environment, timeout=900
    ).returncode


def _connections(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith(("socket.connect", "socket.sendto"))]


def _names_nobody(folder: Path) -> None:
    """No file but a DICOM object or a review page holds an identity, and no file's name does."""
    words = {word for patient in IDENTITIES for value in _identity(patient).values() for word in value.split("^")}
    kept = [path for path in folder.rglob("*") if path.is_file() and folder / "in" not in path.parents]
    assert {"log", "run.json", "metrics.json", "index.html"} <= {path.name for path in kept}
    for path in kept:
        assert not any(word in path.name for word in words)
        if path.suffix != ".dcm" and folder / "out" / "review" not in path.parents:
            content = path.read_bytes()
            assert not [word for word in words if word.encode() in content], path.name

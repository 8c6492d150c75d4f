"""A bundle as a folder for the edge: its network and one file that needs neither torch nor MONAI nor this package.

What `segment.py` there does is what `monai-unet predict` does, which is checked on a made image before the folder is written.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from scipy import ndimage

from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.config import Precision, PredictConfig, ResultSettings
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.edge import segment
from monai_unet_app.errors import BundleError, UsageError
from monai_unet_app.export import export_bundle
from monai_unet_app.inference.engines.certificate import export_named
from monai_unet_app.inference.engines.exported import why_no_export
from monai_unet_app.inference.engines.runtimes import export_files, imported
from monai_unet_app.pipeline import segment_case

MOST_MB = 20
MOST_CHANGED, MOST_APART = 1e-4, 0.01
"""Of a made image: the part of the labels that may differ from ours, and the largest difference of probabilities."""

_SKIPPED = (LoadImaged, EnsureChannelFirstd, EnsureTyped)
_NUMBERS: Mapping[type, tuple[str, tuple[str, ...]]] = {
    Orientationd: ("ornt_transform", ("axcodes",)),
    Spacingd: ("spacing_transform", ("pixdim",)),
    ScaleIntensityRanged: ("scaler", ("a_min", "a_max", "b_min", "b_max", "clip")),
    ScaleIntensityRangePercentilesd: ("scaler", ("lower", "upper", "b_min", "b_max", "clip", "channel_wise")),
    NormalizeIntensityd: ("normalizer", ("subtrahend", "divisor", "channel_wise")),
}
"""Transforms of the preprocessing that `segment.py` knows -> where its numbers are, and which it takes."""


def export_edge(bundle: Bundle, output: Path, rows: Sequence[Mapping[str, str]] = ()) -> dict[str, Any]:
    """Writes the folder, and gives its settings.json.

    Args:
        bundle: In a folder, on the CPU; its export for ONNX Runtime is made where it is absent.
        output: The new folder.
        rows: Cases that an int8 network is quantised on, which is made anew; empty for float32 alone.

    Raises:
        UsageError: The folder exists, or a package is not installed.
        BundleError: The bundle does what `segment.py` does not, its results differ, or the folder would be too large.
    """
    if output.exists():
        raise UsageError(f"--output {output} exists; a new folder is needed; name another, or move it away")
    precisions: list[Precision] = ["float32", "int8"] if rows else ["float32"]
    settings = settings_for(bundle)
    if why_no_export(bundle, "onnxruntime"):
        export_bundle(bundle, "onnxruntime")
    if rows:
        export_bundle(bundle, "onnxruntime", rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".edge-", dir=output.parent) as parent:
        folder = Path(parent) / output.name
        folder.mkdir()
        for precision in precisions:
            source = bundle.root / export_files("onnxruntime", precision)[0]
            _write_halved(source, folder / source.name)
            settings["networks"][precision] = {
                "file": source.name,
                "sha256": file_sha256(folder / source.name),
                "export_sha256": export_named(bundle, "onnxruntime", precision),
            }
        (folder / "settings.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
        own = files("monai_unet_app.edge")
        (folder / "segment.py").write_text((own / "segment.py").read_text("utf-8"), encoding="utf-8")
        (folder / "README.md").write_text(
            Template((own / "README.md").read_text("utf-8")).substitute(_words(bundle, settings)), encoding="utf-8"
        )
        shutil.copyfile(bundle.root / "LICENSE", folder / "LICENSE")
        size_mb = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        if size_mb > MOST_MB:
            raise BundleError(
                f"{bundle.name}: the folder would have {size_mb:.1f} MB; {MOST_MB} MB at most are meant for the edge; take a "
                "smaller network, such as monai-unet plan --network light_unet"
            )
        for precision in precisions:
            _compare(bundle, folder, precision)
        os.replace(folder, output)
    return settings | {"size_mb": round(size_mb, 2)}


def settings_for(bundle: Bundle) -> dict[str, Any]:
    """The content of settings.json, without its networks. Raises BundleError for what `segment.py` cannot do."""
    windows, rules, metadata, fitted = bundle.windows, bundle.rules, bundle.metadata, bundle.fitted
    steps, result = fitted["tidy"]["steps"], bundle.result
    known = {"largest", "islands"} if len(bundle.labels) == 1 or bundle.outputs.background else {"largest"}
    foreign = sorted({step["step"] for step in steps} - known)
    if not result.named or len(result.tidy) != len(steps) or foreign:
        raise _refusal(
            bundle, f"`result` with {', '.join(foreign) or 'steps of its own'}", "largest and islands as `tidy`"
        )
    form = fitted["calibration"]["form"]
    if form not in ("region", "classwise", "temperature", "none"):
        raise _refusal(bundle, f"the calibration {form}", "region, classwise, temperature or none")
    if windows.padding_mode != "constant":
        raise _refusal(bundle, f"the padding {windows.padding_mode} of windows", "constant")
    return {
        "name": bundle.name,
        "version": bundle.version,
        "bundle_sha256": bundle.sha256,
        "intended_use": metadata.get("intended_use", ""),
        "copyright": metadata.get("copyright", ""),
        "labels": {str(n): name for n, name in enumerate(bundle.structure_names, 1)},
        "outputs": "exclusive" if bundle.outputs.background else "overlapping",
        "thresholds": list(bundle.thresholds),
        "input": {
            "planar": rules.planar,
            "channels": rules.channels,
            "spacing_mm": rules.spacing_mm,
            "extent": rules.extent_mm,
        },
        "preprocessing": [step for one in bundle.preprocessing.transforms if (step := _step(bundle, one))],
        "window": {
            "size": list(windows.window),
            "overlap": windows.overlap,
            "mode": windows.mode,
            "sigma_scale": windows.sigma_scale,
            "padding_value": windows.padding_value,
            "slice_axis": bundle.slice_axis,
        },
        "calibration": {"form": form, "numbers": bundle.part("calibration")},
        "tidy": [{key: step[key] for key in ("step", "structures", "min_size") if key in step} for step in steps],
        "networks": {},
    }


def _step(bundle: Bundle, transform: Any) -> dict[str, Any] | None:
    """A transform of the preprocessing with its numbers; None if it does nothing to an image that is in memory."""
    if type(transform) in _SKIPPED or "image" not in transform.keys:
        return None
    if type(transform) not in _NUMBERS:
        raise _refusal(
            bundle, f"{type(transform).__name__} in its preprocessing", ", ".join(k.__name__ for k in _NUMBERS)
        )
    part, names = _NUMBERS[type(transform)]
    values = vars(getattr(transform, part))
    odd = {name: values[name] for name in ("diagonal", "scale_extent", "recompute_affine", "nonzero", "relative",
                                           "as_closest_canonical") if values.get(name)}  # fmt: skip
    ways = [getattr(transform, name, [usual])[0] for name, usual in (("mode", "bilinear"), ("padding_mode", "border"))]
    if odd or values.get("axcodes", "RAS") != "RAS" or ways != ["bilinear", "border"] or None in (
        values.get(name, 0) for name in ("b_min", "b_max")
    ):  # fmt: skip
        raise _refusal(bundle, f"{type(transform).__name__} with {odd or values}", "its usual values")
    numbers = {name: np.asarray(values[name]) if values[name] is not None else None for name in names}
    plain = {name: None if value is None else value.squeeze().tolist() for name, value in numbers.items()}
    return {"step": type(transform).__name__, **plain}


def _refusal(bundle: Bundle, found: str, needed: str) -> BundleError:
    return BundleError(
        f"{bundle.name} has {found}; for the edge {needed} is needed; run it by monai-unet predict, or leave that out of it"
    )


def _write_halved(source: Path, target: Path) -> None:
    """A copy of a network that stores those weights in 16 bits that lose nothing by it: `model.pt` does so, too."""
    onnx = imported("onnx")
    model = onnx.load(source)
    for weight in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.dtype == np.float32 and values.size > 64 and np.array_equal(half.astype(np.float32), values):
            name = weight.name
            weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            model.graph.node.insert(
                0, onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
            )
    onnx.save(model, target)


def _compare(bundle: Bundle, folder: Path, precision: Precision) -> None:
    """Raises BundleError unless the folder gives our labels and probabilities of a made image."""
    settings = ResultSettings(engine="torch" if precision == "float32" else "onnxruntime", precision=precision)
    image, rules = made_image(bundle), bundle.rules
    case = segment_case(image, bundle, PredictConfig(settings), keep="probabilities", fitting=True).segmentation
    array = image.array[:, :, 0] if rules.planar else image.array
    found, affine = [], None if rules.planar else image.affine_ras
    for what in (segment.segment, segment.probabilities):
        found.append(what(array, affine, folder=folder, precision=precision))  # type: ignore[operator]
    labels, probable = (
        np.asarray(ours).reshape(theirs.shape)
        for ours, theirs in zip((case.labels, case.probabilities), found, strict=True)
    )
    changed, apart = float(np.mean(labels != found[0])), float(np.abs(probable - found[1]).max())
    if not (changed <= MOST_CHANGED and apart <= MOST_APART):
        raise BundleError(
            f"{bundle.name}: of a made image the folder gives {changed:.2%} other labels, and probabilities that are {apart:.2g} "
            f"from ours; {MOST_CHANGED:.2%} and {MOST_APART:g} at most are needed, so nothing was written; run it by "
            "monai-unet predict"
        )


def made_image(bundle: Bundle) -> Volume:
    """Smooth noise with an edge, on a grid that the bundle accepts: of volumes an oblique one, with axes in another order."""
    rules = bundle.rules
    low, high = rules.spacing_mm or (0.0, math.inf)
    spacing = np.clip(np.array(bundle.grid_spacing or [1.0] * 3) * [0.93, 1.1, 1.0], 1.01 * low, 0.99 * high)
    extent = np.array(rules.extent_mm[0] if rules.extent_mm else [40.0] * rules.axes) * 1.1
    shape = np.ceil(extent / (1 if rules.planar else spacing)).astype(int)
    noise = np.random.default_rng(0).normal(size=(rules.channels, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, *[2] * len(shape)))
    smooth[:, : shape[0] // 3] += smooth.std()
    scaled = 40 + 175 * (smooth - smooth.min()) / np.ptp(smooth)
    ranges = [one.scaler for one in bundle.preprocessing.transforms if isinstance(one, ScaleIntensityRanged)]
    if ranges and rules.channels == 1:
        scaled = ranges[0].a_min + scaled / 255 * (ranges[0].a_max - ranges[0].a_min)
    voxels = np.moveaxis(scaled, 0, -1).astype(np.uint8 if rules.planar else np.float32)
    voxels = voxels[..., 0] if rules.channels == 1 else voxels
    if rules.planar:
        return Volume(voxels[:, :, None], np.eye(4), Provenance("image"), planar=True)
    turn = np.array([[math.cos(0.2), -math.sin(0.2), 0], [math.sin(0.2), math.cos(0.2), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = (turn * spacing)[:, [2, 0, 1]] * [1, -1, 1], (-12.5, 31.25, -40.0)
    return Volume.from_ras(np.ascontiguousarray(np.moveaxis(voxels, 2, 0)), affine)


def _words(bundle: Bundle, settings: Mapping[str, Any]) -> dict[str, str]:
    """What README.md says of this bundle."""
    return {
        "name": str(bundle.metadata.get("name", bundle.name)),
        "task": str(bundle.metadata.get("task", "")),
        "version": bundle.version,
        "intended_use": settings["intended_use"],
        "copyright": settings["copyright"],
        "labels": "\n".join(f"- {number}: {name}" for number, name in settings["labels"].items()),
        "ending": "png" if settings["input"]["planar"] else "nii.gz",
        "reader": "pillow" if settings["input"]["planar"] else "nibabel",
        "precisions": ", ".join(settings["networks"]),
    }

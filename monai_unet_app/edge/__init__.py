"""A bundle as a folder for the edge: its network and one file that needs neither torch nor MONAI nor this package.

What `segment.py` there does is what `monai-unet predict` does, which is checked on a made image before the folder is written.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
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
from nibabel.affines import from_matvec
from scipy.ndimage import gaussian_filter

from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.config import Precision, PredictConfig, ResultSettings
from monai_unet_app.data.case_files import Row
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.edge import segment
from monai_unet_app.errors import BundleError, UsageError
from monai_unet_app.export import export_bundle
from monai_unet_app.inference.engines.certificate import export_named
from monai_unet_app.inference.engines.exported import why_no_export
from monai_unet_app.inference.engines.runtimes import export_files, imported
from monai_unet_app.pipeline import segment_case

MOST_MB = 20
MOST_APART = {"float32": (1e-4, 0.01), "int8": (0.02, 1.0)}
"""Of a made image: the part of the labels that may differ from ours, and the largest difference of probabilities.

Where an input differs in its last bit int8 may round the other way, and on noise a network makes much of it."""

_SWITCHES = ("diagonal", "scale_extent", "recompute_affine", "nonzero", "relative", "as_closest_canonical")
_SKIPPED = (LoadImaged, EnsureChannelFirstd, EnsureTyped)
_NUMBERS: Mapping[type, tuple[str, tuple[str, ...]]] = {
    Orientationd: ("ornt_transform", ("axcodes",)),
    Spacingd: ("spacing_transform", ("pixdim",)),
    ScaleIntensityRanged: ("scaler", ("a_min", "a_max", "b_min", "b_max", "clip")),
    ScaleIntensityRangePercentilesd: ("scaler", ("lower", "upper", "b_min", "b_max", "clip", "channel_wise")),
    NormalizeIntensityd: ("normalizer", ("subtrahend", "divisor", "channel_wise")),
}
"""Transforms of the preprocessing that `segment.py` knows -> where its numbers are, and which it takes."""


def export_edge(bundle: Bundle, output: Path, rows: Sequence[Row] = ()) -> dict[str, Any]:
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
            file, export = folder / source.name, export_named(bundle, "onnxruntime", precision)
            _write_halved(source, file)
            digests = {"sha256": file_sha256(file), "export_sha256": export}
            settings["networks"][precision] = {"file": file.name, **digests}
        (folder / "settings.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
        own, words = files("monai_unet_app.edge"), _words(settings)
        for name in ("segment.py", "README.md"):
            (folder / name).write_text(Template((own / name).read_text("utf-8")).substitute(words), encoding="utf-8")
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
    windows, fitted, result = bundle.windows, bundle.fitted, bundle.result
    if fitted is None:
        raise _refusal(bundle, "no models/fitted.json", "one, which monai-unet calibrate makes,")
    form, steps, of_classes = fitted["calibration"]["form"], fitted["tidy"]["steps"], bundle.outputs.background
    foreign = [step["step"] for step in steps if not of_classes or step["step"] not in ("largest", "islands")]
    if not result.named or len(result.tidy) != len(steps) or foreign:
        raise _refusal(bundle, f"`result` with {foreign or 'steps of its own'}", "largest and islands in `tidy`")
    known = {"the calibration": (form, segment.FORMS), "the padding of windows": (windows.padding_mode, ("constant",))}
    for what, (value, values) in known.items():
        if value not in values:
            raise _refusal(bundle, f"{what} {value}", " or ".join(values))
    of_windows = ("window", "overlap", "mode", "sigma_scale", "padding_value")
    return {
        **{key: bundle.metadata.get(key, "") for key in ("name", "version", "task", "intended_use", "copyright")},
        "bundle_sha256": bundle.sha256,
        "labels": dict(enumerate(bundle.structure_names, 1)),
        "outputs": bundle.outputs.name,
        "thresholds": list(bundle.thresholds),
        "input": asdict(bundle.rules),
        "preprocessing": [step for one in bundle.preprocessing.transforms if (step := _step(bundle, one))],
        "window": {name: getattr(windows, name) for name in of_windows} | {"slice_axis": bundle.slice_axis},
        "calibration": {"form": form, "numbers": bundle.part("calibration")},
        "tidy": [{key: value for key, value in step.items() if key != "why"} for step in steps],
        "networks": {},
    }


def _step(bundle: Bundle, transform: Any) -> dict[str, Any] | None:
    """A transform of the preprocessing with its numbers; None if it does nothing to an image that is in memory."""
    if type(transform) in _SKIPPED or "image" not in transform.keys:
        return None
    name, usual = type(transform).__name__, {"mode": "bilinear", "padding_mode": "border"}
    if type(transform) not in _NUMBERS:
        raise _refusal(bundle, f"{name} in its preprocessing", ", ".join(kind.__name__ for kind in _NUMBERS))
    part, names = _NUMBERS[type(transform)]
    values = vars(getattr(transform, part)) | {key: getattr(transform, key, [way])[0] for key, way in usual.items()}
    known = dict.fromkeys(_SWITCHES, False) | usual | {"axcodes": "RAS"}
    odd = {key: values[key] for key in known if values.get(key, known[key]) != known[key]}
    if odd or None in (values.get("b_min", 0), values.get("b_max", 0)):
        raise _refusal(bundle, f"{name} with {odd or 'no b_min or b_max'}", "its usual form")
    numbers = {key: values[key] if values[key] is None else np.squeeze(values[key]).tolist() for key in names}
    return {"step": name, **numbers}


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
            cast = onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
            model.graph.node.insert(0, cast)
    onnx.save(model, target)


def _compare(bundle: Bundle, folder: Path, precision: Precision) -> None:
    """Raises BundleError unless the folder gives our labels and probabilities of a made image."""
    settings = ResultSettings(engine="torch" if precision == "float32" else "onnxruntime", precision=precision)
    image, rules = _made_image(bundle), bundle.rules
    case = segment_case(image, bundle, PredictConfig(settings), keep="probabilities", fitting=True).segmentation
    array = image.array[:, :, 0] if rules.planar else image.array
    affine, asked = None if rules.planar else image.affine_ras, (segment.segment, segment.probabilities)
    found = [what(array, affine, folder=folder, precision=precision) for what in asked]
    labels, probable = (
        np.asarray(ours).reshape(theirs.shape)
        for ours, theirs in zip((case.labels, case.probabilities), found, strict=True)
    )
    changed, apart = float(np.mean(labels != found[0])), float(np.abs(probable - found[1]).max())
    most, most_apart = MOST_APART[precision]
    if not (changed <= most and apart <= most_apart):
        raise BundleError(
            f"{bundle.name}: of a made image the folder gives {changed:.2%} other labels, and probabilities that are "
            f"{apart:.2g} from ours; {most:.2%} and {most_apart:g} at most are needed, so nothing was "
            "written; run it by monai-unet predict"
        )


def _words(settings: Mapping[str, Any]) -> dict[str, str]:
    """What README.md says of this bundle."""
    labels = "\n".join(f"- {number}: {name}" for number, name in settings["labels"].items())
    ending, reader = ("png", "pillow") if settings["input"]["planar"] else ("nii.gz", "nibabel")
    return {
        **settings,
        "labels": labels,
        "ending": ending,
        "reader": reader,
        "precisions": ", ".join(settings["networks"]),
    }


def _made_image(bundle: Bundle) -> Volume:
    """Smooth noise on a grid that the bundle accepts: of volumes an oblique one, resampled, with axes in another order."""
    rules = bundle.rules
    low, high = rules.spacing_mm or (0.0, np.inf)
    spacing = np.clip(np.array(bundle.grid_spacing or [1.0] * 3) * [0.93, 1.1, 1.0], 1.01 * low, 0.99 * high)
    extent = 1.1 * np.array(rules.extent_mm[0] if rules.extent_mm else [40] * rules.axes)
    shape = [*np.ceil(extent / (1 if rules.planar else spacing)).astype(int), 1][:3]
    noise = np.random.default_rng(0).normal(size=(*shape, rules.channels))
    smooth = gaussian_filter(noise, [2 * (size > 1) for size in shape] + [0])
    scaled = 40 + 175 * (smooth - smooth.min()) / np.ptp(smooth)
    voxels = (scaled[..., 0] if rules.channels == 1 else scaled).astype(np.uint8 if rules.planar else np.float32)
    if rules.planar:
        return Volume(voxels, np.eye(4), planar=True)
    turn = np.array([[0.98, -(0.0396**0.5), 0], [0.0396**0.5, 0.98, 0], [0, 0, 1]])
    return Volume.from_ras(
        np.moveaxis(voxels, 2, 0), from_matvec((turn * spacing)[:, [2, 0, 1]] * [1, -1, 1], [9, 31, -40])
    )

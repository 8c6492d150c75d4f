"""A CT series and a bundle as large as real ones, made up: what `memory.py` measures with.

    python benchmarks/full_size.py FOLDER [--classes 105] [--slices 300] [--size 512] [--window 96] [--oblique]

writes FOLDER/series and FOLDER/bundle, for `monai-unet predict --bundle FOLDER/bundle --input FOLDER/series --output ...`. The
voxels of the CT measure 1 mm, the network works at 1.5 mm: 512 x 512 x 300 becomes 342 x 342 x 200. The answer means nothing
anatomical, but has the form of a real one: more than half is background, and every structure is a region rather than noise.
The statements are fitted to made-up measurements.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, generate_uid
from scipy.cluster.vq import kmeans2

from dicom_io.coding import display_rgb
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import CONFIDENCE
from monai_unet_app.calibration.fitted import begin_fitted
from monai_unet_app.confidence.border import BorderContact, BorderStatement
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.confidence.features import Features
from monai_unet_app.confidence.fitted_to import SCHEMA_VERSION, fitted_to
from monai_unet_app.confidence.quality import SOUND, QualityGate, Sample
from monai_unet_app.confidence.shift import ShiftDetector, image_features
from monai_unet_app.confidence.statements import (
    THRESHOLDS,
    Confidence,
    RiskStatement,
    SizeStatement,
    StructureMeasurement,
    measure_wholes,
)
from monai_unet_app.data.schemas import write_json
from monai_unet_app.shipped import shipped

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from phantoms import oblique_affine, write_mr_series

CT_SPACING_MM, WORKING_SPACING_MM = 1.0, 1.5
MR_ONLY = [
    "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "EchoTime", "RepetitionTime", "EchoTrainLength",
]  # fmt: skip
AIR, FAT, LUNG = -1000.0, -90.0, -820.0
INTERCEPT = -1024
PATTERN = "hippocampus_mri_unet3d"  # the shipped bundle whose inference.yaml is adapted
COVERAGE, RISK, BACKGROUND, MARGIN = 0.9, 0.1, 0.6, 8.0
FITTED_WINDOWS = 6
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """How large series and bundle are.

    Attributes:
        classes: Channels of the network's answer, background included.
        size: Columns and rows of the CT.
        slices: Of the CT, 1 mm apart.
        window: Edge of the sliding window, in voxels of 1.5 mm; a multiple of 8.
        filters: Of the levels of the DynUNet, from the finest.
        softness: By what its logits are divided; they are up to 2,000, and those of trained networks some tens. A power of two
            changes no label.
    """

    classes: int = 105
    size: int = 512
    slices: int = 300
    window: int = 96
    filters: tuple[int, ...] = (16, 32, 64, 128)
    softness: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the CT, (I, J, K)."""
        return self.size, self.size, self.slices


def main() -> int:
    """Makes both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("classes", "size", "slices", "window"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Scale, name))
    parser.add_argument("--oblique", action="store_true")
    options = parser.parse_args()
    scale = Scale(options.classes, options.size, options.slices, options.window)
    print(ct_series(options.folder / "series", scale, oblique=options.oblique))
    print(full_size_bundle(options.folder / "bundle", scale))
    return 0


def ct_series(folder: Path, scale: Scale = Scale(), *, oblique: bool = False) -> Path:
    """A CT series, one uncompressed file a slice, signed Hounsfield units with a RescaleIntercept.

    Args:
        folder: Must not exist. A file takes two bytes a pixel.
        scale: Its size.
        oblique: Turn the series by some degrees about all three axes.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True)
    affine_lps = _affine(scale, (CT_SPACING_MM,) * 3, oblique=oblique)
    header = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "BodyPartExamined": "ABDOMEN",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        **{f"{what}UID": generate_uid() for what in ("StudyInstance", "SeriesInstance", "FrameOfReference")},
    }
    for k, values in enumerate(_slices(scale)):
        write_mr_series(
            folder, (values - np.int16(INTERCEPT))[..., None], _moved(affine_lps, k), header=header,
            intercepts=[INTERCEPT], prefix=f"{k:04d}", edit=lambda dataset, _, k=k: _as_ct(dataset, k),
        )  # fmt: skip
    return folder


def ct_nifti(
    path: Path, scale: Scale = Scale(), spacing_mm: Sequence[float] = (CT_SPACING_MM,) * 3, *, oblique: bool = False
) -> Path:
    """The same CT as one uncompressed NIfTI file, int16; its voxels may have another size.

    Args:
        path: Ends in .nii; its folder is made.
        scale: Its size.
        spacing_mm: Size of a voxel along I, J, K.
        oblique: As in `ct_series`.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    affine_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ _affine(scale, spacing_mm, oblique=oblique)
    nibabel.save(nibabel.Nifti1Image(np.stack(list(_slices(scale)), axis=2), affine_ras), path)
    return path


def _affine(scale: Scale, spacing_mm: Sequence[float], *, oblique: bool) -> NDArray[np.float64]:
    degrees = (4.0, -6.0, 3.0) if oblique else (0.0, 0.0, 0.0)
    affine_lps = oblique_affine(spacing_mm, degrees=degrees)
    affine_lps[:3, 3] = -affine_lps[:3, :3] @ scale.shape / 2
    return affine_lps


def _slices(scale: Scale) -> Iterator[NDArray[np.int16]]:
    """Hounsfield units of each slice, shape (I, J)."""
    rng = np.random.default_rng(1)
    across, along = _centres(scale.size), _centres(scale.slices)
    for k in range(scale.slices):
        values = phantom_hu(across, across, along[k : k + 1])[..., 0]
        values += rng.standard_normal(values.shape, dtype=np.float32) * 12
        yield np.rint(values).astype(np.int16)


def _moved(affine_lps: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    moved = affine_lps.copy()
    moved[:3, 3] += k * affine_lps[:3, 2]
    return moved


def _as_ct(dataset: Dataset, k: int) -> None:
    for keyword in MR_ONLY:
        delattr(dataset, keyword)
    dataset.RescaleType, dataset.KVP, dataset.AcquisitionNumber, dataset.InstanceNumber = "HU", 120, 1, k + 1


def _centres(count: int) -> NDArray[np.float64]:
    return (np.arange(count) + 0.5) / count


def phantom_hu(x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> Floats:
    """Hounsfield units of a body at these places.

    Args:
        x: Shape (I,), 0 to 1 from the right of the image to its left.
        y: Shape (J,), 0 to 1 from front to back.
        z: Shape (K,), 0 to 1 from foot to head.

    Returns:
        Shape (I, J, K), without noise.
    """
    hu = np.full((len(x), len(y), len(z)), AIR, np.float32)
    rng = np.random.default_rng(0)
    _fill(hu, (x, y, z), (0.5, 0.52, 0.5), (0.44, 0.33, 9.0), FAT)
    _fill(hu, (x, y, z), (0.5, 0.53, 0.5), (0.41, 0.29, 9.0), 20.0)
    _fill(hu, (x, y, z), (0.31, 0.5, 0.86), (0.12, 0.2, 0.2), LUNG)
    _fill(hu, (x, y, z), (0.7, 0.5, 0.9), (0.1, 0.18, 0.24), LUNG)
    _fill(hu, (x, y, z), (0.51, 0.74, 0.5), (0.045, 0.05, 9.0), 380.0)
    for _ in range(45):
        centre = rng.uniform([0.18, 0.3, 0.02], [0.82, 0.72, 0.98])
        _fill(hu, (x, y, z), centre, rng.uniform(0.02, 0.11, 3), float(rng.uniform(-60, 240)))
    return hu


def _fill(
    hu: Floats, axes: Sequence[NDArray[np.float64]], centre: Sequence[float], radii: Sequence[float], value: float
) -> None:
    """Gives the inside of an ellipsoid a value."""
    away = [((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)]
    box = [np.flatnonzero(one < 1) for one in away]
    if all(len(one) for one in box):
        within = tuple(slice(one[0], one[-1] + 1) for one in box)
        i, j, k = np.ix_(*(one[part] for one, part in zip(away, within, strict=True)))
        hu[within][i + j + k < 1] = value


def full_size_bundle(folder: Path, scale: Scale = Scale()) -> Path:
    """A bundle for such series, with statements, calibrated, exclusive classes.

    Args:
        folder: Must not exist.
        scale: Classes, window and filters; sizes of the series that its answer is made for.

    Returns:
        `folder`.
    """
    source = shipped("bundles") / PATTERN
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("models", "docs", "confidence.json", "train.yaml"))
    names = _write_segments(folder, scale.classes - 1)
    _write_metadata(folder, names)
    config = yaml.safe_load((source / "configs/inference.yaml").read_text(encoding="utf-8"))
    config |= {
        "labels": ["background", *names],
        "input_rules": {
            "modality": ["CT"],
            "channels": 1,
            "spacing_mm": {"least": 0.3, "most": 5.0},
            "extent_mm": {"least": [20.0] * 3, "most": [2000.0] * 3},
        },
        "mirror_axes": [],
        "spacing_mm": [WORKING_SPACING_MM] * 3,
        "window": [scale.window] * 3,
        "networks": 1,
    }
    config["deterministic"] = [step for step in map(_for_ct, config["deterministic"]) if step]
    config["new_network"] |= _levels(scale.filters)
    config["inferer"] |= {"sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian"}
    text = yaml.safe_dump(config, sort_keys=False, width=120)
    (folder / "configs/inference.yaml").write_text(text, encoding="utf-8")
    begin_fitted(folder)
    usual = _write_weights(folder, scale)
    _write_statements(load_bundle(folder), usual)
    return folder


def _levels(filters: Sequence[int]) -> dict[str, Any]:
    return {
        "kernel_size": [3] * len(filters),
        "strides": [1] + [2] * (len(filters) - 1),
        "upsample_kernel_size": [2] * (len(filters) - 1),
        "filters": list(filters),
    }


def _for_ct(step: dict[str, Any]) -> dict[str, Any] | None:
    """A step of the MR preprocessing as a CT needs it; None for one that it does not need."""
    match step["_target_"]:
        case "ScaleIntensityRangePercentilesd":
            window = {"a_min": -200.0, "a_max": 300.0, "b_min": 0.0, "b_max": 1.0, "clip": True}
            return {"_target_": "ScaleIntensityRanged", "keys": "image", **window}
        case "NormalizeIntensityd":
            return None
    return step


def _write_segments(folder: Path, count: int) -> list[str]:
    """segments.json with so many structures, and a whole of the first two; their labels."""
    regions = [getattr(codes.cid4, name) for name in sorted(codes.cid4.dir())]
    regions = [code for code in regions if code.scheme_designator == "SCT" and code.meaning.isascii()][:count]
    category = {"CodeValue": "91723000", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"}
    coded = [
        {
            "SegmentedPropertyCategoryCodeSequence": category,
            "SegmentedPropertyTypeCodeSequence": {
                "CodeValue": code.value, "CodingSchemeDesignator": "SCT", "CodeMeaning": code.meaning[:64],
            },
        }
        for code in regions
    ]  # fmt: skip
    names = [f"{number} {code.meaning}"[:64] for number, code in enumerate(regions, start=1)]
    segments = [
        {"labelID": number, "SegmentLabel": name, "recommendedDisplayRGBValue": list(display_rgb(number)), **code}
        for number, (name, code) in enumerate(zip(names, coded, strict=True), start=1)
    ]
    document: dict[str, Any] = {"schema_version": "1.1", "segmentAttributes": [segments]}
    if count > 1:
        document["wholes"] = [{"label": "The first two", "parts": [1, 2], **coded[0]}]
    (folder / "configs/segments.json").write_text(json.dumps(document), encoding="utf-8")
    return names


def _write_metadata(folder: Path, names: Sequence[str]) -> None:
    path = folder / "configs/metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    for figures in ("eval_metrics", "targets"):
        metadata.pop(figures, None)
    metadata |= {
        "name": f"Made-up CT, {len(names)} structures",
        "task": "Regions without meaning in a made-up CT, to measure memory and time",
    }
    metadata["network_data_format"]["outputs"]["pred"] |= {
        "num_channels": len(names) + 1,
        "channel_def": dict(enumerate(["background", *names])),
    }
    path.write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def _write_weights(folder: Path, scale: Scale) -> NDArray[np.float64]:
    """Writes models/model.pt; gives the features of the phantom that a shift detector looks at, shape (F,).

    Random weights would answer with noise. Here each kernel mixes channels at random and smooths in space, and the last layer
    says which of C prototypes the channels of a voxel resemble most; these come from the phantom itself.
    """
    torch.manual_seed(0)
    bundle = load_bundle(folder)
    network = bundle.part("network_def").eval()
    _smooth(network)
    windows = [torch.from_numpy(one)[None, None] for one in _fitting_windows(scale)]
    inside, layer = [], []
    hooks = [
        network.output_block.register_forward_pre_hook(
            lambda _, given: inside.append(given[0][0].flatten(1).T.numpy())
        ),
        network.get_submodule(bundle.feature_layer).register_forward_hook(
            lambda _, __, out: layer.append(torch.cat([out.mean((0, 2, 3, 4)), out.std((0, 2, 3, 4))]).numpy())
        ),
    ]
    with torch.inference_mode():
        for window in windows:
            network(window)
    for hook in hooks:
        hook.remove()
    air = np.concatenate([(one < 0.05).flatten().numpy() for one in windows])
    weight, bias = _prototypes(np.concatenate(inside), air, scale.classes)
    head = network.output_block.conv.conv
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight / scale.softness)[:, :, None, None, None])
        head.bias.copy_(torch.from_numpy(bias / scale.softness))
    torch.save(network.state_dict(), folder / "models/model.pt")
    coarse = [_centres(max(1, n // 8)) for n in scale.shape]
    image = image_features(phantom_hu(*coarse), (8 * CT_SPACING_MM,) * 3)
    return np.concatenate([image, np.mean(layer, axis=0)])


def _smooth(network: torch.nn.Module) -> None:
    """Weights that mix channels at random and smooth in space."""
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            sizes = weight.shape[2:]
            channels = weight.shape[isinstance(module, torch.nn.Conv3d)]
            kernel = torch.einsum("i,j,k->ijk", line, line, line) if set(sizes) == {3} else torch.ones(tuple(sizes))
            mixed = torch.randn(weight.shape[:2]) / channels**0.5
            weight.data.copy_(mixed[..., None, None, None] * kernel)
        elif isinstance(module, torch.nn.InstanceNorm3d):
            module.bias.data.normal_(0, 0.7)


def _fitting_windows(scale: Scale) -> Iterator[Floats]:
    """Windows of the phantom as the network sees them, 0 to 1, on its grid."""
    rng = np.random.default_rng(2)
    step = WORKING_SPACING_MM / CT_SPACING_MM / np.array(scale.shape)
    for _ in range(FITTED_WINDOWS):
        first = rng.uniform(0, np.maximum(1 - scale.window * step, 1e-6))
        axes = [begin + np.arange(scale.window) * one for begin, one in zip(first, step, strict=True)]
        yield np.clip((phantom_hu(*axes) + 200) / 500, 0, 1)


def _prototypes(features: Floats, air: NDArray[np.bool_], classes: int) -> tuple[Floats, Floats]:
    """Weight (C, F) and bias (C,) of a layer that says which prototype the features (N, F) of a voxel resemble most."""
    rng = np.random.default_rng(3)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    some = rng.choice(len(features), min(len(features), 40_000), replace=False)
    standard, is_air = (features[some] - mean) / spread, air[some]
    background = standard[is_air].mean(axis=0)
    away = ((standard - background) ** 2).sum(axis=1)
    found, _ = kmeans2(standard[away > np.quantile(away, BACKGROUND)], classes - 1, minit="++", seed=4)
    centres = np.concatenate([background[None], found])
    logits = standard @ centres.T - (centres**2).sum(axis=1) / 2
    # Background wins in its part of the voxels.
    bias = np.zeros(classes)
    bias[0] = np.quantile(logits[:, 1:].max(axis=1) - logits[:, 0], BACKGROUND)
    two = np.partition(logits + bias, -2, axis=1)[:, -2:]
    sharp = MARGIN / np.median(two[:, 1] - two[:, 0])
    weight = sharp * centres / spread
    constant = sharp * (bias - (centres**2).sum(axis=1) / 2) - weight @ mean
    return weight.astype(np.float32), constant.astype(np.float32)


def _write_statements(bundle: Bundle, usual: NDArray[np.float64]) -> None:
    """configs/confidence.json by the project's own fits, of made-up measurements."""
    rng, subjects = np.random.default_rng(5), [f"s{n}" for n in range(subjects_needed(COVERAGE) + 4)]
    numbers = [segment.number for segment in bundle.segments]
    measured = [_measurement(rng, subject, number) for subject in subjects for number in numbers]
    samples = [
        _sample(rng, subject, number, kind) for subject in subjects for number in numbers for kind in (SOUND, "noise")
    ]
    table = usual + rng.normal(0, 0.5 * (1 + np.abs(usual)), (len(subjects), len(usual)))
    contacts = [BorderContact(one, number, float(rng.uniform(0, 0.3))) for one in subjects for number in numbers]
    stated = Confidence(
        sizes=SizeStatement.fit(measured, COVERAGE),
        wholes=SizeStatement.fit(measure_wholes(measured, bundle.wholes), COVERAGE) if bundle.wholes else None,
        risk=RiskStatement.fit(measured, RISK),
        gate=QualityGate.fit(samples, COVERAGE),
        shift=ShiftDetector.fit(table, subjects),
        border=BorderStatement.fit(contacts),
    )
    document = {
        "schema_version": SCHEMA_VERSION,
        "structures": list(bundle.structure_names),
        "settings": {"plain": {**stated.document(), "fitted_to": fitted_to(bundle, "plain")}},
    }
    write_json(document, bundle.root / CONFIDENCE, "confidence", indent=None)


def _measurement(rng: np.random.Generator, subject: str, number: int) -> StructureMeasurement:
    true = float(np.exp(rng.normal(3, 1)))
    losses = np.sort(rng.uniform(0, 0.3, len(THRESHOLDS)))
    return StructureMeasurement(subject, number, true * float(np.exp(rng.normal(0, 0.1))), true, 0.001, losses)


def _sample(rng: np.random.Generator, subject: str, number: int, kind: str) -> Sample:
    """Wide enough that most results of the network are usual."""
    centre = Features(0.6, 0.6, 0.5, 1.0, 1.0, 8.0, 0.6, 0.05)
    spread = Features(0.2, 0.15, 0.25, 0.6, 3.0, 4.0, 0.25, 0.1)
    sound = kind == SOUND
    far = 0.0 if sound else 12.0
    drawn = [
        value + width * (rng.normal() - far * sign)
        for value, width, sign in zip(
            vars(centre).values(), vars(spread).values(), (1, 1, -1, -1, 0, -1, 1, 0), strict=True
        )
    ]
    features = replace(centre, **dict(zip(vars(centre), drawn, strict=True)))
    return Sample(subject, kind, number, features, float(np.clip(rng.normal(0.88 if sound else 0.3, 0.05), 0, 1)))


if __name__ == "__main__":
    raise SystemExit(main())

"""Small labelled data sets, and small changes to bundles, for tests that train, calibrate or evaluate."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import nibabel
import numpy as np
import torch
import yaml
from conftest import EXAMPLES, REPOSITORY
from monai.bundle import ConfigParser
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.calibration.fitted import Parameters, change_fitted, yaml_block
from monai_unet_app.data.digest import image_fingerprint
from monai_unet_app.data.read import read_volume
from monai_unet_app.inference.engines import Engine
from monai_unet_app.inference.predict import Progress, predict_rows
from monai_unet_app.inference.windows import WindowSettings
from monai_unet_app.planning.decisions import PlanConfig, Speed
from monai_unet_app.planning.plan import BundlePlan, plan_configurations

# By the shipped plan: two train, one each selects, calibrates and tests.
FEW = ("hippocampus_003", "hippocampus_007", "hippocampus_132", "hippocampus_053", "hippocampus_035")


@dataclass(frozen=True)
class Form:
    """A form of calibration that a bundle offers, from `forms` of its `inference.yaml`.

    Attributes:
        name: Of the form.
        start: Its numbers before a fit: floats at 0, integers as they are to be.
        function: `function(logits, numbers)`: logits (C, *spatial) on the working grid in, logits of that shape out.
    """

    name: str
    start: Parameters
    function: Callable[[torch.Tensor, Parameters], torch.Tensor]

    @property
    def count(self) -> int:
        """How many numbers are fitted."""
        return sum(isinstance(value, float) for value in self.start.values())


def few_examples(folder: Path, ids: tuple[str, ...] = FEW) -> Path:
    """`folder` with images/ and labels/ of these example cases."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name in ids:
            shutil.copy2(EXAMPLES / kind / f"{name}.nii.gz", folder / kind)
    return folder


def plan_bundle(config: PlanConfig, speed: Speed) -> BundlePlan:
    """The plan for the one configuration of `config`."""
    return plan_configurations(config, [config.configuration], speed)[0]


def trained_on(root: Path, partitions: dict[str, str], subject: str | None = None) -> None:
    """A run.json that says so."""
    cases = {
        case: {
            "partition": part,
            "subject": subject or f"subject of {case}",
            "image": image_fingerprint(read_volume(EXAMPLES / "images" / f"{case}.nii.gz")),
        }
        for case, part in partitions.items()
    }
    (root / "models/run.json").write_text(json.dumps({"cases": cases}))


def eye_picture(number: int, size: tuple[int, int] = (371, 346)) -> tuple[np.ndarray, np.ndarray]:
    """A reddish disc with darker, curved vessels: RGB (height, width, 3) uint8 and the vessels (height, width) bool."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    inside = (x - width * 0.48) ** 2 + (y - height * 0.53) ** 2 < (0.43 * width) ** 2
    vessels = np.zeros((height, width), bool)
    for turn in range(3):
        centre = height * (0.3 + 0.13 * turn) + (18 + 5 * turn) * np.sin(x / (61.0 + 9 * number) + turn)
        vessels |= np.abs(y - centre) < 2 + turn
    vessels &= inside
    noise = np.random.default_rng(number).normal(0, 6, (height, width, 3))
    colour = (
        inside[..., None] * np.array([170.0, 90.0, 50.0]) - vessels[..., None] * np.array([30.0, 45.0, 20.0]) + noise
    )
    return np.clip(colour, 0, 255).astype(np.uint8), vessels


def drawn_eyes(folder: Path, count: int = 4, size: tuple[int, int] = (371, 346)) -> Path:
    """`folder` with pictures and their labels, named as CHASE_DB1 names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        picture, vessels = eye_picture(number, size)
        Image.fromarray(picture).save(folder / f"eye_{number}.png")
        Image.fromarray(vessels).save(folder / f"eye_{number}_1stHO.png")
    return folder


def calibration_of(bundle: Path) -> dict[str, float | int]:
    """The plain numbers of the calibration in a bundle's fitted.json."""
    return json.loads((bundle / "models/fitted.json").read_text())["calibration"]["plain"]


def set_calibration(bundle: Path, *values: float) -> Path:
    """Gives the fitted numbers of a bundle's calibration these values, in turn."""
    turn = cycle(values)
    parameters = {
        name: next(turn) if isinstance(value, float) else value for name, value in calibration_of(bundle).items()
    }
    change_fitted(bundle, "calibration", plain=parameters, fitted_to=None)
    return bundle


def documented(mark: str) -> str:
    """The lines of YAML in docs/bundles.md that hold this text."""
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/bundles.md").read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if mark in block]
    return str(lines)


def with_thresholds(root: Path) -> Bundle:
    """A planned bundle whose `decide` reads thresholds from fitted.json, as docs/bundles.md says."""
    config = root / "configs/inference.yaml"
    text, lines = config.read_text(), documented("thresholds:")
    config.write_text(re.sub(r"(?m)^decide:\n(?:[- ] .*\n)+", lambda old: lines, text))
    return load_bundle(root)


def with_more_steps(root: Path, *, exclusive: bool) -> Path:
    """A planned bundle that offers opening and closing, too, as docs/bundles.md says."""
    config = root / "configs/inference.yaml"
    helpers = documented("opened:").partition("opened:")
    lines = documented("masked_fill_" if exclusive else "torch.cat([@opened").partition("opened: ")[0]
    text = config.read_text().replace("steps:\n", lines, 1)
    config.write_text(text + helpers[1] + helpers[2])
    return root


def offered(channels: int, *, exclusive: bool, dims: int) -> dict[str, Form]:
    """The forms that a planned bundle of this kind offers."""
    config = {
        "labels": list("abcdef"[:channels]),
        "outputs": "exclusive" if exclusive else "overlapping",
        "input_rules": {"planar": dims == 2},
    }
    lines = yaml_block("calibration", cast("BundleFiles", SimpleNamespace(inference_document=config)))
    found = ConfigParser(yaml.safe_load(lines)).get_parsed_content("forms")
    return {name: Form(name, form["numbers"], form["function"]) for name, form in found.items()}


def form_of(name: str, channels: int = 3, *, exclusive: bool = True, dims: int = 3) -> Form:
    return offered(channels, exclusive=exclusive, dims=dims)[name]


def tilted_volumes(folder: Path, count: int = 5, values: tuple[int, int] = (2, 5)) -> Path:
    """`folder` as nnU-Net wants its raw data, without dataset.json: thick, oblique, lopsided volumes with two balls each.

    The balls have these label values, and 62 and 24 voxels of 1.1 x 0.9 x 3.6 mm at least.
    """
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        shape = (30 + number, 26, 14)
        turn = Rotation.from_euler("xyz", [8, -5, 3 + number], degrees=True).as_matrix()
        affine = np.eye(4)
        affine[:3] = np.column_stack([turn @ np.diag([1.1, 0.9, 3.6]), [-10, 20, 5]])
        place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        label = np.zeros(shape, np.uint8)
        label[np.linalg.norm((place - (11, 12, 6)) / (6, 5, 3), axis=-1) < 1] = values[0]
        label[np.linalg.norm((place - (20, 16, 9)) / (4, 5, 3), axis=-1) < 1] = values[1]
        noise = np.random.default_rng(number).normal(100, 8, shape)
        image = noise + 60 * (label == values[0]) + 110 * (label == values[1])
        nibabel.save(
            nibabel.Nifti1Image(image.astype(np.float32), affine), folder / f"imagesTr/case{number}_0000.nii.gz"
        )
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"labelsTr/case{number}.nii.gz")
    return folder


def numbered_discs(folder: Path, count: int = 5, discs: int = 40) -> Path:
    """`folder` with images/ of grey RGBA pictures and labels/ that number the discs in them, some of which overlap."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    y, x = np.mgrid[:70, :90]
    for number in range(count):
        random = np.random.default_rng(number)
        label = np.zeros((70, 90), np.uint16)
        for disc in range(1, discs + 1):
            label[(x - random.integers(5, 85)) ** 2 + (y - random.integers(5, 65)) ** 2 < 16] = disc
        grey = np.clip(random.normal(60, 9, label.shape) + 80 * (label > 0), 0, 255).astype(np.uint8)
        picture = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
        Image.fromarray(picture).save(folder / f"images/p{number}.png")
        Image.fromarray(label).save(folder / f"labels/p{number}.png")
    return folder


def predict_logits(
    image: torch.Tensor, engine: Engine, settings: WindowSettings, progress: Progress | None = None
) -> torch.Tensor:
    """All rows of `predict_rows` together: shape (C_out, *spatial), for each voxel of the image."""
    return torch.cat([rows for _, rows in predict_rows(image, engine, settings, progress)], 1)

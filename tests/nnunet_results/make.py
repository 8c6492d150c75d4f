"""Small real nnU-Net v2 results and nnU-Net's own predictions of them: how the folders beside this file were made.

    pip install --no-deps --target build/peers -r benchmarks/nnunet.txt
    python tests/nnunet_results/make.py [NAME ...] [--predict-only]

Every NAME (default: all) becomes build/nnunet_fixtures/NAME, by nnU-Net's own fingerprint, planner, preprocessing, trainer and
predictor on the CPU, one thread, from phantoms with fixed seeds. Of the plans only the size of the network, the patch and the
batch are edited. nnU-Net's processes are threads of this one (`threads_for_processes`): the same functions, less waiting. A
NAME that is finished is left as it is; remove its folder, and that in _work, to make it again. Beside this file the JSON is
written in one line, and nnU-Net's label files are in expected.npz, as VARIANT/CASE. Some minutes each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parents[2] / "build/nnunet_fixtures"
HERE.mkdir(parents=True, exist_ok=True)
WORK = HERE / "_work"
sys.path.append(str(HERE.parent / "peers"))
os.environ |= {f"nnUNet_{name}": str(WORK / name) for name in ("raw", "preprocessed", "results")}
os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "MPLBACKEND": "Agg"}
os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "BLOSC")}

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from scipy import ndimage  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
torch.set_num_threads(1)


@dataclass(frozen=True)
class Volume:
    """One image: shape and spacing in x, y, z; how its axes lie: angles (degrees), flips, order of the axes."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...] = (1.0, 1.0)
    angles: tuple[float, float, float] = (0, 0, 0)
    flips: tuple[int, int, int] = (1, 1, 1)
    order: tuple[int, int, int] = (0, 1, 2)
    body: tuple[float, ...] | None = None  # half axes of the body, in fractions of the shape; outside is 0
    shift: tuple[float, float, float] = (0, 0, 0)  # of the body, in fractions

    @property
    def direction(self) -> np.ndarray:
        turned = Rotation.from_euler("xyz", self.angles, degrees=True).as_matrix()
        return turned[:, list(self.order)] @ np.diag(self.flips)


@dataclass(frozen=True)
class Recipe:
    name: str
    number: int
    configuration: str
    channels: tuple[str, ...]
    labels: dict
    patch: tuple[int, ...]
    features: tuple[int, ...]
    folds: tuple
    tests: tuple[Volume, ...]
    train: tuple[Volume, ...]
    dtype: str = "int16"
    regions_order: tuple[int, ...] | None = None
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"
    epochs: int = 8
    iterations: int = 80
    ending: str = ".nii.gz"
    gain: float = 1.0
    validation: bool = False
    keep_raw: bool = False
    variants: dict = field(default_factory=dict)  # name -> (mirroring, folds)

    @property
    def dataset(self) -> str:
        return f"Dataset{self.number}_{self.name}"

    @property
    def said_variants(self) -> dict:
        return self.variants or {"mirrored": (True, self.folds), "plain": (False, self.folds)}

    @property
    def file_channels(self) -> int:
        return 1 if self.ending == ".png" else len(self.channels)


def around(base: Volume, count: int, seed: int, spread: float = 0.12, shapes: int = 4) -> tuple[Volume, ...]:
    """Volumes like `base` with other shapes, spacings, directions; every third keeps the spacing."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        shape = tuple(int(n + rng.integers(-min(shapes, n // 6), min(shapes, n // 6) + 1)) for n in base.shape)
        factor = np.ones(3) if i % 3 == 0 else rng.uniform(1 - spread, 1 + spread, 3)
        spacing = tuple(round(float(s * f), 3) for s, f in zip(base.spacing, factor, strict=True))
        flips = tuple(int(f) for f in rng.choice([-1, 1], 3))
        angles = (0, 0, 0) if i % 2 else tuple(round(float(a), 2) for a in rng.uniform(-25, 25, 3))
        order = tuple(int(o) for o in rng.permutation(3)) if i % 4 == 3 else (0, 1, 2)
        shift = tuple(float(s) for s in rng.uniform(-0.08, 0.08, 3)) if base.body else (0, 0, 0)
        found.append(Volume(shape, spacing, angles, flips, order, base.body, shift))
    return tuple(found)


TWO = {"background": 0, "organ": 1, "lesion": 2}
RECIPES = (
    Recipe(
        "plain3d", 901, "3d_fullres", ("MR",), TWO, (12, 16, 16), (6, 8, 12), (0, 1, 2, 3, 4),
        tests=(
            Volume((29, 37, 19), (1.0, 1.1, 1.2), (12, -7, 20), (-1, 1, 1)),
            Volume((33, 14, 23), (0.9, 1.3, 1.05), (0, 0, 0), (1, -1, -1)),
            Volume((21, 13, 25), (1.15, 1.0, 0.97), (-18, 5, 9), (1, 1, -1), (2, 0, 1)),  # y: 13 / 1.1 = 12 < 16
        ),
        train=around(Volume((32, 34, 24), (1.0, 1.1, 1.2)), 10, 1), validation=True, keep_raw=True,
        variants={
            "mirrored_fold0": (True, (0,)), "plain_fold0": (False, (0,)),
            "mirrored_folds": (True, (0, 1, 2, 3, 4)), "plain_folds": (False, (0, 1, 2, 3, 4)),
        },
    ),
    Recipe(
        "plain2d", 902, "2d", ("MR",), TWO, (16, 24), (8, 12, 16, 20), (0,),
        tests=(
            Volume((37, 9, 29), (1.1, 2.0, 0.8), (9, 14, -11), (1, -1, 1)),  # in the plane resampled, not slice by slice
            Volume((45, 7, 18), (0.75, 2.6, 1.0), (0, 0, 0), (-1, -1, 1)),  # ratio 3.5: slice by slice
            Volume((19, 5, 33), (0.95, 2.1, 1.05), (-6, 2, 13), (1, 1, -1)),  # x: 20 < 24
        ),
        train=around(Volume((36, 11, 31), (0.9, 2.0, 1.0)), 10, 2),
    ),
    Recipe(
        "aniso3d", 903, "3d_fullres", ("MR",), TWO, (8, 20, 24), (6, 8, 12), ("all",),
        tests=(
            Volume((6, 43, 47), (3.9, 0.75, 0.87), (11, -16, 6), (1, 1, -1)),  # fewer slices than the patch
            Volume((25, 24, 22), (1.35, 1.3, 1.25), (0, 0, 0), (-1, -1, 1)),  # isotropic, the plan is not
            Volume((31, 29, 9), (0.9, 1.0, 3.8), (-8, 3, 21), (1, -1, -1)),  # thick along another axis than the plan
        ),
        train=around(Volume((12, 42, 40), (3.6, 0.8, 0.8)), 10, 3),
    ),
    Recipe(
        "channels3d", 904, "3d_fullres", ("CT", "MR"), TWO, (12, 16, 16), (6, 8, 12), (0,),
        tests=(
            Volume((47, 43, 37), (1.25, 1.0, 1.1), (7, 13, -19), (-1, 1, 1), body=(0.29, 0.31, 0.34), shift=(0.1, -0.06, 0.03)),
            Volume((41, 36, 40), (1.3, 1.05, 1.0), (0, 0, 0), (1, 1, -1), body=(0.3, 0.19, 0.3), shift=(0.22, 0.05, -0.08)),
        ),
        train=around(Volume((44, 42, 38), (1.3, 1.0, 1.1), body=(0.3, 0.3, 0.3)), 10, 4),
    ),
    Recipe(
        "regions3d", 905, "3d_fullres", ("noNorm",), {"background": 0, "whole": [1, 2], "core": 2},
        (12, 16, 16), (6, 8, 12), (0,),
        tests=(
            Volume((31, 35, 21), (1.0, 1.05, 1.3), (-22, 4, 8), (1, -1, 1)),
            Volume((27, 13, 22), (1.1, 0.95, 1.2), (0, 0, 0), (-1, 1, -1), (1, 2, 0)),
        ),
        train=around(Volume((31, 33, 23), (1.0, 1.0, 1.2)), 10, 5), dtype="float32", gain=1 / 400, regions_order=(1, 2),
    ),
    Recipe(
        "resenc3d", 906, "3d_fullres", ("rescale_to_0_1",), TWO, (12, 16, 16), (4, 6, 8), (0, 1),
        tests=(
            Volume((30, 27, 23), (1.05, 1.2, 1.0), (5, -12, 17), (-1, -1, 1)),
            Volume((26, 31, 11), (1.0, 1.25, 0.9), (0, 0, 0), (1, 1, -1)),
            Volume((20, 18, 22), (1.03, 1.24, 1.08), (3, 21, -9), (1, -1, 1)),  # other spacing, same shape: not resampled
        ),
        train=around(Volume((31, 29, 27), (1.0, 1.25, 1.1)), 10, 6),
        planner="nnUNetPlannerResEncM", plans="nnUNetResEncUNetMPlans",
    ),
    Recipe(
        "picture2d", 907, "2d", ("rgb_to_0_1",) * 3, {"background": 0, "leaf": 1}, (32, 40), (8, 12, 16, 20), (0,),
        tests=(Volume((83, 61)), Volume((71, 29))),
        train=tuple(Volume((70 + 3 * i % 17, 52 + 5 * i % 19)) for i in range(10)), ending=".png",
    ),
)  # fmt: skip


def smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...]) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma, mode="nearest")
    return noise / max(noise.std(), 1e-6)


def ellipsoid(grid: list[np.ndarray], centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Values below 1 are within."""
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True))


def phantom(recipe: Recipe, volume: Volume, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Channels and labels, in x, y, z (pictures: x, y, the last axis of channel 0 its colours)."""
    rng, dims = np.random.default_rng(seed), len(volume.shape)
    size = np.array([n * s for n, s in zip(volume.shape, volume.spacing, strict=True)])
    axes = [(np.arange(n) + 0.5) * s for n, s in zip(volume.shape, volume.spacing, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    middle, half = size / 2, size / 2
    body = np.ones(volume.shape, bool)
    if volume.body:
        middle, half = size * (0.5 + np.array(volume.shift)), size * np.array(volume.body)
        body = ellipsoid(grid, middle, half) < 1
    centre = middle + half * rng.uniform(-0.15, 0.15, dims)
    radii = half * rng.uniform(0.5, 0.65, dims)
    organ = (ellipsoid(grid, centre, radii) < 1) & body
    lesion = (
        ellipsoid(grid, centre + radii * rng.uniform(-0.3, 0.3, dims), radii * rng.uniform(0.42, 0.52, dims)) < 1
    ) & body
    sigma = tuple(4 / s for s in volume.spacing)
    if recipe.ending == ".png":
        label = organ.astype(np.uint8)
        colours = []
        for there, gone in ((70, 150), (170, 120), (60, 110)):
            plane = (
                np.where(organ, there, gone) + 18 * smooth(rng, volume.shape, (3, 3)) + rng.normal(0, 8, volume.shape)
            )
            colours.append(np.clip(np.rint(plane), 0, 255).astype(np.uint8))
        return [np.stack(colours, axis=-1)], label
    label = organ.astype(np.uint8)
    label[lesion] = 2
    levels = {"CT": (-120, 130, 320), "MR": (200, 480, 760)}
    images = []
    for name in recipe.channels:
        low, middle_, high = levels.get(name, levels["MR"])
        image = (
            np.choose(label, (low, middle_, high))
            + 35 * smooth(rng, volume.shape, sigma)
            + rng.normal(0, 18, volume.shape)
        )
        if volume.body:
            hole = ellipsoid(grid, centre - 0.8 * radii, radii * 0.2) < 1  # black within the body: filled by nnU-Net
            image = np.where(body & ~hole, np.where(np.rint(image) == 0, 1, image), 0)
        image = image * recipe.gain
        images.append(np.rint(image).astype(np.int16) if recipe.dtype == "int16" else image.astype(np.float32))
    return images, label


def write(recipe: Recipe, volume: Volume, seed: int, case: str, images: Path, labels: Path | None) -> None:
    arrays, label = phantom(recipe, volume, seed)
    images.mkdir(parents=True, exist_ok=True)
    if recipe.ending == ".png":
        from skimage import io

        io.imsave(images / f"{case}_0000.png", arrays[0].transpose(1, 0, 2), check_contrast=False)
        if labels:
            labels.mkdir(parents=True, exist_ok=True)
            io.imsave(labels / f"{case}.png", label.T, check_contrast=False)
        return
    origin = tuple(round(float(v), 3) for v in np.random.default_rng(seed + 5000).uniform(-90, 90, 3))

    def save(array: np.ndarray, file: Path) -> None:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing(volume.spacing)
        image.SetOrigin(origin)
        image.SetDirection(volume.direction.ravel().tolist())
        sitk.WriteImage(image, str(file), True)

    for channel, array in enumerate(arrays):
        save(array, images / f"{case}_{channel:04d}{recipe.ending}")
    if labels:
        labels.mkdir(parents=True, exist_ok=True)
        save(label, labels / f"{case}{recipe.ending}")


def raw_data(recipe: Recipe) -> None:
    raw = WORK / "raw" / recipe.dataset
    shutil.rmtree(raw, ignore_errors=True)
    for i, volume in enumerate(recipe.train):
        write(recipe, volume, 1000 * recipe.number + i, f"case{i:02d}", raw / "imagesTr", raw / "labelsTr")
    told = {
        "channel_names": {str(i): name for i, name in enumerate(recipe.channels)},
        "labels": recipe.labels, "numTraining": len(recipe.train), "file_ending": recipe.ending,
    }  # fmt: skip
    if recipe.regions_order:
        told["regions_class_order"] = list(recipe.regions_order)
    (raw / "dataset.json").write_text(json.dumps(told, indent=4))


@contextlib.contextmanager
def threads_for_processes():
    """nnU-Net's pools of spawned processes are pools of threads here."""
    import multiprocessing
    from multiprocessing.pool import ThreadPool
    from types import SimpleNamespace
    from unittest import mock

    with mock.patch.object(multiprocessing, "get_context", return_value=SimpleNamespace(Pool=ThreadPool)):
        yield


def prepare(recipe: Recipe) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess_dataset,
    )  # fmt: skip

    shutil.rmtree(WORK / "preprocessed" / recipe.dataset, ignore_errors=True)
    os.environ |= {"nnUNet_n_proc_DA": "1"}  # the planner takes it as a number of threads
    extract_fingerprints(
        [recipe.number], num_processes=1, check_dataset_integrity=True, verbose=False, show_progress_bar=False
    )
    plans_name = plan_experiments([recipe.number], recipe.planner)
    assert plans_name == recipe.plans, plans_name
    file = WORK / "preprocessed" / recipe.dataset / f"{recipe.plans}.json"
    shutil.copy(file, file.with_name("as_planned.json.txt"))
    plans = json.loads(file.read_text())
    shrink(plans["configurations"][recipe.configuration], recipe)
    file.write_text(json.dumps(plans, indent=4))
    preprocess_dataset(recipe.number, recipe.plans, (recipe.configuration,), (1,), False, False)


def shrink(configuration: dict, recipe: Recipe) -> None:
    stages, kwargs = len(recipe.features), configuration["architecture"]["arch_kwargs"]
    assert kwargs["n_stages"] >= stages, kwargs
    kwargs["n_stages"], kwargs["features_per_stage"] = stages, list(recipe.features)
    for name in ("kernel_sizes", "strides", "n_conv_per_stage", "n_blocks_per_stage"):
        if name in kwargs:
            kwargs[name] = kwargs[name][:stages]
    kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: stages - 1]
    assert not any(np.array(recipe.patch) % np.prod(kwargs["strides"], axis=0)), (recipe.patch, kwargs["strides"])
    configuration["patch_size"], configuration["batch_size"] = list(recipe.patch), 2


def trained_folder(recipe: Recipe) -> Path:
    return WORK / "results" / recipe.dataset / f"nnUNetTrainer__{recipe.plans}__{recipe.configuration}"


def train(recipe: Recipe) -> None:
    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ |= {"nnUNet_n_proc_DA": "0"}
    shutil.rmtree(trained_folder(recipe), ignore_errors=True)
    for fold in recipe.folds:
        seed = recipe.number + (fold if fold != "all" else 77)
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        trainer = get_trainer_from_args(
            recipe.dataset, recipe.configuration, fold, "nnUNetTrainer", recipe.plans, False, torch.device("cpu")
        )
        trainer.num_epochs, trainer.num_iterations_per_epoch = recipe.epochs, recipe.iterations
        trainer.num_val_iterations_per_epoch = 3
        trainer.run_training()
        if recipe.validation:
            trainer.perform_actual_validation()


def collect(recipe: Recipe) -> None:
    source, target = trained_folder(recipe), HERE / recipe.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in ("dataset.json", "plans.json", "dataset_fingerprint.json"):
        shutil.copy(source / name, target / name)
    for fold in recipe.folds:
        (target / f"fold_{fold}").mkdir()
        shutil.copy(source / f"fold_{fold}/checkpoint_final.pth", target / f"fold_{fold}/checkpoint_final.pth")
        if recipe.validation:
            shutil.copytree(source / f"fold_{fold}/validation", target / f"fold_{fold}/validation")
    splits = WORK / "preprocessed" / recipe.dataset / "splits_final.json"
    if recipe.keep_raw:
        shutil.copytree(WORK / "raw" / recipe.dataset, target / "raw")
        shutil.copy(splits, target / "raw/splits_final.json")


def predict(recipe: Recipe) -> None:
    from acvl_utils.cropping_and_padding.padding import pad_nd_image
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder, seconds = HERE / recipe.name, {}
    for i, volume in enumerate(recipe.tests):
        if not list((folder / "images").glob(f"test{i}_*")):
            write(recipe, volume, 1000 * recipe.number + 500 + i, f"test{i}", folder / "images", None)
    shutil.rmtree(folder / "expected", ignore_errors=True)
    for variant, (mirroring, folds) in recipe.said_variants.items():
        predictor = nnUNetPredictor(
            tile_step_size=0.5, use_gaussian=True, use_mirroring=mirroring, perform_everything_on_device=False,
            device=torch.device("cpu"), allow_tqdm=False,
        )  # fmt: skip
        predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
        out = folder / "expected" / variant
        out.mkdir(parents=True)
        plans, configuration, told = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        total, files = 0.0, {}
        for i in range(len(recipe.tests)):
            case = f"test{i}"
            files[case] = [
                str(folder / "images" / f"{case}_{c:04d}{recipe.ending}") for c in range(recipe.file_channels)
            ]
            torch.set_num_threads(1)
            start = time.perf_counter()
            data, _, properties = configuration.preprocessor_class(verbose=False).run_case(
                files[case], None, plans, configuration, told
            )
            tensor = torch.from_numpy(data)
            logits = predictor.predict_logits_from_preprocessed_data(tensor).cpu()
            kept = logits.clone()
            export_prediction_from_logits(logits, properties, configuration, plans, told, str(out / case), False)
            total += time.perf_counter() - start
            assert (kept.dtype, tensor.dtype) == (torch.half, torch.float32)
            padded, _ = pad_nd_image(tensor, configuration.patch_size, "constant", {"value": 0}, True, None)
            predictor.network.load_state_dict(predictor.list_of_parameters[0])
            predictor.network.eval()
            window = predictor._internal_get_sliding_window_slicers(padded.shape[1:])[0]
            with torch.inference_mode():
                first = predictor.network(padded[window][None].contiguous())[0]
            np.savez_compressed(
                out / f"{case}.npz", logits=kept.numpy(), preprocessed=data, window_logits=first.numpy()
            )
        seconds[variant] = round(total, 3)
        # the same label files by nnU-Net's own way from files to files
        again = WORK / "again" / recipe.name / variant
        shutil.rmtree(again, ignore_errors=True)
        again.mkdir(parents=True)
        with contextlib.redirect_stdout(None):
            predictor.predict_from_files_sequential(list(files.values()), [str(again / case) for case in files])
        for case in files:
            one, other = (read_labels(one / f"{case}{recipe.ending}") for one in (out, again))
            assert np.array_equal(one, other), (recipe.name, variant, case)
    (folder / "expected/seconds.json").write_text(json.dumps(seconds, indent=1))
    about = {
        variant: {"mirroring": mirroring, "folds": list(folds)}
        for variant, (mirroring, folds) in recipe.said_variants.items()
    }
    (folder / "expected/variants.json").write_text(json.dumps(about, indent=1))


def read_labels(file: Path) -> np.ndarray:
    if file.suffix == ".png":
        from skimage import io

        return io.imread(file)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--predict-only", action="store_true")
    options = parser.parse_args()
    chosen = [recipe for recipe in RECIPES if not options.names or recipe.name in options.names]
    for recipe in chosen:
        done = (HERE / recipe.name / "expected/seconds.json").exists()
        if done and not options.predict_only:
            continue
        start = time.monotonic()
        with threads_for_processes():
            if not options.predict_only:
                raw_data(recipe)
                prepare(recipe)
                print(f"### {recipe.name} prepared after {time.monotonic() - start:.0f} s", flush=True)
                train(recipe)
                collect(recipe)
                print(f"### {recipe.name} trained after {time.monotonic() - start:.0f} s", flush=True)
            predict(recipe)
        print(f"### {recipe.name} finished after {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""How long does one study take, warm and end to end: DICOM in, proven SEG and SR out? A photograph? A slice of 512 x 512?

    python benchmarks/latency.py [--rounds 15] [--engine torch openvino openvino:bfloat16] [--profile]

- study: an example of a hippocampus as a DICOM series, to SEG and SR, by the shipped 3D bundle;
- photograph: a made-up photograph of the eye of 999 x 960 pixels, to mask and overlay, by the shipped bundle of the retina;
- slice: a made-up picture of 512 x 512 pixels, the same way, by the light network that `plan --network light_unet` writes for
  such pictures, its weights left to chance; large slice: the same by the network of the retina, told to take smaller pictures.

Each is read, checked, segmented, assessed, written and proven, as in `monai-unet predict`, in one process after two runs that
do not count. Engines take turns. "labels" are the median seconds until the labels are there; the rest is writing. --profile
prints where the time of the last engine goes. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from claims import judged
from PIL import Image
from sliding_window import instructions

from dicom_io.dicomize import dicomize
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.config import OutputConfig, PredictConfig, ResultSettings
from monai_unet_app.data.read import read_volume
from monai_unet_app.export import export_bundle
from monai_unet_app.pipeline import segment_case
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.family import NetworkChoice
from monai_unet_app.planning.write import write_plan
from monai_unet_app.results import write_results
from monai_unet_app.shipped import shipped

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

VOLUMES, EYES = "hippocampus_mri_unet3d", "retina_vessel_unet2d"
MOST_S = {"study": (50, 1.0), "photograph": (95, 1.0), "slice": (95, 0.2)}
"""What is measured -> percentile and the seconds that it may take with OpenVINO."""


def main() -> int:
    """Measures, and judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    low = ["openvino:bfloat16"] * bool({"avx512_bf16", "amx_bf16"} & set(instructions()))
    parser.add_argument("--engine", nargs="+", default=["torch", "openvino", *low])
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {what: measure(run, options) for what, run in made(Path(folder)).items()}
    print(f"  {'seconds':24}{'labels':>8}{'median':>8}{'95 %':>8}")
    reached = []
    for what, by_engine in found.items():
        for engine, (labels, seconds) in by_engine.items():
            medians = f"{np.median(labels):8.3f}{np.median(seconds):8.3f}"
            print(f"  {f'{what}, {engine}':24}{medians}{np.percentile(seconds, 95):8.3f}")
    for what, (percentile, most) in MOST_S.items():
        if measured := found[what].get("openvino"):
            value = float(np.percentile(measured[1], percentile))
            reached.append(judged(f"{what}, s, {percentile} %", value, most, at_most=True))
    return int(not all(reached))


def made(folder: Path) -> dict[str, Callable[[str], float]]:
    """What is measured: name -> one run with an engine."""
    from small_data import drawn_eyes

    bundles = {name: exported(name, folder / name) for name in (VOLUMES, EYES)}
    example = next((shipped("examples") / "msd_hippocampus/images").glob("*.nii.gz"))
    series = dicomize(read_volume(example), folder / "series", case_id="one").series_folder
    eye = Image.open(drawn_eyes(folder / "eyes", 1) / "eye_1.png")
    for name, size in (("photograph", (999, 960)), ("slice", (512, 512))):
        eye.resize(size).save(folder / f"{name}.png")
    small = exported(EYES, folder / "small", ("least: [700, 700]", "least: [300, 300]"))
    light = light_bundle(drawn_eyes(folder / "slices", size=(512, 512)), folder / "light")
    ways = {
        "study": (series, bundles[VOLUMES], ("seg", "sr")),
        "photograph": (folder / "photograph.png", bundles[EYES], ("png",)),
        "slice": (folder / "slice.png", light, ("png",)),
        "large slice": (folder / "slice.png", small, ("png",)),
    }
    return {name: lambda engine, way=way: run(*way, engine, folder / "out") for name, way in ways.items()}


def exported(name: str, folder: Path, edit: tuple[str, str] = ("", "")) -> Bundle:
    """A copy of a shipped bundle with an export, a text in its inference.yaml replaced by another."""
    shutil.copytree(shipped("bundles") / name, folder)
    config = folder / "configs/inference.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(*edit), encoding="utf-8")
    export_bundle(load_bundle(folder), "openvino")
    return load_bundle(folder)


def light_bundle(data: Path, folder: Path) -> Bundle:
    """What is planned for these pictures and the light network, untrained, with an export."""
    from small_data import plan_bundle

    config = PlanConfig(data, label_suffix="_1stHO", network=NetworkChoice("light_unet"))
    write_plan(plan_bundle(config, lambda network, channels, outputs: 1e-8 * network.voxels), folder)
    torch.save(load_bundle(folder).part("network_def").state_dict(), folder / "models/model.pt")
    export_bundle(load_bundle(folder), "openvino")
    return load_bundle(folder)


def run(source: Path, bundle: Bundle, formats: Sequence[str], engine: str, folder: Path) -> float:
    """Once, from the file to the proven result. Gives the seconds until the labels are there."""
    began = time.perf_counter()
    name, _, precision = engine.partition(":")
    settings = ResultSettings(engine=name, precision=precision or ResultSettings.precision)
    case = segment_case(source, bundle, PredictConfig(settings))
    labels = time.perf_counter() - began
    write_results(case, "case", OutputConfig(tuple(formats), deliver_rejected=True), folder)
    return labels


def measure(once: Callable[[str], float], options: argparse.Namespace) -> dict[str, tuple[list[float], list[float]]]:
    """Engine -> seconds until the labels are there, and in all, of each round."""
    seconds: dict[str, tuple[list[float], list[float]]] = {engine: ([], []) for engine in options.engine}
    for number in range(options.rounds + 2):
        for engine, (labels, all_in_all) in seconds.items():
            began = time.perf_counter()
            until_labels = once(engine)
            if number > 1:
                labels.append(until_labels)
                all_in_all.append(time.perf_counter() - began)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(once, options.engine[-1])
        pstats.Stats(profile).sort_stats("cumtime").print_stats(60)
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())

"""The networks of the shipped bundles on a GPU beside the CPU: time, memory, and how far the answers are apart.

    python benchmarks/gpu.py [--device cuda] [--rounds 20]      make gpu-test

Writes docs/gpu.md with the name of the device and the date. Without such a device it is left out; a page that is not there
yet says that nothing was measured. Exit code 1 if labels of an example differ from those of the CPU in float32 by more than one
voxel in 1,000.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from claims import judged
from measuring import REPOSITORY

from monai_unet_app.bench import paces
from monai_unet_app.bundle import load_bundle
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.pipeline import segment_case
from monai_unet_app.shipped import shipped

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

PAGE = REPOSITORY / "docs/gpu.md"
PRECISIONS = ("float32", "bfloat16", "float16")
MOST_CHANGED = 1e-3
HEAD = """# On a GPU

Written by `make gpu-test`, which runs the networks of the shipped bundles on a GPU beside the CPU.
"""


def main() -> int:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("left out: torch finds no CUDA device here")
        if not options.page.exists():
            options.page.write_text(f"{HEAD}\nNot measured: no GPU was at hand.\n", encoding="utf-8")
        return 0
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    lines = [HEAD, f"{name}, {datetime.datetime.now(tz=datetime.UTC).date()}, torch {torch.__version__}.", ""]
    lines += ["| bundle | precision | median of a window, ms | labels that differ from the CPU | probabilities apart |"]
    lines += ["|---|---|---|---|---|"]
    found = list(rows(options.device, options.rounds))
    lines += [f"| {' | '.join(row)} |" for row, _ in found]
    options.page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return int(not judged("labels that differ", max(changed for _, changed in found), MOST_CHANGED, at_most=True))


def rows(device: str, rounds: int) -> Iterator[tuple[list[str], float]]:
    """A row of the table for each bundle and precision, and the part of the labels that differ."""
    from small_data import drawn_eyes

    volume = next((shipped("examples") / "msd_hippocampus/images").glob("*.nii.gz"))
    for name in ("hippocampus_mri_unet3d", "hippocampus_mri_unet2d", "retina_vessel_unet2d"):
        image = drawn_eyes(REPOSITORY / "build/gpu", 1) / "eye_1.png" if name.startswith("retina") else volume
        usual = segment_case(image, load_bundle(name, "cpu"), keep="probabilities").segmentation
        bundle = load_bundle(name, device)
        seconds = {(one.engine, one.precision): one.seconds for one in paces(bundle, None, rounds)}
        for precision in PRECISIONS:
            if not (taken := seconds["torch", precision]):
                continue
            run = PredictConfig(ResultSettings(precision=precision))
            other = segment_case(image, bundle, run, keep="probabilities").segmentation
            apart = np.abs(np.asarray(usual.probabilities) - np.asarray(other.probabilities)).max()
            maps = zip(usual.maps, other.maps, strict=True)
            changed = float(np.mean([np.mean(a.labels != b.labels) for a, b in maps]))
            row = [name, precision, f"{1000 * np.median(taken):.1f}", f"{changed:.2g}", f"{apart:.2g}"]
            yield row, changed


if __name__ == "__main__":
    raise SystemExit(main())

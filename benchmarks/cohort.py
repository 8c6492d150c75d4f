"""Many cases in a folder: what `predict` takes beyond the engine, and whether its results are those of one case at a time.

    python benchmarks/cohort.py [--quick] [--cases 40] [--rounds 1] [--engine openvino] [--profile]

Each case is another part of the made-up body of `full_size.py`, oblique, with other noise: int16, .nii.gz, 160 x 144 x 128
voxels of 1.5 mm; network and windows are those of `sliding_window.py`. Three sides run in turns in one process:

- the cohort: `predict_cases`, which `monai-unet predict --input FOLDER` calls;
- one by one: the same function, once for each case;
- engine alone: the engine answers the same windows of the same preprocessed images, and nothing is put together. Half of the
  cases come before the cohort and half after it, so that a machine that gets slower meets both.

The claim: a cohort takes at most 1.05 times the seconds of the engine alone, the first read and the last write; and the files
of the first two sides are the same, to the byte, but for the seconds in result.json. --quick: 4 cases of 64 x 48 x 40 voxels,
3 levels, windows of 32 voxels, no target of time. --profile prints where the time of a cohort goes. Exit code 1 if a target
is missed.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np
from claims import judged
from full_size import Scale, full_size_bundle, phantom_hu
from sliding_window import CLASSES, FULL, MM, QUICK, alone

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.cohort import predict_cases
from monai_unet_app.config import OutputConfig, PredictConfig, ResultSettings
from monai_unet_app.data.case_files import CaseFiles, find_images
from monai_unet_app.data.read import read_volume
from monai_unet_app.export import export_bundle
from monai_unet_app.pipeline import preprocess, segment_case
from monai_unet_app.results import write_results

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from phantoms import oblique_affine

MOST, QUICK_CASES = 1.05, 4
CONFIG = OutputConfig(deliver_rejected=True)  # a rejected result would have no files to compare


def main() -> int:
    """Measures, and judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine", choices=("openvino", "onnxruntime", "torch"), default="openvino")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    shape, window, filters = QUICK if options.quick else FULL
    count = options.cases or (QUICK_CASES if options.quick else 40)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bundle = load_bundle(full_size_bundle(folder / "bundle", Scale(CLASSES, 128, 128, window, filters, 64.0)))
        if options.engine != "torch":
            export_bundle(bundle, options.engine)
        (folder / "images").mkdir()
        for number in range(count):
            write_case(folder / f"images/case_{number:02}.nii.gz", number, shape)
        cohort = Cohort(find_images(folder / "images"), bundle, ResultSettings(engine=options.engine), folder)
        cohort.warm()
        print(f"  {count} cases of {' x '.join(map(str, shape))} voxels, {options.engine}", flush=True)
        rounds = [cohort.round() for _ in range(options.rounds)]
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(cohort.together)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        return judge(rounds, cohort, quick=options.quick)


def write_case(path: Path, number: int, shape: Sequence[int]) -> None:
    """An image of its own: where the part of the body begins, how large it is, how the grid is turned, and the noise."""
    along = [0.02 + 0.3 * (number * step % 1) for step in (0.618, 0.414, 0.732)]
    axes = [np.linspace(begin, begin + 0.62, size) for begin, size in zip(along, shape, strict=True)]
    hu = phantom_hu(*axes) + 12 * np.random.default_rng(number).standard_normal(shape, np.float32)
    affine_lps = oblique_affine((MM,) * 3, degrees=(4.0 + number % 7, -6.0, 3.0))
    image = nibabel.Nifti1Image(np.rint(hu).astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps)
    nibabel.save(image, path)


class Cohort:
    """The sides of the comparison.

    Args:
        cases: The images.
        bundle: Segments them.
        settings: With the engine.
        folder: Gets the results, of each side in a folder of its own.
    """

    def __init__(self, cases: Sequence[CaseFiles], bundle: Bundle, settings: ResultSettings, folder: Path) -> None:
        self.cases, self.bundle, self.run, self.folder = cases, bundle, PredictConfig(settings), folder

    def warm(self) -> None:
        """One case that does not count."""
        self.last = segment_case(self.cases[-1].image, self.bundle, self.run)
        write_results(self.last, "warm", CONFIG, self.folder / "warm")

    def round(self) -> dict[str, float]:
        """Seconds of each side."""
        half = len(self.cases) // 2
        seconds = {"engine alone": self.engine_alone(self.cases[:half])}
        seconds["the cohort"] = taken(self.together)
        seconds["engine alone"] += self.engine_alone(self.cases[half:])
        seconds["one by one"] = taken(self.one_by_one)
        seconds["first read"] = taken(lambda: read_volume(self.cases[0].image))
        seconds["last write"] = taken(lambda: write_results(self.last, "last", CONFIG, self.folder / "last"))
        return seconds

    def together(self) -> None:
        """All cases as `predict` does them."""
        predict_cases(self.cases, self.bundle, self.run, CONFIG, self.folder / "together")

    def one_by_one(self) -> None:
        """Each case as a run of its own."""
        for case in self.cases:
            predict_cases([case], self.bundle, self.run, CONFIG, self.folder / "one_by_one")

    def engine_alone(self, cases: Sequence[CaseFiles]) -> float:
        """Seconds of the engine for all windows of these cases."""
        engine, windows, seconds = self.bundle.engine(self.run.settings), self.bundle.windows, 0.0
        for case in cases:
            image = preprocess(read_volume(case.image), self.bundle)["image"].as_tensor()
            plan = windows.plan(tuple(image.shape[1:]))
            batches = [image[(slice(None), *one.place)][None].contiguous() for one in plan.windows]
            seconds += taken(lambda batches=batches: alone(engine, batches))
        return seconds

    def records(self) -> list[dict[str, Any]]:
        """The result.json of each case of the cohort."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / "together").glob("*_result.json"))]


def taken(work: Callable[[], object]) -> float:
    """Seconds of some work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def judge(rounds: Sequence[dict[str, float]], cohort: Cohort, *, quick: bool) -> int:
    """Prints the table, and judges time and agreement."""
    count, records = len(cohort.cases), cohort.records()
    print(f"  {f'seconds, median of {len(rounds)}':28}{'all':>9}{'a case':>9}")
    for name in ("engine alone", "the cohort", "one by one"):
        all_s = median(one[name] for one in rounds)
        print(f"  {name:28}{all_s:9.2f}{all_s / count:9.3f}")
    for name in ("first read", "last write"):
        print(f"  {name:28}{'':9}{median(one[name] for one in rounds):9.3f}")
    stages = {name: median(one["seconds"][name] for one in records) for name in records[0]["seconds"]}
    print(f"  stages of a case of the cohort: {', '.join(f'{name} {found:.3f}' for name, found in stages.items())}")
    files, other = (contents(cohort.folder / side) for side in ("together", "one_by_one"))
    differ = sorted(name for name in {*files, *other} if files.get(name) != other.get(name))
    verdicts = Counter((one["assessment"] or {}).get("verdict") for one in records)
    print(
        f"  {len(files)} files of {len(records)} cases, {len(set(files.values()))} unlike; verdicts: {dict(verdicts)}"
    )
    print(f"  files that differ from those of one case at a time: {', '.join(differ) or 'none'}")
    is_right = not differ and len(records) == count
    shares = [one["one by one"] / one["the cohort"] for one in rounds]
    print(f"  one by one / the cohort: {median(shares):.3f}")
    bounds = [
        one["the cohort"] / sum(one[name] for name in ("engine alone", "first read", "last write")) for one in rounds
    ]
    what = "the cohort / (engine alone + first read + last write)"
    if quick:
        print(f"  {what}: {median(bounds):.3f}")
        return int(not is_right)
    return int(not (judged(what, median(bounds), MOST, at_most=True) and is_right))


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files, by name; of a result.json without its seconds."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        name: json.dumps({**json.loads(content), "seconds": None}).encode()
        if name.endswith("_result.json")
        else content
        for name, content in found.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""What the weights of another bundle are worth, by the number of cases: docs/transfer.json, which docs/claims.md shows.

    python benchmarks/transfer.py [--data ../shared/data] [--only hippocampus abdomen]

Each curve is planned for the network of another bundle and trained by `learning_curve.py --from`, so each number of
cases twice: at random, and beginning with the weights of that bundle: the shipped hippocampus, or a training on CHAOS. Both
have the same steps and windows. Gains are paired by case, with an interval of 95 % by subject. The same command goes on where
it was ended: trainings are kept in build/transfer. An hour or two of a core for each curve. Without data a curve is left
out. `benchmarks/networks.py --pages` writes the page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import REPOSITORY, environment_of

from dicom_io.files import replace_when_whole

FIGURES = REPOSITORY / "docs/transfer.json"


@dataclass(frozen=True)
class Curve:
    """Trainings on few cases and on more.

    Attributes:
        data: Folder of the data set.
        donor: Shipped bundle, or data set that one is trained on first, whose network is planned, and whose weights half of the
            trainings begin with.
        numbers: Of cases that train.
        folds: Whose cases are measured.
        minutes: Of a training, as planned for one core.
        splits: Which cases are left alone; those of a plan where it is None.
    """

    data: str
    donor: str
    numbers: tuple[int, ...]
    folds: tuple[int, ...]
    minutes: int
    splits: Path | None = None


CURVES = {
    "hippocampus": Curve(
        "msd_hippocampus", "chaos_t2spir_mr", (20, 50, 118), (0,), 10, REPOSITORY / "examples/splits.json"
    ),
    "abdomen": Curve("chaos_t2spir_mr", "hippocampus_mri_unet3d", (4,), (0, 1, 2), 3),
}


def main() -> int:
    """Trains what is missing, and keeps the points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared/data")
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/transfer")
    parser.add_argument("--only", nargs="+", default=list(CURVES), choices=CURVES)
    options = parser.parse_args()
    for name in options.only:
        curve, data = CURVES[name], options.data / CURVES[name].data
        if not data.exists():
            print(f"left out: {data} does not exist")
            continue
        answer = trained(curve, data, options.build / name)
        kept = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
        kept[name] = {"data": curve.data, "donor": curve.donor, "minutes": curve.minutes, **answer}
        with replace_when_whole(FIGURES) as part:
            part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


def trained(curve: Curve, data: Path, build: Path) -> dict[str, object]:
    """What a curve was measured on, and its points as `learning_curve.py` gives them."""
    plan, splits = build / "plan", ["--splits", curve.splits] if curve.splits else []
    donor: str | Path = curve.donor
    if (others := data.parent / curve.donor).is_dir():
        donor, all_train = build / "donor", ["--splits", _splits(others, build / "donor_splits.json")]
        if not (build / "donor_plan").exists():
            _call("plan", others, "--output", build / "donor_plan", "--time", "20min", *all_train)
        plan_and_data = ["--bundle", build / "donor_plan", "--data", others]
        _call("train", *plan_and_data, "--output", donor, "--tracking", "none", *all_train)
    if not plan.exists():
        _call("plan", data, "--output", plan, "--network", donor, "--time", f"{curve.minutes}min", *splits)
    answer = _call(
        "--bundle", plan, "--data", data, "--output", build / "curve", "--folds", *curve.folds, "--from", donor, "--cases",
        *curve.numbers, *splits, program=[REPOSITORY / "benchmarks/learning_curve.py"],
    )  # fmt: skip
    line = next(line for line in (build / "curve/learning_curve.md").read_text().splitlines() if " case(s) of " in line)
    return {"measured": line.partition(",")[0], "points": answer["points"]}


def _splits(data: Path, path: Path) -> Path:
    """Splits by which every seventh case selects the model and all others train: a donor needs nothing else."""
    names = sorted(image.name.removesuffix(".nii.gz") for image in (data / "images").iterdir())
    cases = [
        {"id": name, "subject": name, "partition": "train" if n % 7 else "selection", "fold": n % 5}
        for n, name in enumerate(names)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema_version": "1.0", "datasets": {data.name: {"cases": cases}}}))
    return path


def _call(*words: object, program: Sequence[object] = ("-m", "monai_unet_app")) -> dict[str, object]:
    """The answer of one command on one core. SystemExit if it fails."""
    command = [sys.executable, *map(str, (*program, *words)), "--device", "cpu", "--json"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment_of(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main())

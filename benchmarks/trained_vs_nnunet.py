"""Do the folds that we train beat nnU-Net's own trainer in the same minutes, on the same cases and cores?

    monai-unet plan D --output PLAN --time 60min
    monai-unet train --bundle PLAN --data D --output B --folds 0 1 --device cpu
    monai-unet evaluate --bundle B --data D --folds --output E --device cpu
    pip install --no-deps --target build/peers -r benchmarks/nnunet.txt
    python benchmarks/trained_vs_nnunet.py --data D --bundle B --evaluation E [--folds 0 1] [--minutes 60]
    python benchmarks/trained_vs_nnunet.py --data D --bundle B --folds 0 --measure

D is a data set as `monai-unet train` takes it. nnU-Net gets it by `monai-unet convert` without the plan's test cases, makes its
own plan of it, and trains the folds by its own nnUNetTrainer on the CPU, with as many threads as ours had. Only the length of
its training is set: up to 100 epochs (a fifth of the iterations that fit, if these are fewer than 500), each with as many
iterations as fit into its share of the time, then one batch of validation. So its learning rate falls to 0 as the time ends.
The time is what our fold took by its run.json, or --minutes. Of nnU-Net only epochs count, not planning, preprocessing,
starting, checkpoints and pictures of curves; of ours all that the training does counts. nnU-Net's final weights segment the
cases that the fold left out by its predictor as it is: windows that overlap by half, mirrored. They are scored as
`evaluate --folds` scores ours. Each side should have the machine to itself.

Prints Dice of both for each structure, the paired difference with its 95 % interval by subject, and the ratio. Everything is
kept in --build: the same command goes on where it was ended, and repeats nothing that is finished. --measure stops after the
time of an iteration. Exit code 1 if our error (1 - mean Dice) is larger. Without data, bundle or nnU-Net the comparison is left
out, and a line says what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from claims import judged
from measuring import REPOSITORY, environment_of
from nnunet_children import DATASET, VALIDATIONS

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.evaluate import choose_out_of_fold
from monai_unet_app.evaluate.case_selection import Row
from monai_unet_app.evaluate.reference import counted_voxels, read_reference, reference_segmentation
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, bootstrap_mean, bootstrap_paired_difference
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.report.stored_evaluation import MEAN, read_evaluation

DATA, BUNDLE = REPOSITORY.parent / "shared/data/chaos_t2spir_mr", REPOSITORY / "build/chaos_folds"
NEEDED = ("nnunetv2", "batchgeneratorsv2", "dynamic_network_architectures", "cc3d", "seaborn", "sklearn")
MOST_EPOCHS, ITERATIONS_AN_EPOCH = 100, 5
MOST_ERROR = 1.0  # ours / theirs, of 1 - mean Dice
Scores = Mapping[str, Mapping[str, float]]
"""Structure, or MEAN -> case id -> Dice."""


@dataclass(frozen=True)
class Fold:
    """What is trained and tested.

    Attributes:
        number: Of the plan.
        train: Ids of the cases that ours trained on.
        test: The cases that are left out.
        minutes: What our training took.
        threads: Of torch, in our training.
    """

    number: int
    train: tuple[str, ...]
    test: tuple[Row, ...]
    minutes: float
    threads: int


@dataclass(frozen=True)
class NnUNet:
    """nnU-Net in its processes.

    Attributes:
        build: Holds its data, networks, predictions and what it printed.
        peers: Where it is installed.
        configuration: 2d, 3d_fullres or 3d_lowres.
        threads: Of torch.
        augmenters: Processes that prepare batches; 0: the training process does.
    """

    build: Path
    peers: Path
    configuration: str
    threads: int
    augmenters: int

    @property
    def preprocessed(self) -> Path:
        """Its plan and its copy of the data."""
        return self.build / "preprocessed" / DATASET

    def fold(self, number: int) -> Path:
        """What this benchmark keeps of a fold."""
        folder = self.build / self.configuration / f"fold_{number}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(self, *words: str | int | Path, results: str = "results") -> None:
        """One of `nnunet_children.py`; SystemExit with the end of what it printed if it fails."""
        folders = {f"nnUNet_{name}": str(self.build / name) for name in ("raw", "preprocessed")}
        threads = {f"{name}_NUM_THREADS": str(self.threads) for name in ("OMP", "MKL", "OPENBLAS")}
        paths = filter(None, [os.environ.get("PYTHONPATH"), str(REPOSITORY), str(self.peers)])
        environment = {
            **os.environ, **folders, **threads, "nnUNet_results": str(self.build / results),
            # its planner takes it as a number of threads
            "nnUNet_n_proc_DA": str(max(1, self.augmenters) if words[0] == "prepare" else self.augmenters),
            "nnUNet_def_n_proc": "1", "PYTHONPATH": os.pathsep.join(paths),
        }  # fmt: skip
        log = self.build / f"{words[0]}.log"
        with log.open("a") as printed:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("nnunet_children.py")), *map(str, words)],
                stdout=printed, stderr=subprocess.STDOUT, env=environment, check=False,
            )  # fmt: skip
        if done.returncode:
            raise SystemExit("\n".join([*log.read_text().splitlines()[-12:], f"nnU-Net failed; see {log}"]))


def main() -> int:
    """Trains nnU-Net, compares and prints; 1 if ours errs more."""
    options = parsed()
    if missing := what_is_missing(options):
        print(f"left out: {missing}")
        return 0
    bundle = load_bundle(options.bundle, "cpu")
    folds = list(chosen_folds(bundle, options))
    test = [row for fold in folds for row in fold.test]
    ours = {} if options.measure else our_scores(bundle, options.evaluation, test)
    threads = folds[0].threads
    peer = NnUNet(options.build.resolve(), options.peers.resolve(), options.configuration, threads, options.augmenters)
    prepare(peer, bundle, options.data.resolve(), folds)
    measured = measure(peer, folds[0])
    if options.measure:
        for fold in folds:
            minutes = options.minutes or fold.minutes
            print(
                f"fold {fold.number}: about {60 * minutes / measured['iteration_s']:.0f} iterations in {minutes:g} minutes"
            )
        return 0
    theirs: dict[str, dict[str, float]] = {name: {} for name in (*bundle.structure_names, MEAN)}
    for fold in folds:
        train(peer, fold, options.minutes or fold.minutes, measured["iteration_s"])
        for name, values in their_scores(peer, fold, bundle).items():
            theirs[name].update(values)
    return int(not report(ours, theirs, test))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="trained, with folds/")
    parser.add_argument("--evaluation", type=Path, help="of evaluate --folds (default: evaluation/ in the bundle)")
    parser.add_argument("--folds", type=int, nargs="+", help="of the trained ones (default: all)")
    parser.add_argument("--minutes", type=float, help="of each training (default: what our fold took)")
    parser.add_argument("--configuration", choices=("2d", "3d_fullres", "3d_lowres"), default="3d_fullres")
    parser.add_argument("--augmenters", type=int, default=0, help="processes that prepare nnU-Net's batches")
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/nnunet")
    parser.add_argument("--peers", type=Path, default=REPOSITORY / "build/peers")
    parser.add_argument("--measure", action="store_true", help="stop after the time of an iteration")
    options = parser.parse_args()
    options.evaluation = options.evaluation or options.bundle / "evaluation"
    return options


def what_is_missing(options: argparse.Namespace) -> str:
    """A sentence; empty if all is there."""
    sys.path.append(str(options.peers))
    if absent := [name for name in NEEDED if find_spec(name) is None]:
        return (
            f"nnU-Net is not installed ({', '.join(absent)}); pip install --no-deps --target {options.peers} "
            "-r benchmarks/nnunet.txt"
        )
    if not options.data.exists():
        return f"{options.data} does not exist; the data that trained the bundle are needed"
    if not any(options.bundle.glob("folds/[0-9]/models/model.pt")):
        return f"{options.bundle} has no trained folds; monai-unet train --folds makes them"
    if not options.measure and not (options.evaluation / "cases.csv").is_file():
        return f"{options.evaluation} has no cases.csv; monai-unet evaluate --folds --output makes it"
    return ""


def chosen_folds(bundle: Bundle, options: argparse.Namespace) -> Iterator[Fold]:
    """The folds to compare, as the records of our trainings tell them."""
    if not bundle.outputs.one_map:
        raise SystemExit(
            f"{bundle.name} has overlapping structures, which nnU-Net's labels cannot hold; none are needed"
        )
    trained = {fold.fold: fold for fold in bundle.folds}
    if unknown := set(options.folds or ()) - set(trained):
        raise SystemExit(f"folds {sorted(unknown)} are not trained in {bundle.name}; it has {sorted(trained)}")
    chosen = choose_out_of_fold(bundle, find_data(options.data))
    for number in options.folds or sorted(trained):
        record = trained[number].run_record
        of = {
            part: {name for name, case in record["cases"].items() if case["partition"] == part}
            for part in ("train", "test")
        }
        test = tuple(row for row in chosen.rows if chosen.folds[row["id"]] == number)
        if {row["id"] for row in test} != of["test"]:
            raise SystemExit(
                f"{options.data} does not have the {len(of['test'])} cases that fold {number} tests; give its data"
            )
        devices = {session["device"] for session in record["sessions"]}
        if devices != {"cpu"}:
            raise SystemExit(
                f"fold {number} was trained on {', '.join(sorted(devices))}; nnU-Net trains on the cpu here"
            )
        seconds = sum(session["seconds"] for session in record["sessions"])
        threads = max(session["threads"] for session in record["sessions"])
        print(f"ours: fold {number}, {record['epochs_done']} epochs in {seconds / 60:.1f} minutes, {threads} thread(s)")
        yield Fold(number, tuple(sorted(of["train"])), test, seconds / 60, threads)


def our_scores(bundle: Bundle, folder: Path, test: Sequence[Row]) -> Scores:
    """Dice of the cases in our evaluation; SystemExit if it is of other networks, or not out of fold."""
    evaluation = read_evaluation(folder)
    if evaluation.document["bundle"]["sha256"] != bundle.sha256:
        raise SystemExit(f"{folder} measured other weights than those of {bundle.name}; evaluate again")
    ids = [row["id"] for row in test]
    if absent := set(ids) - set(evaluation.document["data"].get("folds", {})):
        raise SystemExit(f"{folder} lacks {len(absent)} of {len(ids)} cases out of fold; monai-unet evaluate --folds")
    found = {name: evaluation.table.values("dice", name) for name in (*bundle.structure_names, MEAN)}
    return {name: {case: values[case] for case in ids} for name, values in found.items()}


def prepare(peer: NnUNet, bundle: Bundle, data: Path, folds: Sequence[Fold]) -> None:
    """The data in nnU-Net's form, its plan and its preprocessed copy, and our folds; what is finished stays."""
    origin, file = f"{data}\n{bundle.root.resolve()}\n", peer.build / "made_from.txt"
    peer.build.mkdir(parents=True, exist_ok=True)
    if file.is_file() and file.read_text() != origin:
        raise SystemExit(f"{peer.build} was made from {' and '.join(file.read_text().split())}; give another --build")
    file.write_text(origin)
    raw = peer.build / "raw" / DATASET
    if not raw.is_dir():
        words = ["convert", str(data), "--to", "nnunet", "--output", str(raw), "--bundle", str(bundle.root)]
        subprocess.run(
            [sys.executable, "-m", "monai_unet_app", *words], check=True, env=environment_of(), stdout=sys.stderr
        )
    finished = peer.fold(folds[0].number).parent / "prepared"
    if not finished.exists():
        peer.run("prepare", peer.configuration)
        plans = json.loads((peer.preprocessed / "nnUNetPlans.json").read_text())["configurations"]
        if peer.configuration not in plans:
            raise SystemExit(
                f"nnU-Net plans no {peer.configuration} for these data; --configuration {' or '.join(plans)}"
            )
        finished.touch()
    splits = [{"train": list[str](), "val": list[str]()} for _ in range(1 + max(fold.number for fold in folds))]
    for fold in folds:
        splits[fold.number] = {"train": list(fold.train), "val": [row["id"] for row in fold.test]}
    (peer.preprocessed / "splits_final.json").write_text(json.dumps(splits))


def measure(peer: NnUNet, fold: Fold) -> dict[str, float]:
    """Seconds of one iteration of nnU-Net's training here, measured once."""
    file = peer.fold(fold.number).parent / "measured.json"
    if not file.is_file():
        peer.run("measure", peer.configuration, fold.number, file, results="measuring")
    found = json.loads(file.read_text())
    patch, spacing = (" x ".join(f"{n:.3g}" for n in found[name]) for name in ("patch", "spacing"))
    print(
        f"nnU-Net {peer.configuration}: windows of {patch} ({spacing} mm), {found['batch']} a batch, "
        f"{found['parameters'] / 1e6:.1f} million parameters"
    )
    print(
        f"nnU-Net: an iteration takes {found['iteration_s']:.2f} s ({found['iteration_cpu_s']:.2f} s of the processor), a "
        f"batch of validation {found['validation_s']:.2f} s; {peer.threads} thread(s), {peer.augmenters} process(es) beside",
        flush=True,
    )
    return found


def train(peer: NnUNet, fold: Fold, minutes: float, iteration_s: float) -> None:
    """nnU-Net's training of a fold, unless it is finished."""
    file = peer.fold(fold.number) / "training.json"
    asked = {"minutes": minutes, "threads": peer.threads, "augmenters": peer.augmenters}
    if not file.is_file():
        fit = int(60 * minutes / iteration_s / ITERATIONS_AN_EPOCH)
        setting = {**asked, "epochs": min(MOST_EPOCHS, max(1, fit)), "iteration_s": iteration_s}
        file.write_text(json.dumps(setting))
    setting = json.loads(file.read_text())
    if any(setting[name] != value for name, value in asked.items()):
        told = ", ".join(f"{setting[name]:g} {name}" for name in asked)
        raise SystemExit(f"{file.parent} holds a training with {told}; give the same, or another --build")
    if "trained_minutes" not in setting:
        peer.run("train", peer.configuration, fold.number, file)
        setting = json.loads(file.read_text())
    iterations = sum(setting["iterations"].values())
    print(
        f"nnU-Net: fold {fold.number}, {iterations} iterations in {setting['epochs']} epochs, after each "
        f"{VALIDATIONS} batch of validation, in {setting['trained_minutes']:.1f} minutes, {peer.threads} thread(s)",
        flush=True,
    )


def their_scores(peer: NnUNet, fold: Fold, bundle: Bundle) -> Scores:
    """Dice of nnU-Net's label maps of the cases that the fold left out."""
    folder = peer.fold(fold.number) / "predicted"
    ids = [row["id"] for row in fold.test]
    peer.run("predict", peer.configuration, fold.number, folder, *ids)
    scores: dict[str, dict[str, float]] = {name: {} for name in (*bundle.structure_names, MEAN)}
    for row in fold.test:
        (file,) = folder.glob(f"{row['id']}.[np]*")
        values = scored(row, file, bundle)
        for name, value in zip(scores, (*values, float(np.mean(values))), strict=True):
            scores[name][row["id"]] = value
    return scores


def scored(row: Row, predicted: Path, bundle: Bundle) -> list[float]:
    """Dice of each structure, on the grid of the image; voxels of the bundle's `ignore_label` do not count."""
    image = read_volume(row["image"])
    # `convert` numbers the structures as the bundle does
    labels = reference_segmentation(read_labels(predicted, image).array, image, bundle).classes
    truth, counted = read_reference(row, image, bundle).classes, counted_voxels(row, image, bundle)
    if counted is not None:
        truth, labels = (np.where(counted, array, 0) for array in (truth, labels))
    return [dice(truth == number, labels == number) for number in bundle.label_values[1:]]


def report(ours: Scores, theirs: Scores, test: Sequence[Row]) -> bool:
    """Prints a line for each structure and the ratios; whether ours errs less."""
    ids, subjects = [row["id"] for row in test], [row["subject"] for row in test]
    print(
        f"\nDice with its 95 % interval by subject; {len(ids)} cases, {len(set(subjects))} subjects, each out of fold"
    )
    width = max(map(len, theirs))
    print(f"  {'':{width}}  {'ours':24}{'nnU-Net':24}{'ours - nnU-Net':27}ours is better on")
    means = {}
    for name in theirs:
        mine, other = (np.array([scores[name][case] for case in ids]) for scores in (ours, theirs))
        sides = [bootstrap_mean(values, subjects, Bootstrap()) for values in (mine, other)]
        gain = bootstrap_paired_difference(mine, other, subjects, Bootstrap())
        cells = f"{_text(sides[0]):24}{_text(sides[1]):24}{_text(gain, '+.4f'):27}"
        print(f"  {name:{width}}  {cells}{(mine > other).sum()} of {len(ids)}")
        means[name] = [side.value for side in sides]
    mine, other = means[MEAN]
    print(f"  mean Dice, ours / nnU-Net: {mine / other:.4f}" if other else "  nnU-Net found nothing: no ratio of Dice")
    return judged(
        "error of ours / error of nnU-Net (1 - mean Dice)", (1 - mine) / (1 - other), MOST_ERROR, at_most=True
    )


def _text(figure: Estimate, form: str = ".4f") -> str:
    ends = "" if figure.interval is None else f" ({figure.low:{form}} to {figure.high:{form}})"
    return f"{figure.value:{form}}{ends}"


if __name__ == "__main__":
    raise SystemExit(main())

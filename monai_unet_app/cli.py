"""`monai-unet <verb>`: thin; every verb calls one function below. Only this module prints.

Results go to stdout (`--json` for machines), progress and messages to stderr.
Exit 0 done, 1 failed, 2 wrong usage, 3 input refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dicom_io.errors import DicomIoError
from monai_unet_app import __version__
from monai_unet_app.errors import AppError, InputRefusedError, UsageError

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED = 0, 1, 2, 3
Answer = tuple[dict[str, Any], int]

out = Console()
err = Console(stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and gives its exit code."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    options = _parser().parse_args(argv)
    try:
        answer, code = options.run(options)
    except UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    except (InputRefusedError, DicomIoError) as error:
        return _fail(str(error), EXIT_REFUSED)
    except AppError as error:
        return _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("stopped; run the same command again to go on", 130)
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return code


def _fail(message: str, code: int) -> int:
    err.print(f"[red]{'refused' if code == EXIT_REFUSED else 'error'}:[/red] {escape(message)}", soft_wrap=True)
    return code


# --- verbs ------------------------------------------------------------------------------------------------------------


def _bundles(options: argparse.Namespace) -> Answer:
    from monai_unet_app.bundle import bundle_folders, load_bundle

    rows = []
    for name, folder in bundle_folders().items():
        bundle = load_bundle(folder)
        trained = (folder / "models/model.pt").is_file()
        rows.append(
            {
                "name": name,
                "version": bundle.version,
                "task": bundle.metadata["task"],
                "trained": trained,
                "sha256": bundle.sha256 if trained else None,
                "folder": str(folder),
            }
        )
    if not options.json:
        table = Table("bundle", "version", "what it does", "weights")
        for row in rows:
            table.add_row(row["name"], row["version"], row["task"], "yes" if row["trained"] else "[yellow]no[/yellow]")
        out.print(table)
        out.print("Use one with: monai-unet predict --bundle NAME --input IMAGE --output OUT")
    return {"bundles": rows}, EXIT_DONE


def _inspect(options: argparse.Namespace) -> Answer:
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.data.cases import find_cases, find_images
    from monai_unet_app.data.inspect import inspect_cases

    data: Path = options.data
    if options.labels or options.label_suffix:
        cases = find_cases(data, options.labels, options.label_suffix, need_all=False)
    elif (data / "images").is_dir():
        labelled = (data / "labels").is_dir()
        images = data / "images"
        cases = find_cases(images, data / "labels", need_all=False) if labelled else find_images(images)
    else:
        cases = find_images(data)
    bundle = load_bundle(options.bundle) if options.bundle else None
    with _progress("reading", len(cases), options) as step:
        found = inspect_cases(
            cases,
            bundle.rules if bundle else None,
            range(len(bundle.labels) + (not bundle.exclusive)) if bundle else None,
            step,
        )
    if not options.json:
        _print_fingerprint(found.summary())
        _print_problems(found.problems)
    return found.as_dict(), EXIT_REFUSED if found.refused else EXIT_DONE


def _dicomize(options: argparse.Namespace) -> Answer:
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.convert import dicomize_cases
    from monai_unet_app.data.cases import find_cases, find_images

    images: Path = options.images
    cases = find_cases(images, options.labels, options.label_suffix) if options.labels else find_images(images)
    segments = load_bundle(options.bundle).segments if options.labels else None
    check_writable(options.output)
    with _progress("converting", len(cases), options) as step:
        rows, problems = dicomize_cases(cases, options.output, segments, step)
    if not options.json:
        table = Table("case", "series", "labels", "largest rounding")
        for row in rows:
            table.add_row(row["id"], row["series"], row["seg"] or "-", f"{row['max_rounding_error']:.3g}")
        out.print(table)
        _print_problems(problems)
    return {"cases": rows, "problems": problems}, EXIT_REFUSED if problems else EXIT_DONE


def _train(options: argparse.Namespace) -> Answer:
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.training.run import TrainConfig, train_bundle

    check_writable(options.output)
    overrides = {
        "epochs": options.epochs,
        "seed": options.seed,
        "learning_rate": options.learning_rate,
        "precision": options.precision,
        "workers": options.workers,
        "tracking": options.tracking,
    }
    run = TrainConfig(
        data=options.data,
        labels=options.labels,
        output=options.output,
        splits=options.splits,
        label_suffix=options.label_suffix,
        device=options.device,
        overrides={name: value for name, value in overrides.items() if value is not None},
    )
    bundle = train_bundle(load_bundle(options.bundle), run, _say(options))
    record = bundle.run_record
    if not options.json:
        out.print(f"Dice on the selection cases: {record['best']['metric']:.4f} (epoch {record['best']['epoch']})")
        out.print(f"trained bundle: {bundle.root}")
        out.print(f"next: monai-unet calibrate --bundle {bundle.root} --data {options.data}")
    return {"bundle": str(bundle.root), "sha256": bundle.sha256, "best": record["best"]}, EXIT_DONE


def _calibrate(options: argparse.Namespace) -> Answer:
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import resolve_device
    from monai_unet_app.evaluate import calibrate_bundle, choose_cases

    if not Path(options.bundle).is_dir():
        raise UsageError(
            f"--bundle {options.bundle}: a folder is needed, its inference.yaml is rewritten; copy it first"
        )
    bundle = load_bundle(options.bundle, resolve_device(options.device))
    chosen = choose_cases(bundle, _data(options), options.partition or "calibration", options.splits)
    _say(options)(chosen.note)
    with _progress("calibrating", len(chosen.rows), options) as step:
        fitted = calibrate_bundle(bundle, chosen.rows, step)
    answer = {
        "parameters": fitted.parameters,
        "nll_before": fitted.nll_before,
        "nll_after": fitted.nll_after,
        "cases": fitted.cases,
        "sha256": load_bundle(bundle.root).sha256,
    }
    if not options.json:
        values = ", ".join(f"{name} {value}" for name, value in fitted.parameters.items())
        out.print(f"calibration: {values}, fitted on {fitted.cases} case(s)")
        out.print(f"negative log likelihood a voxel: {fitted.nll_before:.5f} before, {fitted.nll_after:.5f} after")
        out.print(f"written into {bundle.root}/configs/inference.yaml")
        out.print(f"next: monai-unet evaluate --bundle {bundle.root} ... --output OUT")
    return answer, EXIT_DONE


def _evaluate(options: argparse.Namespace) -> Answer:
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import PredictConfig, resolve_device
    from monai_unet_app.evaluate import choose_cases, evaluate_cases

    bundle = load_bundle(options.bundle, resolve_device(options.device))
    chosen = choose_cases(bundle, _data(options), options.partition, options.splits)
    check_writable(options.output)
    _say(options)(chosen.note)
    with _progress("evaluating", len(chosen.rows), options) as step:
        found = evaluate_cases(
            bundle,
            chosen.rows,
            options.output,
            run=PredictConfig(tta=options.tta),
            data_name=(options.data or options.images).resolve().name,
            partition=chosen.note,
            each=lambda case_id, dice: step(f"{case_id}" if dice is None else f"{case_id} Dice {dice:.3f}"),
        )
    if not options.json:
        _print_metrics(found.metrics)
        for file in found.files:
            out.print(f"wrote {file}")
        _print_problems(found.problems)
    answer = {
        "metrics": dict(found.metrics),
        "files": [str(file) for file in found.files],
        "problems": list(found.problems),
    }
    return answer, EXIT_REFUSED if found.problems else EXIT_DONE


def _predict(options: argparse.Namespace) -> Answer:
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import PredictConfig, resolve_device
    from monai_unet_app.data.cases import find_images
    from monai_unet_app.results import OutputConfig, predict_cases

    what = OutputConfig(
        formats=tuple(name.strip() for name in options.format.split(",") if name.strip()),
        probabilities=options.probabilities,
        dicom_source=options.dicom_source,
        dicomize=options.dicomize,
    )
    bundle = load_bundle(options.bundle, resolve_device(options.device))
    run = PredictConfig(options.device, options.tta, options.series)
    cases = find_images(options.input)
    check_writable(options.output)
    with _progress("segmenting", len(cases), options) as step:
        done, problems = predict_cases(cases, bundle, run, what, options.output, step)
    if not options.json:
        _print_structures(done)
        _print_problems(problems)
        if done:
            out.print(f"wrote {len(done)} case(s) to {options.output}")
    return {"cases": done, "problems": problems}, EXIT_REFUSED if problems else EXIT_DONE


def _demo(options: argparse.Namespace) -> Answer:
    from monai_unet_app.demo import run_demo

    check_writable(options.output)
    answer = run_demo(
        options.output, options.epochs, _say(options), lambda text, total: _progress(text, total, options)
    )
    if not options.json:
        _print_metrics(answer["metrics"])
        table = Table("what to open", "where")
        for name, place in answer["open"].items():
            table.add_row(name, place)
        out.print(table)
        table = Table("check", "result")
        for name, result in answer["checks"].items():
            table.add_row(name, result)
        out.print(table)
    return answer, EXIT_DONE if answer["passed"] else EXIT_FAILED


def _doctor(options: argparse.Namespace) -> Answer:
    from monai_unet_app.doctor import examine

    rows = examine()
    if not options.json:
        table = Table("what", "found", "")
        for row in rows:
            table.add_row(
                row["what"],
                row["found"],
                {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]"}.get(row["state"], "[red]broken[/red]"),
            )
        out.print(table)
    return {"checks": rows}, EXIT_FAILED if any(row["state"] == "broken" for row in rows) else EXIT_DONE


# --- what people see --------------------------------------------------------------------------------------------------


def check_writable(folder: Path) -> None:
    """Makes the folder and a file in it, before any work. Raises InputRefusedError if that cannot be."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputRefusedError(
            f"output {folder} cannot be written ({error.strerror}); a folder with write permission is needed; choose another"
        ) from error


def _say(options: argparse.Namespace) -> Callable[[str], None]:
    return lambda text: None if options.json else err.print(escape(text), highlight=False, soft_wrap=True)


def _data(options: argparse.Namespace) -> Any:
    from monai_unet_app.data.cases import find_data

    if options.data is None and options.images is None:
        raise UsageError("which cases? give --data DIR, or --images DIR and --labels DIR")
    return find_data(options.data or options.images, options.labels, options.label_suffix)


class _Steps:
    """A progress bar over cases, on stderr; calling it moves it on by one."""

    def __init__(self, text: str, total: int, quiet: bool) -> None:
        self.bar = Progress(
            TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=err, disable=quiet or not err.is_terminal, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> _Steps:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def __call__(self, description: str = "") -> None:
        self.bar.update(self.task, advance=1, description=description)


def _progress(text: str, total: int, options: argparse.Namespace) -> _Steps:
    return _Steps(text, total, options.json)


def _print_problems(problems: Sequence[str]) -> None:
    if problems:
        err.print(f"[red]{len(problems)} problem(s):[/red]")
        for problem in problems:
            err.print(f"  {escape(problem)}", soft_wrap=True, highlight=False)


def _print_fingerprint(summary: dict[str, Any]) -> None:
    table = Table("", "least", "median", "most")
    counts = []
    for name, value in summary.items():
        if isinstance(value, dict) and "least" in value:
            table.add_row(name, *(_numbers(value[key]) for key in ("least", "median", "most")))
        elif name == "class_ml":
            for label, sizes in value.items():
                table.add_row(f"class {label}, mL", *(_numbers(sizes[key]) for key in ("least", "median", "most")))
        else:
            text = (
                ", ".join(f"{key} ({count})" for key, count in value.items()) if isinstance(value, dict) else str(value)
            )
            counts.append(f"{name}: {text}")
    if counts:
        out.print("\n".join(counts), highlight=False)
    if table.row_count:
        out.print(table)


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _print_metrics(metrics: Any) -> None:
    table = Table("score", "mean", "95 % interval", *metrics["dice"]["per_class"])
    for key in ("dice", "iou", "boundary_iou", "precision", "recall", *(k for k in metrics if k.startswith("hd95"))):
        _metric_row(table, key, metrics[key], metrics[key]["mean"], metrics[key]["mean_interval"])
    for key in ("ece", "ece_band"):
        block = metrics[key]
        _metric_row(table, f"{key} (top label)", block, block["top_label"], block["top_label_interval"])
    out.print(table)


def _metric_row(table: Table, name: str, block: Any, value: float | None, interval: Any) -> None:
    between = "-" if not interval else f"{interval[0]:.4f} to {interval[1]:.4f}"
    cells = [("-" if number is None else f"{number:.4f}") for number in (value, *block["per_class"].values())]
    table.add_row(name, cells[0], between, *cells[1:])


def _print_structures(done: Sequence[dict[str, Any]]) -> None:
    table = Table("case", "structure", "size", "mean probability", "seconds")
    for case in done:
        for row in case["structures"]:
            size = f"{row['volume_ml']:.3f} mL" if "volume_ml" in row else f"{row['pixels']} px"
            inside = "-" if row["mean_probability"] is None else f"{row['mean_probability']:.3f}"
            table.add_row(case["case"], row["label"], size, inside, f"{sum(case['seconds'].values()):.1f}")
    if table.row_count:
        out.print(table)


# --- the parser -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="monai-unet",
        description="Train U-Nets as MONAI bundles; segment, measure and deliver with them.",
        epilog="First steps: `monai-unet demo --output demo`, then open demo/report/report.html.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, run: Callable[[argparse.Namespace], Answer], text: str, example: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        sub.set_defaults(run=run)
        return sub

    demo = verb(
        "demo",
        _demo,
        "train, calibrate, evaluate and apply a U-Net on the example cases",
        "monai-unet demo --output demo",
    )
    demo.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    demo.add_argument("--epochs", type=int, default=5, help="length of the training (default: 5)")

    dicomize = verb(
        "dicomize",
        _dicomize,
        "write NIfTI cases as DICOM MR series, and their labels as SEG",
        "monai-unet dicomize --images images --labels labels --bundle hippocampus_mri_unet3d --output dicom",
    )
    dicomize.add_argument("--images", type=Path, required=True, help="a NIfTI file, or a folder of them")
    dicomize.add_argument("--bundle", default="hippocampus_mri_unet3d", help="says what the label values mean")
    _add_labels(dicomize)
    dicomize.add_argument("--output", type=Path, required=True, help="gets one folder for each case")

    inspect = verb(
        "inspect", _inspect, "print what a data set looks like, and everything wrong with it", "monai-unet inspect DATA"
    )
    inspect.add_argument(
        "data", type=Path, help="images/ and labels/ in a folder, a folder of images, DICOM, or one file"
    )
    inspect.add_argument("--bundle", help="also hold every case to this bundle's input rules and labels")
    _add_labels(inspect)

    train = verb(
        "train",
        _train,
        "train a copy of a bundle on a folder of cases; the same command resumes",
        "monai-unet train --bundle hippocampus_mri_unet3d --data DATA --output my_bundle",
    )
    train.add_argument("--bundle", required=True, help="template: a name, a folder or a zip")
    train.add_argument(
        "--data",
        "--images",
        dest="data",
        type=Path,
        required=True,
        help="folder with images/ and labels/, or images (then --labels), or DICOM series with SEG or RTSTRUCT",
    )
    _add_labels(train)
    train.add_argument("--output", type=Path, required=True, help="the trained bundle; an unfinished run in it goes on")
    train.add_argument("--splits", type=Path, help="who trains, selects, calibrates and tests (splits.json)")
    train.add_argument("--epochs", type=int, help="length of the training (default: the bundle's)")
    train.add_argument("--seed", type=int, help="of windows, augmentation and weights (default: the bundle's)")
    train.add_argument("--learning-rate", type=float, help="largest learning rate (default: the bundle's)")
    train.add_argument(
        "--precision", choices=("auto", "bf16", "f32"), help="auto: bf16 where the device computes it fast"
    )
    train.add_argument("--workers", type=int, help="processes that augment (default: 0, in the training process)")
    train.add_argument(
        "--tracking", choices=("tensorboard", "mlflow", "none"), help="where curves go (default: tensorboard)"
    )
    _add_device(train)

    calibrate = verb(
        "calibrate",
        _calibrate,
        "fit a bundle's calibration on cases that did not train it, and write it into the bundle",
        "monai-unet calibrate --bundle my_bundle --data DATA",
    )
    calibrate.add_argument("--bundle", required=True, help="folder of the bundle; its inference.yaml is rewritten")
    _add_cases(calibrate)
    _add_device(calibrate)

    evaluate = verb(
        "evaluate",
        _evaluate,
        "measure a bundle on labelled cases and write metrics.json, cases.csv and report.html",
        "monai-unet evaluate --bundle my_bundle --images DIR --labels DIR --output OUT",
    )
    evaluate.add_argument("--bundle", required=True, help="a name, a folder or a zip")
    _add_cases(evaluate)
    evaluate.add_argument("--output", type=Path, required=True, help="folder for the report")
    evaluate.add_argument("--tta", action="store_true", help="average over mirror images")
    _add_device(evaluate)

    predict = verb(
        "predict",
        _predict,
        "segment an image, a DICOM series, or a folder of cases",
        "monai-unet predict --bundle hippocampus_mri_unet3d --input SERIES --output OUT --format nifti,seg,sr,rtstruct",
    )
    predict.add_argument("--bundle", required=True, help="a name, a folder or a zip")
    predict.add_argument(
        "--input", type=Path, required=True, help="NIfTI, DICOM file or folder, picture, or a folder of cases"
    )
    predict.add_argument("--output", type=Path, required=True, help="folder for the results")
    predict.add_argument(
        "--format", default="nifti", help="comma-separated: nifti, seg, sr, rtstruct, png (default: nifti)"
    )
    predict.add_argument("--probabilities", action="store_true", help="add <case>_prob.nii.gz, channels last")
    predict.add_argument("--dicom-source", type=Path, help="the DICOM series that a NIfTI input was made from")
    predict.add_argument("--dicomize", action="store_true", help="write a converted DICOM series for a NIfTI input")
    predict.add_argument("--series", help="SeriesInstanceUID, where a DICOM folder holds several")
    predict.add_argument("--tta", action="store_true", help="average over mirror images")
    _add_device(predict)

    verb("bundles", _bundles, "list the bundles that a name can stand for", "monai-unet bundles")
    verb("doctor", _doctor, "say what this installation and machine can do", "monai-unet doctor")
    return parser


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=Path, help="folder of labels named as their images")
    parser.add_argument("--label-suffix", default="", help="what a label's name has that its image's has not")


def _add_cases(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--data", type=Path, help="folder with images/ and labels/, or DICOM series with SEG or RTSTRUCT"
    )
    where.add_argument("--images", type=Path, help="folder of images, with --labels or --label-suffix")
    _add_labels(parser)
    parser.add_argument(
        "--splits", type=Path, help="a splits.json (default: the plan that the bundle was trained with)"
    )
    parser.add_argument(
        "--partition",
        choices=("train", "selection", "calibration", "test", "all"),
        help="which cases of the plan (default: only those that the bundle has not seen)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, mps or cpu (default: what is there)")


if __name__ == "__main__":
    sys.exit(main())

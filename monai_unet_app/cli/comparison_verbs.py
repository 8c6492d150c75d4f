"""The verbs that read evaluations again: compare, gate, subgroups; the first two make them where they are not there."""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from monai_unet_app.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REFUSED,
    Answer,
    check_writable,
    labelled_cases,
    loaded_bundle,
)
from monai_unet_app.cli.show import (
    comparison_table,
    gate_lines,
    line,
    problems_list,
    progress,
    say,
    subgroup_tables,
)
from monai_unet_app.errors import InputRefusedError, UsageError


@dataclass(frozen=True)
class Sides:
    """The two that are compared: name to bundle for those that must be evaluated, name to folder for those that are."""

    bundles: Mapping[str, str]
    evaluations: Mapping[str, Path]


def compare(options: argparse.Namespace) -> Answer:
    """Compare two evaluations, or two bundles, pair by pair on the same cases.

    Example: monai-unet compare --first OLD_REPORT --second NEW_REPORT --output OUT
    """
    from monai_unet_app.comparison import compare as compare_evaluations
    from monai_unet_app.comparison import is_evaluation, write_comparison

    sources = {"first": options.first, "second": options.second}
    done = {name: Path(source) for name, source in sources.items() if is_evaluation(Path(source))}
    sides = Sides({name: source for name, source in sources.items() if name not in done}, done)
    with _place_for(options) as folder:
        problems = _evaluate_missing(options, sides, folder)
        found = compare_evaluations(*_folders(sides, folder, *sources), common=options.common)
    files = write_comparison(found, options.output) if options.output else ()
    if not options.json:
        comparison_table(found)
        for file in files:
            line(f"wrote {file}")
        problems_list(problems)
    answer = {**found.as_dict(), "files": [str(file) for file in files], "problems": problems}
    return answer, EXIT_REFUSED if problems else EXIT_DONE


def gate(options: argparse.Namespace) -> Answer:
    """Fail (exit 1) if a bundle is worse than another in Dice, boundary IoU or calibration.

    Example: monai-unet gate --bundle NEW --against OLD --data DATA
    """
    from monai_unet_app.comparison import compare as compare_evaluations
    from monai_unet_app.comparison import gate as judge
    from monai_unet_app.comparison import write_comparison

    sides, margins = _gated(options), _margins(options.margin)
    with _place_for(options) as folder:
        problems = _evaluate_missing(options, sides, folder)
        names = ("old", "new")
        found = compare_evaluations(*_folders(sides, folder, *names), common=options.common, names=names)
    unmeasured = {*found.pairs.first.not_measured, *found.pairs.second.not_measured}
    verdict = judge(found, margins, unmeasured=len(unmeasured))
    files = write_comparison(found, options.output) if options.output else ()
    if not options.json:
        gate_lines(found, verdict)
        for file in files:
            line(f"wrote {file}")
        problems_list(problems)
    answer = {**verdict.as_dict(), "files": [str(file) for file in files], "problems": problems}
    return answer, {"passed": EXIT_DONE, "failed": EXIT_FAILED, "undecided": EXIT_REFUSED}[verdict.state]


def subgroups(options: argparse.Namespace) -> Answer:
    """Show an evaluation's scores by age, sex, device or any other attribute.

    Example: monai-unet subgroups --evaluation REPORT --attributes people.csv --bands age=0,18,65
    """
    from monai_unet_app.comparison import dicom_attributes, read_attributes, write_subgroups
    from monai_unet_app.comparison import subgroups as by_group
    from monai_unet_app.data.cases import find_images

    if options.institution and options.dicom is None:
        raise UsageError(f"--institution {options.institution} says what --dicom tells; with a table, leave it out")
    edges = dict(_bands(text) for text in options.bands)
    known = (
        read_attributes(options.attributes)
        if options.attributes
        else dicom_attributes(find_images(options.dicom), options.institution)
    )
    if options.output:
        check_writable(options.output)
    found = by_group(
        options.evaluation / "cases.csv",
        known,
        edges=edges,
        fewest=options.fewest,
        class_name=options.class_name,
    )
    files = write_subgroups(found, options.output) if options.output else ()
    if not options.json:
        subgroup_tables(found)
        for file in files:
            line(f"wrote {file}")
    return {**found.as_dict(), "files": [str(file) for file in files]}, EXIT_DONE


@contextmanager
def _place_for(options: argparse.Namespace) -> Iterator[Path]:
    """Where evaluations go: --output, or a folder that is forgotten."""
    if options.output:
        check_writable(options.output)
        yield options.output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _gated(options: argparse.Namespace) -> Sides:
    """The old and the new: each a bundle, or an evaluation that is there."""
    bundles = {"old": options.against, "new": options.bundle}
    evaluations = {"old": options.against_evaluation, "new": options.evaluation}
    if any((bundles[name] is None) == (evaluations[name] is None) for name in ("old", "new")):
        raise UsageError(
            "what against what? give --bundle NEW --against OLD --data DIR, or --evaluation NEW --against-evaluation OLD"
        )
    return Sides(
        {name: bundle for name, bundle in bundles.items() if bundle},
        {name: place for name, place in evaluations.items() if place},
    )


def _folders(sides: Sides, folder: Path, first: str, second: str) -> tuple[Path, Path]:
    """Where the evaluations of the two lie."""
    return sides.evaluations.get(first, folder / first), sides.evaluations.get(second, folder / second)


def _evaluate_missing(options: argparse.Namespace, sides: Sides, folder: Path) -> list[str]:
    """Evaluates the bundles into `folder` on the same cases: those that none of them has seen, and the evaluations have.

    Returns:
        The cases that could not be measured, one sentence each.
    """
    has_data = options.data is not None or options.images is not None
    if has_data and not sides.bundles:
        raise UsageError("both are evaluations that are done; leave --data and --images out, or give bundles")
    if not sides.bundles:
        return []
    if not has_data:
        raise UsageError(
            f"{', '.join(sides.bundles.values())}: no evaluation (metrics.json and cases.csv); to evaluate a bundle first, "
            "give --data DIR, or --images DIR and --labels DIR"
        )
    from monai_unet_app.comparison import read_evaluation

    only = [set(read_evaluation(place).table.subjects) for place in sides.evaluations.values()]
    from monai_unet_app.bundle_folder import bundle_files

    roots = {name: bundle_files(source).root for name, source in sides.bundles.items()}
    data = labelled_cases(options)
    from monai_unet_app.config import PredictConfig
    from monai_unet_app.evaluate import LabelledCases, choose_cases, evaluate_cases

    loaded = {name: loaded_bundle(root, options.device) for name, root in roots.items()}
    chosen = {name: choose_cases(bundle, data, options.partition, options.splits) for name, bundle in loaded.items()}
    for name, some in chosen.items():
        say(options)(f"{name}: {some.note}")
    shared = set.intersection(*(set(some.ids) for some in chosen.values()), *only)
    if not shared:
        raise InputRefusedError(
            f"none of {len(data)} case(s) is left that both may be measured on; cases that neither bundle has seen are needed; "
            "give other cases"
        )
    note = f"{len(shared)} of {len(data)} case(s), chosen for both sides of a comparison"
    note += f", partition {options.partition}" if options.partition else ""
    problems = []
    for name, bundle in loaded.items():
        some = chosen[name].only(shared)
        with progress(f"evaluating {name}", len(some.rows), options) as step:
            done = evaluate_cases(
                bundle,
                LabelledCases(some.rows, (options.data or options.images).resolve().name, note, some.seen),
                folder / name,
                run=PredictConfig(tta=options.tta),
                each=step.measured,
            )
        problems += [f"{name}: {problem}" for problem in done.problems]
    return problems


def _margins(text: str | None) -> dict[str, float]:
    """ "0.01" for every figure, or "dice=0.01,ece_band=0.002" for some."""
    from monai_unet_app.comparison import GATED_SCORES

    if text is None:
        return {}
    try:
        if "=" not in text:
            return dict.fromkeys(GATED_SCORES, float(text))
        parts = [part.partition("=") for part in text.split(",")]
        found = {name.strip(): float(value) for name, _, value in parts}
    except ValueError as error:
        raise UsageError(f"--margin {text}: a number, or {'=...,'.join(GATED_SCORES)}=... is needed") from error
    if len(found) < len(parts):
        raise UsageError(f"--margin {text}: a figure stands there twice; one margin for each is needed; take one out")
    return found


def _bands(text: str) -> tuple[str, tuple[float, ...]]:
    """ "age=0,40,60": the attribute and the lower edges of its bands."""
    name, _, edges = text.partition("=")
    try:
        return name.strip(), tuple(float(edge) for edge in edges.split(","))
    except ValueError as error:
        raise UsageError(
            f"--bands {text}: NAME=EDGE,EDGE,... with numbers is needed, such as age=0,40,60,80"
        ) from error

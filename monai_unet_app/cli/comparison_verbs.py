"""The verbs that read evaluations: compare and subgroups. compare makes evaluations that are missing."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from monai_unet_app.cli import common, comparison_tables, flags, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, Answer
from monai_unet_app.errors import InputRefusedError, UsageError


def compare(options: flags.Compare) -> Answer:
    """Compare two evaluations, or two bundles, on the same cases; pair by pair. --fail-if-worse: exit 1 if the second is worse.

    Example: monai-unet compare --first OLD --second NEW --data DATA --fail-if-worse
    """
    from monai_unet_app.comparison import differences
    from monai_unet_app.comparison.comparison_writer import write_comparison
    from monai_unet_app.comparison.release_gate import gate
    from monai_unet_app.report.stored_evaluation import is_evaluation

    margins, names = _margins(options), ("old", "new") if options.fail_if_worse else ("first", "second")
    sources = dict(zip(names, (options.first, options.second), strict=True))
    evaluations = {name: Path(source) for name, source in sources.items() if is_evaluation(Path(source))}
    bundles = {name: source for name, source in sources.items() if name not in evaluations}
    with _place_for(options) as folder:
        problems = _evaluate_missing(options, bundles, evaluations, folder)
        first, second = (evaluations.get(name, folder / name) for name in names)
        comparison = differences.compare(first, second, common=options.common, names=names)
    code, outcome = EXIT_REFUSED if problems else EXIT_DONE, None
    if options.fail_if_worse:
        unmeasured = {*comparison.pairs.first.not_measured, *comparison.pairs.second.not_measured}
        outcome = gate(comparison, margins, unmeasured=len(unmeasured))
        # Undecided means too few subjects or cases without a measurement: a fault of the data, not of the new bundle.
        code = {"passed": EXIT_DONE, "failed": EXIT_FAILED, "undecided": EXIT_REFUSED}[outcome.state]
    files = write_comparison(comparison, options.output) if options.output else ()
    if outcome:
        comparison_tables.gate_lines(comparison, outcome)
    else:
        comparison_tables.comparison_table(comparison)
    show.wrote(files)
    show.problems_list(problems)
    return {**(outcome or comparison).as_dict(), "files": [str(file) for file in files], "problems": problems}, code


def subgroups(options: flags.Subgroups) -> Answer:
    """Show scores of an evaluation by age, sex, device or any attribute.

    Example: monai-unet subgroups --evaluation REPORT --attributes people.csv --bands age=0,18,65
    """
    from monai_unet_app.comparison.attributes import dicom_attributes, read_attributes
    from monai_unet_app.comparison.comparison_writer import write_subgroups
    from monai_unet_app.comparison.subgroups import subgroups as by_group
    from monai_unet_app.data.case_files import find_images

    if options.institution and options.dicom is None:
        raise UsageError(
            f"--institution {options.institution} is for the headers of --dicom; leave it out, or give --dicom"
        )
    edges = dict(_bands(text) for text in options.bands)
    if options.attributes:
        attributes = read_attributes(options.attributes)
    else:
        assert options.dicom is not None  # the parser requires one of the two
        attributes = dicom_attributes(find_images(options.dicom), options.institution)
    if options.output:
        common.check_writable(options.output)
    table = options.evaluation / "cases.csv"
    groups = by_group(table, attributes, edges=edges, fewest=options.fewest, class_name=options.class_name)
    files = write_subgroups(groups, options.output) if options.output else ()
    comparison_tables.subgroup_tables(groups)
    show.wrote(files)
    return {**groups.as_dict(), "files": [str(file) for file in files]}, EXIT_DONE


@contextmanager
def _place_for(options: flags.Comparison) -> Iterator[Path]:
    """The folder for new evaluations: --output, or a temporary folder."""
    if options.output:
        common.check_writable(options.output)
        yield options.output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _evaluate_missing(
    options: flags.Comparison, bundles: Mapping[str, str], evaluations: Mapping[str, Path], folder: Path
) -> list[str]:
    """Evaluates the bundles into `folder` on the cases that no bundle has seen and every evaluation has.

    Args:
        options: Name the cases.
        bundles: Side -> a bundle that must be evaluated: a name, a folder or a zip.
        evaluations: Side -> folder of its evaluation, for the other sides.
        folder: Gets a folder with the evaluation of each bundle, named as its side.

    Returns:
        The cases that could not be measured, one sentence each.
    """
    has_data = options.data is not None or options.images is not None
    if has_data and not bundles:
        raise UsageError("both are finished evaluations; leave --data and --images out, or give bundles")
    if not bundles:
        return []
    if not has_data:
        raise UsageError(
            f"{', '.join(bundles.values())}: no evaluation (metrics.json and cases.csv); to evaluate a bundle first, "
            "give --data DIR, or --images DIR and --labels DIR"
        )
    from monai_unet_app.report.stored_evaluation import read_evaluation

    measured = [set(read_evaluation(place).table.subjects) for place in evaluations.values()]
    roots = {name: common.trained_bundle(source).root for name, source in bundles.items()}
    data = common.labelled_cases(options)
    from monai_unet_app.config import PredictConfig, ResultSettings
    from monai_unet_app.evaluate import choose_cases, evaluate_cases

    loaded = {name: common.loaded_bundle(root, options.device) for name, root in roots.items()}
    chosen = {name: choose_cases(bundle, data, options.partition, options.splits) for name, bundle in loaded.items()}
    for name, selection in chosen.items():
        show.say(f"{name}: {selection.note}")
    shared = set.intersection(*(set(selection.ids) for selection in chosen.values()), *measured)
    if not shared:
        raise InputRefusedError(
            f"none of {len(data)} case(s) is left on which both may be measured; cases that neither bundle has seen are "
            "needed; give other cases"
        )
    note = f"{len(shared)} of {len(data)} case(s), chosen for both sides of a comparison"
    note += f", partition {options.partition}" if options.partition else ""
    problems = []
    for name, bundle in loaded.items():
        selection = chosen[name].only(shared)
        with show.Steps(f"evaluating {name}", len(selection.rows)) as step:
            done = evaluate_cases(
                bundle,
                replace(selection, name=options.source.resolve().name, note=note),
                folder / name,
                run=PredictConfig(ResultSettings(tta=options.tta)),
                each=step.measured,
            )
        problems += [f"{name}: {problem}" for problem in done.problems]
    return problems


def _margins(options: flags.Compare) -> dict[str, float]:
    """Of --margin: "0.01" for every figure, or "dice=0.01,ece_band=0.002" for some. Checks what goes with --fail-if-worse."""
    text = options.margin
    if options.fail_if_worse and options.partition == "all":
        raise UsageError(
            "--fail-if-worse judges on cases that neither bundle has seen, and --partition all takes others too; leave one out"
        )
    if text is not None and not options.fail_if_worse:
        raise UsageError(f"--margin {text} is of use with --fail-if-worse only; give --fail-if-worse, or leave it out")
    return margins_of(text)


def margins_of(text: str | None) -> dict[str, float]:
    """Score -> tolerated loss, of a text such as "0.01" or "dice=0.01,ece_band=0.002"; {} of None.

    Raises:
        UsageError: The text is not one of these.
    """
    from monai_unet_app.comparison.release_gate import GATED_SCORES

    if text is None:
        return {}
    try:
        if "=" not in text:
            return dict.fromkeys(GATED_SCORES, float(text))
        parts = [part.partition("=") for part in text.split(",")]
        margins = {name.strip(): float(value) for name, _, value in parts}
    except ValueError as error:
        raise UsageError(f"--margin {text}: a number, or {'=...,'.join(GATED_SCORES)}=... is needed") from error
    if len(margins) < len(parts):
        raise UsageError(f"--margin {text}: a figure is named twice; each figure has one margin; leave one out")
    return margins


def _bands(text: str) -> tuple[str, tuple[float, ...]]:
    """ "age=0,40,60": the attribute and the lower edges of its bands."""
    name, _, edges = text.partition("=")
    try:
        return name.strip(), tuple(float(edge) for edge in edges.split(","))
    except ValueError as error:
        raise UsageError(
            f"--bands {text}: NAME=EDGE,EDGE,... with numbers is needed, such as age=0,40,60,80"
        ) from error

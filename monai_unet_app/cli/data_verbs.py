"""The verbs about data: inspect, convert, dicomize, regions."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_unet_app.cli import common, data_flags, inspect_tables, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_REFUSED, Answer
from monai_unet_app.cli.results_of_others import given, write_labels
from monai_unet_app.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicom_io.read import ReadOptions
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.data.case_files import CaseFiles
    from monai_unet_app.data.datalist import LabelFacts
    from monai_unet_app.data.fingerprint import Fingerprint
    from monai_unet_app.data.inspect import Accepted
    from monai_unet_app.data.nnunet_folder import NnunetFolder
    from monai_unet_app.data.strict import Place


def inspect(options: data_flags.Inspect) -> Answer:
    """Describe a data set, and list everything that is wrong with it.

    Example: monai-unet inspect DATA
    """
    from dicom_io.coding import uncoded
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.data.case_files import named_series
    from monai_unet_app.data.examinations import dicom_series, with_cases
    from monai_unet_app.data.inspect import Accepted, inspect_cases
    from monai_unet_app.data.label_names import facts_of_cases

    reading = common.read_options(options)
    known = bundle_files(options.bundle) if options.bundle else None
    series = dicom_series(options.data, reading)
    cases, problems = _find_to_inspect(options, reading, known.channel_names if known else (), has_series=bool(series))
    bundle = common.loaded_bundle(known.root) if known and cases else None
    if bundle:
        cases = bundle.named(cases)
        accepted = Accepted(bundle.rules, tuple(bundle.label_values), bundle.file_values.collapsed)
    else:
        facts = facts_of_cases(cases, options.data)
        cases, accepted, found = _accepted(cases, facts)
        problems += found
    places, plan_problems = _strict_places(options, cases)
    with show.Steps("reading", len(cases)) as step:
        fingerprint = inspect_cases(cases, accepted, step, reading, places=places)
    problems += plan_problems + (differences := _differences(fingerprint, cases, bundle, is_strict=options.strict))
    if bundle and (problem := uncoded(bundle.segments)):
        problems.append(problem)
    rows = with_cases(series, cases, fingerprint.refusals, named_series(reading))
    inspect_tables.series_blocks(rows, with_cases=len(cases) > 1)
    inspect_tables.fingerprint_table(fingerprint.summary())
    inspect_tables.inspect_problems([*problems, *fingerprint.problems], rows)
    answer = fingerprint.as_dict()
    answer["problems"] = [*problems, *answer["problems"]]
    answer["series"] = [row.as_dict() for row in rows]
    refused = (
        fingerprint.refused
        or fingerprint.faults
        or plan_problems
        or differences
        or any(row.is_bad for row in rows)
        or (problems and not cases)
    )
    return answer, EXIT_REFUSED if refused else EXIT_DONE


def _accepted(cases: "list[CaseFiles]", facts: "LabelFacts | None") -> "tuple[list[CaseFiles], Accepted, list[str]]":
    """The cases with what their labels mean by themselves, and what is unclear of it."""
    from monai_unet_app.data.inspect import Accepted
    from monai_unet_app.data.label_names import understood
    from monai_unet_app.data.labels import FileValues, masks_of
    from monai_unet_app.data.structures import stated_ignored

    ignored = stated_ignored(cases, facts)
    values = FileValues(masks=masks_of(cases, len(facts.names) if facts else 0, ignored), ignored=ignored)
    try:
        cases, values = understood(cases, values, {}, facts)
    except InputRefusedError as error:
        return cases, Accepted(values=values), [str(error)]
    return cases, Accepted(values=values), []


def _differences(
    fingerprint: "Fingerprint", cases: "Sequence[CaseFiles]", bundle: "Bundle | None", *, is_strict: bool
) -> list[str]:
    """What keeps the cases from a training together: channels other than those of the bundle, or images of several kinds."""
    from monai_unet_app.data.inspect import check_one_kind
    from monai_unet_app.data.rules import check_channel_names

    try:
        if bundle:
            check_channel_names(((case.id, case.channel_names) for case in cases), bundle.rules)
        if is_strict and fingerprint.cases and not fingerprint.refused:
            check_one_kind(fingerprint)
    except InputRefusedError as error:
        return [str(error)]
    return []


def _find_to_inspect(
    options: data_flags.Inspect, reading: "ReadOptions", channels: tuple[str, ...], *, has_series: bool
) -> "tuple[list[CaseFiles], list[str]]":
    """The cases, and the problems of the whole folder. A problem is raised only if there is nothing else to show."""
    from monai_unet_app.data.case_files import named_series
    from monai_unet_app.data.inspect import find_to_inspect

    try:
        return find_to_inspect(options.data, options.labels, options.label_suffix, named_series(reading), channels)
    except InputRefusedError as error:
        if not has_series and not (options.json and options.data.exists()):
            raise
        return [], [str(error)]


def _strict_places(
    options: data_flags.Inspect, cases: "list[CaseFiles]"
) -> "tuple[dict[str, Place] | None, list[str]]":
    """Where the plan that `train` would take puts each case, None without --strict; and what is wrong with that plan."""
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.data.cases import nnunet_folds_of, places_of, plan_of
    from monai_unet_app.data.splits import trains_by_folds

    if not options.strict:
        if options.splits:
            raise UsageError("--splits is only used with --strict; give --strict, or leave it out")
        return None, []
    own = bundle_files(options.bundle).own_splits if options.bundle else None
    listed = any(case.listed and case.listed.is_placed for case in cases)
    told = options.splits or (own and own.is_file()) or listed or nnunet_folds_of(cases)
    try:
        plan = plan_of(cases, options.splits, own).values() if cases else ()
        return places_of(plan, by_folds=bool(cases) and trains_by_folds(plan, options.data.name)), []
    except InputRefusedError as error:  # too few subjects to deal out are no fault of the data
        return {}, [str(error)] if told else []


def dicomize(options: data_flags.Dicomize) -> Answer:
    """Write NIfTI as DICOM series, or any program's labels as SEG and SR.

    Example: monai-unet dicomize --labels LABELS --source SERIES --algorithm 'TotalSegmentator 2.18' --output OUT
    """
    if (options.source is None) == (options.images is None):
        raise UsageError(
            "images to be written as series (--images), or the series that labels belong to (--source), are needed; give one"
        )
    if options.source is not None:
        return _labels_on_a_series(options, options.source)
    if of_labels := given(options, _OF_SOURCE):
        raise UsageError(f"--{of_labels[0]} is only used with --source; give it, or leave that out")
    assert options.images is not None
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.convert import dicomize_cases
    from monai_unet_app.data.case_files import find_cases, find_images
    from monai_unet_app.data.labels import FileValues

    labelled = bool(options.labels or options.label_suffix)
    if labelled and not options.bundle:
        raise UsageError(
            "--bundle is missing; its segments.json, which names the label values, is needed; give --bundle"
        )
    cases = (
        find_cases(options.images, options.labels, options.label_suffix) if labelled else find_images(options.images)
    )
    files = bundle_files(options.bundle) if labelled and options.bundle else None
    stated = files.inference_document if files else {}
    values = FileValues.parse(stated.get("label_values"), stated.get("ignore_label"))
    values = values.for_structures(len(files.segments) if files else 0)
    common.check_writable(options.output)
    common.say_plain_ids(cases)
    with show.Steps("converting", len(cases)) as step:
        rows, problems = dicomize_cases(
            cases, options.output, files.segments if files else None, step, options.modality or "MR", values
        )
    names = ("id", "series", "seg")
    cells = ([*(row[name] or "-" for name in names), f"{row['max_rounding_error']:.3g}"] for row in rows)
    show.print_table(("case", show.folded("series"), show.folded("labels"), "largest rounding"), cells)
    show.problems_list(problems)
    return {"cases": rows, "problems": problems}, EXIT_REFUSED if problems else EXIT_DONE


_OF_SOURCE = (
    "algorithm", "manual", "structure", "probabilities", "format", "seg_encoding", "uncoded", "looked_at", "deliver_rejected",
    "series", "channels", "time_point", "directions", "resample_gaps", "resample_tilt", "accept_incomplete",
)  # fmt: skip


def _labels_on_a_series(options: data_flags.Dicomize, source: Path) -> Answer:
    """`dicomize --labels --source`."""
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.confidence.results_bundle import results_bundle
    from monai_unet_app.label_results import LabelRequest, Maker

    if options.labels is None or not options.labels.exists():
        raise UsageError("--source needs --labels, a label file or a folder of masks that exists; check the path")
    if of_images := given(options, ("label_suffix", "modality")):
        raise UsageError(f"--{of_images[0]} is only used with --images; leave it out")
    maker = Maker.parse(options.algorithm, manual=options.manual)
    if options.bundle and options.structure:
        raise UsageError("--bundle and --structure both say what label values mean; only one is allowed; leave one out")
    common.check_writable(options.output)
    statements = results_bundle(options.bundle) if options.bundle else None
    segments = bundle_files(options.bundle).segments if options.bundle and statements is None else ()
    told, named = common.set_fields(options, LabelRequest), common.structures(options.structure)
    request = LabelRequest(**told, maker=maker, names=named, segments=segments, statements=statements)
    return write_labels(request, options, source)


def regions(options: data_flags.Regions) -> Answer:
    """Write the structures of a SEG or RTSTRUCT as label files.

    Example: monai-unet regions rtstruct.dcm --image SERIES --roi Liver Tumour --output labels/case_01.nrrd
    """
    from monai_unet_app.convert import label_file

    common.check_writable(options.output.parent)
    reading = replace(common.read_options(options), by_place=options.by_place)
    made = label_file(options.result, options.image, options.roi, options.output, reading)
    titles = {"label": "label", "name": "structure", "voxels": "voxels", "overlapped": "given to a later structure"}
    if "file" in made["regions"][0]:
        titles = {"name": "structure", "voxels": "voxels", "file": "file"}
    cells = ([str(row[key]) for key in titles] for row in made["regions"])
    show.print_table(map(show.folded, titles.values()), cells)
    for note in made["notes"]:
        show.say(f"note on {options.result.name}: {note}")
    if made["shared"]:
        which = "" if "file" in titles else "; the later one counts there"
        show.say(f"{made['shared']} voxel(s) lie in several structures{which}")
    show.wrote([options.output])
    return {"output": str(options.output), **made}, EXIT_DONE


def convert(options: data_flags.Convert) -> Answer:
    """Write labelled cases as a raw folder of nnU-Net; with their positions and the folds of a plan.

    Example: monai-unet convert DATA --to nnunet --output nnUNet_raw/Dataset101_Liver
    """
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.data.case_files import find_data
    from monai_unet_app.data.cases import known_plan
    from monai_unet_app.data.datalist import LabelFacts
    from monai_unet_app.data.label_names import facts_of_cases, understood
    from monai_unet_app.data.labels import FileValues, masks_of
    from monai_unet_app.data.nnunet_folder import NnunetConfig, write_nnunet_folder
    from monai_unet_app.data.structures import stated_ignored

    naming = [f"--{name}" for name in ("bundle", "structure", "objects") if getattr(options, name)]
    if len(naming) > 1:
        raise UsageError(
            f"{' and '.join(naming)} all say what label values mean; only one is allowed; leave the others out"
        )
    files = bundle_files(options.bundle) if options.bundle else None
    stated = files.inference_document if files else {}
    rules = stated.get("input_rules") or {}
    of_channels = rules.get("channel_modality") or []
    modalities = [] if of_channels else rules.get("modality") or []
    told = "objects" if options.objects else stated.get("label_values")
    values = FileValues.parse(told, options.ignore or stated.get("ignore_label")).collapsed
    values = values.for_structures(len(files.segments) if files else 1)
    cases = find_data(options.data, options.labels, options.label_suffix)
    facts = facts_of_cases(cases, options.data)
    if of_channels and not cases[0].channel_names and not (facts and facts.channels):
        facts = replace(facts or LabelFacts({}), channels=tuple(one or "image" for one in of_channels))
    cases = files.named(cases) if files else cases
    regions = common.regions(options.structure) or (facts.regions if facts and not options.structure else {})
    named = {} if regions else common.structures(options.structure)
    if not (files or options.objects):
        ignored = options.ignore or stated_ignored(cases, facts)
        masks = 0 if regions else masks_of(cases, len(named or (facts.names if facts else ())), ignored)
        values = FileValues(regions=tuple(regions.values()), masks=masks, ignored=ignored)
        cases, values = understood(cases, values, named, facts)
    config = NnunetConfig(
        options.output,
        files.structure_names if files else (options.objects,) if options.objects else (),
        values,
        dict(enumerate(regions, 1)) or named or dict(enumerate(cases[0].mask_names, 1)),
        options.modality or (modalities[0] if len(modalities) == 1 else None),
        facts,
        known_plan(cases, options.splits, files.own_splits if files else None),
    )
    common.check_writable(options.output.parent)
    with show.Steps("reading and writing", 2 * len(cases)) as step:
        written = write_nnunet_folder(cases, config, step)
    return _converted(written, options.output), EXIT_DONE


def _converted(written: "NnunetFolder", output: Path) -> "dict[str, Any]":
    """Prints what was written, and gives the answer."""
    rows = [(str(number), name, str(value)) for number, (name, value) in enumerate(written.sources.items(), 1)]
    show.print_table(("label", show.folded("structure"), "value in the data"), rows)
    if set(written.document["channel_names"].values()) == {"image"}:
        show.say("the data do not state the modality; if the images are CT, write them again with --modality CT")
    show.line(f"wrote {output}: {len(written.training)} cases to train, {len(written.test)} to test")
    if written.folds:
        show.line(f"{written.folds} folds: copy splits_final.json to nnUNet_preprocessed/{output.name}")
    counts = {"training": len(written.training), "test": len(written.test), "folds": written.folds}
    return {"output": str(output), **counts, "label_values": written.sources}

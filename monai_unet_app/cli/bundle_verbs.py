"""The verbs about the files of bundles and of this installation: `bundle` and `doctor`."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from monai_unet_app.cli import bundle_flags, common, show
from monai_unet_app.cli.calibrate_verb import calibrate
from monai_unet_app.cli.common import EXIT_DONE, EXIT_FAILED, Answer
from monai_unet_app.cli.dataclass_parser import Options
from monai_unet_app.cli.flags import Calibrate
from monai_unet_app.errors import AppError, InputRefusedError, UsageError

if TYPE_CHECKING:
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.data.case_files import CaseFiles, Row


def bundle(options: Options) -> Answer:
    """Import, export, certify, bench or package a bundle.

    Example: monai-unet bundle export --bundle my_bundle --to openvino
    """
    raise UsageError(
        "bundle alone does nothing; import-nnunet, import-monai, external, export, certify, bench or package is "
        "needed; monai-unet bundle --help"
    )


def import_nnunet(options: bundle_flags.ImportNnunet) -> Answer:
    """Make a bundle of networks that nnU-Net v2 has trained; its labels are nnU-Net's own.

    Example: monai-unet bundle import-nnunet RESULTS --data nnUNet_raw/Dataset004_Hippocampus --output my_bundle
    """
    if options.splits and not options.data:
        raise UsageError("--splits says which fold tested a case, and no cases are named; give --data, or leave it out")
    from monai_unet_app.planning.nnunet_results import Import, bundle_of

    told, folds = common.set_fields(options, Import), tuple(options.fold)
    made = bundle_of(Import(**told, folds=folds, mirroring=not options.no_mirroring))
    origin, folder = made.metadata["nnunet"], shlex.quote(str(options.output))
    several = f"the mean of {len(origin['folds'])} networks" if made.is_ensemble else f"fold {origin['folds'][0]}"
    show.wrote([options.output])
    show.line(f"imported {origin['trainer']}, {origin['configuration']}, {several}")
    answer = {"bundle": str(options.output), "nnunet": origin, "cases": len(made.seen), "folds": len(made.folds)}
    is_unseen = made.folds or any(case.partition == "calibration" for case in made.seen)
    if not options.data or not is_unseen:
        show.line("it states nothing yet: no cases are known that its networks have not seen")
        show.line(f"next: monai-unet calibrate --bundle {folder} --data CASES_THAT_IT_HAS_NOT_SEEN")
        return answer, EXIT_DONE
    calibrated, code = calibrate(Calibrate(bundle=str(options.output), data=options.data))
    return answer | {"calibration": calibrated}, code


def import_monai(options: bundle_flags.ImportMonai) -> Answer:
    """Make a bundle of one in the form of MONAI's model zoo: its network, preprocessing and windows; no code of it is run.

    Example: monai-unet bundle import-monai spleen_ct_segmentation --output my_bundle
    """
    from monai_unet_app.bundle_folder import bundle_root
    from monai_unet_app.planning.zoo_bundles import ZooBundle, bundle_of_zoo

    zoo = ZooBundle(bundle_root(str(options.source)), common.structures(options.structure, least=0))
    made, name = bundle_of_zoo(zoo, options.output), zoo.origin["name"]
    show.wrote([options.output])
    show.line(
        f"imported {name} {zoo.origin['version']}: {zoo.parts['network_def']['_target_']}, {', '.join(zoo.names)}"
    )
    if zoo.differs:
        show.line(f"{zoo.differs}; here probabilities go back, so edges differ by parts of a voxel")
    show.line("it states nothing yet: no cases are known that its network has not seen")
    show.line(
        f"next: monai-unet calibrate --bundle {shlex.quote(str(options.output))} --data CASES_THAT_IT_HAS_NOT_SEEN"
    )
    return {"bundle": str(options.output), "imported": zoo.origin, "sha256": made.sha256}, EXIT_DONE


def external(options: bundle_flags.External) -> Answer:
    """Make a bundle that starts a program of somebody else; its results get what `calibrate --results` has found of them.

    Example: monai-unet bundle external MODEL --command 'TotalSegmentator -i {image} -o {output} --ml' --version-command
    'TotalSegmentator --version' --output my_bundle
    """
    from monai_unet_app.confidence.results_bundle import results_bundle
    from monai_unet_app.external import Command, ExternalBundle, write_external
    from monai_unet_app.planning.write import whole_folder

    model = results_bundle(options.model)
    if model is None:
        raise UsageError(
            f"{options.model} has a network; a bundle that monai-unet calibrate --results wrote is needed, since a result of a "
            "program of which nothing is known would go out like a good one"
        )
    if model.temperature:
        raise UsageError(
            f"{model.name} was fitted to labels with probabilities, and a program that is started gives labels alone; fit it "
            "without --probabilities"
        )
    words, version = (tuple(shlex.split(text)) for text in (options.command, options.version_command))
    limits = options.time, options.memory / 1e9, options.disk / 1e9
    command = Command(words, version, options.labels, *limits)
    with whole_folder(options.output) as root:
        shutil.copytree(model.root, root, dirs_exist_ok=True)
        write_external(model, command, root)
    made = ExternalBundle(options.output)
    show.wrote([options.output])
    show.line(f"it starts {command.words[0]} for at most {command.seconds:g} s an image")
    place = shlex.quote(str(options.output))
    show.line(f"next: monai-unet predict --bundle {place} --trust --input SERIES --output OUT --format seg,sr")
    return {"bundle": str(options.output), "sha256": made.sha256, "words": list(command.words)}, EXIT_DONE


def export(options: bundle_flags.Export) -> Answer:
    """Write the network of a bundle for a faster engine; its answers are held against those of torch.

    Example: monai-unet bundle export --bundle my_bundle --to openvino
    """
    common.check_bundle_folder(options.bundle, "files are written into it")
    if (options.output is not None) != (options.to == "edge"):
        raise UsageError(
            "--output names the new folder of --to edge, and is needed there; other exports go into the bundle"
        )
    is_int8 = options.precision == "int8"
    if (options.data or options.images) and not is_int8:
        raise UsageError("labelled cases are for --precision int8 alone; give it, or leave them out")
    from monai_unet_app.inference.engines.runtimes import imported

    for package in [options.to, *["nncf"] * is_int8] if options.to == "openvino" else ["onnxscript", "onnxruntime"]:
        imported(package)  # now, since the network is exported after cases were read
    data = common.labelled_cases(options) if is_int8 else []
    from monai_unet_app.consent import keeping_consent
    from monai_unet_app.export import export_bundle

    bundle = common.loaded_bundle(common.trained_bundle(options.bundle).root, "cpu")
    rows = _cases_that_made(bundle, data, options.source) if is_int8 else []
    if options.output is not None:
        from monai_unet_app.edge import export_edge

        settings = export_edge(bundle, options.output, rows)
        networks, folder = ", ".join(settings["networks"]), shlex.quote(str(options.output))
        show.line(
            f"wrote {options.output}: {settings['size_mb']:.1f} MB, with the network in {networks}; its labels are ours"
        )
        show.line(f"next: python {folder}/segment.py IMAGE LABELS")
        return settings, EXIT_DONE
    assert options.to != "edge"
    with keeping_consent(bundle.root):
        entry = export_bundle(bundle, options.to, rows)
    same = entry[options.precision]
    show.line(
        f"wrote the export for {entry['made_with']}: its probabilities are {'on average ' if is_int8 else ''}within "
        f"{same['probabilities_apart']:.1g} of those of torch, and {same['labels_changed']} of {same['labels']} labels differ"
    )
    show.line(f"sha256 of the export: {entry['sha256']}")
    common.put_certificate(bundle)
    words = f"--bundle {shlex.quote(options.bundle)} --engine {options.to}"
    if is_int8:
        show.line("it states nothing until bundle certify has passed")
        show.line(f"next: monai-unet bundle certify {words} --precision int8 --data DATA")
    else:
        show.line(f"next: monai-unet predict {words} --input IMAGE --output OUT")
    return entry, EXIT_DONE


def _cases_that_made(bundle: "Bundle", data: "list[CaseFiles]", source: Path) -> "list[Row]":
    """Cases that an int8 network may be quantised on: no test case, so that a certificate on test cases is of new ones."""
    from monai_unet_app.evaluate import choose_cases

    chosen = choose_cases(bundle, data, "all")
    rows = list(chosen.only(chosen.made_with).rows)
    if not rows:
        raise InputRefusedError(
            f"none of the {len(chosen.rows)} case(s) of {source.name} trained, selected or calibrated {bundle.name}; an int8 "
            "network is quantised on such cases, so that others remain for its certificate; give the data that trained it"
        )
    return rows


def certify(options: bundle_flags.Certify) -> Answer:
    """Measure on labelled cases what an engine changes that computes in fewer bits; if little, what the bundle states holds.

    Example: monai-unet bundle certify --bundle my_bundle --data DATA --engine openvino --precision bfloat16
    """
    common.check_bundle_folder(options.bundle, "its models/parity.json is written")
    root, data = common.trained_bundle(options.bundle).root, common.labelled_cases(options)
    from monai_unet_app.certify import certify as certified
    from monai_unet_app.config import ResultSettings
    from monai_unet_app.evaluate import choose_cases
    from monai_unet_app.report.card import check_held_out

    bundle = common.loaded_bundle(root, options.device)
    settings = common.with_engine(ResultSettings(tta=options.tta), bundle, options)
    chosen = choose_cases(bundle, data, options.partition, options.splits)
    check_held_out({row["id"]: row["subject"] for row in chosen.rows}, {}, bundle, options.source)
    show.say(chosen.note)
    with show.Steps("certifying", 2 * len(chosen.rows)) as step:
        entry = certified(bundle, replace(chosen, name=options.source.resolve().name), settings, step.measured)
    rows = (
        [one["score"], one["class"], *(f"{one[name]:.4f}" for name in ("old", "new")), one["outcome"]]
        for one in entry["figures"]
    )
    show.print_table(("score", "of", "float32", settings.precision, ""), rows)
    show.line(
        "; ".join(f"{what} differs in {count} of {entry['cases']} cases" for what, count in entry["changed"].items())
    )
    show.line(f"{settings.engine} in {settings.precision}: {entry['outcome']}; {entry['reason']}")
    common.put_certificate(bundle)
    return entry, EXIT_DONE if entry["outcome"] == "passed" else EXIT_FAILED


def bench(options: bundle_flags.Bench) -> Answer:
    """Time a bundle's network here, by each engine and precision that it can be had in.

    Example: monai-unet bundle bench --bundle my_bundle --size 512x512 --budget 50ms
    """
    files = common.trained_bundle(options.bundle)
    from monai_unet_app.bench import paces, processor
    from monai_unet_app.report.card import CARD, check_marks, put_figures, table

    card = files.root / CARD
    if options.into_bundle:
        common.check_bundle_folder(options.bundle, "its card is rewritten")
        check_marks(card)
        common.check_writable(card.parent)
    bundle = common.loaded_bundle(files.root, options.device)
    size = _size(options.size, bundle) or tuple(bundle.windows.window)
    found, where = [pace.document() for pace in paces(bundle, size, options.rounds)], processor(bundle.device)
    done = [one for one in found if one["why_not"] is None]
    head = ("engine", "precision", "median, ms", "95 %, ms", "a second", "memory, MB", "file, MB")
    rows = [
        [
            one["engine"], one["precision"], f"{1000 * one['p50_s']:.1f}", f"{1000 * one['p95_s']:.1f}",
            f"{1 / one['p50_s']:.1f}", f"{one['memory_mb']:.0f}", f"{one['file_mb']:.1f}",
        ]
        for one in done
    ]  # fmt: skip
    show.print_table(head, rows)
    if options.into_bundle:
        image = f"Time for one image of {' x '.join(map(str, size))} voxels on {where}, {options.rounds} rounds:"
        put_figures([image, "", *table(head, rows)], card, "speed")
        show.wrote([card])
    for one in found:
        if one["why_not"]:
            show.line(f"not {one['engine']} in {one['precision']}: {one['why_not']}")
    is_within = options.budget is None or any(one["p95_s"] <= options.budget for one in done)
    if not is_within:
        show.line(f"no engine answers 95 of 100 images within {1000 * (options.budget or 0):g} ms")
    return {"paces": found, "processor": where, "size": size}, EXIT_DONE if is_within else EXIT_FAILED


def _size(text: str | None, bundle: "Bundle") -> tuple[int, ...] | None:
    """The image of --size, with the axes that the bundle's window has."""
    if text is None:
        return None
    parts, axes = text.split("x"), len(bundle.windows.window)
    if not all(part.isdigit() and int(part) for part in parts) or len(parts) > axes:
        raise UsageError(f"--size {text}: up to {axes} sizes from 1 are needed, such as {'x'.join(['64'] * axes)}")
    return (*map(int, parts), *[1] * (axes - len(parts)))


def doctor(options: bundle_flags.Doctor) -> Answer:
    """Show what this installation can do, and list the bundles.

    Example: monai-unet doctor --bundles
    """
    if options.trusted or options.revoke:
        from monai_unet_app.consent import consent_file, revoke, user_agreed

        if options.revoke:
            revoke(options.revoke)
        known = user_agreed()
        show.print_table(
            ("code digest", "bundle", "since"), [(d[:12], *named.rsplit(", ", 1)) for d, named in known.items()]
        )
        show.line(f"{len(known)} bundle(s) may run code, as {consent_file()} says")
        return {"trusted": known}, EXIT_DONE
    if options.bundles:
        answer = _bundles()
        return answer, EXIT_FAILED if answer["problems"] else EXIT_DONE
    # this import brings torch, as in `train`
    from monai_unet_app.doctor import examine

    rows = examine()
    states = {"ok": Text("ok", "green"), "note": Text("note", "yellow"), "broken": Text("broken", "red")}
    cells = ([row["what"], row["found"], states[row["state"]]] for row in rows)
    show.print_table(("what", show.folded("found"), ""), cells)
    answer = {"checks": rows, **_bundles()}
    return answer, EXIT_FAILED if answer["problems"] or any(row["state"] == "broken" for row in rows) else EXIT_DONE


def _bundles() -> dict[str, Any]:
    """Shows the bundles that a name can stand for, and gives "bundles", a row for each, and "problems", a sentence for each."""
    from monai_unet_app.bundle_folder import bundle_files, bundle_folders
    from monai_unet_app.confidence.results_bundle import results_bundle

    weights = {True: "yes", False: Text("untrained", "yellow"), None: "none"}
    rows, problems = [], []
    for name, folder in bundle_folders().items():
        try:
            stated = results_bundle(folder)  # which has no weights to lack
            bundle = stated or bundle_files(folder)
            task, untrained = bundle.metadata["task"], None if stated else bundle.untrained
            sha256 = None if untrained else bundle.sha256
        except AppError as error:
            problems.append(f"{name}: {error}")
            continue
        row = {"name": name, "version": bundle.version, "task": task, "trained": None if stated else untrained is None}
        rows.append({**row, "sha256": sha256, "untrained": untrained, "folder": str(folder)})
    cells = ([row["name"], row["version"], row["task"], weights[row["trained"]]] for row in rows)
    show.print_table(("bundle", "version", "what it does", "weights"), cells)
    show.line("next: monai-unet predict --bundle NAME --input IMAGE --output OUT")
    for row in rows:
        if row["untrained"]:
            show.line(f"{row['name']} has {row['untrained']}")
    show.problems_list(problems)
    return {"bundles": rows, "problems": problems}

"""Label files of another program and the true ones as a bundle of `kind: results`, which says what such files are worth."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader

from monai_unet_app.bundle_folder import CONFIDENCE
from monai_unet_app.calibration.label_statements import LabelObservations, fitted_temperature
from monai_unet_app.calibration.statement_fit import COVERAGE
from monai_unet_app.confidence import statements
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.confidence.fitted_to import SCHEMA_VERSION
from monai_unet_app.confidence.results_bundle import FITTED_ON, SEGMENTS, TEMPERATURE, ResultsBundle, metadata_of
from monai_unet_app.confidence.statements import Confidence
from monai_unet_app.data.case_files import first_names
from monai_unet_app.data.coding import structure_named
from monai_unet_app.data.digest import image_fingerprint
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.evaluate.label_folders import LabelCase, LabelFolders
from monai_unet_app.planning.write import LICENSE, segments_of, whole_folder

CARD = "docs/README.md"


def bundle_of_results(
    folders: LabelFolders, output: Path, coverage: float = COVERAGE, step: Callable[[str], None] = lambda name: None
) -> tuple[ResultsBundle, Confidence]:
    """Writes the bundle, whole or not at all, and gives it with its statements.

    Args:
        folders: The files; the program was not trained on these cases. Without images nothing is stated that needs edges.
        output: The new bundle.
        coverage: Of intervals and of the gate's bound, 0 to 1.
        step: Called with the id of each case that is measured.

    Raises:
        InputRefusedError: A file is missing or is no label map, a value has no name, or there are too few subjects.
        UsageError: The output exists.
    """
    people = len(set(folders.subjects.values()))
    if people < subjects_needed(coverage):
        raise InputRefusedError(
            f"{len(folders.cases)} case(s) of {people} subject(s) are too few; {statements.too_few_subjects(coverage)}; give "
            "label files of more subjects, or state less by --coverage"
        )
    names, program, count = folders.names(), folders.program, len(folders.cases)
    with whole_folder(output) as root:
        for folder in ("configs", "docs"):
            (root / folder).mkdir()
        structures = [structure_named(name, program.name) for name in names.values()]
        write_json(segments_of(structures, program.name), root / SEGMENTS)
        write_json(metadata_of(program, list(names), people, count), root / "configs/metadata.json")
        bundle, seen = ResultsBundle(root), dict[str, dict[str, str]]()

        def read() -> Iterator[LabelCase]:
            return (folders.read(row, bundle.segments, bundle.values) for row in folders.rows)

        if folders.probabilities:
            temperature = fitted_temperature(read())
            write_json({"schema_version": "1.0", "temperature": temperature}, root / TEMPERATURE)

        def measured() -> Iterator[LabelCase]:
            for case in read():
                seen[case.row["id"]] = {"subject": case.subject, "image": image_fingerprint(case.result.image)}
                yield replace(case, result=bundle.calibrated(case.result, program))
                step(case.row["id"])

        observed = LabelObservations(folders.images is not None)
        observed.collect(measured(), count)
        _check_true(observed, bundle, folders)
        stated = observed.fitted(coverage)
        document = {
            "schema_version": SCHEMA_VERSION,
            "structures": list(bundle.structure_names),
            "settings": {"plain": {**stated.document(), "fitted_to": bundle.fitted_to(program)}},
        }
        write_json(document, root / CONFIDENCE, "confidence", indent=None)
        write_json({"schema_version": "1.0", "cases": seen}, root / FITTED_ON)
        (root / "LICENSE").write_text(LICENSE, encoding="utf-8")
        (root / CARD).write_text(card(folders, stated, bundle, coverage), encoding="utf-8")
    return ResultsBundle(output), stated


def _check_true(observed: LabelObservations, bundle: ResultsBundle, folders: LabelFolders) -> None:
    """Raises InputRefusedError for structures that the true labels never have: all their results would count as wrong."""
    there = {row.structure for row in observed.measured if row.true}
    if absent := [segment.label for segment in bundle.segments if segment.number not in there]:
        raise InputRefusedError(
            f"{folders.labels.name} holds no voxel of {first_names(absent)} in any case; structures with true labels are "
            "needed; name those alone by --structure VALUE=NAME"
        )


def card(folders: LabelFolders, stated: Confidence, bundle: ResultsBundle, coverage: float) -> str:
    """The card of the bundle: what it states, of what it was made, and what it cannot know."""
    ratios = stated.sizes.log_ratios if stated.sizes else {}
    known = [ratios.get(number) or () for number in range(1, len(bundle.values) + 1)]
    texts = [" to ".join(f"{np.exp(ratio):.2f}" for ratio in ends) or "not stated" for ends in known]
    rows = zip(bundle.structure_names, bundle.values, texts, strict=True)
    environment = Environment(loader=PackageLoader(__package__), trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template("results_card.md").render(
        folders=folders, stated=stated, bundle=bundle, rows=rows, coverage=f"{coverage:.0%}"
    )

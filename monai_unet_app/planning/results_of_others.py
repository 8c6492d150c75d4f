"""Label files of another program and the true ones as a bundle of `kind: results`, which says what such files are worth."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import CONFIDENCE
from monai_unet_app.calibration.label_statements import LabelCase, LabelObservations
from monai_unet_app.calibration.statement_fit import COVERAGE
from monai_unet_app.confidence import statements
from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.confidence.fitted_to import SCHEMA_VERSION
from monai_unet_app.confidence.results_bundle import Program, ResultsBundle, metadata_of
from monai_unet_app.confidence.statements import Confidence
from monai_unet_app.data.case_files import CaseFiles, find_images, first_names
from monai_unet_app.data.cases import subjects_of
from monai_unet_app.data.datalist import LabelFacts, read_dataset_json
from monai_unet_app.data.nifti import label_table
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.splits import SplitCase
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.label_results import numbered, placed_labels, structure_named
from monai_unet_app.planning.write import LICENSE, segments_of, whole_folder

CARD = "docs/README.md"


@dataclass(frozen=True)
class ResultsOfOthers:
    """Label files of a program whose truth is known.

    Attributes:
        results: Folder of its label maps, named as the images.
        labels: Folder of the true label maps, with the same names.
        images: Folder of the images; None where they are not at hand. Then nothing that needs edges is stated.
        program: Whose label maps they are; it was not trained on these cases.
        output: The new bundle.
        names: Label value -> name; empty where a label table or a `dataset.json` beside the files says it.
        coverage: Of intervals and of the gate's bound, 0 to 1.
    """

    results: Path
    labels: Path
    images: Path | None
    program: Program
    output: Path
    names: Mapping[int, str] = field(default_factory=dict)
    coverage: float = COVERAGE

    @cached_property
    def facts(self) -> list[LabelFacts]:
        """What every `dataset.json` beside the files says."""
        folders = (self.results, self.labels, self.labels.parent)
        return [facts for folder in folders if (facts := read_dataset_json(folder))]

    @property
    def ignored(self) -> set[int]:
        """Values of voxels without a class."""
        return {facts.ignored for facts in self.facts if facts.ignored is not None}


def bundle_of_results(
    wanted: ResultsOfOthers, step: Callable[[str], None] = lambda name: None
) -> tuple[ResultsBundle, Confidence]:
    """Writes the bundle, whole or not at all, and gives it with its statements.

    Args:
        wanted: The files.
        step: Called with the id of each case that is measured.

    Raises:
        InputRefusedError: A file is missing or is no label map, a value has no name, or there are too few subjects.
        UsageError: The output exists.
    """
    cases = labelled_cases(wanted)
    files, subjects = _results_of(wanted.results, cases), subjects_of(cases)
    people = len(set(subjects.values()))
    if people < subjects_needed(wanted.coverage):
        raise InputRefusedError(
            f"{len(cases)} case(s) of {people} subject(s) are too few; {statements.too_few_subjects(wanted.coverage)}; give "
            "label files of more subjects, or state less by --coverage"
        )
    names = _names(wanted, next(iter(files.values())))
    with whole_folder(wanted.output) as root:
        (root / "configs").mkdir()
        (root / "docs").mkdir()
        structures = [structure_named(name, wanted.program) for name in names.values()]
        write_json(segments_of(structures, wanted.program.name), root / "configs/segments.json")
        write_json(metadata_of(wanted.program, list(names), people, len(cases)), root / "configs/metadata.json")
        bundle, observed = ResultsBundle(root), LabelObservations(wanted.images is not None)
        observed.collect(_measured(cases, files, subjects, bundle, wanted, step), len(cases))
        _check_true(observed, bundle, wanted)
        stated = observed.fitted(wanted.coverage)
        entry = {**stated.document(), "fitted_to": bundle.fitted_to(wanted.program)}
        document = {
            "schema_version": SCHEMA_VERSION,
            "structures": list(bundle.structure_names),
            "settings": {"plain": entry},
        }
        write_json(document, root / CONFIDENCE, "confidence", indent=None)
        _write_splits(cases, subjects, root)
        (root / "LICENSE").write_text(LICENSE, encoding="utf-8")
        (root / CARD).write_text(card(wanted, stated, bundle, len(cases)), encoding="utf-8")
    return ResultsBundle(wanted.output), stated


def labelled_cases(wanted: ResultsOfOthers) -> list[CaseFiles]:
    """The true labels with their images; the true labels alone where there are no images.

    Raises:
        InputRefusedError: A label file has no image. Images without a label do not count.
    """
    labels = find_images(wanted.labels)
    if wanted.images is None:
        return labels
    images = {case.id: case for case in find_images(wanted.images)}
    # nnU-Net numbers the channels of an image; the first shows the edges
    found = [(label, images.get(label.id) or images.get(f"{label.id}_0000")) for label in labels]
    if absent := [label.id for label, image in found if image is None]:
        raise InputRefusedError(
            f"{wanted.images.name} lacks the image of {len(absent)} of {len(labels)} label file(s) ({first_names(absent)}); "
            "one with the name of each is needed, or with _0000 behind it; add them, or leave --images out"
        )
    return [replace(image, id=label.id, label=label.image) for label, image in found if image is not None]


def _results_of(folder: Path, cases: Sequence[CaseFiles]) -> dict[str, Path]:
    """The program's file of each case, in the order of the cases."""
    there = {case.id: case.image for case in find_images(folder)}
    if absent := [case.id for case in cases if case.id not in there]:
        raise InputRefusedError(
            f"{folder.name} lacks results of {len(absent)} of {len(cases)} labelled case(s) ({first_names(absent)}); a file "
            "with the name of each is needed, since cases in which a program fails count, too; add them"
        )
    return {case.id: there[case.id] for case in cases}


def _names(wanted: ResultsOfOthers, result: Path) -> dict[int, str]:
    """Label value -> name, by value. Raises InputRefusedError where nothing says them."""
    found = dict(wanted.names) or label_table(result)
    for facts in wanted.facts:
        found = found or dict(facts.names)
    if not found:
        raise InputRefusedError(
            f"nothing says what the values in {wanted.results.name} mean; name each by --structure VALUE=NAME, or put "
            "nnU-Net's dataset.json beside the files"
        )
    if twice := [name for name, number in Counter(found.values()).items() if number > 1]:
        raise InputRefusedError(
            f"several values of {wanted.results.name} have the name {first_names(twice)}; one name for each is needed, since "
            "tables and reports name structures by it; rename one"
        )
    return dict(sorted(found.items()))


def _measured(
    cases: Sequence[CaseFiles],
    files: Mapping[str, Path],
    subjects: Mapping[str, str],
    bundle: ResultsBundle,
    wanted: ResultsOfOthers,
    step: Callable[[str], None],
) -> Iterator[LabelCase]:
    """Reads the cases one by one."""
    for case in cases:
        image = read_volume(case.image)
        label = case.image if case.label is None else case.label
        result, truth = (_segmentation(file, image, bundle, wanted) for file in (files[case.id], label))
        yield LabelCase(subjects[case.id], result, truth)
        step(case.id)


def _segmentation(file: Path, image: Volume, bundle: ResultsBundle, wanted: ResultsOfOthers) -> Segmentation:
    """The label map of a file on the grid of its image. Values that nobody has named are refused, or left out on request."""
    numbers, _ = placed_labels(file, image)
    values = set(np.unique(numbers).tolist())
    if wanted.ignored & values:
        raise InputRefusedError(
            f"{file.name} holds the value that dataset.json calls ignored; cases in which every voxel has a class are needed; "
            "leave this case out"
        )
    unknown = sorted(values - {0, *bundle.values})
    if unknown and not wanted.names:
        raise InputRefusedError(
            f"{file.name} holds {len(unknown)} value(s) without a name ({first_names(list(map(str, unknown)))}); name those "
            "that are to be judged by --structure VALUE=NAME; the others are then left out"
        )
    return Segmentation(image, numbered(numbers, bundle.values), bundle.segments)


def _check_true(observed: LabelObservations, bundle: ResultsBundle, wanted: ResultsOfOthers) -> None:
    """Raises InputRefusedError for structures that the true labels never have: all their results would count as wrong."""
    there = {row.structure for row in observed.measured if row.true}
    if absent := [segment.label for segment in bundle.segments if segment.number not in there]:
        raise InputRefusedError(
            f"{wanted.labels.name} holds no voxel of {first_names(absent)} in any case; structures with true labels are "
            "needed; name those alone by --structure VALUE=NAME"
        )


def _write_splits(cases: Sequence[CaseFiles], subjects: Mapping[str, str], root: Path) -> None:
    """`configs/splits.json`: the cases that the statements were fitted on."""
    listed = [asdict(SplitCase(case.id, subjects[case.id], "calibration", 0)) for case in cases]
    write_json(
        {"schema_version": "1.0", "datasets": {"data": {"cases": listed}}}, root / "configs/splits.json", "splits"
    )


def card(wanted: ResultsOfOthers, stated: Confidence, bundle: ResultsBundle, cases: int) -> str:
    """The card of the bundle: what it states, of what it was made, and what it cannot know."""
    people = bundle.metadata["fitted_on"]["subjects"]
    lines = [
        f"# What results of {wanted.program} are worth",
        "",
        f"Statements about label files of {wanted.program}, fitted to {cases} results of {people} subjects whose "
        "true labels are known. There is no network here. Whether the program was trained on these cases is not "
        "known here; whoever made this bundle said that it was not.",
        "",
        "| structure | value in the files | true size / size of the mask |",
        "|---|---|---|",
    ]
    for number, (name, value) in enumerate(zip(bundle.structure_names, bundle.values, strict=True), 1):
        ratios = stated.sizes.log_ratios.get(number) if stated.sizes else None
        text = "not stated" if ratios is None else " to ".join(f"{np.exp(ratio):.2f}" for ratio in ratios)
        lines.append(f"| {name} | {value} | {text} |")
    lines += [
        "",
        f"Intervals and bounds hold for {wanted.coverage:.0%} of subjects like these, and for no other version of the program.",
    ]
    lines += [f"- {name}: not stated: {reason}" for name, reason in stated.why_not.items()]
    if stated.gate:
        lines += ["", f"The quality gate looks at {', '.join(stated.gate.features)}."]
    if wanted.images is None:
        lines += [
            "",
            "No image was given: labels of another person, and labels that lie some voxels away, look right to it.",
        ]
    return "\n".join([*lines, ""])

"""The cases of a data set on which a bundle may be measured or calibrated."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from monai_unet_app.bundle import Bundle, SeenCase, load_bundle
from monai_unet_app.confidence.results_bundle import ResultsBundle
from monai_unet_app.data.case_files import CaseFiles, Row, find_data
from monai_unet_app.data.cases import data_row, example_plan, subjects_of
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import check_channel_names
from monai_unet_app.data.splits import SplitCase, read_splits
from monai_unet_app.errors import InputRefusedError

from .label_folders import LabelFolders


@dataclass(frozen=True)
class LabelledCases:
    """Labelled cases, and their description in a report.

    Attributes:
        rows: The cases.
        name: Name of the data set.
        note: How they were selected, or how they relate to the bundle, in words.
        made_with: Id -> partition of the cases that the bundle was made with; without cases of the partition test.
        folds: Id -> the fold that tests the case; empty where the bundle's own network is meant.
    """

    rows: Sequence[Row]
    name: str = ""
    note: str = ""
    made_with: Mapping[str, str] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The ids of the cases."""
        return [row["id"] for row in self.rows]

    @property
    def seen(self) -> dict[str, int]:
        """Partition -> number of cases with which the bundle was made."""
        return _by_partition(self.made_with)

    def only(self, ids: Collection[str]) -> "LabelledCases":
        """The selected cases with one of these ids."""
        made_with = {case: part for case, part in self.made_with.items() if case in ids}
        return replace(self, rows=[row for row in self.rows if row["id"] in ids], made_with=made_with)


def choose_cases(
    bundle: Bundle, cases: Sequence[CaseFiles], partition: str | None = None, splits: Path | None = None
) -> LabelledCases:
    """The cases to measure or calibrate on. Cases that the bundle was made with are taken on request only.

    Args:
        bundle: Its `models/run.json` and `calibration.json` record the cases that it has seen; a plan cannot overrule them.
        cases: The cases of the user.
        partition: One of the partitions of the plan or, without one, of the list of cases (if neither knows any of the cases:
            all cases), "all", or None for every case that the bundle has not seen.
        splits: A plan of the user for the cases that the bundle has not seen.

    Raises:
        InputRefusedError: No case is left.
    """
    check_channel_names(((case.id, case.channel_names) for case in cases), bundle.rules)
    cases = bundle.named(cases)
    plan = read_splits(splits) if splits else example_plan()
    planned = [plan.get(case.id) for case in cases]
    subjects = {**subjects_of(cases), **{entry.id: entry.subject for entry in planned if entry}}
    same_subject = _seen_subjects(bundle, plan)
    # By the image first, since names change (decision 11); then by the subject, as far as both plans know it.
    by_image = [seen_case(bundle, case) for case in cases]
    same_subject |= {subjects[case.id]: known for case, known in zip(cases, by_image, strict=True) if known}
    seen_cases = [known or same_subject.get(subjects[case.id]) for case, known in zip(cases, by_image, strict=True)]
    stated = [
        entry.partition if splits and entry else case.listed.partition if partition and case.listed else None
        for case, entry in zip(cases, planned, strict=True)
    ]
    partitions = [known.partition if known else told for known, told in zip(seen_cases, stated, strict=True)]
    # Without a partition: unseen cases and test cases. A plan that knows none of the cases excludes none of them.
    accepted = {None, "test"} if partition is None else {partition if any(partitions) else None}
    rows, made_with = list[Row](), dict[str, str]()
    left_out: dict[str, list[str]] = {}
    for case, known, own_partition in zip(cases, seen_cases, partitions, strict=True):
        if partition != "all" and own_partition not in accepted:
            left_out.setdefault(own_partition or "cases that the plan does not know", []).append(case.id)
            continue
        rows.append(data_row(case, known.subject if known else subjects[case.id]))
        if known and known.partition != "test":
            made_with[case.id] = known.partition
    note = f"{len(rows)} of {len(cases)} case(s)" + (f", partition {partition}" if partition else "")
    if made_with:
        counts = _by_partition(made_with).items()
        note += "; seen by the bundle: " + ", ".join(f"{count} in {name}" for name, count in counts)
    elif bundle.seen:
        note += "; none of them seen by the bundle"
    if left_out:
        parts = (f"{len(ids)} of {name} ({_shortened(ids)})" for name, ids in sorted(left_out.items()))
        note += "; left out: " + ", ".join(parts)
    if not rows:
        raise InputRefusedError(
            f"{note}: no case is left to work on; give other cases, or "
            + (
                "--folds, with which each case is answered by the network that has not seen it"
                if bundle.folds
                else "--partition all to take them as well"
            )
        )
    return LabelledCases(rows, note=note, made_with=made_with)


def choose_out_of_fold(bundle: Bundle, cases: Sequence[CaseFiles]) -> LabelledCases:
    """The cases that a fold of the bundle tests, each for the network of its fold. Test cases of the bundle are in no fold.

    Raises:
        InputRefusedError: The bundle has no folds, or they have tested none of the cases.
    """
    if not bundle.folds:
        raise InputRefusedError(
            f"{bundle.name} has no folds; networks of a cross-validation are needed; monai-unet train --folds all makes them"
        )
    check_channel_names(((case.id, case.channel_names) for case in cases), bundle.rules)
    cases = bundle.named(cases)
    rows, folds = list[Row](), dict[str, int]()
    for case in cases:
        volume = read_volume(case.files)
        for fold in bundle.folds:
            known = fold.seen_as(volume)
            if known and known.partition == "test" and fold.fold is not None:
                rows.append(data_row(case, known.subject))
                folds[case.id] = fold.fold
    if not rows:
        raise InputRefusedError(
            f"the folds of {bundle.name} have tested none of these cases; give the data that trained it"
        )
    names = ", ".join(str(fold.fold) for fold in bundle.folds)
    note = f"{len(rows)} of {len(cases)} case(s) out of fold: each by the network that has not seen it (folds {names})"
    return LabelledCases(rows, note=note, folds=folds)


def choose_results(folders: LabelFolders, model: ResultsBundle | None, *, seen: bool) -> LabelledCases:
    """Label files to measure. Those of images that `model` was fitted to, and of the same people, are taken on request only.

    Raises:
        InputRefusedError: No case is left.
    """
    fitted = [row["subject"] for row in folders.rows if model and model.has_seen(read_volume(row["image"]))]
    made_with = {row["id"]: "calibration" for row in folders.rows if row["subject"] in fitted}
    rows = [row for row in folders.rows if seen or row["id"] not in made_with]
    note = f"{len(rows)} of {len(folders.rows)} result(s) of {folders.program}"
    if model and made_with:
        note += f"; {model.name} was fitted to {len(made_with)} of them" + ("" if seen else ", which are left out")
    elif model and folders.images is None:
        note += f"; whether {model.name} was fitted to them is known by the label files alone"
    elif model:
        note += f"; {model.name} was fitted to none of them"
    if not rows:
        raise InputRefusedError(f"{note}: no case is left; give other cases, or --partition all to take them as well")
    return LabelledCases(rows, note=note, made_with=made_with if seen else {})


class Networks:
    """The network that answers for a case: that of the fold which tests it, or the bundle's own.

    Args:
        bundle: The bundle.
        folds: Id -> fold.
    """

    def __init__(self, bundle: Bundle, folds: Mapping[str, int]) -> None:
        self.bundle, self.folds = bundle, folds
        self._loaded = {fold: bundle.of_fold(fold) for fold in set(folds.values())}

    def of(self, row: Row) -> Bundle:
        """The bundle with that network."""
        return self._loaded[self.folds[row["id"]]] if row["id"] in self.folds else self.bundle


def _by_partition(made_with: Mapping[str, str]) -> dict[str, int]:
    """Partition -> number of cases."""
    return dict(sorted(Counter(made_with.values()).items()))


def _shortened(ids: Sequence[str], most: int = 3) -> str:
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")


def _seen_subjects(bundle: Bundle, plan: Mapping[str, SplitCase]) -> dict[str, SeenCase]:
    """Subject -> a case of the subject that the bundle has seen, where the bundle's plan and this plan agree on the subject.

    A case of a seen subject counts as seen: the other eye of a child whose first eye was trained on, for instance.
    """
    same = (case for case in bundle.seen if case.id in plan and plan[case.id].subject == case.subject)
    # Reversed, so that of several cases of a subject the first in the records counts.
    return {case.subject: case for case in reversed(list(same))}


def seen_case(bundle: Bundle, case: CaseFiles) -> SeenCase | None:
    """The entry of the case in the bundle's records; None if the bundle has not seen the case, or the image cannot be read."""
    if not bundle.seen:
        return None
    try:
        return bundle.seen_as(read_volume(case.files))
    except InputRefusedError:
        return None


def chosen_rows(
    bundle_root: str,
    dataset_dir: str,
    partition: str | None,
    splits: str | None = None,
    label_suffix: str = "",
    labels_dir: str | None = None,
) -> Sequence[Row]:
    """`choose_cases` of a data folder as MONAI's data list, for `evaluate.yaml` and `calibrate.yaml`."""
    cases = find_data(dataset_dir, labels_dir, label_suffix)
    return choose_cases(load_bundle(bundle_root), cases, partition, Path(splits) if splits else None).rows

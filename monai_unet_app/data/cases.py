"""Cases as MONAI's data lists: the subject and the partition of each."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from dicom_io.errors import DicomIoError
from dicom_io.reading.instances import load_dataset
from monai_unet_app.data.case_files import IMAGES_OF_NNUNET, CaseFiles, Row, find_data, find_images, first_names
from monai_unet_app.data.splits import (
    NNUNET_FOLDS,
    Partition,
    SplitCase,
    check_folds,
    check_subjects,
    deal_folds,
    is_nnunet_folds,
    make_split,
    read_nnunet_folds,
    read_splits,
    trains_by_folds,
)
from monai_unet_app.data.strict import FOLD, Place
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.shipped import shipped

ALL: Literal["all"] = "all"
Fold = int | Literal["all"] | None
"""What a training leaves out: the partitions of the plan, a fold, or the test cases only."""

MOST_WATCHED = 4
_EXAMPLE_PLAN = shipped("examples") / "splits.json"
_SIDE = re.compile(r"(.*\d)[ _-]?(L|R|left|right|OD|OS)", re.IGNORECASE)
"""A case's name that ends with a number and a side: the two eyes of a child are Image_01L and Image_01R."""


@cache
def example_plan() -> Mapping[str, SplitCase]:
    """The plan of the examples that are shipped, by case."""
    return MappingProxyType(read_splits(_EXAMPLE_PLAN))


def subjects_of(cases: Sequence[CaseFiles]) -> dict[str, str]:
    """The subject of each case: from a list or the shipped plan that knows it, else by PatientID, else by its name.

    Names that end with a number and a side, and differ in the side alone, are of one subject; any other case is its own. A
    subject that the plan does not name has the name of its first case; a PatientID is written nowhere.
    """
    # The plan knows which two hippocampi or eyes of the examples are of one person; their files have no PatientID
    known = example_plan()
    first: dict[tuple[str, str], str] = {}
    persons = {case.id: _patient(case) for case in cases}
    issuers: dict[str, set[str]] = {}
    for issuer, patient in filter(all, persons.values()):
        issuers.setdefault(patient, set()).add(issuer)
    # An issuer that only some files state is unknown in the others, and no other one
    persons = {
        case: (next(iter(issuers[patient])), patient)
        if not issuer and len(issuers.get(patient, ())) == 1
        else (issuer, patient)
        for case, (issuer, patient) in persons.items()
    }
    return {
        case.id: (case.listed and case.listed.subject)
        or (known[case.id].subject if case.id in known else first.setdefault(persons[case.id], case.id))
        for case in sorted(cases, key=lambda case: case.id)
    }


def _patient(case: CaseFiles) -> tuple[str, str]:
    """A key that all cases of one patient share, and no other case."""
    side = _SIDE.fullmatch(case.id)
    own = ("\0side", f"\0{side[1]}") if side else ("\0case", f"\0{case.id}")  # no PatientID
    if case.header is None:
        return own
    try:
        header = load_dataset(case.header)
    except DicomIoError:  # the file broke after the survey: reading the case gives the reason
        return own
    # A PatientID is unique only within its issuer
    return (str(header.get("IssuerOfPatientID") or ""), str(header.PatientID)) if header.get("PatientID") else own


def plan_of(
    cases: Sequence[CaseFiles], splits: str | Path | None, own: str | Path | None = None
) -> dict[str, SplitCase]:
    """The entry of each case in the given `splits.json`.

    With `splits` None: the partitions that a list of cases tells; else the bundle's own plan, if it knows every case; else the
    folds of nnU-Net (`nnunet_folds_of`); else the shipped plan, if it knows every case; else a new plan over `subjects_of` the
    cases.

    Args:
        cases: Of one data set.
        splits: A plan that must know every case, or a list of folds as nnU-Net writes it.
        own: `configs/splits.json` of a bundle, which may be absent.

    Raises:
        InputRefusedError: The given plan does not know a case, the bundle's own plan knows only some, or a list has one subject
            in two partitions.
    """
    known = known_plan(cases, splits, own)
    return {case.id: case for case in make_split("data", subjects_of(cases))} if known is None else known


def known_plan(
    cases: Sequence[CaseFiles], splits: str | Path | None, own: str | Path | None = None
) -> dict[str, SplitCase] | None:
    """As `plan_of`, but None where no plan knows the cases."""
    if not splits and cases and all(case.listed and case.listed.is_placed for case in cases):
        return _listed_plan(cases)
    beside = nnunet_folds_of(cases) or Path()
    for path in (Path(splits),) if splits else (Path(own or ""), beside, _EXAMPLE_PLAN):
        if is_nnunet_folds(path):
            return read_nnunet_folds(path, subjects_of(cases))
        known = example_plan() if path == _EXAMPLE_PLAN else read_splits(path) if path.is_file() or splits else {}
        unknown = [case.id for case in cases if case.id not in known]
        if not unknown:
            return {case.id: known[case.id] for case in cases}
        if splits or (own and path == Path(own) and len(unknown) < len(cases)):
            raise InputRefusedError(
                f"{path.name} does not know {len(unknown)} of {len(cases)} case(s): {first_names(unknown)}; a place for "
                f"each case is needed; add them{' or leave --splits out' if splits else ', or give --splits'}"
            )
    return None


def nnunet_folds_of(cases: Sequence[CaseFiles]) -> Path | None:
    """nnU-Net's `splits_final.json` of a raw folder (imagesTr): in it, or in its folder of preprocessed data."""
    folders = {case.image.parent for case in cases}
    if len(folders) != 1 or (images := folders.pop()).name != IMAGES_OF_NNUNET:
        return None
    raw = images.absolute().parent
    found = (folder / NNUNET_FOLDS for folder in (raw, raw.parent.parent / "nnUNet_preprocessed" / raw.name))
    return next(filter(Path.is_file, found), None)


def _listed_plan(cases: Sequence[CaseFiles]) -> dict[str, SplitCase]:
    """The plan that a list of cases tells: its partitions, and folds, which are dealt out where it does not tell them.

    Where it tells folds alone, every case trains.
    """
    subjects, where = subjects_of(cases), "the list of cases"
    dealt = deal_folds("data", subjects)
    plan = {}
    for case in cases:
        if (listed := case.listed) is not None:
            fold = dealt[case.id] if listed.fold is None else listed.fold
            plan[case.id] = SplitCase(case.id, subjects[case.id], listed.partition or "train", fold)
    check_subjects(plan.values(), where)
    if all(case.listed and (case.listed.fold is not None or case.listed.partition == "test") for case in cases):
        check_folds(plan.values(), where)
        if not any(case.listed and case.listed.partition for case in cases):
            trains_by_folds(plan.values(), where, wanted=True)
    return plan


def places_of(plan: Iterable[SplitCase], *, by_folds: bool) -> dict[str, Place]:
    """What each case must be kept apart from: the other partitions; the other folds and the test cases if folds are trained.

    Args:
        plan: The entry of each case.
        by_folds: Whether folds are trained, as `trains_by_folds`.
    """
    return {
        entry.id: Place(
            f"{FOLD}{entry.fold}" if by_folds and entry.partition != "test" else entry.partition, entry.subject
        )
        for entry in plan
    }


def image_rows(folder: str | Path) -> list[dict[str, str]]:
    """`find_images` as MONAI's data list: {"image", "id"}."""
    return [{"image": str(case.image), "id": case.id} for case in find_images(Path(folder))]


def by_partition(
    dataset_dir: str | Path,
    splits: str | Path | None = None,
    label_suffix: str = "",
    labels_dir: str | Path | None = None,
    fold: Fold = None,
    own_splits: str | Path | None = None,
) -> dict[Partition, list[dict[str, Any]]]:
    """Cases of a data folder by partition, as MONAI's data lists: {"image", "label", "id", "subject"}.

    Args:
        dataset_dir: As in `find_data`.
        splits: A `splits.json`; None as in `plan_of`.
        label_suffix: As in `find_cases`.
        labels_dir: As in `find_data`.
        fold: None takes the partitions. A number (0 to 4), for cross-validation: the cases of this fold test, test cases are
            left out, and all others train. "all": all but the test cases train.
        own_splits: `configs/splits.json` of the bundle, which may be absent; as `own` of `plan_of`.
    """
    return PlannedCases.find(dataset_dir, labels_dir, label_suffix, splits, own_splits).rows(fold)


@dataclass(frozen=True)
class PlannedCases:
    """The cases of a data folder, with the place of each in the plan. Finding them may read the headers of many files.

    Attributes:
        cases: The cases.
        plan: The entry of each, by its id.
    """

    cases: Sequence[CaseFiles]
    plan: Mapping[str, SplitCase]

    @classmethod
    def find(
        cls,
        dataset_dir: str | Path,
        labels_dir: str | Path | None = None,
        label_suffix: str = "",
        splits: str | Path | None = None,
        own_splits: str | Path | None = None,
    ) -> "PlannedCases":
        """Arguments as of `by_partition`, errors as of `find_data` and `plan_of`."""
        cases = find_data(dataset_dir, labels_dir, label_suffix)
        return cls(cases, plan_of(cases, splits, own_splits))

    def rows(self, fold: Fold = None) -> dict[Partition, list[dict[str, Any]]]:
        """As `by_partition`."""
        rows: dict[Partition, list[dict[str, Any]]] = {part: [] for part in get_args(Partition)}
        for case in self.cases:
            if (part := _partition_of(self.plan[case.id], fold)) is not None:
                rows[part].append(data_row(case, self.plan[case.id].subject))
        return rows


def _partition_of(entry: SplitCase, fold: Fold) -> Partition | None:
    if fold is None or (fold == ALL and entry.partition == "test"):
        return entry.partition
    if entry.partition == "test":  # no fold sees what the whole bundle is tested on
        return None
    return "test" if entry.fold == fold else "train"


def watched(cases: Mapping[Partition, Sequence[Row]], fold: Fold = None) -> list[Row]:
    """Cases whose curves a training shows: those that select its weights; else the first of its fold, or of those that train.

    A fold selects nothing on the cases that it tests: its last weights are taken.
    """
    return list(cases["selection"] or cases["train" if fold == ALL else "test"][:MOST_WATCHED])


def data_row(case: CaseFiles, subject: str) -> dict[str, Any]:
    """One entry of a MONAI data list."""
    images, labels = [str(file) for file in case.files], [str(case.label), *map(str, case.masks)]
    row = {"image": images if case.channels else images[0], "label": labels if case.masks else labels[0]}
    named = {"channels": list(case.channel_names)} if case.channels and case.channel_names else {}
    values = {"label_values": list(case.label_values)} if case.label_values else {}
    return {**row, "id": case.id, "subject": subject, **named, **values}

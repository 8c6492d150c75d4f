"""Which series of a study the bundle of a package is meant for.

A node's rule and a package choose in the same way (`data.selection`): by patterns of headers and a least number of images.
Here the modality that the bundle was made for is a pattern too, and of several series that fit, those of another size or grid
than the bundle was made for are passed by, as long as one of the study remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dicom_io.errors import DicomIoError
from dicom_io.reading.series import SeriesRef, files_below, survey_files
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.cases import CaseFiles
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.data.rules import InputRules, check_rules
from monai_unet_app.data.selection import compiled, misfits
from monai_unet_app.deploy.settings import Settings
from monai_unet_app.errors import InputRefusedError


@dataclass(frozen=True)
class Picked:
    """What is segmented, and what is not.

    Attributes:
        cases: Every case, with how it is read.
        passed_by: A line for each series of a study that is not meant, and why.
    """

    cases: tuple[tuple[CaseFiles, PredictConfig], ...]
    passed_by: tuple[str, ...]


@dataclass(frozen=True)
class _Series:
    """A series of a case, as far as it can be told apart; `parts` is empty for what is no DICOM, or cannot be read."""

    case: CaseFiles
    run: PredictConfig
    parts: tuple[SeriesRef, ...] = ()

    @property
    def study(self) -> str:
        return self.parts[0].study_instance_uid if self.parts else ""

    @property
    def name(self) -> str:
        return f"series {self.parts[0].series_instance_uid} ({self.parts[0].modality})" if self.parts else self.case.id


def pick(cases: Iterable[CaseFiles], rules: InputRules, settings: Settings) -> Picked:
    """Every series that the bundle is meant for.

    Args:
        cases: What was found in the input.
        rules: What the bundle was made for.
        settings: `match` and `least_instances`, and how cases are read.

    Raises:
        InputRefusedError: A study holds several series, and none fits `match`, `least_instances` or the bundle's modality.
    """
    found = [one for case in cases for one in _series_of(case, settings)]
    chosen, passed_by = [], []
    for study in dict.fromkeys(one.study for one in found):
        several = [one for one in found if one.study == study]
        if not study or (len(several) == 1 and not settings.match):
            chosen += several
            continue
        taken, left = _by_headers(several, rules, settings)
        made_for, other = _by_grid(taken, rules)
        chosen += made_for
        passed_by += left + other
    return Picked(tuple((one.case, one.run) for one in chosen), tuple(passed_by))


def _series_of(case: CaseFiles, settings: Settings) -> list[_Series]:
    run = settings.run
    if has_ending(case.image, VOLUME_ENDINGS + PICTURE_ENDINGS):
        return [_Series(case, run)]
    try:
        scan = survey_files(_files(case.image))
    except DicomIoError:
        return [_Series(case, run)]  # its reading says what is wrong
    images: dict[str, list[SeriesRef]] = {}
    for one in scan.series:
        if one.kind == "image" and not one.set_aside:
            images.setdefault(one.series_instance_uid, []).append(one)
    if scan.broken or not images or "" in images:
        return [_Series(case, run)]
    if len(images) == 1:
        return [_Series(case, run, tuple(parts)) for parts in images.values()]
    return [
        _Series(
            replace(case, id=f"{case.id}_{number}"),
            replace(run, reading=replace(run.reading, series_instance_uid=uid)),
            tuple(parts),
        )
        for number, (uid, parts) in enumerate(images.items(), start=1)
    ]


def _files(image: Path) -> list[Path]:
    return files_below(image) if image.is_dir() else [image]


def _by_headers(several: Sequence[_Series], rules: InputRules, settings: Settings) -> tuple[list[_Series], list[str]]:
    match = compiled(settings.match)
    if rules.modality and "Modality" not in match:
        match |= compiled({"Modality": f"^({'|'.join(rules.modality)})$"})
    wrong = [misfits(one.parts[0], match, settings.least_instances) for one in several]
    taken = [one for one, why in zip(several, wrong, strict=True) if not why]
    told = [f"{one.name}: {' and '.join(why)} is wanted" for one, why in zip(several, wrong, strict=True) if why]
    if not taken:
        raise InputRefusedError(
            f"none of the {len(several)} series of a study is one that this package takes: {'; '.join(told)}; send the right "
            "study, or correct the settings match and least_instances"
        )
    return taken, told


def _by_grid(taken: list[_Series], rules: InputRules) -> tuple[list[_Series], list[str]]:
    """Those that the bundle was made for; all of them, to be refused with their reasons, where that is none."""
    if len(taken) == 1:
        return taken, []
    made_for, told = [], []
    for one in taken:
        try:
            volume = read_volume(one.case.image, one.run.reading)
        except InputRefusedError:
            made_for.append(one)  # perhaps the one that is meant: its reading refuses it, and that must be seen
            continue
        try:
            check_rules(volume, rules, "it")
            made_for.append(one)
        except InputRefusedError as error:
            told.append(f"{one.name}: {error}")
    return (made_for, told) if made_for else (taken, [])

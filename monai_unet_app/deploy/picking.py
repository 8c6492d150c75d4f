"""Picks the series of a study that the bundle of a package is made for.

A rule of a node and a package pick in the same way (`data.selection`): by patterns of headers and a least number of images. A
package also compares the modality with that of the bundle. If several series match, a package leaves out those with a size or
grid that the bundle is not made for, unless no series would remain.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dicom_io.errors import DicomIoError
from dicom_io.reading.series import SeriesRef, files_at, survey_files
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.data.rules import InputRules, check_rules
from monai_unet_app.data.selection import compiled, misfits, series_for_channel
from monai_unet_app.deploy.settings import Settings
from monai_unet_app.errors import InputRefusedError, UsageError


@dataclass(frozen=True)
class Picked:
    """The cases to segment.

    Attributes:
        cases: Every case with the settings for reading it.
        passed_by: A line with the reason for each series that was left out.
    """

    cases: tuple[tuple[CaseFiles, PredictConfig], ...]
    passed_by: tuple[str, ...]


@dataclass(frozen=True)
class _Series:
    """A series of a case. `parts` is empty for a file that is no DICOM or cannot be read."""

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
    """Every series that the bundle is made for.

    Args:
        cases: The cases in the input.
        rules: What the bundle is made for.
        settings: `match` and `least_instances`, and how cases are read.

    Raises:
        InputRefusedError: None of several series of a study matches `match`, `least_instances` and the bundle's modality, or a
            channel of the bundle has no series, or more than one.
        UsageError: `match_channels` names other channels than the bundle.
    """
    needed = rules.channel_names[1:]
    if settings.match_channels and tuple(settings.match_channels) != needed:
        raise UsageError(
            f"match_channels has patterns for {', '.join(settings.match_channels)}; {', '.join(needed) or 'none'}, in this "
            "order, are the channels after the first of the bundle; correct it"
        )
    all_series = [series for case in cases for series in _series_of(case, settings)]
    picked, passed_by = [], []
    for study in dict.fromkeys(series.study for series in all_series):
        of_study = [series for series in all_series if series.study == study]
        if not study or (len(of_study) == 1 and not settings.match):
            picked += of_study
            continue
        matching, without_match = _by_headers(of_study, rules, settings)
        whole = [_with_channels(series, of_study, settings) for series in matching]
        suitable, unsuitable = _by_grid(whole, rules)
        picked += suitable
        used = {uid for series in suitable for uid in series.run.reading.channels}
        passed_by += [line for line in without_match + unsuitable if not any(f"series {uid} " in line for uid in used)]
    return Picked(tuple((series.case, series.run) for series in picked), tuple(passed_by))


def _series_of(case: CaseFiles, settings: Settings) -> list[_Series]:
    run = settings.run
    if has_ending(case.image, VOLUME_ENDINGS + PICTURE_ENDINGS):
        return [_Series(case, run)]
    try:
        scan = survey_files(files_at(case.image))
    except DicomIoError:
        return [_Series(case, run)]  # reading the case will report what is wrong
    images: dict[str, list[SeriesRef]] = {}
    for part in scan.series:
        if part.kind == "image" and not part.set_aside:
            images.setdefault(part.series_instance_uid, []).append(part)
    # Such a folder is not divided into series: reading it as a whole reports the fault.
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


def _by_headers(of_study: Sequence[_Series], rules: InputRules, settings: Settings) -> tuple[list[_Series], list[str]]:
    """The series whose headers match, and a line for each other series."""
    match = compiled(settings.match)
    # A pattern of the site takes precedence over the modality of the bundle.
    if rules.modality and "Modality" not in match:
        match |= compiled({"Modality": f"^({'|'.join(rules.modality)})$"})
    pairs = [(series, misfits(series.parts[0], match, settings.least_instances)) for series in of_study]
    matching = [series for series, reason in pairs if not reason]
    lines = [f"{series.name}: {' and '.join(reason)} is wanted" for series, reason in pairs if reason]
    if not matching:
        raise InputRefusedError(
            f"none of the {len(of_study)} series of a study fits this package: {'; '.join(lines)}; send the right "
            "study, or correct the settings match and least_instances"
        )
    return matching, lines


def _with_channels(series: _Series, of_study: Sequence[_Series], settings: Settings) -> _Series:
    """A picked series, read with those of the further channels."""
    if not settings.match_channels:
        return series
    beside = [part for other in of_study for part in other.parts]
    uids = [series.parts[0].series_instance_uid]
    for name, patterns in settings.match_channels.items():
        found = series_for_channel(beside, uids[0], compiled(patterns))
        if len(found) != 1:
            raise InputRefusedError(
                f"{len(found)} series of the study are for the channel {name}, in the frame of reference of {series.name}; one "
                "is needed; send the missing series, or let match_channels say which is meant"
            )
        uids += found
    reading = replace(series.run.reading, series_instance_uid=None, channels=tuple(uids))
    folder = Path(
        os.path.commonpath([other.case.image for other in of_study])
    )  # series may lie in folders of their own
    return replace(series, case=replace(series.case, image=folder), run=replace(series.run, reading=reading))


def _by_grid(matching: list[_Series], rules: InputRules) -> tuple[list[_Series], list[str]]:
    """The series whose grid the bundle is made for, and a line for each other series.

    If no series has such a grid, all of them are given back, so that each is refused with its reason.
    """
    # A single series is not passed by for its grid: the prediction refuses it, with the reason.
    if len(matching) == 1:
        return matching, []
    suitable, lines = [], []
    for series in matching:
        try:
            volume = read_volume(series.case.files, series.run.reading)
        except InputRefusedError:
            suitable.append(series)  # it may be the intended series: its refusal must be reported
            continue
        try:
            check_rules(volume, rules, "it")
            suitable.append(series)
        except InputRefusedError as error:
            lines.append(f"{series.name}: {error}")
    return (suitable, lines) if suitable else (matching, [])

"""Picks the series of a study that the bundle of a package is made for.

A rule of a node and a package pick in the same way (`data.selection`): by patterns of headers and a least number of images. A
package also compares the modality with that of the bundle. If several series match, a package leaves out those with a size or
grid that the bundle is not made for, unless no series would remain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dicom_io.errors import DicomIoError
from dicom_io.reading.series import SeriesRef, files_at, survey_files
from monai_unet_app.config import PredictConfig
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.data.rules import InputRules, check_rules
from monai_unet_app.data.selection import compiled, misfits
from monai_unet_app.deploy.settings import Settings
from monai_unet_app.errors import InputRefusedError


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
        InputRefusedError: None of several series of a study matches `match`, `least_instances` and the bundle's modality.
    """
    all_series = [series for case in cases for series in _series_of(case, settings)]
    picked, passed_by = [], []
    for study in dict.fromkeys(series.study for series in all_series):
        of_study = [series for series in all_series if series.study == study]
        if not study or (len(of_study) == 1 and not settings.match):
            picked += of_study
            continue
        matching, without_match = _by_headers(of_study, rules, settings)
        suitable, unsuitable = _by_grid(matching, rules)
        picked += suitable
        passed_by += without_match + unsuitable
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

"""The studies that a site acceptance sends: phantoms for archives, and example cases for the rules of a node.

Every study gets new UIDs, and a PatientName and PatientID that begin with COMMISSION. An example given by the user is
de-identified first (PS3.15 Annex E). The headers that a rule asks for are made from the patterns of the rule.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from re import _constants as sre  # type: ignore[attr-defined]  # no public parser of patterns exists
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np
from nibabel.affines import from_matvec
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from dicom_io.channels import joined
from dicom_io.coding import Segment, load_segments
from dicom_io.confidentiality.pseudonyms import new_key
from dicom_io.deidentify import deidentify, files_of
from dicom_io.dicomize import dicomize
from dicom_io.read import read_series
from dicom_io.reading.instances import load_dataset, read_instance
from dicom_io.reading.series import survey_files
from dicom_io.volume import Provenance, Volume
from monai_unet_app.data.selection import text_of
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service.site import Rule
from monai_unet_app.shipped import shipped

PATIENT = "COMMISSION"
"""The beginning of PatientName and PatientID in all objects that are sent."""

ORIENTATIONS = ("axial", "sagittal", "coronal", "oblique", "feet first")
Axes = tuple[int, int, int]
AXES: tuple[Axes, ...] = ((0, 1, 2), (2, 0, 1))
"""Orders of the array axes in which an example is sent: the same anatomy, acquired in two orientations."""

_IDENTITY = ("PatientName", "PatientID")
_OF_ONE_STUDY = (
    *_IDENTITY,
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "StudyDescription",
    "StudyDate",
    "StudyTime",
    "StudyID",
)
_DESCRIPTION = {"StudyDescription": "Site acceptance, no patient"}
_PIXEL_GROUP = 0x0028
_FIXED = {
    "SOPClassUID", "Modality", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient",
}  # fmt: skip
"""Attributes that describe the pixels and their place: no values are made for them to match a rule."""


@dataclass(frozen=True)
class Study:
    """A study on the disk.

    Attributes:
        uid: StudyInstanceUID.
        files: The files to send.
        series: Those of its images, a series for each channel.
        labels: Shape (I, J, K): the labels of its SEG, on the grid of the series; None if it has no SEG.
    """

    uid: str
    files: tuple[Path, ...]
    series: tuple[tuple[Path, ...], ...] = ()
    labels: Volume | None = None

    @property
    def image(self) -> Volume:
        """Its images, as `read_series` or `read_channels` reads them."""
        volumes = [read_series(files) for files in self.series]
        return joined(volumes) if len(volumes) > 1 else volumes[0]


@dataclass(frozen=True)
class Example:
    """An image for a rule.

    Attributes:
        source: NIfTI file, DICOM file, or folder with one DICOM series.
        is_shipped: The example is part of this program; the user named none.
        headers: DICOM keyword -> value that the example gets; no UIDs, and a name or ID only if it begins with `PATIENT`.
    """

    source: Path
    is_shipped: bool
    headers: Mapping[str, str]

    @property
    def is_dicom(self) -> bool:
        """Whether the example is DICOM already."""
        return self.source.is_dir() or read_instance(self.source) is not None


def shipped_example(headers: Mapping[str, str]) -> Example:
    """The first example case of this program: a T1 MR crop around the hippocampus."""
    return Example(min((shipped("examples") / "msd_hippocampus" / "images").iterdir()), True, headers)


def phantom_study(orientation: str, folder: Path) -> Study:
    """A phantom in one of ORIENTATIONS as an MR series with the SEG of its labels."""
    labels, case_id = labels_of(orientation), uuid.uuid4().hex
    case = dicomize(phantom(orientation), folder, labels=labels, segments=_SEGMENTS, case_id=case_id)
    assert case.seg is not None
    images, patient = sorted(case.series_folder.glob("*.dcm")), _new_patient(f"phantom {orientation}")
    header = _with_headers([*images, case.seg], patient)
    return Study(str(header.StudyInstanceUID), (*images, case.seg), (tuple(images),), case.labels)


def example_study(examples: Sequence[tuple[Example, Rule]], folder: Path, axes: Axes) -> Study:
    """An example for each channel as a study for a rule, with new UIDs each time.

    Args:
        examples: Each example with the rule whose patterns decide which headers it needs, see `rules_of_channels`.
        folder: Folder for the files; must not exist yet.
        axes: Order of the array axes; the axes of a DICOM example stay as they are.

    Returns:
        All series have one patient, study and frame of reference: that examples of several channels lie in one space is taken
        from the user.

    Raises:
        InputRefusedError: No header can be made that matches the rule, or an example cannot be used.
        DicomIoError: An example cannot be read.
    """
    patient, shared, series = _new_patient(f"example for {examples[0][1].name}"), dict[str, str](), []
    for number, (example, rule) in enumerate(examples):
        files = _image_files(example, folder / str(number), axes)
        header = _with_headers(files, {**patient, **fitting_headers(example, rule, files[0]), **shared})
        # The first decides for those that follow, also about a name that its rule asked for.
        shared = {keyword: str(header[keyword].value) for keyword in _OF_ONE_STUDY if keyword in header}
        series.append(tuple(files))
    return Study(shared["StudyInstanceUID"], tuple(chain.from_iterable(series)), tuple(series))


def rules_of_channels(rule: Rule) -> list[Rule]:
    """A rule, and for each further channel one that picks its series; the name of that is RULE.CHANNEL."""
    others = [
        replace(rule, name=f"{rule.name}.{name}", match=patterns, channels={})
        for name, patterns in rule.channels.items()
    ]
    return [rule, *others]


def _image_files(example: Example, folder: Path, axes: Axes) -> list[Path]:
    if example.is_dicom:
        return _without_identity(example.source, folder)
    # UIDs follow from the content and from case_id: a random case_id makes new UIDs each time, so that no archive
    # answers with older objects (decision 0032).
    case = dicomize(_reordered(example.source, axes), folder, case_id=uuid.uuid4().hex)
    return sorted(case.series_folder.glob("*.dcm"))


def fitting_headers(example: Example, rule: Rule, file: Path) -> dict[str, str]:
    """DICOM keyword -> value with which the rule picks an example.

    Raises:
        InputRefusedError: Lists all keywords for which there is no such value, with the remedies.
    """
    header = load_dataset(file, keywords=list(rule.match))
    values = dict(example.headers)
    problems = [_why_not_given(rule, keyword) for keyword, value in values.items() if not _may_be_given(keyword, value)]
    # In this order: the user's value; an invented identity, never the example's own; the value that the example has
    # already; and only then a value that is made from the pattern.
    for keyword, pattern in rule.match.items():
        value = example.headers.get(keyword)
        if value is None and keyword in _IDENTITY:
            value = _of_a_patient(pattern)
        elif value is None and pattern.search(_DESCRIPTION.get(keyword) or text_of(header.get(keyword))):
            continue
        elif value is None and not _is_fixed(keyword):
            value = matching_text(pattern)
        if value is not None and pattern.search(value):
            values[keyword] = value
        else:
            problems.append(_why_no_match(example, rule, keyword, pattern, value))
    if problems:
        raise InputRefusedError("; ".join(problems))
    return values


def _may_be_given(keyword: str, value: str) -> bool:
    return value.startswith(PATIENT) if keyword in _IDENTITY else not keyword.endswith("InstanceUID")


def _why_not_given(rule: Rule, keyword: str) -> str:
    return (
        f"--header gives {rule.name}.{keyword}; everything that is sent has new UIDs, and a PatientName and PatientID that "
        f"begin with {PATIENT}; leave it out or correct it"
    )


def _why_no_match(example: Example, rule: Rule, keyword: str, pattern: re.Pattern[str], value: str | None) -> str:
    need = f"rule {rule.name} picks series whose {keyword} contains {pattern.pattern!r}"
    if value is not None:
        return f"{need}; the value given with --header does not; correct it"
    if keyword in _IDENTITY:
        return f"{need}; in everything that is sent it begins with {PATIENT}; let the rule accept that as well"
    if _is_fixed(keyword):
        which = "the shipped example (an MR crop)" if example.is_shipped else "the example"
        return f"{need}; {which} has another value, which describes the image; name an image with --example {rule.name}=PATH"
    return (
        f"{need}; no such value could be made from the pattern; give a value with --header {rule.name}.{keyword}=VALUE"
    )


def _is_fixed(keyword: str) -> bool:
    tag = tag_for_keyword(keyword)
    return keyword in _FIXED or (tag is not None and tag >> 16 == _PIXEL_GROUP)


def _of_a_patient(pattern: re.Pattern[str]) -> str | None:
    """A PatientName or PatientID that begins with `PATIENT` and that the pattern finds; None if none could be made."""
    text, plain = matching_text(pattern), _new_patient_id()
    candidates = [plain] if text is None else [plain, f"{plain} {text}", f"{PATIENT} {text}", f"{PATIENT}^{text}"]
    return next((value for value in candidates if pattern.search(value)), None)


def _new_patient_id() -> str:
    return f"{PATIENT}-{uuid.uuid4().hex[:12]}"


def _new_patient(description: str) -> dict[str, str]:
    return {"PatientName": f"{PATIENT}^{description}", "PatientID": _new_patient_id()}


def _with_headers(files: Sequence[Path], headers: Mapping[str, str]) -> Dataset:
    """Gives the files these headers; returns those of the last."""
    for path in files:
        dataset = dcmread(path)
        for keyword, value in {**_DESCRIPTION, **headers}.items():
            try:
                setattr(dataset, keyword, value)
            except (ValueError, TypeError) as error:
                raise InputRefusedError(
                    f"{value!r} cannot be the {keyword} of a DICOM object; give another value with "
                    f"--header RULE.{keyword}=VALUE"
                ) from error
        dataset.save_as(path, enforce_file_format=True)
    return dataset


def _without_identity(source: Path, folder: Path) -> list[Path]:
    """The only image series of a DICOM file or folder, de-identified, with new UIDs."""
    outcome = deidentify(files_of([source], folder), folder, new_key())
    if outcome.problems:
        raise InputRefusedError(f"the example cannot be de-identified: {outcome.problems[0]}")
    images = [series for series in survey_files(sorted(folder.rglob("*.dcm"))).series if series.kind == "image"]
    if len(images) != 1:
        raise InputRefusedError(
            f"the example holds {len(images)} image series; a folder with one image series is needed; name another"
        )
    return list(images[0].files)


def _reordered(source: Path, axes: Axes) -> Volume:
    """The image of a file with its axes in another order: the same anatomy at the same place."""
    from monai_unet_app.data.read import read_volume

    image = read_volume(source)
    # Columns of the affine move with the axes of the array, so that every voxel stays at its place.
    affine_lps = image.affine_lps[:, [*axes, 3]]
    return Volume(np.ascontiguousarray(image.array.transpose(axes)), affine_lps, Provenance("nifti"))


# a text that a pattern finds


def matching_text(pattern: re.Pattern[str]) -> str | None:
    """A short text that the pattern finds, verified; None if no such text could be made."""
    try:
        text = _text(_parser.parse(pattern.pattern, pattern.flags))
    except (KeyError, ValueError, TypeError):
        return None
    return text if pattern.search(text) else None


def _text(parsed: Any) -> str:
    return "".join(_MADE[operation](value) for operation, value in parsed)


def _of_set(items: Any) -> str:
    kind, value = items[0]
    if kind is sre.LITERAL:
        return chr(value)
    return chr(value[0]) if kind is sre.RANGE else _CATEGORIES[value]


def _repeated(value: Any) -> str:
    least, _, pattern = value
    return least * _text(pattern) if least else ""  # the least number of repeats gives the shortest text


# A negated set begins with (NEGATE, None): the KeyError for None says that no text could be made.
_CATEGORIES = {sre.CATEGORY_DIGIT: "1", sre.CATEGORY_SPACE: " ", sre.CATEGORY_WORD: "a"}
_MADE: dict[Any, Any] = {
    sre.LITERAL: chr,
    sre.ANY: lambda _: "x",
    sre.IN: _of_set,
    sre.AT: lambda _: "",
    sre.BRANCH: lambda value: _text(value[1][0]),
    sre.SUBPATTERN: lambda value: _text(value[3]),
    sre.MAX_REPEAT: _repeated,
    sre.MIN_REPEAT: _repeated,
}
"""Operation of a parsed pattern -> a text that it matches; no text is made for other operations."""


# the phantom


def phantom(orientation: str) -> Volume:
    """A lopsided body with a gradient of intensities, shape (I, J, K), in one of ORIENTATIONS, placed by `_affine_lps`."""
    i, j, k = np.indices(_SHAPE)
    inside = labels_of(orientation).array > 0
    array = np.rint(100 + 3 * i + 2 * j + 5 * k + 300 * inside).astype(np.float32)
    return Volume(array, _affine_lps(orientation), Provenance("nifti"))


# Three different lengths and steps, so that axes that were exchanged do not fit.
_SHAPE = (22, 26, 18)
_STEPS_MM = (1.5, 1.25, 2.0)
# The direction in which each array axis runs, in LPS; transposed they are the columns of the affine.
_DIRECTIONS = {
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "feet first": ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


def _affine_lps(orientation: str) -> NDArray[np.float64]:
    """Shape (4, 4), LPS mm."""
    if orientation == "oblique":
        a, b = np.deg2rad([30.0, 17.0])
        first = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        second = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        axes = first @ second
    else:
        axes = np.array(_DIRECTIONS[orientation], dtype=float).T
    return np.asarray(from_matvec(axes @ np.diag(_STEPS_MM), (-31.5, 12.25, 40.0)))


def labels_of(orientation: str) -> Volume:
    """Labels of the phantom, shape (I, J, K): 1 is a body, 2 a nose, so that no flip of an axis stays unnoticed."""
    i, j, k = np.indices(_SHAPE)
    body = ((i - 8) / 6) ** 2 + ((j - 15) / 9) ** 2 + ((k - 7) / 5) ** 2 < 1
    nose = (abs(i - 15) < 3) & (abs(j - 6) < 2) & (abs(k - 12) < 3)
    return Volume((body + 2 * (nose & ~body)).astype(np.uint8), _affine_lps(orientation), Provenance("nifti"))


_SEGMENTS: tuple[Segment, ...] = load_segments(shipped("bundles") / "hippocampus_mri_unet3d/configs/segments.json")
"""Two coded segments; their names do not matter here."""

"""A data set as a raw folder of nnU-Net v2.

dataset.json            channels, names of the label values, number of training cases, file ending
imagesTr/, labelsTr/    <case>_0000.nii.gz, one file for each channel, and <case>.nii.gz; pictures: .png, colours in one
imagesTs/, labelsTs/    the same of the cases that a plan keeps for the test
splits_final.json       the folds of a plan; nnU-Net reads it from the folder of its preprocessed data

The format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

import gzip
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom_io.itk_files import direction_cosines
from dicom_io.volume import Volume, number_type
from monai_unet_app.data.case_files import CaseFiles, first_names
from monai_unet_app.data.datalist import IGNORE, LabelFacts, check_channel_count
from monai_unet_app.data.fingerprint import Fingerprint
from monai_unet_app.data.inspect import Accepted, check_one_kind, inspect_cases
from monai_unet_app.data.labels import AS_NUMBERED, FileValues, mask_count, read_label_numbers, read_labels
from monai_unet_app.data.nifti import is_packed, nifti_header, write_nifti
from monai_unet_app.data.read import MM_IN, NIFTI_ENDINGS, has_ending, read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.data.splits import SplitCase
from monai_unet_app.data.structures import named_values, stated_structures
from monai_unet_app.errors import InputRefusedError, UsageError

_NAME = re.compile(r"Dataset\d{3}_\w[\w.-]*")
_RESERVED = ("background", IGNORE)
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class NnunetConfig:
    """How a data set becomes a folder of nnU-Net.

    Attributes:
        output: The new folder; its name is DatasetXXX_Name.
        structures: Names of a bundle's structures, in the order of their numbers, or the one of numbered objects; () for names
            that the data state.
        values: With `structures`: what the values of label files stand for.
        told: Names by label value, where the user gives them; without `structures`.
        modality: DICOM's term; None takes what the data state.
        facts: What the `dataset.json` of the data says, if there is one.
        plan: Partition and fold of each case; None puts all cases into imagesTr.
    """

    output: Path
    structures: tuple[str, ...] = ()
    values: FileValues = AS_NUMBERED
    told: Mapping[int, str] = field(default_factory=dict)
    modality: str | None = None
    facts: LabelFacts | None = None
    plan: Mapping[str, SplitCase] | None = None


@dataclass(frozen=True)
class NnunetFolder:
    """What was written.

    Attributes:
        document: `dataset.json`.
        sources: The label value in the data of each structure, by its name; "above 0" where files number objects.
        training: Ids of the cases in imagesTr.
        test: Ids of the cases in imagesTs.
        folds: Number of folds in `splits_final.json`; 0 where there is no such file.
    """

    document: Mapping[str, Any]
    sources: Mapping[str, int | str]
    training: tuple[str, ...]
    test: tuple[str, ...]
    folds: int


def write_nnunet_folder(
    cases: Sequence[CaseFiles], config: NnunetConfig, step: Callable[[str], None] = lambda case_id: None
) -> NnunetFolder:
    """Reads and checks every case, then writes the folder whole or not at all.

    A NIfTI image of one channel is copied byte by byte. So is its label, if its values stay and its grid is that of the image;
    every other label is written on the very grid of the image.

    Args:
        cases: Each with its label.
        config: Names, plan and place.
        step: Called with the id of each case, twice: when it has been read, and when it has been written.

    Raises:
        UsageError: The output exists, or has a name that nnU-Net does not find.
        InputRefusedError: Cases cannot be used, are no one kind of images, or cannot be told to nnU-Net; or the disk is full.
    """
    _check_output(config.output)
    _check_ids(cases)
    test = {case.id for case in cases if config.plan and config.plan[case.id].partition == "test"}
    training = tuple(case.id for case in cases if case.id not in test)
    if not training:
        raise InputRefusedError(
            f"all {len(cases)} case(s) are test cases of the plan; cases to train are needed; add some"
        )
    known = tuple(range(len(config.structures) + 1)) if config.structures else None
    fingerprint = inspect_cases(cases, Accepted(known=known, values=config.values), step)
    check_one_kind(fingerprint)
    numbering = _numbering(cases, fingerprint, config)
    channels = _channel_names(fingerprint, config, cases[0].channel_names)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=config.output.parent) as folder:
        part = Path(folder) / config.output.name
        sheared = False
        for case in cases:
            sheared |= _write_case(case, part, "Ts" if case.id in test else "Tr", numbering)
            step(case.id)
        document = {
            "channel_names": {str(number): name for number, name in enumerate(channels)},
            **numbering.labels,
            "numTraining": len(training),
            "file_ending": ".png" if fingerprint.cases[0].axes == "px" else ".nii.gz",
            "name": config.output.name,
            # ITK cannot express a sheared grid
            **({"overwrite_image_reader_writer": "NibabelIO"} if sheared else {}),
            **({"source_label_values": numbering.sources} if numbering.changes else {}),
        }
        write_json(document, part / "dataset.json")
        folds = _folds(config.plan, training)
        if folds:
            write_json(folds, part / "splits_final.json")
        part.rename(config.output)
    return NnunetFolder(document, numbering.sources, training, tuple(sorted(test)), len(folds))


def _check_output(output: Path) -> None:
    if not _NAME.fullmatch(output.name):
        raise UsageError(
            f"--output {output.name}: nnU-Net finds folders by their names, Dataset, three digits, _ and a name; give one such "
            "as Dataset101_Liver"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not empty; a conversion never replaces files; choose another folder")


def _check_ids(cases: Sequence[CaseFiles]) -> None:
    if odd := [case.id for case in cases if Path(case.id).name != case.id or case.id.startswith(".")]:
        raise InputRefusedError(f"{first_names(odd)}: a case's id becomes the name of its files; rename it in the list")


@dataclass(frozen=True)
class _Numbering:
    """How label values become nnU-Net's numbers.

    Attributes:
        names: Of 1, 2, 3 ...
        values: What the values of the files stand for.
        sources: As in `NnunetFolder`.
        regions: Of structures that share voxels: the numbers in which each is, by its name.
        codes: Of these, sum of 2^(n - 1) over the structures n at a voxel -> its number.
        ignored: nnU-Net's number of voxels without a class, the largest; None where there are none.
    """

    names: tuple[str, ...]
    values: FileValues
    sources: Mapping[str, int | str]
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    codes: Mapping[int, int] = field(default_factory=dict)
    ignored: int | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """`labels` of `dataset.json`, and the values that nnU-Net gives to its regions one after the other."""
        ignored = {} if self.ignored is None else {IGNORE: self.ignored}
        if not self.regions:
            names = {name: number for number, name in enumerate(self.names, 1)}
            return {"labels": {"background": 0, **names, **ignored}}
        later = list(self.regions.values())
        order = [next((n for n in held if not any(n in more for more in later[place:])), held[0])
                 for place, held in enumerate(self.regions.values(), 1)]  # fmt: skip
        return {"labels": {"background": 0, **self.regions, **ignored}, "regions_class_order": order}

    @property
    def changes(self) -> bool:
        """Whether a label value in the data is another one for nnU-Net."""
        return not self.regions and list(self.sources.values()) != list(range(1, len(self.sources) + 1))

    def read(self, case: CaseFiles, image: Volume) -> tuple[Volume, NDArray[np.unsignedinteger[Any]]]:
        """The labels of a case as they are, and as nnU-Net's numbers, shape (I, J, K)."""
        assert case.label is not None
        if not (self.codes or case.masks or mask_count(case.label) > 1):
            label = read_label_numbers(case.label, image, self.values)
            own = replace(self, values=replace(self.values, values=case.label_values)) if case.label_values else self
            return label, own.numbered(label.array, case.label.name)
        label = read_labels(case.label_files, image, self.values)
        if not self.codes:
            return label, self._with_ignored(label.array, label.array)
        found, places = np.unique(_codes(label, self.values.ignored), return_inverse=True)
        numbers = np.array([self.codes[int(code)] for code in found], number_type(len(self.codes)))
        return label, numbers[places].reshape(image.shape)

    def numbered(self, array: NDArray[Any], name: str) -> NDArray[np.unsignedinteger[Any]]:
        """The labels of a file, any shape, as nnU-Net's numbers; `name` is for a message."""
        return self._with_ignored(self.values.numbered(array, name), array)

    def _with_ignored(self, numbers: NDArray[Any], array: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
        """The numbers with nnU-Net's own where the file has the ignored value."""
        if self.ignored is not None:
            numbers = np.where(array == self.values.ignored, self.ignored, numbers)
        return numbers.astype(number_type(len(self.names) + 1))


_IGNORED_CODE = -1


def _codes(label: Volume, ignored: int | None) -> NDArray[np.int64]:
    codes = np.asarray((label.array > 0) @ (1 << np.arange(label.array.shape[3])))
    return codes if ignored is None else np.where(label.array[..., 0] == ignored, _IGNORED_CODE, codes)


def _overlapping(cases: Sequence[CaseFiles], names: Sequence[str], values: FileValues) -> _Numbering:
    """A number for each set of structures that shares a voxel: few structures first, so that nested ones keep their order."""
    found: set[int] = set()
    for case in cases:
        label = read_labels(case.label_files, read_volume(case.files), values)
        found |= set(np.unique(_codes(label, values.ignored)).tolist())
    ordered = sorted(found - {0, _IGNORED_CODE}, key=lambda code: (code.bit_count(), code))
    codes = {0: 0, **{code: number for number, code in enumerate(ordered, 1)}}
    regions = {name: [codes[code] for code in ordered if code >> place & 1] for place, name in enumerate(names)}
    ignored = len(codes) if _IGNORED_CODE in found else None
    codes |= {} if ignored is None else {_IGNORED_CODE: ignored}
    sources = {name: str(numbers) for name, numbers in regions.items()}
    return _Numbering(tuple(names), values, sources, regions, codes, ignored)


def _numbering(cases: Sequence[CaseFiles], fingerprint: Fingerprint, config: NnunetConfig) -> _Numbering:
    held = fingerprint.label_values
    values = config.values
    if values.overlap:
        told = config.told or dict(enumerate(config.structures, 1)) or (config.facts.names if config.facts else {})
        told = told or {value: stated.name for value, stated in stated_structures(cases, held).items()}
        names = tuple(named_values(fingerprint.label_voxels, told, "label {}").values())
        _check_names(names)
        if values.regions or any(case.overlaps for case in fingerprint.cases):
            return _overlapping(cases, names, values)
        values = FileValues(ignored=values.ignored, white=values.white)
        sources: list[int | str] = list(range(1, len(names) + 1))
    elif config.structures:
        names = config.structures
        named_values(fingerprint.label_voxels, dict(enumerate(names, 1)), "{}")  # refuses labels that are all empty
        _check_names(names)
        sources = ["above 0"] if values.objects else list(values.values or range(1, len(names) + 1))
    else:
        told = config.told or (config.facts.names if config.facts else {})
        told = told or {value: stated.name for value, stated in stated_structures(cases, held).items()}
        named = named_values(fingerprint.label_voxels, told, "label {}")
        names, sources = tuple(named.values()), list(named)
        values = FileValues(tuple(named), ignored=values.ignored, white=values.white)
        _check_names(names)
    ignored = len(names) + 1 if any(case.ignored for case in fingerprint.cases) else None
    told_ignored = {} if ignored is None or values.ignored is None else {IGNORE: values.ignored}
    return _Numbering(names, values, dict(zip(names, sources, strict=True)) | told_ignored, ignored=ignored)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        # A key of digits would be read as a label value
        if name.lower() in _RESERVED or name.isdigit() or names.count(name) > 1:
            raise InputRefusedError(
                f"a structure is called {name!r}; in a dataset.json names must be unique, and must not be numbers or "
                f"{' or '.join(_RESERVED)}; give names by --structure VALUE=NAME"
            )


def _channel_names(fingerprint: Fingerprint, config: NnunetConfig, told: tuple[str, ...]) -> tuple[str, ...]:
    """The name of each channel. "CT" makes nnU-Net cut and scale CT numbers; any other name scales each image by itself.

    `told` are the names that the data state.
    """
    case, facts = fingerprint.cases[0], config.facts
    if facts and len(facts.channels) == case.channels and not config.modality:
        return facts.channels
    if facts and not config.modality:
        check_channel_count(facts.channels, case.channels)
    if told and config.modality != "CT":
        return told
    if case.axes == "px" and not config.modality:
        return ("R", "G", "B") if case.channels == 3 else ("grey",) * case.channels
    if config.modality:
        return (config.modality,) * case.channels
    of_files = zip(*(other.modalities for other in fingerprint.cases), strict=True)
    return tuple(next(filter(None, said), "image") for said in of_files)


def _folds(plan: Mapping[str, SplitCase] | None, training: Sequence[str]) -> list[dict[str, list[str]]]:
    """nnU-Net's folds of the training cases: which train, which validate. Empty without a plan of two folds or more."""
    numbers = sorted({plan[name].fold for name in training}) if plan else []
    if plan is None or len(numbers) < 2:
        return []
    return [
        {
            "train": [name for name in training if plan[name].fold != number],
            "val": [name for name in training if plan[name].fold == number],
        }
        for number in numbers
    ]


def _write_case(case: CaseFiles, folder: Path, end: str, numbering: _Numbering) -> bool:
    """Writes image and label of a case; `end` is Tr or Ts. Returns whether its grid is sheared."""
    images, labels = folder / f"images{end}", folder / f"labels{end}"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    if case.label is None:
        raise InputRefusedError(f"{case.id} has no label; each case needs one; add it or leave the case out")
    image = read_volume(case.files)
    label, numbers = numbering.read(case, image)
    if image.planar:
        for number, channel in enumerate(np.moveaxis(image.array, 3, 0) if case.channels else [image.array]):
            _write_picture(channel, images / f"{case.id}_{number:04}.png", case)
        _write_picture(numbers, labels / f"{case.id}.png", case)
        return False
    first = images / f"{case.id}_0000.nii.gz"
    if _is_plain_nifti(case.image) and not case.channels:
        _copy(case.image, first)
    else:
        for number, channel in enumerate(image.channels):
            write_nifti(smallest(channel), image, images / f"{case.id}_{number:04}.nii.gz")
    target = labels / f"{case.id}.nii.gz"
    if _is_plain_nifti(case.label, image) and np.array_equal(numbers, label.array):
        _copy(case.label, target)
    else:
        _write_labels(numbers, first, target)
    return direction_cosines(image) is None


def _is_plain_nifti(path: Path, labelled: Volume | None = None) -> bool:
    """Whether it is a NIfTI file that every reader takes for the same: three axes, millimetres, one place.

    Args:
        path: The file.
        labelled: Of labels their image, on whose very grid they have whole numbers then.
    """
    if not (path.is_file() and has_ending(path, NIFTI_ENDINGS)):
        return False
    header = nifti_header(path)
    forms = [form for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
    # nibabel takes the sform first, ITK the one or the other
    plain = len(forms) == 1 or (len(forms) == 2 and np.allclose(forms[0], forms[1], atol=1e-3))
    if labelled is not None:
        own = header.get_best_affine().astype(np.float32)
        whole = header.get_data_dtype().kind in "iu" and header.get_slope_inter() in ((1, 0), (None, None))
        plain = plain and whole and np.array_equal(own, labelled.affine_ras.astype(np.float32))
    return len(header.get_data_shape()) == 3 and header.get_xyzt_units()[0] not in MM_IN and bool(plain)


def _copy(source: Path, target: Path) -> None:
    """The same bytes, compressed if the source is not."""
    if is_packed(source):
        shutil.copyfile(source, target)
        return
    with source.open("rb") as plain, gzip.open(target, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed)


def smallest(array: NDArray[np.float32]) -> NDArray[Any]:
    """The same values in 16 bits, if these hold them exactly."""
    fits = array.min() >= _INT16.min and array.max() <= _INT16.max and np.array_equal(array, np.rint(array))
    return array.astype(np.int16) if fits else array


def _write_labels(numbers: NDArray[Any], image: Path, target: Path) -> None:
    """A label file whose header says the same place as that of the written image, in the same form."""
    beside: Any = nibabel.load(image)
    header = beside.header.copy()
    header.set_data_dtype(numbers.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the window of the image
    header.extensions.clear()
    nibabel.save(type(beside)(numbers, None, header), target)


def _write_picture(array: NDArray[Any], path: Path, case: CaseFiles) -> None:
    """Shape (I, J, 1) or (I, J, 1, 3), as PNG: 8 bits, or 16 for grey values above 255."""
    most = 255 if array.ndim == 4 else 65535
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > most or not np.array_equal(array, np.rint(array)):
        raise InputRefusedError(
            f"{case.id}: its values go from {low:g} to {high:g}; whole numbers from 0 to {most} are needed for a PNG; save the "
            "picture with such values, or as NIfTI"
        )
    # Rows first
    pixels = np.moveaxis(array[:, :, 0], 0, 1).astype(np.uint8 if high <= 255 else np.uint16)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)

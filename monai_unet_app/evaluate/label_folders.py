"""Folders of label files: those of another program and the true ones, case by case, on the grid of their images.

A case is a label map, or a folder of masks, as TotalSegmentator writes them: `CASE/liver.nii.gz` or
`CASE/segmentations/liver.nii.gz`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

from dicom_io.coding import Segment
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.confidence.results_bundle import Program
from monai_unet_app.data.case_files import CaseFiles, Row, case_id, find_images, first_names
from monai_unet_app.data.cases import subjects_of
from monai_unet_app.data.datalist import LabelFacts, read_dataset_json
from monai_unet_app.data.label_files import is_black_and_white
from monai_unet_app.data.label_names import LabelTable, agreed_meanings, names_in_file
from monai_unet_app.data.naming import same_name
from monai_unet_app.data.placed_labels import mask_files, placed_labels
from monai_unet_app.data.probability_files import probability_files, read_probabilities
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError

_INNER = "segmentations"  # of a case of TotalSegmentator's data set


@dataclass(frozen=True)
class LabelCase:
    """The labels of one image by a program, and by the person whose labels count as true.

    Attributes:
        row: The case, {"id", "subject", "image", "label"}.
        result: The program's, on their image; its voxels count only where there are images. With probabilities as they came.
        truth: The true ones, on the same grid.
    """

    row: Row
    result: Segmentation
    truth: Segmentation

    @property
    def subject(self) -> str:
        """The person that the image is of."""
        return str(self.row["subject"])


@dataclass(frozen=True)
class LabelFolders:
    """Label files of a program whose truth is known.

    Attributes:
        results: Folder of its cases, named as the images.
        labels: Folder of the true ones, with the same names.
        images: Folder of the images; None where they are not at hand.
        program: Whose label maps they are.
        named: Label value -> name; empty where a label table or a `dataset.json` beside the files says it.
        probabilities: Folder of its probabilities, see `probability_files`; None where it gives none.
        resampled: Filled while cases are read: the files that lie on another grid than their image.
    """

    results: Path
    labels: Path
    images: Path | None
    program: Program
    named: Mapping[int, str] = field(default_factory=dict)
    probabilities: Path | None = None
    resampled: list[str] = field(default_factory=list, compare=False)

    @cached_property
    def facts(self) -> list[LabelFacts]:
        """What every `dataset.json` beside the files says."""
        return [
            facts
            for folder in self._beside(self.results) + self._beside(self.labels)
            if (facts := read_dataset_json(folder))
        ]

    def _beside(self, folder: Path) -> list[Path]:
        """Where the `dataset.json` of the program's files, or of the true ones, may be."""
        return [folder] if folder == self.results else [folder, folder.parent]

    @cached_property
    def _of_folders(self) -> dict[Path, list[LabelTable]]:
        """What is said of the values in the program's files and in the true ones by a `dataset.json`."""
        read = {
            folder: [(read_dataset_json(place), f"dataset.json of {place.name}") for place in self._beside(folder)]
            for folder in (self.results, self.labels)
        }
        return {
            folder: [LabelTable(names, source) for facts, source in found if facts and (names := facts.named)]
            for folder, found in read.items()
        }

    def _tables(self, file: Path, folder: Path) -> list[LabelTable]:
        """What is said of the values in a file of the program's folder or of the true ones."""
        own = {} if file.is_dir() else names_in_file(file)
        return ([LabelTable(own, file.name)] if own else []) + self._of_folders[folder]

    @cached_property
    def overridden(self) -> list[str]:
        """What files say of label values that the user names otherwise, a sentence each."""
        tables = [
            table
            for row in self.rows
            for table in (
                *self._tables(self._results[row["id"]], self.results),
                *self._tables(Path(row["label"]), self.labels),
            )
        ]
        other = (
            str(table)
            for table in tables
            if any(not same_name(name, self.named[value]) for value, name in table.names.items() if value in self.named)
        )
        return list(dict.fromkeys(other))

    @cached_property
    def cases(self) -> list[CaseFiles]:
        """The true labels with their images; the true labels alone where there are no images.

        Raises:
            InputRefusedError: A label file has no image or no result. Images without a label do not count.
        """
        if self.results.resolve() == self.labels.resolve():
            raise InputRefusedError(
                f"--results and --labels are both {self.results.name}; the files of a program and the true ones are needed; "
                "name a folder for each"
            )
        labels = [CaseFiles(name, place) for name, place in _cases_in(self.labels).items()]
        masks = {case.id: {case_id(file) for file in mask_files(case.image)} for case in labels if case.image.is_dir()}
        every = set[str]().union(*masks.values())
        if lacking := {name: sorted(every - own) for name, own in masks.items() if own != every}:
            name, absent = next(iter(lacking.items()))
            raise InputRefusedError(
                f"{len(lacking)} case(s) of {self.labels.name} lack masks that others have ({name}: {first_names(absent)}); a "
                "mask of each structure is needed, empty where it is absent; add them"
            )
        if absent := [case.id for case in labels if case.id not in self._results]:
            raise InputRefusedError(
                f"{self.results.name} lacks results of {len(absent)} of {len(labels)} labelled case(s) "
                f"({first_names(absent)}); a file with the name of each is needed, since cases in which a program fails count, "
                "too; add them"
            )
        if self.probabilities and (absent := [case.id for case in labels if case.id not in self._probabilities]):
            raise InputRefusedError(
                f"{self.probabilities.name} lacks probabilities of {len(absent)} of {len(labels)} labelled case(s) "
                f"({first_names(absent)}); <case>.npz, <case>.nii.gz or <case>_<value>.nii.gz of each is needed; add them"
            )
        if self.images is None:
            return labels
        images = {case.id: case for case in find_images(self.images)}
        # nnU-Net numbers the channels of an image; the first shows the edges
        found = [(label, images.get(label.id) or images.get(f"{label.id}_0000")) for label in labels]
        if absent := [label.id for label, image in found if image is None]:
            raise InputRefusedError(
                f"{self.images.name} lacks the image of {len(absent)} of {len(labels)} label file(s) ({first_names(absent)}); "
                "one with the name of each is needed, or with _0000 behind it; add them, or leave --images out"
            )
        return [replace(image, id=label.id, label=label.image) for label, image in found if image is not None]

    @cached_property
    def subjects(self) -> dict[str, str]:
        """Case id -> the person that it is of."""
        return subjects_of(self.cases)

    @cached_property
    def rows(self) -> list[Row]:
        """The cases as MONAI's data list; "image" is the true label map where there are no images."""
        return [
            {
                "id": case.id,
                "subject": self.subjects[case.id],
                "image": str(mask_files(case.image)[0] if case.label is None and case.image.is_dir() else case.image),
                "label": str(case.label or case.image),
            }
            for case in self.cases
        ]

    @cached_property
    def _results(self) -> dict[str, Path]:
        """The program's file, or folder of masks, of each case."""
        return _cases_in(self.results)

    @cached_property
    def _probabilities(self) -> dict[str, list[Path]]:
        return probability_files(self.probabilities) if self.probabilities else {}

    def names(self) -> dict[int, str]:
        """Label value -> name, by value. Raises InputRefusedError where nothing says them, or a name stands for two."""
        files, found = [self._results[self.cases[0].id], Path(self.rows[0]["label"])], dict(self.named)
        if all(file.is_dir() for file in files) and not found:
            stems = {case_id(mask) for case in self.cases for mask in mask_files(self._results[case.id])}
            found = dict(enumerate(sorted(stems), 1))
        # Beside folders of masks, the numbers are those of the true label maps
        for file in files:
            found = found or ({} if file.is_dir() else names_in_file(file))
        for table in self._of_folders[self.results] + self._of_folders[self.labels]:
            found = found or dict(table.names)
        if not found:
            raise InputRefusedError(
                f"nothing says what the values in {self.results.name} mean; name each by --structure VALUE=NAME, or put "
                "nnU-Net's dataset.json beside the files"
            )
        if twice := [name for name, number in Counter(found.values()).items() if number > 1]:
            raise InputRefusedError(
                f"several values of {self.results.name} have the name {first_names(twice)}; one name for each is needed, since "
                "tables and reports name structures by it; rename one"
            )
        return dict(sorted(found.items()))

    def read(self, row: Row, segments: tuple[Segment, ...], values: Sequence[int]) -> LabelCase:
        """One of the cases.

        Args:
            row: Of `rows`.
            segments: Of the structures, in the order of their numbers.
            values: The label value of each.

        Raises:
            InputRefusedError: A file is no label map of its image, or holds values that are not known.
        """
        image, file = read_volume(row["image"]), self._results[row["id"]]
        places = (file, self.results), (Path(row["label"]), self.labels)
        result, truth = (self._segmentation(path, folder, image, segments, values) for path, folder in places)
        if self.probabilities:
            found = read_probabilities(self._probabilities[row["id"]], file, result.labels, image, values)
            result = replace(result, probabilities=found)
        return LabelCase(row, result, truth)

    @cached_property
    def _white(self) -> dict[Path, bool]:
        """Whether pictures of the program, and of the truth, are masks in black and white."""
        results, truth = [self._results[case.id] for case in self.cases], [Path(row["label"]) for row in self.rows]
        return {
            self.results: is_black_and_white(results, self._names),
            self.labels: is_black_and_white(truth, self._names),
        }

    @cached_property
    def _names(self) -> dict[int, str]:
        return self.names()

    def _segmentation(
        self, file: Path, folder: Path, image: Volume, segments: tuple[Segment, ...], values: Sequence[int]
    ) -> Segmentation:
        """The label map of a file on the grid of its image. Values without a name are refused, or left out on request."""
        found = placed_labels(file, image, white=self._white[folder])
        if found.resampled:
            self.resampled.append(f"{file.parent.name}/{file.name}")
        is_map = not found.names
        if is_map and not self.named:
            described = dict(zip(values, segments, strict=True))
            names = LabelTable({value: segment.label for value, segment in described.items()}, self.program.name)
            found = found.renumbered(agreed_meanings(self._tables(file, folder), names, described), file.name)
        if is_map and {facts.ignored for facts in self.facts} & set(found.present):
            raise InputRefusedError(
                f"{file.name} holds the value that dataset.json calls ignored; cases in which every voxel has a class are "
                "needed; leave this case out"
            )
        known, unknown = found.known(segments, values, self.program.name)
        if is_map and unknown and not self.named:
            raise InputRefusedError(
                f"{file.name} holds {len(unknown)} value(s) without a name ({first_names(unknown)}); name "
                "those that are to be judged by --structure VALUE=NAME; the others are then left out"
            )
        return Segmentation(image, known.numbered(values), segments)


def _cases_in(folder: Path) -> dict[str, Path]:
    """Case id -> its label map, or its folder of masks."""
    if not folder.is_dir() or mask_files(folder):
        return {case.id: case.image for case in find_images(folder)}
    places = {normalize("NFC", place.name): place for place in sorted(folder.iterdir()) if place.is_dir()}
    inner = {name: place / _INNER if (place / _INNER).is_dir() else place for name, place in places.items()}
    masks = {name: place for name, place in inner.items() if mask_files(place)}
    return masks or {case.id: case.image for case in find_images(folder)}

"""Pictures of the cases that a validation segments worst, for TensorBoard and MLflow.

MONAI's `TensorBoardImageHandler` shows image, label and prediction side by side, of the first case, without outlines. The
pictures of this module are those of the report.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from ignite.engine import Events
from monai.data.utils import affine_to_spacing
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from dicom_io.coding import load_segments
from dicom_io.volume import number_type
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.errors import UsageError
from monai_unet_app.training.watch_dog import WatchDog

if TYPE_CHECKING:
    from monai_unet_app.report.evaluation_report import CasePicture

_MOST_NAMED = 8  # structures in a legend
_DPI = 80
_SAMPLED = 10**6  # voxels of which percentiles are taken


_BESIDE = "#f2b134"  # of what is no structure


@dataclass(frozen=True)
class _Case:
    """A case of the last validation: its name, the Dice of each structure (NaN where absent) and their mean, and its arrays."""

    name: str
    dice: tuple[float, ...]
    mean: float
    picture: "CasePicture"


@dataclass(eq=False)
class WorstCases:
    """Keeps the arrays of the worst cases of the last validation, by mean Dice, and draws them.

    Args:
        validator: MONAI evaluator whose output has "image" (C, *spatial), and "pred" and "label" as `WatchDog` needs them; its
            batches have "id".
        watch_dog: Knows the Dice of each case; must be attached before this one.
        segments: The bundle's `segments.json`, with names and colours.
        count: Cases to keep; 0 keeps and draws none.

    Raises:
        UsageError: A negative count.
    """

    validator: Any
    watch_dog: WatchDog
    segments: str | Path
    count: int = 3

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UsageError(f"pictures is {self.count}; a number of cases of 0 or more is needed; 0 draws none")
        self._kept: list[_Case] = []

    def attach(self) -> None:
        """Listens to the validator."""
        if self.count:
            self.validator.add_event_handler(Events.STARTED, self._kept.clear)
            self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._look)

    def drawn(self) -> list[bytes]:
        """A PNG of each case that is kept, the worst first. They are forgotten afterwards.

        Thin white lines: label. Coloured lines: prediction. Below: the Dice of each structure, and the id of the case.
        """
        pictures = [self._drawn(case) for case in self._kept]
        self._kept.clear()
        return pictures

    def _look(self) -> None:
        state = self.validator.state
        first = len(self.watch_dog.cases) - len(state.output)
        for row, item, dice in zip(state.batch, state.output, self.watch_dog.cases[first:], strict=True):
            told = [value for value in dice if not math.isnan(value)]
            mean = float(np.mean(told)) if told else math.inf  # a case without structures in which none was found
            if len(self._kept) < self.count or mean < self._kept[-1].mean:
                picture = _picture(row["id"], item, len(dice))
                self._kept.append(_Case(row["id"], tuple(dice), mean, picture))
                self._kept.sort(key=lambda case: case.mean)
                del self._kept[self.count :]

    def _drawn(self, case: _Case) -> bytes:
        from monai_unet_app.report.case_pictures import GAP_INCHES, LINE_INCHES, case_figure, png

        known = [(segment.label, segment.colour) for segment in load_segments(Path(self.segments))]
        # A network may answer for more than structures, such as the middles of objects
        shown = [*known, *((name, _BESIDE) for name in self.watch_dog.labels[len(known) :])]
        names = [
            f"{name}: {'absent' if math.isnan(value) else f'Dice {value:.2f}'}"
            for (name, _), value in zip(shown, case.dice, strict=True)
        ]
        colours = [colour for _, colour in shown]
        figure = case_figure(case.picture, names, colours, legend=len(names) <= _MOST_NAMED)
        width, height = figure.get_size_inches()
        place = 1 - GAP_INCHES / width, 0.5 * LINE_INCHES / height
        figure.text(*place, case.name, color="#c6ccd4", fontsize=9, ha="right", va="center", parse_math=False)
        return png(figure, _DPI)


def draw_windows(
    root: Path, values: Mapping[str, Any], spacing: Sequence[float], count: int, folder: Path
) -> list[Path]:
    """Draws windows as the training of a bundle takes them, augmented, with outlines of their labels.

    Args:
        root: The bundle.
        values: Of `train.yaml` by id, by which it finds its cases.
        spacing: Of a window's voxels, mm; of its pixels 1.
        count: Number of windows, of one case after the other.
        folder: Gets window_1.png and so on.
    """
    from monai.bundle import ConfigParser

    from monai_unet_app.report.case_pictures import case_figure, png
    from monai_unet_app.report.evaluation_report import CasePicture

    parser = ConfigParser()
    parser.set(BundleFiles(root).config_with("train"))
    segments = load_segments(root / "configs/segments.json")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"window_{number}.png" for number in range(1, count + 1)]
    with TemporaryDirectory() as cache:
        parser.update({"bundle_root": str(root), "cache_dir": cache, **values})
        windows = parser.get_parsed_content("train::dataset")
        for number, file in enumerate(files):
            window = windows[number % len(windows), number]
            image, label = window["image"], window["label"].numpy()
            shown = label[0].astype(int) if len(label) == 1 else label[: len(segments)] > 0
            colour = image.ndim == 3 and len(image) == 3
            picture = CasePicture(file.stem, "worst", _visible(image, colour=colour), shown, shown, spacing)
            names, colours = [segment.label for segment in segments], [segment.colour for segment in segments]
            figure = case_figure(picture, names, colours, legend=len(names) <= _MOST_NAMED)
            file.write_bytes(png(figure, _DPI))
    return files


def _picture(name: str, item: dict[str, Any], structures: int) -> "CasePicture":
    """The arrays of a case of the validator's output, in CPU memory: 3 bytes a voxel for exclusive classes."""
    from monai_unet_app.report.evaluation_report import CasePicture

    image = item["image"]
    truth, predicted = (_labels(item[key].cpu().numpy() > 0.5, structures) for key in ("label", "pred"))
    if image.ndim == 3:
        return CasePicture(
            name, "worst", _visible(image, colour=len(image) == 3), truth, predicted, (1, 1), unit="pixels"
        )
    affine = np.asarray(image.affine)
    spacing, axes = tuple(map(float, affine_to_spacing(affine))), aff2axcodes(affine)
    return CasePicture(name, "worst", _visible(image, colour=False), truth, predicted, spacing, axes)


def _labels(channels: NDArray[np.bool_], structures: int) -> NDArray[Any]:
    """Class numbers if there is a channel for the background, else the masks as they are."""
    if len(channels) == structures:
        return channels
    return np.asarray(channels.argmax(axis=0), number_type(structures))


def _visible(image: Any, *, colour: bool) -> NDArray[np.uint8]:
    """The first channel (*spatial), or all three (*spatial, 3), from the 0.5th to the 99.5th percentile of each as 0 to 255."""
    shown = [_stretched(channel.float().cpu().numpy()) for channel in (image if colour else image[:1])]
    return np.stack(shown, axis=-1) if colour else shown[0]


def _stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    part = values.ravel()[:: max(1, values.size // _SAMPLED)]
    low, high = np.percentile(part, [0.5, 99.5])
    return np.asarray(255 * np.clip((values - low) / max(high - low, 1e-9), 0, 1), np.uint8)

"""Post-processing that helps, chosen on cases that the network has not seen, by MONAI's own transforms.

What is tried: the largest piece of each structure alone, holes filled, small islands removed. A step is taken where the mean
gain in Dice has an interval above 0, by subject. Each step is tried on the result of those that were taken before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import FillHolesd, KeepLargestConnectedComponentd, RemoveSmallObjectsd
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.inference_yaml import TIDY_FREE, read_text, with_tidy, without_chosen_tidy, write_text
from monai_unet_app.data.read import read_volume
from monai_unet_app.evaluate.case_selection import Networks, Row
from monai_unet_app.evaluate.evaluation import StoredLabels
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.gathering import tidied
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, bootstrap_mean
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import segment_case

INFERENCE = "configs/inference.yaml"
ISLANDS = (0.001, 0.01, 0.1)
"""Sizes of islands that are tried, as parts of the median size of the smallest structure."""

Step = Mapping[str, Any]
"""A transform as it stands in `tidy`."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Attributes:
        step: The transform, for the structures that it helps or, if it helps none, for all.
        what: In words.
        gain: Mean Dice with the step minus without, over the structures that it is for.
        taken: Whether the interval of the gain lies above 0.
    """

    step: Step
    what: str
    gain: Estimate
    taken: bool


def choose_tidy(
    networks: Networks, rows: Sequence[Row], progress: Callable[[str], None] = lambda case_id: None
) -> list[Trial]:
    """The steps that were tried on these cases, in the order in which those taken are to stand in `tidy`.

    Args:
        networks: Answer for the cases; their bundle has an empty `tidy`.
        rows: Cases that the networks have not seen.
        progress: Called with the id of each case when it is segmented.
    """
    cases = _Cases(networks, rows, progress)
    before, taken, trials = cases.scores(()), list[Step](), list[Trial]()
    for what, target in cases.candidates:
        tried = list(cases.tries(what, target, taken, before))
        best = max(tried, key=lambda trial: (trial.taken, trial.gain.value))
        trials.append(best)
        if best.taken:
            taken.append(best.step)
            before = cases.scores(taken)
    return trials


class _Cases:
    """Labels and truths of all cases, on disk."""

    def __init__(self, networks: Networks, rows: Sequence[Row], progress: Callable[[str], None]) -> None:
        self.bundle, self.rows, self.stored = networks.bundle, rows, StoredLabels()
        self.sizes: list[list[float]] = []
        self.grids: dict[str, Volume] = {}
        for row in rows:
            volume = read_volume(row["image"])
            truth = read_reference(row, volume, self.bundle)
            case = segment_case(volume, networks.of(row), fitting=True)
            self.stored.add(row["id"], truth.labels, case.segmentation.labels)
            # The place of the voxels without their values, which nothing asks for again
            self.grids[row["id"]] = volume.with_array(np.broadcast_to(np.float32(0), volume.shape))
            self.sizes.append([structure.size for structure in truth.structures])
            progress(row["id"])

    def scores(self, steps: Sequence[Step]) -> Scores:
        """Shape (cases, structures): the Dice after these steps; NaN where a structure is in neither mask."""
        return np.array([self._dice(row, steps) for row in self.rows])

    def _dice(self, row: Row, steps: Sequence[Step]) -> list[float]:
        image, bundle = self.grids[row["id"]], self.bundle
        true, labels = self.stored.read(row["id"])
        if steps:
            labels = tidied(image, labels, [_built(step) for step in steps], exclusive=bundle.exclusive)
        pairs = [Segmentation(image, array, bundle.segments).structures for array in (true, labels)]
        return [
            dice(one.mask_on_grid, other.mask_on_grid) if one.voxels or other.voxels else np.nan
            for one, other in zip(*pairs, strict=True)
        ]

    @property
    def candidates(self) -> list[tuple[str, type[Any]]]:
        """What is tried. MONAI fills holes of, and removes islands from, one label map or one channel."""
        one_map = self.bundle.exclusive or len(self.bundle.segments) == 1
        more = [("holes filled", FillHolesd), ("islands removed", RemoveSmallObjectsd)] if one_map else []
        return [("the largest piece alone", KeepLargestConnectedComponentd), *more]

    def tries(self, what: str, target: type[Any], taken: Sequence[Step], before: Scores) -> Iterator[Trial]:
        """This step for the structures that it helps, or in each size for all structures."""
        numbers = [segment.number for segment in self.bundle.segments]
        if target is not RemoveSmallObjectsd:
            gains = self.scores([*taken, self._step(target, numbers)]) - before
            helped = [number for n, number in enumerate(numbers) if self._estimate(gains[:, n : n + 1]).low > 0]
            gain = self._estimate(gains[:, [numbers.index(number) for number in helped or numbers]])
            names = ", ".join(segment.label for segment in self.bundle.segments if segment.number in helped)
            said = f"{what}: {names}" if helped else what
            yield Trial(self._step(target, helped or numbers), said, gain, bool(helped) and gain.low > 0)
            return
        smallest = float(np.nanmin(np.nanmedian(np.array(self.sizes), axis=0)))
        for part in ISLANDS:
            step = self._step(target, numbers, float(f"{part * smallest * self._unit:.2g}"))
            gain = self._estimate(self.scores([*taken, step]) - before)
            unit = "px" if self.bundle.rules.planar else "mL"
            yield Trial(step, f"{what}, below {step['min_size'] / self._unit:.3g} {unit}", gain, gain.low > 0)

    @property
    def _unit(self) -> float:
        """Of `min_size` in that of `Structure.size`: mm3 in a mL; pixels are pixels."""
        return 1.0 if self.bundle.rules.planar else 1000.0

    def _step(self, target: type[Any], numbers: Sequence[int], size: float | None = None) -> Step:
        step: dict[str, Any] = {"_target_": target.__name__, "keys": "pred"}
        exclusive = self.bundle.exclusive
        if target is RemoveSmallObjectsd:
            # In a label map MONAI would take each structure for one object; so the islands are those of all structures
            return step | {"min_size": size, "by_measure": True, "independent_channels": not exclusive}
        if target is FillHolesd:
            return step | ({"applied_labels": list(numbers)} if exclusive else {})
        labels = [number if exclusive else number - 1 for number in numbers]
        return step | {"applied_labels": labels, "is_onehot": not exclusive}

    def _estimate(self, gains: Scores) -> Estimate:
        """The mean gain over the structures of a case, by subject."""
        told = np.flatnonzero(~np.isnan(gains).all(axis=1))
        means = np.nanmean(gains[told], axis=1)
        subjects = [self.rows[n]["subject"] for n in told.tolist()]
        return bootstrap_mean(means, subjects, Bootstrap())


def _built(step: Step) -> Any:
    targets = {target.__name__: target for target in (KeepLargestConnectedComponentd, FillHolesd, RemoveSmallObjectsd)}
    return targets[step["_target_"]](**{name: value for name, value in step.items() if name != "_target_"})


def begin_anew(root: Path) -> bool:
    """Takes what was chosen before out of a bundle's `inference.yaml`; says whether post-processing may be chosen.

    It may not where the bundle's owner has written some, or where `result` is a plain list.
    """
    file = root / INFERENCE
    text = read_text(file)
    if (without := without_chosen_tidy(text)) != text:
        write_text(file, without)
    result = Bundle(root).result
    return result.named and not result.tidy and TIDY_FREE.search(without) is not None


def write_tidy(root: Path, trials: Sequence[Trial]) -> None:
    """Writes the steps that were taken into a bundle's `inference.yaml`, each with its gain."""
    steps = [(f"{trial.what}; Dice {gain_in_words(trial.gain)}", trial.step) for trial in trials if trial.taken]
    file = root / INFERENCE
    write_text(file, with_tidy(read_text(file), steps))


def gain_in_words(gain: Estimate) -> str:
    """ "+0.021 (0.003 to 0.052)", with the interval by subject."""
    ends = f" ({gain.low:+.4f} to {gain.high:+.4f})" if gain.interval else f" ({gain.subjects} subjects, no interval)"
    return f"{gain.value:+.4f}{ends}"

"""Post-processing that helps, chosen on cases that the network has not seen.

What is tried: on request a random field; thresholds other than 0.5 where labels may overlap; opening, closing, the largest
piece of each structure alone, holes filled; small islands removed. A step is taken where the mean gain in Dice has an interval
above 0, by subject, together with the steps that were taken before it.

Gentle steps are tried first, since an opening also removes stray pieces, and with them corners of what is right. In `tidy` they
stand in another order: what an opening cuts off can be dropped as a smaller piece; what a closing joins may enclose a hole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.inference_yaml import (
    TIDY_FREE,
    read_text,
    takes_thresholds,
    with_thresholds,
    with_tidy,
    without_chosen,
    write_text,
)
from monai_unet_app.calibration.tidy_steps import RANDOM_FIELDS, THRESHOLDS, Step, Steps, built, random_field
from monai_unet_app.data.read import read_volume
from monai_unet_app.evaluate.case_selection import Networks, Row
from monai_unet_app.evaluate.evaluation import StoredLabels
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.gathering import Keep, on_tensor, tidied
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, bootstrap_mean
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import preprocess, segment_case

INFERENCE = "configs/inference.yaml"
ISLANDS = (0.001, 0.01, 0.1)
"""Sizes of islands that are tried, as parts of the median size of the smallest structure."""

Scores = NDArray[np.float64]
Gains = Callable[[Step], Scores]


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Attributes:
        step: The transform, for the structures that it helps or, if it helps none, for all; or {"thresholds": a number for each
            label}.
        what: In words.
        gain: Mean Dice with the step minus without, over the structures that it is for.
        taken: Whether the interval of the gain lies above 0.
    """

    step: Step
    what: str
    gain: Estimate
    taken: bool


def choose_tidy(
    networks: Networks,
    rows: Sequence[Row],
    progress: Callable[[str], None] = lambda case_id: None,
    *,
    random_fields: bool = False,
) -> list[Trial]:
    """The steps that were tried on these cases, in the order in which those taken are to stand in `tidy`.

    Args:
        networks: Answer for the cases; their bundle has an empty `tidy`.
        rows: Cases that the networks have not seen.
        progress: Called with the id of each case when it is segmented.
        random_fields: Try conditional random fields, too.
    """
    cases = _Cases(networks, rows, progress, random_fields=random_fields)
    trials: dict[int, Trial] = {}
    for place, tries in cases.candidates:
        tried = list(tries(partial(cases.gains, place)))
        if tried:
            trials[place] = max(tried, key=lambda trial: (trial.taken, trial.gain.value))
            if trials[place].taken:
                cases.take(place, trials[place].step)
    return [trials[place] for place in sorted(trials)]


class _Cases:
    """Truths of all cases, on disk, and how far from yes each voxel was, or its label."""

    def __init__(
        self, networks: Networks, rows: Sequence[Row], progress: Callable[[str], None], *, random_fields: bool
    ) -> None:
        self.bundle, self.rows, self.stored = networks.bundle, rows, StoredLabels()
        self.sizes: list[list[float]] = []
        self.grids: dict[str, Volume] = {}
        self.steps = Steps(self.bundle.exclusive, len(self.bundle.segments))
        self.fields: list[Step] = []
        self.cuts: tuple[float, ...] = (0.5,)
        if not self.bundle.exclusive and takes_thresholds(read_text(self.bundle.root / INFERENCE)):
            self.cuts = tuple(sorted((0.5, *THRESHOLDS)))
        for row in rows:
            volume = read_volume(row["image"])
            truth = read_reference(row, volume, self.bundle)
            if random_fields and not self.fields:
                voxel = float(np.median(volume.axis_spacing))
                self.fields = [random_field(setting, voxel) for setting in RANDOM_FIELDS]
            keep: Keep = "probabilities" if len(self.cuts) > 1 or random_fields else "evidence"
            result = segment_case(volume, networks.of(row), fitting=True, keep=keep).segmentation
            self.stored.add(row["id"], truth.labels, self._levels(result))
            for number, step in enumerate(self.fields):
                self.stored.add(f"{row['id']} {number}", truth.labels, self._of_field(volume, result, step))
            # The place of the voxels without their values, which nothing asks for again
            self.grids[row["id"]] = volume.with_array(np.broadcast_to(np.float32(0), volume.shape))
            self.sizes.append([structure.size for structure in truth.structures])
            progress(row["id"])
        self.taken: dict[int, Step] = {}
        self.before = self.scores(())

    def take(self, place: int, step: Step) -> None:
        """Takes a step, which stands at this place among the others."""
        self.taken[place] = step
        self.before = self.scores(_in_order(self.taken))

    def gains(self, place: int, step: Step) -> Scores:
        """Shape (cases, structures): the Dice with a step at this place among those that are taken, minus without."""
        return self.scores(_in_order({**self.taken, place: step})) - self.before

    def _levels(self, result: Segmentation) -> NDArray[Any]:
        """The labels; where thresholds are tried, how many of `cuts` each label's probability reaches."""
        if len(self.cuts) == 1:
            return result.labels
        cuts = np.array(self.cuts, np.float32)
        return np.stack([np.searchsorted(cuts, p, side="right").astype(np.uint8) for p in result.segment_probabilities])

    def _of_field(self, volume: Volume, result: Segmentation, step: Step) -> NDArray[Any]:
        beside = {
            "prob": on_tensor(np.asarray(result.probabilities), volume),
            "image": preprocess(volume, self.bundle)["image"],
        }
        return tidied(volume, result.labels, built([step]), beside, exclusive=self.bundle.exclusive)

    def scores(self, steps: Sequence[Step]) -> Scores:
        """Shape (cases, structures): the Dice after these steps; NaN where a structure is in neither mask."""
        return np.array([self._dice(row, steps) for row in self.rows])

    def _dice(self, row: Row, steps: Sequence[Step]) -> list[float]:
        image, bundle = self.grids[row["id"]], self.bundle
        true, labels = self._labels(row, steps)
        plain = [step for step in steps if "thresholds" not in step and step not in self.fields]
        if plain:
            labels = tidied(image, labels, built(plain), exclusive=bundle.exclusive)
        pairs = [Segmentation(image, array, bundle.segments).structures for array in (true, labels)]
        return [
            dice(one.mask_on_grid, other.mask_on_grid) if one.voxels or other.voxels else np.nan
            for one, other in zip(*pairs, strict=True)
        ]

    def _labels(self, row: Row, steps: Sequence[Step]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The truth, and the labels before those steps that look at labels alone."""
        field = next((n for n, step in enumerate(self.fields) if step in steps), None)
        if field is not None:
            return self.stored.read(f"{row['id']} {field}")
        true, labels = self.stored.read(row["id"])
        if len(self.cuts) > 1:
            cuts = next((step["thresholds"] for step in steps if "thresholds" in step), [0.5] * len(labels))
            labels = np.stack([level > self.cuts.index(cut) for level, cut in zip(labels, cuts, strict=True)])
            labels = labels.astype(np.uint8)
        return true, labels

    @property
    def candidates(self) -> list[tuple[int, Callable[[Gains], Iterator[Trial]]]]:
        """What is tried, in this order, each with its place among the others; given how much a step gains."""
        make = self.steps
        candidates: list[tuple[int, Callable[[Gains], Iterator[Trial]]]] = [
            (0, self._fields),
            (1, self._thresholds),
            (4, partial(self._by_structure, "the largest piece alone", make.largest)),
            (5, partial(self._by_structure, "holes filled", make.filled)),
            (6, self._islands),
            (2, partial(self._by_structure, "opening by a voxel", make.opened)),
            (3, partial(self._by_structure, "closing by a voxel", make.closed)),
        ]
        # Of several channels MONAI leaves out the first where it fills holes, and joins islands across channels
        one_map = self.bundle.exclusive or len(self.bundle.segments) == 1
        return [candidate for candidate in candidates if one_map or candidate[0] not in (5, 6)]

    def _fields(self, gains: Gains) -> Iterator[Trial]:
        for step in self.fields:
            gain = self._estimate(gains(step))
            yield Trial(step, "random field, of monai-unet-app", gain, gain.low > 0)

    def _thresholds(self, gains: Gains) -> Iterator[Trial]:
        """For each label the threshold that helps it most; not after a random field, which decides by itself."""
        if len(self.cuts) == 1 or self.taken:
            return
        count, others = len(self.bundle.segments), [cut for cut in self.cuts if cut != 0.5]
        by_cut = {cut: gains({"thresholds": [cut] * count}) for cut in others}
        cuts = [0.5] * count
        for n in range(count):
            estimates = {cut: self._estimate(by_cut[cut][:, n : n + 1]) for cut in others}
            best = max(others, key=lambda cut: (estimates[cut].low > 0, estimates[cut].value))
            if estimates[best].low > 0:
                cuts[n] = best
        helped = [n for n, cut in enumerate(cuts) if cut != 0.5]
        if not helped:
            for cut in others:
                yield Trial({"thresholds": [cut] * count}, f"threshold {cut:.3g}", self._estimate(by_cut[cut]), False)
            return
        gain = self._estimate(np.stack([by_cut[cuts[n]][:, n] for n in helped], axis=1))
        said = ", ".join(f"{self.bundle.segments[n].label} {cuts[n]:.3g}" for n in helped)
        yield Trial({"thresholds": cuts}, f"threshold: {said}", gain, gain.low > 0)

    def _by_structure(self, what: str, make: Callable[[Sequence[int]], Step], gains: Gains) -> Iterator[Trial]:
        """The step for the structures that it helps."""
        numbers = [segment.number for segment in self.bundle.segments]
        gained = gains(make(numbers))
        helped = [number for n, number in enumerate(numbers) if self._estimate(gained[:, n : n + 1]).low > 0]
        gain = self._estimate(gained[:, [numbers.index(number) for number in helped or numbers]])
        names = ", ".join(segment.label for segment in self.bundle.segments if segment.number in helped)
        said = f"{what}: {names}" if helped else what
        yield Trial(make(helped or numbers), said, gain, bool(helped) and gain.low > 0)

    def _islands(self, gains: Gains) -> Iterator[Trial]:
        """Islands removed, of each size, of all structures."""
        smallest = float(np.nanmin(np.nanmedian(np.array(self.sizes), axis=0)))
        unit, in_unit = ("px", 1.0) if self.bundle.rules.planar else ("mL", 1000.0)  # MONAI measures in mm3
        for part in ISLANDS:
            step = self.steps.without_islands(float(f"{part * smallest * in_unit:.2g}"))
            gain = self._estimate(gains(step))
            said = f"islands removed, below {step['min_size'] / in_unit:.3g} {unit}"
            yield Trial(step, said, gain, gain.low > 0)

    def _estimate(self, gains: Scores) -> Estimate:
        """The mean gain over the structures of a case, by subject."""
        told = np.flatnonzero(~np.isnan(gains).all(axis=1))
        means = np.nanmean(gains[told], axis=1)
        subjects = [self.rows[n]["subject"] for n in told.tolist()]
        return bootstrap_mean(means, subjects, Bootstrap())


def _in_order(steps: Mapping[int, Step]) -> list[Step]:
    return [steps[place] for place in sorted(steps)]


def begin_anew(root: Path) -> bool:
    """Takes what was chosen before out of a bundle's `inference.yaml`; says whether post-processing may be chosen.

    It may not where the bundle's owner has written some, or where `result` is a plain list.
    """
    file = root / INFERENCE
    text = read_text(file)
    if (without := without_chosen(text)) != text:
        write_text(file, without)
    result = Bundle(root).result
    return result.named and not result.tidy and TIDY_FREE.search(without) is not None


def write_tidy(root: Path, trials: Sequence[Trial]) -> None:
    """Writes the steps that were taken into a bundle's `inference.yaml`, each with its gain."""
    file = root / INFERENCE
    text, steps = without_chosen(read_text(file)), []
    for trial in trials:
        reason = f"{trial.what}; Dice {gain_in_words(trial.gain)}"
        if trial.taken and "thresholds" in trial.step:
            text = with_thresholds(text, trial.step["thresholds"], reason)
        elif trial.taken:
            steps.append((reason, trial.step))
    write_text(file, with_tidy(text, steps))


def gain_in_words(gain: Estimate) -> str:
    """ "+0.021 (0.003 to 0.052)", with the interval by subject."""
    ends = f" ({gain.low:+.4f} to {gain.high:+.4f})" if gain.interval else f" ({gain.subjects} subjects, no interval)"
    return f"{gain.value:+.4f}{ends}"

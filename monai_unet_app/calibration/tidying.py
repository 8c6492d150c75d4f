"""Post-processing that helps, chosen on cases that the network has not seen.

A bundle lists in `steps` of its `inference.yaml` what may be chosen, and lets `thresholds` be chosen by reading them from
`fitted.json`. A step is taken where the mean gain in Dice has an interval above 0, by subject, together with the steps that
were taken before it.

Gentle steps are tried first, since an opening also removes stray pieces, and with them corners of what is right. In `tidy` they
stand in another order: what an opening cuts off can be dropped as a smaller piece; what a closing joins may enclose a hole.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.calibration.fitted import change_fitted, digests_before
from monai_unet_app.data.case_files import Row
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError
from monai_unet_app.evaluate.case_selection import Networks
from monai_unet_app.evaluate.evaluation import StoredLabels
from monai_unet_app.evaluate.reference import counted_voxels, read_reference
from monai_unet_app.gathering import Keep, tidied
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, bootstrap_mean
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import segment_case

Step = Mapping[str, Any]
"""As in `fitted.json`: "step", a name of `steps` in inference.yaml, with "structures" or "min_size"; or "thresholds"."""

TRIED = ("thresholds", "largest", "holes", "islands", "opening", "closing")
"""In this order; steps with other names follow."""

IN_TIDY = ("thresholds", "opening", "closing", "largest", "holes", "islands")
"""Order of the steps that are taken; steps with other names follow."""

WORDS = {
    "largest": "only the largest piece",
    "holes": "holes filled",
    "opening": "opening by a voxel",
    "closing": "closing by a voxel",
}

ISLANDS = (0.001, 0.01, 0.1)
"""Sizes of islands that are tried, as parts of the median size of the smallest structure."""

THRESHOLDS = (0.3, 102.5 / 255, 152.5 / 255, 0.7)
"""Tried beside 0.5. All lie halfway between two steps of 1/255, so that a FRACTIONAL SEG, which is rounded to such steps, says
which voxels were taken."""

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Attributes:
        step: For the structures that it helps or, if it helps none, for all.
        what: In words.
        gain: Mean Dice with the step minus without, over the structures that it is for.
        taken: Whether the interval of the gain lies above 0.
    """

    step: Step
    what: str
    gain: Estimate
    taken: bool


def chooses_tidy(bundle: BundleFiles) -> bool:
    """Whether the bundle's `tidy` reads `fitted.json`, or its `thresholds` do."""
    return _lists_thresholds(bundle) or "@fitted" in str(bundle.inference_document.get("tidy"))


def _lists_thresholds(bundle: BundleFiles) -> bool:
    return "@fitted" in str(bundle.inference_document.get("thresholds"))


def choose_tidy(
    networks: Networks, rows: Sequence[Row], progress: Callable[[str], None] = lambda case_id: None
) -> list[Trial]:
    """The steps that were tried on these cases, in the order in which those taken are to stand in `tidy`.

    Args:
        networks: Answer for the cases; nothing is chosen yet in `fitted.json` of their bundle.
        rows: Cases that the networks have not seen.
        progress: Called with the id of each case when it is segmented.

    Raises:
        BundleError: A step of the bundle needs more than labels.
    """
    cases = _Cases(networks, rows, progress)
    trials: list[Trial] = []
    for tries in cases.candidates:
        tried = list(tries)
        if tried:
            trials.append(max(tried, key=lambda trial: (trial.taken, trial.gain.value)))
            if trials[-1].taken:
                cases.take(trials[-1].step)
    return sorted(trials, key=lambda trial: _place(trial.step))


def _place(step: Step) -> int:
    return IN_TIDY.index(step["step"]) if step["step"] in IN_TIDY else len(IN_TIDY)


class _Cases:
    """Truths of all cases, on disk, and how many thresholds each voxel reached, or its label."""

    def __init__(self, networks: Networks, rows: Sequence[Row], progress: Callable[[str], None]) -> None:
        self.bundle, self.rows, self.stored = networks.bundle, rows, StoredLabels()
        self.sizes: list[list[float]] = []
        self.grids: dict[str, Volume] = {}
        self.cuts = tuple(sorted((0.5, *THRESHOLDS))) if _lists_thresholds(self.bundle) else (0.5,)
        self.labelled: dict[str, NDArray[np.uint8]] = {}  # packed bits of cases with ignored voxels
        for row in rows:
            volume = read_volume(row["image"])
            truth = read_reference(row, volume, self.bundle)
            if (labelled := counted_voxels(row, volume, self.bundle)) is not None:
                self.labelled[row["id"]] = np.packbits(labelled)
            keep: Keep = "probabilities" if len(self.cuts) > 1 else "evidence"
            result = segment_case(volume, networks.of(row), fitting=True, keep=keep).segmentation
            self.stored.add(row["id"], truth.labels, self._levels(result))
            # The place of the voxels without their values, which nothing asks for again
            self.grids[row["id"]] = volume.with_array(np.broadcast_to(np.float32(0), volume.shape))
            self.sizes.append([structure.size for structure in truth.structures])
            progress(row["id"])
        self.taken: list[Step] = []
        self.before = self.scores(())

    @cached_property
    def makers(self) -> Mapping[str, Callable[[Step], Any]]:
        """`steps` of the bundle: each makes a transform of the values of a step."""
        return self.bundle.part("steps") if "steps" in self.bundle.inference_document else {}

    def take(self, step: Step) -> None:
        """Takes a step."""
        self.taken.append(step)
        self.before = self.scores(self.taken)

    def gains(self, step: Step) -> Scores:
        """Shape (cases, structures): the Dice with a step among those that are taken, minus without."""
        return self.scores([*self.taken, step]) - self.before

    def _levels(self, result: Segmentation) -> NDArray[Any]:
        """The labels; where thresholds are tried, how many of `cuts` each label's probability reaches."""
        if len(self.cuts) == 1:
            return result.labels
        cuts = np.array(self.cuts, np.float32)
        return np.stack([np.searchsorted(cuts, p, side="right").astype(np.uint8) for p in result.segment_probabilities])

    def scores(self, steps: Sequence[Step]) -> Scores:
        """Shape (cases, structures): the Dice after these steps; NaN where a structure is in neither mask."""
        in_order = sorted(steps, key=_place)
        transforms = [self._made(step) for step in in_order if step["step"] != "thresholds"]
        cuts = next((step["values"] for step in in_order if step["step"] == "thresholds"), None)
        return np.array([self._dice(row, cuts, transforms) for row in self.rows])

    def _made(self, step: Step) -> Any:
        transform = self.makers[step["step"]](step)
        if needs := getattr(transform, "needs", ()):
            raise BundleError(
                f"{self.bundle.name}: step `{step['step']}` needs {' and '.join(needs)} beside the labels; only steps that "
                "look at labels alone can be chosen; take it out of `steps`, and write it into `tidy` yourself"
            )
        return transform

    def _dice(self, row: Row, cuts: Sequence[float] | None, transforms: Sequence[Any]) -> list[float]:
        image, bundle = self.grids[row["id"]], self.bundle
        true, labels = self.stored.read(row["id"])
        if len(self.cuts) > 1:
            chosen = cuts or [0.5] * len(labels)
            labels = np.stack([level > self.cuts.index(cut) for level, cut in zip(labels, chosen, strict=True)])
            labels = labels.astype(np.uint8)
        if transforms:
            labels = tidied(image, labels, transforms)
        if row["id"] in self.labelled:
            bits = np.unpackbits(self.labelled[row["id"]], count=math.prod(image.shape))
            labels = labels * bits.reshape(image.shape)
        pairs = [Segmentation(image, array, bundle.segments).structures for array in (true, labels)]
        return [
            dice(one.mask_on_grid, other.mask_on_grid) if one.voxels or other.voxels else np.nan
            for one, other in zip(*pairs, strict=True)
        ]

    @property
    def candidates(self) -> Iterator[Iterator[Trial]]:
        """What is tried, step by step."""
        others = [name for name in self.makers if name not in TRIED]
        for name in (*TRIED, *others):
            if name == "thresholds" and len(self.cuts) > 1:
                yield self._thresholds()
            elif name == "islands" and name in self.makers:
                yield self._islands()
            elif name in self.makers:
                yield self._by_structure(name)

    def _thresholds(self) -> Iterator[Trial]:
        """For each label the threshold that helps it most."""
        count, others = len(self.bundle.segments), [cut for cut in self.cuts if cut != 0.5]

        def step(values: list[float]) -> Step:
            return {"step": "thresholds", "values": values}

        by_cut = {cut: self.gains(step([cut] * count)) for cut in others}
        cuts = [0.5] * count
        for n in range(count):
            estimates = {cut: self._estimate(by_cut[cut][:, n : n + 1]) for cut in others}
            best = max(others, key=lambda cut: (estimates[cut].low > 0, estimates[cut].value))
            if estimates[best].low > 0:
                cuts[n] = best
        helped = [n for n, cut in enumerate(cuts) if cut != 0.5]
        if not helped:
            for cut in others:
                yield Trial(step([cut] * count), f"threshold {cut:.3g}", self._estimate(by_cut[cut]), False)
            return
        gain = self._estimate(np.stack([by_cut[cuts[n]][:, n] for n in helped], axis=1))
        said = ", ".join(f"{self.bundle.segments[n].label} {cuts[n]:.3g}" for n in helped)
        yield Trial(step(cuts), f"threshold: {said}", gain, gain.low > 0)

    def _by_structure(self, name: str) -> Iterator[Trial]:
        """The step for the structures that it helps."""
        numbers = [segment.number for segment in self.bundle.segments]
        gained = self.gains({"step": name, "structures": numbers})
        helped = [number for n, number in enumerate(numbers) if self._estimate(gained[:, n : n + 1]).low > 0]
        gain = self._estimate(gained[:, [numbers.index(number) for number in helped or numbers]])
        names = ", ".join(segment.label for segment in self.bundle.segments if segment.number in helped)
        said = WORDS.get(name, name) + (f": {names}" if helped else "")
        yield Trial({"step": name, "structures": helped or numbers}, said, gain, bool(helped) and gain.low > 0)

    def _islands(self) -> Iterator[Trial]:
        """Islands removed, of each size, of all structures."""
        smallest = float(np.nanmin(np.nanmedian(np.array(self.sizes), axis=0)))
        unit, in_unit = ("px", 1.0) if self.bundle.rules.planar else ("mL", 1000.0)  # MONAI measures in mm3
        for part in ISLANDS:
            size = float(f"{part * smallest * in_unit:.2g}")
            step = {"step": "islands", "min_size": size}
            gain = self._estimate(self.gains(step))
            said = f"islands removed, below {size / in_unit:.3g} {unit}"
            yield Trial(step, said, gain, gain.low > 0)

    def _estimate(self, gains: Scores) -> Estimate:
        """The mean gain over the structures of a case, by subject."""
        told = np.flatnonzero(~np.isnan(gains).all(axis=1))
        means = np.nanmean(gains[told], axis=1)
        subjects = [self.rows[n]["subject"] for n in told.tolist()]
        return bootstrap_mean(means, subjects, Bootstrap())


def write_tidy(bundle: Bundle, trials: Sequence[Trial] = ()) -> None:
    """Writes the steps that were taken into the bundle's `fitted.json`, each with its gain; none: nothing is chosen."""
    taken = [(trial.step, f"{trial.what}; Dice {gain_in_words(trial.gain)}") for trial in trials if trial.taken]
    steps = [{**step, "why": why} for step, why in taken if step["step"] != "thresholds"]
    digests = digests_before(bundle) if trials else None
    why = f"{len(taken)} of {len(trials)} tried" if trials else None
    change_fitted(bundle.root, "tidy", steps=steps, why=why, fitted_to=digests)
    values, why = next(((step["values"], why) for step, why in taken if step["step"] == "thresholds"), (None, None))
    change_fitted(bundle.root, "thresholds", values=values, why=why, fitted_to=digests if values else None)


def gain_in_words(gain: Estimate) -> str:
    """ "+0.021 (0.003 to 0.052)", with the interval by subject."""
    ends = f" ({gain.low:+.4f} to {gain.high:+.4f})" if gain.interval else f" ({gain.subjects} subjects, no interval)"
    return f"{gain.value:+.4f}{ends}"

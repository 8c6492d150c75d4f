"""The fingerprint of a data set: the properties of its cases, and what is wrong with it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monai_unet_app.data.strict import MOST_CLASSES

MOST_TOLD = 10


@dataclass(frozen=True)
class CaseFingerprint:
    """The properties of one case.

    Attributes:
        shape: Voxels along I, J, K.
        spacing_mm: Voxel spacing along I, J, K; None for pictures, whose unit is the pixel.
        axes: Patient direction of I, J, K, as three letters of RLAPSI ("LPS"); "px" for pictures.
        channels: 1 for grey.
        modality: DICOM Modality or None; of several series that of the first.
        intensity: The 0.5th, 50th and 99.5th percentile of each channel.
        class_size: Size of each label value in mL (pixels for pictures); empty without a label.
        class_voxels: The same in voxels.
        subject: As in `subjects_of`.
        ignored: Number of voxels of its label without a class.
        foreground: Of the voxels of all structures in each channel: 0.5th percentile, mean, standard deviation, 99.5th
            percentile; empty without a label or for an empty one.
        further_modalities: Of the further series, if the channels are a file or a series each.
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    axes: str
    channels: int
    modality: str | None
    intensity: tuple[tuple[float, float, float], ...]
    class_size: dict[int, float]
    class_voxels: dict[int, int]
    subject: str
    foreground: tuple[tuple[float, float, float, float], ...] = ()
    ignored: int = 0
    further_modalities: tuple[str | None, ...] = ()

    @property
    def modalities(self) -> tuple[str | None, ...]:
        """DICOM Modality, or None, of each channel."""
        return (
            (self.modality, *self.further_modalities) if self.further_modalities else (self.modality,) * self.channels
        )

    @property
    def overlaps(self) -> bool:
        """Whether structures share voxels: with the background, and what is ignored, they have more than the image."""
        return sum(self.class_voxels.values()) + self.ignored > math.prod(self.shape)


@dataclass(frozen=True)
class Fingerprint:
    """All cases that can be used, and the problems of the others.

    Attributes:
        cases: One entry for each usable case.
        refusals: Why a case cannot be used, by its id.
        odd: Unusual findings that may be right but should be looked at, one sentence each.
        faults: Sure findings about several cases, on which nothing should be trained, one sentence each.
    """

    cases: tuple[CaseFingerprint, ...]
    refusals: Mapping[str, str]
    odd: tuple[str, ...]
    faults: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[str, ...]:
        """Cases that cannot be used, one sentence each."""
        return tuple(f"{name}: {reason}" for name, reason in self.refusals.items())

    @property
    def problems(self) -> tuple[str, ...]:
        """All problems, the refused cases first."""
        return self.refused + self.faults + self.odd

    def to_look_at(self) -> tuple[str, ...]:
        """The first of `odd`, and how to see the others, for a verb that goes on in spite of them."""
        more = len(self.odd) - MOST_TOLD
        last = (f"and {more} more findings to look at; monai-unet inspect --strict lists all",) if more > 0 else ()
        return (*self.odd[:MOST_TOLD], *last)

    @property
    def label_values(self) -> frozenset[int]:
        """The values that some label holds, 0 included."""
        return frozenset(value for case in self.cases for value in case.class_size)

    @property
    def label_voxels(self) -> dict[str, dict[int, int]]:
        """As `label_voxels_of`."""
        return label_voxels_of(self.cases)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: the summary, the cases, the problems."""
        return {
            "summary": self.summary(),
            "cases": [asdict(case) for case in self.cases],
            "problems": list(self.problems),
        }

    def summary(self) -> dict[str, Any]:
        """Ranges over the cases; empty without a usable case. Intensities: three for each channel, of cases with as many."""
        if not self.cases:
            return {}
        channels = Counter(case.channels for case in self.cases)
        usual = [case for case in self.cases if case.channels == channels.most_common(1)[0][0]]
        spacings = [case.spacing_mm for case in self.cases if case.spacing_mm is not None]
        return {
            "cases": len(self.cases),
            "subjects": len({case.subject for case in self.cases}),
            "shape": _range([case.shape for case in self.cases], existing_median=True),
            **({"spacing_mm": _range(spacings)} if spacings else {}),
            "axes": dict(Counter(case.axes for case in self.cases)),
            "channels": dict(channels),
            "modality": dict(Counter(case.modality or "not said" for case in self.cases)),
            "intensity_p0.5_p50_p99.5": _range([sum(case.intensity, ()) for case in usual]),
            "class_unit": "px" if all(case.axes == "px" for case in self.cases) else "mL",
            "class_size": {
                value: _range([[case.class_size[value]] for case in self.cases if value in case.class_size])
                for value in sorted(self.label_values)[: MOST_CLASSES + 1]
                if value
            },
        }


def label_voxels_of(cases: Sequence[CaseFingerprint]) -> dict[str, dict[int, int]]:
    """Voxels of each label value, by the id of the case, of all cases with a label."""
    return {case.id: case.class_voxels for case in cases if case.class_voxels}


def _range(rows: Sequence[Sequence[float]], *, existing_median: bool = False) -> dict[str, list[float]]:
    """Least, median and most of each column. The median of an even number of rows is the mean of the middle two rows, or
    the lower of them if it must exist in a row.
    """
    table = np.array(rows, dtype=float)
    # The shape must be one that a case has: half a voxel does not exist
    middle = np.percentile(table, 50.0, axis=0, method="lower" if existing_median else "linear")
    return {
        "least": np.round(table.min(axis=0), 4).tolist(),
        "median": np.round(middle, 4).tolist(),
        "most": np.round(table.max(axis=0), 4).tolist(),
    }

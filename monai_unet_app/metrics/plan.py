"""What is measured, with which lengths, in which units, and the names of the populations of calibration."""

import math
from dataclasses import dataclass

from .outputs import EXCLUSIVE, Outputs
from .reliability import BINS

WHOLE = "whole"


@dataclass(frozen=True)
class Units:
    """Units of lengths and of sizes as keys spell them, and the unit of sizes as sentences and headings spell it."""

    length: str
    size: str
    size_in_words: str


VOLUME, PICTURE = Units("mm", "ml", "mL"), Units("px", "px", "pixels")


def units_of(planar: bool) -> Units:
    """The units of 2D pictures, or of volumes."""
    return PICTURE if planar else VOLUME


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured, and with which lengths.

    Attributes:
        class_names: Foreground classes: name n is label n + 1; its probability channel lies behind those of the background.
        outputs: What the channels are.
        planar: True for 2D pictures, whose lengths are pixels.
        boundary_width: Depth d of the band of boundary IoU, in mm (pixels where planar).
        band_width: Half width of the population around the predicted surface, same unit.
        surface_tolerance: Distance that surface Dice forgives, same unit.
        bins: Number of equal-width bins of confidence, and of bins of equal mass.
        tolerances: Further distances at which surface Dice is taken, same unit.
        centreline: Also take the Dice of centre-lines, for vessels and other thin structures.
        likely_above: Least probability of foreground, 0 to 1, above which a voxel is in the population "likely".
        box_margin: What the population "box" adds on every side to the box of the predicted foreground, in mm (pixels).
        probabilities: Results have them. Without, as label files are, nothing is said of calibration.

    Raises:
        ValueError: A width, tolerance, probability or margin is out of its range, or a tolerance is there twice.
    """

    class_names: tuple[str, ...]
    outputs: Outputs = EXCLUSIVE
    planar: bool = False
    boundary_width: float = 1.0
    band_width: float = 2.0
    surface_tolerance: float = 1.0
    bins: int = BINS
    tolerances: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 5.0)
    centreline: bool = False
    likely_above: float = 0.01
    box_margin: float = 10.0
    probabilities: bool = True

    def __post_init__(self) -> None:
        # Names are counted, not numbers: two tolerances that print alike would share a key in the files.
        if not all(math.isfinite(t) and t >= 0 for t in self.tolerances) or len(set(self.tolerance_names)) < len(
            self.tolerances
        ):
            raise ValueError(
                f"tolerances are {self.tolerances}; finite lengths of 0 or more, each once (to six digits), are needed"
            )
        if not (self.boundary_width > 0 and self.band_width > 0 and self.surface_tolerance >= 0 and self.bins >= 1):
            raise ValueError(
                f"boundary_width is {self.boundary_width}, band_width {self.band_width}, surface_tolerance "
                f"{self.surface_tolerance}, bins {self.bins}; widths above 0, a tolerance of 0 or more and a bin are needed"
            )
        if not 0 <= self.likely_above < 1:
            raise ValueError(f"likely_above is {self.likely_above}; a probability of 0 or more and below 1 is needed")
        if not (math.isfinite(self.box_margin) and self.box_margin >= 0):
            raise ValueError(f"box_margin is {self.box_margin}; a finite length of 0 or more is needed")

    @property
    def units(self) -> Units:
        """Units of lengths and sizes."""
        return units_of(self.planar)

    @property
    def tolerance_names(self) -> tuple[str, ...]:
        """The tolerances with their unit, for instance "0.5mm"."""
        return tuple(f"{tolerance:g}{self.units.length}" for tolerance in self.tolerances)

    @property
    def band(self) -> str:
        """Name of the population around the predicted surface, for instance "band_2mm"."""
        return f"band_{self.band_width:g}{self.units.length}"

    @property
    def likely(self) -> str:
        """Name of the population of voxels that may be foreground, for instance "likely_0.01"."""
        return f"likely_{self.likely_above:g}"

    @property
    def box(self) -> str:
        """Name of the population in and around the box of the predicted foreground, for instance "box_10mm"."""
        return f"box_{self.box_margin:g}{self.units.length}"

    @property
    def populations(self) -> tuple[str, ...]:
        """The two of the headlines `ece` and `ece_band`: the whole image and the band; none without probabilities."""
        return (WHOLE, self.band) if self.probabilities else ()

    @property
    def every_population(self) -> tuple[str, ...]:
        """Names of all populations in which calibration is counted."""
        return (*self.populations, self.likely, self.box) if self.probabilities else ()

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Name of each channel of the probabilities; with the background first if it has one."""
        return (*["background"] * self.outputs.background, *self.class_names)

    @property
    def channels(self) -> int:
        """Number of channels of the probabilities."""
        return len(self.channel_names)

    def row_of(self, index: int) -> int:
        """Row of `ReliabilityCounts` that holds the named class `index`; row 0 is the top label."""
        return 1 + self.outputs.background + index

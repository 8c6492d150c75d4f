"""The content of the objects of one result: the record that the `write_result` of every kind takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dicom_io.coding import Whole
from dicom_io.errors import LabelError
from dicom_io.kinds.encodings import SegEncoding
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.labels import Fractions
from dicom_io.volume import Volume


@dataclass(frozen=True)
class ReportFacts:
    """Statements of a report beside its measurements.

    Attributes:
        volumes_ml: Segment number -> interval (low, high) of its volume in mL, for the segments with a known interval.
        wholes_ml: The structures whose parts are several segments that do not overlap, each with the interval of its volume in
            mL where it is known.
        earlier: The report that the new report replaces, of the same patient and study. The new report names it as
            predecessor. If both have the same content, the new report is the earlier report again, byte for byte.
    """

    volumes_ml: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    wholes_ml: Mapping[Whole, tuple[float, float] | None] = field(default_factory=dict)
    earlier: Path | None = None


_Values = TypeVar("_Values")
NO_FACTS = ReportFacts()


@dataclass(frozen=True)
class ResultContent:
    """One result on one source series.

    Attributes:
        labels: Shape (I, J, K) with label values, or (I, J, K, C) with channel c as segment c + 1.
        source: DICOM volume on the same grid, or a picture.
        info: What computed the labels.
        paths: Where the object of each kind is written, by the kind's name.
        encoding: How the SEG is encoded.
        empty_frames: The SEG has a frame for every slice and segment, also where there is no voxel.
        probabilities: Gives the probabilities of the segments; None where only labels are known.
        uncertainty: Gives the entropy of the probabilities, shape (I, J, K), 0 to 1; None where only labels are known.
        report: Statements of a report beside its measurements.
    """

    labels: Volume
    source: Volume
    info: ResultInfo
    paths: Mapping[str, Path]
    encoding: SegEncoding = "binary"
    empty_frames: bool = False
    probabilities: Callable[[], Fractions] | None = None
    uncertainty: Callable[[], Volume] | None = None
    report: ReportFacts = NO_FACTS

    def known(self, values: Callable[[], _Values] | None) -> _Values:
        """The values of `probabilities` or `uncertainty`. Raises LabelError where only labels are known."""
        if values is None:
            raise LabelError(
                "the result contains only labels; a fractional SEG and a map need probabilities; write a binary SEG and no map"
            )
        return values()

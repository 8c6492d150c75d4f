"""The quantity and unit of a Parametric Map."""

from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

PROBABILITY: Code = codes.DCM.Probability
UNCERTAINTY: Code = codes.SCT.RangeOfMeasurementUncertainty
NO_UNIT: Code = codes.UCUM.NoUnits


@dataclass(frozen=True)
class MapMeaning:
    """The quantity, unit and label of one map.

    Attributes:
        quantity: `PROBABILITY`, `UNCERTAINTY`, or another published code.
        unit: A UCUM unit; `NO_UNIT` for a bare number.
        label: Distinguishes the maps of a result, for instance "P(Anterior)"; ASCII. The first 16 characters are the LUT label,
            the first 64 the explanation. Part of the UID.
        number: InstanceNumber, from 1, where a result has several maps.
    """

    quantity: Code
    unit: Code
    label: str
    number: int = 1

    @property
    def content(self) -> tuple[str, ...]:
        """The texts that distinguish the maps of one result."""
        return (*map(str, self.quantity), *map(str, self.unit), self.label, str(self.number))

"""Values of every voxel to a DICOM Parametric Map, and back."""

from dicom_io.parametric.meaning import NO_UNIT, PROBABILITY, UNCERTAINTY, MapMeaning
from dicom_io.parametric.read import read_parametric_map
from dicom_io.parametric.write import write_parametric_map

__all__ = ["NO_UNIT", "PROBABILITY", "UNCERTAINTY", "MapMeaning", "read_parametric_map", "write_parametric_map"]

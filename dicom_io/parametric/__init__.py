"""Values of every voxel to a DICOM Parametric Map, back, and the proof of it."""

from dicom_io.parametric.proof import prove_map
from dicom_io.parametric.read import read_parametric_map
from dicom_io.parametric.write import NO_UNIT, PROBABILITY, UNCERTAINTY, write_parametric_map

__all__ = ["NO_UNIT", "PROBABILITY", "UNCERTAINTY", "prove_map", "read_parametric_map", "write_parametric_map"]

"""Labels to a DICOM RT Structure Set, back, and the proof of it."""

from dicom_io.rtstruct.proof import prove_rtstruct
from dicom_io.rtstruct.read import read_regions, read_rtstruct, region_names
from dicom_io.rtstruct.write import write_rtstruct

__all__ = ["prove_rtstruct", "read_regions", "read_rtstruct", "region_names", "write_rtstruct"]

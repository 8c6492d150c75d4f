"""Measurements to a structured report (TID 1500), its verified version, and reports of any software back."""

from dicom_io.sr.read import CLASSES, MeasurementGroup, read_sr
from dicom_io.sr.verify import Verification, write_verified_sr
from dicom_io.sr.write import write_sr

__all__ = ["CLASSES", "MeasurementGroup", "Verification", "read_sr", "write_sr", "write_verified_sr"]

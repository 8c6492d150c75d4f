"""Labels to a Softcopy Presentation State, and the proof of it."""

from dicom_io.presentation.proof import prove_outlines
from dicom_io.presentation.write import write_gsps

__all__ = ["prove_outlines", "write_gsps"]

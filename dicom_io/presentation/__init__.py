"""Labels to a Softcopy Presentation State."""

from dicom_io.presentation.write import write_gsps

__all__ = ["write_gsps"]

"""DICOM in and out. Knows files, wires and the patient; never a model, never torch.

The names in `__all__` are its doors. Each is imported when it is first used: `from dicom_io import read_series`.
"""

from importlib import import_module
from typing import Any

_DOORS = {
    "Volume": "volume",
    "DicomIoError": "errors",
    "ReadOptions": "read",
    "Verdict": "read",
    "read_series": "read",
    "examine": "read",
    "read_channels": "channels",
    "read_itk": "itk_files",
    "write_itk": "itk_files",
    "Segment": "coding",
    "load_segments": "coding",
    "ResultInfo": "objects.identity",
    "write_seg": "seg",
    "read_seg": "seg",
    "read_segments": "seg",
    "write_sr": "sr",
    "read_sr": "sr",
    "write_rtstruct": "rtstruct",
    "read_rtstruct": "rtstruct",
    "read_regions": "rtstruct",
    "write_parametric_map": "parametric",
    "read_parametric_map": "parametric",
    "write_gsps": "presentation",
    "write_captures": "capture",
    "write_pdf": "pdf",
    "read_pdf": "pdf",
    "prove_seg": "seg",
    "prove_rtstruct": "rtstruct",
}
__all__ = list(_DOORS)


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)

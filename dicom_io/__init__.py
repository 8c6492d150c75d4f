"""DICOM in and out. Knows files, wires and the patient; never a model, never torch.

The names in `__all__` are its doors. Each is imported when it is first used: `from dicom_io import read_series`.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "volume": "Volume",
    "errors": "DicomIoError",
    "read": "Examination ReadOptions read_series examine",
    "channels": "read_channels",
    "itk_files": "read_itk write_itk",
    "coding": "Segment load_segments",
    "objects.identity": "ResultInfo",
    "seg": "write_seg read_seg read_segments prove_seg",
    "sr": "write_sr read_sr",
    "rtstruct": "write_rtstruct read_rtstruct read_regions prove_rtstruct",
    "parametric": "write_parametric_map read_parametric_map",
    "presentation": "write_gsps",
    "capture": "write_captures",
    "pdf": "write_pdf read_pdf",
}
_DOORS = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_DOORS)


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)

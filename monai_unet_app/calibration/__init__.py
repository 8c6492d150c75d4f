"""Fits the calibration of a bundle's probabilities, and the statements that a bundle makes about its results.

`fit` fits the calibration that a bundle's `inference.yaml` declares; of large images `sample` draws boxes for it.
`statement_fit` fits the statements of the package `confidence`; its quality gate learns from the images of `corruptions`.
"""

from typing import Any

__all__ = ["CalibrationFit", "Fitted"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # importing torch takes seconds, and judging a result needs no fit
        from monai_unet_app.calibration import fit

        return getattr(fit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

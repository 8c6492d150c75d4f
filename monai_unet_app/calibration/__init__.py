"""Makes probabilities mean what they say, and says how far a result can be relied on.

`fit` fits the calibration that a bundle's `inference.yaml` declares; `confidence` is what a bundle states about its results, by
`conformal` arithmetic, the gate of `quality` (from `features`, taught by `corruptions`) and the `shift` of images.
"""

from typing import Any

__all__ = ["CalibrationFit", "Fitted"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch takes seconds: who only judges a result does not fit
        from monai_unet_app.calibration import fit

        return getattr(fit, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

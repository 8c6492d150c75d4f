"""Makes probabilities mean what they say: fits the calibration that a bundle's `inference.yaml` declares."""

from monai_unet_app.calibration.fit import CalibrationFit, Fitted

__all__ = ["CalibrationFit", "Fitted"]

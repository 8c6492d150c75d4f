"""`StatementFit` under the name by which the `calibrate.yaml` of a bundle calls it, also of bundles trained long ago."""

from monai_unet_app.calibration.statement_fit import StatementFit

__all__ = ["StatementFit"]

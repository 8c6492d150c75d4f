"""Train U-Nets as MONAI bundles; segment, measure and deliver with them."""

__version__ = "0.1.0"

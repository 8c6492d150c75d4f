"""What nnU-Net v2 does to an image, so that its networks give its own voxels here; named by the bundles that were imported.

Measured against nnU-Net 2.8.1. Source: Isensee et al., nnU-Net, Nature Methods 2021, doi:10.1038/s41592-020-01008-z.
"""

from monai_unet_app.inference.nnunet.networks import Mirrored, PlainConvUNet, ResidualEncoderUNet
from monai_unet_app.inference.nnunet.preprocessing import Preprocessed, ToSource
from monai_unet_app.inference.nnunet.window import MeanOfNetworks, WindowInferer

__all__ = [
    "MeanOfNetworks",
    "Mirrored",
    "PlainConvUNet",
    "Preprocessed",
    "ResidualEncoderUNet",
    "ToSource",
    "WindowInferer",
]

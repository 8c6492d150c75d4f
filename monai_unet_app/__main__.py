"""`python -m monai_unet_app`."""

import sys

from monai_unet_app.cli import main

sys.exit(main())

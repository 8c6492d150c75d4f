"""Runs the application of this package."""

import sys

from monai_unet_app.deploy.app import main

sys.exit(main())

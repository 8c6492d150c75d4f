"""The application in the image: `python3 /opt/holoscan/app`. What it says goes to stderr, the outcome is its exit code.

Exit 0 done, 1 failed, 2 wrong settings, 3 input refused, as `monai-unet predict`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

from dicom_io.errors import DicomIoError
from monai_unet_app.deploy.job import Job, job_from
from monai_unet_app.errors import AppError, InputRefusedError, UsageError

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3


def main() -> int:
    """Runs the job of this environment once and gives its exit code."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # of other packages; they may quote a header, and hosts keep what a container says
    try:
        _run(job_from(os.environ))
    except UsageError as error:
        return _told(f"error: {error}", USAGE)
    except (InputRefusedError, DicomIoError) as error:
        return _told(f"refused: {error}", REFUSED)
    except AppError as error:
        return _told(f"error: {error}", FAILED)
    except OSError as error:
        return _told(f"error: {error.strerror or error}: {error.filename or ''}; free space or give access", FAILED)
    return DONE


def _run(job: Job) -> None:
    try:
        from monai_unet_app.deploy.sdk import run
    except ImportError as error:
        raise AppError(
            f"the MONAI Deploy App SDK cannot be imported ({error}); the packages of requirements.txt are needed; build the "
            "image by the package's Dockerfile"
        ) from error
    run(job)


def _told(message: str, code: int) -> int:
    sys.stderr.write(f"{message}\n")
    return code

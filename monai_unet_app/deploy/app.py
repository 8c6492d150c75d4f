"""The application in the image: `python3 /opt/holoscan/app`. What it says goes to stderr, the outcome is its exit code.

Exit 0 done, 1 failed, 2 wrong settings, 3 input refused, as `monai-unet predict`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from dataclasses import replace

from dicom_io.errors import DicomIoError
from monai_unet_app.deploy.job import Job, job_from
from monai_unet_app.errors import AppError, InputRefusedError, UsageError

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3


def main() -> int:
    """Runs the job of this environment once and gives its exit code."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # of other packages; they may quote a header, and hosts keep what a container says
    try:
        _run(replace(job_from(os.environ), tell=lambda text: _say(in_container(text))))
    except UsageError as error:
        return _told(f"error: {error}", USAGE)
    except (InputRefusedError, DicomIoError) as error:
        return _told(f"refused: {error}", REFUSED)
    except AppError as error:
        return _told(f"error: {error}", FAILED)
    except OSError as error:
        return _told(
            f"error: {error.strerror or error}: {error.filename or ''}; the "
            "user of this container must be able to read the input and write to the output, which needs free space",
            FAILED,
        )
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


_MEANINGS = {FAILED: "failed", USAGE: "wrong settings", REFUSED: "an input was refused"}
_SETTINGS = (
    "settings stand under segmentation: in app.yaml, which a host mounts at /var/holoscan/app.yaml (HOLOSCAN_CONFIG_PATH); "
    "under mercure, in the settings of module or rule"
)
_ELSEWHERE = {
    "give --dicom-source DIR, or --dicomize to write one": "put the DICOM series into the input instead, or set dicomize: true",
    "leave --dicomize and --dicom-source out": "leave the setting dicomize out",
    "check the path": "check what is mounted there",
}
"""What the command line advises and cannot be done in a container -> what can."""
_VALUES = {"--series UID": "the setting series: UID"}


def in_container(text: str) -> str:
    """A message for whoever runs the container: with settings, and where they stand, instead of flags of the command line."""
    for words, ours in (_ELSEWHERE | _VALUES).items():
        text = text.replace(words, ours)
    said = re.sub(r"--([a-z][a-z-]+[a-z])", lambda found: f"the setting {found[1].replace('-', '_')}", text)
    return said if "the setting" not in said else f"{said}\n{_SETTINGS}"


def _told(message: str, code: int) -> int:
    _say(f"{in_container(message)}\nexit code {code}: {_MEANINGS[code]}")
    return code


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")

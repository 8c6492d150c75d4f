"""The application in the image: `python3 /opt/holoscan/app`. It writes messages to stderr, and its exit code is the outcome.

Exit 0 done, 1 failed, 2 wrong settings, 3 input refused, as `monai-unet predict`.
"""

import logging
import os
import re
import sys
import warnings
from dataclasses import replace

from dicom_io.errors import DicomIoError
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.deploy.job import ApplicationJob, job_from
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.processes import begin_program, load_monai

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3


def main() -> int:
    """Runs the job of this environment once and gives its exit code."""
    warnings.simplefilter("ignore")
    # Warnings of other packages may quote a header, and hosts keep the output of a container.
    logging.disable(logging.WARNING)
    try:
        _run(replace(job_from(os.environ), tell=lambda text: _print(in_container(text))))
    except UsageError as error:
        return _failed(f"error: {error}", USAGE)
    except (InputRefusedError, DicomIoError) as error:
        return _failed(f"refused: {error}", REFUSED)
    # After its subclasses UsageError and InputRefusedError.
    except AppError as error:
        return _failed(f"error: {error}", FAILED)
    except OSError as error:
        return _failed(
            f"error: {error.strerror or error}: {error.filename or ''}; the "
            "user of this container must be able to read the input and write to the output, which needs free space",
            FAILED,
        )
    return DONE


def _run(job: ApplicationJob) -> None:
    begin_program()
    load_monai(to_segment=bundle_files(job.model).only_segments)  # before the SDK, which is a part of MONAI
    try:
        # Imported here, so that an image without the SDK ends with a message and an exit code.
        from monai_unet_app.deploy.sdk import run
    except ImportError as error:
        raise AppError(
            f"the MONAI Deploy App SDK cannot be imported ({error}); the packages of requirements.txt are needed; build the "
            "image by the package's Dockerfile"
        ) from error
    run(job)


_MEANINGS = {FAILED: "failed", USAGE: "wrong settings", REFUSED: "an input was refused"}
_SETTINGS = (
    "settings are under segmentation: in app.yaml, which a host mounts at /var/holoscan/app.yaml (HOLOSCAN_CONFIG_PATH); "
    "under mercure, in the settings of module or rule"
)
_ELSEWHERE = {
    "give --dicom-source DIR, or --dicomize to write one": "put the DICOM series into the input instead, or set dicomize: true",
    "leave --dicomize and --dicom-source out": "leave the setting dicomize out",
    "check the path": "check the mounted folder",
    "--series UID": "the setting series: UID",
}
"""Advice of the command line that does not apply in a container -> the advice for a container."""


def in_container(text: str) -> str:
    """A message for the person who runs the container: it names settings, and their file, instead of command-line flags."""
    # Whole phrases first: the flags in some of them would else become settings below.
    for advice, in_place in _ELSEWHERE.items():
        text = text.replace(advice, in_place)
    text = re.sub(r"--([a-z][a-z-]+[a-z])", lambda flag: f"the setting {flag[1].replace('-', '_')}", text)
    return text if "the setting" not in text else f"{text}\n{_SETTINGS}"


def _failed(message: str, code: int) -> int:
    _print(f"{in_container(message)}\nexit code {code}: {_MEANINGS[code]}")
    return code


def _print(text: str) -> None:
    sys.stderr.write(f"{text}\n")

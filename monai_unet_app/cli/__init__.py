"""`monai-unet <verb>`: every verb calls one function of the layers below and shows its result. Only this package prints.

Results go to stdout (`--json` for machines), progress and messages to stderr.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 input refused.
"""

import io
import json
import logging
import sys
import warnings
from collections.abc import Sequence

from rich.markup import escape

from dicom_io.errors import DicomIoError, NetworkError
from monai_unet_app.cli import show
from monai_unet_app.cli.common import EXIT_FAILED, EXIT_REFUSED, EXIT_USAGE
from monai_unet_app.cli.dataclass_parser import Options
from monai_unet_app.cli.parser import read_command
from monai_unet_app.errors import AppError, InputRefusedError, UntrainedError, UsageError, of_surroundings
from monai_unet_app.processes import begin_program


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and gives its exit code."""
    warnings.simplefilter("ignore")  # stderr is for messages to the user, not for warnings of libraries
    # Warnings of other packages may quote a header, and with it a patient.
    logging.disable(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be UTF-8
    if argv is None:
        begin_program()
    verb, options = read_command(argv)
    try:
        with show.silence(options.json):
            if getattr(options, "trust", False):
                _trust(options)
            answer, code = verb(options)
    except UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    # A NetworkError is a DicomIoError too, but the input is not at fault: another exit code.
    except NetworkError as error:
        return _fail(str(error), EXIT_FAILED)
    except (InputRefusedError, UntrainedError, DicomIoError) as error:
        return _fail(str(error), EXIT_REFUSED)
    except AppError as error:
        return _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("stopped; run the same command again", 130)  # 128 + SIGINT, as a shell reports it
    except Exception as error:
        if sentence := of_surroundings(error):
            return _fail(sentence, EXIT_FAILED)
        if isinstance(error, OSError):
            return _fail(f"{error.strerror or error}: {error.filename or ''}; check that it can be used", EXIT_FAILED)
        raise
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    return code


def _trust(options: Options) -> None:
    """Remembers the consent of --trust, before anything is read."""
    bundle: str | None = getattr(options, "bundle", None)
    if bundle is None:
        raise UsageError("--trust is about the code of a --bundle, and none is named; leave it out")
    from monai_unet_app.bundle_folder import bundle_root
    from monai_unet_app.consent import agree_to

    agree_to(bundle_root(bundle))


def _fail(message: str, code: int) -> int:
    show.err.print(f"[red]{'refused' if code == EXIT_REFUSED else 'error'}:[/red] {escape(message)}", soft_wrap=True)
    return code

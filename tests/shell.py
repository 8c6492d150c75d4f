"""The command line as tests call it: in their own process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from monai_unet_app.cli import main


@dataclass(frozen=True)
class Answer:
    """What a verb gave: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]


def shell(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs one verb in this process, as the shell would; the log is heard again afterwards."""

    def command(*argv: object) -> Answer:
        capsys.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        seen = capsys.readouterr()
        return Answer(code, seen.out, seen.err)

    with warnings.catch_warnings():
        yield command
    logging.disable(logging.NOTSET)

"""The command line as tests call it, in their own process, and all its verbs."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from monai_unet_app.cli import main
from monai_unet_app.cli.parser import build_parser


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


def every_verb() -> dict[str, argparse.ArgumentParser]:
    """Every verb, also of two words, with its parser."""
    verbs: dict[str, argparse.ArgumentParser] = {}
    begun = [("", build_parser())]
    for name, parser in begun:
        (second,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)] or [{}]
        begun += [(f"{name} {word}".strip(), found) for word, found in second.items()]
        verbs |= {name: parser} if name else {}
    return verbs

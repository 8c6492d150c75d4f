"""The verbs and their flags: long and kebab-case. Help and example of a verb are the docstring of its function.

To add a verb, write a function of one parameter `options`, annotated with the class of its flags, and name it in `GROUPS`.
"""

import argparse
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from itertools import chain
from typing import Any, NoReturn

from monai_unet_app import __version__
from monai_unet_app.cli import (
    bundle_verbs,
    calibrate_verb,
    comparison_verbs,
    data_verbs,
    dicom_verbs,
    lifecycle_verbs,
    service_verbs,
    verbs,
)
from monai_unet_app.cli.common import EXIT_USAGE, Answer, networks_listed
from monai_unet_app.cli.dataclass_parser import Options, add_flags
from monai_unet_app.cli.flags import Network

Verb = Callable[[Any], Answer]
GROUPS: dict[str, tuple[Verb, ...]] = {
    "data": (data_verbs.inspect, data_verbs.convert, data_verbs.dicomize, data_verbs.regions),
    "model": (
        verbs.demo, verbs.plan, verbs.train, calibrate_verb.calibrate, verbs.evaluate, comparison_verbs.compare,
        comparison_verbs.subgroups, bundle_verbs.bundle,
    ),
    "result": (verbs.predict, service_verbs.review, service_verbs.trace),
    "DICOM": (dicom_verbs.pacs, dicom_verbs.deidentify),
    "node": (service_verbs.node, lifecycle_verbs.registry, bundle_verbs.doctor),
}  # fmt: skip
SECOND_WORDS: dict[Verb, tuple[Verb, ...]] = {
    dicom_verbs.pacs: (dicom_verbs.echo, dicom_verbs.find, dicom_verbs.fetch, dicom_verbs.send),
    service_verbs.node: (
        service_verbs.token,
        service_verbs.commission,
        lifecycle_verbs.drift,
        lifecycle_verbs.postmortem,
        lifecycle_verbs.checklist,
    ),
    bundle_verbs.bundle: (
        bundle_verbs.import_nnunet,
        bundle_verbs.import_monai,
        bundle_verbs.external,
        bundle_verbs.export,
        bundle_verbs.certify,
        bundle_verbs.bench,
        service_verbs.package,
    ),
    lifecycle_verbs.registry: (
        lifecycle_verbs.add,
        lifecycle_verbs.list_versions,
        lifecycle_verbs.show_version,
        lifecycle_verbs.promote,
        lifecycle_verbs.rollback,
        lifecycle_verbs.export_version,
    ),
}
"""Verbs of two words, such as `pacs send`, under the verb of their first word."""


def read_command(argv: Sequence[str] | None = None) -> tuple[Verb, Options]:
    """The function of the verb that a command line names, and the flags for it."""
    parsed = build_parser().parse_args(argv)
    options = _options_class(parsed.run)
    return parsed.run, options(**{field.name: getattr(parsed, field.name) for field in fields(options)})


@cache
def build_parser() -> argparse.ArgumentParser:
    """All verbs with their flags."""
    groups = [
        "\n".join([f"{group}:", *(f"  {run.__name__:<11} {_short(run)}" for run in runs)])
        for group, runs in GROUPS.items()
    ]
    parser = _Parser(
        prog="monai-unet",
        usage="monai-unet [-h] [--version] VERB ...",
        description="\n\n".join(["Train U-Nets as MONAI bundles; segment, measure and deliver with them.", *groups]),
        epilog="First steps: monai-unet demo --output demo, then open demo/report/report.html.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    # The description lists the verbs, since argparse cannot group them.
    subparsers = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", prog="monai-unet", help=argparse.SUPPRESS
    )
    for run in chain.from_iterable(GROUPS.values()):
        verb = _verb_parser(subparsers.add_parser, run.__name__, run)
        if run in SECOND_WORDS:
            words = {_word(part): part for part in SECOND_WORDS[run]}
            second = verb.add_subparsers(title="one of", metavar="VERB")
            for word, part in words.items():
                _verb_parser(second.add_parser, word, part, help=_short(part))
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong before its usage, and puts `more_help`, which takes time to write, before its epilog."""

    more_help: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.more_help:
            self.epilog, self.more_help = f"{self.more_help()}\n\n{self.epilog}", None
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"error: {message}\n{self.format_usage()}")


def _word(run: Verb) -> str:
    """The second word of a verb: the name of its function, without what keeps it from being a name of Python's own."""
    return run.__name__.removesuffix("_versions").removesuffix("_version").replace("_", "-")


def _short(run: Verb) -> str:
    """What a verb does: the summary of its function up to a semicolon, which begins details."""
    text = _summary_and_example(run)[0].partition(";")[0]
    return text[:1].lower() + text[1:].removesuffix(".")


def _summary_and_example(run: Verb) -> list[str]:
    # python -OO leaves no docstrings: the verbs then work without help
    return [" ".join(part.split()) for part in inspect.cleandoc(run.__doc__ or "\n\n").partition("\n\n")[::2]]


def _verb_parser(
    make: Callable[..., argparse.ArgumentParser], name: str, run: Verb, **more: str
) -> argparse.ArgumentParser:
    """The parser that `make` makes of this name, with help and flags of a verb."""
    summary, example = _summary_and_example(run)
    verb = make(
        name,
        description=textwrap.fill(summary, 78),
        # Examples are copied to a shell, so no flag or path is broken at a hyphen.
        epilog=textwrap.fill(
            example[:1].lower() + example[1:],
            78,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    options = _options_class(run)
    add_flags(verb, options)
    if issubclass(options, Network):
        vars(verb)["more_help"] = networks_listed
    verb.set_defaults(run=run)
    return verb


def _options_class(run: Verb) -> type[Options]:
    """The class of a verb's flags: the annotation of its parameter."""
    options: type[Options] = inspect.signature(run).parameters["options"].annotation
    return options

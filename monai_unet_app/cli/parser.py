"""The verbs and their flags: long and kebab-case. Help and example of a verb are the docstring of its function.

To add a verb, write a function of one parameter `options`, annotated with the class of its flags, and name it in `VERBS`.
"""

import argparse
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from monai_unet_app import __version__
from monai_unet_app.cli import calibrate_verb, comparison_verbs, dicom_verbs, service_verbs, verbs
from monai_unet_app.cli.common import Answer
from monai_unet_app.cli.dataclass_parser import Options, add_flags

Verb = Callable[[Any], Answer]
VERBS: tuple[Verb, ...] = (
    verbs.demo, verbs.dicomize, verbs.regions, verbs.convert, verbs.inspect, verbs.plan, verbs.train, calibrate_verb.calibrate,
    verbs.evaluate, verbs.report, comparison_verbs.compare, comparison_verbs.gate, comparison_verbs.subgroups, verbs.predict,
    dicom_verbs.echo, dicom_verbs.send, dicom_verbs.find, dicom_verbs.fetch, dicom_verbs.deidentify,
    service_verbs.node, service_verbs.token, service_verbs.commission, service_verbs.review, service_verbs.trace,
    service_verbs.audit, service_verbs.package, verbs.bundles, verbs.doctor,
)  # fmt: skip


def read_command(argv: Sequence[str] | None = None) -> tuple[Verb, Options]:
    """The function of the verb that a command line names, and the flags for it."""
    parsed = build_parser().parse_args(argv)
    options = _options_class(parsed.run)
    return parsed.run, options(**{field.name: getattr(parsed, field.name) for field in fields(options)})


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their flags."""
    parser = argparse.ArgumentParser(
        prog="monai-unet",
        description="Train U-Nets as MONAI bundles; segment, measure and deliver with them.",
        epilog="First steps: `monai-unet demo --output demo`, then open demo/report/report.html.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for run in VERBS:
        # python -OO leaves no docstrings: the verbs then work without help
        summary, example = (
            " ".join(part.split()) for part in inspect.cleandoc(run.__doc__ or "\n\n").partition("\n\n")[::2]
        )
        example = example[:1].lower() + example[1:]
        verb = subparsers.add_parser(
            run.__name__,
            help=summary[:1].lower() + summary[1:].removesuffix("."),
            description=textwrap.fill(summary, 78),
            # Examples are copied to a shell, so no flag or path is broken at a hyphen.
            epilog=textwrap.fill(example, 78, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_flags(verb, _options_class(run))
        verb.set_defaults(run=run)
    return parser


def _options_class(run: Verb) -> type[Options]:
    """The class of a verb's flags: the annotation of its parameter."""
    options: type[Options] = inspect.signature(run).parameters["options"].annotation
    return options

"""The known forms of a bundle's calibration: expressions and numbers that are written into its `inference.yaml`.

A form is a function `calibrate(logits, numbers)` of torch alone: logits (C, *spatial) on the working grid in, logits of the
same shape out, and no change where all its floats are 0. A bundle with a form in its `inference.yaml` needs nothing else to be
calibrated. `forms.yaml` lists the forms; `form_comparison` says which of them suits a bundle.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from monai.bundle import ConfigParser

from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.fit import Calibrate
from monai_unet_app.calibration.inference_yaml import Parameters, with_parameters
from monai_unet_app.errors import BundleError
from monai_unet_app.inference.outputs import Outputs


@dataclass(frozen=True)
class Form:
    """A form of calibration for a network of so many channels.

    Attributes:
        name: none, temperature, classwise, vector or region.
        start: Its mapping `calibration` before a fit: floats at 0, integers as they are to be.
        helpers: The ids in inference.yaml that `calibrate` refers to, and their `$` expressions.
        calibrate: Its `$` expression under `calibrate`.
        about: The lines of its comment in inference.yaml, without "# ".
        source: Where it comes from.
    """

    name: str
    start: Parameters
    helpers: Mapping[str, str]
    calibrate: str
    about: str
    source: str

    @property
    def numbers(self) -> int:
        """How many numbers are fitted."""
        return sum(isinstance(value, float) for value in self.start.values())

    @property
    def function(self) -> Calibrate:
        """`calibrate(logits, numbers)` as MONAI builds it from the YAML."""
        # MONAI's own parser builds the function, so that exactly what `monai.bundle run` evaluates is fitted.
        parser = ConfigParser({"calibration": dict(self.start), **self.helpers, "calibrate": self.calibrate})
        calibrate: Calibrate = parser.get_parsed_content("calibrate")
        return calibrate

    @property
    def comment(self) -> list[str]:
        """The lines of `about`, as they stand above `calibration:`."""
        return [f"# {line}" for line in self.about.splitlines()]

    @property
    def helper_lines(self) -> list[str]:
        """The lines of the helpers, as they stand above `calibrate:`."""
        return [f'{name}: "{text}"' for name, text in self.helpers.items()]

    @property
    def calibrate_line(self) -> str:
        """The line `calibrate:`."""
        return f'calibrate: "{self.calibrate}"'

    @property
    def yaml(self) -> str:
        """All its lines, not fitted yet."""
        numbers = with_parameters("calibration: {}", self.start)
        return "\n".join([*self.comment, numbers, *self.helper_lines, self.calibrate_line, ""])


def known_forms(outputs: Outputs, channels: int, spatial_dims: int) -> tuple[Form, ...]:
    """Every form of `forms.yaml`, for a network of this kind, in the order of the file.

    Args:
        outputs: Whether the classes exclude each other or may overlap.
        channels: Of the logits; background included where classes exclude each other.
        spatial_dims: Of the logits: 3 for volumes, also where a 2D network walks through them; 2 for pictures.
    """
    text = (files(__package__) / "forms.yaml").read_text("utf-8").replace("<dims>", str(spatial_dims))
    return tuple(
        Form(
            name,
            entry.get("numbers", {}) | {f"{n}_{c}": 0.0 for n in entry.get("by_channel", ()) for c in range(channels)},
            entry.get("helpers", {}),
            entry["calibrate"],
            entry["about"],
            entry["source"],
        )
        for name, entry in _texts_of(yaml.safe_load(text), outputs.name).items()
    )


def _texts_of(entry: Any, kind: str) -> Any:
    """The entry, with each mapping of `exclusive` and `overlapping` replaced by its value for this kind of outputs."""
    if not isinstance(entry, dict):
        return entry
    return entry[kind] if kind in entry else {name: _texts_of(value, kind) for name, value in entry.items()}


def forms_for(bundle: Bundle) -> tuple[Form, ...]:
    """`known_forms` for the network of a bundle."""
    return known_forms(bundle.outputs, len(bundle.labels), spatial_dims=2 if bundle.rules.planar else 3)


# A YAML text on one line, in double quotes with backslash escapes, or in single quotes with '' for a quote.
_EXPRESSION = re.compile(r"""^calibrate: ("\$(?:[^"\\\n]|\\.)*"|'\$[^'\n]*(?:''[^'\n]*)*')""", re.MULTILINE)


def with_form(text: str, form: Form, parameters: Parameters, known: Sequence[Form]) -> str:
    """The text of an inference.yaml with this form and its numbers in place of the form that is there.

    `calibration:` and `calibrate:` keep their lines; `calibration_tta`, if it is there, starts anew. Of the other lines, only
    the helpers and the comment of a known form are removed, and a helper only if nothing else refers to it. Every other
    byte stays.

    Args:
        text: Of the inference.yaml.
        form: The form that is written.
        parameters: Its numbers.
        known: All forms for this bundle.

    Raises:
        BundleError: `calibration` or `calibrate` does not have exactly one line, or the file uses the name of a helper for
            something else.
    """
    end = "\r\n" if "\r\n" in text else "\n"
    text = with_parameters(_without_forms(text, known), parameters)
    if re.search(r"^calibration_tta: ", text, re.MULTILINE):
        text = with_parameters(text, form.start, "calibration_tta")
    # A function as replacement, since `re` would read backslashes of a text as references to groups.
    text, count = _EXPRESSION.subn(lambda match: form.calibrate_line, text)
    if count != 1:
        raise BundleError(f'inference.yaml has {count} line(s) `calibrate: "$..."`; exactly one is needed')
    lines = text.splitlines()
    helpers = [line for line in form.helper_lines if line not in lines]
    for name in (line.split(":")[0] for line in helpers):
        if any(line.startswith(f"{name}:") for line in lines):
            raise BundleError(
                f"inference.yaml has a `{name}` of its own; {form.name} needs that name; call it something else"
            )
    return _above("calibrate: ", helpers, _above("calibration: {", form.comment, text, end), end)


def _above(mark: str, lines: Sequence[str], text: str, end: str) -> str:
    """The text with these lines above the line that begins with the mark."""
    new = "".join(line + end for line in lines)
    return re.sub(rf"^(?={re.escape(mark)})", lambda match: new, text, flags=re.MULTILINE)


def _without_forms(text: str, known: Sequence[Form]) -> str:
    """The text without the comments of known forms, and without those of their helpers that nothing else refers to."""
    lines = text.splitlines(keepends=True)
    comments = {line for form in known for line in form.comment}
    of_forms = comments.union(*(form.helper_lines for form in known))
    others = "".join(
        line for line in lines if line.rstrip("\r\n") not in of_forms and not line.startswith("calibrate: ")
    )
    removed = comments.union(
        *(form.helper_lines for form in known if not any(f"@{name}" in others for name in form.helpers))
    )
    return "".join(line for line in lines if line.rstrip("\r\n") not in removed)

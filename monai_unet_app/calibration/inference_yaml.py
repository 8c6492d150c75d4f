"""Writes numbers into a bundle's `inference.yaml` as text, so that comments, order and line ends stay as they are."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.files import replace_when_whole
from monai_unet_app.errors import BundleError

Parameters = Mapping[str, float | int]


def read_text(path: Path) -> str:
    """The text of a file, with its line ends as they are."""
    # Path.read_text would turn \r\n into \n, and so change every line when the text is written back.
    return path.read_bytes().decode()


def write_text(path: Path, text: str) -> None:
    """Replaces a file by this text, with its line ends as they are."""
    with replace_when_whole(path) as part:
        part.write_bytes(text.encode())


def write_parameters(inference_yaml: Path, parameters: Parameters, name: str = "calibration") -> None:
    """Replaces the one line `calibration: {...}`, or that of another name, and leaves every other byte as it is.

    Raises:
        BundleError: There is no such line, or more than one line.
    """
    write_text(inference_yaml, with_parameters(read_text(inference_yaml), parameters, name))


def with_parameters(text: str, parameters: Parameters, name: str = "calibration") -> str:
    """The text of an inference.yaml with these numbers on its one line of that name. Errors as `write_parameters`."""
    line = f"{name}: {{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in parameters.items()) + "}"
    # The mapping stands on a single line by rule (decision 2), so no YAML parser, which drops comments, is needed to
    # change it.
    changed, count = re.subn(rf"^{name}: \{{[^}}\n]*\}}", line, text, flags=re.MULTILINE)
    if count != 1:
        raise BundleError(f"inference.yaml has {count} line(s) `{name}: {{...}}`; exactly one is needed")
    return changed


def _yaml(value: float | int) -> str:
    """The number as YAML reads it back. YAML 1.1 reads 1e-05 as a word, so no exponent is written."""
    return np.format_float_positional(value, trim="0") if isinstance(value, float) else str(value)


TIDY_FREE = re.compile(r"^tidy: \[\].*$", re.MULTILINE)
_BY_US = "chosen by monai-unet calibrate"
_CHOSEN = f"tidy:  # {_BY_US}; with [] in its place it begins anew"
_CHOSEN_BLOCK = re.compile(rf"^{re.escape(_CHOSEN)}\n(?:(?:# \||- | +\S).*\n)*", re.MULTILINE)

_DECIDE = "decide:\n- _target_: CopyItemsd\n  keys: pred\n  names: prob\n"
_CUT = f"""- _target_: Lambdad  # {_BY_US}, with `thresholds`
  keys: pred
  func: "$lambda p: (p >= torch.tensor(@thresholds, device=p.device).reshape(-1, *[1] * (p.ndim - 1))).float()"
"""
_THRESHOLDS_LINE = re.compile(rf"^(?:# \| .*\n)?thresholds: \[.*\]  # {_BY_US}.*\n", re.MULTILINE)


def without_chosen(text: str) -> str:
    """The text of an inference.yaml without what `with_thresholds` wrote, and `tidy: []` for what `with_tidy` wrote."""
    return _CHOSEN_BLOCK.sub("tidy: []\n", _THRESHOLDS_LINE.sub("", text).replace(_CUT, ""))


def takes_thresholds(text: str) -> bool:
    """Whether `decide` of an inference.yaml is as in our bundles, so that thresholds can be written into it."""
    return text.count(f"\n{_DECIDE}") == 1 and re.search(r"^thresholds:", text, re.MULTILINE) is None


def with_thresholds(text: str, thresholds: Sequence[float], reason: str) -> str:
    """The text of an inference.yaml whose `decide` cuts the channel of each label at its own probability.

    Raises:
        BundleError: `decide` is none that thresholds can be written into.
    """
    if not takes_thresholds(text):
        raise BundleError("inference.yaml has a `decide` of its own; that of our bundles is needed for thresholds")
    values = ", ".join(np.format_float_positional(value, trim="0") for value in thresholds)
    line = f"# | {reason}\nthresholds: [{values}]  # {_BY_US}: from this probability on a voxel has the label\n"
    return text.replace(f"\n{_DECIDE}", f"\n{line}{_DECIDE}{_CUT}")


def with_tidy(text: str, steps: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The text of an inference.yaml whose `tidy: []` holds these steps, each with a reason as a comment; [] for none.

    Raises:
        BundleError: There is no line `tidy: []`.
    """
    lines = [_CHOSEN] if steps else ["tidy: []"]
    for reason, step in steps:
        lines.append(f"# | {reason}")
        lines += [
            f"{'-' if n == 0 else ' '} {name}: {json.dumps(value)}" for n, (name, value) in enumerate(step.items())
        ]
    changed, count = TIDY_FREE.subn(lambda match: "\n".join(lines), text)
    if count != 1:
        raise BundleError(f"inference.yaml has {count} line(s) `tidy: []`; exactly one is needed")
    return changed

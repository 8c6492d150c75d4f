"""Which figures an evaluation should reach, as a file, a bundle's metadata or this project say it.

Everywhere the form is the same, a bound or two for a figure: {"dice": {"at_least": 0.8}, "ece": {"at_most": 0.005}}.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unet_app.errors import InputRefusedError

from .evaluation_report import Target

Bounds = Mapping[str, Mapping[str, float]]

FIGURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "dice": ("Dice, mean", ("dice", "mean")),
    "iou": ("IoU, mean", ("iou", "mean")),
    "boundary_iou": ("boundary IoU, mean", ("boundary_iou", "mean")),
    "precision": ("precision, mean", ("precision", "mean")),
    "recall": ("recall, mean", ("recall", "mean")),
    "pixel_accuracy": ("pixel accuracy, mean", ("pixel_accuracy", "mean")),
    "ece": ("ECE, whole image", ("ece", "top_label")),
    "ece_band": ("ECE, band around the predicted surface", ("ece_band", "top_label")),
}
"""Name in a target -> in words, and its place in the summary."""

EACH_CLASS: Mapping[str, tuple[str, str]] = {
    "dice_per_class": ("Dice", "dice"),
    "iou_per_class": ("IoU", "iou"),
    "boundary_iou_per_class": ("boundary IoU", "boundary_iou"),
    "precision_per_class": ("precision", "precision"),
    "recall_per_class": ("recall", "recall"),
}
"""The same for figures that every class has to reach by itself: in words, and the score."""

USUAL: Bounds = {
    "iou": {"at_least": 0.70},
    "iou_per_class": {"at_least": 0.60},
    "pixel_accuracy": {"at_least": 0.90},
    "precision": {"at_least": 0.80},
    "boundary_iou": {"at_least": 0.65},
    "ece": {"at_most": 0.05},
}
"""What is asked of a bundle of which nobody asks anything else."""

_NAMES = (*FIGURES, *EACH_CLASS)


def read_targets(path: Path) -> Bounds:
    """The bounds in a TOML file: a table for each figure, with at_least or at_most.

    Raises:
        InputRefusedError: It cannot be read, names no figure or an unknown one, or has a bound that means nothing.
    """
    try:
        return checked(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputRefusedError(
            f"targets {path} cannot be read ({error.strerror}); a file in TOML is needed; check the path"
        ) from error
    except ValueError as error:  # a TOMLDecodeError is one
        raise InputRefusedError(f"targets {path.name}: {error}; see docs/how-to/evaluate.md") from error


def checked(found: Any) -> Bounds:
    """Bounds as they came, if they mean something.

    Raises:
        ValueError: They do not; says what was found and what is needed.
    """
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"no figure is named; at_least or at_most of some of {', '.join(_NAMES)} is needed")
    for name, bounds in found.items():
        if name not in _NAMES or not isinstance(bounds, Mapping) or not bounds or set(bounds) - {"at_least", "at_most"}:
            raise ValueError(f"{name} = {bounds}; at_least or at_most of some of {', '.join(_NAMES)} is needed")
        if not all(type(bound) in (int, float) and 0 <= bound <= 1 for bound in bounds.values()):
            raise ValueError(f"{name} = {dict(bounds)}; bounds are numbers from 0 to 1")
        if bounds.get("at_least", 0) > bounds.get("at_most", 1):
            raise ValueError(f"{name} = {dict(bounds)}; no number is at least the one and at most the other")
    return found


def as_targets(bounds: Bounds, class_names: Sequence[str]) -> tuple[Target, ...]:
    """A target for each figure, and for each class of one that is asked of every class."""
    targets = []
    for name, ends in bounds.items():
        if name in FIGURES:
            places = [FIGURES[name]]
        else:
            words, score = EACH_CLASS[name]
            places = [(f"{words}, {label}", (score, "per_class", label)) for label in class_names]
        targets += [Target(*place, ends.get("at_least"), ends.get("at_most")) for place in places]
    return tuple(targets)

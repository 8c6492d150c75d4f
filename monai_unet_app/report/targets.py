"""Figures that an evaluation should reach; they come from a file, a bundle's metadata or this project.

The form is always the same, one bound or two for a figure: {"dice": {"at_least": 0.8}, "ece": {"at_most": 0.005}}.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.score_registry import SCORES

from .evaluation_report import Target

Bounds = Mapping[str, Mapping[str, float]]

_OF_CLASSES = [score for score in SCORES if score.is_target]

OF_ALL_CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **{score.name: (f"{score.title}, mean", (score.name, "mean")) for score in _OF_CLASSES},
    "panoptic_quality": ("panoptic quality of parts or objects, mean", ("components", "panoptic_quality", "mean")),
    "pixel_accuracy": ("pixel accuracy, mean", ("pixel_accuracy", "mean")),
    "ece": ("ECE, whole image", ("ece", "top_label")),
    "ece_band": ("ECE, band around the predicted surface", ("ece_band", "top_label")),
}
"""Name of a target -> the score in words, and its path in the summary."""

OF_EACH_CLASS: Mapping[str, tuple[str, str]] = {
    f"{score.name}_per_class": (score.title, score.name) for score in _OF_CLASSES
}
"""Name of a target that every class has to reach -> the score in words, and its name."""

USUAL: Bounds = {
    "iou": {"at_least": 0.70},
    "iou_per_class": {"at_least": 0.60},
    "pixel_accuracy": {"at_least": 0.90},
    "precision": {"at_least": 0.80},
    "boundary_iou": {"at_least": 0.65},
    "ece": {"at_most": 0.05},
}
"""The targets of a bundle without other targets."""

_NAMES = (*OF_ALL_CLASSES, *OF_EACH_CLASS)


def read_targets(path: Path) -> Bounds:
    """The bounds in a TOML file: a table for each figure, with at_least or at_most.

    Raises:
        InputRefusedError: The file cannot be read, names no figure or an unknown figure, or has a bound without a meaning.
    """
    try:
        return checked(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputRefusedError(
            f"targets {path} cannot be read ({error.strerror}); a file in TOML is needed; check the path"
        ) from error
    except ValueError as error:  # a TOMLDecodeError is one
        raise InputRefusedError(f"targets {path.name}: {error}; see docs/how-to/evaluate.md") from error


def checked(targets: Any) -> Bounds:
    """The same bounds, checked.

    Raises:
        ValueError: No figure or an unknown figure is named, or a bound has no meaning.
    """
    if not isinstance(targets, Mapping) or not targets:
        raise ValueError(f"no figure is named; at_least or at_most of some of {', '.join(_NAMES)} is needed")
    for name, bounds in targets.items():
        if name not in _NAMES or not isinstance(bounds, Mapping) or not bounds or set(bounds) - {"at_least", "at_most"}:
            raise ValueError(f"{name} = {bounds}; at_least or at_most of some of {', '.join(_NAMES)} is needed")
        # The exact type, since bool is a subclass of int: `true` in TOML is no bound.
        if not all(type(bound) in (int, float) and 0 <= bound <= 1 for bound in bounds.values()):
            raise ValueError(f"{name} = {dict(bounds)}; bounds are numbers from 0 to 1")
        if bounds.get("at_least", 0) > bounds.get("at_most", 1):
            raise ValueError(f"{name} = {dict(bounds)}; no number is within both bounds")
    return targets


def as_targets(bounds: Bounds, class_names: Sequence[str]) -> tuple[Target, ...]:
    """A target for each figure; a figure that every class has to reach gives a target for each class."""
    targets = []
    for name, ends in bounds.items():
        if name in OF_ALL_CLASSES:
            places = [OF_ALL_CLASSES[name]]
        else:
            words, score = OF_EACH_CLASS[name]
            places = [(f"{words}, {label}", (score, "per_class", label)) for label in class_names]
        targets += [Target(*place, ends.get("at_least"), ends.get("at_most")) for place in places]
    return tuple(targets)

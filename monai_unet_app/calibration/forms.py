"""The forms that a bundle's calibration can take, as the lines of YAML they are, what each costs, and which one to choose.

A form is a function `calibrate(logits, numbers)` of torch alone: logits (C, *spatial) on the working grid in, logits of the
same shape out, and no change where all its floats are 0. What is chosen is written into the bundle's `inference.yaml`, so a
bundle stays self-contained.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray

from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.fit import (
    Calibrate,
    Fitted,
    KeptLogits,
    Parameters,
    fit_parameters,
    with_parameters,
    write_record,
    write_text,
)
from monai_unet_app.calibration.halo import spatial_dims
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.metrics.boundary import surface_band
from monai_unet_app.metrics.case_scores import count_populations
from monai_unet_app.metrics.plan import WHOLE, EvaluationPlan
from monai_unet_app.metrics.reliability import ReliabilityCounts, negative_log_likelihood
from monai_unet_app.metrics.reliability import expected_calibration_error as ece

ALIKE_DECIMALS = 4
"""To these two calibration errors are compared; beyond, fewer numbers are worth more."""

_GUO = "Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599"
_PLATT = "Platt, Probabilistic Outputs for Support Vector Machines, 1999"
_FRENKEL = (
    "after Frenkel and Goldberger, Network Calibration by Class-based Temperature Scaling, EUSIPCO 2021, "
    "doi:10.23919/EUSIPCO54536.2021.9616219"
)
_REGION = (
    "docs/decisions/0002; that a temperature may differ from voxel to voxel: Ding et al., Local Temperature Scaling for "
    "Probability Calibration, ICCV 2021, arXiv:2008.05105"
)


@dataclass(frozen=True)
class Form:
    """A form of calibration for a network of so many channels.

    Attributes:
        name: none, temperature, classwise, vector or region.
        start: Its mapping `calibration` before a fit: floats at 0, integers as they are to be.
        expressions: Its other ids in inference.yaml and their `$` expressions, in order; the last is `calibrate`.
        about: The lines of its comment in inference.yaml, without "# ".
        source: Where it comes from.
    """

    name: str
    start: Mapping[str, float | int]
    expressions: Mapping[str, str]
    about: str
    source: str

    @property
    def numbers(self) -> int:
        """How many numbers are fitted."""
        return sum(isinstance(value, float) for value in self.start.values())

    @property
    def function(self) -> Calibrate:
        """`calibrate(logits, numbers)` as MONAI builds it from the YAML."""
        parser = ConfigParser({"calibration": dict(self.start), **self.expressions})
        calibrate: Calibrate = parser.get_parsed_content("calibrate")
        return calibrate

    @property
    def comment(self) -> list[str]:
        """The lines of `about`, as they stand above `calibration:`."""
        return [f"# {line}" for line in self.about.splitlines()]

    @property
    def helpers(self) -> list[str]:
        """The lines that stand above `calibrate:`."""
        return [f'{name}: "{text}"' for name, text in self.expressions.items() if name != "calibrate"]

    @property
    def yaml(self) -> str:
        """All its lines, not fitted yet."""
        numbers = with_parameters("calibration: {}", self.start)
        return "\n".join([*self.comment, numbers, *self.helpers, f'calibrate: "{self.expressions["calibrate"]}"', ""])


def known_forms(channels: int, *, exclusive: bool, spatial_dims: int) -> tuple[Form, ...]:
    """Every form, for a network of this kind; `none` first, then by how much it knows.

    Args:
        channels: Of the logits; background included where classes exclude each other.
        exclusive: True for softmax over the classes, False for sigmoid for each label.
        spatial_dims: Of the logits: 3 for volumes, also where a 2D network walks through them; 2 for pictures.
    """
    return (
        Form(
            "none",
            {},
            {"calibrate": "$lambda logits, c=@calibration: logits"},
            "No calibration.",
            "the network's own softmax or sigmoid",
        ),
        _temperature(),
        _classwise(channels, exclusive),
        _vector(channels, exclusive),
        _region(exclusive, spatial_dims),
    )


_ZERO = "All floats at 0 mean no calibration."
_MIXED = f"""\
Temperature = exp(far + near * mixture): mixture is 0 where one class fills the neighbourhood of `reach` voxels and grows
where classes meet, so that the boundary and the background each get their own. One number a voxel keeps the argmax.
{_ZERO}"""
_ENDED = f"""\
Temperature = exp(far + near * mixture): mixture is 0 where a label fills the neighbourhood of `reach` voxels or is absent
from it, and grows where it ends, so that the boundary and the background each get their own.
{_ZERO}"""
# The numbers k0, k1, ... as a tensor of shape (C,).
_EACH = {"each": "$lambda c, k, z: torch.stack([torch.as_tensor(c[k + str(n)]) for n in range(len(z))]).to(z)"}


def _temperature() -> Form:
    calibrate = "$lambda logits, c=@calibration: logits * torch.exp(torch.as_tensor(-c['log_temperature'])).to(logits)"
    about = f"Temperature = exp(log_temperature), the same for all voxels, which keeps the labels.\n{_ZERO}"
    return Form("temperature", {"log_temperature": 0.0}, {"calibrate": calibrate}, about, _GUO)


def _classwise(channels: int, exclusive: bool) -> Form:
    by_voxel = "logits * torch.exp(-@each(c, 'class_', logits)[logits.argmax(0)])"
    by_label = "(logits.movedim(0, -1) * torch.exp(-@each(c, 'class_', logits))).movedim(-1, 0)"
    whose = "n is the class with the largest logit: one number a voxel" if exclusive else "n is the label's own: it"
    return Form(
        "classwise",
        {f"class_{n}": 0.0 for n in range(channels)},
        {**_EACH, "calibrate": f"$lambda logits, c=@calibration: {by_voxel if exclusive else by_label}"},
        f"Temperature = exp(class_n), where {whose} keeps the {'argmax' if exclusive else 'labels'}.\n{_ZERO}",
        _FRENKEL if exclusive else _GUO,
    )


def _vector(channels: int, exclusive: bool) -> Form:
    expressions = {
        **_EACH,
        "by_channel": "$lambda z, scale, bias: (z.movedim(0, -1) * torch.exp(scale) + bias).movedim(-1, 0)",
        "calibrate": "$lambda logits, c=@calibration: "
        "@by_channel(logits, @each(c, 'scale_', logits), @each(c, 'bias_', logits))",
    }
    return Form(
        "vector",
        {f"{name}_{n}": 0.0 for name in ("scale", "bias") for n in range(channels)},
        expressions,
        f"Logit n is multiplied by exp(scale_n), then bias_n is added, which may change labels.\n{_ZERO}",
        _GUO if exclusive else _PLATT,
    )


def _region(exclusive: bool, spatial_dims: int) -> Form:
    pool = f"torch.nn.functional.avg_pool{spatial_dims}d(p[None], 2 * n + 1, 1, n, count_include_pad=False)[0]"
    if exclusive:
        mixture = "1 - @mean_nearby(torch.softmax(z, 0), n).square().sum(0, keepdim=True)"
    else:
        mixture = "2 * @mean_nearby(torch.sigmoid(z), n) * (1 - @mean_nearby(torch.sigmoid(z), n))"
    scaled = "logits * torch.exp(-(c['far'] + c['near'] * @mixture(logits, c['reach'])))"
    expressions = {
        "mean_nearby": f"$lambda p, n: {pool}",
        "mixture": f"$lambda z, n: {mixture}",
        "calibrate": f"$lambda logits, c=@calibration: {scaled}",
    }
    return Form("region", {"reach": 2, "far": 0.0, "near": 0.0}, expressions, _MIXED if exclusive else _ENDED, _REGION)


def forms_for(bundle: Bundle) -> tuple[Form, ...]:
    """`known_forms` for the network of a bundle."""
    return known_forms(len(bundle.labels), exclusive=bundle.exclusive, spatial_dims=spatial_dims(bundle))


@dataclass(frozen=True)
class FormScore:
    """What a form came to. Figures over all voxels of the selection cases on their source grids, pooled.

    Attributes:
        form: Its name.
        parameters: Its numbers as they were fitted on the calibration cases.
        numbers: How many of them were fitted.
        halo_mm: How far along each axis of the working grid a probability depends on logits; pixels for pictures.
        nll: Negative log likelihood, nats a decision. NaN, as `ece` and `ece_band`, where the fit failed.
        ece: Of the top label over the whole image, 15 equal bins.
        ece_band: The same in the band of 2 mm (pixels) around the surface predicted without calibration.
        changed: Voxels of the working grids (of each label where they may overlap) whose label is another one than without.
        fitted: How the fit went; None where it failed.
        why_not: Why it may not be chosen; None where it may.
        chosen: Whether it is the one to take.
    """

    form: str
    parameters: Parameters
    numbers: int
    halo_mm: tuple[float, ...]
    nll: float = math.nan
    ece: float = math.nan
    ece_band: float = math.nan
    changed: int = 0
    fitted: Fitted | None = None
    why_not: str | None = None
    chosen: bool = False


@dataclass
class FormTrial:
    """A form, fitted, and what it came to on the selection cases so far.

    Attributes:
        form: What is tried.
        fitted: On the calibration cases; None where that failed.
        failure: Why it failed.
        counts: By population.
        changed: Labels that are not what they are without calibration.
    """

    form: Form
    fitted: Fitted | None
    failure: str | None = None
    counts: dict[str, ReliabilityCounts] = field(default_factory=dict)
    changed: int = 0

    @classmethod
    def fit(cls, form: Form, cases: KeptLogits) -> "FormTrial":
        """The form with the numbers that suit these cases best."""
        try:
            return cls(form, fit_parameters(form.function, form.start, cases))
        except InputRefusedError as error:
            return cls(form, None, str(error))

    def calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (C, *spatial) as the fitted form gives them; unchanged where the fit failed."""
        return logits if self.fitted is None else self.form.function(logits, self.fitted.parameters)

    def add(self, changed: int, counts: Mapping[str, ReliabilityCounts]) -> None:
        """Counts one selection case."""
        self.changed += changed
        self.counts = {name: self.counts[name] + new if self.counts else new for name, new in counts.items()}

    def score(self, plan: EvaluationPlan, halo_mm: tuple[float, ...]) -> FormScore:
        """Its figures. It may be chosen if it was fitted and changes no label."""
        if self.fitted is None:
            return FormScore(self.form.name, self.form.start, self.form.numbers, halo_mm, why_not=self.failure)
        return FormScore(
            form=self.form.name,
            parameters=self.fitted.parameters,
            numbers=self.form.numbers,
            halo_mm=halo_mm,
            nll=negative_log_likelihood(self.counts[WHOLE]),
            ece=ece(self.counts[WHOLE]),
            ece_band=ece(self.counts[plan.band]),
            changed=self.changed,
            fitted=self.fitted,
            why_not=f"it changes {self.changed} label(s)" if self.changed else None,
        )


def labels_changed(before: torch.Tensor, after: torch.Tensor, *, exclusive: bool) -> int:
    """How many labels two sets of logits, both (C, *spatial), do not agree on."""
    differ = before.argmax(0) != after.argmax(0) if exclusive else (before > 0) != (after > 0)
    return int(differ.sum())


def count_case(
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    foreground: NDArray[np.bool_],
    spacing: Sequence[float],
    plan: EvaluationPlan,
    valid: NDArray[np.bool_] | None = None,
) -> dict[str, ReliabilityCounts]:
    """Counts of one case for the two populations of the headlines.

    Args:
        truth: Shape (I, J, K) class numbers, or (C, I, J, K) boolean; one axis fewer for pictures, here and below.
        probabilities: Shape (C, I, J, K).
        foreground: Shape (I, J, K): what is predicted without calibration, so that all forms share one band.
        spacing: Distance of neighbouring voxels along each axis, in the unit of the plan.
        plan: Names and widths of the populations.
        valid: Shape (I, J, K): voxels that count, or None for all.
    """
    inside = foreground if valid is None else foreground & valid
    band = surface_band(inside, spacing, plan.band_width, valid=valid)
    return count_populations(truth, probabilities, {WHOLE: valid, plan.band: band}, plan)


def with_choice(scores: Sequence[FormScore]) -> list[FormScore]:
    """The same scores, one of them chosen, the others saying why they may not be if they may not.

    A form may be chosen that changes no label and is over the whole image not worse than `none`. Chosen is the one with
    the least error in the band, of equals (to 4 decimals) the one with fewer numbers.

    Raises:
        InputRefusedError: No selection case has a predicted surface, so nothing tells the forms apart.
    """
    none = next(score for score in scores if score.form == "none")
    if not math.isfinite(none.ece_band):
        raise InputRefusedError(
            "no selection case has a predicted surface, so there is no band to judge forms of calibration in; cases in which "
            "the network finds something are needed; train longer or give other cases"
        )
    judged = [_judged(score, none) for score in scores]
    best = min(
        (score for score in judged if score.why_not is None),
        key=lambda s: (round(s.ece_band, ALIKE_DECIMALS), s.numbers),
    )
    return [replace(score, chosen=score is best) for score in judged]


def _judged(score: FormScore, none: FormScore) -> FormScore:
    if score.why_not is None and score.ece > none.ece:
        return replace(score, why_not=f"over the whole image its error is {score.ece:.5f}, without it {none.ece:.5f}")
    return score


def write_choice(
    bundle: Bundle,
    scores: Sequence[FormScore],
    calibration: Sequence[Mapping[str, str]],
    selection: Sequence[Mapping[str, str]],
) -> None:
    """Writes the chosen form and its numbers into the bundle, and on which cases it was fitted and chosen.

    Args:
        bundle: Its `inference.yaml` and `models/calibration.json` are rewritten; load it anew to use them.
        scores: One of them chosen.
        calibration, selection: {"id", "subject", "image"} of the cases. Of the latter those are recorded that no record of
            the bundle names yet.
    """
    score = next(score for score in scores if score.chosen)
    forms = forms_for(bundle)
    form = next(form for form in forms if form.name == score.form)
    inference_yaml = bundle.root / "configs/inference.yaml"
    text = with_form(_text_of(inference_yaml), form, score.parameters, forms)  # refuses before anything is written
    if score.fitted is not None:
        unknown = [row for row in selection if bundle.seen_as(read_volume(row["image"])) is None]
        write_record(bundle, score.fitted, [*calibration, *unknown])
    write_text(inference_yaml, text)


_EXPRESSION = re.compile(r"""^calibrate: ("\$(?:[^"\\\n]|\\.)*"|'\$[^'\n]*(?:''[^'\n]*)*')""", re.MULTILINE)


def write_form(inference_yaml: Path, form: Form, parameters: Parameters, known: Sequence[Form]) -> None:
    """Writes a form and its numbers into an inference.yaml, in place of the form that is there.

    `calibration:` and `calibrate:` keep their lines; `calibration_tta`, if it is there, starts anew. Of other lines only
    those go that a known form brought, its helpers and the comment that describes it, unless something else refers to
    them. Every other byte stays.

    Args:
        inference_yaml: The file.
        form: What is written.
        parameters: Its numbers.
        known: All forms for this bundle.

    Raises:
        BundleError: `calibration` or `calibrate` has not exactly one line, or the file has a helper's name for something else.
    """
    write_text(inference_yaml, with_form(_text_of(inference_yaml), form, parameters, known))


def _text_of(file: Path) -> str:
    return file.read_bytes().decode()  # bytes: line ends stay what they are


def with_form(text: str, form: Form, parameters: Parameters, known: Sequence[Form]) -> str:
    """The text of an inference.yaml with this form in it. Arguments and errors as `write_form`."""
    end = "\r\n" if "\r\n" in text else "\n"
    text = with_parameters(_without_forms(text, known), parameters)
    if re.search(r"^calibration_tta: ", text, re.MULTILINE):
        text = with_parameters(text, form.start, "calibration_tta")
    line = f'calibrate: "{form.expressions["calibrate"]}"'
    text, count = _EXPRESSION.subn(lambda match: line, text)
    if count != 1:
        raise BundleError(f'inference.yaml has {count} line(s) `calibrate: "$..."`; exactly one is needed')
    there = text.splitlines()
    helpers = [helper for helper in form.helpers if helper not in there]
    for name in (helper.split(":")[0] for helper in helpers):
        if any(old.startswith(f"{name}:") for old in there):
            raise BundleError(
                f"inference.yaml has a `{name}` of its own; {form.name} needs that name; call it something else"
            )
    return _above("calibrate: ", helpers, _above("calibration: {", form.comment, text, end), end)


def _above(mark: str, lines: Sequence[str], text: str, end: str) -> str:
    """The text with these lines above the one that begins with the mark."""
    new = "".join(line + end for line in lines)
    return re.sub(rf"^(?={re.escape(mark)})", lambda match: new, text, flags=re.MULTILINE)


def _without_forms(text: str, known: Sequence[Form]) -> str:
    """The text without the helpers that only a form needs, and without comments that describe one."""
    lines = text.splitlines(keepends=True)
    brought = {line for form in known for line in (*form.comment, *form.helpers)}
    others = "".join(
        line for line in lines if line.rstrip("\r\n") not in brought and not line.startswith("calibrate: ")
    )
    gone = {line for form in known for line in form.comment}
    for form in known:
        if not any(f"@{name}" in others for name in form.expressions if name != "calibrate"):
            gone |= set(form.helpers)
    return "".join(line for line in lines if line.rstrip("\r\n") not in gone)

"""Fits the numbers of a bundle's calibration and writes them into its `models/fitted.json`, with a record of the cases.

The form of the calibration is the bundle's own: a function `calibrate(logits, parameters)` and a mapping `calibration` of
numbers, in which floats are fitted, integers are left alone and all floats at 0 mean "no calibration", as does an empty
mapping. Because the very function that inference calls is fitted, the two cannot differ.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_unet_app.bundle import Bundle, check_unseen, load_bundle
from monai_unet_app.bundle_folder import CALIBRATION_RECORD
from monai_unet_app.calibration.fitted import (
    Parameters,
    check_reads_fitted,
    write_calibration,
    write_calibration_beside,
)
from monai_unet_app.calibration.sample import Drawn, Part, parts_of
from monai_unet_app.config import InferenceSetting
from monai_unet_app.data.digest import seen_entry
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.inference.halo import halo_voxels
from monai_unet_app.inference.kernels import Known, OurKernels
from monai_unet_app.inference.spool import Rows, Spool
from monai_unet_app.metrics.outputs import Outputs, outputs_of

SCHEMA_VERSION = "1.0"

RIDGE = 1e-4  # of the squared numbers, in nats: keeps them finite where the cases do not determine them
LARGEST = 10.0
ENOUGH_SUBJECTS = 10
"""A fit on fewer subjects is checked on subjects left out in turn, and shrunk to the part that helps them."""

_MOST_GROUPS = 4  # of subjects left out; each costs a fit
_PARTS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the fitted numbers, the largest first
_BINS = 15  # of the reported calibration error

Calibrate = Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Fitted:
    """Result of a fit.

    Attributes:
        parameters: All numbers, fitted and fixed.
        nll_before: Mean negative log likelihood in nats a voxel (and label) without calibration.
        nll_after: The same with calibration.
        cases: Number of cases that it was fitted on.
        check: The check on subjects left out; None where it was not checked.
        drawn: What was taken of large cases; None where all cases were taken whole.
    """

    parameters: dict[str, float | int]
    nll_before: float
    nll_after: float
    cases: int
    check: "SubjectCheck | None" = None
    drawn: Drawn | None = None

    @property
    def sentence(self) -> str:
        """What the calibration gains, in words."""
        return (
            f"fitted on {self.cases} case(s): negative log likelihood a voxel {self.nll_before:.5f} before, "
            f"{self.nll_after:.5f} after"
        )


@dataclass(frozen=True)
class SubjectCheck:
    """The figures of a calibration for subjects that it was not fitted on, each left out in turn.

    Attributes:
        subjects: Number of subjects.
        part: Part of the fitted numbers that stays, 0 to 1: the largest with which neither figure gets worse.
        nll: Mean negative log likelihood of the subjects left out: without calibration, and with all of it; None if a fit
            without a part of the subjects ran away.
        ece: The same of the expected calibration error over the whole image (top label, 15 equal bins, pooled).
    """

    subjects: int
    part: float
    nll: tuple[float, float] | None
    ece: tuple[float, float] | None

    def document(self) -> dict[str, Any]:
        """As it stands in `models/calibration.json`."""
        nll, ece = self.nll and list(self.nll), self.ece and list(self.ece)
        return {"subjects": self.subjects, "kept": self.part, "nll": nll, "ece": ece}

    @property
    def sentence(self) -> str:
        """In words."""
        if self.nll is None or self.ece is None:
            return (
                "checked on subjects left out in turn: the fit diverged, so nothing is calibrated; give more subjects"
            )
        figures = (
            f"on {self.subjects} subjects left out in turn, negative log likelihood {self.nll[0]:.5f} without and "
            f"{self.nll[1]:.5f} with it, ECE of the whole image {self.ece[0]:.4f} and {self.ece[1]:.4f}"
        )
        if self.part == 1:
            return f"checked {figures}: kept"
        if self.part:
            return f"checked {figures}: it was shrunk to {self.part:.0%}, with which neither gets worse"
        return f"checked {figures}: it does not help, so nothing is calibrated; give cases of more subjects"


class StoredLogits:
    """Logits and truth of cases on the working grid, in a temporary file, so that memory holds one case at a time.

    Args:
        outputs: What the logits mean.
        calibrations: Every function that is to be fitted, and its numbers: of a large case boxes are kept, with as much
            around them as these functions look at.
        ignored: Value of the labels in voxels without a class; None where all have one.
    """

    def __init__(
        self, outputs: Outputs, calibrations: Sequence[tuple[Calibrate, Parameters]], ignored: int | None = None
    ) -> None:
        self.outputs, self.calibrations, self.ignored = outputs, calibrations, ignored
        self.drawn: Drawn | None = None
        self._spool = Spool("the logits of the cases", "give fewer cases")
        self._cases: list[list[_StoredPart]] = []
        self._averages: dict[object, tuple[int, tuple[int, ...]]] = {}

    def add(self, rows: Iterable[Rows] | torch.Tensor, label: torch.Tensor) -> None:
        """Adds one case.

        Args:
            rows: Its logits, from `predict_rows`, or as one tensor (C, *spatial).
            label: Shape (1, *spatial) of class numbers, or (C, *spatial) of 0 and 1.

        Raises:
            NoRoomError: The disk is full.
        """
        rows = [(0, rows.as_subclass(torch.Tensor))] if isinstance(rows, torch.Tensor) else rows
        parts, drawn = parts_of(rows, label.as_subclass(torch.Tensor), self.outputs, self._halo, self.ignored)
        if drawn is not None:
            self.drawn = self.drawn + drawn if self.drawn else drawn
        self._cases.append([self._stored(part) for part in parts])

    def _stored(self, part: Part) -> "_StoredPart":
        logits, truth = (
            (self._spool.put(tensor.detach().float()), tuple(tensor.shape)) for tensor in (part.logits, part.truth)
        )
        return replace(part, logits=_ON_DISK, truth=_ON_DISK), logits, truth

    def _halo(self, channels: int, dims: int) -> tuple[float, ...]:
        """How far the calibrations look along each axis, in voxels."""
        halos = [(0.0,) * dims]
        for calibrate, parameters in self.calibrations:
            # Not 0: all floats at 0 leave the logits as they are, and look at nothing
            numbers = {name: 0.5 if isinstance(value, float) else value for name, value in parameters.items()}
            halos.append(halo_voxels(partial(self._calibrated, calibrate, numbers), channels, dims))
        return tuple(map(max, zip(*halos, strict=True)))

    def _calibrated(self, calibrate: Calibrate, numbers: Parameters, logits: torch.Tensor) -> torch.Tensor:
        return self.outputs.probabilities(calibrate(logits, numbers))

    def average(self, image: torch.Tensor, arguments: object, take: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Averages of values that do not change during a search: taken once, and kept in the file; `Known` of `OurKernels`."""
        values = np.ascontiguousarray(image.numpy())
        key = hashlib.blake2b(values.data).digest(), values.shape, arguments
        if key not in self._averages:
            taken = take().float()
            self._averages[key] = self._spool.put(taken), tuple(taken.shape)
        return self._spool.copied_on_write(*self._averages[key])

    def only(self, places: Sequence[int]) -> "StoredLogits":
        """The cases at these places, counted from 0; the file stays as it is."""
        part = copy.copy(self)
        part._cases = [self._cases[n] for n in places]
        return part

    def __len__(self) -> int:
        return len(self._cases)

    def __iter__(self) -> Iterator[Part]:
        """The parts of all cases."""
        for part, *stored in chain.from_iterable(self._cases):
            # Mapped instead of read: the search passes over all cases many times, and the system keeps what fits into
            # memory. A bundle's function may write into what it gets.
            logits, truth = (self._spool.copied_on_write(place, shape) for place, shape in stored)
            yield replace(part, logits=logits, truth=truth)


_ON_DISK = torch.empty(0)
_StoredPart = tuple[Part, tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]]
"""A part without its tensors, and of logits and truth the place in the file and the shape."""


_Pair = tuple[torch.Tensor, torch.Tensor]
"""Calibrated logits of the boxes of a part, (C, ...), and their truth, (1 or C, ...)."""


def _likelihood(part: Part, pair: _Pair, outputs: Outputs) -> torch.Tensor:
    """The share of a part in the mean negative log likelihood of its case, in nats."""
    return part.share * outputs.negative_log_likelihood(*pair)


def _calibrated(part: Part, calibrate: Calibrate, parameters: Mapping[str, Any], average: Known | None = None) -> _Pair:
    with OurKernels(known=average):
        return part.pairs(calibrate(part.logits, parameters))


@dataclass(eq=False)
class CalibrationFit:
    """Collects logits and truth on the working grid, then fits. Also an ignite handler for `calibrate.yaml`.

    Args:
        calibrate: The bundle's function.
        parameters: The bundle's mapping. Its floats do not matter: every fit starts at 0.
        exclusive: True for softmax over classes, False for sigmoid for each label; or `outputs` of the bundle.
        bundle_root: Its `models/fitted.json` and `models/calibration.json` are written when the handler's evaluator has
            completed; None leaves both.
        cases: The data list that is fitted on, {"id", "subject", "image"}; for the record.
        setting: "plain"; "tta" for logits that are averages over mirror images, or of an engine in fewer bits: what is fitted
            then stands beside the plain numbers, and the record of the cases stays.
        unchecked: Keep a fit on fewer than ENOUGH_SUBJECTS subjects, even on a single subject, without the check.
        out_of_fold: Ids of the cases whose logits are of a network that has not seen them, although the bundle's own may have.

    Raises:
        InputRefusedError: The bundle was trained on one of the cases, or a fit on a single subject is to be checked.
        BundleError: As `check_reads_fitted`.
    """

    calibrate: Calibrate
    parameters: Parameters
    exclusive: bool | str
    bundle_root: str | Path | None = None
    cases: Sequence[Mapping[str, str]] = ()
    setting: InferenceSetting = "plain"
    unchecked: bool = False
    out_of_fold: Collection[str] = ()

    def __post_init__(self) -> None:
        self.parameters, self.cases = dict(self.parameters), list(self.cases)
        self.bundle = load_bundle(self.bundle_root) if self.bundle_root else None
        if self.bundle is not None:
            check_reads_fitted(self.bundle)
            # Cases of an earlier calibration may be used again, since the new fit replaces the earlier fit.
            own = [row for row in self.cases if row["id"] not in self.out_of_fold]
            check_unseen(self.bundle, own, ("train", "selection"))
        self.subjects = [] if self.unchecked else [row["subject"] for row in self.cases]
        if len(set(self.subjects)) == 1 and self.parameters:
            raise InputRefusedError(
                f"the {len(self.cases)} calibration case(s) are of one subject; 2 or more subjects are needed, since a "
                "calibration is kept only if it helps subjects that it was not fitted on; give cases of more subjects (other "
                "data; a plan of yours by --splits; --partition test, if the bundle is measured on another data set), or pass "
                "--unchecked to keep it without this check"
            )
        ignored = self.bundle.ignore_label if self.bundle else None
        self.logits = StoredLogits(outputs_of(self.exclusive), [(self.calibrate, self.parameters)], ignored)

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator, whose output must hold "pred" (logits) and "label"."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.finish())

    def _collect(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            self.add(item["pred"], item["label"])

    def finish(self) -> Fitted:
        """Fits, and writes parameters and record into the bundle if there is one."""
        fitted = self.fit()
        if self.bundle is not None and self.setting == "plain":
            write_record(self.bundle, fitted, self.cases)
            write_calibration(self.bundle, fitted.parameters, fitted.sentence)
        elif self.bundle is not None:
            write_calibration_beside(self.bundle, self.setting, fitted.parameters, fitted.sentence)
        return fitted

    def add(self, rows: Iterable[Rows] | torch.Tensor, label: torch.Tensor) -> None:
        """Adds one case: logits (C, *spatial) and labels (1, *spatial), as `StoredLogits.add`."""
        self.logits.add(rows, label)

    def fit(self) -> Fitted:
        """The fit of `fit_parameters`, on fewer than ENOUGH_SUBJECTS subjects shrunk by `shrunk`."""
        fitted = fit_parameters(self.calibrate, self.parameters, self.logits)
        if not self.parameters or not 2 <= len(set(self.subjects)) < ENOUGH_SUBJECTS:
            return fitted
        return shrunk(fitted, self.calibrate, self.logits, self.subjects)


def fit_parameters(calibrate: Calibrate, parameters: Parameters, cases: StoredLogits) -> Fitted:
    """The parameters with the least mean negative log likelihood (L-BFGS, full batch, a faint ridge).

    Args:
        calibrate: The function whose numbers are fitted.
        parameters: Floats are fitted, integers stay. An empty mapping means that nothing is to be calibrated.
        cases: Logits and truth to fit on.

    Raises:
        InputRefusedError: There is no case, or the fit ran away.
        BundleError: There are parameters, but none of them is a float.
    """
    names = [name for name, value in parameters.items() if isinstance(value, float)]
    if not len(cases):
        raise InputRefusedError("no calibration case; at least one subject that did not train or select is needed")
    if parameters and not names:
        raise BundleError(f"calibration is {dict(parameters)}; at least one float is needed to be fitted")

    def nll_by_part(values: torch.Tensor) -> Iterator[torch.Tensor]:
        """The share of each part of a case in the mean over all cases."""
        tried = {**parameters, **dict(zip(names, values, strict=True))}
        average = cases.average if values.requires_grad else None
        for part in cases:
            yield _likelihood(part, _calibrated(part, calibrate, tried, average), cases.outputs) / len(cases)

    def nll(values: torch.Tensor) -> float:
        return sum(map(float, nll_by_part(values)))

    # All floats at 0 leave the logits as they are (decision 2), so this is the likelihood without calibration.
    before = nll(torch.zeros(len(names)))
    if not math.isfinite(before):
        raise InputRefusedError(
            f"the negative log likelihood is {before} before the fit; finite logits are needed; train again"
        )
    if not names:
        return Fitted({}, before, before, len(cases), drawn=cases.drawn)
    least = _least(nll_by_part, len(names))
    fitted = {name: round(float(value), 5) for name, value in zip(names, least, strict=True)}
    # Of the rounded numbers, since fitted.json will hold these.
    after = nll(torch.tensor(list(fitted.values())))
    # `not <=` instead of `>`, so that NaN is refused, too.
    if not after <= before or max(map(abs, fitted.values())) > LARGEST:
        raise InputRefusedError(
            f"the fit diverged: {fitted}, negative log likelihood {before:.4f} before, {after:.4f} after; a network that "
            f"has learned something and numbers of at most {LARGEST:g} are needed; train longer or give more cases"
        )
    return Fitted({**parameters, **fitted}, before, after, len(cases), drawn=cases.drawn)


def shrunk(fitted: Fitted, calibrate: Calibrate, cases: StoredLogits, subjects: Sequence[str]) -> Fitted:
    """The fit, shrunk towards 0 (no calibration) to the part that helps subjects that it was not fitted on.

    Subjects are left out in turn, one by one, or in _MOST_GROUPS groups where there are more. The numbers are fitted on the
    others, and parts of them are tried on the subjects left out. The result is the largest part with which neither the
    likelihood nor the calibration error of the subjects left out is worse than without calibration.

    Args:
        fitted: The fit on all cases.
        calibrate: The fitted function.
        cases: Logits and truth of all cases.
        subjects: The subject of each case; at least two different subjects.
    """
    counts_of = {kept: np.zeros((4, _BINS)) for kept in _PARTS}
    everyone = sorted(set(subjects))
    count = min(_MOST_GROUPS, len(everyone))
    for group in (everyone[first::count] for first in range(count)):
        # Whole subjects are left out: another case of the same person would tell the fit about the case that checks it.
        others = cases.only([n for n, subject in enumerate(subjects) if subject not in group])
        try:
            parameters = fit_parameters(calibrate, fitted.parameters, others).parameters
        except InputRefusedError:  # it ran away: it would have done harm
            check, numbers = SubjectCheck(len(everyone), 0.0, None, None), _scaled(fitted.parameters, 0.0)
            return replace(fitted, parameters=numbers, nll_after=fitted.nll_before, check=check)
        own = cases.only([n for n, subject in enumerate(subjects) if subject in group])
        for kept in _PARTS:
            scaled = _scaled(parameters, kept)
            for part in own:
                counts_of[kept] += _counts(part, _calibrated(part, calibrate, scaled), cases.outputs)
    figures = {kept: _figures(counts, len(cases)) for kept, counts in counts_of.items()}
    none, whole = figures[0.0], figures[1.0]
    # The parts fall from 1 to 0, and 0 is no calibration, which is never worse than itself: the search always ends.
    largest = next(kept for kept in _PARTS if all(a <= b for a, b in zip(figures[kept], none, strict=True)))
    check = SubjectCheck(len(everyone), largest, (none[0], whole[0]), (none[1], whole[1]))
    numbers = _scaled(fitted.parameters, largest)
    # The likelihood in the record is that of the numbers that stay, on all cases.
    nll = sum(float(_likelihood(part, _calibrated(part, calibrate, numbers), cases.outputs)) for part in cases)
    return replace(fitted, parameters=numbers, nll_after=nll / len(cases), check=check)


def _scaled(parameters: Parameters, part: float) -> dict[str, float | int]:
    """Floats times the part; integers stay."""
    return {name: round(n * part, 5) if isinstance(n, float) else n for name, n in parameters.items()}


def _counts(part: Part, pair: _Pair, outputs: Outputs) -> np.ndarray:
    """Shape (4, bins): number of voxels, of right voxels, and sum of confidence in each bin of confidence.

    The last row holds the negative log likelihood in its first cell.
    """
    confidence, right = (values.flatten() for values in outputs.confidence(*pair))
    # float64, since sums in float32 stop growing at 2**24 voxels.
    exact, bins = confidence.double(), (confidence * _BINS).long().clamp(max=_BINS - 1)
    rows = [torch.bincount(bins, weights, _BINS) for weights in (torch.ones_like(exact), right.double(), exact)]
    likelihood = np.zeros(_BINS)
    likelihood[0] = float(_likelihood(part, pair, outputs))
    return np.stack([*(part.times * row.numpy() for row in rows), likelihood])


def _figures(counts: np.ndarray, cases: int) -> tuple[float, float]:
    """Mean negative log likelihood a case, and expected calibration error of all voxels."""
    voxels, right, confidence, likelihood = counts
    return float(likelihood[0] / cases), float(np.abs(right - confidence).sum() / voxels.sum())


def _least(nll_by_part: Callable[[torch.Tensor], Iterator[torch.Tensor]], count: int) -> torch.Tensor:
    """Shape (count,): the values with the least sum over all parts, ridge included; the search starts at 0."""
    values = torch.zeros(count, dtype=torch.float32, requires_grad=True)
    # The likelihood of all cases is smooth in a few numbers, so L-BFGS suits it; the line search finds the length of
    # each step.
    optimizer = torch.optim.LBFGS([values], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = RIDGE * values.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        # Part by part: the gradients add up in `values`, and only the graph of one part is held in memory.
        for part in nll_by_part(values):
            part.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach() + part.detach()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return values.detach()


def write_record(bundle: Bundle, fitted: Fitted, cases: Sequence[Mapping[str, str]]) -> None:
    """Writes `models/calibration.json`: the fit, and the cases that it was fitted on, {"id", "subject", "image"}."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "parameters": fitted.parameters,
        "nll_before": fitted.nll_before,
        "nll_after": fitted.nll_after,
        "cases": {row["id"]: seen_entry(row) for row in cases},
        **({"check": fitted.check.document()} if fitted.check else {}),
        **({"sample": fitted.drawn.document()} if fitted.drawn else {}),
    }
    write_json(record, bundle.root / "models" / CALIBRATION_RECORD, "calibration")

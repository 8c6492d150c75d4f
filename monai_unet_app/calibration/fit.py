"""Fits the numbers under `calibration:` of a bundle's `inference.yaml` and writes them back, with a record of the cases.

The form of the calibration is the bundle's own: a function `calibrate(logits, parameters)` and a mapping `calibration` of
numbers, in which floats are fitted, integers are left alone and all floats at 0 mean "no calibration", as does an empty
mapping. Because the very function that inference calls is fitted, the two cannot differ.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from ignite.engine import Engine, Events

from monai_unet_app.bundle import CALIBRATION_RECORD, Bundle, check_unseen, load_bundle
from monai_unet_app.data.digest import seen_entry
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import BundleError, InputRefusedError

SCHEMA_VERSION = "1.0"

RIDGE = 1e-4  # of the squared numbers, in nats: keeps them finite where the cases do not determine them
LARGEST = 10.0

Parameters = Mapping[str, float | int]
Calibrate = Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Fitted:
    """Result of a fit.

    Attributes:
        parameters: All of them, fitted and fixed.
        nll_before: Mean negative log likelihood in nats a voxel (and label) without calibration.
        nll_after: The same with it.
        cases: How many cases it was fitted on.
    """

    parameters: dict[str, float | int]
    nll_before: float
    nll_after: float
    cases: int


class KeptLogits:
    """Logits and truth of cases on the working grid, in a temporary folder, so that memory holds one of them at a time.

    Args:
        exclusive: True for classes that share the voxels out, False for labels that may overlap.
    """

    def __init__(self, exclusive: bool) -> None:
        self.exclusive = exclusive
        self._folder = tempfile.TemporaryDirectory(prefix="monai-unet-logits-")
        self._files: list[Path] = []

    def add(self, logits: torch.Tensor, label: torch.Tensor) -> None:
        """One case: logits (C, *spatial) and label (1, *spatial) of class numbers, or (C, *spatial) of 0 and 1."""
        if not self.exclusive and len(label) == 1 and len(logits) > 1:
            label = torch.cat([label == number for number in range(1, len(logits) + 1)])
        file = Path(self._folder.name) / f"{len(self._files)}.pt"
        plain = [part.detach().cpu().float().as_subclass(torch.Tensor).clone() for part in (logits, label)]
        torch.save(plain, file)
        self._files.append(file)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for file in self._files:
            logits, label = torch.load(file, weights_only=True, mmap=True)
            yield logits, label


class CalibrationFit:
    """Collects logits and truth on the working grid, then fits. Also an ignite handler for `calibrate.yaml`.

    Args:
        calibrate: The bundle's function.
        parameters: The bundle's mapping; where the fit starts does not matter, it starts at 0.
        exclusive: True for softmax over classes, False for sigmoid for each label.
        bundle_root: Its `inference.yaml` is rewritten and its `models/calibration.json` written when the handler's
            evaluator has completed; None leaves both.
        cases: The data list that is fitted on, {"id", "subject", "image"}; for the record.
        setting: "plain", or "tta" for logits that are averages over mirror images: then `calibration_tta` is what is written.

    Raises:
        InputRefusedError: The bundle was trained on one of the cases.
    """

    def __init__(
        self,
        calibrate: Calibrate,
        parameters: Parameters,
        exclusive: bool,
        bundle_root: str | Path | None = None,
        cases: Sequence[Mapping[str, str]] = (),
        setting: str = "plain",
    ) -> None:
        self.calibrate = calibrate
        self.parameters = dict(parameters)
        self.bundle = load_bundle(bundle_root) if bundle_root else None
        self.rows = list(cases)
        self.setting = setting
        if self.bundle is not None:
            check_unseen(self.bundle, self.rows, ("train", "selection"))
        self.kept = KeptLogits(exclusive)

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
        if self.bundle is not None and self.setting == "tta":
            write_parameters(self.bundle.root / "configs/inference.yaml", fitted.parameters, "calibration_tta")
        elif self.bundle is not None:
            write_record(self.bundle, fitted, self.rows)
            write_parameters(self.bundle.root / "configs/inference.yaml", fitted.parameters)
        return fitted

    def add(self, logits: torch.Tensor, label: torch.Tensor) -> None:
        """One case, as `KeptLogits.add`."""
        self.kept.add(logits, label)

    def fit(self) -> Fitted:
        """See `fit_parameters`."""
        return fit_parameters(self.calibrate, self.parameters, self.kept)


def fit_parameters(calibrate: Calibrate, parameters: Parameters, cases: KeptLogits) -> Fitted:
    """The parameters with the least mean negative log likelihood (L-BFGS, full batch, a faint ridge).

    Args:
        calibrate: What is fitted.
        parameters: Floats are fitted, integers stay. An empty mapping means that nothing is to be calibrated.
        cases: What it is fitted on.

    Raises:
        InputRefusedError: There is no case, or the fit ran away.
        BundleError: There are parameters, but no number to fit.
    """
    names = [name for name, value in parameters.items() if isinstance(value, float)]
    if not len(cases):
        raise InputRefusedError("no calibration case; at least one subject that neither trained nor selected is needed")
    if parameters and not names:
        raise BundleError(f"calibration is {dict(parameters)}; at least one float is needed to be fitted")

    def nll_by_case(values: torch.Tensor) -> Iterator[torch.Tensor]:
        """What each case adds to the mean over all cases."""
        tried = {**parameters, **dict(zip(names, values, strict=True))}
        for logits, label in cases:
            yield _nll(calibrate(logits, tried), label, cases.exclusive) / len(cases)

    def nll(values: torch.Tensor) -> float:
        return sum(map(float, nll_by_case(values)))

    before = nll(torch.zeros(len(names)))
    if not math.isfinite(before):
        raise InputRefusedError(
            f"the negative log likelihood is {before} before the fit; finite logits are needed; train again"
        )
    if not names:
        return Fitted({}, before, before, len(cases))
    found = _least(nll_by_case, len(names))
    fitted = {name: round(float(value), 5) for name, value in zip(names, found, strict=True)}
    after = nll(torch.tensor(list(fitted.values())))
    if not after <= before or max(map(abs, fitted.values())) > LARGEST:
        raise InputRefusedError(
            f"the fit ran away: {fitted}, negative log likelihood {before:.4f} before, {after:.4f} after; a network that "
            f"has learned something and numbers of at most {LARGEST:g} are needed; train longer or give more cases"
        )
    return Fitted({**parameters, **fitted}, before, after, len(cases))


def _least(nll_by_case: Callable[[torch.Tensor], Iterator[torch.Tensor]], count: int) -> torch.Tensor:
    """Shape (count,): the values with the least sum over the cases, and the ridge, found from 0."""
    values = torch.zeros(count, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.LBFGS([values], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = RIDGE * values.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for part in nll_by_case(values):
            part.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach() + part.detach()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return values.detach()


def _nll(calibrated: torch.Tensor, label: torch.Tensor, exclusive: bool) -> torch.Tensor:
    if exclusive:
        return F.cross_entropy(calibrated[None], label.long())
    return F.binary_cross_entropy_with_logits(calibrated, label.expand_as(calibrated))


def write_record(bundle: Bundle, fitted: Fitted, cases: Sequence[Mapping[str, str]]) -> None:
    """Writes `models/calibration.json`: what was fitted, and on which cases, {"id", "subject", "image"}."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "parameters": fitted.parameters,
        "nll_before": fitted.nll_before,
        "nll_after": fitted.nll_after,
        "cases": {row["id"]: seen_entry(row) for row in cases},
    }
    write_json(record, bundle.root / "models" / CALIBRATION_RECORD, "calibration")


def write_parameters(inference_yaml: Path, parameters: Parameters, name: str = "calibration") -> None:
    """Replaces the one line `calibration: {...}`, or that of another name, and leaves every other byte as it is.

    Raises:
        BundleError: There is no such line, or more than one.
    """
    text = inference_yaml.read_bytes().decode()  # bytes: line ends stay what they are
    write_atomically(inference_yaml, with_parameters(text, parameters, name))


def with_parameters(text: str, parameters: Parameters, name: str = "calibration") -> str:
    """The text of an inference.yaml with these numbers on its one line of that name. Errors as `write_parameters`."""
    line = f"{name}: {{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in parameters.items()) + "}"
    changed, count = re.subn(rf"^{name}: \{{[^}}\n]*\}}", line, text, flags=re.MULTILINE)
    if count != 1:
        raise BundleError(f"inference.yaml has {count} line(s) `{name}: {{...}}`; exactly one is needed")
    return changed


def write_atomically(path: Path, text: str) -> None:
    """The text as it is, through a temporary name."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(text.encode())
    os.replace(partial, path)


def _yaml(value: float | int) -> str:
    """The number as YAML reads it back; YAML 1.1 takes 1e-05 for a word."""
    return np.format_float_positional(value, trim="0") if isinstance(value, float) else str(value)

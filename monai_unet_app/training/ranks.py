"""A training of several processes, which torchrun starts: each takes its part of every step, and the first writes the files.

Without torchrun there is one process, and every function here answers for it.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import distributed

from monai_unet_app.errors import UsageError, refusal_in

Item = TypeVar("Item")


def count() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _several() else 1


def own() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _several() else 0


def is_first() -> bool:
    """Whether this process writes checkpoints, record, curves and lines."""
    return own() == 0


def mean(value: float) -> float:
    """The mean of the values that all processes give."""
    found = gathered([value])
    return sum(found) / len(found)


def gathered(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, those of the first process first; all must call this at the same place."""
    if not _several():
        return list(items)
    parts: list[Any] = [None] * count()
    distributed.all_gather_object(parts, list(items))
    return list(chain.from_iterable(parts))


def begin(device: torch.device | str) -> None:
    """Joins the processes that torchrun has started: by nccl on GPUs, by gloo on CPUs.

    From then on what is refused ends a process with one sentence and the status of a command.
    """
    if not distributed.is_initialized():
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if on_gpu else "gloo")
        sys.excepthook = _end_with  # in the place of torch's


def _end_with(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (refusal := refusal_in(error)) is None:
        sys.__excepthook__(kind, error, trace)
        return
    sys.stderr.write(f"error: {refusal}\n")
    raise SystemExit(2 if isinstance(refusal, UsageError) else 3)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()

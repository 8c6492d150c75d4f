"""Random windows that can be drawn again: the randomness of each draw depends on the seed and the draw's number alone.

The order of workers, a restart or another batch size cannot change what draw 1,234 looks like. This makes an exact resume
possible.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, get_track_meta, set_track_meta
from monai.transforms import Compose
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from monai_unet_app.errors import UsageError
from monai_unet_app.training import ranks
from monai_unet_app.training.prepared import PreparedDataset

CASE = "case"
"""Key of a window: the index of its case."""

_AHEAD = 2  # batches that each worker of torch's DataLoader prepares ahead

Draw = tuple[int, int]  # (index of the case, number of the draw since training began)


def replay_rng(seed: int, *numbers: int) -> np.random.RandomState:
    """A random state that depends on nothing but its arguments."""
    # RandomState is the class of MONAI's transforms, and numpy keeps its streams equal in all versions (NEP 19).
    # SeedSequence mixes the numbers, so that neighbouring draws have unrelated states.
    return np.random.RandomState(np.random.SeedSequence([seed, *numbers]).generate_state(4))


@dataclass(eq=False)
class ReplayDataset(Dataset[dict[str, Any]]):
    """Cases that are read and preprocessed once, and augmented anew for each draw.

    Args:
        data: A dict for each case, for instance {"image": path, "label": path}.
        deterministic: The list of transforms that inference uses.
        random: Augmentation and the drawing of a window; of a transform that gives a list, the first window is taken. Tensors
            have no affine here: what needs one belongs into the two other lists.
        seed: Fixes the augmentation, together with the number of a draw.
        num_workers: Threads that fill the memory.
        prepare: More that is done once for each case, such as the places of each class.
        cache_dir: A folder that keeps what is done once; None keeps it in memory.
    """

    data: Sequence[dict[str, Any]]
    deterministic: Sequence[Any]
    random: Sequence[Any]
    seed: int = 0
    num_workers: int = 2
    prepare: Sequence[Any] = ()
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        self.varied = Compose(list(self.random))
        once = Compose([*self.deterministic, *self.prepare])
        self.cases: Dataset[Any] = (
            CacheDataset(data=list(self.data), transform=once, num_workers=self.num_workers, progress=False)
            if self.cache_dir is None
            else PreparedDataset(self.data, once, self.cache_dir)
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        case, number = draw
        self.varied.set_random_state(seed=int(replay_rng(self.seed, number).randint(2**31)))
        # Copies, because a transform may work in place
        copies = {key: _bare_copy(value) for key, value in self.cases[case].items()}
        with _without_metadata():
            drawn = self.varied(copies)
        window: dict[str, Any] = drawn[0] if isinstance(drawn, list) else drawn
        return {**window, CASE: case}


def _bare_copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.as_subclass(torch.Tensor).clone()


@contextmanager
def _without_metadata() -> Iterator[None]:
    """MONAI's transforms do not note what they did: of pictures that takes a third of the time of a draw."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class CaseLosses:
    """The mean loss of each case, epoch by epoch.

    The draws of an epoch follow from the losses until the epoch before the last: workers draw ahead, while the last windows of
    an epoch still wait for their losses, and no window may depend on how far ahead.

    Args:
        cases: Number of cases.
        per_epoch: Windows of an epoch.
    """

    def __init__(self, cases: int, per_epoch: int) -> None:
        self.cases, self.per_epoch = cases, per_epoch
        # of the current epoch and of the next one; NaN: not known
        self.known = [np.full(cases, np.nan), np.full(cases, np.nan)]
        self.epoch = 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.sums, self.counts = np.zeros(self.cases), np.zeros(self.cases, dtype=int)

    def add(self, cases: Sequence[int], losses: Sequence[float]) -> None:
        """The losses (N,) of the next windows of the stream, which are of these cases (N,)."""
        np.add.at(self.sums, cases, losses)
        np.add.at(self.counts, cases, 1)
        if self.counts.sum() >= self.per_epoch:
            coming = self.known[1]
            seen = self.counts > 0
            means = np.divide(self.sums, self.counts, out=coming.copy(), where=seen)
            # half of what was known before, since the few windows of a case in one epoch are chance
            self.known = [coming, np.where(seen & np.isfinite(coming), (means + coming) / 2, means)]
            self.epoch += 1
            self._begin_epoch()

    def chances(self, draw: int) -> NDArray[np.float64] | None:
        """How often each case comes among the hard ones, shape (cases,), sum 1; None while not all have a loss."""
        losses = self.known[min(max(draw // self.per_epoch - self.epoch, 0), 1)]
        return losses / losses.sum() if np.isfinite(losses).all() and losses.min() >= 0 < losses.sum() else None

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch needs, after a whole epoch."""
        return {"known": [losses.tolist() for losses in self.known], "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.known, self.epoch = [np.array(losses) for losses in state["known"]], state["epoch"]
        self._begin_epoch()


@dataclass(eq=False)
class ReplaySampler(Sampler[Draw]):
    """An endless stream of draws: every case once in random order, then every case once in a new order, and so on.

    Args:
        cases: Number of cases.
        seed: Fixes the stream.
        hard_cases: Part of the draws, 0 to 1, in which another case takes the place of its own, the more often the larger its
            loss.
        losses: What is known of the cases.
        step: Draws of a step of the training, of all processes together.

    Attributes:
        first_draw: Number of the first draw; set by `Checkpoints` before the first batch of a resumed run.
    """

    cases: int
    seed: int = 0
    hard_cases: float = 0.0
    losses: CaseLosses | None = None
    step: int = 1
    first_draw: int = 0

    def __iter__(self) -> Iterator[Draw]:
        draw = self.first_draw
        while True:
            # The order follows from the round alone, so that a resumed run can begin in the middle of a round
            order = replay_rng(self.seed, 0, draw // self.cases).permutation(self.cases)
            for position in range(draw % self.cases, self.cases):
                if draw % self.step * ranks.count() // self.step == ranks.own():  # its part of the step
                    hard = self._hard_case(draw)
                    yield int(order[position]) if hard is None else hard, draw
                draw += 1

    def _hard_case(self, draw: int) -> int | None:
        """The case that takes the place of a draw's own; None leaves it."""
        if self.losses is None:
            return None
        # The first number tells these streams from those of the windows, of their order and of the steps
        rng = replay_rng(self.seed, 2, draw)
        if rng.random_sample() >= self.hard_cases or (chances := self.losses.chances(draw)) is None:
            return None
        return int(rng.choice(self.cases, p=chances))


class ReplayLoader(DataLoader):
    """Batches of a `ReplayDataset`; an epoch has `windows_per_case` windows for each case.

    Args:
        dataset: Cases to draw from.
        batch_size: Windows in one step, of all processes of the training together.
        windows_per_case: Length of an epoch, in windows for each case.
        num_workers: Processes that augment; 0 augments in the training process.
        hard_cases: Part of the windows, 0 to 1, that are taken from cases in proportion to their loss two epochs before; the
            others come from all cases alike.

    Raises:
        UsageError: `batch_size` does not fall into as many equal parts as there are processes; `hard_cases` is not 0 to 1, or
            an epoch is so short that its windows would be drawn before the losses that they need are known.
    """

    def __init__(
        self,
        dataset: ReplayDataset,
        batch_size: int,
        windows_per_case: int = 1,
        num_workers: int = 0,
        hard_cases: float = 0.0,
    ) -> None:
        # The stream of draws has no end; the trainer ends an epoch after this many steps
        self.epoch_length = max(1, len(dataset) * windows_per_case // batch_size)
        if not 0 <= hard_cases <= 1:
            raise UsageError(f"hard_cases is {hard_cases:g}; a part of the windows, 0 to 1, is needed")
        if hard_cases and self.epoch_length <= _AHEAD * num_workers:
            raise UsageError(
                f"an epoch has {self.epoch_length} step(s); hard_cases with {num_workers} worker(s) needs more than "
                f"{_AHEAD * num_workers}; raise windows_per_case, or train with --workers 0"
            )
        if batch_size % ranks.count():
            raise UsageError(
                f"{ranks.count()} processes train on steps of {batch_size} window(s); a number that they share evenly is "
                "needed; change batch_size in train.yaml, or --nproc_per_node"
            )
        self.losses = CaseLosses(len(dataset), self.epoch_length * batch_size) if hard_cases else None
        self.draws = ReplaySampler(len(dataset), dataset.seed, hard_cases, self.losses, batch_size)
        self.windows_per_step = batch_size
        super().__init__(
            dataset,
            batch_size=batch_size // ranks.count(),
            sampler=self.draws,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )

    def begin_at(self, step: int) -> None:
        """Lets the next iterator start with the batch of training step `step` (counted from 0)."""
        self.draws.first_draw = step * self.windows_per_step

    def seed_step(self, step: int) -> None:
        """Sets torch's generators, from which dropout draws, to a state that depends on the seed and the step alone.

        Args:
            step: Number of the training step, from 1.
        """
        # The first number tells these streams from those of the draws and of their order
        torch.manual_seed(int(replay_rng(self.draws.seed, 1, step).randint(2**31)))

    def __len__(self) -> int:
        return self.epoch_length

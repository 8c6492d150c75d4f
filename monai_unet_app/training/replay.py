"""Random windows that can be drawn again: each draw's randomness is a function of (seed, draw number) alone.

The order of workers, a restart or another batch size cannot change what draw 1,234 looks like; that is what makes an
exact resume possible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

Ticket = tuple[int, int]  # (index of the case, number of the draw since training began)


def replay_rng(seed: int, *numbers: int) -> np.random.RandomState:
    """A random state that depends on nothing but its arguments."""
    return np.random.RandomState(np.random.SeedSequence([seed, *numbers]).generate_state(4))


class ReplayDataset(Dataset):
    """Cases read and preprocessed once, then augmented anew for each ticket.

    Args:
        data: One dict a case, for instance {"image": path, "label": path}.
        deterministic: The list of transforms that inference uses; its results are kept in memory.
        random: Augmentation and the drawing of a window.
        seed: Together with a ticket's draw number it fixes the augmentation.
        num_workers: Threads that fill the cache.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        deterministic: Sequence[Any],
        random: Sequence[Any],
        seed: int = 0,
        num_workers: int = 2,
    ) -> None:
        self.data = data
        self.seed = seed
        self.random = Compose(list(random))
        self.cases = CacheDataset(
            data=list(data), transform=Compose(list(deterministic)), num_workers=num_workers, progress=False
        )

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, ticket: Ticket) -> dict[str, Any]:
        case, draw = ticket
        seed = int(replay_rng(self.seed, draw).randint(2**31))
        self.random.set_random_state(seed=seed)
        # a copy: MONAI notes every transform in a list of the tensor's own, which would grow with each draw
        item = self.cases[case].items()
        return self.random({key: part.clone() if isinstance(part, torch.Tensor) else part for key, part in item})


class ReplaySampler(Sampler):
    """An endless stream of tickets: every case once, in a new order, then every case once again.

    Attributes:
        first_draw: Where the stream begins; set by `Checkpoints` before the first batch of a resumed run.
    """

    def __init__(self, cases: int, seed: int = 0) -> None:
        self.cases = cases
        self.seed = seed
        self.first_draw = 0

    def __iter__(self) -> Iterator[Ticket]:
        draw = self.first_draw
        while True:
            order = replay_rng(self.seed, 0, draw // self.cases).permutation(self.cases)
            for position in range(draw % self.cases, self.cases):
                yield int(order[position]), draw
                draw += 1


class ReplayLoader(DataLoader):
    """Batches of a `ReplayDataset`; an epoch is `windows_per_case` windows of each case.

    Args:
        dataset: What to draw from.
        batch_size: Windows a step.
        windows_per_case: Length of an epoch in windows for each case.
        num_workers: Processes that augment; 0 augments in the training process.
    """

    def __init__(
        self, dataset: ReplayDataset, batch_size: int, windows_per_case: int = 1, num_workers: int = 0
    ) -> None:
        self.tickets = ReplaySampler(len(dataset), dataset.seed)
        self.windows_per_step = batch_size
        self.epoch_length = max(1, len(dataset) * windows_per_case // batch_size)
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=self.tickets,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )

    def begin_at(self, step: int) -> None:
        """The next iterator starts with the batch of training step `step` (0-based)."""
        self.tickets.first_draw = step * self.windows_per_step

    def __len__(self) -> int:
        return self.epoch_length

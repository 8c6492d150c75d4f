"""Whether a figure reaches what is claimed of it; every benchmark asks this one function.

`BENCHMARK_SHARE=0.33` makes each claim three times as easy: a short run on a busy machine then fails only where a figure is far
from what is claimed. `run.py --short` sets it.
"""

from __future__ import annotations

import os

SHARE = "BENCHMARK_SHARE"


def judged(what: str, found: float, wanted: float, *, at_most: bool = False) -> bool:
    """Prints a figure beside its target.

    Args:
        what: The figure's name and unit.
        found: What was measured.
        wanted: The claim, more than 0.
        at_most: The claim is an upper bound.

    Returns:
        Whether the target is reached, made easier by the environment variable `BENCHMARK_SHARE` (0 to 1; default 1).
    """
    share = float(os.environ.get(SHARE, "1"))
    needed = wanted / share if at_most else wanted * share
    reached = found <= needed if at_most else found >= needed
    eased = "" if share == 1 else f" (here {needed:.3g} is enough)"
    bound = "at most" if at_most else "at least"
    print(f"  {what}: {found:.3g}, {bound} {wanted:g} is wanted{eased}: {'reached' if reached else 'MISSED'}")
    return reached

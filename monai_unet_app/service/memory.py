"""Memory that a burst of uploads or associations took is given back to the system when it is over.

glibc keeps what was freed: in arenas, one for some threads each, and large blocks too once a few were freed, because its
threshold for blocks of their own grows. A receiver at rest held twice what it needed. Without glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # malloc.h
_ARENAS = 2
_LARGE_BYTES = 2**18  # a block of at least so many is one of its own, which goes back when it is freed
_TRIM_S = 5.0


def keep_small() -> None:
    """Sets, for the whole process, how freed memory is kept; to be called before threads are started."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_ARENA_MAX, _ARENAS)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def wait_and_trim(stop: threading.Event) -> None:
    """Waits for an event; meanwhile free memory goes back to the system every few seconds."""
    libc = _glibc()
    while not stop.wait(_TRIM_S):
        if libc is not None:
            libc.malloc_trim(0)


def _glibc() -> Any:
    """glibc, or None."""
    try:
        libc = ctypes.CDLL(None)  # what this process has loaded
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None

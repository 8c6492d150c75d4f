"""Memory that a burst of uploads or associations took is given back to the system after the burst.

glibc keeps freed memory for itself: in arenas, which threads share, and in large blocks too, because its threshold for blocks
that go back at once grows when such blocks are freed. A receiver at rest had twice the memory that it needed. Without glibc
these functions do nothing.
"""

import ctypes
import threading
from typing import Any

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # malloc.h
_ARENAS = 2
_LARGE_BYTES = 2**18  # a block of this size or larger goes back to the system as soon as it is freed
_TRIM_S = 5.0


def keep_small() -> None:
    """Sets for the whole process how freed memory is kept. Must be called before threads are started."""
    libc = _glibc()
    if libc is not None:
        # Threads get arenas when they first allocate memory; a limit removes no arena that exists already.
        libc.mallopt(_ARENA_MAX, _ARENAS)
        # A threshold that is set no longer grows by itself (mallopt(3)).
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def wait_and_trim(stop: threading.Event) -> None:
    """Waits for an event, and gives free memory back to the system every few seconds meanwhile."""
    libc = _glibc()
    while not stop.wait(_TRIM_S):
        if libc is not None:
            libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process if it is glibc, else None."""
    try:
        libc = ctypes.CDLL(None)  # the libraries that this process has loaded
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None

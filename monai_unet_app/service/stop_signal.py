"""The end of a long-running process, asked for by a signal.

A handler runs between two bytecodes of the main thread, perhaps while that thread holds the lock of a `threading.Event` on
which it waits; an `Event.set` there waits for itself for ever. Python's own C handler writes to a pipe instead.
"""

import os
import select
import signal


class StopSignal:
    """Whether one of some signals has come. Made and asked by the main thread, as `signal.signal` needs it."""

    def __init__(self, *numbers: int) -> None:
        """From now on these signals do not end the process."""
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)  # without a handler nothing is written

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until a signal has come, at most so long; says whether one has come, also before."""
        return bool(select.select([self._read_end], [], [], seconds)[0])  # what was written is never read

"""Processes that do what may fail: one line of JSON in for each task, one line out when it is done.

A child that dies takes nothing with it but the task at hand; one whose node dies ends by itself. A child answers a heart-beat
at any time, by a thread of its own; one that does not is frozen. That a child answers says nothing of its task, so the time
of a task has a limit as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]
READY: Message = {"ready": True}
BEAT: Message = {"beat": True}
BEAT_S = 1.0
"""Seconds between two heart-beats that a child is asked for."""

PARTIAL = ".partial-"
"""What the name of a folder begins with that a worker is writing and will rename."""

_QUIET = {
    "OPENVINO_TELEMETRY": "0",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore",
}
"""Environment in which libraries that would call home do not."""


class Child:
    """A process as its parent sees it.

    Attributes:
        is_ready: It has said that it can work.
        task: What it works at; None if it waits.
        why_ended: Why its parent ended it; else empty.
    """

    def __init__(
        self, module: str, args: Sequence[str], inbox: queue.SimpleQueue[tuple[Child, Message | None]]
    ) -> None:
        """Starts `python -m module args`.

        Args:
            module: Runs `serve`.
            args: Its arguments.
            inbox: Gets what it says, and None when it has ended.
        """
        self.is_ready, self.why_ended = False, ""
        self.task: Any = None
        self._since, self._inbox = time.monotonic(), inbox
        self._asked, self._unanswered, self._used_s = 0.0, 0, 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_QUIET},
            text=True,
            start_new_session=True,  # Ctrl-C is the node's to answer
        )
        threading.Thread(target=self._listen, daemon=True, name=f"{module} {self.pid}").start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_idle(self) -> bool:
        """Whether it can be given a task."""
        return self.is_ready and self.task is None and self._process.poll() is None

    @property
    def busy_s(self) -> float:
        """Seconds since it was given its task, or was started."""
        return time.monotonic() - self._since

    @property
    def exit_code(self) -> int | None:
        """Negative for the signal that ended it; None while it runs."""
        return self._process.poll()

    def give(self, task: Any, message: Mapping[str, Any]) -> None:
        """Hands it a task; what it answers comes by the inbox."""
        self.task, self._since = task, time.monotonic()
        self._say(message)

    def rest(self) -> None:
        """It has answered."""
        self.task, self._since = None, time.monotonic()

    def ask(self) -> None:
        """Asks for a heart-beat, if the last one was asked for long enough ago."""
        if time.monotonic() - self._asked < BEAT_S:
            return
        used_s = _used_s(self.pid)
        if not self.is_idle and used_s > self._used_s:  # it computes: native code may keep every Python thread waiting
            self._unanswered = 0
        self._asked, self._used_s = time.monotonic(), used_s
        self._unanswered += 1
        self._say(BEAT)

    @property
    def silent_s(self) -> float:
        """Seconds without a sign of life. Counted by the heart-beats that were asked for, so a frozen node blames nobody."""
        return max(0, self._unanswered - 1) * BEAT_S

    def end(self, patience_s: float = 0.0) -> None:
        """Ends it, after so many seconds by force."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it has just died, which the inbox will say; or it was ended
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # something that a library printed
            self._unanswered = 0
            if message == BEAT:
                continue
            self._inbox.put((self, message))
        self._process.wait()
        self._inbox.put((self, None))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not tell, or it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _used_s(pid: int) -> float:
    """Seconds of CPU time that a process has used; 0 where the system does not tell, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # utime and stime, proc(5)
    except (OSError, ValueError, IndexError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def serve(prepare: Callable[[], Callable[[Message], Message]], facts: Callable[[], Message] | None = None) -> None:
    """The child's side: prepares, says that it is ready, and answers one task after the other until the node is gone.

    Args:
        prepare: Called once; gives the function that answers a task.
        facts: Called after it; what the child says of itself when it is ready.
    """
    out, lock = os.fdopen(os.dup(1), "w", buffering=1), threading.Lock()
    os.dup2(2, 1)  # what libraries print is no answer

    def say(message: Message) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")

    tasks: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(tasks, say), daemon=True).start()
    answer = prepare()
    say({**(facts() if facts else {}), **READY})
    while True:
        say(answer(tasks.get()))


def _take(tasks: queue.SimpleQueue[Message], say: Callable[[Message], None]) -> None:
    """Reads what the node says: a heart-beat is answered at once, a task waits its turn."""
    try:
        for line in sys.stdin:
            message = json.loads(line)
            if message == BEAT:
                say(BEAT)
            else:
                tasks.put(message)
    finally:
        os._exit(0)  # the node is gone, also where it no longer hears: whoever takes its place begins this task anew

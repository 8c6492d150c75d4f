"""Child processes for what may fail: one line of JSON in for each task, one line out when it is done.

A child that dies loses nothing but the task at hand; a child whose node dies ends by itself. A thread of the child answers
heart-beats at any time; a child that does not answer them is frozen. Heart-beats say nothing about the task, so the time of a
task has a limit as well.
"""

import contextlib
import ctypes
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from monai_unet_app.errors import AppError, InputRefusedError

Message = dict[str, Any]
READY: Message = {"ready": True}
HEARTBEAT: Message = {"beat": True}
HEARTBEAT_S = 1.0
"""Seconds between two heart-beats that a child is asked for."""

PARTIAL = ".partial-"
"""How the name of a folder begins that a worker is writing and will rename."""

_OFFLINE = {
    "OPENVINO_TELEMETRY": "0",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore",
}
"""Environment variables that keep libraries from sending data to their makers."""

_REFUSED = 3  # exit code of a verb
_PR_SET_PDEATHSIG = 1  # prctl(2)
_logger = logging.getLogger(__name__)


def run_verb(words: Sequence[str], longest_s: float, fine: Sequence[int] = (0,)) -> str:
    """The output of `monai-unet` with these words, in a process of its own.

    Args:
        words: Verb and flags.
        longest_s: Seconds that it may take.
        fine: Exit codes after which its output counts.

    Raises:
        InputRefusedError: It refused its input; the message is its own.
        AppError: It failed, or took too long.
    """
    env = {**os.environ, "COLUMNS": "10000"}  # a path that is wrapped could not be recognised in a message
    command = [sys.executable, "-P", "-m", "monai_unet_app", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest_s, env=env, check=False)
    except subprocess.TimeoutExpired as error:
        raise AppError(f"{words[0]} took more than {longest_s:g} s; try again when the node is less busy") from error
    if done.returncode not in fine:
        message = " ".join(done.stderr.split())[-400:]
        raise (InputRefusedError if done.returncode == _REFUSED else AppError)(message or f"{words[0]} failed")
    return done.stdout


class Child:
    """A process as its parent sees it.

    Attributes:
        is_ready: The process has said that it can work.
        task: What the process works at; None if it waits.
        killed_because: Why its parent ended it; else empty.
        was_too_large: Its parent ended it because of its memory.
    """

    def __init__(
        self, module: str, args: Sequence[str], inbox: "queue.SimpleQueue[tuple[Child, Message | None]]"
    ) -> None:
        """Starts `python -m module args`.

        Args:
            module: Runs `serve`.
            args: Its arguments.
            inbox: Gets its messages, and None when the process has ended.
        """
        self.is_ready, self.killed_because, self.was_too_large = False, "", False
        self.task: Any = None
        self._since, self._inbox = time.monotonic(), inbox
        self._asked, self._unanswered, self._cpu_s = 0.0, 0, 0.0
        self._stopped: float | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_OFFLINE},
            text=True,
            start_new_session=True,  # Ctrl-C is for the node, which ends its children
        )
        threading.Thread(target=self._read_messages, daemon=True, name=f"{module} {self.pid}").start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def is_idle(self) -> bool:
        """Whether it can be given a task."""
        return self.is_ready and self.task is None and self.exit_code is None

    @property
    def busy_s(self) -> float:
        """Seconds since it was given its task, or was started."""
        return time.monotonic() - self._since

    @property
    def exit_code(self) -> int | None:
        """Negative for the signal that ended the process; None while it runs."""
        return self._process.poll()

    @property
    def why_ended(self) -> str:
        """Why the process ended, in words."""
        code = self.exit_code
        return (
            self.killed_because or f"its process ended ({f'signal {-code}' if code and code < 0 else f'exit {code}'})"
        )

    def start_task(self, task: Any, message: Mapping[str, Any]) -> None:
        """Gives the process a task; its answer comes to the inbox."""
        self.task, self._since = task, time.monotonic()
        self._send(message)

    def end_task(self) -> None:
        """Notes that the process has answered."""
        self.task, self._since = None, time.monotonic()

    def stop(self) -> None:
        """Lets the process stand still until `go_on`; it is neither silent nor slow meanwhile."""
        if self._stopped is None and self.exit_code is None:
            os.kill(self.pid, signal.SIGSTOP)
            self._stopped = time.monotonic()

    def go_on(self) -> None:
        """Lets a process that stands still go on."""
        if self._stopped is not None and self.exit_code is None:
            self._since += time.monotonic() - self._stopped
            self._unanswered, self._stopped = 0, None
            os.kill(self.pid, signal.SIGCONT)

    @property
    def is_stopped(self) -> bool:
        """Whether it stands still."""
        return self._stopped is not None

    def ask_heartbeat(self) -> None:
        """Asks for a heart-beat, if the last request is long enough ago."""
        if time.monotonic() - self._asked < HEARTBEAT_S:
            return
        # A frozen process neither answers nor uses the processor.
        cpu_s = _cpu_s(self.pid)
        if not self.is_idle and cpu_s > self._cpu_s:  # it computes: native code may keep every Python thread waiting
            self._unanswered = 0
        self._asked, self._cpu_s = time.monotonic(), cpu_s
        self._unanswered += 1
        self._send(HEARTBEAT)

    @property
    def silent_s(self) -> float:
        """Seconds without a sign of life, by the number of unanswered requests: a node that was frozen itself made none."""
        # The latest request may have had no time to be answered.
        return max(0, self._unanswered - 1) * HEARTBEAT_S

    def kill(self, why: str) -> None:
        """Ends the process by force; `why` becomes the reason of its job and stands in the log."""
        self.killed_because = why
        self.end()

    def end(self, patience_s: float | None = 0.0) -> None:
        """Ends the process, by force after so many seconds, or never by force if they are None."""
        # The end of its input is the sign for a child to end.
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # the process has just died or was ended: the inbox gets None
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # something that a library printed
                self._unanswered = 0
                if message != HEARTBEAT:
                    self._inbox.put((self, message))
        # Waits for the process before the inbox gets None: `why_ended` needs its exit code.
        self.end(patience_s=None)
        self._inbox.put((self, None))


def _cpu_s(pid: int) -> float:
    """CPU time of a process in seconds; 0 if the process has ended, or the system has no /proc."""
    try:
        # The second field is the name in parentheses and may itself hold spaces and parentheses: fields are counted
        # from the last parenthesis, with `state`, field 3 of proc(5), as number 0.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # utime and stime, proc(5)
    except (OSError, ValueError, IndexError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK")


def end_with_parent() -> None:
    """Lets the kernel end this process when its parent is gone (Linux): one that stands still does not see its input end."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(prepare: Callable[[], tuple[Callable[[Message], Message], Message]]) -> NoReturn:
    """The child's side: prepares, says that it is ready, and answers one task after the other until the node is gone.

    Args:
        prepare: Called once; gives the function that answers a task, and what the child says of itself when it is ready.
    """
    # The lock keeps a heart-beat from being written into the middle of an answer.
    out, lock = os.fdopen(os.dup(1), "w", buffering=1), threading.Lock()
    os.dup2(2, 1)  # libraries print to stderr from here on: stdout is for answers

    def send(message: Message) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")

    tasks: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks, send), daemon=True).start()
    answer, facts = prepare()
    send({**facts, **READY})
    while True:
        send(answer(tasks.get()))


def _read_tasks(tasks: queue.SimpleQueue[Message], send: Callable[[Message], None]) -> None:
    """Reads what the node sends until the node is gone: answers a heart-beat at once, and lets a task wait its turn.

    Then the process ends at once, also in the middle of a task, which the next node begins anew. A fault of this thread ends
    the process too, with exit code 1 and a traceback in the log.
    """
    try:
        for line in sys.stdin:
            message = json.loads(line)
            if message == HEARTBEAT:
                send(HEARTBEAT)
            else:
                tasks.put(message)
    except BrokenPipeError:
        pass  # the node died between its request and the answer
    except BaseException:
        _logger.exception("the thread that reads what the node sends has failed")
        os._exit(1)
    # sys.exit would end this thread only, and the main thread may be in native code for minutes.
    os._exit(0)

"""Pieces of work, each in a process of its own, some at the same time.

`multiprocessing` would run a user's script again in each process unless the script guards itself; here a process begins with
nothing but the function that it is to call. Its standard input stays open as long as its parent lives: it ends with its parent,
however that ends, also by a signal that no program hears of.
"""

import gc
import io
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from dicom_io.errors import DicomIoError
from monai_unet_app.errors import AppError

Send = Callable[[Any], None]
Work = Callable[[Send], None]
"""A function that can be pickled. It is called with a function that sends a message to the parent; messages are pickled too."""

_NOT_TO_SEGMENT = (
    "ignite", "itk", "matplotlib", "mlflow", "scipy.signal", "sklearn", "tensorboard", "torch.utils.tensorboard",
)  # fmt: skip
_is_program = _has_frozen = False
_BEGIN = f"from {__name__} import serve; serve()"


@dataclass(frozen=True)
class _Ended:
    """The last message of a piece of work. Without one its process was killed."""

    error: Exception | None


def run_in_processes(work: Mapping[str, Work], at_once: int, hear: Callable[[str, Any], None]) -> None:
    """Does all pieces of work; the next one begins when one ends.

    When one fails, no other is begun, and those that run go on to their end. If this call ends early, by Ctrl-C or an error of
    `hear`, they are killed, with the processes that they have started.

    Args:
        work: By name.
        at_once: Largest number of processes at the same time, at least 1.
        hear: Takes the name of a piece of work and a message: what it has sent; a text for each line that it has printed; its
            error, while others go on; None when its process has ended.

    Raises:
        AppError, DicomIoError, OSError: That of the first piece of work that failed, with its name before the text. Any other
            error is an AppError, and its traceback was among the lines.
    """
    inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    waiting, running = list(work), dict[str, _Process]()
    failed: Exception | None = None
    try:
        while running or (waiting and failed is None):
            while waiting and failed is None and len(running) < at_once:
                name = waiting.pop(0)
                running[name] = _Process(name, work[name], inbox)
            name, message = inbox.get()
            if not isinstance(message, _Ended):
                hear(name, message)
                continue
            del running[name]
            if message.error is not None:
                failed = failed or _named(name, message.error)
                if running:
                    hear(name, message.error)
            hear(name, None)
    finally:
        for process in running.values():
            process.kill()
    if failed is not None:
        raise failed


@contextmanager
def imports_for_good() -> Iterator[None]:
    """At the beginning of a program: what its block imports stays, and is never looked through for garbage.

    torch and MONAI bring more than a million objects. Looking through them again and again took a quarter of the time of a
    prediction. Whatever lives at the end of the block is kept until the program ends, so only the first block does that.
    """
    global _has_frozen
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not _has_frozen:
            gc.freeze()
            _has_frozen = True
        if collects:
            gc.enable()


def begin_program() -> None:
    """Notes that this process does one task and ends, so that packages which the task does not need can be left out."""
    global _is_program
    _is_program = True


def load_monai(*, to_segment: bool = False) -> None:
    """Imports torch and MONAI for good.

    Args:
        to_segment: This program only segments, with bundles that name nothing else of MONAI (`BundleFiles.only_segments`): the
            packages that MONAI imports for other tasks are left out of it, which halves the time. In this process these parts
            of MONAI raise its OptionalImportError. All other code can import the packages as usual.
    """
    with imports_for_good():
        import torch  # noqa: F401

        left_out = [name for name in _NOT_TO_SEGMENT if to_segment and _is_program and name not in sys.modules]
        modules: dict[str, Any] = sys.modules
        modules.update(
            dict.fromkeys(left_out)
        )  # None: an import raises ModuleNotFoundError, as if it were not installed
        try:
            import monai  # noqa: F401
        finally:
            for name in left_out:
                del modules[name]


class _Process:
    """A piece of work in its process; messages go to `inbox`, each with the name, the last one is `_Ended`."""

    def __init__(self, name: str, work: Work, inbox: "queue.SimpleQueue[tuple[str, Any]]") -> None:
        task = pickle.dumps((work, sys.argv))
        self._name, self._inbox = name, inbox
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BEGIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "ignore"},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children
        )
        with suppress(BrokenPipeError):  # it died at once: the end of its messages says so
            assert self._process.stdin is not None
            self._process.stdin.write(task)
            self._process.stdin.flush()
        threading.Thread(target=self._read_messages, daemon=True).start()

    def kill(self) -> None:
        """Ends the process, and those that it has started, at once."""
        with suppress(OSError):  # it has just ended
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:  # Windows
                self._process.kill()
        self._process.wait()

    def _read_messages(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        message: Any = None
        # Anything else than a message is the end: a message that cannot be read must not pass for a success
        with self._process.stdout as stream, suppress(Exception):
            while not isinstance(message, _Ended):
                message = pickle.load(stream)
                if not isinstance(message, _Ended):
                    self._inbox.put((self._name, message))
        code = self._process.wait()
        self._process.stdin.close()
        if not isinstance(message, _Ended):
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            message = _Ended(
                AppError(
                    f"its process ended {how}; if memory was too small (signal 9), train fewer at the same time; run the same "
                    "command again"
                )
            )
        self._inbox.put((self._name, message))


def _named(name: str, error: Exception) -> Exception:
    """The error with a name before its text."""
    if isinstance(error, OSError):
        return OSError(error.errno, f"{name}: {error.strerror or error}", error.filename)
    return type(error)(f"{name}: {error}")


def serve() -> None:
    """The side of the process: does the one piece of work that its parent sends."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not stand between messages
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            stream.write(pickle.dumps(message))
            stream.flush()

    # Warnings of other packages may quote a header, and with it a patient
    logging.disable(logging.WARNING)
    sys.stdout = sys.stderr = _Lines(send)
    error: Exception | None = None
    try:
        with imports_for_good():
            work, sys.argv = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        work(send)
    except (AppError, DicomIoError, OSError) as refusal:
        error = refusal
    except Exception as fault:
        traceback.print_exc()
        error = AppError(_in_one_line(fault))
    send(_Ended(error))


def _in_one_line(fault: BaseException) -> str:
    """The first cause, which MONAI wraps in errors of its own."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"


def _end_with_parent() -> None:
    # Not by sys.stdin, whose lock a thread would hold when the interpreter ends
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)  # this process is the first of its group; the others are those that it has started
    os._exit(1)


class _Lines(io.TextIOBase):
    """Sends each line that is written to it."""

    def __init__(self, send: Send) -> None:
        self._send, self._rest = send, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._send(line.rstrip())
        return len(text)

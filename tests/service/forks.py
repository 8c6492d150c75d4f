"""Children of a node that are forked from a process that has imported their module: none of them imports for seconds.

    python -m forks FD MODULE [MODULE ...]

is such a template. It forks a child for each request that comes over the socket FD. The child runs the first module as
`python -m MODULE` would, with arguments, environment, standard streams and a session of its own, and its exit code or signal is
reported as `subprocess` reports it. It differs only in what was imported before.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any
from unittest import mock

from monai_unet_app.service import child_processes
from monai_unet_app.service.child_processes import end_with_parent

PROGRAM = "monai_unet_app"
_LATER = {
    PROGRAM: ("monai_unet_app.review.export", "monai_unet_app.review.decision", "monai_unet_app.lifecycle.watch"),
    "monai_unet_app.service.deliver": ("dicom_io.rejection",),
}
"""What a module imports when it needs it: the verbs of the program, and a sender for a note."""

_LONGEST = 2**17  # bytes of a request
_NUMBER = struct.Struct("i")
_templates: dict[str, Template] = {}
_starting = threading.Lock()


class Template:
    """The process that children are forked from, as its parent sees it."""

    def __init__(self, module: str) -> None:
        """Starts it, in the folder and with the search path of now."""
        self.module, self.place = module, _place(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "forks", str(theirs.fileno()), module, *_LATER.get(module, ())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        atexit.register(self.end)

    def wait(self) -> None:
        """Waits until it has imported its modules."""
        if self._socket.recv(1) != b"+":
            raise RuntimeError(f"{self.module} cannot be imported")

    def fork(self, args: Sequence[str], env: dict[str, str], streams: Sequence[int]) -> None:
        """Asks for a child; `streams` are its standard streams, and where its number and its exit code are written."""
        request = json.dumps([args, env]).encode()
        assert len(request) < _LONGEST
        socket.send_fds(self._socket, [request], streams)

    def end(self) -> None:
        """Ends it, and with it its children."""
        self._socket.close()
        self._process.wait()


class ForkedChild:
    """A child of a template, with what the node uses of `subprocess.Popen`."""

    def __init__(self, template: Template, args: Sequence[str], env: dict[str, str], streams: Sequence[int]) -> None:
        """Starts it with these standard streams."""
        self.args, self.returncode, self._reading = [template.module, *args], None, threading.Lock()
        self._status, its_status = os.pipe()
        weakref.finalize(self, os.close, self._status)
        try:
            template.fork(args, env, [*streams, its_status])
        finally:
            os.close(its_status)
        self.pid = self._number()

    @classmethod
    def with_pipes(cls, template: Template, args: Sequence[str], env: dict[str, str]) -> ForkedChild:
        """As `Popen` starts it with pipes for input and output; its standard error is that of this process."""
        its_stdin, stdin = os.pipe()
        stdout, its_stdout = os.pipe()
        streams = os.fdopen(stdin, "w"), os.fdopen(stdout)
        try:
            child = cls(template, args, env, [its_stdin, its_stdout, 2])
        finally:
            os.close(its_stdin)
            os.close(its_stdout)
        child.stdin, child.stdout = streams
        return child

    def _number(self) -> int:
        (number,) = _NUMBER.unpack(os.read(self._status, _NUMBER.size))
        return int(number)

    def poll(self) -> int | None:
        return self._exit_code(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, float(timeout or 0))
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _exit_code(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._status, select.POLLIN)
            if ended.poll(None if timeout_s is None else 1000 * timeout_s):
                with self._reading:
                    self.returncode = self._number() if self.returncode is None else self.returncode
        return self.returncode


@contextmanager
def forked(*modules: str) -> Iterator[None]:
    """Meanwhile children of these modules and verbs of the program are forked, if they are started as the product does it.

    A child with another search path, in another folder or with other streams is started by `subprocess`.
    """
    for module in modules:
        _template(module)

    def popen(command: list[str], **how: Any) -> ForkedChild | subprocess.Popen[str]:
        env, module = how.pop("env"), _module(command, modules)
        usual = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        if module and how == usual and _template(module).place == _place(env):
            return ForkedChild.with_pipes(_template(module), command[4:], env)
        return subprocess.Popen(command, env=env, **how)

    def run(command: list[str], *, timeout: float, env: dict[str, str], **how: Any) -> subprocess.CompletedProcess[str]:
        module, usual = _module(command, (PROGRAM,)), {"capture_output": True, "text": True, "check": False}
        if not module or how != usual or _template(module).place != _place(env):
            return subprocess.run(command, timeout=timeout, env=env, **how)
        with open(os.devnull) as nothing, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
            child = ForkedChild(_template(module), command[4:], env, [one.fileno() for one in (nothing, out, err)])
            try:
                child.wait(timeout)
            finally:
                child.kill()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, child.wait(), out.read(), err.read())

    stand_in = SimpleNamespace(**{**vars(subprocess), "Popen": popen, "run": run})
    with mock.patch.object(child_processes, "subprocess", stand_in):
        yield


def _template(module: str) -> Template:
    """The one of this process, which is started the first time and has imported its modules."""
    with _starting:
        if module not in _templates:
            template = Template(module)
            template.wait()
            _templates[module] = template
        return _templates[module]


def _module(command: Sequence[str], of: Sequence[str]) -> str:
    """The module that a command runs, if it is one of some; else empty."""
    return command[3] if list(command[:3]) == [sys.executable, "-P", "-m"] and command[3] in of else ""


def _place(env: Any) -> tuple[str, str | None]:
    """What Python finds modules by."""
    return os.getcwd(), env.get("PYTHONPATH")


def _forked_child(requests: socket.socket) -> list[str]:
    """Comes back in each child, with its arguments; the template itself stays here until its parent has ended."""
    while True:
        request, streams, _, _ = socket.recv_fds(requests, _LONGEST, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not request:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            args, env = json.loads(request)
            _supervised(streams)
            os.environ.clear()
            os.environ.update(env)
            return args
        for one in streams:
            os.close(one)


def _supervised(streams: list[int]) -> None:
    """Comes back in a child of this process, which waits for it here and writes its number and exit code."""
    end_with_parent()
    *standard, status = streams
    pid = os.fork()
    for number, one in enumerate(standard):
        if pid == 0:
            os.dup2(one, number)
        os.close(one)
    if pid == 0:
        os.close(status)
        os.setsid()
        return
    os.write(status, _NUMBER.pack(pid))
    os.write(status, _NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


if __name__ == "__main__":
    given = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        import_module(name)
    main = sys.argv[2]
    if not hasattr(sys.modules[main], "__path__"):  # of a package its module `__main__` runs, which nobody has imported
        del sys.modules[main]  # runs again as `__main__`
    gc.freeze()
    given.send(b"+")
    sys.argv = [main, *_forked_child(given)]
    runpy.run_module(main, run_name="__main__", alter_sys=True)

"""Runs a program of somebody else: without a shell, in a folder of its own, watched, and ended with all that it has started.

    python -I supervisor.py        reads an order from standard input; `supervise` calls it so

The program runs in user, PID and network namespaces of its own, with loopback up and no other network: when their first
process ends, the kernel ends all others in them, also those that have left their session. Where the system refuses namespaces,
processes that lose their parent become children of the supervisor, which ends them. The supervisor ends when its parent ends.

Only Linux has what this needs. Sources: namespaces(7), prctl(2), user_namespaces(7).
"""

import ctypes
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fcntl import ioctl
from pathlib import Path
from typing import BinaryIO, Literal

How = Literal["done", "time", "memory", "disk", "absent"]
LOOK_S = 0.5
"""Seconds between two looks at memory and disk."""

MOST_LOG_BYTES = 1 << 20
_PATIENCE_S = 5.0
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
_ABSENT = 127
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Order:
    """What is to be run, and within which limits.

    Attributes:
        words: The program and its arguments.
        folder: Where it runs and writes; it is empty.
        environment: All of its environment.
        log: Gets what the program prints, the first MOST_LOG_BYTES of it; outside of `folder`.
        seconds: It may take.
        memory_bytes: Of all its processes and the caller's together.
        disk_bytes: Allocated blocks of `folder`.
        isolated: Refuse to run where namespaces cannot be had.
    """

    words: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    log: str
    seconds: float
    memory_bytes: float
    disk_bytes: float
    isolated: bool = False


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        how: done: by itself; absent: there is no such program; else the limit that it broke.
        code: Its exit code; 128 + the number of the signal that ended it.
        seconds: It took.
        isolated: It ran in namespaces.
        peak_memory_bytes: The most that was seen of all its processes.
        peak_disk_bytes: The most that was seen in its folder.
    """

    how: How
    code: int
    seconds: float
    isolated: bool
    peak_memory_bytes: int
    peak_disk_bytes: int


class NotIsolatedError(Exception):
    """The system refuses namespaces, and the order asks for them."""


def supervise(order: Order) -> Ended:
    """Runs a program to its end.

    Raises:
        NotIsolatedError: The order asks for namespaces, and the system refuses them.
        OSError: The supervisor was ended by somebody.
    """
    command = [sys.executable, "-I", __file__]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, start_new_session=True, cwd="/"
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        process.stdin.flush()  # it stays open: its end tells the supervisor that this process is gone
        answer = process.stdout.read()
    finally:
        process.stdin.close()  # the supervisor ends all that it has started, and then itself
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
    if not answer:
        raise OSError("the supervisor of the program was ended; nothing of its result is used")
    found = json.loads(answer)
    if "refused" in found:
        raise NotIsolatedError(found["refused"])
    return Ended(**found)


def can_isolate() -> bool:
    """Whether this system gives a program namespaces of its own."""
    return subprocess.run([sys.executable, "-I", __file__, "check"], env={}, check=False).returncode == 0


def main() -> None:
    """The side of the supervisor."""
    if sys.argv[1:]:
        sys.exit(not _isolate())
    _libc.prctl(_PDEATHSIG, signal.SIGKILL)
    answer = _Supervisor(Order(**json.loads(sys.stdin.readline()))).run()
    os.write(1, json.dumps(answer).encode())


class _Supervisor:
    """Starts one program, watches it and its descendants, and ends them all."""

    def __init__(self, order: Order) -> None:
        self.order, self.parent = order, os.getppid()
        self.memory = self.disk = self.printed = 0

    def run(self) -> dict[str, object]:
        isolated = can_isolate() and _isolate()  # one that fails half-way would leave this process without a user
        if self.order.isolated and not isolated:
            return {"refused": "this system refuses user, PID and network namespaces"}
        _libc.prctl(_CHILD_SUBREAPER, 1)
        begin = time.monotonic()
        reader, writer = os.pipe()
        first = os.fork()
        if first == 0:
            _first_process(self.order, writer)
        os.close(writer)
        try:
            how, code = self._watched(first, reader, begin)
        finally:
            _end_all(first)
        how = "absent" if how == "done" and code == _ABSENT else how
        took = round(time.monotonic() - begin, 3)
        return asdict(Ended(how, code, took, isolated, self.memory, self.disk))

    def _watched(self, first: int, reader: int, begin: float) -> tuple[How, int]:
        """How it ended, and its exit code; the code of a program that is ended here is 137."""
        looked = begin
        os.set_blocking(reader, False)
        with selectors.DefaultSelector() as waiting, open(self.order.log, "wb") as log:
            waiting.register(0, selectors.EVENT_READ)
            waiting.register(reader, selectors.EVENT_READ)
            while True:
                for key, _ in waiting.select(max(0.0, looked + LOOK_S - time.monotonic())):
                    if key.fd == reader and not self._heard(reader, log):
                        waiting.unregister(reader)
                    if key.fd == 0 and not os.read(0, 1):  # the caller is gone, and nobody hears what would be answered
                        raise SystemExit
                # Only looked at: once it is waited for, its number may be that of another process, which `_end_all` would end
                if ended := os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    while self.printed < MOST_LOG_BYTES and self._heard(reader, log):
                        pass
                    return "done", ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
                if time.monotonic() - begin > self.order.seconds:
                    return "time", 128 + signal.SIGKILL
                if time.monotonic() - looked >= LOOK_S:
                    looked = time.monotonic()
                    if broken := self._broken_limit():
                        return broken, 128 + signal.SIGKILL

    def _heard(self, reader: int, log: BinaryIO) -> bool:
        """Writes what the program has printed to the log; False if there is nothing more now."""
        try:
            data = os.read(reader, 1 << 16)
        except BlockingIOError:
            return False
        log.write(data[: max(0, MOST_LOG_BYTES - self.printed)])
        self.printed += len(data)
        return bool(data)

    def _broken_limit(self) -> How | None:
        memory, disk = sum(map(_memory_of, _descendants(os.getpid()))), _blocks_of(self.order.folder)
        self.memory, self.disk = max(self.memory, memory), max(self.disk, disk)
        if memory + _memory_of(self.parent) > self.order.memory_bytes:
            return "memory"
        return "disk" if disk > self.order.disk_bytes else None


def _isolate() -> bool:
    """Puts the children of this process, and its network, into namespaces; False where the system refuses."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_USER | _NEW_PID | _NEW_NET) != 0:
        return False
    try:
        # A process may map its own user and group alone, and the group only after it has given up to set others
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            flags = struct.unpack("16sh", ioctl(any_socket, _GET_FLAGS, struct.pack("16sh", b"lo", 0)))[1]
            ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", flags | _UP))
    except OSError:
        return False
    return True


def _first_process(order: Order, output: int) -> None:
    """The first process in the namespaces: starts the program, reaps what loses its parent, and ends with its code."""
    code = _ABSENT
    try:
        _libc.prctl(_PDEATHSIG, signal.SIGKILL)
        program = subprocess.Popen(
            order.words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=order.folder, env=order.environment,
            umask=0o077, start_new_session=True,
        )  # fmt: skip
        os.close(output)
        pid, status = 0, 0
        while pid != program.pid:
            pid, status = os.wait()
        ended = os.waitstatus_to_exitcode(status)
        code = ended if ended >= 0 else 128 - ended
    except OSError as error:
        os.write(output, f"{error}\n".encode())
    finally:
        os._exit(code)


def _end_all(first: int) -> None:
    """Ends the first process, with which the kernel ends its namespace; then every process that is still a descendant."""
    with suppress(ProcessLookupError):
        os.kill(first, signal.SIGKILL)
    while True:
        left = list(_descendants(os.getpid()))
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.01)


def _descendants(ancestor: int) -> Iterator[int]:
    """Process ids of all children, and of theirs; a process that has ended and that nobody has waited for is one, too."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                # The name of the program, in brackets, may hold anything
                after = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
                children.setdefault(int(after[1]), []).append(int(name))
    waiting = list(children.get(ancestor, ()))
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, ())
        yield pid


def _memory_of(pid: int) -> int:
    """Bytes of a process, its share of what it shares with others; 0 if it has ended."""
    with suppress(OSError, IndexError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _blocks_of(folder: str) -> int:
    """Bytes that the files of a folder take on the disk; links are not followed, and a file with two names counts once."""
    found: dict[tuple[int, int], int] = {}
    for path, folders, names in os.walk(folder):
        for name in (*folders, *names):
            with suppress(OSError):
                status = os.lstat(os.path.join(path, name))
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


if __name__ == "__main__":
    main()

"""Memory of this process and of its machine, in bytes; and what is freed goes back to the system.

Where the system does not tell (no /proc), a number is 0 or infinite. glibc keeps freed memory for itself: in arenas, which
threads share, and in large blocks too, because its threshold for blocks that go back at once grows when such blocks are freed.
A receiver at rest had twice the memory that it needed. Without glibc nothing is set.
"""

import ctypes
import math
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8  # malloc.h
_ARENAS = 2
_LARGE_BYTES = 1 << 18  # a block of this size or larger goes back to the system as soon as it is freed
_LARGEST_THRESHOLD = 1 << 25  # up to which glibc's own threshold grows, mallopt(3)
_TRIM_S = 5.0
_CGROUP, _GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process; 0 if the process has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def taken_by(work: Callable[[], object]) -> int:
    """How far this process grows, at its largest, while some work is done; not by what an earlier one has left free."""
    _glibc("malloc_trim", 0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the largest size begins anew, proc(5)
    before = resident_bytes()
    work()
    return max(0, _status("VmHWM") - before)


def peak_bytes() -> int:
    """The most resident memory that this process has had; 0 where the system does not say."""
    return _status("VmHWM")


def most_resident_bytes() -> float:
    """How large this process may become now: with what its machine, its control groups and its own limits leave."""
    return resident_bytes() + min((most - taken for most, taken in _limits()), default=math.inf)


def ever_resident_bytes() -> float:
    """How large a process may become here when nothing else takes memory."""
    return min((most for most, _ in _limits()), default=math.inf)


def _limits() -> Iterator[tuple[float, float]]:
    """Each limit on the memory of this process, and what is taken of it: machine, control groups, addresses."""
    machine = Path("/proc/meminfo")
    if most := _entry(machine, "MemTotal:") * 1024:
        yield most, most - _entry(machine, "MemAvailable:", absent=math.inf) * 1024
    yield from _limits_of_groups()
    most = resource.getrlimit(resource.RLIMIT_AS)[0]  # ulimit -v
    if most != resource.RLIM_INFINITY:
        yield most, _status("VmSize")


def _limits_of_groups() -> Iterator[tuple[float, float]]:
    """Of each control group above this process that has a limit; files that the system may drop count as free."""
    with suppress(OSError):
        for line in _GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, names = _CGROUP, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                root, names = (
                    _CGROUP / "memory",
                    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
                )
            else:
                continue
            group = root / path.strip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    with suppress(OSError, ValueError):  # a group that is not shown here, or "max"
                        limit, used = (int((folder / name).read_text()) for name in names[:2])
                        yield limit, used - _entry(folder / "memory.stat", names[2])


def _status(name: str) -> int:
    return int(_entry(Path("/proc/self/status"), f"{name}:") * 1024)


def _entry(path: Path, name: str, absent: float = 0.0) -> float:
    """The number behind a name in a file of lines; `absent` if there is none."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] == [name]:
                return float(words[1])
    return absent


def keep_small() -> None:
    """Sets for the whole process how freed memory is kept. Must be called before threads are started."""
    # Threads get arenas when they first allocate memory; a limit removes no arena that exists already.
    _glibc("mallopt", _ARENA_MAX, _ARENAS)
    # A threshold that is set no longer grows by itself (mallopt(3)).
    _glibc("mallopt", _MMAP_THRESHOLD, _LARGE_BYTES)


@contextmanager
def large_blocks_go_back() -> Iterator[None]:
    """Inside it a large block that is freed goes back to the system at once; this is slower where there are many of them."""
    _glibc("mallopt", _MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:
        _glibc("mallopt", _MMAP_THRESHOLD, _LARGEST_THRESHOLD)


def trim_until(ended: Callable[[float], bool]) -> None:
    """Gives free memory back to the system every few seconds until `ended`, which waits so many seconds, is true."""
    while not ended(_TRIM_S):
        _glibc("malloc_trim", 0)


def _glibc(function: str, *values: int) -> None:
    """Calls a function of the C library of this process if that is glibc."""
    with suppress(OSError, TypeError, AttributeError):
        getattr(ctypes.CDLL(None), function)(*values)  # of the libraries that this process has loaded

"""A process from its start to its end: memory, time and what it printed, measured by another process."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
EVERY_S, GB = 0.02, 1e9


@dataclass(frozen=True)
class Measured:
    """One process from its start to its end.

    Attributes:
        what: In words.
        seconds: By the clock.
        peak: Largest resident memory of it and its children at one time, in bytes.
        own_peak: VmHWM of the process alone.
        address_space: VmPeak of the process alone.
        code: Exit code; negative: ended by this signal.
        over: Ended by us, because it was above --most-gb.
        printed: The end of what it printed.
    """

    what: str
    seconds: float
    peak: int
    own_peak: int
    address_space: int
    code: int
    over: bool
    printed: str

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.code == 0

    def show(self, most_gb: float | None = None) -> None:
        """Prints it as a line of a table: peak, VmHWM, address space, seconds, bound."""
        end = "" if self.done else "  ENDED above the limit" if self.over else f"  FAILED, exit code {self.code}"
        bound = f"{most_gb:6.1f}" if most_gb else "     -"
        sizes = "".join(f"{size / GB:8.2f}" for size in (self.peak, self.own_peak, self.address_space))
        print(f"  {self.what:44}{sizes}{self.seconds:9.1f}{bound}{end}", flush=True)
        if not self.done and not self.over:
            print(*(f"    | {line}" for line in self.printed.splitlines()[-6:]), sep="\n", flush=True)


def environment_of(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


def measured(
    what: str, words: Sequence[str], options: argparse.Namespace, most_gb: float | None, environment: dict[str, str]
) -> Measured:
    """Runs a process and watches it.

    Args:
        what: Its name in tables.
        words: Its command.
        options: `under` and `most_gb`.
        most_gb: Bound of the row, for `ulimit` and `cgroup`; None for no bound but --most-gb.
        environment: Beside that of this process.
    """
    peak = own_peak = space = 0
    over, start = False, time.perf_counter()
    with tempfile.TemporaryFile("w+") as log, _bounded(options.under, most_gb) as prefix:
        process = subprocess.Popen(
            [*prefix, *words], stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=REPOSITORY,
            env=environment_of(**environment),
        )  # fmt: skip
        while process.poll() is None:
            peak = max(peak, _tree_bytes(process.pid))
            own_peak = max(own_peak, _status_bytes(process.pid, "VmHWM"))
            space = max(space, _status_bytes(process.pid, "VmPeak"))
            if max(peak, own_peak) > options.most_gb * GB and not over:
                over = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(EVERY_S)
        log.seek(0)
        printed = log.read()[-40_000:]
    seconds, code = time.perf_counter() - start, process.returncode
    return Measured(what, seconds, max(peak, own_peak), own_peak, space, code, over, printed)


def _status_bytes(pid: int, name: str) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _tree_bytes(pid: int, parent_pages: str = "") -> int:
    """Resident memory of a process and all below it; pages that two of them share are counted for each."""
    total = 0
    with suppress(OSError, ValueError, IndexError):
        pages, resident = Path(f"/proc/{pid}/statm").read_text().split()[:2]
        if pages == parent_pages:  # between fork and exec it is its parent, with the same pages
            return 0
        total = int(resident) * os.sysconf("SC_PAGE_SIZE")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_tree_bytes(int(one), pages) for one in (thread / "children").read_text().split())
    return total


@contextmanager
def _bounded(under: str, most_gb: float | None) -> Iterator[list[str]]:
    """The start of a command that bounds the memory of the rest."""
    if under == "watch" or most_gb is None:
        yield []
    elif under == "ulimit":
        yield ["sh", "-c", f'ulimit -v {int(most_gb * GB) // 1024}; exec "$@"', "sh"]
    else:
        group = _made_cgroup(int(most_gb * GB))
        try:
            yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        finally:
            time.sleep(0.2)
            for name in ("memory.max_usage_in_bytes", "memory.peak"):
                with suppress(OSError):
                    print(f"  {name} of the cgroup: {int((group / name).read_text()) / GB:.2f} GB")
            group.rmdir()


def _made_cgroup(most: int) -> Path:
    """A cgroup below that of this process, with this bound; swapping counts where the kernel can count it."""
    places = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    first = next((place for names, place in places.items() if "memory" in names.split(",")), None)
    if first is not None:
        parent, bound, swap = (
            Path("/sys/fs/cgroup/memory", first.lstrip("/")),
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
        )
    else:
        parent, bound, swap = Path("/sys/fs/cgroup", places.get("", "/").lstrip("/")), "memory.max", "memory.swap.max"
    group = parent / f"monai-unet-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
        # cgroup v2 gives a group with processes no children with bounds
        (group / bound).open("r+").close()
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        raise SystemExit(
            f"no cgroup with a bound can be made in {parent} ({error}); use --under ulimit or watch"
        ) from error
    (group / bound).write_text(str(most))
    with suppress(OSError):
        (group / swap).write_text(str(most) if first is not None else "0")
    return group

"""A network of its own for a test: loopback works, and whatever leaves the machine is counted and goes nowhere.

The audit hook of `guard/sitecustomize.py` sees what Python connects to. A library in C that connects by itself is not seen by
it; here its packets are counted by the kernel, those of a name lookup too.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NO_NETWORK, _SENT = 98, 99
_SETUP = """
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
ip link set lo up
ip link add outside type veth peer name nowhere
ip link set outside multicast off
ip address add 192.0.2.1/24 dev outside
ip link set nowhere up
ip link set outside up
ip neighbour add 192.0.2.254 lladdr 02:00:00:00:00:01 dev outside
ip route add default via 192.0.2.254
"""


@contextmanager
def own_network() -> Iterator[Callable[[], int]]:
    """Puts this thread, and every process that it starts, into a network namespace until the end.

    Yields:
        A function that counts the packets which have left the machine since.
    """
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and the program ip (Debian: iproute2)")
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before:
        if libc.unshare(_CLONE_NEWNET):
            pytest.skip(f"no network namespace can be made here ({os.strerror(ctypes.get_errno())})")
        try:
            subprocess.run(["sh", "-ec", _SETUP], check=True, capture_output=True)
            begin = _packets()
            yield lambda: _packets() - begin
        finally:
            assert libc.setns(before.fileno(), _CLONE_NEWNET) == 0


def run_in_own_network(words: list[str], **of_run: Any) -> subprocess.CompletedProcess[Any]:
    """As `subprocess.run`, in a network of its own; the exit status is 99 if a packet left it.

    A child process makes the network: a process in which torch has started threads could die of it.
    """
    done = subprocess.run([sys.executable, __file__, *words], check=False, **of_run)
    if done.returncode == _NO_NETWORK:
        pytest.skip("a network namespace needs root and the program ip (Debian: iproute2)")
    return done


def _packets() -> int:
    """Packets sent through the card `outside`; /proc/thread-self is the namespace that this thread is in."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "outside":
            return int(numbers.split()[9])
    raise AssertionError("the card is gone")


if __name__ == "__main__":
    try:
        with own_network() as packets_sent:
            code = subprocess.run(sys.argv[1:], check=False).returncode
            sys.exit(_SENT if packets_sent() else code)
    except pytest.skip.Exception:
        sys.exit(_NO_NETWORK)

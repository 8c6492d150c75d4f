"""A network of its own for a test: loopback works, and whatever leaves the machine is counted and goes nowhere.

The audit hook of `guard/sitecustomize.py` sees what Python connects to. A library in C that connects by itself is not seen by
it; here its packets are counted by the kernel, those of a name lookup too.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000  # linux/sched.h
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


def _packets() -> int:
    """Packets sent through the card `outside`; /proc/thread-self is the namespace that this thread is in."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "outside":
            return int(numbers.split()[9])
    raise AssertionError("the card is gone")

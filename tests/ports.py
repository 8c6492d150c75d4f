"""Ports of this machine for servers of the tests."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """So many different ports that nothing listens on just now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]

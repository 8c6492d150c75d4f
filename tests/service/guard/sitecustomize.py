"""Imported by every Python that has this folder on its path: notes each address that it connects to or looks up."""

import os
import sys

_NOTED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def _note(event: str, words: tuple[object, ...]) -> None:
    if event in _NOTED:
        with open(os.environ["EGRESS_LOG"], "a") as log:
            log.write(f"{event} {words[1:] if event in ('socket.connect', 'socket.sendto') else words[:2]!r}\n")


if "EGRESS_LOG" in os.environ:
    sys.addaudithook(_note)

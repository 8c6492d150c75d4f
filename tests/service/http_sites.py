"""Shared by the tests of the HTTP API: a node with its HTTP server and tokens, and uploads for it."""

from __future__ import annotations

import gzip
import io
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import requests
from nodes import pacs, running, wait_until, write_site

from monai_unet_app.service.http_api import serve
from monai_unet_app.service.node import Node
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.tokens import new_token

ROLES = ("metrics", "submit", "read", "reviewer", "approver", "admin")
PERSONS = {"reviewer": "Rossi^Anna", "approver": "Bianchi^Eva"}
"""Who decides; other tokens are named by their role."""


@dataclass
class Site:
    """A node with its HTTP server, and a token for each role."""

    node: Node
    url: str
    tokens: dict[str, str]
    pacs: Path

    def ask(self, method: str, path: str, role: str = "", **words) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.tokens[role]}", **words.pop("headers", {})} if role else {}
        return requests.request(method, self.url + path, headers=headers, timeout=30, **words)

    def result(self, state: str) -> int:
        """Number of the one result, once it is in a state."""
        wait_until(lambda: self.node.queue.counts()["results"].get(state) == 1)
        return self.node.queue.results((), 1)[0].id


@contextmanager
def opened(folder: Path, *, node: str = "", **http: Any) -> Iterator[Site]:
    """A node with a fake worker and its HTTP server; `node`: lines of the site file, `http`: of `HttpConfig`."""
    made = {role: new_token(PERSONS.get(role, role), [role]) for role in ROLES}
    (folder / "tokens").write_text("# who may what\n" + "".join(line + "\n" for _, line in made.values()))
    config = HttpConfig(folder / "tokens", **{"port": 0, "most_upload_gb": 0.01, **http})
    tokens = {role: token for role, (token, _) in made.items()}
    with (
        pacs(folder / "pacs") as peer,
        running(write_site(folder, peer.port, node=node)) as started,
        serve(started, config) as server,
    ):
        yield Site(started, f"http{'s' if config.tls else ''}://127.0.0.1:{server.port}", tokens, folder / "pacs")


def zipped(folder: Path, **more: bytes) -> bytes:
    """The files of a folder, and others, in an archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.glob("*.dcm")):
            archive.write(path, f"deep/{path.name}")
        for name, content in more.items():
            archive.writestr(name, content)
    return stream.getvalue()


def image_of(wish: str = "") -> bytes:
    """A NIfTI image; `wish` is what the fake worker obeys."""
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4))
    image.header["descrip"] = wish
    return gzip.compress(image.to_bytes(), mtime=0)


@contextmanager
def half_sent(url: str, token: str, first: bytes) -> Iterator[socket.socket]:
    """A form of which so much has come and no more; gives where its sender hears the answer."""
    host, port = url.removeprefix("http://").split(":")
    part = b'--limit\r\nContent-Disposition: form-data; name="study"; filename="study.zip"\r\n\r\n' + first
    lines = (
        "POST /studies HTTP/1.1", f"Host: {host}:{port}", f"Authorization: Bearer {token}",
        "Content-Type: multipart/form-data; boundary=limit", "Content-Length: 1000000000", "", "",
    )  # fmt: skip
    with socket.create_connection((host, int(port)), timeout=20) as sender:
        sender.sendall("\r\n".join(lines).encode() + part)
        yield sender

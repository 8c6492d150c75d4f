"""A small DICOMweb service on 127.0.0.1 that answers as a test wants it to."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

MARK = "boundary-of-the-test"
ROOT = "/dicom-web"


@dataclass
class WebArchive:
    """What the service holds, and how it behaves.

    Attributes:
        held: Instances that can be found and fetched.
        pages: Whether it knows `limit` and `offset`.
        status: HTTP status of searches, if not 200.
        body: Of a search, instead of the right one.
        redirect: Where every GET is sent to.
        part: What comes in the place of each instance.
        cut: How many bytes at the end of a fetched body do not come.
        refuse: SOP Instance UID -> FailureReason.
        warn: SOP Instance UID -> WarningReason.
        silent: SOP Instance UIDs that the answer to a store does not mention.
        store_status: HTTP status of a store, if not 200 or 409.
        token: What must stand behind "Bearer".
        extra: Added to every item of a search.
        json_type: Media type of JSON.
    """

    held: Sequence[Path] = ()
    pages: bool = True
    status: int = 200
    body: bytes | None = None
    redirect: str = ""
    part: bytes = b""
    cut: int = 0
    refuse: dict[str, int] = field(default_factory=dict)
    warn: dict[str, int] = field(default_factory=dict)
    silent: Sequence[str] = ()
    store_status: int = 0
    token: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    json_type: str = "application/dicom+json"
    secret: ssl.SSLContext | None = None
    asked: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    received: list[list[Dataset]] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[WebArchive]:
        archive = self

        class Handler(_Handler):
            peer = archive

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if self.secret is not None:
            server.socket = self.secret.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if self.secret else 'http'}://127.0.0.1:{server.server_address[1]}{ROOT}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def found(self, path: str) -> list[Dataset]:
        """The held instances below a path of UIDs."""
        uids = re.findall(r"/(?:studies|series|instances)/([0-9.]+)", path)
        every = [pydicom.dcmread(file) for file in self.held]
        keys = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        return [one for one in every if all(one[key].value == uid for key, uid in zip(keys, uids, strict=False))]


class _Handler(BaseHTTPRequestHandler):
    peer: WebArchive
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, asked = parts.path.removeprefix(ROOT), parse_qs(parts.query)
        self.peer.asked.append((path, asked))
        self.peer.raw.append(parts.query)
        self.peer.accepted.append(self.headers.get("Accept", ""))
        if self.peer.token and self.headers.get("Authorization") != f"Bearer {self.peer.token}":
            self.answer(401, b"")
        elif self.peer.redirect:
            self.answer(302, b"", Location=self.peer.redirect)
        elif path.rsplit("/", 1)[-1] in ("studies", "series", "instances"):
            self.search(path, asked)
        else:
            self.fetch(path)

    def search(self, path: str, asked: dict[str, list[str]]) -> None:
        if self.peer.status != 200:
            return self.answer(self.peer.status, b"")
        if self.peer.body is not None:
            return self.answer(200, self.peer.body)
        level = path.rsplit("/", 1)[-1]
        key = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}[level]
        one_each = {one[key].value: one for one in self.peer.found(path)}
        items = []
        for one in one_each.values():
            wanted = Dataset()
            for keyword in (
                "StudyInstanceUID",
                "SeriesInstanceUID",
                "SOPInstanceUID",
                "PatientName",
                "PatientID",
                "Modality",
            ):
                wanted[keyword] = one[keyword]
            if all(str(wanted.get(name, values[0])) == values[0] for name, values in asked.items()):
                items.append({**wanted.to_json_dict(), **self.peer.extra})
        if self.peer.pages:
            start = int(asked.get("offset", ["0"])[0])
            items = items[start : start + int(asked.get("limit", ["9999"])[0])]
        return self.answer(200, json.dumps(items).encode(), **{"Content-Type": self.peer.json_type})

    def fetch(self, path: str) -> None:
        found = self.peer.found(path)
        if not found:
            return self.answer(404, b"")
        body = b""
        for one in found:
            buffer = BytesIO()
            one.save_as(buffer)
            content = self.peer.part or buffer.getvalue()
            body += f"\r\n--{MARK}\r\nContent-Type: application/dicom\r\n\r\n".encode() + content
        body += f"\r\n--{MARK}--".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={MARK}'
        return self.answer(200, body[: len(body) - self.peer.cut], **{"Content-Type": kind})

    def do_POST(self) -> None:
        body = self.read_body()
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
        assert boundary is not None
        parts = body.split(b"--" + boundary[1].encode())[1:-1]
        datasets = [pydicom.dcmread(BytesIO(part.split(b"\r\n\r\n", 1)[1])) for part in parts]
        self.peer.received.append(datasets)
        if self.peer.store_status:
            return self.answer(self.peer.store_status, b"")
        answer, bad, good = Dataset(), [], []
        for one in datasets:
            uid, item = str(one.SOPInstanceUID), Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.SOPClassUID, uid
            if uid in self.peer.refuse:
                item.FailureReason = self.peer.refuse[uid]
                bad.append(item)
            elif uid not in self.peer.silent:
                if uid in self.peer.warn:
                    item.WarningReason = self.peer.warn[uid]
                good.append(item)
        answer.ReferencedSOPSequence = DicomSequence(good)
        if bad:
            answer.FailedSOPSequence = DicomSequence(bad)
        status = 200 if not bad else 202 if good else 409
        return self.answer(status, answer.to_json().encode(), **{"Content-Type": self.peer.json_type})

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass

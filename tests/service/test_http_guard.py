"""The HTTP API withstands requests that are endless, too many, too large or malformed, and goes on answering others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import http.client
import io
import json
import logging
import os
import random
import socket
import sqlite3
import struct
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from http_sites import ROLES, Site, half_sent, image_of, opened, zipped
from net_peers import make_certificates
from nodes import make_study, open_trail, study_of, wait_until
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid
from starlette.types import Message, Receive, Scope, Send

from dicom_io.net.instance_file import InstanceRefusedError
from dicom_io.net.instance_store import InstanceStore
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.service import guard, uploads
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.tokens import Tokens, new_token, read_tokens
from monai_unet_app.service.uploads import take_zip

MIB = 2**20


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as made:
        yield made


def connected(site: Site, said: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    """A connection to the server, over which some bytes were sent."""
    where = urlsplit(site.url)
    made = socket.create_connection((str(where.hostname), int(where.port or 0)), 30, source_address=(source, 0))
    made.sendall(said)
    return made


# --- connections that hold on -----------------------------------------------------------------------------------------


def test_many_half_open_connections_keep_no_upload_out(site: Site, tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        for said in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n") * 35:
            held.enter_context(connected(site, said))
        begin = time.monotonic()
        answer = site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study")))
        assert answer.status_code == 202
        assert time.monotonic() - begin < 10


def test_the_head_of_a_request_must_come_in_time(tmp_path: Path) -> None:
    with opened(tmp_path, head_s=0.5) as site, connected(site, b"GET / HTTP/1.1\r\n") as slow:
        begin = time.monotonic()
        slow.settimeout(0.2)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begin < 30:  # a header now and then is no end of them
                slow.sendall(b"X-More: yes\r\n")
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(100):
                        break
        assert time.monotonic() - begin < 15
        with requests.Session() as session:  # a head that comes slowly, and whole, is none of these
            assert [session.get(f"{site.url}/health", timeout=9).status_code for _ in range(3)] == [200] * 3


def test_one_address_cannot_take_all_connections(tmp_path: Path) -> None:
    with opened(tmp_path, most_connections=6, most_per_address=4) as site, contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(half_sent(site.url, site.tokens["submit"], b"PK\x03\x04"))
        wait_until(lambda: len(list((site.node.folder / "uploads").glob("*"))) == 4)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with connected(site, ask) as same, connected(site, ask, "127.0.0.2") as other:
            assert same.recv(100).startswith(b"HTTP/1.1 503 ")
            assert other.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_node_says_how_it_is_while_uploads_from_two_addresses_take_all_connections(tmp_path: Path) -> None:
    with opened(tmp_path, most_connections=4, most_per_address=2) as site, contextlib.ExitStack() as held:
        head = (
            f"POST /studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.tokens['submit']}\r\n"
            "Content-Length: 1000\r\n\r\nPK"
        )
        for number in range(4):
            held.enter_context(connected(site, head.encode(), f"127.0.0.{2 + number % 2}"))
        wait_until(lambda: len(list((site.node.folder / "uploads").glob("*"))) == 4)
        silent = [held.enter_context(connected(site, source="127.0.0.9")) for _ in range(9)]
        for _ in range(3):
            for path in ("/health", "/ready"):
                assert site.ask("GET", path).status_code == 200
        full = site.ask("GET", "/metrics", "metrics")
        assert (full.status_code, full.headers["Retry-After"], full.headers["Connection"]) == (503, "5", "close")
        silent[0].settimeout(10)
        assert silent[0].recv(100).startswith(b"HTTP/1.1 503 ")  # it waited longest, and gave way to another


def test_a_body_must_come_at_a_least_rate(tmp_path: Path) -> None:
    image = gzip.decompress(image_of())
    assert len(image) == 352 + 4 * 4 * 5 * 6
    head = f"POST /studies?rule=any HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n"
    with opened(tmp_path, slow_upload_s=1, least_upload_kb_per_second=0.1) as site:
        head += f"Authorization: Bearer {site.tokens['submit']}\r\n\r\n"

        def upload(piece_bytes: int) -> tuple[int, bytes, float]:
            """Status and body of the answer to the image, sent in pieces ten times in a second, and the seconds it took."""
            with connected(site, head.encode()) as sender:
                begin = time.monotonic()
                for start in range(0, len(image), piece_bytes):
                    sender.sendall(image[start : start + piece_bytes])
                    sender.settimeout(0.1)
                    with contextlib.suppress(TimeoutError):
                        sender.recv(1, socket.MSG_PEEK)  # an answer that comes before all was sent
                        break
                sender.settimeout(20)
                answer = http.client.HTTPResponse(sender)
                answer.begin()
                return answer.status, answer.read(), time.monotonic() - begin

        status, body, seconds = upload(1)  # 10 bytes in a second, where 100 are needed
        assert status == 408
        assert b"slower than 0.1 kB/s for 1 s; send it again over a faster line" in body
        assert 1 <= seconds < 8  # the whole image would take 83
        status, _, seconds = upload(60)  # 600 bytes in a second
        assert status == 202
        assert seconds > 1


def test_nothing_is_read_for_somebody_without_a_token(site: Site) -> None:
    with half_sent(site.url, "nobody's", b"PK\x03\x04") as sender:
        assert sender.recv(100).startswith(b"HTTP/1.1 401 ")
    head = (
        b"POST /results/1/refuse HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with connected(site, head) as sender:
        assert sender.recv(100).startswith(b"HTTP/1.1 401 ")


def test_with_tls_browsers_are_told_to_stay_with_it_and_silent_callers_keep_nobody_out(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "certificates")
    with opened(tmp_path, tls=made.server, head_s=1.0) as site, contextlib.ExitStack() as held:
        silent = [held.enter_context(connected(site)) for _ in range(70)]
        answer = requests.get(f"{site.url}/health", verify=str(made.client.ca), timeout=20)
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        silent[0].settimeout(15)
        assert silent[0].recv(1) == b""  # its handshake is not waited for without end


def test_without_tls_nothing_is_said_of_it(site: Site) -> None:
    assert "Strict-Transport-Security" not in site.ask("GET", "/health").headers


# --- archives ---------------------------------------------------------------------------------------------------------


def packed(*contents: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive with these files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"{number}", content)
    return stream.getvalue()


def test_a_small_archive_that_becomes_large_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "zeros.zip"
    path.write_bytes(packed(bytes(128) + b"DICM" + bytes(60 * MIB)))
    assert path.stat().st_size < MIB
    store = InstanceStore(tmp_path / "store")
    tracemalloc.start()
    try:
        found = take_zip(path, store, 4e9, 1e9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found.instances, len(found.refused)) == ({}, 1)
    assert peak < 16 * MIB
    assert [one for one in store.folder.rglob("*") if one.is_file()] == []


def test_an_archive_becomes_no_more_than_so_many_times_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SMALL_BYTES", MIB)
    path, store = tmp_path / "zeros.zip", InstanceStore(tmp_path / "store")
    path.write_bytes(packed(*[bytes(128) + b"DICM" + bytes(MIB // 2)] * 3))
    with pytest.raises(InputRefusedError, match=r"becomes more than 1\.05 MB; split it"):
        take_zip(path, store, 4e9, 1e9)
    path.write_bytes(packed(*[bytes(128) + b"DICM" + os.urandom(MIB // 2)] * 3))
    assert len(take_zip(path, store, 4e9, 1e9).refused) == 3  # noise, and read to its end


def deflated_object(start: bytes, unit: bytes, count: int) -> bytes:
    """A DICOM file in the deflated transfer syntax whose data set holds `start` and so many times `unit`."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66", "1.2.3"
    stream = DicomBytesIO()
    write_file_meta_info(stream, meta)
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = machine.compress(start) + b"".join(machine.compress(unit) for _ in range(count)) + machine.flush()
    return bytes(128) + b"DICM" + stream.getvalue() + body


def test_objects_that_are_deflated_twice_cost_no_more_than_their_bytes_warrant(tmp_path: Path) -> None:
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    empty_items = deflated_object(struct.pack("<HH2sHL", 0x0021, 0x1001, b"SQ", 0, 0xFFFFFFFF), items * 4096, 100)
    values = deflated_object(b"", struct.pack("<HH2sH", 0x0021, 0x1001, b"LO", 0) * 4096, 500)
    for content in (empty_items, values):
        path, begin = tmp_path / "twice.zip", time.process_time()
        path.write_bytes(packed(*[content] * 3))
        assert path.stat().st_size < 10_000
        with pytest.raises(InputRefusedError, match="have more items or pieces than"):
            take_zip(path, InstanceStore(tmp_path / "store"), 4e9, 1e9)
        assert time.process_time() - begin < 5
        with pytest.raises(InstanceRefusedError):  # by itself too
            InstanceStore(tmp_path / "store").put(content)
        assert time.process_time() - begin < 8


def test_deflated_objects_of_an_archive_become_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SMALL_BYTES", 8 * MIB)
    start = struct.pack("<HH2sHL", 0x0021, 0x1001, b"OB", 0, 3 * MIB)
    path = tmp_path / "deflated.zip"
    path.write_bytes(packed(*[deflated_object(start, bytes(MIB), 3)] * 3))
    refused = take_zip(path, InstanceStore(tmp_path / "store"), 4e9, 1e9).refused
    assert ["the most that are inflated" in reason for reason in refused] == [False, False, True]


def test_an_archive_has_so_much_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_SECONDS", -1)
    path = tmp_path / "study.zip"
    path.write_bytes(zipped(make_study(tmp_path / "study")))
    with pytest.raises(InputRefusedError, match=r"takes more than -1 s, 0 of its \d+ files are done; split it"):
        take_zip(path, InstanceStore(tmp_path / "store"), 4e9, 1e9)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_is_packed_as_usual_or_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "other.zip"
    path.write_bytes(packed(bytes(1000), method=method))
    with pytest.raises(InputRefusedError, match="the archive is broken"):
        take_zip(path, InstanceStore(tmp_path / "store"), 4e9, 1e9)


def test_a_long_list_of_members_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "members.zip"
    path.write_bytes(packed(*[b""] * 20_001, method=zipfile.ZIP_STORED))
    with pytest.raises(InputRefusedError, match="has 20001 files; at most 20000 are accepted"):
        take_zip(path, InstanceStore(tmp_path / "store"), 4e9, 1e9)
    content = packed(b"x", method=zipfile.ZIP_STORED)
    end = content.rindex(b"PK\x05\x06")
    list_bytes = 2**25  # said to be so long, and so long
    head, rest = content[:end], content[end:]
    path.write_bytes(head + bytes(list_bytes) + rest[:12] + list_bytes.to_bytes(4, "little") + rest[16:])
    tracemalloc.start()
    try:
        with pytest.raises(InputRefusedError, match="the archive is broken"):
            take_zip(path, InstanceStore(tmp_path / "store"), 4e9, 1e9)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("place", "value"), [(42, b"\xff\xff\xff\x7f"), (28, b"\0\0"), (-6, b"\xff\xff\xff\x7f"), (8, b"\1")]
)
def test_an_archive_whose_list_lies_is_refused_in_our_words(tmp_path: Path, place: int, value: bytes) -> None:
    content = bytearray(packed(b"x" * 200))
    start = content.index(b"PK\1\2") + place if place > 0 else len(content) + place
    content[start : start + len(value)] = value
    path = tmp_path / "lying.zip"
    path.write_bytes(content)
    with pytest.raises(InputRefusedError, match="the archive is broken"):
        take_zip(path, InstanceStore(tmp_path / "store"), 4e9, 1e9)


def test_an_archive_in_an_archive_is_no_object(site: Site, tmp_path: Path) -> None:
    inner = zipped(make_study(tmp_path / "study"))
    answer = site.ask("POST", "/studies", "submit", data=packed(inner))
    assert (answer.status_code, answer.json()["detail"]) == (422, "file 1: it is not a DICOM file")


def test_the_largest_instance_is_as_large_by_http_as_by_dicom(tmp_path: Path) -> None:
    small, large = make_study(tmp_path / "small", 2), make_study(tmp_path / "large", 1, size=200)
    with opened(tmp_path, node="instance_gb = 0.00005") as site:  # 50,000 bytes
        content = next(large.glob("*.dcm")).read_bytes()
        answer = site.ask("POST", "/studies", "submit", data=content)
        assert (answer.status_code, "instance_gb" in answer.json()["detail"]) == (422, True)
        answer = site.ask("POST", "/studies", "submit", data=zipped(small, large=content))
        assert answer.json() == {
            "studies": {study_of(small): 2}, "refused": ["file 3: it has more than 5e-05 GB (instance_gb)"],
        }  # fmt: skip


# --- tokens -----------------------------------------------------------------------------------------------------------


def trail(site: Site, event: str) -> list[dict]:
    """The lines of the audit trail on such events."""
    lines = (json.loads(line) for line in (site.node.folder / "audit.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def test_a_token_that_is_taken_out_lets_nobody_in_from_then_on(site: Site) -> None:
    path = site.node.folder.parent / "tokens"
    assert site.ask("GET", "/metrics", "metrics").status_code == 200
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("metrics ")))
    assert site.ask("GET", "/metrics", "metrics").status_code == 401
    assert site.ask("GET", "/metrics", "read").status_code == 200
    made, line = new_token("late", ["metrics"])
    with path.open("a") as stream:
        stream.write(f"\n{line}\nhalf a line")
    site.tokens["late"] = made
    assert site.ask("GET", "/metrics", "late").status_code == 200  # beside a line that is none
    path.unlink()
    assert site.ask("GET", "/metrics", "late").status_code == 401


def test_a_token_ends_with_its_last_day(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site.node.folder.parent / "tokens"
    today = datetime.now(UTC).date()
    for days, status in ((0, 200), (-1, 401)):
        last = (today + timedelta(days=days)).isoformat()
        made, line = new_token("rossi", ["read"])
        path.write_text(f"{line.rpartition('=')[0]}={last}\n")
        site.tokens["rossi"] = made
        answer = site.ask("GET", "/metrics", "rossi")
        assert answer.status_code == status
    assert f"valid until {last}" in answer.json()["detail"]


def test_a_token_holds_for_a_year_or_as_long_as_is_said(tmp_path: Path) -> None:
    path, today = tmp_path / "tokens", datetime.now(UTC).date()
    path.write_text(new_token("usual", ["read"])[1] + "\n" + new_token("short", ["read"], 7)[1] + "\n")
    ends = {holder.name: holder.expires for holder in read_tokens(path).values()}
    assert ends == {"usual": today + timedelta(days=365), "short": today + timedelta(days=7)}
    with pytest.raises(UsageError, match="days is 0; 1 to 3650 is needed"):
        new_token("never", ["read"], 0)
    path.write_text(f"rossi read {'0' * 64} expires=2027-02-30\n")
    with pytest.raises(UsageError, match="2027-02-30 is not a date"):
        read_tokens(path)


def test_tokens_of_earlier_versions_hold_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token, line = new_token("prometheus", ["read"])
    (tmp_path / "tokens").write_text(line.partition(" expires=")[0] + "\n")
    holder = Tokens(tmp_path / "tokens").holder_of(token)
    assert (holder.name, holder.expires, holder.may("read")) == ("prometheus", None, True)
    assert "tokens without a last day: prometheus;" in caplog.text
    caplog.clear()
    _, line = new_token("soon", ["read"], 3)
    (tmp_path / "tokens").write_text(line)
    Tokens(tmp_path / "tokens")
    assert f"the token of soon is valid until {date.today() + timedelta(days=3)}" in caplog.text


def test_failed_logins_are_written_down_once_a_minute_and_answered_slowly(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_FIRST_PAUSE_S", 0.5)
    monkeypatch.setattr(guard, "_LONGEST_PAUSE_S", 0.6)
    monkeypatch.setattr(guard, "_INTERVAL_S", 4.0)
    assert site.ask("GET", "/").status_code == 401  # a browser that asks for the first time has failed nothing
    assert trail(site, "login failed") == []
    tries, seconds = 5, []
    for _ in range(tries):
        since = time.monotonic()
        answer = requests.get(f"{site.url}/", headers={"Authorization": "Bearer guessed-secret"}, timeout=30)
        assert answer.status_code == 401
        seconds.append(time.monotonic() - since)
    assert min(seconds) >= 0.5
    assert site.ask("GET", "/", "read").status_code == 200  # a good token is answered at once, whoever failed before
    wait_until(lambda: sum(line["tries"] for line in trail(site, "login failed")) == tries)
    assert len(trail(site, "login failed")) < tries
    assert {line["address"] for line in trail(site, "login failed")} == {"127.0.0.1"}
    assert "guessed-secret" not in (site.node.folder / "audit.jsonl").read_text()


def test_whoever_has_no_token_keeps_nobody_else_out(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_FIRST_PAUSE_S", 8.0)
    monkeypatch.setattr(guard, "_LONGEST_PAUSE_S", 8.0)
    (tmp_path / "small").mkdir()
    wrong = b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n"
    with opened(tmp_path / "small", most_connections=12) as small, contextlib.ExitStack() as held:
        for number in range(12):
            held.enter_context(connected(small, wrong, f"127.0.0.{2 + number % 3}"))
        wait_until(lambda: small.ask("GET", "/health").status_code == 200)  # their tokens have been looked at
        for _ in range(20):  # with and without a token
            assert [small.ask("GET", "/health").status_code, small.ask("GET", "/", "read").status_code] == [200, 200]
            held.enter_context(connected(small, wrong, "127.0.0.2"))


def test_many_wrong_tokens_of_one_address_are_told_to_come_later(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_FIRST_PAUSE_S", 3.0)
    monkeypatch.setattr(guard, "_LONGEST_PAUSE_S", 3.0)
    with ThreadPoolExecutor(20) as pool:
        wrong = {"Authorization": "Bearer wrong"}
        answers = list(pool.map(lambda _: requests.get(f"{site.url}/", headers=wrong, timeout=30), range(20)))
        assert site.ask("GET", "/", "read").status_code == 200  # from the same address
    seconds = {code: [one.elapsed.total_seconds() for one in answers if one.status_code == code] for code in (401, 429)}
    assert (len(seconds[401]), len(seconds[429])) == (8, 12)
    assert min(seconds[401]) >= 3 > max(seconds[429])
    assert {one.headers.get("Retry-After") for one in answers if one.status_code == 429} == {"5"}
    assert requests.get(f"{site.url}/", headers=wrong, timeout=30).status_code == 401  # none is held any more


# --- whatever comes ---------------------------------------------------------------------------------------------------

PIECES = (
    "studies", "results", "1", "-1", "0", "9223372036854775807", "9223372036854775808", "9" * 5000, "files", "decision",
    "release", "refuse", "review", "retry", "reprocess", "jobs", "deliveries", "metrics", "find", "health", "ready", "1.2.3",
    "1." * 40, "%00", "a%00b", "..%2f..%2faudit.jsonl", "%ff%fe", "%F0%9F%92%80", "a" * 5000, "", ".", "..", "one%0d%0aX: y",
    "%2e%2e", "binary%2fone_sc.dcm", "1e3", "NaN", "true", "openapi.json", "%ED%A0%80", "'; DROP TABLE results; --",
)  # fmt: skip
ROUTES = (
    "/studies", "/studies?rule=any", "/studies?rule=%00%ff", "/studies/{}", "/studies/{}/reprocess", "/results/{}",
    "/results/{}/files/{}", "/results/{}/review", "/results/{}/decision", "/results/{}/release", "/results/{}/refuse",
    "/jobs/{}/retry", "/deliveries/{}/retry", "/metrics", "/", "/?still={}", "/find", "/ready", "/openapi.json", "/{}/{}/{}",
)  # fmt: skip
FILES = (
    "binary%00", "%00", "binary/one_sc.dcm%00", "a" * 256, "binary/" + "a" * 256, "a/" * 2500, "binary", "binary/one_sc.dcm",
    "%FF", "%ED%A0%80", "n" * 300, "..%2f" * 9 + "etc%2fpasswd", "binary%2F..%2Fbinary", "", "%F0%9F%92%80" * 64, "a%0a",
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY")
TYPES = (
    "application/json", "application/json; charset=nothing", "multipart/form-data", "multipart/form-data; boundary=",
    "multipart/form-data; boundary=limit", "multipart/form-data; boundary=limit; charset=nothing",
    'multipart/form-data; boundary="\xe9"', "application/x-www-form-urlencoded", "text/plain", "\xff\xfe", "",
    "multipart/form-data; boundary=" + "b" * 300, "application/octet-stream",
)  # fmt: skip
WORDS = (
    b"", b"{", b"[]", b"null", b"0", b'"text"', b'{"reason": 1}', b'{"reason": "\\ud800"}', b'{"reason": "a\\u0000b"}',
    b'{"decision": "accepted"}', b'{"decision": {"a": [1, NaN, Infinity]}}', b"[" * 100_000, b'{"a":' * 50_000,
    b'{"reason": ' + b"9" * 5000 + b"}", b"\xff\xfe\x00", b"text=%ff%00", b"text=" + b"x" * 100, b"text=1.2&text=3",
)  # fmt: skip
ORIGINS = ("http://[::1", "null", "http://evil.example", "\xff", "http://x:99999999", "", "//", "http://127.0.0.1")
LOGINS = (
    "Bearer",
    "Bearer ",
    "Basic",
    "Basic \xe9\xe9",
    "Basic ====",
    "Basic AA",
    "Digest x",
    "\xff",
    "Bearer \xff" * 9,
)


def fuzzed(random_: random.Random, site: Site, number: int) -> bytes:
    """A request that may be anything."""
    pieces = [random_.choice([*PIECES, str(number)]) for _ in range(3)]
    path = random_.choice(ROUTES).format(*pieces).replace(" ", "%20")
    role = random_.choice([*ROLES] * 3 + ["", "odd"])
    method = random_.choice(METHODS[:2] * 5 + METHODS)
    if random_.random() < 0.1:
        method = random_.choice(["GET", method])
        path, role = f"/results/{number}/files/{random_.choice(FILES)}", random_.choice(["reviewer", role])
    login = {"": "", "odd": random_.choice(LOGINS)}.get(role) if role in ("", "odd") else f"Bearer {site.tokens[role]}"
    if role and role != "odd" and random_.random() < 0.3:
        login = "Basic " + base64.b64encode(f"any:{site.tokens[role]}".encode()).decode()
    kind, body = random_.choice(TYPES), random_.choice(WORDS)
    if random_.random() < 0.3:
        field = random_.choice(
            ['name="decision"', 'name="mask"; filename="m.dcm"', 'name="file"; filename="\xff\x01"', "x", ""]
        )
        end = random_.choice([b"--limit--\r\n", b"--lim", b""])
        body = f"--limit\r\nContent-Disposition: form-data; {field}\r\n\r\n".encode("latin-1") + body + b"\r\n" + end
    if random_.random() < 0.1:
        body = random_.choice([b"PK\x03\x04", b"\x1f\x8b", bytes(128) + b"DICM"]) + random_.randbytes(300)
    length = random_.choice([len(body)] * 8 + [0, "x"])
    headers = {
        "Host": random_.choice(["127.0.0.1"] * 4 + ["[::1", "\xff", "", "a b"]), "Content-Length": length,
        "Content-Type": kind, "Authorization": login, "Connection": "close",
        "Origin": random_.choice(ORIGINS) if random_.random() < 0.2 else "",
        "Range": random_.choice(["bytes=0-0", "bytes=9-1", "bytes=-", "lines=1", "bytes=" + "0-0," * 500])
        if random_.random() < 0.2 else "",
        "Accept": random_.choice(["", "text/html", "\xff"]),
        "If-Range": random_.choice(["", "", "\xff"]), "Transfer-Encoding": "chunked" if random_.random() < 0.03 else "",
    }  # fmt: skip
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if value != ""]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def answer_to(site: Site, request: bytes) -> bytes:
    """What comes back until the server closes the connection. Our side stays open: half-closed, it would get few answers."""
    found = b""
    with connected(site) as sender, contextlib.suppress(OSError):
        with contextlib.suppress(OSError):  # it may be refused before all of it is read
            sender.sendall(request)
        while piece := sender.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_body_that_breaks_off_in_its_form_ends_the_connection_without_a_traceback(
    site: Site, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"{method} /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(5):
        with connected(site, head.encode() + b"no chunk\r\n") as sender, contextlib.suppress(ConnectionError):
            while sender.recv(1000):
                pass
    assert site.ask("GET", "/health").status_code == 200
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 250), pytest.param(2, 4000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_no_request_is_answered_with_a_fault(
    site: Site, tmp_path: Path, seed: int, count: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(guard, "_LONGEST_PAUSE_S", 0.0)
    caplog.set_level(logging.WARNING)
    thrown: list[object] = []
    monkeypatch.setattr(threading, "excepthook", thrown.append)
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "held", wish="review")))
    number, random_, seen = site.result("held"), random.Random(seed), set()
    for _ in range(count):
        request = fuzzed(random_, site, number)
        answer = answer_to(site, request)
        status = int(answer[9:12] or 0)
        seen.add(status)
        assert status != 500, request[:400]  # 0: the connection was reset with a part of the request unread
        assert b"Traceback" not in answer
    assert {200, 401, 403, 404, 405, 422} <= seen
    faults = [
        record.getMessage() for record in caplog.records if record.exc_info or "could not answer" in str(record.msg)
    ]
    assert (faults, thrown) == ([], [])
    assert site.ask("GET", "/health").status_code == 200
    study = make_study(tmp_path / "after", study=generate_uid())
    assert site.ask("POST", "/studies", "submit", data=zipped(study)).status_code == 202
    wait_until(lambda: site.node.queue.jobs_of(study_of(study)))


def test_a_fault_in_a_route_says_nothing_of_its_inside(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(number: int) -> None:
        raise KeyError("Quintessenza^Ottavia")

    monkeypatch.setattr(site.node.queue, "result", broken)
    answer = site.ask("GET", "/results/1", "read")
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "application/json")
    assert "the log has the place of the fault" in answer.json()["detail"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "could not answer GET /results/{number}: KeyError in broken, test_http_guard.py line" in caplog.text
    assert "Quintessenza" not in answer.text + caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_a_fault_in_an_answer_that_has_begun_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("Quintessenza^Ottavia")

    async def receive() -> Message:
        return {"type": "http.request"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    _, line = new_token("Rossi^Anna", ["read"])
    (tmp_path / "tokens").write_text(line + "\n")
    config, trail = HttpConfig(tmp_path / "tokens"), open_trail(tmp_path / "audit.jsonl")
    app_guard = guard.Guard(app, config, Tokens(config.tokens), trail)
    asyncio.run(app_guard({"type": "http", "method": "GET", "path": "/health", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert "could not answer GET no route: KeyError in app, test_http_guard.py line" in caplog.text
    assert "Quintessenza" not in caplog.text


def full_disk(*words: object) -> None:
    raise OSError(28, "No space left on device")


def full_database(*words: object) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("PRAGMA max_page_count = 1")
        database.execute("CREATE TABLE a (b)")  # sqlite3.OperationalError: database or disk is full


@pytest.mark.parametrize("fault", [full_disk, full_database])
def test_a_full_disk_is_answered_with_insufficient_storage(
    site: Site, fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.node.store, "unfinished", fault)
    assert site.ask("POST", "/studies?rule=any", "submit", data=image_of()).status_code == 507


@pytest.mark.parametrize("error", [OSError, AppError, sqlite3.OperationalError])
def test_a_wrong_token_is_refused_although_the_trail_cannot_be_written(
    site: Site, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: object, **facts: object) -> None:
        raise error("the trail cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(site.node.audit, "write", broken)
        answer = requests.get(site.url, headers={"Authorization": "Bearer wrong"}, timeout=30)
    assert answer.status_code == 401

"""The storage provider: success is said only for what is on the disk, and nothing leaves its folder."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from net_peers import (
    PATIENT,
    SERIES,
    STUDY,
    ct_series,
    destination,
    make_certificates,
    mute_listener,
    private_pem,
    same_data_set,
    send_raw,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dsutils import encode

from dicom_io.errors import NetworkError
from dicom_io.net import connections, scu
from dicom_io.net.destination import DestinationError, Tls
from dicom_io.net.instance_file import InstanceRefusedError, data_set_start
from dicom_io.net.instance_store import InstanceStore, Stored
from dicom_io.net.scp import Listen, Provider
from dicom_io.net.tls import client_context, server_context

ANY_PORT = Listen("ARCHIVE", port=0, idle_s=5.0)


@pytest.fixture
def ct(tmp_path: Path) -> Dataset:
    """One CT slice as a data set."""
    return pydicom.dcmread(ct_series(tmp_path / "source", 1)[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "in" / "store"


@pytest.fixture
def provider(folder: Path) -> Iterator[Provider]:
    with Provider(folder, ANY_PORT) as found:
        yield found


def files_below(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def place_of(dataset: Dataset) -> str:
    return f"{dataset.StudyInstanceUID}/{dataset.SeriesInstanceUID}/{dataset.SOPInstanceUID}.dcm"


def with_value(dataset: Dataset, keyword: str, value: str) -> bytes:
    """The encoded data set with a value that pydicom would refuse to set."""
    changed = pydicom.dcmread(BytesIO(_bytes(dataset)))
    changed[keyword]._value = value
    return encode(changed, False, True) or b""


def _bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_an_instance_lies_under_its_uids_with_the_bytes_that_came(
    provider: Provider, folder: Path, ct: Dataset
) -> None:
    assert send_raw(provider.port, ct).Status == 0x0000
    assert files_below(folder) == [place_of(ct)]
    kept = pydicom.dcmread(folder / place_of(ct))
    assert same_data_set(kept, ct)
    assert kept.file_meta.TransferSyntaxUID == ct.file_meta.TransferSyntaxUID
    assert kept.file_meta.MediaStorageSOPInstanceUID == ct.SOPInstanceUID


def test_success_is_said_after_file_and_folder_are_forced_to_the_disk(
    folder: Path, ct: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def noted_fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        events.append("file" if path.endswith(".part") else f"folder {Path(path).name}")
        fsync(handle)

    def noted_link(*names: Any) -> None:
        events.append("name")
        link(*names)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    with Provider(folder, ANY_PORT) as provider:
        assert send_raw(provider.port, ct).Status == 0x0000
        assert events[0] == "file"
        assert events[-2:] == ["name", f"folder {SERIES}"]
        assert f"folder {STUDY}" in events


def test_a_file_never_has_its_name_before_it_is_whole(
    folder: Path, ct: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def look(handle: int) -> None:
        seen.append([name for name in files_below(folder) if name.endswith(".dcm")])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", look)
    InstanceStore(folder).put(_bytes(ct))
    assert seen[0] == []
    assert seen[-1] == [place_of(ct)]


def test_the_same_instance_twice_is_harmless_even_in_another_encoding(
    provider: Provider, folder: Path, ct: Dataset
) -> None:
    assert send_raw(provider.port, ct).Status == 0x0000
    first = (folder / place_of(ct)).read_bytes()
    assert send_raw(provider.port, ct).Status == 0x0000
    ct.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    implicit = pydicom.dcmread(BytesIO(_bytes(pydicom.dcmread(BytesIO(_implicit(ct))))))
    assert send_raw(provider.port, implicit).Status == 0x0000
    assert files_below(folder) == [place_of(ct)]
    assert (folder / place_of(ct)).read_bytes() == first


def _implicit(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def test_other_content_under_a_known_uid_is_refused_and_the_first_stays(
    provider: Provider, folder: Path, ct: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    assert send_raw(provider.port, ct).Status == 0x0000
    first = (folder / place_of(ct)).read_bytes()
    ct.PixelData = np.roll(ct.pixel_array, 1).tobytes()
    with caplog.at_level(logging.WARNING, "dicom_io"):
        answer = send_raw(provider.port, ct)
    assert answer.Status == 0x0111  # PS3.7 C.5.6 Duplicate SOP Instance
    assert files_below(folder) == [place_of(ct)]
    assert (folder / place_of(ct)).read_bytes() == first
    assert f"other content is kept under the UID {ct.SOPInstanceUID}" in caplog.text


def test_the_same_uid_from_many_threads_at_once_gives_one_file(folder: Path, ct: Dataset) -> None:
    store, content = InstanceStore(folder), _bytes(ct)
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda _: store.put(content).is_new, range(24)))
    assert sum(kept) == 1
    assert files_below(folder) == [place_of(ct)]


def test_a_callback_hears_of_each_instance_that_is_on_the_disk_and_may_fail(
    folder: Path, ct: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[bool, bool]] = []

    def hear(stored: Stored) -> None:
        heard.append((stored.is_new, stored.path.is_file()))
        raise RuntimeError("Zyxwvut")

    with Provider(InstanceStore(folder, stored=hear), ANY_PORT) as provider:
        assert [send_raw(provider.port, ct).Status for _ in range(2)] == [0x0000, 0x0000]
    assert heard == [(True, True), (False, True)]
    assert "the callback for" in caplog.text
    assert "Zyxwvut" not in caplog.text


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_full_disk_is_answered_with_out_of_resources_and_leaves_nothing(
    provider: Provider, folder: Path, ct: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = send_raw(provider.port, ct)
    assert answer.Status == 0xA700
    assert "ENOSPC" in answer.ErrorComment
    assert files_below(folder) == []
    monkeypatch.undo()
    assert send_raw(provider.port, ct).Status == 0x0000


def test_a_disk_that_is_really_full_is_answered_with_out_of_resources(tmp_path: Path, ct: Dataset) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here (not root)")
    try:
        ct.Rows, ct.Columns = 256, 256
        ct.PixelData = bytes(2 * 256 * 256)
        with Provider(disk, ANY_PORT) as provider:
            assert send_raw(provider.port, ct).Status == 0xA700
        assert files_below(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", ["../../x", "/etc/x", "..", "1..2", "1.2/3", "", "1." + "2" * 64, "Zyxwvut^Qponmlk"])
def test_a_hostile_uid_is_refused_and_not_repeated(
    keyword: str, value: str, tmp_path: Path, folder: Path, ct: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    before, store = files_below(tmp_path), InstanceStore(folder)
    hostile = _bytes(ct)[: data_set_start(ct)] + with_value(ct, keyword, value)
    caplog.clear()
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(InstanceRefusedError, match=f"{keyword} is not a UID") as refusal,
    ):
        store.put(hostile)
    assert refusal.value.status & 0xF000 == 0xC000
    assert files_below(tmp_path) == before
    if len(value) > 5:
        assert value not in caplog.text + str(refusal.value)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_a_hostile_uid_over_the_wire_writes_nowhere(keyword: str, tmp_path: Path, folder: Path, ct: Dataset) -> None:
    before, hostile = files_below(tmp_path), with_value(ct, keyword, "../../x")

    def put_in(request: Any) -> None:
        request.DataSet = BytesIO(hostile)

    with Provider(folder, ANY_PORT) as provider:
        answer = send_raw(provider.port, ct, edit=put_in)
    assert answer.Status & 0xF000 == 0xC000
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("value", ["../../x", "1.2/3", "Zyxwvut^Qponmlk"])
def test_a_hostile_uid_in_the_request_itself_writes_nowhere(
    value: str, tmp_path: Path, folder: Path, ct: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    before, hostile = files_below(tmp_path), with_value(ct, "SOPInstanceUID", value)

    def announce(request: Any) -> None:
        request.DataSet = BytesIO(hostile)
        request._affected_sop_instance_uid = UID(value)

    with caplog.at_level(logging.WARNING, "dicom_io"), Provider(folder, ANY_PORT) as provider:
        answer = send_raw(provider.port, ct, edit=announce)
    assert answer.Status & 0xF000 == 0xC000
    assert files_below(tmp_path) == before
    assert "names no UID" in caplog.text


def test_an_announced_uid_that_the_data_set_does_not_have_is_refused(
    provider: Provider, folder: Path, ct: Dataset
) -> None:
    def lie(request: Any) -> None:
        request.AffectedSOPInstanceUID = "1.2.3"

    assert send_raw(provider.port, ct, edit=lie).Status & 0xF000 == 0xC000
    assert files_below(folder) == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_data_set_that_is_cut_short_is_refused(share: float, provider: Provider, folder: Path, ct: Dataset) -> None:
    def cut(request: Any) -> None:
        whole = request.DataSet.getvalue()
        request.DataSet = BytesIO(whole[: int(len(whole) * share)] or b"\0")

    assert send_raw(provider.port, ct, edit=cut).Status & 0xF000 == 0xC000
    assert files_below(folder) == []


def test_every_cut_of_a_nested_data_set_is_refused(folder: Path, ct: Dataset) -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID, item.PurposeOfReferenceCodeSequence = "1.2.3", Sequence([Dataset()])
    ct.SourceImageSequence = Sequence([item, item])
    ct["SourceImageSequence"].is_undefined_length = True
    whole, store = _bytes(ct), InstanceStore(folder)
    start = whole.index(ct["SourceImageSequence"].tag.group.to_bytes(2, "little") + b"\x12\x21")
    for end in range(start, start + 120):
        with pytest.raises(Exception, match="cannot be read"):
            store.put(whole[:end])
    store.put(whole)


def test_noise_is_refused(provider: Provider, folder: Path, ct: Dataset) -> None:
    def noise(request: Any) -> None:
        request.DataSet = BytesIO(np.random.default_rng(3).bytes(4000))

    assert send_raw(provider.port, ct, edit=noise).Status & 0xF000 == 0xC000
    assert files_below(folder) == []


def test_addresses_in_a_data_set_are_not_visited(provider: Provider, folder: Path, ct: Dataset) -> None:
    with mute_listener() as port:
        url = f"http://127.0.0.1:{port}/study"
        ct.RetrieveURL, ct.RetrieveURI, ct.PixelDataProviderURL = url, url, url
        calls: list[Any] = []
        connect = socket.socket.connect
        socket.socket.connect = lambda *args: (calls.append(args[1]), connect(*args))[1]  # type: ignore
        try:
            assert send_raw(provider.port, ct).Status == 0x0000
        finally:
            socket.socket.connect = connect  # type: ignore[method-assign]
    assert calls
    assert {address[1] for address in calls} == {provider.port}
    assert pydicom.dcmread(folder / place_of(ct)).RetrieveURL == url


# --- who is let in ----------------------------------------------------------------------------------------------------


def test_the_provider_is_reached_from_this_machine_only(provider: Provider) -> None:
    table = Path("/proc/net/tcp")
    if not table.is_file():
        pytest.skip("no table of listening ports here")
    listening = [line.split()[1] for line in table.read_text().splitlines() if f":{provider.port:04X} 0000" in line]
    assert listening == [f"0100007F:{provider.port:04X}"]


def test_it_answers_c_echo(provider: Provider) -> None:
    assert scu.echo(destination(provider.port)) < 5


def test_a_host_name_with_two_addresses_is_tried_at_both(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]
    ask = socket.getaddrinfo

    def resolve(host: str, *more: Any, **options: Any) -> Any:
        return answers if host == "two.example.org" else ask(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert scu.echo(destination(provider.port, host="two.example.org")) < 5


def test_only_listed_senders_are_let_in(folder: Path, ct: Dataset) -> None:
    with Provider(folder, Listen("ARCHIVE", port=0, senders=("GOOD", "BETTER"))) as provider:
        assert send_raw(provider.port, ct, ae_title="BETTER").Status == 0x0000
        message = (
            r"rejected the association \(Rejected Permanent: Calling AE title not recognised\).* our AE title BAD "
        )
        with pytest.raises(NetworkError, match=f"^ARCHIVE@127.0.0.1:{provider.port} {message}"):
            scu.echo(destination(provider.port, our_ae_title="BAD"))


def test_who_calls_us_by_another_title_is_rejected_before_anything_is_stored(folder: Path, ct: Dataset) -> None:
    with Provider(folder, Listen("OURS", port=0)) as provider:
        message = r"\(Rejected Permanent: Called AE title not recognised\).* check the AE title that we call"
        with pytest.raises(NetworkError, match=message):
            scu.echo(destination(provider.port))
        ae = AE("SENDER")
        ae.add_requested_context(ct.SOPClassUID)
        refused = ae.associate("127.0.0.1", provider.port, ae_title="THEIRS")
        answer = refused.acceptor.primitive
        assert refused.is_rejected
        assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 7)  # PS3.8 table 9-21
        assert send_raw(provider.port, ct, called="OURS").Status == 0x0000
    with Provider(folder, Listen("OURS", port=0, any_title=True)) as provider:
        assert send_raw(provider.port, ct, called="THEIRS").Status == 0x0000


def test_a_taken_port_is_named(provider: Provider, folder: Path) -> None:
    taken = Listen("ARCHIVE", port=provider.port)
    message = f"127.0.0.1:{provider.port} \\(the port is in use\\).*choose another"
    with pytest.raises(NetworkError, match=message), Provider(folder, taken):
        pass


def test_the_port_is_free_when_the_provider_is_gone(folder: Path, ct: Dataset) -> None:
    with Provider(folder, ANY_PORT) as provider:
        port = provider.port
        ae = AE("SLEEPER")
        ae.add_requested_context("1.2.840.10008.1.1")
        sleeper = ae.associate("127.0.0.1", port, ae_title="ARCHIVE")
        assert sleeper.is_established
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    sleeper.abort()


def test_a_sender_that_stops_in_the_middle_of_a_message_is_dropped(folder: Path, ct: Dataset) -> None:
    with Provider(folder, Listen("ARCHIVE", port=0, idle_s=1.0)) as provider:
        with socket.create_connection(("127.0.0.1", provider.port)) as half:
            half.sendall(b"\x01\x00\x00\x00\x01\x00" + b"\x00\x01")  # an A-ASSOCIATE-RQ of 256 bytes, of which 2 come
            half.settimeout(10)
            assert half.recv(100) == b""  # closed by the provider; a TimeoutError otherwise
        assert send_raw(provider.port, ct).Status == 0x0000


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_both_sides_show_certificates(folder: Path, certificates: Any) -> None:
    with Provider(folder, Listen("ARCHIVE", port=0, tls=certificates.server)) as provider:
        assert scu.echo(destination(provider.port, tls=certificates.client)) < 5


def test_a_caller_without_a_certificate_is_not_let_in(folder: Path, certificates: Any) -> None:
    with Provider(folder, Listen("ARCHIVE", port=0, tls=certificates.server)) as provider:
        with pytest.raises(NetworkError, match=r"broke off TLS .*; a TLS node that accepts our certificate is needed"):
            scu.echo(destination(provider.port, tls=certificates.strangers))
        with pytest.raises(NetworkError, match="whether it requires TLS"):
            scu.echo(destination(provider.port))


def test_a_certificate_of_another_authority_is_refused_by_both_sides(
    folder: Path, certificates: Any, tmp_path: Path
) -> None:
    others = make_certificates(tmp_path / "others", "stranger")
    with Provider(folder, Listen("ARCHIVE", port=0, tls=certificates.server)) as provider:
        mixed = Tls(certificates.client.ca, others.client.certificate, others.client.key)
        with pytest.raises(NetworkError, match="broke off TLS"):
            scu.echo(destination(provider.port, tls=mixed))
        with pytest.raises(NetworkError, match=r"has a certificate that is not accepted \(.*\).*check ca and host"):
            scu.echo(destination(provider.port, tls=others.client))


def test_a_certificate_for_another_host_is_refused_unless_asked(folder: Path, tmp_path: Path) -> None:
    elsewhere = make_certificates(tmp_path / "elsewhere", host="pacs.example.org")
    with Provider(folder, Listen("ARCHIVE", port=0, tls=elsewhere.server)) as provider:
        with pytest.raises(NetworkError, match=r"certificate that is not accepted .*127\.0\.0\.1"):
            scu.echo(destination(provider.port, tls=elsewhere.client))
        careless = Tls(elsewhere.client.ca, elsewhere.client.certificate, elsewhere.client.key, check_hostname=False)
        assert scu.echo(destination(provider.port, tls=careless)) < 5


def test_a_caller_who_is_silent_during_the_handshake_keeps_nobody_waiting(folder: Path, certificates: Any) -> None:
    with (
        Provider(folder, Listen("ARCHIVE", port=0, tls=certificates.server, idle_s=30)) as provider,
        socket.create_connection(("127.0.0.1", provider.port)),
    ):
        assert scu.echo(destination(provider.port, tls=certificates.client)) < 5


@pytest.mark.parametrize("said", [b"", b"\x01\x00\x00\x00"], ids=["nothing", "half a request"])
def test_many_who_say_nothing_keep_no_sender_out(
    folder: Path, ct: Dataset, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_PENDING", 8)  # each connection costs a thread for its whole life
    ours = Listen("ARCHIVE", port=0, most_senders=5, idle_s=60, negotiation_s=60)
    with Provider(folder, ours) as provider, contextlib.ExitStack() as held:
        for _ in range(connections.MOST_PENDING + 6):
            silent = held.enter_context(socket.create_connection(("127.0.0.1", provider.port)))
            silent.sendall(said)
        begin = time.monotonic()
        assert send_raw(provider.port, ct).Status == 0x0000

        assert time.monotonic() - begin < 10


@pytest.mark.parametrize("secret", [False, True], ids=["plain", "TLS"])
def test_who_does_not_say_who_it_is_in_time_is_dropped(folder: Path, certificates: Any, secret: bool) -> None:
    ours = Listen("ARCHIVE", port=0, idle_s=60, negotiation_s=1, tls=certificates.server if secret else None)
    with Provider(folder, ours) as provider, socket.create_connection(("127.0.0.1", provider.port), 30) as slow:
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begin < 30:  # a byte now and then is no sign of life
                slow.sendall(b"\x16" if secret else b"\x01")
                slow.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(100):
                        break
        assert time.monotonic() - begin < 10


def test_one_address_leaves_room_for_others(folder: Path) -> None:
    ours = Listen("ARCHIVE", "0.0.0.0", port=0, most_senders=5)
    ae = AE("SENDER")
    ae.add_requested_context("1.2.840.10008.1.1")
    with Provider(folder, ours) as provider:
        same = [ae.associate("127.0.0.1", provider.port, ae_title="ARCHIVE") for _ in range(5)]
        other = ae.associate("127.0.0.1", provider.port, ae_title="ARCHIVE", bind_address=("127.0.0.2", 0))
        assert [one.is_established for one in (*same, other)] == [True, True, True, True, False, True]
        for n in range(4):  # a caller that has released may call again at once
            same[n].release()
            same[n] = ae.associate("127.0.0.1", provider.port, ae_title="ARCHIVE")
            assert same[n].is_established
        for one in (*same, other):
            one.abort()


def test_old_tls_is_not_spoken(certificates: Any) -> None:
    for made in (client_context(certificates.client), server_context(certificates.server)):
        assert made.minimum_version == ssl.TLSVersion.TLSv1_2
        assert made.verify_mode == ssl.CERT_REQUIRED
        assert all("ECDHE" in one["name"] or one["protocol"] == "TLSv1.3" for one in made.get_ciphers())
    assert client_context(certificates.client).check_hostname


def test_tls_files_that_cannot_be_used_are_refused(certificates: Any, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    locked = tmp_path / "locked.key"
    locked.write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    good = certificates.client
    for bad, message in (
        (Tls(tmp_path / "none.pem"), "does not exist; a PEM file is needed"),
        (Tls(good.key), "cannot be used"),
        (Tls(good.ca, good.certificate, locked), "cannot be used .*not encrypted"),
        (Tls(good.ca, good.certificate, certificates.server.key), "cannot be used .*the key of the certificate"),
    ):
        with pytest.raises(DestinationError, match=message):
            client_context(bad)
    with pytest.raises(DestinationError, match="tls has no ca; to receive over TLS"):
        server_context(Tls(None, good.certificate, good.key))


def test_no_name_of_a_patient_is_logged(folder: Path, ct: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), Provider(folder, ANY_PORT) as provider:
        send_raw(provider.port, ct)
        ct.SliceThickness = 99
        send_raw(provider.port, ct)
    assert caplog.text
    assert not any(value in caplog.text for value in PATIENT.values())


def test_threads_are_gone_afterwards(folder: Path, ct: Dataset) -> None:
    before = threading.active_count()
    with Provider(folder, ANY_PORT) as provider:
        send_raw(provider.port, ct)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before

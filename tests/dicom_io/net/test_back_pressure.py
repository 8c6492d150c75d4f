"""A provider that is full, or called by strangers: it says so in the standard's codes, and keeps nothing of what it refuses."""

from __future__ import annotations

import contextlib
import copy
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from net_peers import ct_series, destination, make_certificates, send_raw
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_io.errors import NetworkError
from dicom_io.net import scu
from dicom_io.net.availability import availability_service
from dicom_io.net.destination import DestinationError
from dicom_io.net.limits import IncomingDataSet, Limits
from dicom_io.net.scp import Listen, Provider

MIB = 2**20


@pytest.fixture
def slices(tmp_path: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in ct_series(tmp_path / "source", 4)]


@pytest.fixture
def large(slices: list[Dataset]) -> Dataset:
    """An instance of 8 MiB."""
    found = copy.deepcopy(slices[0])
    found.Rows, found.Columns = 2048, 2048
    found.PixelData = bytes(8 * MIB)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def kept(folder: Path) -> int:
    """How many instances there are; nothing unfinished lies beside them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix != ".dcm"] == []
    return len(files)


@contextmanager
def associated(port: int, dataset: Dataset, called: str = "ARCHIVE") -> Iterator[Association]:
    ae = AE("SENDER")
    ae.add_requested_context(dataset.SOPClassUID, [dataset.file_meta.TransferSyntaxUID])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    association = ae.associate("127.0.0.1", port, ae_title=called)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def listen(**more: Any) -> Listen:
    return Listen("ARCHIVE", port=0, idle_s=10.0, **more)


# --- no room ----------------------------------------------------------------------------------------------------------


def test_where_there_is_no_room_the_sender_is_told_why(folder: Path, slices: list[Dataset]) -> None:
    asked, refused = [""], list[str]()
    with Provider(folder, listen(), room=lambda: asked[0], refused=refused.append) as provider:
        assert send_raw(provider.port, slices[0]).Status == 0x0000
        asked[0] = "the disk has 1.5 GB left, 2 GB are kept free"
        answer = send_raw(provider.port, slices[1])
        asked[0] = ""
        assert send_raw(provider.port, slices[2]).Status == 0x0000
    assert (answer.Status, answer.ErrorComment) == (
        0xA700,
        "the disk has 1.5 GB left, 2 GB are kept free",
    )  # PS3.4 B.2.3
    assert refused == ["the disk has 1.5 GB left, 2 GB are kept free"]
    assert kept(folder) == 2


def test_whether_there_is_room_is_asked_before_an_instance_is_taken(folder: Path, large: Dataset) -> None:
    asked = list[float]()

    def room() -> str:
        asked.append(time.monotonic())
        return "full"

    with Provider(folder, listen(), room=room) as provider, associated(provider.port, large) as association:
        send = association.dul.send_pdu

        def send_slowly(primitive: Any) -> None:
            time.sleep(0.005)
            send(primitive)

        association.dul.send_pdu = send_slowly  # type: ignore[method-assign]
        assert association.send_c_store(large).Status == 0xA700
        answered = time.monotonic()
        association.dul.send_pdu = send  # type: ignore[method-assign]
    assert len(asked) == 1
    assert answered - asked[0] > 0.3  # 8 MiB in fragments of 64 KiB or less, 5 ms each


def test_a_long_reason_is_cut_to_what_a_comment_holds(folder: Path, slices: list[Dataset]) -> None:
    with Provider(folder, listen(), room=lambda: "x" * 100) as provider:
        assert send_raw(provider.port, slices[0]).ErrorComment == "x" * 64  # LO, PS3.5 6.2


def test_where_room_cannot_be_told_nothing_is_taken(folder: Path, slices: list[Dataset]) -> None:
    def room() -> str:
        return "" if shutil.disk_usage(folder / "gone").free else "full"

    with Provider(folder, listen(), room=room) as provider:
        answer = send_raw(provider.port, slices[0])
        assert scu.echo(destination(provider.port)) < 5
    assert (answer.Status, answer.ErrorComment) == (
        0xA700,
        "it is not known whether there is space (FileNotFoundError)",
    )


# --- too much ---------------------------------------------------------------------------------------------------------


def test_an_association_brings_no_more_instances_than_it_may(folder: Path, slices: list[Dataset]) -> None:
    with Provider(folder, listen(limits=Limits(instances=2))) as provider:
        with associated(provider.port, slices[0]) as association:
            answers = [association.send_c_store(one) for one in slices]
        assert [answer.Status for answer in answers] == [0x0000, 0x0000, 0xA700, 0xA700]
        assert answers[3].ErrorComment == "more than 2 instances in one association"
        assert send_raw(provider.port, slices[2]).Status == 0x0000  # another association
    assert kept(folder) == 3


def test_an_association_brings_no_more_bytes_than_it_may(folder: Path, slices: list[Dataset]) -> None:
    with (
        Provider(folder, listen(limits=Limits(association_bytes=20 * MIB))) as provider,
        associated(provider.port, slices[0]) as association,
    ):
        statuses = []
        for number, one in enumerate(slices):
            one.Rows, one.Columns, one.PixelData = 2048, 2048, bytes([number]) * (8 * MIB)
            statuses.append(association.send_c_store(one).Status)
    assert statuses == [0x0000, 0x0000, 0xA700, 0xA700]
    assert kept(folder) == 2


def test_an_instance_that_is_too_large_is_refused_and_others_go_on(
    folder: Path, large: Dataset, slices: list[Dataset]
) -> None:
    with (
        Provider(folder, listen(limits=Limits(instance_bytes=MIB))) as provider,
        associated(provider.port, large) as association,
    ):
        answers = [association.send_c_store(one) for one in (slices[1], large, slices[2])]
    assert [answer.Status for answer in answers] == [0x0000, 0xA700, 0x0000]
    assert answers[1].ErrorComment == "an instance of more than 1048576 bytes"
    assert kept(folder) == 2


def test_what_is_refused_is_not_held_in_memory() -> None:
    sizes = list[int]()

    def grow(size: int, more: int) -> str:
        sizes.append(size)
        return "too large" if size > 3000 else ""

    intake = IncomingDataSet(lambda: "", grow)
    for _ in range(3):
        assert intake.write(b"x" * 1000) == 1000
    assert (intake.refused, intake.getvalue()) == ("", b"x" * 3000)
    for _ in range(3):
        assert intake.write(b"x" * 1000) == 1000  # read off the wire all the same
        assert (intake.refused, intake.getvalue()) == ("too large", b"")
    assert sizes == [1000, 2000, 3000, 4000]
    full = IncomingDataSet(lambda: "full", grow)
    assert full.write(b"x") == 1
    assert (full.refused, full.getvalue(), sizes[4:]) == ("full", b"", [])


def test_a_pdu_that_announces_gigabytes_ends_the_connection_at_once(folder: Path, slices: list[Dataset]) -> None:
    with Provider(folder, listen()) as provider:
        with socket.create_connection(("127.0.0.1", provider.port)) as hostile:
            hostile.sendall(struct.pack(">BBL", 0x01, 0, 2**32 - 1) + b"x" * 100)  # PS3.8 9.3.1: A-ASSOCIATE-RQ
            hostile.settimeout(5)  # the provider waits 10 s for a sender that is silent
            with contextlib.suppress(ConnectionResetError):
                assert hostile.recv(100) == b""
        assert send_raw(provider.port, slices[0]).Status == 0x0000


@pytest.mark.parametrize("most", [{"instances": 0}, {"association_bytes": -1}, {"instance_bytes": 0}])
def test_a_limit_that_lets_nothing_in_is_refused(most: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is (0|-1); at least 1 is needed, or None"):
        Limits(**most)


# --- strangers --------------------------------------------------------------------------------------------------------


def rejection(port: int, dataset: Dataset) -> tuple[int, int, int]:
    """Result, source and reason of a rejected association (PS3.8 table 9-21)."""
    with associated(port, dataset) as association:
        answer = association.acceptor.primitive
        assert association.is_rejected
        return answer.result, answer.result_source, answer.diagnostic


@pytest.mark.parametrize("networks", [("127.0.0.1",), ("192.0.2.0/24", "127.0.0.0/8"), ("::1", "127.0.0.1/32")])
def test_a_caller_from_a_listed_network_is_let_in(
    networks: tuple[str, ...], folder: Path, slices: list[Dataset]
) -> None:
    with Provider(folder, listen(networks=networks)) as provider:
        assert send_raw(provider.port, slices[0]).Status == 0x0000


def test_a_caller_from_elsewhere_is_rejected_as_not_recognised(folder: Path, slices: list[Dataset]) -> None:
    refused, rejected = list[str](), list[str]()
    called = {"refused": refused.append, "rejected": rejected.append}
    with Provider(folder, listen(networks=("192.0.2.0/24", "127.0.0.2")), **called) as provider:
        assert rejection(provider.port, slices[0]) == (1, 1, 3)
        message = r"\(Rejected Permanent: Calling AE title not recognised\).* our AE title MONAIUNET and this machine"
        with pytest.raises(NetworkError, match=message):
            scu.echo(destination(provider.port))
    assert kept(folder) == 0
    assert refused == []
    assert rejected[0] == "'SENDER' at 127.0.0.1: its address is in none of the allowed networks"
    assert len(rejected) == 2


def test_address_and_title_must_both_be_known(folder: Path, slices: list[Dataset]) -> None:
    rejected = list[str]()
    site = listen(networks=("127.0.0.1",), senders=("SENDER",))
    with Provider(folder, site, rejected=rejected.append) as provider:
        assert send_raw(provider.port, slices[0]).Status == 0x0000
        with pytest.raises(NetworkError, match="Calling AE title not recognised"):
            scu.echo(destination(provider.port, our_ae_title="OTHER"))
    assert rejected == ["'OTHER' at 127.0.0.1: Calling AE title not recognised"]
    with Provider(folder, listen(networks=("192.0.2.1",), senders=("SENDER",))) as provider:
        assert rejection(provider.port, slices[1]) == (1, 1, 3)


def test_a_stranger_with_the_right_certificate_is_rejected_too(folder: Path, tmp_path: Path) -> None:
    keys = make_certificates(tmp_path / "keys")
    with (
        Provider(folder, listen(networks=("192.0.2.1",), tls=keys.server)) as provider,
        pytest.raises(NetworkError, match="Calling AE title not recognised"),
    ):
        scu.echo(destination(provider.port, tls=keys.client))


def test_an_address_in_the_form_of_the_other_protocol_is_the_same_address() -> None:
    known = Listen(networks=("192.0.2.0/24", "2001:db8::/32"))
    assert [known.lets_in(one) for one in ("192.0.2.7", "::ffff:192.0.2.7", "2001:db8::5")] == [True] * 3
    assert [known.lets_in(one) for one in ("192.0.3.7", "::ffff:192.0.3.7", "2001:db9::5")] == [False] * 3
    assert Listen().lets_in("203.0.113.9")


@pytest.mark.parametrize("network", ["pacs.example.org", "192.0.2.0/33", "192.0.2.7/24", ""])
def test_what_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(DestinationError, match=r"an IP address or a network such as 192\.0\.2\.0/24 is needed"):
        Listen(networks=(network,))


def test_the_last_association_that_fits_is_let_in_and_the_next_is_rejected(folder: Path, slices: list[Dataset]) -> None:
    with Provider(folder, listen(most_senders=1)) as provider, associated(provider.port, slices[0]) as first:
        assert first.is_established
        assert rejection(provider.port, slices[0]) == (2, 3, 2)  # transient, local limit exceeded
        assert first.send_c_store(slices[0]).Status == 0x0000


# --- on the wire ------------------------------------------------------------------------------------------------------


def test_answers_leave_at_once(folder: Path, slices: list[Dataset]) -> None:
    with Provider(folder, listen()) as provider, associated(provider.port, slices[0]) as association:
        assert association.send_c_store(slices[0]).Status == 0x0000
        (ours,) = (
            one
            for one in threading.enumerate()
            if isinstance(one, Association) and one.is_acceptor and one.is_established
        )
        connection = ours.dul.socket.socket  # type: ignore[union-attr]
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0  # type: ignore[union-attr]


def test_two_services_for_one_operation_are_refused() -> None:
    services = [availability_service(lambda one: None), availability_service(lambda one: None)]
    with (
        pytest.raises(ValueError, match="2 services are for 1 operations"),
        Provider(None, listen(), services=services),
    ):
        pass


def test_a_provider_without_a_store_takes_no_instances(slices: list[Dataset]) -> None:
    with Provider(None, listen()) as provider:
        assert scu.echo(destination(provider.port)) < 5
        with associated(provider.port, slices[0]) as association:
            assert not association.is_established

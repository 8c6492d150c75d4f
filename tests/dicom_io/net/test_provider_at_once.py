"""Several senders at one time, files that others left, and content that grows: the store holds what it acknowledged, whole."""

from __future__ import annotations

import contextlib
import copy
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from net_peers import ct_series, same_data_set, send_raw
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import P_DATA

from dicom_io.net import instance_store
from dicom_io.net.instance_file import InstanceRefusedError
from dicom_io.net.instance_store import INCOMING, InstanceStore
from dicom_io.net.scp import Listen, Provider
from dicom_io.reading import bounded

OURS = Listen("ARCHIVE", port=0, idle_s=5.0)
MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def provider(folder: Path) -> Iterator[Provider]:
    with Provider(folder, OURS) as found:
        yield found


@pytest.fixture
def slices(tmp_path: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in ct_series(tmp_path / "source", 9)]


def kept_in(folder: Path) -> dict[str, Path]:
    """The instances by their UIDs. There is nothing else in the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix != ".dcm"] == []
    return {path.stem: path for path in files}


def file_bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def all_at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """What each job gives back; all are begun together, each in a thread of its own."""
    ready, answers = threading.Barrier(len(jobs)), dict[int, Any]()

    def work(number: int) -> None:
        ready.wait(10)
        answers[number] = jobs[number]()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == len(jobs), "a job raised, see above"
    return [answers[number] for number in range(len(jobs))]


@contextlib.contextmanager
def associated(port: int, dataset: Dataset) -> Iterator[Association]:
    ae = AE("SENDER")
    ae.add_requested_context(dataset.SOPClassUID, [dataset.file_meta.TransferSyntaxUID])
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    association = ae.associate("127.0.0.1", port, ae_title="ARCHIVE")
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def send_all(port: int, datasets: list[Dataset]) -> dict[str, int]:
    """SOP Instance UID -> status, all over one association."""
    with associated(port, datasets[0]) as association:
        return {str(one.SOPInstanceUID): association.send_c_store(one).Status for one in datasets}


# --- several senders --------------------------------------------------------------------------------------------------


def test_two_associations_at_once_leave_every_instance_that_was_acknowledged(
    provider: Provider, folder: Path, slices: list[Dataset]
) -> None:
    own = [copy.deepcopy(slices), copy.deepcopy(slices)]
    first, second = all_at_once(
        lambda: send_all(provider.port, own[0][:6]), lambda: send_all(provider.port, own[1][:2:-1])
    )
    assert set((first | second).values()) == {0x0000}
    kept = kept_in(folder)
    assert kept.keys() == first.keys() | second.keys()
    assert len(kept) == 9
    assert all(same_data_set(kept[str(one.SOPInstanceUID)], one) for one in slices)


def test_one_uid_with_two_contents_at_once_keeps_the_one_that_was_acknowledged(
    provider: Provider, folder: Path, slices: list[Dataset]
) -> None:
    for number, one in enumerate(slices):
        other = copy.deepcopy(one)
        other.PixelData = np.roll(one.pixel_array, 1).tobytes()
        jobs = [lambda data=data: send_raw(provider.port, data).Status for data in (one, other)]
        answers = all_at_once(*jobs)  # type: ignore[arg-type]
        assert sorted(answers) == [0x0000, 0x0111]  # PS3.7 C.5.6 Duplicate SOP Instance
        kept = kept_in(folder)
        assert len(kept) == number + 1
        assert same_data_set(kept[str(one.SOPInstanceUID)], (one, other)[answers.index(0x0000)])


class _LeftError(Exception):
    """Raised in a sender that goes away."""


def _abort(association: Association) -> None:
    association.abort()


def _cut(association: Association) -> None:
    association.dul.socket.socket.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("leave", [_abort, _cut])
def test_a_sender_that_leaves_in_mid_transfer_leaves_nothing_and_disturbs_nobody(
    leave: Callable[[Association], None], provider: Provider, folder: Path, slices: list[Dataset]
) -> None:
    large = copy.deepcopy(slices[-1])
    large.Rows, large.Columns = 512, 512
    large.PixelData = bytes(range(256)) * (2 * 512 * 512 // 256)  # nine PDUs of 64 KiB

    def go_away() -> int:
        sent = 0
        with associated(provider.port, large) as association:
            send = association.dul.send_pdu

            def send_some(primitive: Any) -> None:
                nonlocal sent
                sent += isinstance(primitive, P_DATA)
                if sent == 5:
                    leave(association)
                    raise _LeftError
                send(primitive)
                time.sleep(0.02)

            association.dul.send_pdu = send_some  # type: ignore[method-assign]
            with contextlib.suppress(_LeftError):
                association.send_c_store(large)
            association.dul.send_pdu = send  # type: ignore[method-assign]
        return sent

    sent, acknowledged = all_at_once(go_away, lambda: send_all(provider.port, slices[:-1]))
    assert sent == 5
    assert set(acknowledged.values()) == {0x0000}
    kept = kept_in(folder)
    assert kept.keys() == acknowledged.keys()
    assert all(same_data_set(kept[str(one.SOPInstanceUID)], one) for one in slices[:-1])
    assert send_raw(provider.port, large).Status == 0x0000
    assert same_data_set(kept_in(folder)[str(large.SOPInstanceUID)], large)


# --- what others leave ------------------------------------------------------------------------------------------------


def test_a_name_that_another_process_uses_is_left_alone(
    folder: Path, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["taken", "taken", "free"])
    monkeypatch.setattr(instance_store, "uuid4", lambda: SimpleNamespace(hex=next(names)))
    other = folder / INCOMING / "taken.part"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"half of what another process receives")
    assert InstanceStore(folder).put(file_bytes(slices[0])).is_new
    assert other.read_bytes() == b"half of what another process receives"
    assert [path.name for path in other.parent.iterdir()] == ["taken.part"]


def test_tidying_at_the_worst_moment_costs_no_instance(
    folder: Path, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, times = Path.mkdir, 0

    def made_and_tidied(own: Path, *args: Any, **options: Any) -> None:
        nonlocal times
        make(own, *args, **options)
        if own.name == INCOMING and times < 3:
            times += 1
            InstanceStore(folder).tidy()
            assert not own.exists()

    monkeypatch.setattr(Path, "mkdir", made_and_tidied)
    assert InstanceStore(folder).put(file_bytes(slices[0])).is_new
    assert times == 3


def test_many_who_put_and_many_who_tidy_lose_nothing(folder: Path, slices: list[Dataset]) -> None:
    contents, done = [file_bytes(one) for one in slices], threading.Event()

    def tidy() -> None:
        while not done.is_set():
            InstanceStore(folder).tidy()

    def put() -> list[bool]:
        try:
            return [InstanceStore(folder).put(content).is_new for content in contents * 3]
        finally:
            done.set()

    new = [sum(answer) for answer in all_at_once(put, put, tidy) if answer is not None]
    assert sum(new) == len(slices)
    assert len(kept_in(folder)) == len(slices)


def test_a_received_file_may_be_read_by_whom_the_umask_lets(
    folder: Path, slices: list[Dataset], tmp_path: Path
) -> None:
    (tmp_path / "usual").touch()
    kept = InstanceStore(folder).put(file_bytes(slices[0])).path
    assert kept.stat().st_mode == (tmp_path / "usual").stat().st_mode


# --- content that grows -----------------------------------------------------------------------------------------------


def deflated(header: Dataset, head: bytes, unit: bytes, count: int) -> bytes:
    """A file in the deflated transfer syntax whose data set ends with `head` and `count` times `unit`."""
    meta = copy.deepcopy(header.file_meta)
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    start = DicomBytesIO()
    start.is_little_endian, start.is_implicit_VR = True, False
    write_file_meta_info(start, meta)
    machine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start_of_data, block = (
        machine.compress(part) + machine.flush(zlib.Z_FULL_FLUSH)  # refers to nothing before, so it can be repeated
        for part in ((encode(header, False, True) or b"") + head, unit)
    )
    body = start_of_data + block * count + machine.flush()
    return b"\0" * 128 + b"DICM" + start.getvalue() + body + b"\0" * (len(body) % 2)


def without_pixels(dataset: Dataset) -> Dataset:
    bare = copy.deepcopy(dataset)
    del bare.PixelData
    return bare


def with_pixels(dataset: Dataset, mebibytes: int) -> bytes:
    head = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, mebibytes * MIB)
    return deflated(without_pixels(dataset), head, bytes(MIB), mebibytes)


def test_a_deflated_data_set_that_becomes_too_large_is_refused_before_it_takes_memory(
    folder: Path, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MAX_INFLATED_BYTES", 8 * MIB)
    small, bomb = with_pixels(slices[0], 2), with_pixels(slices[1], 600)
    assert len(bomb) < MIB
    store = InstanceStore(folder)
    assert store.put(small).is_new
    tracemalloc.start()
    try:
        with pytest.raises(InstanceRefusedError) as refusal:
            store.put(bomb)
        assert tracemalloc.get_traced_memory()[1] < 200 * MIB
    finally:
        tracemalloc.stop()
    assert refusal.value.status == 0xC000
    assert kept_in(folder).keys() == {str(slices[0].SOPInstanceUID)}


def test_a_mask_that_was_deflated_a_thousand_times_is_taken_and_compared_without_lying_in_memory(
    folder: Path, slices: list[Dataset]
) -> None:
    first = with_pixels(slices[0], 120)
    head = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 120 * MIB)
    other = deflated(without_pixels(slices[0]), head + b"\1" + bytes(MIB - 1), bytes(MIB), 119)
    assert len(first) < MIB / 4
    store = InstanceStore(folder)
    tracemalloc.start()
    try:
        assert store.put(first).is_new
        assert not store.put(first + b"\0").is_new  # the same data set in other bytes
        with pytest.raises(InstanceRefusedError, match="other content is kept under the UID"):
            store.put(other)
        assert tracemalloc.get_traced_memory()[1] < 80 * MIB
        with pytest.raises(InstanceRefusedError, match="deflated bytes become more than 268435456, the most"):
            store.put(with_pixels(slices[1], 300))
        with pytest.raises(InstanceRefusedError, match="deflated bytes become more than 100000000, the most"):
            InstanceStore(folder / "small", most_bytes=1e8).put(first)
        assert tracemalloc.get_traced_memory()[1] < 80 * MIB
    finally:
        tracemalloc.stop()
    assert kept_in(folder).keys() == {str(slices[0].SOPInstanceUID)}


def test_a_data_set_of_nothing_but_items_is_refused(
    folder: Path, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded.BoundedFile, "items_left", 3000)
    head = struct.pack("<HH2sHL", 0x0040, 0x0555, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    bare = Dataset()
    bare.file_meta = slices[0].file_meta
    bare.SOPClassUID, bare.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.66", "1.2.3"  # Raw Data: it needs no pixels
    bare.StudyInstanceUID, bare.SeriesInstanceUID = slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    few, many = (deflated(bare, head + item * count, end, 1) for count in (2000, 4000))
    with pytest.raises(InstanceRefusedError) as refusal:
        InstanceStore(folder).put(many)
    assert refusal.value.status == 0xC000
    assert kept_in(folder) == {}
    assert InstanceStore(folder).put(few).is_new


def test_the_same_deflated_instance_twice_is_the_same(folder: Path, slices: list[Dataset]) -> None:
    content, store = with_pixels(slices[0], 1), InstanceStore(folder)
    assert [store.put(content).is_new for _ in range(2)] == [True, False]
    head = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, MIB)
    other = deflated(without_pixels(slices[0]), head, b"\1" * MIB, 1)
    with pytest.raises(InstanceRefusedError, match="other content is kept"):
        store.put(other)

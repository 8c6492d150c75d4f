"""Storage commitment: "committed" is said only of what is on the disk, to who asked, and believed only where it is said."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commitment_peers
import pydicom
import pytest
from commitment_peers import (
    MR_IMAGE_STORAGE,
    OURS,
    Requestor,
    action,
    ask,
    asked_for,
    failed,
    provider,
    there,
    uid,
    until,
)
from net_peers import CT_IMAGE_STORAGE, ct_series
from ports import free_port
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_io.errors import NetworkError
from dicom_io.net import commitment_provider, dimse_n, limits
from dicom_io.net.commitment_provider import (
    CommitmentProvider,
    CommitmentRequest,
    commitment_report,
    event_type,
    send_report,
)
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.dimse_n import RequestRefusedError
from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.scp import Provider

slices, store = commitment_peers.slices, commitment_peers.store  # fixtures


@pytest.fixture
def requestor() -> Iterator[Requestor]:
    with Requestor().listening() as made:
        yield made


# --- what is judged ---------------------------------------------------------------------------------------------------


def test_what_is_there_with_its_class_is_committed(store: InstanceStore) -> None:
    report = commitment_report(asked_for(*((CT_IMAGE_STORAGE, uid(k)) for k in range(3))), store)
    assert there(report) == [uid(0), uid(1), uid(2)]
    assert "FailedSOPSequence" not in report
    assert (event_type(report), report.TransactionUID) == (1, "1.2.3")


def test_what_is_not_there_or_of_another_class_is_named_with_its_reason(store: InstanceStore) -> None:
    request = asked_for((CT_IMAGE_STORAGE, uid(0)), (CT_IMAGE_STORAGE, "1.2.9"), (MR_IMAGE_STORAGE, uid(1)))
    report = commitment_report(request, store)
    assert there(report) == [uid(0)]
    assert failed(report) == {"1.2.9": 0x0112, uid(1): 0x0119}  # PS3.3 C.14.1.1
    assert event_type(report) == 2


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_short_is_not_committed(share: float, store: InstanceStore) -> None:
    (file,) = store.find([uid(0)])[uid(0)]
    os.truncate(file, int(file.stat().st_size * share))
    report = commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0)), (CT_IMAGE_STORAGE, uid(1))), store)
    assert (there(report), failed(report)) == ([uid(1)], {uid(0): 0x0110})


def test_a_file_that_holds_another_instance_than_its_name_says_is_not_committed(store: InstanceStore) -> None:
    (first,), (second,) = store.find([uid(0)])[uid(0)], store.find([uid(1)])[uid(1)]
    os.replace(first, second)
    report = commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0)), (CT_IMAGE_STORAGE, uid(1))), store)
    assert failed(report) == {uid(0): 0x0112, uid(1): 0x0110}
    assert "ReferencedSOPSequence" not in report


def test_an_unfinished_file_does_not_count(store: InstanceStore) -> None:
    (file,) = store.find([uid(0)])[uid(0)]
    hidden = store.folder / ".incoming" / "series" / file.name
    hidden.parent.mkdir(parents=True)
    os.replace(file, hidden)
    assert failed(commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0))), store)) == {uid(0): 0x0112}


def test_an_instance_in_two_studies_counts_if_one_of_the_files_is_whole(store: InstanceStore) -> None:
    dataset = pydicom.dcmread(store.find([uid(0)])[uid(0)][0])
    dataset.StudyInstanceUID += ".7"
    other = store.folder / dataset.StudyInstanceUID / dataset.SeriesInstanceUID / f"{uid(0)}.dcm"
    other.parent.mkdir(parents=True)
    dataset.save_as(other)
    assert len(store.find([uid(0)])[uid(0)]) == 2
    os.truncate(other, 1000)
    assert there(commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0))), store)) == [uid(0)]


# --- a request and its report -----------------------------------------------------------------------------------------


def test_a_request_is_answered_at_once_and_reported_on_to_the_address_of_who_asked(
    store: InstanceStore, requestor: Requestor
) -> None:
    transaction = generate_uid()
    with provider(store, requestor.addresses) as port:
        wanted = action(
            transaction, (CT_IMAGE_STORAGE, uid(0)), (CT_IMAGE_STORAGE, uid(0)), (CT_IMAGE_STORAGE, "1.2.9")
        )
        assert requestor.ask(port, wanted) == 0x0000
        assert until(lambda: requestor.reports)
    ((kind, report, is_own),) = requestor.reports
    assert (kind, is_own, report.TransactionUID) == (2, True, transaction)
    assert (there(report), failed(report)) == ([uid(0)], {"1.2.9": 0x0112})


def test_a_requestor_that_passes_over_role_selection_gets_its_report(store: InstanceStore) -> None:
    with Requestor(roles=False).listening() as plain, provider(store, plain.addresses) as port:
        assert plain.ask(port, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
        assert until(lambda: plain.reports)
    assert there(plain.reports[0][1]) == [uid(0)]


def test_without_an_address_the_report_comes_over_the_same_association(store: InstanceStore) -> None:
    asker = Requestor()
    with provider(store, {}) as port, asker.associated(port) as association:
        assert ask(association, action("1.2.3", (CT_IMAGE_STORAGE, uid(2)))) == 0x0000
        assert until(lambda: asker.reports)
        assert association.is_established
    ((kind, report, is_own),) = asker.reports
    assert (kind, there(report), is_own) == (1, [uid(2)], False)


def test_a_report_over_an_association_that_goes_on_storing_takes_no_request_for_its_answer(
    store: InstanceStore, tmp_path: Path
) -> None:
    asker, many = Requestor(), ct_series(tmp_path / "many", 40, SeriesInstanceUID="1.2.77")
    with provider(store, {}) as port, asker.associated(port, CT_IMAGE_STORAGE, together=True) as association:
        statuses = []
        for number, path in enumerate(many):
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.77.{number + 1}"
            statuses.append(association.send_c_store(dataset).Status)
            if number % 10 == 0:
                assert ask(association, action(f"1.2.3.{number}", (CT_IMAGE_STORAGE, f"1.2.77.{number + 1}"))) == 0x0000
        assert until(lambda: len(asker.reports) == 4)
    assert statuses == [0x0000] * 40
    assert [there(report) for _, report, _ in asker.reports] == [[f"1.2.77.{n}"] for n in (1, 11, 21, 31)]


def test_the_request_is_durable_before_it_is_answered(store: InstanceStore, requestor: Requestor) -> None:
    kept: list[CommitmentRequest] = []

    def accepted(request: CommitmentRequest) -> None:
        time.sleep(0.3)
        kept.append(request)

    commitments = CommitmentProvider(store, requestor.addresses, accepted)
    with Provider(store, OURS, services=[commitments.service]) as made:
        assert requestor.ask(made.port, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
        assert kept == [asked_for((CT_IMAGE_STORAGE, uid(0)))]
        assert requestor.reports == []  # who gives `accepted` says when
        assert there(commitments.report(kept[0])) == [uid(0)]
    assert [there(report) for _, report, _ in requestor.reports] == [[uid(0)]]


def test_no_report_overtakes_the_answer(store: InstanceStore) -> None:
    asker, threads = Requestor(), list[threading.Thread]()

    def accepted(request: CommitmentRequest) -> None:
        threads.append(threading.Thread(target=commitments.report, args=(request,)))
        threads[0].start()
        time.sleep(0.3)

    commitments = CommitmentProvider(store, {}, accepted)
    with Provider(store, OURS, services=[commitments.service]) as made, asker.associated(made.port) as association:
        assert ask(association, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
        assert until(lambda: asker.reports)
        threads[0].join(10)
    assert asker.messages == ["N_ACTION_RSP", "N_EVENT_REPORT_RQ"]


def test_a_request_that_cannot_be_made_durable_is_not_answered_with_success(store: InstanceStore) -> None:
    def full(request: CommitmentRequest) -> None:
        raise OSError(28, "No space left on device")

    def busy(request: CommitmentRequest) -> None:
        raise RequestRefusedError(0x0213, "too many requests")

    for accepted, status in ((full, 0x0110), (busy, 0x0213)):
        with provider(store, {}, accepted=accepted) as port:
            assert Requestor().ask(port, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == status


def test_the_same_request_twice_is_reported_twice(store: InstanceStore, requestor: Requestor) -> None:
    wanted = action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))
    with provider(store, requestor.addresses) as port:
        assert [requestor.ask(port, wanted), requestor.ask(port, wanted)] == [0x0000, 0x0000]
        assert until(lambda: len(requestor.reports) == 2)
    assert [there(report) for _, report, _ in requestor.reports] == [[uid(0)], [uid(0)]]


def test_a_transaction_that_waits_is_not_taken_with_other_references(
    store: InstanceStore, requestor: Requestor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment_provider, "PAUSE_S", 0.5)
    requestor.status = 0x0110  # so that it waits
    with provider(store, requestor.addresses) as port:
        assert requestor.ask(port, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
        assert requestor.ask(port, action("1.2.3", (CT_IMAGE_STORAGE, uid(1)))) == 0x0131  # PS3.3 C.14.1.1
        requestor.status = 0x0000
        assert until(lambda: requestor.reports)
    assert [there(report) for _, report, _ in requestor.reports] == [[uid(0)]]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda wanted: delattr(wanted, "TransactionUID"), 0x0115),
        (lambda wanted: setattr(wanted["TransactionUID"], "_value", "../../etc"), 0x0115),
        (lambda wanted: delattr(wanted, "ReferencedSOPSequence"), 0x0115),
        (lambda wanted: setattr(wanted, "ReferencedSOPSequence", []), 0x0115),
        (lambda wanted: delattr(wanted.ReferencedSOPSequence[1], "ReferencedSOPClassUID"), 0x0115),
        (
            lambda wanted: setattr(wanted.ReferencedSOPSequence[1]["ReferencedSOPInstanceUID"], "_value", "../1.2"),
            0x0115,
        ),
    ],
)
def test_a_request_without_proper_uids_is_refused_whole(
    change: Callable[[Dataset], None], status: int, store: InstanceStore
) -> None:
    wanted = action("1.2.3", (CT_IMAGE_STORAGE, uid(0)), (CT_IMAGE_STORAGE, uid(1)))
    change(wanted)
    kept: list[CommitmentRequest] = []
    with provider(store, {}, accepted=kept.append) as port:
        assert Requestor().ask(port, wanted) == status
    assert kept == []


def test_another_action_or_instance_is_refused(store: InstanceStore) -> None:
    wanted = action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))
    with provider(store, {}) as port:
        assert Requestor().ask(port, wanted, action_type=2) == 0x0123
        assert Requestor().ask(port, wanted, instance="1.2.3") == 0x0112


def test_a_request_of_too_many_items_is_refused_unread(store: InstanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse_n, "MAX_ITEMS", 20)
    wanted = action("1.2.3", *((CT_IMAGE_STORAGE, f"1.2.9.{k + 1}") for k in range(20)))
    kept: list[CommitmentRequest] = []
    with provider(store, {}, accepted=kept.append) as port:
        assert Requestor().ask(port, wanted) == 0x0000
        wanted.ReferencedSOPSequence.append(Dataset())
        assert Requestor().ask(port, wanted) == 0x0213
    assert [len(one.references) for one in kept] == [20]


def test_a_request_that_is_too_long_is_refused_unread(store: InstanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGEST_OTHER", 5000)
    few, many = (action("1.2.3", *((CT_IMAGE_STORAGE, f"1.2.9.{k + 1}") for k in range(n))) for n in (20, 100))
    kept: list[CommitmentRequest] = []
    with provider(store, {}, accepted=kept.append) as port:
        assert [Requestor().ask(port, many), Requestor().ask(port, few)] == [0x0213, 0x0000]
    assert [len(one.references) for one in kept] == [20]


def test_a_request_in_the_context_of_another_class_is_refused(store: InstanceStore, slices: list[Path]) -> None:
    with provider(store, {}) as port, Requestor().associated(port, CT_IMAGE_STORAGE) as association:
        other = next(one for one in association.accepted_contexts if one.abstract_syntax == CT_IMAGE_STORAGE)
        find = association._get_valid_context
        association._get_valid_context = lambda *args, **options: other  # type: ignore[method-assign]
        assert ask(association, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0119
        association._get_valid_context = find  # type: ignore[method-assign]
        assert association.send_c_store(pydicom.dcmread(slices[0])).Status == 0x0000


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_requestor_that_leaves_after_asking_is_reported_to_at_its_address(
    store: InstanceStore, requestor: Requestor
) -> None:
    with provider(store, requestor.addresses) as port:
        with requestor.associated(port) as association:
            assert ask(association, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
            association.abort()
        assert until(lambda: requestor.reports)
    assert there(requestor.reports[0][1]) == [uid(0)]


def test_a_requestor_without_an_address_that_leaves_gets_no_report_and_disturbs_nobody(store: InstanceStore) -> None:
    kept: list[CommitmentRequest] = []
    commitments = CommitmentProvider(store, {}, kept.append)
    with Provider(store, OURS, services=[commitments.service]) as made:
        gone, stays = Requestor(), Requestor()
        with gone.associated(made.port) as association:
            assert ask(association, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
            association.abort()
        with stays.associated(made.port) as association:
            assert ask(association, action("1.2.4", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
            with pytest.raises(NetworkError, match=r"SENDER has no address, and the association .* is closed"):
                commitments.report(kept[0])
            commitments.report(kept[1])
    assert (len(gone.reports), len(stays.reports)) == (0, 1)


def test_a_requestor_that_dies_while_it_is_told_is_told_again(store: InstanceStore, requestor: Requestor) -> None:
    deaths = 0
    take = requestor._take

    def die_first(event: Any, is_own: bool) -> tuple[int, None]:
        nonlocal deaths
        if not deaths:
            deaths += 1
            event.assoc.abort()
            return 0x0110, None
        return take(event, is_own)

    requestor._take = die_first  # type: ignore[method-assign]
    with requestor.listening() as again, provider(store, again.addresses) as port:
        assert requestor.ask(port, action("1.2.3", (CT_IMAGE_STORAGE, uid(0)))) == 0x0000
        assert until(lambda: requestor.reports)
    assert deaths == 1
    assert there(requestor.reports[0][1]) == [uid(0)]


def test_a_requestor_that_cannot_be_reached_stays_to_be_reported(store: InstanceStore) -> None:
    absent = {"SENDER": Destination("absent", Dimse("127.0.0.1", free_port(), "SENDER"), connect_s=2)}
    commitments = CommitmentProvider(store, absent, lambda request: None)
    with pytest.raises(NetworkError, match="refused the connection"):
        commitments.report(asked_for((CT_IMAGE_STORAGE, uid(0))))


def test_a_report_that_is_not_taken_is_a_failure_with_its_meaning(store: InstanceStore, requestor: Requestor) -> None:
    requestor.status = 0x0213
    report = commitment_report(asked_for((CT_IMAGE_STORAGE, uid(0))), store)
    with pytest.raises(
        NetworkError, match=r"answered a commitment report with 0x0213 \(Failure: Resource Limitation\)"
    ):
        send_report(requestor.addresses["SENDER"], report)


def test_threads_are_gone_when_the_provider_is(store: InstanceStore, requestor: Requestor) -> None:
    before = threading.active_count()
    with provider(store, requestor.addresses) as port:
        requestor.ask(port, action("1.2.3", (CT_IMAGE_STORAGE, uid(0))))
        assert until(lambda: requestor.reports)
    assert until(lambda: threading.active_count() <= before)

"""Instance availability notifications: taken whole or refused with the attribute's name, and only ONLINE counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from net_peers import CT_IMAGE_STORAGE, PATIENT, SERIES, STUDY, ct_series, send_raw
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE

from dicom_io.net.availability import Availability, NotifiedInstance, availability_service
from dicom_io.net.commitment_provider import CommitmentProvider
from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.scp import Listen, Provider

NOTIFICATION = "1.2.840.10008.5.1.4.33"  # PS3.4 R.3.3
OURS = Listen("ARCHIVE", port=0, idle_s=10.0)


def notification() -> Dataset:
    """One study with two series; the first has an instance of each availability."""
    made = Dataset()
    made.ReferencedPerformedProcedureStepSequence = Sequence([])
    made.StudyInstanceUID = STUDY
    made.ReferencedSeriesSequence = Sequence(
        [series(SERIES, "ONLINE", "NEARLINE", "OFFLINE", "UNAVAILABLE"), series(f"{SERIES}.7", "NEARLINE")]
    )
    return made


def series(uid: str, *codes: str) -> Dataset:
    made = Dataset()
    made.SeriesInstanceUID, made.ReferencedSOPSequence = uid, Sequence([])
    for number, code in enumerate(codes):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT_IMAGE_STORAGE, f"{uid}.{number + 1}"
        item.InstanceAvailability, item.RetrieveAETitle = code, "PACS"
        made.ReferencedSOPSequence.append(item)
    return made


def notify(port: int, what: Dataset, uid: str | None = "1.2.3.4") -> tuple[Dataset, Dataset | None]:
    """Status and attributes of the answer to an N-CREATE by pynetdicom."""
    ae = AE("PACS")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
    ae.add_requested_context(NOTIFICATION, ImplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title="ARCHIVE")
    assert association.is_established
    try:
        return association.send_n_create(what, NOTIFICATION, uid)  # type: ignore[no-any-return]
    finally:
        association.release()


@contextmanager
def provider(notified: Callable[[Availability], None]) -> Any:
    with Provider(None, OURS, services=[availability_service(notified)]) as made:
        yield made.port


def test_a_notification_arrives_as_it_was_sent() -> None:
    seen: list[Availability] = []
    with provider(seen.append) as port:
        assert notify(port, notification())[0].Status == 0x0000
    (one,) = seen
    assert (one.ae_title, one.study_instance_uid, list(one.series)) == ("PACS", STUDY, [SERIES, f"{SERIES}.7"])
    assert one.series[SERIES][1] == NotifiedInstance(CT_IMAGE_STORAGE, f"{SERIES}.2", "NEARLINE", "PACS")
    assert len(one.series[SERIES]) == 4


def test_only_what_is_online_can_be_had_at_once() -> None:
    seen: list[Availability] = []
    with provider(seen.append) as port:
        notify(port, notification())
    assert seen[0].online == {SERIES: (f"{SERIES}.1",)}


def test_a_series_may_stand_in_several_items() -> None:
    seen, what = list[Availability](), notification()
    what.ReferencedSeriesSequence.append(series(f"{SERIES}.7", "ONLINE"))
    with provider(seen.append) as port:
        assert notify(port, what)[0].Status == 0x0000
    assert [one.availability for one in seen[0].series[f"{SERIES}.7"]] == ["NEARLINE", "ONLINE"]


def test_it_is_answered_with_success_only_once_it_is_taken() -> None:
    def full(one: Availability) -> None:
        raise OSError(28, "No space left on device")

    with provider(full) as port:
        answer = notify(port, notification())[0]
    assert (answer.Status, answer.ErrorComment) == (0x0110, "the request could not be carried out (OSError)")


def test_a_notification_without_a_uid_is_given_one() -> None:
    with provider(lambda one: None) as port:
        status, _ = notify(port, notification(), None)
    assert status.Status == 0x0000


def first(what: Dataset) -> Dataset:
    found: Dataset = what.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    return found


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        (lambda what: delattr(what, "StudyInstanceUID"), 0x0120, "StudyInstanceUID is missing"),
        (lambda what: setattr(what, "StudyInstanceUID", ""), 0x0121, "StudyInstanceUID is empty"),
        (lambda what: setattr(what["StudyInstanceUID"], "_value", "../1"), 0x0106, "StudyInstanceUID is not a UID"),
        (lambda what: delattr(what, "ReferencedSeriesSequence"), 0x0120, "ReferencedSeriesSequence is missing"),
        (lambda what: setattr(what, "ReferencedSeriesSequence", []), 0x0121, "ReferencedSeriesSequence is empty"),
        (
            lambda what: setattr(what.ReferencedSeriesSequence[1], "ReferencedSOPSequence", []),
            0x0121,
            "ReferencedSOPSequence is empty",
        ),
        (lambda what: delattr(first(what), "ReferencedSOPInstanceUID"), 0x0120, "ReferencedSOPInstanceUID is missing"),
        (lambda what: delattr(first(what), "RetrieveAETitle"), 0x0120, "RetrieveAETitle is missing"),
        (lambda what: delattr(first(what), "InstanceAvailability"), 0x0120, "InstanceAvailability is missing"),
        (
            lambda what: setattr(first(what), "InstanceAvailability", "SOON"),
            0x0106,
            "InstanceAvailability is not one of its four values",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(change: Callable[[Dataset], None], status: int, named: str) -> None:
    seen, what = list[Availability](), notification()
    change(what)
    with provider(seen.append) as port:
        answer = notify(port, what)[0]
    assert (answer.Status, answer.ErrorComment) == (status, named)  # PS3.7 C.5
    assert seen == []


def test_no_value_of_a_notification_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    what = notification()
    what.PatientName, what.PatientID = (
        PATIENT["PatientName"],
        PATIENT["PatientID"],
    )  # forbidden there, sent all the same
    first(what)["InstanceAvailability"]._value = what["StudyInstanceUID"]._value = PATIENT["PatientID"]
    with caplog.at_level("DEBUG"), provider(lambda one: None) as port:
        assert notify(port, what)[0].Status == 0x0106
        what["StudyInstanceUID"]._value = STUDY
        assert notify(port, what)[0].Status == 0x0106
    assert caplog.text
    assert not any(value in caplog.text for value in PATIENT.values())


def test_all_services_live_in_one_provider(tmp_path: Path) -> None:
    seen: list[Availability] = []
    store = InstanceStore(tmp_path / "store")
    dataset = pydicom.dcmread(ct_series(tmp_path / "source", 1)[0])
    services = [availability_service(seen.append), CommitmentProvider(store, {}).service]
    with Provider(store, OURS, services=services) as made:
        assert send_raw(made.port, dataset).Status == 0x0000
        assert notify(made.port, notification())[0].Status == 0x0000
    assert len(seen) == 1

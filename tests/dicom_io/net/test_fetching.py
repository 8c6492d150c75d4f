"""C-FIND, C-GET and C-MOVE as user, against a small archive that answers as it is told to."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from net_peers import (
    PATIENT,
    PLAIN,
    SERIES,
    STUDY,
    Archive,
    Receive,
    ct_series,
    destination,
    make_certificates,
    mute_listener,
    same_data_set,
)
from ports import free_port
from pydicom.uid import RLELossless

from dicom_io.errors import NetworkError
from dicom_io.net.destination import Destination
from dicom_io.net.exchange import echo, fetch, find
from dicom_io.net.instance_store import Stored
from dicom_io.net.query import Query, QueryError
from dicom_io.net.retrieval import Retrieval
from dicom_io.net.scp import Listen, Provider
from dicom_io.net.tls import server_context

OTHER_STUDY, OTHER_SERIES = "1.2.826.0.1.3680043.8.498.71", "1.2.826.0.1.3680043.8.498.72"
FIRST, SECOND = Query(study_instance_uid=STUDY), Query(study_instance_uid=OTHER_STUDY)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two studies of 3 and 2 CT slices."""
    folder = tmp_path_factory.mktemp("held")
    other = {"StudyInstanceUID": OTHER_STUDY, "SeriesInstanceUID": OTHER_SERIES, "PatientID": "OTHER"}
    files = ct_series(folder / "one", 3)
    for number, path in enumerate(ct_series(folder / "two", 2, **other)):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{OTHER_SERIES}.{number}"
        dataset.save_as(path)
        files.append(path)
    return files


def moving(archive: Archive, **more: Any) -> Destination:
    """A destination that fetches by C-MOVE to a free port, which the archive knows."""
    port = free_port()
    archive.addresses = {"MONAIUNET": port}
    return destination(archive.port, retrieve="move", receive=Receive(port=port), **more)


def relative(files: tuple[Path, ...], folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in files)


# --- find -------------------------------------------------------------------------------------------------------------


def test_studies_series_and_images_are_found(held: list[Path]) -> None:
    with Archive(held=held).running() as archive:
        there = destination(archive.port)
        studies = find(there, Query())
        series = find(there, Query("series", STUDY))
        images = find(there, Query("image", OTHER_STUDY, OTHER_SERIES))
    assert [one.StudyInstanceUID for one in studies] == [STUDY, OTHER_STUDY]
    assert studies[0].PatientName == PATIENT["PatientName"]
    assert [(one.SeriesInstanceUID, one.Modality) for one in series] == [(SERIES, "CT")]
    assert [one.SOPInstanceUID for one in images] == [f"{OTHER_SERIES}.0", f"{OTHER_SERIES}.1"]


def test_conditions_reach_the_archive_as_they_are_meant(held: list[Path]) -> None:
    query = Query(
        patient_id="ID-1",
        patient_name="Müller*",
        accession_number="A",
        study_date="20260101-",
        modality="MR",
        study_description="x",
    )
    with Archive(held=held).running() as archive:
        find(destination(archive.port), query)
        find(destination(archive.port), Query("series", STUDY, modality="SEG"))
    asked, below = archive.queries
    assert (asked.QueryRetrieveLevel, asked.PatientID, asked.AccessionNumber) == ("STUDY", "ID-1", "A")
    assert asked.PatientName == "Müller*"
    assert asked.SpecificCharacterSet == "ISO_IR 192"
    assert (asked.StudyDate, asked.ModalitiesInStudy, asked.StudyDescription) == ("20260101-", "MR", "x")
    assert asked.StudyInstanceUID == ""
    assert (below.QueryRetrieveLevel, below.Modality, below.StudyInstanceUID) == ("SERIES", "SEG", STUDY)
    assert "PatientName" not in below


def test_a_limit_stops_the_archive(held: list[Path]) -> None:
    with Archive(held=held).running() as archive:
        found = find(destination(archive.port), Query(limit=1))
        assert [one.StudyInstanceUID for one in found] == [STUDY]


def test_a_failure_after_some_answers_is_a_failure(held: list[Path]) -> None:
    with Archive(held=held, find_status=0xA700).running() as archive:
        message = r"answered C-FIND with 0xA700 \(Failure: Refused: Out of Resources\); success is needed"
        with pytest.raises(NetworkError, match=message):
            find(destination(archive.port), Query())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Query("series"), "at level series has no StudyInstanceUID"),
        (lambda: Query("image", STUDY), "at level image has no SeriesInstanceUID"),
        (lambda: Query(study_instance_uid="../x"), "a UID of digits and points is needed"),
        (lambda: Query(series_instance_uid=SERIES), "named without its parents"),
        (lambda: Query(study_instance_uid=STUDY, sop_instance_uid="1.2"), "named without its parents"),
    ],
)
def test_a_question_that_no_archive_can_answer_is_refused(make: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        make()


# --- C-GET ------------------------------------------------------------------------------------------------------------


def test_c_get_brings_a_study_as_it_is_held(held: list[Path], tmp_path: Path) -> None:
    heard: list[Stored] = []
    with Archive(held=held).running() as archive:
        found = fetch(destination(archive.port), FIRST, tmp_path / "in", heard.append)
    assert (found.received, found.new, found.expected, found.problems, found.is_complete) == (3, 3, 3, (), True)
    assert len(heard) == 3
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == [STUDY]
    assert relative(found.files, tmp_path / "in") == [f"{STUDY}/{SERIES}/{SERIES}.{n}.dcm" for n in (100, 101, 102)]
    for path in found.files:
        source = next(one for one in held if pydicom.dcmread(one).SOPInstanceUID == path.stem)
        assert same_data_set(source, path)


def test_c_get_brings_one_series_or_one_instance(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held).running() as archive:
        there = destination(archive.port)
        series = fetch(there, replace(FIRST, series_instance_uid=SERIES), tmp_path / "a")
        one = fetch(there, Query("study", STUDY, SERIES, f"{SERIES}.101"), tmp_path / "b")
    assert (series.received, series.expected) == (3, 3)
    assert relative(one.files, tmp_path / "b") == [f"{STUDY}/{SERIES}/{SERIES}.101.dcm"]


def test_c_get_brings_compressed_images_as_they_are(held: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(held[0])
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "rle.dcm")
    with Archive(held=[tmp_path / "rle.dcm"], syntaxes=[*PLAIN, RLELossless]).running() as archive:
        found = fetch(destination(archive.port), FIRST, tmp_path / "in")
    kept = pydicom.dcmread(found.files[0])
    assert kept.file_meta.TransferSyntaxUID == RLELossless
    assert kept.PixelData == dataset.PixelData


def test_fetching_again_finds_everything_in_place(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held).running() as archive:
        fetch(destination(archive.port), FIRST, tmp_path)
        again = fetch(destination(archive.port), FIRST, tmp_path)
    assert (again.received, again.new, again.is_complete) == (3, 0, True)


def test_conditions_fetch_every_study_that_they_find(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held).running() as archive:
        found = fetch(destination(archive.port), Query(patient_id="OTHER"), tmp_path / "a")
        none = fetch(destination(archive.port), Query(patient_id="NOBODY"), tmp_path / "b")
    assert {path.parts[-3] for path in found.files} == {OTHER_STUDY}
    assert (found.received, found.expected) == (2, 2)
    assert (none.received, none.expected, none.is_complete) == (0, 0, True)


def test_everything_is_never_fetched(held: list[Path], tmp_path: Path) -> None:
    with (
        Archive(held=held).running() as archive,
        pytest.raises(QueryError, match="because an archive is never fetched as a whole"),
    ):
        fetch(destination(archive.port), Query(), tmp_path)


def test_an_archive_without_c_get_is_named(held: list[Path], tmp_path: Path) -> None:
    with (
        Archive(held=held, get=False).running() as archive,
        pytest.raises(NetworkError, match=r"does not offer C-GET; .* use C-MOVE"),
    ):
        fetch(destination(archive.port), FIRST, tmp_path)


def test_an_archive_that_does_not_tell_its_classes_is_offered_the_usual_ones(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held, find_status=0xC001).running() as archive:
        found = fetch(destination(archive.port), FIRST, tmp_path)
    assert (found.received, found.is_complete) == (3, True)


def test_what_the_archive_could_not_send_is_told(
    held: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dicom_io.net.instance_file import InstanceRefusedError
    from dicom_io.net.instance_store import InstanceStore

    put = InstanceStore.put

    def full_at_101(self: InstanceStore, content: bytes, uid: str | None = None) -> Stored:
        if uid == f"{SERIES}.101":
            raise InstanceRefusedError(0xA700, "cannot be written (ENOSPC)")
        return put(self, content, uid)

    monkeypatch.setattr(InstanceStore, "put", full_at_101)
    with Archive(held=held).running() as archive:
        found = fetch(destination(archive.port), FIRST, tmp_path)
    assert (found.received, found.expected, found.is_complete) == (2, 3, False)
    assert found.problems == (
        "cannot be written (ENOSPC)",
        f"the archive could not send 1 instance(s), the first is {SERIES}.101",
    )


def test_an_instance_of_another_study_is_not_kept(held: list[Path], tmp_path: Path) -> None:
    class Careless(Archive):
        def _matches(self, query: pydicom.Dataset) -> list[pydicom.Dataset]:
            return [pydicom.dcmread(path) for path in self.held]

    with Careless(held=held).running() as archive:
        found = fetch(destination(archive.port), FIRST, tmp_path)
    assert {path.parts[-3] for path in found.files} == {STUDY}
    assert found.received == 3
    assert f"an instance of study {OTHER_STUDY} was not asked for" in found.problems


def test_an_archive_that_overlooks_a_key_gives_no_other_series_and_no_other_patient(
    held: list[Path], tmp_path: Path
) -> None:
    class Careless(Archive):
        def _matches(self, query: pydicom.Dataset) -> list[pydicom.Dataset]:
            return [pydicom.dcmread(path) for path in self.held]

    headers = [pydicom.dcmread(path) for path in held]
    wanted = next(one for one in headers if one.StudyInstanceUID == STUDY)
    wanted.SeriesInstanceUID, wanted.SOPInstanceUID = "1.2.3.4", "1.2.3.4.5"
    wanted.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    wanted.save_as(tmp_path / "other.dcm")
    with Careless(held=[*held, tmp_path / "other.dcm"]).running() as archive:
        query = Query(study_instance_uid=STUDY, series_instance_uid="1.2.3.4")
        found = fetch(destination(archive.port), query, tmp_path / "series")
        with pytest.raises(
            NetworkError, match="studies of other patients: it does not search by PatientID; nothing was"
        ):
            fetch(destination(archive.port), Query(patient_id=str(wanted.PatientID)), tmp_path / "patient")
    assert [path.parts[-2:] for path in found.files] == [("1.2.3.4", "1.2.3.4.5.dcm")]
    assert any("an instance of series" in problem for problem in found.problems)
    assert not list((tmp_path / "patient").rglob("*.dcm"))


# --- C-MOVE -----------------------------------------------------------------------------------------------------------


def test_c_move_brings_a_study_to_a_provider_of_ours(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held).running() as archive:
        there = moving(archive)
        found = fetch(there, SECOND, tmp_path)
        again = fetch(there, SECOND, tmp_path)
    assert (found.received, found.new, found.expected, found.is_complete) == (2, 2, 2, True)
    assert (again.received, again.new) == (2, 0)
    for path in found.files:
        source = next(one for one in held if pydicom.dcmread(one).SOPInstanceUID == path.stem)
        assert same_data_set(source, path)
    assert isinstance(there.peer.receive.port, int)  # type: ignore[union-attr]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", there.peer.receive.port)) != 0  # type: ignore[union-attr]


def test_c_move_to_a_title_that_the_archive_does_not_know_is_told_what_to_do(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held).running() as archive:
        there = moving(archive)
        archive.addresses = {}
        message = r"answered C-MOVE with 0xA801 \(Failure: Move destination unknown\); .* register our AE title"
        with pytest.raises(NetworkError, match=message):
            fetch(there, FIRST, tmp_path)


def test_c_move_with_our_port_taken_is_told(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held).running() as archive, Provider(tmp_path / "other", Listen(port=0)) as other:
        there = destination(archive.port, retrieve="move", receive=Receive(port=other.port))
        with pytest.raises(NetworkError, match="the port is in use"):
            fetch(there, FIRST, tmp_path / "in")


def test_c_move_lets_only_the_archive_in(held: list[Path], tmp_path: Path) -> None:
    with Archive(held=held).running() as archive:
        there = moving(archive)
        strict = replace(there, peer=replace(there.peer, receive=replace(there.peer.receive, senders=("OTHER",))))  # type: ignore
        with pytest.raises(NetworkError, match="0xA801"):  # what pynetdicom answers when it is not let in
            fetch(strict, FIRST, tmp_path)
    assert list(tmp_path.rglob("*.dcm")) == []


def test_an_archive_that_answers_before_it_has_sent_is_waited_for(tmp_path: Path, held: list[Path]) -> None:
    retrieval = Retrieval(tmp_path, FIRST, lambda stored: None)
    late = threading.Timer(0.3, lambda: retrieval.store.put(held[0].read_bytes()))
    late.start()
    retrieval.wait_for(1, 5.0)
    assert retrieval.result(1).received == 1
    started = time.monotonic()
    retrieval.wait_for(2, 0.2)
    assert 0.2 <= time.monotonic() - started < 3


# --- both -------------------------------------------------------------------------------------------------------------


def test_an_archive_that_breaks_off_says_how_many_had_come(held: list[Path], tmp_path: Path) -> None:
    class Leaving(Archive):
        def _get(self, event: Any) -> Any:
            yield 3
            yield 0xFF00, pydicom.dcmread(self.held[0])
            event.assoc.abort()

    with Leaving(held=held).running() as archive:
        message = rf"ARCHIVE@127.0.0.1:{archive.port} .*\(1 instance\(s\) had come and are kept in {tmp_path}\)"
        with pytest.raises(NetworkError, match=message):
            fetch(destination(archive.port), FIRST, tmp_path)
    assert len(list(tmp_path.rglob("*.dcm"))) == 1


def test_over_tls_too(held: list[Path], tmp_path: Path) -> None:
    keys = make_certificates(tmp_path / "keys")
    with Archive(held=held, secret=server_context(keys.server)).running() as archive:
        there = destination(archive.port, tls=keys.client)
        assert echo(there) < 5
        assert there.label == f"ARCHIVE@127.0.0.1:{archive.port}"
        assert len(find(there, Query())) == 2
        assert fetch(there, FIRST, tmp_path / "in").received == 3


def test_what_is_fetched_is_not_followed(held: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda own, to: (called.append(to[1]), connect(own, to))[1])
    with mute_listener() as trap:
        dataset = pydicom.dcmread(held[0])
        dataset.RetrieveURL = dataset.PixelDataProviderURL = f"http://127.0.0.1:{trap}/x"
        dataset.save_as(tmp_path / "hostile.dcm")
        with Archive(held=[tmp_path / "hostile.dcm"]).running() as archive:
            find(destination(archive.port), Query())
            found = fetch(destination(archive.port), FIRST, tmp_path / "in")
            assert found.received == 1
    assert set(called) == {archive.port}


def test_no_name_of_a_patient_is_logged_or_told(
    held: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Query(patient_id=PATIENT["PatientID"], patient_name=PATIENT["PatientName"])
    with caplog.at_level("DEBUG"), Archive(held=held, find_status=0xA900).running() as archive:
        with pytest.raises(NetworkError) as failure:
            find(destination(archive.port), asked)
        archive.find_status = 0
        fetch(destination(archive.port), asked, tmp_path)
    assert not any(value in caplog.text + str(failure.value) for value in PATIENT.values())

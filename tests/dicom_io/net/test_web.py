"""QIDO-RS, WADO-RS and STOW-RS against a small service: outcomes by instance, and no step off the given path."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from net_peers import PATIENT, SERIES, STUDY, ct_series, make_certificates, mute_listener, same_data_set
from ports import free_port
from pydicom.uid import RLELossless
from web_peer import WebArchive

from dicom_io.errors import NetworkError
from dicom_io.net import dicomweb
from dicom_io.net.destination import Destination, DestinationError, DicomWeb, Tls, parse_destination
from dicom_io.net.exchange import echo, fetch, find, send
from dicom_io.net.instance_store import Stored
from dicom_io.net.query import Query
from dicom_io.net.tls import server_context

ONE = Query(study_instance_uid=STUDY)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return ct_series(tmp_path_factory.mktemp("held"), 3)


def service(archive: WebArchive, **more: Any) -> Destination:
    found = parse_destination(archive.url)
    return replace(found, connect_s=5.0, answer_s=5.0, peer=replace(found.peer, **more))  # type: ignore[type-var]


def uids(files: list[Path]) -> list[str]:
    return [str(pydicom.dcmread(path).SOPInstanceUID) for path in files]


# --- QIDO-RS ----------------------------------------------------------------------------------------------------------


def test_a_service_that_answers_a_search_is_there(held: list[Path]) -> None:
    with WebArchive(held).running() as archive:
        assert echo(service(archive)) < 5
        assert service(archive).label == archive.url


def test_studies_series_and_images_are_found(held: list[Path]) -> None:
    with WebArchive(held).running() as archive:
        there = service(archive)
        assert [one.PatientName for one in find(there, Query())] == [PATIENT["PatientName"]]
        assert [one.SeriesInstanceUID for one in find(there, Query("series", STUDY))] == [SERIES]
        assert {one.SOPInstanceUID for one in find(there, Query("image", STUDY, SERIES))} == set(uids(held))
    places = ["/studies", f"/studies/{STUDY}/series", f"/studies/{STUDY}/series/{SERIES}/instances"]
    assert list(dict.fromkeys(path for path, _ in archive.asked)) == places


def test_conditions_reach_the_service_as_they_are_meant(held: list[Path]) -> None:
    with WebArchive(held).running() as archive:
        find(service(archive), Query(patient_id="ID 1&x=2", study_date="20260101-", modality="MR"))
    _, asked = archive.asked[0]
    assert asked["PatientID"] == ["ID 1&x=2"]
    assert asked["StudyDate"] == ["20260101-"]
    assert asked["ModalitiesInStudy"] == ["MR"]


def test_a_star_and_a_space_go_in_the_form_that_every_service_decodes(held: list[Path]) -> None:
    with WebArchive(held).running() as archive:
        find(service(archive), Query(patient_id="A B+C*"))
    assert "PatientID=A%20B%2BC*&" in archive.raw[0]
    assert archive.asked[0][1]["PatientID"] == ["A B+C*"]


@pytest.mark.parametrize("pages", [True, False])
def test_all_pages_are_read_and_a_service_without_pages_ends_too(
    pages: bool, held: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicomweb, "PAGE", 2)
    with WebArchive(held, pages=pages).running() as archive:
        found = find(service(archive), Query("image", STUDY, SERIES))
        assert sorted(one.SOPInstanceUID for one in found) == sorted(uids(held))
        assert len(archive.asked) == 2 + pages  # the last page is empty, or the first once more
        assert len(find(service(archive), Query("image", STUDY, SERIES, limit=1))) == 1


class Studies:
    """Answers to searches for studies: at most `most` at a time, whatever is asked for."""

    def __init__(self, count: int, most: int) -> None:
        self.found = [{"0020000D": {"vr": "UI", "Value": [f"1.2.3.{n}"]}} for n in range(count)]
        self.most = most

    def search_for_studies(self, *, offset: int, limit: int, **_: object) -> list[dict[str, object]]:
        return self.found[offset : offset + min(limit, self.most)]

    search_for_series = search_for_instances = search_for_studies


@pytest.mark.parametrize(("limit", "expected"), [(0, 30), (20, 20), (12, 12), (40, 30)])
def test_a_short_page_is_not_the_last_one(limit: int, expected: int) -> None:
    """PS3.18 8.3.4.4: a service may give fewer results than `limit` asks for, and goes on at `offset`."""
    found = dicomweb._pages(Studies(30, 12), Query(limit=limit))  # type: ignore[arg-type]
    assert [item["0020000D"]["Value"] for item in found] == [[f"1.2.3.{n}"] for n in range(expected)]


def test_a_service_that_repeats_its_answer_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    service = Studies(12, 12)
    service.search_for_studies = lambda **_: service.found  # type: ignore[method-assign]
    assert len(dicomweb._pages(service, Query())) == 12  # type: ignore[arg-type]
    assert "repeats its 12 match(es) when asked for more" in caplog.text


class Refusing(Studies):
    """Answers with an HTTP status to a search from an offset on, as some services do for a page beyond the last."""

    def __init__(self, count: int, most: int, status: int, start: int) -> None:
        super().__init__(count, most)
        self.refusal, self.start = dicomweb.requests.Response(), start
        self.refusal.status_code = status

    def search_for_studies(self, *, offset: int, limit: int, **more: object) -> list[dict[str, object]]:
        if offset >= self.start:
            raise dicomweb.requests.HTTPError(response=self.refusal)
        return super().search_for_studies(offset=offset, limit=limit, **more)


@pytest.mark.parametrize("status", [404, 400])
def test_a_refused_page_beyond_the_last_loses_no_match(status: int, caplog: pytest.LogCaptureFixture) -> None:
    found = dicomweb._pages(Refusing(30, 12, status, 30), Query())  # type: ignore[arg-type]
    assert [item["0020000D"]["Value"] for item in found] == [[f"1.2.3.{n}"] for n in range(30)]
    assert f"HTTP status {status} came after 30 match(es); there may be others" in caplog.text


@pytest.mark.parametrize(("status", "start"), [(404, 0), (400, 0), (500, 12), (401, 12)])
def test_a_refused_first_page_and_other_failures_stay_errors(status: int, start: int) -> None:
    with pytest.raises(dicomweb.requests.HTTPError):
        dicomweb._pages(Refusing(30, 12, status, start), Query())  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", [None, 7, "text", ["a"], {}, {"error": "no"}])
def test_an_item_that_is_no_match_loses_nothing_but_itself(odd: object, caplog: pytest.LogCaptureFixture) -> None:
    service = Studies(6, 2)
    service.found[3] = odd  # type: ignore[call-overload]
    found = dicomweb._pages(service, Query())  # type: ignore[arg-type]
    assert [item["0020000D"]["Value"] for item in found] == [[f"1.2.3.{n}"] for n in (0, 1, 2, 4, 5)]
    assert "items that are no DICOM JSON objects; they were left out" in caplog.text
    assert "repeats" not in caplog.text


def test_an_odd_value_loses_nothing_but_itself() -> None:
    odd: dict[str, Any] = {
        "RetrieveURL": "http://x",
        "a note": None,
        "00081030": None,
        "00080050": "plain",
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "00201206": {"vr": "IS", "Value": ["two"]},
        "00201208": {"vr": "IS", "Value": ["10"]},
        "00080020": {"vr": "DA", "Value": [""]},
        "00080061": {"vr": "CS", "Value": [None]},
        "00100010": {"vr": "PN", "Value": [{"Ideographic": "\u5c71\u7530"}]},
        "00101030": {"vr": "DS", "Value": [{}]},
    }
    found = dicomweb._match(odd)
    assert (found.StudyInstanceUID, found.NumberOfStudyRelatedInstances) == ("1.2.3", 10)
    assert not found.NumberOfStudyRelatedSeries
    assert not found.PatientWeight
    assert not found.StudyDescription
    assert not found.AccessionNumber
    assert len(found) == len(odd) - 2


# --- WADO-RS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "count"),
    [(ONE, 3), (Query("study", STUDY, SERIES), 3), (Query("study", STUDY, SERIES, f"{SERIES}.101"), 1)],
)
def test_a_study_a_series_and_an_instance_come_as_they_are_held(
    query: Query, count: int, held: list[Path], tmp_path: Path
) -> None:
    heard: list[Stored] = []
    with WebArchive(held).running() as archive:
        found = fetch(service(archive), query, tmp_path, heard.append)
    assert (found.received, found.new, found.expected, found.is_complete) == (count, count, count, True)
    assert len(heard) == count
    assert archive.accepted[-1] == 'multipart/related; type="application/dicom"; transfer-syntax=*'
    for path in found.files:
        source = next(one for one in held if pydicom.dcmread(one).SOPInstanceUID == path.stem)
        assert path == tmp_path / STUDY / SERIES / f"{path.stem}.dcm"
        assert same_data_set(source, path)


def test_compressed_images_come_as_they_are(held: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(held[0])
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "rle.dcm")
    with WebArchive([tmp_path / "rle.dcm"]).running() as archive:
        found = fetch(service(archive), ONE, tmp_path / "in")
    kept = pydicom.dcmread(found.files[0])
    assert kept.file_meta.TransferSyntaxUID == RLELossless
    assert kept.PixelData == dataset.PixelData


def test_a_service_that_does_not_search_still_gives(held: list[Path], tmp_path: Path) -> None:
    with WebArchive(held, status=501).running() as archive:
        found = fetch(service(archive), ONE, tmp_path)
    assert (found.received, found.expected, found.is_complete) == (3, None, True)


@pytest.mark.parametrize("cut", [1, 60, 400])
def test_an_answer_that_breaks_off_is_no_success(cut: int, held: list[Path], tmp_path: Path) -> None:
    with WebArchive(held, cut=cut).running() as archive, pytest.raises(NetworkError, match="ended in the middle"):
        fetch(service(archive), ONE, tmp_path)


@pytest.mark.parametrize("part", [b"junk", b"\0" * 128 + b"DICM" + b"junk" * 9])
def test_parts_that_are_no_dicom_files_are_told(part: bytes, held: list[Path], tmp_path: Path) -> None:
    message = "gave an answer that is not DICOMweb"
    with WebArchive(held, part=part).running() as archive, pytest.raises(NetworkError, match=message):
        fetch(service(archive), ONE, tmp_path)
    assert list(tmp_path.rglob("*.dcm")) == []


def test_a_study_that_is_not_there_is_told(held: list[Path], tmp_path: Path) -> None:
    message = r"answered with HTTP status 404; .* check the URL, and whether"
    with WebArchive(held).running() as archive, pytest.raises(NetworkError, match=message):
        fetch(service(archive), Query(study_instance_uid="1.2.3"), tmp_path)


def test_an_instance_of_another_study_is_not_kept(held: list[Path], tmp_path: Path) -> None:
    class Careless(WebArchive):
        def found(self, path: str) -> list[pydicom.Dataset]:
            return [pydicom.dcmread(file) for file in self.held]

    with Careless(held).running() as archive:
        found = fetch(service(archive), Query(study_instance_uid="1.2.3"), tmp_path)
    assert (found.received, len(found.problems)) == (0, 3)
    assert list(tmp_path.rglob("*.dcm")) == []


# --- STOW-RS ----------------------------------------------------------------------------------------------------------


def test_what_is_stored_is_what_was_sent(held: list[Path]) -> None:
    with WebArchive().running() as archive:
        outcomes = send(service(archive), held)
    assert [one.state for one in outcomes] == ["sent"] * 3
    (arrived,) = archive.received
    for path, one in zip(held, arrived, strict=True):
        assert same_data_set(path, one)


def test_a_file_without_preamble_is_sent_as_a_whole_file(held: list[Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(held[0].read_bytes()[132 + 12 + int(pydicom.dcmread(held[0]).file_meta[0x00020000].value) :])
    with WebArchive().running() as archive:
        assert [one.state for one in send(service(archive), [bare])] == ["sent"]
    arrived = archive.received[0][0]
    assert arrived.file_meta.MediaStorageSOPInstanceUID == arrived.SOPInstanceUID == uids(held)[0]
    assert same_data_set(held[0], arrived)


@pytest.mark.parametrize("kind", ["application/dicom+json", "application/dicom+json; charset=utf-8"])
def test_each_instance_has_its_own_outcome(kind: str, held: list[Path]) -> None:
    first, second, third = uids(held)
    with WebArchive(refuse={first: 0xA700}, warn={second: 0xB000}, silent=[third], json_type=kind).running() as archive:
        outcomes = send(service(archive), held)
    assert [one.state for one in outcomes] == ["refused", "warning", "failed"]
    assert outcomes[0].meaning == "0xA700 (Failure: Refused: Out of Resources)"
    assert outcomes[1].meaning == "0xB000 (Warning: Coercion of Data Elements)"
    assert "does not mention this instance" in outcomes[2].meaning


def test_a_conflict_names_every_instance(held: list[Path]) -> None:
    with WebArchive(refuse=dict.fromkeys(uids(held), 0xC122)).running() as archive:
        outcomes = send(service(archive), held)
    assert [one.meaning for one in outcomes] == ["0xC122 (Failure: Referenced Transfer Syntax Not Supported)"] * 3


def test_a_conflict_over_what_is_there_already_is_none(held: list[Path]) -> None:
    with WebArchive(held=held, refuse=dict.fromkeys(uids(held), 0x0111)).running() as archive:
        outcomes = send(service(archive), held)
    assert [(one.state, one.status) for one in outcomes] == [("already there", 0x0111)] * 3


def test_a_conflict_over_what_is_another_patients_is_no_delivery(held: list[Path], tmp_path: Path) -> None:
    others = []
    for path in held:
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "SOMEBODY-ELSE"
        dataset.save_as(tmp_path / path.name)
        others.append(tmp_path / path.name)
    with WebArchive(held=others, refuse=dict.fromkeys(uids(held), 0x0111)).running() as archive:
        outcomes = send(service(archive), held)
    assert [(one.state, one.status) for one in outcomes] == [("refused", 0x0111)] * 3
    assert "its study has another PatientID" in outcomes[0].meaning


def test_an_error_of_the_service_is_no_success(held: list[Path]) -> None:
    with WebArchive(store_status=500).running() as archive, pytest.raises(NetworkError, match="HTTP status 500"):
        send(service(archive), held)


def test_what_comes_after_a_failed_request_is_failed(held: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "MOST_INSTANCES", 1)
    with WebArchive().running() as archive:

        def fail_from_now(outcome: object) -> None:
            archive.store_status = 503

        outcomes = send(service(archive), held, fail_from_now)
    assert [one.state for one in outcomes] == ["sent", "failed", "failed"]
    assert "HTTP status 503" in outcomes[1].meaning
    assert len(archive.received) == 2


def test_large_files_go_in_several_requests(held: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "MOST_BYTES", held[0].stat().st_size + held[1].stat().st_size)
    with WebArchive().running() as archive:
        outcomes = send(service(archive), held)
    assert [len(one) for one in archive.received] == [2, 1]
    assert [one.state for one in outcomes] == ["sent"] * 3


# --- where it goes, and whom it trusts --------------------------------------------------------------------------------


def test_a_token_is_taken_from_the_environment_and_never_told(
    held: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("THE_TOKEN", "hunter2")
    with caplog.at_level(logging.DEBUG), WebArchive(held, token="hunter2").running() as archive:
        there = service(archive, token_env="THE_TOKEN")
        assert len(find(there, Query())) == 1
        monkeypatch.setenv("THE_TOKEN", "hunter3")
        with pytest.raises(NetworkError, match=r"HTTP status 401; .* set the token") as failure:
            find(there, Query())
    assert "hunter" not in caplog.text + str(failure.value) + repr(there)


def test_an_absent_token_is_asked_for(held: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THE_TOKEN", raising=False)
    message = "the environment variable THE_TOKEN is empty"
    with WebArchive(held).running() as archive, pytest.raises(DestinationError, match=message):
        find(service(archive, token_env="THE_TOKEN"), Query())
    assert archive.asked == []


def test_certificates_are_shown_on_both_sides(held: list[Path], tmp_path: Path) -> None:
    keys, others = make_certificates(tmp_path / "keys"), make_certificates(tmp_path / "others", "stranger")
    with WebArchive(held, secret=server_context(keys.server)).running() as archive:
        assert len(find(service(archive, tls=keys.client), Query())) == 1
        for tls, message in (
            (keys.strangers, "broke off TLS|closed the connection"),
            (Tls(keys.client.ca, others.client.certificate, others.client.key), "broke off TLS|closed the connection"),
            (others.client, r"broke off TLS \(.*certificate.*\)|broke off TLS \(unable to get local issuer"),
            (None, "broke off TLS"),
        ):
            with pytest.raises(NetworkError, match=message):
                find(service(archive, tls=tls), Query())


def test_a_certificate_for_another_host_is_refused_unless_asked(held: list[Path], tmp_path: Path) -> None:
    keys = make_certificates(tmp_path / "keys", host="pacs.example.org")
    message = r"broke off TLS \(.*127\.0\.0\.1.*\)"
    with WebArchive(held, secret=server_context(keys.server)).running() as archive:
        with pytest.raises(NetworkError, match=message):
            find(service(archive, tls=keys.client), Query())
        careless = replace(keys.client, check_hostname=False)
        assert len(find(service(archive, tls=careless), Query())) == 1


def test_a_redirection_is_not_followed(held: list[Path]) -> None:
    message = "redirected to another address, which is not followed"
    with (
        WebArchive(held).running() as trap,
        WebArchive(held, redirect=trap.url + "/studies").running() as archive,
        pytest.raises(NetworkError, match=message),
    ):
        find(service(archive), Query())
    assert trap.asked == []


def test_proxies_and_passwords_of_the_environment_are_not_used(
    held: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("NO_PROXY", "")
    with mute_listener() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        with WebArchive(held).running() as archive:
            assert len(find(service(archive), Query())) == 1


@pytest.mark.filterwarnings("ignore:No bulk data URI handler provided")  # the archive here answers with such an address
def test_addresses_in_answers_and_instances_are_not_visited(
    held: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[int] = set()
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda own, to: (called.add(to[1]), connect(own, to))[1])
    with mute_listener() as trap:
        away = f"http://127.0.0.1:{trap}/x"
        dataset = pydicom.dcmread(held[0])
        dataset.RetrieveURL = dataset.PixelDataProviderURL = away
        dataset.save_as(tmp_path / "hostile.dcm")
        extra = {"00081190": {"vr": "UR", "Value": [away]}, "7FE00010": {"vr": "OW", "BulkDataURI": away}}
        with WebArchive([tmp_path / "hostile.dcm"], extra=extra).running() as archive:
            there = service(archive)
            assert find(there, Query())[0].RetrieveURL == away
            assert fetch(there, ONE, tmp_path / "in").received == 1
            assert send(there, [tmp_path / "hostile.dcm"])[0].state == "sent"
    assert called == {int(archive.url.split(":")[2].split("/")[0])}


# --- trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"<html>hello</html>", b'{"a": ', b"[1, 2]", b'"text"', b'{"error": "no"}', b"null"])
def test_an_answer_that_is_no_dicom_json_is_told(body: bytes, held: list[Path]) -> None:
    message = r"gave an answer that is not DICOM.*check the URL"
    with WebArchive(held, body=body).running() as archive, pytest.raises(NetworkError, match=message):
        find(service(archive), Query())


def test_a_service_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    with pytest.raises(
        NetworkError, match=f"^{url} refused the connection; a DICOMweb service that answers is needed; check"
    ):
        find(Destination("x", DicomWeb(url)), Query())


def test_a_service_that_says_nothing_is_waited_for_only_so_long() -> None:
    with mute_listener() as port:
        there = Destination("x", DicomWeb(f"http://127.0.0.1:{port}/d"), connect_s=1, answer_s=1)
        started = time.monotonic()
        with pytest.raises(NetworkError, match="gave no answer within 1 s"):
            find(there, Query())
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [400, 404, 500])
def test_no_name_of_a_patient_is_logged_or_told(
    status: int, held: list[Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    asked = Query(patient_id=PATIENT["PatientID"], patient_name="Zyxwvut^Qponmlk")
    with caplog.at_level(logging.DEBUG), WebArchive(held, status=status).running() as archive:
        with pytest.raises(NetworkError) as failure:
            find(service(archive), asked)
        archive.status = 200
        assert len(find(service(archive), asked)) == 1
        send(service(archive), held)
        fetch(service(archive), ONE, tmp_path)
    there = Destination("x", DicomWeb(f"http://127.0.0.1:{free_port()}/d"))
    with pytest.raises(NetworkError) as refusal:
        find(there, asked)
    chain = [str(one) for one in (failure.value, refusal.value)]
    chain += [str(one.__cause__) for one in (failure.value, refusal.value)]
    assert not any(value in caplog.text + " ".join(chain) for value in PATIENT.values())
    assert failure.value.__suppress_context__
    assert refusal.value.__suppress_context__

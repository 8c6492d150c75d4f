"""The round trip through an archive and programs that others wrote: Orthanc 1.10 and dcmtk 3.6.7. `make interop`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from net_peers import ct_series, make_certificates
from orthanc import Orthanc, listening_addresses, loopback_shim, orthanc, program, server
from ports import free_port
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from result_phantoms import RESULT, oblique_case

from dicom_io.errors import NetworkError
from dicom_io.kinds import LABEL_MAP_STORAGE
from dicom_io.net.destination import Destination, Dimse, Profile, Receive, parse_destination
from dicom_io.net.duplicates import DuplicateCheck
from dicom_io.net.exchange import echo, fetch, find, send
from dicom_io.net.outgoing import prepare_files
from dicom_io.net.query import Query
from dicom_io.net.scp import Listen, Provider
from dicom_io.rejection import Rejection, write_rejection_note
from dicom_io.rtstruct import write_rtstruct
from dicom_io.seg import write_seg
from dicom_io.sr import Verification, write_sr, write_verified_sr

pytestmark = pytest.mark.interop

# What an archive may add or change on its own: the character set of an answer, and where an instance can be had.
ALLOWED = ("SpecificCharacterSet", "RetrieveAETitle", "RetrieveURL")
WAYS = ("C-GET", "C-MOVE", "WADO-RS")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A CT series, an oblique MR series, a SEG, SR and RTSTRUCT made from it, a verified report and a rejection note."""
    folder = tmp_path_factory.mktemp("files")
    case = oblique_case(folder / "case")
    results = [
        write_seg(case.labels, case.volume, folder / "seg.dcm", RESULT),
        write_rtstruct(case.labels, case.volume, folder / "rtstruct.dcm", RESULT),
    ]
    results.append(write_sr(case.labels, case.volume, folder / "sr.dcm", RESULT, seg=results[0]))
    verified = Verification("Lang^Eva^^Dr", "Clinic", datetime(2026, 11, 21, tzinfo=UTC), "the tip is cut")
    results.append(write_verified_sr(results[-1], folder / "verified.dcm", verified))
    rejection = Rejection(verified.observer, verified.organization, verified.moment, "wrong side")
    results.append(write_rejection_note(results[:3], folder / "rejection.dcm", rejection))
    return [*ct_series(folder / "ct", 4), *case.volume.provenance.files, *results]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("archive") / "orthanc") as running:
        yield running


@pytest.fixture(scope="module")
def filled(archive: Orthanc, files: list[Path]) -> Orthanc:
    """The archive after a C-STORE of all files."""
    outcomes = send(node(archive), files)
    assert {outcome.state for outcome in outcomes} == {"sent"}
    assert {outcome.note for outcome in outcomes} == {""}
    return archive


def node(archive: Orthanc) -> Destination:
    return Destination(
        "archive", Dimse("127.0.0.1", archive.port, "ORTHANC", receive=Receive(port=archive.move_port)), answer_s=30
    )


def way(archive: Orthanc, name: str) -> Destination:
    there = node(archive)
    if name == "WADO-RS":
        return parse_destination(archive.web)
    assert isinstance(there.peer, Dimse)
    return replace(there, peer=replace(there.peer, retrieve="move")) if name == "C-MOVE" else there


def by_uid(files: Sequence[Path]) -> dict[str, Dataset]:
    found = [pydicom.dcmread(path) for path in files]
    return {str(one.SOPInstanceUID): one for one in found}


def comparable(dataset: Dataset) -> Dataset:
    copy = Dataset()
    copy.update({element.tag: element for element in dataset if element.keyword not in ALLOWED})
    return copy


def assert_same(sources: Sequence[Path], copies: Sequence[Path]) -> None:
    """Identical pixels and identical elements, instance by instance."""
    before, after = by_uid(sources), by_uid(copies)
    assert set(before) == set(after)
    for uid, source in before.items():
        assert comparable(source) == comparable(after[uid])
        if "PixelData" in source:
            np.testing.assert_array_equal(source.pixel_array, after[uid].pixel_array)


def studies_of(files: Sequence[Path]) -> list[str]:
    return list(dict.fromkeys(str(one.StudyInstanceUID) for one in by_uid(files).values()))


# --- Orthanc ----------------------------------------------------------------------------------------------------------


def test_orthanc_answers_and_nobody_outside_can_reach_it(archive: Orthanc) -> None:
    assert echo(node(archive)) < 10
    assert echo(parse_destination(archive.web)) < 10
    assert listening_addresses(archive.port) == {"0100007F"}


def test_orthanc_under_another_title_rejects_us_with_a_reason(archive: Orthanc) -> None:
    wrong = Destination("wrong", Dimse("127.0.0.1", archive.port, "SOMEONE"))
    with pytest.raises(NetworkError, match=r"rejected the association .*Called AE title not recognised"):
        echo(wrong)


@pytest.mark.parametrize("name", WAYS)
def test_what_orthanc_gives_back_is_what_it_got(name: str, filled: Orthanc, files: list[Path], tmp_path: Path) -> None:
    there, got = way(filled, name), []
    for study in studies_of(files):
        fetched = fetch(there, Query(study_instance_uid=study), tmp_path)
        assert fetched.is_complete, fetched.problems
        assert fetched.expected == fetched.received == fetched.new
        got += fetched.files
    assert_same(files, got)


@pytest.mark.parametrize("name", WAYS)
def test_orthanc_s_copy_is_known_to_be_what_was_sent_and_no_other(
    name: str, filled: Orthanc, files: list[Path], tmp_path: Path
) -> None:
    """As if it had answered 0x0111 to each: what it has is fetched, or looked up, and compared."""
    there = way(filled, name)
    asked = DuplicateCheck(lambda query: find(there, query), lambda query, folder: fetch(there, query, folder))
    items, _ = prepare_files(files, Profile())
    judged = [asked.resolve(item, item.outcome("already there", "0x0111", 0x0111)) for item in items]
    assert {one.state for one in judged} == {"already there"}
    other = pydicom.dcmread(next(item.file for item in items if item.kind == "SEG"))
    other.SeriesDescription = "of another model"
    other.save_as(tmp_path / "other.dcm")
    ((item,), _) = prepare_files([tmp_path / "other.dcm"], Profile())
    refused = asked.resolve(item, item.outcome("already there", "0x0111", 0x0111))
    assert refused.state == "refused"
    assert "its SeriesDescription differs" in refused.meaning


@pytest.mark.parametrize("name", WAYS)
def test_one_series_and_one_instance_can_be_had(name: str, filled: Orthanc, files: list[Path], tmp_path: Path) -> None:
    there, seg = way(filled, name), pydicom.dcmread(files[-3])
    series = Query(study_instance_uid=seg.StudyInstanceUID, series_instance_uid=seg.SeriesInstanceUID)
    assert_same([files[-3]], fetch(there, series, tmp_path / "series").files)
    one = replace(series, sop_instance_uid=seg.SOPInstanceUID)
    assert_same([files[-3]], fetch(there, one, tmp_path / "one").files)


@pytest.mark.parametrize("name", ["C-FIND", "QIDO-RS"])
def test_orthanc_finds_what_it_has(name: str, filled: Orthanc, files: list[Path]) -> None:
    there = node(filled) if name == "C-FIND" else parse_destination(filled.web)
    studies = find(there, Query())
    assert {one.StudyInstanceUID for one in studies} == set(studies_of(files))
    ct = pydicom.dcmread(files[0])
    found = find(there, Query(patient_id=ct.PatientID, modality="CT", study_date="20250101-20270101"))
    assert [one.StudyInstanceUID for one in found] == [ct.StudyInstanceUID]
    assert int(found[0].NumberOfStudyRelatedInstances) == 4
    assert len(find(there, Query(patient_id=f"{ct.PatientID[:5]}*"))) == 1
    assert find(there, Query(patient_id="NOBODY")) == ()
    mr = pydicom.dcmread(files[4])
    series = find(there, Query("series", mr.StudyInstanceUID))
    assert {one.Modality for one in series} == {"MR", "SEG", "SR", "RTSTRUCT", "KO"}
    images = find(there, Query("image", mr.StudyInstanceUID, mr.SeriesInstanceUID))
    assert {one.SOPInstanceUID for one in images} == {one for one, x in by_uid(files).items() if x.Modality == "MR"}


def test_stow_stores_what_wado_gives_back(tmp_path: Path, files: list[Path]) -> None:
    with orthanc(tmp_path / "orthanc") as empty:
        there = parse_destination(empty.web)
        assert find(there, Query()) == ()
        outcomes = send(there, files)
        assert {outcome.state for outcome in outcomes} == {"sent"}
        assert [outcome.kind for outcome in outcomes][-5:] == ["SEG", "RTSTRUCT", "SR", "SR", "KO"]
        got = [fetch(there, Query(study_instance_uid=study), tmp_path / "in") for study in studies_of(files)]
        assert_same(files, [file for one in got for file in one.files])


@pytest.mark.parametrize("name", ["C-STORE", "STOW-RS"])
def test_a_label_map_segmentation_is_taken_and_given_back(
    name: str, archive: Orthanc, files: list[Path], tmp_path: Path
) -> None:
    dataset = pydicom.dcmread(files[-3])
    uid = f"1.2.826.0.1.3680043.8.498.{77 + (name == 'STOW-RS')}"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = LABEL_MAP_STORAGE
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid + ".1", uid + ".2"
    dataset.save_as(tmp_path / "labelmap.dcm")
    there = node(archive) if name == "C-STORE" else parse_destination(archive.web)
    assert [one.state for one in send(there, [tmp_path / "labelmap.dcm"])] == ["sent"]
    study = Query(study_instance_uid=uid + ".1")
    for other in ("C-MOVE", "WADO-RS"):
        assert_same([tmp_path / "labelmap.dcm"], fetch(way(archive, other), study, tmp_path / other).files)
    # Orthanc 1.10 negotiates no role for a class that it does not know, and then sends all the same
    with pytest.raises(NetworkError, match=r"answered C-GET with 0xA702 .*; use another way to fetch"):
        fetch(way(archive, "C-GET"), study, tmp_path / "C-GET")


@pytest.mark.parametrize("name", WAYS)
def test_compressed_images_stay_compressed(name: str, archive: Orthanc, files: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(files[0])
    uid = f"1.2.826.0.1.3680043.8.498.{90 + WAYS.index(name)}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid + ".1", uid + ".2"
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "rle.dcm")
    outcome = send(node(archive), [tmp_path / "rle.dcm"])[0]
    assert (outcome.state, outcome.note) == ("sent", "")
    fetched = fetch(way(archive, name), Query(study_instance_uid=uid + ".1"), tmp_path / "in")
    if name == "C-MOVE":  # its sender proposes what it likes; the pixels must be the same
        kept = pydicom.dcmread(fetched.files[0])
        np.testing.assert_array_equal(kept.pixel_array, pydicom.dcmread(files[0]).pixel_array)
    else:
        assert pydicom.dcmread(fetched.files[0]).file_meta.TransferSyntaxUID == RLELossless
        assert_same([tmp_path / "rle.dcm"], fetched.files)


def test_a_study_that_orthanc_does_not_have_is_not_fetched(archive: Orthanc, tmp_path: Path) -> None:
    nothing = Query(study_instance_uid="1.2.3.4")
    with pytest.raises(NetworkError, match="HTTP status 404"):
        fetch(parse_destination(archive.web), nothing, tmp_path)
    assert list(tmp_path.rglob("*.dcm")) == []


def test_orthanc_over_tls_wants_our_certificate(tmp_path: Path, files: list[Path]) -> None:
    keys = make_certificates(tmp_path / "keys")
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsPrivateKey": str(keys.server.key),
        "DicomTlsCertificate": str(keys.server.certificate),
        "DicomTlsTrustedCertificates": str(keys.server.ca),
    }
    with orthanc(tmp_path / "orthanc", **settings) as secret:
        there = node(secret)
        assert isinstance(there.peer, Dimse)
        trusted = replace(there, peer=replace(there.peer, tls=keys.client))
        assert {one.state for one in send(trusted, files[:2])} == {"sent"}
        stranger = replace(there, peer=replace(there.peer, tls=keys.strangers))
        with pytest.raises(NetworkError, match="TLS"):
            echo(stranger)


# --- dcmtk ------------------------------------------------------------------------------------------------------------


def dcmtk(*command: object) -> subprocess.CompletedProcess[str]:
    words = [program(str(command[0])), *(str(word) for word in command[1:])]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_dcmtk_s_echoscu_and_storescu_reach_our_provider(files: list[Path], tmp_path: Path) -> None:
    with Provider(tmp_path / "in", Listen(port=0, senders=("STORESCU", "ECHOSCU"))) as provider:
        here = ("-aec", "MONAIUNET", "127.0.0.1", provider.port)
        assert dcmtk("echoscu", "-aet", "ECHOSCU", *here).returncode == 0
        stored = dcmtk("storescu", "-R", *here, *files)  # -R: propose what the files need; without it no SEG
        assert stored.returncode == 0, stored.stderr
        assert dcmtk("echoscu", "-aet", "STRANGER", *here).returncode != 0
    assert_same(files, sorted((tmp_path / "in").rglob("*.dcm")))


def test_dcmtk_s_storescp_takes_what_we_send(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    port = free_port()
    # +xa: every transfer syntax; -pm: SOP classes that it does not know
    command = [program("storescp"), "-aet", "STORESCP", "+xa", "-pm", "-od", str(tmp_path / "got"), str(port)]
    with server(command, tmp_path, [port]):
        there = Destination("dcmtk", Dimse("127.0.0.1", port, "STORESCP"))
        assert {one.state for one in send(there, files)} == {"sent"}
    assert_same(files, [path for path in (tmp_path / "got").iterdir() if path.is_file()])


def test_dcmtk_s_storescp_that_takes_no_compression_gets_none(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    dataset = pydicom.dcmread(files[0])
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "rle.dcm")
    port = free_port()
    command = [program("storescp"), "+xe", "-od", str(tmp_path / "got"), str(port)]
    with server(command, tmp_path, [port]):
        outcome = send(Destination("dcmtk", Dimse("127.0.0.1", port, "STORESCP")), [tmp_path / "rle.dcm"])[0]
    assert outcome.state == "sent"
    assert outcome.note == "decompressed from RLE Lossless to Explicit VR Little Endian"
    (got,) = (tmp_path / "got").iterdir()
    assert pydicom.dcmread(got).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert_same([files[0]], [got])


def test_dcmtk_over_tls_reaches_our_provider(files: list[Path], tmp_path: Path) -> None:
    keys = make_certificates(tmp_path / "keys")
    secret = ("+tls", keys.client.key, keys.client.certificate, "+cf", keys.client.ca)
    with Provider(tmp_path / "in", Listen(port=0, tls=keys.server)) as provider:
        here = ("-aec", "MONAIUNET", "127.0.0.1", provider.port)
        stored = dcmtk("storescu", *secret, *here, files[0])
        assert stored.returncode == 0, stored.stderr
        assert dcmtk("echoscu", "+tla", "+cf", keys.client.ca, *here).returncode != 0
    assert_same(files[:1], list((tmp_path / "in").rglob("*.dcm")))


def test_the_shim_keeps_a_program_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    port = free_port()
    with server([program("storescp"), "-od", str(tmp_path / "got"), str(port)], tmp_path, [port]):
        assert listening_addresses(port) <= {"0100007F", "00000000000000000000000001000000"}
    assert listening_addresses(port) == set()
    assert loopback_shim(tmp_path).is_file()

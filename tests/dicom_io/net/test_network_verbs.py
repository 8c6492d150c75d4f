"""`monai-unet pacs echo|send|find|fetch` as a user meets them: exit codes, tables, JSON, and no name that nobody asked for."""

from __future__ import annotations

import io
import json
import re
import shlex
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pydicom
import pytest
from commitment_peers import filled_store, provider, uid
from net_peers import PATIENT, SERIES, STUDY, Archive, ct_series
from ports import free_port
from result_phantoms import RESULT
from rich.console import Console
from shell import Run, shell
from source_phantoms import lopsided, oblique_mr
from web_peer import WebArchive

from dicom_io.net.commitment_provider import CommitmentProvider, CommitmentRequest
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.instance_store import InstanceStore
from dicom_io.net.limits import Limits
from dicom_io.net.scp import Listen, Provider
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr
from monai_unet_app.cli import dicom_verbs
from monai_unet_app.cli.dicom_verbs import _group_by_reason
from monai_unet_app.cli.parser import build_parser


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs `monai-unet pacs` with these words."""
    for command in shell(capsys):
        yield partial(command, "pacs")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return ct_series(tmp_path_factory.mktemp("held"), 3)


@pytest.fixture
def archive(held: list[Path]) -> Iterator[Archive]:
    with Archive(held=held).running() as found:
        yield found


def node(archive: Archive) -> str:
    return f"ARCHIVE@127.0.0.1:{archive.port}"


def nobody(text: str) -> bool:
    return not any(value in text for value in PATIENT.values())


def test_echo_says_that_the_node_answers(run: Run, archive: Archive) -> None:
    answer = run("echo", "--to", node(archive))
    assert answer.code == 0
    assert answer.out.startswith(f"{node(archive)} answers (")
    assert json.loads(run("echo", "--to", node(archive), "--json").out)["peer"] == node(archive)


def test_a_node_that_is_not_there_is_exit_1(run: Run) -> None:
    answer = run("echo", "--to", f"ARCHIVE@127.0.0.1:{free_port()}")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("error: ARCHIVE@127.0.0.1:")
    assert "refused the connection" in answer.err


@pytest.mark.parametrize("to", ["archive", "A@B", "ftp://x", "A@h:99999"])
def test_a_destination_that_is_none_is_exit_2(run: Run, to: str) -> None:
    answer = run("echo", "--to", to)
    assert answer.code == 2
    assert "--to: the " in answer.err or "--to: A@h" in answer.err


def test_destinations_of_a_site_file_go_by_their_names(run: Run, archive: Archive, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(f'[destinations.near]\nhost = "127.0.0.1"\nport = {archive.port}\nae_title = "ARCHIVE"\n')
    assert run("echo", "--to", "near", "--site", site).code == 0
    assert run("echo", "--to", node(archive), "--site", site).code == 0
    far = run("echo", "--to", "far", "--site", site)
    assert far.code == 2
    assert "(site.toml has near)" in far.err
    site.write_text(site.read_text() + "tsl = true\n")
    wrong = run("echo", "--to", "near", "--site", site)
    assert wrong.code == 3
    assert wrong.err.startswith("refused: site.toml: near has the unknown key tsl")


def test_send_tells_what_became_of_each_file(run: Run, archive: Archive, held: list[Path]) -> None:
    archive.status = {str(pydicom.dcmread(held[1]).SOPInstanceUID): 0xA700}
    answer = run("send", "--to", node(archive), *held)
    assert answer.code == 1
    assert "2 of 3 file(s) are now at " in answer.out.replace("\n", "")
    assert f"{held[1]}: 0xA700 (Failure: Refused: Out of Resources)" in answer.err.replace("\n", "")
    rows = json.loads(run("send", "--to", node(archive), *held, "--json").out)["files"]
    assert [row["outcome"] for row in rows] == ["sent", "refused", "sent"]
    assert nobody(answer.out + answer.err)


def test_send_of_a_report_that_is_held_back_is_exit_1(run: Run, archive: Archive, tmp_path: Path) -> None:
    seg, report = case(tmp_path)
    site = tmp_path / "site.toml"
    site.write_text(
        f'[destinations.near]\nhost = "127.0.0.1"\nport = {archive.port}\nae_title = "ARCHIVE"\n'
        '[destinations.near.profile]\nseg_encoding = "labelmap"\n'
    )
    answer = run("send", "--to", "near", "--site", site, seg, report)
    assert answer.code == 1
    assert "1 problem(s):" in answer.err
    assert f"{report}: an object that it reports on was left out" in answer.err
    assert "0 of 2 file(s) are now at" in answer.out
    assert run("send", "--to", "near", "--site", site, seg).code == 0  # another encoding is another destination's


def test_send_of_what_is_there_already_is_exit_0(run: Run, archive: Archive, tmp_path: Path) -> None:
    seg, report = case(tmp_path)
    archive.status, archive.held = {str(pydicom.dcmread(seg, stop_before_pixels=True).SOPInstanceUID): 0x0111}, [seg]
    answer = run("send", "--to", node(archive), seg, report)
    assert (answer.code, answer.err) == (0, "")
    assert "already there" in answer.out
    assert "2 of 2 file(s) are now at" in answer.out
    rows = json.loads(run("send", "--to", node(archive), seg, report, "--json").out)["files"]
    assert [(row["outcome"], row["status"]) for row in rows] == [("already there", 0x0111), ("sent", 0x0000)]


def case(folder: Path) -> tuple[Path, Path]:
    """A SEG in binary and the report on it."""
    source = oblique_mr(folder / "mr")
    seg = write_seg(lopsided(source), source, folder / "seg.dcm", RESULT)
    return seg, write_sr(lopsided(source), source, folder / "sr.dcm", RESULT, seg=seg)


def test_send_takes_the_dicom_files_of_a_folder(run: Run, archive: Archive, held: list[Path]) -> None:
    (held[0].parent / "result.json").write_text("{}")
    assert run("send", "--to", node(archive), held[0].parent).code == 0
    assert len(archive.received) == 3


def test_send_of_what_is_no_dicom_file_is_exit_3(run: Run, archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    for path in (tmp_path / "a.txt", tmp_path / "none.dcm"):
        answer = run("send", "--to", node(archive), path)
        assert answer.code == 3
        assert answer.err.startswith("refused: ")
    assert archive.associations == 0


def committing(port: int, *files: object) -> tuple[object, ...]:
    return ("send", "--to", f"ARCHIVE@127.0.0.1:{port}", "--commit", *files)


def test_send_with_commit_says_that_the_archive_keeps_every_file(run: Run, held: list[Path], tmp_path: Path) -> None:
    with provider(InstanceStore(tmp_path), {}) as port:
        answer = run(*committing(port, *held))
        shown = run(*committing(port, *held, "--json"))
    assert answer.code == 0
    assert re.search(r"│ committed +│ 3 +│ +│", answer.out)
    assert answer.err == f"waiting at most 60 s for the commitment of ARCHIVE@127.0.0.1:{port}\n"
    assert (shown.code, shown.err) == (0, "")
    found = json.loads(shown.out)["commitment"]
    assert found["committed"] == [uid(k) for k in range(3)]
    assert (found["failed"], found["unreported"], found["problems"]) == ({}, [], [])


def test_send_with_commit_is_exit_1_where_the_archive_has_lost_a_file(
    run: Run, held: list[Path], tmp_path: Path
) -> None:
    kept = filled_store(tmp_path / "kept", held[:2])
    services = [CommitmentProvider(kept, {}).service]
    with Provider(tmp_path / "taken", Listen("ARCHIVE", port=0), services=services) as archive:
        answer = run(*committing(archive.port, *held))
        found = json.loads(run(*committing(archive.port, *held, "--json")).out)["commitment"]
    assert answer.code == 1
    assert "3 of 3 file(s) are now at" in answer.out
    assert re.search(r"│ committed +│ 2 +│ +│", answer.out)
    assert re.search(r"│ failed +│ 1 +│ 0x0112 \(Failure: No Such SOP Instance\) +│", answer.out)
    assert f"{held[2]}: not committed: 0x0112 (Failure: No Such SOP Instance)" in answer.err
    assert found["committed"] == [uid(0), uid(1)]
    assert found["failed"] == {uid(2): "0x0112 (Failure: No Such SOP Instance)"}


def test_send_with_commit_does_not_wait_without_end(run: Run, held: list[Path], tmp_path: Path) -> None:
    with provider(InstanceStore(tmp_path), {}, accepted=lambda request: None) as port:
        started = time.monotonic()
        answer = run(*committing(port, *held, "--wait-s", "0.5"))
        assert time.monotonic() - started < 10
    assert answer.code == 1
    assert re.search(r"│ not reported +│ 3 +│ +│", answer.out)
    assert "has not reported on 3 file(s) within 0.5 s" in answer.err


def test_send_with_commit_hears_a_report_at_our_address(run: Run, held: list[Path], tmp_path: Path) -> None:
    ours, site = free_port(), tmp_path / "site.toml"
    addresses = {"OURS": Destination("us", Dimse("127.0.0.1", ours, "OURS", "ARCHIVE"), answer_s=5)}
    with provider(InstanceStore(tmp_path / "taken"), addresses) as port:
        told = run(*committing(port, *held, "--aet", "OURS", "--listen", ours))
        site.write_text(
            f'[destinations.near]\nhost = "127.0.0.1"\nport = {port}\nae_title = "ARCHIVE"\nour_ae_title = "OURS"\n'
        )
        deaf = run("send", "--to", "near", "--site", site, "--commit", "--wait-s", "0.5", *held)
        site.write_text(f"{site.read_text()}[destinations.near.receive]\nport = {ours}\n")
        known = run("send", "--to", "near", "--site", site, "--commit", *held)
    assert (told.code, deaf.code, known.code) == (0, 1, 0)
    assert "has not reported on 3 file(s)" in deaf.err


def test_only_what_has_arrived_is_asked_for(run: Run, archive: Archive, held: list[Path], tmp_path: Path) -> None:
    asked: list[CommitmentRequest] = []
    services = [CommitmentProvider(InstanceStore(tmp_path), {}, asked.append).service]
    with Provider(tmp_path, Listen("ARCHIVE", port=0, limits=Limits(instances=2)), services=services) as small:
        assert run(*committing(small.port, *held, "--wait-s", "0.1")).code == 1
    assert [[one.sop_instance_uid for one in request.references] for request in asked] == [[uid(0), uid(1)]]
    archive.status = {"": 0xA700}
    answer = run(*committing(archive.port, *held, "--json"))
    assert answer.code == 1
    assert "commitment" not in json.loads(answer.out)
    assert archive.associations == 1


def test_an_archive_without_storage_commitment_is_told_after_the_files(
    run: Run, archive: Archive, held: list[Path]
) -> None:
    answer = run(*committing(archive.port, *held, "--json"))
    found = json.loads(answer.out)
    assert answer.code == 1
    assert [row["outcome"] for row in found["files"]] == ["sent"] * 3
    assert found["commitment"]["unreported"] == [uid(k) for k in range(3)]
    (problem,) = found["commitment"]["problems"]
    assert "accepts none of the proposed services (Storage Commitment Push Model" in problem


def test_what_cannot_be_asked_to_commit_is_refused_before_anything_is_sent(
    run: Run, archive: Archive, held: list[Path], tmp_path: Path
) -> None:
    with WebArchive().running() as web:
        answer = run("send", "--to", web.url, "--commit", *held)
        assert web.received == []
    assert answer.code == 2
    assert answer.err.startswith(f"error: --commit: {web.url} speaks DICOMweb, which has no storage commitment")
    with Provider(tmp_path, Listen(port=0)) as other:
        taken = run(*committing(archive.port, *held, "--listen", other.port))
    assert taken.code == 1
    assert "the port is in use" in taken.err
    alone = run("send", "--to", node(archive), "--listen", free_port(), *held)
    assert alone.code == 2
    assert "give --commit too" in alone.err
    for wrong in (("--listen", "x"), ("--wait-s", "0"), ("--wait-s", "inf")):
        assert run(*committing(archive.port, *held, *wrong)).code == 2
    assert archive.associations == 0


def test_find_shows_patients_only_when_asked(run: Run, archive: Archive) -> None:
    answer = run("find", "--to", node(archive))
    assert answer.code == 0
    assert STUDY in answer.out
    assert "1 found" in answer.out
    assert nobody(answer.out + answer.err)
    assert PATIENT["PatientName"] in run("find", "--to", node(archive), "--patients").out
    shown = run("find", "--to", node(archive), "--patients", "--json")
    assert json.loads(shown.out)["found"][0]["PatientID"] == PATIENT["PatientID"]
    assert nobody(shown.err)


def test_find_asks_at_each_level(run: Run, archive: Archive) -> None:
    series = run("find", "--to", node(archive), "--level", "series", "--study", STUDY, "--json")
    assert [row["SeriesInstanceUID"] for row in json.loads(series.out)["found"]] == [SERIES]
    images = run("find", "--to", node(archive), "--level", "image", "--study", STUDY, "--series", SERIES, "--json")
    assert len(json.loads(images.out)["found"]) == 3
    wrong = run("find", "--to", node(archive), "--level", "series")
    assert wrong.code == 2
    assert "has no StudyInstanceUID; it is needed" in wrong.err


def test_no_condition_is_repeated_in_an_error(run: Run, archive: Archive) -> None:
    archive.find_status = 0xA900
    conditions = ("--patient-id", PATIENT["PatientID"], "--accession", PATIENT["AccessionNumber"])
    answer = run("find", "--to", node(archive), *conditions, "--patient-name", PATIENT["PatientName"])
    assert answer.code == 1
    assert nobody(answer.out + answer.err)


def test_fetch_writes_what_came_and_says_how_many(run: Run, archive: Archive, tmp_path: Path) -> None:
    answer = run("fetch", "--to", node(archive), "--study", STUDY, "--output", tmp_path / "in")
    assert answer.code == 0
    assert "received 3 instance(s) of 3, 3 of them new" in answer.out
    assert len(list((tmp_path / "in" / STUDY / SERIES).glob("*.dcm"))) == 3
    assert nobody(answer.out + answer.err)


def test_fetch_by_move_listens_where_it_is_told(run: Run, archive: Archive, tmp_path: Path) -> None:
    port = free_port()
    archive.addresses = {"OURS": port}
    flags = ("--aet", "OURS", "--move", port, "--json")
    answer = run("fetch", "--to", node(archive), "--study", STUDY, "--output", tmp_path / "in", *flags)
    assert answer.code == 0
    assert json.loads(answer.out)["received"] == 3
    assert run("fetch", "--to", node(archive), "--study", STUDY, "--output", tmp_path, "--move", "x").code == 2


def test_fetch_that_is_not_complete_is_exit_1(run: Run, archive: Archive, tmp_path: Path) -> None:
    archive.held = [*archive.held, archive.held[0].with_name("gone.dcm")]
    archive.held[-1].write_bytes(archive.held[0].read_bytes())
    changed = pydicom.dcmread(archive.held[-1])
    changed.StudyDescription = "same UID, other content"
    changed.save_as(archive.held[-1])
    answer = run("fetch", "--to", node(archive), "--study", STUDY, "--output", tmp_path / "in")
    assert answer.code == 1
    assert "other content is kept under the UID" in answer.err
    archive.held[-1].unlink()


def test_fetch_of_everything_is_exit_2(run: Run, archive: Archive, tmp_path: Path) -> None:
    answer = run("fetch", "--to", node(archive), "--output", tmp_path)
    assert answer.code == 2
    assert "because an archive is never fetched as a whole" in answer.err


def test_the_verbs_speak_dicomweb_too(run: Run, held: list[Path], tmp_path: Path) -> None:
    with WebArchive(held).running() as archive:
        assert run("echo", "--to", archive.url).code == 0
        assert json.loads(run("find", "--to", archive.url, "--json").out)["found"][0]["StudyInstanceUID"] == STUDY
        assert run("send", "--to", archive.url, *held).code == 0
        assert run("fetch", "--to", archive.url, "--study", STUDY, "--output", tmp_path / "in").code == 0
        assert run("fetch", "--to", archive.url, "--study", "1.2.3", "--output", tmp_path / "in").code == 1
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 3


@pytest.mark.parametrize("verb", ["echo", "send", "find", "fetch"])
def test_help_has_an_example_that_the_parser_accepts(verb: str, run: Run) -> None:
    answer = run(verb, "--help")
    example = re.search(r"example: (monai-unet .*)", answer.out, re.DOTALL)
    assert answer.code == 0
    assert example is not None
    assert max(map(len, answer.out.splitlines())) <= 80
    assert shlex.split(example[1])[:3] == ["monai-unet", "pacs", verb]
    assert build_parser().parse_args(shlex.split(example[1])[1:]).run.__name__ == verb


@pytest.mark.parametrize("date", ["2020", "2020-01-19", "20200119-20200120-", "-", "yesterday"])
def test_a_date_that_no_archive_understands_is_refused(date: str, run: Run, archive: Archive) -> None:
    answer = run("find", "--to", node(archive), f"--date={date}")
    assert answer.code == 2
    assert "YYYYMMDD or a range" in answer.err


@pytest.mark.parametrize("date", ["20200119", "20200101-", "-20201231", "20200101-20201231"])
def test_dates_and_open_ranges_are_asked_for(date: str, run: Run, archive: Archive) -> None:
    assert run("find", "--to", node(archive), f"--date={date}").code == 0
    assert archive.queries[-1].StudyDate == date


def test_refusals_with_one_reason_are_told_in_one_line() -> None:
    found = _group_by_reason(
        [*(f"file {n}: its BurnedInAnnotation is YES" for n in range(3, 15)), "file 20: it: cannot be read"]
    )
    assert found == [
        "files 3, 4, 5, 6, 7, 8, 9, 10 and 4 more: its BurnedInAnnotation is YES",
        "file 20: it: cannot be read",
    ]


def test_on_a_narrow_terminal_answers_are_blocks_with_whole_uids(monkeypatch: pytest.MonkeyPatch) -> None:
    uid, screen = "1.2.826.0.1.3680043.8.498." + "1" * 38, io.StringIO()
    monkeypatch.setattr(dicom_verbs.show, "out", Console(file=screen, width=80, force_terminal=True, color_system=None))
    rows = [{"StudyInstanceUID": uid, "StudyDate": "20200119", "StudyDescription": "head " * 5}]
    columns = {"StudyInstanceUID": "study", "StudyDate": "date", "StudyDescription": "description"}
    dicom_verbs._match_table(rows, columns)
    assert uid in screen.getvalue()
    assert "┃" not in screen.getvalue()
    dicom_verbs._match_table([rows[0] | {"StudyInstanceUID": "1.2", "StudyDescription": ""}], columns)
    assert "┃" in screen.getvalue()

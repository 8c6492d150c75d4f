"""The HTTP API lets in whom it should, takes what C-STORE takes, and reports the results."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
from false_claims import nifti_claiming
from http_sites import ROLES, Site, half_sent, image_of, opened, zipped
from nodes import NAME, PATIENT_ID, make_study, study_of, wait_until, write_site
from pydicom import dcmread

from monai_unet_app.cli import main
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.service import guard, health, http_api
from monai_unet_app.service.audit import read_key, verify
from monai_unet_app.service.http_api import serve
from monai_unet_app.service.node import Node
from monai_unet_app.service.rows import Result
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.tokens import read_tokens


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def idle_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that leave nothing in it."""
    with pytest.MonkeyPatch.context() as patch, opened(tmp_path_factory.mktemp("idle")) as made:
        # That failed logins are answered slowly is tried in test_http_guard.py
        patch.setattr(guard, "_LONGEST_PAUSE_S", 0.01)
        yield made


@pytest.mark.parametrize("way", ["body", "form"])
def test_a_zipped_study_is_segmented_and_its_files_can_be_fetched(site: Site, tmp_path: Path, way: str) -> None:
    study = make_study(tmp_path / "study", 4)
    content = zipped(study, readme=b"not DICOM")
    words = {"data": content} if way == "body" else {"files": {"study": ("study.zip", content)}}
    answer = site.ask("POST", "/studies", "submit", **words)
    assert answer.status_code == 202
    assert answer.json()["studies"] == {study_of(study): 4}
    assert len(answer.json()["refused"]) == 1
    number = site.result("delivered")
    told = site.ask("GET", f"/studies/{study_of(study)}", "read").json()
    assert [version["results"][0]["id"] for version in told["versions"]] == [number]
    found = site.ask("GET", f"/results/{number}", "read").json()
    assert found["files"] == ["binary/one_sc.dcm"]
    file = site.ask("GET", f"/results/{number}/files/binary/one_sc.dcm", "read")
    assert dcmread(io.BytesIO(file.content)).ImageComments == "4 instances"


def test_one_object_is_a_study_too(site: Site, tmp_path: Path) -> None:
    path = next(make_study(tmp_path / "study", 1).glob("*.dcm"))
    assert site.ask("POST", "/studies", "submit", data=path.read_bytes()).status_code == 202
    site.result("delivered")


def test_an_image_needs_a_rule_and_waits_where_the_worker_looks(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), path)
    answer = site.ask("POST", "/studies", "submit", data=path.read_bytes())
    assert answer.status_code == 422
    assert "for a NIfTI image one of any is needed" in answer.json()["detail"]
    first = site.ask("POST", "/studies?rule=any", "submit", data=path.read_bytes()).json()
    again = site.ask("POST", "/studies?rule=any", "submit", data=path.read_bytes()).json()
    assert first == again
    (study,) = first["studies"]
    assert (site.node.store.folder / study / "any" / "image.nii.gz").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_image_that_is_not_packed_is_kept_under_a_name_by_which_it_is_read(
    site: Site, kind: type[nibabel.Nifti1Image], order: str
) -> None:
    voxels = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    content = kind(voxels, np.eye(4), kind.header_class(endianness=order)).to_bytes()
    for sent, name in ((content, "image.nii"), (gzip.compress(content, mtime=0), "image.nii.gz")):
        answer = site.ask("POST", "/studies?rule=any", "submit", data=sent)
        assert answer.status_code == 202
        (study,) = answer.json()["studies"]
        assert [one.name for one in (site.node.store.folder / study / "any").iterdir()] == [name]
        assert np.array_equal(read_volume(site.node.store.folder / study / "any" / name).array, voxels)
        wait_until(lambda: site.node.queue.instances(study) == 1)  # noqa: B023 - it is asked before the next round
    wait_until(lambda: site.node.queue.counts()["results"] == {"delivered": 2})


def test_a_header_without_its_voxels_is_no_image(idle_site: Site) -> None:
    content = nibabel.Nifti1Pair(np.zeros((4, 5, 6), np.float32), np.eye(4)).header.binaryblock
    answer = idle_site.ask("POST", "/studies?rule=any", "submit", data=content)
    assert (answer.status_code, "is not a zip archive" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
@pytest.mark.parametrize(("wish", "state"), [("review", "held"), ("reject", "rejected")])
def test_a_result_that_is_held_back_is_opened_by_a_reviewer_only(
    site: Site, tmp_path: Path, kind: str, wish: str, state: str
) -> None:
    content = image_of(wish) if kind == "nifti" else zipped(make_study(tmp_path / "study", wish=wish))
    assert site.ask("POST", "/studies?rule=any", "submit", data=content).status_code == 202
    number = site.result(state)
    path = f"/results/{number}/files/{'one_seg.nii.gz' if kind == 'nifti' else 'binary/one_sc.dcm'}"
    for role in ("metrics", "submit", "read", "admin"):
        assert site.ask("GET", path, role).status_code == 403
    assert site.ask("GET", path, "reviewer").status_code == 200
    study = site.node.queue.result(number).study
    for role in ("read", "admin"):  # what is said of it names nobody; what was measured is not shown
        told = site.ask("GET", f"/results/{number}", role).json()
        assert (told["state"], told["verdict"], told["files"], told["document"]) == (state, wish, [], None)
        (version,) = site.ask("GET", f"/studies/{study}", role).json()["versions"]
        assert version["results"] == [told]
    assert len(site.ask("GET", f"/results/{number}", "reviewer").json()["files"]) == 1
    words = {"json": {"reason": "all of it is there", "confirm_rejected": True}}
    released = site.ask("POST", f"/results/{number}/release", "reviewer", **words).json()
    assert released["state"] == ("delivered" if kind == "nifti" else "sending")  # a NIfTI result is fetched, not sent
    site.result("delivered")
    assert site.ask("GET", path, "read").status_code == 200
    assert len(list(site.pacs.rglob("*.dcm"))) == (kind == "dicom")


def test_many_uploads_of_one_image_at_once_are_one_image(site: Site) -> None:
    content = image_of() + gzip.compress(os.urandom(2_000_000), mtime=0)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: site.ask("POST", "/studies?rule=any", "submit", data=content), range(48)))
    assert {answer.status_code for answer in answers} == {202}
    ((study,),) = {tuple(answer.json()["studies"]) for answer in answers}
    (kept,) = [path for path in (site.node.store.folder / study).rglob("*") if path.is_file()]
    assert kept.read_bytes() == content
    wait_until(lambda: study not in site.node.arrivals)
    assert site.node.queue.instances(study) == 1


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [
        ("POST", "/studies", {"submit"}),
        ("GET", "/studies/1.2.3", {"read", "reviewer", "admin"}),
        ("GET", "/results/1", {"read", "reviewer", "admin"}),
        ("GET", "/results/1/files/a", {"read", "reviewer"}),
        ("POST", "/results/1/release", {"reviewer"}),
        ("POST", "/results/1/refuse", {"reviewer"}),
        ("POST", "/jobs/1/retry", {"admin"}),
        ("POST", "/deliveries/1/retry", {"admin"}),
        ("POST", "/studies/1.2.3/reprocess", {"admin"}),
        ("GET", "/results/1/decision", {"reviewer"}),
        ("GET", "/results/1/review", {"reviewer"}),
        ("POST", "/results/1/decision", {"reviewer"}),
        ("GET", "/metrics", {"metrics", "read", "reviewer", "admin"}),
        ("GET", "/", {"read", "reviewer", "admin"}),
    ],
)
def test_every_room_has_its_roles(idle_site: Site, method: str, path: str, roles: set[str]) -> None:
    words = {"json": {"reason": "no"}} if path.endswith(("refuse", "release")) else {}
    assert idle_site.ask(method, path, **words).status_code == 401
    wrong = {"Authorization": "Bearer x"}
    assert requests.request(method, idle_site.url + path, headers=wrong, timeout=9).status_code == 401
    for role in ROLES:
        answer = idle_site.ask(method, path, role, **words)
        assert (answer.status_code == 403) == (role not in roles)
        assert answer.status_code != 401


def test_health_needs_no_token_and_tells_nothing(idle_site: Site) -> None:
    assert idle_site.ask("GET", "/health").json() == {"status": "alive"}
    assert idle_site.ask("GET", "/ready").json() == {"ready": True}


def test_what_is_held_back_is_released_by_a_reviewer_once(site: Site, tmp_path: Path) -> None:
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study", wish="review")))
    number = site.result("held")
    words = {"json": {"reason": "all of it is there"}}
    assert site.ask("POST", f"/results/{number}/release", "reviewer").status_code == 422
    assert site.ask("POST", f"/results/{number}/release", "reviewer", **words).json()["state"] == "sending"
    wait_until(lambda: len(list(site.pacs.rglob("*.dcm"))) == 1)
    site.result("delivered")
    assert site.ask("POST", f"/results/{number}/release", "reviewer", **words).status_code == 409


def test_what_is_refused_keeps_its_reason(site: Site, tmp_path: Path) -> None:
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study", wish="review")))
    number = site.result("held")
    answer = site.ask("POST", f"/results/{number}/refuse", "reviewer", json={"reason": "half of it is missing"})
    assert (answer.json()["state"], answer.json()["reason"]) == ("refused", "half of it is missing")
    decided = site.ask("POST", f"/results/{number}/decision", "reviewer", json={"decision": "accepted"})
    assert decided.status_code == 409
    assert f"result {number} is refused; it was refused by Rossi^Anna at 2" in decided.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 422, "is not a zip archive"),
        (b"hello" * 100, 422, "is not a zip archive"),
        (b"PK\x03\x04" + b"broken" * 50, 422, "the archive is broken"),
        (bytes(128) + b"DICM" + b"broken" * 50, 422, "cannot be read"),
        (bytes(11_000_000), 413, "larger than this node allows"),
    ],
    ids=["nothing", "text", "broken archive", "broken object", "too large"],
)
def test_what_cannot_be_used_is_refused(idle_site: Site, content: bytes, status: int, said: str) -> None:
    answer = idle_site.ask("POST", "/studies", "submit", data=content)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert list((idle_site.node.folder / "uploads").iterdir()) == []


def test_an_archive_that_becomes_too_large_is_refused(idle_site: Site, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(128) + b"DICM" + bytes(60_000_000))
    assert len(stream.getvalue()) < 100_000
    answer = idle_site.ask("POST", "/studies", "submit", data=stream.getvalue())
    assert answer.status_code == 422
    assert "becomes more than" in answer.json()["detail"]


def test_a_form_that_is_too_large_is_refused_while_it_comes(idle_site: Site) -> None:
    with half_sent(idle_site.url, idle_site.tokens["submit"], bytes(11_000_000)) as sender:
        assert sender.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_small_image_that_claims_more_voxels_than_it_can_hold_is_refused_at_the_door(idle_site: Site) -> None:
    for shape, reason in {
        (30000, 30000, 3000): "2700000000000 in all; at most 1073741824 fit",
        (1000, 1000, 1000): "2000000000 bytes, and holds",
    }.items():
        content = nifti_claiming(shape)
        for upload in (content, gzip.compress(content)):
            answer = idle_site.ask("POST", "/studies?rule=any", "submit", data=upload)
            assert (answer.status_code, reason in answer.json()["detail"]) == (422, True)
    answer = idle_site.ask("POST", "/studies?rule=any", "submit", data=gzip.compress(b"no image"))
    assert (answer.status_code, "the image cannot be read as NIfTI" in answer.json()["detail"]) == (422, True)
    assert idle_site.node.queue.counts()["studies"] == {}


def test_an_upload_that_stops_is_not_waited_for_without_end(idle_site: Site) -> None:
    config = HttpConfig(idle_site.node.folder.parent / "tokens", port=0, most_upload_s=0.5)
    token = idle_site.tokens["submit"]
    with serve(idle_site.node, config) as server, half_sent(f"http://127.0.0.1:{server.port}", token, b"PK") as sender:
        assert sender.recv(100).startswith(b"HTTP/1.1 408 ")
    assert list((idle_site.node.folder / "uploads").iterdir()) == []


def test_a_corrected_mask_is_bounded_as_an_upload_is(site: Site, tmp_path: Path) -> None:
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study", wish="review")))
    path = f"/results/{site.result('held')}/decision"
    words = {"data": {"decision": json.dumps({"decision": "corrected"})}}
    taken = site.ask("POST", path, "reviewer", files={"mask": ("mask.nii.gz", bytes(5_000_000))}, **words)
    assert (taken.status_code, "cannot be looked at" in taken.text) == (
        422,
        True,
    )  # the worker here makes no result.json
    answer = site.ask("POST", path, "reviewer", files={"mask": ("mask.nii.gz", bytes(11_000_000))}, **words)
    assert answer.status_code == 413
    assert list((site.node.folder / "uploads").iterdir()) == []


def test_no_answer_names_a_folder_of_the_node(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(node: Node, result: Result, told: object, who: str, mask: Path) -> None:
        raise InputRefusedError(f"{mask.resolve()} is no mask; a NIfTI file is needed")

    monkeypatch.setattr(http_api, "decide", refused)
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study", wish="review")))
    words = {"data": {"decision": json.dumps({"decision": "corrected"})}, "files": {"mask": ("m.nii.gz", b"none")}}
    answer = site.ask("POST", f"/results/{site.result('held')}/decision", "reviewer", **words)
    assert answer.status_code == 422
    assert re.fullmatch(r"tmp\w+\.nii\.gz is no mask; a NIfTI file is needed", answer.json()["detail"])


def test_words_are_bounded_more_closely_than_files(site: Site, tmp_path: Path) -> None:
    content = zipped(make_study(tmp_path / "study", wish="review"), noise=os.urandom(5_000_000))
    assert site.ask("POST", "/studies", "submit", data=content).status_code == 202
    number, words = site.result("held"), {"reason": "no" * 1_000_000, "decision": "accepted"}
    for path in ("refuse", "decision"):
        assert site.ask("POST", f"/results/{number}/{path}", "reviewer", json=words).status_code == 413
    nobody = site.ask("POST", f"/results/{number}/refuse", json=words)  # nothing of it is read
    assert nobody.status_code == 401
    assert site.node.queue.result(number).state == "held"


def test_no_file_but_a_results_own_can_be_fetched(site: Site, tmp_path: Path) -> None:
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study")))
    number = site.result("delivered")
    names = (
        "..%2f..%2f..%2faudit.jsonl", "%2e%2e%2f%2e%2e%2fnode.sqlite", "binary", "nothing", "", "binary%00", "n" * 256,
        "binary%2f" + "n" * 256, "n%2f" * 2500,
    )  # fmt: skip
    answers = {name: site.ask("GET", f"/results/{number}/files/{name}", "reviewer").status_code for name in names}
    assert answers == dict.fromkeys(names, 404)


def test_nobody_is_named_anywhere_but_in_the_objects(site: Site, tmp_path: Path) -> None:
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study", wish="review")))
    number = site.result("held")
    pages = ["/", "/metrics", f"/results/{number}", f"/studies/{site.node.queue.result(number).study}", "/openapi.json"]
    told = "".join(site.ask("GET", page, "admin").text for page in pages)
    assert 'monai_unet_results{state="held"} 1.0' in told
    kept = [path for path in site.node.folder.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    assert len(kept) >= 3
    for secret in (NAME, "Quintessenza", PATIENT_ID, "19310717", "ACC-55-QX"):
        assert secret not in told
        for path in kept:
            assert secret.encode() not in path.read_bytes(), path.name
            assert secret not in str(path)


def test_the_status_page_says_what_waits_for_somebody(site: Site, tmp_path: Path) -> None:
    site.ask("POST", "/studies", "submit", data=zipped(make_study(tmp_path / "study", wish="review")))
    site.result("held")
    page = requests.get(site.url + "/", auth=("anybody", site.tokens["reviewer"]), timeout=9).text
    assert "Held back until a reviewer decides" in page
    assert f'<a href="/results/{site.node.queue.results((), 1)[0].id}/review">' in page
    assert "Ready. Nothing is wrong." in page


def test_what_was_not_processed_is_worked_at_again_by_a_button(site: Site, tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", wish="nothing")
    site.ask("POST", "/studies", "submit", data=zipped(study))
    site.result("not processed")
    page = requests.get(site.url + "/", auth=("anybody", site.tokens["admin"]), timeout=9).text
    action = re.search(r'<form method="post" action="(.*?)"><button>process it again', page)[1]
    pressed = site.ask("POST", action, "admin", headers={"Accept": "text/html,*/*"}, allow_redirects=False)
    assert (pressed.status_code, pressed.headers["Location"]) == (303, "/")
    wait_until(lambda: site.node.queue.counts()["results"] == {"not processed": 2})
    asked = site.ask("POST", action, "admin")
    assert (asked.status_code, asked.json()) == (202, {"study": study_of(study)})


def test_a_request_that_does_not_fit_is_told_what_is_missing(idle_site: Site) -> None:
    answer = idle_site.ask("POST", "/results/1/refuse", "reviewer")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("body.reason: Field required")


def test_a_token_is_shown_once_and_only_its_digest_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "token", "--name", "Rossi^Anna", "--roles", "reviewer,read"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] not in lines[3]
    (tmp_path / "tokens").write_text(" ".join(lines[3:]) + "\n")
    (holder,) = read_tokens(tmp_path / "tokens").values()
    assert (holder.name, holder.roles) == ("Rossi^Anna", {"reviewer", "read"})
    assert main(["node", "token", "--name", "rossi", "--roles", "king"]) == 2
    assert main(["node", "token", "--name", "R" * 65, "--roles", "read"]) == 2


def test_beyond_this_machine_tokens_travel_encrypted_or_not_at_all(tmp_path: Path) -> None:
    path = write_site(tmp_path, 104)
    path.write_text(path.read_text() + '[http]\ntokens = "tokens"\nhost = "0.0.0.0"\n')
    with pytest.raises(UsageError, match="can read the tokens"):
        read_site(path)


@pytest.mark.parametrize("what", ["jobs", "deliveries"])
def test_only_dead_letters_are_tried_again(idle_site: Site, what: str) -> None:
    answer = idle_site.ask("POST", f"/{what}/999/retry", "admin")
    assert answer.status_code == 404
    assert "999 is a dead letter" in answer.json()["detail"]
    assert "retried" not in (idle_site.node.folder / "audit.jsonl").read_text()


def test_an_upload_that_is_stored_while_the_trail_is_away_says_so_and_its_line_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_S", 0.1)
    with opened(tmp_path) as site:
        trail, study = tmp_path / "node/audit.jsonl", make_study(tmp_path / "study")
        kept = trail.rename(tmp_path / "kept")
        answer = site.ask("POST", "/studies", "submit", data=zipped(study))
        assert answer.status_code == 202
        assert answer.json()["studies"] == {study_of(study): 3}
        assert (
            "all of studies is stored; a fault of the node: its audit trail cannot be written" in answer.json()["fault"]
        )
        # What must be recorded first is not done.
        refused = site.ask("POST", "/find", "read", data={"text": "1"})
        assert (refused.status_code, str(tmp_path) in refused.text) == (503, False)
        assert "its audit trail cannot be written; nothing was done" in refused.json()["detail"]
        assert requests.get(site.url, headers={"Authorization": "Bearer wrong"}, timeout=9).status_code == 401
        wait_until(lambda: site.ask("GET", "/ready").status_code == 503, 10)
        page = site.ask("GET", "/?still=true", "read").text
        assert "The audit trail cannot be written; 2 lines wait for it in the database." in page
        kept.rename(trail)
        wait_until(lambda: site.node.queue.counts()["results"] == {"delivered": 1})
        verify(trail, read_key(tmp_path / "node/audit.key"))
        lines = [json.loads(line) for line in trail.read_text().splitlines()]
        (line,) = (line for line in lines if line["event"] == "submitted")
        assert (line["who"], line["studies"]) == ("submit", [study_of(study)])
        assert line["at"] < line["time"]
        assert [line["event"] for line in lines].count("login failed") == 1
        assert site.node.queue.kept_lines() == []

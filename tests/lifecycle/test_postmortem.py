"""A post-mortem names what differs between two versions, replays a study by both, and finds the subgroup that was planted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from empty_registry import empty_registry
from once import made_once
from shell import Run, shell

pytest.importorskip("sqlalchemy")

from dicom_io.dicomize import dicomize
from dicom_io.volume import Provenance, Volume
from monai_unet_app.lifecycle import postmortem_page
from monai_unet_app.lifecycle.postmortem import Postmortem, subgroups
from monai_unet_app.lifecycle.registry import open_registry
from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.queue import Queue

run = pytest.fixture(shell)
SITE = """
[node]
folder = "node"
[registry]
folder = "registry"
[[rules]]
name = "hippocampus"
bundle = "registry:hippocampus@champion"
deliver_ungated = true
match = {Modality = "MR"}
"""
FIRST, SECOND = "a" * 64, "b" * 64


def trail_of(folder: Path) -> tuple[AuditTrail, Queue]:
    folder.mkdir(parents=True, exist_ok=True)
    queue = Queue(folder / "node.sqlite")
    return AuditTrail(folder / "audit.jsonl", None, queue), queue


def compare_studies(trail: AuditTrail, first: str, second: str) -> None:
    """Forty studies: on scanner B with thick slices the second version is worse by 0.05, elsewhere as good."""
    for n in range(40):
        scanner, thick = "AB"[n % 2], ("1", "3")[n % 4 >= 2]
        job, worse = n + 1, 0.05 if (scanner, thick) == ("B", "3") else 0.001 * (-1) ** (n // 4)
        words = {"ManufacturerModelName": scanner, "SliceThickness": thick, "Modality": "MR", "Both": scanner + thick}
        seen = {"words": words, "numbers": {}, "bundle": first}
        about = {
            "study": f"1.2.{n}",
            "series": f"1.2.{n}.1",
            "job": job,
            "result": job,
            "state": "sending",
            "verdict": "accept",
        }
        trail.write("result", rule="hippocampus", observed=seen, **about)
        # Half of them with the second version as champion
        champion, challenger, dice = (
            (first, second, [0.9, 0.9 - worse]) if n % 8 < 4 else (second, first, [0.9 - worse, 0.9])
        )
        facts = {"champion": champion, "challenger": challenger, "dice": dice}
        trail.write("compared", study=f"1.2.{n}", job=job, compared={"hippocampus": facts})


def test_the_subgroup_that_was_planted_is_named(tmp_path: Path) -> None:
    trail, queue = trail_of(tmp_path)
    compare_studies(trail, FIRST, SECOND)
    found = subgroups(tmp_path / "audit.jsonl", "hippocampus", (FIRST, SECOND))
    queue.close()
    worst = found[0]
    assert (worst.name, worst.studies, worst.worse) == ("Both is B3", 10, 10)
    assert worst.difference == pytest.approx(-0.05)
    assert worst.p < 0.05
    whole = next(one for one in found if one.name == "all studies")
    assert whole.difference == pytest.approx(-0.05 / 4, abs=1e-3)
    assert not [one for one in found if one.name == "Modality is MR"]  # all studies have it
    back = subgroups(tmp_path / "audit.jsonl", "hippocampus", (SECOND, FIRST))
    assert all(one.difference >= -0.001 or one.p > 0.05 for one in back)


@pytest.fixture
def site(
    tiny_bundle: Callable[[], Path], crop: Volume, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A site with two versions, and a study that its node has got; `tmp_path` holds it."""

    def make(folder: Path) -> None:
        make_site(tiny_bundle(), crop, folder, tmp_path_factory)

    shutil.copytree(made_once(tmp_path_factory, "site_of_a_postmortem", make), tmp_path, dirs_exist_ok=True)
    (study,) = (tmp_path / "node/received").iterdir()
    return tmp_path / "site.toml", study.name


def make_site(root: Path, crop: Volume, folder: Path, factory: pytest.TempPathFactory) -> None:
    """Fills a folder that may be moved: what the site's file names stands beside it."""
    with open_registry(empty_registry(factory, folder / "registry")) as registry:
        first = registry.add(root, "hippocampus").sha256
        config = root / "configs/inference.yaml"
        config.write_text(config.read_text() + "# a line that the second version has\n")
        (root / "models/run.json").write_text(
            json.dumps(
                {"data_sha256": "2" * 64, "cases": {"later": {"partition": "train", "subject": "x"}}, "sessions": []}
            )
        )
        second = registry.add(root, "hippocampus").sha256
        registry.promote("hippocampus", "1", "champion", "Bianchi^Eva", {}, "the first")
    made = dicomize(replace(crop, provenance=Provenance("nifti")), folder / "in", case_id="one")
    study = made.series_folder.parent.name
    shutil.copytree(made.series_folder, folder / "node/received" / study / made.series_folder.name)
    trail, queue = trail_of(folder / "node")
    compare_studies(trail, first, second)
    trail.write("complete", study=study, version=1, job=99, instances=33)
    queue.close()
    (folder / "site.toml").write_text(SITE)


def test_a_case_is_replayed_by_both_versions_and_the_page_says_what_differs(
    run: Run, site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, study = site
    page = tmp_path / "page.html"
    sizes: list[list[list[float]]] = []
    write = postmortem_page.write_postmortem

    def noting_sizes(whole: Postmortem, place: Path) -> None:
        for replay in whole.replays:
            cases = [case for case in replay.made if not isinstance(case, str)]
            sizes.append([[one.size for one in case.segmentation.structures] for case in cases])
        write(whole, place)

    monkeypatch.setattr(postmortem_page, "write_postmortem", noting_sizes)
    answer = run(
        "node",
        "postmortem",
        "--config",
        str(path),
        "--case",
        study,
        "--between",
        "1",
        "2",
        "--output",
        str(page),
        "--json",
    )
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["differences"]["training data"][1] == "2" * 64
    assert "only here: 1 (later)" in found["differences"]["training cases"][1]
    assert "+# a line that the second version has" in found["config"]
    assert [one["faults"] for one in found["replayed"]] == [["", ""]]
    assert found["worst"]["name"] == "Both is B3"
    text = page.read_text()
    assert "The second version is worse where Both is B3" in text
    assert text.count("<img") + text.count("<svg") >= 1
    ((by_first, by_second),) = sizes
    assert by_first == by_second  # the same weights


def test_a_forgotten_study_has_no_replay_and_an_unknown_one_is_refused(
    run: Run, site: tuple[Path, str], tmp_path: Path
) -> None:
    path, study = site
    shutil.rmtree(tmp_path / "node/received")
    words = (
        "node",
        "postmortem",
        "--config",
        str(path),
        "--between",
        "1",
        "2",
        "--output",
        str(tmp_path / "page.html"),
    )
    assert run(*words, "--case", study).code == 0
    assert "Its images are not kept any more" in (tmp_path / "page.html").read_text()
    unknown = run(*words, "--case", "1.2.3.4")
    assert (unknown.code, "says nothing of study 1.2.3.4" in unknown.err) == (3, True)
    one = run("node", "postmortem", "--config", str(path), "--case", study, "--between", "1")
    assert (one.code, "--between has 1 words; two versions are needed" in one.err) == (2, True)


def test_a_checklist_measures_what_it_can(run: Run, site: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = site
    answer = run("node", "checklist", "--config", str(path), "--json")
    items = {one["text"]: one for one in json.loads(answer.out)["items"]}
    assert answer.code == 1
    assert items["Each rule names its bundle by sha256 or in the registry"]["state"] == "done"
    bundles = items["Each bundle is there, coded, and has the quality gate that its rule needs"]
    assert (bundles["state"], "there is no copy of registry:hippocampus@champion" in bundles["found"]) == (
        "missing",
        True,
    )
    key = items["The audit trail's key is there and only the node reads it"]
    assert (key["state"], key["found"]) == ("done", "mode 600")
    (tmp_path / "node/audit.key").chmod(0o644)
    daily = json.loads(run("node", "checklist", "--config", str(path), "--kind", "production", "--json").out)["items"]
    found = {one["text"]: one["state"] for one in daily}
    assert found["Daily: no dead letter"] == "done"
    assert found["Daily: the audit trail is whole and signed"] == "missing"  # others may read its key
    assert found["Weekly: nothing has drifted for rule hippocampus"] == "missing"  # no reference is frozen
    incident = run("node", "checklist", "--config", str(path), "--kind", "incident")
    assert incident.code == 0
    assert "postmortem" in incident.out


def test_a_checklist_sees_a_trail_that_was_cut_or_is_gone(run: Run, site: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = site
    trail = tmp_path / "node/audit.jsonl"

    def found(kind: str) -> dict[str, dict[str, str]]:
        answer = run("node", "checklist", "--config", str(path), "--kind", kind, "--json")
        return {one["text"]: one for one in json.loads(answer.out)["items"]}

    whole = "Daily: the audit trail is whole and signed"
    assert found("production")[whole]["state"] == "done"
    trail.write_text("".join(trail.read_text().splitlines(keepends=True)[:-1]))
    assert found("production")[whole]["state"] == "missing"
    shutil.rmtree(tmp_path / "node")
    assert found("production")[whole]["found"] == "no audit.jsonl: the node was never started here"
    gone = found("incident")
    assert [one["state"] for text, one in gone.items() if "Know" in text or "trail says" in text] == ["missing"] * 4

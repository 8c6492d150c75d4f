"""Old names of verbs do what their new forms do, and say on stderr which these are."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from net_peers import STUDY, Archive, ct_series
from shell import Answer, Run, shell
from test_compare import noisy, people, write_evaluation
from test_report_card import evaluation_of

from monai_unet_app.cli.parser import OLD_NAMES
from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.queue import Queue

run = pytest.fixture(shell)
OLD_AND_NEW = {
    "echo": ("echo --to {node}", "pacs echo --to {node}"),
    "find": ("find --to {node} --patients", "pacs find --to {node} --patients"),
    "fetch": ("fetch --to {node} --study {study} --output in", "pacs fetch --to {node} --study {study} --output in"),
    "send": ("send --to {node} --json held", "pacs send --to {node} --json held"),
    "token": ("token --name A^B --days 3", "node token --name A^B --days 3"),
    "commission": ("commission --verify absent.json", "node commission --verify absent.json"),
    "audit": ("audit verify --key audit.key audit.jsonl", "trace --audit audit.jsonl --key audit.key"),
    "bundles": ("bundles", "doctor --bundles"),
    "package": (
        "package --bundle hippocampus_mri_unet2d --output out",
        "bundle package --bundle hippocampus_mri_unet2d --output out",
    ),
    "report": ("report --evaluation measured --bundle bundle", "evaluate --evaluation measured --bundle bundle --into-bundle"),
    "gate": (
        "gate --evaluation worse --against-evaluation good --margin dice=0.01 --output out",
        "compare --fail-if-worse --first good --second worse --margin dice=0.01 --output out",
    ),
}  # fmt: skip


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An archive, and a folder with all that the commands name, in which they run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(secrets, "token_urlsafe", lambda length: "x" * length)  # of the token, which is random
    AuditTrail(Path("audit.jsonl"), None, Queue(Path("trail.sqlite"))).write("started")
    write_evaluation(Path("good"), people(12))
    write_evaluation(Path("worse"), noisy(-0.05))
    with Archive(held=ct_series(tmp_path / "held", 3)).running() as archive:
        yield f"ARCHIVE@127.0.0.1:{archive.port}"


def ran(run: Run, command: str, node: str) -> Answer:
    """What a command gives where no command ran before it; times are left out of stdout."""
    for folder in ("in", "out", "bundle", "measured"):
        shutil.rmtree(folder, ignore_errors=True)
    if "bundle " in f"{command} ":
        shutil.copytree(REPOSITORY / "bundles/hippocampus_mri_unet3d", "bundle")
        evaluation_of(Path("bundle"), Path("measured"))
    answer = run(*command.format(node=node, study=STUDY).split())
    return Answer(answer.code, re.sub(r"\d+\.\d\d s", "", answer.out), answer.err)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_an_old_name_does_what_the_new_form_does_and_says_so(name: str, run: Run, node: str) -> None:
    old, new = (ran(run, command, node) for command in OLD_AND_NEW[name])
    assert (old.code, old.out) == (new.code, new.out)
    assert new.code == {"gate": 1, "commission": 3}.get(name, 0), new.err
    assert new.out or name == "commission"
    said = f"monai-unet {name} is an old name, which the next version will not have; use monai-unet {OLD_NAMES[name]}\n"
    assert old.err == said + new.err


@pytest.mark.parametrize("name", OLD_NAMES)
def test_an_old_name_refuses_flags_that_it_never_had(name: str, run: Run) -> None:
    answer = run(name, "--colour")
    assert answer.code == 2
    assert f"usage: monai-unet {name} " in answer.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("gate", 2),
        ("gate --bundle a", 2),
        ("gate --bundle a --evaluation good --against b", 2),
        ("gate --evaluation good --against-evaluation good --data somewhere", 2),
        ("gate --evaluation none --against-evaluation good", 3),
        ("report --evaluation measured", 2),
        ("report --evaluation measured --bundle bundle --output out", 2),
        ("report --evaluation none --bundle hippocampus_mri_unet3d", 2),
        ("audit audit.jsonl", 2),
        ("audit verify none", 3),
    ],
)
def test_what_an_old_name_refused_is_refused_as_before(words: str, code: int, run: Run, node: str) -> None:
    assert run(*words.split()).code == code

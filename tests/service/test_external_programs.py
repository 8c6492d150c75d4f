"""A node whose rule starts a program of somebody else: a worker that is killed loses nothing and leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from nodes import pacs, started, store, wait_until
from other_program import AFFINE_RAS, PROGRAM, case, program_bundle_once
from phantoms import write_mr_series
from processes_of import marked
from pydicom import dcmread

from dicom_io.volume import LPS_FROM_RAS

SITE = """
[node]
folder = "node"
stable_s = 0.3
first_pause_s = 0.1
worker_gb = 4
job_s = 100
[external]
path = "{path}"
[[rules]]
name = "organs"
bundle = "{bundle}"
match = {{ Modality = "MR" }}
destinations = ["pacs"]
[destinations.pacs]
host = "127.0.0.1"
port = {port}
ae_title = "PACS"
"""
ONCE = """import os, sys, time
from pathlib import Path
flag = Path({flag!r})
if not flag.exists():
    flag.touch()
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(300)", {mark!r}])
    time.sleep(300)
os.execv(sys.executable, [sys.executable, *{words!r}, *sys.argv[1:]])
"""


@pytest.fixture
def mark() -> str:
    return f"mark-{uuid4().hex}"


def workers() -> list[int]:
    """Process ids of the workers that this process has started."""
    found = []
    for pid in marked("monai_unet_app.service.work"):
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        found += [pid] if int(parent) == os.getpid() else []
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has what it needs")
def test_a_worker_that_is_killed_while_its_program_runs_leaves_nothing_and_the_study_is_done(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mark: str
) -> None:
    bundle = Path(shutil.copytree(program_bundle_once(tmp_path_factory), tmp_path / "segmenter"))
    script = tmp_path / "once.py"
    script.write_text(ONCE.format(flag=str(tmp_path / "begun"), mark=mark, words=PROGRAM[1:]))
    command = bundle / "configs/external.json"
    assert PROGRAM[1] in command.read_text()
    command.write_text(command.read_text().replace(PROGRAM[1], str(script), 1))
    write_mr_series(tmp_path / "series", case(500)[0] + 1000, LPS_FROM_RAS @ AFFINE_RAS)
    with pacs(tmp_path / "pacs") as archive:
        site = tmp_path / "site.toml"
        site.write_text(SITE.format(path=Path(sys.executable).parent, bundle=bundle, port=archive.port))
        with started(site, worker="monai_unet_app.service.work") as node:
            wait_until(lambda: node.is_ready)
            store(node, tmp_path / "series")
            wait_until(lambda: len(marked(mark)) >= 1)
            (worker,) = workers()
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: not marked(mark))
            wait_until(lambda: len(list((tmp_path / "pacs").rglob("*.dcm"))) == 2, 90.0)
    kinds = {dcmread(path).Modality for path in (tmp_path / "pacs").rglob("*.dcm")}
    assert kinds == {"SEG", "SR"}
    assert not marked(mark)

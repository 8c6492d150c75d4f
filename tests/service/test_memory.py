"""The receiver is as small after a burst as docs/operations.md says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from nodes import make_study, wait_until, write_site
from ports import free_port

from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from monai_unet_app.machine_memory import resident_bytes
from monai_unet_app.service.tokens import new_token

PROMISED_MB = 150
NODE = """
import functools, sys
from monai_unet_app.cli import main, service_verbs
from monai_unet_app.service import node

node.Node = functools.partial(node.Node, worker="fake_worker")
service_verbs._check_bundles = lambda path: None
sys.exit(main(["node", "--config", sys.argv[1]]))
"""


def packed(study: Path) -> bytes:
    """The files of a study in an archive, not packed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for path in study.glob("*.dcm"):
            archive.write(path, path.name)
    return stream.getvalue()


def test_the_receiver_loads_nothing_large() -> None:
    code = "import sys, monai_unet_app.service.node, monai_unet_app.service.http_api; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "monai", "scipy", "nibabel", "SimpleITK", "matplotlib", "mlflow", "highdicom"} & set(loaded)


@pytest.mark.slow
def test_the_receiver_is_small_again_after_a_burst_over_both_doors(tmp_path: Path) -> None:
    dicom, http = free_port(), free_port()
    token, line = new_token("modality", ["submit"])
    (tmp_path / "tokens").write_text(line)
    site = write_site(tmp_path, 1, node=f"port = {dicom}\n")
    site.write_text(f'{site.read_text()}[http]\ntokens = "tokens"\nport = {http}\n')
    studies = [make_study(tmp_path / "in" / f"{n}", 4, size=1500) for n in range(16)]
    root = Path(__file__).parents[2]
    places = os.pathsep.join([str(root), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    started = subprocess.Popen([sys.executable, "-c", NODE, str(site)], env={**os.environ, "PYTHONPATH": places})
    peer = parse_destination(f"MONAIUNET@127.0.0.1:{dicom}")

    def upload(study: Path) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.post(
            f"http://127.0.0.1:{http}/studies", data=packed(study), headers=headers, timeout=300
        ).status_code

    def answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{http}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        wait_until(answers, 120)
        with ThreadPoolExecutor(16) as pool:
            sent = list(pool.map(lambda study: send(peer, sorted(study.glob("*.dcm"))), studies))
            assert all(one.is_delivered for outcomes in sent for one in outcomes)
            assert set(pool.map(upload, studies)) == {202}
        end = time.monotonic() + 30
        while resident_bytes(started.pid) > PROMISED_MB * 1e6 and time.monotonic() < end:
            time.sleep(1)
        assert resident_bytes(started.pid) < PROMISED_MB * 1e6
    finally:
        started.terminate()
        started.wait(60)

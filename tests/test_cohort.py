"""Many cases: what is there stays, what fails stops nothing, and two at a time change no byte."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shell import Run, shell
from small_data import FEW, few_examples, set_calibration

from monai_unet_app import cohort
from monai_unet_app.bundle import load_bundle
from monai_unet_app.cohort import predict_cases
from monai_unet_app.config import OutputConfig, PredictConfig
from monai_unet_app.data.case_files import find_images
from monai_unet_app.pipeline import Case

run = pytest.fixture(shell)


def test_a_cohort_goes_on_where_it_was_ended(run: Run, tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """What was written for the same request stays, to the byte and the second; all else is made anew."""
    data, out = few_examples(tmp_path / "in", FEW[:3]) / "images", tmp_path / "out"
    root = tiny_bundle()
    words = ["predict", "--bundle", root, "--input", data, "--output", out, "--device", "cpu", "--deliver-rejected"]
    records = [out / f"{case}_result.json" for case in FEW[:3]]

    def made_anew(*more: str) -> list[bool]:
        before = [path.stat().st_mtime_ns if path.exists() else 0 for path in records]
        answer = run(*words, *more)
        assert answer.code == 0, answer.err
        assert re.search(r"core-seconds: \S+ a case, \S+ a litre; \d+% of \d+ cores; \d\.\d GB at most", answer.out)
        return [path.stat().st_mtime_ns != old for path, old in zip(records, before, strict=True)]

    assert made_anew("--resume") == [True, True, True]
    assert made_anew("--resume") == [False, False, False]
    (out / f"{FEW[0]}_seg.nii.gz").unlink()  # a result that somebody took apart
    records[1].write_text("{")
    assert made_anew("--resume") == [True, True, False]
    shutil.copyfile(data / f"{FEW[0]}.nii.gz", data / f"{FEW[2]}.nii.gz")  # another image under its name
    assert made_anew("--resume") == [False, False, True]
    assert made_anew("--resume", "--uncertainty") == [True, True, True]
    set_calibration(root, 0.2, -0.1)
    assert made_anew("--resume", "--uncertainty") == [True, True, True]
    assert made_anew("--uncertainty") == [True, True, True]


def test_a_case_that_cannot_be_written_stops_none_of_the_others(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cohort.write_results

    def full_disk(case: Case, case_id: str, *others: Any) -> dict[str, Any]:
        if case_id == FEW[1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(case, case_id, *others)

    monkeypatch.setattr(cohort, "write_results", full_disk)
    cases = find_images(few_examples(tmp_path / "in", FEW[:3]) / "images")
    config = OutputConfig(deliver_rejected=True)
    done, problems = predict_cases(cases, load_bundle(tiny_bundle()), PredictConfig(), config, tmp_path / "out")
    assert [one["case"] for one in done] == sorted([FEW[0], FEW[2]])
    assert problems == [
        f"{FEW[1]}: its results could not be written (No space left on device); free space or choose another output"
    ]


def digests(folder: Path) -> dict[str, str]:
    """Of all files but the seconds in a result.json."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if ".partial-" not in str(path)):
        content = path.read_bytes()
        if path.name.endswith("_result.json"):
            content = json.dumps({**json.loads(content), "seconds": None}).encode()
        found[path.name] = hashlib.sha256(content).hexdigest() if path.is_file() else ""
    return found


def test_cases_one_by_one_and_a_cohort_that_was_killed_give_the_same_bytes(
    run: Run, tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    data, root = few_examples(tmp_path / "in", FEW[:3]) / "images", tiny_bundle()
    flags = ["--device", "cpu", "--deliver-rejected", "--format", "nifti,png", "--resume"]

    def words(output: Path) -> list[str]:
        return ["predict", "--bundle", str(root), "--input", str(data), "--output", str(output), *flags]

    killed, together, alone = (tmp_path / name for name in ("killed", "together", "alone"))
    program = [sys.executable, "-m", "monai_unet_app", *words(killed)]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL)
    while not list(killed.glob("*_result.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for output in (killed, together):
        assert run(*words(output)).code == 0
    bundle, config = load_bundle(root), OutputConfig(("nifti", "png"), deliver_rejected=True, resume=True)
    for case in find_images(data):
        predict_cases([case], bundle, PredictConfig(), config, alone)
    assert digests(killed) == digests(together) == digests(alone)
    assert len(digests(alone)) == 3 * 3

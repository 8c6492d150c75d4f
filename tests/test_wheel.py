"""The installed wheel works outside the repository, and each bundle's zip by itself."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES, REPOSITORY, SHIPPED, smaller

from monai_unet_app.bundle import load_bundle


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` puts there; the dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    left = shutil.ignore_patterns(".git", ".venv*", "work", "demo", "build", "dist", "*_cache", "__pycache__")
    shutil.copytree(REPOSITORY, tree, ignore=left)
    (tree / ".gitignore").unlink()
    for leaving in ("run", "eval", "data"):
        (tree / "bundles" / SHIPPED[0].name / leaving).mkdir(exist_ok=True)
        (tree / "bundles" / SHIPPED[0].name / leaving / "leaving.txt").write_text("of somebody's work")
    build = [sys.executable, "-m", "build", "--quiet", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(build, cwd=tree, check=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def from_wheel(installed: Path, folder: Path, *words: str) -> dict[str, Any]:
    """Runs the program of the wheel in a folder far from the repository and gives its JSON."""
    where = "import monai_unet_app, sys; sys.stdout.write(monai_unet_app.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", where], cwd=folder, env=environment, capture_output=True, text=True)
    assert Path(found.stdout).is_relative_to(installed)
    program = [sys.executable, "-m", "monai_unet_app", *words, "--json"]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contents(folder: Path) -> set[Path]:
    """Every file below a folder, by its path from there."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder) for path in files}


@pytest.mark.slow
def test_the_wheel_has_its_bundles_with_it_and_no_leavings_of_work(installed: Path, tmp_path: Path) -> None:
    rows = from_wheel(installed, tmp_path, "doctor", "--bundles")["bundles"]
    assert [row["name"] for row in rows] == [folder.name for folder in SHIPPED]
    for row, folder in zip(rows, SHIPPED, strict=True):
        assert Path(row["folder"]).is_relative_to(installed)
        assert row["sha256"] == (load_bundle(folder).sha256 if row["trained"] else None)
    assert list(installed.rglob("leaving.txt")) == []
    assert (installed / "monai_unet_app/service/templates/status.html").is_file()
    for package in ("monai_unet_app", "dicom_io"):
        assert contents(installed / package) >= contents(REPOSITORY / package)
    assert contents(installed / "monai_unet_app/_shipped/examples") == contents(EXAMPLES.parent)


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """On some of the cases with a small network: `make demo` takes all of them and the whole network, with the same code."""
    site = shutil.copytree(installed, tmp_path / "site")
    examples = site / "monai_unet_app/_shipped/examples"
    plan = json.loads((examples / "splits.json").read_text())["datasets"]["msd_hippocampus"]["cases"]
    for partition, count in {"train": 6, "selection": 2, "calibration": 6, "test": 3}.items():
        there = [
            row["id"]
            for row in plan
            if row["partition"] == partition and (EXAMPLES / "images" / f"{row['id']}.nii.gz").exists()
        ]
        for name in there[count:]:
            for kind in ("images", "labels"):
                (examples / "msd_hippocampus" / kind / f"{name}.nii.gz").unlink()
    config = site / "monai_unet_app/_shipped/bundles/hippocampus_mri_unet3d/configs/inference.yaml"
    config.write_text(smaller(config.read_text()))
    answer = from_wheel(site, tmp_path, "demo", "--epochs", "1", "--output", "demo")
    assert answer["passed"]
    assert not [text for text in answer["checks"].values() if text.startswith("not run")]
    assert (tmp_path / "demo/report/report.html").is_file()


def test_each_bundle_is_zipped_whole_and_the_same_each_time(tmp_path: Path) -> None:
    program = str(REPOSITORY / "tools/zip_bundles.py")
    subprocess.run([sys.executable, program, str(tmp_path / "one")], check=True, capture_output=True)
    runpy.run_path(program)["main"](tmp_path / "two")
    for folder in SHIPPED:
        (zipped,) = (tmp_path / "one").glob(f"{folder.name}-*.zip")
        assert zipped.read_bytes() == (tmp_path / "two" / zipped.name).read_bytes()
        bundle = load_bundle(zipped)
        assert bundle.name == folder.name
        wanted = sorted(
            file.relative_to(folder) for top in ("configs", "docs", "models") for file in (folder / top).rglob("*")
        )
        assert [file for file in wanted if not (bundle.root / file).exists()] == []

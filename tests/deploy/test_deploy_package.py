"""The rendered tree: complete, in the form of MONAI application packages, the same each time; its entry point on its own."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from packaging.utils import canonicalize_name

from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.deploy.package import Resources, image_requirements, render_package
from monai_unet_app.deploy.settings import Settings
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError

NAME = "hippocampus_mri_unet3d"
UNUSED_BY_AN_APPLICATION = {"dicomweb-client", "fire", "itk", "pynetdicom", "rich", "tensorboard"}
"""What training, the command line, the network and MONAI's own readers take; `make deploy-test` runs without (but for rich)."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_package(REPOSITORY / "bundles" / NAME, tmp_path_factory.mktemp("packages") / "package")


def test_a_package_for_images_from_elsewhere_needs_a_bundle_with_wider_intervals(tmp_path: Path) -> None:
    bundle = shutil.copytree(REPOSITORY / "bundles" / NAME, tmp_path / NAME)
    statements = bundle / "configs/confidence.json"
    written = json.loads(statements.read_text())
    for setting in written["settings"].values():
        for wider in ("sizes_elsewhere", "wholes_elsewhere"):
            setting.pop(wider)
    statements.write_text(json.dumps(written))
    with pytest.raises(InputRefusedError, match=f"{NAME} states no wider intervals for images from elsewhere"):
        render_package(bundle, tmp_path / "package", Settings(elsewhere=True))
    assert not (tmp_path / "package").exists()


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and bytes of everything in a folder, by its path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        content = b"" if path.is_dir() else path.read_bytes()
        found[path.relative_to(folder).as_posix()] = (state.st_mode, state.st_mtime_ns, content)
    return found


def document(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_package_holds_application_model_manifests_and_entry_point_at_their_places(package: Path) -> None:
    assert sorted(path.name for path in package.iterdir()) == [
        "Dockerfile", "LICENSE", "cpu", "gpu", "requirements.txt", "root", "unhashed.txt",
    ]  # fmt: skip
    root, model = package / "root", REPOSITORY / "bundles" / NAME
    assert {path.name for path in (root / "opt/holoscan/app").iterdir()} == {
        "__main__.py",
        "dicom_io",
        "monai_unet_app",
    }
    copied = contents(root / "opt/holoscan/models" / NAME)
    wanted = [
        path.relative_to(model).as_posix()
        for top in ("configs", "docs", "models", "LICENSE")
        for path in [model / top, *(model / top).rglob("*")]
    ]
    assert sorted(copied) == sorted(wanted)
    assert all(copied[name][2] == (model / name).read_bytes() for name in wanted if (model / name).is_file())
    for folder in ("input", "output"):
        assert list((root / "var/holoscan" / folder).iterdir()) == []
    assert os.access(root / "var/holoscan/tools", os.X_OK)


def test_the_application_in_a_package_is_the_code_that_rendered_it(package: Path) -> None:
    for name in ("monai_unet_app", "dicom_io"):
        code = REPOSITORY / name
        wanted = {
            path.relative_to(code).as_posix()
            for path in code.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and "_shipped" not in path.parts
        }
        copied = package / "root/opt/holoscan/app" / name
        assert {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()} == wanted


def test_the_application_manifest_has_the_form_that_the_packager_writes(package: Path) -> None:
    manifest = document(package / "root/etc/holoscan/app.json")
    assert sorted(manifest) == [
        "apiVersion",
        "command",
        "environment",
        "input",
        "liveness",
        "output",
        "readiness",
        "sdk",
        "sdkVersion",
        "timeout",
        "version",
        "workingDirectory",
    ]
    assert json.loads(manifest["command"]) == ["python3", "/opt/holoscan/app"]
    assert manifest["workingDirectory"] == "/var/holoscan"
    assert manifest["input"] == {"path": "input/", "formats": ["DICOM"]}
    assert manifest["output"] == {"path": "output/", "formats": ["seg", "sr"]}
    assert (manifest["sdk"], manifest["sdkVersion"]) == ("monai-deploy", "4.0.0")


@pytest.mark.parametrize(("device", "gpus", "platform"), [("cpu", 0, "cpu"), ("gpu", 1, "dgpu")])
def test_each_kind_of_image_says_what_it_takes(package: Path, device: str, gpus: int, platform: str) -> None:
    manifest = document(package / device / "etc/holoscan/pkg.json")
    config = yaml.safe_load((package / device / "var/holoscan/app.yaml").read_text())
    assert manifest["models"] == {NAME: f"/opt/holoscan/models/{NAME}"}
    assert (package / "root" / manifest["models"][NAME].lstrip("/")).is_dir()
    assert (package / "root" / manifest["applicationRoot"].lstrip("/") / "__main__.py").is_file()
    assert manifest["resources"] == config["resources"]
    assert (manifest["resources"]["gpu"], manifest["platformConfig"]) == (gpus, platform)
    assert config["bundle"] == {"name": NAME, "sha256": bundle_files(NAME).sha256}
    assert manifest["version"] == config["application"]["version"] == bundle_files(NAME).version


def test_the_dockerfile_copies_what_is_there_and_sets_what_the_manifest_says(package: Path) -> None:
    text = (package / "Dockerfile").read_text()
    assert "%{" not in text
    for device in ("cpu", "gpu"):
        for source in re.findall(r"^COPY (\S+) ", text, re.MULTILINE):
            assert (package / source.replace("${DEVICE}", device)).exists()
        assert f" AS {device}\n" in text
    manifest = document(package / "root/etc/holoscan/app.json")
    here = Path(manifest["workingDirectory"])
    for name, value in manifest["environment"].items():
        assert f" {name}={here / value}" in text
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert (package / "root" / json.loads(entry)[0].lstrip("/")).is_file()


def test_the_same_bundle_gives_the_same_bytes_modes_and_times(package: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        again = render_package(REPOSITORY / "bundles" / NAME, tmp_path / "again")
    finally:
        os.umask(before)
    assert contents(again) == contents(package)


def test_settings_and_resources_reach_the_manifests(tmp_path: Path) -> None:
    settings = Settings(format=("rtstruct",), tta=True, channels=("1.2", "1.3"))
    package = render_package(NAME, tmp_path / "package", settings, Resources(cpu=3, memory="5Gi", gpu_memory="6Gi"))
    config = yaml.safe_load((package / "gpu/var/holoscan/app.yaml").read_text())
    assert config["segmentation"] == {"format": ["rtstruct"], "tta": True, "channels": ["1.2", "1.3"]}
    assert config["resources"] == {"cpu": 3, "gpu": 1, "memory": "5Gi", "gpuMemory": "6Gi"}
    assert document(package / "root/etc/holoscan/app.json")["output"]["formats"] == ["rtstruct"]


def test_a_bundle_for_pictures_gets_no_report_in_millimetres(tmp_path: Path) -> None:
    package = render_package("retina_vessel_unet2d", tmp_path / "package")
    config = yaml.safe_load((package / "cpu/var/holoscan/app.yaml").read_text())
    assert config["segmentation"] == {"format": ["seg"]}


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch], ids=["folder", "file"])
def test_an_output_that_exists_is_refused_and_left_as_it_is(make: Callable[[Path], None], tmp_path: Path) -> None:
    output = tmp_path / "package"
    make(output)
    before = output.lstat().st_mtime_ns
    with pytest.raises(UsageError, match="exists; a new folder is needed"):
        render_package(NAME, output)
    assert output.lstat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [output]


def test_a_bundle_without_weights_is_refused_and_leaves_nothing(
    tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = tiny_bundle(NAME)
    (bundle / "models/model.pt").unlink()
    with pytest.raises(BundleError, match="no weights"):
        render_package(bundle, tmp_path / "out" / "package")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": '0.1.0"\nRUN touch /EVIL\nLABEL x="'}, "the version of the bundle is"),
        (
            {"required_packages_version": {"zzz": "1.0\n--extra-index-url http://evil"}},
            "names and versions of packages",
        ),
    ],
)
def test_texts_of_a_bundle_become_no_lines_of_a_package(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    bundle = tiny_bundle(NAME)
    file = bundle / "configs/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(BundleError, match=words):
        render_package(bundle, tmp_path / "package")


def test_leavings_of_work_stay_out_of_a_package(tiny_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tiny_bundle(NAME)
    for name in ("run", "eval", "data", ".git", "__pycache__"):
        (bundle / name).mkdir()
        (bundle / name / "leaving.txt").write_text("of somebody's work")
    package = render_package(bundle, tmp_path / "package")
    assert not list(package.rglob("leaving.txt"))


def test_what_a_bundle_requires_is_installed_and_another_version_of_it_refused(
    tiny_bundle: Callable[[str], Path],
) -> None:
    bundle = tiny_bundle(NAME)
    path = bundle / "configs/metadata.json"
    metadata = document(path)
    path.write_text(json.dumps(metadata | {"required_packages_version": {"timm": "1.0.9", "nibabel": "5.4.2"}}))
    assert image_requirements(bundle_files(bundle)).endswith("\ntimm==1.0.9\n")
    path.write_text(json.dumps(metadata | {"required_packages_version": {"nibabel": "4.0.0"}}))
    with pytest.raises(BundleError, match=r"requires nibabel 4\.0\.0 \(the image has 5\.4\.2\)"):
        image_requirements(bundle_files(bundle))


def pinned(path: Path) -> dict[str, Specifier]:
    """Package -> its version, of the lines of a requirements file without their hashes."""
    lines = [line.partition(" \\")[0] for line in path.read_text().splitlines() if not line.startswith(" ")]
    return {canonicalize_name(one.name): next(iter(one.specifier)) for one in map(Requirement, lines)}


def test_every_package_but_torch_has_hashes_and_the_version_that_the_tests_use(package: Path) -> None:
    hashed, rest = pinned(package / "requirements.txt"), pinned(package / "unhashed.txt")
    assert list(rest) == ["torch"]
    tested = pinned(REPOSITORY / "monai_unet_app/deploy/templates/requirements.txt")
    assert {**hashed, **rest} == tested
    blocks = re.split(r"^(?=\S)", (package / "requirements.txt").read_text(), flags=re.MULTILINE)[1:]
    assert len(blocks) == len(hashed)
    assert all(re.findall(r"--hash=sha256:[0-9a-f]{64}(?= |$)", block, re.MULTILINE) for block in blocks)
    installed = (package / "Dockerfile").read_text()
    assert "pip install --no-cache-dir --no-deps --require-hashes --requirement /opt/requirements.txt" in installed


def test_every_package_is_pinned_and_those_that_the_code_asks_for_to_a_version_that_it_allows(package: Path) -> None:
    pins = {**pinned(package / "requirements.txt"), **pinned(package / "unhashed.txt")}
    assert all(pin.operator == "==" for pin in pins.values())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {canonicalize_name(one.name): one.specifier for one in map(Requirement, project["dependencies"])}
    assert set(needed) - set(pins) == UNUSED_BY_AN_APPLICATION
    for name in set(needed) & set(pins):
        assert needed[name].contains(pins[name].version), name


def test_one_module_imports_the_sdk() -> None:
    found = set()
    for package in ("monai_unet_app", "dicom_io"):
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "holoscan" or name.startswith("monai.deploy") for name in names):
                    found.add(path.relative_to(REPOSITORY).as_posix())
    assert found == {"monai_unet_app/deploy/sdk.py"}


def entry_point(package: Path, folder: Path, program: str) -> tuple[list[str], dict[str, str]]:
    """The package's entry point with a manifest whose application is this Python program."""
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(program)
    command = json.dumps([sys.executable, str(folder / "app.py")])
    manifest = document(package / "root/etc/holoscan/app.json")
    manifest |= {"command": command, "workingDirectory": str(folder)}
    (folder / "app.json").write_text(json.dumps(manifest))
    names = {"APP_MANIFEST": folder / "app.json", "PKG_MANIFEST": package / "cpu/etc/holoscan/pkg.json"}
    places = {f"HOLOSCAN_{name}_PATH": str(place) for name, place in names.items()}
    return [sys.executable, str(package / "root/var/holoscan/tools")], {"PATH": os.environ["PATH"], **places}


@pytest.mark.parametrize("code", [0, 1, 3, 137])
def test_the_entry_point_passes_the_exit_code_on(package: Path, tmp_path: Path, code: int) -> None:
    program = f"import sys; sys.stderr.write(' '.join(sys.argv[1:])); sys.exit({code})"
    words, environment = entry_point(package, tmp_path, program)
    done = subprocess.run([*words, "a b", "$HOME"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "a b $HOME")


def test_a_signal_to_the_entry_point_reaches_the_application(package: Path, tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(44))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(20)\n"
    )
    words, environment = entry_point(package, tmp_path, program)
    process = subprocess.Popen(words, env=environment)
    for _ in range(1000):
        if (tmp_path / "ready").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 44


def test_the_application_finds_the_environment_of_the_manifest_unless_the_host_says_otherwise(
    package: Path, tmp_path: Path
) -> None:
    program = "import json, os, sys; json.dump(dict(os.environ) | {'here': os.getcwd()}, sys.stdout)"
    words, environment = entry_point(package, tmp_path, program)
    environment["HOLOSCAN_OUTPUT_PATH"] = "/mnt/results"
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["here"] == str(tmp_path)
    assert found["HOLOSCAN_INPUT_PATH"] == str(tmp_path / "input")
    assert found["HOLOSCAN_OUTPUT_PATH"] == "/mnt/results"
    assert found["HOLOSCAN_MODEL_PATH"] == "/opt/holoscan/models"


def test_the_application_gets_the_stack_that_holoscan_asks_for(package: Path, tmp_path: Path) -> None:
    program = "import resource, sys; sys.stdout.write(str(resource.getrlimit(resource.RLIMIT_STACK)[0]))"
    words, environment = entry_point(package, tmp_path, program)
    for soft, hard, wanted in ((8192, 65536, 32768), (8192, 16384, 16384), (65536, 65536, 65536)):
        limited = ["bash", "-c", f'ulimit -Ss {soft} && ulimit -Hs {hard} && exec "$@"', "limited", *words]
        done = subprocess.run(limited, env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == wanted * 1024


def test_an_application_that_cannot_be_started_is_a_failure_in_words(package: Path, tmp_path: Path) -> None:
    words, environment = entry_point(package, tmp_path, "")
    missing = environment | {"HOLOSCAN_APP_MANIFEST_PATH": str(tmp_path / "nowhere.json")}
    (tmp_path / "bad.json").write_text(json.dumps({"command": '["/nowhere/python"]', "workingDirectory": "/"}))
    for given in (missing, environment | {"HOLOSCAN_APP_MANIFEST_PATH": str(tmp_path / "bad.json")}):
        done = subprocess.run(words, env=given, capture_output=True, text=True)
        assert done.returncode == 1
        assert "cannot be started (FileNotFoundError" in done.stderr


def test_the_entry_point_shows_the_manifests(package: Path, tmp_path: Path) -> None:
    words, environment = entry_point(package, tmp_path, "raise SystemExit(9)")
    shown = subprocess.run([*words, "show", "pkg"], env=environment, capture_output=True, check=True)
    assert json.loads(shown.stdout) == document(package / "cpu/etc/holoscan/pkg.json")
    wrong = subprocess.run([*words, "show", "all"], env=environment, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_the_entry_point_copies_what_the_package_holds(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai_unet_app.deploy import entry

    root, export = package / "root", tmp_path / "export"
    monkeypatch.setattr(entry, "APP", root / "etc/holoscan/app.json")
    monkeypatch.setattr(entry, "PACKAGE", package / "cpu/etc/holoscan/pkg.json")
    monkeypatch.setattr(entry, "CONFIG", package / "cpu/var/holoscan/app.yaml")
    monkeypatch.setattr(entry, "FOLDERS", {name: root / "opt/holoscan" / name for name in ("app", "models", "docs")})
    monkeypatch.setattr(entry, "EXPORT", export)
    assert entry.main(["extract"]) == 1
    (export / "models").mkdir(parents=True)
    assert entry.main(["extract"]) == 0
    assert [path.name for path in export.iterdir()] == ["models"]
    assert (export / "models" / NAME / "models/model.pt").is_file()
    shutil.rmtree(export / "models")
    assert entry.main(["extract"]) == 0
    assert sorted(path.name for path in export.iterdir()) == ["app", "config", "docs", "models"]
    assert sorted(path.name for path in (export / "config").iterdir()) == ["app.json", "app.yaml", "pkg.json"]


def test_the_licence_of_the_software_is_in_the_package_and_in_the_image(package: Path) -> None:
    wanted = (REPOSITORY / "LICENSE").read_text()
    assert (package / "LICENSE").read_text() == wanted
    assert (package / "root/opt/holoscan/docs/LICENSE").read_text() == wanted

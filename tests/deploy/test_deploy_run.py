"""The package where the SDK is installed: against what holoscan-cli renders, and run at its real places without Docker.

`make deploy-test` runs this in an environment of its own, as root: a private mount namespace stands in for the container.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import EXAMPLES, REPOSITORY

pytest.importorskip("holoscan", reason="the SDK is not here; make deploy-test has an environment with it")

from dicom_io.dicomize import dicomize
from monai_unet_app.data.read import read_volume
from monai_unet_app.deploy.package import render_package
from monai_unet_app.deploy.settings import Settings

pytestmark = pytest.mark.deploy

NAME = "hippocampus_mri_unet3d"
CASE = "hippocampus_035"
ANY_USER = 4711  # no such user here, as none of the host's is known in a container
SOURCES = {
    "4.2.0": {
        "holoscan": {
            "debian-version": "4.2.0.1-1",
            "wheel-version": "4.2.0",
            "base-images": {"dgpu": "base"},
            "build-images": {"dgpu": {}, "igpu": {}, "cpu": {}},
        },
        "health-probes": {},
    }
}
CONTAINER = """
set -e
mount -t tmpfs tmpfs "$upper"
for top in etc opt var; do
    lower=/$top
    for layer in root cpu; do
        if [ -d "$package/$layer/$top" ]; then lower=$package/$layer/$top:$lower; fi
    done
    mkdir -p "$upper/$top/new" "$upper/$top/work"
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper/$top/new,workdir=$upper/$top/work" "/$top"
done
for place in /usr/local/cuda*; do
    if [ -d "$place" ]; then mount -t tmpfs tmpfs "$place"; fi
done
ln -s "$venv" /opt/venv
ln -s "$site/nvidia/cu13/lib" /opt/cuda
mount --bind "$input" /var/holoscan/input
mount --bind "$output" /var/holoscan/output
"""


@dataclass(frozen=True)
class Run:
    """How a run in the namespace ended."""

    code: int
    said: str
    output: Path

    def names(self) -> list[str]:
        return sorted(path.name for path in self.output.iterdir())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings(format=("nifti", "seg", "sr"))
    return render_package(REPOSITORY / "bundles" / NAME, tmp_path_factory.mktemp("packages") / "package", settings)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """The example case as a DICOM series in a folder called input, as it is called in the image."""
    made = dicomize(read_volume(EXAMPLES / "images" / f"{CASE}.nii.gz"), tmp_path / "made", case_id=CASE)
    return made.series_folder.rename(tmp_path / "input")


def dockerfile_lines(package: Path, instruction: str) -> list[str]:
    """What an instruction is given in the stages of the image for the CPU."""
    found, stage = [], ""
    for line in re.sub(r"\s*\\\n\s*", " ", (package / "Dockerfile").read_text()).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.partition(" AS ")[2] or "last"
        if word == instruction and stage in ("cpu", "last"):
            found.append(rest)
    return found


def run_package(
    package: Path, source: Path, folder: Path, environment: dict[str, str] | None = None, words: tuple[str, ...] = ()
) -> Run:
    """Runs the entry point as the Dockerfile starts it: its environment and folder, no network, a user without rights.

    That user may read whatever lies around, since this machine's Python may lie in somebody's home; it writes nothing
    that is not its own.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("a private mount namespace needs root, unshare and setpriv")
    output = folder / "output"
    for made in (output, folder / "upper"):
        made.mkdir()
    os.chown(output, ANY_USER, ANY_USER)
    exports = [f"export {words}" for words in dockerfile_lines(package, "ENV")]
    exports += [f"export {name}='{value}'" for name, value in (environment or {}).items()]
    (entry,), (here,) = dockerfile_lines(package, "ENTRYPOINT"), dockerfile_lines(package, "WORKDIR")
    rights = "--ambient-caps=+dac_read_search --inh-caps=+dac_read_search --bounding-set=-all,+dac_read_search"
    user = f"setpriv --reuid={ANY_USER} --regid={ANY_USER} --clear-groups {rights} --no-new-privs"
    start = f"exec {user} {' '.join(json.loads(entry))} {' '.join(words)}"
    places = {
        "package": package,
        "upper": folder / "upper",
        "input": source,
        "output": output,
        "venv": sys.prefix,
        "site": sysconfig.get_path("purelib"),
    }
    script = "\n".join([CONTAINER, f"unset {' '.join(places)}", *exports, f"cd {here}", start])
    given = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **{name: str(place) for name, place in places.items()}}
    # The last bit of a convolution may depend on the number of threads
    given |= {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    container = ["unshare", "--mount", "--net", "--propagation", "private", "bash", "-c", script]
    done = subprocess.run(container, env=given, cwd="/", capture_output=True, text=True, timeout=300)
    return Run(done.returncode, done.stdout + done.stderr, output)


def predicted(source: Path, output: Path) -> Path:
    """What `monai-unet predict` makes of the same input, in the repository."""
    flags = ["--bundle", str(REPOSITORY / "bundles" / NAME), "--device", "cpu", "--format", "nifti,seg,sr"]
    words = [sys.executable, "-m", "monai_unet_app", "predict", "--input", str(source), "--output", str(output), *flags]
    subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True)
    return output


def test_the_environment_does_not_know_the_code_so_that_a_package_must_bring_it() -> None:
    done = subprocess.run([sys.executable, "-c", "import monai_unet_app"], cwd="/", capture_output=True)
    assert done.returncode == 1


def test_a_run_at_the_real_places_writes_the_files_of_predict_byte_for_byte(
    package: Path, series: Path, tmp_path: Path
) -> None:
    run = run_package(package, series, tmp_path)
    assert (run.code, run.said) == (0, "")
    wanted = predicted(series, tmp_path / "wanted")
    assert run.names() == ["input_result.json", "input_seg.dcm", "input_seg.nii.gz", "input_sr.dcm"]
    for name in run.names():
        if name.endswith((".dcm", ".nii.gz")):
            assert (run.output / name).read_bytes() == (wanted / name).read_bytes(), name
    ours, theirs = (json.loads((folder / "input_result.json").read_text()) for folder in (run.output, wanted))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    assert all(structure["voxels"] > 0 for structure in ours["structures"])


def test_a_refused_input_makes_the_package_exit_3_with_the_reason(package: Path, series: Path, tmp_path: Path) -> None:
    sorted(series.iterdir())[10].unlink()
    run = run_package(package, series, tmp_path)
    assert run.code == 3
    assert "refused: input: " in run.said
    assert "the setting resample_gaps" in run.said
    assert run.names() == []


def test_a_package_whose_model_was_changed_exits_1(package: Path, series: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(package, tmp_path / "changed")
    config = changed / "root/opt/holoscan/models" / NAME / "configs/inference.yaml"
    config.write_text(config.read_text() + "\n# another bundle\n")
    run = run_package(changed, series, tmp_path)
    assert run.code == 1
    assert "error: hippocampus_mri_unet3d has sha256 " in run.said


def test_mercure_s_contract_holds_at_the_real_places(package: Path, series: Path, tmp_path: Path) -> None:
    task = {"id": "a-task", "process": {"module_name": "hippocampus", "settings": {"format": "seg", "tta": True}}}
    (series / "task.json").write_text(json.dumps(task))
    mercure = {"IN_DIR": "/var/holoscan/input", "OUT_DIR": "/var/holoscan/output"}
    environment = {f"MERCURE_{name}": place for name, place in mercure.items()}
    nowhere = str(tmp_path / "nowhere")
    environment |= {"HOLOSCAN_INPUT_PATH": nowhere, "HOLOSCAN_OUTPUT_PATH": nowhere}
    run = run_package(package, series, tmp_path, environment)
    assert run.code == 0, run.said
    assert run.names() == ["input_result.json", "input_seg.dcm", "result.json"]
    (case,) = json.loads((run.output / "result.json").read_text())["cases"]
    assert case["settings"]["tta"] is True


def test_the_entry_point_shows_the_manifests_that_lie_in_the_image(package: Path, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    places = [Path(place) for place in ("/opt/holoscan", "/opt/venv", "/opt/cuda", "/var/holoscan", "/etc/holoscan")]
    before = [place.exists() for place in places]
    run = run_package(package, tmp_path / "input", tmp_path, words=("show", "pkg"))
    assert [place.exists() for place in places] == before  # what is mounted is seen in the namespace alone
    assert (run.code, json.loads(run.said)) == (
        0,
        json.loads((package / "cpu/etc/holoscan/pkg.json").read_text()),
    )


@pytest.fixture
def rendered(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `monai-deploy package` of holoscan-cli hands to docker for the same application."""
    from holoscan_cli.__main__ import main
    from holoscan_cli.packager import container_builder

    (tmp_path / "artifacts.json").write_text(json.dumps(SOURCES))
    context = tmp_path / "context"
    monkeypatch.setattr(container_builder, "create_and_get_builder", lambda name: name)
    monkeypatch.setattr(
        container_builder, "build_docker_image", lambda **build: shutil.copytree(build["context_path"], context)
    )
    flags = {
        "--config": package / "gpu/var/holoscan/app.yaml",
        "--models": package / "root/opt/holoscan/models",
        "--source": tmp_path / "artifacts.json",
        "--platform": "x86_64",
        "--tag": "hippocampus:1",
    }
    words = ["monai-deploy", "package", str(package / "root/opt/holoscan/app")]
    words += [str(word) for pair in flags.items() for word in pair]
    monkeypatch.setattr(sys, "argv", words)
    main(words)
    return context


def test_the_manifests_are_those_that_holoscan_cli_writes(package: Path, rendered: Path) -> None:
    for ours, theirs in {"root/etc/holoscan/app.json": "app.json", "gpu/etc/holoscan/pkg.json": "pkg.json"}.items():
        wanted = json.loads((rendered / "map" / theirs).read_text())
        assert json.loads((package / ours).read_text()) == wanted


def test_environment_folder_and_entry_point_are_those_of_holoscan_cli(package: Path, rendered: Path) -> None:
    theirs = (rendered / "Dockerfile").read_text()
    wanted = dict(
        re.findall(r"^ENV (HOLOSCAN_\w+_PATH|HOLOSCAN_WORKDIR|HOLOSCAN_APPLICATION)=(\S+)", theirs, re.MULTILINE)
    )
    given = dict(word.split("=", 1) for line in dockerfile_lines(package, "ENV") for word in line.split())
    assert {name: given[name] for name in wanted} == wanted
    assert len(wanted) == 10
    for instruction in ("ENTRYPOINT", "WORKDIR"):
        (ours,) = dockerfile_lines(package, instruction)
        assert f"{instruction} {ours}" in theirs.splitlines()
    assert (rendered / "models" / NAME / "models/model.pt").is_file()
    assert (rendered / "app/__main__.py").read_bytes() == (package / "root/opt/holoscan/app/__main__.py").read_bytes()

"""Fixtures that several rooms share."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pytest

from dicom_io.volume import Volume

REPOSITORY = Path(__file__).resolve().parents[1]
SHIPPED = sorted(path.parents[1] for path in (REPOSITORY / "bundles").glob("*/configs/metadata.json"))
TEMPLATES = [folder for folder in SHIPPED if folder.name in ("abdomen_mr_unet3d",)]
"""Shipped without weights, which may not be given away; by name, so that no other bundle can lose its weights unnoticed."""

BUNDLES = [folder for folder in SHIPPED if folder not in TEMPLATES]
"""Shipped with weights, figures and statements."""

EXAMPLES = REPOSITORY / "examples" / "msd_hippocampus"


def smaller(text: str) -> str:
    """The `inference.yaml` of a reference bundle with one network of four filters at each level, also for small pictures."""
    text = re.sub(r"(?<=filters: )\[[\d, ]+\]", lambda found: re.sub(r"\d+", "4", found[0]), text)
    assert "filters: [4, 4" in text
    return text.replace("networks: 2 ", "networks: 1 ").replace("least: [700, 700]", "least: [300, 300]")


def shared_folder() -> Path:
    """Where larger real data are, if they are there."""
    return Path(os.environ.get("MONAI_UNET_SHARED", REPOSITORY.parent / "shared" / "data"))


def crash_file(run: str, worker: str) -> Path:
    return Path(gettempdir()) / f"crash_of_{worker}_{run}.txt"


@pytest.hookimpl(trylast=True)  # after pytest's own, whose lines of a process of pytest-xdist are lost
def pytest_configure(config: pytest.Config) -> None:
    gc.disable()
    if worker := getattr(config, "workerinput", None):
        faulthandler.enable(crash_file(worker["testrunuid"], worker["workerid"]).open("w"))


def pytest_collection_finish() -> None:
    """What collecting has imported, more than a million objects, is not looked through for garbage in each test."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any, error: object) -> None:
    """Says how and where a process of tests has died, which pytest-xdist does not."""
    lines = crash_file(node.workerinput["testrunuid"], node.workerinput["workerid"])
    if error:
        print(f"\n{node.gateway.id}: exit code {node.gateway._io.popen.wait(10)}\n{lines.read_text()}")
    lines.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Threads of several processes on the same cores wait for each other, and take more than twice the processor time."""
    if "OMP_NUM_THREADS" not in os.environ and find_spec("torch") is not None:  # dicom_io is tested without it, too
        import torch

        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> None:
    """`main` silences the log of its process, which is that of other tests too."""
    logging.disable(logging.NOTSET)


class _Everything(dict[str, str]):
    """Any digest is in it."""

    def __contains__(self, digest: object) -> bool:
        return True


@pytest.fixture(autouse=True)
def everything_agreed(request: pytest.FixtureRequest) -> Iterator[pytest.MonkeyPatch]:
    """Bundles of tests may hold code; but those that are planned or imported hold none, and tests of consent undo this."""
    with pytest.MonkeyPatch.context() as patch:
        if (
            find_spec("torch") is not None and request.path.parent.name != "planning"
        ):  # dicom_io is tested without torch
            from monai_unet_app import consent

            patch.setattr(consent, "user_agreed", _Everything)
        yield patch


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger real data beside the repository; tests that need it are skipped where it is absent."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(f"extended data are absent (looked for {folder.name}/ beside the repository)")
    return folder


@pytest.fixture(scope="session")
def tiny_template(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A copy of a reference bundle with a tiny network and random (seeded) weights, made once, and torch's state after it."""
    import torch

    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.calibration.fitted import begin_fitted
    from monai_unet_app.training.checkpoints import half_weights, save_atomically

    @cache
    def make(name: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("tiny") / name
        shutil.copytree(
            REPOSITORY / "bundles" / name, folder, ignore=shutil.ignore_patterns("models", "confidence.json")
        )
        config = folder / "configs" / "inference.yaml"
        text = config.read_text()
        config.write_text(smaller(text))
        begin_fitted(folder)
        torch.manual_seed(0)
        network = load_bundle(folder).part("network_def")
        save_atomically(half_weights(network), folder / "models" / "model.pt")
        return folder, torch.get_rng_state()

    return make


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_template: Callable[[str], tuple[Path, Any]]) -> Callable[[str], Path]:
    """Copies a reference bundle with a tiny network, for a test that may change it; runs in a blink."""
    import torch

    def make(name: str = "hippocampus_mri_unet3d") -> Path:
        template, state = tiny_template(name)
        torch.set_rng_state(state)  # as after the making of its weights
        return shutil.copytree(template, tmp_path / "bundles" / name)

    return make


@pytest.fixture
def two_channel_bundle(tiny_bundle: Callable[[], Path]) -> Path:
    """A reference bundle with another input: two channels, weights by chance."""
    import torch
    from monai.bundle import ConfigParser

    root = tiny_bundle()
    config = root / "configs/inference.yaml"
    text = (
        config.read_text()
        .replace("channels: 1\n", "channels: [T1, FLAIR]\n", 1)
        .replace("in_channels: 1", "in_channels: 2")
    )
    config.write_text(text)
    parser = ConfigParser()
    parser.read_config(str(config))
    parser["bundle_root"] = str(root)
    torch.manual_seed(3)
    torch.save(parser.get_parsed_content("network_def").state_dict(), root / "models/model.pt")
    return root


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of an evaluation are empty: for tests that read its figures alone. Drawing takes longer than measuring."""
    from monai_unet_app.report import evaluation_writer

    monkeypatch.setattr(evaluation_writer, "pages", lambda _: {"report.html": b"", "report.pdf": b""})


@pytest.fixture
def crop() -> Volume:
    """An oblique, lopsided MR-like crop that the hippocampus bundles accept: a bright ellipsoid off the centre, with noise."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (34, 48, 33)), indexing="ij"))
    centre, radii = np.array([14.0, 27.0, 15.0]), np.array([7.0, 15.0, 6.0])
    inside = (((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) < 1
    array = np.random.default_rng(7).normal(400, 40, inside.shape) - 150 * inside
    angle = np.deg2rad(12.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = turn @ np.diag([1.0, 1.0, 1.1])
    affine_lps[:3, 3] = [-12.5, 31.25, -40.0]
    return Volume(np.rint(array).astype(np.float32), affine_lps)

"""A rule may name a model of a registry: the node has a verified copy, and goes on with it when the registry is away."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sqlalchemy")

from challenged import keys
from once import made_once

from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.comparison.release_gate import GATED_SCORES
from monai_unet_app.errors import AppError, UsageError
from monai_unet_app.lifecycle import resolve as resolve_module
from monai_unet_app.lifecycle.registry import open_registry
from monai_unet_app.lifecycle.resolve import resolve
from monai_unet_app.service import models
from monai_unet_app.service.models import ask_registry, resolved, with_models
from monai_unet_app.service.site import SCORES, Site
from monai_unet_app.service.site_file import read_site

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


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Site:
    """A site whose rule names the champion, version 1 of 2; the bundle beside it is version 2."""

    def make(folder: Path) -> None:
        template, _ = request.getfixturevalue("tiny_template")("hippocampus_mri_unet3d")
        root = shutil.copytree(template, folder / "bundles" / template.name)
        with open_registry(folder / "registry") as registry:
            registry.add(root, "hippocampus")
            config = root / "configs/inference.yaml"
            config.write_text(config.read_text() + "# version 2\n")
            registry.add(root, "hippocampus")
            registry.promote("hippocampus", "1", "champion", "Bianchi^Eva", {}, "the first")

    shutil.copytree(made_once(tmp_path_factory, "two_versions", make), tmp_path, dirs_exist_ok=True)
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "node/models").mkdir(parents=True)
    return read_site(tmp_path / "site.toml")


@pytest.fixture
def _asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry is asked in this process, which has imported MLflow, as if in another one: with its exit code and stderr."""

    def run(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-P", "-m", resolve_module.__name__]
        with monkeypatch.context() as here, redirect_stderr(io.StringIO()) as said:
            here.setattr(sys, "argv", command[3:])
            try:
                resolve_module.main()
                code = 0
            except SystemExit as stop:
                said.write(f"{stop.code}\n")
                code = 1
        return subprocess.CompletedProcess(command, code, stderr=said.getvalue())

    monkeypatch.setattr(models, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))


def test_the_champion_is_copied_and_held_to_its_sha256(site: Site, tmp_path: Path) -> None:
    assert ask_registry(site) == ""  # in a process of its own
    (rule,) = with_models(site).rules
    first = bundle_files(rule.bundle)
    assert (first.sha256, first.name) == (rule.sha256, "hippocampus_mri_unet3d")
    assert resolved(site)["registry:hippocampus@champion"]["version"] == 1
    with open_registry(tmp_path / "registry") as registry:
        registry.promote("hippocampus", "2", "champion", "Bianchi^Eva", {}, "better")
    assert with_models(site).rules[0].sha256 == first.sha256  # until the registry is asked again
    assert resolve(site) == ""
    assert with_models(site).rules[0].sha256 == bundle_files(tmp_path / "bundles/hippocampus_mri_unet3d").sha256


@pytest.mark.usefixtures("_asked_here")
def test_the_node_goes_on_with_its_copy_when_the_registry_is_away(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolve(site)
    before = with_models(site).rules
    (tmp_path / "registry").rename(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        kept = ask_registry(site)
    assert "the node goes on with the models that it has" in kept
    assert kept in caplog.text
    assert with_models(site).rules == before


def test_a_copy_that_was_changed_is_not_used_and_made_again(site: Site) -> None:
    resolve(site)
    (rule,) = with_models(site).rules
    config = Path(rule.bundle) / "configs/inference.yaml"
    config.write_text(config.read_text() + "# changed\n")
    with pytest.raises(AppError, match="somebody has changed it"):
        with_models(site)


@pytest.mark.usefixtures("_asked_here")
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda text: text.replace("@champion", "@challenger"), "hippocampus has no version 'challenger'"),
        (lambda text: text.replace("hippocampus@", "spleen@"), "the registry does not have it"),
        (lambda text: text.replace("@champion", ""), "registry:MODEL@ALIAS is needed"),
    ],
)
def test_a_model_that_is_not_there_keeps_the_node_from_starting(
    edit: Callable[[str], str], says: str, site: Site
) -> None:
    site.path.write_text(edit(site.path.read_text()))
    with pytest.raises(UsageError, match="there is no copy of"):
        with_models(read_site(site.path))
    with pytest.raises(AppError) as refused:
        resolve(read_site(site.path))
    assert says in str(refused.value)
    with pytest.raises(UsageError) as asked:
        ask_registry(read_site(site.path))
    assert says in str(asked.value)


def test_a_rule_of_the_registry_needs_its_table(site: Site) -> None:
    site.path.write_text(site.path.read_text().replace('[registry]\nfolder = "registry"\n', ""))
    with pytest.raises(UsageError, match=r"has no table \[registry\], which rule \S+ needs"):
        read_site(site.path)


@pytest.mark.usefixtures("_asked_here")
def test_a_copy_that_was_made_before_signatures_were_asked_for_is_not_used(site: Site, tmp_path: Path) -> None:
    resolve(site)
    assert with_models(site).rules
    private, public = keys(tmp_path, "ours")
    site.path.write_text(
        site.path.read_text().replace('"registry"\n', f'"registry"\npublic_key = "{public.name}"\n', 1)
    )
    asking = read_site(site.path)
    with pytest.raises(UsageError, match="there is no copy of"):
        with_models(asking)
    with pytest.raises(AppError, match="is not signed, and a signature is asked for"):
        resolve(asking)
    with open_registry(tmp_path / "registry") as registry:
        registry.add(tmp_path / "bundles/hippocampus_mri_unet3d", "hippocampus", key=private)
        registry.promote("hippocampus", "3", "champion", "Bianchi^Eva", {}, "signed")
    assert resolve(asking) == ""
    assert with_models(asking).rules
    public.unlink()
    without = read_site(site.path)  # as a sender does, which needs no key
    for asks in (with_models, resolve, ask_registry):
        with pytest.raises(UsageError, match=r"ours\.pem cannot be read \(No such file or directory\); it is needed"):
            asks(without)


@pytest.mark.parametrize(
    ("margins", "says"), [("dyce = 0.01", "dyce"), ("dice = 0.01", "boundary_iou"), ("dice = 7", "7")]
)
def test_margins_are_checked_when_the_site_is_read(margins: str, says: str, site: Site) -> None:
    site.path.write_text(site.path.read_text().replace('"registry"\n', f'"registry"\nmargins = {{ {margins} }}\n', 1))
    with pytest.raises(UsageError, match=rf"margins.*{says}"):
        read_site(site.path)


def test_a_bundle_without_a_network_is_refused_by_what_it_is(site: Site) -> None:
    resolve(site)
    (rule,) = with_models(site).rules
    metadata = Path(rule.bundle) / "configs/metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "kind": "results"}))
    with pytest.raises(AppError, match="has no network; a bundle with a network is needed"):
        with_models(site)


def test_the_scores_of_a_site_are_those_of_the_gate() -> None:
    assert set(SCORES) == set(GATED_SCORES)

"""What a shadow finds of a study by real bundles, and which challengers of a registry are tried at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from nodes import wait_until
from once import made_once
from ports import free_ports

pytest.importorskip("sqlalchemy")

from dicom_io.dicomize import dicomize
from dicom_io.net.destination import parse_destination
from dicom_io.net.exchange import send
from dicom_io.read import read_series
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.errors import AppError
from monai_unet_app.lifecycle.registry import open_registry
from monai_unet_app.lifecycle.resolve import resolve
from monai_unet_app.pipeline import segment_case
from monai_unet_app.service.models import copy_of, resolved, with_models
from monai_unet_app.service.site import Site
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.tokens import new_token
from monai_unet_app.service.work import Worker

SITE = """
[node]
folder = "node"
[registry]
folder = "registry"
[[rules]]
name = "hippocampus"
bundle = "registry:hippocampus@champion"
challenger = "registry:hippocampus@challenger"
canary = 0.2
deliver_ungated = true
match = {Modality = "MR"}
"""


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Site:
    """A site with a champion, and a challenger with other weights."""

    def make(folder: Path) -> None:
        template, _ = request.getfixturevalue("tiny_template")("hippocampus_mri_unet3d")
        root = shutil.copytree(template, folder / "bundles" / template.name)
        with open_registry(folder / "registry") as registry:
            registry.add(root, "hippocampus")
            weights = torch.load(root / "models/model.pt", weights_only=True)
            generator = torch.Generator().manual_seed(5)
            changed = {
                key: value + 0.05 * value.std() * torch.randn(value.shape, generator=generator)
                if value.numel() > 1
                else value
                for key, value in weights.items()
            }
            torch.save(changed, root / "models/model.pt")
            registry.add(root, "hippocampus")
            registry.promote("hippocampus", "1", "champion", "Bianchi^Eva", {}, "the first")
            registry.promote("hippocampus", "2", "challenger", "Bianchi^Eva", {}, "to be tried")

    shutil.copytree(made_once(tmp_path_factory, "champion_and_challenger", make), tmp_path, dirs_exist_ok=True)
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "node/models").mkdir(parents=True)
    return read_site(tmp_path / "site.toml")


@pytest.fixture
def study(crop: Volume, tmp_path: Path) -> Path:
    """A study as the node keeps it."""
    series = dicomize(replace(crop, provenance=Provenance("nifti")), tmp_path / "in", case_id="one").series_folder
    return Path(shutil.copytree(series, tmp_path / "received" / "1.2.3" / "1.2.3.4")).parent


def test_the_shadow_tells_how_far_both_bundles_agree(site: Site, study: Path, tmp_path: Path) -> None:
    assert resolve(site) == ""
    known = resolved(site)
    champion, challenger = (
        known[key]["sha256"] for key in ("registry:hippocampus@champion", "challenger of hippocampus")
    )
    gate = known["challenger of hippocampus"]["gate"]
    assert (gate["passed"], gate["why"].partition(";")[0]) == (
        False,
        "no margin for boundary_iou, dice, ece_band, ece_whole",
    )
    worker, volume = Worker(with_models(site)), read_series(study)
    masks = [
        segment_case(volume, load_bundle(copy_of(site, one), "cpu")).segmentation.label_volume.array
        for one in (champion, challenger)
    ]
    expected = min(
        2 * np.sum((masks[0] == n) & (masks[1] == n)) / (np.sum(masks[0] == n) + np.sum(masks[1] == n)) for n in (1, 2)
    )
    assert 0.2 < expected < 0.999
    for main, other in (("champion", "challenger"), ("challenger", "champion")):
        sha256 = {"champion": champion, "challenger": challenger}
        task = {"study": str(study), "output": str(tmp_path / f"results/{main}"), "earlier": {}}
        done = worker.answer({**task, "models": {"hippocampus": sha256[main]}})
        (result,) = done["results"]
        assert result["bundle"] == result["observed"]["bundle"] == sha256[main]
        folder = tmp_path / "results" / result["folder"]
        before = sorted(tmp_path.rglob("*"))
        found = worker.answer(
            {
                "study": str(study),
                "models": {"hippocampus": sha256[other]},
                "slots": {"hippocampus": other},
                "results": [("hippocampus", result["series"], str(folder))],
            }
        )["compared"]["hippocampus"]
        assert sorted(tmp_path.rglob("*")) == before  # it writes nothing
        assert found["agreement"] == pytest.approx(expected, abs=1e-4)
        assert found["fault"] == ["", ""]
        assert all(0 < seconds < 60 for seconds in found["seconds"])
        document = json.loads(next(folder.rglob("*_result.json")).read_text())
        at = ("champion", "challenger").index(main)
        for row in document["structures"]:
            assert found["sizes"][0][row["label"]][at] == row["volume_ml"]


def test_a_destination_that_takes_probabilities_only_is_compared_as_well(
    site: Site, study: Path, tmp_path: Path
) -> None:
    sends = 'destinations = ["pacs"]\n[destinations.pacs]\nhost = "127.0.0.1"\nport = 104\nae_title = "PACS"\n'
    site.path.write_text(SITE + sends + '[destinations.pacs.profile]\nseg_encoding = "fractional"\n')
    site = read_site(site.path)
    resolve(site)
    worker, known = Worker(with_models(site)), resolved(site)
    (result,) = worker.answer({"study": str(study), "output": str(tmp_path / "results/1-1"), "earlier": {}})["results"]
    folder = tmp_path / "results" / result["folder"]
    assert sorted(one.name for one in folder.iterdir()) == ["binary", "fractional"]
    agreements = []
    for key in ("registry:hippocampus@champion", "challenger of hippocampus"):
        message = {
            "study": str(study),
            "models": {"hippocampus": known[key]["sha256"]},
            "slots": {"hippocampus": "challenger"},
            "results": [("hippocampus", result["series"], str(folder))],
        }
        found = worker.answer(message)["compared"]["hippocampus"]
        assert found["fault"] == ["", ""]
        agreements.append(found["agreement"])
    assert agreements[0] == 1 > agreements[1]


def test_a_bundle_that_cannot_be_loaded_is_a_fault_of_its_slot(site: Site, study: Path, tmp_path: Path) -> None:
    resolve(site)
    sha256 = resolved(site)["challenger of hippocampus"]["sha256"]
    worker = Worker(with_models(site))
    (result,) = worker.answer({"study": str(study), "output": str(tmp_path / "results/1-1"), "earlier": {}})["results"]
    weights = copy_of(site, sha256) / "models/model.pt"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AppError, match="has no bundle of that sha256"):
        copy_of(site, sha256)
    found = worker.answer(
        {
            "study": str(study),
            "models": {"hippocampus": sha256},
            "slots": {"hippocampus": "challenger"},
            "results": [("hippocampus", result["series"], str(tmp_path / "results" / result["folder"]))],
        }
    )["compared"]["hippocampus"]
    assert found["fault"][0] == ""
    assert "it is lost, or somebody has changed it" in found["fault"][1]
    assert str(tmp_path) not in found["fault"][1]


def test_a_challenger_that_does_not_fit_is_left_out_and_the_champion_goes_on(
    site: Site, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    other = tiny_bundle("retina_vessel_unet2d")
    with open_registry(tmp_path / "registry") as registry:
        number = registry.add(other, "hippocampus").number
        registry.promote("hippocampus", str(number), "challenger", "Bianchi^Eva", {}, "another organ")
    assert resolve(site) == ""
    assert "the same structures in the same order are needed" in resolved(site)["challenger of hippocampus"]["why_not"]
    assert with_models(site).rules[0].sha256 == resolved(site)["registry:hippocampus@champion"]["sha256"]
    site.path.write_text(SITE.replace("@challenger", "@archived"))
    assert resolve(read_site(site.path)) == ""
    assert "has no version 'archived'" in resolved(site)["challenger of hippocampus"]["why_not"]


def test_structures_that_lie_in_different_boxes_are_compared_on_the_whole_grid(crop: Volume) -> None:
    from dicom_io.segmentation import Segmentation
    from monai_unet_app.bundle_folder import bundle_files
    from monai_unet_app.service.comparing import _comparison, _Side
    from monai_unet_app.shipped import shipped

    segments = bundle_files(shipped("bundles") / "hippocampus_mri_unet3d").segments
    sides = []
    for start in (2, 5):  # cubes of 10 x 4 x 4 and 4 x 4 x 4 voxels, moved by 3 along the first axis
        labels = np.zeros(crop.array.shape, np.uint8)
        labels[start : start + 10, 3:7, 3:7] = 1
        labels[start : start + 4, 20:24, 8:12] = 2
        sides.append(_Side(segmentation=Segmentation.of_numbers(crop, labels, segments, exclusive=True)))
    found = _comparison(*sides)
    assert found["agreement"] == pytest.approx(2 * 1 / (4 + 4))  # the smaller one agrees least: 1 of 4 layers
    empty = _Side(segmentation=Segmentation.of_numbers(crop, np.zeros_like(labels), segments, exclusive=True))
    assert (_comparison(empty, empty)["agreement"], _comparison(sides[0], empty)["agreement"]) == (1.0, 0.0)
    assert _comparison(sides[0], _Side())["agreement"] is None


@pytest.mark.slow
def test_the_command_line_tries_a_challenger_of_the_registry(site: Site, study: Path, tmp_path: Path) -> None:
    port, http = free_ports(2)
    token, line = new_token("Bianchi^Eva", ["approver"])
    (tmp_path / "tokens").write_text(line + "\n")
    text = SITE.replace('folder = "node"', f'folder = "node"\nport = {port}\nstable_s = 0.5')
    site.path.write_text(text + f'[http]\nport = {http}\ntokens = "tokens"\n')
    command = [sys.executable, "-m", "monai_unet_app", "node", "--config", str(site.path)]

    def challengers() -> list[dict[str, Any]]:
        with contextlib.suppress(requests.ConnectionError):
            headers = {"Authorization": f"Bearer {token}"}
            answer = requests.get(f"http://127.0.0.1:{http}/rules/challengers", headers=headers, timeout=30)
            return list(answer.json())
        return []

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        try:
            wait_until(challengers, 120)
            known = resolved(site)
            (state,) = challengers()
            assert (state["champion"], state["challenger"]) == tuple(
                known[key]["sha256"] for key in ("registry:hippocampus@champion", "challenger of hippocampus")
            )
            outcomes = send(parse_destination(f"MONAIUNET@127.0.0.1:{port}"), sorted(study.rglob("*.dcm")))
            assert all(one.state == "sent" for one in outcomes)
            wait_until(lambda: challengers()[0]["studies"] == 1, 180)
            assert 0.2 < challengers()[0]["last"][0]["agreement"] < 0.999
        finally:
            node.terminate()
            node.wait(60)

"""Int8 exports: made of cases that made the bundle, beside the float32 export, under a digest of their own."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import networks_written_once, shallow_template
from own_network import run_in_own_network
from shell import Run, shell
from small_data import FEW, few_examples, trained_on

from dicom_io.volume import Volume
from monai_unet_app import export
from monai_unet_app.bundle import load_bundle
from monai_unet_app.cli.bundle_verbs import _cases_that_made
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.config import EngineName, ResultSettings
from monai_unet_app.data.case_files import find_data
from monai_unet_app.errors import UsageError
from monai_unet_app.export import export_bundle, windows_of
from monai_unet_app.inference.engines.certificate import PARITY, certified, export_named
from monai_unet_app.inference.engines.chooser import with_engine
from monai_unet_app.service.rule_checks import check_bundles
from monai_unet_app.service.site_file import read_site
from monai_unet_app.training.checkpoints import half_weights, save_atomically

run = pytest.fixture(shell)
VOLUMES, SLICES = "hippocampus_mri_unet3d", "hippocampus_mri_unet2d"
ENGINES = ("openvino", "onnxruntime")


written_once = pytest.fixture(scope="module", autouse=True)(networks_written_once)
tiny_template = pytest.fixture(scope="module")(shallow_template)


@pytest.fixture(scope="module", autouse=True)
def few_windows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_WINDOWS", 8)
        yield


@dataclass(frozen=True)
class Exported:
    """A bundle with an int8 export, its entry in the certificate, and labelled cases."""

    root: Path
    entry: dict[str, Any]
    data: Path

    def copied(self, folder: Path) -> Path:
        """The bundle, for a test that changes it."""
        return shutil.copytree(self.root, folder / self.root.name)


@pytest.fixture(scope="module")
def exported(
    tiny_template: Callable[[str], tuple[Path, object]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, EngineName], Exported]:
    """A tiny bundle, exported once in int8 for an engine."""

    @cache
    def export_once(name: str, engine: EngineName) -> Exported:
        if engine == "openvino":
            pytest.importorskip("nncf")
        folder = tmp_path_factory.mktemp("int8")
        root = made(shutil.copytree(tiny_template(name)[0], folder / name))
        data = few_examples(folder / "data")
        rows = [{"id": one, "image": str(data / f"images/{one}.nii.gz")} for one in FEW[:-1]]
        return Exported(root, export_bundle(load_bundle(root), engine, rows), data)

    return export_once


def made(root: Path) -> Path:
    """The bundle, as if four of five cases had trained it."""
    trained_on(root, dict.fromkeys(FEW[:-1], "train") | {FEW[-1]: "test"})
    return root


@pytest.mark.parametrize(("name", "engine"), [(VOLUMES, "openvino"), (VOLUMES, "onnxruntime"), (SLICES, "onnxruntime")])
def test_an_int8_export_lies_beside_the_other_and_answers_nearly_as_it(
    exported: Callable[[str, EngineName], Exported], name: str, engine: EngineName
) -> None:
    made_once = exported(name, engine)
    root, entry = made_once.root, made_once.entry
    assert entry["quantised_on"] == {"cases": 4, "windows": 8}
    entries = json.loads((root / PARITY).read_text())["exports"]
    assert entries[f"{engine} int8"] == entry
    assert set(entries) == {engine, f"{engine} int8"}
    assert entries[engine]["sha256"] != entry["sha256"]
    bundle = load_bundle(root)
    windows = torch.from_numpy(np.stack([one[0] for one in windows_of(bundle, rows_of(made_once.data))[1]]))
    if bundle.slice_axis is not None:
        windows = windows.unsqueeze(bundle.slice_axis + 2)
    usual, fewer = (bundle.engine(ResultSettings(engine=engine, precision=one))(windows) for one in ("float32", "int8"))
    apart = (torch.softmax(usual.logits, 1) - torch.softmax(fewer.logits, 1)).abs()
    assert 1e-4 < apart.max() < 0.3
    assert apart.mean() < 0.03
    assert usual.layer is not None
    torch.testing.assert_close(fewer.layer, usual.layer, atol=0.05, rtol=0.05)


def rows_of(data: Path) -> list[dict[str, str]]:
    return [{"id": name, "image": str(data / f"images/{name}.nii.gz")} for name in FEW[:2]]


def test_norms_and_statistics_of_a_layer_are_not_quantised(
    exported: Callable[[str, EngineName], Exported],
) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported(VOLUMES, "onnxruntime").root / "models/network_int8.onnx").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    rounded = {made_by.get(node.input[0]) for node in graph.node if node.op_type == "QuantizeLinear"}
    assert {"Conv", "ConvTranspose"} <= rounded  # None is the image
    assert not rounded & {"AveragePool", "ReduceMean", "Sub", "Mul", "Sqrt", "Reciprocal", "Div"}


def test_only_cases_that_made_the_bundle_are_quantised_on(
    run: Run, tiny_bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    root, words = made(tiny_bundle(VOLUMES)), ("--to", "onnxruntime", "--precision", "int8")
    data = few_examples(tmp_path / "tested", FEW[-1:])
    answer = run("bundle", "export", "--bundle", root, *words, "--data", data)
    assert (answer.code, "none of the 1 case(s) of tested trained, selected or calibrated" in answer.err) == (3, True)
    assert run("bundle", "export", "--bundle", root, *words).code == 2
    answer = run("bundle", "export", "--bundle", root, "--to", "onnxruntime", "--data", data)
    assert (answer.code, "labelled cases are for --precision int8" in answer.err) == (2, True)
    data = few_examples(tmp_path / "all")
    rows = _cases_that_made(load_bundle(root), find_data(data), data)
    assert {row["id"] for row in rows} == set(FEW[:-1])


def test_windows_are_the_same_each_time_and_constant_ones_are_left_out(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(tiny_bundle(VOLUMES))
    rows = rows_of(few_examples(tmp_path / "data", FEW[:2]))
    first, second = (windows_of(bundle, order)[1] for order in (rows, rows[::-1]))
    assert len(first) == 8
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    array = np.full((60, 50, 40), 7.0, np.float32)
    array[:20] += np.random.default_rng(0).normal(0, 1, (20, 50, 40))
    monkeypatch.setattr(export, "read_volume", lambda path: Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0])))
    monkeypatch.setattr(export, "_WINDOWS", 10**6)
    _, varied = windows_of(bundle, rows[:1])
    assert len(varied) > 0
    assert all(np.ptp(one) > 0 for one in varied)


def test_a_result_in_int8_names_its_export_and_states_nothing(
    run: Run, exported: Callable[[str, EngineName], Exported], tmp_path: Path
) -> None:
    engine: EngineName = "onnxruntime"
    made_once = exported(VOLUMES, engine)
    root, entry = made_once.root, made_once.entry
    words = ("--input", made_once.data / f"images/{FEW[-1]}.nii.gz", "--output", tmp_path / "out", "--device", "cpu")
    answer = run("predict", "--bundle", root, *words, "--engine", engine, "--precision", "int8")
    assert answer.code == 0, answer.err
    document = json.loads((tmp_path / f"out/{FEW[-1]}_result.json").read_text())
    assert document["bundle"]["export_sha256"] == entry["sha256"]
    assert (document["settings"]["engine"], document["settings"]["precision"]) == (engine, "int8")
    assert document["assessment"]["verdict"] is None
    assert "has no certificate for onnxruntime in int8" in json.dumps(document["assessment"])
    answer = run("predict", "--bundle", root, *words, "--precision", "int8")
    assert (answer.code, "--engine auto takes no int8" in answer.err) == (2, True)
    with pytest.raises(UsageError, match="auto takes no int8"):
        with_engine(ResultSettings(precision="int8"), load_bundle(root), "auto")


def test_a_certificate_is_of_the_int8_export_and_a_rule_pins_it(
    exported: Callable[[str, EngineName], Exported], tmp_path: Path
) -> None:
    engine: EngineName = "onnxruntime"
    root, entry = exported(VOLUMES, engine).copied(tmp_path), exported(VOLUMES, engine).entry
    bundle, settings = load_bundle(root), ResultSettings(engine=engine, precision="int8")
    usual = export_named(bundle, engine, "float32")
    assert (export_named(bundle, engine, "int8"), usual != entry["sha256"]) == (entry["sha256"], True)
    for sha256, holds in ((entry["sha256"], True), (usual, False)):
        document = json.loads((root / PARITY).read_text())
        document["results"] = {f"{engine} int8 plain": {
            "export_sha256": sha256, "fitted_to": fitted_to(bundle, "plain"), "data": {}, "cases": 30, "subjects": 20,
            "outcome": "passed", "reason": "", "figures": [], "changed": {},
        }}  # fmt: skip
        (root / PARITY).write_text(json.dumps(document))
        assert bool(certified(bundle, settings)) == holds
    site = tmp_path / "site.toml"
    for sha256, holds in ((entry["sha256"], True), (usual, False)):
        site.write_text(SITE.format(bundle=root, sha256=sha256))
        if holds:
            check_bundles(read_site(site))
        else:
            with pytest.raises(Exception, match="for onnxruntime in int8; the export that the site has approved"):
                check_bundles(read_site(site))


SITE = """
[node]
folder = "node"
[[rules]]
name = "hippocampus"
bundle = "{bundle}"
deliver_ungated = true
match = {{Modality = "MR"}}
destinations = ["pacs"]
engine = "onnxruntime"
precision = "int8"
export_sha256 = "{sha256}"
[destinations.pacs]
host = "127.0.0.1"
port = 104
ae_title = "PACS"
"""


def test_a_quantiser_that_is_absent_is_named(
    run: Run, tiny_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    words = ("--bundle", made(tiny_bundle(VOLUMES)), "--to", "openvino", "--precision", "int8")
    answer = run("bundle", "export", *words, "--data", few_examples(tmp_path / "data", FEW[:1]))
    assert (answer.code, "pip install 'monai-unet-app[quantise]'" in answer.err) == (2, True)


def of_three_layers(root: Path) -> Path:
    """The bundle with a network that is exported in a second, of layers that are all treated unlike by a quantiser."""
    config = root / "configs/inference.yaml"
    layers = "torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4, affine=True), torch.nn.Conv3d(4, 3, 1)"
    lines = f"network_def: $torch.nn.Sequential({layers})\nfeature_layer: '1'\n"
    text, count = re.subn(r"(?m)^network_def: .*\nfeature_layer: .*\n", lines, config.read_text())
    assert count == 1
    config.write_text(text)
    save_atomically(half_weights(load_bundle(root).part("network_def")), root / "models/model.pt")
    return root


def test_exporting_and_quantising_talk_to_nobody(
    tiny_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    pytest.importorskip("nncf")
    root = made(of_three_layers(tiny_bundle(VOLUMES)))
    words = ["bundle", "export", "--trust", "--bundle", str(root), "--precision", "int8", "--data"]
    words += [str(few_examples(tmp_path / "data", FEW[:1])), "--to"]
    program = f"""
from monai_unet_app import export
from monai_unet_app.cli import main
export._WINDOWS = 8
raise SystemExit(max(main([*{words}, engine]) for engine in {ENGINES}))
"""
    done = run_in_own_network([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads((root / PARITY).read_text())["exports"]
    assert written.keys() == {*ENGINES, *(f"{engine} int8" for engine in ENGINES)}

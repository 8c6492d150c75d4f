"""Names that data give to structures, channels and files are text in every file that is written of them, and never code."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser
from small_data import plan_bundle, tilted_volumes
from trained_by_nnunet import RESULTS

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.cli import show
from monai_unet_app.data.naming import harmless, obeyed
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.nnunet_results import Import, bundle_of
from monai_unet_app.planning.write import write_plan
from monai_unet_app.report.words import csv_text, plain_field

CODE = "$open('RAN', 'w').name"
NAMES = [
    CODE,
    "@window",
    "%inference.yaml::window",
    "no",
    "1e3",
    "GTV::1 #2",
    'left: "main" {a}',
    "\n- $open('RAN', 'w')",
]
NAMES += [
    "a\u2028imports: [$open('RAN', 'w')]",
    "_target_",
    "=cmd()",
    "\x1b[2Jx",
    "<script>1</script>",
    "Ähre",
    "it's",
    "@@#x",
]


def drawn(count: int) -> list[str]:
    """Texts of signs that YAML, MONAI, spreadsheets, terminals or HTML obey."""
    draw = random.Random(11)
    signs = [
        "$",
        "@",
        "%",
        "#",
        "::",
        ":",
        "\n",
        '"',
        "'",
        "\\",
        "{",
        "}",
        "[",
        "- ",
        "&",
        "*",
        "!",
        "|",
        ">",
        "\t",
        "é",
        "x",
        " ",
    ]
    return ["".join(draw.choices(signs, k=draw.randint(1, 6))) + CODE[draw.randint(0, 1) :] for _ in range(count)]


def parsed(root: Path) -> ConfigParser:
    """MONAI's parser after it has resolved every name of the data in a bundle."""
    parser = ConfigParser()
    parser.read_meta(str(root / "configs/metadata.json"))
    parser.read_config(str(root / "configs/inference.yaml"))
    for name in ("_meta_", "labels", "input_rules"):
        parser.get_parsed_content(name)
    return parser


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tilted_volumes(tmp_path_factory.mktemp("named") / "volumes")


def named(volumes: Path, folder: Path, names: dict[str, int]) -> PlanConfig:
    data = shutil.copytree(volumes, folder / "data")
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": CODE}, "labels": {"background": 0, **names}}))
    return PlanConfig(data, time_s=1e-3, modality="MR")


@pytest.mark.parametrize("name", [*NAMES, *drawn(8)])
def test_a_planned_bundle_runs_nothing_of_a_name(
    name: str, volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = named(volumes, tmp_path, {name: 2, "spleen": 5})
    try:
        write_plan(plan_bundle(config, lambda network, channels, outputs: 1e-6), tmp_path / "plan")
        bundle = load_bundle(tmp_path / "plan")
        assert len(bundle.structure_names) == 2
        assert len(parsed(bundle.root).get_parsed_content("labels")) == 3
    except InputRefusedError:
        assert not [path for path in tmp_path.iterdir() if path.name != "data"]
    assert not (tmp_path / "RAN").exists()


def test_a_name_stands_in_the_bundle_as_the_data_have_it(volumes: Path, tmp_path: Path) -> None:
    config = named(volumes, tmp_path, {"Left: main#1": 2, CODE: 5})
    write_plan(plan_bundle(config, lambda network, channels, outputs: 1e-6), tmp_path / "plan")
    assert load_bundle(tmp_path / "plan").structure_names == ("Left: main#1", CODE)


@pytest.mark.parametrize("place", ["labels", "channels", "metadata", "key"])
def test_a_bundle_whose_names_are_code_is_refused_before_it_is_parsed(
    place: str, volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = named(volumes, tmp_path, {"liver": 2, "spleen": 5})
    root = tmp_path / "plan"
    write_plan(plan_bundle(config, lambda network, channels, outputs: 1e-6), root)
    inference, metadata = root / "configs/inference.yaml", root / "configs/metadata.json"
    if place in ("metadata", "key"):
        document = json.loads(metadata.read_text())
        document["data_source" if place == "metadata" else "_target_"] = CODE
        metadata.write_text(json.dumps(document))
    else:
        document = yaml.safe_load(inference.read_text())
        if place == "labels":
            document["labels"][1] = CODE
        else:
            document["input_rules"]["channels"] = [CODE]
        inference.write_text(yaml.safe_dump(document))
    with pytest.raises(BundleError, match="where a name or a sentence belongs"):
        _ = load_bundle(root).labels
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("place", ["labels", "channel_names", "architecture"])
def test_an_imported_network_runs_nothing_of_what_its_folder_says(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = shutil.copytree(RESULTS / "plain3d", tmp_path / "trained")
    path = trained / ("plans.json" if place == "architecture" else "dataset.json")
    document = json.loads(path.read_text())
    if place == "labels":
        document["labels"] = {CODE if value == 1 else name: value for name, value in document["labels"].items()}
    elif place == "channel_names":
        document["channel_names"] = dict.fromkeys(document["channel_names"], CODE)
    else:
        for configuration in document["configurations"].values():
            if "architecture" in configuration:
                configuration["architecture"]["arch_kwargs"]["nonlin"] = CODE
    path.write_text(json.dumps(document))
    try:
        parsed(bundle_of(Import(trained, tmp_path / "bundle", mirroring=False)).root)
    except (InputRefusedError, UsageError, BundleError):
        assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("text", [*NAMES, *drawn(40)])
def test_harmless_text_has_nothing_that_monai_obeys(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = {"window": 1, "names": harmless([text, {text: text}])}
    assert obeyed(document) is None
    parser = ConfigParser(json.loads(json.dumps(document)))
    as_ids = json.loads(json.dumps(document["names"]).replace("#", "::"))  # MONAI's way with every text
    assert parser.get_parsed_content("names") == as_ids
    assert not (tmp_path / "RAN").exists()


def test_the_shipped_bundles_hold_plain_names() -> None:
    for root in sorted((Path(__file__).parents[2] / "bundles").glob("*/configs")):
        files = BundleFiles(root.parent)
        assert files.metadata
        assert files.inference_document


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "'=x", "x=1", "'", ""])
def test_a_spreadsheet_runs_no_field_and_the_field_comes_back(text: str) -> None:
    written = csv_text([[text, -1.5, 2]]).rstrip("\n")
    field = written.rsplit(",", 2)[0].strip('"')
    assert not field.startswith(("=", "+", "-", "@", "\t"))
    assert plain_field(field) == text
    assert written.endswith(",-1.5,2")


def test_a_terminal_obeys_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("\x1b[2J", "\x9b2J", "\r", "\x07"):
        show.line(f"a{text}b")
        show.say(f"a{text}b")
        show.print_table(["name"], [[f"a{text}b"]])
    printed = "".join(capsys.readouterr())
    assert "ab" not in printed
    assert not set(printed) & set("\x1b\x9b\r\x07")


def test_a_plan_that_fails_leaves_nothing(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_bundle(named(volumes, tmp_path, {"liver": 2, "spleen": 5}), lambda network, channels, outputs: 1e-6)
    monkeypatch.setattr("monai_unet_app.planning.write.begin_fitted", lambda root: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_plan(plan, tmp_path / "plan")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]

"""A bundle that plainly holds code is a program, and runs only for somebody who has agreed to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harmless_names
import pytest
import yaml
from conftest import REPOSITORY, SHIPPED
from shell import Run, shell

from monai_unet_app import consent
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.consent import agree_to, code_digest, code_in, user_agreed
from monai_unet_app.errors import ConsentError, UsageError
from monai_unet_app.service.rule_checks import check_bundles
from monai_unet_app.service.site_file import read_site

run = pytest.fixture(shell)

EXPRESSIONS = """
__import__('os').system('touch ran')
open('ran', 'w')
eval('1')
exec('1')
compile('1', '', 'exec')
getattr(torch, 'load')
setattr(torch, 'load', 1)
globals()
vars()
type(1)
breakpoint()
print(1)
input()
torch
monai
[torch][0].load('x')
torch.load('x')
torch.hub.load('a', 'b')
torch.jit.load('x')
torch.serialization.load('x')
torch.ops.load_library('x.so')
torch.classes.load_library('x.so')
torch.utils.cpp_extension.load('x')
numpy.load('x', allow_pickle=True)
numpy.ctypeslib.load_library('x', '.')
monai.bundle.run()
monai.bundle.load('x')
monai.bundle.scripts.run()
monai.utils.optional_import('os')
monai.transforms.Lambda(open)
().__class__
().__class__.__base__.__subclasses__()
(lambda: 0).__globals__
(lambda m: m.load)(torch)
lambda: torch.load('x')
[0 for torch in ()] or torch.load('x')
[0 for os in ()] or os.system('x')
(torch := 1)
'{0.__class__}'.format(1)
f'{torch.load}'
import os
from os import system
os.system('x')
os.path.expanduser('~')
os.environ['HOME']
sys.exit(1)
glob.glob('*')
pathlib.Path('x').read_text()
pathlib.Path(@bundle_root, 'models/fitted.json').unlink()
json.loads('1')
json.loads(pathlib.Path(@bundle_root, '../x').read_text('utf-8'))
@bundle_root + '/../../x'
@network.__class__
@network.apply(print)
@evaluator.run.__func__
nnunet.os
1; 2
"""
TARGETS = (
    "os.system", "subprocess.run", "builtins.eval", "builtins.exec", "torch.load", "torch.hub.load", "monai.bundle.run",
    "monai.bundle.load", "monai.utils.optional_import", "importlib.import_module", "pickle.loads", "numpy.load", "pathlib.Path",
    "runpy.run_path", "ctypes.CDLL", "webbrowser.open", "scripts.evil.Network", "monai.networks.nets.dynunet.os.system",
    "@reader", "$'os.system'", "", ["os.system"], {"a": 1}, None,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    {"_target_": "LoadImaged", "keys": "image", "reader": "os.system"},
    {"_target_": "LoadImaged", "keys": "image", "reader": "antigravity"},
    {"_target_": "LoadImaged", "keys": "image", "reader": ["ITKReader", "antigravity"]},
    {"_target_": "LoadImaged", "keys": "image", "reader": "NumpyReader", "allow_pickle": True},
    {"_target_": "SaveImaged", "keys": "pred", "writer": "antigravity"},
    {"_target_": "SaveImaged", "keys": "pred", "output_dir": "/etc"},
    {"_target_": "SlidingWindowInferer", "merger_cls": "antigravity"},
    {"_target_": "FlexibleUNet", "backbone": "antigravity"},
    {"_target_": "CheckpointLoader", "load_path": "x", "weights_only": False},
    {"_target_": "DynUNet", "_mode_": "debug"},
    {"_target_": "DynUNet", "_mode_": "partial"},
    {"_target_": "DynUNet", "act": "os.path.join"},
    {"_target_": "DynUNet", "_disabled_": "$open('ran', 'w')"},
    {"_target_": "DynUNet", "_requires_": "$import antigravity"},
    "%/etc/passwd", "%other.yaml::x", " %x.json", "/etc/passwd", "~/x", "../x", "C:\\x", "https://x.y/z", "file:///x",
    ["a", {"b": ["$open('ran', 'w')"]}], {"$open('ran')": 1}, {"a": {"b": "%x.json"}},
)  # fmt: skip
HOSTILE = [
    *(f"${line}" for line in EXPRESSIONS.strip().splitlines()), *({"_target_": target} for target in TARGETS), *OTHERS
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, everything_agreed: pytest.MonkeyPatch) -> None:
    """A user who has agreed to nothing."""
    everything_agreed.undo()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "of_user"))


def test_what_is_code_is_found() -> None:
    assert len(HOSTILE) >= 100
    missed = [value for value in HOSTILE if not list(code_in({"more": value}))]
    assert missed == []
    for lines in ("$import antigravity", ["$import json", "$import os.path"], ["$open('ran', 'w')"]):
        assert list(code_in({"imports": lines}))


def test_the_list_of_harmless_names_is_what_is_shipped_planned_and_documented() -> None:
    """Somebody has looked at each name in the committed list; `python tests/bundles/harmless_names.py` makes it again."""
    assert json.loads(harmless_names.LIST.read_text()) == harmless_names.collected()
    for name in ("load", "system", "hub", "eval", "exec", "apply", "format", "read_text", "__class__"):
        assert name not in consent.harmless()["methods"] | consent.harmless()["builtins"]


@pytest.mark.parametrize("root", SHIPPED, ids=lambda root: root.name)
def test_a_shipped_bundle_is_data(root: Path) -> None:
    bundle = BundleFiles(root)
    for path in sorted((root / "configs").glob("*.yaml")):
        overlays = [path.stem] if path.stem != "inference" else []
        bundle.config_with(*(["train"] if path.stem == "multi_gpu_train" else []), *overlays)


def with_value(root: Path, value: object, key: str = "feature_layer") -> Path:
    config = root / "configs/inference.yaml"
    text = re.sub(rf"(?m)^{key}: .*\n", "", config.read_text())
    config.write_text(text + yaml.safe_dump({key: value}, width=1000))
    return root


@pytest.mark.parametrize(
    "door", ["predict", "evaluate", "calibrate", "train", "bundle export", "bundle bench", "package"]
)
def test_no_door_runs_code_without_consent(
    run: Run, tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    value = {"_target_": "pathlib.Path.touch", "self": f"$pathlib.Path('{tmp_path}/ran')"}
    root = with_value(tiny_bundle(), value)
    monkeypatch.chdir(tmp_path)
    data = REPOSITORY / "examples/msd_hippocampus"
    words = {
        "predict": ["--input", data / "images/hippocampus_003.nii.gz", "--output", "out"],
        "evaluate": ["--data", data, "--output", "out"],
        "calibrate": ["--data", data],
        "train": ["--data", data, "--output", "out"],
        "bundle export": ["--to", "onnxruntime"],
        "bundle bench": [],
        "package": ["--output", "out"],
    }[door]
    verb = ["bundle", "package"] if door == "package" else door.split()
    answer = run(*verb, "--bundle", root, *words)
    assert answer.code == 1, answer.err
    assert "calls 'pathlib.Path.touch'; if you know who made it, agree to run it by --trust" in " ".join(
        answer.err.split()
    )
    assert not (tmp_path / "ran").exists()


def test_consent_is_to_the_code_and_outlasts_all_but_its_change(
    run: Run, tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = with_value(tiny_bundle(), "$print('hello') or 'bottleneck'")
    with pytest.raises(ConsentError, match=r"`feature_layer` uses print in \"\$print"):
        _ = load_bundle(root).parser
    image = REPOSITORY / "examples/msd_hippocampus/images/hippocampus_003.nii.gz"
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as packed:
        for path in root.rglob("*"):
            packed.write(path, path.relative_to(root.parent))
    words = ["predict", "--input", image, "--output", "out", "--format", "nifti"]
    assert run(*words, "--bundle", "bundle.zip").code == 1
    assert run(*words, "--bundle", "bundle.zip", "--trust").code == 0
    assert run(*words, "--bundle", root).code == 0  # the same code
    assert list(user_agreed()) == [code_digest(root)]
    assert consent.consent_file().stat().st_mode & 0o777 == 0o600

    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    for name in ("models/fitted.json", "docs/README.md", "configs/metadata.json", "models/model.pt"):
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    assert code_digest(copy) == code_digest(root)  # weights, fitted numbers, figures and documents are no code
    for name in ("configs/segments.json", "configs/train.yaml", "scripts/network.py", "models/network.onnx"):
        changed = Path(shutil.copytree(root, tmp_path / name.replace("/", "_")))
        (changed / name).parent.mkdir(exist_ok=True)
        (changed / name).write_text("x: 1")
        with pytest.raises(ConsentError):
            _ = load_bundle(changed).parser
    answer = run("doctor", "--trusted")
    assert (code_digest(root)[:12] in answer.out, answer.code) == (True, 0)
    assert run("doctor", "--revoke", code_digest(root)[:8]).code == 0
    assert user_agreed() == {}
    assert run(*words, "--bundle", root).code == 1


def test_a_node_and_a_package_have_consents_of_their_own(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root = with_value(tiny_bundle(), "$print('hello') or 'bottleneck'")
    agree_to(root)
    assert load_bundle(root).part("feature_layer") == "bottleneck"
    with pytest.raises(ConsentError, match="in the site file of a node by trusted = "):
        _ = load_bundle(root, agreed=frozenset([""])).parser
    assert load_bundle(root, agreed=frozenset([code_digest(root)])).part("feature_layer") == "bottleneck"
    rule = f'[[rules]]\nname = "one"\nbundle = "{root}"\nmatch = {{Modality = "MR"}}\ndeliver_ungated = true\n'
    for trusted in ("", code_digest(root)[:-1] + "x", code_digest(root)):
        (tmp_path / "site.toml").write_text(f'[node]\nfolder = "node"\n{rule}trusted = "{trusted}"\n')
        if trusted != code_digest(root):
            with pytest.raises(ConsentError):
                check_bundles(read_site(tmp_path / "site.toml"))
        else:
            check_bundles(read_site(tmp_path / "site.toml"))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_that_others_may_write_or_that_is_damaged_is_no_consent(tiny_bundle: Callable[..., Path]) -> None:
    root = with_value(tiny_bundle(), "$print('hello') or 'bottleneck'")
    agree_to(root)
    consent.consent_file().chmod(0o666)
    with pytest.raises(UsageError, match="can be written by others"):
        _ = load_bundle(root).parser
    consent.consent_file().chmod(0o600)
    consent.consent_file().write_text("{")
    with pytest.raises(UsageError, match=r"trusted.json is damaged"):
        _ = load_bundle(root).parser


def test_monai_gets_the_config_that_was_checked(
    tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes between the check and the run is not read again."""
    root = tiny_bundle()
    bundle = load_bundle(root)
    _ = bundle.inference_document
    with_value(root, "$open('ran', 'w')")
    assert bundle.part("feature_layer") == "bottleneck"


def test_keys_that_monai_merges_are_checked_merged(tiny_bundle: Callable[..., Path]) -> None:
    for key in ("new_network::_target_", "inferer::_target_"):
        root = with_value(tiny_bundle(), "os.system", key)
        with pytest.raises(ConsentError):
            _ = load_bundle(root).parser
        shutil.rmtree(root)

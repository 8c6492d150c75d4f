"""A program that only segments starts without what MONAI imports for other tasks, and without torch's compiler."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BUNDLES, EXAMPLES, REPOSITORY
from torch import nn

from monai_unet_app import bundle as bundle_module
from monai_unet_app.bundle_folder import _NEEDS_MORE, BUILT_TO_SEGMENT, BundleFiles
from monai_unet_app.inference.network_check import _on_meta_device, _ShapesOnly
from monai_unet_app.processes import _NOT_TO_SEGMENT

MONAI = Path(importlib.util.find_spec("monai").origin).parent
ASKS_FIRST = {"utils/dist.py", "bundle/scripts.py"}
"""Modules that look whether ignite is there before they use it, or that only commands of their own use."""

STARTED = """
import json, sys
from monai_unet_app.cli import main
try:
    code = main()
finally:
    import itk, matplotlib.pyplot, scipy.signal  # other code can have them
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_a_prediction_imports_neither_trackers_nor_training_nor_the_compiler(tmp_path: Path) -> None:
    words = ["--bundle", "hippocampus_mri_unet3d", "--input", EXAMPLES / "images/hippocampus_035.nii.gz"]
    done = subprocess.run(
        [sys.executable, "-c", STARTED, "predict", *map(str, words), "--output", str(tmp_path)],
        capture_output=True, text=True, cwd=REPOSITORY, check=True,
    )  # fmt: skip
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert {"torch", "monai.transforms", "itk", "matplotlib.pyplot", "scipy.signal"} <= loaded
    assert not loaded & {"ignite", "mlflow", "sklearn", "tensorboard", "torch._dynamo", "sympy"}
    assert (tmp_path / "hippocampus_035_seg.nii.gz").is_file()


def test_every_part_of_monai_that_needs_a_package_which_is_left_out_is_known_by_its_name() -> None:
    """Followed through MONAI's own imports: what uses such a package, and what uses that."""
    unknown = [f"{file}: {name}" for file, name in users_of(_NOT_TO_SEGMENT) if not known(file, name)]
    assert unknown == []
    assert ("transforms/intensity/array.py", "UltrasoundConfidenceMapTransform") in users_of(_NOT_TO_SEGMENT)


def known(file: str, name: str) -> bool:
    """Whether the name, or the only module that has it, shows that more is needed."""
    return bool(_NEEDS_MORE.search(f"monai.{file.removesuffix('.py').replace('/', '.')}") or _NEEDS_MORE.search(name))


@cache
def users_of(packages: tuple[str, ...]) -> set[tuple[str, str]]:
    """File and name of the functions and classes of MONAI that use one of these packages."""
    uses, imported, users = dict[tuple[str, str], set[str]](), dict[str, dict[str, tuple[str, str]]](), set()
    for path in MONAI.rglob("*.py"):
        file, tree = str(path.relative_to(MONAI)), ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        optional = {name for node in nodes for name in optional_names(node, packages)}
        imported[file] = {name: origin for node in nodes for name, origin in monai_names(node)}
        for own in tree.body:
            if isinstance(own, (ast.FunctionDef, ast.ClassDef)):
                names = {node.id for node in ast.walk(own) if isinstance(node, ast.Name)}
                uses[file, own.name] = names
                if file not in ASKS_FIRST and names & optional:
                    users.add((file, own.name))
    more = users
    while more:
        files = defaultdict(list)
        for file, name in more:
            files[name].append(file)
        more = {
            (file, name)
            for (file, name), names in uses.items()
            if (file, name) not in users and file not in ASKS_FIRST
            for used in names
            if file in files.get(used, ()) or is_of(imported[file].get(used), files)
        }
        users |= more
    return users


def optional_names(node: ast.AST, packages: tuple[str, ...]) -> Iterator[str]:
    """The names that an `optional_import` of one of the packages gives."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
        called, first = node.value.func, node.value.args[0]
        is_one = isinstance(first, ast.Constant) and f"{first.value}.".startswith(tuple(f"{one}." for one in packages))
        if isinstance(called, ast.Name) and called.id == "optional_import" and is_one:
            found = (one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name))
            yield from (name for name in found if name != "_" and not name.startswith("has_"))


def monai_names(node: ast.AST) -> Iterator[tuple[str, tuple[str, str]]]:
    """Names that are imported from MONAI, with their module as a path and their name there."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("monai"):
        for one in node.names:
            yield one.asname or one.name, (str(node.module).partition(".")[2].replace(".", "/"), one.name)


def is_of(origin: tuple[str, str] | None, users: Mapping[str, list[str]]) -> bool:
    """Whether a name that was imported is a user, by name and files: from its own module, or a package above it."""
    return origin is not None and any(file.startswith(origin[0]) for file in users.get(origin[1], ()))


@pytest.mark.parametrize("root", BUNDLES, ids=lambda root: root.name)
def test_our_bundles_only_segment(root: Path) -> None:
    assert BundleFiles(root).only_segments


@pytest.mark.parametrize(
    ("old", "new", "only"),
    [
        ("_target_: NormalizeIntensityd", "_target_: UltrasoundConfidenceMapTransformd", False),
        ("_target_: NormalizeIntensityd", "_target_: my_hospital.Denoised", False),
        ("_target_: NormalizeIntensityd", "_target_: monai.transforms.NormalizeIntensityd", True),
        ("- $import glob", "- $import scripts", False),
        ("- $import glob", "- $from my_hospital import steps", False),
        ('reader: null', 'reader: ITKReader', False),
        ('reader: null', 'reader: NibabelReader', True),
        ("_target_: CheckpointLoader", "_target_: TensorBoardImageHandler", True),  # only monai.bundle run builds it
        ("spacing_mm: [1.0, 1.0, 1.0]", 'spacing_mm: "$my_hospital_spacing(@seen)"\nseen: "$monai.handlers.x"', False),
    ],
)  # fmt: skip
def test_a_bundle_that_names_more_gets_the_whole_of_monai(
    old: str, new: str, only: bool, tiny_bundle: Callable[[], Path]
) -> None:
    config = (root := tiny_bundle()) / "configs/inference.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    assert BundleFiles(root).only_segments is only


def test_ids_that_a_bundle_builds_are_all_looked_at() -> None:
    tree = ast.parse(Path(bundle_module.__file__).read_text())
    asked = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("part", "_optional")
        and node.args and isinstance(node.args[0], ast.Constant)
    }  # fmt: skip
    assert {"network_def", "preprocessing", "inferer"} < asked <= set(BUILT_TO_SEGMENT)


def layers() -> Iterator[tuple[nn.Module, tuple[int, ...]]]:
    """Layers and shapes of what they get, lopsided; some that torch refuses."""
    for space, convolution, transposed in (
        (1, nn.Conv1d, nn.ConvTranspose1d), (2, nn.Conv2d, nn.ConvTranspose2d), (3, nn.Conv3d, nn.ConvTranspose3d),
    ):  # fmt: skip
        size = (11, 8, 5)[:space]
        for more in ({}, {"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"stride": 2, "padding": 1}):
            yield convolution(4, 6, 3, **more), (2, 4, *size)
            yield transposed(4, 6, 3, **more), (2, 4, *size)
            yield convolution(4, 6, 3, **more), (2, 3, *size)
            yield transposed(4, 6, 3, **more), (2, 5, *size)
        yield convolution(4, 6, (5, 3, 2)[:space], padding="same"), (1, 4, *size)
        yield convolution(4, 6, 9), (1, 4, *size)
        yield convolution(4, 6, 3), (4, *size)
        yield transposed(4, 6, (5, 3, 2)[:space], stride=(3, 2, 4)[:space], output_padding=1), (1, 4, *size)
    yield nn.InstanceNorm3d(4), (2, 4, 11, 8, 5)
    yield nn.InstanceNorm3d(4), (2, 4, 1, 1, 1)
    yield nn.LeakyReLU(), (2, 4, 3)


class Together(nn.Module):
    """Concatenates, adds and divides what it gets, moved or not."""

    def __init__(self, axis: int, rest: slice) -> None:
        super().__init__()
        self.axis, self.rest = axis, rest

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([image, image[:, self.rest], image], dim=self.axis)
        return (joined + joined[:, :1]) / 2 + joined * 3


def outcome(network: nn.Module, image: torch.Tensor) -> Any:
    """Shape of the answer, or the kind of the refusal."""
    try:
        return tuple(network(image).shape)
    except Exception as error:
        return type(error)


def test_shapes_that_are_computed_without_torch_are_those_that_it_computes() -> None:
    with torch.inference_mode():
        cases = [
            *layers(),
            *((Together(axis, rest), (2, 4, 6, 5)) for axis in (1, 2, -1) for rest in (slice(4), slice(2))),
        ]
        for network, shape in cases:
            real, hollow = outcome(network.eval(), torch.ones(shape)), _on_meta_device(network)
            torchs = outcome(hollow, torch.ones(shape, device="meta"))  # takes some shapes that the real layer refuses
            with _ShapesOnly():
                assert outcome(hollow, torch.ones(shape, device="meta")) == torchs, (network, shape)
            assert torchs == real or not isinstance(real, tuple), (network, shape)

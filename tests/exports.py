"""Tiny bundles with exports. What takes long of an export, a network's file, is written once in a run of tests."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from once import made_once

from monai_unet_app import export
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.config import RuntimeName
from monai_unet_app.export import export_bundle
from monai_unet_app.inference.engines.exported import network_sha256
from monai_unet_app.inference.engines.runtimes import RUNTIMES, Runtime
from monai_unet_app.training.checkpoints import half_weights, save_atomically

Template = Callable[[str], tuple[Path, object]]


def networks_written_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`export_bundle` takes the file of the same network for the same program from an earlier export of this run.

    It checks, certifies and refuses as ever. The same means: weights, description, window and layer; for int8 also the windows.
    """
    write, quantise = export._write, export.quantise

    def write_once(bundle: Bundle, runtime: Runtime, file: Path) -> None:
        digest = hashlib.sha256(f"{network_sha256(bundle)} {bundle.slice_axis} {runtime.files}".encode())
        for name, values in sorted(bundle.network.state_dict().items()):
            digest.update(name.encode() + values.numpy().tobytes())
        copied(digest.hexdigest(), file, lambda new: written(bundle, runtime, new))

    def written(bundle: Bundle, runtime: Runtime, file: Path) -> None:
        hooks = [len(part._forward_hooks) for part in bundle.network.modules()]
        write(bundle, runtime, file)
        assert [len(part._forward_hooks) for part in bundle.network.modules()] == hooks, "the network is left as it was"
        assert not any(part.training for part in bundle.network.modules())

    def quantise_once(engine: str, source: Path, target: Path, windows: Sequence[NDArray[Any]]) -> None:
        digest = hashlib.sha256(engine.encode())
        for name in RUNTIMES[engine].files:
            digest.update(source.with_name(Path(name).name).read_bytes())
        for window in windows:
            digest.update(repr(window.shape).encode() + window.tobytes())
        copied(digest.hexdigest(), target, lambda new: quantise(engine, source, new, windows))

    def copied(key: str, file: Path, make: Callable[[Path], None]) -> None:
        made = made_once(tmp_path_factory, f"network_{key}", lambda folder: make(folder / file.name))
        shutil.copytree(made, file.parent, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_write", write_once)
        patch.setattr(export, "quantise", quantise_once)
        yield


def shallow_template(tiny_template: Template, tmp_path_factory: pytest.TempPathFactory) -> Template:
    """`tiny_template` with networks of three levels, which are exported in half of the time; replaces it in a module.

    A norm that is left as it is in an export for OpenVINO shows in them, too: it is 4 and 19 times too far from torch.
    """

    @cache
    def make(name: str) -> tuple[Path, object]:
        root = shutil.copytree(tiny_template(name)[0], tmp_path_factory.mktemp("shallow") / name)
        config, levels = root / "configs/inference.yaml", {"kernel_size": 3, "strides": 3, "filters": 3}
        text = config.read_text()
        for key, kept in (levels | {"upsample_kernel_size": 2}).items():
            text, count = re.subn(rf"(?m)^(  {key}: \[)((?:\d+, ){{{kept - 1}}}\d+).*\]$", r"\1\2]", text)
            assert count == 1, key
        config.write_text(text)
        torch.manual_seed(0)
        save_atomically(half_weights(load_bundle(root).part("network_def")), root / "models/model.pt")
        return root, torch.get_rng_state()

    return make


def exported_once(
    factory: pytest.TempPathFactory, template: Template, name: str, engines: Sequence[RuntimeName]
) -> Path:
    """A tiny bundle, exported in float32 for these engines; whoever changes it copies it before."""

    def make(folder: Path) -> None:
        bundle = load_bundle(shutil.copytree(template(name)[0], folder / name))
        hooks = [len(part._forward_hooks) for part in bundle.network.modules()]
        for engine in engines:
            export_bundle(bundle, engine)
        assert [len(part._forward_hooks) for part in bundle.network.modules()] == hooks  # left as it was
        assert not any(part.training for part in bundle.network.modules())

    return made_once(factory, "_".join(["exported", name, *engines]), make) / name

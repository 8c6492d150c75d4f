"""The well-formed objects of `hostile_inputs`, written once for all processes of a run of tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hostile_inputs import Example, write_examples
from once import made_once


def copied_examples(factory: pytest.TempPathFactory, folder: Path) -> dict[str, Example]:
    """Copies of the objects that `write_examples` writes once for all processes of a run; `folder` must not exist."""
    shutil.copytree(made_once(factory, "examples_of_every_kind", _keep_examples), folder)
    kept = json.loads((folder / "examples.json").read_text())
    return {
        name: Example(reader, folder / path, {key: str(folder / value) for key, value in more.items()})
        for name, (reader, path, more) in kept.items()
    }


def _keep_examples(folder: Path) -> None:
    """Writes the examples and `examples.json`: name to reader, path and further paths, all relative to the folder."""
    kept = {
        name: (example.reader, str(example.path.relative_to(folder)), {
            key: str(Path(value).relative_to(folder)) for key, value in example.more.items()
        })
        for name, example in write_examples(folder).items()
    }  # fmt: skip
    (folder / "examples.json").write_text(json.dumps(kept))

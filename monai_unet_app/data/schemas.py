"""The committed JSON Schemas, and the one place that checks a document against them."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema

from monai_unet_app.errors import InputRefusedError


@cache
def schema(name: str) -> dict[str, Any]:
    """The JSON Schema `monai_unet_app/schemas/<name>.schema.json`."""
    return json.loads((files("monai_unet_app") / "schemas" / f"{name}.schema.json").read_text())


def validate(document: object, name: str) -> None:
    """Raises InputRefusedError, naming the place and the value, if `document` breaks the schema `name`."""
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema(name)).iter_errors(document))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the document"
        raise InputRefusedError(f"{name}: at {place}: {error.message}; see {name}.schema.json")


def write_json(document: object, path: Path, name: str | None = None, *, indent: int | None = 2) -> None:
    """JSON through a temporary name, pretty unless `indent` is None; held against the schema `name` first, if one is given."""
    if name is not None:
        validate(document, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(document, indent=indent, ensure_ascii=False) + "\n"
    partial.write_bytes(text.encode("utf-8", "backslashreplace"))  # a file name need not be UTF-8
    os.replace(partial, path)


def write_new_json(document: object, path: Path, name: str | None = None) -> Path:
    """As `write_json`, under a name that nothing has: `path`, or with -2, -3 and so on. Gives that name; replaces no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            free.open("x").close()
        except FileExistsError:
            continue
        try:
            write_json(document, free, name)
        except BaseException:
            free.unlink()
            raise
        return free
    raise AssertionError("unreachable")

"""The committed JSON Schemas; every document is checked against them and written here."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema

from dicom_io.files import write_whole
from monai_unet_app.data.naming import harmless
from monai_unet_app.errors import InputRefusedError


@cache
def schema(name: str) -> dict[str, Any]:
    """The JSON Schema `monai_unet_app/schemas/<name>.schema.json`."""
    document: dict[str, Any] = json.loads((files("monai_unet_app") / "schemas" / f"{name}.schema.json").read_bytes())
    return document


def validate(document: object, name: str) -> None:
    """Raises InputRefusedError with the path and the value if `document` breaks the schema `name`."""
    if isinstance(document, Mapping):
        check_version(document, name)
    # The error that is nearest to the cause: a wrong value fails many branches of a schema at once
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema(name)).iter_errors(document))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the document"
        raise InputRefusedError(f"{name}: at {place}: {error.message}; see {name}.schema.json")


def check_version(document: Mapping[str, Any], name: str) -> None:
    """Raises InputRefusedError if the `schema_version` of a document is above those of the schema `name`."""
    stated = schema(name)["properties"]["schema_version"]
    known, found = stated.get("const") or stated["enum"][-1], document.get("schema_version")
    if [int(n) for n in re.findall(r"\d+", str(found))] > [int(n) for n in re.findall(r"\d+", known)]:
        raise InputRefusedError(
            f"{name}.json has version {found}, and {known} is the latest that this monai-unet-app reads; a later version wrote "
            "it; update this one (pip install --upgrade monai-unet-app)"
        )


def json_of(path: Path) -> Any:
    """What a JSON file holds, in UTF-8 whatever the machine's own encoding is. Raises OSError and ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(document: object, path: Path, name: str | None = None, *, indent: int | None = 2) -> None:
    """Writes JSON under a temporary name and renames it.

    Args:
        document: Anything that `json` can write.
        path: The final name; its folder is made if need be.
        name: Schema that the document must keep; None for no check.
        indent: None writes the document on one line.
    """
    if name is not None:
        # Before anything is written, so that no wrong document replaces a right one
        validate(document, name)
    if path.name == "metadata.json":  # MONAI's parser reads it whenever a bundle is loaded
        document = harmless(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=indent, ensure_ascii=False) + "\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))  # a file name need not be UTF-8


def write_new_json(document: object, path: Path, name: str | None = None) -> Path:
    """As `write_json`, but replaces no file: the name is `path`, or `path` with -2, -3 and so on. Gives the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            # "x" reserves the name in one step, so that two processes cannot take the same name
            free.open("x").close()
        except FileExistsError:
            continue
        try:
            write_json(document, free, name)
        # Also after Ctrl-C: an empty file would pass for a record
        except BaseException:
            free.unlink()
            raise
        return free
    raise AssertionError("unreachable")

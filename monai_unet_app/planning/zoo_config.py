"""A config of somebody else's bundle, read as data: references are followed, and an expression counts where it says a value.

What comes out is None, a truth value, a number, a text, or a list or mapping of these, and nothing that MONAI's parser would
evaluate where it is written again: no text that begins with `$`, `@` or `%`, no key such as `_target_`. Reading takes a bounded
time, whatever the config says.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from monai_unet_app.errors import InputRefusedError, first_line

MOST_BYTES = 1 << 20  # of a text file
_MOST_NODES, _MOST_DEPTH, _MOST_CHARACTERS = 20_000, 30, 500
_MOST_NUMBER, _MOST_READ = 1e12, 1e300
_PLAIN = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Dict, ast.Subscript, ast.Slice, ast.IfExp,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Add, ast.Sub, ast.Div, ast.FloorDiv, ast.USub, ast.Not,
    ast.And, ast.Or, ast.cmpop,
)  # fmt: skip
_KNOWN = {function.__name__: function for function in (len, int, float)}
_KEYS = {"monai.utils.CommonKeys.IMAGE": "'image'", "monai.utils.CommonKeys.PRED": "'pred'"}
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
_SUM = re.compile(r"\$?@[\w#:]+(?: *\+ *@[\w#:]+)*")


class Config:
    """The config; `name` is that of its file."""

    def __init__(self, document: Mapping[str, Any], name: str) -> None:
        self._document, self.name, self._left = document, name, _MOST_NODES
        self._values: dict[str, Any] = {}
        if odd := [key for key in document if not isinstance(key, str) or re.search(r"^\+|::|#", key)]:
            raise self.refusal(f"{str(odd[0])[:60]!r}, which changes another entry; write the entry as it is meant")

    def refusal(self, what: str) -> InputRefusedError:
        """The error that says so."""
        return InputRefusedError(f"{self.name} says {what}")

    def entry(self, place: str, depth: int = 0) -> Any:
        """What stands at an id, such as "inferer::overlap"; references are followed, expressions stay."""
        self._spend(depth)
        found: Any = self._document
        for part in re.split(r"#|::", place):
            try:
                found = found[int(part) if isinstance(found, list) else part]
            except (LookupError, TypeError, ValueError) as error:
                raise InputRefusedError(f"{self.name} does not say {place}; a bundle that says it is needed") from error
            if isinstance(found, str) and _REFERENCE.fullmatch(found.removeprefix("$")):
                found = self.entry(found.removeprefix("$")[1:], depth + 1)
        return found

    def raw(self, name: str) -> Any:
        """What is written at an outermost id, as it is; None where there is nothing."""
        return self._document.get(name)

    def entries(self, place: str, depth: int = 0) -> list[dict[str, Any]]:
        """The mappings of a list, also of a sum of lists, without those that are disabled."""
        self._spend(depth)
        found = self.entry(place)
        if isinstance(found, str) and _SUM.fullmatch(found):
            found = [one for name in _REFERENCE.findall(found) for one in self.entries(name, depth + 1)]
        if not isinstance(found, list):
            raise self.refusal(f"no list at {place}; a list is needed")
        followed = [self.entry(one.removeprefix("$")[1:]) if _refers(one) else one for one in found]
        if any(not isinstance(one, dict) or not isinstance(one.get("_target_"), str) for one in followed):
            raise self.refusal(f"an entry without _target_ at {place}; each needs one")
        return [one for one in followed if not self._is_disabled(one)]

    def value(self, place: str) -> Any:
        """The plain value at an id. Raises InputRefusedError where it is code or not there."""
        if place not in self._values:
            self._values[place] = self.plain(self.entry(place))
        return self._values[place]

    def plain(self, entry: Any, depth: int = 0) -> Any:
        """An entry with what its references and expressions stand for. Raises InputRefusedError where it is code."""
        self._spend(depth)
        found = self._evaluated(entry) if isinstance(entry, str) and entry[:1] in ("$", "@") else entry
        if isinstance(found, dict):
            if odd := [key for key in found if not isinstance(key, str) or re.fullmatch(r"_\w+_", key)]:
                raise self.refusal(f"{str(odd[0])[:40]} where a plain value is needed; write the value there")
            return {key: self.plain(one, depth + 1) for key, one in found.items()}
        if isinstance(found, list | tuple):
            return [self.plain(one, depth + 1) for one in found]
        if isinstance(found, str):
            return checked_text(found, self.name)
        if found is None or isinstance(found, bool):
            return found
        if isinstance(found, int | float) and abs(found) <= _MOST_NUMBER:
            return int(found) if found == int(found) else found
        raise self._is_code(entry)

    def _spend(self, depth: int) -> None:
        self._left -= 1
        if self._left < 0 or depth > _MOST_DEPTH:
            raise self.refusal(f"more than {_MOST_NODES} values, or refers to itself; a plain bundle is needed")

    def _is_disabled(self, entry: Mapping[str, Any]) -> bool:
        said = self.plain(entry.get("_disabled_", False))
        return said.strip().lower() == "true" if isinstance(said, str) else bool(said)

    def _evaluated(self, text: str) -> Any:
        body = text.removeprefix("$")
        for key, value in _KEYS.items():
            body = body.replace(key, value)
        try:
            if len(body) > _MOST_CHARACTERS:
                raise SyntaxError("it is too long")
            names = {place: f"value_{number}" for number, place in enumerate(dict.fromkeys(_REFERENCE.findall(body)))}
            tree = ast.parse(_REFERENCE.sub(lambda found: names[found[1]], body), mode="eval")
            values = _KNOWN | {name: self.value(place) for place, name in names.items()}
            for node in ast.walk(tree):
                if not isinstance(node, _PLAIN) or (isinstance(node, ast.Name) and node.id not in values):
                    raise SyntaxError("it is code")
            return eval(compile(tree, self.name, "eval"), {"__builtins__": {}}, values)
        except (SyntaxError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
            raise self._is_code(text) from error

    def _is_code(self, entry: Any) -> InputRefusedError:
        return self.refusal(
            f"{shown(entry)}, which is no plain value; code of a bundle is not run here; write the value in its place, or run "
            "the bundle as a program (monai-unet bundle external)"
        )


def _refers(entry: Any) -> bool:
    return isinstance(entry, str) and bool(_REFERENCE.fullmatch(entry.removeprefix("$")))


def shown(entry: Any) -> str:
    """An entry of a foreign file in a message; of lists and mappings only the kind, since they may be large."""
    return repr(entry[:100]) if isinstance(entry, str) else f"a {type(entry).__name__}"


def checked_text(text: str, where: str) -> str:
    """The text. Raises InputRefusedError for one that MONAI's parser would not leave as it is."""
    if text.lstrip()[:1] in ("$", "@", "%") or "::" in text or len(text) > 1 << 14 or not text.isprintable():
        raise InputRefusedError(f"{where} says {text[:80]!r}; a plain text is needed; change it")
    return text


def plain_file(path: Path, most_bytes: float = MOST_BYTES) -> Path:
    """The path. Raises InputRefusedError where it is no file, leads elsewhere, or is too large."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > most_bytes:
        raise InputRefusedError(
            f"{path.name} is not there, a link, or too large; a whole bundle is needed; copy it again"
        )
    return path


def read_config(path: Path) -> dict[str, Any]:
    """What a JSON or YAML file says. Raises InputRefusedError where it cannot be read, or says more than a config does."""
    plain_file(path)
    try:
        document = ConfigParser.load_config_file(path)  # reads, and evaluates nothing
        _count(document, _MOST_NODES)
        return dict(document)
    except (OSError, ValueError, TypeError, RecursionError, MemoryError, yaml.YAMLError) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read ({first_line(error)}); a whole bundle is needed; copy it again"
        ) from error


def _count(node: Any, left: int, depth: int = 0) -> int:
    """What is left of so many nodes. An alias of YAML counts wherever it stands. Raises ValueError where nothing is left."""
    is_odd = isinstance(node, int | float) and not abs(node) <= _MOST_READ  # also where it is no number
    if left <= 0 or depth > _MOST_DEPTH or is_odd:
        raise ValueError("it is too large or too deep")
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        left = _count(child, left - 1, depth + 1)
    return left

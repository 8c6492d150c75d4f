"""A config of somebody else's bundle, read as data: references are followed, and an expression counts where it says a value.

What comes out is None, a truth value, a finite number, a text, or a list or mapping of these, and nothing that MONAI's parser
would evaluate where it is written again: no text that begins with `$`, `@` or `%`, no key such as `_target_`.
"""

import ast
import math
import re
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from monai_unet_app.errors import InputRefusedError

_MOST_BYTES, _MOST_NODES, _MOST_CHARACTERS, _MOST_FOLLOWED = 1 << 20, 20_000, 500, 50
_PLAIN = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Dict, ast.Subscript, ast.Slice, ast.IfExp,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Add, ast.Sub, ast.Div, ast.FloorDiv, ast.USub, ast.Not,
    ast.And, ast.Or, ast.cmpop,
)  # fmt: skip
_KNOWN = {function.__name__: function for function in (len, list, int, float, str)}
_KEYS = {"monai.utils.CommonKeys.IMAGE": "'image'", "monai.utils.CommonKeys.PRED": "'pred'"}
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
_SUM = re.compile(r"\$?@[\w#:]+(?: *\+ *@[\w#:]+)*")
_OF_PARSER = ("$", "@", "%")


class Config:
    """The config; `name` is that of its file."""

    def __init__(self, document: Any, name: str) -> None:
        self._document, self.name, self._left = document, name, _MOST_NODES
        self._values: dict[str, Any] = {}

    def entry(self, place: str, followed: int = 0) -> Any:
        """What stands at an id, such as "inferer::overlap"; references are followed, expressions stay."""
        found = self._document
        if followed > _MOST_FOLLOWED:
            raise InputRefusedError(f"{self.name}: {place} refers to itself; a config that MONAI can read is needed")
        for part in re.split(r"#|::", place):
            try:
                found = found[int(part) if isinstance(found, list) else part]
            except (LookupError, TypeError, ValueError) as error:
                raise InputRefusedError(f"{self.name} does not say {place}; a bundle that says it is needed") from error
            if isinstance(found, str) and _REFERENCE.fullmatch(found.removeprefix("$")):
                found = self.entry(found.removeprefix("$")[1:], followed + 1)
        return found

    def raw(self, place: str) -> Any:
        """What is written at an id, as it is; None where there is nothing."""
        found = self._document
        for part in place.split("::"):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def entries(self, place: str) -> list[dict[str, Any]]:
        """The mappings of a list, also of a sum of lists; those that are `_disabled_` are left out."""
        found = self.entry(place)
        if isinstance(found, str) and _SUM.fullmatch(found):
            found = [one for name in _REFERENCE.findall(found) for one in self.entries(name)]
        if not isinstance(found, list):
            raise InputRefusedError(f"{self.name}: {place} is no list; a list is needed")
        followed = [self.entry(one.removeprefix("$")[1:]) if _refers(one) else one for one in found]
        if any(not isinstance(one, dict) or not isinstance(one.get("_target_"), str) for one in followed):
            raise InputRefusedError(f"{self.name}: {place} has an entry without _target_; each needs one")
        return [one for one in followed if self.plain(one.get("_disabled_", False)) is not True]

    def value(self, place: str) -> Any:
        """The plain value at an id. Raises InputRefusedError where it is code or not there."""
        if place not in self._values:
            self._values[place] = self.plain(self.entry(place))
        return self._values[place]

    def plain(self, entry: Any) -> Any:
        """An entry with what its references and expressions stand for. Raises InputRefusedError where it is code."""
        found = self._evaluated(entry) if isinstance(entry, str) and entry[:1] in ("$", "@") else entry
        self._left -= 1
        if self._left < 0:
            raise InputRefusedError(f"{self.name} says more than {_MOST_NODES} values; a plain bundle is needed")
        if isinstance(found, dict):
            if odd := [key for key in found if not isinstance(key, str) or re.fullmatch(r"_\w+_", key)]:
                raise InputRefusedError(
                    f"{self.name} says {str(odd[0])[:40]} where a plain value is needed; write the value there"
                )
            return {key: self.plain(one) for key, one in found.items()}
        if isinstance(found, list | tuple):
            return [self.plain(one) for one in found]
        if isinstance(found, str):
            return checked_text(found, self.name)
        if isinstance(found, bool | int | None) or (isinstance(found, float) and math.isfinite(found)):
            return found
        raise self._is_code(entry)

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
        return InputRefusedError(
            f"{self.name} says {str(entry)[:120]!r}, which is no plain value; code of a bundle is not run here; write the "
            "value in its place, or run the bundle as a program (monai-unet bundle external)"
        )


def _refers(entry: Any) -> bool:
    return isinstance(entry, str) and bool(_REFERENCE.fullmatch(entry.removeprefix("$")))


def checked_text(text: str, where: str) -> str:
    """The text. Raises InputRefusedError for one that MONAI's parser would not leave as it is."""
    if text.lstrip()[:1] in _OF_PARSER or "::" in text or len(text) > 1 << 14 or not text.isprintable():
        raise InputRefusedError(f"{where} says {text[:80]!r}; a plain text is needed; change it")
    return text


def read_config(path: Path) -> Any:
    """What a JSON or YAML file says. Raises InputRefusedError where it cannot be read."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes, {_MOST_BYTES} at most are read")
        return ConfigParser.load_config_file(path)  # reads, and evaluates nothing
    except (OSError, ValueError, TypeError, RecursionError, MemoryError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputRefusedError(
            f"{path.name} cannot be read ({reason}); a whole bundle is needed; copy it again"
        ) from error

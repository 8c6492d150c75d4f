"""Makes `monai_unet_app/harmless.json`: what the configs use that are shipped, planned and documented. Look at what it adds.

python tests/bundles/harmless_names.py
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from monai_unet_app.consent import LOCATED, REFERENCE, dotted, path_in
from monai_unet_app.inference import nnunet

REPOSITORY = Path(__file__).resolve().parents[2]
LIST = REPOSITORY / "monai_unet_app/harmless.json"
NEVER = {"os", "sys", "glob", "pathlib", "json", "importlib", "subprocess", "shutil", "builtins"}
"""Modules whose functions are only taken as part of a whole expression."""
READERS = {"ITKReader", "NibabelReader", "NrrdReader", "NumpyReader", "PILReader", "PydicomReader"}
_QUOTED = re.compile(r""""(\$[^"\n]*)"|'(\$[^'\n]*)'|(?:: |- )(\$[^\n"'{%]+?)(?=  #|$)""", re.MULTILINE)
_TARGET = re.compile(r"_target_: \"?([\w.]+)")
_ARGUMENT = re.compile(rf"\b({'|'.join(LOCATED)}): \"?([A-Za-z][\w.]+)")


_CHOICE = re.compile(r"""\{\{ *(['"])(.*?)\1 if .*? else (['"])(.*?)\3 *\}\}""")
_VALUE = re.compile(r"\{\{.*?\}\}")
_BLOCK = re.compile(r"\{%.*?%\}")


_FOLDED = re.compile(r">-\n((?:    .*\n)+)")  # networks that are one long expression
_BACKBONE = re.compile(r"\b(efficientnet-b\d|resnet\d+)\b")
_HOLE = "hole0"


def rendered(text: str) -> Iterator[str]:
    """A template in two ways: with the first of each two texts to choose from, and with the second."""
    for group in (2, 4):
        yield _BLOCK.sub("", _VALUE.sub(_HOLE, _CHOICE.sub(lambda found, group=group: found[group], text)))


def texts() -> Iterator[str]:
    for path in sorted(REPOSITORY.glob("monai_unet_app/**/*.py")):
        yield "\n".join(f"_target_: {name}" for name in _TARGET.findall(path.read_text("utf-8")))
    for pattern in (
        "bundles/*/configs/*.yaml",
        "monai_unet_app/planning/**/*.yaml",
        "monai_unet_app/calibration/**/*.yaml",
    ):
        for path in sorted(REPOSITORY.glob(pattern)):
            yield from rendered(path.read_text("utf-8"))
    for page in sorted(REPOSITORY.glob("docs/**/*.md")):
        yield from re.findall(r"(?ms)^ *```yaml\n(.*?)^ *```", page.read_text("utf-8"))


def collected() -> dict[str, list[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    found["classes"] |= READERS
    found["names"] |= {f"nnunet.{name}" for name in nnunet.__all__}
    for path in sorted(REPOSITORY.glob("monai_unet_app/planning/networks/*.yaml")):
        text = path.read_text("utf-8")
        found["expressions"] |= {" ".join(folded.split()) for folded in _FOLDED.findall(text)}
        found["classes"] |= set(_BACKBONE.findall(text))
    for text in texts():
        found["targets"] |= {name for name in _TARGET.findall(text) if name != "_target_"}
        found["classes"] |= {name for _, name in _ARGUMENT.findall(text) if name not in ("null", _HOLE)}
        for groups in _QUOTED.findall(text):
            line = "".join(groups)
            if re.match(r"\$(import|from) ", line):
                found["imports"].add(line)
            else:
                add(line, found)
    return {kind: sorted(listed) for kind, listed in sorted(found.items())}


def add(expression: str, found: dict[str, set[str]]) -> None:
    try:
        nodes = list(ast.walk(ast.parse(REFERENCE.sub("_", expression[1:]).strip(), mode="eval")))
    except SyntaxError:
        return
    bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    names = {dotted(node) for node in nodes if id(node) not in inner and dotted(node)}
    free = {name for name in names if name.partition(".")[0] not in {*bound, "_"}}
    places = [
        node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str) and path_in(node.value)
    ]
    if places or {name.partition(".")[0] for name in free} & NEVER:
        found["expressions"] |= {" ".join(expression.split())} if _HOLE not in expression else set()
        return
    free = {name for name in free if _HOLE not in name}
    found["names"] |= {name for name in free if "." in name}
    found["builtins"] |= {name for name in free if "." not in name}
    found["methods"] |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and (not dotted(node) or dotted(node).partition(".")[0] in {*bound, "_"})
    }


if __name__ == "__main__":
    LIST.write_text(json.dumps(collected(), indent=1) + "\n", encoding="utf-8")

"""Whether a bundle is plain data or a program, and who has agreed to run it.

MONAI's parser evaluates expressions, calls whatever a `_target_` names and looks classes up by their names. A bundle whose
configs use only what `harmless.json` lists is data; any other needs consent, which is remembered by a digest of its code.

This is a warning, not a barrier: the config is read as written, and MONAI can put code together from its parts afterwards.
"""

import ast
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dicom_io.files import write_whole
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import ConsentError, UsageError

_FITTED = ("configs/confidence.json", "configs/metadata.json")  # metadata hold no code, or are refused
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".ts", ".pth", ".conf", ".toml", ".sh", ".onnx", ".xml", ".bin")
REFERENCE = re.compile(r"@(?:#|::)*\w*(?:(?:#|::)\w+)*")
_PATH = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\)|(^|[\\/])\.\.([\\/]|$)|^\w+://")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
LOCATED = ("reader", "writer", "merger_cls", "backbone", "backbone_name", "model_name", "resample_cls")
_LOOSE = ("allow_pickle", "weights_only")
_MOST_SHOWN = 160


@cache
def harmless() -> dict[str, frozenset[str]]:
    """What configs may use without consent, by kind: "targets", "names", "methods", "expressions" and so on."""
    document = json.loads((files(__package__) / "harmless.json").read_text(encoding="utf-8"))
    return {kind: frozenset(listed) for kind, listed in document.items()}


def code_digest(root: Path) -> str:
    """Hex digest of all that can be code in a bundle: its configs, modules, programs and exported graphs.

    Weights, fitted numbers, figures and documents do not count, so that training and calibrating keep it.
    """
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        is_code = name.startswith("configs/") or path.suffix in _CODE
        if is_code and name not in _FITTED and path.is_file() and not name.startswith(("run/", "cache/", "eval/")):
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def check_consent(root: Path, document: Mapping[str, Any], agreed: frozenset[str] | None = None) -> None:
    """Raises ConsentError if a config holds code that nobody has agreed to run.

    Args:
        root: The bundle's folder.
        document: The config, as MONAI's parser gets it.
        agreed: Code digests that a site file or a package states; None: those to which the user has agreed.
    """
    finding = next(code_in(document), None)
    if finding is None or (digest := code_digest(root)) in (user_agreed() if agreed is None else agreed):
        return
    raise ConsentError(
        f"{root.name} is a program, not only data: {finding}; if you know who made it, agree to run it by --trust, or in "
        f"the site file of a node by trusted = {digest!r}"
    )


def code_in(document: Mapping[str, Any]) -> Iterator[str]:
    """Each place of a config that is more than data, with the reason: "`network_def` calls os.system"."""
    for id_, value in document.items():
        if id_ == "imports":
            lines = value if isinstance(value, list) else [value]
            yield from (f"`imports` holds {_shown(line)}" for line in lines if line not in harmless()["imports"])
        else:
            yield from (f"`{id_}` {reason}" for reason in _code(value))


def _code(value: Any) -> Iterator[str]:
    """The reasons for which a value of a config is more than data."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield from _component(value)
        for key, one in value.items():
            yield from _text(str(key)) if str(key).startswith(("$", "%", "@")) else ()
            yield from _code(one) if key not in ("_target_", "_mode_", "_desc_") else ()
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _code(one)
    elif isinstance(value, str):
        yield from _text(value)


def _component(value: Mapping[str, Any]) -> Iterator[str]:
    """Of a class or function that MONAI calls, and its arguments that are text."""
    target = value["_target_"]
    if not isinstance(target, str) or " ".join(target.split()) not in harmless()["targets"] | harmless()["expressions"]:
        yield f"calls {_shown(target)}"
    if value.get("_mode_", "default") not in ("default", "callable"):
        yield f"has the `_mode_` {_shown(value['_mode_'])}"
    for key, text in value.items():
        for one in text if isinstance(text, list) else [text]:
            if not isinstance(one, str) or one.startswith(("$", "@", "%")) or str(key).startswith("_"):
                continue
            if (key in LOCATED or _DOTTED.fullmatch(one)) and one not in harmless()["classes"]:
                yield f"gives {target} the {key} {_shown(one)}, which MONAI may look up as a class"
        if key in _LOOSE:
            yield f"gives {target} {key}, by which files may hold code"


def _text(text: str) -> Iterator[str]:
    """Of a text by itself: an expression, a reference to another file, or a path out of the bundle."""
    stripped = text.strip()
    if stripped.startswith("%"):
        yield f"loads another file: {_shown(text)}"
    elif stripped.startswith("$"):
        if " ".join(stripped.split()) not in harmless()["expressions"]:
            # Names tell more than attributes
            reasons = sorted(_in_expression(stripped[1:]), key=lambda reason: reason.startswith("uses ."))
            yield from (f"{reason} in {_shown(text)}" for reason in reasons)
    elif not stripped.startswith("@") and path_in(stripped):
        yield f"names a place outside of the bundle: {_shown(text)}"


def _in_expression(text: str) -> Iterator[str]:
    """What an expression uses beyond listed names, methods and builtins. A name alone may be a module, and is not listed."""
    try:
        tree = ast.parse(REFERENCE.sub("_", text.replace("#", "::")).strip(), mode="eval")  # MONAI reads # as ::
    except (SyntaxError, ValueError, RecursionError):
        yield "holds no plain expression"
        return
    nodes = list(ast.walk(tree))
    bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    listed = harmless()
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    yield from (
        f"gives {name} another meaning" for name in sorted(bound & {name.partition(".")[0] for name in listed["names"]})
    )
    for node in nodes:
        name = dotted(node)
        if name and name.partition(".")[0] not in {*bound, "_"}:
            if id(node) not in inner and name not in listed["names"] | listed["builtins"]:
                yield f"uses {name}"
        elif isinstance(node, ast.Attribute) and node.attr not in listed["methods"]:
            yield f"uses .{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path_in(node.value):
            yield f"names the place {_shown(node.value)}"


def path_in(text: str) -> bool:
    """Whether a text may be a path out of the bundle, or an address."""
    return _PATH.search(text) is not None


def dotted(node: ast.AST) -> str:
    """ "torch.nn.Conv3d" of a name and attributes of it; empty for any other node."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if before and isinstance(node, ast.Attribute) else ""


def _shown(value: object) -> str:
    return repr(value if isinstance(value, str) else json.dumps(value, default=str))[:_MOST_SHOWN]


def consent_file() -> Path:
    """Where a user's consent is remembered."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "monai-unet-app/trusted.json"


def user_agreed() -> dict[str, str]:
    """Digests of the bundles that this user has agreed to run -> name and day.

    Raises:
        UsageError: Somebody else may write the file, or it is damaged.
    """
    path = consent_file()
    try:
        state = path.stat()
        found: dict[str, str] = json_of(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({error}); remove it, and give --trust again") from error
    if os.name == "posix" and (state.st_mode & 0o022 or state.st_uid != os.geteuid()):
        raise UsageError(
            f"{path} can be written by others; only you may write it, since it lets code run; run chmod 600 if it is yours"
        )
    return found


def agree_to(root: Path) -> None:
    """Remembers that this user wants the code of a bundle to be run."""
    _write({**user_agreed(), code_digest(root): f"{root.name}, {time.strftime('%Y-%m-%d')}"})


def carry_consent(source: Path, made: Path) -> None:
    """Agrees to a bundle that was made of one to which this user has agreed."""
    if code_digest(source) in user_agreed():
        agree_to(made)


@contextmanager
def keeping_consent(root: Path) -> Iterator[None]:
    """A bundle to which this user has agreed stays so when our own work, such as an export, has changed its code."""
    was = code_digest(root) in user_agreed()
    yield
    if was:
        agree_to(root)


def revoke(digest: str) -> None:
    """Forgets a consent. Raises UsageError if there is none of a digest that begins so."""
    known = user_agreed()
    if len(found := [one for one in known if digest and one.startswith(digest)]) != 1:
        raise UsageError(
            f"{len(found)} of the trusted bundles have a digest that begins with {digest!r}; one is needed"
        )
    _write({one: name for one, name in known.items() if one != found[0]})


def _write(known: Mapping[str, str]) -> None:
    path = consent_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(known, indent=2) + "\n").encode())
    path.chmod(0o600)

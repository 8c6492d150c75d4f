"""Configs as people write them: read without evaluating an expression, and their faults in one sentence each.

A sentence names the file, the id and the nearest known name. Nothing of a config is built or run for it.
"""

import ast
import inspect
import pydoc
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from monai_unet_app.errors import BundleError

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # written in C where PyYAML has it: a tenth of the time
_OF_MONAI = {"imports", "initialize", "run", "finalize", "evaluator", "handlers", "trainer", "_meta_"}
"""Ids that are read by MONAI or by a person who runs a bundle."""


class _Loader(_SAFE_LOADER):  # type: ignore[misc, valid-type]
    """Plain values only: another loader could make any Python object from a foreign file. A key may stand once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        seen = set[str]()
        for key in keys:
            if (name := str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands here again", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def yaml_of(path: Path) -> dict[str, Any]:
    """What a YAML config of a bundle holds. Raises BundleError with the line of the fault if it cannot be read."""
    of = f"{path.resolve().parents[1].name}: {path.name}"
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        text = " ".join(str(getattr(error, "problem", None) or error).split())
        raise BundleError(
            f"{of} cannot be read{where}: {text}; YAML with every key once, and spaces instead of tabs, is needed; correct it"
        ) from error
    if not isinstance(document, dict):
        raise BundleError(f"{of} holds no ids; see docs/bundles.md")
    return document


def merged(of: str, *documents: Mapping[str, Any]) -> dict[str, Any]:
    """Configs on top of each other, their keys `+name` and `name::part` merged, by MONAI.

    Raises BundleError, which begins with `of`, about a key that cannot be merged.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    parser = ConfigParser()
    try:
        for name, value in chain.from_iterable(document.items() for document in documents):
            merge_kv(parser, str(name), deepcopy(value))
    except (ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{of} has a key that cannot be merged: {error}") from error
    together: dict[str, Any] = parser.get()
    return {name: value for name, value in together.items() if name != "_meta_"}


def check_config(
    parser: "ConfigParser", files: Mapping[str, Collection[str]], known: Collection[str] = (), name: str = ""
) -> None:
    """Raises BundleError with the first fault of a config that a person can have typed.

    Found are a class, an argument or an `@id` that does not exist, an absent argument, an expression that is no Python, and
    an id that nothing uses and that is nearly the name of one that is used.

    Args:
        parser: Has parsed the config.
        files: Name of a file, as in a message -> ids that it states; the file that wins last.
        known: Ids that are read without a reference, beside those of MONAI.
        name: The id to be built; "" for all of the config.
    """
    items = parser.ref_resolver.items
    checked = _needed(parser, name) if name else list(items)
    for id_, fault in (*(() if name else _unused(parser, files, known)), *_faults(parser, checked)):
        root = id_.partition("::")[0]
        own = [file for file, ids in files.items() if any(str(name).lstrip("+").startswith(root) for name in ids)]
        file = (own or ["the config"])[-1]
        raise BundleError(f"{file}: `{id_}` {fault}")


def references(parser: "ConfigParser", name: str) -> list[str]:
    """The ids that an id and its parts refer to."""
    config = parser.ref_resolver.items[name].config
    return list(parser.ref_resolver.find_refs_in_config(config, name))


def _needed(parser: "ConfigParser", name: str) -> list[str]:
    """The ids that are built with an id, itself first."""
    items, found, waiting = parser.ref_resolver.items, dict[str, None](), [name]
    while waiting:
        one = waiting.pop()
        if one in items and one not in found:
            found[one] = None
            waiting += [other for other in items if other.startswith(f"{one}::")] + references(parser, one)
    return list(found)


def _unused(
    parser: "ConfigParser", files: Mapping[str, Collection[str]], known: Collection[str]
) -> Iterator[tuple[str, str]]:
    used = {ref.partition("::")[0] for id_ in parser.ref_resolver.items if id_ for ref in references(parser, id_)}
    used |= {*_OF_MONAI, *known}
    stated = {str(name).lstrip("+").partition("::")[0] for name in chain.from_iterable(files.values())}
    for id_ in sorted(stated - used):
        if "?" in (near := _nearest(id_, used)):
            yield id_, f"is used nowhere{near}"


def _faults(parser: "ConfigParser", ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    from monai.bundle import ConfigComponent

    items = parser.ref_resolver.items
    for id_ in ids:
        item = items[id_]
        if isinstance(item, ConfigComponent) and not item.is_disabled():
            for fault in _component_faults(item):
                yield id_, fault
        config = item.config
        if not isinstance(config, str):
            continue
        for ref in parser.ref_resolver.match_refs_pattern(config):
            if ref and ref not in items:
                yield id_, f"refers to @{ref}, and no id has this name{_nearest(ref, items)}"
        if config.startswith("$"):
            try:
                ast.parse(parser.ref_resolver.id_matcher.sub("_", config[1:]).strip())
            except SyntaxError as error:
                yield id_, f"is no Python expression ({error.msg}: {config[:60]}); correct it"


def _component_faults(item: Any) -> Iterator[str]:
    """Of a class or function and its arguments, a `ConfigComponent`."""
    target, name = item.config["_target_"], item.resolve_module_name()
    if not isinstance(name, str) or name.startswith(("$", "@")):
        return
    try:
        called = pydoc.locate(name)
    except pydoc.ErrorDuringImport:  # a package that it needs is absent, say; building it gives the reason
        return
    if called is None:
        known = [*(item.locator._components_table or ()), *vars(pydoc.locate(name.rpartition(".")[0]) or object)]
        near = _nearest(target.rpartition(".")[2], known)
        yield f"has the `_target_` {target}, and no class or function has this name{near}"
        return
    try:
        parameters = inspect.signature(called).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):  # written in C
        return
    kinds = [one.kind for one in parameters.values()]
    given = item.resolve_args()
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for word in given:
            if word not in parameters:
                yield f"gives {target} the argument {word}, which it does not take{_nearest(word, parameters)}"
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for word, one in parameters.items():
        if one.kind in named and one.default is one.empty and word not in given and "_mode_" not in item.config:
            yield f"gives {target} no argument {word}, which it needs; add it"


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: a question about the nearest known name, if one is near."""
    near = get_close_matches(name, [one for one in known if one != name], 1, 0.8)
    return f"; did you mean {near[0]}?" if near else "; correct it"

"""The site file of a node, in TOML: where the node listens, which series it segments, and where results go.

docs/how-to/node.md shows an example. `dicom_io.net.destination_file` reads the destinations. Every key is checked, and unknown
keys are refused.
"""

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydicom.datadict import tag_for_keyword

from dicom_io.errors import DicomIoError
from dicom_io.kinds import FORMATS
from dicom_io.net.destination import OUR_AE_TITLE, checked_ae_title, checked_port
from dicom_io.net.destination_file import LOOPBACK, TomlTable, destinations_of, read_table, read_tls
from monai_unet_app.config import EngineName, Precision, RuntimeName
from monai_unet_app.data.selection import Patterns, compiled
from monai_unet_app.errors import UsageError
from monai_unet_app.service.site import (
    PREFIX,
    SCORES,
    ExternalConfig,
    HttpConfig,
    NodeConfig,
    RegistryConfig,
    Rule,
    Site,
)

# A rule's name is also the name of folders in `received` and `results`, and a label of metrics.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TEXTS = {
    "host": "an address of this machine",
    "device": "auto, cuda, cuda:N, mps or cpu",
    "organization": "a name",
    "sha256": "the bundle's sha256",
    "export_sha256": "the sha256 of the export",
    "trusted": "the code digest that the refusal of the bundle names",
    "path": "folders, separated by colons",
    "home": "a folder",
    "uri": "the address of an MLflow server",
    "challenger": "a model of the registry, registry:MODEL@challenger",
}
"""What each key with a text needs, for messages."""

_Section = TypeVar("_Section", "NodeConfig", "HttpConfig", "ExternalConfig", "RegistryConfig", "Rule")


def read_site(path: Path) -> Site:
    """The site that a file describes; its paths are relative to the folder of the file.

    Raises:
        UsageError: Not TOML, an unknown or missing key, or a value that cannot be right.
    """
    try:
        top = read_table(path)
        node = top.part("node")
        if node is None:
            raise UsageError(
                f"{path.name} has no table [node]; the folder for the node's studies is needed; add the table with the key "
                "folder"
            )
        rules = top.take("rules", list, "tables [[rules]]", [])
        site = Site(
            path,
            _section(node, NodeConfig, path.parent),
            tuple(
                _section(TomlTable(row, f"{path.name}: rule {n}"), Rule, path.parent)
                for n, row in enumerate(rules, start=1)
            ),
            destinations_of(top, path),
            _http(top.part("http"), path.parent),
            _section(top.part("external") or TomlTable({}, path.name), ExternalConfig, path.parent),
            _section(registry, RegistryConfig, path.parent) if (registry := top.part("registry")) else None,
        )
        top.close()
        _check(site)
    except DicomIoError as error:
        raise UsageError(str(error)) from error
    return site


def _check(site: Site) -> None:
    names = [rule.name for rule in site.rules]
    if not names:
        raise UsageError(f"{site.path.name} has no rule; a table [[rules]] says which series are segmented; add a rule")
    if len(set(names)) < len(names):
        raise UsageError(
            f"{site.path.name} has two rules with the same name; results are identified by the names of rules; rename one rule"
        )
    for rule in site.rules:
        unknown = [name for name in rule.destinations if name not in site.destinations]
        if unknown:
            raise UsageError(
                f"{site.path.name}: rule {rule.name} sends to {unknown[0]}; one of "
                f"{', '.join(site.destinations) or 'no destinations'} is needed; add [destinations.{unknown[0]}]"
            )
        if (rule.engine in get_args(RuntimeName)) != (rule.export_sha256 != ""):
            raise UsageError(
                f"{site.path.name}: rule {rule.name} has the engine {rule.engine} and export_sha256 "
                f"{rule.export_sha256[:12] or 'is missing'}; it is needed for an engine that runs an export, and only there; "
                "monai-unet bundle export prints it"
            )
        if rule.is_registered and site.registry is None:
            raise UsageError(
                f"{site.path.name} has no table [registry], which rule {rule.name} needs; add it with the key folder"
            )
        _check_challenger(rule, site.path.name)
        if rule.notice and not site.noticed(rule):
            raise UsageError(
                f"{site.path.name}: rule {rule.name} has notice = true, and sends to "
                f"{', '.join(rule.destinations) or 'no destination'}; a destination that takes SC is needed; add SC to the "
                "objects of its profile, or leave notice out"
            )


def _check_challenger(rule: Rule, file: str) -> None:
    if rule.canary and not rule.challenger:
        raise UsageError(
            f"{file}: rule {rule.name} has canary = {rule.canary:g} and no challenger; write challenger = "
            '"registry:MODEL@challenger", or leave canary out'
        )
    names = (rule.bundle, rule.challenger)
    is_possible = all(name.startswith(PREFIX) for name in names) and not rule.sha256 and rule.engine == "torch"
    if rule.challenger and not is_possible:
        raise UsageError(
            f"{file}: rule {rule.name} has the challenger {rule.challenger}; bundle and challenger must both be models of the "
            "registry, registry:MODEL@ALIAS, on the engine torch, and without the key sha256, which would admit one bundle "
            "only; correct the rule"
        )


def _section(table: TomlTable, config: type[_Section], folder: Path) -> _Section:
    """The values of a table as a dataclass; the table has no keys but the names of its fields."""
    section = config(**{setting.name: _value(table, setting, folder) for setting in fields(config)})
    table.close()
    return section


def _value(table: TomlTable, setting: Field[Any], folder: Path) -> Any:
    """The value of a key, checked by its rule in `_RULES`, else by the type of its default; `_s` at the end means seconds."""
    key, default = setting.name, setting.default
    if key in _RULES:
        return _RULES[key](table, folder)
    if key == "port":
        return checked_port(table.take(key, int, "a TCP port", default), table.where)
    if isinstance(default, bool):
        return table.take(key, bool, "true or false", default)
    if isinstance(default, int):
        return _count(table, key, default)
    if isinstance(default, str):
        return table.take(key, str, _TEXTS[key], default)
    assert isinstance(default, float)
    return table.seconds(key, default) if key.endswith("_s") else _number(table, key, default)


def _http(table: TomlTable | None, folder: Path) -> HttpConfig | None:
    if table is None:
        return None
    http = _section(table, HttpConfig, folder)
    if http.tls is None and http.host not in LOOPBACK:
        raise UsageError(
            f"{table.where}: host is {http.host} and there is no table tls; without TLS anybody on the network can read the "
            "tokens; add certificate and key, or listen on 127.0.0.1"
        )
    if http.tls is not None and http.tls.certificate is None:
        raise UsageError(f"{table.where}: tls has no certificate; a server needs certificate and key; add both")
    return http


def _name(table: TomlTable, folder: Path) -> str:
    name = str(table.take("name", str, "a short name", must=True))
    if not _NAME.fullmatch(name):
        raise UsageError(f"{table.where}: name is {name!r}; up to 32 letters, digits, _ and - are needed; correct it")
    return name


def _bundle(table: TomlTable, folder: Path) -> str:
    bundle = str(table.take("bundle", str, "name or folder of a bundle", must=True))
    return str(folder / bundle) if (folder / bundle).is_dir() else bundle


def _patterns(table: TomlTable, folder: Path) -> Patterns:
    try:
        patterns = compiled(table.table("match") or {})
    except ValueError as error:
        raise UsageError(f"{table.where}: {error}") from error
    if not patterns:
        raise UsageError(
            f"{table.where} matches every series; a table match with at least one DICOM keyword is needed; add for instance "
            'match = {Modality = "MR"}'
        )
    return patterns


def _channels(table: TomlTable, folder: Path) -> dict[str, Patterns]:
    where = f"{table.where}: channels"
    names = table.table("channels") or {}
    return {name: _patterns(TomlTable({"match": match}, f"{where}: {name}"), folder) for name, match in names.items()}


def _keywords(table: TomlTable, folder: Path) -> tuple[str, ...]:
    keywords = table.texts("find_by") or NodeConfig.find_by
    for keyword in keywords:
        if tag_for_keyword(keyword) is None:
            raise UsageError(
                f"{table.where}: find_by has {keyword!r}; DICOM keywords such as AccessionNumber are needed; correct it"
            )
    return keywords


def _network(text: str, where: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise UsageError(
            f"{where}: networks has {text!r}; a network such as 10.1.0.0/16 is needed; correct it"
        ) from error


def _environment(table: TomlTable) -> dict[str, str]:
    variables = table.table("environment") or {}
    if wrong := [name for name, value in variables.items() if not isinstance(value, str)]:
        raise UsageError(
            f"{table.where}: environment has {wrong[0]} = {variables[wrong[0]]!r}; texts are needed; correct it"
        )
    return dict(variables)


def _margins(table: TomlTable) -> dict[str, float]:
    margins = table.table("margins") or {}
    numbers = {name: value for name, value in margins.items() if type(value) in (int, float) and 0 <= value < 1}
    if margins and (set(margins) != set(SCORES) or len(numbers) < len(margins)):
        raise UsageError(
            f"{table.where}: margins has {', '.join(f'{name} = {value!r}' for name, value in margins.items())}; a number from "
            f"0 to below 1 is needed for each of {', '.join(SCORES)}; correct it"
        )
    return {name: float(value) for name, value in numbers.items()}


def _count(table: TomlTable, key: str, default: int) -> int:
    value = int(table.take(key, int, "a whole number", default))
    if not 1 <= value <= 10_000:
        raise UsageError(f"{table.where}: {key} is {value}; 1 to 10000 is needed; correct it")
    return value


_RANGES = {
    "decision_days": (0.0, 1e6, "0 or more"),
    **dict.fromkeys(("review_share", "canary", "least_agreement"), (0.0, 1.0, "0 to 1")),
}
"""Key -> least and greatest number, and what to say; of other keys a number is more than 0."""


def _number(table: TomlTable, key: str, default: float) -> float:
    value = float(table.take(key, (int, float), "a number", default))
    least, most, needed = _RANGES.get(key, (math.ulp(0.0), 1e6, "more than 0"))
    if not least <= value <= most:
        raise UsageError(f"{table.where}: {key} is {value:g}; {needed} is needed; correct it")
    return value


_RULES: dict[str, Callable[[TomlTable, Path], Any]] = {
    "folder": lambda table, folder: folder / table.take("folder", str, "a folder", must=True),
    "public_key": lambda table, folder: folder / key if (key := table.take("public_key", str, "a file", "")) else None,
    "tokens": lambda table, folder: folder / table.take("tokens", str, "a file of tokens", must=True),
    "audit_key": lambda table, folder: folder / key if (key := table.take("audit_key", str, "a path", "")) else None,
    "ae_title": lambda table, _: checked_ae_title(
        table.take("ae_title", str, "our AE title", OUR_AE_TITLE), table.where
    ),
    "senders": lambda table, _: tuple(checked_ae_title(title, table.where) for title in table.texts("senders") or ()),
    "networks": lambda table, _: tuple(_network(text, table.where) for text in table.texts("networks") or ()),
    "tls": lambda table, folder: read_tls(table.part("tls"), folder),
    "find_by": _keywords,
    "name": _name,
    "bundle": _bundle,
    "engine": lambda table, _: table.choice("engine", get_args(EngineName), Rule.engine),
    "precision": lambda table, _: table.choice("precision", get_args(Precision), Rule.precision),
    "margins": lambda table, _: _margins(table),
    "match": _patterns,
    "channels": _channels,
    "formats": lambda table, _: table.texts("formats", FORMATS) or Rule.formats,
    "destinations": lambda table, _: table.texts("destinations") or (),
    "network": lambda table, _: table.choice("network", ("none", "any"), Rule.network),
    "environment": lambda table, _: _environment(table),
}
"""Keys whose values need other checks than their type: key -> its value in a table, with paths relative to a folder."""

"""The site file of a node, in TOML: where the node listens, which series it segments, and where results go.

docs/how-to/node.md shows an example. `dicom_io.net.destination_file` reads the destinations. Every key is checked, and unknown
keys are refused.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydicom.datadict import tag_for_keyword

from dicom_io.errors import DicomIoError
from dicom_io.kinds import FORMATS
from dicom_io.net.destination import OUR_AE_TITLE, Destination, Tls, checked_ae_title, checked_port
from dicom_io.net.destination_file import LOOPBACK, TomlTable, destinations_of, read_table, read_tls
from monai_unet_app.config import EngineName, Precision, ResultSettings
from monai_unet_app.data.selection import Patterns, compiled
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.service.rows import NewResult, Result

# A rule's name is also the name of folders in `received` and `results`, and a label of metrics.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
SCORES = ("dice", "boundary_iou", "ece_whole", "ece_band")
"""The scores of the release gate, each of which has a margin."""

PREFIX = "registry:"
"""Begins the bundle of a rule that names a model of the registry: registry:MODEL@ALIAS or registry:MODEL@NUMBER."""

_TEXTS = {
    "host": "an address of this machine",
    "device": "auto, cuda, cuda:N, mps or cpu",
    "organization": "a name",
    "sha256": "the bundle's sha256",
    "export_sha256": "the sha256 of the export",
    "path": "folders, separated by colons",
    "home": "a folder",
    "uri": "the address of an MLflow server",
    "challenger": "a model of the registry, registry:MODEL@challenger",
}
"""What each key with a text needs, for messages."""

_Section = TypeVar("_Section", "NodeConfig", "HttpConfig", "ExternalConfig", "RegistryConfig", "Rule")


@dataclass(frozen=True)
class Rule:
    """The series that a bundle segments, and what happens to the results.

    Attributes:
        name: Name of the rule; letters, digits, _ and -.
        bundle: Name or folder of the bundle; or registry:MODEL@ALIAS, a model of the site's registry.
        match: DICOM keyword -> pattern that the value must contain, regardless of case; all patterns must match.
        channels: Name of each further channel of the bundle -> patterns as of `match` for its series, which lies in the study
            and the frame of reference of the first.
        least_instances: Series with fewer instances are ignored.
        formats: Kinds of DICOM objects, some of `dicom_io.kinds.FORMATS`.
        destinations: Names of destinations of the site.
        sha256: Digest of the bundle; a bundle with another digest is not loaded. Empty: any bundle.
        engine, precision: As in `ResultSettings`; a node never chooses them.
        export_sha256: Of the export that another engine than torch runs, as `bundle export` prints it.
        tta: Average over mirror images.
        elsewhere: The images are not from where the bundle was calibrated: intervals are wider.
        hold_review: Hold results with the verdict "review" until a reviewer accepts or releases them; otherwise they are
            delivered, and say so themselves. Results with the verdict "reject" are always held back.
        review_share: Part of the accepted results that are drawn at random and held for a reviewer, from 0 to 1, so that the
            Dice of those that nobody sees can be told.
        probabilities: Keep the probabilities of all classes beside the result; they are large.
        deliver_ungated: Deliver results without a verdict if the bundle has no quality gate for this rule; without this setting
            such a rule does not start.
        notice: Destinations that take captures get a notice of a series that was picked and not processed.
        reject_replaced: Reject the earlier version of a result at each destination that has got the later one and takes KO.
        allow_incomplete: Segment the present images of a series that lacks images by its own headers after `incomplete_s`.
        challenger: registry:MODEL@challenger, a model that is tried beside `bundle`; empty: none.
        canary: The most of the patients, from 0 to 1, whose results an approver may let the challenger make.
        least_agreement: Dice of the structure that agrees least, below which results of champion and challenger disagree.
        most_slower: How many times as much processor time as the champion the challenger may take.
        network: none: a program that the bundle starts does not start where it could reach a network; any: it may.
    """

    name: str
    bundle: str
    match: Mapping[str, re.Pattern[str]]
    channels: Mapping[str, Patterns] = field(default_factory=dict)
    least_instances: int = 1
    formats: tuple[str, ...] = ("seg", "sr")
    destinations: tuple[str, ...] = ()
    sha256: str = ""
    engine: EngineName = "torch"
    precision: Precision = "float32"
    export_sha256: str = ""
    tta: bool = False
    elsewhere: bool = False
    hold_review: bool = True
    review_share: float = 0.0
    probabilities: bool = False
    notice: bool = False
    reject_replaced: bool = True
    allow_incomplete: bool = False
    deliver_ungated: bool = False
    challenger: str = ""
    canary: float = 0.0
    least_agreement: float = 0.7
    most_slower: float = 2.0
    network: Literal["none", "any"] = "none"

    @property
    def is_registered(self) -> bool:
        """Whether its bundle is a model of the registry."""
        return self.bundle.startswith(PREFIX)

    @property
    def settings(self) -> ResultSettings:
        """What the rule asks for of its results."""
        return ResultSettings(tta=self.tta, elsewhere=self.elsewhere, engine=self.engine, precision=self.precision)


@dataclass(frozen=True)
class NodeConfig:
    """Where a node listens, its limits, and its waiting times.

    Attributes:
        folder: Holds received studies, results, the database and the audit trail.
        audit_key: File of the key that signs the audit trail; None: audit.key in `folder`.
        ae_title, host, port: Where the node listens for DICOM.
        senders: Calling AE titles that may connect; empty: all.
        networks: IP networks that may connect; empty: all.
        tls: Certificates; None: not encrypted.
        idle_s: An association without traffic for so many seconds is aborted.
        most_senders: Associations at one time; one in five is reserved for callers from other addresses.
        stable_s: A study is complete when no instance has come for so many seconds.
        incomplete_s: As `stable_s`, for a study in which a rule picks a series that lacks images by its own headers.
        workers: Processes that segment at one time.
        worker_gb: Memory limit of a worker; a worker that exceeds it is ended.
        device: Of the networks, as in `resolve_device`. With "auto" a window for which an accelerator has no memory runs on the
            CPU; with a name such as "cuda" the study is refused. What the first worker finds holds until the node ends.
        job_s: Seconds that a study may take.
        silent_s: A worker or sender without a heartbeat for so many seconds counts as frozen and is replaced.
        tries: Attempts at a study whose worker dies, hangs or exceeds its memory.
        first_pause_s, longest_pause_s: Pauses between attempts to reach a destination; each is twice as long as the last.
        give_up_h: Hours after which the result for an unreachable destination goes to the dead letters.
        retention_days: How long studies and results are kept after everything about them is done.
        decision_days: How long records of decisions are kept; 0: for ever.
        least_free_gb: With less free disk than this, no instance is received.
        instance_gb: The largest instance; it is held in memory while it is received.
        organization: The organization of the reviewers, named in verified reports.
        show_identity: Whether review pages may name the patient, and reviewers may see the values of `find_by`.
        find_by: DICOM keywords of the header values by which reviewers find a study.
    """

    folder: Path
    audit_key: Path | None = None
    ae_title: str = OUR_AE_TITLE
    host: str = "127.0.0.1"
    port: int = 11112
    senders: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    tls: Tls | None = None
    idle_s: float = 60.0
    most_senders: int = 50
    stable_s: float = 10.0
    incomplete_s: float = 300.0
    workers: int = 1
    worker_gb: float = 8.0
    device: str = "auto"
    job_s: float = 900.0
    silent_s: float = 10.0
    tries: int = 3
    first_pause_s: float = 2.0
    longest_pause_s: float = 300.0
    give_up_h: float = 72.0
    retention_days: float = 14.0
    decision_days: float = 0.0
    least_free_gb: float = 1.0
    instance_gb: float = 1.0
    organization: str = ""
    show_identity: bool = True
    find_by: tuple[str, ...] = ("AccessionNumber",)


@dataclass(frozen=True)
class HttpConfig:
    """Where the HTTP API listens, and its limits.

    Attributes:
        tokens: File of tokens, see `service.tokens`.
        host, port: Where the server listens; on an address of the network only with `tls`.
        tls: Certificate and key; None: not encrypted.
        most_upload_gb: The largest upload.
        most_upload_s: Seconds that an upload may take.
        least_upload_kb_per_second: The lowest rate at which a body may come, in 1,000 bytes for each second.
        slow_upload_s: Seconds for which a body may come more slowly than that, or not at all.
        most_connections: Connections at one time.
        most_per_address: Connections at one time from one address.
        head_s: Seconds within which the TLS handshake and the head of a request must come.
    """

    tokens: Path
    host: str = "127.0.0.1"
    port: int = 8042
    tls: Tls | None = None
    most_upload_gb: float = 4.0
    most_upload_s: float = 600.0
    least_upload_kb_per_second: float = 10.0
    slow_upload_s: float = 20.0
    most_connections: int = 64
    most_per_address: int = 32
    head_s: float = 10.0


@dataclass(frozen=True)
class ExternalConfig:
    """What programs find that the bundles of rules start.

    Attributes:
        path: Folders in which they are looked for, separated by colons.
        home: Their home folder.
        threads: They are told to use.
        environment: Further environment variables.
    """

    path: str = "/usr/local/bin:/usr/bin:/bin"
    home: str = "/nonexistent"
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RegistryConfig:
    """The registry of models that rules name.

    Attributes:
        folder: Holds its audit trail, and without `uri` its models.
        uri: Address of an MLflow server; empty for a database in the folder.
        public_key: Only bundles that this key has signed are taken; None: signatures are not asked for.
        margins: Tolerated loss of each score of the release gate, which a challenger passes before its results go out.
    """

    folder: Path
    uri: str = ""
    public_key: Path | None = None
    margins: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A whole site file; `http` is None for a site without an HTTP API, `registry` for one without a registry."""

    path: Path
    node: NodeConfig
    rules: tuple[Rule, ...]
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    http: HttpConfig | None = None
    external: ExternalConfig = field(default_factory=ExternalConfig)
    registry: RegistryConfig | None = None

    def rule(self, name: str) -> Rule | None:
        """The rule of that name; None if the site has no such rule, or no longer has it."""
        return next((rule for rule in self.rules if rule.name == name), None)

    def named_rule(self, name: str) -> Rule:
        """The rule of that name; the only rule for an empty name. Raises InputRefusedError if there is no such rule."""
        found = self.rule(name) if name or len(self.rules) != 1 else self.rules[0]
        if found is None:
            said = f"the site has no rule {name!r}" if name else "no rule is named"
            raise InputRefusedError(
                f"{said}; one of {', '.join(rule.name for rule in self.rules)} is needed; correct it"
            )
        return found

    def destinations_for(self, result: NewResult | Result) -> tuple[str, ...]:
        """Names of the destinations of a result.

        Empty for a rule that no longer exists, and for an empty series: the result of a NIfTI image is fetched, not sent.
        """
        rule = self.rule(result.rule)
        return rule.destinations if rule and result.series else ()

    def noticed(self, rule: Rule) -> tuple[str, ...]:
        """Names of the destinations that get notices of series that a rule picked and were not processed."""
        captures = (name for name in rule.destinations if "SC" in self.destinations[name].profile.objects)
        return tuple(captures) if rule.notice else ()


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
        if (rule.engine == "torch") != (rule.export_sha256 == ""):
            raise UsageError(
                f"{site.path.name}: rule {rule.name} has the engine {rule.engine} and export_sha256 "
                f"{rule.export_sha256[:12] or 'is missing'}; it is needed for another engine than torch, and only there; "
                "monai-unet bundle export prints it"
            )
        if rule.is_registered and site.registry and (key := site.registry.public_key) and not key.is_file():
            raise UsageError(
                f"{site.path.name}: {key} does not exist; the public key of whoever signs bundles is needed there"
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


def _audit_key(table: TomlTable, folder: Path) -> Path | None:
    text = table.take("audit_key", str, "a path", "")
    return folder / text if text else None


def _count(table: TomlTable, key: str, default: int) -> int:
    value = int(table.take(key, int, "a whole number", default))
    if not 1 <= value <= 10_000:
        raise UsageError(f"{table.where}: {key} is {value}; 1 to 10000 is needed; correct it")
    return value


def _number(table: TomlTable, key: str, default: float, least: float | None = None) -> float:
    """A number of at least `least`; without `least`, a number greater than 0."""
    value = float(table.take(key, (int, float), "a number", default))
    if not (value > 0 if least is None else value >= least) or value > 1e6:
        needed = "more than 0" if least is None else f"{least:g} or more"
        raise UsageError(f"{table.where}: {key} is {value:g}; {needed} is needed; correct it")
    return value


def _share(table: TomlTable, key: str, default: float = 0.0) -> float:
    value = float(table.take(key, (int, float), "a number", default))
    if not 0 <= value <= 1:
        raise UsageError(f"{table.where}: {key} is {value:g}; 0 to 1 is needed; correct it")
    return value


def _one_of(table: TomlTable, key: str, names: tuple[str, ...]) -> str:
    name = str(table.take(key, str, f"one of {', '.join(names)}", names[0]))
    if name not in names:
        raise UsageError(f"{table.where}: {key} is {name!r}; one of {', '.join(names)} is needed; correct it")
    return name


_RULES: dict[str, Callable[[TomlTable, Path], Any]] = {
    "folder": lambda table, folder: folder / table.take("folder", str, "a folder", must=True),
    "public_key": lambda table, folder: folder / key if (key := table.take("public_key", str, "a file", "")) else None,
    "tokens": lambda table, folder: folder / table.take("tokens", str, "a file of tokens", must=True),
    "audit_key": _audit_key,
    "ae_title": lambda table, _: checked_ae_title(
        table.take("ae_title", str, "our AE title", OUR_AE_TITLE), table.where
    ),
    "senders": lambda table, _: tuple(checked_ae_title(title, table.where) for title in table.texts("senders") or ()),
    "networks": lambda table, _: tuple(_network(text, table.where) for text in table.texts("networks") or ()),
    "tls": lambda table, folder: read_tls(table.part("tls"), folder),
    "decision_days": lambda table, _: _number(table, "decision_days", NodeConfig.decision_days, least=0.0),
    "find_by": _keywords,
    "name": _name,
    "bundle": _bundle,
    "engine": lambda table, _: _one_of(table, "engine", get_args(EngineName)),
    "precision": lambda table, _: _one_of(table, "precision", get_args(Precision)),
    "review_share": lambda table, _: _share(table, "review_share"),
    "canary": lambda table, _: _share(table, "canary"),
    "least_agreement": lambda table, _: _share(table, "least_agreement", Rule.least_agreement),
    "margins": lambda table, _: _margins(table),
    "match": _patterns,
    "channels": _channels,
    "formats": lambda table, _: table.texts("formats", FORMATS) or Rule.formats,
    "destinations": lambda table, _: table.texts("destinations") or (),
    "network": lambda table, _: _one_of(table, "network", ("none", "any")),
    "environment": lambda table, _: _environment(table),
}
"""Keys whose values need other checks than their type: key -> its value in a table, with paths relative to a folder."""

"""A site's file for a node, in TOML: where it listens, what it does with which series, and where results go.

docs/how-to/node.md shows one. Destinations are those of `dicom_io.net.destination_file`. Every key is checked; unknown keys are
refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword

from dicom_io.errors import DicomIoError
from dicom_io.kinds import FORMATS
from dicom_io.net.destination import OUR_AE_TITLE, Destination, Tls, checked_ae_title, checked_port
from dicom_io.net.destination_file import LOOPBACK, Table, destinations_of, read_table, read_tls
from monai_unet_app.data.selection import compiled
from monai_unet_app.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True)
class Rule:
    """Which series one bundle segments, and what becomes of the result.

    Attributes:
        name: Of the rule; letters, digits, _ and -.
        bundle: Name or folder of the bundle.
        match: DICOM keyword -> pattern that its value must contain, upper or lower case alike; all must fit.
        least_instances: Series of fewer instances are passed by.
        formats: Kinds of DICOM objects, some of `dicom_io.kinds.FORMATS`.
        destinations: Names of the site's destinations.
        sha256: Of the bundle; a bundle with another one is not loaded. Empty: any.
        tta: Average over mirror images.
        hold_review: Keep results that the quality gate wants reviewed until somebody releases them; else they are delivered,
            and say so themselves. Rejected ones are always kept.
        probabilities: Keep them beside the result, for the uncertainty on a review page; they take more room than all else.
        deliver_ungated: Results go out that no quality gate has judged, where the bundle has none for this rule; without it
            such a rule does not start.
        notice: What was picked and not processed is told to the destinations, as a capture; to those that take one.
        allow_incomplete: Segment what is there of a series that still lacks images by its own headers after `incomplete_s`.
    """

    name: str
    bundle: str
    match: Mapping[str, re.Pattern[str]]
    least_instances: int
    formats: tuple[str, ...]
    destinations: tuple[str, ...]
    sha256: str = ""
    tta: bool = False
    hold_review: bool = True
    probabilities: bool = True
    notice: bool = False
    allow_incomplete: bool = False
    deliver_ungated: bool = False


@dataclass(frozen=True)
class NodeConfig:
    """Where a node listens, what it may use, and how long it waits.

    Attributes:
        folder: Everything it keeps: received studies, results, its queue and its audit trail.
        audit_key: File of the key that signs the audit trail; None: audit.key in `folder`.
        ae_title, host, port: Where it listens for DICOM.
        senders: Calling AE titles that are let in; empty: all.
        networks: IP networks that are let in; empty: all.
        tls: Certificates; None: not encrypted.
        idle_s: Seconds of silence after which a sender is dropped.
        most_senders: Associations at one time; one in five is kept free for callers from other addresses.
        stable_s: A study is complete when nothing has come for so long.
        incomplete_s: As `stable_s`, for a study with a series that lacks images by its own headers and that a rule picks.
        workers: Processes that segment at one time.
        worker_gb: Memory of one of them; above, it is ended.
        job_s: Seconds that one study may take.
        silent_s: Seconds without a sign of life after which a worker or sender counts as frozen and is replaced.
        tries: How often a study is tried whose worker dies, hangs or grows too large.
        first_pause_s, longest_pause_s: Between tries to reach a destination; each pause is twice the one before.
        give_up_h: Hours after which an unreachable destination's result goes to the dead letters.
        retention_days: How long studies and results are kept after everything about them is done.
        verdict_days: How long records of what people decided are kept; 0: for ever.
        least_free_gb: Less free disk, and nothing is received.
        instance_gb: The largest instance; it is held in memory while it comes.
        organization: Whom reviewers answer for; stands in verified reports.
        show_identity: Whether review pages may name the patient, and reviewers are shown what `find_by` names.
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
    job_s: float = 900.0
    silent_s: float = 10.0
    tries: int = 3
    first_pause_s: float = 2.0
    longest_pause_s: float = 300.0
    give_up_h: float = 72.0
    retention_days: float = 14.0
    verdict_days: float = 0.0
    least_free_gb: float = 1.0
    instance_gb: float = 1.0
    organization: str = ""
    show_identity: bool = True
    find_by: tuple[str, ...] = ("AccessionNumber",)


@dataclass(frozen=True)
class HttpConfig:
    """Where the HTTP API is, and what may come through it.

    Attributes:
        tokens: File of tokens, see `service.tokens`.
        host, port: Where it listens; beyond this machine only with `tls`.
        tls: Certificate and key; None: not encrypted.
        most_upload_gb: Of one request.
        most_upload_s: Seconds that one request may take.
        most_connections: Connections at one time.
        most_per_address: Connections at one time from one address.
        head_s: Seconds in which TLS handshake and the head of a request must come.
    """

    tokens: Path
    host: str = "127.0.0.1"
    port: int = 8042
    tls: Tls | None = None
    most_upload_gb: float = 4.0
    most_upload_s: float = 600.0
    most_connections: int = 64
    most_per_address: int = 32
    head_s: float = 10.0


@dataclass(frozen=True)
class Site:
    """A whole site file; `http` is None where it opens no such door."""

    path: Path
    node: NodeConfig
    rules: tuple[Rule, ...]
    destinations: Mapping[str, Destination] = field(default_factory=dict)
    http: HttpConfig | None = None

    def rule(self, name: str) -> Rule | None:
        """The rule of that name; None where there is none, or none any more."""
        return next((rule for rule in self.rules if rule.name == name), None)

    def destinations_for(self, rule: str, series: str) -> tuple[str, ...]:
        """Names of the destinations of a rule's result on a series.

        None for a rule that is not there any more, and none where there is no series: the result of a NIfTI image is fetched.
        """
        found = self.rule(rule)
        return found.destinations if found and series else ()

    def noticed(self, rule: Rule) -> tuple[str, ...]:
        """Names of the destinations that are told what a rule picked and was not processed: those that take captures."""
        taking = (name for name in rule.destinations if "SC" in self.destinations[name].profile.objects)
        return tuple(taking) if rule.notice else ()


def read_site(path: Path) -> Site:
    """The site that a file describes; paths in it are relative to the file's folder.

    Raises:
        UsageError: Not TOML, an unknown or missing key, or a value that cannot be right.
    """
    try:
        top = read_table(path)
        node = top.part("node")
        if node is None:
            raise UsageError(
                f"{path.name} has no table [node]; where the node keeps its studies is needed; add folder there"
            )
        rules = top.take("rules", list, "tables [[rules]]", [])
        site = Site(
            path,
            _node(node, path.parent),
            tuple(_rule(Table(rule, f"{path.name}: rule {n}"), path.parent) for n, rule in enumerate(rules, start=1)),
            destinations_of(top, path),
            _http(top.part("http"), path.parent),
        )
        top.close()
        _check(site)
    except DicomIoError as error:
        raise UsageError(str(error)) from error
    return site


def _check(site: Site) -> None:
    names = [rule.name for rule in site.rules]
    if not names:
        raise UsageError(f"{site.path.name} has no rule; a table [[rules]] says which series are segmented; add one")
    if len(set(names)) < len(names):
        raise UsageError(f"{site.path.name} has two rules of one name; names tell results apart; rename one")
    for rule in site.rules:
        unknown = [name for name in rule.destinations if name not in site.destinations]
        if unknown:
            raise UsageError(
                f"{site.path.name}: rule {rule.name} sends to {unknown[0]}; one of "
                f"{', '.join(site.destinations) or 'no destinations'} is needed; add [destinations.{unknown[0]}]"
            )
        if rule.notice and not site.noticed(rule):
            raise UsageError(
                f"{site.path.name}: rule {rule.name} has notice = true, and sends to "
                f"{', '.join(rule.destinations) or 'nobody'}; a destination that takes SC is needed; add SC to the objects of "
                "its profile, or leave notice out"
            )


def _node(table: Table, folder: Path) -> NodeConfig:
    usual = NodeConfig
    found = NodeConfig(
        folder=folder / table.take("folder", str, "a folder for studies and results", must=True),
        audit_key=_place(table, "audit_key", folder),
        ae_title=checked_ae_title(table.take("ae_title", str, "our AE title", usual.ae_title), table.where),
        host=table.take("host", str, "an address of this machine", usual.host),
        port=checked_port(table.take("port", int, "a TCP port", usual.port), table.where),
        senders=tuple(checked_ae_title(title, table.where) for title in table.texts("senders") or ()),
        networks=tuple(_network(text, table.where) for text in table.texts("networks") or ()),
        tls=read_tls(table.part("tls"), folder),
        idle_s=table.seconds("idle_s", usual.idle_s),
        most_senders=_whole(table, "most_senders", usual.most_senders),
        stable_s=table.seconds("stable_s", usual.stable_s),
        incomplete_s=table.seconds("incomplete_s", usual.incomplete_s),
        workers=_whole(table, "workers", usual.workers),
        worker_gb=_number(table, "worker_gb", usual.worker_gb),
        job_s=table.seconds("job_s", usual.job_s),
        silent_s=table.seconds("silent_s", usual.silent_s),
        tries=_whole(table, "tries", usual.tries),
        first_pause_s=table.seconds("first_pause_s", usual.first_pause_s),
        longest_pause_s=table.seconds("longest_pause_s", usual.longest_pause_s),
        give_up_h=_number(table, "give_up_h", usual.give_up_h),
        retention_days=_number(table, "retention_days", usual.retention_days),
        verdict_days=_number(table, "verdict_days", usual.verdict_days, least=0.0),
        least_free_gb=_number(table, "least_free_gb", usual.least_free_gb),
        instance_gb=_number(table, "instance_gb", usual.instance_gb),
        organization=table.take("organization", str, "a name", usual.organization),
        show_identity=table.take("show_identity", bool, "true or false", usual.show_identity),
        find_by=_keywords(table, "find_by", usual.find_by),
    )
    table.close()
    return found


def _http(table: Table | None, folder: Path) -> HttpConfig | None:
    if table is None:
        return None
    found = HttpConfig(
        tokens=folder / table.take("tokens", str, "a file of tokens", must=True),
        host=table.take("host", str, "an address of this machine", HttpConfig.host),
        port=checked_port(table.take("port", int, "a TCP port", HttpConfig.port), table.where),
        tls=read_tls(table.part("tls"), folder),
        most_upload_gb=_number(table, "most_upload_gb", HttpConfig.most_upload_gb),
        most_upload_s=table.seconds("most_upload_s", HttpConfig.most_upload_s),
        most_connections=_whole(table, "most_connections", HttpConfig.most_connections),
        most_per_address=_whole(table, "most_per_address", HttpConfig.most_per_address),
        head_s=table.seconds("head_s", HttpConfig.head_s),
    )
    table.close()
    if found.tls is None and found.host not in LOOPBACK:
        raise UsageError(
            f"{table.where}: host is {found.host} and there is no table tls; anybody on the way could read the tokens; add "
            "certificate and key, or listen on 127.0.0.1"
        )
    if found.tls is not None and found.tls.certificate is None:
        raise UsageError(f"{table.where}: tls has no certificate; a server needs certificate and key; add both")
    return found


def _rule(table: Table, folder: Path) -> Rule:
    name = table.take("name", str, "a short name", must=True)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{table.where}: name is {name!r}; up to 32 letters, digits, _ and - are needed; correct it")
    bundle = table.take("bundle", str, "name or folder of a bundle", must=True)
    found = Rule(
        name=name,
        bundle=str(folder / bundle) if (folder / bundle).is_dir() else bundle,
        match=_patterns(table),
        least_instances=_whole(table, "least_instances", 1),
        formats=table.texts("formats", FORMATS) or ("seg", "sr"),
        destinations=table.texts("destinations") or (),
        sha256=table.take("sha256", str, "the bundle's sha256", ""),
        tta=table.take("tta", bool, "true or false", False),
        hold_review=table.take("hold_review", bool, "true or false", True),
        probabilities=table.take("probabilities", bool, "true or false", True),
        notice=table.take("notice", bool, "true or false", False),
        allow_incomplete=table.take("allow_incomplete", bool, "true or false", False),
        deliver_ungated=table.take("deliver_ungated", bool, "true or false", False),
    )
    table.close()
    return found


def _patterns(table: Table) -> dict[str, re.Pattern[str]]:
    try:
        found = compiled(table.table("match") or {})
    except ValueError as error:
        raise UsageError(f"{table.where}: {error}") from error
    if not found:
        raise UsageError(
            f"{table.where} matches every series; a table match with at least one DICOM keyword is needed; add for instance "
            'match = {Modality = "MR"}'
        )
    return found


def _keywords(table: Table, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    found = table.texts(key)
    for keyword in found or ():
        if tag_for_keyword(keyword) is None:
            raise UsageError(
                f"{table.where}: {key} has {keyword!r}; DICOM keywords such as AccessionNumber are needed; correct it"
            )
    return default if found is None else found


def _network(text: str, where: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise UsageError(f"{where}: networks has {text!r}; such as 10.1.0.0/16 is needed; correct it") from error


def _place(table: Table, key: str, folder: Path) -> Path | None:
    """A path that may be left out, relative to the folder of the site's file."""
    text = table.take(key, str, "a path", "")
    return folder / text if text else None


def _whole(table: Table, key: str, default: int) -> int:
    value: Any = table.take(key, int, "a whole number", default)
    if not 1 <= value <= 10_000:
        raise UsageError(f"{table.where}: {key} is {value}; 1 to 10000 is needed; correct it")
    return int(value)


def _number(table: Table, key: str, default: float, least: float | None = None) -> float:
    """More than 0, or `least` and more where that is given."""
    value = float(table.take(key, (int, float), "a number", default))
    if not (value > 0 if least is None else value >= least) or value > 1e6:
        needed = "more than 0" if least is None else f"{least:g} or more"
        raise UsageError(f"{table.where}: {key} is {value:g}; {needed} is needed; correct it")
    return value

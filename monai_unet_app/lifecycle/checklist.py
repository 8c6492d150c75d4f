"""Check-lists before production, in production and in an incident: what can be measured is measured, the rest is asked."""

import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from monai_unet_app.errors import AppError
from monai_unet_app.lifecycle.watch import watch
from monai_unet_app.service.audit import KEY_FILE, entries, read_key, verify
from monai_unet_app.service.database import read_head
from monai_unet_app.service.models import with_models
from monai_unet_app.service.rule_checks import check_bundles
from monai_unet_app.service.site import Site
from monai_unet_app.service.tokens import read_tokens

Kind = Literal["pre-production", "production", "incident"]
State = Literal["done", "missing", "ask"]
_SOON = timedelta(days=14)


@dataclass(frozen=True)
class Item:
    """One line of a check-list.

    Attributes:
        text: What must be so, or is to be done.
        state: done and missing were measured; ask: a person must say.
        found: What was measured; empty for ask.
    """

    text: str
    state: State
    found: str = ""


def checklist(site: Site, kind: Kind) -> list[Item]:
    """The items of a check-list, filled in as far as can be told from the site file and the node's folder.

    Args:
        site: Its node may be running.
        kind: Which list.
    """
    return list({"pre-production": _before, "production": _routine, "incident": _incident}[kind](site))


def _measured(text: str, holds: bool, found: str) -> Item:
    return Item(text, "done" if holds else "missing", found)


def _tried(text: str, check: Callable[[], str]) -> Item:
    """An item that holds if a check passes; the check gives what it found."""
    try:
        return Item(text, "done", check())
    except (AppError, OSError, sqlite3.Error) as error:
        return Item(text, "missing", str(error))


def _before(site: Site) -> Iterator[Item]:
    """Before the first study of a patient."""

    def bundles() -> str:
        check_bundles(with_models(site))
        return f"{len(site.rules)} rule(s)"

    yield _tried("Each bundle is there, coded, and has the quality gate that its rule needs", bundles)
    pinned = [rule.name for rule in site.rules if rule.sha256 or rule.is_registered]
    yield _measured(
        "Each rule names its bundle by sha256 or in the registry", len(pinned) == len(site.rules),
        f"{len(pinned)} of {len(site.rules)}",
    )  # fmt: skip
    way = "tls" if site.node.tls else "networks" if site.node.networks else ""
    text = "DICOM is encrypted, or taken from named networks only"
    yield _measured(text, bool(way), way or "neither tls nor networks")
    yield _measured(
        "Only known senders are let in", bool(site.node.senders), f"{len(site.node.senders)} in the key senders"
    )
    yield _measured(
        "Reviewers can decide: there is an HTTP API", site.http is not None, "http" if site.http else "none"
    )
    if site.http is not None:
        yield _roles(site)
    yield _measured("Results have a destination", all(rule.destinations for rule in site.rules),
                    ", ".join(site.destinations) or "none")  # fmt: skip
    yield _key(site)
    for text in (
        "The site was commissioned (monai-unet node commission) and nothing failed",
        "A clinician has looked at results of this site's own scanners",
        "Prometheus scrapes the node and a page reaches somebody (docs/how-to/life-cycle.md)",
        "Backups of audit.jsonl, its key and decisions are made and were read back",
        "It is written down who is called, and who may roll back",
    ):
        yield Item(text, "ask")


def _roles(site: Site) -> Item:
    assert site.http is not None
    path = site.http.tokens

    def held() -> str:
        holders = read_tokens(path).values()
        missing = [role for role in ("reviewer", "approver", "admin") if not any(role in one.roles for one in holders)]
        if missing:
            raise AppError(f"no token has the role {', '.join(missing)}")
        return f"{len(holders)} token(s)"

    return _tried("Somebody is reviewer, approver and administrator", held)


def _key(site: Site) -> Item:
    key = site.node.audit_key or site.node.folder / KEY_FILE

    def secret() -> str:
        if not key.is_file():
            raise AppError(f"{key.name} is not there; the node makes it at its first start")
        mode = stat.S_IMODE(key.stat().st_mode)
        if mode & 0o077:
            raise AppError(f"others may read it (mode {mode:o})")
        return f"mode {mode:o}"

    return _tried("The audit trail's key is there and only the node reads it", secret)


def _routine(site: Site) -> Iterator[Item]:
    """Daily, weekly and monthly."""
    folder = site.node.folder
    trail = folder / "audit.jsonl"
    if not trail.is_file():
        yield Item(
            "Daily: the audit trail is whole and signed", "missing", "no audit.jsonl: the node was never started here"
        )
        return

    def whole() -> str:
        found = verify(trail, read_key(site.node.audit_key or folder / KEY_FILE), read_head(folder / "node.sqlite"))
        return f"{found.lines} lines, the last {found.last[:16]}: keep both elsewhere"

    yield _tried("Daily: the audit trail is whole and signed", whole)
    free, least = shutil.disk_usage(folder).free / 1e9, site.node.least_free_gb
    dead = len(list((folder / "dead-letters").glob("*.json")))
    yield _measured("Daily: no dead letter", dead == 0, f"{dead}")
    yield _measured("Daily: room on the disk for five times least_free_gb", free > 5 * least, f"{free:.0f} GB free")
    for rule in watch(trail, [rule.name for rule in site.rules]):
        yield _measured(f"Weekly: nothing has drifted for rule {rule.rule}", rule.state == "steady", rule.sentence)
        if dice := rule.expected:
            told = f"{dice.mean:.2f} ({dice.low:.2f} to {dice.high:.2f}), {dice.reviewed} of {dice.results} reviewed"
            yield _measured(f"Weekly: expected Dice of rule {rule.rule} above 0.7", dice.low > 0.7, told)
    if site.http is not None:
        soon = [one.name for one in read_tokens(site.http.tokens).values()
                if one.expires and one.expires < datetime.now(UTC).date() + _SOON]  # fmt: skip
        yield _measured("Monthly: no token ends within two weeks", not soon, ", ".join(soon) or "none")
    yield Item("Monthly: a restored copy of the node's folder starts (make game-day on a test machine)", "ask")
    yield Item("Monthly: a reviewer has looked at ten accepted results (review_share)", "ask")


def _incident(site: Site) -> Iterator[Item]:
    """When something went wrong with results."""
    trail = site.node.folder / "audit.jsonl"
    lines = list(entries(trail)) if trail.exists() else []
    day = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    results = [line for line in lines if line["event"] == "result" and line["time"] >= day]
    sent = {line["result"] for line in lines if line["event"] == "delivered"}
    if not lines:
        yield Item(
            "The audit trail says what happened", "missing", f"{trail} is not there, or empty: take it from a backup"
        )
    yield Item("Stop it: roll back the challenger or the champion, or stop the node; studies stay safe", "ask")
    out = sum(line["result"] in sent for line in results)
    yield _measured(
        "Know the extent: results of the last 24 hours", bool(lines), f"{len(results)}, {out} of them delivered"
    )
    models = {line["observed"]["bundle"][:12] for line in results if line.get("observed")}
    yield _measured("Know the bundles that made them", bool(lines), ", ".join(sorted(models)) or "none")
    moves = [line for line in lines if line["event"] in ("assigned", "share", "rolled back", "started")][-3:]
    told = "; ".join(" ".join(str(line.get(key, "")) for key in ("time", "event", "rule", "who")) for line in moves)
    yield _measured("Know what changed before", bool(lines), " ".join(told.split()) or "nothing")
    yield Item("Keep the evidence: copy audit.jsonl, node.sqlite, decisions and the studies' folders", "ask")
    yield Item(
        "Compare on a case: monai-unet node postmortem --config SITE --case UID --between archived champion", "ask"
    )
    yield Item("Tell the clinicians which delivered results are affected, and who segments them again", "ask")
    yield Item("Write down what happened, when it was noticed, and what will find it sooner", "ask")

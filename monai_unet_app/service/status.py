"""The status page: one glance says whether all is well, and what waits for somebody."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from monai_unet_app import __version__
from monai_unet_app.service.figures import quantiles
from monai_unet_app.service.queue import KEPT_BACK

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: light-dark(#1f6b42, #6fd6a0); --wait: light-dark(#8a5800, #f0b54a);
  --bad: light-dark(#a82c21, #ff8f84); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1.5rem; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; }
h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .7rem .3rem 0; vertical-align: top; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
form { margin: 0; } button { font: inherit; padding: 0 .5rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; min-width: 5.5rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .wait { color: var(--wait); } .bad { color: var(--bad); }
footer { margin-top: 2rem; opacity: .7; font-size: .85rem; }
"""
_SHOWN = 20
_UID_END = 12


def status_page(node: Node) -> str:
    """A page that loads itself anew every five seconds; studies by the end of their UID, nobody by name."""
    counts = node.queue.counts()
    body = [
        f"<h1>{escape(node.config.ae_title)}</h1>{_verdict(node, counts)}",
        _cards(node, counts),
        _times(node),
        _waiting_for_somebody(node),
        _dead(node),
        _at_work(node),
        _recent(node),
        _turned_away(node),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta http-equiv='refresh' content='5'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(node.config.ae_title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}"
        f"<footer>monai-unet {__version__}. Research use. {time.strftime('%Y-%m-%d %H:%M:%S')}</footer></body></html>"
    )


def _verdict(node: Node, counts: dict[str, dict[str, int]]) -> str:
    if full := node.why_full():
        where = f"less than {node.config.least_free_gb:g} GB (least_free_gb) are free for {node.folder}"
        return f"<p class='bad'>Refuses studies: {escape(full)}: {escape(where)}.</p>"
    if not node.is_ready:
        return "<p class='wait'>Takes studies; no worker is warm yet.</p>"
    dead = counts["jobs"].get("dead", 0) + counts["deliveries"].get("dead", 0)
    if dead:
        return f"<p class='bad'>Ready. {dead} dead letter(s) wait for an administrator.</p>"
    away = node.destinations_away()
    if away:
        return f"<p class='wait'>Ready. {escape(', '.join(away))} cannot be reached; results wait.</p>"
    return "<p class='good'>Ready. Nothing is wrong.</p>"


def _cards(node: Node, counts: dict[str, dict[str, int]]) -> str:
    shown = {
        "arriving": counts["studies"].get("arriving", 0),
        "queued": counts["jobs"].get("queued", 0),
        "at work": counts["jobs"].get("working", 0),
        "sending": counts["results"].get("sending", 0),
        "held back": sum(counts["results"].get(state, 0) for state in KEPT_BACK),
        "delivered": counts["results"].get("delivered", 0),
        "not processed": counts["results"].get("not processed", 0),
    }
    return (
        "<div class='cards'>"
        + "".join(f"<div class='card'><b>{n}</b>{name}</div>" for name, n in shown.items())
        + "</div>"
    )


def _times(node: Node) -> str:
    rows = []
    for stage, seconds in node.seconds.items():
        found = quantiles(seconds)
        if found:
            rows.append((stage, f"{found[0.5]:.2f} s", f"{found[0.95]:.2f} s", str(len(seconds))))
    return _table("Times", ("stage", "median", "95 %", "of the last"), rows)


def _waiting_for_somebody(node: Node) -> str:
    held = node.queue.results(KEPT_BACK, _SHOWN)
    rows = [
        (_Link(f"/results/{one.id}/review", str(one.id)), _study(one.study), one.rule, one.verdict, one.reason)
        for one in held
    ]
    return _table("Held back until a reviewer decides", ("result", "study", "rule", "verdict", "why"), rows)


def _dead(node: Node) -> str:
    jobs = [
        (f"job {one.id}", _study(one.study), one.reason, _Button(f"/jobs/{one.id}/retry", "try again"))
        for one in node.queue.jobs(["dead"], _SHOWN)
    ]
    sent = [
        (f"delivery {one.id}", one.destination, one.reason, _Button(f"/deliveries/{one.id}/retry", "try again"))
        for one in node.queue.deliveries(["dead"], _SHOWN)
    ]
    return _table("Dead letters", ("what", "study or destination", "why", "an administrator may"), [*jobs, *sent])


def _at_work(node: Node) -> str:
    rows = [
        (_study(one.study), str(one.version), one.state, str(one.attempts), one.reason)
        for one in node.queue.jobs(["working", "queued"], _SHOWN)
    ]
    return _table("Studies that wait or are at work", ("study", "version", "state", "tries", "why"), rows)


def _recent(node: Node) -> str:
    rows = []
    for one in node.queue.results((), _SHOWN):
        again = _Button(f"/studies/{one.study}/reprocess", "work at it again") if one.state == "not processed" else ""
        number = _Link(f"/results/{one.id}", str(one.id))
        rows.append((number, _study(one.study), one.rule, one.state, one.verdict, one.reason, again))
    return _table("Last results", ("result", "study", "rule", "state", "verdict", "why", ""), rows)


def _turned_away(node: Node) -> str:
    rows = [(time.strftime("%H:%M:%S", time.localtime(when)), why) for when, why in reversed(node.turned_away)]
    return _table("Turned away lately", ("time", "what"), rows)


@dataclass(frozen=True)
class _Link:
    """A cell that leads somewhere."""

    page: str
    text: str

    def __str__(self) -> str:
        return f'<a href="{escape(self.page)}">{escape(self.text)}</a>'


@dataclass(frozen=True)
class _Button(_Link):
    """A cell that asks for something."""

    def __str__(self) -> str:
        return f'<form method="post" action="{escape(self.page)}"><button>{escape(self.text)}</button></form>'


def _table(title: str, head: Iterable[str], rows: Sequence[tuple[str | _Link, ...]]) -> str:
    if not rows:
        return ""
    told = ((str(cell) if isinstance(cell, _Link) else escape(cell) for cell in row) for row in rows)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in told)
    return f"<h2>{title}</h2><table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{lines}</table>"


def _study(uid: str) -> _Link:
    """A study by the end of its UID; leads to all that is known of it."""
    return _Link(f"/studies/{uid}", uid if len(uid) <= _UID_END else "…" + uid[-_UID_END:])

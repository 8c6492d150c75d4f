"""The status page: one glance says whether all is well, and what waits for somebody; and the page that finds a study.

Neither has a script: the policy of the HTTP door forbids any. Studies are shown by the end of their UID. Only who may see
identity is shown the hints by which a site finds a study, see `service.hints`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from monai_unet_app import __version__
from monai_unet_app.service.node_metrics import quantiles
from monai_unet_app.service.queue import FOLLOW_UPS, KEPT_BACK, Result

if TYPE_CHECKING:
    from monai_unet_app.service.hints import Hints
    from monai_unet_app.service.node import Node
    from monai_unet_app.service.tokens import Holder

RELOAD_S = 30
"""Seconds after which the status page loads itself anew, unless it was asked to stand still."""

_STYLE = """
:root { color-scheme: light dark; --ground: light-dark(#ffffff, #15181c); --ink: light-dark(#1b1f24, #e6e9ed);
  --muted: light-dark(#5b6470, #9aa4b0); --line: light-dark(#d5dae0, #3a424b); --link: light-dark(#1a5bc4, #7db4ff);
  --good: light-dark(#12703a, #6fd6a0); --wait: light-dark(#8a5300, #f0b54a); --bad: light-dark(#a82c21, #ff8f84); }
* { box-sizing: border-box; }
body { background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 96rem;
  padding: 1.2rem 1.5rem; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 1.5rem 0 .3rem; }
p { margin: .4rem 0; }
header { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: baseline; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .8rem .3rem 0; vertical-align: top; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; }
td:last-child, th:last-child { padding-right: 0; }
.why { width: 99%; max-width: 0; min-width: 20rem; white-space: normal; overflow-wrap: anywhere; }
.narrow table { width: auto; }
summary { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary::before { content: "\\25B8\\00A0"; color: var(--muted); }
details[open] summary { white-space: normal; }
details[open] summary::before { content: "\\25BE\\00A0"; }
form { margin: 0; }
button, input { font: inherit; color: var(--ink); background: var(--ground); border: 1px solid var(--muted);
  border-radius: .3rem; padding: .1rem .6rem; }
button { cursor: pointer; }
.find { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: center; margin: .8rem 0; }
.find input { padding: .35rem .6rem; width: 22rem; max-width: 100%; }
.find button { padding: .35rem .9rem; }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; margin: .9rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .35rem .8rem; min-width: 5.5rem; }
.card b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .wait { color: var(--wait); } .bad { color: var(--bad); }
.note, footer { color: var(--muted); font-size: .87rem; }
footer { margin-top: 1.5rem; }
@media (max-width: 48rem) {
  body { padding: .8rem; }
  th { display: none; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .3rem 0; }
  td { display: inline-block; border: 0; padding: .1rem .9rem .1rem 0; white-space: normal; overflow-wrap: anywhere; }
  td:empty { display: none; }
  td[data-name]::before { content: attr(data-name) " "; color: var(--muted); font-size: .87rem; }
  td.why { display: block; width: auto; max-width: none; min-width: 0; }
  summary { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; white-space: normal; }
  details[open] summary { display: block; }
}
"""
_MOST_HELD, _SHOWN, _MOST_FOUND = 50, 20, 50
_UID_END = 12
_SHORT = 60
"""Characters of a reason that is shown as it is; a longer one is folded into one line."""

_Row = tuple["str | _Markup", ...]

_REVIEWED = {*KEPT_BACK, "sending", "delivered", "refused", "superseded"}
"""States of results that have a review page."""


def status_page(node: Node, *, hints: Hints | None = None, holder: Holder | None = None, still: bool = False) -> str:
    """What the node is doing, as a page.

    Args:
        node: What it is about.
        hints: What studies are found by; None for readers who may not see it.
        holder: Who reads it, and is offered what their roles allow; None is offered nothing.
        still: The page does not load itself anew.
    """
    counts = node.queue.counts()
    body = [
        _readiness(node, counts),
        _ungated(node),
        _cards(node, counts),
        _waiting_for_somebody(node, counts, hints, holder),
        _dead(node, hints, holder),
        _at_work(node, hints),
        _recent(node, hints, holder),
        _times(node),
        _turned_away(node),
    ]
    again = '<a href="/">load every 30 seconds</a>' if still else '<a href="/?still=true">stand still</a>'
    head = f'<a href="/find">Find a study</a> <span class="note">As of {_now()}; {again}</span>'
    return _page(node.config.ae_title, head, body, "" if still else f"<meta http-equiv='refresh' content='{RELOAD_S}'>")


def waiting_page(node: Node, number: int, seconds: float) -> str:
    """What is shown while the review page of a result is made; it looks again every two seconds."""
    body = [
        f"<p><label for='made'>The review page of result {number} is being made: for {seconds:.0f} s so far, usually 5 to 60 "
        "s. It will appear here by itself.</label></p><progress id='made'></progress>"
    ]
    head = '<a href="/">Status</a>'
    return _page(f"{node.config.ae_title}: result {number}", head, body, "<meta http-equiv='refresh' content='2'>")


def find_page(node: Node, text: str | None, *, hints: Hints | None = None, holder: Holder | None = None) -> str:
    """A box to search in, and the results of the studies that were found.

    Args:
        node: Whose studies are searched.
        text: A part of a StudyInstanceUID or of a hint; the number of a result. None: nothing is searched yet.
        hints: As in `status_page`.
        holder: As there.
    """
    names = [*([] if hints is None else hints.names), "part of the study UID"]
    form = (
        '<form class="find" method="post" action="/find" role="search"><label for="text">Find by '
        f'{escape(", ".join(names))} or number of a result</label><input type="search" id="text" name="text" '
        'maxlength="64" required autocomplete="off" autofocus><button>Find</button></form>'
    )
    body = [form, "" if text is None else _search_results(node, text.strip(), hints, holder)]
    return _page(f"{node.config.ae_title}: find a study", '<a href="/">Status</a>', body)


def find_studies(node: Node, text: str, hints: Hints | None) -> list[str]:
    """UIDs of the studies that a text means: by a part of the UID, the number of a result, or a hint.

    If there are more than `_MOST_FOUND`, at least one more than these is given.
    """
    found = node.queue.find_studies(text, _MOST_FOUND + 1) if text else []
    if text.isascii() and text.isdigit() and len(text) < 10 and (result := node.queue.result(int(text))) is not None:
        found = [result.study, *found]
    return list(dict.fromkeys([*(hints.find(text) if hints else []), *found]))


def _search_results(node: Node, text: str, hints: Hints | None, holder: Holder | None) -> str:
    studies = find_studies(node, text, hints)
    if not studies:
        return "<p>Nothing was found. Studies are forgotten when their time of retention is over.</p>"
    shown, rows = studies[:_MOST_FOUND], []
    for study in shown:
        jobs = node.queue.jobs_of(study)
        results = [one for job in jobs for one in node.queue.results_of(job.id)]
        rows += [_result_row(one, hints, holder) for one in reversed(results)]
        if not results:
            state = "arriving" if node.is_arriving(study) or not jobs else jobs[-1].state
            why = _Why(jobs[-1].reason if jobs else "")
            rows.append(("", _study(study), *_hint_cells(study, hints), "", state, "", why, ""))
    if len(studies) <= _MOST_FOUND:
        return _table(f"Found: {len(studies)} {'study' if len(studies) == 1 else 'studies'}", _result_head(hints), rows)
    table = _table(f"Found: more than {_MOST_FOUND} studies", _result_head(hints), rows)
    return f"{table}<p class='note'>{_MOST_FOUND} of them are shown; search for more of the text.</p>"


def _page(title: str, head: str, body: Iterable[str], more: str = "") -> str:
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'>{more}"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><header><h1>{escape(title)}</h1>{head}</header>"
        f"<main>{''.join(body)}</main><footer>monai-unet {__version__}. Research use.</footer></body></html>"
    )


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _readiness(node: Node, counts: dict[str, dict[str, int]]) -> str:
    if full := node.why_full():
        where = f"less than {node.config.least_free_gb:g} GB (least_free_gb) are free for {node.folder}"
        return f"<p class='bad'>Refuses studies: {escape(full)}: {escape(where)}.</p>"
    failing = node.failing()
    if failing == ["worker"] and not node.workers.was_ready:
        return "<p class='wait'>Takes studies; no worker is warm yet.</p>"
    if failing:
        return f"<p class='bad'>Not ready. What does not work: {escape(', '.join(failing))}.</p>"
    dead = counts["jobs"].get("dead", 0) + counts["deliveries"].get("dead", 0)
    if dead:
        return f"<p class='bad'>Ready. {dead} dead letter(s) wait for an administrator.</p>"
    away = node.destinations_away()
    if away:
        return f"<p class='wait'>Ready. {escape(', '.join(away))} cannot be reached; results wait.</p>"
    return "<p class='good'>Ready. Nothing is wrong.</p>"


def _ungated(node: Node) -> str:
    """Which rules may deliver what no quality gate has judged."""
    names = ", ".join(rule.name for rule in node.site.rules if rule.deliver_ungated)
    said = f"deliver_ungated is set for {names}: where its bundle has no quality gate, results go out that nothing has judged."
    return f"<p class='wait'>{escape(said)}</p>" if names else ""


def _cards(node: Node, counts: dict[str, dict[str, int]]) -> str:
    shown = {
        "arriving": counts["studies"].get("arriving", 0),
        "queued": counts["jobs"].get("queued", 0),
        "at work": counts["jobs"].get("working", 0),
        "sending": counts["results"].get("sending", 0),
        "held back": _held(counts),
        "delivered": counts["results"].get("delivered", 0),
        "not processed": counts["results"].get("not processed", 0),
    }
    return (
        "<div class='cards'>"
        + "".join(f"<div class='card'><b>{n}</b>{name}</div>" for name, n in shown.items())
        + "</div>"
    )


def _held(counts: dict[str, dict[str, int]]) -> int:
    return sum(counts["results"].get(state, 0) for state in KEPT_BACK)


def _times(node: Node) -> str:
    rows = []
    for stage, seconds in node.seconds.items():
        found = quantiles(seconds)
        if found:
            rows.append((stage, f"{found[0.5]:.2f} s", f"{found[0.95]:.2f} s", str(len(seconds))))
    return f"<div class='narrow'>{_table('Times', ('stage', 'median', '95 %', 'of the last'), rows)}</div>"


def _waiting_for_somebody(
    node: Node, counts: dict[str, dict[str, int]], hints: Hints | None, holder: Holder | None
) -> str:
    held, number = node.queue.results(KEPT_BACK, _MOST_HELD), _held(counts)
    rows = [_result_row(one, hints, holder) for one in held]
    table = _table("Held back until a reviewer decides", _result_head(hints), rows)
    if number <= len(held):
        return table
    return (
        f"{table}<p class='note'>The newest {len(held)} of {number}. <a href='/find'>Find</a> leads to the others.</p>"
    )


def _dead(node: Node, hints: Hints | None, holder: Holder | None) -> str:
    def again(kind: str, number: int) -> str | _Markup:
        return _Button(f"/{kind}/{number}/retry", "try again") if holder and holder.may("admin") else ""

    jobs: list[_Row] = [
        (f"job {one.id}", _study(one.study), *_hint_cells(one.study, hints), _Why(one.reason), again("jobs", one.id))
        for one in node.queue.jobs(["dead"], _SHOWN)
    ]
    empty = ("",) * len(_hint_names(hints))
    sent: list[_Row] = [
        (f"delivery {one.id}", one.destination, *empty, _Why(one.reason), again("deliveries", one.id))
        for one in node.queue.deliveries(["dead"], _SHOWN)
    ]
    head = ("what", "study or destination", *_hint_names(hints), "why", "an administrator may")
    return _table("Dead letters", head, [*jobs, *sent])


def _at_work(node: Node, hints: Hints | None) -> str:
    rows = [
        (
            _study(one.study), *_hint_cells(one.study, hints), str(one.version), one.state, str(one.attempts),
            _Why(one.reason),
        )
        for one in node.queue.jobs(["working", "queued"], _SHOWN)
    ]  # fmt: skip
    head = ("study", *_hint_names(hints), "version", "state", "tries", "why")
    return _table("Studies that wait or are at work", head, rows)


def _recent(node: Node, hints: Hints | None, holder: Holder | None) -> str:
    rows = [_result_row(one, hints, holder) for one in node.queue.results((), _SHOWN)]
    return _table("Last results", _result_head(hints), rows)


def _result_head(hints: Hints | None) -> tuple[str, ...]:
    return ("result", "study", *_hint_names(hints), "rule", "state", "verdict", "why", "")


def _result_row(one: Result, hints: Hints | None, holder: Holder | None) -> _Row:
    action: str | _Markup = ""
    if holder is None:
        pass
    elif one.state == "not processed" and holder.may("admin"):
        action = _Button(f"/studies/{one.study}/reprocess", "work at it again")
    elif one.folder and one.state in _REVIEWED and one.verdict not in FOLLOW_UPS and holder.may("reviewer"):
        action = _Link(f"/results/{one.id}/review", "review")
    number = _Link(f"/results/{one.id}", str(one.id))
    return (
        number, _study(one.study), *_hint_cells(one.study, hints), one.rule, one.state, one.verdict, _Why(one.reason), action,
    )  # fmt: skip


def _hint_names(hints: Hints | None) -> list[str]:
    return [] if hints is None else hints.names


def _hint_cells(study: str, hints: Hints | None) -> tuple[str, ...]:
    return () if hints is None else hints.of(study)


def _turned_away(node: Node) -> str:
    rows = [(time.strftime("%H:%M:%S", time.localtime(when)), _Why(why)) for when, why in reversed(node.turned_away)]
    return _table("Turned away lately", ("time", "why"), rows)


class _Markup:
    """A cell that is markup already: `str` gives it, with all texts escaped."""


@dataclass(frozen=True)
class _Why(_Markup):
    """A reason: a short one as it is, a long one folded into one line that opens."""

    text: str

    def __str__(self) -> str:
        if len(self.text) <= _SHORT:
            return escape(self.text)
        return f"<details><summary>{escape(self.text)}</summary></details>"


@dataclass(frozen=True)
class _Link(_Markup):
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


def _table(title: str, head: Sequence[str], rows: Sequence[_Row]) -> str:
    """A table under a heading; empty without rows. The cells of the column "why" are wide."""
    if not rows:
        return ""
    named = "".join(f"<th scope='col'{_kind(name)}>{escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(_cell(name, cell) for name, cell in zip(head, row, strict=True)) + "</tr>" for row in rows
    )
    return f"<h2>{escape(title)}</h2><table><thead><tr>{named}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(name: str, cell: str | _Markup) -> str:
    content = str(cell) if isinstance(cell, _Markup) else escape(cell)
    label = f' data-name="{escape(name)}"' if content and name and name != "why" else ""
    return f"<td{label}{_kind(name)}>{content}</td>"


def _kind(name: str) -> str:
    return ' class="why"' if name == "why" else ""


def _study(uid: str) -> _Link:
    """A study by the end of its UID; leads to all that is known of it."""
    return _Link(f"/studies/{uid}", uid if len(uid) <= _UID_END else "…" + uid[-_UID_END:])

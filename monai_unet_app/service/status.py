"""The status page says at a glance whether all is well and what waits for a person; the search page finds a study.

The HTML is in `templates/`. No page has a script: the policy of the HTTP API forbids all scripts. A study is shown by the end
of its UID. Only readers who may see identity are shown the hints by which a site finds a study, see `service.hints`.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from monai_unet_app import __version__
from monai_unet_app.service.delivery_scheduler import Outage
from monai_unet_app.service.hints import Hints
from monai_unet_app.service.node import Node
from monai_unet_app.service.node_metrics import quantiles
from monai_unet_app.service.rows import FOLLOW_UPS, HELD_BACK, Result
from monai_unet_app.service.tokens import Holder

RELOAD_S = 30
"""The status page loads itself again after so many seconds, unless the reader asked for a page that stands still."""

_MOST_HELD, _SHOWN, _MOST_FOUND = 50, 20, 50
_UID_END = 12
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_REVIEWED = {*HELD_BACK, "sending", "delivered", "refused", "superseded"}
"""States of results that have a review page."""


class Link(NamedTuple):
    """A table cell that leads to a page; with `is_button`, a button that sends a POST to that address."""

    page: str
    text: str
    is_button: bool = False


Row = Sequence[str | Link]
"""The cells of a row of a table."""


@dataclass(frozen=True)
class Viewer:
    """The reader of a page.

    Attributes:
        hints: Header values by which the reader finds studies; without keywords for readers who may not see them.
        holder: The reader's token, whose roles decide which actions the page offers.
    """

    hints: Hints
    holder: Holder

    def study(self, uid: str) -> tuple[str | Link, ...]:
        """The cells of a study: a link to everything known about the study, and its hints."""
        # The end of a UID: its beginning is usually the same for all studies of a scanner.
        text = uid if len(uid) <= _UID_END else "…" + uid[-_UID_END:]
        return Link(f"/studies/{uid}", text), *self.hints.of(uid)

    def result(self, result: Result) -> tuple[str | Link, ...]:
        """The row of a result, with the action that the reader may take."""
        number = Link(f"/results/{result.id}", str(result.id))
        facts = (result.rule, _state_and_verdict(result), *since(result.created), result.reason)
        return number, *self.study(result.study), *facts, self._action(result)

    def _action(self, result: Result) -> str | Link:
        if result.state == "not processed" and self.holder.may("admin"):
            return Link(f"/studies/{result.study}/reprocess", "process it again", is_button=True)
        has_page = result.folder and result.state in _REVIEWED and result.verdict not in FOLLOW_UPS
        return Link(f"/results/{result.id}/review", "review") if has_page and self.holder.may("reviewer") else ""

    def retry(self, kind: str, number: int) -> str | Link:
        """The button that tries a dead letter again; empty for readers who may not."""
        return Link(f"/{kind}/{number}/retry", "try again", is_button=True) if self.holder.may("admin") else ""


def status_page(node: Node, viewer: Viewer, *, still: bool = False) -> str:
    """The HTML page that says what the node is doing.

    Args:
        node: The page is about this node.
        viewer: Who reads the page.
        still: The page does not load itself again.
    """
    counts, queue = node.queue.counts(), node.queue
    # Worst first: what the quality gate rejected, then what has waited longest.
    held = [queue.results((state,), _MOST_HELD, oldest_first=True) for state in reversed(HELD_BACK)]
    return _render(
        "status.html",
        title=node.config.ae_title,
        reload_s=0 if still else RELOAD_S,
        still=still,
        now=time.strftime("%Y-%m-%d %H:%M:%S"),
        waiting_for=_who_waits(node),
        readiness=_readiness(node, counts),
        ungated=[rule.name for rule in node.site.rules if rule.deliver_ungated],
        counts=counts,
        held_count=sum(counts["results"][state] for state in HELD_BACK),
        hints=viewer.hints.names,
        held=[viewer.result(result) for results in held for result in results][:_MOST_HELD],
        dead=_dead_letters(node, viewer),
        destinations=_destinations(node),
        waiting=_jobs(node, viewer),
        last=[viewer.result(result) for result in queue.results((), _SHOWN)],
        times=_times(node),
        turned_away=[(*since(when), reason) for when, reason in reversed(list(node.last_turned_away))],
    )


def waiting_page(node: Node, number: int, seconds: float) -> str:
    """The HTML page shown while the review page of a result is made; it loads itself again every two seconds."""
    title = f"{node.config.ae_title}: result {number}"
    return _render("waiting.html", title=title, reload_s=2, number=number, seconds=seconds)


def find_page(node: Node, text: str | None, viewer: Viewer) -> str:
    """The HTML page with a search box and the results of the matching studies.

    Args:
        node: Its studies are searched.
        text: A part of a StudyInstanceUID or of a hint, or the number of a result. None: no search yet.
        viewer: Who reads the page.
    """
    studies = [] if text is None else find_studies(node, text.strip(), viewer.hints)
    is_cut = len(studies) > _MOST_FOUND
    rows = [row for study in studies[:_MOST_FOUND] for row in _study_rows(node, study, viewer)]
    return _render(
        "find.html",
        title=f"{node.config.ae_title}: find a study",
        reload_s=0,
        hints=viewer.hints.names,
        is_search=text is not None,
        count=len(studies),
        rows=rows,
        limit=_MOST_FOUND if is_cut else 0,
    )


def find_studies(node: Node, text: str, hints: Hints) -> list[str]:
    """UIDs of the studies that match a text: a part of the UID, the number of a result, or a hint.

    If there are more than `_MOST_FOUND`, at least one more than that is given back.
    """
    studies = node.queue.find_studies(text, _MOST_FOUND + 1) if text else []
    # isdigit() is also true of digits in other scripts; nine digits always fit an integer of SQLite.
    if text.isascii() and text.isdigit() and len(text) < 10 and (result := node.queue.result(int(text))) is not None:
        studies = [result.study, *studies]
    return list(dict.fromkeys([*hints.find(text), *studies]))


@cache
def _templates() -> Environment:
    loader = PackageLoader("monai_unet_app.service")
    # Texts from elsewhere are escaped; a misspelt name in a template is an error (decision 0037).
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(version=__version__, **values)


def _state_and_verdict(result: Result) -> str:
    """The state of a result, with the verdict of the quality gate where the state does not say it."""
    is_said = result.state == "rejected" or (result.state, result.verdict) == ("held", "review")
    return result.state if is_said or not result.verdict else f"{result.state}, {result.verdict}"


def _study_rows(node: Node, study: str, viewer: Viewer) -> Iterable[Row]:
    """A row for each result of a study, the newest first; a study without results has a row with its state."""
    if results := node.queue.results_of_study(study):
        return [viewer.result(result) for result in reversed(results)]
    jobs = node.queue.jobs_of(study)
    state = "arriving" if study in node.arrivals or not jobs else jobs[-1].state
    begun = since(jobs[-1].created) if jobs else ("", "")
    return [("", *viewer.study(study), "", state, *begun, jobs[-1].reason if jobs else "", "")]


def age(seconds: float) -> str:
    """A time span in words: "40 s", "12 min", "3 h 5 min", "15 h", "2 d 4 h", "15 d"."""
    # Rows have the time of day, which may be set back: no age is below 0.
    minutes, left_s = divmod(max(0, round(seconds)), 60)
    hours, left_min = divmod(minutes, 60)
    days, left_h = divmod(hours, 24)
    if days:
        return f"{days} d {left_h} h" if days < 10 else f"{days} d"
    if hours:
        return f"{hours} h {left_min} min" if hours < 10 else f"{hours} h"
    return f"{minutes} min" if minutes else f"{left_s} s"


def since(when_s: float) -> tuple[str, str]:
    """A time of day, with its date unless that is today's, and how long ago that is; `when_s`: seconds since 1970."""
    when = time.localtime(when_s)
    is_today = when[:3] == time.localtime()[:3]
    date = "" if is_today else f"{when.tm_mday} {_MONTHS[when.tm_mon - 1]} "
    return f"{date}{when.tm_hour:02}:{when.tm_min:02}", age(time.time() - when_s)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _who_waits(node: Node) -> str:
    """The top line: how many wait for a reviewer, a worker and a destination, and how long the oldest of each has waited."""
    nouns = {
        "review": ("result", "results", "a reviewer"),
        "job": ("study", "studies", "the segmentation"),
        "delivery": ("delivery", "deliveries", "a destination"),
    }
    waiting, parts = node.queue.waiting(), []
    for kind, (noun, plural, what) in nouns.items():
        if kind in waiting:
            count, oldest = waiting[kind]
            how_long = f"{'' if count == 1 else 'the longest '}for {age(time.time() - oldest)}"
            parts.append(f"{count} {noun if count == 1 else plural} for {what}, {how_long}")
    return f"Waiting: {'; '.join(parts)}." if parts else "Nothing waits."


def _readiness(node: Node, counts: dict[str, Counter[str]]) -> list[tuple[str, str]]:
    """Tone and text of each line about what is wrong, the worst first; a single line if nothing is."""
    failing, lines = node.health.failing(), list[tuple[str, str]]()
    dead = counts["jobs"]["dead"] + counts["deliveries"]["dead"]
    if full := node.why_full():
        where = f"less than {node.config.least_free_gb:g} GB (least_free_gb) are free for {node.folder}"
        lines.append(("bad", f"Refuses studies: {full}: {where}."))
    is_cold = failing == ["worker"] and not node.workers.ready_message
    if failing and not is_cold and failing != ["disk"]:
        lines.append(("bad", f"Not ready. What does not work: {', '.join(failing)}."))
    if locked_s := node.health.database_locked_s:
        lines.append(
            (
                "bad",
                f"The database is busy: another program has kept the database locked for {age(locked_s)}. This page shows what "
                "was recorded before; studies are received, and nothing else is done until then.",
            )
        )
    if kept := len(node.queue.kept_lines()):
        lines.append(
            ("bad", f"The audit trail cannot be written; {_counted(kept, 'line')} wait for it in the database.")
        )
    if dead:
        lines.append(
            ("bad", f"{_counted(dead, 'dead letter')} {'waits' if dead == 1 else 'wait'} for an administrator.")
        )
    lines += [("wait", _outage_line(name, outage, node)) for name, outage in node.deliveries.outages().items()]
    if is_cold:
        lines.append(("wait", "Accepts studies; no worker is ready yet."))
    if not lines:
        return [("good", "Ready. Nothing is wrong.")]
    return lines if failing else [(lines[0][0], f"Ready. {lines[0][1]}"), *lines[1:]]


def _outage_line(name: str, outage: Outage, node: Node) -> str:
    waiting, _ = node.queue.waiting_by_destination().get(name, (0, 0.0))
    when, how_long = since(outage.since)
    begun = f"before {when} (more than {how_long})" if outage.is_older else f"{when} ({how_long})"
    wait = "1 delivery waits" if waiting == 1 else f"{waiting} deliveries wait"
    return f"{name} cannot be reached since {begun}; {wait}. {outage.reason}"


def _destinations(node: Node) -> list[Row]:
    """A row for each destination: those that cannot be reached first, then those for which most waits."""
    waiting, outages = node.queue.waiting_by_destination(), node.deliveries.outages()
    names = dict.fromkeys([*outages, *sorted(waiting, key=lambda name: -waiting[name][0]), *node.site.destinations])
    return [_destination(node, name, outages.get(name), waiting.get(name)) for name in names]


def _destination(node: Node, name: str, outage: Outage | None, waiting: tuple[int, float] | None) -> Row:
    last = node.deliveries.last_delivered.get(name)
    state = "cannot be reached" if outage else "reached" if last else "not tried yet"
    when, how_long = since(outage.since) if outage else ("", "")
    count, longest = (str(waiting[0]), age(time.time() - waiting[1])) if waiting else ("0", "")
    begun = f"before {when}" if outage and outage.is_older else when
    delivered = " / ".join(since(last)) if last else ""
    return name, state, begun, how_long, count, longest, delivered, outage.reason if outage else ""


def _times(node: Node) -> list[Row]:
    return [
        (stage, f"{times[0.5]:.2f} s", f"{times[0.95]:.2f} s", str(len(seconds)), *since(node.durations.ended[stage]))
        for stage, seconds in node.durations.last.items()
        if (times := quantiles(seconds))
    ]


def _dead_letters(node: Node, viewer: Viewer) -> list[Row]:
    """Jobs, of which no destination has anything, before deliveries; of each the oldest first."""
    jobs = [
        (f"job {job.id}", *viewer.study(job.study), *since(job.created), job.reason, viewer.retry("jobs", job.id))
        for job in node.queue.jobs(["dead"], _SHOWN, oldest_first=True)
    ]
    no_hints = ("",) * len(viewer.hints.names)
    sent = [
        (
            f"delivery {sent.id}", sent.destination, *no_hints, *since(sent.created), sent.reason,
            viewer.retry("deliveries", sent.id),
        )
        for sent in node.queue.deliveries(["dead"], _SHOWN, oldest_first=True)
    ]  # fmt: skip
    return [*jobs, *sent]


def _jobs(node: Node, viewer: Viewer) -> list[Row]:
    """Jobs with a reason, which failed or lack images, before others; of each the oldest first."""
    jobs = node.queue.jobs(["working", "queued"], _SHOWN, oldest_first=True)
    return [
        (*viewer.study(job.study), str(job.version), job.state, str(job.attempts), *since(job.created), job.reason)
        for job in sorted(jobs, key=lambda job: not job.reason)
    ]

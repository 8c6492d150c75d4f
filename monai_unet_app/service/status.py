"""The status page says at a glance whether all is well and what waits for a person; the search page finds a study.

The HTML is in `templates/`. No page has a script: the policy of the HTTP API forbids all scripts. A study is shown by the end
of its UID. Only readers who may see identity are shown the hints by which a site finds a study, see `service.hints`.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from monai_unet_app import __version__
from monai_unet_app.service.node_metrics import quantiles
from monai_unet_app.service.rows import FOLLOW_UPS, HELD_BACK, Result

if TYPE_CHECKING:
    from monai_unet_app.service.hints import Hints
    from monai_unet_app.service.node import Node
    from monai_unet_app.service.tokens import Holder

RELOAD_S = 30
"""The status page loads itself again after so many seconds, unless the reader asked for a page that stands still."""

_MOST_HELD, _SHOWN, _MOST_FOUND = 50, 20, 50
_UID_END = 12
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

    hints: "Hints"
    holder: "Holder"

    def study(self, uid: str) -> tuple[str | Link, ...]:
        """The cells of a study: a link to everything known about the study, and its hints."""
        # The end of a UID: its beginning is usually the same for all studies of a scanner.
        text = uid if len(uid) <= _UID_END else "…" + uid[-_UID_END:]
        return Link(f"/studies/{uid}", text), *self.hints.of(uid)

    def result(self, result: Result) -> tuple[str | Link, ...]:
        """The row of a result, with the action that the reader may take."""
        number = Link(f"/results/{result.id}", str(result.id))
        facts = (result.rule, result.state, result.verdict, result.reason)
        return number, *self.study(result.study), *facts, self._action(result)

    def _action(self, result: Result) -> str | Link:
        if result.state == "not processed" and self.holder.may("admin"):
            return Link(f"/studies/{result.study}/reprocess", "work at it again", is_button=True)
        has_page = result.folder and result.state in _REVIEWED and result.verdict not in FOLLOW_UPS
        return Link(f"/results/{result.id}/review", "review") if has_page and self.holder.may("reviewer") else ""

    def retry(self, kind: str, number: int) -> str | Link:
        """The button that tries a dead letter again; empty for readers who may not."""
        return Link(f"/{kind}/{number}/retry", "try again", is_button=True) if self.holder.may("admin") else ""


def status_page(node: "Node", viewer: Viewer, *, still: bool = False) -> str:
    """The HTML page that says what the node is doing.

    Args:
        node: The page is about this node.
        viewer: Who reads the page.
        still: The page does not load itself again.
    """
    counts, queue = node.queue.counts(), node.queue
    return _render(
        "status.html",
        title=node.config.ae_title,
        reload_s=0 if still else RELOAD_S,
        still=still,
        now=time.strftime("%Y-%m-%d %H:%M:%S"),
        readiness=_readiness(node, counts),
        ungated=[rule.name for rule in node.site.rules if rule.deliver_ungated],
        counts=counts,
        held_count=sum(counts["results"].get(state, 0) for state in HELD_BACK),
        hints=viewer.hints.names,
        held=[viewer.result(result) for result in queue.results(HELD_BACK, _MOST_HELD)],
        dead=_dead_letters(node, viewer),
        waiting=_jobs(node, viewer),
        last=[viewer.result(result) for result in queue.results((), _SHOWN)],
        times=_times(node),
        turned_away=[
            (time.strftime("%H:%M:%S", time.localtime(when)), reason)
            for when, reason in reversed(node.last_turned_away)
        ],
    )


def waiting_page(node: "Node", number: int, seconds: float) -> str:
    """The HTML page shown while the review page of a result is made; it loads itself again every two seconds."""
    title = f"{node.config.ae_title}: result {number}"
    return _render("waiting.html", title=title, reload_s=2, number=number, seconds=seconds)


def find_page(node: "Node", text: str | None, viewer: Viewer) -> str:
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


def find_studies(node: "Node", text: str, hints: "Hints") -> list[str]:
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


def _study_rows(node: "Node", study: str, viewer: Viewer) -> Iterable[Row]:
    """A row for each result of a study, the newest first; a study without results has a row with its state."""
    jobs = node.queue.jobs_of(study)
    results = [result for job in jobs for result in node.queue.results_of(job.id)]
    if results:
        return [viewer.result(result) for result in reversed(results)]
    state = "arriving" if study in node.arrivals or not jobs else jobs[-1].state
    return [("", *viewer.study(study), "", state, "", jobs[-1].reason if jobs else "", "")]


def _readiness(node: "Node", counts: dict[str, dict[str, int]]) -> tuple[str, str]:
    """Tone and text of the line that says whether all is well."""
    failing, away = node.health.failing(), node.deliveries.unreachable()
    dead = counts["jobs"].get("dead", 0) + counts["deliveries"].get("dead", 0)
    if full := node.why_full():
        where = f"less than {node.config.least_free_gb:g} GB (least_free_gb) are free for {node.folder}"
        return "bad", f"Refuses studies: {full}: {where}."
    if failing == ["worker"] and not node.workers.ready_message:
        return "wait", "Takes studies; no worker is warm yet."
    if failing:
        return "bad", f"Not ready. What does not work: {', '.join(failing)}."
    if dead:
        return "bad", f"Ready. {dead} dead letter(s) wait for an administrator."
    if away:
        return "wait", f"Ready. {', '.join(away)} cannot be reached; results wait."
    return "good", "Ready. Nothing is wrong."


def _times(node: "Node") -> list[Row]:
    return [
        (stage, f"{times[0.5]:.2f} s", f"{times[0.95]:.2f} s", str(len(seconds)))
        for stage, seconds in node.durations.last.items()
        if (times := quantiles(seconds))
    ]


def _dead_letters(node: "Node", viewer: Viewer) -> list[Row]:
    jobs = [
        (f"job {job.id}", *viewer.study(job.study), job.reason, viewer.retry("jobs", job.id))
        for job in node.queue.jobs(["dead"], _SHOWN)
    ]
    no_hints = ("",) * len(viewer.hints.names)
    sent = [
        (f"delivery {sent.id}", sent.destination, *no_hints, sent.reason, viewer.retry("deliveries", sent.id))
        for sent in node.queue.deliveries(["dead"], _SHOWN)
    ]
    return [*jobs, *sent]


def _jobs(node: "Node", viewer: Viewer) -> list[Row]:
    return [
        (*viewer.study(job.study), str(job.version), job.state, str(job.attempts), job.reason)
        for job in node.queue.jobs(["working", "queued"], _SHOWN)
    ]

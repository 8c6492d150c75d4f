"""Reviews of a node's results; `monai-unet review`, in a process of its own, makes the pages and applies the decisions."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from dicom_io.kinds import RESULT_KINDS
from monai_unet_app.data.schemas import write_new_json
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service.child_processes import run_verb
from monai_unet_app.service.models import copy_of, resolved
from monai_unet_app.service.node import Node
from monai_unet_app.service.result_folder import digest_of, variant_of
from monai_unet_app.service.result_versions import destinations_with, earlier_versions
from monai_unet_app.service.rows import DECIDABLE, FOLLOW_UPS, HELD_BACK, DecidedError, Decision, DecisionKind, Result
from monai_unet_app.service.uploads import images_of

PAGE_S = 300.0
"""Seconds that making a page may take."""

_FOLLOWING: dict[str, tuple[str, set[str]]] = {
    "rejection note": ("*_rejection.dcm", {"KO"}),
    "corrected": ("*_corrected_*", {kind.name for kind in RESULT_KINDS if kind.from_labels}),
    "verified": ("*_sr_verified.dcm", {"SR"}),
}
"""What follows from a decision -> its files, and the kinds of objects; a destination must take at least one of the kinds."""

TRAINING = "training"
"""Folder of the node for corrected cases."""


def page_of(node: Node, result: Result) -> Path:
    """The path of the review page of a result, made or not; its PDF, `review.pdf`, is beside it."""
    return node.reviews_folder / str(result.id) / "index.html"


def review_page(node: Node, result: Result, prior: Path | None = None) -> Path:
    """The review page of a result, made unless it exists already; the page names the patient.

    Args:
        node: Keeps the result and its page.
        result: A result with files.
        prior: An earlier `result.json` of the same patient, for comparing sizes.

    Raises:
        AppError: The site shows no identities, or the result cannot be reviewed; the message says why.
    """
    if not node.config.show_identity:
        raise InputRefusedError(
            "this site shows no identities (show_identity); a review page names the patient; use monai-unet review"
        )
    check_files(node, result, needs_document=True)
    page = page_of(node, result)
    options = ["--result", str(document_of(node, result)), *_image(node, result), "--bundle", _bundle(node, result)]
    if not page.exists():
        options += ["--prior", str(prior), "--same-patient"] if prior else []
        _run([*options, "--output", str(page.parent), "--post-url", f"/results/{result.id}/decision"])
    return page


def standing(node: Node, result: Result) -> dict[str, Any]:
    """The state of a result: "state", "open" (a reviewer may decide), "decided" (decision, by whom, when; or None).

    A decision about a result with the same bytes is a decision about this result.
    """
    decisions = node.queue.decisions_of(result.id)
    last = decisions[-1] if decisions else None
    return {
        "state": result.state,
        "open": result.state in DECIDABLE and not any(decision.is_final for decision in decisions),
        "decided": None if last is None else {"decision": last.decision, "by": last.who, "at": last.at},
    }


def decide(
    node: Node, result: Result, decision: dict[str, Any], reviewer: str, corrected: Path | None = None
) -> dict[str, Any]:
    """Applies the decision of a signed-in reviewer, and gives the record that `review.decision.apply_decision` writes.

    Accepted: the result is delivered if it was held back, then a verified report. Rejected or corrected: the result is not
    delivered; if it was delivered already, or an earlier version without a decision was, a rejection note that names both
    follows. Corrected: the corrected result is delivered, and its case is kept for training. The node's clock gives the time of
    the decision.

    Args:
        node: Keeps the result.
        result: The result that the decision is about.
        decision: The JSON document of the review page.
        reviewer: Name of the reviewer.
        corrected: The mask of a correction.

    Raises:
        DecidedError: Somebody else has decided about the result, or it has changed meanwhile.
        AppError: The decision is about another result, or cannot be applied; the message says why.
    """
    with node.decision_locks[result.id]:  # a second decision at the same time waits, and is then told of the first
        # Asked again in `take_effect`, within the transaction: applying a decision takes seconds, in which the result
        # may be superseded.
        node.queue.check_undecided(result.id)
        result = _current(node, result.id)
        check_files(node, result, needs_document=True)
        folder = page_of(node, result).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".decision-") as scratch:
            application = _Application(node, result, reviewer, Path(scratch), earlier_versions(node.queue, result))
            record = application.apply(decision, corrected)
            application.take_effect(record)
    return record


@dataclass(frozen=True)
class _Application:
    """A decision that is being applied.

    Attributes:
        node: Keeps the result.
        result: The result that the decision is about.
        reviewer: Name of the reviewer.
        output: Folder for the record and the objects that follow from the decision.
        earlier: Earlier versions of the result, which are rejected with it if it is not accepted.
    """

    node: Node
    result: Result
    reviewer: str
    output: Path
    earlier: Sequence[Result]

    @cached_property
    def named(self) -> list[Result]:
        """The earlier versions that a rejection note can name, because their files are not lost."""
        present = [version for version in self.earlier if not self.node.lost_results.why_lost(version)]
        return [version for version in present if not _lacks_document(self.node, version)]

    def apply(self, decision: dict[str, Any], corrected: Path | None) -> dict[str, Any]:
        """Writes the record of a decision, and the objects that follow from it, into `output`; gives the record."""
        node, result = self.node, self.result
        options = ["--result", str(document_of(node, result)), "--output", str(self.output)]
        options += ["--variants", str(node.result_folder(result))]
        options += ["--delivered"] if result.state not in HELD_BACK else []
        for version in self.named:
            options += ["--superseded", str(node.result_folder(version))]
        options += ["--reviewer", self.reviewer, "--organization", node.config.organization or "unknown"]
        if corrected is not None:
            options += ["--correction", str(corrected), "--training", str(self.output / TRAINING)]
            options += _image(node, result)
        file = self.output / "decision.json"
        file.write_text(json.dumps(decision))
        record: dict[str, Any] = json.loads(_run([*options, "--apply", str(file), "--json"]))
        return record

    def take_effect(self, record: dict[str, Any]) -> None:
        """Records a decision and sends what follows from it, all of it or nothing.

        Raises:
            DecidedError: Somebody else has decided about the result or an earlier version meanwhile.
        """
        node, result, kind = self.node, self.result, record["decision"]
        destinations = node.site.destinations_for(result)
        decision = Decision(result.id, kind, self.reviewer, record["applied_at"])
        facts = {"who": self.reviewer, "study": result.study, "result": result.id, "decision": kind}
        if correction := record["correction"]:
            facts["dice"] = round(fmean(row["dice"] for row in correction["structures"]), 5)
        with node.queue.transaction():
            node.queue.record_if_undecided(decision)
            if kind != "accepted" and earlier_versions(node.queue, result) != list(self.earlier):
                raise DecidedError(
                    f"an earlier version of result {result.id} was decided on or delivered in the meantime; decide again"
                )
            # Within the transaction: a decision whose record cannot be written, on a full disk say, has no effect.
            _write_record(node, result, decision, record["comment"], record)
            if kind == "accepted":
                node.queue.send_held_back(result.id, destinations)
                node.audit.write("decided", **facts, destinations=destinations)
                _send(node, result, "verified", self.output, destinations)
            else:
                # Before `mark_refused`, which deletes the deliveries that say to whom the result was on its way.
                reached = self._reached()
                node.queue.mark_refused(result.id, f"{kind} by a reviewer")
                node.audit.write("decided", **facts)
                self._reject_earlier(decision)
                _send(node, result, "rejection note", self.output, sorted(reached))
                _send(node, result, "corrected", self.output, destinations)
                for version in self.earlier:
                    if version not in self.named:
                        _record_not_told(node, version, destinations_with(node.queue, version))
        if (self.output / TRAINING).is_dir():
            shutil.copytree(self.output / TRAINING, node.folder / TRAINING, dirs_exist_ok=True)

    def _reached(self) -> set[str]:
        """Destinations that have the result or an earlier version, or may have it; a refusal deletes unfinished deliveries."""
        queue = self.node.queue
        deliveries = queue.deliveries_of_same_bytes(self.result.id)
        reached = {sent.destination for sent in deliveries if sent.state != "replaced"}
        return reached.union(*(destinations_with(queue, version) for version in self.earlier))

    def _reject_earlier(self, decision: Decision) -> None:
        """Rejects the earlier versions together with the result."""
        queue, result = self.node.queue, self.result
        for version in self.earlier:
            rejection = replace(decision, result=version.id, decision="rejected")
            queue.record_decision(rejection)
            _write_record(self.node, version, rejection, f"result {result.id}, a later version, was not accepted")
            queue.mark_refused(version.id, f"rejected with result {result.id}")
            facts = {"study": version.study, "result": version.id, "decision": "rejected", "after": result.id}
            self.node.audit.write("decided", who=self.reviewer, **facts)


def _record_not_told(node: Node, result: Result, destinations: Iterable[str]) -> None:
    """Records destinations that have a result and get no rejection note for it."""
    node.audit.write("not told", study=result.study, result=result.id, destinations=sorted(destinations))


def release(node: Node, number: int, reviewer: str, reason: str, *, confirmed: bool = False) -> None:
    """Delivers a result that was held back, by the decision of a reviewer.

    Args:
        node: Keeps the result.
        number: Number of the result.
        reviewer: Name of the reviewer.
        reason: Why, in the reviewer's words.
        confirmed: The reviewer knows that the quality gate has rejected the result.

    Raises:
        DecidedError: The result is not held back, or somebody else has decided about it.
        InputRefusedError: The gate rejected the result, and the reviewer did not confirm that; or its files are lost.
    """
    with _undecided(node, number, "released", reviewer) as (result, decision):
        if result.state == "rejected" and not confirmed:
            raise InputRefusedError(
                f"the quality gate rejected result {number}; a reviewer's accept on its review page is needed, or "
                "confirm_rejected = true with the reason; look at it first"
            )
        destinations = node.site.destinations_for(result)
        _write_record(node, result, decision, reason)
        node.queue.send_held_back(number, destinations)
        facts = {"result": number, "study": result.study, "rule": result.rule}
        node.audit.write("released", **facts, destinations=destinations, who=reviewer)


def refuse(node: Node, number: int, reviewer: str, reason: str) -> None:
    """Never delivers a result that was held back, by the decision of a reviewer.

    Raises:
        DecidedError: The result is not held back, or somebody else has decided about it.
        InputRefusedError: Its files are lost and are made again. A result whose files cannot be made again may be refused.
    """
    with _undecided(node, number, "refused", reviewer, or_lost_for_good=True) as (result, decision):
        _write_record(node, result, decision, reason)
        node.queue.mark_refused(number, reason)
        node.audit.write("refused", result=number, study=result.study, rule=result.rule, who=reviewer)


def check_files(node: Node, result: Result, *, needs_document: bool = False, or_lost_for_good: bool = False) -> None:
    """Pass if the files of a result are as they were written, because no reviewer may decide on files that nobody can see.

    Lost files of a result that may still be decided on are made again, as a new result that is held back in its place.

    Args:
        node: Keeps the result.
        result: Any result.
        needs_document: The `result.json` is needed, too.
        or_lost_for_good: Also pass if the files are lost and cannot be made again.

    Raises:
        InputRefusedError: The files are lost; the message says how, and whether they are made again.
    """
    lost = node.lost_results.why_lost(result) or (needs_document and _lacks_document(node, result))
    if not lost:
        return
    if result.state not in DECIDABLE:
        raise InputRefusedError(
            f"result {result.id} is {result.state}, and {lost}; look at the newest result of its study"
        )
    why_not = node.lost_results.remake(result, lost)
    if not why_not:
        raise InputRefusedError(
            f"result {result.id} cannot be looked at: {lost}; they are made again: look at the newest result of its study in "
            "some minutes"
        )
    if not or_lost_for_good:
        raise InputRefusedError(f"result {result.id} cannot be looked at: {why_not}")


def _lacks_document(node: Node, result: Result) -> str:
    is_reviewed = result.folder and result.state in DECIDABLE and result.verdict not in FOLLOW_UPS
    is_there = not is_reviewed or any(node.result_folder(result).rglob("*_result.json"))
    return "" if is_there else "its result.json is missing from results"


@contextmanager
def _undecided(
    node: Node, number: int, kind: DecisionKind, reviewer: str, *, or_lost_for_good: bool = False
) -> Iterator[tuple[Result, Decision]]:
    """Within, a decision of now is recorded in the open transaction, and its result has its files, see `check_files`."""
    decision = Decision(number, kind, reviewer, datetime.now(UTC).isoformat(timespec="milliseconds"))
    with node.decision_locks[number]:
        result = node.queue.result(number)
        if result is not None and result.state in HELD_BACK:  # `record_if_undecided` names any other
            check_files(node, result, or_lost_for_good=or_lost_for_good)
        with node.queue.transaction():
            node.queue.record_if_undecided(decision)
            yield _current(node, number), decision


def _current(node: Node, number: int) -> Result:
    """The result as the database has it now."""
    result = node.queue.result(number)
    if result is None:
        raise DecidedError(f"result {number} no longer exists; there is nothing to decide")
    return result


def _write_record(
    node: Node, result: Result, decision: Decision, reason: str, review: dict[str, Any] | None = None
) -> None:
    """Writes the record of a decision (schema `decision_record`), which outlives the study's files."""
    document = {
        "schema_version": "1.0",
        "study": result.study,
        "series": result.series,
        "rule": result.rule,
        "result": result.id,
        "digest": result.digest,
        "decision": decision.decision,
        "who": decision.who,
        "organization": node.config.organization,
        "at": decision.at,
        "reason": reason,
        "review": review,
    }
    folder = node.decisions_folder / result.study
    write_new_json(document, folder / f"result-{result.id}_{decision.decision}.json", "decision_record")


def _send(node: Node, result: Result, follow_up: str, written: Path, destinations: Sequence[str]) -> None:
    """Sends what follows from a decision to the destinations that take it, written in the same way as their result was.

    Args:
        node: Keeps the result.
        result: The result that was decided on.
        follow_up: One of FOLLOW_UPS.
        written: Has a folder for each way in which the result is written, with the objects that follow from the decision.
        destinations: Names of the intended destinations; the site file may no longer have some of them.
    """
    pattern, kinds = _FOLLOWING[follow_up]
    known = [node.site.destinations[name] for name in destinations if name in node.site.destinations]
    taking = [
        destination
        for destination in known
        if kinds & set(destination.profile.objects) and list((written / variant_of(destination)).glob(pattern))
    ]
    names = [destination.name for destination in taking]
    if follow_up == "rejection note" and set(destinations) - set(names):
        _record_not_told(node, result, set(destinations) - set(names))
    if not taking:
        return
    folder = node.results_folder / f"{follow_up.split()[0]}-{result.id}"
    for variant in {variant_of(destination) for destination in taking}:
        shutil.rmtree(folder / variant, ignore_errors=True)  # of a decision that did not take effect
        (folder / variant).mkdir(parents=True)
        for file in (written / variant).glob(pattern):
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, folder / variant / file.name)
    node.add_follow_up(result, follow_up, folder.name, digest_of(folder), names)


def document_of(node: Node, result: Result) -> Path:
    """The `result.json` for a review; if the result was written in several ways, that of the first."""
    documents = sorted(node.result_folder(result).rglob("*_result.json")) if result.folder else []
    if not documents:
        raise InputRefusedError(f"result {result.id} is {result.state}; there is nothing to review")
    return documents[0]


def _image(node: Node, result: Result) -> list[str]:
    """Options that name the image of a result: a series, read as the worker reads it, or an image that is no DICOM."""
    study, rule = node.received_folder / result.study, node.site.rule(result.rule)
    if not result.series:
        folder = study / result.rule
        return ["--input", str(next((image for image in images_of(study) if image.parent == folder), folder))]
    incomplete = ["--accept-incomplete"] if rule is not None and rule.allow_incomplete else []
    return ["--input", str(study), "--series", result.series, *incomplete]


def _bundle(node: Node, result: Result) -> str:
    """Name or folder of the bundle that made a result."""
    rule = node.site.rule(result.rule)
    if rule is None:
        raise InputRefusedError(
            f"the site no longer has the rule {result.rule}; its bundle is needed; put the rule back"
        )
    if not rule.is_registered:
        return rule.bundle
    (made_by,) = node.queue.column("SELECT bundle FROM results WHERE id = ?", result.id)
    return str(copy_of(node.site, made_by or resolved(node.site)[rule.bundle]["sha256"]))


def _run(options: list[str]) -> str:
    """The output of `monai-unet review` with these options."""
    return run_verb(["review", *options], PAGE_S)

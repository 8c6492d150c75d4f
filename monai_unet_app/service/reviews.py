"""Reviews through the node: pages are made, and verdicts applied, by `monai-unet review` in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicom_io.kinds import RESULT_KINDS
from monai_unet_app.data.schemas import write_new_json
from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service.node import RECEIVED, RESULTS, REVIEWS, VERDICTS, Node
from monai_unet_app.service.result_versions import destinations_with, earlier_versions
from monai_unet_app.service.rows import DECIDABLE, FOLLOW_UPS, HELD_BACK, DecidedError, Decision, Result
from monai_unet_app.service.uploads import images_of
from monai_unet_app.service.work import digest_of, variant_of

PAGE_S = 300.0
"""How long making a page may take."""

_FOLLOWING: dict[str, tuple[str, set[str]]] = {
    "rejection note": ("*_rejection.dcm", {"KO"}),
    "corrected": ("*_corrected_*", {kind.name for kind in RESULT_KINDS if kind.from_labels}),
    "verified": ("*_sr_verified.dcm", {"SR"}),
}
"""What follows from a decision: its files, and the kinds of objects of which a destination must take one."""

TRAINING = "training"
"""Folder of the node for corrected cases."""

_REFUSED = 3  # exit code


def page_of(node: Node, result: Result) -> Path:
    """Where the page on a result is, or will be; its PDF, `review.pdf`, is beside it."""
    return _folder(node, result) / "index.html"


def review_page(node: Node, result: Result, post_url: str, prior: Path | None = None) -> Path:
    """The page on a result, made where it is not there yet; it names the patient.

    Args:
        node: Keeps the result, and the page afterwards.
        result: One that has files.
        post_url: Where the page sends a decision.
        prior: An earlier `result.json` of the same patient, to compare sizes with.

    Raises:
        AppError: The site shows no identities, or the result cannot be reviewed; the message says why.
    """
    if not node.config.show_identity:
        raise InputRefusedError("this site shows no identities (show_identity); review it with monai-unet review")
    check_files(node, result, needs_document=True)
    page = page_of(node, result)
    words = ["--result", str(document_of(node, result)), *_image(node, result), "--bundle", _bundle(node, result)]
    if not page.exists():
        words += ["--prior", str(prior), "--same-patient"] if prior else []
        _run([*words, "--output", str(page.parent), "--post-url", post_url])
    return page


def standing(node: Node, result: Result) -> dict[str, Any]:
    """What became of a result so far: "state", "open" (somebody may decide), "decided" (decision, by whom, when; or None).

    What was decided about the same bytes was decided about this result.
    """
    decisions = node.queue.decisions_of(result.id)
    last = decisions[-1] if decisions else None
    return {
        "state": result.state,
        "open": result.state in DECIDABLE and not any(one.is_final for one in decisions),
        "decided": None if last is None else {"decision": last.decision, "by": last.who, "at": last.at},
    }


def decide(
    node: Node, result: Result, verdict: dict[str, Any], who: str, corrected: Path | None = None
) -> dict[str, Any]:
    """Does what a signed-in reviewer decided, and gives the record that `review.verdict.apply_verdict` writes.

    Accepted: the result goes out if it was held back, and a verified report after it. Rejected or corrected: it does not go
    out; where it is out already, or an earlier version that nobody has decided about, a rejection note goes after it that names
    both. Corrected: the corrected result goes out, and its case is kept to train on. The clock of the node says when it was
    decided.

    Args:
        node: Keeps the result.
        result: What the verdict is about.
        verdict: As the page sends it.
        who: Name of the reviewer.
        corrected: The mask of a correction.

    Raises:
        DecidedError: Somebody else has decided about the result, or it is another one now.
        AppError: The verdict is about something else, or cannot be applied; the message says why.
    """
    with node.decision_locks[result.id]:  # the second of two waits, and then hears of the first
        node.queue.check_undecided(result.id)
        result = _present(node, result.id)  # as it is now
        check_files(node, result, needs_document=True)
        folder = _folder(node, result)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".verdict-") as scratch:
            earlier = earlier_versions(node.queue, result)
            whole = [one for one in earlier if not node.lost_results.why_lost(one) and not _lacks_document(node, one)]
            record = _applied(node, result, verdict, who, corrected, Path(scratch), whole)
            _take_effect(node, result, record, who, Path(scratch), earlier)
            if record["decision"] != "accepted":
                _tell_of_unnamed(node, [one for one in earlier if one not in whole])
    return record


def _take_effect(
    node: Node, result: Result, record: dict[str, Any], who: str, made: Path, earlier: Sequence[Result]
) -> None:
    """Records a decision and what follows from it, all of it or nothing.

    Args:
        node: Keeps the result.
        result: What was decided on.
        record: Of the decision.
        who: Name of the reviewer.
        made: What applying the verdict wrote.
        earlier: Versions of the result that are rejected with it, if it was not accepted.

    Raises:
        DecidedError: Somebody has decided about one of them meanwhile.
    """
    kind, goes = record["decision"], node.site.destinations_for(result.rule, result.series)
    one = Decision(result.id, kind, who, record["applied_at"])
    facts = {"who": who, "study": result.study, "result": result.id, "decision": kind}
    with node.queue.transaction():
        node.queue.record_if_undecided(one)
        if kind != "accepted" and earlier_versions(node.queue, result) != list(earlier):
            raise DecidedError(
                f"an earlier version of result {result.id} was decided on or delivered meanwhile; decide once more"
            )
        _write_record(node, result, one, record["comment"], record)
        alike = node.queue.same_bytes(result.id)
        went = {sent.destination for other in alike for sent in node.queue.deliveries_of(other.id)}
        if kind == "accepted":
            node.queue.send_held_back(result.id, goes)
            node.audit.write("decided", **facts, destinations=goes)
        else:
            node.queue.mark_refused(result.id, f"{kind} by a reviewer")
            node.audit.write("decided", **facts)
            for before in earlier:
                went |= destinations_with(node.queue, before)
                _reject_with(node, before, result, replace(one, result=before.id, decision="rejected"))
        if kind == "accepted":
            _send(node, result, "verified", made, goes)
        else:
            _send(node, result, "rejection note", made, sorted(went))
            _send(node, result, "corrected", made, goes)
    if (made / TRAINING).is_dir():
        shutil.copytree(made / TRAINING, node.folder / TRAINING, dirs_exist_ok=True)


def _reject_with(node: Node, before: Result, result: Result, one: Decision) -> None:
    """Records that an earlier version is rejected together with the result that took its place."""
    node.queue.record_decision(one)
    _write_record(node, before, one, f"result {result.id}, a later version, was not accepted")
    node.queue.mark_refused(before.id, f"rejected with result {result.id}")
    node.audit.write("decided", who=one.who, study=before.study, result=before.id, decision="rejected", after=result.id)


def _tell_of_unnamed(node: Node, earlier: Sequence[Result]) -> None:
    """Records which destinations have earlier versions that no note names, as their files are lost."""
    for one in earlier:
        destinations = sorted(destinations_with(node.queue, one))
        node.audit.write("not told", study=one.study, result=one.id, destinations=destinations)


def release(node: Node, number: int, who: str, reason: str, *, confirmed: bool = False) -> None:
    """Lets a result go that was kept back, by the decision of a person.

    Args:
        node: Keeps the result.
        number: Of the result.
        who: The person's name.
        reason: Why, in their words.
        confirmed: They know that the quality gate has rejected it.

    Raises:
        DecidedError: It is not kept back, or somebody has decided about it.
        InputRefusedError: It was rejected, and that is not confirmed; or its files are lost.
    """
    one = Decision(number, "released", who, _now())
    with node.decision_locks[number], _seen(node, number), node.queue.transaction():
        node.queue.record_if_undecided(one)
        result = _present(node, number)
        if result.state == "rejected" and not confirmed:
            raise InputRefusedError(
                f"the quality gate rejected result {number}; a reviewer's accept on its review page is needed, or "
                "confirm_rejected = true with the reason; look at it first"
            )
        goes = node.site.destinations_for(result.rule, result.series)
        _write_record(node, result, one, reason)
        node.queue.send_held_back(number, goes)
        node.audit.write("released", result=number, study=result.study, rule=result.rule, destinations=goes, who=who)


def refuse(node: Node, number: int, who: str, reason: str) -> None:
    """Keeps a result back for good, by the decision of a person.

    Raises:
        DecidedError: It is not kept back, or somebody has decided about it.
        InputRefusedError: Its files are lost, and are made again; one whose files cannot be made again may be refused.
    """
    one = Decision(number, "refused", who, _now())
    with node.decision_locks[number], _seen(node, number, or_lost_for_good=True), node.queue.transaction():
        node.queue.record_if_undecided(one)
        result = _present(node, number)
        _write_record(node, result, one, reason)
        node.queue.mark_refused(number, reason)
        node.audit.write("refused", result=number, study=result.study, rule=result.rule, who=who)


def check_files(node: Node, result: Result, *, needs_document: bool = False, or_lost_for_good: bool = False) -> None:
    """Pass if the files of a result are those that were made: nobody decides on what nobody can see.

    Files that are lost are made again, as those of a result that waits in its place.

    Args:
        node: Keeps the result.
        result: Any; of what nobody may decide on nothing is made again.
        needs_document: Its `result.json` is needed, too.
        or_lost_for_good: Pass, too, if they are lost and cannot be made again.

    Raises:
        InputRefusedError: They are lost; the message says how, and what becomes of it.
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
def _seen(node: Node, number: int, *, or_lost_for_good: bool = False) -> Iterator[None]:
    """Within, a result that is held back has its files, see `check_files`; `record_if_undecided` names any other."""
    result = node.queue.result(number)
    if result is not None and result.state in HELD_BACK:
        check_files(node, result, or_lost_for_good=or_lost_for_good)
    yield


def _present(node: Node, number: int) -> Result:
    result = node.queue.result(number)
    if result is None:
        raise DecidedError(f"result {number} is gone; there is nothing to decide")
    return result


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _write_record(node: Node, result: Result, one: Decision, reason: str, review: dict[str, Any] | None = None) -> None:
    """Writes the record of a decision (schema `decision_record`), which outlives the study's files."""
    document = {
        "schema_version": "1.0",
        "study": result.study,
        "series": result.series,
        "rule": result.rule,
        "result": result.id,
        "digest": result.digest,
        "decision": one.decision,
        "who": one.who,
        "organization": node.config.organization,
        "at": one.at,
        "reason": reason,
        "review": review,
    }
    folder = node.folder / VERDICTS / result.study
    write_new_json(document, folder / f"result-{result.id}_{one.decision}.json", "decision_record")


def _applied(
    node: Node, result: Result, verdict: dict[str, Any], who: str, corrected: Path | None, output: Path,
    earlier: Sequence[Result],
) -> dict[str, Any]:  # fmt: skip
    """The record of a verdict; it and what it asks for are written to `output`. `earlier`: what a rejection names, too."""
    words = ["--result", str(document_of(node, result)), "--output", str(output)]
    words += ["--variants", str(node.result_folder(result))]
    words += ["--delivered"] if result.state not in HELD_BACK else []
    words += [word for one in earlier for word in ("--superseded", str(node.result_folder(one)))]
    words += ["--reviewer", who, "--organization", node.config.organization or "unknown"]
    if corrected is not None:
        words += ["--correction", str(corrected), *_image(node, result), "--training", str(output / TRAINING)]
    file = output / "verdict.json"
    file.write_text(json.dumps(verdict))
    record: dict[str, Any] = json.loads(_run([*words, "--apply", str(file), "--json"]))
    return record


def _send(node: Node, result: Result, what: str, made: Path, destinations: Sequence[str]) -> None:
    """What follows from a decision goes to those destinations that take it, written as their result was.

    Args:
        node: Keeps the result.
        result: What was decided on.
        what: One of FOLLOW_UPS.
        made: A folder for each way in which the result is written, with what follows from the decision.
        destinations: Names of those that should have it; some may be no more in the site file.
    """
    pattern, kinds = _FOLLOWING[what]
    known = [node.site.destinations[name] for name in destinations if name in node.site.destinations]
    taking = [one for one in known if kinds & set(one.profile.objects) and list((made / variant_of(one)).glob(pattern))]
    untold = sorted(set(destinations) - {one.name for one in taking})
    if what == "rejection note" and untold:
        node.audit.write("not told", study=result.study, result=result.id, destinations=untold)
    if not taking:
        return
    folder = node.folder / RESULTS / f"{what.split()[0]}-{result.id}"
    for variant in {variant_of(one) for one in taking}:
        shutil.rmtree(folder / variant, ignore_errors=True)  # of a decision that did not take effect
        (folder / variant).mkdir(parents=True)
        for file in (made / variant).glob(pattern):
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, folder / variant / file.name)
    digest, goes = digest_of(folder), [one.name for one in taking]
    number = node.queue.add_follow_up(result, what, folder.name, digest, goes)
    node.audit.write(
        what, study=result.study, result=number, of=result.id, folder=folder.name, digest=digest, destinations=goes
    )


def _folder(node: Node, result: Result) -> Path:
    return node.folder / REVIEWS / str(result.id)


def document_of(node: Node, result: Result) -> Path:
    """The `result.json` that a review is about: that of the first way in which the result was written."""
    found = sorted(node.result_folder(result).rglob("*_result.json")) if result.folder else []
    if not found:
        raise InputRefusedError(f"result {result.id} is {result.state}; there is nothing to review")
    return found[0]


def _image(node: Node, result: Result) -> list[str]:
    """Words that name the image of a result: a series, read as the worker reads it, or an image that is no DICOM."""
    study, rule = node.folder / RECEIVED / result.study, node.site.rule(result.rule)
    if not result.series:
        folder = study / result.rule
        return ["--input", str(next((image for image in images_of(study) if image.parent == folder), folder))]
    what_is_there = ["--accept-incomplete"] if rule is not None and rule.allow_incomplete else []
    return ["--input", str(study), "--series", result.series, *what_is_there]


def _bundle(node: Node, result: Result) -> str:
    rule = node.site.rule(result.rule)
    if rule is None:
        raise InputRefusedError(f"the site has no rule {result.rule} any more; its bundle is needed; put the rule back")
    return rule.bundle


def _run(words: list[str]) -> str:
    command = [sys.executable, "-m", "monai_unet_app", "review", *words]
    env = {**os.environ, "COLUMNS": "10000"}  # a path that is broken into lines could not be told
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PAGE_S, env=env, check=False)
    except subprocess.TimeoutExpired as error:
        raise AppError(f"the review took more than {PAGE_S:g} s; try again when less is going on") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise (InputRefusedError if done.returncode == _REFUSED else AppError)(said or "the review could not be made")
    return done.stdout

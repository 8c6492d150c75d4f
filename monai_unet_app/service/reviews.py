"""Reviews through the node: pages are made, and verdicts applied, by `monai-unet review` in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service.node import RECEIVED, RESULTS, REVIEWS, Node
from monai_unet_app.service.queue import KEPT_BACK, Result, ResultState
from monai_unet_app.service.uploads import IMAGE
from monai_unet_app.service.work import digest_of, variant_of

PAGE_S = 300.0
"""How long making a page may take."""

TRAINING = "training"
"""Folder of the node for corrected cases."""

_DECIDABLE: tuple[ResultState, ...] = (*KEPT_BACK, "sending", "delivered")
_REFUSED = 3  # exit code


def review_page(node: Node, result: Result, post_url: str) -> Path:
    """The page on a result, made where it is not there yet; it names the patient.

    Args:
        node: Keeps the result, and the page afterwards.
        result: One that has files.
        post_url: Where the page sends a decision.

    Raises:
        AppError: The site shows no identities, or the result cannot be reviewed; the message says why.
    """
    if not node.config.show_identity:
        raise InputRefusedError("this site shows no identities (show_identity); review it with monai-unet review")
    output = _folder(node, result)
    page = output / "index.html"
    words = ["--result", str(_document(node, result)), *_image(node, result), "--bundle", _bundle(node, result)]
    if not page.exists():
        _run([*words, "--output", str(output), "--post-url", post_url])
    return page


def standing(node: Node, result: Result) -> dict[str, Any]:
    """What became of a result so far: "state", "open" (somebody may decide), "decided" (decision, by whom, when; or None)."""
    records = sorted((_folder(node, result) / "verdict").glob("*_verdict_*.json"))
    last = json.loads(records[-1].read_text()) if records else None
    decided = None
    if last is not None:
        reviewer = last["reviewer"] or {"name": ""}
        decided = {"decision": last["decision"], "by": reviewer["name"], "at": last["applied_at"]}
    is_open = result.state in _DECIDABLE and not (last is not None and last["decision"] == "accepted")
    return {"state": result.state, "open": is_open, "decided": decided}


def decide(
    node: Node, result: Result, verdict: dict[str, Any], who: str, corrected: Path | None = None
) -> dict[str, Any]:
    """Does what a signed-in reviewer decided, and gives the record that `review.verdict.apply_verdict` writes.

    Accepted: the result goes out if it was held back, and a verified report after it. Rejected or corrected: it does not go
    out; a corrected case is kept to train on.

    Args:
        node: Keeps the result.
        result: What the verdict is about.
        verdict: As the page sends it.
        who: Name of the reviewer.
        corrected: The mask of a correction.

    Raises:
        AppError: The verdict is about something else, or cannot be applied; the message says why.
    """
    if result.state not in _DECIDABLE:
        raise InputRefusedError(
            f"result {result.id} is {result.state}; one that is held back, on its way or delivered can be decided on; "
            "look at the newest result of this study"
        )
    output = _folder(node, result) / "verdict"
    output.mkdir(parents=True, exist_ok=True)
    record = _applied(node, result, verdict, who, corrected, output)
    decision, goes = str(record["decision"]), node.site.destinations_for(result.rule, result.series)
    facts = {"who": who, "study": result.study, "result": result.id, "decision": decision}
    with node.queue.all_or_none():
        if decision != "accepted":
            node.queue.refuse(result.id, f"{decision} by a reviewer")
            node.audit.write("decided", **facts)
            return record
        node.queue.release(result.id, goes)
        node.audit.write("decided", **facts, destinations=goes)
        if record["report"]:
            _send_verified(node, result, output, goes)
    return record


def _applied(
    node: Node, result: Result, verdict: dict[str, Any], who: str, corrected: Path | None, output: Path
) -> dict[str, Any]:
    """The record of a verdict; it and the verified report are written to `output`."""
    words = ["--result", str(_document(node, result)), "--output", str(output)]
    words += ["--reviewer", who, "--organization", node.config.organization or "unknown"]
    if corrected is not None:
        words += ["--correction", str(corrected), *_image(node, result), "--training", str(node.folder / TRAINING)]
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".verdict-") as scratch:
        file = Path(scratch, "verdict.json")
        file.write_text(json.dumps(verdict))
        record: dict[str, Any] = json.loads(_run([*words, "--apply", str(file), "--json"]))
    return record


def _send_verified(node: Node, result: Result, verdict: Path, destinations: Sequence[str]) -> None:
    """Every destination gets the verified report, whatever way it has its SEG."""
    folder = node.folder / RESULTS / f"verified-{result.id}"
    for variant in {variant_of(node.site.destinations[name]) for name in destinations}:
        (folder / variant).mkdir(parents=True, exist_ok=True)
        for report in verdict.glob("*_sr_verified.dcm"):
            shutil.copyfile(report, folder / variant / report.name)
    digest = digest_of(folder)
    number = node.queue.add_verified(result, folder.name, digest, destinations)
    node.audit.write(
        "verified", study=result.study, result=number, of=result.id, folder=folder.name, digest=digest,
        destinations=destinations,
    )  # fmt: skip


def _folder(node: Node, result: Result) -> Path:
    return node.folder / REVIEWS / str(result.id)


def _document(node: Node, result: Result) -> Path:
    """The `result.json` that a review is about: that of the first way in which the result was written."""
    found = sorted(node.result_folder(result).rglob("*_result.json")) if result.folder else []
    if not found:
        raise InputRefusedError(f"result {result.id} is {result.state}; there is nothing to review")
    return found[0]


def _image(node: Node, result: Result) -> list[str]:
    """Words that name the image of a result: a series of its study, or one that is none of DICOM."""
    study = node.folder / RECEIVED / result.study
    if not result.series:
        return ["--input", str(study / result.rule / IMAGE)]
    return ["--input", str(study), "--series", result.series]


def _bundle(node: Node, result: Result) -> str:
    rule = node.site.rule(result.rule)
    if rule is None:
        raise InputRefusedError(f"the site has no rule {result.rule} any more; its bundle is needed; put the rule back")
    return rule.bundle


def _run(words: list[str]) -> str:
    command = [sys.executable, "-m", "monai_unet_app", "review", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PAGE_S, env=os.environ, check=False)
    except subprocess.TimeoutExpired as error:
        raise AppError(f"the review took more than {PAGE_S:g} s; try again when less is going on") from error
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise (InputRefusedError if done.returncode == _REFUSED else AppError)(said or "the review could not be made")
    return done.stdout

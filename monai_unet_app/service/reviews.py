"""Reviews through the node: pages are made, and verdicts applied, by `monai-unet review` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from monai_unet_app.errors import AppError, InputRefusedError

PAGE_S = 300.0
"""How long making a page may take."""

_REFUSED = 3  # exit code


def review_page(document: Path, image: Path, series: str, bundle: str, output: Path, post_url: str) -> Path:
    """The page on a result, made where it is not there yet.

    Args:
        document: Its `result.json`.
        image: Folder of the study that it was made from, or the NIfTI image.
        series: SeriesInstanceUID; empty for an image that is none of DICOM.
        bundle: What made it.
        output: Folder for the page; names the patient.
        post_url: Where the page sends a decision.

    Raises:
        InputRefusedError: The result cannot be reviewed; the message says why.
    """
    page = output / "index.html"
    if not page.exists():
        words = ["--result", str(document), "--input", str(image), "--bundle", bundle, "--output", str(output)]
        _run([*words, "--post-url", post_url, *(["--series", series] if series else [])])
    return page


def apply(
    verdict: dict[str, Any],
    document: Path,
    output: Path,
    *,
    reviewer: str,
    organization: str,
    correction: tuple[Path, Path, str, Path] | None = None,
) -> dict[str, Any]:
    """What became of a verdict: the record that `review.verdict.apply_verdict` writes.

    Args:
        verdict: As the page sends it.
        document: The `result.json` that it is about.
        output: Gets record and verified report.
        reviewer, organization: Who is signed in.
        correction: (corrected mask, study or image, series, folder of training cases) of a correction.

    Raises:
        InputRefusedError: It is about something else, or cannot be applied; the message says why.
    """
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".verdict-") as scratch:
        file = Path(scratch, "verdict.json")
        file.write_text(json.dumps(verdict))
        words = ["--result", str(document), "--apply", str(file), "--output", str(output)]
        words += ["--reviewer", reviewer, "--organization", organization]
        if correction is not None:
            mask, image, series, training = correction
            words += ["--correction", str(mask), "--input", str(image), "--training", str(training)]
            words += ["--series", series] if series else []
        found: dict[str, Any] = json.loads(_run([*words, "--json"]))
    return found


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

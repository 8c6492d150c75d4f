"""The page of a post-mortem: what differs, what both versions make of the study, where the second is worse, what was done."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dicom_io.files import write_whole
from monai_unet_app.lifecycle.postmortem import Postmortem, Replay
from monai_unet_app.pipeline import Case
from monai_unet_app.report.blocks import Block, Conclusion, Heading, Lines, Picture, Table, Text, Title
from monai_unet_app.report.html import page

_MOST_LINES, _MOST_ROWS, _LONGEST = 400, 20, 160
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_COLOURS = ("#0072b2", "#d55e00")


def write_postmortem(found: Postmortem, path: Path) -> None:
    """Writes one self-contained HTML page. It shows the image, and names the study by its UID and no patient."""
    title = f"Post-mortem, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    blocks: list[Block] = [
        Title(title),
        Conclusion(found.sentence[:1].upper() + found.sentence[1:] + ".", "bad" if found.worst else ""),
        Text(f"Study {found.study}, rule {found.rule}."),
        Heading("What differs"),
    ]
    rows = tuple((name, _short(pair[0]), _short(pair[1])) for name, pair in found.differences.items())
    blocks.append(Table(("", "first", "second"), rows, words=3) if rows else Text("Nothing: it is the same bundle."))
    if found.config:
        blocks += [Heading("Configs", small=True), Lines(tuple(("", line, "") for line in found.config[:_MOST_LINES]))]
    blocks.append(Heading("The study by both"))
    if not found.replays:
        blocks.append(Text("Its images are not kept any more."))
    for replay in found.replays:
        blocks += _of_replay(replay)
    blocks.append(Heading("Where the second version is worse"))
    if found.subgroups:
        groups = tuple(
            (one.name, str(one.studies), f"{one.difference:+.4f}", f"{one.worse} of {one.studies}", f"{one.p:.2g}")
            for one in found.subgroups[:_MOST_ROWS]
        )
        blocks.append(Table(("studies", "number", "predicted Dice, second less first", "worse", "by chance"), groups))
        blocks.append(Text("By the sign test, corrected by Holm for the number of groups.", note=True))
    else:
        blocks.append(Text("No group of six studies or more was segmented by both versions."))
    blocks.append(Heading("What was done with the study"))
    events = tuple((str(line["time"])[:19], str(line["event"]), _short(_facts(line))) for line in found.lines)
    blocks.append(Table(("time", "event", "facts"), events, words=3))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page(title, blocks))


def _short(text: str) -> str:
    text = _DIGEST.sub(lambda found: found[0][:16] + "...", text)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _facts(line: Mapping[str, Any]) -> str:
    left_out = ("n", "time", "event", "previous", "key", "sha256", "hmac", "study", "observed", "plan")
    return ", ".join(f"{key} {value}" for key, value in line.items() if key not in left_out and value not in ("", None))


def _of_replay(replay: Replay) -> list[Block]:
    cases = [made for made in replay.made if not isinstance(made, str)]
    blocks: list[Block] = [
        Text(f"The {which} version made nothing: {made}.")
        for which, made in zip(("first", "second"), replay.made, strict=True)
        if isinstance(made, str)
    ]
    if not blocks:
        rows = tuple(
            (one.label, f"{one.size:.4g}", f"{other.size:.4g}")
            for one, other in zip(cases[0].segmentation.structures, cases[1].segmentation.structures, strict=True)
        )
        verdicts = tuple((case.assessment.verdict if case.assessment else None) or "none" for case in cases)
        blocks.append(Table(("size", "first", "second"), (*rows, ("verdict", *verdicts))))
        blocks.append(
            Picture(
                lambda: _figure(cases),
                "both results",
                "The plane with most of both: first blue, second orange and dashed.",
            )
        )
    return blocks


def _figure(cases: list[Case]) -> Figure:
    """The plane across the last axis in which both masks have most voxels, with the outlines of both."""
    image = np.asarray(cases[0].image.array)
    image = image[..., 0] if image.ndim > 3 else image
    masks = [np.asarray(case.segmentation.foreground) for case in cases]
    plane = int(np.argmax(masks[0].sum((0, 1)) + masks[1].sum((0, 1))))
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axis = figure.subplots()
    axis.imshow(image[:, :, plane].T, cmap="gray", origin="lower")
    for mask, colour, line in zip(masks, _COLOURS, ("solid", "dashed"), strict=True):
        if mask[:, :, plane].any():
            axis.contour(mask[:, :, plane].T, levels=[0.5], colors=colour, linewidths=1.4, linestyles=line)
    axis.set_axis_off()
    return figure

"""Puts the figures of an evaluation into the bundle that was measured: its metadata and its model card.

In the metadata they are `eval_metrics`; in the card, docs/README.md, they stand between the marks <!-- figures --> and
<!-- end of figures -->.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from dicom_io.files import replace_when_whole
from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import CARD_FIGURES, BundleFiles
from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.bootstrap import Bootstrap, bootstrap_mean

from .words import between, number, percent, plural

CARD, METADATA, OUT_OF_FOLD = "docs/README.md", "configs/metadata.json", "docs/out_of_fold.csv"
_SCORES = {"dice": "Dice", "iou": "IoU", "boundary_iou": "boundary IoU (d = 1)"}
_STATEMENT_NAMES = {
    "sizes": "intervals of sizes",
    "gate": "quality gate",
    "risk": "cautious mask",
    "border": "what is usual at the border of the image",
}
_MADE_BY = ("train", "selection", "calibration")


def read_measured(evaluation: Path, bundle: BundleFiles) -> dict[str, Any]:
    """The metrics.json of an evaluation of this very bundle.

    Raises:
        InputRefusedError: The folder holds no evaluation, or an evaluation of other weights or settings.
    """
    try:
        document: dict[str, Any] = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputRefusedError(
            f"{evaluation}: metrics.json cannot be read ({error}); a folder that monai-unet evaluate wrote is needed"
        ) from error
    validate(document, "metrics")
    measured = document["bundle"]
    if measured["sha256"] != bundle.sha256:
        raise InputRefusedError(
            f"{evaluation} measured {measured['name']} {measured['version']}, sha256 {measured['sha256'][:16]}; "
            f"{bundle.name} is {bundle.sha256[:16]}; its own evaluation is needed; evaluate it again"
        )
    return document


def check_held_out(evaluation: Path, bundle: Bundle) -> None:
    """Raises InputRefusedError if a subject of the evaluation trained, selected or calibrated the bundle.

    Readers expect the figures of a card for new cases.
    """
    try:
        with (evaluation / "cases.csv").open(encoding="utf-8", newline="") as stream:
            subjects = {row["subject"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError) as error:
        raise InputRefusedError(
            f"{evaluation}: cases.csv cannot be used ({error}); a folder that monai-unet evaluate wrote is needed"
        ) from error
    made = sorted({case.subject for case in bundle.seen if case.partition in _MADE_BY} & subjects)
    if made:
        raise InputRefusedError(
            f"{evaluation}: {plural(len(made), 'subject')} of {len(subjects)} trained, selected or calibrated {bundle.name} "
            f"({', '.join(made[:3])}{', ...' if len(made) > 3 else ''}); figures of a card are of others; evaluate without them"
        )


def summary(document: Mapping[str, Any], bundle: Bundle, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of `eval_metrics` in the metadata.

    Args:
        document: The content of metrics.json.
        bundle: The bundle that was measured, with the record of its training.
        more: Further figures, which an evaluation does not hold.
    """
    data = document["data"]
    figures: dict[str, Any] = {
        "partition": data["partition"],
        "cases": data["cases"],
        "subjects": data["subjects"],
        "data": {"name": data["name"], "sha256": data["sha256"]},
        "bundle_sha256": document["bundle"]["sha256"],
    }
    figures |= {key: _score(document[key]) for key in _SCORES} | _calibration(document)
    if statements := _statements(document.get("statements", {})):
        figures["statements"] = statements
    return {**figures, **(more or {}), **_training(bundle), **out_of_fold(bundle)}


def out_of_fold(bundle: Bundle) -> dict[str, Any]:
    """A bundle's Dice in cross-validation by its `docs/out_of_fold.csv`: of all cases, and of its test cases.

    Each row of the table is one structure of one case, segmented by a network that never saw the case's subject.

    Returns:
        {"out_of_fold": figures}; empty where there is no such table.

    Raises:
        InputRefusedError: The table cannot be used.
    """
    path = bundle.root / OUT_OF_FOLD
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        cases: dict[str, list[float]] = {}
        for row in rows:
            cases.setdefault(row["case"], []).append(float(row["dice"]))
        subjects = {row["case"]: row["subject"] for row in rows}
        epochs = {row["fold"]: int(row["epochs"]) for row in rows}
        per_class = {
            segment.label: _rounded(
                float(np.mean([float(r["dice"]) for r in rows if int(r["structure"]) == segment.number]))
            )
            for segment in bundle.segments
        }
        means = np.array([np.mean(each) for each in cases.values()])
        estimate = bootstrap_mean(means, [subjects[case] for case in cases], Bootstrap())
    except (OSError, ValueError, KeyError) as error:
        raise InputRefusedError(
            f"{bundle.name}: {OUT_OF_FOLD} cannot be used ({error}); a row for each structure of each case is needed; make it "
            "again, or remove it"
        ) from error
    tested = {case.id for case in bundle.seen if case.partition == "test"}
    parts = {
        name: [np.mean(d) for case, d in cases.items() if (case in tested) == is_test]
        for name, is_test in _PARTS.items()
    }
    estimates = {
        "mean": _rounded(estimate.value),
        "interval_95": [_rounded(end) for end in (estimate.low, estimate.high)] if np.isfinite(estimate.low) else None,
        "per_class": per_class,
        "cases": len(cases),
        "subjects": len(set(subjects.values())),
        "epochs_of_folds": epochs,
        **{name: _rounded(float(np.mean(values))) for name, values in parts.items() if values},
    }
    return {"out_of_fold": estimates}


_PARTS = {"mean_of_test_cases": True, "mean_of_other_cases": False}
"""Name of a figure of `out_of_fold` -> whether it is of the bundle's test cases."""


def _score(block: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mean": _rounded(block["mean"]),
        "interval_95": block["mean_interval"] and [_rounded(end) for end in block["mean_interval"]],
        "per_class": {label: _rounded(value) for label, value in block["per_class"].items()},
    }


def _calibration(document: Mapping[str, Any]) -> dict[str, Any]:
    """Calibration errors of the whole image and of the band, if they are defined."""
    after, before = document["calibration"], document.get("calibration_before", {})
    entries = {}
    for key in ("ece", "ece_band"):
        population = document[key]["population"]
        errors = {"uncalibrated": before.get(population), "calibrated": after[population]}
        error = {when: _rounded(block["top_label"]["ece"]) for when, block in errors.items() if block}
        if error["calibrated"] is not None:
            entries[f"ece_{population}"] = error
    return entries


def _statements(statements: Mapping[str, Any]) -> dict[str, Any]:
    """The statements and how often they came true, for each class; and the statements that are not made."""
    entries: dict[str, Any] = {}
    if statements.get("sizes"):
        entries["sizes"] = {
            label: _kept(statement) | {"mean_half_width": _rounded(statement["mean_half_width"])}
            for label, statement in statements["sizes"].items()
        }
    if statements.get("gate"):
        entries["gate"] = {"verdicts": statements["gate"]["verdicts"], "bound": _kept(statements["gate"]["bound"])}
    if statements.get("shift"):
        entries["shift"] = {"flagged": statements["shift"]["flagged"], "cases": statements["shift"]["cases"]}
    if statements.get("not_stated"):
        entries["not_stated"] = dict(statements["not_stated"])
    return entries


def _kept(statement: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "wanted": statement["wanted"],
        "observed": _rounded(statement["observed"]),
        "subjects": statement["subjects"],
    }


def _training(bundle: Bundle) -> dict[str, Any]:
    record = bundle.run_record
    if not record:
        return {}
    sessions = record["sessions"]
    return {
        "training": {
            "epochs": record["epochs_done"],
            "best_epoch": record["best"]["epoch"],
            "minutes": round(sum(session["seconds"] for session in sessions) / 60, 1),
            "precision": sessions[-1]["precision"],
            "device": sessions[-1]["device"],
        }
    }


def write_figures(figures: Mapping[str, Any], bundle: Bundle, root: Path | None = None) -> tuple[Path, Path]:
    """Puts figures into a bundle's metadata and card; neither is touched unless both can be written.

    Args:
        figures: The result of `summary`.
        bundle: The bundle that was measured.
        root: The folder that gets the figures; None for the bundle's own.

    Returns:
        metadata.json and the card.

    Raises:
        InputRefusedError: There is no card, or it lacks its marks.
        OSError: One of the two files cannot be written.
    """
    home = root or bundle.root
    metadata, card = home / METADATA, home / CARD
    document = {**json.loads(metadata.read_text(encoding="utf-8")), "eval_metrics": dict(figures)}
    texts = {
        card: _between_marks(card_rows(figures, bundle), card),
        metadata: json.dumps(document, indent=2, ensure_ascii=False) + "\n",
    }
    _replace(texts)
    return metadata, card


def put_figures(rows: Sequence[str], page: Path) -> None:
    """Replaces the lines between the two marks of a page. Raises InputRefusedError unless each mark is there once."""
    _replace({page: _between_marks(rows, page)})


def _between_marks(rows: Sequence[str], page: Path) -> str:
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    # A function as replacement, since `re` would read the backslashes of escaped cells as references to groups.
    text, count = CARD_FIGURES.subn(lambda match: match[1] + "\n".join(rows) + "\n" + match[2], text)
    if count != 1:
        raise InputRefusedError(
            f"{page.parent.name}/{page.name} has {count} figure block(s); one between the lines <!-- figures --> and "
            "<!-- end of figures --> is needed; add them"
        )
    return text


def _replace(texts: Mapping[Path, str]) -> None:
    """Replaces the files once all texts are written; if one of them cannot be written, none is replaced."""
    with ExitStack() as whole:
        for path, text in texts.items():
            whole.enter_context(replace_when_whole(path)).write_text(text, encoding="utf-8")


def card_rows(figures: Mapping[str, Any], bundle: Bundle) -> list[str]:
    """The lines between the card's two marks, by `templates/card_figures.md`."""
    environment = Environment(loader=PackageLoader(__package__), trim_blocks=True)
    environment.filters |= {
        "cell": lambda label: label.replace("|", "\\|"),
        "band": lambda width: re.sub(r"^([0-9.]+)", r"\1 ", width),
    }
    rendered = environment.get_template("card_figures.md").render(
        figures=figures,
        bundle=bundle,
        calibration=dict(bundle.part("calibration")) if "calibration" in bundle.parser.get() else None,
        out_of_fold=OUT_OF_FOLD,
        scores=_SCORES,
        names=_STATEMENT_NAMES,
        number=number,
        between=between,
        percent=percent,
        plural=plural,
    )
    return rendered.split("\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

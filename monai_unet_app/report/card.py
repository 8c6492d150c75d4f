"""Puts the figures of an evaluation into the bundle that was measured: its metadata and its model card.

In the metadata they are `eval_metrics`; in the card, docs/README.md, they stand between the marks <!-- figures --> and
<!-- end of figures -->. Behind them, each after a mark of its own, stand what certifies other engines, <!-- certificate -->,
and how fast they are, <!-- speed -->. All between the marks goes when the bundle is trained anew.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from dicom_io.files import replace_together
from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import CARD_FIGURES, BundleFiles
from monai_unet_app.confidence.fine import WORTH_SHOWING
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.confidence.statements import read_confidence, stated_key
from monai_unet_app.config import ResultSettings
from monai_unet_app.data.schemas import json_of, validate
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.inference.engines.certificate import export_named, parity_of
from monai_unet_app.report.stored_evaluation import StoredEvaluation, read_evaluation

from .sections import inference_facts
from .words import between, number, percent, plural

CARD, METADATA = "docs/README.md", "configs/metadata.json"
OUT_OF_FOLD = "out_of_fold"
_SCORES = {"dice": "Dice", "iou": "IoU", "boundary_iou": "boundary IoU (d = 1)", "centreline_dice": "centre-line Dice"}
_STATEMENT_NAMES = {
    "sizes": "intervals of sizes",
    "gate": "quality gate",
    "risk": "cautious mask",
    "border": "what is usual at the border of the image",
}
_MADE_BY = ("train", "selection", "calibration")
_ERRORS = {"ece_whole": "ECE, whole image", "ece_band": "ECE, band around the predicted surface"}
_PART = re.compile(r"^<!-- (certificate|speed) -->\n", re.MULTILINE)


def read_measured(folder: Path, bundle: BundleFiles) -> StoredEvaluation:
    """The evaluation in a folder, of this very bundle.

    Raises:
        InputRefusedError: The folder holds no evaluation, or an evaluation of other weights or settings.
    """
    evaluation = read_evaluation(folder)
    validate(dict(evaluation.document), "metrics")
    measured = evaluation.document["bundle"]
    if measured["sha256"] != bundle.sha256:
        raise InputRefusedError(
            f"{folder} measured {measured['name']} {measured['version']}, sha256 {measured['sha256'][:16]}; "
            f"{bundle.name} is {bundle.sha256[:16]}; its own evaluation is needed; evaluate it again"
        )
    settings = evaluation.document.get("settings", {})
    precision, replaced = settings.get("precision", ResultSettings.precision), settings.get("overrides", [])
    if precision != ResultSettings.precision or replaced:
        raise InputRefusedError(
            f"{folder} measured results with {', '.join([precision, *replaced])}; a card is about the bundle as it is, in "
            f"{ResultSettings.precision}; evaluate it without --precision, --overlap and --fast"
        )
    return evaluation


def check_held_out(subject_of: Mapping[str, str], folds: Mapping[str, int], bundle: Bundle, where: Path) -> None:
    """Raises InputRefusedError if a subject made the network that segments it, or calibrated the bundle.

    Readers expect the figures of a card for new cases. Cases out of fold may have calibrated the bundle: that changes no Dice.

    Args:
        subject_of: Case -> subject.
        folds: Case -> the fold whose network segments it; empty for the bundle's own network.
        bundle: The bundle that is measured.
        where: Folder of the evaluation, or of its cases, for the message.
    """
    subjects = set(subject_of.values())
    made = {case.subject for case in bundle.seen if case.partition in _MADE_BY} & subjects
    if folds:
        networks = {
            fold.fold: {case.subject for case in fold.seen if case.partition != "test"} for fold in bundle.folds
        }
        pairs = [(subject_of.get(case, ""), fold) for case, fold in folds.items()]
        made = {subject for subject, fold in pairs if fold not in networks or subject in networks[fold]}
    if made:
        names = sorted(made)
        raise InputRefusedError(
            f"{where}: {plural(len(made), 'subject')} of {len(subjects)} trained, selected or calibrated {bundle.name} "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); the figures of a card must be of other "
            "subjects; leave these out"
        )


def summary(evaluation: StoredEvaluation, bundle: Bundle) -> dict[str, Any]:
    """The content of `eval_metrics` in the metadata, with what was measured of this bundle before.

    An evaluation out of fold becomes its entry `out_of_fold`; one of test cases everything else.

    Args:
        evaluation: Of the bundle's test cases, or of cases out of fold.
        bundle: The bundle that was measured, with the record of its training.
    """
    before, document = bundle.eval_metrics, evaluation.document
    figures = _figures(document) | _training(bundle)
    settings = ResultSettings(tta=bool(document.get("settings", {}).get("tta")))
    if settings.tta:
        figures["tta"] = True
    if folds := document["data"].get("folds"):
        dice = [value for value in evaluation.table.values("dice").values() if np.isfinite(value)]
        figures["folds"] = len(set(folds.values()))
        if dice:
            figures |= {"percentile_5": _rounded(float(np.percentile(dice, 5))), "least": _rounded(min(dice))}
        if left_out := _of_subjects_left_out(bundle, settings):
            figures["statements"] = left_out
        return {**before, OUT_OF_FOLD: figures}
    return {**figures, **({OUT_OF_FOLD: before[OUT_OF_FOLD]} if OUT_OF_FOLD in before else {})}


def _figures(document: Mapping[str, Any]) -> dict[str, Any]:
    data = document["data"]
    figures: dict[str, Any] = {
        "partition": data["partition"],
        "cases": data["cases"],
        "subjects": data["subjects"],
        "data": {"name": data["name"], "sha256": data["sha256"]},
        "bundle_sha256": document["bundle"]["sha256"],
    }
    figures |= {key: _score(document[key]) for key in _SCORES if key in document} | _calibration(document)
    if inference := document.get("inference"):
        figures["inference"] = inference
    if statements := _statements(document.get("statements", {})):
        figures["statements"] = statements
    return figures


def _score(block: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mean": _rounded(block["mean"]),
        "interval_95": block["mean_interval"] and [_rounded(end) for end in block["mean_interval"]],
        "per_class": {label: _rounded(value) for label, value in block["per_class"].items()},
    }


def _calibration(document: Mapping[str, Any]) -> dict[str, Any]:
    """Calibration errors of the whole image and of the band, where they are defined: of the top label, and of each class."""
    after, before = document["calibration"], document.get("calibration_before", {})
    entries = {}
    for key in ("ece", "ece_band"):
        population = document[key]["population"]
        errors = {"uncalibrated": before.get(population), "calibrated": after[population]}
        error: dict[str, Any] = {when: _rounded(block["top_label"]["ece"]) for when, block in errors.items() if block}
        if error["calibrated"] is not None:
            of_classes = errors["calibrated"]["per_class"].items()
            error["per_class"] = {
                label: {name: _rounded(found[name]) for name in ("ece", "ace")} for label, found in of_classes
            }
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


def _of_subjects_left_out(bundle: Bundle, settings: ResultSettings) -> dict[str, Any]:
    """What came true of the bundle's statements for subjects left out of their fit, as the fit noted it.

    Results out of fold are not assessed: their subjects fitted the statements, so these hold for them by construction.
    """
    stated, found = read_confidence(bundle, settings), dict[str, Any]()
    names = {segment.number: segment.label for segment in bundle.segments}
    whole_names = {number: whole.name for number, whole in enumerate(bundle.wholes, start=1)}
    kept = {
        label[number]: {
            "wanted": sizes.coverage,
            "observed": _rounded(part),
            "subjects": sizes.subjects,
            "mean_half_width": _rounded(sizes.half_width(number)),
        }
        for sizes, label in ((stated.sizes, names), (stated.wholes, whole_names))
        if sizes and sizes.kept
        for number, part in sizes.kept.items()
        if sizes.log_ratios[number]
    }
    if kept:
        found["sizes"] = kept
    if stated.gate and stated.gate.fine:
        found["rank_correlation"] = _rounded(stated.gate.fine.rank_correlation)
    return found


def _kept(statement: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "wanted": statement["wanted"],
        "observed": _rounded(statement["observed"]),
        "subjects": statement["subjects"],
    }


def _training(bundle: Bundle) -> dict[str, Any]:
    record = bundle.run_record
    sessions = record.get("sessions")
    if not sessions:  # no record, or another program trained the network
        return {}
    return {
        "training": {
            "epochs": record["epochs_done"],
            "best_epoch": record["best"]["epoch"],
            "minutes": round(sum(session["seconds"] for session in sessions) / 60, 1),
            "precision": sessions[-1]["precision"],
            "device": sessions[-1]["device"],
        }
    }


def write_figures(figures: Mapping[str, Any], bundle: Bundle) -> tuple[Path, Path]:
    """Puts figures into a bundle's metadata and card; neither is touched unless both can be written.

    Args:
        figures: The result of `summary`.
        bundle: The bundle that was measured.

    Returns:
        metadata.json and the card.

    Raises:
        InputRefusedError: There is no card, or it lacks its marks.
        OSError: One of the two files cannot be written.
    """
    metadata, card = bundle.root / METADATA, bundle.root / CARD
    document = {**json_of(metadata), "eval_metrics": dict(figures)}
    texts = {
        card: _between_marks(card_rows(figures, bundle), card),
        metadata: json.dumps(document, indent=2, ensure_ascii=False) + "\n",
    }
    replace_together(texts)
    return metadata, card


def put_figures(rows: Sequence[str], page: Path, part: str = "") -> None:
    """Replaces a part of the lines between the two marks of a page. Raises as `check_marks`."""
    replace_together({page: _between_marks(rows, page, part)})


def check_marks(page: Path) -> None:
    """Raises InputRefusedError unless each of the two marks is on the page once."""
    _between_marks((), page)


def _between_marks(rows: Sequence[str], page: Path, part: str = "") -> str:
    """The text of a page with these rows as one of the parts between its marks: "" (figures), "certificate" or "speed"."""

    def block(match: re.Match[str]) -> str:
        figures, *others = _PART.split(match[0][len(match[1]) : -len(match[2])])
        parts = {"": figures} | dict(zip(others[::2], others[1::2], strict=True)) | {part: "\n".join([*rows, ""])}
        return match[1] + "".join(f"<!-- {name} -->\n" * bool(name) + parts[name] for name in parts) + match[2]

    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    # A function as replacement, since `re` would read the backslashes of escaped cells as references to groups.
    text, count = CARD_FIGURES.subn(block, text)
    if count != 1:
        raise InputRefusedError(
            f"{page.parent.name}/{page.name} has {count} figure block(s); one between the lines <!-- figures --> and "
            "<!-- end of figures --> is needed; add them"
        )
    return text


def put_certificate(bundle: Bundle) -> list[Path]:
    """Writes into a bundle's card what certifies its exports, for its weights and calibration as they are.

    Returns:
        The card; nothing where there is none with marks, and nothing was written.
    """
    card = bundle.root / CARD
    try:
        check_marks(card)
    except InputRefusedError:
        return []
    put_figures(certificate_rows(bundle), card, "certificate")
    return [card]


def certificate_rows(bundle: Bundle) -> list[str]:
    """A table of the exports, and a table of what `bundle certify` found for each engine that computes in fewer bits."""
    document = parity_of(bundle)
    head = "export", "precision", "sha256", "largest difference of probabilities", "labels that differ"
    exports = [
        (
            one["made_with"],
            precision,
            f"`{one['sha256'][:16]}…`",
            f"{one[precision]['probabilities_apart']:.1g}{', on average' if precision == 'int8' else ''}",
            f"{one[precision]['labels_changed']} of {one[precision]['labels']}",
        )
        for one in document.get("exports", {}).values()
        for precision in ({"int8", "float32"} & one.keys())
    ]
    rows = ["Exports, beside torch on three made windows:", "", *table(head, exports)] if exports else []
    for name, entry in document.get("results", {}).items():
        engine, precision, setting = name.split(" ", 2)
        key = stated_key(bundle, replace(ResultSettings.of_key(f"{engine} {precision}"), tta=setting == "tta"))
        is_of_this = entry["export_sha256"] == export_named(bundle, engine, precision)
        if is_of_this and entry["fitted_to"] == fitted_to(bundle, key):
            rows += ["", *_result_rows(engine, precision, setting, entry)]
    return rows


def _result_rows(engine: str, precision: str, setting: str, entry: Mapping[str, Any]) -> list[str]:
    export = f", export `{entry['export_sha256'][:16]}…`" if entry["export_sha256"] else ""
    differ = ", ".join(f"{what} in {plural(count, 'case')}" for what, count in entry["changed"].items())
    figures = [
        (
            (_SCORES | _ERRORS)[one["score"]],
            *(number(one[name], 4) for name in ("old", "new")),
            number(one["difference"], 5),
            between(None if None in one["interval"] else one["interval"], 5) or "none",
            "–" if one["margin"] is None else f"{one['margin']:g}",
            one["outcome"],
        )
        for one in entry["figures"]
    ]
    head = "score", "torch, float32", precision, "difference", "95 % interval by subject", "loss allowed", "outcome"
    return [
        f"**{engine} in {precision}: {entry['outcome']}** (setting {setting}{export}), on {plural(entry['cases'], 'case')} of "
        f"{plural(entry['subjects'], 'subject')}; {entry['reason']}. What differs: {differ}.",
        "",
        *table(head, figures),
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return [first, "|---" * len(head) + "|", *others]


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
        scores=_SCORES,
        worth_showing=WORTH_SHOWING,
        names=_STATEMENT_NAMES,
        number=number,
        between=between,
        percent=percent,
        plural=plural,
        inference=inference_facts(figures.get("inference") or figures.get(OUT_OF_FOLD, {}).get("inference")),
    )
    return rendered.split("\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

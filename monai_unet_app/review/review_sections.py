"""The content of a review, in blocks that the page and the PDF each render in their own way."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from monai_unet_app.bundle_folder import figure_of
from monai_unet_app.confidence.size_words import amount, digits, interval, interval_text, size_text, unit
from monai_unet_app.report.blocks import (
    Block,
    Cell,
    Conclusion,
    Facts,
    Heading,
    Lines,
    Picture,
    Table,
    Text,
    Title,
    Tone,
)
from monai_unet_app.report.words import percent, plural

from .key_images import KeySection, side_by_side
from .patient import headline
from .reviewed_case import ReviewedCase, counts_objects

MARK = "Research use only, unverified: computed by a machine, not checked by a person. Not for diagnosis."
VERDICTS: dict[str | None, tuple[str, Tone]] = {
    "accept": ("The quality gate accepts this result", "good"),
    "review": ("The quality gate asks for a second look", "bad"),
    "reject": ("The quality gate rejects this result", "bad"),
    None: ("No quality gate has judged this result", ""),
}
_BAND = re.compile(r"^ece_band_([\d.]+)(mm|px)$")


def gate(case: ReviewedCase) -> list[Block]:
    """The quality gate's verdict, and its reasons if it has some."""
    assessment = case.document["assessment"] or {}
    verdict, reasons = Conclusion(*VERDICTS[assessment.get("verdict")]), assessment.get("reasons")
    return [verdict, *([Lines(tuple(("bad", "Reason:", reason) for reason in reasons))] if reasons else [])]


def structure_table(case: ReviewedCase) -> Table:
    """Size and number of objects with intervals, change, and figures of the gate: a row for each structure and each whole."""
    assessment = case.document["assessment"] or {}
    coverage, bound = assessment.get("interval_coverage"), assessment.get("dice_coverage")
    graded = any("dice_at_least" in row or "predicted_dice" in row for row in case.rows)
    further = {"Number": counts_objects(case.document), "Change": case.prior, "Gate, Dice": graded}
    shown = [name for name, is_shown in further.items() if is_shown]
    wholes = case.document.get("wholes", [])
    lines = [(row["label"], row, _grade(row, bound)) for row in case.rows]
    lines += [(f"{whole['label']}, whole", whole, Cell("")) for whole in wholes]
    table = []
    for name, row, grade in lines:
        change = _change(row, _earlier_row(row, case.prior)) if case.prior else ""
        cells = {"Number": _number(row, coverage), "Change": change, "Gate, Dice": grade}
        size = Cell(size_text(row), _interval_text(row, coverage))
        table.append((name, size, *(cells[column] for column in shown)))
    return Table(("Structure", "Size", *shown), tuple(table))


def statements(case: ReviewedCase) -> list[str]:
    """Sentences about the model and about this result."""
    sentences = [calibration_sentence(case)]
    assessment = case.document["assessment"]
    stated = assessment or {}
    if assessment is None:
        sentences.append("The model states nothing about single results: there is no interval and no quality gate.")
    elif assessment["shift"] is not None:
        unlike = "unlike" if assessment["shift"] > assessment["shift_limit"] else "like"
        sentences.append(
            f"The image is {unlike} the images on which the model was trained (distance {assessment['shift']:.2g}, flagged "
            "above "
            f"{assessment['shift_limit']:.2g})."
        )
    if stated.get("interval_images"):
        sentences.append(
            "The intervals are the wider intervals, for images of other scanners and hospitals than those of the calibration."
        )
    if any("dice_at_least" in row and "predicted_dice" not in row for row in case.rows):
        correlation = stated.get("dice_rank_correlation", 0)
        sentences.append(
            "No Dice is predicted for structures that look fine, only a lower bound: for subjects that the model had not "
            "seen, its "
            f"predictions hardly distinguished better from worse results of this kind (rank correlation {correlation:.2f})."
        )
    if case.prior is not None:
        sentences.append(prior_sentence(case))
    if case.uncertainty is None:
        sentences.append("Uncertainty is not shown: the result was delivered without it.")
    if not case.has_labels:
        sentences.append("There is no outline to look at: the result was delivered without its labels.")
    return sentences


def calibration_sentence(case: ReviewedCase) -> str:
    """The measured calibration error of the model, in a sentence."""
    if case.bundle is None:
        return "The model is not available here, so its calibration is not stated; see its card."
    measured = case.bundle.measured
    entries = [(key, figure_of(measured[key])) for key in measured if key.startswith("ece_")]
    errors = [f"{percent(value, 2)} {_where(key)}" for key, value in entries if value is not None]
    if not errors:
        return "The model's calibration was not measured."
    count = measured.get("subjects")
    subjects = plural(count, "test subject") if isinstance(count, int) else "its test subjects"
    off = " and ".join(errors)
    return f"On {subjects} the model's probabilities were off by {off} on average (expected calibration error)."


def prior_sentence(case: ReviewedCase) -> str:
    """The case and the model of the earlier result, and whether both results are known to be of the same patient."""
    assert case.prior is not None
    earlier = case.prior["bundle"]
    is_same = earlier["sha256"] == case.document["bundle"]["sha256"]
    model = "the same model" if is_same else f"another model ({earlier['name']} {earlier['version']})"
    checked = (
        "Both are of the same patient, by the ID and the date of birth in their images."
        if case.same_patient
        else "A result names no patient: it is not checked here that both are of the same patient."
    )
    return f"The earlier sizes are of the case {case.prior['case']}, computed by {model}. {checked}"


def facts(case: ReviewedCase) -> dict[str, str]:
    """Model, settings and source."""
    document, source = case.document, case.document["source"]
    bundle, unit = document["bundle"], source["unit"]
    size = " x ".join(str(n) for n in source["shape"])
    spacing = " x ".join(f"{step:g}" for step in source["spacing"])
    rows = {
        "Case": case.id,
        "Model": f"{bundle['name']} {bundle['version']}, sha256 {bundle['sha256'][:16]}",
        "Settings": _settings(document["settings"]),
        "Software": f"{document['software']['name']} {document['software']['version']}",
        "Image": f"{source['modality'] or source['kind']}, {size} voxels of {spacing} {unit}",
        "Result": f"sha256 {case.result_sha256[:16]}",
    }
    if source["notes"]:
        rows["Reading"] = "; ".join(source["notes"])
    if case.bundle and case.bundle.metadata.get("intended_use"):
        rows["Intended use"] = str(case.bundle.metadata["intended_use"])
    return rows


def _settings(settings: Mapping[str, Any]) -> str:
    if "device" not in settings:
        return "not known: labels of another program"
    return f"{settings['device']}, {'with' if settings['tta'] else 'without'} mirror images"


def paper(case: ReviewedCase, patient: Mapping[str, str], sections: list[KeySection]) -> Iterator[Block]:
    """The review on paper: the content of the page without the viewer, and lines for a handwritten decision."""
    verdict, *reasons = gate(case)
    yield Title(headline(patient, case.id))
    yield verdict
    yield Text(MARK)
    yield from reasons
    if patient:
        yield Facts(patient)
    yield Heading("Structures")
    yield structure_table(case)
    for sentence in statements(case):
        yield Text(sentence, note=True)
    yield Heading("Key images")
    captions = " ".join(f"{section.title}: {section.caption}." for section in sections)
    yield Picture(lambda: side_by_side(sections), "Key images", captions)
    yield Heading("Decision")
    yield Text("accepted \u25a1      corrected \u25a1      rejected \u25a1")
    yield Text("Name, date, signature: " + "_" * 60)
    yield Text(
        "A decision on this sheet is for the paper file only; it changes no report and verifies nothing.", note=True
    )
    yield Heading("How it was made")
    yield Facts(facts(case))


def _where(key: str) -> str:
    band = _BAND.match(key)
    return f"within {band[1]} {band[2]} of the surface" if band else "over the whole image"


def _interval_text(row: Mapping[str, Any], coverage: float | None) -> str:
    """The interval of a size, and the share of cases in which such an interval contains the true size."""
    if row.get("cut_off"):
        return "touches the border of the image: part may be missing, no interval"
    text = interval_text(amount(row), interval(row), unit(row))
    return text and text + _often(coverage)


def _number(row: Mapping[str, Any], coverage: float | None) -> Cell:
    """The number of objects of a structure, with its interval if that is stated."""
    text = interval_text(row.get("objects", 0), row.get("objects_interval"), "objects")
    return Cell(str(row.get("objects", "")), text and text + _often(coverage))


def _earlier_row(row: Mapping[str, Any], prior: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of the earlier result for the same structure, or for the same whole with the same parts."""
    key = (row["label"], row.get("parts"))
    entries = [*reversed(prior["structures"]), *prior.get("wholes", [])]
    return next((entry for entry in entries if (entry["label"], entry.get("parts")) == key), None)


def _often(coverage: float | None) -> str:
    return f" in {percent(coverage)}".replace(" %", "\u00a0%") if coverage else ""


def _change(row: Mapping[str, Any], before: Mapping[str, Any] | None) -> Cell:
    """The change from the earlier size, and whether the intervals of the two sizes overlap, so that it may be no change."""
    if before is None:
        return Cell("–", "not present before")
    change, old = amount(row) - amount(before), amount(before)
    part = f"{100 * change / old:+.1f} %" if old else "from zero"
    intervals = interval(row), interval(before)
    below = f"from {size_text(before)}"
    if intervals[0] and intervals[1]:
        apart = intervals[0][0] > intervals[1][1] or intervals[1][0] > intervals[0][1]
        below += ", intervals do not overlap" if apart else ", intervals overlap"
    return Cell(f"{change:+.{digits(amount(row), unit(row))}f} {unit(row)} ({part})", below)


def _grade(row: Mapping[str, Any], coverage: float | None) -> Cell:
    """The gate's verdict with the Dice that it predicts and the lower bound of the Dice."""
    if "predicted_dice" not in row and "dice_at_least" not in row:
        return Cell("–")
    verdict = row.get("verdict")
    below = f"at least {row['dice_at_least']:.2f}{_often(coverage)}" if "dice_at_least" in row else ""
    dice = f", {row['predicted_dice']:.2f}" if "predicted_dice" in row else ""
    return Cell((verdict or "–") + dice, below, VERDICTS[verdict][1])

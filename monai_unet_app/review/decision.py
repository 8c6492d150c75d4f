"""A reader's decision about a result, and what follows from it: a verified report, a record, or a new training case."""

from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dicom_io.sr import Verification
from dicom_io.volume import Volume
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.data.schemas import validate, write_new_json
from monai_unet_app.errors import InputRefusedError, UsageError, refusing_as

from .correction import Correction, correction_document, read_correction, store_training_case
from .follow_up import FollowUp, instance_uid, write_follow_up
from .reviewed_case import (
    ReviewedCase,
    file_name,
    find_result,
    labels_file,
    named_file,
    read_json,
    read_result,
    read_reviewed,
)

SCHEMA_VERSION = "1.0"
Decision = Literal["accepted", "corrected", "rejected"]


@dataclass(frozen=True)
class ReviewDecision:
    """A reader's decision about one result.

    Attributes:
        case: Name of the case.
        result_sha256: Hex digest of the `result.json` that was reviewed.
        labels_sha256: Hex digest of the file whose outlines were reviewed; None for a result without labels.
        decision: "accepted", "corrected" or "rejected".
        comment: In the reader's words.
        decided_at: Time by the clock of the page's computer, which may be wrong. A decision counts from when it is applied.
        draft: True if the page was opened from disk and saved the decision, so that the reader is unknown.
    """

    case: str
    result_sha256: str
    labels_sha256: str | None
    decision: Decision
    comment: str
    decided_at: datetime
    draft: bool

    @classmethod
    def from_document(cls, document: Any) -> "ReviewDecision":
        """From the JSON that a page sends or saves. Raises InputRefusedError if it breaks the schema `review_decision`."""
        validate(document, "review_decision")
        try:
            decided_at = datetime.fromisoformat(document["decided_at"])
        except ValueError as error:
            raise InputRefusedError(
                f"the decision's decided_at is not a time ({error}); send the page's own decision"
            ) from error
        values = {field.name: document[field.name] for field in fields(cls)}
        return cls(**values | {"decided_at": decided_at})

    def document(self) -> dict[str, Any]:
        """The JSON of the decision, as a page writes it."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "decided_at": self.decided_at.isoformat()}


def read_decision(path: Path) -> ReviewDecision:
    """A decision that a page saved. Raises InputRefusedError if it cannot be read or breaks its schema."""
    return ReviewDecision.from_document(read_json(path, "a decision of a review page"))


@dataclass(frozen=True)
class Reviewer:
    """The person who answers for a decision.

    Attributes:
        name: As in DICOM, Family^Given^Middle^Prefix^Suffix.
        organization: The organization that the person belongs to.
    """

    name: str
    organization: str


@dataclass(frozen=True)
class DecisionContext:
    """The reviewer of a decision, and the inputs and folders that the decision needs.

    Attributes:
        reviewer: The person signed in at a node, or named by the user who applies a draft. Without a reviewer nothing is
            verified.
        image: The image that the result was made from; needed for a correction.
        correction: The corrected mask; needed for a correction, and only then.
        training: Folder that gets the corrected case to train on; None: the correction is only measured.
        subject: Pseudonym of the patient in that folder, as in `store_training_case`.
        variants: Folder whose subfolders hold the same result in several encodings; the objects that follow from the decision
            are written for each, into a subfolder of the same name. None: there is only the result itself.
        delivered: The result was sent, so that it must be rejected at its destinations.
        superseded: Folders of earlier versions of the result that were sent, with the subfolders of `variants`; they are
            rejected too.
        applied_at: Time from which the decision counts, by the clock of this computer; None: now.
    """

    reviewer: Reviewer | None = None
    image: Path | Volume | None = None
    correction: Path | None = None
    training: Path | None = None
    subject: str | None = None
    variants: Path | None = None
    delivered: bool = False
    superseded: tuple[Path, ...] = ()
    applied_at: datetime | None = None


def apply_decision(
    review: ReviewDecision, result: Path, output: Path, context: DecisionContext | None = None
) -> dict[str, Any]:
    """Carries out a decision, writes its record and gives the content of the record.

    - accepted: if there is a reviewer and the result has a structured report, a VERIFIED version of the report is written as
      `<case>_sr_verified.dcm`; if not, the record has the reason.
    - corrected: the correction is measured and becomes a training case. If there is a reviewer, the corrected objects are
      written as `<case>_corrected_<kind>.dcm`.
    - rejected: only the record is written.
    - If the result or an earlier version was sent, and a reviewer corrected or rejected it, a rejection note is written as
      `<case>_rejection.dcm`.

    Args:
        review: The decision about this result.
        result: Its `<case>_result.json`, or the folder with it.
        output: Gets the record `<case>_decision_<time>.json` (schema `review_record`) with the time at which it is applied, and
            the objects. No record replaces another.
        context: The reviewer, and the inputs and folders that the decision needs.

    Raises:
        InputRefusedError: The decision is about another result, there is nothing to accept, the result was accepted before, or
            the correction does not fit.
        UsageError: The decision is a correction and no corrected mask is named, or the other way round.
    """
    context = context or DecisionContext()
    path = find_result(result)
    document = read_result(path)
    _check_about(review, path, document)
    _check_given(review, context)
    _check_not_accepted(review, output)
    moment = context.applied_at or datetime.now(UTC)
    # A correction is read and measured first: if it does not fit, nothing has been written yet
    correction = measured = None
    if context.image is not None and context.correction is not None:
        case = read_reviewed(path, context.image)
        correction = read_correction(context.correction, case)
        measured = _measured_and_stored(case, correction, context)
    made = _follow_up(review, path, output, context, moment, correction)
    report, why_not = _verified(review, path, document, context, made)
    content = review.document()
    record = {
        "page_time": content.pop("decided_at"),
        **content,
        "bundle": document["bundle"],
        "applied_at": moment.isoformat(),
        "reviewer": None if context.reviewer is None else asdict(context.reviewer),
        "report": report,
        "not_verified": why_not,
        "correction": measured,
        "objects": [_object_entry(kind, file, output) for kind, file in made.items()],
    }
    # UTC, so that the names sort by time through a change of clocks
    stamp = moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    # The record last: it names the objects, so all of them exist when it does
    write_new_json(record, output / f"{file_name(review.case)}_decision_{stamp}.json", "review_record")
    return record


def _check_about(review: ReviewDecision, path: Path, document: dict[str, Any]) -> None:
    labels = labels_file(path, document)
    # By digests, because a result may have been computed anew under the same names while the reader was looking
    current = (document["case"], file_sha256(path), None if labels is None else file_sha256(labels))
    if current != (review.case, review.result_sha256, review.labels_sha256):
        raise InputRefusedError(
            f"the decision is about the result {review.result_sha256[:12]} of {review.case}, {path.name} is {current[1][:12]} "
            f"of {current[0]}, or its labels have changed since; exactly the files that were reviewed are needed; "
            "review this result again"
        )
    if review.decision == "accepted" and labels is None:
        raise InputRefusedError(
            f"{review.case} was delivered without labels, so there is nothing to accept; reject it, or predict it again "
            "with --deliver-rejected and review that"
        )


def _check_given(review: ReviewDecision, context: DecisionContext) -> None:
    corrects = review.decision == "corrected"
    if corrects and (context.correction is None or context.image is None):
        raise UsageError("the decision is a correction; the corrected mask and the image are needed; give both")
    if not corrects and context.correction is not None:
        raise UsageError(
            f"the decision is {review.decision!r} and a corrected mask is given; one of the two is wrong; remove one"
        )


def _check_not_accepted(review: ReviewDecision, output: Path) -> None:
    report = output / f"{file_name(review.case)}_sr_verified.dcm"
    if report.exists():
        raise InputRefusedError(
            f"{review.case} was accepted already, and {report.name} says so: a result is decided on once; if that was a "
            "mistake, remove the verified report from the archive and from this folder, then decide again"
        )


def _follow_up(
    review: ReviewDecision,
    path: Path,
    output: Path,
    context: DecisionContext,
    moment: datetime,
    correction: Correction | None,
) -> dict[str, Path]:
    """The objects that follow from a decision about the result at `path`, by kind; for its variants too, if it has some."""
    if context.reviewer is None:
        return {}
    with refusing_as(review.case):
        verification = Verification(context.reviewer.name, context.reviewer.organization, moment, review.comment)
    follow_up = FollowUp(verification, review.decision == "accepted", correction, context.delivered)
    variants = [path] if context.variants is None else sorted(context.variants.rglob("*_result.json"))
    root, objects = context.variants or path.parent, dict[str, Path]()
    for variant in variants:
        subfolder = variant.parent.relative_to(root)
        superseded = tuple(file for folder in context.superseded for file in _same_variant(folder, subfolder))
        requested = replace(follow_up, superseded=superseded)
        # A destination gets the objects in the encoding of its result; the record names those of the reviewed result
        written = write_follow_up(requested, variant, output / subfolder, file_name(review.case))
        objects = written if variant.samefile(path) else objects
    return objects


def _same_variant(folder: Path, subfolder: Path) -> list[Path]:
    """The `result.json` files of the same variant of another version; of all its variants if it lacks this variant."""
    return sorted((folder / subfolder).glob("*_result.json")) or sorted(folder.rglob("*_result.json"))


def _verified(
    review: ReviewDecision, path: Path, document: dict[str, Any], context: DecisionContext, made: dict[str, Path]
) -> tuple[dict[str, str] | None, str | None]:
    """(the record's entry for the verified report, None), or (None, the reason for its absence)."""
    if review.decision == "rejected":
        return None, "the result was rejected"
    if "sr" not in document["files"]:
        return None, "the result has no structured report"
    if context.reviewer is None:
        return None, "no person is responsible for the decision"
    target = made.get("verified") or made.get("corrected sr")
    if target is None:
        return None, f"the result was {review.decision}, and no report can be written for its source"
    uids = [instance_uid(file) for file in (target, named_file(path, document, "sr"))]
    return {"file": target.name, "sop_instance_uid": uids[0], "predecessor_sop_instance_uid": uids[1]}, None


def _object_entry(kind: str, file: Path, output: Path) -> dict[str, str]:
    """The entry of a record for an object, or for a folder of captures."""
    uid = instance_uid(sorted(file.rglob("*.dcm"))[0] if file.is_dir() else file)
    return {"kind": kind, "file": str(file.relative_to(output)), "sop_instance_uid": uid}


def _measured_and_stored(case: ReviewedCase, correction: Correction, context: DecisionContext) -> dict[str, Any]:
    measured, stored = correction_document(correction, case), None
    if context.training is not None:
        stored = store_training_case(correction, case, measured, context.training, context.subject)
    return {**measured, "training_case": stored}

"""The proofs of a report and of its verified version, through `raw_parser`."""

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_io.errors import GeometryProofError
from dicom_io.objects import proof_headers
from dicom_io.objects.raw_parser import items, parse_file, referenced_uids
from dicom_io.volume import Volume

CONTENT = Tag("ContentSequence")
OWN_REFERENCES = (CONTENT, Tag("CurrentRequestedProcedureEvidenceSequence"), Tag("PertinentOtherEvidenceSequence"))
"""Sequences with references of the report itself; those in the attributes of patient and study come from the source."""
OWN_OF_VERIFIED = (
    "SOPInstanceUID SeriesInstanceUID SeriesNumber SeriesDescription InstanceNumber VerifyingObserverSequence "
    "PredecessorDocumentsSequence VerificationFlag PreliminaryFlag ContentSequence"
)
"""Attributes that verification changes; in the content it only adds a comment."""


def prove_verified(path: Path, report: Path, comment: Sequence[str] = ()) -> None:
    """Pass if the two reports, read by a second reader, differ only in what verification changes."""
    with proof_headers.deleting(path, "verified SR") as after:
        before, own = parse_file(report), set(map(Tag, OWN_OF_VERIFIED.split()))
        tags = (before.keys() | after.keys()) - own
        # Tags of group 2 are of the file, not of the object (PS3.10 7.1).
        differing = sorted(tag for tag in tags if tag >> 16 > 2 and before.get(tag) != after.get(tag))
        content, earlier_content = items(after, CONTENT), items(before, CONTENT)
        if content[: len(earlier_content)] != earlier_content or len(content) != len(earlier_content) + len(comment):
            differing.append(CONTENT)
        if differing:
            raise GeometryProofError(
                f"it differs from its predecessor in {len(differing)} attributes that verification does not change, the first "
                f"({differing[0] >> 16:04x},{differing[0] & 0xFFFF:04x})"
            )


def prove_report(path: Path, source: Volume, segmentation: Dataset) -> None:
    """Pass if the report, read back, refers to its segmentation and otherwise only to slices of the source and its further
    channels.

    Raises:
        GeometryProofError: It does not; the file is deleted.
    """
    with proof_headers.deleting(path, "SR") as written:
        references = set(referenced_uids({tag: written[tag] for tag in OWN_REFERENCES if tag in written}))
        behind = (source.provenance, *source.provenance.others)
        own, slices = str(segmentation.SOPInstanceUID), {uid for one in behind for uid in one.sop_instance_uids}
        strangers = references - slices - {own}
        if own not in references or strangers:
            raise GeometryProofError(
                f"it refers to {len(references)} instances, {len(strangers)} of them neither its segmentation nor a slice of "
                "the source"
            )

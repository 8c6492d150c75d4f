"""The proofs of a report and of its verified version, through `raw_parser`."""

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError
from dicom_io.objects.raw_parser import items, parse_file, referenced_uids
from dicom_io.volume import Volume

OWN_REFERENCES = (
    0x0040A730,
    0x0040A375,
    0x0040A385,
)  # content, evidence; what patient and study bring along is not ours
CONTENT = 0x0040A730
OWN_OF_VERIFIED = frozenset(
    {
        0x00080018,
        0x0008103E,
        0x0020000E,
        0x00200011,
        0x00200013,
        0x0040A073,
        0x0040A360,
        0x0040A493,
        0x0040A496,
        CONTENT,
    }
)  # instance, series with number and description, observer, predecessor, two flags; in the content only a comment is added


def prove_verified(path: Path, report: Path, comment: Sequence[str] = ()) -> None:
    """Pass if the two reports, read by a reader of its own, differ in what verification changes and in nothing else."""
    before, after = (dict(parse_file(file)) for file in (report, path))
    tags = (before.keys() | after.keys()) - OWN_OF_VERIFIED
    differing = sorted(tag for tag in tags if tag >> 16 > 2 and before.get(tag) != after.get(tag))
    content, kept = items(after, CONTENT), items(before, CONTENT)
    if content[: len(kept)] != kept or len(content) != len(kept) + len(comment):
        differing.append(CONTENT)
    if differing:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(
            f"the verified SR was deleted: it differs from its predecessor in {len(differing)} attributes that verification "
            f"does not change, the first ({differing[0] >> 16:04x},{differing[0] & 0xFFFF:04x})"
        )


def prove_report(path: Path, source: Volume, segmentation: Dataset) -> None:
    """Pass if the report, read back, refers to its own segmentation and to nothing but that and slices of the source.

    Raises:
        GeometryProofError: It does not; the file is deleted.
    """
    try:
        written = parse_file(path)
        named = set(referenced_uids({tag: written[tag] for tag in OWN_REFERENCES if tag in written}))
        own, slices = str(segmentation.SOPInstanceUID), set(source.provenance.sop_instance_uids)
        strangers = named - slices - {own}
        if own not in named or strangers:
            raise GeometryProofError(
                f"it refers to {len(named)} instances, {len(strangers)} of them neither its segmentation nor a slice of "
                "the source"
            )
    except GeometryProofError as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the SR was deleted: {error}") from error

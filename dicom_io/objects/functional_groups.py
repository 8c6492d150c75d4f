"""The functional groups of a frame of any multi-frame object, and references to frames, through pydicom."""

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue


def named_sources(dataset: Dataset, number: int) -> tuple[str, ...]:
    """The keys (`Slice.key`) of all slices from which a frame (from 1) was derived, by its own statement."""
    derivations = items_of(dataset, number, "DerivationImageSequence")
    images = [item for derivation in derivations for item in derivation.get("SourceImageSequence") or []]
    return tuple(key for item in images for key in reference_keys(item))


def reference(sop_class_uid: str, sop_instance_uid: str, frame: int | None = None) -> Dataset:
    """A reference to an instance, or to one of its frames (from 1); PS3.3 table 10-3."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def reference_keys(item: Dataset) -> tuple[str, ...]:
    """The keys (`Slice.key`) of the slices in a reference; ReferencedFrameNumber may have several values."""
    frames = item.get("ReferencedFrameNumber")
    uid = str(item.ReferencedSOPInstanceUID)
    if not frames:
        return (uid,)
    return tuple(f"{uid}#{int(frame)}" for frame in (frames if isinstance(frames, MultiValue) else [frames]))


def items_of(dataset: Dataset, number: int, keyword: str) -> list[Dataset]:
    """All items of a functional group of a frame (from 1): its own, else the shared ones."""
    own = dataset.PerFrameFunctionalGroupsSequence[number - 1]
    for group in (own, *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]):
        if group.get(keyword):
            return list(group[keyword].value)
    return []


def gap_of(dataset: Dataset, number: int) -> float | None:
    """SpacingBetweenSlices of a frame (from 1) in mm; None where it is absent or 0."""
    gap_mm = macro(dataset, number, "PixelMeasuresSequence").get("SpacingBetweenSlices")
    return abs(float(gap_mm)) or None if gap_mm else None


def macro(header: Dataset, frame_number: int | None, keyword: str) -> Dataset:
    """The item of a functional group for one frame (from 1): its own, else the shared one, else an empty item.

    The header itself where there are no frames (`frame_number` is None): there the attributes stand at the top.
    """
    if frame_number is None:
        return header
    return next(iter(items_of(header, frame_number, keyword)), Dataset())

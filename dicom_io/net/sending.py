"""C-STORE as user (PS3.4 B): offers each file as it is, and believes only what the other side acknowledges.

A file goes in its own transfer syntax if the peer takes that. Otherwise an uncompressed one is rewritten in another
uncompressed syntax, and a compressed one is decompressed; the outcome says so. The instance keeps its UID.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import PresentationContext

from dicom_io.errors import NetworkError, UnreadableFileError
from dicom_io.net.association import LABEL_MAP, MOST_CONTEXTS, VERIFICATION, Link, associated, checked_status, context
from dicom_io.net.decompress import decompress
from dicom_io.net.destination import Destination
from dicom_io.net.outcome import Outcome, meaning, state_of
from dicom_io.net.outgoing import Each, Outgoing
from dicom_io.reading.instances import READ_ERRORS, load_dataset

TRIES = 3
PAUSE_S = 0.5
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_MEDIUM = 0  # PS3.7 9.1.1.1.7: neither more nor less urgent than others


class _NotOfferedError(Exception):
    """The peer takes a file in no form that we can make of it."""


def store(destination: Destination, items: Sequence[Outgoing], each: Each = lambda outcome: None) -> list[Outcome]:
    """Sends files in the order given, over as many associations as it takes.

    A broken association is opened again for what is left, at most `TRIES` times for one batch of at most 128 presentation
    contexts. Then what was not acknowledged is "failed", and so is all that follows it.

    Args:
        destination: Its peer speaks DIMSE.
        items: What is sent.
        each: Called with every outcome as soon as it is known.

    Returns:
        One outcome an item, in their order.

    Raises:
        NetworkError: The first association could not be opened: nothing was sent.
    """
    outcomes: list[Outcome] = []
    for batch in batches(items):
        broken = _send_batch(destination, batch, outcomes, each)
        if broken is not None:
            if not outcomes and broken.opening:
                raise broken.error
            for item in items[len(outcomes) :]:
                _note(item.outcome("failed", str(broken.error)), outcomes, each)
            break
    return outcomes


def batches(items: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Runs of items that one association has presentation contexts for, in their order."""
    batch, needed = list[Outgoing](), set[tuple[str, ...]]()
    for item in items:
        more = {(item.sop_class_uid,), (item.sop_class_uid, item.transfer_syntax_uid)}  # as in `proposals`
        if len(needed | more) > MOST_CONTEXTS - 1:
            yield batch
            batch, needed = [], set()
        batch.append(item)
        needed |= more
    if batch:
        yield batch


def proposals(items: Sequence[Outgoing]) -> list[PresentationContext]:
    """Every SOP class in the files' own transfer syntaxes, one context each, and in an uncompressed one.

    Verification is proposed too: a peer that takes none of the classes then still answers, and each file has its outcome.
    """
    own = dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in items)
    classes = dict.fromkeys(sop_class for sop_class, _ in own)
    return [
        context(VERIFICATION, UNCOMPRESSED),
        *(context(sop_class, [syntax]) for sop_class, syntax in own),
        *(context(sop_class, UNCOMPRESSED) for sop_class in classes),
    ]


class _Broken:
    """Why sending stopped, and whether it was before an association stood."""

    def __init__(self, error: NetworkError, opening: bool) -> None:
        self.error, self.opening = error, opening


def _send_batch(destination: Destination, batch: list[Outgoing], outcomes: list[Outcome], each: Each) -> _Broken | None:
    """Adds an outcome for each item, or says what broke after the last try."""
    start, broken = len(outcomes), None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S * attempt)
        rest = batch[len(outcomes) - start :]
        opening = True
        try:
            with associated(destination, proposals(rest)) as link:
                opening = False
                for item in rest:
                    _note(_send(link, item), outcomes, each)
            return None
        except NetworkError as error:
            broken = _Broken(error, opening)
            if opening and not outcomes and not attempt:
                return broken  # nothing ever stood: say so at once
    return broken


def _note(outcome: Outcome, outcomes: list[Outcome], each: Each) -> None:
    outcomes.append(outcome)
    each(outcome)


def _send(link: Link, item: Outgoing) -> Outcome:
    accepted = {
        UID(one.transfer_syntax[0])
        for one in (link.association.accepted_contexts if link.association else [])
        if one.abstract_syntax == item.sop_class_uid
    }
    if not accepted:
        return item.outcome("refused", f"the peer does not take {_named(item.sop_class_uid)}")
    try:
        dataset = load_dataset(item.file, with_pixels=True)
        note = _fitted(dataset, item, accepted)
        status = link.ask(lambda association: association.send_c_store(dataset, priority=_MEDIUM))
    except _NotOfferedError as error:
        return item.outcome("refused", str(error))
    except UnreadableFileError as error:
        return item.outcome("failed", str(error))
    except (ValueError, AttributeError) as error:  # pynetdicom: cannot be encoded
        return item.outcome("failed", f"it cannot be encoded for the peer ({type(error).__name__})")
    code = checked_status(link, status)
    return item.outcome(state_of(code), meaning(code, "C-STORE"), code, note)


def _named(sop_class: UID) -> str:
    if sop_class == LABEL_MAP:
        return "Label Map Segmentation Storage; write the SEG as binary, or let the peer take unknown SOP classes"
    return str(sop_class.name)


def _fitted(dataset: FileDataset, item: Outgoing, accepted: set[UID]) -> str:
    """Brings a data set into an accepted transfer syntax; says what it did to it.

    Raises:
        _NotOfferedError: There is no way.
    """
    own = item.transfer_syntax_uid
    if own in accepted:
        return ""
    target = next((syntax for syntax in UNCOMPRESSED if syntax in accepted), None)
    if target is None or not own.is_little_endian:
        raise _NotOfferedError(f"the peer does not take {own.name}, nor anything that it can be turned into")
    if not own.is_encapsulated:
        return f"rewritten from {own.name} to {target.name}"  # by pynetdicom
    try:
        decompress(dataset)
    except READ_ERRORS as error:
        raise _NotOfferedError(
            f"the peer takes no {own.name}, and it cannot be decompressed here ({type(error).__name__})"
        ) from error
    return f"decompressed from {own.name} to {target.name}"

"""C-STORE as user (PS3.4 B): offers each file as it is; a file counts as sent only when the other side acknowledges it.

A file goes in its own transfer syntax if the peer takes that. Otherwise an uncompressed file is rewritten in another
uncompressed syntax, and a compressed file is decompressed; the outcome says so. The instance keeps its UID.
"""

import time
from collections.abc import Iterator, Sequence

from pydicom.dataset import FileDataset
from pydicom.uid import UID
from pynetdicom.presentation import PresentationContext

from dicom_io.errors import NetworkError, UnreadableFileError
from dicom_io.kinds import LABEL_MAP_STORAGE
from dicom_io.net import association
from dicom_io.net.decompress import decompress
from dicom_io.net.destination import Destination
from dicom_io.net.outcome import Outcome, meaning, state_of
from dicom_io.net.outgoing import OnOutcome, Outgoing
from dicom_io.reading.instances import READ_ERRORS, load_dataset

TRIES = 3
PAUSE_S = 0.5
_MEDIUM = 0  # PS3.7 9.1.1.1.7: neither more nor less urgent than others


class _NoSyntaxError(Exception):
    """The peer takes no transfer syntax that a file can be brought into."""


def store_instances(
    destination: Destination, items: Sequence[Outgoing], on_outcome: OnOutcome = lambda outcome: None
) -> list[Outcome]:
    """Sends files in the order given, over as many associations as it takes.

    A broken association is opened again for the rest, at most `TRIES` times for one batch of at most 128 presentation
    contexts. After that, files that were not acknowledged are "failed", and so are all that follow.

    Args:
        destination: Its peer speaks DIMSE.
        items: The files to send.
        on_outcome: Called with every outcome as soon as it is known.

    Returns:
        One outcome for each item, in their order.

    Raises:
        NetworkError: The first association could not be opened: nothing was sent.
    """
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        outcomes.append(outcome)
        on_outcome(outcome)

    done = 0
    for batch in batches(items):
        for attempt in range(TRIES):
            time.sleep(PAUSE_S * attempt)
            rest, is_opening = batch[len(outcomes) - done :], True
            try:
                with association.open_association(destination, proposals(rest)) as opened:
                    is_opening = False
                    for item in rest:
                        note(_send(opened, item))
                break
            except NetworkError as error:
                # While nothing is acknowledged, the caller may try everything again. At the first try this error says
                # that the peer cannot be reached; at the last try there is no further try to wait for.
                if is_opening and not outcomes and attempt in (0, TRIES - 1):
                    raise  # nothing was sent
                problem = str(error)
        else:
            for item in items[len(outcomes) :]:
                note(item.outcome("failed", problem))
            break
        done = len(outcomes)
    return outcomes


def batches(items: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Runs of items that one association has presentation contexts for, in their order."""
    batch, needed = list[Outgoing](), set[tuple[str, ...]]()
    for item in items:
        more = {(item.sop_class_uid,), (item.sop_class_uid, item.transfer_syntax_uid)}  # as in `proposals`
        if len(needed | more) > association.MOST_CONTEXTS - 1:
            yield batch
            batch, needed = [], set()
        batch.append(item)
        needed |= more
    if batch:
        yield batch


def proposals(items: Sequence[Outgoing]) -> list[PresentationContext]:
    """Every SOP class in the transfer syntaxes of its files, a context for each, and in uncompressed syntaxes.

    Verification is proposed too: a peer that takes none of the classes then still answers, and each file has its outcome.
    """
    # The peer accepts a single transfer syntax of each context (PS3.8 9.3.3.2), so each syntax has its own context.
    own = dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in items)
    classes = dict.fromkeys(sop_class for sop_class, _ in own)
    return [
        association.presentation_context(association.VERIFICATION),
        *(association.presentation_context(sop_class, [syntax]) for sop_class, syntax in own),
        *(association.presentation_context(sop_class) for sop_class in classes),
    ]


def _send(opened: association.OpenAssociation, item: Outgoing) -> Outcome:
    accepted = {
        UID(context.transfer_syntax[0])
        for context in opened.association.accepted_contexts
        if context.abstract_syntax == item.sop_class_uid
    }
    if not accepted:
        return item.outcome("refused", f"the peer does not take {_class_name(item.sop_class_uid)}")
    try:
        dataset = load_dataset(item.file, with_pixels=True)
        note = _bring_into(accepted, dataset, item)
        status = opened.request(lambda established: established.send_c_store(dataset, priority=_MEDIUM))
    except _NoSyntaxError as error:
        return item.outcome("refused", str(error))
    except UnreadableFileError as error:
        return item.outcome("failed", str(error))
    except (ValueError, AttributeError) as error:  # pynetdicom: cannot be encoded
        return item.outcome("failed", f"it cannot be encoded for the peer ({type(error).__name__})")
    code = opened.checked_status(status)
    return item.outcome(state_of(code), meaning(code, "C-STORE"), code, note)


def _class_name(sop_class: UID) -> str:
    if sop_class == LABEL_MAP_STORAGE:
        return "Label Map Segmentation Storage; write the SEG as binary, or allow unknown SOP classes in the peer"
    return str(sop_class.name)


def _bring_into(accepted: set[UID], dataset: FileDataset, item: Outgoing) -> str:
    """Brings a data set into an accepted transfer syntax; returns a note on the change, empty without one.

    Raises:
        _NoSyntaxError: No accepted syntax can be reached.
    """
    own = item.transfer_syntax_uid
    if own in accepted:
        return ""
    target = next((syntax for syntax in association.UNCOMPRESSED if syntax in accepted), None)
    # Explicit VR Big Endian (retired) is not turned: the bytes of the pixels would have to be swapped too.
    if target is None or not own.is_little_endian:
        raise _NoSyntaxError(f"the peer does not take {own.name}, or any transfer syntax to which it can be converted")
    if not own.is_encapsulated:
        return f"rewritten from {own.name} to {target.name}"  # by pynetdicom
    try:
        decompress(dataset)
    except READ_ERRORS as error:
        raise _NoSyntaxError(
            f"the peer does not take {own.name}, and it cannot be decompressed here ({type(error).__name__})"
        ) from error
    return f"decompressed from {own.name} to {target.name}"

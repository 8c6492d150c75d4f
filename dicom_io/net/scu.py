"""DIMSE services as user: C-ECHO, C-FIND, C-MOVE, C-GET; C-STORE stands in `storage_user` (PS3.4 A, B and C; PS3.7 9.1)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.status import code_to_category

from dicom_io.errors import NetworkError
from dicom_io.net.association import (
    MOST_CONTEXTS,
    VERIFICATION,
    OpenAssociation,
    common_storage_classes,
    dimse_peer,
    open_association,
    presentation_context,
)
from dicom_io.net.destination import Destination
from dicom_io.net.outcome import Fetched, meaning
from dicom_io.net.query import Query, QueryError, retrieve_identifier, retrieve_level
from dicom_io.net.retrieval import OnStored, Retrieval
from dicom_io.net.scp import COMPRESSED, Provider, answer_store, listen_for
from dicom_io.net.storage_user import store_instances
from dicom_io.reading.headers import is_uid
from dicom_io.reading.instances import listed

__all__ = ["echo", "find", "get", "move", "store_instances"]

STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
STUDY_ROOT_MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
STUDY_ROOT_GET = UID("1.2.840.10008.5.1.4.1.2.2.3")

_COUNTS = ("Remaining", "Completed", "Failed", "Warning")
_SOME_FAILED = 0xB000  # PS3.4 C.4.2.1.5: done, some sub-operations failed
_ADVICE = {  # PS3.4 C.4.2.1.5
    0xA801: "register our AE title in the archive, with the host and port to which it can send",  # Move Destination unknown
    0xA702: "use another way to fetch (C-GET, C-MOVE, DICOMweb) or see its log",  # unable to perform sub-operations
}
_USUAL_ADVICE = "look into its log"


def echo(destination: Destination) -> float:
    """Seconds that a C-ECHO took, association included.

    Raises:
        NetworkError: No association, no answer, or a failure.
    """
    started_s = time.monotonic()
    with open_association(destination, [presentation_context(VERIFICATION)]) as opened:
        status = opened.checked_status(opened.request(Association.send_c_echo))
    if status:
        raise _failure(destination, "C-ECHO", f"0x{status:04X}")
    return time.monotonic() - started_s


def find(destination: Destination, query: Query) -> list[Dataset]:
    """The matches of a C-FIND in the Study Root model.

    Raises:
        NetworkError: No association, no answer, or a failure, also after some matches.
    """
    with open_association(destination, [presentation_context(STUDY_ROOT_FIND)]) as opened:
        return _find(opened, query)


def move(destination: Destination, query: Query, folder: Path, on_stored: OnStored = lambda stored: None) -> Fetched:
    """Lets the archive send to a provider of ours that lives as long as the C-MOVE.

    Args:
        destination: Its `receive` is where the archive sends to when it is given our AE title.
        query: Its UIDs say what to fetch; other conditions are not used.
        folder: Gets the instances, as `instance_store.InstanceStore` keeps them.
        on_stored: Called for each instance.

    Raises:
        NetworkError: No association, no answer, a failure, or our port is taken.
    """
    peer, identifier = dimse_peer(destination), retrieve_identifier(query)
    retrieval = Retrieval(folder, query, on_stored)
    provider = Provider(retrieval.store, listen_for(peer), refused=retrieval.note_refusal)
    # The provider listens before the request goes out: the archive sends over an association of its own, which it
    # opens to the Move Destination while the C-MOVE runs (PS3.4 C.4.2).
    with provider, open_association(destination, [presentation_context(STUDY_ROOT_MOVE)]) as opened:
        title = peer.our_ae_title
        counts, failures = _sub_operations(
            opened, "C-MOVE", lambda association: association.send_c_move(identifier, title, STUDY_ROOT_MOVE)
        )
        done = counts.get("Completed", 0) + counts.get("Warning", 0)
        retrieval.wait_for(done, destination.connect_s)  # some archives answer before they have sent
    return retrieval.result(sum(counts.values()) if counts else None, failures)


def get(destination: Destination, query: Query, folder: Path, on_stored: OnStored = lambda stored: None) -> Fetched:
    """Fetches over the association of the request (C-GET); no port of ours need be open.

    The archive is first asked for the SOP classes of the instances; if it gives no answer, common classes are offered.

    Args:
        destination: Its peer speaks DIMSE.
        query: Its UIDs say what to fetch; other conditions are not used.
        folder: Gets the instances, as `instance_store.InstanceStore` keeps them.
        on_stored: Called for each instance.

    Raises:
        NetworkError: No association, no answer, or a failure.
    """
    identifier, retrieval = retrieve_identifier(query), Retrieval(folder, query, on_stored)
    held = _held_classes(destination, query)
    classes = held or common_storage_classes()
    # The C-STORE requests come over our own association, so role selection makes us, the requestor, the provider of
    # the storage classes (PS3.7 D.3.3.4).
    roles = [build_role(sop_class, scp_role=True) for sop_class in classes]
    handlers = [(evt.EVT_C_STORE, answer_store, [retrieval.store, retrieval.note_refusal])]
    with open_association(destination, _get_contexts(classes), roles=roles, handlers=handlers) as opened:
        not_sent = _not_sent_by_get(opened, held)
        counts, failures = _sub_operations(
            opened, "C-GET", lambda association: association.send_c_get(identifier, STUDY_ROOT_GET)
        )
    return retrieval.result(sum(counts.values()) if counts else None, [*failures, *not_sent])


def _find(opened: OpenAssociation, query: Query) -> list[Dataset]:
    model, matches = STUDY_ROOT_FIND, list[Dataset]()
    for status, match in opened.request(lambda association: association.send_c_find(query.identifier(), model)):
        code = opened.checked_status(status)
        if code_to_category(code) == "Pending":
            if match is None:
                raise _failure(opened.destination, "C-FIND", "an answer that cannot be read")
            matches.append(match)
            opened.restart_clock()
            # 1 is the message ID that pynetdicom gives to a C-FIND. Matches that are on their way still come after
            # the cancel; they are cut off at the end.
            if query.limit and len(matches) == query.limit:
                opened.association.send_c_cancel(1, query_model=model)
        elif code and not (query.limit and code_to_category(code) == "Cancel"):
            advice = "change the query or see its log"
            raise _failure(opened.destination, "C-FIND", meaning(code, "C-FIND"), advice)
    return matches[: query.limit or None]


def _held_classes(destination: Destination, query: Query) -> list[str]:
    """SOP classes of the instances to be fetched; empty if the archive does not tell."""
    try:
        with open_association(destination, [presentation_context(STUDY_ROOT_FIND)]) as opened:
            series = [query]
            if retrieve_level(query) == "study":
                matches = _find(opened, Query("series", query.study_instance_uid))
                series = [replace(query, series_instance_uid=str(match.SeriesInstanceUID)) for match in matches]
            images = [image for one_series in series for image in _find(opened, replace(one_series, level="image"))]
            held = list(dict.fromkeys(str(image.get("SOPClassUID") or "") for image in images))
    # The query only serves to propose the right classes; an archive without C-FIND is offered the common classes.
    except (NetworkError, QueryError, AttributeError):
        return []
    # One of the presentation contexts is that of C-GET itself.
    return held if all(map(is_uid, held)) and len(held) < MOST_CONTEXTS else []


def _get_contexts(classes: Sequence[str]) -> list[PresentationContext]:
    """The contexts of C-GET itself, of each class uncompressed and, as far as there is room, in each compressed syntax.

    An archive can then send an image in the syntax in which it holds the image.
    """
    plain = [presentation_context(uid) for uid in (STUDY_ROOT_GET, *classes)]
    compressed = [presentation_context(sop_class, [syntax]) for syntax in COMPRESSED for sop_class in classes]
    return [*plain, *compressed][:MOST_CONTEXTS]


def _not_sent_by_get(opened: OpenAssociation, held: Sequence[str]) -> list[str]:
    """A sentence for each class that the archive has and did not agree to send over this association.

    Raises:
        NetworkError: It does not offer C-GET at all.
    """
    accepted = opened.association.accepted_contexts
    if not any(context.abstract_syntax == STUDY_ROOT_GET for context in accepted):
        raise NetworkError(
            f"{opened.destination.label} does not offer C-GET; C-GET or C-MOVE is needed to fetch; use C-MOVE, with a port "
            "that the archive knows for our AE title"
        )
    agreed = {context.abstract_syntax for context in accepted if context.as_scp}
    return [
        f"the archive does not send {UID(uid).name} by C-GET; use C-MOVE or DICOMweb"
        for uid in held
        if uid not in agreed
    ]


def _sub_operations(
    opened: OpenAssociation, service: str, send: Callable[[Association], object]
) -> tuple[dict[str, int], list[str]]:
    """Runs a C-MOVE or C-GET to its end: the last counts of sub-operations, and a sentence on the failed instances."""
    counts: dict[str, int] = {}
    for status, answer in opened.request(send):
        code = opened.checked_status(status)
        # Each answer counts all sub-operations; the last answer leaves out "remaining" (PS3.4 C.4.2.1.6).
        values = {name: status.get(f"NumberOf{name}Suboperations") for name in _COUNTS}
        counts = {name: int(value) for name, value in values.items() if value is not None} or counts
        if code_to_category(code) == "Pending":
            opened.restart_clock()
            continue
        if code and code != _SOME_FAILED:
            advice = _ADVICE.get(code, _USUAL_ADVICE)
            raise _failure(opened.destination, service, meaning(code, service), advice)
        return counts, _failed_instances(counts, answer)
    raise opened.broken()


def _failed_instances(counts: dict[str, int], answer: Dataset | None) -> list[str]:
    failed = counts.get("Failed", 0)
    if not failed:
        return []
    named = answer.get("FailedSOPInstanceUIDList") if answer is not None else None
    uids = [uid for uid in listed(named) if is_uid(str(uid))]
    return [f"the archive could not send {failed} instance(s)" + (f", the first is {uids[0]}" if uids else "")]


def _failure(destination: Destination, service: str, answer: str, advice: str = _USUAL_ADVICE) -> NetworkError:
    return NetworkError(f"{destination.label} answered {service} with {answer}; success is needed; {advice}")

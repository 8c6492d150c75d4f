"""DIMSE services as user: C-ECHO, C-FIND, C-MOVE, C-GET; C-STORE stands in `sending` (PS3.4 A, B and C; PS3.7 9.1)."""

from __future__ import annotations

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
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    VERIFICATION,
    Link,
    associated,
    checked_status,
    context,
    dimse_peer,
    usual_classes,
)
from dicom_io.net.destination import Destination
from dicom_io.net.outcome import Fetched, meaning
from dicom_io.net.query import Query, QueryError, retrieve_identifier, retrieve_level
from dicom_io.net.retrieved import Arrivals, OnStored
from dicom_io.net.scp import COMPRESSED, Provider, answer_store, listen_for
from dicom_io.net.sending import UNCOMPRESSED, store
from dicom_io.reading.headers import is_uid

__all__ = ["echo", "find", "get", "move", "store"]


_COUNTS = ("Remaining", "Completed", "Failed", "Warning")
_SOME_FAILED = 0xB000  # PS3.4 C.4.2.1.5: done, some sub-operations failed


def echo(destination: Destination) -> float:
    """Seconds that a C-ECHO took, association included.

    Raises:
        NetworkError: No association, no answer, or a failure.
    """
    started = time.monotonic()
    with associated(destination, [context(VERIFICATION, UNCOMPRESSED)]) as link:
        status = checked_status(link, link.ask(Association.send_c_echo))
    if status:
        raise _failed(destination, "C-ECHO", f"0x{status:04X}", "look into its log")
    return time.monotonic() - started


def find(destination: Destination, query: Query) -> list[Dataset]:
    """The answers to a C-FIND in the Study Root model.

    Raises:
        NetworkError: No association, no answer, or a failure; half an answer is none.
    """
    with associated(destination, [context(STUDY_ROOT_FIND, UNCOMPRESSED)]) as link:
        return _find(link, query)


def move(destination: Destination, query: Query, folder: Path, on_stored: OnStored = lambda stored: None) -> Fetched:
    """Lets the archive send to a provider of ours that lives as long as the C-MOVE.

    Args:
        destination: Its `receive` is where the archive sends to when it is told our AE title.
        query: Its UIDs say what; other conditions are not used.
        folder: Gets the instances, as `store.InstanceStore` keeps them.
        on_stored: Called for each instance.

    Raises:
        NetworkError: No association, no answer, a failure, or our port is taken.
    """
    peer, identifier = dimse_peer(destination), retrieve_identifier(query)
    arrivals = Arrivals(folder, query.study_instance_uid, on_stored)
    contexts = [context(STUDY_ROOT_MOVE, UNCOMPRESSED)]
    provider = Provider(arrivals.store, listen_for(peer), refused=arrivals.refused)
    with provider, associated(destination, contexts) as link:
        title = peer.our_ae_title
        counts, failed = _sub_operations(
            link, "C-MOVE", lambda association: association.send_c_move(identifier, title, STUDY_ROOT_MOVE)
        )
        done = counts.get("Completed", 0) + counts.get("Warning", 0)
        arrivals.wait_for(done, destination.connect_s)  # some archives answer before they have sent
    return arrivals.fetched(sum(counts.values()) if counts else None, failed)


def get(destination: Destination, query: Query, folder: Path, on_stored: OnStored = lambda stored: None) -> Fetched:
    """Fetches over the association that asks (C-GET); no port of ours need be open.

    The archive is first asked which SOP classes there are; if it does not say, the usual ones are offered.

    Args:
        destination: Its peer speaks DIMSE.
        query: Its UIDs say what; other conditions are not used.
        folder: Gets the instances, as `store.InstanceStore` keeps them.
        on_stored: Called for each instance.

    Raises:
        NetworkError: No association, no answer, or a failure.
    """
    identifier, arrivals = retrieve_identifier(query), Arrivals(folder, query.study_instance_uid, on_stored)
    held = _held_classes(destination, query)
    classes = held or usual_classes()
    roles = [build_role(sop_class, scp_role=True) for sop_class in classes]
    handlers = [(evt.EVT_C_STORE, answer_store, [arrivals.store, arrivals.refused])]
    with associated(destination, _get_contexts(classes), roles=roles, handlers=handlers) as link:
        unsendable = _not_sent_by_get(link, held)
        counts, failed = _sub_operations(
            link, "C-GET", lambda association: association.send_c_get(identifier, STUDY_ROOT_GET)
        )
    return arrivals.fetched(sum(counts.values()) if counts else None, [*failed, *unsendable])


def _find(link: Link, query: Query) -> list[Dataset]:
    model, found = STUDY_ROOT_FIND, list[Dataset]()
    for status, answer in link.ask(lambda association: association.send_c_find(query.identifier(), model)):
        code = checked_status(link, status)
        if code_to_category(code) == "Pending":
            if answer is None:
                raise _failed(link.destination, "C-FIND", "an answer that cannot be read", "look into its log")
            found.append(answer)
            link.restart_clock()
            if query.limit and len(found) == query.limit and link.association is not None:
                link.association.send_c_cancel(1, query_model=model)
        elif code and not (query.limit and code_to_category(code) == "Cancel"):
            raise _failed(link.destination, "C-FIND", meaning(code, "C-FIND"), "change the query or look into its log")
    return found[: query.limit or None]


def _held_classes(destination: Destination, query: Query) -> list[str]:
    """SOP classes of what is to be fetched; empty where the archive does not tell."""
    try:
        with associated(destination, [context(STUDY_ROOT_FIND, UNCOMPRESSED)]) as link:
            series = [query]
            if retrieve_level(query) == "study":
                found = _find(link, Query("series", query.study_instance_uid))
                series = [replace(query, series_instance_uid=str(one.SeriesInstanceUID)) for one in found]
            answers = [answer for one in series for answer in _find(link, replace(one, level="image"))]
            held = list(dict.fromkeys(str(answer.get("SOPClassUID") or "") for answer in answers))
    except (NetworkError, QueryError, AttributeError):
        return []
    return held if all(map(is_uid, held)) and len(held) < MOST_CONTEXTS else []


def _get_contexts(classes: Sequence[str]) -> list[PresentationContext]:
    """C-GET itself, each class uncompressed and, as far as there is room, in each compressed syntax: sent as it is held."""
    plain = [context(STUDY_ROOT_GET, UNCOMPRESSED)]
    plain += [context(sop_class, UNCOMPRESSED) for sop_class in classes]
    compressed = [context(sop_class, [syntax]) for syntax in COMPRESSED for sop_class in classes]
    return [*plain, *compressed][:MOST_CONTEXTS]


def _not_sent_by_get(link: Link, held: Sequence[str]) -> list[str]:
    """What the archive has and did not agree to send over this association.

    Raises:
        NetworkError: It does not offer C-GET at all.
    """
    accepted = link.association.accepted_contexts if link.association else []
    if not any(one.abstract_syntax == STUDY_ROOT_GET for one in accepted):
        raise NetworkError(
            f"{link.destination.label} does not offer C-GET; C-GET or C-MOVE is needed to fetch; use C-MOVE, with a port "
            "that the archive knows for our AE title"
        )
    agreed = {one.abstract_syntax for one in accepted if one.as_scp}
    return [
        f"the archive does not send {UID(uid).name} by C-GET; use C-MOVE or DICOMweb"
        for uid in held
        if uid not in agreed
    ]


def _sub_operations(
    link: Link, service: str, question: Callable[[Association], object]
) -> tuple[dict[str, int], list[str]]:
    """Runs a C-MOVE or C-GET to its end: the last counts of sub-operations, and what failed."""
    counts: dict[str, int] = {}
    for status, answer in link.ask(question):
        code = checked_status(link, status)
        # each answer counts all of them; the last one leaves out "remaining" (PS3.4 C.4.2.1.6)
        told = {name: status.get(f"NumberOf{name}Suboperations") for name in _COUNTS}
        counts = {name: int(value) for name, value in told.items() if value is not None} or counts
        if code_to_category(code) == "Pending":
            link.restart_clock()
            continue
        if code and code != _SOME_FAILED:
            raise _failed(link.destination, service, meaning(code, service), _advice(code))
        return counts, _failures(counts, answer)
    raise link.broken()


def _failures(counts: dict[str, int], answer: Dataset | None) -> list[str]:
    failed = counts.get("Failed", 0)
    if not failed:
        return []
    named = answer.get("FailedSOPInstanceUIDList") if answer is not None else None
    uids = [uid for uid in ([named] if isinstance(named, str) else list(named or [])) if is_uid(str(uid))]
    return [f"the archive could not send {failed} instance(s)" + (f", the first is {uids[0]}" if uids else "")]


def _advice(code: int) -> str:
    if code == 0xA801:  # PS3.4 C.4.2.1.5: Move Destination unknown
        return "let the archive know our AE title with the host and port that it can send to"
    if code == 0xA702:  # unable to perform sub-operations
        return "use another way to fetch (C-GET, C-MOVE, DICOMweb) or look into its log"
    return "look into its log"


def _failed(destination: Destination, service: str, found: str, advice: str) -> NetworkError:
    return NetworkError(f"{destination.label} answered {service} with {found}; success is needed; {advice}")

"""What the command line calls: echo, send, commit, find and fetch, whichever way a destination is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from pydicom.dataset import Dataset

from dicom_io.errors import NetworkError
from dicom_io.net import dicomweb, scu
from dicom_io.net.commitment_user import Committed, Reports, request_commitment
from dicom_io.net.destination import Destination, DestinationError, DicomWeb, Dimse
from dicom_io.net.duplicates import Archive
from dicom_io.net.outcome import Fetched, Outcome
from dicom_io.net.outgoing import Each, Outgoing, prepared
from dicom_io.net.query import Query, QueryError
from dicom_io.net.retrieved import OnStored
from dicom_io.net.scp import Listen, listen_for
from dicom_io.net.store import Stored
from dicom_io.reading.headers import is_uid


@dataclass(frozen=True)
class Echo:
    """A destination that answered."""

    peer: str
    seconds: float


def echo(destination: Destination) -> Echo:
    """Whether a destination answers: C-ECHO, or a search for one study.

    Raises:
        NetworkError: It does not; the message says why.
    """
    way = dicomweb if isinstance(destination.peer, DicomWeb) else scu
    return Echo(destination.label, way.echo(destination))


def send(destination: Destination, files: Iterable[Path], each: Each = lambda outcome: None) -> tuple[Outcome, ...]:
    """Sends files: images first, then result objects in the order of the destination's profile.

    A report is held back if an instance that it was made from was to be sent here and did not arrive, or is a SEG in an
    encoding that the destination does not take. It goes where the destination takes no SEG at all, and its outcome says so.

    Args:
        destination: Where to.
        files: DICOM files, in any order.
        each: Called with every outcome as soon as it is known.

    Returns:
        One outcome a file, in the order of sending; what the profile does not want comes last.

    Raises:
        UnreadableFileError: A file is no DICOM object; nothing was sent.
        NetworkError: The destination could not be reached; nothing was sent.
    """
    wanted, unwanted = prepared(files, destination.profile)
    misencoded = {one.sop_instance_uid for one in unwanted if one.kind in destination.profile.objects}
    outcomes: list[Outcome] = []
    for _, alike in groupby(wanted, key=lambda item: item.kind == "SR"):
        judged = [(item, _why_held_back(item, outcomes, misencoded)) for item in alike]
        offered = [item for item, why in judged if not why]
        outcomes += _stored(destination, offered, each, anything_before=bool(outcomes))
        outcomes += _told([item.outcome("held back", why) for item, why in judged if why], each)
    return (*outcomes, *_told(unwanted, each))


def _why_held_back(item: Outgoing, outcomes: list[Outcome], misencoded: set[str]) -> str:
    """Why a report must wait, empty where it need not. An instance that was offered twice is there if one arrived."""
    there = {outcome.sop_instance_uid for outcome in outcomes if outcome.is_delivered}
    if item.refers_to & {outcome.sop_instance_uid for outcome in outcomes} - there:
        return "what it reports on did not arrive; send both again"
    if item.refers_to & misencoded - there:
        return "what it reports on was left out, in an encoding that the destination does not take; have both written for it"
    return ""


def _stored(destination: Destination, items: list[Outgoing], each: Each, *, anything_before: bool) -> list[Outcome]:
    """Raises NetworkError where nothing could be sent, neither of these nor anything before."""
    way = dicomweb if isinstance(destination.peer, DicomWeb) else scu
    archive = Archive(lambda query: find(destination, query), lambda query, folder: fetch(destination, query, folder))

    def unless_duplicate(outcome: Outcome) -> None:
        if outcome.state != "already there":
            each(outcome)

    try:
        outcomes = way.store(destination, items, unless_duplicate) if items else []
    except NetworkError as error:
        if not anything_before:
            raise
        return _told([item.outcome("failed", str(error)) for item in items], each)
    judged = [
        archive.judged(item, outcome) if outcome.state == "already there" else outcome
        for item, outcome in zip(items, outcomes, strict=True)
    ]
    _told([one for one, before in zip(judged, outcomes, strict=True) if before.state == "already there"], each)
    return judged


def _told(outcomes: list[Outcome], each: Each) -> list[Outcome]:
    for outcome in outcomes:
        each(outcome)
    return outcomes


def taking_reports(destination: Destination) -> AbstractContextManager[Reports | None]:
    """Listens where the destination reports to, as its `receive` says, so that a port that is taken is known before sending.

    Returns:
        For `commit(reports=...)`; None where the destination reaches us nowhere, and must report over the association that
        asks.

    Raises:
        DestinationError: It speaks DICOMweb, which has no storage commitment.
        NetworkError: On entering; the port is taken.
    """
    peer = _committing(destination)
    return Reports().listening(listen_for(peer)) if peer.receive else nullcontext()


def commit(
    destination: Destination,
    files: Iterable[Path],
    *,
    listen: Listen | None = None,
    reports: Reports | None = None,
    wait_s: float = 60.0,
) -> Committed:
    """Asks a destination to say that it keeps what was sent to it, see `commitment_user.request_commitment`.

    Raises:
        DestinationError: It speaks DICOMweb, which has no storage commitment.
        NetworkError: It could not be reached, or refused.
    """
    _committing(destination)
    return request_commitment(destination, files, listen=listen, reports=reports, wait_s=wait_s)


def _committing(destination: Destination) -> Dimse:
    """The peer of a destination that can be asked for commitment."""
    if isinstance(destination.peer, Dimse):
        return destination.peer
    raise DestinationError(
        f"{destination.label} speaks DICOMweb, which has no storage commitment; a DICOM node is needed; name one, or rely on "
        "the answer to each instance"
    )


def find(destination: Destination, query: Query) -> tuple[Dataset, ...]:
    """What an archive has, as data sets with the attributes of `query.RETURNED` that it knows.

    Raises:
        NetworkError: The destination could not be reached, or refused.
    """
    way = dicomweb if isinstance(destination.peer, DicomWeb) else scu
    return tuple(way.find(destination, query))


def fetch(
    destination: Destination,
    query: Query,
    folder: Path,
    on_stored: OnStored = lambda stored: None,
) -> Fetched:
    """Brings a study, a series or an instance here; without a study UID, every study that the query finds.

    Args:
        destination: Where from.
        query: UIDs, or conditions on studies.
        folder: Gets `<study>/<series>/<instance>.dcm`.
        on_stored: Called for each instance that is on the disk.

    Raises:
        NetworkError: The destination could not be reached, or refused. What had come by then is kept.
        QueryError: The query has no condition, or its UIDs leave a gap.
    """
    if not query.has_conditions:
        raise QueryError("nothing says what to fetch; a UID or a condition is needed; everything is never fetched")
    way, kept = _retrieval(destination), list[Stored]()

    def note(stored: Stored) -> None:
        kept.append(stored)
        on_stored(stored)

    try:
        return _joined(folder, [way(destination, one, folder, note) for one in _studies(destination, query)])
    except NetworkError as error:
        if not kept:
            raise
        raise NetworkError(f"{error} ({len(kept)} instance(s) had come and are kept in {folder})") from error


def _studies(destination: Destination, query: Query) -> list[Query]:
    """The query itself if it names a study, else one for each study that it finds."""
    if query.study_instance_uid:
        return [query]
    found = [str(one.get("StudyInstanceUID") or "") for one in find(destination, replace(query, level="study"))]
    if not all(map(is_uid, found)):
        raise NetworkError(
            f"{destination.label} found a study without a proper UID; one is needed to fetch it; look into its log"
        )
    return [Query(study_instance_uid=uid) for uid in dict.fromkeys(found)]


def _retrieval(destination: Destination) -> Callable[..., Fetched]:
    if not isinstance(destination.peer, Dimse):
        return dicomweb.fetch
    return scu.move if destination.peer.retrieve == "move" else scu.get


def _joined(folder: Path, parts: list[Fetched]) -> Fetched:
    known = [part.expected for part in parts if part.expected is not None]
    return Fetched(
        Path(folder),
        tuple(file for part in parts for file in part.files),
        sum(part.new for part in parts),
        sum(known) if len(known) == len(parts) else None,
        tuple(problem for part in parts for problem in part.problems),
    )

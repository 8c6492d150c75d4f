"""The functions behind the command line: echo, send, commit, find and fetch, over DIMSE or DICOMweb."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import ModuleType

from pydicom.dataset import Dataset

from dicom_io.errors import NetworkError
from dicom_io.net import dicomweb, scu
from dicom_io.net.commitment_user import CommitmentResult, ReportListener, request_commitment
from dicom_io.net.destination import Destination, DestinationError, DicomWeb, Dimse
from dicom_io.net.duplicates import DuplicateCheck
from dicom_io.net.instance_store import Stored
from dicom_io.net.outcome import Fetched, Outcome
from dicom_io.net.outgoing import OnOutcome, Outgoing, prepare_files
from dicom_io.net.query import Query, QueryError
from dicom_io.net.retrieval import OnStored
from dicom_io.net.scp import listen_for
from dicom_io.reading.headers import is_uid


def echo(destination: Destination) -> float:
    """Seconds until a destination has answered a C-ECHO, or over DICOMweb a search for one study.

    Raises:
        NetworkError: The destination does not answer; the message says why.
    """
    return float(_protocol(destination).echo(destination))


def send(
    destination: Destination, files: Iterable[Path], on_outcome: OnOutcome = lambda outcome: None
) -> tuple[Outcome, ...]:
    """Sends files: images first, then result objects in the order of the destination's profile.

    A report is held back if an instance that it was made from was among the files and did not arrive, or is a SEG in an
    encoding that the destination does not take. If the destination takes no SEG at all, the report is sent, with a note in its
    outcome.

    Args:
        destination: Where to.
        files: DICOM files, in any order.
        on_outcome: Called with every outcome as soon as it is known.

    Returns:
        One outcome for each file, in the order of sending; files that the profile does not want come last.

    Raises:
        UnreadableFileError: A file is no DICOM object; nothing was sent.
        NetworkError: The destination could not be reached; nothing was sent.
    """
    outgoing, unwanted = prepare_files(files, destination.profile)
    # A kind that the destination takes is left out only for its encoding.
    misencoded = {outcome.sop_instance_uid for outcome in unwanted if outcome.kind in destination.profile.objects}
    outcomes: list[Outcome] = []
    # A group of reports is sent when the outcomes of everything before it are known.
    for _, group in groupby(outgoing, key=lambda item: bool(item.refers_to)):
        items = [(item, _why_held_back(item, outcomes, misencoded)) for item in group]
        offered = [item for item, reason in items if not reason]
        outcomes += _store(destination, offered, on_outcome, is_first=not outcomes)
        held_back = [item.outcome("held back", reason) for item, reason in items if reason]
        outcomes += _reported(held_back, on_outcome)
    return (*outcomes, *_reported(unwanted, on_outcome))


def _protocol(destination: Destination) -> ModuleType:
    """The module with `echo`, `find` and `store_instances` for a destination."""
    return dicomweb if isinstance(destination.peer, DicomWeb) else scu


def _why_held_back(item: Outgoing, outcomes: list[Outcome], misencoded: set[str]) -> str:
    """Reason to hold a report back, or "". An instance that was sent twice has arrived if it arrived at least once."""
    arrived = {outcome.sop_instance_uid for outcome in outcomes if outcome.is_delivered}
    if item.refers_to & {outcome.sop_instance_uid for outcome in outcomes} - arrived:
        return "an object that it reports on did not arrive; send both again"
    if item.refers_to & misencoded - arrived:
        return "an object that it reports on was left out, in an encoding that the destination does not take; write both for it"
    return ""


def _store(destination: Destination, items: list[Outgoing], on_outcome: OnOutcome, *, is_first: bool) -> list[Outcome]:
    """Sends files and resolves duplicates. Raises NetworkError if nothing could be sent, and nothing was sent before."""
    check = DuplicateCheck(partial(find, destination), partial(fetch, destination))

    # The outcome of a duplicate is known only after the check, which asks over associations of its own.
    def unless_duplicate(outcome: Outcome) -> None:
        if outcome.state != "already there":
            on_outcome(outcome)

    try:
        outcomes = _protocol(destination).store_instances(destination, items, unless_duplicate) if items else []
    except NetworkError as error:
        # Nothing was sent, so the caller may try everything again.
        if is_first:
            raise
        return _reported([item.outcome("failed", str(error)) for item in items], on_outcome)
    for number, (item, outcome) in enumerate(zip(items, outcomes, strict=True)):
        if outcome.state == "already there":
            outcomes[number] = check.resolve(item, outcome)
            on_outcome(outcomes[number])
    return list(outcomes)


def _reported(outcomes: list[Outcome], on_outcome: OnOutcome) -> list[Outcome]:
    for outcome in outcomes:
        on_outcome(outcome)
    return outcomes


def listen_for_reports(destination: Destination) -> AbstractContextManager[ReportListener | None]:
    """Listens where the destination reports to, as its `receive` says, so that a taken port is known before sending.

    Returns:
        For `commit(reports=...)`; None if the destination cannot reach us, and must report over the association of the
        request.

    Raises:
        DestinationError: It speaks DICOMweb, which has no storage commitment.
        NetworkError: On entering; the port is taken.
    """
    peer = _commitment_peer(destination)
    return ReportListener().listening(listen_for(peer)) if peer.receive else nullcontext()


def commit(
    destination: Destination, files: Iterable[Path], *, reports: ReportListener | None = None, wait_s: float = 60.0
) -> CommitmentResult:
    """Asks a destination to commit itself to the files that were sent to it; see `commitment_user.request_commitment`.

    Raises:
        DestinationError: It speaks DICOMweb, which has no storage commitment.
        NetworkError: It could not be reached, or refused.
    """
    _commitment_peer(destination)
    return request_commitment(destination, files, reports=reports, wait_s=wait_s)


def _commitment_peer(destination: Destination) -> Dimse:
    """The peer of a destination that can be asked for commitment."""
    if isinstance(destination.peer, Dimse):
        return destination.peer
    raise DestinationError(
        f"{destination.label} speaks DICOMweb, which has no storage commitment; a DICOM node is needed; name one, or rely on "
        "the answer to each instance"
    )


def find(destination: Destination, query: Query) -> tuple[Dataset, ...]:
    """The matches of a query in an archive, as data sets with the attributes of `query.RETURNED` that it knows.

    Raises:
        NetworkError: The destination could not be reached, or refused.
    """
    return tuple(_protocol(destination).find(destination, query))


def fetch(destination: Destination, query: Query, folder: Path, on_stored: OnStored = lambda stored: None) -> Fetched:
    """Brings a study, a series or an instance here; without a study UID, every study that the query finds.

    Args:
        destination: Where from.
        query: UIDs, or conditions on studies.
        folder: Gets `<study>/<series>/<instance>.dcm`.
        on_stored: Called for each instance that is on the disk.

    Raises:
        NetworkError: The destination could not be reached, or refused. Instances that arrived before are kept.
        QueryError: The query has no condition, or its UIDs leave a gap.
    """
    if not query.has_conditions:
        raise QueryError(
            "no UID and no condition is given; one is needed, because an archive is never fetched as a whole; give one"
        )
    retrieve, arrived = _retrieve_function(destination), list[Stored]()

    def note(stored: Stored) -> None:
        arrived.append(stored)
        on_stored(stored)

    try:
        return _joined(folder, [retrieve(destination, study, folder, note) for study in _studies(destination, query)])
    except NetworkError as error:
        if not arrived:
            raise
        raise NetworkError(f"{error} ({len(arrived)} instance(s) had come and are kept in {folder})") from error


def _studies(destination: Destination, query: Query) -> list[Query]:
    """The query itself if it names a study, else a query for each study that it finds."""
    if query.study_instance_uid:
        return [query]
    matches = find(destination, replace(query, level="study"))
    wanted = query.patient_id.strip()
    found = [str(match.get("PatientID") or "").strip() for match in matches]
    # An archive may search without a condition that it does not know
    others = 0 if not wanted or set(wanted) & set("*?") else sum(one not in ("", wanted) for one in found)
    if others:
        raise NetworkError(
            f"{destination.label} answered with {others} of {len(matches)} studies of other patients: it does not search by "
            "PatientID; nothing was fetched; name the study by --study"
        )
    uids = [str(match.get("StudyInstanceUID") or "") for match in matches]
    if not all(map(is_uid, uids)):
        raise NetworkError(
            f"{destination.label} found a study without a proper UID; one is needed to fetch it; see its log"
        )
    return [Query(study_instance_uid=uid) for uid in dict.fromkeys(uids)]


def _retrieve_function(destination: Destination) -> Callable[..., Fetched]:
    if not isinstance(destination.peer, Dimse):
        return dicomweb.fetch
    return scu.move if destination.peer.retrieve == "move" else scu.get


def _joined(folder: Path, parts: list[Fetched]) -> Fetched:
    known = [part.expected for part in parts if part.expected is not None]
    return Fetched(
        Path(folder),
        tuple(file for part in parts for file in part.files),
        sum(part.new for part in parts),
        # A sum is known only if every part announced its number.
        sum(known) if len(known) == len(parts) else None,
        tuple(problem for part in parts for problem in part.problems),
    )

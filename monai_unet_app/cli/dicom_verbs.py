"""The verbs for DICOM objects: pacs echo, find, fetch and send over a network, and deidentify."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.text import Text

from dicom_io.errors import NetworkError
from monai_unet_app.cli import common, dicom_flags, show
from monai_unet_app.cli.common import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, Answer
from monai_unet_app.cli.dataclass_parser import Options
from monai_unet_app.errors import UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dicom_io.net.commitment_user import CommitmentResult, ReportListener
    from dicom_io.net.destination import Destination, Dimse, Receive
    from dicom_io.net.outcome import Outcome
    from dicom_io.net.query import Query

# Keys of the Study Root model, PS3.4 C.6.2.1; the counts are optional keys, so their cells may be empty.
_COLUMNS = {
    "study": {
        "StudyInstanceUID": "study",
        "StudyDate": "date",
        "ModalitiesInStudy": "modalities",
        "StudyDescription": "description",
        "NumberOfStudyRelatedSeries": "series",
        "NumberOfStudyRelatedInstances": "instances",
    },
    "series": {
        "SeriesInstanceUID": "series",
        "SeriesNumber": "number",
        "Modality": "modality",
        "SeriesDescription": "description",
        "NumberOfSeriesRelatedInstances": "instances",
    },
    "image": {"SOPInstanceUID": "instance", "SOPClassUID": "class", "InstanceNumber": "number"},
}
_MOST_FILES = 8  # in one line
_PROBLEMS = ("refused", "failed", "held back")
_PATIENT = {"PatientName": "patient", "PatientID": "patient ID"}


def pacs(options: Options) -> Answer:
    """Ask an archive, by DIMSE or DICOMweb: echo, find, fetch, send.

    Example: monai-unet pacs send --to archive --site site.toml OUT
    """
    raise UsageError("pacs alone does nothing; one of echo, find, fetch and send is needed; monai-unet pacs --help")


def echo(options: dicom_flags.Remote) -> Answer:
    """Ask a DICOM node or DICOMweb service whether it answers.

    Example: monai-unet pacs echo --to ARCHIVE@127.0.0.1:11112
    """
    from dicom_io.net import exchange

    destination = _destination(options)
    seconds = exchange.echo(destination)
    show.line(f"{destination.label} answers ({seconds:.2f} s)")
    return {"peer": destination.label, "seconds": round(seconds, 3)}, EXIT_DONE


def send(options: dicom_flags.Send) -> Answer:
    """Send DICOM files, or those in folders, and show the outcome of each.

    Example: monai-unet pacs send --to archive --site site.toml OUT
    """
    from dicom_io.net import exchange

    destination, files = _destination(options), _dicom_files(options.files)
    with _reports(destination, options) as reports:  # listens before the files go: a node may report at once
        with show.Steps("sending", len(files)) as step:
            outcomes = exchange.send(destination, files, lambda outcome: step(outcome.kind))
        delivered = {outcome.sop_instance_uid: outcome.file for outcome in outcomes if outcome.is_delivered}
        problems = [f"{outcome.file}: {outcome.meaning}" for outcome in outcomes if outcome.state in _PROBLEMS]
        _outcome_table(outcomes)
        show.problems_list(problems)
        count = sum(outcome.is_delivered for outcome in outcomes)
        show.line(f"{count} of {len(outcomes)} file(s) are now at {destination.label}")
        answer: dict[str, Any] = {"peer": destination.label, "files": [_outcome_row(outcome) for outcome in outcomes]}
        if options.commit and delivered:
            answer["commitment"] = _commit(destination, delivered, reports, options)
            problems += answer["commitment"]["problems"]
    return answer, EXIT_FAILED if problems else EXIT_DONE


def _reports(destination: "Destination", options: dicom_flags.Send) -> "AbstractContextManager[ReportListener | None]":
    """With --commit, a listener for the reports of the destination. None if there is no address to send them to."""
    from dicom_io.net import exchange
    from dicom_io.net.destination import DestinationError

    if not options.commit:
        if options.listen:
            raise UsageError(f"--listen {options.listen}: reports come only after a request; give --commit too")
        return nullcontext()
    try:
        return exchange.listen_for_reports(destination)
    except DestinationError as error:
        raise UsageError(f"--commit: {error}") from error


def _commit(
    destination: "Destination",
    delivered: Mapping[str, Path],
    reports: "ReportListener | None",
    options: dicom_flags.Send,
) -> dict[str, Any]:
    """Asks for commitment to the delivered files (SOP Instance UID -> file), shows the report, and returns it for --json.

    Source: DICOM PS3.4 Annex J, storage commitment.
    """
    from dicom_io.net import exchange
    from dicom_io.net.commitment_user import CommitmentResult

    show.say(f"waiting at most {options.wait_s:g} s for the commitment of {destination.label}")
    try:
        result = exchange.commit(destination, delivered.values(), reports=reports, wait_s=options.wait_s)
        problems = [f"{delivered[uid]}: not committed: {reason}" for uid, reason in result.failed.items()]
        if result.unreported:
            problems.append(
                f"{destination.label} has not reported on {len(result.unreported)} file(s) within {options.wait_s:g} s; its "
                "report is needed; raise --wait-s, or give the address at which it knows us (--listen)"
            )
    # The files are delivered all the same; whether the archive keeps them is not known.
    except NetworkError as error:
        result, problems = CommitmentResult(destination.label, "", (), unreported=tuple(delivered)), [str(error)]
    _commitment_table(result)
    show.problems_list(problems)
    return {
        "transaction_uid": result.transaction_uid,
        "committed": result.committed,
        "failed": dict(result.failed),
        "unreported": result.unreported,
        "problems": problems,
    }


def _commitment_table(result: "CommitmentResult") -> None:
    """Number of files that are committed, failed (for each reason), and not reported on."""
    rows = [(Text("committed", "green"), len(result.committed), "")]
    rows += [(Text("failed", "red"), count, reason) for reason, count in Counter(result.failed.values()).items()]
    rows += [(Text("not reported", "red"), len(result.unreported), "")]
    cells = ([state, str(count), answer] for state, count, answer in rows if count)
    show.print_table(("commitment", "files", "answer"), cells)


def find(options: dicom_flags.Find) -> Answer:
    """List the studies, series or images that an archive has.

    Example: monai-unet pacs find --to https://pacs.example.org/dicom-web --date 20260101- --modality MR
    """
    from dicom_io.net import exchange

    query = _query(options)
    matches = exchange.find(_destination(options), query)
    columns = {**(_PATIENT if options.patients else {}), **_COLUMNS[query.level]}
    rows = [{keyword: _text(match, keyword) for keyword in columns} for match in matches]
    _match_table(rows, columns)
    more = f", and perhaps more (--limit {query.limit})" if len(rows) == query.limit else ""
    show.line(f"{len(rows)} found{more}")
    return {"level": query.level, "found": rows}, EXIT_DONE


def _match_table(rows: Sequence[dict[str, str]], columns: dict[str, str]) -> None:
    """Prints a table, or a block for each match on a terminal that is too narrow: a UID is never folded."""
    lengths = [max(map(len, [name, *(row[keyword] for row in rows)])) for keyword, name in columns.items()]
    width = sum(lengths) + 3 * len(lengths) + 1  # a border and two blanks for each column
    if show.out.is_terminal and width > show.out.width:
        for row in rows:
            for keyword, name in columns.items():
                show.out.print(f"[bold]{name:>13}[/bold]  {escape(row[keyword])}", soft_wrap=True)
            show.out.print()
        return
    show.print_table(map(show.folded, columns.values()), (row.values() for row in rows))


def fetch(options: dicom_flags.Fetch) -> Answer:
    """Fetch a study, series or instance from an archive, or every study that fits.

    Example: monai-unet pacs fetch --to ARCHIVE@127.0.0.1:11112 --study 1.2.3 --output STUDIES
    """
    from dicom_io.net import exchange

    query = _query(options)
    if not query.has_conditions:
        raise UsageError(
            "no study and no condition is given; one is needed, because an archive is never fetched as a whole; give "
            "--study UID or another condition"
        )
    common.check_writable(options.output)
    with show.Steps("fetching", None) as step:  # an archive need not say how many instances it has
        got = exchange.fetch(_destination(options), query, options.output, lambda stored: step())
    expected = "an unknown number" if got.expected is None else str(got.expected)
    show.line(f"received {got.received} instance(s) of {expected}, {got.new} of them new, in {got.folder}")
    show.problems_list(got.problems)
    answer = {
        "folder": str(got.folder),
        "received": got.received,
        "new": got.new,
        "expected": got.expected,
        "complete": got.is_complete,
        "problems": got.problems,
    }
    return answer, EXIT_DONE if got.is_complete else EXIT_FAILED


def deidentify(options: dicom_flags.Deidentify) -> Answer:
    """Copy DICOM objects without the identity of anyone (PS3.15 Annex E).

    Example: monai-unet deidentify --input STUDY --output SHARED --key-file key --options retain-modified-dates
    """
    from dicom_io.confidentiality.pseudonyms import DeidentificationError, key_from, new_key
    from dicom_io.confidentiality.table import checked_options
    from dicom_io.deidentify import REPORT, files_of
    from dicom_io.deidentify import deidentify as deidentify_files

    try:
        kept_attributes = checked_options(name.strip() for name in options.options.split(",") if name.strip())
    except DeidentificationError as error:
        raise UsageError(str(error)) from error
    files = files_of(options.input, options.output)
    common.check_writable(options.output)
    # The key must lie elsewhere: whoever has the key and the shared files can confirm who is who.
    key = key_from(options.key_file, away_from=options.output) if options.key_file else new_key()
    with show.Steps("de-identifying", len(files)) as step:
        outcome = deidentify_files(
            files, options.output, key, options=kept_attributes, allow_burned_in=options.allow_burned_in, step=step
        )
    written = outcome.report["written"]
    actions = outcome.report["actions"].items()
    # action codes of PS3.15 Table E.1-1, in the order of the columns
    rows = ([name, *(str(counts.get(letter, "")) for letter in "XZDUCK")] for name, counts in actions)
    columns = ("removed", "emptied", "dummy", "new UID", "cleaned", "kept")
    show.print_table((show.folded("attribute"), *columns), rows)
    show.problems_list(_group_by_reason(outcome.problems))
    if outcome.problems:
        show.line("files are counted in the order of their paths")
    for note in outcome.report["notes"]:
        show.line(f"note: {note}")
    show.line(f"wrote {len(written)} object(s) and {REPORT} to {options.output}; look at them before you share them")
    answer = {"report": outcome.report, "problems": outcome.problems}
    return answer, EXIT_REFUSED if outcome.problems or not written else EXIT_DONE


def _group_by_reason(problems: Sequence[str]) -> list[str]:
    """Problems of the form "file 3: reason"; problems with the same reason share a line."""
    files: dict[str, list[str]] = {}
    for problem in problems:
        file, _, reason = problem.partition(": ")
        files.setdefault(reason, []).append(file.removeprefix("file "))
    lines = []
    for reason, numbers in files.items():
        more = f" and {len(numbers) - _MOST_FILES} more" if len(numbers) > _MOST_FILES else ""
        listed = ", ".join(numbers[:_MOST_FILES]) + more
        lines.append(f"file{'s' if len(numbers) > 1 else ''} {listed}: {reason}")
    return lines


def destination_of_site(name: str, site: Path | None) -> "Destination":
    """The destination that --for names in --site."""
    from dicom_io.net.destination_file import read_site

    if site is None:
        raise UsageError(f"--for {name}: a site file that describes it is needed; give --site FILE")
    known = read_site(site)
    if name not in known:
        raise UsageError(f"--for {name}: {site.name} has {', '.join(known)}; give one of these")
    return known[name]


def _destination(options: dicom_flags.Remote) -> "Destination":
    """The destination that --to names: a destination of --site, a node, or a URL."""
    from dicom_io.net.destination import OUR_AE_TITLE, DestinationError, parse_destination
    from dicom_io.net.destination_file import read_site

    site = read_site(options.site) if options.site else {}
    try:
        destination = site.get(options.to) or parse_destination(options.to, options.aet or OUR_AE_TITLE)
        return _adapted(destination, options)
    except DestinationError as error:
        names = f" ({options.site.name} has {', '.join(site)})" if options.site and site else ""
        raise UsageError(f"--to: {error}{names}") from error


def _adapted(destination: "Destination", options: dicom_flags.Remote) -> "Destination":
    """The destination, changed by --aet, --move and --listen."""
    from dicom_io.net.destination import Dimse, checked_ae_title

    peer = destination.peer
    if not isinstance(peer, Dimse):  # DICOMweb has no AE titles, and its answers come over the same connection
        return destination
    if options.aet:
        peer = replace(peer, our_ae_title=checked_ae_title(options.aet, "--aet"))
    if isinstance(options, dicom_flags.Fetch) and options.move:
        peer = replace(peer, retrieve="move", receive=_receive(options.move, "--move", peer))
    if isinstance(options, dicom_flags.Send) and options.listen:
        peer = replace(peer, receive=_receive(options.listen, "--listen", peer))
    return replace(destination, peer=peer)


def _receive(address: str, flag: str, peer: "Dimse") -> "Receive":
    """The address to listen at, from the PORT or HOST:PORT of a flag; the allowed senders stay as in the site file."""
    from dicom_io.net.destination import Receive, checked_port

    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit():
        raise UsageError(f"{flag} {address}: a port or HOST:PORT of this machine is needed")
    senders = peer.receive.senders if peer.receive else ()
    return Receive(host.strip("[]") or Receive.host, checked_port(int(port), flag), senders)


def _query(options: dicom_flags.Conditions) -> "Query":
    from dicom_io.net.query import Query, QueryError

    try:
        return Query(
            level=getattr(options, "level", "study"),
            study_instance_uid=options.study or "",
            series_instance_uid=options.series or "",
            sop_instance_uid=getattr(options, "instance", None) or "",
            patient_id=options.patient_id or "",
            patient_name=options.patient_name or "",
            accession_number=options.accession or "",
            study_date=options.date or "",
            modality=options.modality or "",
            limit=getattr(options, "limit", 0),
        )
    except QueryError as error:
        raise UsageError(str(error)) from error


def _dicom_files(paths: Sequence[Path]) -> list[Path]:
    """The named files, and the DICOM objects below the named folders; other files in folders are skipped."""
    from dicom_io.reading.series import files_below, scan_files

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += [file for series in scan_files(files_below(path)).series for file in series.files]
        else:
            files.append(path)
    return list(dict.fromkeys(files))  # a file may be named itself and lie in a named folder


def _outcome_table(outcomes: "Sequence[Outcome]") -> None:
    has_notes = any(outcome.note for outcome in outcomes)
    rows = []
    for outcome in outcomes:
        if outcome.state != "sent" or outcome.kind or outcome.note:
            colour = "red" if outcome.state in _PROBLEMS else "green" if outcome.state == "sent" else "yellow"
            state, notes = Text(outcome.state, colour), [outcome.note] if has_notes else []
            rows.append([str(outcome.file), outcome.kind or "image", state, outcome.meaning, *notes])
    notes_column = ["done to it"] if has_notes else []
    show.print_table((show.folded("file"), "kind", "outcome", "answer", *notes_column), rows)
    if 0 < len(rows) < len(outcomes):
        show.line(f"and {len(outcomes) - len(rows)} image(s), sent as they are")


def _outcome_row(outcome: "Outcome") -> dict[str, Any]:
    return {
        "file": str(outcome.file),
        "sop_instance_uid": outcome.sop_instance_uid,
        "kind": outcome.kind,
        "outcome": outcome.state,
        "status": outcome.status,
        "meaning": outcome.meaning,
        "note": outcome.note,
    }


def _text(answer: "Dataset", keyword: str) -> str:
    from pydicom.multival import MultiValue

    value = answer.get(keyword)
    if value is None:
        return ""
    text = ", ".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    return "".join(letter if letter.isprintable() else " " for letter in text)  # no commands for the terminal

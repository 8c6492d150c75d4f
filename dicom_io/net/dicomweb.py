"""DICOMweb as user: QIDO-RS, WADO-RS and STOW-RS over dicomweb-client (PS3.18 10).

A RetrieveURL or BulkDataURI in an answer or an instance is never followed.
"""

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.dataset import Dataset, FileDataset, validate_file_meta

from dicom_io.errors import NetworkError
from dicom_io.net.destination import Destination
from dicom_io.net.dicomweb_session import web_client
from dicom_io.net.instance_file import InstanceRefusedError
from dicom_io.net.outcome import Fetched, Outcome, meaning, state_of
from dicom_io.net.outgoing import OnOutcome, Outgoing
from dicom_io.net.query import ABOVE, RETURNED, UIDS, Query, QueryError, retrieve_level
from dicom_io.net.retrieval import OnStored, Retrieval
from dicom_io.reading.instances import READ_ERRORS, load_dataset

MOST_INSTANCES = 50
MOST_BYTES = 64 * 1024 * 1024
_logger = logging.getLogger(__name__)
_TAG_OF_UID = {"study": "0020000D", "series": "0020000E", "image": "00080018"}
PAGE = 500
_BEYOND_THE_LAST = (400, 404, 416, 422)  # HTTP status by which services refuse an offset behind the last match
_AS_STORED = (("application/dicom", "*"),)  # PS3.18 8.7.3.5.2: in any transfer syntax
_REFUSED = (400, 409, 413, 415)  # HTTP status of a STOW-RS request; the body may say which instances are refused


def echo(destination: Destination) -> float:
    """Seconds that a search for one study took, because DICOMweb has no echo."""
    started_s = time.monotonic()
    with web_client(destination) as client:
        client.search_for_studies(limit=1)
    return time.monotonic() - started_s


def find(destination: Destination, query: Query) -> list[Dataset]:
    """The matches of a QIDO-RS search.

    Raises:
        NetworkError: The service cannot be reached, refuses, or its answer is not DICOM JSON.
    """
    with web_client(destination) as client:
        return [_match(item) for item in _pages(client, query)]


def _match(item: dict[str, Any]) -> Dataset:
    """A match; an attribute whose value is none of its kind is empty, and hinders no other, nor does a key that is no tag."""
    found = Dataset()
    for tag, element in item.items():
        try:
            found.update(Dataset.from_json({tag: element}))
        except Exception:  # of pydicom's conversions, any
            if re.fullmatch("[0-9A-Fa-f]{8}", tag):
                found.add_new(int(tag, 16), "UN", None)
    return found


def fetch(destination: Destination, query: Query, folder: Path, on_stored: OnStored = lambda stored: None) -> Fetched:
    """A study, a series or an instance by WADO-RS, in the stored encoding; each instance is kept when it arrives.

    Args:
        destination: Its peer speaks DICOMweb.
        query: Its UIDs say what to fetch; other conditions are not used.
        folder: Gets the instances, as `instance_store.InstanceStore` keeps them.
        on_stored: Called for each instance.

    Raises:
        NetworkError: The service cannot be reached or refuses. Instances that arrived before are kept.
    """
    level, retrieval = retrieve_level(query), Retrieval(folder, query, on_stored)
    with web_client(destination) as client:
        expected = _expected(client, query)
        for dataset in _retrieved(client, query, level):
            try:
                retrieval.store.put(_file_bytes(dataset))
            except InstanceRefusedError as error:
                retrieval.note_refusal(str(error))
    return retrieval.result(expected)


def store_instances(
    destination: Destination, items: Sequence[Outgoing], on_outcome: OnOutcome = lambda outcome: None
) -> list[Outcome]:
    """Sends files by STOW-RS, in the order given, and reports on every instance.

    An instance counts as sent only if the answer lists it. One request holds files of one kind only, so that no report arrives
    before the objects that it refers to.

    Raises:
        NetworkError: The first request did not reach the service: nothing was sent.
    """
    outcomes: list[Outcome] = []
    for batch in _batches(items):
        try:
            results = _stow(destination, batch)
        except NetworkError as error:
            if not outcomes:
                raise
            results = [item.outcome("failed", str(error)) for item in items[len(outcomes) :]]
        for outcome in results:
            outcomes.append(outcome)
            on_outcome(outcome)
        if len(outcomes) == len(items):
            break
    return outcomes


def _pages(client: DICOMwebClient, query: Query) -> list[dict[str, Any]]:
    """All matches, page by page, until a page is empty: a service may give fewer than it was asked for.

    A service without paging repeats what it gave, and some refuse a page beyond the last: both end the search with a warning.
    Items that are no matches are left out with a warning.
    """
    searches: dict[str, Any] = {
        "study": client.search_for_studies,
        "series": client.search_for_series,
        "image": client.search_for_instances,
    }
    conditions = query.conditions()
    # The UIDs above the level of the search stand in the path (PS3.18 10.6).
    path = {name: conditions.pop(UIDS[name]) for name in ABOVE[query.level]}
    matches, known, own, odd = list[dict[str, Any]](), set[str](), _TAG_OF_UID[query.level], 0
    while not query.limit or len(matches) < query.limit:
        limit = min(PAGE, query.limit - len(matches)) if query.limit else PAGE
        try:
            page = searches[query.level](
                **path, fields=RETURNED[query.level], search_filters=conditions, limit=limit, offset=len(matches) + odd
            )
        except requests.HTTPError as error:
            code = None if error.response is None else error.response.status_code
            if not matches or code not in _BEYOND_THE_LAST:
                raise
            _logger.error("HTTP status %d came after %d match(es); there may be others", code, len(matches))
            break
        items = [item for item in page if _is_match(item)]
        odd += len(page) - len(items)
        new = [item for item in items if json.dumps(item.get(own) or item, sort_keys=True) not in known]
        known.update(json.dumps(item.get(own) or item, sort_keys=True) for item in new)
        matches += new
        if not new:
            if items:
                _logger.error(
                    "the archive repeats its %d match(es) when asked for more; there may be others", len(matches)
                )
            break
    if odd and not matches:
        raise TypeError("an answer without any match")  # `web_client` explains it
    if odd:
        _logger.error("the archive's answer holds items that are no DICOM JSON objects; they were left out")
    return matches[: query.limit or None]


def _is_match(item: object) -> bool:
    """Whether an item is an object that holds an attribute (PS3.18 F.2.2); the text of an error, say, is none."""
    return isinstance(item, dict) and any(isinstance(value, dict) and "vr" in value for value in item.values())


def _expected(client: DICOMwebClient, query: Query) -> int | None:
    """How many instances should come; None if the service does not search."""
    if query.sop_instance_uid:
        return 1
    try:
        if query.series_instance_uid:
            uids = [query.series_instance_uid]
        else:
            series = _pages(client, Query("series", query.study_instance_uid))
            uids = [str(_match(item).SeriesInstanceUID) for item in series]
        return sum(len(_pages(client, Query("image", query.study_instance_uid, uid))) for uid in uids)
    except (QueryError, *READ_ERRORS):  # type: ignore[misc]  # errors of requests are among them
        return None


def _retrieved(client: DICOMwebClient, query: Query, level: str) -> Iterable[Dataset]:
    study, series = query.study_instance_uid, query.series_instance_uid
    if level == "study":
        return client.iter_study(study, media_types=_AS_STORED)
    if level == "series":
        return client.iter_series(study, series, media_types=_AS_STORED)
    return [client.retrieve_instance(study, series, query.sop_instance_uid, media_types=_AS_STORED)]


def _file_bytes(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _batches(items: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Groups of files of one kind, small enough for one request."""
    for _, group in groupby(items, key=lambda item: item.kind):
        batch, size = list[Outgoing](), 0
        for item in group:
            length = item.file.stat().st_size
            # dicomweb-client builds a request in memory.
            if batch and (len(batch) == MOST_INSTANCES or size + length > MOST_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(item)
            size += length
        yield batch


def _stow(destination: Destination, batch: Sequence[Outgoing]) -> list[Outcome]:
    datasets = [_as_file(item) for item in batch]
    with web_client(destination) as client:
        try:
            answer = client.store_instances(datasets)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in _REFUSED:
                raise
            # The body of a refusal may list the instances, each with its reason; without such a list the whole
            # request failed.
            answer = _refusals(error.response)
            if "FailedSOPSequence" not in answer and "ReferencedSOPSequence" not in answer:
                raise
    return [_outcome(item, answer) for item in batch]


def _as_file(item: Outgoing) -> FileDataset:
    """The data set with everything that a DICOM file must have (PS3.10 7.1), also if the file lacks it."""
    dataset = load_dataset(item.file, with_pixels=True)
    dataset.preamble = dataset.preamble or b"\0" * 128
    dataset.file_meta.MediaStorageSOPClassUID = item.sop_class_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = item.sop_instance_uid
    validate_file_meta(dataset.file_meta, enforce_standard=True)
    return dataset


def _refusals(response: requests.Response) -> Dataset:
    try:
        return Dataset.from_json(response.json())
    except READ_ERRORS:
        return Dataset()


def _outcome(item: Outgoing, answer: Dataset) -> Outcome:
    """The outcome of one instance in a Store Instances Response Module (PS3.3 C.12.1, PS3.18 I.2)."""
    # An instance that the answer lists as failed has failed, also if it is listed as stored too, or if its reason is
    # missing (0x0110: processing failure) or is the code of a warning.
    for failed in answer.get("FailedSOPSequence") or []:
        if failed.get("ReferencedSOPInstanceUID") == item.sop_instance_uid:
            code = int(failed.get("FailureReason") or 0x0110)
            state = state_of(code)
            return item.outcome("refused" if state in ("sent", "warning") else state, meaning(code, "STOW-RS"), code)
    for stored in answer.get("ReferencedSOPSequence") or []:
        if stored.get("ReferencedSOPInstanceUID") == item.sop_instance_uid:
            code = int(stored.get("WarningReason") or 0)
            return item.outcome("warning" if code else "sent", meaning(code, "STOW-RS"), code)
    return item.outcome("failed", "the answer does not mention this instance, so it is unknown whether it arrived")

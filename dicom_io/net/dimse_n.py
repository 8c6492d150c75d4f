"""DIMSE-N services of a provider: an operation becomes a `Request`, a refusal becomes a status with a comment (PS3.7 10.1)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pynetdicom import evt

from dicom_io.errors import RefusedError
from dicom_io.net.limits import IncomingDataSet
from dicom_io.net.pynetdicom_patches import LimitedDimseProvider
from dicom_io.reading.bounded import MAX_ITEMS
from dicom_io.reading.headers import is_uid

PROCESSING_FAILURE = 0x0110  # PS3.7 annex C
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_EVENT = 0x0113
INVALID_ARGUMENT = 0x0115
CLASS_CONFLICT = 0x0119
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213
COMMENT_LENGTH = 64  # LO

# The tag of an item in little endian. pydicom makes objects of each, so many small items fill much memory.
_ITEM = b"\xfe\xff\x00\xe0"
_CONTENT = {
    evt.EVT_N_ACTION: ("ActionInformation", "action_information"),
    evt.EVT_N_CREATE: ("AttributeList", "attribute_list"),
    evt.EVT_N_EVENT_REPORT: ("EventInformation", "event_information"),
}
"""Attributes of pynetdicom's request and event that hold the data set of an operation, encoded and decoded."""

_logger = logging.getLogger(__name__)


class RequestRefusedError(RefusedError):
    """A request is not carried out."""


@dataclass(frozen=True)
class Request:
    """An operation that the other side asks for.

    Attributes:
        ae_title: AE title that the other side gives itself.
        type_id: Action type or event type; None for other operations.
        sop_instance_uid: Empty where the request names no instance.
        content: Its data set. It comes from outside, so reading an element may raise any of `instances.READ_ERRORS`.
        dimse: Of its association, see `pynetdicom_patches.limit_association`.
    """

    ae_title: str
    type_id: int | None
    sop_instance_uid: str
    content: Dataset
    dimse: LimitedDimseProvider


@dataclass(frozen=True)
class Service:
    """One operation of one SOP class.

    Attributes:
        sop_class_uid: SOP class of the presentation context.
        event: pynetdicom's event for the operation, such as `evt.EVT_N_CREATE`.
        answer: Carries out a request and returns the attributes of the answer, if there are any. Raises
            RequestRefusedError to refuse the request; any other error is answered with 0x0110.
        close: Called when the provider is closed.
    """

    sop_class_uid: str
    event: Any
    answer: Callable[[Request], Dataset | None]
    close: Callable[[], None] = lambda: None


def text_of(dataset: Dataset, keyword: str) -> str | None:
    """A text or UID as its bytes say it, without the padding; None where the attribute is absent.

    pydicom would check the value and log a wrong value; it comes from outside, and may be anything.
    """
    element = dataset.get_item(keyword)
    if element is None:
        return None
    value = element.value
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")).strip("\0 ")


def uid_of(dataset: Dataset, keyword: str) -> str:
    """A UID. Raises RequestRefusedError (0x0115) where the attribute is absent or not a UID."""
    uid = text_of(dataset, keyword) or ""
    if not is_uid(uid):
        raise RequestRefusedError(INVALID_ARGUMENT, f"{keyword} is not a UID")
    return uid


def items_of(dataset: Dataset, keyword: str) -> list[Dataset] | None:
    """The items of a sequence; None where the attribute is absent. Raises TypeError where it is not a sequence."""
    value = dataset.get(keyword)
    if value is not None and not isinstance(value, DicomSequence):
        raise TypeError(f"{keyword} is not a sequence")
    return None if keyword not in dataset else list(value or [])


def service_handlers(services: Sequence[Service]) -> list[Any]:
    """pynetdicom's (event, function) pairs for limited associations; services with the same event share a pair.

    Raises:
        ValueError: Two services are for the same operation of the same SOP class.
    """
    operations = [(service.event, service.sop_class_uid) for service in services]
    if len(set(operations)) < len(operations):
        raise ValueError(
            f"{len(operations)} services are for {len(set(operations))} operations; one for each is needed; leave others out"
        )
    events: dict[Any, dict[str, Service]] = {}
    for service in services:
        events.setdefault(service.event, {})[service.sop_class_uid] = service
    return [(event, _answer, [by_class]) for event, by_class in events.items()]


def _answer(event: Any, services: dict[str, Service]) -> tuple[Dataset, Dataset | None]:
    """Status and attributes of the answer to one request."""
    status, reply = Dataset(), None
    try:
        reply = _service(event, services).answer(_request(event))
        status.Status = 0x0000
    except RequestRefusedError as error:
        status.Status, text = error.status, str(error)
    except Exception as error:  # whatever failed, the request is not carried out
        status.Status, text = PROCESSING_FAILURE, f"the request could not be carried out ({type(error).__name__})"
    if status.Status:
        status.ErrorComment = text[:COMMENT_LENGTH]
        _logger.warning("refused a request (0x%04X): %s", status.Status, text)
    return status, reply


def _service(event: Any, services: dict[str, Service]) -> Service:
    """The service of the presentation context; pynetdicom lets a request name another class than its context."""
    agreed = str(event.context.abstract_syntax)
    if _affected_or_requested(event.request, "SOPClassUID") != agreed or agreed not in services:
        raise RequestRefusedError(CLASS_CONFLICT, "the SOP class of the request is not that of its context")
    return services[agreed]


def _affected_or_requested(request: Any, name: str) -> str:
    """The value of an attribute whose keyword depends on the operation; empty where it is absent (PS3.7 table E.1-1)."""
    return str(getattr(request, f"Affected{name}", None) or getattr(request, f"Requested{name}", None) or "")


def _request(event: Any) -> Request:
    request = event.request
    other_side = event.assoc.requestor if event.assoc.is_acceptor else event.assoc.acceptor
    return Request(
        ae_title=str(other_side.ae_title).strip(),
        type_id=getattr(request, "ActionTypeID", None) or getattr(request, "EventTypeID", None),
        sop_instance_uid=_affected_or_requested(request, "SOPInstanceUID"),
        content=_content(event),
        dimse=event.assoc.dimse,
    )


def _content(event: Any) -> Dataset:
    """The data set of a request, of bounded size; pydicom decodes an element only when it is read."""
    encoded, decoded = _CONTENT[event.event]
    stream = getattr(event.request, encoded)
    if isinstance(stream, IncomingDataSet) and stream.refused:
        raise RequestRefusedError(RESOURCE_LIMITATION, stream.refused)
    # A value may hold these bytes by chance, so the count is at least the number of items.
    if stream is not None and stream.getvalue().count(_ITEM) > MAX_ITEMS:
        raise RequestRefusedError(RESOURCE_LIMITATION, f"more than {MAX_ITEMS} items")
    content: Dataset = getattr(event, decoded)
    return content

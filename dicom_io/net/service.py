"""Further services of a provider: what is asked becomes a `Request`, what is refused a status with words (PS3.7 10.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pynetdicom import evt

from dicom_io.net.messages import Intake, Messages
from dicom_io.net.outcome import RefusedError
from dicom_io.reading.bounded import MAX_ITEMS

PROCESSING_FAILURE = 0x0110  # PS3.7 annex C
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_EVENT = 0x0113
INVALID_ARGUMENT = 0x0115
CLASS_CONFLICT = 0x0119
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213
COMMENT_LENGTH = 64  # LO

_ITEM = b"\xfe\xff\x00\xe0"

_logger = logging.getLogger(__name__)


class RequestRefusedError(RefusedError):
    """A request is not carried out."""


@dataclass(frozen=True)
class Request:
    """What a service is asked.

    Attributes:
        ae_title: Who asks, by the title that it gives itself.
        type_id: Action type or event type; None for other operations.
        sop_instance_uid: Empty where the request names none.
        content: Its data set. It comes from outside, so reading an element may raise any of `instances.READ_ERRORS`.
        messages: Of an association that is `messages.bound`, as those of a provider are.
    """

    ae_title: str
    type_id: int | None
    sop_instance_uid: str
    content: Dataset
    messages: Messages | None = None


Answer = Callable[[Request], Dataset | None]


@dataclass(frozen=True)
class Service:
    """One operation of one SOP class.

    Attributes:
        sop_class_uid: Of the presentation context.
        event: pynetdicom's event for the operation, such as `evt.EVT_N_CREATE`.
        answer: Carries out a request and gives the attributes of the answer, where it has some. Raises
            RequestRefusedError to refuse it; anything else that it raises is answered with 0x0110.
        close: Called when the provider is closed.
    """

    sop_class_uid: str
    event: Any
    answer: Answer
    close: Callable[[], None] = lambda: None

    @property
    def is_report(self) -> bool:
        """Whether it takes reports of others, who are the provider then."""
        return bool(self.event == evt.EVT_N_EVENT_REPORT)


def text_of(dataset: Dataset, keyword: str) -> str | None:
    """A text or UID as its bytes say it, without the padding; None where the attribute is absent.

    pydicom would check the value and log one that is wrong; it comes from outside, and may be anything.
    """
    element = dataset.get_item(keyword)
    if element is None:
        return None
    value = element.value
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")).strip("\0 ")


def items_of(dataset: Dataset, keyword: str) -> list[Dataset] | None:
    """The items of a sequence; None where the attribute is absent. Raises TypeError where it is no sequence."""
    found = dataset.get(keyword)
    if found is not None and not isinstance(found, DicomSequence):
        raise TypeError(f"{keyword} is no sequence")
    return None if keyword not in dataset else list(found or [])


def handlers(services: Sequence[Service]) -> list[Any]:
    """pynetdicom's (event, function) pairs; services with the same event share one.

    Raises:
        ValueError: Two services are for the same operation of the same SOP class.
    """
    operations = [(service.event, service.sop_class_uid) for service in services]
    if len(set(operations)) < len(operations):
        raise ValueError(
            f"{len(operations)} services are for {len(set(operations))} operations; one for each is needed; leave others out"
        )
    events = dict.fromkeys(service.event for service in services)
    return [
        (event, _answered, [{one.sop_class_uid: one for one in services if one.event == event}]) for event in events
    ]


def _answered(event: Any, services: dict[str, Service]) -> tuple[Dataset, Dataset | None]:
    """Status and attributes of the answer to one request."""
    status, reply = Dataset(), None
    try:
        reply = _service(event, services).answer(_request(event))
        status.Status = 0x0000
    except RequestRefusedError as error:
        status.Status, text = error.status, str(error)
    except Exception as error:  # whatever it is, it is not done
        status.Status, text = PROCESSING_FAILURE, f"the request could not be carried out ({type(error).__name__})"
    if status.Status:
        status.ErrorComment = text[:COMMENT_LENGTH]
        _logger.warning("refused a request (0x%04X): %s", status.Status, text)
    return status, reply


def _service(event: Any, services: dict[str, Service]) -> Service:
    """The service of the presentation context; pynetdicom lets a request name another class than its context."""
    request = event.request
    named = getattr(request, "AffectedSOPClassUID", None) or getattr(request, "RequestedSOPClassUID", None)
    agreed = str(event.context.abstract_syntax)
    if str(named or "") != agreed or agreed not in services:
        raise RequestRefusedError(CLASS_CONFLICT, "the SOP class of the request is not that of its context")
    return services[agreed]


def _request(event: Any) -> Request:
    request, title = event.request, "requestor" if event.assoc.is_acceptor else "acceptor"
    dimse = event.assoc.dimse
    return Request(
        ae_title=str(getattr(event.assoc, title).ae_title).strip(),
        type_id=getattr(request, "ActionTypeID", None) or getattr(request, "EventTypeID", None),
        sop_instance_uid=str(
            getattr(request, "AffectedSOPInstanceUID", None) or getattr(request, "RequestedSOPInstanceUID", None) or ""
        ),
        content=_content(event),
        messages=dimse if isinstance(dimse, Messages) else None,
    )


_CONTENT = {
    evt.EVT_N_ACTION: ("ActionInformation", "action_information"),
    evt.EVT_N_CREATE: ("AttributeList", "attribute_list"),
    evt.EVT_N_EVENT_REPORT: ("EventInformation", "event_information"),
}


def _content(event: Any) -> Dataset:
    """The data set of a request, which pydicom takes apart only when it is read. Of bounded cost."""
    raw, decoded = _CONTENT[event.event]
    stream = getattr(event.request, raw)
    if isinstance(stream, Intake) and stream.refused:
        raise RequestRefusedError(RESOURCE_LIMITATION, stream.refused)
    if stream is not None and stream.getvalue().count(_ITEM) > MAX_ITEMS:
        raise RequestRefusedError(RESOURCE_LIMITATION, f"more than {MAX_ITEMS} items")
    found: Dataset = getattr(event, decoded)
    return found

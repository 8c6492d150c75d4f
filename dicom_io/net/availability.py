"""Instance Availability Notification (PS3.4 R) as provider: the other side says where the instances of a study are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import evt

from dicom_io.net.dimse_n import Request, RequestRefusedError, Service, items_of, text_of
from dicom_io.objects.encoding import data_set
from dicom_io.reading.headers import is_uid

NOTIFICATION = UID("1.2.840.10008.5.1.4.33")
ONLINE = "ONLINE"
CODES = (ONLINE, "NEARLINE", "OFFLINE", "UNAVAILABLE")  # PS3.3 C.4.23.1.1

INVALID_VALUE = 0x0106  # PS3.7 C.5
MISSING_ATTRIBUTE = 0x0120
MISSING_VALUE = 0x0121

Value = TypeVar("Value", str, list[Dataset])


@dataclass(frozen=True)
class NotifiedInstance:
    """One instance of a notification.

    Attributes:
        availability: One of `CODES`.
        retrieve_ae_title: AE title from which the instance can be retrieved.
    """

    sop_class_uid: str
    sop_instance_uid: str
    availability: str
    retrieve_ae_title: str


@dataclass(frozen=True)
class Availability:
    """A notification on some or all instances of one study.

    Attributes:
        ae_title: AE title that the other side gives itself.
        study_instance_uid: The study of all instances.
        series: Series Instance UID -> its instances, at least one.
    """

    ae_title: str
    study_instance_uid: str
    series: Mapping[str, tuple[NotifiedInstance, ...]]

    @property
    def online(self) -> dict[str, tuple[str, ...]]:
        """Series Instance UID -> SOP Instance UIDs that can be retrieved at once; a series without any is left out."""
        online = {
            series: tuple(instance.sop_instance_uid for instance in instances if instance.availability == ONLINE)
            for series, instances in self.series.items()
        }
        return {series: instances for series, instances in online.items() if instances}


def availability_service(notified: Callable[[Availability], None]) -> Service:
    """Takes notifications; for `Provider(services=...)`.

    Args:
        notified: Called with each notification, which is answered with success after this returns, and with 0x0110 if this
            raises.
    """

    def answer(request: Request) -> Dataset | None:
        notified(parse_notification(request))
        if request.sop_instance_uid:
            return None
        # PS3.7 10.1.5.1.4: the provider makes the UID if the request has none.
        return data_set(AffectedSOPInstanceUID=generate_uid())

    return Service(NOTIFICATION, evt.EVT_N_CREATE, answer)


def parse_notification(request: Request) -> Availability:
    """The content of an N-CREATE. A series may stand in several items.

    Raises:
        RequestRefusedError: An attribute of Type 1 in PS3.4 table R.3.2-1 is missing (0x0120), empty (0x0121) or invalid
            (0x0106).
    """
    study, series = _uid(request.content, "StudyInstanceUID"), dict[str, tuple[NotifiedInstance, ...]]()
    for item in _type_1(items_of, request.content, "ReferencedSeriesSequence"):
        uid = _uid(item, "SeriesInstanceUID")
        series[uid] = (*series.get(uid, ()), *map(_instance, _type_1(items_of, item, "ReferencedSOPSequence")))
    return Availability(request.ae_title, study, series)


def _instance(item: Dataset) -> NotifiedInstance:
    code = _type_1(text_of, item, "InstanceAvailability")
    if code not in CODES:
        raise RequestRefusedError(INVALID_VALUE, "InstanceAvailability is not one of its four values")
    class_uid, instance_uid = _uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID")
    return NotifiedInstance(class_uid, instance_uid, code, _type_1(text_of, item, "RetrieveAETitle"))


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = _type_1(text_of, dataset, keyword)
    if not is_uid(uid):
        raise RequestRefusedError(INVALID_VALUE, f"{keyword} is not a UID")
    return uid


def _type_1(value_of: Callable[[Dataset, str], Value | None], dataset: Dataset, keyword: str) -> Value:
    """The value of an attribute that must be present and not empty (PS3.5 7.4.1), by `text_of` or `items_of`."""
    value = value_of(dataset, keyword)
    if value is None:
        raise RequestRefusedError(MISSING_ATTRIBUTE, f"{keyword} is missing")
    if not value:
        raise RequestRefusedError(MISSING_VALUE, f"{keyword} is empty")
    return value

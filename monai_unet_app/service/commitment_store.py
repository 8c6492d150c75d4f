"""Storage commitment by a node: a request is in the queue before it is answered, and reported on until it was heard."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time

from dicom_io.errors import DicomIoError, NetworkError
from dicom_io.net.commitment_provider import (
    DUPLICATE_TRANSACTION,
    CommitmentProvider,
    CommitmentRequest,
    Holdings,
    Reference,
)
from dicom_io.net.destination import Dimse
from dicom_io.net.service import RequestRefusedError, Service
from monai_unet_app.service.queue import Queue
from monai_unet_app.service.site_file import Site

_LOOK_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 2.0, 300.0
_FEW_TRIES = 10

_logger = logging.getLogger(__name__)


class Commitments:
    """Reports from `with` to its end, in a thread of its own: a requestor that is slow keeps nobody else waiting."""

    def __init__(self, store: Holdings, site: Site, queue: Queue) -> None:
        """Prepares it; reports go to the destination with the requestor's AE title, else over the association that asked."""
        addresses = {one.peer.ae_title: one for one in site.destinations.values() if isinstance(one.peer, Dimse)}
        self._queue, self._give_up_s = queue, site.node.give_up_h * 3600
        self._provider = CommitmentProvider(store, addresses, self._accepted)
        self._not_before: dict[tuple[str, str], float] = {}
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="commitments")

    @property
    def service(self) -> Service:
        """For the node's provider."""
        return self._provider.service

    @property
    def is_alive(self) -> bool:
        """Whether requests are still reported on."""
        return self._thread.is_alive()

    def __enter__(self) -> Commitments:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _accepted(self, request: CommitmentRequest) -> None:
        references = [list(one) for one in request.references]
        if not self._queue.commitment(request.ae_title, request.transaction_uid, references):
            raise RequestRefusedError(DUPLICATE_TRANSACTION, "the transaction came before, with other instances")

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self._report_all()
            except sqlite3.Error as error:  # nothing is forgotten: it is tried again
                _logger.error("cannot report on storage commitments (%s)", error)
                self._stop.wait(_FIRST_PAUSE_S)

    def _report_all(self) -> None:
        for ae_title, transaction, references, tries, created in self._queue.commitments():
            if self._stop.is_set() or time.monotonic() < self._not_before.get((ae_title, transaction), 0.0):
                continue
            request = CommitmentRequest(ae_title, transaction, tuple(Reference(*one) for one in references))
            self._report(request, tries, self._queue.now_s() - created > self._give_up_s)

    def _report(self, request: CommitmentRequest, tries: int, is_late: bool) -> None:
        key = (request.ae_title, request.transaction_uid)
        try:
            self._provider.report(request)
        except (NetworkError, DicomIoError, OSError) as error:
            if is_late and tries >= _FEW_TRIES:
                _logger.warning("gave up to report on a storage commitment of %s (%s)", request.ae_title, error)
                self._queue.commitment_reported(*key)
                return
            self._queue.commitment_tried(*key)
            self._not_before[key] = time.monotonic() + min(_FIRST_PAUSE_S * 2.0**tries, _LONGEST_PAUSE_S)
            return
        self._queue.commitment_reported(*key)
        self._not_before.pop(key, None)

"""Storage commitment by a node: requests are recorded before they are answered, and each report is tried until it succeeds."""

import json
import logging
import sqlite3
import threading
import time

from dicom_io.errors import DicomIoError
from dicom_io.net.commitment_provider import (
    DUPLICATE_TRANSACTION,
    CommitmentProvider,
    CommitmentRequest,
    Holdings,
    SopReference,
)
from dicom_io.net.destination import Dimse
from dicom_io.net.dimse_n import RequestRefusedError
from monai_unet_app.service.database import Database
from monai_unet_app.service.site import Site

_LOOK_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 2.0, 300.0
_FEWEST_TRIES = 10
"""No report is given up before so many tries, whatever the clock says."""

_logger = logging.getLogger(__name__)


class Commitments:
    """Reports from `with` to its end, in a thread of its own: a slow requestor keeps nobody else waiting.

    Attributes:
        service: Takes the requests, as a service of the node's provider.
    """

    def __init__(self, store: Holdings, site: Site, database: Database) -> None:
        """Nothing runs yet.

        A report goes to the destination that has the requestor's AE title, or else over the association that asked.
        """
        destinations = site.destinations.values()
        addresses = {known.peer.ae_title: known for known in destinations if isinstance(known.peer, Dimse)}
        self._database, self._give_up_s = database, site.node.give_up_h * 3600
        self._provider = CommitmentProvider(store, addresses, self._accept)
        self.service = self._provider.service
        self._not_before: dict[tuple[str, str], float] = {}
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="commitments")

    @property
    def is_alive(self) -> bool:
        """Whether requests are still reported on."""
        return self._thread.is_alive()

    def __enter__(self) -> "Commitments":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _accept(self, request: CommitmentRequest) -> None:
        """Records a request; raises `RequestRefusedError` if its transaction came before with other instances."""
        references = json.dumps(request.references)
        with self._database.transaction():
            self._database.change(
                # A requestor that missed our answer asks again with the same Transaction UID. Only other references
                # under that UID are a fault (0131H, PS3.3 C.14.1.1).
                'INSERT OR IGNORE INTO commitments (ae_title, "transaction", refs, created) VALUES (?, ?, ?, ?)',
                *request.key, references, self._database.now_s(),
            )  # fmt: skip
            query = 'SELECT refs FROM commitments WHERE ae_title = ? AND "transaction" = ?'
            recorded = self._database.column(query, *request.key)
        if recorded != [references]:
            raise RequestRefusedError(DUPLICATE_TRANSACTION, "the transaction came before, with other instances")

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self._report_all()
            except sqlite3.Error as error:  # the request stays in the database, and is reported on later
                _logger.error("cannot report on storage commitments (%s)", error)
                self._stop.wait(_FIRST_PAUSE_S)

    def _report_all(self) -> None:
        """Reports on all requests without a report, the oldest first."""
        for row in self._database.rows("SELECT * FROM commitments WHERE reported IS NULL ORDER BY created"):
            references = tuple(SopReference(*pair) for pair in json.loads(row["refs"]))
            request = CommitmentRequest(row["ae_title"], row["transaction"], references)
            if not self._stop.is_set() and time.monotonic() >= self._not_before.get(request.key, 0.0):
                self._report(request, row["attempts"], row["created"])

    def _report(self, request: CommitmentRequest, tries: int, created: float) -> None:
        """Reports on a request that came at `created`, by `Database.now_s`, and whose report has failed `tries` times."""
        try:
            self._provider.report(request)
        except (DicomIoError, OSError) as error:
            is_late = self._database.now_s() - created > self._give_up_s
            if not is_late or tries < _FEWEST_TRIES:
                self._update("attempts = attempts + 1", request.key)
                pause_s = min(_FIRST_PAUSE_S * 2.0**tries, _LONGEST_PAUSE_S)
                self._not_before[request.key] = time.monotonic() + pause_s
                return
            _logger.warning("gave up to report on a storage commitment of %s (%s)", request.ae_title, error)
        # A report that was given up counts as made, or it would be tried again at every round.
        self._update("reported = ?", request.key, time.time())
        self._not_before.pop(request.key, None)

    def _update(self, change: str, key: tuple[str, str], *values: float) -> None:
        self._database.change(
            f'UPDATE commitments SET {change} WHERE ae_title = ? AND "transaction" = ?', *values, *key
        )

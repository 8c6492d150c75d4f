"""Review pages of a node: each is made once, in the background, and compares the result with the patient's earlier result."""

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service.hints import Hints
from monai_unet_app.service.node import Node
from monai_unet_app.service.reviews import document_of, page_of, review_page
from monai_unet_app.service.rows import FOLLOW_UPS, Result

SOON_S = 0.5
"""A browser that would wait longer for a review page gets a waiting page instead."""

_IDENTITY = ("PatientID", "IssuerOfPatientID", "PatientBirthDate")
_WHEN = ("StudyDate", "StudyTime")
_MOST_COMPARED = 1000  # results among which an earlier result is searched, the newest first


class ReviewPages:
    """Makes review pages; several requests for the same page wait for the same thread."""

    def __init__(self, node: Node) -> None:
        """No page is being made yet."""
        self._node, self._lock = node, threading.Lock()
        self._making: dict[int, tuple[Future[Path], float]] = {}
        self._patients = Hints(node.store.folder, (*_IDENTITY, *_WHEN))

    def make(self, result: Result) -> Future[Path]:
        """The review page of a result, or the error that prevents it; see `reviews.review_page`."""
        with self._lock:
            known = self._making.get(result.id)
            if known is not None and known[0].done():  # a failure is reported once, then the page is tried again
                return self._making.pop(result.id)[0]
            if known is None:
                self._making[result.id] = Future(), time.monotonic()
                threading.Thread(target=self._work, args=(result,), name="review page", daemon=True).start()
            return self._making[result.id][0]

    def seconds(self, result: Result) -> float:
        """Seconds for which the page has been in the making; 0 if it is not."""
        with self._lock:
            return time.monotonic() - self._making[result.id][1] if result.id in self._making else 0.0

    def _work(self, result: Result) -> None:
        future = self._making[result.id][0]
        try:
            path = self._made(result)
        except BaseException as error:  # the requests that wait for the page get the error
            future.set_exception(error)
            return
        with self._lock:
            self._making.pop(result.id)
        future.set_result(path)

    def _made(self, result: Result) -> Path:
        earlier = None if page_of(self._node, result).exists() else self.earlier(result)
        if earlier is not None:
            with suppress(InputRefusedError):  # for instance other structures, which cannot be compared
                return review_page(self._node, result, document_of(self._node, earlier))
        return review_page(self._node, result)

    def earlier(self, result: Result) -> Result | None:
        """The result of the same rule on an earlier study of the same patient; None if there is none, or more than one.

        Patient ID, its issuer and the date of birth must be equal, and the ID not empty. A result counts only if it was
        delivered and nobody has rejected or corrected it. Of several earlier studies, the last study is taken.
        """
        # A Patient ID is unique only with its issuer (PS3.3 C.7.1.1), which many headers lack: hence the date of birth.
        patient, time_of_study = self._patient(result)
        if not patient[0] or not time_of_study[0]:
            return None
        by_study: dict[tuple[str, ...], list[Result]] = {}
        for other in self._node.queue.results(("delivered",), _MOST_COMPARED):
            if (
                other.rule != result.rule
                or other.study == result.study
                or not other.series
                or other.verdict in FOLLOW_UPS
            ):
                continue
            # DA is YYYYMMDD and TM begins with the hours (PS3.5 6.2): as texts they sort by time.
            other_patient, other_time = self._patient(other)
            if other_patient == patient and other_time[0] and other_time < time_of_study and self._is_valid(other):
                by_study.setdefault((*other_time, other.study), []).append(other)
        last = by_study[max(by_study)] if by_study else []
        newest = {other.series: other for other in sorted(last, key=lambda other: other.id)}
        return next(iter(newest.values())) if len(newest) == 1 else None

    def _patient(self, result: Result) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The identity of the patient, and the date and time of the study."""
        values = self._patients.of(result.study)
        return values[: len(_IDENTITY)], values[len(_IDENTITY) :]

    def _is_valid(self, result: Result) -> bool:
        decisions = self._node.queue.decisions_of(result.id)
        return bool(result.folder) and all(decision.decision in ("accepted", "released") for decision in decisions)

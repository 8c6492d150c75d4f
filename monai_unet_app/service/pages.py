"""Review pages of a node: each is made once, in the background, and is compared with the patient's earlier result."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service.hints import Hints
from monai_unet_app.service.node import Node
from monai_unet_app.service.reviews import document_of, page_of, review_page
from monai_unet_app.service.rows import FOLLOW_UPS, Result

SOON_S = 0.5
"""A page that takes longer is waited for on a page of its own."""

_IDENTITY = ("PatientID", "IssuerOfPatientID", "PatientBirthDate")
_WHEN = ("StudyDate", "StudyTime")
_MOST_COMPARED = 1000  # results that are searched for an earlier one, the newest first


class ReviewPages:
    """Makes review pages. Whoever asks for one that is being made waits for it with the others."""

    def __init__(self, node: Node) -> None:
        """Nothing is made yet."""
        self._node, self._lock = node, threading.Lock()
        self._making: dict[int, tuple[Future[Path], float]] = {}
        self._patients = Hints(node.store.folder, (*_IDENTITY, *_WHEN))

    def make(self, result: Result) -> Future[Path]:
        """The page on a result, or what prevents it, as soon as it is known; see `reviews.review_page`."""
        with self._lock:
            known = self._making.get(result.id)
            if known is not None and known[0].done():  # a failure, which is told once; then it is tried again
                return self._making.pop(result.id)[0]
            if known is None:
                self._making[result.id] = Future(), time.monotonic()
                threading.Thread(target=self._work, args=(result,), name="review page", daemon=True).start()
            return self._making[result.id][0]

    def seconds(self, result: Result) -> float:
        """For how long the page has been made; 0 if it is not being made."""
        with self._lock:
            return time.monotonic() - self._making[result.id][1] if result.id in self._making else 0.0

    def _work(self, result: Result) -> None:
        future = self._making[result.id][0]
        try:
            path = self._made(result)
        except BaseException as error:  # whoever waits for the page is told
            future.set_exception(error)
            return
        with self._lock:
            self._making.pop(result.id)
        future.set_result(path)

    def _made(self, result: Result) -> Path:
        post_url = f"/results/{result.id}/verdict"
        earlier = None if page_of(self._node, result).exists() else self.earlier(result)
        if earlier is not None:
            try:
                return review_page(self._node, result, post_url, document_of(self._node, earlier))
            except InputRefusedError:  # such as other structures: then there is nothing to compare with
                pass
        return review_page(self._node, result, post_url)

    def earlier(self, result: Result) -> Result | None:
        """The result of the same rule on an earlier study of the same patient; None if there is none, or more than one.

        Patient ID, its issuer and the date of birth must be alike and the ID present. A result counts that has been delivered
        and that nobody has rejected or corrected. Of several studies the last before this one is taken.
        """
        who, when = self._patient(result)
        if not who[0] or not when[0]:
            return None
        found: dict[tuple[str, ...], list[Result]] = {}
        for one in self._node.queue.results(("delivered",), _MOST_COMPARED):
            if one.rule != result.rule or one.study == result.study or not one.series or one.verdict in FOLLOW_UPS:
                continue
            other, other_when = self._patient(one)
            if other == who and other_when[0] and other_when < when and self._stands(one):
                found.setdefault((*other_when, one.study), []).append(one)
        last = found[max(found)] if found else []
        newest = {one.series: one for one in sorted(last, key=lambda one: one.id)}
        return next(iter(newest.values())) if len(newest) == 1 else None

    def _patient(self, result: Result) -> tuple[tuple[str, ...], tuple[str, ...]]:
        said = self._patients.of(result.study)
        return said[: len(_IDENTITY)], said[len(_IDENTITY) :]

    def _stands(self, result: Result) -> bool:
        decisions = self._node.queue.decisions_of(result.id)
        return bool(result.folder) and all(one.decision in ("accepted", "released") for one in decisions)

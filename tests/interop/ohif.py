"""The OHIF viewer as a reader meets it: served beside an archive's DICOMweb, driven in a headless Chromium.

Who looks at it looks at pictures of the window: what OHIF draws cannot be read back from its canvases.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browser import Tab
from numpy.typing import NDArray
from orthanc import Orthanc

DIST = Path(__file__).resolve().parents[2] / "build/ohif/dist"
WAIT_S = 90.0  # no step takes more than some seconds where nothing else runs
STILL_S = 0.5
TRIES = 4
CANVAS = ".cornerstone-canvas"
RESULT = '[data-cy="study-browser-thumbnail-no-image"]'  # a series without pictures of its own: our SEG or RTSTRUCT
YES = '[data-cy="yes-hydrate-btn"]'
_SKIP = "[...document.querySelectorAll('button')].find((one) => one.textContent.trim() === 'Skip all')"
_INSTANCE = "document.querySelector('[data-cy=\"viewport-overlay-bottom-right\"]')?.textContent.match(/I:(\\d+)/)?.[1]"
_NOTHING_OVER_THE_IMAGE = (
    "document.head.append(Object.assign(document.createElement('style'), {textContent:"
    "'.ViewportOrientationMarkers, .viewport-overlay, [role=slider], [data-sonner-toaster] {visibility: hidden}'}))"
)
CONFIG = {
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "customizationService": {},
    "investigationalUseDialog": {"option": "never"},
    "showStudyList": True,
    "maxNumberOfWebWorkers": 1,
    "strictZSpacingForVolumeViewport": True,
    "defaultDataSourceName": "archive",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "archive",
            "configuration": {
                "friendlyName": "archive",
                "name": "archive",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "wadoUriRoot": "/dicom-web",
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
            },
        }
    ],
}


class Site(SimpleHTTPRequestHandler):
    """OHIF's files with a configuration of ours, and the archive's DICOMweb under the same origin."""

    archive: str

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/dicom-web/"):
            self._pass_on()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", f"window.config = {json.dumps(CONFIG)};".encode())
        else:
            if not (DIST / path.lstrip("/")).is_file():  # an address within the viewer
                self.path = "/index.html"
            super().do_GET()

    def _pass_on(self) -> None:
        # with our own address as Host, what Orthanc refers to lies here too
        headers = {"Accept": self.headers.get("Accept", "*/*"), "Host": self.headers["Host"]}
        request = Request(self.archive + self.path.removeprefix("/dicom-web"), headers=headers)
        try:
            with urlopen(request, timeout=60) as answer:
                self._answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
        except HTTPError as error:
            self._answer(error.code, error.headers.get("Content-Type", ""), error.read())

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def ohif(archive: Orthanc) -> Iterator[str]:
    """The address of an OHIF that shows what an archive has, until the `with` ends."""
    if not (DIST / "index.html").is_file():
        pytest.skip("OHIF is not there; `make interop` fetches it")

    class Handler(Site):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(DIST))

    Handler.archive = archive.web
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class Viewer:
    """A study that is open in OHIF, with its only result loaded."""

    def __init__(self, tab: Tab, site: str, study_instance_uid: str) -> None:
        self.tab = tab
        tab.open(f"{site}/viewer?StudyInstanceUIDs={study_instance_uid}")
        tab.wait(f"!!{_SKIP}", WAIT_S)  # the tour of a first visit
        tab.ask(f"{_SKIP}.click()")
        tab.wait(f"!{_SKIP}", WAIT_S)
        self._wait_for(RESULT)
        self._offer_result()
        tab.click(YES)
        tab.wait(f"!document.querySelector('{YES}')", WAIT_S)
        tab.ask(_NOTHING_OVER_THE_IMAGE)

    def _wait_for(self, selector: str, timeout_s: float = WAIT_S) -> None:
        self.tab.wait(f"!!document.querySelector('{selector}')", timeout_s)

    def _offer_result(self) -> None:
        """Clicks until OHIF asks whether to open the result: the list moves while it is filled, and a click may miss."""
        for _ in range(TRIES):
            self.tab.click(RESULT)
            self.tab.click(RESULT, times=2)
            with suppress(TimeoutError):
                self._wait_for(YES, WAIT_S / TRIES)
                return
        raise TimeoutError(f"OHIF did not offer the result; the page said {self.tab.console}")

    def slice_picture(self, number: int, is_there: Callable[[NDArray[np.uint8]], bool]) -> NDArray[np.uint8]:
        """Shape (rows, columns, 3): the window's view of the instance with this InstanceNumber, once `is_there` knows it."""
        end = time.monotonic() + WAIT_S
        while (shown := self._instance_shown()) != number:
            if time.monotonic() > end:
                raise TimeoutError(f"the viewer shows instance {shown} and does not come to {number}")
            self.tab.turn_wheel(CANVAS, 100 if number > shown else -100)
            with suppress(TimeoutError):  # OHIF may drop a turn of the wheel while it still loads
                self.tab.wait(f"({_INSTANCE} ?? '{shown}') !== '{shown}'", WAIT_S / TRIES)
        return self._still(CANVAS, is_there)

    def _instance_shown(self) -> int:
        """The InstanceNumber at the image's corner, which OHIF takes away while it exchanges what the window shows."""
        self.tab.wait(f"!!{_INSTANCE}", WAIT_S)
        return int(self.tab.ask(f"{_INSTANCE} ?? 0"))

    def reformatted(
        self, is_there: Callable[[NDArray[np.uint8]], bool], is_plane: Callable[[NDArray[np.uint8]], bool]
    ) -> list[NDArray[np.uint8]]:
        """The patient's axial, sagittal and coronal plane through the volume's middle, once `is_there` knows them together.

        OHIF draws them one after another: `is_plane` knows one that is drawn.
        """
        self.tab.click('[data-cy="Layout"]')
        self._wait_for('[data-cy="MPR"]')
        self.tab.click('[data-cy="MPR"]')
        self.tab.wait(f"document.querySelectorAll('{CANVAS}').length === 3", WAIT_S)
        self._still('[data-cy="viewport-grid"]', is_there)
        panes = [f'[data-viewportid="mpr-{plane}"]' for plane in ("axial", "sagittal", "coronal")]
        return [self._still(pane, is_plane) for pane in panes]

    def _still(self, selector: str, is_there: Callable[[NDArray[np.uint8]], bool]) -> NDArray[np.uint8]:
        """The picture of an element that is there and has not changed for a while."""
        end = time.monotonic() + WAIT_S
        last, since = self.tab.picture(selector), time.monotonic()
        while time.monotonic() < end:
            time.sleep(0.1)
            now = self.tab.picture(selector)
            if now.shape != last.shape or (now != last).any() or not is_there(now):
                last, since = now, time.monotonic()
            elif time.monotonic() - since >= STILL_S:
                return now
        raise TimeoutError(f"{selector} was not drawn within {WAIT_S} s; the page said {self.tab.console}")

"""A headless Chromium, driven over its DevTools pipe: open a page, ask it things, click, look at the pixels."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--hide-scrollbars",
)
CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (one) => { for (; one; one = one.parentElement) { const c = parse(getComputedStyle(one).backgroundColor);
    if (c.length < 4 || c[3] > 0.5) return c; } return [255, 255, 255]; };
  const found = [];
  for (const one of document.querySelectorAll(SELECTOR)) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const box = one.getBoundingClientRect();
    if (!own || !box.width || !box.height || one.closest('style, script, svg, option')) continue;
    if (getComputedStyle(one).opacity < 1) continue; // a control that is switched off
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), one.tagName, one.textContent.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
})()
"""
"""The lowest contrast of a text to its ground, by WCAG 2.2, 1.4.3, and the element and words with it."""

ANSWER_S = 120.0
NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The browser of this machine, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page of a running browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._buffer, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and gives its answer. Raises RuntimeError if the browser refuses it, TimeoutError if it is silent."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], ANSWER_S)[0]:
                raise TimeoutError(f"the browser has said nothing for {ANSWER_S} s")
            part = os.read(self._from, 1 << 16)
            if not part:
                raise RuntimeError("the browser has gone")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        found = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(found["exceptionDetails"].get("exception", {}).get("description", found)))
        elif event.get("method") == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.console.append(found["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])

    def open(self, url: str) -> None:
        """Begins to load a page."""
        self.call("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str, timeout_s: float) -> float:
        """Seconds until an expression is true. Raises TimeoutError."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            try:
                if self.ask(expression):
                    return time.monotonic() - begin
            except RuntimeError:  # the page is being exchanged
                pass
            time.sleep(0.05)
        raise TimeoutError(f"{expression} was not true within {timeout_s} s; the page said {self.console}")

    def wait_for_file(self, path: Path, timeout_s: float) -> None:
        """Passes when a file has been downloaded. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while not path.is_file():
            if time.monotonic() > end:
                raise TimeoutError(f"{path.name} was not downloaded within {timeout_s} s; the page said {self.console}")
            time.sleep(0.05)

    def allow_downloads(self, folder: Path) -> None:
        """Files that the page saves go there."""
        folder.mkdir(exist_ok=True)
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def size(self, width: int, height: int) -> None:
        """Size of the window in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def click(self, selector: str, times: int = 1) -> None:
        """Presses and releases the mouse in the middle of an element; twice is a double click."""
        self.ask(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y = self._middle(selector)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Moves the mouse from one place of the window to another with the left button held."""
        steps = [("mouseMoved", start), ("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)]
        for kind, (x, y) in steps:
            held = 0 if kind == "mouseMoved" and (x, y) == start else 1
            button = "none" if kind == "mouseMoved" else "left"
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=held,
                clickCount=int(kind != "mouseMoved"),
            )  # fmt: skip

    def point(self, x: float, y: float) -> None:
        """Moves the mouse to a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str, code: str = "") -> None:
        """Presses and releases a key of the keyboard; `code` is its place where that is not Key<key>."""
        text = key if len(key) == 1 else ""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code or f"Key{key.upper()}", text=text)

    def least_contrast(self, selector: str = "body *") -> tuple[float, str, str]:
        """The lowest contrast (1 to 21) of a text in such elements, and the element and words that have it."""
        ratio, element, words = self.ask(CONTRAST.replace("SELECTOR", json.dumps(selector)))
        return ratio, element, words

    def turn_wheel(self, selector: str, pixels: float) -> None:
        """Turns the wheel of the mouse over the middle of an element; downwards is greater than 0."""
        x, y = self._middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=pixels)

    def _middle(self, selector: str) -> tuple[float, float]:
        box = self.box(selector)
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def box(self, selector: str) -> dict[str, float]:
        """Where an element is in the window."""
        return self.ask(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")

    def picture(self, selector: str | None = None) -> NDArray[np.uint8]:
        """Shape (rows, columns, 3): the window, or an element of it, as it is seen."""
        content = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        if selector is None:
            return pixels
        box = {name: round(value) for name, value in self.box(selector).items()}
        return pixels[max(0, box["top"]) : box["bottom"], max(0, box["left"]) : box["right"]]


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which is gone afterwards."""
    command = program()
    assert command is not None
    (read_commands, write_commands), (read_answers, write_answers) = os.pipe(), os.pipe()

    def connect() -> None:  # the browser reads commands from descriptor 3 and answers on 4
        commands, answers = os.dup(read_commands), os.dup(write_answers)
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    running = subprocess.Popen(
        [command, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=connect,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Tab(write_commands, read_answers)
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        os.close(write_commands)
        os.close(read_answers)

"""A Chromium without a window, driven by its DevTools protocol over a pipe, which needs no further library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
)


# The protocol's pipe is the file descriptors 3 and 4.
BEGIN = """
import os, sys
a, b = [os.dup2(int(one), 200 + at) for at, one in enumerate(sys.argv[1:3])]
os.dup2(a, 3), os.dup2(b, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str:
    """The path of a Chromium on this machine; "" if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


class Browser:
    """One page. said: what its console said and its errors. asked: addresses that it asked for. patience: seconds that an
    answer may take."""

    def __init__(self, profile: Path, patience: float = 30.0) -> None:
        theirs, self._out = os.pipe()
        self._in, other = os.pipe()
        begin = [sys.executable, "-c", BEGIN, str(theirs), str(other)]
        words = [*begin, chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            words, pass_fds=(theirs, other), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(other)
        self.patience, self._read, self._number, self._session = patience, b"", 0, ""
        self.said: list[str] = []
        self.asked: list[str] = []

    def __enter__(self) -> Self:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for name in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{name}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def ask(self, method: str, **given: Any) -> Any:
        """Carry out one command of the protocol. Raises AssertionError if it fails, or takes too long."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps({"id": self._number, "method": method, "params": given, **session}).encode() + b"\0")
        while (found := self._next()).get("id") != self._number:
            pass
        assert "error" not in found, found["error"]
        return found["result"]

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + self.patience
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser said nothing for {self.patience:g} s"
            more = os.read(self._in, 1 << 20)
            assert more, "the browser has ended"
            self._read += more
        line, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        self._hear(found.get("method", ""), found.get("params", {}))
        return found

    def _hear(self, method: str, told: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.said.append(str(told["exceptionDetails"].get("exception", {}).get("description", told)))
            case "Log.entryAdded":
                self.said.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.said.append(str([one.get("value", one.get("description")) for one in told["args"]]))
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])

    def open(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.look(width, height, dark)
        self.ask("Page.navigate", url=address)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Make the window so large, in pixels, with the colours of the day or the night."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.ask("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in media.items()])

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value. Raises AssertionError after `patience` seconds."""
        until = time.monotonic() + self.patience
        soon = f"new Promise(done => setTimeout(() => done({expression}), 50))"
        while not (found := self.value(soon)):
            shown = self.value("document.body.innerText")[:2000] if time.monotonic() > until else ""
            assert not shown, f"never true: {expression}; the page says: {shown}; {self.said[:3]}"
        return found

    def picture(self, whole: bool = True) -> bytes:
        """The page as a PNG, also what is below the window."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

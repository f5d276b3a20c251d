"""A headless Chromium that a test drives as a person would: real keys, real drops, real screens.

Speaks Chromium's DevTools protocol over a pipe, messages of JSON ended by a null byte (--remote-debugging-pipe), so
that nothing but the browser is needed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE_S = 60


class Tab:
    """One open page."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes = reads, writes
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.said: list[str] = []
        """What the page wrote on the console, and what it threw."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._read()
            if heard.get("id") == self._last:
                assert "error" not in heard, (method, heard["error"])
                return heard["result"]

    def see(self, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """The screen: a phone where it is narrow."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        """Opens an address and waits until it is loaded."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.ask(f"!!({script})"):
            assert time.monotonic() < deadline, f"{script} did not become true; the page says {self.text()!r}"
            time.sleep(0.05)

    def text(self) -> str:
        """What can be read."""
        return self.ask("document.body.innerText")

    def press(self, key: str, code: int) -> None:
        """A key, down and up."""
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            named = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **named, **(text if kind == "keyDown" else {}))

    def choose(self, selector: str, file: Path) -> None:
        """A file for a file input, as its dialogue would give it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def drop(self, file: Path, x: int, y: int) -> None:
        """A file of the machine, dragged over the page and dropped."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def shoot(self, file: Path) -> None:
        """A picture of the whole page."""
        file.parent.mkdir(parents=True, exist_ok=True)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(shot))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._reads, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        heard: dict[str, Any] = json.loads(line)
        if heard.get("method") == "Runtime.consoleAPICalled":
            self.said.append(str([one.get("value", one.get("description")) for one in heard["params"]["args"]]))
        elif heard.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(heard["params"]["exceptionDetails"]))
        elif heard.get("method") == "Log.entryAdded":
            self.said.append(str(heard["params"]["entry"]))
        return heard


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """Starts the browser with an empty profile; ends it afterwards."""
    there, back = os.pipe(), os.pipe()
    # Chromium reads from 3 and writes to 4.
    script = f'exec "$@" 3<&{there[0]} 4>&{back[1]}'
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    command = ["bash", "-c", script, "chromium", CHROMIUM or "", *flags, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, pass_fds=(there[0], back[1]), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(there[0])
    os.close(back[1])
    try:
        yield Tab(back[0], there[1])
    finally:
        os.close(there[1])
        process.terminate()
        process.wait(PATIENCE_S)
        os.close(back[0])

"""A headless Chromium, driven by the DevTools protocol over a pipe: it needs no port and no driver program."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import host
from lab.host import Problem

# Debian's package, and the names of the program elsewhere; the first one found is used.
PACKAGE = "chromium-headless-shell"
PROGRAMS = (PACKAGE, "chromium", "chromium-browser", "google-chrome")
# The browser requests nothing from the network except the page that it shows.
ARGUMENTS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
PAUSE = 0.2


class Browser:
    """One page of a running browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write = os.fdopen(to_browser, "wb", buffering=0)
        self._read = os.fdopen(from_browser, "rb")
        self._buffer = b""
        self._number = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **words: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; ignore events before it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": words}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Problem(f"The browser refused {method}: {answer['error']['message']}")
                return answer["result"]

    def _message(self) -> bytes:
        while b"\0" not in self._buffer:
            piece = self._read.read1(1 << 16)
            if not piece:
                raise Problem("The browser ended by itself; run it by hand to see why.")
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return message

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Set the size of the page in CSS pixels; `scale` is its device scale factor."""
        words = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **words)

    def open(self, url: str) -> None:
        result = self.call("Page.navigate", url=url)
        if result.get("errorText"):
            raise Problem(f"The browser cannot open {url}: {result['errorText']}")

    def ask(self, script: str) -> Any:
        """Return the value of a JavaScript expression; wait for it if it is a promise."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise Problem(f"A script failed in the page: {details.get('exception', details).get('description')}")
        return result["result"].get("value")

    def wait(self, script: str, seconds: float) -> bool:
        """Wait until a JavaScript expression is true; return False on a timeout."""
        end = time.monotonic() + seconds
        while not self.ask(script):
            if time.monotonic() > end:
                return False
            time.sleep(PAUSE)
        return True

    def picture(self, width: float, height: float) -> bytes:
        """Return the top left part of the page as PNG."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", clip=clip)
        return base64.b64decode(answer["data"])


def program() -> str:
    """Return the path of a browser; install Debian's if there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not found:
        host.ensure_packages({PACKAGE: PACKAGE})
        found = shutil.which(PACKAGE)
    if not found:
        raise Problem(f"There is no browser: install the package {PACKAGE}.")
    return found


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """Run a browser with its own profile, and stop it at the end."""
    arguments = [program(), *ARGUMENTS, "about:blank"]
    if os.geteuid() == 0:
        arguments.insert(1, "--no-sandbox")  # root may not have one; the browser only shows this project's pages
    (their_read, our_write), (our_read, their_write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        arguments.insert(1, f"--user-data-dir={profile}")
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{their_read} 4>&{their_write}', "browser", *arguments],
            pass_fds=(their_read, their_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        os.close(their_read)
        os.close(their_write)
        try:
            yield Browser(our_write, our_read)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


def save(picture: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
    host.give_to_caller(path)

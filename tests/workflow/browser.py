"""Headless Chromium, spoken to by its own protocol (https://chromedevtools.github.io/devtools-protocol/).

    python tests/workflow/browser.py install     Debian's package, where no Chromium is found (needs root)

Of all that a driver does, the tests need a page, its console, its requests, a few expressions, keys and screenshots; tornado,
which Jupyter brings, has the WebSocket.
"""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# /dev/shm is small in containers, and root has no sandbox.
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


def find():
    """The path of a Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def install():
    """Debian's Chromium, where there is none."""
    if find():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit("no Chromium was found; only root can install it, by apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    quiet = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*quiet, "update"], env=environment, check=True)
    subprocess.run(
        [*quiet, "install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )


class Page:
    """One page. `errors` is what its console and its scripts complained of, `requests` every address it asked for."""

    def __init__(self, width, height):
        self.errors, self.requests, self._answers, self._seen, self._number = [], [], {}, set(), 0
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [find(), *OPTIONS, f"--user-data-dir={self._folder.name}", "--remote-debugging-port=0", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._loop.run_until_complete(self._connect())
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def close(self):
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        self._folder.cleanup()

    def resize(self, width, height):
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def open(self, path):
        """Load a file; seconds until its load event was over."""
        self._seen.discard("Page.loadEventFired")
        started = time.monotonic()
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        self._loop.run_until_complete(self._until(lambda: "Page.loadEventFired" in self._seen))
        return time.monotonic() - started

    def evaluate(self, expression):
        """The value of an expression. AssertionError where it throws."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, text=None):
        """One key, as from a keyboard."""
        code = {"Tab": 9, "Enter": 13}.get(key, ord(key[0]))
        more = {"text": text} if text else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def pdf(self):
        return base64.b64decode(self.send("Page.printToPDF")["data"])

    def send(self, method, **parameters):
        self._number += 1
        number = self._number
        message = json.dumps({"id": number, "method": method, "params": parameters})
        self._loop.run_until_complete(self._ask(number, message))
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    async def _ask(self, number, message):
        await self._socket.write_message(message)
        await self._until(lambda: number in self._answers)

    async def _until(self, done):
        while not done():
            message = await asyncio.wait_for(self._socket.read_message(), 60)
            assert message is not None, "Chromium went away"
            self._note(json.loads(message))

    async def _connect(self):
        from tornado.httpclient import AsyncHTTPClient
        from tornado.websocket import websocket_connect

        told = Path(self._folder.name) / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (told.is_file() and told.read_text().count("\n")):
            assert time.monotonic() < deadline, "Chromium did not start"
            await asyncio.sleep(0.05)
        port = told.read_text().splitlines()[0]
        listed = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")
        page = next(target for target in json.loads(listed.body) if target["type"] == "page")
        self._socket = await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=2**28)

    def _note(self, message):
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, about = message["method"], message["params"]
        self._seen.add(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        if method == "Runtime.exceptionThrown":
            self.errors.append(about["exceptionDetails"]["text"])
        if method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.errors.append(str(about["args"]))
        if method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])


if __name__ == "__main__":
    install()

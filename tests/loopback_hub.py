"""A model hub on 127.0.0.1, for tests: a folder of repositories behind the HTTP interface huggingface_hub
expects.

    ROOT/<organisation>/<name>/<revision>/config.json, model.safetensors, ...

Every revision is a folder. Its commit is a digest over the folder's files, so changing a file moves the
revision, as a push to a branch does; two revisions with the same files still have two commits, as two
branches with commits of their own have. Files that git would keep in large file storage (weights) carry a
sha256, the others a git blob sha1.

Spoken, each with GET: `/api/models/{repo}[/revision/{rev}][?blobs=true]`, `/api/models/{repo}/tree/{rev}`,
and with GET and HEAD `/{repo}/resolve/{rev}/{file}` (ETag, X-Linked-Etag, X-Repo-Commit, ranges); errors with
X-Error-Code. Missing: pages of the tree, Xet storage, datasets, anything that writes.

`Hub.inject` makes requests fail in a chosen way a chosen number of times; `Hub.requests` tells what was asked
for. Standard library only, and usable by hand: `python tests/loopback_hub.py ROOT --port 8017`, then
`HF_ENDPOINT=http://127.0.0.1:8017`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".model", ".pt", ".h5")
API = re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)(?:/(?P<kind>revision|tree)/(?P<revision>[^/]+))?/?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
KINDS = frozenset({"cut", "reset", "stall", "flip", "length", "status", "redirect"})


@dataclass
class Fault:
    """What goes wrong: at requests whose path contains `where`, `times` times (None: always).

    cut       the connection ends after `after` bytes of the body, politely (FIN)
    reset     the same with a RST
    stall     nothing follows the first `after` bytes for `seconds`
    flip      one bit of byte `after` is another
    length    `change` bytes too many or, if negative, too few, with a Content-Length to match
    status    HTTP `status` with `headers`
    redirect  302 to `location`
    """

    kind: str
    where: str = ""
    method: str = "GET"
    times: int | None = 1
    after: int = 0
    seconds: float = 30.0
    change: int = -1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    location: str = ""
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; known: {', '.join(sorted(KINDS))}")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int
    range: str | None
    authorization: str | None


@dataclass(frozen=True)
class Blob:
    path: str
    data: bytes

    @property
    def large(self) -> bool:
        return self.path.endswith(LARGE)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The git object's name: of the file itself, or of the pointer git keeps in its place."""
        kept = self.data
        if self.large:
            kept = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


class Hub:
    """A running server. `with Hub(root) as hub:` and `hub.endpoint` is its address.

    ranges    False: a range request gets the whole file and 200
    blobs     False: the revision's answer lists no checksums (the tree still does)
    token     requests need `Authorization: Bearer <token>`, else 401
    storage   address of another Hub over the same root that large files are fetched from (the content
    network)
    """

    def __init__(
        self,
        root: str | Path,
        *,
        port: int = 0,
        ranges: bool = True,
        blobs: bool = True,
        token: str | None = None,
        storage: str | None = None,
    ) -> None:
        self.root = Path(root)
        self.ranges, self.blobs, self.token, self.storage = ranges, blobs, token, storage
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def inject(self, kind: str, where: str = "", **settings: object) -> Fault:
        """Add a fault; the first one that fits a request and has `times` left is the one that strikes."""
        fault = Fault(kind, where, **settings)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def count(self, method: str = "", where: str = "", status: int | None = None) -> int:
        """How many requests of a method had `where` in their path and were answered with `status`."""
        return sum(
            request.method.startswith(method) and where in request.path and status in (None, request.status)
            for request in self.requests
        )

    def commit(self, repo: str, revision: str) -> str:
        """The commit a revision stands at now. Raises FileNotFoundError where there is none."""
        folder = self.root / repo / revision
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        listing = "".join(f"{blob.oid} {blob.path}\n" for blob in self.files(repo, revision))
        return hashlib.sha1(f"{repo}\n{revision}\n{listing}".encode()).hexdigest()

    def files(self, repo: str, revision: str) -> list[Blob]:
        folder = self.root / repo / revision
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return [Blob(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]

    def revision(self, repo: str, name: str) -> str | None:
        """The revision folder that a branch name or a commit stands for."""
        if (self.root / repo / name).is_dir():
            return name
        for folder in self._revisions(repo):
            if self.commit(repo, folder) == name:
                return folder
        return None

    def _revisions(self, repo: str) -> Iterator[str]:
        folder = self.root / repo
        if folder.is_dir():
            yield from sorted(path.name for path in folder.iterdir() if path.is_dir())

    def strike(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                fits = fault.method in ("", method) and fault.where in path
                if fits and (fault.times is None or fault.hits < fault.times):
                    fault.hits += 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = address.path
        fault = self.hub.strike(self.command, unquote(path))
        if fault is not None and fault.kind == "status":
            return self._send(fault.status, b"", fault.headers)
        if fault is not None and fault.kind == "redirect":
            return self._send(302, b"", {"Location": fault.location})
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._error(401, "RepoNotFound")
        if match := API.fullmatch(path):
            return self._api(match, parse_qs(address.query), fault)
        if match := RESOLVE.fullmatch(path):
            return self._resolve(match, fault)
        return self._error(404, "EntryNotFound")

    def _api(self, match: re.Match[str], query: dict[str, list[str]], fault: Fault | None) -> None:
        repo = unquote(match["repo"])
        if not (self.hub.root / repo).is_dir():
            return self._error(404, "RepoNotFound")
        revision = self.hub.revision(repo, unquote(match["revision"] or "main"))
        if revision is None:
            return self._error(404, "RevisionNotFound")
        if match["kind"] == "tree":
            return self._json([_tree_entry(blob) for blob in self.hub.files(repo, revision)], fault)
        with_blobs = self.hub.blobs and "true" in (value.lower() for value in query.get("blobs", []))
        siblings = [_sibling(blob, with_blobs) for blob in self.hub.files(repo, revision)]
        commit = self.hub.commit(repo, revision)
        return self._json({"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings}, fault)

    def _resolve(self, match: re.Match[str], fault: Fault | None) -> None:
        repo = unquote(match["repo"])
        if not (self.hub.root / repo).is_dir():
            return self._error(404, "RepoNotFound")
        revision = self.hub.revision(repo, unquote(match["revision"]))
        if revision is None:
            return self._error(404, "RevisionNotFound")
        commit = self.hub.commit(repo, revision)
        name = unquote(match["file"])
        blob = next((blob for blob in self.hub.files(repo, revision) if blob.path == name), None)
        if blob is None:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
            if self.hub.storage is not None:
                location = f"{self.hub.storage}/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"
                return self._send(302, b"", headers | {"Location": location})
        return self._file(blob.data, headers, fault)

    def _file(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        status = 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.hub.ranges:
            headers["Accept-Ranges"] = "bytes"
            if wanted:
                first = int(wanted[1])
                last = min(int(wanted[2] or len(data) - 1), len(data) - 1)
                if first >= len(data):
                    return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                data, status = data[first : last + 1], 206
        self._send(status, data, headers, fault)

    def _json(self, document: object, fault: Fault | None) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, fault)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": code}).encode()
        self._send(status, body, {"X-Error-Code": code, "Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        self.hub.requests.append(
            Request(
                self.command,
                unquote(self.path),
                status,
                self.headers.get("Range"),
                self.headers.get("Authorization"),
            )
        )
        if fault is not None and fault.kind == "flip":
            body = body[: fault.after] + bytes([body[fault.after] ^ 1]) + body[fault.after + 1 :]
        if fault is not None and fault.kind == "length":
            body = body[: fault.change] if fault.change < 0 else body + bytes(fault.change)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None or fault.kind not in ("cut", "reset", "stall"):
            self.wfile.write(body)
            return
        self.wfile.write(body[: fault.after])
        self.close_connection = True
        if fault.kind == "stall":
            self.hub.stopping.wait(fault.seconds)
        elif fault.kind == "reset":
            # Closing with an empty linger time makes the kernel send RST and drop what is unsent; the pause
            # lets the client read the first bytes, or it would see a connection that never answered.
            self.hub.stopping.wait(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def finish(self) -> None:
        # A connection that was reset, or whose client went away, cannot be flushed.
        try:
            super().finish()
        except (OSError, ValueError):
            self.close_connection = True

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError):
            self.close_connection = True


def _sibling(blob: Blob, with_blobs: bool) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": blob.path}
    if with_blobs:
        sibling |= {"size": len(blob.data), "blobId": blob.oid}
        if blob.large:
            sibling["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return sibling


def _tree_entry(blob: Blob) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": blob.path, "size": len(blob.data), "oid": blob.oid}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder of model repositories as a hub on 127.0.0.1.")
    parser.add_argument("root", type=Path, help="folder holding <organisation>/<name>/<revision>/ folders")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, which is printed")
    arguments = parser.parse_args()
    with Hub(arguments.root, port=arguments.port) as hub:
        print(hub.endpoint, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            hub.stopping.wait()


if __name__ == "__main__":
    main()

"""A hub on this machine: as much of huggingface.co's interface as its client needs to read models.

    with Hub() as hub:
        commit = hub.push("owner/name", {"config.json": b"{}", "model.safetensors": data})
        ...                                # the client, with HF_ENDPOINT=hub.url
        hub.log                            # what was asked, and what was sent

As there, small files come from the hub itself and large ones, here all .safetensors, by redirection from another host:
the same server under its other name.
"""

import hashlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

ERRORS = {
    "GatedRepo": (403, "Access to this model is restricted"),
    "EntryNotFound": (404, "Entry not found"),
    "RepoNotFound": (401, "Invalid username or password"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "BadToken": (401, "Invalid credentials in Authorization header"),
    "Busy": (503, "Service unavailable"),
}


def connect(monkeypatch, url: str, home: Path, **settings):
    """What HF_ENDPOINT=url and HF_HOME=home do. Without telemetry the client asks for nothing but the model."""
    settings = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "DOWNLOAD_CHUNK_SIZE": 2**16,
    } | settings
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)


class Asked(NamedTuple):
    method: str
    path: str  # with "{commit}" for the commit that it names
    start: int  # of the range that is asked for
    sent: int  # bytes of the file
    token: str | None


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    error: str | None = None  # of ERRORS: all that it answers; a gated one still tells what it holds


class Hub(ThreadingHTTPServer):
    """What can go wrong. cuts: file -> for each of its next downloads, after how many bytes the connection breaks, by a
    reset if the number is negative. stalls: file -> after how many bytes nothing more comes, once. spoiled: file -> the
    bytes that are sent in its place. headers: sent with every file, in place of the true ones. entries: file -> what
    the listing says of it otherwise. lies: part of a path -> what answers in the hub's place. before: called before
    each answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.log: list[Asked] = []
        self.cuts: dict[str, list[int]] = {}
        self.stalls: dict[str, int] = {}
        self.spoiled: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.entries: dict[str, dict] = {}
        self.lies: dict[str, Callable[[Handler], None]] = {}
        self.poured: list[int] = []
        self.stalled, self.closed = threading.Event(), threading.Event()
        self.before = lambda path: None
        self.ignore_ranges = self.xet = False
        self.url, self.cdn = (f"http://{host}:{self.server_port}" for host in ("127.0.0.1", "localhost"))

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.closed.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # the client went away
            super().handle_error(request, client_address)

    def push(self, name: str, files: dict[str, bytes] | Path, branch: str = "main") -> str:
        """A new commit, of these files or of those in a folder."""
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repo = self.repos.setdefault(name, Repo())
        commit = hashlib.sha1(f"{name} {len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit], repo.branches[branch] = files, commit
        return commit

    def taken(self) -> list[Asked]:
        """The log, which begins anew."""
        log, self.log = self.log, []
        return log


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.before(path)
        for part, lie in self.server.lies.items():
            if part in path:
                self.note(path)
                self.close_connection = True
                return lie(self)
        parts = path.strip("/").split("/")
        match parts:
            case ["api", "models", owner, name, "revision", *revision]:
                self.info(f"{owner}/{name}", "/".join(revision))
            case ["cdn", owner, name, commit, *file]:
                self.send_file(f"{owner}/{name}", commit, "/".join(file), redirected=True)
            case [owner, name, "resolve", revision, *file]:
                self.resolve(f"{owner}/{name}", revision, "/".join(file))
            case _:
                self.note(path)
                self.fail("EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

    def note(self, path: str, start: int = 0, sent: int = 0):
        for repo in self.server.repos.values():
            for commit in repo.commits:
                path = path.replace(commit, "{commit}")
        self.server.log.append(Asked(self.command, path, start, sent, self.headers.get("Authorization")))

    def fail(self, code: str):
        status, message = ERRORS[code]
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message}, message.encode())

    def answer(self, status: int, headers: dict, body: bytes = b""):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def pour(self, piece: bytes, headers: dict[str, str] = {}, pause: float = 0, status: int = 200) -> int:
        """Answer with the same piece for ever, until the other side goes or the hub closes; -> the bytes that left."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        sent = 0
        with suppress(OSError):
            while not self.server.closed.wait(pause):
                sent += self.connection.send(piece)
        self.server.poured.append(sent)
        return sent

    def find(self, name: str, revision: str) -> tuple[Repo, str] | None:
        repo = self.server.repos.get(name)
        if repo is None:
            return self.fail("RepoNotFound")
        commit = repo.branches.get(revision, revision)
        return (repo, commit) if commit in repo.commits else self.fail("RevisionNotFound")

    def info(self, name: str, revision: str):
        self.note(f"/api/models/{name}/revision/{revision}")
        if found := self.find(name, revision):
            repo, commit = found
            if repo.error and repo.error != "GatedRepo":
                return self.fail(repo.error)
            entries = self.server.entries
            siblings = [describe(file, data) | entries.get(file, {}) for file, data in repo.commits[commit].items()]
            body = json.dumps({"id": name, "sha": commit, "gated": repo.error == "GatedRepo", "siblings": siblings})
            self.answer(200, {"Content-Type": "application/json"}, body.encode())

    def resolve(self, name: str, revision: str, file: str):
        if not (found := self.find(name, revision)):
            return self.note(self.path)
        repo, commit = found
        if repo.error or file not in repo.commits[commit]:
            self.note(f"/{name}/resolve/{commit}/{file}")
            return self.fail(repo.error or "EntryNotFound")
        if not file.endswith(".safetensors"):
            return self.send_file(name, commit, file)
        self.note(f"/{name}/resolve/{commit}/{file}")
        data = repo.commits[commit][file]
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": len(data),
            "X-Linked-Etag": f'"{sha256(data)}"',
            "Location": f"{self.server.cdn}/cdn/{name}/{commit}/{file}",
        }
        if self.server.xet:
            headers |= {"X-Xet-Hash": sha256(data), "X-Xet-Refresh-Route": f"/api/models/{name}/xet-read-token/main"}
        self.answer(302, headers | self.server.headers)

    def send_file(self, name: str, commit: str, file: str, redirected: bool = False):
        data = self.server.repos[name].commits[commit][file]
        body = self.server.spoiled.get(file, data)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        start = 0 if self.server.ignore_ranges else start
        cuts = self.server.cuts.get(file, [])
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        stall = self.server.stalls.pop(file, None) if self.command == "GET" else None
        end = start + min(len(body) if n is None else abs(n) for n in (cut, stall))
        sent = body[start:end]
        self.note(
            f"/cdn/{file}" if redirected else f"/{name}/resolve/{commit}/{file}",
            start,
            len(sent) if self.command == "GET" else 0,
        )
        self.send_response(206 if start else 200)
        headers = {
            "Content-Length": len(body) - start,
            "X-Repo-Commit": commit,
            "ETag": f'"{git_hash(data)}"',
            "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}",
        }
        for key, value in (headers | self.server.headers).items():
            if start or key != "Content-Range":
                self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(sent)
        if stall is not None:
            self.wfile.flush()
            self.server.stalled.set()
            self.server.closed.wait(60)
        if cut is not None or stall is not None:
            self.close_connection = True
            if cut is not None and cut < 0:
                time.sleep(0.1)  # for what was sent to arrive: a reset drops the rest
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()


def describe(file: str, data: bytes) -> dict:
    """One of the "siblings", as ?blobs=True asks for."""
    large = {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 135}}
    return {"rfilename": file, "size": len(data), "blobId": git_hash(data)} | (
        large if file.endswith(".safetensors") else {}
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

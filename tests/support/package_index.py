"""An HTTP server of this process for tests of downloads: a package index with Range and faults, and a model hub."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_wheel(members: Mapping[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive with `members`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class FileServer:
    """Serves `files`; the fields below it inject faults. Shared with the server's threads, set before a request."""

    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """path -> (body, content type)"""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Extra response headers of a path."""
    drop_after_bytes: dict[str, list[int]] = field(default_factory=dict)
    """path -> for each coming request, how many body bytes to send before the connection is cut."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """path -> statuses to answer with, one a request, before serving."""
    holds: dict[str, tuple[threading.Event, threading.Event]] = field(default_factory=dict)
    """path -> set when half of its next answer is sent; the rest follows when the other one is set."""
    ignore_range: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range header) of each request so far."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def gets(self, path: str) -> list[str | None]:
        """Range headers of the GET requests for `path`."""
        return [range_ for method, requested, range_ in self.requests if method == "GET" and requested == path]

    def hold(self, path: str) -> tuple[threading.Event, threading.Event]:
        """Lets the next answer stop halfway: (it has, it may go on)."""
        self.holds[path] = threading.Event(), threading.Event()
        return self.holds[path]


@contextlib.contextmanager
def serve(server: FileServer) -> Iterator[FileServer]:
    """Runs `server` on a free port of 127.0.0.1."""

    class Handler(_Handler):
        state = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join(timeout=5)
        http.server_close()


def add_project(
    server: FileServer,
    project: str,
    wheels: Mapping[str, bytes],
    *,
    html: bool = False,
    sha256: str | None = None,
    with_hashes: bool = True,
) -> None:
    """Puts wheels (file name -> bytes) on the index at `/simple/<project>/`. `sha256` overrides the true one."""
    digests = {name: sha256 or hashlib.sha256(body).hexdigest() for name, body in wheels.items()}
    for name, body in wheels.items():
        server.files[f"/files/{name}"] = (body, "application/zip")
    if html:
        links = (
            f'<a href="../../files/{name}{f"#sha256={digests[name]}" if with_hashes else ""}">{name}</a>'
            for name in wheels
        )
        page, kind = f"<html><body>{''.join(links)}</body></html>", "text/html"
    else:
        files = [
            {
                "filename": n,
                "url": f"/files/{n}",
                "size": len(b),
                "hashes": {"sha256": digests[n]} if with_hashes else {},
            }
            for n, b in wheels.items()
        ]
        page = json.dumps({"meta": {"api-version": "1.1"}, "name": project, "files": files})
        kind = "application/vnd.pypi.simple.v1+json"
    server.files[f"/simple/{project}/"] = (page.encode(), kind)


def add_repository(server: FileServer, repo_id: str, files: Mapping[str, bytes], revision: str = "main") -> None:
    """Puts a model repository on the server, which then emulates the hub's API for it."""
    listing = [
        {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in files.items()
    ]
    info: dict[str, Any] = {"id": repo_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
    for name in (revision, COMMIT):
        server.files[f"/api/models/{repo_id}/revision/{name}"] = (json.dumps(info).encode(), "application/json")
        server.files[f"/api/models/{repo_id}/tree/{name}"] = (json.dumps(listing).encode(), "application/json")
        for filename, body in files.items():
            path = f"/{repo_id}/resolve/{name}/{filename}"
            server.files[path] = (body, "application/octet-stream")
            server.headers[path] = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}


class _Handler(BaseHTTPRequestHandler):
    state: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        state, path = self.state, self.path.partition("?")[0]
        with state.lock:
            state.requests.append((self.command, path, self.headers.get("Range")))
            status = state.statuses[path].pop(0) if state.statuses.get(path) else 200
            drops = state.drop_after_bytes.get(path)
            drop_after = drops.pop(0) if drops and with_body else None
            hold = state.holds.pop(path, None) if with_body else None
        if status != 200 or path not in state.files:
            self._send_empty(404 if status == 200 else status, path)
            return
        body, kind = state.files[path]
        start, status = self._range_start(len(body))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        for name, value in state.headers.get(path, {}).items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if with_body:
            with contextlib.suppress(ConnectionError):
                if hold is not None:
                    half = start + (len(body) - start) // 2
                    self.wfile.write(body[start:half])
                    start = half
                    hold[0].set()
                    hold[1].wait(30)
                self.wfile.write(body[start:] if drop_after is None else body[start : start + drop_after])
            if drop_after is not None:
                self.close_connection = True

    def _range_start(self, size: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None or self.state.ignore_range:
            return 0, 200
        return min(int(match[1]), size), 206

    def _send_empty(self, status: int, path: str) -> None:
        self.send_response(status)
        if "/api/models/" in path or "/resolve/" in path:
            known = any(
                p.startswith(f"/api/models/{'/'.join(path.strip('/').split('/')[:2])}") for p in self.state.files
            )
            if path.startswith("/api/models/"):
                repo = "/".join(path.split("/")[3:5])
                known = any(p.startswith(f"/api/models/{repo}/") for p in self.state.files)
                self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            else:
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

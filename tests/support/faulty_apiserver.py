"""The real API server behind a proxy that fails as told: throttling, watches that expire, break or say nothing, lists
that become too old to be read on, and calls that nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

from support.control_plane.cluster import ControlPlane

_EXPIRED = {
    "kind": "Status",
    "apiVersion": "v1",
    "status": "Failure",
    "message": "too old resource version: 1 (99999)",
    "reason": "Expired",
    "code": 410,
}
_THROTTLED = {
    **_EXPIRED,
    "message": "too many requests, please try again later",
    "reason": "TooManyRequests",
    "code": 429,
}
_PASSED = ("content-type", "accept")


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FaultyApiServer:
    """Passes everything on until told otherwise."""

    plane: ControlPlane
    kubeconfig: Path
    throttled_every: int = 0
    """Each request of that number, but watches, is answered 429; 0: none."""
    expires_watches: bool = False
    """Watches that are opened from a version are told that it is too old."""
    silences_watches: bool = False
    """Watches are opened, and told of nothing."""
    expires_lists: bool = False
    """Lists come in parts of two, and the second part is told that the first is too old."""
    answers: asyncio.Event = field(default_factory=_set_event)
    """While it is not set every call waits."""
    num_throttled: int = 0
    num_expired: int = 0
    num_expired_lists: int = 0
    num_silenced: int = 0
    _watches: set[asyncio.Task[None]] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def cut_watches(self) -> None:
        """Ends all that are open, in the middle of whatever they were saying."""
        for watch in self._watches:
            watch.cancel()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """For any path."""
        await self.answers.wait()
        if "watch" in request.query:
            return await self._watch(request)
        if self.throttled_every and next(self._numbers) % self.throttled_every == 0:
            self.num_throttled += 1
            return web.json_response(_THROTTLED, status=429, headers={"retry-after": "1"})
        if self.expires_lists and "continue" in request.query:
            self.num_expired_lists += 1
            return web.json_response(_EXPIRED, status=410)
        async with self._open(request) as upstream:
            return web.Response(
                body=await upstream.read(), status=upstream.status, headers={"content-type": upstream.content_type}
            )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        if self.expires_watches and request.query.get("resourceVersion", "0") != "0":
            self.num_expired += 1
            await response.prepare(request)
            await response.write(json.dumps({"type": "ERROR", "object": _EXPIRED}).encode() + b"\n")
            return response
        passing = asyncio.ensure_future(
            self._say_nothing(request, response) if self.silences_watches else self._pass_on(request, response)
        )
        self._watches.add(passing)
        try:
            with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, ConnectionError):
                await passing
        finally:
            passing.cancel()
            self._watches.discard(passing)
        return response

    async def _say_nothing(self, request: web.Request, response: web.StreamResponse) -> None:
        self.num_silenced += 1
        await response.prepare(request)
        await asyncio.Event().wait()

    async def _pass_on(self, request: web.Request, response: web.StreamResponse) -> None:
        async with self._open(request) as upstream:
            response.set_status(upstream.status)
            await response.prepare(request)
            async for chunk in upstream.content.iter_any():
                await response.write(chunk)

    @asynccontextmanager
    async def _open(self, request: web.Request) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {name: value for name, value in request.headers.items() if name.lower() in _PASSED}
        headers["authorization"] = f"Bearer {self.plane.token}"
        path = request.rel_url
        if self.expires_lists and "limit" in path.query:
            path = path.update_query(limit="2")
        url = f"{self.plane.url}{path}"
        context = ssl.create_default_context(cafile=str(self.plane.folder / "ca.crt"))
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.request(request.method, url, data=await request.read() or None, headers=headers) as upstream,
        ):
            yield upstream


@asynccontextmanager
async def faulty_apiserver(plane: ControlPlane, folder: Path) -> AsyncIterator[FaultyApiServer]:
    """On loopback, without TLS, for whoever has its kubeconfig."""
    server = FaultyApiServer(plane, folder / "faulty-kubeconfig")
    app = web.Application(client_max_size=16 << 20)
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = yaml.safe_load(plane.kubeconfig.read_text())
    host, port = runner.addresses[0][:2]
    config["clusters"] = [{"name": "test", "cluster": {"server": f"http://{host}:{port}"}}]
    server.kubeconfig.write_text(yaml.safe_dump(config))
    try:
        yield server
    finally:
        server.cut_watches()
        await runner.cleanup()

"""One HTTP request and its answer, on bare ASGI: nothing lies between a token and the socket."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

import structlog
from opentelemetry import propagate, trace

from shoal.gateway.http.errors import error_body, error_headers
from shoal.rpc.errors import Internal, InvalidArgument, PayloadTooLarge, ShoalError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
JSON: Final = b"application/json"
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_log = structlog.get_logger("shoal.gateway.http")
_tracer = trace.get_tracer("shoal.gateway.http")


class Exchange:
    """What a handler works with. Made by `Endpoint`; used by one task."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers: dict[str, str] = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        given = self.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.path_params: dict[str, Any] = scope.get("path_params", {})
        self.started = False
        self._receive = receive
        self._send = send

    async def body(self, max_bytes: int) -> bytes:
        """The whole body. Raises PayloadTooLarge before reading more than `max_bytes`."""
        declared = self.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > max_bytes:
            raise PayloadTooLarge("body", f"{declared} bytes are more than the {max_bytes} accepted here")
        parts, num_bytes = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidArgument("body", "ended early")
            part = message.get("body", b"")
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise PayloadTooLarge("body", f"more than the {max_bytes} bytes accepted here")
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def wait_for_disconnect(self) -> None:
        """Returns when the client has gone. Only after `body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, content_type: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Sends the status line and headers."""
        self.started = True
        fixed = [(b"content-type", content_type), (b"x-request-id", self.request_id.encode("latin-1"))]
        await self._send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})

    async def write(self, data: bytes) -> None:
        """Sends a part of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Sends the last part of the body."""
        await self._send({"type": "http.response.body", "body": data})

    async def answer(
        self, status: int, data: bytes, content_type: bytes = JSON, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Sends a whole response."""
        await self.start(status, content_type, [(b"content-length", b"%d" % len(data)), *headers])
        await self.end(data)

    async def fail(self, error: ShoalError) -> None:
        """Tells the client: by status before the first byte, as an event inside a stream."""
        if not self.started:
            await self.answer(error.http_status, error_body(error), JSON, error_headers(error))
        else:
            await self.end(b"data: " + error_body(error) + b"\n\n")


class Endpoint:
    """An ASGI app around one handler: request id, span, errors, and an end when the client goes away."""

    def __init__(self, name: str, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        self._name = name
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by Starlette."""
        exchange = Exchange(scope, receive, send)
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
        with _tracer.start_as_current_span(
            self._name,
            context=propagate.extract(exchange.headers),
            kind=trace.SpanKind.SERVER,
            attributes={"shoal.request_id": exchange.request_id},
            record_exception=False,
            set_status_on_exception=False,
        ):
            try:
                await self._handle(exchange)
            except ShoalError as error:
                await exchange.fail(error)
            except Exception as error:
                _log.error("request failed", endpoint=self._name, exc_info=error)
                problem = f"internal error; quote request id {exchange.request_id} when reporting it"
                await exchange.fail(Internal(problem))
            finally:
                structlog.contextvars.unbind_contextvars("request_id")


async def until_disconnect(exchange: Exchange, work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work`, cancelling it where it stands when the client goes away; returns quietly then.

    A cancelled `work` ends its upstream calls, so the worker stops within a token.
    """
    task = asyncio.ensure_future(work())
    watch = asyncio.ensure_future(exchange.wait_for_disconnect())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

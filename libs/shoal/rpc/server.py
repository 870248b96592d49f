"""Runs a gRPC service from its first health check to its drained end.

    registration = Registration(add_FooServicer_to_server, servicer, "shoal.api.foo.v1.FooService")
    server = await start_server(options, [registration])
    ...load whatever takes long...
    await serve_until_stopped(server, stop_signal(), options)

Health is NOT_SERVING until `serve_until_stopped` runs, SERVING while the service can serve, NOT_SERVING from the first
SIGTERM or SIGINT on; then running calls may finish within `drain_timeout_s`, and the process ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from shoal.rpc.interceptor import BoundaryInterceptor

LIVENESS = "liveness"
"""The health service that is SERVING as long as a process answers: for those who would start it anew otherwise."""
_log = structlog.get_logger("shoal.rpc")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how a server listens."""

    host: str
    port: int
    """0 picks a free one; `Server.port` tells which."""
    drain_timeout_s: float = 60.0
    max_message_bytes: int = 64 << 20
    max_concurrent_streams: int = 8192
    keepalive_s: float = 20.0
    """A connection on which nothing was said for so long is asked for a sign of life; without one for as long again it
    is closed, and with it the calls of a client whose machine has lost its power."""
    unix_path: str = ""
    """A Unix socket to listen on as well, for this user alone; empty for none. One that is left over is replaced."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One service: its generated `add_XServicer_to_server`, the servicer, and its full name for health checks."""

    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    name: str


class Server:
    """A listening gRPC server with health and reflection. Made by `start_server`; ended by `stop`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        health: _Health,
        names: Sequence[str],
        port: int,
    ) -> None:
        self._server = server  # grpc.aio servers vanish when nobody holds them
        self._health = health
        self._names = names
        self.port = port

    async def set_serving(self, serving: bool) -> None:
        """Tells health checkers whether to send calls here."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, state)

    async def set_part(self, name: str, serving: bool) -> None:
        """Tells health checkers that ask for `name`, something without which this server serves all the same."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, state)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones go on for `grace_s`, then cancels them. Ends health watches at once."""
        self._health.end_watches()
        await self._server.stop(grace_s)


class _Health(HealthServicer):  # type: ignore[misc]  # untyped
    """grpc's health service, whose watches do not last for the whole grace period of a stop."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """Streams the state of one service until the client leaves or the server stops."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait((watch,))
        finally:
            self._watches.discard(watch)
            watch.cancel()

    def end_watches(self) -> None:
        """Ends every open watch."""
        for watch in self._watches:
            watch.cancel()


def connection_options(keepalive_s: float) -> list[tuple[str, int]]:
    """How any server of ours keeps its connections: it asks for signs of life, and lets clients ask every 5 s. By
    default a server ends connections that ask more than twice in five minutes."""
    return [
        ("grpc.keepalive_time_ms", int(keepalive_s * 1e3)),
        ("grpc.keepalive_timeout_ms", int(keepalive_s * 1e3)),
        ("grpc.http2.ping_timeout_ms", int(keepalive_s * 1e3)),  # a minute by default, whatever keepalive_timeout is
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


async def start_server(
    options: ServerOptions,
    registrations: Sequence[Registration],
    generic_handlers: Sequence[Any] = (),
    *,
    live_names: Sequence[str] = (LIVENESS,),
) -> Server:
    """Starts listening, NOT_SERVING. Raises OSError naming the address when it cannot be bound.

    live_names: of health services that are SERVING as long as the process listens.
    """
    server = grpc.aio.server(
        interceptors=[BoundaryInterceptor()],
        options=[
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", options.max_message_bytes),
            ("grpc.max_concurrent_streams", options.max_concurrent_streams),
            # Calls that Python has not come to yet. Above 1,000 the default is to cancel some at random: 80 to 190 of
            # 2,000 streams that were opened at once.
            ("grpc.server.max_pending_requests", options.max_concurrent_streams),
            ("grpc.server.max_pending_requests_hard_limit", 2 * options.max_concurrent_streams),
            ("grpc.so_reuseport", 0),  # a second process on the same port is a mistake that must show
            *connection_options(options.keepalive_s),
        ],
    )
    health = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [registration.name for registration in registrations]
    for registration in registrations:
        registration.add(registration.servicer, server)
    server.add_generic_rpc_handlers(tuple(generic_handlers))
    reflection.enable_server_reflection(
        (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), server
    )
    address = f"{options.host}:{options.port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: is the port in use? Choose another, or 0 for a free one") from error
    if options.unix_path:
        _listen_on_path(server, options.unix_path)
    await server.start()
    result = Server(server, health, names, port)
    await result.set_serving(False)
    for name in live_names:
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    return result


def _listen_on_path(server: grpc.aio.Server, path: str) -> None:
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {path}: a path has at most 107 bytes, and its folder is there") from error
    finally:
        os.umask(before)


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets. Call once, from the running loop of the main thread."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, event.set)
    return event


async def serve_until_stopped(
    server: Server,
    stop: asyncio.Event,
    options: ServerOptions,
    *,
    drain: Callable[[float], Awaitable[None]] | None = None,
) -> None:
    """Serves until `stop` is set, then drains and stops.

    `drain(timeout_s)` finishes what the service itself holds; calls still open after it get cancelled once
    `drain_timeout_s` is over.
    """
    await server.set_serving(True)
    _log.info("serving", address=f"{options.host}:{server.port}")
    await stop.wait()
    _log.info("draining", timeout_s=options.drain_timeout_s)
    await server.set_serving(False)
    if drain is not None:
        await drain(options.drain_timeout_s)
    await server.stop(options.drain_timeout_s)
    _log.info("stopped")

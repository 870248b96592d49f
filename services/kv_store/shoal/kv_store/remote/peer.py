"""Another store, as this one calls it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from typing import Any, Final, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from opentelemetry import propagate

from shoal.api.kv_store.v1 import kv_peer_pb2
from shoal.kv_store.remote.addresses import split_address
from shoal.kv_store.remote.auth import NotAuthentic
from shoal.kv_store.remote.breaker import Breaker
from shoal.kv_store.remote.grpc_stream import GrpcStream
from shoal.kv_store.remote.options import RemoteOptions
from shoal.kv_store.remote.sockets import DeadlineSocket
from shoal.kv_store.remote.transfer import Stream, TcpStream, Transport
from shoal.telemetry import is_tracing

SERVICE: Final = kv_peer_pb2.DESCRIPTOR.services_by_name["KvPeerService"].full_name
MAX_IDLE_CONNECTIONS: Final = 4
CONNECT_TIMEOUT_S: Final = 1.0
TCP_RETRY_S: Final = 15.0
"""How long payloads come over gRPC once the data port could not be reached."""
_REFUSALS: Final = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
_log = structlog.get_logger("shoal.kv_store")
_M = TypeVar("_M", bound=Message)


class PeerFailed(Exception):
    """No answer, none in time, or none that can be believed. Noted in the breaker already."""


class PeerRefused(Exception):
    """The other store works and said no."""


class Peer:
    """Calls from the store's thread; streams from any thread."""

    def __init__(self, address: str, options: RemoteOptions) -> None:
        """Does not connect."""
        self.address = address
        self.breaker = Breaker()
        self.num_pulled = 0
        self._host = split_address(address)[0]
        self._signer = options.signer
        self._transport: Transport = options.transport
        self._tls: ssl.SSLContext | None = options.tls.client_context() if options.tls is not None else None
        settings = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        if options.tls is not None:
            self._channel = grpc.secure_channel(address, options.tls.channel_credentials(), settings)
        else:
            self._channel = grpc.insecure_channel(address, settings)
        self._lock = threading.Lock()
        self._idle: deque[tuple[int, DeadlineSocket]] = deque()
        self._connections: weakref.WeakSet[DeadlineSocket] = weakref.WeakSet()
        self._tcp_from_s = 0.0
        self._closed = False

    async def call(self, method: str, request: Message, kind: type[_M], timeout_s: float) -> _M:
        """One call. Raises PeerFailed, PeerRefused; the caller asked the breaker before."""
        path, body = f"/{SERVICE}/{method}", request.SerializeToString()
        carrier: dict[str, str] = {}
        if is_tracing():  # the other store's span belongs to the same request
            propagate.inject(carrier)
        metadata = (*self._signer.sign_call(path, body), *carrier.items())
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        try:
            start = self._channel.unary_unary(path, None, None).future
            call: Any = start(body, timeout=max(0.001, timeout_s), metadata=metadata)
        except ValueError as error:  # the peer is no longer one, or this store ends: its channel is closed
            raise self._failed(str(error)) from None
        call.add_done_callback(lambda _: _tell(loop, ended))
        try:
            await ended
        except asyncio.CancelledError:
            call.cancel()
            raise
        code: grpc.StatusCode = call.code()
        if code in _REFUSALS:
            self.breaker.succeeded()
            raise PeerRefused(f"{code.name}: {call.details()}")
        if code is not grpc.StatusCode.OK:
            raise self._failed(f"{code.name}: {call.details()}")
        answer: bytes = call.result()
        try:
            self._signer.verify_answer(path, answer, metadata, call.trailing_metadata())
            message = kind.FromString(answer)
        except (NotAuthentic, DecodeError) as error:
            raise self._failed(str(error)) from None
        self.breaker.succeeded()
        return message

    def connect(self, data_port: int, deadline_s: float) -> Stream:
        """A stream for one attempt at a transfer. Raises OSError. Runs in a transfer's thread."""
        if self._closed:
            raise ConnectionAbortedError("this store ends")
        if self._transport == "grpc" or not data_port or time.monotonic() < self._tcp_from_s:
            return GrpcStream(self._channel, self._signer)
        connection = self._take_idle(data_port)
        if connection is None:
            try:
                connection = self._connect_tcp(data_port, deadline_s)
            except OSError as error:  # nothing listens, or something between us lets nothing through
                self._tcp_from_s = time.monotonic() + TCP_RETRY_S
                _log.warning("payloads come over gRPC", peer=self.address, data_port=data_port, error=str(error))
                return GrpcStream(self._channel, self._signer)
        return TcpStream(connection, lambda used: self._give_back(data_port, used))

    def close(self) -> None:
        """Ends every connection; whatever runs fails."""
        with self._lock:
            self._closed = True
            idle = [connection for _, connection in self._idle]
            self._idle.clear()
            running = set(self._connections) - set(idle)
        for connection in idle:
            connection.close()
        for connection in running:  # their threads close them
            connection.shut()
        self._channel.close()

    def _failed(self, reason: str) -> PeerFailed:
        self.breaker.failed(reason)
        return PeerFailed(reason)

    def _take_idle(self, data_port: int) -> DeadlineSocket | None:
        with self._lock:
            while self._idle:
                port, connection = self._idle.pop()
                if port == data_port and connection.is_quiet:
                    return connection
                connection.close()
        return None

    def _give_back(self, data_port: int, connection: DeadlineSocket) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._idle.append((data_port, connection))
                return
        connection.close()

    def _connect_tcp(self, data_port: int, deadline_s: float) -> DeadlineSocket:
        timeout_s = min(CONNECT_TIMEOUT_S, max(0.001, deadline_s - time.monotonic()))
        connected = socket.create_connection((self._host, data_port), timeout_s)
        try:
            if self._tls is not None:
                connected = self._tls.wrap_socket(connected, server_hostname=self._host)
            connection = DeadlineSocket(connected)
        except OSError:
            connected.close()
            raise
        with self._lock:
            self._connections.add(connection)
            closed = self._closed
        if closed:
            connection.close()
            raise ConnectionAbortedError("this store ends")
        return connection


def _tell(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    def settle() -> None:
        if not ended.done():
            ended.set_result(None)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop has ended, and the store with it
        return

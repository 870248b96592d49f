"""The Unix socket: descriptors and frames. A connection is a session, and its end is the end of what it holds."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError, Message

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_client.frames import HEADER, MAX_BODY_BYTES, Method, pack
from shoal.kv_store.call_spans import call_span
from shoal.kv_store.control import Control
from shoal.kv_store.sessions import Session
from shoal.rpc.errors import InvalidArgument, NotFound, ShoalError

_BACKLOG: Final = 128
_READ_BYTES: Final = 1 << 18
MAX_WAITING_BYTES: Final = 1 << 16
"""Of requests that wait for an answer before theirs: room for what a client sends while it is still waiting."""
MAX_OPEN_BYTES: Final = 1 << 16
"""Of the request that opens a session: until then nothing is known of the client."""
MAX_UNOPENED: Final = 64
"""Connections beyond those that sessions may have."""
FRAMES_A_TURN: Final = 8
"""Requests of one client that are answered before others have their turn: 0.2 ms of lookups."""
_INTERNAL: Final = 13
_log = structlog.get_logger("shoal.kv_store")
_NAMES: Final = {int(method): method.name.lower() for method in Method}
_REQUESTS: Final[dict[int, type[Message]]] = {
    Method.LOOKUP: pb.LookupRequest,
    Method.RESERVE: pb.ReserveRequest,
    Method.ACQUIRE: pb.AcquireRequest,
    Method.RELEASE: pb.ReleaseRequest,
    Method.EVICT: pb.EvictRequest,
}


class UnixServer:
    """Listens on a path. Made by `start_unix_server`; ended by `close`."""

    def __init__(self, path: Path, control: Control) -> None:
        self.path = path
        self._control = control
        self._socket: socket.socket | None = None
        self._connections: set[_Connection] = set()

    def start(self, mode: int) -> None:
        """Listens from here on. Raises OSError when the path cannot be had, or another store answers there."""
        if self.path.is_socket():
            _refuse_if_alive(self.path)
            self.path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(self.path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        self._socket = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    async def close(self) -> None:
        """Ends every connection and removes the path."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                self.path.unlink()
        for connection in list(self._connections):
            connection.close()
        await asyncio.gather(*(connection.ended for connection in list(self._connections)), return_exceptions=True)

    def end_session(self, session: Session) -> None:
        """Ends one connection."""
        for connection in list(self._connections):
            if connection.session is session:
                connection.close()

    def _accept(self) -> None:
        if self._socket is None:
            return
        try:
            client, _ = self._socket.accept()
        except OSError as error:  # out of descriptors, or the client has left
            _log.warning("cannot accept a client", error=str(error))
            return
        if len(self._connections) >= self._control.store.limits.max_sessions + MAX_UNOPENED:
            self._control.store.counters.add("sessions_refused")
            client.close()
            return
        client.setblocking(False)
        self._connections.add(_Connection(client, self._control, self._connections.discard))


class _Connection:
    """One client. Requests are answered in order, one at a time.

    While an answer is worked at, or not read by the client, at most MAX_WAITING_BYTES of further requests are taken
    from the socket, so a client that sends and never reads waits for itself. Until then the socket is watched all the
    time: the end of a client that waits for an answer is seen at once.
    """

    def __init__(self, client: socket.socket, control: Control, forget: Callable[[_Connection], None]) -> None:
        self.session: Session | None = None
        self._socket = client
        self._control = control
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._unsent = bytearray()
        self._running: asyncio.Task[None] | None = None
        self._yielded: asyncio.Handle | None = None
        """The next turn, while requests wait for it."""
        self._is_reading = True
        self._closed = False
        self._began_s = 0.0
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._handlers: dict[int, Callable[..., Any]] = {
            Method.LOOKUP: control.lookup,
            Method.RESERVE: control.reserve,
            Method.ACQUIRE: control.acquire,
            Method.RELEASE: control.give_back,
            Method.EVICT: control.evict,
        }
        self._loop.add_reader(client.fileno(), self._read)

    def close(self) -> None:
        """Ends the connection and what it holds."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._received.clear()
        self._unsent.clear()
        if self._yielded is not None:
            self._yielded.cancel()
        if self.session is not None:
            self._control.store.close_session(self.session)
        if self._running is None:
            self._end()

    def _end(self) -> None:
        self._forget(self)
        if not self.ended.done():
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received += data
        if self._yielded is None:
            self._answer()
        self._watch()

    def _watch(self) -> None:
        """Reads on, or waits with it until what is there was answered."""
        is_busy = self._running is not None or self._yielded is not None or bool(self._unsent)
        wanted = not self._closed and (not is_busy or len(self._received) < MAX_WAITING_BYTES)
        if wanted == self._is_reading or self._closed:
            return
        self._is_reading = wanted
        if wanted:
            self._loop.add_reader(self._socket.fileno(), self._read)
        else:
            self._loop.remove_reader(self._socket.fileno())

    def _answer(self) -> None:
        """Answers complete frames until one takes time, the client does not read, or it is the turn of others."""
        num_left, self._yielded = FRAMES_A_TURN, None
        while not self._closed and self._running is None and not self._unsent and len(self._received) >= HEADER.size:
            num_bytes, method, _ = HEADER.unpack_from(self._received)
            if num_bytes > (MAX_BODY_BYTES if self.session is not None else MAX_OPEN_BYTES):
                _log.warning("closed a client that sent too large a frame", num_bytes=num_bytes)
                self.close()
                return
            end = HEADER.size + num_bytes
            if len(self._received) < end:
                return
            if not num_left:
                self._yielded = self._loop.call_soon(self._go_on)
                return
            num_left -= 1
            body = bytes(self._received[HEADER.size : end])
            del self._received[:end]
            self._began_s = time.perf_counter()
            self._answer_one(method, body)
            if self._running is None:
                self._observe(method)

    def _go_on(self) -> None:
        """Something that requests waited for is over."""
        self._answer()
        self._watch()

    def _observe(self, method: int) -> None:
        """A request was answered."""
        name = _NAMES.get(method, "other")
        self._control.store.latency[name].observe(time.perf_counter() - self._began_s)

    def _answer_one(self, method: int, body: bytes) -> None:
        try:
            call: Awaitable[Message]
            if method == Method.OPEN:
                self._open(body)
            elif self.session is None:
                raise InvalidArgument("method", f"{method} before a session is open")
            elif method == Method.MAP:
                response, fd = self._control.map_chunk(pb.MapRequest.FromString(body), self.session)
                self._send(pack(method, response.SerializeToString()), [fd])
            elif method == Method.COMMIT:
                committed = pb.CommitRequest.FromString(body)
                call = self._control.commit(committed, self.session)
                self._running = self._loop.create_task(self._run(method, committed, call))
            elif method == Method.PREFETCH:
                wanted = pb.PrefetchRequest.FromString(body)
                call = self._control.prefetch(wanted, self.session)
                self._running = self._loop.create_task(self._run(method, wanted, call))
            elif method in self._handlers:
                message = _REQUESTS[method].FromString(body)
                if isinstance(message, pb.LookupRequest) and self._control.asks_peers(message):
                    call = self._control.lookup_with_peers(message, self.session)
                    self._running = self._loop.create_task(self._run(method, message, call))
                    return
                if isinstance(message, pb.ReleaseRequest) and message.suspect_keys:
                    call = self._control.release(message, self.session)
                    self._running = self._loop.create_task(self._run(method, message, call))
                    return
                with call_span(_NAMES[method], message):
                    answer = self._handlers[method](message, self.session)
                self._send(pack(method, answer.SerializeToString()))
            else:
                raise NotFound(f"method: {method} is not one of this store")
        except Exception as error:
            self._send(_failure(method, error))

    def _open(self, body: bytes) -> None:
        if self.session is not None:
            raise InvalidArgument("method", "the session is open already")
        request = pb.OpenRequest.FromString(body)
        self.session = self._control.open(request)
        response = self._control.describe_session(self.session, wants_roots=request.wants_roots)
        staging = self.session.staging
        fds = [staging.memory.fd] if staging is not None else []
        if response.num_root_buckets and (roots := self._control.store.index.roots_of(self.session.scope.number)):
            fds.append(roots.memory.fd)
        self._send(pack(Method.OPEN, response.SerializeToString()), fds)

    async def _run(self, method: int, request: Message, call: Awaitable[Message]) -> None:
        """Answers a request that takes time; no other one is read before it is answered."""
        try:
            with call_span(_NAMES[method], request):
                frame = pack(method, (await call).SerializeToString())
        except Exception as error:
            frame = _failure(method, error)
        self._observe(method)
        self._running = None
        if self._closed:
            self._end()
            return
        self._send(frame)
        self._go_on()

    def _send(self, frame: bytes, fds: list[int] | None = None) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._socket.sendmsg([frame], ancillary)
        except (BlockingIOError, InterruptedError):
            sent = 0
            if fds:  # the socket is full of answers nobody reads, and descriptors cannot wait in a buffer
                self.close()
                return
        except OSError:
            self.close()
            return
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._loop.add_writer(self._socket.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())
            self._go_on()


def _failure(method: int, error: Exception) -> bytes:
    if isinstance(error, ShoalError):
        return pack(method, error.message.encode(), int(error.code.value[0]))
    if isinstance(error, DecodeError):
        return pack(method, b"the message cannot be read", 3)
    _log.error("call failed", method=method, exc_info=error)
    return pack(method, b"internal error", _INTERNAL)


def _refuse_if_alive(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise OSError(f"another store serves on {path}")

"""Length-prefixed frames over the socket pair between front and engine: u32 little-endian length, then the body."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import socket
import struct
from collections.abc import Iterator
from typing import Final

MAX_FRAME_BYTES: Final = 256 << 20
"""Far above a full context with log-probabilities; a longer frame means that the stream is out of step."""
_HEADER: Final = struct.Struct("<I")
_READ_BYTES: Final = 1 << 18


class ChannelClosed(Exception):
    """The other process is gone."""


class EngineChannel:
    """The engine's blocking end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._socket = sock
        self._buffer = bytearray()
        self._wake_reader, self._wake_writer = os.pipe()
        for fd in (self._wake_reader, self._wake_writer):
            os.set_blocking(fd, False)
        self._poll = select.poll()
        for fd in (sock.fileno(), self._wake_reader):
            self._poll.register(fd, select.POLLIN)

    def send(self, body: bytes) -> None:
        """Sends one frame; blocks while the front is behind, so that it never has to hold much. ChannelClosed."""
        try:
            self._socket.sendall(pack_frame(body))
        except OSError as error:
            raise ChannelClosed from error

    def receive(self, *, wait: bool) -> list[bytes]:
        """All complete frames at hand; with `wait`, at least one. ChannelClosed when the front is gone."""
        frames = list(self._split())
        while True:
            block = wait and not frames
            try:
                data = self._socket.recv(_READ_BYTES, 0 if block else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return frames
            except OSError as error:
                raise ChannelClosed from error
            if not data:
                raise ChannelClosed
            self._buffer += data
            frames += self._split()

    def wait(self, timeout_s: float) -> None:
        """Returns when a frame may be there, somebody called `wake`, or the time is over."""
        ready = self._poll.poll(None if timeout_s == math.inf else max(0.0, 1e3 * timeout_s))
        if any(fd == self._wake_reader for fd, _ in ready):
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_reader, _READ_BYTES)

    def wake(self) -> None:
        """Ends a `wait`, the one that runs or the next one. From any thread."""
        with contextlib.suppress(BlockingIOError):  # full of wakes already
            os.write(self._wake_writer, b"w")

    def _split(self) -> Iterator[bytes]:
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            _check(length)
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _HEADER.size : end])
            start = end
        if start:
            del self._buffer[:start]


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The front's end: the next frame. ChannelClosed when the engine is gone."""
    try:
        (length,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        _check(length)
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError) as error:
        raise ChannelClosed from error


def pack_frame(body: bytes) -> bytes:
    """A frame as it goes over the socket."""
    _check(len(body))
    return _HEADER.pack(len(body)) + body


def _check(length: int) -> None:
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")

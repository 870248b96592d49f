"""Blocking sockets whose every call ends by a deadline."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
import time
from typing import Final

_TLS_SEND_BYTES: Final = 1 << 18
_MAX_CALL_BYTES: Final = 1 << 30
_NO_SENDFILE: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class DeadlineSocket:
    """A connection. Not safe for several threads, but `shut` is. Raises OSError, TimeoutError among them.

    The kernel keeps the time of a plain connection, so one system call may move megabytes: a socket with a timeout of
    Python's is not blocking, and returns to Python for each piece that the network had ready.
    """

    def __init__(self, connected: socket.socket, sendfile: bool | None = None) -> None:
        """Takes a connected socket; with TLS, after its handshake. Raises OSError, having closed it, when it broke.

        sendfile: None for wherever it helps. To a network device it saves the copy. To another process of this host it
        only moves it, and makes it dearer: the reader copies from single pages of 4 KiB (0.12 to 0.15 s of CPU a GB
        there, 0.09 to 0.12 when the sender copied).
        """
        self._socket = connected
        self._is_plain = not isinstance(connected, ssl.SSLSocket)
        try:
            same_host = connected.getpeername()[0] == connected.getsockname()[0]
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            connected.close()
            raise
        self._has_sendfile = self._is_plain and (not same_host if sendfile is None else sendfile)
        if self._is_plain:
            connected.settimeout(None)

    def receive_into(self, view: memoryview, deadline_s: float) -> int:
        """Bytes that arrived: all that `view` has room for, unless the other side ended. 0 at its end."""
        if not self._is_plain:
            self._socket.settimeout(_left_s(deadline_s))
            return self._socket.recv_into(view)
        self._limit(socket.SO_RCVTIMEO, deadline_s)
        try:
            return self._socket.recv_into(view, len(view), socket.MSG_WAITALL)
        except BlockingIOError:
            raise TimeoutError("nothing came in time") from None

    def receive_exactly(self, num_bytes: int, deadline_s: float) -> bytes:
        """Raises ConnectionResetError when the other side ends first."""
        data = bytearray(num_bytes)
        view, filled = memoryview(data), 0
        while filled < num_bytes:
            arrived = self.receive_into(view[filled:], deadline_s)
            if not arrived:
                raise ConnectionResetError("the other side closed the connection")
            filled += arrived
        return bytes(data)

    def send(self, data: bytes | memoryview, deadline_s: float) -> None:
        """All of it."""
        view = memoryview(data)
        while view:
            view = view[self._send_some(view, deadline_s) :]

    def send_file(self, fd: int, offset: int, view: memoryview, deadline_s: float) -> int:
        """Sends some of a file's bytes from an offset on, which `view` shows as well; how many."""
        if self._has_sendfile:
            self._limit(socket.SO_SNDTIMEO, deadline_s)
            try:
                sent = os.sendfile(self._socket.fileno(), fd, offset, min(len(view), _MAX_CALL_BYTES))
            except BlockingIOError:
                raise TimeoutError("nothing was taken in time") from None
            except OSError as error:
                if error.errno not in _NO_SENDFILE:  # pages of the kernel's reserved pool, on older kernels
                    raise
                self._has_sendfile = False
            else:
                if not sent:
                    raise ConnectionResetError("the file ended")
                return sent
        return self._send_some(view, deadline_s)

    @property
    def is_quiet(self) -> bool:
        """Whether the connection is open and nothing waits to be read: as it is between two transfers."""
        watching = select.poll()  # select has no room for descriptors above 1023
        watching.register(self._socket, select.POLLIN)
        return not watching.poll(0)

    def shut(self) -> None:
        """Ends whatever waits on the connection, in any thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            return

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def _send_some(self, view: memoryview, deadline_s: float) -> int:
        if not self._is_plain:
            self._socket.settimeout(_left_s(deadline_s))
            return self._socket.send(view[:_TLS_SEND_BYTES])
        self._limit(socket.SO_SNDTIMEO, deadline_s)
        try:
            return self._socket.send(view)
        except BlockingIOError:
            raise TimeoutError("nothing was taken in time") from None

    def _limit(self, option: int, deadline_s: float) -> None:
        left_s = _left_s(deadline_s)
        seconds = int(left_s)
        micros = max(1, int(1e6 * (left_s - seconds)))  # 0 and 0 would mean for ever
        self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, micros))


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time for this transfer is over")
    return left_s

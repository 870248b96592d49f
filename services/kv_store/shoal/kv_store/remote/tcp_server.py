"""The data port: sends what a ticket is for, straight from the arena's memory."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from shoal.kv_store.remote.sockets import DeadlineSocket
from shoal.kv_store.remote.tickets import Ticket, TicketBook
from shoal.kv_store.remote.wire import ANSWER, HELLO, MAGIC, RECEIPT, VERSION, Hello, Status, unpack_reply

HANDSHAKE_TIMEOUT_S: Final = 5.0
IDLE_TIMEOUT_S: Final = 60.0
_BACKLOG: Final = 64
_log = structlog.get_logger("shoal.kv_store")
Count = Callable[[str, int], None]
"""Adds to a counter, from any thread."""


class TcpServer:
    """Listens from construction until `close`. A thread a connection, of which there is a fixed number at most."""

    def __init__(
        self,
        address: tuple[str, int],
        book: TicketBook,
        count: Count,
        *,
        max_connections: int,
        tls: ssl.SSLContext | None = None,
        sendfile: bool | None = None,
    ) -> None:
        """Raises OSError when the address cannot be had. With port 0, `port` says which it is.

        sendfile: see DeadlineSocket.
        """
        self._book = book
        self._count = count
        self._tls = tls
        self._sendfile = sendfile
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._open: dict[DeadlineSocket, threading.Thread] = {}
        self._num_connecting = 0
        self._closed = False
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name="kv-data-accept", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """Ends every connection. Tickets that were being read are paused."""
        with self._lock:
            self._closed = True
            running = dict(self._open)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in running:
            connection.shut()
        self._accepting.join()
        for thread in running.values():
            thread.join()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connected, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                _log.warning("cannot accept a peer", error=str(error))
                time.sleep(0.05)  # out of descriptors: whoever has them needs time to give some back
                continue
            with self._lock:
                refused = self._closed or len(self._open) + self._num_connecting >= self._max_connections
                self._num_connecting += not refused
            if refused:
                connected.close()
                self._count("peer_connections_refused", 1)
                continue
            threading.Thread(target=self._serve, args=(connected,), name="kv-data", daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        connection: DeadlineSocket | None = None
        try:
            if self._tls is not None:
                connected.settimeout(HANDSHAKE_TIMEOUT_S)
                connected = self._tls.wrap_socket(connected, server_side=True)
            connection = DeadlineSocket(connected, self._sendfile)
        except OSError:  # ssl.SSLError is one
            self._count("peer_connections_refused", 1)
            connected.close()
        with self._lock:
            self._num_connecting -= 1
            if connection is not None and not self._closed:
                self._open[connection] = threading.current_thread()
        if connection is None:
            return
        try:
            with contextlib.suppress(OSError):
                while not self._closed and self._answer(connection):
                    pass
        finally:
            with self._lock:
                self._open.pop(connection, None)
            connection.close()

    def _answer(self, connection: DeadlineSocket) -> bool:
        """One transfer; whether another one may follow on this connection. Raises OSError."""
        hello = Hello.unpack(connection.receive_exactly(HELLO.size, time.monotonic() + IDLE_TIMEOUT_S))
        ticket = self._book.open(hello) if hello is not None else Status.MALFORMED
        deadline_s = time.monotonic() + HANDSHAKE_TIMEOUT_S
        if hello is None or isinstance(ticket, Status):
            self._count("tickets_refused", 1)
            connection.send(ANSWER.pack(MAGIC, VERSION, ticket, 0), deadline_s)
            return hello is not None
        sending = _Sending(connection, ticket, hello)
        try:
            sending.run()
        except OSError:
            self._book.pause(ticket, sending.offset)
            self._count("peer_transfers_broken", 1)
            raise
        self._book.end(ticket)
        self._count("peer_blocks_sent", (hello.end - hello.offset) // ticket.block_bytes)
        return True


class _Sending:
    """One transfer, and how far it came."""

    def __init__(self, connection: DeadlineSocket, ticket: Ticket, hello: Hello) -> None:
        self.offset = hello.offset
        self._end = hello.end
        self._connection = connection
        self._ticket = ticket

    def run(self) -> None:
        """Raises OSError when the other side, or the ticket's time, ends first."""
        ticket, connection = self._ticket, self._connection
        connection.send(ANSWER.pack(MAGIC, VERSION, Status.OK, self._end - self.offset), ticket.deadline_s)
        while self.offset < self._end:
            number, within = divmod(self.offset, ticket.block_bytes)
            piece = ticket.pieces[number]
            size = min(ticket.block_bytes, within + self._end - self.offset)
            rest = piece.view[within:size]
            self.offset += connection.send_file(piece.fd, piece.offset + within, rest, ticket.deadline_s)
        receipt = unpack_reply(RECEIPT, connection.receive_exactly(RECEIPT.size, ticket.deadline_s))
        if receipt is None:
            raise ConnectionResetError("what came was no receipt")

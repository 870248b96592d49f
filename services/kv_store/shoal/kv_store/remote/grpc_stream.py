"""The fallback for payloads: a gRPC stream of bytes as they are, for networks that let nothing else through.

The messages are no protobufs: a `bytes` field is copied several times more (0.6 to 0.9 GB/s in place of 4 to 7).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import grpc

from shoal.kv_store.remote.auth import Signer
from shoal.kv_store.remote.tickets import Ticket, TicketBook
from shoal.kv_store.remote.transfer import TransferBusy, TransferRefused
from shoal.kv_store.remote.wire import ANSWER, MAGIC, VERSION, Hello, Status, unpack_reply

PART_BYTES: Final = 1 << 20
READ: Final = "/shoal.api.kv_store.v1.KvPeerService/Read"


class GrpcStream:
    """One call of Read."""

    def __init__(self, channel: grpc.Channel, signer: Signer) -> None:
        self._read = channel.unary_stream(READ, None, None)  # bytes as they are
        self._signer = signer
        self._call: Any = None
        self._part = memoryview(b"")

    def start(self, hello: Hello, deadline_s: float) -> int:
        """See `Stream`."""
        body = hello.pack()
        left_s = max(0.001, deadline_s - time.monotonic())
        try:
            self._call = self._read(body, timeout=left_s, metadata=tuple(self._signer.sign_call(READ, body)))
        except ValueError as error:  # the channel is closed
            raise ConnectionAbortedError(str(error)) from None
        head = self._next()
        answer = unpack_reply(ANSWER, head) if len(head) == ANSWER.size else None
        if answer is None:
            raise TransferRefused("the peer port speaks something else")
        status, num_bytes = answer
        if status == Status.BUSY:
            raise TransferBusy("the ticket is being read in another call, or too many are")
        if status != Status.OK:
            raise TransferRefused(f"the owner refused the ticket (status {status})")
        return num_bytes

    def receive_into(self, view: memoryview, deadline_s: float) -> int:
        """See `Stream`. The call has the deadline already."""
        if not self._part:
            self._part = memoryview(self._next())
        num = min(len(view), len(self._part))
        view[:num] = self._part[:num]
        self._part = self._part[num:]
        return num

    def finish(self, status: Status, num_bytes: int, deadline_s: float) -> None:
        """See `Stream`. There is no receipt, as what gRPC took over is a copy: the stream's end ends the ticket."""
        if status != Status.OK or self._next():
            self._call.cancel()

    def abandon(self) -> None:
        """See `Stream`."""
        if self._call is not None:
            self._call.cancel()

    def _next(self) -> bytes:
        try:
            message: bytes = next(self._call, b"")
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)
            raise ConnectionResetError(f"{call.code().name}: {call.details()}") from None
        return message


def send_parts(
    book: TicketBook, data: bytes, count: Callable[[str, int], None], busy: threading.Semaphore
) -> Iterator[bytes]:
    """What Read answers to a hello. Runs in a thread of the peer server."""
    hello = Hello.unpack(data)
    if hello is None or not busy.acquire(blocking=False):
        yield ANSWER.pack(MAGIC, VERSION, Status.MALFORMED if hello is None else Status.BUSY, 0)
        return
    try:
        ticket = book.open(hello)
        if isinstance(ticket, Status):
            count("tickets_refused", 1)
            yield ANSWER.pack(MAGIC, VERSION, ticket, 0)
            return
        yield from _send_ticket(book, ticket, hello, count)
    finally:
        busy.release()


def _send_ticket(book: TicketBook, ticket: Ticket, hello: Hello, count: Callable[[str, int], None]) -> Iterator[bytes]:
    offset, over = hello.offset, False
    try:
        yield ANSWER.pack(MAGIC, VERSION, Status.OK, hello.end - offset)
        while offset < hello.end and time.monotonic() < ticket.deadline_s:
            number, within = divmod(offset, ticket.block_bytes)
            end = min(within + PART_BYTES, ticket.block_bytes, within + hello.end - offset)
            part = bytes(ticket.pieces[number].view[within:end])
            offset += len(part)
            yield part
        over = offset == hello.end
    finally:  # also when the reader leaves, which ends the generator where it is
        if over:
            book.end(ticket)
            count("peer_blocks_sent", (offset - hello.offset) // ticket.block_bytes)
        else:
            book.pause(ticket, offset)
            count("peer_transfers_broken", 1)

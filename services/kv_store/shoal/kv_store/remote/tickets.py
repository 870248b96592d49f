"""Tickets: who holds one may read some blocks, once, for a while."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from typing import Final

from shoal.kv_store.remote.wire import TICKET_BYTES, Hello, Status
from shoal.rpc.errors import ResourceExhausted

MAX_RESUMES: Final = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """One payload: where it is in a file, and in this process."""

    fd: int
    """Of this ticket alone: a number that is closed elsewhere may name another file the next moment."""
    offset: int
    view: memoryview


class State(Enum):
    """Of a ticket."""

    FRESH = 1
    RUNNING = 2
    BROKEN = 3
    ENDED = 4


@dataclass(slots=True, eq=False)
class Ticket:
    """What was promised, and how far it came. Belongs to whoever opened it, until `pause` or `end`."""

    digest: bytes
    binding: bytes
    pieces: Sequence[Piece]
    block_bytes: int
    deadline_s: float
    on_end: Callable[[], None]
    state: State = State.FRESH
    num_sent: int = 0
    """Bytes that were handed to the network at some time."""
    num_opened: int = 0

    @property
    def num_bytes(self) -> int:
        """Of all payloads."""
        return len(self.pieces) * self.block_bytes


@dataclass(slots=True)
class TicketBook:
    """Every ticket that is not over. Safe from any thread."""

    max_tickets: int = 256
    clock: Callable[[], float] = time.monotonic
    _tickets: dict[bytes, Ticket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(
        self,
        binding: bytes,
        pieces: Sequence[Piece],
        block_bytes: int,
        timeout_s: float,
        on_end: Callable[[], None],
    ) -> bytes:
        """A fresh ticket's name. `on_end` is called once, in any thread, when nobody can use it any more.

        Raises ResourceExhausted.
        """
        name = secrets.token_bytes(TICKET_BYTES)
        ticket = Ticket(_digest(name), binding, pieces, block_bytes, self.clock() + timeout_s, on_end)
        with self._lock:
            if len(self._tickets) >= self.max_tickets:
                raise ResourceExhausted(f"{self.max_tickets} transfers are under way or about to be", 0.1)
            self._tickets[ticket.digest] = ticket
        return name

    def open(self, hello: Hello) -> Ticket | Status:
        """The ticket, to be read from `hello.offset` to `hello.end`, or why not."""
        with self._lock:
            ticket = self._tickets.get(_digest(hello.ticket))  # found by its digest: looking takes no telling time
            if ticket is None or ticket.binding != hello.binding or ticket.deadline_s <= self.clock():
                return Status.NO_SUCH_TICKET
            if ticket.state is State.RUNNING:
                return Status.BUSY
            if not hello.offset <= hello.end <= ticket.num_bytes or hello.offset > ticket.num_sent:
                return Status.BAD_OFFSET
            if ticket.num_opened > MAX_RESUMES:
                return Status.NO_SUCH_TICKET
            ticket.num_opened += 1
            ticket.state = State.RUNNING
            return ticket

    def pause(self, ticket: Ticket, num_sent: int) -> None:
        """The connection broke after so many bytes; the reader may come back."""
        with self._lock:
            ticket.num_sent = max(ticket.num_sent, num_sent)
            if ticket.state is State.RUNNING:
                ticket.state = State.BROKEN
            over = ticket.num_opened > MAX_RESUMES or ticket.deadline_s <= self.clock()
        if over:
            self.end(ticket)

    def end(self, ticket: Ticket) -> None:
        """Nobody can use it from here on."""
        with self._lock:
            if ticket.state is State.ENDED:
                return
            ticket.state = State.ENDED
            self._tickets.pop(ticket.digest, None)
        ticket.on_end()

    def expire(self) -> int:
        """Ends tickets that are over their time; how many. Those that are being read end with the reading."""
        now_s = self.clock()
        with self._lock:
            late = [t for t in self._tickets.values() if t.deadline_s <= now_s and t.state is not State.RUNNING]
        for ticket in late:
            self.end(ticket)
        return len(late)

    def end_all(self) -> None:
        """Ends every ticket; nobody may be reading any."""
        for ticket in list(self._tickets.values()):
            self.end(ticket)


def _digest(name: bytes) -> bytes:
    return sha256(name).digest()

"""Receives payloads by ticket, over a data connection or over gRPC, into memory that nobody else can see yet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from shoal.checksum import crc32c
from shoal.kv_store.remote.sockets import DeadlineSocket
from shoal.kv_store.remote.wire import ANSWER, MAGIC, RECEIPT, VERSION, Hello, Status, unpack_reply

Transport = Literal["tcp", "grpc"]
MAX_ATTEMPTS: Final = 4
"""Connections for one ticket; its owner allows as many."""
MAX_BUSY_S: Final = 1.0
"""How long an owner that is busy is asked again."""
BUSY_RETRY_S: Final = 0.005


class TransferRefused(Exception):
    """The owner does not give what was asked for. Asking again does not help."""


class TransferBusy(OSError):
    """The owner has not noticed yet that the connection before this one broke, or has no room for another transfer."""


class Stream(Protocol):
    """One attempt at a transfer. Methods raise OSError when the connection breaks or the time is over."""

    def start(self, hello: Hello, deadline_s: float) -> int:
        """Bytes that follow. Raises TransferRefused."""

    def receive_into(self, view: memoryview, deadline_s: float) -> int:
        """Bytes that arrived; 0 at an early end."""

    def finish(self, status: Status, num_bytes: int, deadline_s: float) -> None:
        """Everything that is wanted arrived, or something that nobody wants."""

    def abandon(self) -> None:
        """The stream is of no use any more."""


@dataclass(frozen=True, slots=True)
class Received:
    """What a transfer came to."""

    num_verified: int
    """Leading payloads that arrived and have their checksums."""
    is_corrupt: bool = False
    """Whether the payload after them had another checksum than the owner said."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Payloads to receive. Run in a thread that nobody waits for longer than until the deadline."""

    ticket: bytes
    binding: bytes
    targets: Sequence[memoryview]
    """Writable, one a payload; of equal size."""
    checksums: Sequence[int]
    deadline_s: float

    def run(self, connect: Callable[[], Stream]) -> Received:
        """Goes on over another connection where one breaks. Raises nothing for what the other side does."""
        arrived = _Arrived(self)
        problem = ""
        num_attempts, busy_until_s = 0, time.monotonic() + MAX_BUSY_S
        while num_attempts < MAX_ATTEMPTS:
            num_attempts += 1
            if time.monotonic() >= self.deadline_s:
                return Received(arrived.num_verified, False, problem or "the time is over")
            stream: Stream | None = None
            try:
                stream = connect()
                return arrived.receive(stream)
            except TransferRefused as refusal:
                return Received(arrived.num_verified, False, str(refusal))
            except TransferBusy as busy:
                problem = str(busy)
                if time.monotonic() < busy_until_s:
                    num_attempts -= 1
                    time.sleep(BUSY_RETRY_S)
            except OSError as error:
                problem = str(error) or type(error).__name__
                busy_until_s = time.monotonic() + MAX_BUSY_S
                if stream is not None:
                    stream.abandon()
        return Received(arrived.num_verified, False, problem)


class _Arrived:
    """How far a transfer came, over all its attempts."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._block_bytes = len(transfer.targets[0])
        self._end = len(transfer.targets) * self._block_bytes
        self._offset = 0

    @property
    def num_verified(self) -> int:
        return self._offset // self._block_bytes

    def receive(self, stream: Stream) -> Received:
        """Raises OSError, TransferRefused."""
        transfer = self._transfer
        deadline_s = transfer.deadline_s
        hello = Hello(transfer.ticket, transfer.binding, self._offset, self._end)
        num_bytes = stream.start(hello, deadline_s)
        if num_bytes != self._end - self._offset:
            stream.abandon()
            raise TransferRefused(f"{num_bytes} bytes announced, {self._end - self._offset} asked for")
        while self._offset < self._end:
            number, within = divmod(self._offset, self._block_bytes)
            target = transfer.targets[number]
            num = stream.receive_into(target[within:], deadline_s)
            if not num:
                raise ConnectionResetError("the other side closed the connection")
            if within + num == self._block_bytes and crc32c(target) != transfer.checksums[number]:
                with contextlib.suppress(OSError):
                    stream.finish(Status.CORRUPT, number * self._block_bytes, deadline_s)
                return Received(number, True, "a payload does not have its checksum")
            self._offset += num
        stream.finish(Status.OK, self._end, deadline_s)
        return Received(self.num_verified)


class TcpStream:
    """A data connection, given back when it can be used again."""

    def __init__(self, connection: DeadlineSocket, give_back: Callable[[DeadlineSocket], None]) -> None:
        self._connection = connection
        self._give_back = give_back

    def start(self, hello: Hello, deadline_s: float) -> int:
        """See `Stream`."""
        self._connection.send(hello.pack(), deadline_s)
        answer = unpack_reply(ANSWER, self._connection.receive_exactly(ANSWER.size, deadline_s))
        if answer is None:
            self._connection.close()
            raise TransferRefused("the data port speaks something else")
        status, num_bytes = answer
        if status == Status.BUSY:
            self._give_back(self._connection)
            raise TransferBusy("the ticket is being read over another connection")
        if status != Status.OK:
            self._give_back(self._connection)
            raise TransferRefused(f"the owner refused the ticket (status {status})")
        return num_bytes

    def receive_into(self, view: memoryview, deadline_s: float) -> int:
        """See `Stream`."""
        return self._connection.receive_into(view, deadline_s)

    def finish(self, status: Status, num_bytes: int, deadline_s: float) -> None:
        """See `Stream`."""
        self._connection.send(RECEIPT.pack(MAGIC, VERSION, status, num_bytes), deadline_s)
        if status == Status.OK:
            self._give_back(self._connection)
        else:
            self._connection.close()

    def abandon(self) -> None:
        """See `Stream`."""
        self._connection.close()

"""Numbered events about blocks, for any number of subscribers, each brought up to date however far behind it is."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

SNAPSHOT_PART_KEYS: Final = 4096
"""64 KiB of keys a message."""
HEARTBEAT_S: Final = 1.0
"""A subscriber hears something at least this often: an open stream that is silent is a broken one."""
_Event = TypeVar("_Event")
_Message = TypeVar("_Message")


class EventLog(ABC, Generic[_Event, _Message]):
    """The last `buffer` events, numbered without gaps from 1; a service says how they become its messages.

    Subscribers hold only a number, so a slow one costs nothing: once the buffer no longer has its next event it gets a
    snapshot. Belongs to one event loop.
    """

    def __init__(self, *, epoch: int, buffer: int, heartbeat_s: float = HEARTBEAT_S) -> None:
        """`epoch` is not 0 and differs between any two runs of a service."""
        self.epoch = epoch
        self.heartbeat_s = heartbeat_s
        self.last_seq = 0
        """Number of the latest event; 0 before the first."""
        self._events: deque[_Event] = deque(maxlen=buffer)
        self._changed: asyncio.Event | None = None
        self._closed = False

    def publish(self, events: Iterable[_Event]) -> None:
        """Adds events in order of happening."""
        for event in events:
            self.last_seq += 1
            self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Ends all subscriptions."""
        self._closed = True
        self._wake()

    async def follow(
        self,
        epoch: int,
        start_seq: int,
        *,
        snapshot: Callable[[], Sequence[_Message]] | None = None,
        message_of: Callable[[int, _Event], _Message | None] | None = None,
    ) -> AsyncIterator[_Message]:
        """Events from `start_seq` on, after a snapshot if that is 0, of another epoch, or out of the buffer's reach.

        Whoever is up to date gets a heartbeat while nothing happens. `snapshot` and `message_of` stand in for the
        log's own where a subscriber may not see everything; None for a message passes over the event.
        """
        snapshot, message_of = snapshot or self.snapshot, message_of or self.message_of
        next_seq = start_seq if epoch == self.epoch and start_seq <= self.last_seq + 1 else 0
        while not self._closed:
            first_seq = self.last_seq - len(self._events) + 1
            if next_seq < first_seq or next_seq == 0:
                next_seq = self.last_seq + 1
                for part in snapshot():
                    yield part
            elif next_seq <= self.last_seq:
                message = message_of(next_seq, self._events[next_seq - first_seq])
                next_seq += 1
                if message is not None:
                    yield message
            elif not await self._change():
                yield self.heartbeat()

    @abstractmethod
    def snapshot(self) -> Sequence[_Message]:
        """All that can be found at this moment, in parts that carry `last_seq`."""

    @abstractmethod
    def message_of(self, seq: int, event: _Event) -> _Message:
        """One event."""

    @abstractmethod
    def heartbeat(self) -> _Message:
        """`last_seq`, and no event."""

    async def _change(self) -> bool:
        """Waits for events, or the end; False when a heartbeat is due first."""
        if self._changed is None:
            self._changed = asyncio.Event()
        try:
            async with asyncio.timeout(self.heartbeat_s):
                return await self._changed.wait()
        except TimeoutError:
            return False

    def _wake(self) -> None:
        if self._changed is not None:  # nobody waits otherwise
            self._changed.set()
            self._changed = None


def in_parts(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Keys as a snapshot's messages hold them; no keys are one part."""
    for start in range(0, max(1, len(keys)), SNAPSHOT_PART_KEYS):
        yield keys[start : start + SNAPSHOT_PART_KEYS]

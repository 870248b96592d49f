"""Events of what becomes visible and ceases to be, numbered, for any number of subscribers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.worker.v1 import worker_pb2

SNAPSHOT_PART_KEYS: Final = 4096
HEARTBEAT_S: Final = 1.0
MEMORY: Final = worker_pb2.TIER_MEMORY
DISK: Final = worker_pb2.TIER_DISK


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that came into a tier; each one's parent is the one before it."""

    keys: tuple[bytes, ...]
    parent_key: bytes
    tier: worker_pb2.Tier.ValueType


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that left a tier."""

    keys: tuple[bytes, ...]
    tier: worker_pb2.Tier.ValueType


Event = Stored | Removed
ListKeys = Callable[[worker_pb2.Tier.ValueType], Iterable[bytes]]


class EventHub:
    """The last `buffer` events. Subscribers hold only a number; one that is too slow gets a snapshot.

    Belongs to one event loop.
    """

    def __init__(self, *, epoch: int, buffer: int, list_keys: ListKeys, heartbeat_s: float = HEARTBEAT_S) -> None:
        """`list_keys(tier)`: everything visible in a tier at this moment, parents before children."""
        self.epoch = epoch
        self.last_seq = 0
        self._list_keys = list_keys
        self._heartbeat_s = heartbeat_s
        self._events: deque[Event] = deque(maxlen=buffer)
        self._changed: asyncio.Event | None = None
        self._closed = False

    def publish(self, event: Event) -> None:
        """Adds an event."""
        self.last_seq += 1
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Ends all subscriptions."""
        self._closed = True
        self._wake()

    async def follow(self, epoch: int, start_seq: int) -> AsyncIterator[pb.WatchResponse]:
        """Events from `start_seq` on, after a snapshot if that is 0, of another epoch, or out of the buffer's reach."""
        next_seq = start_seq if epoch == self.epoch and start_seq <= self.last_seq + 1 else 0
        while not self._closed:
            if next_seq < self.last_seq - len(self._events) + 1 or next_seq == 0:
                next_seq = self.last_seq + 1
                for part in self._snapshot():
                    yield part
            elif next_seq <= self.last_seq:
                yield self._response(next_seq)
                next_seq += 1
            elif not await self._change():
                yield pb.WatchResponse(epoch=self.epoch, seq=self.last_seq)

    async def _change(self) -> bool:
        if self._changed is None:
            self._changed = asyncio.Event()
        try:
            async with asyncio.timeout(self._heartbeat_s):
                return await self._changed.wait()
        except TimeoutError:
            return False

    def _wake(self) -> None:
        if self._changed is not None:  # nobody waits otherwise
            self._changed.set()
            self._changed = None

    def _snapshot(self) -> list[pb.WatchResponse]:
        # Built at once: it must show one moment.
        keys = {tier: list(self._list_keys(tier)) for tier in (MEMORY, DISK)}
        parts = [
            worker_pb2.KvSnapshot(keys=keys[tier][start : start + SNAPSHOT_PART_KEYS], tier=tier)
            for tier in keys
            for start in range(0, max(1, len(keys[tier])), SNAPSHOT_PART_KEYS)
        ]
        parts[-1].complete = True
        return [pb.WatchResponse(epoch=self.epoch, seq=self.last_seq, snapshot=part) for part in parts]

    def _response(self, seq: int) -> pb.WatchResponse:
        event = self._events[seq - self.last_seq - 1]
        response = pb.WatchResponse(epoch=self.epoch, seq=seq)
        if isinstance(event, Stored):
            response.stored.keys.extend(event.keys)
            response.stored.parent_key = event.parent_key
            response.stored.tier = event.tier
        else:
            response.removed.keys.extend(event.keys)
            response.removed.tier = event.tier
        return response

"""Numbers the prefix cache's events and brings any subscriber up to date, however far behind it is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Final

from shoal.api.worker.v1 import worker_pb2
from shoal.model_worker.kv_cache import Cleared, KvEvent, Removed, Stored

SNAPSHOT_PART_KEYS: Final = 4096
"""64 KiB of keys a message."""
HEARTBEAT_S: Final = 1.0
"""A subscriber hears from the worker at least this often: an open stream that is silent is a broken one."""


class KvEventHub:
    """The last `buffer` events, and the set of keys that all events together add up to.

    Subscribers hold only a number, so a slow one costs nothing: once the buffer no longer has its next event it gets a
    snapshot. Belongs to one event loop.
    """

    def __init__(self, *, epoch: int, buffer: int, heartbeat_s: float = HEARTBEAT_S) -> None:
        """`epoch` is not 0 and differs between any two runs of a worker."""
        self.epoch = epoch
        self.heartbeat_s = heartbeat_s
        self._last_seq = 0
        self._events: deque[KvEvent] = deque(maxlen=buffer)
        self._keys: dict[bytes, None] = {}
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def last_seq(self) -> int:
        """Number of the latest event; 0 before the first."""
        return self._last_seq

    def publish(self, events: Iterable[KvEvent]) -> None:
        """Adds events in order of happening."""
        for event in events:
            match event:
                case Stored():
                    self._keys.update(dict.fromkeys(event.keys))
                case Removed():
                    for key in event.keys:
                        self._keys.pop(key, None)
                case Cleared():
                    self._keys.clear()
            self._last_seq += 1
            self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Ends all subscriptions."""
        self._closed = True
        self._wake()

    async def follow(self, epoch: int, start_seq: int) -> AsyncIterator[worker_pb2.SubscribeKvEventsResponse]:
        """Events from `start_seq` on, after a snapshot if that is 0, of another epoch, or out of the buffer's reach.

        Whoever is up to date gets a heartbeat while nothing happens: a message with the last event's number, no event.
        """
        next_seq = start_seq if epoch == self.epoch and start_seq <= self._last_seq + 1 else 0
        while not self._closed:
            if next_seq < self._first_seq or next_seq == 0:
                next_seq = self._last_seq + 1
                for part in self._snapshot():
                    yield part
            elif next_seq <= self._last_seq:
                yield self._response(next_seq)
                next_seq += 1
            elif not await self._change():
                yield worker_pb2.SubscribeKvEventsResponse(epoch=self.epoch, seq=self._last_seq)

    @property
    def _first_seq(self) -> int:
        return self._last_seq - len(self._events) + 1

    async def _change(self) -> bool:
        """Waits for events, or the end; False when a heartbeat is due first."""
        try:
            async with asyncio.timeout(self.heartbeat_s):
                return await self._changed.wait()
        except TimeoutError:
            return False

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _snapshot(self) -> list[worker_pb2.SubscribeKvEventsResponse]:
        # Built at once: it must show one moment.
        keys = list(self._keys)
        parts = []
        for start in range(0, max(1, len(keys)), SNAPSHOT_PART_KEYS):
            part = keys[start : start + SNAPSHOT_PART_KEYS]
            snapshot = worker_pb2.KvSnapshot(
                keys=part, tier=worker_pb2.TIER_DEVICE, complete=start + SNAPSHOT_PART_KEYS >= len(keys)
            )
            parts.append(worker_pb2.SubscribeKvEventsResponse(epoch=self.epoch, seq=self._last_seq, snapshot=snapshot))
        return parts

    def _response(self, seq: int) -> worker_pb2.SubscribeKvEventsResponse:
        event = self._events[seq - self._first_seq]
        response = worker_pb2.SubscribeKvEventsResponse(epoch=self.epoch, seq=seq)
        match event:
            case Stored():
                response.stored.keys.extend(event.keys)
                response.stored.parent_key = event.parent_key
                response.stored.tier = worker_pb2.TIER_DEVICE
            case Removed():
                response.removed.keys.extend(event.keys)
                response.removed.tier = worker_pb2.TIER_DEVICE
            case Cleared():
                response.cleared.SetInParent()
        return response

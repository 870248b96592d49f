"""Keeps one worker's part of the prefix index true to its KV events, or says that it cannot."""

from __future__ import annotations

from typing import Final

from shoal.api.worker.v1 import worker_pb2
from shoal.gateway.routing.prefix_index import PrefixIndex

_COUNTED_TIERS: Final = (worker_pb2.TIER_DEVICE, worker_pb2.TIER_UNSPECIFIED)


class EventGap(Exception):
    """Events were lost or make no sense; subscribe again from `next_request`."""


class KvEventFeed:
    """The subscriber's side of `SubscribeKvEvents`: epoch, sequence numbers, snapshots. No I/O.

    The index knows the worker only while this feed is in step with it.
    """

    def __init__(self, worker: str, index: PrefixIndex) -> None:
        self._worker = worker
        self._index = index
        self._epoch = 0
        self._next_seq = 0
        self._staged: list[bytes] | None = None

    @property
    def next_request(self) -> worker_pb2.SubscribeKvEventsRequest:
        """What to subscribe with: the first event that is missing, or everything."""
        self._staged = None
        return worker_pb2.SubscribeKvEventsRequest(epoch=self._epoch, start_seq=self._next_seq)

    def forget(self) -> None:
        """The worker is gone, or restarted: nothing is known about it."""
        self._epoch = self._next_seq = 0
        self._staged = None
        self._index.drop(self._worker)

    def expect_epoch(self, epoch: int) -> None:
        """The worker's epoch by GetInfo: another one than before voids what is known."""
        if epoch != self._epoch:
            self.forget()

    def apply(self, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        """Raises EventGap when `event` does not follow what came before; the index is then either right or empty."""
        kind = event.WhichOneof("event")
        if kind == "snapshot":
            self._stage(event)
            return
        if self._staged is not None:
            self.forget()
            raise EventGap("a snapshot was interrupted")
        if event.epoch != self._epoch:
            self.forget()
            raise EventGap("the worker restarted")
        if event.seq < self._next_seq:
            return  # an overlap after subscribing again
        if event.seq > self._next_seq:
            raise EventGap(f"expected event {self._next_seq}, got {event.seq}")
        self._next_seq += 1
        if kind == "stored" and event.stored.tier in _COUNTED_TIERS:
            self._index.store(self._worker, list(event.stored.keys))
        elif kind == "removed" and event.removed.tier in _COUNTED_TIERS:
            self._index.remove(self._worker, event.removed.keys)
        elif kind == "cleared":
            self._index.clear(self._worker)

    def _stage(self, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        if self._staged is None:
            self._staged = []
        if event.snapshot.tier in _COUNTED_TIERS:
            self._staged.extend(event.snapshot.keys)
        if event.snapshot.complete:
            keys, self._staged = self._staged, None
            self._index.clear(self._worker)
            self._index.store(self._worker, keys)
            self._epoch, self._next_seq = event.epoch, event.seq + 1

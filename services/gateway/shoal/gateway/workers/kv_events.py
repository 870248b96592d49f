"""Keeps one worker's part of the prefix index true to its KV events, or says that it cannot."""

from __future__ import annotations

from typing import Final

from shoal.api.worker.v1 import worker_pb2
from shoal.gateway import metrics
from shoal.gateway.routing.block_table import Tier
from shoal.gateway.routing.prefix_index import PrefixIndex

_TIERS: Final = {
    int(worker_pb2.TIER_UNSPECIFIED): Tier.DEVICE,
    int(worker_pb2.TIER_DEVICE): Tier.DEVICE,
    int(worker_pb2.TIER_MEMORY): Tier.MEMORY,
    int(worker_pb2.TIER_DISK): Tier.DISK,
}
"""Tiers of a later version are not in it, and do not count."""


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
        self._staging = False

    @property
    def next_request(self) -> worker_pb2.SubscribeKvEventsRequest:
        """What to subscribe with: the first event that is missing, or everything."""
        self._staging = False
        self._index.abandon(self._worker)
        return worker_pb2.SubscribeKvEventsRequest(epoch=self._epoch, start_seq=self._next_seq)

    def forget(self) -> None:
        """The worker is gone, or restarted: nothing is known about it."""
        self._epoch = self._next_seq = 0
        self._staging = False
        self._index.drop(self._worker)

    def expect_epoch(self, epoch: int) -> None:
        """The worker's epoch by GetInfo: another one than before voids what is known."""
        if epoch != self._epoch:
            if self._epoch:
                metrics.KV_RESYNCS.labels(self._worker, "restart").inc()
            self.forget()

    def apply(self, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        """Raises EventGap when `event` does not follow what came before; the index is then either right or empty."""
        kind = event.WhichOneof("event")
        try:
            self._take(kind, event)
        except ValueError as error:
            self.forget()
            raise EventGap(f"event {event.seq} makes no sense: {error}") from None

    def _take(self, kind: str | None, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        if kind == "snapshot":
            self._stage(event)
            return
        if self._staging:
            self.forget()
            raise EventGap("a snapshot was interrupted")
        if event.epoch != self._epoch:
            self.forget()
            raise EventGap("the worker restarted")
        if event.seq < self._next_seq:
            return  # an overlap after subscribing again, or a heartbeat
        if event.seq > self._next_seq:
            raise EventGap(f"expected event {self._next_seq}, got {event.seq}")
        if kind is None:
            raise EventGap(f"a heartbeat tells of event {event.seq}, which never came")
        self._next_seq += 1
        if kind == "stored":
            if (tier := _TIERS.get(event.stored.tier)) is not None:
                self._index.store(self._worker, event.stored.keys, tier)
        elif kind == "removed":
            if (tier := _TIERS.get(event.removed.tier)) is not None:
                self._index.remove(self._worker, event.removed.keys, tier)
        elif kind == "cleared":
            self._index.clear(self._worker)

    def _stage(self, event: worker_pb2.SubscribeKvEventsResponse) -> None:
        """Parts go into the index as they come, where they count for nothing before the last one."""
        part = event.snapshot
        tier = _TIERS.get(part.tier)
        self._staging = True
        self._index.stage(self._worker, part.keys if tier is not None else (), tier or Tier.DEVICE)
        if part.complete:
            self._index.commit(self._worker)
            self._staging = False
            self._epoch, self._next_seq = event.epoch, event.seq + 1
            metrics.KV_RESYNCS.labels(self._worker, "snapshot").inc()

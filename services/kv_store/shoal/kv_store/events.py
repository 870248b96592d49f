"""Events of what becomes visible and ceases to be, numbered, for any number of subscribers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.worker.v1 import worker_pb2
from shoal.blocks.event_log import EventLog, in_parts

MEMORY: Final = worker_pb2.TIER_MEMORY
DISK: Final = worker_pb2.TIER_DISK


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that came into a tier; each one's parent is the one before it."""

    keys: tuple[bytes, ...]
    parent_key: bytes
    tier: worker_pb2.Tier.ValueType
    tenant: str


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that left a tier."""

    keys: tuple[bytes, ...]
    tier: worker_pb2.Tier.ValueType
    tenant: str


Event = Stored | Removed
ListKeys = Callable[[worker_pb2.Tier.ValueType, str], Iterable[bytes]]


class EventHub(EventLog[Event, pb.WatchResponse]):
    """See `EventLog`. The index says what is visible, for snapshots."""

    def __init__(self, *, epoch: int, buffer: int, list_keys: ListKeys) -> None:
        """`list_keys(tier, tenant)`: what is visible in a tier at this moment; of all tenants for an empty name."""
        super().__init__(epoch=epoch, buffer=buffer)
        self._list_keys = list_keys

    def watch(self, epoch: int, start_seq: int, tenant: str) -> AsyncIterator[pb.WatchResponse]:
        """`follow`, of one tenant's events if that is named."""
        if not tenant:
            return self.follow(epoch, start_seq)
        return self.follow(
            epoch,
            start_seq,
            snapshot=lambda: self.snapshot(tenant),
            message_of=lambda seq, event: self.message_of(seq, event) if event.tenant == tenant else None,
        )

    def snapshot(self, tenant: str = "") -> list[pb.WatchResponse]:
        """See `EventLog.snapshot`."""
        parts = [
            worker_pb2.KvSnapshot(keys=keys, tier=tier)
            for tier in (MEMORY, DISK)
            for keys in in_parts(list(self._list_keys(tier, tenant)))
        ]
        parts[-1].complete = True
        return [pb.WatchResponse(epoch=self.epoch, seq=self.last_seq, snapshot=part) for part in parts]

    def message_of(self, seq: int, event: Event) -> pb.WatchResponse:
        """See `EventLog.message_of`."""
        response = pb.WatchResponse(epoch=self.epoch, seq=seq)
        if isinstance(event, Stored):
            response.stored.keys.extend(event.keys)
            response.stored.parent_key = event.parent_key
            response.stored.tier = event.tier
        else:
            response.removed.keys.extend(event.keys)
            response.removed.tier = event.tier
        return response

    def heartbeat(self) -> pb.WatchResponse:
        """See `EventLog.heartbeat`."""
        return pb.WatchResponse(epoch=self.epoch, seq=self.last_seq)

"""The prefix cache's events as subscribers get them, and those of the node's KV store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks.event_log import HEARTBEAT_S, EventLog, in_parts
from shoal.model_worker.kv_cache import Cleared, KvEvent, Removed, Stored

_Response = worker_pb2.SubscribeKvEventsResponse
_DEVICE: Final = worker_pb2.TIER_DEVICE
STORE_TIERS: Final = (worker_pb2.TIER_MEMORY, worker_pb2.TIER_DISK)


@dataclass(frozen=True, slots=True)
class TierEvent:
    """What happened in one tier."""

    event: KvEvent
    tier: worker_pb2.Tier.ValueType


class KvEventHub(EventLog[TierEvent, _Response]):
    """Knows the set of keys that all events together add up to, for snapshots: the device's, and of the KV store's as
    many as fit. What does not fit is not told, so that a router expects too little, never too much."""

    def __init__(
        self, *, epoch: int, buffer: int, heartbeat_s: float = HEARTBEAT_S, max_store_keys: int = 1 << 18
    ) -> None:
        """See `EventLog`. max_store_keys: of the KV store, all tiers."""
        super().__init__(epoch=epoch, buffer=buffer, heartbeat_s=heartbeat_s)
        self._max_store_keys = max_store_keys
        self._keys: dict[worker_pb2.Tier.ValueType, dict[bytes, None]] = {tier: {} for tier in (_DEVICE, *STORE_TIERS)}

    def publish_device(self, events: Iterable[KvEvent]) -> None:
        """The device's prefix cache has changed."""
        known = self._keys[_DEVICE]
        for event in events:
            match event:
                case Stored():
                    known.update(dict.fromkeys(event.keys))
                case Removed():
                    for key in event.keys:
                        known.pop(key, None)
                case Cleared():
                    known.clear()
            self.publish([TierEvent(event, _DEVICE)])
            if isinstance(event, Cleared):  # to subscribers that means all tiers
                self._tell_again()

    def publish_stored(self, keys: Sequence[bytes], parent_key: bytes, tier: worker_pb2.Tier.ValueType) -> None:
        """The KV store has these blocks. `parent_key` may be unknown, and empty."""
        room = self._max_store_keys - sum(len(self._keys[tier]) for tier in STORE_TIERS)
        if tier in STORE_TIERS and (new := [key for key in keys if key not in self._keys[tier]][: max(room, 0)]):
            self._keys[tier].update(dict.fromkeys(new))
            self.publish([TierEvent(Stored(tuple(new), parent_key), tier)])

    def publish_removed(self, keys: Iterable[bytes], tier: worker_pb2.Tier.ValueType) -> None:
        """The KV store no longer has these blocks."""
        if tier not in STORE_TIERS:
            return
        known = self._keys[tier]
        if gone := tuple(key for key in keys if key in known):
            for key in gone:
                del known[key]
            self.publish([TierEvent(Removed(gone), tier)])

    def replace_stored(self, keys: dict[worker_pb2.Tier.ValueType, set[bytes]]) -> None:
        """The KV store has these blocks, and no others."""
        for tier in STORE_TIERS:
            wanted = keys.get(tier, set())
            for gone in in_parts([key for key in self._keys[tier] if key not in wanted]):
                self.publish_removed(gone, tier)
            for new in in_parts(list(wanted)):
                self.publish_stored(new, b"", tier)

    def snapshot(self) -> list[_Response]:
        """See `EventLog.snapshot`."""
        parts = [
            worker_pb2.KvSnapshot(keys=keys, tier=tier)
            for tier, known in self._keys.items()
            if known or tier == _DEVICE
            for keys in in_parts(list(known))
        ]
        parts[-1].complete = True
        return [_Response(epoch=self.epoch, seq=self.last_seq, snapshot=part) for part in parts]

    def message_of(self, seq: int, event: TierEvent) -> _Response:
        """See `EventLog.message_of`."""
        response = _Response(epoch=self.epoch, seq=seq)
        match event.event:
            case Stored(keys, parent_key):
                response.stored.keys.extend(keys)
                response.stored.parent_key = parent_key
                response.stored.tier = event.tier
            case Removed(keys):
                response.removed.keys.extend(keys)
                response.removed.tier = event.tier
            case Cleared():
                response.cleared.SetInParent()
        return response

    def heartbeat(self) -> _Response:
        """See `EventLog.heartbeat`."""
        return _Response(epoch=self.epoch, seq=self.last_seq)

    def _tell_again(self) -> None:
        for tier, keys in self._in_store():
            self.publish([TierEvent(Stored(tuple(keys), b""), tier)])

    def _in_store(self) -> Iterator[tuple[worker_pb2.Tier.ValueType, Sequence[bytes]]]:
        for tier in STORE_TIERS:
            if self._keys[tier]:
                for keys in in_parts(list(self._keys[tier])):
                    yield tier, keys

"""The prefix cache's events as subscribers get them."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.api.worker.v1 import worker_pb2
from shoal.blocks.event_log import HEARTBEAT_S, EventLog, in_parts
from shoal.model_worker.kv_cache import Cleared, KvEvent, Removed, Stored

_Response = worker_pb2.SubscribeKvEventsResponse


class KvEventHub(EventLog[KvEvent, _Response]):
    """Knows the set of keys that all events together add up to, for snapshots."""

    def __init__(self, *, epoch: int, buffer: int, heartbeat_s: float = HEARTBEAT_S) -> None:
        """See `EventLog`."""
        super().__init__(epoch=epoch, buffer=buffer, heartbeat_s=heartbeat_s)
        self._keys: dict[bytes, None] = {}

    def publish(self, events: Iterable[KvEvent]) -> None:
        """See `EventLog.publish`."""
        for event in events:
            match event:
                case Stored():
                    self._keys.update(dict.fromkeys(event.keys))
                case Removed():
                    for key in event.keys:
                        self._keys.pop(key, None)
                case Cleared():
                    self._keys.clear()
        super().publish(events)

    def snapshot(self) -> list[_Response]:
        """See `EventLog.snapshot`."""
        parts = [worker_pb2.KvSnapshot(keys=keys, tier=worker_pb2.TIER_DEVICE) for keys in in_parts(list(self._keys))]
        parts[-1].complete = True
        return [_Response(epoch=self.epoch, seq=self.last_seq, snapshot=part) for part in parts]

    def message_of(self, seq: int, event: KvEvent) -> _Response:
        """See `EventLog.message_of`."""
        response = _Response(epoch=self.epoch, seq=seq)
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

    def heartbeat(self) -> _Response:
        """See `EventLog.heartbeat`."""
        return _Response(epoch=self.epoch, seq=self.last_seq)

"""Least recently used."""

from __future__ import annotations

from shoal.kv_store.policy.queues import Queue, QueuePolicy


class Lru(QueuePolicy):
    """Gives up the leaf that was used longest ago, and takes every block."""

    def __init__(self) -> None:
        super().__init__()
        self._queue = Queue()

    def _used(self, key: bytes) -> None:
        self._move(key, self._queue)

    def _came(self, key: bytes, size: int, cost: float) -> Queue:
        return self._queue

    def _went(self, key: bytes, for_room: bool) -> None:
        pass

    def _next_victim(self) -> bytes | None:
        return self._oldest_leaf(self._queue)

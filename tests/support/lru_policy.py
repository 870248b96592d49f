"""The simplest eviction policy: least recently used first."""

from __future__ import annotations

from collections.abc import Callable


class LruPolicy:
    """See shoal.kv_store.eviction.EvictionPolicy."""

    def __init__(self, capacity_bytes: int = 0, block_bytes: int = 0) -> None:
        self._keys: dict[bytes, None] = {}

    def insert(self, key: bytes, size: int, cost: float) -> None:
        assert key not in self._keys
        self._keys[key] = None

    def touch(self, key: bytes) -> None:
        del self._keys[key]
        self._keys[key] = None

    def remove(self, key: bytes) -> None:
        del self._keys[key]

    def victim(self, is_evictable: Callable[[bytes], bool]) -> bytes | None:
        for key in self._keys:
            if is_evictable(key):
                del self._keys[key]
                return key
        return None

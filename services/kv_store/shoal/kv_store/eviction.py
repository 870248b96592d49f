"""What the memory tier asks of an eviction policy (`shoal.kv_store.policy` has several)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class EvictionPolicy(Protocol):
    """Orders the blocks of one pool by worth. No call blocks; each is O(1), amortised."""

    def insert(self, key: bytes, size: int, cost: float) -> None:
        """A block came in: its bytes, and the seconds that computing it again takes (0: unknown)."""

    def touch(self, key: bytes) -> None:
        """A block was used."""

    def remove(self, key: bytes) -> None:
        """A block is gone, for another reason than `victim`."""

    def victim(self, is_evictable: Callable[[bytes], bool]) -> bytes | None:
        """The block to give up, which the policy forgets; None when it has no evictable one."""


class LeastRecentlyUsed:
    """The simplest policy."""

    def __init__(self, capacity_bytes: int, block_bytes: int) -> None:
        self._keys: dict[bytes, None] = {}

    def insert(self, key: bytes, size: int, cost: float) -> None:
        """See EvictionPolicy."""
        self._keys[key] = None

    def touch(self, key: bytes) -> None:
        """See EvictionPolicy."""
        del self._keys[key]
        self._keys[key] = None

    def remove(self, key: bytes) -> None:
        """See EvictionPolicy."""
        del self._keys[key]

    def victim(self, is_evictable: Callable[[bytes], bool]) -> bytes | None:
        """See EvictionPolicy."""
        for key in self._keys:
            if is_evictable(key):
                del self._keys[key]
                return key
        return None


PolicyFactory = Callable[[int, int], EvictionPolicy]
"""Makes the policy of a pool: (the arena's bytes, bytes of a block)."""

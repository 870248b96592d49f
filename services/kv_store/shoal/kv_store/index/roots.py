"""What clients are told without asking: whether any chain of their scope may begin with a key.

Most prompts begin with nothing that is stored. A byte for each of many buckets, in memory that clients map for reading,
says so in half a microsecond; a question takes 20 and a request that waits for its answer some 200. A zero is certain;
anything else is worth a question. Only first blocks are counted, and only those of one scope: nobody learns when others
work.
"""

from __future__ import annotations

from typing import Final

from shoal.kv_client.roots import NUM_BUCKETS, bucket_of
from shoal.kv_store.arena.memory import SharedMemory

MAX_COUNTED: Final = 255
"""A bucket that was as full stays so: it no longer knows when it is empty."""


class Roots:
    """First blocks of one scope, counted by bucket. Belongs to the store's thread."""

    def __init__(self) -> None:
        """Raises MemoryError."""
        self.memory = SharedMemory("roots", NUM_BUCKETS, readers_only=True, populate=False)
        self._counts = memoryview(self.memory.mapping)

    def add(self, key: bytes) -> None:
        """A chain begins with a key."""
        bucket = bucket_of(key)
        if self._counts[bucket] < MAX_COUNTED:
            self._counts[bucket] += 1

    def remove(self, key: bytes) -> None:
        """A chain that began with a key is gone."""
        bucket = bucket_of(key)
        if self._counts[bucket] < MAX_COUNTED:
            self._counts[bucket] -= 1

    def close(self) -> None:
        """Gives the memory back; clients' mappings keep theirs."""
        self._counts.release()
        self.memory.close()

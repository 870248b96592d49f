"""Gives KV blocks to sequences, shares them by content, and says what the prefix cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.model_worker.kv_cache.block_pool import BlockPool
from shoal.model_worker.kv_cache.events import EventLog, KvEvent
from shoal.model_worker.kv_cache.prefix_index import PrefixIndex


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence in order of position. Changed only by the manager."""

    last_key: bytes
    """Key of the last committed block; the namespace key before the first commit."""
    generation: int
    """The manager's generation when the table was made; a table of an older one no longer enters the index."""
    block_ids: list[int] = field(default_factory=list)
    num_committed: int = 0
    """Leading blocks that are full, computed and keyed."""


@dataclass(frozen=True, slots=True)
class Extension:
    """What `KVCacheManager.extend` changed in a table."""

    assigned: tuple[tuple[int, int], ...]
    """(index, block id): blocks appended, or put in place of shared ones."""
    copies: tuple[tuple[int, int], ...]
    """(source, target) block ids whose KV must be copied before the target is written."""


class KVCacheManager:
    """Owns every KV block of the device. The scheduler is its only caller; not thread-safe.

    - A full, computed block is committed under its key and can be shared from then on; a block that nobody holds stays
      findable until it is reused, oldest first.
    - A sequence gives its blocks back last one first. Whoever holds a block also holds the indexed blocks before it, so
      a block is always reused before its parent is: the index is prefix-closed.
    - When two sequences compute the same block at once, the second to commit lets go of its copy and continues on the
      first one's (it must: its own children would otherwise outlive their indexed parent).
    - A partial block is shared by forks only, and copied when one of them writes to it.

    Every method is all or nothing: a failed call changes nothing.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; it must be at least 1")
        self.block_size = block_size
        self._pool = BlockPool(num_blocks)
        self._index = PrefixIndex(num_blocks)
        self._log = EventLog()
        self._generation = 0
        self._versions = [0] * num_blocks

    @property
    def num_blocks(self) -> int:
        """Blocks on the device."""
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._pool.num_free

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by key, held or not."""
        return len(self._index)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def count_cached(self, keys: Sequence[bytes]) -> int:
        """Leading keys that can be found."""
        return len(self._index.longest_prefix(keys))

    def block_of(self, key: bytes) -> int | None:
        """The block that is found under the key."""
        return self._index.get(key)

    def key_of(self, block_id: int) -> bytes | None:
        """The key that a block is found under."""
        return self._index.key_of(block_id)

    def parent_of(self, block_id: int) -> bytes:
        """The key before that of a block that can be found: another such block's, or a namespace key."""
        return self._index.parent_of(block_id)

    def version_of(self, block_id: int) -> int:
        """Goes up whenever a block is given out anew. The bytes of a block that could be found were not touched as long
        as it stays the same: the one thing here that any thread may ask, before reading and after."""
        return self._versions[block_id]

    @property
    def num_taken(self) -> int:
        """Free blocks that were taken so far. Of those that are reused first no others come to the front but behind
        them, or in front but not to be found."""
        return self._pool.num_taken

    def next_evicted(self, limit: int) -> list[int]:
        """Blocks that can be found among the `limit` free ones that are reused first, in that order. O(limit)."""
        return [block_id for block_id in self._pool.next_free_ids(limit) if self._index.key_of(block_id) is not None]

    def allocate(
        self, namespace_key: bytes, keys: Sequence[bytes], num_tokens: int, *, spare_blocks: int = 0
    ) -> BlockTable | None:
        """A table for `num_tokens` tokens that begins with the longest cached prefix of `keys`.

        The hit is `num_committed` blocks of the answer. The caller passes only keys that may be hit. None when fewer
        than `spare_blocks` blocks would stay free.
        """
        hit = self._index.longest_prefix(keys)
        num_taken_from_free = sum(1 for block_id in hit if self._pool.refs(block_id) == 0)
        num_missing = self.blocks_for(num_tokens) - len(hit)
        if self._pool.num_free - num_taken_from_free - num_missing < spare_blocks:
            return None
        for block_id in hit:
            self._pool.share(block_id)
        block_ids = hit + [self._acquire() for _ in range(num_missing)]
        last_key = keys[len(hit) - 1] if hit else namespace_key
        return BlockTable(last_key, self._generation, block_ids, len(hit))

    def extend(self, table: BlockTable, num_computed: int, num_tokens: int) -> Extension | None:
        """Makes positions [num_computed, num_tokens) writable: appends blocks, copies shared ones. None when full."""
        first = num_computed // self.block_size
        shared = [i for i in range(first, len(table.block_ids)) if self._pool.refs(table.block_ids[i]) > 1]
        num_missing = max(0, self.blocks_for(num_tokens) - len(table.block_ids))
        if self._pool.num_free < len(shared) + num_missing:
            return None
        assigned, copies = [], []
        for index in shared:
            source, target = table.block_ids[index], self._acquire()
            self._pool.release(source, reuse_last=True)
            table.block_ids[index] = target
            assigned.append((index, target))
            copies.append((source, target))
        for _ in range(num_missing):
            assigned.append((len(table.block_ids), block_id := self._acquire()))
            table.block_ids.append(block_id)
        return Extension(tuple(assigned), tuple(copies))

    def fork(self, table: BlockTable) -> BlockTable:
        """A table that shares every block of `table`, the partial one included."""
        for block_id in table.block_ids:
            self._pool.share(block_id)
        return BlockTable(table.last_key, table.generation, list(table.block_ids), table.num_committed)

    def commit(self, table: BlockTable, keys: Sequence[bytes]) -> list[tuple[int, int]]:
        """Keys the table's next len(keys) blocks, whose KV is computed and whose slots are all filled.

        Returns (index, block id) for each block that was replaced by an equal one that was there first; the runner
        must use the replacement from the next step on.
        """
        replaced: list[tuple[int, int]] = []
        stored: list[bytes] = []
        parent_key = table.last_key
        for key in keys:
            index = table.num_committed
            if table.generation == self._generation:
                existing = self._index.get(key)
                if existing is None:
                    self._index.put(key, table.block_ids[index], table.last_key)
                    stored.append(key)
                else:
                    self._log_stored(stored, parent_key)
                    stored, parent_key = [], key
                    self._replace(table, index, existing)
                    replaced.append((index, existing))
            table.num_committed += 1
            table.last_key = key
        self._log_stored(stored, parent_key)
        return replaced

    def free(self, table: BlockTable) -> None:
        """Gives all of the table's blocks back, last one first. The table is empty afterwards."""
        index, pool = self._index, self._pool
        for block_id in reversed(table.block_ids):
            pool.release(block_id, reuse_last=index.key_of(block_id) is not None)
        table.block_ids.clear()

    def clear(self) -> None:
        """Empties the prefix index, for when equal tokens no longer mean equal KV. Held blocks stay held."""
        self._index.clear()
        self._generation += 1
        self._log.cleared()

    def take_events(self) -> list[KvEvent]:
        """Hands over the events since the last call."""
        return self._log.take()

    def _acquire(self) -> int:
        block_id = self._pool.acquire()
        self._versions[block_id] += 1
        if (key := self._index.drop(block_id)) is not None:
            self._log.removed(key)
        return block_id

    def _replace(self, table: BlockTable, index: int, existing: int) -> None:
        own = table.block_ids[index]
        self._pool.share(existing)
        self._pool.release(own, reuse_last=False)
        table.block_ids[index] = existing

    def _log_stored(self, keys: list[bytes], parent_key: bytes) -> None:
        if keys:
            self._log.stored(tuple(keys), parent_key)

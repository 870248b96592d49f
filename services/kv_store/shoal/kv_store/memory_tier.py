"""The memory tier: which block is in which slot, and which one goes when there is no room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal.checksum import copy_crc32c_at
from shoal.kv_store.arena import Arena, Pool
from shoal.kv_store.counters import Counters
from shoal.kv_store.events import MEMORY, EventHub, Removed
from shoal.kv_store.index import BlockIndex
from shoal.kv_store.policy import Policy
from shoal.kv_store.scopes import Scope, Scopes


class MemoryTier:
    """Slots of the arena under the rows of the index. Belongs to one thread.

    What is evicted leaves suffix first: a block whose child is in memory, or about to be, stays. A block that is
    nowhere else leaves the index with its slot.
    """

    def __init__(
        self,
        arena: Arena,
        index: BlockIndex,
        scopes: Scopes,
        events: EventHub,
        counters: Counters,
        quota_bytes: Callable[[str], int],
    ) -> None:
        """quota_bytes: most bytes of slots of a tenant."""
        self._claim_chunk: Callable[[Pool], bool] = lambda pool: False
        self.arena = arena
        self._index = index
        self._scopes = scopes
        self._events = events
        self._counters = counters
        self._quota_bytes = quota_bytes

    def share_by(self, claim_chunk: Callable[[Pool], bool]) -> None:
        """Sets who may free a chunk of another pool for one that has none."""
        self._claim_chunk = claim_chunk

    def allocate(self, scope: Scope) -> int | None:
        """A slot for a block of the scope, if need be in place of a block of the same tenant; None without room."""
        pool = scope.pool
        if not self._keep_quota(pool):
            self._counters.add("refused_quota")
            return None
        slot = self.arena.allocate(pool)
        if slot is None and self._claim_chunk(pool):
            slot = self.arena.allocate(pool)
        if slot is None and self.evict_one(pool, scope.policy):
            slot = self.arena.allocate(pool)
        if slot is None:
            self._counters.add("refused_no_space")
        return slot

    def add(self, row: int, scope: Scope, slot: int) -> None:
        """The block of a row is in a slot from here on."""
        self.arena.publish(slot)
        self.arena.set_row(slot, row)
        self._index.set_slot(row, slot)
        parent = self._index.parent[row]
        parent_key = self._index.key(parent) if parent else None
        scope.policy.insert(self._index.key(row), scope.pool.slot_bytes, self._index.cost_s[row], parent_key)

    def touch(self, keys: Sequence[bytes], rows: Sequence[int], scope: Scope) -> None:
        """Blocks were used; the policy ignores those that it does not hold."""
        self._index.touch(rows)
        scope.policy.touch_all(keys)

    def drop(self, row: int, scope: Scope) -> None:
        """Takes a block without leases out of memory; it may stay in another tier."""
        scope.policy.remove(self._index.key(row))
        self._free(row, scope.pool)

    def move(self, row: int, pool: Pool, block_bytes: int) -> bool:
        """Moves a block without leases to another free slot of its pool; False when its bytes were found to be wrong.

        There is a free slot. A wrong block stays where it was.
        """
        slot = self.arena.allocate(pool)
        if slot is None:
            raise AssertionError("a move needs a free slot")
        old = self._index.slot[row]
        arrived = copy_crc32c_at(self.arena.address(slot), self.arena.address(old), block_bytes)
        if arrived != self._index.checksum[row]:
            self.arena.free(pool, slot)
            return False
        self.arena.publish(slot)
        self.arena.set_row(slot, row)
        self._index.slot[row] = slot
        self.arena.free(pool, old)
        return True

    def evict_one(self, pool: Pool, policy: Policy) -> bool:
        """Gives up the block that is worth least of those that may go; False when none may."""
        key = policy.victim(self._is_evictable)
        if key is None:
            return False
        row = self._index.find(key)
        self._free(row, pool)
        self._counters.add("evicted")
        if not self._index.on_disk[row]:
            self._index.remove(row)
        return True

    def _keep_quota(self, pool: Pool) -> bool:
        """Makes room within the tenant's quota for one block, first in its own pool; False when there is none."""
        arena, quota_bytes = self.arena, self._quota_bytes(pool.tenant)
        pools = [pool, *(other for other in arena.pools_of(pool.tenant) if other is not pool)]
        for each in pools:
            while arena.used_bytes(pool.tenant) + pool.slot_bytes > quota_bytes:
                if not each.num_used or not self.evict_one(each, self._scopes.policy(each)):
                    break
        return arena.used_bytes(pool.tenant) + pool.slot_bytes <= quota_bytes

    def _is_evictable(self, key: bytes) -> bool:
        index = self._index
        row = index.find(key)
        if index.num_leases[row] or index.num_memory_children[row] or index.num_pins[row]:
            return False
        return index.on_disk[row] != 0 or not index.has_children(row)

    def _free(self, row: int, pool: Pool) -> None:
        self.arena.free(pool, self._index.clear_slot(row))
        self._events.publish([Removed((self._index.key(row),), MEMORY, pool.tenant)])

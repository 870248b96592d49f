"""The memory tier: which block is in which slot, and which one goes when there is no room."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.checksum import crc32c_at
from shoal.kv_store.arena import Arena, Pool
from shoal.kv_store.counters import Counters
from shoal.kv_store.events import MEMORY, EventHub, Removed
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.scopes import Scope, Scopes


class MemoryTier:
    """Slots of the arena under the rows of the index. Belongs to one thread.

    What is evicted leaves suffix first: a block whose child is in memory, or about to be, stays. A block that is
    nowhere else leaves the index with its slot.
    """

    def __init__(
        self, arena: Arena, index: BlockIndex, scopes: Scopes, events: EventHub, counters: Counters, quota_bytes: int
    ) -> None:
        """quota_bytes: of slots of one tenant."""
        self.arena = arena
        self._index = index
        self._scopes = scopes
        self._events = events
        self._counters = counters
        self._quota_bytes = quota_bytes

    def allocate(self, scope: Scope) -> int | None:
        """A slot for a block of the scope, if need be in place of a block of the same tenant; None without room."""
        pool = scope.pool
        if self._tenant_bytes(pool.tenant) + pool.slot_bytes > self._quota_bytes:
            if not self._evict_one(scope):
                self._counters.add("refused_quota")
                return None
            return self.arena.allocate(pool)
        slot = self.arena.allocate(pool)
        if slot is None and self._evict_one(scope):
            slot = self.arena.allocate(pool)
        if slot is None:
            self._counters.add("refused_no_space")
        return slot

    def add(self, row: int, scope: Scope, slot: int, cost_s: float) -> None:
        """The block of a row is in a slot from here on."""
        self.arena.publish(slot)
        self._index.set_slot(row, slot)
        scope.policy.insert(self._index.keys[row], scope.pool.slot_bytes, cost_s)

    def touch(self, rows: Sequence[int], scope: Scope) -> None:
        """Blocks were used; their order is that of the chain. The last is touched first, so that it goes first."""
        keys, slots, touch = self._index.keys, self._index.slot, scope.policy.touch
        for row in reversed(rows):
            if slots[row] != NO_SLOT:
                touch(keys[row])

    def drop(self, row: int, scope: Scope) -> None:
        """Takes a block without leases out of memory; it may stay in another tier. The policy has to know it."""
        scope.policy.remove(self._index.keys[row])
        self._free(row, scope.pool)

    def verify(self, row: int, scope: Scope) -> bool:
        """Whether the block's bytes in memory still have their checksum."""
        address = self.arena.address(self._index.slot[row])
        return crc32c_at(address, scope.block_bytes) == self._index.checksum[row]

    def used_bytes(self, tenant: str) -> int:
        """Bytes of slots given out to a tenant."""
        return self._tenant_bytes(tenant)

    def _tenant_bytes(self, tenant: str) -> int:
        return sum(pool.num_used * pool.slot_bytes for pool in self.arena.pools if pool.tenant == tenant)

    def _evict_one(self, scope: Scope) -> bool:
        key = scope.policy.victim(self._is_evictable)
        if key is None:
            return False
        row = self._index.rows[key]
        self._free(row, scope.pool)
        self._counters.add("evicted")
        if self._index.disk[row] == NO_SLOT:
            self._index.remove(row)
        return True

    def _is_evictable(self, key: bytes) -> bool:
        index = self._index
        row = index.rows[key]
        if index.num_leases[row] or index.num_memory_children[row]:
            return False
        return index.disk[row] != NO_SLOT or not index.has_children(row)

    def _free(self, row: int, pool: Pool) -> None:
        self.arena.free(pool, self._index.clear_slot(row))
        self._events.publish(Removed((self._index.keys[row],), MEMORY))

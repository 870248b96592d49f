"""How pools share the arena: chunks go from those that have more than their share to those that have less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from shoal.kv_store.arena import Chunk, Pool
from shoal.kv_store.counters import Counters
from shoal.kv_store.index import BlockIndex
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.removal import Removal
from shoal.kv_store.scopes import Scopes
from shoal.kv_store.sessions import Session

RETRY_S: Final = 0.05
"""A pool that got no chunk asks again after this time: looking costs as much as there are pools."""


class Sharing:
    """Clears chunks for other pools. Belongs to the store's thread.

    A share is the arena over the pools that have chunks or want one. A pool below its share takes from the one that is
    furthest above; a chunk that nobody uses goes to whoever asks. Blocks of a cleared chunk move within their pool, in
    place of its worst ones, so what a tenant loses is what it would have evicted. The chunk's memory is never given to
    the other tenant: it goes back to the system once no client maps it, and a fresh one takes its place.
    """

    def __init__(
        self,
        memory: MemoryTier,
        index: BlockIndex,
        scopes: Scopes,
        removal: Removal,
        counters: Counters,
        sessions: Mapping[bytes, Session],
        unmap_timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        """unmap_timeout_s: time for clients to unmap a chunk, after which their session ends."""
        self._memory = memory
        self._index = index
        self._scopes = scopes
        self._removal = removal
        self._counters = counters
        self._sessions = sessions
        self._unmap_timeout_s = unmap_timeout_s
        self._clock = clock
        self._retry_at_s: dict[Pool, float] = {}

    def claim_chunk(self, pool: Pool) -> bool:
        """Frees a chunk for a pool; whether there is room for one at once. If not, there may be later."""
        now_s = self._clock()
        if self._retry_at_s.get(pool, 0.0) > now_s:
            return False
        self._retry_at_s[pool] = now_s + RETRY_S
        arena = self._memory.arena
        donors = sorted((p for p in arena.pools if p.chunks and p is not pool), key=lambda p: -len(p.chunks))
        share = arena.capacity_bytes / (len(donors) + 1)
        wants_bytes = (len(pool.chunks) + 1) * arena.chunk_bytes
        for donor in donors:
            chunks = arena.chunks_by_use(donor)
            entitled = wants_bytes <= share < len(donor.chunks) * arena.chunk_bytes
            if not chunks[0].num_used or (entitled and any(self._clear(donor, chunk) for chunk in chunks)):
                idle = next(chunk for chunk in chunks if not chunk.num_used)
                return self._retire(donor, idle)
        return False

    def _clear(self, pool: Pool, chunk: Chunk) -> bool:
        """Empties a chunk by moves and evictions; False when something in it cannot go."""
        index, arena = self._index, self._memory.arena
        rows = [row for row in chunk.rows if row]
        if len(rows) < chunk.num_used or any(index.num_leases[row] for row in rows):  # somebody writes, or reads
            return False
        policy = self._scopes.policy(pool)
        arena.withhold(pool, chunk)
        while chunk.num_used:
            row = next(row for row in chunk.rows if row)
            if pool.free:
                if not self._memory.move(row, pool, self._scopes.numbered(index.scope[row]).block_bytes):
                    self._removal.remove_wrong(row)
                self._counters.add("moved")
            elif not self._memory.evict_one(pool, policy):
                break
            arena.withhold(pool, chunk)
        cleared = not chunk.num_used
        arena.offer(pool, chunk, {slot for slot, row in enumerate(chunk.rows) if row})
        return cleared

    def _retire(self, pool: Pool, chunk: Chunk) -> bool:
        deadline_s = self._clock() + self._unmap_timeout_s
        mappers = [session for session in self._sessions.values() if chunk.number in session.mapped_chunks]
        for session in mappers:
            session.mapped_chunks.discard(chunk.number)
            session.retired_chunks[chunk.number] = deadline_s
        self._memory.arena.retire(pool, chunk, len(mappers))
        self._counters.add("chunks_retired")
        return not mappers

"""Which blocks of the device are to be stored, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from shoal.model_worker.kv_cache import KVCacheManager, KvEvent, Stored
from shoal.model_worker.kv_offload.options import WriteBackPolicy
from shoal.model_worker.kv_offload.prefill_rate import PrefillRate
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.kv_offload.write_back import Run, WriteBack

_EVICTION_WINDOW: Final = 64
"""Free blocks that are looked at after each step, those first that are reused first: some 5 us. Of a small cache, a
quarter of its blocks."""
_STEADY_PART: Final = 4
"""There is another look once this part of what was seen was taken: until then none is that was not seen. A look takes
15 us, a sixth of a percent of a GPU's step."""
_MAX_NAMESPACES: Final = 4096
_RETRY_S: Final = 1.0
"""After blocks were lost on their way; an idle engine would try again at once, and again."""


class Storing:
    """Knows of each block whether the store has it, or is about to. Belongs to the engine's thread."""

    def __init__(
        self, policy: WriteBackPolicy, cache: KVCacheManager, rate: PrefillRate, stats: KvStoreStats, writer: WriteBack
    ) -> None:
        self._policy = policy
        self._cache = cache
        self._rate = rate
        self._stats = stats
        self._writer = writer
        # The version of each block that was stored or queued, and the namespace of what it held then.
        self._stored_versions = [-1] * cache.num_blocks
        self._namespaces = [b""] * cache.num_blocks
        self._waits_until_s = [0.0] * cache.num_blocks  # until when it may be queued and not being stored
        self._tenants: dict[bytes, str] = {}
        self._next_pass_s = 0.0
        self._next_pass_taken = 0
        self._eviction_window = min(_EVICTION_WINDOW, max(cache.num_blocks // 4, 1))

    def know(self, tenant: str, namespace_key: bytes) -> None:
        """Whose a namespace is. Blocks of one that was not told of lately are not stored."""
        if namespace_key not in self._tenants and len(self._tenants) >= _MAX_NAMESPACES:
            del self._tenants[next(iter(self._tenants))]
        self._tenants[namespace_key] = tenant

    def mark(self, block_ids: Sequence[int]) -> None:
        """These blocks came from the store."""
        for block_id in block_ids:
            self._stored_versions[block_id] = self._cache.version_of(block_id)

    def stepped(self, events: Sequence[KvEvent]) -> None:
        """The prefix cache has changed."""
        for block_id, version in self._writer.take_lost():
            if self._cache.version_of(block_id) == version:
                self._forget_up_to(block_id)
                self._next_pass_s = time.monotonic() + _RETRY_S
                self._next_pass_taken = 0
        for event in events:
            if isinstance(event, Stored):
                self._follow(event)
        if self._policy != "off" and time.monotonic() >= self._next_pass_s:
            self._store_before_eviction()

    def reused(self, keys: Sequence[bytes]) -> None:
        """A request finds these leading blocks on the device."""
        if self._policy == "reused" and keys:
            block_id = self._cache.block_of(keys[-1])
            if block_id is not None:
                self._store_up_to(block_id)

    def _follow(self, event: Stored) -> None:
        cache = self._cache
        parent = cache.block_of(event.parent_key)
        namespace_key = event.parent_key if parent is None else self._namespaces[parent]
        last = None
        for key in event.keys:
            block_id = cache.block_of(key)
            if block_id is None:  # the device gave it up since, and what follows it before
                break
            self._namespaces[block_id] = namespace_key
            last = block_id
        if self._policy == "committed" and last is not None and not self._store_up_to(last):
            self._stats.count(self._stats.dropped_blocks, "queue_full")

    def _store_before_eviction(self) -> None:
        if self._cache.num_taken < self._next_pass_taken:
            return
        num_seen = min(self._eviction_window, self._cache.num_free_blocks)
        for block_id in self._cache.next_evicted(num_seen):
            if not self._is_stored(block_id):
                if not self._store_up_to(block_id):
                    return
                self._writer.hurry()
            elif time.monotonic() < self._waits_until_s[block_id]:
                self._writer.hurry()
        self._next_pass_taken = self._cache.num_taken + num_seen // _STEADY_PART

    def _forget_up_to(self, block_id: int | None) -> None:
        """The store does not have a block, nor, for all that is known, what is before it."""
        while block_id is not None and self._is_stored(block_id):
            self._stored_versions[block_id] = -1
            block_id = self._cache.block_of(self._cache.parent_of(block_id))

    def _is_stored(self, block_id: int) -> bool:
        return self._stored_versions[block_id] == self._cache.version_of(block_id)

    def _store_up_to(self, last: int) -> bool:
        """Queues a block that can be found and what is before it, as far as it is not stored; False without room for
        all of it. What there is room for is queued, from the first on."""
        room = self._writer.room
        if room <= 0:
            return False
        cache, block_id, block_ids = self._cache, last, []
        parent_key = b""
        while not self._is_stored(block_id):
            block_ids.append(block_id)
            parent_key = cache.parent_of(block_id)
            parent = cache.block_of(parent_key)
            if parent is None:
                break
            block_id = parent
        namespace_key = self._namespaces[last]
        tenant = self._tenants.get(namespace_key)
        if not block_ids or tenant is None:
            return True
        block_ids = block_ids[: -room - 1 : -1]
        keys = [key for block_id in block_ids if (key := cache.key_of(block_id)) is not None]
        versions = [cache.version_of(block_id) for block_id in block_ids]
        cost_s = cache.block_size / self._rate.tokens_per_s
        self._writer.post(Run(tenant, namespace_key, parent_key, keys, block_ids, versions, cost_s))
        until_s = time.monotonic() + self._writer.patience_s
        for block_id, version in zip(block_ids, versions, strict=True):
            self._stored_versions[block_id] = version
            self._waits_until_s[block_id] = until_s
        return block_ids[-1] == last

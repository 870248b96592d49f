from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from shoal.blocks import block_keys, namespace_key
from shoal.model_worker.kv_cache import BlockTable, Cleared, KVCacheManager, Removed, Stored
from shoal.model_worker.kv_cache.block_pool import BlockPool
from shoal.model_worker.kv_cache.prefix_index import PrefixIndex

ROOT = namespace_key("model", "fake-v1")
BLOCK_SIZE = 2


def keys_of(tokens: list[int]) -> list[bytes]:
    return block_keys(ROOT, tokens, BLOCK_SIZE)


def computed(cache: KVCacheManager, tokens: list[int]) -> BlockTable:
    """A table whose full blocks are committed, as after a prefill."""
    keys = keys_of(tokens)
    table = cache.allocate(ROOT, keys, len(tokens))
    assert table is not None
    cache.commit(table, keys[table.num_committed :])
    return table


def test_pool_reuses_the_oldest_block_without_a_key_first() -> None:
    pool = BlockPool(4)
    a, b, c, d = (pool.acquire() for _ in range(4))
    assert (a, b, c, d) == (0, 1, 2, 3)
    pool.release(c, reuse_last=True)
    pool.release(a, reuse_last=True)
    pool.release(d, reuse_last=False)
    assert pool.free_ids() == [d, c, a]
    pool.share(c)
    assert pool.free_ids() == [d, a]
    assert pool.num_free == 2
    assert pool.acquire() == d


def test_pool_refuses_to_release_a_free_block_and_to_give_more_than_it_has() -> None:
    pool = BlockPool(1)
    with pytest.raises(ValueError, match="more often"):
        pool.release(0, reuse_last=True)
    pool = BlockPool(1)
    pool.acquire()
    with pytest.raises(IndexError, match="no free KV block"):
        pool.acquire()


def test_index_maps_one_key_to_one_block() -> None:
    index = PrefixIndex(2)
    index.put(b"k", 0, b"p")
    with pytest.raises(ValueError, match="already"):
        index.put(b"k", 1, b"p")
    with pytest.raises(ValueError, match="already"):
        index.put(b"other", 0, b"p")
    assert index.drop(0) == b"k"
    assert index.drop(0) is None


def test_freed_blocks_are_found_until_reused_and_suffixes_go_first() -> None:
    cache = KVCacheManager(4, BLOCK_SIZE)
    tokens = [1, 2, 3, 4, 5, 6]
    keys = keys_of(tokens)
    cache.free(computed(cache, tokens))
    assert cache.take_events() == [Stored(tuple(keys), ROOT)]
    other = cache.allocate(ROOT, [], 4)  # one block was never used; the second comes from the cached ones
    assert other is not None
    assert cache.take_events() == [Removed((keys[2],))]
    hit = cache.allocate(ROOT, keys, 4)
    assert hit is not None
    assert hit.num_committed == 2
    assert hit.last_key == keys[1]


def test_allocation_counts_hits_on_free_blocks_as_taken() -> None:
    cache = KVCacheManager(3, BLOCK_SIZE)
    tokens = [1, 2, 3, 4]
    cache.free(computed(cache, tokens))
    assert cache.allocate(ROOT, keys_of(tokens), 8) is None
    assert cache.allocate(ROOT, keys_of(tokens), 6, spare_blocks=1) is None
    assert cache.num_free_blocks == 3
    table = cache.allocate(ROOT, keys_of(tokens), 6)
    assert table is not None
    assert cache.num_free_blocks == 0


def test_the_second_of_two_equal_computations_moves_to_the_first_ones_block() -> None:
    cache = KVCacheManager(8, BLOCK_SIZE)
    tokens = [1, 2, 3, 4]
    keys = keys_of(tokens)
    first, second = cache.allocate(ROOT, keys, 4), cache.allocate(ROOT, keys, 4)
    assert first is not None
    assert second is not None
    assert cache.commit(first, keys) == []
    assert cache.commit(second, keys) == [(0, first.block_ids[0]), (1, first.block_ids[1])]
    assert second.block_ids == first.block_ids
    assert cache.num_free_blocks == 6
    assert cache.take_events() == [Stored(tuple(keys), ROOT)]


def test_forks_share_the_partial_block_until_one_writes() -> None:
    cache = KVCacheManager(8, BLOCK_SIZE)
    table = computed(cache, [1, 2, 3])
    fork = cache.fork(table)
    extension = cache.extend(fork, 3, 4)
    assert extension is not None
    [(index, target)] = extension.assigned
    assert index == 1
    assert extension.copies == ((table.block_ids[1], target),)
    assert fork.block_ids[0] == table.block_ids[0]
    last = cache.extend(table, 3, 4)
    assert last is not None
    assert last.assigned == last.copies == ()


def test_extend_that_does_not_fit_changes_nothing() -> None:
    cache = KVCacheManager(2, BLOCK_SIZE)
    table = computed(cache, [1, 2, 3])
    before = list(table.block_ids)
    assert cache.extend(table, 3, 5) is None
    assert table.block_ids == before
    assert cache.num_free_blocks == 0


def test_after_a_clear_running_tables_stay_out_of_the_index() -> None:
    cache = KVCacheManager(4, BLOCK_SIZE)
    table = computed(cache, [1, 2])
    cache.take_events()
    cache.clear()
    assert cache.extend(table, 2, 4) is not None
    cache.commit(table, keys_of([1, 2, 3, 4])[1:])
    cache.free(table)
    assert cache.take_events() == [Cleared()]
    assert cache.num_cached_blocks == 0
    assert cache.num_free_blocks == 4


class CacheMachine(RuleBasedStateMachine):
    """Sequences over a tiny alphabet come, grow, fork and go, over a model of what is written in each block."""

    sequences = Bundle("sequences")

    @initialize(num_blocks=st.integers(4, 14))
    def start(self, num_blocks: int) -> None:
        self.cache = KVCacheManager(num_blocks, BLOCK_SIZE)
        self.memory: dict[int, list[tuple[int, ...]]] = {b: [()] * BLOCK_SIZE for b in range(num_blocks)}
        self.live: dict[int, tuple[BlockTable, list[int]]] = {}
        self.findable: dict[bytes, bytes] = {}  # key -> parent, rebuilt from events alone
        self.count = 0

    def write(self, table: BlockTable, tokens: list[int], start: int) -> None:
        for position in range(start, len(tokens)):
            block_id = table.block_ids[position // BLOCK_SIZE]
            assert self.cache._pool.refs(block_id) == 1, "writes to a shared block"
            self.memory[block_id][position % BLOCK_SIZE] = tuple(tokens[: position + 1])
        self.cache.commit(table, keys_of(tokens)[table.num_committed :])

    def remember(self, table: BlockTable, tokens: list[int]) -> int:
        self.count += 1
        self.live[self.count] = (table, tokens)
        return self.count

    @rule(target=sequences, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def allocate(self, tokens: list[int]) -> int:
        keys = keys_of(tokens)[: (len(tokens) - 1) // BLOCK_SIZE]
        free = self.cache.num_free_blocks
        table = self.cache.allocate(ROOT, keys, len(tokens))
        if table is None:
            assert self.cache.num_free_blocks == free
            assert free < self.cache.blocks_for(len(tokens))
            return 0
        self.write(table, tokens, table.num_committed * BLOCK_SIZE)
        return self.remember(table, tokens)

    @precondition(lambda self: self.live)
    @rule(name=sequences, more=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def grow(self, name: int, more: list[int]) -> None:
        if name in self.live:
            table, tokens = self.live[name]
            extension = self.cache.extend(table, len(tokens), len(tokens) + len(more))
            if extension is not None:
                for source, target in extension.copies:
                    self.memory[target] = list(self.memory[source])
                start = len(tokens)
                tokens += more
                self.write(table, tokens, start)

    @rule(target=sequences, name=sequences)
    def fork(self, name: int) -> int:
        if name not in self.live:
            return 0
        table, tokens = self.live[name]
        return self.remember(self.cache.fork(table), list(tokens))

    @rule(name=consumes(sequences))
    def free(self, name: int) -> None:
        if name in self.live:
            self.cache.free(self.live.pop(name)[0])

    @rule()
    def clear(self) -> None:
        self.cache.clear()

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "cache"):
            return
        held = [block_id for table, _ in self.live.values() for block_id in table.block_ids]
        refs = [self.cache._pool.refs(block_id) for block_id in range(self.cache.num_blocks)]
        assert refs == [held.count(block_id) for block_id in range(self.cache.num_blocks)]
        free = self.cache._pool.free_ids()
        assert sorted(free) == [block_id for block_id, count in enumerate(refs) if count == 0]
        assert len(free) == self.cache.num_free_blocks
        for table, tokens in self.live.values():
            for position in range(len(tokens)):
                written = self.memory[table.block_ids[position // BLOCK_SIZE]][position % BLOCK_SIZE]
                assert written == tuple(tokens[: position + 1])
        self.follow_events()
        for key in self.cache._index.all_keys():
            block_id = self.cache._index.get(key)
            assert block_id is not None
            *_, whole = self.memory[block_id]
            assert keys_of(list(whole))[-1] == key, "the index points to a block with other content"

    def follow_events(self) -> None:
        for event in self.cache.take_events():
            match event:
                case Stored(keys, parent):
                    for key in keys:
                        assert key not in self.findable
                        self.findable[key], parent = parent, key
                case Removed(keys):
                    for key in keys:
                        del self.findable[key]
                case Cleared():
                    self.findable.clear()
        assert sorted(self.findable) == sorted(self.cache._index.all_keys())
        assert all(parent == ROOT or parent in self.findable for parent in self.findable.values()), "not prefix-closed"


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)

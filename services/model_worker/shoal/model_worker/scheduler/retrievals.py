"""Sequences and the blocks that a KV store has of them: asked for, waited for, loaded, given up."""

from __future__ import annotations

from collections.abc import Callable

from shoal.kv_client.origin import Origin
from shoal.model_worker.block_source import BlockSource
from shoal.model_worker.kv_cache import BlockTable, KVCacheManager
from shoal.model_worker.request import Sequence
from shoal.model_worker.scheduler.slots import SlotTable


class Retrievals:
    """The part of the scheduler that knows of a KV store. Without one every call does nothing."""

    def __init__(self, source: BlockSource | None, cache: KVCacheManager, slots: SlotTable) -> None:
        self._source = source
        self._cache = cache
        self._slots = slots
        self._loading: list[Sequence] = []
        self.waiting_until_s: float | None = None
        """When somebody next gives up waiting for the store, if anybody waits; as of the last `advance`."""

    def ask(self, sequence: Sequence, now_s: float) -> None:
        """A sequence joins the queue."""
        if self._source is None:
            return
        keys = hittable_keys(sequence, self._cache.block_size)
        num_held = self._cache.count_cached(keys)
        request = sequence.request
        origin = Origin(request.request_id, request.traceparent)
        sequence.retrieval = self._source.ask(request.tenant, request.namespace_key, keys, num_held, now_s, origin)

    def advance(self, now_s: float, admit: Callable[[Sequence], None]) -> None:
        """Takes in what came, and hands over those whose load has ended, in the order in which they began."""
        if self._source is None:
            return
        self.waiting_until_s = None
        self._source.advance(now_s)
        for sequence in list(self._loading):
            retrieval = sequence.retrieval
            assert retrieval is not None
            if retrieval.is_settled or now_s >= retrieval.deadline_s:
                self._commit(sequence, self._end(sequence, now_s))
                sequence.is_loading = False
                admit(sequence)
            else:
                self._wait_until(retrieval.deadline_s)

    def must_wait(self, sequence: Sequence, now_s: float) -> bool:
        """Whether the head of the queue waits for the store's answer a little longer."""
        retrieval = sequence.retrieval
        if retrieval is None or retrieval.is_settled or now_s >= retrieval.deadline_s:
            return False
        self._wait_until(retrieval.deadline_s)
        return True

    def load(self, sequence: Sequence, table: BlockTable, now_s: float) -> bool:
        """Whether some of the table's blocks are being filled: the sequence comes back from `advance`."""
        source, retrieval = self._source, sequence.retrieval
        if source is None or retrieval is None:
            return False
        first = table.num_committed
        num_blocks = len(hittable_keys(sequence, self._cache.block_size))
        is_alone = self._slots.num_filled == 1 and sequence.group.forked
        if not source.load(retrieval, first, table.block_ids[first:num_blocks], now_s, by_layer=is_alone):
            self.give_up(sequence, now_s)
            return False
        sequence.is_loading = True
        self._loading.append(sequence)
        self._wait_until(retrieval.deadline_s)
        return True

    def fed(self) -> Sequence | None:
        """The first whose blocks arrive layer by layer, and have begun to."""
        flowing = (each for each in self._loading if each.retrieval is not None and each.retrieval.feed is not None)
        return next(flowing, None)

    def end_fed(self, sequence: Sequence, now_s: float) -> bool:
        """The step that did not wait for a load has ended: whether all came that it took for granted."""
        retrieval, table = sequence.retrieval, sequence.table
        assert retrieval is not None
        assert retrieval.feed is not None
        assert table is not None
        retrieval.feed.wait_end()
        num_loading, first = retrieval.num_loading, table.num_committed
        num_loaded = self._end(sequence, now_s)
        sequence.is_loading = False
        self._cache.commit(table, sequence.block_keys[first : first + num_loaded])
        self._slots.num_committed[sequence.slot] = table.num_committed
        return num_loaded == num_loading

    def give_up(self, sequence: Sequence, now_s: float) -> None:
        """The sequence needs nothing of the store any more: it starts without, ends, or is preempted."""
        if sequence.retrieval is not None:
            self._end(sequence, now_s)

    def _end(self, sequence: Sequence, now_s: float) -> int:
        retrieval, sequence.retrieval = sequence.retrieval, None
        assert self._source is not None
        assert retrieval is not None
        if sequence.is_loading:
            self._loading.remove(sequence)
        return self._source.end(retrieval, now_s)

    def _commit(self, sequence: Sequence, num_loaded: int) -> None:
        table, slots, slot = sequence.table, self._slots, sequence.slot
        assert table is not None
        first = table.num_committed
        self._cache.commit(table, sequence.block_keys[first : first + num_loaded])
        slots.num_committed[slot] = table.num_committed
        slots.num_computed[slot] = table.num_committed * self._cache.block_size

    def _wait_until(self, deadline_s: float) -> None:
        self.waiting_until_s = deadline_s if self.waiting_until_s is None else min(self.waiting_until_s, deadline_s)


def hittable_keys(sequence: Sequence, block_size: int) -> list[bytes]:
    """Keys of the blocks that need not be computed: all full ones but for the last token, whose logits are needed."""
    if sequence.request.sampling.prompt_logprobs is not None and not sequence.prompt_logprobs_sent:
        return []
    return sequence.block_keys[: (len(sequence.token_ids) - 1) // block_size]

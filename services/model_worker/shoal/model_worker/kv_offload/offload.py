"""The engine's side of the KV store, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import msgspec

from shoal.kv_client.origin import NOBODY, Origin
from shoal.model_worker.block_source import Retrieval
from shoal.model_worker.kv_cache import KVCacheManager, KvEvent
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.kv_offload.options import OffloadOptions
from shoal.model_worker.kv_offload.prefetching import MAX_UNDER_WAY, Prefetcher
from shoal.model_worker.kv_offload.prefill_rate import PrefillRate
from shoal.model_worker.kv_offload.reading import Reader
from shoal.model_worker.kv_offload.retrieving import Retrieving
from shoal.model_worker.kv_offload.sessions import Sessions, find_problem
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.kv_offload.storing import Storing
from shoal.model_worker.kv_offload.ticket import Ticket
from shoal.model_worker.kv_offload.write_back import WriteBack
from shoal.model_worker.tenants import Accounts

NO_ACCOUNT = "no_account"
"""Of requests whose tenant has no token for the store."""
_CLOSE_TIMEOUT_S = 1.0
_WRITER_PATIENCE = 8.0
"""How many times as long as readers it waits for an answer: nobody waits for it."""


class KvOffload:
    """`block_source.BlockSource` and `engine.Offload`. Belongs to the engine's thread."""

    def __init__(
        self,
        options: OffloadOptions,
        cache: KVCacheManager,
        memory: KvMemory,
        clock: Callable[[], float] = time.monotonic,
        accounts: Accounts | None = None,
    ) -> None:
        """Starts the threads; nothing is connected before it is used. accounts: who uses the store; None: everybody."""
        self._accounts = accounts or Accounts()
        self.stats = KvStoreStats()
        self.wake: Callable[[], None] = _do_nothing
        """Called by other threads when there is something to take in."""
        self._sent = msgspec.msgpack.encode(self.stats)
        self.rate = PrefillRate(options.tokens_per_s)
        asking, loading, writing, *bringing = self._sessions = self._make_sessions(options)
        self._reader = Reader(asking, loading, memory, self.stats, self._settled, clock)
        self._prefetcher = Prefetcher(bringing, self.stats)
        self.writer = WriteBack(
            writing,
            memory,
            self.stats,
            cache.version_of,
            options.max_queued_blocks,
            options.write_patience_s,
            idle=lambda: self.wake(),
            is_urgent=lambda: self._reader.is_asked,
        )
        self._storing = Storing(options.write_back, cache, self.rate, self.stats, self.writer)
        self._retrieving = Retrieving(
            options,
            memory,
            cache.block_size,
            self.rate,
            self.stats,
            self._reader,
            self._prefetcher,
            flowing=lambda: self.wake(),
        )

    def ask(
        self,
        tenant: str,
        namespace_key: bytes,
        keys: Sequence[bytes],
        num_held: int,
        now_s: float,
        origin: Origin = NOBODY,
    ) -> Retrieval | None:
        """See `BlockSource.ask`."""
        self.writer.note_computing(True)
        self._accounts.refresh()
        if self._accounts.find(tenant) is None:
            self.stats.count(self.stats.unused, NO_ACCOUNT)
            return None
        self._storing.know(tenant, namespace_key)
        self._storing.reused(keys[:num_held])
        return self._retrieving.ask(tenant, keys, num_held, now_s, origin) if num_held < len(keys) else None

    def advance(self, now_s: float) -> None:
        """See `BlockSource.advance`."""
        self._retrieving.advance()

    def load(
        self, retrieval: Retrieval, first: int, block_ids: Sequence[int], now_s: float, *, by_layer: bool = False
    ) -> int:
        """See `BlockSource.load`."""
        ticket = cast(Ticket, retrieval)
        return self._retrieving.load(ticket, first, block_ids, now_s, by_layer=by_layer) if block_ids else 0

    def end(self, retrieval: Retrieval, now_s: float) -> int:
        """See `BlockSource.end`."""
        block_ids = self._retrieving.end(cast(Ticket, retrieval), now_s)
        self._storing.mark(block_ids)
        return len(block_ids)

    def stepped(self, events: Sequence[KvEvent], num_tokens: int, step_s: float) -> None:
        """See `engine.Offload.stepped`."""
        self.rate.observe(num_tokens, step_s)
        self._storing.stepped(events)

    def rest(self) -> None:
        """See `engine.Offload.rest`."""
        self.writer.note_computing(False)

    def report(self) -> KvStoreStats | None:
        """See `engine.Offload.report`."""
        self.stats.num_queued_blocks = self.writer.num_queued_blocks
        self.stats.problem = find_problem(self._sessions)
        encoded = msgspec.msgpack.encode(self.stats)
        if encoded == self._sent:
            return None
        self._sent = encoded
        return self.stats

    def close(self) -> None:
        """Ends the threads, and with them all leases and reservations."""
        for thread in (self._reader, self._prefetcher, self.writer):
            thread.close(_CLOSE_TIMEOUT_S)

    def _make_sessions(self, options: OffloadOptions) -> tuple[Sessions, ...]:
        """Of the threads that ask, load, and write, and of each that has blocks brought."""
        loader = replace(options.client, num_staging_blocks=0)
        asker = replace(loader, wants_roots=True)
        writer = replace(options.client, timeout_s=_WRITER_PATIENCE * options.client.timeout_s)
        few = -(-options.max_tenants // MAX_UNDER_WAY)
        bringers = (Sessions(loader, self._accounts, few) for _ in range(MAX_UNDER_WAY))
        single = (Sessions(each, self._accounts, options.max_tenants) for each in (asker, loader, writer))
        return (*single, *bringers)

    def _settled(self, ticket: Ticket) -> None:
        self._retrieving.settled(ticket)
        self.wake()


def _do_nothing() -> None:
    pass

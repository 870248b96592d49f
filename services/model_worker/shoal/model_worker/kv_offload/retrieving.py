"""What requests wait for, and for how long: questions, loads, and what they are worth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from shoal.kv_client.origin import NOBODY, Origin
from shoal.kv_client.pricing import Action, ComputeTime, Offer, Pricer, TierSpeed, prefill_time, price, price_lookup
from shoal.model_worker.kv_offload.layer_feed import LayerFeed
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.kv_offload.options import OffloadOptions
from shoal.model_worker.kv_offload.prefetching import Prefetch, Prefetcher
from shoal.model_worker.kv_offload.prefill_rate import PrefillRate
from shoal.model_worker.kv_offload.reading import STORE_DOWN, Reader
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.kv_offload.ticket import Load, Stage, Ticket

MEMORY: Final = "memory"
DISK: Final = "disk"
PEER: Final = "peer"
"""Another store's memory or disk, by way of this node's store."""
_MEMORY_LATENCY_S: Final = 0.5e-3
_DISK_LATENCY_S: Final = 5e-3
_DISK_BYTES_PER_S: Final = 0.5e9
_PEER_LATENCY_S: Final = 10e-3
_PEER_BYTES_PER_S: Final = 1e9
"""First guesses, until some loads were measured."""
_ATTENTION_TOKENS: Final = 16_384
"""Context at which attention takes as long as all else does; 6,000 to 30,000 for models of 135M to 8B parameters."""
_WEIGHT: Final = 0.1
"""Of the latest lookup."""
_MAX_PREFETCH_S: Final = 5.0
"""Some others may wait behind it."""
_LAUNCH_S_PER_LAYER: Final = 1e-3
"""What the host takes to launch a layer's operations one by one, while other threads sum what is loaded."""
_PROBE_EVERY_S: Final = 0.5
"""While the store is of no use one request this often has it asked, and does not wait for the answer."""


class Retrieving:
    """Tickets in all stages. Belongs to the engine's thread."""

    def __init__(
        self,
        options: OffloadOptions,
        memory: KvMemory,
        block_size: int,
        rate: PrefillRate,
        stats: KvStoreStats,
        reader: Reader,
        prefetcher: Prefetcher,
        flowing: Callable[[], None] = lambda: None,
    ) -> None:
        """flowing: called by the reader when a load's first layers are on their way."""
        self._flowing = flowing
        self._options = options
        self._memory = memory
        self._block_size = block_size
        self._rate = rate
        self._stats = stats
        self._reader = reader
        self._prefetcher = prefetcher
        speeds = {
            MEMORY: TierSpeed(_MEMORY_LATENCY_S, options.memory_bytes_per_s),
            DISK: TierSpeed(_DISK_LATENCY_S, _DISK_BYTES_PER_S),
            PEER: TierSpeed(_PEER_LATENCY_S, _PEER_BYTES_PER_S),
        }
        self._pricer = Pricer(speeds, options.wait_budget_s)
        self._lookup_s, self._hit_rate = 0.5e-3, 1.0
        self._peers_s, self._peer_hit_rate = 2e-3, 1.0
        self._answered: deque[Ticket] = deque()
        self._loading_bytes = 0
        self._next_probe_s = 0.0
        self._has_peers = False

    def settled(self, ticket: Ticket) -> None:
        """A ticket was answered or loaded. Called by reading threads."""
        if ticket.load is None:
            self._answered.append(ticket)

    def ask(
        self, tenant: str, keys: Sequence[bytes], num_held: int, now_s: float, origin: Origin = NOBODY
    ) -> Ticket | None:
        """See `BlockSource.ask`."""
        wait_s = min(self._options.lookup_wait_s, max(self._pricer.budget_s, 0.0))
        ticket = Ticket(tenant, keys, num_held, now_s, now_s + wait_s, origin)
        compute_s = self._compute_time(num_held)(len(keys) - num_held)
        if price_lookup(compute_s, self._lookup_s, self._hit_rate) is Action.SKIP:
            self._lookup_s *= 1 - _WEIGHT / 10  # or what was slow once would never be asked again
            return self._skip("not_worth_asking", compute_s)
        if self._reader.problem or self._reader.unanswered_s(now_s) > self._options.lookup_wait_s:
            if now_s >= self._next_probe_s and not self._reader.unanswered_s(now_s):
                self._next_probe_s = now_s + _PROBE_EVERY_S
                ticket.is_over = True
                self._reader.post(ticket)
            return self._skip(STORE_DOWN, compute_s)
        ticket.peers_wait_s = self._peers_wait_s(compute_s)
        if self._is_surely_new(ticket):
            return self._skip("nothing_stored", compute_s)
        self._reader.post(ticket)
        return ticket

    def advance(self) -> None:
        """Takes in answers: learns from them, and has blocks brought from disk and peers that will be wanted."""
        while self._answered:
            ticket = self._answered.popleft()
            if ticket.failure:
                continue
            num_found, num_asked = ticket.num_visible - ticket.num_held, len(ticket.keys) - ticket.num_held
            self._hit_rate += _WEIGHT * (num_found / num_asked - self._hit_rate)
            took_s = min(ticket.answered_s - ticket.asked_s, self._options.lookup_wait_s)
            if num_found < num_asked:
                self._has_peers = ticket.asked_peers
            if ticket.asked_peers and num_found < num_asked:
                self._peers_s += _WEIGHT * (took_s - self._peers_s)
                num_more = ticket.num_with_peers - ticket.num_visible
                self._peer_hit_rate += _WEIGHT * (num_more / (num_asked - num_found) - self._peer_hit_rate)
            else:
                self._lookup_s += _WEIGHT * (took_s - self._lookup_s)
            if not ticket.is_over and ticket.num_with_peers > ticket.num_in_memory:
                self._prefetch(ticket)

    def load(
        self, ticket: Ticket, first: int, block_ids: Sequence[int], now_s: float, *, by_layer: bool = False
    ) -> int:
        """See `BlockSource.load`."""
        compute = self._compute_time(first)
        if ticket.stage is not Stage.ANSWERED:
            return self._go_without(ticket, "no_answer", compute(len(block_ids)), now_s)
        offers = self._offers(ticket, first, len(block_ids))
        if not offers:
            reason = ticket.failure or "nothing_stored"
            return self._go_without(ticket, reason, compute(len(block_ids)), now_s)
        pending = self._pricer.decide(offers, compute, len(block_ids), slack_s=0.0)
        num_blocks = pending.decision.num_blocks
        if pending.decision.action is not Action.LOAD:
            self._stats.count(self._stats.unused, "computing_is_quicker")
            return 0
        load = Load(
            first, block_ids[:num_blocks], self._memory.mark(), pending, pending.tiers[-1], now_s, self._loading_bytes
        )
        self._loading_bytes += num_blocks * self._memory.block_bytes
        if by_layer and self._pays_by_layer(ticket, load):
            load.feed = LayerFeed(now_s + pending.decision.deadline_s, self._flowing)
        ticket.load, ticket.stage, ticket.deadline_s = load, Stage.LOADING, now_s + pending.decision.deadline_s
        self._start(ticket, load)
        return num_blocks

    def end(self, ticket: Ticket, now_s: float) -> list[int]:
        """See `BlockSource.end`; the blocks that hold what they should."""
        load, was_settled, ticket.is_over = ticket.load, ticket.is_settled, True
        if load is None:
            return []
        load.is_given_up = True  # before the lock, which the reader would take again and again
        with load.lock:
            num_loaded = load.num_loaded
        self._memory.settle()
        num_bytes = len(load.block_ids) * self._memory.block_bytes
        self._loading_bytes -= num_bytes
        is_complete = num_loaded == len(load.block_ids)
        is_late = not was_settled and now_s >= ticket.deadline_s
        seconds = (now_s if load.ended_s is None else load.ended_s) - load.start_s
        if is_complete or is_late:
            self._pricer.observe(load.tier, num_bytes + load.queued_bytes, seconds)
        # Who is cancelled has waited for nothing: that costs no budget.
        waited_s = seconds if was_settled or is_late else 0.0
        self._pricer.settle(load.pending, waited_s, completed=is_complete)
        if not is_complete and (was_settled or is_late):
            self._stats.count(self._stats.unused, load.failure or "late")
        self._count(ticket, load, num_loaded, seconds)
        return list(load.block_ids[:num_loaded])

    def _pays_by_layer(self, ticket: Ticket, load: Load) -> bool:
        """Whether launching a step operation by operation, as one that waits has to be, is hidden behind the load and
        what the step computes."""
        end = load.first + len(load.block_ids)
        launch_s = self._memory.num_layers_fed * _LAUNCH_S_PER_LAYER
        if not self._options.by_layer or not launch_s or end > ticket.num_in_memory:
            return False
        load_s = len(load.block_ids) * self._memory.block_bytes / self._options.memory_bytes_per_s
        return load_s + self._compute_time(end)(len(ticket.keys) - end) >= launch_s

    def _start(self, ticket: Ticket, load: Load) -> None:
        end = load.first + len(load.block_ids)
        if end <= ticket.num_in_memory:
            self._reader.post(ticket)
            return
        prefetch = Prefetch(
            ticket.tenant,
            ticket.keys[load.first : end],
            ticket.keys[: load.first],
            load.pending.decision.deadline_s,
            lambda: not load.is_given_up,
            lambda num_in_memory: self._reader.post(ticket),
            ticket.origin,
        )
        if not self._prefetcher.post(prefetch):
            self._reader.post(ticket)  # what is in memory

    def _prefetch(self, ticket: Ticket) -> None:
        """Has the store bring a waiting request's blocks from disk, if loading them is quicker than computing."""
        offers = self._offers(ticket, ticket.num_held, len(ticket.keys) - ticket.num_held)
        decision = price(offers, self._compute_time(ticket.num_held), 0.0, budget_s=float("inf"))
        end = ticket.num_held + decision.num_blocks
        if end <= ticket.num_in_memory:
            return

        def ended(num_in_memory: int) -> None:
            ticket.num_in_memory = max(ticket.num_in_memory, ticket.num_held + num_in_memory)

        leading, keys = ticket.keys[: ticket.num_held], ticket.keys[ticket.num_held : end]
        timeout_s = min(decision.saved_s, _MAX_PREFETCH_S)
        self._prefetcher.post(
            Prefetch(ticket.tenant, keys, leading, timeout_s, lambda: not ticket.is_over, ended, ticket.origin)
        )

    def _is_surely_new(self, ticket: Ticket) -> bool:
        """Whether no store has any of a prompt. Without asking: what this one's chains begin with is in memory."""
        if ticket.num_held or (self._has_peers and ticket.peers_wait_s):
            return False
        return not self._reader.may_begin(ticket.tenant, ticket.keys[0])

    def _peers_wait_s(self, compute_s: float) -> float:
        """How long other stores may be asked for a prompt; 0 when what they have on average is not worth it."""
        if price_lookup(compute_s, self._peers_s, self._peer_hit_rate) is Action.SKIP:
            self._peers_s *= 1 - _WEIGHT / 10
            return 0.0
        return self._options.peers_wait_s

    def _offers(self, ticket: Ticket, first: int, num_wanted: int) -> list[Offer]:
        if ticket.num_with_peers <= ticket.num_held:
            return []
        offers, start = [], 0
        ends = ((MEMORY, ticket.num_in_memory), (DISK, ticket.num_visible), (PEER, ticket.num_with_peers))
        for tier, end in ends:
            num_blocks = min(end - first, num_wanted) - start
            if num_blocks > 0:
                num_bytes = num_blocks * self._memory.block_bytes
                offers.append(self._pricer.offer(tier, num_blocks, num_bytes, self._loading_bytes))
                start += num_blocks
        return offers

    def _compute_time(self, first: int) -> ComputeTime:
        """Of blocks that follow `first` ones whose KV is there."""
        whole = prefill_time(self._rate.tokens_per_s, _ATTENTION_TOKENS, self._block_size)
        before_s = whole(first)
        return lambda num_blocks: whole(first + num_blocks) - before_s

    def _skip(self, reason: str, compute_s: float) -> Ticket | None:
        self._pricer.skip(compute_s)
        self._stats.count(self._stats.unused, reason)
        return None

    def _go_without(self, ticket: Ticket, reason: str, compute_s: float, now_s: float) -> int:
        waited_s = min(now_s, ticket.deadline_s) - ticket.asked_s if reason == "no_answer" else self._lookup_s
        self._pricer.skip(compute_s, waited_s)
        self._stats.count(self._stats.unused, reason)
        return 0

    def _count(self, ticket: Ticket, load: Load, num_loaded: int, seconds: float) -> None:
        stats, start = self._stats, 0
        stats.num_loads += 1
        stats.load_s += seconds
        stats.loaded_bytes += num_loaded * self._memory.block_bytes
        for tier, end in ((MEMORY, ticket.num_found_in_memory), (DISK, ticket.num_visible), (PEER, len(ticket.keys))):
            num_blocks = max(0, min(end - load.first, num_loaded) - start)
            stats.count(stats.loaded_blocks, tier, num_blocks)
            start += num_blocks

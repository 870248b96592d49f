"""The threads that ask the store and copy blocks from it: a question never waits for a load."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from shoal.kv_client.lease import Reading
from shoal.kv_client.origin import Origin
from shoal.model_worker.kv_offload.guarding import ERROR, Guard, GuardedThread
from shoal.model_worker.kv_offload.memory import KvMemory, Loaded
from shoal.model_worker.kv_offload.sessions import Sessions
from shoal.model_worker.kv_offload.spans import begin_span, end_span, inside
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.kv_offload.ticket import Load, Stage, Ticket

STORE_DOWN = "store_down"
"""Why a question has no answer: the store is of no use."""


class Reader:
    """Answers questions in order, and does loads in order. Everything it waits for ends within the client's timeout.

    One load at a time: two would share the link, or the processors, that one is bound by.
    """

    def __init__(
        self,
        askers: Sessions,
        loaders: Sessions,
        memory: KvMemory,
        stats: KvStoreStats,
        settled: Callable[[Ticket], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """askers, loaders: sessions of the two threads. settled: called in them when a ticket is ANSWERED or LOADED."""
        self._askers, self._loaders = askers, loaders
        self._memory = memory
        self._stats = stats
        self._settled = settled
        self._clock = clock
        self._asking_since_s: float | None = None
        self._is_acquiring = False
        self._questions: queue.Queue[Ticket | None] = queue.Queue()
        self._loads: queue.Queue[Ticket | None] = queue.Queue()
        asking, loading = Guard("ask", askers, stats), Guard("load", loaders, stats)
        self.threads = (
            GuardedThread("kv asker", self._questions, asking, self._ask, self._end_question, askers.close),
            GuardedThread("kv loader", self._loads, loading, self._load, self._end_load, loaders.close),
        )

    @property
    def problem(self) -> str:
        """What is wrong with the store, as far as questions go; empty if nothing."""
        return self._askers.problem

    def may_begin(self, tenant: str, key: bytes) -> bool:
        """See `Sessions.may_begin`."""
        return self._askers.may_begin(tenant, key)

    def post(self, ticket: Ticket) -> None:
        """Has a ticket that is ASKED answered, or the load of one that is LOADING done."""
        (self._questions if ticket.load is None else self._loads).put(ticket)

    @property
    def is_asked(self) -> bool:
        """Whether anybody waits for an answer of the store."""
        is_answering = self._asking_since_s is not None or self._is_acquiring
        return is_answering or not self._questions.empty() or not self._loads.empty()

    def unanswered_s(self, now_s: float) -> float:
        """How long a question has been waiting for the store's answer; 0 when none does."""
        since_s = self._asking_since_s
        return 0.0 if since_s is None else now_s - since_s

    def close(self, timeout_s: float) -> None:
        """Ends the threads once they have done what they were given, if they do within the time."""
        end_s = time.monotonic() + timeout_s
        self._questions.put(None)
        self._loads.put(None)
        for thread in self.threads:
            thread.join(max(end_s - time.monotonic(), 0.0))

    def _ask(self, ticket: Ticket) -> None:
        self._asking_since_s = self._clock()
        client = self._askers.client(ticket.tenant)
        held, wanted = ticket.keys[: ticket.num_held], ticket.keys[ticket.num_held :]
        span = begin_span("lookup", ticket.origin, ticket.asked_s)
        origin = inside(ticket.origin, span)
        found = (
            client.locate(wanted, ticket.peers_wait_s, leading=held, origin=origin)
            if ticket.peers_wait_s
            else client.lookup(wanted, origin=origin)
        )
        sizes = {"num_visible": found.num_visible, "num_with_peers": found.num_with_peers}
        end_span(span, num_blocks=len(wanted), num_in_memory=found.num_in_memory, **sizes)
        self._askers.note(client)
        if client.problem:
            ticket.failure = STORE_DOWN
        ticket.num_visible = ticket.num_held + found.num_visible
        ticket.num_with_peers = ticket.num_held + found.num_with_peers
        ticket.asked_peers = found.asked_peers
        ticket.num_found_in_memory = ticket.num_in_memory = ticket.num_held + found.num_in_memory

    def _end_question(self, ticket: Ticket, is_done: bool) -> None:
        self._asking_since_s = None
        ticket.answered_s = self._clock()
        if is_done:
            self._stats.num_lookups += 1
            self._stats.lookup_s += ticket.answered_s - ticket.asked_s
        else:
            ticket.failure = ERROR
            ticket.num_visible = ticket.num_with_peers = ticket.num_held
            ticket.num_found_in_memory = ticket.num_in_memory = ticket.num_held
        ticket.stage = Stage.ANSWERED
        self._settled(ticket)

    def _load(self, ticket: Ticket) -> None:
        load = ticket.load
        if load is None or load.is_given_up:
            return
        span = begin_span("load", ticket.origin, load.start_s)
        try:
            self._load_leased(ticket, load, inside(ticket.origin, span))
        except Exception:
            load.failure = ERROR
            raise
        finally:
            outcome = "given up" if load.is_given_up else load.failure or "complete"
            end_span(span, num_blocks=len(load.block_ids), num_loaded=load.num_loaded, tier=load.tier, outcome=outcome)

    def _end_load(self, ticket: Ticket, is_done: bool) -> None:
        load = ticket.load
        assert load is not None
        if not is_done:
            load.failure = ERROR
        load.ended_s = self._clock()
        ticket.stage = Stage.LOADED
        if load.feed is not None:
            load.feed.finish()
        self._settled(ticket)

    def _load_leased(self, ticket: Ticket, load: Load, origin: Origin) -> None:
        client = self._loaders.client(ticket.tenant)
        keys = ticket.keys[load.first : load.first + len(load.block_ids)]
        self._is_acquiring = True
        try:
            view = client.view(keys, origin=origin)
        finally:
            self._is_acquiring = False
        with view as lease:
            self._loaders.note(client)
            block_ids, feed = load.block_ids[: len(lease)], load.feed
            is_whole = len(block_ids) == len(load.block_ids)
            fed = self._memory.feed(lease, block_ids, load.mark, feed) if feed is not None and is_whole else None
            with closing(self._memory.load(lease, block_ids, load.mark) if fed is None else fed) as steps:
                reading = self._follow(load, steps)
            if load.is_given_up:
                return
            if reading is not Reading.VERIFIED:
                load.failure = reading.value
                self._stats.count(self._stats.failed_blocks, reading.value)
                return
        if load.num_loaded < len(load.block_ids):
            load.failure = "store" if client.problem else "evicted"

    @staticmethod
    def _follow(load: Load, steps: Iterator[Loaded]) -> Reading:
        """Takes a load to its end, or until it is given up; what became of the block after the last that was loaded."""
        while True:
            with load.lock:
                step = None if load.is_given_up else next(steps, None)
                if step is None:
                    return Reading.VERIFIED
                load.num_loaded = step.num_blocks
            if step.reading is not Reading.VERIFIED:
                return step.reading

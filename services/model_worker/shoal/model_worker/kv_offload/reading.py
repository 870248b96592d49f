"""The thread that asks the store and copies blocks from it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from shoal.kv_client.lease import Reading
from shoal.kv_client.origin import Origin
from shoal.model_worker.kv_offload.memory import KvMemory, Loaded
from shoal.model_worker.kv_offload.sessions import Sessions
from shoal.model_worker.kv_offload.spans import begin_span, end_span, inside
from shoal.model_worker.kv_offload.stats import KvStoreStats
from shoal.model_worker.kv_offload.ticket import Load, Stage, Ticket


class Reader:
    """Answers tickets in order. Everything it waits for ends within the client's timeout."""

    def __init__(
        self,
        sessions: Sessions,
        memory: KvMemory,
        stats: KvStoreStats,
        settled: Callable[[Ticket], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """settled: called in this thread when a ticket is ANSWERED or LOADED."""
        self._sessions = sessions
        self._memory = memory
        self._stats = stats
        self._settled = settled
        self._clock = clock
        self._tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._asking_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="kv reader", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """What is wrong with the store; empty if nothing."""
        return self._sessions.problem

    def may_begin(self, tenant: str, key: bytes) -> bool:
        """See `Sessions.may_begin`."""
        return self._sessions.may_begin(tenant, key)

    def post(self, ticket: Ticket) -> None:
        """Has a ticket that is ASKED answered, or the load of one that is LOADING done."""
        self._tickets.put(ticket)

    @property
    def is_asked(self) -> bool:
        """Whether anybody waits for it."""
        return self._asking_since_s is not None or not self._tickets.empty()

    def unanswered_s(self, now_s: float) -> float:
        """How long it has been waiting for an answer of the store; 0 when it does not."""
        since_s = self._asking_since_s
        return 0.0 if since_s is None else now_s - since_s

    def close(self, timeout_s: float) -> None:
        """Ends the thread once it has done what it was given, if it does within the time."""
        self._tickets.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (ticket := self._tickets.get()) is not None:
            if ticket.load is not None:
                self._load(ticket, ticket.load)
                ticket.load.ended_s = self._clock()
                ticket.stage = Stage.LOADED
                if ticket.load.feed is not None:
                    ticket.load.feed.finish()
                self._settled(ticket)
            elif ticket.stage is Stage.ASKED:
                self._ask(ticket)
                ticket.stage = Stage.ANSWERED
                self._settled(ticket)
        self._sessions.close()

    def _ask(self, ticket: Ticket) -> None:
        client = self._sessions.client(ticket.tenant)
        self._asking_since_s = self._clock()
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
        self._asking_since_s = None
        self._sessions.note(client)
        ticket.num_visible = ticket.num_held + found.num_visible
        ticket.num_with_peers = ticket.num_held + found.num_with_peers
        ticket.asked_peers = found.asked_peers
        ticket.num_found_in_memory = ticket.num_in_memory = ticket.num_held + found.num_in_memory
        ticket.answered_s = self._clock()
        self._stats.num_lookups += 1
        self._stats.lookup_s += ticket.answered_s - ticket.asked_s

    def _load(self, ticket: Ticket, load: Load) -> None:
        if load.is_given_up:
            return
        span = begin_span("load", ticket.origin, load.start_s)
        self._load_leased(ticket, load, inside(ticket.origin, span))
        outcome = "given up" if load.is_given_up else load.failure or "complete"
        end_span(span, num_blocks=len(load.block_ids), num_loaded=load.num_loaded, tier=load.tier, outcome=outcome)

    def _load_leased(self, ticket: Ticket, load: Load, origin: Origin) -> None:
        client = self._sessions.client(ticket.tenant)
        keys = ticket.keys[load.first : load.first + len(load.block_ids)]
        self._asking_since_s = self._clock()
        with client.view(keys, origin=origin) as lease:
            self._asking_since_s = None
            self._sessions.note(client)
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

"""The threads that have the store bring blocks from disk and from other stores, which takes as long as they take."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from shoal.kv_client.origin import NOBODY, Origin
from shoal.model_worker.kv_offload.guarding import Guard, GuardedThread
from shoal.model_worker.kv_offload.sessions import Sessions
from shoal.model_worker.kv_offload.spans import begin_span, end_span, inside
from shoal.model_worker.kv_offload.stats import KvStoreStats

MAX_UNDER_WAY: Final = 4
"""Prefetches at a time, each by a session of its own: the store answers a session's calls in order."""
MAX_QUEUED: Final = 64
"""Requests whose blocks wait to be brought; more compute them."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Blocks of one chain to bring to the store's memory."""

    tenant: str
    keys: Sequence[bytes]
    leading: Sequence[bytes]
    """The chain's keys before those: they say which other stores to ask."""
    timeout_s: float
    is_wanted: Callable[[], bool]
    """Asked when its turn comes."""
    ended: Callable[[int], None]
    """Called in a thread of the prefetcher with the leading keys that are in memory."""
    origin: Origin = NOBODY
    """For traces."""


class Prefetcher:
    """Does a few prefetches at a time, in order of their coming."""

    def __init__(self, sessions: Sequence[Sessions], stats: KvStoreStats) -> None:
        """sessions: of each thread."""
        self._queue: queue.Queue[Prefetch | None] = queue.Queue(MAX_QUEUED)
        self.threads = tuple(
            GuardedThread(
                f"kv prefetcher {number}",
                self._queue,
                Guard("prefetch", each, stats),
                partial(self._prefetch, each),
                self._end,
                each.close,
            )
            for number, each in enumerate(sessions, 1)
        )

    def post(self, prefetch: Prefetch) -> bool:
        """Whether there was room for it."""
        try:
            self._queue.put_nowait(prefetch)
        except queue.Full:
            return False
        return True

    def close(self, timeout_s: float) -> None:
        """Drops what is queued and ends the threads, if what they do ends within the time."""
        end_s = time.monotonic() + timeout_s
        for _ in self.threads:
            self._post_end()
        for thread in self.threads:
            thread.join(max(end_s - time.monotonic(), 0.0))

    def _post_end(self) -> None:
        while True:
            try:
                self._queue.put_nowait(None)
                return
            except queue.Full:
                self._drop_one()

    def _drop_one(self) -> None:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            return

    def _prefetch(self, sessions: Sessions, prefetch: Prefetch) -> None:
        if not prefetch.is_wanted():
            prefetch.ended(0)
            return
        client = sessions.client(prefetch.tenant)
        span = begin_span("prefetch", prefetch.origin, time.monotonic())
        origin = inside(prefetch.origin, span)
        found = client.prefetch(prefetch.keys, prefetch.timeout_s, leading=prefetch.leading, origin=origin)
        end_span(span, num_blocks=len(prefetch.keys), num_in_memory=found)
        sessions.note(client)
        prefetch.ended(found)

    @staticmethod
    def _end(prefetch: Prefetch, is_done: bool) -> None:
        if not is_done:
            prefetch.ended(0)

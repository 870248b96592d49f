"""The thread that has the store bring blocks from disk and from other stores, which takes as long as they take."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.kv_client.origin import NOBODY, Origin
from shoal.model_worker.kv_offload.sessions import Sessions
from shoal.model_worker.kv_offload.spans import begin_span, end_span, inside

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
    """Called in this thread with the leading keys that are in memory."""
    origin: Origin = NOBODY
    """For traces."""


class Prefetcher:
    """Does one prefetch after the other."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._queue: queue.Queue[Prefetch | None] = queue.Queue(MAX_QUEUED)
        self._thread = threading.Thread(target=self._run, name="kv prefetcher", daemon=True)
        self._thread.start()

    def post(self, prefetch: Prefetch) -> bool:
        """Whether there was room for it."""
        try:
            self._queue.put_nowait(prefetch)
        except queue.Full:
            return False
        return True

    def close(self, timeout_s: float) -> None:
        """Ends the thread, if what it does ends within the time."""
        self.post_end()
        self._thread.join(timeout_s)

    def post_end(self) -> None:
        """Makes the thread end after what it does now."""
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

    def _run(self) -> None:
        while (prefetch := self._queue.get()) is not None:
            num_in_memory = 0
            if prefetch.is_wanted():
                client = self._sessions.client(prefetch.tenant)
                span = begin_span("prefetch", prefetch.origin, time.monotonic())
                origin = inside(prefetch.origin, span)
                num_in_memory = client.prefetch(
                    prefetch.keys, prefetch.timeout_s, leading=prefetch.leading, origin=origin
                )
                end_span(span, num_blocks=len(prefetch.keys), num_in_memory=num_in_memory)
                self._sessions.note(client)
            prefetch.ended(num_in_memory)
        self._sessions.close()

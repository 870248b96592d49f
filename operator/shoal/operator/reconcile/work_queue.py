"""Keys to reconcile: each at most once at a time, soon after it was added, later after it failed."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

from shoal.operator.measures import QUEUE_SECONDS, RECONCILE_SECONDS

_K = TypeVar("_K", bound=Hashable)


class WorkQueue(Generic[_K]):
    """Level-triggered: a key added many times is handed out once, and once more if it was added meanwhile.

    Belongs to one event loop. Whoever `get`s a key must call `done` or `failed` with it.
    """

    def __init__(self, *, settle_s: float = 0.1, first_delay_s: float = 0.5, max_delay_s: float = 60.0) -> None:
        """settle_s: how long a key waits for more of what woke it, since changes come in bursts."""
        self._settle_s = settle_s
        self._first_delay_s = first_delay_s
        self._max_delay_s = max_delay_s
        self._due: dict[_K, float] = {}
        self._heap: list[tuple[float, int, _K]] = []
        self._order = 0
        self._running: set[_K] = set()
        self._again: set[_K] = set()
        self._failures: dict[_K, int] = {}
        self._changed = asyncio.Event()
        self._started_s: dict[_K, float] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Keys that wait, that are worked on, and of both those whose last try failed. May be asked by any thread."""
        return {"waiting": len(self._due), "running": len(self._running), "failing": len(self._failures)}

    def add(self, key: _K, delay_s: float | None = None) -> None:
        """Hands `key` out after `delay_s` (soon), or earlier if it was to be earlier."""
        if key in self._running:
            self._again.add(key)
            return
        due = asyncio.get_running_loop().time() + (self._settle_s if delay_s is None else delay_s)
        if key not in self._due or due < self._due[key]:
            self._due[key] = due
            self._order += 1
            heapq.heappush(self._heap, (due, self._order, key))
            self._changed.set()

    async def get(self) -> _K:
        """The next key that is due."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                heapq.heappop(self._heap)  # was added with an earlier time since
            wait_s = self._heap[0][0] - loop.time() if self._heap else None
            if wait_s is not None and wait_s <= 0:
                key = heapq.heappop(self._heap)[2]
                QUEUE_SECONDS.observe(loop.time() - self._due.pop(key))
                self._running.add(key)
                self._started_s[key] = loop.time()
                return key
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: _K) -> None:
        """It is as it should be."""
        self._failures.pop(key, None)
        self._stop_clock(key, "done")
        self._finish(key)

    def failed(self, key: _K) -> float:
        """Hands it out again later, each time twice as late, or soon if it was added meanwhile, since that may be what
        it lacked; how late, in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self._stop_clock(key, "failed")
        delay_s = min(self._max_delay_s, self._first_delay_s * float(1 << min(failures, 32)))
        if key in self._again:
            delay_s = min(delay_s, self._settle_s)
        self._running.discard(key)
        self._again.discard(key)
        self.add(key, delay_s)
        return delay_s

    def forget(self, key: _K) -> None:
        """It is gone: its failures do not count for another of its name."""
        self._failures.pop(key, None)

    def _finish(self, key: _K) -> None:
        self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _stop_clock(self, key: _K, result: str) -> None:
        RECONCILE_SECONDS.labels(result).observe(asyncio.get_running_loop().time() - self._started_s.pop(key))

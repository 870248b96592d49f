"""What keeps the threads of the offload alive, whatever store, device or this code do to one thing that they do."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Generic, TypeVar

import structlog

from shoal.model_worker.kv_offload.sessions import Sessions
from shoal.model_worker.kv_offload.stats import KvStoreStats

ERROR: Final = "error"
"""Why something came to nothing that failed in a way nobody foresaw."""
_T = TypeVar("_T")
_log = structlog.get_logger("shoal.model_worker")


class Guard:
    """Of the thread of some sessions. After a failure nothing is attempted for a while, as with a dead store."""

    def __init__(
        self, name: str, sessions: Sessions, stats: KvStoreStats, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """name: of what is attempted, in metrics and logs."""
        self._name = name
        self._sessions = sessions
        self._stats = stats
        self._clock = clock
        self._min_backoff_s, self._max_backoff_s = sessions.backoff_range_s
        self._backoff_s = self._min_backoff_s
        self._retry_at_s = float("-inf")

    def attempt(self, do: Callable[[], object], end: Callable[[bool], object]) -> None:
        """Does something, and then has it ended, in any case: with whether it was done.

        What it raises is counted, is the sessions' problem, ends the session in use with what that holds in the store,
        and is logged, which somebody who waits does not wait for.
        """
        if self._clock() < self._retry_at_s:
            self._sessions.used_s = time.monotonic()
            tell(partial(end, False))
            return
        try:
            do()
        except Exception as error:
            problem = f"{self._name}: {type(error).__name__}: {error}"
            self._stats.count(self._stats.errors, self._name)
            self._sessions.fail(problem)
            self._retry_at_s = self._clock() + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, self._max_backoff_s)
            tell(partial(end, False))
            _log.exception("the use of the KV store failed", problem=problem)
            return
        self._backoff_s = self._min_backoff_s
        tell(partial(end, True))


def tell(call: Callable[[], object]) -> None:
    """Calls somebody who waits. What that raises is theirs, and logged."""
    try:
        call()
    except Exception:
        _log.exception("cannot tell what became of the use of the KV store")


class GuardedThread(Generic[_T]):
    """Takes items from a queue, one after the other. One that fails is ended as a failure; the next has its turn."""

    def __init__(
        self,
        name: str,
        items: queue.Queue[_T | None],
        guard: Guard,
        do: Callable[[_T], None],
        end: Callable[[_T, bool], None],
        close: Callable[[], None],
    ) -> None:
        """items: None ends a thread. end: called after `do`, with whether that was done; it has to be, whatever `do`
        did. close: called at the thread's end."""
        self._items = items
        self._guard = guard
        self._do, self._end, self._close = do, end, close
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits for its end, for so long at most."""
        self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """Whether it takes items."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            self._guard.attempt(partial(self._do, item), partial(self._end, item))
            del item  # or its blocks would live until the next one comes
        self._close()

"""Whether it makes sense to call another store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

MAX_FAILURES: Final = 3
MIN_OPEN_S: Final = 0.5
MAX_OPEN_S: Final = 30.0


class Breaker:
    """Opens after failures in a row, for a time that doubles; then one call at a time tries. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_failures = 0
        """Since the start."""
        self._clock = clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._open_s = MIN_OPEN_S
        self._opens_until_s = 0.0
        self._reason = ""

    @property
    def problem(self) -> str:
        """Why the other store is not called; empty while it is."""
        with self._lock:
            return self._reason if self._in_a_row >= MAX_FAILURES else ""

    @property
    def is_closed(self) -> bool:
        """Whether the other store is believed to work."""
        with self._lock:
            return self._in_a_row < MAX_FAILURES

    def allow(self) -> bool:
        """Whether to call. Whoever was allowed says `succeeded` or `failed`."""
        with self._lock:
            if self._in_a_row < MAX_FAILURES:
                return True
            now_s = self._clock()
            if now_s < self._opens_until_s:
                return False
            self._opens_until_s = now_s + self._open_s  # one call tries; others wait for what becomes of it
            return True

    def succeeded(self) -> None:
        """The other store works."""
        with self._lock:
            self._in_a_row = 0
            self._open_s = MIN_OPEN_S
            self._reason = ""

    def failed(self, reason: str) -> None:
        """A call or transfer failed, or took too long."""
        with self._lock:
            self.num_failures += 1
            self._in_a_row += 1
            self._reason = reason
            if self._in_a_row >= MAX_FAILURES:
                self._opens_until_s = self._clock() + self._open_s
                self._open_s = min(2 * self._open_s, MAX_OPEN_S)

"""Whether the disk can be trusted to answer: one breaker for reads, one for writes."""

from __future__ import annotations

import collections
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_FAILURES: Final = 3
"""Failures within the window that take a side out of service."""
WINDOW_S: Final = 30.0
CORRUPTION_WEIGHT: Final = 0.2
"""A corrupt block is dropped and not asked for again; many of them mean that the disk lies."""
_MIN_BACKOFF_S: Final = 1.0
_MAX_BACKOFF_S: Final = 60.0
_FATAL: Final = {errno.EROFS: "the file system is read-only", errno.ENODEV: "the device is gone"}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure that a breaker remembers."""

    time_s: float
    weight: float


class Breaker:
    """Opens after failures of weight 3 within 30 s, or at once after one that will not pass by itself.

    Open, it asks for a probe after 1 s, then after twice as long each time, at most a minute. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.reason = ""
        """Why it is open; empty while it is closed."""
        self.num_openings = 0
        self._clock = clock
        self._failures: collections.deque[Failure] = collections.deque()
        self._backoff_s = _MIN_BACKOFF_S
        self._probe_at_s = 0.0
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether requests pass."""
        return not self.reason

    @property
    def probe_due_in_s(self) -> float | None:
        """Time until a probe is due; None while closed."""
        return None if self.closed else max(0.0, self._probe_at_s - self._clock())

    def fail(self, reason: str, weight: float = 1.0) -> None:
        """Notes a failure."""
        now_s = self._clock()
        with self._lock:
            if self.reason:
                return
            self._failures.append(Failure(now_s, weight))
            while self._failures[0].time_s < now_s - WINDOW_S:
                self._failures.popleft()
            if sum(failure.weight for failure in self._failures) >= MAX_FAILURES - 1e-9:
                self._open(reason, now_s)

    def probed(self, error: str) -> None:
        """What a probe found: an empty string closes the breaker."""
        now_s = self._clock()
        with self._lock:
            if not self.reason:
                return
            if not error:
                self.reason = ""
                self._failures.clear()
                self._backoff_s = max(_MIN_BACKOFF_S, self._backoff_s / 2)
                return
            self.reason = error
            self._backoff_s = min(_MAX_BACKOFF_S, 2 * self._backoff_s)
            self._probe_at_s = now_s + self._backoff_s

    def _open(self, reason: str, now_s: float) -> None:
        self.reason = reason
        self.num_openings += 1
        self._failures.clear()
        self._probe_at_s = now_s + self._backoff_s


class Health:
    """Both sides of the disk."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.reads = Breaker(clock)
        self.writes = Breaker(clock)

    @property
    def healthy(self) -> bool:
        """Whether both sides are in service."""
        return self.reads.closed and self.writes.closed

    @property
    def reason(self) -> str:
        """What is out of service and why, or an empty string."""
        sides = (("reads", self.reads), ("writes", self.writes))
        return "; ".join(f"{name} are out of service: {side.reason}" for name, side in sides if side.reason)

    @property
    def probe_due_in_s(self) -> float | None:
        """Time until a probe is due; None while healthy."""
        due = [side.probe_due_in_s for side in (self.reads, self.writes)]
        return min((in_s for in_s in due if in_s is not None), default=None)

    def stalled(self, lane: str) -> None:
        """A request of a lane ran into its deadline: a disk that does not read does not write either."""
        self.reads.fail(f"a {lane} did not return in time")
        self.writes.fail(f"a {lane} did not return in time")

    def failed(self, lane: str, error: OSError) -> None:
        """A system call of a lane failed."""
        side = self.writes if lane == "write" else self.reads
        reason = _FATAL.get(error.errno or 0)
        if reason is not None:
            side.fail(reason, weight=MAX_FAILURES)
        else:
            side.fail(f"{lane}: {error.strerror or error}")

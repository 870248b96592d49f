"""Which writes a busy disk takes.

A store that writes everything it computes can keep a disk so busy that reads, which somebody waits for, get slow. The
share of new prefixes that is written follows the pressure: it falls by 30% whenever a tick finds the disk behind, and
recovers by 5 points a tick. What is refused is refused as chains, not as single blocks: a block whose parent is on disk
or on its way has an earlier yes behind it, and a block whose parent was refused would never be found.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.5
_DECREASE: Final = 0.7
_INCREASE: Final = 0.05
_MIN_FRACTION: Final = 0.02
_MAX_REFUSED: Final = 65_536
_QUEUE_SOFT: Final = 0.5
_QUEUE_HARD: Final = 0.9
_LATENCY_EXCESS: Final = 4.0
"""Latency over its best that means a queue in the device; below it, noise."""
_MIN_READS: Final = 8
"""Reads in a tick, beside writes, without which nobody suffers from these."""
_AMPLIFICATION: Final = 3.0
_EWMA: Final = 0.1
_BEST_DRIFT: Final = 1.0005
"""The best latency is forgotten slowly, so that a disk that is slow for good is not under pressure for ever."""


class Latency:
    """Seconds per byte of one kind of I/O: the recent mean, and the best that mean has been."""

    def __init__(self) -> None:
        self.mean_s_per_byte = 0.0
        self.best_s_per_byte = 0.0
        self.num_beside_writes = 0
        """How many ran while something was being written, since whoever counts set it to 0."""

    def observe(self, duration_s: float, num_bytes: int, beside_writes: bool = False) -> None:
        """One I/O."""
        self.num_beside_writes += beside_writes
        value = duration_s / num_bytes
        mean = self.mean_s_per_byte
        mean = value if mean == 0.0 else mean + _EWMA * (value - mean)
        self.mean_s_per_byte = mean
        best = self.best_s_per_byte
        self.best_s_per_byte = mean if best == 0.0 else min(mean, best * _BEST_DRIFT)

    @property
    def excess(self) -> float:
        """Mean over best; 1 before anything was seen."""
        return self.mean_s_per_byte / self.best_s_per_byte if self.best_s_per_byte else 1.0


class WriteAdmission:
    """Decides for each write, from queue, latencies and write amplification. Called under the log's lock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.reads = Latency()
        self.writes = Latency()
        self.fraction = 1.0
        """Share of the prefixes that begin on this disk which are let in."""
        self.num_ticks_under_pressure = 0
        self._clock = clock
        self._next_tick_s = clock() + TICK_S
        self._refused: collections.OrderedDict[bytes, None] = collections.OrderedDict()

    def admit(self, key: bytes, parent: bytes, parent_is_here: bool, queue_fill: float, amplification: float) -> bool:
        """Whether to write the block; `queue_fill` is 0 to 1, `amplification` bytes written over bytes asked for."""
        self._tick(queue_fill, amplification)
        if queue_fill >= _QUEUE_HARD:
            return self._refuse(key)
        if self.fraction >= 1.0 or parent_is_here:
            return True
        if parent in self._refused or int.from_bytes(key[-4:], "little") >= self.fraction * 2**32:
            return self._refuse(key)
        return True

    def _refuse(self, key: bytes) -> bool:
        self._refused[key] = None
        if len(self._refused) > _MAX_REFUSED:
            self._refused.popitem(last=False)
        return False

    def _tick(self, queue_fill: float, amplification: float) -> None:
        now_s = self._clock()
        if now_s < self._next_tick_s and queue_fill < _QUEUE_HARD:
            return
        idle_ticks = max(0.0, now_s - self._next_tick_s) // TICK_S
        self._next_tick_s = now_s + TICK_S
        behind = (
            queue_fill >= _QUEUE_SOFT
            or amplification > _AMPLIFICATION
            or (self.reads.num_beside_writes >= _MIN_READS and self.reads.excess > _LATENCY_EXCESS)
        )
        self.reads.num_beside_writes = 0
        if behind and idle_ticks < 1:
            self.num_ticks_under_pressure += 1
            self.fraction = max(_MIN_FRACTION, self.fraction * _DECREASE)
            return
        self.fraction = min(1.0, self.fraction + _INCREASE * (1 + idle_ticks))
        if self.fraction >= 1.0:
            self._refused.clear()

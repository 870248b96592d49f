"""How long calls take, in buckets, for a third of a microsecond each."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

BOUNDS_S: Final = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 0.1, 0.5, 1.0, 10.0)
"""Upper ends of the buckets; the last one has none."""


@dataclass(slots=True)
class Durations:
    """Of one kind of call."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def observe(self, duration_s: float) -> None:
        """One call."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


class Latency(defaultdict[str, Durations]):
    """By name of the call. Written by the store's thread; reading from another one is safe."""

    def __init__(self) -> None:
        super().__init__(Durations)

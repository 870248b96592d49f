"""How often blocks used once, twice, ... are used again at each age, and what that makes keeping them worth.

What reuse_rates.h does in C, to the bit; the names are the same.
"""

from __future__ import annotations

import bisect
import itertools
import math
from typing import Final

CLASSES: Final = 5
"""Used once, twice, ..., five times or more."""
UNITS: Final = 32
"""In which as many accesses happen as blocks are held."""
COHORTS: Final = 512
"""Units for which blocks are followed."""
STARTS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
"""Ages in units at which buckets begin; the last one's number stands for no end."""
BUCKETS: Final = len(STARTS) - 1
PRIOR: Final = 256
"""Blocks that a class is assumed to have been seen with, at the rates of all classes."""
ALL_PRIOR: Final = 128
"""... and all classes together, at a rate that falls with age as LRU assumes."""
_WIDTHS: Final = [float(end - start) for start, end in itertools.pairwise(STARTS)]
_BUCKETS: Final = [bisect.bisect_right(STARTS, age, hi=BUCKETS) - 1 for age in range(COHORTS + 1)]


class ReuseRates:
    """Counts reuses and, for each block used and not used since, the units in which it might have been."""

    def __init__(self, num_blocks: int) -> None:
        self.unit = self.left = max(num_blocks // UNITS, 1)
        """Accesses in a unit, and those left of this one."""
        self.now = 0
        """Units since the start."""
        self._alive = [[0] * COHORTS for _ in range(CLASSES)]
        self._reuses = [[0.0] * BUCKETS for _ in range(CLASSES)]
        self._exposure = [[0.0] * BUCKETS for _ in range(CLASSES)]
        self.ranks = [[0.0] * BUCKETS for _ in range(CLASSES)]
        """The most reuses per unit that keeping a block of a class and age bucket can bring."""
        self._rank_all()

    def bucket(self, last: int) -> int:
        """Of the age of a block used last in a unit."""
        return _BUCKETS[min(self.now - last, COHORTS)]

    def begin_use(self, uses: int) -> None:
        """A block of class `uses` was used."""
        self._alive[uses][self.now % COHORTS] += 1

    def end_use(self, uses: int, last: int) -> None:
        """It is used again."""
        if self.now - last < COHORTS:
            self._alive[uses][last % COHORTS] -= 1
        self._reuses[uses][self.bucket(last)] += 1

    def next_unit(self) -> None:
        """A unit is over: what was learned loses a 512th of its weight; all that are followed were at risk for it."""
        for alive, reuses, exposure in zip(self._alive, self._reuses, self._exposure, strict=True):
            for bucket in range(BUCKETS):
                reuses[bucket] -= reuses[bucket] / COHORTS
                exposure[bucket] -= exposure[bucket] / COHORTS
            for age in range(min(COHORTS, self.now + 1)):
                exposure[_BUCKETS[age]] += alive[(self.now - age) % COHORTS]
            alive[(self.now + 1) % COHORTS] = 0
        self.now += 1
        self.left = self.unit
        self._rank_all()

    def _rank_all(self) -> None:
        pooled = []
        for bucket in range(BUCKETS):
            exposure = ALL_PRIOR * _WIDTHS[bucket]
            reuses = exposure * (1.0 / 32) / (STARTS[bucket] + 1)
            for uses in range(CLASSES if bucket < BUCKETS - 1 else 0):
                reuses += self._reuses[uses][bucket]
                exposure += self._exposure[uses][bucket]
            pooled.append(reuses / exposure)
        for uses in range(CLASSES):
            self.ranks[uses] = _ranks(self._reuses[uses], self._exposure[uses], pooled)


def _ranks(reuses: list[float], exposure: list[float], pooled: list[float]) -> list[float]:
    rates = []
    for bucket in range(BUCKETS):
        prior = PRIOR * _WIDTHS[bucket]
        rates.append((reuses[bucket] + prior * pooled[bucket]) / (exposure[bucket] + prior))
    ranks = [_rank(rates, bucket) for bucket in range(BUCKETS)]
    ranks[-1] = ranks[-2] / 2  # nothing was learned of these ages
    return ranks


def _rank(rates: list[float], bucket: int) -> float:
    """Reuses per unit at the age up to which keeping the block brings most: a Gittins index."""
    left, reused, time, best = 1.0, 0.0, 0.0, 0.0
    for later in range(bucket, BUCKETS):
        width = _WIDTHS[later] / 2 if later == bucket else _WIDTHS[later]
        gone = -math.expm1(-rates[later] * width)
        reused += left * gone
        time += left * gone / rates[later]
        left *= 1 - gone
        if reused > best * time:
            best = reused / time
    return best

"""How long a tier takes, learned from what it took."""

from __future__ import annotations

import math
from typing import Final

_WEIGHT: Final = 0.1
"""Of the latest observation."""
_MAX_STEP: Final = math.log(4.0)
"""An observation counts as at most 4 times off what was expected: one stall says little of the next load."""
_MARGIN: Final = 2.0
"""Mean deviations added to what is expected; with a normal error some 95% of loads take less."""


class TierSpeed:
    """An exponentially weighted mean, and mean deviation, of how a tier's times relate to a first guess.

    The guess has the form latency + bytes / bandwidth; what is learned is one factor on it, in logarithms, so that
    twice as slow and twice as fast weigh the same. Times of 0 and below are ignored.
    """

    def __init__(self, latency_s: float, bytes_per_s: float) -> None:
        """Both above 0: measured once, or guessed."""
        if not (latency_s > 0 and bytes_per_s > 0):
            raise ValueError(f"latency_s {latency_s} and bytes_per_s {bytes_per_s} have to be above 0")
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._log_factor = 0.0
        self._deviation = math.log(1.5)

    def observe(self, num_bytes: int, seconds: float) -> None:
        """A load of `num_bytes`, those waiting in front of it included, took `seconds`."""
        if not 0 < seconds < math.inf:
            return
        error = math.log(seconds / self._guess_s(num_bytes)) - self._log_factor
        error = min(max(error, -_MAX_STEP), _MAX_STEP)
        self._log_factor += _WEIGHT * error
        self._deviation += _WEIGHT * (abs(error) - self._deviation)

    def expected_s(self, num_bytes: int) -> float:
        """Of a load with this much to move, those waiting in front of it included."""
        return self._guess_s(num_bytes) * math.exp(self._log_factor)

    def cautious_s(self, num_bytes: int) -> float:
        """What most loads take less than."""
        return self._guess_s(num_bytes) * math.exp(self._log_factor + _MARGIN * self._deviation)

    def _guess_s(self, num_bytes: int) -> float:
        return self._latency_s + num_bytes / self._bytes_per_s

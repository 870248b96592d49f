"""How fast a queue is served, measured while somebody waits."""

from __future__ import annotations

from typing import Final

HALF_LIFE_S: Final = 10.0
MIN_DEPARTURES: Final = 8
"""Before so many, nothing is claimed: a first few come in one burst, as room for all of them opens."""


class DrainRate:
    """Served work over time in which some was waiting, both fading with a half-life. Times are of any one clock."""

    __slots__ = ("_busy_s", "_departures", "_since_s", "_work")

    def __init__(self) -> None:
        self._work = 0.0
        self._busy_s = 0.0
        self._since_s: float | None = None
        """Up to when busy time is counted; None while nobody waits."""
        self._departures = 0

    def begin(self, now_s: float) -> None:
        """Somebody waits now."""
        if self._since_s is None:
            self._since_s = now_s

    def end(self, now_s: float) -> None:
        """Nobody waits any more."""
        if self._since_s is not None:
            self._pass(now_s)
            self._since_s = None

    def served(self, work: float, now_s: float) -> None:
        """One left the queue for a worker."""
        self._pass(now_s)
        self._work += work
        self._departures += 1

    def per_s(self, now_s: float) -> float | None:
        """Work a second; None when too little is known. A queue that stands still becomes slower as it does."""
        busy_s = self._busy_s + (0.0 if self._since_s is None else max(0.0, now_s - self._since_s))
        if self._departures < MIN_DEPARTURES or busy_s <= 0:
            return None
        return self._work / busy_s

    def _pass(self, now_s: float) -> None:
        if self._since_s is None:
            self._since_s = now_s
            return
        passed_s = max(0.0, now_s - self._since_s)
        fading = 0.5 ** (passed_s / HALF_LIFE_S)
        self._work *= fading
        self._busy_s = self._busy_s * fading + passed_s
        self._since_s = now_s

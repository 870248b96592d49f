"""Logs how far a start is, in the lines that `shoal up` shows as progress, and at the end what took how long."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

_FIRST_STAGE = "start"
"""From the engine's process to its first word: it imports its modules."""
_log = structlog.get_logger("shoal.model_worker")


class StartLog:
    """One start, from the moment that this is made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start_s = self._stage_start_s = clock()
        self._stage, self._tenths = _FIRST_STAGE, -1
        self._took_s: dict[str, float] = {}

    def on_progress(self, stage: str, fraction: float) -> None:
        """Logs a stage when it begins and at every tenth of it."""
        tenths = int(fraction * 10)
        if stage != self._stage:
            self._end_stage(stage)
        elif tenths == self._tenths:
            return
        self._tenths = tenths
        _log.info("loading", stage=stage, percent=round(fraction * 100))

    def finish(self) -> str:
        """`24.4 s: start 1.8, fetch 0.0, weights 3.1, memory 2.0, graphs 17.5`."""
        self._end_stage("")
        stages = ", ".join(f"{stage} {took_s:.1f}" for stage, took_s in self._took_s.items())
        return f"{self._clock() - self._start_s:.1f} s: {stages}"

    def _end_stage(self, following: str) -> None:
        now_s = self._clock()
        self._took_s[self._stage] = self._took_s.get(self._stage, 0.0) + now_s - self._stage_start_s
        self._stage, self._stage_start_s = following, now_s

"""Progress of a download in the service's log."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from shoal.artifacts.cache import format_bytes

_log = structlog.get_logger("shoal.artifacts")


class LogProgress:
    """A `Progress` that logs at most once every `interval_s`, and once at the end."""

    def __init__(self, what: str, interval_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._interval_s = interval_s
        self._clock = clock
        self._logged_s = clock()

    def __call__(self, received_bytes: int, total_bytes: int | None) -> None:
        """See `Progress`."""
        done = total_bytes is not None and received_bytes >= total_bytes
        if not done and self._clock() - self._logged_s < self._interval_s:
            return
        self._logged_s = self._clock()
        percent = None if not total_bytes else round(100 * received_bytes / total_bytes)
        _log.info("downloading", what=self._what, received=format_bytes(received_bytes), percent=percent)

"""What a store does over and over while it serves, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from shoal.kv_store.counters import Counters

LOG_EVERY: Final = 60
"""Failures in a row of which one is logged, after the first."""
_log = structlog.get_logger("shoal.kv_store")


class Housekeeping:
    """Tasks that go on after a failure: logged, counted, and told as a problem until they work again.

    A task that ended with its first exception would end unseen, and with it what it does: leases that never expire, for
    example. Belongs to the store's thread.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """What does not work at the moment, a sentence each."""
        return [f"{name}: {problem}" for name, problem in self._problems.items()]

    async def repeat(self, name: str, every_s: float, work: Callable[[], Awaitable[None] | None]) -> None:
        """Does `work` again and again, until it is cancelled."""
        num_failures = 0
        while True:
            await asyncio.sleep(every_s)
            try:
                doing = work()
                if doing is not None:
                    await doing
            except Exception as error:
                self._counters.add("housekeeping_failures")
                self._problems[name] = f"{type(error).__name__}: {error}"
                if num_failures % LOG_EVERY == 0:
                    _log.error("housekeeping failed; it goes on", task=name, exc_info=error)
                num_failures += 1
            else:
                num_failures = 0
                self._problems.pop(name, None)

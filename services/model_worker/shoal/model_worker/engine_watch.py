"""Notices an engine that works no more although it lives: a kernel that never ends, a device that is lost silently.

The engine answers every command and every step with a frame, so whoever counts what was sent and what came knows
whether it owes one; it need not help. A hung step blocks its thread for good, which no timeout in there could end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_LOOKS_PER_TIMEOUT: Final = 4


class EngineWatch:
    """When the engine was last heard, as far as it owes a word. Belongs to one event loop."""

    def __init__(self, timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """timeout_s: above 0."""
        self.interval_s = timeout_s / _LOOKS_PER_TIMEOUT
        self._timeout_s = timeout_s
        self._clock = clock
        self._owes_since_s: float | None = None
        self._looked_s = clock()

    def asked(self) -> None:
        """A command was sent. Not one that ends the engine, which gets no answer."""
        if self._owes_since_s is None:
            self._owes_since_s = self._clock()

    def heard(self, *, busy: bool) -> None:
        """A frame came. busy: whether requests are left that the engine must go on with."""
        self._owes_since_s = self._clock() if busy else None

    def look(self) -> bool:
        """Whether the engine has owed a frame for longer than the timeout. Called every `interval_s`.

        A look that comes much too late means that this process was stopped or starved itself (a frozen container, say),
        so that frames may lie unread: the engine then gets the whole time once more.
        """
        now_s = self._clock()
        was_away = now_s - self._looked_s > 2 * self.interval_s
        self._looked_s = now_s
        if self._owes_since_s is None:
            return False
        if was_away:
            self._owes_since_s = now_s
        return now_s - self._owes_since_s > self._timeout_s

    async def wait_stalled(self) -> None:
        """Returns when the engine is stalled, at most 1.25 timeouts after its last word."""
        self._looked_s = self._clock()
        while True:
            await asyncio.sleep(self.interval_s)
            if self.look():
                return

"""Cuts off clients that do not read.

With asyncio.timeout around every write the front spent 23 us a token instead of 19 (256 streams, two tokens a message,
one shared core); so a write only notes when it began, and one task looks at all calls a few times in that period.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shoal.rpc.errors import Cancelled

_LOOKS_PER_TIMEOUT: Final = 4


class WatchedCall:
    """One call. Set `write_began_s` (time.monotonic()) before a write and back to None after it."""

    __slots__ = ("stalled", "task", "write_began_s")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = task
        self.write_began_s: float | None = None
        self.stalled = False


class StallWatch:
    """The open calls of a server. Belongs to one event loop."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._calls: set[WatchedCall] = set()

    @contextmanager
    def watched(self) -> Iterator[WatchedCall]:
        """The current task as a watched call. Raises Cancelled when it was cut off."""
        task = asyncio.current_task()
        assert task is not None
        call = WatchedCall(task)
        self._calls.add(call)
        try:
            yield call
        except asyncio.CancelledError:
            if not call.stalled:
                raise
            task.uncancel()
            raise Cancelled(f"the client read nothing for client_stall_timeout_s = {self._timeout_s:g} s") from None
        finally:
            self._calls.discard(call)

    async def run(self) -> None:
        """Watches until cancelled. A call is cut off after at most 1.25 times the timeout."""
        while True:
            await asyncio.sleep(self._timeout_s / _LOOKS_PER_TIMEOUT)
            oldest_s = time.monotonic() - self._timeout_s
            for call in self._calls:
                if call.write_began_s is not None and call.write_began_s < oldest_s and not call.stalled:
                    call.stalled = True
                    call.task.cancel()

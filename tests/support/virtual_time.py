"""An event loop whose clock jumps to whatever is waited for next: hours pass in no time, and always in the same way."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_in_virtual_time(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Runs it to its end, from the second 0 of `asyncio.get_running_loop().time()` on. For what waits for timers and
    for its own tasks alone: threads and sockets would be waited for in vain."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(coroutine)


def now_s() -> float:
    """By the clock of the running loop."""
    return asyncio.get_running_loop().time()


class _Selector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen any more"
        self.passed_s += max(timeout, 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Selector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed_s

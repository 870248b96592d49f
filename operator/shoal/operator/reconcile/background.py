"""What goes on beside the watches: it neither stops unnoticed, nor because something went wrong once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import structlog

from shoal.operator.reconcile.api_client import ApiError

_log = structlog.get_logger("shoal.operator")


async def repeat(what: str, interval_s: float, work: Callable[[], Awaitable[object]]) -> None:
    """Works every so often, for ever. What one round fails at is logged, and the next one tries again."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await work()
        except Exception as error:  # nobody else would hear of it, and this would not be done any more
            _log.warning(
                "a round failed", of=what, error=str(error) or type(error).__name__, again_in_s=interval_s,
                exc_info=not isinstance(error, ApiError),
            )  # fmt: skip


@contextlib.asynccontextmanager
async def running(*endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs them beside the block, and ends them with it. Should one end by itself the block is cancelled, and that
    one's error is raised: a process without it would only look alive."""
    owner, ended, is_over = asyncio.current_task(), list[asyncio.Task[None]](), False
    assert owner is not None

    def end(task: asyncio.Task[None]) -> None:
        if not is_over and not ended:
            ended.append(task)
            owner.cancel()

    tasks = [asyncio.ensure_future(each) for each in endless]
    for task in tasks:
        task.add_done_callback(end)
    try:
        yield
    except asyncio.CancelledError:
        if not ended or owner.uncancel() > 0:
            raise
    finally:
        is_over = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        raise task.exception() or RuntimeError(f"{task.get_coro()} ended, which it never should")

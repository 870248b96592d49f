"""Tasks beside the watches go on after a failure, and none ends unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from shoal.operator.reconcile.api_client import ApiError
from shoal.operator.reconcile.background import repeat, running
from support.virtual_time import now_s, run_in_virtual_time


@pytest.mark.parametrize("error", [ApiError(500, "InternalError", "no leader"), ValueError("a bug"), OSError("disk")])
def test_a_round_that_fails_is_followed_by_others(error: Exception) -> None:
    done_s: list[float] = []

    async def work() -> None:
        done_s.append(now_s())
        if len(done_s) < 3:
            raise error

    async def scenario() -> None:
        async with running(repeat("a test", 10, work)):
            await asyncio.sleep(55)

    run_in_virtual_time(scenario())
    assert done_s == pytest.approx([10, 20, 30, 40, 50])


async def test_one_that_ends_ends_the_block_with_its_error() -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    async def last() -> None:
        return None

    for endless, error in ((fail, "a bug"), (last, "never should")):
        beside = asyncio.Event()
        with pytest.raises((ValueError, RuntimeError), match=error):
            async with running(endless()):
                await beside.wait()
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_the_blocks_own_end_is_its_own() -> None:
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        async with running(forever()):
            await asyncio.sleep(0)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert ended.is_set()

    async def cancelled() -> None:
        async with running(forever()):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(cancelled())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

"""The work queue: each key once at a time, again when it was added meanwhile, later when it failed."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.operator.reconcile.work_queue import WorkQueue

ACTIONS = ("add", "take", "done", "failed")


def quick() -> WorkQueue[str]:
    return WorkQueue(settle_s=0.0, first_delay_s=0.01, max_delay_s=0.04)


async def is_empty(queue: WorkQueue[str]) -> bool:
    waiting = asyncio.ensure_future(queue.get())
    done, _ = await asyncio.wait({waiting}, timeout=0.03)
    waiting.cancel()
    return not done


async def test_a_key_added_often_is_handed_out_once() -> None:
    queue = quick()
    for _ in range(5):
        queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert await is_empty(queue)


async def test_a_key_added_while_it_runs_comes_once_more_and_not_beside_itself() -> None:
    queue = quick()
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.add("a")
    assert await is_empty(queue)
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert await is_empty(queue)


async def test_failures_come_later_each_time_up_to_a_limit_and_success_forgets_them() -> None:
    queue = quick()
    queue.add("a")
    delays = []
    for _ in range(4):
        assert await queue.get() == "a"
        delays.append(queue.failed("a"))
    assert delays == [0.01, 0.02, 0.04, 0.04]
    assert await queue.get() == "a"
    queue.done("a")
    queue.add("a")
    await queue.get()
    assert queue.failed("a") == 0.01


async def test_news_of_a_failing_key_do_not_wait_for_its_delay() -> None:
    queue: WorkQueue[str] = WorkQueue(settle_s=0.0, first_delay_s=60.0)
    queue.add("a")
    await queue.get()
    queue.failed("a")
    queue.add("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_news_that_come_while_a_key_fails_do_not_wait_for_its_delay() -> None:
    queue: WorkQueue[str] = WorkQueue(settle_s=0.0, first_delay_s=60.0)
    queue.add("a")
    await queue.get()
    queue.add("a")
    assert queue.failed("a") == 0.0
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    assert queue.failed("a") == 60.0, "it failed twice, and there is no news"


async def test_one_key_does_not_hold_up_another() -> None:
    queue = quick()
    queue.add("slow")
    assert await queue.get() == "slow"
    queue.add("a", 0.02)
    queue.add("b")
    assert [await queue.get(), await queue.get()] == ["b", "a"]


@settings(max_examples=50, deadline=None)
@given(
    actions=st.lists(st.tuples(st.sampled_from(["add", "take", "done", "failed"]), st.sampled_from("abc")), max_size=40)
)
def test_nothing_is_lost_and_nothing_runs_twice(actions: list[tuple[str, str]]) -> None:
    asyncio.run(_drive(actions))


async def _drive(actions: list[tuple[str, str]]) -> None:
    queue: WorkQueue[str] = WorkQueue(settle_s=0.0, first_delay_s=0.0, max_delay_s=0.0)
    wanted: set[str] = set()
    """Keys that somebody has to look at after this moment."""
    running: set[str] = set()
    for action, key in actions:
        if action == "add":
            queue.add(key)
            wanted.add(key)
        elif action == "take" and wanted - running:
            taken = await asyncio.wait_for(queue.get(), 1)
            assert taken not in running
            assert taken in wanted
            running.add(taken)
            wanted.discard(taken)
        elif action in ("done", "failed") and key in running:
            running.discard(key)
            if action == "done":
                queue.done(key)
            else:
                queue.failed(key)
                wanted.add(key)
    for key in running:
        queue.done(key)
    for _ in range(len(wanted)):
        taken = await asyncio.wait_for(queue.get(), 1)
        wanted.discard(taken)
        queue.done(taken)
    assert not wanted

"""A scheduler with a source of blocks that has what the device held once."""

from __future__ import annotations

from shoal.model_worker.kv_cache import Stored
from shoal.model_worker.scheduler import PriorityPolicy
from support.engine_requests import make_request
from support.fake_block_source import FakeBlockSource
from support.scheduler_harness import SchedulerHarness


def with_source(**sizes: int) -> tuple[SchedulerHarness, FakeBlockSource]:
    h = SchedulerHarness(policy=PriorityPolicy(aging_s=30.0), **sizes)
    source = FakeBlockSource(h.runner.kv)
    h.use(source)
    return h, source


def save(h: SchedulerHarness, source: FakeBlockSource) -> None:
    """Has the source keep what the device holds."""
    for event in h.cache.take_events():
        if isinstance(event, Stored):
            for key in event.keys:
                block_id = h.cache.block_of(key)
                if block_id is not None:
                    source.blocks[key] = h.runner.kv[block_id].copy()


def saved_prompt(h: SchedulerHarness, source: FakeBlockSource, num_tokens: int = 18) -> list[int]:
    """A prompt that the source has, and the device no longer."""
    prompt = list(range(num_tokens))
    h.scheduler.add(make_request(100, prompt))
    h.finish_all()
    save(h, source)
    h.cache.clear()
    h.cache.take_events()
    h.now_s = 0.0
    return prompt

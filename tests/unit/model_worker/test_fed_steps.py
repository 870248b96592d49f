"""Steps that begin before the blocks that they need are there: what they compute counts only if all of them came."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.blocks import block_keys
from shoal.model_worker.engine import Engine
from shoal.model_worker.messages import Add, Command, StepFrame
from support.engine_requests import exactly, make_request
from support.fake_block_source import FakeBlockSource, FakeRetrieval
from support.history_runner import expected_output
from support.scheduler_harness import EOS, VOCAB, SchedulerHarness
from support.stored_prompts import saved_prompt, with_source


@dataclass(eq=False)
class Feed:
    """Brings a load's blocks when the step waits for them, and then says that only some of them count."""

    source: FakeBlockSource
    retrieval: FakeRetrieval
    num_good: int
    waits: list[int] = field(default_factory=list)

    def wait(self, layer: int) -> None:
        self.waits.append(layer)
        self.source.write(self.retrieval, len(self.retrieval.block_ids))

    def wait_end(self) -> None:
        assert self.waits, "the step was run before its result is taken"
        self.retrieval.num_loaded = min(self.num_good, len(self.retrieval.block_ids))
        self.retrieval.is_settled = True


def flowing(h: SchedulerHarness, source: FakeBlockSource, num_good: int) -> FakeRetrieval:
    """The only open retrieval, once its blocks are on their way."""
    [retrieval] = source.open
    retrieval.is_settled = True
    assert h.step() is None, "it waits for its blocks"
    retrieval.feed = Feed(source, retrieval, num_good)
    return retrieval


def test_a_step_begins_while_its_blocks_arrive() -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    request = make_request(1, prompt)
    h.scheduler.add(request)
    retrieval = flowing(h, source, 9)
    assert retrieval.by_layer
    plan = h.step()
    assert plan is not None
    assert plan.feed is retrieval.feed
    assert plan.admitted[0].num_computed_tokens == 16
    assert plan.total_tokens == 2
    h.finish_all()
    h.check_outputs(request)
    assert h.started[1] == 16
    assert retrieval.is_ended
    computed = sum(each.total_tokens for each in h.runner.plans[-request.sampling.max_tokens :])
    assert computed == 2 + request.sampling.max_tokens - 1


@pytest.mark.parametrize("num_good", [0, 1, 3])
def test_what_was_computed_from_blocks_that_did_not_come_counts_for_nothing(num_good: int) -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    request = make_request(1, prompt)
    h.scheduler.add(request)
    retrieval = flowing(h, source, num_good)
    assert h.step() is not None
    assert h.tokens[1] == []
    assert h.cache.count_cached(request_keys(h, prompt)) == num_good, "nothing of the step is in the prefix cache"
    assert not source.open, "a store that lies is not asked again"
    h.finish_all()
    h.check_outputs(request)
    assert retrieval.is_ended
    assert h.cache.num_free_blocks == h.cache.num_blocks


def request_keys(h: SchedulerHarness, prompt: list[int]) -> list[bytes]:
    return list(block_keys(make_request(1, prompt).namespace_key, prompt, h.cache.block_size))


def test_with_others_to_compute_for_the_load_goes_on_beside_them() -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    h.scheduler.add(make_request(1, prompt))
    retrieval = flowing(h, source, 9)
    other = make_request(2, [500, 501, 502], sampling=exactly(3))
    h.scheduler.add(other)
    for each in source.open:
        each.is_settled = each.is_settled or each is not retrieval
    plan = h.step()
    assert plan is not None
    assert plan.feed is None
    assert not retrieval.is_ended


def test_who_is_cancelled_before_it_begins_leaves_nothing() -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    h.scheduler.add(make_request(1, prompt))
    retrieval = flowing(h, source, 9)
    assert h.scheduler.cancel(1)
    assert retrieval.is_ended
    assert h.step() is None
    assert h.cache.num_free_blocks == h.cache.num_blocks


def test_several_completions_wait_for_their_blocks() -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    h.scheduler.add(make_request(1, prompt, sampling=exactly(3, n=2)))
    source.open[0].is_settled = True
    assert h.step() is None
    assert not source.open[0].by_layer


@dataclass
class FeedingInbox:
    """Does what a store's threads do, whenever the engine waits for them."""

    source: FakeBlockSource
    num_good: int

    def receive(self, *, wait: bool) -> list[Command]:
        return []

    def wait(self, timeout_s: float) -> None:
        [retrieval] = self.source.open
        if retrieval.block_ids:
            retrieval.feed = Feed(self.source, retrieval, self.num_good)
        else:
            retrieval.is_settled = True


@pytest.mark.parametrize("num_good", [2, 9])
def test_the_engine_plans_nothing_before_it_is_known_whether_a_step_counts(num_good: int) -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    request = make_request(1, prompt, sampling=exactly(4))
    h.runner.max_pending_steps = 2
    frames: list[StepFrame] = []
    engine = Engine(h.scheduler, h.cache, h.runner, FeedingInbox(source, num_good), frames.append)
    engine.handle(Add(request))
    for _ in range(30):
        if h.scheduler.has_work:
            engine.turn()
    assert not h.scheduler.has_work
    tokens = [token for frame in frames for token in memoryview(frame.token_ids).cast("i")]
    assert tokens == expected_output(request, 0, VOCAB, EOS)
    assert [plan.feed is not None for plan in h.runner.plans].count(True) == 1
    assert sum(len(frame.finished) for frame in frames) == 1


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 30), st.integers(0, 8), st.booleans()), min_size=1, max_size=6),
    st.integers(0, 1),
)
def test_output_never_depends_on_feeds(cases: list[tuple[int, int, bool]], steps_ahead: int) -> None:
    h, source = with_source(num_blocks=40)
    h.steps_ahead = steps_ahead
    prompt = saved_prompt(h, source, 30)
    for stream_id, (length, num_good, together) in enumerate(cases, 200):
        request = make_request(stream_id, [*prompt[:length], stream_id], sampling=exactly(2))
        h.scheduler.add(request)
        if together:
            h.scheduler.add(make_request(stream_id + 1000, [stream_id], sampling=exactly(2)))
        for _ in range(60):
            for each in source.open:
                if not each.block_ids:
                    each.is_settled = True
                elif each.by_layer and each.feed is None:
                    each.feed = Feed(source, each, num_good)
                elif not each.by_layer:
                    source.write(each, 100)
                    each.is_settled = True
            h.step()
            if not h.scheduler.has_work and not h.pending:
                break
        assert not h.scheduler.has_work
        h.check_outputs(request)
        h.cache.clear()
        h.cache.take_events()
    assert not source.open
    assert h.cache.num_free_blocks == h.cache.num_blocks

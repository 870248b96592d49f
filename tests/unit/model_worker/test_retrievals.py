"""Sequences that wait for blocks from elsewhere: nothing is lost, nobody starves, and output does not depend on it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model_worker.kv_cache import Stored
from shoal.model_worker.request import Request
from support.engine_requests import exactly, make_request
from support.stored_prompts import save, saved_prompt, with_source


def test_what_is_loaded_is_not_computed_and_counts_as_cached() -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    request = make_request(1, prompt)
    h.scheduler.add(request)
    assert h.step() is None, "it waits for an answer"
    source.open[0].is_settled = True
    assert h.step() is None, "it waits for its blocks"
    source.write(source.open[0], 9)
    source.open[0].is_settled = True
    plan = h.step()
    assert plan is not None
    assert plan.admitted[0].num_computed_tokens == 16
    assert plan.num_tokens.tolist() == [2]
    h.finish_all()
    h.check_outputs(request)
    assert h.started[1] == 16
    [stored, *_] = h.cache.take_events()
    assert isinstance(stored, Stored)
    assert len(stored.keys) == 4, "blocks that were loaded can be found"


def test_a_load_that_stops_early_keeps_what_came() -> None:
    h, source = with_source()
    request = make_request(1, saved_prompt(h, source))
    h.scheduler.add(request)
    source.open[0].is_settled = True
    h.step()
    source.write(source.open[0], 2)
    h.now_s = 6.0
    plan = h.step()
    assert plan is not None
    assert plan.admitted[0].num_computed_tokens == 8
    h.finish_all()
    h.check_outputs(request)


def test_without_an_answer_in_time_the_prompt_is_computed() -> None:
    h, source = with_source()
    request = make_request(1, saved_prompt(h, source))
    h.scheduler.add(request)
    assert h.step() is None
    assert h.scheduler.waiting_until_s == 5.0
    h.now_s = 5.0
    assert h.step() is not None
    assert not source.open
    h.finish_all()
    h.check_outputs(request)
    assert h.started[1] == 0


def test_others_go_on_beside_a_load() -> None:
    h, source = with_source()
    prompt = saved_prompt(h, source)
    other = make_request(2, range(40, 46), sampling=exactly(4))
    h.scheduler.add(make_request(1, prompt))
    source.open[0].is_settled = True
    h.scheduler.add(other)
    source.open[1].is_settled = True
    for _ in range(4):
        assert h.step() is not None
    h.check_outputs(other)
    assert 1 not in h.started


@pytest.mark.parametrize("stage", ["asked", "answered", "loading", "loaded"])
def test_a_cancelled_request_gives_everything_back(stage: str) -> None:
    h, source = with_source()
    h.scheduler.add(make_request(1, saved_prompt(h, source)))
    if stage != "asked":
        source.open[0].is_settled = True
    if stage in ("loading", "loaded"):
        h.step()
        source.write(source.open[0], 2)
        source.open[0].is_settled = stage == "loaded"
    h.scheduler.cancel(1)
    assert not source.open
    assert h.scheduler.schedule() is None
    assert h.cache.num_free_blocks == h.cache.num_blocks
    assert not h.scheduler.has_work


KINDS = ("add", "add", "cancel", "settle", "write", "wait", "step", "serve", "serve", "serve", "save")


class Action(NamedTuple):
    """Something that happens between steps; the numbers mean something else to each kind."""

    kind: str
    first: int
    second: int
    third: int


ACTIONS = st.builds(Action, st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 28), st.integers(0, 2))


class Story:
    """A harness and a source to which actions happen."""

    def __init__(self, num_blocks: int, steps_ahead: int) -> None:
        self.h, self.source = with_source(
            num_blocks=num_blocks, max_num_seqs=3, max_model_len=36, steps_ahead=steps_ahead
        )
        for start in range(3):
            self.h.scheduler.add(make_request(1000 + start, [start, *range(28)]))
            self.h.finish_all()
            save(self.h, self.source)
        self.h.cache.clear()
        self.requests: dict[int, Request] = {}
        self.num_added = 0

    def play(self, action: Action) -> None:
        h, source = self.h, self.source
        kind, first, second, third = action
        retrieval = source.open[first] if first < len(source.open) else None
        if kind == "add":
            self.add(first, second, third)
        elif kind == "cancel":
            if h.scheduler.cancel(8 * second):
                del self.requests[8 * second]
        elif kind == "wait":
            h.now_s += second / 5
        elif kind == "save":
            save(h, source)
        elif kind == "settle" and retrieval is not None:
            retrieval.is_settled = True
        elif kind == "write" and retrieval is not None:
            source.write(retrieval, third)
        elif kind == "serve":
            for retrieval in source.open:
                source.write(retrieval, second)
                retrieval.is_settled |= retrieval.num_loaded == len(retrieval.block_ids)
            h.step()
        else:
            h.step()

    def add(self, start: int, length: int, priority: int) -> None:
        self.num_added += 1
        stream_id = 8 * self.num_added
        sampling = exactly(1 + (start + length) % 5, n=1 + (start == 5))
        prompt = [start // 2, *range(length)]
        arrival_s = self.h.now_s
        request = make_request(stream_id, prompt, priority=priority, arrival_s=arrival_s, sampling=sampling)
        self.h.scheduler.add(request)
        self.requests[stream_id] = request


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, min_size=15, max_size=60), st.integers(10, 24), st.integers(0, 1))
def test_whatever_the_source_does_outputs_are_right_and_nothing_leaks(
    actions: list[Action], num_blocks: int, steps_ahead: int
) -> None:
    story = Story(num_blocks, steps_ahead)
    for action in actions:
        story.play(action)
    story.h.finish_all()
    assert not story.source.open
    for request in story.requests.values():
        story.h.check_outputs(request)

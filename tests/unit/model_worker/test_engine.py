from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest

from shoal.model_worker.channel import ChannelClosed
from shoal.model_worker.engine import Engine
from shoal.model_worker.kv_cache import KVCacheManager, Stored
from shoal.model_worker.messages import Add, Cancel, Command, StepFrame, Stop
from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import FcfsPolicy, Scheduler, SchedulerConfig
from shoal.model_worker.step import EndedStep, StepPlan, StepResult
from support.engine_requests import make_request
from support.history_runner import HistoryRunner, expected_output

VOCAB = 1000


class ScriptedInbox:
    """Hands out one batch of commands a turn; closed when the script is over and the engine would have to wait."""

    def __init__(self, script: Iterable[list[Command]]) -> None:
        self._script = list(script)
        self.waits: list[bool] = []

    def receive(self, *, wait: bool) -> list[Command]:
        self.waits.append(wait)
        if self._script:
            return self._script.pop(0)
        if wait:
            raise ChannelClosed
        return []

    def wait(self, timeout_s: float) -> None:
        raise AssertionError("nothing but a KV store is waited for")


def make_engine(
    script: Iterable[list[Command]],
    *,
    max_pending_steps: int = 1,
    eos: frozenset[int] = frozenset(),
    runner_class: type[HistoryRunner] = HistoryRunner,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Engine, ScriptedInbox, list[StepFrame]]:
    cache = KVCacheManager(32, 4)
    config = SchedulerConfig(
        max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, max_queued_requests=10, max_queued_tokens=1000
    )
    scheduler = Scheduler(config, cache, FcfsPolicy(), eos_token_ids=eos)
    runner = runner_class(num_blocks=32, block_size=4, max_num_seqs=4, vocab_size=VOCAB)
    runner.max_pending_steps = max(runner.max_pending_steps, max_pending_steps)
    frames: list[StepFrame] = []
    inbox = ScriptedInbox(script)
    return Engine(scheduler, cache, runner, inbox, frames.append, clock=clock), inbox, frames


def tokens_of(frames: list[StepFrame]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = defaultdict(list)
    for frame in frames:
        for stream_id, token_id in zip(array("q", frame.stream_ids), array("i", frame.token_ids), strict=True):
            tokens[stream_id].append(token_id)
    return tokens


def request(stream_id: int, max_tokens: int = 5) -> Request:
    return make_request(stream_id, range(stream_id, stream_id + 6), sampling=SamplingParams(max_tokens=max_tokens))


def test_one_frame_a_step_carries_everybodys_tokens() -> None:
    first, second = request(1), request(2)
    engine, _, frames = make_engine([[Add(first), Add(second)]])
    with pytest.raises(ChannelClosed):
        engine.run()
    assert tokens_of(frames) == {
        1: expected_output(first, 0, VOCAB, frozenset()),
        2: expected_output(second, 0, VOCAB, frozenset()),
    }
    assert len(frames) == 5
    assert {finished.stream_id for finished in frames[-1].finished} == {1, 2}
    assert frames[0].started == [(1, 0), (2, 0)]
    assert sum(isinstance(event, Stored) for frame in frames for event in frame.kv_events) >= 2
    assert frames[-1].stats.num_used_blocks == 0


def test_it_waits_for_commands_only_when_it_has_nothing_to_do() -> None:
    engine, inbox, _ = make_engine([[Add(request(1))]])
    with pytest.raises(ChannelClosed):
        engine.run()
    assert inbox.waits == [True, False, False, False, False, True]


def test_a_cancelled_request_frees_its_blocks_before_the_next_step() -> None:
    engine, _, frames = make_engine([[Add(request(1, 50))], [], [Cancel(1)]])
    with pytest.raises(ChannelClosed):
        engine.run()
    assert len(tokens_of(frames)[1]) == 2
    assert frames[-1].stats.num_used_blocks == 0
    assert frames[-1].num_step_tokens == 0


def test_a_refusal_is_reported_and_the_rest_goes_on() -> None:
    good = request(1)
    bad = make_request(2, [1], sampling=SamplingParams(max_tokens=500))
    engine, _, frames = make_engine([[Add(bad), Add(good)]])
    with pytest.raises(ChannelClosed):
        engine.run()
    [(stream_id, failure)] = frames[0].failed
    assert (stream_id, failure.reason, failure.field) == (2, "INVALID_ARGUMENT", "sampling.max_tokens")
    assert len(tokens_of(frames)[1]) == 5


def test_stop_ends_the_loop_at_once() -> None:
    engine, _, frames = make_engine([[Add(request(1, 50))], [Stop()]])
    engine.run()
    assert len(frames) == 1


def test_steps_that_run_ahead_say_the_same_and_leave_nothing_behind() -> None:
    plain, stopped = request(1, 9), request(2, 9)
    forked = make_request(4, range(6), sampling=SamplingParams(max_tokens=4, n=2))
    eos = frozenset({expected_output(stopped, 0, VOCAB, frozenset())[3]})
    script: list[list[Command]] = [[Add(plain)], [], [Add(stopped)], [], [Add(forked)]]
    engine, _, frames = make_engine(script, max_pending_steps=2, eos=eos)
    with pytest.raises(ChannelClosed):
        engine.run()
    assert tokens_of(frames) == {
        1: expected_output(plain, 0, VOCAB, eos),
        2: expected_output(stopped, 0, VOCAB, eos),
        4: expected_output(forked, 0, VOCAB, eos),
        5: expected_output(forked, 1, VOCAB, eos),
    }
    assert len(tokens_of(frames)[2]) == 4
    assert frames[-1].stats.num_used_blocks == 0


def test_a_step_is_submitted_before_the_result_of_the_one_before_is_taken() -> None:
    submitted: list[int] = []
    frames_at: list[int] = []

    class Watched(HistoryRunner):
        max_pending_steps = 2

        def execute(self, plan: StepPlan) -> StepResult:
            submitted.append(plan.total_tokens)
            frames_at.append(len(frames))
            return super().execute(plan)

    engine, _, frames = make_engine([[Add(request(1, 5))]], runner_class=Watched)
    with pytest.raises(ChannelClosed):
        engine.run()
    assert submitted == [6, 1, 1, 1, 1]
    assert frames_at == [0, 0, 1, 2, 3]


def test_a_step_whose_submission_takes_long_is_not_timed_from_its_end() -> None:
    now_s = [0.0]

    class SlowToSubmit(HistoryRunner):
        def submit(self, plan: StepPlan) -> EndedStep:
            now_s[0] += plan.total_tokens
            return super().submit(plan)

    prompt = make_request(1, range(40), sampling=SamplingParams(max_tokens=2))  # three steps of at most 16 tokens
    engine, _, frames = make_engine(
        [[Add(prompt)]], max_pending_steps=2, runner_class=SlowToSubmit, clock=lambda: now_s[0]
    )
    with pytest.raises(ChannelClosed):
        engine.run()
    timed = [(frame.num_step_tokens, frame.step_s) for frame in frames if frame.num_step_tokens]
    assert [num_tokens for num_tokens, _ in timed][:3] == [16, 16, 8]
    assert timed[0] == (16, 32.0), "the next step was submitted before the first was done"
    assert sum(step_s for _, step_s in timed) == now_s[0]

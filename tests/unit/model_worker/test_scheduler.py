from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model_worker.failure import Failure, RequestRefused
from shoal.model_worker.kv_cache import KVCacheManager
from shoal.model_worker.request import FinishReason, Request
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import FcfsPolicy, Finished, Policy, PriorityPolicy, Scheduler, SchedulerConfig
from shoal.model_worker.scheduler.limits import Rate
from shoal.model_worker.step import StepPlan
from support.engine_requests import make_request
from support.history_runner import HistoryRunner, expected_output

VOCAB = 50
EOS = frozenset({7})


@dataclass
class Harness:
    """A scheduler over the checking runner, with a clock that the test moves."""

    num_blocks: int = 64
    block_size: int = 4
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 16
    max_model_len: int = 64
    max_queued_requests: int = 1000
    max_queued_tokens: int = 100_000
    policy: Policy = field(default_factory=FcfsPolicy)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.cache = KVCacheManager(self.num_blocks, self.block_size)
        config = SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            max_queued_requests=self.max_queued_requests,
            max_queued_tokens=self.max_queued_tokens,
        )
        self.scheduler = Scheduler(config, self.cache, self.policy, eos_token_ids=EOS, clock=lambda: self.now_s)
        self.runner = HistoryRunner(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            vocab_size=VOCAB,
        )
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.finished: dict[int, Finished] = {}
        self.failed: dict[int, Failure] = {}
        self.started: dict[int, int] = {}
        self.logprobs: dict[int, list[int]] = defaultdict(list)
        self.prompt_logprobs: dict[int, list[int]] = {}

    def step(self) -> StepPlan | None:
        plan = self.scheduler.schedule()
        if plan is not None:
            assert plan.total_tokens <= self.max_num_batched_tokens
            self.scheduler.update(plan, self.runner.execute(plan))
        output = self.scheduler.take_output()
        for stream_id, token_id in zip(output.stream_ids.tolist(), output.token_ids.tolist(), strict=True):
            assert stream_id not in self.finished
            self.tokens[stream_id].append(token_id)
        self.finished |= {finished.stream_id: finished for finished in output.finished}
        self.failed |= dict(output.failed)
        for stream_id, num_cached in output.started:
            assert stream_id not in self.started
            self.started[stream_id] = num_cached
        for stream_id, entry in output.logprobs:
            self.logprobs[stream_id].append(entry.token_id)
        for stream_id, entries in output.prompt_logprobs:
            assert stream_id not in self.prompt_logprobs
            self.prompt_logprobs[stream_id] = [entry.token_id for entry in entries]
        return plan

    def finish_all(self, max_steps: int = 5000) -> int:
        steps = 0
        while self.scheduler.has_work:
            assert self.step() is not None, "there is work, but nothing to compute"
            steps += 1
            assert steps < max_steps, "somebody starves"
        assert self.cache.num_free_blocks == self.cache.num_blocks
        assert self.scheduler.stats.num_running == self.scheduler.stats.num_waiting == 0
        return steps

    def check_outputs(self, request: Request) -> None:
        for choice in range(request.sampling.n):
            expected = expected_output(request, choice, VOCAB, EOS)
            stream_id = request.stream_id + choice
            assert [*request.resume_token_ids, *self.tokens[stream_id]] == expected
            reason = self.finished[stream_id].reason
            assert reason == request.finish_reason(len(expected), expected[-1], EOS)
            assert self.finished[stream_id].stop_token_id == (expected[-1] if reason == FinishReason.STOP else None)


def greedy(max_tokens: int, **others: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **others)  # type: ignore[arg-type]


def test_a_prompt_is_computed_in_chunks_beside_decoding() -> None:
    h = Harness(max_num_batched_tokens=8)
    first, long = make_request(1, range(3), sampling=greedy(10)), make_request(2, range(100, 120), sampling=greedy(3))
    h.scheduler.add(first)
    h.step()
    h.scheduler.add(long)
    plans = [plan for _ in range(4) if (plan := h.step()) is not None]
    assert [plan.num_tokens.tolist() for plan in plans] == [[1, 7], [1, 7], [1, 6], [1, 1]]
    assert [plan.samples.tolist() for plan in plans] == [[True, False], [True, False], [True, True], [True, True]]
    h.finish_all()
    h.check_outputs(first)
    h.check_outputs(long)


def test_a_step_in_which_nothing_changes_reuses_the_arrays_of_the_one_before() -> None:
    h = Harness(block_size=16)
    for stream_id in (1, 2, 3):
        h.scheduler.add(make_request(stream_id, [stream_id], sampling=greedy(12)))
    h.step()
    first, second = h.step(), h.step()
    assert first is not None
    assert second is not None
    assert second.slots is first.slots
    assert not any((second.assigned, second.admitted, second.released))


def test_the_second_request_hits_the_firsts_blocks_but_computes_its_last_token() -> None:
    h = Harness()
    prompt = list(range(16))
    first, second = make_request(1, prompt), make_request(2, prompt)
    h.scheduler.add(first)
    h.finish_all()
    h.scheduler.add(second)
    plan = h.step()
    assert plan is not None
    assert plan.admitted[0].num_computed_tokens == 12
    h.finish_all()
    h.check_outputs(second)
    assert h.started == {1: 0, 2: 12}
    assert h.scheduler.stats.prefix_query_tokens == 32
    assert h.scheduler.stats.prefix_hit_tokens == 12


def test_tenants_do_not_share_blocks() -> None:
    h = Harness()
    h.scheduler.add(make_request(1, range(16), tenant=b"a"))
    h.finish_all()
    h.scheduler.add(make_request(2, range(16), tenant=b"b"))
    h.finish_all()
    assert h.started[2] == 0


def test_prompt_logprobs_turn_the_prefix_hit_off_and_come_complete_and_once() -> None:
    h = Harness(max_num_batched_tokens=5)
    prompt = list(range(20, 36))
    h.scheduler.add(make_request(1, prompt))
    h.finish_all()
    h.scheduler.add(make_request(2, prompt, sampling=greedy(3, prompt_logprobs=0, logprobs=0)))
    h.finish_all()
    assert h.started[2] == 0
    assert h.prompt_logprobs == {2: prompt[1:]}
    assert h.logprobs[2] == h.tokens[2]


def test_n_completions_share_the_prompt_and_part_at_the_first_token() -> None:
    h = Harness(max_num_seqs=4)
    request = make_request(1, range(10), sampling=greedy(5, n=3))
    h.scheduler.add(request)
    plan = h.step()
    assert plan is not None
    assert [(fork.target, fork.choice) for fork in plan.forks] == [(1, 1), (2, 2)]
    assert h.cache.num_blocks - h.cache.num_free_blocks == 3
    plan = h.step()
    assert plan is not None
    assert len(plan.block_copies) == 2  # the third writer owns the block by then
    h.finish_all()
    h.check_outputs(request)


def test_n_waits_until_all_its_slots_are_free() -> None:
    h = Harness(max_num_seqs=2)
    h.scheduler.add(make_request(1, [1], sampling=greedy(3)))
    h.step()
    h.scheduler.add(make_request(2, [2], sampling=greedy(2, n=2)))
    h.step()
    assert 2 not in h.started
    h.finish_all()
    assert set(h.finished) == {1, 2, 3}


def test_resumed_tokens_count_as_output() -> None:
    whole = make_request(1, range(5), sampling=SamplingParams(max_tokens=12, stop_token_ids=(3,), min_tokens=6))
    output = expected_output(whole, 0, VOCAB, EOS)
    for cut in range(1, len(output)):
        h = Harness()
        resumed = make_request(1, range(5), sampling=whole.sampling, resume=output[:cut])
        h.scheduler.add(resumed)
        plan = h.step()
        assert plan is not None
        assert plan.admitted[0].num_prompt_tokens == 5
        h.finish_all()
        h.check_outputs(resumed)


def test_preemption_recomputes_the_latest_and_changes_no_output() -> None:
    h = Harness(num_blocks=6, block_size=2, max_num_seqs=3)
    requests = [make_request(i, [i, i + 10], sampling=greedy(8)) for i in (1, 2, 3)]
    for request in requests:
        h.scheduler.add(request)
    h.finish_all()
    assert h.scheduler.stats.num_preemptions > 0
    for request in requests:
        h.check_outputs(request)
    assert list(h.finished) == [1, 2, 3]


def test_a_more_urgent_request_takes_the_place_of_the_least_urgent() -> None:
    h = Harness(max_num_seqs=2, policy=PriorityPolicy(aging_s=30))
    slow = [make_request(i, [i], priority=i, sampling=greedy(20), arrival_s=0) for i in (1, 2)]
    for request in slow:
        h.scheduler.add(request)
    h.step()
    urgent = make_request(9, [9], priority=0, sampling=greedy(3), arrival_s=1)
    h.scheduler.add(urgent)
    plan = h.step()
    assert plan is not None
    assert plan.released == (1,)
    assert plan.admitted[0].slot == 1
    h.finish_all()
    assert list(h.finished) == [9, 1, 2]
    for request in [*slow, urgent]:
        h.check_outputs(request)


def test_what_was_planned_for_a_victim_of_the_same_step_is_dropped() -> None:
    h = Harness(num_blocks=10, max_num_batched_tokens=8, policy=PriorityPolicy(aging_s=30))
    equal = make_request(1, range(20), sampling=greedy(4))  # holds 5 blocks, and 6 in the end
    h.scheduler.add(equal)
    for _ in range(3):
        h.step()
    victim = make_request(2, range(30, 40), priority=5, sampling=greedy(4))
    h.scheduler.add(victim)
    h.step()
    urgent = make_request(3, range(50, 80), sampling=greedy(4))  # needs 8 blocks
    h.scheduler.add(urgent)
    plan = h.step()  # the victim's last three tokens fit the budget, but it must make room, in vain so far
    assert plan is not None
    assert plan.slots.tolist() == [0]
    assert plan.released == (1,)
    h.finish_all()
    for request in (equal, victim, urgent):
        h.check_outputs(request)


def test_waiting_outweighs_priority_in_the_end() -> None:
    h = Harness(max_num_seqs=1, policy=PriorityPolicy(aging_s=10))
    h.scheduler.add(make_request(1, [1], priority=0, sampling=greedy(4)))
    h.step()
    h.scheduler.add(make_request(2, [2], priority=1, arrival_s=0, sampling=greedy(1)))
    for i, arrival_s in enumerate((5.0, 9.0, 11.0, 15.0), 3):
        h.scheduler.add(make_request(i, [i], priority=0, arrival_s=arrival_s, sampling=greedy(1)))
    h.finish_all()
    assert list(h.finished) == [1, 3, 4, 2, 5, 6]


def test_a_deadline_ends_a_waiting_and_a_running_request() -> None:
    h = Harness(max_num_seqs=1)
    h.scheduler.add(make_request(1, [1], sampling=greedy(50), deadline_s=5))
    h.scheduler.add(make_request(2, [2], sampling=greedy(50), deadline_s=3))
    h.scheduler.add(make_request(3, [3], sampling=greedy(2)))
    h.step()
    h.now_s = 3
    h.step()
    assert set(h.failed) == {2}
    assert "in the queue" in h.failed[2].message
    h.now_s = 5
    plan = h.step()
    assert plan is not None
    assert plan.released == (0,)
    assert h.failed[1].reason == "DEADLINE_EXCEEDED"
    h.finish_all()
    assert set(h.finished) == {3}


def test_cancel_frees_blocks_at_once() -> None:
    h = Harness()
    h.scheduler.add(make_request(1, range(30), sampling=greedy(5, n=2)))
    h.step()
    assert h.cache.num_free_blocks < h.cache.num_blocks
    assert h.scheduler.cancel(1)
    assert not h.scheduler.cancel(1)
    assert h.cache.num_free_blocks == h.cache.num_blocks
    assert not h.scheduler.has_work
    h.scheduler.add(make_request(5, range(3), sampling=greedy(1, n=4)))
    h.finish_all()


def test_a_full_queue_refuses_with_the_time_it_needs_to_drain() -> None:
    h = Harness(max_num_seqs=1, max_queued_requests=2)
    for stream_id in range(1, 5):
        h.scheduler.add(make_request(stream_id, range(8), sampling=greedy(2)))
        h.now_s += 1
        h.step()
        if stream_id == 3:
            break
    h.scheduler.add(make_request(10, range(8), sampling=greedy(20)))
    while h.scheduler.stats.num_waiting < 2:
        h.scheduler.add(make_request(11, range(8), sampling=greedy(20)))
    with pytest.raises(RequestRefused, match="2 requests with 16 tokens") as error:
        h.scheduler.add(make_request(12, range(8)))
    assert error.value.failure.reason == "RESOURCE_EXHAUSTED"
    assert 0.1 <= error.value.failure.retry_after_s <= 60
    h.finish_all()


def test_too_many_queued_tokens_are_refused_but_one_large_request_may_wait_alone() -> None:
    h = Harness(max_num_seqs=1, max_queued_tokens=10)
    h.scheduler.add(make_request(1, range(3), sampling=greedy(9)))
    h.step()
    h.scheduler.add(make_request(2, range(20)))
    with pytest.raises(RequestRefused, match="queue is full"):
        h.scheduler.add(make_request(3, range(1)))
    h.finish_all()


@pytest.mark.parametrize(
    ("request_", "field", "numbers"),
    [
        (make_request(1, []), "token_ids", "empty"),
        (make_request(1, range(60), sampling=greedy(5)), "sampling.max_tokens", "60 prompt tokens"),
        (make_request(1, range(40), sampling=greedy(10)), "sampling.max_tokens", "need 13 KV blocks of 4 tokens"),
        (make_request(1, [1], sampling=greedy(1, n=5)), "sampling.n", "5 is more than the 4"),
        (make_request(1, [1], sampling=greedy(4, n=2), resume=[1]), "resume_token_ids", "n = 2"),
        (make_request(1, [1], sampling=greedy(2), resume=[1, 2]), "resume_token_ids", "max_tokens = 2"),
    ],
)
def test_what_can_never_run_is_refused_with_numbers(request_: Request, field: str, numbers: str) -> None:
    h = Harness(num_blocks=12)
    with pytest.raises(RequestRefused, match=numbers) as error:
        h.scheduler.add(request_)
    assert error.value.failure.field == field
    assert not h.scheduler.has_work


def test_contradicting_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="below max_num_seqs"):
        Harness(max_num_seqs=20, max_num_batched_tokens=19)
    with pytest.raises(ValueError, match="max_queued_requests is 0"):
        Harness(max_queued_requests=0)


def test_plans_cannot_be_changed_under_the_schedulers_feet() -> None:
    h = Harness()
    h.scheduler.add(make_request(1, [1]))
    h.step()
    plan = h.step()
    assert plan is not None
    with pytest.raises(ValueError, match="read-only"):
        plan.slots[0] = np.int32(1)


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 14),
    min_tokens=st.integers(0, 1),
    stop_token_ids=st.sampled_from([(), (3,), (3, 9, 11)]),
    ignore_eos=st.booleans(),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    prompt_logprobs=st.sampled_from([None, None, None, 0]),
    logprobs=st.sampled_from([None, 0]),
)


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[int, Request]]:
    """(arrival step, request); prompts over two tokens, so that they share prefixes."""
    return [
        (
            draw(st.integers(0, 12)),
            make_request(
                10 * i,
                draw(st.lists(st.integers(0, 1), min_size=1, max_size=18)),
                priority=draw(st.integers(-2, 2)),
                seed=draw(st.integers(0, 3)),
                sampling=draw(SAMPLING),
                arrival_s=float(i),
            ),
        )
        for i in range(1, draw(st.integers(2, 11)))
    ]


@settings(max_examples=250, deadline=None)
@given(
    workload=workloads(),
    num_blocks=st.integers(11, 30),
    block_size=st.sampled_from([3, 4]),
    max_num_seqs=st.integers(3, 6),
    extra_tokens=st.integers(0, 10),
    policy=st.sampled_from([FcfsPolicy(), PriorityPolicy(aging_s=2), PriorityPolicy(aging_s=1000)]),
    cancelled=st.sets(st.integers(1, 10), max_size=2),
    cancel_step=st.integers(0, 12),
)
def test_everyone_finishes_with_the_output_of_a_lonely_run(
    workload: list[tuple[int, Request]],
    num_blocks: int,
    block_size: int,
    max_num_seqs: int,
    extra_tokens: int,
    policy: Policy,
    cancelled: set[int],
    cancel_step: int,
) -> None:
    h = Harness(num_blocks, block_size, max_num_seqs, max_num_seqs + extra_tokens, policy=policy)
    for step in range(13):
        for arrival, request in workload:
            if arrival == step:
                h.scheduler.add(request)
        if step == cancel_step:
            for i in cancelled:
                h.scheduler.cancel(10 * i)
        h.step()
    h.finish_all()
    for arrival, request in workload:
        if request.stream_id // 10 not in cancelled or arrival > cancel_step:
            h.check_outputs(request)
            if request.sampling.prompt_logprobs is not None:
                assert h.prompt_logprobs[request.stream_id] == list(request.prompt_token_ids[1:])
            if request.sampling.logprobs is not None:
                assert h.logprobs[request.stream_id] == h.tokens[request.stream_id]


def test_the_drain_rate_is_exact_from_the_first_event_on_and_forgets() -> None:
    rate = Rate(0.0, window_s=10)
    assert rate.per_second(0.0) == 0
    for second in range(1, 4):
        rate.add(50, second)
    assert rate.per_second(3.0) == pytest.approx(50, rel=0.25)
    assert rate.per_second(100.0) < 0.1

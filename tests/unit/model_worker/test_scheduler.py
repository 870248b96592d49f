"""What each step computes, and that a request's output does not depend on who runs beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams
from shoal.model_worker.scheduler import FcfsPolicy, Policy, PriorityPolicy
from support.engine_requests import exactly, make_request
from support.history_runner import expected_output
from support.scheduler_harness import EOS, VOCAB, SchedulerHarness


def test_a_prompt_is_computed_in_chunks_beside_decoding() -> None:
    h = SchedulerHarness(max_num_batched_tokens=8)
    first, long = make_request(1, range(3), sampling=exactly(10)), make_request(2, range(100, 120), sampling=exactly(3))
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
    h = SchedulerHarness(block_size=16)
    for stream_id in (1, 2, 3):
        h.scheduler.add(make_request(stream_id, [stream_id], sampling=exactly(12)))
    h.step()
    first, second = h.step(), h.step()
    assert first is not None
    assert second is not None
    assert second.slots is first.slots
    assert not any((second.assigned, second.admitted, second.released))


def test_the_second_request_hits_the_firsts_blocks_but_computes_its_last_token() -> None:
    h = SchedulerHarness()
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
    h = SchedulerHarness()
    h.scheduler.add(make_request(1, range(16), tenant=b"a"))
    h.finish_all()
    h.scheduler.add(make_request(2, range(16), tenant=b"b"))
    h.finish_all()
    assert h.started[2] == 0


def test_prompt_logprobs_turn_the_prefix_hit_off_and_come_complete_and_once() -> None:
    h = SchedulerHarness(max_num_batched_tokens=5)
    prompt = list(range(20, 36))
    h.scheduler.add(make_request(1, prompt))
    h.finish_all()
    h.scheduler.add(make_request(2, prompt, sampling=exactly(3, prompt_logprobs=0, logprobs=0)))
    h.finish_all()
    assert h.started[2] == 0
    assert h.prompt_logprobs == {2: prompt[1:]}
    assert h.logprobs[2] == h.tokens[2]


def test_n_completions_share_the_prompt_and_part_at_the_first_token() -> None:
    h = SchedulerHarness(max_num_seqs=4)
    request = make_request(1, range(10), sampling=exactly(5, n=3))
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
    h = SchedulerHarness(max_num_seqs=2)
    h.scheduler.add(make_request(1, [1], sampling=exactly(3)))
    h.step()
    h.scheduler.add(make_request(2, [2], sampling=exactly(2, n=2)))
    h.step()
    assert 2 not in h.started
    h.finish_all()
    assert set(h.finished) == {1, 2, 3}


def test_resumed_tokens_count_as_output() -> None:
    whole = make_request(1, range(5), sampling=SamplingParams(max_tokens=12, stop_token_ids=(3,), min_tokens=6))
    output = expected_output(whole, 0, VOCAB, EOS)
    for cut in range(1, len(output)):
        h = SchedulerHarness()
        resumed = make_request(1, range(5), sampling=whole.sampling, resume=output[:cut])
        h.scheduler.add(resumed)
        plan = h.step()
        assert plan is not None
        assert plan.admitted[0].num_prompt_tokens == 5
        h.finish_all()
        h.check_outputs(resumed)


def test_plans_cannot_be_changed_under_the_schedulers_feet() -> None:
    h = SchedulerHarness()
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
    steps_ahead=st.integers(0, 2),
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
    steps_ahead: int,
) -> None:
    sizes = (num_blocks, block_size, max_num_seqs, max_num_seqs + extra_tokens)
    h = SchedulerHarness(*sizes, policy=policy, steps_ahead=steps_ahead)
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

"""What the scheduler refuses, and what it says then."""

from __future__ import annotations

import pytest

from shoal.model_worker.failure import RequestRefused
from shoal.model_worker.request import Request
from shoal.model_worker.scheduler.limits import Rate
from support.engine_requests import exactly, make_request
from support.scheduler_harness import SchedulerHarness


def test_a_full_queue_refuses_with_the_time_it_needs_to_drain() -> None:
    h = SchedulerHarness(max_num_seqs=1, max_queued_requests=2)
    for stream_id in range(1, 4):
        h.scheduler.add(make_request(stream_id, range(8), sampling=exactly(2)))
        h.now_s += 1
        h.step()
    h.scheduler.add(make_request(10, range(8), sampling=exactly(20)))
    while h.scheduler.stats.num_waiting < 2:
        h.scheduler.add(make_request(11, range(8), sampling=exactly(20)))
    with pytest.raises(RequestRefused, match="2 requests with 16 tokens") as error:
        h.scheduler.add(make_request(12, range(8)))
    assert error.value.failure.reason == "RESOURCE_EXHAUSTED"
    assert 0.1 <= error.value.failure.retry_after_s <= 60
    h.finish_all()


def test_too_many_queued_tokens_are_refused_but_one_large_request_may_wait_alone() -> None:
    h = SchedulerHarness(max_num_seqs=1, max_queued_tokens=10)
    h.scheduler.add(make_request(1, range(3), sampling=exactly(9)))
    h.step()
    h.scheduler.add(make_request(2, range(20)))
    with pytest.raises(RequestRefused, match="queue is full"):
        h.scheduler.add(make_request(3, range(1)))
    h.finish_all()


@pytest.mark.parametrize(
    ("request_", "field", "numbers"),
    [
        (make_request(1, []), "token_ids", "empty"),
        (make_request(1, range(60), sampling=exactly(5)), "sampling.max_tokens", "60 prompt tokens"),
        (make_request(1, range(40), sampling=exactly(10)), "sampling.max_tokens", "need 13 KV blocks of 4 tokens"),
        (make_request(1, [1], sampling=exactly(1, n=5)), "sampling.n", "5 is more than the 4"),
        (make_request(1, [1], sampling=exactly(4, n=2), resume=[1]), "resume_token_ids", "n = 2"),
        (make_request(1, [1], sampling=exactly(2), resume=[1, 2]), "resume_token_ids", "max_tokens = 2"),
    ],
)
def test_what_can_never_run_is_refused_with_numbers(request_: Request, field: str, numbers: str) -> None:
    h = SchedulerHarness(num_blocks=12)
    with pytest.raises(RequestRefused, match=numbers) as error:
        h.scheduler.add(request_)
    assert error.value.failure.field == field
    assert not h.scheduler.has_work


def test_contradicting_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="below max_num_seqs"):
        SchedulerHarness(max_num_seqs=20, max_num_batched_tokens=19)
    with pytest.raises(ValueError, match="max_queued_requests is 0"):
        SchedulerHarness(max_queued_requests=0)


def test_the_drain_rate_is_exact_from_the_first_event_on_and_forgets() -> None:
    rate = Rate(0.0, window_s=10)
    assert rate.per_second(0.0) == 0
    for second in range(1, 4):
        rate.add(50, second)
    assert rate.per_second(3.0) == pytest.approx(50, rel=0.25)
    assert rate.per_second(100.0) < 0.1

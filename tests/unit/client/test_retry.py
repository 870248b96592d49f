from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client import InvalidArgument, ResourceExhausted, RetryPolicy, Unavailable
from shoal.client.retry import PROGRESS_TOKENS, Attempts, Resumes, RetryBudget


def attempts(policy: RetryPolicy, budget: RetryBudget | None = None, deadline_s: float = 100.0) -> Attempts:
    return Attempts(policy, budget or RetryBudget(policy), deadline_s, clock=lambda: 0.0, random=lambda: 0.5)


def failure(retry_after_s: float | None = None) -> Unavailable:
    error = Unavailable("away")
    error.retry_after_s = retry_after_s
    return error


def test_backoff_doubles_up_to_its_limit() -> None:
    policy = RetryPolicy(max_attempts=6, initial_backoff_s=1, max_backoff_s=3, budget_tokens=100)
    call = attempts(policy)
    waits = [call.wait_after(failure()) for _ in range(6)]
    assert waits == [1, 2, 3, 3, 3, None]


def test_jitter_spreads_a_wait_on_both_sides() -> None:
    policy = RetryPolicy(initial_backoff_s=1, jitter=0.2)
    lowest = Attempts(policy, RetryBudget(policy), 100, clock=lambda: 0.0, random=lambda: 0.0).wait_after(failure())
    highest = Attempts(policy, RetryBudget(policy), 100, clock=lambda: 0.0, random=lambda: 0.999).wait_after(failure())
    assert lowest == pytest.approx(0.8)
    assert highest == pytest.approx(1.2, abs=1e-3)


def test_retry_info_is_a_lower_bound_that_jitter_never_undercuts() -> None:
    policy = RetryPolicy(jitter=0.2)
    lowest = Attempts(policy, RetryBudget(policy), 100, clock=lambda: 0.0, random=lambda: 0.0)
    assert lowest.wait_after(ResourceExhausted("full", retry_after_s=7)) == 7
    assert attempts(policy).wait_after(failure(7.0)) == pytest.approx(7.7)


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    assert attempts(RetryPolicy(), deadline_s=5).wait_after(failure(6.0)) is None


def test_errors_that_repeating_cannot_help_are_not_retried_and_cost_nothing() -> None:
    policy = RetryPolicy()
    budget = RetryBudget(policy)
    assert attempts(policy, budget).wait_after(InvalidArgument("n", "0")) is None
    assert budget.tokens == policy.budget_tokens


def test_the_budget_stops_retries_of_all_calls_at_half_and_successes_refill_it() -> None:
    policy = RetryPolicy(budget_tokens=4, token_ratio=0.5)
    budget = RetryBudget(policy)
    assert attempts(policy, budget).wait_after(failure()) is not None  # 3 left
    assert attempts(policy, budget).wait_after(failure()) is None  # 2 left: half
    for _ in range(4):
        attempts(policy, budget).succeeded()
    assert budget.tokens == 4
    assert attempts(policy, budget).wait_after(failure()) is not None


@given(st.lists(st.booleans(), max_size=200))
def test_the_bucket_stays_within_its_size_and_allows_only_above_half(outcomes: list[bool]) -> None:
    policy = RetryPolicy(budget_tokens=10, token_ratio=0.3)
    budget = RetryBudget(policy)
    for success in outcomes:
        if success:
            budget.on_success()
        else:
            allowed = budget.on_failure()
            assert allowed == (budget.tokens > 5)
        assert 0 <= budget.tokens <= 10


@pytest.mark.parametrize(
    "bad",
    [{"max_attempts": 0}, {"jitter": 1.0}, {"token_ratio": -1.0}, {"backoff_multiplier": 0.5}, {"budget_tokens": 0}],
)
def test_a_policy_that_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        RetryPolicy(**bad)  # type: ignore[arg-type]


def resumes(policy: RetryPolicy, deadline_s: float = 100.0) -> Resumes:
    return Resumes(policy, deadline_s, clock=lambda: 0.0, random=lambda: 0.5)


def test_a_stream_is_resumed_a_limited_number_of_times_without_progress() -> None:
    stream = resumes(RetryPolicy(max_resumes=3, initial_backoff_s=1))
    assert [stream.wait_after(failure(), (num_tokens, 0)) for num_tokens in (5, 20, 35, 50)] == [1, 2, 4, None]


@pytest.mark.parametrize("progress", [(5 + PROGRESS_TOKENS, 0), (5, 1)])
def test_progress_makes_a_stream_as_good_as_fresh(progress: tuple[int, int]) -> None:
    stream = resumes(RetryPolicy(max_resumes=2, initial_backoff_s=1))
    waits = [stream.wait_after(failure(), (5, 0)) for _ in range(2)]
    waits += [stream.wait_after(failure(), progress) for _ in range(3)]
    assert waits == [1, 2, 1, 2, None]


def test_a_resumed_stream_keeps_its_deadline_and_the_servers_wait() -> None:
    stream = resumes(RetryPolicy(), deadline_s=5)
    assert stream.wait_after(failure(3), (0, 0)) == pytest.approx(3.3)
    assert stream.wait_after(failure(5), (0, 0)) is None


def test_resuming_can_be_turned_off() -> None:
    assert resumes(RetryPolicy(max_resumes=0)).wait_after(failure(), (9, 0)) is None

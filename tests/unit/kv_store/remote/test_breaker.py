"""When another store is called."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shoal.kv_store.remote.breaker import MAX_FAILURES, MAX_OPEN_S, MIN_OPEN_S, Breaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def broken(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(MAX_FAILURES):
        assert breaker.allow()
        breaker.failed("away")
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = broken(Clock())
    assert not breaker.allow()
    assert (breaker.problem, breaker.is_closed) == ("away", False)


def test_a_success_between_them_does_not() -> None:
    breaker = Breaker(Clock())
    for _ in range(3 * MAX_FAILURES):
        breaker.failed("away")
        breaker.succeeded()
    assert breaker.is_closed
    assert breaker.num_failures == 3 * MAX_FAILURES


def test_one_call_tries_and_closes_it() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now_s += MIN_OPEN_S
    assert breaker.allow()
    assert not breaker.allow()
    breaker.succeeded()
    assert breaker.allow()
    assert breaker.problem == ""


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=60))
def test_a_dead_store_is_called_less_and_less(steps: list[float]) -> None:
    clock = Clock()
    breaker = broken(clock)
    called_at_s = [0.0]
    for step in steps:
        clock.now_s += step
        if breaker.allow():
            called_at_s.append(clock.now_s)
            breaker.failed("away")
    gaps = [after - before for before, after in itertools.pairwise(called_at_s)]
    for number, gap in enumerate(gaps):
        assert gap >= min(MIN_OPEN_S * 2**number, MAX_OPEN_S) - 1e-9

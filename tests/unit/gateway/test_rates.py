"""Rates learned from durations, and the backlog that observes them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.routing.backlog import Backlog
from shoal.gateway.routing.forecast import PREFILL_PRIOR, prefill_work
from shoal.gateway.routing.rates import Rates, Work

CPU = (5e-3, 2e-3, 3e-8)
H100 = (25e-3, 20.5e-6, 0.93e-9)


def seconds(rates: tuple[float, float, float], work: Work) -> float:
    return sum(rate * amount for rate, amount in zip(rates, work, strict=True))


def prompts(seed: int) -> random.Random:
    return random.Random(seed)


def some_work(rng: random.Random) -> Work:
    tokens = int(2 ** rng.uniform(4, 16))
    return prefill_work(tokens, rng.choice([0, 512, 8192]))


@pytest.mark.parametrize("actual", [CPU, H100, (1e-3, 1e-6, 1e-11)])
def test_one_answer_is_enough_for_the_scale_and_some_for_the_form(actual: tuple[float, float, float]) -> None:
    rates, rng = Rates(PREFILL_PRIOR), prompts(1)
    first = prefill_work(4000, 0)
    rates.observe("w", first, seconds(actual, first))
    assert rates.seconds("w", first) == pytest.approx(seconds(actual, first))
    for _ in range(300):
        work = some_work(rng)
        rates.observe("w", work, seconds(actual, work) * rng.uniform(0.9, 1.1))
    for work in (prefill_work(100, 0), prefill_work(8000, 0), prefill_work(60_000, 512), prefill_work(500, 8192)):
        assert rates.seconds("w", work) == pytest.approx(seconds(actual, work), rel=0.35)


def test_equal_workers_count_as_equal() -> None:
    rates, rng = Rates(PREFILL_PRIOR), prompts(3)
    for _ in range(60):
        for name in "abcdefgh":
            work = some_work(rng)
            rates.observe(name, work, seconds(H100, work) * rng.uniform(0.7, 1.4))
    factors = [rates.factor(name) for name in "abcdefgh"]
    assert max(factors) / min(factors) < 1.03


@pytest.mark.parametrize("seed", range(20))
def test_few_answers_to_unlike_prompts_do_not_tell_equal_workers_apart(seed: int) -> None:
    rates, rng = Rates(PREFILL_PRIOR), prompts(seed)
    for _ in range(12):
        work = prefill_work(int(2 ** rng.uniform(3, 8)), 0)
        rates.observe(rng.choice("ab"), work, seconds(CPU, work) * rng.uniform(0.9, 1.4))
        cached, uncached = prefill_work(5, 128), prefill_work(133, 0)
        for holder, other in ("ab", "ba"):
            assert rates.seconds(holder, cached) < rates.seconds(other, uncached)


def test_workers_of_two_kinds_are_told_apart() -> None:
    rates, rng = Rates(PREFILL_PRIOR), prompts(2)
    for _ in range(200):
        for name, factor in (("a", 1.0), ("b", 1.0), ("slow", 4.0)):
            work = some_work(rng)
            rates.observe(name, work, factor * seconds(H100, work) * rng.uniform(0.8, 1.25))
    assert rates.factor("slow") / rates.factor("a") == pytest.approx(4.0, rel=0.25)
    assert rates.factor("a") == pytest.approx(rates.factor("b"), rel=0.15)


def test_an_unknown_worker_is_like_the_others_and_a_forgotten_one_is_unknown() -> None:
    rates, work = Rates(PREFILL_PRIOR), prefill_work(1000, 0)
    rates.observe("a", work, 3.0)
    assert rates.seconds("new", work) == pytest.approx(3.0)
    rates.observe("a", work, 300.0)
    before = rates.seconds("a", work)
    rates.forget("a")
    rates.forget("a")
    rates.observe("b", work, before)
    assert rates.seconds("a", work) == pytest.approx(before)


def test_a_stall_does_not_make_a_worker_slow() -> None:
    rates, work = Rates(PREFILL_PRIOR), prefill_work(1000, 0)
    for _ in range(40):
        rates.observe("a", work, 0.1)
    rates.observe("a", work, 3600.0)
    assert rates.seconds("a", work) < 0.3


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(1, 200_000),
            st.integers(0, 200_000),
            st.floats(-1, 1e6, allow_nan=False),
        ),
        max_size=60,
    )
)
def test_no_observation_makes_a_prediction_negative_or_endless(
    observations: list[tuple[str, int, int, float]],
) -> None:
    rates = Rates(PREFILL_PRIOR)
    for worker, tokens, cached, actual_s in observations:
        rates.observe(worker, prefill_work(tokens, cached), actual_s)
        for name in "abcd":
            assert 0 < rates.seconds(name, prefill_work(1, 0)) <= rates.seconds(name, prefill_work(1000, 0)) < 1e12


def test_a_busy_time_is_observed_from_its_first_prompt_to_its_last_answer() -> None:
    backlog = Backlog()
    one, two, three = (prefill_work(tokens, 0) for tokens in (100, 2000, 30))
    first = backlog.add(one, 1.0, 10.0)
    second = backlog.add(two, 2.0, 10.5)
    third = backlog.add(three, 0.5, 10.6)
    assert (len(backlog), backlog.num_tokens) == (3, 2130)
    assert backlog.answer(first, 11.0) is None
    assert backlog.answer(second, 13.0) is None
    work, took_s = backlog.answer(third, 13.001) or (None, 0.0)
    assert work == one.plus(two).plus(three)._replace(steps=2), "two answers in one step"
    assert took_s == pytest.approx(3.001)
    assert backlog.wait_s(20.0) == 0.0
    alone = backlog.add(one, 1.0, 20.0)
    work, took_s = backlog.answer(alone, 20.7) or (None, 0.0)
    assert work == one
    assert took_s == pytest.approx(0.7)


def test_a_worker_that_is_never_idle_is_observed_all_the_same() -> None:
    backlog, work = Backlog(), prefill_work(100, 0)
    numbers = [backlog.add(work, 1.0, 0.0) for _ in range(12)]
    observed = [backlog.answer(number, 1.0 + i) for i, number in enumerate(numbers)]
    assert [i for i, each in enumerate(observed) if each is not None] == [7, 11]
    assert observed[7] == (Work(8, 800, 8 * work.pairs), 8.0)
    assert observed[11] == (Work(4, 400, 4 * work.pairs), 4.0)


def test_what_cannot_be_attributed_teaches_nothing() -> None:
    backlog, work = Backlog(), prefill_work(100, 0)
    first = backlog.add(work, 1.0, 0.0)
    second = backlog.add(work, 1.0, 0.0)
    backlog.withdraw(first, 1.0)
    assert backlog.answer(second, 5.0) is None
    third = backlog.add(work, 1.0, 9.0)
    assert backlog.answer(third, 10.0) == (work, 1.0)


def test_the_wait_shrinks_until_a_prompt_is_late_and_grows_from_then_on() -> None:
    backlog, work = Backlog(), prefill_work(100, 0)
    assert backlog.wait_s(5.0) == 0.0
    first = backlog.add(work, 2.0, 0.0)
    backlog.add(work, 3.0, 1.0)
    assert [backlog.wait_s(t) for t in (1.0, 2.0, 4.0, 12.0)] == [4.0, 3.0, 5.0, 13.0]
    backlog.answer(first, 12.0)
    assert [backlog.wait_s(t) for t in (12.0, 14.0, 15.0, 16.0)] == [3.0, 1.0, 0.0, 1.0]

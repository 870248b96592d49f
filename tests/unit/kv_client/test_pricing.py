"""Load or recompute: by hand, and that no behaviour of a store costs more than is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kv_client.pricing import Action, ComputeTime, Offer, Pricer, TierSpeed, prefill_time, price, price_lookup


def seconds_per_block(seconds: float, growth: float = 0.0) -> ComputeTime:
    return lambda num_blocks: seconds * num_blocks + growth * num_blocks**2


def test_it_loads_what_is_faster_than_computing() -> None:
    decision = price([Offer("memory", 10, 0.1, True)], seconds_per_block(0.02), 0.0, 1.0)
    assert (decision.action, decision.num_blocks) == (Action.LOAD, 10)
    assert decision.saved_s == pytest.approx(0.2)
    assert decision.deadline_s == pytest.approx(0.2)


def test_a_tier_out_of_use_has_to_be_clearly_faster() -> None:
    for load_s, is_loading, action in [
        (0.17, True, Action.LOAD),
        (0.19, True, Action.RECOMPUTE),
        (0.17, False, Action.RECOMPUTE),
        (0.11, False, Action.LOAD),
    ]:
        decision = price([Offer("disk", 10, load_s, is_loading)], seconds_per_block(0.02), 0.0, 1.0)
        assert decision.action is action


def test_it_stops_at_the_tier_that_is_slower_than_computing() -> None:
    offers = [Offer("memory", 10, 0.01, True), Offer("disk", 10, 0.5, True)]
    assert price(offers, seconds_per_block(0.02), 0.0, 9.0).num_blocks == 10
    assert price(offers, seconds_per_block(0.02, 0.002), 0.0, 9.0).num_blocks == 20  # later blocks cost more


def test_waiting_in_a_queue_makes_loading_free() -> None:
    offers = [Offer("disk", 10, 0.5, True)]
    assert price(offers, seconds_per_block(0.02), 0.0, 9.0).action is Action.RECOMPUTE
    decision = price(offers, seconds_per_block(0.02), 0.5, 0.0)
    assert decision.action is Action.LOAD
    assert decision.deadline_s == 0.5


def test_without_a_budget_nothing_is_waited_for() -> None:
    decision = price([Offer("memory", 10, 0.1, True)], seconds_per_block(0.02), 0.0, 0.05)
    assert decision.action is Action.RECOMPUTE
    assert "budget" in decision.reason
    assert "nothing is stored" in price([], seconds_per_block(1.0), 0.0, 1.0).reason


def test_asking_is_skipped_for_prompts_that_cost_less_than_asking() -> None:
    assert price_lookup(0.001, 0.0005, 0.1) is Action.SKIP
    assert price_lookup(0.01, 0.0005, 0.1) is Action.RECOMPUTE
    assert price_lookup(1.0, 0.0005, 0.0) is Action.RECOMPUTE  # a cold store is asked still


def test_speed_follows_what_was_seen_and_forgives_one_stall() -> None:
    speed = TierSpeed(0.001, 1e9)
    for _ in range(100):
        speed.observe(10**9, 4.0)
    assert speed.expected_s(10**9) == pytest.approx(4.0, rel=0.05)
    assert speed.cautious_s(10**9) < 4.4
    speed.observe(10**9, 4000.0)
    assert speed.expected_s(10**9) < 5.0
    speed.observe(10**9, 0.0)
    speed.observe(10**9, -1.0)
    assert speed.expected_s(10**9) < 5.0


def test_unsteady_tiers_are_priced_higher() -> None:
    steady, unsteady = TierSpeed(0.001, 1e9), TierSpeed(0.001, 1e9)
    for turn in range(200):
        steady.observe(10**9, 1.0)
        unsteady.observe(10**9, 2.0 if turn % 2 else 0.5)
    assert unsteady.expected_s(10**9) == pytest.approx(steady.expected_s(10**9), rel=0.1)
    assert unsteady.cautious_s(10**9) > 2 * steady.cautious_s(10**9)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.floats(1e-4, 0.1), st.floats(0, 0.2), st.floats(1e-5, 30), st.booleans()),
        max_size=80,
    ),
    st.floats(1e6, 1e11),
)
def test_no_store_costs_more_than_the_budget_and_a_hundredth(
    requests: list[tuple[int, float, float, float, bool]], bytes_per_s: float
) -> None:
    """Whatever it takes, and whether it ends at all."""
    pricer = Pricer({"memory": TierSpeed(1e-4, bytes_per_s)}, budget_s=0.05)
    with_store_s = without_s = 0.0
    for num_blocks, per_block_s, slack_s, takes_s, fails in requests:
        compute_s = prefill_time(512 / per_block_s, 4096, 512)
        offers = [pricer.offer("memory", num_blocks, num_blocks << 21)]
        pending = pricer.decide(offers, compute_s, num_blocks, slack_s)
        without_s += slack_s + compute_s(num_blocks)
        decision = pending.decision
        if decision.action is not Action.LOAD:
            with_store_s += slack_s + compute_s(num_blocks)
            pricer.settle(pending, 0.0, completed=False)
            continue
        completed = not fails and takes_s <= decision.deadline_s
        waited_s = takes_s if completed else decision.deadline_s
        pricer.observe("memory", num_blocks << 21, waited_s)
        pricer.settle(pending, waited_s, completed=completed)
        took_s = max(waited_s, slack_s) + compute_s(num_blocks) - (decision.saved_s if completed else 0.0)
        assert took_s <= slack_s + 2 * compute_s(num_blocks) + 1e-9
        with_store_s += took_s
        assert pricer.budget_s >= -1e-9
    assert with_store_s <= 1.01 * without_s + 0.05 + 1e-6


def test_a_good_store_is_used_for_nearly_every_request() -> None:
    pricer = Pricer({"memory": TierSpeed(0.001, 1e9)})
    compute_s = seconds_per_block(0.03)
    num_loads = 0
    for _ in range(200):
        pending = pricer.decide([pricer.offer("memory", 16, 32 << 20)], compute_s, 16, 0.0)
        num_loads += pending.decision.action is Action.LOAD
        if pending.decision.action is Action.LOAD:
            pricer.observe("memory", 32 << 20, 0.004)
            pricer.settle(pending, 0.004, completed=True)
    assert num_loads > 190


def test_a_slow_store_is_left_and_found_again_by_probes() -> None:
    pricer = Pricer({"disk": TierSpeed(0.001, 1e9)})
    compute_s = seconds_per_block(0.03)
    loads: list[bool] = []
    for turn in range(3000):
        takes_s = 0.004 if turn < 100 or turn > 600 else 5.0
        pending = pricer.decide([pricer.offer("disk", 16, 32 << 20)], compute_s, 16, 0.0)
        is_load = pending.decision.action is Action.LOAD
        loads.append(is_load)
        if is_load:
            waited_s = min(takes_s, pending.decision.deadline_s)
            pricer.observe("disk", 32 << 20, waited_s)
            pricer.settle(pending, waited_s, completed=takes_s <= pending.decision.deadline_s)
    assert sum(loads[:100]) > 90
    assert sum(loads[120:600]) < 30  # a few late loads, then probes further and further apart
    assert sum(loads[-500:]) > 450


def test_overlapping_requests_share_the_budget() -> None:
    pricer = Pricer({"memory": TierSpeed(1e-4, 1e9)}, budget_s=0.1)
    compute_s = seconds_per_block(0.05)
    offers = [pricer.offer("memory", 1, 1 << 20)]
    first = pricer.decide(offers, compute_s, 1, 0.0)
    second = pricer.decide(offers, compute_s, 1, 0.0)
    third = pricer.decide(offers, compute_s, 1, 0.0)
    actions = [each.decision.action for each in (first, second, third)]
    assert actions == [Action.LOAD, Action.LOAD, Action.RECOMPUTE]
    assert first.reserved_s + second.reserved_s <= 0.1 + 3 * 0.01 * 0.05
    pricer.settle(first, 0.002, completed=True)
    assert pricer.decide(offers, compute_s, 1, 0.0).decision.action is Action.LOAD

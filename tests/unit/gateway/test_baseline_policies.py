"""Other systems' policies, by worked examples."""

from __future__ import annotations

import pytest

from shoal.gateway.routing.load import Load, LoadTracker
from shoal.gateway.routing.policies.overlap_cost import OverlapCost
from shoal.gateway.routing.policies.prefix_sticky import PrefixSticky
from shoal.gateway.routing.policy import Candidate, Policy

PROMPT = 10_000
PEAK = 15_928


def first(policy: Policy, *workers: tuple[int, Load]) -> tuple[str, str]:
    """(Endpoint, reason) for workers of (cached tokens, load), named by their place."""
    ranking = policy.rank([Candidate(str(i), cached, load, PROMPT) for i, (cached, load) in enumerate(workers)], 0)
    return ranking.candidates[0].endpoint, ranking.reason


@pytest.mark.parametrize(
    ("cached", "waiting", "expected"),
    [
        (7_999, 3_000, ("1", "load")),  # too little to be held: 3,000 + 2,001 against 5,000 would be more work
        (8_000, 8_000, ("0", "prefix")),  # held: 8,000 + 2,000 against 10,000 of the idle other does not count
        (8_000, 18 * PEAK, ("0", "prefix")),
        (8_000, 18 * PEAK + 1, ("1", "balance")),
    ],
)
def test_sticky_holders_are_kept_until_they_are_saturated(cached: int, waiting: int, expected: tuple[str, str]) -> None:
    other = Load() if cached >= 8_000 else Load(1, 0, 0)
    workers = ((cached, Load(1, waiting)), (5_000 if cached < 8_000 else 0, other))
    assert first(PrefixSticky(), *workers) == expected


def test_the_least_prompt_work_wins_among_holders() -> None:
    holders = ((9_000, Load(1, 3_000)), (8_500, Load(40, 2_000)), (8_000, Load(0, 2_000)))
    assert first(PrefixSticky(), *holders) == ("1", "prefix")


@pytest.mark.parametrize(
    ("cached", "load", "expected"),
    [
        (5_000, Load(1, 0, 4_999), ("0", "prefix")),
        (5_000, Load(1, 0, 5_001), ("1", "load")),
        (5_000, Load(1, 2_000, 3_001), ("1", "load")),
        (0, Load(), ("0", "load")),
    ],
)
def test_overlap_is_weighed_against_prompts_under_way_and_context_held(
    cached: int, load: Load, expected: tuple[str, str]
) -> None:
    assert first(OverlapCost(), (cached, load), (0, Load())) == expected
    assert first(OverlapCost(prefill_scale=2.0), (5_000, Load(1, 0, 9_999)), (0, Load())) == ("0", "prefix")


def test_a_ticket_counts_its_prompt_until_it_is_closed() -> None:
    tracker = LoadTracker()
    ticket = tracker.admit("w0", 300, num_prompt_tokens=1_000)
    assert tracker.of("w0") == Load(1, 300, 1_000)
    ticket.answered("w1")
    assert (tracker.of("w0"), tracker.of("w1")) == (Load(), Load(1, 0, 1_000))
    ticket.close()
    assert tracker.of("w1") == Load()

"""What Shoal's own policy prices, term by term, and what follows from the sum."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gateway.routing.block_table import Tier
from shoal.gateway.routing.forecast import Forecast, Held, Outlook
from shoal.gateway.routing.load import Load, LoadTracker
from shoal.gateway.routing.policies.least_cost import TERM_NAMES, LeastCost
from shoal.gateway.routing.policy import Candidate
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.routing.router import PickRequest, Router

PROMPT = 10_000
POLICY = LeastCost()


def price(candidate: Candidate, ttft_slo_s: float | None = None) -> dict[str, float]:
    return dict(zip(TERM_NAMES, POLICY.price(candidate, ttft_slo_s), strict=True))


def candidate(
    name: str = "w0", cached: int = 0, fill: float = 1.0, adapter_s: float = 0.0, **outlook: Any
) -> Candidate:
    known = Outlook(prefill_s=(PROMPT - cached) * 2e-5, token_s=2e-5, computed_tokens=PROMPT - cached)
    return Candidate(name, cached, Load(), PROMPT, known._replace(**outlook), adapter_s, fill)


def test_an_idle_worker_without_the_prefix_costs_what_it_computes() -> None:
    terms = price(candidate())
    assert terms.pop("prefill") == pytest.approx(0.2)
    assert terms.pop("work") == pytest.approx(0.2 * POLICY.work_weight)
    assert terms.pop("eviction") == pytest.approx(0.2 * POLICY.eviction_weight)
    assert set(terms.values()) == {0.0}


@pytest.mark.parametrize(
    ("changed", "terms"),
    [
        ({"queue_s": 0.5}, {"queue", "patience"}),
        ({"room_s": 0.5}, {"room", "patience"}),
        ({"load_s": 0.5}, {"load"}),
        ({"decode_s": 0.5}, {"decode"}),
        ({"num_ahead": 1, "tokens_ahead": 100}, {"sharing"}),
        ({"adapter_s": 0.5}, {"adapter"}),
    ],
)
def test_each_cause_has_its_term(changed: dict[str, Any], terms: set[str]) -> None:
    before, after = price(candidate()), price(candidate(**changed))
    assert {name for name in TERM_NAMES if after[name] > before[name]} == terms
    assert {name for name in TERM_NAMES if after[name] != before[name]} == terms


def test_eviction_is_free_while_the_cache_is_not_full() -> None:
    assert price(candidate(fill=0.0))["eviction"] == 0.0
    empty, full = candidate("new", fill=0.0), candidate("old", cached=512)
    assert POLICY.rank([full, empty], 0).candidates[0] is empty, "a short prefix that all share does not keep it empty"


def test_a_late_first_token_costs_more_than_its_seconds() -> None:
    slow = candidate(queue_s=1.0)
    assert price(slow)["slo"] == price(slow, 1.2)["slo"] == 0.0
    assert price(slow, 0.7)["slo"] == pytest.approx(POLICY.slo_weight * 0.5)


def test_prompts_ahead_pay_for_the_step_that_they_share() -> None:
    def sharing(**outlook: Any) -> float:
        return price(candidate(**outlook))["sharing"]

    room = POLICY.step_tokens - 1000
    weight = POLICY.sharing_weight
    assert sharing(num_ahead=1, tokens_ahead=1000) == pytest.approx(room * 2e-5 * weight)
    assert (
        sharing(num_ahead=2, tokens_ahead=1000)
        == sharing(num_ahead=9, tokens_ahead=1000)
        == pytest.approx(2 * room * 2e-5 * weight)
    )
    assert sharing(num_ahead=1, tokens_ahead=POLICY.step_tokens + 1000) == pytest.approx(room * 2e-5 * weight)
    assert sharing(num_ahead=1, tokens_ahead=1000, computed_tokens=64) == pytest.approx(64 * 2e-5 * weight)


def test_a_request_waits_for_its_prefix_no_longer_than_the_prefix_is_worth() -> None:
    idle, holder = candidate("idle"), candidate("holder", cached=8_000)
    saved_s = idle.outlook.prefill_s - holder.outlook.prefill_s
    most_s = (1 + POLICY.work_weight + POLICY.eviction_weight) * saved_s
    chosen = []
    for wait_s in (0.0, 0.1, most_s):
        waiting = holder._replace(outlook=holder.outlook._replace(queue_s=wait_s))
        ranking = POLICY.rank([idle, waiting], 0)
        chosen.append((ranking.candidates[0].endpoint, ranking.reason))
        assert ranking.scores[0].total_s <= ranking.scores[1].total_s
    assert chosen == [("holder", "prefix"), ("holder", "prefix"), ("idle", "balance")]


def test_another_copy_of_what_many_hold_is_cheaper_than_a_second_one() -> None:
    """A conversation waits for its only holder where a prefix that everybody wants spreads."""
    wait_s = 0.5
    busy = [candidate(f"holder-{i}", cached=8_000, queue_s=wait_s) for i in range(6)]
    idle = candidate("idle")
    assert POLICY.rank([idle, busy[0]], 0).candidates[0] is busy[0]
    assert POLICY.rank([idle, *busy[:2]], 0).candidates[0] is not idle
    assert POLICY.rank([idle, *busy], 0).candidates[0] is idle


def test_the_first_token_is_predicted_and_every_term_is_told() -> None:
    ranking = POLICY.rank([candidate(queue_s=0.3, load_s=0.1, adapter_s=0.2)], 0)
    assert ranking.predicted_ttft_s == pytest.approx(0.3 + 0.2 + 0.1 + 0.2)
    [score] = ranking.scores
    assert tuple(score.terms) == TERM_NAMES
    assert score.total_s == pytest.approx(sum(POLICY.price(score.candidate)))


outlooks = st.builds(
    Outlook,
    st.floats(0, 60), st.floats(0, 60), st.floats(0, 9), st.integers(0, 9), st.integers(0, 99_999), st.floats(0, 1e-3),
    st.integers(0, 99_999), st.floats(0, 9), st.floats(0, 99),
)  # fmt: skip
candidates = st.builds(
    Candidate, st.just(""), st.integers(0, PROMPT), st.builds(Load, st.integers(0, 9)), st.just(PROMPT), outlooks,
    st.floats(0, 5), st.floats(0, 1),
)  # fmt: skip
slos = st.one_of(st.none(), st.floats(0.01, 10))


@settings(deadline=None)
@given(st.lists(candidates, min_size=1, max_size=6), st.integers(0, 20), slos)
def test_none_is_dropped_the_order_repeats_and_imbalance_is_bounded(
    given_ones: list[Candidate], turn: int, slo_s: float | None
) -> None:
    named = [each._replace(endpoint=f"w{i}") for i, each in enumerate(given_ones)]
    ranking = POLICY.rank(named, turn, slo_s)
    assert sorted(ranking.candidates) == sorted(named)
    assert POLICY.rank(named[::-1], turn, slo_s) == ranking
    totals = [score.total_s for score in ranking.scores]
    limit = min(totals) * (1 + POLICY.tie_ratio) + POLICY.tie_s + 1e-9
    assert totals[0] <= limit
    rest = totals[sum(total <= limit for total in totals) :]
    assert rest == sorted(rest)
    for other in ranking.scores:
        bound = other.total_s * (1 + POLICY.tie_ratio) + POLICY.tie_s + 1e-9
        assert ranking.candidates[0].outlook.queue_s <= bound, "no wait is longer than all that another would cost"


def test_lower_tiers_count_for_nothing_until_there_are_any() -> None:
    forecast = Forecast(lambda: 0.0)
    plain = forecast.outlook("w", PROMPT, 2_000, Load())
    assert forecast.outlook("w", PROMPT, 2_000, Load(), Held(2_000, 2_000)) == plain
    assert plain.load_s == 0.0


def test_blocks_are_loaded_from_below_where_that_is_quicker_than_computing_them() -> None:
    forecast = Forecast(lambda: 0.0)
    computed = forecast.outlook("w", PROMPT, 0, Load())
    from_memory = forecast.outlook("w", PROMPT, 0, Load(), Held(8_000, 8_000))
    assert from_memory.load_s == pytest.approx(8_000 / forecast.tier_tokens_per_s[Tier.MEMORY])
    assert from_memory.prefill_s + from_memory.load_s < computed.prefill_s
    assert from_memory.computed_tokens == 2_000
    from_disk = forecast.outlook("w", PROMPT, 0, Load(), Held(0, 8_000))
    assert (from_disk.load_s, from_disk.prefill_s) == (0.0, computed.prefill_s), "0.4 s to load, 0.2 s to compute"
    for _ in range(50):
        forecast.loaded(Tier.DISK, 100_000, 0.1)
    assert forecast.outlook("w", PROMPT, 0, Load(), Held(0, 8_000)).load_s < 0.02
    deeper = forecast.outlook("w", PROMPT, 0, Load(), Held(4_000, 8_000))
    assert deeper.computed_tokens == 2_000, "memory first, the rest from the disk"


def test_tiers_told_by_events_reach_the_price() -> None:
    index, loads = PrefixIndex(1000), LoadTracker()
    keys = [bytes([i]) * 16 for i in range(100)]
    index.clear("w0")
    index.store("w1", keys, Tier.MEMORY)
    pick = Router(index, loads, POLICY).pick(PickRequest(["w0", "w1"], iter(keys), 64, 6_500))
    assert pick.endpoints[0] == "w1"
    assert (pick.predicted_cached_tokens, pick.scores[0].terms["load"] > 0) == (0, True)


def test_an_adapter_that_must_be_loaded_first_counts() -> None:
    index, loads = PrefixIndex(1000), LoadTracker()
    for name in ("w0", "w1"):
        index.clear(name)
    request = PickRequest(["w0", "w1"], iter([]), 64, 100, adapter_load_s={"w0": 2.0})
    pick = Router(index, loads, POLICY).pick(request)
    assert pick.endpoints == ("w1", "w0")
    assert pick.scores[1].terms["adapter"] == 2.0


def test_a_prompt_that_does_not_fit_waits_for_answers_to_end() -> None:
    forecast, load = Forecast(lambda: 0.0), Load(4, 0, 40_000)
    assert forecast.outlook("w", PROMPT, 0, load, None, 50_000).room_s == 0.0
    assert forecast.outlook("w", PROMPT, 0, load, None, None).room_s == 0.0
    half = forecast.outlook("w", PROMPT, 0, load, None, 30_000).room_s
    assert half == pytest.approx(forecast.answer_s / 2)


def test_more_beside_it_slows_an_answer_down() -> None:
    forecast = Forecast(lambda: 0.0)
    idle, few, many = (forecast.outlook("w", PROMPT, 0, Load(n, 0, n * 1000)).decode_s for n in (0, 2, 20))
    assert 0 == idle < few < many


def test_other_gateways_prompts_are_waited_for_as_well() -> None:
    loads = LoadTracker(lambda: 0.0)
    loads.admit("w", 1_000, num_prompt_tokens=1_000)
    alone_s = loads.forecast.outlook("w", PROMPT, 0, loads.of("w")).queue_s
    theirs = loads.admit_elsewhere("w", 5_000, 6_000, is_waiting=True)
    loads.admit_elsewhere("w", 7_000, 7_000, is_waiting=False)
    both = loads.forecast.outlook("w", PROMPT, 0, loads.of("w"))
    assert both.queue_s - alone_s > 5_000 * 20e-6
    assert (both.num_ahead, both.tokens_ahead) == (2, 6_000), "what runs is not ahead of a prompt"
    theirs.close()
    assert loads.forecast.outlook("w", PROMPT, 0, loads.of("w")).queue_s == pytest.approx(alone_s)


def test_tickets_teach_the_forecast() -> None:
    clock_s = [0.0]
    loads = LoadTracker(lambda: clock_s[0])
    for _ in range(20):
        ticket = loads.admit("w", 1000, num_prompt_tokens=1000)
        clock_s[0] += 7.0
        ticket.answered("w")
        clock_s[0] += 30.0
        ticket.close(101)
        clock_s[0] += 1.0
    assert loads.forecast.outlook("w", 1000, 0, Load()).prefill_s == pytest.approx(7.0, rel=0.05)
    assert loads.forecast.output_tokens == pytest.approx(256 + (1 - 0.98**20) * (101 - 256))
    assert loads.forecast.answer_s > 12
    open_ticket = loads.admit("w", 1000, num_prompt_tokens=1000)
    assert loads.forecast.outlook("w", 1000, 0, loads.of("w")).queue_s == pytest.approx(7.0, rel=0.05)
    open_ticket.answered("other")
    assert loads.forecast.outlook("w", 1000, 0, loads.of("w")).queue_s == 0.0
    open_ticket.close()
    failed = loads.admit("w", 1000, num_prompt_tokens=1000)
    failed.close()
    assert loads.forecast.outlook("w", 1000, 0, loads.of("w")).queue_s == 0.0

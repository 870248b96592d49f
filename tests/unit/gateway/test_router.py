"""Router and policies."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.blocks import KeyChain, block_keys
from shoal.gateway.routing.load import Load, LoadTracker, Ticket
from shoal.gateway.routing.policies import policy_of
from shoal.gateway.routing.policies.baselines import LeastLoaded, RoundRobin
from shoal.gateway.routing.policies.envoy import LeaveToEnvoy
from shoal.gateway.routing.policies.least_cost import LeastCost
from shoal.gateway.routing.policies.overlap_cost import OverlapCost
from shoal.gateway.routing.policies.prefix_sticky import PrefixSticky
from shoal.gateway.routing.policy import Candidate, Policy
from shoal.gateway.routing.prefix_index import EXPECT_S, PrefixIndex
from shoal.gateway.routing.router import MAX_ENDPOINTS, Pick, PickRequest, Router

KEYS = [bytes([i]) * 16 for i in range(8)]
POLICIES: list[Policy] = [LeastCost(), LeastLoaded(), RoundRobin(), PrefixSticky(), OverlapCost()]
NAMES = ["w0", "w1", "w2", "w3"]
BLOCK = 4
loads = st.builds(Load, st.integers(0, 50), st.integers(0, 20_000))
fleets = st.dictionaries(st.sampled_from(NAMES), st.tuples(loads, st.integers(0, 8)), min_size=1)


def candidates(fleet: dict[str, tuple[Load, int]]) -> list[Candidate]:
    return [Candidate(name, blocks * BLOCK, load) for name, (load, blocks) in fleet.items()]


@settings(deadline=None)
@given(fleets, st.integers(0, 100), st.sampled_from(POLICIES))
def test_a_ranking_is_an_order_of_the_candidates_and_repeats(
    fleet: dict[str, tuple[Load, int]], turn: int, policy: Policy
) -> None:
    given_ones = candidates(fleet)
    ranking = policy.rank(given_ones, turn)
    assert sorted(c.endpoint for c in ranking.candidates) == sorted(fleet)
    assert policy.rank(list(reversed(given_ones)), turn) == ranking


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 50))
def test_equal_workers_take_turns(num_workers: int, first_turn: int) -> None:
    idle = [Candidate(name, 0, Load()) for name in NAMES[:num_workers]]
    for policy in POLICIES:
        picks = [policy.rank(idle, first_turn + i).candidates[0].endpoint for i in range(num_workers)]
        assert sorted(picks) == NAMES[:num_workers]


def test_the_names_of_an_inference_service_are_known() -> None:
    for name, kind in {
        "shoal": LeastCost,
        "least_load": LeastLoaded,
        "round_robin": RoundRobin,
        "prefix_sticky": PrefixSticky,
        "overlap_cost": OverlapCost,
        "orca": LeaveToEnvoy,
        "prefix_hash": LeaveToEnvoy,
    }.items():
        assert isinstance(policy_of(name), kind)  # type: ignore[arg-type]


def make_router(policy: Policy | None = None) -> tuple[Router, PrefixIndex, LoadTracker]:
    index, tracker = PrefixIndex(10_000), LoadTracker()
    return Router(index, tracker, policy or LeastCost()), index, tracker


def request(endpoints: list[str], num_blocks: int = 4, prompt_tokens: int = 18, must_pin: bool = False) -> PickRequest:
    return PickRequest(endpoints, iter(KEYS[:num_blocks]), BLOCK, prompt_tokens, must_pin=must_pin)


def test_nothing_known_means_no_pin() -> None:
    router, _, _ = make_router()
    assert router.pick(request(["w0", "w1"])) == Pick()
    assert router.pick(request([])) == Pick()


def test_with_several_models_a_pin_is_made_even_so() -> None:
    router, _, _ = make_router()
    assert set(router.pick(request(["w0", "w1"], must_pin=True)).endpoints) == {"w0", "w1"}


def test_the_longest_prefix_comes_first_and_three_at_most_are_named() -> None:
    router, index, _ = make_router()
    for worker, num in (("w0", 1), ("w1", 4), ("w2", 2), ("w3", 0)):
        index.clear(worker)
        index.store(worker, KEYS[:num])
    pick = router.pick(request(NAMES))
    assert pick.endpoints == ("w1", "w2", "w0")
    assert len(pick.endpoints) == MAX_ENDPOINTS
    assert (pick.predicted_cached_tokens, pick.reason) == (16, "prefix")
    assert len(pick.scores) == 4


def test_the_last_prompt_token_is_never_predicted_as_cached() -> None:
    router, index, _ = make_router()
    index.store("w0", KEYS[:4])
    assert router.pick(request(["w0"], prompt_tokens=16)).predicted_cached_tokens == 12


LONG = 4096
LONG_KEYS = [i.to_bytes(16, "big") for i in range(LONG // BLOCK)]


def long_request() -> PickRequest:
    return PickRequest(NAMES[:2], iter(LONG_KEYS), BLOCK, LONG + 1)


def test_a_hot_prefix_spills_over_when_waiting_costs_more_than_computing_it_again() -> None:
    router, index, tracker = make_router()
    index.store("w0", LONG_KEYS)
    index.clear("w1")
    picks = []
    for _ in range(200):
        pick = router.pick(long_request())
        tracker.admit(pick.endpoints[0], LONG + 1 - pick.predicted_cached_tokens, num_prompt_tokens=LONG + 1)
        picks.append((pick.endpoints[0], pick.reason))
    assert picks[:5] == [("w0", "prefix")] * 5
    spilled = picks.index(("w1", "balance"))
    assert {worker for worker, _ in picks[spilled:]} == {"w0", "w1"}
    assert {reason for _, reason in picks[spilled + 1 :]} == {"prefix"}, "the copy is expected where it was sent"


def test_a_burst_of_equal_prompts_stays_together_until_it_is_too_much() -> None:
    clock_s = [0.0]
    index, tracker = PrefixIndex(10_000, clock=lambda: clock_s[0]), LoadTracker(lambda: clock_s[0])
    router = Router(index, tracker, LeastCost())
    for name in NAMES:
        index.clear(name)
    picks = []
    for _ in range(120):
        pick = router.pick(long_request())
        tracker.admit(pick.endpoints[0], LONG + 1 - pick.predicted_cached_tokens, num_prompt_tokens=LONG + 1)
        picks.append((pick.endpoints[0], pick.predicted_cached_tokens, pick.reason))
    assert picks[:4] == [("w0", 0, "load"), *[("w0", LONG, "prefix")] * 3]
    assert [reason for _, _, reason in picks].count("balance") == 1, "each worker computes the prompt once"
    clock_s[0] += EXPECT_S
    assert router.pick(long_request()).predicted_cached_tokens == 0  # no event confirmed it


def test_without_an_opinion_envoy_chooses_unless_it_could_err() -> None:
    router, index, tracker = make_router(LeaveToEnvoy("orca"))
    index.store("w0", KEYS[:4])
    tracker.admit("w0", 10)
    assert router.pick(request(["w0", "w1"])) == Pick(reason="orca")
    assert router.pick(request(["w0", "w1"], must_pin=True)).endpoints == ("w1", "w0")


def test_prompts_that_begin_alike_have_one_hash() -> None:
    router, _, _ = make_router(LeaveToEnvoy("prefix_hash", hash_tokens=6))  # the first two blocks

    def hash_of(tokens: list[int]) -> str:
        pick = router.pick(PickRequest(NAMES, KeyChain(bytes(16), tokens, BLOCK), BLOCK, len(tokens)))
        assert (pick.endpoints, pick.reason) == ((), "prefix_hash")
        return pick.prefix_hash

    start = list(range(8))
    assert hash_of(start) == hash_of([*start, 1, 2, 3, 4, 5]) == block_keys(bytes(16), start, BLOCK)[1].hex()
    assert len({hash_of(start), hash_of(start[:4]), hash_of([*start[:7], 9])}) == 3
    assert hash_of([1, 2, 3]) == ""
    assert make_router(LeaveToEnvoy("orca"))[0].pick(request(NAMES)).prefix_hash == ""


def test_a_chain_is_hashed_by_the_pick() -> None:
    router, index, _ = make_router()
    tokens = list(range(18))
    index.store("w1", block_keys(bytes(16), tokens, BLOCK))
    index.clear("w0")
    pick = router.pick(PickRequest(["w0", "w1"], KeyChain(bytes(16), tokens, BLOCK), BLOCK, len(tokens)))
    assert (pick.endpoints[0], pick.predicted_cached_tokens) == ("w1", 16)


def test_unknown_endpoints_in_the_index_are_not_picked() -> None:
    router, index, _ = make_router()
    index.store("w0", KEYS[:4])
    index.clear("w1")
    assert router.pick(request(["w1"])).endpoints == ("w1",)


steps = st.lists(
    st.tuples(st.sampled_from(["admit", "answered", "close"]), st.integers(0, 5), st.sampled_from([*NAMES, None])),
    max_size=40,
)


@settings(deadline=None)
@given(steps)
def test_loads_go_back_to_nothing(operations: list[tuple[str, int, str | None]]) -> None:
    tracker = LoadTracker()
    tickets: list[Ticket] = []
    for name, which, worker in operations:
        if name == "admit":
            tickets.append(tracker.admit(worker, 100 * which))
        elif tickets:
            ticket = tickets[which % len(tickets)]
            ticket.answered(worker) if name == "answered" else ticket.close()
        assert all(tracker.of(w).num_requests >= 0 and tracker.of(w).num_waiting_tokens >= 0 for w in NAMES)
    for ticket in tickets:
        ticket.close()
    assert [tracker.of(w) for w in NAMES] == [Load()] * 4


def test_an_answer_moves_the_load_to_the_worker_that_gave_it() -> None:
    tracker = LoadTracker()
    ticket = tracker.admit("w0", 500)
    assert tracker.of("w0") == Load(1, 500)
    ticket.answered("w1")
    assert (tracker.of("w0"), tracker.of("w1")) == (Load(), Load(1, 0))
    ticket.close()
    assert tracker.of("w1") == Load()

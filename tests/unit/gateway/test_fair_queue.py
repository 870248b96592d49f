"""Who is next, who may wait, and who must go: whatever happens to the queue, its promises hold."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.fair_queue import FairQueue, QueueFull
from shoal.gateway.admission.limits import QueueLimits, TenantPolicy

TENANTS = ["a", "b", "c"]
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


def limits(**changes: Any) -> QueueLimits:
    tenants = {name: TenantPolicy(weight=weight) for name, weight in WEIGHTS.items()}
    return QueueLimits(**({"tenants": tenants} | changes))


def entry(tenant: str = "a", **changes: Any) -> Entry:
    values: dict[str, Any] = {"num_tokens": 10, "cost": 10.0, "arrived_s": 0.0, "expires_s": 100.0}
    return Entry(tenant, **(values | changes))


class QueueMachine(RuleBasedStateMachine):
    """Every operation in any order, beside a plain model of what must be so."""

    @initialize(max_requests=st.integers(1, 12), own_requests=st.integers(1, 12), step=st.sampled_from([0.0, 5.0]))
    def make(self, max_requests: int, own_requests: int, step: float) -> None:
        tenants = {n: TenantPolicy(w, own_requests, 150) for n, w in WEIGHTS.items()}
        self.limits = QueueLimits(max_requests, 200, priority_step_s=step, tenants=tenants)
        self.queue = FairQueue(self.limits)
        self.now_s = 0.0
        self.inside: list[Entry] = []
        self.under_way: list[Entry] = []
        self.num_returned = 0

    @rule(
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from([-100, -1, 0, 1, 100]),
        num_tokens=st.integers(1, 120),
        patience_s=st.integers(1, 30),
    )
    def offer(self, tenant: str, priority: int, num_tokens: int, patience_s: int) -> None:
        self.now_s += 0.5
        cost = float(num_tokens + 7)
        new = Entry(
            tenant,
            priority=priority,
            num_tokens=num_tokens,
            cost=cost,
            arrived_s=self.now_s,
            expires_s=self.now_s + patience_s,
        )
        try:
            displaced = self.queue.offer(new)
        except QueueFull:
            assert not new.waiting
            return
        self.inside.append(new)
        for loser in displaced:
            assert not loser.waiting
            assert loser.tenant != tenant or loser.key > new.key, "nobody loses a place to one who comes after"
            self.inside.remove(loser)
        if not self.num_returned:
            assert self.queue.num_requests <= self.limits.max_requests
            assert self.queue.num_tokens <= self.limits.max_tokens
            num_requests, waiting_tokens = self.queue.waiting_of(tenant)
            assert num_requests <= self.limits.of(tenant).max_requests
            assert waiting_tokens <= self.limits.of(tenant).max_tokens

    @precondition(lambda self: self.inside)
    @rule(returns=st.booleans())
    def pop(self, returns: bool) -> None:
        head = self.queue.head()
        taken = self.queue.pop()
        assert taken is head
        self.inside.remove(taken)
        mine = [e for e in self.inside if e.tenant == taken.tenant]
        assert all((taken.key, taken.number) < (e.key, e.number) for e in mine), "the best of its tenant goes"
        self.under_way.append(taken)
        if returns:
            self.under_way.pop()
            self.queue.settle(taken.tenant, taken.cost, 0)
            again = entry(
                taken.tenant,
                priority=taken.priority,
                num_tokens=taken.num_tokens,
                cost=taken.cost,
                arrived_s=taken.arrived_s,
                expires_s=taken.expires_s,
            )
            self.queue.put_back(again)
            assert again.key == taken.key
            self.inside.append(again)
            self.num_returned += 1

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.inside))
        self.queue.take(gone)
        self.inside.remove(gone)

    @rule(passed_s=st.integers(0, 10))
    def expire(self, passed_s: int) -> None:
        self.now_s += passed_s
        expired = self.queue.expire(self.now_s)
        due = [e for e in self.inside if e.expires_s <= self.now_s]
        assert Counter(map(id, expired)) == Counter(map(id, due))
        for gone in due:
            self.inside.remove(gone)

    @precondition(lambda self: not self.inside)
    @rule(tenant=st.sampled_from(TENANTS), cost=st.integers(1, 500))
    def pass_by(self, tenant: str, cost: int) -> None:
        self.queue.pass_by(tenant, cost)

    @precondition(lambda self: self.under_way)
    @rule(actual=st.integers(0, 200))
    def settle(self, actual: int) -> None:
        over = self.under_way.pop(0)
        self.queue.settle(over.tenant, over.cost, actual)

    @invariant()
    def conserves(self) -> None:
        if not hasattr(self, "queue"):
            return
        queue = self.queue
        assert queue.num_requests == len(self.inside)
        assert queue.num_tokens == sum(e.num_tokens for e in self.inside)
        assert queue.cost == pytest.approx(sum(e.cost for e in self.inside))
        assert all(e.waiting for e in self.inside)
        head = queue.head()
        assert (head is None) == (not self.inside)
        if head is not None:
            waiting = {e.tenant for e in self.inside}
            assert queue.counter_of(head.tenant) == min(map(queue.counter_of, waiting)), "who has used least is next"
        assert queue.next_expiry_s() == min((e.expires_s for e in self.inside), default=None)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(st.randoms(use_true_random=False), st.integers(20, 200))
@settings(max_examples=40, deadline=None)
def test_tenants_that_wait_share_by_weight_within_a_request_each(rng: random.Random, num_pops: int) -> None:
    queue = FairQueue(limits())
    numbers = itertools.count()

    def refill(tenant: str) -> None:
        queue.offer(entry(tenant, cost=float(rng.randint(1, 100)), arrived_s=float(next(numbers))))

    for tenant in TENANTS:
        for _ in range(3):
            refill(tenant)
    used: dict[str, float] = defaultdict(float)
    for _ in range(num_pops):
        taken = queue.pop()
        used[taken.tenant] += taken.cost
        refill(taken.tenant)
        for one, other in itertools.combinations(TENANTS, 2):
            difference = abs(used[one] / WEIGHTS[one] - used[other] / WEIGHTS[other])
            assert difference <= 100 / WEIGHTS[one] + 100 / WEIGHTS[other]


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_nobody_starves_under_a_flood_of_better_priority(rng: random.Random) -> None:
    """Its own tenant floods with the best priority, and other tenants with everything."""
    queue = FairQueue(limits(priority_step_s=1.0, max_age_s=1e9))
    queue.offer(entry("a", priority=100, arrived_s=0.0, expires_s=1e9))
    for now_s in range(1, 10_000):
        for tenant in TENANTS:
            if queue.waiting_of(tenant)[0] < 20:
                queue.offer(entry(tenant, priority=-100, arrived_s=float(now_s), expires_s=1e9))
        taken = queue.pop()
        if taken.priority == 100:
            assert now_s >= 200, "not before those of a better priority that came within 200 s of it"
            break
    else:
        pytest.fail("still waiting")


def test_an_idle_tenant_gains_no_credit_and_a_busy_one_no_debt() -> None:
    queue = FairQueue(limits())
    for _ in range(1000):
        queue.pass_by("a", 1000)
        queue.settle("a", 1000, 700)
    for number in range(40):
        queue.offer(entry("a", arrived_s=number))
    for _ in range(10):
        queue.settle("a", queue.pop().cost, 10)
    for number in range(40):
        queue.offer(entry("b", arrived_s=100 + number))
    taken = Counter(queue.pop().tenant for _ in range(30))
    assert abs(taken["b"] - 2 * taken["a"]) <= 2


def test_a_newcomer_does_not_wait_for_wrong_predictions_to_be_made_up_for() -> None:
    """What is under way was charged a hundred times what it takes."""
    queue = FairQueue(limits())
    for _ in range(10):
        queue.pass_by("a", 1000)
    for number in range(40):
        queue.offer(entry("a", arrived_s=number))
    for number in range(40):
        queue.offer(entry("b", arrived_s=100 + number))
    for _ in range(10):
        queue.settle("a", 1000, 10)
    taken = Counter(queue.pop().tenant for _ in range(30))
    assert 20 <= taken["b"] <= 27, "two of three, and what a had under way"


def test_better_priorities_pass_those_that_have_not_waited_long_enough() -> None:
    queue = FairQueue(limits(priority_step_s=5))
    old, recent = entry(priority=0, arrived_s=0), entry(priority=0, arrived_s=8)
    urgent = entry(priority=-1, arrived_s=10)
    for each in (old, recent, urgent):
        queue.offer(each)
    assert [queue.pop() for _ in range(3)] == [old, urgent, recent]


def test_a_flood_leaves_room_in_the_queue_for_others() -> None:
    """However early, and at whatever priority, one tenant has filled the queue."""
    queue = FairQueue(limits(max_requests=30))
    for number in range(30):
        queue.offer(entry("a", priority=-100, arrived_s=number))
    with pytest.raises(QueueFull):
        queue.offer(entry("a", priority=-100, arrived_s=50))
    displaced = [loser for n in range(20) for loser in queue.offer(entry("b", priority=100, arrived_s=100 + n))]
    assert {e.tenant for e in displaced} == {"a"}
    assert sorted(e.arrived_s for e in displaced) == list(range(10, 30)), "its last ones go"
    with pytest.raises(QueueFull, match="queue_full"):
        queue.offer(entry("b", priority=-100, arrived_s=500, num_tokens=10_000_000_000))
    assert queue.waiting_of("b") == (20, 200)


def test_an_urgent_request_takes_the_place_of_the_same_tenants_last_one() -> None:
    tenants = {"a": TenantPolicy(max_requests=2)}
    queue = FairQueue(QueueLimits(tenants=tenants))
    first, last = entry(priority=1), entry(priority=1, arrived_s=1)
    queue.offer(first)
    queue.offer(last)
    with pytest.raises(QueueFull, match="tenant_full"):
        queue.offer(entry(priority=1, arrived_s=2))
    urgent = entry(priority=-5, arrived_s=2)
    assert queue.offer(urgent) == [last]
    assert [queue.pop(), queue.pop()] == [urgent, first]


def test_what_is_ahead_is_ones_own_share_of_the_whole() -> None:
    queue = FairQueue(limits())
    for _ in range(10):
        queue.offer(entry("a", cost=10.0))
        queue.offer(entry("b", cost=10.0, priority=3))
    assert queue.cost_ahead("a", 0) == 200, "a third of the service for 100 tokens, but never more than all there is"
    assert queue.cost_ahead("b", 3) == pytest.approx(150)
    assert queue.cost_ahead("b", 2) == 0
    assert queue.cost_ahead("c", 0) == 0


def test_heaps_do_not_grow_with_what_has_left() -> None:
    queue = FairQueue(limits())
    keep = entry("a", priority=100, expires_s=1e9)
    queue.offer(keep)
    for number in range(5000):
        gone = entry("a", arrived_s=number, expires_s=1e6 - number)
        queue.offer(gone)
        queue.take(gone)
        queue.settle("a", 0, 1)
    tenant = queue._waiting["a"]
    heaps: list[list[Any]] = [list(queue._turns), list(queue._expiries), list(tenant._best), list(tenant._worst)]
    assert max(len(heap) for heap in heaps) < 100
    assert queue.pop() is keep


class Pair:
    """Two gateways' queues with as much room each, which may tell each other what tenants got."""

    def __init__(self, *, tells: bool, **changes: Any) -> None:
        self.queues = [FairQueue(limits(**changes)) for _ in range(2)]
        self.tells = tells
        self.told: list[dict[str, tuple[float, float]]] = [{}, {}]
        self.served: Counter[str] = Counter()

    def flood(self, number: int, tenant: str, num: int = 400) -> None:
        for _ in range(num):
            self.queues[number].offer(entry(tenant))

    def serve(self, number: int, num: int) -> None:
        """Requests are over at once, and take half of what was predicted."""
        queue = self.queues[number]
        for _ in range(num):
            if queue.head() is not None:
                served = queue.pop()
                self.served[served.tenant] += 1
                queue.settle(served.tenant, served.cost, served.cost / 2)
        if self.tells:
            self.tell(number)

    def tell(self, number: int) -> None:
        for name, tokens, predicted in self.queues[number].take_changes():
            old, old_predicted = self.told[number].get(name, (0.0, 0.0))
            self.told[number][name] = (tokens, predicted)
            self.queues[1 - number].charge_elsewhere(name, tokens - old, predicted - old_predicted)


@pytest.mark.parametrize(("tells", "share"), [(True, 0.5), (False, 0.25)])
def test_a_tenant_at_one_of_two_gateways_gets_its_share_of_both(tells: bool, share: float) -> None:
    pair = Pair(tells=tells, max_requests=10_000, tenants={})
    pair.flood(0, "a")
    pair.flood(0, "b")
    pair.flood(1, "b")
    for _ in range(40):
        pair.serve(0, 5)
        pair.serve(1, 5)
    assert pair.served["a"] / pair.served.total() == pytest.approx(share, abs=0.03)


def test_what_a_tenant_got_elsewhere_while_alone_is_not_held_against_it() -> None:
    pair = Pair(tells=True, max_requests=10_000, tenants={})
    pair.flood(1, "b")
    for _ in range(40):
        pair.serve(1, 5)
    for tenant in ("a", "b", "c"):
        pair.flood(0, tenant, 30)
    pair.served.clear()
    pair.serve(0, 30)
    assert all(8 <= pair.served[tenant] <= 12 for tenant in "abc"), pair.served


def test_a_newcomer_does_not_wait_for_what_others_got_elsewhere() -> None:
    pair = Pair(tells=True, max_requests=10_000, tenants={})
    pair.flood(0, "a")
    pair.flood(1, "b")
    for _ in range(20):
        pair.serve(0, 1)
        pair.serve(1, 9)
    pair.flood(0, "c")
    pair.served.clear()
    pair.serve(0, 20)
    assert 8 <= pair.served["c"] <= 12


@given(st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(-100, 100), st.integers(-50, 50)), max_size=30))
def test_nobody_starves_whatever_others_tell(charges: list[tuple[str, int, int]]) -> None:
    queue = FairQueue(limits(max_requests=10_000))
    for tenant in TENANTS:
        for _ in range(5):
            queue.offer(entry(tenant))
        for name, cost, predicted in charges:
            queue.charge_elsewhere(name, float(cost), float(predicted))
    served = [queue.pop().tenant for _ in range(15)]
    assert Counter(served) == dict.fromkeys(TENANTS, 5)
    assert queue.head() is None

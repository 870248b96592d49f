"""When a request leaves a worker by choice: it pays, within the budget, and never back and forth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gateway.routing.backlog import STEP_TOKENS
from shoal.gateway.routing.load import Load, LoadTracker, Ticket
from shoal.gateway.routing.pace import NUM_WINDOWS, Pace
from shoal.gateway.routing.policies.least_cost import LeastCost
from shoal.gateway.routing.policy import Candidate, Ranking
from shoal.gateway.routing.rebalance import Option, RebalanceConfig, Rebalancer, Stay, choose
from shoal.gateway.routing.router import Pick

CONFIG = RebalanceConfig()
WORKERS = ("a", "b", "c")
PROMPT = 10_000

stays_lists = st.lists(
    st.builds(Stay, st.integers(1, 10_000), st.sampled_from(WORKERS), st.floats(0, 100), spared_s=st.floats(0, 10)),
    max_size=30,
    unique_by=lambda stay: stay.number,
)
option_lists = st.lists(
    st.builds(Option, st.sampled_from(WORKERS), st.floats(0, 100), st.floats(0, 10)),
    max_size=3,
    unique_by=lambda option: option.worker,
)


@given(stays_lists, option_lists, st.integers(0, 20))
def test_whoever_goes_gains_enough_whatever_goes_before(stays: list[Stay], options: list[Option], limit: int) -> None:
    moves, declined = choose(stays, lambda stay: options, limit, CONFIG)
    assert len(moves) <= limit
    assert len(moves) + len(declined) <= CONFIG.max_priced
    names = [stay.number for stay, _ in moves] + [stay.number for stay in declined]
    assert len(set(names)) == len(names)
    prices = {option.worker: option for option in options}
    busy_s: dict[str, float] = {}
    for stay, worker in moves:
        assert worker != stay.worker
        gain_s = stay.wait_s + stay.spared_s - prices[worker].price_s - busy_s.get(worker, 0.0)
        assert gain_s >= max(CONFIG.min_gain_s, CONFIG.gain_ratio * stay.wait_s)
        busy_s[worker] = busy_s.get(worker, 0.0) + prices[worker].busy_s


@given(stays_lists, option_lists)
def test_the_order_of_the_question_does_not_matter(stays: list[Stay], options: list[Option]) -> None:
    assert choose(stays, lambda stay: options, 5, CONFIG) == choose(stays[::-1], lambda stay: options, 5, CONFIG)


def test_a_queue_is_shared_from_its_end_until_it_does_not_pay_any_more() -> None:
    queue = [Stay(number, "a", float(number)) for number in range(1, 11)]
    moves, _ = choose(queue, lambda stay: [Option("b", 1.0, 1.0)], 20, CONFIG)
    assert [stay.number for stay, _ in moves] == [10, 9, 8]


@dataclass(eq=False)
class Request:
    """A `Movable`, in a mesh without a network."""

    mesh: Mesh
    ticket: Ticket
    pick: Pick
    num_tokens: int = 0
    is_reading: bool = True
    num_chosen: int = 0
    remaining_tokens: int = 500
    left: set[str] = field(default_factory=set)

    def rank_others(self) -> Ranking | None:
        self.mesh.num_ranked += 1
        return self.mesh.rank(self.left | {str(self.ticket.worker)}, self.ticket.num_prompt_tokens + self.num_tokens)


class Mesh:
    """Loads and a clock; requests get tokens when a test says so."""

    def __init__(self, workers: Sequence[str] = WORKERS, **config: Any) -> None:
        self.now_s = 0.0
        self.workers = workers
        self.loads = LoadTracker(lambda: self.now_s)
        self.rebalancer = Rebalancer(self.loads, replace(CONFIG, **config))
        self.requests: list[Request] = []
        self.num_ranked = 0

    def rank(self, left: set[str], num_tokens: int) -> Ranking | None:
        outlook = self.loads.forecast.outlook
        candidates = [
            Candidate(w, 0, self.loads.of(w), num_tokens, outlook(w, num_tokens, 0, self.loads.of(w)))
            for w in self.workers
            if w not in left
        ]
        return LeastCost().rank(candidates, 0) if candidates else None

    def send(self, worker: str, num_tokens: int = PROMPT) -> Request:
        ranking = self.rank(set(self.workers) - {worker}, num_tokens)
        ticket = self.loads.admit(worker, num_tokens, num_prompt_tokens=num_tokens)
        self.requests.append(Request(self, ticket, Pick((worker,), ranking=ranking)))
        return self.requests[-1]

    def teach(self, worker: str, seconds: float, times: int = 12) -> None:
        """Prompts of PROMPT tokens take so long there."""
        for _ in range(times):
            ticket = self.loads.admit(worker, PROMPT, num_prompt_tokens=PROMPT)
            self.now_s += seconds
            ticket.answered(worker)
            ticket.close()

    def look(self, limit: int = 10) -> list[Request]:
        self.now_s += 1.0
        return self.rebalancer.look(self.requests, self.workers, limit)

    def move(self, request: Request, worker: str) -> None:
        request.left.add(str(request.ticket.worker))
        request.ticket.close(was_slow=True)
        request.ticket = self.loads.admit(worker, PROMPT, num_prompt_tokens=PROMPT)
        request.num_chosen += 1
        request.num_tokens = 0


def learned(**config: Any) -> Mesh:
    mesh = Mesh(**config)
    for worker in WORKERS:
        mesh.teach(worker, 0.5)
    return mesh


def test_requests_behind_a_long_prompt_leave_and_it_stays() -> None:
    mesh = learned()
    long = mesh.send("a", 100_000)
    behind = [mesh.send("a") for _ in range(4)]
    assert mesh.look() == behind[::-1]
    assert long not in mesh.look()


def test_nobody_leaves_without_a_better_place() -> None:
    mesh = learned()
    for worker in WORKERS:
        mesh.send(worker, 100_000)
        mesh.send(worker)
    assert not mesh.look()


@pytest.mark.parametrize("workers", [("a",), ()])
def test_nobody_leaves_the_only_worker(workers: tuple[str, ...]) -> None:
    mesh = learned()
    mesh.send("a", 100_000)
    mesh.send("a")
    mesh.workers = workers
    assert not mesh.look()


def test_the_budget_holds_and_the_longest_wait_goes_first() -> None:
    mesh = learned()
    mesh.send("a", 100_000)
    behind = [mesh.send("a") for _ in range(4)]
    assert mesh.look(limit=2) == behind[:1:-1]
    assert not mesh.look(limit=0)


def test_a_prompt_that_may_have_begun_leaves_only_when_it_is_very_late() -> None:
    mesh = learned()
    request = mesh.send("a")
    looks = [mesh.look() for _ in range(8)]
    first = next(i for i, gone in enumerate(looks) if gone)
    assert looks[first] == [request]
    assert first > 2, "half a second was foreseen, and another worker would need as long again"


def test_a_worker_of_unknown_speed_is_not_late() -> None:
    mesh = Mesh()
    mesh.send("a")
    assert not any(mesh.look() for _ in range(60))


def test_nobody_goes_back_and_the_next_move_takes_its_time() -> None:
    mesh = learned()
    request = mesh.send("a")
    homes = ["a"]
    times_s = []
    for _ in range(100):
        if mesh.look():
            ranking = request.rank_others()
            assert ranking is not None
            mesh.move(request, ranking.candidates[0].endpoint)
            homes.append(str(request.ticket.worker))
            times_s.append(mesh.now_s)
    assert sorted(homes) == sorted(WORKERS), "each worker once, although none ever answers"
    assert times_s[1] - times_s[0] >= CONFIG.cooldown_s


def test_who_was_better_off_is_not_priced_again_at_once() -> None:
    mesh = learned()
    mesh.send("b", 100_000)
    mesh.send("c", 100_000)
    mesh.send("a", 100_000)
    mesh.send("a", 2_000)
    looks = []
    for _ in range(4):
        before = mesh.num_ranked
        assert not mesh.look()
        looks.append(mesh.num_ranked - before)
    assert looks == [1, 0, 0, 0], "the one that waits behind another"


def running(mesh: Mesh, worker: str, num: int) -> list[Request]:
    """Requests that have got their first token."""
    requests = [mesh.send(worker, 100) for _ in range(num)]
    for request in requests:
        request.ticket.answered(worker)
        request.num_tokens = 1
    return requests


def give(requests: Sequence[Request], num_tokens: int) -> None:
    for request in requests:
        request.num_tokens += num_tokens


def test_some_streams_of_a_slow_worker_leave_once_it_has_been_slow_for_long() -> None:
    mesh = learned()
    slow, quick, also = (running(mesh, worker, 20) for worker in WORKERS)
    gone: list[list[Request]] = []
    for _ in range(NUM_WINDOWS + CONFIG.slow_looks):
        give(slow, 5)
        give([*quick, *also], 100)
        gone.append(mesh.look())
    *before, last = gone
    assert not any(before)
    assert len(last) == CONFIG.worker_share * len(slow)
    assert set(last) <= set(slow)


def test_streams_stay_when_all_workers_are_slow_or_one_is_for_a_while_only() -> None:
    mesh = learned()
    streams = [running(mesh, worker, 20) for worker in WORKERS]
    for i in range(60):
        for number, each in enumerate(streams):
            give(each, 100 if (i + number) % NUM_WINDOWS == 0 else 2)
        assert not mesh.look()


def test_streams_of_slow_clients_do_not_make_a_worker_slow() -> None:
    mesh = learned()
    slow, quick = running(mesh, "a", 20), running(mesh, "b", 20)
    for request in slow[1:]:
        request.is_reading = False
    for _ in range(30):
        give(slow[1:], 1)
        give([slow[0], *quick], 100)
        assert not mesh.look()


def test_a_stream_without_tokens_beside_others_that_get_them_leaves() -> None:
    """It was preempted, and waits for room."""
    mesh = learned()
    streams = running(mesh, "a", 5)
    gone = []
    for _ in range(10):
        give(streams[1:], 50)
        gone += mesh.look()
    assert gone[:1] == streams[:1]
    assert not set(gone) & set(streams[1:])


def test_streams_of_a_worker_that_stands_still_leave_unless_all_do() -> None:
    mesh = learned()
    still = running(mesh, "a", 5)
    mesh.look()
    for _ in range(6):
        assert not mesh.look()
    mesh.teach("b", 0.1, times=1)
    assert set(mesh.look()) == set(still)


def test_looks_far_apart_show_nothing() -> None:
    """This process was stopped, not the workers."""
    loads = LoadTracker(lambda: now_s)
    now_s = 0.0
    pace = Pace(loads, 3.0)
    mesh = Mesh()
    mesh.loads = loads
    [stream] = running(mesh, "a", 1)
    for i in range(NUM_WINDOWS + 1):
        now_s += 1.0
        stream.num_tokens += 10
        assert pace.token_s("a") is None, i
        pace.look([stream], WORKERS)
    assert pace.token_s("a") == pytest.approx(0.1)
    now_s += 100.0
    pace.look([stream], WORKERS)
    assert pace.token_s("a") == pytest.approx(0.1)
    assert pace.foreseen_s("b") == pytest.approx(0.1, rel=0.1), "as slow as the slowest known, without load"
    pace.look([], ("b",))
    assert pace.token_s("a") is None
    assert pace.foreseen_s("b") is None


def test_a_worker_that_was_left_for_being_late_is_expected_to_stand_still_for_a_while() -> None:
    mesh = learned()
    request = mesh.send("a")
    mesh.now_s += 4.0
    mesh.move(request, "b")

    def wait_s() -> float:
        return mesh.loads.forecast.outlook("a", 10, 0, Load()).queue_s

    assert wait_s() == pytest.approx(3.5, abs=0.1)
    mesh.now_s += 3.0
    assert wait_s() == pytest.approx(0.5, abs=0.1)
    ticket = mesh.send("a").ticket
    assert wait_s() == pytest.approx(1.0, abs=0.1)
    ticket.answered("a")
    assert wait_s() == 0.0


def test_what_leaves_from_behind_spoils_no_observation() -> None:
    mesh = learned()
    before = mesh.loads.forecast.prefill.num_seen("b")
    assert before < 20
    first = mesh.send("b", STEP_TOKENS)
    mesh.move(mesh.send("b"), "a")
    mesh.now_s += 0.4
    first.ticket.answered("b")
    assert mesh.loads.forecast.prefill.num_seen("b") == before + 1

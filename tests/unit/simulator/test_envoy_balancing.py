"""What Envoy alone would do, in virtual time."""

from __future__ import annotations

from collections import Counter
from typing import cast

from shoal.simulator.envoy import REPORT_S, RingHash, WeightedRoundRobin
from shoal.simulator.worker import VirtualWorker


class Reporting:
    """A worker that generates 100 tokens between two reports."""

    def __init__(self, kv_usage: float, queue: float = 0.0) -> None:
        self._tokens, self._kv_usage, self._queue = 0, kv_usage, queue

    def load(self) -> tuple[int, float, float]:
        self._tokens += 100
        return self._tokens, self._kv_usage, self._queue


def weighted(*workers: Reporting) -> WeightedRoundRobin:
    return WeightedRoundRobin(cast(list[VirtualWorker], list(workers)))


def test_workers_take_turns_before_their_first_reports() -> None:
    balancer = weighted(Reporting(0.1), Reporting(0.9), Reporting(0.5))
    assert [balancer.choose(0.0) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_shares_follow_the_reports() -> None:
    balancer = weighted(Reporting(0.1), Reporting(0.4), Reporting(0.1, queue=0.4))
    counts = Counter(balancer.choose(REPORT_S) for _ in range(600))
    assert all(abs(counts[worker] - expected) <= 1 for worker, expected in enumerate((400, 100, 100)))


def test_few_picks_between_reports_go_to_light_workers_as_well() -> None:
    balancer = weighted(*(Reporting(usage) for usage in (0.1, 0.2, 0.4, 0.4)))
    counts = Counter(balancer.choose(REPORT_S * number) for number in range(1, 901))
    assert all(abs(counts[worker] - expected) < 90 for worker, expected in enumerate((450, 225, 112, 112)))


def test_a_ring_spreads_prefixes_and_keeps_them() -> None:
    ring = RingHash(4)
    prefixes = [f"{number:032x}" for number in range(2000)]
    homes = [ring.choose(prefix) for prefix in prefixes]
    assert homes == [RingHash(4).choose(prefix) for prefix in prefixes]
    assert all(350 < count < 650 for count in Counter(homes).values())

"""What waits for one tenant, best first."""

from __future__ import annotations

import heapq

from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.limits import TenantPolicy

_Ranked = tuple[float, int, Entry]
_SLACK = 32
"""Dead entries that a heap may hold beside as many as live ones."""


class TenantQueue:
    """A heap from either end, since the worst entry makes room when the queue is full.

    Entries that left by the other end, or in the middle, stay in a heap as dead ones until they surface or outnumber
    the living: O(log n) amortised.
    """

    __slots__ = (
        "_best", "_cost_by_priority", "_worst", "counter", "name", "num_requests", "num_tokens", "outstanding",
        "policy", "predicted", "served", "turn_number",
    )  # fmt: skip

    def __init__(self, name: str, policy: TenantPolicy) -> None:
        self.name = name
        self.policy = policy
        self.counter = 0.0
        """Service received, and predicted for what is under way, in tokens over weight: the tenant with the smallest is
        next. Kept by `FairQueue`."""
        self.outstanding = 0.0
        """The predicted part, other gateways' included, in tokens. Kept by `FairQueue`."""
        self.served = 0.0
        """What it got in this process, the predicted part included, in tokens."""
        self.predicted = 0.0
        """The predicted part of that."""
        self.turn_number = 0
        """Which of its entries in the heap of tenants counts. Kept by `FairQueue`."""
        self.num_requests = 0
        self.num_tokens = 0
        self._best: list[_Ranked] = []
        self._worst: list[_Ranked] = []
        self._cost_by_priority: dict[int, float] = {}

    @property
    def received(self) -> float:
        """Service received for what is over, in tokens over weight."""
        return self.counter - self.outstanding / self.policy.weight

    def charge(self, cost: float) -> None:
        """A request goes that is predicted to take `cost` tokens."""
        self.outstanding += cost
        self.predicted += cost
        self.served += cost
        self.counter += cost / self.policy.weight

    def settle(self, cost: float, actual: float) -> None:
        """A request that was charged `cost` is over, and took `actual`."""
        self.outstanding -= cost
        self.predicted -= cost
        self.served += actual - cost
        self.counter += (actual - cost) / self.policy.weight

    def push(self, entry: Entry) -> None:
        """Adds it; its `key` and `number` are set."""
        entry.waiting = True
        self.num_requests += 1
        self.num_tokens += entry.num_tokens
        costs = self._cost_by_priority
        costs[entry.priority] = costs.get(entry.priority, 0.0) + entry.cost
        heapq.heappush(self._best, (entry.key, entry.number, entry))
        heapq.heappush(self._worst, (-entry.key, -entry.number, entry))

    def best(self) -> Entry:
        """The next one. Only while something waits."""
        return _top(self._best)

    def worst(self) -> Entry:
        """The last one. Only while something waits."""
        return _top(self._worst)

    def take(self, entry: Entry) -> None:
        """Takes an entry that waits here out, wherever it stands."""
        entry.waiting = False
        self.num_requests -= 1
        self.num_tokens -= entry.num_tokens
        if not self.num_requests:
            self._best, self._worst, self._cost_by_priority = [], [], {}
            return
        self._cost_by_priority[entry.priority] -= entry.cost
        most = 2 * self.num_requests + _SLACK
        if len(self._best) > most:
            self._best = _living(self._best)
        if len(self._worst) > most:
            self._worst = _living(self._worst)

    def cost_ahead(self, priority: int) -> float:
        """What waits here with this priority or a smaller value, in tokens."""
        return sum(cost for other, cost in self._cost_by_priority.items() if other <= priority)


def _top(heap: list[_Ranked]) -> Entry:
    while not heap[0][2].waiting:
        heapq.heappop(heap)
    return heap[0][2]


def _living(heap: list[_Ranked]) -> list[_Ranked]:
    kept = [ranked for ranked in heap if ranked[2].waiting]
    heapq.heapify(kept)
    return kept

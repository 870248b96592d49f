"""Requests that wait, in the order in which they go: the tenants take turns by what they have used, and within a tenant
priority and age decide.

Virtual token counters: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), weighted, with predicted
output lengths that are settled later. Everything is O(log n) in tenants and in a tenant's requests, but for displacing:
that looks at every tenant that waits, and happens only when the queue is full and a tenant below its share calls.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final, Literal

from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.limits import QueueLimits
from shoal.gateway.admission.tenant_queue import TenantQueue

_SLACK: Final = 32
FullReason = Literal["tenant_full", "queue_full"]


class QueueFull(Exception):
    """The entry cannot wait here."""

    def __init__(self, reason: FullReason) -> None:
        super().__init__(reason)
        self.reason: FullReason = reason


class FairQueue:
    """Bounded. Knows no clock: callers say what time it is, in seconds of any one clock."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self.num_requests = 0
        self.num_tokens = 0
        self.cost = 0.0
        self._tenants: dict[str, TenantQueue] = {}
        """Everybody who ever called; authenticated names, so a bounded number of them."""
        self._waiting: dict[str, TenantQueue] = {}
        self._waiting_weight = 0.0
        self._changed: set[str] = set()
        """Tenants that got something since `take_changes`."""
        self._turns: list[tuple[float, int, TenantQueue]] = []
        """Waiting tenants by counter. Entries whose number is not the tenant's are dead."""
        self._expiries: list[tuple[float, int, Entry]] = []
        self._number = 0
        self._virtual_time = 0.0
        """What those who went last had received: one who comes back has missed nothing, and gets nothing for it."""

    def offer(self, entry: Entry) -> Sequence[Entry]:
        """Adds it. Returns those that lost their place to it. Raises QueueFull; nothing has changed then."""
        tenant = self._tenant(entry.tenant)
        entry.key = self._key(entry)
        displaced = self._make_room(tenant, entry)
        self._push(tenant, entry)
        return displaced

    def put_back(self, entry: Entry) -> None:
        """Adds one that had left, at the place it had. Limits do not hold: what was let out may come back.

        `entry` must be another object than the one that left.
        """
        entry.key = self._key(entry)
        self._push(self._tenant(entry.tenant), entry)

    def head(self) -> Entry | None:
        """The next one; None when nobody waits."""
        tenant = self._next_tenant()
        return None if tenant is None else tenant.best()

    def pop(self) -> Entry:
        """Takes the head, and charges its tenant. Only while somebody waits."""
        tenant = self._next_tenant()
        assert tenant is not None, "head() said that somebody waits"
        entry = tenant.best()
        self._virtual_time = max(self._virtual_time, tenant.received)
        tenant.charge(entry.cost)
        self._changed.add(tenant.name)
        self.take(entry)
        if tenant.num_requests:
            self._set_turn(tenant)
        return entry

    def take(self, entry: Entry) -> None:
        """Takes out an entry that waits, without a charge."""
        tenant = self._waiting[entry.tenant]
        tenant.take(entry)
        self.num_requests -= 1
        self.num_tokens -= entry.num_tokens
        self.cost -= entry.cost
        if not tenant.num_requests:
            del self._waiting[tenant.name]
            self._waiting_weight -= tenant.policy.weight
        if not self.num_requests:
            self._expiries, self._turns, self.cost, self._waiting_weight = [], [], 0.0, 0.0
        elif len(self._expiries) > 2 * self.num_requests + _SLACK:
            self._expiries = [item for item in self._expiries if item[2].waiting]
            heapq.heapify(self._expiries)

    def pass_by(self, name: str, cost: float) -> None:
        """Charges a request that goes without waiting. Only while nobody waits."""
        tenant = self._tenants.get(name) or self._tenant(name)
        tenant.counter = max(tenant.counter, self._virtual_time)
        self._virtual_time = max(self._virtual_time, tenant.received)
        tenant.charge(cost)
        self._changed.add(name)

    def charge_elsewhere(self, name: str, cost: float, predicted: float) -> None:
        """Another gateway served a tenant, or (below 0) less than it had said. predicted: by how much what is only
        predicted of it has changed.

        Who gets nothing here meanwhile does not fall behind those who do: as after idling, it begins where they are.
        While somebody waits here, what others get elsewhere is no reason for a newcomer to begin there.
        """
        tenant = self._tenant(name)
        if not tenant.num_requests:
            tenant.counter = max(tenant.counter, self._virtual_time)
        tenant.outstanding += predicted
        tenant.counter += cost / tenant.policy.weight
        if not self.num_requests:
            self._virtual_time = max(self._virtual_time, tenant.received)
        if tenant.num_requests:
            self._set_turn(tenant)

    def service(self) -> list[tuple[str, float, float]]:
        """What every tenant got here in all, in tokens, and how much of that is predicted."""
        return [(tenant.name, tenant.served, tenant.predicted) for tenant in self._tenants.values()]

    def take_changes(self) -> list[tuple[str, float, float]]:
        """The same of those where it changed since the last call."""
        changed, self._changed = self._changed, set()
        return [(name, self._tenants[name].served, self._tenants[name].predicted) for name in changed]

    def settle(self, name: str, cost: float, actual: float) -> None:
        """A request that was charged `cost` tokens is over, and took `actual`."""
        tenant = self._tenant(name)
        tenant.settle(cost, actual)
        self._changed.add(name)
        if tenant.num_requests:
            self._set_turn(tenant)

    def expire(self, now_s: float) -> Sequence[Entry]:
        """Takes out those whose time is over."""
        expired = []
        while (next_s := self.next_expiry_s()) is not None and next_s <= now_s:
            entry = heapq.heappop(self._expiries)[2]
            self.take(entry)
            expired.append(entry)
        return expired

    def next_expiry_s(self) -> float | None:
        """When the next one gives up; None when nobody waits."""
        expiries = self._expiries
        while expiries and not expiries[0][2].waiting:
            heapq.heappop(expiries)
        return expiries[0][0] if expiries else None

    def cost_ahead(self, name: str, priority: int) -> float:
        """What goes before a request that would come now, the other tenants' part included, in tokens: at most all
        that waits, and as much less as the tenant has less of it than its share."""
        tenant = self._tenants.get(name)
        weight = self.limits.of(name).weight
        mine = 0.0
        others = self._waiting_weight
        if tenant is not None and tenant.num_requests:
            mine = tenant.cost_ahead(priority)
            others -= weight
        return min(self.cost, mine * (others + weight) / weight)

    def waiting_of(self, name: str) -> tuple[int, int]:
        """Requests and prompt tokens that wait for a tenant."""
        tenant = self._waiting.get(name)
        return (0, 0) if tenant is None else (tenant.num_requests, tenant.num_tokens)

    def counter_of(self, name: str) -> float:
        """What a tenant has used, in tokens over its weight."""
        return self._tenant(name).counter

    def _key(self, entry: Entry) -> float:
        """All wait equally fast, so the order by age and priority never changes while they do."""
        return entry.arrived_s + entry.priority * self.limits.priority_step_s

    def _tenant(self, name: str) -> TenantQueue:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = TenantQueue(name, self.limits.of(name))
            tenant.counter = self._virtual_time
        return tenant

    def _push(self, tenant: TenantQueue, entry: Entry) -> None:
        self._number += 1
        entry.number = self._number
        if not tenant.num_requests:
            first = self._next_tenant()
            # Not its counter: predictions for what is under way may prove too high, and a tenant that has nothing
            # under way yet would wait until everybody else had made up for them.
            floor = self._virtual_time if first is None else first.received
            tenant.counter = max(tenant.counter, floor)
            self._waiting[tenant.name] = tenant
            self._waiting_weight += tenant.policy.weight
            self._set_turn(tenant)
        tenant.push(entry)
        self.num_requests += 1
        self.num_tokens += entry.num_tokens
        self.cost += entry.cost
        heapq.heappush(self._expiries, (entry.expires_s, entry.number, entry))

    def _set_turn(self, tenant: TenantQueue) -> None:
        self._number += 1
        tenant.turn_number = self._number
        heapq.heappush(self._turns, (tenant.counter, self._number, tenant))
        if len(self._turns) > 2 * len(self._waiting) + _SLACK:
            self._turns = [turn for turn in self._turns if turn[1] == turn[2].turn_number and turn[2].num_requests]
            heapq.heapify(self._turns)

    def _next_tenant(self) -> TenantQueue | None:
        turns = self._turns
        while turns:
            _, number, tenant = turns[0]
            if number == tenant.turn_number and tenant.num_requests:
                return tenant
            heapq.heappop(turns)
        return None

    def _make_room(self, tenant: TenantQueue, entry: Entry) -> list[Entry]:
        """Takes out who must go for `entry` to fit: the tenant's own last, if that is behind it; or the last of those
        who have more than their share of the queue, if this tenant then still has no more than its own."""
        policy, limits = tenant.policy, self.limits
        tokens = entry.num_tokens
        requests_over = self.num_requests + 1 - limits.max_requests
        tokens_over = self.num_tokens + tokens - limits.max_tokens
        own_requests_over = tenant.num_requests + 1 - policy.max_requests
        own_tokens_over = tenant.num_tokens + tokens - policy.max_tokens
        is_own_full = own_requests_over > 0 or own_tokens_over > 0
        if not (is_own_full or requests_over > 0 or tokens_over > 0):
            return []
        if tenant.num_requests:
            worst = tenant.worst()
            fits = max(requests_over, own_requests_over) <= 1
            fits = fits and max(tokens_over, own_tokens_over) <= worst.num_tokens
            if fits and worst.key > entry.key:
                self.take(worst)
                return [worst]
        if is_own_full:
            raise QueueFull("tenant_full")
        return self._displace(tenant, entry)

    def _displace(self, tenant: TenantQueue, entry: Entry) -> list[Entry]:
        """Entries of tenants above their share, whoever has most in relation to it first."""
        limits, weight = self.limits, tenant.policy.weight
        weights = self._waiting_weight + (0.0 if tenant.num_requests else weight)
        part = weight / weights
        if (
            tenant.num_requests + 1 > limits.max_requests * part
            or tenant.num_tokens + entry.num_tokens > limits.max_tokens * part
        ):
            raise QueueFull("queue_full")
        removed: list[Entry] = []
        while self.num_requests + 1 > limits.max_requests or self.num_tokens + entry.num_tokens > limits.max_tokens:
            by_tokens = self.num_requests + 1 <= limits.max_requests
            richest = max(
                (t for t in self._waiting.values() if t is not tenant),
                key=lambda t: (t.num_tokens if by_tokens else t.num_requests) / t.policy.weight,
            )
            worst = richest.worst()
            self.take(worst)
            removed.append(worst)
        return removed

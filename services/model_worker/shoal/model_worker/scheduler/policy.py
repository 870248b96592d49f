"""Who goes first. A policy is a sort key and a rule about preemption; the scheduler does the rest."""

from __future__ import annotations

from typing import Literal, Protocol

from shoal.model_worker.request import Request

PolicyName = Literal["fcfs", "priority"]


class Policy(Protocol):
    """Orders requests. Keys must not change over a request's life; ties are broken by arrival."""

    def key(self, request: Request) -> float:
        """Smaller runs first, in the queue and when blocks run out."""

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        """Whether `waiting` may take `running`'s place. Must imply a smaller key: two never evict each other."""


class FcfsPolicy:
    """First come, first served; priorities are ignored."""

    def key(self, request: Request) -> float:
        """Time of arrival."""
        return request.arrival_s

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        """Never: whoever runs, came first."""
        return False


class PriorityPolicy:
    """Smaller `priority` first, with aging: waiting `aging_s` outweighs one step of priority.

    All requests age at the same rate, so the order of two never changes and the key is fixed on arrival:
    arrival + priority * aging_s. A request can thus be overtaken only by those that arrive within
    (difference of priorities) * aging_s after it: nothing starves.
    """

    def __init__(self, aging_s: float) -> None:
        if not aging_s > 0:
            raise ValueError(f"aging_s is {aging_s}; it must be greater than 0")
        self._aging_s = aging_s

    def key(self, request: Request) -> float:
        """Time of arrival, shifted by the priority."""
        return request.arrival_s + request.priority * self._aging_s

    def may_preempt(self, waiting: Request, running: Request) -> bool:
        """When it is more urgent by its own priority and has not been outwaited."""
        return waiting.priority < running.priority and self.key(waiting) < self.key(running)


def make_policy(name: PolicyName, *, priority_aging_s: float) -> Policy:
    """The policy of that name."""
    return FcfsPolicy() if name == "fcfs" else PriorityPolicy(priority_aging_s)

"""A request that waits, or may have to."""

from __future__ import annotations

import asyncio


class Entry:
    """Plain state, changed by the queue that holds it."""

    __slots__ = (
        "arrived_s", "cost", "expires_s", "key", "num_refusals", "num_sequences", "num_tokens", "number", "priority",
        "tenant", "turn", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        tenant: str,
        *,
        priority: int = 0,
        num_tokens: int,
        num_sequences: int = 1,
        cost: float,
        arrived_s: float,
        expires_s: float,
    ) -> None:
        """num_tokens: of the prompt. cost: what it is expected to take, in tokens (see `lane.Costs`)."""
        self.tenant = tenant
        self.priority = priority
        self.num_tokens = num_tokens
        self.num_sequences = num_sequences
        self.cost = cost
        self.arrived_s = arrived_s
        self.expires_s = expires_s
        """When it gives up: the earlier of its deadline and the age limit."""
        self.key = 0.0
        """Order within the tenant; the smallest is next. Set by the queue."""
        self.number = 0
        """Order of arrival among equals. Set by the queue."""
        self.waiting = False
        """Whether it is in the queue."""
        self.num_refusals = 0
        """How often a worker had no room for it after all."""
        self.turn: asyncio.Future[None] | None = None
        """Resolved when it may go, or with why it may not. Belongs to `admission`."""

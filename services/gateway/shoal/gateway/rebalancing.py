"""Moves requests by choice: looks at all that are under way once a second, and gives up attempts that were outbid."""

from __future__ import annotations

import asyncio
import random

import structlog

from shoal.gateway.attempt import Attempt, StallWatch
from shoal.gateway.failover import MoveGate
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.rebalance import RebalanceConfig, Rebalancer
from shoal.gateway.workers.fleet import Fleet

_BUDGET_RATIO = 0.5
"""Of the moves that may be under way at once: the rest is for streams that were lost."""
_log = structlog.get_logger("shoal.gateway.rebalance")


class Rebalancing:
    """Belongs to the event loop. The leg of an attempt that is given up takes the rest to the best other worker."""

    def __init__(
        self, fleet: Fleet, loads: LoadTracker, watch: StallWatch, gate: MoveGate, config: RebalanceConfig
    ) -> None:
        self._fleet = fleet
        self._loads = loads
        self._watch = watch
        self._gate = gate
        self._config = config
        self._rebalancers: dict[str, Rebalancer] = {}

    async def run(self) -> None:
        """Looks until cancelled. At random times, so that several gateways hear of each other's moves."""
        while True:
            await asyncio.sleep(self._config.interval_s * random.uniform(0.75, 1.25))  # noqa: S311 - guards nothing
            self.look()

    def look(self) -> None:
        """Starts the moves that pay, as far as the budget goes."""
        by_model: dict[str, list[Attempt]] = {model.name: [] for model in self._fleet.models}
        for attempt in self._watch.attempts:
            if attempt.holder is not None and not attempt.stalled and not attempt.is_outbid:
                by_model.setdefault(attempt.holder.model, []).append(attempt)
        limit = int(_BUDGET_RATIO * self._gate.limit) - self._gate.num_moving
        for model, attempts in by_model.items():
            rebalancer = self._rebalancers.get(model)
            if rebalancer is None:
                rebalancer = self._rebalancers[model] = Rebalancer(self._loads, self._config)
            outbid = rebalancer.look(attempts, self._fleet.ready_endpoints(model), limit)
            for attempt in outbid:
                attempt.outbid()
            limit -= len(outbid)
            if outbid:
                _log.info("requests move by choice", model=model, requests=len(outbid))

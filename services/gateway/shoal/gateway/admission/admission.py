"""Lets requests through, or lets them wait their turn. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from opentelemetry import trace

from shoal.gateway.admission import metrics
from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.fair_queue import QueueFull
from shoal.gateway.admission.lane import Lane, TooLong
from shoal.gateway.admission.limits import QueueLimits
from shoal.gateway.admission.metrics import band_of
from shoal.gateway.admission.permit import Ask, Permit
from shoal.gateway.admission.room import Capacity, Room
from shoal.rpc.errors import DeadlineExceeded, ResourceExhausted, ShoalError, Unavailable

Service = tuple[str, str, float, float]
"""Model, tenant, tokens that it got at this gateway since the start, and how many of them are predicted."""
MAX_REFUSALS: Final = 8
"""A request that workers had no room for so often is refused in turn."""
PROBE_INTERVAL_S: Final = 0.1
"""After a refusal, room is tried for in steps this far apart."""
LOOK_INTERVAL_S: Final = 0.05
"""How often those who wait look whether other gateways have made room."""
MIN_RETRY_S: Final = 1.0
_FULL: Final = {
    "queue_full": "the queue is full",
    "tenant_full": "your part of the queue is full",
    "displaced": "the queue is full, and others with less in it, or with a better priority, came",
}


class Admission:
    """`enter_now`, and only if that gives None, `enter`; then close the permit."""

    def __init__(
        self,
        limits: QueueLimits,
        capacity_of: Callable[[str], Capacity | None],
        *,
        num_gateways: int = 1,
        others_of: Callable[[str], int | None] | None = None,
    ) -> None:
        """capacity_of: what the ready workers of a model can take, None when there are none; call `refresh` when that
        changed. num_gateways: that share the workers. others_of: sequences that the other gateways have under way at a
        model's workers, None while they do not tell."""
        self._limits = limits
        self._capacity_of = capacity_of
        self._num_gateways = num_gateways
        self._others_of = others_of
        self._lanes: dict[str, Lane] = {}
        self._timers: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self._probing: set[str] = set()
        self._is_draining = False

    @property
    def num_waiting(self) -> int:
        """Requests of all models."""
        return sum(lane.queue.num_requests for lane in self._lanes.values())

    def enter_now(self, ask: Ask) -> Permit | None:
        """A permit if nobody waits and there is room; no task, no wait, nothing measured."""
        lane = self._lanes.get(ask.model) or self._open_lane(ask.model)
        cost = lane.cost_of(ask.num_tokens, ask.num_sequences, ask.max_output_tokens)
        if not lane.pass_by(ask.tenant, ask.num_tokens, ask.num_sequences, cost):
            return None
        return Permit(ask, lane, cost, self._pump)

    async def enter(self, ask: Ask) -> Permit:
        """Waits for a permit. Raises ResourceExhausted with when to come back, or DeadlineExceeded."""
        lane, now_s = self._lanes[ask.model], time.monotonic()
        cost = lane.cost_of(ask.num_tokens, ask.num_sequences, ask.max_output_tokens)
        entry = _entry(ask, cost, now_s, min(ask.deadline_s, now_s + self._limits.max_age_s))
        if self._is_draining:
            raise self._shed(lane, entry, "draining", now_s)
        try:
            displaced = lane.offer(entry, now_s)
        except QueueFull as full:
            raise self._shed(lane, entry, full.reason, now_s) from None
        except TooLong as wait:
            raise self._shed(lane, entry, "expected_wait", now_s, wait.expected_s) from None
        for loser in displaced:
            _end_wait(loser, self._shed(lane, loser, "displaced", now_s))
        return await self._wait(lane, ask, entry)

    async def enter_again(self, permit: Permit, error: ResourceExhausted) -> Permit:
        """Gives the permit of a request that no worker had room for back and waits for another one, at the place that
        the request had. Raises `error` when that happened too often, and what `enter` raises."""
        ask, old, now_s = permit.ask, permit.entry, time.monotonic()
        lane = self._lanes[ask.model]
        if self._is_draining or (old is not None and old.num_refusals >= MAX_REFUSALS):
            permit.close()
            raise error
        arrived_s = now_s if old is None else old.arrived_s
        entry = _entry(ask, permit.cost, arrived_s, min(ask.deadline_s, arrived_s + self._limits.max_age_s))
        entry.num_refusals = 1 if old is None else old.num_refusals + 1
        permit.give_back(entry, now_s)
        metrics.REFUSED.labels(ask.model).inc()
        if ask.model not in self._probing:
            self._probing.add(ask.model)
            asyncio.get_running_loop().call_later(PROBE_INTERVAL_S, self._probe, lane)
        return await self._wait(lane, ask, entry)

    def service(self) -> list[Service]:
        """See `Ledger`."""
        return [(lane.model, *service) for lane in self._lanes.values() for service in lane.queue.service()]

    def take_changes(self) -> list[Service]:
        """See `Ledger`."""
        return [(lane.model, *service) for lane in self._lanes.values() for service in lane.queue.take_changes()]

    def charge_elsewhere(self, model: str, tenant: str, num_tokens: float, num_predicted_tokens: float) -> None:
        """Another gateway served a tenant: by how much that has grown, and the predicted part of it."""
        lane = self._lanes.get(model) or self._open_lane(model)
        lane.queue.charge_elsewhere(tenant, num_tokens, num_predicted_tokens)

    def refresh(self) -> None:
        """Workers came, went or changed."""
        for lane in self._lanes.values():
            self._resize(lane)
            self._pump(lane)

    def drain(self) -> None:
        """Nobody waits from now on: who does is told to ask elsewhere."""
        self._is_draining = True
        for lane in self._lanes.values():
            now_s = time.monotonic()
            while (entry := lane.queue.head()) is not None:
                lane.leave(entry, now_s)
                _end_wait(entry, self._shed(lane, entry, "draining", now_s))
            self._arm(lane)

    async def _wait(self, lane: Lane, ask: Ask, entry: Entry) -> Permit:
        turn = entry.turn = asyncio.get_running_loop().create_future()
        labels = (lane.model, ask.tenant if ask.tenant in self._limits.tenants else "other", band_of(ask.priority))
        metrics.QUEUE_REQUESTS.labels(*labels).inc()
        metrics.QUEUE_TOKENS.labels(*labels).inc(ask.num_tokens)
        self._pump(lane)
        self._arm(lane)
        try:
            await turn
        except asyncio.CancelledError:
            self._abandon(lane, ask, entry)
            raise
        finally:
            metrics.QUEUE_REQUESTS.labels(*labels).dec()
            metrics.QUEUE_TOKENS.labels(*labels).dec(ask.num_tokens)
        waited_s = time.monotonic() - entry.arrived_s
        metrics.QUEUE_WAIT_S.labels(lane.model, labels[2]).observe(waited_s)
        trace.get_current_span().set_attribute("shoal.queue.wait_s", waited_s)
        return Permit(ask, lane, entry.cost, self._pump, entry, waited_s)

    def _abandon(self, lane: Lane, ask: Ask, entry: Entry) -> None:
        """The client is gone, in the queue or in the moment in which its turn came."""
        if entry.waiting:
            lane.leave(entry, time.monotonic())
            metrics.SHED.labels(lane.model, "client_gone").inc()
        elif entry.turn is not None and not entry.turn.cancelled() and entry.turn.exception() is None:
            Permit(ask, lane, entry.cost, self._pump, entry).close()

    def _pump(self, lane: Lane) -> None:
        """Lets go whoever can."""
        now_s = time.monotonic()
        while (entry := lane.next(now_s)) is not None:
            turn = entry.turn
            if turn is None or turn.done():  # its task was cancelled, and has not run since
                lane.release(entry.tenant, entry.num_sequences, entry.num_tokens, entry.cost, 0.0)
            else:
                turn.set_result(None)

    def _arm(self, lane: Lane) -> None:
        """Sees to it that the next one to give up is told in time: one timer a lane, and early rather than moved."""
        next_s = lane.queue.next_expiry_s()
        if next_s is not None and self._others_of is not None:
            next_s = min(next_s, time.monotonic() + LOOK_INTERVAL_S)
        known = self._timers.get(lane.model)
        if known is not None and (next_s is None or known[0] > next_s):
            known[1].cancel()
            del self._timers[lane.model]
            known = None
        if next_s is not None and known is None:
            left_s = max(0.001, next_s - time.monotonic())
            handle = asyncio.get_running_loop().call_later(left_s, self._expire, lane)
            self._timers[lane.model] = (next_s, handle)

    def _expire(self, lane: Lane) -> None:
        del self._timers[lane.model]
        now_s = time.monotonic()
        for entry in lane.expire(now_s):
            reason = "deadline" if entry.expires_s < entry.arrived_s + self._limits.max_age_s else "age"
            _end_wait(entry, self._shed(lane, entry, reason, now_s))
        self._pump(lane)
        self._arm(lane)

    def _probe(self, lane: Lane) -> None:
        if lane.room.probe() and not self._is_draining:
            asyncio.get_running_loop().call_later(PROBE_INTERVAL_S, self._probe, lane)
        else:
            self._probing.discard(lane.model)
        self._pump(lane)

    def _open_lane(self, model: str) -> Lane:
        others_of = self._others_of
        others = None if others_of is None else lambda: others_of(model)
        lane = self._lanes[model] = Lane(model, self._limits, Room(self._num_gateways, others))
        self._resize(lane)
        return lane

    def _resize(self, lane: Lane) -> None:
        lane.room.resize(self._capacity_of(lane.model))
        metrics.SHARE.labels(lane.model).set(lane.room.share)

    def _shed(self, lane: Lane, entry: Entry, reason: str, now_s: float, expected_s: float | None = None) -> ShoalError:
        """Counts a request that is not served, and says what its client hears."""
        metrics.SHED.labels(lane.model, reason).inc()
        waited_s = now_s - entry.arrived_s
        if reason == "draining":
            return Unavailable("this gateway is shutting down; send the request again")
        if reason == "deadline":
            return DeadlineExceeded(f"the deadline passed after {waited_s:.1f} s in the queue")
        allowed_s = entry.expires_s - entry.arrived_s
        if expected_s is not None:
            message = f"it would wait about {expected_s:.1f} s, and may wait {allowed_s:.1f} s"
            retry_after_s = expected_s - allowed_s
        else:
            expected_s = lane.expected_wait_s(entry.tenant, entry.priority, now_s)
            retry_after_s = MIN_RETRY_S if expected_s is None else min(expected_s, self._limits.max_age_s)
            message = _FULL.get(reason, f"no worker had room for it within {allowed_s:.1f} s")
        if reason == "age" and not lane.room.is_known:
            return Unavailable(f"no worker was ready within {allowed_s:.1f} s", max(retry_after_s, MIN_RETRY_S))
        return ResourceExhausted(f"all workers are busy: {message}; come back later", max(retry_after_s, MIN_RETRY_S))


def _entry(ask: Ask, cost: float, arrived_s: float, expires_s: float) -> Entry:
    return Entry(
        ask.tenant,
        priority=ask.priority,
        num_tokens=ask.num_tokens,
        num_sequences=ask.num_sequences,
        cost=cost,
        arrived_s=arrived_s,
        expires_s=expires_s,
    )


def _end_wait(entry: Entry, error: ShoalError) -> None:
    if entry.turn is not None and not entry.turn.done():
        entry.turn.set_exception(error)

"""The way in for one model: who waits, how much room there is, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shoal.gateway.admission.drain_rate import DrainRate
from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.fair_queue import FairQueue
from shoal.gateway.admission.limits import QueueLimits
from shoal.gateway.admission.room import Room

OUTPUT_WEIGHT: Final = 2.0
"""What a generated token counts, in prompt tokens: as in the paper, after what providers charge."""
_FIRST_GUESS: Final = 128.0
_LEARNING_RATE: Final = 1 / 32


class TooLong(Exception):
    """What is ahead takes longer than the request may wait."""

    def __init__(self, expected_s: float) -> None:
        super().__init__(f"{expected_s:.1f} s")
        self.expected_s = expected_s


class Lane:
    """State without a clock or an event loop. What enters it leaves it: `pass_by`, `next` and `refused` each owe one
    `release`, or one `refused`."""

    __slots__ = ("_output_tokens", "model", "queue", "rate", "room")

    def __init__(self, model: str, limits: QueueLimits, room: Room) -> None:
        self.model = model
        self.queue = FairQueue(limits)
        self.room = room
        self.rate = DrainRate()
        self._output_tokens = _FIRST_GUESS
        """Tokens of a completion, as they came lately."""

    def cost_of(self, num_tokens: int, num_sequences: int, max_output_tokens: int | None) -> float:
        """What a request is expected to take, in tokens."""
        output = self._output_tokens
        if max_output_tokens is not None and max_output_tokens < output:
            output = max_output_tokens
        return num_tokens + OUTPUT_WEIGHT * num_sequences * output

    def pass_by(self, tenant: str, num_tokens: int, num_sequences: int, cost: float) -> bool:
        """Lets a request go at once; False when it must wait, then nothing has changed."""
        queue, room = self.queue, self.room
        if queue.num_requests or not room.is_free():
            return False
        queue.pass_by(tenant, cost)
        room.num_sequences += num_sequences
        room.num_tokens += num_tokens
        return True

    def offer(self, entry: Entry, now_s: float) -> Sequence[Entry]:
        """Lets it wait; the entries that lost their place to it. Raises QueueFull or TooLong."""
        expected_s = self.expected_wait_s(entry.tenant, entry.priority, now_s)
        if expected_s is not None and now_s + expected_s > entry.expires_s:
            raise TooLong(expected_s)
        displaced = self.queue.offer(entry)
        self.rate.begin(now_s)
        return displaced

    def next(self, now_s: float) -> Entry | None:
        """Lets the next one go, if there is room for it at a known worker."""
        if not self.queue.num_requests or not self.room.is_known or not self.room.is_free():
            return None
        entry = self.queue.pop()
        self.room.num_sequences += entry.num_sequences
        self.room.num_tokens += entry.num_tokens
        self.rate.served(entry.cost, now_s)
        self._check_empty(now_s)
        return entry

    def leave(self, entry: Entry, now_s: float) -> None:
        """It waits no longer: nobody wants its answer."""
        self.queue.take(entry)
        self._check_empty(now_s)

    def expire(self, now_s: float) -> Sequence[Entry]:
        """Takes out those that have waited too long."""
        expired = self.queue.expire(now_s)
        if expired:
            self._check_empty(now_s)
        return expired

    def release(self, tenant: str, num_sequences: int, held_tokens: float, cost: float, actual_cost: float) -> None:
        """A request that went is over. held_tokens: as counted in `room`. actual_cost: 0 when it got nothing."""
        self.room.num_sequences -= num_sequences
        self.room.num_tokens -= held_tokens
        self.queue.settle(tenant, cost, actual_cost)

    def refused(self, entry: Entry, held_tokens: float, now_s: float) -> None:
        """A worker had no room for one that went: back to its place. `entry` is a fresh object, with the old times."""
        self.release(entry.tenant, entry.num_sequences, held_tokens, entry.cost, 0.0)
        self.room.refused()
        self.queue.put_back(entry)
        self.rate.begin(now_s)

    def learn_output(self, num_tokens: float) -> None:
        """A completion had so many tokens."""
        self._output_tokens += _LEARNING_RATE * (num_tokens - self._output_tokens)

    def expected_wait_s(self, tenant: str, priority: int, now_s: float) -> float | None:
        """How long a request that comes now would wait, at the rate of late; None when that is not known."""
        rate = self.rate.per_s(now_s)
        return None if not rate else self.queue.cost_ahead(tenant, priority) / rate

    def _check_empty(self, now_s: float) -> None:
        if not self.queue.num_requests:
            self.rate.end(now_s)

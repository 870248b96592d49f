"""What is under way at each worker: by this gateway, and by the others, as far as they told (`peers`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shoal.gateway.routing.forecast import Forecast

DECODE_TOKENS: Final = 64
"""What one running completion weighs, in prompt tokens. A choice, not a measurement: it makes a worker with 64 running
completions as busy as one with a prompt of 4,096 tokens to compute."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests under way."""

    num_requests: int = 0
    num_waiting_tokens: int = 0
    """Uncached prompt tokens of those that were not answered yet."""
    num_prompt_tokens: int = 0
    """Prompt tokens of all, cached or not, as far as they were told: what they hold of a worker's cache at least."""

    @property
    def tokens(self) -> int:
        """One comparable number, in tokens."""
        return self.num_waiting_tokens + DECODE_TOKENS * self.num_requests

    def __add__(self, other: Load) -> Load:
        return Load(
            self.num_requests + other.num_requests,
            self.num_waiting_tokens + other.num_waiting_tokens,
            self.num_prompt_tokens + other.num_prompt_tokens,
        )


_IDLE: Final = Load()


class LoadTracker:
    """Owned by the event loop's thread; every `Ticket` given out comes back once, and teaches the forecast."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.forecast = Forecast(clock)
        self._loads: dict[str, Load] = {}
        self._elsewhere: dict[str, Load] = {}
        self.open: dict[int, Ticket] = {}
        """This gateway's own requests under way, by number."""
        self.turn = 0
        """Picks so far, over all gateways as far as they told: whose turn it is among equal workers."""
        self.on_change: Callable[[Ticket], object] = bool
        """Called after something changed about a request of this gateway."""
        self._numbers = itertools.count(1)

    def of(self, worker: str) -> Load:
        """The load of `worker`, over all gateways; an unknown one has none."""
        own = self._loads.get(worker, _IDLE)
        elsewhere = self._elsewhere.get(worker)
        return own if elsewhere is None else own + elsewhere

    def elsewhere(self, worker: str) -> Load:
        """What all other gateways together have under way at `worker`."""
        return self._elsewhere.get(worker, _IDLE)

    def admit(self, worker: str | None, num_tokens: int, *, num_prompt_tokens: int = 0) -> Ticket:
        """Counts a request of `num_tokens` uncached prompt tokens; `worker` is None when Envoy chooses."""
        ticket = Ticket(self, worker, num_tokens, num_prompt_tokens, next(self._numbers))
        self.open[ticket.number] = ticket
        self.on_change(ticket)
        return ticket

    def admit_elsewhere(self, worker: str, num_tokens: int, num_prompt_tokens: int, *, is_waiting: bool) -> Ticket:
        """The same for a request of another gateway, which may have got its first token already."""
        self.turn += 1
        return Ticket(self, worker, num_tokens, num_prompt_tokens, 0, is_waiting=is_waiting)

    def add(self, worker: str | None, change: Load, *, is_own: bool) -> None:
        """Called by tickets."""
        if worker is None:
            return
        loads = self._loads if is_own else self._elsewhere
        updated = loads.get(worker, _IDLE) + change
        if updated == _IDLE:
            loads.pop(worker, None)
        else:
            loads[worker] = updated

    def changed(self, ticket: Ticket) -> None:
        """Called by tickets of this gateway."""
        if not ticket.is_open:
            self.open.pop(ticket.number, None)
        self.on_change(ticket)


class Ticket:
    """One request's share of a worker's load."""

    __slots__ = (
        "_answer_load", "_answer_s", "_tracker", "entry", "is_answered", "is_open", "num_output_tokens",
        "num_prompt_tokens", "num_tokens", "number", "sent_s", "worker",
    )  # fmt: skip

    def __init__(
        self,
        tracker: LoadTracker,
        worker: str | None,
        num_tokens: int,
        num_prompt_tokens: int,
        number: int,
        *,
        is_waiting: bool = True,
    ) -> None:
        """number: among this gateway's requests; 0 for another one's."""
        self._tracker = tracker
        self.entry = 0
        """Its prompt in the forecast for its worker, until that is answered; 0 without."""
        self.sent_s = tracker.clock()
        self._answer_s = 0.0
        self._answer_load = _IDLE
        self.number = number
        self.worker = worker
        self.num_tokens = num_tokens if is_waiting else 0
        """Uncached tokens of its prompt, until it is answered."""
        self.num_prompt_tokens = num_prompt_tokens
        self.num_output_tokens = 0
        """In the end."""
        self.is_answered = not is_waiting
        self.is_open = True
        self._count(1)
        if worker is not None and is_waiting:
            cached = max(0, num_prompt_tokens - num_tokens)
            self.entry = tracker.forecast.admitted(worker, num_tokens, cached)

    def answered(self, worker: str | None) -> None:
        """The first message came, from `worker` if that is known: the prompt is done, the completion runs."""
        if not self.is_open:
            return
        tracker, actual = self._tracker, worker or self.worker
        self._settle(is_answer=actual == self.worker)
        self._count(-1)
        self.num_tokens = 0
        self.worker = actual
        self.is_answered = True
        self._count(1)
        if actual is not None:
            self._answer_s, self._answer_load = tracker.clock(), tracker.of(actual)
        if self.number:
            tracker.changed(self)

    def close(self, num_output_tokens: int = 0, *, was_slow: bool = False) -> None:
        """The request is over, after `num_output_tokens` if it ended well. Harmless when repeated.

        was_slow: it was taken from a worker that took too long.
        """
        if not self.is_open:
            return
        self.is_open = False
        self.num_output_tokens = num_output_tokens
        self._settle(is_answer=False, was_slow=was_slow)
        tracker, worker = self._tracker, self.worker
        if worker is not None and self._answer_s and num_output_tokens > 1:
            took_s = tracker.clock() - self._answer_s
            num_running, context_tokens = _mean_beside(self._answer_load, tracker.of(worker))
            tracker.forecast.decoded(worker, num_output_tokens - 1, took_s, num_running, context_tokens)
        self._count(-1)
        if self.number:
            tracker.changed(self)

    def _count(self, sign: int) -> None:
        change = Load(sign, sign * self.num_tokens, sign * self.num_prompt_tokens)
        self._tracker.add(self.worker, change, is_own=self.number > 0)

    def _settle(self, *, is_answer: bool, was_slow: bool = False) -> None:
        forecast = self._tracker.forecast
        if self.entry and self.worker is not None:
            if is_answer:
                forecast.answered(self.worker, self.entry)
            else:
                forecast.withdrawn(self.worker, self.entry, was_slow=was_slow)
        self.entry = 0


def _mean_beside(first: Load, last: Load) -> tuple[float, float]:
    """Sequences and context, between an answer's begin and its end."""
    return (first.num_requests + last.num_requests) / 2, (first.num_prompt_tokens + last.num_prompt_tokens) / 2

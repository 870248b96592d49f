"""What is under way at each worker: by this gateway, and by the others, as far as they told (`peers`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
        self.turn = 0
        """Picks so far: whose turn it is among equal workers."""
        self._loads: dict[str, Load] = {}
        self._elsewhere: dict[str, Load] = {}
        self.on_change: Callable[[str], object] = bool
        """Called with the worker after this gateway's own share of its load changed."""

    @property
    def own(self) -> Mapping[str, Load]:
        """This gateway's share, by worker; those without any are left out."""
        return self._loads

    def of(self, worker: str) -> Load:
        """The load of `worker`, over all gateways; an unknown one has none."""
        own = self._loads.get(worker, _IDLE)
        elsewhere = self._elsewhere.get(worker)
        return own if elsewhere is None else own + elsewhere

    def elsewhere(self, worker: str) -> Load:
        """What all other gateways together have under way at `worker`."""
        return self._elsewhere.get(worker, _IDLE)

    def set_elsewhere(self, worker: str, load: Load) -> None:
        """What all other gateways together have under way at `worker`."""
        if load == _IDLE:
            self._elsewhere.pop(worker, None)
        else:
            self._elsewhere[worker] = load

    def admit(self, worker: str | None, num_tokens: int, *, num_prompt_tokens: int = 0) -> Ticket:
        """Counts a request of `num_tokens` uncached prompt tokens; `worker` is None when Envoy chooses."""
        ticket = Ticket(self, worker, num_tokens, num_prompt_tokens)
        self.add(worker, Load(1, num_tokens, num_prompt_tokens))
        return ticket

    def has_waiting_elsewhere(self, worker: str) -> bool:
        """Whether other gateways' prompts wait at `worker`."""
        elsewhere = self._elsewhere.get(worker)
        return elsewhere is not None and elsewhere.num_waiting_tokens > 0

    def add(self, worker: str | None, change: Load) -> None:
        """Called by tickets."""
        if worker is None:
            return
        updated = self._loads.get(worker, _IDLE) + change
        if updated == _IDLE:
            self._loads.pop(worker, None)
        else:
            self._loads[worker] = updated
        self.on_change(worker)


class Ticket:
    """One request's share of a worker's load."""

    __slots__ = ("_answer_load", "_answer_s", "_entry", "_open", "_prompt_tokens", "_tokens", "_tracker", "worker")

    def __init__(self, tracker: LoadTracker, worker: str | None, num_tokens: int, num_prompt_tokens: int) -> None:
        self._tracker = tracker
        self._tokens = num_tokens
        self._prompt_tokens = num_prompt_tokens
        self._open = True
        self._entry = 0
        self._answer_s = 0.0
        self._answer_load = _IDLE
        self.worker = worker
        if worker is not None:
            cached = max(0, num_prompt_tokens - num_tokens)
            is_shared = tracker.has_waiting_elsewhere(worker)
            self._entry = tracker.forecast.admitted(worker, num_tokens, cached, is_shared=is_shared)

    def answered(self, worker: str | None) -> None:
        """The first message came, from `worker` if that is known: the prompt is done, the completion runs."""
        if not self._open:
            return
        tracker, actual = self._tracker, worker or self.worker
        self._settle(is_answer=actual == self.worker)
        tracker.add(self.worker, Load(-1, -self._tokens, -self._prompt_tokens))
        self._tokens = 0
        self.worker = actual
        tracker.add(actual, Load(1, 0, self._prompt_tokens))
        if actual is not None:
            self._answer_s, self._answer_load = tracker.clock(), tracker.of(actual)

    def close(self, num_output_tokens: int = 0) -> None:
        """The request is over, after `num_output_tokens` if it ended well. Harmless when repeated."""
        if not self._open:
            return
        self._open = False
        self._settle(is_answer=False)
        tracker, worker = self._tracker, self.worker
        if worker is not None and self._answer_s and num_output_tokens > 1:
            took_s = tracker.clock() - self._answer_s
            num_running, context_tokens = _mean_beside(self._answer_load, tracker.of(worker))
            tracker.forecast.decoded(worker, num_output_tokens - 1, took_s, num_running, context_tokens)
        tracker.add(worker, Load(-1, -self._tokens, -self._prompt_tokens))

    def _settle(self, *, is_answer: bool) -> None:
        if self._entry and self.worker is not None:
            end = self._tracker.forecast.answered if is_answer else self._tracker.forecast.withdrawn
            end(self.worker, self._entry)
        self._entry = 0


def _mean_beside(first: Load, last: Load) -> tuple[float, float]:
    """Sequences and context, between an answer's begin and its end."""
    return (first.num_requests + last.num_requests) / 2, (first.num_prompt_tokens + last.num_prompt_tokens) / 2

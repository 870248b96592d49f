"""What this gateway has under way at each worker. Other gateways' requests are not in it; Envoy's ORCA sees those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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


_IDLE: Final = Load()


class LoadTracker:
    """Owned by the event loop's thread; every `Ticket` given out comes back once."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def of(self, worker: str) -> Load:
        """The load of `worker`; an unknown one has none."""
        return self._loads.get(worker, _IDLE)

    def admit(self, worker: str | None, num_tokens: int, *, num_prompt_tokens: int = 0) -> Ticket:
        """Counts a request of `num_tokens` uncached prompt tokens; `worker` is None when Envoy chooses."""
        ticket = Ticket(self, worker, num_tokens, num_prompt_tokens)
        self.add(worker, Load(1, num_tokens, num_prompt_tokens))
        return ticket

    def add(self, worker: str | None, change: Load) -> None:
        """Called by tickets."""
        if worker is None:
            return
        old = self.of(worker)
        updated = Load(
            old.num_requests + change.num_requests,
            old.num_waiting_tokens + change.num_waiting_tokens,
            old.num_prompt_tokens + change.num_prompt_tokens,
        )
        if updated == _IDLE:
            self._loads.pop(worker, None)
        else:
            self._loads[worker] = updated


class Ticket:
    """One request's share of a worker's load."""

    __slots__ = ("_open", "_prompt_tokens", "_tokens", "_tracker", "worker")

    def __init__(self, tracker: LoadTracker, worker: str | None, num_tokens: int, num_prompt_tokens: int) -> None:
        self._tracker = tracker
        self._tokens = num_tokens
        self._prompt_tokens = num_prompt_tokens
        self._open = True
        self.worker = worker

    def answered(self, worker: str | None) -> None:
        """The first message came, from `worker` if that is known: the prompt is done, the completion runs."""
        if not self._open:
            return
        actual = worker or self.worker
        self._tracker.add(self.worker, Load(-1, -self._tokens, -self._prompt_tokens))
        self._tokens = 0
        self.worker = actual
        self._tracker.add(actual, Load(1, 0, self._prompt_tokens))

    def close(self) -> None:
        """The request is over. Harmless when repeated."""
        if self._open:
            self._open = False
            self._tracker.add(self.worker, Load(-1, -self._tokens, -self._prompt_tokens))

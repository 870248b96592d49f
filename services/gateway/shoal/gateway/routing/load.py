"""What is under way at each worker: by this gateway, and by the others, as far as they told (`peers`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def __add__(self, other: Load) -> Load:
        return Load(
            self.num_requests + other.num_requests,
            self.num_waiting_tokens + other.num_waiting_tokens,
            self.num_prompt_tokens + other.num_prompt_tokens,
        )


_IDLE: Final = Load()


class LoadTracker:
    """Owned by the event loop's thread; every `Ticket` given out comes back once."""

    def __init__(self) -> None:
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

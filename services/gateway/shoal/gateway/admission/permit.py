"""What a request that may go holds until it is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shoal.gateway.admission.entry import Entry
from shoal.gateway.admission.lane import OUTPUT_WEIGHT, Lane


@dataclass(frozen=True, slots=True)
class Ask:
    """What admission must know of a request."""

    model: str
    tenant: str
    priority: int
    num_tokens: int
    """Of the prompt."""
    num_sequences: int
    """n."""
    max_output_tokens: int | None
    deadline_s: float
    """On the clock of `time.monotonic()`."""


class Permit:
    """A place at the workers. Closed exactly once, by `close` or by going back to the queue; more closes do nothing."""

    __slots__ = ("_held_tokens", "_is_open", "_lane", "_on_room", "ask", "cost", "entry", "waited_s")

    def __init__(
        self,
        ask: Ask,
        lane: Lane,
        cost: float,
        on_room: Callable[[Lane], None],
        entry: Entry | None = None,
        waited_s: float = 0.0,
    ) -> None:
        """entry: how it waited, if it had to. on_room: called when room was made while somebody waits."""
        self.ask = ask
        self.entry = entry
        self.cost = cost
        """What it was charged, in tokens."""
        self.waited_s = waited_s
        self._lane = lane
        self._held_tokens: float = ask.num_tokens
        self._on_room = on_room
        self._is_open = True

    def dispatched(self, predicted_cached_tokens: int) -> None:
        """A worker was picked; what it has cached needs no KV of its own."""
        held = self.ask.num_tokens - predicted_cached_tokens
        self._lane.room.num_tokens += held - self._held_tokens
        self._held_tokens = held
        if predicted_cached_tokens and self._lane.queue.num_requests:
            self._on_room(self._lane)

    def close(self, *, num_cached_tokens: int = 0, num_output_tokens: int = 0) -> None:
        """The request is over, or will not go. Without output it is taken for one that got nothing."""
        if not self._is_open:
            return
        self._is_open = False
        ask, lane = self.ask, self._lane
        actual = 0.0
        if num_output_tokens:
            actual = ask.num_tokens - num_cached_tokens + OUTPUT_WEIGHT * num_output_tokens
            lane.learn_output(num_output_tokens / ask.num_sequences)
        lane.release(ask.tenant, ask.num_sequences, self._held_tokens, self.cost, actual)
        if lane.queue.num_requests:
            self._on_room(lane)

    def give_back(self, entry: Entry, now_s: float) -> None:
        """Exchanges the place for one in the queue."""
        assert self._is_open, "a permit is given back once"
        self._is_open = False
        self._lane.refused(entry, self._held_tokens, now_s)

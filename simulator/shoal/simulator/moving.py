"""Requests that may move between workers while they are under way, and when workers are slow."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.gateway.routing.load import Ticket
from shoal.gateway.routing.policy import Ranking
from shoal.gateway.routing.router import Pick
from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A worker whose steps take longer for a while."""

    worker: int
    from_s: float
    until_s: float
    factor: float
    """Infinite: it stands still, but for the steps that it has begun."""


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request under way, as `shoal.gateway.routing.rebalance.Movable`."""

    number: int
    words: bytes
    """Its prompt, as little-endian 32-bit words."""
    max_tokens: int
    rank: Callable[[OpenRequest], Ranking | None]
    ticket: Ticket = field(init=False)
    pick: Pick = field(default_factory=Pick)
    avoided: set[str] = field(default_factory=set)
    """Workers that it has left."""
    token_ids: array[int] = field(default_factory=lambda: array("i"))
    """Its output so far, if anybody wants to know."""
    num_tokens: int = 0
    is_reading: bool = True
    num_chosen: int = 0

    @property
    def known_words(self) -> bytes:
        """Prompt and output."""
        return self.words + self.token_ids.tobytes()

    @property
    def remaining_tokens(self) -> int:
        """See `Movable`."""
        return self.max_tokens - len(self.token_ids)

    def rank_others(self) -> Ranking | None:
        """See `Movable`."""
        return self.rank(self)

    def as_request(self, *, seed: int, namespace_key: bytes, arrival_s: float) -> Request:
        """What its next worker is asked for."""
        return Request(
            stream_id=self.number,
            request_id=str(self.number),
            prompt_token_ids=tuple(array("i", self.words)),
            sampling=SamplingParams(max_tokens=self.max_tokens, ignore_eos=True),
            seed=seed,
            namespace_key=namespace_key,
            arrival_s=arrival_s,
            resume_token_ids=tuple(self.token_ids),
        )

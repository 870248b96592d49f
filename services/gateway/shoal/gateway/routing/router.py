"""The one decision a request costs: which workers, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.blocks import KeyChain
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.policy import Candidate, Policy, Ranking, Score
from shoal.gateway.routing.prefix_index import PrefixIndex

MAX_ENDPOINTS: Final = 3
"""The first and two for Envoy's retries."""


@dataclass(frozen=True, slots=True)
class PickRequest:
    """What a pick depends on."""

    endpoints: Sequence[str]
    """Workers that serve the model and can take requests."""
    block_keys: KeyChain | Iterable[bytes]
    """Keys of the prompt's full blocks, in order; a chain is hashed here, as far as needed."""
    block_size: int
    prompt_tokens: int
    priority: int = 0
    must_pin: bool = False
    """Whether Envoy, left alone, could choose a worker of another model."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A decision. Without endpoints, Envoy decides by ORCA."""

    endpoints: tuple[str, ...] = ()
    predicted_cached_tokens: int = 0
    """At the first endpoint."""
    reason: str = "none"
    predicted_ttft_s: float | None = None
    """At the first endpoint, from this pick to its first token; None when the policy predicts none."""
    ranking: Ranking | None = None
    """Every candidate in order, with what each term of its price was."""
    expectation: int = 0
    """What `PrefixIndex.withdraw` wants, should another worker serve the request."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """Every candidate in order, for traces and explanations."""
        return self.ranking.scores if self.ranking is not None else ()


class Router:
    """Joins what is known about caches and loads, asks the policy, and expects the prompt where it was sent."""

    def __init__(self, index: PrefixIndex, loads: LoadTracker, policy: Policy) -> None:
        self._index = index
        self._loads = loads
        self._policy = policy
        self._turn = 0

    def pick(self, request: PickRequest) -> Pick:
        """No endpoints when there is no opinion: Envoy's is better than a guess."""
        index, keys = self._index, request.block_keys
        may_guess = request.must_pin or not self._policy.needs_caches
        if not request.endpoints or not (may_guess or any(map(index.knows, request.endpoints))):
            return Pick()
        chain = keys if isinstance(keys, KeyChain) else KeyChain.of(keys)
        depths = index.match(chain)
        # The last prompt token is always computed: its logits choose the first new token.
        most = (request.prompt_tokens - 1) // request.block_size if request.block_size else 0
        candidates = [
            Candidate(e, min(depths.get(e, 0), most) * request.block_size, self._loads.of(e), request.prompt_tokens)
            for e in request.endpoints
        ]
        ranking = self._policy.rank(candidates, self._turn)
        self._turn += 1
        ordered = ranking.candidates
        expectation = index.expect(ordered[0].endpoint, chain)
        endpoints = tuple(c.endpoint for c in ordered[:MAX_ENDPOINTS])
        return Pick(endpoints, ordered[0].cached_tokens, ranking.reason, None, ranking, expectation)

    def correct(self, pick: Pick, block_keys: KeyChain, worker: str | None) -> None:
        """Another worker than the first endpoint has the request, or none (None): the prompt is expected there."""
        if pick.endpoints:
            self._index.withdraw(pick.endpoints[0], block_keys, pick.expectation)
        if worker:
            self._index.expect(worker, block_keys)

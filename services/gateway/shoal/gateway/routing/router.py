"""The one decision a request costs: which workers, in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shoal.blocks import KeyChain
from shoal.gateway.routing.forecast import Held
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.policies.baselines import LeastLoaded
from shoal.gateway.routing.policies.envoy import LeaveToEnvoy
from shoal.gateway.routing.policy import Candidate, Policy, Ranking, Score
from shoal.gateway.routing.prefix_index import PrefixIndex

MAX_ENDPOINTS: Final = 3
"""The first and two for Envoy's retries."""
_PICKS_PER_FILL: Final = 16
"""How full a cache is changes slowly, and asking the index for 64 workers takes 34 us."""


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
    adapter_load_s: Mapping[str, float] = field(default_factory=dict)
    """Until a worker would have the request's adapter; those that have it, or need none, are left out."""
    kv_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens whose KV each worker's device holds, as far as they are known."""
    ttft_slo_s: float | None = None
    """When the first token should be there."""


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
    prefix_hash: str = ""
    """What Envoy is to choose by, without endpoints; "" when it needs nothing."""
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
        self._fills: dict[str, float] = {}
        self._num_priced = 0

    def pick(self, request: PickRequest) -> Pick:
        """No endpoints when there is no opinion: Envoy's is better than a guess."""
        index, keys = self._index, request.block_keys
        may_guess = request.must_pin or not self._policy.needs_caches
        if not request.endpoints or not (may_guess or any(map(index.knows, request.endpoints))):
            return Pick()
        chain = keys if isinstance(keys, KeyChain) else KeyChain.of(keys)
        candidates = self._candidates(request, chain)
        turn = self._loads.turn
        ranking = self._policy.rank(candidates, turn, request.ttft_slo_s)
        if not ranking.candidates:
            if not request.must_pin:
                return Pick(reason=ranking.reason, prefix_hash=self._prefix_hash(chain, request.block_size))
            ranking = LeastLoaded().rank(candidates, turn)
        self._loads.turn += 1
        ordered = ranking.candidates
        expectation = index.expect(ordered[0].endpoint, chain)
        endpoints = tuple([c.endpoint for c in ordered[:MAX_ENDPOINTS]])
        cached_tokens = ordered[0].cached_tokens
        return Pick(
            endpoints, cached_tokens, ranking.reason, ranking.predicted_ttft_s, ranking, expectation=expectation
        )

    def rank(self, request: PickRequest) -> Ranking:
        """What a pick would find at this moment, without making it: nothing is expected or counted."""
        keys = request.block_keys
        chain = keys if isinstance(keys, KeyChain) else KeyChain.of(keys)
        return self._policy.rank(self._candidates(request, chain), self._loads.turn, request.ttft_slo_s)

    def _prefix_hash(self, chain: KeyChain, block_size: int) -> str:
        return self._policy.prefix_hash(chain, block_size) if isinstance(self._policy, LeaveToEnvoy) else ""

    def _candidates(self, request: PickRequest, chain: KeyChain) -> list[Candidate]:
        index, load_of, num_tokens, size = self._index, self._loads.of, request.prompt_tokens, request.block_size
        # The last prompt token is always computed: its logits choose the first new token.
        most = (num_tokens - 1) // size if size else 0
        depths = index.match(chain)
        tiers = index.tiers_of_last_match() if index.has_lower_tiers else {}
        outlook_of = self._loads.forecast.outlook if self._policy.needs_outlook else None
        kv_tokens_of = request.kv_tokens.get
        if self._num_priced % _PICKS_PER_FILL == 0:
            self._fills = {}
        self._num_priced += 1
        fills = self._fills
        candidates = []
        for endpoint in request.endpoints:
            cached = min(depths.get(endpoint, 0), most) * size
            load = load_of(endpoint)
            if outlook_of is None:
                candidates.append(Candidate(endpoint, cached, load, num_tokens))
                continue
            held = None
            if endpoint in tiers:
                _, _, memory, disk = tiers[endpoint]
                held = Held(min(memory, most) * size, min(disk, most) * size)
            kv_tokens = kv_tokens_of(endpoint)
            outlook = outlook_of(endpoint, num_tokens, cached, load, held, kv_tokens)
            adapter_load_s = request.adapter_load_s.get(endpoint, 0.0)
            fill = fills.get(endpoint)
            if fill is None:
                fill = min(1.0, index.num_keys(endpoint) * size / kv_tokens) if kv_tokens else 1.0
                fills[endpoint] = fill
            candidates.append(Candidate(endpoint, cached, load, num_tokens, outlook, adapter_load_s, fill))
        return candidates

    def correct(self, pick: Pick, block_keys: KeyChain, worker: str | None) -> None:
        """Another worker than the first endpoint has the request, or none (None): the prompt is expected there."""
        if pick.endpoints:
            self._index.withdraw(pick.endpoints[0], block_keys, pick.expectation)
        if worker:
            self._index.expect(worker, block_keys)

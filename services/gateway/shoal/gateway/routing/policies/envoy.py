"""Policies that leave the choice to Envoy. What they differ in is how the operator configures the mesh's cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.blocks import KeyChain
from shoal.gateway.routing.policy import Candidate, Ranking


@dataclass(frozen=True, slots=True)
class LeaveToEnvoy:
    """Names no endpoint: Envoy's client_side_weighted_round_robin fed by ORCA, or its ring hash, decides alone."""

    reason: str
    hash_tokens: int = 0
    """Tokens at the start of a prompt whose hash Envoy is told; blocks that begin within them are hashed whole."""
    needs_caches: bool = False
    needs_outlook: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """See the class."""
        return Ranking((), self.reason)

    def prefix_hash(self, keys: KeyChain, block_size: int) -> str:
        """Equal for prompts whose first `hash_tokens` are; "" when there is nothing to hash."""
        num = min(len(keys), -(-self.hash_tokens // block_size)) if block_size else 0
        return keys.packed(num - 1, num).hex() if num else ""

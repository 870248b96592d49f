"""Policies that leave the choice to Envoy. What they differ in is how the operator configures the mesh's cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.gateway.routing.policy import Candidate, Ranking


@dataclass(frozen=True, slots=True)
class LeaveToEnvoy:
    """Names no endpoint: Envoy's client_side_weighted_round_robin fed by ORCA, or its ring hash, decides alone."""

    reason: str
    needs_caches: bool = False
    needs_outlook: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """See the class."""
        return Ranking((), self.reason)

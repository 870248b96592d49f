"""The simplest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.gateway.routing.policy import Candidate, Ranking, rotated


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The least load, by what this gateway has under way."""

    needs_caches: bool = False
    needs_outlook: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """Equally idle workers take turns."""
        return Ranking(tuple(sorted(rotated(candidates, turn), key=lambda c: c.load.tokens)), "load")


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Each worker in turn: a baseline to compare with."""

    needs_caches: bool = False
    needs_outlook: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """In order of name, starting one further each time."""
        return Ranking(tuple(rotated(candidates, turn)), "round_robin")

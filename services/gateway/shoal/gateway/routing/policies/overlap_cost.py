"""Dynamo's cost function, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.gateway.routing.policy import Candidate, Ranking, rotated


@dataclass(frozen=True, slots=True)
class OverlapCost:
    """The least sum of prompt tokens to compute and of context held by the running: Dynamo's cost, at temperature 0.

    A baseline: max(prompt tokens under way + the prompt's - 1.0 * those cached on the device, 0) * prefill_scale, plus
    the prompts of requests under way. Dynamo counts both in blocks, which orders alike but for rounding, and counts a
    prefix that requests share once.
    """

    prefill_scale: float = 1.0
    needs_caches: bool = False
    needs_outlook: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """See the class. Equal workers take turns."""
        ordered = sorted(rotated(candidates, turn), key=self._cost)
        return Ranking(tuple(ordered), "prefix" if ordered[0].cached_tokens else "load")

    def _cost(self, candidate: Candidate) -> float:
        load = candidate.load
        return self.prefill_scale * (load.num_waiting_tokens + candidate.uncached_tokens) + load.num_prompt_tokens

"""llm-d's default policy, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.gateway.routing.policy import Candidate, Ranking, rotated


@dataclass(frozen=True, slots=True)
class PrefixSticky:
    """Those that hold most of the prompt, until they are saturated; among them the least prompt work: llm-d's default.

    A baseline, as described for llm-d-router of August 2026, with its constants. The estimated time to first token is
    that of the prompt tokens under way; a cached prompt is left for another worker when its holders' is much longer.
    """

    sticky_ratio: float = 0.8
    """Part of a prompt from which on a worker counts as holding it."""
    max_excess_s: float = 18.0
    """How much longer the wait at the best holder may be than at the best other worker."""
    peak_prefill_tokens_per_s: float = 15_928.0
    needs_caches: bool = False
    needs_outlook: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """See the class. Equal workers take turns."""
        by_work = sorted(rotated(candidates, turn), key=lambda c: c.load.num_waiting_tokens + c.uncached_tokens)
        holders = [c for c in by_work if c.cached_tokens and c.cached_tokens >= self.sticky_ratio * c.prompt_tokens]
        others = [c for c in by_work if c not in holders]
        if not holders:
            return Ranking(tuple(others), "load")
        if others and self._wait_s(holders) - self._wait_s(others) > self.max_excess_s:
            return Ranking(tuple(by_work), "balance")
        return Ranking((*holders, *others), "prefix")

    def _wait_s(self, candidates: Sequence[Candidate]) -> float:
        return min(c.load.num_waiting_tokens for c in candidates) / self.peak_prefill_tokens_per_s

"""Shoal's own policy: every candidate is priced in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal.gateway.routing.policy import Candidate, Ranking, rotated

TERM_NAMES: Final = (
    "queue", "room", "prefill", "load", "adapter", "sharing", "decode", "work", "eviction", "patience", "slo",
)  # fmt: skip
_NUM_TTFT_TERMS: Final = 5
_HOLDER_RATIO: Final = 0.9
"""Of the longest cached prefix: who has this much counts as a holder."""


@dataclass(frozen=True, slots=True)
class LeastCost:
    """The least sum of what the request would wait for and of what it would cost others.

    Seconds until the first token, by the worker's forecast:

    - queue: the prompts ahead of it.
    - room: answers that have to end before its KV fits.
    - prefill, load: computing what is not cached, or loading it from a lower tier where that is quicker.
    - adapter: until the request's adapter is there.

    Seconds that others pay, or that are worth more than they seem, each with its weight:

    - sharing: prompts ahead that are in the same step, and end with it, wait for this one's tokens as well.
    - decode: this sequence and the worker's others slow each other down.
    - work: what a worker computes twice is time that nobody else gets.
    - eviction: what it computes takes the place of blocks that others may come back for; free while the
      cache is not full. These two make a request wait at the worker that has its prefix, but no longer than
      (1 + work_weight + eviction_weight) times what that saves: the bound of imbalance. A prefix that
      several hold is wanted by many, and another copy soon pays: both are divided by the number of other holders.
    - patience: the square of the wait: long waits are worse than many short ones, and a forecast of one less certain.
    - slo: by how much the first token would come too late.

    Prices that are equal to within 1% are equal: then more of the prompt, then fewer requests, then each in turn.
    """

    work_weight: float = 2.5
    eviction_weight: float = 2.5
    sharing_weight: float = 0.5
    decode_weight: float = 0.01
    patience_s: float = 20.0
    """A wait of this long counts double."""
    slo_weight: float = 10.0
    step_tokens: int = 8192
    """Prompt tokens of a step."""
    max_sharing: int = 2
    """Prompts ahead that are counted in `sharing`; more than these hardly end in one step."""
    tie_ratio: float = 0.01
    tie_s: float = 0.5e-3
    needs_caches: bool = True
    needs_outlook: bool = True

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """See the class."""
        order = rotated(candidates, turn)
        num_others = _num_other_holders(order)
        rows = [self.price(candidate, ttft_slo_s, num_others) for candidate in order]
        totals = list(map(sum, rows))
        ranks = sorted(range(len(order)), key=totals.__getitem__)
        limit = totals[ranks[0]] * (1 + self.tie_ratio) + self.tie_s
        num_tied = next((i for i, rank in enumerate(ranks) if totals[rank] > limit), len(ranks))
        if num_tied > 1:
            tied = ranks[:num_tied]
            tied.sort(key=lambda rank: (-order[rank].cached_tokens, order[rank].load.num_requests, rank))
            ranks[:num_tied] = tied
        first = order[ranks[0]]
        if any(candidate.cached_tokens > first.cached_tokens for candidate in order):
            reason = "balance"
        else:
            reason = "prefix" if first.cached_tokens else "load"
        return Ranking(
            tuple([order[rank] for rank in ranks]),
            reason,
            TERM_NAMES,
            tuple([rows[rank] for rank in ranks]),
            sum(rows[ranks[0]][:_NUM_TTFT_TERMS]),
        )

    def price(self, candidate: Candidate, ttft_slo_s: float | None = None, num_others: int = 1) -> tuple[float, ...]:
        """Seconds for each of `TERM_NAMES`. num_others: holders of the longest prefix less one; at least 1."""
        queue_s, prefill_s, load_s, num_ahead, tokens_ahead, token_s, tokens, room_s, decode_s = candidate.outlook
        wait_s = queue_s + room_s
        ttft_s = wait_s + prefill_s + load_s + candidate.adapter_load_s
        sharing_s = 0.0
        if num_ahead:
            room = self.step_tokens - tokens_ahead % self.step_tokens
            sharing_s = min(num_ahead, self.max_sharing) * min(tokens, room) * token_s * self.sharing_weight
        late_s = 0.0 if ttft_slo_s is None else max(0.0, ttft_s - ttft_slo_s)
        return (
            queue_s,
            room_s,
            prefill_s,
            load_s,
            candidate.adapter_load_s,
            sharing_s,
            decode_s * self.decode_weight,
            prefill_s * self.work_weight / num_others,
            prefill_s * self.eviction_weight * candidate.cache_fill / num_others,
            wait_s * wait_s / self.patience_s,
            late_s * self.slo_weight,
        )


def _num_other_holders(candidates: Sequence[Candidate]) -> int:
    most = max(candidate.cached_tokens for candidate in candidates)
    return max(1, sum(candidate.cached_tokens >= _HOLDER_RATIO * most for candidate in candidates) - 1) if most else 1

"""What a worker knows about its store: tiers' speeds, which tiers are in use, and what late loads may cost still."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.kv_client.pricing.price import Action, ComputeTime, Decision, Offer, price
from shoal.kv_client.pricing.tier_speed import TierSpeed

INITIAL_BUDGET_S: Final = 0.05
MAX_BUDGET_S: Final = 5.0
"""More is not saved up: it is what a store that turns bad may cost at once."""
SHARE_OF_COMPUTING: Final = 0.01
_FIRST_PROBE: Final = 16
_LAST_PROBE: Final = 1024
_PROBE_PART: Final = 0.25
"""Of the budget, that one probe may lose."""


@dataclass(slots=True)
class _Tier:
    speed: TierSpeed
    is_loading: bool = True
    num_refused: int = 0
    probe_after: int = _FIRST_PROBE


@dataclass(frozen=True, slots=True)
class Pending:
    """A decision that has been made and not been settled."""

    decision: Decision
    tiers: tuple[str, ...]
    """Those that are loaded from."""
    slack_s: float
    reserved_s: float
    """Of the budget."""
    is_probe: bool = False


class Pricer:
    """Prices requests one after the other. Belongs to one thread; requests may overlap.

    A tier that lost on price is tried again by a probe after 16 requests that it had blocks for, then 32, up to 1024.
    """

    def __init__(self, speeds: Mapping[str, TierSpeed], budget_s: float = INITIAL_BUDGET_S) -> None:
        """speeds: of each tier. budget_s: see `price`."""
        self._tiers = {name: _Tier(speed) for name, speed in speeds.items()}
        self.budget_s = budget_s
        """What is left of it and not reserved; below 0 after someone waited past a deadline."""

    def offer(self, tier: str, num_blocks: int, num_bytes: int, queued_bytes: int = 0) -> Offer:
        """Of a tier's blocks, while `queued_bytes` wait in front of them."""
        known = self._tiers[tier]
        return Offer(tier, num_blocks, known.speed.cautious_s(num_bytes + queued_bytes), known.is_loading)

    def observe(self, tier: str, num_bytes: int, seconds: float) -> None:
        """A load ended, or was given up, after `seconds`; `num_bytes` with those that were queued before it."""
        self._tiers[tier].speed.observe(num_bytes, seconds)

    def decide(self, offers: Sequence[Offer], compute_s: ComputeTime, num_blocks: int, slack_s: float) -> Pending:
        """What to do with a prompt of `num_blocks`; the caller settles it. See `price`."""
        self._earn(SHARE_OF_COMPUTING * compute_s(num_blocks))
        decision = price(offers, compute_s, slack_s, max(self.budget_s, 0.0))
        ends = _ends(offers)
        used = tuple(offer.tier for offer, end in zip(offers, ends, strict=True) if end <= decision.num_blocks)
        for name in used:
            tier = self._tiers[name]
            tier.is_loading, tier.num_refused = True, 0
        if decision.action is not Action.LOAD and offers:
            probe = self._probe(offers, compute_s, slack_s)
            if probe is not None:
                return probe
        reserved_s = min(max(self.budget_s, 0.0), decision.saved_s)
        self.budget_s -= reserved_s
        return Pending(decision, used, slack_s, reserved_s)

    def skip(self, compute_s: float, waited_s: float = 0.0) -> None:
        """A prompt that takes `compute_s` is computed without a decision, after waiting in vain for something to
        decide about."""
        self._earn(SHARE_OF_COMPUTING * compute_s - waited_s)

    def settle(self, pending: Pending, seconds: float, *, completed: bool) -> None:
        """The load ended, or was given up, `seconds` after it was decided."""
        lost_s = max(seconds - pending.slack_s, 0.0) - (pending.decision.saved_s if completed else 0.0)
        self._earn(pending.reserved_s - lost_s)
        if pending.is_probe:
            tier = self._tiers[pending.tiers[0]]
            won = completed and lost_s < 0
            tier.probe_after = _FIRST_PROBE if won else min(2 * tier.probe_after, _LAST_PROBE)

    def _probe(self, offers: Sequence[Offer], compute_s: ComputeTime, slack_s: float) -> Pending | None:
        """A load from the first tier although it does not look worth it, when it is time for one."""
        first = offers[0]
        tier = self._tiers[first.tier]
        tier.is_loading = False
        tier.num_refused += 1
        if tier.num_refused < tier.probe_after or self.budget_s <= 0:
            return None
        tier.num_refused = 0
        saved_s = compute_s(first.num_blocks)
        reserved_s = min(_PROBE_PART * self.budget_s, saved_s)
        self.budget_s -= reserved_s
        decision = Decision(Action.LOAD, first.num_blocks, slack_s + reserved_s, saved_s, reason="a probe")
        return Pending(decision, (first.tier,), slack_s, reserved_s, is_probe=True)

    def _earn(self, seconds: float) -> None:
        self.budget_s = min(self.budget_s + seconds, MAX_BUDGET_S)


def _ends(offers: Sequence[Offer]) -> list[int]:
    ends, end = [], 0
    for offer in offers:
        end += offer.num_blocks
        ends.append(end)
    return ends


def prefill_time(tokens_per_s: float, attention_tokens: float, block_tokens: int) -> Callable[[int], float]:
    """A ComputeTime: linear layers at `tokens_per_s`, with attention as costly as they are at `attention_tokens`.

    The time for n tokens is n / tokens_per_s * (1 + n / (2 * attention_tokens)): attention grows with its position.
    """

    def compute_s(num_blocks: int) -> float:
        num_tokens = num_blocks * block_tokens
        return num_tokens / tokens_per_s * (1 + num_tokens / (2 * attention_tokens))

    return compute_s

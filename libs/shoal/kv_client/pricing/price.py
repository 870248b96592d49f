"""Load or recompute: what a request does with the blocks that a store has, so that it never loses by the store.

A load that the request waits for may take longer than computing. What that may cost in all is a budget: it starts with
a little, gains what loads save and a hundredth of all computing, and pays for loads that end late or not at all. No
load may be waited for longer than the budget lasts. So over any sequence of requests, whatever the store does,
`time <= time without a store * 1.01 + the initial budget`, and no single request takes more than twice its time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

ComputeTime = Callable[[int], float]
"""Seconds to compute the first n blocks of a prompt: 0 for 0, never falling, and later blocks cost no less."""
KEEP_LOADING: Final = 0.9
"""While a tier is in use: a load is worth it below this part of the time to compute."""
START_LOADING: Final = 0.6
"""... and while it is not: the gap keeps a tier that is as fast as computing from going back and forth."""


class Action(enum.Enum):
    """What to do with a prompt's blocks."""

    LOAD = "load"
    RECOMPUTE = "recompute"
    SKIP = "skip"
    """Do not ask the store at all."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks that follow those of the offers before it, all in one tier."""

    tier: str
    num_blocks: int
    cautious_s: float
    """What loading them takes, queue included, at most in all likelihood."""
    is_loading: bool
    """Whether the tier is in use; see START_LOADING."""


@dataclass(frozen=True, slots=True)
class Decision:
    """`num_blocks` leading blocks are loaded; whoever waits gives up `deadline_s` after the start and computes."""

    action: Action
    num_blocks: int = 0
    deadline_s: float = 0.0
    saved_s: float = 0.0
    """By not computing those blocks."""
    reason: str = ""


def price_lookup(compute_s: float, lookup_s: float, hit_rate: float) -> Action:
    """RECOMPUTE stands for asking first. SKIP when what a hit saves on average is less than what asking takes.

    hit_rate: part of a prompt that lookups found lately. A floor of 1% keeps a cold store from never being asked.
    """
    return Action.SKIP if compute_s * max(hit_rate, 0.01) <= lookup_s else Action.RECOMPUTE


def price(offers: Sequence[Offer], compute_s: ComputeTime, slack_s: float, budget_s: float) -> Decision:
    """How many leading blocks to load: up to the end of the offer where the request is ready first.

    Computing gets no cheaper with depth, so within a tier it is all or nothing; only the tiers' ends are compared.
    slack_s: for which the request would wait anyway. budget_s: see the module.
    """
    best = Decision(Action.RECOMPUTE, reason="computing takes no longer" if offers else "nothing is stored")
    best_gain_s, num_blocks, load_s, part = 0.0, 0, 0.0, KEEP_LOADING
    for offer in offers:
        num_blocks += offer.num_blocks
        load_s += offer.cautious_s
        part = min(part, KEEP_LOADING if offer.is_loading else START_LOADING)
        saved_s, waited_s = compute_s(num_blocks), max(load_s - slack_s, 0.0)
        if waited_s > part * saved_s or saved_s - waited_s <= best_gain_s:
            continue
        if waited_s <= budget_s:
            best_gain_s = saved_s - waited_s
            best = Decision(Action.LOAD, num_blocks, slack_s + min(budget_s, saved_s), saved_s)
        elif best.action is Action.RECOMPUTE:
            best = Decision(Action.RECOMPUTE, reason="the budget for late loads is spent")
    return best

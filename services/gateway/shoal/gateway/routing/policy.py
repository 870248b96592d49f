"""How candidates are ordered. A policy is one pure function of what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shoal.gateway.routing.load import Load


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker that could serve the request."""

    endpoint: str
    """ip:port, as Envoy knows it."""
    cached_tokens: int
    """Prompt tokens whose KV it is believed to hold."""
    load: Load


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, best first, and why the first is first."""

    candidates: tuple[Candidate, ...]
    reason: str
    """A few fixed words; a metric label."""


class Policy(Protocol):
    """Orders at least one candidate. Pure: the same input gives the same order."""

    @property
    def needs_caches(self) -> bool:
        """Whether it has no opinion, and leaves the choice to Envoy, while no worker's cache is known."""
        ...

    def rank(self, candidates: Sequence[Candidate], turn: int) -> Ranking:
        """Returns every candidate once. `turn` numbers the picks from 0."""
        ...


@dataclass(frozen=True, slots=True)
class PrefixThenLoad:
    """The longest cached prefix, then the least load; a worker far busier than the idlest is passed over.

    "Far" is both `slack_tokens` above it and `slack_ratio` times it, so a hot prefix spills over to a second worker,
    which then holds it as well. The rule is SGLang's cache-aware balance, per request and in tokens.
    """

    slack_tokens: int = 4096
    slack_ratio: float = 1.5
    needs_caches: bool = True

    def rank(self, candidates: Sequence[Candidate], turn: int) -> Ranking:
        """See the class. Equal workers take turns."""
        by_load = sorted(_rotated(candidates, turn), key=lambda c: c.load.tokens)
        limit = self.limit(by_load[0].load.tokens)
        near = [c for c in by_load if c.load.tokens <= limit]
        far = by_load[len(near) :]
        near.sort(key=lambda c: -c.cached_tokens)  # stable: equal prefixes stay in order of load
        best = near[0]
        if any(c.cached_tokens > best.cached_tokens for c in far):
            reason = "balance"
        else:
            reason = "prefix" if best.cached_tokens else "load"
        return Ranking((*near, *far), reason)

    def limit(self, least_tokens: int) -> float:
        """The most load a worker may have and still be preferred for its cache."""
        return max(least_tokens + self.slack_tokens, least_tokens * self.slack_ratio)


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The least load, by what this gateway has under way."""

    needs_caches: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int) -> Ranking:
        """Equally idle workers take turns."""
        return Ranking(tuple(sorted(_rotated(candidates, turn), key=lambda c: c.load.tokens)), "load")


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Each worker in turn: a baseline to compare with."""

    needs_caches: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int) -> Ranking:
        """In order of name, starting one further each time."""
        return Ranking(tuple(_rotated(candidates, turn)), "round_robin")


PolicyName = Literal["shoal", "least_load", "round_robin"]


def policy_of(name: PolicyName, *, slack_tokens: int, slack_ratio: float) -> Policy:
    """The policy that an InferenceService's `routing.policy` names."""
    policies: dict[PolicyName, Policy] = {
        "shoal": PrefixThenLoad(slack_tokens, slack_ratio),
        "least_load": LeastLoaded(),
        "round_robin": RoundRobin(),
    }
    return policies[name]


def _rotated(candidates: Sequence[Candidate], turn: int) -> list[Candidate]:
    ordered = sorted(candidates, key=lambda c: c.endpoint)
    start = turn % len(ordered)
    return ordered[start:] + ordered[:start]

"""How candidates are ordered. A policy is one pure function of what is known about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    prompt_tokens: int = 0
    """Of the request; the same for all candidates."""

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that it would have to compute."""
        return max(0, self.prompt_tokens - self.cached_tokens)


@dataclass(frozen=True, slots=True)
class Score:
    """What a policy made of one candidate."""

    candidate: Candidate
    terms: Mapping[str, float]
    """Seconds by name, which add up to what the candidates were ordered by; empty for policies that price nothing."""

    @property
    def total_s(self) -> float:
        """What the candidates were ordered by, least first."""
        return sum(self.terms.values())


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, best first, and why the first is first."""

    candidates: tuple[Candidate, ...]
    reason: str
    """A few fixed words; a metric label."""
    term_names: tuple[str, ...] = ()
    terms: tuple[tuple[float, ...], ...] = ()
    """A row for each candidate, in their order, a number of seconds for each name; empty if nothing was priced."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """The same, a candidate at a time. Made when asked for: a pick has better things to do."""
        rows = self.terms or ((),) * len(self.candidates)
        return tuple(
            Score(candidate, dict(zip(self.term_names, row, strict=True)))
            for candidate, row in zip(self.candidates, rows, strict=True)
        )


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

    def rank(self, candidates: Sequence[Candidate], turn: int) -> Ranking:
        """See the class. Equal workers take turns."""
        by_work = sorted(_rotated(candidates, turn), key=lambda c: c.load.num_waiting_tokens + c.uncached_tokens)
        holders = [c for c in by_work if c.cached_tokens and c.cached_tokens >= self.sticky_ratio * c.prompt_tokens]
        others = [c for c in by_work if c not in holders]
        if not holders:
            return Ranking(tuple(others), "load")
        if others and self._wait_s(holders) - self._wait_s(others) > self.max_excess_s:
            return Ranking(tuple(by_work), "balance")
        return Ranking((*holders, *others), "prefix")

    def _wait_s(self, candidates: Sequence[Candidate]) -> float:
        return min(c.load.num_waiting_tokens for c in candidates) / self.peak_prefill_tokens_per_s


@dataclass(frozen=True, slots=True)
class OverlapCost:
    """The least sum of prompt tokens to compute and of context held by the running: Dynamo's cost, at temperature 0.

    A baseline: max(prompt tokens under way + the prompt's - 1.0 * those cached on the device, 0) * prefill_scale, plus
    the prompts of requests under way. Dynamo counts both in blocks, which orders alike but for rounding, and counts a
    prefix that requests share once.
    """

    prefill_scale: float = 1.0
    needs_caches: bool = False

    def rank(self, candidates: Sequence[Candidate], turn: int) -> Ranking:
        """See the class. Equal workers take turns."""
        ordered = sorted(_rotated(candidates, turn), key=self._cost)
        return Ranking(tuple(ordered), "prefix" if ordered[0].cached_tokens else "load")

    def _cost(self, candidate: Candidate) -> float:
        load = candidate.load
        return self.prefill_scale * (load.num_waiting_tokens + candidate.uncached_tokens) + load.num_prompt_tokens


PolicyName = Literal["shoal", "least_load", "round_robin", "prefix_sticky", "overlap_cost"]


def policy_of(name: PolicyName, *, slack_tokens: int, slack_ratio: float) -> Policy:
    """The policy that an InferenceService's `routing.policy` names."""
    policies: dict[PolicyName, Policy] = {
        "shoal": PrefixThenLoad(slack_tokens, slack_ratio),
        "least_load": LeastLoaded(),
        "round_robin": RoundRobin(),
        "prefix_sticky": PrefixSticky(),
        "overlap_cost": OverlapCost(),
    }
    return policies[name]


def _rotated(candidates: Sequence[Candidate], turn: int) -> list[Candidate]:
    ordered = sorted(candidates, key=lambda c: c.endpoint)
    start = turn % len(ordered)
    return ordered[start:] + ordered[:start]

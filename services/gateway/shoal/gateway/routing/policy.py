"""What a policy is: one pure function that orders candidates by what is known about them. See `policies`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from shoal.gateway.routing.forecast import Outlook
from shoal.gateway.routing.load import Load


class Candidate(NamedTuple):
    """One worker that could serve the request. A tuple because a pick makes one for every worker."""

    endpoint: str
    """ip:port, as Envoy knows it."""
    cached_tokens: int
    """Prompt tokens whose KV it is believed to hold."""
    load: Load
    prompt_tokens: int = 0
    """Of the request; the same for all candidates."""
    outlook: Outlook = Outlook()
    """What is foreseen of it; left out for policies that do not ask."""
    adapter_load_s: float = 0.0
    """Until it has the request's adapter; 0 when it is resident, or none is asked for."""
    cache_fill: float = 1.0
    """Part of its device's cache that holds blocks, as far as they are known; 1 if its size is not."""

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
    predicted_ttft_s: float | None = None
    """At the first candidate; None if nothing was priced."""

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

    @property
    def needs_outlook(self) -> bool:
        """Whether candidates must come with their outlook."""
        ...

    def rank(self, candidates: Sequence[Candidate], turn: int, ttft_slo_s: float | None = None) -> Ranking:
        """Returns every candidate once, or none if Envoy is to choose. `turn` numbers the picks from 0."""
        ...


def rotated(candidates: Sequence[Candidate], turn: int) -> list[Candidate]:
    """In order of name, starting one further each turn, so that equal ones take turns in any stable order."""
    ordered = sorted(candidates)
    start = turn % len(ordered)
    return ordered[start:] + ordered[:start]

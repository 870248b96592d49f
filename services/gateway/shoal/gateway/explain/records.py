"""One request as it is remembered. Plain data, filled in as things happen; holds nothing of the prompt itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Final

from shoal.gateway.routing.policy import Candidate
from shoal.gateway.routing.router import Pick

MAX_CANDIDATES: Final = 16
"""Remembered of a pick, best first, besides the worker that answered. Some 300 bytes each."""
MAX_ATTEMPTS: Final = 32
"""The first ones of a request; a request with 64 completions can make hundreds."""


@dataclass(slots=True)
class AttemptRecord:
    """One attempt at some completions. Times are of `time.perf_counter()`."""

    pick: Pick
    picked_s: float = field(default_factory=time.perf_counter)
    worker: str = ""
    """Who answered; before that, who is expected to."""
    cached_tokens: int | None = None
    """As the worker said."""
    first_message_s: float | None = None
    num_tokens: int = 0
    num_candidates: int = 0
    lost: str = ""
    """A LossReason, once it was lost."""
    error: str = ""

    def __post_init__(self) -> None:
        pick = self.pick
        self.worker = pick.endpoints[0] if pick.endpoints else ""
        self.num_candidates = len(pick.ranking.candidates) if pick.ranking else 0

    @property
    def served_elsewhere(self) -> bool:
        """Whether Envoy went to another worker than the first of the pick."""
        return bool(self.pick.endpoints) and self.worker != self.pick.endpoints[0]

    @property
    def candidate(self) -> Candidate | None:
        """The worker as it looked at the pick."""
        ranking = self.pick.ranking
        return next((c for c in ranking.candidates if c.endpoint == self.worker), None) if ranking else None

    @property
    def predicted_cached_tokens(self) -> int:
        """At the worker, be it the first of the pick or not."""
        if not self.served_elsewhere:
            return self.pick.predicted_cached_tokens
        candidate = self.candidate
        return candidate.cached_tokens if candidate else 0

    @property
    def ttft_s(self) -> float | None:
        """From the pick to the first message."""
        return None if self.first_message_s is None else self.first_message_s - self.picked_s

    @property
    def regret_s(self) -> float | None:
        """What the first token cost, priced with the time that it really took, beyond the best other candidate's price.

        The price of the first candidate is corrected by how wrong its predicted time to first token was; None when
        another worker answered, nothing was priced, or there was nobody else.
        """
        pick, ttft_s, ranking = self.pick, self.ttft_s, self.pick.ranking
        if ttft_s is None or pick.predicted_ttft_s is None or self.served_elsewhere:
            return None
        if ranking is None or len(ranking.terms) < 2:
            return None
        chosen_s, *others_s = map(sum, ranking.terms)
        return float(chosen_s - pick.predicted_ttft_s + ttft_s - min(others_s))

    def settle(self, worker: str) -> None:
        """`worker` answered, or nobody will: from here on only the best candidates and that worker are kept."""
        self.worker = worker
        ranking = self.pick.ranking
        if ranking is None or len(ranking.candidates) <= MAX_CANDIDATES:
            return
        kept = [i for i, c in enumerate(ranking.candidates) if i < MAX_CANDIDATES or c.endpoint == worker]
        candidates = tuple(ranking.candidates[i] for i in kept)
        terms = tuple(ranking.terms[i] for i in kept) if ranking.terms else ()
        self.pick = replace(self.pick, ranking=replace(ranking, candidates=candidates, terms=terms))


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are of `time.perf_counter()`."""

    tenant: str
    request_id: str
    arrived_s: float = field(default_factory=time.perf_counter)
    arrived_unix_s: float = field(default_factory=time.time)
    model: str = ""
    num_prompt_tokens: int = 0
    num_completions: int = 1
    queue_s: float | None = None
    """Time in the gateway's queue; None if there was none."""
    first_message_s: float | None = None
    ended_s: float | None = None
    num_tokens: int = 0
    code: str = ""
    """A gRPC code's name, once it ended."""
    attempts: list[AttemptRecord] = field(default_factory=list)

    def add(self, attempt: AttemptRecord) -> None:
        """Another attempt was made."""
        if len(self.attempts) < MAX_ATTEMPTS:
            self.attempts.append(attempt)

    def end(self, code: str, num_tokens: int) -> None:
        """The request is over. The first call counts."""
        if not self.code:
            self.ended_s = time.perf_counter()
            self.code, self.num_tokens = code, num_tokens

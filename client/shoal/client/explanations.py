"""Why requests went where they went, as plain data. Times are seconds; what is not known is None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.api.gateway.v1 import explain_pb2


@dataclass(frozen=True, slots=True)
class CandidateExplanation:
    """A worker that could have been chosen, as it looked at the pick."""

    worker: str
    cached_tokens: int
    num_requests: int
    """Under way there, over all gateways."""
    num_waiting_tokens: int
    """Prompt tokens that were ahead."""
    terms: Mapping[str, float]
    """Its price in seconds, by name; empty when the policy prices nothing."""


@dataclass(frozen=True, slots=True)
class AttemptExplanation:
    """One attempt; every one after the first is a move."""

    picked_s: float
    """Since the request's arrival."""
    reason: str
    endpoints: tuple[str, ...]
    """What Envoy was told, best first; empty: it chose."""
    worker: str
    """Who answered, or was expected to."""
    elsewhere: bool
    """Whether Envoy went to another worker than the first."""
    predicted_cached_tokens: int
    predicted_cached_tokens_at_worker: int
    cached_tokens: int | None
    predicted_ttft_s: float | None
    ttft_s: float | None
    """Both since this pick."""
    delivered_tokens: int
    lost: str
    """Why it ended early: lost, failed, drain, stall, refused, full, rebalance; empty if it did not."""
    error: str
    candidates: tuple[CandidateExplanation, ...]
    """Best first; of many, the best and the one that answered."""
    num_candidates: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """One request. Times without another beginning are since its arrival."""

    request_id: str
    gateway: str
    model: str
    arrived_unix_s: float
    prompt_tokens: int
    num_completions: int
    dispatch_s: float | None
    queue_s: float | None
    """In the gateway's queue, of the time before dispatch."""
    ttft_s: float | None
    total_s: float | None
    completion_tokens: int
    code: str
    """How it ended, a gRPC code; empty while it runs."""
    attempts: tuple[AttemptExplanation, ...]
    regret_s: float | None
    """Actual cost minus the best other candidate's predicted cost; below 0: the pick was right."""


def decode_explanation(message: explain_pb2.Explanation) -> Explanation:
    """From the wire."""
    return Explanation(**(_fields(message) | {"attempts": tuple(map(_attempt, message.attempts))}))


def _attempt(message: explain_pb2.AttemptExplanation) -> AttemptExplanation:
    repeated = {"endpoints": tuple(message.endpoints), "candidates": tuple(map(_candidate, message.candidates))}
    return AttemptExplanation(**(_fields(message) | repeated))


def _candidate(message: explain_pb2.CandidateExplanation) -> CandidateExplanation:
    terms = {term.name: term.seconds for term in message.terms}
    return CandidateExplanation(**(_fields(message) | {"terms": terms}))


def _fields(message: Any) -> dict[str, Any]:
    """Fields by name, None for those that are left out: the messages and the classes here have the same names."""
    fields = message.DESCRIPTOR.fields
    return {
        f.name: None if f.has_presence and not message.HasField(f.name) else getattr(message, f.name) for f in fields
    }

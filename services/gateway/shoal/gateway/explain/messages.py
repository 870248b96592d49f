"""Records as messages of the public API."""

from __future__ import annotations

from shoal.api.gateway.v1 import explain_pb2
from shoal.gateway.explain.records import AttemptRecord, RequestRecord
from shoal.gateway.routing.policy import Score


def explanation_of(record: RequestRecord, gateway: str) -> explain_pb2.Explanation:
    """What a client may see of it; gateway: the name of this one."""
    start_s, first = record.arrived_s, record.attempts[0] if record.attempts else None
    served = next((attempt for attempt in record.attempts if attempt.first_message_s is not None), None)
    return explain_pb2.Explanation(
        request_id=record.request_id,
        gateway=gateway,
        model=record.model,
        arrived_unix_s=record.arrived_unix_s,
        prompt_tokens=record.num_prompt_tokens,
        num_completions=record.num_completions,
        dispatch_s=first.picked_s - start_s if first else None,
        queue_s=record.queue_s,
        ttft_s=_since(start_s, record.first_message_s),
        total_s=_since(start_s, record.ended_s),
        completion_tokens=record.num_tokens,
        code=record.code,
        attempts=[_attempt(attempt, start_s) for attempt in record.attempts],
        regret_s=served.regret_s if served else None,
    )


def _attempt(attempt: AttemptRecord, start_s: float) -> explain_pb2.AttemptExplanation:
    pick = attempt.pick
    return explain_pb2.AttemptExplanation(
        picked_s=attempt.picked_s - start_s,
        reason=pick.reason,
        endpoints=pick.endpoints,
        worker=attempt.worker,
        elsewhere=attempt.served_elsewhere,
        predicted_cached_tokens=pick.predicted_cached_tokens,
        predicted_cached_tokens_at_worker=attempt.predicted_cached_tokens,
        cached_tokens=attempt.cached_tokens,
        predicted_ttft_s=pick.predicted_ttft_s,
        ttft_s=attempt.ttft_s,
        delivered_tokens=attempt.num_tokens,
        lost=attempt.lost,
        error=attempt.error,
        candidates=map(_candidate, pick.scores),
        num_candidates=attempt.num_candidates,
    )


def _candidate(score: Score) -> explain_pb2.CandidateExplanation:
    candidate = score.candidate
    return explain_pb2.CandidateExplanation(
        worker=candidate.endpoint,
        cached_tokens=candidate.cached_tokens,
        num_requests=candidate.load.num_requests,
        num_waiting_tokens=candidate.load.num_waiting_tokens,
        terms=[explain_pb2.Term(name=name, seconds=seconds) for name, seconds in score.terms.items()],
    )


def _since(start_s: float, end_s: float | None) -> float | None:
    return None if end_s is None else end_s - start_s

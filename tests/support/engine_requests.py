"""Builds engine requests for tests."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.blocks import namespace_key
from shoal.model_worker.request import Request
from shoal.model_worker.sampling.params import SamplingParams


def make_request(
    stream_id: int,
    prompt: Sequence[int],
    *,
    arrival_s: float = 0.0,
    priority: int = 0,
    deadline_s: float | None = None,
    resume: Sequence[int] = (),
    seed: int = 0,
    tenant: bytes = b"",
    sampling: SamplingParams | None = None,
) -> Request:
    """A request with the fields that tests vary."""
    return Request(
        stream_id=stream_id,
        request_id=f"request-{stream_id}",
        prompt_token_ids=tuple(prompt),
        sampling=sampling or SamplingParams(max_tokens=4),
        seed=seed,
        namespace_key=namespace_key("model", "fake-v1", "", tenant),
        arrival_s=arrival_s,
        resume_token_ids=tuple(resume),
        priority=priority,
        deadline_s=deadline_s,
    )


def exactly(max_tokens: int, **others: object) -> SamplingParams:
    """Sampling that no end-of-sequence token ends before `max_tokens`."""
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **others)  # type: ignore[arg-type]

"""Builds worker requests and collects their answers."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.api.generation.v1 import generation_pb2
from shoal.api.worker.v1 import worker_pb2


def generate_request(token_ids: Sequence[int], *, resume: Sequence[int] = (), choice: int = 0, **sampling: Any) -> Any:
    """A seeded request that goes on to max_tokens unless told otherwise."""
    fields = {"max_tokens": 8, "seed": 1, "ignore_eos": True, **sampling}
    return worker_pb2.GenerateRequest(
        token_ids=token_ids,
        resume_token_ids=resume,
        choice=choice,
        sampling=generation_pb2.SamplingParams(**fields),
    )


@dataclass
class Completion:
    """One choice, checked while it was put together."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[generation_pb2.PositionLogprobs] = field(default_factory=list)
    finish_reason: int = 0
    stop_token_id: int | None = None


async def collect(
    responses: AsyncIterable[worker_pb2.GenerateResponse], *, num_resumed: int = 0
) -> tuple[dict[int, Completion], list[worker_pb2.GenerateResponse]]:
    """Completions by choice, and the messages. Checks that indexes have no gap and that nothing follows an end."""
    completions: dict[int, Completion] = {}
    messages = []
    async for message in responses:
        messages.append(message)
        completion = completions.setdefault(message.choice, Completion())
        assert not completion.finish_reason
        assert message.first_token_index == num_resumed + len(completion.token_ids)
        completion.token_ids += message.token_ids
        completion.logprobs += message.logprobs
        completion.finish_reason = message.finish_reason
        if message.HasField("stop_token_id"):
            completion.stop_token_id = message.stop_token_id
    return completions, messages

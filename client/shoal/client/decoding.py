"""Turns the gateway's messages into the SDK's results."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.client.results import Chunk, FinishReason, Model, PositionLogprobs, TokenLogprob, Usage

_FINISH_REASONS: dict[int, FinishReason] = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_CANCELLED: "cancelled",
}


def decode_chunk(message: gateway_pb2.GenerateResponse) -> Chunk:
    """One message of a stream."""
    stop_reason: str | int | None = message.stop_text or None
    if stop_reason is None and message.HasField("stop_token_id"):
        stop_reason = message.stop_token_id
    return Chunk(
        choice=message.choice,
        first_token_index=message.first_token_index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=_decode_logprobs(message.logprobs),
        finish_reason=_FINISH_REASONS.get(message.finish_reason),
        stop_reason=stop_reason,
        prompt_logprobs=_decode_logprobs(message.prompt_logprobs),
        usage=_decode_usage(message.usage) if message.HasField("usage") else None,
        request_id=message.request_id,
        worker=message.worker,
        model=message.model,
    )


def decode_model(model: gateway_pb2.Model) -> Model:
    """One model."""
    return Model(
        name=model.name,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        created_unix_s=model.created_unix_s,
        has_chat_template=model.has_chat_template,
        ready_workers=model.ready_workers,
    )


def _decode_usage(usage: generation_pb2.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _decode_logprobs(positions: Iterable[generation_pb2.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    return tuple(
        PositionLogprobs(
            token=_decode_logprob(position.token) if position.HasField("token") else None,
            top=tuple(_decode_logprob(entry) for entry in position.top),
        )
        for position in positions
    )


def _decode_logprob(entry: generation_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(entry.token_id, entry.logprob, entry.rank)

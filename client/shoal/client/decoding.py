"""Turns the gateway's messages into the SDK's results, and for resume tokens back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.client.results import Chunk, Completion, FinishReason, Model, PositionLogprobs, TokenLogprob, Usage

_FINISH_REASONS: dict[generation_pb2.FinishReason.ValueType, FinishReason] = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_CANCELLED: "cancelled",
}
_GOES_ON = generation_pb2.FINISH_REASON_UNSPECIFIED
_REASONS = {name: number for number, name in _FINISH_REASONS.items()}


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
        seed=message.seed if message.HasField("seed") else None,
    )


def encode_completion(completion: Completion, token_ids: Sequence[Sequence[int]]) -> list[gateway_pb2.GenerateResponse]:
    """What came so far as one message a choice, from which `decode_chunk` makes it again. token_ids: of each choice."""
    messages = []
    for choice, ids in zip(completion.choices, token_ids, strict=True):
        message = gateway_pb2.GenerateResponse(
            choice=choice.index,
            token_ids=ids,
            text=choice.text,
            logprobs=map(_encode_position, choice.logprobs),
            finish_reason=_REASONS[choice.finish_reason] if choice.finish_reason else _GOES_ON,
        )
        if isinstance(choice.stop_reason, str):
            message.stop_text = choice.stop_reason
        elif choice.stop_reason is not None:
            message.stop_token_id = choice.stop_reason
        messages.append(message)
    first, usage = messages[0], completion.usage
    first.request_id, first.worker, first.model = completion.request_id, completion.worker, completion.model
    if completion.seed is not None:
        first.seed = completion.seed
    first.prompt_logprobs.extend(map(_encode_position, completion.prompt_logprobs))
    first.usage.prompt_tokens, first.usage.cached_tokens = usage.prompt_tokens, usage.cached_tokens
    first.usage.completion_tokens = usage.completion_tokens
    return messages


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


def _encode_position(position: PositionLogprobs) -> generation_pb2.PositionLogprobs:
    return generation_pb2.PositionLogprobs(
        token=None if position.token is None else _encode_logprob(position.token),
        top=map(_encode_logprob, position.top),
    )


def _encode_logprob(entry: TokenLogprob) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(token_id=entry.token_id, logprob=entry.logprob, rank=entry.rank)

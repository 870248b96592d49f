"""The one way from a client's `SamplingParams` message to the engine's: every range is checked here.

Called by the servicer, before a request reaches the engine, so that nothing behind it checks again.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Literal

from shoal.api.generation.v1 import generation_pb2
from shoal.model_worker.sampling.params import (
    MAX_CHOICES,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)
from shoal.rpc.errors import InvalidArgument

_OptionalFloat = Literal["temperature", "top_p", "typical_p", "repetition_penalty"]
_OptionalCount = Literal["logprobs", "prompt_logprobs"]


def from_proto(
    message: generation_pb2.SamplingParams,
    *,
    vocab_size: int,
    max_model_len: int,
    num_prompt_tokens: int,
    field: str = "sampling",
) -> SamplingParams:
    """Returns `message` with every default filled in.

    `num_prompt_tokens` (below `max_model_len`; the caller refuses longer prompts) decides how many output tokens fit.
    Raises `InvalidArgument` with the path of the first bad field (under `field`), its value and the allowed range.
    """
    check = _Checks(field)
    room = max_model_len - num_prompt_tokens
    max_tokens = message.max_tokens if message.HasField("max_tokens") else room
    if not 1 <= max_tokens <= room:
        check.refuse(
            "max_tokens",
            f"{max_tokens} is outside [1, {room}], what the context of {max_model_len} tokens leaves after a prompt of "
            f"{num_prompt_tokens}; lower it or leave it unset",
        )
    return SamplingParams(
        temperature=check.closed("temperature", _or(message, "temperature", 1.0), 0, 2),
        top_p=check.half_open("top_p", _or(message, "top_p", 1.0), 1),
        top_k=message.top_k if message.top_k < vocab_size else 0,
        min_p=check.closed("min_p", message.min_p, 0, 1),
        typical_p=check.half_open("typical_p", _or(message, "typical_p", 1.0), 1),
        frequency_penalty=check.closed("frequency_penalty", message.frequency_penalty, -2, 2),
        presence_penalty=check.closed("presence_penalty", message.presence_penalty, -2, 2),
        repetition_penalty=check.half_open("repetition_penalty", _or(message, "repetition_penalty", 1.0), 2),
        logit_bias=_logit_bias(message, check, vocab_size),
        max_tokens=max_tokens,
        min_tokens=check.integer("min_tokens", message.min_tokens, 0, max_tokens, "max_tokens"),
        stop_token_ids=_stop_token_ids(message, check, vocab_size),
        ignore_eos=message.ignore_eos,
        seed=message.seed if message.HasField("seed") else None,
        n=check.integer("n", message.n or 1, 1, MAX_CHOICES),
        logprobs=_optional_count(message, check, "logprobs"),
        prompt_logprobs=_optional_count(message, check, "prompt_logprobs"),
    )


class _Checks:
    """Range checks that name the field. NaN fails each of them, because it compares false with everything."""

    def __init__(self, field: str) -> None:
        self._field = field

    def refuse(self, name: str, problem: str) -> None:
        raise InvalidArgument(f"{self._field}.{name}", problem)

    def closed(self, name: str, value: float, low: float, high: float) -> float:
        if not low <= value <= high:
            self.refuse(name, f"{value:g} is outside [{low:g}, {high:g}]")
        return value

    def half_open(self, name: str, value: float, high: float) -> float:
        """Range (0, high]."""
        if not 0 < value <= high:
            self.refuse(name, f"{value:g} is outside (0, {high:g}]")
        return value

    def integer(self, name: str, value: int, low: int, high: int, because: str = "") -> int:
        if not low <= value <= high:
            self.refuse(name, f"{value} is outside [{low}, {high}]" + (f" (up to {because})" if because else ""))
        return value

    def length(self, name: str, length: int, high: int) -> None:
        if length > high:
            self.refuse(name, f"{length} entries are too many; at most {high} are allowed")

    def token_id(self, name: str, token_id: int, vocab_size: int) -> int:
        if not 0 <= token_id < vocab_size:
            self.refuse(name, f"token id {token_id} is outside [0, {vocab_size - 1}], the model's vocabulary")
        return token_id


def _or(message: generation_pb2.SamplingParams, name: _OptionalFloat, default: float) -> float:
    return float(getattr(message, name)) if message.HasField(name) else default


def _optional_count(message: generation_pb2.SamplingParams, check: _Checks, name: _OptionalCount) -> int | None:
    return check.integer(name, getattr(message, name), 0, MAX_LOGPROBS) if message.HasField(name) else None


def _logit_bias(
    message: generation_pb2.SamplingParams, check: _Checks, vocab_size: int
) -> MappingProxyType[int, float]:
    check.length("logit_bias", len(message.logit_bias), MAX_LOGIT_BIASES)
    for token_id, bias in message.logit_bias.items():
        check.token_id("logit_bias", token_id, vocab_size)
        if not (math.isfinite(bias) and -100 <= bias <= 100):
            check.refuse(f"logit_bias[{token_id}]", f"{bias:g} is outside [-100, 100]")
    return MappingProxyType(dict(message.logit_bias))


def _stop_token_ids(message: generation_pb2.SamplingParams, check: _Checks, vocab_size: int) -> tuple[int, ...]:
    check.length("stop_token_ids", len(message.stop_token_ids), MAX_STOP_TOKEN_IDS)
    return tuple(check.token_id("stop_token_ids", token_id, vocab_size) for token_id in message.stop_token_ids)

"""Checks a GenerateRequest before anything is sent: every refusal names the field, the value and what is allowed."""

from __future__ import annotations

import math
import re
from typing import Final

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.gateway.text.stop import MAX_STOP_BYTES, MAX_STOPS
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import InvalidArgument, PayloadTooLarge

MAX_PRIORITY: Final = 100
MAX_CHOICES: Final = 64
MAX_LOGPROBS: Final = 20
MAX_LOGIT_BIASES: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 256
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_CLOSED: Final = (
    ("temperature", 0, 2),
    ("min_p", 0, 1),
    ("frequency_penalty", -2, 2),
    ("presence_penalty", -2, 2),
    ("n", 0, MAX_CHOICES),
    ("logprobs", 0, MAX_LOGPROBS),
    ("prompt_logprobs", 0, MAX_LOGPROBS),
)
_HALF_OPEN: Final = (("top_p", 1), ("typical_p", 1), ("repetition_penalty", 2))


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Refuses a request by its size on the wire."""
    if num_bytes > max_bytes:
        raise PayloadTooLarge("request", f"{num_bytes} bytes are more than the {max_bytes} accepted here")


def parse_request(data: bytes, max_bytes: int) -> gateway_pb2.GenerateRequest:
    """The message in `data`. Raises InvalidArgument when it is too large or not one."""
    check_size(len(data), max_bytes)
    try:
        return gateway_pb2.GenerateRequest.FromString(data)
    except Exception as error:  # the class differs between protobuf's implementations
        raise InvalidArgument("request", f"not a GenerateRequest: {error}") from None


def check_request(request: gateway_pb2.GenerateRequest, model: ServedModel) -> None:
    """Everything that can be said before the prompt is tokenized."""
    _check_prompt(request, model)
    _check_sampling(request.sampling, model)
    _check_stops(request)
    if request.HasField("resume"):
        _check_resume(request, model)
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidArgument("priority", f"{request.priority} is outside [-{MAX_PRIORITY}, {MAX_PRIORITY}]")
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidArgument("request_id", "must be 1 to 128 printable ASCII characters without spaces")


def check_length(request: gateway_pb2.GenerateRequest, num_prompt_tokens: int, model: ServedModel) -> None:
    """What depends on the prompt's length in tokens."""
    field = request.WhichOneof("prompt") or "prompt"
    if num_prompt_tokens == 0:
        raise InvalidArgument(field, "gives no tokens; a prompt needs at least one")
    room = model.max_model_len - num_prompt_tokens
    if room < 1:
        raise InvalidArgument(
            field,
            f"{num_prompt_tokens} tokens leave no room for output in the {model.max_model_len} tokens that "
            f"{model.name!r} can hold; shorten it to at most {model.max_model_len - 1}",
        )
    sampling = request.sampling
    if sampling.HasField("max_tokens") and not 1 <= sampling.max_tokens <= room:
        raise InvalidArgument(
            "sampling.max_tokens",
            f"{sampling.max_tokens} is outside [1, {room}]: {model.name!r} holds {model.max_model_len} tokens and the "
            f"prompt has {num_prompt_tokens}; lower it or leave it unset",
        )
    most = sampling.max_tokens if sampling.HasField("max_tokens") else room
    if sampling.min_tokens > most:
        raise InvalidArgument("sampling.min_tokens", f"{sampling.min_tokens} is outside [0, {most}]")
    for index, completion in enumerate(request.resume.completions):
        if (num_tokens := len(completion.token_ids)) > most:
            raise InvalidArgument(f"resume.completions[{index}].token_ids", f"{num_tokens} tokens; at most {most} fit")
    if request.resume.cached_tokens > num_prompt_tokens:
        raise InvalidArgument(
            "resume.cached_tokens", f"{request.resume.cached_tokens} is outside [0, {num_prompt_tokens}]"
        )


def _check_prompt(request: gateway_pb2.GenerateRequest, model: ServedModel) -> None:
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise InvalidArgument("prompt", "missing; set one of text, chat and tokens")
    if kind == "text" and not request.text:
        raise InvalidArgument("text", "is empty; a prompt needs at least one character")
    if kind == "chat" and not request.chat.messages:
        raise InvalidArgument("chat.messages", "is empty; a conversation needs at least one message")
    if kind == "tokens":
        ids = request.tokens.ids
        if not ids:
            raise InvalidArgument("tokens.ids", "is empty; a prompt needs at least one token id")
        if (largest := max(ids)) >= model.vocab_size:
            raise InvalidArgument("tokens.ids", f"{largest} is outside [0, {model.vocab_size - 1}]")


def _check_sampling(sampling: generation_pb2.SamplingParams, model: ServedModel) -> None:
    for name, low, high in _CLOSED:
        value = getattr(sampling, name)
        if not low <= value <= high:  # NaN compares false
            raise InvalidArgument(f"sampling.{name}", f"{value:g} is outside [{low}, {high}]")
    present = {descriptor.name for descriptor, _ in sampling.ListFields()}
    for name, high in _HALF_OPEN:
        value = getattr(sampling, name)
        if name in present and not 0 < value <= high:
            raise InvalidArgument(f"sampling.{name}", f"{value:g} is outside (0, {high}]")
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES:
        raise InvalidArgument("sampling.logit_bias", f"{len(sampling.logit_bias)} entries; at most {MAX_LOGIT_BIASES}")
    for token_id, bias in sampling.logit_bias.items():
        _check_token_id("sampling.logit_bias", token_id, model)
        if not (math.isfinite(bias) and -100 <= bias <= 100):
            raise InvalidArgument(f"sampling.logit_bias[{token_id}]", f"{bias:g} is outside [-100, 100]")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidArgument(
            "sampling.stop_token_ids", f"{len(sampling.stop_token_ids)} entries; at most {MAX_STOP_TOKEN_IDS}"
        )
    for token_id in sampling.stop_token_ids:
        _check_token_id("sampling.stop_token_ids", token_id, model)


def _check_resume(request: gateway_pb2.GenerateRequest, model: ServedModel) -> None:
    completions, num_asked = request.resume.completions, request.sampling.n or 1
    if not request.sampling.HasField("seed"):
        raise InvalidArgument("sampling.seed", "missing; to resume takes the seed of the answer's first message")
    if len(completions) != num_asked:
        raise InvalidArgument(
            "resume.completions", f"{len(completions)} entries; n is {num_asked}, and each completion needs one"
        )
    if all(completion.finished for completion in completions):
        raise InvalidArgument("resume.completions", "all are finished; there is nothing left to resume")
    for index, completion in enumerate(completions):
        if completion.token_ids:
            _check_token_id(f"resume.completions[{index}].token_ids", max(completion.token_ids), model)


def _check_token_id(field: str, token_id: int, model: ServedModel) -> None:
    if token_id >= model.vocab_size:
        raise InvalidArgument(field, f"token id {token_id} is outside [0, {model.vocab_size - 1}]")


def _check_stops(request: gateway_pb2.GenerateRequest) -> None:
    if request.output_format not in gateway_pb2.OutputFormat.values():
        raise InvalidArgument("output_format", f"{request.output_format} is not one of the formats")
    if not request.stop:
        return
    if request.output_format == gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS:
        raise InvalidArgument("stop", "needs text, and OUTPUT_FORMAT_TOKEN_IDS makes none; use stop_token_ids")
    if len(request.stop) > MAX_STOPS:
        raise InvalidArgument("stop", f"{len(request.stop)} stop texts; at most {MAX_STOPS} are allowed")
    for index, text in enumerate(request.stop):
        num_bytes = len(text.encode())
        if not 1 <= num_bytes <= MAX_STOP_BYTES:
            raise InvalidArgument(f"stop[{index}]", f"{num_bytes} bytes are outside [1, {MAX_STOP_BYTES}]")

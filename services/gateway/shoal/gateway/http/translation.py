"""OpenAI request bodies to the gateway's own requests."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from google.protobuf import json_format, struct_pb2

from shoal.api.chat.v1 import chat_pb2
from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.gateway.http.schema import ChatMessage, ChatRequest, CompletionRequest, Sampled
from shoal.rpc.errors import InvalidArgument

MAX_PROMPTS: Final = 64
COMPLETION_MAX_TOKENS: Final = 16
"""What OpenAI's legacy completions default to; conversations go on to the end of the context."""
_FLOATS: Final = (
    "temperature", "top_p", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
)  # fmt: skip
_Body = TypeVar("_Body", ChatRequest, CompletionRequest)
_CHAT_DECODER: Final = msgspec.json.Decoder(ChatRequest)
_COMPLETION_DECODER: Final = msgspec.json.Decoder(CompletionRequest)


def parse_chat(data: bytes) -> ChatRequest:
    """Raises InvalidArgument naming the field."""
    return _parse(_CHAT_DECODER, data)


def parse_completion(data: bytes) -> CompletionRequest:
    """Raises InvalidArgument naming the field."""
    return _parse(_COMPLETION_DECODER, data)


def chat_request(body: ChatRequest) -> gateway_pb2.GenerateRequest:
    """The one request that a chat completion is."""
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidArgument("max_tokens", "contradicts max_completion_tokens; give one of them")
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidArgument("top_logprobs", "needs logprobs: true")
    request = _request(body, max_tokens, (body.top_logprobs or 0) if body.logprobs else None)
    request.chat.CopyFrom(_chat(body))
    return request


def completion_requests(body: CompletionRequest) -> list[gateway_pb2.GenerateRequest]:
    """One request a prompt."""
    if body.echo:
        raise InvalidArgument("echo", "is not supported; the prompt is known to the caller")
    if body.suffix:
        raise InvalidArgument("suffix", "is not supported")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidArgument("best_of", "is supported only when equal to n")
    max_tokens = COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    requests = []
    for prompt in _prompts(body.prompt):
        request = _request(body, max_tokens, body.logprobs)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.tokens.ids.extend(prompt)
            request.tokens.SetInParent()
        requests.append(request)
    return requests


def _parse(decoder: msgspec.json.Decoder[_Body], data: bytes) -> _Body:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        if problem.startswith("Object contains unknown field"):
            name = problem.split("`")[1]
            raise InvalidArgument(f"{field}.{name}" if field else name, "is not a field of this request") from None
        if problem.startswith("Object missing required field"):
            name = problem.split("`")[1]
            raise InvalidArgument(f"{field}.{name}" if field else name, "is required") from None
        raise InvalidArgument(field or "body", problem[:1].lower() + problem[1:]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument("body", f"not valid JSON: {error}") from None


def _request(body: Sampled, max_tokens: int | None, logprobs: int | None) -> gateway_pb2.GenerateRequest:
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise InvalidArgument(
            "response_format.type", f"{body.response_format.get('type')!r} is not supported; use text"
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidArgument("stream_options", "needs stream: true")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return gateway_pb2.GenerateRequest(
        model=body.model,
        sampling=_sampling(body, max_tokens, logprobs),
        stop=[_text(f"stop[{i}]", s) for i, s in enumerate(stops)],
        include_stop_text=body.include_stop_str_in_output,
        include_special_tokens=not body.skip_special_tokens,
        output_format=gateway_pb2.OUTPUT_FORMAT_TEXT,
        priority=body.priority,
    )


def _sampling(body: Sampled, max_tokens: int | None, logprobs: int | None) -> generation_pb2.SamplingParams:
    sampling = generation_pb2.SamplingParams(
        top_k=max(body.top_k or 0, 0),  # vLLM: -1 keeps all, too
        min_tokens=body.min_tokens or 0,
        ignore_eos=body.ignore_eos,
        stop_token_ids=body.stop_token_ids or [],
        n=_choices(body.n),
        max_tokens=max_tokens,
        logprobs=logprobs,
        seed=None if body.seed is None else body.seed % 2**64,
    )
    for name in _FLOATS:
        if (value := getattr(body, name)) is not None:
            setattr(sampling, name, value)
    for key, bias in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < 2**32):
            raise InvalidArgument("logit_bias", f"{key[:32]!r} is not a token id")
        sampling.logit_bias[int(key)] = bias
    return sampling


def _choices(n: int | None) -> int:
    if n == 0:
        raise InvalidArgument("n", "0 is outside [1, 64]")
    return n or 1


def _chat(body: ChatRequest) -> chat_pb2.Chat:
    if body.add_generation_prompt is body.continue_final_message:  # both set alike: one opens a turn, one continues it
        raise InvalidArgument("add_generation_prompt", "must be the opposite of continue_final_message")
    tools = _tools(body)
    return chat_pb2.Chat(
        messages=[_message(i, message) for i, message in enumerate(body.messages)],
        tools=[_struct(f"tools[{i}]", tool) for i, tool in enumerate(tools)],
        template_variables=_struct("chat_template_kwargs", body.chat_template_kwargs or {}),
        continue_final_message=body.continue_final_message,
    )


def _tools(body: ChatRequest) -> list[dict[str, Any]]:
    if body.tool_choice not in (None, "auto", "none"):
        raise InvalidArgument("tool_choice", "only 'auto' and 'none' are supported; calls come back as text")
    return [] if body.tool_choice == "none" else body.tools or []


def _message(index: int, message: ChatMessage) -> chat_pb2.ChatMessage:
    path = f"messages[{index}]"
    return chat_pb2.ChatMessage(
        role=_text(f"{path}.role", message.role),
        content=_content(path, message.content),
        name=_text(f"{path}.name", message.name or ""),
        tool_calls=[_struct(f"{path}.tool_calls[{i}]", call) for i, call in enumerate(message.tool_calls or [])],
        tool_call_id=_text(f"{path}.tool_call_id", message.tool_call_id or ""),
    )


def _content(path: str, content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return _text(f"{path}.content", content or "")
    parts = []
    for index, part in enumerate(content):
        where, text = f"{path}.content[{index}]", part.get("text")
        if part.get("type") != "text":
            raise InvalidArgument(f"{where}.type", f"{part.get('type')!r} is not supported; only text is")
        if not isinstance(text, str):
            raise InvalidArgument(f"{where}.text", "must be a string")
        parts.append(_text(where, text))
    return "".join(parts)


def _prompts(prompt: str | list[Any]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [_text("prompt", prompt)]
    if not prompt:
        raise InvalidArgument("prompt", "is empty")
    if all(isinstance(p, int) for p in prompt):
        return [_token_ids("prompt", prompt)]
    if any(isinstance(p, int) for p in prompt):
        raise InvalidArgument("prompt", "must be a string, token ids, or a list of one of them; not a mixture")
    if len(prompt) > MAX_PROMPTS:
        raise InvalidArgument("prompt", f"{len(prompt)} prompts; at most {MAX_PROMPTS} are allowed in one request")
    return [
        _text(f"prompt[{i}]", p) if isinstance(p, str) else _token_ids(f"prompt[{i}]", p) for i, p in enumerate(prompt)
    ]


def _token_ids(path: str, ids: list[int]) -> list[int]:
    if ids and not (min(ids) >= 0 and max(ids) < 2**32):
        raise InvalidArgument(path, "token ids must lie in [0, 4294967295]")
    return ids


def _text(path: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(path, "contains half of a surrogate pair, which no UTF-8 text can") from None
    return text


def _struct(path: str, value: dict[str, Any]) -> struct_pb2.Struct:
    try:
        return json_format.ParseDict(value, struct_pb2.Struct(), max_recursion_depth=64)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidArgument(path, f"cannot be used: {error}") from None

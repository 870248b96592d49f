"""Builds the gateway's request messages from the SDK's arguments. Raises InvalidArgument naming the argument."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf import json_format, struct_pb2

from shoal.api.chat.v1 import chat_pb2
from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.client.options import CHAT_FIELDS, SAMPLING_FIELDS, Options
from shoal.client.results import Message
from shoal.rpc.errors import InvalidArgument

MessageLike = Message | Mapping[str, Any]
"""A turn of a conversation: a `Message`, or a mapping with the same keys."""

_OUTPUTS = {
    "both": gateway_pb2.OUTPUT_FORMAT_TEXT_AND_TOKEN_IDS,
    "text": gateway_pb2.OUTPUT_FORMAT_TEXT,
    "token_ids": gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS,
}
_MESSAGE_KEYS = {field.name for field in dataclasses.fields(Message)}
_P = TypeVar("_P", gateway_pb2.GenerateRequest, generation_pb2.SamplingParams, gateway_pb2.DetokenizeRequest)


def build_generate(
    prompt: str | None,
    token_ids: Sequence[int] | None,
    messages: Iterable[MessageLike] | None,
    options: Options,
) -> gateway_pb2.GenerateRequest:
    """The request behind `generate` and `stream`. Exactly one of the three prompts must be given."""
    _check_names(options)
    if sum(given is not None for given in (prompt, token_ids, messages)) != 1:
        raise InvalidArgument("prompt", "give exactly one of prompt, token_ids and messages")
    request = gateway_pb2.GenerateRequest(sampling=_build_sampling(options))
    if messages is not None:
        request.chat.CopyFrom(build_chat(messages, options))
    elif chat_only := sorted(CHAT_FIELDS & options.keys()):
        raise InvalidArgument(chat_only[0], "only conversations take it; give messages")
    elif token_ids is not None:
        request.tokens.ids.extend(checked_ids(token_ids))
    else:
        _assign(request, "text", prompt)
    output = options.get("output", "both")
    if output not in _OUTPUTS:
        raise InvalidArgument("output", f"{output!r} is not one of {', '.join(map(repr, _OUTPUTS))}")
    request.output_format = _OUTPUTS[output]
    stop = options.get("stop") or ()
    _assign(request, "stop", [stop] if isinstance(stop, str) else list(stop))
    for name in ("model", "include_stop_text", "include_special_tokens", "priority", "request_id"):
        if name in options:
            _assign(request, name, options[name])
    return request


def build_chat(messages: Iterable[MessageLike], options: Options) -> chat_pb2.Chat:
    """A conversation and how to render it. Raises InvalidArgument for an empty one."""
    if isinstance(messages, (str, Mapping)):
        raise InvalidArgument("messages", 'give a list of turns, such as [{"role": "user", "content": "Hello"}]')
    chat = chat_pb2.Chat(
        messages=[_build_message(i, message) for i, message in enumerate(messages)],
        tools=[_build_struct(f"tools[{i}]", tool) for i, tool in enumerate(options.get("tools") or ())],
        continue_final_message=options.get("continue_final_message", False),
    )
    if not chat.messages:
        raise InvalidArgument("messages", "at least one turn is needed")
    if variables := options.get("template_variables"):
        chat.template_variables.CopyFrom(_build_struct("template_variables", variables))
    return chat


def build_tokenize(
    text: str | None, messages: Iterable[MessageLike] | None, model: str, add_special_tokens: bool
) -> gateway_pb2.TokenizeRequest:
    """The request behind `tokenize`. Exactly one of `text` and `messages` must be given."""
    if (text is None) is (messages is None):
        raise InvalidArgument("text", "give exactly one of text and messages")
    if messages is not None:
        return gateway_pb2.TokenizeRequest(model=model, chat=build_chat(messages, {}))
    return gateway_pb2.TokenizeRequest(model=model, text=text or "", without_special_tokens=not add_special_tokens)


def checked_ids(token_ids: Sequence[int]) -> list[int]:
    """Token ids fit for the wire. Raises InvalidArgument for an empty list or an id outside [0, 2**32)."""
    ids = [int(i) for i in token_ids]
    if not ids:
        raise InvalidArgument("token_ids", "at least one id is needed")
    if min(ids) < 0 or max(ids) >= 1 << 32:
        bad = next(i for i in ids if not 0 <= i < 1 << 32)
        raise InvalidArgument("token_ids", f"{bad} is not a token id: allowed is [0, the model's vocab_size)")
    return ids


def _check_names(options: Options) -> None:
    for name in options:
        if name not in Options.__annotations__:
            close = difflib.get_close_matches(name, Options.__annotations__, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unknown option {name!r}{hint}")


def _build_sampling(options: Options) -> generation_pb2.SamplingParams:
    params = generation_pb2.SamplingParams()
    for name in SAMPLING_FIELDS & options.keys():
        _assign(params, name, options[name])  # type: ignore[literal-required]  # each is a key of Options
    return params


def _assign(target: _P, name: str, value: Any) -> None:
    """Sets one field; protobuf's complaint about a type or a range becomes an InvalidArgument naming it."""
    if value is None:
        return
    try:
        if isinstance(value, Mapping):
            getattr(target, name).update(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(name, f"{value!r}: {error}") from error


def _build_message(index: int, message: MessageLike) -> chat_pb2.ChatMessage:
    where = f"messages[{index}]"
    if isinstance(message, Message):
        fields: Mapping[str, Any] = {key: getattr(message, key) for key in _MESSAGE_KEYS}
    elif isinstance(message, Mapping):
        fields = message
    else:
        raise InvalidArgument(where, f"{type(message).__name__} is neither a Message nor a mapping")
    if unknown := sorted(fields.keys() - _MESSAGE_KEYS):
        raise InvalidArgument(f"{where}.{unknown[0]}", f"not known; allowed are {', '.join(sorted(_MESSAGE_KEYS))}")
    if not fields.get("role"):
        raise InvalidArgument(f"{where}.role", 'missing; give "system", "user", "assistant" or "tool"')
    calls = fields.get("tool_calls") or ()
    try:
        return chat_pb2.ChatMessage(
            role=fields["role"],
            content=fields.get("content") or "",
            name=fields.get("name") or "",
            tool_calls=[_build_struct(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)],
            tool_call_id=fields.get("tool_call_id") or "",
        )
    except TypeError as error:
        raise InvalidArgument(where, f"{error}; every value is text") from error


def _build_struct(where: str, value: Mapping[str, Any]) -> struct_pb2.Struct:
    try:
        return json_format.ParseDict(dict(value), struct_pb2.Struct())
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise InvalidArgument(where, f"not a JSON object: {error}") from error

"""From the wire's chat to the variables that templates of Hugging Face models expect."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf import struct_pb2

from shoal.api.chat.v1 import chat_pb2
from shoal.rpc.errors import InvalidArgument
from shoal.tokenizer.render_protocol import RenderJob

RESERVED_VARIABLES: Final = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "raise_exception", "strftime_now"}
)
MAX_MESSAGES: Final = 16_384
_EXACT: Final = 2**53


def to_job(chat: chat_pb2.Chat, template: str) -> RenderJob:
    """The job of rendering `chat` with the template named `template`. Raises InvalidArgument naming the field."""
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        raise InvalidArgument("chat.messages", f"{len(chat.messages)} messages; give 1 to {MAX_MESSAGES}")
    for index, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidArgument(f"chat.messages[{index}].role", "is empty; give system, user, assistant or tool")
    variables = to_plain(chat.template_variables)
    if taken := sorted(RESERVED_VARIABLES & variables.keys()):
        raise InvalidArgument("chat.template_variables", f"{', '.join(taken)} cannot be set here: other fields say it")
    return RenderJob(
        template=template,
        messages=[_to_message(message) for message in chat.messages],
        tools=[to_plain(tool) for tool in chat.tools] or None,
        variables=variables,
        continue_final_message=chat.continue_final_message,
    )


def _to_message(message: chat_pb2.ChatMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        plain["name"] = message.name
    if message.tool_calls:
        plain["tool_calls"] = [_parse_arguments(to_plain(call)) for call in message.tool_calls]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _parse_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's API carries a call's arguments as JSON text; templates want the object."""
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return call  # what the model wrote, and what the template then shows
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call


def to_plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """A Struct as plain Python. Whole numbers become int: a Struct has only doubles, and a template prints `5.0`."""
    return {name: _value(value) for name, value in struct.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _EXACT else number
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return to_plain(value.struct_value)
        case "list_value":
            return _values(value.list_value.values)
        case _:
            return None


def _values(values: Iterable[struct_pb2.Value]) -> list[Any]:
    return [_value(value) for value in values]

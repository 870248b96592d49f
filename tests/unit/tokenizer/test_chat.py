"""The wire's chat as templates see it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from shoal.api.chat.v1.chat_pb2 import Chat, ChatMessage
from shoal.rpc.errors import InvalidArgument
from shoal.tokenizer.chat import to_job, to_plain


def struct(value: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(value, struct_pb2.Struct())


def test_structs_become_plain_values_with_whole_numbers() -> None:
    value = {"a": 1, "b": 1.5, "c": [True, None, "x", {"d": -3}], "e": {}, "f": 1e300}
    plain = to_plain(struct(value))
    assert plain == value
    assert type(plain["a"]) is int
    assert type(plain["b"]) is float
    assert type(plain["f"]) is float


def test_messages_have_only_what_was_given() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    chat = Chat(
        messages=[
            ChatMessage(role="user", content="hi"),
            ChatMessage(role="assistant", tool_calls=[struct(call)]),
            ChatMessage(role="tool", content="2", tool_call_id="1", name="f"),
        ],
        tools=[struct({"type": "function"})],
        template_variables=struct({"enable_thinking": False}),
        continue_final_message=True,
    )
    job = to_job(chat, "default")
    assert job.messages == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "1", "name": "f"},
    ]
    assert job.tools == [{"type": "function"}]
    assert job.variables == {"enable_thinking": False}
    assert job.continue_final_message
    assert to_job(Chat(messages=chat.messages[:1]), "x").tools is None


@pytest.mark.parametrize("arguments", ["not json", "[1]", "3", ""])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    job = to_job(Chat(messages=[ChatMessage(role="assistant", tool_calls=[struct(call)])]), "x")
    assert job.messages[0]["tool_calls"] == [call]


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (Chat(), "chat.messages"),
        (Chat(messages=[ChatMessage(role="user"), ChatMessage(content="x")]), "chat.messages[1].role"),
        (
            Chat(messages=[ChatMessage(role="user")], template_variables=struct({"messages": 1})),
            "chat.template_variables",
        ),
    ],
)
def test_wrong_chats_are_refused_by_field(chat: Chat, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        to_job(chat, "default")
    assert caught.value.field == field

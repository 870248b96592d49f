from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from shoal.api.gateway.v1 import gateway_pb2
from shoal.api.generation.v1 import generation_pb2
from shoal.client import InvalidArgument, Message
from shoal.client.endpoint import parse_endpoint
from shoal.client.options import CHAT_FIELDS, SAMPLING_FIELDS, Options
from shoal.client.requests import build_generate, build_tokenize


def test_sampling_options_are_exactly_the_fields_of_the_contract() -> None:
    assert {f.name for f in generation_pb2.SamplingParams.DESCRIPTOR.fields} == SAMPLING_FIELDS
    assert Options.__annotations__.keys() >= SAMPLING_FIELDS | CHAT_FIELDS


def test_every_option_reaches_the_request() -> None:
    request = build_generate(
        "Hi",
        None,
        None,
        {
            "model": "m",
            "temperature": 0.0,
            "top_k": 3,
            "logit_bias": {5: -1.5},
            "max_tokens": 7,
            "stop": "END",
            "stop_token_ids": [2, 3],
            "seed": 1 << 60,
            "logprobs": 0,
            "output": "token_ids",
            "priority": -5,
            "request_id": "r",
            "n": None,
        },
    )
    sampling = generation_pb2.SamplingParams(
        temperature=0, top_k=3, logit_bias={5: -1.5}, max_tokens=7, stop_token_ids=[2, 3], seed=1 << 60, logprobs=0
    )
    assert request == gateway_pb2.GenerateRequest(
        model="m",
        text="Hi",
        sampling=sampling,
        stop=["END"],
        output_format=gateway_pb2.OUTPUT_FORMAT_TOKEN_IDS,
        priority=-5,
        request_id="r",
    )
    assert request.sampling.HasField("temperature")
    assert request.sampling.HasField("logprobs")


def test_a_conversation_takes_messages_and_mappings() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    request = build_generate(
        None,
        None,
        [
            Message("system", "Be brief."),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        {"tools": [{"type": "function"}], "template_variables": {"enable_thinking": False}},
    )
    turns = request.chat.messages
    assert [turn.role for turn in turns] == ["system", "assistant", "tool"]
    assert json_format.MessageToDict(turns[1].tool_calls[0])["function"] == call["function"]
    assert turns[2].tool_call_id == "c1"
    assert request.chat.template_variables["enable_thinking"] is False
    assert len(request.chat.tools) == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt: give exactly one"),
    ({"prompt": "a", "token_ids": [1]}, "prompt: give exactly one"),
    ({"token_ids": []}, "token_ids: at least one"),
    ({"token_ids": [-1]}, "token_ids: -1"),
    ({"messages": []}, "messages: at least one"),
    ({"messages": "hello"}, "messages: give a list"),
    ({"messages": [{"content": "x"}]}, r"messages\[0\]\.role"),
    ({"messages": [{"role": "user", "text": "x"}]}, r"messages\[0\]\.text: not known"),
    ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]"),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens: -1"),
    ({"prompt": "a", "temperature": "hot"}, "temperature: 'hot'"),
    ({"prompt": "a", "logit_bias": {-1: 1.0}}, "logit_bias"),
    ({"prompt": "a", "output": "words"}, "output: 'words'"),
    ({"prompt": "a", "tools": []}, "tools: only conversations"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    prompts = {key: arguments.pop(key, None) for key in ("prompt", "token_ids", "messages")}
    with pytest.raises(InvalidArgument, match=message):
        build_generate(**prompts, options=arguments)  # type: ignore[arg-type]


def test_a_misspelt_option_is_a_type_error_with_a_suggestion() -> None:
    with pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"):
        build_generate("a", None, None, {"temprature": 1.0})  # type: ignore[typeddict-unknown-key]


def test_tokenize_takes_one_input() -> None:
    assert build_tokenize("x", None, "m", False).without_special_tokens
    with pytest.raises(InvalidArgument, match="exactly one"):
        build_tokenize(None, None, "", True)


@pytest.mark.parametrize(
    ("text", "target", "url"),
    [
        ("localhost:80", "localhost:80", "http://localhost:80"),
        ("http://127.0.0.1:8080/", "127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://llm.example.com", "llm.example.com:443", "https://llm.example.com:443"),
        ("http://[::1]:5", "[::1]:5", "http://[::1]:5"),
    ],
)
def test_endpoints(text: str, target: str, url: str) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.target, endpoint.url) == (target, url)


@pytest.mark.parametrize(
    "text", ["", "localhost", "grpc://a:1", "http://a:99999", "http://a:1/v1", "a:b", "http://u@a:1"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"endpoint: .*give host:port"):
        parse_endpoint(text)

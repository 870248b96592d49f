"""What the OpenAI HTTP API answers when it cannot do what was asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.rpc.errors import InvalidArgument, ResourceExhausted, Unavailable
from support.fake_worker import Reply
from support.gateway_running import run_gateway
from support.openai_calls import CHAT, COMPLETIONS, MESSAGES, chat, events

IMAGE = {"role": "user", "content": [{"type": "image_url"}]}


async def test_one_refused_prompt_refuses_all_and_ends_the_others() -> None:
    async with run_gateway() as running:
        replies = running.worker.replies
        replies.clear()
        replies.extend([Reply("xy", hold=asyncio.Event()), Reply(fail=InvalidArgument("token_ids", "too long"))])
        response = await running.http.post(COMPLETIONS, json={"prompt": ["ab", "cd"]})
        assert response.status_code == 400
        held, _ = running.worker.calls
        await asyncio.wait_for(held.ended.wait(), 10)
        assert held.cancelled


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        (CHAT, {"messages": MESSAGES, "temprature": 1}, "temprature", "not a field"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "to": 1}]}, "messages[0].to", "not a field"),
        (CHAT, {}, "messages", "required"),
        (CHAT, {"messages": []}, "messages", "empty"),
        (CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature", "expected"),
        (CHAT, {"messages": MESSAGES, "temperature": 3}, "temperature", "3 is outside [0, 2]"),
        (CHAT, {"messages": MESSAGES, "n": 65}, "n", "65"),
        (CHAT, {"messages": MESSAGES, "n": 0}, "n", "0 is outside"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 9999}, "max_tokens", "9999 is outside [1, 1016]"),
        (CHAT, {"messages": MESSAGES, "max_tokens": -1}, "max_tokens", ">= 0"),
        (CHAT, {"messages": MESSAGES, "stop": ["a"] * 65}, "stop", "at most 64"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"x": 1}}, "logit_bias", "not a token id"),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        (CHAT, {"messages": MESSAGES, "stream_options": {}}, "stream_options", "stream: true"),
        (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format.type", "text"),
        (CHAT, {"messages": MESSAGES, "tool_choice": "required"}, "tool_choice", "auto"),
        (CHAT, {"messages": [IMAGE]}, "messages[0].content[0].type", "only text"),
        (COMPLETIONS, {"prompt": "x", "echo": True}, "echo", "not supported"),
        (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "suffix", "not supported"),
        (COMPLETIONS, {"prompt": "x", "best_of": 2}, "best_of", "n"),
        (COMPLETIONS, {"prompt": ""}, "prompt", "empty"),
        (COMPLETIONS, {"prompt": []}, "prompt", "empty"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt", "mixture"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt", "[0, 4294967295]"),
        (COMPLETIONS, {"prompt": [300]}, "prompt", "300 is outside [0, 257]"),
        (COMPLETIONS, {"prompt": "x" * 1024}, "prompt", "1024 tokens"),
        (COMPLETIONS, {"prompt": ["x"] * 65}, "prompt", "at most 64"),
    ],
)  # fmt: skip
async def test_a_bad_field_is_named_as_http_calls_it(path: str, fields: dict[str, Any], param: str, says: str) -> None:
    async with run_gateway() as running:
        response = await running.http.post(path, json=fields)
        assert running.worker.calls == []
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_argument"
    assert says in error["message"]
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b'{"\xff": 1}', b'"\\ud800"'])
async def test_what_is_not_json_is_refused(data: bytes) -> None:
    async with run_gateway() as running:
        response = await running.http.post(CHAT, content=data)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "body"


async def test_sizes_are_limited_declared_or_not() -> None:
    async def parts() -> Any:
        for _ in range(20):
            yield b"x" * 100_000

    async with run_gateway(max_request_bytes=1_000_000) as running:
        declared = await running.http.post(CHAT, content=b"x" * 1_000_001)
        chunked = await running.http.post(CHAT, content=parts())
    assert [declared.status_code, chunked.status_code] == [413, 413]
    assert declared.json()["error"]["code"] == "payload_too_large"
    assert "1000000" in declared.json()["error"]["message"]


async def test_a_full_worker_is_429_with_retry_after_streamed_or_not() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply(fail=ResourceExhausted("the queue is full", retry_after_s=2.5))
        for stream in (False, True):
            response = await chat(running, stream=stream)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "3"
            assert response.json()["error"]["type"] == "rate_limit_error"


async def test_a_failure_in_the_middle_is_an_event() -> None:
    async with run_gateway(max_moves=0) as running:
        running.worker.replies[0] = Reply("abc", fail=Unavailable("going away"), fail_after=2)
        streamed = events(await chat(running, stream=True))
        whole = await chat(running)
    assert streamed[-1]["error"] == {
        "message": "going away", "type": "server_error", "param": None, "code": "unavailable",
    }  # fmt: skip
    assert whole.status_code == 503


async def test_a_tokenizers_refusal_comes_through() -> None:
    async with run_gateway() as running:
        running.tokenizer.error = InvalidArgument("chat.messages[0].role", "the template knows no 'wizard'")
        response = await chat(running)
    assert response.status_code == 400
    assert "wizard" in response.json()["error"]["message"]


async def test_an_unknown_model_is_404() -> None:
    async with run_gateway() as running:
        response = await chat(running, model="gpt")
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"
    assert response.json()["error"]["code"] == "model_not_found"


async def test_other_paths_and_methods() -> None:
    async with run_gateway() as running:
        embeddings = await running.http.post("/v1/embeddings", json={})
        nothing = await running.http.get("/v2")
        method = await running.http.get(CHAT)
    assert [r.status_code for r in (embeddings, nothing, method)] == [404, 404, 405]
    assert "embeddings are not served" in embeddings.json()["error"]["message"]
    assert embeddings.json()["error"]["code"] == "not_found"
    assert "/v2" in nothing.json()["error"]["message"]
    assert method.headers["allow"] == "POST"

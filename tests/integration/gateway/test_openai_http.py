"""The OpenAI HTTP API against a scripted worker, over real HTTP and gRPC."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf import json_format

from shoal.api.gateway.v1 import gateway_pb2
from shoal.rpc.errors import InvalidArgument, ResourceExhausted, Unavailable
from support.eventually import eventually
from support.fake_tokenizer import EOS
from support.fake_worker import MODEL, Reply
from support.gateway_running import RunningGateway, run_gateway

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
IMAGE = {"role": "user", "content": [{"type": "image_url"}]}


async def chat(running: RunningGateway, **fields: Any) -> httpx.Response:
    return await running.http.post(CHAT, json={"messages": MESSAGES} | fields)


def events(response: httpx.Response) -> list[Any]:
    """The data of each server-sent event; the end as a string."""
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    lines = [part.removeprefix("data: ") for part in parts]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_chat_completion() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("Grüße", cached_tokens=4)
        response = await running.http.post(
            CHAT, json={"model": MODEL, "messages": MESSAGES}, headers={"x-request-id": "req-7"}
        )
        call = running.worker.calls[0]
    body = response.json()
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "req-7"
    assert call.request.request_id.startswith("req-7/")
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == MODEL
    assert body["system_fingerprint"] == "fp_d1d1d1d1d1d1"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Grüße", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": EOS,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 8,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


async def test_a_streamed_chat_completion() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply('say "hi"\n€')
        response = await chat(running, stream=True, stream_options={"include_usage": True})
    *chunks, usage, end = events(response)
    assert end == "[DONE]"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("content", "") for d in deltas) == 'say "hi"\n€'
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(c["usage"] is None for c in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 13


async def test_usage_is_not_streamed_unasked() -> None:
    async with run_gateway() as running:
        chunks = events(await chat(running, stream=True))
    assert all("usage" not in c for c in chunks[:-1])


async def test_every_parameter_arrives() -> None:
    async with run_gateway() as running:
        response = await chat(
            running,
            temperature=0.5, top_p=0.5, n=2, seed=-1, max_completion_tokens=5, logit_bias={"65": 1.5},
            frequency_penalty=0.5, presence_penalty=-0.5, top_k=4, min_p=0.25, typical_p=0.5, repetition_penalty=1.5,
            min_tokens=1, ignore_eos=True, stop_token_ids=[7], priority=-3, logprobs=True, top_logprobs=2,
            user="me", metadata={"a": "b"}, store=True,
        )  # fmt: skip
        request = running.worker.calls[0].request
    assert response.status_code == 200
    sampling = request.sampling
    assert request.priority == -3
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.seed) == (0.5, 0.5, 2, 2**64 - 1)
    assert (sampling.max_tokens, dict(sampling.logit_bias), sampling.top_k) == (5, {65: 1.5}, 4)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.min_p) == (0.5, -0.5, 0.25)
    assert (sampling.typical_p, sampling.repetition_penalty, sampling.min_tokens) == (0.5, 1.5, 1)
    assert (sampling.ignore_eos, list(sampling.stop_token_ids), sampling.logprobs) == (True, [7], 2)


async def test_n_choices_streamed_and_whole() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("ab")
        whole = (await chat(running, n=3)).json()
        chunks = events(await chat(running, n=3, stream=True))[:-1]
    assert [(c["index"], c["message"]["content"]) for c in whole["choices"]] == [(0, "ab"), (1, "ab"), (2, "ab")]
    assert whole["usage"]["completion_tokens"] == 9
    for index in range(3):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in mine) == "ab"
        assert mine[0]["delta"]["role"] == "assistant"
        assert mine[-1]["finish_reason"] == "stop"


async def test_stop_strings() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("one two three")
        single = (await chat(running, stop="two")).json()["choices"][0]
        several = (await chat(running, stop=["x", "ee"], include_stop_str_in_output=True)).json()["choices"][0]
    assert (single["message"]["content"], single["finish_reason"], single["stop_reason"]) == ("one ", "stop", "two")
    assert (several["message"]["content"], several["stop_reason"]) == ("one two three", "ee")


async def test_chat_logprobs_streamed_and_whole() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("ab", ends_with_eos=False)
        whole = (await chat(running, logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
        chunks = events(await chat(running, logprobs=True, top_logprobs=2, stream=True))[:-1]
        without_top = (await chat(running, logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    a = {"token": "a", "logprob": -0.5, "bytes": [97]}
    b = {"token": "b", "logprob": -1.5, "bytes": [98]}
    assert whole[0] == a | {"top_logprobs": [a, b]}
    assert len(whole) == 2
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole
    assert without_top[0] == a | {"top_logprobs": []}


async def test_completion_logprobs_streamed_and_whole() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("ab", ends_with_eos=False)
        fields = {"prompt": "x", "logprobs": 1}
        whole = (await running.http.post(COMPLETIONS, json=fields)).json()["choices"][0]["logprobs"]
        chunks = events(await running.http.post(COMPLETIONS, json=fields | {"stream": True}))[:-1]
    assert whole == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}],
        "text_offset": [0, 1],
    }
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in chunks] == [[0], [1]]


async def test_a_completion_of_text_and_of_token_ids() -> None:
    async with run_gateway() as running:
        text = await running.http.post(COMPLETIONS, json={"prompt": "abc", "model": MODEL})
        ids = await running.http.post(COMPLETIONS, json={"prompt": [1, 2, 3]})
        calls = running.worker.calls
    assert text.json()["object"] == "text_completion"
    assert text.json()["choices"][0] == {
        "index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop", "stop_reason": EOS,
    }  # fmt: skip
    assert ids.status_code == 200
    assert [list(c.request.token_ids) for c in calls] == [[97, 98, 99], [1, 2, 3]]
    assert calls[0].request.sampling.max_tokens == 16


@pytest.mark.parametrize("prompts", [["ab", "c"], [[97, 98], [99]]])
async def test_several_prompts_are_numbered_in_order(prompts: list[Any]) -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("xy")
        fields = {"prompt": prompts, "n": 2}
        whole = (await running.http.post(COMPLETIONS, json=fields)).json()
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage, end = events(await running.http.post(COMPLETIONS, json=fields))
    assert [(c["index"], c["text"]) for c in whole["choices"]] == [(i, "xy") for i in range(4)]
    assert whole["usage"]["prompt_tokens"] == 3
    assert whole["usage"]["completion_tokens"] == 12
    for index in range(4):
        assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == index) == "xy"
    assert usage["usage"] == whole["usage"]
    assert end == "[DONE]"


async def test_one_refused_prompt_refuses_all_and_ends_the_others() -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("xy", hold=asyncio.Event())
        response = await running.http.post(COMPLETIONS, json={"prompt": ["ab", "y" * 1024]})
        assert response.status_code == 400
        for call in running.worker.calls:
            await asyncio.wait_for(call.ended.wait(), 10)
            assert call.cancelled


async def test_tools_and_content_parts_reach_the_template() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    async with run_gateway() as running:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        await chat(
            running,
            messages=[{"role": "user", "content": parts}],
            tools=[tool],
            chat_template_kwargs={"enable_thinking": False},
            continue_final_message=True,
        )
        sent = running.tokenizer.chats[0].chat
    assert sent.messages[0].content == "ab"
    assert json_format.MessageToDict(sent.tools[0]) == tool
    assert sent.template_variables["enable_thinking"] is False
    assert sent.continue_final_message


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
    async with run_gateway() as running:
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


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_worker(stream: bool) -> None:
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abc", hold=asyncio.Event())
        request = asyncio.ensure_future(chat(running, stream=stream))
        await asyncio.wait_for(running.worker.called.wait(), 10)
        request.cancel()
        call = running.worker.calls[0]
        await asyncio.wait_for(call.ended.wait(), 10)
        assert call.cancelled


async def test_models() -> None:
    async with run_gateway() as running:
        models = (await running.http.get("/v1/models")).json()
        one = (await running.http.get(f"/v1/models/{MODEL}")).json()
        missing = await running.http.get("/v1/models/org/gpt")
    assert models["object"] == "list"
    assert models["data"] == [one]
    assert (one["id"], one["object"], one["max_model_len"]) == (MODEL, "model", 1024)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    assert MODEL in missing.json()["error"]["message"]


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


async def test_health_readiness_and_metrics() -> None:
    async with run_gateway(wait=False, tokenizer_address="127.0.0.1:1") as running:
        live, ready = await running.http.get("/healthz"), await running.http.get("/readyz")
        refused = await chat(running)
    assert (live.status_code, ready.status_code, refused.status_code) == (200, 503, 503)
    assert "tokenizer" in ready.json()["error"]["message"]
    async with run_gateway() as running:
        assert (await running.http.get("/readyz")).status_code == 200
        await chat(running)
        metrics = (await running.http.get("/metrics")).text
    assert f'shoal_gateway_requests_total{{code="OK",model="{MODEL}"}}' in metrics
    assert 'shoal_gateway_picks_total{reason="load"}' in metrics
    assert f'shoal_gateway_requests_in_flight{{model="{MODEL}"}} 0.0' in metrics


async def test_api_keys_guard_both_apis_and_separate_caches(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme:" + hashlib.sha256(b"secret").hexdigest())
    async with run_gateway(api_keys_file=str(keys)) as running:
        refused = await chat(running)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert (await running.http.get("/v1/models")).status_code == 401
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.generate(text="x")
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert (await running.http.get("/healthz")).status_code == 200
        accepted = await running.http.post(
            CHAT, json={"messages": MESSAGES}, headers={"authorization": "Bearer secret"}
        )
        assert accepted.status_code == 200
        call = running.stub.Generate(
            gateway_pb2.GenerateRequest(text="x"), metadata=(("authorization", "Bearer secret"),)
        )
        assert [m async for m in call]
        salts = {c.request.cache_salt for c in running.worker.calls}
    assert salts == {hashlib.sha256(b"tenant:acme").digest()}


async def test_draining_lets_streams_finish_and_takes_nothing_new() -> None:
    release = asyncio.Event()
    async with run_gateway() as running:
        running.worker.replies[0] = Reply("abc", hold=release)
        by_http = asyncio.ensure_future(chat(running, stream=True))
        by_grpc = asyncio.ensure_future(running.generate(text="x"))
        await eventually(lambda: len(running.worker.calls) == 2, "both requests run")
        draining = asyncio.ensure_future(running.gateway.drain(20))
        await eventually(lambda: running.gateway.not_ready() != "", "the drain has begun")
        ready, refused = await running.http.get("/readyz"), await chat(running)
        assert (ready.status_code, refused.status_code) == (503, 503)
        assert not draining.done()
        release.set()
        assert events(await by_http)[-1] == "[DONE]"
        assert "".join(m.text for m in await by_grpc) == "abc"
        await asyncio.wait_for(draining, 10)

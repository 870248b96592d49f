"""Completions of the OpenAI HTTP API against a scripted worker, over real HTTP and gRPC."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from support.fake_tokenizer import EOS
from support.fake_worker import MODEL, Reply
from support.gateway_running import run_gateway
from support.openai_calls import CHAT, COMPLETIONS, MESSAGES, chat, events


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

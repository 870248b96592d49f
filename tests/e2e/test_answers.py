"""A real model answers through the whole mesh, over both protocols alike."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from shoal.client import Client
from support.shoal_up import MODEL

MESSAGES = [{"role": "user", "content": "Name the capital of France in one short sentence."}]


def sse(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def chat(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES} | body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_model_knows_something(client: Client) -> None:
    answer = client.chat(MESSAGES, temperature=0, max_tokens=32)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.worker.startswith("127.0.0.1:")


def test_both_protocols_streamed_or_not_give_the_same_text(client: Client, http: httpx.Client) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 48}
    over_grpc = client.chat(MESSAGES, **options).text
    with client.chat_stream(MESSAGES, **options) as stream:
        assert "".join(chunk.text for chunk in stream) == over_grpc
    assert chat(http, **options)["choices"][0]["message"]["content"] == over_grpc
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}} | options
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        events = sse(response)
    deltas = [c["delta"].get("content") or "" for event in events for c in event["choices"]]
    assert "".join(deltas) == over_grpc
    assert events[-1]["usage"]["completion_tokens"] > 0


def test_a_seed_repeats_and_choices_differ(client: Client) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 24, "seed": 7, "n": 3}
    first, second = client.generate("Once upon a time", **options), client.generate("Once upon a time", **options)
    assert [c.token_ids for c in first.choices] == [c.token_ids for c in second.choices]
    assert len({c.token_ids for c in first.choices}) == 3


def test_token_ids_in_and_out(client: Client) -> None:
    ids = client.tokenize(messages=MESSAGES)
    answer = client.generate(token_ids=ids, temperature=0, max_tokens=16, output="token_ids")
    assert answer.token_ids == client.chat(MESSAGES, temperature=0, max_tokens=16).token_ids
    assert answer.text == ""
    assert answer.usage.prompt_tokens == len(ids)


def test_a_repeated_prompt_is_cached_on_the_worker_it_went_to(client: Client) -> None:
    prompt = "The history of the lighthouse keepers of the northern islands. " * 12
    first = client.generate(prompt, temperature=0, max_tokens=4)
    second = client.generate(prompt, temperature=0, max_tokens=4)
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == (second.usage.prompt_tokens - 1) // 16 * 16
    assert second.worker == first.worker
    assert second.token_ids == first.token_ids


def test_a_stop_text_ends_the_answer_before_it(client: Client, http: httpx.Client) -> None:
    full = client.generate("Count: one two three four", temperature=0, max_tokens=32).text
    word = full.split()[3]
    answer = client.generate("Count: one two three four", temperature=0, max_tokens=32, stop=[word])
    assert answer.text == full[: full.index(word)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", word)
    over_http = http.post(
        "/v1/completions",
        json={"model": MODEL, "prompt": "Count: one two three four", "temperature": 0, "max_tokens": 32, "stop": word},
    ).json()
    assert over_http["choices"][0]["text"] == answer.text


def test_logprobs_of_greedy_tokens_are_the_largest(http: httpx.Client) -> None:
    answer = chat(http, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    for position in answer["choices"][0]["logprobs"]["content"]:
        assert len(position["top_logprobs"]) == 3
        assert position["logprob"] == pytest.approx(position["top_logprobs"][0]["logprob"])


def test_models_are_listed(client: Client, http: httpx.Client) -> None:
    assert [model.name for model in client.models()] == [MODEL]
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == [MODEL]
    assert http.get("/healthz").status_code == 200
    assert http.get("/readyz").status_code == 200
    assert "shoal_gateway" in http.get("/metrics").text

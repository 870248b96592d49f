"""Whatever a client sends, the answer names what is wrong, and the mesh goes on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from shoal.client import Client, InvalidArgument, NotFound, ShoalError
from support.shoal_up import MODEL

MESSAGES = [{"role": "user", "content": "Say hello."}]
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 4}
COMPLETION = {"model": MODEL, "prompt": "Hello", "max_tokens": 4}


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/v1/completions", COMPLETION | {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", COMPLETION | {"prompt": "sea " * 9000}, 400, "8192"),
        ("/v1/chat/completions", CHAT | {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", CHAT | {"model": "gpt-9"}, 404, MODEL),
        ("/v1/chat/completions", CHAT | {"temperature": -1}, 400, "temperature"),
        ("/v1/chat/completions", CHAT | {"temperature": 9}, 400, "temperature"),
        ("/v1/chat/completions", CHAT | {"top_p": 0}, 400, "top_p"),
        ("/v1/chat/completions", CHAT | {"max_tokens": -5}, 400, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"n": 1000}, 400, "n"),
        ("/v1/chat/completions", CHAT | {"temprature": 1}, 400, "temprature"),
        ("/v1/chat/completions", CHAT | {"logit_bias": {"99999999": 1}}, 400, "logit_bias"),
        ("/v1/chat/completions", CHAT | {"stop": ["x"] * 5000}, 400, "stop"),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": 5}]}, 400, "content"),
        ("/v1/embeddings", {"model": MODEL, "input": "x"}, 404, "embeddings"),
        ("/v1/nonsense", {}, 404, "/v1/nonsense"),
    ],
)
def test_http_refusals_name_the_problem(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, part: str
) -> None:
    response = http.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert part in error["message"] + str(error["param"])
    assert error["type"]


@pytest.mark.parametrize(
    "raw", [b"{", b"", b"[]", b'{"temperature": NaN}', b"\xff\xfe", b'{"messages": ' + b"[" * 100_000]
)
def test_malformed_json_is_refused(http: httpx.Client, raw: bytes) -> None:
    response = http.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_ten_megabyte_prompt_is_refused_by_size(http: httpx.Client, client: Client) -> None:
    response = http.post("/v1/completions", json=COMPLETION | {"prompt": "sea " * 2_621_440})
    assert response.status_code == 413
    assert "bytes" in response.json()["error"]["message"]
    with pytest.raises(ShoalError):
        client.generate("sea " * 2_621_440, max_tokens=1)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -0.5}, "temperature"),
        ({"top_p": float("inf")}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"frequency_penalty": 3.0}, "frequency_penalty"),
        ({"n": 65}, "n"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["y" * 2000]}, "stop"),
        ({"stop": ["y"] * 5000}, "stop"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
    ],
)
def test_grpc_refusals_name_the_field(client: Client, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        client.generate("Hello", **({"max_tokens": 4} | options))


def test_grpc_refuses_empty_long_unknown_and_out_of_vocabulary(client: Client) -> None:
    with pytest.raises(InvalidArgument):
        client.generate("", max_tokens=4)
    with pytest.raises(InvalidArgument, match="8192"):
        client.generate("sea " * 9000, max_tokens=4)
    with pytest.raises(InvalidArgument):
        client.generate(token_ids=[10**7], max_tokens=4)
    with pytest.raises(NotFound, match=MODEL):
        client.generate("Hello", model="gpt-9", max_tokens=4)


def test_after_all_that_it_still_answers(client: Client) -> None:
    assert client.generate("Hello", temperature=0, max_tokens=4).usage.completion_tokens == 4

"""What a client says it has is checked before anything is done with it; errors name the field."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.api.gateway.v1 import gateway_pb2
from shoal.gateway.validation import check_length, check_request
from shoal.gateway.workers.fleet import ServedModel
from shoal.rpc.errors import InvalidArgument

MODEL = ServedModel("fake", "d1" * 32, "fake-v1", 4, 32, 100, 0)
NUM_PROMPT_TOKENS = 10


def request_with(*completions: tuple[list[int], bool], cached_tokens: int = 0, **sampling: Any) -> Any:
    params: Any = {"seed": 0} | sampling
    request = gateway_pb2.GenerateRequest(text="x", sampling=params)
    request.resume.cached_tokens = cached_tokens
    for token_ids, finished in completions:
        request.resume.completions.add(token_ids=token_ids, finished=finished)
    return request


def check(request: gateway_pb2.GenerateRequest) -> None:
    check_request(request, MODEL)
    check_length(request, NUM_PROMPT_TOKENS, MODEL)


@pytest.mark.parametrize(
    "request_",
    [
        request_with(([], False)),
        request_with(([99] * 22, False), cached_tokens=10),
        request_with(([1], True), ([], False), n=2, max_tokens=1),
    ],
)
def test_what_can_be_resumed(request_: gateway_pb2.GenerateRequest) -> None:
    check(request_)


@pytest.mark.parametrize(
    ("request_", "field", "problem"),
    [
        (request_with(([1], False), seed=None), "sampling.seed", "missing"),
        (request_with(), "resume.completions", "0 entries; n is 1"),
        (request_with(([1], False), n=3), "resume.completions", "1 entries; n is 3"),
        (request_with(([1], True), ([2], True), n=2), "resume.completions", "all are finished"),
        (request_with(([1, 100], False)), "resume.completions[0].token_ids", r"100 is outside \[0, 99\]"),
        (request_with(([1] * 23, False)), "resume.completions[0].token_ids", "23 tokens; at most 22 fit"),
        (request_with(([], False), ([1] * 6, True), n=2, max_tokens=5), "resume.completions[1].token_ids", "at most 5"),
        (request_with(([1], False), cached_tokens=11), "resume.cached_tokens", r"outside \[0, 10\]"),
    ],
)
def test_what_cannot(request_: gateway_pb2.GenerateRequest, field: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        check(request_)
    assert caught.value.field == field

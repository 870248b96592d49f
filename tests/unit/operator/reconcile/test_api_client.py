"""What the API client makes of answers that are none, or come later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st
from kubernetes_asyncio.client import Configuration

from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient, ApiError, as_yaml

POD = Kind("v1", "Pod", "pods")
Answer = tuple[int, dict[str, str]]
"""Status and headers."""
_REFUSAL = {"kind": "Status", "reason": "Because", "message": "told"}


@asynccontextmanager
async def connected(answers: Sequence[Answer], refusal: Any = _REFUSAL) -> AsyncIterator[tuple[ApiClient, list[str]]]:
    """With a server that gives these answers, the last one for ever; and the paths that it was asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        status, headers = answers[min(len(asked), len(answers) - 1)]
        asked.append(request.path)
        body = refusal if status >= 400 else {"resources": []}
        return web.json_response(body, status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration()
    configuration.host = "http://{}:{}".format(*runner.addresses[0][:2])
    try:
        async with ApiClient(configuration) as api:
            yield api, asked
    finally:
        await runner.cleanup()


BUSY: Answer = (429, {"Retry-After": "0"})


async def test_a_busy_server_is_asked_again() -> None:
    async with connected([BUSY, BUSY, (200, {})]) as (api, asked):
        assert await api.request("GET", "/x") == {"resources": []}
    assert len(asked) == 3


@pytest.mark.parametrize("answer", [BUSY, (503, {"Retry-After": "0"})])
async def test_one_that_stays_busy_is_given_up(answer: Answer) -> None:
    async with connected([answer]) as (api, asked):
        with pytest.raises(ApiError, match="told") as caught:
            await api.request("PATCH", "/x", {})
    assert caught.value.is_temporary
    assert len(asked) == 5


@pytest.mark.parametrize("answer", [(403, {}), (503, {}), (429, {"Retry-After": "tomorrow"})])
async def test_what_names_no_time_is_for_the_caller_to_try_again(answer: Answer) -> None:
    async with connected([answer]) as (api, asked):
        with pytest.raises(ApiError):
            await api.request("GET", "/x")
    assert len(asked) == 1


async def test_kinds_that_are_not_served() -> None:
    async with connected([(404, {})]) as (api, asked):
        assert not await api.serves(Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects"))
        assert await api.get(POD, "n", "x") is None
    assert asked == ["/apis/keda.sh/v1alpha1", "/api/v1/namespaces/n/pods/x"]


@pytest.mark.parametrize("answer", [{"message": "field not declared in schema"}, {"reason": ""}, ["no status"]])
async def test_reasons_are_words_also_where_the_answer_has_none(answer: Any) -> None:
    """As of applied objects with fields that there are not. A condition with another reason would be refused."""
    async with connected([(500, {})], refusal=answer) as (api, _):
        with pytest.raises(ApiError) as caught:
            await api.request("GET", "/x")
    assert caught.value.reason == "InternalServerError"


async def test_a_server_that_is_not_there() -> None:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:9"
    async with ApiClient(configuration) as api:
        with pytest.raises(ApiError, match=r"127\.0\.0\.1:9 cannot be reached") as caught:
            await api.request("GET", "/version")
    assert caught.value.is_temporary


async def test_a_list_that_became_too_old_to_be_read_on_is_read_as_a_whole() -> None:
    """Etcd was compacted between two parts of it."""
    asked: list[dict[str, str]] = []

    class Compacted(ApiClient):
        async def request(self, method: str, path: str, *_: Any, query: Any = None, **fields: Any) -> Any:
            asked.append(dict(query))
            if "continue" in query:
                raise ApiError(410, "Expired", "the continue token is too old")
            names = ["a"] if "limit" in query else ["a", "b"]
            metadata = {"resourceVersion": "7", "continue": "x"} if "limit" in query else {"resourceVersion": "9"}
            return {"metadata": metadata, "items": [{"metadata": {"name": name}} for name in names]}

    async with Compacted(Configuration()) as api:
        listing = await api.listing(POD, "n", "a=b")
    assert [item["metadata"]["name"] for item in listing.items] == ["a", "b"]
    assert listing.version == 9
    assert [sorted(query) for query in asked] == [
        ["labelSelector", "limit"],
        ["continue", "labelSelector", "limit"],
        ["labelSelector"],
    ]


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("\N{WHALE} \\ud83d \x7f \x85 \u2028 \ufeff \uffff")
def test_what_is_applied_means_the_same_as_yaml(text: str) -> None:
    # Names of fields and annotations have up to 317 characters of ASCII; PyYAML reads keys of 1,024, escapes counted.
    value: dict[str, Any] = {"note": text, text[:150]: [1, 2.5, True, None, {}]}
    encoded = as_yaml(value)
    assert yaml.safe_load(encoded.decode()) == value
    assert not any(0x7F <= ord(character) <= 0xFFFF for character in encoded.decode())


@pytest.mark.parametrize("content", [b"<html>log in</html>", b"[]", b"", b"\xff"])
async def test_an_answer_that_is_no_object_is_an_error_like_others(content: bytes) -> None:
    """Of a proxy that asks for a password, say."""

    class Answering(ApiClient):
        async def _send(self, *_: Any, **fields: Any) -> bytes:
            return content

    async with Answering(Configuration()) as api:
        with pytest.raises(ApiError, match="what is no object") as caught:
            await api.request("GET", "/x")
    assert caught.value.is_temporary


async def test_an_object_that_is_no_list_is_an_error_like_others() -> None:
    async with connected([(200, {})]) as (api, _):
        with pytest.raises(ApiError, match="no list of pods"):
            await api.list(POD, None)


async def test_credentials_that_cannot_be_had_are_an_error_like_others() -> None:
    async def refresh(configuration: Configuration) -> None:
        raise FileNotFoundError("/var/run/token")

    async with connected([(200, {})]) as (api, asked):
        api.configuration.api_key = {"BearerToken": "old"}
        api.configuration.refresh_api_key_hook = refresh
        with pytest.raises(ApiError, match=r"no credentials to be had for http.*/var/run/token") as caught:
            await api.request("GET", "/x")
    assert caught.value.is_temporary
    assert asked == []

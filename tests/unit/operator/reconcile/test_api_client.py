"""What the API client makes of answers that are none, or come later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes_asyncio.client import Configuration

from shoal.operator.planner.kubernetes.plan import Kind
from shoal.operator.reconcile.api_client import ApiClient, ApiError

POD = Kind("v1", "Pod", "pods")
Answer = tuple[int, dict[str, str]]
"""Status and headers."""


@asynccontextmanager
async def connected(answers: Sequence[Answer]) -> AsyncIterator[tuple[ApiClient, list[str]]]:
    """With a server that gives these answers, the last one for ever; and the paths that it was asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        status, headers = answers[min(len(asked), len(answers) - 1)]
        asked.append(request.path)
        refusal = {"kind": "Status", "reason": "Because", "message": "told"}
        body: dict[str, object] = {**refusal} if status >= 400 else {"resources": []}
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

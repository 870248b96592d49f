"""The EDGE listener of a real Envoy: one port for gRPC and HTTP, and nothing forged in or leaked out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from shoal.operator.envoy import Endpoint
from support.envoy_running import RunningEnvoy, running_envoy
from support.eventually import eventually
from support.fake_endpoints import GATEWAY_ECHO, GATEWAY_GENERATE, FakeEndpoint, serving, serving_http

FORGED = [
    ("x-shoal-endpoint", "10.0.0.1:1"),
    ("x-shoal-tenant", "admin"),
    ("x-gateway-destination-endpoint", "10.0.0.1:1"),
    ("x-envoy-retry-on", "5xx"),
    ("x-envoy-upstream-rq-timeout-ms", "1"),
]


@dataclass
class Front:
    """An Envoy with one gateway behind it."""

    envoy: RunningEnvoy
    gateway: FakeEndpoint
    http_endpoint: Endpoint
    heads: list[str]
    """Of the HTTP requests that arrived."""

    @property
    def url(self) -> str:
        return f"http://{self.envoy.options.edge}"


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serving("g0"))
        http_endpoint, heads = await stack.enter_async_context(serving_http())
        envoy = await stack.enter_async_context(running_envoy(tmp_path))
        await envoy.join({"gateway-grpc": [gateway.endpoint], "gateway-http": [http_endpoint]})
        yield Front(envoy, gateway, http_endpoint, heads)


async def test_grpc_and_http_share_a_port(front: Front) -> None:
    call = front.envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", timeout=10)
    assert [message async for message in call] == [b"g0", b"end"]
    async with httpx.AsyncClient(base_url=front.url) as client:
        response = await client.get("/v1/models")
    assert (response.status_code, response.text) == (200, "ok")


async def test_forged_headers_never_arrive(front: Front) -> None:
    metadata = [*FORGED, ("authorization", "Bearer k"), ("x-request-id", "abc")]
    call = front.envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", metadata=metadata, timeout=10)
    assert [message async for message in call] == [b"g0", b"end"]
    seen = front.gateway.metadata[-1]
    assert not {name for name, _ in FORGED} & set(seen)
    assert (seen["authorization"], seen["x-request-id"]) == ("Bearer k", "abc")
    async with httpx.AsyncClient(base_url=front.url, headers=dict(FORGED)) as client:
        await client.get("/v1/models")
    head = front.heads[-1]
    assert not [name for name, _ in FORGED if f"{name}:" in head]
    assert "x-request-id:" in head


async def test_load_reports_stay_inside(front: Front) -> None:
    call = front.envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", timeout=10)
    assert [message async for message in call] == [b"g0", b"end"]
    trailers = dict(await call.trailing_metadata())
    assert trailers["kept"] == "yes"
    assert not [name for name in trailers if name.startswith("endpoint-load-metrics")]
    async with httpx.AsyncClient(base_url=front.url) as client:
        response = await client.get("/")
    assert not [name for name in response.headers if name.startswith(("endpoint-load-metrics", "x-envoy-", "x-shoal-"))]


async def test_large_http_request_is_refused_as_the_gateway_would(front: Front) -> None:
    async with httpx.AsyncClient(base_url=front.url) as client:
        response = await client.post("/v1/completions", content=b"x" * 2000)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == 413
    assert front.heads == []


async def test_no_gateway_is_unavailable_in_both_languages(front: Front) -> None:
    front.envoy.membership.leave({"gateway-grpc": front.gateway.endpoint, "gateway-http": front.http_endpoint})

    async def no_host() -> bool:
        return not await front.envoy.healthy_hosts()

    await eventually(no_host, "Envoy knows no gateway")
    with pytest.raises(grpc.aio.AioRpcError, match="no healthy upstream") as caught:
        await front.envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", timeout=10).read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with httpx.AsyncClient(base_url=front.url) as client:
        response = await client.get("/v1/models")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "proxy_error"


async def test_who_is_told_that_it_is_ready_is_served(front: Front) -> None:
    """Over gRPC too, although the gateway's HTTP side is there all the time."""
    async with httpx.AsyncClient(base_url=front.url) as client:

        async def answers(status: int) -> bool:
            return (await client.get("/readyz")).status_code == status

        await front.gateway.set_serving(False)
        await eventually(lambda: answers(503), "readiness ends with the gateway's own")
        assert (await client.get("/v1/models")).status_code == 200
        await front.gateway.set_serving(True)
        await eventually(lambda: answers(200), "readiness is back")
        assert await front.envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", timeout=10).read() == b"g0"


async def test_bidirectional_streams_pass(front: Front) -> None:
    """The limit on HTTP request bodies works by buffering whole requests, which must not touch gRPC."""
    call = front.envoy.edge.stream_stream(GATEWAY_ECHO)(timeout=10)
    for message in (b"one", b"two"):
        await call.write(message)
        assert await call.read() == message
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_ports_of_one_protocol_serve_no_other(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serving("g0"))
        http_endpoint, _ = await stack.enter_async_context(serving_http())
        envoy = await stack.enter_async_context(running_envoy(tmp_path, more_edges=True))
        await envoy.join({"gateway-grpc": [gateway.endpoint], "gateway-http": [http_endpoint]})
        answers = {name: await _answers(address) for name, address in _edges(envoy).items()}
    assert answers == {
        "edge": ("OK", 200, 200),
        "edge_grpc": ("OK", 404, 200),
        "edge_http": ("UNIMPLEMENTED", 200, 200),
    }


async def test_without_http_only_readiness_is_told(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serving("g0"))
        http_endpoint, _ = await stack.enter_async_context(serving_http())
        envoy = await stack.enter_async_context(running_envoy(tmp_path, serves_http=False))
        await envoy.join({"gateway-grpc": [gateway.endpoint], "gateway-http": [http_endpoint]})
        assert await _answers(envoy.options.edge) == ("OK", 404, 200)


def _edges(envoy: RunningEnvoy) -> dict[str, Endpoint]:
    found = {name: getattr(envoy.options, name) for name in ("edge", "edge_grpc", "edge_http")}
    return {name: address for name, address in found.items() if address is not None}


async def _answers(address: Endpoint) -> tuple[str, int, int]:
    """Of a gRPC call, an HTTP request, and one for readiness."""
    async with grpc.aio.insecure_channel(str(address)) as channel:
        untyped: Any = channel  # its stubs ask for serializers, which raw bytes do without
        try:
            await untyped.unary_stream(GATEWAY_GENERATE)(b"", timeout=10).read()
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        return code, (await client.get("/v1/models")).status_code, (await client.get("/readyz")).status_code

"""A gateway's Envoy goes: clients that stay connected to it are sent elsewhere, and nothing of theirs is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shoal.operator.envoy import clusters
from shoal.operator.follower.draining import Clients, DrainConfig, drain
from shoal.operator.substrate.probes import http_get
from support.envoy_running import RunningEnvoy, running_envoy
from support.eventually import eventually
from support.fake_endpoints import GATEWAY_GENERATE, FakeEndpoint, serving, serving_http

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[tuple[RunningEnvoy, FakeEndpoint]]:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serving("gateway"))
        http, _ = await stack.enter_async_context(serving_http())
        envoy = await stack.enter_async_context(running_envoy(tmp_path))
        envoy.membership.join({clusters.GATEWAY_HTTP: http})
        await envoy.join({clusters.GATEWAY_GRPC: [gateway.endpoint]})
        yield envoy, gateway


@pytest.fixture
async def connection(mesh: tuple[RunningEnvoy, FakeEndpoint]) -> AsyncIterator[Connection]:
    """One that HTTP/1 clients keep."""
    edge = mesh[0].options.edge
    reader, writer = await asyncio.open_connection(edge.host, edge.port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


def draining(envoy: RunningEnvoy, **changes: float) -> asyncio.Task[Clients]:
    config = DrainConfig(admin_socket=envoy.options.admin_socket, **{"leave_s": 0, "timeout_s": 30.0} | changes)
    return asyncio.ensure_future(drain(config))


async def fields_of_next_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 200"), head
    assert await reader.readexactly(2) == b"ok"
    return head


async def num_sent_away(envoy: RunningEnvoy) -> int:
    _, page = await http_get(envoy.options.admin_socket, "/stats?filter=edge.downstream_cx_drain_close", 5.0)
    return int(page.split()[-1])


async def is_told_to_go(envoy: RunningEnvoy) -> bool:
    status, _ = await http_get(envoy.options.admin_socket, "/ready", 5.0)
    return status == 503


async def test_streams_end_before_envoy_may(mesh: tuple[RunningEnvoy, FakeEndpoint], connection: Connection) -> None:
    envoy, gateway = mesh
    gateway.held = asyncio.Event()
    stream = envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", timeout=30)
    assert await stream.read() == b"gateway"
    assert "connection: close" not in await fields_of_next_answer(*connection)
    ended = draining(envoy)
    await eventually(lambda: is_told_to_go(envoy), "the drain has begun")
    # Its clients may ask on, as often as they like, and learn by the answer that the next request goes elsewhere.
    later = envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", timeout=30)
    assert await later.read() == b"gateway"
    assert "connection: close" in await fields_of_next_answer(*connection)
    await eventually(lambda: is_at_least(envoy, 2), "both connections are sent away")
    await asyncio.wait((ended,), timeout=1.5)
    assert not ended.done()
    gateway.held.set()
    assert [await stream.read(), await later.read()] == [b"end", b"end"]
    assert (await asyncio.wait_for(ended, 20)).num_requests == 0


async def is_at_least(envoy: RunningEnvoy, num: int) -> bool:
    return await num_sent_away(envoy) >= num


async def test_what_lasts_longer_is_counted(mesh: tuple[RunningEnvoy, FakeEndpoint]) -> None:
    envoy, gateway = mesh
    gateway.held = asyncio.Event()
    stream = envoy.edge.unary_stream(GATEWAY_GENERATE)(b"", timeout=30)
    assert await stream.read() == b"gateway"
    assert await asyncio.wait_for(draining(envoy, timeout_s=0.3), 20) == Clients(num_connections=1, num_requests=1)
    stream.cancel()

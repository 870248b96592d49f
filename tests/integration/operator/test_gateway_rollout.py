"""Gateways are replaced under clients that stay connected: nothing is cut, whichever pod goes and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio

from shoal.operator.api import parse_manifest
from shoal.operator.envoy import Endpoint
from shoal.operator.planner.kubernetes import Manifest, Owner, Platform, plan
from shoal.operator.substrate.ports import PortReservations
from support.fake_endpoints import GATEWAY_GENERATE
from support.gateway_pods import NUM_MESSAGES, gateway_pods
from support.manifests import MINIMAL_ON_KUBERNETES

_NUM_CLIENTS = 4
_WHOLE = b"token" * NUM_MESSAGES


def planned_template() -> Manifest:
    service = parse_manifest(MINIMAL_ON_KUBERNETES, "minimal")
    objects = plan(service, Platform(), Owner(namespace="default", uid="0"))
    found = [each for each in objects if (each["kind"], each["metadata"]["name"]) == ("Deployment", "smol-gateway")]
    template: Manifest = found[0]["spec"]["template"]
    return template


async def over_http2(address: Endpoint, stop: asyncio.Event, answers: Counter[str]) -> None:
    channel: Any
    async with grpc.aio.insecure_channel(str(address)) as channel:
        while not stop.is_set():
            try:
                call = channel.unary_stream(GATEWAY_GENERATE)(b"", timeout=20)
                found = b"".join([message async for message in call])
                answers["http2" if found == _WHOLE else f"cut: {found!r}"] += 1
            except grpc.aio.AioRpcError as error:
                answers[f"{error.code()}: {error.details()}"] += 1


async def over_http1(address: Endpoint, stop: asyncio.Event, answers: Counter[str]) -> None:
    """Keeps its connection for as long as the server wishes."""
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stop.is_set():
        try:
            connection = connection or await asyncio.open_connection(address.host, address.port)
            reader, writer = connection
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
            answers["http1" if body == _WHOLE else f"cut: {body!r}"] += 1
            is_last = b"connection: close" in head
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            answers[repr(error)] += 1
            is_last = True
        if connection is not None and (is_last or stop.is_set()):
            connection[1].close()
            await connection[1].wait_closed()
            connection = None


async def test_rolled_gateways_lose_no_stream(tmp_path: Path) -> None:
    template = planned_template()
    answers: Counter[str] = Counter()
    stop = asyncio.Event()
    with PortReservations() as ports:
        async with gateway_pods(tmp_path, ports, 1) as pods:
            one = pods.ready[0]
            clients = [
                asyncio.ensure_future(ask(pods.address, stop, answers))
                for ask in (over_http2, over_http1)
                for _ in range(_NUM_CLIENTS)
            ]
            # Its own gateway goes at once; its clients, who stay, are led to the other one by its Envoy.
            other = await pods.add()
            await pods.leave(one)
            ending = asyncio.create_task(one.end(template))
            # And that goes too, while the first still leads to it.
            await pods.add()
            await pods.leave(other)
            await asyncio.wait_for(asyncio.gather(ending, other.end(template)), 40)
            stop.set()
            await asyncio.wait_for(asyncio.gather(*clients), 20)
    assert set(answers) == {"http1", "http2"}
    assert min(answers.values()) > _NUM_CLIENTS

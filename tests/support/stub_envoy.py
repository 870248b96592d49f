"""An ADS client that asks as Envoy does (state of the world), and accepts or rejects what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse
from envoy_data_plane.google.rpc import Status

from shoal.operator.envoy import clusters
from shoal.operator.follower.following import METHOD
from shoal.operator.xds.snapshot import Kind

_NAMES = {Kind.ENDPOINTS: list(clusters.NAMES), Kind.ROUTES: ["edge", "mesh"]}


@dataclass
class StubEnvoy:
    """One that is connected."""

    rejects: str = ""
    """Why it refuses updates; empty: it accepts them."""
    told: list[Kind] = field(default_factory=list)
    _node: Node | None = None
    _call: Any = None
    _last: dict[Kind, DiscoveryResponse] = field(default_factory=dict)

    async def reconsider(self) -> None:
        """Accepts after all what it was told last."""
        self.rejects = ""
        for response in list(self._last.values()):
            await self._answer(response)

    async def _answer(self, response: DiscoveryResponse) -> None:
        error = Status(code=3, message=self.rejects) if self.rejects else None
        kind = Kind(response.type_url)
        await self._call.write(
            DiscoveryRequest(
                node=self._node,
                type_url=kind,
                resource_names=_NAMES.get(kind, []),
                version_info="" if error else response.version_info,
                response_nonce=response.nonce,
                error_detail=error,
            )
        )

    async def run(self, channel: grpc.aio.Channel, node: Node) -> None:
        """Until cancelled."""
        self._node = node
        open_stream: Any = channel.stream_stream(
            METHOD, request_serializer=DiscoveryRequest.__bytes__, response_deserializer=DiscoveryResponse.parse
        )
        self._call = open_stream()
        for kind in Kind:
            names = _NAMES.get(kind, [])
            await self._call.write(DiscoveryRequest(node=node, type_url=kind, resource_names=names))
        async for response in self._call:
            self.told.append(Kind(response.type_url))
            self._last[Kind(response.type_url)] = response
            await self._answer(response)


@asynccontextmanager
async def stub_envoy(address: str, cluster: str, node: str, *, rejects: str = "") -> AsyncIterator[StubEnvoy]:
    """Connected until the block ends."""
    envoy = StubEnvoy(rejects)
    async with grpc.aio.insecure_channel(address) as channel:
        running = asyncio.ensure_future(envoy.run(channel, Node(cluster=cluster, id=node, user_agent_name="envoy")))
        try:
            yield envoy
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

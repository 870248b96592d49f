"""An ADS client for endpoints alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from envoy_data_plane.envoy.config.core.v3 import Node
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryRequest, DiscoveryResponse
from envoy_data_plane.google.rpc import Status

from shoal.operator.envoy import Endpoint
from shoal.operator.xds.server import FOLLOWER, SERVICE
from shoal.operator.xds.snapshot import Kind

METHOD: Final = f"/{SERVICE}/StreamAggregatedResources"
MAX_RESPONSE_BYTES: Final = 64 << 20
FIRST_DELAY_S: Final = 0.2
MOST_DELAY_S: Final = 5.0
_INVALID_ARGUMENT: Final = 3
OnEndpoints = Callable[[str, Sequence[Endpoint]], object]
"""(cluster, its endpoints, sorted)."""
_log = structlog.get_logger("shoal.follower")


class Follower:
    """Asks for the endpoints of some clusters, and tells of each list whenever it comes. Belongs to one event loop."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        node: tuple[str, str],
        clusters: Iterable[str],
        on_endpoints: OnEndpoints,
    ) -> None:
        """node: its cluster and its id."""
        self._call: Any = channel.stream_stream(
            METHOD, request_serializer=DiscoveryRequest.__bytes__, response_deserializer=DiscoveryResponse.parse
        )
        self._node = Node(cluster=node[0], id=node[1], user_agent_name=FOLLOWER)
        self._clusters = sorted(clusters)
        self._on_endpoints = on_endpoints

    async def run(self) -> None:
        """Until cancelled. A stream that breaks is opened again; until then the last lists hold."""
        delay_s = FIRST_DELAY_S
        while True:
            try:
                async for _ in self._follow_once():
                    delay_s = FIRST_DELAY_S
                _log.info("the discovery service ended the stream")
            except grpc.aio.AioRpcError as error:
                _log.warning("no discovery service", code=error.code().name, error=error.details())
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # spreads the reconnections of many
            delay_s = min(2 * delay_s, MOST_DELAY_S)

    async def _follow_once(self) -> AsyncIterator[None]:
        """Yields after each response."""
        call = self._call(wait_for_ready=True)
        try:
            await call.write(self._request(node=self._node))
            async for response in call:
                if response.type_url != Kind.ENDPOINTS:
                    continue
                error = self._take(response)
                await call.write(self._request(version_info=response.version_info, nonce=response.nonce, error=error))
                yield
        finally:
            call.cancel()

    def _request(
        self, *, node: Node | None = None, version_info: str = "", nonce: str = "", error: str | None = None
    ) -> DiscoveryRequest:
        return DiscoveryRequest(
            node=node,
            type_url=Kind.ENDPOINTS,
            resource_names=self._clusters,
            version_info=version_info,
            response_nonce=nonce,
            error_detail=None if error is None else Status(code=_INVALID_ARGUMENT, message=error),
        )

    def _take(self, response: DiscoveryResponse) -> str | None:
        """None, or why the response cannot be used: then none of its lists is."""
        try:
            assignments = [ClusterLoadAssignment.parse(resource.value) for resource in response.resources]
            lists = [(each.cluster_name, endpoints_of(each)) for each in assignments]
        except Exception as error:  # whatever a parser raises for bytes from elsewhere is theirs to hear
            _log.warning("endpoints are rejected", error=str(error))
            return str(error)
        for cluster, endpoints in lists:
            if cluster in self._clusters:
                _log.info("endpoints", cluster=cluster, num=len(endpoints))
                self._on_endpoints(cluster, endpoints)
        return None


def endpoints_of(assignment: ClusterLoadAssignment) -> list[Endpoint]:
    """Sorted. Raises ValueError for an address that is no socket's."""
    endpoints = set()
    for locality in assignment.endpoints:
        for member in locality.lb_endpoints:
            address = member.endpoint.address if member.endpoint is not None else None
            socket = address.socket_address if address is not None else None
            if socket is None or not socket.address or not socket.port_value:
                raise ValueError(f"cluster {assignment.cluster_name!r} has an endpoint without address and port")
            endpoints.add(Endpoint(socket.address, socket.port_value))
    return sorted(endpoints)

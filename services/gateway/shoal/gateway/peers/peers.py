"""All other gateways: one connection each, as the list of them says."""

from __future__ import annotations

import asyncio

import structlog

from shoal.api.gateway.v1 import explain_pb2
from shoal.gateway.peers.connection import PeerConnection
from shoal.gateway.peers.shares import OnService, PeerFeed
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.workers.endpoints import EndpointSource

_log = structlog.get_logger("shoal.gateway.peers")


class Peers:
    """Owned by the event loop; `run` does the work until it is cancelled."""

    def __init__(self, source: EndpointSource, own_epoch: int, loads: LoadTracker, index: PrefixIndex) -> None:
        """own_epoch: that of this gateway's LoadBoard, by which it knows itself in the list."""
        self._source = source
        self._own_epoch = own_epoch
        self._loads = loads
        self._index = index
        self.on_service: OnService = lambda *_: None
        """Called when another gateway served a tenant."""
        self._connections: dict[str, PeerConnection] = {}
        self._retired: set[PeerConnection] = set()

    @property
    def num_followed(self) -> int:
        """Gateways whose loads are known right now."""
        return sum(connection.is_followed for connection in (*self._connections.values(), *self._retired))

    async def run(self) -> None:
        """Follows the list. Ends only by cancellation, and closes every connection then."""
        try:
            async for endpoints in self._source.updates():
                self._follow({endpoint.address for endpoint in endpoints})
        finally:
            await asyncio.gather(*(c.close() for c in (*self._connections.values(), *self._retired)))

    async def find_explanations(
        self, tenant: str, request_id: str, timeout_s: float
    ) -> tuple[list[explain_pb2.Explanation], int, int]:
        """What the others know of a request, how many answered in time, and how many there are."""
        others = [c for c in (*self._connections.values(), *self._retired) if c.is_followed]
        answers = await asyncio.gather(*(c.find_explanations(tenant, request_id, timeout_s) for c in others))
        known = [answer for answer in answers if answer is not None]
        return [explanation for answer in known for explanation in answer], len(known), len(others)

    def _follow(self, addresses: set[str]) -> None:
        for address in [address for address in self._connections if address not in addresses]:
            connection = self._connections.pop(address)
            self._retired.add(connection)
            connection.retire(self._retired.discard)
        for address in sorted(addresses - self._connections.keys()):
            feed = PeerFeed(self._loads, self._index, lambda *service: self.on_service(*service))
            self._connections[address] = PeerConnection(address, feed, self._own_epoch)
        _log.info("gateways", known=sorted(addresses))

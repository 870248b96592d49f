"""The operator's discovery server, on loopback."""

from __future__ import annotations

import grpc.aio

from shoal.operator.envoy import Endpoint
from shoal.operator.xds import DiscoveryServer, SnapshotStore


class ControlPlane:
    """A discovery server that can be stopped and started again at the same address."""

    def __init__(self, address: Endpoint) -> None:
        self.address = address
        self.store = SnapshotStore()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serves what is in the store."""
        server = self._server = grpc.aio.server()
        DiscoveryServer(self.store).add_to(server)
        assert server.add_insecure_port(str(self.address)) == self.address.port
        await server.start()

    async def stop(self) -> None:
        """Cuts every stream."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

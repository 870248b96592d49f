"""Everything about the other gateways, put together: what is told, what is heard, and the port for it."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import structlog

from shoal.gateway.admission.admission import Admission
from shoal.gateway.explain.explainer import Explainer
from shoal.gateway.explain.ring import RecentRequests
from shoal.gateway.peers.board import LoadBoard
from shoal.gateway.peers.peers import Peers
from shoal.gateway.peers.servicer import PeerServicer
from shoal.gateway.routing.load import LoadTracker
from shoal.gateway.routing.prefix_index import PrefixIndex
from shoal.gateway.workers.endpoints import EdsFile
from shoal.rpc.server import Server, ServerOptions, start_server

MAX_MESSAGE_BYTES = 4 << 20
_log = structlog.get_logger("shoal.gateway.peers")


class Sharing:
    """`start`, then `stop`. Without a peers file there are no other gateways, no port and no work."""

    def __init__(self, peers_file: str, loads: LoadTracker, index: PrefixIndex, recent: RecentRequests) -> None:
        epoch = secrets.randbits(63) | 1
        self.board = LoadBoard(epoch, loads)
        self.peers = Peers(EdsFile(Path(peers_file)), epoch, loads, index) if peers_file else None
        self.explainer = Explainer(recent, self.peers)
        self.port = 0
        """Where other gateways connect, once started."""
        self._server: Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def share_service(self, admission: Admission) -> None:
        """Tenants' turns count what they get at any gateway."""
        self.board.ledger = admission
        if self.peers is not None:
            self.peers.on_service = admission.charge_elsewhere

    async def start(self, host: str, port: int) -> None:
        """port 0: a free one. Raises OSError naming the address when it cannot be bound."""
        if self.peers is None:
            return
        options = ServerOptions(host, port, max_message_bytes=MAX_MESSAGE_BYTES)
        self._server = await start_server(options, [PeerServicer(self.board, self.explainer).registration()])
        await self._server.set_serving(True)
        self.port = self._server.port
        self._tasks = [
            asyncio.create_task(self.board.run(), name="load board"),
            asyncio.create_task(self.peers.run(), name="other gateways"),
        ]
        _log.info("peers", port=self.port)

    async def stop(self) -> None:
        """Others count nothing for this gateway from here on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(0)

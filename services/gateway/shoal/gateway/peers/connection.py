"""The line to one other gateway."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing from the stubs

from shoal.api.gateway.v1 import explain_pb2
from shoal.api.peer.v1 import peer_pb2, peer_pb2_grpc
from shoal.gateway import metrics
from shoal.gateway.peers.board import HEARTBEAT_S
from shoal.gateway.peers.shares import PeerFeed, PeerGap

SILENCE_LIMIT_S: Final = 3 * HEARTBEAT_S
"""A stopped machine closes no connection; its streams move on, and its share must go."""
RETRY_FIRST_S: Final = 0.05
RETRY_MOST_S: Final = 2.0
_OPTIONS: Final = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
]
_log = structlog.get_logger("shoal.gateway.peers")


class PeerConnection:
    """Follows one gateway's loads; starts over with growing pauses when it goes away. Belongs to one event loop."""

    def __init__(self, address: str, feed: PeerFeed, own_epoch: int, silence_limit_s: float = SILENCE_LIMIT_S) -> None:
        """own_epoch: to notice that the other one is this very gateway."""
        self.is_followed = False
        self._address = address
        self._feed = feed
        self._own_epoch = own_epoch
        self._silence_limit_s = silence_limit_s
        self._is_retired = False
        self._channel: Any = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub: Any = peer_pb2_grpc.PeerServiceStub(self._channel)
        self._task = asyncio.create_task(self._run(), name=f"gateway {address}")

    def retire(self, on_end: Callable[[PeerConnection], object]) -> None:
        """The gateway left the list, maybe to drain: what it still has under way counts until its stream ends."""
        self._is_retired = True
        self._task.add_done_callback(lambda _: on_end(self))
        if not self.is_followed:
            self._task.cancel()

    async def close(self) -> None:
        """Forgets the gateway."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def find_explanations(
        self, tenant: str, request_id: str, timeout_s: float
    ) -> list[explain_pb2.Explanation] | None:
        """What the gateway knows of a request; None when it does not say in time."""
        request = peer_pb2.FindExplanationsRequest(tenant=tenant, request_id=request_id)
        try:
            response = await self._stub.FindExplanations(request, timeout=timeout_s)
        except grpc.RpcError as error:
            _log.info("gateway does not explain", gateway=self._address, problem=str(error))
            return None
        return list(response.explanations)

    async def _run(self) -> None:
        pause_s = RETRY_FIRST_S
        try:
            while not self._is_retired:
                was_followed = await self._follow()
                if was_followed:
                    pause_s = RETRY_FIRST_S
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects
                pause_s = min(2 * pause_s, RETRY_MOST_S)
        finally:
            self._lose("closed")
            await self._channel.close()

    async def _follow(self) -> bool:
        """One subscription, to its end; whether it ever told anything."""
        call = self._stub.FollowLoads(peer_pb2.FollowLoadsRequest())
        received = metrics.PEER_MESSAGES.labels("received")
        had_any, reason = False, "ended"
        try:
            while (message := await self._read(call)) is not EOF:
                received.inc()
                if message.epoch == self._own_epoch:
                    call.cancel()
                    await asyncio.Event().wait()  # this gateway itself; until the list says otherwise
                self._feed.apply(message)
                had_any = True
                if not self.is_followed:
                    self.is_followed = True
                    metrics.PEERS.inc()
                    _log.info("following gateway", gateway=self._address)
        except TimeoutError:
            reason = "silent"
        except PeerGap as gap:
            reason = "gap"
            _log.warning("gateway out of step", gateway=self._address, problem=str(gap))
        except grpc.RpcError:
            reason = "lost"
        finally:
            call.cancel()
            self._lose(reason)
        return had_any

    async def _read(self, call: Any) -> Any:
        async with asyncio.timeout(self._silence_limit_s):
            return await call.read()

    def _lose(self, reason: str) -> None:
        self._feed.forget()
        if self.is_followed:
            self.is_followed = False
            metrics.PEERS.dec()
            metrics.PEER_LOST.labels(reason).inc()
            _log.info("gateway lost", gateway=self._address, reason=reason)

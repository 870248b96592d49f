"""Follows what the node's KV store holds, so that routers hear of it from the worker."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Iterable
from typing import Final

import grpc.aio
import structlog

from shoal.api.kv_store.v1 import kv_store_pb2, kv_store_pb2_grpc
from shoal.api.worker.v1 import worker_pb2
from shoal.model_worker.kv_events import KvEventHub

SILENCE_S: Final = 5.0
"""A store says something every second."""
RETRY_S: Final = 1.0
_KEY_BYTES: Final = 16
_TIERS: Final = (worker_pb2.TIER_MEMORY, worker_pb2.TIER_DISK)
_log = structlog.get_logger("shoal.model_worker")


def is_on_this_host(address: str) -> bool:
    """Whether what is sent to a gRPC address, host:port or unix:PATH, surely stays on this host."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class KvStoreWatch:
    """Keeps the hub's part of the KV store true to its events; empties it while the store is away."""

    def __init__(
        self,
        address: str,
        hub: KvEventHub,
        *,
        token: str = "",
        silence_s: float = SILENCE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """address: of the store's gRPC. token: the operator's, to a store that asks for tokens; as the channel is not
        encrypted, ValueError where it would leave this host."""
        if token and not is_on_this_host(address):
            raise ValueError(f"a token would go to {address} in the clear")
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._address = address
        self._hub = hub
        self._silence_s = silence_s
        self._retry_s = retry_s
        self._snapshot: dict[worker_pb2.Tier.ValueType, set[bytes]] | None = None
        self._is_following = False

    async def run(self) -> None:
        """Follows for as long as it runs."""
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub: kv_store_pb2_grpc.KvStoreServiceAsyncStub = kv_store_pb2_grpc.KvStoreServiceStub(channel)
            while True:
                try:
                    await self._follow(stub)
                    self._lose(EOFError("the store ended the stream"))
                except Exception as error:  # whatever it says, it is followed again
                    self._lose(error)
                await asyncio.sleep(self._retry_s)

    async def _follow(self, stub: kv_store_pb2_grpc.KvStoreServiceAsyncStub) -> None:
        self._snapshot = None
        call = stub.Watch(kv_store_pb2.WatchRequest(), metadata=self._metadata)
        try:
            async for event in self._heard(call):
                self._take(event)
        finally:
            call.cancel()

    async def _heard(
        self, call: grpc.aio.UnaryStreamCall[kv_store_pb2.WatchRequest, kv_store_pb2.WatchResponse]
    ) -> AsyncIterator[kv_store_pb2.WatchResponse]:
        events = aiter(call)
        while True:
            async with asyncio.timeout(self._silence_s):
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
            yield event

    def _take(self, event: kv_store_pb2.WatchResponse) -> None:
        match event.WhichOneof("event"):
            case "stored":
                _check(event.stored.keys, event.stored.tier)
                self._hub.publish_stored(event.stored.keys, event.stored.parent_key, event.stored.tier)
            case "removed":
                _check(event.removed.keys, event.removed.tier)
                self._hub.publish_removed(event.removed.keys, event.removed.tier)
            case "cleared":
                self._hub.replace_stored({})
            case "snapshot":
                _check(event.snapshot.keys, event.snapshot.tier)
                staged = self._snapshot = {} if self._snapshot is None else self._snapshot
                staged.setdefault(event.snapshot.tier, set()).update(event.snapshot.keys)
                if event.snapshot.complete:
                    self._snapshot = None
                    self._hub.replace_stored(staged)
                    if not self._is_following:
                        self._is_following = True
                        _log.info("following the KV store", address=self._address)

    def _lose(self, error: Exception) -> None:
        self._hub.replace_stored({})
        if self._is_following:
            self._is_following = False
            _log.warning("lost the KV store's events", address=self._address, error=str(error) or "silence")


def _check(keys: Iterable[bytes], tier: worker_pb2.Tier.ValueType) -> None:
    """Raises ValueError for what routers must not be told."""
    if tier not in _TIERS:
        raise ValueError(f"the store told of tier {tier}")
    if any(len(key) != _KEY_BYTES for key in keys):
        raise ValueError("the store told of a key that is none")

"""Following a KV store's events: snapshots, changes, restarts, silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.api.worker.v1 import worker_pb2
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.kv_store_watch import KvStoreWatch
from support.eventually import eventually

MEMORY, DISK = worker_pb2.TIER_MEMORY, worker_pb2.TIER_DISK


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


class FakeStore(kv_store_pb2_grpc.KvStoreServiceServicer):
    """Sends what a test puts into its queue; None ends the stream."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[pb.WatchResponse | None] = asyncio.Queue()
        self.num_watches = 0

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:
        self.num_watches += 1
        while (event := await self.events.get()) is not None:
            yield event

    def snapshot(self, keys: dict[worker_pb2.Tier.ValueType, list[bytes]]) -> None:
        for number, (tier, part) in enumerate(keys.items(), 1):
            found = worker_pb2.KvSnapshot(keys=part, tier=tier, complete=number == len(keys))
            self.events.put_nowait(pb.WatchResponse(epoch=1, snapshot=found))


@asynccontextmanager
async def followed(silence_s: float = 5.0) -> AsyncIterator[tuple[FakeStore, KvEventHub]]:
    fake, server = FakeStore(), grpc.aio.server()  # type: ignore[abstract]  # the other calls are unimplemented
    kv_store_pb2_grpc.add_KvStoreServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    hub = KvEventHub(epoch=1, buffer=64)
    watch = KvStoreWatch(f"127.0.0.1:{port}", hub, silence_s=silence_s, retry_s=0.01)
    task = asyncio.create_task(watch.run())
    try:
        yield fake, hub
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(None)


def known(hub: KvEventHub) -> dict[int, set[bytes]]:
    """Keys by tier, without the device's."""
    return {p.snapshot.tier: set(p.snapshot.keys) for p in hub.snapshot() if p.snapshot.tier != worker_pb2.TIER_DEVICE}


async def becomes(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await eventually(holds, "the hub's keys", 10.0)


async def test_a_snapshot_and_what_follows_it_are_told() -> None:
    async with followed() as (store, hub):
        store.snapshot({MEMORY: [key(1)], DISK: [key(1), key(2)]})
        stored = worker_pb2.KvStored(keys=[key(3)], parent_key=key(2), tier=MEMORY)
        store.events.put_nowait(pb.WatchResponse(epoch=1, seq=1, stored=stored))
        removed = worker_pb2.KvRemoved(keys=[key(1)], tier=DISK)
        store.events.put_nowait(pb.WatchResponse(epoch=1, seq=2, removed=removed))
        await becomes(lambda: known(hub) == {MEMORY: {key(1), key(3)}, DISK: {key(2)}})


async def test_a_store_that_ends_is_forgotten_until_it_is_back() -> None:
    async with followed() as (store, hub):
        store.snapshot({MEMORY: [key(1)]})
        await becomes(lambda: bool(known(hub)))
        store.events.put_nowait(None)
        await becomes(lambda: store.num_watches == 2)
        assert known(hub) == {}
        store.snapshot({MEMORY: [key(2)]})
        await becomes(lambda: known(hub) == {MEMORY: {key(2)}})


async def test_a_store_that_falls_silent_is_forgotten() -> None:
    async with followed(silence_s=0.2) as (store, hub):
        store.snapshot({MEMORY: [key(1)]})
        await becomes(lambda: hub.last_seq > 0)
        await becomes(lambda: known(hub) == {})

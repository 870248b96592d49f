"""Following a KV store's events: snapshots, changes, restarts, silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.api.worker.v1 import worker_pb2
from shoal.model_worker.config import WorkerConfig
from shoal.model_worker.exposed import find_exposed
from shoal.model_worker.kv_events import KvEventHub
from shoal.model_worker.kv_store_watch import KvStoreWatch
from shoal.model_worker.main import main
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


@pytest.mark.parametrize(
    "event",
    [
        pb.WatchResponse(stored=worker_pb2.KvStored(keys=[b"short"], tier=MEMORY)),
        pb.WatchResponse(stored=worker_pb2.KvStored(keys=[key(1)], tier=worker_pb2.TIER_DEVICE)),
        pb.WatchResponse(removed=worker_pb2.KvRemoved(keys=[key(1)], tier=77)),  # type: ignore[arg-type]
        pb.WatchResponse(snapshot=worker_pb2.KvSnapshot(keys=[b""], tier=DISK)),
    ],
)
async def test_an_event_that_cannot_be_is_told_to_nobody_and_the_store_followed_anew(event: pb.WatchResponse) -> None:
    async with followed() as (store, hub):
        store.events.put_nowait(event)
        await eventually(lambda: store.num_watches == 2, "another watch", 10.0)
        assert known(hub) == {}
        store.snapshot({MEMORY: [key(2)]})
        await becomes(lambda: known(hub) == {MEMORY: {key(2)}})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1", "unix:/run/kv.sock.grpc"])
def test_a_token_is_told_on_this_host(address: str) -> None:
    KvStoreWatch(address, KvEventHub(epoch=1, buffer=64), token="secret")


@pytest.mark.parametrize("address", ["10.0.0.7:1", "kv.example:1", "[fd00::1]:1", "0.0.0.0:1", "localhost.example:1"])
def test_a_token_is_not_told_to_another_host(address: str) -> None:
    with pytest.raises(ValueError, match="in the clear"):
        KvStoreWatch(address, KvEventHub(epoch=1, buffer=64), token="secret")
    KvStoreWatch(address, KvEventHub(epoch=1, buffer=64))


def test_a_worker_that_would_tell_the_operators_token_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('acme = "a"\n"*" = "secret"\n')
    flags = ["--model=m", "--kv-store-address=10.0.0.7:50054", f"--kv-store-tokens-file={tokens}"]
    monkeypatch.setattr("sys.argv", ["shoal-worker", *flags])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "--kv-store-address=10.0.0.7:50054" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    ("address", "tokens"), [("127.0.0.1:50054", '"*" = "secret"'), ("10.0.0.7:50054", 'acme = "a"')]
)
def test_what_tells_nobody_a_secret_is_fine(tmp_path: Path, address: str, tokens: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(tokens)
    assert find_exposed(WorkerConfig(model="m", kv_store_address=address, kv_store_tokens_file=str(path))) is None

"""The store as a process: gRPC, events, metrics, drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.api.worker.v1 import worker_pb2
from shoal.kv_client import KvClient, KvClientOptions
from support.eventually import eventually
from support.kv_store_process import launch_kv_store, start_kv_store
from support.kv_store_running import BLOCK_BYTES, ROOT, key, payload
from support.logged_process import LoggedProcess

SCOPE = pb.Scope(tenant="a", fingerprint=b"f")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[LoggedProcess]:
    async with start_kv_store(tmp_path) as service:
        yield service


@pytest.fixture
async def stub(service: LoggedProcess) -> AsyncIterator[kv_store_pb2_grpc.KvStoreServiceAsyncStub]:
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield kv_store_pb2_grpc.KvStoreServiceStub(channel)


@pytest.fixture
async def client(service: LoggedProcess, tmp_path: Path) -> AsyncIterator[KvClient]:
    client = make_client(tmp_path)
    yield client
    client.close()


def make_client(folder: Path) -> KvClient:
    return KvClient(
        KvClientOptions(
            socket_path=str(folder / "kv.sock"),
            tenant="a",
            fingerprint=b"f",
            block_bytes=BLOCK_BYTES,
            num_staging_blocks=8,
            timeout_s=10,
        )
    )


def put(client: KvClient, *numbers: int) -> int:
    keys = [key(number) for number in numbers]
    payloads = [payload(number) for number in numbers]
    return client.put(keys, payloads, parent_key=ROOT, namespace_key=ROOT).num_visible


async def test_grpc_and_socket_see_the_same_blocks(
    stub: kv_store_pb2_grpc.KvStoreServiceAsyncStub, client: KvClient
) -> None:
    assert await asyncio.to_thread(put, client, 1, 2, 3) == 3
    keys = key(1) + key(2) + key(3) + key(4)
    found = await stub.Lookup(pb.LookupRequest(scope=SCOPE, keys=keys), timeout=10)
    assert (found.num_visible, found.num_in_memory) == (3, 3)
    for other in (pb.Scope(tenant="b", fingerprint=b"f"), pb.Scope(tenant="a", fingerprint=b"g")):
        assert (await stub.Lookup(pb.LookupRequest(scope=other, keys=keys), timeout=10)).num_visible == 0
    evicted = await stub.Evict(pb.EvictRequest(scope=SCOPE, keys=key(2)), timeout=10)
    assert (evicted.num_evicted, evicted.num_leased) == (2, 0)
    stats = await stub.Stats(pb.StatsRequest(), timeout=10)
    assert (stats.num_blocks, stats.num_sessions, stats.used_memory_bytes) == (1, 1, BLOCK_BYTES)
    assert stats.counters["stored"] == 3
    info = await stub.GetInfo(pb.GetInfoRequest(), timeout=10)
    assert info.memory_bytes == 4 << 20


async def test_a_session_serves_grpc_calls_too(
    stub: kv_store_pb2_grpc.KvStoreServiceAsyncStub, client: KvClient
) -> None:
    await asyncio.to_thread(put, client, 1)
    link = client._link
    assert link is not None
    scope = pb.Scope(tenant="a", fingerprint=b"f", session=link.session.session)
    leased = await stub.Acquire(pb.AcquireRequest(scope=scope, keys=key(1)), timeout=10)
    assert len(leased.slots) == 1
    evicted = await stub.Evict(pb.EvictRequest(scope=SCOPE, keys=key(1)), timeout=10)
    assert (evicted.num_evicted, evicted.num_leased) == (0, 1)
    reserved = await stub.Reserve(
        pb.ReserveRequest(scope=scope, keys=key(2), parent_key=key(1), namespace_key=ROOT), timeout=10
    )
    assert list(reserved.statuses) == [pb.BLOCK_STATUS_RESERVED]
    committed = await stub.Commit(pb.CommitRequest(scope=scope, keys=key(2), checksums=[1]), timeout=10)
    assert list(committed.statuses) == [pb.BLOCK_STATUS_CORRUPT]
    await stub.Release(pb.ReleaseRequest(scope=scope, leased_keys=key(1)), timeout=10)
    evicted = await stub.Evict(pb.EvictRequest(scope=SCOPE, keys=key(1)), timeout=10)
    assert evicted.num_evicted == 1


async def test_wrong_requests_are_refused_by_field(stub: kv_store_pb2_grpc.KvStoreServiceAsyncStub) -> None:
    reserve = pb.ReserveRequest(scope=SCOPE, keys=key(1), parent_key=b"x", namespace_key=ROOT)
    cases: list[tuple[Any, object, str, str]] = [
        (stub.Lookup, pb.LookupRequest(scope=SCOPE, keys=b"short"), "INVALID_ARGUMENT", "keys: 5 bytes"),
        (stub.Lookup, pb.LookupRequest(scope=SCOPE, keys=bytes(16 * 2000)), "INVALID_ARGUMENT", "at most 1024"),
        (stub.Acquire, pb.AcquireRequest(scope=SCOPE, keys=key(1)), "NOT_FOUND", "no such session"),
        (stub.Reserve, reserve, "INVALID_ARGUMENT", "parent_key: 1 bytes"),
        (stub.Commit, pb.CommitRequest(scope=SCOPE, keys=key(1)), "INVALID_ARGUMENT", "checksums: 0 given for 1 keys"),
    ]
    for method, request, code, text in cases:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(request, timeout=10)
        assert refused.value.code().name == code
        assert text in (refused.value.details() or "")


async def test_watchers_get_a_snapshot_and_then_events(
    stub: kv_store_pb2_grpc.KvStoreServiceAsyncStub, client: KvClient
) -> None:
    await asyncio.to_thread(put, client, 1)
    watch = stub.Watch(pb.WatchRequest(), timeout=20)
    known: set[bytes] = set()
    while True:
        message = await watch.read()
        assert isinstance(message, pb.WatchResponse)
        if message.snapshot.tier == worker_pb2.TIER_MEMORY:
            known |= set(message.snapshot.keys)
        if message.snapshot.complete:
            break
    assert known == {key(1)}
    last = message.seq
    await asyncio.to_thread(put, client, 1, 2, 3)
    event = await next_event(watch)
    assert (event.seq, list(event.stored.keys), event.stored.parent_key) == (last + 1, [key(2), key(3)], key(1))
    assert event.stored.tier == worker_pb2.TIER_MEMORY
    await asyncio.to_thread(client.evict, [key(3)])
    event = await next_event(watch)
    assert (event.seq, list(event.removed.keys)) == (last + 2, [key(3)])
    behind = stub.Watch(pb.WatchRequest(epoch=event.epoch, start_seq=last + 2), timeout=20)
    assert (await next_event(behind)).removed.keys == [key(3)]
    behind.cancel()
    watch.cancel()


async def next_event(watch: grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]) -> pb.WatchResponse:
    """The next message that is no heartbeat."""
    while True:
        message = await watch.read()
        assert isinstance(message, pb.WatchResponse)
        if message.WhichOneof("event") is not None:
            return message


async def test_metrics_count_hits_and_misses(service: LoggedProcess, client: KvClient) -> None:
    await asyncio.to_thread(put, client, 1, 2)
    await asyncio.to_thread(client.lookup, [key(1), key(3)])
    text = await asyncio.to_thread(service.read_metrics)
    assert 'shoal_kv_store_hits_total{tier="memory"} 1.0' in text
    assert "shoal_kv_store_misses_total 1.0" in text
    assert 'shoal_kv_store_evictions_total{reason="room"} 0.0' in text
    assert 'shoal_kv_store_checksum_failures_total{place="memory"} 0.0' in text
    assert 'shoal_kv_store_refusals_total{reason="no_space"} 0.0' in text
    assert "shoal_kv_store_blocks 2.0" in text
    assert f'shoal_kv_store_used_bytes{{tier="memory"}} {2 * BLOCK_BYTES:.1f}' in text

    async def are_timed() -> bool:  # which is noted when the answers are on their way
        text = await asyncio.to_thread(service.read_metrics)
        timed = ('count{method="lookup"} 1.0', 'bucket{le="+Inf",method="commit"} 1.0')
        return all(f"shoal_kv_store_call_seconds_{each}" in text for each in timed)

    await eventually(are_timed, "both calls are timed")


async def test_a_killed_store_is_a_miss_and_its_successor_serves(tmp_path: Path) -> None:
    async with await launch_kv_store(tmp_path) as first:
        await first.wait_logged("serving")
        client = make_client(tmp_path)
        assert await asyncio.to_thread(put, client, 1) == 1
        first.signal(signal.SIGKILL)
        await first.wait_ended()
    assert await asyncio.to_thread(client.get, [key(1)], [bytearray(BLOCK_BYTES)]) == 0
    async with start_kv_store(tmp_path):
        client.close()
        client = make_client(tmp_path)
        assert await asyncio.to_thread(put, client, 1) == 1
        client.close()


async def test_a_second_store_on_the_same_socket_does_not_start(service: LoggedProcess, tmp_path: Path) -> None:
    async with await launch_kv_store(tmp_path) as second:
        assert await second.wait_ended() == 1
        assert "another store serves" in second.logged("cannot serve")["error"]


async def test_settings_that_do_not_fit_end_the_start(tmp_path: Path) -> None:
    async with await launch_kv_store(tmp_path, "--chunk-bytes=100000") as service:
        assert await service.wait_ended() == 2
        assert "multiple of 4096" in service.logged("cannot serve")["error"]

"""Memory and disk together: blocks outlive eviction and the process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc.aio
import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.kv_client import KvClient, KvClientOptions
from support.eventually import eventually
from support.kv_store_process import launch_kv_store, start_kv_store
from support.kv_store_running import BLOCK_BYTES, ROOT, key, payload
from support.logged_process import LoggedProcess

NUMBERS = list(range(1, 65))
KEYS = [key(number) for number in NUMBERS]


def flags(folder: Path, memory_bytes: int) -> list[str]:
    sizes = [f"--memory-bytes={memory_bytes}", "--chunk-bytes=131072", "--policy=lru"]
    return [f"--disk-folder={folder / 'disk'}", "--disk-bytes=33554432", "--disk-segment-bytes=1048576", *sizes]


def make_client(folder: Path) -> KvClient:
    settings = {"tenant": "a", "fingerprint": b"f", "block_bytes": BLOCK_BYTES}
    return KvClient(
        KvClientOptions(socket_path=str(folder / "kv.sock"), num_staging_blocks=64, timeout_s=10, **settings)  # type: ignore[arg-type]
    )


def put(client: KvClient) -> int:
    payloads = [payload(number) for number in NUMBERS]
    return client.put(KEYS, payloads, parent_key=ROOT, namespace_key=ROOT).num_visible


def get(client: KvClient) -> int:
    buffers = [bytearray(BLOCK_BYTES) for _ in NUMBERS]
    num = client.get(KEYS, buffers)
    assert [bytes(buffer) for buffer in buffers[:num]] == [payload(number) for number in NUMBERS[:num]]
    return num


async def wait_on_disk(service: LoggedProcess, num: int) -> pb.StatsResponse:
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = kv_store_pb2_grpc.KvStoreServiceStub(channel)

        async def is_there() -> bool:
            return bool((await stub.Stats(pb.StatsRequest(), timeout=10)).num_disk_blocks >= num)

        await eventually(is_there, f"{num} blocks on disk")
        stats = await stub.Stats(pb.StatsRequest(), timeout=10)
        assert isinstance(stats, pb.StatsResponse)
        return stats


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_blocks_on_disk_outlive_the_store(tmp_path: Path, signum: signal.Signals) -> None:
    async with await launch_kv_store(tmp_path, *flags(tmp_path, 1 << 20)) as service:
        await service.wait_logged("serving")
        client = make_client(tmp_path)
        assert await asyncio.to_thread(put, client) == 64
        if signum == signal.SIGKILL:
            await wait_on_disk(service, 64)
        client.close()
        service.signal(signum)  # SIGTERM writes what is not on disk yet
        assert await service.wait_ended() == (0 if signum == signal.SIGTERM else -signum)
    async with start_kv_store(tmp_path, *flags(tmp_path, 1 << 20)):
        client = make_client(tmp_path)
        assert await asyncio.to_thread(client.lookup, KEYS) == (64, 0)
        assert await asyncio.to_thread(get, client) == 0
        assert await asyncio.to_thread(client.prefetch, KEYS, 5.0) == 64
        assert await asyncio.to_thread(get, client) == 64
        client.close()


async def test_what_memory_gives_up_comes_back_from_disk(tmp_path: Path) -> None:
    async with start_kv_store(tmp_path, *flags(tmp_path, (1 << 18) + 8192)) as service:  # memory for 32 blocks
        client = make_client(tmp_path)
        for first in (0, 32):
            parent = KEYS[first - 1] if first else ROOT
            payloads = [payload(number) for number in NUMBERS[first : first + 32]]
            result = await asyncio.to_thread(
                client.put, KEYS[first : first + 32], payloads, parent_key=parent, namespace_key=ROOT
            )
            await wait_on_disk(service, first + result.num_visible)
        found = await asyncio.to_thread(client.lookup, KEYS)
        assert found.num_in_memory <= 32
        assert await asyncio.to_thread(get, client) == found.num_in_memory
        assert await asyncio.to_thread(client.evict, KEYS[:1]) == found.num_visible
        assert await asyncio.to_thread(client.lookup, KEYS) == (0, 0)
        client.close()

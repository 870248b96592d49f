"""Stores as processes that share blocks: one of them killed, one compressing on its disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.kv_client import KvClient, KvClientOptions
from support.eventually import eventually
from support.kv_store_process import launch_kv_store, start_kv_store
from support.kv_store_running import ROOT, key
from support.logged_process import LoggedProcess

BLOCK_BYTES = 1 << 20
KEYS = [key(number) for number in range(1, 49)]
CONTENT = os.urandom(BLOCK_BYTES)
SIZES = ("--memory-bytes=67108864", "--chunk-bytes=8388608")


def payload(number: int) -> bytes:
    return number.to_bytes(8, "little") + CONTENT[8:]


@asynccontextmanager
async def store(folder: Path, name: str, *flags: str) -> AsyncIterator[tuple[LoggedProcess, KvClient]]:
    """A store that shares with those in the folder's list, and a client of it; killed in the end."""
    own = folder / name
    own.mkdir()
    (folder / "secret").write_text("a secret that all stores know")
    sharing = (f"--peers=file:{folder / 'peers'}", f"--peer-secret-file={folder / 'secret'}", "--peer-timeout-s=5")
    ports = ("--peer-port=0", "--peer-data-port=0")
    async with await launch_kv_store(own, *SIZES, *sharing, *ports, *flags) as service:
        await service.wait_logged("serving")
        client = KvClient(
            KvClientOptions(
                socket_path=str(own / "kv.sock"),
                tenant="a",
                fingerprint=b"f",
                block_bytes=BLOCK_BYTES,
                num_staging_blocks=48,
                timeout_s=10,
            )
        )
        try:
            yield service, client
        finally:
            client.close()


def name_all(folder: Path, *services: LoggedProcess) -> None:
    (folder / "fresh").write_text("\n".join(str(service.logged("sharing")["address"]) for service in services))
    (folder / "fresh").rename(folder / "peers")


def put(client: KvClient) -> None:
    payloads = [payload(number) for number in range(len(KEYS))]
    assert client.put(KEYS, payloads, parent_key=ROOT, namespace_key=ROOT).num_visible == len(KEYS)


def count_verified(client: KvClient) -> int:
    """Leading blocks in memory, each of them as it was stored."""
    buffers = [bytearray(BLOCK_BYTES) for _ in KEYS]
    num = client.get(KEYS, buffers)
    for number in range(num):
        assert buffers[number] == payload(number)
    return num


@pytest.mark.parametrize("transport", ["tcp", "grpc"])
async def test_an_owner_that_is_killed_amid_transfers_costs_hits_only(tmp_path: Path, transport: str) -> None:
    (tmp_path / "peers").write_text("")
    flag = f"--peer-transport={transport}"
    async with store(tmp_path, "owner", flag) as (owner, at_owner), store(tmp_path, "reader", flag) as (reader, client):
        put(at_owner)
        name_all(tmp_path, owner, reader)
        await eventually(
            lambda: asyncio.to_thread(lambda: client.locate(KEYS, 1.0).num_with_peers == len(KEYS)), "they are found"
        )
        assert await asyncio.to_thread(client.prefetch, KEYS, 10.0) == len(KEYS)
        assert count_verified(client) == len(KEYS)
        client.evict(KEYS[:1])
        pulling = asyncio.create_task(asyncio.to_thread(client.prefetch, KEYS, 5.0))
        owner.signal(signal.SIGKILL)
        start_s = time.monotonic()
        num = await pulling
        assert time.monotonic() - start_s < 8.0
        assert count_verified(client) >= num
        assert client.locate(KEYS, 0.5).num_visible < len(KEYS) or num == len(KEYS)
        assert client.problem == ""
        put(client)
        assert count_verified(client) == len(KEYS)


async def test_blocks_that_are_on_the_owners_disk_come_as_well(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("")
    disk = [f"--disk-folder={tmp_path / 'disk'}", "--disk-bytes=268435456", "--disk-segment-bytes=8388608"]
    small = ["--memory-bytes=25165824", "--chunk-bytes=4194304", "--policy=lru"]
    chains = [KEYS[:16], KEYS[16:32], KEYS[32:]]
    async with (
        store(tmp_path, "owner", *disk, *small) as (owner, at_owner),
        store(tmp_path, "reader") as (reader, client),
    ):
        for number, keys in enumerate(chains):
            payloads = [payload(16 * number + position) for position in range(16)]
            put_one = at_owner.put(keys, payloads, parent_key=ROOT, namespace_key=ROOT)
            assert put_one.num_visible == 16
            async with grpc.aio.insecure_channel(owner.address) as channel:
                stub = kv_store_pb2_grpc.KvStoreServiceStub(channel)

                async def is_on_disk(num: int = 16 * (number + 1), stub: Any = stub) -> bool:
                    return bool((await stub.Stats(pb.StatsRequest(), timeout=10)).num_disk_blocks == num)

                await eventually(is_on_disk, "the chain is on disk")
        assert sum(at_owner.lookup(keys).num_in_memory for keys in chains) < 48
        name_all(tmp_path, owner, reader)
        for keys in chains:
            await eventually(
                lambda keys=keys: asyncio.to_thread(lambda: client.locate(keys, 1.0).num_with_peers == 16),  # type: ignore[misc]
                "it is found",
            )
            assert await asyncio.to_thread(client.prefetch, keys, 10.0) == 16
        assert [client.lookup(keys).num_in_memory for keys in chains] == [16, 16, 16]


async def test_stats_and_metrics_tell_of_peers(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("127.0.0.1:1\n")
    async with store(tmp_path, "one") as (service, client):
        for number in range(4):
            await asyncio.to_thread(client.locate, [key(number)], 1.0)
        async with grpc.aio.insecure_channel(service.address) as channel:
            stats = await kv_store_pb2_grpc.KvStoreServiceStub(channel).Stats(pb.StatsRequest(), timeout=10)
        [peer] = stats.peers
        assert peer.address == "127.0.0.1:1"
        assert peer.problem
        metrics = await asyncio.to_thread(service.read_metrics)
        assert 'shoal_kv_store_peer_up{peer="127.0.0.1:1"} 0.0' in metrics


async def test_what_is_compressed_on_disk_comes_back_bit_by_bit(tmp_path: Path) -> None:
    flags = [*SIZES, f"--disk-folder={tmp_path / 'disk'}", "--disk-bytes=134217728", "--disk-segment-bytes=8388608"]
    values = np.random.default_rng(1).standard_normal(BLOCK_BYTES // 4, np.float32).view(np.uint32) >> 16
    shrinking = np.repeat(values.astype(np.uint16), 2).tobytes()
    for codec in ("zstd", "none"):  # what was compressed is read whatever the setting is
        with contextlib.ExitStack() as ending:
            async with start_kv_store(tmp_path, *flags, f"--disk-codec={codec}") as service:
                client = KvClient(
                    KvClientOptions(
                        socket_path=str(tmp_path / "kv.sock"),
                        tenant="a",
                        fingerprint=b"f",
                        block_bytes=BLOCK_BYTES,
                        num_staging_blocks=8,
                        timeout_s=10,
                    )
                )
                ending.callback(client.close)
                if codec == "zstd":
                    stored = client.put(KEYS[:4], [shrinking] * 4, parent_key=ROOT, namespace_key=ROOT)
                    assert stored.num_visible == 4
                    async with grpc.aio.insecure_channel(service.address) as channel:
                        stub = kv_store_pb2_grpc.KvStoreServiceStub(channel)

                        async def is_on_disk(stub: kv_store_pb2_grpc.KvStoreServiceAsyncStub = stub) -> bool:
                            return bool((await stub.Stats(pb.StatsRequest(), timeout=10)).num_disk_blocks == 4)

                        await eventually(is_on_disk, "they are on disk")
                else:
                    assert await asyncio.to_thread(client.prefetch, KEYS[:4], 10.0) == 4
                buffers = [bytearray(BLOCK_BYTES) for _ in range(4)]
                assert client.get(KEYS[:4], buffers) == 4
                assert all(buffer == shrinking for buffer in buffers)

"""kill -9 of a whole store amid its work: writes by several threads, moves beside them, compressed blocks."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from pathlib import Path

import grpc.aio
import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.api.kv_store.v1 import kv_store_pb2_grpc
from shoal.kv_client import KvClient, KvClientOptions
from shoal.kv_store.demoting import MAX_WRITES
from support.disk_faults import disk_bytes
from support.kv_store_process import launch_kv_store
from support.kv_store_running import BLOCK_BYTES, ROOT
from support.logged_process import LoggedProcess

CHAIN_BLOCKS = 16
SEGMENT_BYTES = 1 << 18
SMALL_BYTES, LARGE_BYTES = 3 << 20, 512 << 20
"""With room for a part of what is written, and, in the index as well, for all of it."""


def chain(number: int) -> list[bytes]:
    return [(number * 1000 + depth).to_bytes(16, "big") for depth in range(CHAIN_BLOCKS)]


def content(key: bytes) -> bytes:
    """Of every second block half can be compressed."""
    order, number = random.Random(key), int.from_bytes(key, "big")
    return order.randbytes(BLOCK_BYTES) if number % 2 else order.randbytes(BLOCK_BYTES // 2).ljust(BLOCK_BYTES, b"\0")


def make_client(folder: Path) -> KvClient:
    options = KvClientOptions(
        socket_path=str(folder / "kv.sock"),
        tenant="a",
        fingerprint=b"f",
        block_bytes=BLOCK_BYTES,
        num_staging_blocks=CHAIN_BLOCKS,
        timeout_s=10,
    )
    return KvClient(options)


async def launch(folder: Path, capacity_bytes: int) -> LoggedProcess:
    flags = (f"--disk-folder={folder / 'disk'}", f"--disk-bytes={capacity_bytes}", "--disk-codec=zstd", "--policy=lru")
    service = await launch_kv_store(folder, *flags, f"--disk-segment-bytes={SEGMENT_BYTES}", "--memory-bytes=2097152")
    await service.wait_logged("serving")
    return service


class Writer:
    """A client that stores chain after chain, until its store is gone."""

    def __init__(self, folder: Path, first: int, kill_after: int) -> None:
        self.next_chain = first
        self.reached = threading.Event()
        """So many chains are stored; more follow."""
        self._client = make_client(folder)
        self._kill_at = first + kill_after
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            keys = chain(self.next_chain)
            stored = self._client.put(keys, [content(key) for key in keys], parent_key=ROOT, namespace_key=ROOT)
            if self._client.problem or not stored.num_visible:
                break
            self.next_chain += 1
            if self.next_chain >= self._kill_at:
                self.reached.set()
        self.reached.set()
        self._client.close()

    def join(self) -> None:
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


async def num_on_disk(service: LoggedProcess) -> int:
    async with grpc.aio.insecure_channel(service.address) as channel:
        stats = await kv_store_pb2_grpc.KvStoreServiceStub(channel).Stats(pb.StatsRequest(), timeout=10)
        return int(stats.num_disk_blocks)


def read_all(folder: Path, num_chains: int, capacity_bytes: int) -> int:
    """How many blocks there are; every one that comes is right. Where all have room, all that are visible come."""
    client, num_found = make_client(folder), 0
    for number in range(num_chains):
        keys = chain(number)
        num_visible = client.lookup(keys).num_visible
        num = client.prefetch(keys, 5.0) if num_visible else 0
        buffers = [bytearray(BLOCK_BYTES) for _ in keys]
        num_got = client.get(keys, buffers)
        assert num_got <= num <= num_visible
        assert num_got == num_visible or capacity_bytes < LARGE_BYTES, f"{num_got} of {num_visible} of chain {number}"
        assert [bytes(buffer) for buffer in buffers[:num_got]] == [content(key) for key in keys[:num_got]]
        num_found += num_got
    assert not client.problem
    client.close()
    return num_found


async def kill_again_and_again(folder: Path, num_kills: int, capacity_bytes: int, seed: int) -> None:
    order, num_chains = random.Random(seed), 0
    for _ in range(num_kills):
        async with await launch(folder, capacity_bytes) as service:
            before = await num_on_disk(service)
            if num_chains:
                assert await asyncio.to_thread(read_all, folder, num_chains, capacity_bytes) <= before
            writer = Writer(folder, num_chains, order.randrange(2, 24))
            assert await asyncio.to_thread(writer.reached.wait, 20)
            acknowledged = await num_on_disk(service)
            service.signal(signal.SIGKILL)
            assert await service.wait_ended() == -signal.SIGKILL
            await asyncio.to_thread(writer.join)
            num_chains = writer.next_chain + 1
        assert disk_bytes(folder / "disk") <= capacity_bytes
    async with await launch(folder, capacity_bytes) as service:
        found = await num_on_disk(service)
        assert await asyncio.to_thread(read_all, folder, num_chains, capacity_bytes) > 0
        # A block may be written while those before it still are, and is of no use without them.
        assert capacity_bytes < LARGE_BYTES or found > acknowledged - MAX_WRITES, "what was acknowledged is there"
        service.signal(signal.SIGKILL)
        await service.wait_ended()


@pytest.mark.parametrize("capacity_bytes", [SMALL_BYTES, LARGE_BYTES])
async def test_a_store_that_is_killed_serves_what_it_had_and_nothing_wrong(tmp_path: Path, capacity_bytes: int) -> None:
    async with asyncio.timeout(50):
        await kill_again_and_again(tmp_path, 1, capacity_bytes, seed=capacity_bytes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("capacity_bytes", [SMALL_BYTES, LARGE_BYTES])
async def test_a_store_that_is_killed_over_and_over(tmp_path: Path, capacity_bytes: int, seed: int) -> None:
    async with asyncio.timeout(300):
        await kill_again_and_again(tmp_path, 10, capacity_bytes, seed)

"""Disks that fail, seen by those who ask the store: no wrong byte, no wait without end, each counted.

test_faults.py below disk/ has the same faults at the log itself, and more of them. Where each promise has its test:

| Promise | Test |
|---|---|
| kill -9 at every write point | disk/test_crashes.py, test_store_lives.py (restart) |
| torn tails, truncated segments | `test_a_store_comes_back_from_damaged_files` |
| flipped bits on disk | `test_flipped_bits_on_disk_are_a_miss`, test_store_lives.py |
| flipped bits in memory | test_upkeep.py (verify), kv_client/test_isolation.py (readers), test_store_lives.py |
| ENOSPC, EIO, read-only | `test_a_disk_that_takes_no_writes_costs_nothing_but_its_room` |
| EIO when reading | `test_a_disk_that_cannot_be_read_is_a_miss` |
| stalled I/O | `test_stalled_reads_end_with_their_deadline`, `test_stalled_writes_hold_nobody_up` |
| full arena | kv_client/test_isolation.py |
| client killed while reading, writing, holding leases | kv_client/test_killed_clients.py |
| late reader after eviction; two writers of one key | kv_client/test_isolation.py |
| wrong fingerprint; another tenant's block | kv_client/test_isolation.py, test_tenants.py |
| the whole API against a dictionary | test_store_model.py, test_store_lives.py |
| a store that dies, hangs or lies | kv_client/test_broken_store.py |
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from support.disk_faults import FaultyFiles
from support.eventually import eventually
from support.kv_store_core import BLOCK_BYTES, Core, open_core, payloads
from support.kv_store_running import key

NUMBERS = (1, 2, 3, 4)
PRESENT = [pb.BLOCK_STATUS_PRESENT] * len(NUMBERS)


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
async def core(tmp_path: Path, files: FaultyFiles) -> AsyncIterator[Core]:
    async with asyncio.timeout(30), open_core(files=files, folder=tmp_path, io_timeout_s=0.3) as core:
        yield core


async def put_on_disk(core: Core) -> None:
    """Blocks that are on disk and no longer in memory."""
    assert await core.put(*NUMBERS) == PRESENT
    await core.settle()
    core.forget_memory(*NUMBERS)
    assert core.lookup(*NUMBERS) == (4, 0)


@pytest.mark.parametrize(
    ("error", "counter"),
    [
        (errno.EIO, "disk_io_errors"),
        (errno.ENOSPC, "disk_refused_no_space"),
        (errno.EROFS, "disk_io_errors"),
    ],
)
async def test_a_disk_that_takes_no_writes_costs_nothing_but_its_room(
    core: Core, files: FaultyFiles, error: int, counter: str
) -> None:
    await put_on_disk(core)
    call = "allocate" if error == errno.ENOSPC else "pwritev"
    files.fail(call, error)
    for first in range(10, 90, 10):
        assert await core.put(*range(first, first + 8)) == [pb.BLOCK_STATUS_PRESENT] * 8
        await core.settle()
        assert core.read(*range(first, first + 8)) == payloads(range(first, first + 8))
    assert core.stats.counters[counter] > 0
    if error != errno.ENOSPC:
        assert "writes are out of service" in core.stats.disk_problem
    assert await core.prefetch(*NUMBERS) == 4, "what is there can still be read"
    assert core.read(*NUMBERS) == payloads(NUMBERS)
    files.heal()


async def test_a_disk_that_cannot_be_read_is_a_miss(core: Core, files: FaultyFiles) -> None:
    await put_on_disk(core)
    files.fail("preadv", errno.EIO)
    assert await core.prefetch(*NUMBERS) == 0
    assert core.read(*NUMBERS) == []
    await eventually(lambda: core.stats.disk_problem != "", "reads are out of service")
    assert core.stats.counters["disk_io_errors"] >= 3
    assert core.lookup(*NUMBERS) == (0, 0), "nobody is promised what cannot be read"
    assert await core.prefetch(*NUMBERS) == 0
    files.heal()
    await eventually(lambda: core.stats.disk_problem == "", "a probe brings the disk back")
    assert await core.prefetch(*NUMBERS) == 4
    assert core.read(*NUMBERS) == payloads(NUMBERS)


async def test_stalled_reads_end_with_their_deadline(core: Core, files: FaultyFiles) -> None:
    await put_on_disk(core)
    released = files.block("preadv")
    began_s = asyncio.get_running_loop().time()
    assert await core.prefetch(*NUMBERS, timeout_ms=50) == 0
    assert asyncio.get_running_loop().time() - began_s < 5
    assert await core.put(50, 51) == [pb.BLOCK_STATUS_PRESENT] * 2, "others go on"
    assert core.read(50, 51) == payloads((50, 51))
    await eventually(lambda: core.stats.counters["disk_stalls"] >= 1, "the stall is counted")
    files.heal()
    released.set()
    await eventually(lambda: core.stats.disk_problem == "", "the disk answers again")

    async def comes_back() -> bool:
        return await core.prefetch(*NUMBERS) == 4

    await eventually(comes_back, "the blocks come back")
    assert core.read(*NUMBERS) == payloads(NUMBERS)


async def test_stalled_writes_hold_nobody_up(core: Core, files: FaultyFiles) -> None:
    released = files.block("pwritev")
    assert await core.put(*NUMBERS) == PRESENT
    assert core.read(*NUMBERS) == payloads(NUMBERS)
    await eventually(lambda: core.stats.counters["disk_stalls"] >= 1, "the stall is counted")
    await core.settle()
    assert core.stats.num_disk_blocks == 0
    core.forget_memory(*NUMBERS)
    assert core.lookup(*NUMBERS) == (0, 0)
    files.heal()
    released.set()
    await eventually(lambda: core.stats.disk_problem == "", "the disk answers again")
    assert await core.put(*NUMBERS) == PRESENT
    assert core.read(*NUMBERS) == payloads(NUMBERS)


async def test_flipped_bits_on_disk_are_a_miss(core: Core, tmp_path: Path) -> None:
    await put_on_disk(core)
    flip(tmp_path, payloads((3,))[0][:64])
    assert await core.prefetch(*NUMBERS) == 2
    assert core.read(*NUMBERS) == payloads((1, 2))
    assert core.stats.counters["checksum_failures_disk"] == 1
    assert core.stats.counters["disk_corrupt"] == 1
    assert core.lookup(*NUMBERS)[0] == 2, "what followed the wrong block is gone with it"
    assert await core.put(3, 4, parent=key(2)) == [pb.BLOCK_STATUS_PRESENT] * 2
    assert core.read(*NUMBERS) == payloads(NUMBERS)


@pytest.mark.parametrize("damage", ["torn tail", "truncated", "emptied", "flipped", "checkpoint lost"])
async def test_a_store_comes_back_from_damaged_files(tmp_path: Path, damage: str) -> None:
    numbers = range(1, 17)
    async with asyncio.timeout(30), open_core(files=FaultyFiles(), folder=tmp_path) as core:
        for first in (1, 9):
            parent = key(first - 1) if first > 1 else None
            await core.put(*range(first, first + 8), **({"parent": parent} if parent else {}))
        await core.settle()
        assert core.stats.num_disk_blocks == 16
    hurt(tmp_path, damage)
    async with asyncio.timeout(30), open_core(files=FaultyFiles(), folder=tmp_path) as core:
        num_visible, _ = core.lookup(*numbers)
        num_read = await core.prefetch(*numbers)
        assert core.read(*numbers) == payloads(numbers[:num_read])
        assert num_read == 16 if damage == "checkpoint lost" else num_read < 16
        counters = core.stats.counters
        assert damage == "checkpoint lost" or counters["disk_corrupt"] + counters["disk_torn"] > 0 or num_visible < 16
        rest = numbers[num_read:]
        for number in rest:
            assert await core.put(number, parent=key(number - 1) if number > 1 else b"n" * 16) == PRESENT[:1]
        assert core.read(*numbers) == payloads(numbers)


def flip(folder: Path, content: bytes) -> None:
    """Turns a bit where the content lies on disk."""
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        at = data.find(content)
        if at >= 0:
            data[at] ^= 1
            path.write_bytes(data)
            return
    raise AssertionError("the content is not on disk")


def hurt(folder: Path, damage: str) -> None:
    """Damages the file that has block 12, or the checkpoints."""
    content = payloads((12,))[0][:64]
    if damage == "checkpoint lost":
        for path in folder.iterdir():
            if "checkpoint" in path.name:
                path.unlink()
        return
    path = next(path for path in sorted(folder.iterdir()) if content in path.read_bytes())
    data = path.read_bytes()
    at = data.find(content)
    if damage == "torn tail":
        path.write_bytes(data[: at + 512] + bytes(len(data) - at - 512))
    elif damage == "truncated":
        path.write_bytes(data[: at + BLOCK_BYTES // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        flip(folder, content)

"""Blocks between memory and disk: any number comes back in one call, and what the disk refused is offered again."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_store.index import NO_SLOT
from support.disk_faults import FaultyFiles
from support.eventually import eventually
from support.kv_store_core import Core, open_core, payloads
from support.kv_store_running import ROOT, key

MANY = range(1, 301)
PRESENT = pb.BLOCK_STATUS_PRESENT


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
async def core(tmp_path: Path, files: FaultyFiles) -> AsyncIterator[Core]:
    opened = open_core(files=files, folder=tmp_path, num_blocks=400, disk_bytes=16 << 20)
    async with asyncio.timeout(30), opened as core:
        yield core


async def put_chain(core: Core, numbers: range, parent: bytes = ROOT) -> None:
    for first in range(numbers.start, numbers.stop, 25):
        part = range(first, min(first + 25, numbers.stop))
        assert await core.put(*part, parent=parent) == [PRESENT] * len(part)
        parent = key(part[-1])


async def put_on_disk(core: Core, numbers: range) -> None:
    await put_chain(core, numbers)
    await core.settle()
    core.forget_memory(*numbers)
    assert core.lookup(*numbers) == (len(numbers), 0)


def num_on_disk(core: Core) -> int:
    return core.stats.num_disk_blocks


# --- back to memory ---------------------------------------------------------------------------------------------------


async def test_one_call_brings_any_number_of_blocks_back(core: Core) -> None:
    await put_on_disk(core, MANY)
    assert await core.prefetch(*MANY) == 300
    assert core.read(*MANY) == payloads(MANY)
    refused = {name: num for name, num in core.stats.counters.items() if "refused" in name and num}
    assert not refused


async def test_calls_for_the_same_blocks_share_their_reads(core: Core) -> None:
    await put_on_disk(core, MANY)
    assert core.log is not None
    before = core.log.stats().num_read
    asked = (MANY[:40], MANY[:40], MANY[:80], MANY[:10])
    assert await asyncio.gather(*(core.prefetch(*numbers) for numbers in asked)) == [40, 40, 80, 10]
    assert core.log.stats().num_read - before == 80


async def test_a_short_chain_does_not_wait_for_a_long_one(core: Core) -> None:
    await put_on_disk(core, MANY)
    await put_on_disk(core, range(1001, 1004))
    core.forget_memory(*MANY)
    long = asyncio.create_task(core.prefetch(*MANY))
    await asyncio.sleep(0)
    assert await core.prefetch(*range(1001, 1004)) == 3
    assert not long.done()
    assert await long == 300


async def test_what_waits_for_the_disk_displaces_nothing(core: Core, files: FaultyFiles) -> None:
    await put_on_disk(core, MANY)
    await put_chain(core, range(1001, 1391))  # memory is almost full of others' blocks
    await core.settle()
    assert core.log is not None
    window, before = core.log.read_window, core.stats.counters["evicted"]
    released = files.block("preadv")
    assert await core.prefetch(*MANY, timeout_ms=50) == 0
    assert core.stats.counters["evicted"] - before <= window
    files.heal()
    released.set()
    disk = core.store.disk
    assert disk is not None
    await eventually(lambda: not disk.promoting.num_slots, "the reads that had begun are over")
    assert core.stats.counters["promoted"] <= window, "the others are not made for somebody who has left"
    assert await core.prefetch(*MANY) == 300
    assert core.read(*MANY) == payloads(MANY)


async def test_a_chain_that_does_not_fit_comes_as_far_as_it_does(core: Core) -> None:
    await put_on_disk(core, MANY)
    await put_chain(core, range(1001, 1201))
    await core.settle()
    leased = b"".join(map(key, range(1001, 1201)))
    core.control.acquire(pb.AcquireRequest(keys=leased), core.session)
    assert await core.prefetch(*MANY) == 200
    assert core.read(*MANY) == payloads(MANY[:200])
    assert sum(pool.num_used for pool in core.store.arena.pools) == 400
    core.control.give_back(pb.ReleaseRequest(leased_keys=leased), core.session)


async def test_a_wrong_block_ends_what_waits_behind_it(core: Core, tmp_path: Path) -> None:
    await put_on_disk(core, MANY)
    flip(tmp_path, 100)
    assert await core.prefetch(*MANY) == 99
    assert core.lookup(*MANY)[0] == 99
    assert sum(pool.num_used for pool in core.store.arena.pools) == 99


def flip(folder: Path, number: int) -> None:
    for path in sorted(folder.iterdir()):
        data = bytearray(path.read_bytes())
        at = data.find(payloads((number,))[0][:64])
        if at >= 0:
            data[at] ^= 1
            path.write_bytes(data)
            return
    raise AssertionError("the block is not on disk")


# --- to the disk, again -----------------------------------------------------------------------------------------------


async def test_what_follows_a_block_that_the_disk_failed_to_take_brings_it_there(
    core: Core, files: FaultyFiles
) -> None:
    files.fail("pwritev", errno.EIO, times=2)
    assert await core.put(1, 2) == [PRESENT] * 2
    await core.settle()
    assert num_on_disk(core) == 0
    assert await core.put(*range(3, 33), parent=key(2)) == [PRESENT] * 30
    await settle_all(core)
    assert num_on_disk(core) == 32


async def settle_all(core: Core) -> None:
    """Keeps house until nothing is owed to the disk."""
    disk = core.store.disk
    assert disk is not None

    def is_done() -> bool:
        core.store.expire()
        return not disk.demoting.num_owed and not disk.num_waiting

    await eventually(is_done, "the disk has what it was owed", 15.0)


@pytest.mark.parametrize("fault", ["EIO", "out of service"])
async def test_what_a_disk_did_not_take_is_offered_again_when_it_works(
    core: Core, files: FaultyFiles, fault: str
) -> None:
    """Without anybody who asks for it: a hot prompt that was stored in a bad second gets there with its tree."""
    files.fail("pwritev", errno.EIO, times=2 if fault == "EIO" else 1_000_000)
    await put_chain(core, range(1, 51))
    await put_chain(core, range(101, 121))
    if fault == "out of service":
        await eventually(lambda: core.stats.disk_problem != "", "writes are out of service")
    await core.settle()
    assert num_on_disk(core) < 70
    files.heal()
    await settle_all(core)
    assert num_on_disk(core) == 70
    core.forget_memory(*range(1, 51))
    assert await core.prefetch(*range(1, 51)) == 50
    assert core.read(*range(1, 51)) == payloads(range(1, 51))


async def test_a_disk_that_stays_broken_is_not_bothered(core: Core, files: FaultyFiles) -> None:
    files.fail("pwritev", errno.EIO, times=1)
    assert await core.put(1) == [PRESENT]
    await core.settle()
    disk = core.store.disk
    assert disk is not None
    assert disk.demoting.num_owed == 1
    files.fail("pwritev", errno.EIO, times=1)
    core.store.expire()
    await core.settle()
    refused = core.stats.counters["disk_io_errors"]
    core.store.expire()
    assert disk.num_waiting == 0, "the next try is two seconds away"
    assert core.stats.counters["disk_io_errors"] == refused


async def test_what_the_log_dropped_for_room_is_not_written_again_by_itself(core: Core) -> None:
    await put_chain(core, range(1, 9))
    await core.settle()
    disk = core.store.disk
    assert disk is not None
    assert core.log is not None
    for number in (1, 8):  # as reclaiming does: what is in memory costs nothing to lose
        core.log.remove(key(number))
        disk.dropped([key(number)])
    core.store.expire()
    assert disk.num_waiting == disk.demoting.num_owed == 0
    assert num_on_disk(core) == 6
    assert await core.put(9, parent=key(8)) == [PRESENT]  # somebody needs it there
    await core.settle()
    assert num_on_disk(core) == 8 - 1 + 1, "block 8 with block 9; nothing needs block 1 to be written"


async def test_what_is_owed_is_bounded_and_may_leave_memory(
    core: Core, files: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.kv_store.demoting.MAX_OWED", 5)
    files.fail("pwritev", errno.EIO)
    for number in range(1, 31):
        assert await core.put(number) == [PRESENT]
    await core.settle()
    disk = core.store.disk
    assert disk is not None
    assert disk.demoting.num_owed == 5
    assert core.stats.counters["disk_owed_forgotten"] >= 20
    core.forget_memory(*range(1, 31))
    files.heal()
    await settle_all(core)
    assert num_on_disk(core) == 0
    assert all(slot == NO_SLOT for slot in core.store.index.slot)
    assert core.store.memory.arena.num_used_bytes == 0

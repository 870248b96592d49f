"""Pins, time to live, verifying and draining."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_store.store import StoreLimits
from shoal.kv_store.tenants import Caller
from shoal.rpc.errors import Draining, InvalidArgument
from support.disk_faults import FaultyFiles
from support.kv_store_core import BLOCK_BYTES, Core, open_core, payloads
from support.kv_store_running import key

SCOPE = pb.Scope(tenant="a", fingerprint=b"f")
OPERATOR = Caller("")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def core(tmp_path: Path, clock: Clock) -> AsyncIterator[Core]:
    limits = StoreLimits(ttl_s=60.0, lease_timeout_s=1000.0)
    async with (
        asyncio.timeout(20),
        open_core(files=FaultyFiles(), folder=tmp_path, num_blocks=16, limits=limits, clock=clock) as core,
    ):
        yield core


def pin(core: Core, *numbers: int, owner: str = "x", ttl_ms: int = 10_000) -> int:
    request = pb.PinRequest(scope=SCOPE, keys=b"".join(map(key, numbers)), owner=owner, ttl_ms=ttl_ms)
    return core.control.pin(request, OPERATOR).num_pinned


def unpin(core: Core, *numbers: int, owner: str = "x") -> int:
    request = pb.UnpinRequest(scope=SCOPE, keys=b"".join(map(key, numbers)), owner=owner)
    return core.control.unpin(request, OPERATOR).num_unpinned


async def verify(core: Core) -> pb.VerifyResponse:
    return [each async for each in core.control.verify(pb.VerifyRequest(max_bytes_per_s=1 << 40), OPERATOR)][-1]


async def drain(core: Core, timeout_ms: int = 10_000) -> pb.DrainResponse:
    return [each async for each in core.control.drain(pb.DrainRequest(timeout_ms=timeout_ms), OPERATOR)][-1]


def age(core: Core, clock: Clock, seconds: float) -> None:
    clock.now_s += seconds
    core.store.expire()


# --- pins -------------------------------------------------------------------------------------------------------------


async def test_pinned_blocks_stay_until_their_time_is_over(core: Core, clock: Clock) -> None:
    await core.put(1, 2)
    await core.settle()
    assert pin(core, 1, 2, 3) == 2
    assert core.stats.pinned_bytes == 2 * BLOCK_BYTES
    for number in range(10, 40):
        await core.put(number)
        await core.settle()
    assert core.read(1, 2) == payloads((1, 2))
    evicted = core.control.evict(pb.EvictRequest(scope=SCOPE, keys=key(1)), caller=OPERATOR)
    assert (evicted.num_evicted, evicted.num_leased) == (0, 2)
    age(core, clock, 10)
    assert core.stats.pinned_bytes == 0
    assert core.stats.counters["pins_expired"] == 2
    assert core.control.evict(pb.EvictRequest(scope=SCOPE, keys=key(1)), caller=OPERATOR).num_evicted == 2


async def test_an_owners_pins_are_its_own(core: Core) -> None:
    await core.put(1, 2)
    await core.settle()
    assert pin(core, 1, 2) == pin(core, 1, owner="y") + 1 == 2
    assert pin(core, 1, 2) == 2, "again: counted once"
    assert core.stats.pinned_bytes == 3 * BLOCK_BYTES
    assert unpin(core, 2) == 1
    assert unpin(core, owner="z") == 0
    assert unpin(core) == 1
    assert core.stats.pinned_bytes == BLOCK_BYTES
    assert core.control.evict(pb.EvictRequest(scope=SCOPE, keys=key(1)), caller=OPERATOR).num_leased == 1
    assert unpin(core, owner="y") == 1


async def test_pins_are_bounded(core: Core) -> None:
    numbers = range(1, 13)
    await core.put(*numbers)
    await core.settle()
    assert pin(core, *numbers) == 8, "half of the memory"
    assert core.stats.counters["refused_pins"] == 1
    for field, request in (
        ("owner", pb.PinRequest(scope=SCOPE, keys=key(1), ttl_ms=1)),
        ("owner", pb.PinRequest(scope=SCOPE, keys=key(1), owner="x" * 65, ttl_ms=1)),
        ("ttl_ms", pb.PinRequest(scope=SCOPE, keys=key(1), owner="x")),
        ("ttl_ms", pb.PinRequest(scope=SCOPE, keys=key(1), owner="x", ttl_ms=86_400_001)),
        ("keys", pb.PinRequest(scope=SCOPE, keys=b"x", owner="x", ttl_ms=1)),
    ):
        with pytest.raises(InvalidArgument, match=field):
            core.control.pin(request, OPERATOR)


# --- time to live -----------------------------------------------------------------------------------------------------


async def test_blocks_that_nobody_uses_leave_every_tier(core: Core, clock: Clock) -> None:
    await core.put(1, 2, 3)
    await core.put(10, 11)
    await core.settle()
    age(core, clock, 40)
    assert core.lookup(1, 2)[0] == 2
    age(core, clock, 40)
    assert core.lookup(1, 2, 3) == (2, 2)
    assert core.lookup(10, 11) == (0, 0)
    assert core.stats.num_disk_blocks == 2
    assert core.stats.counters["removed_expired"] == 3
    age(core, clock, 59)
    assert core.stats.num_blocks == 2
    age(core, clock, 1)
    assert core.stats.num_blocks == core.stats.used_memory_bytes == 0


async def test_what_is_leased_or_pinned_does_not_age(core: Core, clock: Clock) -> None:
    await core.put(1, 2)
    await core.put(10)
    await core.settle()
    core.control.acquire(pb.AcquireRequest(keys=key(1) + key(2)), core.session)
    pin(core, 10, ttl_ms=100_000)
    age(core, clock, 90)
    assert core.stats.num_blocks == 3
    core.control.give_back(pb.ReleaseRequest(leased_keys=key(1) + key(2)), core.session)
    age(core, clock, 1)
    assert core.stats.num_blocks == 1


# --- verifying --------------------------------------------------------------------------------------------------------


async def test_verifying_reads_both_tiers_and_removes_what_is_wrong(core: Core) -> None:
    await core.put(1, 2, 3)
    await core.put(10)
    await core.settle()
    found = await verify(core)
    assert (found.num_blocks, found.num_done, found.num_memory_verified, found.num_disk_verified) == (4, 4, 4, 4)
    assert (found.num_wrong, found.num_unread, found.num_bytes, found.done) == (0, 0, 8 * BLOCK_BYTES, True)
    pin(core, 1, 2, 3)
    leased = core.control.acquire(pb.AcquireRequest(keys=key(1) + key(2)), core.session)
    index = core.store.index
    core.store.arena.view(index.slot[index.find(key(2))], BLOCK_BYTES)[5] ^= 1
    found = await verify(core)
    assert (found.num_wrong, found.num_memory_verified) == (1, 2)
    assert core.read(1, 2, 3) == payloads((1,))
    assert core.stats.counters["checksum_failures_memory"] == 1
    assert core.stats.counters["removed_wrong"] == 2
    assert core.stats.pinned_bytes == BLOCK_BYTES
    assert len(leased.slots) == 2, "leased and pinned or not"


async def test_verifying_keeps_to_its_rate(core: Core) -> None:
    for number in range(1, 11):
        await core.put(number)
    await core.settle()
    began_s = asyncio.get_running_loop().time()
    request = pb.VerifyRequest(max_bytes_per_s=100 * BLOCK_BYTES)
    last = [each async for each in core.control.verify(request, OPERATOR)][-1]
    assert last.num_bytes == 20 * BLOCK_BYTES
    assert asyncio.get_running_loop().time() - began_s > 0.15


# --- draining ---------------------------------------------------------------------------------------------------------


async def test_a_drained_store_has_everything_on_disk_and_takes_nothing(tmp_path: Path) -> None:
    files = FaultyFiles()
    async with asyncio.timeout(20), open_core(files=files, folder=tmp_path, num_blocks=256) as core:
        numbers = range(1, 41)
        files.fail("pwritev", errno.EIO, times=1)
        for first in range(1, 41, 8):
            await core.put(*range(first, first + 8), parent=key(first - 1) if first > 1 else b"n" * 16)
        await core.settle()
        assert core.stats.num_disk_blocks < 40
        done = await drain(core)
        assert (done.num_unwritten, done.problem, done.done) == (0, "", True)
        assert core.stats.num_disk_blocks == 40
        assert core.stats.draining
        with pytest.raises(Draining):
            await core.put(100)
        assert core.read(*numbers) == payloads(numbers)
        assert core.stats.counters["refused_draining"] == 1
        _ = [each async for each in core.control.drain(pb.DrainRequest(resume=True), OPERATOR)]
        await core.put(100)


async def test_draining_says_what_it_could_not_do(tmp_path: Path) -> None:
    async with asyncio.timeout(20), open_core() as core:
        await core.put(1, 2)
        assert "2 blocks are in memory only: there is no disk tier" in (await drain(core)).problem
    files = FaultyFiles()
    async with asyncio.timeout(20), open_core(files=files, folder=tmp_path, io_timeout_s=0.2) as core:
        files.fail("pwritev", errno.EROFS)
        await core.put(1, 2)
        assert "writes are out of service" in (await drain(core)).problem
    files = FaultyFiles()
    async with asyncio.timeout(20), open_core(files=files, folder=tmp_path / "other", io_timeout_s=10) as core:
        released = files.block("pwritev")
        await core.put(1, 2)
        assert "the time is over" in (await drain(core, timeout_ms=50)).problem
        files.heal()
        released.set()


async def test_draining_waits_for_what_was_reserved(core: Core) -> None:
    core.control.reserve(pb.ReserveRequest(keys=key(1), parent_key=b"n" * 16, namespace_key=b"n" * 16), core.session)
    draining = core.control.drain(pb.DrainRequest(timeout_ms=10_000), OPERATOR)
    first = await anext(draining)
    assert (first.num_reserved, first.done) == (1, False)
    core.control.give_back(pb.ReleaseRequest(reserved_keys=key(1)), core.session)
    assert [each async for each in draining][-1].done

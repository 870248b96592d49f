"""A KV store without sockets, in the test's own loop: requests as messages, a disk that can be made to fail."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.checksum import crc32c
from shoal.kv_store.arena import Arena, SlotId
from shoal.kv_store.control import Control
from shoal.kv_store.disk import LogOptions, SegmentLog
from shoal.kv_store.disk.files import Files
from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.policy import make_policy
from shoal.kv_store.sessions import Session
from shoal.kv_store.store import Store, StoreLimits
from shoal.kv_store.tenants import Caller, Tenants
from shoal.kv_store.worth import Worth
from support.eventually import eventually
from support.kv_store_running import ROOT, arena_bytes, key, payload
from support.store_model import check_now

BLOCK_BYTES = 8192
SEGMENT_BYTES = 1 << 16
DISK_BYTES = 4 << 20
OPTIONS = LogOptions(num_threads=2, min_payload_bytes=4096, checkpoint_interval_s=3600)


def attach_disk(
    store: Store,
    files: Files,
    post: Callable[[Callable[[], None]], None],
    *,
    folder: Path | str = "disk",
    capacity_bytes: int = DISK_BYTES,
    segment_bytes: int = SEGMENT_BYTES,
    io_timeout_s: float = 5.0,
    options: LogOptions = OPTIONS,
) -> SegmentLog:
    """Gives a store a disk of such files; its quotas are those of the store's tenants."""
    worth = Worth(store.index, post, 0.01)
    log = SegmentLog(folder, capacity_bytes, segment_bytes, io_timeout_s, options=options, retention=worth, files=files)
    parts = (store.memory, store.index, store.scopes, store.events, store.counters)
    tier = DiskTier(log, *parts, post, store.tenants.disk_quota, store.clock)
    worth.belong_to(tier)
    store.attach_disk(tier)
    return log


@dataclass(slots=True)
class Core:
    """A store, and one client of tenant `a`."""

    control: Control
    session: Session
    log: SegmentLog | None

    @property
    def store(self) -> Store:
        return self.control.store

    @property
    def stats(self) -> pb.StatsResponse:
        return self.control.stats(pb.StatsRequest(), Caller(""))

    async def put(self, *numbers: int, parent: bytes = ROOT) -> list[int]:
        """Writes blocks, each the parent of the next; the statuses of the commit."""
        packed = b"".join(map(key, numbers))
        request = pb.ReserveRequest(keys=packed, parent_key=parent, namespace_key=ROOT, cost_s=0.01)
        reserved = self.control.reserve(request, self.session)
        assert list(reserved.statuses) == [pb.BLOCK_STATUS_RESERVED] * len(numbers)
        assert self.session.staging is not None
        for number, block in zip(numbers, reserved.staging_blocks, strict=True):
            ctypes.memmove(self.session.staging.address(block), payload(number), BLOCK_BYTES)
        checksums = [crc32c(payload(number)) for number in numbers]
        committed = await self.control.commit(pb.CommitRequest(keys=packed, checksums=checksums), self.session)
        return list(committed.statuses)

    async def settle(self, timeout_s: float = 15.0) -> None:
        """Waits until nothing is on its way to disk."""
        disk = self.store.disk
        assert disk is not None
        await eventually(lambda: disk.num_waiting == 0, "the disk finishes", timeout_s)

    def lookup(self, *numbers: int) -> tuple[int, int]:
        found = self.control.lookup(pb.LookupRequest(keys=b"".join(map(key, numbers))), self.session)
        return found.num_visible, found.num_in_memory

    async def prefetch(self, *numbers: int, timeout_ms: int = 0) -> int:
        request = pb.PrefetchRequest(keys=b"".join(map(key, numbers)), timeout_ms=timeout_ms)
        return (await self.control.prefetch(request, self.session)).num_in_memory

    def read(self, *numbers: int) -> list[bytes]:
        """The leading blocks in memory, read as a client does: verified, or not counted."""
        packed = b"".join(map(key, numbers))
        leased = self.control.acquire(pb.AcquireRequest(keys=packed), self.session)
        payloads = []
        for chunk, slot, generation, checksum in zip(
            leased.chunks, leased.slots, leased.generations, leased.checksums, strict=True
        ):
            place = SlotId(chunk, slot).packed()
            data = ctypes.string_at(self.store.arena.address(place), BLOCK_BYTES)
            if self.store.arena.generation(place) != generation or crc32c(data) != checksum:
                break
            payloads.append(data)
        num = len(leased.slots)
        suspects = packed[16 * len(payloads) : 16 * num]
        check_now(self.store, self.session.scope, [suspects[at : at + 16] for at in range(0, len(suspects), 16)])
        self.control.give_back(pb.ReleaseRequest(leased_keys=packed[: 16 * num]), self.session)
        return payloads

    def forget_memory(self, *numbers: int) -> None:
        """Evicts every block of the pool that may leave memory."""
        pool = self.session.scope.pool
        while self.store.memory.evict_one(pool, self.session.scope.policy):
            pass
        assert self.lookup(*numbers)[1] == 0


@asynccontextmanager
async def open_core(
    *,
    files: Files | None = None,
    folder: Path | str = "disk",
    num_blocks: int = 64,
    disk_bytes: int = DISK_BYTES,
    limits: StoreLimits | None = None,
    tenants: Tenants | None = None,
    io_timeout_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Core]:
    """A store of `num_blocks` blocks of BLOCK_BYTES, with a disk where there are files for one; ended at the end."""
    loop = asyncio.get_running_loop()
    arena = Arena(arena_bytes(num_blocks, BLOCK_BYTES, 8), 8 * BLOCK_BYTES, "off")
    store = Store(arena, partial(make_policy, "lru"), limits or StoreLimits(), tenants, clock=clock)
    log = None
    if files is not None:
        log = attach_disk(
            store, files, _posting(loop), folder=folder, capacity_bytes=disk_bytes, io_timeout_s=io_timeout_s
        )
    with ThreadPoolExecutor(2) as copiers:
        control = Control(store, copiers, 1024)
        session = store.open_session("a", b"f", BLOCK_BYTES, 32)
        try:
            yield Core(control, session, log)
        finally:
            store.close()


def _posting(loop: asyncio.AbstractEventLoop) -> Callable[[Callable[[], None]], None]:
    def post(call: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(call)

    return post


def payloads(numbers: Sequence[int]) -> list[bytes]:
    """What is right."""
    return [payload(number) for number in numbers]

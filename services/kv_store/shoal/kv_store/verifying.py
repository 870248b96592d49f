"""Reads every block and compares checksums, at a bounded rate, while the store serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Final

from shoal.api.kv_store.v1 import kv_store_pb2 as pb
from shoal.kv_store.checking import Finding, check_block
from shoal.kv_store.disk_tier import DiskReading
from shoal.kv_store.index import NO_SLOT
from shoal.kv_store.scopes import Scope
from shoal.kv_store.store import Store

DEFAULT_BYTES_PER_S: Final = 1 << 30
REPORT_S: Final = 0.5


async def verify_blocks(
    store: Store, readers: Executor, tenant: str, max_bytes_per_s: int
) -> AsyncIterator[pb.VerifyResponse]:
    """Progress about twice a second, and at the end; of one tenant's blocks if that is named.

    Blocks that come meanwhile may be left out; they were verified when they came.
    """
    verification = _Verification(store, readers)
    scopes = {scope.number: scope for scope in store.scopes.of_tenant(tenant)}
    verification.progress.num_blocks = sum(store.index.sizes[number].num_blocks for number in scopes)
    rate = max_bytes_per_s or DEFAULT_BYTES_PER_S
    start_s = reported_s = time.monotonic()
    row = 0
    while (row := row + 1) < store.index.num_rows:
        scope = scopes.get(store.index.scope[row])
        if scope is None:
            continue
        await verification.verify(row, scope)
        now_s = time.monotonic()
        if now_s - reported_s >= REPORT_S:
            reported_s = now_s
            yield verification.progress
        await asyncio.sleep(max(0.0, verification.progress.num_bytes / rate - (now_s - start_s)))
    verification.progress.done = True
    yield verification.progress


class _Verification:
    """One pass over the store."""

    def __init__(self, store: Store, readers: Executor) -> None:
        self.progress = pb.VerifyResponse()
        self._store = store
        self._readers = readers
        self._buffer = bytearray()

    async def verify(self, row: int, scope: Scope) -> None:
        """Both copies of a block; what is wrong goes."""
        index, key = self._store.index, self._store.index.key(row)
        self.progress.num_done += 1
        if index.slot[row] != NO_SLOT:
            await self._verify_in_memory(row, scope)
        row = index.find(key)
        if row and index.on_disk[row] and index.scope[row] == scope.number:
            await self._verify_on_disk(key, scope)

    async def _verify_in_memory(self, row: int, scope: Scope) -> None:
        finding = await check_block(self._store, self._readers, row, scope)
        self.progress.num_bytes += scope.block_bytes
        self.progress.num_unread += finding is Finding.UNREAD
        self.progress.num_memory_verified += finding is Finding.VERIFIED
        self.progress.num_wrong += finding is Finding.WRONG

    async def _verify_on_disk(self, key: bytes, scope: Scope) -> None:
        """Into a buffer of its own, so that nothing has to make room in memory."""
        disk = self._store.disk
        if disk is None:
            return
        if len(self._buffer) != scope.block_bytes:
            self._buffer = bytearray(scope.block_bytes)
        reading = await disk.verify(key, memoryview(self._buffer))
        self.progress.num_bytes += scope.block_bytes
        if reading is DiskReading.VERIFIED:
            self.progress.num_disk_verified += 1
        elif reading is DiskReading.WRONG:
            self.progress.num_wrong += 1
        else:
            self.progress.num_unread += 1

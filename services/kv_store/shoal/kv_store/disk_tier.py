"""The disk tier under the index: blocks go there as they are stored, and come back when they are asked for."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from shoal.kv_store.counters import Counters
from shoal.kv_store.demoting import Demoting
from shoal.kv_store.disk import Corrupt, DiskError, DiskStats, SegmentLog
from shoal.kv_store.events import DISK, EventHub, Removed
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.promoting import Post, Promoting
from shoal.kv_store.scopes import Scope, Scopes


class DiskReading(enum.Enum):
    """What reading one block came to."""

    VERIFIED = "verified"
    WRONG = "wrong"
    """The bytes are not those that were written; the block is dropped."""
    UNREAD = "unread"
    """It is not there any more, or the disk did not answer."""


class DiskTier:
    """Joins a SegmentLog to the index. Belongs to the store's thread; the log's threads reach it through `post`."""

    def __init__(
        self,
        log: SegmentLog,
        memory: MemoryTier,
        index: BlockIndex,
        scopes: Scopes,
        events: EventHub,
        counters: Counters,
        post: Post,
        quota_bytes: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """quota_bytes: most bytes on disk of a tenant's blocks."""
        self._log = log
        self._index = index
        self._scopes = scopes
        self._events = events
        self._counters = counters
        writes = (log, memory, index, scopes, events, counters, post, quota_bytes)
        self.demoting = Demoting(*writes, self._remove, clock)
        """Writes."""
        self.promoting = Promoting(log, memory, index, events, counters, post, self.dropped, clock)
        """Reads."""
        self._remove_lost: Callable[[int], int] = lambda row: 0

    @property
    def problem(self) -> str:
        """Why the disk is out of service; empty while it is not."""
        return self._log.reason

    @property
    def readable(self) -> bool:
        """Whether what is on disk can be asked for."""
        return self._log.readable

    @property
    def capacity_bytes(self) -> int:
        """Bytes of disk for blocks."""
        return self._log.stats().capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks that are there."""
        return self._log.stats().live_bytes

    @property
    def num_waiting(self) -> int:
        """Blocks on their way to disk, or waiting for that."""
        return self.demoting.num_waiting

    def stats(self) -> DiskStats:
        """See SegmentLog. Safe from any thread."""
        return self._log.stats()

    def checkpoint(self) -> bool:
        """See SegmentLog. Blocks; not for the store's thread."""
        return self._log.checkpoint()

    def lose_with(self, remove_lost: Callable[[int], int]) -> None:
        """Sets how to remove a block, with all that follow it, that is in no tier any more."""
        self._remove_lost = remove_lost

    @property
    def log(self) -> SegmentLog:
        """What it writes to."""
        return self._log

    def write(self, row: int, scope: Scope) -> None:
        """Offers a block in memory to the disk; see `Demoting`."""
        self.demoting.write(row, scope)

    def is_within_quota(self, scope: Scope) -> bool:
        """Whether one more block of the tenant may be on disk."""
        return self.demoting.is_within_quota(scope)

    def retry(self) -> None:
        """Offers what the disk did not take before. Called about once a second."""
        self.demoting.retry()

    def read(self, rows: Sequence[int], scope: Scope, deadline_s: float) -> list[Future[bool]]:
        """Starts to bring blocks back to memory; see `Promoting`."""
        return self.promoting.read(rows, scope, deadline_s)

    async def verify(self, key: bytes, into: memoryview) -> DiskReading:
        """Reads a block into memory of the caller, as large as its payload; a wrong one goes, as in `read`."""
        location = self._log.find(key)
        if location is None:
            return DiskReading.UNREAD
        try:
            await asyncio.wrap_future(self._log.read(location, into))
        except Corrupt:
            self._counters.add("checksum_failures_disk")
            self.dropped([key])
            return DiskReading.WRONG
        except DiskError:
            return DiskReading.UNREAD
        return DiskReading.VERIFIED

    def leave(self, row: int) -> None:
        """A block is leaving the index, and with it the disk."""
        self.promoting.forget(self._index.key(row))
        if self._index.on_disk[row]:
            self._remove(row)

    def forget_pin(self, key: bytes) -> None:
        """See `Demoting.forget`."""
        self.demoting.forget(key)

    def dropped(self, keys: Sequence[bytes]) -> None:
        """Blocks that the log no longer has."""
        for key in keys:
            row = self._index.find(key)
            if not row or not self._index.on_disk[row]:
                continue
            self._index.set_on_disk(row, False)
            self._events.publish([Removed((key,), DISK, self._tenant(row))])
            if self._index.slot[row] == NO_SLOT:
                self._remove_lost(row)

    def close(self) -> None:
        """Ends the log; blocks that were not written yet are not."""
        self.demoting.close()
        self.promoting.close()
        self._log.close()

    def _remove(self, row: int) -> None:
        self._index.set_on_disk(row, False)
        self._log.remove(self._index.key(row))
        self._events.publish([Removed((self._index.key(row),), DISK, self._tenant(row))])

    def _tenant(self, row: int) -> str:
        return self._scopes.numbered(self._index.scope[row]).tenant

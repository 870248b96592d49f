"""The disk tier under the index: blocks go there as they are stored, and come back when they are asked for."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from shoal.blocks import KEY_BYTES
from shoal.kv_store.counters import Counters
from shoal.kv_store.disk import Corrupt, DiskError, DiskStats, Gone, Location, Record, RecordMetadata, SegmentLog
from shoal.kv_store.events import DISK, MEMORY, EventHub, Removed, Stored
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.scopes import Scope, Scopes

ROOT_PARENT: Final = bytes(KEY_BYTES)
"""What a record says of a chain's first block: namespaces are not needed to find it again."""
MAX_WRITES: Final = 8
"""Blocks being written, which stay in memory meanwhile."""
MAX_BACKLOG: Final = 4096
"""Blocks that wait for that, and may leave memory unwritten; further ones are not written."""
Post = Callable[[Callable[[], None]], None]
"""Runs something on the store's thread, soon. Called from any thread."""


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
    ) -> None:
        """quota_bytes: most bytes on disk of a tenant's blocks."""
        self._log = log
        self._memory = memory
        self._index = index
        self._scopes = scopes
        self._events = events
        self._counters = counters
        self._post = post
        self._quota_bytes = quota_bytes
        self._pinned: dict[bytes, int] = {}
        self._reading: dict[bytes, int] = {}
        """Key that is on its way to memory: row of its parent, which stays there meanwhile."""
        self._backlog: deque[bytes] = deque()
        self._closed = False
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
        return len(self._pinned) + len(self._backlog)

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
        """Offers a block in memory to the disk: at once, later, or never when too many wait."""
        if not self._log.healthy:
            self._backlog.clear()
        elif len(self._pinned) < MAX_WRITES:
            self._start_write(row, scope)
        elif len(self._backlog) < MAX_BACKLOG:
            self._backlog.append(self._index.key(row))

    def _start_write(self, row: int, scope: Scope) -> None:
        index = self._index
        key, parent = index.key(row), index.parent[row]
        if key in self._pinned or (parent and not index.on_disk[parent] and index.key(parent) not in self._pinned):
            return  # a block whose parent is not on disk cannot be found there
        if not self.is_within_quota(scope):
            self._counters.add("refused_disk_quota")
            return
        metadata = RecordMetadata(key, self._parent_key(row), scope.fingerprint, scope.tenant, scope.block_bytes)
        payload = self._memory.arena.view(index.slot[row], scope.block_bytes)
        index.num_leases[row] += 1
        self._pinned[key] = row
        future = self._log.write(Record(metadata, payload, index.checksum[row]))
        future.add_done_callback(lambda done: self._post(partial(self._written, key, done)))

    def is_within_quota(self, scope: Scope) -> bool:
        """Whether one more block of the tenant may be on disk."""
        index = self._index
        scopes = {each.number: each for each in self._scopes.of_tenant(scope.tenant)}
        used = sum(index.sizes[number].num_on_disk * each.block_bytes for number, each in scopes.items())
        writing = (scopes.get(index.scope[row]) for row in self._pinned.values())
        used += sum(each.block_bytes for each in writing if each is not None)
        return used + scope.block_bytes <= self._quota_bytes(scope.tenant)

    def read(self, row: int, scope: Scope) -> Future[bool] | None:
        """Starts to bring a block back, into a slot that `arrived` shows or frees; None without room."""
        index, key = self._index, self._index.key(row)
        location = self._log.find(key)
        if location is None or key in self._reading:
            if location is None:
                self.dropped([key])
            return None
        self._reading[key] = index.parent[row]
        index.num_memory_children[index.parent[row]] += 1
        slot = self._memory.allocate(scope)
        if slot is None:
            self._unpin_parent(key)
            return None
        view = self._memory.arena.view(slot, scope.block_bytes)
        outcome: Future[bool] = Future()
        reading = self._log.read(location, view)
        reading.add_done_callback(lambda done: self._post(partial(self._arrived, key, slot, scope, done, outcome)))
        return outcome

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
        self._unpin_parent(self._index.key(row))
        if self._index.on_disk[row]:
            self._remove(row)

    def forget_pin(self, key: bytes) -> None:
        """The block is removed although it is being written; its memory is not used again before the write ends."""
        self._pinned.pop(key, None)

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
        self._closed = True
        self._log.close()

    def _written(self, key: bytes, done: Future[Location]) -> None:
        self._note_written(key, done)
        while self._backlog and len(self._pinned) < MAX_WRITES and not self._closed:
            row = self._index.find(self._backlog.popleft())
            if row and self._index.slot[row] != NO_SLOT and not self._index.on_disk[row]:
                self._start_write(row, self._scopes.numbered(self._index.scope[row]))

    def _note_written(self, key: bytes, done: Future[Location]) -> None:
        index, row = self._index, self._pinned.pop(key, 0)
        written = not done.cancelled() and done.exception() is None
        if not row:  # removed meanwhile
            if written and not index.find(key):
                self._log.remove(key)
            return
        index.num_leases[row] -= 1
        parent = index.parent[row]
        if written and parent and not index.on_disk[parent] and index.key(parent) not in self._pinned:
            self._log.remove(key)
        elif written:
            index.set_on_disk(row, True)
            self._counters.add("demoted")
            self._events.publish([Stored((key,), self._parent_key(row), DISK, self._tenant(row))])
        else:  # what follows a block that is not on disk is of no use there
            for each in index.subtree(row)[1:]:
                if index.on_disk[each] and index.slot[each] != NO_SLOT:
                    self._remove(each)

    def _arrived(self, key: bytes, slot: int, scope: Scope, done: Future[int], outcome: Future[bool]) -> None:
        index, arena = self._index, self._memory.arena
        if self._closed:
            outcome.set_result(False)
            return
        row = index.find(key) if self._unpin_parent(key) else 0
        error = None if done.cancelled() else done.exception()
        shown = False
        if isinstance(error, Corrupt | Gone):
            self._counters.add("checksum_failures_disk", isinstance(error, Corrupt))
            self.dropped([key])
        elif error is None and not done.cancelled() and row and index.slot[row] == NO_SLOT and index.on_disk[row]:
            index.checksum[row] = done.result()
            self._memory.add(row, scope, slot)
            self._counters.add("promoted")
            self._events.publish([Stored((key,), self._parent_key(row), MEMORY, scope.tenant)])
            shown = True
        if not shown:
            arena.free(scope.pool, slot)
        outcome.set_result(shown)

    def _unpin_parent(self, key: bytes) -> bool:
        """Whether the block was being read."""
        parent = self._reading.pop(key, None)
        if parent is not None:
            self._index.num_memory_children[parent] -= 1
        return parent is not None

    def _remove(self, row: int) -> None:
        self._index.set_on_disk(row, False)
        self._log.remove(self._index.key(row))
        self._events.publish([Removed((self._index.key(row),), DISK, self._tenant(row))])

    def _tenant(self, row: int) -> str:
        return self._scopes.numbered(self._index.scope[row]).tenant

    def _parent_key(self, row: int) -> bytes:
        parent = self._index.parent[row]
        return self._index.key(parent) if parent else ROOT_PARENT

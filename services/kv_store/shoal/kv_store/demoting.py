"""Blocks on their way from memory to disk: as they are stored, and again when the disk took none for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from shoal.blocks import KEY_BYTES
from shoal.kv_store.counters import Counters
from shoal.kv_store.disk import Corrupt, DiskError, Location, Record, RecordMetadata, SegmentLog
from shoal.kv_store.events import DISK, EventHub, Stored
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.promoting import Post
from shoal.kv_store.scopes import Scope, Scopes

ROOT_PARENT: Final = bytes(KEY_BYTES)
"""What a record says of a chain's first block: namespaces are not needed to find it again."""
MAX_WRITES: Final = 8
"""Blocks being written, which stay in memory meanwhile."""
MAX_BACKLOG: Final = 4096
"""Blocks that wait for that, and may leave memory unwritten."""
MAX_OWED: Final = 16_384
"""Trees that are not on disk because it took no writes; the oldest are forgotten when there are more."""
MIN_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 60.0


class Demoting:
    """Writes of blocks. Belongs to the store's thread; the log's threads reach it through `post`.

    A block is of use on disk only when those before it are there. So the ones before it that are missing are offered
    with it, oldest first; and where the disk refused or failed, the topmost block of what is missing is remembered as
    owed, and offered again, one at first, once the disk has nothing to do: after 1 s, 2 s, ... up to a minute. When it
    gets there the rest of its tree, as far as it is in memory, follows. What the log itself dropped for room is not
    owed: to write it again would drop something else.
    """

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
        withdraw: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        """quota_bytes: most bytes on disk of a tenant's blocks. withdraw: takes a row's block off the disk."""
        self._log = log
        self._memory = memory
        self._index = index
        self._scopes = scopes
        self._events = events
        self._counters = counters
        self._post = post
        self._quota_bytes = quota_bytes
        self._withdraw = withdraw
        self._clock = clock
        self._pinned: dict[bytes, int] = {}
        """Key that is being written: its row, which has a lease."""
        self._backlog: dict[bytes, None] = {}
        self._owed: dict[bytes, None] = {}
        self._returning: set[bytes] = set()
        """Keys that were owed, and are being written or wait for it: what follows them comes after them."""
        self._behind = b""
        """The last block that was found to follow one that is owed."""
        self._retry_s = MIN_RETRY_S
        self._retry_at_s = 0.0
        self._closed = False

    @property
    def num_waiting(self) -> int:
        """Blocks being written, or waiting for that."""
        return len(self._pinned) + len(self._backlog)

    @property
    def num_owed(self) -> int:
        """Trees that are offered again later."""
        return len(self._owed)

    @property
    def pinned(self) -> Sequence[bytes]:
        """Blocks that are being written, which have a lease each."""
        return list(self._pinned)

    def write(self, row: int, scope: Scope) -> None:
        """Offers a block in memory, with those before it that are missing: written at once, later, or owed."""
        index, key = self._index, self._index.key(row)
        if not self._log.healthy:
            self._owe_backlog()
        missing, parent = [row], index.parent[row]
        while parent and not self._is_coming(parent):
            parent_key = index.key(parent)
            if parent_key == self._behind or parent_key in self._owed or index.slot[parent] == NO_SLOT:
                self._behind = key
                return
            missing.append(parent)
            parent = index.parent[parent]
        for each in reversed(missing):
            self._offer(each, scope)

    def is_within_quota(self, scope: Scope) -> bool:
        """Whether one more block of the tenant may be on disk."""
        index = self._index
        scopes = {each.number: each for each in self._scopes.of_tenant(scope.tenant)}
        used = sum(index.sizes[number].num_on_disk * each.block_bytes for number, each in scopes.items())
        writing = (scopes.get(index.scope[row]) for row in self._pinned.values())
        used += sum(each.block_bytes for each in writing if each is not None)
        return used + scope.block_bytes <= self._quota_bytes(scope.tenant)

    def retry(self) -> None:
        """Offers what is owed again, if the disk has nothing to do. Called about once a second."""
        if not self._owed or self.num_waiting or self._closed or self._clock() < self._retry_at_s:
            return
        if self._log.healthy:
            self._retry_at_s = self._clock() + self._retry_s
            self._offer_owed(1)

    def forget(self, key: bytes) -> None:
        """The block is removed although it is being written; its memory is not used again before the write ends."""
        self._pinned.pop(key, None)
        self._owed.pop(key, None)

    def close(self) -> None:
        """What was not written yet is not."""
        self._closed = True

    def _is_coming(self, row: int) -> bool:
        """Whether the block is on disk, or on its way."""
        if self._index.on_disk[row]:
            return True
        key = self._index.key(row)
        return key in self._pinned or key in self._backlog

    def _offer(self, row: int, scope: Scope) -> None:
        key = self._index.key(row)
        if not self._log.healthy:
            self._owe(key)
        elif len(self._pinned) < MAX_WRITES and not self._backlog:
            self._start(row, scope)
        elif len(self._backlog) < MAX_BACKLOG:
            self._backlog.setdefault(key)
        else:
            self._owe(key)

    def _start(self, row: int, scope: Scope) -> None:
        index = self._index
        key, parent = index.key(row), index.parent[row]
        if key in self._pinned or index.on_disk[row]:
            return
        if parent and not index.on_disk[parent] and index.key(parent) not in self._pinned:
            return  # a block whose parent is not on disk cannot be found there
        if not self.is_within_quota(scope):
            self._counters.add("refused_disk_quota")
            self._owe(key)
            return
        parent_key = index.key(parent) if parent else ROOT_PARENT
        metadata = RecordMetadata(key, parent_key, scope.fingerprint, scope.tenant, scope.block_bytes)
        payload = self._memory.arena.view(index.slot[row], scope.block_bytes)
        index.num_leases[row] += 1
        self._pinned[key] = row
        future = self._log.write(Record(metadata, payload, index.checksum[row]))
        future.add_done_callback(lambda done: self._post(partial(self._written, key, done)))

    def _owe(self, key: bytes) -> None:
        """Remembers a block, unless it follows another one that is owed."""
        row = self._index.find(key)
        parent = self._index.parent[row]
        self._returning.discard(key)
        if parent and not self._is_coming(parent):
            return
        self._owed.setdefault(key)
        if len(self._owed) > MAX_OWED:
            del self._owed[next(iter(self._owed))]
            self._behind = b""
            self._counters.add("disk_owed_forgotten")

    def _owe_backlog(self) -> None:
        backlog, self._backlog = self._backlog, {}
        for key in backlog:
            if self._index.find(key):
                self._owe(key)

    def _offer_owed(self, num: int) -> None:
        """The first ones that are still there and have room; what they followed may have changed."""
        self._behind = b""
        for key in list(self._owed):
            if not num:
                return
            del self._owed[key]
            row = self._index.find(key)
            if not row or self._index.slot[row] == NO_SLOT or self._index.on_disk[row]:
                continue
            scope = self._scopes.numbered(self._index.scope[row])
            num -= 1
            if self.is_within_quota(scope):
                self._returning.add(key)
                self._offer(row, scope)
            else:
                self._owed[key] = None  # last: others may have room

    def _written(self, key: bytes, done: Future[Location]) -> None:
        was_owed = key in self._returning
        self._returning.discard(key)
        is_there = self._note_written(key, done)
        if self._closed:
            return
        if was_owed:
            self._retry_s = MIN_RETRY_S if is_there else min(2 * self._retry_s, MAX_RETRY_S)
            if is_there:
                self._offer_followers(key)
                self._offer_owed(MAX_WRITES)
        while self._backlog and len(self._pinned) < MAX_WRITES:
            if not self._log.healthy:
                self._owe_backlog()
                break
            waiting = next(iter(self._backlog))
            del self._backlog[waiting]
            row = self._index.find(waiting)
            if row and self._index.slot[row] != NO_SLOT and not self._index.on_disk[row]:
                self._start(row, self._scopes.numbered(self._index.scope[row]))
            if waiting not in self._pinned:
                self._returning.discard(waiting)

    def _offer_followers(self, key: bytes) -> None:
        """What follows a block that was owed."""
        index = self._index
        scope = self._scopes.numbered(index.scope[index.find(key)])
        for row in index.children(index.find(key)):
            if index.slot[row] != NO_SLOT and not self._is_coming(row):
                self._returning.add(index.key(row))
                self._offer(row, scope)

    def _note_written(self, key: bytes, done: Future[Location]) -> bool:
        """Whether the block is on disk from here on."""
        index, row = self._index, self._pinned.pop(key, 0)
        error = None if done.cancelled() else done.exception()
        is_written = error is None and not done.cancelled()
        if not row:  # removed meanwhile
            if is_written and not index.find(key):
                self._log.remove(key)
            return False
        index.num_leases[row] -= 1
        parent = index.parent[row]
        if is_written and parent and not index.on_disk[parent] and index.key(parent) not in self._pinned:
            self._log.remove(key)
            return False
        if is_written:
            index.set_on_disk(row, True)
            self._owed.pop(key, None)
            self._counters.add("demoted")
            parent_key = index.key(parent) if parent else ROOT_PARENT
            tenant = self._scopes.numbered(index.scope[row]).tenant
            self._events.publish([Stored((key,), parent_key, DISK, tenant)])
            return True
        for each in index.subtree(row)[1:]:  # what follows a block that is not on disk is of no use there
            if index.on_disk[each] and index.slot[each] != NO_SLOT:
                self._withdraw(each)
        if isinstance(error, DiskError) and not isinstance(error, Corrupt):
            self._owe(key)
        return False

"""Blocks on their way from disk back to memory: any number may be asked for, a few are read at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from shoal.kv_store.counters import Counters
from shoal.kv_store.disk import Corrupt, Gone, SegmentLog
from shoal.kv_store.events import MEMORY, EventHub, Stored
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.scopes import Scope

MAX_WANTED: Final = 1 << 16
"""Blocks that are being read or wait for that; further ones are not read."""
Post = Callable[[Callable[[], None]], None]
"""Runs something on the store's thread, soon. Called from any thread."""


@dataclass(slots=True, eq=False)
class _Wanted:
    """One block that somebody waits for."""

    key: bytes
    scope: Scope
    parent: int
    """Its row, which stays in memory meanwhile."""
    deadline_s: float
    """It is not begun any more after that; the latest of those who asked."""
    outcome: Future[bool] = field(default_factory=Future)


class Promoting:
    """Reads of blocks into slots. Belongs to the store's thread; the log's threads reach it through `post`.

    At most `log.read_window` are with the log at a time, so that its queue never refuses any, and each gets its slot,
    for which another block may have to go, only then. Calls take turns: a long chain does not hold up a short one. A
    block that is on its way already is waited for by all who ask.
    """

    def __init__(
        self,
        log: SegmentLog,
        memory: MemoryTier,
        index: BlockIndex,
        events: EventHub,
        counters: Counters,
        post: Post,
        dropped: Callable[[Sequence[bytes]], None],
        clock: Callable[[], float],
    ) -> None:
        """dropped: told of blocks that the log turned out not to have."""
        self._log = log
        self._memory = memory
        self._index = index
        self._events = events
        self._counters = counters
        self._post = post
        self._dropped = dropped
        self._clock = clock
        self._wanted: dict[bytes, _Wanted] = {}
        self._calls: deque[deque[_Wanted]] = deque()
        """What each call waits for that is not begun, in order of the chain."""
        self._num_begun = 0
        self._closed = False

    def read(self, rows: Sequence[int], scope: Scope, deadline_s: float) -> list[Future[bool]]:
        """Begins to bring blocks back that follow each other; whether each came, some time after `deadline_s` at most.

        Of leading ones only: those after one that is not on disk either are left out.
        """
        outcomes: list[Future[bool]] = []
        call: deque[_Wanted] = deque()
        for row in rows:
            key = self._index.key(row)
            wanted = self._wanted.get(key)
            if wanted is not None:
                wanted.deadline_s = max(wanted.deadline_s, deadline_s)
            elif not self._index.on_disk[row] or len(self._wanted) >= MAX_WANTED or self._closed:
                break
            else:
                wanted = _Wanted(key, scope, self._index.parent[row], deadline_s)
                wanted.outcome.set_running_or_notify_cancel()  # others may wait for it as well: nobody cancels it
                self._index.num_memory_children[wanted.parent] += 1
                self._wanted[key] = wanted
                call.append(wanted)
            outcomes.append(wanted.outcome)
        if call:
            self._calls.append(call)
            self._begin()
        return outcomes

    def forget(self, key: bytes) -> None:
        """The block leaves the index: what arrives of it is thrown away."""
        wanted = self._wanted.pop(key, None)
        if wanted is not None:
            self._index.num_memory_children[wanted.parent] -= 1

    def close(self) -> None:
        """Begins nothing more, and ends what waits."""
        self._closed = True
        waiting, self._calls = self._calls, deque()
        for call in waiting:
            for wanted in call:
                self._end(wanted, shown=False)

    def parents(self) -> list[int]:
        """Rows that stay in memory because a block that follows them is on its way, once for each."""
        return [wanted.parent for wanted in self._wanted.values()]

    @property
    def num_slots(self) -> int:
        """Slots that blocks are being read into."""
        return self._num_begun

    def _begin(self) -> None:
        """Hands the log as many as it should have."""
        while self._calls and self._num_begun < self._log.read_window and not self._closed:
            call = self._calls.popleft()
            if not self._begin_one(call.popleft()):
                for each in call:  # what follows a block that does not come is of no use
                    self._end(each, shown=False)
            elif call:
                self._calls.append(call)

    def _begin_one(self, wanted: _Wanted) -> bool:
        """Begins a read, unless nobody wants it any more; False when what follows cannot come either."""
        index, key = self._index, wanted.key
        if self._wanted.get(key) is not wanted or self._clock() >= wanted.deadline_s:
            self._end(wanted, shown=False)
            return True
        row = index.find(key)
        if index.slot[row] != NO_SLOT:  # moved in some other way meanwhile
            self._end(wanted, shown=True)
            return True
        if not self._log.readable or not self._start(wanted):
            self._end(wanted, shown=False)
            return False
        return True

    def _start(self, wanted: _Wanted) -> bool:
        """Whether the block is being read from here on."""
        key = wanted.key
        location = self._log.find(key)
        if location is None:
            self._dropped([key])
            return False
        slot = self._memory.allocate(wanted.scope)
        if slot is None:
            return False
        self._num_begun += 1
        view = self._memory.arena.view(slot, wanted.scope.block_bytes)
        reading = self._log.read(location, view)
        reading.add_done_callback(lambda done: self._post(partial(self._arrived, wanted, slot, done)))
        return True

    def _arrived(self, wanted: _Wanted, slot: int, done: Future[int]) -> None:
        self._num_begun -= 1
        if self._closed:
            wanted.outcome.set_result(False)
            return
        index, key, scope = self._index, wanted.key, wanted.scope
        row = index.find(key) if self._wanted.get(key) is wanted else 0
        error = None if done.cancelled() else done.exception()
        is_read = error is None and not done.cancelled()
        shown = bool(is_read and row and index.slot[row] == NO_SLOT and index.on_disk[row])
        if shown:
            index.checksum[row] = done.result()
            self._memory.add(row, scope, slot)
            self._counters.add("promoted")
            parent = index.parent[row]
            parent_key = index.key(parent) if parent else bytes(len(key))
            self._events.publish([Stored((key,), parent_key, MEMORY, scope.tenant)])
        else:
            self._memory.arena.free(scope.pool, slot)
        self._end(wanted, shown=shown)
        if isinstance(error, Corrupt | Gone):
            self._counters.add("checksum_failures_disk", isinstance(error, Corrupt))
            self._dropped([key])
        self._begin()

    def _end(self, wanted: _Wanted, *, shown: bool) -> None:
        if self._wanted.get(wanted.key) is wanted:
            self.forget(wanted.key)
        if not wanted.outcome.done():
            wanted.outcome.set_result(shown)

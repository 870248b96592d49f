"""The thread that stores blocks while the device goes on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from shoal.kv_client import KvClient
from shoal.kv_client.answers import PRESENT, status_name
from shoal.kv_client.writes import Reserved
from shoal.model_worker.kv_offload.guarding import ERROR, Guard, tell
from shoal.model_worker.kv_offload.memory import KvMemory
from shoal.model_worker.kv_offload.sessions import Sessions
from shoal.model_worker.kv_offload.stats import KvStoreStats

_NAP_S: Final = 0.5e-3
_MAX_NAPS: Final = 20
EVICTED: Final = "evicted"
"""The device gave the block out anew before it was copied."""

UNFIT: Final = "unfit"
"""The codec cannot hold a value of the block: it is not finite."""
STORE: Final = "store"
"""There is none that answers."""
ORPHAN: Final = "orphan"
"""The store gave up the block before it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks of one chain, in order, that can be found on the device."""

    tenant: str
    namespace_key: bytes
    parent_key: bytes
    keys: Sequence[bytes]
    block_ids: Sequence[int]
    versions: Sequence[int]
    """`KVCacheManager.version_of` each block when the run was made: later ones hold something else."""
    cost_s: float
    """What computing a block again takes."""


class WriteBack:
    """A bounded queue of runs and a thread that empties it. A block may be given out anew while it is stored: what was
    read then is not published."""

    def __init__(
        self,
        sessions: Sessions,
        memory: KvMemory,
        stats: KvStoreStats,
        version_of: Callable[[int], int],
        max_queued_blocks: int,
        patience_s: float,
        idle: Callable[[], None],
        is_urgent: Callable[[], bool],
    ) -> None:
        """version_of: see `KVCacheManager.version_of`. patience_s: how long a run waits while the device computes.
        idle: called in its thread when nothing is queued any more. is_urgent: whether somebody waits for an answer of
        the store, who then goes first."""
        self.patience_s = patience_s
        self._is_computing = self._is_hurried = False
        self._idle = idle
        self._is_urgent = is_urgent
        self._sessions = sessions
        self._memory = memory
        self._stats = stats
        self._version_of = version_of
        self._max_queued_blocks = max_queued_blocks
        self._runs: deque[tuple[Run, float]] = deque()
        """With the time when each was posted."""
        self._lost: deque[tuple[int, int]] = deque(maxlen=max_queued_blocks)
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_ending = False
        self._num_queued = 0
        self._guard = Guard("store", sessions, stats)
        self._thread = threading.Thread(target=self._work, name="kv writer", daemon=True)
        self._thread.start()

    @property
    def num_queued_blocks(self) -> int:
        """Blocks that wait, or are being stored."""
        return self._num_queued

    @property
    def room(self) -> int:
        """Blocks that may be posted."""
        return self._max_queued_blocks - self._num_queued

    def post(self, run: Run) -> None:
        """Queues a run, for which there has to be room. Never waits. By one thread, so that the room stays."""
        with self._changed:
            self._num_queued += len(run.keys)
            self._runs.append((run, time.monotonic()))
            self._changed.notify()

    def note_computing(self, is_computing: bool) -> None:
        """Whether the device computes: then runs wait, but not for longer than the patience."""
        if is_computing is not self._is_computing:
            with self._changed:
                self._is_computing = is_computing
                self._changed.notify()

    def hurry(self) -> None:
        """Nothing that is queued waits: the device is about to give blocks up."""
        if not self._is_hurried:
            with self._changed:
                self._is_hurried = True
                self._changed.notify()

    def take_lost(self) -> list[tuple[int, int]]:
        """(block, version) of those that were dropped since the last call for want of a store, or of their parents in
        it: worth another attempt, unlike those that the store did not want."""
        return [self._lost.popleft() for _ in range(len(self._lost))]

    def flush(self, timeout_s: float) -> bool:
        """Stores what is queued without waiting for anything; whether that was done within the time. For tests and
        measurements."""
        self.hurry()
        with self._changed:
            return self._changed.wait_for(lambda: not self._runs and not self._is_busy, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Drops what is queued and ends the thread, if what it does ends within the time."""
        with self._changed:
            self._is_ending = True
            self._runs.clear()
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        """Whether its thread takes runs."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while (run := self._next()) is not None:
            start_s = time.monotonic()
            self._guard.attempt(partial(self._store, run), partial(self._end, run))
            self._stats.store_s += time.monotonic() - start_s
            with self._changed:
                self._num_queued -= len(run.keys)
                is_idle = not self._runs
            if is_idle:
                tell(self._idle)
        self._sessions.close()

    def _next(self) -> Run | None:
        """The oldest run, once its time has come; None at the end."""
        with self._changed:
            self._is_busy = False
            self._changed.notify_all()
            while not self._is_ending:
                wait_s: float | None = None
                if self._runs:
                    run, posted_s = self._runs[0]
                    wait_s = posted_s + self.patience_s - time.monotonic()
                    if wait_s <= 0 or self._is_hurried or not self._is_computing:
                        self._runs.popleft()
                        self._is_busy = True
                        return run
                else:
                    self._is_hurried = False
                self._changed.wait(wait_s)
        return None

    def _store(self, run: Run) -> None:
        """Stores a run in parts, as much as staging memory holds."""
        client = self._sessions.client(run.tenant)
        first, parent_key = 0, run.parent_key
        while first < len(run.keys) and not self._is_ending:
            self._let_pass()
            reserved = client.reserve(
                run.keys[first:], parent_key=parent_key, namespace_key=run.namespace_key, cost_s=run.cost_s
            )
            self._sessions.note(client)
            if reserved is None:
                self._drop(STORE if client.problem else "no_space", run, first)
                break
            stored, visible, reason = self._fill(client, run, first, reserved)
            self._stats.stored_blocks += stored
            self._stats.stored_bytes += stored * self._memory.block_bytes
            first += visible
            if first < len(run.keys) and (reason in (EVICTED, UNFIT) or not visible):
                self._drop(reason, run, first)
                break
            parent_key = run.keys[first - 1]

    def _end(self, run: Run, is_done: bool) -> None:
        if not is_done:
            self._drop(ERROR, run, 0)

    def _let_pass(self) -> None:
        for _ in range(_MAX_NAPS):
            if not self._is_urgent():
                return
            time.sleep(_NAP_S)

    def _fill(self, client: KvClient, run: Run, first: int, reserved: Reserved) -> tuple[int, int, str]:
        """Copies what was reserved and has it published: blocks stored, leading blocks visible, why not more."""
        positions = list(reserved.addresses)
        checksums, problem = self._copy(run, first, reserved)
        written = replace(reserved, addresses={at: reserved.addresses[at] for at in checksums})
        statuses = client.commit(written, checksums)
        if left := positions[len(checksums) :]:
            client.abandon(replace(reserved, addresses={at: reserved.addresses[at] for at in left}))
        self._sessions.note(client)
        num_stored = sum(statuses[at] == PRESENT for at in checksums)
        num_visible = next((at for at, status in enumerate(statuses) if status != PRESENT), len(statuses))
        if left:
            return num_stored, num_visible, problem
        failed = statuses[num_visible] if num_visible < len(statuses) else PRESENT
        return num_stored, num_visible, status_name(failed)

    def _copy(self, run: Run, first: int, reserved: Reserved) -> tuple[dict[int, int], str]:
        """Copies leading reserved blocks, up to one that cannot be; their checksums, and why not all."""
        positions = list(reserved.addresses)
        checksums: dict[int, int] = {}
        for start in range(0, len(positions), self._memory.blocks_at_once):
            part = positions[start : start + self._memory.blocks_at_once]
            block_ids = [run.block_ids[first + position] for position in part]
            addresses = [reserved.addresses[position] for position in part]
            sums = self._memory.store(block_ids, addresses, reserved.staging)
            for position, block_id, checksum in zip(part, block_ids, sums, strict=False):
                if self._version_of(block_id) != run.versions[first + position]:
                    return checksums, EVICTED
                checksums[position] = checksum
            if len(sums) < len(part):
                return checksums, UNFIT
        return checksums, ""

    def _drop(self, reason: str, run: Run, first: int) -> None:
        self._stats.count(self._stats.dropped_blocks, reason, len(run.keys) - first)
        if reason in (STORE, ORPHAN, ERROR):
            self._lost.extend(zip(run.block_ids[first:], run.versions[first:], strict=True))

"""What all parts of a segment log share: its lock, files, index and segments, and how room for a record is found."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from shoal.kv_store.disk.admission import WriteAdmission
from shoal.kv_store.disk.errors import IoFailed, NotAdmitted
from shoal.kv_store.disk.files import Files, write_all
from shoal.kv_store.disk.health import CORRUPTION_WEIGHT, Health
from shoal.kv_store.disk.index import NO_ROW, Entry, Index
from shoal.kv_store.disk.layout import ALIGNMENT, SegmentHeader, new_nonce, pack_segment
from shoal.kv_store.disk.pool import IoContext, IoPool
from shoal.kv_store.disk.segments import Segment, SegmentState, SegmentTable
from shoal.kv_store.disk.stats import Counters

LOW_WATER_SEGMENTS: Final = 2
"""Segments kept free: one to go on with, and one into which reclaiming may move blocks."""
_GROW_RETRY_S: Final = 60.0
_SPACE_WAIT_S: Final = 1.0


class Codec(Protocol):
    """Stores payloads in fewer bytes, losslessly. Thread-safe."""

    @property
    def number(self) -> int:
        """Names the codec in records; 1 to 255."""

    def encode(self, payload: memoryview) -> bytes | None:
        """The stored form, None if it would not be smaller."""

    def decode(self, stored: memoryview, payload_bytes: int) -> bytes:
        """What was encoded. Raises ValueError if that has not `payload_bytes` bytes, or the form is broken."""


@dataclass(frozen=True, slots=True)
class Held:
    """A live block and the segment it lies in, which is held."""

    row: int
    entry: Entry
    segment: Segment


class Volume:
    """State under one lock. Methods say whether they take it or expect it taken."""

    def __init__(
        self, files: Files, pool: IoPool, health: Health, segments: SegmentTable, max_rows: int, max_names: int
    ) -> None:
        self.files = files
        self.pool = pool
        self.health = health
        self.segments = segments
        self.max_rows = max_rows
        self.max_names = max_names
        self.index = Index(max_names)
        self.counters = Counters()
        self.admission = WriteAdmission(time.monotonic)
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        """Room was made, or a segment was opened, or cannot be."""
        self.wanted = threading.Condition(self.lock)
        """Maintenance has something to do."""
        self.direct = True
        self.dirty_bytes = 0
        """Written or dropped since the last checkpoint."""
        self._opener: IoContext | None = None
        self._grow_after_s = 0.0

    # --- under the lock -------------------------------------------------------------------------------------------

    def needs_reclaim(self) -> bool:
        """Whether there are too few free segments, or too many rows. Lock taken."""
        few = self.segments.num_available - self._num_not_growable() < LOW_WATER_SEGMENTS
        return few or self.index.num_used_rows >= self.max_rows

    def kill(self, row: int) -> None:
        """Drops a live block; frees its segment when that was the last one. Lock taken."""
        entry = self.index.entry(row)
        segment = self.segments.by_slot[entry.slot]
        self.index.kill(row)
        segment.live_bytes -= entry.record_bytes
        segment.num_live -= 1
        self.dirty_bytes += 1
        if not segment.num_live and segment.state is SegmentState.SEALED and not segment.in_flight:
            self.empty(segment)

    def empty(self, segment: Segment) -> None:
        """Drops what lives in a segment and frees it. Lock taken."""
        self.index.free_chain(segment.head_row)
        self.segments.empty(segment)
        self.dirty_bytes += 1
        self.changed.notify_all()

    def publish(self, entry: Entry, segment: Segment) -> None:
        """Makes a written record findable; an older one of its key is dropped. Lock taken."""
        older = self.index.find(entry.metadata.key)
        if older != NO_ROW:
            self.kill(older)
        segment.head_row = self.index.insert(entry, segment.head_row)
        segment.live_bytes += entry.record_bytes
        segment.num_live += 1
        self.dirty_bytes += entry.record_bytes

    def hold(self, key: bytes) -> Held | None:
        """The live block of `key` with its segment held, or None. Lock taken. Ends with `release`."""
        row = self.index.find(key)
        if row == NO_ROW:
            return None
        entry = self.index.entry(row)
        segment = self.segments.by_slot[entry.slot]
        segment.num_holds += 1
        return Held(row, entry, segment)

    # --- taking the lock ------------------------------------------------------------------------------------------

    def release(self, segment: Segment) -> None:
        """Ends a hold."""
        with self.lock:
            segment.num_holds -= 1
            self.changed.notify_all()

    def settle(self, segment: Segment, offset_bytes: int) -> None:
        """Ends a reservation."""
        with self.lock:
            self.segments.settle(segment, offset_bytes)
            if not segment.num_live and segment.state is SegmentState.SEALED and not segment.in_flight:
                self.empty(segment)
            self.changed.notify_all()

    def suspect(self, segment: Segment, nonce: bytes) -> None:
        """A sync of a segment failed, or hangs: nothing that is not durable yet is ever taken for it in this use."""
        with self.lock:
            if segment.nonce == nonce:
                segment.suspect = True

    def drop_corrupt(self, held: Held) -> None:
        """Drops a block whose bytes are wrong, unless it has been replaced meanwhile."""
        with self.lock:
            self.counters.num_corrupt += 1
            if self.index.is_live(held.row) and self.index.entry(held.row)[:3] == held.entry[:3]:
                self.kill(held.row)
        self.health.reads.fail("blocks read are not those written", weight=CORRUPTION_WEIGHT)
        self.wake()

    def timed(self, lane: str, call: Callable[[], None], num_bytes: int) -> None:
        """Makes a system call that moves `num_bytes`; a failure is counted and raised as IoFailed."""
        start_s = time.perf_counter()
        try:
            call()
        except OSError as error:
            self.note_error(lane, error)
            raise IoFailed(f"a {lane} failed: {error.strerror or error}") from error
        duration_s = time.perf_counter() - start_s
        with self.lock:
            latency = self.admission.reads if lane == "read" else self.admission.writes
            opened = self.segments.open
            latency.observe(duration_s, num_bytes, beside_writes=opened is not None and bool(opened.in_flight))

    def note_error(self, lane: str, error: OSError) -> None:
        """Counts a failed system call."""
        with self.lock:
            self.counters.num_io_errors += 1
        self.health.failed(lane, error)
        self.wake()  # a probe may be due

    def wake(self) -> None:
        """Lets those look again who wait: for a thread that was written off, or for something to do."""
        with self.lock:
            self.changed.notify_all()
            self.wanted.notify_all()

    def reserve(self, context: IoContext, num_bytes: int, moving: bool = False) -> tuple[Segment, int]:
        """Room for a record, in a segment that is opened if need be. Ends with `settle`.

        Waits up to a second for reclaiming, except when `moving`, which may take the last free segment instead.
        Raises NotAdmitted("no_space"), IoFailed.
        """
        give_up_s = time.monotonic() + min(_SPACE_WAIT_S, context.spare_s)
        while True:
            with self.lock:
                if self.segments.fits(num_bytes):
                    return self.segments.reserve(num_bytes)
                segment = None
                if self._opener is None or self._opener.is_abandoned:
                    segment = self._take_free(1 if moving else LOW_WATER_SEGMENTS)
                if segment is not None:
                    self._opener = context
                else:
                    self.wanted.notify_all()
                    wait_s = give_up_s - time.monotonic()
                    if moving or wait_s <= 0 or not self.changed.wait(wait_s):
                        raise NotAdmitted("no_space", "no segment is free")
                    continue
            self._open(context, segment)

    # --- opening a segment ----------------------------------------------------------------------------------------

    def _num_not_growable(self) -> int:
        if time.monotonic() >= self._grow_after_s:
            return 0
        return self.segments.max_segments - len(self.segments.by_slot)

    def _take_free(self, min_available: int) -> Segment | None:
        """A segment to open, held. Lock taken."""
        if self.segments.num_available - self._num_not_growable() < min_available:
            return None
        free = self.segments.free_segments()
        slot = None if self._num_not_growable() else self.segments.unused_slot()
        if slot is not None and (not free or len(self.segments.by_slot) < LOW_WATER_SEGMENTS):
            segment = Segment(slot, fd=-1)
            self.segments.add(segment)
        elif free:
            segment = min(free, key=lambda candidate: candidate.sequence)
        else:
            return None
        self.segments.begin(segment, new_nonce())
        segment.num_holds += 1
        return segment

    def _open(self, context: IoContext, segment: Segment) -> None:
        """Writes and syncs the header: from then on no record of the earlier use is taken for one."""
        opened = False
        try:
            if segment.fd < 0:
                self._create(segment)
            buffer = context.buffer(ALIGNMENT)
            header = pack_segment(SegmentHeader(segment.nonce, segment.sequence, self.segments.segment_bytes))
            buffer.view[:ALIGNMENT] = header
            write_all(self.files, segment.fd, buffer.view[:ALIGNMENT], 0, ALIGNMENT)
            self.files.fdatasync(segment.fd)
            opened = not context.is_abandoned
        except OSError as error:
            if error.errno != errno.ENOSPC:
                self.note_error("write", error)
                raise IoFailed(f"a segment could not be opened: {error.strerror or error}") from error
            raise NotAdmitted("disk_full", "the file system has no room for another segment") from error
        finally:
            self._finish_open(context, segment, opened)

    def _finish_open(self, context: IoContext, segment: Segment, opened: bool) -> None:
        with self.lock:
            if self._opener is context:
                self._opener = None
            segment.num_holds -= 1
            segment.state = SegmentState.OPEN if opened else SegmentState.FREE
            if opened:
                self.segments.seal()
                self.segments.open = segment
                self.wanted.notify_all()
            elif segment.fd < 0:
                del self.segments.by_slot[segment.slot]
            self.changed.notify_all()

    def _create(self, segment: Segment) -> None:
        path = self.segments.path(segment.slot)
        fd = self.files.open(path, create=True, direct=self.direct)
        try:
            self.files.allocate(fd, self.segments.segment_bytes)
        except OSError as error:
            self.files.close(fd)
            self.files.unlink(path)
            if error.errno == errno.ENOSPC:
                self._grow_after_s = time.monotonic() + _GROW_RETRY_S
            raise
        segment.fd = fd

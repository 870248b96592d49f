"""`SegmentLog`: the tier as its owner sees it. The package's docstring states what it promises."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from shoal.kv_store.disk.codec import decoders
from shoal.kv_store.disk.errors import Corrupt, DiskError, Gone, NotAdmitted, OutOfService
from shoal.kv_store.disk.files import Files
from shoal.kv_store.disk.futures import done, failed, follow
from shoal.kv_store.disk.health import Health
from shoal.kv_store.disk.index import NO_ROW, Entry
from shoal.kv_store.disk.layout import ALIGNMENT, RecordMetadata, check_metadata
from shoal.kv_store.disk.maintenance import Maintenance
from shoal.kv_store.disk.pool import IoContext, IoPool
from shoal.kv_store.disk.probing import lock_folder, probe_direct
from shoal.kv_store.disk.reclaim import OldestFirst, Reclaimer, Retention
from shoal.kv_store.disk.recovery import Recovery
from shoal.kv_store.disk.segments import SegmentTable
from shoal.kv_store.disk.sizing import LogOptions, plan_sizes
from shoal.kv_store.disk.stats import DiskStats, snapshot
from shoal.kv_store.disk.transfer import Record, Transfer
from shoal.kv_store.disk.volume import Volume

_READS_PER_THREAD: Final = 4  # one that runs, and three to go on with while the owner's thread does something else
_REPLAY_ROWS: Final = 512  # objects that die young cost the collector nothing, and the lock is held for 1 ms


class Location(NamedTuple):
    """Where a block was when somebody asked. It may be moved meanwhile: `read` finds it by its key."""

    key: bytes
    sequence: int
    """Number of the segment's use; later ones are greater."""
    offset_bytes: int


class SegmentLog:
    """Blocks in segments on one disk. Thread-safe. Futures end in a thread of the pool; callbacks must be short."""

    def __init__(
        self,
        folder: Path | str,
        capacity_bytes: int,
        segment_bytes: int = 256 << 20,
        io_timeout_s: float = 5.0,
        *,
        options: LogOptions | None = None,
        retention: Retention | None = None,
        files: Files | None = None,
    ) -> None:
        """Opens `folder`, made if it is missing, and recovers what is in it; at most `options.recovery_timeout_s`.

        The folder never takes more than `capacity_bytes`. Raises ValueError for sizes that do not work, OutOfService
        when another process has the folder or the disk does not answer or cannot be written.
        """
        self._options = options = options or LogOptions()
        self._retention = retention or OldestFirst()
        max_rows, max_names, max_segments, max_checkpoint = plan_sizes(capacity_bytes, segment_bytes, options)
        self._files = files or Files()
        self._health = Health(time.monotonic)
        self._pool = IoPool(
            options.num_threads, options.max_lost_threads, options.max_queued, io_timeout_s, self._note_stall
        )
        segments = SegmentTable(Path(folder), max_segments, segment_bytes)
        self._volume = Volume(self._files, self._pool, self._health, segments, max_rows, max_names)
        known = decoders() | ({options.codec.number: options.codec} if options.codec else {})
        self._transfer = Transfer(self._volume, options.codec, known)
        self._pending: dict[bytes, Future[Location]] = {}
        self._closed = False
        self._lock_fd = -1
        try:
            self._lock_fd = lock_folder(self._files, self._pool, segments.folder)
            self._volume.direct = self._pool.submit(
                lambda _: probe_direct(self._files, segments.folder), "read"
            ).result()
            verify_bytes = 2 * (options.checkpoint_bytes + segment_bytes)
            Recovery(self._volume, options.recovery_timeout_s, verify_bytes, max_checkpoint).run()
        except (DiskError, OSError) as error:
            self._pool.close(self._close_files)
            raise OutOfService(f"the disk tier in {folder} cannot be opened: {error}") from error
        reclaimer = Reclaimer(self._volume, self._transfer, self._retention)
        self._maintenance = Maintenance(
            self._volume, reclaimer, options.checkpoint_interval_s, options.checkpoint_bytes
        )

    # --- blocks ---------------------------------------------------------------------------------------------------

    def write(self, record: Record) -> Future[Location]:
        """Writes a block; found by others when the future is done, and from then on it survives the process.

        The payload's memory must not change until then; cancelling does not end the use of it. The future fails with
        NotAdmitted, OutOfService, Stalled, Expired, IoFailed, or Corrupt when the payload has not `payload_crc`. A
        block that is there, or on its way, is not written twice. Raises ValueError for a record that can never
        be written.
        """
        metadata = record.metadata
        self._check(record)
        with self._volume.lock:
            entry = self._find(metadata.key)
            if entry is not None and entry.metadata == metadata:
                self._volume.counters.num_duplicates += 1
                return done(self._location(entry))
            if metadata.key in self._pending:
                self._volume.counters.num_duplicates += 1
                return follow(self._pending[metadata.key])
            refusal = self._refusal(metadata)
            if refusal is not None:
                if isinstance(refusal, NotAdmitted):
                    self._volume.counters.num_refused[refusal.reason] += 1
                return failed(refusal)
            future = self._pool.submit(partial(self._write, record), "write", on_stall=self._volume.wake)
            self._pending[metadata.key] = future
        future.add_done_callback(partial(self._forget_pending, metadata.key))
        return future

    def read(self, location: Location, into: memoryview, timeout_s: float | None = None) -> Future[int]:
        """Fills `into`, as large as the payload, and gives the payload's CRC32C, verified.

        Memory and cancelling as in `write`; after a failure the content of `into` is undefined. The future fails with
        Gone, Corrupt (the block is dropped), Stalled, Expired, IoFailed, NotAdmitted or OutOfService. Raises ValueError
        when the block is there and `into` has another size, or is read-only.
        """
        with self._volume.lock:
            entry = self._find(location.key)
        if entry is None:
            return failed(Gone("the block is not on disk"))
        if into.nbytes != entry.metadata.payload_bytes or into.readonly or not into.c_contiguous:
            raise ValueError(
                f"the block has {entry.metadata.payload_bytes} bytes; it cannot be read into {into.nbytes} bytes"
                + (" that are read-only" if into.readonly else "")
            )
        if not self._health.reads.closed:
            return failed(OutOfService(self._health.reason))
        return self._pool.submit(partial(self._read, location.key, into), "read", timeout_s)

    def find(self, key: bytes) -> Location | None:
        """Where the block of `key` is, None if it is not on disk. A microsecond or two, no I/O."""
        with self._volume.lock:
            entry = self._find(key)
            return None if entry is None else self._location(entry)

    def num_leading(self, keys: Sequence[bytes]) -> int:
        """How many of `keys`, from the first on, are on disk; less than a microsecond each."""
        with self._volume.lock:
            return self._volume.index.num_leading(keys)

    def metadata(self, key: bytes) -> RecordMetadata | None:
        """What is known of the block without reading it."""
        with self._volume.lock:
            entry = self._find(key)
        return None if entry is None else entry.metadata

    def remove(self, key: bytes) -> bool:
        """Drops the block of `key`; whether it was there. Durable with the next checkpoint: a crash before may bring
        back the block, never other bytes. A write of it that is on its way is not affected.
        """
        with self._volume.lock:
            row = self._volume.index.find(key)
            if row == NO_ROW:
                return False
            self._volume.kill(row)
            return True

    def replay(self) -> Iterator[tuple[RecordMetadata, Location]]:
        """All blocks, oldest segment first, in the order they were written. For the owner's index when it starts;
        blocks written, moved or removed meanwhile may or may not be among them.
        """
        volume = self._volume
        with volume.lock:
            segments = sorted(volume.segments.by_slot.values(), key=lambda segment: segment.sequence)
        for segment in segments:
            with volume.lock:
                sequence, head_row = segment.sequence, segment.head_row
                rows = volume.index.rows_in(head_row)
            for start in range(0, len(rows), _REPLAY_ROWS):
                with volume.lock:
                    if segment.sequence != sequence or segment.head_row == NO_ROW:
                        break  # reclaimed meanwhile: its rows may be others by now
                    blocks = volume.index.blocks_of(rows[start : start + _REPLAY_ROWS])
                for metadata, offset_bytes in blocks:
                    yield metadata, tuple.__new__(Location, (metadata.key, sequence, offset_bytes))

    def __len__(self) -> int:
        return self._volume.index.num_live

    # --- state ----------------------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether reads and writes are in service."""
        return self._health.healthy and not self._pool.exhausted

    @property
    def readable(self) -> bool:
        """Whether reads are in service; a disk that takes no writes may still have what it has."""
        return self._health.reads.closed and not self._pool.exhausted

    @property
    def reason(self) -> str:
        """What is out of service and why; empty while healthy."""
        if self._pool.exhausted:
            return f"{self._pool.num_lost} threads wait in system calls that do not return"
        return self._health.reason

    @property
    def read_window(self) -> int:
        """Reads that keep the disk busy and are never refused for want of room, if others ask for few at a time."""
        return min(_READS_PER_THREAD * self._options.num_threads, self._options.max_queued)

    def expected_read_s(self, num_bytes: int) -> float:
        """What reading so much would take just now, queue included, from what recent reads took; 0 before any."""
        per_byte = self._volume.admission.reads.mean_s_per_byte
        return per_byte * num_bytes * (1 + self._pool.num_queued("read") / self._options.num_threads)

    def checkpoint(self) -> bool:
        """Makes everything written before the call durable, now; whether that succeeded. Blocks, with deadlines."""
        return self._maintenance.checkpoint()

    def stats(self) -> DiskStats:
        """A snapshot of counters and sizes."""
        return snapshot(self._volume)

    def close(self) -> None:
        """Ends what runs, writes a last checkpoint, and frees the folder. Bounded by the deadlines of its I/O.

        With calls that do not return, the folder stays locked, and its files open, until they do.
        """
        if self._closed:
            return
        self._closed = True
        self._maintenance.close()
        self._pool.close(self._close_files)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _write(self, record: Record, context: IoContext) -> Location:
        try:
            return self._location(self._transfer.write(context, record))
        except NotAdmitted as error:
            with self._volume.lock:
                self._volume.counters.num_refused[error.reason] += 1
            raise

    def _read(self, key: bytes, into: memoryview, context: IoContext) -> int:
        try:
            return self._transfer.read(context, key, into)
        except Corrupt:
            self._retention.dropped([key])
            raise

    def _find(self, key: bytes) -> Entry | None:
        row = self._volume.index.find(key)
        return None if row == NO_ROW else self._volume.index.entry(row)

    def _location(self, entry: Entry) -> Location:
        return Location(entry.metadata.key, self._volume.segments.by_slot[entry.slot].sequence, entry.offset_bytes)

    def _check(self, record: Record) -> None:
        check_metadata(record.metadata)
        num_bytes = memoryview(record.payload).nbytes
        if num_bytes != record.metadata.payload_bytes:
            raise ValueError(f"the payload has {num_bytes} bytes, its metadata says {record.metadata.payload_bytes}")
        limit = self._volume.segments.segment_bytes - 2 * ALIGNMENT
        if num_bytes > limit:
            raise ValueError(f"the payload has {num_bytes} bytes; with segments of this size at most {limit} fit")

    def _refusal(self, metadata: RecordMetadata) -> DiskError | None:
        """Why a write does not even queue. Lock taken."""
        volume = self._volume
        if self._closed:
            return OutOfService("the disk tier is closed")
        if not self._health.writes.closed:
            return OutOfService(self._health.reason)
        if volume.index.num_used_rows + len(self._pending) >= volume.max_rows:
            volume.wanted.notify_all()
            return NotAdmitted("index_full", f"there are {volume.max_rows} records, as many as the index has room for")
        if not volume.index.has_room_for_names(metadata):
            return NotAdmitted("too_many_tenants", f"blocks of {volume.max_names} tenants are on this disk")
        parent_is_here = metadata.parent in self._pending or volume.index.find(metadata.parent) != NO_ROW
        fill = self._pool.num_queued("write") / self._options.max_queued
        if not volume.admission.admit(
            metadata.key, metadata.parent, parent_is_here, fill, volume.counters.amplification
        ):
            return NotAdmitted("pressure", "the disk is busy")
        return None

    def _forget_pending(self, key: bytes, future: Future[Location]) -> None:
        with self._volume.lock:
            if self._pending.get(key) is future:
                del self._pending[key]

    def _note_stall(self, lane: str) -> None:
        with self._volume.lock:
            self._volume.counters.num_stalls += 1
        self._health.stalled(lane)
        self._volume.wake()

    def _close_files(self) -> None:
        for segment in self._volume.segments.by_slot.values():
            if segment.fd >= 0:
                with contextlib.suppress(OSError):
                    self._files.close(segment.fd)
        if self._lock_fd >= 0:
            self._files.close(self._lock_fd)

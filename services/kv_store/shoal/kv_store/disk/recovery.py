"""What a log finds when it is opened: segments, a checkpoint, and records written after it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

from shoal.checksum import crc32c
from shoal.kv_store.disk import checkpoint
from shoal.kv_store.disk.errors import DiskError, Expired
from shoal.kv_store.disk.files import read_all
from shoal.kv_store.disk.index import Entry
from shoal.kv_store.disk.layout import ALIGNMENT, RecordHeader, aligned, parse_record, parse_segment
from shoal.kv_store.disk.pool import IoContext
from shoal.kv_store.disk.segments import Segment, SegmentState, slot_of
from shoal.kv_store.disk.volume import Volume

_SEARCH_BYTES: Final = 1 << 18
_T = TypeVar("_T")


class Recovery:
    """Rebuilds a volume from its folder. Used once, before anybody else uses the volume.

    Every I/O has its deadline and the whole has one: of segments that were not looked at by then, or cannot be read to
    their end, what the checkpoint says is kept, and what was found before. What a checkpoint covers was synced
    before it. Of the rest the latest `verify_bytes` are read and verified; older records, which are scanned only when
    the checkpoint is lost, are verified when they are used.
    """

    def __init__(self, volume: Volume, timeout_s: float, verify_bytes: int, max_checkpoint_bytes: int) -> None:
        self._volume = volume
        self._deadline_s = time.monotonic() + timeout_s
        self._verify_bytes = verify_bytes
        self._max_checkpoint_bytes = max_checkpoint_bytes
        self._cut_short: set[Segment] = set()
        """Not read to their end: nothing is added to them."""
        self._chunk = b""
        self._chunk_offset = 0

    def run(self) -> None:
        """Fills index and segments. Raises DiskError or OSError when the folder cannot be read at all."""
        segments = self._volume.segments
        names = self._call(lambda: self._volume.files.names(segments.folder))
        if checkpoint.TEMPORARY_NAME in names:
            self._call(lambda: self._unlink(checkpoint.TEMPORARY_NAME))
        marks = self._load_checkpoint() if checkpoint.NAME in names else {}
        for name in sorted(names):
            slot = slot_of(name)
            if slot is not None:
                with contextlib.suppress(DiskError, OSError):  # what cannot be opened has no blocks
                    self._open_segment(slot, name)
        with self._volume.lock:
            starts = self._adopt(marks)
        verified = self._choose_verified(starts)
        for segment in sorted(starts, key=lambda segment: segment.sequence):
            self._scan_segment(segment, starts[segment], segment in verified)
        with self._volume.lock:
            self._settle()

    # --- files ----------------------------------------------------------------------------------------------------

    def _call(self, work: Callable[[], _T]) -> _T:
        return self._submit(lambda _: work())

    def _submit(self, work: Callable[[IoContext], _T]) -> _T:
        if time.monotonic() > self._deadline_s:
            raise Expired("recovery took too long; what was not read is given up")
        return self._volume.pool.submit(work, "read").result()

    def _unlink(self, name: str) -> None:
        self._volume.files.unlink(self._volume.segments.folder / name)

    def _load_checkpoint(self) -> dict[int, checkpoint.SegmentMark]:
        files = self._volume.files
        path = self._volume.segments.folder / checkpoint.NAME
        try:
            fd = self._call(lambda: files.open(path))
            num_bytes = self._call(lambda: files.size(fd))
            if num_bytes > self._max_checkpoint_bytes:
                raise ValueError("the checkpoint is larger than any")
            data = bytearray()
            while len(data) < num_bytes:
                step = min(checkpoint.CHUNK_BYTES, num_bytes - len(data))
                data += self._submit(partial(self._read, fd=fd, offset=len(data), num_bytes=step))
            self._call(lambda: files.close(fd))
            view = memoryview(data)
            index, marks = checkpoint.decode(view, self._volume.segments.segment_bytes, self._volume.max_names)
        except (ValueError, EOFError, OSError, DiskError):
            self._volume.counters.num_corrupt += 1
            return {}
        self._volume.index = index
        return {mark.slot: mark for mark in marks}

    def _read(self, context: IoContext, fd: int, offset: int, num_bytes: int) -> bytes:
        view = context.buffer(num_bytes).view[:num_bytes]
        read_all(self._volume.files, fd, view, offset, ALIGNMENT)
        return bytes(view)

    def _open_segment(self, slot: int, name: str) -> None:
        """Adds the segment, free or with its nonce; removes files of another size, and those beyond the capacity."""
        files, segments = self._volume.files, self._volume.segments
        path = segments.path(slot)
        if slot >= segments.max_segments or name != path.name:
            self._call(lambda: self._unlink(name))
            return
        fd = self._call(lambda: files.open(path, direct=self._volume.direct))
        num_bytes = self._call(lambda: files.size(fd))
        block = b""
        if num_bytes >= ALIGNMENT:
            block = self._submit(lambda context: self._read(context, fd, 0, ALIGNMENT))
        header = parse_segment(block) if block else None
        if num_bytes > segments.segment_bytes or (header and header.segment_bytes != segments.segment_bytes):
            self._call(lambda: files.close(fd))
            self._call(lambda: self._unlink(name))
            return
        if num_bytes < segments.segment_bytes:
            self._call(lambda: files.allocate(fd, segments.segment_bytes))
        segment = Segment(slot, fd)
        if header is not None:
            segment.nonce, segment.sequence, segment.state = header.nonce, header.sequence, SegmentState.OPEN
        segments.add(segment)

    # --- blocks ---------------------------------------------------------------------------------------------------

    def _adopt(self, marks: dict[int, checkpoint.SegmentMark]) -> dict[Segment, int]:
        """Takes what the checkpoint says of segments that are still in the same use; where to scan from in others."""
        volume = self._volume
        starts = {
            segment: ALIGNMENT for segment in volume.segments.by_slot.values() if segment.state is SegmentState.OPEN
        }
        foreign = []
        for mark in marks.values():
            segment = volume.segments.by_slot.get(mark.slot)
            if segment is None or segment not in starts or segment.nonce != mark.nonce:
                foreign.append(mark.head_row)
                continue
            segment.end_bytes = segment.synced_bytes = mark.synced_bytes
            segment.head_row, segment.live_bytes, segment.num_live = mark.head_row, mark.live_bytes, mark.num_live
            starts[segment] = mark.synced_bytes
            if mark.is_complete:
                del starts[segment]
        for head_row in foreign:
            volume.index.free_chain(head_row)
        for segment, start in starts.items():
            for row in list(volume.index.chain(segment.head_row)):
                if volume.index.is_live(row) and volume.index.entry(row).offset_bytes >= start:
                    volume.kill(row)
        return starts

    def _choose_verified(self, starts: dict[Segment, int]) -> set[Segment]:
        chosen: set[Segment] = set()
        num_bytes = 0
        for segment in sorted(starts, key=lambda segment: -segment.sequence):
            num_bytes += self._volume.segments.segment_bytes - starts[segment]
            if chosen and num_bytes > self._verify_bytes:
                break
            chosen.add(segment)
        return chosen

    def _scan_segment(self, segment: Segment, start: int, verify: bool) -> None:
        try:
            for header in self._scan(segment, start, verify):
                entry = Entry(header.metadata, segment.slot, header.offset_bytes, header.stored_bytes, 0)
                if self._volume.index.num_used_rows >= self._volume.max_rows:
                    break
                with self._volume.lock, contextlib.suppress(OverflowError):
                    self._volume.publish(entry, segment)
                segment.end_bytes = header.offset_bytes + header.record_bytes
        except (DiskError, OSError):  # what was found before, by the checkpoint or the scan, is there all the same
            with self._volume.lock:
                self._volume.counters.num_io_errors += 1
                self._cut_short.add(segment)

    def _scan(self, segment: Segment, start: int, verify: bool) -> Iterator[RecordHeader]:
        """Whole records from `start` on, in order of their place.

        A header is trusted for its length. Where there is none, the search goes on 4 KiB further: records after one
        that was torn, or that was still being written, are found.
        """
        position, step = start, ALIGNMENT
        while position + ALIGNMENT < self._volume.segments.segment_bytes:
            block = self._block(segment, position, step)
            if not block:
                self._volume.counters.num_torn += 1
                return
            header = parse_record(block, segment.nonce, position)
            if header is None:
                position, step = position + ALIGNMENT, _SEARCH_BYTES
                continue
            if position + header.record_bytes > self._volume.segments.segment_bytes:
                self._volume.counters.num_torn += 1
                return
            if not verify or self._stored_crc(segment, header) == header.stored_crc:
                yield header
            else:
                self._volume.counters.num_torn += 1
            position, step = position + header.record_bytes, ALIGNMENT

    def _block(self, segment: Segment, position: int, num_bytes: int) -> bytes:
        """The 4 KiB at `position`, from a chunk of `num_bytes` that is read if need be; empty at the file's end."""
        start = position - self._chunk_offset
        if num_bytes == ALIGNMENT or not 0 <= start < len(self._chunk):
            num_bytes = min(num_bytes, self._volume.segments.segment_bytes - position)
            try:
                self._chunk = self._submit(lambda context: self._read(context, segment.fd, position, num_bytes))
            except EOFError:
                return b""
            self._chunk_offset, start = position, 0
        return self._chunk[start : start + ALIGNMENT]

    def _stored_crc(self, segment: Segment, header: RecordHeader) -> int | None:
        def read(context: IoContext) -> int | None:
            view = context.buffer(header.record_bytes).view[: aligned(header.stored_bytes)]
            try:
                read_all(self._volume.files, segment.fd, view, header.offset_bytes + ALIGNMENT, ALIGNMENT)
            except EOFError:
                return None
            return crc32c(view[: header.stored_bytes])

        try:
            return self._submit(read)
        except OSError:  # those after it may be readable
            self._volume.counters.num_io_errors += 1
            return None

    def _settle(self) -> None:
        """Goes on with the latest segment if it has room; frees those in which nothing lives."""
        volume = self._volume
        used = [segment for segment in volume.segments.by_slot.values() if segment.state is SegmentState.OPEN]
        latest = max(used, key=lambda segment: segment.sequence, default=None)
        for segment in used:
            segment.state = SegmentState.SEALED
            if not segment.num_live:
                volume.empty(segment)
            elif (
                segment is latest
                and segment not in self._cut_short
                and segment.end_bytes + 2 * ALIGNMENT <= volume.segments.segment_bytes
            ):
                segment.state = SegmentState.OPEN
                volume.segments.open = segment
        volume.dirty_bytes = 1

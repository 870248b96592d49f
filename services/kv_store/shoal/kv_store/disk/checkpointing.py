"""Makes what is on disk durable: syncs segments, then replaces the checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from shoal.kv_store.disk import checkpoint
from shoal.kv_store.disk.errors import DiskError, Stalled
from shoal.kv_store.disk.files import write_all
from shoal.kv_store.disk.pool import IoContext
from shoal.kv_store.disk.segments import Segment, SegmentState
from shoal.kv_store.disk.volume import Volume


def write_checkpoint(volume: Volume) -> bool:
    """Syncs and checkpoints everything that was written before the call; whether it succeeded.

    Blocks for as long as the I/O takes, at most one deadline for each. For one thread at a time. A failure leaves the
    checkpoint before in force.
    """
    with volume.lock:
        volume.dirty_bytes, dirty_bytes = 0, volume.dirty_bytes
        targets = [
            (segment, segment.nonce, segment.settled_bytes)
            for segment in volume.segments.by_slot.values()
            if segment.state in (SegmentState.OPEN, SegmentState.SEALED)
            and segment.synced_bytes < segment.settled_bytes
            and not segment.suspect
        ]
    try:
        for segment, nonce, settled_bytes in targets:
            _sync(volume, segment, nonce, settled_bytes)
        with volume.lock:
            data = checkpoint.encode(volume.index, _marks(volume), volume.segments.segment_bytes)
        checkpoint.seal(data)
        _replace(volume, data)
    except (DiskError, OSError) as error:
        if isinstance(error, OSError):
            volume.note_error("write", error)
        with volume.lock:
            volume.counters.num_checkpoint_failures += 1
            volume.dirty_bytes += dirty_bytes
        return False
    with volume.lock:
        volume.counters.num_checkpoints += 1
    return True


def _sync(volume: Volume, segment: Segment, nonce: bytes, settled_bytes: int) -> None:
    def sync(context: IoContext) -> None:
        volume.files.fdatasync(segment.fd)
        context.claim()

    with volume.lock:
        segment.num_holds += 1
    try:
        volume.pool.submit(sync, "write").result()
    except (OSError, Stalled):
        # The kernel may have given the pages up: a later sync that succeeds says nothing about them. One that hangs may
        # still fail, when nobody listens any more.
        volume.suspect(segment, nonce)
        raise
    finally:
        volume.release(segment)
    with volume.lock:
        if segment.nonce == nonce:
            segment.synced_bytes = max(segment.synced_bytes, settled_bytes)


def _marks(volume: Volume) -> list[checkpoint.SegmentMark]:
    return [
        checkpoint.SegmentMark(
            segment.slot,
            segment.nonce,
            segment.sequence,
            segment.synced_bytes,
            segment.state is SegmentState.SEALED and segment.synced_bytes == segment.end_bytes,
            segment.head_row,
            segment.live_bytes,
            segment.num_live,
        )
        for segment in volume.segments.by_slot.values()
        if segment.state in (SegmentState.OPEN, SegmentState.SEALED)
    ]


def _replace(volume: Volume, data: bytearray) -> None:
    files, folder = volume.files, volume.segments.folder
    temporary = folder / checkpoint.TEMPORARY_NAME
    view = memoryview(data)
    fd = -1

    def run(work: Callable[[], int | None]) -> int:
        """One step with a deadline; a step that returns late closes the file, which nobody else does then."""

        def step(context: IoContext) -> int:
            result = None
            try:
                result = work()
            finally:
                if context.is_abandoned and (late := fd if fd >= 0 else result) is not None:
                    files.close(late)
            return result or 0

        return volume.pool.submit(step, "write").result()

    def create() -> int:
        with contextlib.suppress(FileNotFoundError):
            files.unlink(temporary)  # a late write of an earlier attempt keeps its own file
        return files.open(temporary, create=True)

    stalled = True
    fd = run(create)
    try:
        for start in range(0, len(view), checkpoint.CHUNK_BYTES):
            part = view[start : start + checkpoint.CHUNK_BYTES]
            run(lambda part=part, start=start: write_all(files, fd, part, start))  # type: ignore[misc]
        run(lambda: files.fdatasync(fd))
        stalled = False
    except OSError:
        stalled = False
        raise
    finally:
        if not stalled:
            files.close(fd)
    fd = -1
    run(lambda: files.rename(temporary, folder / checkpoint.NAME))
    run(lambda: files.sync_folder(folder))

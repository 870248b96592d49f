"""What the tier counts."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.kv_store.disk.layout import ALIGNMENT

if TYPE_CHECKING:
    from shoal.kv_store.disk.volume import Volume


class Counters:
    """Running totals. Written under the log's lock."""

    def __init__(self) -> None:
        self.num_written = 0
        self.bytes_written = 0
        """Of records, headers and padding included."""
        self.bytes_moved = 0
        """As much, of records that were moved; not in `bytes_written`."""
        self.stored_bytes_written = 0
        self.payload_bytes_written = 0
        self.num_read = 0
        self.bytes_read = 0
        self.num_corrupt = 0
        self.num_torn = 0
        self.num_duplicates = 0
        self.num_moved = 0
        self.num_dropped = 0
        self.num_reclaimed = 0
        self.num_stalls = 0
        self.num_io_errors = 0
        self.num_checkpoints = 0
        self.num_checkpoint_failures = 0
        self.num_refused: collections.Counter[str] = collections.Counter()

    @property
    def amplification(self) -> float:
        """Bytes written, moved ones included, over bytes of the blocks that were asked for; 1 before any."""
        return 1.0 + self.bytes_moved / self.bytes_written if self.bytes_written else 1.0

    @property
    def compression_ratio(self) -> float:
        """Payload bytes over stored bytes; 1 before any."""
        return self.payload_bytes_written / self.stored_bytes_written if self.stored_bytes_written else 1.0


@dataclass(frozen=True, slots=True)
class DiskStats:
    """A snapshot; totals are since the log was opened."""

    num_blocks: int
    live_bytes: int
    """What the blocks take in their segments, headers and padding included."""
    dead_bytes: int
    """Written, no longer wanted, not yet reclaimed."""
    capacity_bytes: int
    """Bytes of all segments that the capacity and the disk allow."""
    num_segments: int
    num_free_segments: int
    index_bytes: int
    num_written: int
    payload_bytes_written: int
    num_read: int
    bytes_read: int
    num_corrupt: int
    """Blocks whose bytes were wrong when read, and checkpoints that did not verify."""
    num_torn: int
    """Records that a crash left unfinished, found when the log was opened."""
    num_duplicates: int
    num_moved: int
    num_dropped: int
    """Blocks given up when their segment was reclaimed."""
    num_reclaimed: int
    num_stalls: int
    num_lost_threads: int
    """Threads that are in a system call which has not returned."""
    num_io_errors: int
    num_openings: int
    """How often a side of the disk was taken out of service."""
    num_checkpoints: int
    num_checkpoint_failures: int
    num_refused: dict[str, int]
    """Writes not admitted, by reason."""
    admitted_fraction: float
    write_amplification: float
    """Bytes written, moved ones included, over bytes of the blocks that were asked for."""
    compression_ratio: float
    """Payload bytes over stored bytes of what was written; 1 without a codec."""
    read_s_per_gib: float
    write_s_per_gib: float
    num_queued_reads: int
    num_queued_writes: int


def snapshot(volume: Volume) -> DiskStats:
    """The volume's counters and sizes. Takes its lock."""
    pool, counters, health = volume.pool, volume.counters, volume.health
    with volume.lock:
        segments = volume.segments
        used = [segment for segment in segments.by_slot.values() if segment.num_live]
        live_bytes = sum(segment.live_bytes for segment in used)
        reads, writes = volume.admission.reads, volume.admission.writes
        return DiskStats(
            num_blocks=volume.index.num_live,
            live_bytes=live_bytes,
            dead_bytes=sum(segment.end_bytes - ALIGNMENT for segment in used) - live_bytes,
            capacity_bytes=segments.max_segments * (segments.segment_bytes - ALIGNMENT),
            num_segments=len(segments.by_slot),
            num_free_segments=segments.num_available,
            index_bytes=volume.index.num_bytes,
            num_written=counters.num_written,
            payload_bytes_written=counters.payload_bytes_written,
            num_read=counters.num_read,
            bytes_read=counters.bytes_read,
            num_corrupt=counters.num_corrupt,
            num_torn=counters.num_torn,
            num_duplicates=counters.num_duplicates,
            num_moved=counters.num_moved,
            num_dropped=counters.num_dropped,
            num_reclaimed=counters.num_reclaimed,
            num_stalls=counters.num_stalls,
            num_lost_threads=pool.num_lost,
            num_io_errors=counters.num_io_errors,
            num_openings=health.reads.num_openings + health.writes.num_openings,
            num_checkpoints=counters.num_checkpoints,
            num_checkpoint_failures=counters.num_checkpoint_failures,
            num_refused=dict(counters.num_refused),
            admitted_fraction=volume.admission.fraction,
            write_amplification=counters.amplification,
            compression_ratio=counters.compression_ratio,
            read_s_per_gib=reads.mean_s_per_byte * 2**30,
            write_s_per_gib=writes.mean_s_per_byte * 2**30,
            num_queued_reads=pool.num_queued("read"),
            num_queued_writes=pool.num_queued("write"),
        )

"""What a log is configured with, and how its capacity is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.kv_store.disk.checkpoint import max_checkpoint_bytes
from shoal.kv_store.disk.layout import ALIGNMENT, aligned, record_bytes
from shoal.kv_store.disk.names import MAX_NAMES
from shoal.kv_store.disk.volume import Codec

MIN_SEGMENTS: Final = 4
MAX_SEGMENTS: Final = 4096
_SLACK_BYTES: Final = 4 * ALIGNMENT  # the lock, the probe, the folder itself


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What rarely needs to be said."""

    num_threads: int = 4
    max_lost_threads: int = 4
    """Threads that may be stuck in system calls at once; with as many, the tier is out of service."""
    max_queued: int = 64
    """Requests of each lane that may wait for a thread."""
    checkpoint_interval_s: float = 30.0
    """What a power cut may cost: blocks written in the last interval."""
    checkpoint_bytes: int = 1 << 30
    """A checkpoint is also due after so much was written: it bounds what a restart has to scan."""
    min_payload_bytes: int = 65_536
    """Room for the index is set aside for blocks of this size; of smaller ones fewer fit than the segments hold."""
    recovery_timeout_s: float = 60.0
    codec: Codec | None = None

    def __post_init__(self) -> None:
        for name in ("num_threads", "max_lost_threads", "max_queued", "checkpoint_bytes", "min_payload_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def plan_sizes(capacity_bytes: int, segment_bytes: int, options: LogOptions) -> tuple[int, int, int, int]:
    """(most rows, most names, most segments, bytes of the largest checkpoint), so that all fit the capacity.

    Two checkpoints are set aside: one in force and one being written. Raises ValueError for sizes that do not work.
    """
    if segment_bytes % ALIGNMENT or not 4 * ALIGNMENT <= segment_bytes <= 1 << 34:
        raise ValueError(f"segment_bytes is {segment_bytes}; it must be a multiple of {ALIGNMENT}, 16 KiB to 16 GiB")
    max_rows = max(16, capacity_bytes // record_bytes(options.min_payload_bytes))
    max_names = max(16, min(MAX_NAMES, max_rows // 16))
    most = min(MAX_SEGMENTS + 1, capacity_bytes // segment_bytes)
    max_checkpoint = max_checkpoint_bytes(max_rows, most, max_names)
    num_segments = (capacity_bytes - 2 * aligned(max_checkpoint) - _SLACK_BYTES) // segment_bytes
    if not MIN_SEGMENTS <= num_segments <= MAX_SEGMENTS:
        raise ValueError(
            f"capacity_bytes {capacity_bytes} holds {max(0, num_segments)} segments of {segment_bytes} bytes beside "
            f"the index; it must hold {MIN_SEGMENTS} to {MAX_SEGMENTS}: change segment_bytes or capacity_bytes"
        )
    return max_rows, max_names, num_segments, max_checkpoint

"""The segment files: which are free, which is being filled, and how much of each is still wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from shoal.kv_store.disk.index import NO_ROW
from shoal.kv_store.disk.layout import ALIGNMENT

_NAME: Final = re.compile(r"segment-(\d{6})\.log")


class SegmentState(Enum):
    """What may be done with a segment."""

    FREE = 1
    OPENING = 2
    OPEN = 3
    SEALED = 4


@dataclass(slots=True, eq=False)
class Segment:
    """One segment file and its present use."""

    slot: int
    fd: int
    state: SegmentState = SegmentState.FREE
    nonce: bytes = b""
    sequence: int = 0
    end_bytes: int = ALIGNMENT
    """Where the next record begins."""
    synced_bytes: int = ALIGNMENT
    """Everything below is on the device: a sync returned after it was written."""
    suspect: bool = False
    """A sync failed: nothing written since the last good one is ever taken for synced."""
    in_flight: set[int] = field(default_factory=set)
    """Offsets of records that are being written."""
    num_holds: int = 0
    """I/O in progress, stalled calls included: until it is 0 the file is not used again."""
    head_row: int = NO_ROW
    live_bytes: int = 0
    num_live: int = 0

    @property
    def settled_bytes(self) -> int:
        """Everything below is written or will never be."""
        return min(self.in_flight, default=self.end_bytes)


def segment_name(slot: int) -> str:
    """The file's name."""
    return f"segment-{slot:06d}.log"


def slot_of(name: str) -> int | None:
    """The number in a segment file's name; None for other names."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


class SegmentTable:
    """All segments of a log. Not thread-safe: the log calls under its lock."""

    def __init__(self, folder: Path, max_segments: int, segment_bytes: int) -> None:
        self.folder = folder
        self.max_segments = max_segments
        """What the capacity allows. Fewer exist until they are needed, or when the disk has no room for them."""
        self.segment_bytes = segment_bytes
        self.by_slot: dict[int, Segment] = {}
        self.open: Segment | None = None
        self.next_sequence = 1

    def path(self, slot: int) -> Path:
        """The file of a slot."""
        return self.folder / segment_name(slot)

    def add(self, segment: Segment) -> None:
        """A segment found or made on disk."""
        self.by_slot[segment.slot] = segment
        self.next_sequence = max(self.next_sequence, segment.sequence + 1)

    def free_segments(self) -> list[Segment]:
        """Segments that can be used again at once."""
        return [s for s in self.by_slot.values() if s.state is SegmentState.FREE and not s.num_holds]

    @property
    def num_available(self) -> int:
        """Free segments, and those that may still be made."""
        return len(self.free_segments()) + self.max_segments - len(self.by_slot)

    def unused_slot(self) -> int | None:
        """A slot that has no file yet, None when the capacity is used up."""
        if len(self.by_slot) >= self.max_segments:
            return None
        return next(slot for slot in range(self.max_segments) if slot not in self.by_slot)

    def fits(self, num_bytes: int) -> bool:
        """Whether a record fits the open segment."""
        return self.open is not None and self.open.end_bytes + num_bytes <= self.segment_bytes

    def reserve(self, num_bytes: int) -> tuple[Segment, int]:
        """Room in the open segment, which it `fits`, and a hold on it. Ends with `settle`."""
        segment = self.open
        assert segment is not None
        offset = segment.end_bytes
        segment.end_bytes += num_bytes
        segment.in_flight.add(offset)
        segment.num_holds += 1
        return segment, offset

    def settle(self, segment: Segment, offset_bytes: int) -> None:
        """The I/O of a reservation has returned."""
        segment.in_flight.discard(offset_bytes)
        segment.num_holds -= 1

    def seal(self) -> None:
        """Nothing more goes into the open segment."""
        if self.open is not None:
            self.open.state = SegmentState.SEALED
            self.open = None

    def empty(self, segment: Segment) -> None:
        """The segment's rows are gone: it is free as soon as nobody holds it."""
        segment.state = SegmentState.FREE
        segment.head_row, segment.live_bytes, segment.num_live = NO_ROW, 0, 0

    def begin(self, segment: Segment, nonce: bytes) -> None:
        """Makes `segment` ready for another use, which begins when its header is on the device."""
        segment.state, segment.nonce, segment.sequence = SegmentState.OPENING, nonce, self.next_sequence
        segment.end_bytes = segment.synced_bytes = ALIGNMENT
        segment.suspect = False
        segment.head_row, segment.live_bytes, segment.num_live = NO_ROW, 0, 0
        self.next_sequence += 1

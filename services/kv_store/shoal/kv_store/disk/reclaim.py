"""Making room: whole segments are emptied, and what is worth more than it costs to write again is moved."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol

from shoal.kv_store.disk.errors import DiskError
from shoal.kv_store.disk.index import Entry
from shoal.kv_store.disk.segments import Segment, SegmentState
from shoal.kv_store.disk.transfer import Transfer
from shoal.kv_store.disk.volume import Volume

_NUM_CANDIDATES: Final = 4
_SAMPLE_SIZE: Final = 64
_MAX_MOVED_FRACTION: Final = 0.5
"""Of a segment: each reclaim frees at least half of one, and write amplification stays below 2."""


class Retention(Protocol):
    """What the owner of the blocks knows of their worth. Called by the log's thread, without its lock."""

    def cost_of_losing_s(self, key: bytes) -> float:
        """Seconds that dropping the block is expected to cost: recomputing it, times how likely it is asked for.

        A block that others follow is worth what they are worth together: they cannot be used without it.
        """

    def dropped(self, keys: Sequence[bytes]) -> None:
        """These blocks are no longer on disk, reclaimed or found corrupt. Removing what follows them is the owner's."""


class OldestFirst:
    """For logs without an owner: only blocks that others on the disk follow are worth moving."""

    def cost_of_losing_s(self, key: bytes) -> float:
        """Nothing."""
        return 0.0

    def dropped(self, keys: Sequence[bytes]) -> None:
        """Tells nobody."""


class Reclaimer:
    """Empties segments, one at a time. Used by one thread."""

    def __init__(self, volume: Volume, transfer: Transfer, retention: Retention) -> None:
        self._volume = volume
        self._transfer = transfer
        self._retention = retention

    def run_once(self) -> bool:
        """Empties the segment that costs least; False if there is none."""
        victim = self._choose()
        if victim is None:
            return False
        nonce = victim.nonce
        for key in self._choose_moved(victim):
            with contextlib.suppress(DiskError, OSError):  # dropped with the rest
                self._volume.pool.submit(
                    lambda context, key=key: self._transfer.move(context, key, victim.slot),  # type: ignore[misc]
                    "read",
                ).result()
        self._drop_rest(victim, nonce)
        return True

    def _choose(self) -> Segment | None:
        with self._volume.lock:
            sealed = [
                segment
                for segment in self._volume.segments.by_slot.values()
                if segment.state is SegmentState.SEALED and not segment.in_flight
            ]
            sealed.sort(key=lambda segment: segment.sequence)
            oldest = sealed[:_NUM_CANDIDATES]
            older_half = sealed[: (len(sealed) + 1) // 2]  # young segments get emptier by themselves
            emptiest = sorted(older_half, key=lambda segment: segment.live_bytes)[:_NUM_CANDIDATES]
            candidates = {segment.slot: segment for segment in (*oldest, *emptiest)}
            samples = {slot: self._sample(segment) for slot, segment in candidates.items()}
        costs = {slot: self._estimate(candidates[slot], entries) for slot, entries in samples.items()}
        best = min(costs, key=lambda slot: (costs[slot], candidates[slot].sequence), default=None)
        return None if best is None else candidates[best]

    def _sample(self, segment: Segment) -> list[Entry]:
        index = self._volume.index
        entries = [index.entry(row) for row in index.chain(segment.head_row) if index.is_live(row)]
        return entries[:: max(1, len(entries) // _SAMPLE_SIZE)]

    def _estimate(self, segment: Segment, sample: list[Entry]) -> float:
        """Seconds that emptying the segment costs."""
        if not sample:
            return 0.0
        return (
            sum(min(self._losing_s(entry), self._moving_s(entry)) for entry in sample) * segment.num_live / len(sample)
        )

    def _losing_s(self, entry: Entry) -> float:
        cost_s = self._retention.cost_of_losing_s(entry.metadata.key)
        return max(cost_s, 2 * self._moving_s(entry)) if entry.num_children else cost_s

    def _moving_s(self, entry: Entry) -> float:
        admission = self._volume.admission
        busy = 1.0 / admission.fraction  # under pressure the disk's time is worth more
        s_per_byte = admission.reads.mean_s_per_byte + admission.writes.mean_s_per_byte
        return entry.record_bytes * (s_per_byte or 1e-9) * busy

    def _choose_moved(self, victim: Segment) -> list[bytes]:
        """Keys of the blocks that are worth more than moving them costs, parents first."""
        with self._volume.lock:
            index = self._volume.index
            entries = [index.entry(row) for row in index.chain(victim.head_row) if index.is_live(row)]
        budget = _MAX_MOVED_FRACTION * self._volume.segments.segment_bytes
        moved: list[bytes] = []
        num_dropped_children: collections.Counter[bytes] = collections.Counter()
        for entry in entries:  # the latest first: children before their parents
            metadata = entry.metadata
            remaining = entry._replace(num_children=entry.num_children - num_dropped_children[metadata.key])
            if self._losing_s(remaining) > self._moving_s(entry) and entry.record_bytes <= budget:
                budget -= entry.record_bytes
                moved.append(metadata.key)
            else:
                num_dropped_children[metadata.parent] += 1
        moved.reverse()
        return moved

    def _drop_rest(self, victim: Segment, nonce: bytes) -> None:
        gone: list[bytes] = []
        with self._volume.lock:
            self._volume.counters.num_reclaimed += 1
            if victim.state is SegmentState.SEALED and victim.nonce == nonce:
                index = self._volume.index
                gone = [index.key(row) for row in index.chain(victim.head_row) if index.is_live(row)]
                self._volume.empty(victim)
            self._volume.counters.num_dropped += len(gone)
        if gone:
            self._retention.dropped(gone)

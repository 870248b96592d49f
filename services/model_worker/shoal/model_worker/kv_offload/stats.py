"""What the use of a KV store comes to, for metrics and health."""

from __future__ import annotations

import msgspec


class KvStoreStats(msgspec.Struct, array_like=True):
    """Counters since the start. Each is written by one thread only, so that a reader may be a little behind."""

    problem: str = ""
    """Why the store is of no use right now; empty while it is."""
    num_lookups: int = 0
    lookup_s: float = 0.0
    """Time from questions to answers."""
    loaded_blocks: dict[str, int] = msgspec.field(default_factory=dict)
    """By tier: blocks that were loaded in place of computing them."""
    loaded_bytes: int = 0
    load_s: float = 0.0
    num_loads: int = 0
    stored_blocks: int = 0
    stored_bytes: int = 0
    store_s: float = 0.0
    unused: dict[str, int] = msgspec.field(default_factory=dict)
    """By reason: requests that computed although the store might have had, or had, blocks of theirs."""
    failed_blocks: dict[str, int] = msgspec.field(default_factory=dict)
    """By reason: blocks that were not what they should have been: corrupt, stale."""
    dropped_blocks: dict[str, int] = msgspec.field(default_factory=dict)
    """By reason: blocks that were not stored."""
    num_queued_blocks: int = 0
    """Waiting to be stored."""
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    """By what was attempted: what failed here, and not because the store was away. Such a failure ends the session."""

    def count(self, counts: dict[str, int], reason: str, amount: int = 1) -> None:
        """Adds to one of the dictionaries above."""
        if amount:
            counts[reason] = counts.get(reason, 0) + amount

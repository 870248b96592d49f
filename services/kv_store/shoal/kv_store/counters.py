"""Counts of what happened since the start, for Stats and /metrics."""

from __future__ import annotations

from collections import Counter
from typing import Final

NAMES: Final = (
    "hits_memory",
    "hits_disk",
    "misses",
    "foreign_tenant",
    "foreign_fingerprint",
    "stored",
    "present",
    "evicted",
    "removed_asked",
    "removed_wrong",
    "removed_expired",
    "removed_lost",
    "moved",
    "demoted",
    "promoted",
    "refused_no_space",
    "refused_quota",
    "refused_disk_quota",
    "disk_owed_forgotten",
    "refused_pins",
    "refused_draining",
    "refused_orphan",
    "refused_foreign",
    "refused_not_admitted",
    "reservations_expired",
    "reservations_abandoned",
    "leases_granted",
    "leases_expired",
    "leases_abandoned",
    "pins_expired",
    "checksum_failures_commit",
    "checksum_failures_memory",
    "checksum_failures_disk",
    "checksum_failures_peer",
    "sessions_opened",
    "sessions_refused",
    "chunks_retired",
    "peer_hits",
    "peer_misses",
    "peer_failures",
    "peer_pulled",
    "peer_blocks_sent",
    "peer_transfers_failed",
    "peer_transfers_broken",
    "peer_calls_refused",
    "peer_connections_refused",
    "tickets_refused",
    "offers_sent",
    "offers_taken",
    "offers_refused",
    "offers_dropped",
    "hot_units",
    "housekeeping_failures",
)


class Counters(Counter[str]):
    """One number a name of NAMES. Written by the store's thread; reading from another one is safe."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(NAMES, 0))

    def add(self, name: str, num: int = 1) -> None:
        """Raises KeyError for a name that is not in NAMES."""
        self.__setitem__(name, dict.__getitem__(self, name) + num)

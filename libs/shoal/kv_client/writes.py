"""What writing blocks came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.kv_client.answers import PRESENT as PRESENT
from shoal.kv_client.answers import Status
from shoal.kv_client.link import Link, MappedMemory


@dataclass(frozen=True, slots=True)
class PutResult:
    """What a put came to."""

    num_stored: int
    """Blocks that this put made visible."""
    num_visible: int
    """Leading blocks that are visible after it, as far as this client knows."""
    problem: str = ""
    """Why not all of them; empty when all are."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Staging memory for blocks to be written, until `KvClient.commit` or `KvClient.abandon`."""

    keys: Sequence[bytes]
    statuses: Sequence[Status]
    link: Link
    staging: MappedMemory
    addresses: dict[int, int] = field(default_factory=dict)
    """Position of a key that is reserved: address of its staging block in this process."""

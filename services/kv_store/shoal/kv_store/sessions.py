"""What a client holds: reservations, leases, staging memory. All of it ends with the client's socket."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.kv_store.arena import Staging
from shoal.kv_store.scopes import Scope


@dataclass(slots=True, eq=False)
class Reservation:
    """Room for one block that is being written."""

    key: bytes
    parent_key: bytes
    is_root: bool
    """The parent is a namespace key."""
    slot: int
    staging_block: int
    session: Session
    cost_s: float
    deadline_s: float
    pinned_parent: int = 0
    """Row of the parent that stays in memory because of this reservation; 0 for none."""
    copying: bool = False
    """A thread copies it: neither slot nor staging block can be given back before that ends."""


@dataclass(slots=True)
class Lease:
    """A client's leases on one block."""

    count: int
    deadline_s: float


@dataclass(slots=True, eq=False)
class Session:
    """One client's connection."""

    id: bytes
    scope: Scope
    staging: Staging | None
    reservations: dict[bytes, Reservation] = field(default_factory=dict)
    leases: dict[bytes, Lease] = field(default_factory=dict)
    mapped_chunks: set[int] = field(default_factory=set)
    retired_chunks: dict[int, float] = field(default_factory=dict)
    """Chunks to unmap, and until when."""
    num_copying: int = 0
    is_ticket: bool = False
    """Nobody's connection: it holds what another store may read."""
    closed: bool = False

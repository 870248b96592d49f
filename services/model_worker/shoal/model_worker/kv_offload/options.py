"""How the store is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.kv_client import KvClientOptions

WriteBackPolicy = Literal["committed", "reused", "evicted", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadOptions:
    """How the store is used."""

    client: KvClientOptions
    """Of all sessions; the tenant in it is replaced, and readers get no staging memory."""
    write_back: WriteBackPolicy = "committed"
    """Which blocks are stored: those just computed, those that a second request uses, or only those that the device is
    about to give up, as all but `off` do."""
    max_queued_blocks: int = 1024
    """That wait to be stored."""
    write_patience_s: float = 0.0
    """How long blocks wait to be stored while the device computes."""
    lookup_wait_s: float = 0.02
    """Longest time that a request waits to hear what the store has."""
    peers_wait_s: float = 0.01
    """Longest time that the store may ask other stores for what it lacks; 0: they are not asked."""
    wait_budget_s: float = 0.25
    """What waiting in vain may cost at first, of all requests together; see `shoal.kv_client.pricing`."""
    max_tenants: int = 8
    """Whose sessions stay open, of each kind; who comes back after so many others pays for a new one."""
    by_layer: bool = False
    """Whether blocks of a request that is alone come layer by layer, where the device can."""
    tokens_per_s: float = 500.0
    """How fast prompts are computed, until some were."""
    memory_bytes_per_s: float = 4e9
    """How fast blocks come from the store's memory, until some did."""

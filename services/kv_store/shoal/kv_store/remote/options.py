"""How a store shares blocks with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.kv_store.remote.auth import Signer
from shoal.kv_store.remote.tls import TlsFiles
from shoal.kv_store.remote.transfer import Transport

MAX_KEYS: Final = 16_384
"""Of one call between stores: 256 KiB, a chain of 262,144 tokens in blocks of 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """Settings of the whole package."""

    signer: Signer
    tls: TlsFiles | None = None
    transport: Transport = "tcp"
    num_replicas: int = 2
    """Stores that are asked for a chain, and that have it when it is asked for often."""
    call_timeout_s: float = 0.25
    """Of one call between stores, unless the caller has less time."""
    max_transfers: int = 4
    """At a time, in each direction."""
    transfer_bytes: int = 128 << 20
    """Of one ticket, about."""
    num_streams: int = 2
    """Connections side by side for one pull of at least `stripe_bytes` each: one keeps neither side busy all the time
    (5.8 GB/s over the loopback where two have 10.6)."""
    stripe_bytes: int = 8 << 20
    ticket_timeout_s: float = 10.0
    """Of a ticket; less than a lease holds."""
    offer_delay_s: float = 0.25
    """Chains grow a while before they are offered to the store that they belong to."""
    refresh_every_s: float = 1.0
    """How often a file of peers is looked at."""
    hot_calls: int = 8
    """Calls for a unit within `hot_window_s` that make it hot."""
    hot_window_s: float = 10.0

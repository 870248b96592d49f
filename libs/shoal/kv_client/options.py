"""Settings of a client."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class KvClientOptions:
    """Where the store is and what this client is about: blocks of one tenant and fingerprint, which have one size."""

    socket_path: str
    tenant: str
    fingerprint: bytes
    """Model, KV layout, dtype and codec; 1 to 32 bytes."""
    block_bytes: int
    num_staging_blocks: int = 0
    """Blocks of memory to write through; 0 for a client that only reads."""
    token: str = field(default="", repr=False)
    """Proves the tenant, to a store that asks for that."""
    wants_roots: bool = False
    """Whether to be told what chains begin with; see `KvClient.may_begin`."""
    timeout_s: float = 1.0
    """Longest wait for one answer of the store."""
    min_backoff_s: float = 0.05
    """Wait before another attempt to reach a store that failed; doubles up to `max_backoff_s`."""
    max_backoff_s: float = 5.0

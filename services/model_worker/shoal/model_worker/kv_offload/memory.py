"""How blocks on a device are reached from the host. Implemented beside the runners, where torch is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal.kv_client.lease import Lease, Reading


class KvMemory(Protocol):
    """A paged KV cache, as bytes of blocks: K and V of all layers of one block, contiguous, in the cache's layout.

    `load` and `store` are called by threads of their own, one each, while steps run; the caller sees to it that no step
    uses what is loaded, and finds out afterwards whether one wrote to what was stored.
    """

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""

    @property
    def blocks_at_once(self) -> int:
        """Most blocks of one call."""

    def mark(self) -> object:
        """The device's work so far, in which steps may still use blocks that were just given out anew. Called by the
        engine's thread; `load` comes behind it."""

    def load(self, lease: Lease, first: int, block_ids: Sequence[int], mark: object) -> tuple[int, Reading]:
        """Copies the lease's blocks from position `first` on into some blocks of the cache; how many leading ones were
        verified, and what became of the one after. They are there for any step that is submitted after `settle`."""

    def settle(self) -> None:
        """Puts steps that are submitted from here on behind all loads so far. Called by the engine's thread."""

    def store(self, block_ids: Sequence[int], addresses: Sequence[int]) -> list[int]:
        """Copies blocks of the cache to the host, one an address; the CRC32C of each."""

"""How blocks on a device are reached from the host. Implemented beside the runners, where torch is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol

from shoal.kv_client.lease import Lease, Reading
from shoal.kv_client.link import MappedMemory
from shoal.model_worker.kv_offload.layer_feed import LayerFeed


class Loaded(NamedTuple):
    """How far a load has come."""

    num_blocks: int
    """Leading ones that hold what they should."""
    reading: Reading
    """VERIFIED, or what became of the next one."""


class KvMemory(Protocol):
    """A paged KV cache, as bytes of blocks: K and V of all layers of one block, contiguous, in the cache's layout or in
    the form that a codec makes of it.

    `load` and `store` are called by threads of their own, one each, while steps run; the caller sees to it that no step
    uses what is loaded, and finds out afterwards whether one wrote to what was stored.
    """

    @property
    def block_bytes(self) -> int:
        """Bytes of a block, as it is stored."""

    @property
    def blocks_at_once(self) -> int:
        """Most blocks of one call of `store`."""

    @property
    def num_layers_fed(self) -> int:
        """Layers that `feed` brings one after the other; 0 where there is nothing to gain by it."""

    def mark(self) -> object:
        """The device's work so far, in which steps may still use blocks that were just given out anew. Called by the
        engine's thread; `load` comes behind it."""

    def load(self, lease: Lease, block_ids: Sequence[int], mark: object) -> Generator[Loaded, None, None]:
        """Copies the lease's blocks into as many blocks of the cache, and says after each few how many leading ones
        hold what they should; no more follows one that does not. They are there for any step that is submitted after
        `settle`. It may be closed after any of them, and is before the lease; the blocks belong to others then, as soon
        as `settle` was called."""

    def feed(
        self, lease: Lease, block_ids: Sequence[int], mark: object, feed: LayerFeed
    ) -> Generator[Loaded, None, None] | None:
        """`load`, but a few layers of all blocks at a time, of which `feed` is told; no block counts before the last
        layer. None, and nothing done, where that cannot be."""

    def settle(self) -> None:
        """Puts steps that are submitted from here on behind all loads so far. Called by the engine's thread."""

    def store(self, block_ids: Sequence[int], addresses: Sequence[int], target: MappedMemory) -> list[int]:
        """Copies blocks of the cache to the host, one an address in `target`; the CRC32C of each. Of leading ones
        only, where a codec cannot hold what one has."""

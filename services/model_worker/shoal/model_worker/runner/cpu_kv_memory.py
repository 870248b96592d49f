"""The CPU runner's KV cache as memory that blocks are copied from and to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shoal.checksum import copy_crc32c_at
from shoal.kv_client.lease import Lease, Reading


class CpuKvMemory:
    """`kv_offload.memory.KvMemory`: one copy between the store's mapped memory and the cache, which sums as it goes."""

    blocks_at_once = 1
    """What is given up has to wait for one call, so a call is short: 40 us for a block of SmolLM2."""

    def __init__(self, kv_cache: Tensor) -> None:
        """kv_cache: [num_blocks, ...] contiguous. Kept."""
        if not kv_cache.is_contiguous():
            raise ValueError("the KV cache has to be contiguous")
        self._kv_cache = kv_cache
        self._address = kv_cache.data_ptr()
        self.block_bytes: int = kv_cache[0].nbytes

    def mark(self) -> None:
        """A step has ended when the next thing happens."""

    def settle(self) -> None:
        """A load has ended when it returns."""

    def load(self, lease: Lease, first: int, block_ids: Sequence[int], mark: object) -> tuple[int, Reading]:
        """See `KvMemory.load`."""
        for index, block_id in enumerate(block_ids):
            reading = lease.copy(first + index, self._address + block_id * self.block_bytes)
            if reading is not Reading.VERIFIED:
                return index, reading
        return len(block_ids), Reading.VERIFIED

    def store(self, block_ids: Sequence[int], addresses: Sequence[int]) -> list[int]:
        """See `KvMemory.store`."""
        size = self.block_bytes
        return [
            copy_crc32c_at(address, self._address + block_id * size, size)
            for block_id, address in zip(block_ids, addresses, strict=True)
        ]

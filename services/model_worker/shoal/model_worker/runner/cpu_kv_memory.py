"""The CPU runner's KV cache as memory that blocks are copied from and to."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from shoal.checksum import copy_crc32c_at
from shoal.kv_client.lease import Lease, Reading
from shoal.kv_client.link import MappedMemory
from shoal.model_worker.kv_offload.memory import Loaded


class CpuKvMemory:
    """`kv_offload.memory.KvMemory`: one copy between the store's mapped memory and the cache, which sums as it goes."""

    blocks_at_once = 1

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

    def load(self, lease: Lease, block_ids: Sequence[int], mark: object) -> Generator[Loaded, None, None]:
        """See `KvMemory.load`. A block at a time: what is given up waits for one, 40 us for SmolLM2's."""
        for position, block_id in enumerate(block_ids):
            reading = lease.copy(position, self._address + block_id * self.block_bytes)
            if reading is not Reading.VERIFIED:
                yield Loaded(position, reading)
                return
            yield Loaded(position + 1, reading)

    def store(self, block_ids: Sequence[int], addresses: Sequence[int], target: MappedMemory) -> list[int]:
        """See `KvMemory.store`."""
        size = self.block_bytes
        return [
            copy_crc32c_at(address, self._address + block_id * size, size)
            for block_id, address in zip(block_ids, addresses, strict=True)
        ]

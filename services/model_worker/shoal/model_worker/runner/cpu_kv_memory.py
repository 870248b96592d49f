"""The CPU runner's KV cache as memory that blocks are copied from and to."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from shoal.checksum import copy_crc32c_at
from shoal.kv_client.lease import Lease, Reading
from shoal.kv_client.link import MappedMemory, address_of
from shoal.kv_codec import Codec
from shoal.model_worker.kv_offload.layer_feed import LayerFeed
from shoal.model_worker.kv_offload.memory import Loaded


class CpuKvMemory:
    """`kv_offload.memory.KvMemory`: one copy between the store's mapped memory and the cache, which sums as it goes.

    With a codec there is a second one: what is loaded is verified in memory of its own before it is decoded.
    """

    blocks_at_once = 1

    def __init__(self, kv_cache: Tensor, codec: Codec | None = None) -> None:
        """kv_cache: [num_blocks, ...] contiguous. Kept. codec: of the stored form; None: the cache's own."""
        if not kv_cache.is_contiguous():
            raise ValueError("the KV cache has to be contiguous")
        self._kv_cache = kv_cache
        self._address = kv_cache.data_ptr()
        self._stride: int = kv_cache[0].nbytes
        self._codec = codec
        self.block_bytes = self._stride if codec is None else codec.stored_bytes
        if codec is not None:
            self._blocks = kv_cache.view(len(kv_cache), -1).view(torch.uint8).numpy()
            self._loaded, self._stored = (memoryview(bytearray(codec.stored_bytes)) for _ in range(2))

    num_layers_fed = 0
    """1,500 tokens of SmolLM2 are copied in 4 ms, by the cores that would compute meanwhile."""

    def mark(self) -> None:
        """A step has ended when the next thing happens."""

    def settle(self) -> None:
        """A load has ended when it returns."""

    def load(self, lease: Lease, block_ids: Sequence[int], mark: object) -> Generator[Loaded, None, None]:
        """See `KvMemory.load`. A block at a time: what is given up waits for one, 40 us for SmolLM2's (fp8: 250)."""
        for position, block_id in enumerate(block_ids):
            reading = self._load_one(lease, position, block_id)
            if reading is not Reading.VERIFIED:
                yield Loaded(position, reading)
                return
            yield Loaded(position + 1, reading)

    def feed(self, lease: Lease, block_ids: Sequence[int], mark: object, feed: LayerFeed) -> None:
        """See `KvMemory.feed`."""

    def store(self, block_ids: Sequence[int], addresses: Sequence[int], target: MappedMemory) -> list[int]:
        """See `KvMemory.store`."""
        checksums = []
        for block_id, address in zip(block_ids, addresses, strict=True):
            source = self._address + block_id * self._stride
            if self._codec is not None:
                try:
                    self._codec.encode(memoryview(self._blocks[block_id]), self._stored)
                except ValueError:
                    break
                source = address_of(self._stored)
            checksums.append(copy_crc32c_at(address, source, self.block_bytes))
        return checksums

    def _load_one(self, lease: Lease, position: int, block_id: int) -> Reading:
        if self._codec is None:
            return lease.copy(position, self._address + block_id * self._stride)
        reading = lease.copy(position, address_of(self._loaded))
        if reading is Reading.VERIFIED:
            try:
                self._codec.decode(self._loaded, memoryview(self._blocks[block_id]))
            except ValueError:  # no worker of this namespace stores that
                return Reading.CORRUPT
        return reading

"""A GPU's KV cache as memory that blocks are copied from and to, beside the steps.

Loading: blocks are copied from the store's memory to pinned staging and summed on the way, by a few threads, for one
sums 12 to 19 GB/s and the link takes 50; one copy brings them to the device and one kernel to their places. Two staging
buffers take turns, so that the host's part of one overlaps the device's part of the other. Storing goes the other way
on a stream of its own.

What orders it against steps: a load waits for the steps that were submitted when its blocks were given out (they may
still write to them for whoever had them before), and steps submitted after `settle` wait for all loads. A store needs
neither: what it reads was complete before, and who gets the block anew finds out by its version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch import Tensor

from shoal.checksum import copy_crc32c_at
from shoal.kernels.block_transfer import gather_blocks, scatter_blocks
from shoal.kv_client.lease import Lease, Reading

STAGING_BYTES: Final = 32 << 20
"""Of each of the three buffers, on the host and on the device. At 50 GB/s a copy of that takes 0.7 ms, some fifty times
what launching it costs."""
NUM_COPIERS: Final = 4


class CudaKvMemory:
    """`kv_offload.memory.KvMemory` of a cache on a GPU; in tests of one on the CPU, where nothing is asynchronous."""

    def __init__(self, kv_cache: Tensor, *, staging_bytes: int = STAGING_BYTES) -> None:
        """kv_cache: [num_blocks, ...] contiguous. Allocates staging, and compiles the kernels."""
        self._kv_cache = kv_cache
        self.block_bytes: int = kv_cache[0].nbytes
        self.blocks_at_once = min(max(staging_bytes // self.block_bytes, 1), len(kv_cache))
        self._loads = [_Lane(kv_cache.device, self.blocks_at_once, self.block_bytes) for _ in range(2)]
        self._stores = _Lane(kv_cache.device, self.blocks_at_once, self.block_bytes)
        self._num_loads = 0
        self._copiers = ThreadPoolExecutor(NUM_COPIERS, thread_name_prefix="kv copy")
        with self._stores.stream():
            gather_blocks(kv_cache, [0], self._stores.on_device[:1])
            scatter_blocks(kv_cache, [0], self._stores.on_device[:1])
        self._stores.end()
        self._stores.wait()

    def mark(self) -> object:
        """See `KvMemory.mark`."""
        if not self._kv_cache.is_cuda:
            return None
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record()
        return mark

    def settle(self) -> None:
        """See `KvMemory.settle`."""
        if self._kv_cache.is_cuda:
            for lane in self._loads:
                lane.order_current_stream()

    def load(self, lease: Lease, first: int, block_ids: Sequence[int], mark: object) -> tuple[int, Reading]:
        """See `KvMemory.load`."""
        lane = self._loads[self._num_loads % len(self._loads)]
        self._num_loads += 1
        lane.wait()
        readings = list(
            self._copiers.map(
                lambda index: lease.copy(first + index, lane.host_address + index * self.block_bytes),
                range(len(block_ids)),
            )
        )
        num = next((i for i, reading in enumerate(readings) if reading is not Reading.VERIFIED), len(readings))
        if num:
            with lane.stream(after=mark):
                lane.on_device[:num].copy_(lane.on_host[:num], non_blocking=True)
                scatter_blocks(self._kv_cache, block_ids[:num], lane.on_device[:num])
            lane.end()
        return num, readings[num] if num < len(readings) else Reading.VERIFIED

    def store(self, block_ids: Sequence[int], addresses: Sequence[int]) -> list[int]:
        """See `KvMemory.store`."""
        lane, num = self._stores, len(block_ids)
        with lane.stream():
            gather_blocks(self._kv_cache, block_ids, lane.on_device[:num])
            lane.on_host[:num].copy_(lane.on_device[:num], non_blocking=True)
        lane.end()
        lane.wait()
        size, start = self.block_bytes, lane.host_address
        copy: Callable[[int], int] = lambda i: copy_crc32c_at(addresses[i], start + i * size, size)  # noqa: E731
        return list(self._copiers.map(copy, range(num)))


class _Lane:
    """A stream with staging memory on both sides, used by one thread at a time."""

    def __init__(self, device: torch.device, num_blocks: int, block_bytes: int) -> None:
        is_cuda = device.type == "cuda"
        shape = (num_blocks, block_bytes)
        self.on_host = torch.empty(shape, dtype=torch.uint8, pin_memory=is_cuda)
        self.on_device = torch.empty(shape, dtype=torch.uint8, device=device)
        self.host_address = self.on_host.data_ptr()
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._ended = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def stream(self, after: object = None) -> AbstractContextManager[object]:
        """What is launched inside goes to the lane's stream, behind `after`."""
        if self._stream is None:
            return nullcontext()
        if isinstance(after, torch.cuda.Event):
            self._stream.wait_event(after)
        return torch.cuda.stream(self._stream)

    def end(self) -> None:
        """Notes that this is all for now."""
        if self._ended is not None:
            self._ended.record(self._stream)

    def wait(self) -> None:
        """Waits, on the host, for what was there at the last `end`."""
        if self._ended is not None:
            self._ended.synchronize()

    def order_current_stream(self) -> None:
        """Has the current stream wait for it."""
        if self._ended is not None:
            torch.cuda.current_stream().wait_event(self._ended)

"""A GPU's KV cache as memory that blocks are copied from and to, beside the steps.

The GPU reads and writes the store's shared memory itself, a block at a time, while a few threads of the host sum the
same bytes. A block counts once both have ended and the store still holds it. Where the driver cannot register that
memory, blocks go through pinned staging (`staged_copies.py`), at about half the speed.

What orders it against steps: a load waits for the steps that were submitted when its blocks were given out (they may
still write to them for whoever had them before), and steps submitted after `settle` wait for all loads. A store needs
neither: what it reads was complete before, and who gets the block anew finds out by its version.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoal.checksum import crc32c_each
from shoal.kv_client.lease import Lease, Place, Reading
from shoal.kv_client.link import MappedMemory
from shoal.model_worker.kv_offload.layer_feed import LayerFeed
from shoal.model_worker.kv_offload.memory import Loaded
from shoal.model_worker.runner.copies import Addresses, make_copies
from shoal.model_worker.runner.device_fp8 import DeviceFp8
from shoal.model_worker.runner.host_pages import HostPages
from shoal.model_worker.runner.staged_copies import StagedCopies

BYTES_AT_ONCE: Final = 128 << 20
"""Two such parts of a load are under way at a time, so that neither link nor sums pause; whoever gives a load up waits
for one, 2.5 ms of an H100's link. First token behind 32,768 tokens: 103 ms; 109 with half of it, 166 with an eighth."""
MAX_SUMMING_THREADS: Final = 8
"""Each sums 8 to 9 GB/s while the GPU reads the same memory; the link takes 54."""
FED_BYTES_AT_ONCE: Final = 128 << 20
"""Whole layers of all blocks, in one launch: 2.5 ms of an H100's link."""
CODED_BYTES_AT_ONCE: Final = 32 << 20
"""Stored with a codec, in the cache's form: on its way through the device a block takes some six times its bytes."""


class CudaKvMemory:
    """`kv_offload.memory.KvMemory` of a cache on a GPU; in tests of one on the CPU, where nothing is asynchronous."""

    def __init__(
        self,
        kv_cache: Tensor,
        codec: DeviceFp8 | None = None,
        *,
        bytes_at_once: int = BYTES_AT_ONCE,
        fed_bytes_at_once: int = FED_BYTES_AT_ONCE,
        direct: bool = True,
    ) -> None:
        """kv_cache: [num_blocks, ...] contiguous. codec: of the stored form; None: the cache's own. direct: False, and
        the GPU does not touch the store's memory.
        """
        self._blocks = kv_cache.view(len(kv_cache), -1).view(torch.uint8)
        self._codec = codec
        self._fed_bytes_at_once = fed_bytes_at_once
        raw_bytes: int = self._blocks.shape[1]
        self.num_layers_fed: int = kv_cache.shape[1] if codec is None and kv_cache.dim() > 2 else 0
        self.block_bytes = raw_bytes if codec is None else codec.stored_bytes
        self._num_loaded_at_once = min(max(bytes_at_once // raw_bytes, 1), len(kv_cache))
        num_coded = max(CODED_BYTES_AT_ONCE // raw_bytes, 1)
        self.blocks_at_once = self._num_loaded_at_once if codec is None else min(num_coded, self._num_loaded_at_once)
        self._num_threads = min(MAX_SUMMING_THREADS, max((os.cpu_count() or 2) // 2, 1))
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="kv sum")
        self._copies = make_copies(kv_cache.device)
        self._loads = _Lane(HostPages(kv_cache.device, read_only=True, direct=direct), kv_cache.device)
        self._stores = _Lane(HostPages(kv_cache.device, read_only=False, direct=direct), kv_cache.device)

    def mark(self) -> object:
        """See `KvMemory.mark`."""
        if not self._blocks.is_cuda:
            return None
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record()
        return mark

    def settle(self) -> None:
        """See `KvMemory.settle`."""
        self._loads.order_current_stream()

    def load(self, lease: Lease, block_ids: Sequence[int], mark: object) -> Generator[Loaded, None, None]:
        """See `KvMemory.load`."""
        at_once = self._num_loaded_at_once
        starts = iter(range(0, len(block_ids), at_once))
        parts: deque[_Part] = deque()
        try:
            while True:
                while len(parts) < 2 and (start := next(starts, None)) is not None:
                    parts.append(self._start(lease, start, block_ids[start : start + at_once], mark))
                if not parts:
                    return
                loaded = parts.popleft().finish(lease)
                yield loaded
                if loaded.reading is not Reading.VERIFIED:
                    return
        finally:
            self._loads.wait()  # the GPU reads what is leased

    def feed(
        self, lease: Lease, block_ids: Sequence[int], mark: object, feed: LayerFeed
    ) -> Generator[Loaded, None, None] | None:
        """See `KvMemory.feed`."""
        if not self.num_layers_fed:
            return None
        if not self._reach(lease.places):
            return None
        return self._feed(lease, block_ids, mark, feed)

    def _feed(
        self, lease: Lease, block_ids: Sequence[int], mark: object, feed: LayerFeed
    ) -> Generator[Loaded, None, None]:
        num_layers, num_blocks = self.num_layers_fed, len(block_ids)
        layer_bytes = self.block_bytes // num_layers
        layers_at_once = -(-self._fed_bytes_at_once // (layer_bytes * num_blocks))
        readings = self._verify(lease, range(num_blocks))  # meanwhile
        groups = []
        try:
            targets, sources = _rows_of(self._blocks, block_ids), _addresses(lease, range(num_blocks))
            for start in range(0, num_layers, layers_at_once):
                end = min(start + layers_at_once, num_layers)
                first = np.uint64(start * layer_bytes)
                with self._loads.launching(after=mark) as ended:
                    self._copies.batch(targets + first, sources + first, (end - start) * layer_bytes)
                groups.append((end, ended))
            # All are under way before the step begins: two threads of one interpreter take turns of up to 5 ms.
            for end, ended in groups:
                feed.reached(end, partial(_order_current_stream, ended))
            yield Loaded(0, Reading.VERIFIED)
            yield _Part(0, readings, ended).finish(lease)
        finally:
            self._loads.wait()

    def store(self, block_ids: Sequence[int], addresses: Sequence[int], target: MappedMemory) -> list[int]:
        """See `KvMemory.store`."""
        targets, is_direct = np.array(addresses, np.uint64), self._stores.pages.reach(target)
        copy = self._copies.batch if is_direct else self._copies.each
        with self._stores.launching():
            if self._codec is not None:
                stored = self._codec.read(self._blocks, block_ids)
                copy(targets, _rows_of(stored, range(len(stored))), self.block_bytes)
            elif is_direct:
                copy(targets, _rows_of(self._blocks, block_ids), self.block_bytes)
            else:
                return self._staging(self._stores).store(block_ids, addresses)
        self._stores.wait()
        if self._codec is not None:
            addresses = list(itertools.takewhile(self._codec.is_valid_at, addresses))
        shares = self._shares(range(len(addresses)))
        sums = self._threads.map(lambda share: crc32c_each(targets[share.start : share.stop], self.block_bytes), shares)
        return list(itertools.chain.from_iterable(sums))

    def _start(self, lease: Lease, first: int, block_ids: Sequence[int], mark: object) -> _Part:
        positions = range(first, first + len(block_ids))
        is_direct = self._reach(lease.places[first : positions.stop])
        with self._loads.launching(after=mark) as ended:
            if self._codec is not None:
                readings = self._verify(lease, positions)
                self._load_coded(self._codec, block_ids, _addresses(lease, positions), is_direct=is_direct)
            elif is_direct:
                readings = self._verify(lease, positions)
                targets = _rows_of(self._blocks, block_ids)
                self._copies.batch(targets, _addresses(lease, positions), self.block_bytes)
            else:
                readings = iter(self._staging(self._loads).load(lease, first, block_ids))
        return _Part(first, readings, ended)

    def _load_coded(self, codec: DeviceFp8, block_ids: Sequence[int], sources: Addresses, *, is_direct: bool) -> None:
        """Nothing counts before the host has looked at it, so that the device may decode what is wrong meanwhile."""
        stored = self._blocks.new_empty((len(block_ids), self.block_bytes))
        copy = self._copies.batch if is_direct else self._copies.each
        copy(_rows_of(stored, range(len(stored))), sources, self.block_bytes)
        codec.write(self._blocks, block_ids, stored)

    def _reach(self, places: Sequence[Place]) -> bool:
        """Whether the GPU reaches all of these leased blocks itself."""
        return all(self._loads.pages.reach(chunk) for chunk in {place.chunk for place in places})

    def _verify(self, lease: Lease, positions: range) -> Iterator[Reading]:
        """What became of each, in order, while the caller goes on; up to one that is not VERIFIED, at least."""
        verify = lease.verify if self._codec is None else partial(_verify_coded, self._codec, lease)
        return itertools.chain.from_iterable(self._threads.map(verify, self._shares(positions)))

    def _shares(self, positions: range) -> list[range]:
        """One for each thread: whatever a thread does by itself does not wait for the interpreter in between."""
        size = max(-(-len(positions) // self._num_threads), 1)
        return [positions[start : start + size] for start in range(0, len(positions), size)]

    def _staging(self, lane: _Lane) -> StagedCopies:
        if lane.staging is None:
            lane.staging = StagedCopies(self._blocks, self._threads)
        return lane.staging


class _Part(NamedTuple):
    """Blocks on their way."""

    first: int
    readings: Iterator[Reading]
    """Of each block, up to one that is not VERIFIED, at least."""
    ended: torch.cuda.Event | None

    def finish(self, lease: Lease) -> Loaded:
        """Waits for them."""
        if self.ended is not None:
            self.ended.synchronize()
        position = self.first
        for position, reading in enumerate(self.readings, self.first):
            if reading is Reading.VERIFIED and not lease.is_valid(position):  # gone while it was copied
                return Loaded(position, Reading.STALE)
            if reading is not Reading.VERIFIED:
                return Loaded(position, reading)
        return Loaded(position + 1, Reading.VERIFIED)


class _Lane:
    """One direction: a stream, and how the other side's memory is reached. Used by one thread at a time."""

    def __init__(self, pages: HostPages, device: torch.device) -> None:
        self.pages = pages
        self.staging: StagedCopies | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._ended: torch.cuda.Event | None = None

    @contextmanager
    def launching(self, after: object = None) -> Iterator[torch.cuda.Event | None]:
        """What is launched inside goes to the lane's stream, behind `after`, and the event behind that."""
        if self._stream is None:
            yield None
            return
        ended = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        if isinstance(after, torch.cuda.Event):
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            try:
                yield ended
            finally:  # also of what was launched before something raised
                ended.record()
                self._ended = ended

    def wait(self) -> None:
        """Waits, on the host, for all that was launched."""
        if self._ended is not None:
            self._ended.synchronize()

    def order_current_stream(self) -> None:
        """Has the current stream wait for all that was launched."""
        _order_current_stream(self._ended)


def _rows_of(blocks: Tensor, block_ids: Sequence[int]) -> Addresses:
    """Where some rows of [num_blocks, bytes] begin."""
    return blocks.data_ptr() + np.array(block_ids, np.uint64) * np.uint64(blocks.stride(0))


def _addresses(lease: Lease, positions: Sequence[int]) -> Addresses:
    """Of leased blocks, in this process."""
    return np.array([lease.address(position) for position in positions], np.uint64)


def _order_current_stream(ended: torch.cuda.Event | None) -> None:
    if ended is not None:
        torch.cuda.current_stream().wait_event(ended)


def _verify_coded(codec: DeviceFp8, lease: Lease, positions: range) -> list[Reading]:
    found = lease.verify(positions)
    for number, position in enumerate(positions[: len(found)]):
        if found[number] is Reading.VERIFIED and not codec.is_valid_at(lease.address(position)):
            return [*found[:number], Reading.CORRUPT]  # no worker of this namespace stores that
    return found

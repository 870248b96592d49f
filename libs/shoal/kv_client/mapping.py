"""Shared memory of the store, mapped here. What the store says of it is checked first: to touch memory that is not
there ends the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Final, Protocol

import numpy as np

from shoal.kv_client.failures import LinkBroken

MAX_SLOTS: Final = 1 << 24
"""Of a chunk."""
_GENERATION_BYTES: Final = 8
_PADDING_BYTES: Final = 2 << 20
"""A huge page: what any size may be rounded up to."""
_F_GET_SEALS: Final = 1034  # linux/fcntl.h
_SEAL_SHRINK: Final = 2
_MADV_POPULATE_READ: Final = 22  # linux/mman.h, since Linux 5.14
_STAT_BLOCK_BYTES: Final = 512


class ChunkShape(Protocol):
    """What the store says of a chunk: a `MapResponse`."""

    num_bytes: int
    generations_offset: int
    num_slots: int
    slot_bytes: int


class MappedMemory:
    """Shared memory of the store, mapped here as long as this object lives, or somebody views it."""

    def __init__(self, mapping: mmap.mmap, row_bytes: int) -> None:
        """row_bytes: from one block to the next."""
        self.row_bytes = row_bytes
        self.mapping = mapping
        self.memory = memoryview(mapping)
        self.num_bytes = len(mapping)
        self.address = address_of(self.memory)


class MappedChunk(MappedMemory):
    """A chunk of the arena, mapped for reading. Stays readable when the store is gone."""

    def __init__(self, fd: int, shape: ChunkShape, block_bytes: int) -> None:
        """Takes the descriptor. Raises LinkBroken when a block of `block_bytes`, or a generation, might not be in the
        file; OSError."""
        try:
            size, num_there = _check_file(fd, shape.num_bytes)
            end = _check_shape(shape, block_bytes)
            if size != shape.num_bytes or size < end or size > end + shape.slot_bytes + _PADDING_BYTES:
                raise LinkBroken("the store described a chunk that is not as large as its file")
            super().__init__(mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ), shape.slot_bytes)
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            self.mapping.madvise(mmap.MADV_HUGEPAGE)
        if num_there >= shape.num_slots * shape.slot_bytes:  # or it would take memory that the store did not
            with contextlib.suppress(OSError):  # page faults now, 30 us a block, and not in the first request
                self.mapping.madvise(_MADV_POPULATE_READ)
        generations_end = shape.generations_offset + _GENERATION_BYTES * shape.num_slots
        self.generations = self.memory[shape.generations_offset : generations_end].cast("Q")
        self.num_slots = shape.num_slots


def map_rows(fd: int, num_rows: int, row_bytes: int, min_row_bytes: int) -> MappedMemory:
    """Memory for writing through, `num_rows` of `row_bytes`. Takes the descriptor. Raises LinkBroken when a row of
    `min_row_bytes` might not be in the file; OSError."""
    try:
        if not min_row_bytes <= row_bytes <= min_row_bytes + _PADDING_BYTES:
            raise LinkBroken("the store gave staging memory for blocks of another size")
        _check_file(fd, num_rows * row_bytes)
        mapping = mmap.mmap(fd, num_rows * row_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        return MappedMemory(mapping, row_bytes)
    finally:
        os.close(fd)


def map_bytes(fd: int, num_bytes: int) -> memoryview:
    """The first bytes of a file, for reading. Takes the descriptor. Raises LinkBroken, OSError."""
    try:
        _check_file(fd, num_bytes)
        return memoryview(mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ))
    finally:
        os.close(fd)


def address_of(memory: memoryview) -> int:
    """Where a contiguous buffer begins."""
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _check_shape(shape: ChunkShape, block_bytes: int) -> int:
    """Where slots and generations end. No sum of these overflows: they are Python's integers."""
    slots_end = shape.slot_bytes * shape.num_slots
    offset = shape.generations_offset
    if not 0 < shape.num_slots <= MAX_SLOTS:
        raise LinkBroken(f"the store described a chunk of {shape.num_slots} slots")
    if not block_bytes <= shape.slot_bytes <= block_bytes + _PADDING_BYTES:
        raise LinkBroken(f"the store described slots of {shape.slot_bytes} bytes for blocks of {block_bytes}")
    if offset < slots_end or offset % _GENERATION_BYTES:
        raise LinkBroken("the store described a chunk whose generations are among its blocks")
    return offset + _GENERATION_BYTES * shape.num_slots


def _check_file(fd: int, num_bytes: int) -> tuple[int, int]:
    """Size of a file that has at least `num_bytes` and will always have them, and bytes of it that take memory."""
    found = os.fstat(fd)
    if not 0 < num_bytes <= found.st_size:
        raise LinkBroken("the store gave less memory than it said")
    if not fcntl.fcntl(fd, _F_GET_SEALS) & _SEAL_SHRINK:
        raise LinkBroken("the store gave memory that it could take away again")
    return found.st_size, found.st_blocks * _STAT_BLOCK_BYTES

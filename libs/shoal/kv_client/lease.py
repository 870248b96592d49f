"""Blocks that the store keeps in place for this client."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np

from shoal.checksum import copy_crc32c_at, crc32c_each
from shoal.kv_client.mapping import MappedChunk


class Place(NamedTuple):
    """Where a leased block is, and what it has to be."""

    chunk: MappedChunk
    slot: int
    generation: int
    checksum: int


class Reading(enum.Enum):
    """What reading one block came to."""

    VERIFIED = "verified"
    STALE = "stale"
    """The store took the block away meanwhile: the lease was over."""
    CORRUPT = "corrupt"
    """The bytes are not those that were stored."""


class Lease:
    """The leading blocks of a chain that were in memory. Given back by `close`, or at the end of a `with`."""

    def __init__(
        self,
        keys: Sequence[bytes],
        places: Sequence[Place],
        num_visible: int,
        block_bytes: int,
        give_back: Callable[[Lease], None],
    ) -> None:
        self.keys = keys
        """Of the leased blocks."""
        self.num_visible = num_visible
        """Leading blocks that the store has in any tier."""
        self.places = places
        self.block_bytes = block_bytes
        self.suspects: list[int] = []
        """Positions of blocks that did not verify; the store is told with `close`."""
        self._give_back: Callable[[Lease], None] | None = give_back

    def __len__(self) -> int:
        return len(self.places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def blocks(self) -> list[memoryview]:
        """The blocks themselves, read-only and unverified; what is read counts only if `is_valid` afterwards."""
        num_bytes = self.block_bytes
        found = []
        for chunk, slot, _, _ in self.places:
            start = slot * chunk.row_bytes
            found.append(chunk.memory[start : start + num_bytes])
        return found

    def address(self, position: int) -> int:
        """Of a block, in this process."""
        chunk, slot, _, _ = self.places[position]
        return chunk.address + slot * chunk.row_bytes

    def is_valid(self, position: int) -> bool:
        """Whether a block was not touched since the lease was granted. Asked after reading."""
        chunk, slot, generation, _ = self.places[position]
        return chunk.generations[slot] == generation

    def count_valid(self) -> int:
        """Leading blocks that were not touched since the lease was granted."""
        for position, (chunk, slot, generation, _) in enumerate(self.places):
            if chunk.generations[slot] != generation:
                return position
        return len(self.places)

    def verify(self, positions: Sequence[int]) -> list[Reading]:
        """Reads some blocks where they are; what became of each, up to one that is not VERIFIED, at least."""
        if not all(map(self.is_valid, positions)):
            positions = list(itertools.takewhile(self.is_valid, positions))
            return [*self.verify(positions), Reading.STALE]
        sums = crc32c_each(np.array([self.address(position) for position in positions], np.uint64), self.block_bytes)
        return [self._judge(position, checksum) for position, checksum in zip(positions, sums, strict=True)]

    def copy(self, position: int, into: int) -> Reading:
        """Copies a block to an address with room for it, in one pass with its checksum."""
        if not self.is_valid(position):
            return Reading.STALE
        return self._judge(position, copy_crc32c_at(into, self.address(position), self.block_bytes))

    def close(self) -> None:
        """Gives the leases back."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None and self.places:
            give_back(self)

    def _judge(self, position: int, checksum: int) -> Reading:
        if not self.is_valid(position):
            return Reading.STALE
        if checksum != self.places[position].checksum:
            self.suspects.append(position)
            return Reading.CORRUPT
        return Reading.VERIFIED

"""The index: a number for each visible block, and columns of what is known of it.

Plain columns of machine words in place of an object a block: 1 million blocks take 191 bytes each, of which 96 are the
key and its number as Python objects and 50 the dictionary that joins them (benchmarks/kv_store.py).
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

NO_SLOT: Final = (1 << 64) - 1
ROOT: Final = 0
"""The row of no block: parent of every chain's first block."""


@dataclass(slots=True)
class ScopeSizes:
    """Blocks of one scope."""

    num_blocks: int = 0
    num_in_memory: int = 0
    num_on_disk: int = 0


class BlockIndex:
    """Rows of visible blocks. Columns are public: whoever writes them keeps to their meaning.

    Invariant: a row's parent is a row that is in use, or ROOT. Belongs to one thread.
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}
        self.keys: list[bytes] = [b""]
        self.parent = array("I", [0])
        self.num_memory_children = array("I", [0])
        """Children that are in memory, or about to be: while there are any, the block stays in memory."""
        self.checksum = array("I", [0])
        """CRC32C of the payload."""
        self.scope = array("H", [0])
        self.num_leases = array("I", [0])
        self.slot = array("Q", [NO_SLOT])
        """Packed slot in the arena; NO_SLOT when the block is not in memory."""
        self.on_disk = array("B", [0])
        """1 when the block is on disk too, or only; the disk tier finds it by its key."""
        self.sizes: defaultdict[int, ScopeSizes] = defaultdict(ScopeSizes)
        """Of each scope."""
        self._child = array("I", [0])
        self._next = array("I", [0])
        self._previous = array("I", [0])
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, key: bytes, parent: int, scope: int, checksum: int) -> int:
        """A row for a key that has none, in no tier yet. `parent` is a row in use, or ROOT."""
        row = self._free.pop() if self._free else self._extend()
        self.rows[key] = row
        self.keys[row] = key
        self.parent[row] = parent
        self.checksum[row] = checksum
        self.scope[row] = scope
        self.sizes[scope].num_blocks += 1
        if parent:
            sibling = self._child[parent]
            self._next[row] = sibling
            if sibling:
                self._previous[sibling] = row
            self._child[parent] = row
        return row

    def remove(self, row: int) -> None:
        """Ends a row without children, in no tier, without leases."""
        parent, after, before = self.parent[row], self._next[row], self._previous[row]
        if self._child[row] or self.num_leases[row]:
            raise AssertionError("a block with children or leases cannot go")
        if before:
            self._next[before] = after
        elif parent:
            self._child[parent] = after
        if after:
            self._previous[after] = before
        self._next[row] = self._previous[row] = self.parent[row] = 0
        self.num_memory_children[row] = 0
        self.sizes[self.scope[row]].num_blocks -= 1
        del self.rows[self.keys[row]]
        self.keys[row] = b""
        self._free.append(row)

    def has_children(self, row: int) -> bool:
        """Whether any block follows this one, in any tier."""
        return self._child[row] != 0

    def subtree(self, row: int) -> list[int]:
        """The row and all that follow it, children after parents."""
        found = [row]
        for parent in found:
            child = self._child[parent]
            while child:
                found.append(child)
                child = self._next[child]
        return found

    def prefix(self, keys: Sequence[bytes], scope: int) -> list[int]:
        """Rows of the leading keys that are visible in the scope."""
        rows, of, get = [], self.scope, self.rows.get
        for key in keys:
            row = get(key, 0)
            if not row or of[row] != scope:
                break
            rows.append(row)
        return rows

    def set_slot(self, row: int, slot: int) -> None:
        """Says that the block is in memory."""
        self.slot[row] = slot
        self.sizes[self.scope[row]].num_in_memory += 1
        self.num_memory_children[self.parent[row]] += 1

    def clear_slot(self, row: int) -> int:
        """Says that the block is no longer in memory; where it was."""
        slot = self.slot[row]
        self.slot[row] = NO_SLOT
        self.sizes[self.scope[row]].num_in_memory -= 1
        self.num_memory_children[self.parent[row]] -= 1
        return slot

    def set_on_disk(self, row: int, on_disk: bool) -> None:
        """Says whether the block is on disk."""
        self.sizes[self.scope[row]].num_on_disk += on_disk - self.on_disk[row]
        self.on_disk[row] = on_disk

    def in_order(self) -> Iterator[int]:
        """Rows in use, in no particular order; the index may not change meanwhile."""
        return iter(self.rows.values())

    def _extend(self) -> int:
        self.keys.append(b"")
        for column in (self.parent, self.num_memory_children, self.checksum, self.scope, self.num_leases):
            column.append(0)
        for column in (self._child, self._next, self._previous):
            column.append(0)
        self.slot.append(NO_SLOT)
        self.on_disk.append(0)
        return len(self.keys) - 1

"""The index: a number for each visible block, and columns of what is known of it.

Plain columns of machine words in place of an object a block, and a hash table in C that joins keys and numbers: with
them as Python objects in a dictionary a block took 146 bytes more (benchmarks/kv_store.py measures the whole).
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from shoal.kv_store.index.key_table import make_keys
from shoal.kv_store.index.roots import Roots

NO_SLOT: Final = (1 << 64) - 1
MAX_COUNTED_SCOPES: Final = 1024
"""Whose first blocks are counted, for clients to see; 256 KiB each, of which what is touched is there."""
_MIN_ROOM: Final = 64
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
        self._keys = make_keys()
        self.find: Callable[[bytes], int] = self._keys.find
        """The row of a key; 0 when it is not visible. Safe from any thread."""
        self.key: Callable[[int], bytes] = self._keys.key
        """Of a row in use."""
        self.parent = array("I", [0])
        self.num_memory_children = array("I", [0])
        """Children that are in memory, or about to be: while there are any, the block stays in memory."""
        self.checksum = array("I", [0])
        """CRC32C of the payload."""
        self.scope = array("H", [0])
        """0 for a row that is not in use."""
        self.num_leases = array("I", [0])
        self.num_pins = array("H", [0])
        """Owners who pinned the block: while there are any, it stays in memory."""
        self.last_used_s = array("I", [0])
        """`now_s` when the block was added or used."""
        self.cost_s = array("f", [0.0])
        """What computing the block again takes, as its writer said; 0 if unknown."""
        self.now_s = 0
        """Whole seconds since the store started, as far as it was told."""
        self.slot = array("Q", [NO_SLOT])
        """Packed slot in the arena; NO_SLOT when the block is not in memory."""
        self.on_disk = array("B", [0])
        """1 when the block is on disk too, or only; the disk tier finds it by its key."""
        self.sizes: defaultdict[int, ScopeSizes] = defaultdict(ScopeSizes)
        """Of each scope."""
        self._roots: dict[int, Roots] = {}
        self._child = array("I", [0])
        self._next = array("I", [0])
        self._previous = array("I", [0])
        self._columns: tuple[array[Any], ...] = (
            *(self.parent, self.num_memory_children, self.checksum, self.scope, self.num_leases, self.num_pins),
            *(self.last_used_s, self.cost_s, self.on_disk, self._child, self._next, self._previous),
        )
        """All whose rows begin with 0."""

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def num_rows(self) -> int:
        """Rows there is room for, in use or not, and row 0."""
        return len(self.scope)

    def add(self, key: bytes, parent: int, scope: int, checksum: int) -> int:
        """A row for a key that has none, in no tier yet. `parent` is a row in use, or ROOT."""
        row = self._keys.add(key)
        if row == len(self.parent):
            self._extend()
        self.parent[row] = parent
        self.checksum[row] = checksum
        self.scope[row] = scope
        self.last_used_s[row] = self.now_s
        self.cost_s[row] = 0.0
        self.sizes[scope].num_blocks += 1
        if parent:
            sibling = self._child[parent]
            self._next[row] = sibling
            if sibling:
                self._previous[sibling] = row
            self._child[parent] = row
        elif (roots := self._roots.get(scope)) is not None:
            roots.add(key)
        return row

    def remove(self, row: int) -> None:
        """Ends a row without children, in no tier, without leases and pins."""
        parent, after, before = self.parent[row], self._next[row], self._previous[row]
        if self._child[row] or self.num_leases[row] or self.num_pins[row]:
            raise AssertionError("a block with children, leases or pins cannot go")
        if before:
            self._next[before] = after
        elif parent:
            self._child[parent] = after
        elif (roots := self._roots.get(self.scope[row])) is not None:
            roots.remove(self.key(row))
        if after:
            self._previous[after] = before
        self._next[row] = self._previous[row] = self.parent[row] = 0
        self.num_memory_children[row] = 0
        self.sizes[self.scope[row]].num_blocks -= 1
        self.scope[row] = 0
        self._keys.remove(row)

    def roots_of(self, scope: int) -> Roots | None:
        """The count of a scope's first blocks, kept from here on; None when there are too many, or no memory."""
        roots = self._roots.get(scope)
        if roots is None and len(self._roots) < MAX_COUNTED_SCOPES:
            try:
                roots = Roots()
            except MemoryError:
                return None
            # All rows as arrays: a million take 3 ms.
            is_root = (np.frombuffer(self.scope, np.uint16) == scope) & (np.frombuffer(self.parent, np.uint32) == ROOT)
            for row in np.flatnonzero(is_root).tolist():
                roots.add(self.key(row))
            self._roots[scope] = roots
        return roots

    def close(self) -> None:
        """Gives memory that clients map back."""
        for roots in self._roots.values():
            roots.close()
        self._roots.clear()

    def has_children(self, row: int) -> bool:
        """Whether any block follows this one, in any tier."""
        return self._child[row] != 0

    def children(self, row: int) -> list[int]:
        """Rows that follow this one."""
        found, child = [], self._child[row]
        while child:
            found.append(child)
            child = self._next[child]
        return found

    def subtree(self, row: int) -> list[int]:
        """The row and all that follow it, children after parents."""
        found = [row]
        for parent in found:
            child = self._child[parent]
            while child:
                found.append(child)
                child = self._next[child]
        return found

    def prefix(self, keys: Sequence[bytes], scope: int) -> Sequence[int]:
        """Rows of the leading keys that are visible in the scope."""
        return self._keys.prefix(keys, self.scope, scope)

    def touch(self, rows: Sequence[int]) -> None:
        """Blocks were used."""
        last_used_s, now_s = self.last_used_s, self.now_s
        for row in rows:
            last_used_s[row] = now_s

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
        return (row for row, scope in enumerate(self.scope) if scope)

    def _extend(self) -> None:
        """Room for a 16th more rows, in one go: a column at a time they are most of what adding a block takes."""
        num = max(_MIN_ROOM, self.num_rows // 16)
        for column in self._columns:
            column.frombytes(bytes(num * column.itemsize))
        self.slot.extend(array("Q", [NO_SLOT]) * num)

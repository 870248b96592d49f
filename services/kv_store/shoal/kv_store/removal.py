"""Blocks that go for another reason than room: asked for, too old, lost by the disk, or found to be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from shoal.kv_store.counters import Counters
from shoal.kv_store.disk_tier import DiskTier
from shoal.kv_store.index import NO_SLOT, BlockIndex
from shoal.kv_store.memory_tier import MemoryTier
from shoal.kv_store.pins import Pins
from shoal.kv_store.scopes import Scope, Scopes
from shoal.kv_store.sessions import Session
from shoal.kv_store.writing import Writing


class Removal:
    """Takes blocks with all that follow them out of every tier. Belongs to the store's thread."""

    def __init__(
        self,
        memory: MemoryTier,
        index: BlockIndex,
        scopes: Scopes,
        writing: Writing,
        counters: Counters,
        sessions: Mapping[bytes, Session],
        pins: Pins,
    ) -> None:
        """sessions: the open ones, which hold leases."""
        self._memory = memory
        self._index = index
        self._scopes = scopes
        self._writing = writing
        self._counters = counters
        self._sessions = sessions
        self._pins = pins
        self._disk: DiskTier | None = None

    def attach_disk(self, disk: DiskTier) -> None:
        """What goes leaves the disk as well from here on."""
        self._disk = disk

    def evict(self, scope: Scope, keys: Sequence[bytes]) -> tuple[int, int]:
        """(blocks gone, blocks that stay: leased or pinned, or on the way to one). Without keys, of the whole scope."""
        index = self._index
        if keys:
            found = (index.find(key) for key in keys)
            rows = [row for row in found if row and index.scope[row] == scope.number]
        else:
            rows = [row for row in index.in_order() if index.scope[row] == scope.number and not index.parent[row]]
        num_gone = num_kept = 0
        for row in rows:
            if index.scope[row] != scope.number:  # went with another one
                continue
            tree = index.subtree(row)
            gone = self._remove(reversed(tree), "removed_asked")
            num_gone += gone
            num_kept += len(tree) - gone
        return num_gone, num_kept

    def expire(self, row: int) -> bool:
        """Removes a block that is too old; False when it is leased or pinned, or something follows it."""
        return self._remove([row], "removed_expired") == 1

    def remove_wrong(self, row: int) -> int:
        """A block's bytes in memory are wrong: it goes, with all that follow, leased and pinned or not; how many.

        A lease does not keep it: its generation changes, so whoever reads it finds out.
        """
        self._counters.add("checksum_failures_memory")
        return self._remove_tree(row, "removed_wrong")

    def remove_lost(self, row: int) -> int:
        """A block is in no tier any more: it goes, with all that follow, leased and pinned or not; how many."""
        return self._remove_tree(row, "removed_lost")

    def _remove_tree(self, row: int, reason: str) -> int:
        tree = self._index.subtree(row)
        for each in tree:
            if self._index.num_pins[each]:
                self._pins.forget(each)
            if self._index.num_leases[each]:
                self._index.num_leases[each] = 0
                for session in self._sessions.values():
                    session.leases.pop(self._index.key(each), None)
                if self._disk is not None:
                    self._disk.forget_pin(self._index.key(each))
        return self._remove(reversed(tree), reason)

    def _remove(self, rows: Iterable[int], reason: str) -> int:
        """Rows, children before parents; those with leases or pins, or with children that stay, are left."""
        index, num_gone = self._index, 0
        for row in rows:
            if index.num_leases[row] or index.num_pins[row] or index.has_children(row):
                continue
            self._writing.unpin({row})
            if index.slot[row] != NO_SLOT:
                self._memory.drop(row, self._scopes.numbered(index.scope[row]))
            if self._disk is not None:
                self._disk.leave(row)
            index.remove(row)
            num_gone += 1
        self._counters.add(reason, num_gone)
        return num_gone

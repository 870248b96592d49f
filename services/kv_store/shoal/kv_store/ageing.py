"""Time to live: blocks that nobody used for long enough leave every tier."""

from __future__ import annotations

from typing import Final

import numpy as np

from shoal.kv_store.index import BlockIndex
from shoal.kv_store.removal import Removal

SWEEP_ROWS: Final = 100_000
"""Rows looked at in a sweep: 0.1 ms. A store with a million blocks is through in ten."""
MAX_REMOVED: Final = 2_000
"""Blocks removed in a sweep: some 20 ms of the store's thread."""


class Ageing:
    """Looks at the index part by part, round and round. Belongs to the store's thread."""

    def __init__(self, index: BlockIndex, removal: Removal, ttl_s: float) -> None:
        """ttl_s: 0 keeps blocks for ever."""
        self._index = index
        self._removal = removal
        self._ttl_s = ttl_s
        self._next_row = 1

    def sweep(self) -> int:
        """Removes blocks of the next rows that are too old and that nothing younger follows; how many went.

        Called about once a second. Blocks that are leased, pinned or about to be followed stay until they are not.
        """
        index = self._index
        before_s = index.now_s - self._ttl_s
        if not self._ttl_s or before_s < 0:
            return 0
        start = self._next_row if self._next_row < index.num_rows else 1
        used = np.frombuffer(index.last_used_s, np.uint32)[start : start + SWEEP_ROWS] <= before_s
        live = np.frombuffer(index.scope, np.uint16)[start : start + SWEEP_ROWS] != 0
        old = np.flatnonzero(used & live).tolist()
        del used, live  # arrays that are looked at cannot grow
        num_removed = 0
        for offset in old:
            if num_removed >= MAX_REMOVED:
                self._next_row = start + offset
                return num_removed
            num_removed += self._remove_chain(start + offset, before_s)
        self._next_row = start + SWEEP_ROWS
        return num_removed

    def _remove_chain(self, row: int, before_s: float) -> int:
        """Removes a block that nothing follows, and then what led to it, as far as that is old too."""
        index, num_removed = self._index, 0
        while row and index.scope[row] and index.last_used_s[row] <= before_s:
            parent = index.parent[row]
            if index.num_memory_children[row] or not self._removal.expire(row):
                break
            num_removed += 1
            row = parent
        return num_removed

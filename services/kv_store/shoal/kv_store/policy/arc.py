"""ARC: "ARC: A Self-Tuning, Low Overhead Replacement Cache" (Megiddo, Modha; FAST 2003)."""

from __future__ import annotations

from collections import OrderedDict

from shoal.kv_store.policy.queues import Queue, QueuePolicy


class Arc(QueuePolicy):
    """Two LRU lists, of blocks used once and of those used again, whose shares follow hits of their ghosts.

    The paper's cache size is the number of blocks held when room was last needed. Room is asked for before it is known
    for which block, so REPLACE's special case of a block among the ghosts of the second list is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._once, self._again = Queue(), Queue()
        self._once_ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._again_ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._size = 0
        self._target = 0.0
        """Of the list of blocks used once."""

    def _used(self, key: bytes) -> None:
        self._move(key, self._again)

    def _came(self, key: bytes, size: int, cost: float) -> Queue:
        num_once, num_again = len(self._once_ghosts), len(self._again_ghosts)
        if key in self._once_ghosts:
            self._target = min(self._target + max(num_again / num_once, 1.0), float(self._size))
            del self._once_ghosts[key]
            return self._again
        if key in self._again_ghosts:
            self._target = max(self._target - max(num_once / num_again, 1.0), 0.0)
            del self._again_ghosts[key]
            return self._again
        return self._once

    def _went(self, key: bytes, for_room: bool) -> None:
        pass

    def _next_victim(self) -> bytes | None:
        if len(self._once) > self._target:
            return self._oldest_leaf(self._once) or self._oldest_leaf(self._again)
        return self._oldest_leaf(self._again) or self._oldest_leaf(self._once)

    def _forget(self, key: bytes, *, for_room: bool) -> None:
        if for_room:
            self._size = len(self)
            ghosts = self._once_ghosts if self._queue_of[key] is self._once else self._again_ghosts
            ghosts[key] = None
        super()._forget(key, for_room=for_room)
        # The paper's bounds, with the block that comes next counted in: |L1| <= size, |L1| + |L2| <= 2 * size.
        while self._once_ghosts and len(self._once) + len(self._once_ghosts) > self._size:
            self._once_ghosts.popitem(last=False)
        while self._again_ghosts and len(self) + len(self._once_ghosts) + len(self._again_ghosts) > 2 * self._size:
            self._again_ghosts.popitem(last=False)

"""S3-FIFO: "FIFO Queues are All You Need for Cache Eviction" (Yang, Zhang, Qiu, Yue, Rashmi; SOSP 2023)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from shoal.kv_store.policy.queues import Queue, QueuePolicy

_MAX_COUNT: Final = 3


class S3Fifo(QueuePolicy):
    """A small FIFO for what comes in, a main one for what was used there more than once, and ghosts of the small one's.

    The paper's cache size is the number of blocks held; a block that others follow keeps its place until they are gone.
    """

    def __init__(self, small_fraction: float = 0.1) -> None:
        """small_fraction: of the blocks held; the paper's value. More of them makes the small queue give up blocks."""
        super().__init__()
        self._small_fraction = small_fraction
        self._small, self._main = Queue(), Queue()
        self._counts: dict[bytes, int] = {}
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()

    def _used(self, key: bytes) -> None:
        self._counts[key] = min(self._counts[key] + 1, _MAX_COUNT)

    def _came(self, key: bytes, size: int, cost: float) -> Queue:
        self._counts[key] = 0
        if key not in self._ghosts:
            return self._small
        del self._ghosts[key]
        return self._main

    def _went(self, key: bytes, for_room: bool) -> None:
        del self._counts[key]

    def _next_victim(self) -> bytes | None:
        prefer_small = len(self._small) >= self._small_fraction * len(self)
        if prefer_small:
            return self._next_of_small() or self._next_of_main()
        return self._next_of_main() or self._next_of_small()

    def _next_of_small(self) -> bytes | None:
        while (key := self._oldest_leaf(self._small)) is not None and self._counts[key] > 1:
            self._move(key, self._main)
            self._counts[key] = 0
        return key

    def _next_of_main(self) -> bytes | None:
        while (key := self._oldest_leaf(self._main)) is not None and self._counts[key] > 0:
            count = self._counts[key]
            self._move(key, self._main)
            self._counts[key] = count - 1
        return key

    def _forget(self, key: bytes, *, for_room: bool) -> None:
        if for_room and self._queue_of[key] is self._small:
            self._ghosts[key] = None
        super()._forget(key, for_room=for_room)
        while len(self._ghosts) > max(1.0, (1 - self._small_fraction) * (len(self) + 1)):
            self._ghosts.popitem(last=False)

"""Policies that are made of queues, without what makes them differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from shoal.kv_store.policy.policy import IsEvictable


class Queue:
    """Keys from old to new. A member may be away for a time: while others follow it, or while it is pinned."""

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()
        self._num_away = 0

    def __len__(self) -> int:
        """Members, also those that are away."""
        return len(self._order) + self._num_away

    def join(self, key: bytes) -> None:
        """A new member, as the newest."""
        self._order[key] = None

    def leave(self, key: bytes) -> None:
        """No member any more, whether it was away or not."""
        if key in self._order:
            del self._order[key]
        else:
            self._num_away -= 1

    def send_away(self, key: bytes) -> None:
        """It stays a member, but is not `oldest`."""
        del self._order[key]
        self._num_away += 1

    def bring_back(self, key: bytes) -> None:
        """As the oldest: those before it have gone or are away."""
        self._num_away -= 1
        self._order[key] = None
        self._order.move_to_end(key, last=False)

    def oldest(self) -> bytes | None:
        """Of those that are not away."""
        return next(iter(self._order), None)


@dataclass(slots=True)
class _Link:
    """A block in its chain. Outlives the block while others follow it, so that the key may come back in between."""

    key: bytes
    parent: _Link | None
    num_children: int = 0


class QueuePolicy(ABC):
    """A Policy whose blocks each are in one queue. Keeps chains closed and pinned blocks out of the way.

    A block whose turn comes while others follow it is away until they are gone; one that the caller does not allow is
    held until it is looked at again, one of them in each call, so that each pin lengthens few calls.
    """

    def __init__(self) -> None:
        self._queue_of: dict[bytes, Queue] = {}
        self._links: dict[bytes, _Link] = {}
        self._covered: set[bytes] = set()
        self._held: OrderedDict[bytes, None] = OrderedDict()

    @abstractmethod
    def _used(self, key: bytes) -> None:
        """A held block was used."""

    @abstractmethod
    def _came(self, key: bytes, size: int, cost: float) -> Queue:
        """A block comes in; the queue to put it in."""

    @abstractmethod
    def _went(self, key: bytes, for_room: bool) -> None:
        """A block has left its queue."""

    @abstractmethod
    def _next_victim(self) -> bytes | None:
        """The block to give up, by `_oldest_leaf` of a queue; None when every one is away."""

    def __len__(self) -> int:
        return len(self._queue_of)

    def __contains__(self, key: object) -> bool:
        return key in self._queue_of

    def touch(self, key: bytes) -> None:
        """See Policy."""
        if key in self._queue_of:
            self._used(key)

    def touch_all(self, keys: Iterable[bytes]) -> None:
        """See Policy."""
        for key in keys:
            self.touch(key)

    def admit(self, key: bytes, size: int, cost: float) -> bool:
        """See Policy; this one takes every block."""
        return True

    def insert(self, key: bytes, size: int, cost: float, parent: bytes | None) -> None:
        """See Policy."""
        if key in self._queue_of:
            return
        up = None if parent is None else self._links.get(parent)
        if up is not None:
            up.num_children += 1
        self._links[key] = _Link(key, up)
        self._join(key, self._came(key, size, cost))

    def remove(self, key: bytes) -> None:
        """See Policy."""
        if key in self._queue_of:
            self._forget(key, for_room=False)

    def victim(self, is_evictable: IsEvictable) -> bytes | None:
        """See Policy."""
        held = next(iter(self._held), None)
        if held is not None:
            self._look_again(held, is_evictable)
        while (key := self._next_victim()) is not None:
            if is_evictable(key):
                self._forget(key, for_room=True)
                return key
            self._hold(key)
        for held in list(self._held):
            if self._look_again(held, is_evictable) and (key := self._next_victim()) and is_evictable(key):
                self._forget(key, for_room=True)
                return key
        return None

    def _join(self, key: bytes, queue: Queue) -> None:
        self._queue_of[key] = queue
        queue.join(key)

    def _move(self, key: bytes, queue: Queue) -> None:
        """To the new end of a queue, from wherever it is."""
        self._queue_of[key].leave(key)
        self._covered.discard(key)
        self._held.pop(key, None)
        self._join(key, queue)

    def _oldest_leaf(self, queue: Queue) -> bytes | None:
        while (key := queue.oldest()) is not None and self._links[key].num_children:
            queue.send_away(key)
            self._covered.add(key)
        return key

    def _hold(self, key: bytes) -> None:
        self._queue_of[key].send_away(key)
        self._held[key] = None

    def _look_again(self, held: bytes, is_evictable: IsEvictable) -> bool:
        if not is_evictable(held):
            self._held.move_to_end(held)
            return False
        del self._held[held]
        self._queue_of[held].bring_back(held)
        return True

    def _forget(self, key: bytes, *, for_room: bool) -> None:
        self._queue_of.pop(key).leave(key)
        self._covered.discard(key)
        self._held.pop(key, None)
        self._went(key, for_room)
        parent = self._links.pop(key).parent
        if parent is None:
            return
        parent.num_children -= 1
        if not parent.num_children and self._links.get(parent.key) is parent and parent.key in self._covered:
            self._covered.remove(parent.key)
            self._queue_of[parent.key].bring_back(parent.key)

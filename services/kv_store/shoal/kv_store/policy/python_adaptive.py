"""The adaptive policy in Python: what it does, and the slower way where there is no C compiler."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from shoal.kv_store.policy.python_rates import CLASSES, UNITS, ReuseRates
from shoal.kv_store.policy.queues import Queue, QueuePolicy

COSTS: Final = 5
"""Levels of cost per byte, a factor of 2 each, around the mean."""
_MIDDLE: Final = COSTS // 2
_MIN_GHOSTS: Final = 1 << 16
_GHOSTS_A_BLOCK: Final = 4
_NEVER: Final = 1 << 31


@dataclass(slots=True)
class _Use:
    uses: int
    """Class: 0 for one use."""
    cost: int
    last: int


class PythonAdaptive(QueuePolicy):
    """A Policy that keeps what promises most reuses per byte and time, as it learned from every access.

    A block's class is how often it was used, remembered by ghosts when it is not held. For each class and age the rate
    of reuse is measured; a block's rank is the most reuses per time that keeping it up to some later age can bring (the
    Gittins index), times its cost per byte. The victim is the lowest of each list's oldest leaf. A block whose rank
    would be lower than that is not admitted: how many uses it takes to come in follows from the pressure.
    """

    def __init__(self, num_blocks: int) -> None:
        """num_blocks: that there is room for, about. What is held when room is needed counts from then on."""
        super().__init__()
        self._rates = ReuseRates(num_blocks)
        self._queues = [Queue() for _ in range(CLASSES * COSTS)]
        self._use_of: dict[bytes, _Use] = {}
        self._ghosts: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._mean_cost = 0.0
        self._full_at = _NEVER
        self._num_victims = 0

    def admit(self, key: bytes, size: int, cost: float) -> bool:
        """See Policy."""
        if len(self) < self._full_at or key in self or (worst := self._find_worst()) is None:
            return True
        ghost = self._ghosts.get(key)
        uses = 0 if ghost is None else _next_class(ghost[0])
        now = self._rates.now
        if self._rank(_Use(uses, _cost_level(cost / size, self._mean_cost), now)) >= worst[0]:
            return True
        if ghost is not None:
            self._rates.end_use(*self._ghosts.pop(key))
        self._rates.begin_use(uses)
        self._leave_ghost(key, uses, now)
        self._count_access()
        return False

    def insert(self, key: bytes, size: int, cost: float, parent: bytes | None) -> None:
        """See Policy."""
        if key not in self:
            super().insert(key, size, cost, parent)
            self._count_access()

    def rank(self, num_uses: int, bucket: int) -> float:
        """Reuses per unit of time that keeping a block can bring, by its uses (1 to 5) and age."""
        return self._rates.ranks[num_uses - 1][bucket]

    def _used(self, key: bytes) -> None:
        use = self._use_of[key]
        self._rates.end_use(use.uses, use.last)
        use.uses, use.last = _next_class(use.uses), self._rates.now
        self._rates.begin_use(use.uses)
        self._move(key, self._queue_for(use))
        self._count_access()

    def _came(self, key: bytes, size: int, cost: float) -> Queue:
        per_byte = cost / size
        if per_byte > 0:
            self._mean_cost += (per_byte - self._mean_cost) / (1024 if self._mean_cost > 0 else 1)
        use = _Use(0, _cost_level(per_byte, self._mean_cost), self._rates.now)
        if (ghost := self._ghosts.pop(key, None)) is not None:
            use.uses = _next_class(ghost[0])
            self._rates.end_use(*ghost)
        self._rates.begin_use(use.uses)
        self._use_of[key] = use
        return self._queue_for(use)

    def _went(self, key: bytes, for_room: bool) -> None:
        use = self._use_of.pop(key)
        self._leave_ghost(key, use.uses, use.last)

    def _next_victim(self) -> bytes | None:
        worst = self._find_worst()
        return None if worst is None else worst[2]

    def _forget(self, key: bytes, *, for_room: bool) -> None:
        if for_room:
            self._full_at = len(self)
            self._num_victims += 1
        super()._forget(key, for_room=for_room)

    def _find_worst(self) -> tuple[float, int, bytes] | None:
        """The lowest of each list's oldest leaf, of equals the one used longest ago: (rank, unit of last use, key)."""
        worst: tuple[float, int, bytes] | None = None
        for queue in self._queues:
            if (key := self._oldest_leaf(queue)) is not None:
                use = self._use_of[key]
                found = (self._rank(use), use.last)
                if worst is None or found < worst[:2]:
                    worst = (*found, key)
        return worst

    def _rank(self, use: _Use) -> float:
        return math.ldexp(self._rates.ranks[use.uses][self._rates.bucket(use.last)], use.cost - _MIDDLE)

    def _queue_for(self, use: _Use) -> Queue:
        return self._queues[use.uses * COSTS + use.cost]

    def _leave_ghost(self, key: bytes, uses: int, last: int) -> None:
        self._ghosts[key] = (uses, last)
        if len(self._ghosts) > max(_MIN_GHOSTS, _GHOSTS_A_BLOCK * len(self)):
            self._ghosts.popitem(last=False)

    def _count_access(self) -> None:
        rates = self._rates
        rates.left -= 1
        if rates.left:
            return
        if self._num_victims:
            rates.unit = max(len(self) // UNITS, 1)
        elif self._full_at < _NEVER:
            self._full_at += 1 + len(self) // UNITS  # is it full still?
        self._num_victims = 0
        rates.next_unit()


def _next_class(uses: int) -> int:
    return min(uses + 1, CLASSES - 1)


def _cost_level(per_byte: float, mean: float) -> int:
    if not (per_byte > 0 and mean > 0):
        return _MIDDLE
    return min(max(math.floor(math.log2(per_byte / mean) + 0.5) + _MIDDLE, 0), COSTS - 1)

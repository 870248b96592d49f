"""Whether the workers can take another request of one model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MIN_SPARE: Final = 2


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of all ready workers of a model together."""

    num_sequences: int
    """That run in one step, and that may wait at a worker so that its steps are always full."""
    num_tokens: int
    """That their device memory holds KV for."""

    @classmethod
    def of(cls, num_workers: int, num_sequences: int, num_tokens: int, spare_ratio: float) -> Capacity:
        """num_sequences: most in one step, over all workers. spare_ratio: what may wait there, as a part of that."""
        spare = max(MIN_SPARE * num_workers, math.ceil(num_sequences * spare_ratio)) if spare_ratio else 0
        return cls(num_sequences + spare, num_tokens)


class Room:
    """Counts what this gateway has under way. A request fits while anything is free, however large it is itself: so
    large ones need no idle mesh to begin, and the workers' own queues take what is too much."""

    __slots__ = ("_ceiling", "_num_gateways", "_others", "_share", "_total", "num_sequences", "num_tokens")

    def __init__(self, num_gateways: int = 1, others: Callable[[], int | None] | None = None) -> None:
        """num_gateways: that share the workers. others: what the other ones have under way, as far as they tell; None
        when they do not."""
        self.num_sequences = 0
        self.num_tokens = 0.0
        """Uncached prompt tokens: KV that it needs for itself."""
        self._total: Capacity | None = None
        self._num_gateways = num_gateways
        self._others = others
        self._share = math.inf
        self._ceiling = math.inf

    @property
    def is_known(self) -> bool:
        """Whether any worker has said what it can take."""
        return self._total is not None

    @property
    def share(self) -> float:
        """Sequences that this gateway may have under way in any case."""
        return self._share

    def is_free(self) -> bool:
        """Whether another request fits. Yes while no worker is known: the mesh then says so better than a wait."""
        total = self._total
        if total is None:
            return True
        if self.num_tokens * self._num_gateways >= total.num_tokens:
            return not self.num_sequences
        if self.num_sequences >= self._ceiling:
            return False
        if self.num_sequences < self._share:
            return True
        num_others = None if self._others is None else self._others()
        return num_others is not None and self.num_sequences + num_others < total.num_sequences

    def resize(self, capacity: Capacity | None) -> None:
        """The workers changed; None when there are none."""
        self._total = capacity
        self._share = math.inf if capacity is None else math.ceil(capacity.num_sequences / self._num_gateways)

    def refused(self) -> None:
        """A worker had no room: others than this gateway fill them. No more than is under way, until `probe`."""
        self._ceiling = min(self._ceiling, self.num_sequences)

    def probe(self) -> bool:
        """Allows a tenth more than after the last refusal. Whether there is still a limit of that kind."""
        if self._ceiling is not math.inf:
            self._ceiling += max(1, math.ceil(self._ceiling / 10))
            if self._ceiling >= self._share:
                self._ceiling = math.inf
        return self._ceiling is not math.inf

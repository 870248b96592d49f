"""Blocks that arrive layer by layer while the step that needs them computes: the reader's side meets the runner's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class LayerFeed:
    """`step.LayerFeed`. Nobody waits for it beyond its deadline."""

    def __init__(self, deadline_s: float, flowing: Callable[[], None], clock: Callable[[], float] = time.monotonic):
        """deadline_s: on `clock`. flowing: called once, by the reader, when the first layers are on their way."""
        self._deadline_s = deadline_s
        self._flowing = flowing
        self._clock = clock
        self._changed = threading.Condition()
        self._reached: list[tuple[int, Callable[[], None]]] = []
        self._is_ended = False
        self._num_ordered = 0

    @property
    def is_flowing(self) -> bool:
        """Whether a step may begin: its first layers are on their way, and more follow."""
        return bool(self._reached)

    def reached(self, num_layers: int, order: Callable[[], None]) -> None:
        """So many leading layers are on their way. order: puts the current stream behind them. By the reader."""
        with self._changed:
            is_first = not self._reached
            self._reached.append((num_layers, order))
            self._changed.notify_all()
        if is_first:
            self._flowing()

    def finish(self) -> None:
        """No more comes, and what came of it is known. By the reader."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def wait(self, layer: int) -> None:
        """See `step.LayerFeed`."""
        if layer < self._num_ordered:
            return
        with self._changed:
            left_s = self._deadline_s - self._clock()
            self._changed.wait_for(lambda: self._find(layer) is not None or self._is_ended, max(left_s, 0.0))
            found = self._find(layer) or self._reached[-1]
        self._num_ordered, order = found
        order()

    def wait_end(self) -> None:
        """See `step.LayerFeed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ended, max(self._deadline_s - self._clock(), 0.0))

    def _find(self, layer: int) -> tuple[int, Callable[[], None]] | None:
        """The first to have reached a layer: behind later ones a step would wait for layers that it has no need of."""
        return next((each for each in self._reached if each[0] > layer), None)

"""Which units are asked for so often that one store should not answer for them alone."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.kv_store.remote.rendezvous import anchors
from shoal.kv_store.scopes import Scope

MAX_UNITS: Final = 4096
"""That are counted at a time; those that were asked for longest ago are forgotten."""


@dataclass(slots=True)
class _Window:
    since_s: float
    num_calls: int = 0
    told: bool = False


class Hotness:
    """Counts calls for units in windows of time. Belongs to the store's thread."""

    def __init__(
        self,
        hot_calls: int,
        window_s: float,
        on_hot: Callable[[Scope, Sequence[bytes]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_hot: called once a window with a chain that leads to the unit."""
        self._hot_calls = hot_calls
        self._window_s = window_s
        self._on_hot = on_hot
        self._clock = clock
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()

    def note(self, scope: Scope, keys: Sequence[bytes]) -> None:
        """Another store asked for a chain, given from its first block to the last one that is here."""
        unit, now_s = anchors(keys)[0], self._clock()
        window = self._windows.get(unit)
        if window is None or now_s - window.since_s > self._window_s:
            window = self._windows[unit] = _Window(now_s)
            if len(self._windows) > MAX_UNITS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(unit)
        window.num_calls += 1
        if window.num_calls >= self._hot_calls and not window.told:
            window.told = True
            self._on_hot(scope, keys)

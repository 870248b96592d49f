"""How fast running streams get their tokens at each worker, sampled from outside once in a while. No I/O."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from shoal.gateway.routing.load import Load, LoadTracker, Ticket

NUM_WINDOWS: Final = 8
"""A worker's pace is that of its best window of so many. Prompts that it computes in between slow all of its streams,
a long one for several windows: that passes, and new requests avoid it by themselves."""
_LEAST_RATE: Final = 1e-3
"""Tokens a second of a worker that gives none."""
_SAME: Final = Load(1, 0, 0)


class Stream(Protocol):
    """What is looked at; see `rebalance.Movable`."""

    num_tokens: int
    is_reading: bool

    @property
    def ticket(self) -> Ticket:
        """Its share of its worker's load."""
        ...


class _Seen(NamedTuple):
    num_tokens: int
    was_reading: bool
    progress_s: float
    """When it was last found to have got a token, or not to want one."""


class Pace:
    """Belongs to one event loop. A look costs some microseconds a stream; between looks nothing does.

    A stream's tokens count while its reader waits for them, so that slow clients do not make a worker look slow.
    """

    def __init__(self, loads: LoadTracker, most_window_s: float) -> None:
        """most_window_s: looks that are further apart show nothing: this process itself was stopped."""
        self._loads = loads
        self._most_window_s = most_window_s
        self._seen: dict[Stream, _Seen] = {}
        self._windows: dict[str, deque[tuple[float, Load]]] = {}
        """By worker: tokens a second of the median stream, and beside which load."""
        self._look_s = 0.0
        self.alive = False
        """Whether any request got a token in the last window."""
        self._num_answers = 0

    def look(self, streams: Iterable[Stream], workers: Sequence[str]) -> None:
        """Samples all streams under way; `workers` are those that there are."""
        now_s = self._loads.clock()
        window_s, self._look_s = now_s - self._look_s, now_s
        is_usable = 0 < window_s <= self._most_window_s
        rates: dict[str, list[float]] = {}
        seen = {}
        for stream in streams:
            ticket = stream.ticket
            if not ticket.is_answered or ticket.worker is None:
                continue
            before = self._seen.get(stream)
            progress_s = now_s
            if before is not None and is_usable and before.was_reading and stream.is_reading:
                gained = stream.num_tokens - before.num_tokens
                rates.setdefault(ticket.worker, []).append(gained / window_s)
                progress_s = now_s if gained else before.progress_s
            seen[stream] = _Seen(stream.num_tokens, stream.is_reading, progress_s)
        self._seen = seen
        before_answers, self._num_answers = self._num_answers, self._loads.forecast.num_answers
        has_answers = is_usable and self._num_answers > before_answers
        self.alive = has_answers or any(max(of_streams) > 0 for of_streams in rates.values())
        for worker, of_streams in rates.items():
            windows = self._windows.setdefault(worker, deque(maxlen=NUM_WINDOWS))
            windows.append((statistics.median(of_streams), self._loads.of(worker)))
        for worker in self._windows.keys() - set(workers):
            del self._windows[worker]

    def token_s(self, worker: str) -> float | None:
        """Seconds a token that its streams wait; None while it is not known."""
        best = self._best(worker)
        return None if best is None else 1 / max(_LEAST_RATE, best[0])

    def foreseen_s(self, worker: str) -> float | None:
        """The same with one stream more, and all that has come since; None while nothing is known of any worker.

        One that was never measured counts as the slowest of the others, its load considered.
        """
        ratios = {w: self._ratio(w) for w in self._windows}
        known = {w: ratio for w, ratio in ratios.items() if ratio is not None}
        if not known:
            return None
        step_s = self._loads.forecast.step_s(self._loads.of(worker) + _SAME)
        return step_s * known.get(worker, max(known.values()))

    def silent_s(self, stream: Stream) -> float:
        """For how long it has waited for its next token, in whole windows."""
        seen = self._seen.get(stream)
        return 0.0 if seen is None else self._look_s - seen.progress_s

    def _best(self, worker: str) -> tuple[float, Load] | None:
        windows = self._windows.get(worker)
        return None if windows is None or len(windows) < NUM_WINDOWS else max(windows, key=lambda window: window[0])

    def _ratio(self, worker: str) -> float | None:
        best = self._best(worker)
        if best is None:
            return None
        rate, load = best
        return 1 / max(_LEAST_RATE, rate) / self._loads.forecast.step_s(load)

"""The prompts that one worker was sent and has not answered yet, and when it should be through with them."""

from __future__ import annotations

from typing import Final, NamedTuple

from shoal.gateway.routing.rates import Work

_SAME_STEP_S: Final = 2e-3
"""Answers this close together came out of one step."""
_MOST_ANSWERS: Final = 8
"""After so many answers an observation ends though prompts are left, of which a part is computed already."""
_NOTHING: Final = Work(0, 0, 0)


class _Entry(NamedTuple):
    work: Work
    expected_s: float


class Backlog:
    """First come, first served, as workers compute prompts. Times are readings of one clock.

    How long prompts took is observed over whole busy times, from the first prompt sent to an idle worker to the answer
    of the last: between two answers a worker has computed some of the one and some of the other.
    """

    __slots__ = (
        "_done", "_entries", "_head_s", "_is_spoiled", "_last_s", "_next", "_num_answers", "_start_s", "_sum_s",
        "num_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._next = 0
        self._sum_s = 0.0
        self._head_s = 0.0
        """When the worker began with the first of them."""
        self.num_tokens = 0
        """To be computed for all of them."""
        self._start_s = self._last_s = 0.0
        self._done = _NOTHING
        self._num_answers = 0
        self._is_spoiled = False

    def __len__(self) -> int:
        return len(self._entries)

    def wait_s(self, now_s: float) -> float:
        """Until the worker should be through. A prompt that is late is expected to take as long again as it is late."""
        if not self._entries:
            return 0.0
        first_s = next(iter(self._entries.values())).expected_s
        return abs(self._head_s + first_s - now_s) + self._sum_s - first_s

    def add(self, work: Work, expected_s: float, now_s: float) -> int:
        """A prompt was sent."""
        if not self._entries:
            self._begin(now_s)
            self._head_s = now_s
        self._sum_s += expected_s
        self.num_tokens += int(work.tokens)
        self._next += 1
        self._entries[self._next] = _Entry(work, expected_s)
        return self._next

    def withdraw(self, number: int) -> None:
        """It will not be answered."""
        self._remove(number)
        self._is_spoiled = True

    def answer(self, number: int, now_s: float) -> tuple[Work, float] | None:
        """It was answered. Returns an observation if one is complete: the work done, and the seconds it took."""
        work = self._remove(number).work
        self._head_s = now_s
        is_same_step = self._num_answers > 0 and now_s - self._last_s <= _SAME_STEP_S
        self._done = self._done.plus(work._replace(steps=0) if is_same_step else work)
        self._num_answers += 1
        self._last_s = now_s
        if self._entries and self._num_answers < _MOST_ANSWERS:
            return None
        observed = None if self._is_spoiled else (self._done, now_s - self._start_s)
        self._begin(now_s)
        return observed

    def _begin(self, now_s: float) -> None:
        self._start_s = now_s
        self._done = _NOTHING
        self._num_answers = 0
        self._is_spoiled = False

    def _remove(self, number: int) -> _Entry:
        entry = self._entries.pop(number)
        self.num_tokens -= int(entry.work.tokens)
        self._sum_s = self._sum_s - entry.expected_s if self._entries else 0.0  # no rounding errors pile up
        return entry

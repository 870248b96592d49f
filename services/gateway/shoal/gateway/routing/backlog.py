"""The prompts that one worker was sent and has not answered yet, and when it should be through with them."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from shoal.gateway.routing.rates import Work

_SAME_STEP_S: Final = 2e-3
"""Answers this close together came out of one step."""
_MOST_ANSWERS: Final = 8
"""After so many answers an observation ends though prompts are left, of which a part is computed already."""
_NOTHING: Final = Work(0, 0, 0)
STEP_TOKENS: Final = 8192
"""Prompt tokens of a step, on GPUs: a prompt with fewer ahead of it may be in the step that is being computed."""
_MOST_DOUBT_S: Final = 8.0
"""A worker that stood still is tried again after this, for requests that it suits: what stood still may go on."""


class _Entry(NamedTuple):
    work: Work
    expected_s: float


class Standing(NamedTuple):
    """A prompt's place among those of its worker."""

    answer_s: float
    """Until its first token, as expected."""
    has_begun: bool
    """Whether the worker may have computed a part of it."""
    late_s: float
    """By how much the prompt at the head is late; 0 if it is not."""
    head_s: float
    """What that one was expected to take."""


class Backlog:
    """First come, first served, as workers compute prompts. Times are readings of one clock.

    How long prompts took is observed over whole busy times, from the first prompt sent to an idle worker to the answer
    of the last: between two answers a worker has computed some of the one and some of the other.
    """

    __slots__ = (
        "_done", "_due_s", "_entries", "_head_s", "_is_spoiled", "_last_s", "_next", "_num_answers", "_start_s",
        "_sum_s", "num_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._next = 0
        self._sum_s = 0.0
        self._head_s = 0.0
        """When the worker began with the first of them, or is expected to."""
        self._due_s = math.inf
        """When the first of those was due that were taken away for being late since the last answer."""
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
            return max(0.0, self._head_s - now_s)
        first_s = next(iter(self._entries.values())).expected_s
        return abs(self._head_s + first_s - now_s) + self._sum_s - first_s

    def standings(self, now_s: float) -> dict[int, Standing]:
        """Of each prompt, by its number."""
        if not self._entries:
            return {}
        head_s = next(iter(self._entries.values())).expected_s
        late_s = max(0.0, now_s - self._head_s - head_s)
        until_s, tokens_ahead, found = abs(self._head_s + head_s - now_s) - head_s, 0.0, {}
        for number, (work, expected_s) in self._entries.items():
            until_s += expected_s
            found[number] = Standing(until_s, tokens_ahead < STEP_TOKENS, late_s, head_s)
            tokens_ahead += work.tokens
        return found

    def add(self, work: Work, expected_s: float, now_s: float) -> int:
        """A prompt was sent."""
        if not self._entries:
            self._begin(now_s)
            self._head_s = max(now_s, self._head_s)
        self._sum_s += expected_s
        self.num_tokens += int(work.tokens)
        self._next += 1
        self._entries[self._next] = _Entry(work, expected_s)
        return self._next

    def withdraw(self, number: int, now_s: float, *, was_slow: bool = False) -> None:
        """It will not be answered. was_slow: it was taken away for being late; if it is at the head, the worker is
        expected to stand still for as long again as it has since its last answer was due, or until one comes."""
        is_head = next(iter(self._entries)) == number
        if self._may_have_begun(number):
            self._is_spoiled = True
        entry = self._remove(number)
        if is_head:
            due_s = min(self._due_s, self._head_s + entry.expected_s)
            self._head_s = now_s
            if was_slow and due_s < now_s:
                self._due_s = due_s
                self._head_s += min(now_s - due_s, _MOST_DOUBT_S)

    def answer(self, number: int, now_s: float) -> tuple[Work, float] | None:
        """It was answered. Returns an observation if one is complete: the work done, and the seconds it took."""
        work = self._remove(number).work
        self._head_s, self._due_s = now_s, math.inf
        is_same_step = self._num_answers > 0 and now_s - self._last_s <= _SAME_STEP_S
        self._done = self._done.plus(work._replace(steps=0) if is_same_step else work)
        self._num_answers += 1
        self._last_s = now_s
        if self._entries and self._num_answers < _MOST_ANSWERS:
            return None
        observed = None if self._is_spoiled else (self._done, now_s - self._start_s)
        self._begin(now_s)
        return observed

    def _may_have_begun(self, number: int) -> bool:
        tokens_ahead = 0.0
        for other, (work, _) in self._entries.items():
            if other == number:
                break
            tokens_ahead += work.tokens
            if tokens_ahead >= STEP_TOKENS:
                return False
        return True

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

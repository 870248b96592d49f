"""Stop strings across chunk borders, holding back as little text as can be.

Each stop string runs as a Knuth-Morris-Pratt automaton (Knuth, Morris and Pratt 1977): its state is the length of the
longest suffix of the text that is a prefix of the string, so the text to hold back is the largest state, and the work a
character is bounded whatever the strings are (64 of them cost at most 64 steps, amortized).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_STOPS: Final = 64
MAX_STOP_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class StopStrings:
    """The stop strings of a request, prepared once and shared by its completions."""

    texts: tuple[str, ...]
    failures: tuple[tuple[int, ...], ...]
    first_characters: re.Pattern[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> StopStrings:
        """`texts` holds at least one; none is empty. Limits are the validator's concern."""
        unique = tuple(dict.fromkeys(texts))
        assert all(unique)
        firsts = "".join(sorted({re.escape(text[0]) for text in unique}))
        return cls(unique, tuple(_failure(text) for text in unique), re.compile(f"[{firsts}]"))


def _failure(text: str) -> tuple[int, ...]:
    """`result[k]`: length of the longest proper prefix of text[:k] that is also its suffix."""
    result = [0, 0]
    k = 0
    for character in text[1:]:
        while k and text[k] != character:
            k = result[k]
        k += text[k] == character
        result.append(k)
    return tuple(result)


class StopMatcher:
    """Finds the first stop string of one completion. The match that ends first wins; of those, the longest."""

    __slots__ = ("_held", "_include", "_states", "_stops", "matched")

    def __init__(self, stops: StopStrings, *, include_stop_text: bool = False) -> None:
        self._stops = stops
        self._include = include_stop_text
        self._states = [0] * len(stops.texts)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text, once one did."""

    def feed(self, text: str) -> str:
        """The text that is safe to show. After a match, nothing more may be fed."""
        assert self.matched is None
        held = len(self._held)
        if not held:
            first = self._stops.first_characters.search(text)
            if first is None:
                return text
            start = first.start()
        else:
            start = 0
        end = self._scan(text, start)
        buffered = self._held + text
        if self.matched is not None:
            self._held = ""
            end += held
            return buffered[: end if self._include else end - len(self.matched)]
        keep = max(self._states)
        self._held = buffered[len(buffered) - keep :]
        return buffered[: len(buffered) - keep]

    def flush(self) -> str:
        """The text that was held back and turned out to be no stop string. Call once, at the end."""
        text, self._held = self._held, ""
        return text

    def _scan(self, text: str, start: int) -> int:
        """Advances every automaton; sets `matched` and returns the end of the match in `text` when there is one."""
        states, stops = self._states, self._stops
        indices = range(len(states))
        for position in range(start, len(text)):
            character = text[position]
            best = 0
            for i in indices:
                stop, state = stops.texts[i], states[i]
                failure = stops.failures[i]
                while state and stop[state] != character:
                    state = failure[state]
                state += stop[state] == character
                states[i] = state
                if state == len(stop) and state > best:
                    best = state
                    self.matched = stop
            if best:
                return position + 1
        return len(text)
